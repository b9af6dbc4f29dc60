"""Parts of a map, made in this process or on a worker.

One process, the workers of a cluster, or processes with a share each call the same functions, which make the
same bytes. A worker opens its inputs and builds its engine once; it refuses to make a part where its key
differs from that of the run that asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import rasterio

from lulc.config import ClassifyConfig
from lulc.core.channels import change_paths, split_prefix, with_path
from lulc.core.documents import seal_of
from lulc.core.machine import GDAL_CACHE, cores
from lulc.core.schema import InputError
from lulc.core.threads import in_order
from lulc.core.version import __version__
from lulc.core.windows import Part
from lulc.distributed.cluster import UnfitWorkerError
from lulc.engines.ensemble import Member
from lulc.engines.registry import Engine, choose_engine
from lulc.inference import memory_plan
from lulc.inference.job import INPUT_FILES, Job, open_job, versions
from lulc.inference.journal import KEY, differences, document_of, folder_of, read_key
from lulc.inference.outputs import Made, OneFile, Output, Piece, Tileset
from lulc.inference.sliding_window import Clock, Prediction
from lulc.rasters.guards import from_anywhere
from lulc.rasters.sources import Stamp, moments_of, stamps_of


@dataclass(frozen=True)
class Work:
    """Description of a job, with absolute paths, for another process that makes parts of its map.

    The networks are compared with the mosaic already. `versions` are those of libraries in the process that
    asks; the random `token` distinguishes equal jobs.
    """

    config: ClassifyConfig
    members: tuple[Member, ...]
    dates: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=lambda: {"toolkit": __version__, **versions()})
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def open(self) -> AbstractContextManager[Opened]:
        """Open inputs and engine on a worker."""
        return closing(Opened(self))


class Described(NamedTuple):
    """Engine, key and tags of a map; only a process that has built the engine knows them."""

    engine: str
    key: dict[str, Any]
    tags: dict[str, str]


class Timed(NamedTuple):
    """A finished part, the seconds in which the network was busy, and all seconds."""

    made: Made
    busy: float
    seconds: float


def work_of(job: Job, dates: Sequence[str]) -> Work:
    """Describe a job for other processes of this and other machines."""

    def absolute(text: str) -> str:
        return with_path(text, from_anywhere)

    paths = {name: change_paths(getattr(job.config, name), absolute) for name in (*INPUT_FILES, "out")}
    config = dataclasses.replace(job.config, **paths)
    members = tuple(Member(member.path.absolute(), member.card) for member in job.members)
    return Work(config, members, tuple(dates))


def reading() -> rasterio.Env:
    """Return the GDAL environment in which mosaics are read."""
    return rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE)


def stamps_of_inputs(config: ClassifyConfig) -> list[Stamp]:
    """Return the stamps of all files that are read."""
    named = (*config.inputs, *config.layers, *config.fill, *config.mask, config.aoi, config.like)
    return stamps_of([split_prefix(text)[1] for text in named if text], allow_vrt=config.allow_vrt)


def output_of(job: Job, folder: Path, dates: Sequence[str]) -> Output:
    """Return the destination of the parts of a job, in the folder of its journal."""
    if job.config.tiles:
        return Tileset(job.profile, job.plan, folder, job.out.name, dates)
    return OneFile(job.profile, job.plan, folder)


def describe_job(job: Job, engine: Engine, stamps: list[Stamp], dates: Sequence[str]) -> Described:
    """Return engine, key and tags of a job whose engine is built."""
    tiles = {"tiles": {"dates": list(dates)}} if job.config.tiles else {}
    key = job.key(engine) | {"changed": moments_of(stamps)} | tiles
    return Described(engine.name, key, job.tags(engine))


def make_parts(
    job: Job,
    engine: Engine,
    output: Output,
    parts: list[Part],
    pool: Executor,
    *,
    clock: Clock,
    progress: Callable[[int], object] = lambda pixels: None,
    check: Callable[[], object] = lambda: None,
) -> Iterator[Made]:
    """Make parts in this process, one after the other; the next is read while one is finished.

    Parameters
    ----------
    parts
        Parts in plan order.
    pool
        Threads that encode blocks.
    progress
        Called with the pixels of each window.
    check
        Called before a part gets its name; it raises where the part must not be written.
    """
    predictions = job.predictions(clock.measure(job.network(engine)), parts)

    def piece_of(prediction: Prediction) -> Piece:
        return Piece(prediction.window.write, *job.encode(prediction))

    def pieces(windows: Iterable[Prediction]) -> Iterator[Piece]:
        ahead = job.demand.strips_ahead
        for piece in in_order(piece_of, windows, pool, ahead) if ahead else map(piece_of, windows):
            yield piece
            progress(piece.window.height * piece.window.width)
        check()

    with closing(predictions):
        for part, windows in itertools.groupby(predictions, key=lambda p: p.part):
            yield output.make(part, pieces(windows), pool)


def choose_here(work: Work) -> str:
    """Return the engine that this worker would use."""
    return choose_engine(work.config.engine, networks=[m.card.network for m in work.members])


def describe(opened: Opened, _: object) -> Described:
    """Return this worker's engine, key and tags."""
    return opened.described


