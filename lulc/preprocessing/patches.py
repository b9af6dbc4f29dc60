"""Sparse labels: which pixels have one, the patches that they form, and which of these validate.

A patch is what touches: a polygon, a point, or several that meet. Patches that lie near each other form a
group, which trains or validates as a whole.
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
"""Labelled pixels that are kept in memory, at most."""

MOST_RECTANGLES = 150_000
"""Rectangles of labels that are written into manifest and model cards, which must stay readable."""

FARTHEST, NEAREST = 2.0, 0.5
"""Validation may hold so many times its share of the labels, at most and at least, when groups are chosen."""


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """Labelled valid pixels of a mosaic or chip.

    Parameters
    ----------
    classes
        uint8 (pixel,), 1..N.
    places
        int32 (pixel,), numbers of the places of the regular grid that they lie in.
    """

    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    classes: NDArray[np.uint8]
    places: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: NDArray[Any]) -> LabelledPixels:
        """Some of the pixels, by a mask or by their positions."""
        return LabelledPixels(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[LabelledPixels]) -> LabelledPixels:
        empty = (np.empty(0, np.int32),) * 2 + (np.empty(0, np.uint8), np.empty(0, np.int32))
        columns = zip(*([empty, *(vars(part).values() for part in parts)]), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def by_place(self) -> Iterator[tuple[int, LabelledPixels]]:
        """Yield the number of each place with its pixels, ascending."""
        order = np.argsort(self.places, kind="stable")
        numbers, starts = np.unique(self.places[order], return_index=True)
        for number, some in zip(numbers, np.split(order, starts)[1:], strict=True):
            yield int(number), self.take(some)

    @property
    def extent(self) -> Window:
        """The smallest window around the pixels."""
        top, left = int(self.rows.min()), int(self.cols.min())
        return Window(top, left, int(self.rows.max()) - top + 1, int(self.cols.max()) - left + 1)

    def within(self, window: Window) -> NDArray[np.bool_]:
        """True where a pixel lies in a window."""
        rows, cols = self.rows - window.row, self.cols - window.col
        return (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)

    def inside(self, window: Window) -> LabelledPixels:
        """The pixels within a window, in its coordinates."""
        found = self.take(self.within(window))
        return dataclasses.replace(
            found,
            rows=(found.rows - window.row).astype(np.int32),
            cols=(found.cols - window.col).astype(np.int32),
        )

    def rectangles(self) -> tuple[Window, ...]:
        """Rectangles that hold the pixels and no others: runs along rows, joined with equal ones below."""
        order = np.lexsort((self.cols, self.rows))
        rows, cols = self.rows[order].tolist(), self.cols[order].tolist()
        runs: list[list[int]] = []
        for row, col in zip(rows, cols, strict=True):
            if runs and runs[-1][0] == row and runs[-1][2] == col:
                runs[-1][2] += 1
            else:
                runs.append([row, col, col + 1])
        found: dict[tuple[int, int], list[int]] = {}
        whole = []
        for row, first, last in runs:
            above = found.get((first, last))
            if above and above[1] == row:
                above[1] += 1
            else:
                found[first, last] = [row, row + 1]
                whole.append(((first, last), found[first, last]))
        return tuple(Window(top, first, bottom - top, last - first) for (first, last), (top, bottom) in whole)


@dataclass(frozen=True, eq=False)
class Split:
    """Groups of labelled pixels, and which of them validate.

    Parameters
    ----------
    groups
        int64 (pixel,), the group of each pixel, over all that were given, in order.
    validates
        bool (group,).
    distance
        Pixels within which patches were grouped; 1 for those that touch, 0 for those of one class that touch.
    left_out
        bool (pixel,), True for labels that neither train nor validate; None where all do.
    gap
        Pixels within which these lie from labels that validate.
    """

    groups: NDArray[np.int64]
    validates: NDArray[np.bool_]
    distance: int
    left_out: NDArray[np.bool_] | None = None
    gap: int = 0

    @property
    def sides(self) -> int:
        """Number of sides that get a group: 1, or 2 for training and validation."""
        return len(np.unique(self.validates))


def group_pixels(rows: NDArray[np.int32], cols: NDArray[np.int32], distance: int) -> NDArray[np.int64]:
    """Number the groups of pixels that lie within a distance of each other, directly or through others.

    Pixels are sorted into squares of that side, and squares that touch are of one group. So two pixels are
    grouped wherever they lie within `distance` in rows and columns, and perhaps where they lie within twice
    that.

    Parameters
    ----------
    rows, cols
        int32 (pixel,).
    distance
        Pixels, at least 1; 1 groups what touches at a side or corner.

    Returns
    -------
    int64 (pixel,), from 0

    Examples
    --------
    >>> rows = np.array([0, 1, 9], np.int32)
    >>> group_pixels(rows, rows, 1).tolist(), group_pixels(rows, rows, 8).tolist()
    ([0, 0, 1], [0, 0, 0])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    r, c = rows.astype(np.int64) // distance, cols.astype(np.int64) // distance
    width = int(c.max(initial=0)) + 3
    squares, square = np.unique((r + 1) * width + c + 1, return_inverse=True)
    edges = []
    # To the right and to the three squares below; the others are their reverse.
    for step in (1, width - 1, width, width + 1):
        place = np.minimum(np.searchsorted(squares, squares + step), len(squares) - 1)
        first = np.flatnonzero(squares[place] == squares + step)
        edges.append(np.stack([first, place[first]]))
    one, other = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), (len(squares), len(squares)))
    return np.asarray(connected_components(graph, directed=False)[1][square], np.int64)


