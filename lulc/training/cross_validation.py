"""Cross-validation: each stack, folder or scene in turn is left out of the training and classified."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.config import TrainConfig
from lulc.core.claims import claim_outputs
from lulc.core.documents import write_document
from lulc.core.removal import withdraw
from lulc.core.schema import IGNORE
from lulc.engines.pixels import open_pixel_model
from lulc.evaluation.measures import metrics
from lulc.evaluation.measures.metrics import ClassScore, Reliability, Scores
from lulc.models import backend
from lulc.models.calibration import Holdout, Temperature, calibrate
from lulc.models.card import ModelCard, load_card
from lulc.models.uncertainty import decide
from lulc.models.weights import RECOMMENDED, find_model, load_model
from lulc.training.data.dataset import Dataset, leave_one_out
from lulc.training.held_out import plan_of, predict_tile, windows_of
from lulc.training.run_folder import clear_run, is_finished, is_interrupted
from lulc.training.train import check_options, classes_of, inputs_of, prepare, settle, train
from lulc.training.training_plan import plan_training

FORMAT_VERSION = 2
FOLDS = "folds"
DOCUMENT = "cross-validation.json"

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Fold:
    """Fold: overlapping stacks, a folder or a scene, left out together.

    The run in `folder` trained on the other stacks. `scores` and `ece`, the expected calibration error at the
    temperature fitted on all folds (None without a label), are those of its last model on the pixels left
    out.
    """

    name: str
    folder: Path
    scores: Scores
    ece: float | None


@dataclass(frozen=True)
class ClassResult:
    """Results of one class: metrics of the pixels of all folds, and F1 over the folds with its labels.

    `mean` and `spread` are mean and standard deviation of F1, None for too few folds.
    """

    pooled: ClassScore
    folds: int
    mean: float | None
    spread: float | None


@dataclass(frozen=True)
class CrossValidation:
    """Results of a cross-validation; the temperature is fitted on all folds, 1 without calibration."""

    folds: tuple[Fold, ...]
    pooled: Scores
    temperature: Temperature
    document: Path

    def classes(self) -> tuple[ClassResult, ...]:
        """Return the results of each class over the folds with labels of it."""
        results = []
        for k, pooled in enumerate(self.pooled.classes):
            f1 = [fold.scores.classes[k].f1 for fold in self.folds if fold.scores.classes[k].support]
            values = [0.0 if value is None else value for value in f1]
            mean, spread = (_mean(values), _spread(values)) if values else (None, None)
            results.append(ClassResult(pooled, len(values), mean, spread))
        return tuple(results)

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Return mean and spread (standard deviation with n - 1) over the folds; None without labels.

        Macro-F1 is the mean over classes of the mean F1 of each class over the folds with labels of it.
        """
        accuracies = [f.scores.overall_accuracy for f in self.folds if f.scores.overall_accuracy is not None]
        errors = [fold.ece for fold in self.folds if fold.ece is not None]
        class_means = [c.mean for c in self.classes() if c.mean is not None]
        return {
            "overall accuracy": {"mean": _mean(accuracies), "spread": _spread(accuracies)},
            "macro-F1": {"mean": _mean(class_means), "spread": None},
            "ECE": {"mean": _mean(errors), "spread": _spread(errors)},
        }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def cross_validate(config: TrainConfig) -> CrossValidation:
    """Train one model for each stack, folder or scene left out, and score it there.

    The last model of each run is scored, not the best one, which was chosen on the data left out. Each fold
    is a run in ``OUT/folds``; finished folds are not trained again unless ``config.overwrite`` is set.

    Raises InputError as `lulc.training.train` and `lulc.training.data.dataset.leave_one_out` do.
    """
    document = Path(config.out) / DOCUMENT
    check_options(config.resolved())
    with claim_outputs([document]):
        return _cross_validate(config, document)


def _cross_validate(config: TrainConfig, document: Path) -> CrossValidation:
    asked, config = config, config.resolved()
    datasets = leave_one_out(config)
    # An interrupted cross-validation is continued, whatever `overwrite` is.
    if config.overwrite and document.exists() and not is_interrupted(document.parent):
        # Raises errors while the finished folds still exist.
        for number, (_, dataset) in enumerate(datasets, 1):
            plan = plan_training(_fold_config(asked, number), dataset)
            if plan.network:
                fold = settle(_fold_config(asked, number), dataset, plan)
                prepare(dataclasses.replace(fold, stacks_on="host"), dataset)
        _clear(document.parent)
    outcomes = []
    holdout = Holdout(len(datasets))
    for number, (name, dataset) in enumerate(datasets, 1):
        logger.info("fold %d of %d leaves out %s", number, len(datasets), name)
        fold = settle(_fold_config(asked, number), dataset)
        if not is_finished(fold, inputs_of(fold, dataset)):
            # The options as given, since they decide whether a network is trained.
            train(_fold_config(asked, number), dataset, refit=False)
        outcome = classify_left_out(fold, dataset)
        holdout.add(outcome.probabilities, outcome.labels)
        outcomes.append((name, Path(fold.out), outcome))
    per_class = config.calibrate == "per-class"
    temperature = holdout.fit(per_class=per_class) if config.calibrate != "none" else 1.0
    legend = classes_of(config, datasets[0][1])
    folds, total = [], np.zeros((len(legend) + 1,) * 2, np.int64)
    for name, folder, outcome in outcomes:
        total += outcome.confusion
        folds.append(Fold(name, folder, metrics.score(outcome.confusion, legend), outcome.ece(temperature)))
    result = CrossValidation(tuple(folds), metrics.score(total, legend), temperature, document)
    write_document(document, _to_json(result))
    return result


