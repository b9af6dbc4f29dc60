"""Small models for few labels: they are scikit-learn's, chosen by the labels, and make the map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from lulc.cli.make_classifications import main as classify
from lulc.cli.train_model import main
from lulc.config import RECIPES, InputConfig, TrainConfig
from lulc.core.schema import BANDS, InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.engines import pixels as engine
from lulc.evaluation.measures.regions import read_ground, read_regions
from lulc.maps.reader import open_map
from lulc.models.calibration import calibrate
from lulc.models.card import Channel, ModelCard, load_card
from lulc.models.config import PixelConfig
from lulc.models.pixel_model import PixelModel, read_pixel_model, texture_features, write_pixel_model
from lulc.models.weights import find_model
from lulc.rasters.stack import open_stack
from lulc.training.data.dataset import class_targets, leave_one_out, open_dataset
from lulc.training.data.pixels import features_at, labelled_squares
from lulc.training.run_folder import clear_run
from lulc.training.small_models import (
    BESIDE,
    DECAY,
    EPOCHS,
    HIDDEN,
    TREES_OF_SCALE,
    fit_small_models,
    with_borders,
)
from lulc.training.training_plan import plan_training

CHANNELS, RADII = 3, (2, 5)
NAMES = ("water", "forest", "bare soil")

QUICK = [
    "--epochs", "1", "--steps", "2", "--validation-steps", "1", "--batch-size", "2", "--crop-sizes", "32",
    "--validation-crop-sizes", "32", "--filters", "4", "-q",
]  # fmt: skip


def samples(labels, seed=0):
    """Features (pixel, 15) that differ by label."""
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(0, 1, (10, 15))[labels], 0.7).astype(np.float32)


def expected_by_scikit_learn(x, y, given, seed):
    """Mean of the probabilities of all models, by the library's own pipeline."""
    channels = x.shape[1] // 5
    more, twice = with_borders(x, y, channels, seed)
    more, given = more.astype(np.float64), given.astype(np.float64)
    found = []
    for scale in (1, 3):
        used = [*range(channels), *range(channels * scale, channels * (scale + 2))]
        scaler = StandardScaler().fit(more[:, used])
        z, z_given = scaler.transform(more[:, used]), scaler.transform(given[:, used])
        forest = RandomForestClassifier(TREES_OF_SCALE, class_weight="balanced", random_state=seed)
        found.append(forest.fit(more[:, used], twice).predict_proba(given[:, used]))
        perceptron = MLPClassifier(HIDDEN, alpha=DECAY, max_iter=EPOCHS, random_state=seed)
        perceptron.fit(z, twice, sample_weight=compute_sample_weight("balanced", twice))
        found.append(perceptron.predict_proba(z_given))
    return np.mean(found, axis=0)


def test_a_border_is_what_windows_of_two_lands_are():
    """Of a window with some pixels from another window, mean and deviation are as computed without either."""
    rng = np.random.default_rng(2)
    windows = rng.normal(size=(2, 25, CHANNELS)) * [[[1.0]], [[3.0]]] + [[[0.0]], [[4.0]]]
    stats = [np.concatenate([w[12], w.mean(axis=0), w.std(axis=0)]) for w in windows]
    x, y = np.float32(stats), np.uint8([0, 1])
    found, labels = with_borders(x, y, CHANNELS, 3)
    assert np.array_equal(found[:2], x) and labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(found[2:, :CHANNELS], x[:, :CHANNELS])
    share = (found[2, CHANNELS] - stats[0][CHANNELS]) / (stats[1][CHANNELS] - stats[0][CHANNELS])
    assert 0 < share < BESIDE
    # As many pixels of each as the share says.
    both = np.concatenate(
        [windows[0].repeat(round(1000 * (1 - share)), 0), windows[1].repeat(round(1000 * share), 0)]
    )
    expected = np.concatenate([both.mean(axis=0), both.std(axis=0)])
    assert np.allclose(found[2, CHANNELS:], expected, atol=0.02)


