"""How fast a mosaic becomes a map where a GPU computes, and what bounds it.

For each precision, in processes of their own: the network alone on windows that lie in the GPU's memory; the
same with windows that come from and go to the machine's memory; and the real command on a mosaic of the size
asked for, the simulated scene mirrored. Beside that, what the command does in other threads meanwhile, each
alone with as many threads: reading, and encoding with writing. The least of these is what bounds the command.
What JAX has compiled is kept between runs: a first run takes longer by the seconds given for it.

``--host`` measures on any machine, with a GPU or none, what is left for its processors: the real command with
the settings of a GPU and, in the network's place, the activations of one window repeated, which cost nothing.

Example: KERAS_BACKEND=jax python benchmarks/gpu.py runs/kaakonkulma --size 16384 --folder /tmp/gpu
         python benchmarks/gpu.py runs/kaakonkulma --size 4096 --host
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from classify import Result, _run, make_mosaic  # noqa: E402

ENGINES = ("keras-float16", "keras")
TARGETS = {"resident": 100e6, "speed": 10e6}
"""Pixels per second asked for, of the network alone and of the whole command."""

SHARE = "network's share"

RUNS, REPEATED = 3, 512
"""Of the command with a network that costs nothing, and the side of the window whose activations it gives."""

HOST = ("windows", "finish", "processor", "system")
"""Seconds that are taken of each of these runs."""

SECONDS = 3.0
"""Of each measurement of a part of the command."""


def main() -> int:
    """Measure all that was asked for, print the table and store it under ``benchmarks/results``."""
    options = _parse()
    if options.stage:
        print("RESULT", json.dumps(STAGES[options.stage](*options.arguments)))
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lulc-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    mosaic = make_mosaic(options.scene, folder, options.size)
    measure = measure_host if options.host else measure_gpu
    name = "host.json" if options.host else "gpu.json"
    target = options.results or ROOT / "benchmarks" / "results" / name
    text = measure(options, mosaic, folder, target)
    print(text)
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 0


def measure_host(options: argparse.Namespace, mosaic: tuple[Path, Path], folder: Path, target: Path) -> str:
    """The table of what is left for the processors; figures go to `target`."""
    document: dict[str, Any] = {"size": options.size, "machine": describe_machine(), "runs": []}
    for activations in options.activations:
        for _ in range(RUNS):
            found = _stage("host", options.model, *mosaic, activations, folder / "map.tif")
            document["runs"].append({"activations": activations} | found)
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return render_host(document)


def measure_gpu(options: argparse.Namespace, mosaic: tuple[Path, Path], folder: Path, target: Path) -> str:
    """The tables of a machine with a GPU; figures go to `target` as they come."""
    document: dict[str, Any] = {
        "size": options.size,
        "machine": {},
        "networks": [],
        "commands": [],
        "parts": {},
    }

    def store() -> None:
        target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    for engine in options.engines:
        for activations in options.activations:
            document["commands"].append(measure_command(engine, activations, options, mosaic, folder))
            store()
        document["networks"].append(_stage("network", engine, options.model, *mosaic))
        document["machine"] |= document["networks"][-1].pop("machine")
        store()
    document["parts"] = _stage("parts", options.engines[0], options.model, *mosaic)
    store()
    return render(document)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="trained weights")
    parser.add_argument("--size", type=int, default=16384, help="side of the mosaic (default: 16384)")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--activations", nargs="+", default=["float32"], help="as in make_classifications.py")
    parser.add_argument("--host", action="store_true", help="only what is left for the processors")
    parser.add_argument(
        "--scene",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "kaakonkulma-sim",
        help="simulated scene",
    )
    parser.add_argument("--folder", type=Path, help="for mosaic and maps (default: a temporary one)")
    parser.add_argument("--results", type=Path, help="where the figures are stored")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.stage and options.model is None:
        parser.error("the weights are missing")
    return options


def measure_command(
    engine: str, activations: str, options: argparse.Namespace, mosaic: tuple[Path, Path], folder: Path
) -> Result:
    """The real command; its figures are those that it prints, its time and memory those of its process."""
    out = folder / "map.tif"
    run = _run(
        sys.executable, ROOT / "make_classifications.py", options.model, *mosaic, out,
        "--engine", engine, "--activations", activations, "--overwrite",
    )  # fmt: skip
    stages = {name: float(value) for name, value in re.findall(r"(start|windows|finish) ([\d.]+)", run.text)}
    busy = re.search(r"busy (\d+)%", run.text)
    pixels = options.size**2
    row: Result = {
        "engine": engine,
        "activations": activations,
        "speed": pixels / run.wall,
        "seconds": run.wall,
        # Starting the interpreter and importing belongs to the start.
        "start": run.wall - stages["windows"] - stages["finish"],
        "windows": stages["windows"],
        "finish": stages["finish"],
        "speed of windows": pixels / stages["windows"],
        "processor": run.processor,
        "memory": run.memory,
        "bytes": out.stat().st_size,
        SHARE: int(busy[1]) / 100 if busy else None,
    }
    out.unlink()
    return row


def _stage(name: str, *arguments: Any) -> Result:
    run = _run(sys.executable, Path(__file__), "--stage", name, "--arguments", *arguments)
    return dict(json.loads(run.text.rpartition("RESULT ")[2])) | {"seconds": run.wall}


def _open(engine: str, model: str, bands: str, indices: str) -> Any:
    from lulc.config import ClassifyConfig
    from lulc.inference.job import open_job

    return open_job(ClassifyConfig(model=model, inputs=(bands, indices), out="benchmark.tif", engine=engine))


def run_network(engine: str, model: str, bands: str, indices: str) -> Result:
    """The network alone on windows of the mosaic, in the shape that the command takes."""
    from lulc.models import backend

    with _open(engine, model, bands, indices) as job:
        begun = time.perf_counter()
        built = job.build_engine()
        windows = [job.stack.read(w.read)[np.newaxis] for w in job.plan.windows(job.plan.part_at(0))[:3]]
        built(windows[0])
        first = time.perf_counter() - begun
        there_and_back = _speed(built, windows)
        resident = _speed(*_on_device(engine, model, windows))
        return {
            "engine": built.name,
            "window": job.plan.window,
            "identity": built.identity,
            "first": first,
            "resident": resident,
            "there and back": there_and_back,
            "machine": describe_machine() | {"device": backend.device_name(), **backend.versions()},
        }


def _on_device(engine: str, model: str, windows: list[np.ndarray]) -> tuple[Callable[..., Any], list[Any]]:
    """The same function with arrays that lie on the device, and these."""
    from lulc.models import backend
    from lulc.models.weights import find_model, load_model

    with backend.precision("float16" if engine.endswith("float16") else "float32"):
        network, _ = load_model(find_model(model, "lowest-val-loss"))
    if backend.name() == "jax":
        import jax

        trained = [v.value for v in network.trainable_variables]
        fixed = [v.value for v in network.non_trainable_variables]

        @jax.jit
        def forward(trained: Any, fixed: Any, x: Any) -> Any:
            return network.stateless_call(trained, fixed, x, training=False)[0].astype("float32")

        return lambda x: forward(trained, fixed, x).block_until_ready(), [jax.device_put(x) for x in windows]
    import torch

    def synchronous(x: Any) -> Any:
        with torch.inference_mode():
            y = network(x, training=False)
        torch.cuda.synchronize()
        return y

    return synchronous, [torch.from_numpy(x).cuda() for x in windows]


def _speed(function: Callable[[Any], Any], windows: list[Any], seconds: float = SECONDS) -> float:
    """Pixels per second of a function of windows, which has been called before."""
    function(windows[0])
    begun, pixels = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        for x in windows:
            function(x)
            pixels += x.shape[1] * x.shape[2]
    return pixels / (time.perf_counter() - begun)


def run_parts(engine: str, model: str, bands: str, indices: str) -> Result:
    """What the command does beside the network: pixels per second of the map, each alone."""
    from lulc.inference.sliding_window import predict_parts

    with _open(engine, model, bands, indices) as job, job.readers() as (read, *further):
        classes = job.card.network.classes
        constant = np.full((1, *job.plan.window, classes), 1 / classes, np.float32)
        predictions = predict_parts(
            read, lambda x: constant, job.plan, job.plan.parts(), further=further, batch=1
        )
        begun, pixels = time.perf_counter(), 0
        for prediction in predictions:
            pixels += prediction.window.write.height * prediction.window.write.width
            if time.perf_counter() - begun > 2 * SECONDS:
                break
        reading = pixels / (time.perf_counter() - begun)
        predictions.close()
        return {"readers": 1 + len(further), "reading": reading, "writing": _measure_writing(job)}


def _measure_writing(job: Any) -> float:
    """Pixels per second of encoding and writing one part, whose activations come from random numbers."""
    from concurrent.futures import ThreadPoolExecutor

    from lulc.core.machine import cores
    from lulc.engines.registry import Engine
    from lulc.inference.outputs import OneFile
    from lulc.inference.sliding_window import Clock
    from lulc.inference.worker import make_parts

    shape = (1, *job.plan.window)
    rng = np.random.default_rng(1)
    y = rng.gamma(0.3, size=(*shape, job.card.network.classes)).astype(np.float32)
    y /= y.sum(-1, keepdims=True)
    window = np.ones((*job.plan.window, len(job.card.channels)), np.float32)
    job.stack.read = lambda window_, w=window: w[: window_.height, : window_.width]
    engine = Engine("random", shape, {}, lambda x: y)
    part = job.plan.part_at(0)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(cores()) as pool:
        output = OneFile(job.profile, job.plan, Path(name))
        begun = time.perf_counter()
        list(make_parts(job, engine, output, [part], pool, clock=Clock()))
        return part.extent.height * part.extent.width / (time.perf_counter() - begun)


def run_host(model: str, bands: str, indices: str, activations: str, out: str) -> Result:
    """The command as where a GPU computes, with a network that costs nothing."""
    import resource

    from lulc.config import ClassifyConfig
    from lulc.core.windows import Window
    from lulc.engines import registry
    from lulc.inference import classify
    from lulc.inference.job import Job, open_job
    from lulc.models import backend
    from lulc.models.weights import find_model, load_model

    config = ClassifyConfig(
        model=model, inputs=(bands, indices), out=out, engine="keras", activations=activations, overwrite=True
    )
    with open_job(config) as job:
        place = Window(0, 0, *(min(REPEATED, side) for side in job.stack.grid.shape))
        network = load_model(find_model(model, config.pick))[0]
        predict = backend.compile_predict(network, finish=job.finish)
        planes = np.moveaxis(predict(job.stack.read(place)[np.newaxis]), -1, 1)

    def build(job: Job) -> registry.Engine:
        shape = (config.batch_size, *job.plan.window)
        times = [-(-side // known) for side, known in zip(shape[1:], planes.shape[2:], strict=True)]
        result = np.tile(planes, (shape[0], 1, *times))[..., : shape[1], : shape[2]]
        # As from a GPU: planes, in memory of their own.
        return registry.Engine("keras", shape, {}, lambda x: np.moveaxis(result.copy(), 1, -1))

    registry.has_gpu = lambda devices=None: True
    Job.build_engine = build  # type: ignore[method-assign]
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = classify.classify(config).seconds
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "windows": seconds["windows"],
        "finish": seconds["finish"],
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "system": after.ru_stime - before.ru_stime,
    }


def render_host(document: Result) -> str:
    """Its table, as Markdown: each figure the median of the runs."""
    size, runs = document["size"], document["runs"]
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    lines = [f"{size} x {size} pixels, a network that costs nothing (simulated). {machine}.", "",
             "| activations | windows Mpx/s | finish s | processor s per Mpx | of that in the system |",
             "|---" * 5 + "|"]  # fmt: skip
    for kind in dict.fromkeys(run["activations"] for run in runs):
        of_kind = [run for run in runs if run["activations"] == kind]
        middle = {name: float(np.median([run[name] for run in of_kind])) for name in HOST}
        mpx = size**2 / 1e6
        lines.append(
            f"| {kind} | {mpx / middle['windows']:.2f} | {middle['finish']:.1f} "
            f"| {middle['processor'] / mpx:.2f} | {middle['system'] / mpx:.2f} |"
        )
    return "\n".join(lines)


STAGES: dict[str, Callable[..., Result]] = {"network": run_network, "parts": run_parts, "host": run_host}


def describe_machine() -> dict[str, str]:
    """Processor, cores and versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", text)
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "rasterio")},
    }


