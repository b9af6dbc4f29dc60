"""How fast a mosaic becomes a map, in memory of what size, and how equal it is to one pass over the whole.

Compares, in one run and each in a process of its own: (a) what the original system did with its own network,
untrained, since weights change no second of it, (b) the real command with each engine, in 8 bits also a
first run, which has to find its ranges, (c) the network alone in the same engine and window, (d) a sliding
window with 50 % overlap and Gaussian weights in PyTorch, as MONAI does it. The mosaic is the simulated scene
mirrored to the size asked for. The weights must be trained: random ones say nothing about agreement.
Beside that: what ``--plan`` says of each run before it, and the memory of a large mosaic, most of it no data.

Example: python benchmarks/classify.py runs/kaakonkulma --size 4096 --monai /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ENGINES = ("keras", "openvino", "openvino-int8")
EXACT = ("keras", "openvino")
MONAI = "(d) MONAI, 50 % overlap"
SCENE = 1700
"""Side of the simulated scene, pixels."""

CONTEXT = 128
"""Pixels at the border of the part that was passed whole that are not compared: they see less there."""

Result = dict[str, Any]


def main() -> int:
    """Measure all that was asked for, print the table and store it under ``benchmarks/results``."""
    options = _parse()
    if options.stage:
        stage = STAGES[options.stage]
        print("RESULT", json.dumps(stage(*options.arguments)))
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lulc-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    options.model = copy_model(options.model, folder / "model")
    mosaic = make_mosaic(options.scene, folder, options.size)
    small = make_mosaic(options.scene, folder, options.whole)
    rows = [_stage("reference", options.model, *mosaic, folder / "reference.tif")]
    whole = folder / "whole.npy"
    _stage("whole", options.model, *small, whole)
    for engine in options.engines:
        rows += measure_engine(engine, options, mosaic, folder, whole)
    if options.sparse:
        rows += measure_memory(options, small, folder)
    if options.monai:
        rows.append(measure_monai(options.monai, mosaic, folder / "monai.tif"))
    seconds = min(_run(sys.executable, ROOT / "make_classifications.py", "--help").wall for _ in range(3))
    document = {
        "machine": describe_machine(), "size": options.size, "whole": options.whole, "help": seconds,
        "rows": rows,
    }  # fmt: skip
    text = render(document)
    print(text)
    target = ROOT / "benchmarks" / "results" / f"classify-{options.size}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="trained weights")
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic in pixels (default: 4096)")
    parser.add_argument(
        "--whole",
        type=int,
        default=2048,
        help="side on which maps are compared with one pass (default: 2048)",
    )
    parser.add_argument(
        "--sparse",
        type=int,
        default=16384,
        help="side of a large mosaic, to compare its memory with that of --whole (default: 16384; 0: none)",
    )
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--activations", default="float32", help="as in make_classifications.py")
    parser.add_argument(
        "--scene",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "kaakonkulma-sim",
        help="simulated scene",
    )
    parser.add_argument(
        "--folder", type=Path, help="where mosaics and maps are put (default: a temporary one)"
    )
    parser.add_argument(
        "--monai", help="Python of an environment that has torch and monai; without it no (d)"
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.stage and options.model is None:
        parser.error("the weights are missing")
    options.whole = min(options.whole, options.size)
    return options


def copy_model(model: Path, folder: Path) -> Path:
    """A copy of weights and card without what earlier runs in 8 bits found beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    if model.is_dir():
        return Path(shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.openvino-*")))
    folder.mkdir()
    for path in (model.with_suffix(".json"), model.with_suffix(".keras")):
        shutil.copy(path, folder)
    return folder / model.with_suffix(".keras").name


def make_mosaic(scene: Path, folder: Path, size: int) -> tuple[Path, Path]:
    """Bands and indices of the scene, mirrored at its borders up to `size`; made once."""
    paths = folder / f"bands-{size}.tif", folder / f"indices-{size}.tif"
    if all(path.is_file() for path in paths):
        return paths
    with rasterio.open(scene / "summer.tif") as summer, rasterio.open(scene / "spring.tif") as spring:
        bands = np.where(summer.read() == 0, spring.read(), summer.read())
        _write_mirrored(paths[0], bands, size, summer)
    with rasterio.open(scene / "indices.tif") as indices:
        _write_mirrored(paths[1], indices.read(), size, indices)
    return paths


def _write_mirrored(path: Path, values: np.ndarray, size: int, like: rasterio.DatasetReader) -> None:
    around = size - values.shape[1]
    padding = ((0, 0), (0, max(0, around)), (0, max(0, around)))
    values = np.pad(values[:, :size, :size], padding, mode="symmetric")
    profile = like.profile | {
        "width": size,
        "height": size,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    profile |= {"compress": "zstd", "predictor": 2, "num_threads": "all_cpus", "bigtiff": "if_safer"}
    with rasterio.open(path, "w", **profile) as target:
        target.write(values)
        target.descriptions = like.descriptions
        for band in range(1, like.count + 1):
            target.update_tags(band, **like.tags(band))


def make_sparse(scene: Path, folder: Path, size: int) -> tuple[Path, Path]:
    """A mosaic of `size` with eight squares of the scene on its diagonal, and no data elsewhere."""
    paths = folder / f"bands-{size}-sparse.tif", folder / f"indices-{size}-sparse.tif"
    for path, name in zip(paths, ("summer.tif", "indices.tif"), strict=True):
        with rasterio.open(scene / name) as source:
            square = source.read(window=Window(512, 512, 512, 512))
            profile = source.profile | {"width": size, "height": size, "tiled": True, "sparse_ok": True}
            profile |= {"blockxsize": 256, "blockysize": 256, "compress": "zstd", "predictor": 2}
            with rasterio.open(path, "w", **profile) as target:
                for start in range(0, size, size // 8 // 256 * 256)[:8]:
                    target.write(square, window=Window(start, start, 512, 512))
                target.descriptions = source.descriptions
                for band in range(1, source.count + 1):
                    target.update_tags(band, **source.tags(band))
    return paths


def measure_engine(
    engine: str, options: argparse.Namespace, mosaic: Any, folder: Path, whole: Path
) -> list[Result]:
    """A first run in 8 bits, the forecast, the command and the network alone."""
    out = folder / f"{engine}-{options.size}.tif"
    rows = []
    if engine not in EXACT:
        rows = [_command(engine, options, mosaic, out) | {"name": f"(b) {engine}, first run"}]
    planned = plan_command(engine, options, mosaic, out)
    row = _command(engine, options, mosaic, out) | planned
    row["window"] = _window_of(out)
    row["flips"] = _flips(out, np.load(whole), CONTEXT if options.size > options.whole else 0)
    row["macro_f1"] = _macro_f1(out, options.scene)
    roof = _stage("network", engine, options.model, *mosaic, *row["window"])
    row["roof_share"] = row["computed"] * row["pixels"] / row["windows"] / roof["speed"]
    out.unlink()
    return [*rows, row, roof]


def plan_command(engine: str, options: argparse.Namespace, mosaic: Any, out: Path) -> Result:
    """What ``--plan`` says it takes and computes."""
    text = _run(sys.executable, *_arguments(engine, options, mosaic, out), "--plan").text
    seconds = re.search(r"time +([\d.]+) s", text)
    memory = re.search(r"memory +([\d.]+) GB", text)
    computed = re.search(r"computed +([\d.]+) times", text)
    assert seconds and memory and computed, text
    return {
        "planned_seconds": float(seconds[1]),
        "planned_memory": float(memory[1]) * 1e9,
        "computed": float(computed[1]),
    }


def measure_memory(options: argparse.Namespace, small: Any, folder: Path) -> list[Result]:
    """Peak memory at two sizes of mosaic with windows and parts of one size, in the engine named last."""
    engine = options.engines[-1]
    rows = []
    for mosaic in (small, make_sparse(options.scene, folder, options.sparse)):
        out = folder / "memory.tif"
        # A part holds a row of its blocks; the smaller mosaic is one part.
        row = _command(engine, options, mosaic, out, "--window", 1024, "--part", options.whole)
        side = round(row["pixels"] ** 0.5)
        rows.append(row | {"name": f"memory at {side} x {side}, {engine}"})
        out.unlink()
    return rows


def _flips(path: Path, classes: np.ndarray, context: int) -> float:
    """Share of valid pixels of a map with another class than one pass over its upper left part."""
    side = len(classes) - context
    with rasterio.open(path) as found:
        values = found.read(1, window=Window(0, 0, side, side))
        # The pass over the whole knows no invalid pixels; the map holds no data there.
        return float((values != classes[:side, :side])[values != found.nodata].mean())


def measure_monai(python: str, mosaic: tuple[Path, Path], out: Path) -> Result:
    """The sliding window in an interpreter that has PyTorch and MONAI, reading and writing included."""
    run = _run(python, ROOT / "benchmarks" / "sliding_window.py", *mosaic, out)
    out.unlink()
    row: Result = json.loads(run.text)
    # Starting the interpreter and importing belongs to the start.
    row["start"] = run.wall - row["windows"] - row["finish"]
    figures = {"seconds": run.wall, "processor": run.processor, "memory": run.memory}
    return row | figures | {"name": MONAI, "speed": row["pixels"] / run.wall}


def _arguments(engine: str, options: argparse.Namespace, mosaic: tuple[Path, Path], out: Path) -> list[Any]:
    command = [ROOT / "make_classifications.py", options.model, *mosaic, out, "--engine", engine]
    return [*command, "--overwrite", "--min-agreement", "0", "--activations", options.activations]


def _command(
    engine: str, options: argparse.Namespace, mosaic: tuple[Path, Path], out: Path, *further: Any
) -> Result:
    """The real command; its figures are those that it prints, its time and memory those of its process."""
    run = _run(sys.executable, *_arguments(engine, options, mosaic, out), *further)
    stages = re.findall(r"(start|windows|finish) ([\d.]+)", run.text)
    busy = re.search(r"busy (\d+)%", run.text)
    pixels = _pixels(out)
    # Starting the interpreter and importing belongs to the start.
    row: Result = {name: float(value) for name, value in stages}
    row |= {"name": f"(b) {engine}", "pixels": pixels}
    row["start"] = run.wall - row["windows"] - row["finish"]
    return row | {
        "seconds": run.wall,
        "processor": run.processor,
        "memory": run.memory,
        "network_share": int(busy.group(1)) / 100 if busy else None,
        "speed": pixels / run.wall,
    }


class Run(NamedTuple):
    """What a process took: seconds, those of all processors, peak bytes; and what it printed."""

    wall: float
    processor: float
    memory: int
    text: str


def _run(*arguments: Any) -> Run:
    """Run a process that must end well."""
    begun = time.perf_counter()
    process = subprocess.Popen([str(a) for a in arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"error: {arguments} ended with {process.returncode}")
    wall = time.perf_counter() - begun
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def _stage(name: str, *arguments: Any) -> Result:
    run = _run(sys.executable, Path(__file__), "--stage", name, "--arguments", *arguments)
    result: Result = json.loads(run.text.rpartition("RESULT ")[2])
    result = {"seconds": run.wall, "processor": run.processor, "memory": run.memory} | result
    return {"speed": result["pixels"] / run.wall} | result


def run_reference(model: str, bands: str, indices: str, out: str) -> Result:
    """What the original did: everything in memory, windows of 256 px without context, predict one by one."""
    begun = time.perf_counter()
    from lulc.models.card import load_card
    from lulc.models.unet import build_unet
    from lulc.models.weights import find_model

    card = load_card(find_model(model))
    network = build_unet(None, (np.array(card.statistics.mean), np.array(card.statistics.std)))
    with rasterio.open(bands) as b, rasterio.open(indices) as i:
        image = np.concatenate([b.read(), i.read()]).transpose(1, 2, 0).astype(np.float32)
        profile = {k: b.profile[k] for k in ("crs", "transform", "width", "height")}
    height, width, _ = image.shape
    result = np.zeros((height, width, card.network.classes + 1), np.float32)
    started = time.perf_counter()
    for row in range(0, height, 256):
        for col in range(0, width, 256):
            window = np.zeros((1, 256, 256, image.shape[2]), np.float32)
            piece = image[row : row + 256, col : col + 256]
            window[0, : piece.shape[0], : piece.shape[1]] = piece
            y = network.predict(window, batch_size=1, verbose=0)[0, : piece.shape[0], : piece.shape[1]]
            result[row : row + 256, col : col + 256, 1:] = y
            result[row : row + 256, col : col + 256, 0] = y.argmax(-1) + 1
    predicted = time.perf_counter()
    profile |= {"driver": "GTiff", "count": result.shape[2], "dtype": "float32"}
    with rasterio.open(out, "w", **profile) as target:
        target.write(result.transpose(2, 0, 1))
    stages = {
        "start": started - begun,
        "windows": predicted - started,
        "finish": time.perf_counter() - predicted,
    }
    return {"name": "(a) as the original", "pixels": height * width, **stages}


def run_whole(model: str, bands: str, indices: str, out: str) -> Result:
    """One pass over the whole image in float32; its classes."""
    image, engine = _engine_for("openvino", model, bands, indices)
    np.save(out, engine(image)[0].argmax(-1).astype(np.uint8) + 1)
    return {"name": "whole-image pass", "pixels": image.shape[1] * image.shape[2]}


def run_network(engine: str, model: str, bands: str, indices: str, height: str, width: str) -> Result:
    """The network alone on a window that is in memory already."""
    image, function = _engine_for(engine, model, bands, indices, (int(height), int(width)))
    function(image)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        function(image)
        seconds.append(time.perf_counter() - begun)
    pixels = image.shape[1] * image.shape[2]
    return {"name": f"(c) network alone, {engine}", "pixels": pixels, "speed": pixels / min(seconds)}


def _engine_for(
    engine: str, model: str, bands: str, indices: str, shape: tuple[int, int] | None = None
) -> tuple[np.ndarray, Any]:
    """A window (1, y, x, band) of a mosaic and an engine of its shape, calibrated as the command does."""
    from dataclasses import replace

    from lulc.config import ClassifyConfig
    from lulc.core.windows import Window as Rectangle
    from lulc.inference.job import open_job

    config = ClassifyConfig(
        model=model, inputs=(bands, indices), out="benchmark.tif", engine=engine, min_agreement=0.0
    )
    with open_job(config) as job:
        job.plan = replace(job.plan, window=shape or job.plan.padded)
        image = job.stack.read(Rectangle(0, 0, *job.plan.window))
        return image[np.newaxis], job.build_engine()


STAGES: dict[str, Callable[..., Result]] = {
    "reference": run_reference,
    "whole": run_whole,
    "network": run_network,
}


def _window_of(path: Path) -> list[int]:
    with rasterio.open(path) as source:
        window: list[int] = json.loads(source.tags()["LULC_PARAMETERS"])["window"]
        return window


def _pixels(path: Path) -> int:
    with rasterio.open(path) as source:
        return int(source.height * source.width)


def _macro_f1(path: Path, scene: Path) -> float:
    """Mean F1 of the classes on the scene's validation block, of what was not mirrored."""
    block = Window(850, 850, 850, 850)
    with rasterio.open(path) as found, rasterio.open(scene / "labels.tif") as labels:
        if found.height < SCENE:
            return float("nan")
        a, b = found.read(1, window=block).astype(int), labels.read(1, window=block)
    counts = np.bincount((16 * b + a)[b > 0], minlength=256).reshape(16, 16)
    present = np.unique(b[b > 0])
    return float(np.mean([2 * counts[c, c] / (counts[c].sum() + counts[1:, c].sum()) for c in present]))


def describe_machine() -> dict[str, str]:
    """Processor, cores and versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", text)
    packages = ("numpy", "rasterio", "keras", "tensorflow", "openvino")
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


HEADER = (
    "| | start s | windows s | finish s | planned s | processor s | Mpx/s | against (a) "
    "| in processor time | share of the roof "
    "| network's share | computed per written | peak GB | other class than one pass | macro-F1 |"
)


def render(document: Result) -> str:
    """The table and the targets, as Markdown."""
    rows = document["rows"]
    base, spared = rows[0]["speed"], rows[0]["processor"] / rows[0]["pixels"]
    lines = [HEADER, "|---" * 15 + "|"]
    for row in rows:
        cells = [
            row["name"],
            *(
                _number(row.get(key), ".1f")
                for key in ("start", "windows", "finish", "planned_seconds", "processor")
            ),
            f"{row['speed'] / 1e6:.3f}",
            f"{row['speed'] / base:.2f}",
            f"{spared * row['pixels'] / row['processor']:.2f}",
            *(_number(row.get(key), ".2f") for key in ("roof_share", "network_share", "computed")),
            f"{row['memory'] / 1e9:.2f}",
            _number(row.get("flips"), ".3%"),
            _number(row.get("macro_f1"), ".4f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    size = document["size"]
    head = (
        f"{size} x {size} pixels, classes compared on {document['whole']} x {document['whole']}. {machine}."
    )
    return "\n".join([head, "", *lines, "", *_targets(rows, document["help"])])


def _targets(rows: list[Result], help_seconds: float) -> list[str]:
    """What was asked for beside what was found, for the rows that are there."""
    by_name = {row["name"]: row for row in rows}
    base = rows[0]["speed"]
    monai = by_name.get(MONAI)
    exact = by_name.get("(b) openvino") or by_name.get("(b) keras")
    lines = ["| target | asked | found | |", "|---|---|---|---|"]

    def line(what: str, asked: float, found: float, *, at_most: bool = False) -> None:
        met = found <= asked if at_most else found >= asked
        sign = "at most" if at_most else "at least"
        lines.append(f"| {what} | {sign} {asked:g} | {found:.4g} | {'met' if met else '**missed**'} |")

    asked = {
        "openvino": (4.5, 1.0, 0.92),
        "openvino-int8": (8.0, 0.985, 0.85),
    }
    for engine, (times, agreement, share) in asked.items():
        if row := by_name.get(f"(b) {engine}"):
            line(f"{engine} against (a)", times, row["speed"] / base)
            line(f"{engine} against (a), processor time", times, rows[0]["processor"] / row["processor"])
            line(f"{engine}: agreement with one pass", agreement, 1 - row["flips"])
            line(f"{engine}: computed per written", 1.25, row["computed"], at_most=True)
            line(f"{engine}: peak GB", 2.2, row["memory"] / 1e9, at_most=True)
            line(f"{engine}: seconds planned per second taken, from 1", 0.2,
                 abs(row["planned_seconds"] / row["seconds"] - 1), at_most=True)  # fmt: skip
            if share:
                line(f"{engine}: network's share", share, row["network_share"])
            if monai and share:
                line(f"{engine} against (d)", 12 if "int8" in engine else 4, row["speed"] / monai["speed"])
    if (row := by_name.get("(b) openvino-int8, first run")) and exact:
        line("openvino-int8: first run, seconds per second in float32", 1, row["seconds"] / exact["seconds"],
             at_most=True)  # fmt: skip
        line("openvino-int8: first run, the same of processor seconds", 1,
             row["processor"] / exact["processor"], at_most=True)  # fmt: skip
    if row := by_name.get("(b) openvino-int8"):
        line("openvino-int8: start and finish", 0.2, 1 - row["windows"] / row["seconds"], at_most=True)
        if exact and np.isfinite(row["macro_f1"]):
            line("openvino-int8: macro-F1 lost", 0.002, exact["macro_f1"] - row["macro_f1"], at_most=True)
    memory = [row["memory"] / 1e9 for row in rows if row["name"].startswith("memory at")]
    if memory:
        line("large mosaic: peak GB", 2.2, memory[-1], at_most=True)
        line("large mosaic: peak per peak of the small one", 1.1, memory[-1] / memory[0], at_most=True)
    line("--help: seconds", 0.5, help_seconds, at_most=True)
    return lines


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    raise SystemExit(main())
