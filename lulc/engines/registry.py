"""Engines: a network as a function from float32 (n, y, x, band) to float32 (n, y, x, class).

The input is in physical units with NaN in every channel of invalid pixels, in windows of one static shape.
The packages of an engine are imported when it is built.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lulc.core.buffers import Buffers
from lulc.core.schema import InputError
from lulc.engines import quantization
from lulc.engines.graphs import CUDA, ONNXRUNTIME, has_cuda, open_graph
from lulc.engines.openvino_graph import build_graph, compile_graph, load_openvino, openvino_version
from lulc.engines.pixels import open_pixel_model
from lulc.models.card import ModelCard
from lulc.models.config import GraphConfig, NetworkConfig, PixelConfig
from lulc.models.finishing import Finish
from lulc.models.weights import load_model, read_arrays

logger = logging.getLogger("lulc")

MIN_AGREEMENT = {"openvino-int8": 0.97, "keras-float16": 0.995}
"""Least fraction of pixels on which an engine of lower precision agrees with float32."""

NUMPY = "numpy"
"""Engine of models of single pixels."""

GPU_PROCESS = 3e9
"""Memory in bytes for the driver of a GPU and the framework in a process; estimated."""

Shape = NetworkConfig | PixelConfig | GraphConfig
"""Shape of a model."""

Network = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to float32 (n, y, x, class)."""


class Footprint(NamedTuple):
    """Measured memory of an engine in bytes: of the process, and per pixel without input and result."""

    fixed: float
    per_pixel: float


@dataclass(frozen=True)
class Engine:
    """Network ready to run.

    Parameters
    ----------
    name
        Name of the engine, never ``auto``.
    shape
        (n, y, x) of every call.
    identity
        Precision, versions and whatever else changes the results beside weights and shape; JSON-ready.
    function
        The network.
    """

    name: str
    shape: tuple[int, int, int]
    identity: dict[str, str]
    function: Network

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the probabilities of a batch, float32 (n, y, x, class)."""
        return self.function(x)


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """Arguments for building an engine.

    Parameters
    ----------
    path, card
        Weights file and its card, which holds the statistics for legacy files, too.
    shape
        (n, y, x) of every call.
    samples
        Function that yields windows of the mosaic, float32 (y, x, band), NaN = invalid, for calibration.
    min_agreement
        Least fraction of pixels on which an engine of lower precision agrees with float32; None by default.
    finish
        Computation of the map's bands from probabilities, for engines of Keras alone.
    """

    path: Path
    card: ModelCard
    shape: tuple[int, int, int]
    samples: Callable[[], Iterator[np.ndarray]] = lambda: iter(())
    min_agreement: float | None = None
    finish: Finish | None = None


def choose_engine(name: str, devices: Path = Path("/dev"), *, networks: Sequence[Shape] = ()) -> str:
    """Return the name of the engine; for ``auto`` the fastest one on this machine that computes exactly.

    With an NVIDIA GPU that is Keras, otherwise OpenVINO if it is installed. For imported networks it is
    onnxruntime on the GPU or if OpenVINO is not installed; for models of single pixels numpy.

    Raises InputError if there is no such engine, or it does not run these models.

    Parameters
    ----------
    devices
        Folder of the device files.
    networks
        Shapes of the models that it must run.
    """
    if name != "auto" and name not in _RUNS:
        raise InputError(
            f"cannot run the network with the engine '{name}', expected one of {', '.join(_RUNS)}",
            "Type --engine auto.",
        )
    kinds = {type(network) for network in networks} or {NetworkConfig}
    fitting = [engine for engine, known in _RUNS.items() if kinds <= known]
    if not fitting or name not in ("auto", *fitting):
        models = " beside ".join(text for kind, text in _KINDS.items() if kind in kinds)
        raise InputError(
            f"cannot run {models} with the engine '{name}', expected {' or '.join(fitting) or 'one kind'}",
            "Type --engine auto" + ("." if fitting else ", and name models of one kind with --ensemble."),
        )
    return _fastest(fitting, devices) if name == "auto" else name


def _fastest(fitting: Sequence[str], devices: Path) -> str:
    """Return the engine for this machine, without loading a framework."""
    # Device files have any number, since a batch system hides the GPUs of other jobs.
    gpus = sorted(devices.glob("nvidia[0-9]*"))
    reason = "CUDA_VISIBLE_DEVICES hides all GPUs" if gpus else f"there is no NVIDIA GPU in {devices}"
    order = [name for name in ("openvino", ONNXRUNTIME) if importlib.util.find_spec(name)]
    if gpus and not _hidden():
        reason = f"there is an NVIDIA GPU ({gpus[0]})"
        order = ["keras", *([CUDA] if CUDA in fitting and has_cuda() else []), *order]
    elif "openvino" not in order:
        reason += ", and OpenVINO is not installed"
    chosen = next(name for name in (*order, "keras", NUMPY, "openvino") if name in fitting)
    logger.info("engine %s, since %s", chosen, reason)
    return chosen


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Return True if this process sees an NVIDIA GPU, without loading a framework."""
    return any(devices.glob("nvidia[0-9]*")) and not _hidden()


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")


