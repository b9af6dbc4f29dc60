"""Optimizer, learning-rate schedule, and exponential moving average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lulc.config import TrainConfig
from lulc.models.backend import keras
from lulc.training.devices import ONE, Devices

REMEMBERED = 0.05
"""Largest weight of the first batch's weights in a usable average."""

FINAL = 0.01
"""Last learning rate of a cosine schedule, as a fraction of the highest."""


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate with a linear rise to `peak` over `warmup` batches, then constant or half a cosine.

    With `cosine` it is `FINAL` of the peak after `total` batches (Loshchilov and Hutter 2017, ICLR, eq. 5,
    without restarts).
    """

    def __init__(self, peak: float, warmup: int, total: int, *, cosine: bool) -> None:
        self._peak, self._warmup, self._total, self._cosine = peak, warmup, total, cosine

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of batch number `step`, from 0."""
        ops = keras.ops
        step = ops.cast(step, "float32")
        rate = ops.minimum((step + 1) / max(self._warmup, 1), 1.0)
        if self._cosine:
            done = ops.clip((step - self._warmup) / max(self._total - self._warmup, 1), 0.0, 1.0)
            rate = rate * (FINAL + (1 - FINAL) * 0.5 * (1 + ops.cos(math.pi * done)))
        return self._peak * rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"peak": self._peak, "warmup": self._warmup, "total": self._total, "cosine": self._cosine}


def build_optimizer(config: TrainConfig, devices: Devices = ONE) -> keras.optimizers.Optimizer:
    """Return the optimizer of a resolved config; its variables hold all of its state with the averages."""
    total = config.epochs * config.steps
    rate: Any = config.learning_rate
    if config.schedule != "constant" or config.warmup:
        warmup = min(config.warmup, total // 10)
        rate = Schedule(config.learning_rate, warmup, total, cosine=config.schedule == "cosine")
    kinds = {"nadam": keras.optimizers.Nadam, "adamw": keras.optimizers.AdamW}
    # Keras' AdamW needs a decay, 0 for none; Nadam without decay is that of the original system.
    decay = config.weight_decay or (0.0 if config.optimizer == "adamw" else None)
    optimizer = devices.optimizer(kinds[config.optimizer])(
        learning_rate=rate,
        weight_decay=decay,
        global_clipnorm=config.clip_norm or None,
        use_ema=config.average > 0,
        # A moving average with momentum m remembers 1 / (1 - m) batches.
        ema_momentum=1 - 1 / max(config.average * total, 1.0),
    )
    # Decay of biases and of the parameters of batch norm has no benefit.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Give a compiled model its averaged weights inside, if its optimizer averages.

    Early in a run, while the weights of the first batch make up more than `REMEMBERED` of the average, it is
    worse than the weights themselves and is not used.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    batches = int(keras.ops.convert_to_numpy(optimizer.iterations))
    if not optimizer.use_ema or optimizer.ema_momentum ** (batches - 1) > REMEMBERED:
        yield
        return
    trained = [np.array(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
    optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, trained, strict=True):
            variable.assign(value)
