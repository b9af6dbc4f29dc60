"""Train a network on the stacks that preprocess.py made.

The result is a run folder: a weights file per kept epoch with its model card, `history.csv` and
`history.png`, and a note of the best epochs (lowest validation loss, highest validation accuracy, best
macro-F1, last), by which make_classifications.py finds them. The same command continues what was
interrupted. With --cross-validate the folder also holds `cross-validation.json` and the runs of its folds.
With --pretrain there are no labels: the network learns to fill in hidden blocks of a mosaic, and --init takes
it from there.

Example: python train_model.py demo/stacks --out demo/run
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lulc.api import train
from lulc.cli.commandline import Answer, run
from lulc.config import TrainConfig

ACCURACY_LOST = 0.05
"""Accuracy below the best that is told of the model of the lowest loss, which others take by default."""

if TYPE_CHECKING:
    from lulc.training.cross_validation import CrossValidation
    from lulc.training.train import TrainingResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(TrainConfig, __doc__ or "", _train, argv)


def _train(config: TrainConfig) -> Answer | None:
    result = train(config)
    if not result.first:
        return None
    found = result.cross_validation
    if found is None:
        return Answer(describe(result), figures(result))
    data = figures(result) | {"cross_validation": {"folds": len(found.folds), **found.figures()}}
    return Answer(f"{describe_folds(found)}\n\n{describe(result)}", data)


def describe_folds(found: CrossValidation) -> str:
    """Scores of each stack that was left out, mean and spread, as text."""
    rows: dict[str, list[float]] = {
        fold.name: [
            fold.scores.overall_accuracy or 0.0,
            fold.scores.macro.f1 if fold.scores.macro else 0.0,
            fold.ece,
        ]
        for fold in found.folds
    }
    for name in ("mean", "spread"):
        rows[name] = [figure[name] for figure in found.figures().values()]
    width = max(len("left out"), *map(len, rows))
    lines = [f"{'left out':{width}} {'micro-F1':>8} {'macro-F1':>8} {'ECE':>8}"]
    for name, values in rows.items():
        lines.append(f"{name:{width}} " + " ".join(f"{value:8.4f}" for value in values))
    return "\n".join([*lines, f"\ncross-validation: {found.document}"])


def describe(result: TrainingResult) -> str:
    """The best models and where everything lies, as text."""
    best = {row.model: row for row in result.rows}
    scores = ("filled", "by band") if result.pretrained else ("accuracy", "macro-F1")
    lines = [f"{'model':22} {'file':24} {'epoch':>5} {'val. loss':>9} {scores[0]:>8} {scores[1]:>8}"]
    for pick, path in result.picks.items():
        row = best[path.name]
        lines.append(
            f"{pick:22} {path.name:24} {row.epoch:5d} {row.val_loss:9.4f} {row.val_accuracy:8.4f} "
            f"{row.val_macro_f1:8.4f}"
        )
    lines.append(f"\nweights and cards: {result.folder}\nhistory: {result.history}, {result.picture}")
    default, accurate = (best[result.picks[p].name] for p in ("lowest-val-loss", "highest-val-accuracy"))
    if not result.pretrained and accurate.val_accuracy - default.val_accuracy > ACCURACY_LOST:
        lines.append(
            f"\nThe model of the lowest loss, which is taken where none is named, is far less accurate than "
            f"{accurate.model}: compare `--pick highest-val-accuracy`."
        )
    if not result.finished:
        lines.append(f"\n{_time_is_up(result)}")
    following = f"make_classifications.py {result.folder} BANDS [INDICES] map.tif"
    if result.pretrained:
        following = f"train_model.py DATA --init {result.folder} --out FOLDER"
    lines.append(f"\nNext: python {following}")
    return "\n".join(lines)


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
            pick: {
                "file": str(path),
                "epoch": best[path.name].epoch,
                "val_loss": best[path.name].val_loss,
                "val_accuracy": best[path.name].val_accuracy,
                "val_macro_f1": best[path.name].val_macro_f1,
            }
            for pick, path in result.picks.items()
        },
        "history": str(result.history),
        "picture": str(result.picture),
    }


if __name__ == "__main__":
    raise SystemExit(main())
