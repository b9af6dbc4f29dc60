"""Polygons and points of vector files, read by a reader process and rasterized on a grid."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
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
"""Different values above which a field can't hold classes."""

SIDE = 2048
"""Side of the squares in which `VectorCodes.losses` rasterizes polygons."""

MAX_PARQUET_BYTES = 2**30
"""Uncompressed bytes of a GeoParquet file, which is read whole."""

VECTORS = {
    ".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".shp": "ESRI Shapefile",
    ".fgb": "FlatGeobuf", ".parquet": "GeoParquet", ".geoparquet": "GeoParquet",
}  # fmt: skip
"""Endings of vector files that are read, and the driver of each."""

CONVERTIBLE = (".zip", ".gml", ".kml")
"""Endings of vector files that users have to convert, since every driver is one more risk."""

_MAGIC = {
    "GPKG": b"SQLite format 3\0", "GeoJSON": b"{", "ESRI Shapefile": b"\0\0\x27\x0a", "FlatGeobuf": b"fgb",
    "GeoParquet": b"PAR1",
}  # fmt: skip
"""First bytes of a file, by driver."""
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
_SHAPEFILE_PARTS = (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx")


@dataclass(frozen=True)
class Field:
    """A field of a vector file.

    Parameters
    ----------
    values
        Number of features of each value: of integers, or of texts if one value is no integer. Empty where the
        field holds anything else.
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
        """Return name, type and up to four values, for messages."""
        shown = ", ".join(str(value)[:40] for value in list(self.values)[:4])
        more = ", ..." if len(self.values) > 4 else ""
        return f"{self.name} ({self.kind}{': ' if shown else ''}{shown}{more})"


@dataclass(frozen=True)
class Losses:
    """Features of a vector file that label less than their area, and how many of them there are.

    Parameters
    ----------
    without_code
        On the grid, with an empty field.
    outside, partly_outside
        Wholly or partly outside the grid.
    too_small
        On the grid, but without a pixel centre.
    covered, covered_pixels
        Those that lose pixels to a later feature of another code, and the number of these pixels.
    """

    features: int
    without_code: int = 0
    outside: int = 0
    partly_outside: int = 0
    too_small: int = 0
    covered: int = 0
    covered_pixels: int = 0


class VectorCodes:
    """Polygons or points of a vector file, rasterized window by window.

    A pixel gets the code of the polygon that holds its centre, or of the point in it; of several, the last in
    the file. Raises InputError if the file is none of these, has no CRS, or layer or field isn't clear.

    Parameters
    ----------
    path
        Regular file of one of the kinds in `VECTORS`, by name and by content.
    field
        Field with the code, an integer or a text; None for the only field that can hold it.
    layer
        Layer of a file with several; None for the only one with geometries.
    presence
        Rasterize 1 for every feature and read no field.
    known
        Returns whether a code or text is known; None where the file must name its classes itself.

    Attributes
    ----------
    names : dict of int to str
        Text of each rasterized integer; empty where the field holds integers.
    """

    def __init__(
        self, path: str, grid: GridSpec, field: str | None = None, *, layer: str | None = None,
        presence: bool = False, known: Callable[[Code], bool] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self._grid = grid
        self._file = VectorFile(path)
        self.layer = self._file.choose(layer, option=None if presence else "--label-layer")
        info = self._file.info(self.layer)
        self._crs = info["crs"]
        self._features = int(info["features"])
        _check_georeference(path, info, grid)
        west, _, east, _ = info["total_bounds"] or (-180, -90, 360, 90)
        self._longitudes = west, east
        self.field = None
        if not presence:
            self.field = _choose_field(self._file, self.layer, info["fields"], field, known)
        texts = sorted(map(str, self.field.values)) if self.field and self.field.is_text else []
        self.names = dict(enumerate(texts))
        self._index = {text: index for index, text in self.names.items()}
        # These have no spatial index, but a size limit: they are read once, whole.
        self._whole = self._load(None) if self._file.driver in ("GeoJSON", "GeoParquet") else None

    def read(self, window: Window) -> np.ndarray:
        """Codes int32 (y, x), `NO_CODE` where there is no feature."""
        return self._burn(self._near(window), window)

    def losses(self) -> Losses:
        """Count the features that label less than their area, square by square."""
        counter = _LossCounter(self._grid)
        with _measuring(self.path):
            for window in squares_of(self._grid.extent, SIDE):
                features = self._near(window)
                if len(features):
                    counter.add(features, window, self._burn(features, window))
        return counter.result(self._features)

    def identity(self) -> dict[str, Any]:
        """Return name, bytes and sha256 of the file, or of all files of a shapefile."""
        file = Path(self.path)
        files = self._file.files
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
        """Return the features near a grid, None for all, in its CRS and file order, with an int32 column
        "code".
        """
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
            frame = frame.set_geometry(_shift_longitudes(frame.geometry, self._grid))
        return frame[np.isfinite(frame.bounds).all(axis=1)]

    def _boxes(self, grid: GridSpec | None) -> list[tuple[float, float, float, float] | None]:
        """Return boxes, in the file's CRS, around a grid; longitudes may be -180..180 or 0..360 in it."""
        if grid is None:
            return [None]
        with _converting(self.path):
            crs = CRS.from_user_input(self._crs)
            a, b, c, d = grid.bounds_on(crs)
        margin = 0.01 * max(c - a, d - b)
        west, east = self._longitudes if crs.is_geographic else (np.inf, -np.inf)
        shifts = [0, *(shift for shift in (-360, 360) if a + shift <= east and c + shift >= west)]
        return [(a - margin + shift, b - margin, c + margin + shift, d + margin) for shift in shifts]

    def _codes_of(self, values: Iterable[Any]) -> np.ndarray:
        """Return codes int32 of a field's values, `NO_CODE` for missing ones."""
        codes = [code_of(value) for value in values]
        if self.names:
            codes = [None if code is None else self._index[str(code)] for code in codes]
        return np.array([NO_CODE if code is None else code for code in codes], dtype=np.int32)


def _shift_longitudes(shapes: geopandas.GeoSeries, grid: GridSpec) -> geopandas.GeoSeries:
    """Return shapes in degrees, with parts more than 180 degrees from the grid shifted by 360 degrees."""
    import shapely
    from shapely.affinity import translate

    left, _, right, _ = grid.bounds
    parts, owners = shapely.get_parts(shapes.values, return_index=True)
    west, _, east, _ = shapely.bounds(parts).T
    turns = np.round(((left + right) - (west + east)) / 720)
    turns[(west < right) & (east > left)] = 0
    shifted = shapes.copy()
    for i in np.unique(owners[turns != 0]):
        of_shape = zip(parts[owners == i], turns[owners == i], strict=True)
        moved = [translate(part, 360 * turn) for part, turn in of_shape]
        shifted.iloc[i] = moved[0] if len(moved) == 1 else shapely.union_all(moved)
    return shifted


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
    """Return features of a file in another CRS; raises InputError if they can't be transformed to it."""
    with _converting(path):
        return features.to_crs(crs)


@contextlib.contextmanager
def _converting(path: str) -> Iterator[None]:
    try:
        # Within an Env, GDAL reports errors to Python instead of printing them.
        with rasterio.Env():
            yield
    except Exception as error:  # GDAL and PROJ raise several kinds of errors for a damaged CRS
        raise unreadable(path, f"its CRS can't be converted ({str(error)[:200]})") from error


@contextlib.contextmanager
def _measuring(path: str) -> Iterator[None]:
    from shapely.errors import ShapelyError

    try:
        yield
    except ShapelyError as error:
        raise unreadable(path, f"a shape in it is damaged ({str(error)[:200]})") from error


class _LossCounter:
    """Counts losses square by square; sets hold the numbers of features."""

    def __init__(self, grid: GridSpec) -> None:
        self._grid = grid
        self._seen: set[Any] = set()
        self._outside: set[Any] = set()
        self._partly_outside: set[Any] = set()
        self._without_code: set[Any] = set()
        self._with_pixels: set[Any] = set()
        self._lost_pixels: Counter[Any] = Counter()

    def add(self, features: geopandas.GeoDataFrame, window: Window, burnt: np.ndarray) -> None:
        """Count the pixels that the features of a square lose there."""
        self._compare_with_grid(features[~features.index.isin(list(self._seen))])
        features = features[features["code"] != NO_CODE]
        if not len(features):
            return
        transform = self._grid.crop(window).transform
        order = np.arange(1, len(features) + 1)
        winners = rasterize(zip(features.geometry, order, strict=True), window.shape, transform=transform)
        self._with_pixels |= set(features.index[np.unique(winners[winners > 0]) - 1])
        depth = rasterize(
            ((shape, 1) for shape in features.geometry), window.shape, transform=transform,
            merge_alg=MergeAlg.add, dtype="int32",
        )  # fmt: skip
        # Only features near pixels of several are rasterized one by one.
        several = np.pad((depth > 1).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        for fid, shape, code in zip(features.index, features.geometry, features["code"], strict=True):
            box = self._grid.window_of(shape.bounds).grow(1).intersect(window).relative_to(window)
            top, left, (bottom, right) = box.row, box.col, box.stop
            if not box.height or not box.width:
                continue
            shared = several[bottom, right] - several[top, right] - several[bottom, left] + several[top, left]
            if not shared:
                continue
            placed = transform @ Affine.translation(left, top)
            inside = rasterize([(shape, 1)], box.shape, transform=placed) > 0
            if inside.any():
                self._with_pixels.add(fid)
            self._lost_pixels[fid] += int((inside & (burnt[box.slices] != code)).sum())

    def _compare_with_grid(self, features: geopandas.GeoDataFrame) -> None:
        import shapely

        self._seen |= set(features.index)
        inside = shapely.clip_by_rect(features.geometry.values, *ordered(self._grid.bounds))
        cut = shapely.area(inside) < 0.999 * shapely.area(features.geometry.values)
        empty = shapely.is_empty(inside)
        self._outside |= set(features.index[empty])
        self._partly_outside |= set(features.index[cut & ~empty])
        self._without_code |= set(features.index[features["code"] == NO_CODE]) - self._outside

    def result(self, features: int) -> Losses:
        """Return the sums for a file with this number of features."""
        on_grid = self._seen - self._outside
        lost = [pixels for pixels in self._lost_pixels.values() if pixels]
        return Losses(
            features, len(self._without_code), features - len(on_grid), len(self._partly_outside),
            len(on_grid - self._with_pixels - self._without_code), len(lost), sum(lost),
        )  # fmt: skip


def _check_vector(path: str) -> str:
    """Return the driver of a vector file whose name and first bytes agree."""
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
    if not start.startswith(_MAGIC[driver]) or (driver == "GPKG" and head[68:72] not in _GEOPACKAGE_IDS):
        kind = {"GPKG": "GeoPackage", "ESRI Shapefile": "shapefile"}.get(driver, driver)
        raise unreadable(path, f"its content is no {kind}")
    if driver == "GeoJSON" and file.stat().st_size > MAX_GEOJSON_BYTES:
        raise InputError(
            f"cannot read '{path}', since it has {file.stat().st_size} bytes, "
            f"expected at most {MAX_GEOJSON_BYTES} for GeoJSON",
            f"Convert it: ogr2ogr {file.stem}.gpkg {file.name}",
        )
    return driver


def _shapefile_files(file: Path) -> list[Path]:
    """Return a shapefile and the files that belong to it; refuse it if one is missing or lies elsewhere."""
    named = [file.with_suffix(cased) for ending in _SHAPEFILE_PARTS for cased in (ending, ending.upper())]
    beside = [path for path in named if path.is_file()]
    for path in beside:
        guards.check_inside(path, file.parent, str(file))
    missing = {".shx", ".dbf"} - {path.suffix.lower() for path in beside}
    if missing:
        raise InputError(
            f"cannot read '{file}', since a part of the shapefile is missing, "
            f"expected {' and '.join(sorted(file.stem + end for end in missing))} beside it",
            "Copy all files of the shapefile into one folder.",
        )
    return [file, *beside]


class VectorFile(Resource):
    """A vector file that a reader process has opened.

    Raises InputError if it is no vector file, is damaged, or computes its content (views, virtual tables).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.driver = _check_vector(path)
        self.files = _shapefile_files(Path(path)) if self.driver == "ESRI Shapefile" else [Path(path)]
        stored = sum(file.stat().st_size for file in self.files)
        self._process = Apart("lulc.rasters.features.Features", path, self.driver, path=path, stored=stored)
        self.layers: list[str] = self._process.made

    def choose(
        self, wanted: str | None = None, *, preferred: str | None = None, option: str | None = None
    ) -> str:
        """Return the wanted layer, else the preferred one if it exists, else the only one with geometries.

        Raises InputError where there is no such layer or several; `option` is the one that chooses a layer.
        """
        layers = self.layers
        shown = ", ".join(layers[:20]) + (", ..." if len(layers) > 20 else "")
        wanted = _match_case(wanted, layers)
        if wanted is not None and wanted not in layers:
            raise InputError(
                f"cannot read the layer '{wanted}' of '{self.path}', since it has only "
                f"{shown or 'no layers'}",
                f"Type {option} {shlex.quote(layers[0])}" if option and layers else "Check the file in QGIS.",
            )
        if not layers:
            raise unreadable(self.path, "it has no layer with geometries")
        named = [name for name in (wanted, preferred) if name in layers]
        if len(layers) > 1 and not named:
            new_file = str(Path(self.path).with_name(f"{layers[0]}.gpkg"))
            raise InputError(
                f"cannot tell which layer of '{self.path}' to read, since it has {len(layers)} layers "
                f"with geometries ({shown}), expected one or a choice",
                f"Type {option} with one of them, for example {option} {shlex.quote(layers[0])}"
                if option
                else "Write the layer to a file of its own: "
                + shlex.join(["ogr2ogr", new_file, self.path, layers[0]]),
            )
        return str((named or layers)[0])

    def info(self, layer: str) -> dict[str, Any]:
        """Return ``crs``, ``features``, ``fields`` (name to type) and ``total_bounds`` of a layer."""
        info: dict[str, Any] = self._process.call("info", layer)
        self._crs = info["crs"]
        return info

    def read(
        self, layer: str, columns: list[str] | None, box: Sequence[float] | None = None
    ) -> geopandas.GeoDataFrame:
        """Return geometries and some columns (None for all) of the features in a box, in file order."""
        # It takes longer to load than most rasters take to open.
        import geopandas
        import shapely

        answer = self._process.call("read", layer, columns, box)
        ends = np.cumsum(answer["lengths"])
        content = answer["shapes"].tobytes()
        spans = zip(ends - answer["lengths"], ends, strict=True)
        shapes = shapely.from_wkb([content[start:end] or None for start, end in spans])
        with _converting(self.path):
            return geopandas.GeoDataFrame(
                answer["columns"], geometry=shapes, crs=self._crs, index=answer["numbers"]
            )

    def pieces(self, layer: str, name: str) -> Iterator[list[Any]]:
        """Yield the values of a field, `ROWS` features at a time."""
        for skipped in itertools.count(0, ROWS):
            values = self._process.call("values", layer, name, skipped, ROWS)
            yield values
            if len(values) < ROWS:
                return

    def close(self) -> None:
        self._process.close()


def read_features(
    path: str, *, layer: str | None = None, preferred: str | None = None, columns: list[str] | None = None
) -> geopandas.GeoDataFrame:
    """Return all features of a layer, chosen as by `VectorFile.choose`, with some fields (None for all)."""
    with VectorFile(path) as file:
        chosen = file.choose(layer, preferred=preferred)
        file.info(chosen)
        return file.read(chosen, columns)


def _check_georeference(path: str, info: Mapping[str, Any], grid: GridSpec) -> None:
    """Refuse a layer without CRS, or with metres in a geographic CRS."""
    code = grid.crs.to_epsg() if grid.crs else None
    new_file = str(Path(path).with_suffix("")) + "_crs.gpkg"
    assign = shlex.join(["ogr2ogr", "-a_srs", f"EPSG:{code or 'CODE'}", new_file, path])
    if not info["crs"] or not grid.crs:
        name, hint = "the grid of the bands", "Write it into the bands."
        if not info["crs"]:
            name, hint = f"'{path}'", f"Write its CRS; where it is that of the bands: {assign}"
        raise InputError(f"cannot lay '{path}' on the bands, since {name} has no CRS, expected one", hint)
    box = info.get("total_bounds")
    # Longitudes may count to 360.
    with _converting(path):
        geographic = CRS.from_user_input(info["crs"]).is_geographic
    if box is not None and geographic and np.nanmax(np.abs(box)) > 361:
        default = " (GeoJSON that names none is in degrees, by RFC 7946)" * path.lower().endswith("json")
        raise InputError(
            f"cannot lay '{path}' on the bands, since its coordinates ({', '.join(f'{v:.9g}' for v in box)}) "
            f"are no degrees, but its CRS is {str(info['crs'])[:40]}{default}, "
            "expected the CRS of its coordinates",
            f"Write the right CRS; where it is that of the bands: {assign}",
        )


def _match_case(wanted: str | None, names: Collection[str]) -> str | None:
    """Return a name as the file spells it if only upper and lower case differ, else as it is."""
    if wanted is None or wanted in names:
        return wanted
    alike = [name for name in names if name.casefold() == wanted.casefold()]
    return alike[0] if len(alike) == 1 else wanted


def _choose_field(
    file: VectorFile, layer: str, kinds: Mapping[str, str], wanted: str | None,
    known: Callable[[Code], bool] | None,
) -> Field:  # fmt: skip
    """Return the field named by `wanted`, or the only one that can hold codes.

    Of several integer or text fields, the one is taken whose values are all known, while no other's are, and
    recur, unlike those of an identifier. Without `known` the only text field is taken.
    """
    path = file.path
    wanted = _match_case(wanted, kinds)
    hint = "Type --label-field with the field that holds the code."
    if wanted is not None:
        if wanted not in kinds:
            listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
            raise InputError(
                f"cannot read codes from '{path}', since it has no field '{wanted}'; its fields are {listed}",
                hint,
            )
        chosen = _read_field(file, layer, wanted, kinds[wanted])
        if not chosen.values:
            raise InputError(
                f"cannot read codes from '{path}', since its field {chosen.describe()} holds neither whole "
                f"numbers nor at most {MAX_VALUES} different texts",
                hint,
            )
        return chosen
    fields = [_read_field(file, layer, name, kind) for name, kind in kinds.items()]
    usable = [f for f in fields if f.values]
    if len(usable) == 1 and known is not None:
        return usable[0]
    fitting = [f for f in usable if (f.is_text if known is None else all(map(known, f.values)))]
    if known is None and (len(fitting) == 1 or len(usable) == 1):
        return (fitting or usable)[0]
    if known is not None and len(fitting) == 1 and not fitting[0].is_identifier:
        return fitting[0]
    listed = ", ".join(f.describe() for f in fields) or "none"
    # Usual names of identifiers only decide which field the hint proposes.
    identifier = re.compile(r"(?i)(.*_)?(id|fid|gid|uid|uuid|objectid|nr|no|number)").fullmatch
    ranked = sorted(fitting or usable, key=lambda f: (f.is_identifier, identifier(f.name) is not None))
    if not ranked:
        raise InputError(
            f"cannot read codes from '{path}', since none of its fields holds integers or names; "
            f"its fields are {listed}",
            "Add a field with the code or the name of the class in QGIS.",
        )
    example = f"--label-field {shlex.quote(ranked[0].name)}"
    scheme = "" if fitting or known else ", and --scheme with what its numbers mean"
    raise InputError(
        f"cannot tell which field of '{path}' holds the class; its fields are {listed}",
        f"Type --label-field with the field that holds the class, for example {example}{scheme}",
    )


def _read_field(file: VectorFile, layer: str, name: str, kind: str) -> Field:
    """Return a field with its values, read in pieces; without values where it can't hold codes."""
    if not kind.startswith(("int", "uint", "float", "object", "str")):
        return Field(name, kind)
    holds_texts = kind.startswith(("object", "str"))
    values: Counter[Code] = Counter()
    for piece in file.pieces(layer, name):
        for value, count in Counter(piece).items():
            code = code_of(value)
            if code is not None:
                values[code] += count
        if len(values) > MAX_VALUES or not (holds_texts or all(isinstance(v, int) for v in values)):
            return Field(name, kind)
    if any(isinstance(value, str) for value in values):
        texts: Counter[Code] = Counter()
        for code, count in values.items():
            texts[str(code)] += count
        values = texts
    return Field(name, "text" if holds_texts else kind, values)


def code_of(value: Any) -> Code | None:
    """Return the code that a field's value stands for: an integer if it is written as one, else its text.

    Examples
    --------
    >>> code_of(3.0), code_of(" 7 "), code_of("Mixed  forest"), code_of("1E2"), code_of(None), code_of("")
    (3, 7, 'Mixed forest', '1E2', None, None)
    """
    if value is None or value != value:
        return None
    text = " ".join(str(value).split())
    # int() and float() also take underscores and exponents, which in a code are letters like others.
    integer = re.fullmatch(r"([+-]?[0-9]{1,99})(\.0*)?", text)
    return int(integer[1]) if integer and abs(int(integer[1])) < -NO_CODE else text or None


def ordered(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) of two opposite corners in any order."""
    a, b, c, d = bounds
    return min(a, c), min(b, d), max(a, c), max(b, d)


@contextlib.contextmanager
def write_package(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a GeoPackage to write layers to, and put it in place whole at the end.

    Equal layers give equal bytes. Raises InputError if the disk is full.
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
                "Check that the disk has space and that files may be written to the folder.",
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
