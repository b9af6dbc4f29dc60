"""Which convolutions of a network are computed in 8 bits, and how often that changes the class.

Ranges are measured on windows of the mosaic; what the 8 bits cost is measured on others. The result is
a small document beside the weights: the 8-bit network is made from it and the weights in a moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lulc.confidence.certainty import decide
from lulc.documents import read_document, write_document
from lulc.networks.card import ModelCard
from lulc.networks.graph import build_graph, fold, load_openvino
from lulc.networks.network import NetworkConfig
from lulc.schema import InputError

FORMAT_VERSION = 2

MARGIN = 0.0005
"""The search goes on until the agreement is this much above what is asked for; others than the windows
searched on decide."""

MAX_SAMPLES = 36
"""Windows used at most; 12 each for ranges, choice and verdict, 0.8 Mpx of 256 px windows."""

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "key", "ranges", "finer", "precision", "agreement", "sha256"],
    "additionalProperties": False,
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "key": {"type": "string"},
        "ranges": {
            "type": "object", "maxProperties": 100,
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1e30},
        },
        "finer": {"type": "array", "maxItems": 100, "items": {"type": "string"}},
        "precision": {"enum": ["bf16", "f32"]},
        "agreement": {"type": "number", "minimum": 0, "maximum": 1},
        "sha256": {"type": "string"},
    },
}  # fmt: skip

logger = logging.getLogger("lulc")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantization:
    """How a network is computed in 8 bits.

    Parameters
    ----------
    ranges
        Largest magnitude of the input of every convolution.
    finer
        Convolutions that are not computed in 8 bits.
    precision
        What those are computed in: bf16 where the processor has it, else f32.
    agreement
        Share of pixels that get the class that float32 gives them, on windows that had no part in
        finding the rest, 0..1.
    """

    ranges: dict[str, float]
    finer: tuple[str, ...]
    precision: str
    agreement: float

    @property
    def eight_bit(self) -> dict[str, float]:
        """Ranges of the convolutions computed in 8 bits."""
        return {name: largest for name, largest in self.ranges.items() if name not in self.finer}


def compile_graph(model: Any, precision: str = "f32") -> Any:
    """A model ready to run on this processor, as a call from arrays to arrays."""
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    return load_openvino().Core().compile_model(model, "CPU", options)


def native_precision() -> str:
    """bf16 where this processor multiplies in it, else f32."""
    capabilities = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


def quantise(
    network: NetworkConfig,
    arrays: Arrays,
    samples: Sequence[np.ndarray],
    *,
    stride: int,
    target: float | None,
) -> Quantization:
    """Find ranges, and the convolutions that must stay finer.

    The first convolution always does: it costs a hundredth of the arithmetic, and more agreement than any
    other, since its channels are quantised together though their ranges differ.

    Parameters
    ----------
    network, arrays
        Shape and weights.
    samples
        Windows float32 (y, x, band) in physical units, NaN = no data.
    stride
        Of the network, pixels.
    target
        Agreement to reach by leaving further convolutions finer; None to leave it at the first.

    Raises
    ------
    InputError
        If no sample holds a valid pixel, or OpenVINO is not installed.
    """
    windows = _cut(samples, stride)
    if len(windows) < 3:
        logger.warning("the mosaic is so small that agreement is measured on the windows of the calibration")
    calibration, choice, verdict = (windows[i::3] or windows for i in range(3))
    search = _Search(network, arrays, choice, _ranges(network, arrays, calibration))
    first = next(iter(search.ranges))
    best = Quantization(search.ranges, (first,), native_precision(), 0.0)
    if target is not None:
        best = search.refine(best, min(target + MARGIN, 1.0))
    judge = _Judge(network, arrays, verdict)
    return replace(best, agreement=judge.agreement(best.eight_bit, best.precision))


class _Judge:
    """Compares 8-bit versions of a network with float32 on fixed windows."""

    def __init__(self, network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> None:
        self._network, self._arrays, self._windows = network, arrays, windows
        self._valid = [~np.isnan(window[..., 0]) for window in windows]
        self._expected = self._classes(None, "f32")

    def agreement(self, eight_bit: Mapping[str, float], precision: str) -> float:
        """Share of valid pixels that get the same class."""
        classes = self._classes(eight_bit, precision)
        same = sum(
            int((a == b)[valid].sum())
            for a, b, valid in zip(classes, self._expected, self._valid, strict=True)
        )
        return same / sum(int(valid.sum()) for valid in self._valid)

    def _classes(self, eight_bit: Mapping[str, float] | None, precision: str) -> list[np.ndarray]:
        shape = (1, *self._windows[0].shape[:2])
        run = compile_graph(build_graph(self._network, self._arrays, shape, eight_bit), precision)
        return [decide(np.moveaxis(run(window[np.newaxis])[0][0], 0, -1)) for window in self._windows]


class _Search(_Judge):
    """Looks for the convolutions whose steps cost the most agreement for the time they save."""

    def __init__(
        self, network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray], ranges: dict[str, float]
    ) -> None:
        super().__init__(network, arrays, windows)
        self.ranges = ranges

    def refine(self, start: Quantization, target: float) -> Quantization:
        """Leave one convolution more finer at a time until `target` is reached, or the best there is."""
        order = [name for name in self._by_loss() if name not in start.finer]
        best = start
        for precision in dict.fromkeys((start.precision, "f32")):
            for count in range(len(order)):
                finer = (*start.finer, *order[:count])
                tried = Quantization(self.ranges, finer, precision, 0.0)
                agreement = self.agreement(tried.eight_bit, precision)
                logger.debug("%s finer in %s: agreement %.4f", ", ".join(finer), precision, agreement)
                if agreement > best.agreement:
                    best = Quantization(self.ranges, finer, precision, agreement)
                if agreement >= target:
                    return best
        return best

    def _by_loss(self) -> list[str]:
        """Convolutions by the variance that 8 bits add to the logits, for each multiplication."""
        few = _Judge(self._network, self._arrays, self._windows[:4])
        losses = {}
        for name, convolution in fold(self._network, self._arrays).items():
            # Flips grow with the deviation of the noise; independent noises add up in their variance.
            flips = 1 - few.agreement({name: self.ranges[name]}, "f32")
            losses[name] = flips**2 / convolution.cost
        return sorted(losses, key=lambda name: -losses[name])


def _ranges(network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> dict[str, float]:
    shape = (1, *windows[0].shape[:2])
    run = compile_graph(build_graph(network, arrays, shape, probe=True))
    names = list(fold(network, arrays))
    results = (run(window[np.newaxis]) for window in windows)
    seen = [[float(result[i + 1].max()) for i in range(len(names))] for result in results]
    return {name: max(values) for name, values in zip(names, zip(*seen, strict=True), strict=True)}


def _cut(samples: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """Windows of one shape, a multiple of the stride, padded with NaN; at least three where they can be."""
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


def key_of(card: ModelCard, samples: Iterable[np.ndarray], target: float | None) -> str:
    """SHA-256 of everything that decides a quantisation; no sample is held."""
    decides = {
        "format": FORMAT_VERSION,
        "weights": card.sha256,
        "network": card.network.to_json(),
        "statistics": card.statistics.to_json(),
        "target": target,
        "precision": native_precision(),
        "openvino": str(load_openvino().__version__),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr(sample.shape).encode())
        digest.update(np.ascontiguousarray(sample).data)
    return digest.hexdigest()


def read_quantization(path: Path, key: str) -> Quantization | None:
    """What `write_quantization` wrote under this key; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        document = read_document(path, _SCHEMA, "8-bit network", FORMAT_VERSION)
    except InputError as error:
        logger.warning("%s; it is made anew", error.problem)
        return None
    if document["key"] != key or document["sha256"] != _checksum(document):
        logger.warning("the 8-bit network '%s' is damaged; it is made anew", path)
        return None
    return Quantization(
        dict(document["ranges"]), tuple(document["finer"]), document["precision"], document["agreement"]
    )


def write_quantization(path: Path, key: str, quantization: Quantization) -> None:
    """Write what was found, whole or not at all; a folder that can't be written is no error."""
    fields = asdict(quantization) | {"finer": list(quantization.finer)}
    document = {"format_version": FORMAT_VERSION, "key": key, **fields}
    document["sha256"] = _checksum(document)
    try:
        write_document(path, document)
    except OSError as error:
        logger.warning("the 8-bit network is not kept, since '%s' can't be written: %s", path, error)


def _checksum(document: Mapping[str, Any]) -> str:
    content = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
