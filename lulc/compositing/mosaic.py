"""From a region and dates to a mosaic: part by part, in constant memory, resumed after a kill.

A part is the same whatever the number of threads and of the windows in which it is composed, since every rule
looks at one pixel at a time.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from tqdm import tqdm

from lulc.compositing import periods
from lulc.compositing.catalog import find
from lulc.compositing.composite import RULES, complete
from lulc.compositing.labels import check_product, labels_path, write_labels
from lulc.compositing.observation import Observation, Reader, input_config, lay_out, ranked
from lulc.compositing.region import WGS84, grid_of
from lulc.compositing.scene_list import is_list, list_path, write_list
from lulc.config import MosaicConfig
from lulc.core.documents import write_document
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.storage import check_absent, check_disk, sha256_of, write_atomically
from lulc.core.version import __version__
from lulc.core.windows import Plan, Window
from lulc.export.stac import mosaic_item
from lulc.inference.journal import Journal, open_journal
from lulc.rasters.sources import stamps_of

NODATA = -32768
"""Stored value of a pixel without an observation."""

SCALE = 0.0001
"""Reflectance of a stored value of 1."""

COUNT = "clear_observations"
"""Name of the last band: clear observations of each pixel."""

PART = 1024
"""Side of a part, which is finished and resumed as a whole."""

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Gap:
    """What fills the pixels without an observation: further observations, or a mosaic."""

    name: str
    observations: tuple[Observation, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class Job:
    """One mosaic to make.

    Parameters
    ----------
    out
        The GeoTIFF.
    grid
        Its pixels.
    observations
        In the order that the rule prefers.
    gaps
        What fills gaps, one after the other.
    """

    config: MosaicConfig
    out: Path
    grid: GridSpec
    observations: tuple[Observation, ...]
    gaps: tuple[Gap, ...] = ()

    @property
    def plan(self) -> Plan:
        """The parts of the mosaic."""
        height, width = self.grid.shape
        return Plan(height, width, 1, 0, (min(PART, height), min(PART, width)), PART)


@dataclass(frozen=True)
class Mosaic:
    """A finished mosaic.

    Parameters
    ----------
    path, scenes
        The GeoTIFF, and the list of its scenes.
    days
        Dates of the observations.
    clear
        Pixels by their number of clear observations.
    """

    path: Path
    scenes: Path
    days: tuple[datetime.date, ...]
    clear: dict[int, int]

    @property
    def covered(self) -> float:
        """Share of the pixels that have an observation, 0..1."""
        total = sum(self.clear.values())
        return 1 - self.clear.get(0, 0) / total if total else 0.0

    @property
    def mean_clear(self) -> float:
        """Mean number of clear observations of a pixel."""
        return sum(n * pixels for n, pixels in self.clear.items()) / max(1, sum(self.clear.values()))


def open_jobs(config: MosaicConfig, lists: Path | None = None) -> list[Job]:
    """Find the scenes of each period and lay them on the grid.

    The list of the scenes is written into the folder `lists`, beside the mosaic where not given.

    Raises
    ------
    InputError
        If options don't fit, no scene is found, or one can't be read.
    """
    grid = grid_of(config)
    region = shapely.segmentize(grid.outline_on(WGS84), 0.5)
    return [
        _job(config, out, (lists or out.parent) / list_path(out).name, grid, region, span)
        for out, span in _outputs(config)
    ]


def _outputs(config: MosaicConfig) -> Iterator[tuple[Path, periods.Span]]:
    """Yield the mosaic of each period, and its days."""
    out = Path(config.out)
    for name, span in periods.split(periods.parse(config.dates), config.every):
        yield (out.with_name(f"{out.stem}_{name}{out.suffix}") if name else out), span


def _job(
    config: MosaicConfig, out: Path, listed: Path, grid: GridSpec, region: shapely.Geometry,
    span: periods.Span,
) -> Job:  # fmt: skip
    found = find(config, region, span)
    dated = [name for name in config.fill_from if periods.is_span(name)]
    further = {name: find(config, region, periods.parse(name)) for name in dated}
    scenes = {scene.id: scene for scene in (*found, *(s for own in further.values() for s in own))}
    write_list(listed, list(scenes.values()))
    with tqdm(total=len(scenes), unit="scene", desc="scenes", disable=_quiet()) as bar:
        observations = lay_out(found, grid, config, listed, bar.update)
        gaps = [
            _gap(name, lay_out(further.get(name, ()), grid, config, listed, bar.update), config)
            for name in config.fill_from
        ]
    if not observations:
        raise InputError(
            f"cannot make '{out}', since none of the {len(found)} scenes has a pixel of the region",
            "Check the region; footprints of scenes may be larger than their pixels.",
        )
    near = periods.day(config.near) if config.near else None
    return Job(config, out, grid, tuple(ranked(observations, config.rule, near)), tuple(gaps))


def _gap(name: str, observations: Sequence[Observation], config: MosaicConfig) -> Gap:
    path = None if periods.is_span(name) else name
    return Gap(name, tuple(ranked(observations, config.rule, None)), path)


def make_mosaic(config: MosaicConfig) -> list[Mosaic]:
    """Make the mosaic of each period; the same call continues an interrupted run.

    Returns
    -------
    list of Mosaic
        In the order of time.

    Raises
    ------
    InputError
        If options don't fit, no scene is found, one can't be read, or an output exists already.
    """
    for out, _ in _outputs(config):
        _check_outputs(config, out)
    return [_make(job) for job in open_jobs(config)]


def _check_outputs(config: MosaicConfig, out: Path) -> None:
    """Refuse before the search what could not be written after it."""
    if config.labels:
        check_product(config.labels)
    files = [out, out.with_suffix(".json"), *([labels_path(out)] if config.labels else [])]
    # The list of a run that was interrupted lies there already; any other file of that name stays.
    files += [] if is_list(list_path(out)) else [list_path(out)]
    for file in files if not config.overwrite else ():
        check_absent(file)


def _make(job: Job) -> Mosaic:
    names = job.config.band_names
    size = job.grid.height * job.grid.width * (len(names) + 1) * 2
    with open_journal(job.out) as journal:
        journal.begin(_key(job), restart=job.config.restart)
        check_disk(job.out.parent, 2 * size - journal.bytes, "the mosaic")
        _make_parts(job, journal)
        _assemble(job, journal)
        _write_item(job)
        if job.config.labels:
            write_labels(job.config.labels, job.grid, labels_path(job.out))
        clear = journal.counts
        journal.remove()
    days = tuple(sorted({one.day for one in job.observations}))
    return Mosaic(job.out, list_path(job.out), days, clear)


def _key(job: Job) -> dict[str, Any]:
    """Return what decides the pixels of a mosaic."""
    names = ("band_names", "rule", "near", "clouds", "grow_clouds", "cloud_probability", "cloud_threshold",
             "masks", "fill_from")  # fmt: skip
    return {
        "toolkit": __version__,
        "grid": job.grid.to_json(),
        "options": {name: getattr(job.config, name) for name in names},
        "scenes": sha256_of(list_path(job.out)),
        "files": hashlib.sha256(json.dumps(stamps_of(_files(job))).encode()).hexdigest(),
    }


def _files(job: Job) -> list[str]:
    """Return what is read on this machine: scenes, their masks, and mosaics that fill gaps."""
    observations = [*job.observations, *(one for gap in job.gaps for one in gap.observations)]
    scenes = [scene for one in observations for scene in one.scenes]
    paths = [path for scene in scenes for path in (*scene.paths, scene.mask) if path and "#" not in path]
    return [*paths, *(gap.path for gap in job.gaps if gap.path)]


def _make_parts(job: Job, journal: Journal) -> None:
    plan = job.plan
    numbers = list(range(len(plan)))
    finished = journal.finished(numbers, lambda n: _checksum(journal, n))
    total = job.grid.height * job.grid.width
    composer = Composer(job)
    with (
        closing(composer),
        ThreadPoolExecutor(job.config.connections) as pool,
        tqdm(total=total, unit="px", unit_scale=True, desc="mosaic", disable=_quiet()) as bar,
    ):
        for part in plan.parts():
            if part.index not in finished:
                made = composer.compose(part.extent, pool)
                path = _part(journal, part.index)
                with write_atomically(path) as temporary:
                    made.tofile(temporary)
                values, counts = np.unique(made[-1], return_counts=True)
                clear = dict(zip(values.tolist(), counts.tolist(), strict=True))
                journal.record(part.index, sha256_of(path), clear)
            bar.update(part.extent.height * part.extent.width)


def _part(journal: Journal, number: int) -> Path:
    return journal.folder / f"{number:06d}.part"


def _checksum(journal: Journal, number: int) -> str:
    path = _part(journal, number)
    return sha256_of(path) if path.is_file() else ""


class Composer:
    """Composes windows of one mosaic; made for a job, closed at its end."""

    def __init__(self, job: Job) -> None:
        names = job.config.band_names
        self._job = job
        self._rule = RULES[job.config.rule]
        options = input_config(job.config)
        self._readers = [Reader(job.observations, job.grid, names, options)]
        self._fills: list[Any] = []
        for gap in job.gaps:
            self._readers.append(Reader(gap.observations, job.grid, names, options))
            self._fills.append(_open_fill(gap.path, job, names) if gap.path else None)

    def compose(self, extent: Window, pool: Executor) -> np.ndarray:
        """Return the pixels of a window: int16 (band, y, x), the clear observations last."""
        out = np.empty((len(self._job.config.band_names) + 1, *extent.shape), "int16")
        for window in self._windows(extent):
            values, clear = self._composed(self._readers[0], window, pool)
            for reader, fill in zip(self._readers[1:], self._fills, strict=True):
                self._fill(values, reader, fill, window, pool)
            rows, cols = window.relative_to(extent).slices
            out[:-1, rows, cols] = encode(values)
            out[-1, rows, cols] = clear
        return out

    def _windows(self, extent: Window) -> Iterator[Window]:
        """Cut a part into strips whose observations fit into the memory."""
        most = max(len(reader.observations) for reader in self._readers)
        # The observations, and what ordering or distances take beside them.
        row = most * (len(self._job.config.band_names) + 2) * extent.width * 4 * 3
        rows = max(1, min(extent.height, int(self._job.config.memory * 1e9 / max(1, row))))
        for top in range(extent.row, extent.stop[0], rows):
            yield Window(top, extent.col, min(rows, extent.stop[0] - top), extent.width)

    def _composed(self, reader: Reader, window: Window, pool: Executor) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 (band, y, x), NaN without an observation, and clear observations (y, x)."""
        touching = [i for i, one in enumerate(reader.observations) if one.touches(window)]
        bands = len(self._job.config.band_names)
        if not touching:
            return np.full((bands, *window.shape), np.nan, "float32"), np.zeros(window.shape, "uint16")
        stack = np.empty((len(touching), bands, *window.shape), "float32")
        tasks = [pool.submit(reader.read, number, window, stack[i]) for i, number in enumerate(touching)]
        for task in tasks:
            task.result()
        clear = complete(stack)
        return self._rule(stack), clear

    def _fill(self, values: np.ndarray, reader: Reader, fill: Any, window: Window, pool: Executor) -> None:
        gaps = np.isnan(values[0])
        if not gaps.any():
            return
        if fill is None:
            found, _ = self._composed(reader, window, pool)
        else:
            found = np.empty_like(values)
            valid = np.zeros(values.shape, bool)
            fill.read(window, found, valid, {name: i for i, name in enumerate(self._job.config.band_names)})
            found[:, ~valid.all(axis=0)] = np.nan
        np.copyto(values, found, where=gaps)

    def close(self) -> None:
        """Release all files."""
        for closable in (*self._readers, *(fill for fill in self._fills if fill is not None)):
            closable.close()


