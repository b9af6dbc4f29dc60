"""Whatever says that a pixel is missing counts: in bands, indices, labels, masks and maps alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from lulc.config import InputConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, IGNORE, InputError, LandCoverClass, Legend
from lulc.labels.labels import open_labels
from lulc.labels.schemes import load_scheme
from lulc.maps.reader import open_map
from lulc.rasters.missing import Missing, declared_missing
from lulc.rasters.sources import open_source
from lulc.rasters.stack import open_stack

SIDE = 32
GRID = from_origin(500000, 6700000, 10, 10)
PLACE = {"height": SIDE, "width": SIDE, "crs": "EPSG:3067", "transform": GRID}
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[5:12, 20:30] = True
LEVELS = np.array([400, 600, 500, 900, 1800, 2200, 2500, 1600, 900])


def scene() -> np.ndarray:
    """Reflectance x 10000 uint16 (9, y, x), without holes."""
    noise = np.random.default_rng(0).lognormal(0, 0.2, (9, SIDE, SIDE))
    return np.round(LEVELS[:, None, None] * noise).astype("uint16")


def tif(path: Path, data: np.ndarray, names: Any = (), mask: np.ndarray | None = None, **profile: Any) -> str:
    internal = not profile.pop("external", False)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(
            path, "w", driver="GTiff", count=len(data), dtype=data.dtype, **PLACE, **profile
        ) as file,
    ):
        file.write(data)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)
        if mask is not None:
            file.write_mask(~mask)
    return str(path)


def cube(path: Path, variables: dict[str, Any], attributes: dict[str, Any], **more: Any) -> str:
    coordinates = {"y": 6699995.0 - 10 * np.arange(SIDE), "x": 500005.0 + 10 * np.arange(SIDE)}
    own = {**attributes, "grid_mapping": "crs"}
    data = xr.Dataset({name: (("y", "x"), v, own) for name, v in variables.items()}, coordinates)
    data["crs"] = ((), 0, {"crs_wkt": rasterio.crs.CRS.from_epsg(3067).to_wkt()})
    data.to_netcdf(path) if path.suffix == ".nc" else data.to_zarr(path, **more)
    return str(path)


def holes(paths: str | list[str], indices: list[str] | None = None, **options: Any) -> np.ndarray:
    """Where the stack of some files is missing, bool (y, x); it is missing in all channels or none."""
    paths = [paths] if isinstance(paths, str) else paths
    with open_stack(paths, indices or [], InputConfig(**options)) as stack:
        image = stack.read(stack.grid.extent)
    missing = np.isnan(image)
    assert (missing.any(-1) == missing.all(-1)).all()
    return np.asarray(missing.any(-1))


def labels_of(path: str) -> np.ndarray:
    scheme = load_scheme(str(Path(path).parent / "scheme.csv"))
    with open_labels(path, GridSpec(rasterio.crs.CRS.from_epsg(3067), GRID, SIDE, SIDE), scheme) as labels:
        return labels.read(labels.grid.extent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scheme.csv").write_text("code,class,name,color\n1,1,A,\n2,2,B,\n200,3,C,\n")
    return tmp_path


def codes() -> np.ndarray:
    found = np.ones((1, SIDE, SIDE), "uint8")
    found[:, 16:] = 2
    found[:, :, 16:] = 200
    return found


# Every way a file says so, in bands and in labels


def tagged(folder: Path, data: np.ndarray, names: Any) -> str:
    return tif(folder / "a.tif", np.where(HOLE, 77, data).astype(data.dtype), names, nodata=77)


def internal(folder: Path, data: np.ndarray, names: Any) -> str:
    return tif(folder / "a.tif", data, names, HOLE)


def masked_and_tagged(folder: Path, data: np.ndarray, names: Any) -> str:
    half = HOLE & (np.arange(SIDE) < 25)
    return tif(folder / "a.tif", np.where(half, 77, data).astype(data.dtype), names, HOLE & ~half, nodata=77)


def external(folder: Path, data: np.ndarray, names: Any) -> str:
    path = tif(folder / "a.tif", data, names, HOLE, external=True)
    assert os.path.exists(path + ".msk")
    return path


def alpha(folder: Path, data: np.ndarray, names: Any) -> str:
    extended = np.concatenate([data, np.where(HOLE, 0, 255)[None].astype(data.dtype)])
    path = tif(folder / "a.tif", extended, names)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = (*[ColorInterp.gray] * len(data), ColorInterp.alpha)
    return path


def alpha_and_tag(folder: Path, data: np.ndarray, names: Any) -> str:
    path = alpha(folder, data, names)
    with rasterio.open(path, "r+") as file:
        file.nodata = 78
    return path


def data_mask(folder: Path, data: np.ndarray, names: Any) -> str:
    extended = np.concatenate([data, np.where(HOLE, 0, 1)[None].astype(data.dtype)])
    return tif(folder / "a.tif", extended, (*(names or [""] * len(data)), "dataMask"))


def side_car(folder: Path, data: np.ndarray, names: Any) -> str:
    path = tif(folder / "a.tif", np.where(HOLE, 77, data).astype(data.dtype), names)
    bands = "".join(f'<PAMRasterBand band="{i}"><NoDataValue>77</NoDataValue></PAMRasterBand>'
                    for i in range(1, len(data) + 1))  # fmt: skip
    Path(path + ".aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    return path


def band_tag(folder: Path, data: np.ndarray, names: Any) -> str:
    path = tif(folder / "a.tif", np.where(HOLE, 77, data).astype(data.dtype), names)
    with rasterio.open(path, "r+") as file:
        for i in file.indexes:
            file.update_tags(i, missing_value="77")
    return path


def virtual(folder: Path, data: np.ndarray, names: Any) -> str:
    path = internal(folder, data, names)
    rasterio.shutil.copy(path, str(folder / "a.vrt"), driver="VRT")
    (folder / "a.vrt").write_text(
        (folder / "a.vrt").read_text().replace('relativeToVRT="0">' + path, 'relativeToVRT="1">a.tif')
    )
    return str(folder / "a.vrt")


GEOTIFF = (
    tagged,
    internal,
    masked_and_tagged,
    external,
    alpha,
    alpha_and_tag,
    data_mask,
    side_car,
    band_tag,
    virtual,
)


@pytest.mark.parametrize("way", GEOTIFF)
def test_what_a_geotiff_says_is_missing_is_missing_in_bands(folder: Path, way: Any) -> None:
    path = way(folder, scene(), BANDS)
    assert np.array_equal(holes(path, allow_vrt=True), HOLE)


@pytest.mark.parametrize("way", GEOTIFF)
def test_what_a_geotiff_says_is_missing_is_missing_in_labels(folder: Path, way: Any) -> None:
    path = way(folder, codes(), [])
    scheme = load_scheme(str(folder / "scheme.csv"))
    grid = GridSpec(rasterio.crs.CRS.from_epsg(3067), GRID, SIDE, SIDE)
    with open_labels(path, grid, scheme, allow_vrt=True) as labels:
        found = labels.read(grid.extent)
    assert np.array_equal(found == IGNORE, HOLE)
    assert (found[~HOLE] == np.select([codes()[0] == 1, codes()[0] == 2], [1, 2], 3)[~HOLE]).all()


@pytest.mark.parametrize("way", GEOTIFF)
def test_what_a_geotiff_says_is_missing_is_missing_in_maps(folder: Path, way: Any) -> None:
    path = way(folder, np.minimum(codes(), 3), [])
    legend = Legend("test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in (1, 2, 3)))
    land_cover = open_map(path, legend, allow_vrt=True)
    found = land_cover.read(land_cover.grid.extent)
    land_cover.close()
    assert np.array_equal(found == IGNORE, HOLE)


@pytest.mark.parametrize(("attributes", "stored"), [
    ({"_FillValue": np.uint16(77)}, 77), ({"missing_value": np.uint16(77)}, 77),
    ({"_FillValue": np.uint16(65535), "missing_value": np.uint16(77)}, 77),
    ({"missing_value": np.array([9, 77], "uint16")}, 77),
    ({"valid_range": np.array([1, 20000], "uint16")}, 20001), ({"valid_min": np.uint16(80)}, 79),
    ({"valid_max": np.uint16(30000)}, 30001), ({}, 65535),
])  # fmt: skip
def test_what_netcdf_says_is_missing_is_missing_in_bands(folder: Path, attributes: Any, stored: int) -> None:
    data = dict(zip(BANDS, np.where(HOLE, stored, scene()).astype("uint16"), strict=True))
    assert np.array_equal(holes(cube(folder / "a.nc", data, attributes)), HOLE)


def test_valid_ranges_may_be_of_unpacked_values(folder: Path) -> None:
    packing = {"scale_factor": 0.0001, "add_offset": -0.1, "valid_range": np.array([0.0, 1.0])}
    data = np.where(HOLE, 12000, scene() + 1000).astype("uint16")
    assert np.array_equal(holes(cube(folder / "a.nc", dict(zip(BANDS, data, strict=True)), packing)), HOLE)


@pytest.mark.parametrize("version", [2, 3])
def test_what_zarr_says_is_missing_is_missing(folder: Path, version: int) -> None:
    data = dict(zip(BANDS, np.where(HOLE, 77, scene()).astype("uint16"), strict=True))
    path = cube(folder / "a.zarr", data, {"_FillValue": np.uint16(77)}, zarr_format=version)
    assert np.array_equal(holes(path), HOLE)


def test_pixels_that_were_never_written_to_netcdf_are_missing(folder: Path) -> None:
    path = str(folder / "a.nc")
    with netCDF4.Dataset(path, "w") as file:
        for axis, values in (("y", 6699995.0 - 10 * np.arange(SIDE)), ("x", 500005.0 + 10 * np.arange(SIDE))):
            file.createDimension(axis, SIDE)
            file.createVariable(axis, "f8", (axis,))[:] = values
        file.createVariable("crs", "i4", ()).crs_wkt = rasterio.crs.CRS.from_epsg(3067).to_wkt()
        labels = file.createVariable("labels", "i2", ("y", "x"))
        labels.grid_mapping = "crs"
        labels[:16] = 1
    found = labels_of(path)
    assert (found[:16] == 1).all() and (found[16:] == IGNORE).all()


def test_the_option_counts_beside_the_tag(folder: Path) -> None:
    other = np.zeros_like(HOLE)
    other[20:22] = True
    data = np.where(HOLE, -999, np.where(other, -9999, scene().astype("int16"))).astype("int16")
    path = tif(folder / "a.tif", data, BANDS, nodata=-9999)
    assert np.array_equal(holes(path, nodata=-999.0), HOLE | other)
    fractions = np.where(HOLE, np.float32(-9999.9), data.astype("float32"))
    path = tif(folder / "b.tif", fractions, BANDS, nodata=-9999)
    assert np.array_equal(holes(path, nodata=-9999.9), HOLE | other), "compared as float32 stores it"


@pytest.mark.parametrize(("value", "dtype", "options"), [
    (-0.1, "float32", {"scale": 1.0}), (-0.1, "float64", {"scale": 1.0}), (-1000, "int16", {}),
    (-1000, "float32", {}), (-10, "float32", {"scale": 0.01}), (64536, "uint16", {}),
])  # fmt: skip
def test_no_data_that_went_through_the_offset_is_missing_and_the_darkest_pixel_is_not(
    folder: Path, value: float, dtype: str, options: Any
) -> None:
    data = scene() * (abs(value) / 1000 if value != 64536 else 1)
    # The smallest valid DN is 1, which is -0.0999 after the offset.
    data[:, 0, 0] = value * 0.999 if value != 64536 else 1
    path = tif(folder / "a.tif", np.where(HOLE, value, data).astype(dtype), BANDS)
    assert np.array_equal(holes(path, **options), HOLE)


# Indices and masks


def test_indices_are_missing_where_their_file_says_so(folder: Path) -> None:
    bands = tif(folder / "b.tif", scene(), BANDS)
    ndvi = np.full((1, SIDE, SIDE), 150, "uint8")
    for way in (internal, external, alpha):
        path = way(folder, ndvi, ["NDVI"])
        assert np.array_equal(holes(bands, [path]), HOLE)
        for rest in folder.glob("a.*"):
            rest.unlink()
    path = tif(folder / "a.tif", np.where(HOLE, 255, ndvi), ["NDVI"], nodata=0)
    assert np.array_equal(holes(bands, [path], index_nodata=(199.0,)), HOLE)
    ndvi[0, 3] = 199
    path = tif(folder / "a.tif", np.where(HOLE, 255, ndvi), ["NDVI"], nodata=0)
    assert np.array_equal(holes(bands, [path], index_nodata=(199.0,)), HOLE | (ndvi[0] == 199))


def test_four_unnamed_layers_of_8_bits_are_named_by_the_option_although_the_last_is_called_alpha(
    folder: Path,
) -> None:
    bands = tif(folder / "b.tif", scene(), BANDS)
    codes = np.full((4, SIDE, SIDE), 150, "uint8")
    codes[3, 2:4] = 0
    path = tif(folder / "a.tif", codes)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    names = ("NDVI", "NDTI", "NDBI", "NDMI")
    found = holes(bands, [path], index_names=names, index_nodata=(255.0,))
    assert not found.any(), "0 is the code of an index of -1"
    assert np.array_equal(holes(bands, [path], index_names=names[:3], index_nodata=(255.0,)), codes[3] == 0)


def test_pixels_that_a_mask_lacks_are_left_out_and_its_0_never(folder: Path) -> None:
    bands = tif(folder / "b.tif", scene(), BANDS)
    clear = np.zeros((1, SIDE, SIDE), "uint8")
    clear[0, :2] = 1
    assert np.array_equal(holes(bands, mask=tif(folder / "m.tif", clear, nodata=0)), clear[0] == 1)
    unknown = np.where(HOLE, 255, clear).astype("uint8")
    assert np.array_equal(
        holes(bands, mask=tif(folder / "n.tif", unknown, nodata=255)), HOLE | (clear[0] == 1)
    )
    assert np.array_equal(holes(bands, mask=tif(folder / "o.tif", clear, (), HOLE)), HOLE | (clear[0] == 1))


def test_a_mask_of_another_size_and_one_behind_a_vrt_are_refused(folder: Path) -> None:
    path = external(folder, scene(), BANDS)
    rasterio.shutil.copy(path, str(folder / "v.vrt"), driver="VRT")
    text = (folder / "v.vrt").read_text()
    (folder / "v.vrt").write_text(text.replace('relativeToVRT="0">' + path, 'relativeToVRT="1">a.tif'))
    with pytest.raises(InputError, match="external mask"):
        open_source(folder / "v.vrt", allow_vrt=True)
    with rasterio.open(path + ".msk", "w", driver="GTiff", count=1, height=9, width=9, dtype="uint8") as file:
        file.write(np.ones((1, 9, 9), "uint8"))
    with pytest.raises(InputError, match="expected 32 x 32"):
        open_source(path)


# What metadata mean


def test_metadata_of_any_spelling_are_understood() -> None:
    assert declared_missing({"NODATA": "0"}).values == (0.0,)
    assert declared_missing({"missing_value": b"-9999"}).values == (-9999.0,)
    assert declared_missing({"_FillValue": "nan"}).present(np.array([1.0, np.nan])).tolist() == [True, False]
    assert declared_missing({"nodata": "none"}, 5.0).values == (5.0,)
    assert declared_missing({"_FillValue": 7}, 0.0).values == (7.0,), "a layer's own replaces the file's"
    assert declared_missing({"valid_range": "1, 9"}).present(np.array([0, 1, 9, 10])).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert declared_missing({"_FillValue": -1}, dtype="uint8").values == (255.0,)


def test_values_are_compared_as_their_type_stores_them() -> None:
    assert Missing((-9999.9,)).present(np.float32([-9999.9, 1])).tolist() == [False, True]
    assert Missing((-9999.0, 0.5, 300.0)).present(np.uint8([0, 44, 241])).all()
    assert Missing((), 0.5, 1.5).present(np.int16([0, 1, 2])).tolist() == [False, True, False]
    assert Missing((3.4028235e38,)).present(np.float32([3.4028235e38, np.inf, 1])).tolist() == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("scale", "offset", "said"),
    [(0.0, 0.0, "scale '0.0'"), (float("nan"), 0.0, "scale 'nan'"), (0.0001, float("inf"), "offset 'inf'")],
)
def test_a_scale_or_offset_that_no_value_can_mean_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scale: float, offset: float, said: str
) -> None:
    path = tmp_path / "odd.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=4, width=4, count=1, dtype="uint16", crs="EPSG:32635",
        transform=GRID,
    ) as data:  # fmt: skip
        data.write(np.full((1, 4, 4), 7, "uint16"))
        data.scales, data.offsets = (scale,), (offset,)
        data.update_tags(1, NODATA="none at all")
    with open_source(path) as source:
        assert source.layers[0].scale is None
        assert source.layers[0].unpack(np.array([7.0]))[0] == 7.0
    assert f"says of band 1: {said}, which is not used" in caplog.text
    assert "NODATA 'none at all'" in caplog.text


def at(path: Path, data: np.ndarray, crs: str, transform: Any, nodata: float | None = None) -> str:
    height, width = data.shape[1:]
    with rasterio.open(
        path, "w", driver="GTiff", count=len(data), dtype=data.dtype, height=height, width=width, crs=crs,
        transform=transform, nodata=nodata,
    ) as file:  # fmt: skip
        file.write(data)
        file.descriptions = ["B04", "B08"][: len(data)] if len(data) > 1 else [None]
    return str(path)


@pytest.mark.parametrize("left", [-0.05, 24.95, -160, -179.9, 179.8])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("first", [-180, 0])
def test_a_mask_in_degrees_hides_pixels_however_longitudes_are_counted(
    tmp_path: Path, left: float, crs: str, first: int
) -> None:
    bands = np.random.default_rng(0).integers(200, 4000, (2, 100, 100)).astype("u2")
    (x0, x1), (y0, y1) = transform_points("EPSG:4326", crs, [left, left + 0.1], [50.05, 49.95])
    place = Affine((x1 - x0) / 100, 0, x0, 0, (y1 - y0) / 100, y0)
    path = at(tmp_path / "b.tif", bands, crs, place, 0)
    # Every second degree is hidden, counted from Greenwich.
    hidden = ((np.arange(360) + first) % 2).astype("u1")
    mask = at(tmp_path / "m.tif", np.tile(hidden, (1, 20, 1)), "EPSG:4326", Affine(1, 0, first, 0, -1, 60))
    options = InputConfig(mask=(mask,), resample=True, scale=1e-4, offset=0)
    with open_stack([path], [], options, channels=["B04", "B08"]) as stack:
        found = np.isfinite(stack.read(stack.grid.extent)[50, :, 0])
    lons, _ = transform_points(crs, "EPSG:4326", place.c + place.a * (np.arange(100) + 0.5), [y0] * 100)
    np.testing.assert_array_equal(found, np.floor(np.array(lons) % 360) % 2 == 0)


@pytest.mark.parametrize(("columns", "warned"), [(50, True), (130, False)])
@pytest.mark.parametrize("crs", ["EPSG:3067", "EPSG:32636", "EPSG:4326"])
def test_a_mask_that_does_not_cover_valid_pixels_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: int, warned: bool, crs: str
) -> None:
    bands = np.random.default_rng(0).integers(200, 4000, (2, 300, 100)).astype("u2")
    path = at(tmp_path / "b.tif", bands, "EPSG:3067", GRID, 0)
    (x,), (y,) = transform_points("EPSG:3067", crs, [500_000], [6_700_000])
    step = 10 / 111_320 if crs == "EPSG:4326" else 10
    # Over the latitude of 60 degrees, pixels in degrees are half as wide.
    wide = 2 * columns if crs == "EPSG:4326" else columns
    place = Affine(step, 0, x - step * 20, 0, -step, y + 50 * step)
    mask = at(tmp_path / "m.tif", np.zeros((1, 420, max(30, wide + 20)), "u1"), crs, place)
    with open_stack([path], [], InputConfig(mask=(mask,), resample=True), channels=["B04", "B08"]) as stack:
        assert np.isfinite(stack.read(stack.grid.extent)).all()
    said = [r.getMessage() for r in caplog.records if "does not cover the bands" in r.getMessage()]
    assert len(said) == warned


def test_the_mask_of_a_warped_scene_covers_its_pixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = np.random.default_rng(0).integers(200, 4000, (2, 300, 300)).astype("u2")
    path = at(tmp_path / "b.tif", bands, "EPSG:3067", GRID, 0)
    mask = at(tmp_path / "m.tif", np.zeros((1, 150, 150), "u1"), "EPSG:3067", GRID @ Affine.scale(2))
    like = at(tmp_path / "l.tif", np.zeros((1, 700, 500), "u1"), "EPSG:4326",
              Affine(1e-4, 0, 26.99, 0, -1e-4, 60.45))  # fmt: skip
    options = InputConfig(mask=(mask,), like=like, resample=True)
    with open_stack([path], [], options, channels=["B04", "B08"]) as stack:
        known = np.isfinite(stack.read(stack.grid.extent)).all(-1)
        assert 0.3 < known.mean() < 0.95
    assert "does not cover" not in caplog.text
