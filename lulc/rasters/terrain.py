"""Slope and aspect of an elevation raster, on its own grid, as layers of a source.

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
"""Relative distortion of the map from which sizes of pixels are measured on the ground. UTM and national
grids have far less, and programs for terrain use their metres too.
"""


class TerrainSource(Source):
    """Derivatives of one layer of elevation in metres.

    Layers are ``slope`` in degrees, and sine and cosine of the aspect: the direction in which the slope
    falls, clockwise from north. Both are 0 on flat ground. A pixel with a missing neighbour is missing;
    beyond the border elevation is extrapolated linearly. `elevation` gives scale, offset and valid range of
    the layer.
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
        # The sums don't use the middle, but a pixel without elevation is missing.
        gap = np.where(np.isnan(z[1:-1, 1:-1]), np.nan, 0.0)
        return east / (8 * width) + gap, north / (8 * height) + gap

    def _elevation(self, window: Window) -> np.ndarray:
        """Return elevation of a window and one pixel around it, float64, NaN where missing."""
        wide = window.grow(1)
        inner = wide.intersect(self.grid.extent)
        stored, valid = self._source.read_valid([self._layer], inner)
        z, known = np.empty(stored[0].shape, "float32"), np.empty(stored[0].shape, bool)
        convert(stored[0], self._channel, self._source.layers[self._layer], z, known)
        z = np.where(known & valid[0], z, np.nan).astype("float64")
        beyond = (
            (inner.row - wide.row, wide.stop[0] - inner.stop[0]),
            (inner.col - wide.col, wide.stop[1] - inner.stop[1]),
        )
        return np.pad(z, beyond, mode="reflect", reflect_type="odd")

    def _metres(self, window: Window) -> tuple[Any, Any]:
        """Width and height of the pixels of a window in metres on the ground: numbers, or by row (y, 1)."""
        if self._distorted:
            sizes = pixels_on_ground(self.grid, np.arange(window.row, window.stop[0]) + 0.5)
            if sizes is not None:
                return sizes[0][:, None], sizes[1][:, None]
        width, height = self.grid.pixel_size
        metre = self.grid.crs.linear_units_factor[1]
        return width * metre, height * metre

    @cached_property
    def _distorted(self) -> bool:
        """True where metres of the map differ from those on the ground, as in degrees or Web Mercator."""
        if self.grid.crs.is_geographic:
            return True
        on_ground = pixels_on_ground(self.grid, [0.5, self.grid.height - 0.5])
        on_map = np.array(self.grid.pixel_size)[:, None] * self.grid.crs.linear_units_factor[1]
        return on_ground is not None and bool((np.abs(np.array(on_ground) / on_map - 1) > DISTORTION).any())

    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    def reopen(self) -> Self:
        return type(self)(self._source.reopen(), self._layer, self._channel)

    def close(self) -> None:
        self._source.close()
