"""Models of single pixels: a random forest, and for few labels forests and perceptrons beside it.

Each of the latter is fitted by scikit-learn on the labelled pixels themselves: on their channels, with mean
and deviation in a small or a large square around the pixel. What each gives alone, and what else was tried,
is in ``benchmarks/log/few-labels.md``.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from lulc.core.machine import cores
from lulc.models.pixel_model import DenseNetwork, Forest, PixelModel

TREES, TREES_OF_SCALE = 150, 80
"""Of a forest alone, and of each of the forests of small models."""

BESIDE = 0.6
"""Share of a pixel's surroundings that is made land of another class, at most."""

HIDDEN = (64, 64)
"""Outputs of the hidden layers of a perceptron."""

DECAY, ROUNDS = 1.0, 100
"""L2 penalty of its weights, and passes over the labels at most."""

ABSENT = -1e3
"""Score of a class that no label names: its probability is 0."""


def fit_forest(
    features: NDArray[np.float32], labels: NDArray[np.uint8], seed: int, trees: int = TREES
) -> RandomForestClassifier:
    """Fit a forest of features (pixel, feature) and labels (pixel,) in which all classes weigh alike."""
    forest = RandomForestClassifier(trees, class_weight="balanced", n_jobs=cores(), random_state=seed)
    return forest.fit(features, labels)


def fit_small_models(
    features: NDArray[np.float32], labels: NDArray[np.uint8], channels: int, classes: int, seed: int
) -> PixelModel:
    """Fit all models.

    Parameters
    ----------
    features
        float32 (pixel, feature), the channels first, then mean and deviation of each for every radius.
    labels
        uint8 (pixel,), 0..N-1.
    channels
        How many of the features are channels.
    classes
        Outputs; with 1 the models tell label 1 from 0.
    seed
        Of forests, perceptrons and borders.
    """
    forests, dense = [], []
    x, y = with_borders(features, labels, channels, seed)
    for start in range(channels, features.shape[1], 2 * channels):
        columns = np.r_[:channels, start : start + 2 * channels]
        grown = arrays_of(fit_forest(x[:, columns], y, seed, TREES_OF_SCALE), classes)
        compared = np.where(grown.feature < 0, -1, columns[grown.feature]).astype("i4")
        forests.append(dataclasses.replace(grown, feature=compared))
        dense.append(_perceptron(x, y, columns, classes, seed))
    return PixelModel(_together(forests), tuple(dense), len(forests))


