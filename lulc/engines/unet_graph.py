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
    cost
        Multiplications for each pixel of the image.
    """

    kernel: np.ndarray
    bias: np.ndarray
    transposed: bool
    cost: float


def fold(network: NetworkConfig, arrays: Arrays) -> dict[str, Convolution]:
    """Return the convolutions of a network in the order in which they are computed.

    References
    ----------
    Jacob et al. 2018, doi:10.1109/CVPR.2018.00286, section 3.2.
    """
    names = [n.removesuffix("/kernel") for n in network.variable_shapes() if n.endswith("/kernel")]
    return {name: _fold(name, network, arrays) for name in names}


def _fold(name: str, network: NetworkConfig, arrays: Arrays) -> Convolution:
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
    cost = kernel.size / 4 ** _halvings(name, network)
    return Convolution(np.ascontiguousarray(kernel), bias.astype(np.float32), transposed, cost)


def _halvings(name: str, network: NetworkConfig) -> int:
    """Return how often the resolution is halved where the convolution `name` reads its input."""
    depth = len(network.filters)
    if name == "final_conv":
        return 0
    if name.startswith("bottleneck"):
        return depth
    stage = int(re.findall(r"stage(\d+)_", name)[0])
    return stage if name.startswith("encoder") else depth - 1 - stage + name.endswith("_up")


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
        # Rounded before they are repeated and joined: 8 bits are moved then.
        if self._network.block == "transpose":
            joined = f"{stage}_conv2"
            x = self._round(self._convolve(x, f"{stage}_up"), joined)
        else:
            joined = f"{stage}_conv1"
            x = self._repeat(self._round(x, joined))
        x = self._convolve(self._join(x, self._round(skip, joined)), joined, rounded=True)
        return x if self._network.block == "transpose" else self._convolve(x, f"{stage}_conv2")

    def _round(self, x: Any, name: str) -> Any:
        """Append the rounding of the input of the convolution `name`; none unless a subclass rounds."""
        return x

    @abc.abstractmethod
    def _convolve(self, x: Any, name: str, *, activate: bool = True, rounded: bool = False) -> Any:
        """Append a convolution and ReLU; `rounded` says whether `x` comes from `_round`."""

    @abc.abstractmethod
    def _halve(self, x: Any) -> Any:
        """Halve the resolution: the largest of 2 x 2 pixels."""

    @abc.abstractmethod
    def _repeat(self, x: Any) -> Any:
        """Double the resolution, each pixel four times."""

    @abc.abstractmethod
    def _join(self, x: Any, skip: Any) -> Any:
        """Concatenate the channels."""
