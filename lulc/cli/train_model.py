"""Train a network on the stacks that preprocess.py made.

The result is a run folder with a weights file and model card for each kept epoch, `history.csv` and
`history.png`. It records the epochs of the lowest validation loss, the highest validation accuracy and the
best macro-F1, from which make_classifications.py chooses. The same command continues an interrupted run. With
--cross-validate the folder also holds `cross-validation.json` and the runs of the folds. With --pretrain the
network learns without labels to fill in masked blocks of a mosaic; --init starts from its weights.

Example: python train_model.py demo/stacks --out demo/run
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lulc.api import train
from lulc.cli.commandline import Answer, run
from lulc.config import TrainConfig
from lulc.core.text import columns, visible

ACCURACY_LOST = 0.05
"""Accuracy gap above which a warning recommends another model than that of the lowest loss."""

if TYPE_CHECKING:
    from pathlib import Path

    from lulc.training.baseline import Comparison
    from lulc.training.cross_validation import CrossValidation
    from lulc.training.train import TrainingResult


def _train(config: TrainConfig) -> Answer | None:
    if config.plan:
        return _plan(config)
    result = train(config)
    if not result.first:
        return None
    text, data, folds = describe(result), _data(result), result.cross_validation
    if folds is not None:
        text = f"{describe_folds(folds)}\n\n{text}"
        data["cross_validation"] = {"folds": len(folds.folds), **folds.metrics()}
    return Answer(text, data)


def _plan(config: TrainConfig) -> Answer:
    """Describe what would be trained, and why."""
    from lulc.core.schema import InputError
    from lulc.training.data.dataset import open_dataset
    from lulc.training.training_plan import plan_training

    if config.pretrain:
        raise InputError(
            "cannot plan a pretraining, since --plan describes labels and --pretrain uses none",
            "Leave out --plan.",
        )
    plan = plan_training(config, open_dataset(config))
    return Answer("\n".join(map(visible, plan.lines())), plan.to_json())


def describe_folds(validation: CrossValidation) -> str:
    """Describe the folds and the scores of each class as text tables."""
    rows: list[Sequence[str]] = [("left out", "pixels", "classes", "overall accuracy", "macro-F1", "ECE")]
    for fold in validation.folds:
        scores = fold.scores
        held = sum(c.support > 0 for c in scores.classes)
        macro = scores.macro.f1 if scores.macro else None
        shown = map(_number, (scores.overall_accuracy, macro, fold.ece))
        rows.append((fold.name, f"{scores.pixels:,}", f"{held} of {len(scores.classes)}", *shown))
    metrics = validation.metrics().values()
    for name in ("mean", "spread"):
        rows.append((name, "", "", *(_number(metric[name]) for metric in metrics)))
    classes: list[Sequence[str]] = [
        ("class", "pixels", "folds", "F1, mean", "F1, spread", "F1, pooled", "user's acc.", "prod. acc.")
    ]
    for result in validation.classes():
        c = result.pooled
        shown = map(_number, (result.mean, result.spread, c.f1, c.precision, c.recall))
        folds = f"{result.folds} of {len(validation.folds)}"
        classes.append((f"{c.number} {c.name}", f"{c.support:,}", folds, *shown))
    return "\n\n".join((
        columns(rows),
        columns(classes),
        "Macro-F1 of a fold is over the classes in its labels or its map. F1 of a class is the mean over the "
        "folds with such labels; pooled metrics count the pixels of all folds.",
        f"cross-validation: {validation.document}",
    ))  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def describe(result: TrainingResult) -> str:
    """Describe the best models, the files and the next command."""
    lines = [f"models and cards: {result.folder}"]
    if result.rows:
        lines = [_models(result), f"\nweights and cards: {result.folder}"]
        lines.append(f"history: {result.history}, {result.picture}")
        best = {row.model: row for row in result.rows}
        default, accurate = (best[result.picks[p].name] for p in ("lowest-val-loss", "highest-val-accuracy"))
        if not result.pretrained and accurate.val_accuracy - default.val_accuracy > ACCURACY_LOST:
            lines.append(
                f"\nThe model of the lowest loss, the default, is far less accurate than {accurate.model}: "
                "compare `--pick highest-val-accuracy`."
            )
    if result.comparison:
        lines.append(f"\n{describe_comparison(result.comparison, result.folder)}")
    if not result.finished:
        lines.append(f"\n{_time_is_up(result)}")
    following = f"make_classifications.py {result.folder} {_rasters(result)}"
    if result.pretrained:
        following = f"train_model.py DATA --init {result.folder} --out FOLDER"
    lines.append(f"\nNext: python {following}")
    return "\n".join(lines)


def _rasters(result: TrainingResult) -> str:
    """Return the inputs of a map as they are typed, and its name."""
    channels = result.channels
    if channels.is_plain:
        return "BANDS [INDICES] map.tif"
    words = [f"{date}=BANDS" for date in channels.dates]
    leaves = channels.plan().leaves
    if not words and any(channel.kind == "reflectance" for channel in leaves):
        words.append("BANDS")
    needs_layers = any(channel.kind != "reflectance" and not channel.date for channel in leaves)
    return " ".join([*words, "map.tif", *(["--layers RASTERS"] if needs_layers else [])])


def _models(result: TrainingResult) -> str:
    best = {row.model: row for row in result.rows}
    scores = ("filled", "by band") if result.pretrained else ("accuracy", "macro-F1")
    table: list[Sequence[str]] = [("model", "file", "epoch", "val. loss", *scores)]
    for pick, path in result.picks.items():
        row = best[path.name]
        shown = map(_number, (row.val_loss, row.val_accuracy, row.val_macro_f1))
        table.append((pick, path.name, str(row.epoch), *shown))
    return columns(table, text_columns=2)


def describe_comparison(comparison: Comparison, folder: Path) -> str:
    """Compare the models on the held-out labels, overall and by class."""
    other = comparison.scores[comparison.other]
    header = ("F1 on held-out labels", *comparison.scores, f"{comparison.other} - forest", "spread")
    rows: list[Sequence[str]] = [header]
    for name, forest in comparison.forest.items():
        scores = (f"{f1[name]:.4f}" for f1 in comparison.scores.values())
        rows.append((name, *scores, f"{other[name] - forest:+.4f}", _number(comparison.spread[name])))
    text = f"{columns(rows)}\n\n{_verdict(comparison)}"
    if comparison.small:
        text += (
            " The mean of small models (forests and perceptrons) makes the map in any case, since it was the "
            "best on average over real scenes. It was then refitted on all labels."
        )
    elif comparison.better == "random forest":
        text += f" Make the map with it: make_classifications.py {folder} ... --pick baseline"
    return text


def _verdict(comparison: Comparison) -> str:
    better, other, spread = comparison.better, comparison.other, comparison.spread
    size = f"{comparison.pixels} pixels in {comparison.patches} polygons or patches"
    if better == "unknown":
        single = [name for name, value in spread.items() if value is None and name != "macro-F1"]
        return (
            f"The better model is unknown, since the held-out labels of {', '.join(single)} are one polygon "
            f"or patch ({size}): label more places."
        )
    if better == "neither":
        return (
            f"Neither the {other} nor the random forest leads by more than twice the spread over resampled "
            f"polygons ({size})."
        )
    worse = other if better == "random forest" else "random forest"
    times = abs(comparison.difference) / max(spread["macro-F1"] or 0.0, 1e-9)
    verb = "are" if better == "small models" else "is"
    return (
        f"The {better} {verb} better than the {worse}: by {abs(comparison.difference):.3f} macro-F1, "
        f"{times:.1f} times the spread over resampled polygons ({size})."
    )


def _time_is_up(result: TrainingResult) -> str:
    last = result.rows[-1]
    if last.batches == result.steps:
        return f"The time is up after epoch {last.epoch} of {result.epochs}; the same command continues."
    return (
        f"The time is up in epoch {last.epoch} of {result.epochs} (batch {last.batches} of {result.steps}); "
        "the same command continues and replaces the model of that epoch."
    )


def _data(result: TrainingResult) -> dict[str, Any]:
    """Return the run as JSON-ready data, with the history's row of each pick."""
    rows = {row.model: row for row in result.rows}
    fields = ("epoch", "val_loss", "val_accuracy", "val_macro_f1") if rows else ()
    return {
        "folder": str(result.folder),
        "finished": result.finished,
        "models": {
            pick: {"file": str(path), **{name: getattr(rows[path.name], name) for name in fields}}
            for pick, path in result.picks.items()
        },
        "history": result.history and str(result.history),
        "picture": result.picture and str(result.picture),
        "comparison": result.comparison and result.comparison.to_json(),
    }


main = partial(run, TrainConfig, __doc__ or "", _train)

if __name__ == "__main__":
    raise SystemExit(main())
