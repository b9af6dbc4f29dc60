"""Mutate one small file of each kind that the toolkit reads, and read each as the commands would.

Each file is read in a child process. A mutation fails where the child ends by a signal, raises anything but
`InputError`, takes too long or too much memory. The same seed makes the same files. What failed is kept.

Example: python benchmarks/fuzz.py --minutes 5 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import logging
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine

from lulc.config import PreprocessConfig
from lulc.core.config_file import read_settings
from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, InputError
from lulc.core.statistics import read_statistics
from lulc.core.windows import Window
from lulc.datasets.arrays import open_layers
from lulc.datasets.loading import load_manifest
from lulc.evaluation.measures.results import read_history
from lulc.labels.labels import open_labels
from lulc.labels.schemes import load_scheme
from lulc.models.archive import read_archive
from lulc.models.card import card_path, load_card
from lulc.models.onnx_file import read_graph
from lulc.preprocessing.chips import find_chips
from lulc.rasters import cubes, features
from lulc.rasters.channels import load_channels
from lulc.rasters.sources import is_collection, open_classes, open_item, open_product, open_source, open_store

ROOT = Path(__file__).resolve().parents[1]
SIDE = 48
TRANSFORM = Affine(10, 0, 500000, 0, -10, 6800000)
CRS = "EPSG:32635"
PATIENCE = 60.0
"""Seconds without an answer after which a read counts as endless, on a machine that does other work too."""

MEMORY = 2**30
"""Resident bytes of the reading process, and of the one that asked."""

BATCH = 25
"""Files that one child reads, one after the other."""

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (
    "1e400", "-1", "NaN", "null", "99999999999999999999", '"../x"', '"http://127.0.0.1:9/x"',
    '"/etc/passwd"', "[]", "{}", '"\\u0000"', '"\\u001b[2J\\n"', "true", "[[[[[[[[", "0.1e-320",
    '"' + "x" * 5000 + '"',
)  # fmt: skip


class Kind(NamedTuple):
    """One kind of file.

    Parameters
    ----------
    make
        Writes an honest file or folder into a folder, and returns it.
    read
        Reads it as the commands would.
    text
        True for documents, whose words are exchanged as often as their bytes.
    pack
        What makes the file of mutated content, where it is not the file itself that is mutated.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    text: bool = False
    pack: Callable[[bytes], bytes] = bytes


def write_raster(path: Path, **options: Any) -> Path:
    """Write bands of noise, by any driver that can create."""
    side = options.get("width", SIDE)
    pixels = np.random.default_rng(0).integers(200, 4000, (9, side, side)).astype("uint16")
    profile = {"driver": "GTiff", "dtype": "uint16", "crs": CRS, "transform": TRANSFORM, "nodata": 0}
    profile |= {"height": SIDE, "width": SIDE, "count": 9, **options}
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels[: profile["count"]].astype(profile["dtype"]))
        if profile["driver"] == "GTiff":
            target.descriptions = BANDS[: profile["count"]]
            target.update_tags(1, valid_min="0", note="simulated")
            target.build_overviews([2, 4])
    return path


def write_jp2(path: Path) -> Path:
    """Write a JPEG 2000 file from a GeoTIFF, since its driver only copies."""
    import rasterio.shutil

    source = write_raster(path.with_suffix(".tif"), count=3)
    rasterio.shutil.copy(source, path, driver="JP2OpenJPEG")
    source.unlink()
    return path


def cube() -> Any:
    """Return simulated bands as an xarray dataset."""
    import xarray as xr

    place = np.arange(SIDE)
    rng = np.random.default_rng(0)
    data = {name: (("y", "x"), rng.integers(200, 4000, (SIDE, SIDE)).astype("uint16")) for name in BANDS[:3]}
    named = xr.DataArray(np.array(["a", "b"], dtype="U5"), dims="word")
    dataset = xr.Dataset(data, {"x": 500005.0 + 10 * place, "y": 6799995.0 - 10 * place, "words": named})
    mapping = ((), 0, {"crs_wkt": rasterio.crs.CRS.from_string(CRS).to_wkt()})
    dataset = dataset.assign_coords(spatial_ref=mapping)
    for name in BANDS[:3]:
        dataset[name].attrs |= {"grid_mapping": "spatial_ref", "scale_factor": 0.0001, "missing_value": 0}
    return dataset


