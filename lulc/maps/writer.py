"""Writer of maps whose windows a function returns."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lulc.core.machine import cores
from lulc.core.storage import temporary_folder
from lulc.core.windows import Plan, Window
from lulc.maps.geotiff import MapProfile, assemble, write_part

SIDE = 1024
"""Side of a window in pixels."""

PART = 4096
"""Side of a part in pixels."""


def write_map(profile: MapProfile, read: Callable[[Window], np.ndarray], out: Path) -> None:
    """Write a map window by window, completely or not at all.

    `read` returns the encoded values of a window, (band, y, x). Windows come part by part.
    """
    height, width = profile.grid.shape
    plan = Plan(height, width, 1, 0, (min(SIDE, height), min(SIDE, width)), profile.part)
    with temporary_folder(out) as folder, ThreadPoolExecutor(cores()) as pool:
        parts = [(part, folder / f"{part.index:06d}.part") for part in plan.parts()]
        for part, path in parts:
            with write_part(path, profile, part.extent, pool) as writer:
                for window in plan.windows(part):
                    writer.write(window.write, read(window.write))
        assemble(profile, [(part.extent, path) for part, path in parts], out, pool)
