"""Folders of the original system: files named by it, without a manifest, with standardised images."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lulc.core.schema import BANDS, CHANNELS, IGNORE, InputError
from lulc.core.statistics import Statistics, read_statistics
from lulc.datasets.arrays import open_layers
from lulc.datasets.manifest import Manifest, StackFile, channel_units, open_tile, path_inside
from lulc.labels.schemes import load_scheme

logger = logging.getLogger("lulc")

STANDARDISED_BELOW = 20.0
"""Median of absolute band values: near 1 if standardised, in the hundreds for reflectance x 10000."""

_ORIGINAL_NAME = re.compile(r"(train|val)_(image|masks)_(\d{1,6})\.(npy|tif|tiff|img|nc|zarr)")


def is_original(folder: Path) -> bool:
    """True for a folder with files named as in the original system."""
    return folder.is_dir() and any(_ORIGINAL_NAME.fullmatch(p.name) for p in folder.iterdir())


def read_originals(folder: Path, already_standardised: bool) -> Manifest:
    """Return a manifest, made in memory, of a folder of the original system."""
    legend = load_scheme("kaakonkulma-13").legend
    pairs = _original_pairs(folder)
    scaling = _original_scaling(folder, pairs, already_standardised)
    stacks = tuple(
        _original_stack(split, index, image, masks, len(legend), scaling)
        for (split, index), (image, masks) in sorted(pairs.items())
    )
    if already_standardised and scaling is None:
        statistics = Statistics((0.0,) * len(CHANNELS), (1.0,) * len(CHANNELS))
    else:
        statistics = scaling or _statistics_of([s for s in stacks if s.split == "train"] or stacks)
    logger.warning(
        "%s has no manifest: channels are taken to be %s as in the original system; the coding of its "
        "last two indices is unknown, and stacks that overlap on the ground can't be found",
        folder, " ".join(CHANNELS),
    )  # fmt: skip
    channels = tuple(
        {"name": name, "unit": unit, "coding": "unknown" if name in ("NDBI", "NDSI") else "read"}
        for name, unit in channel_units().items()
    )
    return Manifest(folder, channels, "kaakonkulma-13", legend, stacks, statistics)


def _original_pairs(folder: Path) -> dict[tuple[str, int], tuple[Path, Path]]:
    """(split, index) to (image, masks)."""
    files: dict[tuple[str, int], dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _ORIGINAL_NAME.fullmatch(path.name)
        if not match:
            continue
        split, kind, index, _ = match.groups()
        pair = files.setdefault((split, int(index)), {})
        if kind in pair:
            raise InputError(
                f"cannot use '{folder}', since it has both '{pair[kind].name}' and '{path.name}'",
                "Keep one of them.",
            )
        pair[kind] = path_inside(folder, path.name)
    for (split, index), pair in files.items():
        if missing := {"image", "masks"} - pair.keys():
            raise InputError(
                f"cannot use '{folder}', since there is no {split}_{missing.pop()}_{index}.npy beside "
                f"'{next(iter(pair.values())).name}'",
                "A stack is an image and its masks.",
            )
    return {key: (pair["image"], pair["masks"]) for key, pair in files.items()}


def _original_scaling(
    folder: Path, pairs: dict[tuple[str, int], tuple[Path, Path]], already_standardised: bool
) -> Statistics | None:
    """Return the statistics by which the images are standardised; None if they are used as they are."""
    image = open_layers(next(iter(pairs.values()))[0])
    if len(image.shape) != 3 or image.shape[2] != len(CHANNELS):
        raise InputError(
            f"cannot use the stacks in '{folder}', since their shape is {tuple(image.shape)}, expected "
            f"(rows, columns, {len(CHANNELS)})",
            "Without a manifest, stacks have the 14 channels of the original system.",
        )
    row, col = (max(0, n // 2 - 64) for n in image.shape[:2])
    sample = np.abs(np.asarray(image[row : row + 128, col : col + 128], np.float64)[..., : len(BANDS)])
    if already_standardised or (sample.size and np.nanmedian(sample) > STANDARDISED_BELOW):
        return None
    files = sorted(folder.glob("*mean_and_std*.obj"))
    if len(files) != 1:
        raise InputError(
            f"cannot use the stacks in '{folder}', since they are standardised and {len(files)} files "
            "*mean_and_std*.obj lie beside them, expected one",
            "Copy the pickle with their statistics into the folder, or type --already-standardised.",
        )
    scaling = read_statistics(path_inside(folder, files[0].name))
    if len(scaling.mean) != len(CHANNELS):
        raise InputError(
            f"cannot use '{files[0]}', since it has {len(scaling.mean)} channels, expected {len(CHANNELS)}",
            "Give the statistics of these stacks.",
        )
    return scaling


def _original_stack(
    split: str, index: int, image: Path, masks: Path, classes: int, scaling: Statistics | None
) -> StackFile:
    height, width = open_layers(masks).shape[:2]
    stack = StackFile(f"{split}_{index}", split, image, masks, (height, width), (), standardised_by=scaling)
    numbers = open_tile(stack)[1]
    counts = np.zeros(256, np.int64)
    for row in range(0, height, 512):
        counts += np.bincount(numbers[row : row + 512, 0:width].ravel(), minlength=256)
    if odd := [n for n in (0, *range(classes + 1, IGNORE)) if counts[n]]:
        raise InputError(
            f"cannot use '{masks}', since it has the class {odd[0]}, expected 1..{classes}",
            "Without a manifest, masks have the 13 classes of the original system.",
        )
    return dataclasses.replace(stack, class_counts=tuple(counts[1 : classes + 1].tolist()))


def _statistics_of(stacks: Sequence[StackFile]) -> Statistics:
    """Return the statistics of all pixels, read in strips."""
    zeros = (0.0,) * len(CHANNELS)
    statistics = Statistics(zeros, zeros, 0)
    for stack in stacks:
        image = open_tile(stack)[0]
        for row in range(0, stack.shape[0], 128):
            statistics = statistics.merge(Statistics.of(image[row : row + 128, 0 : stack.shape[1]]))
    return statistics
