"""Classification of a mosaic: the map appears when it is complete, and an interrupted run continues."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lulc.config import ClassifyConfig
from lulc.core.areas import pixel_areas
from lulc.core.claims import claim_outputs
from lulc.core.documents import seal_of
from lulc.core.grid import GridSpec
from lulc.core.machine import cores
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.storage import check_disk, rename_durably
from lulc.core.windows import Plan, PlannedWindow, Window, squares_of
from lulc.distributed.cluster import WORKERS, Cluster, ask, open_cluster, run_tasks
from lulc.engines.registry import Engine
from lulc.export.styles import count_entries, style_map
from lulc.inference import memory_plan, worker
from lulc.inference.job import Job, no_valid_pixel, open_job, pixel_size_problem, problems_of
from lulc.inference.journal import Journal, open_journal
from lulc.inference.outputs import Made, Output, put
from lulc.inference.request import beside_of, check_outputs, dates_of, further_of, share_of, sieved_path
from lulc.inference.sliding_window import Clock, predict_windows, windows_of
from lulc.inference.worker import Described, output_of, reading, stamps_of_inputs, work_of
from lulc.maps.blocks import encode_block
from lulc.maps.geotiff import MapProfile, read_classes
from lulc.maps.reader import open_map
from lulc.maps.writer import write_map
from lulc.models.card import ModelCard
from lulc.rasters.sources import Stamp

logger = logging.getLogger("lulc")

_ONE_SIZE = 1e-3
"""Relative difference of pixel areas up to which a part counts as having pixels of one size."""

COPY_SPEED = 400e6
"""Encoded bytes per second that are copied into the map and flushed, measured on a virtual disk."""

SIEVE_BYTES = 3
"""Bytes that sieving takes for each pixel of the map: its mask, and GDAL's table of patches."""

SIEVE_WAY_OUT = (
    "Free memory, or leave --sieve out: it holds a table of all patches of the map, also with --bounds. "
    "To sieve a smaller area, cut the inputs out first: gdal_translate -projwin WEST NORTH EAST SOUTH IN OUT"
)
"""Hint where memory doesn't suffice to sieve the map."""


@dataclass(frozen=True)
class ClassificationResult:
    """Result of a classification.

    Parameters
    ----------
    path, further
        The map, and files derived from it: sieved map, polygons.
    counts
        Pixels of each class number, 0 for unclassified, without no data.
    pixels
        Pixels of the map.
    areas
        Square metres on the ground of each class number; None where the grid has no CRS of the Earth.
    remarks
        Warnings about the weights and the pixel size.
    plan, engine
        Windows and parts of the map, and the name of the engine.
    weights
        Name, epoch and checksum of each network.
    accuracy
        Known accuracy of maps made with the first network.
    seconds
        Seconds of each stage (start, windows, finish), and of ``all``.
    network_share
        Fraction of the time from first to last window in which the network was busy.
    """

    path: Path
    further: tuple[Path, ...]
    legend: Legend
    counts: dict[int, int]
    pixels: int
    areas: dict[int, float] | None
    remarks: tuple[str, ...]
    plan: Plan
    engine: str
    weights: tuple[str, ...]
    accuracy: str
    seconds: dict[str, float]
    network_share: float


@dataclass(frozen=True)
class Forecast:
    """Forecast of the window, memory, disk and time of a classification.

    Parameters
    ----------
    plan, engine
        Windows and parts of the map, and the name of the engine.
    windows, empty
        Number of windows, and the estimated fraction of them without a valid pixel.
    memory
        Peak memory of the process in bytes.
    disk, disk_bound
        Bytes of parts and map together while the map is assembled: with the compression of the sampled
        windows, and without compression; the disk must have room for the latter.
    seconds
        Seconds of each stage (start, windows, finish), and of ``all``.
    """

    plan: Plan
    engine: str
    windows: int
    empty: float
    memory: float
    disk: float
    disk_bound: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class ShareResult:
    """Result of a run that makes one share of the parts of a map.

    Parameters
    ----------
    number, of
        Number of the share, from 1, and number of shares.
    parts, made
        Parts of the share, and those of them that this run made; the others were finished before.
    """

    path: Path
    number: int
    of: int
    parts: int
    made: int
    engine: str
    seconds: float


