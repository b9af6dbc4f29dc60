"""Train for long, then prepare and classify again and again; report what grows: memory, descriptors, files.

A third of the time is one training of as many epochs as it takes, looked at every second. The rest is
preprocessing and classification of a small scene, over and over in one process. (Trainings are not repeated
in it: TensorFlow keeps the functions of every network until its process ends, about 12 MB each here.)
Growth is judged when caches are warm: medians of the last third against those of the first. Example:

    python benchmarks/soak.py --minutes 30

The exit code is 1 where memory grew by more than 5 % (and 20 MB), or anything was left open or behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import rasterio
from affine import Affine

from lulc.cli import make_classifications, preprocess, train_model
from lulc.core.schema import BANDS

SHAPE = (200, 264)


class State(NamedTuple):
    """What the process holds: bytes, descriptors, threads, and unfinished files in its folders."""

    memory: int
    descriptors: int
    threads: int
    files: int


def write_scene(folder: Path) -> None:
    """Write nine bands with holes, and labels of six classes."""
    rng = np.random.default_rng(0)
    labels = (np.add.outer(np.arange(SHAPE[0]) // 32, np.arange(SHAPE[1]) // 24) % 6 + 1).astype(np.uint8)
    bands = (400 * labels.astype(int) + rng.integers(200, 900, (9, *SHAPE))).astype(np.uint16)
    bands[:, rng.random(SHAPE) < 0.02] = 0
    for name, layers, names in (("bands", bands, BANDS), ("labels", labels[np.newaxis], ("class",))):
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", height=SHAPE[0], width=SHAPE[1], count=len(layers),
            dtype=layers.dtype, nodata=0, crs="EPSG:3067", transform=Affine(10, 0, 5e5, 0, -10, 6.8e6),
        ) as target:  # fmt: skip
            target.write(layers)
            target.descriptions = names


def run_command(main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Run a command that has to succeed; what it prints is shown where it does not."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    if code:
        raise SystemExit(f"error: {main.__module__} ended with {code}: {said.getvalue()}")


def look(folder: Path) -> State:
    """What this process holds now, and what it has left behind in its folders."""
    process = psutil.Process()
    names = (".partial", ".parts", ".part")
    files = [p for p in (folder / "out").rglob("*") if p.name.endswith(names)]
    files += (folder / "tmp").iterdir()
    return State(process.memory_info().rss, process.num_fds(), threading.active_count(), len(files))


def prepare(folder: Path) -> None:
    """Cut stacks of the scene."""
    inputs = ["--bands", str(folder / "bands.tif"), "--labels", str(folder / "labels.tif")]
    out = ["--out", str(folder / "out" / "stacks"), "--overwrite", "-q"]
    run_command(preprocess.main, [*inputs, "--scheme", "kaakonkulma-13", "--size", "64", "--gap", "8", *out])


def train(folder: Path, seconds: float) -> list[State]:
    """One training; its states in every second, files that it is writing left out."""
    small = ["--epochs", "1000000", "--steps", "4", "--validation-steps", "1", "--batch-size", "2"]
    small += ["--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "4", "8"]
    stacks, run = str(folder / "out" / "stacks"), str(folder / "run")
    states: list[State] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            states.append(look(folder)._replace(files=0, descriptors=0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        minutes = ["--minutes", str(seconds / 60)]
        run_command(train_model.main, [stacks, "--out", run, *small, *minutes, "-q"])
    finally:
        done.set()
        watcher.join()
    return states


def classify(folder: Path) -> None:
    """Make a map of the scene, and a sieved one."""
    out = ["--part", "256", "--cog", "--sieve", "8", "--overwrite", "-q"]
    paths = [folder / "run", folder / "bands.tif", folder / "out" / "map.tif"]
    run_command(make_classifications.main, [*map(str, paths), *out])


def judge(states: list[State]) -> bool:
    """Print how each quantity went; True where none grew."""
    warm = states[len(states) // 10 + 1 :]
    third = max(1, len(warm) // 3)
    steady = True
    for name in State._fields:
        values = [getattr(r, name) for r in warm]
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        allowed = max(0.05 * first, 20e6) if name == "memory" else 0
        grew = last - first > allowed
        steady &= not grew
        unit = 1e6 if name == "memory" else 1
        print(
            f"{name:12} first third {first / unit:10.1f}  last third {last / unit:10.1f}  "
            f"most {max(values) / unit:10.1f}  {'GREW' if grew else 'steady'}"
        )
    return steady


def main(argv: list[str] | None = None) -> int:
    """Run rounds until the time is up; the exit code says whether anything grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long [default 30]")
    minutes = parser.parse_args(argv).minutes
    with tempfile.TemporaryDirectory(prefix="lulc-soak-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        # Whatever any library leaves in the folder for temporary files is seen there.
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
        write_scene(folder)
        prepare(folder)
        states = train(folder, 20 * minutes)
        epochs = len((folder / "run" / "history.csv").read_text().splitlines()) - 1
        print(f"one training of {epochs} epochs")
        steady = judge(states)
        rounds: list[State] = []
        end = time.monotonic() + 40 * minutes
        while time.monotonic() < end or len(rounds) < 6:
            prepare(folder)
            classify(folder)
            gc.collect()
            rounds.append(look(folder))
        print(f"{len(rounds)} rounds of preprocessing and classification")
        steady &= judge(rounds)
    return 0 if steady else 1


if __name__ == "__main__":
    raise SystemExit(main())