def budget_of(name: str) -> float:
    """Return the default memory budget in gigabytes of a process with the engine `name`."""
    return 8.0 if _on_gpu(name) else 2.0


def readers_of(name: str) -> int:
    """Return the number of threads that read windows: one is slower than a GPU."""
    return 2 if _on_gpu(name) else 1


def shared_of(name: str) -> float:
    """Return the bytes of a footprint that all networks of a process share."""
    return GPU_PROCESS if _on_gpu(name) else 0.0


def _on_gpu(name: str) -> bool:
    return name in _ON_GPU and has_gpu()


def footprint(name: str, network: Shape) -> Footprint:
    """Return the memory of the engine `name` for a network, to plan windows before it is built."""
    chosen = choose_engine(name, networks=[network])
    if isinstance(network, GraphConfig):
        return _graph_footprint(network, GPU_PROCESS if chosen == CUDA else 0.0)
    return _ENGINES[chosen][1](network)


def build_engine(name: str, request: EngineRequest) -> Engine:
    """Build an engine.

    Raises InputError if the engine is not installed, or the weights are refused.
    """
    chosen = choose_engine(name, networks=[request.card.network])
    if isinstance(request.card.network, GraphConfig):
        function, identity = open_graph(request.path, request.card, request.shape, chosen)
        return Engine(chosen, request.shape, identity, function)
    return _ENGINES[chosen][0](request)


def _build_keras(precision: str, request: EngineRequest) -> Engine:
    from lulc.models import backend

    name = "keras" if precision == "float32" else f"keras-{precision}"
    if has_gpu() and backend.device_name() == "CPU":
        raise InputError(
            f"cannot run the network with the engine '{name}' as planned, since this {backend.name()} "
            "computes on the CPU, expected the NVIDIA GPU of this machine",
            "Install it with the extra for GPUs, or set CUDA_VISIBLE_DEVICES=-1 to plan with the CPU.",
        )
    backend.cache_programs()
    backend.exact_float32()
    identity = {"precision": precision, "device": backend.device_name(), **backend.versions()}
    function = backend.compile_predict(_keras_model(precision, request), request.shape, request.finish)
    if precision != "float32":
        # Not part of the identity, since it depends on the kernels that the process chose.
        _check_agreement(name, request, _agreement(request, precision))
    return Engine(name, request.shape, identity, function)


def _keras_model(precision: str, request: EngineRequest) -> Any:
    from lulc.models import backend

    legacy = None if request.path.suffix == ".keras" else request.card.statistics
    with backend.precision(precision):
        return load_model(request.path, statistics=legacy)[0]


def _agreement(request: EngineRequest, precision: str) -> float:
    """Return the fraction of valid pixels of sample windows with the class of float32."""
    from lulc.models import backend

    if not (samples := list(request.samples())):
        return 1.0
    windows = quantization.cut_windows(samples, request.card.stride)
    networks = [backend.compile_predict(_keras_model(of, request)) for of in ("float32", precision)]
    return quantization.agreement(windows, *networks)


def _check_agreement(name: str, request: EngineRequest, agreement: float) -> None:
    logger.info("%s agrees with float32 on %.2f %% of the pixels", name, 100 * agreement)
    least = MIN_AGREEMENT[name] if request.min_agreement is None else request.min_agreement
    if agreement < least:
        exact = name.split("-")[0]
        raise InputError(
            f"cannot use the engine '{name}' with '{request.path.name}' here, since it agrees with float32 "
            f"on {100 * agreement:.2f} % of the pixels, expected at least {100 * least:.2f} %",
            f"Type --engine {exact}, or a lower --min-agreement.",
        )


def _build_openvino(request: EngineRequest) -> Engine:
    model = build_graph(request.card.unet, read_arrays(request.path, request.card), request.shape)
    identity = {"precision": "float32", "openvino": openvino_version()}
    return Engine("openvino", request.shape, identity, _OpenVINO(model, "f32", request))


def _build_forest(request: EngineRequest) -> Engine:
    identity = {"precision": "float64", "numpy": np.__version__}
    return Engine(NUMPY, request.shape, identity, open_pixel_model(request.path, request.card))