def write_netcdf(path: Path) -> Path:
    """Write a NetCDF-4 file with deflated chunks."""
    packed = {name: {"zlib": True, "chunksizes": (16, 16)} for name in BANDS[:3]}
    cube().to_netcdf(path, encoding=packed)
    return path


def write_zarr(path: Path, version: int) -> Path:
    """Write a Zarr folder."""
    cube().to_zarr(path, zarr_format=version, encoding={name: {"chunks": (24, 24)} for name in BANDS[:3]})
    return path


def write_vector(path: Path) -> Path:
    """Write polygons with a field of codes."""
    import geopandas
    import shapely

    left, top = TRANSFORM.c, TRANSFORM.f
    boxes = [shapely.box(left + 50 * i, top - 400, left + 50 * i + 40, top) for i in range(6)]
    frame = geopandas.GeoDataFrame(
        {"code": [1, 2, 3, 1, 2, 3], "note": list("abcdef")}, geometry=boxes, crs=CRS
    )
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, engine="pyogrio")
    return path


def write_product(path: Path) -> Path:
    """Write a zipped Copernicus product of simulated bands."""
    from lulc.demo import landscape

    product = landscape.write_product(landscape.simulate((96, 96), 1), path.parent.parent)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(product.rglob("*")):
            archive.write(file, f"{product.name}/{file.relative_to(product)}")
    return path


def write_member(path: Path) -> Path:
    """Write the HDF5 weights of a shipped model alone."""
    with zipfile.ZipFile(shipped()) as archive:
        path.write_bytes(archive.read("model.weights.h5"))
    return path


def write_legacy(path: Path) -> Path:
    """Write weights as Keras 2 did."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(4):
            kernel = rng.normal(size=(3, 3, 4, 4)).astype("float32")
            file.create_dataset(f"conv{i}/conv{i}/kernel:0", data=kernel)
            file.create_dataset(f"conv{i}/conv{i}/bias:0", data=np.zeros(4, "float32"))
    return path


def packed(member: bytes) -> bytes:
    """Return a model file whose HDF5 weights are these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(shipped()) as archive, zipfile.ZipFile(buffer, "w") as written:
        for name in archive.namelist():
            written.writestr(name, member if name == "model.weights.h5" else archive.read(name))
    return buffer.getvalue()


def shipped() -> Path:
    """Return a model file that comes with the toolkit."""
    return next(iter(sorted((ROOT / "weights").rglob("*.keras"))))


def write_stacks(folder: Path) -> Path:
    """Make a folder of stacks by preprocess.py."""
    from lulc.cli.preprocess import main

    size = {"width": 160, "height": 160}
    scene = write_raster(folder.parent / "scene.tif", **size)
    labels = write_raster(folder.parent / "classes.tif", count=1, dtype="uint8", **size)
    with rasterio.open(labels, "r+") as target:
        target.write(np.add.outer(np.arange(160) // 8, np.arange(160) // 8).astype("uint8") % 6 + 1, 1)
    line = ["--bands", str(scene), "--labels", str(labels), "--scheme", "kaakonkulma-13", "--size", "16"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*line, "--out", str(folder), "-q"]) == 0
    return folder


def write_text(path: Path, content: str) -> Path:
    """Write a document."""
    path.write_text(content, encoding="utf-8")
    return path


def write_item(path: Path) -> Path:
    """Write a STAC item with two assets beside it."""
    assets = {}
    for name in BANDS[:2]:
        write_raster(path.parent / f"{name}.tif", count=1)
        assets[name] = {
            "href": f"./{name}.tif", "roles": ["data"],
            "raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}], "eo:bands": [{"name": name}],
        }  # fmt: skip
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "simulated", "geometry": None, "links": [],
        "properties": {"datetime": "2020-06-01T00:00:00Z"}, "assets": assets,
    }  # fmt: skip
    return write_text(path, json.dumps(item, indent=1))


def read_raster(path: Path) -> None:
    """Read everything of a raster: pixels, masks, overviews, colours, tables, identity."""
    if is_collection(str(path)):
        for source in filter(None, [*(found := open_store(str(path), BANDS))[0], found[1]]):
            source.close()
        return
    with open_source(path, allow_vrt=True) as source:
        window = Window(0, 0, min(source.grid.height, 512), min(source.grid.width, 512))
        layers = range(min(len(source.layers), 12))
        source.read_valid(layers, window)
        source.read_valid(layers, window, 3)
        source.palette(), source.attributes(), source.table(), source.identity()
        with source.reopen() as again:
            again.read([0], window)


