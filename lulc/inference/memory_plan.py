"""Window shape, memory and disk of a classification."""

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
"""Side of windows that are blended by Gaussian weights, about that of training crops."""


@dataclass(frozen=True)
class Demand:
    """Everything that decides the memory of a classification, beside the window shape.

    `batch` is the number of windows in a call of the network, `readers` that of windows that are read at the
    same time. Neither depends on the number of processors, so that all machines make the same plan.
    """

    footprint: Footprint
    channels: int
    classes: int
    batch: int = 1
    gaussian: bool = False
    readers: int = 1

    def bytes_of(self, plan: Plan, profile: MapProfile) -> float:
        """Return the peak memory of the process with the windows of a plan."""
        width = min(profile.part, profile.grid.width)
        strip = (plan.window[0] * width * 4 * (self.classes + 2)) if self.gaussian else 0
        return self._fixed(profile) + strip + self._per_pixel(profile) * math.prod(plan.window)

    def largest_window(self, budget: float, profile: MapProfile) -> float:
        """Return the pixels of the largest window that fits a budget in bytes; may be negative."""
        return (budget - self._fixed(profile)) / self._per_pixel(profile)

    def _per_pixel(self, profile: MapProfile) -> float:
        # Arrays of two batches: while one is computed, the next is read and the one before is encoded.
        network = self.footprint.per_pixel + 4 * 2 * (self.channels + self.classes)
        strips = len(profile.band_names) * profile.encoding.dtype.itemsize
        waiting = 4 * (self.readers - 1) * self.channels
        return network * self.batch + waiting + strips

    def _fixed(self, profile: MapProfile) -> float:
        block = BLOCK * BLOCK * len(profile.band_names) * profile.encoding.dtype.itemsize
        along = -(-min(profile.part, profile.grid.width) // BLOCK) + 2
        # Strips, at most as wide as a part, before and after they are encoded.
        strip = along * (block + BLOCK * BLOCK * 4 * self.classes)
        return self.footprint.fixed + GDAL_CACHE + 2 * along * block + self.strips_ahead * strip

    @property
    def strips_ahead(self) -> int:
        """Strips that are encoded while another is written; 0 to encode and write one after the other."""
        return 2 * (self.readers - 1)


def plan_map(
    profile: MapProfile, demand: Demand, *, stride: int, halo: int, memory: float,
    window: int | tuple[int, int] | None = None, square: bool = False,
) -> Plan:  # fmt: skip
    """Cut a map into parts and windows.

    Parameters
    ----------
    stride, halo
        Geometry of the network, see `lulc.models.unet.Geometry`.
    memory
        Budget in bytes.
    window
        Side, or rows and columns; by default the largest windows that fit the budget.
    square
        True for square windows, which rotations need.

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
    """Return the bytes of parts and map together while the map is assembled, with a margin of a tenth."""
    return int(2.2 * profile.bytes_of(profile.grid.height * profile.grid.width)) + 2**20


def check_memory(
    needed: float, way_out: str = "Free memory, or type a smaller --window, --part or --batch-size."
) -> None:
    """Refuse what needs more bytes of memory than are free now; `way_out` is the hint of the error."""
    free = free_memory()
    if needed > free:
        raise InputError(
            f"cannot classify, since that takes about {needed / 1e9:.1f} GB of memory "
            f"and {free / 1e9:.1f} GB are free",
            way_out,
        )
