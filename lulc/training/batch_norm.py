"""Statistics of batch norm, estimated once more for averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lulc.models.backend import keras
from lulc.training.data.batches import TileGenerator, cut_ahead
from lulc.training.devices import ONE, Devices

__all__ = ["Normalization"]


class Normalization:
    """Estimate of the statistics of batch norm from unaugmented crops of the training stacks.

    In training, batch norm keeps a moving average over the last hundred batches. This is noisy for batches
    of few crops, leaves out the variance between batches, and belongs to other weights than the averaged
    ones. Averaged weights therefore get statistics from a pass over crops (Izmailov et al. 2018, UAI,
    section 3.2): mean and variance of all pixels of all batches (Wu and Johnson 2021, arXiv:2105.07576,
    section 3, "precise" statistics).

    Parameters
    ----------
    build
        Builds a network of the same architecture; called once. The pass runs on this copy, which lies on
        one device.
    crops
        Batches of the pass, those of epoch 0; each validation costs one pass.
    """

    def __init__(
        self, build: Callable[[], keras.Model], crops: Sequence[TileGenerator], workers: int
    ) -> None:
        self._build = build
        self._crops = crops
        self._workers = workers
        self._twin: keras.Model | None = None

    @property
    def pixels(self) -> float:
        """Pixels of a pass over the crops."""
        return sum(len(crops) * crops.pixels_per_batch for crops in self._crops)

    @contextlib.contextmanager
    def settled(self, model: keras.Model, devices: Devices = ONE) -> Iterator[None]:
        """Give a network the estimated statistics inside; those of training come back afterwards.

        The first process computes them alone, so that they don't depend on the number of processes.
        """
        layers = _batch_norms(model)
        if not layers:
            yield
            return
        gathered = statistics = _statistics_of(layers)
        if devices.first:
            with devices.alone():
                statistics = self._estimate(model)
        _assign(layers, devices.spread_arrays(statistics))
        try:
            yield
        finally:
            _assign(layers, gathered)

    def _estimate(self, model: keras.Model) -> dict[str, np.ndarray]:
        twin = self._twin = self._twin or self._prepared()
        for variable, value in zip(twin.weights, model.weights, strict=True):
            variable.assign(keras.ops.convert_to_numpy(value))
        layers = _batch_norms(twin)
        sums = {name: np.zeros(array.shape) for name, array in _statistics_of(layers).items()}
        pixels = 0
        batches = (batch for crops in self._crops for batch in cut_ahead(crops, 0, 0, self._workers))
        for images, _ in batches:
            twin(images, training=True)
            weight = int(np.prod(images.shape[:3]))
            pixels += weight
            for layer in layers:
                mean, variance = (keras.ops.convert_to_numpy(v) for v in _moving(layer))
                mean = mean.astype(np.float64)
                sums[f"{layer.name}/mean"] += weight * mean
                sums[f"{layer.name}/variance"] += weight * (variance + mean**2)
        statistics = {}
        for layer in layers:
            mean = sums[f"{layer.name}/mean"] / pixels
            statistics[f"{layer.name}/mean"] = mean.astype(np.float32)
            variance = sums[f"{layer.name}/variance"] / pixels - mean**2
            statistics[f"{layer.name}/variance"] = np.maximum(variance, 0).astype(np.float32)
        return statistics

    def _prepared(self) -> keras.Model:
        twin = self._build()
        for layer in _batch_norms(twin):
            layer.momentum = 0.0  # so that the moving statistics are those of the last batch
        for variable in list(twin.trainable_variables):
            variable.trainable = False  # so that backends keep nothing for gradients
        return twin


def _batch_norms(model: keras.Model) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def _moving(layer: Any) -> tuple[Any, Any]:
    return layer.moving_mean, layer.moving_variance


def _statistics_of(layers: list[Any]) -> dict[str, np.ndarray]:
    return {
        f"{layer.name}/{name}": np.array(keras.ops.convert_to_numpy(value))
        for layer in layers for name, value in zip(("mean", "variance"), _moving(layer), strict=True)
    }  # fmt: skip


def _assign(layers: list[Any], statistics: Mapping[str, np.ndarray]) -> None:
    for layer in layers:
        layer.moving_mean.assign(statistics[f"{layer.name}/mean"])
        layer.moving_variance.assign(statistics[f"{layer.name}/variance"])
