"""What each lever of the training gives, from the original's recipe to the default (docs/accuracy.md).

``screen`` goes from the original's recipe towards the default step by step and then changes one lever at a
time, at half width and 15 Mpx, scored on block 0 of the simulated Kaakonkulma by networks of blocks 1 and 2.
``refine`` changes one lever of the default at 40 Mpx, where a network has seen each pixel 27 times.
``held-out`` leaves out each of blocks 0 to 2 in turn, one with each seed, at 79 Mpx; temperatures come from
there where it was run, else from ``refine``. ``final`` trains the rows named on blocks 0 to 2, at 79 Mpx, and
scores them once on block 3; nothing is chosen there. The row ``default`` sees twice as many pixels, as the
default recipe does. A random forest per pixel stands beside them. A row that
is in ``benchmarks/results/ablation.json`` is not made again, and a run that was interrupted goes on;
``tables`` writes the tables anew from that file.

Example: python benchmarks/ablation.py screen --seeds 1
         python benchmarks/ablation.py held-out default --seeds 1 2 3
         python benchmarks/ablation.py final original default --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lulc.config import PreprocessConfig, TrainConfig  # noqa: E402
from lulc.core.storage import write_atomically  # noqa: E402
from lulc.evaluation.measures.metrics import Reliability, Scores  # noqa: E402
from lulc.models.calibration import calibrate, fit_temperature  # noqa: E402

if TYPE_CHECKING:
    from lulc.training.data.dataset import Dataset

SCENE = ROOT.parent / "shared" / "data" / "kaakonkulma-sim"
RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"
PACKAGE = logging.getLogger("lulc")

EPOCHS = 8
"""Of each training; their only use is that a run keeps its best models."""

LEAN = (32, 64, 128, 256, 256)
"""Filters of networks of five stages, the default among them."""

FULL, HALF = (32, 64, 128, 256), (16, 32, 64, 128)
"""Filters of the original network, and of one of half its width."""

COMMON: Mapping[str, Any] = {
    "crop_sizes": (128,), "validation_crop_sizes": (128,), "filters": HALF, "block": "transpose",
    "precision": "bfloat16", "average": 0.1,
}  # fmt: skip
"""Of all rows. One snapshot of the weights swings by 0.05, so that averages are scored on both sides."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Mpx of a training, the heading of its table, and what is scored: a stack left out, or block 3."""

    mpx: float
    heading: str
    scored: Literal["first", "each", "validation"]


STAGES: Mapping[str, Stage] = {
    "screen": Stage(15.0, "From the original on: 15 Mpx, scored on block 0", "first"),
    "refine": Stage(40.0, "Changes at half width and of the network: 40 Mpx, scored on block 0", "first"),
    "held-out": Stage(79.0, "79 Mpx, blocks 0 to 2 left out in turn, one a seed", "each"),
    "final": Stage(79.0, "79 Mpx, trained on blocks 0 to 2, scored on block 3", "validation"),
}

SMALL_BATCHES = {"batch_size": 2}
CORE = SMALL_BATCHES | {
    "optimizer": "adamw", "learning_rate": 0.003, "warmup": 100, "schedule": "cosine", "weight_decay": 0.01,
    "clip_norm": 1.0,
}  # fmt: skip
"""What single levers are added to: AdamW with decay and clipping, warm-up and cosine, small batches."""

ADJUSTED = CORE | {"loss": "logit-adjusted(tau=0.5)"}
TURNED = ADJUSTED | {"rotations": 4}
"""Angles between those of the pixels' grid smooth a crop, which no mosaic is when it is classified."""

ALIKE = {"recipe": "default", "balance": "stacks"}
ONE_STACK = ALIKE | {"batch_from": "one"}
"""The default before batches came from any stack."""

BY_PIXELS = {"recipe": "default", "balance": "pixels"}
"""The default before stacks were drawn by their classes."""

HALF_WIDTH = {"recipe": "default"}
"""The default before its network was a leaner one than the original's."""

DEFAULT: Mapping[str, Any] = {"recipe": "default", "filters": None, "block": None}
"""The default with its own network."""

PRETRAINED = "pretrained"
"""Stands in a row for the weights of a pretraining on the whole scene without labels, which is made first."""

