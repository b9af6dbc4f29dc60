"""Files of other archives: names, units, limits and masks of their layers, by sensor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.crs import CRS

import lulc
from lulc.config import InputConfig
from lulc.core.channels import CHANNEL_SETS
from lulc.core.schema import BANDS, InputError
from lulc.core.windows import Window
from lulc.rasters.stack import open_stack

from .test_channel_sets import SIDE, WHOLE, bands, channel_set, read, tif

pytestmark = pytest.mark.integration

SCENE = "LC08_L2SP_190017_20200714_20200912_02_T1"
TILE = "HLS.{}.T35VLG.2020196T095031.v2.0.{}.tif"


def numbers(count: int, low: int, high: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, (count, SIDE, SIDE)).astype(dtype)


# Landsat and HLS


def landsat(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Surface reflectance of collection 2, with the other files of its folder."""
    stored = numbers(7, 7500, 20000)
    stored[:, :4] = 0
    files = [
        tif(folder / f"{SCENE}_SR_B{i + 1}.TIF", stored[i : i + 1], meters=30, nodata=0) for i in range(7)
    ]
    files.append(tif(folder / f"{SCENE}_QA_PIXEL.TIF", numbers(1, 21824, 21825), meters=30, nodata=1))
    files.append(tif(folder / f"{SCENE}_ST_B10.TIF", numbers(1, 30000, 43000), meters=30, nodata=0))
    return stored, files


def test_all_files_of_a_landsat_scene_may_be_given_and_only_unused_ones_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored, files = landsat(tmp_path)
    with caplog.at_level(logging.WARNING, logger="lulc"):
        found = read(files, CHANNEL_SETS["landsat-8-9"])
    expected = (stored.astype(np.float64) * 2.75e-5 - 0.2) * 1e4
    for number, plane in enumerate(found.values()):
        assert np.isnan(plane[:4]).all()
        np.testing.assert_allclose(plane[4:], expected[number][4:], atol=0.01)
    named = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(named) == 2 and "QA_PIXEL" in named[0] and "ST_B10" in named[1]


def test_a_scale_of_the_user_replaces_scale_and_offset_of_the_channel(tmp_path: Path) -> None:
    fractions = (numbers(7, 200, 4000) * 1e-4).astype(np.float32)
    path = tif(tmp_path / "a.tif", fractions, [f"SR_B{i}" for i in range(1, 8)], meters=30)
    with pytest.raises(InputError, match="channel set") as error:
        read([path], CHANNEL_SETS["landsat-8-9"])
    assert error.value.hint.endswith("--scale 1")
    found = read([path], CHANNEL_SETS["landsat-8-9"], scale=1.0)
    np.testing.assert_allclose(found["SR_B4"], 1e4 * fractions[3], rtol=1e-6)


def test_layers_without_names_are_named_in_file_order(tmp_path: Path) -> None:
    path = tif(tmp_path / "stack.tif", numbers(7, 7500, 20000), meters=30, nodata=0)
    with pytest.raises(InputError, match="SR_B7 are missing") as error:
        read([path], CHANNEL_SETS["landsat-8-9"])
    words = error.value.hint.partition("--band-names ")[2].split()
    assert len(read([path], CHANNEL_SETS["landsat-8-9"], band_names=tuple(words))) == 7


