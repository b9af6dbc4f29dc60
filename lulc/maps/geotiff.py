"""The map as a GeoTIFF: its profile, its parts, their assembly and verification.

Parts hold encoded blocks (`lulc.maps.blocks`), which are copied unchanged behind a TIFF header: directories
first, then the levels, smallest first, as in a cloud-optimised GeoTIFF. The tags (georeferencing, metadata,
no data, colours) are copied from an empty template that GDAL writes.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.io import MemoryFile
from rasterio.warp import transform
from rasterio.windows import Window as RasterWindow

from lulc.core.grid import GridSpec, settled_crs
from lulc.core.removal import remove_temporary, temporary_name
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.storage import write_atomically
from lulc.core.threads import in_order
from lulc.core.windows import Window
from lulc.maps.blocks import BLOCK, ENCODINGS, BlockFile, BlockWriter, Encoding, decode_block, reduce_block

CLASSIC_LIMIT = 2**32 - 1
"""Largest classic TIFF in bytes; larger ones are BigTIFF."""


@dataclass(frozen=True)
class MapProfile:
    """Layout of a map on disk.

    Parameters
    ----------
    activations
        A key of `lulc.maps.blocks.ENCODINGS`.
    part
        Side of a part in pixels, a multiple of `BLOCK`.
    cog
        True to declare the cloud-optimised layout in the header; GDAL then warns before edits in place.
    extra
        Names of further bands with values 0..1, stored like the activations that precede them.
    """

    grid: GridSpec
    legend: Legend
    activations: str
    part: int
    tags: dict[str, str] = field(default_factory=dict)
    cog: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.part <= 0 or self.part % BLOCK:
            raise InputError(
                f"cannot cut the map into parts of {self.part} pixels, "
                f"since a part consists of blocks of {BLOCK} pixels",
                f"Type --part {max(1, round(self.part / BLOCK)) * BLOCK}.",
            )
        _check_place(self.grid)

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.activations]

    @property
    def band_names(self) -> tuple[str, ...]:
        """Descriptions of the bands."""
        return ("class", *((*self.legend.names, *self.extra) if self.encoding.has_activations else ()))

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of full resolution and of each overview; the last fits one block."""
        shapes = [self.grid.shape]
        while max(shapes[-1]) > BLOCK:
            shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
        return tuple(shapes)

    @cached_property
    def part_levels(self) -> int:
        """Number of levels, from full resolution on, whose blocks never span two parts."""
        levels = range(len(self.levels))
        return len(list(itertools.takewhile(lambda level: self.part % (BLOCK << level) == 0, levels)))

    def extents_of(self, part: Window) -> dict[int, Window]:
        """Return the extent of a part at each level that parts hold, in pixels of the level."""
        return {
            k: Window(part.row >> k, part.col >> k, _halve(part.height, k), _halve(part.width, k))
            for k in range(self.part_levels)
        }

    @property
    def top_extents(self) -> dict[int, Window]:
        """Extent of each level above those of the parts."""
        above = range(self.part_levels, len(self.levels))
        return {level: Window(0, 0, *self.levels[level]) for level in above}

    def bytes_of(self, pixels: int) -> int:
        """Return the uncompressed bytes of a number of pixels and their overviews."""
        return pixels * len(self.band_names) * self.encoding.dtype.itemsize * 4 // 3


@contextmanager
def write_part(path: Path, profile: MapProfile, part: Window, pool: Executor) -> Iterator[PartWriter]:
    """Open a part for writing; its file appears when the context ends without an error."""
    with write_atomically(path, parents=False) as temporary, open(temporary, "wb") as file:
        extents, bands = profile.extents_of(part), len(profile.band_names)
        with BlockWriter(file, profile.encoding, bands, extents, pool) as blocks:
            writer = PartWriter(blocks)
            yield writer
            writer.sha256 = blocks.finish()


