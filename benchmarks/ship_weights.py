"""The weights that come with the toolkit, from the runs of ablation.py and real_scenes.py.

Kernels become float16, cards get scores of the file as it is shipped, and what people should know. Beside
the weights it writes ``weights/README.md``, ``weights/SHA256SUMS`` and the predictions that tests compare
with.

Example: python benchmarks/ablation.py final "by pixels"
         python benchmarks/real_scenes.py --ship
         python benchmarks/ship_weights.py
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
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

ROW = "by pixels"
"""Of benchmarks/ablation.py, stage final."""

PICKS = ("lowest-val-loss", "highest-val-accuracy", "best-macro-f1")
SIDE = 32
"""Side of the stored predictions; any network of the toolkit's stride or a finer one takes it."""


def main() -> int:
    """Write all weights, then what lies beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ablation-runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--scenes-runs", type=Path, default=real_scenes.RUNS)
    options = parser.parse_args()
    logging.getLogger("lulc").setLevel(logging.ERROR)
    for folder, (config, dataset, picks, temperature) in _trainings(options).items():
        for pick in picks:
            source = find_model(config.out, pick)
            ship(source, folder, pick, config, dataset, temperature)
    write_lists()
    return 0


def _trainings(options: argparse.Namespace) -> dict[str, tuple[TrainConfig, Dataset, tuple[str, ...], float]]:
    """Run, data, models and temperature of each folder of weights."""
    from lulc.training.data.dataset import open_dataset

    options.stage, options.mpx, options.runs = "final", None, options.ablation_runs
    stacks = ablation.make_stacks(ablation.SCENE, options.runs)
    large = ablation.config_of(stacks, ROW, 1, options)
    found = {"kaakonkulma-sim": (large, open_dataset(large), PICKS, ablation.temperature_of(
        ablation.read(ablation.RESULTS), ROW))}  # fmt: skip
    options.runs, options.mpx = options.scenes_runs, real_scenes.MPX
    small, dataset = real_scenes.open_shipped(1, options)
    calibrated = load_card(find_model(small.out, "last")).temperature
    return found | {"level1-sentinel2": (small, dataset, ("last",), float(calibrated))}  # type: ignore[arg-type]


def ship(
    source: Path, folder: str, pick: str, config: TrainConfig, dataset: Dataset, temperature: float
) -> None:
    """Write one file with float16 kernels, and its card with the scores of that file."""
    from lulc.training.cross_validation import classify_left_out

    model, card = load_model(source)
    target = WEIGHTS / folder / f"{pick}.keras"
    card = dataclasses.replace(card, name=f"{folder}/{pick}", temperature=temperature, **TEXTS[folder])
    save_model(model, card, target, half=True)
    outcome = classify_left_out(dataclasses.replace(config, out=str(target)), dataset)
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
    """README, checksums and stored predictions of all weights that there are."""
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
    text = README.replace("ROWS", "\n".join(rows))
    with write_atomically(WEIGHTS / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


README = """# Weights

Networks that come with the toolkit. `make_classifications.py` finds them by name; the card (JSON) beside each
says what it was trained on, its scores per class, licence, attribution, and what it is not for.

| name | classes | filters | MB | micro-F1 | macro-F1 | ECE | licence |
|---|---|---|---|---|---|---|---|
ROWS

`kaakonkulma-sim` are the three that the original provided, of one training of the default recipe with
`--balance pixels`, the default then, at half width, 79 Mpx: the epochs with the lowest loss, the highest
accuracy and the best macro-F1 on validation crops, here the last epoch each time. Imagery was **simulated**:
they are to try the commands with, and no networks for real regions.
Scored on block 3, from which the validation crops were cut too. `level1-sentinel2`, of the same recipe, is
of real Sentinel-2 L2A, four small patches of TerraMesh; its scores here are those of the quarter of each
patch that validated, those on other scenes are in [docs/accuracy.md](../docs/accuracy.md): rivers, woods and
Wroclaw are found there, no field of the Sundarbans is. Both are worth most as a start for a training of
one's own:

```console
python make_classifications.py kaakonkulma-sim/lowest-val-loss bands.tif indices.tif map.tif
python train_model.py stacks --init level1-sentinel2/last --out runs/own
```

Kernels are float16, statistics, batch norm and biases float32. The files hold no optimizer and nothing that
runs; `sha256sum -c SHA256SUMS` compares them with what was shipped. `python benchmarks/ship_weights.py`
makes them from the runs of `benchmarks/ablation.py` and `benchmarks/real_scenes.py`.
"""


if __name__ == "__main__":
    raise SystemExit(main())
