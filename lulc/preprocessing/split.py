"""Choice of the windows that become stacks, and of those that validate, from pixel counts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lulc.core.windows import Window

MIN_SIDE = 64
"""Smallest side of a stack in pixels, which is that of the smallest crop."""

ENOUGH = 1000
"""Pixels from which a class counts as present."""

EXCHANGES = 50_000_000
"""Most exchanges that are compared in a choice; it takes seconds, and 500 stacks need no more."""


def candidate_windows(height: int, width: int, size: int) -> list[Window]:
    """Return squares of `size` pixels on a regular grid from the upper left, row by row.

    The rest at the right and lower edge becomes smaller windows if it is at least `MIN_SIDE` wide; otherwise
    it widens the windows beside it. A mosaic smaller than `size` is one window.
    """
    rows, cols = _cut_axis(height, size), _cut_axis(width, size)
    return [Window(row, col, tall, wide) for row, tall in rows for col, wide in cols]


def _cut_axis(length: int, size: int) -> list[tuple[int, int]]:
    pieces = [(start, min(size, length - start)) for start in range(0, length, size)]
    if len(pieces) > 1 and pieces[-1][1] < min(MIN_SIDE, size):
        start, _ = pieces[-2]
        pieces[-2:] = [(start, length - start)]
    return pieces


def choose_stacks(
    counts: np.ndarray, wanted: int, rng: np.random.Generator, fixed: Sequence[int] = ()
) -> list[int]:
    """Choose windows greedily so that rare classes are covered first.

    A choice is worth the sum over classes of the square root of the fraction of the class's pixels that it
    holds. The square root makes a window with most of a rare class worth more than one with a little of a
    common class.

    Parameters
    ----------
    counts : int (window, class)
        Labelled valid pixels.
    wanted
        Number of windows; 0 for all with a labelled pixel.
    fixed
        Windows that are chosen in any case.

    Returns
    -------
    list of int
        Chosen windows in ascending order, each with a labelled pixel.
    """
    usable = np.flatnonzero(counts.sum(axis=1) > 0)
    if wanted == 0 or wanted >= len(usable):
        return [int(i) for i in usable]
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    chosen = [int(i) for i in fixed]
    held = shares[chosen].sum(axis=0)
    order = rng.permutation([int(i) for i in usable if i not in set(chosen)])
    while len(chosen) < wanted:
        best = int(np.argmax(np.sqrt(held + shares[order]).sum(axis=1)))
        chosen.append(int(order[best]))
        held = held + shares[order[best]]
        order = np.delete(order, best)
    return sorted(chosen)


def choose_validation(counts: np.ndarray, fraction: float) -> list[int]:
    """Choose stacks for validation so that as many classes as possible occur on both sides.

    The choice is greedy first, then single stacks are exchanged while that helps, within `EXCHANGES`. Of
    equally good choices the one whose fraction of each class is nearest to `fraction` wins.

    Parameters
    ----------
    counts : int (stack, class)
        Labelled valid pixels of each stack.
    fraction
        Fraction of the stacks; unless it is 0, at least one stack is chosen and at least one left.

    Returns
    -------
    list of int
        Positions in `counts`, ascending.
    """
    number = len(counts)
    wanted = min(max(1, round(fraction * number)), number - 1) if fraction > 0 else 0
    chosen: list[int] = []
    for _ in range(wanted):
        chosen.append(_best_addition(counts, chosen, fraction)[0])
    for _ in range(min(10 * wanted, EXCHANGES // max(1, wanted * number))):
        exchanges = []
        for old in chosen:
            rest = [c for c in chosen if c != old]
            new, score = _best_addition(counts, rest, fraction)
            exchanges.append((score, old, new))
        _, old, new = max(exchanges)
        if new == old:
            break
        chosen = [new if c == old else c for c in chosen]
    return sorted(chosen)


def _best_addition(counts: np.ndarray, chosen: list[int], fraction: float) -> tuple[int, tuple[int, float]]:
    """Return the best stack to add to `chosen`, and the score with it."""
    total = counts.sum(axis=0)
    held = counts[chosen].sum(axis=0) + counts
    enough = np.minimum(ENOUGH, np.maximum(1, total // (2 * len(counts))))
    both = ((held >= enough) & (total - held >= enough)).sum(axis=1)
    present = np.maximum(total, 1)
    distance = np.abs(held / present - fraction * (total > 0)).sum(axis=1)
    distance[chosen] = np.inf
    both[chosen] = -1
    best = int(np.lexsort((np.arange(len(counts)), distance, -both))[0])
    return best, (int(both[best]), -float(distance[best]))


def choose_groups(counts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose groups of labels for validation so that each class gives about a fraction of its pixels.

    Groups are taken in random order while they help; then the group that helps most is added or taken back,
    until none helps, within `EXCHANGES`. The score is the distance of each class from `fraction`, and in a
    second round first the number of classes on both sides.

    `counts`, int (group, class), are labelled valid pixels. The result, bool (group,), is True where a group
    validates.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    counts = counts[order]
    total = counts.sum(axis=0)
    chosen = np.zeros(len(counts), bool)
    held, now = np.zeros_like(total), np.inf
    for number, group in enumerate(counts):
        distance = float(_Score.of((held + group)[np.newaxis], total, fraction).distance[0])
        if distance < min(now, float(fraction * (total > 0).sum())):
            chosen[number], held, now = True, held + group, distance
    # By distance first, lest a group of many classes is taken before smaller ones that fit better.
    for by_classes in (False, True):
        best = _Score.of(counts[chosen].sum(axis=0)[np.newaxis], total, fraction)
        for _ in range(min(2 * len(counts), EXCHANGES // counts.size)):
            held = counts[chosen].sum(axis=0) + np.where(chosen[:, np.newaxis], -counts, counts)
            scores = _Score.of(held, total, fraction)
            turned = scores.best(by_classes=by_classes)
            if scores.at(turned, by_classes=by_classes) <= best.at(0, by_classes=by_classes):
                break
            best = _Score(scores.both[turned : turned + 1], scores.distance[turned : turned + 1])
            chosen[turned] ^= True
    validates = np.zeros(len(counts), bool)
    validates[order] = chosen
    return validates


class _Score(NamedTuple):
    """Scores of choices, float (choice,): classes on both sides, and distance from the wanted fraction."""

    both: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(cls, held: np.ndarray, total: np.ndarray, fraction: float) -> _Score:
        """Score held-out pixels, int (choice, class), of a total."""
        distance = np.abs(held / np.maximum(total, 1) - fraction * (total > 0)).sum(axis=1)
        return cls(((held > 0) & (held < total)).sum(axis=1), distance)

    def best(self, *, by_classes: bool) -> int:
        """Return the number of the best choice."""
        return int(np.lexsort((self.distance, -self.both * by_classes))[0])

    def at(self, number: int, *, by_classes: bool) -> tuple[float, float]:
        """Return the score of a choice; larger is better."""
        return float(self.both[number] * by_classes), -float(self.distance[number])
