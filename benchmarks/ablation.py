"""What each lever of the training gives, from the original's recipe to the default (docs/accuracy.md).

``screen`` changes the original's recipe by one lever at a time, at half width and 15 Mpx, and scores by
leaving out one of blocks 0 to 2 of the simulated Kaakonkulma after the other. ``final`` trains the recipes
named at full width and 79 Mpx, on blocks 0 to 2, and scores them once on block 3; nothing is chosen there. A
random forest per pixel stands beside both. A row that is in ``benchmarks/results/ablation.json`` is not made
again, and a run that was interrupted goes on; ``tables`` writes the document anew from that file.

Example: python benchmarks/ablation.py screen --seeds 1 2 3
         python benchmarks/ablation.py final original default --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lulc.config import PreprocessConfig, TrainConfig  # noqa: E402
from lulc.storage import write_atomically  # noqa: E402

SCENE = ROOT.parent / "shared" / "data" / "kaakonkulma-sim"
RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"
DOCUMENT = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- written by benchmarks/ablation.py -->", "<!-- end of what it wrote -->"
PACKAGE = logging.getLogger("lulc")

COMMON = {"batch_size": 8, "crop_sizes": (128,), "validation_crop_sizes": (128,), "calibrate": "one"}
"""Of all rows: the crops of the first measurements, and a temperature fitted on all folds."""

STAGES: Mapping[str, tuple[tuple[int, ...], float]] = {
    "screen": ((16, 32, 64, 128), 15.0),
    "final": ((32, 64, 128, 256), 79.0),
}
"""Filters and Mpx of a training."""

LEVERS: Mapping[str, Mapping[str, Any]] = {
    "original": {},
    "averaged weights": {"average": 0.02},
    "AdamW": {"optimizer": "adamw"},
    "warm-up and cosine": {"warmup": 100, "schedule": "cosine"},
    "weight decay 0.01": {"weight_decay": 0.01},
    "gradients clipped at 1": {"clip_norm": 1.0},
    "rare classes, T 0.5": {"rare_classes": 0.33, "rare_temperature": 0.5},
    "rare classes, T 0.1": {"rare_classes": 0.33, "rare_temperature": 0.1},
    "rare classes, all alike": {"rare_classes": 0.33, "rare_temperature": 100.0},
    "stacks by their classes": {"balance": "classes"},
    "copy-paste, 1 a crop": {"copy_paste": 1.0},
    "copy-paste, 3 a crop": {"copy_paste": 3.0},
    "any angle": {"rotations": 0},
    "scale 1.25": {"scale": 1.25},
    "gain 0.05": {"gain": 0.05},
    "offset 30": {"offset_jitter": 30.0},
    "haze 200": {"haze": 200.0},
    "channel dropout 0.05": {"channel_dropout": 0.05},
    "CutMix": {"mix": "cutmix"},
    "ClassMix": {"mix": "classmix"},
    "weights by 1 over sqrt(n)": {"loss": "ce(weights=sqrt)"},
    "weights by 1 over n": {"loss": "ce(weights=inverse)"},
    "effective number": {"loss": "ce(weights=effective)"},
    "focal": {"loss": "focal"},
    "ce + 0.5 dice": {"loss": "ce+0.5*dice"},
    "ce + 0.5 focal Tversky": {"loss": "ce+0.5*focal-tversky"},
    "ce + 0.5 Lovasz": {"loss": "ce+0.5*lovasz"},
    "logit adjustment": {"loss": "logit-adjusted"},
    "label smoothing 0.1": {"loss": "ce(smoothing=0.1)"},
    "symmetric": {"loss": "symmetric"},
    "bootstrapping, soft": {"loss": "bootstrap-soft"},
    "two bottleneck convolutions": {"bottleneck": 2},
    "default": {"recipe": "default"},
}
"""What each row changes in the original's recipe."""

FOREST = "random forest"
COLUMNS = ("micro-F1", "macro-F1", "macro-F1 of large classes", "grassland F1", "ECE", "seconds")
LARGE = 1000
"""Pixels of the reference from which a class is large."""


