"""Maps against references: figures against scikit-learn, streaming, regions, calibration, errors."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy import stats
from shapely.geometry import box
from sklearn import metrics

from lulc.config import EvaluateConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.windows import squares_of
from lulc.evaluation import evaluate as evaluate_module
from lulc.evaluation.evaluate import evaluate, measure
from lulc.evaluation.inputs import read_colors
from lulc.evaluation.measures.area_estimation import estimate
from lulc.evaluation.measures.metrics import Reliability, compare, count, score
from lulc.evaluation.measures.regions import read_regions
from lulc.evaluation.report import publish
from lulc.evaluation.report.publish import FILES
from lulc.labels.labels import near_borders
from lulc.labels.schemes import load_scheme
from lulc.rasters.sources import open_source

pytestmark = pytest.mark.integration

LEGEND = Legend(
    "four",
    tuple(
        LandCoverClass(k, f"class {k}", color, (k,), group)
        for k, color, group in ((1, "#ff0000", 1), (2, "#00ff00", 3), (3, "#0000ff", 3), (4, "#ffff00", 5))
    ),
)
TRANSFORM = Affine(10, 0, 500_000, 0, -10, 6_700_000)


def write_raster(path: Path, bands: np.ndarray, *, transform: Affine = TRANSFORM, **more: Any) -> str:
    """A small GeoTIFF of (band, y, x), with optional nodata, tags and scales."""
    tags, scales = more.pop("tags", {}), more.pop("scales", None)
    profile = {
        "driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
        "dtype": bands.dtype, "crs": CRS.from_epsg(3067), "transform": transform, **more,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(bands)
        file.update_tags(**tags)
        if scales:
            file.scales = scales
    return str(path)


def tags_of(legend: Legend) -> dict[str, str]:
    return {"LULC_LEGEND": json.dumps(legend.to_json()), "LULC_MODEL": "small.keras"}


@dataclass
class Scene:
    """A map with activations, its reference, and the arrays they hold."""

    folder: Path
    reference: np.ndarray
    mapped: np.ndarray
    activations: np.ndarray

    @property
    def map_path(self) -> str:
        return str(self.folder / "map.tif")

    @property
    def reference_path(self) -> str:
        return str(self.folder / "labels.tif")

    def config(self, **more: Any) -> EvaluateConfig:
        given = {"map": self.map_path, "reference": self.reference_path, "out": str(self.folder / "report")}
        return EvaluateConfig(**(given | more))

    @property
    def scored(self) -> np.ndarray:
        return (self.reference > 0) & (self.reference < 255) & (self.mapped != 255)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    rng = np.random.default_rng(1)
    coarse = rng.integers(1, 5, (10, 13)).repeat(9, axis=0).repeat(8, axis=1)[:83, :97]
    reference = np.where(rng.random(coarse.shape) < 0.05, rng.choice([0, 255], coarse.shape), coarse)
    logits = 2.0 * (coarse == np.arange(1, 5)[:, None, None]) + rng.normal(size=(4, *coarse.shape))
    activations = np.exp(logits) / np.exp(logits).sum(axis=0)
    mapped = activations.argmax(axis=0) + 1
    mapped[activations.max(axis=0) < 0.3] = 0
    mapped[:7, :11] = 255
    bands = np.concatenate([mapped[None], activations]).astype(np.float32)
    bands[:, mapped == 255] = -1
    write_raster(tmp_path / "map.tif", bands, nodata=-1, tags=tags_of(LEGEND))
    write_raster(tmp_path / "labels.tif", reference[None].astype(np.uint8))
    stored = np.moveaxis(bands[1:], 0, -1)
    return Scene(tmp_path, reference.astype(np.uint8), mapped.astype(np.uint8), stored)


def assert_equals_sklearn(truth: np.ndarray, predicted: np.ndarray, scores: Any, classes: int) -> None:
    present = np.union1d(np.unique(truth), np.unique(predicted))
    present = present[present > 0]
    with np.errstate(all="ignore"):
        each = metrics.precision_recall_fscore_support(
            truth, predicted, labels=range(1, classes + 1), zero_division=0
        )
    for k, c in enumerate(scores.classes):
        assert c.support == each[3][k]
        if k + 1 in present:
            assert (c.precision, c.recall, c.f1) == (each[0][k], each[1][k], each[2][k])
            iou = metrics.jaccard_score(truth, predicted, labels=[k + 1], average="macro", zero_division=0)
            assert c.iou == iou
        else:
            assert c.f1 is None
    assert scores.overall_accuracy == metrics.accuracy_score(truth, predicted)
    for name in ("macro", "weighted"):
        found = getattr(scores, name)
        expected = metrics.precision_recall_fscore_support(
            truth, predicted, labels=present, average=name, zero_division=0
        )
        assert (found.precision, found.recall, found.f1) == pytest.approx(expected[:3], rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 200), st.booleans())
def test_metrics_agree_with_scikit_learn_to_the_last_digit(
    seed: int, classes: int, pixels: int, unclassified: bool
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, classes + 1, pixels).astype(np.uint8)
    guess = rng.integers(0 if unclassified else 1, classes + 1, pixels)
    predicted = np.where(rng.random(pixels) < 0.5, truth, guess).astype(np.uint8)
    legend = Legend("any", tuple(LandCoverClass(k, str(k), "#000000") for k in range(1, classes + 1)))
    confusion = count(truth, predicted, classes)
    labels = list(range(classes + 1))
    assert np.array_equal(confusion, metrics.confusion_matrix(truth, predicted, labels=labels))
    scores = score(confusion, legend)
    assert_equals_sklearn(truth, predicted, scores, classes)
    if scores.kappa is not None:
        assert scores.kappa == pytest.approx(metrics.cohen_kappa_score(truth, predicted), rel=0, abs=1e-15)


def test_the_whole_run_agrees_with_scikit_learn_whatever_the_window(scene, monkeypatch) -> None:
    truth, predicted = scene.reference[scene.scored], scene.mapped[scene.scored]
    whole = evaluate(scene.config(out=str(scene.folder / "whole")))
    assert_equals_sklearn(truth, predicted, whole.scores, 4)
    monkeypatch.setattr(evaluate_module, "WINDOW", 17)
    pieces = evaluate(scene.config(out=str(scene.folder / "pieces")))
    a, b = whole.results.to_json(), pieces.results.to_json()
    assert a["calibration"].pop("nll") == pytest.approx(b["calibration"].pop("nll"), rel=1e-12)
    for key in ("ece", "classwise_ece", "brier"):
        assert a["calibration"].pop(key) == pytest.approx(b["calibration"].pop(key), rel=1e-9)
    a["calibration"].pop("bins"), b["calibration"].pop("bins")
    areas = [data["areas"].pop("mapped_hectares") for data in (a, b)]
    assert areas[0] == pytest.approx(areas[1], rel=1e-12)
    assert a == b
    assert (whole.folder / "map.png").read_bytes() == (pieces.folder / "map.png").read_bytes()


def test_a_perfect_map_scores_one(scene) -> None:
    reference = np.where(scene.reference == 0, 255, scene.reference)
    path = write_raster(scene.folder / "perfect.tif", reference[None], nodata=255, tags=tags_of(LEGEND))
    scores = measure(scene.config(map=path))[0].scores
    assert scores.overall_accuracy == scores.kappa == 1.0
    assert {scores.macro.f1, scores.weighted.f1, scores.macro.iou} == {1.0}


def test_ignored_pixels_change_nothing(scene) -> None:
    first = measure(scene.config())[0].scores
    bands = rasterio.open(scene.map_path).read()
    hidden = ~np.isin(scene.reference, (1, 2, 3, 4))
    bands[0][hidden & (bands[0] >= 0)] = 3
    bands[1:, hidden] = 0.25
    path = write_raster(scene.folder / "other.tif", bands, nodata=-1, tags=tags_of(LEGEND))
    again = measure(scene.config(map=path, out=str(scene.folder / "again")))[0]
    assert again.scores == first


def test_unclassified_pixels_are_misses_and_are_counted(scene) -> None:
    result = measure(scene.config())[0]
    zeros = int(((scene.mapped == 0) & scene.scored).sum())
    assert zeros > 0
    assert result.scores.unclassified == zeros
    assert result.without_map == int(
        ((scene.mapped == 255) & (scene.reference > 0) & (scene.reference < 255)).sum()
    )


def test_level_1_is_the_matrix_gathered_by_groups(scene) -> None:
    groups = np.array([0, 1, 3, 3, 5])
    truth, predicted = groups[scene.reference[scene.scored]], groups[scene.mapped[scene.scored]]
    expected = metrics.confusion_matrix(truth, predicted, labels=range(6))
    assert np.array_equal(measure(scene.config())[0].levels[0].matrix, expected)


def test_level_1_of_the_reference_follows_from_its_codes_where_they_tell_it(tmp_path) -> None:
    scheme = load_scheme("clc-fi-13")
    codes = np.array([[8, 38, 12, 19, 31, 48]], np.uint8)  # bare and grass, of several groups; water
    labels = write_raster(tmp_path / "codes.tif", codes[None])
    mapped = scheme.remap(codes.astype(np.int64))
    path = write_raster(tmp_path / "map.tif", mapped[None], tags=tags_of(scheme.legend))
    config = EvaluateConfig(map=path, reference=labels, out=str(tmp_path / "r"), scheme="clc-fi-13")
    found = measure(config)[0]
    assert found.scores.overall_accuracy == 1.0
    assert found.levels[0].from_codes
    expected = metrics.confusion_matrix([1, 3, 1, 2, 3, 5], [1, 1, 3, 3, 3, 5], labels=range(6))
    assert np.array_equal(found.levels[0].matrix, expected)


def test_border_and_interior_add_up_and_equal_a_plain_search(scene) -> None:
    result = measure(scene.config(border=2))[0]
    assert np.array_equal(result.near + result.far, result.confusion)
    labels = np.where(scene.reference == 0, 255, scene.reference)
    expected = np.zeros(labels.shape, bool)
    for y, x in np.argwhere(labels != 255):
        around = labels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        expected[y, x] = len(set(around[around != 255].tolist())) > 1
    assert np.array_equal(near_borders(labels, 2), expected)
    band = scene.scored & expected
    assert np.array_equal(result.near, count(labels[band], scene.mapped[band], 4))


def test_stacks_of_a_manifest_and_polygons_are_scored_apart(scene) -> None:
    left, top = TRANSFORM.c, TRANSFORM.f
    frame = geopandas.GeoDataFrame(
        {"name": ["north", "south", "elsewhere"]},
        geometry=[
            box(left, top - 300, left + 970, top),
            box(left + 100, top - 830, left + 970, top - 300),
            box(left + 5000, top, left + 6000, top + 10),
        ],
        crs="EPSG:3067",
    )
    frame.to_file(scene.folder / "regions.gpkg")
    results = measure(scene.config(regions=str(scene.folder / "regions.gpkg")))[0]
    places = {"north": np.s_[:30], "south": np.s_[30:, 10:]}
    assert [name for name, _ in results.regions] == list(places)
    for name, matrix in results.regions:
        place = places[name]
        keep = scene.scored[place]
        expected = count(scene.reference[place][keep], scene.mapped[place][keep], 4)
        assert np.array_equal(matrix, expected)


def test_regions_that_lie_elsewhere_are_refused(scene) -> None:
    frame = geopandas.GeoDataFrame(geometry=[box(0, 0, 10, 10)], crs="EPSG:3067")
    frame.to_file(scene.folder / "far.gpkg")
    with rasterio.open(scene.map_path) as file:
        grid = GridSpec(file.crs, file.transform, file.height, file.width)
    with pytest.raises(InputError, match="none of them lies on the map"):
        read_regions(scene.folder / "far.gpkg", grid)


def test_calibration_equals_a_plain_computation(scene) -> None:
    found = measure(scene.config())[0].calibration
    p = scene.activations[scene.scored].astype(float)
    truth = scene.reference[scene.scored].astype(int) - 1
    assert found.nll == pytest.approx(metrics.log_loss(truth, p, labels=range(4)), rel=1e-6)
    one_hot = np.eye(4)[truth]
    assert found.brier == pytest.approx(((p - one_hot) ** 2).sum(axis=1).mean(), rel=1e-9)

    def error(confidence: np.ndarray, right: np.ndarray) -> float:
        total = 0.0
        for k in range(15):
            inside = (confidence >= k / 15) & ((confidence < (k + 1) / 15) | (k == 14))
            if inside.any():
                total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        return total

    assert found.ece == pytest.approx(error(p.max(axis=1), p.argmax(axis=1) == truth), rel=1e-9)
    classwise = np.mean([error(p[:, k], truth == k) for k in range(4)])
    assert found.classwise_ece == pytest.approx(classwise, rel=1e-9)
    assert sum(b.pixels for b in found.bins) == found.pixels == int(scene.scored.sum())


def test_certain_and_right_is_perfectly_calibrated() -> None:
    reliability = Reliability(3)
    truth = np.array([1, 2, 3, 3], np.uint8)
    reliability.add(truth, np.eye(3, dtype=np.float32)[truth - 1])
    found = reliability.result()
    assert (found.ece, found.classwise_ece, found.nll, found.brier) == (0, 0, 0, 0)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint16", 65535)])
def test_scaled_integer_maps_give_the_same_scores(scene, dtype: str, nodata: int) -> None:
    with rasterio.open(scene.map_path) as file:
        bands = file.read()
    valid = bands[0] >= 0
    coded = np.where(valid, np.concatenate([bands[:1], np.round(bands[1:] * (nodata - 1))]), nodata)
    scales = (1.0, *[1 / (nodata - 1)] * 4)
    path = write_raster(
        scene.folder / "coded.tif", coded.astype(dtype), nodata=nodata, tags=tags_of(LEGEND), scales=scales
    )
    a = measure(scene.config())[0]
    b = measure(scene.config(map=path, out=str(scene.folder / "coded")))[0]
    assert np.array_equal(a.confusion, b.confusion)
    assert b.calibration.brier == pytest.approx(a.calibration.brier, abs=1.0 / nodata)


def test_a_second_map_is_compared_by_change_matrix_and_mcnemar(scene) -> None:
    rng = np.random.default_rng(3)
    other = np.where(
        rng.random(scene.mapped.shape) < 0.2, rng.integers(1, 5, scene.mapped.shape), scene.mapped
    )
    other = other.astype(np.uint8)
    path = write_raster(scene.folder / "other.tif", other[None], nodata=255, tags=tags_of(LEGEND))
    change = measure(scene.config(compare=path))[0].change
    both = (scene.mapped != 255) & (other != 255)
    assert np.array_equal(
        change.matrix, metrics.confusion_matrix(scene.mapped[both], other[both], labels=range(5))
    )
    keep = both & scene.scored
    first, second = (m[keep] == scene.reference[keep] for m in (scene.mapped, other))
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    assert (change.test.only_first, change.test.only_second) == (b, c)
    assert change.test.statistic == pytest.approx((abs(b - c) - 1) ** 2 / (b + c))


def test_mcnemar_is_exact_for_few_pixels_and_sure_of_nothing_without_any() -> None:
    few = compare(9, 2, 50, 5)
    assert few.exact
    assert few.p_value == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))
    assert compare(0, 0, 9, 9).p_value == 1.0
    many = compare(60, 40, 0, 0)
    assert many.p_value == pytest.approx(math.erfc(math.sqrt(19**2 / 100 / 2)))


def test_mask_bounds_and_polygons_leave_pixels_out(scene) -> None:
    cloud = np.zeros((1, *scene.mapped.shape), np.uint8)
    cloud[0, 40:50] = 3
    mask = write_raster(scene.folder / "cloud.tif", cloud)
    left, top = TRANSFORM.c, TRANSFORM.f
    bounds = (left + 50, top - 700, left + 900, top)
    geopandas.GeoDataFrame(geometry=[box(left, top - 600, left + 970, top)], crs="EPSG:3067").to_file(
        scene.folder / "aoi.gpkg"
    )
    found = measure(
        scene.config(mask=mask, mask_values=(3,), bounds=bounds, aoi=str(scene.folder / "aoi.gpkg"))
    )[0]
    keep = scene.scored.copy()
    keep[40:50] = False
    keep[60:] = False
    keep[:, :5] = keep[:, 90:] = False
    assert np.array_equal(found.confusion, count(scene.reference[keep], scene.mapped[keep], 4))


def test_a_mask_of_many_values_is_refused_without_saying_which_to_leave_out(scene) -> None:
    with pytest.raises(InputError, match="mask-values"):
        measure(scene.config(mask=scene.reference_path))


def test_a_reference_that_covers_a_part_is_scored_there(scene) -> None:
    crop = scene.reference[20:60, 30:80]
    path = write_raster(
        scene.folder / "part.tif", crop[None], transform=TRANSFORM @ Affine.translation(30, 20)
    )
    found = measure(scene.config(reference=path))[0]
    keep = scene.scored[20:60, 30:80]
    assert np.array_equal(found.confusion, count(crop[keep], scene.mapped[20:60, 30:80][keep], 4))


def test_a_shifted_reference_is_refused_with_both_grids_and_resampled_on_request(scene) -> None:
    path = write_raster(
        scene.folder / "shifted.tif", scene.reference[None], transform=TRANSFORM @ Affine.translation(0.3, 0)
    )
    with pytest.raises(InputError, match=r"(?s)origin \(500003.*origin \(500000.*--resample"):
        measure(scene.config(reference=path))
    assert measure(scene.config(reference=path, resample=True))[0].scores.pixels > 7000


def test_a_vector_reference_is_burnt_onto_the_map(scene) -> None:
    left, top = TRANSFORM.c, TRANSFORM.f
    geopandas.GeoDataFrame(
        {"code": [2]}, geometry=[box(left + 200, top - 500, left + 700, top - 100)], crs="EPSG:3067"
    ).to_file(scene.folder / "labels.gpkg")
    found = measure(scene.config(reference=str(scene.folder / "labels.gpkg")))[0]
    assert found.confusion[2].sum() == found.confusion.sum() == 50 * 40
    assert found.confusion[2, 2] == (scene.mapped[10:50, 20:70] == 2).sum()


def test_the_field_of_a_vector_reference_is_named_and_its_losses_are_counted(scene, capsys) -> None:
    from lulc.cli.evaluate_classifications import main

    left, top = TRANSFORM.c, TRANSFORM.f
    boxes = [box(left + 200, top - 500, left + 700, top - 100), box(left - 900, top - 50, left - 800, top)]
    frame = geopandas.GeoDataFrame({"klass": [2, 3]}, geometry=boxes, crs="EPSG:3067")
    frame.to_file(scene.folder / "labels.gpkg")
    report = str(scene.folder / "report")
    assert main([scene.map_path, str(scene.folder / "labels.gpkg"), "--out", report, "-q"]) == 0
    printed = capsys.readouterr().out
    assert "reference: 'labels.gpkg', field 'klass' (int64), classes of 'four'" in printed
    assert "reference: of 2 features 1 lie outside the grid" in printed
    assert "field 'klass'" in (scene.folder / "report" / "report.md").read_text()


@pytest.mark.parametrize("crs", [3857, 4326])
def test_areas_are_hectares_on_the_ground_in_any_projection(tmp_path: Path, crs: int) -> None:
    from pyproj import Geod, Transformer

    pixel = 10.0 if crs == 3857 else 1e-4
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(26, 61.5)
    place = Affine(pixel, 0, x, 0, -pixel, y)
    path = write_raster(
        tmp_path / "map.tif", np.ones((1, 80, 60), np.uint8), transform=place, crs=CRS.from_epsg(crs),
        tags=tags_of(LEGEND),
    )  # fmt: skip
    areas = measure(EvaluateConfig(map=path, out=str(tmp_path / "r")))[0].areas
    corners = [place @ corner for corner in ((0, 0), (60, 0), (60, 80), (0, 80))]
    lons, lats = Transformer.from_crs(crs, 4326, always_xy=True).transform(*zip(*corners, strict=True))
    true = abs(Geod(ellps="WGS84").polygon_area_perimeter(lons, lats)[0]) / 10_000
    assert areas.unit == "ha" and areas.hectares[1] == pytest.approx(true, rel=1e-4)


def test_a_map_without_a_legend_needs_a_scheme(scene) -> None:
    path = write_raster(scene.folder / "bare.tif", scene.mapped[None], nodata=255)
    with pytest.raises(InputError, match=r"no tag LULC_LEGEND(?s:.*)--scheme"):
        measure(scene.config(map=path))
    table = scene.folder / "four.csv"
    table.write_text(
        "code,class,name,color\n" + "".join(f"{k},{k},class {k},#00000{k}\n" for k in range(1, 5))
    )
    with open(table, "a") as file:
        file.write("0,ignore,,\n255,ignore,,\n")
    scores = measure(scene.config(map=path, scheme=str(table)))[0].scores
    assert scores.pixels == int(scene.scored.sum())


def test_codes_of_a_users_table_are_those_of_the_reference(scene) -> None:
    table = scene.folder / "swapped.csv"
    rows = (f"{5 - k},{k},class {k},#00000{k}\n" for k in range(1, 5))
    table.write_text("code,class,name,color\n0,ignore,,\n255,ignore,,\n" + "".join(rows))
    legend = load_scheme(str(table)).legend
    path = write_raster(scene.folder / "m.tif", scene.mapped[None], nodata=255, tags=tags_of(legend))
    codes = np.where(np.isin(scene.reference, (0, 255)), scene.reference, 5 - scene.reference)
    reference = write_raster(scene.folder / "codes.tif", codes[None].astype(np.uint8))
    expected = measure(scene.config())[0].confusion
    for scheme in (None, str(table)):
        found = measure(scene.config(map=path, reference=reference, scheme=scheme))[0]
        assert np.array_equal(found.confusion, expected)


def test_a_table_named_as_a_built_in_scheme_keeps_its_own_codes(scene) -> None:
    known = load_scheme("clc-level1").legend
    classes = [dataclasses.replace(c, sources=(6 - c.number,)) for c in known.classes]
    legend = Legend(known.name, tuple(classes))
    path = write_raster(scene.folder / "m.tif", scene.mapped[None], nodata=255, tags=tags_of(legend))
    codes = np.where(np.isin(scene.reference, (0, 255)), scene.reference, 6 - scene.reference)
    reference = write_raster(scene.folder / "codes.tif", codes[None].astype(np.uint8))
    found = measure(scene.config(map=path, reference=reference))[0].confusion
    assert np.array_equal(found[:5, :5], measure(scene.config())[0].confusion)


def test_a_map_of_finnish_corine_is_read_by_its_codes(tmp_path) -> None:
    path = write_raster(
        tmp_path / "map.tif", np.array([[[13, 5, 13]]], np.uint8), nodata=255,
        tags=tags_of(load_scheme("clc-fi-13").legend),
    )  # fmt: skip
    water = load_scheme("clc-fi-13").legend.classes[12].sources[0]
    reference = write_raster(tmp_path / "labels.tif", np.array([[[water, water, 25]]], np.uint8))
    config = EvaluateConfig(map=path, reference=reference, out=str(tmp_path / "r"))
    found = measure(config)[0].confusion
    assert (found[13, 13], found[13, 5], found.sum()) == (1, 1, 2)


def test_a_legend_without_codes_needs_a_scheme(scene) -> None:
    bare = Legend("four", tuple(dataclasses.replace(c, sources=()) for c in LEGEND.classes))
    path = write_raster(scene.folder / "m.tif", scene.mapped[None], nodata=255, tags=tags_of(bare))
    with pytest.raises(InputError, match=r"'four' of the map has no source codes(?s:.*)--scheme"):
        measure(scene.config(map=path))


def test_one_class_against_the_rest_is_scored_as_two_classes(tmp_path) -> None:
    scheme = load_scheme("kaakonkulma-13")
    water = Legend(scheme.name, (LandCoverClass(1, "Water bodies", "#80f2ff", level1=5),))
    labels = np.array([[13, 13, 5, 7, 13, 0]], np.uint8)
    p = np.array([[0.9, 0.4, 0.2, 0.7, 0.8, 0.1]], np.float32)
    bands = np.stack([p > 0.5, p]).astype(np.float32)
    path = write_raster(tmp_path / "map.tif", bands, nodata=-1, tags=tags_of(water))
    reference = write_raster(tmp_path / "labels.tif", labels[None])
    config = EvaluateConfig(map=path, reference=reference, out=str(tmp_path / "r"))
    found = measure(config)[0]
    assert found.confusion[1:, 1:].tolist() == [[2, 1], [1, 1]]
    assert found.calibration.nll == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.3, 0.8]).mean(), rel=1e-6)


def test_two_maps_of_different_classes_are_not_compared(scene) -> None:
    renamed = Legend("x", tuple(LandCoverClass(k, f"other {k}", "#000000") for k in range(1, 5)))
    path = write_raster(scene.folder / "other.tif", scene.mapped[None], nodata=255, tags=tags_of(renamed))
    with pytest.raises(InputError, match="expected the same"):
        measure(scene.config(compare=path))


def test_a_damaged_legend_is_refused(scene) -> None:
    path = write_raster(scene.folder / "bad.tif", scene.mapped[None], tags={"LULC_LEGEND": '{"name": 3}'})
    with pytest.raises(InputError, match="legend in the tags"):
        measure(scene.config(map=path))


def test_a_value_that_is_no_class_is_refused(scene) -> None:
    path = write_raster(scene.folder / "odd.tif", scene.mapped[None] + 3, nodata=2, tags=tags_of(LEGEND))
    with pytest.raises(InputError, match=r"expected class numbers 0\.\.4"):
        measure(scene.config(map=path))


def test_nothing_to_score_is_an_error_and_leaves_no_report(scene) -> None:
    empty = write_raster(scene.folder / "empty.tif", np.zeros_like(scene.reference)[None])
    with pytest.raises(InputError, match="no pixel has both"):
        evaluate(scene.config(reference=empty))
    assert not (scene.folder / "report").exists()


def test_a_report_is_replaced_on_request_only_and_other_files_stay(scene) -> None:
    report = scene.folder / "report"
    first = evaluate(scene.config(border=0))
    (report / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        evaluate(scene.config())
    plain = write_raster(scene.folder / "plain.tif", scene.mapped[None], nodata=255, tags=tags_of(LEGEND))
    second = evaluate(scene.config(map=plain, overwrite=True))
    assert (report / "notes.txt").read_text() == "mine"
    assert report / "reliability.png" in first.files
    assert not (report / "reliability.png").exists()
    assert {p.name for p in report.iterdir()} == {p.name for p in second.files} | {"notes.txt"}
    assert {p.name for p in first.files} <= set(FILES)


def test_a_report_that_was_interrupted_is_made_by_the_same_command(scene, monkeypatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    report = scene.folder / "report"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(publish, "write_html", interrupted)
        evaluate(scene.config())
    assert (report / "map.png").exists() and not (report / "report.json").exists()
    again = evaluate(scene.config())
    assert {p.name for p in report.iterdir()} == {p.name for p in again.files}


@pytest.mark.parametrize("after", ["design", "list_label_errors"])
def test_a_report_lacks_its_last_file_until_sample_and_label_errors_are_there(
    scene, monkeypatch, after
) -> None:
    asked = scene.config(design_sample=20, label_errors=0.5)
    original = getattr(evaluate_module, after)

    def interrupted(*arguments: Any) -> None:
        original(*arguments)
        raise KeyboardInterrupt

    report = scene.folder / "report"
    for overwrite in (False, True):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(evaluate_module, after, interrupted)
            evaluate(dataclasses.replace(asked, overwrite=overwrite))
        assert (report / "sample.gpkg").exists() and not (report / "report.json").exists()
        again = evaluate(dataclasses.replace(asked, overwrite=overwrite))
        assert {p.name for p in report.iterdir()} == {p.name for p in again.files}


@pytest.mark.parametrize("name", ["history.png", "classes.csv"])
def test_files_of_others_with_the_names_of_a_report_are_not_replaced(scene, name: str) -> None:
    report = scene.folder / "report"
    report.mkdir()
    (report / name).write_text("code,class,name,color\n")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds '\w+\.\w+', which this toolkit did not write"):
            evaluate(scene.config(overwrite=overwrite))
        assert (report / name).read_text() == "code,class,name,color\n"


def test_the_first_and_the_last_file_of_a_report_are_those(scene, monkeypatch) -> None:
    moved: list[str] = []
    for name in ("write_rows", "write_document"):
        original = getattr(publish, name)
        monkeypatch.setattr(
            publish, name, lambda path, *a, o=original: (moved.append(path.name), o(path, *a))[1]
        )
    evaluate(scene.config())
    assert (moved[0], moved[-1]) == (publish.FIRST, publish.LAST)


def test_the_json_report_holds_the_figures_and_no_nan(scene) -> None:
    result = evaluate(scene.config())
    data = json.loads((result.folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert data["format_version"] == 2
    assert data["total"]["confusion"] == result.results.confusion.tolist()
    assert data["total"]["macro"]["f1"] == result.scores.macro.f1
    assert data["made"] == {"model": "small.keras"}


def test_a_map_of_the_real_labels_against_themselves_is_perfect(shared, tmp_path) -> None:
    with rasterio.open(shared / "data" / "kaakonkulma-sim" / "labels.tif") as file:
        labels, transform = file.read(1)[900:1300, 900:1300], file.transform @ Affine.translation(900, 900)
    legend = load_scheme("kaakonkulma-13").legend
    path = write_raster(
        tmp_path / "map.tif",
        labels[None].astype(np.uint8),
        transform=transform,
        nodata=0,
        tags=tags_of(legend),
    )
    reference = str(shared / "data" / "kaakonkulma-sim" / "labels.tif")
    scores = evaluate(EvaluateConfig(map=path, reference=reference, out=str(tmp_path / "r"))).scores
    assert scores.pixels == int((labels > 0).sum())
    assert scores.macro.f1 == scores.overall_accuracy == 1.0


def interpret(path: Path, scene: Scene) -> np.ndarray:
    """Fill in a drawn sample with what the reference says; the confusion matrix of the points."""
    points = geopandas.read_file(path, layer="sample")
    assert set(points.columns) == {"id", "reference", "geometry"}, "the file is given out blind"
    cols, rows = ~TRANSFORM @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    place = rows.astype(int), cols.astype(int)
    truth, stratum = scene.reference[place], scene.mapped[place]
    points["reference"] = np.where((truth > 0) & (truth < 255), truth, stratum)
    points.to_file(path, layer="sample", driver="GPKG")
    matrix = np.zeros((4, 4), np.int64)
    np.add.at(matrix, (stratum - 1, points["reference"] - 1), 1)
    return matrix


def test_a_sample_is_drawn_interpreted_and_read_back_as_areas(scene: Scene) -> None:
    first = evaluate(scene.config(design_sample=400))
    sample = scene.folder / "report" / "sample.gpkg"
    assert sample in first.files
    matrix = interpret(sample, scene)
    assert matrix.sum() == 400
    result = evaluate(scene.config(sample=str(sample), overwrite=True))
    assert sample.exists()
    areas = result.results.areas
    assert np.array_equal(areas.sample.matrix, matrix)
    mapped = np.array([(scene.mapped == k).sum() for k in (1, 2, 3, 4)])
    assert areas.mapped.tolist() == [(scene.mapped == 0).sum(), *mapped]
    # On the central meridian the scale is 0.9996: a nominal 0.01 ha is a little more on the ground.
    assert areas.unit == "ha"
    np.testing.assert_allclose(areas.hectares[1:], mapped * 0.01 / 0.9996**2, rtol=1e-5)
    expected = estimate(matrix, areas.hectares[1:])
    assert areas.estimates == expected
    stored = json.loads((scene.folder / "report" / "report.json").read_text())["areas"]["estimates"]
    assert stored["areas"][0]["value"] == expected.areas[0].value
    page = (scene.folder / "report" / "report.md").read_text()
    assert f"{expected.areas[0].value:,.1f} ± {expected.areas[0].half_width:,.1f}" in page
    assert (scene.folder / "report" / "areas.csv").exists()


def test_a_sample_sized_by_its_standard_error_reaches_it(scene: Scene) -> None:
    evaluate(scene.config(sample_error=0.02))
    sample = scene.folder / "report" / "sample.gpkg"
    interpret(sample, scene)
    found = measure(scene.config(sample=str(sample)))[0].areas.estimates
    assert found.overall.standard_error <= 0.023


@pytest.mark.parametrize("error", [0.0, -1.0, 0.7])
def test_a_standard_error_out_of_range_is_refused(scene: Scene, error: float) -> None:
    with pytest.raises(InputError, match="--sample-error"):
        evaluate(scene.config(sample_error=error))


def test_a_sample_drawn_within_bounds_is_about_what_lies_there(scene: Scene) -> None:
    bounds = (500_000.0, 6_700_000.0 - 400, 500_400.0, 6_700_000.0)
    evaluate(scene.config(design_sample=60, bounds=bounds))
    points = geopandas.read_file(scene.folder / "report" / "sample.gpkg")
    assert points.geometry.x.max() < 500_400 and points.geometry.y.min() > 6_699_600
    assert measure(scene.config(bounds=bounds))[0].areas.mapped.sum() == (scene.mapped[:40, :40] != 255).sum()


def test_activations_summed_by_level_are_scored_as_a_loop_would(scene: Scene) -> None:
    (level1,) = measure(scene.config())[0].levels
    groups = np.array([1, 3, 3, 5])
    expected = np.zeros((6, 6), np.int64)
    for row, col in np.argwhere(scene.scored):
        sums = [scene.activations[row, col][groups == g].sum() for g in (1, 2, 3, 4, 5)]
        found = int(np.argmax(sums)) + 1 if scene.mapped[row, col] else 0
        expected[groups[scene.reference[row, col] - 1], found] += 1
    assert np.array_equal(level1.summed, expected)


def test_training_curves_come_from_the_run_folder(scene: Scene) -> None:
    run = scene.folder / "run"
    with pytest.raises(InputError, match="expected the run folder"):
        evaluate(scene.config(run=str(run)))
    run.mkdir()
    (run / "history.csv").write_text("epoch,loss,val_loss\n1,2.0,2.5\n2,1.5,1.75\n")
    evaluate(scene.config(run=str(run)))
    assert (scene.folder / "report" / "history.png").exists()
    assert "| lowest validation loss | 1.7500 | 2 |" in (scene.folder / "report" / "report.md").read_text()


def test_a_report_says_where_the_map_is_least_sure_and_how_it_was_made(scene: Scene) -> None:
    evaluate(scene.config())
    text = (scene.folder / "report" / "report.md").read_text()
    assert "## Least certain places" in text
    assert "| map's model | small.keras |" in text


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_colors_of_an_image_lie_where_its_pixels_do(tmp_path: Path, step: int) -> None:
    # Equal in blocks of 8 pixels, so that it matters where a block lies, not which pixel of it is taken.
    coarse = np.random.default_rng(1).integers(1, 1000, (3, 9, 11)).repeat(8, axis=1).repeat(8, axis=2)
    shifted = TRANSFORM @ Affine.translation(-5, 7)
    path = write_raster(tmp_path / "image.tif", coarse.astype(np.uint16), transform=shifted)
    grid = GridSpec(CRS.from_epsg(3067), TRANSFORM, 70, 90)
    full = np.full((70, 90, 3), np.nan)
    full[7:70, :83] = np.moveaxis(coarse, 0, -1)[:63, 5:88]
    whole = np.full((70 // step + 1, 90 // step + 1, 3), np.inf)[: -(-70 // step), : -(-90 // step)]
    with open_source(path) as image:
        for window in squares_of(grid.extent, 32):
            colors = read_colors(image, grid, window, step)
            row, col = -(-window.row // step), -(-window.col // step)
            whole[row : row + colors.shape[0], col : col + colors.shape[1]] = colors
    expected = full[::step, ::step]
    assert np.array_equal(np.isnan(whole), np.isnan(expected)) or step > 1
    moves = [(i, j) for i in range(-1, step) for j in range(-1, step)] if step > 1 else [(0, 0)]
    moved = (np.roll(full, (-i, -j), (0, 1))[::step, ::step] for i, j in moves)
    near = np.min([np.nan_to_num(np.abs(m - whole)) for m in moved], axis=0)
    assert near.max() == 0


def test_areas_from_interpreted_points_need_no_reference(scene: Scene) -> None:
    """The points alone give what they give beside a reference, and the page says nothing of agreement."""
    drawn = evaluate(scene.config(reference=None, design_sample=400))
    sample = scene.folder / "report" / "sample.gpkg"
    assert sample in drawn.files
    matrix = interpret(sample, scene)
    beside = measure(scene.config(sample=str(sample)))[0]
    result = evaluate(scene.config(reference=None, sample=str(sample), overwrite=True))
    areas = result.results.areas
    assert np.array_equal(areas.sample.matrix, matrix)
    assert (areas.mapped.tolist(), areas.estimates) == (beside.areas.mapped.tolist(), beside.areas.estimates)
    folder = scene.folder / "report"
    stored = json.loads((folder / "report.json").read_text())
    assert stored["areas"] == json.loads(json.dumps(beside.areas.to_json()))
    assert {stored[k] for k in ("reference", "total", "level1", "border", "without_map")} == {None}
    assert not {"confusion.csv", "confusion.png", "reliability.png"} & {p.name for p in folder.iterdir()}
    page = (folder / "report.md").read_text()
    assert page.startswith("# map.tif against the points of sample.gpkg")
    assert f"{areas.estimates.overall.value:.3f} ± {areas.estimates.overall.half_width:.3f}" in page
    assert not any(word in page for word in ("kappa", "Confusion", "Reference", "Calibration"))
    row = next(line for line in page.splitlines() if line.startswith("| 2 class 2 |") and "±" not in line)
    assert row == "| 2 class 2 | " + " | ".join(str(n) for n in matrix[1]) + " |"
    classes = (folder / "classes.csv").read_text().splitlines()[1:]
    assert classes == [f"{k},class {k},,,,,,{(scene.mapped == k).sum()}" for k in (1, 2, 3, 4)]


def test_a_report_without_a_reference_describes_the_map_and_scores_nothing(scene: Scene) -> None:
    result = evaluate(scene.config(reference=None))
    page = (scene.folder / "report" / "report.md").read_text()
    assert page.startswith("# map.tif\n")
    assert "This report only describes the map" in page and "--design-sample" in page
    assert not any(word in page for word in ("kappa", "Confusion", "overall accuracy", "Calibration"))
    assert "## Least certain places" in page and "| 2 class 2 |" in page
    stored = json.loads((scene.folder / "report" / "report.json").read_text())
    assert stored["total"] is None and stored["areas"]["unit"] == "ha"
    assert scene.folder / "report" / "report.html" in result.files


def test_title_author_date_and_licence_stand_on_the_page(scene: Scene) -> None:
    given = {
        "title": "Land cover 2024",
        "author": "Ministry <of> Maps",
        "date": "1 May",
        "licence": "CC BY 4.0",
    }
    evaluate(scene.config(**given))
    folder = scene.folder / "report"
    page, html = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert page.startswith(
        "# Land cover 2024\n\nAuthor: Ministry &lt;of> Maps  \nDate: 1 May  \nLicence: CC BY 4.0"
    )
    assert "<h1>Land cover 2024</h1>" in html and "Ministry &lt;of&gt; Maps" in html
    stored = json.loads((folder / "report.json").read_text())
    assert {name: stored[name] for name in given} == given


def test_one_word_stands_for_one_metric(scene: Scene) -> None:
    """Of one class for each pixel, micro-F1 is overall accuracy once more."""
    evaluate(scene.config())
    for name in ("report.md", "report.html", "report.json"):
        assert "micro-f1" not in (scene.folder / "report" / name).read_text().lower()


def prepared(scene: Scene, windows: dict[str, tuple[int, int, int, int]]) -> Path:
    """A folder of stacks at places of the scene's grid, as a manifest tells them."""
    from lulc.core.schema import CHANNELS
    from lulc.core.statistics import Statistics
    from lulc.core.windows import Window
    from lulc.datasets.manifest import Manifest, StackFile

    folder = scene.folder / "stacks"
    folder.mkdir(exist_ok=True)
    whole = GridSpec(CRS.from_epsg(3067), TRANSFORM, *scene.mapped.shape)
    statistics = Statistics((0.0,) * len(CHANNELS), (1.0,) * len(CHANNELS), 1)
    stacks = []
    for name, place in windows.items():
        window, split = Window(*place), name.split("_")[0]
        paths = [folder / f"{split}_{kind}_{name[-1]}.npy" for kind in ("image", "masks")]
        np.save(paths[0], np.zeros((*window.shape, len(CHANNELS)), np.float32))
        np.save(paths[1], np.ones(window.shape, np.uint8))
        stacks.append(
            StackFile(
                name, split, *paths, window.shape, (1, 1, 1, 1), len(stacks), whole.crop(window), window,
                statistics, ("0" * 64, "0" * 64),
            )
        )  # fmt: skip
    channels = tuple({"name": c, "unit": "", "coding": "read"} for c in CHANNELS)
    Manifest(folder, channels, "four", LEGEND, tuple(stacks), statistics).write()
    return folder


