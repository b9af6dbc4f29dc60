"""Vector files in their reader process: layers, fields and features as plain values.

Everything here runs in a reader process (`lulc.core.reader_process`); `lulc.rasters.vectors` asks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import shapely

from lulc.core.budgets import FIELDS, TEXT_BYTES, exceeds
from lulc.core.schema import InputError
from lulc.rasters import guards
from lulc.rasters.vectors import MAX_PARQUET_BYTES, unreadable

_ERRORS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, OverflowError)
_TABLES = frozenset({"rtree"})
"""Modules of virtual tables that are admitted: SQLite's own spatial index."""


class Features:
    """A vector file, whose layers and features are asked for one by one."""

    def __init__(self, path: str, driver: str) -> None:
        self._path, self._driver = path, driver
        self._parquet: geopandas.GeoDataFrame | None = None
        if driver == "GPKG":
            check_sqlite(path)
        if driver == "GeoParquet":
            self._parquet = _read_parquet(path)

    def describe(self) -> list[str]:
        """Return the names of the layers that have geometries."""
        if self._parquet is not None:
            return [Path(self._path).stem]
        with _telling(self._path):
            return [str(name) for name, kind in pyogrio.list_layers(self._path) if kind is not None]

    def info(self, layer: str) -> dict[str, Any]:
        """Return CRS, number of features, fields with their types, and bounds of a layer."""
        if self._parquet is not None:
            found = _describe_parquet(self._parquet)
        else:
            with _telling(self._path):
                found = pyogrio.read_info(
                    self._path, layer=layer, force_total_bounds=self._driver == "GeoJSON"
                )
            if found["driver"] != self._driver:
                raise unreadable(self._path, f"its content is {found['driver']}")
        if exceeds(len(found["fields"]), FIELDS):
            raise unreadable(self._path, f"it has {len(found['fields'])} fields, more than {FIELDS}")
        guards.check_crs(str(found["crs"] or ""), self._path)
        box = found.get("total_bounds")
        return {
            "crs": found["crs"],
            "features": int(found["features"]),
            "fields": {str(f): str(t) for f, t in zip(found["fields"], found["dtypes"], strict=True)},
            "total_bounds": None if box is None else [float(value) for value in box],
        }

    def read(self, layer: str, columns: Sequence[str] | None, box: Sequence[float] | None) -> dict[str, Any]:
        """Return features in a box (all for None) as `lulc.rasters.vectors` unpacks them."""
        if self._parquet is not None:
            frame = self._parquet
            frame = frame if columns is None else frame[[*columns, frame.geometry.name]]
            frame = frame.set_geometry(frame.geometry.force_2d())
        else:
            with _telling(self._path):
                frame = pyogrio.read_dataframe(
                    self._path, layer=layer, columns=columns, bbox=None if box is None else tuple(box),
                    fid_as_index=True, force_2d=True,
                ).sort_index()  # fmt: skip
        texts = [b"" if shape is None else shape for shape in shapely.to_wkb(frame.geometry.values)]
        others = [name for name in frame.columns if name != frame.geometry.name]
        return {
            "numbers": frame.index.to_numpy(np.int64),
            "lengths": np.array([len(text) for text in texts], np.int64),
            "shapes": np.frombuffer(b"".join(texts), np.uint8),
            "columns": {str(name): _values_of(frame[name]) for name in others},
        }

    def values(self, layer: str, name: str, skipped: int, most: int) -> list[Any]:
        """Return some values of a field, from the feature after `skipped` on."""
        if self._parquet is not None:
            return _listed(self._parquet[name][skipped : skipped + most])
        with _telling(self._path):
            frame = pyogrio.read_dataframe(
                self._path, layer=layer, columns=[name], read_geometry=False,
                skip_features=skipped, max_features=most,
            )  # fmt: skip
        return _listed(frame[name])


