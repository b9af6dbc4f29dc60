"""The grid of a raster: coordinate reference system, geotransform and shape."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform, transform_bounds
from shapely import union_all
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from lulc.core.schema import InputError
from lulc.core.windows import Window

# PROJ reads this at its first use: it then downloads no grid that a file names.
os.environ.update(PROJ_NETWORK="OFF")

_ROOT_CODE = re.compile(r'(?:AUTHORITY|ID)\["EPSG",\s*"?(\d+)"?\]\]$')
_DATUM_TERMS = frozenset(
    {"datum", "ellps", "a", "b", "rf", "towgs84", "nadgrids", "no_defs", "type", "wktext"}
)


def settled_crs(crs: CRS) -> CRS:
    """Return the CRS of the EPSG code in a CRS, since versions of PROJ write its datum differently.

    A CRS without a code, or with the code of another projection, is returned unchanged.
    """
    code = _ROOT_CODE.search(re.sub(r"\s+(?=\])", "", crs.to_wkt())) if crs else None
    if code is None:
        return crs
    try:
        known = CRS.from_epsg(int(code.group(1)))
    except CRSError:
        return crs
    given, expected = (
        {k: v for k, v in c.to_dict(projjson=False).items() if k not in _DATUM_TERMS} for c in (crs, known)
    )
    return known if given == expected else crs


@dataclass(frozen=True)
class GridSpec:
    """Size, position and coordinate reference system of a raster.

    Parameters
    ----------
    transform
        Affine from (column, row) of a pixel's upper left corner to map coordinates.
    """

    SCHEMA: ClassVar[dict[str, Any]] = {
        "type": "object",
        "required": ["crs", "transform", "height", "width"],
        "properties": {
            "crs": {"type": "string", "maxLength": 100_000},
            "transform": {"type": "array", "minItems": 6, "maxItems": 6, "items": {"type": "number"}},
            "height": {"type": "integer", "minimum": 1},
            "width": {"type": "integer", "minimum": 1},
        },
    }

    crs: CRS
    transform: Affine
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (self.height, self.width)

    @property
    def extent(self) -> Window:
        """The window that covers the whole grid."""
        return Window(0, 0, self.height, self.width)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in units of the CRS, for north-up grids."""
        left, top = self.transform @ (0, 0)
        right, bottom = self.transform @ (self.width, self.height)
        return (left, bottom, right, top)

    def outline_on(self, crs: CRS) -> Polygon:
        """Return the border as a polygon in another CRS; empty if that CRS can't represent it."""
        ring = self.outline()
        if crs == self.crs:
            return ring
        xs, ys = transform(self.crs, crs, *zip(*ring.exterior.coords, strict=True))
        finite = all(math.isfinite(value) for value in (*xs, *ys))
        return Polygon(list(zip(xs, ys, strict=True))) if finite else Polygon()

    def outline_in_degrees(self) -> BaseGeometry:
        """Return the border on WGS 84, cut at longitude 180; empty if it can't be projected.

        Longitudes are -180..180, so that borders of any CRS can be compared.

        References
        ----------
        RFC 7946, section 3.1.9 (antimeridian cutting).
        """
        ring = self.outline_on(CRS.from_epsg(4326))
        if ring.is_empty:
            return ring
        xs, ys = np.transpose(ring.exterior.coords)
        xs = np.unwrap(xs, period=360)
        points = list(zip(xs, ys, strict=True))
        if abs(xs[-1] - xs[0]) > 180:
            points += [(x, math.copysign(90, ys.mean())) for x in (xs[-1], xs[0])]
        whole = Polygon(points)
        first, last = math.floor((xs.min() + 180) / 360), math.ceil((xs.max() - 180) / 360)
        if first == last == 0:
            return whole
        cut = [
            translate(whole.buffer(0) & box(360 * turn - 180, -90, 360 * turn + 180, 90), -360 * turn)
            for turn in range(first, last + 1)
        ]
        return union_all([part for part in cut if part.area])

    def bounds_on(self, crs: CRS) -> tuple[float, float, float, float]:
        """Return (left, bottom, right, top) in another CRS; right exceeds 180 across that longitude."""
        left, bottom, right, top = self.bounds
        corners = min(left, right), min(bottom, top), max(left, right), max(bottom, top)
        west, south, east, north = corners if crs == self.crs else transform_bounds(self.crs, crs, *corners)
        return west, south, east + 360 if east < west else east, north

    def outline(self) -> Polygon:
        """Return the border as a polygon in the CRS, with points along each side for reprojection."""
        steps = [i / 16 for i in range(16)]
        ring = [(s, 0.0) for s in steps] + [(1.0, s) for s in steps]
        ring += [(1 - s, 1.0) for s in steps] + [(0.0, 1 - s) for s in steps]
        return Polygon([self.transform @ (x * self.width, y * self.height) for x, y in ring])

    @property
    def pixel_size(self) -> tuple[float, float]:
        """(x, y) size of a pixel in units of the CRS, both positive."""
        return (abs(self.transform.a), abs(self.transform.e))

    @property
    def is_north_up(self) -> bool:
        """True where rows run south and columns run east, without rotation or shear."""
        t = self.transform
        return t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0

    def crop(self, window: Window) -> GridSpec:
        """Return the grid of `window`, which is in pixels of this grid."""
        origin = self.transform @ Affine.translation(window.col, window.row)
        return GridSpec(self.crs, origin, window.height, window.width)

    def window_of(self, bounds: tuple[float, float, float, float]) -> Window:
        """Return the smallest window that contains a box in the CRS; it may exceed the grid."""
        corners = [~self.transform @ (x, y) for x in bounds[::2] for y in bounds[1::2]]
        cols, rows = zip(*corners, strict=True)
        row, col = math.floor(min(rows)), math.floor(min(cols))
        return Window(row, col, math.ceil(max(rows)) - row, math.ceil(max(cols)) - col)

    def matches(self, other: GridSpec) -> bool:
        """True if both grids have the same CRS, shape, and corners within 1 % of a pixel."""
        return self.shape == other.shape and self.is_aligned(other) and self.offset_of(other) == (0, 0)

    def is_aligned(self, other: GridSpec) -> bool:
        """True if `other` has this CRS and pixel size, and its pixel corners are pixel corners here."""
        if self.crs != other.crs:
            return False
        a, b = self.transform, other.transform
        longest = max(*self.shape, *other.shape)
        steps = ((a.a, b.a), (a.b, b.b), (a.d, b.d), (a.e, b.e))
        if any(abs(x - y) * longest > 0.01 * abs(a.a) for x, y in steps):
            return False
        col, row = ~a @ (b.c, b.f)
        return abs(col - round(col)) < 0.01 and abs(row - round(row)) < 0.01

    def offset_of(self, other: GridSpec) -> tuple[int, int]:
        """Return (row, column) of the origin of an aligned grid `other` in this grid."""
        col, row = ~self.transform @ (other.transform.c, other.transform.f)
        return (round(row), round(col))

    def describe(self) -> str:
        """Return one line for messages: CRS, size, pixel size and origin."""
        t = self.transform
        name = self.crs.to_string() if self.crs else "no CRS"
        if len(name) > 40:
            name = name[:37] + "..."
        return (
            f"{name}, {self.height} rows x {self.width} columns, pixel {t.a:.10g} x {t.e:.10g}, "
            f"origin ({t.c:.10g}, {t.f:.10g})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "crs": self.crs.to_wkt() if self.crs else "",
            "transform": list(self.transform)[:6],
            "height": self.height,
            "width": self.width,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GridSpec:
        """Return a grid from data of `to_json` that fit `SCHEMA`.

        Raises InputError if its CRS is invalid, or its pixels have no area.
        """
        transform = Affine(*(float(v) for v in data["transform"]))
        try:
            crs = settled_crs(CRS.from_wkt(data["crs"])) if data["crs"] else CRS()
        except CRSError as error:
            raise InputError(
                f"cannot use the CRS '{data['crs'][:80]}', since it is not understood, expected WKT"
            ) from error
        if not 0 < abs(transform.determinant) < math.inf:
            raise InputError(
                f"cannot use a grid of the geotransform {tuple(transform)[:6]}, since its pixels have no area"
            )
        return cls(crs, transform, int(data["height"]), int(data["width"]))


def metres_per_pixel(grid: GridSpec) -> float | None:
    """Return the width in metres of the pixel in the middle of the grid; None where it is not on the Earth.

    Examples
    --------
    >>> mercator = GridSpec(CRS.from_epsg(3857), Affine(10, 0, 2_894_300, 0, -10, 8_739_000), 100, 100)
    >>> round(metres_per_pixel(mercator), 2)
    4.79
    """
    size = pixel_on_ground(grid)
    return size and size[0]


def pixel_on_ground(grid: GridSpec) -> tuple[float, float] | None:
    """Return (width, height) in metres of the pixel in the middle; None where it is not on the Earth.

    Examples
    --------
    >>> degrees = GridSpec(CRS.from_epsg(4326), Affine(1e-4, 0, 25, 0, -1e-4, 60), 100, 100)
    >>> [round(side, 1) for side in pixel_on_ground(degrees)]
    [5.6, 11.1]
    """
    sizes = pixels_on_ground(grid, [grid.height / 2])
    return sizes and (float(sizes[0][0]), float(sizes[1][0]))


def pixels_on_ground(
    grid: GridSpec, rows: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (widths, heights) in metres of the pixels in the middle of some rows, on the ellipsoid.

    Parameters
    ----------
    rows
        Centres of the rows, counted from the upper edge: 0.5 for the first row.

    Returns
    -------
    two arrays float64 (row,), or None
        None where one of them is not on the Earth.
    """
    if not grid.crs:
        return None
    import pyproj

    x = (grid.bounds[0] + grid.bounds[2]) / 2
    y = grid.transform.f + grid.transform.e * np.asarray(rows, "float64")
    width, height = (side / 2 for side in grid.pixel_size)
    middle = np.full_like(y, x)
    xs = np.concatenate([middle - width, middle, middle + width, middle])
    ys = np.concatenate([y, y - height, y, y + height])
    try:
        lons, lats = (np.array_split(part, 2) for part in transform(grid.crs, CRS.from_epsg(4326), xs, ys))
        _, _, metres = pyproj.Geod(ellps="WGS84").inv(lons[0], lats[0], lons[1], lats[1])
    except (CRSError, RasterioError):
        return None
    if not ((metres > 0) & np.isfinite(metres)).all():
        return None
    across, down = np.array_split(metres, 2)
    return across, down
