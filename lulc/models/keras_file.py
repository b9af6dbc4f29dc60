"""Conversion of imported Keras models (``.keras``) to ONNX graphs, without running Keras.

The configuration is read as JSON and the arrays as plain numbers. Each known layer becomes ONNX operators;
other layers and unknown arguments are refused.

Tensors of four axes are (n, channel, y, x) in the graph, as in ONNX; others are as in Keras.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lulc.models.archive import Refusal, read_parts
from lulc.models.onnx_nodes import OnnxNodes

MAX_CALLS = 20_000
"""Most calls of layers, since models within models may multiply them."""

UNUSED = re.compile(
    "name|trainable|dtype|seed|rate|noise_shape|momentum|renorm_.*|synchronized|stddev|l1|l2|autocast|lora_.*|"
    "quantization_config|sparse|ragged|optional|.*_(initializer|regularizer|constraint)"
)
"""Arguments without effect on a trained network."""

_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus", "softsign": "Softsign",
    "exponential": "Exp", "exp": "Exp", "absolute": "Abs", "negative": "Neg", "sqrt": "Sqrt", "selu": "Selu",
    "hard_silu": "HardSwish", "hard_swish": "HardSwish",
}  # fmt: skip
"""Functions of one number that are a single operator."""

_BINARY = {"Add": "Sum", "Average": "Mean", "Maximum": "Max", "Minimum": "Min", "Multiply": "Mul",
           "Subtract": "Sub", "Divide": "Div", "TrueDivide": "Div"}  # fmt: skip


class Value(NamedTuple):
    """Tensor of the graph: its name, and the number of its axes."""

    name: str
    rank: int = 4


class _Layer:
    """Layer with its arguments, each of which is used or refused, and its arrays in order."""

    def __init__(self, entry: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        self.kind = str(entry["class_name"])
        origin, registered = str(entry.get("module") or ""), entry.get("registered_name") or self.kind
        if origin.partition(".")[0] != "keras" or registered != self.kind:
            raise Refusal(
                f"its layer '{self.kind[:80]}' ({registered[:80]}) is none of Keras, so code would decide"
            )
        self.arguments = {k: v for k, v in dict(entry["config"]).items() if not UNUSED.fullmatch(k)}
        self._arrays = list(arrays)

    def take(self, name: str, default: Any = None) -> Any:
        return self.arguments.pop(name, default)

    def only(self, name: str, *expected: Any) -> None:
        """Refuse any value of an argument but the expected ones, of which the first is the default."""
        value = self.take(name, expected[0])
        if value not in expected:
            raise self.refusal(f"{name} = {str(value)[:80]}")

    def weight(self, *axes: int) -> np.ndarray:
        """Return the next array, transposed to `axes`."""
        if not self._arrays or self._arrays[0].ndim != len(axes):
            raise Refusal(f"the arrays of its layer '{self.kind}' are not those that such a layer has")
        return np.ascontiguousarray(self._arrays.pop(0).transpose(axes))

    def pair(self, name: str, default: int = 1) -> list[int]:
        value = self.take(name, default)
        return [int(v) for v in value] if isinstance(value, list) else [int(value)] * 2

    def check_used(self) -> None:
        if self.arguments or self._arrays:
            raise self.refusal(", ".join(sorted(self.arguments)) or "more arrays than it has")

    def refusal(self, what: str) -> Refusal:
        return Refusal(f"its layer '{self.kind}' has {what}, which is not supported")


class KerasGraph(OnnxNodes):
    """Conversion of a Keras model to an ONNX graph.

    Raises Refusal if the file holds anything but known layers and their arrays.
    """

    def __init__(self, onnx: Any, content: bytes) -> None:
        super().__init__(onnx)
        self._calls = 0
        version, self._config, self._arrays = read_parts(content)
        if not version.startswith("3."):
            raise Refusal(f"Keras {version[:20]} wrote it, expected Keras 3: open it there and save it again")

    def model(self, output: str) -> Any:
        """Return the model from float32 (n, y, x, channel) to (n, y, x, class) of the layer `output`."""
        shape = self._input_shape()
        image = Value(self._add("Transpose", "image", perm=[0, 3, 1, 2]))
        results = self._run(self._config, "", [image])
        listed = self._config["config"].get("output_layers")
        names = [str(name) for name, _, _ in _histories(listed)] if listed else [""]
        if (output and output not in names) or (not output and len(results) != 1):
            raise Refusal(f"it has the outputs {', '.join(names)}, expected one; name it with --output")
        chosen = results[names.index(output) if output else 0]
        if chosen.rank != 4:
            raise Refusal("its output is no image of scores")
        self._add("Transpose", chosen.name, to="scores", perm=[0, 2, 3, 1])
        return self._model("network", {"image": shape}, {"scores": ["n", None, None, None]})

    def _input_shape(self) -> list[Any]:
        layers = self._config["config"]["layers"]
        shapes = [one["config"].get("batch_shape") for one in layers if one["class_name"] == "InputLayer"]
        if len(shapes) != 1 or len(shapes[0] or ()) != 4:
            raise Refusal(f"it has inputs of the shapes {shapes[:5]}, expected one image (n, y, x, channel)")
        names = ("n", "height", "width", "channel")
        return [name if side is None else int(side) for name, side in zip(names, shapes[0], strict=True)]

    def _run(self, entry: Mapping[str, Any], path: str, inputs: list[Value]) -> list[Value]:
        """Append a model, which may be a layer of another one; `path` is that of its arrays."""
        kind = _Layer({**entry, "config": {}}).kind
        run = {"Functional": self._functional, "Sequential": self._sequential}.get(kind)
        if run is None:
            raise Refusal(f"it is of the class '{kind[:80]}', expected a functional or sequential model")
        return run(entry["config"], path, inputs)

    def _sequential(self, config: Mapping[str, Any], path: str, inputs: list[Value]) -> list[Value]:
        layers = [entry for entry in config["layers"] if entry["class_name"] != "InputLayer"]
        for entry, layer_path in zip(layers, _paths(layers, path), strict=True):
            inputs = self._apply(entry, layer_path, list(inputs))
        return inputs

    def _functional(self, config: Mapping[str, Any], path: str, inputs: list[Value]) -> list[Value]:
        layers = config["layers"]
        paths = dict(zip((str(entry["name"]) for entry in layers), _paths(layers, path), strict=True))
        names = [name for name, _, _ in _histories(config["input_layers"])]
        values = {(name, 0, 0): value for name, value in zip(names, inputs, strict=True)}
        waiting = [(e, n, node) for e in layers for n, node in enumerate(e.get("inbound_nodes") or ())]
        while waiting:
            later = []
            for entry, n, node in waiting:
                arguments = [_reference(item) for item in _flat(node["args"])]
                if all(item in values for item in arguments if isinstance(item, tuple)):
                    _check_call(entry, node)
                    tensors = [values[item] if isinstance(item, tuple) else item for item in arguments]
                    name = str(entry["name"])
                    results = self._apply(entry, paths[name], tensors)
                    values |= {(name, n, k): value for k, value in enumerate(results)}
                else:
                    later.append((entry, n, node))
            if len(later) == len(waiting):
                raise Refusal("its layers depend on each other")
            waiting = later
        return [values[output] for output in _histories(config["output_layers"])]

    def _apply(self, entry: Mapping[str, Any], path: str, inputs: list[Any]) -> list[Value]:
        """Append a layer, or a model within the model."""
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise Refusal(f"it makes more than {MAX_CALLS} calls of layers")
        if entry["class_name"] in ("Functional", "Sequential"):
            return self._run(entry, path, inputs)
        arrays: list[np.ndarray] = []
        while path and (name := f"{path}vars/{len(arrays)}") in self._arrays:
            arrays.append(self._arrays[name])
        layer = _Layer(entry, arrays)
        if not all(isinstance(tensor, (Value, int, float)) for tensor in inputs) or not inputs:
            raise layer.refusal("inputs that are no tensors")
        return [self._used(layer, inputs)]

    def _used(self, layer: _Layer, inputs: list[Any]) -> Value:
        """Append a layer, all of whose arguments and arrays must be used."""
        result = self._layer(layer, inputs)
        layer.check_used()
        return result

    def _layer(self, layer: _Layer, inputs: list[Any]) -> Value:
        if layer.kind in _BINARY:
            return self._merge(layer, inputs)
        if layer.kind == "Concatenate":
            axis = _axis(layer.take("axis", -1), inputs[0].rank)
            return Value(self._add("Concat", *(v.name for v in inputs), axis=axis), inputs[0].rank)
        if len(inputs) != 1 or not isinstance(inputs[0], Value):
            raise layer.refusal(f"{len(inputs)} inputs")
        if layer.kind in _IGNORED:
            layer.take("data_format")
            return inputs[0]
        if layer.kind in _LAYERS:
            layer.only("data_format", "channels_last", None)
            return _LAYERS[layer.kind](self, layer, inputs[0])
        function = re.sub("(?<=[a-z])([A-Z])", r"_\1", layer.kind).lower().replace("re_lu", "relu")
        return self._activate(function, inputs[0], layer)

    def _merge(self, layer: _Layer, inputs: list[Any]) -> Value:
        rank = max(v.rank for v in inputs if isinstance(v, Value))
        kind = _BINARY[layer.kind]
        names = [
            np.float32(v) if not isinstance(v, Value)
            else self._add("Unsqueeze", v.name, np.array([2, 3])) if (v.rank, rank) == (2, 4) else v.name
            for v in inputs
        ]  # fmt: skip
        if any(isinstance(v, Value) and v.rank not in (rank, 2) for v in inputs):
            raise layer.refusal("inputs of different numbers of axes")
        if kind not in ("Mul", "Sub", "Div"):
            return Value(self._add(kind, *names), rank)
        return Value(str(functools.reduce(lambda one, other: self._add(kind, one, other), names)), rank)

    def _activate(self, function: Any, x: Value, layer: _Layer) -> Value:
        """Append an activation, given by name or as a layer."""
        if function is None or function == "linear":
            return x
        if isinstance(function, dict):
            return self._used(_Layer(function), [x])
        name, add = x.name, self._add
        if function in _UNARY:
            return Value(add(_UNARY[function], name), x.rank)
        if function in ("softmax", "log_softmax"):
            kind = "Softmax" if function == "softmax" else "LogSoftmax"
            return Value(add(kind, name, axis=_axis(layer.take("axis", -1), x.rank)), x.rank)
        if function == "leaky_relu":
            return Value(add("LeakyRelu", name, alpha=float(layer.take("negative_slope", 0.2))), x.rank)
        if function == "elu":
            return Value(add("Elu", name, alpha=float(layer.take("alpha", 1.0))), x.rank)
        if function == "hard_sigmoid":
            return Value(add("HardSigmoid", name, alpha=1 / 6, beta=0.5), x.rank)
        if function == "relu6":
            return Value(add("Clip", name, np.float32(0), np.float32(6)), x.rank)
        if function in ("silu", "swish"):
            return Value(add("Mul", name, add("Sigmoid", name)), x.rank)
        if function == "mish":
            return Value(add("Mul", name, add("Tanh", add("Softplus", name))), x.rank)
        if function == "gelu":
            layer.only("approximate", False)
            error = add("Erf", add("Mul", name, np.float32(0.5**0.5)))
            half = add("Mul", name, np.float32(0.5))
            return Value(add("Mul", half, add("Add", error, np.float32(1))), x.rank)
        raise Refusal(
            f"it has the layer or activation '{str(function)[:80]}', which is not among those that are read"
        )

    def _affine(self, x: Value, less: Any, times: Any, plus: Any) -> Value:
        """Append (x - less) * times + plus; each is None, one number, or one for each channel."""
        name = x.name
        for kind, value in (("Sub", less), ("Mul", times), ("Add", plus)):
            if value is not None:
                array = np.asarray(value, np.float32)
                shape = (-1, 1, 1) if x.rank == 4 and array.ndim == 1 else array.shape
                name = self._add(kind, name, array.reshape(shape))
        return Value(name, x.rank)

    def _finish(self, name: str, rank: int, layer: _Layer) -> Value:
        """Append bias and activation of a layer."""
        bias = layer.weight(0) if layer.take("use_bias", True) else None
        return self._activate(
            layer.take("activation"), self._affine(Value(name, rank), None, None, bias), layer
        )

    def _convolve(self, layer: _Layer, x: Value) -> Value:
        groups = int(layer.take("groups", 1))
        geometry = self._window(layer, layer.pair("kernel_size"), layer.pair("strides"))
        depth = layer.take("depth_multiplier")
        layer.take("filters")
        name = x.name
        if layer.kind != "Conv2D":
            kernel = layer.weight(2, 3, 0, 1)
            groups = len(kernel)
            kernel = kernel.reshape(-1, 1, *kernel.shape[2:])
            name = self._add("Conv", name, kernel, group=groups, **geometry)
            groups, geometry = 1, {}
        if layer.kind != "DepthwiseConv2D":
            name = self._add("Conv", name, layer.weight(3, 2, 0, 1), group=groups, **geometry)
        if depth is not None and layer.kind == "Conv2D":
            raise layer.refusal("depth_multiplier")
        return self._finish(name, 4, layer)

    def _window(self, layer: _Layer, kernel: list[int], strides: list[int]) -> dict[str, Any]:
        """Return the attributes of a convolution or pooling."""
        dilations, padding = layer.pair("dilation_rate"), layer.take("padding", "valid")
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
        if dilations != [1, 1]:
            attributes["dilations"] = dilations
        if padding == "same" and strides == [1, 1]:
            attributes["pads"] = _halves([d * (k - 1) for d, k in zip(dilations, kernel, strict=True)])
        elif padding == "same":
            attributes["auto_pad"] = "SAME_UPPER"
        elif padding != "valid":
            raise layer.refusal(f"padding = {str(padding)[:80]}")
        return attributes

    def _transposed(self, layer: _Layer, x: Value) -> Value:
        layer.only("output_padding", None)
        layer.only("dilation_rate", [1, 1], 1)
        layer.only("groups", 1)
        layer.take("filters")
        kernel, strides = layer.pair("kernel_size"), layer.pair("strides")
        same = layer.take("padding", "valid") == "same"
        name = self._add(
            "ConvTranspose", x.name, layer.weight(3, 2, 0, 1), strides=strides,
            pads=_halves([max(k - s, 0) if same else 0 for k, s in zip(kernel, strides, strict=True)]),
            output_padding=[max(s - k, 0) for k, s in zip(kernel, strides, strict=True)],
        )  # fmt: skip
        return self._finish(name, 4, layer)

    def _pool(self, layer: _Layer, x: Value) -> Value:
        kernel = layer.pair("pool_size", 2)
        strides = layer.pair("strides") if layer.arguments.get("strides") else kernel
        layer.take("strides")
        window = self._window(layer, kernel, strides)
        return Value(self._add(layer.kind.removesuffix("ing2D"), x.name, **window))

    def _pool_all(self, layer: _Layer, x: Value) -> Value:
        name = self._add(layer.kind.removesuffix("ing2D"), x.name)
        return Value(name) if layer.take("keepdims", False) else Value(self._add("Flatten", name), 2)

    def _scaling(self, layer: _Layer, x: Value) -> list[np.ndarray | None]:
        """Return gamma and beta of a normalisation of channels, None for one that it lacks."""
        self._check_axis(layer, x)
        flags = [layer.take("scale", True), layer.take("center", True)]
        return [layer.weight(0) if flag else None for flag in flags]

    def _batch_norm(self, layer: _Layer, x: Value) -> Value:
        gamma, beta = self._scaling(layer, x)
        layer.only("renorm", False)
        mean, variance = layer.weight(0), layer.weight(0).astype(float)
        factor = (1 if gamma is None else gamma) / np.sqrt(variance + layer.take("epsilon", 1e-3))
        return self._affine(x, mean, factor, beta)

    def _layer_norm(self, layer: _Layer, x: Value) -> Value:
        gamma, beta = self._scaling(layer, x)
        layer.only("rms_scaling", False)
        ones = np.ones(self._width(layer, gamma, beta), np.float32)
        arrays = [ones if gamma is None else gamma, *([] if beta is None else [beta])]
        epsilon = float(layer.take("epsilon", 1e-3))
        name = self._add("LayerNormalization", self._last(x), *arrays, axis=-1, epsilon=epsilon)
        return self._second(name, x.rank)

    def _last(self, x: Value) -> str:
        """Return a tensor with the axes of Keras, whose images have their channels last."""
        return self._add("Transpose", x.name, perm=[0, 2, 3, 1]) if x.rank == 4 else x.name

    def _second(self, name: str, rank: int) -> Value:
        """Return a tensor of Keras with the axes of ONNX, whose images have their channels second."""
        return Value(self._add("Transpose", name, perm=[0, 3, 1, 2]) if rank == 4 else name, rank)

    @staticmethod
    def _width(layer: _Layer, *arrays: np.ndarray | None) -> int:
        """Return the number of channels by the arrays of a layer."""
        widths = [len(a) for a in arrays if a is not None]
        if not widths:
            raise layer.refusal("neither scale nor center")
        return widths[0]

    def _group_norm(self, layer: _Layer, x: Value) -> Value:
        gamma, beta = self._scaling(layer, x)
        groups = int(layer.take("groups", 32))
        groups = self._width(layer, gamma, beta) if groups == -1 else groups
        if x.rank != 4 or not 1 <= groups <= 2**16:
            raise layer.refusal(f"{groups} groups, or no image as input")
        grouped = self._add("Reshape", x.name, np.array([0, groups, -1]))
        ones, epsilon = np.ones(groups, np.float32), float(layer.take("epsilon", 1e-3))
        name = self._add("InstanceNormalization", grouped, ones, 0 * ones, epsilon=epsilon)
        return self._affine(Value(self._add("Reshape", name, self._add("Shape", x.name))), None, gamma, beta)

    def _check_axis(self, layer: _Layer, x: Value) -> None:
        axis = layer.take("axis", -1)
        axes = [int(a) for a in (axis if isinstance(axis, list) else [axis])]
        if axes not in ([-1], [x.rank - 1]):
            raise layer.refusal(f"axis = {axes[:8]}")

    def _normalise(self, layer: _Layer, x: Value) -> Value:
        self._check_axis(layer, x)
        moments = [layer.take(name) for name in ("mean", "variance")]
        layer.only("invert", False)
        mean, variance = (layer.weight(0) if v is None else np.ravel(v) for v in moments)
        return self._affine(x, mean, 1 / np.maximum(np.sqrt(variance), 1e-7), None)

    def _rescale(self, layer: _Layer, x: Value) -> Value:
        return self._affine(x, None, layer.take("scale"), layer.take("offset", 0.0))

    def _enlarge(self, layer: _Layer, x: Value) -> Value:
        attributes = {"mode": "linear"}
        mode = layer.take("interpolation", "nearest")
        if mode == "nearest":
            attributes = {
                "mode": mode,
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            }
        elif mode != "bilinear":
            raise layer.refusal(f"interpolation = {str(mode)[:80]}")
        scales = np.array([1, 1, *layer.pair("size", 2)], np.float32)
        return Value(self._add("Resize", x.name, "", scales, **attributes))

    def _pad(self, layer: _Layer, x: Value) -> Value:
        (top, bottom), (left, right) = layer.take("padding")
        return Value(self._add("Pad", x.name, np.array([0, 0, top, left, 0, 0, bottom, right])))

    def _crop(self, layer: _Layer, x: Value) -> Value:
        (top, bottom), (left, right) = layer.take("cropping")
        ends = np.array([-end if end else 2**31 - 1 for end in (bottom, right)])
        return Value(self._add("Slice", x.name, np.array([top, left]), ends, np.array([2, 3])))

    def _dense(self, layer: _Layer, x: Value) -> Value:
        layer.take("units")
        kernel = layer.weight(0, 1)
        if x.rank == 4:
            name = self._add("Conv", x.name, np.ascontiguousarray(kernel.T)[:, :, None, None])
        else:
            name = self._add("MatMul", x.name, kernel)
        return self._finish(name, x.rank, layer)

    def _reshape(self, layer: _Layer, x: Value) -> Value:
        target = [int(v) for v in layer.take("target_shape")]
        return self._second(self._add("Reshape", self._last(x), np.array([0, *target])), 1 + len(target))

    def _relu(self, layer: _Layer, x: Value) -> Value:
        layer.only("threshold", 0.0, None)
        most, slope = layer.take("max_value"), float(layer.take("negative_slope", 0.0) or 0.0)
        name = self._add("LeakyRelu", x.name, alpha=slope) if slope else self._add("Relu", x.name)
        return Value(name if most is None else self._add("Min", name, np.float32(most)), x.rank)

    def _prelu(self, layer: _Layer, x: Value) -> Value:
        layer.only("shared_axes", [1, 2], [1, 2])
        return Value(self._add("PRelu", x.name, layer.weight(2, 0, 1)))

    def _named(self, layer: _Layer, x: Value) -> Value:
        return self._activate(layer.take("activation"), x, layer)


def _paths(layers: Sequence[Any], path: str) -> list[str]:
    """Return the path of each layer's arrays in the file: its class in snake case, numbered by Keras."""
    counts: dict[str, int] = {}
    paths = []
    for entry in layers:
        if ".ops" in str(entry.get("module")):
            paths.append("")
            continue
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", str(entry["class_name"])))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        counts[name] = counts.get(name, -1) + 1
        paths.append(f"{path}layers/{name}" + (f"_{counts[name]}" if counts[name] else "") + "/")
    return paths


