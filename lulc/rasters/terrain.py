"""Slope and aspect of an elevation raster, on its own pixels, as layers of a source.

References
----------
Horn, B. K. P. (1981), Hill shading and the reflectance map, Proceedings of the IEEE 69(1), equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np

from lulc.core.channels import ChannelDefinition
from lulc.core.formula import TERRAIN
from lulc.core.grid import pixels_on_ground
from lulc.core.windows import Window
from lulc.rasters.layers import Layer, Source
from lulc.rasters.radiometry import convert

DISTORTION = 0.01
"""From this distortion on, the ground is measured instead of the map. UTM and national grids stay far below,
and programs for terrain take their metres as they are."""


class TerrainSource(Source):
    """Derivatives of one layer of elevation in metres.

    Layers are ``slope`` in degrees, and sine and cosine of the aspect: the direction in which the slope
    falls, clockwise from north. Both are 0 on flat ground. A pixel with a missing neighbour is missing;
    beyond the border elevation goes on as it runs there.

    Parameters
    ----------
    source
        Elevation raster, which stays open until the last of those that share it is closed.
    elevation
        The channel of elevation: its scale, offset and valid range, metres.
    """

    def __init__(self, source: Source, layer: int, elevation: ChannelDefinition) -> None:
        self._source, self._layer, self._channel = source, layer, elevation
        self.path, self.grid, self.block, self.tags = source.path, source.grid, source.block, source.tags
        self.layers = tuple(Layer(name, "float32") for name in TERRAIN)

    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        """Return some derivatives (layer, y, x), float32, NaN where a neighbour is missing."""
        east, north = self._gradient(window)
        steep = np.hypot(east, north)
        with np.errstate(invalid="ignore"):
            flat = steep == 0
            downhill = np.where(flat, 1, steep)
            values = (np.degrees(np.arctan(steep)), -east / downhill, -north / downhill)
        return np.stack([values[i] for i in layers]).astype("float32")

    def _gradient(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return the rise per metre to the east and to the north, float64 (y, x)."""
        z = self._elevation(window)
        width, height = self._metres(window)
        left, right = z[:, :-2], z[:, 2:]
        above, below = z[:-2], z[2:]
        east = (right - left)[:-2] + 2 * (right - left)[1:-1] + (right - left)[2:]
        north = (above - below)[:, :-2] + 2 * (above - below)[:, 1:-1] + (above - below)[:, 2:]
        # The middle takes no part in the sums, but without it a pixel is missing.
        gap = np.where(np.isnan(z[1:-1, 1:-1]), np.nan, 0.0)
        return east / (8 * width) + gap, north / (8 * height) + gap

    def _elevation(self, window: Window) -> np.ndarray:
        """Elevation of a window and a pixel around, float64, NaN where missing."""
        wide = window.grow(1)
        inner = wide.intersect(self.grid.extent)
        stored, valid = self._source.read_valid([self._layer], inner)
        z, known = np.empty(stored[0].shape, "float32"), np.empty(stored[0].shape, bool)
        convert(stored[0], self._channel, self._source.layers[self._layer], z, known)
        z = np.where(known & valid[0], z, np.nan).astype("float64")
        around = [
            (inner.row - wide.row, wide.stop[0] - inner.stop[0]),
            (inner.col - wide.col, wide.stop[1] - inner.stop[1]),
        ]
        for axis, (before, after) in enumerate(around):
            z = _extended(z, axis, before, after)
        return z

    def _metres(self, window: Window) -> tuple[Any, Any]:
        """Width and height of the pixels of a window on the ground, metres: numbers, or by row (y, 1)."""
        if self._distorted:
            found = pixels_on_ground(self.grid, np.arange(window.row, window.stop[0]) + 0.5)
            if found is not None:
                return found[0][:, None], found[1][:, None]
        width, height = self.grid.pixel_size
        metre = self.grid.crs.linear_units_factor[1]
        return width * metre, height * metre

    @cached_property
    def _distorted(self) -> bool:
        """True where metres of the map are not those of the ground, as in degrees or Web Mercator."""
        if self.grid.crs.is_geographic:
            return True
        found = pixels_on_ground(self.grid, [0.5, self.grid.height - 0.5])
        sides = np.array(self.grid.pixel_size)[:, None] * self.grid.crs.linear_units_factor[1]
        return found is not None and bool((np.abs(np.array(found) / sides - 1) > DISTORTION).any())

    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    def reopen(self) -> Self:
        return type(self)(self._source.reopen(), self._layer, self._channel)

    def close(self) -> None:
        self._source.close()


def _extended(z: np.ndarray, axis: int, before: int, after: int) -> np.ndarray:
    """Add a line before and after along an axis, on the line through the two beside it."""
    z = np.moveaxis(z, axis, 0)
    second = min(1, len(z) - 1)
    first = [2 * z[:1] - z[second : second + 1]] if before else []
    last = [2 * z[-1:] - z[-1 - second : len(z) - second]] if after else []
    return np.moveaxis(np.concatenate([*first, z, *last]), 0, axis)
