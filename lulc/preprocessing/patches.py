"""Sparse labels: labelled pixels, the patches that they form, and the split of patches.

A patch consists of labelled pixels that touch. Patches near each other form a group, which trains or
validates as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.windows import Window
from lulc.preprocessing.split import choose_groups

MOST = 2_000_000
"""Labelled pixels in memory, at most."""

MOST_RECTANGLES = 150_000
"""Rectangles of labels in a manifest, at most, so that it can be read."""

FARTHEST, NEAREST = 2.0, 0.5
"""Largest and smallest ratio of the validation fraction that groups give to the one asked for."""


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """Labelled valid pixels of a mosaic or chip.

    Parameters
    ----------
    classes
        uint8 (pixel,), 1..N.
    places
        int32 (pixel,), number of the candidate window that each lies in.
    """

    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    classes: NDArray[np.uint8]
    places: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: NDArray[Any]) -> LabelledPixels:
        """Return some of the pixels, by a mask or by their positions."""
        return LabelledPixels(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[LabelledPixels]) -> LabelledPixels:
        empty = (np.empty(0, np.int32),) * 2 + (np.empty(0, np.uint8), np.empty(0, np.int32))
        columns = zip(*([empty, *(vars(part).values() for part in parts)]), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def by_place(self) -> Iterator[tuple[int, LabelledPixels]]:
        """Yield the number of each candidate window with its pixels, ascending."""
        order = np.argsort(self.places, kind="stable")
        numbers, starts = np.unique(self.places[order], return_index=True)
        for number, positions in zip(numbers, np.split(order, starts)[1:], strict=True):
            yield int(number), self.take(positions)

    @property
    def extent(self) -> Window:
        """Smallest window around the pixels."""
        top, left = int(self.rows.min()), int(self.cols.min())
        return Window(top, left, int(self.rows.max()) - top + 1, int(self.cols.max()) - left + 1)

    def within(self, window: Window) -> NDArray[np.bool_]:
        """Return True for pixels in a window."""
        rows, cols = self.rows - window.row, self.cols - window.col
        return (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)

    def inside(self, window: Window) -> LabelledPixels:
        """Return the pixels within a window, in its coordinates."""
        kept = self.take(self.within(window))
        rows, cols = kept.rows - window.row, kept.cols - window.col
        return dataclasses.replace(kept, rows=rows.astype(np.int32), cols=cols.astype(np.int32))

    def rectangles(self) -> tuple[Window, ...]:
        """Cover the pixels exactly by rectangles: runs along rows, joined with equal runs below."""
        order = np.lexsort((self.cols, self.rows))
        rows, cols = self.rows[order].tolist(), self.cols[order].tolist()
        runs: list[list[int]] = []
        for row, col in zip(rows, cols, strict=True):
            if runs and runs[-1][0] == row and runs[-1][2] == col:
                runs[-1][2] += 1
            else:
                runs.append([row, col, col + 1])
        latest: dict[tuple[int, int], list[int]] = {}
        joined = []
        for row, first, last in runs:
            above = latest.get((first, last))
            if above and above[1] == row:
                above[1] += 1
            else:
                latest[first, last] = [row, row + 1]
                joined.append(((first, last), latest[first, last]))
        return tuple(Window(top, left, bottom - top, right - left) for (left, right), (top, bottom) in joined)


@dataclass(frozen=True, eq=False)
class Split:
    """Groups of labelled pixels, and which of them validate.

    Parameters
    ----------
    groups
        int64 (pixel,), group of each pixel of all mosaics or chips, in their order.
    validates
        bool (group,).
    distance
        Pixels within which patches are grouped; 1 for those that touch, 0 for each patch of one class alone.
    left_out
        bool (pixel,), True for labels that neither train nor validate; None where all do.
    gap
        Distance in pixels to validating labels up to which labels are left out.
    """

    groups: NDArray[np.int64]
    validates: NDArray[np.bool_]
    distance: int
    left_out: NDArray[np.bool_] | None = None
    gap: int = 0

    @property
    def sides(self) -> int:
        """2 if both training and validation have a group, else 1."""
        return len(np.unique(self.validates))


def group_pixels(rows: NDArray[np.int32], cols: NDArray[np.int32], distance: int) -> NDArray[np.int64]:
    """Number the groups of pixels that lie within a distance of each other, directly or through others.

    Pixels are sorted into squares of that side, and squares that touch are of one group. So pixels within
    `distance` in rows and columns are always grouped, and pixels within twice that sometimes. A distance of 1
    groups pixels that touch at a side or corner. The numbers are int64 (pixel,), from 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    r, c = rows.astype(np.int64) // distance, cols.astype(np.int64) // distance
    width = int(c.max(initial=0)) + 3
    squares, square = np.unique((r + 1) * width + c + 1, return_inverse=True)
    edges = []
    # To the right and to the three squares below; the others are their reverse.
    for step in (1, width - 1, width, width + 1):
        neighbour = np.minimum(np.searchsorted(squares, squares + step), len(squares) - 1)
        first = np.flatnonzero(squares[neighbour] == squares + step)
        edges.append(np.stack([first, neighbour[first]]))
    one, other = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), (len(squares), len(squares)))
    return np.asarray(connected_components(graph, directed=False)[1][square], np.int64)


