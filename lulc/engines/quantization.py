"""Quantization: the ranges of a network in 8 bits, and how often that changes the class.

Ranges of the convolutions' inputs are measured on windows of the mosaic, agreement with float32 on others.
The result is a document beside the weights; from both the 8-bit network is made in a moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from lulc.core.codec import Jsonable, limits, schema_of
from lulc.core.documents import read_document, seal_of, write_document
from lulc.core.schema import InputError
from lulc.core.statistics import valid_pixels
from lulc.engines.openvino_graph import Ranges, build_graph, compile_graph, load_openvino
from lulc.engines.unet_graph import Arrays
from lulc.models.card import ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.uncertainty import decide

FORMAT_VERSION = 5

Range = Annotated[float, limits(minimum=0, maximum=1e30)]

Predict = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to float32 (n, y, x, class)."""

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Quantization(Jsonable):
    """A network whose convolutions are computed in 8 bits, all but the first.

    That costs a hundredth of the arithmetic, and more agreement than any other, since its channels are
    quantised together though their ranges differ.

    Parameters
    ----------
    ranges
        Largest magnitude of the input of each convolution in 8 bits.
    precision
        Of the first convolution: bf16 where the processor has it, else f32.
    agreement
        Share of pixels that get the class that float32 gives them, 0..1, on windows that had no part in
        finding the ranges.
    """

    ranges: Annotated[dict[str, Range], limits(maxProperties=100)]
    precision: Annotated[str, limits(enum=("bf16", "f32"))]
    agreement: Annotated[float, limits(minimum=0, maximum=1)]


@dataclass(frozen=True)
class _Document(Jsonable):
    """Document of a quantization, kept beside the weights."""

    format_version: Annotated[int, limits(const=FORMAT_VERSION)]
    key: str
    quantization: Quantization
    sha256: str


def native_precision() -> str:
    """Return bf16 where this processor multiplies in it, else f32."""
    capabilities = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


def quantise(
    network: NetworkConfig, arrays: Arrays, samples: Sequence[np.ndarray], *, stride: int
) -> Quantization:
    """Measure ranges on every other window, and the agreement with float32 on those between.

    Parameters
    ----------
    network, arrays
        Shape and weights.
    samples
        Windows float32 (y, x, band) in physical units, NaN = no data.
    stride
        Stride of the network, pixels.

    Raises
    ------
    InputError
        If no sample holds a valid pixel, or OpenVINO is not installed.
    """
    windows = cut_windows(samples, stride)
    if len(windows) < 2:
        logger.warning("the mosaic is so small that agreement is measured on the windows of the calibration")
    calibration, verdict = windows[::2], windows[1::2] or windows
    ranges, precision = _ranges(network, arrays, calibration), native_precision()

    def compiled(eight_bit: Ranges, precision: str) -> Predict:
        graph = build_graph(network, arrays, (1, *windows[0].shape[:2]), eight_bit)
        run = compile_graph(graph, precision)
        return lambda x: np.moveaxis(run(x)[0], 1, -1)

    same = agreement(verdict, compiled({}, "f32"), compiled(ranges, precision))
    return Quantization(ranges, precision, same)


def agreement(windows: Sequence[np.ndarray], exact: Predict, other: Predict) -> float:
    """Return the share of valid pixels of windows (y, x, band) to which two networks give the same class."""
    same = [
        (decide(exact(x[np.newaxis])[0]) == decide(other(x[np.newaxis])[0]))[valid_pixels(x)] for x in windows
    ]
    return float(np.concatenate(same).mean())


def _ranges(network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> dict[str, float]:
    """Measure the largest magnitude of the input of each convolution but the first."""
    run = compile_graph(build_graph(network, arrays, (1, *windows[0].shape[:2]), probe=True))
    _, *names = network.multiplications
    results = (run(window[np.newaxis]) for window in windows)
    seen = [[float(result[i].max()) for i in range(2, 2 + len(names))] for result in results]
    return {name: max(values) for name, values in zip(names, zip(*seen, strict=True), strict=True)}


def cut_windows(samples: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """Cut windows of one shape, a multiple of the stride, padded with NaN; at least two where possible."""
    given = [sample for sample in samples if valid_pixels(sample).any()]
    if not given:
        raise InputError(
            "cannot compare networks, since no window looked at has a valid pixel",
            "Check bands and mask, or type --engine openvino.",
        )
    side = max(max(sample.shape[:2]) for sample in given)
    parts = 1 if len(given) > 1 else 2
    side = max(stride, -(-side // parts // stride) * stride)
    windows = []
    for sample in given:
        for row in range(0, sample.shape[0], side):
            for col in range(0, sample.shape[1], side):
                window = piece = sample[row : row + side, col : col + side]
                if piece.shape[:2] != (side, side):
                    window = np.full((side, side, sample.shape[2]), np.nan, np.float32)
                    window[: piece.shape[0], : piece.shape[1]] = piece
                if valid_pixels(window).any():
                    windows.append(window)
    return windows


def key_of(card: ModelCard, samples: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of everything that decides a quantization; no sample is held."""
    decides = {
        "format": FORMAT_VERSION,
        "weights": card.sha256,
        "network": card.network.to_json(),
        "statistics": card.statistics.to_json(),
        "precision": native_precision(),
        "openvino": str(load_openvino().__version__),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr(sample.shape).encode())
        digest.update(np.ascontiguousarray(sample).data)
    return digest.hexdigest()


def read_quantization(path: Path, key: str) -> Quantization | None:
    """Read the quantization stored under this key; None where it is absent or damaged."""
    if not path.is_file():
        return None
    try:
        found = _Document.from_json(
            read_document(path, schema_of(_Document), "8-bit network", FORMAT_VERSION)
        )
    except InputError as error:
        logger.warning("%s; it is made anew", error.problem)
        return None
    if found.key != key or found.sha256 != seal_of(found.quantization.to_json()):
        logger.warning("the 8-bit network '%s' is damaged; it is made anew", path)
        return None
    return found.quantization


def write_quantization(path: Path, key: str, quantization: Quantization) -> None:
    """Write a quantization, whole or not at all; a folder that can't be written is no error."""
    document = _Document(FORMAT_VERSION, key, quantization, seal_of(quantization.to_json()))
    try:
        write_document(path, document.to_json())
    except OSError as error:
        logger.warning("the 8-bit network is not kept, since '%s' can't be written: %s", path, error)
