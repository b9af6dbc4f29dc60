"""Parts of a mosaic, composed in this process or on a worker.

Every rule looks at one pixel at a time, so that a part has the same bytes for any number of processes,
threads and windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio

from lulc.compositing.composite import RULES, complete
from lulc.compositing.observation import Observation, Reader, input_config
from lulc.compositing.scene_list import list_path
from lulc.config import MosaicConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.storage import sha256_of, write_atomically
from lulc.core.version import __version__
from lulc.core.windows import Plan, Window
from lulc.distributed.cluster import UnfitWorkerError
from lulc.inference.journal import document_of, read_key
from lulc.rasters.guards import from_anywhere, is_address
from lulc.rasters.scenes import Scene, Scenes, lay_scene
from lulc.rasters.sources import stamps_of

NODATA = -32768
"""Stored value of a pixel without an observation."""

PART = 1024
"""Side of a part in pixels; an interrupted run continues with the next part."""


@dataclass(frozen=True)
class Gap:
    """Source that fills pixels without an observation: further observations, or a mosaic."""

    name: str
    observations: tuple[Observation, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class Job:
    """One mosaic to make.

    Observations are in the order that the rule prefers; gaps are filled one after the other.
    """

    config: MosaicConfig
    out: Path
    grid: GridSpec
    observations: tuple[Observation, ...]
    gaps: tuple[Gap, ...] = ()
    part: int = field(default_factory=lambda: PART)

    @property
    def plan(self) -> Plan:
        """The parts of the mosaic."""
        height, width = self.grid.shape
        return Plan(height, width, 1, 0, (min(self.part, height), min(self.part, width)), self.part)

    @property
    def scenes(self) -> list[Scene]:
        """All scenes that are read."""
        observations = [*self.observations, *(one for gap in self.gaps for one in gap.observations)]
        return [scene for one in observations for scene in one.scenes]

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides the pixels of the mosaic, JSON-ready."""
        names = ("band_names", "rule", "near", "clouds", "grow_clouds", "cloud_probability",
                 "cloud_threshold", "scale", "offset")  # fmt: skip
        read = [path for scene in self.scenes for path in (*scene.paths, scene.mask)]
        read += [gap.path for gap in self.gaps]
        files = sorted({os.path.abspath(path) for path in read if path and not is_address(path)})
        # Items of a list are hashed with the list.
        stamps = stamps_of(path for path in files if "#" not in path)
        return {
            "toolkit": __version__,
            "gdal": rasterio.__gdal_version__,
            "grid": self.grid.to_json(),
            "part": self.part,
            "options": {name: getattr(self.config, name) for name in names},
            "order": [one.names for one in self.observations],
            "gaps": [
                [Path(gap.path or "").name, [one.names for one in gap.observations]] for gap in self.gaps
            ],
            "scenes": sha256_of(list_path(self.out)),
            "files": hashlib.sha256(json.dumps([files, stamps]).encode()).hexdigest(),
        }

    def anywhere(self, memory: float) -> Job:
        """Return the job with absolute paths and `memory` in GB, for a process of any folder."""

        def move(scene: Scene) -> Scene:
            mask = scene.mask and from_anywhere(scene.mask)
            return dataclasses.replace(scene, paths=tuple(map(from_anywhere, scene.paths)), mask=mask)

        def move_all(observations: Sequence[Observation]) -> tuple[Observation, ...]:
            return tuple(dataclasses.replace(o, scenes=tuple(map(move, o.scenes))) for o in observations)

        gaps = tuple(
            Gap(gap.name, move_all(gap.observations), gap.path and from_anywhere(gap.path))
            for gap in self.gaps
        )
        config = dataclasses.replace(self.config, memory=memory)
        return Job(config, self.out.absolute(), self.grid, move_all(self.observations), gaps, self.part)


class Made(NamedTuple):
    """A part on disk: its number, its checksum, and pixels by number of clear observations."""

    number: int
    sha256: str
    clear: dict[int, int]


@dataclass(frozen=True)
class Site:
    """Description with which another process opens a job; `folder` is that of the journal."""

    job: Job
    folder: Path

    @contextlib.contextmanager
    def open(self) -> Iterator[Composer]:
        """Open the job on a worker; refuse files and versions other than those of the run that asks."""
        try:
            composer = Composer(self.job, self.folder)
        except (InputError, OSError) as error:
            raise UnfitWorkerError(
                f"a worker cannot open what this machine can: {getattr(error, 'problem', error)}",
                "Give all workers the same files under the same paths.",
            ) from error
        with closing(composer):
            composer.check()
            yield composer