def read_product(path: Path) -> None:
    """Open an archived product and read a band."""
    if is_collection(str(path)):
        sources, product = open_product(path, BANDS)
        for source in filter(None, (*sources, open_classes(product))):
            with source:
                source.read([0], source.grid.extent)


def read_labels(path: Path) -> None:
    """Burn the polygons of a vector file."""
    grid = GridSpec(rasterio.crs.CRS.from_string(CRS), TRANSFORM, SIDE, SIDE)
    with open_labels(str(path), grid, load_scheme("kaakonkulma-13")) as labels:
        labels.read(grid.extent)
        labels.describe()


def read_stack(path: Path) -> None:
    """Read a stack."""
    layers = open_layers(path)
    np.asarray(layers[0 : layers.shape[0]])


def read_item(path: Path) -> None:
    """Open a STAC item and its bands."""
    if is_collection(str(path)):
        sources, _ = open_item(path, BANDS)
        for source in sources:
            source.close()


def read_manifest(path: Path) -> None:
    """Read a manifest."""
    load_manifest(path.parent)


def read_card(path: Path) -> None:
    """Read a model card."""
    load_card(path.with_suffix(".keras"))


def read_options(path: Path) -> None:
    """Read a file of options."""
    read_settings(path, PreprocessConfig)


def read_classes(path: Path) -> None:
    """Read a table of classes."""
    load_scheme(str(path))


def read_sidecar(path: Path) -> None:
    """Read a raster with what lies beside it."""
    read_raster(path.with_name(path.name.removesuffix(".aux.xml")))


def read_network(path: Path) -> None:
    """Read a network of another toolkit."""
    read_graph(path, 14)


def read_channels(path: Path) -> None:
    """Read a channel set."""
    load_channels(str(path))


def read_epochs(path: Path) -> None:
    """Read the history of a training."""
    read_history(path)


def read_chips(path: Path) -> None:
    """Read a table of chips."""
    find_chips(PreprocessConfig(bands=(str(path),), labels="", out="x"))


def write_vrt(path: Path) -> Path:
    """Write a mosaic of one file."""
    import rasterio.shutil

    source = write_raster(path.with_suffix(".tif"), count=3)
    with rasterio.open(source) as opened:
        rasterio.shutil.copy(opened, path, driver="VRT")
    return path


def write_sidecar(path: Path) -> Path:
    """Write a raster of classes and the attribute table beside it."""
    write_raster(path, count=1, dtype="uint8")
    rows = "".join(f"<Row index='{i}'><F>{i}</F><F>class {i}</F></Row>" for i in range(1, 7))
    fields = "<FieldDefn index='0'><Name>Value</Name><Type>0</Type><Usage>5</Usage></FieldDefn>"
    fields += "<FieldDefn index='1'><Name>Class</Name><Type>2</Type><Usage>2</Usage></FieldDefn>"
    table = f"<GDALRasterAttributeTable>{fields}{rows}</GDALRasterAttributeTable>"
    band = f"<PAMRasterBand band='1'><NoDataValue>0</NoDataValue>{table}</PAMRasterBand>"
    return write_text(Path(f"{path}.aux.xml"), f"<PAMDataset>{band}</PAMDataset>")


def write_network(path: Path) -> Path:
    """Write a shipped network as ONNX."""
    from lulc.config import ExportModelConfig
    from lulc.export.export import export_model

    return export_model(ExportModelConfig(model=str(shipped()), out=str(path)))[0]


OPTIONS = "format_version: 1\nbands: [a.tif]\nlabels: b.tif\nout: c\nsize: 256\nseed: 1\n"
CHIPS = "bands,labels,group\na.tif,b.tif,1\nc.tif,d.tif,2\n"
CLASSES = "code,class,name,color\n1,1,Water,#0000ff\n2,2,Wood,#00ff00\n"
CHANNELS = (
    "format_version: 1\nname: own\nchannels:\n  - B02\n  - {name: elevation, kind: elevation, scale: 0.1}\n"
    "  - slope\n"
)
STATISTICS = '{"statistics": {"mean": [1.0, 2.0], "std": [1.0, 0.5], "count": 10}}\n'
HISTORY = "epoch,loss,val_loss,val_accuracy\n1,2.5,2.4,0.1\n2,2.1,2.0,0.3\n"
TILED = {"tiled": True, "compress": "deflate", "blockxsize": 16, "blockysize": 16}

