"""Sampling of crops: frequencies of stacks and classes, and positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE
from lulc.training.data.dataset import ROWS_AT_ONCE, Tile

KEPT = 4096
"""Most positions stored for each class of a stack, to centre crops on."""

Sampler = Callable[[Tile, int, np.random.Generator], tuple[int, int]]
"""(tile, side of the square to read, rng) to its first row and column."""


def draw_anywhere(tile: Tile, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the first row and column of a square of `side` pixels, each position equally likely."""
    height, width = tile.image.shape[:2]
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))


def class_probabilities(counts: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """Return the probability of each class, p(c) ~ exp((1 - f_c) / T), f_c its fraction of labelled pixels.

    Parameters
    ----------
    counts
        int64 (class,), labelled pixels; a class without any is never drawn.
    temperature
        T: near 0 only the rarest class is drawn, for large T all classes equally often (as in nnU-Net).

    References
    ----------
    Hoyer et al. 2022, CVPR (DAFormer), eq. 8 and 9; Isensee et al. 2021, Nature Methods 18 (nnU-Net).
    """
    exponent = (1 - counts / max(counts.sum(), 1)) / temperature
    raw = np.exp(exponent - exponent.max()) * (counts > 0)
    return np.asarray(raw / max(raw.sum(), np.finfo(float).tiny))


class LabelledPixels:
    """Counts of the labelled pixels of each class in each stack, and a sample of their positions.

    Parameters
    ----------
    targets
        uint8 (256,), network class of each value in the masks, see `class_targets`.
    kept
        Most positions stored for each class of a stack; 0 to count only.

    Attributes
    ----------
    counts : int64 (tile, class)
        Labelled pixels.
    """

    def __init__(
        self, tiles: Sequence[Tile], targets: NDArray[np.uint8], seed: int, kept: int = KEPT
    ) -> None:
        self._most = kept
        classes = int(targets[targets != IGNORE].max(initial=0)) + 1
        self.counts = np.zeros((len(tiles), classes), np.int64)
        # Tiles hold arrays and can't be hashed by value; the list keeps their ids unique.
        self._tiles = list(tiles)
        self._number = {id(tile): i for i, tile in enumerate(tiles)}
        self._positions: list[list[NDArray[np.int64]]] = []
        for i, tile in enumerate(tiles):
            rng = np.random.default_rng(np.random.SeedSequence([seed, i]))
            self._positions.append(self._scan(tile, targets, self.counts[i], rng))

    def of(self, tile: Tile) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Return pixels of each class in a stack, and a sample of them as row * width + column."""
        number = self._number[id(tile)]
        return self.counts[number], self._positions[number]

    def _scan(
        self, tile: Tile, targets: NDArray[np.uint8], counts: NDArray[np.int64], rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        height, width = tile.masks.shape
        # The pixels with the smallest random keys are a uniform sample, whatever the strips.
        sample = [(np.empty(0), np.empty(0, np.int64)) for _ in counts]
        for row in range(0, height, ROWS_AT_ONCE):
            strip = targets[np.asarray(tile.masks[row : row + ROWS_AT_ONCE, 0:width])].ravel()
            counts += np.bincount(strip, minlength=256)[: len(counts)]
            if not self._most:
                continue
            keys = rng.random(strip.size)
            for c in range(len(counts)):
                pixels = np.flatnonzero(strip == c)
                all_keys = np.concatenate([sample[c][0], keys[pixels]])
                positions = np.concatenate([sample[c][1], pixels + row * width])
                if all_keys.size > self._most:
                    smallest = np.sort(np.argpartition(all_keys, self._most)[: self._most])
                    all_keys, positions = all_keys[smallest], positions[smallest]
                sample[c] = all_keys, positions
        return [positions for _, positions in sample]


class ClassSampler:
    """Sampler that centres a fraction of the crops on pixels of drawn classes, and draws the others anywhere.

    A square that would leave the stack is moved inside, so that the pixel is no longer its centre.

    Parameters
    ----------
    labelled
        Labelled pixels of the stacks.
    ratio
        Fraction of the crops that are centred, 0..1.
    temperature
        See `class_probabilities`; f_c is the fraction in all stacks, p(c) is over the classes of one stack.
    """

    def __init__(self, labelled: LabelledPixels, ratio: float, temperature: float) -> None:
        self._labelled = labelled
        self._ratio = ratio
        self._probabilities = class_probabilities(labelled.counts.sum(axis=0), temperature)

    def __call__(self, tile: Tile, side: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the first row and column of a square of `side` pixels."""
        counts, positions = self._labelled.of(tile)
        p = self._probabilities * (counts > 0)
        if rng.random() >= self._ratio or not p.any():
            return draw_anywhere(tile, side, rng)
        chosen = positions[int(rng.choice(len(p), p=p / p.sum()))]
        height, width = tile.masks.shape
        row, col = divmod(int(chosen[rng.integers(len(chosen))]), width)
        # An even side has two central pixels; both are drawn, so that no direction is preferred.
        half = side // 2 - int(rng.integers(2)) * (1 - side % 2)
        return min(max(row - half, 0), height - side), min(max(col - half, 0), width - side)


def stack_weights(labelled: LabelledPixels, balance: str, temperature: float) -> NDArray[np.float64]:
    """Return the relative frequency of each stack; float (tile,), sums to 1.

    Parameters
    ----------
    balance
        ``stacks``: equal; ``pixels``: by labelled pixels; ``classes``: by the fraction of each class that a
        stack holds, weighted by `class_probabilities` at `temperature`.
    """
    counts = labelled.counts.astype(float)
    if balance == "stacks":
        return np.full(len(counts), 1 / len(counts))
    if balance == "pixels":
        return np.asarray(counts.sum(axis=1) / max(counts.sum(), 1))
    p = class_probabilities(labelled.counts.sum(axis=0), temperature)
    return np.asarray((counts / np.maximum(counts.sum(axis=0), 1)) @ p)