def read_table(path: str, most: int) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of a dBASE table as texts; none where it is no table."""
    try:
        frame = pyogrio.read_dataframe(path, read_geometry=False, max_features=most)
    except _ERRORS:
        return [], []
    rows = [["" if value is None else str(value) for value in row] for row in frame.values.tolist()]
    return [str(column) for column in frame.columns], rows


@contextlib.contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise unreadable(path, str(error)[:300]) from error


def check_sqlite(path: str) -> None:
    """Refuse a GeoPackage that computes what it gives: only plain tables are read.

    Views, generated columns and virtual tables run queries of the file's author, which may never end or make
    values of any size, and some modules read other files.
    """
    address = f"{Path(path).resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            database.execute("PRAGMA trusted_schema=OFF")
            rows = database.execute("SELECT type, name, sql FROM sqlite_master LIMIT ?", (FIELDS + 1,))
            for number, (kind, name, sql) in enumerate(rows):
                if exceeds(number, FIELDS) or exceeds(len(sql or ""), TEXT_BYTES):
                    raise unreadable(path, f"it has more than {FIELDS} tables, or one of a giant definition")
                words = " ".join(str(sql or "").split()).lower()
                if kind == "view":
                    _refuse_computed(path, name, "a view")
                if words.startswith("create virtual table"):
                    module = words.partition(" using ")[2].partition("(")[0].strip()
                    if module not in _TABLES:
                        _refuse_computed(path, name, f"a virtual table of {module[:40]}")
                elif kind == "table" and _computes(database, name):
                    _refuse_computed(path, name, "a table with a generated column")
    except sqlite3.Error as error:
        raise unreadable(path, f"it is damaged ({error})") from error


def _computes(database: sqlite3.Connection, name: str) -> bool:
    """True where a table has generated columns."""
    return any(
        hidden in (2, 3) for *_, hidden in database.execute("PRAGMA table_xinfo(" + _quoted(name) + ")")
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refuse_computed(path: str, name: str, what: str) -> NoReturn:
    raise InputError(
        f"cannot read '{path}', since '{str(name)[:80]}' in it is {what}, expected plain tables",
        f"Write the layer you need to a file of its own: ogr2ogr new.gpkg {Path(path).name} LAYER",
    )


def _read_parquet(path: str) -> geopandas.GeoDataFrame:
    """Read a GeoParquet file after checking that what it unpacks to is bounded."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InputError(
            f"cannot read '{path}', since pyarrow is not installed, which reads GeoParquet",
            f"Type pip install 'lulc[parquet]', or convert the file: ogr2ogr {Path(path).stem}.gpkg '{path}'",
        ) from error
    try:
        # Dictionaries make a small file of many large values: what it unpacks to is known by unpacking.
        size = 0
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            size += batch.nbytes
            if exceeds(size, MAX_PARQUET_BYTES):
                raise unreadable(path, f"it unpacks to more than {MAX_PARQUET_BYTES} bytes")
        return geopandas.GeoDataFrame(geopandas.read_parquet(path)).reset_index(drop=True)
    except (pyarrow.ArrowException, ValueError, TypeError, KeyError, OSError) as error:
        raise unreadable(path, f"its content is no GeoParquet ({error})") from error


def _describe_parquet(frame: geopandas.GeoDataFrame) -> dict[str, Any]:
    columns = [c for c in frame.columns if not isinstance(frame[c].dtype, geopandas.array.GeometryDtype)]
    kinds = ["object" if pd.api.types.is_string_dtype(frame[c]) else str(frame[c].dtype) for c in columns]
    return {
        "crs": frame.crs.to_wkt() if frame.crs else None, "features": len(frame), "fields": columns,
        "dtypes": [kind.lower() for kind in kinds], "total_bounds": frame.total_bounds,
    }  # fmt: skip


def _values_of(column: pd.Series) -> np.ndarray | list[Any]:
    """Values of a column: an array where they are numbers without gaps."""
    plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"
    return column.to_numpy() if plain else _listed(column)


def _listed(column: pd.Series) -> list[Any]:
    return [_plain(value) for value in column.tolist()]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    return value if isinstance(value, str | int | float) else str(value)
