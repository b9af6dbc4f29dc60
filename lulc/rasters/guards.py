"""Checks of input files before a pixel is read, and mostly before GDAL opens the file.

A raster from a stranger can name other files, open connections, or declare sizes that exhaust the machine.
These checks read only bytes, names and declared sizes, and raise `InputError`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from lulc.core import budgets
from lulc.core.budgets import exceeds
from lulc.core.documents import MAX_VALUES, parse_json
from lulc.core.schema import InputError

VRT_MARK = b"<VRTDataset"

_VRT_ELEMENTS = frozenset({
    "VRTDataset", "SRS", "GeoTransform", "Metadata", "MDI", "VRTRasterBand", "Description", "ColorInterp",
    "NoDataValue", "HideNoDataValue", "UnitType", "Offset", "Scale", "CategoryNames", "Category",
    "ColorTable", "Entry", "Histograms", "HistItem", "HistMin", "HistMax", "BucketCount", "IncludeOutOfRange",
    "Approximate", "HistCounts", "OverviewList", "SimpleSource", "ComplexSource", "AveragedSource",
    "SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand",
    "ScaleOffset", "ScaleRatio", "LUT", "MaskBand", "BlockXSize", "BlockYSize",
})  # fmt: skip
_VRT_ATTRIBUTES = frozenset({
    "rasterXSize", "rasterYSize", "dataType", "band", "blockXSize", "blockYSize", "relativeToVRT", "shared",
    "xOff", "yOff", "xSize", "ySize", "key", "domain", "format", "c1", "c2", "c3", "c4", "resampling",
    "nodata",
    "RasterXSize", "RasterYSize", "DataType", "BlockXSize", "BlockYSize", "dataAxisToSRSAxisMapping",
    "coordinateEpoch", "subClass", "name", "Priority",
})  # fmt: skip
_ZARR_CODECS = frozenset({
    "bytes", "endian", "gzip", "zstd", "blosc", "zlib", "lz4", "bz2", "lzma", "crc32c", "crc32", "adler32",
    "fletcher32", "transpose", "sharding_indexed", "vlen-utf8", "delta", "fixedscaleoffset", "quantize",
    "shuffle", "bitround", "packbits",
})  # fmt: skip
_NODATA_TAG = 42113
_GRIDS = re.compile(
    r"PARAMETERFILE|PROJ-based|[\s+\"](?:nadgrids|geoidgrids|(?:xy_|z_)?grids|file|model|init|catalog)"
    r"\s*=\s*(?!@?null\b)",
    re.IGNORECASE,
)
"""Parameters of a CRS that name a file; the ``+nadgrids=@null`` of web maps names none."""


def is_address(path: str) -> bool:
    """True for a URL, a ``/vsi`` path, inline XML or JSON, or a subdataset such as ``NETCDF:a.nc:b``."""
    text = path.strip()
    if "://" in text or text.startswith(("/vsi", "\\vsi", "<", "{")):
        return True
    prefix, colon, _ = text.partition(":")
    return bool(colon) and not os.path.lexists(text) and prefix.isidentifier()


def from_anywhere(path: str) -> str:
    """Return the absolute path, which a process in any folder can use; an address as it is."""
    return path if is_address(path) else os.path.abspath(path)


def check_regular_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return the absolute path of an existing regular file.

    Raises InputError if the path is an address, does not exist, or is a folder, device or pipe.
    """
    text = os.fspath(path)
    if is_address(text):
        raise InputError(
            f"cannot open {what} '{text[:200]}', since it is an address rather than a file, "
            "expected the path of a file on this machine",
            "Give a file. Remote rasters (https://..., /vsi...) are opened with --allow-remote.",
        )
    file = Path(text)
    if not file.is_file():
        problem, expected = "there is no such file", "an existing file"
        if file.exists():
            problem, expected = f"it is {'a folder' if file.is_dir() else 'no regular file'}", "a file"
        message = f"cannot open {what} '{text}', since {problem}, expected {expected}"
        raise InputError(message, "Check the path.")
    return file.resolve()


def begins_as_tiff(path: Path) -> bool:
    """Return True where the first bytes are those of a TIFF."""
    with open(path, "rb") as file:
        return file.read(2) in (b"II", b"MM")