def _open_fill(path: str, job: Job, names: Sequence[str]) -> Any:
    from lulc.rasters.scenes import Scenes, lay_scene

    options = input_config(job.config)
    scene = lay_scene([path], job.grid, options, names, None)
    if scene is None:
        raise InputError(
            f"cannot fill gaps from '{path}', since it has no pixel of the region", "Give another mosaic."
        )
    return Scenes([scene], job.grid, names, options)


def encode(values: np.ndarray) -> np.ndarray:
    """Return reflectance x 10000 as it is stored: int16, rounded, `NODATA` for NaN."""
    stored = np.clip(np.rint(values), NODATA + 1, 32767)
    return np.where(np.isnan(values), NODATA, stored).astype("int16")


def _assemble(job: Job, journal: Journal) -> None:
    """Write the GeoTIFF from its parts."""
    names = (*job.config.band_names, COUNT)
    profile = {
        "driver": "GTiff", "dtype": "int16", "count": len(names), "height": job.grid.height,
        "width": job.grid.width, "crs": job.grid.crs, "transform": job.grid.transform, "nodata": NODATA,
        "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd", "predictor": 2,
        "interleave": "band", "bigtiff": "if_safer", "num_threads": "all_cpus",
    }  # fmt: skip
    with write_atomically(job.out) as temporary, rasterio.open(temporary, "w", **profile) as data:
        for part in job.plan.parts():
            e = part.extent
            values = np.fromfile(_part(journal, part.index), "int16").reshape(len(names), *e.shape)
            data.write(values, window=rasterio.windows.Window(e.col, e.row, e.width, e.height))
        data.scales = (*(SCALE for _ in names[:-1]), 1.0)
        for i, name in enumerate(names, 1):
            data.set_band_description(i, name)
        data.update_tags(**_tags(job))


def _write_item(job: Job) -> None:
    """Write the STAC item beside the mosaic."""
    days = sorted(one.day.isoformat() for one in job.observations)
    stored = {"data_type": "int16", "nodata": NODATA}
    bands = [{"name": name, **stored, "scale": SCALE, "offset": 0.0} for name in job.config.band_names]
    bands.append({"name": COUNT, "data_type": "int16"})
    folder = job.out.parent
    item = mosaic_item(job.out, folder, job.grid, (days[0], days[-1]), bands, list_path(job.out))
    write_document(job.out.with_suffix(".json"), item)


def _tags(job: Job) -> dict[str, str]:
    days = sorted({one.day.isoformat() for one in job.observations})
    return {
        "LULC_MOSAIC": json.dumps({"rule": job.config.rule, "dates": days, "toolkit": __version__}),
        "SCENES": list_path(job.out).name,
    }


def _quiet() -> bool:
    return not logger.isEnabledFor(logging.INFO)
