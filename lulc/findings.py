"""What an evaluation found, and its files: JSON, CSV, Markdown, one HTML page and pictures."""

from __future__ import annotations

import csv
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc import __version__
from lulc.accuracy import BINS, Calibration, Comparison, Scores, score
from lulc.documents import write_document
from lulc.grid import GridSpec
from lulc.page import Page, Picture, Section, Table, number, write_html, write_markdown
from lulc.report import draw_confusion, draw_map, draw_panels, draw_reliability
from lulc.schema import Legend
from lulc.storage import write_atomically

FORMAT_VERSION = 1

FILES = (
    "report.json", "report.md", "report.html", "classes.csv", "confusion.csv", "change.csv", "map.png",
    "side-by-side.png", "confusion.png", "reliability.png",
)  # fmt: skip
"""Everything that is written; nothing else in the folder is touched."""

SCORE_HEADER = (
    "part", "pixels", "overall accuracy", "kappa", "micro-F1", "macro-F1", "weighted F1", "mean IoU",
)  # fmt: skip
CLASS_HEADER = ("class", "precision", "recall", "F1", "IoU", "reference pixels", "map pixels")


@dataclass(frozen=True)
class Change:
    """A second map beside the first.

    Parameters
    ----------
    name
        The second map.
    matrix
        int64 (N + 1, N + 1), rows this map, columns the second, index 0 unclassified.
    test
        McNemar's test on the pixels where both maps and the reference have a class.
    """

    name: str
    matrix: NDArray[np.int64]
    test: Comparison


