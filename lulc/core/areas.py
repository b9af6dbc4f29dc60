"""Areas of pixels on the ellipsoid, for any projection."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError

from lulc.core.grid import GridSpec
from lulc.core.windows import Window

METRES_PER_DEGREE = 111_320.0

NODES, SPACING = 64, 20_000.0
"""Largest distance, in pixels and in metres, of the nodes between which areas are interpolated."""

_ToDegrees = Callable[[Any, Any], tuple[Any, Any]]


def pixel_areas(grid: GridSpec, window: Window | None = None) -> NDArray[np.float64] | None:
    """Return the geodesic area of each pixel.

    Returns
    -------
    float64 (y, x), square metres
        None where the grid has no CRS on the Earth.

    Examples
    --------
    >>> from affine import Affine
    >>> from rasterio.crs import CRS
    >>> mercator = GridSpec(CRS.from_epsg(3857), Affine(10, 0, 2_900_000, 0, -10, 8_700_000), 100, 100)
    >>> round(float(pixel_areas(mercator).mean()), 1)
    23.1
    """
    window = window or grid.extent
    geodesy = _geodesy(grid.crs.to_wkt()) if grid.crs else None
    if geodesy is None:
        return None
    to_degrees, geod, geographic = geodesy
    metres = METRES_PER_DEGREE if geographic else 1.0
    rows = _nodes(window.row, window.height, grid.height, grid.pixel_size[1] * metres)
    # In a grid in degrees, all pixels of a row have one area.
    cols = _nodes(window.col, 1 if geographic else window.width, grid.width, grid.pixel_size[0] * metres)
    cols = cols[:1] if geographic else cols
    areas = np.array([[_area_at(grid, geod, to_degrees, row, col) for col in cols] for row in rows])
    across = window.col + np.arange(window.width) + 0.5
    down = window.row + np.arange(window.height) + 0.5
    wide = np.array([np.interp(across, cols, row) for row in areas])
    return np.array([np.interp(down, rows, column) for column in wide.T]).T


def pixel_area(grid: GridSpec) -> float | None:
    """Return the mean geodesic area of a pixel in square metres; None where the grid has no CRS on the Earth.

    Large grids are sampled at 16 x 16 pixels.
    """
    rows, cols = (
        ((np.arange(min(16, side)) + 0.5) * side / min(16, side)).astype(int).tolist() for side in grid.shape
    )
    areas = [pixel_areas(grid, Window(row, col, 1, 1)) for row in rows for col in cols]
    known = [float(area[0, 0]) for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def _nodes(start: int, count: int, pixels: int, metres: float) -> NDArray[np.float64]:
    """Return the nodes around `count` pixels of an axis; they don't depend on the window."""
    step = min(NODES, max(1, int(SPACING / metres)))
    nodes = np.arange(start // step, -(-(start + count) // step) + 1) * step
    return np.unique(np.clip(nodes, 0.5, max(0.5, pixels - 0.5)))


def _area_at(grid: GridSpec, geod: Geod, to_degrees: _ToDegrees, row: float, col: float) -> float:
    corners = [(col - 0.5, row - 0.5), (col + 0.5, row - 0.5), (col + 0.5, row + 0.5), (col - 0.5, row + 0.5)]
    xs, ys = zip(*(grid.transform @ corner for corner in corners), strict=True)
    lons, lats = to_degrees(xs, ys)
    return abs(float(geod.polygon_area_perimeter(lons, lats)[0]))


@lru_cache(maxsize=16)
def _geodesy(wkt: str) -> tuple[_ToDegrees, Geod, bool] | None:
    """Return the projection to longitude and latitude, the ellipsoid, and whether the CRS is geographic."""
    try:
        crs = CRS.from_wkt(wkt)
        geodetic, geod = crs.geodetic_crs, crs.get_geod()
    except CRSError:
        return None
    if geodetic is None or geod is None:
        return None
    return Transformer.from_crs(crs, geodetic, always_xy=True).transform, geod, bool(crs.is_geographic)
