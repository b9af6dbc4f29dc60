"""Batches of augmented crops, cut from stacks while the network trains.

A batch is a pure function of (seed, epoch, index): threads, prefetching and a run that was interrupted
never change it. Every geometric change is applied to image and labels together; labels are never
interpolated.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lulc.backend import keras
from lulc.dataset import Tile
from lulc.schema import IGNORE, InputError

logger = logging.getLogger("lulc")

REDRAWS = 50
"""Places tried for one crop before a crop without a single labelled pixel is accepted."""

MARGIN = 2
"""Pixels added to the square that a rotated crop is cut from, so that rounding never leaves it."""

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
Augmentation = Callable[[Image, Labels, np.random.Generator], tuple[Image, Labels]]
"""(image (y, x, band), labels (y, x), rng) to the same; keeps the shape and gives views or new arrays."""


Sampler = Callable[[Tile, int, np.random.Generator], tuple[int, int]]
"""(tile, side of the square to read, rng) to its first row and column."""


def draw_place(tile: Tile, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """First row and column of a square of `side` pixels, each possible place equally likely."""
    height, width = tile.image.shape[:2]
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))


def flip(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Mirror both upside down and left to right, each with probability 1/2."""
    if rng.integers(2):
        image, labels = image[::-1], labels[::-1]
    if rng.integers(2):
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image, labels


def square_around(side: int, angle: float) -> int:
    """Side of the upright square that holds a square of `side` pixels turned by `angle` degrees.

    Examples
    --------
    >>> square_around(128, 90), square_around(128, 45)
    (128, 184)
    """
    if angle % 90 == 0:
        return side
    turn = math.radians(angle)
    return math.ceil(side * (abs(math.cos(turn)) + abs(math.sin(turn)))) + MARGIN


def rotate(image: Image, labels: Labels, angle: float, side: int) -> tuple[Image, Labels]:
    """Turn both counter-clockwise about their centre and keep the inner square, which has no empty corner.

    Multiples of 90 degrees move pixels and compute nothing. Elsewhere the image is bilinear, and a pixel
    of which any of the four sources is invalid is invalid (NaN passes through the sum); labels take
    their nearest source under the same transform.

    Parameters
    ----------
    image
        float32 (y, x, band), a square of `square_around(side, angle)` pixels, NaN = invalid.
    labels
        uint8 (y, x).
    angle
        Degrees.
    side
        Side of the result in pixels.
    """
    quarters, rest = divmod(angle, 90)
    if rest == 0:
        return np.rot90(image, int(quarters)), np.rot90(labels, int(quarters))
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    source, target = (image.shape[0] - 1) / 2, (side - 1) / 2
    # From a pixel of the result (x, y) to its source: rows grow downwards, so the sign of sin is flipped.
    matrix = np.array(
        [
            [cos, -sin, source - cos * target + sin * target],
            [sin, cos, source - sin * target - cos * target],
        ]
    )
    turned: list[Any] = [
        cv2.warpAffine(array, matrix, (side, side), flags=method | cv2.WARP_INVERSE_MAP)
        for array, method in ((image, cv2.INTER_LINEAR), (labels, cv2.INTER_NEAREST))
    ]
    # OpenCV drops the axis of a single band.
    return turned[0].reshape(side, side, image.shape[2]), turned[1]


