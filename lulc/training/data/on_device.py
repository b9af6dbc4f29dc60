"""Crops of stacks that lie in the memory of a device, usually a GPU.

The host cuts, turns and flips the numbers of pixels, four bytes for each instead of those of all bands. The
device then takes the pixels of these numbers from the stacks that it holds. So only changes that move pixels
are possible here, and they give what they give on the host, bit for bit.
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
    """Batches of crops whose images lie on the device already.

    Parameters
    ----------
    tiles
        Stacks to cut from, fewer than 2 ** 31 pixels in all; copied to the device until `close`.
    config
        How they are cut; its augmentations may only move pixels.
    """

    _dtype = np.int32

    def __init__(self, tiles: Sequence[Tile], config: BatchConfig) -> None:
        super().__init__(tiles, config)
        # Those that no side fits stay where they are.
        tiles = [tile for tile, _ in self._choices]
        counts = [tile.image.shape[0] * tile.image.shape[1] for tile in tiles]
        first = np.cumsum([0, *counts])
        self._numbers = {
            id(tile): _Numbers(tile.image.shape[:2], int(number))
            for tile, number in zip(tiles, first, strict=False)
        }
        pixels = np.empty((int(first[-1]), tiles[0].image.shape[2]), np.float32)
        for tile, number in zip(tiles, first, strict=False):
            _copy(tile.image, pixels[number:])
        self._invalid = ~np.isfinite(pixels @ np.ones(pixels.shape[1], np.float32))
        pixels[self._invalid] = np.nan
        self._any_invalid = bool(self._invalid.any())
        self._pixels = keras.ops.convert_to_tensor(pixels)

    def batch(self, epoch: int, index: int) -> tuple[Any, Any]:
        """Cut batch number `index` of epoch number `epoch`, or the crops of it that this process cuts.

        Returns
        -------
        images : float32 tensor (crop, y, x, band) of the framework, on the device; otherwise as those of a
            `TileGenerator`
        labels : uint8 array (crop, y, x), likewise
        """
        numbers, labels = self._cut(epoch, index)
        numbers = numbers[..., 0]
        if self._any_invalid:
            labels[self._invalid[numbers]] = IGNORE
        return keras.ops.take(self._pixels, numbers, axis=0), labels

    def close(self) -> None:
        """Free all memory, that of the device too; no more batches can be made."""
        super().close()
        del self._pixels

    def _source(self, tile: Tile) -> Layers:
        return self._numbers[id(tile)]


class _Numbers:
    """Stands in for an image (y, x, band): the numbers of its pixels among those of all stacks."""

    def __init__(self, shape: tuple[int, ...], first: int) -> None:
        self.shape = (*shape, 1)
        self._first = first

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[np.int32]:
        (top, bottom, _), (left, right, _) = (
            of.indices(length) for of, length in zip(key, self.shape[:2], strict=True)
        )
        rows = np.arange(top, bottom, dtype=np.int32)[:, np.newaxis, np.newaxis] * np.int32(self.shape[1])
        cols = np.arange(left, right, dtype=np.int32)[:, np.newaxis]
        return rows + cols + np.int32(self._first)


def _copy(image: Layers, pixels: NDArray[np.float32]) -> None:
    """Copy an image (y, x, band) to the first of `pixels` (pixel, band), strip by strip."""
    height, width, bands = image.shape
    for row in range(0, height, ROWS_AT_ONCE):
        stop = min(row + ROWS_AT_ONCE, height)
        pixels[row * width : stop * width] = np.asarray(image[row:stop, 0:width]).reshape(-1, bands)
