"""A Dask cluster: processes of this machine, jobs of SLURM, or the scheduler at an address.

Tasks are independent and may be repeated. A worker process has one task at a time and one waiting
(back-pressure), so that memory does not grow with the number of tasks.

Anyone who can connect to a scheduler or a worker can run code as its owner. Therefore ``local`` and ``slurm``
use TLS with new certificates for each run, unless Dask's settings name others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from lulc.config import ClusterConfig
from lulc.core.packages import require
from lulc.core.schema import InputError

WORKERS = 2
"""Default number of workers of ``local`` and ``slurm``."""

ATTEMPTS = 3
"""Failures after which a task ends the run, and failures in a row after which a worker is excluded."""

ANSWER_SECONDS = 30.0
"""Timeout of a scheduler."""

REMIND_SECONDS = 60.0
"""Time without a worker before the first reminder is logged; it doubles each time."""

CALM = {
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}
"""Settings of ``local``. With Dask's defaults, monitoring takes 2 to 3 % of a core for each process, and
returning the memory of each array to the system up to a fifth of a worker's time."""

KEEP_MEMORY = ("export MALLOC_TRIM_THRESHOLD_=134217728", "export MALLOC_MMAP_THRESHOLD_=33554432")
"""Settings of glibc (mallopt(3)) by which workers of SLURM keep memory: bytes that stay free, and the size
from which an array is returned to the system."""

AT_ONCE = 256
"""Most results that are fetched from the workers together."""

_AGAIN = "Then run the same command again: what is finished is kept."
_SAME_PACKAGES = f"Start workers in the environment of this command (on this machine {sys.executable})."
_WAY_OUT = f"Give the workers more memory or disk, or take a smaller --memory. {_AGAIN}"

_Function = Callable[[Any, Any], Any]
"""Function of the worker and an item."""

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("lulc")


class Site(Protocol):
    """Description of the inputs of tasks; a worker opens them once and keeps them for further tasks."""

    def open(self) -> AbstractContextManager[Any]:
        """Open the inputs on a worker."""


class UnfitWorkerError(InputError):
    """Error of a worker with other versions, or that doesn't see the files."""


@dataclass
class Cluster:
    """An open cluster; `open_cluster` makes it.

    Parameters
    ----------
    name
        Value of ``--dask``, for messages.
    cores
        Processors of each worker of ``local`` by its name.
    refill
        Starts workers in place of lost ones; None where the toolkit doesn't start workers.
    patience
        Seconds that a run waits without a worker; None for no limit.
    unfit
        Excluded workers, with the reasons.
    """

    client: Any
    name: str
    cores: dict[int, frozenset[int]] = field(default_factory=dict)
    refill: Callable[[], object] | None = None
    patience: float | None = None
    unfit: dict[str, BaseException] = field(default_factory=dict)

    @property
    def workers(self) -> set[str]:
        """Addresses of the current workers; raises InputError if the scheduler is lost."""
        if self.client.status != "running":
            raise self.gone()
        return set(self.client.scheduler_info(n_workers=-1)["workers"])

    def gone(self) -> InputError:
        """Return the error message for a lost scheduler."""
        return InputError(
            f"cannot go on, since the scheduler of {self.name} is gone", f"Start it again. {_AGAIN}"
        )

    @property
    def way_to_workers(self) -> str:
        """Hint for missing workers."""
        if self.name == "local":
            return "They are processes of this machine: see whether its memory or disk is full."
        if self.name == "slurm":
            return (
                "`squeue --me` shows their jobs, and what these wait for; jobqueue.slurm in Dask's settings "
                "says what they ask for."
            )
        return f"Start one on a machine that sees the same files: dask worker {self.name} --nthreads 1"