class TileGenerator(keras.utils.PyDataset):
    """Batches of crops, each batch from one stack and with one crop side.

    Parameters
    ----------
    tiles
        Stacks to cut from; all with the same bands.
    steps
        Batches per epoch.
    batch_size
        Crops per batch.
    crop_sizes
        Sides that are drawn from, in pixels. A side that, rotated, doesn't fit a stack is left out for
        it, with a warning.
    targets
        uint8 (256,), network class 0..N-1 of each value in the masks, 255 = ignore; see
        `lulc.dataset.class_targets`.
    rotations
        Number of equally spaced angles; 1 for none.
    augmentations
        Applied in order to each crop after rotation.
    sampler
        Where squares are cut.
    seed
        Of everything that is drawn.
    workers
        Threads that `keras.Model.fit` uses; the batches don't depend on it.

    Raises
    ------
    InputError
        If no side fits any stack.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        *,
        steps: int,
        batch_size: int,
        crop_sizes: Sequence[int],
        targets: Labels,
        rotations: int = 1,
        augmentations: Sequence[Augmentation] = (),
        sampler: Sampler = draw_place,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        super().__init__(workers=workers, use_multiprocessing=False)
        self.epoch = 0
        self._steps = steps
        self._batch_size = batch_size
        self._targets = targets
        self._angles = [k * 360 / rotations for k in range(rotations)]
        self._augmentations = tuple(augmentations)
        self._sampler = sampler
        self._seed = seed
        self._choices = _fitting(tiles, sorted(set(crop_sizes)), self._angles)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._steps

    def __getitem__(self, index: int) -> tuple[Image, Labels]:
        """Batch number `index` of the current epoch."""
        return self.batch(self.epoch, index)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch (called by `keras.Model.fit`)."""
        self.epoch += 1

    def batch(self, epoch: int, index: int) -> tuple[Image, Labels]:
        """Batch number `index` of epoch number `epoch`.

        Returns
        -------
        images : float32 (batch, y, x, band), physical units, NaN in every band of invalid pixels
        labels : uint8 (batch, y, x), network classes 0..N-1, 255 = ignore (also where the image is invalid)
        """
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch, index]))
        tile, sides = self._choices[rng.integers(len(self._choices))]
        side = sides[rng.integers(len(sides))]
        images = np.empty((self._batch_size, side, side, tile.image.shape[2]), np.float32)
        labels = np.empty((self._batch_size, side, side), np.uint8)
        for i in range(self._batch_size):
            images[i], labels[i] = self._crop(tile, side, rng)
        # A dot product is the fastest look at all bands of a pixel: one NaN or Inf makes it not finite.
        invalid = ~np.isfinite(images @ np.ones(images.shape[-1], np.float32))
        images[invalid] = np.nan
        labels[invalid] = IGNORE
        return images, labels

    def _crop(self, tile: Tile, side: int, rng: np.random.Generator) -> tuple[Image, Labels]:
        angle = self._angles[rng.integers(len(self._angles))]
        outer = square_around(side, angle)
        for _ in range(REDRAWS):
            row, col = self._sampler(tile, outer, rng)
            place = (slice(row, row + outer), slice(col, col + outer))
            labels = self._targets[np.asarray(tile.masks[place])]
            if (labels != IGNORE).any():
                break
        image = np.ascontiguousarray(tile.image[place], np.float32)
        image, labels = rotate(image, labels, angle, side)
        for augmentation in self._augmentations:
            image, labels = augmentation(image, labels, rng)
        return image, labels


def cut_ahead(
    generator: TileGenerator, epoch: int, first: int, workers: int
) -> Generator[tuple[Image, Labels], None, None]:
    """Batches `first`, `first` + 1, ... of an epoch, in order, cut by threads before they are asked for."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
    indices = iter(range(first, len(generator)))
    try:
        ahead = deque(
            pool.submit(generator.batch, epoch, index) for index in itertools.islice(indices, workers + 1)
        )
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(generator.batch, epoch, i) for i in itertools.islice(indices, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _fitting(
    tiles: Sequence[Tile], sides: Sequence[int], angles: Sequence[float]
) -> list[tuple[Tile, list[int]]]:
    """The sides that fit each stack at every angle; one warning for all that don't."""
    outer = {side: max(square_around(side, angle) for angle in angles) for side in sides}
    choices = [(tile, [side for side in sides if outer[side] <= tile.side]) for tile in tiles]
    dropped = [(t, [s for s in sides if s not in kept]) for t, kept in choices if len(kept) < len(sides)]
    choices = [(tile, kept) for tile, kept in choices if kept]
    if not choices:
        largest = max((tile.side for tile in tiles), default=0)
        raise InputError(
            f"cannot cut crops, since the largest stack has a side of {largest} pixels, expected at least "
            f"{outer[sides[0]]} for the smallest crop of {sides[0]} pixels"
            + (" with its rotation" if len(angles) > 1 else ""),
            "Give smaller crops, e.g. `--crop-sizes 32`, or fewer angles, e.g. `--rotations 4`.",
        )
    if dropped:
        named = "; ".join(
            f"'{t.name}' ({t.side} px): {', '.join(str(s) for s in without)}" for t, without in dropped[:5]
        )
        more = f" and {len(dropped) - 5} more stacks" if len(dropped) > 5 else ""
        logger.warning("crop sizes left out since they, rotated, don't fit a stack: %s%s", named, more)
    return choices
