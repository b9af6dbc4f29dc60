"""What several dates, radar and terrain give: a random forest and a network on the same channels.

FOLDER holds two blocks, ``east`` and ``west``: for each date ``YYYYMMDD_10m.tif`` and ``YYYYMMDD_20m.tif``,
for each month ``YYYYMM_s1_20m.tif``, and ``labels.tif``. A model is trained on one block and scored on the
other, in both directions; classes that only one block has take no part.

Example: python benchmarks/dates.py FOLDER --seeds 1 2 3 --network
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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
SMALL = (
    "--epochs 6 --steps 40 --batch-size 4 --crop-sizes 48 --validation-steps 4 --validation-crop-sizes 64 "
    "--filters 16 32 --recipe default -q"
)


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


def network_scores(folder: Path, row: str, file: str, seeds: Sequence[int], work: Path) -> list[float]:
    """Return macro-F1 of the last epoch by seed, the mean of both directions."""
    codes = [np.unique(rasterio.open(folder / block / "labels.tif").read(1)) for block in BLOCKS]
    common = [int(code) for code in np.intersect1d(*codes) if code]
    scheme = work / "classes.csv"
    scheme.write_text("code,class,name,color\n" + "".join(
        f"{code},{n},class {code},#{50 * n:02x}8040\n" for n, code in enumerate(common, 1)
    ) + "".join(f"{code},ignore,,\n" for code in {*codes[0], *codes[1]} - {*common}))  # fmt: skip
    for block in BLOCKS:
        bands, radar = inputs_of(folder, block, ROWS[row][0])
        words = ["--bands", *bands, *(["--layers", *radar] if ROWS[row][1] else []), "--channels", file]
        words += ["--labels", folder / block / "labels.tif", "--scheme", scheme, "--size", 64, "-q"]
        for kind in ("none", "all"):
            run("preprocess.py", *words, "--validation", kind, "--out", work / f"{row}-{block}-{kind}")
    scores = []
    for seed in seeds:
        found = []
        for train, test in (BLOCKS, BLOCKS[::-1]):
            names = (f"{train}-none", f"{test}-all", f"{train}-{seed}")
            data, held, out = (work / f"{row}-{name}" for name in names)
            words = ["--validation-data", held, "--seed", seed, "--out", out, *SMALL.split()]
            run("train_model.py", data, *words)
            lines = (out / "history.csv").read_text().splitlines()
            column = lines[0].split(",").index("val_macro_f1")
            found.append(float(lines[-1].split(",")[column]))
        scores.append(float(np.mean(found)))
    return scores


def run(command: str, *words: object) -> None:
    """Run one of the commands."""
    subprocess.run(
        [sys.executable, str(ROOT / command), *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )


def main() -> None:
    """Fill the table, row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--simulated", action="store_true", help="FOLDER holds one simulated scene instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--network", action="store_true", help="also train the network")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    table: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if options.simulated:
        for row, dates in SIMULATED.items():
            table[row] = simulated_scores(options.folder, dates, options.seeds)
            print(
                row,
                {k: np.round((np.mean(v), np.std(v)), 4).tolist() for k, v in table[row].items()},
                flush=True,
            )
        options.rows = []
        with write_atomically(RESULTS) as path:
            path.write_text(json.dumps(table, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as temporary:
        for row in options.rows:
            channels, file = set_of_row(row, Path(temporary))
            entry = table.setdefault(row, {"channels": len(channels.names)})
            entry["forest"] = forest_scores(options.folder, row, channels, options.seeds)
            if options.network:
                entry["network"] = network_scores(options.folder, row, file, options.seeds, Path(temporary))
            shown = {
                k: f"{np.mean(v):.3f} +- {np.std(v):.3f}" for k, v in entry.items() if isinstance(v, list)
            }
            print(f"{row:22} {entry['channels']:3} {shown}", flush=True)
            with write_atomically(RESULTS) as path:
                path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
