"""Blocks of a map: encoded once and kept in part files, with overviews.

A block is a square of 256 pixels in all bands. Rectangles of any shape fill the blocks of a level. A full
block is encoded (TIFF predictor and ZSTD, as in a GeoTIFF) and reduced to half its side, which fills a
quarter of a block of the next level. Encoded blocks go to one file in the order in which they became full,
with an index at its end; `lulc.maps.geotiff` copies them into the map unchanged.

The memory holds the blocks that are not full yet: one row of blocks per level, and one rectangle.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numcodecs.zstd import Zstd

from lulc.core.buffers import Buffers
from lulc.core.schema import NODATA, InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window

BLOCK = 256
"""Side of a block in pixels."""

_CODEC = Zstd(level=1)
_NOISY = Zstd(level=-10)
"""Codec of floats, most of whose bytes are noise: half the time of level 1 for a sixth more bytes."""

_SMALL = Zstd(level=19)

_WAITING = 4
"""Most encoded blocks that wait for the disk, beside the one that is being written."""

_INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])


class Encoding(NamedTuple):
    """Storage types of class numbers and activations.

    Parameters
    ----------
    dtype
        Type of all bands.
    scale
        Activation per unit of the stored number.
    has_activations
        True if there is an activation band for each class beside the class band.
    """

    dtype: np.dtype[Any]
    nodata: float
    scale: float
    has_activations: bool

    @property
    def steps(self) -> float:
        """Number of steps between activations 0 and 1.

        float32 is rounded to multiples of 2 ** -23, its resolution between 1 and 2. Finer digits of small
        activations are noise of the softmax, and took a quarter of the file.
        """
        return 2.0**23 if self.dtype.kind == "f" else float(np.float32(1 / self.scale))

    def apply(self, classes: np.ndarray, probabilities: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Encode class numbers and activations for storage.

        Parameters
        ----------
        classes : int (y, x)
        probabilities : float32 (y, x, class), 0..1
        valid : bool (y, x)
            False for no data.

        Returns
        -------
        array of `dtype` (band, y, x)
            Class band, then activations.
        """
        count = probabilities.shape[-1] if self.has_activations else 0
        values = np.empty((1 + count, *classes.shape), self.dtype)
        values[0] = classes
        planes = np.moveaxis(probabilities, -1, 0)
        if count and self.dtype.kind == "u":
            np.copyto(values[1:], np.rint(planes * np.float32(self.steps)), casting="unsafe")
        elif count:
            # Adding 1 rounds to whole steps.
            np.add(planes, np.float32(1), out=values[1:])
            values[1:] -= np.float32(1)
        if not valid.all():
            np.copyto(values, self.dtype.type(self.nodata), where=~valid)
        return values


ENCODINGS = {
    "float32": Encoding(np.dtype("<f4"), NODATA, 1.0, True),
    "uint16": Encoding(np.dtype("<u2"), 65535, 1 / 65534, True),
    "uint8": Encoding(np.dtype("u1"), 255, 1 / 254, True),
    "none": Encoding(np.dtype("u1"), 255, 1.0, False),
}
"""Encodings by the value of ``--activations``; 65535 and 255 are no data, 65534 and 254 are 1."""


def encode_block(values: np.ndarray, codec: Zstd | None = None) -> bytes:
    """Encode one band of a block as a TIFF tile: predictor 3 (float32) or 2 (integers), then ZSTD.

    Parameters
    ----------
    values : float32, uint16 or uint8 (y, x)
        Little-endian.
    codec
        None for a fast codec for this type.

    References
    ----------
    Adobe Photoshop TIFF Technical Note 3 (floating-point predictor); TIFF 6.0, section 14 (differencing).
    """
    rows, cols = values.shape
    codec = codec or (_NOISY if values.dtype.kind == "f" else _CODEC)
    if values.dtype.kind == "f":
        bits = values.view("<u4")
        planes = np.empty((rows, 4, cols), np.uint8)
        for k in range(4):
            np.copyto(planes[:, k], bits >> np.uint32(24 - 8 * k), casting="unsafe")
        values = planes.reshape(rows, 4 * cols)
    differences = np.empty_like(values)
    differences[:, 0] = values[:, 0]
    np.subtract(values[:, 1:], values[:, :-1], out=differences[:, 1:])
    return bytes(codec.encode(differences))


def decode_block(payload: bytes | memoryview, dtype: np.dtype[Any], side: int = BLOCK) -> np.ndarray:
    """Invert `encode_block`: return an array of `dtype` (side, side)."""
    raw = np.frombuffer(_CODEC.decode(payload), np.uint8 if dtype.kind == "f" else dtype)
    summed = np.cumsum(raw.reshape(side, -1), axis=1, dtype=raw.dtype)
    if dtype.kind != "f":
        return summed
    planes = summed.reshape(side, 4, side)
    return np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 1)).view(dtype)[..., 0]


