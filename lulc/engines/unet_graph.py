"""Layers of a U-Net for builders of graphs, with batch norms folded into the convolutions before them."""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lulc.models.config import NetworkConfig

EPSILON = 1e-3
"""Epsilon of batch norm, the default of Keras."""

Arrays = Mapping[str, np.ndarray]
"""float32 arrays by ``layer/variable``, as `lulc.models.weights.read_arrays` gives them."""


@dataclass(frozen=True)
class Convolution:
    """Convolution with the batch norm after it folded in.

    Parameters
    ----------
    kernel
        float32 (out, in, y, x); (in, out, y, x) if transposed.
    bias
        float32 (out,).
    transposed
        True if it doubles the resolution (4 x 4, stride 2).
    """

    kernel: np.ndarray
    bias: np.ndarray
    transposed: bool

    @property
    def padding(self) -> list[int]:
        """Zero padding at each edge of the input, along y and x."""
        return [1, 1] if self.transposed else [self.kernel.shape[-1] // 2] * 2


def fold(network: NetworkConfig, arrays: Arrays) -> dict[str, Convolution]:
    """Return the convolutions of a network in the order of computation.

    References
    ----------
    Jacob et al. 2018, doi:10.1109/CVPR.2018.00286, section 3.2.
    """
    return {name: _fold(name, arrays) for name in network.multiplications}


def _fold(name: str, arrays: Arrays) -> Convolution:
    transposed = name.endswith("_up")
    kernel = arrays[f"{name}/kernel"].transpose(3, 2, 0, 1)
    norm = re.sub("_up$", "_bn1", name).replace("_conv", "_bn")
    if f"{norm}/gamma" in arrays:
        gamma, beta, mean, variance = (
            arrays[f"{norm}/{v}"].astype(np.float64)
            for v in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        bias = beta - mean * scale
        axes = (slice(None), None, None) if transposed else (slice(None), None, None, None)
        kernel = kernel * scale.astype(np.float32)[axes]
    else:
        bias = arrays[f"{name}/bias"]
    return Convolution(np.ascontiguousarray(kernel), bias.astype(np.float32), transposed)


class GraphBuilder(abc.ABC):
    """Builder of a U-Net layer by layer; subclasses append the operations of a runtime."""

    def __init__(self, network: NetworkConfig, arrays: Arrays) -> None:
        self._network = network
        self._arrays = arrays
        self._convolutions = fold(network, arrays)

    def _unet(self, x: Any) -> Any:
        """Append all layers from the standardised input to the logits; axes (n, channel, y, x)."""
        network, skips = self._network, []
        for s in range(len(network.filters)):
            x = self._convolve(self._convolve(x, f"encoder_stage{s}_conv1"), f"encoder_stage{s}_conv2")
            skips.append(x)
            x = self._halve(x)
        for i in range(1, network.bottleneck + 1):
            x = self._convolve(x, f"bottleneck_conv{i}")
        for s in range(len(network.decoder_filters)):
            stage, skip = f"decoder_stage{s}", skips.pop()
            if network.block == "transpose":
                x = self._join(self._convolve(x, f"{stage}_up"), skip)
            elif network.block == "sum":
                x = self._join(self._repeat(self._convolve(x, f"{stage}_conv1")), skip)
            else:
                x = self._convolve(self._join(self._repeat(x), skip), f"{stage}_conv1")
            x = self._convolve(x, f"{stage}_conv2")
        return self._convolve(x, "final_conv", activate=False)

    @abc.abstractmethod
    def _convolve(self, x: Any, name: str, *, activate: bool = True) -> Any:
        """Append a convolution and ReLU."""

    @abc.abstractmethod
    def _halve(self, x: Any) -> Any:
        """Append 2 x 2 max pooling."""

    @abc.abstractmethod
    def _repeat(self, x: Any) -> Any:
        """Append nearest-neighbour upsampling by 2."""

    @abc.abstractmethod
    def _join(self, x: Any, skip: Any) -> Any:
        """Append the sum of two feature maps for block sum, else their concatenation."""
