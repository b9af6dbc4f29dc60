"""The network as an OpenVINO model, made from its arrays alone: no other framework is needed to run it.

Standardisation and batch norms are part of the arithmetic: the former is two operations on the input, the
latter are folded into the convolutions before them. Any convolution can be computed in 8 bits.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lulc.core.schema import InputError
from lulc.models.config import NetworkConfig

EPSILON = 1e-3
"""Epsilon of the batch norms, Keras's default and the original's."""

Arrays = Mapping[str, np.ndarray]
"""float32 arrays by ``layer/variable``, as `lulc.models.weights.read_arrays` gives them."""

Ranges = Mapping[str, float]
"""Largest magnitude of the input of each convolution that is computed in 8 bits."""


def load_openvino() -> Any:
    """Import and return the package ``openvino``, its telemetry off.

    Raises
    ------
    InputError
        If it is not installed.
    """
    # Importing OpenVINO sends a message to its makers, unless the package that sends it is not there.
    telemetry = "openvino_telemetry"
    absent = telemetry not in sys.modules
    if absent:
        sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise InputError(
            f"cannot run the network with OpenVINO, since the Python package '{error.name}' is not installed",
            "In the folder of this project type: pip install '.[classify]'. Or add --engine keras.",
        ) from error
    finally:
        if absent:
            del sys.modules[telemetry]
    return openvino


def compile_graph(model: Any, precision: str = "f32") -> Any:
    """Compile a model for this processor, as a call from arrays to arrays."""
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    return load_openvino().Core().compile_model(model, "CPU", options)


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


def build_graph(
    network: NetworkConfig,
    arrays: Arrays,
    shape: tuple[int, int, int],
    eight_bit: Ranges | None = None,
    *,
    probe: bool = False,
) -> Any:
    """Build the network for windows of one shape.

    Parameters
    ----------
    network, arrays
        Shape and weights of the network.
    shape
        (n, y, x) of every call, y and x multiples of the stride.
    eight_bit
        Convolutions to compute in 8 bits; the others are computed as the device is asked to.
    probe
        Whether the model also gives the largest magnitude of the input of each convolution, in order.

    Returns
    -------
    openvino.Model
        float32 (n, y, x, band) in physical units, NaN = no data, to float32 (n, class, y, x).

    Raises
    ------
    InputError
        If OpenVINO is not installed.
    """
    openvino = load_openvino()
    return _Builder(network, arrays, eight_bit or {}).model(openvino, shape, probe=probe)


class _Builder:
    """Builds the graph layer by layer; channels come before rows, as OpenVINO orders axes."""

    def __init__(self, network: NetworkConfig, arrays: Arrays, eight_bit: Ranges) -> None:
        import openvino.opset13 as operations

        self._op: Any = operations
        self._network = network
        self._arrays = arrays
        self._convolutions = fold(network, arrays)
        self._eight_bit = eight_bit
        self._inputs: list[Any] = []

    def model(self, openvino: Any, shape: tuple[int, int, int], *, probe: bool) -> Any:
        op = self._op
        given = op.parameter([*shape, self._network.channels], np.float32, name="x")
        x = op.transpose(self._standardise(given), op.constant(np.array([0, 3, 1, 2])))
        logits = self._unet(x)
        # Left in planes, as a map stores them.
        result = op.softmax(logits, 1) if self._network.activation == "softmax" else op.sigmoid(logits)
        axes = op.constant(np.array([0, 1, 2, 3]))
        largest = [op.reduce_max(op.abs(node), axes) for node in self._inputs] if probe else []
        return openvino.Model([node.output(0) for node in (result, *largest)], [given], "unet")

    def _standardise(self, x: Any) -> Any:
        op = self._op
        mean, std = (self._arrays[f"standardization/{v}"] for v in ("mean", "std"))
        known = op.select(op.is_nan(x), self._constant(mean), x)
        return op.divide(op.subtract(known, self._constant(mean)), self._constant(std))

    def _unet(self, x: Any) -> Any:
        op, network = self._op, self._network
        skips = []
        for s in range(len(network.filters)):
            x = self._convolve(self._convolve(x, f"encoder_stage{s}_conv1"), f"encoder_stage{s}_conv2")
            skips.append(x)
            # Its second output would be the positions.
            x = op.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        for i in range(1, network.bottleneck + 1):
            x = self._convolve(x, f"bottleneck_conv{i}")
        for s in range(len(network.decoder_filters)):
            x = self._decode(x, skips.pop(), f"decoder_stage{s}")
        return self._convolve(x, "final_conv", activate=False)

    def _decode(self, x: Any, skip: Any, stage: str) -> Any:
        """Append a stage of the decoder; `x` comes from below, `skip` from the encoder."""
        op = self._op
        # Rounded before they are repeated and joined: 8 bits are moved then.
        if self._network.block == "transpose":
            joined = f"{stage}_conv2"
            x = self._round(self._convolve(x, f"{stage}_up"), joined)
        else:
            joined = f"{stage}_conv1"
            x = self._repeat(self._round(x, joined))
        x = op.concat([x, self._round(skip, joined)], 1)
        x = self._convolve(x, joined, rounded=True)
        return x if self._network.block == "transpose" else self._convolve(x, f"{stage}_conv2")

    def _convolve(self, x: Any, name: str, *, activate: bool = True, rounded: bool = False) -> Any:
        """Append a convolution and ReLU; `rounded` says whether `x` comes from `_round`."""
        op, convolution = self._op, self._convolutions[name]
        self._inputs.append(x)
        x = x if rounded else self._round(x, name)
        kernel = self._constant(convolution.kernel)
        if name in self._eight_bit:
            axes = (0, 2, 3) if convolution.transposed else (1, 2, 3)
            largest = np.abs(convolution.kernel).max(axes, keepdims=True)
            kernel = self._quantise(kernel, largest, low=-1.0, levels=255)
        if convolution.transposed:
            x = op.convolution_backprop_data(
                x, kernel, strides=[2, 2], pads_begin=[1, 1], pads_end=[1, 1], dilations=[1, 1]
            )
        else:
            x = op.convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
        x = op.add(x, self._constant(convolution.bias[:, None, None]))
        return op.relu(x) if activate else x

    def _round(self, x: Any, name: str) -> Any:
        """Append the rounding of `x` to 8 bits where the convolution `name` is computed in them."""
        if name not in self._eight_bit:
            return x
        # Only the network's input has signs, all others come from a ReLU. Signed inputs need all 256 values:
        # with the symmetric 255 OpenVINO 2026.4 runs the convolution with twice the error.
        low = -128 / 127 if name == next(iter(self._convolutions)) else 0.0
        return self._quantise(x, np.asarray(self._eight_bit[name]), low=low, levels=256)

    def _quantise(self, x: Any, largest: np.ndarray, *, low: float, levels: int) -> Any:
        """Round to `levels` values evenly spaced between low * largest and largest."""
        # A channel that is 0 throughout has no steps otherwise.
        largest = np.maximum(largest, 1e-20)
        bounds = self._constant(low * largest), self._constant(largest)
        return self._op.fake_quantize(x, *bounds, *bounds, levels)

    def _repeat(self, x: Any) -> Any:
        """Double the resolution, each pixel four times."""
        return self._op.interpolate(
            x,
            self._constant([2, 2]),
            "nearest",
            "scales",
            axes=self._op.constant(np.array([2, 3])),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _constant(self, value: Sequence[float] | np.ndarray | float) -> Any:
        return self._op.constant(np.asarray(value, np.float32))
