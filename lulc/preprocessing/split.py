"""Choice of the places that become stacks, and of those that validate: integers in, integers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lulc.core.windows import Window

MIN_SIDE = 64
"""What is left over at the right and lower edge becomes smaller stacks down to this, the smallest crop."""

ENOUGH = 1000
"""Pixels from which a class counts as present."""

EXCHANGES = 50_000_000
"""Stacks that `choose_validation` weighs in exchanges, at most: seconds, and all that 500 stacks ask for."""


def candidate_windows(height: int, width: int, size: int) -> list[Window]:
    """Squares of `size` pixels on a regular grid from the upper left, numbered row by row.

    What is left over to the right and below becomes smaller stacks where it is at least 64 pixels wide, and
    widens the stacks beside it otherwise; a mosaic smaller than `size` is one stack.

    Examples
    --------
    >>> [w.shape for w in candidate_windows(1700, 930, 850)]
    [(850, 850), (850, 80), (850, 850), (850, 80)]
    >>> [w.shape for w in candidate_windows(850, 870, 850)]
    [(850, 870)]
    """
    return [
        Window(row, col, rows, cols)
        for row, rows in _cut_axis(height, size)
        for col, cols in _cut_axis(width, size)
    ]


def _cut_axis(length: int, size: int) -> list[tuple[int, int]]:
    pieces = [(start, min(size, length - start)) for start in range(0, length, size)]
    if len(pieces) > 1 and pieces[-1][1] < min(MIN_SIDE, size):
        start, _ = pieces[-2]
        pieces[-2:] = [(start, length - start)]
    return pieces


def choose_stacks(
    counts: np.ndarray, wanted: int, rng: np.random.Generator, fixed: Sequence[int] = ()
) -> list[int]:
    """Choose places greedily so that rare classes are covered first.

    The value of a choice is the sum over classes of the square root of the share of the class's pixels
    that it holds: concave, so that a class nearly covered adds little more, and a place that holds most of
    a rare class comes before one that holds a little of a common one.

    Parameters
    ----------
    counts : int (place, class)
        Labelled valid pixels.
    wanted
        How many places; 0 for all that hold a labelled pixel.
    fixed
        Places that are chosen in any case.

    Returns
    -------
    list of int
        Chosen places in ascending order; none without a labelled pixel.
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

    Greedily first, then by exchanging single stacks while that helps and `EXCHANGES` lasts. Among equals that
    choice wins whose share of each class is nearest to `fraction`.

    Parameters
    ----------
    counts : int (stack, class)
        Labelled valid pixels of each stack.
    fraction
        Share of the stacks, 0..1; at least one stack is chosen and at least one left unless it is 0.

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
        for place in chosen:
            rest = [c for c in chosen if c != place]
            new, score = _best_addition(counts, rest, fraction)
            exchanges.append((score, place, new))
        _, old, new = max(exchanges)
        if new == old:
            break
        chosen = [new if c == old else c for c in chosen]
    return sorted(chosen)


def _best_addition(counts: np.ndarray, chosen: list[int], fraction: float) -> tuple[int, tuple[int, float]]:
    """(stack that is best added to `chosen`, score with it)."""
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
    """Choose groups of labels for validation so that each class gives about a share of its pixels.

    Groups are taken in random order while they help; then they are added or taken back one by one, always the
    one that helps most, until none helps or `EXCHANGES` are weighed. What counts is the distance of each
    class's share from `fraction`, and at last the number of classes on both sides.

    Parameters
    ----------
    counts : int (group, class)
        Labelled valid pixels of each group.
    fraction
        Share of the pixels of each class, 0..1.

    Returns
    -------
    bool (group,)
        True where a group validates.

    Examples
    --------
    >>> counts = np.array([[60, 0], [60, 0], [0, 50], [0, 50], [0, 50]])
    >>> counts[choose_groups(counts, 0.4, seed=1)].tolist()
    [[60, 0], [0, 50]]
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    counts = counts[order]
    total = counts.sum(axis=0)
    chosen = np.zeros(len(counts), bool)
    held, now = np.zeros_like(total), np.inf
    for number, own in enumerate(counts):
        distance = float(_Score.of((held + own)[np.newaxis], total, fraction).distance[0])
        if distance < min(now, float(fraction * (total > 0).sum())):
            chosen[number], held, now = True, held + own, distance
    # By distance first: a group of many classes would else be taken before smaller ones that fit better.
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
    found = np.zeros(len(counts), bool)
    found[order] = chosen
    return found


class _Score(NamedTuple):
    """Classes on both sides, and distance of their shares from a fraction, of choices: float (choice,)."""

    both: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(cls, held: np.ndarray, total: np.ndarray, fraction: float) -> _Score:
        """Score pixels held out, int (choice, class), of a total."""
        distance = np.abs(held / np.maximum(total, 1) - fraction * (total > 0)).sum(axis=1)
        return cls(((held > 0) & (held < total)).sum(axis=1), distance)

    def best(self, *, by_classes: bool) -> int:
        """Number of the best choice."""
        return int(np.lexsort((self.distance, -self.both * by_classes))[0])

    def at(self, number: int, *, by_classes: bool) -> tuple[float, float]:
        """Return what a choice is worth."""
        return float(self.both[number] * by_classes), -float(self.distance[number])