def test_one_class_has_no_border():
    x, y = samples(np.zeros(5, np.uint8)), np.zeros(5, np.uint8)
    assert with_borders(x, y, CHANNELS, 1)[0] is x


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [0, 2, 4], [1, 3]])
def test_the_mean_of_small_models_is_that_of_scikit_learn(classes):
    y = np.random.default_rng(3).choice(classes, 150).astype(np.uint8)
    x, given = samples(y), samples(y, seed=5)
    found = fit_small_models(x, y, CHANNELS, 5, 1).predict(given)
    expected = np.zeros((150, 5))
    expected[:, classes] = expected_by_scikit_learn(x, y, given, 1)
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_one_class_against_the_rest_gives_its_share():
    y = np.random.default_rng(3).integers(0, 2, 120).astype(np.uint8)
    x = samples(y)
    found = fit_small_models(x, y, CHANNELS, 1, 1).predict(x)
    assert found.shape == (120, 1)
    assert np.allclose(found[:, 0], expected_by_scikit_learn(x, y, x, 1)[:, 1], atol=1e-6)


def test_one_pixel_of_each_class_is_enough():
    y = np.arange(3, dtype=np.uint8)
    found = fit_small_models(samples(y), y, CHANNELS, 3, 1)
    assert np.allclose(found.predict(samples(y)).sum(axis=1), 1) and len(found.dense) == 2


@pytest.fixture(scope="module")
def model():
    y = np.random.default_rng(1).integers(0, 3, 200).astype(np.uint8)
    return fit_small_models(samples(y), y, CHANNELS, 3, 1)


def card_of(model, **changes):
    dense = tuple(tuple(len(b) for b in network.biases[:-1]) for network in model.dense)
    network = PixelConfig(3, CHANNELS, RADII, 1, dense, model.forests)
    legend = Legend("three", tuple(LandCoverClass(i, f"c{i}", "#123456") for i in (1, 2, 3)))
    channels = tuple(Channel(f"B0{i}", "reflectance x 10000", "read") for i in (2, 3, 4))
    values = {"name": "run/few-labels", "channels": channels, "legend": legend, "network": network,
              "statistics": Statistics((0.0,) * 3, (1.0,) * 3, 1), "stride": 1, "halo": 2}  # fmt: skip
    return ModelCard(**values | changes)


def test_a_pixel_gets_the_same_bits_whatever_window_it_lies_in(model, tmp_path, monkeypatch):
    image = np.random.default_rng(2).normal(0, 1, (1, 90, 130, CHANNELS)).astype(np.float32)
    image[0, 20:30, 40:60] = np.nan
    path = tmp_path / "few-labels.npz"
    card = write_pixel_model(model, card_of(model), path)
    monkeypatch.setattr(engine, "ROWS", 7)
    predict = engine.open_pixel_model(path, card)
    whole = predict(image)
    for rows, cols in ((slice(0, 40), slice(0, 50)), (slice(31, 90), slice(13, 130))):
        part = predict(np.ascontiguousarray(image[:, rows, cols]))
        # All but what lies nearer than the halo to the cut.
        inner = (slice(None), slice(5, -5), slice(5, -5))
        assert np.array_equal(part[inner], whole[:, rows, cols][inner])


def test_a_file_read_again_gives_the_same_and_others_are_refused(model, tmp_path):
    path = tmp_path / "few-labels.npz"
    card = write_pixel_model(model, card_of(model), path)
    x = samples(np.zeros(50, int))
    assert np.array_equal(read_pixel_model(path, load_card(path)).predict(x), model.predict(x))
    for change, told in (
        (lambda a: a | {"bias0_0": np.full_like(a["bias0_0"], np.nan)}, "NaN or infinite"),
        (lambda a: a | {"weight0_0": a["weight0_0"][:-1]}, "layer 0 of network 0"),
        (lambda a: {name: v for name, v in a.items() if name != "bias1_0"}, "its arrays are"),
    ):
        damaged = PixelModel(model.forest, model.dense, model.forests)
        object.__setattr__(damaged, "arrays", lambda change=change: change(model.arrays()))
        forged = write_pixel_model(damaged, card, path)
        with pytest.raises(InputError, match=told):
            read_pixel_model(path, forged)


def sparse(write_stacks, folder, keep=0.05):
    """Stacks whose labels are squares of 6 x 6 pixels on a share of the place."""

    def thin(name, image, masks):
        rng = np.random.default_rng(len(name))
        kept = np.kron(rng.random((16, 16)) < 4 * keep, np.ones((6, 6), bool))
        masks[~kept] = 255

    return write_stacks(folder, change=thin)


