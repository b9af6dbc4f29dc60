"""Polygons and points of vector files, read by a reader process and burnt onto a grid."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MergeAlg
from rasterio.features import rasterize

from lulc.core.grid import GridSpec
from lulc.core.reader_process import Apart
from lulc.core.schema import NO_CODE, Code, InputError
from lulc.core.storage import Resource, rename_durably, sha256_of, temporary_folder, write_atomically
from lulc.core.windows import Window, squares_of
from lulc.rasters import guards

if TYPE_CHECKING:
    import geopandas
    from shapely.geometry.base import BaseGeometry

MAX_GEOJSON_BYTES = 64 * 2**20

ROWS = 100_000
"""Features whose fields are read at once."""

MAX_VALUES = 10_000
"""Different values of a field, above which it holds no classes."""

SIDE = 2048
"""Side of the squares in which `VectorCodes.losses` burns polygons."""

MAX_PARQUET_BYTES = 2**30
"""Uncompressed bytes of a GeoParquet file, which is read whole."""

VECTORS = {
    ".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".shp": "ESRI Shapefile",
    ".fgb": "FlatGeobuf", ".parquet": "GeoParquet", ".geoparquet": "GeoParquet",
}  # fmt: skip
"""Endings of vector files that are read, and the driver of each."""

CONVERTIBLE = (".zip", ".gml", ".kml")
"""Endings of vector files that are not read but converted, since few drivers mean few surprises."""

_MARKS: Mapping[str, tuple[bytes, ...]] = {
    "GPKG": (b"SQLite format 3\0",),
    "GeoJSON": (b"{",),
    "ESRI Shapefile": (b"\0\0\x27\x0a",),
    "FlatGeobuf": (b"fgb",),
    "GeoParquet": (b"PAR1",),
}
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
_SHAPEFILE_PARTS = (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx")


@dataclass(frozen=True)
class Field:
    """Content of a field of a vector file.

    Parameters
    ----------
    values
        Different values and how many features have each: integers, or texts where one value is no integer.
        Empty where the field holds anything else.
    """

    name: str
    kind: str
    values: Mapping[Code, int] = field(default_factory=dict, repr=False)

    @property
    def is_text(self) -> bool:
        return any(isinstance(value, str) for value in self.values)

    @property
    def is_identifier(self) -> bool:
        """True where each of several features has a value of its own, as an identifier has."""
        return len(self.values) > 1 and max(self.values.values()) == 1

    def describe(self) -> str:
        """Name, type and some values, for messages."""
        some = ", ".join(str(value)[:40] for value in list(self.values)[:4])
        more = ", ..." if len(self.values) > 4 else ""
        return f"{self.name} ({self.kind}{': ' if some else ''}{some}{more})"


@dataclass(frozen=True)
class Losses:
    """Features of a vector file that label less than they cover.

    Parameters
    ----------
    without_code
        Those on the grid whose field is empty.
    outside, partly_outside
        Those that lie outside the grid, wholly or partly.
    too_small
        Those on the grid that hold no pixel centre.
    covered, covered_pixels
        Those that lose pixels to a later feature of another code, and how many pixels in all.
    """

    features: int
    without_code: int = 0
    outside: int = 0
    partly_outside: int = 0
    too_small: int = 0
    covered: int = 0
    covered_pixels: int = 0


class VectorCodes:
    """Polygons or points of a vector file, burnt onto a grid window by window.

    A pixel has the code of the polygon that holds its centre, or of the point that lies in it; of several,
    the last in the file. Raises InputError if the file is none of these, has no CRS, or layer or field isn't
    clear.

    Parameters
    ----------
    path
        Regular file of one of the kinds in `VECTORS`, by name and by content.
    field
        Field with the code, an integer or a text; where None, the one field that can hold it.
    layer
        Layer of a file with several; None for the only one with geometries.
    presence
        True to burn 1 for every feature; no field is read.
    known
        Tells whether a code or text is known; None where the file must name its classes itself.

    Attributes
    ----------
    names : dict of int to str
        Texts by the integer that is burnt for them; empty where the field holds integers.
    """

    def __init__(
        self,
        path: str,
        grid: GridSpec,
        field: str | None = None,
        *,
        layer: str | None = None,
        presence: bool = False,
        known: Callable[[Code], bool] | None = None,
    ) -> None:
        self.path = path
        self._grid = grid
        self._file = VectorFile(path)
        self.layer = self._file.choose(layer, option=None if presence else "--label-layer")
        info = self._file.info(self.layer)
        self._crs = info["crs"]
        self._features = int(info["features"])
        _check_place(path, info, grid)
        west, _, east, _ = info["total_bounds"] or (-180, -90, 360, 90)
        self._reach = west, east
        self.field = None
        if not presence:
            self.field = _choose_field(self._file, self.layer, info["fields"], field, known)
        texts = sorted(map(str, self.field.values)) if self.field and self.field.is_text else []
        self.names = dict(enumerate(texts))
        self._index = {text: index for index, text in self.names.items()}
        # These have no spatial index: they are read once, whole, which their size limits allow.
        self._whole = self._load(None) if self._file.driver in ("GeoJSON", "GeoParquet") else None

    def read(self, window: Window) -> np.ndarray:
        """Codes int32 (y, x), `NO_CODE` where there is no feature."""
        return self._burn(self._near(window), window)

    def losses(self) -> Losses:
        """Count the features that label less than they cover, square by square."""
        found = _Tally(self._grid)
        with _measuring(self.path):
            for window in squares_of(self._grid.extent, SIDE):
                features = self._near(window)
                if len(features):
                    found.add(features, window, self._burn(features, window))
        return found.result(self._features)

    def identity(self) -> dict[str, Any]:
        """Name, bytes and sha256 of the file; of a shapefile's parts together."""
        file = Path(self.path)
        files = [file, *(_parts_of(file) if self._file.driver == "ESRI Shapefile" else [])]
        hashes = [sha256_of(one) for one in files]
        whole = hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return {"name": file.name, "bytes": sum(one.stat().st_size for one in files), "sha256": whole}

    def _burn(self, features: geopandas.GeoDataFrame, window: Window) -> np.ndarray:
        burnt = np.full(window.shape, NO_CODE, dtype=np.int32)
        labelled = features[features["code"] != NO_CODE]
        shapes = list(zip(labelled.geometry, labelled["code"], strict=True))
        if shapes:
            rasterize(shapes, out=burnt, transform=self._grid.crop(window).transform)
        return burnt

    def _near(self, window: Window) -> geopandas.GeoDataFrame:
        return self._whole if self._whole is not None else self._load(self._grid.crop(window))

    def _load(self, grid: GridSpec | None) -> geopandas.GeoDataFrame:
        """Features near a grid (all for None) in its CRS, in file order, with an int32 column "code"."""
        import pandas

        name = self.field.name if self.field else None
        parts = [self._file.read(self.layer, [name] if name else [], box) for box in self._boxes(grid)]
        frame = pandas.concat(parts).sort_index() if len(parts) > 1 else parts[0]
        frame = frame[~(frame.index.duplicated() | frame.geometry.isna() | frame.geometry.is_empty)]
        kinds = set(frame.geometry.geom_type) - {"Polygon", "MultiPolygon", "Point", "MultiPoint"}
        if kinds:
            raise unreadable(self.path, f"it has features of the type {', '.join(sorted(kinds))}")
        frame = frame.assign(code=self._codes_of(frame[name]) if name else np.int32(1))
        frame = convert(frame, self._grid.crs, self.path)
        if self._grid.crs.is_geographic:
            frame = frame.set_geometry(_turned(frame.geometry, self._grid))
        return frame[np.isfinite(frame.bounds).all(axis=1)]

    def _boxes(self, grid: GridSpec | None) -> list[tuple[float, float, float, float] | None]:
        """Boxes of the file that hold what is near a grid; degrees may be -180..180 or 0..360 in it."""
        if grid is None:
            return [None]
        with _converting(self.path):
            crs = CRS.from_user_input(self._crs)
            a, b, c, d = grid.bounds_on(crs)
        margin = 0.01 * max(c - a, d - b)
        west, east = self._reach if crs.is_geographic else (np.inf, -np.inf)
        turns = [0, *(turn for turn in (-360, 360) if a + turn <= east and c + turn >= west)]
        return [(a - margin + turn, b - margin, c + margin + turn, d + margin) for turn in turns]

    def _codes_of(self, values: Iterable[Any]) -> np.ndarray:
        """Codes int32 of a field's values; a missing value is no label."""
        codes = [code_of(value) for value in values]
        if self.names:
            codes = [None if code is None else self._index[str(code)] for code in codes]
        return np.array([NO_CODE if code is None else code for code in codes], dtype=np.int32)


