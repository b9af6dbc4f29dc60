"""Label rasters and vectors as class numbers on a grid.

Labels are never interpolated: a raster on the same pixels is cropped, one on another grid is read by
nearest neighbour and only on request, polygons and points are burnt onto pixel centres.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from affine import Affine
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, NO_CODE, InputError, Legend
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.labels.schemes import SCHEMES, Scheme, count_codes, scheme_of_names
from lulc.labels.value_tables import read_value_table, scheme_of_table, unexplained
from lulc.rasters.sources import Source, open_source
from lulc.rasters.vectors import CONVERTIBLE, VECTORS, VectorCodes, ordered, unreadable

logger = logging.getLogger("lulc")

MAX_READ = 2**24
"""Pixels read at once when labels are resampled; a finer source is read in pieces."""

SAMPLED = 2048
"""Rows and columns that are looked at for the codes in an error message."""

VOLUME_NODATA = 32766
"""Volume layers of the national forest inventory store 32766 and 32767 outside forest and data."""


class Codes(Protocol):
    """Source codes on a grid."""

    @property
    def names(self) -> Mapping[int, str]:
        """Texts that the codes stand for, where the source names them."""

    def read(self, window: Window) -> np.ndarray:
        """Integer (y, x), `NO_CODE` where there is no label."""

    def identity(self) -> dict[str, Any]:
        """Name, bytes and sha256 of the file."""


class Labels(Resource):
    """Class numbers on a grid; made by `open_labels`, closed as a context manager.

    Attributes
    ----------
    grid : GridSpec
        The grid that windows refer to.
    scheme : Scheme
        How codes became classes.
    origin : str
        Where the scheme comes from, for people: named by the user, or found in the file.
    """

    def __init__(
        self,
        path: str,
        grid: GridSpec,
        scheme: Scheme,
        codes: Codes,
        volumes: tuple[RasterCells, RasterCells] | None,
        resources: ExitStack,
        origin: str = "",
    ) -> None:
        self.path = path
        self.grid = grid
        self.scheme = scheme
        self.origin = origin
        self._bound = scheme.bind(codes.names, indexed=isinstance(codes, VectorCodes) and bool(codes.names))
        self._codes = codes
        self._volumes = volumes
        self._resources = resources

    @property
    def legend(self) -> Legend:
        """The classes 1..N."""
        return self.scheme.legend

    def read(self, window: Window) -> np.ndarray:
        """Class numbers of a window: uint8 (y, x), 1..N, 255 = ignore.

        Raises
        ------
        InputError
            If a code is unknown to the scheme, or no integer.
        """
        codes = self._codes.read(window)
        if self._volumes is None:
            return self._bound.remap(codes)
        pine, spruce = (_volume(layer, window) for layer in self._volumes)
        return self._bound.remap(codes, pine, spruce)

    def read_level1(self, window: Window) -> np.ndarray:
        """CORINE level-1 groups by code: uint8 (y, x), 1..5, 255 = ignore or no group."""
        return self._bound.remap_level1(self._codes.read(window))

    def count(self, window: Window) -> Counter[int]:
        """Source code to number of pixels in a window."""
        return count_codes(self._codes.read(window))

    def check(self, counts: Counter[int]) -> None:
        """Refuse codes that the scheme doesn't know, together, with their numbers of pixels."""
        self._bound.check(counts, f"'{self.path}'")

    def describe(self) -> dict[str, Any]:
        """Return file, field and scheme, and what of the file makes no label; JSON-ready."""
        nodata = self.classes_of_nodata()
        found: dict[str, Any] = {
            "file": Path(self.path).name,
            "scheme": self.scheme.name,
            "origin": self.origin,
        }
        if isinstance(self._codes, VectorCodes) and self._codes.field:
            field = self._codes.field
            found |= {"field": field.name, "type": field.kind, **dataclasses.asdict(self._codes.losses())}
        return found | ({"no_data": nodata} if nodata else {})

    def classes_of_nodata(self) -> str:
        """Return the no-data value and the class of that code, whose pixels are no labels; empty for none."""
        if not isinstance(self._codes, RasterCodes) or (nodata := self._codes.nodata) is None:
            return ""
        number = self._bound.classes.get(int(nodata)) if nodata == int(nodata) else None
        return f"{nodata:g} {self.legend.names[number - 1]}" if number not in (None, IGNORE) else ""

    def identity(self) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of each file that is read."""
        return [source.identity() for source in (self._codes, *(self._volumes or ()))]

    def close(self) -> None:
        """Close the files."""
        self._resources.close()


def open_labels(
    path: str,
    grid: GridSpec,
    scheme: Scheme | None = None,
    *,
    field: str | None = None,
    pine: str | None = None,
    spruce: str | None = None,
    resample: bool = False,
    allow_vrt: bool = False,
    allow_remote: bool = False,
) -> Labels:
    """Open labels on a grid.

    Parameters
    ----------
    path
        Raster with one layer of codes, or GeoPackage or GeoJSON of polygons or points.
    grid
        Pixels to give classes for. A raster that holds only a part of them, or more, is cropped;
        what it doesn't cover is ignored.
    scheme
        From `lulc.labels.schemes.load_scheme`; None where the file names its classes itself, in a text
        field or a value table.
    field
        Field of a vector file that holds the code or the name; the only one that can where not given.
    pine, spruce
        Volume rasters on any grid, read by nearest neighbour, that split Finnish codes 25..27.
    resample
        Take the nearest label of a raster on another grid instead of refusing it.
    allow_vrt, allow_remote
        As in `lulc.rasters.sources.open_source`.

    Raises
    ------
    InputError
        If the file can't be read as labels, lies on another grid or elsewhere, nothing says what its codes
        mean, one volume layer is missing, or an option is given that the file has no use for.
    """
    with ExitStack() as resources:

        def opened(name: str) -> Source:
            source = open_source(name, allow_vrt=allow_vrt, allow_remote=allow_remote)
            return resources.enter_context(source)

        suffix = Path(path).suffix.lower()
        if suffix in CONVERTIBLE and Path(path).is_file():
            raise unreadable(path, f"its name ends in '{suffix}'")
        known = None if scheme is None else scheme.knows
        codes: VectorCodes | RasterCodes
        if suffix in VECTORS:
            codes = VectorCodes(path, grid, field, known=known)
        elif field is not None:
            raise InputError(
                f"cannot read the field '{field}' of '{path}', since that is a raster, which has no fields",
                "Leave out --label-field.",
            )
        else:
            codes = RasterCodes(RasterCells(opened(path), grid, path, resample=resample))
        origin = "as --scheme says"
        if scheme is None:
            scheme, origin = _own_scheme(codes, path)
        _check_volumes(scheme, path, pine, spruce)
        volumes = None
        if scheme.by_species and pine is not None and spruce is not None:
            layers = [RasterCells(opened(p), grid, p, resample=True) for p in (pine, spruce)]
            volumes = (layers[0], layers[1])
        labels = Labels(path, grid, scheme, codes, volumes, resources.pop_all(), origin)
        if named := labels.classes_of_nodata():
            logger.warning(
                "the class %s of '%s' has no labels, since its code is the file's no data; if the pixels of "
                "that code are labels, type gdal_edit.py -unsetnodata %s",
                named, path, shlex.quote(path),
            )  # fmt: skip
        return labels


def _own_scheme(codes: VectorCodes | RasterCodes, path: str) -> tuple[Scheme, str]:
    """Return the scheme that a file makes by the names of its classes, and where these stand."""
    name = Path(path).stem
    if isinstance(codes, VectorCodes):
        assert codes.field
        if not codes.names:
            raise unexplained(path, sorted(v for v in codes.field.values if isinstance(v, int)))
        return scheme_of_names(
            name, {text: text for text in codes.names.values()}
        ), f"names in the field '{codes.field.name}'"
    table = codes.table
    scheme = scheme_of_table(table, path) if table else None
    if table is None or scheme is None:
        raise unexplained(path, codes.sample())
    return scheme, f"recognised by {table.origin}" if scheme.name in SCHEMES else f"names in {table.origin}"


def _check_volumes(scheme: Scheme, path: str, pine: str | None, spruce: str | None) -> None:
    if (pine is None) != (spruce is None):
        given, missing = ("pine", "spruce") if spruce is None else ("spruce", "pine")
        raise InputError(
            f"cannot split coniferous forest, since --{given} is given and --{missing} is not, expected both",
            f"Type --{missing} with its volume raster as well.",
        )
    if pine is not None and not scheme.by_species:
        raise InputError(
            f"cannot use --pine and --spruce with the scheme '{scheme.name}', since none of its codes leaves "
            "the species open",
            "Leave them out, or type --scheme clc-fi-13 for Finnish codes.",
        )
    if scheme.by_species and pine is None:
        codes = ", ".join(str(c) for c in sorted(scheme.by_species))
        logger.warning(
            "coniferous forest (codes %s of %s) is ignored, since no codes tell pine from spruce: "
            "give volume rasters with --pine and --spruce", codes, path,
        )  # fmt: skip


class RasterCells:
    """One layer of a raster, read pixel by pixel onto a grid, without interpolation.

    Raises
    ------
    InputError
        If the raster has several layers, lies on another grid and `resample` is False, or elsewhere.
    """

    def __init__(self, source: Source, grid: GridSpec, path: str, *, resample: bool) -> None:
        self.source = source
        self.path = path
        self._grid = grid
        if len(source.names) != 1:
            raise InputError(
                f"cannot read labels from '{path}', since it has {len(source.names)} layers "
                f"({', '.join(str(n) for n in source.names[:9])}), expected one",
                "Give a raster with one layer of codes.",
            )
        self._aligned = source.grid.is_aligned(grid)
        if not self._aligned and not (resample and source.grid.crs and grid.crs):
            raise InputError(
                f"cannot lay '{path}' on the bands, since its grid is\n  {source.grid.describe()}\n"
                f"expected pixels of\n  {grid.describe()}",
                "Type --resample to take the nearest label for each pixel, or give a raster on that grid.",
            )
        if not self._touches():
            raise InputError(
                f"cannot lay '{path}' on the bands, since they lie in different places: it covers\n"
                f"  {source.grid.describe()}\nexpected some of\n  {grid.describe()}",
                "Give the raster of the same region.",
            )

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """(values in the raster's own type (y, x), bool (y, x) True where the raster has a pixel)."""
        if self._aligned:
            row, col = self.source.grid.offset_of(self._grid)
            there = Window(window.row + row, window.col + col, window.height, window.width)
            return self._crop(there)
        rows, cols = self._places(window)
        extent = self.source.grid.shape
        inside = (rows >= 0) & (rows < extent[0]) & (cols >= 0) & (cols < extent[1])
        if not inside.any():
            return np.zeros(window.shape, dtype=np.dtype(self.source.dtypes[0])), inside
        top, left = int(rows[inside].min()), int(cols[inside].min())
        bottom, right = int(rows[inside].max()) + 1, int(cols[inside].max()) + 1
        if (bottom - top) * (right - left) > MAX_READ and max(window.shape) > 1:
            return self._in_halves(window)
        values = self.source.read([0], Window(top, left, bottom - top, right - left))[0]
        rows, cols = np.where(inside, rows - top, 0), np.where(inside, cols - left, 0)
        return values[rows, cols], inside

    def identity(self) -> dict[str, Any]:
        """Name, bytes and sha256 of the file."""
        return self.source.identity()

    def _touches(self) -> bool:
        grid, there = self._grid, self.source.grid
        if self._aligned:
            row, col = there.offset_of(grid)
            common = Window(row, col, *grid.shape).intersect(there.extent)
            return common.height > 0 and common.width > 0
        left, bottom, right, top = transform_bounds(there.crs, grid.crs, *ordered(there.bounds))
        a, b, c, d = ordered(grid.bounds)
        return left < c and a < right and bottom < d and b < top

    def _crop(self, there: Window) -> tuple[np.ndarray, np.ndarray]:
        common = there.intersect(self.source.grid.extent)
        values = np.zeros(there.shape, dtype=np.dtype(self.source.dtypes[0]))
        inside = np.zeros(there.shape, dtype=bool)
        if common.height and common.width:
            place = common.relative_to(there).slices
            values[place] = self.source.read([0], common)[0]
            inside[place] = True
        return values, inside

    def _in_halves(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        axis = int(window.width >= window.height)
        half = (window.width if axis else window.height) // 2
        first, second = (
            (Window(window.row, window.col, window.height, half),
             Window(window.row, window.col + half, window.height, window.width - half))
            if axis
            else (Window(window.row, window.col, half, window.width),
                  Window(window.row + half, window.col, window.height - half, window.width))
        )  # fmt: skip
        a, b = self.read(first), self.read(second)
        return np.concatenate((a[0], b[0]), axis=axis), np.concatenate((a[1], b[1]), axis=axis)

    def _places(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Row and column in the raster, int64 (y, x), of the centre of each pixel of the window."""
        rows, cols = np.mgrid[0 : window.height, 0 : window.width]
        centre = self._grid.crop(window).transform @ Affine.translation(0.5, 0.5)
        xs: Any
        ys: Any
        xs, ys = centre @ (cols.ravel(), rows.ravel())
        there = self.source.grid
        if there.crs != self._grid.crs:
            xs, ys = (np.asarray(v) for v in transform_points(self._grid.crs, there.crs, xs, ys))
        place = np.stack((~there.transform @ (xs, ys))[::-1])
        # A centre on the line between two source pixels belongs to the right or lower one, always.
        place = np.floor(place + 1e-6)
        place = np.where(np.isfinite(place), place, -1).astype(np.int64)
        return place[0].reshape(window.shape), place[1].reshape(window.shape)


class RasterCodes:
    """Integer codes of a raster; its no data and NaN are no label.

    Attributes
    ----------
    table : ValueTable or None
        What the raster says of its values.
    names : mapping of int to str
        Names of the values in that table.
    """

    def __init__(self, cells: RasterCells) -> None:
        self._cells = cells
        self.table = read_value_table(cells.source)
        self.names: Mapping[int, str] = self.table.names if self.table else {}

    @property
    def nodata(self) -> float | None:
        """No-data value of the file."""
        return self._cells.source.nodata[0]

    def sample(self) -> list[int]:
        """Return some of the codes that occur, in ascending order, for messages."""
        source = self._cells.source
        step = max(1, max(source.grid.shape) // SAMPLED)
        values = source.read_every(step, [0], source.grid.extent)
        found = values[np.isfinite(values)]
        found = found[found != self.nodata] if self.nodata is not None else found
        return [int(code) for code in np.unique(found) if code == int(code)]

    def read(self, window: Window) -> np.ndarray:
        """Codes int64 (y, x), `NO_CODE` where there is no label."""
        values, inside = self._cells.read(window)
        nodata = self._cells.source.nodata[0]
        if nodata is not None:
            inside &= values != nodata
        if values.dtype.kind == "f":
            inside &= ~np.isnan(values)
            odd = inside & (values != np.round(values))
            if odd.any():
                raise InputError(
                    f"cannot read labels from '{self._cells.path}', since it has the value "
                    f"{values[odd][0]:.6g} (and {int(odd.sum()) - 1} px like it), expected whole numbers",
                    "Labels must not be interpolated: give the raster before it was resampled, "
                    "or resample it by nearest neighbour.",
                )
        codes = np.full(values.shape, NO_CODE, dtype=np.int64)
        codes[inside] = values[inside].astype(np.int64)
        return codes

    def identity(self) -> dict[str, Any]:
        """Name, bytes and sha256 of the file."""
        return self._cells.identity()


def near_borders(classes: np.ndarray, width: int) -> np.ndarray:
    """Pixels from which another class lies within `width` pixels in any of the 8 directions.

    Parameters
    ----------
    classes : uint8 (y, x)
        Class numbers 1..254; 255 is ignored and makes no border.
    width
        Pixels; 1 marks the pixels on both sides of each border.

    Returns
    -------
    bool (y, x)

    Examples
    --------
    >>> near_borders(np.array([[1, 1, 1, 2, 2]], np.uint8), 1).tolist()
    [[False, False, True, True, False]]
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # 255 never wins the minimum, nor 0 the maximum.
    lowest = cv2.erode(classes, square)
    highest = cv2.dilate(np.where(classes == IGNORE, 0, classes).astype(np.uint8), square)
    return np.asarray((lowest != highest) & (classes != IGNORE))


def _volume(layer: RasterCells, window: Window) -> np.ndarray:
    """Volume float32 (y, x), NaN where it is unknown."""
    values, inside = layer.read(window)
    nodata = layer.source.nodata[0]
    if nodata is not None:
        inside &= values != nodata
    volume = np.where(inside, values, np.nan).astype(np.float32)
    volume[volume >= VOLUME_NODATA] = np.nan
    return volume