@contextlib.contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    """Start the cluster that ``--dask`` names, or connect to it, and wait for its first worker.

    Raises
    ------
    InputError
        If Dask is not installed, its settings are incomplete, no scheduler answers, or no worker comes
        within ``--worker-wait``.
    """
    name, workers = str(config.dask), WORKERS if config.workers is None else config.workers
    needed = ["distributed", "cryptography", *(["dask_jobqueue"] if name == "slurm" else [])]
    require(needed, "run on a cluster", "cluster")
    import distributed  # noqa: F401 - it sets the levels of its loggers

    # `run_tasks` reports errors; Dask's lines would repeat them.
    for part in ("distributed", "distributed.client"):
        logging.getLogger(part).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        cores: dict[int, frozenset[int]] = {}
        refill = None
        if name == "local":
            cores = dict(enumerate(_shared_out(os.sched_getaffinity(0), workers)))
            import dask

            # While the cluster runs, since restarted workers take the settings from here.
            stack.enter_context(dask.config.set(CALM))
            address: Any = stack.enter_context(_local(workers))
        elif name == "slurm":
            address = stack.enter_context(_slurm(workers))
            # Jobs end at their time limit, and Dask submits others only when it is asked.
            refill = partial(address.scale, workers)
        elif ":" in name:
            address = name
        else:
            raise InputError(
                f"cannot run on the cluster '{name}', expected local, slurm or the address of a scheduler",
                "Type for example --dask tcp://host:8786, as the scheduler printed it.",
            )
        patience = None if config.worker_wait is None else 60 * config.worker_wait
        cluster = Cluster(stack.enter_context(_connected(address, name)), name, cores, refill, patience)
        _wait_for_first(cluster)
        yield cluster


def _wait_for_first(cluster: Cluster) -> None:
    if cluster.workers:
        return
    absence = _Absence(cluster)
    logger.info("waiting for the first worker of %s. %s", cluster.name, cluster.way_to_workers)
    while not (workers := cluster.workers):
        absence.note(workers)
        time.sleep(0.1)


