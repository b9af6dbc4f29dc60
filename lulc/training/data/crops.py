"""Batches of a training config: to train on, to validate on, and for batch norm."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lulc.config import TrainConfig
from lulc.core.schema import InputError
from lulc.models import backend
from lulc.training.data.augmentation import Augmentation, Dropout, Flip, Jitter
from lulc.training.data.batches import BatchConfig, TileGenerator, pad_small, pixels_per_crop
from lulc.training.data.dataset import Dataset
from lulc.training.data.masking import MaskedCrops
from lulc.training.data.on_device import ResidentCrops
from lulc.training.data.sampling import KEPT, ClassSampler, LabelledPixels, stack_weights

PLAIN_PIXELS, PLAIN_LEAST, PLAIN_SIDE = 4e6, 4, 512
"""Most pixels, fewest crops and largest side of the crops for the statistics of batch norm. They are large,
since in a map few windows are padded with zeros."""

PLAIN_FRACTION = 1 / 12
"""Pixels of these crops in short epochs, as a fraction of the pixels trained on."""

VALIDATED_FRACTION = 0.225
"""Most pixels validated after an epoch, as a fraction of the pixels trained on. A validated pixel costs a
third to two thirds of a trained one, so that validation takes less than a fifth of the training time."""

logger = logging.getLogger("lulc")

SMALL = 2e9
"""Most bytes of stacks that `--stacks-on auto` copies to a GPU."""

COPIES = 3
"""Copies of the stacks in the host's memory while they move to the device: TensorFlow 3, PyTorch 2, JAX 1."""


def training_crops(config: TrainConfig, dataset: Dataset, own: range | None = None) -> TileGenerator:
    """Return the training batches of a resolved config, cut on the device if ``stacks_on`` is ``device``.

    `own` are the numbers of the crops of each batch to cut, by default all. Raises InputError if no crop fits
    a stack, or the stacks lack bands that the augmentation changes.
    """
    batches = _common(config, dataset)
    tiles = pad_small(dataset.training, config.crop_sizes, config.rotations, "--crop-sizes")
    batches |= {
        "steps": config.steps,
        "crop_sizes": config.crop_sizes,
        **_rotation_of(config, dataset),
        "augmentations": _augmentations(config, dataset),
        "batch_from": config.batch_from,
        "own_crops": own,
    }
    if config.rare_classes or config.balance != "stacks":
        kept = KEPT if config.rare_classes else 0
        labelled = LabelledPixels(tiles, batches["targets"], config.seed, kept)
        if config.rare_classes:
            batches["sampler"] = ClassSampler(labelled, config.rare_classes, config.rare_temperature)
        batches["stack_weights"] = stack_weights(labelled, config.balance, config.rare_temperature).tolist()
    kind = ResidentCrops if config.stacks_on == "device" else _kind(config, dataset)
    return kind(tiles, BatchConfig(**batches))


def validation_crops(config: TrainConfig, dataset: Dataset, own: range | None = None) -> TileGenerator:
    """Return the validation batches: crops from anywhere, without augmentation."""
    option, sizes = "--validation-crop-sizes", config.validation_crop_sizes
    common = _common(config, dataset) | {"own_crops": own, "option": option}
    batches = BatchConfig(steps=config.validation_steps, crop_sizes=sizes, **common)
    return _kind(config, dataset)(pad_small(dataset.validation, sizes, 1, option), batches)


