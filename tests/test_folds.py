"""Cross-validation: nothing of what is scored was ever trained on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lulc.backend import compile_predict
from lulc.commands.train_model import main
from lulc.config import TrainConfig
from lulc.dataset import leave_one_out
from lulc.folds import cross_validate, predict_tile
from lulc.schema import InputError
from lulc.statistics import Statistics
from lulc.tiles import load_manifest
from lulc.weights import find_model, load_card, load_model

SMALL = {
    "epochs": 1, "steps": 3, "validation_steps": 1, "batch_size": 2, "crop_sizes": (32,),
    "validation_crop_sizes": (32,), "filters": (4,),
}  # fmt: skip


def make_config(*folders, out="-", **changes):
    return TrainConfig(data=tuple(str(f) for f in folders), out=str(out), **SMALL | changes)


@pytest.fixture(scope="module")
def stacks(write_stacks, tmp_path_factory):
    return write_stacks(tmp_path_factory.mktemp("data") / "stacks", ("train", "train", "train", "val"))


def test_every_training_stack_is_left_out_once_and_validation_stacks_take_no_part(stacks):
    folds = leave_one_out(make_config(stacks))
    assert [name for name, _ in folds] == [f"stacks/train_{i}" for i in range(3)]
    for i, (name, dataset) in enumerate(folds):
        assert [tile.name for tile in dataset.validation] == [name]
        assert [tile.name for tile in dataset.training] == [f"stacks/train_{k}" for k in range(3) if k != i]
        trained = np.concatenate([t.image.reshape(-1, 3) for t in dataset.training])
        expected = Statistics.of(trained[None])
        np.testing.assert_allclose(dataset.statistics.mean, expected.mean, rtol=1e-5)
        assert dataset.inputs["left out"] == name


def test_stacks_that_overlap_on_the_ground_are_left_out_together(stacks, write_stacks, tmp_path):
    # 960 m to the east: its first stack lies where the second of the other folder lies.
    other = write_stacks(tmp_path / "other", ("train", "val"), east=960.0, seed=5)
    names = [name for name, _ in leave_one_out(make_config(stacks, other))]
    assert sorted(names) == ["stacks/train_0", "stacks/train_1 + other/train_0", "stacks/train_2"]


def test_one_group_of_stacks_can_not_be_cross_validated(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks", ("train", "val"))
    with pytest.raises(InputError, match="expected two that lie apart"):
        leave_one_out(make_config(folder))


def test_a_stack_is_classified_as_in_one_pass(stacks, tmp_path):
    from lulc.training import train

    result = train(make_config(stacks, out=tmp_path / "run"))
    model, card = load_model(result.picks["last"])
    tile = leave_one_out(make_config(stacks))[0][1].validation[0]
    side, halo = 32, card.halo
    network = compile_predict(model, (1, side + 2 * halo, side + 2 * halo))
    image = np.array(tile.image)
    image[~np.isfinite(image).all(-1)] = np.nan
    padded = np.pad(image, ((halo, halo), (halo, halo), (0, 0)), constant_values=np.nan)
    whole = compile_predict(model)(padded[None])[0][halo:-halo, halo:-halo]
    for place, activations, valid in predict_tile(network, tile, side, halo):
        np.testing.assert_allclose(activations, whole[place], atol=1e-5)
        np.testing.assert_array_equal(valid, np.isfinite(image[place]).all(-1))


def test_the_command_reports_folds_and_gives_the_final_card_their_temperature(stacks, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [str(stacks), "--out", str(out), "--cross-validate", "-q", "--filters", "4", "--steps", "3"]
    arguments += ["--epochs", "1", "--validation-steps", "1", "--crop-sizes", "32", "--batch-size", "2"]
    assert main([*arguments, "--validation-crop-sizes", "32"]) == 0
    printed = capsys.readouterr().out
    data = json.loads((out / "cross-validation.json").read_text())
    assert [fold["left_out"] for fold in data["folds"]] == [f"stacks/train_{i}" for i in range(3)]
    values = [fold["macro-F1"] for fold in data["folds"]]
    assert data["over folds"]["macro-F1"]["mean"] == pytest.approx(np.mean(values))
    assert data["over folds"]["macro-F1"]["spread"] == pytest.approx(np.std(values, ddof=1))
    labelled = sum(sum(s.class_counts) for s in load_manifest(stacks).of("train"))
    assert data["pooled"]["pixels"] == labelled
    assert load_card(find_model(str(out), "last")).temperature == data["temperature"] != 1.0
    for name in ("stacks/train_0", "mean", "spread", "macro-F1"):
        assert name in printed


def test_finished_folds_are_not_trained_again(stacks, tmp_path, monkeypatch):
    config = make_config(stacks, out=tmp_path / "run")
    first = cross_validate(config)
    monkeypatch.setattr("lulc.folds.train", lambda *_: pytest.fail("trained again"))
    again = cross_validate(config)
    assert again.figures() == first.figures() and again.temperature == first.temperature
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds a finished run"):
        cross_validate(dataclasses.replace(config, seed=9))
