"""Points to interpret: drawn by area, given out blind, read back from any file."""

from __future__ import annotations

import csv
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from lulc.core.areas import pixel_areas
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.windows import Window
from lulc.evaluation.measures.sample import (
    Sample,
    check_free,
    draw_sample,
    read_sample,
    strata_path,
    write_sample,
)

LEGEND = Legend(
    "three",
    tuple(LandCoverClass(i, name, "#000000") for i, name in enumerate(("Water", "Forest", "2 crops"), 1)),
)
GRID = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500_000, 0, -10, 6_700_000), 90, 70)
CLASSES = np.random.default_rng(1).integers(1, 4, GRID.shape).astype(np.uint8)


def read_map(window: Window) -> np.ndarray:
    return CLASSES[window.slices]


def drawn(path: Path, allocation: tuple[int, ...] = (5, 6, 7)) -> geopandas.GeoDataFrame:
    """A sample of the map, written; its points with their strata."""
    pixels = np.bincount(CLASSES.ravel(), minlength=4)[1:4]
    points = draw_sample(
        read_map, [GRID.extent], GRID, pixels, np.array(allocation), np.random.default_rng(2)
    )
    write_sample(points, path, LEGEND)
    return points


def answer(path: Path, values: Any, out: Path | None = None, **options: Any) -> Path:
    """The file with its references filled in, by the strata of its points or as given."""
    points = geopandas.read_file(path, layer="sample").drop(columns="reference")
    points["reference"] = values
    points.to_file(out or path, **{"layer": "sample", "driver": "GPKG"} | options)
    return out or path


def read(path: Path, **options: Any) -> Sample:
    return read_sample(path, LEGEND, options.get("grid", GRID), options.get("read", read_map))


def test_drawn_points_lie_in_their_strata_and_are_never_drawn_twice() -> None:
    classes = np.random.default_rng(1).integers(0, 4, GRID.shape).astype(np.uint8)
    corners = [(r, c) for r in range(0, 90, 32) for c in range(0, 70, 32)]
    windows = [Window(r, c, 32, 32).intersect(GRID.extent) for r, c in corners]
    pixels = np.bincount(classes.ravel(), minlength=4)[1:]
    points = draw_sample(
        lambda w: classes[w.slices], windows, GRID, pixels, np.array([20, 30, 40]), np.random.default_rng(2)
    )
    assert points["stratum"].value_counts().to_dict() == {1: 20, 2: 30, 3: 40}
    cols, rows = ~GRID.transform @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    assert np.allclose(rows % 1, 0.5) and np.allclose(cols % 1, 0.5)
    assert (classes[rows.astype(int), cols.astype(int)] == points["stratum"]).all()
    assert len({*zip(rows, cols, strict=True)}) == 90


def test_every_pixel_of_a_stratum_is_drawn_equally_often() -> None:
    classes = np.ones((6, 5), np.uint8)
    windows = [Window(0, 0, 6, 2), Window(0, 2, 6, 3)]
    grid = GridSpec(GRID.crs, GRID.transform, 6, 5)
    rng = np.random.default_rng(3)
    found = np.zeros((6, 5))
    for _ in range(150):
        points = draw_sample(lambda w: classes[w.slices], windows, grid, np.array([30]), np.array([10]), rng)
        cols, rows = ~grid.transform @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
        found[rows.astype(int), cols.astype(int)] += 1
    assert abs(found - 50).max() < 5 * np.sqrt(150 * 1 / 3 * 2 / 3)