KINDS: dict[str, Kind] = {
    "GeoTIFF": Kind(lambda f: write_raster(f / "a.tif", **TILED), read_raster),
    "JPEG 2000": Kind(lambda f: write_jp2(f / "a.jp2"), read_raster),
    "Imagine": Kind(lambda f: write_raster(f / "a.img", driver="HFA"), read_raster),
    "NetCDF": Kind(lambda f: write_netcdf(f / "a.nc"), read_raster),
    "Zarr 2": Kind(lambda f: write_zarr(f / "a.zarr", 2), read_raster),
    "Zarr 3": Kind(lambda f: write_zarr(f / "b.zarr", 3), read_raster),
    "SAFE archive": Kind(lambda f: write_product(f / "S2A.SAFE.zip"), read_product),
    "GeoPackage": Kind(lambda f: write_vector(f / "a.gpkg"), read_labels),
    "GeoJSON": Kind(lambda f: write_vector(f / "a.geojson"), read_labels, True),
    "shapefile": Kind(lambda f: write_vector(f / "a.shp"), read_labels),
    "FlatGeobuf": Kind(lambda f: write_vector(f / "a.fgb"), read_labels),
    "keras": Kind(lambda f: Path(shutil.copy(shipped(), f / "a.keras")), read_archive),
    "keras member": Kind(lambda f: write_member(f / "a.keras"), read_archive, pack=packed),
    "h5 weights": Kind(lambda f: write_legacy(f / "a.h5"), read_archive),
    "npy stack": Kind(lambda f: min(write_stacks(f / "stacks").glob("*.npy")), read_stack),
    "manifest": Kind(lambda f: write_stacks(f / "stacks") / "manifest.json", read_manifest, True),
    "model card": Kind(lambda f: Path(shutil.copy(card_path(shipped()), f / "a.json")), read_card, True),
    "YAML options": Kind(lambda f: write_text(f / "a.yaml", OPTIONS), read_options, True),
    "chip table": Kind(lambda f: write_text(f / "a.csv", CHIPS), read_chips, True),
    "class table": Kind(lambda f: write_text(f / "a.csv", CLASSES), read_classes, True),
    "STAC item": Kind(lambda f: write_item(f / "item.json"), read_item, True),
    "VRT": Kind(lambda f: write_vrt(f / "a.vrt"), read_raster, True),
    "side-car": Kind(lambda f: write_sidecar(f / "a.tif"), read_sidecar, True),
    "GeoParquet": Kind(lambda f: write_vector(f / "a.parquet"), read_labels),
    "ONNX": Kind(lambda f: write_network(f / "a.onnx"), read_network),
    "channel set": Kind(lambda f: write_text(f / "a.yaml", CHANNELS), read_channels, True),
    "statistics": Kind(lambda f: write_text(f / "a.json", STATISTICS), read_statistics, True),
    "history": Kind(lambda f: write_text(f / "a.csv", HISTORY), read_epochs, True),
}  # fmt: skip


