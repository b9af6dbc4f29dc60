"""The sample of points that people interpret: drawn by stratum, given out blind, read back.

Who interprets a point must not know what the map says there: the file that is given out (`write_sample`)
holds places alone. The strata lie in a table beside it.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.areas import pixel_areas
from lulc.core.documents import read_rows
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError, Legend
from lulc.core.storage import write_atomically
from lulc.core.templates import render_xml
from lulc.core.windows import Window
from lulc.labels.schemes import is_integer, plain
from lulc.rasters.vectors import code_of, convert, read_features, write_package

if TYPE_CHECKING:
    import geopandas

LAYER = "sample"
ReadClasses = Callable[[Window], NDArray[np.uint8]]

UNINTERPRETABLE = 0
"""Reference of a point that can't be interpreted, as the form of the file offers it."""

_NO_ANSWER = {"uninterpretable", "not interpretable", "cannot be interpreted", "unclear", "unknown", "?"}
"""Texts that mean the same."""

_NO_CLASS = {UNINTERPRETABLE, 255, -1}

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
        Points without a reference, since they could not be, or were not, interpreted.
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
    """Path of the table with the strata of a sample."""
    return Path(path).with_name(f"{Path(path).stem}-strata.csv")


def draw_sample(
    read: ReadClasses,
    windows: Iterable[Window],
    grid: GridSpec,
    pixels: NDArray[np.int64],
    allocation: NDArray[np.int64],
    rng: np.random.Generator,
) -> geopandas.GeoDataFrame:
    """Draw a stratified random sample of pixels, without replacement, window by window.

    Within a stratum, equal areas are equally likely. Where pixels differ in area, more of them are drawn at
    first, and small ones are rejected more often.

    Parameters
    ----------
    read
        Gives the class numbers uint8 (y, x) of a window.
    windows
        Windows that tile the map, in the order in which `pixels` was counted.
    pixels, allocation
        Mapped pixels and wanted points of each class (class,).

    Returns
    -------
    GeoDataFrame
        Pixel centres with the columns id (in random order, so that the sequence tells nothing about
        the map's class), stratum (the map's class) and reference (empty, to be interpreted).
    """
    import geopandas
    import pandas as pd

    least, most = _range_of_areas(grid)
    # Choosing ranks first, then meeting them in passing, needs memory for the sample alone.
    drawn = [
        rng.choice(int(n), _candidates(int(n), int(k), least / most), replace=False)
        for n, k in zip(pixels, allocation, strict=True)
    ]
    orders = [np.argsort(chosen) for chosen in drawn]
    ranks = [chosen[order] for chosen, order in zip(drawn, orders, strict=True)]
    seen = np.zeros(len(pixels), np.int64)
    found: list[list[tuple[int, int, int]]] = [[] for _ in pixels]
    for window in windows:
        classes = read(window).ravel()
        for k, chosen in enumerate(ranks):
            places = np.flatnonzero(classes == k + 1)
            low, high = np.searchsorted(chosen, (seen[k], seen[k] + len(places)))
            for i in range(low, high):
                row, col = divmod(int(places[chosen[i] - seen[k]]), window.width)
                found[k].append((int(orders[k][i]), window.row + row, window.col + col))
            seen[k] += len(places)
    kept = [
        (k + 1, row, col)
        for k, candidates in enumerate(found)
        for row, col in _accepted(sorted(candidates), int(allocation[k]), grid, (least, most), rng)
    ]
    shuffled = [kept[i] for i in rng.permutation(len(kept))]
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
    """Smallest and largest area of pixels at places all over a grid; (1, 1) where all are alike."""
    rows, cols = (np.unique(np.linspace(0, side - 1, 17).astype(int)) for side in grid.shape)
    areas = [pixel_areas(grid, Window(int(row), int(col), 1, 1)) for row in rows for col in cols]
    known = [float(area[0, 0]) for area in areas if area is not None]
    if not known or min(known) > 0.999 * max(known):
        return 1.0, 1.0
    return min(known), max(known)


def _candidates(pixels: int, points: int, ratio: float) -> int:
    """Return how many pixels to draw so that `points` of them are accepted, with some to spare."""
    if ratio == 1:
        return points
    return min(pixels, int(points / ratio + 6 * np.sqrt(points / ratio)) + 6)


