"""Batches of augmented crops, cut from stacks while the network trains.

A batch is a pure function of (seed, epoch, index), and each of its crops one of (seed, epoch, index, number
in the batch): neither threads, nor prefetching, nor an interruption, nor the processes that share a batch out
change it. Every geometric change is applied to image and labels together; labels are never interpolated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.buffers import Buffers
from lulc.core.schema import IGNORE, InputError
from lulc.core.threads import in_order
from lulc.datasets.arrays import Layers
from lulc.models.backend import keras
from lulc.training.data.augmentation import Augmentation, Image, Labels, rotate, square_around
from lulc.training.data.dataset import Tile
from lulc.training.data.sampling import Sampler, draw_place

logger = logging.getLogger("lulc")

REDRAWS = 50
"""Places tried for one crop before a crop without a single labelled pixel is accepted."""

STRIDE = 16
"""Multiple of the crop sides that messages suggest: the stride of a network with four stages."""

Mixture = Callable[[Image, Labels, np.random.Generator], tuple[Image, Labels]]
"""(images (n, y, x, band), labels (n, y, x), rng) to the same."""


class TileGenerator(keras.utils.PyDataset):
    """Batches of crops, each batch with one crop side.

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
        `lulc.training.data.dataset.class_targets`.
    rotations
        Number of equally spaced angles; 1 for none, 0 for any angle.
    scale
        Crops show squares of 1 / `scale` to `scale` times their side, the logarithm drawn evenly.
    augmentations
        Applied in order to each crop after rotation.
    mixtures
        Applied in order to each batch after that.
    sampler
        Where squares are cut.
    shares
        How often crops are cut from each stack; all alike where not given.
    batch_from
        ``one``: all crops of a batch come from one stack; ``any``: each comes from any of those that the side
        of the batch fits.
    seed
        Of everything that is drawn.
    share
        Numbers of the crops of each batch that are cut; all where not given. With mixtures all are cut, since
        they look at neighbours, and those of the share are given out.
    workers
        Threads that `keras.Model.fit` uses; the batches don't depend on it.
    option
        What `crop_sizes` are called on the command line, for messages.

    Raises
    ------
    InputError
        If no side fits any stack.
    """

    _dtype: type[np.generic] = np.float32
    """Of what is cut; four bytes each."""

    def __init__(
        self,
        tiles: Sequence[Tile],
        *,
        steps: int,
        batch_size: int,
        crop_sizes: Sequence[int],
        targets: Labels,
        rotations: int = 1,
        scale: float = 1.0,
        augmentations: Sequence[Augmentation] = (),
        mixtures: Sequence[Mixture] = (),
        sampler: Sampler = draw_place,
        shares: Sequence[float] | None = None,
        batch_from: str = "one",
        seed: int = 0,
        share: range | None = None,
        workers: int = 1,
        option: str = "--crop-sizes",
    ) -> None:
        super().__init__(workers=workers, use_multiprocessing=False)
        self.epoch = 0
        self._steps = steps
        self._batch_size = batch_size
        self._targets = targets
        self._angles = [k * 360 / rotations for k in range(rotations)]
        self._scale = math.log(scale)
        self._augmentations = tuple(augmentations)
        self._mixtures = tuple(mixtures)
        self._sampler = sampler
        self._seed = seed
        self._share = range(batch_size) if share is None else share
        # Any angle may come: the widest square is that of 45 degrees.
        angles = self._angles or [45.0]
        self._choices, chosen = _fitting(tiles, sorted(set(crop_sizes)), angles, scale, option)
        self._shares = None
        if shares is not None:
            fitting = np.asarray(shares)[chosen]
            # Where only stacks fit that nothing was to be cut from, they are all alike.
            self._shares = fitting / fitting.sum() if fitting.sum() > 0 else None
        self._batch_from = batch_from
        known = {side for _, sides in self._choices for side in sides}
        # One of each shape: with another one it would forget its memory.
        self._memory = {side: Buffers() for side in known}
        self._mates = {side: self._fitted_by(side) for side in known}

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._steps

    @property
    def pixels_per_batch(self) -> float:
        """Pixels of a whole batch, on average."""
        sides = [np.mean(np.square(sides)) for _, sides in self._choices]
        return self._batch_size * float(np.average(sides, weights=self._shares))

    def __getitem__(self, index: int) -> tuple[Image, Labels]:
        """Batch number `index` of the current epoch."""
        return self.batch(self.epoch, index)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch (called by `keras.Model.fit`)."""
        self.epoch += 1

    def batch(self, epoch: int, index: int) -> tuple[Image, Labels]:
        """The share of batch number `index` of epoch number `epoch`.

        Returns
        -------
        images : float32 (crop, y, x, band), physical units, NaN in every band of invalid pixels
        labels : uint8 (crop, y, x), network classes 0..N-1, 255 = ignore (also where the image is invalid)
        """
        images, labels = self._cut(epoch, index)
        # A dot product is the fastest look at all bands of a pixel: one NaN or Inf makes it not finite.
        invalid = ~np.isfinite(images @ np.ones(images.shape[-1], np.float32))
        images[invalid] = np.nan
        labels[invalid] = IGNORE
        return images, labels

    def _cut(self, epoch: int, index: int) -> tuple[Any, Labels]:
        """A batch as it comes out of the stacks."""
        entropy = [self._seed, epoch, index]
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        tile, sides = self._choices[int(rng.choice(len(self._choices), p=self._shares))]
        side = sides[rng.integers(len(sides))]
        cut = range(self._batch_size) if self._mixtures else self._share
        shape = (len(cut), side, side, self._source(tile).shape[2])
        images = self._memory[side].empty(shape).view(self._dtype)
        labels = np.empty((len(cut), side, side), np.uint8)
        for i, number in enumerate(cut):
            own = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number,)))
            if self._batch_from == "any":
                mates, shares = self._mates[side]
                tile = mates[int(own.choice(len(mates), p=shares))]
            images[i], labels[i] = self._crop(tile, side, own)
        if self._mixtures:
            for mixture in self._mixtures:
                images, labels = mixture(images, labels, rng)
            images, labels = images[list(self._share)], labels[list(self._share)]
        return images, labels

    def _source(self, tile: Tile) -> Layers:
        """What is cut out of a stack."""
        return tile.image

    def release(self) -> None:
        """Give up the memory of batches that nobody holds; later ones get fresh memory."""
        for memory in self._memory.values():
            memory.clear()

    def close(self) -> None:
        """Give up all memory; no batch can be asked for any more."""
        self.release()

    def _fitted_by(self, side: int) -> tuple[list[Tile], NDArray[np.float64]]:
        """The stacks that a side fits, and how often each is drawn among them, float (tile,)."""
        fitting = [i for i, (_, sides) in enumerate(self._choices) if side in sides]
        shares = np.ones(len(fitting)) if self._shares is None else self._shares[fitting]
        # Of all crops each stack shall have its share: who fits few sides is drawn the more often for these.
        shares = shares / [len(self._choices[i][1]) for i in fitting]
        # A side that only stacks without a share fit is never drawn; any numbers do.
        shares = shares if shares.sum() > 0 else np.ones(len(fitting))
        return [self._choices[i][0] for i in fitting], np.asarray(shares / shares.sum())

    def _crop(self, tile: Tile, side: int, rng: np.random.Generator) -> tuple[Any, Labels]:
        angle = self._angles[rng.integers(len(self._angles))] if self._angles else rng.uniform(0, 360)
        scale = math.exp(rng.uniform(-self._scale, self._scale)) if self._scale else 1.0
        outer = square_around(side, angle, scale)
        for _ in range(REDRAWS):
            row, col = self._sampler(tile, outer, rng)
            place = (slice(row, row + outer), slice(col, col + outer))
            labels = self._targets[np.asarray(tile.masks[place])]
            if (labels != IGNORE).any():
                break
        image = np.ascontiguousarray(self._source(tile)[place], self._dtype)
        image, labels = rotate(image, labels, angle, side, scale)
        for augmentation in self._augmentations:
            image, labels = augmentation(image, labels, rng)
        return image, labels


