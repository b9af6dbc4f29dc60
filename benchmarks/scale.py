"""What a cluster costs, what it gains, and where it ends: measured, then reckoned for Finland and Europe.

Measured: parts on 1 and 2 local workers of one thread against the local run limited to one thread; tasks that
do nothing; a simulated map of up to 100,000 parts (the engine is fake: every part is the same tile under
another name) whose plan, journal and STAC collection are real. Reckoned, with every assumption stated: hours,
bytes, money, and what breaks first. A machine that others use makes absolute times worthless: each row is the
least of several repeats, processor time stands beside wall time, and what counts are ratios within one run.

Example, after make demo: python benchmarks/scale.py demo/run --scene demo
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from classify import describe_machine, make_mosaic  # noqa: E402

Result = dict[str, Any]

SIDES = {512: 4, 4096: 2}
"""Sides of the parts that are timed, and how many of them along the mosaic: small parts, where an overhead
shows best, and parts of the size that runs have; timed from the end of the first, or of the first that each
worker makes, to the end of the last."""

TARGET = 0.05
"""Most that a worker may take more for a part than the local run limited to one thread."""

QUIET = 0.5
"""Load before anything is measured from which a machine counts as one that others use."""

RUNS = {"local": (1, 0), "1 worker": (1, 1), "2 workers": (2, 2)}
"""Name to (cores, workers of --dask local); no workers: no cluster."""


@dataclass(frozen=True)
class Assumptions:
    """What the extrapolation rests on; each is an option.

    Parameters
    ----------
    part
        Side of a part in pixels.
    core_speed
        Pixels that a core classifies in a second, halo included in the work.
    gpu_speed
        Pixels that a GPU classifies in a second; hours of GPUs are given where it is.
    read_bytes, written_bytes
        Bytes of a pixel in the inputs, and in the map, as they are compressed.
    halo
        Pixels read again around a part.
    core_price, gpu_price
        Of an hour.
    encode_speed
        Pixels that a core encodes in a second.
    disk_speed
        Bytes that all machines together read and write in a second.
    tasks
        Tasks that the scheduler hands out in a second.
    """

    part: int
    core_speed: float
    gpu_speed: float | None
    read_bytes: float
    written_bytes: float
    halo: int
    core_price: float
    gpu_price: float
    encode_speed: float
    disk_speed: float
    tasks: float


REGIONS = {"Finland": 3.4e9, "Europe": 100e9}
"""Pixels of 10 m."""

GPU_SPEEDS = (1e6, 10e6, 50e6)
"""Pixels a second for which the hours of GPUs are reckoned, none of them measured here."""


def main() -> int:
    """Measure, reckon, print, and store all of it under ``benchmarks/results``."""
    options = _parse()
    if options.stage:
        print("RESULT", json.dumps(STAGES[options.stage](*options.arguments)))
        return 0
    load = os.getloadavg()[0]
    with _folder(options.folder) as folder:
        document: Result = {
            "machine": {**describe_machine(), "load at the start": f"{load:.1f}"},
            "shared": load > QUIET,
            "simulated": [_stage("simulate", folder, parts) for parts in options.parts],
            "tasks": [_stage("tasks", workers, 2000) for workers in (1, 2, 32)],
            "runs": [
                row
                for part in options.sides
                for row in measure_runs(options.model, options.scene, folder, part, options.repeats)
            ],
        }
        document["machine"]["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    assumed = _assumptions(options, document)
    document["assumptions"] = dataclasses.asdict(assumed)
    document["regions"] = {name: reckon(pixels, assumed) for name, pixels in REGIONS.items()}
    document["gpus"] = [
        {"speed": speed, **reckon(REGIONS["Europe"], dataclasses.replace(assumed, gpu_speed=speed))}
        for speed in GPU_SPEEDS
    ]
    text = render(document)
    print(text)
    target = ROOT / "benchmarks" / "results" / "scale.json"
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="weights, or a run folder")
    parser.add_argument("--scene", type=Path, default=ROOT / "demo", help="folder of a simulated scene")
    parser.add_argument("--repeats", type=int, default=2, help="of the timed runs (default: 2)")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=list(SIDES), choices=SIDES, help="of the timed parts (all)"
    )
    parser.add_argument(
        "--parts", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="of the simulated maps"
    )
    parser.add_argument("--folder", type=Path, help="for mosaics and maps (default: a temporary one)")
    parser.add_argument("--part", type=int, default=4096, help="side of a part that is reckoned with")
    parser.add_argument(
        "--core-speed", type=float, default=115_646, help="px/s of a core (default: half of classify-4096)"
    )
    parser.add_argument("--gpu-speed", type=float, help="px/s of a GPU, measured elsewhere")
    parser.add_argument("--read-bytes", type=float, default=18.0, help="of a pixel: 9 bands of 16 bits")
    parser.add_argument("--core-price", type=float, default=0.05, help="of a core-hour (default: 0.05)")
    parser.add_argument("--gpu-price", type=float, default=2.5, help="of a GPU-hour (default: 2.50)")
    parser.add_argument("--encode-speed", type=float, default=6e6, help="px/s of a core, 14 bands of float32")
    parser.add_argument("--disk-speed", type=float, default=2e9, help="bytes/s of the shared file system")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.stage and options.model is None:
        parser.error("the weights are missing")
    return options


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The folder given, or one in memory, where no disk decides; removed at the end."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(given or tempfile.mkdtemp(prefix="lulc-scale-", dir=memory))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if given is None:
            shutil.rmtree(folder)


def _stage(name: str, *arguments: Any) -> Result:
    """The figures of a stage, in a process of its own."""
    command = [sys.executable, __file__, "--stage", name, "--arguments", *map(str, arguments)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    result: Result = json.loads(ended.stdout.rpartition("RESULT ")[2])
    return result


# Parts on workers


def measure_runs(model: Path, scene: Path, folder: Path, part: int, repeats: int) -> list[Result]:
    """Seconds that a part takes, wall and processor, for each row of `RUNS`; least of the repeats."""
    mosaic = make_mosaic(scene, folder, part * SIDES[part])
    out = folder / "map.tif"
    found: dict[str, list[Result]] = {name: [] for name in RUNS}
    for _ in range(repeats):
        for name, (cores, workers) in RUNS.items():
            found[name].append(_stage("run", model, *mosaic, out, part, cores, workers))
            out.unlink()
    kinds = ("wall", "processor", "bytes")
    return [
        {
            "part": part,
            "name": name,
            "cores": RUNS[name][0],
            **{kind: min(row[kind] for row in rows) for kind in kinds},
        }
        for name, rows in found.items()
    ]


def run(model: str, bands: str, indices: str, out: str, part: str, cores: str, workers: str) -> Result:
    """One classification on so many cores; a cluster's scheduler and client share these with its workers."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    from lulc.config import ClassifyConfig
    from lulc.distributed.cluster import _at_site, _call
    from lulc.inference import classify as classify_module
    from lulc.inference.classify import classify
    from lulc.inference.journal import Journal

    ask = classify_module.ask

    def ask_all(cluster: Any, function: Any, item: Any, site: Any = None) -> Any:
        # Each worker opens inputs and engine now, not while the parts of others are timed.
        for address in sorted(cluster.workers):
            at_site = partial(_at_site, function, site)
            warm = cluster.client.submit(_call, at_site, item, cluster.cores, workers=[address], pure=False)
            warm.result()
        return ask(cluster, function, item, site)

    classify_module.ask = ask_all  # type: ignore[assignment]
    seen: list[tuple[float, float]] = []
    record = Journal.record

    def noted(journal: Journal, *made: Any) -> None:
        record(journal, *made)
        seen.append((time.perf_counter(), _processor()))

    Journal.record = noted  # type: ignore[method-assign, assignment]
    cluster: Result = {"dask": "local", "workers": int(workers)} if int(workers) else {}
    result = classify(
        ClassifyConfig(
            model=model, inputs=(bands, indices), out=out, part=int(part), engine="openvino", **cluster
        )
    )
    # From when each worker has ended its first part: those that end together are of one round.
    begun = max(int(workers), 1)
    wall, processor = ((seen[-1][i] - seen[begun - 1][i]) / (len(seen) - begun) for i in (0, 1))
    return {"wall": wall, "processor": processor, "bytes": Path(out).stat().st_size / result.pixels}