def check_inside(path: Path, folder: Path, owner: str) -> None:
    """Refuse a file that `owner` names but that lies outside `folder`, symbolic links resolved."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"cannot open '{owner}', since it points to '{path}', "
            f"expected nothing outside its folder '{folder}'",
            "Copy that file below the folder, or give it directly.",
        )


def check_size(
    name: str, *, layers: int, height: int, width: int, layer_bytes: int, block_bytes: int,
    stored_bytes: int | None,
) -> None:  # fmt: skip
    """Refuse declared sizes that no honest raster has.

    `layer_bytes` are those of a pixel in one layer, `block_bytes` those that are decoded together,
    `stored_bytes` those on disk, None where unknown (remote files).
    """
    total = layers * height * width * layer_bytes
    problem = ""
    if min(layers, height, width) < 1:
        problem = f"it declares {layers} layers of {height} x {width} pixels, expected at least one of each"
    elif exceeds(max(height, width), budgets.SIDE):
        problem = f"it declares {height} x {width} pixels, expected at most {budgets.SIDE} along a side"
    elif exceeds(layers, budgets.LAYERS):
        problem = f"it declares {layers} layers, expected at most {budgets.LAYERS}"
    elif exceeds(block_bytes, budgets.BLOCK_BYTES):
        problem = (
            f"its internal blocks have {block_bytes / 2**20:,.0f} MiB, "
            f"expected at most {budgets.BLOCK_BYTES // 2**20} MiB"
        )
    elif stored_bytes is not None and exceeds(total, max(budgets.LARGE_BYTES, budgets.GROWTH * stored_bytes)):
        problem = (
            f"it declares {total / 1e9:,.0f} GB of pixels in {stored_bytes} bytes, "
            f"expected at most {budgets.GROWTH} times the size of the file"
        )
    if problem:
        raise _oversized(name, problem)


def _oversized(name: str, problem: str) -> InputError:
    return InputError(
        f"cannot read '{name}', since {problem}",
        "The file is damaged or made to exhaust the machine. If it is yours, write it again with "
        "blocks of 256 x 256 pixels: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT",
    )


def check_tiff(path: Path, name: str) -> str:
    """Refuse a TIFF with a block, of pixels, overviews or masks, that is too large when it is unpacked.

    Uncompressed strips of any size pass, since GDAL reads them row by row. Return the text of the no-data
    tag, empty without one: GDAL converts any word to 0.
    """
    nodata = ""
    with open(path, "rb") as file:
        for number, (tags, text) in enumerate(_directories_of(file)):
            nodata = nodata if number else text
            if exceeds(number, budgets.ARRAYS):
                raise _oversized(name, f"it has more than {budgets.ARRAYS} directories")
            width, height = tags.get(256, 0), tags.get(257, 0)
            rows, cols = tags.get(323, min(tags.get(278, height), height)), tags.get(322, width)
            samples = tags.get(277, 1) if tags.get(284, 1) == 1 else 1
            size = rows * cols * samples * -(-tags.get(258, 1) // 8)
            if exceeds(size, budgets.BLOCK_BYTES) and (322 in tags or tags.get(259, 1) != 1):
                raise _oversized(
                    name,
                    f"blocks of its directory {number} have {size / 2**20:,.0f} MiB, "
                    f"expected at most {budgets.BLOCK_BYTES // 2**20} MiB",
                )
    return nodata


def _directories_of(file: BinaryIO) -> Iterator[tuple[dict[int, int], str]]:
    """Yield the first value of each integer tag, and the text of the no-data tag, by directory of a TIFF.

    Ends where the file is damaged.
    """
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big_tiff = head[2:4] in (b"+\0", b"\0+")
    count_code, entry_code, offset_code = ("Q", "HHQ8s", "Q") if is_big_tiff else ("H", "HHL4s", "L")
    integer_codes = {1: "B", 3: "H", 4: "L", 16: "Q"}

    def read(code: str) -> int:
        (number,) = struct.unpack(order + code, file.read(struct.calcsize(order + code)))
        return int(number)

    seen: set[int] = set()
    with contextlib.suppress(struct.error, OSError, OverflowError):
        (start,) = struct.unpack_from(order + offset_code, head, 8 if is_big_tiff else 4)
        while start and start not in seen:
            seen.add(start)
            file.seek(start)
            count = read(count_code)
            table = file.read(min(count, 2**16) * struct.calcsize(order + entry_code))
            start = read(offset_code)
            tags, text = {}, ""
            for tag, kind, length, value in struct.iter_unpack(order + entry_code, table):
                if tag == _NODATA_TAG and kind == 2:
                    if length > len(value):
                        file.seek(struct.unpack(order + offset_code, value)[0])
                        value = file.read(min(length, 256))
                    text = value[:length].rstrip(b"\0").decode("latin-1").strip()
                if kind not in integer_codes or not length:
                    continue
                code = order + integer_codes[kind]
                if length * struct.calcsize(code) > len(value):
                    file.seek(struct.unpack(order + offset_code, value)[0])
                    value = file.read(8)
                tags[tag] = struct.unpack_from(code, value)[0]
            yield tags, text


def check_crs(text: str, name: str) -> None:
    """Refuse a CRS that names files of grids, since PROJ would open them."""
    if _GRIDS.search(text):
        raise InputError(
            f"cannot use '{name}', since its CRS names files of grids, expected a CRS that needs none",
            "Assign the CRS without its shift: rio edit-info --crs EPSG:3067 FILE (rasters), ogr2ogr -a_srs",
        )


def read_xml(path: Path, what: str) -> ElementTree.Element:
    """Return the root of an XML file; raises InputError if it is large, malformed, or declares entities."""
    size = path.stat().st_size
    if exceeds(size, budgets.TEXT_BYTES):
        raise InputError(
            f"cannot read {what} '{path}', since it has {size} bytes, expected at most {budgets.TEXT_BYTES}",
            "It is damaged; get it again.",
        )
    return parse_xml(path.read_bytes(), path, what)


def parse_xml(content: bytes, path: Path, what: str) -> ElementTree.Element:
    """Return the root of an XML file's content, checked as in `read_xml`."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\x00" in content:
        raise InputError(
            f"cannot read {what} '{path}', since it declares a document type, entities or another "
            "encoding, expected plain UTF-8 XML",
            "It is damaged or forged; get it again.",
        )
    try:
        if exceeds(content.count(b"<") + content.count(b"="), MAX_VALUES):
            raise ValueError(f"more than {MAX_VALUES} elements and attributes")
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read {what} '{path}', since it is not well-formed XML ({error})",
            "It is damaged; get it again.",
        ) from error


