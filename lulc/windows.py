"""Windows, parts and the plan of a map: pure integer geometry, planned before a pixel is read.

A map of H x W pixels is cut into *parts* (squares of `part` pixels; finished, journalled and resumed
as a whole). Each part is covered by *windows* of one static shape. A window is read with a halo and
only its inner *write* rectangle is kept, so that every pixel is written exactly once.

The reference is one pass over the whole image, padded right and below to a multiple of the network's
stride. A window equals that pass on its write rectangle when its origin and size are multiples of the
stride and each side that does not lie on the border of the padded image is at least one halo away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: first row, first column, number of rows, number of columns."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns) for indexing an array (y, x)."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.col, self.col + self.width),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (self.height, self.width)

    @property
    def stop(self) -> tuple[int, int]:
        """(row, column) one past the last pixel."""
        return (self.row + self.height, self.col + self.width)

    def intersect(self, other: Window) -> Window:
        """The common rectangle; its height or width is 0 where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        (a, b), (c, d) = self.stop, other.stop
        return Window(row, col, max(0, min(a, c) - row), max(0, min(b, d) - col))

    def relative_to(self, other: Window) -> Window:
        """This window in the pixel coordinates of `other`."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)


@dataclass(frozen=True)
class PlannedWindow:
    """What to read and what of it to keep.

    Parameters
    ----------
    read
        In the padded image; its shape is the plan's static window shape. It may reach beyond the
        image to the right and below, by padding only.
    write
        In the image, inside `read`.
    """

    read: Window
    write: Window

    @property
    def crop(self) -> Window:
        """`write` in the coordinates of `read`."""
        return self.write.relative_to(self.read)


@dataclass(frozen=True)
class Part:
    """A rectangle of the output that is finished, journalled and resumed as a whole."""

    index: int
    extent: Window


@dataclass(frozen=True)
class Plan:
    """How a map of `height` x `width` pixels is cut into parts and windows.

    Parameters
    ----------
    height, width
        Size of the image.
    stride
        The network's total downsampling; origins and sizes of windows are multiples of it.
    halo
        Pixels read around a window and cropped, a multiple of `stride`.
    window
        (rows, columns) of every window read, multiples of `stride`.
    part
        Side of a part, a multiple of `stride`.
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
        """Number of parts."""
        rows, cols = self.part_counts
        return rows * cols

    def part_at(self, index: int) -> Part:
        """Part number `index`, row by row."""
        row, col = divmod(index, self.part_counts[1])
        top, left = row * self.part, col * self.part
        height = min(self.part, self.height - top)
        width = min(self.part, self.width - left)
        return Part(index, Window(top, left, height, width))

    def pixels_of(self, index: int) -> int:
        """Pixels of part number `index`."""
        extent = self.part_at(index).extent
        return extent.height * extent.width

    def parts(self) -> Iterator[Part]:
        """All parts, in plan order."""
        return (self.part_at(i) for i in range(len(self)))

    def windows(self, part: Part) -> list[PlannedWindow]:
        """The windows of a part, row by row; their write rectangles tile the part exactly."""
        e = part.extent
        padded_height, padded_width = self.padded
        rows = cover_axis(e.row, e.row + e.height, padded_height, self.window[0], self.halo)
        cols = cover_axis(e.col, e.col + e.width, padded_width, self.window[1], self.halo)
        return [
            PlannedWindow(read=Window(r0, c0, *self.window), write=Window(r1, c1, r2 - r1, c2 - c1))
            for r0, r1, r2 in rows
            for c0, c1, c2 in cols
        ]

    @property
    def computed_pixels(self) -> int:
        """Pixels that pass through the network, halo included, for the whole map."""
        totals = []
        for axis, length in enumerate((self.height, self.width)):
            padded = self.padded[axis]
            count = sum(
                len(cover_axis(a, min(a + self.part, length), padded, self.window[axis], self.halo))
                for a in range(0, length, self.part)
            )
            totals.append(count * self.window[axis])
        return totals[0] * totals[1]


def cover_axis(start: int, stop: int, length: int, size: int, halo: int) -> list[tuple[int, int, int]]:
    """Cover [start, stop) of an axis with windows of one size.

    Parameters
    ----------
    start, stop
        What is to be written; `start` is a multiple of the stride.
    length
        Length of the padded axis.
    size
        Length of every window, at most `length`.
    halo
        Context cropped from each side that is not a border of the padded axis.

    Returns
    -------
    list of (read start, write start, write stop)
        Write ranges are disjoint, in order, and their union is [start, stop).

    Examples
    --------
    >>> cover_axis(0, 100, 112, 64, 16)
    [(0, 0, 48), (32, 48, 80), (48, 80, 100)]
    """
    covered = []
    done = start
    while done < stop:
        # Shifted inwards at the far border, where no halo is needed beyond the image.
        origin = max(0, min(done - halo, length - size))
        end = length if origin + size == length else origin + size - halo
        end = min(end, stop)
        covered.append((origin, done, end))
        done = end
    return covered


def squares_of(extent: Window, side: int = 1024) -> Iterator[Window]:
    """Cover an extent with squares, row by row; those at the far borders are cut off.

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
    height: int,
    width: int,
    *,
    stride: int,
    halo: int,
    part: int,
    max_pixels: int,
) -> tuple[int, int]:
    """The window shape that computes the fewest pixels within a budget of pixels per window.

    Parameters
    ----------
    height, width
        Size of the image.
    stride, halo, part
        As in `Plan`.
    max_pixels
        Largest allowed product of rows and columns; the smallest possible window is given where
        even that exceeds it.

    Returns
    -------
    (rows, columns)
        Multiples of `stride`, at most the padded image.
    """
    candidates = [_axis_candidates(length, stride, halo, part) for length in (height, width)]
    best = min(
        ((r, c) for r in candidates[0] for c in candidates[1] if r[0] * c[0] <= max_pixels),
        key=lambda rc: (rc[0][1] * rc[1][1], rc[0][0] * rc[1][0], abs(rc[0][0] - rc[1][0])),
        default=(min(candidates[0]), min(candidates[1])),
    )
    return (best[0][0], best[1][0])


def _axis_candidates(length: int, stride: int, halo: int, part: int) -> list[tuple[int, int]]:
    """(window size, pixels computed along the axis) for every useful size."""
    padded = _round_up(length, stride)
    largest = min(padded, part + 2 * halo)
    smallest = min(padded, 2 * halo + stride)
    result = []
    for size in range(smallest, largest + 1, stride):
        count = sum(
            len(cover_axis(a, min(a + part, length), padded, size, halo))
            for a in {0, part, (math.ceil(length / part) - 1) * part}
            if a < length
        )
        inner = max(0, math.ceil(length / part) - 3)
        if inner:
            count += inner * len(cover_axis(part, 2 * part, padded, size, halo))
        result.append((size, count * size))
    return result


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
