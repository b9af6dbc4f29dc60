"""Maps from a few polygons against random forests of the same polygons (docs/accuracy.md).

``shared/tools/few_labels.py`` draws eight polygons of at most 80 pixels for each class in one half of a real
scene, and grows two forests on them. Here `preprocess.py`, `train_model.py` and `make_classifications.py` run
on the same polygons without an option of their own, and every map is scored on the other half. In
``kaakonkulma-sim-N``, simulated imagery, N polygons a class lie in blocks 0 to 2, and block 3 is scored.
``czech-forest`` is densely labelled: 120 chips in five strips from west to east, each strip left out once.
A row that is in ``benchmarks/results/few-labels.json`` is not made again.

Example: python benchmarks/few_labels.py --drawings 1 2 3 4 5 6 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lulc  # noqa: E402
from lulc.config import TrainConfig  # noqa: E402
from lulc.core.storage import write_atomically  # noqa: E402
from lulc.evaluation.measures import metrics  # noqa: E402
from lulc.evaluation.measures.metrics import Scores  # noqa: E402

SHARED = ROOT.parent / "shared"
TOOL = SHARED / "tools" / "few_labels.py"
RESULTS = ROOT / "benchmarks" / "results" / "few-labels.json"

LARGE = 300
"""Pixels of the test half from which a class counts."""

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")

SCENES: Mapping[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    **{
        name: (f"terramesh/{name}_l2a.tif", f"terramesh/{name}_labels.tif", {}, (1, 2, 3, 4, 5, 6, 9))
        for name in ("brazil", "denmark", "tanzania")
    },
    "chile": ("terramesh/chile_l2a.tif", "terramesh/chile_labels.tif", {"offset": -1000.0},
              (1, 2, 3, 4, 5, 6, 9)),
    "wroclaw": ("wroclaw/sentinel2_l2a.tif", "wroclaw/labels.tif", {}, (1, 2, 5, 6, 7, 8)),
    **{
        f"sundarbans-{part}": (f"sundarbans/{part}_l2a.tif", f"sundarbans/{part}_labels.tif",
                               {"scale": 1 / 65535}, (1, 3, 4, 5))
        for part in ("north", "south")
    },
}  # fmt: skip
"""Image, labels, options for reading them, and the codes that are classes."""

KAAKONKULMA = ("kaakonkulma-sim/summer.tif", "kaakonkulma-sim/labels.tif", {}, tuple(range(1, 14)))
"""The same of the simulated scene."""

SIMULATED: Mapping[str, int] = {f"kaakonkulma-sim-{number}": number for number in (8, 20, 50)}
"""Rows of the simulated scene, and polygons a class of each."""

HELD = (slice(850, None), slice(850, None))
"""Block 3 of the simulated scene."""

CHIPS, STRIPS = "czech-forest", 5
"""Row of the chips, and how many folds they make."""

CHIP_BANDS = ("B01", *BANDS[:7], "B8A", "B09", *BANDS[7:])
"""Bands of a chip, whose files don't name them."""


def main() -> int:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [*SCENES, *SIMULATED, CHIPS]
    parser.add_argument("--scenes", nargs="+", default=names, choices=names)
    parser.add_argument("--drawings", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the trainings")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are stored")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "few-labels", help="for drawings and runs"
    )
    options = parser.parse_args()
    for drawing in options.drawings:
        for name in options.scenes:
            for seed in options.seeds:
                key = f"{name}/{drawing}/{seed}"
                if key not in (stored := _read(options.results)) and (name != CHIPS or drawing == 1):
                    row = measure(name, drawing, seed, options.runs)
                    print(key, json.dumps(row), flush=True)
                    options.results.parent.mkdir(parents=True, exist_ok=True)
                    with write_atomically(options.results) as temporary:
                        temporary.write_text(json.dumps(stored | {key: row}, indent=1) + "\n")
    print(table(_read(options.results)))
    return 0


