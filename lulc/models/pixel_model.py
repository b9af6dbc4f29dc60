"""Models of single pixels: a forest and dense networks, as plain arrays.

A model is ``NAME.npz`` with its card ``NAME.json`` beside it. The file holds the five arrays of `Forest`
under their names, and ``weight0_0``, ``bias0_0``, ``weight0_1`` ... of each `DenseNetwork`, uncompressed and
without pickle. The features are `texture_features` with the statistics and radii of the card.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import InputError
from lulc.core.statistics import Statistics, valid_pixels
from lulc.models.archive import pack_npz, read_archive
from lulc.models.card import ModelCard, write_with_card
from lulc.models.config import PixelConfig

AT_ONCE = 4096
"""Pixels that a tree or layer computes together, so that their features stay in the processor's cache."""


def texture_features(
    x: NDArray[np.float32], statistics: Statistics, radii: Sequence[int]
) -> NDArray[np.float32]:
    """Return the features of each pixel, float32 (n, y, x, feature); 0 for invalid pixels.

    They are the standardised channels, then for each radius their means and their deviations over the valid
    pixels of the square. They depend on the square alone, to the last bit, so that windows give the values
    of the whole image.

    Parameters
    ----------
    x
        float32 (n, y, x, channel) in physical units, NaN in every channel of an invalid pixel.
    radii
        Radii of the squares in pixels: 2 for 5 x 5.
    """
    z = (x.astype(np.float64) - statistics.mean) / statistics.std
    valid = valid_pixels(z)[..., np.newaxis]
    # A missing channel of a valid pixel gets the mean, 0.
    z = np.where(np.isnan(z), 0.0, z)
    layers = [z]
    for radius in radii:
        count = np.maximum(_box_sum(valid.astype(np.float64), radius), 1.0)
        mean = _box_sum(z, radius) / count
        square = _box_sum(z * z, radius) / count
        layers += [mean, np.sqrt(np.maximum(square - mean * mean, 0.0))]
    return np.where(valid, np.concatenate(layers, axis=-1), 0.0).astype(np.float32)


