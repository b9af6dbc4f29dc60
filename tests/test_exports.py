"""NetCDF and Zarr hold the pixels and legend of a map, as xarray, GDAL and the toolkit itself read them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr

from lulc.cli.export_map import main
from lulc.core.schema import IGNORE
from lulc.core.windows import Window
from lulc.rasters.sources import open_source

WriteMap = Callable[..., Path]

KINDS = ("nc", "zarr")


def export(path: Path, kind: str, *options: str) -> Path:
    out = path.with_suffix(f".{kind}")
    assert main([str(path), "--out", str(out), *options]) == 0
    return out


def opened(path: Path, **keywords: Any) -> xr.Dataset:
    extra: dict[str, Any] = {"engine": "zarr", "consolidated": False} if path.suffix == ".zarr" else {}
    return xr.open_dataset(path, **extra, **keywords)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activations", ["float32", "uint16", "uint8", "none"])
def test_pixels_are_those_of_the_map(
    tmp_path: Path, write_map: WriteMap, kind: str, activations: str
) -> None:
    path = write_map(tmp_path / "map.tif", shape=(530, 300), activations=activations, unclassified=True)
    with opened(export(path, kind)) as data, rasterio.open(path) as source:
        stored = source.read(masked=True)
        np.testing.assert_array_equal(
            data["land_cover"].fillna(IGNORE).values, stored[0].filled(IGNORE).astype(np.uint8)
        )
        assert ("activation" in data) is (activations != "none")
        if activations != "none":
            scales = np.array(source.scales[1:])[:, None, None]
            expected = (stored[1:] * scales).filled(np.nan)
            np.testing.assert_allclose(data["activation"].values, expected, rtol=1e-6)
            assert list(data["land_cover_class"].values) == list(source.descriptions[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_activations_stay_as_they_are_stored(tmp_path: Path, write_map: WriteMap, kind: str) -> None:
    path = write_map(tmp_path / "map.tif", activations="uint16")
    with opened(export(path, kind), mask_and_scale=False) as data, rasterio.open(path) as source:
        assert data["activation"].dtype == np.uint16
        np.testing.assert_array_equal(data["activation"].values, source.read(list(source.indexes[1:])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("epsg", "origin", "pixel"), [(3067, (5e5, 6.7e6), 10.0), (4326, (25.0, 61.0), 1e-4)]
)
def test_coordinates_and_grid_mapping_follow_cf(
    tmp_path: Path, write_map: WriteMap, kind: str, epsg: int, origin: tuple[float, float], pixel: float
) -> None:
    path = write_map(tmp_path / "map.tif", epsg=epsg, origin=origin, pixel=pixel)
    with opened(export(path, kind)) as data, rasterio.open(path) as source:
        rows, cols = range(source.height), range(source.width)
        np.testing.assert_allclose(data["x"].values, source.xy([0] * source.width, cols)[0], rtol=1e-12)
        np.testing.assert_allclose(data["y"].values, source.xy(rows, [0] * source.height)[1], rtol=1e-12)
        assert rasterio.crs.CRS.from_wkt(data["crs"].attrs["crs_wkt"]) == source.crs
        parameters = {k: v for k, v in data["crs"].attrs.items() if k not in ("crs_wkt", "spatial_ref")}
        from_cf = pyproj.Transformer.from_crs(pyproj.CRS.from_cf(parameters), 4326, always_xy=True)
        expected = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(*origin)
        assert from_cf.transform(*origin) == pytest.approx(expected, abs=1e-9)
        names = {4326: ("longitude", "latitude")}.get(
            epsg, ("projection_x_coordinate", "projection_y_coordinate")
        )
        assert (data["x"].attrs["standard_name"], data["y"].attrs["standard_name"]) == names
        for name in ("land_cover", "activation"):
            variable = data[name]
            assert (variable.attrs | variable.encoding)["grid_mapping"] == "crs"
        assert data.attrs["Conventions"] == "CF-1.10"


@pytest.mark.parametrize("kind", KINDS)
def test_flags_have_a_word_and_a_colour_for_each_value(
    tmp_path: Path, write_map: WriteMap, kind: str
) -> None:
    path = write_map(tmp_path / "map.tif", names=("Water & ice", "Water / ice", "ヨシ"))
    with opened(export(path, kind), mask_and_scale=False) as data:
        flags = data["land_cover"].attrs
        assert list(flags["flag_values"]) == [0, 1, 2, 3]
        words = flags["flag_meanings"].split(" ")
        assert words == ["unclassified", "water_ice", "water_ice_3", "class_4"]
        assert flags["flag_colors"].split(" ") == ["#ffb3d9", "#28a001", "#50a002", "#78a003"]
    if kind == "nc":
        with netCDF4.Dataset(path.with_suffix(".nc")) as file:
            variable = file["land_cover"]
            assert variable.flag_values.dtype == variable.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_tags_say_goes_along(tmp_path: Path, write_map: WriteMap, kind: str) -> None:
    path = write_map(tmp_path / "map.tif", tags={"LULC_MODEL": "run/å"})
    with opened(export(path, kind)) as data:
        assert data.attrs["lulc_model"] == "run/å"
        assert data.attrs["lulc_version"] == "0.1.0"


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_tags_that_no_format_can_hold_do_not_break_it(
    tmp_path: Path, write_map: WriteMap, kind: str
) -> None:
    names = ("a\x00b", "\ud800", "a-b")
    classes = [{"number": i, "name": name, "color": "#102030"} for i, name in enumerate(names, 1)]
    tags = {"LULC_A/B": "x", "LULC_ ": "y", "LULC_LEGEND": json.dumps({"name": "\ud800", "classes": classes})}
    path = write_map(tmp_path / "map.tif", tags=tags)
    with opened(export(path, kind)) as data:
        assert list(data["land_cover_class"].values) == ["ab", "", "a-b"]
        assert not [name for name in data.attrs if "/" in name]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_maps_give_equal_bytes_and_nothing_else_lies_around(
    tmp_path: Path, write_map: WriteMap, kind: str
) -> None:
    path = write_map(tmp_path / "map.tif", shape=(300, 600))
    first = contents(export(path, kind))
    assert contents(export(path, kind, "--overwrite")) == first
    assert {p.name for p in tmp_path.iterdir()} == {"map.tif", f"map.{kind}"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_that_fails_leaves_what_was_there(
    tmp_path: Path, write_map: WriteMap, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lulc.export import cf

    path = write_map(tmp_path / "map.tif")
    first = contents(export(path, kind))

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cf.Packing, "pack", fail)
    assert main([str(path), "--out", str(tmp_path / f"map.{kind}"), "--overwrite"]) == 1
    assert contents(tmp_path / f"map.{kind}") == first
    assert {p.name for p in tmp_path.iterdir()} == {"map.tif", f"map.{kind}"}


def test_a_folder_that_is_no_zarr_is_not_replaced(
    tmp_path: Path, write_map: WriteMap, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_map(tmp_path / "map.tif")
    (tmp_path / "map.zarr").mkdir()
    (tmp_path / "map.zarr" / "thesis.txt").write_text("years of work")
    assert main([str(path), "--out", str(tmp_path / "map.zarr"), "--overwrite"]) == 1
    assert "no Zarr folder" in capsys.readouterr().err
    assert (tmp_path / "map.zarr" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("kind", KINDS)
def test_the_toolkit_reads_its_own_exports(tmp_path: Path, write_map: WriteMap, kind: str) -> None:
    path = write_map(tmp_path / "map.tif")
    with open_source(export(path, kind)) as source, rasterio.open(path) as original:
        assert source.grid.transform.almost_equals(original.transform, 1e-6)
        assert source.grid.crs == original.crs
        place = [layer.name for layer in source.layers].index("land_cover")
        values = source.read([place], Window(0, 0, *original.shape))[0]
        np.testing.assert_array_equal(values, original.read(1, masked=True).filled(IGNORE).astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_gdal_opens_the_export_where_the_map_lies(tmp_path: Path, write_map: WriteMap, kind: str) -> None:
    if shutil.which("gdal_translate") is None:
        pytest.skip("needs gdal_translate (make system installs gdal-bin)")
    path = write_map(tmp_path / "map.tif", shape=(300, 600))
    out = export(path, kind)
    name = f'ZARR:"{out}":/land_cover' if kind == "zarr" else f"NETCDF:{out}:land_cover"
    copy = tmp_path / "copy.tif"
    subprocess.run(["gdal_translate", "-q", name, copy], check=True, capture_output=True)
    with rasterio.open(copy) as source, rasterio.open(path) as original:
        assert source.crs == original.crs
        assert source.transform.almost_equals(original.transform, 1e-6)
        assert source.nodata == IGNORE
        np.testing.assert_array_equal(
            source.read(1), original.read(1, masked=True).filled(IGNORE).astype(np.uint8)
        )


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_depend_on_the_size_of_the_map(
    tmp_path: Path, write_map: WriteMap, kind: str
) -> None:
    # VmHWM, since getrusage gives a child the peak of its parent.
    code = (
        "import sys\nfrom lulc.cli.export_map import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for side in (2048, 5120):
        path = write_map(tmp_path / f"{side}.tif", shape=(side, side))
        command = [sys.executable, "-c", code, str(path), "--out", str(path.with_suffix(f".{kind}"))]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(ended.stdout.split()[-2]) / 1e3)
    assert peaks[1] < peaks[0] + 100, peaks


def test_an_ending_that_says_no_format_is_refused(
    tmp_path: Path, write_map: WriteMap, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_map(tmp_path / "map.tif")
    assert main([str(path), "--out", str(tmp_path / "map.xyz")]) == 1
    assert ".qml or .sld or .aux.xml or .json or .nc or .zarr" in capsys.readouterr().err
    assert main([str(path), "--out", str(path), "--overwrite"]) == 1
    with rasterio.open(path) as source:
        assert source.count == 4


def test_a_folder_is_refused_as_the_map_whatever_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([".", "--out", "x.qml"]) == 1
    assert "'.'" in capsys.readouterr().err
