"""Models of single pixels fitted beside a network, and their comparison with it on held-out labels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.config import TrainConfig
from lulc.core.schema import IGNORE, Legend
from lulc.core.version import __version__
from lulc.core.windows import Part, Plan, PlannedWindow
from lulc.models import backend
from lulc.models.calibration import Temperature, calibrate, fit_temperature
from lulc.models.card import Channel, ModelCard, load_card
from lulc.models.config import PixelConfig
from lulc.models.ood_score import OodScore, fit_ood_score
from lulc.models.pixel_model import PixelModel, write_pixel_model
from lulc.models.uncertainty import decide
from lulc.models.weights import BASELINE, FEW_LABELS, RECOMMENDED, load_model
from lulc.training.data.dataset import Dataset, Tile
from lulc.training.data.pixels import Square, features_at, labelled_square, labelled_squares
from lulc.training.held_out import plan_of, predict_tile, windows_of
from lulc.training.small_models import arrays_of, fit_forest, fit_small_models

MACRO = "macro-F1"

DESCRIPTIONS = {
    BASELINE: "Random forest on pixels and their mean and deviation in 5 x 5, for comparison.",
    FEW_LABELS: "Mean of random forests and perceptrons on pixels, with mean and deviation in 5 x 5 or "
    "11 x 11. Trained on all labels; its scores are those without the validation labels.",
}

RADII, SMALL_RADII = (2,), (2, 5)
"""Radii in pixels of the squares of mean and deviation: of the forest 5 x 5, of small models 11 x 11 too."""

PIXELS = 20_000
"""Most labelled pixels that the forest is fitted on, so that it takes seconds."""

GROWTH_SECONDS = 15.0
"""Seconds of one core to fit and compare the forest, for the forecast of a run's time."""

WINDOWS, COMPARED = 32, 3000
"""Most windows of the held-out stacks, and pixels of each, that models are compared on."""

RESAMPLES = 200
"""Bootstrap samples of the held-out patches for the spread."""

FOREST, SMALL, NETWORK = "random forest", "small models", "network"


@dataclass(frozen=True)
class HeldOut:
    """Predictions of models on the same held-out pixels."""

    labels: NDArray[np.uint8]
    """(pixel,), 0..N-1."""
    patches: NDArray[np.int64]
    """(pixel,), number of the patch of labels that a pixel lies in."""
    probabilities: dict[str, NDArray[np.float32]]
    """(pixel, class) of each model by name: `FOREST`, and `SMALL` or `NETWORK` or both."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of models on held-out pixels.

    Parameters
    ----------
    pixels, patches
        Held-out pixels compared, and number of their patches of labels.
    forest, network, small
        F1 by name of each class among the labels, and last their mean as ``macro-F1``: of the random forest,
        the network and the mean of small models. None for a model that was not fitted.
    spread
        Standard deviation over bootstrap samples of the patches, of `difference` and of the difference of
        each class. None for a class with a single patch.
    """

    pixels: int
    patches: int
    forest: dict[str, float]
    spread: dict[str, float | None]
    network: dict[str, float] | None = None
    small: dict[str, float] | None = None

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """F1 by class of each fitted model by its name, the forest first."""
        models = {FOREST: self.forest, SMALL: self.small, NETWORK: self.network}
        return {name: f1 for name, f1 in models.items() if f1}

    @property
    def other(self) -> str:
        """Name of the model that the forest is compared with: the network if there is one."""
        return list(self.scores)[-1]

    @property
    def difference(self) -> float:
        """Macro-F1 of the other model minus that of the forest."""
        return self.scores[self.other][MACRO] - self.forest[MACRO]

    @property
    def better(self) -> str:
        """Name of the model that leads by more than twice the spread, ``neither`` or ``unknown``."""
        spread = self.spread[MACRO]
        if spread is None:
            return "unknown"
        if abs(self.difference) <= 2 * spread:
            return "neither"
        return self.other if self.difference > 0 else FOREST

    @property
    def recommended(self) -> str:
        """Pick for maps: the small models if there are few labels.

        Their maps had the higher mean accuracy on real scenes. The scores here don't decide, since a few
        held-out patches don't represent a scene.
        """
        return FEW_LABELS if self.small else "lowest-val-loss"

    @property
    def picks(self) -> dict[str, str]:
        """File of the recommended model for `lulc.models.weights.record_picks`, if it isn't a network."""
        return {RECOMMENDED: f"{FEW_LABELS}.npz"} if self.recommended == FEW_LABELS else {}

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return vars(self) | {"better": self.better, "recommended": self.recommended}