def classify(config: ClassifyConfig) -> ClassificationResult:
    """Classify a mosaic.

    Raises
    ------
    InputError
        If an input doesn't fit, the map exists already, another run writes it, or memory or disk do not
        suffice. A file has its final name only when it is complete.
    """
    begun = time.perf_counter()
    with _start(config) as run:
        started = time.perf_counter()
        _make_parts(run, range(len(run.job.plan)))
        classified = time.perf_counter()
        run.check_inputs()
        counts = {value: count for value, count in run.journal.counts.items() if value != IGNORE}
        if not counts:
            run.journal.remove()
            raise no_valid_pixel()
        further = _finish(run, counts)
        end = time.perf_counter()
        stages = {"start": started - begun, "windows": classified - started, "finish": end - classified}
        return ClassificationResult(
            path=run.job.out,
            further=further,
            legend=run.job.profile.legend,
            counts=counts,
            pixels=run.job.plan.height * run.job.plan.width,
            areas=_areas_of(run.job.out, run.job.plan, run.job.stack.grid, run.journal.part_counts),
            remarks=_remarks_on(run.job),
            plan=run.job.plan,
            engine=run.maker.described.engine,
            weights=tuple(_label(member.card) for member in run.job.members),
            accuracy=run.job.card.known_accuracy,
            seconds=stages | {"all": end - begun},
            network_share=run.maker.network_share,
        )


def classify_share(config: ClassifyConfig) -> ShareResult:
    """Make one share of the parts of a map, while other processes make the other shares.

    `classify` without a share then makes the missing parts and assembles the map.

    Raises
    ------
    InputError
        As in `classify`, or if the share is not of the form I/N or another process makes it.
    """
    begun = time.perf_counter()
    number, of = share_of(str(config.share))
    with _start(config) as run:
        parts = range(len(run.job.plan))[number - 1 :: of]
        made = _make_parts(run, parts)
        run.check_inputs()
        seconds = time.perf_counter() - begun
        return ShareResult(run.job.out, number, of, len(parts), made, run.maker.described.engine, seconds)


def forecast_classification(config: ClassifyConfig) -> Forecast:
    """Forecast `classify` by classifying a few windows; writes nothing."""
    begun = time.perf_counter()
    with reading(), open_job(config) as job:
        engine = job.build_engine()
        start = time.perf_counter() - begun
        windows = [w for part in job.plan.parts() for w in windows_of(job.plan, part, gaussian=job.gaussian)]
        # Four calls of the network are timed, after one that is not.
        chosen, empty = _windows_with_data(job, windows, 5 * config.batch_size)
        each, encoded = _time_windows(job, engine, chosen)
        filled = len(windows) * (1 - empty)
        seconds = {"start": start, "windows": filled * each, "finish": filled * encoded / COPY_SPEED}
        return Forecast(
            plan=job.plan,
            engine=engine.name,
            windows=len(windows),
            empty=empty,
            memory=_memory_of(job),
            disk=2 * filled * encoded,
            disk_bound=memory_plan.disk_needed(job.profile),
            seconds=seconds | {"all": sum(seconds.values())},
        )


@dataclass(frozen=True)
class _Run:
    """A classification that has opened its inputs, its journal and the maker of its parts."""

    job: Job
    journal: Journal
    output: Output
    maker: _LocalMaker | _ClusterMaker
    pool: Executor
    stamps: list[Stamp]

    def check_inputs(self) -> None:
        """Refuse to finish when an input has changed since the start."""
        if stamps_of_inputs(self.job.config) != self.stamps:
            raise InputError(
                "cannot finish the map, since an input changed while it was read, expected the same file to "
                "the end",
                f"Remove '{self.journal.folder}' when the inputs are complete, then start all shares."
                if self.job.config.share
                else "Run the same command with --restart when the inputs are complete.",
            )


