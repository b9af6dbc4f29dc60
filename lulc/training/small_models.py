"""Models of single pixels, fitted by scikit-learn: a random forest, and small models for few labels.

The small models are forests and perceptrons. Their features are the channels of a pixel, and mean and
deviation of these in a small or a large square around it. ``benchmarks/log/few-labels.md`` has the accuracy
of each alone, and of the alternatives tried.
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
"""Trees of the random forest, and of each forest among the small models."""

BESIDE = 0.6
"""Largest fraction of a pixel's surroundings that is replaced by another class."""

HIDDEN = (64, 64)
"""Outputs of the hidden layers of a perceptron."""

DECAY, EPOCHS = 1.0, 100
"""L2 penalty of the weights of a perceptron, and most passes over the labels."""

ABSENT = -1e3
"""Logit of a class without labels, whose probability becomes 0."""


def fit_forest(
    features: NDArray[np.float32], labels: NDArray[np.uint8], seed: int, trees: int = TREES
) -> RandomForestClassifier:
    """Fit a forest to features (pixel, feature) and labels (pixel,), with all classes weighted equally."""
    forest = RandomForestClassifier(trees, class_weight="balanced", n_jobs=cores(), random_state=seed)
    return forest.fit(features, labels)


def fit_small_models(
    features: NDArray[np.float32], labels: NDArray[np.uint8], channels: int, classes: int, seed: int
) -> PixelModel:
    """Fit a forest and a perceptron for each radius of the features.

    Parameters
    ----------
    features
        float32 (pixel, feature): the channels, then for each radius their means and their deviations.
    labels
        uint8 (pixel,), 0..N-1.
    channels
        Number of channels among the features.
    classes
        Outputs; 1 for label 1 against label 0.
    """
    forests, dense = [], []
    x, y = with_borders(features, labels, channels, seed)
    for start in range(channels, features.shape[1], 2 * channels):
        columns = np.r_[:channels, start : start + 2 * channels]
        grown = arrays_of(fit_forest(x[:, columns], y, seed, TREES_OF_SCALE), classes)
        compared = np.where(grown.feature < 0, -1, columns[grown.feature]).astype("i4")
        forests.append(dataclasses.replace(grown, feature=compared))
        dense.append(_perceptron(x, y, columns, classes, seed))
    return PixelModel(_merge(forests), tuple(dense), len(forests))


