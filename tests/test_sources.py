"""Raster sources: what is read, what it is called, and what is refused before a pixel is read."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from rasterio.transform import from_origin

from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters.layers import identify
from lulc.rasters.products import is_product
from lulc.rasters.sources import open_classes, open_product, open_source, stamps_of

NORTH_UP = from_origin(500000, 6700000, 10, 10)
RNG = np.random.default_rng(0)


def write(path: Path, data: np.ndarray, **profile: Any) -> Path:
    """A raster (band, y, x); `names`, `tags` (per band) and `scales` go to its bands."""
    names, tags = profile.pop("names", ()), profile.pop("tags", ())
    scales, offsets = profile.pop("scales", None), profile.pop("offsets", None)
    options = {"driver": "GTiff", "crs": "EPSG:3067", "transform": NORTH_UP} | profile
    count, height, width = data.shape
    shape = {"count": count, "height": height, "width": width, "dtype": data.dtype}
    with rasterio.open(path, "w", **shape, **options) as file:
        file.write(data)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)
        for i, tag in enumerate(tags, 1):
            file.update_tags(i, **tag)
        if scales:
            file.scales, file.offsets = scales, offsets
    return path


def numbers(count: int = 2, height: int = 40, width: int = 30, dtype: str = "uint16") -> np.ndarray:
    return RNG.integers(1, 3000, (count, height, width)).astype(dtype)


def refuse(path: Path | str, words: str, **options: bool) -> InputError:
    with pytest.raises(InputError, match=words) as error:
        open_source(path, **options)
    assert error.value.hint
    return error.value


@pytest.mark.parametrize(("suffix", "driver"), [("tif", "GTiff"), ("img", "HFA"), ("jp2", "JP2OpenJPEG")])
def test_windows_of_every_format_equal_the_array(tmp_path: Path, suffix: str, driver: str) -> None:
    data = numbers(1 if driver == "JP2OpenJPEG" else 3)
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    path = write(tmp_path / f"a.{suffix}", data, driver=driver, **lossless)
    with open_source(path) as source:
        window = Window(3, 5, 20, 17)
        read = source.read([len(data) - 1, 0], window)
        assert read.dtype == np.uint16 and source.dtypes == ("uint16",) * len(data)
        np.testing.assert_array_equal(read, data[[-1, 0]][:, 3:23, 5:22])
        assert source.grid.transform == NORTH_UP and source.grid.crs.to_epsg() == 3067


def test_layers_carry_names_no_data_and_scaling(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", numbers(4), names=["B2, central wavelength 490 nm", "ndvi", "AOT", "b8a"],
        nodata=0, tags=[{}, {"NODATA": "255"}], scales=(1e-4,) * 4, offsets=(-0.1,) * 4,
    )  # fmt: skip
    with open_source(path) as source:
        assert source.names == ("B02", "NDVI", "AOT", "B8A")
        assert source.nodata == (0, 255, 0, 0), "a layer's own tag comes before that of the file"
        assert set(source.scales) == {1e-4} and set(source.offsets) == {-1000}


def test_a_single_layer_is_named_by_its_file_and_many_never(tmp_path: Path) -> None:
    with open_source(write(tmp_path / "T48QUE_20200223_B8A_20m.tif", numbers(1))) as source:
        assert source.names == ("B8A",)
    with open_source(write(tmp_path / "S2_B02.tif", numbers(2))) as source:
        assert source.names == (None, None)


@pytest.mark.parametrize("form", ["Band {}", "Band_{}", "band{}", "Band {:02d}"])
def test_layers_numbered_by_position_are_unnamed_and_others_are_bands(tmp_path: Path, form: str) -> None:
    numbered = [form.format(i) for i in range(1, 14)]
    with open_source(write(tmp_path / "a.tif", numbers(13), names=numbered)) as source:
        assert source.names == tuple(numbered)
    with open_source(write(tmp_path / "b.tif", numbers(3), names=[*numbered[1:3], "Band 8A"])) as source:
        assert source.names == ("B02", "B03", "B8A")
    with open_source(write(tmp_path / "S2_B05.tif", numbers(1), names=numbered[:1])) as source:
        assert source.names == ("B05",)


def test_every_thread_may_open_its_own(tmp_path: Path) -> None:
    data = numbers(2, 300, 200)
    results: list[bool] = []
    with open_source(write(tmp_path / "a.tif", data, tiled=True, blockxsize=64, blockysize=64)) as source:

        def work() -> None:
            with source.reopen() as own:
                results.append(np.array_equal(own.read([0, 1], own.grid.extent), data))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 4


def test_identity_is_the_sha256_and_changes_with_any_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", numbers())
    with open_source(path) as source:
        content = path.read_bytes()
        expected = {"name": "a.tif", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert source.identity() == expected
    path.write_bytes(content[:-1] + b"\x77")
    assert identify(path)["sha256"] != expected["sha256"]


# Refusals


@pytest.mark.parametrize(
    "path",
    ["https://127.0.0.1:9/a.tif", "/vsicurl/http://127.0.0.1:9/a.tif", "/vsimem/a.tif", "NETCDF:a.nc:b",
     "GTIFF_DIR:1:a.tif", "<VRTDataset rasterXSize='1' rasterYSize='1'/>", "s3://bucket/a.tif", '{"a": 1}'],
)  # fmt: skip
def test_addresses_are_no_files(path: str) -> None:
    refuse(path, "address")


def test_missing_folder_and_foreign_files_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "no.tif", "no such file")
    refuse(tmp_path, "a folder")
    (tmp_path / "a.tif").write_text("no raster")
    refuse(tmp_path / "a.tif", "no raster of an admitted kind")
    png = write(tmp_path / "a.png", numbers(1, dtype="uint8"), driver="PNG")
    refuse(png.rename(tmp_path / "b.tif"), "no raster of an admitted kind")


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", numbers(3, 200, 200), tiled=True, blockxsize=64, blockysize=64)
    content = path.read_bytes()
    for share in np.linspace(0, 0.99, 10):
        path.write_bytes(content[: int(share * len(content))])
        refuse(path, "damaged|truncated")


def test_damage_inside_a_block_is_reported_on_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", numbers(1, 200, 200), compress="deflate", tiled=True)
    with rasterio.open(path) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(InputError, match="damaged"):
        source.read([0], source.grid.extent)


@pytest.mark.parametrize(
    ("transform", "words"),
    [(Affine.identity(), "south-up"), (Affine(10, 1, 5e5, 1, -10, 6e6), "rotated or sheared"),
     (Affine(10, 2, 5e5, 0, -10, 6e6), "rotated or sheared"), (Affine(0, 0, 5e5, 0, -10, 6e6), "points")],
)  # fmt: skip
def test_grids_that_are_not_north_up_are_refused(tmp_path: Path, transform: Affine, words: str) -> None:
    refuse(write(tmp_path / "a.tif", numbers(), transform=transform), words)


@pytest.mark.parametrize("down", [-1, 1])
@pytest.mark.parametrize("across", [-1, 1])
def test_rows_from_south_and_columns_from_east_are_turned(tmp_path: Path, down: int, across: int) -> None:
    values = numbers(2, 30, 40)
    left, top = (5e5 if across == 1 else 5e5 + 400), (6e6 if down == 1 else 6e6 - 300)
    stored = values[:, ::down, ::across]
    path = write(tmp_path / "a.tif", stored, transform=Affine(10 * across, 0, left, 0, -10 * down, top))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        mask = np.ones((30, 40), bool)
        mask[3:5, 7:20] = False
        file.write_mask(mask[::down, ::across])
    for again in (False, True):
        with open_source(path) as first, first.reopen() as second:
            source = second if again else first
            assert source.grid.transform == Affine(10, 0, 5e5, 0, -10, 6e6)
            for window in (source.grid.extent, Window(2, 5, 7, 20)):
                assert np.array_equal(
                    source.read([1, 0], window), values[[1, 0]][(slice(None), *window.slices)]
                )
                found = source.read_mask([0], window)
                assert found is not None and np.array_equal(np.squeeze(found), mask[window.slices])


def test_a_raster_without_crs_is_refused_with_the_command_that_adds_it(tmp_path: Path) -> None:
    assert "edit-info" in refuse(write(tmp_path / "a.tif", numbers(), crs=None), "coordinate reference").hint


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    refuse(write(tmp_path / "a.tif", numbers().astype("complex64")), "real numbers")


def test_a_sparse_bomb_is_refused_unread(tmp_path: Path) -> None:
    options = {"crs": "EPSG:3067", "transform": NORTH_UP, "dtype": "uint8"}
    options |= {"SPARSE_OK": "YES", "BIGTIFF": "YES"}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=1, height=600_000, width=600_000,
                       tiled=True, blockxsize=65536, blockysize=65536, **options):  # fmt: skip
        pass
    assert (tmp_path / "a.tif").stat().st_size < 10_000
    refuse(tmp_path / "a.tif", "blocks have 4,096 MiB")


# VRT


def vrt(path: Path, body: str, size: int = 30) -> Path:
    path.write_text(
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>EPSG:3067</SRS>'
        f"<GeoTransform>500000,10,0,6700000,0,-10</GeoTransform>{body}</VRTDataset>"
    )
    return path


def simple(filename: str, relative: int = 1) -> str:
    return (f'<VRTRasterBand dataType="UInt16" band="1"><Description>B02</Description><SimpleSource>'
            f'<SourceFilename relativeToVRT="{relative}">{filename}</SourceFilename>'
            "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>")  # fmt: skip


RAW = ('<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
       '<SourceFilename relativetoVRT="1">canary.bin</SourceFilename></VRTRasterBand>')  # fmt: skip
DERIVED = ('<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
           "<PixelFunctionType>sqrt</PixelFunctionType></VRTRasterBand>")  # fmt: skip


def test_a_plain_vrt_is_read_where_it_is_admitted(tmp_path: Path) -> None:
    data = numbers(1, 30, 30)
    write(tmp_path / "in.tif", data)
    path = vrt(tmp_path / "a.vrt", simple("in.tif"))
    assert "--allow-vrt" in refuse(path, "VRT").hint
    outer = vrt(tmp_path / "outer.vrt", simple("a.vrt"))
    for admitted in (path, outer):
        with open_source(admitted, allow_vrt=True) as source:
            np.testing.assert_array_equal(source.read([0], source.grid.extent), data)
            assert source.names == ("B02",)


def test_a_vrt_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "out.tif", numbers(1, 30, 30))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.tif").symlink_to(tmp_path / "out.tif")
    for name, relative in (("../out.tif", 1), (str(tmp_path / "out.tif"), 0), ("link.tif", 1)):
        refuse(vrt(folder / "a.vrt", simple(name, relative)), "outside its folder", allow_vrt=True)
    vrt(folder / "inner.vrt", simple("../out.tif"))
    refuse(vrt(folder / "a.vrt", simple("inner.vrt")), "outside its folder", allow_vrt=True)
    refuse(vrt(folder / "a.vrt", simple("/vsicurl/http://127.0.0.1:9/a.tif", 0)), "names", allow_vrt=True)


def test_a_vrt_neither_computes_nor_reads_raw_bytes_nor_names_itself(tmp_path: Path) -> None:
    (tmp_path / "canary.bin").write_bytes(b"canary" * 1000)
    refuse(vrt(tmp_path / "a.vrt", RAW), "VRTRawRasterBand", allow_vrt=True)
    refuse(vrt(tmp_path / "a.vrt", DERIVED), "VRTDerivedRasterBand", allow_vrt=True)
    refuse(vrt(tmp_path / "a.vrt", simple("a.vrt")), "nested", allow_vrt=True)
    bomb = '<!DOCTYPE a [<!ENTITY b "bbb">]><VRTDataset/>'
    (tmp_path / "a.vrt").write_text(bomb)
    refuse(tmp_path / "a.vrt", "entities", allow_vrt=True)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_vrt_under_another_name_is_never_opened(tmp_path: Path, allowed: bool) -> None:
    (tmp_path / "canary.bin").write_bytes(b"canary" * 1000)
    disguised = vrt(tmp_path / "innocent.tif", RAW)
    refuse(disguised, "no raster of an admitted kind", allow_vrt=allowed)
    refuse(vrt(tmp_path / "a.vrt", simple("innocent.tif")), "under another name" if allowed else "VRT",
           allow_vrt=allowed)  # fmt: skip


# NetCDF and Zarr


def cube(*, south_up: bool = False, layout: str = "variables") -> xr.Dataset:
    """Bands B02 and B08 of known values on the grid of `NORTH_UP`."""
    height, width = 12, 9
    values = numbers(2, height, width)
    y = 6700000 - 10 * (np.arange(height) + 0.5)
    x = 500000 + 10 * (np.arange(width) + 0.5)
    if south_up:
        values, y = values[:, ::-1], y[::-1]
    crs = rasterio.crs.CRS.from_epsg(3067).to_wkt()
    if layout == "variables":
        variables: dict[str, Any] = {n: (("y", "x"), v) for n, v in zip(("B02", "B08"), values, strict=True)}
        coords: dict[str, Any] = {"y": y, "x": x}
    else:
        variables = {"reflectance": (("y", "band", "x"), values.transpose(1, 0, 2))}
        coords = {"y": y, "x": x, "band": ["B02", "B08"]}
    data = xr.Dataset(variables, coords)
    data["spatial_ref"] = ((), 0, {"crs_wkt": crs, "grid_mapping_name": "transverse_mercator"})
    for name in variables:
        data[name].attrs["grid_mapping"] = "spatial_ref"
        data[name].attrs["_FillValue"] = np.uint16(9999)
    return data


def store(data: xr.Dataset, path: Path, **options: Any) -> Path:
    if path.suffix == ".zarr":
        data.to_zarr(path, **options)
    else:
        data.to_netcdf(path, **options)
    return path


@pytest.mark.parametrize("layout", ["variables", "band"])
@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_cubes_are_delivered_north_up_whichever_way_they_run(
    tmp_path: Path, suffix: str, south_up: bool, layout: str
) -> None:
    data = cube(south_up=south_up, layout=layout)
    with open_source(store(data, tmp_path / f"a.{suffix}")) as source:
        assert source.names == ("B02", "B08") and source.nodata == (9999, 9999)
        assert source.grid.transform == NORTH_UP and source.grid.crs.to_epsg() == 3067
        read = source.read([1, 0], Window(2, 1, 6, 5))
        assert read.dtype == np.uint16
        centre = {"x": 500000 + 10 * (np.arange(1, 6) + 0.5), "y": 6700000 - 10 * (np.arange(2, 8) + 0.5)}
        planes = data if layout == "variables" else data["reflectance"].to_dataset("band")
        expected = [planes[n].sel(centre).transpose("y", "x") for n in ("B08", "B02")]
        np.testing.assert_array_equal(read, expected)


def test_a_single_date_is_no_dimension_of_bands(tmp_path: Path) -> None:
    for layout in ("variables", "band"):
        dated = cube(layout=layout)
        bands = [n for n in dated.data_vars if n != "spatial_ref"]
        dated = dated.drop_vars(bands).merge(dated[bands].expand_dims(time=[0]))
        path = store(dated, tmp_path / f"{layout}.nc")
        with open_source(path) as source:
            assert source.names == ("B02", "B08") and source.read([1], Window(0, 0, 3, 4)).shape == (1, 3, 4)


def test_both_zarr_versions_are_read(tmp_path: Path) -> None:
    for version in (2, 3):
        path = store(cube(), tmp_path / f"{version}.zarr", zarr_format=version)
        with open_source(path) as source:
            assert source.read([0], source.grid.extent).shape == (1, 12, 9)
            assert source.identity()["bytes"] > 0


def test_cubes_without_crs_even_steps_or_with_many_dates_are_refused(tmp_path: Path) -> None:
    bare = cube().drop_vars("spatial_ref")
    refuse(store(bare, tmp_path / "crs.nc"), "coordinate reference")
    uneven = cube().assign_coords(x=np.arange(9.0) ** 2)
    refuse(store(uneven, tmp_path / "uneven.nc"), "evenly spaced")
    dates = xr.concat([cube()[["B02"]]] * 2, "time")
    refuse(store(dates, tmp_path / "dates.nc"), "one date|bands")
    refuse(store(cube().rename(x="columns"), tmp_path / "axes.nc"), "expected x and y")


def test_netcdf_that_points_to_other_files_is_refused_and_they_stay_unread(tmp_path: Path) -> None:
    store(cube(), tmp_path / "other.nc")
    linked = store(cube(), tmp_path / "link.nc")
    with h5py.File(linked, "a") as file:
        file["B03"] = h5py.ExternalLink(str(tmp_path / "other.nc"), "/B02")
    refuse(linked, "B03.*link")
    external = store(cube(), tmp_path / "external.nc")
    (tmp_path / "canary.bin").write_bytes(b"canary" * 100)
    with h5py.File(external, "a") as file:
        file.create_dataset("B03", (12, 9), "u2", external=[(str(tmp_path / "canary.bin"), 0, 216)])
    refuse(external, "B03.*another file")
    virtual = store(cube(), tmp_path / "virtual.nc")
    with h5py.File(virtual, "a") as file:
        layout = h5py.VirtualLayout((12, 9), "u2")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.nc"), "B02", (12, 9))
        file.create_virtual_dataset("B03", layout)
    refuse(virtual, "B03.*another file")


def test_netcdf_that_is_none_or_truncated_is_refused(tmp_path: Path) -> None:
    path = store(cube(), tmp_path / "a.nc")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuse(path, "truncated|cannot open")
    path.write_bytes(b"<VRTDataset/>")
    refuse(path, "begin like a NetCDF")


def test_zarr_neither_leaves_its_folder_nor_runs_code(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"canary")
    path = store(cube(), tmp_path / "link.zarr", zarr_format=2)
    (path / "B02" / "0.0").unlink()
    (path / "B02" / "0.0").symlink_to(tmp_path / "secret")
    refuse(path, "outside its folder")
    for version, key in ((2, "filters"), (3, "codecs")):
        path = store(cube(), tmp_path / f"pickle{version}.zarr", zarr_format=version)
        document = path / "B02" / (".zarray" if version == 2 else "zarr.json")
        content = json.loads(document.read_text())
        content[key] = [{"id": "pickle"}] if version == 2 else [{"name": "numcodecs.pickle"}]
        document.write_text(json.dumps(content))
        refuse(path, "pickle")


# Copernicus products


def make_product(folder: Path, *, level: str = "L2A", offset: int | None = -1000) -> Path:
    """A small product: B02 at 10 and 20 m, B05 at 20 m, the scene classification at level 2A."""
    path = folder / f"S2B_MSI{level}_20220301.SAFE"
    images = path / "GRANULE" / "L2A_T35" / "IMG_DATA"
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    coarse = NORTH_UP @ Affine.scale(2)
    for name, meters in (("B02", 10), ("B02", 20), ("B05", 20), ("SCL", 20)):
        if level == "L1C" and (name, meters) not in (("B02", 10), ("B05", 20)):
            continue
        place = images / f"R{meters}m" if level == "L2A" else images
        place.mkdir(parents=True, exist_ok=True)
        side = 128 if meters == 10 else 64
        data = np.full((1, side, side), 4 if name == "SCL" else 1500, "uint8" if name == "SCL" else "uint16")
        file = f"T35_2022_{name}_{meters}m.jp2" if level == "L2A" else f"T35_2022_{name}.jp2"
        write(place / file, data, transform=NORTH_UP if meters == 10 else coarse, **lossless)
    prefix, kind = ("BOA_", "BOA") if level == "L2A" else ("", "RADIO")
    offsets = "" if offset is None else "".join(
        f'<{kind}_ADD_OFFSET band_id="{i}">{offset - i}</{kind}_ADD_OFFSET>' for i in range(13))  # fmt: skip
    (path / f"MTD_MSI{level}.xml").write_text(
        f'<?xml version="1.0"?><n1:P xmlns:n1="https://psd"><n1:G><{prefix}QUANTIFICATION_VALUE unit="none">'
        f"10000</{prefix}QUANTIFICATION_VALUE>{offsets}</n1:G></n1:P>"
    )
    return path


def test_products_give_the_finest_bands_with_their_offsets(tmp_path: Path) -> None:
    path = make_product(tmp_path)
    assert is_product(path) and not is_product(tmp_path)
    sources, product = open_product(path, ["B02", "B05", "B08"])
    assert [s.names for s in sources] == [("B02",), ("B05",)]
    assert [s.grid.pixel_size[0] for s in sources] == [10, 20]
    assert [s.offsets[0] for s in sources] == [-1001, -1004], "band_id counts B01 as 0"
    assert {s.scales[0] for s in sources} == {0.0001} and {s.nodata[0] for s in sources} == {0}
    assert product.mask is not None and product.mask.endswith("SCL_20m.jp2")
    with sources[0].reopen() as again:
        assert again.layers == sources[0].layers
    for source in sources:
        source.close()


def test_band_files_inside_a_product_take_its_offset(tmp_path: Path) -> None:
    path = make_product(tmp_path)
    (copy := tmp_path / "T35_2022_B02_10m.jp2").write_bytes(next(path.rglob("*B02_10m.jp2")).read_bytes())
    for file, expected in (
        (next(path.rglob("*B02_10m.jp2")), (0.0001, -1001)),
        (next(path.rglob("*B05_20m.jp2")), (0.0001, -1004)),
        (next(path.rglob("*SCL_20m.jp2")), (None, None)), (copy, (None, None)),
    ):  # fmt: skip
        with open_source(file) as source, source.reopen() as again:
            assert (source.scales[0], source.offsets[0]) == expected
            assert again.layers == source.layers
    flat = make_product(tmp_path / "b", level="L1C", offset=-1000)
    with open_source(next(flat.rglob("*B05.jp2"))) as source:
        assert source.offsets == (-1004,)
    old = make_product(tmp_path / "c", offset=None)
    with open_source(next(old.rglob("*B02_10m.jp2"))) as source:
        assert (source.scales, source.offsets) == ((0.0001,), (0,))


def test_what_a_band_file_says_itself_comes_before_the_product_around_it(tmp_path: Path) -> None:
    band = next(make_product(tmp_path).rglob("*B02_10m.jp2"))
    tagged = band.with_name("T35_2022_B03_10m.tif")
    with rasterio.open(band) as data:
        stored = data.read()
    write(tagged, stored, transform=NORTH_UP)
    with rasterio.open(tagged, "r+") as data:
        data.scales, data.offsets = (0.0001,), (-0.2,)
    with open_source(tagged) as source:
        assert source.offsets == (-2000,)


def test_level_1c_and_old_baselines_are_read_too(tmp_path: Path) -> None:
    sources, product = open_product(make_product(tmp_path, level="L1C", offset=None), ["B02", "B05"])
    assert product.level == "L1C" and product.mask is None and [s.offsets[0] for s in sources] == [0, 0]
    for source in sources:
        source.close()


def test_products_that_are_broken_or_lead_out_are_refused(tmp_path: Path) -> None:
    path = make_product(tmp_path)
    metadata = path / "MTD_MSIL2A.xml"
    good = metadata.read_text()
    for content, words in (
        (good.replace(">10000<", ">ten<"), "expected a number"),
        (good.replace('band_id="0"', 'band_id="99"'), "names band '99'"),
        ('<!DOCTYPE a [<!ENTITY b "b">]>' + good, "entities"),
        (good[:-20], "well-formed"),
    ):
        metadata.write_text(content)
        with pytest.raises(InputError, match=words):
            open_product(path, ["B02"])
    metadata.unlink()
    with pytest.raises(InputError, match="MTD_MSIL2A"):
        open_product(path, ["B02"])
    metadata.write_text(good)
    band = next(path.rglob("*B02_10m.jp2"))
    band.rename(tmp_path / "away.jp2")
    band.symlink_to(tmp_path / "away.jp2")
    with pytest.raises(InputError, match="outside its folder"):
        open_product(path, ["B02"])


def zipped(product: Path, path: Path, *, top: bool = True, more: dict[str, bytes] | None = None) -> Path:
    """The archive of a product, its folder in it or not."""
    root = product.parent if top else product
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(product.rglob("*")):
            archive.write(file, file.relative_to(root))
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("level", ["L2A", "L1C"])
def test_a_zipped_product_reads_as_its_folder(tmp_path: Path, level: str, top: bool) -> None:
    folder = make_product(tmp_path, level=level)
    more = {f"{folder.name}/AUX_DATA/a.xml": b"<a/>", "../../outside_B02_10m.jp2": b"x"}
    path = zipped(folder, tmp_path / "odd name (1).SAFE.zip", top=top, more=more)
    assert is_product(path) and [Path(stamp.path) for stamp in stamps_of([str(path)])] == [path]
    sources, product = open_product(path, ["B02", "B05", "B08"])
    expected, plain = open_product(folder, ["B02", "B05", "B08"])
    assert (product.level, product.scale, product.offsets) == (plain.level, plain.scale, plain.offsets)
    classes, known = open_classes(product), open_classes(plain)
    assert (classes is None) == (known is None) == (level == "L1C")
    pairs = [*zip(sources, expected, strict=True), *([(classes, known)] if classes and known else [])]
    assert len({source.identity()["sha256"] for source in sources}) == len(sources)
    for own, other in pairs:
        assert own.layers == other.layers and own.grid == other.grid
        with own.reopen() as again:
            np.testing.assert_array_equal(again.read([0], own.grid.extent), other.read([0], own.grid.extent))
        own.close()
        other.close()


def test_zipped_products_that_are_damaged_or_exhaust_the_machine_are_refused(tmp_path: Path) -> None:
    folder = make_product(tmp_path)
    bomb = f"{folder.name}/GRANULE/L2A_T35/IMG_DATA/R10m/T35_2022_B03_10m.jp2"
    with pytest.raises(InputError, match="unpacks to"):
        is_product(zipped(folder, tmp_path / "a.SAFE.zip", more={bomb: bytes(2**25)}))
    whole = zipped(folder, tmp_path / "b.SAFE.zip")
    content = bytearray(whole.read_bytes())
    whole.write_bytes(content[:-40])
    with pytest.raises(InputError, match="damaged or no zip"):
        is_product(whole)
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = (2**30).to_bytes(4, "little")
    whole.write_bytes(content)
    with pytest.raises(InputError, match="its directory has"):
        is_product(whole)
    (tmp_path / "c.SAFE").mkdir()
    laughing = make_product(tmp_path / "c.SAFE")
    (laughing / "MTD_MSIL2A.xml").write_text('<!DOCTYPE a [<!ENTITY b "b">]><a/>')
    with pytest.raises(InputError, match="entities"):
        open_product(zipped(laughing, tmp_path / "c.zip"), ["B02"])


def test_a_file_in_a_zipped_product_reaches_no_other_file(tmp_path: Path) -> None:
    folder = make_product(tmp_path)
    band = next(folder.rglob("*B02_10m.jp2"))
    away = tmp_path / "away.tif"
    write(away, np.full((1, 128, 128), 7, "uint16"), transform=NORTH_UP)
    band.write_text(
        '<VRTDataset rasterXSize="128" rasterYSize="128"><VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>{away}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(InputError, match="no raster of an admitted kind"):
        open_product(zipped(folder, tmp_path / "a.SAFE.zip"), ["B02"])


def test_a_zip_archive_of_something_else_is_answered_by_unpacking(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bands.zip", "w") as archive:
        archive.writestr("B02.tif", b"x")
    refuse(tmp_path / "bands.zip", "zip archive but no product")
