"""Prediction of held-out stacks window by window, as for a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lulc.core.windows import Part, Plan, PlannedWindow, Window
from lulc.inference.sliding_window import Network, Prediction, predict_windows
from lulc.models.card import ModelCard
from lulc.training.data.dataset import Tile

SIDE = 256
"""Side in pixels of the windows of held-out stacks, without their halo."""


def plan_of(tile: Tile, card: ModelCard) -> Plan:
    """Return the plan of a stack's windows, of at most `SIDE` pixels and their halo."""
    height, width = tile.masks.shape
    padded = [-(-length // card.stride) * card.stride for length in (height, width)]
    side = -(-SIDE // card.stride) * card.stride + 2 * card.halo
    rows, cols = (min(side, length) for length in padded)
    return Plan(height, width, card.stride, card.halo, (rows, cols), max(padded))


def windows_of(plan: Plan) -> list[tuple[Part, PlannedWindow]]:
    """Return all windows of a plan, each with the part of the map that it belongs to."""
    return [(part, window) for part in plan.parts() for window in plan.windows(part)]


def predict_tile(
    network: Network, tile: Tile, plan: Plan, windows: Sequence[tuple[Part, PlannedWindow]] | None = None
) -> Iterator[Prediction]:
    """Yield the predictions of a stack for chosen windows of `windows_of`, by default all."""

    def read(window: Window) -> NDArray[np.float32]:
        image = np.array(tile.image[window.slices], np.float32)
        image[~tile.valid(image)] = np.nan
        return image

    chosen = windows_of(plan) if windows is None else windows
    work = ((part, [window]) for part, window in chosen)
    return predict_windows(read, network, plan, work, threads=False)