def looks_like_vrt(path: Path) -> bool:
    """True where GDAL would open the file as a VRT, whatever its name."""
    with open(path, "rb") as file:
        return VRT_MARK in file.read(65536)


def vrt_sources(path: Path) -> Iterator[Path]:
    """Yield the files of a VRT mosaic, each below the VRT's folder.

    Only plain mosaics are allowed: elements that compute, warp or read raw bytes are refused.
    """
    root = read_xml(path, "the VRT")
    for element in root.iter():
        subclass = element.get("subClass")
        # GDAL takes an attribute for the element of its name, SourceFilename too.
        unknown = sorted(set(element.attrib) - _VRT_ATTRIBUTES)
        problem = ""
        if element.tag not in _VRT_ELEMENTS or subclass is not None:
            kind = f"{element.tag} of kind {subclass}" if subclass else str(element.tag)
            problem = f"it holds <{kind[:80]}>"
        elif unknown:
            problem = f"<{element.tag}> has the attribute '{unknown[0][:80]}'"
        if problem:
            raise InputError(
                f"cannot open the VRT '{path}', since {problem}, expected a plain mosaic (gdalbuildvrt)",
                "Turn it into a GeoTIFF: gdal_translate IN.vrt OUT.tif",
            )
        if element.tag == "SourceFilename":
            yield _vrt_source(path, element)


def _vrt_source(path: Path, element: ElementTree.Element) -> Path:
    text = (element.text or "").strip()
    if is_address(text):
        raise InputError(
            f"cannot open the VRT '{path}', since it names '{text[:200]}', expected files below its folder",
            "Download the files and build the VRT from them.",
        )
    relative = (element.get("relativeToVRT") or "0").strip() == "1"
    named = path.parent / text if relative else Path(text)
    source = check_regular_file(named, f"a file of the VRT '{path}',")
    check_inside(source, path.parent, str(path))
    return source


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 (NetCDF-4) file that names other files: external links, storage, virtual data."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _check_hdf5_group(path, file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"cannot read '{path}', since it is truncated or no NetCDF file ({error})",
            "It is damaged; get it again.",
        ) from error


def _check_hdf5_group(path: Path, root: Any) -> None:
    import h5py

    pending, seen = [root], set()
    while pending:
        group = pending.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise _refuse_hdf5(path, name, "a link to another place")
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address in seen:
                continue
            seen.add(address)
            if exceeds(len(seen), budgets.ARRAYS):
                raise _refuse_hdf5(path, name, f"one of more than {budgets.ARRAYS} objects")
            described = sum(member.attrs.get_id(key).get_storage_size() for key in member.attrs)
            if exceeds(described, budgets.TEXT_BYTES):
                what = f"described by more than {budgets.TEXT_BYTES} bytes of attributes"
                raise _refuse_hdf5(path, name, what)
            if isinstance(member, h5py.Group):
                pending.append(member)
            elif isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
                raise _refuse_hdf5(path, name, "stored in another file")


def _refuse_hdf5(path: Path, name: str, what: str) -> InputError:
    return InputError(
        f"cannot open '{path}', since '{name}' in it is {what}, expected a file that holds its own data",
        "Write it again without links, e.g. with nccopy.",
    )


