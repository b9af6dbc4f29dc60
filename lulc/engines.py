"""Engines: a network as a plain function from float32 (n, y, x, band) to float32 (n, y, x, class).

The function takes physical units with NaN in every channel of invalid pixels, as `lulc.stack` gives
them, in windows of one static shape. What an engine needs is imported when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lulc.card import ModelCard
from lulc.network import NetworkConfig
from lulc.schema import InputError

Network = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to float32 (n, y, x, class)."""


class Footprint(NamedTuple):
    """Memory that an engine takes, as measured: bytes of the process, and bytes for each window pixel."""

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
        What decides its results beside weights and shape: precision, versions; JSON-ready.
    function
        The network.
    """

    name: str
    shape: tuple[int, int, int]
    identity: dict[str, str]
    function: Network

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Activations of a batch, float32 (n, y, x, class)."""
        return self.function(x)


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an engine is built from.

    Parameters
    ----------
    path, card
        Weights file and its card; the card holds the statistics, for legacy files too.
    shape
        (n, y, x) of every call.
    samples
        Gives windows of the mosaic, each float32 (y, x, band) with NaN where invalid, for calibration.
    min_agreement
        Least share of pixels on which a quantised engine agrees with float32; None for its default.
    """

    path: Path
    card: ModelCard
    shape: tuple[int, int, int]
    samples: Callable[[], Iterator[np.ndarray]] = lambda: iter(())
    min_agreement: float | None = None


def choose_engine(name: str) -> str:
    """The engine that a name stands for: ``auto`` is the fastest that is exact on this machine."""
    name = "keras" if name == "auto" else name
    if name not in _ENGINES:
        raise InputError(
            f"cannot run the network with the engine '{name}', expected one of {', '.join(_ENGINES)}",
            "Type --engine auto.",
        )
    return name


def footprint(name: str, network: NetworkConfig) -> Footprint:
    """What the engine `name` takes for a network, for planning windows before it is built."""
    return _ENGINES[choose_engine(name)][1](network)


def build_engine(name: str, request: EngineRequest) -> Engine:
    """Build an engine.

    Raises
    ------
    InputError
        If the engine is not installed, or the weights are refused.
    """
    return _ENGINES[choose_engine(name)][0](request)


def dihedral(network: Network) -> Network:
    """The mean of `network` over the flips and rotations of its input (test-time augmentation).

    All 8 for square windows; the 4 that keep the shape for others. The mean over the flips and
    rotations of an input does not change when the input is flipped or rotated.
    """

    def average(x: np.ndarray) -> np.ndarray:
        turns: Sequence[int] = range(4) if x.shape[1] == x.shape[2] else (0, 2)
        total: np.ndarray | None = None
        for turn in turns:
            for flip in (False, True):
                seen = np.rot90(x[:, ::-1] if flip else x, turn, axes=(1, 2))
                y = np.rot90(network(np.ascontiguousarray(seen)), -turn, axes=(1, 2))
                y = y[:, ::-1] if flip else y
                total = y.copy() if total is None else np.add(total, y, out=total)
        assert total is not None
        return total / np.float32(2 * len(turns))

    return average


def _build_keras(request: EngineRequest) -> Engine:
    from lulc import backend, weights

    legacy = None if request.path.suffix == ".keras" else request.card.statistics
    model, _ = weights.load_model(request.path, statistics=legacy)
    function = backend.compile_predict(model, request.shape)
    identity = {"precision": "float32", "device": backend.device_name(), **backend.versions()}
    return Engine("keras", request.shape, identity, function)


def _keras_footprint(network: NetworkConfig) -> Footprint:
    # Measured with TensorFlow 2.21 on a CPU: 0.8 GB and 1,300 to 1,600 bytes per pixel at widths 32..256.
    return Footprint(0.85e9, 1600 * max(network.filters[0], network.decoder_filters[-1] / 2) / 32)


_ENGINES: dict[str, tuple[Callable[[EngineRequest], Engine], Callable[[NetworkConfig], Footprint]]] = {
    "keras": (_build_keras, _keras_footprint),
}