LEVERS: Mapping[str, Mapping[str, Any]] = {
    "original": {},
    "original, full width": {"filters": FULL},
    "original, batches of 2": SMALL_BATCHES,
    "core": CORE,
    "core, weights by 1 over sqrt(n)": CORE | {"loss": "ce(weights=sqrt)"},
    "core, logit adjustment 0.5": ADJUSTED,
    "adjusted, gain 0.05, offset 20": ADJUSTED | {"gain": 0.05, "offset_jitter": 20.0},
    "adjusted, 4 angles": TURNED,
    "turned, tau 0.75": TURNED | {"loss": "logit-adjusted(tau=0.75)"},
    "turned, no averaged weights": TURNED | {"average": 0.0},
    "turned, rate 0.001": TURNED | {"learning_rate": 0.001},
    "turned, rare classes, all alike": TURNED | {"rare_classes": 0.33, "rare_temperature": 100.0},
    "turned, dropout 0.3": TURNED | {"dropout": 0.3},
    "turned, weight decay 0.1": TURNED | {"weight_decay": 0.1},
    "one stack a batch, no dropout": ONE_STACK | {"dropout": 0.0},
    "one stack a batch": ONE_STACK,
    "one stack a batch, full width": ONE_STACK | {"filters": FULL},
    "by pixels": BY_PIXELS,
    "by pixels, full width": BY_PIXELS | {"filters": FULL},
    "by pixels, a quarter of the width": BY_PIXELS | {"filters": (8, 16, 32, 64)},
    "all stacks alike": ALIKE,
    "alike, batches of 4": ALIKE | {"batch_size": 4},
    "half width": HALF_WIDTH,
    "half width, no dropout": HALF_WIDTH | {"dropout": 0.0},
    "half width, dropout 0.5": HALF_WIDTH | {"dropout": 0.5},
    "half width, weight decay 0.1": HALF_WIDTH | {"weight_decay": 0.1},
    "half width, gain 0.01, offset 5": HALF_WIDTH | {"gain": 0.01, "offset_jitter": 5.0},
    "half width, 16 angles": HALF_WIDTH | {"rotations": 16},
    "half width, crops of 256": HALF_WIDTH | {"crop_sizes": (256,), "batch_size": 1},
    "half width, three stages": HALF_WIDTH | {"filters": (16, 32, 64)},
    "half width, bottleneck": HALF_WIDTH | {"bottleneck": 2},
    "half width, float32": HALF_WIDTH | {"precision": "float32"},
    "half width, pretrained on the scene": HALF_WIDTH | {"init": PRETRAINED},
    "a quarter of the width": HALF_WIDTH | {"filters": (8, 16, 32, 64)},
    "full width": HALF_WIDTH | {"filters": FULL},
    "transpose, 5 stages": HALF_WIDTH | {"filters": LEAN, "decoder_filters": (128, 96, 64, 32, 32)},
    "upsample, 5 stages": HALF_WIDTH
    | {"filters": LEAN, "decoder_filters": (128, 64, 48, 32, 16), "block": "upsample"},
    "sum, 4 stages": HALF_WIDTH | {"filters": FULL, "block": "sum"},
    "default, half as long": DEFAULT,
    "default": DEFAULT,
}
"""What each row changes in the original's recipe."""

LONGER = {"default": 2.0}
"""How many times as many pixels as those of its stage a row trains on, where not once."""

FOREST = "random forest"
COLUMNS = (
    "micro-F1",
    "macro-F1",
    "macro-F1 of large classes",
    "grassland F1",
    "ECE",
    "classwise ECE",
    "seconds",
)
LARGE = 1000
"""Pixels of the reference from which a class is large."""


def main() -> int:
    """Make the rows that are missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "tables"))
    parser.add_argument("rows", nargs="*", help="those of its own for screen and refine, else three")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--mpx", type=float, help="Mpx of a training, for a trial of this script")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are stored")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation", help="for stacks and runs")
    parser.add_argument("--scene", type=Path, default=SCENE, help="folder of the simulated scene")
    options = parser.parse_args()
    PACKAGE.setLevel(logging.WARNING)
    if options.stage != "tables":
        make_rows(options, options.rows or rows_of(options.stage))
    if options.results == RESULTS:
        write_tables(read(RESULTS))
    return 0


def rows_of(stage: str) -> list[str]:
    """Names of the rows that a stage makes where none are asked for."""
    of_default = [name for name in LEVERS if name.startswith(("default", "by pixels", "all stacks", "alike"))]
    steps = [name for name in LEVERS if name not in (*of_default, "original, full width")]
    return {"screen": steps, "refine": of_default}.get(stage, [FOREST, "original", "default"])


def make_rows(options: argparse.Namespace, rows: Sequence[str]) -> None:
    """Measure and store each row that isn't stored yet."""
    for seed in options.seeds:
        for name in rows:
            key = f"{options.stage}/{name}/{seed}"
            if key in read(options.results):
                continue
            started = time.monotonic()
            stacks = make_stacks(options.scene, options.runs)
            measure = measure_forest if name == FOREST else measure_network
            row = measure(stacks, name, seed, options)
            row["seconds"] = round(time.monotonic() - started, 1)
            print(key, json.dumps({column: row[column] for column in COLUMNS}), flush=True)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(options.results) as temporary:
                stored = read(options.results) | {key: row}
                temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def make_stacks(scene: Path, folder: Path) -> Path:
    """The scene as four stacks, of which block 3 (lower right) validates."""
    from lulc.preprocessing.preprocess import make_stacks as prepare

    out = folder / "stacks"
    if not (out / "manifest.json").exists():
        prepare(PreprocessConfig(
            bands=(str(scene / "summer.tif"),), indices=(str(scene / "indices.tif"),),
            fill=(str(scene / "spring.tif"),), labels=str(scene / "labels.tif"),
            scheme="kaakonkulma-13", size=850, validation=("3",),
            out=str(out),
        ))  # fmt: skip
    return out