def mutate(content: bytes, rng: random.Random, *, text: bool) -> bytes:
    """Return the content with a few changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(data) + 1)
        # Most formats say what they hold in their first and last bytes.
        if rng.random() < 0.4:
            place = min(place % 512, len(data)) if rng.random() < 0.7 else max(0, len(data) - place % 512)
        _change(data, place, rng, text=text)
    return bytes(data)


def _change(data: bytearray, place: int, rng: random.Random, *, text: bool) -> None:
    match rng.randrange(9 if text else 6):
        case 0:
            data[place : place + 1] = (
                bytes([data[place] ^ 1 << rng.randrange(8)]) if place < len(data) else b""
            )
        case 1:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTERESTING) % 2 ** (8 * size)
            data[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
        case 2:
            data[place : place + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(1, 9))
        case 3:
            del data[place : place + rng.choice((1, 2, 16, 1024))]
        case 4:
            size = rng.choice((1, 16, 1024))
            data[place:place] = data[place : place + size] * rng.choice((1, 2, 30))
        case 5 if rng.random() < 0.3:
            del data[place:]
        case 5:
            start = rng.randrange(len(data) + 1)
            size = rng.choice((4, 64, 512))
            data[place : place + size] = data[start : start + size]
        case _:
            _exchange_word(data, place, rng)


def _exchange_word(data: bytearray, place: int, rng: random.Random) -> None:
    """Put a word that no schema expects in the place of a number or text of a document."""
    ends = b",:[]{}\n"
    stop = next((i for i in range(place, len(data)) if data[i] in ends), len(data))
    start = next((i for i in range(place - 1, -1, -1) if data[i] in ends), -1) + 1
    data[start:stop] = rng.choice(WORDS).encode()


def sealed(content: bytes) -> bytes:
    """Return a JSON document with a seal that fits it, as whoever forges one would write it."""
    from lulc.core.documents import seal_of

    try:
        document = json.loads(content)
        rest = {key: value for key, value in document.items() if key != "seal"}
        return json.dumps(rest | {"seal": seal_of(rest)}).encode() if "seal" in document else content
    except (ValueError, AttributeError, TypeError, RecursionError):
        return content


def mutant(kind: Kind, place: Path, number: str) -> tuple[Path, bytes]:
    """Return which file of a sample is mutated, and its new content."""
    rng = random.Random(number)
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    if place.suffix == ".shp":
        files = sorted(place.parent.glob("a.*"))
    file = rng.choice(files)
    text = kind.text or file.suffix == ".json" or file.name.startswith(".z")
    content = mutate(file.read_bytes(), rng, text=text)
    if kind.text and rng.random() < 0.7:
        content = sealed(content)
    return file, kind.pack(content)


@dataclass
class Outcome:
    """Outcome of the mutations of one kind of file."""

    files: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


def read_batch(kind: Kind, place: Path, numbers: list[str], answer: int) -> None:
    """Read mutated files one after the other, in a child; tells the outcome of each in a line."""
    from lulc.core import reader_process

    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.chdir(place.parent)
    for number in numbers:
        file, content = mutant(kind, place, number)
        honest = file.read_bytes()
        file.write_bytes(content)
        result = "read"
        start = time.monotonic()
        try:
            kind.read(place)
        except InputError as error:
            # A message is printed, so it is made.
            result = "refused" if str(error) else "an error without a message"
        except BaseException:
            result = traceback.format_exc(limit=-4).replace("\n", " | ")
        file.write_bytes(honest)
        os.write(answer, f"{time.monotonic() - start:.3f} {result[-3000:]}\n".encode())
    if reader_process._current is not None:
        reader_process._current.close()


def run_batch(name: str, place: Path, numbers: list[str], outcome: Outcome, keep: Path) -> None:
    """Read a batch in a child and add up what comes of it; a batch that fails goes on after the failure."""
    while numbers:
        work = Path(tempfile.mkdtemp(prefix="lulc-fuzz-"))
        copied = shutil.copytree(place.parent, work / "sample") / place.name
        source, target = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(source)
            os.setpgid(0, 0)
            with contextlib.suppress(BaseException):
                read_batch(KINDS[name], copied, numbers, target)
                os._exit(0)
            os._exit(99)
        os.close(target)
        lines, late = _lines_of(source, pid)
        os.close(source)
        _, status, usage = os.wait4(pid, 0)
        memory = usage.ru_maxrss * 1024
        for number, line in zip(numbers, lines, strict=False):
            seconds, _, result = line.partition(" ")
            outcome.files += 1
            outcome.refused += result == "refused"
            outcome.slowest = max(outcome.slowest, float(seconds))
            if result not in ("read", "refused"):
                _fail(name, place, number, result, outcome, keep)
        done = len(lines)
        if status and done < len(numbers):
            outcome.files += 1
            how = (
                "took too long"
                if late
                else f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
                if (os.WIFSIGNALED(status))
                else f"ended with {os.WEXITSTATUS(status)}"
            )
            _fail(name, place, numbers[done], how, outcome, keep)
            done += 1
        if memory > MEMORY and len(numbers) > 1:
            alone = Outcome()
            for number in numbers[:done]:
                run_batch(name, place, [number], alone, keep)
            outcome.failures += [f for f in alone.failures if "bytes of memory" in f]
            memory = alone.memory
        elif memory > MEMORY:
            _fail(name, place, numbers[0], f"took {memory} bytes of memory", outcome, keep)
        outcome.memory = max(outcome.memory, memory)
        numbers = numbers[done:] if done else []
        shutil.rmtree(work)


def _lines_of(source: int, pid: int) -> tuple[list[str], bool]:
    """Lines that a child writes until it ends; True where it was killed, since it was silent for too long."""
    content = b""
    while True:
        ready, _, _ = select.select([source], [], [], PATIENCE)
        if not ready:
            os.killpg(pid, signal.SIGKILL)
            return content.decode("utf-8", "replace").splitlines(), True
        part = os.read(source, 2**16)
        if not part:
            return content.decode("utf-8", "replace").splitlines(), False
        content += part


def _fail(name: str, place: Path, number: str, how: str, outcome: Outcome, keep: Path) -> None:
    file, content = mutant(KINDS[name], place, number)
    keep.mkdir(parents=True, exist_ok=True)
    kept = keep / f"{name}-{number}-{file.name}".replace(" ", "_").replace("/", "_")
    kept.write_bytes(content)
    outcome.failures.append(f"{name} {number} ({kept}): {how}")
    print(f"FAILED {outcome.failures[-1][:1500]}", file=sys.stderr, flush=True)


def fuzz(
    minutes: float, seed: int, kinds: list[str], keep: Path, files: int | None = None
) -> dict[str, Outcome]:
    """Mutate and read files of each kind in turn until the time or the number of files is used up."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Every child would load them anew.
    for module in (features.__name__, cubes.__name__, "dask.array", "h5py", "zarr"):
        importlib.import_module(module)
    outcomes = {name: Outcome() for name in kinds}
    with tempfile.TemporaryDirectory(prefix="lulc-fuzz-") as folder:
        places = _samples(Path(folder), kinds)
        end, first = time.monotonic() + 60 * minutes, 0
        batch = min(BATCH, files or BATCH)
        while time.monotonic() < end and (files is None or first < files):
            for name in kinds:
                numbers = [f"{seed}.{i}" for i in range(first, first + batch)]
                run_batch(name, places[name], numbers, outcomes[name], keep)
                if time.monotonic() > end:
                    break
            first += batch
    return outcomes