def split_groups(
    pixels: Sequence[LabelledPixels], chip_groups: Sequence[str], classes: int, fraction: float, gap: int,
    seed: int,
) -> Split:  # fmt: skip
    """Choose groups for validation, with the largest distance between groups that splits the labels well.

    The distance is `gap`, a half of it, a quarter, and so on down to 1: the first at which every class of
    several patches is on both sides, and validation holds half to twice its fraction of the labels. If there
    is none, since most patches touch, it is 0: each patch of one class is a group.

    Parameters
    ----------
    pixels, chip_groups
        Labelled pixels of each mosaic or chip, and the group that it belongs to as a whole; empty for none.
    fraction
        Fraction of the labels that validates; 0 for none.
    gap
        Pixels that a network sees around each.
    """
    distances = [max(1, gap >> k) for k in range(max(1, gap).bit_length())] + [0]
    single = _counts(pixels, groups_of(pixels, chip_groups, 0), classes)
    several = (single > 0).sum(axis=0) > 1
    for distance in distances:
        groups = groups_of(pixels, chip_groups, distance)
        counts = _counts(pixels, groups, classes)
        validates = choose_groups(counts, fraction, seed) if fraction else np.zeros(len(counts), bool)
        held, total = counts[validates].sum(axis=0), counts.sum(axis=0)
        share = held.sum() / max(1, total.sum())
        both = (held > 0) & (held < total)
        if not fraction or ((both | ~several).all() and NEAREST * fraction <= share <= FARTHEST * fraction):
            break
    return Split(groups, validates, distance)


def leave_gap(pixels: Sequence[LabelledPixels], split: Split, classes: int, gap: int) -> Split:
    """Leave out training labels near those that validate.

    The distance is `gap`, a half of it, a quarter, and so on: the first at which no class loses more than
    half of its training labels. Chips near each other must be of one group.
    """
    from scipy.spatial import KDTree

    labels, held = np.concatenate([chip.classes for chip in pixels]), split.validates[split.groups]
    distances, first = np.full(len(labels), np.inf), 0
    for chip in pixels:
        validating = held[first : first + len(chip)]
        points = np.stack([chip.rows, chip.cols], axis=1)
        if validating.any() and not validating.all():
            tree = KDTree(points[validating])
            training = first + np.flatnonzero(~validating)
            distances[training] = tree.query(points[~validating], p=np.inf, distance_upper_bound=gap + 1)[0]
        first += len(chip)
    total = np.bincount(labels[~held], minlength=classes + 1)
    for distance in [gap >> k for k in range(gap.bit_length() + 1)]:
        near = distances <= distance
        if (2 * np.bincount(labels[near], minlength=classes + 1) <= total).all():
            break
    return dataclasses.replace(split, left_out=near, gap=distance)


def groups_of(
    pixels: Sequence[LabelledPixels], chip_groups: Sequence[str], distance: int
) -> NDArray[np.int64]:
    """Number the groups over all mosaics or chips, int64 (pixel,); distance 0 groups one class each."""
    numbers: list[NDArray[np.int64]] = []
    total = 0
    named: dict[str, int] = {}
    for chip, name in zip(pixels, chip_groups, strict=True):
        if name:
            groups = np.full(len(chip), named.setdefault(name, total))
        else:
            groups = (group_pixels(chip.rows, chip.cols, distance) if distance else _by_class(chip)) + total
        total = max(total, int(groups.max(initial=total - 1)) + 1)
        numbers.append(groups)
    return np.concatenate(numbers)


def _by_class(pixels: LabelledPixels) -> NDArray[np.int64]:
    """Number the patches of touching pixels of one class, int64 (pixel,)."""
    groups = np.zeros(len(pixels), np.int64)
    total = 0
    for number in np.unique(pixels.classes):
        same = pixels.classes == number
        groups[same] = group_pixels(pixels.rows[same], pixels.cols[same], 1) + total
        total = int(groups[same].max()) + 1
    return groups


def _counts(pixels: Sequence[LabelledPixels], groups: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count the pixels of class 1..N of each group, int64 (group, class)."""
    number = int(groups.max(initial=-1)) + 1
    labels = np.concatenate([own.classes for own in pixels])
    counts = np.bincount(groups * classes + labels - 1, minlength=number * classes)
    return counts.reshape(number, classes)