def _turned(shapes: geopandas.GeoSeries, grid: GridSpec) -> geopandas.GeoSeries:
    """Return shapes in degrees, whose parts beyond 180 degrees from the grid are turned to its side."""
    import shapely
    from shapely.affinity import translate

    left, _, right, _ = grid.bounds
    parts, owners = shapely.get_parts(shapes.values, return_index=True)
    west, _, east, _ = shapely.bounds(parts).T
    turns = np.round(((left + right) - (west + east)) / 720)
    turns[(west < right) & (east > left)] = 0
    found = shapes.copy()
    for i in np.unique(owners[turns != 0]):
        own = [
            translate(part, 360 * turn)
            for part, turn in zip(parts[owners == i], turns[owners == i], strict=True)
        ]
        found.iloc[i] = own[0] if len(own) == 1 else shapely.union_all(own)
    return found


def read_region(path: str, crs: Any) -> BaseGeometry:
    """Return the union of the polygons of a vector file in a CRS.

    Raises InputError if the file is no vector file of one layer with a CRS, or holds no polygon.
    """
    import shapely

    shapes = read_features(path, columns=[]).geometry
    if not shapes.crs:
        raise unreadable(path, "it has no CRS")
    with _measuring(path):
        shapes = shapes[shapes.geom_type.isin(("Polygon", "MultiPolygon"))].make_valid()
        if not len(shapes) or not shapely.area(shapes.values).sum() > 0:
            raise unreadable(path, "none of its features is a polygon with an area")
        region: BaseGeometry = convert(shapes, crs, path).union_all()
    return region


