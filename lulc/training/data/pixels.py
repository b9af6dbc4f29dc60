"""Labelled pixels of stacks for models that decide each by itself: which are drawn, and their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lulc.core.schema import IGNORE
from lulc.core.statistics import Statistics
from lulc.core.windows import Window, squares_of
from lulc.models.texture import texture_features
from lulc.training.data.dataset import Tile

SIDE = 256
"""Side of the squares that a stack is read in, pixels. A patch of labels that crosses two of them is two."""

AT_ONCE = 2**18
"""Pixels of all surroundings whose features are computed together."""

ROUND = np.ones((3, 3), int)
"""Pixels that touch at a corner are of one patch."""


@dataclass(frozen=True)
class Square:
    """Labelled pixels of a square of a stack.

    Parameters
    ----------
    tile
        The stack.
    rows, cols
        Where they lie in it.
    labels
        uint8 (pixel,), what the model learns, 0..N-1.
    patches
        int64 (pixel,): pixels that touch and have one label are of one patch, numbered from 0 in each square.
    """

    tile: Tile
    window: Window
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    labels: NDArray[np.uint8]
    patches: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Square:
        """Some of the pixels."""
        return replace(
            self,
            rows=self.rows[chosen],
            cols=self.cols[chosen],
            labels=self.labels[chosen],
            patches=self.patches[chosen],
        )


def labelled_squares(tiles: Sequence[Tile], targets: NDArray[np.uint8]) -> Iterator[Square]:
    """Squares of `SIDE` pixels of stacks that hold valid labelled pixels, in order.

    Parameters
    ----------
    tiles
        The stacks.
    targets
        uint8 (256,), what the model learns for each value in the masks; 255 for nothing.
    """
    for tile in tiles:
        for window in squares_of(Window(0, 0, *tile.masks.shape), SIDE):
            square = labelled_square(tile, window, targets)
            if square:
                yield square


def labelled_square(tile: Tile, window: Window, targets: NDArray[np.uint8]) -> Square | None:
    """The valid labelled pixels of a window of a stack; None where there are none."""
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
    """Number the patches of equal labels, from 0; -1 where nothing is labelled.

    Examples
    --------
    >>> number_patches(np.uint8([[0, 255, 1], [255, 0, 1], [0, 255, 255]])).tolist()
    [[0, -1, 1], [-1, 0, 1], [0, -1, -1]]
    """
    numbers = np.full(labels.shape, -1, np.int64)
    total = 0
    for label in np.unique(labels[labels != IGNORE]):
        found, count = ndimage.label(labels == label, ROUND)
        numbers[found > 0] = found[found > 0] - 1 + total
        total += count
    return numbers


def features_at(square: Square, statistics: Statistics, radii: Sequence[int]) -> NDArray[np.float32]:
    """Features of the pixels of a square, float32 (pixel, feature), as `texture_features` gives them.

    Only the surroundings of the pixels are looked at, in the same order as in a whole image.
    """
    reach = max(radii, default=0)
    side = 2 * reach + 1
    seen = read_around(square.tile, square.window, reach)
    around = np.lib.stride_tricks.sliding_window_view(seen, (side, side), axis=(0, 1))
    rows, cols = square.rows - square.window.row, square.cols - square.window.col
    found = np.empty((len(rows), seen.shape[-1] * (1 + 2 * len(radii))), np.float32)
    step = max(1, AT_ONCE // side**2)
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        images = np.moveaxis(around[rows[some], cols[some]], 1, -1)
        found[some] = texture_features(images, statistics, radii)[:, reach, reach]
    return found


def read_around(tile: Tile, window: Window, reach: int) -> NDArray[np.float32]:
    """Read a window of a stack with its surroundings, float32 (y, x, band); NaN where invalid or beyond."""
    height, width, bands = tile.image.shape
    seen = np.full((window.height + 2 * reach, window.width + 2 * reach, bands), np.nan, np.float32)
    top, left = window.row - reach, window.col - reach
    inside = Window(top, left, *seen.shape[:2]).intersect(Window(0, 0, height, width))
    place = inside.relative_to(Window(top, left, *seen.shape[:2])).slices
    seen[place] = tile.image[inside.slices]
    seen[~tile.valid(seen)] = np.nan
    return seen
