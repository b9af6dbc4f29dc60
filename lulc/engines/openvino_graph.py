"""The network as an OpenVINO model, made from its arrays alone: no other framework is needed to run it.

Standardisation and batch norms are part of the arithmetic: the former is two operations on the input,
the latter are folded into the convolutions before them. Any convolution can be computed in 8 bits; in float32
the widest are computed with fewer multiplications (Winograd's algorithm).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lulc.core.schema import InputError
from lulc.engines.convolutions import SECOND_STEP, Factors, fold
from lulc.engines.cropping import Cropping, Sides, level_of
from lulc.engines.winograd import Winograd, integers
from lulc.models.config import NetworkConfig

SQUARES_CHANNELS, SQUARES_LEVEL = 384, 2
"""Channels from which squares of results save time, and how often the resolution is halved at least: above
that they take more memory than a network does without them. Measured, see *Winograd's algorithm* in
docs/performance.md."""

LINES_CHANNELS, LINES_LEVEL = 192, 1
"""The same of lines of results."""

Probe = Literal["inputs", "results"]

Ranges = Mapping[str, float]
"""Largest magnitude of the input of each convolution that is computed in 8 bits."""


def load_openvino() -> Any:
    """The package ``openvino``, its telemetry off.

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
            "Install it in the folder of this project with: pip install '.[cpu]', or type --engine keras.",
        ) from error
    finally:
        if absent:
            del sys.modules[telemetry]
    return openvino


def build_graph(
    network: NetworkConfig,
    arrays: Mapping[str, np.ndarray],
    shape: tuple[int, int, int],
    eight_bit: Ranges | None = None,
    *,
    core: Sides | None = None,
    factors: Factors | None = None,
    probe: Probe | None = None,
    winograd: bool = True,
) -> Any:
    """The network for windows of one shape.

    Parameters
    ----------
    network, arrays
        Its shape and weights.
    shape
        (n, y, x) of every call, y and x multiples of the stride.
    eight_bit
        Convolutions to compute in 8 bits; the others are computed as the device is asked to.
    core
        (y, x) of what is wanted of each window, multiples of the stride; None for all of it.
    factors
        Convolutions to compute in two steps.
    probe
        What to give after the activations, for each convolution in order: of its inputs, the largest
        magnitude; of its results before the ReLU, sums (channel, 1) and sums of products (channel, channel).
    winograd
        Whether the widest convolutions get kernels for Winograd's algorithm where all is float32: these take
        half a second to make, which a few small windows don't win back.

    Returns
    -------
    openvino.Model
        float32 (n, y, x, band) in physical units, NaN = no data, to float32 (n, class, y, x). With a
        `core` its second input says where in each window that lies, and the result is of the core and a
        margin around it, see `lulc.engines.cropping`.

    Raises
    ------
    InputError
        If OpenVINO is not installed.
    """
    openvino = load_openvino()
    builder = _Builder(network, arrays, eight_bit or {}, factors, winograd=winograd)
    return builder.model(openvino, shape, core, probe)


def line_channels(network: NetworkConfig) -> int:
    """Most channels that a float32 graph computes in lines at half resolution, where that takes memory."""
    kernels = [
        (name.rpartition("/")[0], shape)
        for name, shape in network.variable_shapes().items()
        if name.endswith("/kernel") and shape[0] == 3
    ]
    channels = [shape[2] for name, shape in kernels if level_of(name, network) == LINES_LEVEL]
    return max((c for c in channels if c >= LINES_CHANNELS), default=0)


