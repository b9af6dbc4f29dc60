"""Random forest as plain arrays, which predicts without the library that grew it.

A forest is `NAME.npz` with its card `NAME.json` beside it. The file holds the five arrays of `Forest` under
their names, uncompressed and without pickle; the features that they are about are those of
`lulc.models.texture.texture_features`, with the statistics and radii of the card.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lulc.core.removal import withdraw
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.models.archive import pack_npz, read_archive
from lulc.models.card import ModelCard, card_path, write_card
from lulc.models.config import PixelConfig

AT_ONCE = 4096
"""Pixels that go through a tree together: their features stay near the processor."""


@dataclass(frozen=True)
class Forest:
    """Trees one after the other in arrays over all their nodes.

    Parameters
    ----------
    root
        int32 (tree,), the first node of each tree.
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
        whole = {
            "a tree begins at no node": bool((self.root >= 0).all() and (self.root < nodes).all()),
            # Whoever goes to a later node only comes to an end.
            "a node does not lead to later ones": bool(
                (inner > numbers[~leaf]).all() and (inner + 1 < nodes).all()
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
            some = x[start : start + AT_ONCE]
            for root in self.root:
                total[start : start + AT_ONCE] += self.probability[self._leaves(some, root)]
        return total / len(self.root)

    def _leaves(self, x: NDArray[np.float32], root: np.int32) -> NDArray[np.int32]:
        """Row in `probability` for each pixel."""
        node = np.full(len(x), root)
        moving = np.arange(len(x)) if self.feature[root] >= 0 else np.arange(0)
        while moving.size:
            at = node[moving]
            right = x[moving, self.feature[at]] > self.threshold[at]
            at = self.child[at] + right
            node[moving] = at
            moving = moving[self.feature[at] >= 0]
        return self.child[node]


def write_forest(forest: Forest, card: ModelCard, path: str | os.PathLike[str]) -> ModelCard:
    """Write a forest and its card, each whole or not at all, the card last; return the card as written."""
    content = pack_npz(vars(forest))
    withdraw(card_path(path))
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    write_card(card, path)
    return card


def read_forest(path: str | os.PathLike[str], card: ModelCard) -> Forest:
    """Read a forest after every check.

    Raises
    ------
    InputError
        If it is not the file that its card is about, or holds anything but the arrays of a forest that fits
        the card.
    """
    arrays = read_archive(path, sha256=card.sha256)
    types = {"root": "i4", "feature": "i4", "threshold": "f8", "child": "i4", "probability": "f8"}
    network = card.network
    if {name: a.dtype.str[1:] for name, a in arrays.items()} != types or not isinstance(network, PixelConfig):
        problem: str | None = f"its arrays are {', '.join(map(str, arrays))}, expected {', '.join(types)}"
    else:
        forest = Forest(**arrays)
        problem = forest.problem(network.features, network.classes)
    if problem:
        raise InputError(
            f"cannot read the forest '{Path(path)}', since {problem}",
            "Train again, or take it from its source.",
        )
    return forest