def test_with_a_manifest_every_headline_counts_held_out_land_alone(scene: Scene) -> None:
    """Two training stacks, one of them beside a validation stack; the rest of the map was never used."""
    folder = prepared(
        scene, {"train_0": (0, 0, 40, 50), "train_1": (40, 0, 43, 20), "val_0": (40, 50, 30, 40)}
    )
    used = np.zeros(scene.mapped.shape, bool)
    used[:40, :50] = used[40:, :20] = True
    result = evaluate(scene.config(regions=str(folder / "manifest.json"), compare=scene.map_path))
    held, seen = scene.scored & ~used, scene.scored & used
    found = result.results
    assert np.array_equal(found.confusion, count(scene.reference[held], scene.mapped[held], 4))
    assert np.array_equal(found.seen, count(scene.reference[seen], scene.mapped[seen], 4))
    assert np.array_equal(found.near + found.far, found.confusion)
    assert (
        found.levels[0].matrix.sum() == found.levels[0].summed.sum() == found.calibration.pixels == held.sum()
    )
    test = found.change.test
    assert test.both + test.neither == held.sum()
    page = (scene.folder / "report" / "report.md").read_text()
    head = page.split("## ")[0]
    accuracy = (scene.mapped[held] == scene.reference[held]).mean()
    assert f"overall accuracy on held-out land: **{accuracy:.3f}**" in head
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles.index("## Scores on held-out land") < titles.index("## Training land")
    assert "train_0 (training)" in page and "val_0 (validation)" in page
    stored = json.loads((scene.folder / "report" / "report.json").read_text())
    assert stored["held_out"] is True and stored["total"]["pixels"] == int(held.sum())
    assert stored["seen_in_training"]["pixels"] == int(seen.sum())


