"""Walk over the layers of a network for builders of graphs: folded convolutions and their order.

Batch norms are folded into the convolutions before them.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lulc.models.config import NetworkConfig

EPSILON = 1e-3
"""Epsilon of the batch norms, Keras's default and the original's."""

Arrays = Mapping[str, np.ndarray]
"""float32 arrays by ``layer/variable``, as `lulc.models.weights.read_arrays` gives them."""


@dataclass(frozen=True)
class Convolution:
    """A convolution into which the batch norm after it is folded.

    Parameters
    ----------
    kernel
        float32 (out, in, y, x); (in, out, y, x) where transposed.
    bias
        float32 (out,).
    transposed
        Whether it doubles the resolution (4 x 4, stride 2).
    """

    kernel: np.ndarray
    bias: np.ndarray
    transposed: bool

    @property
    def padding(self) -> list[int]:
        """Pixels beyond each edge of the input that it reads as 0, along y and x."""
        return [1, 1] if self.transposed else [self.kernel.shape[-1] // 2] * 2


def fold(network: NetworkConfig, arrays: Arrays) -> dict[str, Convolution]:
    """Return the convolutions of a network in the order in which they are computed.

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
    """Builds a U-Net layer by layer in the operations of a runtime, which subclasses append.

    Parameters
    ----------
    network, arrays
        Shape and weights of the network.
    """

    def __init__(self, network: NetworkConfig, arrays: Arrays) -> None:
        self._network = network
        self._arrays = arrays
        self._convolutions = fold(network, arrays)

    def _unet(self, x: Any) -> Any:
        """Append all layers from the standardised input to the logits; axes (n, channel, y, x)."""
        network = self._network
        skips = []
        for s in range(len(network.filters)):
            x = self._convolve(self._convolve(x, f"encoder_stage{s}_conv1"), f"encoder_stage{s}_conv2")
            skips.append(x)
            x = self._halve(x)
        for i in range(1, network.bottleneck + 1):
            x = self._convolve(x, f"bottleneck_conv{i}")
        for s in range(len(network.decoder_filters)):
            x = self._decode(x, skips.pop(), f"decoder_stage{s}")
        return self._convolve(x, "final_conv", activate=False)

    def _decode(self, x: Any, skip: Any, stage: str) -> Any:
        """Append a stage of the decoder; `x` comes from below, `skip` from the encoder."""
        block = self._network.block
        if block == "sum":
            x = self._repeat(self._convolve(x, f"{stage}_conv1"))
            return self._convolve(self._join(x, skip), f"{stage}_conv2")
        if block == "transpose":
            x = self._convolve(x, f"{stage}_up")
            return self._convolve(self._join(x, skip), f"{stage}_conv2")
        x = self._convolve(self._join(self._repeat(x), skip), f"{stage}_conv1")
        return self._convolve(x, f"{stage}_conv2")

    @abc.abstractmethod
    def _convolve(self, x: Any, name: str, *, activate: bool = True) -> Any:
        """Append a convolution and ReLU."""

    @abc.abstractmethod
    def _halve(self, x: Any) -> Any:
        """Halve the resolution: the largest of 2 x 2 pixels."""

    @abc.abstractmethod
    def _repeat(self, x: Any) -> Any:
        """Double the resolution, each pixel four times."""

    @abc.abstractmethod
    def _join(self, x: Any, skip: Any) -> Any:
        """Add two maps in a network with sums; concatenate their channels in others."""
