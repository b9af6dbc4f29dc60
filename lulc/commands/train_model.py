"""Train a network on the stacks that preprocess.py made.

The result is a run folder: a weights file per kept epoch with its model card, `history.csv` and
`history.png`, and a note of the best epochs (lowest validation loss, highest validation accuracy, best
macro-F1, last), by which make_classifications.py finds them. The same command continues what was
interrupted.

Example: python train_model.py demo/stacks --out demo/run
"""

from __future__ import annotations

from collections.abc import Sequence

from lulc.commandline import run
from lulc.config import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(TrainConfig, __doc__ or "", _train, argv)


def _train(config: TrainConfig) -> None:
    # Folders and weights are opened before the framework is loaded, so that bad ones are refused at once.
    from lulc.dataset import open_dataset

    dataset = open_dataset(config)
    if config.init:
        from lulc.weights import check_model, find_model

        check_model(find_model(config.init))
    from lulc.training import train

    result = train(config, dataset)
    best = {row.model: row for row in result.rows}
    print(f"{'model':22} {'file':24} {'epoch':>5} {'val. loss':>9} {'accuracy':>8} {'macro-F1':>8}")
    for pick, path in result.picks.items():
        row = best[path.name]
        print(
            f"{pick:22} {path.name:24} {row.epoch:5d} {row.val_loss:9.4f} {row.val_accuracy:8.4f} "
            f"{row.val_macro_f1:8.4f}"
        )
    print(f"\nweights and cards: {result.folder}\nhistory: {result.history}, {result.picture}")
    if not result.finished:
        print(f"\nThe time is up after epoch {result.rows[-1].epoch}; the same command continues.")
    print(f"\nNext: python make_classifications.py {result.folder} BANDS [INDICES] map.tif")


if __name__ == "__main__":
    raise SystemExit(main())
