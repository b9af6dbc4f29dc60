"""Images and masks on disk as arrays: .npy files are memory-mapped, rasters are read as they are sliced."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
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
    """An image (y, x, band) or masks (y, x), sliced by (rows, columns)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


class NpyWriter:
    """Writes an array of a known shape to a .npy file, in strips along its first axis."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype = dtype.newbyteorder("<")
        self._left = int(np.prod(shape, dtype=np.int64))
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, strip: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(strip, self._dtype).data)
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
    """Open an image or masks: a .npy file as a memory map, a raster to be read as it is sliced."""
    if path.suffix == ".npy":
        return _open_npy(path)
    return _RasterLayers(open_source(str(path)))


def _open_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"cannot open '{path}', since there is no such file", "Check the folder.")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            formats = {(1, 0): "1_0", (2, 0): "2_0"}
            read = getattr(np.lib.format, f"read_array_header_{formats[version]}")
            shape, fortran, dtype = read(file)
            offset = file.tell()
        if dtype.hasobject or dtype.kind not in "fiu" or dtype.itemsize > 8:
            raise ValueError(f"its type is {dtype}")
        needed = dtype.itemsize * math.prod(map(int, shape))
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
    """A raster file as (y, x, band), or (y, x) if it has one layer; missing values are NaN."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # Threads that cut crops share the file.
        self._lock = threading.Lock()
        count = len(source.layers)
        self.shape: tuple[int, ...] = (*source.grid.shape, count) if count > 1 else source.grid.shape

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        with self._lock:
            layers = range(len(self._source.layers))
            stored, valid = self._source.read_valid(layers, _window_of(key, self.shape))
        values = np.where(valid, stored, np.nan).astype(np.float32)
        return np.moveaxis(values, 0, -1) if len(values) > 1 else values[0]


def _window_of(key: tuple[slice, slice], shape: tuple[int, ...]) -> Window:
    """Return the window of two slices without steps."""
    (r0, r1, _), (c0, c1, _) = (k.indices(n) for k, n in zip(key, shape, strict=False))
    return Window(r0, c0, max(0, r1 - r0), max(0, c1 - c0))


@dataclass(frozen=True)
class Converted:
    """Layers whose pixels a function converts as they are sliced."""

    layers: Layers
    convert: Callable[[Any], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.convert(self.layers[key])


def physical_units(pixels: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Return standardised pixels in physical units, float32."""
    return (np.asarray(pixels, np.float64) * statistics.std + statistics.mean).astype(np.float32)


def class_numbers(labels: np.ndarray, path: str) -> np.ndarray:
    """Return labels of any type as class numbers uint8; NaN, 0 and 255 become 255 (ignore)."""
    values = np.asarray(labels, np.float64)
    known = np.where(np.isnan(values) | (values == 0), IGNORE, values)
    odd = known[(known != np.round(known)) | (known < 0) | (known > IGNORE)]
    if odd.size:
        raise InputError(
            f"cannot read class numbers from '{path}', since it has the value {odd[0]:.6g}, expected "
            "whole numbers 1..254, NaN or 255 to ignore",
            "Masks must not be interpolated; make them again by nearest neighbour.",
        )
    return known.astype(np.uint8)


@dataclass(frozen=True)
class Padded:
    """Layers (y, x) or (y, x, band) with constant rows below and columns to the right."""

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
class Ignoring:
    """Masks that are 255 within some windows."""

    layers: Layers
    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        values = np.array(self.layers[key])
        for window in near_windows(_window_of(key, self.shape), self.windows, 0):
            values[window.slices] = IGNORE
        return values
