"""Train a network on the stacks that preprocess.py made.

The result is a run folder with a weights file and model card for each kept epoch, `history.csv` and
`history.png`. It also notes the epochs of the lowest validation loss, the highest validation accuracy and the
best macro-F1, by which make_classifications.py finds weights. The same command continues an interrupted run.
With --cross-validate the folder also holds `cross-validation.json` and the runs of its folds. With --pretrain
the network learns without labels to fill in masked blocks of a mosaic; --init starts from its weights.

Example: python train_model.py demo/stacks --out demo/run
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lulc.api import train
from lulc.cli.commandline import Answer, run
from lulc.config import TrainConfig
from lulc.core.text import columns, visible

ACCURACY_LOST = 0.05
"""Accuracy below the best that is told of the model of the lowest loss, which others take by default."""

if TYPE_CHECKING:
    from pathlib import Path

    from lulc.training.baseline import Comparison
    from lulc.training.cross_validation import CrossValidation
    from lulc.training.train import TrainingResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(TrainConfig, __doc__ or "", _train, argv)


def _train(config: TrainConfig) -> Answer | None:
    if config.plan:
        return _plan(config)
    result = train(config)
    if not result.first:
        return None
    found = result.cross_validation
    if found is None:
        return Answer(describe(result), figures(result))
    data = figures(result) | {"cross_validation": {"folds": len(found.folds), **found.metrics()}}
    return Answer(f"{describe_folds(found)}\n\n{describe(result)}", data)


def _plan(config: TrainConfig) -> Answer:
    """Say what would be trained, and why."""
    from lulc.core.schema import InputError
    from lulc.training.data.dataset import open_dataset
    from lulc.training.training_plan import plan_training

    if config.pretrain:
        raise InputError(
            "cannot plan a pretraining, since --plan is about labels, of which --pretrain has none",
            "Leave out --plan.",
        )
    plan = plan_training(config, open_dataset(config))
    return Answer("\n".join(map(visible, plan.lines())), plan.to_json())


def describe_folds(found: CrossValidation) -> str:
    """Describe the folds and the scores of each class as text tables."""
    rows: list[Sequence[str]] = [("left out", "pixels", "classes", "overall accuracy", "macro-F1", "ECE")]
    for fold in found.folds:
        scores = fold.scores
        held = sum(c.support > 0 for c in scores.classes)
        macro = scores.macro.f1 if scores.macro else None
        shown = map(_number, (scores.overall_accuracy, macro, fold.ece))
        rows.append((fold.name, f"{scores.pixels:,}", f"{held} of {len(scores.classes)}", *shown))
    metrics = found.metrics().values()
    for name in ("mean", "spread"):
        rows.append((name, "", "", *(_number(metric[name]) for metric in metrics)))
    classes: list[Sequence[str]] = [
        ("class", "pixels", "folds", "F1, mean", "F1, spread", "F1, pooled", "user's acc.", "prod. acc.")
    ]
    for result in found.classes():
        c = result.pooled
        shown = map(_number, (result.mean, result.spread, c.f1, c.precision, c.recall))
        folds = f"{result.folds} of {len(found.folds)}"
        classes.append((f"{c.number} {c.name}", f"{c.support:,}", folds, *shown))
    return "\n\n".join((
        columns(rows),
        columns(classes),
        "Macro-F1 of a fold is over the classes in its labels or its map. The mean is over classes, each "
        "over the folds whose labels hold it; pooled metrics count all folds.",
        f"cross-validation: {found.document}",
    ))  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def describe(result: TrainingResult) -> str:
    """The best models and where everything lies, as text."""
    lines = [f"models and cards: {result.folder}"]
    if result.rows:
        lines = [_models(result), f"\nweights and cards: {result.folder}"]
        lines.append(f"history: {result.history}, {result.picture}")
        best = {row.model: row for row in result.rows}
        default, accurate = (best[result.picks[p].name] for p in ("lowest-val-loss", "highest-val-accuracy"))
        if not result.pretrained and accurate.val_accuracy - default.val_accuracy > ACCURACY_LOST:
            lines.append(
                f"\nThe model of the lowest loss, which is taken where none is named, is far less accurate "
                f"than {accurate.model}: compare `--pick highest-val-accuracy`."
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
    """Return the rasters that a map takes, and its name, as they are typed."""
    channels = result.channels
    if channels.is_plain:
        return "BANDS [INDICES] map.tif"
    words = [f"{date}=BANDS" for date in channels.dates]
    leaves = channels.plan().leaves
    if not words and any(one.kind == "reflectance" for one in leaves):
        words.append("BANDS")
    further = any(one.kind != "reflectance" and not one.date for one in leaves)
    return " ".join([*words, "map.tif", *(["--layers RASTERS"] if further else [])])


def _models(result: TrainingResult) -> str:
    best = {row.model: row for row in result.rows}
    scores = ("filled", "by band") if result.pretrained else ("accuracy", "macro-F1")
    table: list[Sequence[str]] = [("model", "file", "epoch", "val. loss", *scores)]
    for pick, path in result.picks.items():
        row = best[path.name]
        shown = map(_number, (row.val_loss, row.val_accuracy, row.val_macro_f1))
        table.append((pick, path.name, str(row.epoch), *shown))
    return columns(table, text_columns=2)


def describe_comparison(found: Comparison, folder: Path) -> str:
    """Compare the models on the held-out labels, overall and by class, as text."""
    other = found.scores[found.other]
    header = ("F1 on held-out labels", *found.scores, f"{found.other} - forest", "spread")
    rows: list[Sequence[str]] = [header]
    for name, forest in found.forest.items():
        scores = (f"{f1[name]:.4f}" for f1 in found.scores.values())
        rows.append((name, *scores, f"{other[name] - forest:+.4f}", _number(found.spread[name])))
    text = f"{columns(rows)}\n\n{_verdict(found)}"
    if found.small:
        text += (
            " The mean of small models (forests and perceptrons) makes the map, whatever few patches say: on "
            "the mean of real scenes it was the best. It was fitted anew on all labels."
        )
    elif found.better == "random forest":
        text += f" Make the map with it: make_classifications.py {folder} ... --pick baseline"
    return text


def _verdict(found: Comparison) -> str:
    size = f"{found.pixels} pixels in {found.patches} polygons or patches"
    if found.better == "unknown":
        single = [name for name, spread in found.spread.items() if spread is None and name != "macro-F1"]
        return (
            f"Which is better can't be known, since the held-out labels of {', '.join(single)} are one "
            f"polygon or patch ({size}): label more places."
        )
    if found.better == "neither":
        return (
            f"Neither the {found.other} nor the random forest leads by more than twice the spread over "
            f"resampled polygons ({size})."
        )
    worse = "random forest" if found.better != "random forest" else found.other
    times = abs(found.difference) / max(found.spread["macro-F1"] or 0.0, 1e-9)
    verb = "are" if found.better == "small models" else "is"
    return (
        f"The {found.better} {verb} better than the {worse}: by {abs(found.difference):.3f} macro-F1, "
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


def figures(result: TrainingResult) -> dict[str, Any]:
    """The same for machines: the history's row of each pick."""
    best = {row.model: row for row in result.rows}
    return {
        "folder": str(result.folder),
        "finished": result.finished,
        "models": {
            pick: {"file": str(path)}
            | (
                {
                    "epoch": best[path.name].epoch,
                    "val_loss": best[path.name].val_loss,
                    "val_accuracy": best[path.name].val_accuracy,
                    "val_macro_f1": best[path.name].val_macro_f1,
                }
                if best
                else {}
            )
            for pick, path in result.picks.items()
        },
        "history": result.history and str(result.history),
        "picture": result.picture and str(result.picture),
        "comparison": result.comparison and result.comparison.to_json(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
