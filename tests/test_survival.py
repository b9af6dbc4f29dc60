"""Killed at any moment, a stage continues to the bytes of an uninterrupted run, and repeats little work."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

pytestmark = pytest.mark.integration

SCRIPT = """
import json, os, sys
from lulc.cli.{command} import main
task = json.load(open(__file__ + ".json"))
{setting}
sys.exit(main(task["arguments"]))
"""

CLASSIFY = """
import time
import numpy as np
from lulc.inference import job
from lulc.engines.registry import Engine

def build(name, request):
    calls = os.open(task["calls"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def network(x):
        os.write(calls, b".")
        time.sleep(0.003)
        powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
        return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)
    return Engine("keras", request.shape, {"precision": "float32"}, network)

job.build_engine = build
"""

TRAIN = """
from lulc.training import loop
import tensorflow
tensorflow.config.threading.set_intra_op_parallelism_threads(1)
tensorflow.config.threading.set_inter_op_parallelism_threads(1)
loop.CHECKPOINT_SECONDS = 0.0
check = loop.Loop._check_finite
calls = os.open(task["calls"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def count(*arguments):
    os.write(calls, b".")
    check(*arguments)
loop.Loop._check_finite = count
"""

PREPARE = """
from lulc.preprocessing import preprocess
write = preprocess.cut
calls = os.open(task["calls"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def count(*arguments):
    os.write(calls, b".")
    return write(*arguments)
preprocess.cut = count
"""


PRELOAD = [
    "lulc.inference.classify",
    "lulc.preprocessing.preprocess",
    "lulc.training.train",
    "lulc.cli.make_classifications",
]


class Command:
    """A command in processes of its own, forked from one that has imported it, so that they start at once.

    Parameters
    ----------
    folder
        For its script; `calls` there counts the pieces of work of all runs, whatever became of them.
    command, setting
        Module of the command, and what the script changes before it runs.
    """

    def __init__(self, folder: Path, command: str, setting: str, arguments: list[str]) -> None:
        self.script = folder / f"{command}.py"
        self.script.write_text(SCRIPT.format(command=command, setting=setting))
        self.arguments = arguments
        self._calls = folder / "calls"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)

    def start(self, *more: str) -> Any:
        task = {"arguments": [*self.arguments, *more], "calls": str(self._calls)}
        Path(f"{self.script}.json").write_text(json.dumps(task))
        process = self._context.Process(target=runpy.run_path, args=(str(self.script),))
        process.start()
        return process

    def finish(self, *more: str) -> int:
        process = self.start(*more)
        process.join()
        return int(process.exitcode)

    def calls(self) -> int:
        return self._calls.stat().st_size if self._calls.exists() else 0

    def forget_calls(self) -> None:
        self._calls.unlink(missing_ok=True)


def kill_until(
    done: Callable[[], bool], command: Command, rng: np.random.Generator, length: float, earliest: float = 0.1
) -> int:
    """Run and kill at random moments until the work is done; returns how many kills hit a running process.

    The pauses grow with each kill, so that starting up does not use up all of them.
    """
    hits = 0
    while not done():
        process = command.start()
        process.join(float(rng.uniform(earliest, 1.0)) * length * (1 + hits / 20))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            hits += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    return hits


def timed(command: Command) -> float:
    start = time.monotonic()
    assert command.finish() == 0
    return time.monotonic() - start


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name[:6] != ".lulc-"
    }


class Maps(Command):
    """make_classifications.py on 600 x 700 pixels in 9 parts, its network three lines of NumPy."""

    def __init__(self, folder: Path, model: Path, write_bands: Callable[..., Path]) -> None:
        mosaic = write_bands(folder / "mosaic.tif", 600, 700)
        self.out = folder / "map.tif"
        options = ["-q", "--window", "64", "--part", "256", "--scale", "0.0001", "--offset", "0"]
        arguments = [str(model), str(mosaic), str(self.out), *options]
        super().__init__(folder, "make_classifications", CLASSIFY, arguments)

    def finished_parts(self) -> int:
        journal = self.out.with_name("map.tif.parts") / "journal.jsonl"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_classification(maps: Maps, kills: int) -> None:
    assert maps.finish() == 0
    expected = maps.out.read_bytes()
    maps.out.unlink()
    maps.forget_calls()
    length = timed(maps)
    of_a_map = maps.calls()
    # Four of the nine parts are whole; the network is at most three windows ahead of what is written.
    of_a_part = of_a_map // 4 + 3
    rng = np.random.default_rng(kills)
    hits = 0
    while hits < kills:
        maps.out.unlink(missing_ok=True)
        maps.forget_calls()
        now = kill_until(maps.out.exists, maps, rng, length)
        hits += now
        if maps.finished_parts():
            # The kill fell between the naming of the map and the removal of its parts.
            assert maps.finish("--overwrite") == 0
        assert maps.out.read_bytes() == expected
        assert maps.calls() <= of_a_map + now * of_a_part
        assert sorted(p.name for p in maps.out.parent.glob("map*")) == ["map.qml", "map.tif"]
    assert hits >= kills


def test_a_killed_classification_continues_to_the_same_bytes(
    tmp_path: Path, tiny_model: Path, write_bands: Callable[..., Path]
) -> None:
    kill_classification(Maps(tmp_path, tiny_model, write_bands), 6)


@pytest.mark.stress
def test_a_hundred_kills_of_a_classification_leave_the_same_bytes(
    tmp_path: Path, tiny_model: Path, write_bands: Callable[..., Path]
) -> None:
    kill_classification(Maps(tmp_path, tiny_model, write_bands), 100)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_classification_ends_cleanly_and_is_continued(
    tmp_path: Path, tiny_model: Path, write_bands: Callable[..., Path], number: int
) -> None:
    maps = Maps(tmp_path, tiny_model, write_bands)
    process = maps.start()
    while not maps.finished_parts():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == 1
    assert not maps.out.exists()
    assert maps.finished_parts()
    assert maps.finish() == 0
    with rasterio.open(maps.out) as source:
        assert source.read(1).max() == 3


def test_two_runs_on_one_map_are_refused_and_a_dead_one_locks_nothing(
    tmp_path: Path, tiny_model: Path, write_bands: Callable[..., Path]
) -> None:
    maps = Maps(tmp_path, tiny_model, write_bands)
    first = maps.start()
    while not maps.finished_parts():
        time.sleep(0.01)
    # So that it doesn't end before the other one has asked.
    os.kill(first.pid, signal.SIGSTOP)
    assert maps.finish() == 1
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert maps.finish() == 0


def results(folder: Path) -> dict[str, Any]:
    """Models and cards as bytes, and the history without its seconds."""
    found: dict[str, Any] = {p.name: p.read_bytes() for p in folder.glob("??-*.*")}
    with open(folder / "history.csv", newline="") as file:
        found["history"] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    return found


def kill_training(folder: Path, stacks: Path, kills: int) -> None:
    out = folder / "run"
    options = ["-q", "--epochs", "2", "--steps", "6", "--validation-steps", "1", "--batch-size", "2"]
    options += ["--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "2", "--workers", "1"]
    training = Command(folder, "train_model", TRAIN, [str(stacks), "--out", str(out), *options])
    length = timed(training)
    batches, expected = training.calls(), results(out)

    def finished() -> bool:
        document = out / "run.json"
        return document.exists() and json.loads(document.read_bytes())["finished"]

    rng = np.random.default_rng(kills)
    hits = 0
    while hits < kills:
        shutil.rmtree(out)
        training.forget_calls()
        now = kill_until(finished, training, rng, length, earliest=0.3)
        hits += now
        assert training.finish() == 1  # it is finished; this removes what a kill at the very end left
        assert results(out) == expected
        # A batch is repeated where the kill fell between it and its checkpoint.
        assert training.calls() <= batches + now
        assert not list(out.glob("**/*.partial")) and not list(out.glob("checkpoints/*"))
    assert hits >= kills


def test_a_killed_training_continues_to_the_same_bytes(
    tmp_path: Path, write_stacks: Callable[..., Path]
) -> None:
    kill_training(tmp_path, write_stacks(tmp_path / "stacks"), 2)


@pytest.mark.stress
def test_twenty_kills_of_a_training_leave_the_same_bytes(
    tmp_path: Path, write_stacks: Callable[..., Path]
) -> None:
    kill_training(tmp_path, write_stacks(tmp_path / "stacks"), 20)


def kill_preparation(folder: Path, write_bands: Callable[..., Path], kills: int) -> None:
    out = folder / "stacks"
    bands = write_bands(folder / "bands.tif", 512, 512)
    labels = write_bands(folder / "labels.tif", 512, 512, labels=True)
    options = ["-q", "--size", "128", "--gap", "8", "--scheme", "kaakonkulma-13", "--out", str(out)]
    arguments = ["--bands", str(bands), "--labels", str(labels), *options]
    preparation = Command(folder, "preprocess", PREPARE, arguments)
    length = timed(preparation)
    stacks, expected = preparation.calls(), contents(out)
    rng = np.random.default_rng(kills)
    hits = 0
    while hits < kills:
        shutil.rmtree(out)
        preparation.forget_calls()
        now = kill_until((out / "manifest.json").exists, preparation, rng, length)
        hits += now
        assert preparation.finish() == 0  # it is finished; this removes what a kill at the very end left
        assert contents(out) == expected
        assert preparation.calls() <= stacks + now
    assert hits >= kills


def test_a_killed_preparation_continues_to_the_same_bytes(
    tmp_path: Path, write_bands: Callable[..., Path]
) -> None:
    kill_preparation(tmp_path, write_bands, 2)


@pytest.mark.stress
def test_twenty_kills_of_a_preparation_leave_the_same_bytes(
    tmp_path: Path, write_bands: Callable[..., Path]
) -> None:
    kill_preparation(tmp_path, write_bands, 20)