def measure(name: str, drawing: int, seed: int, runs: Path) -> dict[str, Any]:
    """Draw, train, classify and score one scene."""
    if name == CHIPS:
        return measure_chips(seed, runs)
    image, labels, reading, codes = SCENES.get(name, KAAKONKULMA)
    folder = runs / f"{name}-{drawing}"
    scheme = _write_scheme(runs / f"{name}.csv", codes)
    if not (folder / "info.json").exists():
        draw(name, drawing, folder, SHARED / "data" / labels, scheme)
    nine = _nine_bands(SHARED / "data" / image, folder / "bands.tif", reading)
    row = {"forests": forests(nine, folder)}
    with rasterio.open(nine) as file:
        missing = (file.read() == 0).any(axis=0)
    started = time.monotonic()
    manifest = lulc.make_stacks(
        bands=[str(nine)], labels=str(folder / "train.gpkg"), scheme=str(scheme), out=str(folder / "stacks"),
        scale=1e-4, offset=0,
    )  # fmt: skip
    found = manifest.provenance["labelled"]
    row["labels used"] = (found["training"] + found["validation"]) / found["given"]
    run = folder / f"run-{seed}"
    lulc.train(data=[str(folder / "stacks")], out=str(run), seed=seed, overwrite=True)
    row["minutes"] = round((time.monotonic() - started) / 60, 2)
    out = folder / f"default-{seed}.tif"
    lulc.classify(model=str(run), inputs=[str(nine)], out=str(out), scale=1e-4, offset=0, overwrite=True)
    with rasterio.open(out) as file:
        numbers = file.read(1).astype(int)
    row["default"] = score(np.r_[0, codes][np.maximum(numbers, 0)], folder, missing)
    return row


def measure_chips(seed: int, runs: Path) -> dict[str, Any]:
    """Cross-validate the default recipe on strips of chips, and the forest that is kept with each fold."""
    from lulc.training.cross_validation import classify_left_out, cross_validate
    from lulc.training.data.dataset import leave_one_out

    folder = runs / CHIPS
    started = time.monotonic()
    manifest = lulc.make_stacks(
        bands=[str(list_chips(folder))], scheme=str(_write_scheme(runs / f"{CHIPS}.csv", range(4))),
        band_names=CHIP_BANDS, out=str(folder / "stacks"), validation=["none"], scale=1e-4, offset=0,
    )  # fmt: skip
    config = TrainConfig(
        data=(str(folder / "stacks"),), out=str(folder / f"run-{seed}"), seed=seed, cross_validate="scenes"
    )
    found = cross_validate(config)
    minutes = round((time.monotonic() - started) / 60, 2)
    tables = [
        classify_left_out(
            dataclasses.replace(config, out=str(fold.folder / "baseline.npz")), dataset
        ).confusion
        for fold, (_, dataset) in zip(found.folds, leave_one_out(config), strict=True)
    ]
    forest = metrics.score(np.sum(tables, axis=0), manifest.legend)
    labelled = manifest.provenance["labelled"]
    return {
        "forests": {"texture": _figures(forest)},
        "labels used": (labelled["training"] + labelled["validation"]) / labelled["given"],
        "minutes": minutes,
        "default": _figures(found.pooled),
    }


def list_chips(folder: Path) -> Path:
    """Write the table of chips, and their labels without the no data that hides the class of code 0."""
    source, table = SHARED / "data" / CHIPS, folder / "chips.csv"
    if table.exists():
        return table
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    west = {}
    for path in sorted((source / "labels").glob("*.tif")):
        with rasterio.open(path) as file:
            west[path.name], codes, profile = file.bounds.left, file.read(), file.profile
        with rasterio.open(folder / "labels" / path.name, "w", **profile | {"nodata": None}) as file:
            file.write(codes)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["bands", "labels", "group"])
        for place, name in enumerate(sorted(west, key=west.__getitem__)):
            strip = f"strip {place * STRIPS // len(west) + 1}"
            rows.writerow([source / "images" / name, f"labels/{name}", strip])
    return table


def _figures(scores: Scores) -> list[float]:
    """Macro-F1 over large classes, and accuracy."""
    large = [c.f1 or 0.0 for c in scores.classes if c.support > LARGE]
    return [round(float(np.mean(large)), 4), round(scores.overall_accuracy or 0.0, 4)]


def draw(name: str, drawing: int, folder: Path, labels: Path, scheme: Path) -> None:
    """Draw polygons, and write what is scored."""
    reference, options = labels, ["--seed", str(drawing), "--legend", str(scheme)]
    if name in SIMULATED:
        # The tool draws in one side of a raster: here in all of it, without block 3.
        reference = folder / "blocks.tif"
        options += ["--share", "1", "--polygons", str(SIMULATED[name])]
        folder.mkdir(parents=True, exist_ok=True)
        with rasterio.open(labels) as file:
            codes, profile = file.read(1), file.profile
        drawn = codes.copy()
        drawn[HELD] = 0
        with rasterio.open(reference, "w", **profile) as file:
            file.write(drawn, 1)
    _tool("draw", str(reference), str(folder), *options)
    if name in SIMULATED:
        held = np.zeros_like(codes)
        held[HELD] = codes[HELD]
        with rasterio.open(folder / "test.tif", "r+") as file:
            file.write(held.astype("uint8"), 1)


