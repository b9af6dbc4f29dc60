"""Pretraining without labels: what is hidden, what is asked, what it learns, and what starts from it."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.cli import make_classifications, train_model
from lulc.config import PreprocessConfig, TrainConfig
from lulc.core.schema import BANDS, CHANNELS, IGNORE, InputError
from lulc.models.card import load_card
from lulc.models.weights import arrays_of, find_model, load_model
from lulc.preprocessing.preprocess import make_stacks
from lulc.training import train as train_module
from lulc.training.data import unlabelled
from lulc.training.data.crops import training_crops
from lulc.training.data.masking import Filled, MaskedCrops, absolute_difference
from lulc.training.data.unlabelled import input_options, open_mosaic
from lulc.training.train import train

pytestmark = pytest.mark.integration

SIDE = 192


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated digital numbers of nine bands that follow from smooth fields; a corner and specks of 0."""
    rng = np.random.default_rng(4)
    rows, cols = np.mgrid[:SIDE, :SIDE] / 24
    fields = np.stack([np.sin(rows + 0.5 * cols), np.cos(cols - 0.3 * rows), np.sin(0.7 * rows * 2)])
    values = 1500 + 900 * np.tensordot(rng.normal(0, 0.5, (9, 3)), fields, 1)
    values = np.clip(values + rng.normal(0, 20, values.shape), 1, 9000)
    values[:, :40, :30] = 0
    values[:, rng.random((SIDE, SIDE)) < 0.02] = 0
    path = tmp_path_factory.mktemp("mosaic") / "mosaic.tif"
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 9, "nodata": 0, "crs": "EPSG:3067"}
    transform = Affine(10, 0, 566000, 0, -10, 6785000)
    with rasterio.open(path, "w", dtype="uint16", transform=transform, tiled=True, **profile) as target:
        target.write(values.astype("uint16"))
        target.descriptions = BANDS
    return path


class StopAfter:
    """Asks to stop after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def received(self) -> bool:
        self.left -= 1
        return self.left == 0


def config_of(mosaic: Path, out: Path, **changes: object) -> TrainConfig:
    fields: dict = {
        "pretrain": (str(mosaic),), "out": str(out), "epochs": 2, "steps": 100, "validation_steps": 3,
        "batch_size": 4, "crop_sizes": (48,), "validation_crop_sizes": (48,), "rotations": 4,
        "filters": (8, 16), "norm": "none", "mask_block": 8, "warmup": 4, "learning_rate": 0.01,
    }  # fmt: skip
    return TrainConfig(**(fields | changes))


@pytest.fixture(scope="module")
def pretrained(mosaic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run."""
    out = tmp_path_factory.mktemp("run") / "pre"
    train(config_of(mosaic, out))
    return out


def test_a_mosaic_becomes_squares_of_which_some_validate(mosaic: Path, tmp_path: Path) -> None:
    dataset = open_mosaic(config_of(mosaic, tmp_path).resolved())
    names = [tile.name for tile in (*dataset.training, *dataset.validation)]
    assert len(names) == len(set(names)) and dataset.validation and len(dataset.training) > 1
    assert [channel["name"] for channel in dataset.channels] == list(CHANNELS) == list(dataset.legend.names)
    tile = dataset.training[0]
    assert tile.image.shape == (*tile.masks.shape, 14) and tile.side >= 48
    assert tile.image[2:7, 3:5].shape == (5, 2, 14)
    whole = np.concatenate(
        [t.image[0:SIDE, 0:SIDE].reshape(-1, 14) for t in (*dataset.training, *dataset.validation)]
    )
    np.testing.assert_allclose(dataset.statistics.mean, np.nanmean(whole, axis=0, dtype="f8"), rtol=1e-6)
    np.testing.assert_allclose(dataset.statistics.std, np.nanstd(whole, axis=0, dtype="f8"), rtol=1e-6)