@pytest.mark.parametrize(
    ("sensor", "names"),
    [
        ("S30", "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12"),
        ("L30", "B01 B02 B03 B04 B05 B06 B07 B09"),
    ],
)
def test_all_files_of_an_hls_tile_may_be_given(
    sensor: str, names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = numbers(13, 200, 4000, "int16")
    files = {
        name: tif(tmp_path / TILE.format(sensor, name), values[i : i + 1], meters=30, nodata=-9999)
        for i, name in enumerate(names.split())
    }
    fmask = tif(tmp_path / TILE.format(sensor, "Fmask"), numbers(1, 64, 65, "uint8"), meters=30, nodata=255)
    with caplog.at_level(logging.WARNING, logger="lulc"):
        found = read([*files.values(), fmask], CHANNEL_SETS["hls"])
    near, used = ("B8A", "B02 B03 B04 B8A B11 B12") if sensor == "S30" else ("B05", "B02 B03 B04 B05 B06 B07")
    with rasterio.open(files[near]) as file:
        assert np.array_equal(found["HLS_NIR"], file.read(1))
    said = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert not any(files[name] in text for name in used.split() for text in said)
    assert len(said) == len(files) + 1 - 6


# Radar, terrain, embeddings


@pytest.mark.parametrize(
    ("values", "said"),
    [(numbers(1, 20000, 29000, "int16"), "median is 2"), (np.full((1, SIDE, SIDE), -9999, "i2"), "-9999")],
)
def test_elevation_in_another_unit_is_refused(values: np.ndarray, said: str, tmp_path: Path) -> None:
    channels = channel_set(tmp_path, "channels: [B04, elevation]\n")
    given, dem = [bands(tmp_path / "a.tif", 1)], tif(tmp_path / "dem.tif", values)
    with pytest.raises(InputError, match="outside -500 to 9000 m") as error:
        read(given, channels, layers=(dem,))
    assert said in error.value.problem and "scale: 0.3048" in error.value.hint
    feet = channel_set(tmp_path, "channels: [B04, {name: elevation, scale: 0.3048}]\n")
    if values.min() > 0:
        found = read(given, feet, layers=(dem,))["elevation"]
        np.testing.assert_allclose(found, values[0] * 0.3048, rtol=1e-6)


def test_a_few_values_outside_the_limits_are_missing(tmp_path: Path) -> None:
    heights = numbers(1, 90, 120, "int16")
    heights[0, :40] = -32768
    channels = channel_set(tmp_path, "channels: [B04, elevation]\n")
    found = read([bands(tmp_path / "a.tif", 1)], channels, layers=(tif(tmp_path / "dem.tif", heights),))
    assert np.isnan(found["elevation"][:40]).all() and np.array_equal(
        found["elevation"][40:], heights[0, 40:]
    )


def test_what_terrain_lacks_is_told_as_elevation(tmp_path: Path) -> None:
    channels = channel_set(tmp_path, "channels: [B04, elevation, slope]\n")
    path = tif(tmp_path / "heights.tif", numbers(1, 90, 120, "int16"))
    given = [bands(tmp_path / "a.tif", 1)]
    with pytest.raises(InputError, match="since elevation is missing") as error:
        read(given, channels, layers=(path,))
    option = error.value.hint.partition("--layers RASTER; ")[2].partition("--layers ")[2].rstrip(".")
    assert set(read(given, channels, layers=(option.replace("RASTER", path),))) == {
        "B04",
        "elevation",
        "slope",
    }


def test_what_is_found_in_a_raster_of_elevation_is_its_own_layers(tmp_path: Path) -> None:
    channels = channel_set(tmp_path, "channels: [VV, elevation, slope]\n")
    dem = tif(tmp_path / "dem.tif", numbers(1, 90, 120, "int16"), ["elevation"])
    with pytest.raises(InputError, match=r"since VV is missing; found\n.*: elevation\n"):
        read([], channels, layers=(dem,))


def test_a_raster_of_many_layers_without_names_is_listed_in_short(tmp_path: Path) -> None:
    channels = channel_set(tmp_path, "channels: [{name: A00..A63, scale: 0.0078125}]\n")
    path = tif(tmp_path / "embedding.tif", numbers(64, -127, 128, "int8"), nodata=-128)
    with pytest.raises(InputError, match=r"\(64 in all\) are missing") as error:
        read([], channels, layers=(path,))
    assert path in error.value.problem and len(error.value.problem) < 1000
    found = read([], channels, layers=(f"A00..A63={path}",))
    with rasterio.open(path) as file:
        assert np.array_equal(found["A63"], file.read(64) * np.float32(1 / 128))


def test_a_formula_of_a_megabyte_is_refused_in_short(tmp_path: Path) -> None:
    text = "channels: [B04, {name: z, formula: '" + "B04 + " * 150_000 + "B04'}]\n"
    with pytest.raises(InputError, match=r"of the channel z formula does not fit.*is too long") as error:
        channel_set(tmp_path, text)
    assert len(str(error.value)) < 700
    with pytest.raises(InputError, match="expected at most 1048576"):
        channel_set(tmp_path, text.replace("B04 + ", "B04 + " * 2))


@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_power_below_zero_after_noise_was_taken_off_is_no_dB(noise: float, tmp_path: Path) -> None:
    power = (np.random.default_rng(1).gamma(4, 0.004, (2, SIDE, SIDE)) - noise).astype(np.float32)
    assert (power < 0).any() and np.median(power) > 0
    found = read([tif(tmp_path / "radar.tif", power, ["VV", "VH"])], CHANNEL_SETS["sentinel1"])
    valid = (power > 0).all(0)
    np.testing.assert_allclose(found["VV"][valid], 10 * np.log10(power[0][valid]), rtol=1e-4)
    assert np.isnan(found["VV"][~valid]).all()


# Masks and units in metadata


@pytest.fixture
def cube(tmp_path: Path) -> Callable[..., xr.Dataset]:
    """Bands as variables of type and unit, and further variables."""

    def make(values: np.ndarray, further: dict[str, np.ndarray], **attributes: str) -> xr.Dataset:
        y, x = 6.8e6 - 5 - 10 * np.arange(SIDE), 5e5 + 5 + 10 * np.arange(SIDE)
        mapping = {"grid_mapping": "spatial_ref"}
        data = xr.Dataset(
            {
                name: (("y", "x"), plane, attributes | mapping)
                for name, plane in zip(BANDS, values, strict=True)
            }
            | {name: (("y", "x"), plane, mapping) for name, plane in further.items()},
            coords={"y": y, "x": x},
        )
        data["spatial_ref"] = ((), 0, {"crs_wkt": CRS.from_epsg(32635).to_wkt()})
        return data

    return make


@pytest.mark.parametrize("name", ["dataMask", "alpha", "valid_mask"])
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_variable_that_says_which_pixels_hold_data_masks_the_others(
    name: str, suffix: str, cube: Callable[..., xr.Dataset], tmp_path: Path
) -> None:
    mask = np.ones((SIDE, SIDE), np.uint8)
    mask[10:14] = 0
    values = numbers(9, 200, 4000)
    data = cube(values, {name: mask})
    path = tmp_path / f"cube.{suffix}"
    data.to_netcdf(path) if suffix == "nc" else data.to_zarr(path)
    with open_stack([str(path)], [], InputConfig(), channels=BANDS) as stack, stack.reopen() as again:
        for one in (stack, again):
            image = one.read(WHOLE)
            assert np.isnan(image[10:14]).all() and np.array_equal(image[14:, :, 2], values[2, 14:])
            assert np.isnan(one.read(Window(8, 3, 5, 9))[2:]).all()
    if suffix == "nc":
        names = (*BANDS, "B8A")
        with open_stack([str(path)], [], InputConfig(band_names=names), channels=BANDS) as stack:
            assert not np.isnan(stack.read(WHOLE)).any()


def test_the_mask_of_an_array_in_memory_counts_too(cube: Callable[..., xr.Dataset], tiny_model: Path) -> None:
    mask = np.ones((SIDE, SIDE), np.uint8)
    mask[10:14] = 0
    data = cube(numbers(9, 200, 4000), {"dataMask": mask})
    for given in (data, data.chunk({"y": 16})):
        found = lulc.classify(str(tiny_model), given)["class"].values
        assert (found[10:14] == 255).all() and (found[14:] < 255).all()


@pytest.mark.parametrize("units", ["1", "reflectance"])
@pytest.mark.parametrize("suffix", ["nc", "tif"])
def test_fractions_whose_file_calls_them_plain_numbers_need_no_scale(
    units: str, suffix: str, cube: Callable[..., xr.Dataset], tmp_path: Path
) -> None:
    fractions = (numbers(9, 200, 4000) * 1e-4).astype(np.float32)
    path = tmp_path / f"a.{suffix}"
    if suffix == "nc":
        cube(fractions, {}, units=units).to_netcdf(path)
    else:
        tif(path, fractions, [*BANDS])
        with rasterio.open(path, "r+") as file:
            file.units = [units] * 9
    with open_stack([str(path)], [], InputConfig(), channels=BANDS) as stack:
        np.testing.assert_allclose(stack.read(WHOLE), np.moveaxis(fractions, 0, -1) * 1e4, rtol=1e-6)
        assert stack.provenance["channels"]["B04"]["scale_from"] == "metadata"


def test_numbers_x_10000_of_a_file_that_calls_them_plain_stay_so(
    cube: Callable[..., xr.Dataset], tmp_path: Path
) -> None:
    values = numbers(9, 200, 4000).astype(np.float32)
    cube(values, {}, units="1").to_netcdf(tmp_path / "a.nc")
    with open_stack([str(tmp_path / "a.nc")], [], InputConfig(), channels=BANDS) as stack:
        assert np.array_equal(stack.read(WHOLE), np.moveaxis(values, 0, -1))


@pytest.mark.parametrize("first", ["B06", "B07", "B08"])
def test_an_offset_that_was_left_in_from_some_band_on_is_warned_about(
    first: str, shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = list(BANDS)
    for scene, factor in (("terramesh/brazil_l2a.tif", 1.0), ("wroclaw/sentinel2_l2a.tif", 1.0)):
        with rasterio.open(shared / "data" / scene) as file:
            names = [str(name) for name in file.descriptions]
            stored = file.read([names.index(name) + 1 for name in order]) * factor
            profile = {"crs": file.crs, "transform": file.transform}
        for later in (0, 1000):
            moved = stored + later * (np.arange(9)[:, None, None] >= order.index(first)) * (stored > 0)
            path = tmp_path / f"{later}.tif"
            with rasterio.open(path, "w", driver="GTiff", height=moved.shape[1], width=moved.shape[2],
                               count=9, dtype="uint16", nodata=0, **profile) as file:  # fmt: skip
                file.write(moved.astype(np.uint16))
                file.descriptions = order
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="lulc"), open_stack([str(path)], [], InputConfig()):
                pass
            warned = "brighter than the bands beside" in caplog.text
            assert warned == bool(later), (scene, later, caplog.text)