def keep_pixel_models(
    config: TrainConfig, dataset: Dataset, legend: Legend, network: Path | None,
    temperature: Temperature | None = None, *, refit: bool = True,
) -> Comparison:  # fmt: skip
    """Fit the forest and, for few labels, the small models by a resolved config; compare and write them.

    Parameters
    ----------
    legend
        Classes that the models decide between.
    network
        Weights to compare with; None if no network was trained.
    temperature
        Temperature for the card of the small models, if it was fitted elsewhere.
    refit
        Fit the small models once more on training and validation labels together, after the comparison.
    """
    targets = dataset.targets(config.single_class)
    classes = 1 if config.single_class is not None else len(legend)
    few, channels = config.recipe == FEW_LABELS, len(dataset.channels)
    radii = SMALL_RADII if few else RADII
    features, labels = _pixels_of(dataset, dataset.training, targets, config.seed, radii)
    # The first features are those of the forest.
    grown = fit_forest(features[:, : channels * (1 + 2 * len(RADII))], labels, config.seed)
    models = {FOREST: PixelModel(arrays_of(grown, classes))}
    if few:
        models[SMALL] = fit_small_models(features, labels, channels, classes, config.seed)
    held_out = classify_held_out(dataset, targets, models, network, config.seed)
    comparison = compare(held_out, legend, config.seed)
    if SMALL in models and refit:
        stacks = (*dataset.training, *dataset.validation)
        all_pixels = _pixels_of(dataset, stacks, targets, config.seed, radii)
        models[SMALL] = fit_small_models(*all_pixels, channels, classes, config.seed)
    novelty = load_card(network).novelty if network else fit_novelty(dataset)
    for name, model in models.items():
        file = {FOREST: BASELINE, SMALL: FEW_LABELS}[name]
        probabilities = held_out.probabilities[name]
        fitted = 1.0 if config.calibrate == "none" else fit_temperature(probabilities, held_out.labels)
        scores = {
            "val_accuracy": float(np.mean(decide(probabilities) == held_out.labels)),
            "val_macro_f1": comparison.scores[name][MACRO],
            "compared": comparison.to_json(),
        }
        card = dataclasses.replace(
            _card_of(config, dataset, file, model, all_labels=refit and name == SMALL), novelty=novelty,
            temperature=temperature if temperature and name == SMALL else fitted, scores=scores,
        )  # fmt: skip
        write_pixel_model(model, card, Path(config.out) / f"{file}.npz")
    return comparison


def fit_novelty(dataset: Dataset) -> OodScore | None:
    """Fit the out-of-distribution score of a dataset."""
    training, held_out = (
        [(tile.image, tile.masks) for tile in tiles] for tiles in (dataset.training, dataset.validation)
    )
    return fit_ood_score(training, held_out, dataset.statistics)


