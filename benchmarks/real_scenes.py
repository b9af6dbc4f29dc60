"""The default recipe on small real scenes with a common level-1 legend (docs/accuracy.md).

Seven scenes of Sentinel-2 in ``shared/data`` with three kinds of labels become four classes by the tables in
``docs/real-scenes``: artificial, agricultural, forest and semi-natural, water; wetland, which has next to no
pixels, is ignored, as are snow and cloud. Each scene is left out once and classified by networks, and by a
random forest per pixel, of the others. The two parts of the Sundarbans are scenes of their own: when one is
left out, the other trains. A row that is in ``benchmarks/results/real-scenes.json`` is not made again;
``--ship`` trains the network of ``weights/level1-sentinel2`` on the patches of TerraMesh alone, whose terms
allow it, and scores it on the other scenes.

Example: python benchmarks/real_scenes.py --seeds 1 2 3
         python benchmarks/real_scenes.py --ship
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from ablation import figures, forest_on  # noqa: E402

from lulc.config import PreprocessConfig, TrainConfig  # noqa: E402
from lulc.core.storage import write_atomically  # noqa: E402
from lulc.evaluation.measures import metrics  # noqa: E402
from lulc.models.weights import find_model, load_card  # noqa: E402

if TYPE_CHECKING:
    from lulc.training.data.dataset import Dataset, Tile

DATA = ROOT.parent / "shared" / "data"
SCHEMES = ROOT / "docs" / "real-scenes"
RUNS = ROOT / "runs" / "real-scenes"
RESULTS = ROOT / "benchmarks" / "results" / "real-scenes.json"


@dataclasses.dataclass(frozen=True)
class Scene:
    """Files of a scene in ``shared/data``, its table of codes, and how its numbers become reflectance."""

    image: str
    labels: str
    scheme: str
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _patch(name: str, **options: float) -> Scene:
    return Scene(f"terramesh/{name}_l2a.tif", f"terramesh/{name}_labels.tif", "terramesh", options)


def _delta(part: str) -> Scene:
    options = {"scale": 1 / 65535}
    return Scene(f"sundarbans/{part}_l2a.tif", f"sundarbans/{part}_labels.tif", "sundarbans", options)


SCENES: Mapping[str, Scene] = {
    "brazil": _patch("brazil"),
    "chile": _patch("chile", offset=-1000.0),
    "denmark": _patch("denmark"),
    "tanzania": _patch("tanzania"),
    "wroclaw": Scene("wroclaw/sentinel2_l2a.tif", "wroclaw/labels.tif", "wroclaw"),
    "sundarbans-north": _delta("north"),
    "sundarbans-south": _delta("south"),
}
"""The patch of Ontario is left out: all of it is snow."""

SHIPPED = ("brazil", "chile", "denmark", "tanzania")
"""Scenes whose terms allow weights to be passed on."""

SETTINGS: Mapping[str, Any] = {
    "filters": (16, 32, 64, 128), "block": "transpose", "crop_sizes": (64,), "validation_crop_sizes": (64,),
    "batch_size": 4,
    "precision": "bfloat16", "epochs": 4, "validation_steps": 8, "calibrate": "one",
}  # fmt: skip
"""Of all trainings: half width, and crops that fit the smallest scene at every angle."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "original": {"recipe": "original", "average": 0.1},
    "by pixels": {"recipe": "default", "balance": "pixels"},
    "default": {"recipe": "default"},
}
"""Rows beside the forest; all are scored on averaged weights."""

FOREST, SHIP, AVERAGED = "random forest", "shipped", "by pixels, mean of seven"
MEMBERS = 7
"""Networks of different seeds whose activations are averaged. `make_classifications.py --ensemble` calibrates
each by itself before; here one temperature is fitted to the mean."""

MPX = 8.0
FOREST_PIXELS = 20_000
FIGURES = ("macro-F1 of large classes", "micro-F1", "ECE")
"""Of the tables; a class of which a scene has 1,000 pixels or fewer says little."""


def main() -> int:
    """Make what is missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    rows = [FOREST, *RECIPES, AVERAGED]
    parser.add_argument("rows", nargs="*", default=rows, help=f"of {', '.join(rows)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--mpx", type=float, default=MPX, help="Mpx of a training (default: %(default)s)")
    parser.add_argument("--ship", action="store_true", help="train on TerraMesh alone, score on the others")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are stored")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "real-scenes", help="for stacks and runs"
    )
    options = parser.parse_args()
    logging.getLogger("lulc").setLevel(logging.ERROR)
    for seed in options.seeds:
        for name in [SHIP] if options.ship else options.rows:
            key = f"{name}/{seed}"
            if key in _read(options.results):
                continue
            found = MEASURES.get(name, measure_networks)(name, seed, options)
            print(key, f"macro-F1 {np.mean([scene['macro-F1'] for scene in found.values()]):.3f}", flush=True)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(options.results) as temporary:
                stored = _read(options.results) | {key: found}
                temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    if options.results == RESULTS:
        write_tables(_read(RESULTS))
    return 0


def make_stacks(runs: Path, names: Sequence[str], **changes: Any) -> tuple[str, ...]:
    """Folders of the scenes, of one training stack each where nothing else is asked for."""
    from lulc.preprocessing.preprocess import make_stacks as prepare

    options: dict[str, Any] = {"size": 512, "validation": ("0.0",)} | changes
    folders = [runs / f"stacks-{options['size']}" / name for name in names]
    for name, out in zip(names, folders, strict=True):
        if not (out / "manifest.json").exists():
            scene = SCENES[name]
            prepare(PreprocessConfig(
                bands=(str(DATA / scene.image),), labels=str(DATA / scene.labels), out=str(out),
                scheme=str(SCHEMES / f"{scene.scheme}.csv"), **options | dict(scene.options),
            ))  # fmt: skip
    return tuple(map(str, folders))


def config_of(data: tuple[str, ...], name: str, seed: int, options: argparse.Namespace) -> TrainConfig:
    """A training on some folders."""
    pixels = SETTINGS["batch_size"] * SETTINGS["crop_sizes"][0] ** 2
    steps = max(1, round(1e6 * options.mpx / pixels / SETTINGS["epochs"]))
    # The default of before, which the network that is shipped was trained with.
    recipe = RECIPES["by pixels" if name == SHIP else name]
    out = str(options.runs / f"{name}-{seed}")
    return TrainConfig(data=data, out=out, seed=seed, steps=steps, **dict(SETTINGS | recipe)).resolved()


def measure_networks(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each scene from a network of the others."""
    from lulc.training.cross_validation import cross_validate

    found = cross_validate(config_of(make_stacks(options.runs, tuple(SCENES)), name, seed, options))
    return {fold.name.split("/")[0]: figures(fold.scores) | {"ECE": fold.ece} for fold in found.folds}


