"""Training loop of masked autoencoding, validated by the values that the network fills in."""

from __future__ import annotations

import math

import numpy as np

from lulc.core.schema import IGNORE
from lulc.training.data.batches import cut_ahead
from lulc.training.loop import Loop, Validation


class PretrainingLoop(Loop):
    """Trains a network to fill in the blocks that `lulc.training.data.masking.MaskedCrops` masks.

    In its history accuracy is the share of the masked values' deviation from their mean that is filled in,
    over all values, and macro-F1 the mean of the same over the channels.
    """

    def _validate(self) -> Validation:
        """Return mean absolute error, share filled in, and mean of the channels' shares."""
        channels = len(self._setup.legend)
        wrong, deviation = np.zeros(channels), np.zeros(channels)
        count = 0
        for images, targets in cut_ahead(self._setup.validation, 0, 0, self._config.workers):
            filled, targets = self._devices.predict(self._model, images), self._devices.gather(targets)
            asked = targets != IGNORE
            count += int(asked.sum())
            wrong += np.where(asked, np.abs(filled - targets), 0).sum((0, 1, 2), dtype=np.float64)
            deviation += np.where(asked, np.abs(targets), 0).sum((0, 1, 2), dtype=np.float64)
        loss = float(wrong.sum()) / max(count, 1)
        if not math.isfinite(loss):
            raise self._not_finite(f"the validation loss is {loss}")
        shares = 1 - wrong / np.maximum(deviation, 1e-6)
        return Validation(loss, float(1 - wrong.sum() / max(deviation.sum(), 1e-6)), float(shares.mean()))
