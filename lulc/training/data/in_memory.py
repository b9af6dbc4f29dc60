"""Datasets from arrays in memory, with the same checks as stacks on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lulc.config import InputConfig, TrainConfig
from lulc.core.channels import set_of
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.statistics import Moments
from lulc.core.windows import Window
from lulc.datasets.arrays import class_numbers
from lulc.datasets.manifest import channel_units, ground_of
from lulc.labels.schemes import scheme_of_names
from lulc.rasters.cubes import ArraySource, labels_on
from lulc.rasters.missing import declared_missing
from lulc.rasters.stack import open_stack, sort_sources
from lulc.training.data.dataset import GAP, Dataset, Tile, check_learnable, pixel_size_of

VALIDATING = 0.25
"""Fraction of the rows of each image that validates if no image is chosen for that."""


class Pair(NamedTuple):
    """Image and its labels.

    Parameters
    ----------
    image : float32 (y, x, channel)
        Physical units, NaN in every channel of an invalid pixel.
    masks : uint8 (y, x)
        Class numbers 1..N, 255 = ignore.
    grid
        Georeference; None without one.
    coding
        Origin of the indices among the channels, by name.
    """

    image: NDArray[np.float32]
    masks: NDArray[np.uint8]
    grid: GridSpec | None
    coding: Mapping[str, str] = MappingProxyType({})


def dataset_of(
    images: Sequence[Any],
    labels: Sequence[Any],
    channels: Sequence[str],
    legend: Legend | Mapping[str, str] | Sequence[str],
    validation: Sequence[int] | None,
    config: TrainConfig,
    reading: InputConfig,
) -> Dataset:
    """Return the dataset of images and labels in memory.

    Raises InputError if arrays, names and classes don't fit each other, or the labels are too few to learn
    from.

    Parameters
    ----------
    images
        Each float (y, x, channel) in physical units, NaN = invalid; or an xarray object with bands by name,
        which is scaled as files are.
    labels
        Each (y, x), class numbers 1..N; 0, 255 and NaN are ignored. An xarray object is aligned by its
        coordinates, any other array has the pixels of the image.
    channels
        Names of the channels, in order.
    legend
        Classes 1..N: names, or names with colours.
    validation
        Numbers of the images that validate; by default the lower quarter of each image validates.
    config, reading
        Options of the training, and for reading xarray objects.
    """
    if not images or len(images) != len(labels):
        raise InputError(
            f"cannot train, since there are {len(images)} images and {len(labels)} arrays of labels, "
            "expected one array of labels for each image",
            "Give two lists of one length, or one image and its labels.",
        )
    if config.data or config.validation_data or config.cross_validate or config.pretrain:
        raise InputError(
            "cannot train on arrays with data, validation_data, cross_validate or pretrain, which read files",
            "Leave them out, or prepare stacks: lulc.make_stacks().",
        )
    classes = _legend_of(legend)
    pairs = [
        _pair(k, *both, channels, classes, reading) for k, both in enumerate(zip(images, labels, strict=True))
    ]
    training, validating = _split(pairs, validation)
    counts, val_counts = (
        sum((np.bincount(pair.masks.ravel(), minlength=256) for pair in split.values()), np.zeros(256, int))
        [1 : 1 + len(classes)] for split in (training, validating)
    )  # fmt: skip
    check_learnable(counts, val_counts, classes, config, "these arrays")
    identity = _identity(pairs, channels, validation)
    moments = sum((Moments.of(pair.image) for pair in training.values()), Moments.zero(len(channels)))
    training_tiles, validation_tiles = (
        tuple(Tile(name, p.image, p.masks) for name, p in split.items() if (p.masks != IGNORE).any())
        for split in (training, validating)
    )
    units, coding = channel_units(channels), pairs[0].coding
    if any(pair.coding != coding for pair in pairs):
        raise InputError(
            "cannot train on images of which some hold an index and others only its bands",
            "Give all images the same bands and indices.",
        )
    return Dataset(
        training=training_tiles,
        validation=validation_tiles,
        channels=tuple({"name": n, "unit": units[n], "coding": coding.get(n, "read")} for n in channels),
        legend=classes,
        statistics=moments.statistics,
        counts=counts,
        inputs={"data 1": identity},
        provenance=[_provenance(training, validating, classes, identity)],
        channel_set=set_of(channels).recorded,
    )


def _legend_of(classes: Legend | Mapping[str, str] | Sequence[str]) -> Legend:
    if isinstance(classes, Legend):
        return classes
    names = dict(enumerate(classes, 1))
    colors = dict(enumerate(classes.values(), 1)) if isinstance(classes, Mapping) else None
    legend = scheme_of_names("arrays", names, colors).legend
    if len(legend) < len(names):
        raise InputError(
            f"cannot name the classes {', '.join(classes)}, since a name occurs twice", "Rename."
        )
    return legend


def _pair(
    number: int, image: Any, labels: Any, channels: Sequence[str], legend: Legend, reading: InputConfig
) -> Pair:
    name, grid, coding = f"image {number}", None, dict[str, str]()
    if hasattr(image, "dims"):
        source = ArraySource(image)
        with open_stack(*sort_sources([source]), reading, channels=channels) as stack:
            pixels, grid, coding = np.array(stack.read(stack.grid.extent)), stack.grid, stack.coding
        masks = labels_on(grid, labels, source)
    else:
        pixels, masks = np.array(image, np.float32), np.asarray(labels)
        if hasattr(labels, "dims"):
            missing = declared_missing(labels.attrs, dtype=masks.dtype.name)
            masks = np.where(missing.present(masks), masks, np.nan)
    expected = (*masks.shape, len(channels))
    if masks.ndim != 2 or pixels.shape != expected:
        raise InputError(
            f"cannot train on {name}, since it has {pixels.shape}, expected {expected} as its labels and "
            "channel names say",
            "Give images (y, x, channel), labels (y, x) of the same pixels, and a name for each channel.",
        )
    numbers = class_numbers(masks, f"labels {number}")
    largest = int(numbers[numbers != IGNORE].max(initial=0))
    if largest > len(legend):
        raise InputError(
            f"cannot train on labels {number}, since they hold the class {largest}, expected 1 to "
            f"{len(legend)} as in the legend",
            "Name all classes, or set other values to 255.",
        )
    invalid = ~np.isfinite(pixels).all(axis=-1)
    pixels[invalid] = np.nan
    return Pair(pixels, np.where(invalid, np.uint8(IGNORE), numbers), grid, coding)


def _split(
    pairs: Sequence[Pair], validation: Sequence[int] | None
) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """Return training and validation pairs by name."""
    named = {f"image_{k}": pair for k, pair in enumerate(pairs)}
    if validation is not None:
        chosen = {range(len(pairs))[k] for k in validation if -len(pairs) <= k < len(pairs)}
        if len(chosen) < len(validation):
            raise InputError(
                f"cannot validate on the images {', '.join(map(str, validation))}, expected different "
                f"numbers from 0 to {len(pairs) - 1}",
                "Count images from 0, or leave validation out.",
            )
        held_out = {name: pair for k, (name, pair) in enumerate(named.items()) if k in chosen}
        return {name: pair for name, pair in named.items() if name not in held_out}, held_out
    upper, lower = {}, {}
    for name, (image, masks, grid, coding) in named.items():
        cut = len(masks) - round(VALIDATING * len(masks))
        above = masks[:cut].copy()
        # A gap as around validation stacks, since it lies in the receptive field of validated pixels.
        above[cut - min(GAP, cut // 3) :] = IGNORE
        height, width = masks.shape
        windows = Window(0, 0, cut, width), Window(cut, 0, height - cut, width)
        grids = [None if grid is None else grid.crop(window) for window in windows]
        upper[f"{name}_above"] = Pair(image[:cut], above, grids[0], coding)
        lower[f"{name}_below"] = Pair(image[cut:], masks[cut:], grids[1], coding)
    return upper, lower


def _identity(pairs: Sequence[Pair], channels: Sequence[str], validation: Sequence[int] | None) -> str:
    """Return the sha256 of images, labels, channel names and the choice of validation images."""
    digest = hashlib.sha256(repr((list(channels), validation and sorted(validation))).encode())
    for image, masks, *_ in pairs:
        digest.update(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image).data)
        digest.update(np.ascontiguousarray(masks).data)
    return digest.hexdigest()


def _provenance(
    training: Mapping[str, Pair], validating: Mapping[str, Pair], legend: Legend, identity: str
) -> dict[str, Any]:
    grids = [pair.grid for pair in training.values()]
    ground, held_out = ground_of(grids), ground_of([pair.grid for pair in validating.values()])
    return {
        **pixel_size_of(grids),
        "folder": "arrays",
        "sha256": identity,
        "scheme": legend.name,
        "training_stacks": list(training),
        **({"ground": ground} if ground is not None else {}),
        **({"validation_ground": held_out} if held_out is not None else {}),
        "validation_stacks": list(validating),
        "sources": [],
    }