def forests(image: Path, folder: Path) -> dict[str, list[float]]:
    """Macro-F1 and accuracy of the two forests of the tool."""
    printed = _tool("forest", str(image), str(folder))
    found = re.findall(r"forest (\w+): macro-F1 ([0-9.]+) .*accuracy ([0-9.]+)", printed)
    return {kind: [float(f1), float(accuracy)] for kind, f1, accuracy in found}


def score(codes: np.ndarray, folder: Path, missing: np.ndarray) -> list[float]:
    """Macro-F1 over the large classes that were drawn, and accuracy, as the tool has them."""
    from sklearn.metrics import accuracy_score, f1_score

    with rasterio.open(folder / "test.tif") as file:
        test = np.where(missing, 0, file.read(1)).astype(int)
    polygons = json.loads((folder / "info.json").read_text())["polygons"]
    drawn = [int(code) for code, number in polygons.items() if number]
    large = [code for code in drawn if (test == code).sum() > LARGE]
    scored = np.isin(test, drawn)
    f1 = f1_score(test[scored], codes[scored], labels=large, average="macro", zero_division=0)
    return [round(float(f1), 4), round(float(accuracy_score(test[scored], codes[scored])), 4)]


def table(stored: Mapping[str, Any]) -> str:
    """Macro-F1 of each scene as the mean over drawings and seeds, as Markdown."""
    columns = ["pixel", "texture", "default"]
    lines = ["| scene | rows | " + " | ".join(columns) + " | default - better forest |"]
    lines.append("|---|---|" + "---|" * (len(columns) + 1))
    means = []
    for name in [*SCENES, *SIMULATED, CHIPS]:
        rows = [row for key, row in stored.items() if key.split("/")[0] == name]
        if not rows:
            continue
        values = {
            kind: _mean([row["forests"].get(kind, [np.nan])[0] for row in rows]) for kind in columns[:2]
        }
        values["default"] = _mean([row["default"][0] for row in rows])
        gain = values["default"] - np.nanmax([values["pixel"], values["texture"]])
        lines.append(_line(name, len(rows), [*values.values(), gain]))
        if name in SCENES:
            means.append([*values.values(), gain])
    if means:
        lines.append(_line("mean of real scenes", len(means), np.mean(means, axis=0)))
    return "\n".join(lines)


def _line(name: str, rows: int, values: Sequence[float]) -> str:
    *scores, gain = values
    shown = ("-" if np.isnan(v) else f"{v:.3f}" for v in scores)
    return f"| {name} | {rows} | " + " | ".join(shown) + f" | {gain:+.3f} |"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _write_scheme(path: Path, codes: Sequence[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["code", "class", "name", "color"])
        rows.writerows([code, number, f"code {code}", f"#{40 * number % 256:02x}8060"] for number, code in
                       enumerate(codes, 1))  # fmt: skip
    return path


def _nine_bands(source: Path, target: Path, reading: Mapping[str, float]) -> Path:
    """Write the nine bands as reflectance x 10000, which the tool and the commands read alike."""
    if target.exists():
        return target
    with rasterio.open(source) as file:
        names = list(file.descriptions)
        order = [names.index(band) + 1 for band in BANDS] if set(BANDS) <= set(names) else range(1, 10)
        dn = file.read(list(order)).astype(float)
        profile = {"driver": "GTiff", "count": 9, "dtype": "uint16", "nodata": 0, "crs": file.crs,
                   "transform": file.transform, "height": file.height, "width": file.width}  # fmt: skip
    scaled = (dn + reading.get("offset", 0)) * reading.get("scale", 1e-4) * 1e4
    scaled = np.where(dn == 0, 0, np.clip(np.rint(scaled), 1, 65535))
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", **profile) as file:
        file.write(scaled.astype("uint16"))
        file.descriptions = BANDS
    return target


def _tool(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(TOOL), *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


if __name__ == "__main__":
    raise SystemExit(main())
