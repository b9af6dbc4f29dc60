"""From the pixels of one grid to those of another: where their centres fall, and how values are taken.

The rules, which do not depend on how an image is cut into windows:

- Nearest: a pixel takes the value of the source pixel that holds its centre (masks, labels).
- Bilinear: it takes the four source pixels whose centres surround its own, weighted by distance, half
  pixels counted right. Missing ones carry no weight. It is valid where the source pixel that holds its
  centre is, so that resampling neither grows nor shrinks holes.

Bilinear rather than nearest, since repeated 20 m pixels would show a network edges that aren't there;
rather than cubic, since that overshoots at shores and leaves the range of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lulc.core.grid import GridSpec
from lulc.core.windows import Window

FACTORS = (2, 3, 6)
"""Native Sentinel-2 pixels of 20 and 60 m in pixels of the finer grids."""

MAX_READ = 2**24
"""Source pixels read at once; larger windows are read in halves."""

_SNAP = 4096.0
Planes = tuple[np.ndarray, np.ndarray]


def factor_of(source: GridSpec, grid: GridSpec) -> int | None:
    """Return the pixels of `grid` along a side of one of `source`, where both start at one corner; else None.

    `source` covers `grid` with less than one pixel beyond it on the right and below.
    """
    for factor in FACTORS:
        rows, cols = (-(-size // factor) for size in grid.shape)
        transform = grid.transform @ grid.transform.scale(factor)
        if source.matches(GridSpec(grid.crs, transform, rows, cols)):
            return factor
    return None


class Alignment:
    """Position of the pixels of `grid` in `source`.

    Attributes
    ----------
    kind
        ``same`` pixels, ``scaled`` (native pixels of 20 or 60 m, see `factor_of`), ``shifted`` (the
        same CRS) or ``warped`` (another CRS).
    """

    def __init__(self, source: GridSpec, grid: GridSpec) -> None:
        self.source = source
        self.grid = grid
        self._to_source: Any = None
        if source.matches(grid):
            self.kind = "same"
        elif factor_of(source, grid):
            self.kind = "scaled"
        elif source.crs == grid.crs:
            self.kind = "shifted"
        else:
            import pyproj

            self.kind = "warped"
            self._to_source = pyproj.Transformer.from_crs(
                grid.crs.to_wkt(), source.crs.to_wkt(), always_xy=True
            )

    def centres(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of pixel centres, float64, in pixels of the source (0.5 is its first centre).

        Returns
        -------
        rows, cols
            (y, 1) and (1, x), or both (y, x) for another CRS; infinite where it has no such place.
        """
        rows, cols = (np.arange(part.start, part.stop, dtype="float64") + 0.5 for part in window.slices)
        return self._positions(rows, cols)

    def _positions(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns in the source of places (y,) and (x,) of the grid, see `centres`."""
        t, s = self.grid.transform, self.source.transform
        xs, ys = t.c + t.a * cols[None, :], t.f + t.e * rows[:, None]
        if self._to_source is not None:
            xs, ys = self._to_source.transform(*np.broadcast_arrays(xs, ys))
        if self.source.crs.is_geographic:
            # Longitudes may be -180..180 or 0..360: those of the grid are turned to the source's side.
            with np.errstate(invalid="ignore"):
                xs = xs - 360 * np.round((xs - s.c - s.a * self.source.width / 2) / 360)
        # Snapped, so that rounding in coordinates of millions of metres decides nothing.
        down = np.round((ys - s.f) / s.e * _SNAP) / _SNAP
        across = np.round((xs - s.c) / s.a * _SNAP) / _SNAP
        return down, across

    def covers(self) -> bool:
        """True where the centres of the grid's outer pixels lie in the source."""
        height, width = self.grid.shape
        edges = (Window(0, 0, 1, width), Window(height - 1, 0, 1, width),
                 Window(0, 0, height, 1), Window(0, width - 1, height, 1))  # fmt: skip
        return all(bool(self.reaches(edge).all()) for edge in edges)

    def reaches(self, window: Window) -> np.ndarray:
        """True where the centre of a pixel lies in the source, bool (y, x)."""
        return self._inside(*self.centres(window))

    def touches(self) -> bool:
        """True where the source overlaps the box around the grid's pixels, seen from the source."""
        # Of a lattice that holds the outer pixels.
        picked = [np.linspace(0, n - 1, min(n, 64)).round() + 0.5 for n in self.grid.shape]
        for positions, length in zip(self._positions(*picked), self.source.shape, strict=True):
            known = positions[np.isfinite(positions)]
            if not known.size or known.max() < 0 or known.min() >= length:
                return False
        return True

    def nearest(self, read: Callable[[Window], np.ndarray], window: Window) -> Planes:
        """Values by the nearest rule.

        Parameters
        ----------
        read
            From a window of the source to values (..., y, x) of any type.

        Returns
        -------
        values (..., y, x), inside bool (y, x)
            `inside` is False where the source has no pixel.
        """
        if self.kind == "same":
            return read(window), np.ones(window.shape, dtype=bool)
        rows, cols = self.centres(window)
        inside = self._inside(rows, cols)
        there = self._footprint(rows, cols, margin=0)
        if there is None:
            first = read(Window(0, 0, 1, 1))
            return np.zeros((*first.shape[:-2], *window.shape), first.dtype), inside
        if there.height * there.width > MAX_READ and max(window.shape) > 1:
            return _in_halves(lambda part: self.nearest(read, part), window)
        values = read(there)
        row, col = _index(rows, there.row, there.height), _index(cols, there.col, there.width)
        return values[..., row, col], inside

    def bilinear(self, read: Callable[[Window], Planes], window: Window) -> Planes:
        """Values by the bilinear rule.

        Parameters
        ----------
        read
            From a window of the source to values float32 (band, y, x) and valid bool (band, y, x).

        Returns
        -------
        values float32 (band, y, x), valid bool (band, y, x)
            Values of invalid pixels are meaningless.
        """
        if self.kind == "same":
            return read(window)
        rows, cols = self.centres(window)
        there = self._footprint(rows, cols, margin=1)
        if there is None:
            bands = read(Window(0, 0, 1, 1))[0].shape[0]
            return np.zeros((bands, *window.shape), "float32"), np.zeros((bands, *window.shape), bool)
        if there.height * there.width > MAX_READ and max(window.shape) > 1:
            return _in_halves(lambda part: self.bilinear(read, part), window)
        values, valid = read(there)
        row = _index(rows, there.row, there.height)
        col = _index(cols, there.col, there.width)
        result_valid = valid[:, row, col] & self._inside(rows, cols)
        sample = _interpolate_axes if self._to_source is None else _interpolate_points
        if valid.all():
            return sample(values, rows - there.row, cols - there.col), result_valid
        weights = sample(valid.astype("float32"), rows - there.row, cols - there.col)
        total = sample(np.where(valid, values, np.float32(0)), rows - there.row, cols - there.col)
        return np.divide(total, weights, out=total, where=weights > 0), result_valid

    def _inside(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        height, width = self.source.shape
        return (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)

    def _footprint(self, rows: np.ndarray, cols: np.ndarray, margin: int) -> Window | None:
        """The source window that holds the centres and `margin` pixels around; None for none."""
        inside = self._inside(rows, cols)
        if not inside.any():
            return None
        spans = []
        for axis, positions in enumerate((rows, cols)):
            held = np.broadcast_to(positions, inside.shape)[inside]
            first = max(0, int(np.floor(held.min())) - margin)
            last = min(self.source.shape[axis], int(np.floor(held.max())) + 1 + margin)
            spans.append((first, last - first))
        return Window(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def _index(positions: np.ndarray, first: int, length: int) -> np.ndarray:
    """Positions as indices into a window that starts at `first`; those outside are moved to its border."""
    whole = np.nan_to_num(np.floor(positions), posinf=0, neginf=0)
    return np.clip(whole - first, 0, length - 1).astype(np.intp)


def _neighbours(positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower index, upper index, weight of the upper one float32) around each position."""
    positions = np.nan_to_num(positions, posinf=0, neginf=0) - 0.5
    lower = np.floor(positions)
    weight = (positions - lower).astype("float32")
    first = np.clip(lower, 0, length - 1).astype(np.intp)
    second = np.clip(lower + 1, 0, length - 1).astype(np.intp)
    return first, second, weight


def _interpolate_axes(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of (band, y, x) at rows (y, 1) and columns (1, x), one axis after the other."""
    upper, lower, weight = _neighbours(rows[:, 0], values.shape[1])
    lines = values[:, upper]
    lines += (values[:, lower] - lines) * weight[:, None]
    left, right, weight = _neighbours(cols[0], values.shape[2])
    result = np.take(lines, left, axis=2)
    result += (np.take(lines, right, axis=2) - result) * weight
    return result


def _interpolate_points(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of (band, y, x) at points (y, x)."""
    top, bottom, down = _neighbours(rows, values.shape[1])
    left, right, across = _neighbours(cols, values.shape[2])
    above = values[:, top, left]
    above += (values[:, top, right] - above) * across
    below = values[:, bottom, left]
    below += (values[:, bottom, right] - below) * across
    return np.asarray(above + (below - above) * down)


def _in_halves(read: Callable[[Window], Planes], window: Window) -> Planes:
    """Read the two halves of a window along its longer side, and join them."""
    axis = int(window.width >= window.height)
    half = window.shape[axis] // 2
    sizes = [list(window.shape), list(window.shape)]
    sizes[0][axis], sizes[1][axis] = half, window.shape[axis] - half
    moved = (window.row, window.col + half) if axis else (window.row + half, window.col)
    parts = Window(window.row, window.col, *sizes[0]), Window(*moved, *sizes[1])
    (a, b), (c, d) = (read(part) for part in parts)
    return np.concatenate((a, c), axis=axis - 2), np.concatenate((b, d), axis=axis - 2)
