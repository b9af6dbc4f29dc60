"""Names of layers mean what their producers mean, in every format; numbers that count layers mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.transform import from_origin

from lulc.config import InputConfig
from lulc.core.schema import BANDS, InputError
from lulc.core.windows import Window
from lulc.rasters.names import SENTINEL_BANDS, canonical_name, name_from_file, name_layers, uncounted
from lulc.rasters.scenes import find_scenes
from lulc.rasters.sources import open_source
from lulc.rasters.stack import open_stack

GRID = from_origin(500000, 6700000, 10, 10)
COMMON = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "swir16", "swir22")
L1C = SENTINEL_BANDS
L2A_BY_RESOLUTION = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")


def numbers(count: int) -> np.ndarray:
    """Reflectance x 10000 uint16 (count, 8, 8) in which every band has numbers of its own."""
    rng = np.random.default_rng(0)
    return (300 + 200 * np.arange(count)[:, None, None] + rng.integers(0, 100, (count, 8, 8))).astype(
        "uint16"
    )


def tif(path: Path, data: np.ndarray, names: Any = (), tags: Any = ()) -> str:
    with rasterio.open(path, "w", driver="GTiff", count=len(data), height=8, width=8, dtype=data.dtype,
                       crs="EPSG:3067", transform=GRID) as file:  # fmt: skip
        file.write(data)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)
        for i, own in enumerate(tags, 1):
            file.update_tags(i, **own)
    return str(path)


def dataset(variables: dict[str, Any], **coordinates: Any) -> xr.Dataset:
    coordinates |= {"y": 6699995.0 - 10 * np.arange(8), "x": 500005.0 + 10 * np.arange(8)}
    data = xr.Dataset(variables, coordinates)
    data["spatial_ref"] = ((), 0, {"crs_wkt": rasterio.crs.CRS.from_epsg(3067).to_wkt()})
    for name in variables:
        data[name].attrs["grid_mapping"] = "spatial_ref"
    return data


def names_of(path: str | Path) -> tuple[str | None, ...]:
    with open_source(path) as source:
        return source.names


def bands_of(path: str, names: Any = ()) -> np.ndarray:
    with open_stack([path], [], InputConfig(band_names=tuple(names)), channels=BANDS) as stack:
        return np.moveaxis(stack.read(stack.grid.extent), -1, 0)


# What texts mean


@pytest.mark.parametrize(("text", "band"), [
    *zip((*COMMON, "coastal", "nir08", "nir09", "cirrus"), (*BANDS, "B01", "B8A", "B09", "B10"), strict=True),
    ("Blue (490 nm)", "B02"), ("SWIR 1 - 1610nm", "B11"), ("RED_EDGE_2", "B06"), ("NIR_Narrow", "B8A"),
    ("Broad Near Infrared", "B08"), ("sr_green", "B03"), ("B8A", "B8A"), ("b02_10m", "B02"),
    ("Band 11 SWIR", "B11"),
    ("BOA reflectance from MSI acquisition at spectral band b05 704.1 nm", "B05"),
    # Not clear, or something else.
    ("rededge", None), ("swir", None), ("near infrared", None), ("red mask", None), ("SR_B5", None),
    ("AOT", None), ("sur_refl_b02", None), ("sur_refl_b02_1", None), ("MOD09A1 B02", None),
    ("B02 to B03", "B02"), ("ratio of B03 and B04", None), ("", None), (None, None),
])  # fmt: skip
def test_a_text_names_one_band_or_none(text: str | None, band: str | None) -> None:
    assert canonical_name(text) == band


@pytest.mark.parametrize(("name", "band"), [
    ("T35VLG_20200701T100031_B8A_20m.jp2", "B8A"), ("nir08.tif", "B8A"),
    ("S2A_35VLG_20200701_0_L2A_red.tif", "B04"),
    ("mosaic_red_edge_1_2020.tif", "B05"), ("rededge2_20m.tif", "B06"), ("redwood.tif", None),
    ("LC08_L2SP_188017_20200701_20200913_02_T1_SR_B5.TIF", None),
    ("HLS.L30.T35VLG.2020183T094521.v2.0.B05.tif", None),
    ("HLS.S30.T35VLG.2020183T094521.v2.0.B05.tif", "B05"), ("B02_B03.tif", None), ("ndvi_2020.tif", "NDVI"),
])  # fmt: skip
def test_a_file_name_names_one_band_or_none(name: str, band: str | None) -> None:
    assert name_from_file(name) == band


@pytest.mark.parametrize(
    "form", ["b{}", "B{}", "band_data_{}", "Band {}", "GDAL Band Number {}", "layer{:02d}", "{}"]
)
@pytest.mark.parametrize("start", [0, 1])
def test_numbers_that_count_layers_name_nothing(form: str, start: int) -> None:
    counted = [form.format(i) for i in range(start, start + 12)]
    assert uncounted(counted) == [None] * 12
    assert set(name_layers([[text] for text in counted])).isdisjoint(SENTINEL_BANDS)


def test_numbers_before_names_are_taken_off_and_others_are_part_of_the_name() -> None:
    assert name_layers([[f"Band {i}: {n}"] for i, n in enumerate(L1C, 1)]) == L1C
    assert name_layers([[f"{i} - {n}"] for i, n in enumerate(COMMON, 1)]) == BANDS
    assert name_layers([["swir1"], ["swir2"]]) == ("B11", "B12")
    assert name_layers([["rededge1"], ["rededge2"], ["rededge3"]]) == ("B05", "B06", "B07")
    assert name_layers([["B01"], ["B02"], ["B03"], ["B04"]]) == L1C[:4], "two digits where one would do"
    assert name_layers([["Band 2"], ["Band 3"], ["Band 4"], ["Band 8"]]) == ("B02", "B03", "B04", "B08")


# GeoTIFF


def test_counted_layers_of_a_geotiff_are_refused_or_named_by_the_option(tmp_path: Path) -> None:
    data = numbers(12)
    path = tif(tmp_path / "a.tif", data, [f"b{i}" for i in range(1, 13)])
    with pytest.raises(InputError, match="missing; found") as error:
        bands_of(path)
    assert "--band-names" in (error.value.hint or "")
    order = [L2A_BY_RESOLUTION.index(name) for name in BANDS]
    np.testing.assert_array_equal(bands_of(path, L2A_BY_RESOLUTION), data[order])


def test_long_and_common_names_in_the_metadata_of_layers_count(tmp_path: Path) -> None:
    data = numbers(9)
    for key in ("long_name", "common_name", "BANDNAME"):
        path = tif(tmp_path / f"{key.replace(':', '')}.tif", data, [f"b{i}" for i in range(1, 10)],
                   [{key: name} for name in COMMON])  # fmt: skip
        assert names_of(path) == BANDS


def test_the_option_may_use_common_names_and_must_not_contradict_the_file(tmp_path: Path) -> None:
    data = numbers(9)
    np.testing.assert_array_equal(bands_of(tif(tmp_path / "a.tif", data), COMMON), data)
    named = tif(tmp_path / "b.tif", data, COMMON)
    np.testing.assert_array_equal(bands_of(named, BANDS), data)
    with pytest.raises(InputError, match="fit neither") as error:
        bands_of(named, BANDS[::-1])
    assert "B02, B03" in error.value.problem
    half = tif(tmp_path / "c.tif", data, [*COMMON[:3], *"defghi"])
    np.testing.assert_array_equal(bands_of(half, BANDS), data), "one for each layer, agreeing with the named"
    np.testing.assert_array_equal(bands_of(half, BANDS[3:]), data), "one for each unnamed layer"


def test_files_called_by_common_names_make_one_scene(tmp_path: Path) -> None:
    paths = [tif(tmp_path / f"S2_2020_{name}.tif", numbers(1)) for name in COMMON]
    assert find_scenes(paths) == [tuple(paths)]
    with open_stack(paths, [], InputConfig(), channels=BANDS) as stack:
        assert stack.channels == BANDS


# NetCDF and Zarr


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_cubes_of_common_names_are_read_by_name(tmp_path: Path, suffix: str) -> None:
    data = numbers(9)
    cube = dataset({name: (("y", "x"), plane) for name, plane in zip(COMMON, data, strict=True)})
    path = tmp_path / f"a.{suffix}"
    cube.to_netcdf(path) if suffix == "nc" else cube.to_zarr(path)
    np.testing.assert_array_equal(bands_of(str(path)), data)
    np.testing.assert_array_equal(bands_of(str(path), BANDS), data)


def test_variables_of_a_netcdf_file_keep_the_order_of_the_file(tmp_path: Path) -> None:
    data = numbers(9)
    strange = ["visible_z", "visible_a", "q", "m_10", "m_9", "k", "zz", "aa", "b"]
    cube = dataset({name: (("y", "x"), plane) for name, plane in zip(strange, data, strict=True)})
    cube.to_netcdf(tmp_path / "a.nc")
    assert names_of(tmp_path / "a.nc") == tuple(strange)
    np.testing.assert_array_equal(bands_of(str(tmp_path / "a.nc"), BANDS), data)
    cube.to_zarr(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="have no order") as error:
        bands_of(str(tmp_path / "a.zarr"), BANDS)
    assert "rename" in (error.value.hint or "")


def test_counted_variables_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    data = numbers(12)
    cube = dataset({f"band_data_{i}": (("y", "x"), plane) for i, plane in enumerate(data, 1)})
    cube.to_zarr(tmp_path / "a.zarr")
    order = [L2A_BY_RESOLUTION.index(name) for name in BANDS]
    np.testing.assert_array_equal(bands_of(str(tmp_path / "a.zarr"), L2A_BY_RESOLUTION), data[order])


@pytest.mark.parametrize("labels", [
    np.array(BANDS), np.array(BANDS, "S3"), np.array(BANDS, object),
])  # fmt: skip
def test_band_labels_are_read_from_any_kind_of_string(tmp_path: Path, labels: np.ndarray) -> None:
    data = numbers(9)
    cube = dataset({"s2": (("band", "y", "x"), data)}, band=labels)
    for path in (tmp_path / "a.nc", tmp_path / "a.zarr"):
        cube.to_netcdf(path) if path.suffix == ".nc" else cube.to_zarr(path)
        np.testing.assert_array_equal(bands_of(str(path)), data)


def test_names_beside_a_numbered_band_dimension_count(tmp_path: Path) -> None:
    data = numbers(9)
    beside = dataset({"s2": (("band", "y", "x"), data)}, band=np.arange(1, 10))
    beside = beside.assign_coords(common_name=("band", np.array(COMMON)))
    beside.to_netcdf(tmp_path / "a.nc")
    assert names_of(tmp_path / "a.nc") == BANDS
    listed = dataset({"band_data": (("band", "y", "x"), data)}, band=np.arange(1, 10))
    listed["band_data"].attrs["long_name"] = list(COMMON)
    listed.to_netcdf(tmp_path / "b.nc")
    assert names_of(tmp_path / "b.nc") == BANDS
    listed["band_data"].attrs["long_name"] = "surface reflectance"
    listed.to_netcdf(tmp_path / "c.nc")
    assert set(names_of(tmp_path / "c.nc")) == {None}
    np.testing.assert_array_equal(bands_of(str(tmp_path / "c.nc"), BANDS), data)


def test_long_names_of_variables_count_and_those_that_count_do_not(tmp_path: Path) -> None:
    data = numbers(9)
    cube = dataset({f"Band{i}": (("y", "x"), plane) for i, plane in enumerate(data, 1)})
    for i, name in enumerate(COMMON, 1):
        cube[f"Band{i}"].attrs["long_name"] = name
    cube.to_netcdf(tmp_path / "a.nc")
    np.testing.assert_array_equal(bands_of(str(tmp_path / "a.nc")), data)
    for i in range(1, 10):
        cube[f"Band{i}"].attrs["long_name"] = f"GDAL Band Number {i}"
    cube.to_netcdf(tmp_path / "b.nc")
    with open_source(tmp_path / "b.nc") as source:
        assert set(source.names).isdisjoint(SENTINEL_BANDS)
        assert source.read([8], Window(0, 0, 1, 1))[0, 0, 0] == data[8, 0, 0]


@pytest.mark.parametrize("how", ["coordinate", "attribute", "flags", "characters"])
def test_names_of_bands_are_read_wherever_text_about_each_band_stands(tmp_path: Path, how: str) -> None:
    data, names = numbers(9)[::-1], BANDS[::-1]
    cube = dataset({"s2": (("band", "y", "x"), data)}, band=np.arange(9))
    if how == "coordinate":
        cube = cube.assign_coords(wavelength_name=("band", np.array(names)))
    elif how == "attribute":
        cube["s2"].attrs["band_names"] = ", ".join(names)
    elif how == "flags":
        cube["band"].attrs = {"flag_values": np.arange(9), "flag_meanings": " ".join(names)}
    else:
        cube = cube.assign_coords(label=("band", np.array([n.ljust(6) for n in names], "S6")))
    cube.to_netcdf(tmp_path / "a.nc")
    np.testing.assert_array_equal(bands_of(str(tmp_path / "a.nc")), data[::-1])


@pytest.mark.parametrize(("name", "values", "attributes"), [
    ("zz", [180.0, 190.0], {"units": "days since 2020-01-01", "calendar": "360_day"}),
    ("zz", [0.0, 1.0], {"standard_name": "time"}), ("zz", [0.0, 1.0], {"axis": "T"}),
    ("zz", np.array([20200601, 20200701]), {}), ("year", np.array([2019, 2020]), {}),
    ("acquired", np.array(["20200601T101010", "20200701T101010"]), {}), ("time", None, {}),
])  # fmt: skip
def test_dates_along_a_dimension_are_no_bands(
    tmp_path: Path, name: str, values: Any, attributes: Any
) -> None:
    cube = dataset(
        {
            band: ((name, "y", "x"), np.stack([plane] * 2))
            for band, plane in zip(BANDS, numbers(9), strict=True)
        }
    )
    if values is not None:
        cube = cube.assign_coords({name: (name, values, attributes)})
    for path in (tmp_path / "a.nc", tmp_path / "a.zarr"):
        cube.to_netcdf(path) if path.suffix == ".nc" else cube.to_zarr(path)
        with pytest.raises(InputError, match="of one date") as error:
            bands_of(str(path))
        assert error.value.hint == f"Choose one date first: dataset.isel({name}=0)"


def test_band_numbers_of_six_and_eight_digits_that_are_no_dates_are_bands(tmp_path: Path) -> None:
    data = numbers(9)
    for codes in (201205 + np.arange(9), 20201301 + np.arange(9)):
        dataset({"s2": (("band", "y", "x"), data)}, band=codes).to_netcdf(tmp_path / "a.nc")
        np.testing.assert_array_equal(bands_of(str(tmp_path / "a.nc"), BANDS), data)
