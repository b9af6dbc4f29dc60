"""How a network is computed in 8 bits, and how often that changes the class.

Each convolution is computed in 8 bits or finer, in one step or two. Ranges and spaces are measured on windows
of the mosaic; what they cost is measured on others. The result is a document beside the weights, from which
and the weights the 8-bit network is made in a moment.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.documents import read_document, write_document
from lulc.core.schema import InputError
from lulc.engines.convolutions import SECOND_STEP, Factor, fold
from lulc.engines.cropping import level_of
from lulc.engines.low_rank import Space, Way, candidates, cost_of, ladder_of, noise_of, ranks_of, ways_of
from lulc.engines.openvino_graph import build_graph, load_openvino
from lulc.models.card import ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.uncertainty import decide

FORMAT_VERSION = 3

MARGIN = 0.0005
"""The search aims at an agreement so much above what is asked for; others than the windows searched on
decide."""

TRIALS = 6
"""Of the search, each a network that is built and run on a dozen windows."""

FINER_COST = {"bf16": 2.0, "f32": 4.0}
"""Time of a multiplication, in those of 8 bits (docs/performance.md)."""

FEW = 2
"""Windows on which convolutions are compared with one another."""

PROBED = 0.01
"""Share of the variance that is left out to see how sensitive the classes are to that."""

MAX_SAMPLES = 36
"""Windows used at most; 12 each for ranges, choice and verdict, 0.8 Mpx of 256 px windows."""

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "key", "ranges", "finer", "factors", "precision", "agreement", "sha256"],
    "additionalProperties": False,
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "key": {"type": "string"},
        "ranges": {
            "type": "object", "maxProperties": 100,
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1e30},
        },
        "finer": {"type": "array", "maxItems": 100, "items": {"type": "string"}},
        "factors": {
            "type": "object", "maxProperties": 100,
            "additionalProperties": {
                "type": "object", "required": ["basis", "mean"], "additionalProperties": False,
                "properties": {"basis": {"type": "string"}, "mean": {"type": "string"}},
            },
        },
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
        Largest magnitude of the input of every convolution, and of every second step.
    finer
        Convolutions that are not computed in 8 bits.
    precision
        What those are computed in: bf16 where the processor has it, else f32.
    agreement
        Share of pixels that get the class that float32 gives them, on windows that had no part in
        finding the rest, 0..1.
    factors
        Convolutions that are computed in two steps.
    """

    ranges: dict[str, float]
    finer: tuple[str, ...]
    precision: str
    agreement: float
    factors: dict[str, Factor] = field(default_factory=dict)

    @property
    def eight_bit(self) -> dict[str, float]:
        """Ranges of what is computed in 8 bits."""
        return {
            n: largest for n, largest in self.ranges.items() if n.removesuffix(SECOND_STEP) not in self.finer
        }


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
    target: float,
    least: float,
    finer: bool,
) -> Quantization:
    """Find ranges, which convolutions are computed in two steps, and which stay finer.

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
        Agreement to keep on the windows that are searched on; what is above it is given for speed.
    least
        Agreement that others must show: where they don't, a slower network is taken that was found.
    finer
        Whether further convolutions may stay finer, to reach the target.

    Raises
    ------
    InputError
        If no sample holds a valid pixel, or OpenVINO is not installed.
    """
    windows = _cut(samples, stride)
    if len(windows) < 3:
        logger.warning("the mosaic is so small that agreement is measured on the windows of the calibration")
    calibration, choice, verdict = (windows[i::3] or windows for i in range(3))
    found = _Search(network, arrays, calibration, choice).find(1 - min(target + MARGIN, 1.0), finer=finer)
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
        self._valid = [~np.isnan(window[..., 0]) for window in windows]
        self.pixels = sum(int(valid.sum()) for valid in self._valid)
        self._expected = self._classes(Quantization({}, (), "f32", 1.0))

    def agreement(self, tried: Quantization) -> float:
        """Share of valid pixels that get the same class."""
        same = sum(
            int((a == b)[valid].sum())
            for a, b, valid in zip(self._classes(tried), self._expected, self._valid, strict=True)
        )
        return same / self.pixels

    def _classes(self, tried: Quantization) -> list[np.ndarray]:
        shape = (1, *self._windows[0].shape[:2])
        graph = build_graph(
            self._network, self._arrays, shape, tried.eight_bit, factors=tried.factors, winograd=False
        )
        run = compile_graph(graph, tried.precision)
        return [decide(np.moveaxis(run(window[np.newaxis])[0][0], 0, -1)) for window in self._windows]


