"""The network: a U-Net whose first layer standardises, and the stride and halo that windows need.

The default is the original network, layer for layer and name for name: four encoder stages of two 3x3
convolutions, no bottleneck, four decoder stages that upsample by 4x4 transposed convolutions. The encoder
may be one of `keras.applications` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lulc.core.schema import InputError
from lulc.models.backend import keras
from lulc.models.config import NetworkConfig
from lulc.models.encoders import encode

__all__ = ["Geometry", "NetworkConfig", "Standardization", "build_unet", "geometry"]

Array = np.ndarray


@keras.saving.register_keras_serializable(package="lulc")
class Standardization(keras.layers.Layer):
    """``(x - mean) / std`` per channel; NaN becomes exactly 0.

    Mean and standard deviation are weights that no optimizer touches; ``set_statistics`` gives them.
    Computed in float32 whatever the precision of the layers after it: reflectance x 10000 leaves
    bfloat16 two digits.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs, "trainable": False})

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (input_shape[-1],)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.std = self.add_weight(name="std", shape=shape, initializer="ones", trainable=False)

    def call(self, x: Any) -> Any:
        """Standardise x (n, y, x, band)."""
        # The mean stands in for NaN before anything is computed, so that no NaN reaches a gradient.
        mean = keras.ops.convert_to_tensor(self.mean)
        known = keras.ops.where(keras.ops.isnan(x), mean, x)
        return (known - mean) / self.std

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape


def build_unet(
    config: NetworkConfig | None = None, statistics: tuple[Array, Array] | None = None
) -> keras.Model:
    """Build the network with fresh weights (He-normal).

    Parameters
    ----------
    config
        Its shape; the original network where not given.
    statistics
        Mean and standard deviation of each channel, float (band,), in the units of the input; without
        them the input is taken as it is (NaN still becomes 0).

    Returns
    -------
    keras.Model
        float32 (n, y, x, band) in physical units, NaN = no data, to float32 (n, y, x, class) activations.
        y and x are multiples of the network's stride.

    Raises
    ------
    InputError
        If there is not one finite mean and one positive standard deviation per channel.
    """
    config = config or NetworkConfig()
    inputs = keras.Input((None, None, config.channels), name="input")
    standardization = Standardization(name="standardization")
    x = standardization(inputs)
    if statistics is not None:
        _check_statistics(statistics, config.channels)
        standardization.set_weights([np.asarray(s, "float32") for s in statistics])
    *skips, x = encode(config.encoder, x, config.depth) if config.encoder else _encode(x, config)
    for i in range(1, config.bottleneck + 1):
        x = _convolve(x, config, config.bottleneck_filters, "bottleneck", i)
    for s, filters in enumerate(config.decoder_filters):
        x = _decode(x, skips.pop(), config, filters, f"decoder_stage{s}")
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    x = keras.layers.Conv2D(
        config.classes, 3, padding="same", kernel_initializer="he_normal", name="final_conv"
    )(x)
    x = keras.layers.Activation(config.activation, dtype="float32", name=config.activation)(x)
    return keras.Model(inputs, x, name="unet")


def _check_statistics(statistics: tuple[Array, Array], channels: int) -> None:
    mean, std = (np.asarray(s, "float64") for s in statistics)
    if mean.shape != (channels,) or std.shape != (channels,):
        raise InputError(
            f"cannot build the network, since the statistics have the shapes {mean.shape} and {std.shape}, "
            f"expected one mean and one standard deviation for each of its {channels} channels",
            "Give the statistics of the network's own training data.",
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise InputError(
            f"cannot build the network, since the statistics hold mean {mean.tolist()} and std "
            f"{std.tolist()}, expected finite means and positive standard deviations",
            "A channel that is constant over all training stacks carries no information: leave it out.",
        )


def _encode(x: Any, config: NetworkConfig) -> list[Any]:
    """The results of the encoder stages at strides 1, 2, ..., and what the decoder starts from."""
    results = []
    for s, filters in enumerate(config.filters):
        for i in (1, 2):
            x = _convolve(x, config, filters, f"encoder_stage{s}", i)
        results.append(x)
        x = keras.layers.MaxPooling2D(2, name=f"encoder_stage{s}_pool")(x)
    return [*results, x]


def _convolve(x: Any, config: NetworkConfig, filters: int, stage: str, i: int) -> Any:
    """3x3 convolution, normalisation, ReLU."""
    x = keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=config.norm == "none",
        kernel_initializer="he_normal",
        name=f"{stage}_conv{i}",
    )(x)
    return _activate(x, config, stage, i)