def _build_quantised(request: EngineRequest) -> Engine:
    """Build the network in 8 bits, with the quantization stored beside the weights or a new one."""
    name, card = "openvino-int8", request.card
    arrays = read_arrays(request.path, card)
    key = quantization.key_of(card, request.samples())
    path = request.path.with_name(f"{request.path.stem}.{name}-{key[:12]}.json")
    quantized = quantization.read_quantization(path, key)
    if quantized is None:
        logger.info("quantizing %s to 8 bits; the result is stored in '%s'", request.path.name, path)
        quantized = quantization.quantise(card.unet, arrays, list(request.samples()), stride=card.stride)
        quantization.write_quantization(path, key, quantized)
    _check_agreement(name, request, quantized.agreement)
    model = build_graph(card.unet, arrays, request.shape, quantized.ranges)
    identity = {
        "precision": f"int8; first convolution {quantized.precision}",
        "agreement": f"{quantized.agreement:.4f}",
        "calibration": key,
        "openvino": openvino_version(),
    }
    return Engine(name, request.shape, identity, _OpenVINO(model, quantized.precision, request))


class _OpenVINO:
    """Compiled model that writes each result directly into a buffer."""

    def __init__(self, model: object, precision: str, request: EngineRequest) -> None:
        self._tensor = load_openvino().Tensor
        self._request = compile_graph(model, precision).create_infer_request()
        count, *window = request.shape
        self._shape = (count, request.card.unet.classes, *window)
        self._results = Buffers()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = self._results.empty(self._shape)
        self._request.set_output_tensor(self._tensor(y, shared_memory=True))
        inputs = {0: self._tensor(np.ascontiguousarray(x, np.float32), shared_memory=True)}
        # By default the returned outputs would be copies.
        self._request.infer(inputs, share_outputs=True)
        return np.moveaxis(y, 1, -1)


def _keras_footprint(network: NetworkConfig) -> Footprint:
    if has_gpu():
        # Estimates: driver and framework in the machine's memory, feature maps in that of the GPU, for which
        # the same budget is planned.
        return Footprint(GPU_PROCESS, 600 * _width(network))
    # Measured with TensorFlow 2.21 on a CPU: 0.8 GB and 1,300 to 1,600 bytes per pixel at widths 32..256.
    return Footprint(0.85e9, 1600 * _width(network))


def _openvino_footprint(per_pixel: float, network: NetworkConfig) -> Footprint:
    # In networks wider than the original the weights dominate: 0.7 GB at twice its width.
    fixed = max(0.33e9, 0.16e9 + 3.2 * 4 * network.parameters)
    return Footprint(fixed, per_pixel * _width(network))


def _graph_footprint(network: GraphConfig, driver: float) -> Footprint:
    # Twice the tensors that live at once, since runtimes copy some to other layouts.
    values = network.values + network.channels + network.classes
    return Footprint(0.4e9 + driver + 16.0 * network.parameters, 8.0 * values)


def _width(network: NetworkConfig) -> float:
    """Return the width at full resolution, which decides the memory, relative to the original network."""
    if network.block == "sum":  # without the concatenation, the widest feature map of the other blocks
        return max(network.filters[0], network.decoder_filters[-1]) / 64
    return max(network.filters[0], network.decoder_filters[-1] / 2) / 32


_ENGINES: dict[str, tuple[Callable[[EngineRequest], Engine], Callable[[Any], Footprint]]] = {
    "keras": (partial(_build_keras, "float32"), _keras_footprint),
    "keras-float16": (partial(_build_keras, "float16"), _keras_footprint),
    # Bytes per pixel measured with OpenVINO 2026.4 and static shapes; in 8 bits on a processor without
    # AVX-512, which needs most.
    "openvino": (_build_openvino, partial(_openvino_footprint, 780)),
    "openvino-int8": (_build_quantised, partial(_openvino_footprint, 640)),
    # The strips of a forest don't grow with the window.
    NUMPY: (_build_forest, lambda network: Footprint(0.4e9, 8)),
}

_RUNS: dict[str, set[type[Shape]]] = {
    "keras": {NetworkConfig},
    "keras-float16": {NetworkConfig},
    "openvino": {NetworkConfig, GraphConfig},
    "openvino-int8": {NetworkConfig},
    ONNXRUNTIME: {GraphConfig},
    CUDA: {GraphConfig},
    NUMPY: {PixelConfig},
}
"""Kinds of models that each engine runs."""

_KINDS = {NetworkConfig: "a network", PixelConfig: "a forest", GraphConfig: "an imported network"}

_ON_GPU = frozenset({"keras", "keras-float16", CUDA})