class _Absence:
    """Timer for missing workers: logs reminders and raises after the wait that the user allows."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._since: float | None = None
        self._next = REMIND_SECONDS

    def note(self, workers: Collection[str]) -> None:
        """Note the current workers; raise after too long a time without any."""
        if workers:
            self._since = None
            return
        now = time.monotonic()
        if self._since is None:
            self._since, self._next = now, REMIND_SECONDS
        name, patience, seconds = self._cluster.name, self._cluster.patience, now - self._since
        if patience is not None and seconds >= patience:
            raise InputError(
                f"cannot go on, since no worker of {name} was there for {patience / 60:g} minutes, as long "
                "as --worker-wait allows",
                f"{self._cluster.way_to_workers}\n{_AGAIN}",
            )
        if seconds >= self._next:
            self._next *= 2
            logger.warning(
                "waiting for %.0f minutes already, since no worker of %s is there. %s",
                max(seconds / 60, 1), name, self._cluster.way_to_workers,
            )  # fmt: skip


def run_tasks(
    cluster: Cluster,
    function: Callable[..., Result],
    items: Iterable[Item],
    *,
    site: Site | None = None,
    what: Callable[[Item], str] = str,
) -> Generator[Result]:
    """Call a function for each item on the free workers; yield results in the order in which they finish.

    A task that is lost with its worker is repeated. A task that fails for lack of memory, disk or files
    (`MemoryError`, `OSError`) is tried on other workers.

    Parameters
    ----------
    function
        Function that the workers can import, or a ``functools.partial`` of one. It is called for one item at
        a time in each process: with the item, or with the opened site and the item.
    items
        Consumed as workers become free.
    site
        Inputs that the tasks need.
    what
        Returns the name of an item in messages.

    Raises
    ------
    InputError
        If the function raises one, a task has failed `ATTEMPTS` times, workers died of it, no worker can do
        the work, or the scheduler is lost.
    """
    yield from _Run(cluster, partial(_at_site, function, site), what).results(iter(items))


def ask(cluster: Cluster, function: Callable[..., Result], item: object, site: Site | None = None) -> Result:
    """Run one task and return its result."""
    (result,) = run_tasks(cluster, function, [item], site=site, what=lambda _: "the first task")
    return result


@dataclass
class _Task(Generic[Item]):
    """A submitted item; it failed on the workers `avoid`, and may run on the workers `allowed`."""

    item: Item
    avoid: set[str] = field(default_factory=set)
    allowed: set[str] | None = None
    failures: int = 0


class _Run:
    """Scheduler of the tasks of one `run_tasks`."""

    def __init__(self, cluster: Cluster, function: _Function, what: Callable[[Any], str]) -> None:
        self._cluster, self._client = cluster, cluster.client
        self._function, self._what = function, what
        self._pending: dict[Any, _Task[Any]] = {}
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._strikes: Counter[str] = Counter()
        self._unfit = cluster.unfit
        self._workers: set[str] = set()
        self._absence = _Absence(cluster)
        self._looked = 0.0

    def results(self, items: Iterator[Any]) -> Generator[Any]:
        try:
            self._look()
            self._fill(items)
            while self._pending:
                for task, future, answer in self._ended():
                    yield from self._settle(task, future, answer)
                self._look(every=5.0)
                self._fill(items)
        except OSError as error:
            # From the connection: an OSError of a task is a result.
            raise self._cluster.gone() from error
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(self._pending), force=True)

    def _ended(self) -> Iterator[tuple[_Task[Any], Any, Any]]:
        """Yield tasks that end within a second, with their futures and the results that were fetched."""
        with contextlib.suppress(queue.Empty):
            ended = [self._done.get(timeout=1.0)]
            while not self._done.empty() and len(ended) < AT_ONCE:
                ended.append(self._done.get())
            ended = [future for future in ended if future in self._pending]
            answers = self._fetch([future for future in ended if future.status == "finished"])
            for future in ended:
                yield self._pending.pop(future), future, answers.get(future)

    def _fetch(self, futures: list[Any]) -> dict[Any, Any]:
        """Return the results of finished futures, without those that are lost with their worker.

        Dask waits until another worker repeats a lost task, but only this thread starts workers. So a future
        that is no longer finished is given up.
        """

        async def gather() -> Any:
            return await self._client.gather(futures, asynchronous=True)

        call = asyncio.run_coroutine_threadsafe(gather(), self._client.loop.asyncio_loop)
        while not concurrent.futures.wait([call], timeout=1.0).done:
            finished = [future for future in futures if future.status == "finished"]
            if len(finished) < len(futures) or self._client.status != "running":
                call.cancel()
                return self._fetch(finished) if self._client.status == "running" else {}
        with contextlib.suppress(Exception):
            return dict(zip(futures, call.result(), strict=True))
        return {}

    def _fill(self, items: Iterator[Any]) -> None:
        room = 2 * max(1, len(self._workers - self._unfit.keys())) - len(self._pending)
        for _, item in zip(range(room), items, strict=False):
            self._submit(_Task(item))

    def _submit(self, task: _Task[Any]) -> None:
        fit = self._workers - self._unfit.keys()
        if self._unfit or task.avoid:
            task.allowed = (fit - task.avoid) or fit
        # Pickled here, so that the scheduler needs no module of this toolkit, and a worker that lacks one
        # reports it; with Dask's own pickling such a worker would end.
        call = pickle.dumps(_Call(self._function, task.item, self._cluster.cores))
        workers = sorted(task.allowed) if task.allowed else None
        future = self._client.submit(pickle.loads, call, pure=False, key=None, workers=workers)
        self._pending[future] = task
        future.add_done_callback(self._done.put)

    def _look(self, every: float = 0.0) -> None:
        """Update the workers, and submit tasks again whose workers are all lost."""
        if time.monotonic() - self._looked < every:
            return
        self._looked = time.monotonic()
        before = bool(self._workers)
        self._workers = self._cluster.workers
        if self._cluster.refill is not None:
            self._cluster.refill()
        if before and not self._workers:
            logger.warning("no worker of %s is left: waiting for others", self._cluster.name)
        self._absence.note(self._workers)
        stranded = [f for f, t in self._pending.items() if t.allowed and not t.allowed & self._workers]
        if self._workers:
            for future in stranded:
                task = self._pending.pop(future)
                future.cancel()
                self._submit(task)

    def _settle(self, task: _Task[Any], future: Any, answer: Any) -> Iterator[Any]:
        """Yield the result of a task that has ended, or submit it again."""
        if self._client.status != "running":
            raise self._cluster.gone()
        if future.status == "error":
            self._not_started(task, future.exception())
        if future.status == "error" or answer is None:
            self._submit(task)
            return
        worker, outcome = answer
        if isinstance(outcome, _Failure):
            self._failed(task, worker, outcome)
            self._submit(task)
        else:
            self._strikes.pop(worker, None)
            yield outcome

    def _failed(self, task: _Task[Any], worker: str, failure: _Failure) -> None:
        """Queue a failed task for another worker, or raise after the last attempt."""
        error, name = failure.error, self._what(task.item)
        logger.debug("%s failed on %s:\n%s", name, worker, failure.trace)
        if isinstance(error, UnfitWorkerError):
            self._exclude(worker, error)
            return
        if not isinstance(error, (MemoryError, OSError)):
            error.add_note(f"on worker {worker}:\n{failure.trace}")
            raise error
        task.failures += 1
        task.avoid.add(worker)
        self._strikes[worker] += 1
        reason = _reason_of(error)
        logger.warning("%s failed on %s and is tried again: %s", name, worker, reason)
        if task.failures >= ATTEMPTS:
            raise InputError(
                f"cannot finish {name}, since it failed {ATTEMPTS} times, the last time on the worker "
                f"{worker}: {reason}",
                _WAY_OUT,
            ) from error
        if self._strikes[worker] >= ATTEMPTS:
            self._exclude(worker, error)

    def _exclude(self, worker: str, error: BaseException) -> None:
        """Exclude a worker; raise if it was the last."""
        if worker not in self._unfit:
            self._unfit[worker] = error
            logger.warning("the worker %s is left out: %s", worker, _reason_of(error))
        self._look()
        if self._workers and self._workers <= self._unfit.keys():
            hint = f"{error.hint} {_AGAIN}" if isinstance(error, InputError) else _WAY_OUT
            raise InputError(
                f"cannot go on, since no worker of {self._cluster.name} can do the work; the last was left "
                f"out because: {_reason_of(error)}",
                hint,
            ) from error

    def _not_started(self, task: _Task[Any], error: BaseException) -> None:
        """Handle a task whose function never started: raise, or exclude the workers that can't import it."""
        if type(error).__name__ == "KilledWorker":
            raise InputError(
                f"cannot finish {self._what(task.item)}, since {error.args[2] + 1} workers died of it, the "
                f"last being {error.args[1].address}; memory is the likeliest reason",
                _WAY_OUT,
            )
        # Dask doesn't say which worker failed: all are asked whether they can import the function.
        called = pickle.dumps((_call, self._function, task.item))
        workers = sorted(task.allowed or self._cluster.workers)
        answers = self._client.run(pickle.loads, called, workers=workers, on_error="return")
        lacking = {w: lack for w, lack in answers.items() if isinstance(lack, (ImportError, AttributeError))}
        if not lacking:
            task.failures += 1
            # The worker that lacked it may be gone.
            if not isinstance(error, (ImportError, AttributeError)):
                raise error
            if task.failures >= ATTEMPTS:
                raise InputError(
                    f"cannot do the work, since a worker lacks a module: {error}", _SAME_PACKAGES
                ) from error
        for worker, lack in lacking.items():
            problem = f"cannot do the work, since this worker lacks a module: {lack}"
            self._exclude(worker, UnfitWorkerError(problem, _SAME_PACKAGES))


