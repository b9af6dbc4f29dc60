"""Forecast of a mosaic: scenes, clear observations on a coarse grid, bytes to read and time."""

from __future__ import annotations

import datetime
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lulc.compositing.composer import Composer, Job
from lulc.compositing.mosaic import open_jobs
from lulc.compositing.observation import Observation, Reader, input_config
from lulc.config import MosaicConfig
from lulc.core.grid import GridSpec
from lulc.core.windows import Window

COARSE, SIDE = 8, 16
"""Windows along each axis in which clear observations are counted, and their side in pixels."""


@dataclass(frozen=True)
class Planned:
    """The scenes of one day.

    `cloud` is the cloud cover of the whole scenes in percent, None where it is unknown; `clear` is the
    fraction of clear pixels in the region, on the coarse grid.
    """

    day: datetime.date
    id: str
    cloud: float | None
    clear: float


@dataclass(frozen=True)
class Forecast:
    """Forecast of a mosaic.

    Parameters
    ----------
    covered, mean_clear
        Fraction of pixels with a clear observation, and their mean number, on the coarse grid.
    seconds
        Run time, extrapolated from one part.
    """

    out: Path
    grid: GridSpec
    scenes: tuple[Planned, ...]
    covered: float
    mean_clear: float
    bytes: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as JSON-ready data."""
        scenes = [vars(scene) | {"day": scene.day.isoformat()} for scene in self.scenes]
        return vars(self) | {"out": str(self.out), "grid": self.grid.to_json(), "scenes": scenes}


def forecast(config: MosaicConfig) -> list[Forecast]:
    """Return the forecast of each period's mosaic; nothing stays on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return [_forecast(job) for job in open_jobs(config, Path(folder))]


def _forecast(job: Job) -> Forecast:
    with ThreadPoolExecutor(job.config.connections) as pool:
        clear = np.stack(list(pool.map(lambda one: _clear(job, one), job.observations)))
    seconds = _seconds(job)
    scenes = tuple(
        Planned(one.day, ", ".join(one.names), one.cloud, float(pixels.mean()))
        for one, pixels in zip(job.observations, clear, strict=True)
    )
    overlaps = [job.grid.extent.intersect(scene.place) for one in job.observations for scene in one.scenes]
    counted = clear.sum(axis=0)
    return Forecast(
        out=job.out,
        grid=job.grid,
        scenes=tuple(sorted(scenes, key=lambda scene: scene.day)),
        covered=float((counted > 0).mean()),
        mean_clear=float(counted.mean()),
        bytes=2.0 * sum(window.height * window.width for window in overlaps) * len(job.config.band_names),
        seconds=seconds,
    )


def _clear(job: Job, observation: Observation) -> np.ndarray:
    """Return where an observation is clear, bool (n,), at the pixels of the coarse grid."""
    names = job.config.band_names[:1]
    with closing(Reader([observation], job.grid, names, input_config(job.config))) as reader:
        clear = []
        for window in _sample_windows(job.grid):
            values = np.empty((1, *window.shape), "float32")
            reader.read(0, window, values)
            clear.append(~np.isnan(values).ravel())
    return np.concatenate(clear)


def _sample_windows(grid: GridSpec) -> list[Window]:
    starts = []
    for length in grid.shape:
        side = min(SIDE, length)
        starts.append(({round(i * (length - side) / (COARSE - 1)) for i in range(COARSE)}, side))
    (rows, height), (cols, width) = starts
    return [Window(row, col, height, width) for row in sorted(rows) for col in sorted(cols)]


def _seconds(job: Job) -> float:
    """Extrapolate the run time from the part in the middle, whose files are opened before."""
    height, width = job.grid.shape
    rows, cols = min(job.part, height), min(job.part, width)
    middle = Window((height - rows) // 2, (width - cols) // 2, rows, cols)
    with closing(Composer(job)) as composer:
        composer.compose(Window(middle.row, middle.col, 1, 1))
        begun = time.perf_counter()
        composer.compose(middle)
        elapsed = time.perf_counter() - begun
    return elapsed * (height * width) / (rows * cols)
