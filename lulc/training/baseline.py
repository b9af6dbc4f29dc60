"""The baseline beside a training: a random forest of the same labels, and which of the two is better."""

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
from lulc.models.calibration import calibrate, fit_temperature
from lulc.models.card import Channel, ModelCard, load_card
from lulc.models.config import PixelConfig
from lulc.models.ood_score import OodScore, fit_ood_score
from lulc.models.pixel_model import PixelModel, write_pixel_model
from lulc.models.uncertainty import decide
from lulc.models.weights import BASELINE, FEW_LABELS, RECOMMENDED, load_model
from lulc.training.data.dataset import Dataset, Tile, class_targets
from lulc.training.data.pixels import Square, features_at, labelled_square, labelled_squares
from lulc.training.held_out import plan_of, predict_tile, windows_of
from lulc.training.small_models import arrays_of, fit_forest, fit_small_models

MACRO = "macro-F1"

DESCRIPTIONS = {
    BASELINE: "Random forest on pixels and their mean and deviation in 5 x 5, for comparison.",
    FEW_LABELS: "Mean of random forests and perceptrons on pixels, with mean and deviation in 5 x 5 or "
    "11 x 11. Trained on all labels; its scores are those without the validation labels.",
}

RADII = (2,)
"""Mean and deviation of the forest are of squares of 5 x 5 pixels."""

SMALL_RADII = (2, 5)
"""Those of the small models are of 5 x 5 and 11 x 11."""

PIXELS = 20_000
"""Labelled pixels that the forest learns from, at most: so it takes seconds, however many there are."""

GROWTH_SECONDS = 15.0
"""Seconds of one core to grow and compare the forest, for the forecast of a run's time."""

WINDOWS = 32
"""Windows of the held-out stacks that are compared, at most: 2 Mpx."""

COMPARED = 3000
"""Held-out pixels of a window that are compared, at most."""

RESAMPLES = 200
"""Times that the held-out patches are drawn anew for the spread."""