@dataclass(frozen=True)
class _Failure:
    """An error of a worker, with its traceback as text."""

    error: Exception
    trace: str


@dataclass(frozen=True)
class _Call:
    """Call that a worker runs by unpickling it."""

    function: _Function
    item: Any
    cores: dict[int, frozenset[int]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _call, (self.function, self.item, self.cores)


def _at_site(function: Callable[..., Any], site: Site | None, worker: Any, item: Any) -> Any:
    """Call the function on a worker, with its site open."""
    if site is None:
        return function(item)
    held, opened, stack = getattr(worker, _HELD, (None, None, contextlib.ExitStack()))
    if held != site:
        stack.close()
        setattr(worker, _HELD, (None, None, stack))
        opened = stack.enter_context(site.open())
        setattr(worker, _HELD, (site, opened, stack))
    return function(opened, item)


_HELD = "lulc_held"
"""Attribute of a worker: its site, the opened inputs, and the stack that closes them."""

_ONE_AT_A_TIME = threading.Lock()


def _call(function: _Function, item: Any, cores: dict[int, frozenset[int]]) -> tuple[str, Any]:
    """Run a call on a worker; return its address, and the result or a `_Failure`."""
    from distributed import get_worker

    worker = get_worker()
    with _ONE_AT_A_TIME:
        if cores:
            # Inherited by threads that the function starts, but not by those of the connection.
            os.sched_setaffinity(0, cores[worker.name])
        try:
            return worker.address, function(worker, item)
        except Exception as error:
            return worker.address, _Failure(_sendable(error), traceback.format_exc())


def _sendable(error: Exception) -> Exception:
    """Return an error that another process can unpickle; not every class can be called with its args."""
    try:
        copy.copy(error)
    except Exception:
        kind = next((kind for kind in (MemoryError, OSError) if isinstance(error, kind)), RuntimeError)
        return kind(f"{type(error).__name__}: {error}")
    return error


def _reason_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "memory ran out"
    if isinstance(error, InputError):
        return error.problem
    return str(error)


def _shared_out(cores: Iterable[int], workers: int) -> list[frozenset[int]]:
    """Distribute cores to workers, disjoint where there are enough.

    Examples
    --------
    >>> [sorted(cores) for cores in _shared_out({0, 1, 2, 3, 4}, 2)]
    [[0, 2, 4], [1, 3]]
    >>> [sorted(cores) for cores in _shared_out({0, 1}, 3)]
    [[0], [1], [0]]
    """
    known = sorted(cores)
    return [frozenset(known[i % len(known) :: workers]) for i in range(workers)]


def _local(workers: int) -> Any:
    import distributed

    # Without Dask's memory limit, which would pause workers silently: --memory limits the tasks.
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, host="127.0.0.1", protocol="tls", memory_limit=0,
        security=_certificates(), dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        preload=[__name__],
    )  # fmt: skip


