"""Preparation of a classification: model, stack of channels, plan of windows, key and tags of the map."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio

from lulc.config import ClassifyConfig, InputConfig
from lulc.core.channels import change_paths, name_of
from lulc.core.grid import GridSpec, pixel_on_ground
from lulc.core.schema import IGNORE, UNCLASSIFIED, InputError, Legend
from lulc.core.statistics import read_statistics
from lulc.core.version import __version__
from lulc.core.windows import Part, Plan, squares_of
from lulc.engines.ensemble import Member, average, check_alike, footprint_of, geometry_of
from lulc.engines.registry import (
    Engine,
    EngineRequest,
    Network,
    budget_of,
    build_engine,
    choose_engine,
    readers_of,
)  # fmt: skip
from lulc.inference import domain_shift, memory_plan
from lulc.inference.sliding_window import Prediction, Read, predict_parts
from lulc.inference.wrapped import dihedral, turns_of, with_ood_score
from lulc.labels.value_tables import LEGEND_TAG
from lulc.maps.geotiff import MapProfile
from lulc.models import weights
from lulc.models.calibration import calibrate
from lulc.models.card import ModelCard, check_classifies, load_card
from lulc.models.config import GraphConfig
from lulc.models.finishing import Finish
from lulc.models.uncertainty import NOVELTY, confidence, decide, with_measures
from lulc.rasters.layers import Source
from lulc.rasters.masks import none_one_or_many
from lulc.rasters.stack import Stack, open_stack, sort_inputs, sort_sources

FORMAT_VERSION = 1

NATIVE_PIXEL = 10.0
"""Assumed pixel size of the training in metres where a card has none: the finest of Sentinel-2."""

SIZE_RATIO = 1.25
"""Ratio of pixel sizes up to which there is no warning; neighbouring projections differ that much."""

logger = logging.getLogger("lulc")

INPUT_FILES = ("inputs", "layers", "fill", "like", "mask", "aoi")
"""Options that name files to read."""

PARAMETERS = ("activations", "batch_size", "blend", "tta", "min_confidence", "min_agreement", "cog", "extra")
"""Options beside those of the inputs that decide a map; its tags hold them."""


class Job:
    """A classification with open inputs; `open_job` makes it.

    Attributes
    ----------
    members : sequence of Member
        The networks; `card` is that of the first.
    engine : str
        Name of the engine.
    profile : MapProfile
        Description of the map, without tags until the engine is built.
    memory, budget : float
        Peak memory of the process in bytes: planned, and allowed by ``--memory``.
    """

    def __init__(self, config: ClassifyConfig, members: Sequence[Member], stack: Stack) -> None:
        card = members[0].card
        config = _fit_to_networks(config, members)
        self.config, self.card, self.stack = config, card, stack
        self.out = Path(config.out)
        self.members = members
        self.engine = choose_engine(config.engine, networks=[member.card.network for member in members])
        self.budget = 1e9 * (config.memory or budget_of(self.engine))
        self.gaussian = config.blend == "gaussian"
        legend = legend_of(card)
        self.profile = MapProfile(
            stack.grid, legend, config.activations, config.part, cog=config.cog, extra=config.extra
        )
        stride, halo = geometry_of(members)
        self.demand = memory_plan.Demand(
            footprint_of(self.engine, members),
            channels=len(card.channels),
            classes=card.network.classes,
            batch=config.batch_size,
            gaussian=self.gaussian,
            readers=readers_of(self.engine),
        )
        self.plan: Plan = memory_plan.plan_map(
            self.profile, self.demand, stride=stride, halo=halo,
            memory=self.budget, window=config.window, square=config.tta,
        )  # fmt: skip
        self.memory = self.demand.bytes_of(self.plan, self.profile)

    def build_engine(self) -> Engine:
        """Build the engine for windows of the plan; several networks give their mean."""
        shape = (self.config.batch_size, *self.plan.window)
        requests = [
            EngineRequest(
                path=member.path, card=member.card, shape=shape, samples=self._samples,
                min_agreement=self.config.min_agreement, finish=self.finish,
            )
            for member in self.members
        ]  # fmt: skip
        engines = [build_engine(self.engine, request) for request in requests]
        return engines[0] if len(engines) == 1 else average(engines, self.members)

    @cached_property
    def finish(self) -> Finish | None:
        """Steps by which Keras computes the bands of the map; None for other engines and for means."""
        config, encoding = self.config, self.profile.encoding
        averaged = len(self.members) > 1 or config.tta or self.gaussian
        if averaged or NOVELTY in config.extra or not self.engine.startswith("keras"):
            return None
        return Finish(
            self.card.temperature, config.min_confidence, config.extra, encoding.dtype.name,
            encoding.nodata, encoding.steps, encoding.has_activations,
        )  # fmt: skip

    def network(self, engine: Engine) -> Network:
        """Return the function called for each batch: the engine, or its mean over flips and rotations.

        It gives probabilities, and after them the out-of-distribution score where ``--extra`` asks for it;
        with `finish` it gives the bands of the map.
        """
        network = self._averaged_network(engine) if self.config.tta else engine
        if NOVELTY not in self.config.extra:
            return network
        return with_ood_score(network, [member.card for member in self.members])

    def _averaged_network(self, engine: Engine) -> Network:
        if self._orientations < 8:
            logger.warning(
                "--tta averages %d instead of 8 flips and rotations, since windows of %d x %d don't fit when "
                "turned by 90 degrees; --window SIDE makes them square where the map is large enough",
                self._orientations, *self.plan.window,
            )  # fmt: skip
        directions = self.card.inputs.directions
        if directions is None:
            raise InputError(
                f"cannot average flips and rotations, since '{self.card.name}' has a channel that holds a "
                "direction and can't be turned",
                "Leave --tta out.",
            )
        return dihedral(engine, directions)

    @property
    def _orientations(self) -> int:
        """Number of flips and rotations that --tta averages."""
        return 2 * len(turns_of(*self.plan.window))

    def predictions(self, network: Network, parts: list[Part]) -> Generator[Prediction]:
        """Classify all windows of some parts."""
        with self.readers() as (read, *further):
            yield from predict_parts(
                read, network, self.plan, parts, further=further, batch=self.config.batch_size,
                gaussian=self.gaussian, copy=self.finish is None,
            )  # fmt: skip

    @contextlib.contextmanager
    def readers(self) -> Iterator[list[Read]]:
        """Open functions that read windows of the stack, each for one thread at a time."""
        with contextlib.ExitStack() as resources:
            further = [resources.enter_context(self.stack.reopen()) for _ in range(self.demand.readers - 1)]
            yield [self.stack.read, *(stack.read for stack in further)]

    def encode(self, prediction: Prediction) -> tuple[np.ndarray | None, np.ndarray]:
        """Encode the values of a window for storage.

        Returns
        -------
        (array (band, y, x) or None, int (256,))
            Bands of the map, None where all is no data; pixels by class number, no data at 255.
        """
        pixels = prediction.window.write.height * prediction.window.write.width
        if prediction.probabilities is None or prediction.valid is None:
            return None, np.bincount([IGNORE], [pixels], 256).astype(np.int64)
        bands, valid = prediction.probabilities, prediction.valid
        values = np.moveaxis(bands, -1, 0) if self.finish else self._bands_of(bands, valid)
        classes = values[0][valid]
        if (classes == self.profile.encoding.nodata).any():
            raise InputError(
                f"cannot classify {prediction.window.write}, since the network '{self.card.name}' gives "
                "activations there that are not finite",
                "Check the values of the mosaic there, or take other weights.",
            )
        counts = np.bincount(classes.astype(np.uint8), minlength=256)
        counts[IGNORE] = pixels - int(valid.sum())
        return values, counts

    def _bands_of(self, probabilities: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return the bands of the map (band, y, x), no data where a probability is not finite."""
        novelty = None
        if NOVELTY in self.config.extra:
            probabilities, novelty = probabilities[..., :-1], probabilities[..., -1]
        if len(self.members) == 1:
            # Several networks are calibrated before their mean is taken.
            probabilities = calibrate(probabilities, self.card.temperature)
        # A network of one class decides between that class and 0, the rest.
        classes = decide(probabilities) + np.uint8(probabilities.shape[-1] > 1)
        sure = confidence(probabilities)
        classes[sure < self.config.min_confidence] = UNCLASSIFIED
        measured = with_measures(probabilities, self.config.extra, novelty)
        return self.profile.encoding.apply(classes, measured, valid & np.isfinite(sure))

    def key(self, engine: Engine) -> dict[str, Any]:
        """Return everything that decides the bytes of a part."""
        return {
            "toolkit": __version__,
            "weights": [member.to_json() for member in self.members],
            "statistics": [member.card.statistics.to_json() for member in self.members],
            "novelty": [m.card.novelty and m.card.novelty.to_json() for m in self.members]
            if NOVELTY in self.config.extra
            else None,
            "inputs": self._inputs,
            "conversion": self.stack.provenance,
            "options": self._options(),
            "engine": {"name": engine.name, **engine.identity},
            "plan": dataclasses.asdict(self.plan),
            "versions": versions(),
        }

    def tags(self, engine: Engine) -> dict[str, str]:
        """Return the metadata of the map, without machine, time and paths, so that equal runs agree."""
        described = self.stack.provenance["channels"]
        identity = {name: value for name, value in engine.identity.items() if name != "device"}
        tags: dict[str, Any] = {
            "LULC_FORMAT_VERSION": FORMAT_VERSION,
            "LULC_VERSION": __version__,
            LEGEND_TAG: self.profile.legend.to_json(),
            "LULC_MODEL": self.card.name,
            "LULC_MODEL_SHA256": self.card.sha256,
            "LULC_ENGINE": {"name": engine.name, **identity},
            "LULC_VERSIONS": versions(),
            "LULC_PARAMETERS": self._options() | self._geometry(),
            "LULC_INPUTS": self._inputs,
            "LULC_CHANNELS": {c.name: described.get(c.name, {}) for c in self.card.channels},
        }
        if not self.stack.channel_set.is_plain:
            tags["LULC_CHANNEL_SET"] = self.stack.channel_set.to_json()
        if self.config.statistics is not None:
            # A legacy weights file holds no statistics.
            tags["LULC_STATISTICS"] = self.card.statistics.to_json()
        if len(self.members) > 1:
            tags["LULC_ENSEMBLE"] = [member.to_json() for member in self.members]
        if origin := self.card.origin:
            tags["LULC_MODEL_EPOCH"] = origin
        if remarks := dict.fromkeys(problem for member in self.members for problem in problems_of(member)):
            tags["LULC_REMARKS"] = "; ".join(remarks)
        attributions = dict.fromkeys(m.card.attribution for m in self.members if m.card.attribution)
        if attributions:
            tags["LULC_ATTRIBUTION"] = "; ".join(attributions)
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
            for name, value in tags.items()
        }

    def _geometry(self) -> dict[str, Any]:
        """Return windows, halo and parts, which with the options suffice to make the map again."""
        geometry = {"window": self.plan.window, "halo": self.plan.halo, "part": self.plan.part}
        return geometry | ({"tta_averaged": self._orientations} if self.config.tta else {})

    def _options(self) -> dict[str, Any]:
        """Return the options that decide the result, files by name and without folders."""
        names = ["inputs", *(f.name for f in dataclasses.fields(InputConfig)), *PARAMETERS]
        options = {name: getattr(self.config, name) for name in names}
        options |= {name: change_paths(options[name], name_of) for name in INPUT_FILES}
        options["mask"] = none_one_or_many(options["mask"])
        return options | {"temperature": self.card.temperature}

    def identify_inputs(self) -> None:
        """Hash all files that are read, which key and tags need."""
        _ = self._inputs

    @cached_property
    def _inputs(self) -> list[dict[str, Any]]:
        return self.stack.identity()

    def _samples(self) -> Iterator[np.ndarray]:
        """Yield up to 25 windows with valid pixels, spread over a quarter of the mosaic at most.

        Quantization computes all of them in float32 and half of them in 8 bits. That takes less time than
        8 bits save on the whole mosaic, where they halve it.
        """
        side, shape = min(256, *self.plan.window), self.stack.grid.shape
        count = min(5, max(2, math.isqrt(math.prod(shape) // 4) // side))
        for window in domain_shift.sample_windows(*shape, count=count, side=side):
            values = self.stack.read(window)
            if not np.isnan(values).all():
                yield values


def _fit_to_networks(config: ClassifyConfig, members: Sequence[Member]) -> ClassifyConfig:
    """Return the config with the blending and the windows that imported networks need."""
    graphs = [m.card.network for m in members if isinstance(m.card.network, GraphConfig)]
    reason = next((graph.reason for graph in graphs if graph.reason), "")
    if config.blend == "none" and reason:
        logger.info("windows are blended (--blend gaussian), since no halo is enough: %s", reason)
        config = dataclasses.replace(config, blend="gaussian")
    sides = {(graph.side[0], graph.side[1]) for graph in graphs if graph.side}
    wanted = config.window if isinstance(config.window, tuple) else (config.window,) * 2
    if len(sides) > 1 or (sides and config.window is not None and wanted not in sides):
        accepted = " and ".join(f"{height} x {width}" for height, width in sorted(sides))
        raise InputError(
            f"cannot classify in common windows, since --window is {config.window} and the networks take "
            f"only windows of {accepted} pixels",
            "Leave --window out, and name networks of one size.",
        )
    return dataclasses.replace(config, window=sides.pop()) if sides else config


@contextlib.contextmanager
def open_job(
    config: ClassifyConfig, members: Sequence[Member] = (), sources: Sequence[Source] = ()
) -> Iterator[Job]:
    """Find the model, open the mosaic and compare the two.

    Parameters
    ----------
    members
        The networks, where another process has compared them with the mosaic already.
    sources
        Open rasters instead of the inputs that the config names; each may hold bands and indices.

    Raises
    ------
    InputError
        If the model or the mosaic can't be used, or they don't fit together.
    """
    if members:
        bands, indices = sort_inputs(config.inputs, config, members[0].card.inputs)
        with open_stack(bands, indices, config, channels=members[0].card.inputs) as stack:
            yield Job(config, members, stack)
        return
    models = [weights.find_model(name, config.pick) for name in (config.model, *config.ensemble)]
    members = [Member(model, _card_of(model, config)) for model in models]
    channels = members[0].card.inputs
    named: tuple[Sequence[str | Source], Sequence[str | Source]] = (
        sort_sources(sources) if sources else sort_inputs(config.inputs, config, channels)
    )
    check_alike(members)
    _check_confidence(members[0].card, config)
    _check_novelty(members, config)
    with open_stack(*named, config, channels=channels) as stack:
        yield Job(config, [_compare(member, stack, config) for member in members], stack)


def problems_of(member: Member) -> list[str]:
    """Return warnings about weights that hold for any mosaic."""
    problems = [unfinished] if (unfinished := weights.unfinished_run(member.path)) else []
    if member.card.simulated:
        problems.append(
            f"'{member.card.name}' was trained on simulated imagery: a map of a real region made with it "
            "says nothing about that region"
        )
    return problems


def _compare(member: Member, stack: Stack, config: ClassifyConfig) -> Member:
    """Compare a network with the mosaic; return it, with ``--statistics mosaic`` with other statistics."""
    for problem in problems_of(member):
        logger.warning("%s", problem)
    _check_coding(member.card, stack)
    _check_pixel_size(member.card, stack.grid, strict=config.strict)
    if config.statistics == "mosaic":
        return Member(member.path, _with_mosaic_statistics(member.card, stack))
    if config.statistics != "none" and not isinstance(member.card.network, GraphConfig):
        # The statistics of an imported network are the scaling of its input, not its training data.
        _check_domain(member.card, stack, strict=config.strict)
    return member


def versions() -> dict[str, str]:
    """Versions of the libraries that decide values and bytes beside the engine."""
    return {
        "numpy": np.__version__,
        "numcodecs": version("numcodecs"),
        "opencv": cv2.__version__,
        "gdal": rasterio.__gdal_version__,
    }


def legend_of(card: ModelCard) -> Legend:
    """Return the classes of the map: those of the card, or its single class with number 1."""
    if card.single_class is None:
        return card.legend
    chosen = next(c for c in card.legend.classes if c.name == card.single_class)
    return Legend(card.legend.name, (dataclasses.replace(chosen, number=1),))


def _check_confidence(card: ModelCard, config: ClassifyConfig) -> None:
    """Refuse --min-confidence where class 0 means the rest."""
    if card.single_class is not None and config.min_confidence:
        raise InputError(
            f"cannot use --min-confidence with '{card.name}', since its only class is '{card.single_class}' "
            "and 0 means the rest in its maps, expected a network of several classes",
            "Leave --min-confidence out: the activation band says how sure each pixel is.",
        )


def _check_novelty(members: Sequence[Member], config: ClassifyConfig) -> None:
    """Refuse the out-of-distribution score where a card has no description of the training data."""
    lacking = [str(member.path) for member in members if member.card.novelty is None]
    if NOVELTY in config.extra and lacking:
        raise InputError(
            f"cannot write the band 'novelty', since the card of '{lacking[0]}' doesn't say what its "
            "training data look like, expected an entry 'novelty'",
            "Leave novelty out of --extra, or train again: train_model.py writes that entry.",
        )


def _card_of(model: Path, config: ClassifyConfig) -> ModelCard:
    """Return the card beside the weights; for a legacy file, make one."""
    if model.suffix in (".keras", ".npz", ".onnx"):
        if config.statistics is not None:
            raise InputError(
                f"cannot use --statistics with '{model}', since its card has the statistics of its training, "
                "expected a legacy .h5 file",
                "Leave --statistics out.",
            )
        card = load_card(model)
        check_classifies(card)
        if model.suffix == ".keras" and not config.engine.startswith("openvino"):
            # Checked before a framework is loaded, which takes longer than all checks.
            weights.read_arrays(model, card)
        return card
    if model.suffix not in (".h5", ".hdf5"):
        raise InputError(
            f"cannot use '{model}' as weights, expected one that ends in .keras, in .npz "
            "for a forest, in .onnx for an imported network, or in .h5 for Keras 2",
            "Give the weights first, then bands and indices, then the map: MODEL INPUT [INPUT ...] OUT.",
        )
    if config.statistics is None:
        raise InputError(
            f"cannot use the weights '{model}', since Keras 2 files hold no statistics to standardise with, "
            "expected --statistics",
            "Type --statistics FILE with those of its training (JSON, or the original's pickle); or "
            "--statistics mosaic to take this mosaic's own, as the original script did; or none.",
        )
    known = None if config.statistics in ("mosaic", "none") else read_statistics(config.statistics)
    return weights.load_legacy(model, known)[1]


def _with_mosaic_statistics(card: ModelCard, stack: Stack) -> ModelCard:
    """Return the card with the statistics of all valid pixels of the mosaic."""
    logger.warning(
        "the mosaic is standardised by its own statistics, as the original script did: a pixel may get "
        "another class with another season or extent. Give the statistics of the training if you have them."
    )
    squares = list(squares_of(stack.grid.extent, side=512))
    statistics = domain_shift.statistics_of(stack.read, squares, stack.channel_set.optional)
    if not statistics.count:
        raise no_valid_pixel()
    deviation = tuple(s or 1.0 for s in statistics.std)
    return dataclasses.replace(card, statistics=dataclasses.replace(statistics, std=deviation))


def _check_coding(card: ModelCard, stack: Stack) -> None:
    """Warn where indices were read from files in training and are computed here, or vice versa."""
    changes: dict[tuple[str, str], list[str]] = {}
    for channel in card.channels:
        here = stack.coding.get(channel.name, channel.coding)
        if here != channel.coding and channel.coding in ("read", "computed", "unknown"):
            changes.setdefault((here, channel.coding), []).append(channel.name)
    for (here, there), names in changes.items():
        logger.warning(
            "%s: %s here, %s where '%s' was trained; indices of other dates or levels differ",
            ", ".join(names), here, "coded in an unknown way" if there == "unknown" else there, card.name,
        )  # fmt: skip


def _check_domain(card: ModelCard, stack: Stack, *, strict: bool) -> None:
    """Warn of a mosaic that is far from the training data, band by band; refuse it if `strict`."""
    windows = domain_shift.sample_windows(*stack.grid.shape)
    statistics = domain_shift.statistics_of(stack.read, windows, stack.channel_set.optional)
    if not statistics.count:
        logger.warning(
            "no sampled window holds a valid pixel: the mosaic is not compared with the training data"
        )
        return
    lines, reason = domain_shift.differences([c.name for c in card.channels], statistics, card.statistics)
    if not lines:
        return
    problem = "the mosaic lies far from the training data of '" + card.name + "':\n  " + "\n  ".join(lines)
    _warn_or_refuse(problem, reason, strict=strict)


def _warn_or_refuse(problem: str, advice: str, *, strict: bool) -> None:
    if strict:
        raise InputError(f"cannot classify, since {problem}", f"{advice} Or leave --strict out.")
    logger.warning("%s\n%s", problem, advice)


def pixel_size_problem(card: ModelCard, grid: GridSpec) -> str:
    """Describe how the pixel size on the ground differs from that of the training; empty if it doesn't."""
    entries = [entry for entry in card.training.get("data", []) if isinstance(entry, dict)]
    widths = _lengths(entry.get("pixel_size") for entry in entries)
    # Cards of earlier versions hold only the width.
    heights = _lengths(entry.get("pixel_height", entry.get("pixel_size")) for entry in entries)
    size = pixel_on_ground(grid) or ()
    for side, metres, known in zip(("wide", "high"), size, (widths, heights), strict=False):
        if min(known) / SIZE_RATIO <= metres <= max(known) * SIZE_RATIO:
            continue
        trained = f"{min(known):.3g}" if min(known) == max(known) else f"{min(known):.3g} to {max(known):.3g}"
        return (
            f"a pixel of the mosaic is {metres:.3g} m {side} on the ground, but '{card.name}' was trained on "
            f"pixels of {trained} m, whose textures and shapes are others"
        )
    return ""


def _lengths(values: Iterable[Any]) -> list[float]:
    return [float(v) for v in values if isinstance(v, int | float) and v > 0] or [NATIVE_PIXEL]


def _check_pixel_size(card: ModelCard, grid: GridSpec, *, strict: bool) -> None:
    """Warn of pixels of another size than those of the training; refuse them if `strict`."""
    if problem := pixel_size_problem(card, grid):
        advice = "Resample the mosaic: --like RASTER --resample, with a raster of the pixels of the training."
        _warn_or_refuse(problem, advice, strict=strict)


def no_valid_pixel() -> InputError:
    """Error of a mosaic without a valid pixel."""
    return InputError(
        "cannot classify, since no pixel of the mosaic is valid, expected some with all channels",
        "Check bands, fills, no-data values and masks: a pixel is valid where it has all channels.",
    )
