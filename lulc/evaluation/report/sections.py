"""Sections of a report: text, pictures and tables from the results of an evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.documents import parse_json
from lulc.core.schema import Legend
from lulc.core.version import __version__
from lulc.evaluation.measures.area_estimation import Estimate
from lulc.evaluation.measures.metrics import BINS, Calibration, Scores, score
from lulc.evaluation.measures.results import MACRO, Areas, Change, Results, read_history
from lulc.evaluation.report.document import Page, Picture, Section, Table, number
from lulc.evaluation.report.viewer import embed
from lulc.evaluation.report.views import UnsureSquare, Views, entropy_by_class
from lulc.labels.labels import words_of

SCORE_HEADER = (
    "part", "pixels", "overall accuracy", "kappa", "macro-F1", "weighted F1", "mean IoU",
)  # fmt: skip
CLASS_HEADER = (
    "class", "user's accuracy", "producer's accuracy", "F1", "IoU", "reference pixels", "map pixels",
)  # fmt: skip

SEEN = "Training land"


@dataclass(frozen=True)
class Imprint:
    """Optional texts of the title page."""

    title: str | None = None
    author: str | None = None
    date: str | None = None
    licence: str | None = None

    def byline(self) -> tuple[tuple[str, str], ...]:
        """Return (name, value) of each text but the title."""
        texts = (("Author", self.author), ("Date", self.date), ("Licence", self.licence))
        return tuple((name, value) for name, value in texts if value)


NO_IMPRINT = Imprint()


UNSCORED = (
    "No score: every labelled pixel lies on training land, so that no label measures the quality of the map.",
    "Give labels of other land, or interpret a sample of points (--design-sample, then --sample).",
)
"""Reason for a report without scores, and the remedy."""


def page_of(
    results: Results,
    views: Views,
    places: Sequence[UnsureSquare],
    pictures: Mapping[str, Path],
    imprint: Imprint = NO_IMPRINT,
) -> Page:
    """Return the report of an evaluation."""
    sections = [_map_section(results, pictures)]
    if results.reference is not None:
        sections += _agreement_sections(results, pictures)
    sections.append(_area_section(results.areas, results.legend, pictures))
    if results.calibration:
        sections.append(_calibration_section(results, results.calibration, pictures["reliability.png"]))
    if "least-sure.png" in pictures:
        sections.append(_unsure_section(results.legend, views, places, pictures["least-sure.png"]))
    if results.change:
        sections.append(_change_section(results.change, results.legend))
    if results.seen is not None:
        sections.append(_seen_section(results.seen, results.legend))
    if results.training:
        sections.append(_training_section(results.training, pictures["history.png"]))
    if results.baseline:
        sections.append(_baseline_section(results.baseline))
    sections.append(_made_section(results))
    levels = [gathered.level for gathered in results.levels]
    viewer = embed(views, results.legend, levels, places, results.map)
    sample = results.areas.sample
    against = results.reference or (f"the points of {sample.name}" if sample else None)
    title = imprint.title or (f"{results.map} against {against}" if against else results.map)
    return Page(title, _summary(results), tuple(sections), viewer, imprint.byline())


def _summary(results: Results) -> tuple[tuple[str, str], ...]:
    """Return the headline metrics: agreement with a reference, else estimates of a sample."""
    scores, areas = results.scores, results.areas
    small = (results.baseline or {}).get("small")
    if results.reference is not None and not scores.pixels and results.baseline and small:
        # The final models learnt from all labels; these scores are from before.
        return (
            (f"macro-F1{_counted(len(small) - 1, results)} of the small models on held-out labels, before "
             "training on all labels", number(small[MACRO])),
            ("held-out pixels", f"{results.baseline['pixels']:,}"),
            ("polygons or patches", f"{results.baseline['patches']:,}"),
        )  # fmt: skip
    if results.reference is not None:
        return (
            (f"overall accuracy{results.scored}", number(scores.overall_accuracy)),
            (
                f"macro-F1{_counted(sum(c.f1 is not None for c in scores.classes), results)}",
                number(scores.macro.f1 if scores.macro else None),
            ),
            ("Cohen's kappa", number(scores.kappa)),
            ("scored pixels", f"{scores.pixels:,}"),
        )
    mapped = (f"mapped {areas.unit}", f"{areas.values.sum():,.0f}")
    if areas.estimates is None or areas.sample is None:
        return (mapped,)
    return (
        ("overall accuracy, 95 % interval", _interval(areas.estimates.overall)),
        ("interpreted points", f"{areas.sample.points:,}"),
        mapped,
    )


def _counted(classes: int, results: Results) -> str:
    """Return the number of classes in a mean, if it is not over the whole legend."""
    return f" of {classes} of {len(results.legend)} classes" if 0 < classes < len(results.legend) else ""


def _agreement_sections(results: Results, pictures: Mapping[str, Path]) -> list[Section]:
    """Return the sections on agreement with the reference."""
    scores, where = results.scores, results.scored
    shown = pictures.get("confusion.png")
    if not scores.pixels and results.seen is not None:
        return [Section(f"Scores{where}", UNSCORED)]
    sections = [
        Section(f"Scores{where}", _notes(results), tables=(score_table(f"Scores{where}", results.parts()),)),
        Section(
            f"Classes{where}",
            (
                "User's accuracy (precision) is the fraction of the pixels mapped as a class that are right. "
                "Producer's accuracy (recall) is the fraction of the reference pixels of a class that are "
                "found. A dash marks classes that occur neither in the reference nor in the map.",
            ),
            tables=(class_table(scores, f"Classes{where}"),),
        ),
        Section(
            f"Confusion{where}",
            pictures=(Picture(shown, _confusion_words(results)),) if shown else (),
            tables=(_matrix_table(results.confusion, results.legend, "reference", "map"),),
        ),
    ]
    if results.regions:
        parts = [(name, score(matrix, results.legend)) for name, matrix in results.regions]
        sections.append(Section("Stacks and regions", tables=(score_table("Stacks and regions", parts),)))
    return sections


def _seen_section(seen: NDArray[np.int64], legend: Legend) -> Section:
    """Return the scores on training land, which do not measure the quality of the map."""
    scores = score(seen, legend)
    text = (
        "These pixels lie in training stacks. Their scores show how well the network remembers its labels; "
        "elsewhere the scores on held-out land apply."
    )
    table = score_table(SEEN, [("all classes", scores)])
    return Section(SEEN, (text,), tables=(table, class_table(scores, f"Classes, {SEEN.lower()}")))


def _map_section(results: Results, pictures: Mapping[str, Path]) -> Section:
    shown = [Picture(pictures["map.png"], f"Land-cover map {results.map} with its legend", instead=True)]
    if "side-by-side.png" in pictures:
        other = f"Reference {results.reference}" if results.reference else "Image"
        words = f"{other} beside the map {results.map}, in the same colours"
        shown.append(Picture(pictures["side-by-side.png"], words))
    text: tuple[str, ...] = ()
    if results.reference is None and results.areas.sample is None:
        text = (
            "This report only describes the map: without a reference it can't measure the quality of the "
            "map. Give labels, or interpreted points (--design-sample, then --sample).",
        )
    return Section("Map", text, pictures=tuple(shown))


def _notes(results: Results) -> tuple[str, ...]:
    scores = results.scores
    notes = [
        "Only held-out land is scored, which lies outside the training stacks. It includes the validation "
        "stacks, although these chose the epoch of the weights."
        if results.seen is not None
        else "It is unknown which land the training used, so scores may be too good. Give the manifest.json "
        "of the stacks (--regions) or the run folder (--run) to score only held-out land.",
        "Macro and weighted means are over the classes that occur in the reference or in the map.",
        f"{results.without_reference:,} pixels have no reference and {results.without_map:,} with one "
        "have no map; they are not scored.",
    ]
    if scores.unclassified:
        notes.append(
            f"{scores.unclassified:,} scored pixels are unclassified in the map (class 0): each is a miss."
        )
    if any(g.from_codes for g in results.levels):
        notes.append(
            "Level 1 of the reference follows from its codes, and that of the map from its classes; a class "
            "with codes of several groups counts as the group in its legend."
        )
    elif results.levels:
        is_original = results.legend.name == "kaakonkulma-13"
        notes.append(
            "CORINE levels follow from the classes of map and reference; a class with codes of several "
            "groups counts as the group in its legend"
            + (": bare areas as artificial, grasslands as semi-natural." if is_original else ".")
        )
    if any(g.summed is not None for g in results.levels):
        notes.append(
            "With activations summed, the group of the map is the one with the highest sum of activations, "
            "rather than the group of the most likely class."
        )
    return tuple(notes)


def score_table(caption: str, parts: list[tuple[str, Scores]]) -> Table:
    """Return a table with one row of metrics for each (name, scores)."""
    rows = []
    for name, s in parts:
        f1 = [number(m.f1 if m else None) for m in (s.macro, s.weighted)]
        iou = number(s.macro.iou if s.macro else None)
        rows.append((name, f"{s.pixels:,}", number(s.overall_accuracy), number(s.kappa), *f1, iou))
    return Table(caption, SCORE_HEADER, tuple(rows))


def class_table(scores: Scores, caption: str = "Classes") -> Table:
    """Return a table with one row for each class."""
    rows = []
    for c in scores.classes:
        ratios = map(number, (c.precision, c.recall, c.f1, c.iou))
        rows.append((f"{c.number} {c.name}", *ratios, f"{c.support:,}", f"{c.mapped:,}"))
    return Table(caption, CLASS_HEADER, tuple(rows))


def _matrix_table(matrix: NDArray[np.int64], legend: Legend, rows: str, columns: str) -> Table:
    shown = [i for i in range(len(matrix)) if matrix[i].any() or matrix[:, i].any()]
    names = ["0 unclassified", *(f"{c.number} {c.name}" for c in legend.classes)]
    cells = tuple((names[i], *(f"{matrix[i, j]:,}" for j in shown)) for i in shown if matrix[i].any())
    header = (f"{rows} / {columns}", *(str(j) for j in shown))
    return Table(f"Pixels: rows {rows}, columns {columns}, by class number", header, cells)


def _confusion_words(results: Results) -> str:
    off = results.confusion * ~np.eye(len(results.confusion), dtype=bool)
    if not off.any():
        return "Confusion matrix: every scored pixel is right"
    i, j = np.unravel_index(off.argmax(), off.shape)
    names = ("unclassified", *results.legend.names)
    return f"Confusion matrix; the most frequent error is {names[i]} mapped as {names[j]}"


def _calibration_section(results: Results, calibration: Calibration, picture: Path) -> Section:
    rows = (
        (f"expected calibration error, {BINS} bins", number(calibration.ece, 4)),
        ("classwise expected calibration error", number(calibration.classwise_ece, 4)),
        ("negative log-likelihood, nats per pixel", number(calibration.nll, 4)),
        ("Brier score, 0..2", number(calibration.brier, 4)),
        ("pixels", f"{calibration.pixels:,}"),
    )
    words = f"Accuracy over confidence; expected calibration error {calibration.ece:.3f}"
    return Section(
        f"Calibration{results.scored}",
        ("Activations are calibrated probabilities where the bars follow the diagonal.",),
        (Picture(picture, words),),
        (Table("Calibration", ("metric", "value"), rows),),
    )


def _change_section(change: Change, legend: Legend) -> Section:
    test = change.test
    method = (
        "exact binomial" if test.exact else f"chi-squared {test.statistic:.1f} with continuity correction"
    )
    p = f"= {test.p_value:.3g}" if test.p_value > 0 else "< 1e-300"
    text = (
        f"Against the reference, {test.only_first:,} pixels are right in this map only and "
        f"{test.only_second:,} in {change.name} only: McNemar's test ({method}), p {p}. "
        "Neighbouring pixels are not independent, so the true p is larger."
    )
    table = _matrix_table(change.matrix, legend, "this map", "second map")
    return Section(f"Change to {change.name}", (text,), tables=(table,))


def _area_section(areas: Areas, legend: Legend, pictures: Mapping[str, Path]) -> Section:
    unit = areas.unit
    if areas.estimates is None or areas.sample is None:
        note = (
            "Pixel counts are biased area estimates, since the map has errors. For areas with confidence "
            "intervals, draw points (--design-sample 600), interpret them, and add --sample."
        )
        return Section("Areas", (note,), tables=(area_table(areas, legend),))
    words = f"Estimated areas of {len(legend)} classes with 95 % intervals, in {unit}"
    unclassified = float(areas.values[0])
    left_out = (f"{unclassified:,.1f} {unit} are unclassified and in no stratum.",) if unclassified else ()
    return Section(
        "Areas",
        (points_words(areas), *left_out),
        (Picture(pictures["areas.png"], words),),
        (area_table(areas, legend), _points_table(areas.sample.matrix, legend)),
    )


def points_words(areas: Areas) -> str:
    """Describe the overall accuracy estimated from interpreted points."""
    assert areas.estimates is not None and areas.sample is not None
    text = (
        f"From {areas.sample.points:,} interpreted points, a random sample stratified by mapped class "
        "(Olofsson et al. 2014): overall accuracy "
        f"{_interval(areas.estimates.overall)}. ± is half of a 95 % interval."
    )
    if areas.sample.left_out:
        text += f" {areas.sample.left_out:,} more points could not be interpreted and are left out."
    return text


def _points_table(sample: NDArray[np.int64], legend: Legend) -> Table:
    """Return the matrix of interpreted points, from which the estimates can be repeated."""
    matrix = np.zeros(np.add(sample.shape, 1), np.int64)
    matrix[1:, 1:] = sample
    table = _matrix_table(matrix, legend, "map", "interpreted")
    return dataclasses.replace(
        table, caption="Interpreted points: rows mapped class (stratum), columns interpreted class, by number"
    )


def area_table(areas: Areas, legend: Legend) -> Table:
    """Return a table with a row for each class: mapped area and, with a sample, the estimated area."""
    unit, estimates, sample = areas.unit, areas.estimates, areas.sample
    mapped = [(f"{c.number} {c.name}", f"{areas.values[c.number]:,.1f}") for c in legend.classes]
    if estimates is None or sample is None:
        return Table("Mapped areas", ("class", f"mapped {unit}"), tuple(mapped))
    header = ("class", "points", f"mapped {unit}", f"area {unit}", "user's accuracy", "producer's accuracy")
    rows = []
    for k, (name, area) in enumerate(mapped):
        accuracies = map(_interval, (estimates.users[k], estimates.producers[k]))
        points = f"{sample.matrix[k].sum():,}"
        rows.append((name, points, area, _interval(estimates.areas[k], "{:,.1f}"), *accuracies))
    return Table("Areas and accuracies from the sample", header, tuple(rows))


def _interval(estimate: Estimate, form: str = "{:.3f}") -> str:
    if not math.isfinite(estimate.value):
        return number(None)
    return f"{form.format(estimate.value)} ± {form.format(estimate.half_width)}"


def _unsure_section(legend: Legend, views: Views, places: Sequence[UnsureSquare], picture: Path) -> Section:
    rows = []
    for k, place in enumerate(places, start=1):
        w = place.window
        x, y = views.grid.transform @ (w.col + w.width / 2, w.row + w.height / 2)
        digits = 5 if views.grid.crs and views.grid.crs.is_geographic else 0
        names = " or ".join(legend.names[n - 1] for n in place.classes)
        rows.append(
            (str(k), names, f"{place.entropy:.3f}", f"{x:.{digits}f}, {y:.{digits}f}", f"{w.row}, {w.col}")
        )
    by_class = tuple(
        (f"{k} {legend.names[k - 1]}", f"{100 * share:.1f} %", f"{mean:.3f}")
        for k, share, mean in sorted(entropy_by_class(views, legend), key=lambda row: -row[2])
    )
    sampled = f", in every {views.step}th row and column" if views.step > 1 else ""
    header = ("place", "undecided between", "uncertainty", "middle (x, y)", "first row, column")
    return Section(
        "Least certain places",
        (
            "Uncertainty is the normalised entropy of the activations: 0 where one class is certain, 1 where "
            f"all classes are equally likely{sampled}.",
        ),
        (Picture(picture, "Uncertainty of the map, with the least sure places framed and numbered"),),
        (
            Table("Least certain squares", header, tuple(rows), text_columns=2),
            Table("Mean uncertainty by mapped class", ("class", "share of the map", "uncertainty"), by_class),
        ),
    )


def _training_section(history: Path, picture: Path) -> Section:
    columns = read_history(history)
    rows = [("epochs", str(len(columns["epoch"])), "")]
    for name, words, best in (
        ("val_loss", "lowest validation loss", min),
        ("val_accuracy", "highest validation accuracy", max),
        ("val_macro_f1", "highest validation macro-F1", max),
    ):
        values = zip(columns.get(name, ()), columns["epoch"], strict=False)
        if finite := [row for row in values if math.isfinite(row[0])]:
            value, epoch = best(finite, key=lambda row: row[0])
            rows.append((words, f"{value:.4f}", f"{epoch:g}"))
    return Section(
        "Training",
        pictures=(Picture(picture, "Loss, scores and learning rate over the epochs of the training"),),
        tables=(Table("Training of the weights", ("metric", "value", "epoch"), tuple(rows)),),
    )


def _baseline_section(compared: Mapping[str, Any]) -> Section:
    """Return F1 of the models of a run, and whether they differ significantly."""
    names = {"forest": "random forest", "small": "small models", "network": "network"}
    models = {name: compared[key] for key, name in names.items() if compared.get(key)}
    forest, other, spread = models["random forest"], next(reversed(models)), compared["spread"]
    rows = []
    for name in forest:
        difference, chance = models[other][name] - forest[name], spread[name]
        leader = other if difference > 0 else "random forest"
        leader = "not known" if chance is None else leader if abs(difference) > 2 * chance else "neither"
        scores = (f"{f1[name]:.4f}" for f1 in models.values())
        shown = "one patch" if chance is None else f"{chance:.4f}"
        rows.append((name, *scores, f"{difference:+.4f}", shown, leader))
    overall = rows[list(forest).index(MACRO)][-1]
    text: tuple[str, ...] = (
        {
            "neither": f"Neither {other} nor random forest leads in macro-F1 by more than twice the spread.",
            "not known": "The leading model is unknown: a class has only one held-out polygon or patch.",
        }.get(overall, f"The {overall} leads in macro-F1 by more than twice the spread."),
        "All models learnt from the same labels and are scored on the same held-out labels. "
        "The spread is the standard deviation of the difference over resampled polygons or patches.",
    )
    if overall == "random forest" and other == "network" and "small models" not in models:
        text += ("make_classifications.py RUN --pick baseline makes the map with it.",)
    if "small models" in models:
        text += ("Without --pick the mean of small models makes the map, refitted on all labels.",)
    header = ("class", *(f"{name} F1" for name in models), "difference", "spread", "leads")
    return Section("Models of the run", text, tables=(Table("F1 of the models", header, tuple(rows)),))


def _made_section(results: Results) -> Section:
    """Return weights, inputs, versions and parameters from the tags of the map, a table for each long tag."""
    header = ("field", "value")
    rows = [("map", results.map)]
    if results.reference:
        rows.append(("reference", results.reference))
    if results.read_as:
        rows.append(("reference read as", "; ".join(words_of(results.read_as))))
    if results.areas.sample:
        rows.append(("points", results.areas.sample.name))
    rows.append(("report written by", f"lulc {__version__}"))
    tables = []
    for name, value in results.made:
        entries = _entries(value)
        if entries is None:
            rows.append((f"map's {name}", value))
        else:
            tables.append(Table(name.capitalize(), header, entries, text_columns=2))
    text = () if results.made else ("The map has no tags about its processing.",)
    first = Table("Map and report", header, tuple(rows), text_columns=2)
    return Section("Processing", text, tables=(first, *tables))


def _entries(value: str) -> tuple[tuple[str, str], ...] | None:
    """Return (field, value) of a tag with a JSON object or list; None for any other tag."""
    try:
        data: Any = parse_json(value, foreign=True)
    except ValueError:
        return None
    if isinstance(data, dict):
        return tuple((field, _words(entry)) for field, entry in data.items())
    if not isinstance(data, list):
        return None
    names = [str(d.get("name", k)) if isinstance(d, dict) else str(k) for k, d in enumerate(data, start=1)]
    return tuple((name, _words(entry)) for name, entry in zip(names, data, strict=True))


def _words(entry: Any) -> str:
    """Return a JSON value in words."""
    if isinstance(entry, dict):
        return ", ".join(f"{k} {_words(v)}" for k, v in entry.items() if k != "name")
    if isinstance(entry, list):
        return " ".join(_words(v) for v in entry) or number(None)
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    return number(None) if entry is None else str(entry)
