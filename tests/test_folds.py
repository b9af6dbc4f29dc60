"""Cross-validation: nothing of what is scored was ever trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lulc.cli.train_model import main
from lulc.config import TrainConfig
from lulc.core.schema import InputError
from lulc.core.statistics import Statistics
from lulc.datasets.loading import load_manifest
from lulc.models.backend import compile_predict
from lulc.models.config import NetworkConfig
from lulc.models.unet import geometry
from lulc.models.weights import find_model, load_card, load_model
from lulc.training import cross_validation
from lulc.training.cross_validation import cross_validate, plan_of, predict_tile
from lulc.training.data.dataset import leave_one_out

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
    datasets = leave_one_out(make_config(stacks))
    assert [name for name, _ in datasets] == [f"stacks/train_{i}" for i in range(3)]
    for i, (name, dataset) in enumerate(datasets):
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


def test_labels_within_the_radius_of_the_network_around_a_stack_left_out_are_ignored(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks", ("train", "train", "train"), gap=None)
    (_, first), (_, middle), _ = leave_one_out(make_config(folder))
    radius = geometry(NetworkConfig(classes=3, channels=3)).radius
    near, far = (np.asarray(tile.masks[0:96, 0:96]) for tile in first.training)
    assert (near[:, :radius] == 255).all() and (near[:, radius:] != 255).mean() > 0.9
    assert (far != 255).mean() > 0.9
    left, right = (np.asarray(tile.masks[0:96, 0:96]) for tile in middle.training)
    assert (left[:, 96 - radius :] == 255).all() and (right[:, :radius] == 255).all()
    labelled = sum((masks != 255).sum() for masks in (left, right))
    assert middle.counts.sum() == pytest.approx(labelled, rel=0.02)


def test_one_group_of_stacks_can_not_be_cross_validated(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks", ("train", "val"))
    with pytest.raises(InputError, match="expected two that lie apart"):
        leave_one_out(make_config(folder))


def test_a_stack_is_classified_as_in_one_pass(stacks, tmp_path, monkeypatch):
    from lulc.training.train import train

    result = train(make_config(stacks, out=tmp_path / "run"))
    model, card = load_model(result.picks["last"])
    tile = leave_one_out(make_config(stacks))[0][1].validation[0]
    monkeypatch.setattr(cross_validation, "SIDE", 32)
    plan = plan_of(tile, card)
    assert max(plan.window) < tile.side
    image = np.array(tile.image)
    image[~np.isfinite(image).all(-1)] = np.nan
    whole = compile_predict(model)(image[None])[0]
    times = np.zeros(tile.masks.shape, int)
    for found in predict_tile(compile_predict(model, (1, *plan.window)), tile, plan):
        pixels = found.window.write.slices
        times[pixels] += 1
        np.testing.assert_allclose(found.probabilities, whole[pixels], atol=1e-5)
        np.testing.assert_array_equal(found.valid, np.isfinite(image[pixels]).all(-1))
    assert (times == 1).all()


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
    monkeypatch.setattr("lulc.training.cross_validation.train", lambda *_: pytest.fail("trained again"))
    again = cross_validate(config)
    assert again.figures() == first.figures() and again.temperature == first.temperature
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds a finished run"):
        cross_validate(dataclasses.replace(config, seed=9))


def test_overwrite_trains_finished_folds_again_and_continues_interrupted_ones(stacks, tmp_path, monkeypatch):
    config = make_config(stacks, out=tmp_path / "run")
    cross_validate(config)
    config = dataclasses.replace(config, overwrite=True)
    trained, real = [], cross_validation.train

    def stop_after_one(fold, dataset):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(Path(fold.out).name)
        return real(fold, dataset)

    monkeypatch.setattr("lulc.training.cross_validation.train", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config)
    monkeypatch.setattr(
        "lulc.training.cross_validation.train", lambda *a: (trained.append(Path(a[0].out).name), real(*a))
    )
    cross_validate(config)
    assert trained == ["01", "02", "03"]


def test_what_is_refused_leaves_the_finished_folds(stacks, tmp_path):
    config = make_config(stacks, out=tmp_path / "run")
    cross_validate(config)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refused = (({"batch_size": 10**6}, "GB of memory"), ({"crop_sizes": (256,)}, "the largest stack"))
    for changes, reason in refused:
        with pytest.raises(InputError, match=reason):
            cross_validate(dataclasses.replace(config, overwrite=True, **changes))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_time_budget_and_cross_validation_are_refused_together(stacks, tmp_path, capsys):
    arguments = [str(stacks), "--out", str(tmp_path / "run"), "--cross-validate", "--minutes", "5"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "--minutes is 5.0, expected none with --cross-validate" in error
    assert not (tmp_path / "run").exists()
