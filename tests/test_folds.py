"""Cross-validation: nothing of what is scored was ever trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lulc.cli.train_model import describe_folds, main
from lulc.config import TrainConfig
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.datasets.loading import load_manifest
from lulc.evaluation.measures.metrics import score
from lulc.models.backend import compile_predict
from lulc.models.config import NetworkConfig
from lulc.models.unet import geometry
from lulc.models.weights import find_model, load_card, load_model
from lulc.training import cross_validation, held_out
from lulc.training.cross_validation import CrossValidation, Fold, cross_validate
from lulc.training.data.dataset import leave_one_out, open_dataset
from lulc.training.held_out import plan_of, predict_tile

pytestmark = pytest.mark.integration

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


def test_folders_and_scenes_are_left_out_as_asked(write_stacks, tmp_path):
    first = write_stacks(tmp_path / "a", ("train", "train", "val"))
    second = write_stacks(tmp_path / "b", ("train", "train"), east=90_000.0, seed=5)
    folds = leave_one_out(make_config(first, second, cross_validate="folders"))
    assert [name for name, _ in folds] == [str(first), str(second)]
    assert [[t.name for t in d.validation] for _, d in folds] == [
        ["a/train_0", "a/train_1"],
        ["b/train_0", "b/train_1"],
    ]
    assert [[t.name for t in d.training] for _, d in folds] == [
        ["b/train_0", "b/train_1"],
        ["a/train_0", "a/train_1"],
    ]
    with pytest.raises(InputError, match="of one of the folders"):
        leave_one_out(make_config(first, cross_validate="folders"))


def test_scenes_are_told_by_the_images_that_a_stack_was_cut_from(write_stacks, tmp_path):
    """Two scenes side by side in one folder, a stack of both of them joins them."""
    folder = write_stacks(tmp_path / "stacks", ("train", "train", "train"))
    manifest = load_manifest(folder)
    windows = [stack.window for stack in manifest.stacks]

    def described(*groups):
        scenes = []
        for k, group in enumerate(groups):
            top, left = min(windows[i].row for i in group), min(windows[i].col for i in group)
            bottom, right = max(windows[i].stop[0] for i in group), max(windows[i].stop[1] for i in group)
            scenes.append({"files": [f"scene{k}.tif"], "window": [top, left, bottom - top, right - left]})
        dataclasses.replace(manifest, provenance={"scenes": scenes}).write()
        return leave_one_out(make_config(folder, cross_validate="scenes"))

    folds = described((0, 1), (2,))
    assert [name for name, _ in folds] == ["scene0.tif", "scene1.tif"]
    assert [t.name for t in folds[0][1].validation] == ["stacks/train_0", "stacks/train_1"]
    with pytest.raises(InputError, match="of one of the scenes"):
        described((0, 1), (1, 2))


def test_a_fold_that_lacks_a_class_says_nothing_of_it(tmp_path):
    legend = Legend("two", tuple(LandCoverClass(k, f"class {k}", "#000000") for k in (1, 2)))

    def fold(name, matrix, ece):
        confusion = np.zeros((3, 3), np.int64)
        confusion[1:, 1:] = matrix
        return Fold(name, tmp_path, score(confusion, legend), ece)

    folds = (
        fold("a", [[6, 2], [4, 8]], 0.1),
        fold("b", [[10, 0], [0, 0]], 0.3),
        fold("c", [[0, 0], [0, 0]], None),
    )
    pooled = np.zeros((3, 3), np.int64)
    pooled[1:, 1:] = [[16, 2], [4, 8]]
    found = CrossValidation(folds, score(pooled, legend), 1.0, tmp_path / "x.json")
    first, second = found.classes()
    f1, f2 = 12 / 18, 16 / 22
    assert (first.folds, second.folds) == (2, 1)
    assert (first.mean, second.mean, second.spread) == (pytest.approx((f1 + 1) / 2), pytest.approx(f2), None)
    metrics = found.metrics()
    assert metrics["macro-F1"]["mean"] == pytest.approx(((f1 + 1) / 2 + f2) / 2)
    assert metrics["overall accuracy"]["mean"] == pytest.approx((0.7 + 1.0) / 2)
    assert metrics["ECE"]["mean"] == pytest.approx(0.2)
    text = describe_folds(found)
    assert "1 of 2" in text and "2 class 2" in text and "–" in text


def test_another_folder_validates_whole_and_own_validation_stacks_take_no_part(
    write_stacks, tmp_path, caplog
):
    own = write_stacks(tmp_path / "own", ("train", "train", "val"))
    other = write_stacks(tmp_path / "other", ("train", "val"), east=90_000.0, seed=5)
    config = make_config(own, validation_data=(str(other),))
    dataset = open_dataset(config)
    assert [t.name for t in dataset.training] == ["own/train_0", "own/train_1"]
    assert [t.name for t in dataset.validation] == ["other/train_0", "other/val_1"]
    assert set(dataset.inputs) == {"data 1", "validation data 1"}
    trained = np.concatenate([t.image.reshape(-1, 3) for t in dataset.training])
    np.testing.assert_allclose(dataset.statistics.mean, Statistics.of(trained[None]).mean, rtol=1e-5)
    assert "take no part" in caplog.text
    with pytest.raises(InputError, match="named twice"):
        open_dataset(make_config(own, validation_data=(str(own),)))
    with pytest.raises(InputError, match="--validation-data with --cross-validate"):
        leave_one_out(make_config(own, validation_data=(str(other),), cross_validate="stacks"))


def test_a_folder_without_a_valid_pixel_weighs_nothing(write_stacks, tmp_path):
    def invalidate(name, image, masks):
        image[:] = np.nan

    own = write_stacks(tmp_path / "own", ("train", "val"))
    empty = write_stacks(tmp_path / "empty", ("train", "val"), east=90_000.0, seed=5, change=invalidate)
    assert open_dataset(make_config(own, empty)).statistics == load_manifest(own).statistics


def test_labels_on_the_ground_of_other_validation_data_are_ignored(write_stacks, tmp_path):
    own = write_stacks(tmp_path / "own", ("train", "train", "train"))
    same = write_stacks(tmp_path / "same", ("val",), seed=5)
    dataset = open_dataset(make_config(own, validation_data=(str(same),)))
    assert [t.name for t in dataset.training] == ["own/train_1", "own/train_2"]


def test_one_group_of_stacks_can_not_be_cross_validated(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks", ("train", "val"))
    with pytest.raises(InputError, match="expected two that lie apart"):
        leave_one_out(make_config(folder))


def test_a_stack_is_classified_as_in_one_pass(stacks, tmp_path, monkeypatch):
    from lulc.training.train import train

    result = train(make_config(stacks, out=tmp_path / "run"))
    model, card = load_model(result.picks["last"])
    tile = leave_one_out(make_config(stacks))[0][1].validation[0]
    monkeypatch.setattr(held_out, "SIDE", 32)
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
    arguments = [
        str(stacks),
        "--out",
        str(out),
        "--cross-validate",
        "stacks",
        "-q",
        "--filters",
        "4",
        "--steps",
        "3",
    ]
    arguments += ["--epochs", "1", "--validation-steps", "1", "--crop-sizes", "32", "--batch-size", "2"]
    assert main([*arguments, "--validation-crop-sizes", "32"]) == 0
    printed = capsys.readouterr().out
    data = json.loads((out / "cross-validation.json").read_text())
    assert [fold["left_out"] for fold in data["folds"]] == [f"stacks/train_{i}" for i in range(3)]
    values = [fold["overall accuracy"] for fold in data["folds"]]
    assert data["over folds"]["overall accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert data["over folds"]["overall accuracy"]["spread"] == pytest.approx(np.std(values, ddof=1))
    means = [c["F1 mean"] for c in data["classes"]]
    assert data["over folds"]["macro-F1"]["mean"] == pytest.approx(np.mean(means))
    labelled = sum(sum(s.class_counts) for s in load_manifest(stacks).of("train"))
    assert data["pooled"]["pixels"] == labelled
    assert load_card(find_model(str(out), "last")).temperature == data["temperature"] != 1.0
    for name in ("stacks/train_0", "mean", "spread", "macro-F1", "3 of 3", "F1, pooled"):
        assert name in printed


def test_finished_folds_are_not_trained_again(stacks, tmp_path, monkeypatch):
    config = make_config(stacks, out=tmp_path / "run")
    first = cross_validate(config)
    monkeypatch.setattr("lulc.training.cross_validation.train", lambda *_, **__: pytest.fail("trained again"))
    again = cross_validate(config)
    assert again.metrics() == first.metrics() and again.temperature == first.temperature
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds a finished run"):
        cross_validate(dataclasses.replace(config, seed=9))


def test_overwrite_trains_finished_folds_again_and_continues_interrupted_ones(stacks, tmp_path, monkeypatch):
    config = make_config(stacks, out=tmp_path / "run")
    cross_validate(config)
    config = dataclasses.replace(config, overwrite=True)
    trained, real = [], cross_validation.train

    def stop_after_one(fold, dataset, **options):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(Path(fold.out).name)
        return real(fold, dataset, **options)

    monkeypatch.setattr("lulc.training.cross_validation.train", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config)
    monkeypatch.setattr(
        "lulc.training.cross_validation.train",
        lambda *a, **k: (trained.append(Path(a[0].out).name), real(*a, **k)),
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
    arguments = [str(stacks), "--out", str(tmp_path / "run"), "--cross-validate", "stacks", "--minutes", "5"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "--minutes with --cross-validate" in error
    assert not (tmp_path / "run").exists()
