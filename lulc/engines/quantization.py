"""Quantization: which convolutions are computed in 8 bits, and how often that changes the class.

Ranges of the convolutions' inputs are measured on windows of the mosaic, agreement with float32 on others.
The result is a document beside the weights; from both the 8-bit network is made in a moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from lulc.core.codec import Jsonable, limits, schema_of
from lulc.core.documents import read_document, seal_of, write_document
from lulc.core.schema import InputError
from lulc.core.statistics import valid_pixels
from lulc.engines.openvino_graph import build_graph, compile_graph, load_openvino
from lulc.engines.unet_graph import Arrays
from lulc.models.card import ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.uncertainty import decide

FORMAT_VERSION = 4

MARGIN = 0.0005
"""Added to the agreement that the search aims at, since other windows decide."""

FEW = 2
"""Windows on which convolutions are compared with one another."""

MAX_SAMPLES = 36
"""Windows used at most; 12 each for ranges, choice and verdict, 0.8 Mpx of 256 px windows."""

Range = Annotated[float, limits(minimum=0, maximum=1e30)]

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Quantization(Jsonable):
    """Choice of the convolutions that are computed in 8 bits.

    Parameters
    ----------
    ranges
        Largest magnitude of the input of every convolution.
    finer
        Convolutions that are not computed in 8 bits.
    precision
        Precision of those: bf16 where the processor has it, else f32.
    agreement
        Share of pixels that get the class that float32 gives them, 0..1, on windows that had no part in
        finding the rest.
    """

    ranges: Annotated[dict[str, Range], limits(maxProperties=100)]
    finer: Annotated[tuple[str, ...], limits(maxItems=100)]
    precision: Annotated[str, limits(enum=("bf16", "f32"))]
    agreement: Annotated[float, limits(minimum=0, maximum=1)]

    @property
    def eight_bit(self) -> dict[str, float]:
        """Ranges of the convolutions that are computed in 8 bits."""
        return {name: largest for name, largest in self.ranges.items() if name not in self.finer}


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
    network: NetworkConfig,
    arrays: Arrays,
    samples: Sequence[np.ndarray],
    *,
    stride: int,
    least: float,
    finer: bool,
) -> Quantization:
    """Measure ranges and choose the convolutions that stay finer.

    The first convolution always does: it costs a hundredth of the arithmetic, and more agreement than any
    other, since its channels are quantised together though their ranges differ.

    Parameters
    ----------
    network, arrays
        Shape and weights.
    samples
        Windows float32 (y, x, band) in physical units, NaN = no data.
    stride
        Stride of the network, pixels.
    least
        Agreement to reach where further convolutions may stay finer.
    finer
        Whether they may stay finer.

    Raises
    ------
    InputError
        If no sample holds a valid pixel, or OpenVINO is not installed.
    """
    windows = _cut(samples, stride)
    if len(windows) < 3:
        logger.warning("the mosaic is so small that agreement is measured on the windows of the calibration")
    calibration, choice, verdict = (windows[i::3] or windows for i in range(3))
    ranges = _ranges(network, arrays, calibration)
    plain = Quantization(ranges, (next(iter(ranges)),), native_precision(), 0.0)
    found = [plain]
    if finer:
        found = _search(network, arrays, choice, plain, min(least + MARGIN, 1.0))
    judge, judged = _Judge(network, arrays, verdict), []
    for tried in found:
        judged.append(replace(tried, agreement=judge.agreement(tried)))
        if judged[-1].agreement >= least:
            return judged[-1]
    return max(judged, key=lambda quantization: quantization.agreement)


class _Judge:
    """Compares 8-bit versions of a network with float32 on fixed windows."""

    def __init__(self, network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> None:
        self._network, self._arrays, self._windows = network, arrays, windows
        self._valid = [valid_pixels(window) for window in windows]
        self._pixels = sum(int(valid.sum()) for valid in self._valid)
        self._expected = self._classes({}, "f32")

    def agreement(self, tried: Quantization) -> float:
        """Return the share of valid pixels that get the same class."""
        found = self._classes(tried.eight_bit, tried.precision)
        same = sum(
            int((a == b)[valid].sum()) for a, b, valid in zip(found, self._expected, self._valid, strict=True)
        )
        return same / self._pixels

    def _classes(self, eight_bit: Mapping[str, float], precision: str) -> list[np.ndarray]:
        shape = (1, *self._windows[0].shape[:2])
        run = compile_graph(build_graph(self._network, self._arrays, shape, eight_bit), precision)
        return [decide(np.moveaxis(run(window[np.newaxis])[0][0], 0, -1)) for window in self._windows]


def _search(
    network: NetworkConfig,
    arrays: Arrays,
    choice: Sequence[np.ndarray],
    plain: Quantization,
    target: float,
) -> list[Quantization]:
    """Look for networks that agree with float32 as often as `target`.

    Returns
    -------
    list of Quantization
        Those found, the fastest first, and last the one that agrees most often of all that were tried.
    """
    judge = _Judge(network, arrays, choice)
    order = _order(network, arrays, choice, plain)
    tried: list[Quantization] = []
    for precision in dict.fromkeys((plain.precision, "f32")):
        # The more convolutions are computed in 8 bits, the fewer pixels agree, but for chance.
        low, high = 0, len(order)
        while low <= high:
            count = (low + high + 1) // 2
            one = replace(plain, precision=precision, finer=(*plain.finer, *order[count:]))
            tried.append(replace(one, agreement=judge.agreement(one)))
            logger.debug("%d convolutions in 8 bits: agreement %.4f", count, tried[-1].agreement)
            low, high = (count + 1, high) if tried[-1].agreement >= target else (low, count - 1)
        if any(one.agreement >= target for one in tried):
            break
    good = sorted((one for one in tried if one.agreement >= target), key=lambda one: len(one.finer))
    return [*good, max(tried, key=lambda one: one.agreement)]


def _order(
    network: NetworkConfig, arrays: Arrays, choice: Sequence[np.ndarray], plain: Quantization
) -> list[str]:
    """Order the convolutions by the time that 8 bits save for each pixel whose class changes, best first.

    Each is quantised alone. Independent noises add up in their variance, so the square of the share of pixels
    that change is what counts.
    """
    judge = _Judge(
        network, arrays, sorted(choice, key=lambda window: int(np.isnan(window[..., 0]).sum()))[:FEW]
    )
    noise = {
        name: (1 - judge.agreement(Quantization({name: largest}, (), "f32", 0.0))) ** 2
        for name, largest in plain.eight_bit.items()
    }
    costs = network.multiplications
    return sorted(noise, key=lambda name: noise[name] / costs[name])


def _ranges(network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> dict[str, float]:
    """Measure the largest magnitude of the input of each convolution."""
    shape = (1, *windows[0].shape[:2])
    run = compile_graph(build_graph(network, arrays, shape, probe=True))
    names = list(network.multiplications)
    results = (run(window[np.newaxis]) for window in windows)
    seen = [[float(result[i + 1].max()) for i in range(len(names))] for result in results]
    return {name: max(values) for name, values in zip(names, zip(*seen, strict=True), strict=True)}


def _cut(samples: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """Cut windows of one shape, a multiple of the stride, padded with NaN; at least three where possible."""
    given = [sample for sample in samples if not np.isnan(sample[..., 0]).all()]
    if not given:
        raise InputError(
            "cannot calibrate the 8-bit network, since no window looked at has a valid pixel",
            "Check bands and mask, or type --engine openvino.",
        )
    given = [given[i] for i in np.unique(np.linspace(0, len(given) - 1, MAX_SAMPLES).round().astype(int))]
    side = max(max(sample.shape[:2]) for sample in given)
    parts = 1 if len(given) >= 3 else 2
    side = max(stride, -(-side // parts // stride) * stride)
    windows = []
    for sample in given:
        for row in range(0, sample.shape[0], side):
            for col in range(0, sample.shape[1], side):
                window = piece = sample[row : row + side, col : col + side]
                if piece.shape[:2] != (side, side):
                    window = np.full((side, side, sample.shape[2]), np.nan, np.float32)
                    window[: piece.shape[0], : piece.shape[1]] = piece
                if not np.isnan(window[..., 0]).all():
                    windows.append(window)
    return windows


def key_of(card: ModelCard, samples: Iterable[np.ndarray], least: float, *, finer: bool) -> str:
    """Return the SHA-256 of everything that decides a quantization; no sample is held."""
    decides = {
        "format": FORMAT_VERSION,
        "weights": card.sha256,
        "network": card.network.to_json(),
        "statistics": card.statistics.to_json(),
        "least": least,
        "finer": finer,
        "precision": native_precision(),
        "openvino": str(load_openvino().__version__),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr(sample.shape).encode())
        digest.update(np.ascontiguousarray(sample).data)
    return digest.hexdigest()


def read_quantization(path: Path, key: str) -> Quantization | None:
    """Read the choice stored under this key; None where it is absent or damaged."""
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
