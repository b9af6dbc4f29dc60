"""One layer of whole numbers (labels, masks) on a grid, read by nearest neighbour and never interpolated."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from lulc.core.grid import GridSpec
from lulc.core.schema import NO_CODE, InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.rasters.alignment import Alignment
from lulc.rasters.layers import Source

_ROUNDING = 1e-6


class SingleLayer(Resource):
    """The only layer of a raster, beside alpha, on a grid; closes its source.

    `what` is what it is read as, for messages: ``a mask``, ``labels``. Raises InputError if the raster has
    several layers, or lies elsewhere.
    """

    def __init__(self, source: Source, grid: GridSpec, what: str, hint: str) -> None:
        self.source = source
        self.what = what
        data = [i for i, layer in enumerate(source.layers) if not layer.alpha]
        if len(data) != 1:
            raise InputError(
                f"cannot read {what} from '{source.path}', since it has {len(data)} layers "
                f"({', '.join(str(n) for n in source.names[:9])}), expected one",
                hint,
            )
        self._number = data[0]
        self.layer = source.layers[data[0]]
        self.alignment = Alignment(source.grid, grid)
        if not self.alignment.touches():
            raise InputError(
                f"cannot read {what} from '{source.path}', since it lies elsewhere: it covers\n"
                f"  {source.grid.describe()}\nexpected some of\n  {grid.describe()}",
                "Give the raster of the same region.",
            )

    def codes(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Whole numbers int64 (y, x), `NO_CODE` where missing; and bool, False beyond the raster.

        Raises InputError if a value is no whole number.
        """
        codes, inside = self.alignment.nearest(self._codes, window)
        codes[~inside] = NO_CODE
        return codes, inside

    def numbers(self, window: Window) -> np.ndarray:
        """Any numbers float32 (y, x), NaN where missing or beyond the raster."""
        numbers, inside = self.alignment.nearest(self._numbers, window)
        numbers[~inside] = np.nan
        return numbers

    def values_in(self, there: Window, step: int = 1) -> np.ndarray:
        """Return the distinct whole numbers in every `step`-th row and column of a window of the raster."""
        values = np.unique(self._codes(there, step))
        return values[values != NO_CODE]

    def _codes(self, there: Window, step: int = 1) -> np.ndarray:
        stored, valid = self.source.read_valid([self._number], there, step)
        values, known = self.layer.unpack(stored[0]), valid[0]
        if values.dtype.kind == "f":
            whole = np.round(values)
            near = 0.0 if stored.dtype.kind == "f" else _ROUNDING
            odd = known & ~((np.abs(values - whole) <= near) & (np.abs(whole) < 2**31))
            if odd.any():
                raise InputError(
                    f"cannot read {self.what} from '{self.source.path}', since it has the value "
                    f"{values[odd][0]:.6g} (and {int(odd.sum()) - 1} px like it), expected whole numbers",
                    f"{self.what.capitalize()} must not be interpolated: give the raster before it was "
                    "resampled, or resample it by nearest neighbour.",
                )
            values = np.where(known, whole, 0)
        codes = values.astype(np.int64)
        codes[~known] = NO_CODE
        return codes

    def _numbers(self, there: Window) -> np.ndarray:
        stored, valid = self.source.read_valid([self._number], there)
        numbers = self.layer.unpack(stored[0]).astype(np.float32)
        numbers[~valid[0]] = np.nan
        return numbers

    def reopen(self) -> SingleLayer:
        again = copy.copy(self)
        again.source = self.source.reopen()
        return again

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    def close(self) -> None:
        self.source.close()
