"""Masked autoencoding: the network learns to fill in masked blocks of crops.

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
    """Batches of crops with masked blocks, and the masked values as targets.

    Parameters
    ----------
    tiles, config
        As for `TileGenerator`.
    statistics
        Statistics by which the network standardises, applied to the targets.
    ratio
        Fraction of the blocks of a crop that are masked, 0..1; at least one is masked and one is not.
    block
        Side of a block in pixels.
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
        seeds = (np.random.SeedSequence(entropy, spawn_key=(number, 1)) for number in self._config.cut)
        masked = np.stack([self._blocks(images.shape[1], np.random.default_rng(seed)) for seed in seeds])
        known = masked & (labels != IGNORE)
        targets = np.full(images.shape, IGNORE, np.float32)
        targets[known] = (images[known] - self._mean) / self._std
        # Missing channels of a pixel are no targets.
        targets[np.isnan(targets)] = IGNORE
        images[masked] = np.nan
        return images, targets

    def _blocks(self, side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw the masked pixels of a crop, bool (y, x)."""
        blocks = math.ceil(side / self._block)
        count = min(max(1, round(self._ratio * blocks**2)), blocks**2 - 1)
        chosen = np.zeros(blocks**2, bool)
        chosen[rng.permutation(blocks**2)[:count]] = True
        pixels = np.kron(chosen.reshape(blocks, blocks), np.ones((self._block, self._block), bool))
        return pixels[:side, :side]


def absolute_difference(targets: Any, filled: Any) -> Any:
    """Return the mean absolute error of masked values, 0 without any; `targets` are 255 elsewhere."""
    masked, error = _compare(targets, filled)
    return keras.ops.sum(error) / keras.ops.maximum(keras.ops.sum(masked), 1.0)


def _compare(targets: Any, filled: Any) -> tuple[Any, Any]:
    """Return 1 for masked values and 0 for others, and the absolute error of each."""
    ops = keras.ops
    targets = ops.cast(targets, "float32")
    masked = ops.not_equal(targets, float(IGNORE))
    error = ops.where(masked, ops.abs(ops.cast(filled, "float32") - targets), 0.0)
    return ops.cast(masked, "float32"), error


class Filled(keras.metrics.Metric):
    """1 minus the absolute error of masked values over their deviation: 1 if exact, 0 for the mean."""

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name=name)
        self._error = self.add_variable((), "zeros", name="wrong")
        self._deviation = self.add_variable((), "zeros", name="deviation")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add targets and the network's output for them, (n, y, x, band) each."""
        ops = keras.ops
        masked, error = _compare(y_true, y_pred)
        self._error.assign_add(ops.sum(error))
        self._deviation.assign_add(ops.sum(masked * ops.abs(ops.cast(y_true, "float32"))))

    def result(self) -> Any:
        """Return the metric; 1 if nothing was masked."""
        return 1 - self._error / keras.ops.maximum(self._deviation, 1e-6)
