"""Images and masks on disk as arrays: .npy files memory-mapped, rasters read as they are sliced."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np

from lulc.core.schema import IGNORE, InputError
from lulc.core.statistics import Statistics
from lulc.core.windows import Window, near_windows
from lulc.rasters.layers import Source
from lulc.rasters.sources import open_source


class Layers(Protocol):
    """An image (y, x, band) or masks (y, x): a shape, and slicing by (rows, columns)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(y, x, band) or (y, x)."""

    def __getitem__(self, key: Any) -> Any:
        """Pixels."""


class NpyWriter:
    """Write an array to a .npy file strip by strip.

    Parameters
    ----------
    shape
        Shape of the whole array; strips follow one another along its first axis.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype = dtype
        self._left = int(np.prod(shape, dtype=np.int64))
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, strip: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(strip, self._dtype.newbyteorder("<")).data)
        self._left -= strip.size

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None and self._left:
            raise ValueError(f"{self._left} values are missing, expected the whole array")


def open_layers(path: Path) -> Layers:
    """An image or masks as an array-like: .npy memory-mapped, rasters read as they are sliced."""
    if path.suffix == ".npy":
        return _open_npy(path)
    return _RasterLayers(open_source(str(path)))


def _open_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"cannot open '{path}', since there is no such file", "Check the folder.")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
                version
            ]
            shape, fortran, dtype = read(file)
            offset = file.tell()
        if dtype.hasobject or dtype.kind not in "fiu" or dtype.itemsize > 8:
            raise ValueError(f"its type is {dtype}")
        needed = dtype.itemsize
        for side in shape:
            needed *= int(side)
        if fortran or min(shape, default=0) < 1 or offset + needed != path.stat().st_size:
            raise ValueError(
                f"its header declares shape {shape} of {dtype}, which is not what its "
                f"{path.stat().st_size} bytes hold row by row"
            )
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError:
        raise
    except Exception as error:  # numpy reads the header as Python, which fails in many ways
        raise InputError(
            f"cannot open '{path}', since it is no plain array of numbers in .npy format ({error})",
            "It is damaged or was not written by numpy.save; make it again.",
        ) from error


class _RasterLayers:
    """A raster file as (y, x, band), or (y, x) where it has one layer; no data reads as NaN."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # A raster file has one position in it; the threads that cut crops share it.
        self._lock = threading.Lock()
        self._single = len(source.names) == 1
        self.names = tuple(source.names)
        grid = source.grid.shape
        self.shape: tuple[int, ...] = grid if self._single else (*grid, len(source.names))

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (r0, r1, _), (c0, c1, _) = (k.indices(n) for k, n in zip(key, self.shape, strict=False))
        window = Window(r0, c0, max(0, r1 - r0), max(0, c1 - c0))
        with self._lock:
            stored, valid = self._source.read_valid(range(len(self.names)), window)
        values = np.where(valid, stored, np.nan).astype(np.float32)
        return values[0] if self._single else np.moveaxis(values, 0, -1)


@dataclass(frozen=True)
class _Around:
    """Layers that are changed as they are sliced."""

    layers: Layers

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape


@dataclass(frozen=True)
class Converted(_Around):
    """Layers whose type changes as they are sliced."""

    dtype: np.dtype[Any]

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self.layers[key], self.dtype)


@dataclass(frozen=True)
class Physical(_Around):
    """A standardised image, turned back into physical units as it is sliced; float32."""

    statistics: Statistics

    def __getitem__(self, key: Any) -> np.ndarray:
        pixels = np.asarray(self.layers[key], np.float64)
        return (pixels * self.statistics.std + self.statistics.mean).astype(np.float32)


@dataclass(frozen=True)
class Classes(_Around):
    """Masks of another type as uint8 class numbers; NaN, 0 and 255 are ignored."""

    path: str

    def __getitem__(self, key: Any) -> np.ndarray:
        values = np.asarray(self.layers[key], np.float64)
        known = np.where(np.isnan(values) | (values == 0), IGNORE, values)
        if (known != np.round(known)).any() or (known < 0).any() or (known > IGNORE).any():
            odd = known[(known != np.round(known)) | (known < 0) | (known > IGNORE)][0]
            raise InputError(
                f"cannot read class numbers from '{self.path}', since it has the value {odd:.6g}, expected "
                "whole numbers 1..254, NaN or 255 to ignore",
                "Masks must not be interpolated; make them again by nearest neighbour.",
            )
        return known.astype(np.uint8)


@dataclass(frozen=True)
class Padded:
    """Layers (y, x) or (y, x, band) with further rows below and columns to the right, of one value."""

    layers: Layers
    shape: tuple[int, ...]
    fill: float

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, cols = (range(*k.indices(n)) for k, n in zip(key, self.shape, strict=False))
        stored = np.asarray(self.layers[slice(rows.start, rows.stop), slice(cols.start, cols.stop)])
        found = np.full((len(rows), len(cols), *self.shape[2:]), self.fill, stored.dtype)
        found[: stored.shape[0], : stored.shape[1]] = stored
        return found


@dataclass(frozen=True)
class Ignoring(_Around):
    """Masks that read as 255 within some windows."""

    windows: tuple[Window, ...]

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        values = np.array(self.layers[key])
        (r0, r1, _), (c0, c1, _) = (k.indices(n) for k, n in zip(key, self.shape, strict=False))
        sliced = Window(r0, c0, max(0, r1 - r0), max(0, c1 - c0))
        for window in near_windows(sliced, self.windows, 0):
            values[window.slices] = IGNORE
        return values