def measure_averaged(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each scene from the mean of several networks of the others."""
    from lulc.models.calibration import fit_temperature
    from lulc.training.cross_validation import classify_left_out, cross_validate
    from lulc.training.data.dataset import leave_one_out

    data = make_stacks(options.runs, tuple(SCENES))
    seeds = range(MEMBERS * (seed - 1) + 1, MEMBERS * seed + 1)
    runs = [cross_validate(config_of(data, "by pixels", number, options)) for number in seeds]
    config = config_of(data, "by pixels", seeds[0], options)
    outcomes = {}
    for number, (left_out, dataset) in enumerate(leave_one_out(config)):
        out, *others = (str(run.folds[number].folder) for run in runs)
        outcomes[left_out] = classify_left_out(dataclasses.replace(config, out=out), dataset, others)
    pooled = ([getattr(o, field) for o in outcomes.values()] for field in ("activations", "labels"))
    temperature = fit_temperature(*map(np.concatenate, pooled))
    return {
        left_out.split("/")[0]: figures(metrics.score(outcome.confusion, dataset.legend))
        | {"ECE": outcome.ece(temperature)}
        for left_out, outcome in outcomes.items()
    }


def measure_forest(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each scene from a random forest of the others."""
    from lulc.training.data.dataset import leave_one_out

    config = config_of(make_stacks(options.runs, tuple(SCENES)), "default", seed, options)
    return {
        left_out.split("/")[0]: forest_on(dataset, seed, FOREST_PIXELS)
        for left_out, dataset in leave_one_out(config)
    }


def open_shipped(seed: int, options: argparse.Namespace) -> tuple[TrainConfig, Dataset]:
    """The training of the weights that are shipped; a quarter of each patch validates.

    Everything in their card comes from the patches.
    """
    from lulc.training.data.dataset import open_dataset

    folders = make_stacks(options.runs, SHIPPED, size=112, validation=("0.25",), gap=16)
    config = config_of(folders, SHIP, seed, options)
    return config, open_dataset(config)


def measure_shipped(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the scenes that may not be trained on, from one network of the patches that may."""
    from lulc.training.cross_validation import classify_left_out
    from lulc.training.train import train

    config, dataset = open_shipped(seed, options)
    train(config, dataset)
    card = load_card(find_model(config.out, "last"))
    found = {}
    for scene in [n for n in SCENES if n not in SHIPPED]:
        tiles = _tiles(make_stacks(options.runs, (scene,))[0])
        outcome = classify_left_out(config, dataclasses.replace(dataset, validation=tiles))
        scores = metrics.score(outcome.confusion, dataset.legend)
        found[scene] = figures(scores) | {"ECE": outcome.ece(card.temperature)}
    return found


MEASURES = {FOREST: measure_forest, SHIP: measure_shipped, AVERAGED: measure_averaged}
"""Of the rows that are no single network."""


def _tiles(folder: str) -> tuple[Tile, ...]:
    from lulc.datasets.loading import load_manifest
    from lulc.datasets.manifest import open_tile
    from lulc.training.data.dataset import Tile

    return tuple(Tile(stack.name, *open_tile(stack)) for stack in load_manifest(folder).stacks)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_tables(stored: Mapping[str, Any]) -> None:
    """Write the tables beside the stored rows, as Markdown."""
    names = [name for name in (FOREST, *RECIPES, AVERAGED) if f"{name}/" in "".join(stored)]
    parts = [table(stored, names, tuple(SCENES))] if names else []
    if any(key.startswith(f"{SHIP}/") for key in stored):
        others = tuple(name for name in SCENES if name not in SHIPPED)
        title = "The network of `weights/level1-sentinel2` on the scenes that it was not trained on:"
        parts.append(f"{title}\n\n{table(stored, [SHIP], others)}")
    with write_atomically(RESULTS.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(["# Real scenes", *parts]) + "\n", encoding="utf-8")


def table(stored: Mapping[str, Any], names: Sequence[str], scenes: Sequence[str]) -> str:
    """Macro-F1 and micro-F1 of each scene and their mean, with the spread over seeds, as Markdown."""
    columns = [f"{name}, {figure.split(' ')[0]}" for figure in FIGURES for name in names]
    lines = ["| left out | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    rows = {name: [row for key, row in stored.items() if key.split("/")[0] == name] for name in names}
    for scene in (*scenes, "mean"):
        shown = scenes if scene == "mean" else (scene,)
        cells = [
            _cell([float(np.mean([row[s][figure] for s in shown])) for row in rows[name]])
            for figure in FIGURES
            for name in names
        ]
        lines.append(f"| {scene} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    raise SystemExit(main())
