"""Whatever becomes of scheduler, workers and network: the map is that of one process, or the end is clear.

Every scheduler, worker and command is a process of its own on loopback.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).with_name("cluster_run.py")
PRELOAD = ["distributed", "lulc.inference.classify", "lulc.cli.make_classifications", "rasterio.sample"]


class Place:
    """A folder, processes that run for a map in it, and what they make.

    Parameters
    ----------
    folder
        For everything that is written.
    model, mosaic
        What all runs read: 520 x 1000 pixels in 12 parts of at most 36 windows.
    """

    def __init__(self, folder: Path, model: Path, mosaic: Path) -> None:
        self.folder, self.out = folder, folder / "map.tif"
        self.calls, self.stderr = folder / "calls", folder / "stderr"
        self.move()
        options = ["--window", "64", "--part", "256", "--scale", "0.0001", "--offset", "0"]
        self.arguments = [str(model), str(mosaic), str(self.out), *options]
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self.running: list[Any] = []

    def start(self, role: str, **task: Any) -> Any:
        task = {"role": role, "calls": str(self.calls), "stderr": str(self.stderr), **task}
        process = self._context.Process(target=runpy.run_path, args=(str(SCRIPT), {"TASK": task}, "__main__"))
        process.start()
        self.running.append(process)
        return process

    def scheduler(self, **task: Any) -> Any:
        process = self.start("scheduler", port=self.port, **task)
        wait_until(lambda: answers(self.port))
        return process

    def move(self) -> None:
        """Another port, the old one being held by what is left of its connections."""
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"

    def worker(self, **task: Any) -> Any:
        folder = self.folder / f"worker-{len(self.running)}"
        folder.mkdir()
        return self.start("worker", **{"address": self.address, "folder": str(folder), **task})

    def command(self, *more: str, **task: Any) -> Any:
        return self.start("command", arguments=[*self.arguments, *more], **task)

    def classify(self) -> Any:
        return self.command("--dask", self.address)

    def finished(self) -> int:
        """Parts that the journal names."""
        lines = [path.read_bytes() for path in self.out.with_name("map.tif.parts").glob("journal*.jsonl")]
        return sum(text.count(b"\n") for text in lines)

    def under_way(self, parts: int = 1) -> None:
        wait_until(lambda: self.finished() >= parts)

    def said(self) -> str:
        return self.stderr.read_text() if self.stderr.exists() else ""

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.join()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ended(process: Any, seconds: float = 90) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "still running"
    return int(process.exitcode)


@dataclass(frozen=True)
class Undisturbed:
    """What one process makes: the map, and how often it calls the network for that."""

    model: Path
    mosaic: Path
    content: bytes
    calls: int


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, write_bands: Callable[..., Path]
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    place = Place(folder, tiny_model, write_bands(folder / "mosaic.tif", 520, 1000))
    assert ended(place.command()) == 0
    calls = place.calls.stat().st_size
    return Undisturbed(tiny_model, folder / "mosaic.tif", place.out.read_bytes(), calls)


@pytest.fixture
def place(tmp_path: Path, undisturbed: Undisturbed) -> Iterator[Place]:
    found = Place(tmp_path, undisturbed.model, undisturbed.mosaic)
    yield found
    found.stop()


def whole(place: Place, undisturbed: Undisturbed) -> bool:
    """The map is as expected, and nothing else is left."""
    assert sorted(p.name for p in place.folder.glob("map*")) == ["map.qml", "map.tif"], place.said()
    return place.out.read_bytes() == undisturbed.content


def test_workers_killed_in_the_middle_of_parts_lose_nothing(place: Place, undisturbed: Undisturbed) -> None:
    place.scheduler()
    victims = [place.worker(pause=0.02), place.worker(pause=0.02)]
    command = place.classify()
    for number, victim in enumerate(victims, start=1):
        place.under_way(number)
        os.kill(victim.pid, signal.SIGKILL)
        place.worker()
    assert ended(command) == 0, place.said()
    assert whole(place, undisturbed)


class Proxy:
    """Passes bytes to a port of this machine, until it is cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = True
        self._flowing = threading.Event()
        self._flowing.set()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                inside, _ = self._listener.accept()
                if not self._open:
                    inside.close()
                    continue
                outside = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((inside, outside))
                threading.Thread(target=self._pass, args=(inside, outside), daemon=True).start()

    def _pass(self, inside: socket.socket, outside: socket.socket) -> None:
        other = {inside: outside, outside: inside}
        with contextlib.suppress(OSError, ValueError), inside, outside:
            while True:
                for source in select.select(list(other), [], [])[0]:
                    data = source.recv(2**16)
                    self._flowing.wait()
                    if not data:
                        return
                    other[source].sendall(data)

    def halt(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()
        self._open = True

    def cut(self) -> None:
        """Close all connections, and refuse new ones."""
        self._open = False
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()


def test_a_network_that_is_silent_for_a_while_costs_nothing_but_time(
    place: Place, undisturbed: Undisturbed
) -> None:
    place.scheduler()
    proxy = Proxy(place.port)
    place.worker(address=f"tcp://127.0.0.1:{proxy.port}", pause=0.02)
    command = place.classify()
    place.under_way()
    proxy.halt()
    time.sleep(3)
    proxy.flow()
    assert ended(command) == 0, place.said()
    assert whole(place, undisturbed)
    assert place.calls.stat().st_size == undisturbed.calls


def test_a_worker_that_is_cut_off_is_replaced_and_may_come_back(
    place: Place, undisturbed: Undisturbed
) -> None:
    place.scheduler()
    proxy = Proxy(place.port)
    through = f"tcp://127.0.0.1:{proxy.port}"
    lost = place.worker(address=through, pause=0.02)
    command = place.classify()
    place.under_way()
    proxy.cut()
    wait_until(lambda: lost.exitcode is not None)
    assert command.exitcode is None
    proxy.flow()
    place.worker(address=through)
    assert ended(command) == 0, place.said()
    assert whole(place, undisturbed)


def test_after_the_scheduler_was_killed_the_same_command_continues(
    place: Place, undisturbed: Undisturbed
) -> None:
    first = place.scheduler()
    worker = place.worker(pause=0.02)
    command = place.classify()
    place.under_way(2)
    first.kill()
    assert ended(command) == 1
    assert "scheduler" in place.said() and "run the same command again" in place.said()
    assert not place.out.exists()
    wait_until(lambda: worker.exitcode is not None)
    kept = place.finished()
    assert kept >= 2
    calls = place.calls.stat().st_size
    place.move()
    place.scheduler()
    place.worker()
    assert ended(place.classify()) == 0, place.said()
    again = place.calls.stat().st_size - calls
    assert whole(place, undisturbed)
    assert again <= undisturbed.calls - kept * undisturbed.calls // 24


@pytest.mark.parametrize("memory", ["used up", "killed"])
def test_workers_that_are_always_out_of_memory_end_the_run_clearly(place: Place, memory: str) -> None:
    place.scheduler()
    workers = [place.worker(memory=memory)]
    command = place.classify()
    while command.exitcode is None:
        if workers[-1].exitcode is not None and len(workers) < 9:
            workers.append(place.worker(memory=memory))
        time.sleep(0.05)
    assert ended(command) == 1
    assert ("no worker" if memory == "used up" else "cannot finish part") in place.said(), place.said()
    assert "memory" in place.said() and "what is finished is kept" in place.said()
    # The fifth may have started before the end was decided.
    assert len(workers) in ([1] if memory == "used up" else [4, 5])
    assert not place.out.exists()
    assert not place.finished()
    place.worker()
    assert ended(place.classify()) == 0, place.said()


def test_a_slow_worker_holds_up_no_more_than_the_parts_that_it_has(
    place: Place, undisturbed: Undisturbed
) -> None:
    place.scheduler()
    slow = place.folder / "slow"
    place.worker(pause=0.15, calls=str(slow))
    command = place.classify()
    wait_until(slow.exists)
    place.worker()
    assert ended(command) == 0, place.said()
    assert whole(place, undisturbed)
    assert slow.stat().st_size <= 2 * 36


def test_a_full_disk_on_one_worker_leaves_the_parts_to_others(place: Place, undisturbed: Undisturbed) -> None:
    place.scheduler()
    place.worker(file_size=20_000)
    command = place.classify()
    wait_until(lambda: "File too large" in place.said())
    place.worker()
    assert ended(command) == 0, place.said()
    assert "is tried again" in place.said()
    assert whole(place, undisturbed)


def test_full_disks_everywhere_end_the_run_clearly(place: Place) -> None:
    place.scheduler()
    place.worker(file_size=20_000)
    command = place.classify()
    assert ended(command) == 1
    assert "no worker" in place.said() and "File too large" in place.said()
    assert not list(place.out.with_name("map.tif.parts").glob("*.part"))
    # The part that was under way when the run ended goes with its worker's error.
    wait_until(lambda: not list(place.out.with_name("map.tif.parts").glob(".*.partial")))


def test_a_worker_that_would_make_other_bytes_is_left_out(place: Place, undisturbed: Undisturbed) -> None:
    place.scheduler()
    place.worker(pause=0.02)
    command = place.classify()
    place.under_way()
    place.worker(precision="float16")
    assert ended(command) == 0, place.said()
    assert whole(place, undisturbed)
    assert "is left out: " in place.said()
    assert 'engine.precision ("float32", now "float16")' in place.said()


@pytest.mark.parametrize("lacks", ["lulc", "rasterio"])
def test_a_worker_without_a_module_is_left_out_and_told_what_it_lacks(
    place: Place, undisturbed: Undisturbed, lacks: str
) -> None:
    place.scheduler()
    poor = place.worker(lacks=lacks)
    place.worker(pause=0.02)
    assert ended(place.classify()) == 0, place.said()
    assert whole(place, undisturbed)
    assert poor.exitcode is None
    assert "is left out: cannot do the work, since this worker lacks a module: No module" in place.said()
    assert f"'{lacks}" in place.said()


def test_where_no_worker_has_the_toolkit_the_run_ends_and_says_so(place: Place) -> None:
    place.scheduler()
    place.worker(lacks="lulc")
    assert ended(place.classify()) == 1
    assert "no worker" in place.said() and "lacks a module: No module named 'lulc" in place.said()
    assert "Start workers in the environment of this command" in place.said()
    assert "Traceback" not in place.said()


def test_a_scheduler_needs_nothing_of_the_toolkit(place: Place, undisturbed: Undisturbed) -> None:
    place.scheduler(lacks="lulc")
    place.worker()
    assert ended(place.classify()) == 0, place.said()
    assert whole(place, undisturbed)


def test_a_run_without_a_worker_ends_when_it_was_told_to_and_says_how_to_start_one(place: Place) -> None:
    place.scheduler()
    assert ended(place.command("--dask", place.address, "--worker-wait", "0.01")) == 1
    assert f"waiting for the first worker of {place.address}. Start one on" in place.said()
    assert f"no worker of {place.address} was there for 0.01 minutes" in place.said()
    assert place.said().count(f"dask worker {place.address} --nthreads 1") == 2


def test_a_run_whose_workers_are_gone_waits_no_longer_than_it_was_told_to(
    place: Place, undisturbed: Undisturbed
) -> None:
    place.scheduler()
    only = place.worker(pause=0.02)
    command = place.command("--dask", place.address, "--worker-wait", "0.02")
    place.under_way()
    only.kill()
    assert ended(command) == 1
    assert "no worker" in place.said() and "as long as --worker-wait allows" in place.said()
    # What was finished is kept.
    place.worker()
    assert ended(place.classify()) == 0, place.said()
    assert whole(place, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_continue_and_one_process_does(
    place: Place, undisturbed: Undisturbed, number: int
) -> None:
    place.scheduler()
    place.worker(pause=0.02)
    command = place.classify()
    place.under_way(2)
    os.kill(command.pid, number)
    assert ended(command) == 1, place.said()
    assert "The same command continues where this one stopped." in place.said()
    kept = place.finished()
    calls = place.calls.stat().st_size
    assert ended(place.command()) == 0
    assert whole(place, undisturbed)
    assert place.calls.stat().st_size > calls and kept


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_killed_whenever_the_same_command_comes_to_the_same_bytes(
    place: Place, undisturbed: Undisturbed, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scheduler, kills = place.scheduler(), 0
    workers = [place.worker(pause=0.02), place.worker(pause=0.02)]
    command = place.classify()
    while command.exitcode != 0:
        time.sleep(float(rng.uniform(0.2, 1.5)))
        victim = int(rng.integers(6)) if kills < 20 else -1
        if victim == 0:
            scheduler.kill()
        elif victim == 1:
            command.kill()
        elif victim > 1:
            workers[victim % 2].kill()
        kills += victim >= 0
        if scheduler.exitcode is not None:
            assert ended(command) in (0, 1, -signal.SIGKILL)
            place.move()
            scheduler = place.scheduler()
            workers = [place.worker(pause=0.02), place.worker(pause=0.02)]
        workers = [w if w.exitcode is None else place.worker(pause=0.02) for w in workers]
        if command.exitcode not in (None, 0):
            command = place.classify()
    assert whole(place, undisturbed), kills
