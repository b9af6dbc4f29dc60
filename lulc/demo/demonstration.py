"""Simulate a Sentinel-2 scene and take it through the four commands: prepare, train, classify, evaluate.

The result is a folder with the scene, its stacks, a trained run, a map and a report. The commands are
printed as one would type them. The imagery is simulated, and the network narrow and briefly trained: this
shows that everything works and how, not how good a map can be.

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
    """The four commands of the demonstration, each with its arguments."""
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
    evaluate += ["--run", f"{out}/run"]
    evaluate += ["--out", f"{out}/report"]
    named = {
        "preprocess": prepare,
        "train_model": train,
        "make_classifications": classify,
        "evaluate_classifications": evaluate,
    }
    return [[name, *arguments, "--overwrite"] for name, arguments in named.items()]


def demonstrate(config: DemoConfig) -> Answer:
    """Simulate, then run the commands one after the other; stops at the first that fails."""
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
    where = results(Path(config.out))
    lines = [f"{what:8} {path}" for what, path in where.items()]
    seconds = time.monotonic() - started
    lines.append(f"\n{seconds:.0f} s in all. The imagery is simulated.")
    return Answer("\n" + "\n".join(lines), {name: str(path) for name, path in where.items()})


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