def _clear(out: Path) -> None:
    """Remove the folds of a finished cross-validation."""
    for folder in sorted(path for path in (out / FOLDS).glob("*") if path.is_dir()):
        clear_run(folder)
    # The document goes last: a run killed before this line clears again, one killed after it continues.
    withdraw(out / DOCUMENT)


def _fold_config(config: TrainConfig, number: int) -> TrainConfig:
    out = str(Path(config.out) / FOLDS / f"{number:02d}")
    return dataclasses.replace(config, out=out, cross_validate=None)


@dataclass(frozen=True)
class Outcome:
    """Classification of stacks that were left out.

    Parameters
    ----------
    confusion
        int64 (N + 1, N + 1), of all labelled pixels, see `lulc.evaluation.measures.metrics`.
    probabilities, labels
        A sample of these pixels: float32 (pixel, class), uint8 (pixel,), 0..N-1.
    """

    confusion: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def ece(self, temperature: Temperature) -> float | None:
        """Return the expected calibration error at a temperature; None without labels."""
        p = calibrate(self.probabilities[np.newaxis], temperature)[0]
        if p.shape[1] == 1:
            p = np.concatenate([1 - p, p], axis=1)
        reliability = Reliability(p.shape[1])
        reliability.add(self.labels + 1, p)
        result = reliability.result()
        return result.ece if result else None


def classify_left_out(config: TrainConfig, dataset: Dataset, others: Sequence[str] = ()) -> Outcome:
    """Classify the validation stacks of a dataset, each pixel once, with the last model of a finished run.

    If there are few labels, the model is the mean of small models, which also makes the maps.

    Parameters
    ----------
    others
        Folders of further runs of the same network, whose probabilities are averaged with the first one's.
    """
    card, network_for = _open_models([config.out, *others])
    targets = dataset.targets(config.single_class)
    classes = len(classes_of(config, dataset))
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    plans = [plan_of(tile, card) for tile in dataset.validation]
    sample = Holdout(sum(len(windows_of(plan)) for plan in plans))
    for tile, plan in zip(dataset.validation, plans, strict=True):
        for prediction in predict_tile(network_for(plan.window), tile, plan):
            probabilities = prediction.probabilities
            if probabilities is None or prediction.valid is None:
                continue
            labels = targets[np.asarray(tile.masks[prediction.window.write.slices])]
            labels = np.where(prediction.valid, labels, IGNORE).astype(np.uint8)
            known = labels != IGNORE
            confusion += metrics.count(labels[known] + 1, decide(probabilities)[known] + 1, classes)
            sample.add(probabilities, labels)
    return Outcome(confusion, *sample.pixels())


def _open_models(runs: Sequence[str]) -> tuple[ModelCard, Callable[[tuple[int, int]], backend.Predict]]:
    """Return the card of the first run's model, and a function from a window's shape to the mean model."""
    recommended = find_model(runs[0], RECOMMENDED)
    if recommended.suffix == ".npz":
        predict = open_pixel_model(recommended, card := load_card(recommended))
        return card, lambda shape: predict
    models, cards = zip(*(load_model(find_model(run, "last")) for run in runs), strict=True)

    @functools.cache
    def network_for(shape: tuple[int, int]) -> backend.Predict:
        networks = [backend.compile_predict(model, (1, *shape)) for model in models]
        return lambda x: np.asarray(np.mean([one(x) for one in networks], axis=0, dtype=np.float32))

    return cards[0], network_for


def _to_json(result: CrossValidation) -> dict[str, Any]:
    def scores(of_fold: Scores) -> dict[str, Any]:
        return {
            "pixels": of_fold.pixels,
            "overall accuracy": of_fold.overall_accuracy,
            "macro-F1": of_fold.macro.f1 if of_fold.macro else None,
            "F1": {c.name: c.f1 for c in of_fold.classes},
        }

    temperature = result.temperature
    return {
        "format_version": FORMAT_VERSION,
        "folds": [
            {"left_out": fold.name, "folder": fold.folder.name, "ECE": fold.ece, **scores(fold.scores)}
            for fold in result.folds
        ],
        "over folds": result.metrics(),
        "classes": [
            {
                "name": c.pooled.name,
                "folds": c.folds,
                "F1 mean": c.mean,
                "F1 spread": c.spread,
                "pooled": dataclasses.asdict(c.pooled),
            }
            for c in result.classes()
        ],
        "pooled": scores(result.pooled),
        "temperature": list(temperature) if isinstance(temperature, tuple) else temperature,
    }