def cut_ahead(
    generator: TileGenerator,
    epoch: int,
    first: int,
    workers: int,
    place: Callable[[Any], Any] = lambda images: images,
) -> Generator[tuple[Any, Labels], None, None]:
    """Batches `first`, `first` + 1, ... of an epoch, in order, cut by threads before they are asked for.

    Parameters
    ----------
    generator, epoch
        Of the batches.
    first
        Number of the first.
    workers
        Threads.
    place
        What these do to the images of each, last.
    """

    def cut(index: int) -> tuple[Any, Labels]:
        images, labels = generator.batch(epoch, index)
        return place(images), labels

    pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
    try:
        yield from in_order(cut, range(first, len(generator)), pool, workers + 1)
    finally:
        pool.shutdown(cancel_futures=True)
        generator.release()


def _fitting(
    tiles: Sequence[Tile], sides: Sequence[int], angles: Sequence[float], scale: float, option: str
) -> tuple[list[tuple[Tile, list[int]]], list[int]]:
    """The sides that fit each stack at every angle, and the numbers of these stacks.

    One warning names all that don't fit.
    """
    outer = {side: _outer(side, angles, scale) for side in sides}
    choices = [(tile, [side for side in sides if outer[side] <= tile.side]) for tile in tiles]
    dropped = [(t, [s for s in sides if s not in kept]) for t, kept in choices if len(kept) < len(sides)]
    chosen = [i for i, (_, kept) in enumerate(choices) if kept]
    choices = [choices[i] for i in chosen]
    if not choices:
        largest = max((tile.side for tile in tiles), default=0)
        turned = any(angle % 90 for angle in angles)
        how = [word for word, used in (("rotation", turned), ("scale", scale > 1)) if used]
        raise InputError(
            f"cannot cut crops of {option}, since the largest stack has a side of {largest} pixels, "
            f"expected at least {outer[sides[0]]} for the smallest crop of {sides[0]} pixels"
            + (f" with its {' and '.join(how)}" if how else ""),
            _way_out(largest, angles, scale, option),
        )
    if dropped:
        named = "; ".join(
            f"'{t.name}' ({t.side} px): {', '.join(str(s) for s in without)}" for t, without in dropped[:5]
        )
        more = f" and {len(dropped) - 5} more stacks" if len(dropped) > 5 else ""
        logger.warning("crop sizes left out since they, rotated, don't fit a stack: %s%s", named, more)
    return choices, chosen


def _outer(side: int, angles: Sequence[float], scale: float) -> int:
    return max(square_around(side, angle, scale) for angle in angles)


def _way_out(largest: int, angles: Sequence[float], scale: float, option: str) -> str:
    """What to type where no side fits a stack with a side of `largest` pixels."""
    fitting = [side for side in range(STRIDE, largest + 1, STRIDE) if _outer(side, angles, scale) <= largest]
    ways = [f"`{option} {fitting[-1]}`"] if fitting else [f"larger stacks than {largest} pixels"]
    ways += ["`--rotations 4`"] if any(angle % 90 for angle in angles) else []
    ways += ["no `--scale`"] if scale > 1 else []
    return f"Give {' or '.join(ways)}."
