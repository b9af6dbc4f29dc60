"""Quantization of a network to 8 bits, and its agreement with float32.

The ranges of the convolutions' inputs are measured on windows of the mosaic, the agreement on other windows.
A document beside the weights stores both, from which the 8-bit network is built quickly.
"""

from __future__ import annotations

import hashlib
import itertools
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
    """Quantization of all convolutions but the first.

    The first one has a hundredth of the arithmetic and would cost most agreement, since channels of
    different ranges would share one scale.

    Parameters
    ----------
    ranges
        Largest magnitude of the input of each quantized convolution.
    precision
        Precision of the first convolution: bf16 if the processor has it, else f32.
    agreement
        Fraction of pixels with the class of float32, 0..1, on other windows than those of the ranges.
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
    """Return bf16 if this processor multiplies in it, else f32."""
    capabilities = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


def quantise(
    network: NetworkConfig, arrays: Arrays, samples: Sequence[np.ndarray], *, stride: int
) -> Quantization:
    """Measure ranges on every other window, and the agreement with float32 on the windows between.

    Raises InputError if no sample has a valid pixel, or OpenVINO is not installed.

    Parameters
    ----------
    samples
        Windows float32 (y, x, band) in physical units, NaN = no data.
    stride
        Stride of the network in pixels.
    """
    windows = cut_windows(samples, stride)
    if len(windows) < 2:
        logger.warning("the mosaic is so small that agreement is measured on the windows of the calibration")
    calibration, held_out = windows[::2], windows[1::2] or windows
    ranges, precision = _ranges(network, arrays, calibration), native_precision()

    def compiled(eight_bit: Ranges, precision: str) -> Predict:
        graph = build_graph(network, arrays, (1, *windows[0].shape[:2]), eight_bit)
        run = compile_graph(graph, precision)
        return lambda x: np.moveaxis(run(x)[0], 1, -1)

    return Quantization(
        ranges, precision, agreement(held_out, compiled({}, "f32"), compiled(ranges, precision))
    )


def agreement(windows: Sequence[np.ndarray], exact: Predict, other: Predict) -> float:
    """Return the fraction of valid pixels of windows (y, x, band) on which two networks agree."""
    same = [
        (decide(exact(x[np.newaxis])[0]) == decide(other(x[np.newaxis])[0]))[valid_pixels(x)] for x in windows
    ]
    return float(np.concatenate(same).mean())


def _ranges(network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> dict[str, float]:
    """Measure the largest magnitude of the input of each convolution but the first."""
    run = compile_graph(build_graph(network, arrays, (1, *windows[0].shape[:2]), probe=True))
    _, *names = network.multiplications
    results = (run(window[np.newaxis]) for window in windows)
    largest = [[float(result[i].max()) for i in range(2, 2 + len(names))] for result in results]
    return {name: max(values) for name, values in zip(names, zip(*largest, strict=True), strict=True)}


def cut_windows(samples: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """Cut windows of one shape, a multiple of the stride, padded with NaN; at least two if possible."""
    valid = [sample for sample in samples if valid_pixels(sample).any()]
    if not valid:
        raise InputError(
            "cannot compare networks, since no window looked at has a valid pixel",
            "Check bands and mask, or type --engine openvino.",
        )
    side = max(max(sample.shape[:2]) for sample in valid)
    divisor = 1 if len(valid) > 1 else 2
    side = max(stride, -(-side // divisor // stride) * stride)
    windows = []
    for sample in valid:
        height, width = sample.shape[:2]
        for row, col in itertools.product(range(0, height, side), range(0, width, side)):
            window = cut = sample[row : row + side, col : col + side]
            if cut.shape[:2] != (side, side):
                window = np.full((side, side, sample.shape[2]), np.nan, np.float32)
                window[: cut.shape[0], : cut.shape[1]] = cut
            if valid_pixels(window).any():
                windows.append(window)
    return windows


def key_of(card: ModelCard, samples: Iterable[np.ndarray]) -> str:
    """Return the sha256 of everything that decides a quantization, one sample in memory at a time."""
    content = {
        "format": FORMAT_VERSION,
        "weights": card.sha256,
        "network": card.network.to_json(),
        "statistics": card.statistics.to_json(),
        "precision": native_precision(),
        "openvino": str(load_openvino().__version__),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr(sample.shape).encode())
        digest.update(np.ascontiguousarray(sample).data)
    return digest.hexdigest()


def read_quantization(path: Path, key: str) -> Quantization | None:
    """Read the quantization stored under this key; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        stored = _Document.from_json(
            read_document(path, schema_of(_Document), "8-bit network", FORMAT_VERSION)
        )
    except InputError as error:
        logger.warning("%s; it is made anew", error.problem)
        return None
    if stored.key != key or stored.sha256 != seal_of(stored.quantization.to_json()):
        logger.warning("the 8-bit network '%s' is damaged; it is made anew", path)
        return None
    return stored.quantization


def write_quantization(path: Path, key: str, quantization: Quantization) -> None:
    """Write a quantization, whole or not at all; warn if the folder is not writable."""
    document = _Document(FORMAT_VERSION, key, quantization, seal_of(quantization.to_json()))
    try:
        write_document(path, document.to_json())
    except OSError as error:
        logger.warning("the 8-bit network is not stored, since '%s' can't be written: %s", path, error)
