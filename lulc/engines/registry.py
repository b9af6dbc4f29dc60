"""Engines: a network as a plain function from float32 (n, y, x, band) to float32 (n, y, x, class).

The function takes physical units with NaN in every channel of invalid pixels, as `lulc.rasters.stack` gives
them, in windows of one static shape. What an engine needs is imported when it is built.
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
"""Share of pixels on which an engine of lower precision gives the class that float32 gives, at least."""

NUMPY = "numpy"
"""Engine of forests, which decide each pixel from features of its surroundings."""

GPU_PROCESS = 3e9
"""Bytes of memory allowed for the driver of a GPU and a framework in a process; not measured."""

Shape = NetworkConfig | PixelConfig | GraphConfig
"""Of a model."""

Network = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to float32 (n, y, x, class)."""


class Footprint(NamedTuple):
    """Measured memory of an engine: bytes of the process, and for each pixel of a window beside its input
    and result.
    """

    fixed: float
    per_pixel: float


@dataclass(frozen=True)
class Engine:
    """A network ready to run.

    Parameters
    ----------
    name
        Which engine it is; never ``auto``.
    shape
        (n, y, x) of every call.
    identity
        Precision, versions and whatever else decides its results beside weights and shape; JSON-ready.
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
    """Everything that an engine is built from.

    Parameters
    ----------
    path, card
        Weights file and its card; the card holds the statistics, for legacy files too.
    shape
        (n, y, x) of every call.
    samples
        Gives windows of the mosaic, each float32 (y, x, band) with NaN where invalid, for calibration.
    min_agreement
        Least share of pixels on which an engine of lower precision agrees with float32; None for its default.
    finish
        Bands of the map instead of probabilities; for engines of Keras alone.
    """

    path: Path
    card: ModelCard
    shape: tuple[int, int, int]
    samples: Callable[[], Iterator[np.ndarray]] = lambda: iter(())
    min_agreement: float | None = None
    finish: Finish | None = None


def choose_engine(name: str, devices: Path = Path("/dev"), *, networks: Sequence[Shape] = ()) -> str:
    """Return the engine that a name stands for. ``auto`` is the fastest that is exact on this machine.

    That is Keras where there is an NVIDIA GPU, OpenVINO otherwise where it is installed; for imported
    networks onnxruntime, where it computes on the GPU or OpenVINO is not installed; and numpy for forests.

    Parameters
    ----------
    name
        Name of an engine, or ``auto``.
    devices
        Folder of the device files.
    networks
        What it is to run.

    Raises
    ------
    InputError
        If there is no such engine, or it does not run what is asked for.
    """
    if name != "auto" and name not in _RUNS:
        raise InputError(
            f"cannot run the network with the engine '{name}', expected one of {', '.join(_RUNS)}",
            "Type --engine auto.",
        )
    kinds = {type(network) for network in networks} or {NetworkConfig}
    fitting = [engine for engine, known in _RUNS.items() if kinds <= known]
    if not fitting or name not in ("auto", *fitting):
        what = " beside ".join(word for kind, word in _WORDS.items() if kind in kinds)
        raise InputError(
            f"cannot run {what} with the engine '{name}', expected {' or '.join(fitting) or 'one kind'}",
            "Type --engine auto" + ("." if fitting else ", and name models of one kind with --ensemble."),
        )
    return _fastest(fitting, devices) if name == "auto" else name


def _fastest(fitting: Sequence[str], devices: Path) -> str:
    """Return the engine for this machine, without loading a framework."""
    # A batch system gives a job the GPU with any number, and hides those of other jobs.
    found = sorted(devices.glob("nvidia[0-9]*"))
    reason = "CUDA_VISIBLE_DEVICES hides all GPUs" if found else f"there is no NVIDIA GPU in {devices}"
    order = [name for name in ("openvino", ONNXRUNTIME) if importlib.util.find_spec(name)]
    if found and not _hidden():
        reason = f"there is an NVIDIA GPU ({found[0]})"
        order = ["keras", *([CUDA] if CUDA in fitting and has_cuda() else []), *order]
    elif "openvino" not in order:
        reason += ", and OpenVINO is not installed"
    chosen = next(name for name in (*order, "keras", NUMPY, "openvino") if name in fitting)
    logger.info("engine %s, since %s", chosen, reason)
    return chosen


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Return whether this process sees an NVIDIA GPU, without loading a framework."""
    return any(devices.glob("nvidia[0-9]*")) and not _hidden()


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")


def budget_of(name: str) -> float:
    """Return the default memory budget of a process with the engine `name`, gigabytes."""
    return 8.0 if _on_gpu(name) else 2.0


def readers_of(name: str) -> int:
    """Return how many windows are read at a time: beside a GPU one thread can't read as fast."""
    return 2 if _on_gpu(name) else 1


def shared_of(name: str) -> float:
    """Return the bytes of a footprint that a process takes once, however many networks it runs."""
    return GPU_PROCESS if _on_gpu(name) else 0.0


def _on_gpu(name: str) -> bool:
    return name in _ON_GPU and has_gpu()


def footprint(name: str, network: Shape) -> Footprint:
    """Return the memory that the engine `name` takes for a network, to plan windows before it is built."""
    chosen = choose_engine(name, networks=[network])
    if isinstance(network, GraphConfig):
        return _graph_footprint(network, GPU_PROCESS if chosen == CUDA else 0.0)
    return _ENGINES[chosen][1](network)