def dask_setup(worker: object) -> None:
    """Ignore Ctrl-C in each worker of `_local`; Dask calls this function.

    A terminal sends Ctrl-C to all its processes, but only the main process decides how the run ends.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _slurm(workers: int) -> Any:
    import dask

    # The import replaces the handler of Ctrl-C.
    interrupt = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, interrupt)
    settings = dask.config.get("jobqueue.slurm")
    try:
        cluster = dask_jobqueue.SLURMCluster(
            security=_certificates(),
            # For files that only their owner may read, on a disk that all machines see.
            shared_temp_directory=settings.get("shared-temp-directory") or os.path.expanduser("~"),
            scheduler_options={"dashboard": False, **(settings.get("scheduler-options") or {})},
            job_script_prologue=[*KEEP_MEMORY, *(settings.get("job-script-prologue") or [])],
        )
    except (ValueError, FileNotFoundError) as error:
        raise InputError(
            f"cannot start workers as jobs of SLURM: {error}",
            "Say in ~/.config/dask/jobqueue.yaml what a job is given (jobqueue: slurm: cores, memory, "
            "walltime, account, queue), or in variables such as DASK_JOBQUEUE__SLURM__CORES=8.",
        ) from error
    cluster.scale(workers)
    return cluster


def _certificates() -> Any:
    """Return the certificates of Dask's settings, or new ones for this run."""
    import distributed

    security: Any = distributed.Security()
    return security if security.tls_ca_file else distributed.Security.temporary()


@contextlib.contextmanager
def _connected(address: Any, name: str) -> Iterator[Any]:
    import distributed

    try:
        client = distributed.Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot run on the cluster '{name}', since no scheduler answers there: {error}",
            "Start one (dask scheduler), and type the address that it prints; for tls:// Dask's settings "
            "name the certificates (distributed.comm.tls).",
        ) from error
    with contextlib.closing(client):
        yield client
