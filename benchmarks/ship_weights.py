"""The weights that come with the toolkit, from the runs of ablation.py and real_scenes.py.

Kernels become float16. Cards get the scores of the file as it is shipped, and what people should know. The
script also writes the table of ``weights/README.md``, ``weights/SHA256SUMS`` and the predictions that tests
compare with.

Example: python benchmarks/ablation.py final default
         python benchmarks/real_scenes.py --ship
         python benchmarks/ship_weights.py
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation  # noqa: E402
import real_scenes  # noqa: E402

from lulc.config import TrainConfig  # noqa: E402
from lulc.core.storage import write_atomically  # noqa: E402
from lulc.evaluation.measures import metrics  # noqa: E402
from lulc.models.weights import find_model, load_card, load_model, save_model  # noqa: E402

if TYPE_CHECKING:
    from lulc.models.card import ModelCard
    from lulc.training.data.dataset import Dataset

WEIGHTS = ROOT / "weights"
PREDICTIONS = ROOT / "tests" / "predictions.npz"

SENTINEL = "Contains modified Copernicus Sentinel data (2017-2020)."

TEXTS = {
    "kaakonkulma-sim": {
        "description": (
            "U-Net for the 13 classes of the original system, from blocks 0 to 2 of the simulated "
            "Kaakonkulma: simulated Sentinel-2 imagery and indices over real labels of south-east "
            "Finland, about 75 % of them right. Scored on block 3, which also validated the training and "
            "so chose among its epochs."
        ),
        "attribution": (
            "Labels: stacks from mayrajeo/lulc_ml (MIT), derived from CORINE Land Cover 2018, Copernicus "
            f"Land Monitoring Service, European Environment Agency. {SENTINEL}"
        ),
        "licence": ("MIT, as this project; the attribution has to stay."),
        "not_for": (
            "Real imagery: the reflectances were simulated, and the indices are of SYKE's coding and "
            "dates of their own. It shows that the commands work and gives trainings a start (--init); a "
            "map of a real region made with it says nothing about that region."
        ),
        "simulated": True,
    },
    "level1-sentinel2": {
        "description": (
            "U-Net for four classes of CORINE level 1 from Sentinel-2 L2A, trained on four patches of "
            "TerraMesh (Brazil, Chile, Denmark, Tanzania; at most 5 square kilometres each) whose"
            " labels are those of another model and noisy. A quarter of each patch validated. Wetland, "
            "snow and cloud were ignored."
        ),
        "attribution": (f"Patches from IBM/terramind (Apache-2.0, TerraMesh). {SENTINEL}"),
        "licence": ("Apache-2.0, as the patches; the attribution has to stay."),
        "not_for": (
            "Maps that decide anything. Four small patches don't make a network for the world: on scenes "
            "that it never saw its scores are those of docs/accuracy.md. It is a start for a training of "
            "one's own (--init). It knows no wetland, snow or cloud and calls them something else."
        ),
    },
}
"""Of each folder, for its cards."""

ROW = "default"
"""Of benchmarks/ablation.py, stage final."""

PICKS = ("lowest-val-loss", "highest-val-accuracy", "best-macro-f1")
SIDE = 32
"""Side of the stored predictions; any network of the toolkit's stride or a finer one takes it."""


