"""Labelled pixels of stacks and their features, for models of single pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lulc.core.schema import IGNORE
from lulc.core.statistics import Statistics
from lulc.core.windows import Window, squares_of
from lulc.models.pixel_model import texture_features
from lulc.training.data.dataset import Tile

SIDE = 256
"""Side in pixels of the squares that a stack is read in. They divide patches of labels."""

AT_ONCE = 2**18
"""Pixels of all surroundings whose features are computed together."""


@dataclass(frozen=True)
class Square:
    """Labelled pixels of a square of a stack.

    Parameters
    ----------
    window
        The square.
    rows, cols
        int64 (pixel,), positions in the stack.
    labels
        uint8 (pixel,), network classes 0..N-1.
    patches
        int64 (pixel,), number from 0 of the patch in the square: touching pixels with one label.
    """

    tile: Tile
    window: Window
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    labels: NDArray[np.uint8]
    patches: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Square:
        """Return the chosen pixels."""
        arrays = {name: getattr(self, name)[chosen] for name in ("rows", "cols", "labels", "patches")}
        return replace(self, **arrays)


def labelled_squares(tiles: Sequence[Tile], targets: NDArray[np.uint8]) -> Iterator[Square]:
    """Yield the squares of `SIDE` pixels of stacks with valid labelled pixels, in order.

    Parameters
    ----------
    targets
        uint8 (256,), network class of each value in the masks, 255 = ignore.
    """
    for tile in tiles:
        for window in squares_of(Window(0, 0, *tile.masks.shape), SIDE):
            square = labelled_square(tile, window, targets)
            if square:
                yield square


def labelled_square(tile: Tile, window: Window, targets: NDArray[np.uint8]) -> Square | None:
    """Return the valid labelled pixels of a window of a stack; None if there are none."""
    labels = targets[np.asarray(tile.masks[window.slices])]
    if (labels == IGNORE).all():
        return None
    valid = tile.valid(np.asarray(tile.image[window.slices]))
    labels = np.where(valid, labels, np.uint8(IGNORE))
    rows, cols = np.nonzero(labels != IGNORE)
    if not rows.size:
        return None
    patches = number_patches(labels)[rows, cols]
    return Square(tile, window, rows + window.row, cols + window.col, labels[rows, cols], patches)


def number_patches(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the patches of equal labels from 0, joined at sides and corners; -1 where nothing is labelled.

    Examples
    --------
    >>> number_patches(np.uint8([[0, 255, 1], [255, 0, 1], [0, 255, 255]])).tolist()
    [[0, -1, 1], [-1, 0, 1], [0, -1, -1]]
    """
    numbers = np.full(labels.shape, -1, np.int64)
    total = 0
    for label in np.unique(labels[labels != IGNORE]):
        of_label, count = ndimage.label(labels == label, np.ones((3, 3), int))
        numbers[of_label > 0] = of_label[of_label > 0] - 1 + total
        total += count
    return numbers


def features_at(square: Square, statistics: Statistics, radii: Sequence[int]) -> NDArray[np.float32]:
    """Return the `texture_features` of the pixels of a square, float32 (pixel, feature).

    They equal those of the whole image, but are computed from the surroundings of each pixel alone.
    """
    reach = max(radii, default=0)
    side = 2 * reach + 1
    image = read_around(square.tile, square.window, reach)
    around = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(0, 1))
    rows, cols = square.rows - square.window.row, square.cols - square.window.col
    features = np.empty((len(rows), image.shape[-1] * (1 + 2 * len(radii))), np.float32)
    step = max(1, AT_ONCE // side**2)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        surroundings = np.moveaxis(around[rows[block], cols[block]], 1, -1)
        features[block] = texture_features(surroundings, statistics, radii)[:, reach, reach]
    return features


def read_around(tile: Tile, window: Window, reach: int) -> NDArray[np.float32]:
    """Read a window of a stack with `reach` pixels around it, float32 (y, x, band); NaN where invalid or
    outside the stack.
    """
    height, width, bands = tile.image.shape
    whole = Window(
        window.row - reach, window.col - reach, window.height + 2 * reach, window.width + 2 * reach
    )
    inside = whole.intersect(Window(0, 0, height, width))
    image = np.full((*whole.shape, bands), np.nan, np.float32)
    image[inside.relative_to(whole).slices] = tile.image[inside.slices]
    image[~tile.valid(image)] = np.nan
    return image