def test_squares_are_small_enough_that_two_hold_a_crop(
    mosaic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unlabelled, "SIDE", SIDE - 12)
    dataset = open_mosaic(config_of(mosaic, tmp_path).resolved())
    assert {tile.side for tile in (*dataset.training, *dataset.validation)} == {(SIDE - 12) // 2}


def test_what_is_hidden_is_asked_where_it_is_valid_and_nothing_else(mosaic: Path, tmp_path: Path) -> None:
    config = config_of(mosaic, tmp_path, mask_ratio=0.5).resolved()
    dataset = open_mosaic(config)
    hidden = training_crops(config, dataset)
    unmasked = dataclasses.replace(config, pretrain=(), mask_ratio=None, mask_block=None)
    plain = training_crops(unmasked, dataset)
    assert isinstance(hidden, MaskedCrops)
    for index in range(3):
        images, targets = hidden.batch(1, index)
        whole, _ = plain.batch(1, index)
        gone = np.isnan(images[..., 0])
        invalid = np.isnan(whole[..., 0])
        np.testing.assert_array_equal(images[~gone], whole[~gone])
        asked = targets != IGNORE
        np.testing.assert_array_equal(asked, np.repeat((gone & ~invalid)[..., None], 14, axis=-1))
        known = (whole - np.float32(dataset.statistics.mean)) / np.float32(dataset.statistics.std)
        np.testing.assert_array_equal(targets[asked], known[asked])
        for crop in gone | invalid:
            blocks = crop.reshape(6, 8, 6, 8).all(axis=(1, 3))
            assert blocks.sum() >= 18, "half of the 36 blocks are hidden"
    again = hidden.batch(1, 2)
    np.testing.assert_array_equal(again[0], images)
    assert not np.array_equal(again[1], hidden.batch(2, 2)[1])


def test_a_share_of_a_batch_hides_what_the_whole_batch_hides(mosaic: Path, tmp_path: Path) -> None:
    config = config_of(mosaic, tmp_path).resolved()
    dataset = open_mosaic(config)
    whole = training_crops(config, dataset).batch(1, 0)
    share = training_crops(config, dataset, range(2, 4)).batch(1, 0)
    for part, array in zip(share, whole, strict=True):
        np.testing.assert_array_equal(part, array[2:4])


def test_the_loss_is_the_mean_difference_of_what_is_asked() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    filled = rng.normal(size=targets.shape).astype("float32")
    asked = rng.random(targets.shape) < 0.4
    targets[~asked] = IGNORE
    found = float(absolute_difference(targets, filled))
    assert found == pytest.approx(np.abs(targets - filled)[asked].mean(), rel=1e-5)
    # What is not asked changes nothing, whatever the network gives there.
    assert float(absolute_difference(targets, np.where(asked, filled, 1e6))) == found
    assert float(absolute_difference(np.full_like(targets, IGNORE), filled)) == 0
    metric = Filled()
    metric.update_state(targets, np.where(asked, targets, 0))
    assert float(metric.result()) == pytest.approx(1)
    metric.reset_state()
    metric.update_state(targets, np.zeros_like(targets))
    assert float(metric.result()) == pytest.approx(0)


def test_pretraining_learns_to_fill_in(pretrained: Path) -> None:
    with open(pretrained / "history.csv", newline="", encoding="utf-8") as file:
        first, last = list(csv.DictReader(file))
    assert float(last["loss"]) < float(first["loss"])
    assert float(last["val_loss"]) < float(first["val_loss"])
    # The mean of each band would fill in nothing.
    assert float(last["val_accuracy"]) > max(0.2, float(first["val_accuracy"]))
    card = load_card(find_model(str(pretrained)))
    assert card.network.activation == "linear" and card.network.classes == 14
    assert set(card.scores) == {"val_loss", "val_filled", "val_filled_by_channel"}
    assert card.training["data"][0]["mosaic"][0]["name"] == "mosaic.tif"
    assert card.training["parameters"]["loss"] == "absolute difference of masked values"


def test_an_interrupted_pretraining_ends_where_an_undisturbed_one_does(
    mosaic: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(mosaic, tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAfter(50))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    options = tmp_path / "options.yaml"
    options.write_text("bounds: [566000, 6783080, 567500, 6785000]\n")
    with pytest.raises(InputError, match="input options"):
        train(dataclasses.replace(config, input_options=str(options)))
    train(config)
    one, two = (
        arrays_of(load_model(find_model(str(f), "last"))[0]) for f in (pretrained, tmp_path / "again")
    )
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_training_starts_with_everything_but_head_and_statistics(
    pretrained: Path, mosaic: Path, tmp_path: Path
) -> None:
    labels = np.zeros((1, SIDE, SIDE), np.uint8)
    labels[0, :, : SIDE // 2], labels[0, :, SIDE // 2 :] = 1, 2
    with rasterio.open(mosaic) as source:
        profile = source.profile | {"count": 1, "dtype": "uint8", "nodata": None}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile) as target:
        target.write(labels)
    stacks = PreprocessConfig(
        bands=(str(mosaic),), labels=str(tmp_path / "labels.tif"), out=str(tmp_path / "stacks"),
        scheme="kaakonkulma-13", size=96, gap=0,
    )  # fmt: skip
    statistics = make_stacks(stacks).statistics
    config = TrainConfig(
        data=(stacks.out,), out=str(tmp_path / "run"), init=str(pretrained), filters=(8, 16),
        norm="none", epochs=1,
        steps=1, validation_steps=1, batch_size=1, crop_sizes=(32,), validation_crop_sizes=(32,),
        learning_rate=1e-20, weight_decay=0.0, average=0.0,
    )  # fmt: skip
    model, card = load_model(train(config).picks["last"])
    before, after = arrays_of(load_model(find_model(str(pretrained)))[0]), arrays_of(model)
    assert card.network.activation == "softmax" and card.statistics == statistics
    assert after["final_conv/kernel"].shape[-1] == len(card.legend)
    np.testing.assert_allclose(after["standardization/mean"], statistics.mean, rtol=1e-6)
    kept = [n for n in before if not n.startswith(("final_conv", "standardization"))]
    assert len(kept) > 10
    for name in kept:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, err_msg=name)


def test_a_pretrained_network_does_not_classify(
    pretrained: Path, mosaic: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_classifications.main([str(pretrained), str(mosaic), str(tmp_path / "map.tif")]) == 1
    assert "knows no classes" in caplog.text and "--init" in caplog.text
    assert not (tmp_path / "map.tif").exists()


def test_the_command_says_what_comes_next(
    mosaic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pre"
    arguments = [
        "--pretrain",
        str(mosaic),
        "--out",
        str(out),
        "--epochs",
        "1",
        "--steps",
        "1",
        "--filters",
        "4",
    ]
    arguments += ["--validation-steps", "1", "--crop-sizes", "32", "--validation-crop-sizes", "32"]
    assert train_model.main([*arguments, "--rotations", "1", "--batch-size", "1"]) == 0
    printed = capsys.readouterr().out
    assert "filled  by band" in printed and f"train_model.py DATA --init {out} --out FOLDER" in printed


def test_input_options_come_from_a_file_of_preprocessing(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("offset: -1000\nnodata: 7\nlabels: ignored.tif\nstacks: 3\n")
    found, _ = input_options(str(file))
    assert (found.offset, found.nodata, found.scale) == (-1000, 7, None)
    file.write_text("no-such-option: 1\n")
    with pytest.raises(InputError, match="no-such-option"):
        input_options(str(file))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"data": ("stacks",)}, "--pretrain with DATA"),
        ({"loss": "ce"}, "--loss is given"),
        ({"rare_classes": 0.5}, "--rare-classes is given"),
        ({"single_class": "Water"}, "--pretrain with --single-class"),
        ({"cross_validate": "stacks"}, "--pretrain with --cross-validate"),
        ({"already_standardised": True}, "--pretrain with --already-standardised"),
        ({"mask_ratio": 1.0}, "1.0 for --mask-ratio, expected a number of more than 0 and less than 1"),
        ({"mask_block": 48}, "--mask-block is 48"),
        (
            {"pretrain": (), "data": ("stacks",), "mask_ratio": 0.5},
            "--mask-ratio without --pretrain",
        ),
        ({"pretrain": ()}, "no folder with stacks"),
        ({"crop_sizes": (128,), "rotations": 1}, "expected 2, one of which validates"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    changes: dict, reason: str, mosaic: Path, tmp_path: Path
) -> None:
    mask_block = {"mask_block": None} if not changes.get("pretrain", (mosaic,)) else {}
    with pytest.raises(InputError, match=reason):
        train(config_of(mosaic, tmp_path / "run", **(mask_block | changes)))