def main() -> int:
    """Make the rows that are missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "tables"))
    parser.add_argument("rows", nargs="*", help="all of them for screen; original and default for final")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--mpx", type=float, help="Mpx of a training, for a trial of this script")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are stored")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation", help="for stacks and runs")
    parser.add_argument("--scene", type=Path, default=SCENE, help="folder of the simulated scene")
    options = parser.parse_args()
    PACKAGE.setLevel(logging.WARNING)
    if options.stage != "tables":
        rows = options.rows or [FOREST, *(LEVERS if options.stage == "screen" else ("original", "default"))]
        make_rows(options, rows)
    if options.results == RESULTS:
        write_tables(_read(RESULTS))
    return 0


def make_rows(options: argparse.Namespace, rows: Sequence[str]) -> None:
    """Measure and store each row that isn't stored yet."""
    measure = {"screen": _screen, "final": _final}[options.stage]
    for seed in options.seeds:
        for name in rows:
            key = f"{options.stage}/{name}/{seed}"
            stored = _read(options.results)
            if key in stored:
                continue
            started = time.monotonic()
            stacks = make_stacks(options.scene, options.runs)
            figures = measure_forest(stacks, options.stage, seed) if name == FOREST else measure(
                stacks, name, seed, options
            )  # fmt: skip
            figures["seconds"] = round(time.monotonic() - started, 1)
            print(key, json.dumps({column: figures[column] for column in COLUMNS}), flush=True)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(options.results) as temporary:
                temporary.write_text(json.dumps(stored | {key: figures}, indent=1) + "\n", encoding="utf-8")


def make_stacks(scene: Path, folder: Path) -> Path:
    """The scene as four stacks, of which block 3 (lower right) validates."""
    from lulc.preparation import make_stacks as prepare

    out = folder / "stacks"
    if not (out / "manifest.json").exists():
        prepare(PreprocessConfig(
            bands=(str(scene / "summer.tif"),), indices=(str(scene / "indices.tif"),),
            fill=(str(scene / "spring.tif"),), labels=str(scene / "labels.tif"), size=850, validation=("3",),
            out=str(out),
        ))  # fmt: skip
    return out