def _activate(x: Any, config: NetworkConfig, stage: str, i: int) -> Any:
    if config.norm == "batch":
        x = keras.layers.BatchNormalization(name=f"{stage}_bn{i}")(x)
    return keras.layers.Activation("relu", name=f"{stage}_relu{i}")(x)


def _decode(x: Any, skip: Any, config: NetworkConfig, filters: int, stage: str) -> Any:
    """One decoder stage: twice the resolution, joined with the skip of the encoder where there is one."""
    if config.block == "transpose":
        x = keras.layers.Conv2DTranspose(
            filters,
            4,
            strides=2,
            padding="same",
            use_bias=config.norm == "none",
            kernel_initializer="he_normal",
            name=f"{stage}_up",
        )(x)
        x = _join(_activate(x, config, stage, 1), skip, stage)
    else:
        x = _join(keras.layers.UpSampling2D(2, name=f"{stage}_up")(x), skip, stage)
        x = _convolve(x, config, filters, stage, 1)
    return _convolve(x, config, filters, stage, 2)


def _join(x: Any, skip: Any, stage: str) -> Any:
    return x if skip is None else keras.layers.Concatenate(name=f"{stage}_concat")([x, skip])


@dataclass(frozen=True)
class Geometry:
    """What a network asks of the windows that it is run on.

    Parameters
    ----------
    stride
        Window origins and sizes are multiples of this, pixels.
    halo
        Pixels around a window that decide its result, a multiple of the stride; None where every pixel
        depends on the whole image, so that no window is exact.
    radius
        Largest distance between a pixel of the output and a pixel of the input that it depends on; None
        likewise.
    """

    stride: int
    halo: int | None
    radius: int | None


Span = tuple[int, int]
"""First and last index, both included."""


@dataclass(frozen=True)
class _Reach:
    """How one layer maps positions along one axis: `scale` input steps per output step, and `back`."""

    scale: Fraction
    back: Callable[[Span], Span] | None


_SAME = _Reach(Fraction(1), lambda span: span)

_ELEMENTWISE = frozenset(
    {
        "Activation",
        "Add",
        "Average",
        "BatchNormalization",
        "Concatenate",
        "Dense",
        "Dropout",
        "ELU",
        "GaussianNoise",
        "Identity",
        "LayerNormalization",
        "LayerScale",
        "LeakyReLU",
        "Maximum",
        "Multiply",
        "Normalization",
        "PReLU",
        "ReLU",
        "Rescaling",
        "Softmax",
        "SpatialDropout2D",
        "Standardization",
        "StochasticDepth",
        "Subtract",
        "UnitNormalization",
    }
)
"""Layers whose output at a place depends on their inputs at that place only."""

_CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2D", "SeparableConv2D"})
_POOLINGS = frozenset({"MaxPooling2D", "AveragePooling2D"})
_GLOBAL = frozenset({"GlobalAveragePooling2D", "GlobalMaxPooling2D", "Reshape"})