def _processor() -> float:
    """Seconds that processors have worked for this process and those that it started."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(t.user + t.system for t in times)


# Tasks that do nothing


def tasks(workers: str, count: str) -> Result:
    """How many tasks that do nothing a scheduler hands out in a second; many workers are threads here."""
    import dask
    import distributed

    from lulc.distributed.cluster import CALM, Cluster, run_tasks

    number = int(workers)
    with (
        dask.config.set(CALM),
        distributed.LocalCluster(
            n_workers=number, threads_per_worker=1, processes=number <= 2, dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as started,
        distributed.Client(started) as client,
    ):  # fmt: skip
        cluster = Cluster(client, "local")
        for _ in run_tasks(cluster, abs, range(100)):
            pass
        begun, busy = time.perf_counter(), time.process_time()
        for _ in run_tasks(cluster, abs, range(int(count))):
            pass
        seconds = time.perf_counter() - begun
        return {
            "workers": number,
            "tasks": int(count),
            "per_second": int(count) / seconds,
            "processor": (time.process_time() - busy) / int(count),
        }


# A simulated map of many parts


def simulate(folder: str, parts: str) -> Result:
    """Plan, journal and collection of a map of so many parts: seconds of each, memory and files of all."""
    number = int(parts)
    place = Path(folder) / f"simulated-{number}"
    result: Result = {"parts": number}
    before = 0
    try:
        for name, step in steps(place, number):
            before = before or _peak()
            begun = time.perf_counter()
            step()
            result[name] = time.perf_counter() - begun
        result["memory added"] = _peak() - before
        result["journal bytes"] = (place / "map.parts" / "journal.jsonl").stat().st_size
        names = ("catalog.json", "collection.json")
        described = [p for p in place.rglob("*") if p.suffix == ".vrt" or p.name in names]
        result["collection bytes"] = sum(p.stat().st_size for p in described)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return result


def steps(place: Path, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a run of `number` parts does beside classifying: names and functions, to be called in order."""
    from lulc.core.windows import Plan, choose_window
    from lulc.inference.journal import open_journal

    side = math.isqrt(number - 1) + 1
    height, width = 256 * -(-number // side), 256 * side
    window = choose_window(height, width, stride=16, halo=64, part=256, pixels=2**20)
    plan = Plan(height, width, 16, 64, window, 256)
    output = simulated_tiles(place, plan)
    yield "plan", lambda: [sum(len(plan.windows(part)) for part in plan.parts()), plan.computed_pixels]
    with open_journal(place / "map") as journal:
        journal.begin({"simulated": number}, restart=False)

        def record() -> None:
            for part in plan.parts():
                made = output.make(part, (), None)
                journal.record(made.part, made.checksum, made.counts)

        yield "journal", record
    with open_journal(place / "map") as journal:

        def resume() -> None:
            journal.begin({"simulated": number}, restart=False)
            found = journal.finished(range(len(plan)), output.checksum)
            assert len(found) == len(plan) == sum(journal.counts.values()) // 256**2

        yield "resume", resume
        yield "collect", lambda: output.assemble(None)


def simulated_tiles(place: Path, plan: Any) -> Any:
    """Tiles of a map whose engine is fake: one tile is made, and every other is that file once more."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from affine import Affine
    from rasterio.crs import CRS

    from lulc.core.grid import GridSpec
    from lulc.core.schema import LandCoverClass, Legend
    from lulc.inference.outputs import Made, Piece, Tileset
    from lulc.maps.geotiff import MapProfile

    legend = Legend("simulated", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in (1, 2, 3)))
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 5e5, 0, -10, 7e6), plan.height, plan.width)
    tags = {"LULC_VERSION": "simulated", "LULC_LEGEND": json.dumps(legend.to_json())}

    profile = MapProfile(grid, legend, "none", 256, tags)
    one = Tileset(profile, plan, place / "one", "simulated", ("2018-07-01",))
    one.path_of(0).parent.mkdir(parents=True)
    part = plan.part_at(0)
    values = np.ones((1, *part.extent.shape), np.uint8)
    counts = np.bincount(values.ravel(), minlength=256)
    with ThreadPoolExecutor(1) as pool:
        first = one.make(part, [Piece(part.extent, values, counts)], pool)

    class Simulated(Tileset):
        def make(self, part: Any, pieces: Any, pool: Any) -> Made:
            path = self.path_of(part.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            for suffix in (".tif", ".json"):
                os.link(one.path_of(0).with_suffix(suffix), path.with_suffix(suffix))
            return Made(part.index, self.checksum(part.index), first.counts)

    return Simulated(profile, plan, place / "map.parts", "simulated", ("2018-07-01",))


def _peak() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


STAGES: dict[str, Callable[..., Result]] = {"run": run, "tasks": tasks, "simulate": simulate}


# Extrapolation


def _assumptions(options: argparse.Namespace, document: Result) -> Assumptions:
    """The options, and what was measured."""
    return Assumptions(
        part=options.part,
        core_speed=options.core_speed,
        gpu_speed=options.gpu_speed,
        read_bytes=options.read_bytes,
        written_bytes=max(document["runs"], key=lambda row: row["part"])["bytes"],
        halo=64,
        core_price=options.core_price,
        gpu_price=options.gpu_price,
        encode_speed=options.encode_speed,
        disk_speed=options.disk_speed,
        # What one core hands out, whatever else the machine does: with many workers, so that none waits.
        tasks=1 / document["tasks"][-1]["processor"],
    )


def reckon(pixels: float, assumed: Assumptions) -> Result:
    """Hours, bytes and money of a map of so many pixels, and how many workers each resource feeds.

    A part is read with its halo, written as blocks, and read and written once more where it is assembled,
    into one file or into tiles alike.
    """
    parts = math.ceil(pixels / assumed.part**2)
    again = ((assumed.part + 2 * assumed.halo) / assumed.part) ** 2
    read = pixels * (assumed.read_bytes * again + assumed.written_bytes)
    written = 2 * pixels * assumed.written_bytes
    hours = pixels / assumed.core_speed / 3600
    result: Result = {
        "parts": parts,
        "core_hours": hours,
        "core_price": hours * assumed.core_price,
        "read": read,
        "written": written,
        "disk_hours": (read + written) / assumed.disk_speed / 3600,
        "one_file_hours": 2 * pixels * assumed.written_bytes / 400e6 / 3600,
        "workers_by_scheduler": assumed.tasks * assumed.part**2 / assumed.core_speed,
        "workers_by_disk": assumed.disk_speed * pixels / (read + written) / assumed.core_speed,
        "workers_by_parts": parts,
    }
    if assumed.gpu_speed:
        gpu_hours = pixels / assumed.gpu_speed / 3600
        result |= {
            "gpu_hours": gpu_hours,
            "gpu_price": gpu_hours * assumed.gpu_price,
            "gpus_by_disk": assumed.disk_speed * pixels / (read + written) / assumed.gpu_speed,
            "gpus_by_scheduler": assumed.tasks * assumed.part**2 / assumed.gpu_speed,
            "encoding_cores_for_a_gpu": assumed.gpu_speed / assumed.encode_speed,
        }
    return result


# What is printed


def render(document: Result) -> str:
    """All of it as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    blocks = [
        f"{machine}."
        + " The machine was used by others meanwhile: ratios count, absolute times don't."
        * document["shared"],
        "Seconds for each part:\n\n" + _runs(document["runs"]),
        _verdict(document["runs"]),
        "Tasks that do nothing:\n\n" + _tasks(document["tasks"]),
        "Simulated maps, for each part:\n\n" + _simulated(document["simulated"]),
        "Reckoned, from the assumptions below:\n\n" + _regions(document["regions"]),
        "Europe with GPUs of an assumed speed:\n\n" + _gpus(document["gpus"]),
        "Assumptions: " + ", ".join(f"{k} {v:,.6g}" for k, v in document["assumptions"].items() if v) + ".",
    ]
    return "\n\n".join(blocks)


def _runs(rows: list[Result]) -> str:
    shown = []
    for row in rows:
        local = next(other for other in rows if other["part"] == row["part"])
        more = row["processor"] - local["processor"]
        shown.append([
            f"{row['part']} x {row['part']}", row["name"], f"{row['wall']:.3f}", f"{row['processor']:.3f}",
            f"{1000 * more:+.0f}", f"{more / local['processor']:+.1%}",
            f"{local['wall'] / row['wall'] / row['cores']:.0%}",
        ])  # fmt: skip
    header = ["pixels", "", "wall", "processor", "more processor, ms", "more", "efficiency (wall)"]
    return _table(header, shown)


def _verdict(rows: list[Result]) -> str:
    """The figure of the largest parts beside the target."""
    side = max(row["part"] for row in rows)
    local, one = [row for row in rows if row["part"] == side][:2]
    more = (one["processor"] - local["processor"]) / local["processor"]
    said = "met" if more <= TARGET else "missed"
    return (
        f"Target: at most {TARGET:.0%} more for a part than the local run limited to one thread; found with "
        f"one worker {more:+.1%} for parts of {side} x {side} pixels: {said}."
    )


def _tasks(rows: list[Result]) -> str:
    shown = [
        [f"{row['workers']}", f"{row['per_second']:.0f}", f"{1000 * row['processor']:.2f}"] for row in rows
    ]
    return _table(["workers", "tasks/s", "ms of client and scheduler for a task"], shown)


def _simulated(rows: list[Result]) -> str:
    steps = ("plan", "journal", "resume", "collect")
    sizes = ("memory added", "journal bytes", "collection bytes")
    shown = [
        [
            f"{row['parts']:,}",
            *(f"{1e3 * row[name] / row['parts']:.3f}" for name in steps),
            *(f"{row[name] / row['parts']:,.0f}" for name in sizes),
        ]
        for row in rows
    ]
    return _table(["parts", *(f"{name}, ms" for name in steps), *sizes], shown)


def _regions(regions: dict[str, Result]) -> str:
    names = list(dict.fromkeys(name for row in regions.values() for name in row))
    shown = [[name.replace("_", " "), *(f"{row[name]:,.4g}" for row in regions.values())] for name in names]
    return _table(["", *regions], shown)


def _gpus(rows: list[Result]) -> str:
    names = ("gpu_hours", "gpu_price", "gpus_by_disk", "gpus_by_scheduler", "encoding_cores_for_a_gpu")
    shown = [[f"{row['speed'] / 1e6:g}", *(f"{row[name]:,.4g}" for name in names)] for row in rows]
    return _table(["Mpx/s", *(name.replace("_", " ") for name in names)], shown)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    raise SystemExit(main())
