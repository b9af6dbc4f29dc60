"""Simulate a Sentinel-2 scene and take it through the four commands: prepare, train, classify, evaluate.

The result is a folder with the scene, its stacks, a trained run, a map and a report. The commands are
printed as one would type them. The imagery is simulated and the network small and briefly trained: this shows
how the commands work, not how accurate a map can be.

Example: python -m lulc.demo --out demo
"""

from __future__ import annotations

import importlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lulc.cli.commandline import Answer, run
from lulc.config import RUN
from lulc.core.options import option
from lulc.core.removal import OwnFolder

SHAPE = (1024, 1024)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Output folder and training time of the demonstration."""

    out: str = option("demo", "folder for everything", metavar="FOLDER")
    epochs: int = option(8, "number of epochs", group=RUN)
    steps: int = option(50, "batches per epoch", group=RUN)
    minutes: float = option(3.0, "longest training", unit="minutes", group=RUN)
    seed: int = option(1, "seed of the scene and the training", group=RUN)


def command_lines(config: DemoConfig) -> list[list[str]]:
    """Return the four commands of the demonstration with their arguments."""
    out, seed = config.out, str(config.seed)
    summer, spring, indices, labels = (f"{out}/{n}.tif" for n in ("summer", "spring", "indices", "labels"))
    prepare = ["--bands", summer, "--fill", spring, "--indices", indices, "--labels", labels]
    prepare += ["--scheme", "kaakonkulma-13", "--size", "256", "--out", f"{out}/stacks", "--seed", seed]
    train = [f"{out}/stacks", "--out", f"{out}/run", "--epochs", str(config.epochs)]
    train += ["--steps", str(config.steps), "--validation-steps", "10", "--filters", "16", "32", "64", "128"]
    train += ["--crop-sizes", "64", "128", "--validation-crop-sizes", "128"]
    train += ["--minutes", f"{config.minutes:g}", "--seed", seed]
    classify = [f"{out}/run", summer, indices, f"{out}/map.tif", "--fill", spring]
    evaluate = [f"{out}/map.tif", labels, "--regions", f"{out}/stacks/manifest.json", "--image", summer]
    evaluate += ["--run", f"{out}/run", "--out", f"{out}/report"]
    return [
        ["preprocess", *prepare, "--overwrite"],
        ["train_model", *train, "--overwrite"],
        ["make_classifications", *classify, "--overwrite"],
        ["evaluate_classifications", *evaluate, "--overwrite"],
    ]


def demonstrate(config: DemoConfig) -> Answer:
    """Simulate a scene, then run the commands; stop at the first that fails."""
    from lulc.demo.further import write_further
    from lulc.demo.landscape import simulate, write_scene

    started = time.monotonic()
    names = r"(summer|spring|autumn|sentinel1|elevation|indices|labels|map)\.tif"
    OwnFolder(Path(config.out), "demo", names, "the demonstration").take()
    rows, columns = SHAPE
    print(f"Simulating a scene of {rows} x {columns} pixels at 10 m (no measurement) into {config.out}/")
    scene = simulate(SHAPE, config.seed)
    write_scene(scene, config.out)
    write_further(scene, config.out)
    for name, *arguments in command_lines(config):
        print(f"\n$ python {name}.py {shlex.join(arguments)}", flush=True)
        code = importlib.import_module(f"lulc.cli.{name}").main(arguments)
        if code:
            raise SystemExit(code)
    paths = results(Path(config.out))
    lines = [f"{name:8} {path}" for name, path in paths.items()]
    lines.append(f"\n{time.monotonic() - started:.0f} s in all. The imagery is simulated.")
    return Answer("\n" + "\n".join(lines), {name: str(path) for name, path in paths.items()})


def results(out: Path) -> dict[str, Path]:
    """Return the paths of map, weights, history, report and picture."""
    from lulc.models.weights import find_model

    return {
        "map": out / "map.tif",
        "weights": find_model(str(out / "run"), "lowest-val-loss"),
        "history": out / "run" / "history.csv",
        "report": out / "report" / "report.html",
        "picture": out / "report" / "side-by-side.png",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    return run(DemoConfig, __doc__, demonstrate, argv)
