"""Import of a network of another toolkit: check it, and write a copy with a model card."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lulc.config import ImportModelConfig
from lulc.core.channels import CHANNEL_SETS, ChannelSet, set_of
from lulc.core.claims import claim_outputs
from lulc.core.schema import InputError, Legend
from lulc.core.statistics import Statistics
from lulc.core.storage import sha256_of, temporary_folder
from lulc.core.version import __version__
from lulc.core.windows import Plan
from lulc.datasets.loading import load_manifest
from lulc.datasets.manifest import StackFile, open_tile
from lulc.engines.graphs import ONNXRUNTIME
from lulc.engines.registry import EngineRequest, build_engine, choose_engine
from lulc.labels.schemes import load_scheme
from lulc.models.calibration import Holdout
from lulc.models.card import Channel, ModelCard, card_path, write_with_card
from lulc.models.config import GraphConfig
from lulc.models.onnx_file import GraphFile, read_graph
from lulc.models.uncertainty import decide
from lulc.models.weights import IMPORTED, PICKS_FILE, RUN_FILE
from lulc.rasters.channels import load_channels
from lulc.rasters.names import canonical_name
from lulc.training.data.dataset import Tile, class_targets
from lulc.training.held_out import SIDE, predict_tile

logger = logging.getLogger("lulc")

MAX_DIFFERENCE = 1e-3
"""Largest difference between the scores of two runtimes."""

MAX_ERROR = 0.01
"""Tolerance of sums of probabilities, which clipping and resampling after the softmax change."""


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Parameters
    ----------
    accuracy
        Overall accuracy on the stacks of the calibration; None without one.
    """

    path: Path
    card: ModelCard
    accuracy: float | None


def import_model(config: ImportModelConfig) -> Imported:
    """Check a foreign network and write it with a card.

    Raises
    ------
    InputError
        If the file is unusable, channels or classes don't fit it, or the folder holds a network or training.
    """
    channels, legend = _channels(config.channels), load_scheme(config.legend).legend
    path = Path(config.out) / IMPORTED
    if any(path.with_name(name).exists() for name in (RUN_FILE, PICKS_FILE)):
        raise InputError(
            f"cannot import into '{config.out}', since it holds a training, whose models have names of their "
            "own",
            "Give another folder: --out FOLDER",
        )
    with claim_outputs([path, card_path(path)], config) as claims:
        if path.exists() and not (config.overwrite or claims.may_replace(path)):
            raise InputError(
                f"cannot write '{path}', since it exists already", "Give another --out, or add --overwrite."
            )
        graph = read_graph(config.model, len(channels.channels), output=config.output or "")
        card = _card(config, channels, legend, graph)
        accuracy = None
        with temporary_folder(Path(config.out)) as folder:
            trial = folder / IMPORTED
            trial.write_bytes(graph.content)
            _run_once(trial, card)
            if config.calibrate is not None:
                card, accuracy = _calibrated(config.calibrate, trial, card)
        card = write_with_card(graph.content, card, path)
    return Imported(path, card, accuracy)


def _channels(option: Sequence[str]) -> ChannelSet:
    """Return the channels of a set or file, or those that ``--channels`` lists."""
    if len(option) == 1 and (option[0] in CHANNEL_SETS or Path(option[0]).is_file()):
        return load_channels(option[0])
    names = tuple(canonical_name(name) or name for name in option)
    if len(set(names)) < len(names):
        raise InputError(
            f"cannot import the network, since its channels are {', '.join(names)}, expected different ones",
            "Name the channels of its input in order: --channels B02 B03 B04 B08.",
        )
    return set_of(names)


def _card(config: ImportModelConfig, inputs: ChannelSet, legend: Legend, graph: GraphFile) -> ModelCard:
    expected = 1 if config.single_class else len(legend)
    if graph.network.classes != expected:
        needed = (
            f"'{config.single_class}' needs 1" if config.single_class else f"the legend {expected} classes"
        )
        raise InputError(
            f"cannot import '{config.model}', since it has {graph.network.classes} outputs and {needed}",
            "Give the legend of its outputs in order, or with one output --single-class NAME.",
        )
    channels = inputs.names
    return ModelCard(
        name=config.name or Path(config.out).resolve().name,
        channels=tuple(Channel(one.name, one.unit) for one in inputs.channels),
        channel_set=inputs.recorded,
        legend=legend,
        statistics=Statistics(
            _for_each(config.mean, channels, "mean", 0.0), _for_each(config.std, channels, "std", 1.0)
        ),
        network=graph.network,
        stride=graph.stride,
        halo=graph.halo,
        single_class=config.single_class,
        training={"imported": {"file": Path(config.model).name, "sha256": sha256_of(config.model)}},
        versions={"lulc": __version__},
        sha256=hashlib.sha256(graph.content).hexdigest(),
        bytes=len(graph.content),
        description=config.description or "",
        licence=config.licence or "",
        attribution=config.attribution or "",
    )


def _for_each(
    numbers: Sequence[float], channels: Sequence[str], option: str, default: float
) -> tuple[float, ...]:
    values = tuple(numbers) or (default,)
    if len(values) not in (1, len(channels)):
        raise InputError(
            f"cannot take {len(values)} numbers for --{option}, expected 1, or {len(channels)} as there are "
            "channels",
            "Give one for all channels, or one for each in their order.",
        )
    return values if len(values) == len(channels) else values * len(channels)