class _Search:
    """Looks for the fastest network that changes the class of no more pixels than it may.

    Parameters
    ----------
    network, arrays
        Shape and weights.
    calibration, choice
        Windows on which ranges and spaces are measured, and on which networks are compared.
    """

    def __init__(
        self,
        network: NetworkConfig,
        arrays: Arrays,
        calibration: Sequence[np.ndarray],
        choice: Sequence[np.ndarray],
    ) -> None:
        self._network, self._arrays, self._calibration = network, arrays, calibration
        self._judge, self._few = (_Judge(network, arrays, windows) for windows in (choice, _fullest(choice)))
        self._convolutions = fold(network, arrays)
        self._spaces = _spaces(network, arrays, calibration)
        self._ranges = _ranges(network, arrays, calibration, {})
        first = next(iter(self._convolutions))
        self._plain = self._measured(Quantization(self._ranges, (first,), native_precision(), 0.0))

    def find(self, flips: float, *, finer: bool) -> list[Quantization]:
        """The networks found that change at most so many pixels, 0..1, the fastest first, and one more.

        That is the one that changes the fewest. With `finer` false only ranks are chosen, and all but the
        first convolution are computed in 8 bits.
        """
        # What 8 bits change is noise of each way, or there whatever is chosen.
        given = 0.0 if finer else (1 - self._plain.agreement) ** 2
        rounding = self._rounding() if finer else {}
        sensitivity = self._sensitivity() if flips**2 > given else {}
        inner = list(self._convolutions.items())[1:]
        tried = [(sum(convolution.cost for _, convolution in inner), self._plain)]
        for precision in dict.fromkeys((self._plain.precision, "f32") if finer else (self._plain.precision,)):
            ways = {
                name: ways_of(
                    convolution,
                    space=self._spaces[name] if name in sensitivity else None,
                    sensitivity=sensitivity.get(name, 0.0),
                    rounding=rounding.get(name, 0.0),
                    finer=FINER_COST[precision] if finer else None,
                )
                for name, convolution in inner
            }
            tried += self._descend(ladder_of(ways), precision, flips, given)
            if any(1 - network.agreement <= flips for _, network in tried):
                break
        fastest = [network for _, network in sorted(tried, key=lambda of: of[0])]
        finest = max(fastest, key=lambda network: network.agreement)
        return [network for network in fastest if 1 - network.agreement <= flips] + [finest]

    def _descend(
        self, ladder: Sequence[Mapping[str, Way]], precision: str, flips: float, given: float
    ) -> list[tuple[float, Quantization]]:
        """Networks of a ladder and their costs, among them the last that is within `flips`, as far as found.

        Noise is only expected to add up, and to grow from rung to rung; what counts is what is measured.
        """
        low, high = 0, len(ladder) - 1
        noises = [noise_of(ways) for ways in ladder]
        looked_at: list[tuple[float, Quantization]] = []
        # How much more noise is measured than is expected.
        excess = 1.0
        for trial in range(TRIALS):
            rung = bisect.bisect_right(noises, (flips**2 - given) / excess) - 1
            # At last the least noise there is, where all else had too much.
            rung = low if low == 0 and trial == TRIALS - 1 else min(max(rung, low), high)
            found = self._network_of(ladder[rung], precision)
            changed, cost = 1 - found.agreement, cost_of(ladder[rung])
            looked_at.append((cost, found))
            logger.debug("%.0f multiplications a pixel: agreement %.4f", cost, found.agreement)
            low, high = (rung + 1, high) if changed <= flips else (low, rung - 1)
            if low > high:
                break
            excess = max(changed**2 - given, 1e-9) / max(noises[rung], 1e-12)
        return looked_at

    def _network_of(self, chosen: Mapping[str, Way], precision: str) -> Quantization:
        """The network that computes each convolution in the way chosen, its ranges and agreement measured."""
        factors = {n: self._spaces[n].factor(way.rank) for n, way in chosen.items() if way.rank}
        ranges = self._ranges
        if factors:
            # What there was before hardly changes; coordinates that vary alike need few windows.
            ranges = _ranges(self._network, self._arrays, self._calibration[::3], factors) | ranges
        finer = (*self._plain.finer, *(n for n, way in chosen.items() if not way.eight_bit))
        return self._measured(Quantization(ranges, finer, precision, 0.0, factors))

    def _measured(self, tried: Quantization) -> Quantization:
        return replace(tried, agreement=self._judge.agreement(tried))

    def _rounding(self) -> dict[str, float]:
        """Noise of the 8 bits of each convolution: the square of the share of pixels that they change."""
        return {
            name: self._noise(Quantization({name: self._ranges[name]}, (), "f32", 0.0))
            for name in list(self._convolutions)[1:]
        }

    def _sensitivity(self) -> dict[str, float]:
        """Noise of two steps for each share of variance missed, of the convolutions that may have them."""
        found = {}
        for name in (name for name in candidates(self._convolutions) if name in self._spaces):
            space = self._spaces[name]
            # Few enough dimensions that pixels change, enough that they change by noise and not by failure.
            ranks = ranks_of(self._convolutions[name])
            rank = next((rank for rank in ranks if space.missed(rank) < PROBED), ranks[-1])
            noise = self._noise(Quantization({}, (), "f32", 0.0, {name: space.factor(rank)}))
            found[name] = noise / max(space.missed(rank), 1e-9)
        return found

    def _noise(self, tried: Quantization) -> float:
        # One pixel at least: none on so few windows is not none at all.
        return max(1 - self._few.agreement(tried), 1 / self._few.pixels) ** 2


