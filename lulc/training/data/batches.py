"""Batches of augmented crops, cut from stacks while the network trains.

A batch is a pure function of (seed, epoch, index), and each of its crops of (seed, epoch, index, number in
the batch): threads, prefetching, interruptions and the number of processes don't change it. Geometric changes
apply to image and labels together; labels are never interpolated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.buffers import Buffers
from lulc.core.directions import Directions
from lulc.core.schema import IGNORE, InputError
from lulc.core.threads import in_order
from lulc.datasets.arrays import Layers
from lulc.training.data.augmentation import Augmentation, Image, Labels, rotate, square_around
from lulc.training.data.dataset import Tile
from lulc.training.data.sampling import Sampler, draw_anywhere

logger = logging.getLogger("lulc")

REDRAWS = 50
"""Most positions tried for a crop with a labelled pixel."""

STRIDE = 16
"""Stride of a network with four stages: messages suggest crop sides that are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Settings for cutting batches from stacks.

    Parameters
    ----------
    steps, batch_size
        Batches of an epoch, and crops of a batch.
    crop_sizes
        Sides to draw from, in pixels. Sides that, rotated, don't fit a stack are left out for it, with a
        warning.
    targets
        uint8 (256,), network class 0..N-1 of each value in the masks, 255 = ignore; see
        `lulc.training.data.dataset.class_targets`.
    rotations
        Number of equally spaced rotation angles; 1 for none.
    directions, nearest
        Channels with directions, and channels that are never interpolated; see `rotate`.
    augmentations
        Applied in this order to each crop after the rotation.
    sampler
        Draws the position of each crop.
    stack_weights
        Relative frequency of each stack; equal by default.
    batch_from
        ``one``: all crops of a batch come from one stack; ``any``: each comes from any stack that its side
        fits.
    seed
        Seed of all random numbers.
    own_crops
        Numbers of the crops of each batch that this process cuts; all by default.
    option
        Name of `crop_sizes` on the command line, for messages.
    """

    steps: int
    batch_size: int
    crop_sizes: Sequence[int]
    targets: Labels
    rotations: int = 1
    directions: Directions = ()
    nearest: Sequence[int] = ()
    augmentations: Sequence[Augmentation] = ()
    sampler: Sampler = draw_anywhere
    stack_weights: Sequence[float] | None = None
    batch_from: str = "one"
    seed: int = 0
    own_crops: range | None = None
    option: str = "--crop-sizes"

    @property
    def cut(self) -> range:
        """Numbers of the crops of each batch that this process cuts."""
        return range(self.batch_size) if self.own_crops is None else self.own_crops


class TileGenerator:
    """Batches of crops of stacks with the same bands; all crops of a batch have one side.

    Raises InputError if no side fits any stack.
    """

    _dtype: type[np.generic] = np.float32
    """Type of the values that are cut, four bytes each."""

    def __init__(self, tiles: Sequence[Tile], config: BatchConfig) -> None:
        self._config = config
        self._choices, chosen = _fitting(tiles, config)
        self._weights = None
        if config.stack_weights is not None:
            fitting = np.asarray(config.stack_weights)[chosen]
            # If only stacks of weight 0 fit, they are drawn equally often.
            self._weights = fitting / fitting.sum() if fitting.sum() > 0 else None
        all_sides = {side for _, sides in self._choices for side in sides}
        # Buffers reuse memory of one shape only.
        self._memory = {side: Buffers() for side in all_sides}
        self._stacks = {side: self._fitted_by(side) for side in all_sides}

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._config.steps

    @property
    def side_fractions(self) -> dict[int, float]:
        """Fraction of the batches that have each crop side."""
        weights = np.ones(len(self._choices)) if self._weights is None else self._weights
        fractions: dict[int, float] = {}
        for (_, sides), weight in zip(self._choices, weights / weights.sum(), strict=True):
            for side in sides:
                fractions[side] = fractions.get(side, 0.0) + float(weight) / len(sides)
        return {side: fraction for side, fraction in fractions.items() if fraction}

    @property
    def pixels_per_batch(self) -> float:
        """Mean pixels of a whole batch."""
        return self._config.batch_size * sum(f * side**2 for side, f in self.side_fractions.items())

    def batch(self, epoch: int, index: int) -> tuple[Image, Labels]:
        """Cut batch number `index` of epoch number `epoch`, or the crops of it that this process cuts.

        Returns
        -------
        images : float32 (crop, y, x, band), physical units, NaN in every band of invalid pixels
        labels : uint8 (crop, y, x), network classes 0..N-1, 255 = ignore (also where the image is invalid)
        """
        images, labels = self._cut(epoch, index)
        # A dot product is the fastest check of all bands of a pixel: any NaN or Inf makes it not finite.
        invalid = ~np.isfinite(images @ np.ones(images.shape[-1], np.float32))
        if self._choices[0][0].optional:
            invalid = ~self._choices[0][0].valid(images)
        images[invalid] = np.nan
        labels[invalid] = IGNORE
        return images, labels

    def _cut(self, epoch: int, index: int) -> tuple[Any, Labels]:
        """Cut a batch without marking invalid pixels."""
        config = self._config
        entropy = [config.seed, epoch, index]
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        tile, sides = self._choices[int(rng.choice(len(self._choices), p=self._weights))]
        side = sides[rng.integers(len(sides))]
        shape = (len(config.cut), side, side, self._source(tile).shape[2])
        images = self._memory[side].empty(shape).view(self._dtype)
        labels = np.empty(shape[:3], np.uint8)
        for i, number in enumerate(config.cut):
            crop_rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number,)))
            if config.batch_from == "any":
                stacks, weights = self._stacks[side]
                tile = stacks[int(crop_rng.choice(len(stacks), p=weights))]
            images[i], labels[i] = self._crop(tile, side, crop_rng)
        return images, labels

    def _source(self, tile: Tile) -> Layers:
        """Return the array of a stack from which crops are cut."""
        return tile.image

    def release(self) -> None:
        """Free the memory of batches that are no longer in use; later batches get new memory."""
        for memory in self._memory.values():
            memory.clear()

    def close(self) -> None:
        """Free all memory; afterwards no batch can be cut."""
        self.release()

    def _fitted_by(self, side: int) -> tuple[list[Tile], NDArray[np.float64]]:
        """Return the stacks that a side fits, and their probabilities, float (tile,)."""
        fitting = [i for i, (_, sides) in enumerate(self._choices) if side in sides]
        weights = np.ones(len(fitting)) if self._weights is None else self._weights[fitting]
        # A stack that fewer sides fit is drawn more often for these, so that its total frequency is kept.
        weights = weights / [len(self._choices[i][1]) for i in fitting]
        # A side that fits only stacks of weight 0 is never drawn, whatever the probabilities.
        weights = weights if weights.sum() > 0 else np.ones(len(fitting))
        return [self._choices[i][0] for i in fitting], np.asarray(weights / weights.sum())

    def _crop(self, tile: Tile, side: int, rng: np.random.Generator) -> tuple[Any, Labels]:
        config = self._config
        angle = _angles(config.rotations)[rng.integers(config.rotations)]
        outer = square_around(side, angle)
        for _ in range(REDRAWS):
            row, col = config.sampler(tile, outer, rng)
            square = (slice(row, row + outer), slice(col, col + outer))
            labels = config.targets[np.asarray(tile.masks[square])]
            if (labels != IGNORE).any():
                break
        image = np.ascontiguousarray(self._source(tile)[square], self._dtype)
        image, labels = rotate(
            image, labels, angle, side, directions=config.directions, nearest=config.nearest
        )
        for augmentation in config.augmentations:
            image, labels = augmentation(image, labels, rng)
        return image, labels


def cut_ahead(
    generator: TileGenerator,
    epoch: int,
    first: int,
    workers: int,
    put: Callable[[Any], Any] = lambda images: images,
) -> Generator[tuple[Any, Labels], None, None]:
    """Yield batches `first`, `first` + 1, ... of an epoch in order, cut ahead by `workers` threads.

    The threads pass the images of each batch to `put`, which copies them to the devices.
    """

    def cut(index: int) -> tuple[Any, Labels]:
        images, labels = generator.batch(epoch, index)
        return put(images), labels

    pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
    try:
        yield from in_order(cut, range(first, len(generator)), pool, workers + 1)
    finally:
        pool.shutdown(cancel_futures=True)
        generator.release()


def pad_small(tiles: Sequence[Tile], crop_sizes: Sequence[int], rotations: int, option: str) -> list[Tile]:
    """Pad the stacks that are too small for the smallest crop, unless all are too small."""
    least = _outer(min(crop_sizes), rotations)
    small = [tile for tile in tiles if tile.side < least]
    if not small or len(small) == len(tiles):
        return list(tiles)
    logger.info(
        "%d of %d stacks are padded with invalid pixels, since the smallest crop of %s needs %d pixels",
        len(small), len(tiles), option, least,
    )  # fmt: skip
    return [tile.padded(least) for tile in tiles]


def pixels_per_crop(tiles: Sequence[Tile], crop_sizes: Sequence[int], rotations: int = 1) -> float:
    """Return the mean pixels of a crop; the smallest crop fits each stack after `pad_small`."""
    fitting = [[side for side in crop_sizes if _outer(side, rotations) <= tile.side] for tile in tiles]
    return float(np.mean([np.mean(np.square(sides or [min(crop_sizes)])) for sides in fitting]))


def _fitting(tiles: Sequence[Tile], config: BatchConfig) -> tuple[list[tuple[Tile, list[int]]], list[int]]:
    """Return the sides that fit each stack at every angle, and the numbers of the stacks that one fits.

    One warning names all sides left out.
    """
    sides, rotations, option = sorted(set(config.crop_sizes)), config.rotations, config.option
    outer = {side: _outer(side, rotations) for side in sides}
    choices = [(tile, [side for side in sides if outer[side] <= tile.side]) for tile in tiles]
    dropped = [(t, [s for s in sides if s not in fit]) for t, fit in choices if len(fit) < len(sides)]
    chosen = [i for i, (_, fit) in enumerate(choices) if fit]
    choices = [choices[i] for i in chosen]
    if not choices:
        largest = max((tile.side for tile in tiles), default=0)
        fitting = [side for side in range(STRIDE, largest + 1, STRIDE) if _outer(side, rotations) <= largest]
        hints = [f"`{option} {fitting[-1]}`"] if fitting else [f"larger stacks than {largest} pixels"]
        oblique = rotations not in (1, 2, 4)
        raise InputError(
            f"cannot cut crops of {option}, since the largest stack has a side of {largest} pixels, "
            f"expected at least {outer[sides[0]]} for the smallest crop of {sides[0]} pixels"
            + (" with its rotation" if oblique else ""),
            f"Give {' or '.join([*hints, *(['`--rotations 4`'] if oblique else [])])}.",
        )
    if dropped:
        named = "; ".join(
            f"'{t.name}' ({t.side} px): {', '.join(str(s) for s in without)}" for t, without in dropped[:5]
        )
        more = f" and {len(dropped) - 5} more stacks" if len(dropped) > 5 else ""
        logger.warning("crop sizes left out since they, rotated, don't fit a stack: %s%s", named, more)
    return choices, chosen


def _angles(rotations: int) -> list[float]:
    """Return the rotation angles in degrees."""
    return [k * 360 / rotations for k in range(rotations)]


def _outer(side: int, rotations: int) -> int:
    """Return the side of the square that holds a crop at every angle."""
    return max(square_around(side, angle) for angle in _angles(rotations))
