"""Whatever a file names lies below its own folder or is refused, and what it declares is bounded."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import struct
from pathlib import Path

import geopandas
import h5py
import netCDF4
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from rasterio.crs import CRS

from lulc.core import budgets
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters import guards
from lulc.rasters.sources import open_source
from lulc.rasters.vectors import VectorCodes, read_features

SIDE = 32
TRANSFORM = Affine(10, 0, 500000, 0, -10, 6800000)
UTM = "EPSG:32635"
GRIDS = (
    'BOUNDCRS[SOURCECRS[{crs}],TARGETCRS[{target}],ABRIDGEDTRANSFORMATION["shift",METHOD["NTv2",'
    'ID["EPSG",9615]],PARAMETERFILE["Latitude and longitude difference file","/etc/hostname"]]]'
)
"""CRS in WKT that shifts by a file."""


def write(path: Path, count: int = 2, **options: object) -> Path:
    profile = {"driver": "GTiff", "dtype": "uint16", "crs": UTM, "transform": TRANSFORM}
    profile |= {"height": SIDE, "width": SIDE, "count": count, **options}
    with rasterio.open(path, "w", **profile) as target:
        if profile["height"] == SIDE:
            target.write(np.ones((count, SIDE, SIDE), profile["dtype"]))
    return path


def polygons(path: Path, **columns: object) -> Path:
    frame = geopandas.GeoDataFrame(
        {"code": [1, 2], **columns}, geometry=[shapely.box(500000, 6799800, 500200, 6800000)] * 2, crs=UTM
    )
    frame.to_file(path, engine="pyogrio")
    return path


def burn(path: Path) -> np.ndarray:
    grid = GridSpec(CRS.from_string(UTM), TRANSFORM, SIDE, SIDE)
    return VectorCodes(str(path), grid, "code").read(grid.extent)


@pytest.mark.parametrize(
    "text",
    [
        GRIDS,
        'PROJCS["x",EXTENSION["PROJ4","+proj=utm +zone=35 +nadgrids=/etc/hostname"]]',
        "+proj=longlat +nadgrids=../x.gsb,null",
        "+proj=pipeline +step +proj=hgridshift +grids=/etc/hostname",
        "+proj=vgridshift +grids = x.tif",
        "+proj=tinshift +file=/etc/hostname",
        "+proj=defmodel +model=/etc/hostname",
        "+init=/etc/hostname:1",
        'METHOD["PROJ-based operation method: +proj=hgridshift +grids=x"]',
    ],
)
def test_a_crs_that_names_a_file_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="names files of grids"):
        guards.check_crs(text, "a.tif")


@pytest.mark.parametrize("code", [3067, 3857, 4326, 2393, 27700, 2154, 5514])
def test_honest_crs_are_admitted(code: int) -> None:
    for version in ("WKT1_GDAL", "WKT2_2019", "WKT1_ESRI"):
        guards.check_crs(CRS.from_epsg(code).to_wkt(version=version), "a.tif")
    guards.check_crs('EXTENSION["PROJ4","+proj=merc +a=6378137 +nadgrids=@null +wktext +no_defs"]', "a.tif")
    guards.check_crs("+proj=longlat +nadgrids=null +no_defs", "a.tif")


def test_a_side_car_and_a_layer_with_grids_are_refused(tmp_path: Path) -> None:
    utm = CRS.from_string(UTM).to_wkt(version="WKT2_2019")
    shifted = GRIDS.format(crs=utm, target=CRS.from_epsg(4326).to_wkt(version="WKT2_2019"))
    raster = write(tmp_path / "a.tif")
    raster.with_name("a.tif.aux.xml").write_text(f"<PAMDataset><SRS>{shifted}</SRS></PAMDataset>")
    with pytest.raises(InputError, match="names files of grids"):
        open_source(raster)
    layer = polygons(tmp_path / "a.gpkg")
    with sqlite3.connect(layer) as database:
        database.execute(
            "UPDATE gpkg_spatial_ref_sys SET definition = ?, organization = 'x' WHERE srs_id = 32635",
            ('PROJCS["x",EXTENSION["PROJ4","+proj=utm +zone=35 +nadgrids=/etc/hostname"]]',),
        )
    database.close()
    with pytest.raises(InputError):
        burn(layer)


TRICKS: dict[str, tuple[str, ...]] = {
    "a view": (
        "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT * FROM n",
    ),
    "generated column": ("CREATE TABLE g(a, b AS (zeroblob(2000000000)))",),
    # Not every SQLite has the module, and a file need not be written by one.
    "a virtual table of fts5": (
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) "
        "VALUES ('table', 'words', 'words', 0, 'CREATE VIRTUAL TABLE words USING fts5(a)')",
    ),
}


@pytest.mark.parametrize("what", list(TRICKS))
def test_a_geopackage_that_computes_is_refused(what: str, tmp_path: Path) -> None:
    path = polygons(tmp_path / "a.gpkg")
    with sqlite3.connect(path) as database:
        for statement in TRICKS[what]:
            database.execute(statement)
    database.close()
    with pytest.raises(InputError, match=what) as caught:
        burn(path)
    assert "a.gpkg" in caught.value.problem


def test_an_honest_geopackage_is_read_with_all_its_fields(tmp_path: Path) -> None:
    path = polygons(tmp_path / "a.gpkg", name=["ä", None], share=[0.5, np.nan])
    frame = read_features(str(path))
    assert list(frame["code"]) == [1, 2] and frame["name"].fillna("none").tolist() == ["ä", "none"]
    assert frame["share"][1] == 0.5 and np.isnan(frame["share"][2])
    assert frame.crs == UTM and frame.geometry.area.tolist() == [40000.0, 40000.0]
    assert (burn(path)[:20, :20] == 2).all()


def test_a_damaged_crs_of_a_shapefile_is_refused(tmp_path: Path) -> None:
    path = polygons(tmp_path / "a.shp")
    honest = path.with_suffix(".prj").read_text()
    path.with_suffix(".prj").write_text(honest.replace("6378137", "68137"))
    with pytest.raises(InputError, match="CRS can't be converted"):
        burn(path)


def test_a_layer_with_many_fields_is_refused(tmp_path: Path) -> None:
    fields = {f"f{i}": [1, 2] for i in range(budgets.FIELDS + 1)}
    path = polygons(tmp_path / "a.geojson", **fields)
    with pytest.raises(InputError, match="fields"):
        burn(path)


def cube(path: Path, **sizes: int) -> Path:
    """A NetCDF file whose dimensions are declared and never written."""
    with netCDF4.Dataset(path, "w") as data:
        for name, size in ({"y": 10, "x": 10} | sizes).items():
            data.createDimension(name, size)
            data.createVariable(name, "f8", (name,), zlib=True, chunksizes=(min(size, 1000),))
        data.createVariable("B02", "u2", (*sorted(sizes.keys() - {"x", "y"}), "y", "x"), zlib=True)
    return path


def test_a_cube_that_declares_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at most 2000000 along"):
        open_source(cube(tmp_path / "long.nc", x=200_000_000))
    with pytest.raises(InputError, match=r"'band'|layers"):
        open_source(cube(tmp_path / "bands.nc", band=1_900_000))


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_chunk_that_is_too_large_is_refused(version: int, tmp_path: Path) -> None:
    data = xr.Dataset(
        {"B02": (("y", "x"), np.ones((8, 8), "u2"))}, {"x": np.arange(8.0), "y": np.arange(8.0)}
    )
    path = tmp_path / "a.zarr"
    data.to_zarr(path, zarr_format=version, consolidated=False)
    document = path / "B02" / (".zarray" if version == 2 else "zarr.json")
    told = json.loads(document.read_text())
    told["shape"] = [40_000, 40_000]
    if version == 2:
        told["chunks"] = [40_000, 40_000]
    else:
        told["chunk_grid"]["configuration"]["chunk_shape"] = [40_000, 40_000]
    document.write_text(json.dumps(told))
    with pytest.raises(InputError, match="has chunks of 3,052 MiB"):
        open_source(path)


@pytest.mark.integration
def test_a_chunk_that_unpacks_to_more_than_it_says_costs_its_own_process_alone(tmp_path: Path) -> None:
    import zlib

    data = xr.Dataset(
        {"B02": (("y", "x"), np.ones((8, 8), "u2"))}, {"x": np.arange(8.0), "y": np.arange(8.0)}
    )
    data["B02"].attrs["crs"] = UTM
    path = tmp_path / "a.zarr"
    data.to_zarr(path, zarr_format=2, consolidated=False)
    document = path / "B02" / ".zarray"
    told = json.loads(document.read_text()) | {"compressor": {"id": "zlib", "level": 1}}
    document.write_text(json.dumps(told))
    bomb = zlib.compressobj(9)
    content = b"".join(bomb.compress(bytes(2**24)) for _ in range(96)) + bomb.flush()
    (path / "B02" / "0.0").write_bytes(content)
    with open_source(path) as source, pytest.raises(InputError, match=r"a\.zarr"):
        source.read([0], Window(0, 0, 8, 8))


def test_an_overview_with_giant_blocks_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", 1, dtype="uint8", compress="deflate", tiled=True, blockxsize=16,
                 blockysize=16)  # fmt: skip
    with rasterio.open(path, "r+") as target:
        target.build_overviews([2])
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", content, second)
    for place in range(second + 2, second + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, place)[0] in (322, 323):
            struct.pack_into("<H", content, place + 8, 40_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match="directory 1 have 1,526 MiB"):
        open_source(path)


@pytest.mark.parametrize("spelt", ["none", "0 255", "1e400", "-"])
def test_a_no_data_tag_that_no_number_can_mean_is_named(
    spelt: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tif", nodata=12345)
    content = path.read_bytes()
    assert content.count(b"12345\0") == 1
    path.write_bytes(content.replace(b"12345\0", spelt.encode().ljust(6, b"\0")))
    with caplog.at_level(logging.WARNING, "lulc"), open_source(path) as source:
        assert source.nodata == (None, None)
    assert f"no-data tag '{spelt}'" in caplog.text and caplog.text.count("of band 1") == 1


def test_an_honest_no_data_tag_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, dtype, value in (("a", "uint16", 0), ("b", "float32", float("nan")), ("c", "float32", -3.4e38)):
        with open_source(write(tmp_path / f"{name}.tif", dtype=dtype, nodata=value)) as source:
            assert np.float32(source.nodata[0]) == np.float32(value) or value != value
    assert "not used" not in caplog.text


def test_links_in_hdf5_are_refused(tmp_path: Path) -> None:
    for name, link in (("a", h5py.ExternalLink("/etc/hostname", "/x")), ("b", h5py.SoftLink("/y"))):
        path = cube(tmp_path / f"{name}.nc")
        with h5py.File(path, "r+") as file:
            file["elsewhere"] = link
        with pytest.raises(InputError, match="elsewhere"):
            open_source(path)


def test_giant_attributes_are_refused(tmp_path: Path) -> None:
    path = cube(tmp_path / "a.nc")
    with h5py.File(path, "r+", libver="latest") as file:
        file["B02"].attrs["words"] = np.zeros(2_500_000)
    with pytest.raises(InputError, match="'B02' in it is described by more"):
        open_source(path)


def test_a_name_with_a_line_break_forges_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nerror: all is well.tif"
    path.write_bytes(b"no raster")
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert not any(line.startswith("error") for line in str(caught.value).splitlines())


def test_trust_lifts_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budgets.TRUST, "1")
    guards.check_array("a.nc", "x", [3_000_000], None, 8)
    guards.check_size("a", layers=5000, height=9, width=9, layer_bytes=1, block_bytes=2**30, stored_bytes=9)


def test_the_table_of_limits_is_that_of_the_code() -> None:
    text = (Path(__file__).resolve().parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([A-Z_]+)`: .* \| ([\d,]+) \|$", text, re.MULTILINE))
    limits = {name: value for name, value in vars(budgets).items() if name.isupper() and name != "MIB"}
    assert {name: f"{value:,}" for name, value in limits.items() if isinstance(value, int)} == told
