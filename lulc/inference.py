"""Classification: mosaic and weights to a map that is whole or absent, and continues where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import rasterio
from tqdm import tqdm

from lulc import forecast
from lulc.blocks import BlockWriter
from lulc.config import ClassifyConfig
from lulc.engines import Engine
from lulc.geotiff import MapProfile, assemble, read_classes, write_part
from lulc.job import Job, no_valid_pixel, open_job
from lulc.journal import Journal, claimed_by, open_journal
from lulc.patches import merge_small_patches, write_polygons
from lulc.prediction import Clock, predict_windows, windows_of
from lulc.schema import IGNORE, InputError, Legend
from lulc.sources import Stamp, moments_of, open_source, stamps_of
from lulc.storage import check_disk, rename_durably
from lulc.windows import Plan, PlannedWindow, Window

logger = logging.getLogger("lulc")

COPY_SPEED = 400e6
"""Encoded bytes copied into the map and flushed in a second, as measured on a virtual disk."""

SIEVE_BYTES = 16
"""Memory of sieving for each pixel of the map: class band, result, and GDAL's tables of patches."""

SIEVE_WAY_OUT = (
    "Free memory, or leave --sieve out: it holds the classes of the whole map at once, also with --bounds. "
    "To sieve a smaller area, cut the inputs out first: gdal_translate -projwin WEST NORTH EAST SOUTH IN OUT"
)
"""What helps where the map is too large to be sieved."""


@dataclass(frozen=True)
class ClassificationResult:
    """What a classification made.

    Parameters
    ----------
    path
        The map.
    further
        Files derived from it: sieved map, polygons.
    legend
        Its classes.
    counts
        Pixels of each class number, 0 for unclassified; no data is left out.
    pixels, pixel_area
        Pixels of the map, and the area of one in square metres, None in degrees.
    plan, engine
        How it was cut, and what ran.
    seconds
        By stage (start, windows, finish), and ``all``.
    network_share
        Share of the time from first to last window in which the network was busy.
    """

    path: Path
    further: tuple[Path, ...]
    legend: Legend
    counts: dict[int, int]
    pixels: int
    pixel_area: float | None
    plan: Plan
    engine: str
    seconds: dict[str, float]
    network_share: float


@dataclass(frozen=True)
class Forecast:
    """What a classification will take.

    Parameters
    ----------
    plan, engine
        How the map is cut, and which engine runs.
    windows, empty
        Windows in all, and the share of them estimated to hold no valid pixel.
    memory
        Bytes: peak of the process.
    disk, disk_bound
        Bytes of parts and map together while the map is assembled: as the windows looked at are
        compressed, and without compression, for which there must be room.
    seconds
        By stage (start, windows, finish), and ``all``.
    """

    plan: Plan
    engine: str
    windows: int
    empty: float
    memory: float
    disk: float
    disk_bound: float
    seconds: dict[str, float]


def classify(config: ClassifyConfig) -> ClassificationResult:
    """Classify a mosaic.

    Parameters
    ----------
    config
        What the options of ``make_classifications.py`` say.

    Returns
    -------
    ClassificationResult
        Of the finished map.

    Raises
    ------
    InputError
        If an input doesn't fit, the map exists already, another run writes it, or memory or disk do not
        suffice. Whatever happens, there is no file under the final name unless it is whole.
    """
    begun = time.perf_counter()
    stamps = _stamps(config)
    _check_outputs(config, stamps)
    with _reading(), open_job(config) as job, open_journal(job.out) as journal:
        _check_resources(job, journal)
        engine = job.build_engine()
        job.profile = dataclasses.replace(job.profile, tags=job.tags(engine))
        journal.begin(job.key(engine) | {"changed": moments_of(stamps)}, restart=config.restart)
        clock = Clock()
        with ThreadPoolExecutor(forecast.cores()) as pool:
            started = time.perf_counter()
            _classify_parts(job, engine, journal, clock, pool)
            classified = time.perf_counter()
            if _stamps(config) != stamps:
                raise _changed()
            counts = {value: count for value, count in journal.counts.items() if value != IGNORE}
            if not counts:
                journal.remove()
                raise no_valid_pixel()
            further = _finish(job, journal, pool)
        end = time.perf_counter()
        stages = {"start": started - begun, "windows": classified - started, "finish": end - classified}
        return ClassificationResult(
            path=job.out,
            further=further,
            legend=job.profile.legend,
            counts=counts,
            pixels=job.plan.height * job.plan.width,
            pixel_area=_pixel_area(job),
            plan=job.plan,
            engine=engine.name,
            seconds=stages | {"all": end - begun},
            network_share=clock.share,
        )