def reduce_block(values: np.ndarray, nodata: float) -> np.ndarray:
    """Halve the resolution: the class of the upper left of four pixels, the mean of their activations.

    Parameters
    ----------
    values : (band, y, x), even sides
        Class band first. Pixels whose class is `nodata` do not count in the means.

    Returns
    -------
    array of the same dtype (band, y / 2, x / 2)
        An activation is no data where all four pixels are.
    """
    reduced = np.empty((len(values), values.shape[1] // 2, values.shape[2] // 2), values.dtype)
    reduced[0] = values[0, ::2, ::2]
    if len(values) == 1:
        return reduced
    working = np.float32 if values.dtype.kind == "f" else np.uint32

    def sum_of_four(layers: np.ndarray) -> np.ndarray:
        pairs = np.add(layers[..., ::2, :], layers[..., 1::2, :], dtype=working)
        return np.add(pairs[..., ::2], pairs[..., 1::2])

    known = values[0] != nodata
    if known.all():
        count, total = np.array(4, working), sum_of_four(values[1:])
    else:
        count = sum_of_four(known)
        total = sum_of_four(np.where(known, values[1:], values.dtype.type(0)))
    divisor = np.maximum(count, working(1))
    mean = total / divisor if working is np.float32 else (2 * total + divisor) // (2 * divisor)
    np.copyto(reduced[1:], mean, casting="unsafe")
    if not count.all():
        np.copyto(reduced[1:], values.dtype.type(nodata), where=count == 0)
    return reduced


class _Encoded(NamedTuple):
    """An encoded block: its bands, their checksums and its overview."""

    payloads: list[bytes]
    crcs: list[int]
    reduced: np.ndarray | None


class _Open:
    """A block that is being filled; it has no array while it is all no data."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None
        self.filled = 0


class BlockWriter(Resource):
    """Writer of rectangles to a file of full blocks of one or more levels; a thread writes and hashes.

    Parameters
    ----------
    file
        Opened for binary writing.
    extents
        Extent of the file at each level, in pixels of the level. Levels are consecutive, origins are at
        block corners, and each extent is half of the one before.
    """

    def __init__(
        self, file: BinaryIO, encoding: Encoding, bands: int, extents: Mapping[int, Window], pool: Executor
    ) -> None:
        self._file = file
        self._encoding = encoding
        self._bands = bands
        self._memory = Buffers(encoding.dtype)
        self._extents = dict(extents)
        self._pool = pool
        self._open: dict[tuple[int, int, int], _Open] = {}
        self._pending: deque[tuple[tuple[int, int, int], Future[_Encoded]]] = deque()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="writes")
        self._writing: deque[Future[None]] = deque()
        self._index = _empty_index(extents, bands)
        self._offset = 0
        self._hash = hashlib.sha256()
        empty = np.full((BLOCK, BLOCK), encoding.nodata, encoding.dtype)
        payload = encode_block(empty, _SMALL)
        self._empty = _Encoded([payload] * bands, [zlib.crc32(payload)] * bands, None)

    def close(self) -> None:
        """Stop the writing thread; blocks that it has not written are dropped."""
        self._disk.shutdown(cancel_futures=True)

    def place(self, level: int, window: Window, values: np.ndarray | None) -> None:
        """Fill a rectangle of a level with encoded values (band, y, x), or None for no data.

        `window` is in pixels of the level and inside its extent. No pixel may be filled twice.
        """
        # Full blocks of this rectangle are encoded by other threads until the next call.
        before = len(self._pending)
        self._fill(level, window, values)
        for _ in range(before):
            self._take()

    def finish(self) -> str:
        """Write the index; return the SHA-256 of the file. Raise ValueError unless all pixels are filled."""
        while self._pending:
            self._take()
        if any((index["size"] == 0).any() for index in self._index.values()):
            raise ValueError("blocks are missing: not every pixel was placed")
        for index in self._index.values():
            self._write([index.tobytes()])
        while self._writing:
            self._writing.popleft().result()
        return self._hash.hexdigest()

    def _take(self) -> None:
        """Write the oldest full block, and fill its quarter of a block of the next level."""
        (level, row, col), future = self._pending.popleft()
        encoded = future.result()
        self._append(level, row, col, encoded)
        if level + 1 in self._extents:
            inside = self._cell(level, row, col)
            half = Window(inside.row // 2, inside.col // 2, -(-inside.height // 2), -(-inside.width // 2))
            part = None if encoded.reduced is None else encoded.reduced[:, : half.height, : half.width]
            self._fill(level + 1, half, part)

    def _fill(self, level: int, window: Window, values: np.ndarray | None) -> None:
        last_row, last_col = (-(-stop // BLOCK) for stop in window.stop)
        for row in range(window.row // BLOCK, last_row):
            for col in range(window.col // BLOCK, last_col):
                cell = Window(row * BLOCK, col * BLOCK, BLOCK, BLOCK)
                overlap = cell.intersect(window)
                block = self._open.setdefault((level, row, col), _Open())
                inside = self._cell(level, row, col)
                rows, cols = overlap.relative_to(cell).slices
                if values is not None:
                    if block.values is None:
                        block.values = self._new(whole=block.filled == 0 and inside == cell)
                    source_rows, source_cols = overlap.relative_to(window).slices
                    block.values[:, rows, cols] = values[:, source_rows, source_cols]
                elif block.values is not None:
                    block.values[:, rows, cols] = self._encoding.nodata
                block.filled += overlap.height * overlap.width
                if block.filled == inside.height * inside.width:
                    del self._open[level, row, col]
                    task = self._pool.submit(self._encode, block.values, level + 1 in self._extents)
                    self._pending.append(((level, row, col), task))

    def _new(self, *, whole: bool) -> np.ndarray:
        """Return memory for a block (band, y, x), no data unless one rectangle fills it as a `whole`."""
        values = self._memory.empty((self._bands, BLOCK, BLOCK))
        if not whole:
            values.fill(self._encoding.nodata)
        return values

    def _cell(self, level: int, row: int, col: int) -> Window:
        return Window(row * BLOCK, col * BLOCK, BLOCK, BLOCK).intersect(self._extents[level])

    def _encode(self, values: np.ndarray | None, reduce: bool) -> _Encoded:
        if values is None:
            return self._empty
        payloads = [encode_block(band) for band in values]
        reduced = reduce_block(values, self._encoding.nodata) if reduce else None
        return _Encoded(payloads, [zlib.crc32(p) for p in payloads], reduced)

    def _append(self, level: int, row: int, col: int, encoded: _Encoded) -> None:
        extent = self._extents[level]
        entries = self._index[level][row - extent.row // BLOCK, col - extent.col // BLOCK]
        sizes = np.array([len(p) for p in encoded.payloads])
        entries["offset"] = self._offset + np.cumsum(sizes) - sizes
        entries["size"] = sizes
        entries["crc"] = encoded.crcs
        self._write(encoded.payloads)

    def _write(self, pieces: Sequence[bytes]) -> None:
        """Pass pieces to the writing thread, which writes and hashes them in order."""
        self._offset += sum(map(len, pieces))
        self._writing.append(self._disk.submit(self._put, pieces))
        while len(self._writing) > _WAITING:
            self._writing.popleft().result()

    def _put(self, pieces: Sequence[bytes]) -> None:
        for data in pieces:
            self._file.write(data)
            self._hash.update(data)


class BlockFile(Resource):
    """Reader of the file of a `BlockWriter`.

    It raises InputError if the file is too short, or a block does not have its checksum.
    """

    def __init__(self, path: Path, extents: Mapping[int, Window], bands: int) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close
        self.index = _empty_index(extents, bands)
        self._extents = dict(extents)
        size = sum(index.nbytes for index in self.index.values())
        length = os.fstat(self._file.fileno()).st_size
        if length < size:
            self._file.close()
            raise self._damaged(f"{length} bytes")
        self._file.seek(length - size)
        for index in self.index.values():
            raw = np.frombuffer(self._file.read(index.nbytes), _INDEX)
            index[...] = raw.reshape(index.shape)

    def close(self) -> None:
        self._file.close()

    def rows(self, level: int) -> range:
        """Block rows of a level in this file, counted in the level."""
        first = self._extents[level].row // BLOCK
        return range(first, first + self.index[level].shape[0])

    def cols(self, level: int) -> range:
        """Block columns of a level in this file, counted in the level."""
        first = self._extents[level].col // BLOCK
        return range(first, first + self.index[level].shape[1])

    def read(self, level: int, row: int, col: int, *, last: bool = False) -> list[memoryview]:
        """Read the encoded bands of one block, in any thread; `last` if they aren't needed again."""
        extent = self._extents[level]
        entries = self.index[level][row - extent.row // BLOCK, col - extent.col // BLOCK]
        sizes = entries["size"].astype(int)
        data = memoryview(os.pread(self._file.fileno(), int(sizes.sum()), int(entries["offset"][0])))
        if data and last and hasattr(os, "posix_fadvise"):
            # The system can use its page cache for the blocks that are written next.
            start, length = int(entries["offset"][0]), len(data)
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file.fileno(), start, length, os.POSIX_FADV_DONTNEED)
        stops = np.cumsum(sizes)
        payloads = [data[stop - size : stop] for stop, size in zip(stops, sizes, strict=True)]
        if [zlib.crc32(p) for p in payloads] != entries["crc"].tolist():
            raise self._damaged(f"another checksum in block {row}, {col} of level {level}")
        return payloads

    def _damaged(self, problem: str) -> InputError:
        return InputError(
            f"cannot finish the map, since the part '{self._path}' is damaged ({problem})",
            "Run the same command again: damaged parts are made anew.",
        )


def _empty_index(extents: Mapping[int, Window], bands: int) -> dict[int, np.ndarray]:
    """Return an index of zeros for each level, (block row, block column, band)."""
    return {
        level: np.zeros((-(-extent.height // BLOCK), -(-extent.width // BLOCK), bands), _INDEX)
        for level, extent in extents.items()
    }