def _samples(folder: Path, kinds: list[str]) -> dict[str, Path]:
    """Write a file of each kind and read it; in a child, so that this process stays without threads."""
    listed = folder / "samples.json"
    pid = os.fork()
    if not pid:
        code = 1
        try:
            places = {}
            for number, name in enumerate(kinds):
                own = folder / str(number) / "sample"
                own.mkdir(parents=True)
                place = KINDS[name].make(own)
                if KINDS[name].pack is bytes:
                    KINDS[name].read(place)
                places[name] = str(place)
            listed.write_text(json.dumps(places))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the samples can't be written and read")
    return {name: Path(place) for name, place in json.loads(listed.read_text()).items()}


def main() -> int:
    """Print a table of what was mutated; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="longest run (default: 1)")
    parser.add_argument("--files", type=int, help="files of each kind, instead of all that the time allows")
    parser.add_argument("--seed", type=int, default=1, help="seed of the mutations (default: 1)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for what failed")
    arguments = parser.parse_args()
    outcomes = fuzz(arguments.minutes, arguments.seed, arguments.kinds, arguments.keep, arguments.files)
    print(f"{'kind':14} {'files':>6} {'refused':>8} {'failed':>7} {'slowest s':>10} {'peak MB':>8}")
    for name, found in outcomes.items():
        print(f"{name:14} {found.files:6} {found.refused:8} {len(found.failures):7} {found.slowest:10.1f} "
              f"{found.memory / 1e6:8.0f}")  # fmt: skip
    if arguments.out:
        table = {name: dataclasses.asdict(found) for name, found in outcomes.items()}
        arguments.out.write_text(json.dumps({"seed": arguments.seed, "kinds": table}, indent=1) + "\n")
    total = sum(found.files for found in outcomes.values())
    failed = sum(len(found.failures) for found in outcomes.values())
    print(f"{total} files, {failed} failed (seed {arguments.seed})")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