def plain_crops(config: TrainConfig, dataset: Dataset) -> list[TileGenerator]:
    """Return unaugmented crops of the training stacks for the statistics of batch norm, one a batch.

    All stacks, or a random choice of many, have the same number of crops, as large as the stack allows. A
    pretraining masks blocks here, too. The crops have at most `PLAIN_PIXELS` together, in short epochs
    `PLAIN_FRACTION` of the pixels trained on, or up to three times as many if a validation has as many.
    """
    stride = 2 ** len(config.filters)
    trained, validated = _pixels(config, dataset)
    short = trained * PLAIN_FRACTION
    wanted = min(PLAIN_PIXELS, max(short, min(validated, 3 * short)))
    usable = [i for i, tile in enumerate(dataset.training) if tile.side >= stride]
    least = PLAIN_LEAST if len(usable) > PLAIN_LEAST else math.ceil(PLAIN_LEAST / len(usable)) * len(usable)
    longest = min(PLAIN_SIDE, max(1, round(math.sqrt(wanted / least) / stride)) * stride)
    sides = [min(longest, tile.side) // stride * stride for tile in dataset.training]
    pixels = float(np.mean(np.square([sides[i] for i in usable])))
    count = max(least, math.ceil(wanted / pixels))
    if count < len(usable):
        usable = sorted(np.random.default_rng(config.seed).choice(usable, count, replace=False).tolist())
    steps = count // len(usable)
    common = _common(config, dataset) | {"batch_size": 1, "steps": steps}
    kind = _kind(config, dataset)
    return [kind([dataset.training[i]], BatchConfig(crop_sizes=(sides[i],), **common)) for i in usable]


def limit_validation(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Return a resolved config whose validation batches cost at most a fifth of the training time.

    A log line reports a number smaller than that of the recipe.
    """
    trained, validated = _pixels(config, dataset)
    fraction = (VALIDATED_FRACTION - PLAIN_FRACTION) / 2 if config.average else VALIDATED_FRACTION
    planned = config.validation_steps
    steps = min(planned, max(1, int(planned * fraction * trained / validated)))
    if steps < planned:
        logger.info(
            "an epoch is validated on %d of %d batches, so that this takes less than a fifth of the "
            "training time; --validation-steps sets another number",
            steps, planned,
        )  # fmt: skip
    return dataclasses.replace(config, validation_steps=steps)


def _pixels(config: TrainConfig, dataset: Dataset) -> tuple[float, float]:
    """Return the pixels of an epoch's training batches, and those of its validation batches."""
    training = pixels_per_crop(dataset.training, config.crop_sizes, config.rotations)
    validation = pixels_per_crop(dataset.validation, config.validation_crop_sizes)
    batch = config.batch_size
    return config.steps * batch * training, config.validation_steps * batch * validation


def check_crop_device(config: TrainConfig, devices: int = 1) -> None:
    """Raise InputError if a resolved config asks for crops that one of `devices` devices can't cut."""
    hindrance = _hindrance(config, devices)
    if config.stacks_on == "device" and hindrance:
        raise InputError(
            f"cannot cut crops on the device, since {hindrance}: one device holds the stacks and copies "
            "pixels without changing their values",
            "Give `--stacks-on host`, or leave it out.",
        )


def choose_crop_device(config: TrainConfig, dataset: Dataset, devices: int, free: float) -> str:
    """Return where training crops are cut: ``device``, to which the stacks are then copied, or ``host``.

    Raises InputError if the config asks for the device, but it can't cut the crops, or the `free` bytes of
    the host's memory are too few.
    """
    check_crop_device(config, devices)
    channels = dataset.channel_set
    reason = "some may lack channels" if channels and channels.optional else ""
    reason = reason or ("they hold directions" if directions_of(dataset) != () else "")
    if reason:
        if config.stacks_on == "device":
            raise InputError(
                f"cannot cut crops on the device, since {reason}, which the host computes",
                "Give `--stacks-on host`, or leave it out.",
            )
        return "host"
    pixels = sum(math.prod(tile.image.shape[:2]) for tile in dataset.training)
    size = 4 * pixels * len(dataset.channels)
    fits = COPIES * size <= free and pixels <= np.iinfo(np.int32).max
    if config.stacks_on == "device" and not fits:
        raise InputError(
            f"cannot copy the training stacks to the device, since they hold {pixels / 1e6:.0f} million "
            f"pixels and need {COPIES * size / 1e9:.1f} GB of memory for the copy, expected at most 2147 "
            f"million and {free / 1e9:.1f} GB (now free)",
            "Give `--stacks-on host`, or leave it out: crops are then read from disk.",
        )
    gpu = backend.device_name() != "CPU"
    if config.stacks_on == "device" and not gpu:
        logger.warning("there is no GPU: the stacks are copied within the host's memory without any benefit")
    if config.stacks_on == "auto":
        return "device" if gpu and fits and size <= SMALL and not _hindrance(config, devices) else "host"
    return config.stacks_on


def _hindrance(config: TrainConfig, devices: int) -> str:
    """Return the reason why the device can't cut crops; empty if it can."""
    reasons = {
        "a pretraining masks parts of crops": bool(config.pretrain),
        f"{devices} devices train, expected one": devices > 1,
        f"--rotations is {config.rotations}, expected 1, 2 or 4": config.rotations not in (1, 2, 4),
        f"--gain is {config.gain}, expected 0": config.gain != 0,
        f"--offset-jitter is {config.offset_jitter}, expected 0": config.offset_jitter != 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _kind(config: TrainConfig, dataset: Dataset) -> Callable[..., TileGenerator]:
    if not config.pretrain:
        return TileGenerator
    assert config.mask_ratio is not None and config.mask_block is not None, "of a config that is not resolved"
    return partial(
        MaskedCrops, statistics=dataset.statistics, ratio=config.mask_ratio, block=config.mask_block
    )


def directions_of(dataset: Dataset) -> tuple[tuple[int, int], ...] | None:
    """Return the channels with directions, see `ChannelSet.directions`."""
    return dataset.channel_set.directions if dataset.channel_set else ()


def _rotation_of(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the options of a `BatchConfig` about rotation."""
    channels, directions = dataset.channel_set, directions_of(dataset)
    if directions is None:
        logger.warning(
            "crops are neither mirrored nor rotated, since a channel holds a direction that can't be rotated;"
            " a set with both aspect_sin and aspect_cos, and no formula of either, allows it"
        )
        return {"rotations": 1}
    nearest = channels.nearest if channels else ()
    return {"rotations": config.rotations, "directions": directions, "nearest": nearest}


def _augmentations(config: TrainConfig, dataset: Dataset) -> tuple[Augmentation, ...]:
    """Return the augmentations of each crop, in order."""
    directions = directions_of(dataset)
    augmentations: list[Augmentation] = [] if directions is None else [Flip(directions)]
    if config.gain or config.offset_jitter:
        augmentations.append(
            Jitter(dataset.channels, dataset.channel_set, gain=config.gain, offset=config.offset_jitter)
        )
    if config.date_dropout and dataset.channel_set and dataset.channel_set.optional:
        augmentations.append(Dropout(dataset.channel_set, config.date_dropout))
    return tuple(augmentations)


def _common(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    targets = dataset.targets(config.single_class)
    return {"targets": targets, "batch_size": config.batch_size, "seed": config.seed}