def test_sparse_labels_get_the_recipe_for_few_and_dense_ones_the_default(write_stacks, tmp_path):
    few = sparse(write_stacks, tmp_path / "few")
    dense = write_stacks(tmp_path / "dense")
    for folder, recipe in ((few, "few-labels"), (dense, "default")):
        config = TrainConfig(data=(str(folder),), out="run")
        plan = plan_training(config, open_dataset(config))
        assert plan.config.recipe == recipe
        assert plan.config.loss == RECIPES[recipe]["loss"]
        # The stacks are 96 x 96.
        assert plan.config.crop_sizes == ((64,) if recipe == "few-labels" else (96,))
        assert plan.config.validation_crop_sizes == ((64,) if recipe == "few-labels" else (96,))
    config = TrainConfig(data=(str(few),), out="run", recipe="original", crop_sizes=(32,), steps=3)
    plan = plan_training(config, open_dataset(config))
    assert (plan.config.recipe, plan.config.crop_sizes, plan.config.steps) == ("original", (32,), 3)


def test_the_fingerprint_counts_labels_and_patches(write_stacks, tmp_path):
    folder = sparse(write_stacks, tmp_path / "few")
    config = TrainConfig(data=(str(folder),), out="run")
    found = plan_training(config, open_dataset(config)).fingerprint
    masks = [np.load(path) for path in sorted(folder.glob("train_masks_*.npy"))]
    images = [np.load(path) for path in sorted(folder.glob("train_image_*.npy"))]
    labelled = [(m != 255) & np.isfinite(i).all(-1) for m, i in zip(masks, images, strict=True)]
    assert found.training == sum(map(np.count_nonzero, labelled)) and found.channels == 3
    assert found.share == pytest.approx(found.training / (2 * 96 * 96))
    from scipy import ndimage

    for number in (1, 2, 3):
        patches = sum(
            ndimage.label((m == number) & np.isfinite(i).all(-1), np.ones((3, 3)))[1]
            for m, i in zip(masks, images, strict=True)
        )
        assert found.patches[f"class {number}"] == patches