def config_of(stacks: Path, stage: str, name: str, seed: int, options: argparse.Namespace) -> TrainConfig:
    """The training of one row; its length is the same for all rows of a stage."""
    filters, mpx = STAGES[stage]
    batches = max(4, round((options.mpx or mpx) * 1e6 / (COMMON["batch_size"] * 128**2)))  # type: ignore[operator]
    out = options.runs / stage / f"{name.replace(' ', '-').replace('/', '')}-{seed}"
    values: dict[str, Any] = {
        "data": (str(stacks),), "out": str(out), "recipe": "original", "seed": seed, "filters": filters,
        "epochs": 4, "steps": -(-batches // 4), "validation_steps": 4,
    }  # fmt: skip
    return TrainConfig(**values | COMMON | LEVERS[name]).resolved()


def _screen(stacks: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    from lulc.folds import cross_validate

    found = cross_validate(config_of(stacks, "screen", name, seed, options))
    each = [_figures(fold.scores, fold.ece) for fold in found.folds]
    return _mean(each) | {"temperature": found.temperature}


def _final(stacks: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    from lulc import accuracy
    from lulc.dataset import open_dataset
    from lulc.folds import classify_left_out
    from lulc.run import is_finished
    from lulc.training import inputs_of, train

    # Both sides are scored on averaged weights: one snapshot swings by 0.05.
    config = config_of(stacks, "final", name, seed, options)
    config = dataclasses.replace(config, average=config.average or 0.02, calibrate="none")
    dataset = open_dataset(config)
    if not is_finished(config, inputs_of(config, dataset)):
        train(config, dataset)
    outcome = classify_left_out(config, dataset)
    screened = [
        v["temperature"] for k, v in _read(options.results).items() if k.startswith(f"screen/{name}/")
    ]
    temperature = float(np.exp(np.mean(np.log(screened)))) if screened else 1.0
    scores = accuracy.score(outcome.confusion, dataset.legend)
    return _figures(scores, outcome.ece(temperature)) | {"temperature": temperature}


def measure_forest(stacks: Path, stage: str, seed: int) -> dict[str, Any]:
    """A random forest of 150 trees on 60,000 pixels; the screening leaves out one block after the other."""
    from sklearn.ensemble import RandomForestClassifier

    from lulc import accuracy
    from lulc.accuracy import Reliability
    from lulc.dataset import leave_one_out, open_dataset

    config = TrainConfig(data=(str(stacks),), out="-", recipe="original").resolved()
    sets = [d for _, d in leave_one_out(config)] if stage == "screen" else [open_dataset(config)]
    each = []
    for dataset in sets:
        x, y = _pixels(dataset.training)
        chosen = np.random.default_rng(seed).choice(len(y), min(60_000, len(y)), replace=False)
        forest = RandomForestClassifier(150, n_jobs=-1, random_state=seed).fit(x[chosen], y[chosen])
        x, y = _pixels(dataset.validation)
        classes = len(dataset.legend)
        p = np.zeros((len(y), classes), np.float32)
        p[:, forest.classes_ - 1] = forest.predict_proba(x)
        reliability = Reliability(classes)
        reliability.add(y, p)
        confusion = accuracy.count(y, (p.argmax(1) + 1).astype(np.uint8), classes)
        found = reliability.result()
        each.append(_figures(accuracy.score(confusion, dataset.legend), found.ece if found else 0.0))
    return _mean(each)


def _pixels(tiles: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Valid labelled pixels of some stacks: float32 (pixel, band), uint8 (pixel,) 1..N."""
    images = np.concatenate([np.asarray(t.image).reshape(-1, t.image.shape[-1]) for t in tiles])
    labels = np.concatenate([np.asarray(t.masks).ravel() for t in tiles])
    usable = np.isfinite(images).all(1) & (labels != 255) & (labels != 0)
    return images[usable], labels[usable]


def _figures(scores: Any, ece: float) -> dict[str, Any]:
    f1 = {c.name: c.f1 for c in scores.classes if c.f1 is not None}
    large = [c.f1 or 0.0 for c in scores.classes if c.support > LARGE]
    return {
        "micro-F1": scores.overall_accuracy,
        "macro-F1": scores.macro.f1,
        "macro-F1 of large classes": float(np.mean(large)),
        "grassland F1": next((value for name, value in f1.items() if "grass" in name.lower()), None),
        "ECE": ece,
        "F1": f1,
    }


def _mean(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of the folds; a class that a fold lacks is left out of its mean."""
    names = [name for name in each[0] if name != "F1"]
    values = {name: [row[name] for row in each if row[name] is not None] for name in names}
    classes = {name for row in each for name in row["F1"]}
    means: dict[str, Any] = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    for name in sorted(classes):
        of_class = [row["F1"][name] for row in each if name in row["F1"]]
        means.setdefault("F1", {})[name] = float(np.mean(of_class))
    return means


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_tables(stored: Mapping[str, Any]) -> None:
    """Put the tables between their marks in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    headings = {
        "screen": "One lever at a time: half width, 15 Mpx, mean of blocks 0 to 2 left out in turn",
        "final": "Full width, 79 Mpx, trained on blocks 0 to 2, scored on block 3",
    }
    parts = [f"### {headings[stage]}\n\n{table(stored, stage)}" for stage in STAGES if _by_row(stored, stage)]
    if not parts:
        parts = ["*Nothing measured yet: the commands above make the tables.*"]
    with write_atomically(DOCUMENT) as temporary:
        temporary.write_text("\n\n".join([before + BEGIN, *parts, END + after]), encoding="utf-8")


def table(stored: Mapping[str, Any], stage: str) -> str:
    """Mean and spread over seeds of each row, as Markdown, in the order of `LEVERS`."""
    rows = _by_row(stored, stage)
    lines = ["| | seeds | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for name in [n for n in (FOREST, *LEVERS) if n in rows]:
        cells = [_cell([row[column] for row in rows[name]], column) for column in COLUMNS]
        lines.append(f"| {name} | {len(rows[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], column: str) -> str:
    form = "{:.0f}" if column == "seconds" else "{:.3f}"
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {form.format(np.std(known, ddof=1))}" if len(known) > 1 else ""
    return form.format(np.mean(known)) + spread


def _by_row(stored: Mapping[str, Any], stage: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for key, figures in stored.items():
        of_stage, name, _ = key.split("/")
        if of_stage == stage:
            rows.setdefault(name, []).append(figures)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
