"""Receptive field of imported networks, operator by operator.

Each operator maps a span of its output along one axis to the span of its input that this depends on; the
spans are followed backwards through the graph, as in `lulc.models.config.geometry`. Operators that depend on
the whole image or its size have no such map: windows of these networks are blended, not cut with a halo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Span = tuple[int, int]
"""First and last index along one axis, both included."""

Axes = tuple[int, int]
"""Axes of rows and columns of a tensor."""

Reach = Callable[[int, Span], Span]
"""Number of the axis (0 rows, 1 columns) and a span of the output to the span of the input."""


class Unbounded(Exception):
    """Operator whose result depends on pixels at any distance, or on the size of the image."""


@dataclass(frozen=True)
class Flow:
    """Layout of a tensor of pixels, whose size in pixels of the image along rows and columns is `scale`."""

    axes: Axes
    scale: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))


@dataclass(frozen=True)
class Operator:
    """Node of the graph, with layout, constant value and shape of each input, and shape of the first output.

    Layout and value are None for inputs without.
    """

    kind: str
    attributes: Mapping[str, Any]
    flows: Sequence[Flow | None]
    constants: Sequence[np.ndarray | None]
    shapes: Sequence[tuple[int, ...]]
    result: tuple[int, ...]
    version: int = 13

    @property
    def data(self) -> Flow:
        """Layout of the first input of pixels."""
        return next(flow for flow in self.flows if flow is not None)

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """Return an attribute, which newer versions of the operator have as an input."""
        if name in self.attributes:
            return self.attributes[name]
        value = self.constants[position] if position < len(self.constants) else None
        absent = position >= len(self.shapes) or (value is None and not self.shapes[position])
        if value is None and not absent:
            raise Unbounded(f"{self.kind} with a computed {name}")
        return default if value is None else value.tolist()


Step = tuple[Flow, Reach | None]
"""Layout of the result, and the reach of the operator; None if each pixel depends on itself alone."""

POINTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "HardSigmoid", "HardSwish", "Identity", "IsNaN",
    "LeakyRelu", "Less", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "PRelu",
    "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub",
    "Sum", "Tanh", "Where",
})  # fmt: skip
"""Operators whose result at a pixel depends on that pixel alone."""

NORMALISED = frozenset(("Softmax", "LogSoftmax", "LayerNormalization"))
REDUCED = frozenset(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2"))
GLOBAL = frozenset({
    "Einsum", "Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "GroupNormalization", "InstanceNormalization", "MatMul", "Reshape", "ReduceProd", "Shape", "Size",
    "Tile", "Range", "ConstantOfShape", "Constant",
})  # fmt: skip
"""Further supported operators, which reach over the whole image unless they are constant."""


def step(operator: Operator) -> Step:
    """Return the layout of an operator's result and its reach; raises Unbounded if it is not bounded."""
    if operator.kind in POINTWISE:
        return _pointwise(operator), None
    if operator.kind in NORMALISED:
        return _normalised(operator), None
    if operator.kind in REDUCED:
        return _reduced(operator), None
    if operator.kind not in _STEPS:
        raise Unbounded(operator.kind)
    return _STEPS[operator.kind](operator)


def _pointwise(operator: Operator) -> Flow:
    """Return the common layout of all inputs, whose axes are counted from the last, as in broadcasting."""
    rank, first = len(operator.result), operator.data
    shift = rank - len(operator.shapes[operator.flows.index(first)])
    axes = (first.axes[0] + shift, first.axes[1] + shift)
    shifts = [rank - len(shape) for shape in operator.shapes]
    for shift, flow in zip(shifts, operator.flows, strict=True):
        if flow and (tuple(axis + shift for axis in flow.axes) != axes or flow.scale != first.scale):
            raise Unbounded(f"{operator.kind} of tensors laid out in different ways")
    for shape, shift, flow in zip(operator.shapes, shifts, operator.flows, strict=True):
        by_pixel = shape and any(axis >= shift and shape[axis - shift] != 1 for axis in axes)
        if flow is None and by_pixel and operator.kind != "BatchNormalization":
            raise Unbounded(f"{operator.kind} with a constant for each pixel")
    return Flow(axes, first.scale)


def _normalised(operator: Operator) -> Flow:
    flow, rank = operator.data, len(operator.result)
    axis = int(operator.attributes.get("axis", -1 if operator.version >= 13 else 1)) % rank
    # Before version 13, Softmax ran over all axes from this one on.
    several = operator.kind == "LayerNormalization" or operator.version < 13
    if set(range(axis, rank) if several else (axis,)) & set(flow.axes):
        raise Unbounded(f"{operator.kind} over pixels")
    return flow