def _pixels_of(
    dataset: Dataset, tiles: Sequence[Tile], targets: NDArray[np.uint8], seed: int, radii: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return features and labels of at most `PIXELS` labelled pixels of stacks."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(targets[1 : len(dataset.counts) + 1], dataset.counts, 256)
    if len(tiles) > len(dataset.training):
        squares = labelled_squares(tiles[len(dataset.training) :], targets)
        counts = counts + sum(np.bincount(square.labels, minlength=256) for square in squares)
    fraction = _quota(counts, PIXELS) / np.maximum(counts, 1)
    features, labels = [], []
    for square in labelled_squares(tiles, targets):
        drawn = square.take(rng.random(len(square.labels)) < fraction[square.labels])
        features.append(features_at(drawn, dataset.statistics, radii))
        labels.append(drawn.labels)
    return np.concatenate(features), np.concatenate(labels)


def _quota(counts: NDArray[Any], total: int) -> NDArray[np.float64]:
    """Return pixels to draw of each class, as equal as their counts allow, at most `total` together.

    Examples
    --------
    >>> _quota(np.array([10, 500, 900]), 610).tolist(), _quota(np.array([10, 20, 0]), 610).tolist()
    ([10.0, 300.0, 300.0], [10.0, 20.0, 0.0])
    """
    quota = np.zeros(len(counts))
    remaining = float(total)
    for rank, number in enumerate(np.argsort(counts)):
        quota[number] = min(counts[number], remaining / (len(counts) - rank))
        remaining -= quota[number]
    return quota


def classify_held_out(
    dataset: Dataset, targets: NDArray[np.uint8], models: Mapping[str, PixelModel], network: Path | None,
    seed: int,
) -> HeldOut:  # fmt: skip
    """Classify a random sample of the pixels of the validation stacks by all models and a network."""
    rng = np.random.default_rng(seed)
    labels, patches = [], []
    probabilities: dict[str, list[NDArray[np.float32]]] = {}
    offset = 0
    for square, network_output in _held_out(dataset, targets, network, rng):
        chosen = rng.random(len(square.labels)) < COMPARED / len(square.labels)
        sample = square.take(chosen)
        features = features_at(sample, dataset.statistics, SMALL_RADII if SMALL in models else RADII)
        for name, model in models.items():
            probabilities.setdefault(name, []).append(model.predict(features).astype(np.float32))
        if network_output is not None:
            probabilities.setdefault(NETWORK, []).append(network_output[chosen])
        labels.append(sample.labels)
        patches.append(sample.patches + offset)
        offset += int(sample.patches.max(initial=-1)) + 1
    by_model = {name: np.concatenate(arrays) for name, arrays in probabilities.items()}
    return HeldOut(np.concatenate(labels), np.concatenate(patches), by_model)


def _held_out(
    dataset: Dataset, targets: NDArray[np.uint8], network: Path | None, rng: np.random.Generator
) -> Iterator[tuple[Square, NDArray[np.float32] | None]]:
    """Yield squares of held-out pixels, and the probabilities of a network, float32 (pixel, class)."""
    if network is None:
        squares = list(labelled_squares(dataset.validation, targets))
        yield from ((squares[k], None) for k in sorted(rng.permutation(len(squares))[:WINDOWS]))
        return
    model, card = load_model(network)
    compiled = functools.cache(lambda shape: backend.compile_predict(model, (1, *shape)))
    for tile, plan, windows in _sampled_windows(dataset.validation, card, targets, rng):
        for prediction in predict_tile(compiled(plan.window), tile, plan, windows):
            window = prediction.window.write
            square = labelled_square(tile, window, targets)
            if square is not None and prediction.probabilities is not None:
                output = prediction.probabilities[square.rows - window.row, square.cols - window.col]
                yield square, calibrate(output[np.newaxis], card.temperature)[0]


def _sampled_windows(
    tiles: Sequence[Tile], card: ModelCard, targets: NDArray[np.uint8], rng: np.random.Generator
) -> Iterator[tuple[Tile, Plan, list[tuple[Part, PlannedWindow]]]]:
    """Yield by stack a random sample of the windows with labels."""
    plans = [plan_of(tile, card) for tile in tiles]
    labelled = [
        (number, window)
        for number, (tile, plan) in enumerate(zip(tiles, plans, strict=True))
        for window in windows_of(plan)
        if (targets[np.asarray(tile.masks[window[1].write.slices])] != IGNORE).any()
    ]
    chosen = sorted(rng.permutation(len(labelled))[:WINDOWS])
    for number, group in itertools.groupby((labelled[k] for k in chosen), key=lambda item: item[0]):
        yield tiles[number], plans[number], [window for _, window in group]


def compare(held_out: HeldOut, legend: Legend, seed: int) -> Comparison:
    """Compare models by F1 of the classes among the held-out labels.

    Pixels given to another class count as wrong. The spread is that of the paired difference between the
    forest and the last model over bootstrap samples of patches, since pixels of one patch are alike.
    """
    classes, labels = len(legend), held_out.labels
    decided = (decide(p).astype(np.int64) for p in held_out.probabilities.values())
    joint = [labels.astype(np.int64) * classes + given for given in decided]
    known = sorted(set(labels.tolist()))
    numbers, first, patch = np.unique(held_out.patches, return_index=True, return_inverse=True)

    def scores(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """F1 of each class and last their mean, (model, class + 1), with each patch weighted."""
        tables = [np.bincount(j, times[patch], classes**2).reshape(classes, classes) for j in joint]
        f1 = np.stack([_f1(table)[known] for table in tables])
        return np.concatenate([f1, f1.mean(axis=1, keepdims=True)], axis=1)

    draws = np.random.default_rng(seed).multinomial(
        len(numbers), np.full(len(numbers), 1 / len(numbers)), RESAMPLES
    )
    spread = np.std([scores(times)[-1] - scores(times)[0] for times in draws], axis=0)
    several = np.bincount(labels[first], minlength=classes)[known] > 1
    names = [*(legend.names[k] for k in known), MACRO]
    has_spread = [*several.tolist(), bool(several.all())]
    f1 = [dict(zip(names, row, strict=True)) for row in scores(np.ones(len(numbers), np.int64)).tolist()]
    by_model = dict(zip(held_out.probabilities, f1, strict=True))
    return Comparison(
        pixels=len(labels),
        patches=len(numbers),
        forest=by_model[FOREST],
        spread={n: float(s) if has else None for n, s, has in zip(names, spread, has_spread, strict=True)},
        network=by_model.get(NETWORK),
        small=by_model.get(SMALL),
    )


def _f1(table: NDArray[np.int64]) -> NDArray[np.float64]:
    both = table.sum(axis=0) + table.sum(axis=1)
    return np.asarray(2 * np.diag(table) / np.maximum(both, 1))


def _card_of(
    config: TrainConfig, dataset: Dataset, name: str, model: PixelModel, *, all_labels: bool
) -> ModelCard:
    classes = model.forest.probability.shape[1]
    numbers = sum(array.size for array in model.arrays().values())
    dense = tuple(tuple(len(bias) for bias in network.biases[:-1]) for network in model.dense)
    data, radii = dataset.provenance, SMALL_RADII if name == FEW_LABELS else RADII
    if all_labels:
        data = [
            entry | {"ground": [*entry.get("ground", ()), *entry.get("validation_ground", ())]}
            for entry in data
        ]
    return ModelCard(
        name=f"{Path(config.out).resolve().name}/{name}",
        channels=tuple(Channel(**channel) for channel in dataset.channels),
        channel_set=dataset.channel_set,
        legend=dataset.legend,
        statistics=dataset.statistics,
        network=PixelConfig(classes, len(dataset.channels), radii, numbers, dense, model.forests),
        stride=1,
        halo=max(radii),
        single_class=config.single_class,
        training={
            "parameters": {"trees": len(model.forest.root), "pixels": PIXELS, "seed": config.seed},
            "data": data,
            "class_counts": dict(zip(dataset.legend.names, dataset.counts.tolist(), strict=True)),
        },
        versions={"lulc": __version__, "scikit-learn": version("scikit-learn"), "numpy": np.__version__},
        description=DESCRIPTIONS[name],
        simulated=dataset.simulated,
    )
