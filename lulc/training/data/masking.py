"""Masked autoencoding: blocks of crops are masked, and the network learns to fill them in.

References
----------
Xie et al. 2022, "SimMIM", doi:10.1109/CVPR52688.2022.00943: random blocks, and the absolute difference of the
masked values alone (sections 3.2 to 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE
from lulc.core.statistics import Statistics
from lulc.models.backend import keras
from lulc.training.data.batches import BatchConfig, TileGenerator
from lulc.training.data.dataset import Tile


class MaskedCrops(TileGenerator):
    """Batches of crops with masked blocks, and the values that lie there.

    Parameters
    ----------
    tiles, config
        As a `TileGenerator` takes them.
    statistics
        Values are standardised with these, as the network does it.
    ratio
        Share of the blocks of each crop that are masked, 0..1; at least one is, and one is not.
    block
        Side of a block, pixels.
    """

    def __init__(
        self, tiles: Sequence[Tile], config: BatchConfig, *, statistics: Statistics, ratio: float, block: int
    ) -> None:
        super().__init__(tiles, config)
        self._mean = np.array(statistics.mean, np.float32)
        self._std = np.array(statistics.std, np.float32)
        self._ratio, self._block = ratio, block

    def batch(self, epoch: int, index: int) -> tuple[Any, Any]:
        """Cut batch number `index` of epoch number `epoch`, or the crops of it that this process cuts.

        Returns
        -------
        images : float32 (crop, y, x, band), physical units, NaN where invalid or masked
        targets : float32 (crop, y, x, band), standardised values where masked and valid, 255 elsewhere
        """
        images, labels = super().batch(epoch, index)
        entropy = [self._config.seed, epoch, index]
        masked = np.stack(
            [
                self._blocks(
                    images.shape[1],
                    np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number, 1))),
                )
                for number in self._config.cut
            ]
        )
        asked = masked & (labels != IGNORE)
        targets = np.full(images.shape, IGNORE, np.float32)
        targets[asked] = (images[asked] - self._mean) / self._std
        # A channel that a pixel lacks can't be filled in.
        targets[np.isnan(targets)] = IGNORE
        images[masked] = np.nan
        return images, targets

    def _blocks(self, side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw the masked pixels of a crop, bool (y, x)."""
        along = math.ceil(side / self._block)
        count = min(max(1, round(self._ratio * along**2)), along**2 - 1)
        chosen = np.zeros(along**2, bool)
        chosen[rng.permutation(along**2)[:count]] = True
        whole = np.kron(chosen.reshape(along, along), np.ones((self._block, self._block), bool))
        return whole[:side, :side]


def absolute_difference(targets: Any, filled: Any) -> Any:
    """Return the mean absolute difference of masked values, 0 where there are none.

    Parameters
    ----------
    targets
        (n, y, x, band), 255 where nothing is masked.
    filled
        (n, y, x, band), output of the network.
    """
    known, wrong = _compare(targets, filled)
    return keras.ops.sum(wrong) / keras.ops.maximum(keras.ops.sum(known), 1.0)


def _compare(targets: Any, filled: Any) -> tuple[Any, Any]:
    """Return which values are masked, 1 or 0, and the absolute error of each."""
    ops = keras.ops
    targets = ops.cast(targets, "float32")
    asked = ops.not_equal(targets, float(IGNORE))
    wrong = ops.where(asked, ops.abs(ops.cast(filled, "float32") - targets), 0.0)
    return ops.cast(asked, "float32"), wrong


class Filled(keras.metrics.Metric):
    """Share of the masked values' deviation from their mean that is filled in: 1 for all, 0 for the mean."""

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name=name)
        self._wrong = self.add_variable((), "zeros", name="wrong")
        self._deviation = self.add_variable((), "zeros", name="deviation")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add targets and the network's output for them, (n, y, x, band) each."""
        ops = keras.ops
        known, wrong = _compare(y_true, y_pred)
        self._wrong.assign_add(ops.sum(wrong))
        self._deviation.assign_add(ops.sum(known * ops.abs(ops.cast(y_true, "float32"))))

    def result(self) -> Any:
        """Return the share; 1 where nothing was masked."""
        return 1 - self._wrong / keras.ops.maximum(self._deviation, 1e-6)
