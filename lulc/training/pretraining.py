"""Training loop of masked autoencoding, validated by the values that the network fills in."""

from __future__ import annotations

import math

import numpy as np

from lulc.core.schema import IGNORE
from lulc.training.data.batches import cut_ahead
from lulc.training.loop import Loop, Validation


class PretrainingLoop(Loop):
    """Training of a network to fill in the blocks that `lulc.training.data.masking.MaskedCrops` masks.

    Its history has other metrics: as accuracy, 1 minus the absolute error of the masked values over their
    absolute deviation from the mean; as macro-F1, the mean over channels of the same.
    """

    def _validate(self) -> Validation:
        """Return the mean absolute error and both metrics."""
        channels = len(self._setup.legend)
        error, deviation = np.zeros(channels), np.zeros(channels)
        count = 0
        for images, targets in cut_ahead(self._setup.validation, 0, 0, self._config.workers):
            filled, targets = self._devices.predict(self._model, images), self._devices.gather(targets)
            masked = targets != IGNORE
            count += int(masked.sum())
            error += np.where(masked, np.abs(filled - targets), 0).sum((0, 1, 2), dtype=np.float64)
            deviation += np.where(masked, np.abs(targets), 0).sum((0, 1, 2), dtype=np.float64)
        loss = float(error.sum()) / max(count, 1)
        if not math.isfinite(loss):
            raise self._not_finite(f"the validation loss is {loss}")
        by_channel = 1 - error / np.maximum(deviation, 1e-6)
        return Validation(loss, float(1 - error.sum() / max(deviation.sum(), 1e-6)), float(by_channel.mean()))
