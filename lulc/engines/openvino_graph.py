"""U-Net as an OpenVINO model, built from its arrays without a deep-learning framework.

Batch norms are folded into the convolutions before them. Convolutions can be quantized to 8 bits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lulc.core.schema import InputError
from lulc.engines.unet_graph import Arrays, GraphBuilder
from lulc.models.config import NetworkConfig

Ranges = Mapping[str, float]
"""Largest magnitude of the input of each convolution in 8 bits."""


def load_openvino() -> Any:
    """Import ``openvino`` without telemetry; raises InputError if it is not installed."""
    # Importing OpenVINO sends a message to its makers, unless the package for that is missing.
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


def openvino_version() -> str:
    """Return the version of OpenVINO without its build."""
    return str(load_openvino().__version__).split("-")[0]


def compile_graph(model: Any, precision: str = "f32") -> Any:
    """Compile a model for this processor, as a call from arrays to arrays."""
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    return load_openvino().Core().compile_model(model, "CPU", options)


def build_graph(
    network: NetworkConfig, arrays: Arrays, shape: tuple[int, int, int], eight_bit: Ranges | None = None, *,
    probe: bool = False,
) -> Any:  # fmt: skip
    """Return an OpenVINO model of the network for windows of one shape.

    It maps float32 (n, y, x, band) in physical units, NaN = no data, to float32 (n, class, y, x). Raises
    InputError if OpenVINO is not installed.

    Parameters
    ----------
    shape
        (n, y, x) of every call, y and x multiples of the stride.
    eight_bit
        Convolutions to compute in 8 bits, never the first.
    probe
        True to return the largest magnitude of the input of each convolution, too, in order.
    """
    openvino = load_openvino()
    return _Builder(network, arrays, eight_bit or {}).model(openvino, shape, probe=probe)


class _Builder(GraphBuilder):
    """Builder in operations of OpenVINO; axes are (n, channel, y, x)."""

    def __init__(self, network: NetworkConfig, arrays: Arrays, eight_bit: Ranges) -> None:
        import openvino.opset13 as operations

        super().__init__(network, arrays)
        self._op: Any = operations
        self._eight_bit = eight_bit
        self._inputs: list[Any] = []

    def model(self, openvino: Any, shape: tuple[int, int, int], *, probe: bool) -> Any:
        op = self._op
        image = op.parameter([*shape, self._network.channels], np.float32, name="x")
        x = op.transpose(self._standardise(image), op.constant(np.array([0, 3, 1, 2])))
        logits = self._unet(x)
        # In planes, as a map stores them.
        result = op.softmax(logits, 1) if self._network.activation == "softmax" else op.sigmoid(logits)
        axes = op.constant(np.array([0, 1, 2, 3]))
        largest = [op.reduce_max(op.abs(node), axes) for node in self._inputs] if probe else []
        return openvino.Model([node.output(0) for node in (result, *largest)], [image], "unet")

    def _standardise(self, x: Any) -> Any:
        op = self._op
        mean, std = (self._arrays[f"standardization/{v}"] for v in ("mean", "std"))
        known = op.select(op.is_nan(x), self._constant(mean), x)
        return op.divide(op.subtract(known, self._constant(mean)), self._constant(std))

    def _convolve(self, x: Any, name: str, *, activate: bool = True) -> Any:
        op, convolution = self._op, self._convolutions[name]
        self._inputs.append(x)
        kernel = self._constant(convolution.kernel)
        if name in self._eight_bit:
            # No quantized input is negative, since a ReLU comes before it.
            x = self._quantise(x, np.asarray(self._eight_bit[name]), low=0.0, levels=256)
            axes = (0, 2, 3) if convolution.transposed else (1, 2, 3)
            largest = np.abs(convolution.kernel).max(axes, keepdims=True)
            kernel = self._quantise(kernel, largest, low=-1.0, levels=255)
        pads = convolution.padding
        if convolution.transposed:
            x = op.convolution_backprop_data(
                x, kernel, strides=[2, 2], pads_begin=pads, pads_end=pads, dilations=[1, 1]
            )
        else:
            x = op.convolution(x, kernel, [1, 1], pads, pads, [1, 1])
        x = op.add(x, self._constant(convolution.bias[:, None, None]))
        return op.relu(x) if activate else x

    def _quantise(self, x: Any, largest: np.ndarray, *, low: float, levels: int) -> Any:
        """Round to `levels` values evenly spaced between low * largest and largest."""
        # Avoids a range of 0.
        largest = np.maximum(largest, 1e-20)
        bounds = self._constant(low * largest), self._constant(largest)
        return self._op.fake_quantize(x, *bounds, *bounds, levels)

    def _halve(self, x: Any) -> Any:
        # The second output would be the positions of the maxima.
        return self._op.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)

    def _join(self, x: Any, skip: Any) -> Any:
        return self._op.add(x, skip) if self._network.block == "sum" else self._op.concat([x, skip], 1)

    def _repeat(self, x: Any) -> Any:
        axes = self._op.constant(np.array([2, 3]))
        options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._op.interpolate(x, self._constant([2, 2]), "nearest", "scales", axes=axes, **options)

    def _constant(self, value: Sequence[float] | np.ndarray | float) -> Any:
        return self._op.constant(np.asarray(value, np.float32))