def forecast_classification(config: ClassifyConfig, sample: int = 4) -> Forecast:
    """What `classify` would take, from running it on a few windows; writes nothing.

    Parameters
    ----------
    config
        As for `classify`.
    sample
        Calls of the network that are timed, after one that is not.
    """
    begun = time.perf_counter()
    with _reading(), open_job(config) as job:
        engine = job.build_engine()
        start = time.perf_counter() - begun
        windows = [w for part in job.plan.parts() for w in windows_of(job.plan, part, gaussian=job.gaussian)]
        chosen, empty = _windows_with_data(job, windows, (sample + 1) * config.batch_size)
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
            disk_bound=forecast.disk_needed(job.profile),
            seconds=seconds | {"all": sum(seconds.values())},
        )


def sieved_path(out: Path) -> Path:
    """Where the sieved map of `out` lies: ``OUT_sieved.tif``."""
    return out.with_name(f"{out.stem}_sieved{out.suffix}")


def _reading() -> rasterio.Env:
    return rasterio.Env(GDAL_CACHEMAX=forecast.CACHE // 2**20)


def _check_outputs(config: ClassifyConfig, stamps: list[Stamp]) -> None:
    """Refuse, before any work, names that are no files of the right kind, and what may not be replaced."""
    out = Path(config.out)
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            f"cannot write the map '{out}', since the last argument names it, expected a name in .tif",
            f"Type the map's name last, for example {out.with_suffix('.tif')}.",
        )
    if config.polygons and Path(config.polygons).suffix.lower() != ".gpkg":
        raise InputError(
            f"cannot write the polygons '{config.polygons}', expected a name in .gpkg",
            f"Type --polygons {Path(config.polygons).with_suffix('.gpkg')}.",
        )
    inputs = _named_files(config) | {Path(stamp.path).resolve() for stamp in stamps}
    ours = claimed_by(out)
    for target in (out, *_further(config)):
        if target.resolve() in inputs or target.is_dir():
            raise InputError(
                f"cannot write '{target}', since it is {'a folder' if target.is_dir() else 'an input'}",
                "Give another output: the last argument names the map.",
            )
        if target.exists() and str(target.resolve()) not in ours:
            _check_replaceable(target, config)


def _check_replaceable(target: Path, config: ClassifyConfig) -> None:
    """Refuse to replace what can't be made again, and anything where nobody asked for it."""
    polygons = config.polygons is not None and target == Path(config.polygons)
    if not polygons and not _is_map(target):
        raise InputError(
            f"cannot write '{target}', since it is there already and not a map of this toolkit, "
            "expected a new name",
            f"The last argument names the map: type a new name there, or move '{target}' away.",
        )
    if not config.overwrite:
        raise InputError(
            f"cannot write '{target}', since it exists already",
            "Give another output, or add --overwrite to replace it.",
        )


def _is_map(path: Path) -> bool:
    """Whether a file is a whole map that a classification wrote."""
    try:
        with closing(open_source(path)) as source:
            return "LULC_VERSION" in source.tags
    except InputError:
        return False


def _named_files(config: ClassifyConfig) -> set[Path]:
    """All that the command names for reading."""
    single = (config.model, config.mask, config.like, config.aoi, config.statistics)
    named = (*config.inputs, *config.fill, *config.ensemble, *filter(None, single))
    return {Path(name).resolve() for name in named}


def _check_resources(job: Job, journal: Journal) -> None:
    forecast.check_memory(job.memory)
    forecast.check_memory(_memory_of(job), SIEVE_WAY_OUT)
    # What an interrupted run has written is part of what is needed.
    needed_on_disk = forecast.disk_needed(job.profile) - journal.bytes
    check_disk(job.out.parent, needed_on_disk, "the map and its parts")
    budget = job.config.memory * 1e9
    if job.memory > budget:
        logger.warning(
            "windows of %d x %d take about %.1f GB, more than --memory %g",
            *job.plan.window, job.memory / 1e9, job.config.memory,
        )  # fmt: skip


def _memory_of(job: Job) -> float:
    """Peak memory in bytes: the engine is still there while the map is sieved."""
    return job.memory + (SIEVE_BYTES * job.plan.height * job.plan.width if job.config.sieve else 0)


def _stamps(config: ClassifyConfig) -> list[Stamp]:
    named = [*config.inputs, *config.fill, *(p for p in (config.mask, config.aoi, config.like) if p)]
    return stamps_of(named, allow_vrt=config.allow_vrt)


def _changed() -> InputError:
    return InputError(
        "cannot finish the map, since an input changed while it was read, expected the same file to the end",
        "Run the same command with --restart when the inputs are at rest.",
    )


