"""Rasters that name other files, call out, exhaust memory or lie are refused, at once and with the reason.

Each file goes through a real command. Beside each lies a canary that nothing may read (the kernel reports
every open of it), and a port of this machine that nothing may call.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import netCDF4
import numpy as np
import pytest
import rasterio
import zarr
from affine import Affine

from lulc.cli.preprocess import main
from lulc.core.schema import BANDS, InputError
from lulc.rasters.sources import open_source

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
SECRET = b"the canary sings only for its owner "
SIDE = 64
TRANSFORM = Affine(10, 0, 500000, 0, -10, 6800000)


class Bait(NamedTuple):
    """What a hostile file may try to reach.

    Parameters
    ----------
    folder
        Where the file is to be written.
    canary
        A file outside it, readable as raw pixels.
    port
        Of a listener on this machine.
    """

    folder: Path
    canary: Path
    port: int


@pytest.fixture
def bait(tmp_path: Path, listener: socket.socket) -> Bait:
    """A canary that was not opened, and a port that was not called, when the test ends."""
    canary = tmp_path / "elsewhere" / "canary.tif"
    canary.parent.mkdir()
    write(canary)
    with open(canary, "ab") as file:
        file.write(SECRET * 4000)
    folder = tmp_path / "download"
    folder.mkdir()
    return Bait(folder, canary, listener.getsockname()[1])


def write(path: Path, count: int = 9, **options: object) -> Path:
    profile = {"driver": "GTiff", "dtype": "uint16", "crs": "EPSG:32635", "transform": TRANSFORM, "nodata": 0}
    profile |= {"height": SIDE, "width": SIDE, "count": count, **options}
    with rasterio.open(path, "w", **profile) as target:
        pixels = np.random.default_rng(0).integers(200, 4000, (profile["count"], SIDE, SIDE))
        if profile["height"] == SIDE:
            target.write(pixels.astype(profile["dtype"]))
        if profile["count"] == 9:
            target.descriptions = BANDS
    return path


GEO = "<SRS>EPSG:32635</SRS><GeoTransform>500000,10,0,6800000,0,-10</GeoTransform>"


def vrt(content: str) -> str:
    return f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{GEO}{content}</VRTDataset>'


def raw_band(canary: Path) -> str:
    return vrt(
        '<VRTRasterBand dataType="UInt16" band="1" subClass="VRTRawRasterBand"><SourceFilename '
        f'relativeToVRT="0">{canary}</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>2</PixelOffset>'
        f"<LineOffset>{2 * SIDE}</LineOffset></VRTRasterBand>"
    )


def mosaic_of(source: str, relative: int = 0) -> str:
    return vrt(
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename relativeToVRT="{relative}">'
        f"{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )


def attribute_vrt(bait: Bait) -> Path:
    """A VRT that names its source in an attribute, which GDAL takes for an element."""
    return text(bait, "attribute.vrt", vrt(
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource SourceFilename="{bait.canary}" '
        'relativeToVRT="0"><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
    ))  # fmt: skip


def text(bait: Bait, name: str, content: str) -> Path:
    path = bait.folder / name
    path.write_text(content)
    return path


def nested_vrt(bait: Bait) -> Path:
    text(bait, "inner.tif", raw_band(bait.canary))
    return text(bait, "outer.vrt", mosaic_of("inner.tif", 1))


def linked_vrt(bait: Bait) -> Path:
    (bait.folder / "inside.tif").symlink_to(bait.canary)
    return text(bait, "outer.vrt", mosaic_of("inside.tif", 1))


def python_vrt(bait: Bait) -> Path:
    code = f"def f(*a, **k):\n    open({str(bait.canary)!r}).read()"
    return text(bait, "derived.vrt", vrt(
        '<VRTRasterBand dataType="UInt16" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>f'
        f"</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>{code}"
        "</PixelFunctionCode></VRTRasterBand>"
    ))  # fmt: skip


def warped_vrt(bait: Bait) -> Path:
    options = f"<GDALWarpOptions><SourceDataset>{bait.canary}</SourceDataset></GDALWarpOptions>"
    content = vrt(options).replace("<VRTDataset ", '<VRTDataset subClass="VRTWarpedDataset" ')
    return text(bait, "warped.vrt", content)


def entity_vrt(bait: Bait) -> Path:
    declared = f'<!DOCTYPE x [<!ENTITY c SYSTEM "file://{bait.canary}">]>'
    return text(bait, "entity.vrt", declared + mosaic_of("&c;"))


def sparse_bomb(bait: Bait) -> Path:
    size = {"height": 2_000_000, "width": 2_000_000, "blockxsize": 4096, "blockysize": 4096}
    return write(bait.folder / "bomb.tif", 1, SPARSE_OK=True, BIGTIFF="YES", tiled=True, **size)


def huge_block(bait: Bait) -> Path:
    """One byte compresses to a block of 400 MB."""
    size = {"height": 20_000, "width": 20_000, "blockxsize": 20_000, "blockysize": 20_000}
    return write(bait.folder / "block.tif", 1, dtype="uint8", SPARSE_OK=True, tiled=True, **size)


def many_layers(bait: Bait) -> Path:
    return write(bait.folder / "layers.tif", 1500, dtype="uint8", SPARSE_OK=True, INTERLEAVE="BAND")


def patched(bait: Bait, tag: int, value: int) -> Path:
    """A TIFF one of whose tags has another value."""
    path = write(bait.folder / f"tag{tag}.tif")
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        found, kind = struct.unpack_from("<HH", content, place)
        if found == tag:
            struct.pack_into("<H" if kind == 3 else "<I", content, place + 8, value)
    path.write_bytes(content)
    return path


def cyclic(bait: Bait) -> Path:
    path = write(bait.folder / "cycle.tif")
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 4, 4)
    path.write_bytes(content)
    return path


def truncated(bait: Bait, share: float) -> Path:
    path = write(bait.folder / "cut.tif")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def picture(bait: Bait) -> Path:
    with rasterio.open(bait.folder / "x.png", "w", driver="PNG", height=8, width=8, count=1, dtype="uint8"):
        pass
    return (bait.folder / "x.png").rename(bait.folder / "picture.tif")


def pipe(bait: Bait) -> Path:
    os.mkfifo(bait.folder / "pipe.tif")
    return bait.folder / "pipe.tif"


def device(bait: Bait) -> Path:
    (bait.folder / "device.tif").symlink_to("/dev/zero")
    return bait.folder / "device.tif"


def dangling(bait: Bait) -> Path:
    (bait.folder / "dangling.tif").symlink_to(bait.folder / "gone")
    return bait.folder / "dangling.tif"


def spilled(bait: Bait) -> Path:
    """An Imagine file whose pixels lie, as it says, in a file outside its folder."""
    path = write(bait.folder / "abcdefghijklmnopqrstuvwx.img", driver="HFA", USE_SPILL="YES")
    inside, outside = b"abcdefghijklmnopqrstuvwx.ige", b"../elsewhere/canary.tif\0\0\0\0\0"
    content = path.read_bytes()
    assert inside in content and len(inside) == len(outside)
    path.write_bytes(content.replace(inside, outside))
    path.with_suffix(".ige").unlink()
    return path


def cube(bait: Bait, name: str = "cube.nc") -> Path:
    path = bait.folder / name
    with netCDF4.Dataset(path, "w") as data:
        for axis, step in (("y", -10), ("x", 10)):
            data.createDimension(axis, SIDE)
            data.createVariable(axis, "f8", (axis,))[:] = step * np.arange(SIDE)
        variable = data.createVariable("B02", "u2", ("y", "x"))
        variable[:] = 1
        variable.setncattr("crs", "EPSG:32635")
    return path


def external_link(bait: Bait) -> Path:
    path = cube(bait)
    with h5py.File(path, "r+") as file:
        file["B03"] = h5py.ExternalLink(str(bait.canary), "/x")
    return path


def external_storage(bait: Bait) -> Path:
    path = cube(bait)
    with h5py.File(path, "r+") as file:
        file.create_dataset("B03", (SIDE, SIDE), "u2", external=[(str(bait.canary), 0, h5py.h5f.UNLIMITED)])
    return path


def virtual(bait: Bait) -> Path:
    path = cube(bait)
    layout = h5py.VirtualLayout((SIDE, SIDE), "u2")
    layout[:] = h5py.VirtualSource(str(bait.canary), "x", (SIDE, SIDE))
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("B03", layout)
    return path


def odd_attributes(bait: Bait) -> Path:
    path = cube(bait)
    with netCDF4.Dataset(path, "a") as data:
        data["B02"].setncattr("scale_factor", "many")
    return path


def calling_crs(bait: Bait) -> Path:
    path = cube(bait)
    with netCDF4.Dataset(path, "a") as data:
        data["B02"].delncattr("crs")
        data["B02"].setncattr("crs_wkt", f"http://127.0.0.1:{bait.port}/crs")
    return path


def lying_netcdf3(bait: Bait) -> Path:
    path = bait.folder / "three.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as data:
        data.createDimension("x", 7)
        data.createVariable("B02", "i2", ("x",))[:] = 1
    content = bytearray(path.read_bytes())
    place = content.index(b"\0\0\0\1x\0\0\0") + 8
    struct.pack_into(">i", content, place, 2**31 - 1)
    path.write_bytes(content)
    return path


def truncated_cube(bait: Bait) -> Path:
    path = cube(bait)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def store(bait: Bait) -> Path:
    path = bait.folder / "cube.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name, shape in (("B02", (SIDE, SIDE)), ("x", (SIDE,)), ("y", (SIDE,))):
        array = group.create_array(name, shape=shape, dtype="f8")
        array[:] = 1
        array.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"] if name == "B02" else [name]
    return path


def pickling_store(bait: Bait) -> Path:
    path = store(bait)
    document = json.loads((path / "B02" / ".zarray").read_text())
    (path / "B02" / ".zarray").write_text(json.dumps(document | {"filters": [{"id": "pickle"}]}))
    return path


def linked_store(bait: Bait) -> Path:
    path = store(bait)
    (path / "B02" / "0.0").unlink()
    (path / "B02" / "0.0").symlink_to(bait.canary)
    return path


def nested_store(bait: Bait) -> Path:
    path = store(bait)
    (path / "B02" / ".zarray").write_text("[" * 200_000)
    return path


def product(bait: Bait, metadata: str) -> Path:
    path = bait.folder / "S2A_MSIL2A_X.SAFE"
    images = path / "GRANULE" / "L2A" / "IMG_DATA" / "R10m"
    images.mkdir(parents=True)
    (path / "MTD_MSIL2A.xml").write_text(metadata)
    (images / "T_B02_10m.tif").symlink_to(bait.canary)
    return path


LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "' + "&a;" * 99 + '">]><l>' + "&b;" * 99 + "</l>"
HONEST = "<l><BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE></l>"

VRT, REMOTE = "--allow-vrt", "--allow-remote"

HOSTILE: dict[str, tuple[Callable[[Bait], object], str, tuple[str, ...]]] = {
    "a VRT named .tif": (lambda b: text(b, "innocent.tif", raw_band(b.canary)), "no raster of an", ()),
    "a VRT named .jp2": (lambda b: text(b, "innocent.jp2", mosaic_of(str(b.canary))), "no raster of an", ()),
    "a VRT named .img, allowed": (lambda b: text(b, "x.img", raw_band(b.canary)), "no raster of an", (VRT,)),
    "a VRT": (lambda b: text(b, "raw.vrt", raw_band(b.canary)), "--allow-vrt", ()),
    "a raw-band VRT, allowed": (lambda b: text(b, "raw.vrt", raw_band(b.canary)), "plain mosaic", (VRT,)),
    "a nested VRT": (nested_vrt, "under another name", (VRT,)),
    "a VRT over an absolute path": (
        lambda b: text(b, "out.vrt", mosaic_of(str(b.canary))), "outside its folder", (VRT,)),
    "a VRT over a relative path": (
        lambda b: text(b, "out.vrt", mosaic_of("../elsewhere/canary.tif", 1)), "outside its folder", (VRT,)),
    "a VRT over a link": (linked_vrt, "outside its folder", (VRT,)),
    "a VRT with its source in an attribute": (attribute_vrt, "the attribute 'SourceFilename'", (VRT,)),
    "a VRT over a URL": (
        lambda b: text(b, "out.vrt", mosaic_of(f"/vsicurl/http://127.0.0.1:{b.port}/x.tif")),
        "names '/vsicurl", (VRT,)),
    "a VRT over inline XML": (
        lambda b: text(b, "out.vrt", mosaic_of(raw_band(b.canary).replace("<", "&lt;"))),
        "names '<VRT", (VRT,)),
    "a VRT over itself": (
        lambda b: text(b, "self.vrt", mosaic_of("self.vrt", 1)), "nested more than", (VRT,)),
    "a VRT with Python": (python_vrt, "plain mosaic", (VRT,)),
    "a warped VRT": (warped_vrt, "plain mosaic", (VRT,)),
    "a VRT with an entity": (entity_vrt, "document type", (VRT,)),
    "inline XML": (lambda b: raw_band(b.canary), "is an address", ()),
    "inline XML, remote allowed": (lambda b: raw_band(b.canary), "is an address", (REMOTE, VRT)),
    "/vsicurl": (lambda b: f"/vsicurl/http://127.0.0.1:{b.port}/x.tif", "is an address", ()),
    "a URL": (lambda b: f"http://127.0.0.1:{b.port}/x.tif", "is an address", (VRT,)),
    "a NetCDF by URL": (lambda b: f"http://127.0.0.1:{b.port}/x.nc", "is an address", ()),
    "a Zarr by URL": (lambda b: f"http://127.0.0.1:{b.port}/x.zarr", "is an address", ()),
    "/vsizip": (lambda b: f"/vsizip/{b.folder}/x.zip/x.tif", "is an address", ()),
    "a subdataset": (lambda b: f'NETCDF:"{b.canary}":x', "is an address", ()),
    "a directory of a TIFF": (lambda b: f"GTIFF_DIR:1:{b.canary}", "is an address", ()),
    "a sparse bomb": (sparse_bomb, "times the size", ()),
    "a huge block": (huge_block, "internal blocks", ()),
    "a thousand layers": (many_layers, "expected at most 1024", ()),
    "no layer": (lambda b: patched(b, 277, 0), "", ()),
    "no column": (lambda b: patched(b, 256, 0), "", ()),
    "more rows than there are blocks": (lambda b: patched(b, 257, 60_000), "", ()),
    "bits that no type has": (lambda b: patched(b, 258, 8), "", ()),
    "an unknown compression": (lambda b: patched(b, 259, 4711), "", ()),
    "blocks beyond the end": (lambda b: patched(b, 273, 2**31), "", ()),
    "a directory within the header": (cyclic, "", ()),
    "text": (lambda b: text(b, "text.tif", "no raster at all\n" * 999), "no raster of an admitted", ()),
    "nothing": (lambda b: text(b, "empty.tif", ""), "no raster of an admitted", ()),
    "a picture": (picture, "no raster of an admitted", ()),
    "a folder of anything": (lambda b: b.folder, "are missing", ()),
    "a pipe": (pipe, "no regular file", ()),
    "a device": (device, "no regular file", ()),
    "a dangling link": (dangling, "no such file", ()),
    "Imagine with pixels elsewhere": (spilled, "", ()),
    "NetCDF with an external link": (external_link, "a link to another place", ()),
    "NetCDF with external storage": (external_storage, "stored in another file", ()),
    "NetCDF with a virtual dataset": (virtual, "stored in another file", ()),
    "NetCDF with odd attributes": (odd_attributes, "attributes", ()),
    "NetCDF with a CRS to fetch": (calling_crs, "", ()),
    "NetCDF 3 that lies": (lying_netcdf3, "", ()),
    "half a NetCDF": (truncated_cube, "truncated", ()),
    "Zarr with pickles": (pickling_store, "stored with pickle", ()),
    "Zarr with a link": (linked_store, "outside its folder", ()),
    "Zarr with deep JSON": (nested_store, "not valid JSON", ()),
    "a product with entities": (lambda b: product(b, LAUGHS), "document type", ()),
    "a product with a link": (lambda b: product(b, HONEST), "outside its folder", ()),
    **{
        f"a TIFF cut at {tenth} of 11": (lambda b, t=tenth: truncated(b, t / 11), "", ())
        for tenth in range(1, 11)
    },
}  # fmt: skip


def arguments(bait: Bait, name: str) -> tuple[list[str], str]:
    """Command line that gives a hostile file for bands, and how messages name it."""
    make, _, options = HOSTILE[name]
    path = str(make(bait))
    labels = write(bait.folder / "labels.tif", 1, dtype="uint8")
    out = str(bait.folder / "stacks")
    line = ["--bands", path, "--labels", str(labels), "--scheme", "kaakonkulma-13", "--out", out, "-q"]
    return [*line, *options], path


def check_message(message: str, path: str, reason: str) -> None:
    assert message.count("error: cannot ") == 1 and "Traceback" not in message
    assert Path(path).name in message or path[:100] in message
    assert reason in message
    assert SECRET[:12].decode() not in message


@pytest.mark.parametrize("name", list(HOSTILE))
def test_it_is_refused_with_file_and_reason(
    name: str, bait: Bait, unread: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    line, path = arguments(bait, name)
    with unread(bait.canary):
        start = time.process_time()
        assert main(line) == 1
        assert time.process_time() - start < 2
    captured = capfd.readouterr()
    check_message(captured.err, path, HOSTILE[name][1])
    assert not captured.out
    assert not list(bait.folder.glob("stacks/*.*"))


def test_there_are_at_least_forty() -> None:
    assert len(HOSTILE) >= 40


QUICK = ["a VRT named .tif", "/vsicurl", "a sparse bomb", "NetCDF with external storage", "Zarr with pickles"]


WHOLE = """
import sys
from lulc.cli.{command} import main
code = main({arguments!r})
loaded = {{"keras", "tensorflow", "jax", "torch", "openvino"}} & set(sys.modules)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, 1024 * int(peak.split()[1]), *loaded)
"""


def measure(command: str, arguments: list[str]) -> tuple[str, float]:
    """Messages and CPU seconds of a whole command that is refused, in 500 MB and without a framework."""
    script = WHOLE.format(command=command, arguments=arguments)
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    after = os.times()
    code, peak, *loaded = done.stdout.split()
    assert code == "1" and not loaded
    assert int(peak) < 500e6
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stderr, used


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> float:
    """CPU seconds for a refusal: 2, or three times those of a missing file where starting is slow."""
    missing = str(tmp_path_factory.mktemp("none") / "none.tif")
    line = ["--bands", missing, "--labels", missing, "--out", f"{missing}.stacks", "-q"]
    return max(2.0, 3 * min(measure("preprocess", line)[1] for _ in range(3)))


def check_whole_command(name: str, bait: Bait, allowed: float) -> None:
    line, path = arguments(bait, name)
    # Of several, since what runs beside a command costs it processor time.
    for _ in range(3):
        message, seconds = measure("preprocess", line)
        check_message(message, path, HOSTILE[name][1])
        if seconds < allowed:
            break
    assert seconds < allowed


@pytest.mark.parametrize("name", QUICK)
def test_the_whole_command_takes_two_seconds_and_500_mb_at_most(
    name: str, bait: Bait, allowed: float
) -> None:
    check_whole_command(name, bait, allowed)


@pytest.mark.stress
@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in QUICK])
def test_every_whole_command_takes_two_seconds_and_500_mb_at_most(
    name: str, bait: Bait, allowed: float
) -> None:
    check_whole_command(name, bait, allowed)


def test_side_car_files_that_lead_elsewhere_are_refused_or_not_opened(bait: Bait, unread: Callable) -> None:
    path = write(bait.folder / "honest.tif")
    labels = np.add.outer(np.arange(SIDE) // 8, np.arange(SIDE) // 8) % 6 + 1
    with rasterio.open(write(bait.folder / "labels.tif", 1, dtype="uint8"), "r+") as target:
        target.write(labels.astype(np.uint8), 1)
    (bait.folder / "honest.tif.ovr").symlink_to(bait.canary)
    (bait.folder / "honest.tfw").symlink_to(bait.canary)
    with unread(bait.canary):
        for ending in (".msk", ".aux.xml"):
            beside = bait.folder / f"honest.tif{ending}"
            beside.symlink_to(bait.canary)
            with pytest.raises(InputError, match="outside its folder"):
                open_source(path)
            beside.unlink()
        line = ["--bands", str(path), "--labels", str(bait.folder / "labels.tif"), "--scale", "0.0001"]
        line += ["--scheme", "kaakonkulma-13"]
        assert main([*line, "--size", "16", "--gap", "2", "--out", str(bait.folder / "stacks"), "-q"]) == 0
    for result in (bait.folder / "stacks").iterdir():
        assert SECRET not in result.read_bytes()


def test_nothing_is_opened_or_called_beside_the_file_itself(bait: Bait) -> None:
    """What the kernel saw of a whole command: names of opened files, and connections."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace (make system)")
    for name in ("a VRT named .tif", "Imagine with pixels elsewhere", "NetCDF with external storage"):
        shutil.rmtree(bait.folder)
        bait.folder.mkdir()
        line, _ = arguments(bait, name)
        calls = bait.folder / "calls.txt"
        script = [sys.executable, str(ROOT / "preprocess.py"), *line]
        traced = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2,connect", "-o", str(calls), *script]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(traced, capture_output=True, text=True, env=environment)
        if "ptrace" in done.stderr.lower() or "Operation not permitted" in done.stderr:
            pytest.skip("strace may not trace here")
        assert done.returncode == 1
        seen = calls.read_text()
        assert "canary" not in re.sub(r"download/[^\"]*", "", seen)
        assert "AF_INET" not in seen