def check_folder(folder: Path) -> int:
    """Return the size of a folder in bytes.

    Raises InputError if a symbolic link leaves it, or if it holds anything but files and folders, or too many
    of them.
    """
    total = count = 0
    for place, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if exceeds(count, budgets.ENTRIES):
            raise InputError(
                f"cannot open '{folder}', since it holds more than {budgets.ENTRIES} files, expected fewer",
                "Write it again with larger chunks.",
            )
        for name in (*folders, *files):
            entry = Path(place, name)
            if entry.is_symlink():
                check_inside(entry, folder, str(folder))
        for name in files:
            entry = Path(place, name)
            if not entry.is_file():
                raise InputError(
                    f"cannot open '{folder}', since '{entry}' is no regular file, expected files and folders",
                    "Write it again.",
                )
            total += entry.stat().st_size
    return total


def check_zarr(folder: Path) -> None:
    """Check the metadata of a Zarr folder; runs in a reader process.

    Raises InputError if they name a codec that is not allowed, since some run code when they decode.
    """
    for place, _, files in os.walk(folder):
        for name in {"zarr.json", ".zarray", ".zgroup", ".zmetadata"}.intersection(files):
            _check_zarr_document(Path(place, name))


def _check_zarr_document(path: Path) -> None:
    try:
        size = path.stat().st_size
        if exceeds(size, budgets.TEXT_BYTES):
            raise ValueError(f"it has {size} bytes, expected at most {budgets.TEXT_BYTES}")
        document = parse_json(path.read_bytes(), foreign=True)
        codecs = list(_codecs_of(document))
        if path.name in (".zarray", "zarr.json") and "shape" in document:
            _check_zarr_array(path, document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"cannot read '{path}', since it is not valid JSON of an array or group ({error})",
            "It is damaged; write it again.",
        ) from error
    unknown = sorted({c for c in codecs if c.removeprefix("numcodecs.") not in _ZARR_CODECS})
    if unknown:
        raise InputError(
            f"cannot open '{path.parent}', since it is stored with {', '.join(unknown)[:80]}, "
            f"expected only {', '.join(sorted(_ZARR_CODECS))}",
            "Write it again with another compressor, e.g. zstd.",
        )


def _check_zarr_array(path: Path, document: dict[str, Any]) -> None:
    shape = [int(n) for n in document["shape"]]
    chunk = document.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", shape)
    chunk = document.get("chunks", chunk)
    for codec in document.get("codecs", ()):
        # A shard is read chunk by chunk.
        inner = codec.get("configuration", {}).get("chunk_shape") if isinstance(codec, dict) else None
        chunk = inner or chunk
    check_array(str(path.parent), path.parent.name, shape, [int(n) for n in chunk], _itemsize(document))


def _itemsize(document: dict[str, Any]) -> int:
    """Bytes of a value of a Zarr array, by its ``dtype`` or ``data_type``; 8 for an unknown type."""
    known = document.get("dtype", document.get("data_type"))
    if isinstance(known, dict):
        return int(known.get("configuration", {}).get("length_bytes", 8))
    try:
        return np.dtype(str(known)).itemsize
    except TypeError:
        return 8


def check_array(
    path: str, name: str, shape: Sequence[int], chunk: Sequence[int] | None, itemsize: int
) -> None:
    """Refuse an array of a cube with a coordinate or chunk that no honest file has, before a value is read.

    `chunk` is the shape that is unpacked at once; None where the array is not divided.
    """
    problem = ""
    if len(shape) == 1 and exceeds(shape[0], budgets.SIDE):
        problem = f"has {shape[0]} values, expected at most {budgets.SIDE} along one dimension"
    elif len(shape) < 2 and itemsize > 8 and exceeds(math.prod(shape) * itemsize, budgets.TEXT_BYTES):
        problem = f"holds words of {math.prod(shape) * itemsize} bytes, expected at most {budgets.TEXT_BYTES}"
    elif chunk and exceeds(math.prod(chunk) * itemsize, budgets.BLOCK_BYTES):
        size = math.prod(chunk) * itemsize / 2**20
        problem = f"has chunks of {size:,.0f} MiB, expected at most {budgets.BLOCK_BYTES // 2**20} MiB"
    if problem:
        raise InputError(
            f"cannot read '{path}', since '{name[:80]}' in it {problem}",
            "The file is damaged or made to exhaust the machine. If it is yours: --trust",
        )


def _codecs_of(document: Any) -> Iterator[str]:
    """Names of all codecs, filters and compressors in Zarr metadata of version 2 or 3."""
    if isinstance(document, list):
        for item in document:
            yield from _codecs_of(item)
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if key == "attributes":
            continue
        if key in ("compressor", "filters", "codecs", "index_codecs"):
            for codec in value if isinstance(value, list) else [value]:
                if isinstance(codec, dict):
                    yield str(codec.get("id", codec.get("name", "?"))).lower()
                elif isinstance(codec, str):
                    yield codec.lower()
        elif key == "storage_transformers" and value:
            yield "storage_transformers"
        yield from _codecs_of(value)
