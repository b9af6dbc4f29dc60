"""The baseline beside a training: a random forest of the same labels, and which of the two is better."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
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
    FEW_LABELS: "Mean of random forests, perceptrons and linear discriminants on pixels, and on these with "
    "mean and deviation in 5 x 5. Trained on all labels; its scores are those without the validation labels.",
}

RADII = (2,)
"""Mean and deviation are of squares of 5 x 5 pixels."""

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

Predict = Callable[[Square], NDArray[np.float32]]
"""Probabilities that a model gives the pixels of a square, float32 (pixel, class)."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of two models on the same held-out pixels.

    Parameters
    ----------
    labels
        uint8 (pixel,): what is right, 0..N-1.
    forest, network
        float32 (pixel, class), probabilities.
    patches
        int64 (pixel,), the patch of labels that a pixel lies in.
    """

    labels: NDArray[np.uint8]
    forest: NDArray[np.float32]
    network: NDArray[np.float32]
    patches: NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Comparison of two models on held-out pixels.

    Parameters
    ----------
    pixels, patches
        Held-out pixels compared, and patches of labels that they lie in.
    forest, network
        F1 of each class that the labels have, by its name, and last their mean as ``macro-F1``.
    spread
        Standard deviation of the difference of each of these when patches are drawn anew.
    small
        Of the mean of small models, in the place of the forest; None where only the forest was grown.
    """

    pixels: int
    patches: int
    forest: dict[str, float]
    network: dict[str, float]
    spread: dict[str, float]
    small: Comparison | None = None

    @property
    def difference(self) -> float:
        """Macro-F1 of the network less that of the forest."""
        return self.network[MACRO] - self.forest[MACRO]

    @property
    def better(self) -> str:
        """``forest`` or ``network`` where one leads by more than twice the spread, else ``neither``."""
        if abs(self.difference) <= 2 * self.spread[MACRO]:
            return "neither"
        return "network" if self.difference > 0 else "forest"

    @property
    def recommended(self) -> str:
        """Pick for maps: of few labels the small models, whose maps were better on three of five scenes.

        What few held-out patches say of network and small models does not hold elsewhere in a scene.
        """
        return FEW_LABELS if self.small else "lowest-val-loss"

    @property
    def picks(self) -> dict[str, str]:
        """What `lulc.models.weights.record_picks` notes of it: the file of the recommended model."""
        return {RECOMMENDED: f"{FEW_LABELS}.npz"} if self.recommended == FEW_LABELS else {}

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-ready data."""
        found = {name: value for name, value in vars(self).items() if name != "small"}
        small = {"small": self.small.to_json()} if self.small else {}
        return found | small | {"better": self.better, "recommended": self.recommended}


def keep_baseline(config: TrainConfig, dataset: Dataset, legend: Legend, model: Path) -> Comparison:
    """Grow the forest, compare it with a network of the run, and write it beside that.

    Parameters
    ----------
    config
        Resolved.
    dataset
        What the network was trained and validated on.
    legend
        Classes that it decides between.
    model
        Its weights.
    """
    single = config.single_class and dataset.legend.names.index(config.single_class) + 1
    targets = class_targets(len(dataset.legend), single or None)
    classes = 1 if single else len(legend)
    features, labels = _pixels_of(dataset, dataset.training, targets, config.seed)
    forest = PixelModel(arrays_of(fit_forest(features, labels, config.seed), classes))
    small = None
    if config.recipe == FEW_LABELS:
        channels, both = len(dataset.channels), (*dataset.training, *dataset.validation)
        held_out = fit_small_models(features, labels, channels, classes, config.seed)
        kept = fit_small_models(
            *_pixels_of(dataset, both, targets, config.seed), channels, classes, config.seed
        )
        small = _keep(config, dataset, targets, legend, model, FEW_LABELS, held_out, kept)
    return _keep(config, dataset, targets, legend, model, BASELINE, forest, forest, small)


def _keep(
    config: TrainConfig, dataset: Dataset, targets: NDArray[np.uint8], legend: Legend, network: Path,
    name: str, scored: PixelModel, kept: PixelModel, small: Comparison | None = None,
) -> Comparison:  # fmt: skip
    """Compare a model of single pixels with the network, and write the one to be kept."""

    def predict(square: Square) -> NDArray[np.float32]:
        return scored.predict(features_at(square, dataset.statistics, RADII)).astype(np.float32)

    found = classify_held_out(dataset, targets, predict, network, config.seed)
    comparison = dataclasses.replace(compare(found, legend, config.seed), small=small)
    temperature = 1.0 if config.calibrate == "none" else fit_temperature(found.forest, found.labels)
    own = _card_of(config, dataset, name, kept, comparison)
    accuracy = float(np.mean(decide(found.forest) == found.labels))
    own = dataclasses.replace(
        own, temperature=temperature, novelty=load_card(network).novelty,
        scores=own.scores | {"val_accuracy": accuracy},
    )  # fmt: skip
    write_pixel_model(kept, own, network.with_name(f"{name}.npz"))
    return comparison


def _pixels_of(
    dataset: Dataset, tiles: Sequence[Tile], targets: NDArray[np.uint8], seed: int
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
        features.append(features_at(drawn, dataset.statistics, RADII))
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
    dataset: Dataset, targets: NDArray[np.uint8], forest: Predict, model: Path, seed: int
) -> HeldOut:
    """Have both models classify held-out pixels: all of them, or a draw where there are many.

    Parameters
    ----------
    dataset
        Its validation stacks are classified.
    targets
        uint8 (256,), what is learnt for each value in the masks.
    forest
        The forest.
    model
        Weights of the network.
    seed
        Of the draw.
    """
    rng = np.random.default_rng(seed)
    network, card = load_model(model)
    compiled = functools.cache(lambda shape: backend.compile_predict(network, (1, *shape)))
    parts: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(HeldOut)}
    patches = 0
    for tile, plan, windows in _drawn(dataset.validation, card, targets, rng):
        for found in predict_tile(compiled(plan.window), tile, plan, windows):
            place = found.window.write
            square = labelled_square(tile, place, targets)
            if square is None or found.probabilities is None:
                continue
            square = square.take(rng.random(len(square.labels)) < COMPARED / len(square.labels))
            given = found.probabilities[square.rows - place.row, square.cols - place.col]
            parts["labels"].append(square.labels)
            parts["forest"].append(forest(square))
            parts["network"].append(calibrate(given[np.newaxis], card.temperature)[0])
            parts["patches"].append(square.patches + patches)
            patches += int(square.patches.max(initial=-1)) + 1
    return HeldOut(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


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
    """Compare two models by F1 of the classes that the held-out labels have.

    What the models say of other classes counts as wrong, and is no score of these.
    The spread is that of the paired difference over draws of patches with replacement, as pixels of one patch
    say much the same.
    """
    classes = len(legend)
    given = [decide(p).astype(np.int64) for p in (found.forest, found.network)]
    joint = [found.labels.astype(np.int64) * classes + decided for decided in given]
    known = sorted(set(found.labels.tolist()))
    numbers, patch = np.unique(found.patches, return_inverse=True)

    def scores(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """F1 of each class and last their mean, (model, class + 1), with each patch so many times."""
        tables = [np.bincount(j, times[patch], classes**2).reshape(classes, classes) for j in joint]
        f1 = np.stack([_f1(table)[known] for table in tables])
        return np.concatenate([f1, f1.mean(axis=1, keepdims=True)], axis=1)

    draws = np.random.default_rng(seed).multinomial(
        len(numbers), np.full(len(numbers), 1 / len(numbers)), RESAMPLES
    )
    spread = np.std([np.diff(scores(times), axis=0)[0] for times in draws], axis=0)
    forest, network = scores(np.ones(len(numbers), np.int64))
    rows = (
        dict(zip([*(legend.names[k] for k in known), MACRO], row.tolist(), strict=True))
        for row in (forest, network, spread)
    )
    by_forest, by_network, spreads = rows
    return Comparison(len(found.labels), len(numbers), by_forest, by_network, spreads)


def _f1(table: NDArray[np.int64]) -> NDArray[np.float64]:
    both = table.sum(axis=0) + table.sum(axis=1)
    return np.asarray(2 * np.diag(table) / np.maximum(both, 1))


def _card_of(
    config: TrainConfig, dataset: Dataset, name: str, model: PixelModel, comparison: Comparison
) -> ModelCard:
    classes = model.forest.probability.shape[1]
    numbers = sum(array.size for array in model.arrays().values())
    dense = tuple(tuple(len(bias) for bias in network.biases[:-1]) for network in model.dense)
    data = dataset.provenance
    if name == FEW_LABELS:
        # All labels train what is kept.
        data = [entry | {"ground": _all_ground(entry)} for entry in data]
    return ModelCard(
        name=f"{Path(config.out).resolve().name}/{name}",
        channels=tuple(Channel(**channel) for channel in dataset.channels),
        channel_set=dataset.channel_set,
        legend=dataset.legend,
        statistics=dataset.statistics,
        network=PixelConfig(classes, len(dataset.channels), RADII, numbers, dense, model.forests),
        stride=1,
        halo=max(RADII),
        single_class=config.single_class,
        training={
            "parameters": {"trees": len(model.forest.root), "pixels": PIXELS, "seed": config.seed},
            "data": data,
            "class_counts": dict(zip(dataset.legend.names, dataset.counts.tolist(), strict=True)),
        },
        scores={"val_macro_f1": comparison.forest[MACRO], "compared": comparison.to_json()},
        versions={"lulc": __version__, "scikit-learn": version("scikit-learn"), "numpy": np.__version__},
        description=DESCRIPTIONS[name],
        simulated=dataset.simulated,
    )


def _all_ground(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [*entry.get("ground", ()), *entry.get("validation_ground", ())]