def with_borders(
    features: NDArray[np.float32], labels: NDArray[np.uint8], channels: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return features and labels, and then all once more as if land of another class began beside each pixel.

    Polygons are drawn inside fields, so that their surroundings are of one class, and models of these fail
    along borders. Of each copy the pixel stays as it is, and a share of its surroundings, up to `BESIDE`, is
    like those of a random pixel of another class.

    Parameters
    ----------
    features, labels, channels, seed
        As for `fit_small_models`.
    """
    rng = np.random.default_rng(seed)
    if (labels == labels[0]).all():
        return features, labels
    partner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = labels == label
        partner[own] = rng.choice(np.flatnonzero(~own), own.sum())
    share = rng.uniform(0, BESIDE, (len(labels), 1))
    copies = features.copy()
    for start in range(channels, features.shape[1], 2 * channels):
        means, stds = slice(start, start + channels), slice(start + channels, start + 2 * channels)
        mean, square = features[:, means].astype(np.float64), features[:, stds].astype(np.float64) ** 2
        square += mean**2
        mean, square = ((1 - share) * a + share * a[partner] for a in (mean, square))
        copies[:, means], copies[:, stds] = mean, np.sqrt(np.maximum(square - mean**2, 0))
    return np.concatenate([features, copies]), np.concatenate([labels, labels])


def _together(forests: list[Forest]) -> Forest:
    """Return one forest of all trees."""
    nodes = np.cumsum([0, *(len(f.feature) for f in forests)])
    leaves = np.cumsum([0, *(len(f.probability) for f in forests)])
    children = [
        np.where(f.feature < 0, f.child + leaf, f.child + node).astype("i4")
        for f, node, leaf in zip(forests, nodes[:-1], leaves[:-1], strict=True)
    ]
    return Forest(
        root=np.concatenate([f.root + node for f, node in zip(forests, nodes[:-1], strict=True)]).astype(
            "i4"
        ),
        feature=np.concatenate([f.feature for f in forests]),
        threshold=np.concatenate([f.threshold for f in forests]),
        child=np.concatenate(children),
        probability=np.concatenate([f.probability for f in forests]),
    )


def _perceptron(
    features: NDArray[np.float32], labels: NDArray[np.uint8], columns: NDArray[np.int64], classes: int,
    seed: int,
) -> DenseNetwork:  # fmt: skip
    """Fit a perceptron of some features, as a network of all, the others weighing nothing."""
    mean = features[:, columns].mean(axis=0, dtype=np.float64)
    std = features[:, columns].std(axis=0, dtype=np.float64)
    std[std == 0] = 1.0
    perceptron = MLPClassifier(HIDDEN, alpha=DECAY, max_iter=ROUNDS, random_state=seed)
    weigh_alike = compute_sample_weight("balanced", labels)
    # One thread is ten times as fast on two cores: the matrices of a batch are small.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The passes are few on purpose: more of them learn the labels by heart.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Scikit-learn would go on with what is learnt until then.
        warnings.filterwarnings("error", "Training interrupted by user")
        try:
            perceptron.fit((features[:, columns] - mean) / std, labels, sample_weight=weigh_alike)
        except UserWarning as interrupted:
            raise KeyboardInterrupt from interrupted
    weights, biases = list(perceptron.coefs_), list(perceptron.intercepts_)
    biases[0] = biases[0] - (mean / std) @ weights[0]
    first = np.zeros((features.shape[1], weights[0].shape[1]))
    first[columns] = weights[0] / std[:, np.newaxis]
    weights[0] = first
    weights[-1], biases[-1] = _all_classes(weights[-1], biases[-1], np.unique(labels), classes)
    sides = (tuple(np.ascontiguousarray(a, "f8") for a in side) for side in (weights, biases))
    return DenseNetwork(*sides)


def _all_classes(
    weight: NDArray[np.float64], bias: NDArray[np.float64], known: NDArray[np.uint8], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a last layer that scores every class, of one that scores those of the labels."""
    if len(known) == 2 and weight.shape[1] == 1:
        if classes == 1:
            return weight, bias
        # The logistic function of a score is the softmax of it and 0.
        weight, bias = np.pad(weight, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    scores = np.zeros((len(weight), classes))
    scores[:, known] = weight
    shifts = np.full(classes, ABSENT)
    shifts[known] = bias
    return scores, shifts


def arrays_of(grown: RandomForestClassifier, classes: int) -> Forest:
    """Return a forest of scikit-learn as arrays that predict the same.

    Parameters
    ----------
    grown
        Its classes are whole numbers from 0 on; those that it did not see get 0.
    classes
        Channels of the output; with 1 what remains of two classes is the share of class 1.
    """
    nodes = leaves = 0
    parts: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(Forest)}
    for tree in (estimator.tree_ for estimator in grown.estimators_):
        # Breadth-first, so that the two children of a node follow each other.
        order = _breadth_first(tree.children_left, tree.children_right)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        leaf = tree.children_left[order] < 0
        shares = np.zeros((int(leaf.sum()), max(classes, 2)))
        shares[:, grown.classes_.astype(int)] = tree.value[order][leaf][:, 0]
        child = np.where(leaf, 0, place[tree.children_left[order]] + nodes)
        child[leaf] = np.arange(len(shares)) + leaves
        parts["root"].append(np.array([nodes]))
        parts["feature"].append(np.where(leaf, -1, tree.feature[order]))
        parts["threshold"].append(np.where(leaf, 0.0, tree.threshold[order]))
        parts["child"].append(child)
        parts["probability"].append(shares if classes > 1 else shares[:, 1:])
        nodes, leaves = nodes + len(order), leaves + len(shares)
    types = {"root": "i4", "feature": "i4", "threshold": "f8", "child": "i4", "probability": "f8"}
    return Forest(**{name: np.concatenate(parts[name]).astype(kind) for name, kind in types.items()})


def _breadth_first(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    levels = [np.array([0])]
    while levels[-1].size:
        inner = levels[-1][left[levels[-1]] >= 0]
        levels.append(np.stack([left[inner], right[inner]], axis=1).ravel())
    return np.concatenate(levels)
