"""Vector files in their reader process: layers, fields and features as plain values.

Everything here runs in a reader process (`lulc.core.reader_process`), called by `lulc.rasters.vectors`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


class Features:
    """An open vector file."""

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
        with _refusing(self._path):
            return [str(name) for name, kind in pyogrio.list_layers(self._path) if kind is not None]

    def info(self, layer: str) -> dict[str, Any]:
        """Return CRS, number of features, fields with their types, and bounds of a layer."""
        if self._parquet is not None:
            info = _describe_parquet(self._parquet)
        else:
            with _refusing(self._path):
                info = pyogrio.read_info(
                    self._path, layer=layer, force_total_bounds=self._driver == "GeoJSON"
                )
            if info["driver"] != self._driver:
                raise unreadable(self._path, f"its content is {info['driver']}")
        if exceeds(len(info["fields"]), FIELDS):
            raise unreadable(self._path, f"it has {len(info['fields'])} fields, more than {FIELDS}")
        guards.check_crs(str(info["crs"] or ""), self._path)
        box = info.get("total_bounds")
        return {
            "crs": info["crs"],
            "features": int(info["features"]),
            "fields": {str(f): str(t) for f, t in zip(info["fields"], info["dtypes"], strict=True)},
            "total_bounds": None if box is None else [float(value) for value in box],
        }

    def read(self, layer: str, columns: Sequence[str] | None, box: Sequence[float] | None) -> dict[str, Any]:
        """Return features in a box (None for all) in the form that `VectorFile.read` unpacks."""
        if self._parquet is not None:
            frame = self._parquet
            frame = frame if columns is None else frame[[*columns, frame.geometry.name]]
            frame = frame.set_geometry(frame.geometry.force_2d())
        else:
            with _refusing(self._path):
                frame = pyogrio.read_dataframe(
                    self._path, layer=layer, columns=columns, bbox=None if box is None else tuple(box),
                    fid_as_index=True, force_2d=True,
                ).sort_index()  # fmt: skip
        shapes = [shape or b"" for shape in shapely.to_wkb(frame.geometry.values)]
        others = [name for name in frame.columns if name != frame.geometry.name]
        return {
            "numbers": frame.index.to_numpy(np.int64),
            "lengths": np.array([len(shape) for shape in shapes], np.int64),
            "shapes": np.frombuffer(b"".join(shapes), np.uint8),
            "columns": {str(name): _values_of(frame[name]) for name in others},
        }

    def values(self, layer: str, name: str, skipped: int, most: int) -> list[Any]:
        """Return at most `most` values of a field, after the first `skipped` features."""
        if self._parquet is not None:
            return _listed(self._parquet[name][skipped : skipped + most])
        with _refusing(self._path):
            frame = pyogrio.read_dataframe(
                self._path, layer=layer, columns=[name], read_geometry=False,
                skip_features=skipped, max_features=most,
            )  # fmt: skip
        return _listed(frame[name])


def read_table(path: str, most: int) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of a dBASE table as texts; empty lists where it is no table."""
    try:
        frame = pyogrio.read_dataframe(path, read_geometry=False, max_features=most)
    except _ERRORS:
        return [], []
    rows = [["" if value is None else str(value) for value in row] for row in frame.values.tolist()]
    return [str(column) for column in frame.columns], rows


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise unreadable(path, str(error)[:300]) from error


def check_sqlite(path: str) -> None:
    """Refuse a GeoPackage with computed content: only plain tables are read.

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
                    raise unreadable(
                        path, f"it has more than {FIELDS} tables, or one with a giant definition"
                    )
                if computed := _computed(database, kind, name, " ".join(str(sql or "").split()).lower()):
                    raise InputError(
                        f"cannot read '{path}', since '{str(name)[:80]}' in it is {computed}, expected plain "
                        "tables",
                        f"Write the layer you need to a file of its own: ogr2ogr new.gpkg {Path(path).name} "
                        "LAYER",
                    )
    except sqlite3.Error as error:
        raise unreadable(path, f"it is damaged ({error})") from error


def _computed(database: sqlite3.Connection, kind: str, name: str, definition: str) -> str:
    """Return what computes the content of a table, for messages; empty for a plain one."""
    if kind == "view":
        return "a view"
    if definition.startswith("create virtual table"):
        module = definition.partition(" using ")[2].partition("(")[0].strip()
        # SQLite's own spatial index is allowed.
        return "" if module == "rtree" else f"a virtual table of {module[:40]}"
    quoted = '"' + name.replace('"', '""') + '"'
    columns = database.execute(f"PRAGMA table_xinfo({quoted})") if kind == "table" else ()
    return "a table with a generated column" if any(hidden in (2, 3) for *_, hidden in columns) else ""


def _read_parquet(path: str) -> geopandas.GeoDataFrame:
    """Read a GeoParquet file after checking that its unpacked size is bounded."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InputError(
            f"cannot read '{path}', since pyarrow is not installed, which reads GeoParquet",
            f"Type pip install 'lulc[parquet]', or convert the file: ogr2ogr {Path(path).stem}.gpkg '{path}'",
        ) from error
    try:
        # Dictionaries can store many large values in a small file, so that only unpacking shows the size.
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
    """Return the values of a column: an array if they are numbers without missing values, else a list."""
    plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"
    return column.to_numpy() if plain else _listed(column)


def _listed(column: pd.Series) -> list[Any]:
    return [_plain(value) for value in column.tolist()]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    return value if isinstance(value, str | int | float) else str(value)
