"""Stratified sample of points for interpretation: drawing, writing and reading.

Interpreters must not know the class of the map: the file for them (`write_sample`) holds only locations, and
the strata are in a table beside it.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.areas import pixel_areas
from lulc.core.documents import read_rows
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.storage import write_atomically
from lulc.core.templates import render_xml
from lulc.core.windows import Window
from lulc.labels.schemes import is_integer, plain
from lulc.rasters.vectors import code_of, convert, read_features, write_package

if TYPE_CHECKING:
    import geopandas

LAYER = "sample"
ReadClasses = Callable[[Window], NDArray[np.uint8]]

UNINTERPRETABLE = 0  # reference of a point that can't be interpreted

_NO_ANSWER = {"uninterpretable", "not interpretable", "cannot be interpreted", "unclear", "unknown", "?"}
_NO_CLASS = {UNINTERPRETABLE, 255, -1}  # texts and numbers with the same meaning

STRATA_FIELDS = ("id", "stratum", "class")

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Sample:
    """Interpreted points.

    Parameters
    ----------
    matrix
        int64 (class, class): rows the map's class, which is the stratum, columns the reference.
    left_out
        Points that could not be, or were not, interpreted.
    """

    name: str
    matrix: NDArray[np.int64]
    left_out: int = 0

    @property
    def points(self) -> int:
        return int(self.matrix.sum())

    def to_json(self) -> dict[str, Any]:
        return {"file": self.name, "matrix": self.matrix.tolist(), "left_out": self.left_out}


def strata_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the table with the strata of a sample."""
    return Path(path).with_name(f"{Path(path).stem}-strata.csv")


def draw_sample(
    read: ReadClasses, windows: Iterable[Window], grid: GridSpec, pixels: NDArray[np.int64],
    allocation: NDArray[np.int64], rng: np.random.Generator,
) -> geopandas.GeoDataFrame:  # fmt: skip
    """Draw a stratified random sample of pixels, without replacement, window by window.

    Within a stratum, equal areas are equally likely. If pixels differ in area, more candidates are drawn, and
    small ones are rejected more often.

    Parameters
    ----------
    read
        Returns the class numbers uint8 (y, x) of a window.
    windows
        Windows that tile the map.
    pixels, allocation
        Mapped pixels and wanted points of each class (class,).

    Returns
    -------
    GeoDataFrame
        Pixel centres with the columns id (in random order, so that it does not reveal the map's class),
        stratum (the map's class) and reference (empty).
    """
    import geopandas
    import pandas as pd

    least, most = _range_of_areas(grid)
    # Drawing the ranks of pixels first needs memory only for the sample.
    drawn = [
        rng.choice(int(n), _candidates(int(n), int(k), least / most), replace=False)
        for n, k in zip(pixels, allocation, strict=True)
    ]
    orders = [np.argsort(ranks) for ranks in drawn]
    sorted_ranks = [ranks[order] for ranks, order in zip(drawn, orders, strict=True)]
    passed = np.zeros(len(pixels), np.int64)
    candidates: list[list[tuple[int, int, int]]] = [[] for _ in pixels]
    for window in windows:
        classes = read(window).ravel()
        for k, ranks in enumerate(sorted_ranks):
            places = np.flatnonzero(classes == k + 1)
            low, high = np.searchsorted(ranks, (passed[k], passed[k] + len(places)))
            for i in range(low, high):
                row, col = divmod(int(places[ranks[i] - passed[k]]), window.width)
                candidates[k].append((int(orders[k][i]), window.row + row, window.col + col))
            passed[k] += len(places)
    points = [
        (k + 1, row, col)
        for k, of_class in enumerate(candidates)
        for row, col in _accepted(sorted(of_class), int(allocation[k]), grid, most, rng)
    ]
    shuffled = [points[i] for i in rng.permutation(len(points))]
    centres = [grid.transform @ (col + 0.5, row + 0.5) for _, row, col in shuffled]
    return geopandas.GeoDataFrame(
        {
            "id": np.arange(1, len(shuffled) + 1),
            "stratum": [stratum for stratum, _, _ in shuffled],
            "reference": pd.array([None] * len(shuffled), dtype="Int32"),
        },
        geometry=geopandas.points_from_xy(*np.reshape(centres, (-1, 2)).T),
        crs=grid.crs.to_wkt(),
    )


def _range_of_areas(grid: GridSpec) -> tuple[float, float]:
    """Return the smallest and largest area of 17 x 17 pixels of a grid; (1, 1) if all are alike."""
    rows, cols = (np.unique(np.linspace(0, side - 1, 17).astype(int)) for side in grid.shape)
    pixels = [pixel_areas(grid, Window(int(row), int(col), 1, 1)) for row in rows for col in cols]
    areas = [float(area[0, 0]) for area in pixels if area is not None]
    if not areas or min(areas) > 0.999 * max(areas):
        return 1.0, 1.0
    return min(areas), max(areas)


