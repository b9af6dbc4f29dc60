"""Imported networks as engines: ONNX graphs on OpenVINO or onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.packages import require
from lulc.core.schema import InputError
from lulc.engines.openvino_graph import compile_graph, load_openvino, openvino_version
from lulc.models.card import ModelCard
from lulc.models.config import GraphConfig
from lulc.models.onnx_file import read_graph, refused

Run = Callable[[np.ndarray], np.ndarray]
"""float32 images to a result, both in the layout of the graph."""

ONNXRUNTIME, CUDA = "onnxruntime", "onnxruntime-cuda"
"""Engines for imported networks alone: on the processor, and on an NVIDIA GPU."""

_PROVIDER = "CUDAExecutionProvider"


def has_cuda() -> bool:
    """Return True if an onnxruntime for NVIDIA GPUs is installed."""
    if not importlib.util.find_spec("onnxruntime"):
        return False
    import onnxruntime

    return _PROVIDER in onnxruntime.get_available_providers()


def open_graph(
    path: Path, card: ModelCard, shape: tuple[int, int, int], runtime: str
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    """Return the network of a file as a function, and the versions and device that change its results.

    The function maps float32 (n, y, x, band) in physical units, NaN = no data, to float32 (n, y, x, class).
    Raises InputError if the file is refused, is not that of its card, or the runtime can't run it.

    Parameters
    ----------
    shape
        (n, y, x) of every call.
    runtime
        ``openvino``, ``onnxruntime`` or ``onnxruntime-cuda``.
    """
    network = card.network
    assert isinstance(network, GraphConfig)
    content = check_graph(path, card)
    count = network.batch or shape[0]
    sides = network.side or shape[1:]
    layout = (count, *sides, network.channels) if network.image_last else (count, network.channels, *sides)
    try:
        run, identity = _RUNTIMES[runtime](content, layout)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"cannot run '{path}' with the engine '{runtime}', since that refuses it ({str(error)[:300]})",
            f"Type --engine {ONNXRUNTIME if runtime == 'openvino' else 'openvino'}.",
        ) from error
    mean, std = (np.asarray(values, np.float32) for values in (card.statistics.mean, card.statistics.std))

    def predict(x: np.ndarray) -> np.ndarray:
        image = (x - mean) / std
        if not network.takes_nan:
            image = np.nan_to_num(image, copy=False, nan=0.0)
        height, width = image.shape[1:3]
        if tuple(sides) != (height, width):
            padding = [(0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0)]
            image = np.pad(image, padding, constant_values=np.nan if network.takes_nan else 0.0)
        image = image if network.image_last else np.moveaxis(image, -1, 1)
        images = np.ascontiguousarray(image, np.float32)
        results = [run(images[k : k + count]) for k in range(0, len(images), count)]
        y = np.concatenate(results) if len(results) > 1 else results[0]
        y = (y if network.scores_last else np.moveaxis(y, 1, -1))[:, :height, :width]
        return _activated(y, network) if network.logits else np.asarray(y, np.float32)

    return predict, {"precision": "float32", **identity}


def check_graph(path: Path, card: ModelCard) -> bytes:
    """Return the checked content of an imported network; raises InputError if it is not that of its card."""
    graph = read_graph(path, len(card.channels), sha256=card.sha256)
    if (graph.network, graph.stride, graph.halo) != (card.network, card.stride, card.halo):
        raise refused(path, "it is another network than its card says")
    return graph.content


def _activated(logits: np.ndarray, network: GraphConfig) -> np.ndarray:
    if network.activation == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _openvino(content: bytes, shape: tuple[int, ...]) -> tuple[Run, dict[str, str]]:
    openvino = load_openvino()
    model = openvino.Core().read_model(content, b"")
    model.reshape(list(shape))
    compiled = compile_graph(model)

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled(images)[0], np.float32)

    return run, {"openvino": openvino_version()}


def _onnxruntime(provider: str, content: bytes, shape: tuple[int, ...]) -> tuple[Run, dict[str, str]]:
    """Open a graph with one provider, never with a substitute, whose digits would differ."""
    require(["onnxruntime"], "run the network with this engine", "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if provider not in onnxruntime.get_available_providers():
        raise _no_cuda("the installed onnxruntime computes on the processor alone")
    # Convolutions in TensorFloat-32 would give other digits on a GPU.
    settings = {"use_tf32": "0"} if provider == _PROVIDER else {}
    try:
        session = onnxruntime.InferenceSession(content, options, [provider], [settings])
    except Exception as error:  # its errors have no common base
        raise RuntimeError(str(error)) from error
    if provider not in session.get_providers():
        raise _no_cuda("onnxruntime finds no driver or no CUDA libraries")
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: images})[0], np.float32)

    device = provider.removesuffix("ExecutionProvider")
    return run, {"onnxruntime": str(onnxruntime.__version__), "device": device}


def _no_cuda(reason: str) -> InputError:
    return InputError(
        f"cannot run the network with the engine '{CUDA}', since {reason}",
        "In a fresh environment type: pip install '.[onnx-gpu]'. Or type --engine onnxruntime.",
    )


_RUNTIMES: dict[str, Callable[[bytes, tuple[int, ...]], tuple[Run, dict[str, Any]]]] = {
    "openvino": _openvino,
    ONNXRUNTIME: partial(_onnxruntime, "CPUExecutionProvider"),
    CUDA: partial(_onnxruntime, _PROVIDER),
}