def _run_once(path: Path, card: ModelCard) -> None:
    """Run the network on noise, to refuse one that a runtime can't run or computes differently."""
    shape, network = (1, *_window_shape(card)), cast(GraphConfig, card.network)
    size = (*shape, len(card.channels))
    x = np.random.default_rng(0).normal(card.statistics.mean, card.statistics.std, size)
    installed = [name for name in ("openvino", ONNXRUNTIME) if importlib.util.find_spec(name)]
    request = EngineRequest(path=path, card=card, shape=shape)
    results = [
        build_engine(choose_engine(name, networks=[card.network]), request)(x.astype(np.float32))
        for name in installed or ["auto"]
    ]
    for y in results:
        if y.shape != (*shape, card.network.classes) or not np.isfinite(y).all():
            raise InputError(
                f"cannot import '{card.name}', since it gives {y.shape} or values that are not finite",
                "Check its export, --mean and --std.",
            )
        if not (network.logits or _are_probabilities(y)):
            raise InputError(
                f"cannot import '{card.name}', since it ends in a softmax, but its scores don't sum to 1 "
                "over the classes of a pixel",
                "Let its softmax run over the axis of the classes, or export it without one.",
            )
        if (difference := float(np.abs(y - results[0]).max())) > MAX_DIFFERENCE:
            raise InputError(
                f"cannot import '{card.name}', since its scores in {' and '.join(installed)} differ by up to "
                f"{difference:.2g}, expected at most {MAX_DIFFERENCE:.0e}",
                "Export it with other operators, of another opset for example.",
            )
    if network.logits and _came_from_probabilities(results[0]):
        logger.warning(
            "the scores of '%s' lie within 0 to 1: if they are probabilities, export its logits instead, "
            "since its graph does not end in a softmax or sigmoid, and one is added",
            card.name,
        )


def _are_probabilities(scores: np.ndarray) -> bool:
    """Return True if scores (n, y, x, class) sum to 1 at most pixels, or are of one class."""
    return scores.shape[-1] == 1 or bool(np.median(np.abs(scores.sum(axis=-1) - 1)) < MAX_ERROR)


def _came_from_probabilities(y: np.ndarray) -> bool:
    """Return True if `y` (n, y, x, class) is the softmax or sigmoid of scores within 0..1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if y.shape[-1] == 1:
            scores = np.log(y / (1 - y))
        else:
            # The softmax loses a constant, which follows if the scores sum to 1.
            scores = np.log(y) - np.log(y).mean(axis=-1, keepdims=True) + 1 / y.shape[-1]
    return bool(scores.min() > -MAX_ERROR and scores.max() < 1 + MAX_ERROR)


def _window_shape(card: ModelCard) -> tuple[int, int]:
    """Return rows and columns of the windows in which stacks are classified."""
    network: Any = card.network
    side = -(-SIDE // card.stride) * card.stride + 2 * card.halo
    return network.side or (side, side)


def _calibrated(folder: str, path: Path, card: ModelCard) -> tuple[ModelCard, float]:
    """Return the card with the temperature that is fitted to some stacks, and the accuracy there."""
    manifest = load_manifest(folder)
    channels, classes = [c["name"] for c in manifest.channels], list(manifest.legend.names)
    if (channels, classes) != ([c.name for c in card.channels], list(card.legend.names)):
        raise InputError(
            f"cannot calibrate with '{folder}', since its channels are {', '.join(channels)} and its classes "
            f"{', '.join(classes)}, expected those of the network: "
            f"{', '.join(c.name for c in card.channels)}; {', '.join(card.legend.names)}",
            "Prepare stacks with preprocess.py --channels and --scheme of the network.",
        )
    stacks = manifest.of("val") or manifest.stacks
    single = None if card.single_class is None else 1 + card.legend.names.index(card.single_class)
    holdout = Holdout(len(stacks))
    for stack in stacks:
        _add(holdout, stack, path, card, class_targets(len(card.legend), single))
    activations, labels = holdout.pixels()
    if not labels.size:
        raise InputError(
            f"cannot calibrate with '{folder}', since no pixel of its stacks is labelled",
            "Give stacks with labels, or leave --calibrate out.",
        )
    accuracy = float((decide(activations) == labels).mean())
    temperature = holdout.fit()
    logger.info(
        "temperature %s, accuracy %.3f on %d pixels of '%s'", temperature, accuracy, labels.size, folder
    )
    names = [f"{manifest.folder.name}/{stack.name}" for stack in stacks]
    scores = {"val_accuracy": accuracy, "validation stacks": names}
    return dataclasses.replace(card, temperature=temperature, scores=scores), accuracy


def _add(holdout: Holdout, stack: StackFile, path: Path, card: ModelCard, targets: np.ndarray) -> None:
    tile = Tile(stack.name, *open_tile(stack))
    height, width = stack.shape
    padded = [-(-length // card.stride) * card.stride for length in (height, width)]
    rows, cols = map(min, _window_shape(card), padded)
    plan = Plan(height, width, card.stride, card.halo, (rows, cols), max(padded))
    request = EngineRequest(path=path, card=card, shape=(1, rows, cols))
    engine = build_engine(choose_engine("auto", networks=[card.network]), request)
    pieces = []
    for prediction in predict_tile(engine, tile, plan):
        if prediction.probabilities is not None and (valid := prediction.valid) is not None:
            labels = targets[tile.masks[prediction.window.write.slices]]
            pieces.append((prediction.probabilities[valid], labels[valid]))
    if pieces:
        holdout.add(*map(np.concatenate, zip(*pieces, strict=True)))
