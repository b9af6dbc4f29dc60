"""Polygons and points of GeoPackage and GeoJSON files, burnt onto a grid."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
from rasterio.features import rasterize
from rasterio.warp import transform_bounds

from lulc.core.grid import GridSpec
from lulc.core.schema import NO_CODE, InputError
from lulc.core.storage import sha256_of
from lulc.core.windows import Window

MAX_GEOJSON_BYTES = 64 * 2**20


VECTORS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON"}


CONVERTIBLE = (".shp", ".zip", ".fgb", ".gml", ".kml")
"""How vector files end that are not read but converted, since few drivers mean few surprises."""


_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")


class VectorCodes:
    """Polygons or points of a GeoPackage or GeoJSON, burnt onto a grid window by window.

    A pixel has the code of the polygon that holds its centre, or of the point that lies in it; of several,
    the last in the file.

    Parameters
    ----------
    path
        Regular file, GeoPackage or GeoJSON by name and by content.
    grid
        Pixels to burn onto.
    field
        Field with the code, an integer or a string of digits; the only integer field where None.
        With ``presence`` no field is needed.
    presence
        True to burn 1 for every feature.

    Raises
    ------
    InputError
        If the file is none of these, has several layers or no CRS, or the field isn't clear.
    """

    def __init__(
        self, path: str, grid: GridSpec, field: str | None = None, *, presence: bool = False
    ) -> None:
        self.path = path
        self._grid = grid
        driver = _check_vector(path)
        self._layer, info = _only_layer(path, driver)
        self._crs = info["crs"]
        if not self._crs or not grid.crs:
            name = f"'{path}'" if not self._crs else "the grid of the bands"
            raise InputError(
                f"cannot lay '{path}' on the bands, since {name} has no CRS, expected one",
                "Set the CRS of the file in QGIS or by ogr2ogr -a_srs.",
            )
        fields = {str(f): str(t) for f, t in zip(info["fields"], info["dtypes"], strict=True)}
        self._field = None if presence else _code_field(path, fields, field)
        # GeoJSON has no spatial index: it is read once, whole, which its size limit allows.
        self._whole = self._load(None) if driver == "GeoJSON" else None

    def read(self, window: Window) -> np.ndarray:
        """Codes int32 (y, x), `NO_CODE` where there is no feature."""
        grid = self._grid.crop(window)
        features = self._whole if self._whole is not None else self._load(grid)
        burnt = np.full(window.shape, NO_CODE, dtype=np.int32)
        shapes = list(zip(features.geometry, features["code"], strict=True))
        if shapes:
            rasterize(shapes, out=burnt, transform=grid.transform)
        return burnt

    def identity(self) -> dict[str, Any]:
        """Name, bytes and sha256 of the file."""
        file = Path(self.path)
        return {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}

    def _load(self, grid: GridSpec | None) -> geopandas.GeoDataFrame:
        """Features near a grid (all for None) in its CRS, in file order, with an int32 column "code"."""
        box = None
        if grid is not None:
            a, b, c, d = transform_bounds(grid.crs, self._crs, *ordered(grid.bounds), densify_pts=21)
            margin = 0.01 * max(c - a, d - b)
            box = (a - margin, b - margin, c + margin, d + margin)
        try:
            frame = pyogrio.read_dataframe(
                self.path, layer=self._layer, columns=[self._field] if self._field else [], bbox=box,
                fid_as_index=True, force_2d=True,
            ).sort_index()  # fmt: skip
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
            raise unreadable(self.path, str(error)) from error
        frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
        kinds = set(frame.geometry.geom_type) - {"Polygon", "MultiPolygon", "Point", "MultiPoint"}
        if kinds:
            raise unreadable(self.path, f"it has features of the type {', '.join(sorted(kinds))}")
        values = frame[self._field] if self._field else [1] * len(frame)
        frame = frame.assign(code=_codes_of(self.path, values))
        frame = frame.to_crs(self._grid.crs)
        return frame[np.isfinite(frame.bounds).all(axis=1)]


def _check_vector(path: str) -> str:
    """The driver of a vector file whose name and first bytes agree on GeoPackage or GeoJSON."""
    file = Path(path)
    if "://" in path or path.startswith("/vsi") or not file.is_file():
        raise InputError(
            f"cannot read the vector file '{path}', since there is no regular file of that name",
            "Check the path; remote files must be fetched first.",
        )
    driver = VECTORS.get(file.suffix.lower())
    with open(file, "rb") as stream:
        head = stream.read(100)
    if driver == "GPKG" and not (head.startswith(b"SQLite format 3\0") and head[68:72] in _GEOPACKAGE_IDS):
        raise unreadable(path, "its content is no GeoPackage")
    if driver == "GeoJSON" and not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        raise unreadable(path, "its content is no GeoJSON")
    if driver == "GeoJSON" and file.stat().st_size > MAX_GEOJSON_BYTES:
        raise InputError(
            f"cannot read '{path}', since it has {file.stat().st_size} bytes, "
            f"expected at most {MAX_GEOJSON_BYTES} for GeoJSON",
            f"Convert it: ogr2ogr {file.stem}.gpkg {file.name}",
        )
    if driver is None:
        raise unreadable(path, f"its name ends in '{file.suffix}'")
    return driver


def _only_layer(path: str, driver: str) -> tuple[str, dict[str, Any]]:
    """(name, pyogrio's description) of the one layer with geometries."""
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(layers) != 1:
            raise unreadable(path, f"it has {len(layers)} layers with geometries ({', '.join(layers[:9])})")
        info = pyogrio.read_info(path, layer=layers[0])
    except pyogrio.errors.DataSourceError as error:
        raise unreadable(path, str(error)) from error
    if info["driver"] != driver:
        raise unreadable(path, f"its content is {info['driver']}")
    return layers[0], info


def _code_field(path: str, fields: dict[str, str], wanted: str | None) -> str:
    listed = ", ".join(f"{name} ({kind})" for name, kind in fields.items()) or "none"
    integers = [name for name, kind in fields.items() if kind.startswith(("int", "uint"))]
    if wanted is not None and wanted in fields:
        return wanted
    if wanted is None and len(integers) == 1:
        return integers[0]
    problem = f"it has no field '{wanted}'" if wanted else f"{len(integers)} of its fields hold integers"
    raise InputError(
        f"cannot read codes from '{path}', since {problem}; its fields are {listed}",
        "Type --label-field with the field that holds the code.",
    )


def _codes_of(path: str, values: Any) -> np.ndarray:
    """Codes int32 of a field's values; a missing value is no label."""
    codes = []
    for value in values:
        missing = value is None or value != value or value == ""
        try:
            number = float(NO_CODE if missing else value)
            if number != int(number) or abs(number) > -float(NO_CODE):
                raise ValueError
        except (ValueError, OverflowError, TypeError):
            raise InputError(
                f"cannot read codes from '{path}', since a feature has the value {str(value)[:40]!r}, "
                "expected whole numbers",
                "Type --label-field with the field that holds the code.",
            ) from None
        codes.append(int(number))
    return np.array(codes, dtype=np.int32)


def ordered(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) of two opposite corners in any order."""
    a, b, c, d = bounds
    return min(a, c), min(b, d), max(a, c), max(b, d)


def unreadable(path: str, has: str) -> InputError:
    """Error for a vector file that cannot be read, with the command that converts it."""
    file = Path(path)
    suffix = file.suffix.lower()
    command = ["ogr2ogr", str(file.with_suffix(".gpkg")), f"/vsizip/{path}" if suffix == ".zip" else path]
    return InputError(
        f"cannot read labels from '{path}', since {has}, expected one layer of polygons or points "
        "in a GeoPackage (.gpkg) or GeoJSON (.geojson)",
        f"Convert it: {shlex.join(command)}"
        if suffix in CONVERTIBLE
        else "Check the file in QGIS, or convert it with ogr2ogr.",
    )