def _accepted(
    candidates: list[tuple[int, int, int]],
    points: int,
    grid: GridSpec,
    limits: tuple[float, float],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Row and column of the candidates that are kept, the likelier the larger their pixel is."""
    places = [(row, col) for _, row, col in candidates]
    if len(places) <= points:
        return places
    kept: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []
    for row, col in places:
        area = pixel_areas(grid, Window(row, col, 1, 1))
        likely = 1.0 if area is None else float(area[0, 0]) / limits[1]
        (kept if rng.random() < likely else rejected).append((row, col))
    return [*kept, *rejected][:points]


def write_sample(points: geopandas.GeoDataFrame, path: str | os.PathLike[str], legend: Legend) -> list[Path]:
    """Write points to interpret, and their strata in a table beside them.

    The GeoPackage holds no stratum. Its style has QGIS offer the classes as a list in the field `reference`.

    Returns
    -------
    list of Path
        GeoPackage and table.
    """
    import pandas as pd
    import pyogrio

    names = legend.names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(STRATA_FIELDS)
    writer.writerows((i, k, names[k - 1]) for i, k in zip(points["id"], points["stratum"], strict=True))
    with write_atomically(strata_path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    blind = points.drop(columns="stratum")
    # QGIS reads the style by itself only where the table has all of these columns.
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
    """QGIS style with a form: `id` is read only, `reference` is chosen from the names of the classes.

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

    The stratum of a point is its class in the map. Where a field `stratum` or the table beside the file says
    which it was when the point was drawn, both must be the same.

    Parameters
    ----------
    path
        GeoPackage or GeoJSON with one layer of points and a field ``reference`` of class numbers or names.
    read
        Gives the class numbers uint8 (y, x) of a window of the map.

    Raises
    ------
    InputError
        If the file is no sample, a reference is no class, no point is interpreted, or points lie outside the
        map or where it has another class than their stratum.
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
    """Return points with the names of fields in small letters; raises InputError where they are no sample."""
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
    named = {plain(c.name): c.number for c in legend.classes}
    number = text.split(" ", 1)[0]
    if (
        text not in named
        and is_integer(number)
        and text == plain(f"{number} {_name_of(int(number), legend)}")
    ):
        return int(number)
    return UNINTERPRETABLE if text in _NO_ANSWER else named.get(text)


def _name_of(number: int, legend: Legend) -> str:
    return legend.names[number - 1] if 1 <= number <= len(legend) else ""


def _classes_at(points: geopandas.GeoDataFrame, grid: GridSpec, read: ReadClasses) -> list[int]:
    """The map's class at each point, 0 outside the map and where it has none."""
    if points.crs.to_wkt() != grid.crs.to_wkt():
        points = convert(points, grid.crs.to_wkt(), "the sample")
    cols, rows = ~grid.transform @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    classes = []
    for row, col in zip(np.floor(rows), np.floor(cols), strict=True):
        known = np.isfinite([row, col]).all()
        pixel = Window(int(row), int(col), 1, 1).intersect(grid.extent) if known else Window(0, 0, 0, 0)
        inside = pixel.height and pixel.width
        found = int(read(pixel)[0, 0]) if inside else 0
        classes.append(0 if found == 255 else found)
    return classes


def _check_strata(path: Path, points: geopandas.GeoDataFrame, classes: list[int], count: int) -> None:
    strata: Mapping[int, int] | None = None
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
    """Stratum of each point by its number."""
    hint = "Give the file as it was drawn, or move it away: then the map says the strata."
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
    """Refuse to replace a sample: it may hold days of interpretation.

    Raises
    ------
    InputError
        If there is a file and `overwrite` is not set, or a point in it has a reference.
    """
    path = Path(path)
    if not path.exists():
        if strata_path(path).exists() and not overwrite:
            raise InputError(
                f"cannot draw a sample into '{path}', since '{strata_path(path)}' holds the strata of one "
                "that was given out",
                "Give another --out, or type --overwrite to draw anew.",
            )
        return
    try:
        begun = overwrite and read_features(str(path), layer=LAYER)["reference"].notna().any()
    except Exception:  # what can't be read may be anything
        begun = True
    if begun or not overwrite:
        raise InputError(
            f"cannot draw a sample into '{path}', since there is one already"
            + (", with points that were interpreted" if overwrite else ""),
            f"Use it: --sample {path}. Or move it away.",
        )
