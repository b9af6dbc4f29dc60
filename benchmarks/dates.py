"""What several dates, radar and terrain give: a random forest and a network on the same channels.

FOLDER holds two blocks, ``east`` and ``west``: for each date ``YYYYMMDD_10m.tif`` and ``YYYYMMDD_20m.tif``,
for each month ``YYYYMM_s1_20m.tif``, and ``labels.tif``. A model is trained on one block and scored on the
other, in both directions; classes that only one block has take no part.

With --network a model is a run of `train_model.py`; what is in ``benchmarks/results/dates.json`` is not
trained again.

Example: python benchmarks/dates.py FOLDER --seeds 1 2 3 --network
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lulc  # noqa: E402
from lulc.core.channels import CHANNEL_SETS, ChannelSet  # noqa: E402
from lulc.core.storage import write_atomically  # noqa: E402
from lulc.rasters.channels import load_channels  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "dates.json"
BLOCKS = ("east", "west")
DATES = {
    "march": ("20190322", "20180325"), "may": ("20190511", "20180524"), "june": ("20190620", "20180628"),
    "august": ("20180804", "20180807"), "september": ("20180918", "20180921"),
    "november": ("20181117", "20181117"),
}  # fmt: skip
"""Days of the two blocks that show the same season."""

THREE, SIX = ("march", "may", "august"), tuple(DATES)
ROWS: dict[str, tuple[tuple[str, ...], bool]] = {
    **{name: ((name,), False) for name in DATES},
    "three dates": (THREE, False), "six dates": (SIX, False),
    "three dates of radar": (THREE, True),
}  # fmt: skip
PICKS = {"default": "auto", "U-Net": "lowest-val-loss"}
"""Columns of networks and the pick of each; the first is what a user gets who names none."""

BUDGET: dict[str, Any] = {
    "epochs": 4, "steps": 100, "batch_size": 4, "crop_sizes": [64, 128], "validation_steps": 2,
    "validation_crop_sizes": [128], "recipe": "default", "precision": "bfloat16",
}  # fmt: skip
"""Options of the networks of the simulated scene, the same for one and two dates."""

STEPS = 40
"""Batches per epoch on the real blocks, where the recipe has 150; small models don't depend on it."""