def _box_sum(a: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Sum over the square around each pixel in a fixed order; running sums would round differently."""
    for axis in (0, 1):
        total = a.copy()
        sums, values = (np.moveaxis(b, axis + 1, 0) for b in (total, a))
        for shift in range(1, min(radius, len(values) - 1) + 1):
            sums[:-shift] += values[shift:]
            sums[shift:] += values[:-shift]
        a = total
    return a


@dataclass(frozen=True)
class Forest:
    """Trees one after the other, in arrays over all their nodes.

    Parameters
    ----------
    root
        int32 (tree,), first node of each tree, ascending.
    feature
        int32 (node,), feature that a node compares; -1 at a leaf.
    threshold
        float64 (node,); pixels with a feature up to this value go to the left child.
    child
        int32 (node,), left child, which the right one follows; at a leaf its row in `probability`.
    probability
        float64 (leaf, class), sums to 1; with one class its probability.
    """

    root: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    child: NDArray[np.int32]
    probability: NDArray[np.float64]

    def problem(self, features: int, classes: int) -> str | None:
        """Return what is wrong with the arrays; None if every pixel reaches a leaf."""
        nodes = len(self.feature)
        numbers, leaf, p = np.arange(nodes), self.feature < 0, self.probability
        checks = {
            "it has no tree": len(self.root) > 0,
            "arrays of its nodes differ in length": len(self.threshold) == len(self.child) == nodes,
            f"it compares other features than the {features} there are": bool(
                (self.feature < features).all() and (self.feature >= -1).all()
            ),
            f"its leaves are not of {classes} classes": p.ndim == 2 and p.shape[1] == classes,
        }
        for problem, holds in checks.items():
            if not holds:
                return problem
        inner, rows = self.child[~leaf], self.child[leaf]
        ends = np.append(self.root, nodes)[np.searchsorted(self.root, numbers, side="right")]
        checks = {
            "a tree begins at no node": bool(
                self.root[0] == 0 and (np.diff(self.root) > 0).all() and self.root[-1] < nodes
            ),
            # A path to ever later nodes of the tree can't be a cycle.
            "a node does not lead to later ones of its tree": bool(
                (inner > numbers[~leaf]).all() and (inner + 1 < ends[~leaf]).all()
            ),
            "a leaf is of no row": bool((rows >= 0).all() and (rows < len(p)).all()),
            "a threshold is not finite": bool(np.isfinite(self.threshold).all()),
            "probabilities of classes do not sum to 1": bool((p >= 0).all() and (p <= 1).all())
            and (classes == 1 or np.allclose(p.sum(axis=1), 1)),
        }
        return next((problem for problem, holds in checks.items() if not holds), None)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean probabilities of the trees, float64 (pixel, class), of float32 (pixel, feature)."""
        total = np.zeros((len(x), self.probability.shape[1]))
        for start in range(0, len(x), AT_ONCE):
            block = np.ascontiguousarray(x[start : start + AT_ONCE])
            for tree, rows in self._trees:
                total[start : start + AT_ONCE] += self.probability[rows[tree.apply(block)]]
        return total / len(self.root)

    @functools.cached_property
    def _trees(self) -> list[tuple[Any, NDArray[np.int32]]]:
        """Each tree as a tree of scikit-learn, eight times as fast as numpy, and `child` of its nodes."""
        from sklearn.tree import _tree

        trees = []
        for root, end in itertools.pairwise([*self.root.tolist(), len(self.feature)]):
            feature, child = self.feature[root:end], self.child[root:end]
            nodes = np.zeros(end - root, _tree.NODE_DTYPE)
            nodes["feature"], nodes["threshold"] = feature, self.threshold[root:end]
            for side, name in enumerate(("left_child", "right_child")):
                nodes[name] = np.where(feature >= 0, child - root + side, _tree.TREE_LEAF)
            tree = _tree.Tree(int(self.feature.max(initial=0)) + 1, np.ones(1, np.intp), 1)
            depth = {"max_depth": len(nodes), "node_count": len(nodes)}
            tree.__setstate__(depth | {"nodes": nodes, "values": np.ones((len(nodes), 1, 1))})
            trees.append((tree, child))
        return trees


@dataclass(frozen=True)
class DenseNetwork:
    """Dense layers with ReLU between them: float64 weights (input, output) and biases (output,) of each."""

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the softmax, for one class the sigmoid, of the last layer: float64 (pixel, class)."""
        result = np.empty((len(x), len(self.biases[-1])))
        # Blocks of one size, so that the result of a pixel does not depend on the number of pixels.
        block = np.zeros((AT_ONCE, x.shape[1]))
        for start in range(0, len(x), AT_ONCE):
            pixels = x[start : start + AT_ONCE]
            block[: len(pixels)] = pixels
            result[start : start + AT_ONCE] = self._of_block(block)[: len(pixels)]
        return result

    def _of_block(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0.0)
        scores = x @ self.weights[-1] + self.biases[-1]
        # The sigmoid of a logit is the softmax of this logit and 0.
        single = scores.shape[1] == 1
        scores = np.pad(scores, ((0, 0), (0, 1))) if single else scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        p = powers / powers.sum(axis=1, keepdims=True)
        return np.asarray(p[:, :1] if single else p)


@dataclass(frozen=True)
class PixelModel:
    """Mean of a forest, with the weight of `forests` networks, and dense networks."""

    forest: Forest
    dense: tuple[DenseNetwork, ...] = ()
    forests: int = 1

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean probabilities, float64 (pixel, class), from float32 (pixel, feature)."""
        total = self.forest.predict(x)
        if not self.dense:
            return total
        total *= self.forests
        for network in self.dense:
            total += network.predict(x)
        return total / (self.forests + len(self.dense))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by their names in the file."""
        arrays = {field.name: getattr(self.forest, field.name) for field in dataclasses.fields(Forest)}
        for k, network in enumerate(self.dense):
            for j, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                arrays |= {f"weight{k}_{j}": weight, f"bias{k}_{j}": bias}
        return arrays


def write_pixel_model(model: PixelModel, card: ModelCard, path: str | os.PathLike[str]) -> ModelCard:
    """Write a model and its card, each whole or not at all; return the card as written."""
    return write_with_card(pack_npz(model.arrays()), card, path)


def read_pixel_model(path: str | os.PathLike[str], card: ModelCard) -> PixelModel:
    """Read and check a model.

    Raises InputError if the file is not that of its card, or holds anything but the arrays of a model that
    fits the card.
    """
    arrays = read_archive(path, sha256=card.sha256)
    network = card.network
    if not isinstance(network, PixelConfig):
        raise InputError(
            f"cannot read the model '{Path(path)}', since its card is that of a network (.keras)",
            "Get both files from their source.",
        )
    types = _types_of(network)
    if {name: a.dtype.str[1:] for name, a in arrays.items()} != types:
        problem: str | None = f"its arrays are {', '.join(map(str, arrays))}, expected {', '.join(types)}"
    else:
        forest = Forest(**{field.name: arrays[field.name] for field in dataclasses.fields(Forest)})
        problem = forest.problem(network.features, network.classes) or _dense_problem(arrays, network)
    if problem:
        raise InputError(
            f"cannot read the model '{Path(path)}', since {problem}",
            "Train again, or get it from its source.",
        )
    dense = tuple(
        DenseNetwork(*(tuple(arrays[f"{kind}{k}_{j}"] for j in range(len(hidden) + 1)) for kind in KINDS))
        for k, hidden in enumerate(network.dense)
    )
    return PixelModel(forest, dense, network.forests)


KINDS = ("weight", "bias")


def _types_of(network: PixelConfig) -> dict[str, str]:
    types = {"root": "i4", "feature": "i4", "threshold": "f8", "child": "i4", "probability": "f8"}
    for k, hidden in enumerate(network.dense):
        types |= {f"{kind}{k}_{j}": "f8" for j in range(len(hidden) + 1) for kind in KINDS}
    return types


def _dense_problem(arrays: Mapping[str, NDArray[Any]], network: PixelConfig) -> str | None:
    """Return what is wrong with the dense layers; None if they are finite and have the shapes of the card."""
    for k, hidden in enumerate(network.dense):
        widths = (network.features, *hidden, network.classes)
        for j, shape in enumerate(itertools.pairwise(widths)):
            weight, bias = (arrays[f"{kind}{k}_{j}"] for kind in KINDS)
            if (weight.shape, bias.shape) != (shape, shape[1:]):
                return f"layer {j} of network {k} is of {weight.shape}, expected {shape}"
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                return f"layer {j} of network {k} is not finite"
    return None