class _LocalMaker:
    """This process as the maker of the parts."""

    def __init__(self, job: Job, dates: Sequence[str], stamps: list[Stamp]) -> None:
        # Hashing and building run at the same time: each leaves a core idle now and then.
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(job.identify_inputs)
            self._engine = job.build_engine()
            hashing.result()
        self._clock = Clock()
        self.described: Described = worker.describe_job(job, self._engine, stamps, dates)

    @property
    def network_share(self) -> float:
        """Fraction of the time in which the network was busy."""
        return self._clock.share

    def make(self, run: _Run, parts: list[int], progress: Callable[[int], object]) -> Generator[Made]:
        """Make parts; `progress` is called with the pixels of each window."""
        planned = [run.job.plan.part_at(part) for part in parts]
        yield from worker.make_parts(
            run.job, self._engine, run.output, planned, run.pool, clock=self._clock, progress=progress
        )


class _ClusterMaker:
    """The workers of a cluster as makers of the parts."""

    def __init__(self, cluster: Cluster, job: Job, dates: Sequence[str]) -> None:
        work = work_of(job, dates)
        config = dataclasses.replace(work.config, engine=job.engine, window=job.plan.window)
        self._cluster, self._work = cluster, dataclasses.replace(work, config=config)
        self._busy = self._seconds = 0.0
        self.described: Described = ask(cluster, worker.describe, None, self._work)

    @property
    def network_share(self) -> float:
        """Fraction of the workers' time in which their networks were busy."""
        return self._busy / self._seconds if self._seconds else 1.0

    def make(self, run: _Run, parts: list[int], progress: Callable[[int], object]) -> Generator[Made]:
        """Make parts; `progress` is called with the pixels of each part."""
        make = partial(worker.make_part, seal=seal_of(run.journal.key))
        tasks = run_tasks(self._cluster, make, parts, site=self._work, what=lambda part: f"part {part}")
        with closing(tasks) as results:
            for made, busy, seconds in results:
                self._busy, self._seconds = self._busy + busy, self._seconds + seconds
                extent = run.job.plan.part_at(made.part).extent
                progress(extent.height * extent.width)
                yield made


@contextlib.contextmanager
def _start(config: ClassifyConfig) -> Iterator[_Run]:
    """Check inputs, outputs and resources, open the maker of the parts, and open the journal."""
    dates = dates_of(config)
    stamps = stamps_of_inputs(config)
    check_outputs(config, stamps)
    share = "{}-of-{}".format(*share_of(config.share)) if config.share else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(reading())
        job = stack.enter_context(open_job(config))
        _check_grid(job)
        journal = stack.enter_context(open_journal(job.out, share))
        if share is None:
            stack.enter_context(claim_outputs(beside_of(config)))
            # Another run may have finished between the first look and the locks.
            check_outputs(config, stamps)
        _check_resources(job, journal)
        maker: _LocalMaker | _ClusterMaker
        if config.dask is None:
            maker = _LocalMaker(job, dates, stamps)
        else:
            cluster = stack.enter_context(open_cluster(config))
            engine = ask(cluster, worker.choose_here, work_of(job, dates))
            job = Job(dataclasses.replace(config, engine=engine), job.members, job.stack)
            maker = _ClusterMaker(cluster, job, dates)
        job.profile = dataclasses.replace(job.profile, tags=maker.described.tags)
        journal.begin(maker.described.key, restart=config.restart)
        pool = stack.enter_context(ThreadPoolExecutor(cores()))
        yield _Run(job, journal, output_of(job, journal.folder, dates), maker, pool, stamps)


def _check_grid(job: Job) -> None:
    if job.config.tiles and not job.stack.grid.crs:
        raise InputError(
            "cannot write tiles, since the mosaic has no coordinate reference system, expected one that says "
            "where on Earth a tile lies",
            "Leave --tiles out, or give the mosaic its own: gdal_edit.py -a_srs EPSG:3067 MOSAIC",
        )