def render(document: Result) -> str:
    """The tables, as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    lines = [f"{document['size']} x {document['size']} pixels. {machine}.", ""]
    lines += ["| network alone | window | first call s | Mpx/s on the GPU | there and back | asked |"]
    lines += ["|---" * 6 + "|"]
    for row in document["networks"]:
        met = "met" if row["resident"] >= TARGETS["resident"] else "**missed**"
        lines.append(
            f"| {row['engine']} | {row['window'][0]} x {row['window'][1]} | {row['first']:.1f} "
            f"| {row['resident'] / 1e6:.1f} | {row['there and back'] / 1e6:.1f} | 100, {met} |"
        )
    lines += ["", "| whole command | start s | windows s | finish s | Mpx/s | windows Mpx/s "
              "| network's share | processor s | peak GB | map GB | asked |", "|---" * 11 + "|"]  # fmt: skip
    for row in document["commands"]:
        met = "met" if row["speed"] >= TARGETS["speed"] else "**missed**"
        lines.append(
            f"| {row['engine']}, {row['activations']} | {row['start']:.1f} | {row['windows']:.1f} "
            f"| {row['finish']:.1f} | {row['speed'] / 1e6:.2f} | {row['speed of windows'] / 1e6:.1f} "
            f"| {row[SHARE]} | {row['processor']:.0f} | {row['memory'] / 1e9:.1f} "
            f"| {row['bytes'] / 1e9:.1f} | 10, {met} |"
        )
    parts = document["parts"]
    if not parts:
        return "\n".join(lines)
    lines += [
        "",
        f"Alone, with the threads that the command has: reading {parts['reading'] / 1e6:.1f} Mpx/s "
        f"({parts['readers']} readers), encoding and writing {parts['writing'] / 1e6:.1f} Mpx/s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
