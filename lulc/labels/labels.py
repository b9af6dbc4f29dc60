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

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.storage import Resource
from lulc.core.text import visible
from lulc.core.windows import Window
from lulc.labels.schemes import SCHEMES, Scheme, count_codes, scheme_of_names
from lulc.labels.value_tables import read_value_table, scheme_of_table, unexplained
from lulc.rasters.codes import SingleLayer
from lulc.rasters.sources import Source, open_source
from lulc.rasters.vectors import CONVERTIBLE, VECTORS, VectorCodes, unreadable

logger = logging.getLogger("lulc")

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
        volumes: tuple[SingleLayer, SingleLayer] | None,
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
        """Return file, field, scheme and the values that make no label, JSON-ready."""
        nodata = self.classes_of_nodata()
        found: dict[str, Any] = {
            "file": Path(self.path).name,
            "scheme": self.scheme.name,
            "origin": self.origin,
        }
        if isinstance(self._codes, VectorCodes) and self._codes.field:
            field = self._codes.field
            found |= {
                "layer": self._codes.layer,
                "field": field.name,
                "type": field.kind,
                **dataclasses.asdict(self._codes.losses()),
            }
        return found | ({"no_data": nodata} if nodata else {})

    def classes_of_nodata(self) -> str:
        """Return the no-data value and the class of that code, whose pixels are no labels; empty for none."""
        if not isinstance(self._codes, RasterCodes) or (nodata := self._codes.nodata) is None:
            return ""
        number = self._bound.classes.get(int(nodata)) if nodata == int(nodata) else None
        return f"{nodata:g} {self.legend.names[number - 1]}" if number not in (None, IGNORE) else ""

    def identity(self) -> list[dict[str, Any]]:
        return [source.identity() for source in (self._codes, *(self._volumes or ()))]

    def close(self) -> None:
        self._resources.close()


def words_of(described: Mapping[str, Any]) -> list[str]:
    """Return `Labels.describe` as sentences: how the file was read, then the values that are no labels."""
    field = f", field '{described['field']}' ({described['type']})" if "field" in described else ""
    words = [f"'{described['file']}'{field}, classes of '{described['scheme']}', {described['origin']}"]
    if "no_data" in described:
        words.append(f"the class {described['no_data']} has none, since its code is the file's no data")
    counts = (
        ("outside", "lie outside the grid"),
        ("partly_outside", "lie partly outside the grid"),
        ("too_small", "hold no pixel centre"),
        ("without_code", "have no code"),
        ("covered", f"lose {described.get('covered_pixels', 0):,} px to later features of other classes"),
    )
    lost = [f"{described[name]:,} {what}" for name, what in counts if described.get(name)]
    if lost:
        words.append(f"of {described['features']:,} features {', '.join(lost)}")
    return list(map(visible, words))


def open_labels(
    path: str,
    grid: GridSpec,
    scheme: Scheme | None = None,
    *,
    field: str | None = None,
    layer: str | None = None,
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
        Raster with one layer of codes, or vector file of polygons or points.
    grid
        Pixels to give classes for. A raster that holds only a part of them, or more, is cropped;
        what it doesn't cover is ignored.
    scheme
        From `lulc.labels.schemes.load_scheme`; None where the file names its classes itself, in a text
        field or a value table.
    field
        Field of a vector file that holds the code or the name; the only one that can where not given.
    layer
        Layer of a vector file that has several.
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
            codes = VectorCodes(path, grid, field, layer=layer, known=known)
        elif field is not None or layer is not None:
            what, option = ("field", "--label-field") if field is not None else ("layer", "--label-layer")
            raise InputError(
                f"cannot read the {what} '{field or layer}' of '{path}', since that is a raster, "
                f"which has no {what}s to choose from",
                f"Leave out {option}.",
            )
        else:
            codes = RasterCodes(opened(path), grid, resample=resample)
        origin = "by the scheme given"
        if scheme is None:
            scheme, origin = _own_scheme(codes, path)
        _check_volumes(scheme, path, pine, spruce)
        volumes = None
        if scheme.by_species and pine is not None and spruce is not None:
            hint = "Give a raster with one layer of volumes."
            layers = [SingleLayer(opened(p), grid, "volumes", hint) for p in (pine, spruce)]
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


class RasterCodes:
    """Integer codes of a raster; missing values are no labels.

    Raises InputError if the raster has several layers, lies elsewhere, or on another grid and `resample` is
    False.

    Attributes
    ----------
    table : ValueTable or None
        What the raster says of its values.
    names : mapping of int to str
        Names of the values in that table.
    """

    def __init__(self, source: Source, grid: GridSpec, *, resample: bool) -> None:
        self._layer = SingleLayer(source, grid, "labels", "Give a raster with one layer of codes.")
        if not source.grid.is_aligned(grid) and not resample:
            raise InputError(
                f"cannot lay '{source.path}' on the bands, since its grid is\n  {source.grid.describe()}\n"
                f"expected pixels of\n  {grid.describe()}",
                "Type --resample to take the nearest label for each pixel, or give a raster on that grid.",
            )
        self.table = read_value_table(source)
        self.names: Mapping[int, str] = self.table.names if self.table else {}

    @property
    def nodata(self) -> float | None:
        """No-data value of the file."""
        return self._layer.layer.nodata

    def sample(self) -> list[int]:
        """Return some of the codes that occur, in ascending order, for messages."""
        extent = self._layer.source.grid.extent
        found = self._layer.values_in(extent, max(1, max(extent.shape) // SAMPLED))
        return [int(code) for code in found]

    def read(self, window: Window) -> np.ndarray:
        """Codes int64 (y, x), `NO_CODE` where there is no label."""
        return self._layer.codes(window)[0]

    def identity(self) -> dict[str, Any]:
        return self._layer.identity()


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


def _volume(layer: SingleLayer, window: Window) -> np.ndarray:
    """Volume float32 (y, x), NaN where it is unknown."""
    volume = layer.numbers(window)
    volume[volume >= VOLUME_NODATA] = np.nan
    return volume