def main() -> int:
    """Write all weights, then what lies beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*", default=list(TEXTS), help="to write (default: all)")
    parser.add_argument("--ablation-runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--scenes-runs", type=Path, default=real_scenes.RUNS)
    options = parser.parse_args()
    logging.getLogger("lulc").setLevel(logging.ERROR)
    for folder in options.folders:
        config, dataset, picks, temperature = _TRAININGS[folder](options)
        for pick in picks:
            source = find_model(config.out, pick)
            ship(source, folder, pick, config, dataset, temperature)
    write_lists()
    return 0


Training = tuple[TrainConfig, "Dataset", tuple[str, ...], float]
"""Run, data, models and temperature of a folder of weights."""


def _simulated(options: argparse.Namespace) -> Training:
    from lulc.training.data.dataset import open_dataset

    options.stage, options.mpx, options.runs = "final", None, options.ablation_runs
    config = ablation.config_of(ablation.make_stacks(ablation.SCENE, options.runs), ROW, 1, options)
    return config, open_dataset(config), PICKS, ablation.temperature_of(ablation.read(ablation.RESULTS), ROW)


def _real(options: argparse.Namespace) -> Training:
    options.stage, options.runs, options.mpx = "final", options.scenes_runs, real_scenes.MPX
    config, dataset = real_scenes.open_shipped(1, options)
    calibrated = load_card(find_model(config.out, "last")).temperature
    return config, dataset, ("last",), float(calibrated)  # type: ignore[arg-type]


_TRAININGS = {"kaakonkulma-sim": _simulated, "level1-sentinel2": _real}


def ship(
    source: Path, folder: str, pick: str, config: TrainConfig, dataset: Dataset, temperature: float
) -> None:
    """Write one file with float16 kernels, and its card with the scores of that file."""
    from lulc.training.cross_validation import classify_left_out

    model, card = load_model(source)
    target = WEIGHTS / folder / f"{pick}.keras"
    card = dataclasses.replace(card, name=f"{folder}/{pick}", temperature=temperature, **TEXTS[folder])
    with tempfile.TemporaryDirectory() as run:
        # Scoring takes the last weights of a run that recommends a network.
        for name in ("last", PICKS[0]):
            save_model(model, card, Path(run) / f"{name}.keras", half=True)
        outcome = classify_left_out(dataclasses.replace(config, out=run), dataset)
    found = ablation.figures(metrics.score(outcome.confusion, dataset.legend))
    scores = {
        "validation stacks": [tile.name for tile in dataset.validation],
        "micro-F1": found["micro-F1"], "macro-F1": found["macro-F1"], "ECE": outcome.ece(temperature),
        "F1": found["F1"], "pixels": found["support"],
    }  # fmt: skip
    save_model(model, dataclasses.replace(card, scores=_rounded(scores)), target, half=True)
    print(target.relative_to(ROOT), f"{target.stat().st_size / 1e6:.1f} MB, macro-F1 {found['macro-F1']:.3f}")


def _rounded(scores: Any) -> Any:
    if isinstance(scores, dict):
        return {name: _rounded(value) for name, value in scores.items()}
    return round(scores, 4) if isinstance(scores, float) else scores


def example_for(card: ModelCard) -> np.ndarray:
    """An image that fits the card's statistics, always the same: float32 (1, y, x, band)."""
    rng = np.random.default_rng(len(card.legend))
    noise = rng.normal(size=(1, SIDE, SIDE, len(card.channels)))
    return np.float32(np.array(card.statistics.mean) + np.array(card.statistics.std) * noise)


def write_lists() -> None:
    """Write the table of the README, checksums and stored predictions of all weights."""
    rows, sums, predictions = [], [], {}
    for path in sorted(WEIGHTS.glob("*/*.keras")):
        model, card = load_model(path)
        name = path.relative_to(WEIGHTS).with_suffix("").as_posix()
        predictions[name] = np.asarray(model(example_for(card)), np.float32)[0, ::4, ::4]
        sums.append(f"{card.sha256}  {path.relative_to(WEIGHTS).as_posix()}")
        shown = [f"{card.scores[figure]:.3f}" for figure in ("micro-F1", "macro-F1", "ECE")]
        rows.append(
            f"| `{name}` | {len(card.legend)} | {' '.join(map(str, card.network.filters))} "
            f"| {card.bytes / 1e6:.1f} | {' | '.join(shown)} | {card.licence.split(',')[0]} |"
        )
    np.savez_compressed(PREDICTIONS, **predictions)
    with write_atomically(WEIGHTS / "SHA256SUMS") as temporary:
        temporary.write_text("\n".join(sums) + "\n", encoding="utf-8")
    lines = (WEIGHTS / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| `"))
    kept = [line for line in lines[first:] if not line.startswith("| `")]
    with write_atomically(WEIGHTS / "README.md") as temporary:
        temporary.write_text("\n".join([*lines[:first], *rows, *kept]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
