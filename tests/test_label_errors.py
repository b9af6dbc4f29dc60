"""Suspects: labels that were made wrong are found, and none is where map and labels agree."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.windows import Window
from lulc.evaluation.measures.label_errors import find_label_errors
from lulc.evaluation.measures.regions import Region
from lulc.maps.reader import LEGEND_TAG, open_map

LEGEND = Legend("test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in (1, 2, 3)))
GRID = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500000, 0, -10, 6700000), 60, 80)


@pytest.fixture
def scene(tmp_path):
    """A confident map of two halves and no data in a corner, and its labels, before anything is changed."""
    classes = np.ones((60, 80), np.uint8)
    classes[:, 40:] = 3
    activations = np.full((3, 60, 80), 0.05, np.float32)
    np.put_along_axis(activations, classes[None].astype(int) - 1, 0.9, axis=0)
    bands = np.concatenate([classes[None].astype(np.float32), activations])
    bands[:, :5, :5] = -1
    path = tmp_path / "map.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=80, height=60, count=4, dtype="float32", crs=GRID.crs,
        transform=GRID.transform, nodata=-1,
    ) as target:  # fmt: skip
        target.write(bands)
        target.update_tags(**{LEGEND_TAG: json.dumps(LEGEND.to_json())})
    return path, classes


def run(scene, labels, folder, **options):
    with open_map(scene[0]) as land_cover:
        raster, table = find_label_errors(
            land_cover, lambda window: labels[window.slices], folder, **{"least": 0.5} | options
        )
    with rasterio.open(raster) as source, open(table, newline="") as file:
        assert source.transform == GRID.transform and source.crs == GRID.crs
        return source.read(1), list(csv.DictReader(file))


def test_wrong_labels_are_found_with_their_place_and_nothing_else(scene, tmp_path):
    labels = scene[1].copy()
    labels[20:26, 10:18] = 2
    labels[50:53, 60:63] = 1
    labels[30, 70] = 2
    values, rows = run(scene, labels, tmp_path, regions=[Region("west", Window(0, 0, 60, 40))])
    wrong = labels != scene[1]
    wrong[:5, :5] = False
    np.testing.assert_array_equal((values > 0) & (values < 255), wrong)
    np.testing.assert_array_equal(values[wrong], scene[1][wrong])
    assert (values[:5, :5] == 255).all()
    found = [(r["region"], r["pixels"], r["labelled"], r["mapped"], r["margin"]) for r in rows]
    assert found == [("west", "48", "class 2", "class 1", "0.850"), ("", "9", "class 1", "class 3", "0.850")]
    assert float(rows[0]["x"]) == pytest.approx(500000 + 140, abs=10)
    assert float(rows[0]["y"]) == pytest.approx(6700000 - 230, abs=10)


def test_agreement_ignored_labels_and_small_margins_are_no_candidates(scene, tmp_path):
    labels = scene[1].copy()
    assert not run(scene, labels, tmp_path)[1]
    labels[20:30, 20:30] = 255
    values, rows = run(scene, labels, tmp_path)
    assert not rows and (values[20:30, 20:30] == 255).all()
    labels[20:30, 20:30] = 2
    assert not run(scene, labels, tmp_path, least=0.9)[1]


def test_a_map_without_activations_is_refused(scene, tmp_path):
    with rasterio.open(scene[0]) as source:
        profile = source.profile | {"count": 1}
        classes, tags = source.read(1), source.tags()
    with rasterio.open(tmp_path / "alone.tif", "w", **profile) as target:
        target.write(classes, 1)
        target.update_tags(**tags)
    with pytest.raises(InputError, match="no activation bands"):
        run((tmp_path / "alone.tif", scene[1]), scene[1], tmp_path)
