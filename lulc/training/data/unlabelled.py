"""Dataset without labels: squares of a mosaic, read while crops are cut, and their statistics."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from lulc.config import InputConfig, PreprocessConfig, TrainConfig
from lulc.core.channels import ChannelSet, dates_of, split_prefix
from lulc.core.config_file import read_settings
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.core.windows import Window, squares_of
from lulc.rasters.channels import load_channels
from lulc.rasters.sources import stamps_of
from lulc.rasters.stack import Stack, open_stack, sort_inputs
from lulc.training.data.dataset import Dataset, Tile

logger = logging.getLogger("lulc")

SIDE = PreprocessConfig.size
"""Side of a square in pixels, as of a stack."""

VALIDATION = 0.1
"""Fraction of the squares that validate."""

VALID = 0.5
"""Least fraction of valid pixels of a square, unless fewer than two squares have as many."""


def open_mosaic(config: TrainConfig) -> Dataset:
    """Open the rasters of ``config.pretrain`` as squares to cut crops from, after one pass over all pixels.

    Raises InputError if the rasters don't fit together, or are too small for two squares with a valid pixel.

    Parameters
    ----------
    config
        Resolved; ``input_options`` names a file with options for reading the rasters.

    Returns
    -------
    Dataset
        Its classes are the channels, whose values the network learns to fill in.
    """
    options, channels = input_options(config.input_options, dates_of(config.pretrain))
    stack = open_stack(*sort_inputs(config.pretrain, options, channels), options, channels=channels)
    files = [split_prefix(text)[1] for text in (*config.pretrain, *options.layers)]
    stamps = tuple(stamps_of(files, allow_vrt=options.allow_vrt))
    logger.info("looking through %d x %d pixels of the mosaic", *stack.grid.shape)
    squares, statistics = _survey(stack, max(config.crop_sizes))
    if len(squares) < 2:
        raise InputError(
            f"cannot pretrain on {' '.join(config.pretrain)}, since it has {len(squares)} squares of "
            f"{max(config.crop_sizes)} pixels with a valid pixel, expected 2, one of which validates",
            "Give a larger mosaic, smaller --crop-sizes, or check no-data values and masks.",
        )
    order = np.random.default_rng(config.seed).permutation(len(squares))
    held_out = set(order[: max(1, round(VALIDATION * len(squares)))].tolist())
    lock = threading.Lock()
    tiles = [_tile(stack, lock, window) for window in squares]
    names = [LandCoverClass(i, name, "#808080") for i, name in enumerate(stack.channels, 1)]
    identity = stack.identity()
    return Dataset(
        training=tuple(tile for i, tile in enumerate(tiles) if i not in held_out),
        validation=tuple(tile for i, tile in enumerate(tiles) if i in held_out),
        channels=tuple(
            {"name": one.name, "unit": one.unit, "coding": stack.coding.get(one.name, "read")}
            for one in stack.channel_set.channels
        ),
        legend=Legend("channels", tuple(names)),
        statistics=statistics,
        counts=np.full(len(names), statistics.count, np.int64),
        inputs={f"mosaic {i} ({item['name']})": item["sha256"] for i, item in enumerate(identity, 1)}
        | {"input options": _text_of(options)},
        provenance=[{"mosaic": identity, "conversion": stack.provenance}],
        stamps=stamps,
        channel_set=stack.channel_set.recorded,
    )


def input_options(path: str | None, dates: Sequence[str] = ()) -> tuple[InputConfig, ChannelSet]:
    """Read input options and channel set from a file with options of preprocess.py; defaults without one.

    Raises InputError if the file can't be read, or holds another name than an option of preprocess.py.
    """
    settings = read_settings(path, PreprocessConfig) if path else {}
    names = {field.name for field in dataclasses.fields(InputConfig)}
    channels = load_channels(str(settings.get("channels", PreprocessConfig.channels)), dates)
    return InputConfig(**{name: value for name, value in settings.items() if name in names}), channels


def _text_of(options: InputConfig) -> str:
    """Return the options that differ from the defaults, as JSON."""
    changed = {
        field.name: value
        for field in dataclasses.fields(options)
        if (value := getattr(options, field.name)) != field.default
    }
    return json.dumps(changed, sort_keys=True, default=str)


def _survey(stack: Stack, crop: int) -> tuple[list[Window], Statistics]:
    """Return the squares with valid pixels, and the statistics of all valid pixels."""
    side = SIDE
    while side // 2 >= crop and sum(min(w.shape) >= crop for w in squares_of(stack.grid.extent, side)) < 2:
        side //= 2
    windows = tqdm(
        list(squares_of(stack.grid.extent, side)), unit="square", desc="looking through",
        disable=not logger.isEnabledFor(logging.INFO),
    )  # fmt: skip
    optional = stack.channel_set.optional
    read = [(window, Statistics.of(stack.read(window), optional)) for window in windows]
    total = functools.reduce(Statistics.merge, (statistics for _, statistics in read))
    large = [(w, s.count / (w.height * w.width)) for w, s in read if min(w.shape) >= crop and s.count]
    full = [window for window, fraction in large if fraction >= VALID]
    return full if len(full) > 1 else [window for window, _ in large], total


def _tile(stack: Stack, lock: threading.Lock, window: Window) -> Tile:
    masks = np.broadcast_to(np.uint8(1), window.shape)
    optional = stack.channel_set.optional
    return Tile(f"row {window.row}, column {window.col}", _Square(stack, lock, window), masks, optional)


class _Square:
    """Square of a stack as an image (y, x, band), read when it is sliced."""

    def __init__(self, stack: Stack, lock: threading.Lock, window: Window) -> None:
        # A stack may be read by one thread at a time.
        self._stack, self._lock, self._window = stack, lock, window

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self._window.shape, len(self._stack.channels))

    def __getitem__(self, key: Sequence[slice]) -> Any:
        rows, cols = (range(*k.indices(n)) for k, n in zip(key, self._window.shape, strict=False))
        wanted = Window(self._window.row + rows.start, self._window.col + cols.start, len(rows), len(cols))
        with self._lock:
            return self._stack.read(wanted)