def test_the_command_prints_the_plan_and_stops(write_stacks, tmp_path, capsys):
    folder = sparse(write_stacks, tmp_path / "few")
    assert main([str(folder), "--out", str(tmp_path / "run"), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "recipe few-labels: small models" in printed and "few labels: " in printed and len(printed) < 1500
    assert not (tmp_path / "run").exists()
    assert main(["--pretrain", "x.tif", "--out", str(tmp_path / "run"), "--plan"]) == 1
    assert "cannot plan a pretraining" in capsys.readouterr().err


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A mosaic of three materials, some polygons, and a run of the default recipe on them."""
    import geopandas
    from affine import Affine
    from shapely.geometry import box

    import lulc

    folder = tmp_path_factory.mktemp("few")
    rng = np.random.default_rng(4)
    truth = np.kron(rng.integers(0, 3, (6, 8)), np.ones((30, 30), int))
    spectra = np.array([[300, 500, 400, 700, 900, 1000, 1100, 600, 400],
                        [200, 400, 250, 600, 2200, 2700, 3000, 1500, 700],
                        [500, 700, 900, 1200, 1800, 2000, 2300, 2900, 2200]])  # fmt: skip
    bands = np.clip(spectra[truth] + rng.normal(0, 120, (*truth.shape, 9)), 1, None).astype(np.uint16)
    transform = Affine(10, 0, 500_000, 0, -10, 6_800_000)
    with rasterio.open(folder / "mosaic.tif", "w", driver="GTiff", count=9, height=180, width=240,
                       dtype="uint16", crs="EPSG:32635", transform=transform, nodata=0) as file:  # fmt: skip
        file.write(np.moveaxis(bands, -1, 0))
        file.descriptions = BANDS
    rows = []
    for k in range(24):
        row, col = 30 * (k // 4) + 10, 60 * (k % 4) + 10
        x, y = transform @ (col, row)
        rows.append((NAMES[truth[row, col]], box(x, y - 70, x + 80, y)))
    labels, shapes = zip(*rows, strict=True)
    frame = geopandas.GeoDataFrame({"class": labels}, geometry=list(shapes), crs="EPSG:32635")
    frame.to_file(folder / "polygons.gpkg")
    manifest = lulc.make_stacks(
        bands=[str(folder / "mosaic.tif")], labels=str(folder / "polygons.gpkg"), out=str(folder / "stacks"),
        scale=1e-4, offset=0,
    )  # fmt: skip
    assert main([str(folder / "stacks"), "--out", str(folder / "run"), *QUICK]) == 0
    return {"folder": folder, "truth": truth, "labels": manifest.provenance["labelled"]}


@pytest.mark.integration
def test_the_run_keeps_plan_and_small_models_and_recommends_these(scene):
    run = scene["folder"] / "run"
    plan = json.loads((run / "plan.json").read_text())
    assert plan["recipe"] == "few-labels" and plan["options"]["epochs"] == 1
    assert find_model(str(run), "auto").name == "few-labels.npz"
    assert find_model(str(run)).suffix == ".keras"
    compared = load_card(run / "baseline.npz").scores["compared"]
    # Two batches teach a network nothing.
    assert compared["recommended"] == "few-labels" and compared["small"]["macro-F1"] > 0.9
    assert plan["network"] and "--epochs" in " ".join(plan["reasons"])


@pytest.mark.integration
def test_without_an_option_of_a_network_none_is_trained(scene, tmp_path, capsys):
    stacks, run = str(scene["folder"] / "stacks"), tmp_path / "run"
    assert main([stacks, "--out", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"] == {"auto": {"file": str(run / "few-labels.npz")}} and found["history"] is None
    assert found["comparison"]["network"] is None and found["comparison"]["small"]["macro-F1"] > 0.9
    assert not list(run.glob("*.keras")) and not (run / "history.csv").exists()
    assert not json.loads((run / "plan.json").read_text())["network"]
    # The same models as beside a network, out-of-distribution score included.
    for name in ("few-labels", "baseline"):
        assert (run / f"{name}.npz").read_bytes() == (scene["folder"] / "run" / f"{name}.npz").read_bytes()
        assert (
            load_card(run / f"{name}.npz").novelty == load_card(scene["folder"] / f"run/{name}.npz").novelty
        )
    out = tmp_path / "map.tif"
    assert classify([str(run), str(scene["folder"] / "mosaic.tif"), str(out), "--scale", "1e-4", "-q"]) == 0
    with rasterio.open(out) as file:
        assert "few-labels" in file.tags()["LULC_MODEL"]
    with pytest.raises(InputError, match="lowest-val-loss"):
        find_model(str(run))
    assert main([stacks, "--out", str(run), "-q"]) == 1
    assert "finished run" in capsys.readouterr().err
    assert main([stacks, "--out", str(run), "--overwrite", "-q"]) == 0
    assert "mean of small models" in capsys.readouterr().out


@pytest.mark.integration
def test_cross_validation_scores_the_small_models_without_what_they_are_scored_on(
    write_stacks, tmp_path, capsys
):
    stacks, out = sparse(write_stacks, tmp_path / "few"), tmp_path / "folds"
    assert main([str(stacks), "--out", str(out), "--cross-validate", "stacks", "-q"]) == 0
    assert "2 of 2" in capsys.readouterr().out
    folds = sorted((out / "folds").iterdir())
    assert len(folds) == 2 and not list(out.glob("**/*.keras"))
    config = TrainConfig(data=(str(stacks),), out="run", cross_validate="stacks")
    for fold, (_, dataset) in zip(folds, leave_one_out(config), strict=True):
        channels, targets = len(dataset.channels), class_targets(len(dataset.legend))
        x, y = (
            np.concatenate(parts)
            for parts in zip(
                *(
                    (features_at(square, dataset.statistics, RADII), square.labels)
                    for square in labelled_squares(dataset.training, targets)
                ),
                strict=True,
            )
        )
        found = read_pixel_model(fold / "few-labels.npz", load_card(fold / "few-labels.npz"))
        # What was left out has taught nothing.
        assert np.array_equal(found.predict(x), fit_small_models(x, y, channels, 3, 1).predict(x))
    document = json.loads((out / "cross-validation.json").read_text())
    assert load_card(out / "few-labels.npz").temperature == document["temperature"]
    assert document["pooled"]["macro-F1"] > 0.8


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.integration
def test_the_map_of_few_labels_is_what_scikit_learn_makes_of_all_labels(scene, tmp_path):
    folder, out = scene["folder"], tmp_path / "map.tif"
    inputs = [str(folder / "run"), str(folder / "mosaic.tif"), str(out), "--scale", "1e-4", "--offset", "0"]
    assert classify([*inputs, "--window", "64", "-q"]) == 0
    card = load_card(folder / "run" / "few-labels.npz")
    features, labels = [], []
    for split in ("train", "val"):
        for masks in sorted((folder / "stacks").glob(f"{split}_masks_*.npy")):
            image = np.load(str(masks).replace("masks", "image"))
            known = np.load(masks) != 255
            features.append(texture_features(image[np.newaxis], card.statistics, RADII)[0][known])
            labels.append(np.load(masks)[known] - 1)
    x, y = np.concatenate(features), np.concatenate(labels)
    assert len(y) == scene["labels"]["given"]
    with open_stack([str(folder / "mosaic.tif")], [], InputConfig(scale=1e-4, offset=0)) as stack:
        image = stack.read(stack.grid.extent)
    given = texture_features(image[np.newaxis], card.statistics, RADII)[0].reshape(-1, x.shape[1])
    model = fit_small_models(x, y, 14, 3, 1)
    expected = calibrate(model.predict(given)[np.newaxis], card.temperature)[0]
    with rasterio.open(out) as file:
        bands = np.moveaxis(file.read(), 0, -1).reshape(-1, file.count)
        assert "few-labels" in file.tags()["LULC_MODEL"]
    assert np.allclose(bands[:, 1:4], expected, atol=1e-5)
    names = card.legend.names
    truth = np.array([names.index(name) + 1 for name in NAMES])[scene["truth"].ravel()]
    assert (bands[:, 0] == truth).mean() > 0.95


@pytest.mark.integration
def test_models_of_other_kinds_are_refused_where_a_network_is_needed(scene, tmp_path, capsys):
    run = scene["folder"] / "run"
    assert main([str(scene["folder"] / "stacks"), "--init", str(run / "few-labels.npz"), "--out",
                 str(tmp_path / "run"), *QUICK]) == 1  # fmt: skip
    assert "expected a network" in capsys.readouterr().err


@pytest.mark.integration
def test_overwriting_a_run_removes_its_small_models_and_plan(write_stacks, tmp_path):
    run = tmp_path / "run"
    assert main([str(sparse(write_stacks, tmp_path / "few")), "--out", str(run), *QUICK]) == 0
    assert (run / "few-labels.npz").exists() and (run / "plan.json").exists()
    clear_run(run)
    assert not list(run.glob("*.npz")) and not list(run.glob("*.json"))


@pytest.mark.integration
def test_land_of_validation_labels_counts_as_training_for_small_models_alone(scene, tmp_path):
    folder = scene["folder"]
    trained = {}
    for pick in ("auto", "lowest-val-loss"):
        out = tmp_path / f"{pick}.tif"
        inputs = [str(folder / "run"), str(folder / "mosaic.tif"), str(out), "--pick", pick, "-q"]
        assert classify([*inputs, "--scale", "1e-4", "--offset", "0"]) == 0
        with open_map(out) as the_map:
            for regions, run in ((folder / "stacks", None), (None, folder / "run")):
                found = np.zeros(the_map.grid.shape, bool)
                for region in read_ground(regions, run, the_map.grid, the_map.tags):
                    found |= region.within(the_map.grid.extent, the_map.grid)
                trained[pick, run is None] = int(found.sum())
            names = [r.name for r in read_regions(folder / "stacks", the_map.grid, the_map.tags)]
            assert any("validation" in name for name in names) == (pick != "auto")
    assert trained["auto", True] == trained["auto", False] == scene["labels"]["given"]
    assert trained["lowest-val-loss", True] == trained["lowest-val-loss", False]
    assert trained["lowest-val-loss", True] == scene["labels"]["training"]
