"""The forest that is kept beside a training, what is said of the two, and the map that it makes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

import lulc
from lulc.cli.make_classifications import main as classify
from lulc.cli.train_model import describe_comparison, main
from lulc.config import InputConfig
from lulc.core.schema import CHANNELS, LandCoverClass, Legend
from lulc.core.windows import Window
from lulc.demo.landscape import simulate, write_scene
from lulc.models.calibration import calibrate
from lulc.models.card import load_card
from lulc.models.pixel_model import read_pixel_model, texture_features
from lulc.models.weights import find_model
from lulc.rasters.stack import open_stack
from lulc.training.baseline import FOREST, MACRO, NETWORK, Comparison, HeldOut, compare
from lulc.training.data import pixels
from lulc.training.small_models import TREES

SMALL = [
    "--epochs", "1", "--steps", "4", "--validation-steps", "1", "--batch-size", "2", "--crop-sizes", "32",
    "--validation-crop-sizes", "32", "--filters", "4", "-q",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(write_stacks, tmp_path_factory):
    """A run with its stacks, and what the command printed as JSON."""
    folder = tmp_path_factory.mktemp("baseline")
    stacks = write_stacks(folder / "stacks")
    assert main([str(stacks), "--out", str(folder / "run"), *SMALL]) == 0
    return stacks, folder / "run"


def labelled(stacks, split, statistics):
    """Features and labels of all valid labelled pixels, by whole images."""
    features, labels = [], []
    for masks in sorted(stacks.glob(f"{split}_masks_*.npy")):
        image = np.load(str(masks).replace("masks", "image"))
        image[np.isnan(image).any(-1)] = np.nan
        known = (np.load(masks) != 255) & ~np.isnan(image[..., 0])
        features.append(texture_features(image[np.newaxis], statistics, (2,))[0][known])
        labels.append(np.load(masks)[known] - 1)
    return np.concatenate(features), np.concatenate(labels)


def test_the_forest_is_that_of_scikit_learn_on_all_training_labels(trained):
    stacks, run = trained
    path = find_model(str(run), "baseline")
    card = load_card(path)
    features, labels = labelled(stacks, "train", card.statistics)
    assert len(labels) < 20_000
    grown = RandomForestClassifier(TREES, class_weight="balanced", random_state=1).fit(features, labels)
    held_out, truth = labelled(stacks, "val", card.statistics)
    found = read_pixel_model(path, card).predict(held_out)
    assert np.array_equal(found, grown.predict_proba(held_out))
    expected = f1_score(truth, found.argmax(axis=1), average="macro")
    compared = card.scores["compared"]
    # More held-out pixels than are compared in one square: 96 x 96 are one square, 3,000 pixels drawn of it.
    assert abs(compared["forest"][MACRO] - expected) < 0.02
    assert compared["pixels"] == pytest.approx(3000, rel=0.1)


def test_the_command_says_which_is_better_by_class(trained, tmp_path, capsys):
    stacks, _ = trained
    assert main([str(stacks), "--out", str(tmp_path / "run"), *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["comparison"]
    # Four batches teach a network nothing of what a forest finds at once.
    assert found["better"] == "random forest" and found["forest"][MACRO] > 0.8
    assert set(found["forest"]) == {"class 1", "class 2", "class 3", MACRO}


def test_a_comparison_in_words_gives_a_verdict_and_the_way_to_the_better_map():
    forest, network = {"water": 0.9, MACRO: 0.9}, {"water": 0.7, MACRO: 0.7}
    spread = {"water": 0.05, MACRO: 0.05}
    told = describe_comparison(Comparison(10, 3, forest, spread, network), "runs/a")
    assert "The random forest is better than the network: by 0.200 macro-F1, 4.0 times the spread" in told
    assert "make_classifications.py runs/a ... --pick baseline" in told
    told = describe_comparison(Comparison(10, 3, network, spread, forest), "runs/a")
    assert "The network is better than the random forest" in told and "--pick" not in told
    near = describe_comparison(Comparison(10, 3, forest, spread, {"water": 0.85, MACRO: 0.85}), "runs/a")
    assert "Neither" in near
    single = describe_comparison(Comparison(10, 3, forest, {"water": None, MACRO: None}, network), "runs/a")
    assert "is unknown, since the held-out labels of water are one polygon" in single
    few = describe_comparison(Comparison(10, 3, network, spread, None, forest), "runs/a")
    assert "The small models are better than the random forest: by 0.200" in few
    assert "--pick" not in few and "makes the map" in few


def one_hot(classes, count=3):
    return np.eye(count, dtype=np.float32)[classes]


def held_out(labels, forest, network, patches):
    return HeldOut(labels, patches, {FOREST: forest, NETWORK: network})


LEGEND = Legend("three", tuple(LandCoverClass(i, f"c{i}", "#123456") for i in (1, 2, 3)))


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels, forest, network = (rng.integers(0, 3, 400).astype(np.uint8) for _ in range(3))
    found = compare(held_out(labels, one_hot(forest), one_hot(network), np.arange(400) // 10), LEGEND, 1)
    assert found.patches == 40
    for scores, given in ((found.forest, forest), (found.network, network)):
        assert np.allclose(list(scores.values())[:3], f1_score(labels, given, average=None))
        assert np.isclose(scores[MACRO], f1_score(labels, given, average="macro"))


def test_the_spread_counts_patches_and_not_their_pixels():
    rng = np.random.default_rng(1)
    right = rng.random(12) < 0.6
    labels = (np.arange(12) % 3).astype(np.uint8)
    wrong = (labels + 1) % 3

    def spread(pixels):
        given = np.where(right, labels, wrong).repeat(pixels)
        found = held_out(
            labels.repeat(pixels),
            one_hot(given),
            one_hot(labels.repeat(pixels)),
            np.arange(12).repeat(pixels),
        )
        return compare(found, LEGEND, 1).spread[MACRO]

    assert spread(1) == pytest.approx(spread(50))
    assert spread(1) > 0.05


def test_equal_models_differ_by_nothing():
    labels = np.array([0, 1, 2, 0], np.uint8)
    found = compare(held_out(labels, one_hot(labels), one_hot(labels), np.arange(4)), LEGEND, 1)
    assert found.difference == 0 and found.better == "unknown"
    twice = np.tile(labels, 2)
    found = compare(held_out(twice, one_hot(twice), one_hot(twice), np.arange(8)), LEGEND, 1)
    assert found.difference == 0 and found.better == "neither"


def test_one_patch_of_a_class_tells_no_spread():
    labels = np.array([0, 0, 1, 1, 2, 2], np.uint8)
    wrong = np.array([0, 1, 1, 0, 2, 2], np.uint8)
    found = compare(
        held_out(labels, one_hot(wrong), one_hot(labels), np.array([0, 1, 2, 3, 4, 4])), LEGEND, 1
    )
    assert found.spread["c3"] is None and found.spread[MACRO] is None and found.better == "unknown"
    assert found.spread["c1"] > 0 and found.spread["c2"] > 0


def test_features_of_drawn_pixels_are_those_of_the_whole_image_also_at_its_borders(write_stacks, tmp_path):
    from lulc.datasets.loading import load_manifest
    from lulc.datasets.manifest import open_tile
    from lulc.training.data.dataset import Tile

    manifest = load_manifest(write_stacks(tmp_path / "stacks", ("train",), side=300))
    tile = Tile("t", *open_tile(manifest.stacks[0]))
    image = np.array(tile.image)
    image[np.isnan(image).any(-1)] = np.nan
    whole = texture_features(image[np.newaxis], manifest.statistics, (1, 4))[0]
    targets = np.full(256, 255, np.uint8)
    targets[1:4] = [0, 1, 2]
    squares = list(pixels.labelled_squares([tile], targets))
    assert [s.window for s in squares][:2] == [Window(0, 0, 256, 256), Window(0, 256, 256, 44)]
    for square in squares:
        found = pixels.features_at(square, manifest.statistics, (1, 4))
        assert np.array_equal(found, whole[square.rows, square.cols])
    assert sum(len(s.labels) for s in squares) == sum(manifest.stacks[0].class_counts)


def test_overwriting_a_run_removes_its_forest(trained, tmp_path):
    from lulc.training.run_folder import clear_run

    stacks, _ = trained
    run = tmp_path / "run"
    assert main([str(stacks), "--out", str(run), *SMALL]) == 0
    assert (run / "baseline.npz").exists() and (run / "baseline.json").exists()
    clear_run(run)
    assert not list(run.glob("baseline*"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Rasters, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("scene")
    paths = write_scene(simulate((160, 160), seed=3), folder)
    lulc.make_stacks(
        bands=[str(paths["summer"])], indices=[str(paths["indices"])], labels=str(paths["labels"]),
        scheme="kaakonkulma-13", out=str(folder / "stacks"), size=80, gap=0, validation=["0.3"],
    )  # fmt: skip
    assert main([str(folder / "stacks"), "--out", str(folder / "run"), *SMALL]) == 0
    return paths | {"run": folder / "run"}


def test_the_map_of_the_baseline_is_the_prediction_of_scikit_learn_pixel_by_pixel(scene, tmp_path):
    inputs = [str(scene["summer"]), str(scene["indices"])]
    out = tmp_path / "map.tif"
    assert classify([str(scene["run"]), *inputs, str(out), "--pick", "baseline", "--window", "64", "-q"]) == 0
    card = load_card(find_model(str(scene["run"]), "baseline"))
    with open_stack(inputs[:1], inputs[1:], InputConfig()) as stack:
        image = stack.read(stack.grid.extent)
    assert [channel.name for channel in card.channels] == list(CHANNELS)
    features = texture_features(image[np.newaxis], card.statistics, (2,))[0]
    valid = ~np.isnan(image[..., 0])
    assert 0 < valid.sum() < valid.size
    train, labels = labelled(scene["run"].parent / "stacks", "train", card.statistics)
    grown = RandomForestClassifier(TREES, class_weight="balanced", random_state=1).fit(train, labels)
    expected = np.zeros((int(valid.sum()), len(card.legend)), np.float32)
    expected[:, grown.classes_] = grown.predict_proba(features[valid])
    expected = calibrate(expected[np.newaxis], card.temperature)[0]
    with rasterio.open(out) as file:
        assert file.count == 14
        bands = np.moveaxis(file.read(), 0, -1)[valid]
        assert "baseline" in file.tags()["LULC_MODEL"] and '"numpy"' in file.tags()["LULC_ENGINE"]
    assert np.allclose(bands[:, 1:], expected, atol=1e-6)
    assert np.array_equal(bands[:, 0], expected.argmax(axis=1) + 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pick", "baseline", "--engine", "openvino"], "cannot run a forest with the engine 'openvino'"),
        (["--engine", "numpy"], "cannot run a network with the engine 'numpy'"),
        (["--pick", "baseline", "--ensemble", "NETWORK"], "cannot run a network beside a forest"),
    ],
)
def test_engines_of_the_other_kind_are_refused(scene, tmp_path, capsys, arguments, said):
    network = str(find_model(str(scene["run"])))
    arguments = [network if a == "NETWORK" else a for a in arguments]
    inputs = [str(scene["summer"]), str(scene["indices"])]
    assert classify([str(scene["run"]), *inputs, str(tmp_path / "map.tif"), "-q", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_forest_is_nothing_to_start_a_network_from(trained, tmp_path, capsys):
    stacks, run = trained
    init = ["--init", str(run / "baseline.npz"), "--out", str(tmp_path / "run")]
    assert main([str(stacks), *init, *SMALL]) == 1
    assert "random forest, expected a network" in capsys.readouterr().err