class PartWriter:
    """Writer of the windows of one part; `sha256` of the file is set when the part is finished."""

    def __init__(self, blocks: BlockWriter) -> None:
        self._blocks = blocks
        self.sha256 = ""

    def write(self, window: Window, values: np.ndarray | None) -> None:
        """Write encoded values (band, y, x) of a window of the map, or None for no data."""
        self._blocks.place(0, window, values)


def assemble(profile: MapProfile, parts: Sequence[tuple[Window, Path]], path: Path, pool: Executor) -> None:
    """Assemble the map from its parts, verify it and give it its final name; refuse damaged parts.

    `parts` are extent and file of every part, in plan order.
    """
    top = temporary_name(path)
    sources = [(extent, file, profile.extents_of(extent)) for extent, file in parts]
    try:
        if profile.top_extents:
            _write_top(profile, sources, top, pool)
            sources.append((Window(0, 0, *profile.grid.shape), top, profile.top_extents))
        with write_atomically(path) as temporary:
            with open(temporary, "wb") as file:
                _copy_blocks(profile, sources, file, pool)
            verify(temporary, profile)
    finally:
        remove_temporary(top)


def read_classes(path: Path, window: Window) -> np.ndarray:
    """Read the class band of a map of this toolkit, uint8 (y, x), 255 for no data."""
    with rasterio.open(path, driver="GTiff") as source:
        area = RasterWindow(window.col, window.row, window.width, window.height)
        values = source.read(1, window=area)
        return np.where(values == source.nodata, IGNORE, values).astype(np.uint8)


def verify(path: Path, profile: MapProfile) -> None:
    """Refuse a file that is truncated, lacks blocks, has overlapping blocks, or is another raster to GDAL."""
    with open(path, "rb") as file:
        directories = _read_directories(file)
        length = os.fstat(file.fileno()).st_size
    spans = []
    for shape, fields in zip(profile.levels, directories, strict=True):
        offsets, sizes = (fields[tag].values().astype(np.uint64) for tag in (_OFFSETS, _SIZES))
        count = _blocks_along(shape[0]) * _blocks_along(shape[1]) * len(profile.band_names)
        if len(offsets) != count or len(sizes) != count or not sizes.all():
            raise _incomplete(path, f"{np.count_nonzero(sizes)} blocks, expected {count}")
        spans.append(np.stack([offsets, offsets + sizes]))
    starts, stops = (np.sort(bounds) for bounds in np.concatenate(spans, axis=1))
    if (starts[1:] < stops[:-1]).any() or stops[-1] > length:
        raise _incomplete(path, f"blocks that overlap or end beyond its {length} bytes")
    with rasterio.open(path, driver="GTiff") as source:
        found = (source.count, source.height, source.width, source.transform)
        held = _is_held(profile.grid, source.crs)
    grid = profile.grid
    expected = (len(profile.band_names), grid.height, grid.width, grid.transform)
    if found != expected or not held:
        raise _incomplete(path, f"{found}, expected {expected}, in {grid.describe()}")


def _check_place(grid: GridSpec) -> None:
    """Refuse a grid whose CRS a GeoTIFF cannot hold."""
    if not grid.crs:
        return
    options = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    try:
        # Without the .aux.xml file, in which GDAL can write any CRS.
        with rasterio.Env(GDAL_PAM_ENABLED="NO"), MemoryFile() as memory:
            memory.open(**options, crs=grid.crs, transform=grid.transform).close()
            with memory.open() as source:
                held = _is_held(grid, source.crs)
    except RasterioError:
        held = False
    if not held:
        raise InputError(
            f"cannot make a map on this grid, since a GeoTIFF cannot hold its CRS:\n  {grid.describe()}\n"
            "expected a CRS of an EPSG code, or a projection that GeoTIFF knows",
            "Choose the grid of another raster: --like RASTER --resample, or warp the inputs: "
            "gdalwarp -t_srs EPSG:3035 IN OUT",
        )


