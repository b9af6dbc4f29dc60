"""Writer of ONNX graphs, node by node."""

from __future__ import annotations

from typing import Any

import numpy as np

OPSET, IR_VERSION = 17, 8
"""Versions of operators and file format, which runtimes support since 2022."""


class OnnxNodes:
    """Nodes and constants of a graph; tensors are given by name."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def _add(self, kind: str, *inputs: str | np.ndarray | np.float32, to: str = "", **attributes: Any) -> str:
        """Append a node and return its output; arrays among the inputs become constants."""
        names = [i if isinstance(i, str) else self._constant(i) for i in inputs]
        to = to or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, names, [to], to, **attributes))
        return to

    def _constant(self, value: np.ndarray | np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def _model(self, name: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> Any:
        """Return the model; `inputs` and `outputs` are shapes of float32 tensors by name."""
        helper, number = self._onnx.helper, self._onnx.TensorProto.FLOAT
        ports = [
            [helper.make_tensor_value_info(port, number, shape) for port, shape in shapes.items()]
            for shapes in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, name, *ports, list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return model