def with_borders(
    features: NDArray[np.float32], labels: NDArray[np.uint8], channels: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the pixels, followed by a copy of each as if it lay at the border of another class.

    Polygons are drawn inside fields, so models would never see a border. In the copies, a random fraction up
    to `BESIDE` of the surroundings is replaced by those of a random pixel of another class. Arguments are
    those of `fit_small_models`.
    """
    rng = np.random.default_rng(seed)
    if (labels == labels[0]).all():
        return features, labels
    partner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        same = labels == label
        partner[same] = rng.choice(np.flatnonzero(~same), same.sum())
    fraction = rng.uniform(0, BESIDE, (len(labels), 1))
    copies = features.copy()
    for start in range(channels, features.shape[1], 2 * channels):
        means, stds = slice(start, start + channels), slice(start + channels, start + 2 * channels)
        mean, square = features[:, means].astype(np.float64), features[:, stds].astype(np.float64) ** 2
        square += mean**2
        mean, square = ((1 - fraction) * a + fraction * a[partner] for a in (mean, square))
        copies[:, means], copies[:, stds] = mean, np.sqrt(np.maximum(square - mean**2, 0))
    return np.concatenate([features, copies]), np.concatenate([labels, labels])


def _merge(forests: list[Forest]) -> Forest:
    """Return one forest with the trees of all."""
    shifted = []
    nodes = leaves = 0
    for forest in forests:
        child = np.where(forest.feature < 0, forest.child + leaves, forest.child + nodes)
        shifted.append(dataclasses.replace(forest, root=forest.root + nodes, child=child))
        nodes, leaves = nodes + len(forest.feature), leaves + len(forest.probability)
    return _concatenated(
        {field.name: [getattr(f, field.name) for f in shifted] for field in dataclasses.fields(Forest)}
    )


def _concatenated(arrays: dict[str, list[np.ndarray]]) -> Forest:
    types = {"root": "i4", "feature": "i4", "threshold": "f8", "child": "i4", "probability": "f8"}
    return Forest(**{name: np.concatenate(arrays[name]).astype(kind) for name, kind in types.items()})


def _perceptron(
    features: NDArray[np.float32], labels: NDArray[np.uint8], columns: NDArray[np.int64], classes: int,
    seed: int,
) -> DenseNetwork:  # fmt: skip
    """Fit a perceptron to some columns of the features; the others get weights of 0."""
    mean = features[:, columns].mean(axis=0, dtype=np.float64)
    std = features[:, columns].std(axis=0, dtype=np.float64)
    std[std == 0] = 1.0
    perceptron = MLPClassifier(HIDDEN, alpha=DECAY, max_iter=EPOCHS, random_state=seed)
    balanced = compute_sample_weight("balanced", labels)
    # One thread is ten times as fast on two cores, since the matrices of a batch are small.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The passes are few on purpose: more would overfit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Scikit-learn would turn an interruption into an early end of the fit.
        warnings.filterwarnings("error", "Training interrupted by user")
        try:
            perceptron.fit((features[:, columns] - mean) / std, labels, sample_weight=balanced)
        except UserWarning as interrupted:
            raise KeyboardInterrupt from interrupted
    weights, biases = list(perceptron.coefs_), list(perceptron.intercepts_)
    biases[0] = biases[0] - (mean / std) @ weights[0]
    first = np.zeros((features.shape[1], weights[0].shape[1]))
    first[columns] = weights[0] / std[:, np.newaxis]
    weights[0] = first
    weights[-1], biases[-1] = _all_classes(weights[-1], biases[-1], np.unique(labels), classes)
    return DenseNetwork(
        *(tuple(np.ascontiguousarray(a, "f8") for a in layers) for layers in (weights, biases))
    )


def _all_classes(
    weight: NDArray[np.float64], bias: NDArray[np.float64], known: NDArray[np.uint8], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Extend the last layer from the classes among the labels to all classes."""
    if len(known) == 2 and weight.shape[1] == 1:
        if classes == 1:
            return weight, bias
        # The sigmoid of a logit is the softmax of 0 and this logit.
        weight, bias = np.pad(weight, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    all_weights, all_biases = np.zeros((len(weight), classes)), np.full(classes, ABSENT)
    all_weights[:, known], all_biases[known] = weight, bias
    return all_weights, all_biases


def arrays_of(grown: RandomForestClassifier, classes: int) -> Forest:
    """Return a forest of scikit-learn, whose classes are integers from 0, with the same predictions.

    Classes without labels get the probability 0; a single class gets that of class 1 of two.
    """
    nodes = leaves = 0
    arrays: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(Forest)}
    for tree in (estimator.tree_ for estimator in grown.estimators_):
        # Breadth-first, so that the two children of a node follow each other.
        order = _breadth_first(tree.children_left, tree.children_right)
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        leaf = tree.children_left[order] < 0
        probability = np.zeros((int(leaf.sum()), max(classes, 2)))
        probability[:, grown.classes_.astype(int)] = tree.value[order][leaf][:, 0]
        child = np.where(leaf, 0, position[tree.children_left[order]] + nodes)
        child[leaf] = np.arange(len(probability)) + leaves
        arrays["root"].append(np.array([nodes]))
        arrays["feature"].append(np.where(leaf, -1, tree.feature[order]))
        arrays["threshold"].append(np.where(leaf, 0.0, tree.threshold[order]))
        arrays["child"].append(child)
        arrays["probability"].append(probability if classes > 1 else probability[:, 1:])
        nodes, leaves = nodes + len(order), leaves + len(probability)
    return _concatenated(arrays)


def _breadth_first(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    levels = [np.array([0])]
    while levels[-1].size:
        inner = levels[-1][left[levels[-1]] >= 0]
        levels.append(np.stack([left[inner], right[inner]], axis=1).ravel())
    return np.concatenate(levels)