def _classify_parts(job: Job, engine: Engine, journal: Journal, clock: Clock, pool: Executor) -> None:
    """Write and journal all parts that are missing."""
    finished = journal.finished(len(job.plan))
    if finished:
        logger.info("continuing: %d of %d parts are finished", len(finished), len(job.plan))
    parts = [part for part in job.plan.parts() if part.index not in finished]
    total = job.plan.height * job.plan.width
    missing = sum(part.extent.height * part.extent.width for part in parts)
    predictions = job.predictions(clock.measure(job.network(engine)), parts)
    bar = tqdm(
        total=total, initial=total - missing, unit="px", unit_scale=True, desc="classifying",
        disable=not logger.isEnabledFor(logging.INFO),
    )  # fmt: skip
    with bar, closing(predictions):
        for part, windows in itertools.groupby(predictions, key=lambda p: p.part):
            counts = np.zeros(256, np.int64)
            with write_part(journal.path_of(part.index), job.profile, part.extent, pool) as writer:
                for prediction in windows:
                    values, of_window = job.encode(prediction)
                    counts += of_window
                    writer.write(prediction.window.write, values)
                    bar.update(prediction.window.write.height * prediction.window.write.width)
            by_class = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
            journal.record(part.index, writer.sha256, by_class)


def _finish(job: Job, journal: Journal, pool: Executor) -> tuple[Path, ...]:
    """Assemble the map, derive the further files, then give the map its name and drop the parts."""
    parts = [(part.extent, journal.path_of(part.index)) for part in job.plan.parts()]
    whole = journal.folder / "map.tif"
    assemble(job.profile, parts, whole, pool)
    further = _further(job.config)
    # The map gets its name last; a run that is killed before that may find the others there already.
    journal.claim(further)
    if job.config.sieve:
        target = sieved_path(job.out)
        classes = read_classes(whole, job.stack.grid.extent)
        sieved = journal.folder / "sieved.tif"
        _write_sieved(job, merge_small_patches(classes, job.config.sieve), sieved, journal.folder, pool)
        rename_durably(sieved, target)
    if job.config.polygons:
        target = Path(job.config.polygons)
        extents = [extent for extent, _ in parts]
        write_polygons(target, partial(read_classes, whole), extents, job.stack.grid, job.profile.legend)
    rename_durably(whole, job.out)
    journal.remove()
    return further


def _further(config: ClassifyConfig) -> tuple[Path, ...]:
    """Files that are derived from the map."""
    sieved = [sieved_path(Path(config.out))] if config.sieve else []
    return (*sieved, *([Path(config.polygons)] if config.polygons else []))


def _write_sieved(job: Job, classes: np.ndarray, target: Path, folder: Path, pool: Executor) -> None:
    tags = job.profile.tags | {"LULC_SIEVE": str(job.config.sieve)}
    profile = dataclasses.replace(job.profile, activations="none", tags=tags, extra=())
    files = []
    for part in job.plan.parts():
        path = folder / f"sieved-{part.index:06d}.part"
        with write_part(path, profile, part.extent, pool) as writer:
            writer.write(part.extent, classes[part.extent.slices][np.newaxis])
        files.append((part.extent, path))
    assemble(profile, files, target, pool)


def _pixel_area(job: Job) -> float | None:
    """Square metres of a pixel; None where the CRS counts degrees, or there is none."""
    crs = job.stack.grid.crs
    if not crs or crs.is_geographic:
        return None
    x, y = job.stack.grid.pixel_size
    return float(x * y * crs.linear_units_factor[1] ** 2)


def _windows_with_data(
    job: Job, windows: list[PlannedWindow], count: int, most: int = 48
) -> tuple[list[PlannedWindow], float]:
    """`count` windows with valid pixels, and the share of windows without, from looking at some."""
    step = -(-len(windows) // most)
    seen = windows[step // 2 :: step]
    full = [w for w in seen if not np.isnan(job.stack.read(w.write)[..., 0]).all()]
    if not full:
        raise InputError(
            f"cannot forecast the map, since none of the {len(seen)} windows looked at holds a valid pixel",
            "Check bands, fills, no-data values and masks: a pixel is valid where it has all channels.",
        )
    return [full[i * len(full) // count] for i in range(count)], 1 - len(full) / len(seen)


def _time_windows(job: Job, engine: Engine, windows: list[PlannedWindow]) -> tuple[float, float]:
    """(seconds, encoded bytes) of a window from all calls but the first, through the whole pipeline."""
    batch = job.config.batch_size
    work = [(job.plan.part_at(0), windows)]
    started, size = 0.0, 0
    with ThreadPoolExecutor(forecast.cores()) as pool:
        results = predict_windows(job.stack.read, job.network(engine), job.plan, work, batch=batch)
        for number, prediction in enumerate(results):
            if number == batch:
                started = time.perf_counter()
            values, _ = job.encode(prediction)
            if values is not None and number >= batch:
                size += _encoded_size(job.profile, values, pool)
    timed = len(windows) - batch
    return (time.perf_counter() - started) / timed, size / timed


def _encoded_size(profile: MapProfile, values: np.ndarray, pool: Executor) -> int:
    """Bytes that a window takes on disk with its reduced levels."""
    extent = Window(0, 0, *values.shape[1:])
    with BytesIO() as file:
        writer = BlockWriter(file, profile.encoding, len(values), profile.extents_of(extent), pool)
        writer.place(0, extent, values)
        return file.tell()