def test_where_pixels_differ_in_area_equal_areas_are_drawn_equally_often() -> None:
    """From 75 to 15 degrees north a degree of longitude grows almost fourfold."""
    grid = GridSpec(CRS.from_epsg(4326), Affine(0.5, 0, 0, 0, -0.5, 75), 120, 40)
    classes = np.ones(grid.shape, np.uint8)
    rng = np.random.default_rng(4)
    points = draw_sample(
        lambda w: classes[w.slices], [grid.extent], grid, np.array([4800]), np.array([600]), rng
    )
    rows = ((75 - points.geometry.y.to_numpy()) / 0.5).astype(int)
    areas = pixel_areas(grid).sum(axis=1)  # type: ignore[union-attr]
    expected = 600 * areas.reshape(4, 30).sum(axis=1) / areas.sum()
    found = np.bincount(rows // 30, minlength=4)
    assert len(points) == 600 and (abs(found - expected) < 4 * np.sqrt(expected)).all()
    assert found[3] > 2 * found[0]


def test_the_file_given_out_says_nothing_of_the_map(tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.gpkg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["points-strata.csv", "points.gpkg"]
    given = geopandas.read_file(tmp_path / "points.gpkg", layer="sample")
    assert set(given.columns) == {"id", "reference", "geometry"} and given["reference"].isna().all()
    with sqlite3.connect(tmp_path / "points.gpkg") as file:
        tables = [name for (name,) in file.execute("select name from sqlite_master where type = 'table'")]
        assert not any("strat" in name for name in tables)
    with open(strata_path(tmp_path / "points.gpkg"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["id"]), int(r["stratum"])) for r in rows] == [
        *zip(points["id"], points["stratum"], strict=True)
    ]
    assert rows[0]["class"] == LEGEND.names[int(rows[0]["stratum"]) - 1]


def test_qgis_offers_the_classes_as_a_list(tmp_path: Path) -> None:
    drawn(tmp_path / "points.gpkg")
    with sqlite3.connect(tmp_path / "points.gpkg") as file:
        (row,) = file.execute(
            "select f_table_name, f_geometry_column, useAsDefault, styleQML from layer_styles"
        )
        (column,) = file.execute("select column_name from gpkg_geometry_columns where table_name = 'sample'")
    assert (row[0], row[1], row[2]) == ("sample", column[0], 1)
    assert 'type="ValueMap"' in row[3]
    for name, value in (("1 Water", 1), ("3 2 crops", 3), ("cannot be interpreted", 0)):
        assert f'<Option name="{name}" type="QString" value="{value}" />' in row[3]


def test_numbers_and_names_are_read_alike(tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.gpkg")
    strata = points["stratum"].tolist()
    expected = np.diag([5, 6, 7])
    names = [LEGEND.names[k - 1] for k in strata]
    spelled = [f" {name.upper()} " for name in names]
    numbered = [f"{k} {name}" for k, name in zip(strata, names, strict=True)]
    for values in (strata, [float(k) for k in strata], list(map(str, strata)), names, spelled, numbered):
        path = answer(tmp_path / "points.gpkg", values, tmp_path / "filled.gpkg")
        assert np.array_equal(read(path).matrix, expected)


@pytest.mark.parametrize("value", [0, 255, "uninterpretable", "?", None, "Cannot be interpreted", ""])
def test_a_point_that_can_not_be_interpreted_is_left_out_and_counted(tmp_path: Path, value: Any) -> None:
    points = drawn(tmp_path / "points.gpkg")
    values = points["stratum"].astype(object).tolist()
    values = list(map(str, values)) if isinstance(value, str) else values
    values[3] = value
    found = read(answer(tmp_path / "points.gpkg", values))
    assert (found.left_out, found.points) == (1, 17)
    assert found.matrix[points["stratum"][3] - 1].sum() == (5, 6, 7)[points["stratum"][3] - 1] - 1


def test_what_is_no_class_is_refused_with_its_values(tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.gpkg")
    with pytest.raises(InputError, match="none of its 18 points has a reference"):
        read(tmp_path / "points.gpkg")
    values = [LEGEND.names[k - 1] for k in points["stratum"]]
    with pytest.raises(InputError, match=r"2 of 18 points have the reference 'Watr'.*names such as 'Water'"):
        read(answer(tmp_path / "points.gpkg", ["Watr", "Watr", *values[2:]]))
    with pytest.raises(InputError, match=r"1 of 18 points have the reference '4(\.0)?'"):
        read(answer(tmp_path / "points.gpkg", [4, *points["stratum"][1:]]))


def test_any_single_layer_is_read_and_several_are_not(tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.gpkg")
    renamed = answer(
        tmp_path / "points.gpkg", points["stratum"].tolist(), tmp_path / "a.gpkg", layer="my points"
    )
    json = answer(
        tmp_path / "points.gpkg", points["stratum"].tolist(), tmp_path / "b.geojson", driver="GeoJSON"
    )
    for path in (renamed, json):
        assert read(path).points == 18
    both = geopandas.read_file(renamed)
    both.to_file(renamed, layer="others", mode="a")
    with pytest.raises(InputError, match="2 layers"):
        read(renamed)
    both.to_file(renamed, layer="sample", mode="a")
    assert read(renamed).points == 18


def test_the_strata_are_those_of_the_table_the_field_or_the_map(tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.gpkg")
    path = answer(tmp_path / "points.gpkg", points["stratum"].tolist())
    other: dict[str, Any] = {"read": lambda window: read_map(window) % 3 + 1}
    with pytest.raises(InputError, match="18 of 18 points lie where the map has another class"):
        read(path, **other)
    moved = answer(path, points["stratum"].tolist(), tmp_path / "moved.gpkg")
    assert read(moved, **other).matrix.sum() == 18  # nothing says for which map they were drawn
    old = geopandas.read_file(moved)
    old["stratum"] = points["stratum"]
    old.to_file(tmp_path / "old.gpkg", layer="sample")
    assert np.array_equal(read(tmp_path / "old.gpkg").matrix, np.diag([5, 6, 7]))
    with pytest.raises(InputError, match="another class"):
        read(tmp_path / "old.gpkg", **other)
    strata_path(path).write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no table with the columns id, stratum, class"):
        read(path)


def test_points_in_any_crs_are_found_and_those_outside_the_map_are_refused(tmp_path: Path) -> None:
    points = drawn(tmp_path / "points.gpkg")
    path = answer(tmp_path / "points.gpkg", points["stratum"].tolist())
    degrees = geopandas.read_file(path).to_crs(4326)
    degrees.to_file(tmp_path / "degrees.gpkg", layer="sample")
    assert np.array_equal(read(tmp_path / "degrees.gpkg").matrix, np.diag([5, 6, 7]))
    smaller = GridSpec(GRID.crs, GRID.transform, 45, 35)
    with pytest.raises(InputError, match="of 18 points lie where"):
        read(path, grid=smaller)


def test_a_file_that_is_no_sample_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gpkg").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="no GeoPackage"):
        read(tmp_path / "no.gpkg")
    with pytest.raises(InputError, match="no regular file"):
        read(tmp_path / "absent.gpkg")
    geopandas.GeoDataFrame({"a": [1]}, geometry=geopandas.points_from_xy([1], [2]), crs=3067).to_file(
        tmp_path / "x.gpkg"
    )
    with pytest.raises(InputError, match=r"with the fields a and a CRS, expected .* 'reference'"):
        read(tmp_path / "x.gpkg")


def test_work_on_a_sample_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "sample.gpkg"
    check_free(path, overwrite=False)
    points = drawn(path)
    check_free(path, overwrite=True)
    with pytest.raises(InputError, match="there is one already"):
        check_free(path, overwrite=False)
    answer(path, points["stratum"].tolist())
    for overwrite in (False, True):
        with pytest.raises(InputError, match="there is one already"):
            check_free(path, overwrite=overwrite)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="there is one already"):
        check_free(path, overwrite=True)
    path.unlink()
    with pytest.raises(InputError, match="strata of an earlier sample"):
        check_free(path, overwrite=False)
    check_free(path, overwrite=True)


@pytest.mark.integration
def test_qgis_itself_takes_the_form_from_the_file(tmp_path: Path) -> None:
    python = "/usr/bin/python3"
    if not Path(python).exists() or not Path("/usr/lib/python3/dist-packages/qgis").is_dir():
        pytest.skip("needs QGIS from the system's packages")
    drawn(tmp_path / "points.gpkg")
    code = (
        "import sys\n"
        "from qgis.core import QgsApplication, QgsVectorLayer\n"
        "app = QgsApplication([], False); app.initQgis()\n"
        "layer = QgsVectorLayer(sys.argv[1] + '|layername=sample', 'sample', 'ogr')\n"
        "setup = layer.editorWidgetSetup(layer.fields().indexOf('reference'))\n"
        "print(setup.type(), [name for entry in setup.config()['map'] for name in entry])\n"
    )
    found = subprocess.run(
        [python, "-c", code, str(tmp_path / "points.gpkg")], capture_output=True, text=True, timeout=120,
        env={"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert "ValueMap ['1 Water', '2 Forest', '3 2 crops', 'cannot be interpreted']" in found.stdout, (
        found.stderr
    )
