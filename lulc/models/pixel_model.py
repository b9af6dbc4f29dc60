"""Models that decide each pixel from its features, as plain arrays that need no library to predict.

A model is `NAME.npz` with its card `NAME.json` beside it. The file holds the five arrays of `Forest` under
their names, and ``weight0_0``, ``bias0_0``, ``weight0_1`` ... of each `DenseNetwork`, uncompressed and
without pickle. The features are those of `lulc.models.texture.texture_features`, with the statistics and
radii of the card.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.removal import withdraw
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.models.archive import pack_npz, read_archive
from lulc.models.card import ModelCard, card_path, write_card
from lulc.models.config import PixelConfig

AT_ONCE = 4096
"""Pixels that go through a tree or layer together: their features stay near the processor."""


@dataclass(frozen=True)
class Forest:
    """Trees one after the other in arrays over all their nodes.

    Parameters
    ----------
    root
        int32 (tree,), the first node of each tree, ascending; a tree ends where the next one begins.
    feature
        int32 (node,), the feature that a node compares; -1 at a leaf.
    threshold
        float64 (node,): pixels whose feature is at most this go to the left child.
    child
        int32 (node,): the left child, which the right one follows; at a leaf its row in `probability`.
    probability
        float64 (leaf, class): shares of the classes, which sum up to 1; with one class its share.
    """

    root: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    child: NDArray[np.int32]
    probability: NDArray[np.float64]

    def problem(self, features: int, classes: int) -> str | None:
        """Return the fault of the arrays; None for those of a forest that ends at every pixel."""
        nodes = len(self.feature)
        numbers, leaf = np.arange(nodes), self.feature < 0
        checks = {
            "it has no tree": len(self.root) > 0,
            "arrays of its nodes differ in length": len(self.threshold) == len(self.child) == nodes,
            f"it compares other features than the {features} there are": bool(
                (self.feature < features).all() and (self.feature >= -1).all()
            ),
            f"its leaves are not of {classes} classes": self.probability.ndim == 2
            and self.probability.shape[1] == classes,
        }
        for problem, holds in checks.items():
            if not holds:
                return problem
        inner, rows = self.child[~leaf], self.child[leaf]
        ends = np.append(self.root, nodes)[np.searchsorted(self.root, numbers, side="right")]
        whole = {
            "a tree begins at no node": bool(
                self.root[0] == 0 and (np.diff(self.root) > 0).all() and self.root[-1] < nodes
            ),
            # Whoever goes to a later node only comes to an end; beyond its tree a node is of another one.
            "a node does not lead to later ones of its tree": bool(
                (inner > numbers[~leaf]).all() and (inner + 1 < ends[~leaf]).all()
            ),
            "a leaf is of no row": bool((rows >= 0).all() and (rows < len(self.probability)).all()),
            "a threshold is not finite": bool(np.isfinite(self.threshold).all()),
            "shares of classes do not sum up to 1": bool((self.probability >= 0).all())
            and (classes == 1 or np.allclose(self.probability.sum(axis=1), 1))
            and bool((self.probability <= 1).all()),
        }
        return next((problem for problem, holds in whole.items() if not holds), None)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean over all trees of the shares of the classes, float64 (pixel, class).

        Parameters
        ----------
        x
            float32 (pixel, feature).
        """
        total = np.zeros((len(x), self.probability.shape[1]))
        for start in range(0, len(x), AT_ONCE):
            some = np.ascontiguousarray(x[start : start + AT_ONCE])
            for tree, rows in self._trees:
                total[start : start + AT_ONCE] += self.probability[rows[tree.apply(some)]]
        return total / len(self.root)

    @functools.cached_property
    def _trees(self) -> list[tuple[Any, NDArray[np.int32]]]:
        """Each tree as scikit-learn walks it, eight times as fast as numpy, and `child` of its nodes."""
        from sklearn.tree import _tree

        trees = []
        for root, end in itertools.pairwise([*self.root.tolist(), len(self.feature)]):
            own = slice(root, end)
            inner = self.feature[own] >= 0
            nodes = np.zeros(end - root, _tree.NODE_DTYPE)
            nodes["feature"], nodes["threshold"] = self.feature[own], self.threshold[own]
            for side, name in enumerate(("left_child", "right_child")):
                nodes[name] = np.where(inner, self.child[own] - root + side, _tree.TREE_LEAF)
            tree = _tree.Tree(int(self.feature.max(initial=0)) + 1, np.ones(1, np.intp), 1)
            depth = {"max_depth": len(nodes), "node_count": len(nodes)}
            tree.__setstate__(depth | {"nodes": nodes, "values": np.ones((len(nodes), 1, 1))})
            trees.append((tree, self.child[own]))
        return trees