FOREST, SMALL, NETWORK = "random forest", "small models", "network"
"""Models that are compared."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of models on the same held-out pixels.

    Parameters
    ----------
    labels
        uint8 (pixel,): what is right, 0..N-1.
    patches
        int64 (pixel,), the patch of labels that a pixel lies in.
    probabilities
        float32 (pixel, class) of each model by its name: `FOREST`, and `SMALL` or `NETWORK` or both.
    """

    labels: NDArray[np.uint8]
    patches: NDArray[np.int64]
    probabilities: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Comparison:
    """Comparison of models on held-out pixels.

    Parameters
    ----------
    pixels, patches
        Held-out pixels compared, and patches of labels that they lie in.
    forest, network, small
        F1 of each class that the labels have, by its name, and last their mean as ``macro-F1``: of the random
        forest, the network and the mean of small models. None where there is no such model.
    spread
        Standard deviation of `difference`, and of that of each class, when patches are drawn anew. None where
        a class has one patch only, which tells nothing of others.
    """

    pixels: int
    patches: int
    forest: dict[str, float]
    spread: dict[str, float | None]
    network: dict[str, float] | None = None
    small: dict[str, float] | None = None

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """F1 by class of each model that there is, by its name, the forest first."""
        given = {FOREST: self.forest, SMALL: self.small, NETWORK: self.network}
        return {name: f1 for name, f1 in given.items() if f1}

    @property
    def other(self) -> str:
        """The model that the forest is compared with: the network where there is one."""
        return list(self.scores)[-1]

    @property
    def difference(self) -> float:
        """Macro-F1 of the other model less that of the forest."""
        return self.scores[self.other][MACRO] - self.forest[MACRO]

    @property
    def better(self) -> str:
        """The name of the model that leads by more than twice the spread, ``neither`` or ``unknown``."""
        spread = self.spread[MACRO]
        if spread is None:
            return "unknown"
        if abs(self.difference) <= 2 * spread:
            return "neither"
        return self.other if self.difference > 0 else FOREST

    @property
    def recommended(self) -> str:
        """Pick for maps: of few labels the small models, whose maps were better on the mean of real scenes.

        What few held-out patches say of network and small models does not hold elsewhere in a scene.
        """
        return FEW_LABELS if self.small else "lowest-val-loss"

    @property
    def picks(self) -> dict[str, str]:
        """What `lulc.models.weights.record_picks` notes of it: the file of the recommended model."""
        return {RECOMMENDED: f"{FEW_LABELS}.npz"} if self.recommended == FEW_LABELS else {}

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-ready data."""
        return vars(self) | {"better": self.better, "recommended": self.recommended}


def keep_pixel_models(
    config: TrainConfig, dataset: Dataset, legend: Legend, network: Path | None,
    temperature: float | tuple[float, ...] | None = None, *, refit: bool = True,
) -> Comparison:  # fmt: skip
    """Grow the forest, and fit the small models for few labels; compare and write them.

    Parameters
    ----------
    config
        Resolved.
    dataset
        What the network was trained and validated on, or would have been.
    legend
        Classes that the models decide between.
    network
        Weights to compare with; None where no network was trained.
    temperature
        For the card of the small models, where it was fitted elsewhere.
    refit
        Fit the small models once more on the validation labels as well, after they are compared.
    """
    single = config.single_class and dataset.legend.names.index(config.single_class) + 1
    targets = class_targets(len(dataset.legend), single or None)
    classes = 1 if single else len(legend)
    few, channels = config.recipe == FEW_LABELS, len(dataset.channels)
    radii = SMALL_RADII if few else RADII
    features, labels = _pixels_of(dataset, dataset.training, targets, config.seed, radii)
    # The features of the forest come first.
    grown = fit_forest(features[:, : channels * (1 + 2 * len(RADII))], labels, config.seed)
    models = {FOREST: PixelModel(arrays_of(grown, classes))}
    if few:
        models[SMALL] = fit_small_models(features, labels, channels, classes, config.seed)
    found = classify_held_out(dataset, targets, models, network, config.seed)
    comparison = compare(found, legend, config.seed)
    if SMALL in models and refit:
        both = (*dataset.training, *dataset.validation)
        everything = _pixels_of(dataset, both, targets, config.seed, radii)
        models[SMALL] = fit_small_models(*everything, channels, classes, config.seed)
    novelty = load_card(network).novelty if network else fit_novelty(dataset)
    for name, model in models.items():
        file = {FOREST: BASELINE, SMALL: FEW_LABELS}[name]
        given = found.probabilities[name]
        fitted = 1.0 if config.calibrate == "none" else fit_temperature(given, found.labels)
        scores = {
            "val_accuracy": float(np.mean(decide(given) == found.labels)),
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
    """Fit the out-of-distribution score of the stacks of a data set."""
    trained, held = ([(t.image, t.masks) for t in some] for some in (dataset.training, dataset.validation))
    return fit_ood_score(trained, held, dataset.statistics)


def _pixels_of(
    dataset: Dataset, tiles: Sequence[Tile], targets: NDArray[np.uint8], seed: int, radii: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return features and labels of the labelled pixels of stacks, `PIXELS` of them at most."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(targets[1 : len(dataset.counts) + 1], dataset.counts, 256)
    if len(tiles) > len(dataset.training):
        squares = labelled_squares(tiles[len(dataset.training) :], targets)
        counts = counts + sum(np.bincount(square.labels, minlength=256) for square in squares)
    share = _quota(counts, PIXELS) / np.maximum(counts, 1)
    features, labels = [], []
    for square in labelled_squares(tiles, targets):
        drawn = square.take(rng.random(len(square.labels)) < share[square.labels])
        features.append(features_at(drawn, dataset.statistics, radii))
        labels.append(drawn.labels)
    return np.concatenate(features), np.concatenate(labels)


def _quota(counts: NDArray[Any], total: int) -> NDArray[np.float64]:
    """Pixels of each class, as equal as the classes allow, `total` in all or all that there are.

    Examples
    --------
    >>> _quota(np.array([10, 500, 900]), 610).tolist(), _quota(np.array([10, 20, 0]), 610).tolist()
    ([10.0, 300.0, 300.0], [10.0, 20.0, 0.0])
    """
    quota = np.zeros(len(counts))
    left = float(total)
    for place, number in enumerate(np.argsort(counts)):
        quota[number] = min(counts[number], left / (len(counts) - place))
        left -= quota[number]
    return quota


def classify_held_out(
    dataset: Dataset, targets: NDArray[np.uint8], models: Mapping[str, PixelModel], network: Path | None,
    seed: int,
) -> HeldOut:  # fmt: skip
    """Have all models classify held-out pixels: all of them, or a draw where there are many.

    Parameters
    ----------
    dataset
        Its validation stacks are classified.
    targets
        uint8 (256,), what is learnt for each value in the masks.
    models
        Models of single pixels by their names.
    network
        Weights of the network; None for none.
    seed
        Of the draw.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {}
    patches = 0
    for square, given in _held_out(dataset, targets, network, rng):
        chosen = rng.random(len(square.labels)) < COMPARED / len(square.labels)
        some = square.take(chosen)
        features = features_at(some, dataset.statistics, SMALL_RADII if SMALL in models else RADII)
        probabilities = {name: model.predict(features).astype(np.float32) for name, model in models.items()}
        if given is not None:
            probabilities[NETWORK] = given[chosen]
        own: dict[str, NDArray[Any]] = {"labels": some.labels, "patches": some.patches + patches}
        for name, array in (own | probabilities).items():
            parts.setdefault(name, []).append(array)
        patches += int(some.patches.max(initial=-1)) + 1
    labels, numbers, *arrays = (np.concatenate(arrays) for arrays in parts.values())
    return HeldOut(labels, numbers, dict(zip(list(parts)[2:], arrays, strict=True)))