def test_the_console_shows_held_out_land_first(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    from lulc.cli.evaluate_classifications import main

    folder = prepared(scene, {"train_0": (0, 0, 40, 97), "val_0": (40, 0, 43, 97)})
    line = [scene.map_path, scene.reference_path, "--out", str(scene.folder / "report"), "-q"]
    assert main([*line, "--regions", str(folder)]) == 0
    printed = capsys.readouterr().out
    first, second = printed.index("Scores on held-out land"), printed.index("Training land")
    assert printed.index("Classes on held-out land") < first < second
    held = int(scene.scored[40:].sum())
    assert f"{held:,}" in printed[first:second] and f"{held:,}" not in printed[second:]


def test_without_a_manifest_the_page_says_that_scores_may_include_training(scene: Scene) -> None:
    evaluate(scene.config())
    page = (scene.folder / "report" / "report.md").read_text()
    assert "It is unknown which land the training used" in page
    assert json.loads((scene.folder / "report" / "report.json").read_text())["held_out"] is None


def test_a_run_tells_the_land_of_its_training(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """From the card of its models, whichever grid the stacks have."""
    run = scene.folder / "run"
    run.mkdir()
    (run / "history.csv").write_text("epoch,loss,val_loss\n1,2.0,2.5\n")
    (run / "01-2.50.keras").write_bytes(b"")
    aligned = [*list(TRANSFORM)[:6], 40, 50]
    coarse = [*list(TRANSFORM @ Affine.translation(0, 40) @ Affine.scale(20))[:6], 2, 1]
    card = {"crs": CRS.from_epsg(3067).to_wkt(), "stacks": [aligned, coarse]}
    write_small_card(run / "01-2.50.keras", {"data": [{"folder": "stacks", "ground": [card]}]})
    used = np.zeros(scene.mapped.shape, bool)
    used[:40, :50] = used[40:80, :20] = True
    found = measure(scene.config(run=str(run)))[0]
    assert np.array_equal(found.seen > 0, found.seen > 0) and found.seen.sum() == (scene.scored & used).sum()
    write_small_card(run / "01-2.50.keras", {"data": [{"folder": "stacks"}]})
    assert measure(scene.config(run=str(run)))[0].seen is None
    assert "don't record their training land" in caplog.text


def run_with_baseline(scene: Scene, compared: Any) -> Path:
    run = scene.folder / "run"
    run.mkdir()
    (run / "history.csv").write_text("epoch,loss,val_loss\n1,2.0,2.5\n")
    write_small_card(run / "baseline.npz", {}, {"compared": compared})
    return run


def test_the_report_of_a_run_shows_network_and_random_forest_by_class(scene: Scene) -> None:
    """A class leads where the difference exceeds twice its spread."""
    forest, network = (
        {"water": 0.9, "bog": 0.5, "macro-F1": 0.7},
        {"water": 0.6, "bog": 0.55, "macro-F1": 0.575},
    )
    compared = {"forest": forest, "network": network, "spread": {"water": 0.1, "bog": 0.03, "macro-F1": 0.07}}
    evaluate(scene.config(run=str(run_with_baseline(scene, compared))))
    report = scene.folder / "report"
    page = (report / "report.md").read_text()
    assert "| water | 0.9000 | 0.6000 | -0.3000 | 0.1000 | random forest |" in page
    assert "| bog | 0.5000 | 0.5500 | +0.0500 | 0.0300 | neither |" in page
    assert "Neither network nor random forest leads in macro-F1" in page
    assert json.loads((report / "report.json").read_text())["baseline"] == compared


def test_the_report_of_a_run_without_a_network_shows_forest_and_small_models(scene: Scene) -> None:
    forest, small = (
        {"water": 0.9, "bog": 0.5, "macro-F1": 0.7},
        {"water": 0.6, "bog": 0.55, "macro-F1": 0.575},
    )
    compared = {
        "pixels": 90, "patches": 3, "forest": forest, "small": small, "network": None,
        "spread": {"water": 0.1, "bog": None, "macro-F1": None},
    }  # fmt: skip
    run = run_with_baseline(scene, compared)
    (run / "history.csv").unlink()
    (run / "few-labels.npz").touch()
    evaluate(scene.config(run=str(run)))
    page = (scene.folder / "report" / "report.md").read_text()
    assert "| water | 0.9000 | 0.6000 | -0.3000 | 0.1000 | random forest |" in page
    assert "| bog | 0.5000 | 0.5500 | +0.0500 | one patch | not known |" in page
    assert "The leading model is unknown" in page and "small models F1" in page and "network F1" not in page


@pytest.mark.parametrize(("lead", "verdict"), [(0.2, "The network leads"), (-0.2, "--pick baseline")])
def test_the_report_names_the_model_that_leads(scene: Scene, lead: float, verdict: str) -> None:
    rows = {"forest": {"macro-F1": 0.5}, "network": {"macro-F1": 0.5 + lead}, "spread": {"macro-F1": 0.05}}
    evaluate(scene.config(run=str(run_with_baseline(scene, rows))))
    assert verdict in (scene.folder / "report" / "report.md").read_text()


def test_a_run_without_a_comparison_gives_a_report_without_one(scene: Scene) -> None:
    evaluate(scene.config(run=str(run_with_baseline(scene, None))))
    assert "random forest" not in (scene.folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    "compared",
    [
        [],
        {"forest": {"macro-F1": 0.5}, "network": {"macro-F1": 0.5}},
        {"forest": {"a": 0.5}, "network": {"a": 0.5}, "spread": {"a": 0.1}},
        {"forest": {"macro-F1": 0.5}, "network": {"macro-F1": "0.5"}, "spread": {"macro-F1": 0.1}},
        {"forest": {"macro-F1": 0.5, "a": 1}, "network": {"macro-F1": 0.5}, "spread": {"macro-F1": 0.1}},
    ],
)
def test_a_comparison_that_holds_something_else_is_refused(scene: Scene, compared: Any) -> None:
    with pytest.raises(InputError, match=r"baseline\.npz|baseline\.json"):
        evaluate(scene.config(run=str(run_with_baseline(scene, compared))))


def write_small_card(weights: Path, training: dict[str, Any], scores: dict[str, Any] | None = None) -> None:
    from lulc.core.statistics import Statistics
    from lulc.models.card import Channel, ModelCard, write_card
    from lulc.models.config import NetworkConfig

    network = NetworkConfig(classes=4, channels=1, filters=(4,))
    write_card(
        ModelCard(
            name="small", channels=(Channel("B02"),), legend=LEGEND, statistics=Statistics((0.0,), (1.0,)),
            network=network, stride=2, halo=2, training=training, scores=scores or {}, sha256="0" * 64,
            bytes=1,
        ),
        weights,
    )  # fmt: skip


def test_a_map_that_was_trained_on_throughout_has_no_headline(scene: Scene, caplog: Any) -> None:
    folder = prepared(scene, {"train_0": (0, 0, 83, 97), "val_0": (0, 0, 1, 1)})
    found = evaluate(scene.config(regions=str(folder))).results
    assert not found.confusion.any() and found.seen.sum() == scene.scored.sum()
    assert found.scores.overall_accuracy is None and "no scored pixel lies on held-out land" in caplog.text
    page = (scene.folder / "report" / "report.md").read_text()
    assert "**–**" in page and "No score: every labelled pixel lies on training land" in page
    assert "Confusion" not in page


@pytest.mark.parametrize("option", ["compare", "regions", "label_field", "pine", "label_errors"])
def test_what_only_a_reference_answers_is_refused_without_one(scene: Scene, option: str) -> None:
    more = {option: 0.5 if option == "label_errors" else scene.map_path}
    with pytest.raises(InputError, match=f"cannot use --{option.replace('_', '-')} without REFERENCE"):
        evaluate(scene.config(reference=None, design_sample=20, **more))


def test_a_map_without_a_class_is_refused_without_a_reference(scene: Scene) -> None:
    far = (0.0, 0.0, 10.0, 10.0)
    with pytest.raises(InputError):
        evaluate(scene.config(reference=None, design_sample=20, bounds=far))
    corner = (500_000.0, 6_700_000.0 - 70, 500_110.0, 6_700_000.0)
    with pytest.raises(InputError, match="no pixel in use has a class there"):
        evaluate(scene.config(reference=None, design_sample=20, bounds=corner))
