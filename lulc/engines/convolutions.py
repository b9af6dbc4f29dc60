"""The convolutions of a network as they are computed: batch norms folded in, and any of them in two steps.

What many output channels give often lies near a space of few dimensions. The first step then computes the
coordinates in that space (a convolution with fewer outputs), the second all channels from these (1 x 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lulc.engines.cropping import level_of
from lulc.models.config import NetworkConfig

EPSILON = 1e-3
"""Of the batch norms, Keras's default and the original's."""

SECOND_STEP = "_expand"
"""End of the name of a second step."""


@dataclass(frozen=True)
class Convolution:
    """A convolution with the batch norm after it folded in.

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


@dataclass(frozen=True, eq=False)
class Factor:
    """The space near which the results of a convolution lie, before its ReLU.

    Parameters
    ----------
    basis
        float32 (channel, rank), its columns orthonormal.
    mean
        float32 (channel,), a point of the space.
    """

    basis: np.ndarray
    mean: np.ndarray

    @property
    def rank(self) -> int:
        """Dimensions of the space."""
        return int(self.basis.shape[1])


Factors = Mapping[str, Factor]
"""By the names of the convolutions that are computed in two steps."""


def fold(
    network: NetworkConfig, arrays: Mapping[str, np.ndarray], factors: Factors | None = None
) -> dict[str, Convolution]:
    """The convolutions of a network in the order in which they are computed.

    Parameters
    ----------
    network
        Its shape.
    arrays
        float32, by ``layer/variable``, as `lulc.models.weights.read_arrays` gives them.
    factors
        Those that are computed in two steps; the second has the name with `SECOND_STEP` behind it.

    References
    ----------
    Folding: Jacob et al. 2018, doi:10.1109/CVPR.2018.00286, section 3.2. Two steps: Zhang et al. 2016,
    doi:10.1109/TPAMI.2015.2502579, section 3.1.
    """
    names = [n.removesuffix("/kernel") for n in network.variable_shapes() if n.endswith("/kernel")]
    folded: dict[str, Convolution] = {}
    for name in names:
        whole = _fold(name, network, arrays)
        if factors and name in factors:
            folded[name], folded[name + SECOND_STEP] = in_two_steps(whole, factors[name])
        else:
            folded[name] = whole
    return folded


def _fold(name: str, network: NetworkConfig, arrays: Mapping[str, np.ndarray]) -> Convolution:
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
    cost = kernel.size / 4 ** level_of(name, network)
    return Convolution(np.ascontiguousarray(kernel), bias.astype(np.float32), transposed, cost)


def in_two_steps(whole: Convolution, factor: Factor) -> tuple[Convolution, Convolution]:
    """A convolution, its results projected on a space: to coordinates there, and from these to channels."""
    basis, mean = factor.basis, factor.mean
    channels = 1 if whole.transposed else 0
    kernel = np.moveaxis(np.tensordot(whole.kernel, basis, (channels, 0)), -1, channels)
    share = factor.rank / len(whole.bias)
    first = Convolution(
        np.ascontiguousarray(kernel, np.float32),
        (basis.T @ (whole.bias - mean)).astype(np.float32),
        whole.transposed,
        whole.cost * share,
    )
    second = Convolution(
        np.ascontiguousarray(factor.basis[:, :, None, None]), mean, False, cost_of_second(whole) * share
    )
    return first, second


def cost_of_second(whole: Convolution) -> float:
    """Multiplications of the second step for each pixel of the image, were its space of all dimensions."""
    # `cost` counts (in, y, x) for each channel; with stride 2 there are four results for each pixel read.
    inputs, *sides = whole.kernel.shape if whole.transposed else whole.kernel.shape[1:]
    per_result = inputs * np.prod(sides[-2:]) / (4 if whole.transposed else 1)
    return float(whole.cost * len(whole.bias) / per_result)
