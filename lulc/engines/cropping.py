"""Windows within a network: what of a window each stage of the decoder computes.

A window is read with a halo for the encoder, which looks far. The nearer a stage of the decoder lies to full
resolution, the less of the halo decides what is kept: each stage computes the *core*, which is what is kept,
and a margin around it that is as narrow as it may be. Where the core lies in the window is given with each
call, since there is no halo on a side where the window lies on the border of the image.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from lulc.core.windows import extended
from lulc.models.config import NetworkConfig

MARGIN = 4
"""Pixels around the core that a stage computes, in its own resolution; even. Where it is cut off from its
surroundings two of them come out wrong, three after the last convolution. The stage above needs the other
two: they are the four of its own margin."""

Sides = tuple[int, int]
"""Rows and columns."""


def level_of(name: str, network: NetworkConfig) -> int:
    """How many times the resolution is halved where the convolution `name` reads its input."""
    depth = len(network.filters)
    if name == "final_conv":
        return 0
    if name.startswith("bottleneck"):
        return depth
    stage = int(re.findall(r"stage(\d+)_", name)[0])
    return stage if name.startswith("encoder") else depth - 1 - stage + name.endswith("_up")


def work_by_margin(network: NetworkConfig, halo: int) -> dict[int, float]:
    """Multiplications for each pixel of the image, by the margin around the core that is computed."""
    work: dict[int, float] = {}
    for variable, shape in network.variable_shapes().items():
        name, _, kind = variable.rpartition("/")
        if kind != "kernel":
            continue
        level = level_of(name, network)
        # What a transposed convolution reads is cut to what the stage above it computes.
        stage = level - name.endswith("_up")
        decodes = name.startswith("decoder") or name == "final_conv"
        margin = min(MARGIN << stage, halo) if decodes else halo
        work[margin] = work.get(margin, 0.0) + math.prod(shape) / 4**level
    return work


def computed(window: Sides, core: Sides, stage: int = 0) -> Sides:
    """What of a window a stage computes, pixels of the image.

    Parameters
    ----------
    window, core
        Shapes.
    stage
        How often its resolution is halved.
    """
    rows, cols = (extended(c, MARGIN << stage, size) for c, size in zip(core, window, strict=True))
    return (rows, cols)


def cores_of(y: np.ndarray, window: Sides, core: Sides, first: np.ndarray) -> np.ndarray:
    """The cores in what the last stage has computed, a view where it is one.

    Parameters
    ----------
    y
        (n, y, x, class), the shape that `computed` says.
    window, core
        Shapes.
    first
        Int (n, 2), where in its window each core begins.
    """
    # A margin that would reach beyond the window lies on the other side.
    begun = np.clip(np.asarray(first) - MARGIN, 0, np.subtract(window, y.shape[1:3]))
    rows_cols = np.asarray(first) - begun
    cores = [image[r : r + core[0], c : c + core[1]] for image, (r, c) in zip(y, rows_cols, strict=True)]
    return cores[0][np.newaxis] if len(cores) == 1 else np.stack(cores)


class Cropping:
    """Cuts the core with a margin out of what the layers of a graph give.

    Parameters
    ----------
    operations
        OpenVINO's.
    window
        (n, y, x) of the input.
    core
        (y, x) of what is kept, multiples of the stride.
    depth
        How often the network halves the resolution.
    """

    def __init__(self, operations: Any, window: tuple[int, int, int], core: Sides, depth: int) -> None:
        self._op = operations
        count, *sides = window
        self._window, self._core, self._depth = (sides[0], sides[1]), core, depth
        self.given = operations.parameter([count, 2], np.int32, name="core")
        """int32 (n, 2): first row and column of the core in each window, multiples of the stride."""

    def cut(self, x: Any, level: int, stage: int, *, whole: bool) -> Any:
        """What a stage of the decoder needs of `x`.

        Parameters
        ----------
        x
            (n, channel, y, x) at the resolution of `level`.
        level, stage
            How often the resolution of `x` and that of the stage are halved.
        whole
            Whether `x` is of the whole window; otherwise it is what the stage below has computed.
        """
        count, channels, height, width = x.shape
        rows, cols = (side >> level for side in computed(self._window, self._core, stage))
        if (rows, cols) == (height, width):
            return x
        op = self._op
        first = self._first(stage) if whole else op.subtract(self._first(stage), self._first(level))
        # As many pixels of a row move together as every place where a core may lie is a multiple of.
        unit = math.gcd(1 << self._depth - level, MARGIN << stage >> level, width, cols)
        blocks = width // unit
        places = np.add.outer(np.arange(rows) * blocks, np.arange(cols // unit)).reshape(1, -1)
        # Of all windows in one row: with a dimension for windows (batch_dims) OpenVINO 2026.4.1 gives wrong
        # runs, or ends the process, where these have 16 values or fewer.
        places = places + np.arange(count)[:, np.newaxis] * height * blocks
        steps = op.divide(first, self._integers([1 << level, unit << level]))
        start = op.reduce_sum(op.multiply(steps, self._integers([blocks, 1])), self._integers([1]), True)
        # OpenVINO keeps the channels of a pixel together, so that neither transposition moves anything. The
        # size of a slice would not be known to it, where its start isn't.
        x = op.transpose(x, self._integers([0, 2, 3, 1]))
        x = op.reshape(x, self._integers([-1, unit * channels]), special_zero=False)
        runs = op.reshape(op.add(self._integers(places), start), self._integers([-1]), special_zero=False)
        x = op.gather(x, runs, self._integers(0))
        x = op.reshape(x, self._integers([count, rows, cols, channels]), special_zero=False)
        return op.transpose(x, self._integers([0, 3, 1, 2]))

    def _first(self, stage: int) -> Any:
        """Where in each window a stage begins to compute, node (n, 2)."""
        op = self._op
        last = np.subtract(self._window, computed(self._window, self._core, stage))
        first = op.subtract(self.given, self._integers(MARGIN << stage))
        return op.maximum(op.minimum(first, self._integers(last)), self._integers(0))

    def _integers(self, values: Any) -> Any:
        return self._op.constant(np.asarray(values, np.int32))
