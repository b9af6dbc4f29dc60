"""Forecast of a classification: window shape, memory, disk and time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lulc.core.machine import GDAL_CACHE, free_memory
from lulc.core.schema import InputError
from lulc.core.windows import Plan, choose_window
from lulc.engines.registry import Footprint
from lulc.maps.blocks import BLOCK
from lulc.maps.geotiff import MapProfile

BLEND_WINDOW = 512
"""Side of windows blended by Gaussian weights, near the crops that networks are trained on."""


@dataclass(frozen=True)
class Demand:
    """Memory demand of a classification beside the window shape.

    Parameters
    ----------
    footprint
        Of the engine.
    channels, classes
        Of the network.
    batch
        Windows per call.
    gaussian
        Whether windows are blended.
    readers
        Windows that are read at a time. It doesn't follow from the number of processors: a plan is that of
        the mosaic and the engine, wherever it is made.
    """

    footprint: Footprint
    channels: int
    classes: int
    batch: int = 1
    gaussian: bool = False
    readers: int = 1

    def bytes_of(self, plan: Plan, profile: MapProfile) -> float:
        """Peak memory of the process with the windows of a plan."""
        width = min(profile.part, profile.grid.width)
        strip = (plan.window[0] * width * 4 * (self.classes + 2)) if self.gaussian else 0
        return self._fixed(profile) + strip + self._per_pixel(profile) * math.prod(plan.window)

    def largest_window(self, budget: float, profile: MapProfile) -> float:
        """Return the pixels of the largest window that fits a budget in bytes; may be negative."""
        return (budget - self._fixed(profile)) / self._per_pixel(profile)

    def _per_pixel(self, profile: MapProfile) -> float:
        """Return the bytes for each pixel of a window."""
        # Of each two: while one batch is computed, the next is read and the one before encoded, in strips.
        network = self.footprint.per_pixel + 4 * 2 * (self.channels + self.classes)
        strips = len(profile.band_names) * profile.encoding.dtype.itemsize
        waiting = 4 * (self.readers - 1) * self.channels
        return network * self.batch + waiting + strips

    def _fixed(self, profile: MapProfile) -> float:
        block = BLOCK * BLOCK * len(profile.band_names) * profile.encoding.dtype.itemsize
        along = -(-min(profile.part, profile.grid.width) // BLOCK) + 2
        # As wide as a part at most, before and after they are encoded.
        strip = along * (block + BLOCK * BLOCK * 4 * self.classes)
        return self.footprint.fixed + GDAL_CACHE + 2 * along * block + self.strips_ahead * strip

    @property
    def strips_ahead(self) -> int:
        """Strips of windows that are encoded beside the one that is being written; 0 to encode that alone."""
        return 2 * (self.readers - 1)


def plan_map(
    profile: MapProfile,
    demand: Demand,
    *,
    stride: int,
    halo: int,
    memory: float,
    window: int | tuple[int, int] | None = None,
    square: bool = False,
) -> Plan:
    """Cut a map into parts and windows.

    Parameters
    ----------
    profile, demand
        The map, and what its windows take.
    stride, halo
        Of the network, see `lulc.models.unet.Geometry`.
    memory
        Budget in bytes.
    window
        Side that the user asks for, or rows and columns; chosen for the budget where not given.
    square
        Whether windows should be square, for rotations.

    Raises
    ------
    InputError
        If `window` is no multiple of the stride or no larger than its halo.
    """
    height, width = profile.grid.shape
    halo = 0 if demand.gaussian else halo
    padded = [-(-length // stride) * stride for length in (height, width)]
    if window is None and demand.gaussian:
        window = -(-BLEND_WINDOW // stride) * stride
    if window is not None:
        sides = (window, window) if isinstance(window, int) else window
        for side in sorted(set(sides)):
            _check_window(side, stride, halo, [p for s, p in zip(sides, padded, strict=True) if s == side])
        shape = (min(sides[0], padded[0]), min(sides[1], padded[1]))
    else:
        shape = choose_window(
            height, width, stride=stride, halo=halo, part=profile.part,
            pixels=demand.largest_window(memory, profile),
        )  # fmt: skip
        if square:
            side = max(min(shape), 2 * halo + stride)
            shape = (min(side, padded[0]), min(side, padded[1]))
    return Plan(height, width, stride, halo, shape, profile.part)


def _check_window(window: int, stride: int, halo: int, padded: list[int]) -> None:
    smallest = 2 * halo + stride
    below = max(window // stride * stride, smallest)
    above = max(-(-window // stride) * stride, smallest)
    if window % stride or (window < smallest and window < max(padded)):
        raise InputError(
            f"cannot use windows of {window} pixels, since the network halves its input down to 1/{stride} "
            f"and needs {halo} pixels around each window, expected a multiple of {stride} from {smallest} on",
            f"Type --window {below} or --window {above if above != below else below + stride}.",
        )


def disk_needed(profile: MapProfile) -> int:
    """Bytes that parts and map take together while the map is assembled, with a margin of a tenth."""
    return int(2.2 * profile.bytes_of(profile.grid.height * profile.grid.width)) + 2**20


def check_memory(
    needed: float, way_out: str = "Free memory, or type a smaller --window, --part or --batch-size."
) -> None:
    """Refuse what does not fit in the memory that is free now.

    Parameters
    ----------
    needed
        Bytes.
    way_out
        What to do where they are not free.

    Raises
    ------
    InputError
        Naming what is needed and what is free.
    """
    free = free_memory()
    if needed > free:
        raise InputError(
            f"cannot classify, since that takes about {needed / 1e9:.1f} GB of memory "
            f"and {free / 1e9:.1f} GB are free",
            way_out,
        )
