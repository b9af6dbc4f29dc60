"""Rasters as xarray objects: coordinates of a grid, and pixels that are read on access."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from lulc.core.grid import GridSpec
from lulc.core.windows import Window


def coordinates_of(grid: GridSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the coordinates ``y`` and ``x`` of pixel centres, and the attributes of the grid mapping."""
    code = grid.crs.to_epsg()
    crs = pyproj.CRS.from_epsg(code) if code else pyproj.CRS.from_wkt(grid.crs.to_wkt())
    axes = {axis["axis"].lower(): axis for axis in crs.cs_to_cf()}
    t = grid.transform
    wkt = grid.crs.to_wkt()
    geotransform = " ".join(map(repr, t.to_gdal()))
    mapping = crs.to_cf() | {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": geotransform}
    return {
        "y": ("y", t.f + t.e * (np.arange(grid.height) + 0.5), axes["y"]),
        "x": ("x", t.c + t.a * (np.arange(grid.width) + 0.5), axes["x"]),
    }, mapping


def lazy_variable(
    read: Callable[[Window], np.ndarray], dimensions: tuple[str, str, str], shape: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> xr.Variable:  # fmt: skip
    """Return a variable (plane, y, x) that calls `read`, from any thread, for the window that is accessed."""
    return xr.Variable(dimensions, indexing.LazilyIndexedArray(_Lazy(read, shape, dtype)))


class _Lazy(BackendArray):
    """Array (plane, y, x) that reads only the window around the requested values."""

    def __init__(
        self, read: Callable[[Window], np.ndarray], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._read = read
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._get)

    def _get(self, key: tuple[int | slice, ...]) -> np.ndarray:
        planes, rows, cols = (np.arange(n)[k] for k, n in zip(key, self.shape, strict=True))
        if not rows.size or not cols.size:
            shape = [axis.size for axis in (planes, rows, cols) if axis.ndim]
            return np.empty(shape, self.dtype)
        top, left = rows.min(), cols.min()
        window = Window(int(top), int(left), int(rows.max() - top + 1), int(cols.max() - left + 1))
        values = self._read(window)
        # From the last axis to the first, since a single position removes its axis.
        return values.take(cols - left, axis=2).take(rows - top, axis=1).take(planes, axis=0)