class _Builder:
    """Appends layer after layer, channels before rows, as OpenVINO orders axes."""

    def __init__(
        self,
        network: NetworkConfig,
        arrays: Mapping[str, np.ndarray],
        eight_bit: Ranges,
        factors: Factors | None,
        *,
        winograd: bool,
    ) -> None:
        import openvino.opset13 as operations

        self._op: Any = operations
        self._network = network
        self._arrays = arrays
        self._convolutions = fold(network, arrays, factors)
        self._eight_bit = eight_bit
        self._winograd = winograd
        self._inputs: list[Any] = []
        self._results: list[Any] = []
        self._cropping: Cropping | None = None

    def model(
        self, openvino: Any, shape: tuple[int, int, int], core: Sides | None, probe: Probe | None
    ) -> Any:
        op = self._op
        if core is not None:
            self._cropping = Cropping(op, shape, core, len(self._network.filters))
        given = op.parameter([*shape, self._network.channels], np.float32, name="x")
        x = op.transpose(self._standardise(given), op.constant(np.array([0, 3, 1, 2])))
        logits = self._unet(x)
        # Left in planes, as a map stores them.
        result = op.softmax(logits, 1) if self._network.activation == "softmax" else op.sigmoid(logits)
        probes = self._probes(probe) if probe else []
        inputs = [given, *([self._cropping.given] if self._cropping else [])]
        return openvino.Model([node.output(0) for node in (result, *probes)], inputs, "unet")

    def _probes(self, probe: Probe) -> list[Any]:
        op = self._op
        if probe == "inputs":
            axes = op.constant(np.array([0, 1, 2, 3]))
            return [op.reduce_max(op.abs(node), axes) for node in self._inputs]
        found = []
        for node in self._results:
            flat = op.reshape(node, integers([node.get_output_shape(0)[1], -1]), special_zero=False)
            found += [op.reduce_sum(flat, integers([1]), True), op.matmul(flat, flat, False, True)]
        return found

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
            x = self._decode(x, skips.pop(), s)
        return self._convolve(x, "final_conv", activate=False)

    def _decode(self, x: Any, skip: Any, s: int) -> Any:
        """Stage `s` of the decoder; `x` comes from below, `skip` from the encoder."""
        op, stage, level = self._op, f"decoder_stage{s}", len(self._network.filters) - 1 - s
        transposes = self._network.block == "transpose"
        first = f"{stage}_up" if transposes else f"{stage}_conv1"
        joined = f"{stage}_conv2" if transposes else first
        # Rounded before they are cut and joined: what is moved then has 8 bits.
        x, skip = self._round(x, first), self._round(skip, joined)
        if self._cropping:
            x = self._cropping.cut(x, level + 1, level, whole=s == 0)
            skip = self._cropping.cut(skip, level, level, whole=True)
        if not transposes:
            x = self._convolve(op.concat([self._repeat(x), skip], 1), joined, rounded=True)
            return self._convolve(x, f"{stage}_conv2")
        x = self._round(self._convolve(x, first, rounded=True), joined)
        return self._convolve(op.concat([x, skip], 1), joined, rounded=True)

    def _convolve(self, x: Any, name: str, *, activate: bool = True, rounded: bool = False) -> Any:
        """Convolution, in one step or two, and ReLU; `rounded` says whether `x` comes from `_round`."""
        x = self._apply(x, name, rounded=rounded)
        if name + SECOND_STEP in self._convolutions:
            x = self._apply(x, name + SECOND_STEP)
        self._results.append(x)
        return self._op.relu(x) if activate else x

    def _apply(self, x: Any, name: str, *, rounded: bool = False) -> Any:
        """One step of `_convolve`."""
        op, convolution = self._op, self._convolutions[name]
        self._inputs.append(x)
        if way := self._way(name):
            x = way(x, convolution.kernel)
            return op.add(x, self._constant(convolution.bias[:, None, None]))
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
            around = [side // 2 for side in convolution.kernel.shape[2:]]
            x = op.convolution(x, kernel, [1, 1], around, around, [1, 1])
        return op.add(x, self._constant(convolution.bias[:, None, None]))

    def _round(self, x: Any, name: str) -> Any:
        """`x` as the convolution `name` takes it: in steps where that is computed in 8 bits."""
        if name not in self._eight_bit:
            return x
        # Only the network's input and coordinates have signs, all others come from a ReLU. Signed inputs need
        # all 256 values: with the symmetric 255 OpenVINO 2026.4 runs the convolution with twice the error.
        signed = name == next(iter(self._convolutions)) or name.endswith(SECOND_STEP)
        low = -128 / 127 if signed else 0.0
        return self._quantise(x, np.asarray(self._eight_bit[name]), low=low, levels=256)

    def _way(self, name: str) -> Callable[[Any, np.ndarray], Any] | None:
        """How Winograd's algorithm computes a convolution, None where the plain way is taken."""
        # Rounding hurts its transforms more than the products, so all must be float32.
        if not self._winograd or self._eight_bit or name.endswith(SECOND_STEP):
            return None
        convolution = self._convolutions[name]
        channels = 0 if convolution.transposed else convolution.kernel.shape[1]
        level = level_of(name, self._network)
        # Windows lie, and stages are cut, at multiples of the stride. Squares and lines whose side divides it
        # at this resolution lie on the same pixels in every window.
        side = min(1 << len(self._network.filters) - level, 4)
        if channels >= SQUARES_CHANNELS and level >= SQUARES_LEVEL and side >= 2:
            return Winograd(self._op, side).squares
        if channels >= LINES_CHANNELS and level >= LINES_LEVEL and side == 4:
            return Winograd(self._op, side).lines
        return None

    def _quantise(self, x: Any, largest: np.ndarray, *, low: float, levels: int) -> Any:
        """Round to `levels` values evenly spaced between low * largest and largest."""
        # A channel that is 0 throughout has no steps otherwise.
        largest = np.maximum(largest, 1e-20)
        bounds = self._constant(low * largest), self._constant(largest)
        return self._op.fake_quantize(x, *bounds, *bounds, levels)

    def _repeat(self, x: Any) -> Any:
        """Twice the resolution, each pixel four times."""
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
