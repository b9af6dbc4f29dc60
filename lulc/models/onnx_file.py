"""Reader of imported networks (``.onnx``, ``.keras``), which checks them before any runtime opens them.

The file is parsed in a separate process. It must hold one graph of known operators and its weights: no
external data, no custom functions or operators, no loops or branches. The shapes of all tensors are inferred
for two sizes of image and checked against limits; stride and halo follow from them and the operators.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lulc.core.packages import require
from lulc.core.reader_process import read_apart
from lulc.core.schema import MAX_CLASSES, InputError
from lulc.models.archive import Refusal, read_content
from lulc.models.config import GraphConfig
from lulc.models.graph_geometry import OPERATORS, Flow, Operator, Reach, Unbounded, step

MAX_NODES = 20_000
MAX_RANK = 8
MAX_VALUES = 16_384
"""Most values of a tensor per pixel of the image; U-Nets have a few hundred."""

MAX_KNOWN = 4096
"""Most values of a constant that shapes are computed from."""

MAX_STRIDE = 1024
FIRST, FURTHER = (512, 768), (2, 3)
"""Size of the first image for shape inference; strides beyond its rows for the sides of the second."""

OPSETS = range(9, 64)

_NORMALISED = "group or instance normalisation takes mean and spread of the whole image"
_POOLED = "it pools over the whole image"

MOVING = frozenset(("Identity", "Transpose", "Cast", "Pad", "Slice"))
"""Operators that move pixels without changing their values."""

MIXING = frozenset({
    "AveragePool", "Clip", "Max", "Mean", "Min", "Reshape", "Resize", "Squeeze", "Unsqueeze", "Upsample",
})  # fmt: skip
"""Further operators that turn probabilities into probabilities."""

SIGMOIDS = ("Sigmoid", "HardSigmoid")

WHOLE = {
    "InstanceNormalization": _NORMALISED,
    "GroupNormalization": _NORMALISED,
    "GlobalAveragePool": _POOLED,
    "GlobalMaxPool": _POOLED,
    "ReduceMean over pixels": _POOLED,
    "ReduceMax over pixels": _POOLED,
    "attention": "attention compares all parts of the image",
}
"""Reason for operators that depend on the whole image; the first of a network is reported."""


class GraphFile(NamedTuple):
    """Imported network that passed all checks, with its stride, and its halo or 0 if none is enough.

    `content` is an ONNX file with the nodes and weights that the output needs, and nothing else.
    """

    network: GraphConfig
    stride: int
    halo: int
    content: bytes


def read_graph(
    path: str | os.PathLike[str], channels: int, *, output: str = "", sha256: str = ""
) -> GraphFile:
    """Read and check an imported network.

    Raises InputError if the file is anything but a network from an image to scores of its pixels.

    Parameters
    ----------
    path
        ``NAME.onnx``, or a Keras model ``NAME.keras``, which is converted first.
    sha256
        Expected sha256 of the file; any if empty.
    """
    path = Path(path)
    if not path.is_file():
        raise refused(path, "there is no such file")
    graph = read_apart(_describe, str(path), channels, output, sha256, path=path, reading="the network")
    network = GraphConfig.from_json(graph["network"])
    return GraphFile(network, graph["stride"], graph["halo"], bytes(graph["content"]))


def refused(path: str | os.PathLike[str], reason: str) -> InputError:
    """Return the error for a refused file."""
    how = "from an image (n, channel, y, x) to scores of its pixels."
    if Path(path).suffix == ".keras":
        how = "with Keras' model.export, or save it in Keras 3 without layers and functions of your own."
    return InputError(
        f"cannot use the network '{path}', since {reason}", f"Export it as one .onnx file {how}"
    )


def _describe(place: str, channels: int, output: str, sha256: str) -> dict[str, Any]:
    """Parse and check the file; runs in the reader process."""
    require(["onnx"], f"read '{place}'", "onnx")
    import onnx
    import onnx.checker
    import onnx.reference
    import onnx.shape_inference

    try:
        content = read_content(Path(place), sha256)
        if place.endswith(".keras"):
            from lulc.models.keras_file import KerasGraph

            model, output = KerasGraph(onnx, content).model(output), ""
        else:
            model = onnx.ModelProto()
            model.ParseFromString(content)
        return _Reader(onnx, model, output).description(channels)
    except Refusal as refusal:
        raise refused(place, str(refusal)) from refusal
    except Exception as error:
        # Errors of protobuf and of shape inference have no common base class.
        expected = (ValueError, KeyError, TypeError, IndexError, OverflowError, RuntimeError)
        foreign = type(error).__module__.partition(".")[0] in ("google", "onnx")
        if not foreign and not isinstance(error, expected):
            raise
        raise refused(place, f"it is damaged, or no network ({str(error)[:300]})") from error


class _Inferred(NamedTuple):
    """Properties of a graph for one size of image."""

    result: tuple[int, ...]
    flow: Flow | None
    steps: list[tuple[list[str], list[str], Reach | None]]
    scales: set[tuple[Fraction, Fraction]]
    reason: str
    peak: int


class _Reader:
    """A parsed model, checked before shapes are inferred."""

    def __init__(self, onnx: Any, model: Any, output: str) -> None:
        self._onnx, self._model, self._graph = onnx, model, model.graph
        self._check_parts()
        for node in self._graph.node:
            self._check_node(node)
        for tensor in self._graph.initializer:
            self._check_tensor(tensor)
        onnx.checker.check_model(model)
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        inputs = [port for port in self._graph.input if port.name not in self._weights]
        if len(inputs) != 1:
            raise Refusal(f"it has {len(inputs)} inputs, expected one, the image")
        self._input, self._output = inputs[0], self._chosen(output)
        self._nodes = self._needed()

    def _check_parts(self) -> None:
        model, graph = self._model, self._graph
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self._version = versions.get("", versions.get("ai.onnx", 0))
        newest = min(OPSETS[-1], self._onnx.defs.onnx_opset_version())
        problems = {
            "it holds functions, which might be anything": bool(model.functions),
            "it holds training steps": bool(model.training_info),
            "it holds sparse weights": bool(graph.sparse_initializer),
            f"its version of operators is {self._version}, expected {OPSETS[0]} to {newest}": not (
                OPSETS[0] <= self._version <= newest
            ),
            f"it has {len(graph.node)} nodes, expected 1 to {MAX_NODES}": not 1
            <= len(graph.node)
            <= MAX_NODES,
        }
        for problem, holds in problems.items():
            if holds:
                raise Refusal(problem)

    def _check_node(self, node: Any) -> None:
        kind, flags = node.op_type, {a.name for a in node.attribute if a.i}
        if node.domain not in ("", "ai.onnx") or kind not in OPERATORS:
            name = f"{node.domain}.{kind}".removeprefix(".")[:80]
            raise Refusal(
                f"it has the operator '{name}', which is not among those that are known to be harmless"
            )
        trained = kind == "BatchNormalization" and "training_mode" in flags
        if trained or (kind == "Dropout" and len(node.input) > 2 and node.input[2]):
            raise Refusal(f"its operator '{kind}' is in training mode; export it in evaluation mode")
        if "exclude_outside" in flags:
            raise Refusal(f"its operator '{kind}' weights edges in a way that not every runtime has")
        types = self._onnx.AttributeProto
        plain = {types.FLOAT, types.INT, types.STRING, types.FLOATS, types.INTS, types.STRINGS, types.TENSOR}
        for a in node.attribute:
            if a.type not in plain or a.ref_attr_name or a.graphs or a.HasField("g"):
                raise Refusal(f"its operator '{kind}' holds another graph, or a value of an unknown kind")
            if a.type == types.TENSOR:
                self._check_tensor(a.t)

    def _check_tensor(self, tensor: Any) -> None:
        proto = self._onnx.TensorProto
        if tensor.data_location == proto.EXTERNAL or tensor.external_data:
            raise Refusal(f"'{tensor.name[:80]}' takes its values from another file")
        sizes = {
            proto.FLOAT: 4, proto.DOUBLE: 8, proto.FLOAT16: 2, proto.INT32: 4, proto.INT64: 8, proto.BOOL: 1,
            proto.INT8: 1, proto.UINT8: 1,
        }  # fmt: skip
        size = sizes.get(tensor.data_type)
        if size is None or len(tensor.dims) > MAX_RANK or any(side < 0 for side in tensor.dims):
            raise Refusal(f"'{tensor.name[:80]}' has a type or shape that no weights have")
        count = math.prod(tensor.dims)
        stored = len(tensor.raw_data) // size if tensor.HasField("raw_data") else max(
            len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data), len(tensor.double_data)
        )  # fmt: skip
        if count != stored:
            raise Refusal(f"'{tensor.name[:80]}' declares {count} values but stores {stored} (a shape bomb)")
        number = tensor.data_type in (proto.FLOAT, proto.DOUBLE, proto.FLOAT16)
        if count > 1 and number and not np.isfinite(self._onnx.numpy_helper.to_array(tensor)).all():
            raise Refusal(f"'{tensor.name[:80]}' holds NaN or infinite weights")

    def _chosen(self, output: str) -> Any:
        ports = {port.name: port for port in self._graph.output}
        if output and output not in ports:
            raise Refusal(f"it has no output '{output}', but {', '.join(ports)}")
        if not output and len(ports) != 1:
            raise Refusal(f"it has the outputs {', '.join(ports)}, expected one; name it with --output")
        return ports[output] if output else next(iter(ports.values()))

    def _needed(self) -> list[Any]:
        """Return the nodes that the output depends on, in order."""
        names, nodes = {self._output.name}, []
        for node in reversed(self._graph.node):
            if names & set(node.output):
                names.update(name for name in node.input if name)
                nodes.append(node)
        if self._input.name not in names:
            raise Refusal(f"its output '{self._output.name}' does not depend on its input")
        self._names = names
        return nodes[::-1]

    def _image(self, channels: int) -> tuple[int, tuple[int, int], tuple[int, ...]]:
        """Return images of a call (0 for any), axes of rows and columns, and the size if it is fixed."""
        port = self._input.type.tensor_type
        declared = [d.dim_value if d.HasField("dim_value") else 0 for d in port.shape.dim]
        if len(declared) != 4 or port.elem_type != self._onnx.TensorProto.FLOAT:
            raise Refusal("its input is no image of 32-bit numbers (n, channel, y, x)")
        last = declared[3] == channels and declared[1] != channels
        named = declared[3 if last else 1]
        if named not in (0, channels):
            raise Refusal(f"its input has {named} channels, but {channels} are named")
        sides = declared[1:3] if last else declared[2:4]
        if 0 in sides and any(sides):
            raise Refusal(
                f"its input has {sides[0] or 'any'} rows and {sides[1] or 'any'} columns, expected both or "
                "none fixed"
            )
        fixed = tuple(sides) if all(sides) else ()
        if any(side > 2**14 for side in fixed):
            raise Refusal(f"its input is of {fixed} pixels, expected at most {2**14} a side")
        if declared[0] > 1:
            raise Refusal(f"it takes {declared[0]} images at a time, expected 1 or any number")
        return int(declared[0] == 1), (1, 2) if last else (2, 3), fixed

    def description(self, channels: int) -> dict[str, Any]:
        """Return the fields of `GraphFile` as plain values."""
        batch, layout, fixed = self._image(channels)
        inferred, stride, halo, reason = self._geometry(channels, layout, fixed)
        classes, scores_last = self._classes(inferred, fixed or FIRST)
        ending = self._maker(self._output.name, MOVING | MIXING)[0]
        if ending == "Softmax" and classes == 1:
            raise Refusal("it ends in a softmax over one class, which is 1 everywhere")
        if ending in SIGMOIDS and classes > 1:
            raise Refusal(f"it ends in a sigmoid for {classes} classes, which don't exclude each other")
        parameters = sum(math.prod(t.dims) for t in self._weights.values() if t.name in self._names)
        height, width = fixed or FIRST
        network = GraphConfig(
            classes=classes,
            channels=channels,
            parameters=max(1, parameters),
            image_last=layout == (1, 2),
            scores_last=scores_last,
            logits=ending not in ("Softmax", *SIGMOIDS),
            takes_nan=self._takes_nan(),
            batch=batch,
            side=fixed,
            reason=reason[:400],
            values=max(1, -(-inferred.peak // (height * width))),
        )
        return {"network": network.to_json(), "stride": stride, "halo": halo, "content": self._content()}

    def _geometry(
        self, channels: int, layout: tuple[int, int], fixed: tuple[int, ...]
    ) -> tuple[_Inferred, int, int, str]:
        """Return properties, stride and halo, and why no halo is exact, by two sizes unless one is fixed."""
        size = fixed or FIRST
        first = self._infer(channels, layout, size)
        self._classes(first, size)
        stride, halo, reason = self._reach(first)
        if not fixed and not reason:
            other = tuple(stride * (-(-FIRST[0] // stride) + k) for k in FURTHER)
            try:
                alike = self._reach(self._infer(channels, layout, other)) == (stride, halo, "")
            except Refusal:
                alike = False
            reason = "" if alike else "its operators depend on the size of the image"
        if fixed and not reason and (min(fixed) < 2 * halo + stride or any(side % stride for side in fixed)):
            reason = f"images of {fixed[0]} x {fixed[1]} pixels are too small for its halo of {halo}"
        if not reason:
            return first, stride, halo, ""
        stride = 1 if fixed else self._accepted(channels, layout)
        return first, stride, 0, reason

    def _accepted(self, channels: int, layout: tuple[int, int]) -> int:
        """Return the smallest step between the sizes that the graph takes, by trial."""
        for stride in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            sizes = [(stride * k, stride * (k + 1)) for k in (3, 4, 5)]
            try:
                if all(self._shows_pixels(self._infer(channels, layout, size), size) for size in sizes):
                    return stride
            except Refusal:
                continue
        raise Refusal("it takes images of one size alone but declares any; export it with that size fixed")

    @staticmethod
    def _shows_pixels(inferred: _Inferred, size: tuple[int, ...]) -> bool:
        shape = inferred.result
        return len(shape) == 4 and tuple(size) in (shape[2:], shape[1:3])

    def _reach(self, inferred: _Inferred) -> tuple[int, int, str]:
        """Return stride and halo, and why no halo is exact."""
        if inferred.reason or inferred.flow is None:
            return 1, 0, inferred.reason or "its output does not show pixels"
        stride = math.lcm(*(scale.numerator for pair in inferred.scales for scale in pair))
        if stride > MAX_STRIDE or set(inferred.flow.scale) != {Fraction(1)}:
            return 1, 0, f"its stride is {stride}, or its result has other pixels than the image"
        halo = 0
        for k in range(2):
            spans = {self._output.name: (0, stride - 1)}
            for sources, results, reach in reversed(inferred.steps):
                needed = [spans[name] for name in results if name in spans]
                if not needed:
                    continue
                span = min(a for a, _ in needed), max(b for _, b in needed)
                span = span if reach is None else reach(k, span)
                for name in sources:
                    known = spans.get(name, span)
                    spans[name] = min(known[0], span[0]), max(known[1], span[1])
            low, high = spans[self._input.name]
            halo = max(halo, -low, high - (stride - 1))
        halo = -(-halo // stride) * stride
        return (stride, halo, "") if halo <= 4096 else (1, 0, f"it reaches over {halo} pixels")

    def _infer(self, channels: int, layout: tuple[int, int], size: tuple[int, ...]) -> _Inferred:
        """Infer the shapes of all tensors for an image of a size, and the layout of its pixels in them."""
        return _Pass(self._onnx, self._version, self._weights, channels, layout, size).run(
            self._nodes, self._input.name, self._output.name
        )

    def _classes(self, inferred: _Inferred, size: tuple[int, ...]) -> tuple[int, bool]:
        """Return the number of classes, and True if they are the last axis of the result."""
        shape = inferred.result
        if not self._shows_pixels(inferred, size):
            raise Refusal(
                f"its result has the shape {shape} for an image of {tuple(size)} pixels, expected a score of "
                "each class at each of them"
            )
        last = inferred.flow.axes == (1, 2) if inferred.flow else shape[2:] != tuple(size)
        classes = shape[3] if last else shape[1]
        if shape[0] != 1 or not 1 <= classes <= MAX_CLASSES:
            raise Refusal(f"its result has {classes} classes, expected 1 to {MAX_CLASSES}")
        return classes, bool(last)

    def _takes_nan(self) -> bool:
        """Return True if the network checks the values of its image for NaN."""
        checked = [node.input[0] for node in self._nodes if node.op_type == "IsNaN"]
        return any(self._maker(name, MOVING)[1] == self._input.name for name in checked)

    def _maker(self, name: str, skipped: Collection[str]) -> tuple[str, str]:
        """Return kind and result of the operator that makes a tensor, without `skipped` ones after it."""
        makers = {result: node for node in self._nodes for result in node.output}
        while name in makers and makers[name].op_type in skipped:
            node = makers[name]
            # Max and Min may have a constant as their first input.
            computed = [i for i in node.input if i in makers] if node.op_type in ("Max", "Min") else []
            name = next(iter(computed), node.input[0])
        return (makers[name].op_type if name in makers else ""), name

    def _content(self) -> bytes:
        """Return the file with the needed nodes and weights alone."""
        onnx = self._onnx
        weights = [tensor for name, tensor in self._weights.items() if name in self._names]
        graph = onnx.helper.make_graph(self._nodes, "network", [self._input], [self._output], weights)
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self._version)])
        model.ir_version = self._model.ir_version
        return bytes(model.SerializeToString(deterministic=True))


class _Pass:
    """Shape inference through a graph for an image of one size."""

    def __init__(
        self, onnx: Any, version: int, weights: Mapping[str, Any], channels: int, layout: tuple[int, int],
        size: tuple[int, ...],
    ) -> None:  # fmt: skip
        self._onnx, self._version, self._weights = onnx, version, weights
        self._size, self._layout = size, layout
        shape = [1, channels, *size] if layout == (2, 3) else [1, *size, channels]
        self._image = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape)
        self._types: dict[str, Any] = {
            name: onnx.helper.make_tensor_type_proto(t.data_type, list(t.dims)) for name, t in weights.items()
        }
        self._known: dict[str, np.ndarray] = {
            name: onnx.numpy_helper.to_array(tensor)
            for name, tensor in weights.items() if math.prod(tensor.dims) <= MAX_KNOWN
        }  # fmt: skip
        self._flows: dict[str, Flow | None] = {}

    def run(self, nodes: list[Any], image: str, output: str) -> _Inferred:
        """Return shapes, steps and memory."""
        flow = Flow(self._layout)
        self._types[image], self._flows[image] = self._image, flow
        mixed: set[str] = set()
        steps: list[tuple[list[str], list[str], Reach | None]] = []
        scales = {flow.scale}
        unbounded: list[str] = []
        last = {name: k for k, node in enumerate(nodes) for name in node.input}
        live: dict[str, int] = {image: math.prod(self._shape(image))}
        peak = 0
        for k, node in enumerate(nodes):
            names = [name for name in node.output if name]
            moving = [name for name in node.input if name in self._flows or name in mixed]
            if self._fold(node, moving):
                continue
            self._infer_shapes(node)
            live |= {name: math.prod(self._shape(name)) for name in names}
            peak = max(peak, sum(live.values()))
            live = {name: size for name, size in live.items() if last.get(name, -1) > k or name == output}
            if not moving:
                continue
            try:
                if mixed & set(moving):
                    raise Unbounded(node.op_type)
                flow, reach = step(self._operator(node))
            except Unbounded as error:
                attention = node.op_type == "MatMul" and len(moving) == 2
                unbounded.append("attention" if attention else str(error))
                mixed.update(names)
                continue
            self._flows.update(dict.fromkeys(names, flow))
            scales.add(flow.scale)
            steps.append((moving, names, reach))
        reasons = [text for kind, text in WHOLE.items() if kind in unbounded]
        reasons += [f"its operator {kind} has no bounded reach" for kind in unbounded]
        reason = next(iter(reasons), "")
        return _Inferred(self._shape(output), self._flows.get(output), steps, scales, reason, peak)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(d.dim_value) for d in self._types[name].tensor_type.shape.dim)

    def _fold(self, node: Any, moving: list[str]) -> bool:
        """Compute a node if its result is known: a constant, a shape, or a function of these."""
        onnx = self._onnx
        if node.op_type in ("Shape", "Size") and node.input[0] in self._types:
            shape = np.array(self._shape(node.input[0]), np.int64)
            bounds = {a.name: a.i for a in node.attribute}
            chosen = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            values = [chosen if node.op_type == "Shape" else np.array(shape.prod())]
        elif moving or any(name and name not in self._known for name in node.input):
            return False
        else:
            self._check_small(node)
            evaluator = onnx.reference.ReferenceEvaluator(node)
            evaluator.opsets_[""] = self._version
            values = evaluator.run(None, {name: self._known[name] for name in node.input if name})
        for name, value in zip(node.output, map(np.asarray, values), strict=False):
            self._types[name] = onnx.helper.make_tensor_type_proto(
                onnx.helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
            )
            if value.size <= MAX_KNOWN:
                self._known[name] = value
        return True

    def _check_small(self, node: Any) -> None:
        """Refuse a constant that would grow too large when it is computed."""
        if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample"):
            inputs = [self._known[name] for name in node.input if name]
            numbers = [abs(float(v)) for a in inputs if a.dtype.kind in "iuf" for v in a.ravel()[:64]]
            if math.prod(max(1.0, n) for n in numbers if math.isfinite(n)) > 2**22:
                raise Refusal(
                    f"its operator '{node.op_type}' makes a constant that is too large (a shape bomb)"
                )

    def _infer_shapes(self, node: Any) -> None:
        """Infer and check the shapes of a node's results."""
        onnx, kind, pixels = self._onnx, node.op_type, math.prod(self._size)
        schema = onnx.defs.get_schema(kind, self._version, "")
        opsets = [onnx.helper.make_opsetid("", self._version)]
        types = {name: self._types[name] for name in node.input if name}
        data = {
            name: onnx.numpy_helper.from_array(np.asarray(self._known[name]), name)
            for name in types.keys() & self._known.keys()
        }
        try:
            outputs = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        except onnx.shape_inference.InferenceError as error:
            raise Refusal(f"the shapes of its operator '{kind}' don't fit ({error})") from error
        for name in filter(None, node.output):
            known = name in outputs and outputs[name].HasField("tensor_type")
            tensor = outputs[name].tensor_type if known else None
            if (
                tensor is None
                or not tensor.HasField("shape")
                or any(d.dim_value < 1 for d in tensor.shape.dim)
            ):
                raise Refusal(f"the shape of '{name[:80]}' ({kind}) can't be worked out")
            self._types[name] = outputs[name]
            shape = self._shape(name)
            if len(shape) > MAX_RANK or math.prod(shape) > MAX_VALUES * pixels + 2**24:
                raise Refusal(
                    f"'{name[:80]}' ({kind}) has {math.prod(shape)} values for {pixels} pixels, which is a "
                    "shape bomb"
                )
        self._check_fit(node)

    def _check_fit(self, node: Any) -> None:
        """Refuse sizes that shape inference accepts and a runtime would not."""
        first, result = self._shape(node.input[0]) if node.input[0] else (), self._shape(node.output[0])
        kind, fits = node.op_type, True
        if kind == "Reshape":
            fits = math.prod(first) == math.prod(result)
        elif kind in ("Conv", "ConvTranspose"):
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            kernel = self._shape(node.input[1])
            fits = first[1] == (kernel[1] * group if kind == "Conv" else kernel[0])
        if not fits:
            raise Refusal(
                f"its operator '{kind}' does not fit an image of {self._size[0]} x {self._size[1]} pixels; "
                "export it with height and width fixed if it is made for one size"
            )

    def _operator(self, node: Any) -> Operator:
        attributes = {a.name: self._onnx.helper.get_attribute_value(a) for a in node.attribute}
        return Operator(
            node.op_type,
            {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in attributes.items()},
            [self._flows.get(name) for name in node.input],
            [self._known.get(name) for name in node.input],
            [self._shape(name) if name else () for name in node.input],
            self._shape(node.output[0]),
            self._version,
        )