def geometry(network: keras.Model | NetworkConfig) -> Geometry:
    """Stride, halo and radius of a network, from its graph.

    The pixels of the input that a span of the output depends on are found by going through the layers
    backwards with the span's first and last index; every layer maps integers to integers, so the result
    is exact. A window is exact when the halo holds what the outermost cell of one stride depends on.

    Raises
    ------
    InputError
        If the graph holds a layer whose reach is not known here, or the output is not at the resolution
        of the input.
    """
    model = build_unet(network) if isinstance(network, NetworkConfig) else network
    axes = [_axis_geometry(model, axis) for axis in (0, 1)]
    stride = math.lcm(*(a.stride for a in axes))
    reaches = [(a.halo, a.radius) for a in axes]
    if any(halo is None for halo, _ in reaches):
        return Geometry(stride, None, None)
    return Geometry(
        stride,
        max(-(-(halo or 0) // stride) * stride for halo, _ in reaches),
        max(radius or 0 for _, radius in reaches),
    )


def _axis_geometry(model: keras.Model, axis: int) -> Geometry:
    nodes = _nodes_in_order(model)
    reaches = {id(node): _reach(node.operation, axis) for node in nodes}
    steps = {id(model.inputs[0]): Fraction(1)}
    for node in nodes:
        step = max(steps[id(t)] for t in node.input_tensors) * reaches[id(node)].scale
        steps.update((id(t), step) for t in node.outputs)
    if steps[id(model.outputs[0])] != 1:
        raise InputError(
            f"cannot run the network '{model.name}' in windows, since its output has "
            f"{1 / steps[id(model.outputs[0])]} times the resolution of its input, expected the same",
            "Use a network that upsamples as often as it downsamples.",
        )
    stride = math.lcm(*(step.numerator for step in steps.values()))

    def needed(span: Span) -> Span | None:
        return _needed(model, nodes, reaches, span)

    whole = needed((0, stride - 1))
    if whole is None:
        return Geometry(stride, None, None)
    halo = max(-whole[0], whole[1] - (stride - 1), 0)
    spans = [needed((p, p)) or (p, p) for p in range(stride)]
    return Geometry(stride, halo, max(max(p - a, b - p) for p, (a, b) in enumerate(spans)))


def _needed(model: keras.Model, nodes: list[Any], reaches: dict[int, _Reach], span: Span) -> Span | None:
    """First and last input index that the outputs in `span` depend on; None for the whole axis."""
    demands: dict[int, list[Span]] = {id(model.outputs[0]): [span]}
    for node in reversed(nodes):
        asked = [s for t in node.outputs for s in demands.get(id(t), ())]
        if not asked:
            continue
        back = reaches[id(node)].back
        if back is None:
            return None
        source = back(_hull(asked))
        for tensor in node.input_tensors:
            demands.setdefault(id(tensor), []).append(source)
    return _hull(demands[id(model.inputs[0])])


def _hull(spans: Iterable[Span]) -> Span:
    first, last = zip(*spans, strict=True)
    return min(first), max(last)


def _nodes_in_order(model: keras.Model) -> list[Any]:
    """Calls of layers between input and output, each after those that it depends on."""
    order: list[Any] = []
    seen: set[int] = {id(model.inputs[0])}
    stack = [model.outputs[0]]
    while stack:
        tensor = stack[-1]
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        waiting = [t for t in node.input_tensors if id(t) not in seen]
        stack.extend(waiting)
        if not waiting:
            stack.pop()
            if id(tensor) not in seen:
                seen.update(id(t) for t in node.outputs)
                order.append(node)
    return order


def _reach(layer: Any, axis: int) -> _Reach:
    kind = type(layer).__name__
    if kind in _ELEMENTWISE:
        return _SAME
    if kind in _GLOBAL:
        return _Reach(Fraction(1), None)
    if kind == "Conv2DTranspose" and layer.padding == "same":
        return _transposed(layer.kernel_size[axis], layer.strides[axis])
    if kind in _CONVOLUTIONS:
        extent = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
        return _sliding(extent, layer.strides[axis], layer.padding)
    if kind in _POOLINGS:
        return _sliding(layer.pool_size[axis], layer.strides[axis], layer.padding)
    if kind == "UpSampling2D" and layer.interpolation in ("nearest", "bilinear"):
        return _repeating(layer.size[axis], layer.interpolation)
    if kind == "ZeroPadding2D":
        before = layer.padding[axis][0]
        return _Reach(Fraction(1), lambda span: (span[0] - before, span[1] - before))
    raise InputError(
        f"cannot find the halo of the network, since the reach of its layer '{layer.name}' ({kind}) "
        "is not known",
        "Build it from convolutions, pooling, upsampling and elementwise layers.",
    )


def _sliding(extent: int, stride: int, padding: str) -> _Reach:
    """Convolution and pooling; padding as for sizes that are multiples of the stride."""
    before = max(extent - stride, 0) // 2 if padding == "same" else 0
    return _Reach(
        Fraction(stride),
        lambda span: (span[0] * stride - before, span[1] * stride - before + extent - 1),
    )


def _transposed(extent: int, stride: int) -> _Reach:
    """Transposed convolution: input i reaches outputs i * stride - before .. + extent - 1."""
    before = max(extent - stride, 0) // 2
    return _Reach(
        Fraction(1, stride),
        lambda span: (-((extent - 1 - before - span[0]) // stride), (span[1] + before) // stride),
    )


def _repeating(factor: int, interpolation: str) -> _Reach:
    if interpolation == "nearest":
        return _Reach(Fraction(1, factor), lambda span: (span[0] // factor, span[1] // factor))
    # Half-pixel centres: output o lies at (2 o + 1 - factor) / (2 factor) between two inputs.
    return _Reach(
        Fraction(1, factor),
        lambda span: (
            (2 * span[0] + 1 - factor) // (2 * factor),
            -((factor - 1 - 2 * span[1]) // (2 * factor)),
        ),
    )
