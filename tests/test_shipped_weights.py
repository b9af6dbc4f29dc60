"""The weights that come with the toolkit: whole, known, found by name, and predicting what they did."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc.cli.make_classifications import main
from lulc.demo.landscape import simulate, write_scene
from lulc.models.weights import find_model, load_card, load_model

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights"
NAMES = sorted(path.relative_to(WEIGHTS).with_suffix("").as_posix() for path in WEIGHTS.glob("*/*.keras"))

sys.path.insert(0, str(ROOT / "benchmarks"))

from ship_weights import PREDICTIONS, example_for  # noqa: E402

pytestmark = pytest.mark.integration


def test_the_three_of_the_original_and_one_for_real_scenes_are_there() -> None:
    assert NAMES == [
        "kaakonkulma-sim/best-macro-f1",
        "kaakonkulma-sim/highest-val-accuracy",
        "kaakonkulma-sim/lowest-val-loss",
        "level1-sentinel2/last",
    ]
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 60e6


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_prediction_comes_out_again(name: str) -> None:
    path = find_model(name)
    assert path == WEIGHTS / f"{name}.keras"
    model, card = load_model(path)
    found = np.asarray(model(example_for(card)))[0, ::4, ::4]
    with np.load(PREDICTIONS) as stored:
        # Frameworks and processors differ in the last digits of sums.
        np.testing.assert_allclose(found, stored[name], atol=2e-3)
        assert (found.argmax(axis=-1) == stored[name].argmax(axis=-1)).mean() > 0.98


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_the_weights_are_and_are_not_for(name: str) -> None:
    card = load_card(WEIGHTS / f"{name}.keras")
    assert all(len(text) > 20 for text in (card.description, card.licence, card.attribution, card.not_for))
    assert set(card.scores["F1"]) <= set(card.legend.names) and card.scores["macro-F1"] > 1 / len(card.legend)
    # Nothing that was learnt from scenes whose terms forbid it.
    assert not re.search("wroclaw|sundarbans", str(card.training).lower())
    assert f"| `{name}` |" in (WEIGHTS / "README.md").read_text(encoding="utf-8")


def test_checksums_are_those_of_the_files() -> None:
    lines = (WEIGHTS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    stored = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sorted(stored) == [f"{name}.keras" for name in NAMES]
    for name, digest in stored.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", ["kaakonkulma-sim", "level1-sentinel2/last"])
def test_a_mosaic_is_classified_by_the_name_of_the_weights(name: str, tmp_path: Path) -> None:
    scene = write_scene(simulate((96, 80), seed=3), tmp_path)
    inputs = [str(scene["summer"]), *([str(scene["indices"])] if name.startswith("kaa") else [])]
    assert main([name, *inputs, str(tmp_path / "map.tif"), "-q"]) == 0
    classes = len(load_card(find_model(name)).legend)
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.count == 1 + classes
        found = np.unique(source.read(1))
    assert set(found) <= {-1.0, *map(float, range(1, classes + 1))} and len(found) > 2