@dataclass(frozen=True)
class DenseNetwork:
    """Dense layers with rectified linear units between them; one layer is a linear discriminant.

    Parameters
    ----------
    weights
        float64 (input, output) of each layer.
    biases
        float64 (output,) of each layer.
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return softmax, of one class sigmoid, of the last layer: float64 (pixel, class)."""
        found = np.empty((len(x), len(self.biases[-1])))
        # Always as many rows together, so that a pixel's result does not depend on those beside it.
        block = np.zeros((AT_ONCE, x.shape[1]))
        for start in range(0, len(x), AT_ONCE):
            some = x[start : start + AT_ONCE]
            block[: len(some)] = some
            found[start : start + AT_ONCE] = self._of_block(block)[: len(some)]
        return found

    def _of_block(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0.0)
        scores = x @ self.weights[-1] + self.biases[-1]
        # The logistic function of a score is the softmax of it and 0.
        single = scores.shape[1] == 1
        scores = np.pad(scores, ((0, 0), (0, 1))) if single else scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        found = powers / powers.sum(axis=1, keepdims=True)
        return np.asarray(found[:, :1] if single else found)


@dataclass(frozen=True)
class PixelModel:
    """A forest, and dense networks beside it."""

    forest: Forest
    dense: tuple[DenseNetwork, ...] = ()
    forests: int = 1

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the weighted mean of the probabilities, float64 (pixel, class).

        Parameters
        ----------
        x
            float32 (pixel, feature).
        """
        total = self.forest.predict(x)
        if not self.dense:
            return total
        total *= self.forests
        for network in self.dense:
            total += network.predict(x)
        return total / (self.forests + len(self.dense))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by their names in the file."""
        found = {field.name: getattr(self.forest, field.name) for field in dataclasses.fields(Forest)}
        for k, network in enumerate(self.dense):
            for j, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                found |= {f"weight{k}_{j}": weight, f"bias{k}_{j}": bias}
        return found


def write_pixel_model(model: PixelModel, card: ModelCard, path: str | os.PathLike[str]) -> ModelCard:
    """Write a model and its card, each whole or not at all, the card last; return the card as written."""
    content = pack_npz(model.arrays())
    withdraw(card_path(path))
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    write_card(card, path)
    return card


def read_pixel_model(path: str | os.PathLike[str], card: ModelCard) -> PixelModel:
    """Read a model after every check.

    Raises
    ------
    InputError
        If it is not the file that its card is about, or holds anything but the arrays of a model that fits
        the card.
    """
    arrays = read_archive(path, sha256=card.sha256)
    network = card.network
    if not isinstance(network, PixelConfig):
        raise InputError(
            f"cannot read the model '{Path(path)}', since its card is that of a network (.keras)",
            "Take both files from their source.",
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
            "Train again, or take it from its source.",
        )
    dense = tuple(
        DenseNetwork(*(tuple(arrays[f"{kind}{k}_{j}"] for j in range(len(hidden) + 1)) for kind in KINDS))
        for k, hidden in enumerate(network.dense)
    )
    return PixelModel(forest, dense, network.forests)


KINDS = ("weight", "bias")
"""Arrays of a layer."""


def _types_of(network: PixelConfig) -> dict[str, str]:
    types = {"root": "i4", "feature": "i4", "threshold": "f8", "child": "i4", "probability": "f8"}
    for k, hidden in enumerate(network.dense):
        types |= {f"{kind}{k}_{j}": "f8" for j in range(len(hidden) + 1) for kind in KINDS}
    return types


def _dense_problem(arrays: Mapping[str, NDArray[Any]], network: PixelConfig) -> str | None:
    """Return the fault of the layers; None for finite ones of the shapes that the card says."""
    for k, hidden in enumerate(network.dense):
        sides = (network.features, *hidden, network.classes)
        for j, shape in enumerate(itertools.pairwise(sides)):
            found = tuple(arrays[f"{kind}{k}_{j}"] for kind in KINDS)
            if (found[0].shape, found[1].shape) != (shape, shape[1:]):
                return f"layer {j} of network {k} is of {found[0].shape}, expected {shape}"
            if not all(np.isfinite(a).all() for a in found):
                return f"layer {j} of network {k} is not finite"
    return None
