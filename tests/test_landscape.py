"""Simulated scenes have the properties that they promise, and files as a data provider writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc.config import InputConfig
from lulc.core.schema import BANDS, INDICES, InputError
from lulc.demo.further import write_further
from lulc.demo.landscape import CLASSES, Scene, simulate, write_product, write_scene
from lulc.rasters.channels import load_channels
from lulc.rasters.stack import open_stack


@pytest.fixture(scope="module")
def scene() -> Scene:
    return simulate((256, 320), seed=5)


def test_equal_seeds_give_equal_scenes_and_other_seeds_others(scene: Scene) -> None:
    again, other = simulate((256, 320), seed=5), simulate((256, 320), seed=6)
    for name in ("summer", "spring", "indices", "labels", "truth"):
        np.testing.assert_array_equal(getattr(scene, name), getattr(again, name))
        assert not np.array_equal(getattr(scene, name), getattr(other, name))


def test_every_class_occurs(scene: Scene) -> None:
    counts = np.bincount(scene.truth.ravel(), minlength=CLASSES + 1)
    assert counts[0] == 0
    assert (counts[1:] > 100).all()
    assert len(counts) == CLASSES + 1


@pytest.mark.parametrize("shape", [(32, 32), (33, 65), (101, 47)])
def test_any_shape_from_32_pixels_on_is_simulated(shape: tuple[int, int]) -> None:
    scene = simulate(shape, seed=2)
    assert scene.summer.shape == (*shape, 9)
    assert scene.spring.shape == (*shape, 9)
    assert scene.indices.shape == (*shape, 5)
    assert scene.labels.shape == shape == scene.grid.shape


def test_the_share_of_wrong_labels_follows_the_argument(scene: Scene) -> None:
    assert np.array_equal(
        simulate((64, 64), seed=5, wrong=0).labels, simulate((64, 64), seed=5, wrong=0).truth
    )
    few = np.mean(scene.labels != scene.truth)
    many = np.mean(simulate((256, 320), seed=5, wrong=0.4).labels != scene.truth)
    assert 0.05 < few < 0.3
    assert many > few + 0.15


def test_clouds_are_zero_in_all_bands_at_once_and_lie_elsewhere_in_spring(scene: Scene) -> None:
    gaps = {name: getattr(scene, name) == 0 for name in ("summer", "spring")}
    for gap in gaps.values():
        np.testing.assert_array_equal(gap.any(axis=-1), gap.all(axis=-1))
        assert gap[..., 0].mean() == pytest.approx(0.02, abs=0.002)
    assert (gaps["summer"] & gaps["spring"]).mean() < 0.01


def test_coarse_bands_are_smoother_than_fine_ones() -> None:
    """Pairs of columns of one 20 m pixel differ by noise alone, neighbours across pixels by more."""
    summer = simulate((128, 128), seed=3, clouds=0).summer.astype(float)
    for name in BANDS:
        band = summer[..., BANDS.index(name)]
        within = np.abs(band[:, 1::2] - band[:, 0::2]).mean()
        across = np.abs(band[:, 2::2] - band[:, 1:-1:2]).mean()
        if name in ("B05", "B06", "B07", "B11", "B12"):
            assert within < 0.8 * across, name
        else:
            assert within == pytest.approx(across, rel=0.1), name


def test_spectra_are_those_of_the_classes(scene: Scene) -> None:
    def mean(image: np.ndarray, number: int, band: str) -> float:
        valid = (scene.truth == number) & (image[..., 0] > 0)
        return float(image[valid][:, BANDS.index(band)].mean())

    assert mean(scene.summer, 13, "B08") < 600 < mean(scene.summer, 7, "B08")
    assert mean(scene.summer, 6, "B08") > mean(scene.summer, 9, "B08") > mean(scene.summer, 8, "B08")
    assert mean(scene.spring, 6, "B08") < 0.6 * mean(scene.summer, 6, "B08"), "birches without leaves"
    assert mean(scene.spring, 8, "B08") > 0.7 * mean(scene.summer, 8, "B08"), "spruces keep theirs"


def test_forest_classes_are_confusable_pixel_by_pixel(scene: Scene) -> None:
    valid = (scene.summer[..., 0] > 0)[..., np.newaxis]
    forest = {c: scene.summer[(scene.truth == c) & valid[..., 0]].astype(float) for c in (7, 8, 9)}
    for a, b in ((7, 9), (8, 9)):
        gap = np.abs(forest[a].mean(axis=0) - forest[b].mean(axis=0))
        spread = forest[a].std(axis=0) + forest[b].std(axis=0)
        assert (gap < spread).all()


def test_given_labels_are_kept_and_decide_what_is_drawn() -> None:
    labels = np.full((96, 96), 13, dtype=np.uint8)
    labels[:, 48:] = 7
    labels[40:50, 40:50] = 0
    scene = simulate((96, 96), seed=1, labels=labels, clouds=0)
    np.testing.assert_array_equal(scene.labels, labels)
    assert scene.truth.min() > 0
    nir = scene.summer[..., BANDS.index("B08")]
    assert np.median(nir[:, :40]) < 300 < 1500 < np.median(nir[:, 56:])


@pytest.mark.parametrize(
    ("shape", "labels", "expected"),
    [
        ((16, 64), None, "at least 32 x 32"),
        ((64, 64), np.ones((64, 32), np.uint8), "the labels have 64 x 32"),
        ((64, 64), np.full((64, 64), 14, np.uint8), "expected classes 1..13"),
        ((64, 64), np.zeros((64, 64), np.uint8), "expected classes 1..13"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_the_reason(
    shape: tuple[int, int], labels: np.ndarray | None, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        simulate(shape, 1, labels)


def test_files_are_named_georeferenced_and_say_that_they_are_simulated(scene: Scene, tmp_path: Path) -> None:
    paths = write_scene(scene, tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in paths.values())
    expected = {"summer": BANDS, "spring": BANDS, "indices": INDICES, "labels": ("class",)}
    for name, path in paths.items():
        with rasterio.open(path) as source:
            assert source.descriptions == expected[name]
            assert source.crs.to_epsg() == 3067
            assert source.transform == scene.grid.transform
            assert "simulated" in source.tags()["SOURCE"]
            image = np.moveaxis(source.read(), 0, -1)
            stored = getattr(scene, name)
            np.testing.assert_array_equal(image, stored if stored.ndim == 3 else stored[..., np.newaxis])


def test_indices_carry_the_no_data_of_each_band_in_its_tags(scene: Scene, tmp_path: Path) -> None:
    with rasterio.open(write_scene(scene, tmp_path)["indices"]) as source:
        assert source.nodata is None
        nodata = [int(source.tags(i)["NODATA"]) for i in source.indexes]
        assert dict(zip(INDICES, nodata, strict=True)) == {
            "NDVI": 0, "NDTI": 0, "NDBI": 255, "NDMI": 0, "NDSI": 0
        }  # fmt: skip
        planes = source.read()
    missing = planes == np.array(nodata)[:, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(missing.any(axis=0), missing.all(axis=0))
    assert 0 < missing[0].mean() < 0.01
    assert planes[2][~missing[2]].max() <= 200
    assert (planes[2] == 0).any(), "a clipped built-up index is a value, not a gap"


def test_a_product_reads_as_the_summer_image_with_its_clouds_left_out(tmp_path: Path) -> None:
    scene = simulate((96, 128), 3)
    safe = write_product(scene, tmp_path)
    assert {path.suffix for path in safe.rglob("*") if path.is_file()} == {".jp2", ".xml"}
    with open_stack([str(safe)], [], InputConfig()) as stack:
        assert stack.grid == scene.grid
        image = stack.read(scene.grid.extent)
    clouds = (scene.summer == 0).any(axis=-1)
    coarse = clouds.reshape(48, 2, 64, 2).any(axis=(1, 3)).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(np.isnan(image).any(axis=-1), coarse)
    for k, name in enumerate(BANDS):
        read, drawn = image[~coarse][:, k], scene.summer[~coarse][:, k].astype(float)
        if name in ("B02", "B03", "B04", "B08"):
            np.testing.assert_allclose(read, drawn, atol=0.01)
        else:
            assert np.median(abs(read - drawn)) < 0.05 * drawn.mean(), name


def test_a_product_needs_even_sides(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="even sides"):
        write_product(simulate((33, 64), 3), tmp_path)


def test_further_rasters_fit_the_scene_and_say_that_they_are_simulated(tmp_path: Path) -> None:
    scene = simulate((64, 96), seed=3)
    write_scene(scene, tmp_path)
    paths = write_further(scene, tmp_path)
    text = "format_version: 1\nchannels: [B04, NDVI, VV, VH, elevation, slope]\n"
    (tmp_path / "own.yaml").write_text(text)
    dates = ("summer", "autumn")
    bands = [f"{date}={tmp_path / f'{date}.tif'}" for date in dates]
    config = InputConfig(layers=(str(paths["sentinel1"]), str(paths["elevation"])))
    with open_stack(bands, [], config, channels=load_channels(str(tmp_path / "own.yaml"), dates)) as stack:
        image = stack.read(stack.grid.extent)
        channels = stack.provenance["channels"]
    assert all(channels[name]["simulated"] for name in ("autumn/B04", "VV", "elevation", "slope(elevation)"))
    at = {name: image[..., i] for i, name in enumerate(stack.channels)}
    water = (scene.truth == 13) & ~np.isnan(image[..., 0])
    assert np.nanmedian(at["VV"][water]) < np.nanmedian(at["VV"][~water]) - 5
    assert np.nanmax(at["slope"]) < 60 and np.nanmin(at["elevation"]) >= 78
    before = {name: path.read_bytes() for name, path in paths.items()}
    assert before == {name: path.read_bytes() for name, path in write_further(scene, tmp_path).items()}
