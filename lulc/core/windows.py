"""Windows, parts and the plan of a map: integer geometry, decided before a pixel is read.

A map is divided into *parts*, squares that are written, journalled and resumed as a whole. *Windows* of one
shape cover each part. A window is read with a halo and only its inner *write* rectangle is kept, so that
every pixel is written exactly once.

The result equals one pass over the whole image, padded right and below to a multiple of the network's stride,
if origin and size of every window are multiples of the stride, and each side that is no border of the padded
image is at least one halo away from the write rectangle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels by its first row and column."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "type": "array", "minItems": 4, "maxItems": 4, "items": {"type": "integer"}
    }  # fmt: skip

    row: int
    col: int
    height: int
    width: int

    def to_json(self) -> list[int]:
        return [self.row, self.col, self.height, self.width]

    @classmethod
    def from_json(cls, data: Sequence[int]) -> Window:
        return cls(*data)

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns) for indexing an array (y, x)."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (self.height, self.width)

    @property
    def stop(self) -> tuple[int, int]:
        """(row, column) one past the last pixel."""
        return (self.row + self.height, self.col + self.width)

    def intersect(self, other: Window) -> Window:
        """Return the common rectangle; its height or width is 0 where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        (a, b), (c, d) = self.stop, other.stop
        return Window(row, col, max(0, min(a, c) - row), max(0, min(b, d) - col))

    def grow(self, pixels: int) -> Window:
        """Return this window with `pixels` more on each side."""
        return Window(self.row - pixels, self.col - pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def relative_to(self, other: Window) -> Window:
        """Return this window in the pixel coordinates of `other`."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)


@dataclass(frozen=True)
class PlannedWindow:
    """Window to read and the rectangle of it to keep.

    Parameters
    ----------
    read
        In the padded image; its shape is that of every window of the plan.
    write
        In the image, inside `read`.
    """

    read: Window
    write: Window

    @property
    def valid(self) -> Window:
        """`write` in the coordinates of `read`."""
        return self.write.relative_to(self.read)


@dataclass(frozen=True)
class Part:
    """A rectangle of the output that is written, journalled and resumed as a whole."""

    index: int
    extent: Window


@dataclass(frozen=True)
class Plan:
    """Division of a map of `height` x `width` pixels into parts and windows.

    Parameters
    ----------
    stride
        The network's total downsampling; halo, window and part are multiples of it.
    halo
        Pixels read around a window and cropped.
    window
        (rows, columns) of every window read.
    part
        Side of a part.
    """

    height: int
    width: int
    stride: int
    halo: int
    window: tuple[int, int]
    part: int

    def __post_init__(self) -> None:
        multiples = {"halo": self.halo, "part": self.part}
        multiples |= {"window rows": self.window[0], "window columns": self.window[1]}
        for name, value in multiples.items():
            if value % self.stride:
                raise ValueError(f"{name} is {value}, expected a multiple of the stride {self.stride}")
        for size, length in zip(self.window, self.padded, strict=True):
            if size < length and size <= 2 * self.halo:
                raise ValueError(
                    f"window of {size} pixels, expected more than two halos ({2 * self.halo}) "
                    f"or the whole padded image ({length})"
                )
            if size > length:
                raise ValueError(f"window of {size} pixels is larger than the padded image ({length})")

    @property
    def padded(self) -> tuple[int, int]:
        """(rows, columns) of the image padded right and below to the stride."""
        return (_round_up(self.height, self.stride), _round_up(self.width, self.stride))

    @property
    def part_counts(self) -> tuple[int, int]:
        """Number of parts along (rows, columns)."""
        return (math.ceil(self.height / self.part), math.ceil(self.width / self.part))

    def __len__(self) -> int:
        rows, cols = self.part_counts
        return rows * cols

    def part_at(self, index: int) -> Part:
        row, col = divmod(index, self.part_counts[1])
        top, left = row * self.part, col * self.part
        size = min(self.part, self.height - top), min(self.part, self.width - left)
        return Part(index, Window(top, left, *size))

    def pixels_of(self, index: int) -> int:
        extent = self.part_at(index).extent
        return extent.height * extent.width

    def parts(self) -> Iterator[Part]:
        return (self.part_at(i) for i in range(len(self)))

    def windows(self, part: Part) -> list[PlannedWindow]:
        """Return the windows of a part, row by row; their write rectangles tile the part exactly."""
        extent = part.extent
        rows = self._cover(0, extent.row, extent.stop[0])
        cols = self._cover(1, extent.col, extent.stop[1])
        return [
            PlannedWindow(
                read=Window(r.read, c.read, *self.window),
                write=Window(r.start, c.start, r.stop - r.start, c.stop - c.start),
            )
            for r in rows
            for c in cols
        ]

    @property
    def computed_pixels(self) -> int:
        """Pixels that pass through the network for the whole map, halos included."""
        count = math.prod(
            sum(len(self._cover(axis, a, min(a + self.part, length))) for a in range(0, length, self.part))
            for axis, length in enumerate((self.height, self.width))
        )
        return count * math.prod(self.window)

    def _cover(self, axis: int, start: int, stop: int) -> list[Cover]:
        return cover_axis(start, stop, self.padded[axis], self.window[axis], self.halo)


class Cover(NamedTuple):
    """A window along one axis: first pixel read, first pixel written, and one past the last pixel written."""

    read: int
    start: int
    stop: int


def cover_axis(start: int, stop: int, length: int, size: int, halo: int) -> list[Cover]:
    """Cover [start, stop) of an axis with windows of one size.

    Parameters
    ----------
    start
        Multiple of the stride.
    length
        Length of the padded axis.
    halo
        Context cropped from each side that is not a border of the padded axis.

    Returns
    -------
    list of Cover
        The write ranges are disjoint, in order, and their union is [start, stop).

    Examples
    --------
    >>> [tuple(c) for c in cover_axis(0, 100, 112, 64, 16)]
    [(0, 0, 48), (32, 48, 80), (48, 80, 100)]
    """
    covered = []
    done = start
    while done < stop:
        # Shifted inwards at the far border, where no halo is needed beyond the image.
        origin = max(0, min(done - halo, length - size))
        end = min(length if origin + size == length else origin + size - halo, stop)
        covered.append(Cover(origin, done, end))
        done = end
    return covered


def squares_of(extent: Window, side: int = 1024) -> Iterator[Window]:
    """Yield squares that cover an extent, row by row, cropped at its lower and right border.

    Examples
    --------
    >>> [(w.row, w.col, *w.shape) for w in squares_of(Window(0, 0, 3, 5), side=3)]
    [(0, 0, 3, 3), (0, 3, 3, 2)]
    """
    bottom, right = extent.stop
    for row in range(extent.row, bottom, side):
        for col in range(extent.col, right, side):
            yield Window(row, col, min(side, bottom - row), min(side, right - col))


def choose_window(
    height: int, width: int, *, stride: int, halo: int, part: int, pixels: float
) -> tuple[int, int]:
    """Return (rows, columns) of windows of at most `pixels`, if possible, that compute the fewest pixels."""
    rows, cols = (_axis_candidates(length, stride, halo, part) for length in (height, width))
    fitting = [(r, c) for r, c in itertools.product(rows, cols) if r.size * c.size <= pixels]

    def cost(pair: tuple[_Candidate, _Candidate]) -> tuple[int, int, int]:
        r, c = pair
        window = r.size * c.size
        return r.number * c.number * window, window, abs(r.size - c.size)

    best = min(fitting, key=cost, default=(rows[-1], cols[-1]))
    return (best[0].size, best[1].size)


class _Candidate(NamedTuple):
    """A window size along one axis, and the number of such windows that cover the axis."""

    size: int
    number: int


def _axis_candidates(length: int, stride: int, halo: int, part: int) -> list[_Candidate]:
    """Return the smallest window for every number of windows, the smallest number first."""
    padded = _round_up(length, stride)
    largest = min(padded, part + 2 * halo)
    smallest = min(padded, 2 * halo + stride)
    # First pixel of the first, the inner and the last parts, and their number: all inner parts are alike.
    parts = math.ceil(length / part)
    kinds = {0: 1, part: max(1, parts - 2), (parts - 1) * part: 1}
    candidates: dict[int, _Candidate] = {}
    for size in range(smallest, largest + 1, stride):
        count = sum(
            times * len(cover_axis(first, min(first + part, length), padded, size, halo))
            for first, times in kinds.items()
            if first < length
        )
        candidates.setdefault(count, _Candidate(size, count))
    return sorted(candidates.values(), key=lambda candidate: candidate.number)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def near_windows(window: Window, others: Sequence[Window], gap: int) -> list[Window]:
    """Return the rectangles of `window`, in its own coordinates, within `gap` pixels of one of `others`.

    The distance is Chebyshev's: the larger of the distances in rows and in columns.
    """
    common = (other.grow(gap).intersect(window) for other in others)
    return [c.relative_to(window) for c in common if c.height and c.width]


class Neighbours:
    """Spatial index of windows, to find those within `gap` pixels of another window."""

    def __init__(self, windows: Sequence[Window], gap: int) -> None:
        import shapely

        self._windows, self._gap = windows, gap
        self._tree = shapely.STRtree([shapely.box(*w.stop, w.row, w.col) for w in windows])

    def of(self, window: Window) -> list[Window]:
        """Return the same as `near_windows` of all indexed windows."""
        import shapely

        wide = window.grow(self._gap)
        numbers = self._tree.query(shapely.box(*wide.stop, wide.row, wide.col))
        return near_windows(window, [self._windows[number] for number in sorted(numbers)], self._gap)