def split_groups(
    pixels: Sequence[LabelledPixels], together: Sequence[str], classes: int, fraction: float, gap: int,
    seed: int,
) -> Split:  # fmt: skip
    """Choose groups for validation, of the farthest distance at which the labels can be divided well.

    The distance is `gap`, or the first of its halves, down to 1, at which every class of several patches is
    on both sides, and validation holds half to twice its share of the labels. Where none is, as where fields
    of a plain touch, it is 0: each patch of one class is a group of its own.

    Parameters
    ----------
    pixels
        Of each mosaic or chip.
    together
        Name of the group that a chip belongs to as a whole, for each of `pixels`; empty for none.
    fraction
        Share of the labels that validates, 0..1; 0 for none.
    gap
        Pixels that a network sees around each.
    """
    distances = [max(1, gap >> k) for k in range(max(1, gap).bit_length())] + [0]
    single = _counts(pixels, groups_of(pixels, together, 0), classes)
    several = (single > 0).sum(axis=0) > 1
    for distance in distances:
        groups = groups_of(pixels, together, distance)
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

    The distance is `gap`, or the first of its halves at which no class loses more than half of its training
    labels.

    Parameters
    ----------
    pixels
        Of each mosaic or chip; those of chips that lie near each other are of one group.
    split
        What trains and validates.
    gap
        Pixels that a network sees around each.
    """
    from scipy.spatial import KDTree

    labels, held = np.concatenate([own.classes for own in pixels]), split.validates[split.groups]
    far, first = np.full(len(labels), np.inf), 0
    for own in pixels:
        validating = held[first : first + len(own)]
        places = np.stack([own.rows, own.cols], axis=1)
        if validating.any() and not validating.all():
            tree = KDTree(places[validating])
            there = first + np.flatnonzero(~validating)
            far[there] = tree.query(places[~validating], p=np.inf, distance_upper_bound=gap + 1)[0]
        first += len(own)
    total = np.bincount(labels[~held], minlength=classes + 1)
    for distance in [gap >> k for k in range(gap.bit_length() + 1)]:
        near = far <= distance
        if (2 * np.bincount(labels[near], minlength=classes + 1) <= total).all():
            break
    return dataclasses.replace(split, left_out=near, gap=distance)


def groups_of(pixels: Sequence[LabelledPixels], together: Sequence[str], distance: int) -> NDArray[np.int64]:
    """Number the groups over all mosaics or chips: int64 (pixel,); of one class each at distance 0."""
    found: list[NDArray[np.int64]] = []
    total = 0
    named: dict[str, int] = {}
    for own, name in zip(pixels, together, strict=True):
        if name:
            groups = np.full(len(own), named.setdefault(name, total))
        else:
            groups = (group_pixels(own.rows, own.cols, distance) if distance else _by_class(own)) + total
        total = max(total, int(groups.max(initial=total - 1)) + 1)
        found.append(groups)
    return np.concatenate(found)


def _by_class(pixels: LabelledPixels) -> NDArray[np.int64]:
    """Number the patches of one class that touch: int64 (pixel,)."""
    groups = np.zeros(len(pixels), np.int64)
    total = 0
    for number in np.unique(pixels.classes):
        own = pixels.classes == number
        groups[own] = group_pixels(pixels.rows[own], pixels.cols[own], 1) + total
        total = int(groups[own].max()) + 1
    return groups


def _counts(pixels: Sequence[LabelledPixels], groups: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Pixels of class 1..N of each group: int64 (group, class)."""
    number = int(groups.max(initial=-1)) + 1
    labels = np.concatenate([own.classes for own in pixels])
    counts = np.bincount(groups * classes + labels - 1, minlength=number * classes)
    return counts.reshape(number, classes)