def inputs_of(folder: Path, block: str, dates: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return bands and radar of a block for some dates, each with its date."""
    days = {date: DATES[date][BLOCKS.index(block)] for date in dates}
    bands = [
        f"{date}={folder / block / f'{day}_{size}m.tif'}" for date, day in days.items() for size in (10, 20)
    ]
    return bands, [f"{date}={folder / block / f'{day[:6]}_s1_20m.tif'}" for date, day in days.items()]


def set_of_row(row: str, folder: Path) -> tuple[ChannelSet, str]:
    """Return the channel set of a row and the file that holds it."""
    dates, radar = ROWS[row]
    bands = list(CHANNEL_SETS["sentinel2-10"].names)
    further = [{"name": name, "per_date": True} for name in ("VV", "VH")] if radar else []
    file = folder / f"{row.replace(' ', '-')}.yaml"
    text = {"format_version": 1, "channels": [*bands, *further], "dates": list(dates)}
    file.write_text(yaml.safe_dump(text))
    return load_channels(str(file)), str(file)


def pixels_of(folder: Path, block: str, row: str, channels: ChannelSet) -> tuple[np.ndarray, np.ndarray]:
    """Return values (pixel, channel) and codes (pixel,) of the labelled pixels of a block."""
    bands, radar = inputs_of(folder, block, ROWS[row][0])
    layers = tuple(radar) if ROWS[row][1] else ()
    with lulc.open_stack(bands, channels=channels, layers=layers) as stack:
        image = stack.read(stack.grid.extent)
    with rasterio.open(folder / block / "labels.tif") as file:
        codes = file.read(1)
    valid = ~np.isnan(image).any(-1) & (codes > 0)
    return image[valid], codes[valid]


SIMULATED: dict[str, tuple[str, ...]] = {
    "simulated, summer": ("summer",), "simulated, spring and summer": ("spring", "summer")
}  # fmt: skip
GRASSLAND, SAMPLE = 4, 20_000


def simulated_scores(folder: Path, dates: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return scores by seed of the east of a simulated scene, of a forest grown on its west."""
    bands = [f"{date}={folder / f'{date}.tif'}" for date in dates]
    with lulc.open_stack(bands) as stack:
        image = stack.read(stack.grid.extent)
    with rasterio.open(folder / "labels.tif") as file:
        codes = file.read(1)
    valid = ~np.isnan(image).any(-1) & (codes > 0)
    west = np.broadcast_to(np.arange(image.shape[1]) < image.shape[1] // 2, valid.shape)
    found: dict[str, Any] = {"channels": len(stack.channels), "forest": [], "grassland": []}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        train, test = (rng.choice(np.flatnonzero(valid & half), SAMPLE) for half in (west, ~west))
        x, y = image.reshape(-1, image.shape[-1]), codes.ravel()
        forest = RandomForestClassifier(100, random_state=seed, class_weight="balanced", n_jobs=1)
        forest.fit(x[train], y[train])
        scores = f1_score(y[test], forest.predict(x[test]), average=None, labels=np.arange(1, 14))
        found["forest"].append(float(scores.mean()))
        found["grassland"].append(float(scores[GRASSLAND - 1]))
    return found


def forest_scores(folder: Path, row: str, channels: ChannelSet, seeds: Sequence[int]) -> list[float]:
    """Return macro-F1 by seed, the mean of both directions."""
    data = {block: pixels_of(folder, block, row, channels) for block in BLOCKS}
    common = np.intersect1d(*(codes for _, codes in data.values()))
    scores = []
    for seed in seeds:
        found = []
        for train, test in (BLOCKS, BLOCKS[::-1]):
            forest = RandomForestClassifier(300, random_state=seed, class_weight="balanced", n_jobs=1)
            known, scored = (np.isin(data[block][1], common) for block in (train, test))
            forest.fit(data[train][0][known], data[train][1][known])
            truth = data[test][1][scored]
            found.append(
                f1_score(truth, forest.predict(data[test][0][scored]), average="macro", labels=common)
            )
        scores.append(float(np.mean(found)))
    return scores


def scheme_of(folder: Path, work: Path) -> Path:
    """Write the table of the classes that both blocks have; others are ignored."""
    codes = [np.unique(rasterio.open(folder / block / "labels.tif").read(1)) for block in BLOCKS]
    common = [int(code) for code in np.intersect1d(*codes) if code]
    scheme = work / "classes.csv"
    scheme.write_text("code,class,name,color\n" + "".join(
        f"{code},{n},class {code},#{50 * n:02x}8040\n" for n, code in enumerate(common, 1)
    ) + "".join(f"{code},ignore,,\n" for code in {*codes[0], *codes[1]} - {*common}))  # fmt: skip
    return scheme


def network_scores(folder: Path, row: str, seed: int, work: Path) -> dict[str, float]:
    """Return macro-F1 of each column, the mean of both directions; options but the steps are the defaults."""
    _, file = set_of_row(row, work)
    found: dict[str, list[float]] = {name: [] for name in PICKS}
    scheme = scheme_of(folder, work)
    for train, test in (BLOCKS, BLOCKS[::-1]):
        bands, radar = inputs_of(folder, train, ROWS[row][0])
        layers = radar if ROWS[row][1] else []
        stacks, run = work / f"{row}-{train}", work / f"{row}-{train}-{seed}"
        if not stacks.exists():
            lulc.make_stacks(
                bands=bands, layers=layers, channels=file, labels=str(folder / train / "labels.tif"),
                scheme=str(scheme), size=64, out=str(stacks),
            )  # fmt: skip
        lulc.train(data=[str(stacks)], out=str(run), seed=seed, steps=STEPS)
        bands, radar = inputs_of(folder, test, ROWS[row][0])
        truth = rasterio.open(folder / test / "labels.tif").read(1)
        table = np.loadtxt(scheme, delimiter=",", dtype=str, skiprows=1)
        classes = {int(code): int(number) for code, number, *_ in table if number != "ignore"}
        for column, pick in PICKS.items():
            out = work / f"{row}-{test}-{seed}-{pick}.tif"
            layers = radar if ROWS[row][1] else []
            lulc.classify(model=str(run), inputs=bands, layers=layers, out=str(out), pick=pick)
            numbers = rasterio.open(out).read(1)
            scored = np.isin(truth, list(classes)) & (numbers > 0)
            expected = [classes[code] for code in truth[scored].tolist()]
            found[column].append(
                f1_score(expected, numbers[scored], average="macro", labels=list(classes.values()))
            )
    return {column: float(np.mean(scores)) for column, scores in found.items()}


def simulated_network(folder: Path, dates: Sequence[str], seed: int, work: Path) -> dict[str, float]:
    """Return scores on the east of a simulated scene, of the last epoch of a network of its west."""
    bands = [f"{date}={folder / f'{date}.tif'}" for date in dates]
    stacks, run, out = (work / f"{'-'.join(dates)}{what}" for what in ("", f"-{seed}", f"-{seed}.tif"))
    if not stacks.exists():
        lulc.make_stacks(
            bands=bands, labels=str(folder / "labels.tif"), scheme="kaakonkulma-13", size=850,
            validation=["1", "3"], out=str(stacks),
        )  # fmt: skip
    lulc.train(data=[str(stacks)], out=str(run), seed=seed, **BUDGET)
    lulc.classify(model=str(run), inputs=bands, out=str(out), pick="last")
    numbers, codes = (rasterio.open(path).read(1) for path in (out, folder / "labels.tif"))
    scored = (codes > 0) & (numbers > 0)
    scored[:, : codes.shape[1] // 2] = False
    scores = f1_score(codes[scored], numbers[scored], average=None, labels=np.arange(1, 14))
    return {"network": float(scores.mean()), "grassland of the network": float(scores[GRASSLAND - 1])}


def store(table: dict[str, Any]) -> None:
    """Write the table."""
    with write_atomically(RESULTS) as path:
        path.write_text(json.dumps(table, indent=1) + "\n")


def stored_table() -> dict[str, Any]:
    """Return the table, empty where there is none."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def add_networks(options: argparse.Namespace, work: Path) -> None:
    """Train what is missing of the rows: seeds first, so that each row has one early."""
    for seed, row in itertools.product(options.seeds, options.rows):
        if str(seed) in stored_table().get(row, {}).get("networks", {}):
            continue
        started = time.monotonic()
        found = (
            simulated_network(options.folder, SIMULATED[row], seed, work) if row in SIMULATED
            else network_scores(options.folder, row, seed, work)
        ) | {"seconds": round(time.monotonic() - started, 1)}  # fmt: skip
        # Another process may have stored rows meanwhile.
        table = stored_table()
        table.setdefault(row, {}).setdefault("networks", {})[str(seed)] = found
        store(table)
        print(row, seed, found, flush=True)


def main() -> None:
    """Fill the table, row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--simulated", action="store_true", help="FOLDER holds one simulated scene instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--network", action="store_true", help="train networks instead of forests")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *SIMULATED])
    options = parser.parse_args()
    options.rows = options.rows or list(SIMULATED if options.simulated else ROWS)
    with tempfile.TemporaryDirectory() as temporary:
        if options.network:
            add_networks(options, Path(temporary))
            return
        for row in options.rows:
            if row in SIMULATED:
                found = simulated_scores(options.folder, SIMULATED[row], options.seeds)
            else:
                channels, _ = set_of_row(row, Path(temporary))
                scores = forest_scores(options.folder, row, channels, options.seeds)
                found = {"channels": len(channels.names), "forest": scores}
            table = stored_table()
            table[row] = table.get(row, {}) | found
            shown = {
                k: f"{np.mean(v):.3f} +- {np.std(v):.3f}" for k, v in found.items() if isinstance(v, list)
            }
            print(f"{row:30} {found['channels']:3} {shown}", flush=True)
            store(table)


if __name__ == "__main__":
    main()
