"""Views: which pixels a page holds, at which precision, and where a map is unsure."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from scipy import stats

from lulc.core.grid import GridSpec
from lulc.core.schema import LandCoverClass, Legend
from lulc.core.windows import squares_of
from lulc.evaluation.report.document import Page, Section, render_html
from lulc.evaluation.report.viewer import embed, pack
from lulc.evaluation.report.views import Viewing, entropy_by_class, least_sure
from lulc.labels.levels import levels_of
from lulc.labels.schemes import load_scheme
from lulc.models.uncertainty import entropy

SHAPE = (83, 97)
GRID = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500_000, 0, -10, 6_700_000), *SHAPE)
LEGEND = load_scheme("kaakonkulma-13").legend


def scene(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(13), SHAPE).astype(np.float32)
    mapped = (shares.argmax(axis=-1) + 1).astype(np.uint8)
    mapped[:5, :7], shares[:5, :7] = 255, np.nan
    mapped[20, 20] = 0
    return mapped, rng.integers(1, 14, SHAPE).astype(np.uint8), shares


def viewed(longest: int, window: int = 32, seed: int = 1):
    mapped, reference, shares = scene(seed)
    viewing = Viewing(GRID, 13, with_image=True, with_activations=True, longest=longest)
    for w in squares_of(GRID.extent, window):
        kept = (
            slice(-w.row % viewing.step, None, viewing.step),
            slice(-w.col % viewing.step, None, viewing.step),
        )
        image = np.dstack([mapped[w.slices][kept]] * 3).astype(np.float32)
        viewing.add(w, mapped[w.slices], reference[w.slices], image, shares[w.slices])
    return viewing.views()


@pytest.mark.parametrize(("longest", "step"), [(200, 1), (97, 1), (96, 2), (40, 3), (10, 10)])
@pytest.mark.parametrize("window", [7, 32, 200])
def test_every_kept_pixel_is_one_pixel_of_the_map(longest: int, step: int, window: int) -> None:
    mapped, reference, shares = scene()
    views = viewed(longest, window)
    assert views.step == step
    assert np.array_equal(views.map, mapped[::step, ::step])
    assert np.array_equal(views.reference, reference[::step, ::step])
    expected = np.round(np.moveaxis(shares[::step, ::step], -1, 0).astype(np.float64), 3)
    assert np.array_equal(views.read_activations().round(3), expected.astype(np.float32), equal_nan=True)


def test_many_values_are_kept_with_two_decimals(monkeypatch) -> None:
    monkeypatch.setattr("lulc.evaluation.report.views.FINE_VALUES", 1000)
    views = viewed(200)
    assert (views.digits, views.activations.dtype) == (2, np.uint8)
    expected = np.round(np.moveaxis(scene()[2], -1, 0), 2)
    assert np.allclose(views.read_activations(), expected, equal_nan=True, atol=1e-6)


def test_entropy_is_that_of_scipy_over_its_highest_value() -> None:
    shares = scene()[2][10:20]
    assert np.allclose(entropy(shares), stats.entropy(shares, axis=-1) / np.log(13), atol=1e-5)
    assert np.isnan(entropy(np.full((1, 3), np.nan, np.float32))).all()
    assert np.isnan(viewed(200).entropy()[:5, :7]).all()


def test_the_least_sure_place_is_where_activations_are_equal() -> None:
    mapped, reference, _ = scene()
    shares = np.zeros((*SHAPE, 13), np.float32)
    shares[..., 4] = 1
    shares[35:42, 49:56] = 0
    shares[35:42, 49:56, 8], shares[35:42, 49:56, 9] = 0.6, 0.4
    viewing = Viewing(GRID, 13, with_image=False, with_activations=True)
    viewing.add(GRID.extent, mapped, reference, None, shares)
    worst, second, *_ = least_sure(viewing.views())
    assert (worst.window.row, worst.window.col, worst.classes) == (35, 49, (9, 10))
    assert worst.entropy == pytest.approx(stats.entropy([0.6, 0.4]) / np.log(13), abs=1e-3)
    assert second.entropy == 0


def test_without_activations_nothing_is_said_about_uncertainty() -> None:
    viewing = Viewing(GRID, 13, with_image=False, with_activations=False)
    mapped, reference, _ = scene()
    viewing.add(GRID.extent, mapped, reference)
    views = viewing.views()
    assert (views.entropy(), least_sure(views), entropy_by_class(views, LEGEND)) == (None, [], [])
    data = embed(views, LEGEND, levels_of(LEGEND), [], "map.tif").data
    assert [layer["id"] for layer in data["layers"]] == ["map", "reference", "difference", "level1", "level2"]


def test_uncertainty_by_class_is_the_mean_over_its_pixels() -> None:
    views = viewed(200)
    unsure = views.entropy()
    for k, share, mean in entropy_by_class(views, LEGEND):
        where = (views.map == k) & np.isfinite(unsure)
        assert mean == pytest.approx(unsure[where].mean(), rel=1e-5)
        assert share == pytest.approx(where.sum() / np.isfinite(unsure).sum())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_packed_plane_unpacks_to_itself(dtype: type) -> None:
    plane = np.random.default_rng(3).integers(0, np.iinfo(dtype).max + 1, (9, 11)).astype(dtype)
    packed = pack(plane)
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    parts = raw.reshape(packed["bytes"], 9, 11).astype(np.uint16)
    assert np.array_equal(parts[0] if packed["bytes"] == 1 else parts[0] << 8 | parts[1], plane)


def test_shares_of_the_legend_are_those_of_the_map() -> None:
    views = viewed(200)
    data = embed(views, LEGEND, levels_of(LEGEND), least_sure(views), "map.tif").data
    with_data = views.map[views.map != 255]
    assert data["shares"] == pytest.approx([(with_data == k).mean() for k in range(14)])
    assert data["pixel"] == pytest.approx([10, 10], rel=1e-3)


def test_pixels_in_degrees_are_as_high_as_on_the_ground() -> None:
    grid = GridSpec(CRS.from_epsg(4326), Affine(1e-4, 0, 24, 0, -1e-4, 60), *SHAPE)
    viewing = Viewing(grid, 13, with_image=False, with_activations=False)
    down, across = embed(viewing.views(), LEGEND, (), [], "map.tif").data["pixel"]
    # Degrees of the ellipsoid at 60 degrees north: 55,802 m along the parallel, 111,412 m along the meridian.
    assert across / down == pytest.approx(55_802 / 111_412, rel=2e-3)
    assert down == pytest.approx(11.1412, rel=2e-3)


def test_a_hostile_name_cannot_leave_the_data_of_the_page() -> None:
    evil = '</script><script>alert(1)</script><!-- " & \\u2028'
    legend = Legend("evil", (LandCoverClass(1, evil, "#112233"), LandCoverClass(2, "b", "#445566")))
    viewing = Viewing(GRID, 2, with_image=False, with_activations=False)
    text = render_html(Page("x", (), (Section("Map"),), embed(viewing.views(), legend, (), [], evil)))
    block = re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&") & set(block)
    assert json.loads(block)["classes"][0]["name"] == evil
    assert text.count("<script") == 3 and "<script>alert" not in text