def poisoned(model: Path, folder: Path) -> Path:
    """A model with one weight that is no number, its card vouching for it."""
    with zipfile.ZipFile(io.BytesIO(model.read_bytes())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = bytearray(members["model.weights.h5"])
    place = weights.rindex(np.float32(1800).tobytes())
    weights[place : place + 4] = np.float32("nan").tobytes()
    path = folder / "poisoned.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in (members | {"model.weights.h5": bytes(weights)}).items():
            archive.writestr(name, member)
    card = json.loads(model.with_suffix(".json").read_text())
    del card["seal"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": digest}))
    return path


@pytest.mark.parametrize("which", ["bands", "model", "map", "initial weights"])
def test_everything_is_guarded_before_a_framework_is_loaded(
    which: str, bait: Bait, tiny_model: Path, write_stacks: Callable[..., Path]
) -> None:
    hostile = text(bait, "innocent.tif", raw_band(bait.canary))
    bands, out = write(bait.folder / "bands.tif"), bait.folder / "out.tif"
    poison = poisoned(tiny_model, bait.folder)
    command, line, says = {
        "bands": ("make_classifications", [tiny_model, hostile, out], "innocent.tif"),
        "model": ("make_classifications", [poison, bands, out, "--scale", "1e-4", "--offset", "0"], "NaN"),
        "map": (
            "evaluate_classifications",
            [hostile, bands, "--out", bait.folder / "report"],
            "innocent.tif",
        ),
        "initial weights": (
            "train_model",
            [write_stacks(bait.folder / "stacks", side=32), "--out", bait.folder / "run", "--init", poison],
            "NaN",
        ),
    }[which]
    message, seconds = measure(command, [str(word) for word in (*line, "-q")])
    check_message(message, poison.name if says == "NaN" else says, says)
    assert seconds < 2
