"""Plan of a training: a description of the labels, and the recipe and options chosen by it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from lulc.config import AUTO, RECIPES, TrainConfig
from lulc.core.schema import IGNORE, SPARSE
from lulc.models.config import NetworkConfig
from lulc.models.legacy import read_legacy
from lulc.models.weights import FEW_LABELS, find_model, load_card
from lulc.training.data.dataset import Dataset, class_targets
from lulc.training.data.pixels import labelled_squares

FEW = 100_000
"""Labelled pixels up to which there are few labels: as many as three batches of the default recipe hold."""

ABOUT_NETWORKS = (*(name for name in RECIPES["default"] if name != "calibrate"), "init", "minutes")
"""Options of networks alone: giving one of them asks for a network."""

SHOWN = ("epochs", "steps", "batch_size", "crop_sizes", "filters", "block", "dropout", "loss")
"""Options that a plan shows."""


@dataclass(frozen=True)
class Fingerprint:
    """Description of the labels of a dataset.

    Parameters
    ----------
    scenes, channels
        Number of folders of stacks, and of channels.
    training, validation
        Labelled pixels.
    share
        Labelled fraction of the pixels of the training stacks.
    classes
        Labelled training pixels by class, without classes that have none.
    patches
        Patches of these labels by class, usually polygons; empty for dense labels.
    """

    scenes: int
    channels: int
    training: int
    validation: int
    share: float
    classes: dict[str, int]
    patches: dict[str, int]


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of a training.

    Parameters
    ----------
    config
        Config with every option filled in.
    fingerprint
        Description of the labels.
    reasons
        Reasons for the recipe and for options chosen by the data, as sentences.
    network
        False if small models alone are fitted.
    """

    config: TrainConfig
    fingerprint: Fingerprint
    reasons: tuple[str, ...]
    network: bool

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {
            "format_version": 1,
            "recipe": self.config.recipe,
            "network": self.network,
            "reasons": list(self.reasons),
            "data": dataclasses.asdict(self.fingerprint),
            "options": {name: getattr(self.config, name) for name in RECIPES["default"]},
        }

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        data, config = self.fingerprint, self.config
        classes = ", ".join(
            f"{name} {pixels:,}" + (f" in {data.patches[name]}" if name in data.patches else "")
            for name, pixels in data.classes.items()
        )
        options = (f"{name.replace('_', ' ')} {_text(getattr(config, name))}" for name in SHOWN)
        return [
            f"labels: {data.training:,} px train ({100 * data.share:.1f} % of their stacks), "
            f"{data.validation:,} px validate; {data.channels} channels",
            f"classes, px{' in patches' if data.patches else ''}: {classes}",
            *self.reasons,
            f"recipe {config.recipe}: {', '.join(options) if self.network else 'small models'}",
        ]


def plan_training(config: TrainConfig, dataset: Dataset) -> TrainingPlan:
    """Choose the options that are None, and the recipe if it is ``auto``, by the labels of a dataset."""
    data = fingerprint_of(dataset)
    recipe, reasons = config.recipe, []
    if recipe == AUTO:
        few = data.training <= FEW and (data.share < SPARSE or _are_patches(dataset))
        recipe = FEW_LABELS if few else "default"
        labels = f"{data.training:,} px on {100 * data.share:.1f} % of the pixels of their stacks"
        reasons.append(
            f"few labels: {labels}; up to {FEW:,} px the mean of small models mostly gives the better map"
            if few
            else f"labels for a network: {labels}"
        )
    resolved = dataclasses.replace(_with_network_of_init(config), recipe=recipe).resolved()
    # 0 is given, too.
    given = [name for name in ABOUT_NETWORKS if getattr(config, name) is not None]
    if recipe == FEW_LABELS:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given[:3])
        reasons.append(
            f"a small network beside it, since {shown} is given"
            if given
            else "no network, since it was no better on the mean of real scenes and takes minutes; "
            "--recipe default, or an option of a network as --epochs, trains one"
        )
        if not given:
            return TrainingPlan(resolved, data, tuple(reasons), network=False)
    sizes: dict[str, Any] = {}
    for name, tiles in (("crop_sizes", dataset.training), ("validation_crop_sizes", dataset.validation)):
        planned = getattr(resolved, name)
        fitting = _fitting(planned, tiles, 2 ** len(resolved.filters))
        if getattr(config, name) is None and fitting != planned:
            sizes[name] = fitting
            reasons.append(f"{name.replace('_', ' ')} {_text(fitting)}, since no stack is larger")
    return TrainingPlan(dataclasses.replace(resolved, **sizes), data, tuple(reasons), network=True)


def _with_network_of_init(config: TrainConfig) -> TrainConfig:
    """Return a config with the network of its initial weights, unless an option defines the network."""
    shape = ("filters", "decoder_filters", "bottleneck", "block", "norm")
    if config.init is None or any(getattr(config, name) for name in shape):
        return config
    path = find_model(config.init)
    network = read_legacy(path)[0] if path.suffix == ".h5" else load_card(path).network
    if not isinstance(network, NetworkConfig):
        return config
    return dataclasses.replace(config, **{name: getattr(network, name) for name in shape})


def fingerprint_of(dataset: Dataset) -> Fingerprint:
    """Describe the labels of a dataset."""
    pixels = sum(tile.masks.shape[0] * tile.masks.shape[1] for tile in dataset.training)
    total = int(dataset.counts.sum())
    names = dataset.legend.names
    targets = class_targets(len(names))
    patches: dict[str, int] = {}
    if total <= FEW and (total < SPARSE * pixels or _are_patches(dataset)):
        for square in labelled_squares(dataset.training, targets):
            _, first = np.unique(square.patches, return_index=True)
            for label in square.labels[first]:
                patches[names[label]] = patches.get(names[label], 0) + 1
    held_out = sum(int((targets[np.asarray(tile.masks[:])] != IGNORE).sum()) for tile in dataset.validation)
    return Fingerprint(
        scenes=len(dataset.provenance),
        channels=len(dataset.channels),
        training=total,
        validation=held_out,
        share=total / max(1, pixels),
        classes={name: int(n) for name, n in zip(names, dataset.counts, strict=True) if n},
        patches=patches,
    )


def _are_patches(dataset: Dataset) -> bool:
    """Return True if patches, not stacks, were split into training and validation."""
    return all(entry.get("patches") for entry in dataset.provenance)


def _fitting(sides: tuple[int, ...], tiles: tuple[Any, ...], stride: int) -> tuple[int, ...]:
    """Return the crop sides that fit the largest stack; if none does, the largest multiple of the stride."""
    largest = max(min(tile.masks.shape) for tile in tiles)
    return tuple(side for side in sides if side <= largest) or (max(stride, largest // stride * stride),)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
