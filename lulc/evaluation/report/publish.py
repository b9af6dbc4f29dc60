"""The files of a report: JSON, CSV, Markdown, one HTML page and pictures."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.documents import read_document, write_document, write_rows
from lulc.core.removal import OwnFolder, remove_leftovers
from lulc.core.schema import InputError, Legend
from lulc.core.storage import Lock
from lulc.core.text import visible
from lulc.evaluation.measures.label_errors import RASTER, TABLE
from lulc.evaluation.measures.results import FORMAT_VERSION, Areas, Results
from lulc.evaluation.report.document import write_html, write_markdown
from lulc.evaluation.report.sections import NO_IMPRINT, Imprint, page_of
from lulc.evaluation.report.views import UnsureSquare, Views, least_sure

FILES = (
    "report.json", "report.md", "report.html", "classes.csv", "confusion.csv", "change.csv", "areas.csv",
    "map.png", "side-by-side.png", "confusion.png", "reliability.png", "least-sure.png", "areas.png",
    "history.png",
)  # fmt: skip
"""Files of a report; others in the folder stay unchanged."""

FIRST, LAST = "classes.csv", "report.json"  # the files that are written first and last


def write_report(
    results: Results,
    views: Views,
    folder: str | os.PathLike[str],
    imprint: Imprint = NO_IMPRINT,
    more: Callable[[], Sequence[Path]] = tuple,
) -> list[Path]:
    """Write every file of a report, each whole or not at all; returns their paths.

    `more` writes further files of the report, and returns their paths.

    Files of an earlier report without new content are removed, so that the folder holds one report.
    """
    folder = Path(folder)
    own = own_folder(folder)
    own.take(lambda: is_report(folder))
    with Lock(own.mark, f"the report into '{folder}'"):
        remove_leftovers(folder)
        written = _write(results, views, own, imprint, more)
        own.release()
    return written


def own_folder(folder: Path) -> OwnFolder:
    """Return the folder of a report, which is marked until the report is complete."""
    return OwnFolder(folder, "report", "|".join(map(re.escape, (*FILES, RASTER, TABLE))), "a report")


def is_report(folder: Path) -> bool:
    """True if a folder holds a complete report of this toolkit."""
    try:
        read_document(folder / LAST, _REPORT, "report", FORMAT_VERSION)
    except InputError:
        return False
    return True


_REPORT = {"type": "object", "required": ["format_version", "lulc", "map"]}


def _write(
    results: Results, views: Views, own: OwnFolder, imprint: Imprint, more: Callable[[], Sequence[Path]]
) -> list[Path]:
    folder = own.path
    own.remove(LAST)
    tables = {FIRST: _class_rows(results)}
    if results.reference is not None:
        tables["confusion.csv"] = _matrix_rows(results.confusion, results.legend)
    if results.change:
        corner = "map\\second map"
        tables["change.csv"] = _matrix_rows(results.change.matrix, results.legend, corner)
    if results.areas.estimates:
        tables["areas.csv"] = _area_rows(results.areas, results.legend)
    for name, rows in tables.items():
        write_rows(folder / name, rows)
    written = [folder / name for name in tables]
    places = least_sure(views)
    pictures = _draw(results, views, places, folder)
    written += pictures
    page = page_of(results, views, places, {p.name: p for p in pictures}, imprint)
    write_markdown(page, folder / "report.md")
    write_html(page, folder / "report.html")
    written += [folder / name for name in ("report.md", "report.html")]
    for name in FILES:
        if folder / name not in written:
            own.remove(name)
    written += more()
    write_document(folder / LAST, {**dataclasses.asdict(imprint), **results.to_json()})
    return [*written, folder / LAST]


def _class_rows(results: Results) -> list[list[Any]]:
    rows: list[list[Any]] = [["number", "name", "precision", "recall", "f1", "iou", "support", "mapped"]]
    if results.reference is None:
        mapped = results.areas.mapped
        return rows + [[c.number, c.name, *[""] * 5, int(mapped[c.number])] for c in results.legend.classes]
    for c in results.scores.classes:
        rows.append([("" if v is None else v) for v in dataclasses.astuple(c)])
    return rows


def _matrix_rows(
    matrix: NDArray[np.int64], legend: Legend, corner: str = "reference\\map"
) -> list[list[Any]]:
    names = ["unclassified", *legend.names]
    return [[corner, *names], *([n, *row] for n, row in zip(names, matrix.tolist(), strict=True))]


def _area_rows(areas: Areas, legend: Legend) -> list[list[Any]]:
    assert areas.estimates
    unit = areas.unit
    rows: list[list[Any]] = [[
        "number", "name", f"mapped {unit}", f"area {unit}", "standard error",
        "user's accuracy", "standard error", "producer's accuracy", "standard error",
    ]]  # fmt: skip
    estimates = areas.estimates
    for i, c in enumerate(legend.classes):
        of_class = (estimates.areas[i], estimates.users[i], estimates.producers[i])
        values = [v for e in of_class for v in (e.value, e.standard_error)]
        mapped = float(areas.values[c.number])
        rows.append([c.number, c.name, mapped, *("" if np.isnan(v) else v for v in values)])
    return rows


def _draw(results: Results, views: Views, places: list[UnsureSquare], folder: Path) -> list[Path]:
    # Importing matplotlib is slow.
    from lulc.evaluation.report import figures

    classes = (dataclasses.replace(c, name=visible(c.name)) for c in results.legend.classes)
    legend, grid = Legend(results.legend.name, tuple(classes)), views.grid
    paths: list[Path] = []

    def new(name: str) -> Path:
        paths.append(folder / name)
        return paths[-1]

    title = visible(f"Land cover, {results.map}")
    figures.draw_panels([(title, views.map)], legend, grid, new("map.png"))
    panels = [("Image", views.image), ("Reference", views.reference), ("Map", views.map)]
    available = [(title, view) for title, view in panels if view is not None]
    if len(available) > 1:
        figures.draw_panels(available, legend, grid, new("side-by-side.png"))
    if results.confusion.any():
        title = f"Confusion matrix{results.scored}, % of each reference class"
        figures.draw_confusion(results.confusion, legend, new("confusion.png"), title=title)
    if results.calibration:
        title = f"Reliability of the probabilities{results.scored}"
        figures.draw_reliability(results.calibration, new("reliability.png"), title=title)
    if (uncertainty := views.entropy()) is not None:
        path = new("least-sure.png")
        figures.draw_uncertainty(uncertainty, places, grid, path, title="Uncertainty of the map")
    areas = results.areas
    if areas.estimates:
        mapped = areas.values[1:].tolist()
        figures.draw_areas(areas.estimates.areas, mapped, legend, new("areas.png"), unit=areas.unit)
    if results.training:
        figures.draw_history(results.training, new("history.png"))
    return paths