def _reduced(operator: Operator) -> Flow:
    flow, rank = operator.data, len(operator.shapes[0])
    axes = operator.argument("axes", 1)
    reduced = {int(axis) % rank for axis in (range(rank) if axes is None else np.ravel(axes))}
    if reduced & set(flow.axes):
        raise Unbounded(f"{operator.kind} over pixels")
    if operator.attributes.get("keepdims", 1):
        return flow
    return Flow(_without(flow.axes, reduced), flow.scale)


def _without(axes: Axes, removed: set[int]) -> Axes:
    rows, cols = (axis - sum(other < axis for other in removed) for axis in axes)
    return rows, cols


def _image(operator: Operator) -> Flow:
    """Return the layout of the input of a convolution or pooling, which must be (n, channel, y, x)."""
    flow = operator.flows[0]
    if flow is None or flow.axes != (2, 3) or len(operator.shapes[0]) != 4:
        raise Unbounded(f"{operator.kind} of another layout than (n, channel, y, x)")
    return flow


def _window(operator: Operator) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return kernel, strides, dilations and padding before the image of a convolution or pooling."""
    attributes = operator.attributes
    kernel = list(attributes.get("kernel_shape", ())) or list(operator.shapes[1][2:])
    strides, dilations = (list(attributes.get(name, (1, 1))) for name in ("strides", "dilations"))
    before = list(attributes.get("pads", (0, 0, 0, 0)))[:2]
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for k in range(2):
            source, target = operator.shapes[0][2 + k], operator.result[2 + k]
            extent = dilations[k] * (kernel[k] - 1) + 1
            if operator.kind == "ConvTranspose":
                total = strides[k] * (source - 1) + extent - target
            else:
                total = max(0, (target - 1) * strides[k] + extent - source)
            before[k] = total // 2 if mode == "SAME_UPPER" else -(-total // 2)
    elif mode == "VALID":
        before = [0, 0]
    return kernel, strides, dilations, before


def _scaled(flow: Flow, factors: Sequence[Fraction]) -> Flow:
    return Flow(flow.axes, (flow.scale[0] * factors[0], flow.scale[1] * factors[1]))


def _convolution(operator: Operator) -> Step:
    if len(operator.flows) > 1 and any(flow is not None for flow in operator.flows[1:]):
        raise Unbounded(f"{operator.kind} with a computed kernel")
    flow = _image(operator)
    kernel, strides, dilations, before = _window(operator)

    def reach(k: int, span: Span) -> Span:
        first, last = (index * strides[k] - before[k] for index in span)
        return first, last + dilations[k] * (kernel[k] - 1)

    return _scaled(flow, [Fraction(s) for s in strides]), reach


def _transposed(operator: Operator) -> Step:
    if any(flow is not None for flow in operator.flows[1:]) or "output_shape" in operator.attributes:
        raise Unbounded(f"{operator.kind} with a computed kernel or a fixed size")
    flow = _image(operator)
    kernel, strides, dilations, before = _window(operator)

    def reach(k: int, span: Span) -> Span:
        first = span[0] + before[k] - dilations[k] * (kernel[k] - 1)
        ends = -(-first // strides[k]), (span[1] + before[k]) // strides[k]
        # With strides larger than the kernel, a pixel of the result may depend on no pixel.
        return min(ends), max(ends)

    return _scaled(flow, [Fraction(1, s) for s in strides]), reach


def _resize(operator: Operator) -> Step:
    flow, attributes, shape = operator.data, operator.attributes, operator.shapes[0]
    newer = operator.kind == "Resize"
    mode = attributes.get("mode", "nearest")
    centres = attributes.get("coordinate_transformation_mode", "half_pixel") if newer else "asymmetric"
    resized = {axis for axis, side in enumerate(operator.result) if shape[axis] != side}
    known = centres in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric")
    if not known or attributes.get("antialias") or resized - set(flow.axes):
        raise Unbounded(f"{operator.kind} with {centres}")
    factors = [Fraction(operator.result[axis], shape[axis]) for axis in flow.axes]
    margin = {"nearest": (0, 0), "linear": (0, 1), "cubic": (1, 2)}[mode]
    half = Fraction(1, 2) if centres != "asymmetric" else Fraction(0)
    rounds = mode == "nearest" and newer and attributes.get("nearest_mode") != "floor"

    def reach(k: int, span: Span) -> Span:
        first, last = ((index + half) / factors[k] - half for index in span)
        # Roundings other than floor may take the next pixel.
        beyond = margin[1] + int(rounds and last != int(last))
        return math.floor(first) - margin[0], math.floor(last) + beyond

    return _scaled(flow, [1 / factor for factor in factors]), reach


def _pad(operator: Operator) -> Step:
    flow, rank = operator.data, len(operator.result)
    if operator.attributes.get("mode", "constant") not in ("constant", "reflect", "edge"):
        raise Unbounded("Pad that repeats the other side")
    pads = np.ravel(operator.argument("pads", 1, ()))
    axes = operator.argument("axes", 3)
    listed = [int(axis) % rank for axis in (range(rank) if axes is None else np.ravel(axes))]
    before = dict(zip(listed, (int(p) for p in pads[: len(listed)]), strict=True))
    shifts = [before.get(axis, 0) for axis in flow.axes]
    return flow, lambda k, span: (span[0] - shifts[k], span[1] - shifts[k])


def _slice(operator: Operator) -> Step:
    flow, shape = operator.data, operator.shapes[0]
    starts = [int(v) for v in np.ravel(operator.argument("starts", 1))]
    axes, steps = operator.argument("axes", 3), operator.argument("steps", 4)
    listed = range(len(starts)) if axes is None else [int(a) % len(shape) for a in np.ravel(axes)]
    strides = [1] * len(starts) if steps is None else [int(s) for s in np.ravel(steps)]
    firsts = {}
    for axis, start, stride in zip(listed, starts, strides, strict=True):
        if axis in flow.axes and stride != 1:
            raise Unbounded("Slice that leaves out pixels")
        firsts[axis] = slice(start, None).indices(shape[axis])[0]
    shifts = [firsts.get(axis, 0) for axis in flow.axes]
    return flow, lambda k, span: (span[0] + shifts[k], span[1] + shifts[k])


def _along_channels(operator: Operator) -> Step:
    """Return the step of Concat and Split, which must not join or divide images."""
    default = 0 if operator.kind == "Split" else None
    axis = int(operator.attributes.get("axis", default)) % len(operator.result)
    flow = operator.data
    alike = all(other in (None, flow) for other in operator.flows)
    constant = operator.kind == "Concat" and None in operator.flows
    if axis in flow.axes or not alike or constant:
        raise Unbounded(f"{operator.kind} of images side by side")
    return flow, None


def _gather(operator: Operator) -> Step:
    flow = operator.flows[0]
    axis = int(operator.attributes.get("axis", 0)) % len(operator.shapes[0])
    if flow is None or operator.flows[1] is not None or axis in flow.axes or len(operator.shapes[1]) > 1:
        raise Unbounded("Gather of pixels")
    return (Flow(_without(flow.axes, {axis}), flow.scale) if not operator.shapes[1] else flow), None


def _squeezed(operator: Operator) -> Step:
    flow = operator.data
    added = operator.kind == "Unsqueeze"
    rank = len(operator.result) if added else len(operator.shapes[0])
    axes = operator.argument("axes", 1)
    if axes is None:
        raise Unbounded("Squeeze of every axis of length 1")
    changed = {int(axis) % rank for axis in np.ravel(axes)}
    if not added:
        if changed & set(flow.axes):
            raise Unbounded("Squeeze of pixels")
        return Flow(_without(flow.axes, changed), flow.scale), None
    kept = [axis for axis in range(rank) if axis not in changed]
    return Flow((kept[flow.axes[0]], kept[flow.axes[1]]), flow.scale), None


def _transpose(operator: Operator) -> Step:
    flow, rank = operator.data, len(operator.result)
    order = list(operator.attributes.get("perm", range(rank - 1, -1, -1)))
    rows, cols = (order.index(axis) for axis in flow.axes)
    return Flow((rows, cols), flow.scale), None


def _matmul(operator: Operator) -> Step:
    flow = operator.flows[0]
    last = len(operator.shapes[0]) - 1
    if flow is None or operator.flows[1] is not None or last in flow.axes or len(operator.shapes[1]) != 2:
        raise Unbounded("MatMul over pixels")
    return flow, None


def _blocks(operator: Operator) -> Step:
    flow, size = _image(operator), int(operator.attributes["blocksize"])
    if operator.kind == "DepthToSpace":
        return _scaled(flow, [Fraction(1, size)] * 2), lambda k, span: (span[0] // size, span[1] // size)
    return _scaled(flow, [Fraction(size)] * 2), lambda k, span: (span[0] * size, span[1] * size + size - 1)


_STEPS: Mapping[str, Callable[[Operator], Step]] = {
    "AveragePool": _convolution, "Concat": _along_channels, "Conv": _convolution,
    "ConvTranspose": _transposed, "DepthToSpace": _blocks, "Gather": _gather, "MatMul": _matmul,
    "MaxPool": _convolution, "Pad": _pad, "Resize": _resize, "Slice": _slice, "SpaceToDepth": _blocks,
    "Split": _along_channels, "Squeeze": _squeezed, "Transpose": _transpose, "Unsqueeze": _squeezed,
    "Upsample": _resize,
}  # fmt: skip

OPERATORS = POINTWISE | NORMALISED | REDUCED | GLOBAL | _STEPS.keys()
"""All supported operators."""