def build_engine(name: str, request: EngineRequest) -> Engine:
    """Build an engine.

    Raises
    ------
    InputError
        If the engine is not installed, or the weights are refused.
    """
    chosen = choose_engine(name, networks=[request.card.network])
    if isinstance(request.card.network, GraphConfig):
        found = open_graph(request.path, request.card, request.shape, chosen)
        return Engine(chosen, request.shape, found[1], found[0])
    return _ENGINES[chosen][0](request)


def _build_keras(precision: str, request: EngineRequest) -> Engine:
    from lulc.models import backend

    name = "keras" if precision == "float32" else f"keras-{precision}"
    if has_gpu() and backend.device_name() == "CPU":
        raise InputError(
            f"cannot run the network with the engine '{name}' as planned, since this {backend.name()} "
            "computes on the CPU, expected the NVIDIA GPU that is there",
            "Install it with the extra for GPUs, or set CUDA_VISIBLE_DEVICES=-1 to plan with the CPU.",
        )
    backend.cache_programs()
    backend.exact_float32()
    identity = {"precision": precision, "device": backend.device_name(), **backend.versions()}
    function = backend.compile_predict(_keras_model(precision, request), request.shape, request.finish)
    if precision != "float32":
        # Measured anew in each process, on whatever kernels it chose: no part of what decides the bytes.
        _check_agreement(name, request, _agreement(request, precision))
    return Engine(name, request.shape, identity, function)


def _keras_model(precision: str, request: EngineRequest) -> Any:
    from lulc.models import backend

    legacy = None if request.path.suffix == ".keras" else request.card.statistics
    with backend.precision(precision):
        return load_model(request.path, statistics=legacy)[0]


def _agreement(request: EngineRequest, precision: str) -> float:
    """Return the share of valid pixels of some windows that get the class that float32 gives."""
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
    """Build the network in 8 bits, from what is known beside the weights or is found now."""
    name, card = "openvino-int8", request.card
    arrays = read_arrays(request.path, card)
    key = quantization.key_of(card, request.samples())
    path = request.path.with_name(f"{request.path.stem}.{name}-{key[:12]}.json")
    found = quantization.read_quantization(path, key)
    if found is None:
        logger.info("finding out how %s can be computed in 8 bits; kept in '%s'", request.path.name, path)
        found = quantization.quantise(card.unet, arrays, list(request.samples()), stride=card.stride)
        quantization.write_quantization(path, key, found)
    _check_agreement(name, request, found.agreement)
    model = build_graph(card.unet, arrays, request.shape, found.ranges)
    identity = {
        "precision": f"int8; first convolution {found.precision}",
        "agreement": f"{found.agreement:.4f}",
        "calibration": key,
        "openvino": openvino_version(),
    }
    return Engine(name, request.shape, identity, _OpenVINO(model, found.precision, request))


class _OpenVINO:
    """A compiled model; it writes each result into memory of its own, so that none is copied."""

    def __init__(self, model: object, precision: str, request: EngineRequest) -> None:
        self._tensor = load_openvino().Tensor
        self._request = compile_graph(model, precision).create_infer_request()
        count, *window = request.shape
        self._shape = (count, request.card.unet.classes, *window)
        self._results = Buffers()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = self._results.empty(self._shape)
        self._request.set_output_tensor(self._tensor(y, shared_memory=True))
        given = {0: self._tensor(np.ascontiguousarray(x, np.float32), shared_memory=True)}
        # Unless shared, what this returns is a copy.
        self._request.infer(given, share_outputs=True)
        return np.moveaxis(y, 1, -1)


def _keras_footprint(network: NetworkConfig) -> Footprint:
    if has_gpu():
        # Estimates: what driver and framework take of the machine; what layers give lies in the GPU's memory,
        # of which as much is planned with.
        return Footprint(GPU_PROCESS, 600 * _width(network))
    # Measured with TensorFlow 2.21 on a CPU: 0.8 GB and 1,300 to 1,600 bytes per pixel at widths 32..256.
    return Footprint(0.85e9, 1600 * _width(network))


def _openvino_footprint(per_pixel: float, network: NetworkConfig) -> Footprint:
    # Where networks are wider than the original their weights decide: 0.7 GB at twice its width.
    fixed = max(0.33e9, 0.16e9 + 3.2 * 4 * network.parameters)
    return Footprint(fixed, per_pixel * _width(network))


def _graph_footprint(network: GraphConfig, driver: float) -> Footprint:
    # Tensors that live at once, as counted, and as much again for what runtimes lay out anew.
    return Footprint(
        0.4e9 + driver + 16.0 * network.parameters,
        8.0 * (network.values + network.channels + network.classes),
    )


def _width(network: NetworkConfig) -> float:
    """Return the width at full resolution, where the memory goes, in multiples of the original network's."""
    if network.block == "sum":  # without the concatenation, which is the widest map of the others
        return max(network.filters[0], network.decoder_filters[-1]) / 64
    return max(network.filters[0], network.decoder_filters[-1] / 2) / 32


_ENGINES: dict[str, tuple[Callable[[EngineRequest], Engine], Callable[[Any], Footprint]]] = {
    "keras": (partial(_build_keras, "float32"), _keras_footprint),
    "keras-float16": (partial(_build_keras, "float16"), _keras_footprint),
    # Bytes per pixel measured with OpenVINO 2026.4 and static shapes; in 8 bits on a processor without
    # AVX-512, which takes most.
    "openvino": (_build_openvino, partial(_openvino_footprint, 780)),
    "openvino-int8": (_build_quantised, partial(_openvino_footprint, 640)),
    # Strips of forests don't grow with the window, whose input and result are counted elsewhere.
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

_WORDS = {NetworkConfig: "a network", PixelConfig: "a forest", GraphConfig: "an imported network"}

_ON_GPU = frozenset({"keras", "keras-float16", CUDA})
