"""Label rasters and vectors as class numbers on a grid.

Labels are never interpolated. A raster on the same pixels is cropped; on request, one on another grid is read
by nearest neighbour. Polygons and points are rasterized by pixel centres.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
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
"""Rows and columns that are searched for the codes of an error message."""

VOLUME_NODATA = 32766
"""Volume layers of the national forest inventory store 32766 and 32767 outside forest and data."""


class Codes(Protocol):
    """Source codes on a grid, integers (y, x), and the texts that they stand for where they have names."""

    @property
    def names(self) -> Mapping[int, str]: ...

    def read(self, window: Window) -> np.ndarray: ...

    def identity(self) -> dict[str, Any]: ...


class Labels(Resource):
    """Class numbers on a grid; made by `open_labels`, closed as a context manager.

    Attributes
    ----------
    scheme : Scheme
        Scheme that maps codes to classes.
    origin : str
        Source of the scheme, as text for users: named by the user, or found in the file.
    """

    def __init__(
        self, path: str, grid: GridSpec, scheme: Scheme, codes: Codes,
        volumes: Sequence[SingleLayer], resources: ExitStack, origin: str = "",
    ) -> None:  # fmt: skip
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
        return self._bound.remap(self._codes.read(window), *(_volume(v, window) for v in self._volumes))

    def read_level1(self, window: Window) -> np.ndarray:
        """CORINE level-1 groups by code: uint8 (y, x), 1..5, 255 = ignore or no group."""
        return self._bound.remap_level1(self._codes.read(window))

    def count(self, window: Window) -> Counter[int]:
        """Source code to number of pixels in a window."""
        return count_codes(self._codes.read(window))

    def check(self, counts: Counter[int]) -> None:
        """Refuse codes that the scheme doesn't know, all at once, with their numbers of pixels."""
        self._bound.check(counts, f"'{self.path}'")

    def describe(self) -> dict[str, Any]:
        """Return file, field, scheme, lost features and the no-data class, JSON-ready."""
        described: dict[str, Any] = {
            "file": Path(self.path).name, "scheme": self.scheme.name, "origin": self.origin,
        }  # fmt: skip
        if isinstance(self._codes, VectorCodes) and self._codes.field:
            field = self._codes.field
            described |= {"layer": self._codes.layer, "field": field.name, "type": field.kind}
            described |= dataclasses.asdict(self._codes.losses())
        nodata = self.classes_of_nodata()
        return described | ({"no_data": nodata} if nodata else {})

    def classes_of_nodata(self) -> str:
        """Return no-data value and name of the class whose code is the raster's no data; empty for none."""
        if not isinstance(self._codes, RasterCodes) or (nodata := self._codes.nodata) is None:
            return ""
        number = self._bound.classes.get(int(nodata)) if nodata == int(nodata) else None
        return f"{nodata:g} {self.legend.names[number - 1]}" if number not in (None, IGNORE) else ""

    def identity(self) -> list[dict[str, Any]]:
        return [self._codes.identity(), *(volume.identity() for volume in self._volumes)]

    def close(self) -> None:
        self._resources.close()


def words_of(described: Mapping[str, Any]) -> list[str]:
    """Return `Labels.describe` as sentences: how the file was read, then which values and features label
    nothing.
    """
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
        Pixels that get classes. A raster is cropped to them; pixels that it doesn't cover are ignored.
    scheme
        From `lulc.labels.schemes.load_scheme`; None where the file names its classes itself, in a text field
        or a value table.
    field
        Field of a vector file with the code or the name of the class; None for the only one that can hold it.
    layer
        Layer of a vector file that has several.
    pine, spruce
        Volume rasters on any grid, read by nearest neighbour. They split the Finnish codes 25..27.
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
        volumes: list[SingleLayer] = []
        if scheme.by_species and pine is not None and spruce is not None:
            hint = "Give a raster with one layer of volumes."
            volumes = [SingleLayer(opened(p), grid, "volumes", hint) for p in (pine, spruce)]
        labels = Labels(path, grid, scheme, codes, volumes, resources.pop_all(), origin)
        if named := labels.classes_of_nodata():
            logger.warning(
                "the class %s of '%s' has no labels, since its code is the file's no data; if the pixels of "
                "that code are labels, type gdal_edit.py -unsetnodata %s",
                named, path, shlex.quote(path),
            )  # fmt: skip
        return labels


def _own_scheme(codes: VectorCodes | RasterCodes, path: str) -> tuple[Scheme, str]:
    """Return the scheme made from the class names in a file, and where the file has them."""
    if isinstance(codes, VectorCodes):
        assert codes.field
        if not codes.names:
            raise unexplained(path, sorted(v for v in codes.field.values if isinstance(v, int)))
        scheme = scheme_of_names(Path(path).stem, {text: text for text in codes.names.values()})
        return scheme, f"names in the field '{codes.field.name}'"
    table = codes.table
    made = scheme_of_table(table, path) if table else None
    if table is None or made is None:
        raise unexplained(path, codes.sample())
    return made, f"recognised by {table.origin}" if made.name in SCHEMES else f"names in {table.origin}"


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
    """Integer codes of a raster, `NO_CODE` where they are missing.

    `table` is what the raster says of its values, `names` the names in it. Raises InputError if the raster
    has several layers, lies elsewhere, or is on another grid while `resample` is False.
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
        """Return some of the codes in ascending order, for messages."""
        extent = self._layer.source.grid.extent
        return self._layer.values_in(extent, max(1, max(extent.shape) // SAMPLED)).tolist()

    def read(self, window: Window) -> np.ndarray:
        """Codes int64 (y, x)."""
        return self._layer.codes(window)[0]

    def identity(self) -> dict[str, Any]:
        return self._layer.identity()


def near_borders(classes: np.ndarray, width: int) -> np.ndarray:
    """Pixels at most `width` pixels from another class, in any of the 8 directions: bool (y, x).

    `classes` are uint8 (y, x), 1..254; 255 is ignored and makes no border. Width 1 marks the pixels on both
    sides of each border.
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