def _check_resources(job: Job, journal: Journal) -> None:
    config = job.config
    # Workers on other machines check their own memory.
    processes = {None: 1, "local": config.workers or WORKERS}.get(config.dask, 0)
    memory_plan.check_memory(processes * job.memory)
    memory_plan.check_memory(_memory_of(job), SIEVE_WAY_OUT)
    # Tiles are not copied. Parts of an interrupted run are on the disk already.
    needed = memory_plan.disk_needed(job.profile) // (2 if config.tiles else 1) - journal.bytes
    sieved = job.plan.height * job.plan.width if config.sieve else 0
    check_disk(job.out.parent, needed + sieved, "the map and its parts")
    if job.memory > job.budget:
        logger.warning(
            "windows of %d x %d take about %.1f GB, more than --memory %g",
            *job.plan.window, job.memory / 1e9, job.budget / 1e9,
        )  # fmt: skip


def _memory_of(job: Job) -> float:
    """Peak memory of this process in bytes: the engine stays loaded while the map is sieved."""
    classifying = job.memory if job.config.dask is None else 0
    return classifying + (SIEVE_BYTES * job.plan.height * job.plan.width if job.config.sieve else 0)


def _make_parts(run: _Run, parts: range) -> int:
    """Make those of `parts` that are not finished, record them, and return their number."""
    plan, journal = run.job.plan, run.journal
    finished = journal.finished(parts, run.output.checksum)
    if finished:
        logger.info("continuing: %d of %d parts are finished", len(finished), len(parts))
    missing = [part for part in parts if part not in finished]
    total, done = sum(map(plan.pixels_of, parts)), sum(map(plan.pixels_of, finished))
    bar = tqdm(
        total=total, initial=done, unit="px", unit_scale=True, desc="classifying",
        disable=not logger.isEnabledFor(logging.INFO),
    )  # fmt: skip
    with bar, closing(run.maker.make(run, missing, bar.update)) as results:
        for made in results:
            journal.record(made.part, made.checksum, made.counts)
    return len(missing)


def _finish(run: _Run, counts: dict[int, int]) -> tuple[Path, ...]:
    """Assemble the map, derive sieved map and polygons, name the map and remove the parts."""
    job, journal = run.job, run.journal
    whole = run.output.assemble(run.pool)
    further = further_of(job.config)
    # A run that is killed before the map is named finds its own derived files when it continues.
    journal.claim(further)
    if job.config.sieve:
        target = sieved_path(job.out)
        sieved = journal.folder / "sieved.tif"
        _write_sieved(job, whole, sieved)
        with open_map(sieved) as land_cover:
            style_map(land_cover, count_entries(land_cover), target)
        rename_durably(sieved, target)
    if job.config.polygons:
        # geopandas takes longer to import than most windows to classify.
        from lulc.inference.sieve import write_polygons

        target = Path(job.config.polygons)
        extents = [part.extent for part in job.plan.parts()]
        write_polygons(target, partial(read_classes, whole), extents, job.stack.grid, job.profile.legend)
    run.output.style(counts, job.out)
    put(whole, job.out)
    journal.remove()
    return further


def _write_sieved(job: Job, whole: Path, target: Path) -> None:
    from lulc.inference.sieve import merge_small_patches

    classes = _map_classes(whole, job.plan, target.with_name("classes"))
    merge_small_patches(classes, job.config.sieve)
    tags = job.profile.tags | {"LULC_SIEVE": str(job.config.sieve)}
    profile = dataclasses.replace(job.profile, activations="none", tags=tags, extra=())
    write_map(profile, lambda window: classes[window.slices][np.newaxis], target)


def _map_classes(whole: Path, plan: Plan, file: Path) -> np.ndarray:
    """Copy the classes of a map to a memory-mapped file, uint8 (y, x)."""
    shape = plan.height, plan.width
    with open(file, "wb") as stream:
        # In a sparse file a full disk would end the process by SIGBUS.
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape))
    classes = np.memmap(file, np.uint8, "r+", shape=shape)
    for part in plan.parts():
        classes[part.extent.slices] = read_classes(whole, part.extent)
    return classes