def _ranges(
    network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray], factors: Mapping[str, Factor]
) -> dict[str, float]:
    """Largest magnitude of the input of each convolution and each second step."""
    shape = (1, *windows[0].shape[:2])
    run = compile_graph(build_graph(network, arrays, shape, factors=factors, probe="inputs", winograd=False))
    names = list(fold(network, arrays, factors))
    results = (run(window[np.newaxis]) for window in windows)
    seen = [[float(result[i + 1].max()) for i in range(len(names))] for result in results]
    return {name: max(values) for name, values in zip(names, zip(*seen, strict=True), strict=True)}


def _spaces(network: NetworkConfig, arrays: Arrays, windows: Sequence[np.ndarray]) -> dict[str, Space]:
    """Principal components of the results of each convolution; none where these are too large to add up."""
    height, width = windows[0].shape[:2]
    run = compile_graph(build_graph(network, arrays, (1, height, width), probe="results", winograd=False))
    convolutions = fold(network, arrays)
    sums: list[Any] = [0.0] * (2 * len(convolutions))
    for window in windows:
        result = run(window[np.newaxis])
        sums = [total + result[i + 1].astype(np.float64) for i, total in enumerate(sums)]
    spaces = {}
    for i, (name, convolution) in enumerate(convolutions.items()):
        level = level_of(name, network) - convolution.transposed
        count = len(windows) * height * width // 4**level
        if np.isfinite(sums[2 * i + 1]).all():
            spaces[name] = Space.of(count, sums[2 * i][:, 0], sums[2 * i + 1])
    return spaces


def _fullest(windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The few windows with the most valid pixels."""
    return sorted(windows, key=lambda window: int(np.isnan(window[..., 0]).sum()))[:FEW]


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


def key_of(
    card: ModelCard, samples: Iterable[np.ndarray], target: float, least: float, *, finer: bool
) -> str:
    """SHA-256 of everything that decides a quantisation; no sample is held."""
    decides = {
        "format": FORMAT_VERSION,
        "weights": card.sha256,
        "network": card.network.to_json(),
        "statistics": card.statistics.to_json(),
        "target": target,
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


def read_quantization(path: Path, key: str, network: NetworkConfig) -> Quantization | None:
    """What `write_quantization` wrote for a network under this key; None where it is absent or damaged."""
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
    try:
        factors = {n: _factor_of(fields, network.channels_of(n)) for n, fields in document["factors"].items()}
    except (KeyError, ValueError):
        logger.warning("the 8-bit network '%s' is damaged; it is made anew", path)
        return None
    return Quantization(
        dict(document["ranges"]),
        tuple(document["finer"]),
        document["precision"],
        document["agreement"],
        factors,
    )


def write_quantization(path: Path, key: str, quantization: Quantization) -> None:
    """Write what was found, whole or not at all; a folder that can't be written is no error."""
    document = {
        "format_version": FORMAT_VERSION,
        "key": key,
        "ranges": quantization.ranges,
        "finer": list(quantization.finer),
        "precision": quantization.precision,
        "agreement": quantization.agreement,
        "factors": {name: _fields_of(factor) for name, factor in quantization.factors.items()},
    }
    document["sha256"] = _checksum(document)
    try:
        write_document(path, document)
    except OSError as error:
        logger.warning("the 8-bit network is not kept, since '%s' can't be written: %s", path, error)


def _fields_of(factor: Factor) -> dict[str, str]:
    """A factor as text: little-endian, base 64; its basis holds numbers of 16 bits."""
    arrays = {"basis": factor.basis.astype("<f2"), "mean": factor.mean.astype("<f4")}
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}


def _factor_of(fields: Mapping[str, str], channels: int) -> Factor:
    """What `_fields_of` wrote of a convolution of so many channels; ValueError where it can't have."""
    mean, basis = (
        np.frombuffer(base64.b64decode(fields[name], validate=True), kind).reshape(channels, -1)
        for name, kind in (("mean", "<f4"), ("basis", "<f2"))
    )
    finite = np.isfinite(mean).all() and np.isfinite(basis).all()
    if mean.shape[1] != 1 or not 0 < basis.shape[1] <= channels or not finite:
        raise ValueError(f"{basis.shape[1]} dimensions of {channels}")
    return Factor(basis.astype(np.float32), mean[:, 0].astype(np.float32))


def _checksum(document: Mapping[str, Any]) -> str:
    content = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