def make_part(opened: Opened, part: int, *, seal: str) -> Timed:
    """Make one part on a worker, in the folder of the run whose key has the digest `seal`.

    Raises
    ------
    UnfitWorkerError
        If this process would make other bytes, or doesn't see the files.
    """
    opened.admit(seal)
    begun, busy = time.perf_counter(), opened.clock.busy
    with reading(), ThreadPoolExecutor(cores()) as pool:
        (made,) = make_parts(
            opened.job, opened.engine, opened.output, [opened.job.plan.part_at(part)], pool,
            clock=opened.clock, check=opened.check,
        )  # fmt: skip
    return Timed(made, opened.clock.busy - busy, time.perf_counter() - begun)


class Opened:
    """Open inputs and engine of a worker, kept between its parts."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._stack = contextlib.ExitStack()
        try:
            _check_versions(work)
            stamps = stamps_of_inputs(work.config)
            with reading():
                self.job: Job = self._stack.enter_context(open_job(work.config, work.members))
                memory_plan.check_memory(self.job.memory)
                self.engine = self.job.build_engine()
                self.described = describe_job(self.job, self.engine, stamps, work.dates)
        except InputError as error:
            self.close()
            raise UnfitWorkerError(error.problem, error.hint) from error
        self.job.profile = dataclasses.replace(self.job.profile, tags=self.described.tags)
        self.clock = Clock()
        self.folder = folder_of(Path(work.config.out))
        self.output = output_of(self.job, self.folder, work.dates)
        self._admitted: tuple[str, bytes] | None = None

    def admit(self, seal: str) -> None:
        """Refuse to make parts unless the key of this worker is that of the run."""
        if self._admitted is not None and self._admitted[0] == seal:
            return
        run_key, worker_key = read_key(self.folder), document_of(self.described.key)
        if run_key is None or seal_of(run_key) != seal:
            raise UnfitWorkerError(
                f"cannot make parts of '{self.work.config.out}', since this worker doesn't see the folder "
                f"'{self.folder}' of the run that asks",
                "Name inputs and map on a disk that all machines see under the same path.",
            )
        if run_key != worker_key:
            raise UnfitWorkerError(
                f"cannot make parts of '{self.work.config.out}', since the run has another "
                f"{differences(run_key, worker_key)} on this worker",
                "Give all workers the same versions and the same kind of processor or GPU.",
            )
        self._admitted = (seal, (self.folder / KEY).read_bytes())

    def check(self) -> None:
        """Refuse to write a part after another run has replaced the key."""
        if self._admitted is None or (self.folder / KEY).read_bytes() != self._admitted[1]:
            raise UnfitWorkerError(
                f"cannot make parts of '{self.work.config.out}', since another run makes them now"
            )

    def close(self) -> None:
        self._stack.close()


def _check_versions(work: Work) -> None:
    here = {"toolkit": __version__, **versions()}
    if here != work.versions:
        raise InputError(
            f"cannot make parts of '{work.config.out}', since the run has another "
            f"{differences(work.versions, here)} on this worker",
            "Install the same versions everywhere.",
        )
