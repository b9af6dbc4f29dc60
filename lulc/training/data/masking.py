"""What pretraining hides of crops, and how well a network fills it in.

References
----------
Xie et al. 2022, "SimMIM", doi:10.1109/CVPR52688.2022.00943: random blocks, and the absolute difference of the
hidden values alone (sections 3.2 to 3.4).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE
from lulc.core.statistics import Statistics
from lulc.models.backend import keras
from lulc.training.data.batches import TileGenerator


class HiddenCrops(TileGenerator):
    """Batches of crops with hidden blocks, and what lies there.

    Parameters
    ----------
    *arguments, **options
        As a `TileGenerator` takes them.
    statistics
        Values are standardised with these, as the network does it.
    hidden
        Share of the blocks of each crop that are hidden, 0..1; at least one is, and one is not.
    block
        Side of a block, pixels.
    """

    def __init__(
        self, *arguments: Any, statistics: Statistics, hidden: float, block: int, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._mean = np.array(statistics.mean, np.float32)
        self._std = np.array(statistics.std, np.float32)
        self._hidden, self._block = hidden, block

    def batch(self, epoch: int, index: int) -> tuple[Any, Any]:
        """The share of batch number `index` of epoch number `epoch`.

        Returns
        -------
        images : float32 (crop, y, x, band), physical units, NaN where invalid or hidden
        targets : float32 (crop, y, x, band), standardised values where hidden and valid, 255 elsewhere
        """
        images, labels = super().batch(epoch, index)
        entropy = [self._seed, epoch, index]
        hidden = np.stack(
            [
                self._blocks(
                    images.shape[1],
                    np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number, 1))),
                )
                for number in self._share
            ]
        )
        asked = hidden & (labels != IGNORE)
        targets = np.full(images.shape, IGNORE, np.float32)
        targets[asked] = (images[asked] - self._mean) / self._std
        images[hidden] = np.nan
        return images, targets

    def _blocks(self, side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Hidden pixels of a crop, bool (y, x)."""
        along = math.ceil(side / self._block)
        count = min(max(1, round(self._hidden * along**2)), along**2 - 1)
        chosen = np.zeros(along**2, bool)
        chosen[rng.permutation(along**2)[:count]] = True
        whole = np.kron(chosen.reshape(along, along), np.ones((self._block, self._block), bool))
        return whole[:side, :side]


def absolute_difference(targets: Any, filled: Any) -> Any:
    """Mean absolute difference of hidden values, 0 where there are none.

    Parameters
    ----------
    targets
        (n, y, x, band), 255 where nothing is asked.
    filled
        (n, y, x, band), what the network gives.
    """
    known, wrong = _compare(targets, filled)
    return keras.ops.sum(wrong) / keras.ops.maximum(keras.ops.sum(known), 1.0)


def _compare(targets: Any, filled: Any) -> tuple[Any, Any]:
    """Which values are asked, 1 or 0, and how far each is off."""
    ops = keras.ops
    targets = ops.cast(targets, "float32")
    asked = ops.not_equal(targets, float(IGNORE))
    wrong = ops.where(asked, ops.abs(ops.cast(filled, "float32") - targets), 0.0)
    return ops.cast(asked, "float32"), wrong


class Filled(keras.metrics.Metric):
    """Share of the hidden values' deviation from their mean that is filled in: 1 for all, 0 for the mean."""

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name=name)
        self._wrong = self.add_variable((), "zeros", name="wrong")
        self._deviation = self.add_variable((), "zeros", name="deviation")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add targets and what the network gives for them, (n, y, x, band) each."""
        ops = keras.ops
        known, wrong = _compare(y_true, y_pred)
        self._wrong.assign_add(ops.sum(wrong))
        self._deviation.assign_add(ops.sum(known * ops.abs(ops.cast(y_true, "float32"))))

    def result(self) -> Any:
        """The share; 1 where nothing was asked."""
        return 1 - self._wrong / keras.ops.maximum(self._deviation, 1e-6)