def _remarks_on(job: Job) -> tuple[str, ...]:
    remarks = [problem for member in job.members for problem in problems_of(member)]
    remarks += [pixel_size_problem(member.card, job.stack.grid) for member in job.members]
    return tuple(dict.fromkeys(filter(None, remarks)))


def _label(card: ModelCard) -> str:
    """Name, epoch and checksum of a network."""
    return ", ".join(filter(None, [card.name, card.origin, card.sha256 and f"sha256 {card.sha256[:12]}"]))


def _areas_of(
    out: Path, plan: Plan, grid: GridSpec, parts: Mapping[int, Mapping[int, int]]
) -> dict[int, float] | None:
    """Return the square metres of each class of a finished map; None without a CRS of the Earth.

    Where the pixels of a part are of one size on the ground, its pixel counts suffice; other parts are read.
    """
    areas: dict[int, float] = {}
    for part, counts in parts.items():
        extent = plan.part_at(part).extent
        bottom, right = extent.stop[0] - 1, extent.stop[1] - 1
        sampled = [
            pixel_areas(grid, Window(row, col, 1, 1))
            for row in (extent.row, (extent.row + bottom) // 2, bottom)
            for col in (extent.col, (extent.col + right) // 2, right)
        ]
        sizes = [float(area[0, 0]) for area in sampled if area is not None]
        if not sizes:
            return None
        if max(sizes) > (1 + _ONE_SIZE) * min(sizes):
            part_areas = _read_areas(out, grid, extent)
        else:
            part_areas = {n: count * sizes[len(sizes) // 2] for n, count in counts.items() if n != IGNORE}
        for number, area in part_areas.items():
            areas[number] = areas.get(number, 0.0) + area
    return areas


def _read_areas(out: Path, grid: GridSpec, extent: Window) -> dict[int, float]:
    """Sum the pixel areas of each class in a part of a map, in square metres."""
    summed = np.zeros(256)
    for window in squares_of(extent):
        weights = pixel_areas(grid, window)
        if weights is not None:
            summed += np.bincount(read_classes(out, window).ravel(), weights.ravel(), minlength=256)
    return {n: float(area) for n, area in enumerate(summed) if area and n != IGNORE}


def _windows_with_data(
    job: Job, windows: list[PlannedWindow], count: int
) -> tuple[list[PlannedWindow], float]:
    """Return `count` windows with valid pixels and the fraction of windows without, from 48 at most."""
    step = -(-len(windows) // 48)
    sampled = windows[step // 2 :: step]
    filled = [w for w in sampled if not np.isnan(job.stack.read(w.write)).all()]
    if not filled:
        raise InputError(
            f"cannot forecast the map, since none of {len(sampled)} sampled windows holds a valid pixel",
            "Check bands, fills, no-data values and masks: a pixel is valid where it has all channels.",
        )
    return [filled[i * len(filled) // count] for i in range(count)], 1 - len(filled) / len(sampled)


def _time_windows(job: Job, engine: Engine, windows: list[PlannedWindow]) -> tuple[float, float]:
    """Return the seconds and encoded bytes of a window; the first call of the network is not timed."""
    batch = job.config.batch_size
    work = [(job.plan.part_at(0), windows)]
    started, size = 0.0, 0.0
    with ThreadPoolExecutor(cores()) as pool, job.readers() as (read, *further):
        network = job.network(engine)
        for prediction in predict_windows(read, network, job.plan, work, further=further, batch=batch):
            # When the first result is there, the network is busy with the second call.
            started = started or time.perf_counter()
            values, _ = job.encode(prediction)
            if values is not None:
                size += _encoded_size(job.profile, values, pool)
    return (time.perf_counter() - started) / (len(windows) - batch), size / len(windows)


def _encoded_size(profile: MapProfile, values: np.ndarray, pool: Executor) -> float:
    """Bytes that a window takes on disk with its overviews."""
    extents = profile.extents_of(Window(0, 0, *values.shape[1:])).values()
    levels = sum(extent.height * extent.width for extent in extents) / values[0].size
    # Encoded as a whole, since a small window would leave a block of the map mostly empty.
    return levels * sum(map(len, pool.map(encode_block, map(np.ascontiguousarray, values))))
