"""Raster sources that are open in a reader process, which sends their pixels as plain arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.grid import GridSpec
from lulc.core.reader_process import Apart
from lulc.core.windows import Window
from lulc.rasters.layers import Layer, Source
from lulc.rasters.missing import Missing

_STRIP_BYTES = 64 * 2**20
"""Bytes that one call reads, which limits the memory of the reader process for any window."""


class Served:
    """A source in its reader process, which answers with plain values."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def describe(self) -> dict[str, Any]:
        """Return everything but the pixels, for `describe_on`."""
        source = self.source
        return {
            "grid": source.grid.to_json(),
            "layers": [dataclasses.asdict(layer) for layer in source.layers],
            "block": source.block,
            "tags": {str(key): str(value) for key, value in source.tags.items()},
            "ordered": source.ordered,
            "driver": source.driver,
        }

    def read(self, layers: Sequence[int], window: Sequence[int]) -> np.ndarray:
        """Stored values of a window, given as (row, column, height, width)."""
        return self.source.read(layers, Window.from_json(window))

    def read_mask(self, layers: Sequence[int], window: Sequence[int], step: int) -> np.ndarray | None:
        return self.source.read_mask(layers, Window.from_json(window), step)

    def read_every(self, step: int, layers: Sequence[int], window: Sequence[int]) -> np.ndarray:
        return self.source.read_every(step, layers, Window.from_json(window))

    def attributes(self) -> dict[str, Any]:
        return {str(key): _plain(value) for key, value in self.source.attributes().items()}


def describe_on(source: Source, described: Mapping[str, Any]) -> None:
    """Set the attributes of a source to those that `Served.describe` returned."""
    source.grid = GridSpec.from_json(described["grid"])
    source.layers = tuple(_layer(layer) for layer in described["layers"])
    source.block = (int(described["block"][0]), int(described["block"][1]))
    for name in ("tags", "ordered", "driver"):
        setattr(source, name, described[name])


class ApartSource(Source):
    """A source whose file only a reader process opens.

    Parameters
    ----------
    make
        Full name of the function that returns a `Served` there.
    arguments
        Plain values for `make`.
    place
        File or folder that is opened; the process may read only its folder.
    stored
        Bytes of the file or folder, from which the limits follow.
    ahead
        Modules that the server of reader processes loads once for all files.
    """

    def __init__(
        self, make: str, arguments: Sequence[Any], path: str, place: Path, stored: int,
        ahead: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.path = path
        self._opening = make, arguments, path, place, stored, ahead
        self._process = Apart(make, *arguments, path=path, place=place, stored=stored, ahead=ahead)
        describe_on(self, self._process.made)

    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        types = [np.dtype(self.layers[i].dtype) for i in layers]
        values = np.empty((len(layers), *window.shape), np.result_type(*types))
        for part, strip in self._strips(window, values.dtype.itemsize, len(layers)):
            rows = slice(strip.row - window.row, strip.stop[0] - window.row)
            values[part, rows] = self._process.call("read", list(layers[part]), strip.to_json())
        return values

    def read_mask(self, layers: Sequence[int], window: Window, step: int = 1) -> np.ndarray | None:
        strips = [strip for _, strip in self._strips(window, 1, 1)] if step == 1 else [window]
        parts = [self._process.call("read_mask", list(layers), strip.to_json(), step) for strip in strips]
        return None if parts[0] is None else np.concatenate(parts, axis=1)

    def read_every(self, step: int, layers: Sequence[int], window: Window) -> np.ndarray:
        return self._process.call("read_every", step, list(layers), window.to_json())

    def _strips(self, window: Window, itemsize: int, layers: int) -> Iterator[tuple[slice, Window]]:
        """Yield the layers and rows of a window that are read at once, whole blocks where they fit."""
        height = self.block[0]
        row_bytes = max(1, window.width * itemsize)
        together = max(1, min(layers, _STRIP_BYTES // (row_bytes * height)))
        step = max(1, _STRIP_BYTES // (row_bytes * together * height)) * height
        for first in range(0, layers, together):
            chosen = slice(first, min(layers, first + together))
            row = window.row
            while row < window.stop[0]:
                stop = min(window.stop[0], (row // step + 1) * step)
                yield chosen, Window(row, window.col, stop - row, window.width)
                row = stop

    def palette(self) -> Mapping[int, str]:
        return self._process.call("source.palette")

    def attributes(self) -> Mapping[str, Any]:
        return self._process.call("attributes")

    def table(self) -> bytes:
        return self._process.call("source.table")

    def use_alpha(self) -> None:
        self._process.call("source.use_alpha")
        super().use_alpha()

    def reopen(self) -> ApartSource:
        again = ApartSource(*self._opening)
        # A product's metadata may have replaced the layers of the file.
        if [layer.alpha for layer in again.layers] != [layer.alpha for layer in self.layers]:
            again.use_alpha()
        again.layers = self.layers
        return again

    def close(self) -> None:
        self._process.close()

    def identity(self) -> dict[str, Any]:
        return self._process.call("source.identity")


def _layer(described: Mapping[str, Any]) -> Layer:
    missing = described["missing"]
    values = Missing(tuple(missing["values"]), missing["lowest"], missing["highest"])
    return Layer(**{**described, "missing": values, "packing": tuple(described["packing"])})


def _plain(value: Any) -> Any:
    """Return an attribute as a value that JSON or an array of numbers can hold."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return [_plain(item) for item in value.ravel().tolist()]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    known = isinstance(value, str | bytes | int | float | np.ndarray | np.generic) or value is None
    return value if known else str(value)