def convert(features: Any, crs: Any, path: str) -> Any:
    """Return features of a file in another CRS.

    Raises InputError if there is no way from their CRS to that one.
    """
    with _converting(path):
        return features.to_crs(crs)


@contextlib.contextmanager
def _converting(path: str) -> Iterator[None]:
    try:
        # Within it, GDAL reports to Python instead of printing.
        with rasterio.Env():
            yield
    except Exception as error:  # GDAL and PROJ each fail in several ways at a damaged CRS
        raise unreadable(path, f"its CRS can't be converted ({str(error)[:200]})") from error


@contextlib.contextmanager
def _measuring(path: str) -> Iterator[None]:
    from shapely.errors import ShapelyError

    try:
        yield
    except ShapelyError as error:
        raise unreadable(path, f"a shape in it is damaged ({str(error)[:200]})") from error


class _Tally:
    """Losses as they are counted square by square, by feature."""

    def __init__(self, grid: GridSpec) -> None:
        self._grid = grid
        self._box = grid.bounds
        self._partly: set[Any] = set()
        self._outside: set[Any] = set()
        self._seen: set[Any] = set()
        self._without_code: set[Any] = set()
        self._holding: set[Any] = set()
        self._lost: Counter[Any] = Counter()

    def add(self, features: geopandas.GeoDataFrame, window: Window, burnt: np.ndarray) -> None:
        """Count what the features of a square lose there."""
        self._look_outside(features[~features.index.isin(list(self._seen))])
        features = features[features["code"] != NO_CODE]
        transform = self._grid.crop(window).transform
        order = np.arange(1, len(features) + 1)
        if not len(features):
            return
        winners = rasterize(zip(features.geometry, order, strict=True), window.shape, transform=transform)
        self._holding |= set(features.index[np.unique(winners[winners > 0]) - 1])
        depth = rasterize(
            ((shape, 1) for shape in features.geometry), window.shape, transform=transform,
            merge_alg=MergeAlg.add, dtype="int32",
        )  # fmt: skip
        # Only features near pixels of several are burnt one by one.
        several = np.pad((depth > 1).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        for fid, shape, code in zip(features.index, features.geometry, features["code"], strict=True):
            part = self._grid.window_of(shape.bounds).grow(1).intersect(window).relative_to(window)
            top, left, (bottom, right) = part.row, part.col, part.stop
            if not part.height or not part.width:
                continue
            corners = (
                several[bottom, right] - several[top, right] - several[bottom, left] + several[top, left]
            )
            if not corners:
                continue
            placed = transform @ Affine.translation(left, top)
            own = rasterize([(shape, 1)], part.shape, transform=placed) > 0
            if own.any():
                self._holding.add(fid)
            self._lost[fid] += int((own & (burnt[part.slices] != code)).sum())

    def _look_outside(self, features: geopandas.GeoDataFrame) -> None:
        self._seen |= set(features.index)
        import shapely

        inside = shapely.clip_by_rect(features.geometry.values, *ordered(self._box))
        whole, kept = shapely.area(features.geometry.values), shapely.area(inside)
        for fid, empty, partly in zip(
            features.index, shapely.is_empty(inside), kept < 0.999 * whole, strict=True
        ):
            if empty:
                self._outside.add(fid)
            elif partly:
                self._partly.add(fid)
        self._without_code |= set(features.index[features["code"] == NO_CODE]) - self._outside

    def result(self, features: int) -> Losses:
        """Return the sums."""
        here = self._seen - self._outside
        lost = [pixels for pixels in self._lost.values() if pixels]
        return Losses(
            features=features,
            without_code=len(self._without_code),
            outside=features - len(here),
            partly_outside=len(self._partly),
            too_small=len(here - self._holding - self._without_code),
            covered=len(lost),
            covered_pixels=sum(lost),
        )


def _check_vector(path: str) -> str:
    """The driver of a vector file, whose name and first bytes agree."""
    file = Path(path)
    if "://" in path or path.startswith("/vsi") or not file.is_file():
        raise InputError(
            f"cannot read the vector file '{path}', since there is no regular file of that name",
            "Check the path; remote files must be fetched first.",
        )
    driver = VECTORS.get(file.suffix.lower())
    if driver is None:
        raise unreadable(path, f"its name ends in '{file.suffix}'")
    with open(file, "rb") as stream:
        head = stream.read(100)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip() if driver == "GeoJSON" else head
    if not start.startswith(_MARKS[driver]) or (driver == "GPKG" and head[68:72] not in _GEOPACKAGE_IDS):
        raise unreadable(path, f"its content is no {_KINDS.get(driver, driver)}")
    if driver == "GeoJSON" and file.stat().st_size > MAX_GEOJSON_BYTES:
        raise InputError(
            f"cannot read '{path}', since it has {file.stat().st_size} bytes, "
            f"expected at most {MAX_GEOJSON_BYTES} for GeoJSON",
            f"Convert it: ogr2ogr {file.stem}.gpkg {file.name}",
        )
    if driver == "ESRI Shapefile":
        _check_shapefile(file)
    return driver


_KINDS = {"GPKG": "GeoPackage", "ESRI Shapefile": "shapefile"}


def _parts_of(file: Path) -> list[Path]:
    """The files beside a shapefile that belong to it."""
    parts = [file.with_suffix(cased) for part in _SHAPEFILE_PARTS for cased in (part, part.upper())]
    return [part for part in parts if part.is_file()]


def _check_shapefile(file: Path) -> None:
    parts = _parts_of(file)
    for part in parts:
        guards.check_inside(part, file.parent, str(file))
    missing = {".shx", ".dbf"} - {part.suffix.lower() for part in parts}
    if missing:
        raise InputError(
            f"cannot read '{file}', since a part of the shapefile is missing, "
            f"expected {' and '.join(sorted(file.stem + end for end in missing))} beside it",
            "Copy all files of the shapefile into one folder.",
        )


class VectorFile(Resource):
    """A vector file that a reader process has opened.

    Raises InputError if it is none, is damaged, or computes what it gives.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.driver = _check_vector(path)
        files = [Path(path), *(_parts_of(Path(path)) if self.driver == "ESRI Shapefile" else [])]
        stored = sum(file.stat().st_size for file in files)
        self._process = Apart("lulc.rasters.features.Features", path, self.driver, path=path, stored=stored)
        self.layers: list[str] = self._process.made

    def choose(
        self, wanted: str | None = None, *, preferred: str | None = None, option: str | None = None
    ) -> str:
        """Return the wanted layer, the preferred one where it is there, or the only one with geometries.

        `option` is the one that names a layer, for the message.
        """
        return _check_listed(self.path, self.layers, wanted, preferred, option)

    def info(self, layer: str) -> dict[str, Any]:
        """Return ``crs``, ``features``, ``fields`` (name to type) and ``total_bounds`` of a layer."""
        found: dict[str, Any] = self._process.call("info", layer)
        self._crs = found["crs"]
        return found

    def read(
        self, layer: str, columns: list[str] | None, box: Sequence[float] | None = None
    ) -> geopandas.GeoDataFrame:
        """Geometries and some columns (all for None) of the features in a box, by number, in file order."""
        # It takes longer to load than most rasters take to open.
        import geopandas
        import shapely

        found = self._process.call("read", layer, columns, box)
        ends = np.cumsum(found["lengths"])
        content = found["shapes"].tobytes()
        parts = zip(ends - found["lengths"], ends, strict=True)
        shapes = shapely.from_wkb([content[start:end] or None for start, end in parts])
        with _converting(self.path):
            return geopandas.GeoDataFrame(
                found["columns"], geometry=shapes, crs=self._crs, index=found["numbers"]
            )

    def pieces(self, layer: str, name: str) -> Iterator[list[Any]]:
        """Yield the values of a field, piece by piece."""
        skipped = 0
        while True:
            values = self._process.call("values", layer, name, skipped, ROWS)
            yield values
            skipped += ROWS
            if len(values) < ROWS:
                return

    def close(self) -> None:
        self._process.close()


def read_features(
    path: str, *, layer: str | None = None, preferred: str | None = None, columns: list[str] | None = None
) -> geopandas.GeoDataFrame:
    """Return all features of a layer of a vector file.

    Raises InputError if the file is none, or its layer isn't clear.

    Parameters
    ----------
    layer, preferred
        Layer that is wanted, and the one to take where it is there; else the only one with geometries.
    columns
        Fields to read; None for all.
    """
    with VectorFile(path) as file:
        chosen = file.choose(layer, preferred=preferred)
        file.info(chosen)
        return file.read(chosen, columns)


def _check_listed(
    path: str, layers: list[str], wanted: str | None, preferred: str | None, option: str | None
) -> str:
    """The layer to read, refused where it is not clear or not there."""
    listed = ", ".join(layers[:20]) + (", ..." if len(layers) > 20 else "")
    wanted = _spelled(wanted, layers)
    if wanted is not None and wanted not in layers:
        raise InputError(
            f"cannot read the layer '{wanted}' of '{path}', since it has only {listed or 'no layers'}",
            f"Type {option} {shlex.quote(layers[0])}" if option and layers else "Check the file in QGIS.",
        )
    chosen = [name for name in (wanted, preferred) if name in layers] or layers
    if len(layers) == 0:
        raise unreadable(path, "it has no layer with geometries")
    if len(layers) > 1 and chosen is layers:
        command = ["ogr2ogr", str(Path(path).with_name(f"{layers[0]}.gpkg")), path, layers[0]]
        raise InputError(
            f"cannot tell which layer of '{path}' to read, since it has {len(layers)} layers "
            f"with geometries ({listed}), expected one or a choice",
            f"Type {option} with one of them, for example {option} {shlex.quote(layers[0])}"
            if option
            else f"Write the layer to a file of its own: {shlex.join(command)}",
        )
    return str(chosen[0])


def _check_place(path: str, info: Mapping[str, Any], grid: GridSpec) -> None:
    """Refuse a layer whose place is not known: without CRS, or with metres that are called degrees."""
    code = grid.crs.to_epsg() if grid.crs else None
    assign = shlex.join(
        ["ogr2ogr", "-a_srs", f"EPSG:{code or 'CODE'}", str(Path(path).with_suffix("")) + "_crs.gpkg", path]
    )
    if not info["crs"] or not grid.crs:
        name = f"'{path}'" if not info["crs"] else "the grid of the bands"
        raise InputError(
            f"cannot lay '{path}' on the bands, since {name} has no CRS, expected one",
            f"Write its CRS; where it is that of the bands: {assign}"
            if not info["crs"]
            else "Write it into the bands.",
        )
    box = info.get("total_bounds")
    # Longitudes may count to 360.
    with _converting(path):
        geographic = CRS.from_user_input(info["crs"]).is_geographic
    if box is not None and geographic and np.nanmax(np.abs(box)) > 361:
        known = str(info["crs"])[:40] + (_DEGREES if path.lower().endswith("json") else "")
        raise InputError(
            f"cannot lay '{path}' on the bands, since its coordinates ({', '.join(f'{v:.9g}' for v in box)}) "
            f"are no degrees, but its CRS is {known}, "
            "expected the CRS of its coordinates",
            f"Write the right CRS; where it is that of the bands: {assign}",
        )


_DEGREES = " (GeoJSON that names none is in degrees, by RFC 7946)"


def _spelled(wanted: str | None, names: Collection[str]) -> str | None:
    """Return a name as the file spells it, where capital letters alone differ from one of its names."""
    if wanted is None or wanted in names:
        return wanted
    alike = [name for name in names if name.casefold() == wanted.casefold()]
    return alike[0] if len(alike) == 1 else wanted


def _choose_field(
    file: VectorFile,
    layer: str,
    kinds: Mapping[str, str],
    wanted: str | None,
    known: Callable[[Code], bool] | None,
) -> Field:
    """Return the field that is named, or the only one that can hold codes.

    Of several integer or text fields, one is taken where all its values are known and no other's are, and
    where its values recur, which those of an identifier don't. Without `known` the only text field is taken.
    """
    path = file.path
    wanted = _spelled(wanted, kinds)
    if wanted is not None:
        if wanted not in kinds:
            listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
            raise InputError(
                f"cannot read codes from '{path}', since it has no field '{wanted}'; its fields are {listed}",
                "Type --label-field with the field that holds the code.",
            )
        return _checked_field(path, _read_field(file, layer, wanted, kinds[wanted]))
    found = [_read_field(file, layer, name, kind) for name, kind in kinds.items()]
    likely = [f for f in found if f.values]
    if known is None:
        fitting = [f for f in likely if f.is_text]
        if len(fitting) == 1 or len(likely) == 1:
            return (fitting or likely)[0]
    elif len(likely) == 1:
        return likely[0]
    else:
        fitting = [f for f in likely if all(map(known, f.values))]
        if len(fitting) == 1 and not fitting[0].is_identifier:
            return fitting[0]
    fields = ", ".join(f.describe() for f in found) or "none"
    ranked = sorted(fitting or likely, key=lambda f: (f.is_identifier, _IDENTIFIER(f.name) is not None))
    if not ranked:
        raise InputError(
            f"cannot read codes from '{path}', since none of its fields holds integers or names; "
            f"its fields are {fields}",
            "Add a field with the code or the name of the class in QGIS.",
        )
    raise InputError(
        f"cannot tell which field of '{path}' holds the class; its fields are {fields}",
        f"Type --label-field with the field that holds the class, for example --label-field "
        f"{shlex.quote(ranked[0].name)}"
        + ("" if fitting or known else ", and --scheme with what its numbers mean"),
    )


_IDENTIFIER = re.compile(r"(?i)(.*_)?(id|fid|gid|uid|uuid|objectid|nr|no|number)").fullmatch
"""Usual names of identifiers: they only decide which field an error message proposes."""


def _read_field(file: VectorFile, layer: str, name: str, kind: str) -> Field:
    """Return a field with its different values, read in pieces; without any where it can't hold codes."""
    if not kind.startswith(("int", "uint", "float", "object", "str")):
        return Field(name, kind)
    spells = kind.startswith(("object", "str"))
    values: Counter[Code] = Counter()
    for piece in file.pieces(layer, name):
        for value, count in Counter(piece).items():
            code = code_of(value)
            if code is not None:
                values[code] += count
        if len(values) > MAX_VALUES or not (spells or all(isinstance(v, int) for v in values)):
            return Field(name, kind)
    if any(isinstance(value, str) for value in values):
        texts: Counter[Code] = Counter()
        for code, count in values.items():
            texts[str(code)] += count
        values = texts
    return Field(name, "text" if spells else kind, values)


def _checked_field(path: str, found: Field) -> Field:
    if not found.values:
        raise InputError(
            f"cannot read codes from '{path}', since its field {found.describe()} holds neither whole "
            f"numbers nor at most {MAX_VALUES} different texts",
            "Type --label-field with the field that holds the code.",
        )
    return found


def code_of(value: Any) -> Code | None:
    """Return the code that a field's value means: an integer where it spells one, else its text.

    Examples
    --------
    >>> code_of(3.0), code_of(" 7 "), code_of("Mixed  forest"), code_of(None), code_of("")
    (3, 7, 'Mixed forest', None, None)
    >>> code_of("1_2"), code_of("1E2")
    ('1_2', '1E2')
    """
    if value is None or value != value:
        return None
    text = " ".join(str(value).split())
    # Python's own numbers may hold underscores and exponents, which in a code are letters like others.
    spelt = re.fullmatch(r"([+-]?[0-9]{1,99})(\.0*)?", text)
    return int(spelt[1]) if spelt and abs(int(spelt[1])) < -NO_CODE else text or None


def ordered(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) of two opposite corners in any order."""
    a, b, c, d = bounds
    return min(a, c), min(b, d), max(a, c), max(b, d)


@contextlib.contextmanager
def write_package(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of a GeoPackage to write layers to; whole or not at all, equal layers give equal bytes.

    Raises InputError if the disk is full.
    """
    import pyogrio

    path = Path(path)
    # SQLite keeps further files beside its own while it writes.
    with temporary_folder(path) as folder, write_atomically(path) as temporary:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
        try:
            yield folder / path.name
        except RuntimeError as error:
            raise InputError(
                f"cannot write '{path}', since GDAL stopped: {error}",
                "See that its disk has room, and that files may be written to its folder.",
            ) from error
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
        rename_durably(folder / path.name, temporary)


def unreadable(path: str, has: str) -> InputError:
    """Error for a vector file that cannot be read, with the command that converts it."""
    file = Path(path)
    suffix = file.suffix.lower()
    command = ["ogr2ogr", str(file.with_suffix(".gpkg")), f"/vsizip/{path}" if suffix == ".zip" else path]
    return InputError(
        f"cannot read labels from '{path}', since {has}, expected one layer of polygons or points "
        "in a GeoPackage (.gpkg), GeoJSON (.geojson), shapefile (.shp), FlatGeobuf (.fgb) or "
        "GeoParquet (.parquet)",
        f"Convert it: {shlex.join(command)}"
        if suffix in CONVERTIBLE
        else "Check the file in QGIS, or convert it with ogr2ogr.",
    )