@dataclass(frozen=True)
class Views:
    """Decimated pictures of what was compared.

    Parameters
    ----------
    grid
        Grid of the whole map.
    map, reference
        uint8 (y, x), class numbers, 0 unclassified, 255 no data.
    image
        uint8 (y, x, 3), or None.
    """

    grid: GridSpec
    map: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    image: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Findings:
    """All counts of an evaluation; figures follow from them.

    Parameters
    ----------
    map, reference
        Names of the files.
    legend, level1_legend
        The classes, and the groups of CORINE level 1.
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified.
    level1
        int64 (6, 6), the same for CORINE level 1; None where no class has a group.
    level1_from_codes
        True where the reference's groups come from its codes rather than from its classes.
    border
        Width of the band along label borders in pixels.
    near, far
        The matrix within the band, and beyond it; None without a band.
    regions
        (name, matrix) of each stack or region.
    calibration
        None where the map holds no activations.
    change
        None without a second map.
    without_map, without_reference
        Pixels that were not scored, since the one or the other has no data there.
    made
        (name, value) of what the map says about how it was made.
    """

    map: str
    reference: str
    legend: Legend
    level1_legend: Legend
    confusion: NDArray[np.int64]
    level1: NDArray[np.int64] | None
    level1_from_codes: bool
    border: int
    near: NDArray[np.int64] | None
    far: NDArray[np.int64] | None
    regions: tuple[tuple[str, NDArray[np.int64]], ...]
    calibration: Calibration | None
    change: Change | None
    without_map: int
    without_reference: int
    made: tuple[tuple[str, str], ...]

    @property
    def scores(self) -> Scores:
        """Figures of all scored pixels."""
        return score(self.confusion, self.legend)

    def parts(self) -> list[tuple[str, Scores]]:
        """(name, figures) of the total, of level 1, and of border and interior."""
        named = [("all classes", self.confusion, self.legend)]
        if self.level1 is not None:
            named.append(("CORINE level 1", self.level1, self.level1_legend))
        if self.near is not None and self.far is not None:
            named.append((f"border, up to {self.border} px", self.near, self.legend))
            named.append(("interior", self.far, self.legend))
        return [(name, score(matrix, legend)) for name, matrix, legend in named]

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON-ready data."""
        levels = self.level1_legend
        return {
            "format_version": FORMAT_VERSION,
            "lulc": __version__,
            "map": self.map,
            "reference": self.reference,
            "made": dict(self.made),
            "legend": self.legend.to_json(),
            "without_map": self.without_map,
            "without_reference": self.without_reference,
            "total": _figures(self.confusion, self.legend),
            "level1": None
            if self.level1 is None
            else {"from_codes": self.level1_from_codes, **_figures(self.level1, levels)},
            "border_pixels": self.border,
            "border": None if self.near is None else _figures(self.near, self.legend),
            "interior": None if self.far is None else _figures(self.far, self.legend),
            "regions": [{"name": name, **_figures(m, self.legend)} for name, m in self.regions],
            "calibration": None if self.calibration is None else dataclasses.asdict(self.calibration),
            "change": None
            if self.change is None
            else {
                "map": self.change.name,
                "matrix": self.change.matrix.tolist(),
                "mcnemar": dataclasses.asdict(self.change.test),
            },
        }


def _figures(matrix: NDArray[np.int64], legend: Legend) -> dict[str, Any]:
    return {**dataclasses.asdict(score(matrix, legend)), "confusion": matrix.tolist()}


def write_findings(findings: Findings, views: Views, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every file of a report, each whole or not at all; `report.json` comes last.

    Files of an earlier report that this one has no content for are removed, so that the folder holds
    one report.

    Returns
    -------
    list of Path
        The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        _write_rows(folder / "classes.csv", _class_rows(findings)),
        _write_rows(folder / "confusion.csv", _matrix_rows(findings.confusion, findings.legend)),
    ]
    if findings.change:
        rows = _matrix_rows(findings.change.matrix, findings.legend, corner="map\\second map")
        written.append(_write_rows(folder / "change.csv", rows))
    pictures = _draw(findings, views, folder)
    written += pictures
    page = _page(findings, {p.name: p for p in pictures})
    write_markdown(page, folder / "report.md")
    write_html(page, folder / "report.html")
    write_document(folder / "report.json", findings.to_json())
    written += [folder / name for name in ("report.md", "report.html", "report.json")]
    for name in FILES:
        if folder / name not in written:
            (folder / name).unlink(missing_ok=True)
    return written


def _class_rows(findings: Findings) -> list[list[Any]]:
    rows: list[list[Any]] = [["number", "name", "precision", "recall", "f1", "iou", "support", "mapped"]]
    for c in findings.scores.classes:
        rows.append([("" if v is None else v) for v in dataclasses.astuple(c)])
    return rows


def _matrix_rows(
    matrix: NDArray[np.int64], legend: Legend, corner: str = "reference\\map"
) -> list[list[Any]]:
    names = ["unclassified", *legend.names]
    return [[corner, *names], *([n, *row] for n, row in zip(names, matrix.tolist(), strict=True))]


def _write_rows(path: Path, rows: list[list[Any]]) -> Path:
    with write_atomically(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def _draw(findings: Findings, views: Views, folder: Path) -> list[Path]:
    legend, grid = findings.legend, views.grid
    paths = [folder / n for n in ("map.png", "side-by-side.png", "confusion.png")]
    draw_map(views.map, legend, grid, paths[0], title=f"Land cover, {findings.map}")
    panels = [("Reference", views.reference), ("Map", views.map)]
    if views.image is not None:
        panels.insert(0, ("Image", views.image))
    draw_panels(panels, legend, grid, paths[1])
    title = "Confusion matrix, % of each reference class"
    draw_confusion(findings.confusion, legend, paths[2], title=title)
    if findings.calibration:
        paths.append(folder / "reliability.png")
        draw_reliability(findings.calibration, paths[-1], title="Reliability of the activations")
    return paths


def _page(findings: Findings, pictures: dict[str, Path]) -> Page:
    scores = findings.scores
    summary = (
        ("overall accuracy", number(scores.overall_accuracy)),
        ("micro-F1", number(scores.micro.f1 if scores.micro else None)),
        ("macro-F1", number(scores.macro.f1 if scores.macro else None)),
        ("Cohen's kappa", number(scores.kappa)),
        ("scored pixels", f"{scores.pixels:,}"),
    )
    sections = [
        _map_section(findings, pictures),
        Section("Scores", _notes(findings), tables=(score_table("Scores", findings.parts()),)),
        Section(
            "Classes",
            (
                "Precision is the user's accuracy, recall the producer's. A dash marks classes that occur "
                "neither in the reference nor in the map.",
            ),
            tables=(class_table(scores),),
        ),
        Section(
            "Confusion",
            pictures=(Picture(pictures["confusion.png"], _confusion_words(findings)),),
            tables=(_matrix_table(findings.confusion, findings.legend, "reference", "map"),),
        ),
    ]
    if findings.regions:
        parts = [(name, score(matrix, findings.legend)) for name, matrix in findings.regions]
        sections.append(Section("Regions", tables=(score_table("Stacks and regions", parts),)))
    if findings.calibration:
        sections.append(_calibration_section(findings.calibration, pictures["reliability.png"]))
    if findings.change:
        sections.append(_change_section(findings.change, findings.legend))
    if findings.made:
        table = Table("What the map says about itself", ("field", "value"), findings.made, text_columns=2)
        sections.append(Section("How the map was made", tables=(table,)))
    return Page(f"{findings.map} against {findings.reference}", summary, tuple(sections))


def _map_section(findings: Findings, pictures: dict[str, Path]) -> Section:
    return Section(
        "Map",
        pictures=(
            Picture(pictures["map.png"], f"Land-cover map {findings.map} with its legend"),
            Picture(
                pictures["side-by-side.png"],
                f"Reference {findings.reference} beside the map {findings.map}, in the same colours",
            ),
        ),
    )


def _notes(findings: Findings) -> tuple[str, ...]:
    scores = findings.scores
    notes = [
        "Macro and weighted means run over the classes that occur in the reference or in the map.",
        f"{findings.without_reference:,} pixels have no reference and {findings.without_map:,} pixels with "
        "one have no map; neither are scored.",
    ]
    if scores.unclassified:
        notes.append(
            f"{scores.unclassified:,} scored pixels are unclassified in the map (class 0): each is a miss."
        )
    if findings.level1 is not None and findings.level1_from_codes:
        notes.append(
            "Level 1 of the reference follows from its codes; that of the map from its classes, where a "
            "class that gathers codes of several groups counts as the group in its legend."
        )
    elif findings.level1 is not None:
        notes.append(
            "Level 1 follows from the classes on both sides; a class that gathers codes of several groups "
            "(of the 13 classes, bare areas and grasslands) counts as the group in its legend: bare areas as "
            "artificial, grasslands as semi-natural."
        )
    return tuple(notes)


def score_table(caption: str, parts: list[tuple[str, Scores]]) -> Table:
    """A table with one row of figures for each (name, scores)."""
    rows = []
    for name, s in parts:
        f1 = [number(m.f1 if m else None) for m in (s.micro, s.macro, s.weighted)]
        iou = number(s.macro.iou if s.macro else None)
        rows.append((name, f"{s.pixels:,}", number(s.overall_accuracy), number(s.kappa), *f1, iou))
    return Table(caption, SCORE_HEADER, tuple(rows))


def class_table(scores: Scores) -> Table:
    """A table with one row for each class."""
    rows = tuple(
        (
            f"{c.number} {c.name}",
            *(number(v) for v in (c.precision, c.recall, c.f1, c.iou)),
            f"{c.support:,}",
            f"{c.mapped:,}",
        )
        for c in scores.classes
    )
    return Table("Classes", CLASS_HEADER, rows)


def _matrix_table(matrix: NDArray[np.int64], legend: Legend, rows: str, columns: str) -> Table:
    shown = [i for i in range(len(matrix)) if matrix[i].any() or matrix[:, i].any()]
    names = ["0 unclassified", *(f"{c.number} {c.name}" for c in legend.classes)]
    cells = tuple((names[i], *(f"{matrix[i, j]:,}" for j in shown)) for i in shown if matrix[i].any())
    header = (f"{rows} / {columns}", *(str(j) for j in shown))
    return Table(f"Pixels: rows {rows}, columns {columns}, by class number", header, cells)


def _confusion_words(findings: Findings) -> str:
    off = findings.confusion * ~np.eye(len(findings.confusion), dtype=bool)
    if not off.any():
        return "Confusion matrix: every scored pixel is right"
    i, j = np.unravel_index(off.argmax(), off.shape)
    names = ("unclassified", *findings.legend.names)
    return f"Confusion matrix; the most frequent error is {names[i]} mapped as {names[j]}"


def _calibration_section(calibration: Calibration, picture: Path) -> Section:
    rows = (
        (f"expected calibration error, {BINS} bins", number(calibration.ece, 4)),
        ("the same, mean over the classes' own activations", number(calibration.classwise_ece, 4)),
        ("negative log-likelihood, nats per pixel", number(calibration.nll, 4)),
        ("Brier score, 0..2", number(calibration.brier, 4)),
        ("pixels", f"{calibration.pixels:,}"),
    )
    words = f"Accuracy over confidence; expected calibration error {calibration.ece:.3f}"
    return Section(
        "Calibration",
        ("Where the bars follow the diagonal, an activation can be read as a probability.",),
        (Picture(picture, words),),
        (Table("Calibration", ("figure", "value"), rows),),
    )


def _change_section(change: Change, legend: Legend) -> Section:
    test = change.test
    how = "exact binomial" if test.exact else f"chi-squared {test.statistic:.1f} with continuity correction"
    p = f"= {test.p_value:.3g}" if test.p_value > 0 else "< 1e-300"
    text = (
        f"Against the reference, {test.only_first:,} pixels are right in this map only and "
        f"{test.only_second:,} in {change.name} only: McNemar's test ({how}), p {p}. "
        "Neighbouring pixels are not independent, so the true p is larger."
    )
    table = _matrix_table(change.matrix, legend, "this map", "second map")
    return Section(f"Change to {change.name}", (text,), tables=(table,))