def _candidates(pixels: int, points: int, ratio: float) -> int:
    """Return the number of pixels to draw, of which more than `points` are likely accepted."""
    if ratio == 1:
        return points
    return min(pixels, int(points / ratio + 6 * np.sqrt(points / ratio)) + 6)


def _accepted(
    candidates: list[tuple[int, int, int]], points: int, grid: GridSpec, largest: float,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:  # fmt: skip
    """Return row and column of accepted candidates, with a probability in proportion to their area."""
    places = [(row, col) for _, row, col in candidates]
    if len(places) <= points:
        return places
    accepted: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []
    for row, col in places:
        area = pixel_areas(grid, Window(row, col, 1, 1))
        probability = 1.0 if area is None else float(area[0, 0]) / largest
        (accepted if rng.random() < probability else rejected).append((row, col))
    return [*accepted, *rejected][:points]


def write_sample(points: geopandas.GeoDataFrame, path: str | os.PathLike[str], legend: Legend) -> list[Path]:
    """Write points to interpret to a GeoPackage, and their strata to a table; returns both paths.

    The GeoPackage holds no stratum. With its style QGIS shows the classes as a list in the field `reference`.
    """
    import pandas as pd
    import pyogrio

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(STRATA_FIELDS)
    strata = zip(points["id"], points["stratum"], strict=True)
    writer.writerows((i, k, legend.names[k - 1]) for i, k in strata)
    with write_atomically(strata_path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    blind = points.drop(columns="stratum")
    # QGIS finds the style only in a table with all of these columns.
    style = pd.DataFrame({
        "f_table_catalog": [""], "f_table_schema": [""], "f_table_name": [LAYER],
        "f_geometry_column": ["geom"], "styleName": ["interpretation"], "styleQML": [form_style(legend)],
        "styleSLD": [""], "useAsDefault": [True], "description": ["classes as a list"], "owner": [""],
        "ui": [""], "update_time": [pd.Timestamp("2000-01-01")],
    })  # fmt: skip
    with write_package(path) as package:
        blind.to_file(package, layer=LAYER, driver="GPKG")
        pyogrio.write_dataframe(style, package, layer="layer_styles", driver="GPKG", append=True)
    return [Path(path), strata_path(path)]


def form_style(legend: Legend) -> str:
    """Return a QGIS style with a form: `id` is read-only, `reference` is a list of the classes.

    References
    ----------
    QGIS user manual, "Attributes form properties", widget "Value map".
    """
    choices = [(f"{c.number} {c.name}", c.number) for c in legend.classes]
    return render_xml("form.qml", choices=[*choices, ("cannot be interpreted", UNINTERPRETABLE)])


def read_sample(
    path: str | os.PathLike[str],
    legend: Legend,
    grid: GridSpec,
    read: ReadClasses,
    points: geopandas.GeoDataFrame | None = None,
) -> Sample:
    """Read interpreted points.

    Raises InputError if the file is no sample, a reference is no class, no point is interpreted, or
    points lie outside the map or outside their stratum.

    The stratum of a point is its class in the map. It must equal the stratum in a field `stratum` or in the
    table beside the file, if any.

    Parameters
    ----------
    path
        GeoPackage or GeoJSON with one layer of points and a field ``reference`` of class numbers or names.
    read
        Returns the class numbers uint8 (y, x) of a window of the map.
    """
    path = Path(path)
    points = _read_points(path) if points is None else _named_fields(points, path)
    answers = [_class_of(value, legend) for value in points["reference"]]
    if wrong := Counter(
        str(value)[:40] for value, answer in zip(points["reference"], answers, strict=True) if answer is None
    ):
        raise InputError(
            f"cannot use the sample '{path}', since {sum(wrong.values())} of {len(points)} points have the "
            f"reference {', '.join(repr(value) for value in list(wrong)[:10])}, expected class numbers "
            f"1..{len(legend)}, names such as '{legend.names[0]}', or {UNINTERPRETABLE} for a point that "
            "cannot be interpreted",
            "Correct these points in their field 'reference'.",
        )
    empty = sum(code_of(value) is None for value in points["reference"])
    if empty == len(points):
        raise InputError(
            f"cannot use the sample '{path}', since none of its {len(points)} points has a reference",
            "Interpret the points in QGIS: fill in their field 'reference'.",
        )
    if empty:
        logger.warning(
            "%d of %d points in '%s' have no reference: they are left out like uninterpretable ones",
            empty, len(points), path,
        )  # fmt: skip
    classes = _classes_at(points, grid, read)
    _check_strata(path, points, classes, len(legend))
    matrix = np.zeros((len(legend), len(legend)), np.int64)
    for stratum, answer in zip(classes, answers, strict=True):
        if answer:
            matrix[stratum - 1, answer - 1] += 1
    return Sample(path.name, matrix, len(points) - int(matrix.sum()))


def _read_points(path: Path) -> geopandas.GeoDataFrame:
    return _named_fields(read_features(str(path), preferred=LAYER), path)


def _named_fields(points: geopandas.GeoDataFrame, path: Path) -> geopandas.GeoDataFrame:
    """Return points with lower-case field names; raises InputError if they are no sample."""
    fields = {str(name).lower(): name for name in points.columns}
    if "reference" not in fields or set(points.geometry.geom_type) - {"Point"} or points.crs is None:
        has = ", ".join(str(name) for name in points.columns if name != "geometry") or "none"
        kinds = ", ".join(sorted(map(str, set(points.geometry.geom_type))))
        raise InputError(
            f"cannot read the sample '{path}', since it holds {kinds or 'nothing'} with the fields {has} and "
            f"{'a' if points.crs else 'no'} CRS, expected points with a CRS and a field 'reference'",
            "Give the points that were drawn with --design-sample, interpreted.",
        )
    return points.rename(
        columns={fields[name]: name for name in ("reference", "stratum", "id") if name in fields}
    )


def _class_of(value: Any, legend: Legend) -> int | None:
    """Return the class number of a reference, `UNINTERPRETABLE`, or None for an invalid answer."""
    code = code_of(value)
    if code is None or code in _NO_CLASS:
        return UNINTERPRETABLE
    if isinstance(code, int):
        return code if 1 <= code <= len(legend) else None
    text = plain(code)
    numbers = {plain(c.name): c.number for c in legend.classes}
    digits = text.split(" ", 1)[0]
    if text not in numbers and is_integer(digits):
        # The form shows a class as its number and name.
        number = int(digits)
        name = legend.names[number - 1] if 1 <= number <= len(legend) else ""
        if text == plain(f"{digits} {name}"):
            return number
    return UNINTERPRETABLE if text in _NO_ANSWER else numbers.get(text)


def _classes_at(points: geopandas.GeoDataFrame, grid: GridSpec, read: ReadClasses) -> list[int]:
    """Return the map's class at each point, 0 outside the map and without data."""
    if points.crs.to_wkt() != grid.crs.to_wkt():
        points = convert(points, grid.crs.to_wkt(), "the sample")
    cols, rows = ~grid.transform @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    classes = []
    for row, col in zip(np.floor(rows), np.floor(cols), strict=True):
        number = 0
        if 0 <= row < grid.height and 0 <= col < grid.width:
            number = int(read(Window(int(row), int(col), 1, 1))[0, 0])
        classes.append(0 if number == IGNORE else number)
    return classes


def _check_strata(path: Path, points: geopandas.GeoDataFrame, classes: list[int], count: int) -> None:
    if "stratum" in points.columns:
        expected = [code_of(value) for value in points["stratum"]]
    elif strata_path(path).is_file() and "id" in points.columns:
        strata = _read_strata(strata_path(path))
        expected = [strata.get(code) if isinstance(code := code_of(i), int) else None for i in points["id"]]
    else:
        logger.info("the strata of '%s' are the classes of the map at its points", path)
        expected = list(classes)
    astray = sum(
        not 1 <= here <= count or here != drawn for here, drawn in zip(classes, expected, strict=True)
    )
    if astray:
        raise InputError(
            f"cannot use the sample '{path}', since {astray} of {len(points)} points lie where the map has "
            "another class than their stratum, or none, expected points that were drawn from this map",
            "Give the map from which they were drawn, with the same --mask, --bounds and --aoi.",
        )


def _read_strata(path: Path) -> dict[int, int]:
    """Return the stratum of each point by its id."""
    hint = "Give the file as it was drawn, or move it away: then the strata are the classes of the map."
    try:
        _, rows = read_rows(path, "the strata", hint)
        return {int(row["id"]): int(row["stratum"]) for _, row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read the strata '{path}', since it is no table with the columns "
            f"{', '.join(STRATA_FIELDS)}",
            hint,
        ) from error


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise InputError if a sample exists, unless `overwrite` is True and no point in it is interpreted."""
    path = Path(path)
    if not path.exists():
        if strata_path(path).exists() and not overwrite:
            raise InputError(
                f"cannot draw a sample into '{path}', since '{strata_path(path)}' holds the strata of an "
                f"earlier sample",
                "Give another --out, or type --overwrite to draw a new sample.",
            )
        return
    try:
        interpreted = overwrite and read_features(str(path), layer=LAYER)["reference"].notna().any()
    except Exception:  # an unreadable file may be of any kind
        interpreted = True
    if interpreted or not overwrite:
        raise InputError(
            f"cannot draw a sample into '{path}', since there is one already"
            + (", with interpreted points" if overwrite else ""),
            f"Use it: --sample {path}. Or move it away.",
        )
