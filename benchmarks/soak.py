"""Prepare, train and classify again and again, and report what grows: memory, descriptors, threads, files.

One process repeats all three stages on a small scene until the time is up. Growth is judged from the second
tenth of the rounds on, when caches are warm: medians of the last third against those of the first. Example:

    python benchmarks/soak.py --minutes 30

The exit code is 1 where memory grew by more than 5 % (and 20 MB), or anything was left open or behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import shutil
import statistics
import sys
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

from lulc.backend import keras
from lulc.schema import BANDS

SHAPE = (200, 264)


class Round(NamedTuple):
    """What the process holds after a round: bytes, descriptors, threads, and files left in its folders."""

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


def commands(folder: Path) -> list[tuple[Callable[[list[str]], int], list[str]]]:
    """The three commands with their arguments; all results go to ``folder/out``."""
    from lulc.commands import make_classifications, preprocess, train_model

    out, bands = folder / "out", str(folder / "bands.tif")
    cut = ["--bands", bands, "--labels", str(folder / "labels.tif"), "--size", "64", "--gap", "8"]
    small = ["--epochs", "1", "--steps", "4", "--validation-steps", "1", "--batch-size", "2"]
    small += ["--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "4", "8"]
    options = ["--part", "256", "--cog", "--sieve", "8"]
    return [
        (preprocess.main, [*cut, "--out", str(out / "stacks"), "-q"]),
        (train_model.main, [str(out / "stacks"), "--out", str(out / "run"), *small, "-q"]),
        (make_classifications.main, [str(out / "run"), bands, str(out / "map.tif"), *options, "-q"]),
    ]


def run_round(folder: Path, temporary: Path) -> Round:
    """Run all commands, drop their results, and look at what stays."""
    for main, arguments in commands(folder):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(arguments)
        if code:
            raise SystemExit(f"error: {main.__module__} ended with {code}: {said.getvalue()}")
    left = [p for p in (folder / "out").rglob("*") if p.name.endswith((".partial", ".parts", ".part"))]
    shutil.rmtree(folder / "out")
    # Keras keeps every network of a process, which a command, being a process, never notices.
    keras.utils.clear_session()
    gc.collect()
    process = psutil.Process()
    files = len(left) + len(list(temporary.iterdir()))
    return Round(process.memory_info().rss, process.num_fds(), threading.active_count(), files)


def judge(rounds: list[Round]) -> bool:
    """Print how each quantity went; True where none grew."""
    warm = rounds[len(rounds) // 10 + 1 :]
    third = max(1, len(warm) // 3)
    steady = True
    for name in Round._fields:
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
    rounds = []
    with tempfile.TemporaryDirectory(prefix="lulc-soak-") as name:
        folder, temporary = Path(name), Path(name) / "tmp"
        temporary.mkdir()
        # Whatever any library leaves in the folder for temporary files is seen there.
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        write_scene(folder)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end or len(rounds) < 6:
            rounds.append(run_round(folder, temporary))
            print(f"round {len(rounds)}: {rounds[-1]}", file=sys.stderr)
    print(f"{len(rounds)} rounds of prepare, train, classify in {minutes:g} minutes")
    return 0 if judge(rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
