"""Folders in the naming of the original system, which have no manifest and standardised images."""

from __future__ import annotations

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
"""Median of absolute band values: standardised ones lie near 1, reflectance x 10000 in the hundreds."""

_ORIGINAL_NAME = re.compile(r"(train|val)_(image|masks)_(\d{1,6})\.(npy|tif|tiff|img|nc|zarr)")


def is_original(folder: Path) -> bool:
    """True for a folder that holds files in the original's naming."""
    return folder.is_dir() and any(_ORIGINAL_NAME.fullmatch(p.name) for p in folder.iterdir())


def read_originals(folder: Path, already_standardised: bool) -> Manifest:
    """A manifest made up for a folder in the original's naming."""
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
        statistics = scaling or _stream_statistics([s for s in stacks if s.split == "train"] or stacks)
    logger.warning(
        "%s has no manifest: channels are taken to be %s as in the original system; the coding of its "
        "last two indices is unknown, and stacks that overlap on the ground can't be found",
        folder,
        " ".join(CHANNELS),
    )
    channels = tuple(
        {"name": name, "unit": unit, "coding": "unknown" if name in ("NDBI", "NDSI") else "read"}
        for name, unit in channel_units().items()
    )
    return Manifest(folder, channels, "kaakonkulma-13", legend, stacks, statistics)


def _original_pairs(folder: Path) -> dict[tuple[str, int], tuple[Path, Path]]:
    """(split, index) to (image, masks)."""
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _ORIGINAL_NAME.fullmatch(path.name)
        if not match:
            continue
        split, kind, index, _ = match.groups()
        entry = found.setdefault((split, int(index)), {})
        if kind in entry:
            raise InputError(
                f"cannot use '{folder}', since it has both '{entry[kind].name}' and '{path.name}'",
                "Keep one of them.",
            )
        entry[kind] = path_inside(folder, path.name)
    for (split, index), entry in found.items():
        for kind in ("image", "masks"):
            if kind not in entry:
                raise InputError(
                    f"cannot use '{folder}', since there is no {split}_{kind}_{index}.npy beside "
                    f"'{next(iter(entry.values())).name}'",
                    "A stack is an image and its masks.",
                )
    return {key: (entry["image"], entry["masks"]) for key, entry in found.items()}


def _original_scaling(
    folder: Path, pairs: dict[tuple[str, int], tuple[Path, Path]], already_standardised: bool
) -> Statistics | None:
    """Statistics that the images are standardised with; None if they are to be taken as they are."""
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
    opened = open_tile(stack)[1]
    counts = np.zeros(256, np.int64)
    for row in range(0, height, 512):
        counts += np.bincount(opened[row : row + 512, 0:width].ravel(), minlength=256)
    if counts[classes + 1 : IGNORE].any() or counts[0]:
        odd = int(np.flatnonzero(counts[classes + 1 : IGNORE])[0]) + classes + 1 if not counts[0] else 0
        raise InputError(
            f"cannot use '{masks}', since it has the class {odd}, expected 1..{classes}",
            "Without a manifest, masks have the 13 classes of the original system.",
        )
    counted = tuple(int(n) for n in counts[1 : classes + 1])
    return StackFile(
        f"{split}_{index}", split, image, masks, (height, width), counted, standardised_by=scaling
    )


def _stream_statistics(stacks: Sequence[StackFile]) -> Statistics:
    zeros = (0.0,) * len(CHANNELS)
    statistics = Statistics(zeros, zeros, 0)
    for stack in stacks:
        image = open_tile(stack)[0]
        for row in range(0, stack.shape[0], 128):
            strip = image[row : row + 128, 0 : stack.shape[1]]
            statistics = statistics.merge(Statistics.of(strip))
    return statistics
