"""Patches, which are connected pixels of one class: small ones merged into neighbours, all as polygons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes, sieve
from shapely.geometry import shape

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, Legend
from lulc.core.windows import Window
from lulc.rasters.vectors import write_package

CHUNK = 20_000
"""Polygons held in memory at once."""

EQUAL_AREA = "EPSG:6933"
"""Cylindrical equal-area projection in which areas of geographic grids are measured."""


def merge_small_patches(classes: NDArray[np.uint8], size: int) -> None:
    """Give patches of fewer than `size` pixels the class of their largest neighbour, in place.

    The rule is that of GDAL's sieve filter: a patch without a large enough neighbour stays.

    Parameters
    ----------
    classes : uint8 (y, x)
        Class numbers, in memory or memory-mapped; 255 is no data and stays.
    size
        Smallest size in pixels; pixels of one patch share a side (4-connectivity).
    """
    if size <= classes.size:
        sieve(classes, size, out=classes, mask=classes != IGNORE, connectivity=4)


def write_polygons(
    path: Path, read: Callable[[Window], np.ndarray], windows: Iterable[Window], grid: GridSpec,
    legend: Legend,
) -> None:  # fmt: skip
    """Write patches as polygons to a GeoPackage, completely or not at all.

    The fields are class, name and area_m2. `read` returns class numbers, uint8 (y, x), 255 for no data.
    Patches are cut at the borders of `windows`, so that one window is in memory at a time.
    """
    names = {0: "unclassified"} | {c.number: c.name for c in legend.classes}
    with write_package(path) as package:
        for number, frame in enumerate(_frames(read, windows, grid, names)):
            frame.to_file(package, driver="GPKG", layer=path.stem, mode="a" if number else "w")


def _frames(
    read: Callable[[Window], np.ndarray], windows: Iterable[Window], grid: GridSpec, names: dict[int, str]
) -> Iterator[geopandas.GeoDataFrame]:
    patches = _patches(read, windows, grid)
    first = True
    while (chunk := list(itertools.islice(patches, CHUNK))) or first:
        numbers = [number for _, number in chunk]
        columns = {"class": np.array(numbers, np.int32), "name": [names[n] for n in numbers]}
        geometries = [shape(geometry) for geometry, _ in chunk]
        frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs=grid.crs or None)
        frame["area_m2"] = _square_metres(frame.geometry).round(2)
        yield frame
        first = False


def _patches(
    read: Callable[[Window], np.ndarray], windows: Iterable[Window], grid: GridSpec
) -> Iterator[tuple[dict[str, Any], int]]:
    for window in windows:
        classes = read(window)
        transform = grid.crop(window).transform
        for geometry, value in shapes(classes, classes != IGNORE, connectivity=4, transform=transform):
            yield geometry, int(value)


def _square_metres(geometry: geopandas.GeoSeries) -> Any:
    if geometry.crs is None:
        return geometry.area
    if geometry.crs.is_geographic:
        return geometry.to_crs(EQUAL_AREA).area
    return geometry.area * geometry.crs.axis_info[0].unit_conversion_factor ** 2