def _held_out(
    dataset: Dataset, targets: NDArray[np.uint8], network: Path | None, rng: np.random.Generator
) -> Iterator[tuple[Square, NDArray[np.float32] | None]]:
    """Yield squares of held-out pixels, and what a network says of these: float32 (pixel, class)."""
    if network is None:
        squares = list(labelled_squares(dataset.validation, targets))
        yield from ((squares[k], None) for k in sorted(rng.permutation(len(squares))[:WINDOWS]))
        return
    model, card = load_model(network)
    compiled = functools.cache(lambda shape: backend.compile_predict(model, (1, *shape)))
    for tile, plan, windows in _drawn(dataset.validation, card, targets, rng):
        for found in predict_tile(compiled(plan.window), tile, plan, windows):
            place = found.window.write
            square = labelled_square(tile, place, targets)
            if square is not None and found.probabilities is not None:
                given = found.probabilities[square.rows - place.row, square.cols - place.col]
                yield square, calibrate(given[np.newaxis], card.temperature)[0]


def _drawn(
    tiles: Sequence[Tile], card: ModelCard, targets: NDArray[np.uint8], rng: np.random.Generator
) -> Iterator[tuple[Tile, Plan, list[tuple[Part, PlannedWindow]]]]:
    """Windows with labels to be classified, by stack."""
    plans = [plan_of(tile, card) for tile in tiles]
    places = [
        (number, place)
        for number, (tile, plan) in enumerate(zip(tiles, plans, strict=True))
        for place in windows_of(plan)
        if (targets[np.asarray(tile.masks[place[1].write.slices])] != IGNORE).any()
    ]
    chosen = sorted(rng.permutation(len(places))[:WINDOWS])
    for number, group in itertools.groupby((places[k] for k in chosen), key=lambda item: item[0]):
        yield tiles[number], plans[number], [place for _, place in group]


def compare(found: HeldOut, legend: Legend, seed: int) -> Comparison:
    """Compare models by F1 of the classes that the held-out labels have.

    What the models say of other classes counts as wrong, and is no score of these.
    The spread is that of the paired difference of forest and last model over draws of patches with
    replacement, as pixels of one patch say much the same.
    """
    classes = len(legend)
    decided = (decide(p).astype(np.int64) for p in found.probabilities.values())
    joint = [found.labels.astype(np.int64) * classes + given for given in decided]
    known = sorted(set(found.labels.tolist()))
    numbers, first, patch = np.unique(found.patches, return_index=True, return_inverse=True)

    def scores(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """F1 of each class and last their mean, (model, class + 1), with each patch so many times."""
        tables = [np.bincount(j, times[patch], classes**2).reshape(classes, classes) for j in joint]
        f1 = np.stack([_f1(table)[known] for table in tables])
        return np.concatenate([f1, f1.mean(axis=1, keepdims=True)], axis=1)

    draws = np.random.default_rng(seed).multinomial(
        len(numbers), np.full(len(numbers), 1 / len(numbers)), RESAMPLES
    )
    spread = np.std([scores(times)[-1] - scores(times)[0] for times in draws], axis=0)
    several = np.bincount(found.labels[first], minlength=classes)[known] > 1
    names = [*(legend.names[k] for k in known), MACRO]
    sure = [*several.tolist(), bool(several.all())]
    f1 = [dict(zip(names, row, strict=True)) for row in scores(np.ones(len(numbers), np.int64)).tolist()]
    rows = dict(zip(found.probabilities, f1, strict=True))
    return Comparison(
        pixels=len(found.labels),
        patches=len(numbers),
        forest=rows[FOREST],
        spread={n: float(s) if k else None for n, s, k in zip(names, spread, sure, strict=True)},
        network=rows.get(NETWORK),
        small=rows.get(SMALL),
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
        data = [entry | {"ground": _all_ground(entry)} for entry in data]
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


def _all_ground(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [*entry.get("ground", ()), *entry.get("validation_ground", ())]