def make_part(composer: Composer, number: int) -> Made:
    """Compose a part and write it into the folder of the journal."""
    pixels = composer.compose(composer.job.plan.part_at(number).extent)
    path = part_path(composer.folder, number)
    with write_atomically(path, parents=False) as temporary:
        temporary.write_bytes(pixels.tobytes())
        composer.check()
    values, counts = np.unique(pixels[-1], return_counts=True)
    return Made(number, sha256_of(path), dict(zip(values.tolist(), counts.tolist(), strict=True)))


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a part, int16 (band, y, x) with the clear observations last."""
    return folder / f"{number:06d}.part"


class Composer:
    """Composer of the windows of one mosaic; `folder` is that of the journal, for parts that are kept."""

    def __init__(self, job: Job, folder: Path = Path()) -> None:
        names = job.config.band_names
        self.job, self.folder = job, folder
        self._key: dict[str, Any] | None = None
        self._rule = RULES[job.config.rule]
        options = input_config(job.config)
        self._pool = ThreadPoolExecutor(job.config.connections)
        self._readers = [Reader(job.observations, job.grid, names, options)]
        self._fills: list[Any] = []
        for gap in job.gaps:
            self._readers.append(Reader(gap.observations, job.grid, names, options))
            self._fills.append(_open_fill(gap.path, job, names) if gap.path else None)

    def check(self) -> None:
        """Refuse to make parts of another run, or with other bytes."""
        self._key = self._key or document_of(self.job.key)
        if read_key(self.folder) != self._key:
            raise UnfitWorkerError(
                f"cannot make parts of '{self.job.out}', since another run does so now, or this process sees "
                "other files or has other versions",
                "Give all workers the same files under the same paths, and the same environment.",
            )

    def compose(self, extent: Window) -> np.ndarray:
        """Return the pixels of a window, int16 (band, y, x) with the clear observations last."""
        out = np.empty((len(self.job.config.band_names) + 1, *extent.shape), "int16")
        for window in self._windows(extent):
            values, clear = self._composed(self._readers[0], window)
            for reader, fill in zip(self._readers[1:], self._fills, strict=True):
                self._fill(values, reader, fill, window)
            rows, cols = window.relative_to(extent).slices
            out[:-1, rows, cols] = encode(values)
            out[-1, rows, cols] = clear
        return out

    def _windows(self, extent: Window) -> Iterator[Window]:
        """Cut a part into strips whose observations fit into the memory."""
        most = max(len(reader.observations) for reader in self._readers)
        # Sorting and distances take twice the memory of the observations.
        row = most * (len(self.job.config.band_names) + 2) * extent.width * 4 * 3
        rows = max(1, min(extent.height, int(self.job.config.memory * 1e9 / max(1, row))))
        for top in range(extent.row, extent.stop[0], rows):
            yield Window(top, extent.col, min(rows, extent.stop[0] - top), extent.width)

    def _composed(self, reader: Reader, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return values float32 (band, y, x), NaN without an observation, and clear observations (y, x)."""
        touching = [i for i, one in enumerate(reader.observations) if one.touches(window)]
        bands = len(self.job.config.band_names)
        if not touching:
            return np.full((bands, *window.shape), np.nan, "float32"), np.zeros(window.shape, "uint16")
        stack = np.empty((len(touching), bands, *window.shape), "float32")
        tasks = [self._pool.submit(reader.read, n, window, stack[i]) for i, n in enumerate(touching)]
        for task in tasks:
            task.result()
        clear = complete(stack)
        return self._rule(stack), clear

    def _fill(self, values: np.ndarray, reader: Reader, fill: Any, window: Window) -> None:
        gaps = np.isnan(values[0])
        if not gaps.any():
            return
        if fill is None:
            filling, _ = self._composed(reader, window)
        else:
            filling = np.empty_like(values)
            valid = np.zeros(values.shape, bool)
            fill.read(window, filling, valid, {name: i for i, name in enumerate(self.job.config.band_names)})
            filling[:, ~valid.all(axis=0)] = np.nan
        np.copyto(values, filling, where=gaps)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for closable in (*self._readers, *(fill for fill in self._fills if fill is not None)):
            closable.close()


def _open_fill(path: str, job: Job, names: Sequence[str]) -> Scenes:
    # The mosaic holds its own scale and offset.
    options = dataclasses.replace(input_config(job.config), scale=None, offset=None)
    scene = lay_scene([path], job.grid, options, names, None)
    if scene is None:
        raise InputError(
            f"cannot fill gaps from '{path}', since it has no pixel of the region", "Give another mosaic."
        )
    return Scenes([scene], job.grid, names, options)


def encode(values: np.ndarray) -> np.ndarray:
    """Return reflectance x 10000 as stored: int16, rounded, `NODATA` for NaN.

    Dark water that rounds to 0 is stored as 1, since many programs take 0 for no data.
    """
    stored = np.clip(np.rint(values), NODATA + 1, 32767)
    stored[stored == 0] = 1
    return np.where(np.isnan(values), NODATA, stored).astype("int16")