def _halves(pads: list[int]) -> list[int]:
    """Return padding before and after each axis from their sums; the larger half comes after."""
    return [*(pad // 2 for pad in pads), *(pad - pad // 2 for pad in pads)]


def _axis(axis: Any, rank: int) -> int:
    """Return an axis of Keras in the graph, where images have their channels second."""
    number = int(axis) % rank
    return (0, 2, 3, 1)[number] if rank == 4 else number


def _flat(arguments: Any) -> list[Any]:
    """Return the arguments of a call with those in nested lists."""
    return [one for item in arguments for one in (_flat(item) if isinstance(item, list) else [item])]


def _reference(item: Any) -> Any:
    """Return (layer, call, output) for an argument that is a tensor; other arguments unchanged."""
    if isinstance(item, dict) and item.get("class_name") == "__keras_tensor__":
        layer, call, output = item["config"]["keras_history"]
        return str(layer), int(call), int(output)
    return item


def _histories(ports: Any) -> list[tuple[str, int, int]]:
    """Return (layer, call, output) of the inputs or outputs of a model; a single one is in no list."""
    listed = list(ports.values()) if isinstance(ports, dict) else ports
    listed = [listed] if isinstance(listed[0], str) else listed
    return [(str(layer), int(call), int(output)) for layer, call, output in listed]


def _check_call(entry: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    keywords = sorted(k for k, v in (node.get("kwargs") or {}).items() if v not in (None, False))
    if keywords:
        raise Refusal(f"its layer '{str(entry['name'])[:80]}' is called with {', '.join(keywords)[:80]}")


_LAYERS: Mapping[str, Callable[[KerasGraph, _Layer, Value], Value]] = {
    "Activation": KerasGraph._named, "AveragePooling2D": KerasGraph._pool,
    "BatchNormalization": KerasGraph._batch_norm, "Conv2D": KerasGraph._convolve,
    "Conv2DTranspose": KerasGraph._transposed, "Cropping2D": KerasGraph._crop, "Dense": KerasGraph._dense,
    "DepthwiseConv2D": KerasGraph._convolve, "GlobalAveragePooling2D": KerasGraph._pool_all,
    "GlobalMaxPooling2D": KerasGraph._pool_all, "GroupNormalization": KerasGraph._group_norm,
    "LayerNormalization": KerasGraph._layer_norm, "MaxPooling2D": KerasGraph._pool,
    "Normalization": KerasGraph._normalise, "PReLU": KerasGraph._prelu, "ReLU": KerasGraph._relu,
    "Rescaling": KerasGraph._rescale, "Reshape": KerasGraph._reshape,
    "SeparableConv2D": KerasGraph._convolve, "UpSampling2D": KerasGraph._enlarge,
    "ZeroPadding2D": KerasGraph._pad,
}  # fmt: skip
"""Supported layers with one input, beside activations."""

_IGNORED = frozenset({
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
    "SpatialDropout2D",
})  # fmt: skip
"""Layers without effect on predictions."""
