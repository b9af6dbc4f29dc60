"""Crops of stacks in the memory of a device, usually a GPU.

The host cuts, rotates and flips pixel numbers, four bytes each instead of those of all bands. The device then
gathers the pixels of these numbers from its copy of the stacks. Only changes that move pixels are possible,
and the result equals that of the host bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE
from lulc.datasets.arrays import Layers
from lulc.models.backend import keras
from lulc.training.data.batches import BatchConfig, TileGenerator
from lulc.training.data.dataset import ROWS_AT_ONCE, Tile


class ResidentCrops(TileGenerator):
    """Batches of crops whose images are on the device.

    Parameters
    ----------
    tiles
        Stacks with fewer than 2 ** 31 pixels together; their copy on the device lives until `close`.
    config
        Settings whose augmentations may only move pixels.
    """

    _dtype = np.int32

    def __init__(self, tiles: Sequence[Tile], config: BatchConfig) -> None:
        super().__init__(tiles, config)
        tiles = [tile for tile, _ in self._choices]  # those that a crop fits
        total = sum(tile.image.shape[0] * tile.image.shape[1] for tile in tiles)
        pixels = np.empty((total, tiles[0].image.shape[2]), np.float32)
        self._numbers: dict[int, _Numbers] = {}
        first = 0
        for tile in tiles:
            self._numbers[id(tile)] = _Numbers(tile.image.shape[:2], first)
            first += _copy(tile.image, pixels[first:])
        self._invalid = ~np.isfinite(pixels @ np.ones(pixels.shape[1], np.float32))
        pixels[self._invalid] = np.nan
        self._any_invalid = bool(self._invalid.any())
        self._pixels = keras.ops.convert_to_tensor(pixels)

    def batch(self, epoch: int, index: int) -> tuple[Any, Any]:
        """Cut batch number `index` of epoch number `epoch`, or the crops of it that this process cuts.

        Returns
        -------
        images : float32 tensor (crop, y, x, band) of the framework, on the device; otherwise as in
            `TileGenerator`
        labels : uint8 array (crop, y, x), as in `TileGenerator`
        """
        numbers, labels = self._cut(epoch, index)
        numbers = numbers[..., 0]
        if self._any_invalid:
            labels[self._invalid[numbers]] = IGNORE
        return keras.ops.take(self._pixels, numbers, axis=0), labels

    def close(self) -> None:
        """Free all memory of host and device; afterwards no batch can be cut."""
        super().close()
        del self._pixels

    def _source(self, tile: Tile) -> Layers:
        return self._numbers[id(tile)]


class _Numbers:
    """Stand-in for an image (y, x, band): the numbers of its pixels among those of all stacks."""

    def __init__(self, shape: tuple[int, ...], first: int) -> None:
        self.shape = (*shape, 1)
        self._first = first

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[np.int32]:
        (top, bottom, _), (left, right, _) = map(slice.indices, key, self.shape[:2])
        rows = np.arange(top, bottom, dtype=np.int32)[:, np.newaxis, np.newaxis] * np.int32(self.shape[1])
        cols = np.arange(left, right, dtype=np.int32)[:, np.newaxis]
        return rows + cols + np.int32(self._first)


def _copy(image: Layers, pixels: NDArray[np.float32]) -> int:
    """Copy an image (y, x, band) strip by strip to the first rows of `pixels`; return its pixels."""
    height, width, bands = image.shape
    for row in range(0, height, ROWS_AT_ONCE):
        stop = min(row + ROWS_AT_ONCE, height)
        pixels[row * width : stop * width] = np.asarray(image[row:stop, 0:width]).reshape(-1, bands)
    return height * width
