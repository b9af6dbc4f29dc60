"""Pixels lie where coordinates, transforms and CRS say, as CF and GDAL mean them; else they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from lulc.core.grid import GridSpec, settled_crs
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.windows import Window
from lulc.maps.geotiff import MapProfile
from lulc.rasters.alignment import Alignment
from lulc.rasters.sources import open_source

GRID = from_origin(500000, 6700000, 10, 10)
UTM = CRS.from_epsg(32635)
HEIGHT, WIDTH = 6, 4
VALUES = np.arange(1, HEIGHT * WIDTH + 1, dtype="uint16").reshape(HEIGHT, WIDTH)
CENTRES_X = 500005.0 + 10 * np.arange(WIDTH)
CENTRES_Y = 6699995.0 - 10 * np.arange(HEIGHT)
LEGEND = Legend("test", (LandCoverClass(1, "A", "#102030"), LandCoverClass(2, "B", "#302010")))


def cube(path: Path, x: Any = CENTRES_X, y: Any = CENTRES_Y, /, crs: Any = UTM, **attributes: Any) -> str:
    """A file of one band; attributes of x, y, mapping and variable are given as dictionaries."""
    mapping = {"crs_wkt": crs.to_wkt()} if isinstance(crs, CRS) else crs
    data = xr.Dataset(
        {"B04": (("y", "x"), VALUES, {"grid_mapping": "crs", **attributes.get("variable", {})})},
        {"x": ("x", x, attributes.get("x", {})), "y": ("y", y, attributes.get("y", {}))},
    )
    data["crs"] = ((), 0, {**mapping, **attributes.get("mapping", {})})
    for name, values in attributes.get("bounds", {}).items():
        data[name] = ((name[0], "edge"), values)
    data.to_netcdf(path) if path.suffix == ".nc" else data.to_zarr(path)
    return str(path)


def tif(path: Path, transform: Affine) -> None:
    size = {"count": 1, "height": HEIGHT, "width": WIDTH, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", crs=UTM, transform=transform, **size) as file:
        file.write(VALUES[None])


def read(path: str) -> tuple[Affine, np.ndarray]:
    with open_source(path) as source:
        return source.grid.transform, source.read([0], source.grid.extent)[0]


def check(path: str, transform: Affine = GRID, values: np.ndarray = VALUES) -> None:
    found, array = read(path)
    assert found == transform
    np.testing.assert_array_equal(array, values)


# Coordinates


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_packed_coordinates_are_unpacked(tmp_path: Path, suffix: str) -> None:
    check(cube(
        tmp_path / f"a.{suffix}", np.arange(WIDTH, dtype="int16"), np.arange(HEIGHT, dtype="int16"),
        x={"scale_factor": 10.0, "add_offset": 500005.0}, y={"scale_factor": -10.0, "add_offset": 6699995.0},
    ))  # fmt: skip


@pytest.mark.parametrize(("units", "factor"), [("km", 1000), ("kilometres", 1000), ("m", 1), ("ft", 0.3048)])
def test_coordinates_in_other_lengths_are_converted(tmp_path: Path, units: str, factor: float) -> None:
    found, _ = read(cube(tmp_path / "a.nc", CENTRES_X / factor, CENTRES_Y / factor,
                         x={"units": units}, y={"units": units}))  # fmt: skip
    assert found.almost_equals(GRID, precision=1e-6)


def test_coordinates_in_radians_are_converted_and_unknown_units_are_refused(tmp_path: Path) -> None:
    degrees = CRS.from_epsg(4326)
    x, y = 26 + 0.001 * (np.arange(WIDTH) + 0.5), 61 - 0.001 * (np.arange(HEIGHT) + 0.5)
    path = cube(
        tmp_path / "a.nc", np.radians(x), np.radians(y), crs=degrees, x={"units": "rad"}, y={"units": "rad"}
    )
    assert read(path)[0].almost_equals(from_origin(26, 61, 0.001, 0.001), precision=1e-9)
    for crs, units in ((UTM, "degrees_east"), (UTM, "parsec"), (degrees, "km")):
        with pytest.raises(InputError, match=f"coordinates are in '{units}'"):
            open_source(cube(tmp_path / "b.nc", crs=crs, x={"units": units}, y={"units": units}))


def test_rows_from_the_south_and_columns_from_the_east_are_turned(tmp_path: Path) -> None:
    check(cube(tmp_path / "a.nc", CENTRES_X[::-1], CENTRES_Y[::-1]), values=VALUES[::-1, ::-1])


def test_longitudes_beyond_180_are_those_of_the_west(tmp_path: Path) -> None:
    x, y = 334 + 0.001 * (np.arange(WIDTH) + 0.5), 37 - 0.001 * (np.arange(HEIGHT) + 0.5)
    found, _ = read(cube(tmp_path / "a.nc", x, y, crs=CRS.from_epsg(4326)))
    assert found.almost_equals(from_origin(-26, 37, 0.001, 0.001), precision=1e-9)


@pytest.mark.parametrize(("first", "left"), [(179.998, 179.998), (359.998, -0.002)])
def test_longitudes_that_begin_anew_inside_a_file_run_on(tmp_path: Path, first: float, left: float) -> None:
    x = first + 0.001 * (np.arange(WIDTH) + 0.5)
    x = np.where(x >= 180, x - 360, x) if first < 180 else x % 360
    y = 37 - 0.001 * (np.arange(HEIGHT) + 0.5)
    found, values = read(cube(tmp_path / "a.nc", x, y, crs=CRS.from_epsg(4326)))
    assert found.almost_equals(from_origin(left, 37, 0.001, 0.001), precision=1e-9)
    np.testing.assert_array_equal(values, VALUES)


def test_a_geotiff_beyond_180_degrees_lies_in_the_west(tmp_path: Path) -> None:
    size = {"count": 1, "height": HEIGHT, "width": WIDTH, "dtype": "uint16", "crs": "EPSG:4326"}
    with rasterio.open(tmp_path / "a.tif", "w", transform=from_origin(334, 37, 0.001, 0.001), **size) as file:
        file.write(VALUES[None])
    check(str(tmp_path / "a.tif"), from_origin(-26, 37, 0.001, 0.001))


def test_bounds_of_pixels_come_before_their_coordinates(tmp_path: Path) -> None:
    edges = {
        "x_bnds": np.stack([CENTRES_X - 5, CENTRES_X + 5], 1),
        "y_bnds": np.stack([CENTRES_Y - 5, CENTRES_Y + 5], 1),
    }
    check(cube(tmp_path / "a.nc", CENTRES_X - 5, CENTRES_Y + 5, bounds=edges,
               x={"bounds": "x_bnds"}, y={"bounds": "y_bnds"}))  # fmt: skip


# Corners and centres

DECLARED = {
    "GeoTransform": {"mapping": {"GeoTransform": "500000 10 0 6700000 0 -10"}},
    "transform": {"variable": {"transform": [10.0, 0.0, 500000.0, 0.0, -10.0, 6700000.0]}},
    "nine terms": {"variable": {"transform": [10.0, 0.0, 500000.0, 0.0, -10.0, 6700000.0, 0.0, 0.0, 1.0]}},
    "text": {"variable": {
        "transform": "| 10.00, 0.00, 500000.00|\n| 0.00,-10.00, 6700000.00|\n| 0.00, 0.00, 1.00|"
    }},
    "proj:transform": {"variable": {"proj:transform": [10, 0, 500000, 0, -10, 6700000]}},
    "i2m": {"mapping": {"i2m": "10.0,0.0,0.0,-10.0,500000.0,6700000.0"}},
}  # fmt: skip


@pytest.mark.parametrize("how", DECLARED)
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_declared_transform_tells_corners_from_centres(tmp_path: Path, suffix: str, how: str) -> None:
    check(cube(tmp_path / f"centre.{suffix}", **DECLARED[how]))
    check(cube(tmp_path / f"corner.{suffix}", CENTRES_X - 5, CENTRES_Y + 5, **DECLARED[how]))


@pytest.mark.parametrize("how", DECLARED)
def test_a_part_that_was_cut_out_lies_where_its_own_coordinates_say(tmp_path: Path, how: str) -> None:
    moved = GRID @ Affine.translation(2, 3)
    for shift, name in ((0, "centre"), (-5, "corner")):
        path = cube(tmp_path / f"{name}.nc", CENTRES_X + 20 + shift, CENTRES_Y - 30 - shift, **DECLARED[how])
        check(path, moved)


def test_corners_of_rows_from_the_south_are_the_edges_that_the_transform_says(tmp_path: Path) -> None:
    upper = cube(tmp_path / "a.nc", CENTRES_X - 5, CENTRES_Y[::-1] + 5, **DECLARED["GeoTransform"])
    check(upper, values=VALUES[::-1])
    south_up = {"mapping": {"GeoTransform": f"500000 10 0 {6700000 - 10 * HEIGHT} 0 10"}}
    check(cube(tmp_path / "b.nc", CENTRES_X - 5, CENTRES_Y[::-1] - 5, **south_up), values=VALUES[::-1])


def test_a_transform_of_other_pixels_is_out_of_date_and_one_between_is_refused(tmp_path: Path) -> None:
    check(cube(tmp_path / "a.nc", mapping={"GeoTransform": "500000 20 0 6700000 0 -20"}))
    with pytest.raises(InputError, match="expected their centres or corners"):
        open_source(cube(tmp_path / "b.nc", mapping={"GeoTransform": "500003 10 0 6700003 0 -10"}))


def test_a_transform_serves_where_there_are_no_coordinates(tmp_path: Path) -> None:
    path = cube(tmp_path / "a.nc", **DECLARED["GeoTransform"])
    with xr.open_dataset(path, mask_and_scale=False) as data:
        data.drop_vars(["x", "y"]).to_netcdf(tmp_path / "b.nc")
    check(str(tmp_path / "b.nc"))
    with xr.open_dataset(path, mask_and_scale=False) as data:
        data["crs"].attrs["GeoTransform"] = "500000 10 3 6700000 3 -10"
        data.to_netcdf(tmp_path / "c.nc")
    with pytest.raises(InputError, match="rotated"):
        open_source(tmp_path / "c.nc")


# CRS


ETRS89 = (
    'PROJCS["ETRS89 / TM35FIN(E,N)",GEOGCS["ETRS89",DATUM["European_Terrestrial_Reference_System_1989",'
    'SPHEROID["GRS 1980",6378137,298.257222101]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],'
    'AUTHORITY["EPSG","4258"]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",27],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",{east}],'
    'PARAMETER["false_northing",0],UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
    'AUTHORITY["EPSG","3067"]]'
)


def test_one_epsg_code_is_one_crs_whoever_wrote_it(tmp_path: Path) -> None:
    finland = CRS.from_epsg(3067)
    with open_source(cube(tmp_path / "a.nc", crs={"crs_wkt": ETRS89.format(east=500000)})) as source:
        assert source.grid.crs == finland
        assert Alignment(source.grid, GridSpec(finland, GRID, HEIGHT, WIDTH)).kind == "same"
    for code in (3067, 32635, 3035, 4326, 3857, 2154, 5514):
        crs = CRS.from_epsg(code)
        assert settled_crs(CRS.from_wkt(crs.to_wkt(version="WKT2_2019"))) == crs
    stored = GridSpec(finland, GRID, 2, 2).to_json() | {"crs": ETRS89.format(east=500000)}
    assert GridSpec.from_json(stored).crs == finland


def test_a_code_does_not_move_pixels_whose_projection_is_another(tmp_path: Path) -> None:
    with open_source(cube(tmp_path / "a.nc", crs={"crs_wkt": ETRS89.format(east=600000)})) as source:
        assert source.grid.crs != CRS.from_epsg(3067)
        x, _ = rasterio.warp.transform(source.grid.crs, CRS.from_epsg(3067), [600005], [6699995])
        assert x[0] == pytest.approx(500005)


def test_the_crs_is_found_wherever_cf_and_others_write_it(tmp_path: Path) -> None:
    import pyproj

    utm = pyproj.CRS.from_epsg(32635).to_cf()
    utm.pop("crs_wkt")
    degrees = {"x": {"units": "degrees_east"}, "y": {"units": "degrees_north"}}
    x, y = 26 + 0.001 * np.arange(WIDTH), 61 - 0.001 * np.arange(HEIGHT)
    for path, code in (
        (cube(tmp_path / "a.nc", crs=utm), 32635),
        (cube(tmp_path / "b.nc", crs={"spatial_ref": "EPSG:32635"}), 32635),
        (cube(tmp_path / "c.nc", crs={}, variable={"grid_mapping": "crs: x y", "proj:epsg": 32635}), 32635),
        (cube(tmp_path / "d.nc", x, y, crs={}, **degrees), 4326),
    ):  # fmt: skip
        with open_source(path) as source:
            assert source.grid.crs == CRS.from_epsg(code)
    with pytest.raises(InputError, match="no coordinate reference system"):
        open_source(cube(tmp_path / "e.nc", crs={}))


# Side-cars and the map


def test_a_side_car_moves_and_names_a_raster_as_gdal_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tif(path, from_origin(1, 2, 3, 3))
    Path(f"{path}.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:3067</SRS>"
        "<GeoTransform> 5.0e+05, 1.0e+01, 0, 6.7e+06, 0, -1.0e+01</GeoTransform>"
        '<PAMRasterBand band="1"><Description>B04</Description><Scale>0.0001</Scale><Offset>-0.1</Offset>'
        "</PAMRasterBand></PAMDataset>"
    )
    with open_source(path) as source, rasterio.open(path) as seen:
        assert source.grid.transform == seen.transform == GRID
        assert source.grid.crs == CRS.from_epsg(3067) == seen.crs
        assert (source.names, source.scales, source.offsets) == (("B04",), (0.0001,), (-1000.0,))
        before = source.identity()
    damaged = {"<PAMDataset><SRS>": "well-formed", "<!DOCTYPE a><PAMDataset/>": "document type",
               "<PAMDataset><GeoTransform>1, x</GeoTransform></PAMDataset>": "a text instead"}  # fmt: skip
    for text, words in damaged.items():
        Path(f"{path}.aux.xml").write_text(text)
        with pytest.raises(InputError, match=words):
            open_source(path)
    Path(f"{path}.aux.xml").write_text("<PAMDataset><PAMRasterBand band='1'><NoDataValue>3</NoDataValue>"
                                       "</PAMRasterBand></PAMDataset>")  # fmt: skip
    with open_source(path) as source:
        assert source.identity() != before and source.nodata == (3,)


def test_statistics_that_viewers_write_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tif(path, GRID)
    with open_source(path) as source:
        before = source.identity()
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MAXIMUM">24</MDI></Metadata>'
        "</PAMRasterBand></PAMDataset>"
    )
    with open_source(path) as source:
        assert source.identity() == before


ROTATED = {
    "grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
}  # fmt: skip


def test_a_crs_that_no_geotiff_holds_is_refused_before_the_map_is_begun(tmp_path: Path) -> None:
    x, y = 0.001 * (np.arange(WIDTH) + 0.5), -0.001 * (np.arange(HEIGHT) + 0.5)
    with open_source(cube(tmp_path / "a.nc", x, y, crs=ROTATED)) as source:
        grid = source.grid
    moved = CRS.from_wkt(ETRS89.format(east=600000))  # GeoTIFF would keep no more than its code.
    for lost in (grid, GridSpec(moved, GRID, 9, 9)):
        with pytest.raises(InputError, match="GeoTIFF cannot hold its CRS") as error:
            MapProfile(lost, LEGEND, "none", 512)
        assert "--like" in (error.value.hint or "")
    for crs in (UTM, CRS.from_epsg(4326), CRS.from_string("+proj=laea +lat_0=61 +lon_0=26")):
        assert MapProfile(GridSpec(crs, GRID, 9, 9), LEGEND, "none", 512).grid.crs == crs


def test_small_rasters_in_a_large_grid_are_found(tmp_path: Path) -> None:
    large = GridSpec(UTM, GRID, 20_000, 20_000)
    small = GridSpec(UTM, GRID @ Affine.translation(7777, 3333), 3, 3)
    alignment = Alignment(small, large)
    assert alignment.touches()
    values, inside = alignment.nearest(lambda w: np.ones(w.shape, "uint8"), Window(3330, 7770, 10, 12))
    assert inside.sum() == 9 and values[inside].all()
    assert not Alignment(GridSpec(UTM, GRID @ Affine.translation(20_000, 0), 3, 3), large).touches()
