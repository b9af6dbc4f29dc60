"""Resampling from one grid to another: where pixel centres fall, and how values are taken.

The rules do not depend on how an image is cut into windows:

- Nearest: a pixel takes the value of the source pixel that holds its centre (masks, labels).
- Bilinear: it takes the four source pixels whose centres surround its own, weighted by distance; missing ones
  have no weight. It is valid where the source pixel that holds its centre is, so that holes neither grow nor
  shrink.

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
"""Pixels of finer grids along a side of Sentinel-2's native pixels of 20 and 60 m."""

MAX_READ = 2**24
"""Source pixels read at once; larger windows are read in halves."""

_SNAP = 4096.0
Planes = tuple[np.ndarray, np.ndarray]


def factor_of(source: GridSpec, grid: GridSpec) -> int | None:
    """Return how many pixels of `grid` lie along a side of one of `source`, both with the same corner; else
    None.

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
            crs_pair = grid.crs.to_wkt(), source.crs.to_wkt()
            self._to_source = pyproj.Transformer.from_crs(*crs_pair, always_xy=True)

    def centres(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of pixel centres, float64, in pixels of the source (0.5 is its first centre).

        They are (y, 1) and (1, x), or both (y, x) for another CRS; infinite where the CRS can't be
        transformed.
        """
        rows, cols = (np.arange(part.start, part.stop, dtype="float64") + 0.5 for part in window.slices)
        return self._positions(rows, cols)

    def _positions(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns in the source of rows (y,) and columns (x,) of the grid, see `centres`."""
        t, s = self.grid.transform, self.source.transform
        xs, ys = t.c + t.a * cols[None, :], t.f + t.e * rows[:, None]
        if self._to_source is not None:
            xs, ys = self._to_source.transform(*np.broadcast_arrays(xs, ys))
        if self.source.crs.is_geographic:
            # Longitudes may be -180..180 or 0..360: those of the grid are shifted near the source.
            with np.errstate(invalid="ignore"):
                xs = xs - 360 * np.round((xs - s.c - s.a * self.source.width / 2) / 360)
        # Snapped, so that rounding of coordinates of millions of metres has no effect.
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
        """True where the source overlaps the box around the grid's pixels, measured in source pixels."""
        # A sample of at most 64 x 64 pixels, with the outer ones.
        sampled = [np.linspace(0, n - 1, min(n, 64)).round() + 0.5 for n in self.grid.shape]
        for positions, length in zip(self._positions(*sampled), self.source.shape, strict=True):
            known = positions[np.isfinite(positions)]
            if not known.size or known.max() < 0 or known.min() >= length:
                return False
        return True

    def nearest(self, read: Callable[[Window], np.ndarray], window: Window) -> Planes:
        """Resample by the nearest rule.

        `read` returns values (..., y, x) of any type for a window of the source. Returns values (..., y, x)
        and inside, bool (y, x), False where the source has no pixel.
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
        """Resample by the bilinear rule.

        `read` returns values float32 and valid bool, both (band, y, x), for a window of the source. Returns
        the same on the grid; values of invalid pixels are meaningless.
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
        row, col = _index(rows, there.row, there.height), _index(cols, there.col, there.width)
        result_valid = valid[:, row, col] & self._inside(rows, cols)
        rows, cols = rows - there.row, cols - there.col
        sample = _interpolate_axes if self._to_source is None else _interpolate_points
        if valid.all():
            return sample(values, rows, cols), result_valid
        weights = sample(valid.astype("float32"), rows, cols)
        total = sample(np.where(valid, values, np.float32(0)), rows, cols)
        return np.divide(total, weights, out=total, where=weights > 0), result_valid

    def _inside(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        height, width = self.source.shape
        return (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)

    def _footprint(self, rows: np.ndarray, cols: np.ndarray, margin: int) -> Window | None:
        """Return the source window that holds the centres and `margin` pixels around; None without any."""
        inside = self._inside(rows, cols)
        if not inside.any():
            return None
        held = [np.floor(np.broadcast_to(positions, inside.shape)[inside]) for positions in (rows, cols)]
        row, col = (max(0, int(positions.min()) - margin) for positions in held)
        last = [int(positions.max()) + 1 + margin for positions in held]
        return Window(row, col, min(self.source.height, last[0]) - row, min(self.source.width, last[1]) - col)


def _index(positions: np.ndarray, first: int, length: int) -> np.ndarray:
    """Positions as indices into a window that starts at `first`; those outside are clipped to its border."""
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
    """Interpolate (band, y, x) bilinearly at rows (y, 1) and columns (1, x), one axis after the other."""
    upper, lower, weight = _neighbours(rows[:, 0], values.shape[1])
    lines = values[:, upper]
    lines += (values[:, lower] - lines) * weight[:, None]
    left, right, weight = _neighbours(cols[0], values.shape[2])
    result = np.take(lines, left, axis=2)
    result += (np.take(lines, right, axis=2) - result) * weight
    return result


def _interpolate_points(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Interpolate (band, y, x) bilinearly at points (y, x)."""
    top, bottom, down = _neighbours(rows, values.shape[1])
    left, right, across = _neighbours(cols, values.shape[2])
    above = values[:, top, left]
    above += (values[:, top, right] - above) * across
    below = values[:, bottom, left]
    below += (values[:, bottom, right] - below) * across
    return np.asarray(above + (below - above) * down)


def _in_halves(read: Callable[[Window], Planes], window: Window) -> Planes:
    """Read the two halves of a window along its longer side, and join them."""
    row, col, (height, width) = window.row, window.col, window.shape
    if width >= height:
        half = width // 2
        parts = Window(row, col, height, half), Window(row, col + half, height, width - half)
    else:
        half = height // 2
        parts = Window(row, col, half, width), Window(row + half, col, height - half, width)
    axis = -1 if width >= height else -2
    (a, b), (c, d) = (read(part) for part in parts)
    return np.concatenate((a, c), axis=axis), np.concatenate((b, d), axis=axis)