def config_of(stacks: Path, name: str, seed: int, options: argparse.Namespace) -> TrainConfig:
    """The training of one row; it sees as many pixels as the others of its stage."""
    out = options.runs / options.stage / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-{seed}"
    values = (
        {"data": (str(stacks),), "out": str(out), "recipe": "original", "seed": seed} | COMMON | LEVERS[name]
    )
    config = TrainConfig(**values).resolved()
    pixels = config.batch_size * float(np.mean(np.square(config.crop_sizes)))
    mpx = options.mpx or STAGES[options.stage].mpx * LONGER.get(name, 1.0)
    batches = max(EPOCHS, round(1e6 * mpx / pixels))
    init = f"{out}-pretraining" if config.init == PRETRAINED else config.init
    return dataclasses.replace(
        config, epochs=EPOCHS, steps=-(-batches // EPOCHS), validation_steps=round(1e6 / pixels),
        calibrate="none", init=init,
    )  # fmt: skip


def pretrain(config: TrainConfig, scene: Path) -> None:
    """Make the weights that a training starts from: as many pixels of the scene again, without labels."""
    from lulc.training.data.unlabelled import open_mosaic
    from lulc.training.run_folder import is_finished
    from lulc.training.train import inputs_of, train

    alike = ("batch_size", "seed", "epochs", "steps", "validation_steps")
    own = {name: getattr(config, name) for name in alike} | {"out": str(config.init)}
    rasters = tuple(str(scene / name) for name in ("summer.tif", "indices.tif"))
    pretraining = TrainConfig(pretrain=rasters, **COMMON | own).resolved()
    mosaic = open_mosaic(pretraining)
    if not is_finished(pretraining, inputs_of(pretraining, mosaic)):
        train(pretraining, mosaic)


def open_set(config: TrainConfig, stage: str) -> Dataset:
    """Stacks to train and score on."""
    from lulc.training.data.dataset import leave_one_out, open_dataset

    scored = STAGES[stage].scored
    if scored == "validation":
        return open_dataset(config)
    folds = leave_one_out(config)
    return folds[(config.seed - 1) % len(folds) if scored == "each" else 0][1]


def measure_network(stacks: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score a row; the last model counts, not the one that is best on what it is scored on."""
    from lulc.evaluation.measures import metrics as metrics_module
    from lulc.training.cross_validation import classify_left_out
    from lulc.training.run_folder import is_finished
    from lulc.training.train import inputs_of, train

    config = config_of(stacks, name, seed, options)
    dataset = open_set(config, options.stage)
    if LEVERS[name].get("init") == PRETRAINED:
        pretrain(config, options.scene)
    if not is_finished(config, inputs_of(config, dataset)):
        train(config, dataset)
    outcome = classify_left_out(config, dataset)
    stored = read(options.results)
    if STAGES[options.stage].scored != "validation":
        temperature = float(fit_temperature(outcome.probabilities, outcome.labels))
    else:
        temperature = temperature_of(stored, name)
    scores = metrics_module.score(outcome.confusion, dataset.legend)
    reliability = Reliability(len(dataset.legend))
    reliability.add(outcome.labels + 1, calibrate(outcome.probabilities[np.newaxis], temperature)[0])
    return figures(scores) | _errors(reliability) | {"temperature": temperature}


def temperature_of(stored: Mapping[str, Any], name: str) -> float:
    """What a row was calibrated to where blocks were left out, at 79 Mpx where that is known; else 1."""
    for stage in ("held-out", "refine"):
        found = [row["temperature"] for row in _by_row(stored, stage).get(name, [])]
        if found:
            return float(np.exp(np.mean(np.log(found))))
    return 1.0


def measure_forest(stacks: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A random forest of 150 trees on 60,000 pixels."""
    config = TrainConfig(data=(str(stacks),), out="-", recipe="original").resolved()
    return forest_on(open_set(config, options.stage), seed)


def forest_on(dataset: Dataset, seed: int, pixels: int = 60_000) -> dict[str, Any]:
    """Figures of a random forest of 150 trees per pixel, trained and scored on the two sides of a dataset."""
    from sklearn.ensemble import RandomForestClassifier

    from lulc.evaluation.measures import metrics as metrics_module

    x, y = _pixels(dataset.training)
    chosen = np.random.default_rng(seed).choice(len(y), min(pixels, len(y)), replace=False)
    forest = RandomForestClassifier(150, n_jobs=-1, random_state=seed).fit(x[chosen], y[chosen])
    x, y = _pixels(dataset.validation)
    classes = len(dataset.legend)
    p = np.zeros((len(y), classes), np.float32)
    p[:, forest.classes_ - 1] = forest.predict_proba(x)
    reliability = Reliability(classes)
    reliability.add(y, p)
    confusion = metrics_module.count(y, (p.argmax(1) + 1).astype(np.uint8), classes)
    return figures(metrics_module.score(confusion, dataset.legend)) | _errors(reliability)


def _pixels(tiles: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Valid labelled pixels of some stacks: float32 (pixel, band), uint8 (pixel,) 1..N."""
    images = np.concatenate([np.asarray(t.image).reshape(-1, t.image.shape[-1]) for t in tiles])
    labels = np.concatenate([t.masks[0 : t.masks.shape[0], 0 : t.masks.shape[1]].ravel() for t in tiles])
    usable = np.isfinite(images).all(1) & (labels != 255) & (labels != 0)
    return images[usable], labels[usable]


def figures(scores: Scores) -> dict[str, Any]:
    """What the tables show of some scores, and F1 and pixels of each class."""
    f1 = {c.name: c.f1 for c in scores.classes if c.f1 is not None}
    large = [c.f1 or 0.0 for c in scores.classes if c.support > LARGE]
    return {
        "micro-F1": scores.overall_accuracy,
        "macro-F1": scores.macro.f1 if scores.macro else 0.0,
        "macro-F1 of large classes": float(np.mean(large)),
        "grassland F1": next((value for name, value in f1.items() if "grass" in name.lower()), None),
        "F1": f1,
        "support": {c.name: c.support for c in scores.classes},
    }


def _errors(reliability: Reliability) -> dict[str, float]:
    found = reliability.result()
    return {"ECE": found.ece, "classwise ECE": found.classwise_ece} if found else {}


def read(path: Path) -> dict[str, Any]:
    """Rows by stage/name/seed; none where nothing was measured yet."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_tables(stored: Mapping[str, Any]) -> None:
    """Write all tables beside the stored rows, as Markdown."""
    parts = [
        f"## {stage.heading}\n\n{table(stored, name)}"
        for name, stage in STAGES.items()
        if _by_row(stored, name)
    ]
    if finals := _by_row(stored, "final"):
        parts.append(f"## F1 of each class on block 3\n\n{class_table(finals)}")
    with write_atomically(RESULTS.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(["# Accuracy by lever", *parts]) + "\n", encoding="utf-8")


def table(stored: Mapping[str, Any], stage: str) -> str:
    """Mean and spread over seeds of each row, as Markdown, in the order of `LEVERS`."""
    rows = _by_row(stored, stage)
    lines = ["| | seeds | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for name in _in_order(rows):
        cells = [_cell([row[column] for row in rows[name]], column) for column in COLUMNS]
        lines.append(f"| {name} | {len(rows[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def class_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Mean F1 of each class over seeds, a column for each row of the stage."""
    names = _in_order(rows)
    support = rows[names[0]][0]["support"]
    lines = ["| | pixels | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for of_class, pixels in support.items():
        cells = [_cell([row["F1"].get(of_class) for row in rows[name]], of_class) for name in names]
        lines.append(f"| {of_class} | {pixels:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], column: str) -> str:
    form = "{:.0f}" if column == "seconds" else "{:.3f}"
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {form.format(np.std(known, ddof=1))}" if len(known) > 1 else ""
    return form.format(np.mean(known)) + spread


def _in_order(rows: Mapping[str, Any]) -> list[str]:
    """Names of rows in the order of `LEVERS`; last those of levers that were measured and then removed."""
    known = [name for name in (FOREST, *LEVERS) if name in rows]
    return [*known, *(name for name in rows if name not in known)]


def _by_row(stored: Mapping[str, Any], stage: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for key, row in stored.items():
        of_stage, name, _ = key.split("/")
        if of_stage == stage:
            rows.setdefault(name, []).append(row)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
