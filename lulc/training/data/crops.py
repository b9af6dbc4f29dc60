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
from lulc.training.data.dataset import Dataset, class_targets
from lulc.training.data.masking import MaskedCrops
from lulc.training.data.on_device import ResidentCrops
from lulc.training.data.sampling import KEPT, ClassSampler, LabelledPixels, stack_weights

PLAIN_PIXELS, PLAIN_LEAST, PLAIN_SIDE = 4e6, 4, 512
"""For the statistics of batch norm: most pixels, fewest crops, and their longest side in pixels. They are
large, since a map has no zeros where land lies beyond the border of a crop."""

PLAIN_SHARE = 1 / 12
"""Share of the pixels of an epoch that batch norm's statistics are estimated from, in short epochs."""

LOOKED_AT = 0.225
"""Pixels of an epoch's validation by those it trains on. A pixel costs a third to two thirds of one that is
trained on, so that validation takes less than a fifth of the training time."""

logger = logging.getLogger("lulc")

SMALL = 2e9
"""Bytes of stacks that `--stacks-on auto` copies to a GPU at most."""

COPIES = 3
"""Copies of the stacks in the host's memory on their way to the device (TensorFlow; PyTorch 2, JAX 1)."""


def training_crops(config: TrainConfig, dataset: Dataset, own: range | None = None) -> TileGenerator:
    """Return the batches to train on.

    Parameters
    ----------
    config
        Resolved; crops are cut on the device where it says ``device`` (see `choose_crop_device`).
    dataset
        Training stacks to cut, and to search where classes are drawn.
    own
        Numbers of the crops of each batch that are cut; all where not given.

    Raises
    ------
    InputError
        If no crop fits a stack, or bands are to be changed that the stacks don't have.
    """
    batches = _common(config, dataset)
    tiles = pad_small(dataset.training, config.crop_sizes, config.rotations, "--crop-sizes")
    batches |= {
        "steps": config.steps,
        "crop_sizes": config.crop_sizes,
        **_turning(config, dataset),
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
    """Return the batches to validate on: crops cut anywhere, without augmentation."""
    option, sizes = "--validation-crop-sizes", config.validation_crop_sizes
    batches = BatchConfig(
        steps=config.validation_steps,
        crop_sizes=sizes,
        own_crops=own,
        option=option,
        **_common(config, dataset),
    )
    return _kind(config, dataset)(pad_small(dataset.validation, sizes, 1, option), batches)


def plain_crops(config: TrainConfig, dataset: Dataset) -> list[TileGenerator]:
    """Return crops that show the training stacks as a classification sees them, one batch each.

    Each stack, or each of some where there are many, gives as many crops as the others, as large as it
    allows. A pretraining masks its blocks here too. `PLAIN_PIXELS` in all, or in short epochs
    `PLAIN_SHARE` of what they train on; up to three times that where a validation looks at as much.
    """
    stride = 2 ** len(config.filters)
    trained, validated = _pixels(config, dataset)
    share = trained * PLAIN_SHARE
    wanted = min(PLAIN_PIXELS, max(share, min(validated, 3 * share)))
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
    """Return a resolved config with fewer validation batches where those of the recipe would cost more than a
    fifth of the training time; a log line tells their number.
    """
    trained, validated = _pixels(config, dataset)
    share = (LOOKED_AT - PLAIN_SHARE) / 2 if config.average else LOOKED_AT
    planned = config.validation_steps
    steps = min(planned, max(1, int(planned * share * trained / validated)))
    if steps < planned:
        logger.info(
            "an epoch is validated on %d of %d batches, so that this takes less than a fifth of the "
            "training time; --validation-steps sets another number",
            steps, planned,
        )  # fmt: skip
    return dataclasses.replace(config, validation_steps=steps)


def _pixels(config: TrainConfig, dataset: Dataset) -> tuple[float, float]:
    """Return the pixels that an epoch trains on, and those that are validated once."""
    crops = pixels_per_crop(dataset.training, config.crop_sizes, config.rotations)
    held_out = pixels_per_crop(dataset.validation, config.validation_crop_sizes)
    return (
        config.steps * config.batch_size * crops,
        config.validation_steps * config.batch_size * held_out,
    )


def check_crop_device(config: TrainConfig, devices: int = 1) -> None:
    """Raise InputError where a device is to cut crops that it can't.

    Parameters
    ----------
    config
        Resolved.
    devices
        That train together, of all processes.
    """
    hindrance = _hindrance(config, devices)
    if config.stacks_on == "device" and hindrance:
        raise InputError(
            f"cannot cut crops on the device, since {hindrance}: one device holds the stacks, and moves "
            "their pixels without computing any",
            "Give `--stacks-on host`, or leave it out.",
        )


def choose_crop_device(config: TrainConfig, dataset: Dataset, devices: int, free: float) -> str:
    """Return where the training crops are cut: ``device``, where their stacks are copied to, or ``host``.

    Parameters
    ----------
    config, devices
        As `check_crop_device` takes them.
    dataset
        The stacks.
    free
        Bytes of the host's memory that may be taken.

    Raises
    ------
    InputError
        If the device is asked for and can't do it, or the stacks don't pass through the host's memory.
    """
    check_crop_device(config, devices)
    channels = dataset.channel_set
    computed = "some may lack channels" if channels and channels.optional else ""
    computed = computed or ("they hold directions" if directions_of(dataset) != () else "")
    if computed:
        if config.stacks_on == "device":
            raise InputError(
                f"cannot cut crops on the device, since {computed}, which the host computes",
                "Give `--stacks-on host`, or leave it out.",
            )
        return "host"
    pixels = sum(math.prod(tile.image.shape[:2]) for tile in dataset.training)
    size = 4 * pixels * len(dataset.channels)
    fits = COPIES * size <= free and pixels <= np.iinfo(np.int32).max
    if config.stacks_on == "device" and not fits:
        raise InputError(
            f"cannot copy the training stacks to the device, since they hold {pixels / 1e6:.0f} million "
            f"pixels and take {COPIES * size / 1e9:.1f} GB of memory on their way, expected at most 2147 "
            f"million and {free / 1e9:.1f} GB (now free)",
            "Give `--stacks-on host`, or leave it out: crops are then read from disk.",
        )
    gpu = backend.device_name() != "CPU"
    if config.stacks_on == "device" and not gpu:
        logger.warning("there is no GPU: the stacks are copied within the host's memory, which gains nothing")
    if config.stacks_on == "auto":
        return "device" if gpu and fits and size <= SMALL and not _hindrance(config, devices) else "host"
    return config.stacks_on


def _hindrance(config: TrainConfig, devices: int) -> str:
    """Return why crops can't be cut on the device; empty where they can."""
    hinders = {
        "a pretraining masks parts of crops": bool(config.pretrain),
        f"{devices} devices train, expected one": devices > 1,
        f"--rotations is {config.rotations}, expected 1, 2 or 4": config.rotations not in (1, 2, 4),
        f"--gain is {config.gain}, expected 0": config.gain != 0,
        f"--offset-jitter is {config.offset_jitter}, expected 0": config.offset_jitter != 0,
    }
    return next((reason for reason, holds in hinders.items() if holds), "")


def _kind(config: TrainConfig, dataset: Dataset) -> Callable[..., TileGenerator]:
    if not config.pretrain:
        return TileGenerator
    assert config.mask_ratio is not None and config.mask_block is not None, "of a config that is not resolved"
    return partial(
        MaskedCrops, statistics=dataset.statistics, ratio=config.mask_ratio, block=config.mask_block
    )


def directions_of(dataset: Dataset) -> tuple[tuple[int, int], ...] | None:
    """Return the channels that turn with the image, see `ChannelSet.directions`."""
    return dataset.channel_set.directions if dataset.channel_set else ()


def _turning(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the options of crops about rotation."""
    channels, directions = dataset.channel_set, directions_of(dataset)
    if directions is None:
        logger.warning(
            "crops are neither mirrored nor turned, since a channel tells a direction that can't be turned; "
            "a set with both aspect_sin and aspect_cos, and no formula of either, allows it"
        )
        return {"rotations": 1}
    nearest = channels.nearest if channels else ()
    return {"rotations": config.rotations, "directions": directions, "nearest": nearest}


def _augmentations(config: TrainConfig, dataset: Dataset) -> tuple[Augmentation, ...]:
    """Return the augmentations of each crop, in order."""
    directions = directions_of(dataset)
    found: list[Augmentation] = [] if directions is None else [Flip(directions)]
    if config.gain or config.offset_jitter:
        found.append(
            Jitter(dataset.channels, dataset.channel_set, gain=config.gain, offset=config.offset_jitter)
        )
    if config.date_dropout and dataset.channel_set and dataset.channel_set.optional:
        found.append(Dropout(dataset.channel_set, config.date_dropout))
    return tuple(found)


def _common(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    names = dataset.legend.names
    single = None if config.single_class is None else names.index(config.single_class) + 1
    return {
        "targets": class_targets(len(names), single),
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