def _is_held(grid: GridSpec, crs: CRS | None) -> bool:
    """Return True if a CRS that was read back places the grid's pixels correctly, whatever its wording."""
    if not grid.crs or (crs and settled_crs(crs) == grid.crs):
        return True
    if not crs:
        return False
    left, bottom, right, top = grid.bounds
    corners = [left, right, right, left, (left + right) / 2], [top, top, bottom, bottom, (top + bottom) / 2]
    try:
        moved = np.array(transform(grid.crs, crs, *corners)) - np.array(corners)
    except (CRSError, RasterioError):
        return False
    return bool((np.abs(moved) < 0.01 * min(grid.pixel_size)).all())


def _incomplete(path: Path, content: str) -> InputError:
    return InputError(
        f"cannot finish the map, since '{path}' was not written whole: it has {content}",
        "Check the disk, then run the same command again: finished parts are kept.",
    )


def _halve(length: int, times: int) -> int:
    return -(-length // (1 << times))


def _blocks_along(length: int) -> int:
    return -(-length // BLOCK)


_Sources = Sequence[tuple[Window, Path, dict[int, Window]]]


def _write_top(profile: MapProfile, sources: _Sources, path: Path, pool: Executor) -> None:
    """Write the levels above those of the parts from the smallest level of the parts."""
    bands, encoding, level = len(profile.band_names), profile.encoding, profile.part_levels - 1
    with open(path, "wb") as file, BlockWriter(file, encoding, bands, profile.top_extents, pool) as writer:
        for _, name, extents in sources:
            with BlockFile(name, extents, bands) as blocks:
                for row, col in itertools.product(blocks.rows(level), blocks.cols(level)):
                    payloads = blocks.read(level, row, col)
                    values = np.stack([decode_block(p, encoding.dtype) for p in payloads])
                    cell = Window(row * BLOCK, col * BLOCK, BLOCK, BLOCK).intersect(extents[level])
                    half = Window(cell.row // 2, cell.col // 2, _halve(cell.height, 1), _halve(cell.width, 1))
                    reduced = reduce_block(values, encoding.nodata)
                    writer.place(level + 1, half, reduced[:, : half.height, : half.width])
        writer.finish()


def _copy_blocks(profile: MapProfile, sources: _Sources, file: BinaryIO, pool: Executor) -> None:
    """Write header and blocks: levels from the smallest on, each row by row, bands of a block together.

    The positions of all blocks are computed first, so that rows can be copied in parallel.
    """
    bands, levels = len(profile.band_names), range(len(profile.levels))
    sizes = [_block_sizes(profile, sources, level) for level in levels]
    leader, trailer = (4, 4) if profile.cog else (0, 0)
    total = 0
    offsets: list[np.ndarray] = []
    for level in reversed(levels):
        stops = total + np.cumsum(sizes[level] + np.uint64(leader + trailer)).reshape(sizes[level].shape)
        offsets.insert(0, stops - sizes[level] - np.uint64(trailer))
        total = int(stops[-1, -1, -1])
    header = _header(profile, offsets, sizes, total)
    file.write(header)
    file.flush()

    def copy(opened: Sequence[BlockFile], level: int, row: int) -> None:
        at = len(header) - leader + int(offsets[level][row, 0, 0])
        for blocks, col in ((b, c) for b in opened for c in b.cols(level)):
            payloads = blocks.read(level, row, col, last=True)
            pieces = [piece for p in payloads for piece in _frame(p)] if profile.cog else payloads
            at += _write_at(file, pieces, at)

    for level in reversed(levels):
        of_level = [s for s in sources if level in s[2]]
        for _, row_of_parts in itertools.groupby(of_level, key=lambda s: s[2][level].row):
            with ExitStack() as stack:
                opened = [stack.enter_context(BlockFile(n, e, bands)) for _, n, e in row_of_parts]
                rows = opened[0].rows(level)
                for _ in in_order(partial(copy, opened, level), rows, pool, len(rows)):
                    pass


def _write_at(file: BinaryIO, pieces: Sequence[bytes | memoryview], at: int) -> int:
    """Write pieces one after the other from position `at` of a file on; return their bytes."""
    done, length = os.pwritev(file.fileno(), pieces, at), sum(map(len, pieces))
    while done < length:
        # A full disk or a signal may interrupt a write.
        done += os.pwrite(file.fileno(), memoryview(b"".join(pieces))[done:], at + done)
    return done


def _frame(payload: memoryview) -> tuple[bytes | memoryview, ...]:
    """Put a block between its size and its last four bytes, as the ghost area declares."""
    return struct.pack("<I", len(payload)), payload, payload[-4:]


def _block_sizes(profile: MapProfile, sources: _Sources, level: int) -> np.ndarray:
    """Return the encoded bytes of every block of a level, uint64 (block row, block column, band)."""
    bands = len(profile.band_names)
    sizes = np.zeros((*(_blocks_along(n) for n in profile.levels[level]), bands), np.uint64)
    for _, name, extents in sources:
        if level in extents:
            with BlockFile(name, extents, bands) as blocks:
                rows, cols = blocks.rows(level), blocks.cols(level)
                sizes[rows.start : rows.stop, cols.start : cols.stop] = blocks.index[level]["size"]
    return sizes


class _Format(NamedTuple):
    """Field sizes of classic TIFF and BigTIFF."""

    header: str
    number: str
    entry: str
    link: str
    inline: int
    address: tuple[int, str]


_CLASSIC = _Format("<2sHI", "<H", "<HHI4s", "<I", 4, (4, "<u4"))
_BIG = _Format("<2sHHHQ", "<Q", "<HHQ8s", "<Q", 8, (16, "<u8"))
_TYPES = {
    1: "u1", 2: "u1", 3: "<u2", 4: "<u4", 5: "<u8", 6: "i1", 7: "u1", 8: "<i2",
    9: "<i4", 10: "<i8", 11: "<f4", 12: "<f8", 16: "<u8", 17: "<i8", 18: "<u8",
}  # fmt: skip
_REDUCED, _WIDTH, _HEIGHT, _OFFSETS, _SIZES = 254, 256, 257, 324, 325
_FILE_TAGS = {33550, 33922, 34264, 34735, 34736, 34737, 42112}
"""Tags of georeferencing and metadata, which belong to the file and not to each overview."""


class _Field(NamedTuple):
    """Value of a TIFF tag: type number and little-endian bytes."""

    type: int
    raw: bytes

    def values(self) -> np.ndarray:
        return np.frombuffer(self.raw, _TYPES[self.type])

    @classmethod
    def of(cls, type: int, values: object) -> _Field:
        return cls(type, np.atleast_1d(np.asarray(values)).astype(_TYPES[type]).tobytes())


def _header(profile: MapProfile, offsets: list[np.ndarray], sizes: list[np.ndarray], total: int) -> bytes:
    """Return everything before the blocks; `offsets` count from the first block."""
    template = _template(profile)
    ghost = _ghost() if profile.cog else b""
    format = _CLASSIC

    def directories(start: int) -> list[dict[int, _Field]]:
        result = []
        for level, (rows, cols) in enumerate(profile.levels):
            fields = {t: f for t, f in template.items() if level == 0 or t not in _FILE_TAGS}
            fields[_REDUCED] = _Field.of(4, int(level > 0))
            fields[_WIDTH], fields[_HEIGHT] = _Field.of(4, cols), _Field.of(4, rows)
            fields[_OFFSETS] = _Field.of(format.address[0], _by_band(offsets[level]) + np.uint64(start))
            fields[_SIZES] = _Field.of(4, _by_band(sizes[level]))
            result.append(dict(sorted(fields.items())))
        return result

    if len(_lay_out(directories(0), format, ghost)) + total > CLASSIC_LIMIT:
        format = _BIG
    # The length does not depend on the offsets: the first pass gives the position of the first block.
    return _lay_out(directories(len(_lay_out(directories(0), format, ghost))), format, ghost)


def _by_band(values: np.ndarray) -> np.ndarray:
    """Flatten (block row, block column, band) in TIFF's order of separate planes."""
    return np.moveaxis(values, -1, 0).ravel()


def _lay_out(directories: list[dict[int, _Field]], format: _Format, ghost: bytes) -> bytes:
    """Return header, ghost area and directories, each directory followed by its long values."""
    first = struct.calcsize(format.header) + len(ghost)
    big = () if format is _CLASSIC else (8, 0)
    out = bytearray(struct.pack(format.header, b"II", 42 if format is _CLASSIC else 43, *big, first))
    out += ghost
    for number, fields in enumerate(directories):
        size = struct.calcsize(format.number) + len(fields) * struct.calcsize(format.entry)
        position = len(out) + size + struct.calcsize(format.link)
        entries, values = bytearray(), bytearray()
        for tag, (type, raw) in fields.items():
            count = len(raw) // np.dtype(_TYPES[type]).itemsize
            if len(raw) <= format.inline:
                inline = raw
            else:
                inline = struct.pack(format.link, position + len(values))
                values += raw + bytes(-len(raw) % 8)
            entries += struct.pack(format.entry, tag, type, count, inline)
        values += bytes(-(position + len(values)) % 8)
        following = 0 if number == len(directories) - 1 else position + len(values)
        out += struct.pack(format.number, len(fields)) + entries
        out += struct.pack(format.link, following) + values
    return bytes(out)


def _ghost() -> bytes:
    """Return GDAL's declaration of a cloud-optimised layout (driver COG, "Header ghost area")."""
    text = (
        b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
        b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
    )
    return b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(text) + text


def _template(profile: MapProfile) -> dict[int, _Field]:
    """Return the tags of an empty map that GDAL writes."""
    encoding, grid = profile.encoding, profile.grid
    floating = encoding.dtype.kind == "f"
    options = {
        "driver": "GTiff", "width": BLOCK, "height": BLOCK, "count": len(profile.band_names),
        "dtype": encoding.dtype.name, "nodata": encoding.nodata, "crs": grid.crs or None,
        "transform": grid.transform, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK,
        "compress": "zstd", "predictor": 3 if floating else 2, "interleave": "band",
        "photometric": "minisblack", "sparse_ok": True, "endianness": "little", "bigtiff": "no",
    }  # fmt: skip
    if not encoding.has_activations:
        del options["photometric"]
    with MemoryFile() as memory:
        with memory.open(**options) as empty:
            empty.update_tags(**profile.tags)
            for number, name in enumerate(profile.band_names, start=1):
                empty.set_band_description(number, name)
            if encoding.has_activations and not floating:
                empty.scales = (1.0, *[encoding.scale] * (empty.count - 1))
                empty.offsets = (0.0,) * empty.count
            if not encoding.has_activations:
                empty.write_colormap(1, colormap(profile.legend))
        memory.seek(0)
        return _read_directories(memory)[0]


def colormap(legend: Legend) -> dict[int, tuple[int, int, int, int]]:
    """Return (red, green, blue, alpha), 0..255, by class number."""
    colors = {c.number: bytes.fromhex(c.color[1:]) for c in legend.classes}
    return {number: (red, green, blue, 255) for number, (red, green, blue) in colors.items()}


def _read_directories(file: BinaryIO) -> list[dict[int, _Field]]:
    """Read the tags of every directory of a little-endian TIFF."""
    head = file.read(16)
    format = _BIG if head[2] == 43 else _CLASSIC
    position = struct.unpack_from(format.header, head)[-1]
    entry_size, link_size = struct.calcsize(format.entry), struct.calcsize(format.link)
    directories = []
    while position:
        file.seek(position)
        (count,) = struct.unpack(format.number, file.read(struct.calcsize(format.number)))
        table = file.read(count * entry_size)
        (position,) = struct.unpack(format.link, file.read(link_size))
        fields = {}
        for tag, type, length, inline in struct.iter_unpack(format.entry, table):
            size = length * np.dtype(_TYPES[type]).itemsize
            if size > format.inline:
                file.seek(struct.unpack(format.link, inline)[0])
                inline = file.read(size)
            fields[tag] = _Field(type, inline[:size])
        directories.append(fields)
    return directories
