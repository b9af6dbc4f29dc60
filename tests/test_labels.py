"""Labels land on the pixels they belong to, and nowhere else."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform
from shapely.geometry import LineString, Point, Polygon, box

from lulc.core.grid import GridSpec
from lulc.core.schema import NO_CODE, InputError
from lulc.core.windows import Window, squares_of
from lulc.labels.labels import open_labels
from lulc.labels.schemes import Scheme, load_scheme, write_scheme
from lulc.rasters import alignment, vectors
from lulc.rasters import features as reader
from lulc.rasters.vectors import Losses, VectorCodes, code_of

UTM = CRS.from_epsg(32635)
GRID = GridSpec(UTM, Affine(10, 0, 500000, 0, -10, 6800000), 60, 80)
SCHEME = load_scheme("kaakonkulma-13")


def write(path: Path, codes: np.ndarray, grid: GridSpec = GRID, nodata: float | None = None) -> str:
    height, width = codes.shape[-2:]
    layers = codes.reshape(-1, height, width)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(layers), dtype=codes.dtype,
        crs=grid.crs, transform=grid.transform, nodata=nodata,
    ) as data:  # fmt: skip
        data.write(layers)
    return str(path)


def random_codes(shape: tuple[int, int] = GRID.shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 14, shape).astype(np.uint8)


def moved(rows: float, cols: float, height: int = GRID.height, width: int = GRID.width) -> GridSpec:
    return GridSpec(UTM, GRID.transform @ Affine.translation(cols, rows), height, width)


def read_all(path: str, **options: Any) -> np.ndarray:
    with open_labels(path, GRID, options.pop("scheme", SCHEME), **options) as labels:
        whole = labels.read(GRID.extent)
        parts = np.full(GRID.shape, 77, np.uint8)
        for window in squares_of(GRID.extent, 17):
            parts[window.slices] = labels.read(window)
        assert np.array_equal(parts, whole), "windows and the whole differ"
        labels.check(labels.count(GRID.extent))
    return whole


def test_a_raster_on_the_grid_reads_as_it_is_with_0_ignored(tmp_path: Path) -> None:
    codes = random_codes()
    found = read_all(write(tmp_path / "l.tif", codes))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.where(codes == 0, 255, codes))


def test_the_no_data_value_and_nan_are_ignored(tmp_path: Path) -> None:
    codes = random_codes()
    expected = np.where((codes == 0) | (codes == 7), 255, codes)
    assert np.array_equal(read_all(write(tmp_path / "a.tif", codes, nodata=7)), expected)
    floats = np.where(codes == 7, np.nan, codes).astype(np.float32)
    assert np.array_equal(read_all(write(tmp_path / "b.tif", floats)), expected)
    unknown = np.where(codes == 7, -9999, codes.astype(np.int16))
    assert np.array_equal(read_all(write(tmp_path / "c.tif", unknown, nodata=-9999)), expected)


def test_labels_that_were_interpolated_are_refused(tmp_path: Path) -> None:
    codes = random_codes().astype(np.float32)
    codes[3, 4] = 6.5
    with pytest.raises(InputError, match=r"value 6\.5"):
        read_all(write(tmp_path / "l.tif", codes))


def test_a_larger_raster_is_cropped_and_a_smaller_one_ignored_outside(tmp_path: Path) -> None:
    large = random_codes((80, 100))
    path = write(tmp_path / "large.tif", large, moved(-12, -7, 80, 100))
    crop = large[12 : 12 + GRID.height, 7 : 7 + GRID.width]
    assert np.array_equal(read_all(path), np.where(crop == 0, 255, crop))
    small = random_codes((20, 30))
    found = read_all(write(tmp_path / "small.tif", small, moved(5, -4, 20, 30)))
    assert np.array_equal(found[5:25, :26], np.where(small == 0, 255, small)[:, 4:])
    assert (found[:5] == 255).all() and (found[25:] == 255).all() and (found[:, 26:] == 255).all()


@pytest.mark.parametrize(
    "grid",
    [
        moved(0.5, 0),
        GridSpec(UTM, GRID.transform @ Affine.scale(2), 30, 40),
        GridSpec(CRS.from_epsg(3067), GRID.transform, 60, 80),
    ],
    ids=["half a pixel off", "20 m", "another CRS"],
)
def test_another_grid_is_refused_and_both_are_shown(tmp_path: Path, grid: GridSpec) -> None:
    path = write(tmp_path / "l.tif", random_codes(grid.shape), grid)
    with pytest.raises(InputError) as caught:
        read_all(path)
    text = str(caught.value)
    assert grid.describe() in text and GRID.describe() in text and "--resample" in text


def test_a_raster_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies elsewhere"):
        read_all(write(tmp_path / "l.tif", random_codes(), moved(0, 500)))
    far = GridSpec(UTM, Affine(20, 0, 900000, 0, -20, 6800000), 60, 80)
    with pytest.raises(InputError, match="lies elsewhere"):
        read_all(write(tmp_path / "m.tif", random_codes(), far), resample=True)


def test_resampled_labels_agree_with_gdal_and_invent_no_class(tmp_path: Path) -> None:
    # An even-odd geometry, in which no centre falls on the line between two source pixels.
    grid = GridSpec(CRS.from_epsg(4326), Affine(0.0003, 0, 26.9935, 0, -0.00013, 61.3325), 90, 80)
    codes = np.where(random_codes(grid.shape) % 2, 3, 9).astype(np.uint8)
    path = write(tmp_path / "l.tif", codes, grid)
    expected = np.zeros(GRID.shape, np.uint8)
    reproject(
        codes, expected, src_transform=grid.transform, src_crs=grid.crs, dst_transform=GRID.transform,
        dst_crs=UTM, resampling=Resampling.nearest, tolerance=0,
    )  # fmt: skip
    found = read_all(path, resample=True)
    assert set(np.unique(found)) <= {3, 9, 255}
    assert np.mean(found == np.where(expected == 0, 255, expected)) > 0.999


def test_a_finer_raster_is_read_in_pieces_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = GridSpec(UTM, GRID.transform @ Affine.scale(1 / 5), 300, 400)
    path = write(tmp_path / "l.tif", random_codes(fine.shape), fine)
    whole = read_all(path, resample=True)
    monkeypatch.setattr(alignment, "MAX_READ", 700)
    assert np.array_equal(read_all(path, resample=True), whole)


def test_several_layers_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 layers"):
        read_all(write(tmp_path / "l.tif", np.stack([random_codes(), random_codes()])))


def test_unknown_codes_of_all_windows_are_counted_together(tmp_path: Path) -> None:
    codes = random_codes()
    codes[0, 0] = codes[-1, -1] = 40
    codes[5] = 41
    with (
        open_labels(write(tmp_path / "l.tif", codes), GRID, SCHEME) as labels,
        pytest.raises(InputError, match=r"l\.tif' has the unknown codes 40 \(2 px\), 41 \(80 px\)"),
    ):
        labels.check(sum(map(labels.count, squares_of(GRID.extent, 16)), Counter()))


def test_conifers_are_split_by_volume_rasters_on_their_own_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", np.full(GRID.shape, 25, np.uint8))
    coarse = GridSpec(UTM, GRID.transform @ Affine.scale(1.6), 38, 50)
    pine, spruce = np.full((38, 50), 10, np.int16), np.full((38, 50), 10, np.int16)
    pine[:, :10] = 90
    spruce[:, 20:30] = 80
    spruce[:, 40:] = 32767
    pine[:, 40:] = 99
    scheme = load_scheme("clc-fi-13")
    found = read_all(
        path, scheme=scheme, pine=write(tmp_path / "p.tif", pine, coarse),
        spruce=write(tmp_path / "s.tif", spruce, coarse),
    )  # fmt: skip
    assert (found[:, :16] == 7).all() and (found[:, 16:32] == 255).all()
    assert (found[:, 32:48] == 8).all() and (found[:, 48:] == 255).all()


def test_conifers_without_volumes_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "l.tif", np.full(GRID.shape, 26, np.uint8))
    with caplog.at_level(logging.WARNING, "lulc"):
        assert (read_all(path, scheme=load_scheme("clc-fi-13")) == 255).all()
    assert "--pine" in caplog.text
    with pytest.raises(InputError, match="--spruce"):
        read_all(path, scheme=load_scheme("clc-fi-13"), pine=path)


def features(path: Path, shapes: dict[Any, Any], crs: Any = UTM, **columns: Any) -> str:
    data = {"code": list(shapes.values())} | columns
    frame = geopandas.GeoDataFrame(data, geometry=list(shapes), crs=crs)
    frame.to_file(path, driver="GPKG" if path.suffix == ".gpkg" else "GeoJSON", engine="pyogrio")
    return str(path)


SQUARE = box(500100, 6799700, 500300, 6799900)
TRIANGLE = Polygon([(500400, 6799900), (500700, 6799900), (500400, 6799500)])


@pytest.mark.parametrize("name", ["l.gpkg", "l.geojson"])
def test_polygons_hold_the_pixels_whose_centre_they_hold(tmp_path: Path, name: str) -> None:
    found = read_all(features(tmp_path / name, {SQUARE: 3, TRIANGLE: 12}))
    cols, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    xs, ys = 500000 + 10 * cols, 6800000 - 10 * rows
    inside = (xs > 500400) & (ys < 6799900) & ((xs - 500400) / 300 + (6799900 - ys) / 400 < 1)
    expected = np.full(GRID.shape, 255, np.uint8)
    expected[10:30, 10:30] = 3
    expected[inside] = 12
    assert np.mean(found == expected) > (0.9999 if name == "l.gpkg" else 0.98)


def test_polygons_are_reprojected(tmp_path: Path) -> None:
    here = read_all(features(tmp_path / "a.gpkg", {SQUARE: 3, TRIANGLE: 12}))
    frame = geopandas.read_file(tmp_path / "a.gpkg").to_crs(4326)
    frame.to_file(tmp_path / "b.gpkg")
    assert np.mean(read_all(str(tmp_path / "b.gpkg")) == here) > 0.999


def test_points_label_the_pixel_they_lie_in(tmp_path: Path) -> None:
    found = read_all(features(tmp_path / "l.gpkg", {Point(500014, 6799987): 5, Point(500799, 6799401): 6}))
    assert (found[1, 1], found[59, 79], int((found != 255).sum())) == (5, 6, 2)


def test_of_several_polygons_the_last_in_the_file_wins(tmp_path: Path) -> None:
    found = read_all(features(tmp_path / "l.gpkg", {SQUARE.buffer(100): 3, SQUARE: 4, TRIANGLE.buffer(1): 9}))
    assert (found[10:30, 10:30] == 4).all() and found[5, 20] == 3


def test_the_code_field_is_guessed_only_where_no_other_can_hold_codes(tmp_path: Path) -> None:
    path = features(tmp_path / "l.gpkg", {SQUARE: 3, TRIANGLE: 12}, other=[1, 2], clc=["4", "5"])
    with pytest.raises(InputError) as caught:
        read_all(path)
    assert all(name in str(caught.value) for name in ("code", "other", "clc", "--label-field"))
    assert set(np.unique(read_all(path, field="code"))) == {3, 12, 255}
    assert set(np.unique(read_all(path, field="clc"))) == {4, 5, 255}
    with pytest.raises(InputError, match="no field 'nothing'"):
        read_all(path, field="nothing")
    assert set(np.unique(read_all(path, field="CLC"))) == {4, 5, 255}


@pytest.mark.parametrize("text", ["1_2", "1E2", "0x1", "\u0661", "inf", "nan", "1.5", "1,0", "+-1", "9" * 12])
def test_a_text_that_python_reads_as_a_number_is_no_code(text: str) -> None:
    assert code_of(text) == text
    assert [code_of(number) for number in (12, 12.0, "012", "12.", " +12.00 ", np.float32(12))] == [12] * 6


def test_text_that_is_no_code_is_refused_and_a_missing_code_is_ignored(tmp_path: Path) -> None:
    path = features(tmp_path / "l.gpkg", {SQUARE: 3, TRIANGLE: 12}, clc=["forest", "5"], gap=["4", None])
    with pytest.raises(InputError, match="'forest'"):
        read_all(path, field="clc")
    assert set(np.unique(read_all(path, field="gap"))) == {4, 255}


def squares(*columns: tuple[str, list[Any]], path: Path, times: int = 2, **options: Any) -> str:
    """Polygons of 100 m in a row, with fields; `times` of each value."""
    boxes = [
        box(500000 + 100 * i, 6799900, 500100 + 100 * i, 6800000) for i in range(len(columns[0][1]) * times)
    ]
    data = {name: values * times for name, values in columns}
    geopandas.GeoDataFrame(data, geometry=boxes, crs=UTM).to_file(path, engine="pyogrio", **options)
    return str(path)


def open_field(path: str, scheme: Scheme | None = None, **options: Any) -> tuple[str, Scheme]:
    with open_labels(path, GRID, scheme, **options) as labels:
        return labels.describe()["field"], labels.scheme


def test_an_identifier_is_never_taken_for_the_code_beside_another_field(tmp_path: Path) -> None:
    """QGIS adds an integer field to every new layer, whatever it is called."""
    for name in ("id", "plot", "fid_1"):
        path = squares(("klass", ["3", "1", "2"]), path=tmp_path / f"{name}.gpkg", times=1)
        frame = geopandas.read_file(path)
        frame[name] = range(1, len(frame) + 1)
        frame.to_file(path)
        with pytest.raises(InputError, match="cannot tell which field") as caught:
            open_field(path, SCHEME)
        assert name in str(caught.value) and "--label-field klass" in caught.value.hint
        assert open_field(path, SCHEME, field="klass")[0] == "klass"


def test_the_field_whose_values_the_scheme_knows_is_taken(tmp_path: Path) -> None:
    path = squares(("nr", [101, 102]), ("clc", [3, 12]), ("who", ["me", "you"]), path=tmp_path / "l.gpkg")
    assert open_field(path, SCHEME)[0] == "clc"
    whole = squares(("area", [1.5, 2.25]), ("clc", [3.0, 12.0]), path=tmp_path / "real.gpkg")
    assert open_field(whole, SCHEME)[0] == "clc"


@pytest.mark.parametrize("name", ["l.gpkg", "l.geojson"])
def test_class_names_in_a_text_field_make_a_legend(tmp_path: Path, name: str) -> None:
    path = squares(
        ("id", [1, 2, 3]), ("land", ["Water", "mixed  forest", "Arable land"]), path=tmp_path / name, times=1
    )
    field, scheme = open_field(path)
    assert field == "land"
    assert scheme.legend.names == ("Arable land", "mixed forest", "Water")
    assert len(set(scheme.legend.colors)) == 3
    with open_labels(path, GRID) as labels:
        found = labels.read(GRID.extent)
        assert labels.origin == "names in the field 'land'"
    assert found[5, [5, 15, 25, 35]].tolist() == [3, 2, 1, 255]


def test_names_that_differ_by_case_and_spaces_are_one_class(tmp_path: Path) -> None:
    path = squares(
        ("land", ["Forest", "forest ", "FOREST", "Wa\u0308sser", "W\u00e4sser"]), path=tmp_path / "l.gpkg"
    )
    with open_labels(path, GRID) as labels:
        assert len(labels.legend) == 2
        assert labels.read(GRID.extent)[5, 5:55:10].tolist() == [1, 1, 1, 2, 2]


def test_numbers_without_names_are_refused_with_the_commands_to_type(tmp_path: Path) -> None:
    path = squares(("code", [10, 20, 95]), path=tmp_path / "l.gpkg")
    with pytest.raises(InputError) as caught:
        open_field(path)
    assert "10, 20, 95" in caught.value.problem
    assert "--scheme worldcover" in caught.value.hint and "10,1,NAME," in caught.value.hint
    with pytest.raises(InputError, match="cannot tell which classes"):
        open_field(squares(("code", ["1", "2"]), path=tmp_path / "digits.gpkg"))


def test_a_table_may_have_texts_for_codes(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("code,class,name,color\nRY-1,1,Rye,\nry-2,1,,\n1.2.1,2,Built,\nroad,ignore,,\n", "utf-8")
    scheme = load_scheme(str(table))
    assert scheme.legend.classes[0].sources == ("RY-1", "ry-2")
    path = squares(("crop", ["ry-1", "RY-2", "1.2.1", "road", "Built"]), path=tmp_path / "l.gpkg")
    with open_labels(path, GRID, scheme) as labels:
        assert labels.read(GRID.extent)[5, 5:55:10].tolist() == [1, 1, 2, 255, 2]
    other = squares(("crop", ["ry-1", "oats"]), path=tmp_path / "m.gpkg")
    with open_labels(other, GRID, scheme) as labels, pytest.raises(InputError, match=r"'oats' \(200 px\)"):
        labels.check(labels.count(GRID.extent))


def test_a_scheme_is_written_as_the_table_that_reads_it_back(tmp_path: Path) -> None:
    path = squares(("land", ["Water", "Forest"]), path=tmp_path / "l.gpkg")
    for scheme in (open_field(path)[1], load_scheme("clc-level2"), load_scheme("worldcover")):
        table = tmp_path / f"{scheme.name}.csv"
        assert write_scheme(scheme, table) and write_scheme(scheme, table)
        again = load_scheme(str(table))
        assert again.classes == scheme.classes
        assert [(c.name, c.color, c.level1) for c in again.legend.classes] == [
            (c.name, c.color, c.level1) for c in scheme.legend.classes
        ]


def test_a_table_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("mine")
    assert not write_scheme(load_scheme("worldcover"), tmp_path / "classes.csv")
    assert (tmp_path / "classes.csv").read_text() == "mine"


def test_features_that_label_less_than_they_cover_are_counted(tmp_path: Path) -> None:
    def at(x: float, y: float, side: float) -> Polygon:
        return box(500000 + x, 6800000 - y - side, 500000 + x + side, 6800000 - y)

    shapes = {
        at(0, 0, 100): 1,          # 100 px, of which 4 x 10 are lost to the next
        at(60, 0, 100): 2,
        at(200, 0, 100): 3,        # covered by one of its own class: nothing is lost
        at(200, 0, 50): 3,
        at(306, 6, 3): 4,          # holds no pixel centre
        at(-50, 300, 100): 5,      # half outside
        at(5000, 0, 100): 6,       # outside
        at(400, 0, 100): 7,        # wholly covered by the next
        at(390, 0, 120): 8,
    }  # fmt: skip
    for suffix in (".gpkg", ".geojson"):
        path = features(tmp_path / f"l{suffix}", shapes)
        found = VectorCodes(path, GRID).losses()
        assert found == Losses(
            features=9, outside=1, partly_outside=1, too_small=1, covered=2, covered_pixels=140
        )
    missing = squares(("land", ["Water", None]), path=tmp_path / "m.gpkg")
    assert VectorCodes(missing, GRID, "land").losses() == Losses(features=4, without_code=2)


def test_losses_do_not_depend_on_the_squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    shapes = {
        Point(500000 + x, 6799400 + y).buffer(r): int(c)
        for x, y, r, c in zip(
            *(rng.uniform(0, n, 60) for n in (800, 600, 60)), rng.integers(1, 4, 60), strict=True
        )
    }
    path = features(tmp_path / "l.gpkg", shapes)
    whole = VectorCodes(path, GRID).losses()
    assert whole.covered_pixels > 0
    monkeypatch.setattr(vectors, "SIDE", 17)
    assert VectorCodes(path, GRID).losses() == whole


def test_a_class_that_is_the_no_data_of_the_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "dw.tif", random_codes() % 3, nodata=0)
    with (
        caplog.at_level(logging.WARNING, "lulc"),
        open_labels(path, GRID, load_scheme("dynamic-world")) as labels,
    ):
        assert labels.describe()["no_data"] == "0 Water"
    assert "0 Water" in caplog.text and "gdal_edit.py -unsetnodata" in caplog.text
    caplog.clear()
    with open_labels(path, GRID, SCHEME) as labels:
        assert "no_data" not in labels.describe() and not caplog.text


def test_options_without_use_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "l.tif", random_codes())
    with pytest.raises(InputError, match="which has no fields"):
        read_all(path, field="code")
    with pytest.raises(InputError, match="none of its codes leaves the species open"):
        read_all(path, pine=path, spruce=path)
    with pytest.raises(InputError, match="only clc-level1"):
        load_scheme("worldcover", "grid")


def test_lines_and_a_missing_crs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LineString"):
        read_all(features(tmp_path / "a.gpkg", {LineString([(500000, 6799900), (500100, 6799800)]): 1}))
    frame = geopandas.GeoDataFrame({"code": [1]}, geometry=[SQUARE], crs=UTM)
    frame.set_crs(None, allow_override=True).to_file(tmp_path / "c.gpkg")
    with pytest.raises(InputError, match="no CRS") as caught:
        read_all(str(tmp_path / "c.gpkg"))
    assert "ogr2ogr -a_srs EPSG:" in caught.value.hint


def written(path: Path, frame: geopandas.GeoDataFrame) -> str:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, engine="pyogrio")
    return str(path)


@pytest.mark.integration
@pytest.mark.parametrize("crs", [32635, 3067, 4326, 3857])
@pytest.mark.parametrize("name", ["l.shp", "l.fgb", "l.parquet", "l.gpkg"])
def test_every_kind_of_vector_file_lands_on_the_same_pixels_from_any_crs(
    tmp_path: Path, name: str, crs: int
) -> None:
    expected = read_all(features(tmp_path / "first.gpkg", {SQUARE: 3, TRIANGLE: 12}))
    frame = geopandas.read_file(tmp_path / "first.gpkg").to_crs(crs)
    assert np.mean(read_all(written(tmp_path / name, frame)) == expected) > 0.999


@pytest.mark.parametrize("name", ["l.shp", "l.fgb", "l.parquet"])
def test_texts_and_empty_fields_are_read_from_every_kind_of_vector_file(tmp_path: Path, name: str) -> None:
    frame = geopandas.GeoDataFrame(
        {"land": ["Water", None, "Forest"], "number": [7, 8, 9]},
        geometry=[SQUARE, SQUARE.buffer(-50), TRIANGLE], crs=UTM,
    )  # fmt: skip
    with open_labels(written(tmp_path / name, frame), GRID) as labels:
        assert labels.legend.names == ("Forest", "Water")
        found = labels.read(GRID.extent)
    assert (found[12, 12], found[14, 42]) == (2, 1)
    with pytest.raises(InputError, match="no field 'klass'"):
        read_all(str(tmp_path / name), field="klass")


@pytest.mark.parametrize("name", ["l.shp", "l.fgb", "l.parquet"])
def test_vector_files_cut_short_are_refused(tmp_path: Path, name: str) -> None:
    frame = geopandas.GeoDataFrame({"code": [1] * 50}, geometry=[SQUARE] * 50, crs=UTM)
    path = Path(written(tmp_path / name, frame))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=name):
        read_all(str(path))


def test_a_shapefile_without_its_table_or_with_parts_elsewhere_is_refused(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame({"code": [3]}, geometry=[SQUARE], crs=UTM)
    (tmp_path / "a").mkdir()
    path = Path(written(tmp_path / "a" / "l.shp", frame))
    with open_labels(str(path), GRID, SCHEME) as labels:
        before = labels.identity()[0]["sha256"]
    table = path.with_suffix(".dbf")
    table.rename(tmp_path / "l.dbf")
    with pytest.raises(InputError, match=r"expected l\.dbf beside it"):
        read_all(str(path))
    table.symlink_to(tmp_path / "l.dbf")
    with pytest.raises(InputError, match="nothing outside its folder"):
        read_all(str(path))
    table.unlink()
    written(path, frame.assign(code=4))
    with open_labels(str(path), GRID, SCHEME) as labels:
        assert labels.identity()[0]["sha256"] != before


def test_one_of_several_layers_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    frame = geopandas.GeoDataFrame({"code": [1]}, geometry=[SQUARE], crs=UTM)
    frame.to_file(path, layer="one", engine="pyogrio")
    frame.assign(code=4).to_file(path, layer="land cover", engine="pyogrio")
    with pytest.raises(InputError, match=r"2 layers with geometries \(one, land cover\)") as caught:
        read_all(str(path))
    assert "--label-layer one" in caught.value.hint
    assert set(np.unique(read_all(str(path), layer="land cover"))) == {4, 255}
    assert set(np.unique(read_all(str(path), layer="one"))) == {1, 255}
    with pytest.raises(InputError, match="has only one, land cover"):
        read_all(str(path), layer="three")
    with pytest.raises(InputError) as caught:
        VectorCodes(str(path), GRID, presence=True)
    assert f"ogr2ogr {tmp_path}/one.gpkg {path} one" in caught.value.hint


def test_a_layer_of_a_raster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layers to choose from"):
        read_all(write(tmp_path / "l.tif", random_codes()), layer="one")


def test_metres_in_geojson_without_crs_are_refused_and_degrees_are_read(tmp_path: Path) -> None:
    features(tmp_path / "l.gpkg", {SQUARE: 3})
    frame = geopandas.read_file(tmp_path / "l.gpkg")

    def bare(frame: geopandas.GeoDataFrame) -> str:
        path = tmp_path / "l.geojson"
        path.write_text(frame.to_json(drop_id=True, to_wgs84=False))
        content = json.loads(path.read_text())
        content.pop("crs", None)
        path.write_text(json.dumps(content))
        return str(path)

    with pytest.raises(InputError, match="are no degrees") as caught:
        read_all(bare(frame))
    assert "ogr2ogr -a_srs EPSG:" in caught.value.hint
    assert (read_all(bare(frame.to_crs(4326))) == 3).sum() == 400


def test_a_geoparquet_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = geopandas.GeoDataFrame({"code": [1] * 5000}, geometry=[SQUARE] * 5000, crs=UTM)
    monkeypatch.setattr(reader, "MAX_PARQUET_BYTES", 1000)
    with pytest.raises(InputError, match="unpacks to"):
        reader.Features(written(tmp_path / "l.parquet", frame), "GeoParquet")


def test_a_parquet_table_without_geometry_is_refused(tmp_path: Path) -> None:
    pandas.DataFrame({"code": [1, 2]}).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(InputError, match="no GeoParquet"):
        read_all(str(tmp_path / "l.parquet"))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = geopandas.GeoDataFrame({"code": [1]}, geometry=[SQUARE], crs=UTM)
    path = written(tmp_path / "l.parquet", frame)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError) as caught:
        reader.Features(path, "GeoParquet")
    assert "lulc[parquet]" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.gpkg", b"<OGRVRTDataSource/>"),
        ("l.gpkg", b"SQLite format 3\0" + bytes(100)),
        ("l.geojson", b"<OGRVRTDataSource><OGRVRTLayer/></OGRVRTDataSource>"),
        ("l.geojson", b'{"type": "Topology", "objects": {}, "arcs": []}'),
        ("l.json", b'{"truncated": '),
        ("l.geojson", b""),
    ],
)
def test_what_is_disguised_as_a_vector_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_all(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".gml", ".kml", ".zip", ".KML"])
def test_vector_files_of_other_kinds_are_answered_by_the_conversion(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(InputError) as error, open_labels(str(path), GRID, SCHEME):
        pass
    source = f"/vsizip/{path}" if suffix == ".zip" else path
    assert f"ogr2ogr {tmp_path}/labels.gpkg {source}" in error.value.hint
    with pytest.raises(InputError, match=r"no such file|there is no|does not exist"):
        read_all(str(tmp_path / f"other{suffix}"))


@pytest.mark.parametrize("path", ["/vsicurl/http://127.0.0.1/l.gpkg", "http://127.0.0.1/l.json", "no.gpkg"])
def test_remote_and_missing_vector_files_are_refused(path: str) -> None:
    with pytest.raises(InputError, match="no regular file"):
        read_all(path)


def test_presence_is_burnt_without_a_field(tmp_path: Path) -> None:
    path = features(tmp_path / "l.gpkg", {SQUARE: 3}, other=[1])
    found = VectorCodes(path, GRID, presence=True).read(Window(0, 0, 60, 80))
    assert int((found == 1).sum()) == 400 and set(np.unique(found)) == {1, NO_CODE}


def test_the_identity_names_every_file(tmp_path: Path) -> None:
    path = features(tmp_path / "l.gpkg", {SQUARE: 3})
    with open_labels(path, GRID, SCHEME) as labels:
        (identity,) = labels.identity()
    assert identity["name"] == "l.gpkg" and identity["bytes"] == Path(path).stat().st_size
    assert len(identity["sha256"]) == 64


DATELINE = {
    # The square of two degrees around longitude 180, or 20 km of it in metres.
    "metres": GridSpec(CRS.from_epsg(32760), Affine(100, 0, 809_000, 0, -100, 8_130_000), 200, 200),
    "degrees": GridSpec(CRS.from_epsg(4326), Affine(1e-3, 0, 179.9, 0, -1e-3, -16.9), 200, 200),
    "west of 180": GridSpec(CRS.from_epsg(4326), Affine(1e-3, 0, -180, 0, -1e-3, -16.9), 200, 100),
}


@pytest.mark.parametrize("name", DATELINE)
@pytest.mark.parametrize("ending", ["gpkg", "fgb", "shp", "geojson", "parquet"])
@pytest.mark.parametrize("turn", [0, 360])
def test_labels_beside_longitude_180_are_read_however_it_is_counted(
    tmp_path: Path, name: str, ending: str, turn: int
) -> None:
    east, west = box(179.92, -17.05, 179.98, -16.95), box(-179.98 + turn, -17.05, -179.93 + turn, -16.95)
    both = shapely.MultiPolygon(
        [box(179.99, -17.05, 180, -16.95), box(turn - 180, -17.05, turn - 179.99, -16.95)]
    )
    frame = geopandas.GeoDataFrame({"code": [1, 2, 3]}, geometry=[east, west, both], crs=4326)
    path = tmp_path / f"labels.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_file(path)
    grid = DATELINE[name]
    codes = VectorCodes(str(path), grid, "code")
    parts = [codes.read(square) for square in squares_of(grid.extent, 100)]
    found = np.concatenate([part.ravel() for part in parts])
    # What lies where, from the degrees of each pixel's centre.
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    xs, ys = grid.transform @ np.array([cols.ravel(), rows.ravel()])
    lons, lats = (np.array(part) for part in transform(grid.crs, CRS.from_epsg(4326), xs, ys))
    lons = lons % 360
    expected = np.full(lons.shape, NO_CODE)
    tall = (lats > -17.05) & (lats < -16.95)
    for code, left, right in ((1, 179.92, 179.98), (2, 180.02, 180.07), (3, 179.99, 180.01)):
        expected[tall & (lons > left) & (lons < right)] = code
    for code in (1, 2, 3):
        there = (expected == code).sum()
        assert (found == code).sum() == pytest.approx(there, rel=0.02, abs=2), code
    losses = codes.losses()
    assert losses.features == 3 and losses.outside == (name == "west of 180")
