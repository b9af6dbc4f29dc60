"""Parts of a map that are scored apart: stacks of a manifest, or polygons."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.datasets.loading import load_manifest
from lulc.rasters.vectors import VectorCodes

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

NAME_FIELDS = ("name", "region", "id")
"""Fields of polygons that give their names, in this order; numbers where there is none."""


@dataclass(frozen=True)
class Region:
    """Some pixels of a map.

    Parameters
    ----------
    name
        As printed.
    extent
        Rectangle of the map's grid that holds it.
    shape
        Polygon in the CRS of the grid; None for the whole rectangle.
    """

    name: str
    extent: Window
    shape: BaseGeometry | None = None

    def within(self, window: Window, grid: GridSpec) -> NDArray[np.bool_] | None:
        """True where a pixel of `window` (its centre) is inside; None where none can be."""
        common = self.extent.intersect(window)
        if not common.height or not common.width:
            return None
        inside = np.zeros(window.shape, bool)
        place = common.relative_to(window).slices
        if self.shape is None:
            inside[place] = True
        else:
            inside[place] = geometry_mask(
                [self.shape], common.shape, grid.crop(common).transform, invert=True
            )
        return inside


def read_regions(path: str | os.PathLike[str], grid: GridSpec) -> list[Region]:
    """Regions from a manifest.json (its stacks) or from a polygon file.

    Parameters
    ----------
    path
        ``manifest.json`` or its folder, or GeoPackage or GeoJSON.
    grid
        Grid of the map.

    Raises
    ------
    InputError
        If the file can't be read, or nothing of it lies on the map.
    """
    path = Path(path)
    if path.is_dir() or path.name == "manifest.json":
        regions = _from_manifest(path if path.is_dir() else path.parent, grid)
    else:
        regions = _from_polygons(path, grid)
    if not regions:
        raise InputError(
            f"cannot score the regions of '{path}', since none of them lies on the map ({grid.describe()})",
            "Give the manifest or polygons of the same place.",
        )
    return regions


def _from_manifest(folder: Path, grid: GridSpec) -> list[Region]:
    regions = []
    for stack in load_manifest(folder).stacks:
        if stack.grid is None:
            raise InputError(
                f"cannot score the stacks of '{folder}', since '{stack.name}' doesn't say where it lies",
                "Give polygons instead: --regions regions.gpkg",
            )
        if not grid.is_aligned(stack.grid):
            raise InputError(
                f"cannot score the stacks of '{folder}', since the grid of '{stack.name}' is\n"
                f"  {stack.grid.describe()}\nexpected pixels of the map\n  {grid.describe()}",
                "Give the manifest of stacks from the same mosaic, or polygons.",
            )
        extent = Window(*grid.offset_of(stack.grid), *stack.grid.shape).intersect(grid.extent)
        if extent.height and extent.width:
            regions.append(Region(f"{stack.name} ({stack.split})", extent))
    return regions


def _from_polygons(path: Path, grid: GridSpec) -> list[Region]:
    import geopandas

    VectorCodes(str(path), grid, presence=True)  # refuses what is no honest GeoPackage or GeoJSON
    frame = geopandas.read_file(path)
    fields = {str(c).lower(): c for c in frame.columns}
    field = next((fields[n] for n in NAME_FIELDS if n in fields), None)
    shapes = frame.geometry.to_crs(grid.crs.to_wkt())
    regions = []
    for k, shape in enumerate(shapes):
        if shape is None or shape.is_empty:
            continue
        extent = _extent_of(shape, grid)
        if extent.height and extent.width:
            regions.append(Region(str(frame[field].iloc[k]) if field else f"region {k + 1}", extent, shape))
    return regions


def _extent_of(shape: BaseGeometry, grid: GridSpec) -> Window:
    left, bottom, right, top = shape.bounds
    cols, rows = ~grid.transform @ (np.array([left, right]), np.array([top, bottom]))
    row, col = int(np.floor(rows[0])), int(np.floor(cols[0]))
    height, width = int(np.ceil(rows[1])) - row, int(np.ceil(cols[1])) - col
    return Window(row, col, height, width).intersect(grid.extent)
