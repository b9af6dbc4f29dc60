"""Training: what it refuses, what it leaves behind, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from lulc.config import RECIPES, TrainConfig
from lulc.core.channels import set_of
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.datasets.loading import load_manifest
from lulc.datasets.manifest import open_tile
from lulc.models import backend
from lulc.models.backend import keras
from lulc.models.card import write_card
from lulc.models.uncertainty import decide
from lulc.models.weights import find_model, load_card, read_arrays, read_picks
from lulc.training import loop as loop_module
from lulc.training import train as train_module
from lulc.training.data.dataset import open_dataset
from lulc.training.loop import PACE_BATCHES, PACE_LATEST, LabelledAccuracy, Pace
from lulc.training.run_folder import Row, kept_models, picks_of
from lulc.training.train import train

pytestmark = pytest.mark.integration

SMALL = {
    "epochs": 2, "steps": 4, "validation_steps": 2, "batch_size": 2, "crop_sizes": (32,),
    "validation_crop_sizes": (32,), "rotations": 8, "filters": (4,), "seed": 3, "loss": "ce",
}  # fmt: skip


@pytest.fixture(scope="module")
def stacks(write_stacks, tmp_path_factory):
    return write_stacks(tmp_path_factory.mktemp("data") / "stacks")


def make_config(data, out, **changes):
    data = data if isinstance(data, tuple) else (data,)
    return TrainConfig(data=tuple(str(d) for d in data), out=str(out), **SMALL | changes)


def weights_of(result, pick="last"):
    return read_arrays(result.picks[pick])


def assert_equal_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def straight(stacks, tmp_path_factory):
    """An uninterrupted run that the others are compared with; all its models kept."""
    return train(make_config(stacks, tmp_path_factory.mktemp("runs") / "straight", keep="all"))


class StopAfter:
    """Stands in for a signal: asks to stop after some batches, as SIGTERM does."""

    def __init__(self, batches):
        self.left = batches

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def received(self):
        self.left -= 1
        return self.left == 0


def test_a_run_leaves_models_cards_history_and_picks(straight):
    with open(straight.history, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert straight.finished and straight.picture.stat().st_size > 1000
    for row in rows:
        assert row["model"] == f"{int(row['epoch']):02d}-{float(row['val_loss']):.2f}.keras"
        card = load_card(straight.folder / row["model"])
        assert card.scores["val_loss"] == float(row["val_loss"])
        assert card.training["epoch"] == int(row["epoch"])
        assert card.training["data"][0]["folder"] == "stacks"
        assert [c.name for c in card.channels] == ["B02", "B03", "B04"]
        assert (card.stride, card.halo % 2) == (2, 0)
    assert read_picks(straight.folder) == {pick: path.name for pick, path in straight.picks.items()}
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert find_model(str(straight.folder)).name == best["model"]
    assert not list((straight.folder / "checkpoints").glob("*.bin"))


def test_the_pace_counts_each_crop_side_by_its_share_and_no_first_batch():
    pace = Pace({32: 0.25, 64: 0.75})
    for _ in range(PACE_BATCHES):
        pace.note(32, 5.0 if not pace._seconds else 1.0)
    assert not pace.note(64, 9.0) and not pace.note(64, 3.0) and pace.note(64, 3.0)
    assert pace.batch == pytest.approx(0.25 * 1 + 0.75 * 3)
    assert not pace.note(64, 3.0), "it is told once"


def test_the_pace_of_a_side_that_did_not_come_follows_from_its_pixels():
    pace = Pace({32: 0.5, 64: 0.5})
    told = [pace.note(32, 1.0) for _ in range(PACE_LATEST + 1)]
    assert told.index(True) == PACE_LATEST
    assert pace.batch == pytest.approx(0.5 * 1 + 0.5 * 4)


def test_advice_about_the_time_fits_the_time(stacks, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="lulc")
    monkeypatch.setattr(Pace, "batch", property(lambda _: 0.01))
    monkeypatch.setattr(loop_module.Loop, "_forecast_validation", lambda _: 0.5)
    config = make_config(stacks, tmp_path / "run", minutes=10.0, epochs=6000, steps=20)
    monkeypatch.setattr(loop_module.Loop, "_checkpoint", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    # 0.2 s of training and 0.5 s of validation in each epoch: 510 of the 600 s are planned with.
    advice = next(r for r in caplog.records if "the time ends before that" in r.message).message
    assert int(advice.split("--epochs ")[1].split("`")[0]) == pytest.approx(510 / 0.7, abs=15)
    assert any("validation of 6000 epochs included" in r.message for r in caplog.records)


def test_card_and_history_name_no_path_of_this_machine(straight):
    for path in (*straight.folder.glob("*.json"), straight.history):
        assert str(Path(straight.folder).parent) not in path.read_text()


def test_equal_seeds_give_equal_weights_and_others_do_not(stacks, straight, tmp_path):
    again = train(make_config(stacks, tmp_path / "again", workers=3))
    assert_equal_weights(weights_of(straight), weights_of(again))
    other = train(make_config(stacks, tmp_path / "other", seed=4, epochs=1, steps=1))
    assert not np.array_equal(weights_of(other)["final_conv/kernel"], weights_of(again)["final_conv/kernel"])


@pytest.mark.parametrize("batches", [1, 3, 4, 6])
def test_a_continued_run_gives_the_weights_of_an_uninterrupted_one(
    stacks, straight, tmp_path, monkeypatch, batches
):
    config = make_config(stacks, tmp_path / "run", keep="all")
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(batches))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    keras.utils.set_random_seed(77)
    continued = train(config)
    assert_equal_weights(weights_of(straight), weights_of(continued))
    for a, b in zip(straight.rows, continued.rows, strict=True):
        assert dataclasses.replace(a, seconds=0.0) == dataclasses.replace(b, seconds=0.0)


def test_a_kill_between_two_checkpoints_repeats_their_batches(stacks, straight, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    config = make_config(stacks, tmp_path / "run")
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", 0.0)
    original, calls = loop_module.Loop._check_finite, []

    def die(self, loss, look):
        calls.append(loss)
        if len(calls) == 7:
            raise Killed
        original(self, loss, look)

    monkeypatch.setattr(loop_module.Loop, "_check_finite", die)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()
    newest = max((tmp_path / "run" / "checkpoints").glob("*.bin"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_equal_weights(weights_of(straight), weights_of(train(config)))


def test_sigterm_finishes_the_batch_and_leaves_a_checkpoint(stacks, straight, tmp_path):
    config = make_config(stacks, tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM)

    def terminate():
        while not (tmp_path / "run" / "run.json").exists():
            time.sleep(0.01)
        while signal.getsignal(signal.SIGTERM) == before:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train(config)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert list((tmp_path / "run" / "checkpoints").glob("*.json"))
    assert_equal_weights(weights_of(straight), weights_of(train(config)))


def test_a_time_budget_ends_with_a_model_and_continues(stacks, straight, tmp_path):
    config = make_config(stacks, tmp_path / "run", minutes=1e-6)
    first = train(config)
    assert not first.finished
    assert [row.batches for row in first.rows] == [1]
    assert find_model(str(first.folder)).is_file()
    second = train(config)
    assert not second.finished
    assert [row.batches for row in second.rows] == [2]
    result = train(dataclasses.replace(config, minutes=None))
    assert result.finished
    assert [row.batches for row in result.rows] == [4, 4]
    assert_equal_weights(weights_of(straight), weights_of(result))
    assert {p.name for p in result.folder.glob("*.keras")} == {p.name for p in result.picks.values()}


def test_a_finished_run_is_refused_without_overwrite(stacks, tmp_path):
    config = make_config(stacks, tmp_path / "run", epochs=1, steps=1)
    first = train(config)
    for changes in ({}, {"restart": True}):
        with pytest.raises(InputError, match="finished run"):
            train(dataclasses.replace(config, **changes))
    other = dataclasses.replace(config, seed=9, overwrite=True)
    before = weights_of(first)["final_conv/kernel"]
    assert not np.array_equal(before, weights_of(train(other))["final_conv/kernel"])


def test_overwrite_continues_its_own_interrupted_run(stacks, straight, tmp_path, monkeypatch):
    config = make_config(stacks, tmp_path / "run", seed=9, epochs=1)
    train(config)
    config = make_config(stacks, tmp_path / "run", overwrite=True)
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(6))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(4))
    continued = train(config)
    assert_equal_weights(weights_of(straight), weights_of(continued))


@pytest.mark.parametrize("damage", ["another seed", "damaged", "restart"])
def test_overwrite_drops_other_and_damaged_work(stacks, straight, tmp_path, monkeypatch, damage):
    config = make_config(stacks, tmp_path / "run", seed=9 if damage == "another seed" else 3)
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(6))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    if damage == "damaged":
        (tmp_path / "run" / "run.json").write_text("{")
    again = make_config(stacks, tmp_path / "run", overwrite=True, restart=damage == "restart")
    drawn = []
    original = loop_module.Loop._check_finite
    monkeypatch.setattr(loop_module.Loop, "_check_finite", lambda *a: (drawn.append(1), original(*a)))
    assert_equal_weights(weights_of(straight), weights_of(train(again)))
    assert len(drawn) == 8


@pytest.mark.parametrize(
    "changes", [{"crop_sizes": (4096,)}, {"batch_size": 10**7}, {"init": "bands"}], ids=str
)
def test_overwrite_keeps_the_finished_result_where_the_new_run_is_refused(
    stacks, straight, write_stacks, tmp_path, changes
):
    finished = train(make_config(stacks, tmp_path / "run", epochs=1, steps=1))
    before = {p: p.read_bytes() for p in finished.folder.rglob("*") if p.is_file()}
    if "init" in changes:
        other = write_stacks(tmp_path / "bands", bands=4)
        changes = {"init": str(train(make_config(other, tmp_path / "other", epochs=1, steps=1)).folder)}
    with pytest.raises(InputError):
        train(make_config(stacks, tmp_path / "run", overwrite=True, **changes))
    assert {p: p.read_bytes() for p in finished.folder.rglob("*") if p.is_file()} == before


def test_weights_whose_channels_mean_other_things_are_no_start(stacks, straight, tmp_path):
    card = load_card(straight.picks["last"])
    other = set_of([channel.name for channel in card.channels])
    first = dataclasses.replace(other.channels[0], unit="K")
    other = dataclasses.replace(other, channels=(first, *other.channels[1:]))
    path = tmp_path / "other.keras"
    path.write_bytes(straight.picks["last"].read_bytes())
    write_card(dataclasses.replace(card, channel_set=other), path)
    with pytest.raises(InputError, match=r"channels are \w+ \(K\), expected those of the stacks"):
        train(make_config(stacks, tmp_path / "run", init=str(path)))


def test_a_start_from_weights_takes_their_network_where_no_option_shapes_it(stacks, tmp_path, caplog):
    shaped = {"filters": (4, 6), "block": "transpose", "norm": "none", "decoder_filters": (5, 7)}
    first = train(make_config(stacks, tmp_path / "first", **shaped))
    opened = dict.fromkeys(shaped) | {"decoder_filters": ()}
    config = make_config(stacks, tmp_path / "own", init=str(first.picks["last"]), epochs=1, **opened)
    network = load_card(train(config).picks["last"]).network
    assert {name: getattr(network, name) for name in shaped} == shaped
    assert not [r for r in caplog.records if "start from random" in r.message]
    other = dataclasses.replace(config, out=str(tmp_path / "other"), filters=(4,))
    assert load_card(train(other).picks["last"]).network.filters == (4,)


def test_another_key_is_refused_and_names_what_differs(stacks, write_stacks, tmp_path, monkeypatch):
    config = make_config(stacks, tmp_path / "run")
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"parameter batch_size was 2, expected .* 3") as raised:
        train(dataclasses.replace(config, batch_size=3))
    assert "--restart" in raised.value.hint
    other = write_stacks(tmp_path / "stacks", seed=5)
    with pytest.raises(InputError, match="input data 1 was"):
        train(dataclasses.replace(config, data=(str(other),)))
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"random streams was 2, expected .* 3"),
    ):
        patch.setattr("lulc.training.run_folder.STREAMS", 3)
        train(config)
    restarted = train(dataclasses.replace(config, batch_size=3, epochs=1, restart=True))
    assert restarted.finished and len(restarted.rows) == 1


def test_a_folder_with_models_of_something_else_is_refused(stacks, tmp_path):
    (tmp_path / "03-0.50.keras").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds '03-0\.50\.keras', which this toolkit did not"):
        train(make_config(stacks, tmp_path))
    assert (tmp_path / "03-0.50.keras").read_bytes() == b"mine"


def test_two_runs_in_one_folder_are_refused(stacks, tmp_path):
    from lulc.core.storage import Lock

    with Lock(tmp_path / "run" / ".lulc-run", "it"), pytest.raises(InputError, match="another run"):
        train(make_config(stacks, tmp_path / "run"))


def test_ignored_and_invalid_pixels_change_nothing(write_stacks, tmp_path):
    def spoil(name, image, masks):
        masks[:, ::3] = 255

    def spoil_more(name, image, masks):
        spoil(name, image, masks)
        rng = np.random.default_rng(0)
        masks[:, ::3] = np.where(rng.random(masks[:, ::3].shape) < 0.5, 255, 0)

    results = [
        train(make_config(write_stacks(tmp_path / name, change=change), tmp_path / f"run-{name}"))
        for name, change in (("a", spoil), ("b", spoil_more))
    ]
    assert_equal_weights(weights_of(results[0]), weights_of(results[1]))
    for a, b in zip(results[0].rows, results[1].rows, strict=True):
        assert (a.loss, a.accuracy, a.val_loss) == (b.loss, b.accuracy, b.val_loss)


def test_validation_scores_agree_with_scikit_learn(stacks, straight):
    from lulc.models.weights import load_model
    from lulc.training.data.batches import BatchConfig, TileGenerator
    from lulc.training.data.dataset import class_targets

    dataset = open_dataset(make_config(stacks, "unused"))
    generator = TileGenerator(
        dataset.validation,
        BatchConfig(steps=2, batch_size=2, crop_sizes=(32,), targets=class_targets(3), seed=3),
    )
    model, _ = load_model(straight.picks["last"])
    truth, decided, losses = [], [], []
    for images, labels in (generator.batch(0, i) for i in range(2)):
        known = labels != 255
        activations = np.asarray(model.predict_on_batch(images))[known]
        truth.append(labels[known])
        decided.append(activations.argmax(-1))
        losses.append(-np.log(activations[np.arange(len(activations)), labels[known]]))
    truth, decided = np.concatenate(truth), np.concatenate(decided)
    row = straight.rows[-1]
    assert row.val_loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)
    assert row.val_accuracy == pytest.approx(accuracy_score(truth, decided))
    assert row.val_macro_f1 == pytest.approx(f1_score(truth, decided, average="macro"))


def test_the_accuracy_of_a_batch_leaves_ignored_pixels_out():
    rng = np.random.default_rng(1)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (2, 8, 8))
    activations = rng.dirichlet(np.ones(3), (2, 8, 8)).astype(np.float32)
    metric = LabelledAccuracy()
    metric.update_state(keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(activations))
    known = labels != 255
    expected = accuracy_score(labels[known], decide(activations)[known])
    assert float(metric.result()) == pytest.approx(expected)


def test_it_learns(write_stacks, tmp_path):
    data = write_stacks(tmp_path / "stacks")
    result = train(make_config(
        data, tmp_path / "run", epochs=3, steps=40, filters=(8, 16), learning_rate=0.005, norm="none"
    ))  # fmt: skip
    assert result.rows[-1].val_accuracy > 0.9
    assert result.rows[-1].loss < result.rows[0].loss


def test_one_class_is_trained_against_the_rest(stacks, tmp_path):
    result = train(make_config(stacks, tmp_path / "run", single_class="class 2"))
    card = load_card(result.picks["last"])
    assert (card.network.classes, card.network.activation, card.single_class) == (1, "sigmoid", "class 2")
    assert len(card.legend) == 3
    assert 0 < result.rows[-1].val_macro_f1 < 1


def test_other_weights_are_a_start_and_the_head_is_new_where_classes_differ(
    stacks, straight, write_stacks, tmp_path
):
    frozen = {"epochs": 1, "steps": 1, "learning_rate": 1e-30, "init": str(straight.folder)}
    start = read_arrays(straight.picks["lowest-val-loss"])
    same = weights_of(train(make_config(stacks, tmp_path / "same", **frozen)))
    np.testing.assert_array_equal(same["encoder_stage0_conv1/kernel"], start["encoder_stage0_conv1/kernel"])
    np.testing.assert_array_equal(same["final_conv/kernel"], start["final_conv/kernel"])
    other = write_stacks(tmp_path / "other", classes=4)
    new = weights_of(train(make_config(other, tmp_path / "new", **frozen)))
    np.testing.assert_array_equal(new["encoder_stage0_conv1/kernel"], start["encoder_stage0_conv1/kernel"])
    assert new["final_conv/kernel"].shape[-1] == 4
    bands = write_stacks(tmp_path / "bands", bands=4)
    with pytest.raises(InputError, match="since its channels are B02, B03, B04, expected"):
        train(make_config(bands, tmp_path / "refused", **frozen))


def test_several_folders_are_one_training_set(write_stacks, tmp_path):
    a = write_stacks(tmp_path / "a", ("train", "val"), seed=1)
    b = write_stacks(tmp_path / "b", ("train", "train"), seed=2, side=60, east=50_000)
    dataset = open_dataset(make_config((a, b), tmp_path / "run"))
    assert [t.name for t in dataset.training] == ["a/train_0", "b/train_0", "b/train_1"]
    assert [t.name for t in dataset.validation] == ["a/val_1"]
    training_stacks = [stack for f in (a, b) for stack in load_manifest(f).of("train")]
    pixels = [np.asarray(open_tile(stack)[0]).reshape(-1, 3) for stack in training_stacks]
    expected = Statistics.of(np.concatenate(pixels))
    np.testing.assert_allclose(dataset.statistics.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(dataset.statistics.std, expected.std, rtol=1e-9)
    counts = sum(load_manifest(f).class_counts("train") for f in (a, b))
    np.testing.assert_array_equal(dataset.counts, counts)
    assert list(dataset.inputs) == ["data 1", "data 2"]


def test_what_validates_in_one_folder_is_not_trained_on_in_another(write_stacks, tmp_path, caplog):
    a = write_stacks(tmp_path / "a", ("train", "val"), seed=1)
    b = write_stacks(tmp_path / "b", ("train",), seed=2, east=10 * 96 + 480)
    with caplog.at_level(logging.WARNING, "lulc"):
        dataset = open_dataset(make_config((a, b), tmp_path / "run"))
    masks = dataset.training[1].masks[0:96, 0:96]
    assert (masks[:, :48] == 255).all() and (masks[:, 48:] != 255).mean() > 0.9
    assert "'b/train_0'" in caplog.text
    assert dataset.counts.sum() < sum(load_manifest(f).class_counts("train").sum() for f in (a, b))


@pytest.mark.parametrize(("gaps", "hidden"), [((0, 0), 48), ((10, 20), 68), ((0, None), 96)])
def test_labels_in_the_gap_around_validation_of_another_folder_are_ignored(
    write_stacks, tmp_path, gaps, hidden
):
    a = write_stacks(tmp_path / "a", ("train", "train", "val"), seed=1, gap=gaps[0])
    b = write_stacks(tmp_path / "b", ("train", "train"), seed=2, east=20 * 96 + 480, gap=gaps[1])
    dataset = open_dataset(make_config((a, b), tmp_path / "run"))
    masks = {tile.name: np.asarray(tile.masks[0:96, 0:96]) for tile in dataset.training}
    if hidden == 96:
        assert "b/train_0" not in masks
    else:
        assert (masks["b/train_0"][:, :hidden] == 255).all()
        assert (masks["b/train_0"][:, hidden:] != 255).mean() > 0.9
    labelled = sum(np.isin(m, (1, 2, 3)).sum() for m in masks.values())
    assert dataset.counts.sum() == pytest.approx(labelled, rel=0.02)


def test_labels_that_the_preparation_has_hidden_are_no_news(write_stacks, tmp_path, caplog):
    def hide(name, image, masks):
        if name == "train_1":
            masks[:, 96 - 30 :] = 255

    data = write_stacks(tmp_path / "a", gap=30, change=hide)
    with caplog.at_level(logging.WARNING, "lulc"):
        dataset = open_dataset(make_config(data, tmp_path / "run"))
    assert not caplog.text
    np.testing.assert_array_equal(dataset.counts, load_manifest(data).class_counts("train"))


def other_legend(names):
    return Legend("other", tuple(LandCoverClass(i, n, "#000000") for i, n in enumerate(names, 1)))


def test_folders_that_do_not_agree_are_refused(stacks, write_stacks, tmp_path):
    bands = write_stacks(tmp_path / "bands", bands=4)
    with pytest.raises(InputError, match=r"'.*bands' has the channels .*B05.*, expected those of"):
        open_dataset(make_config((stacks, bands), tmp_path))
    legend = write_stacks(tmp_path / "legend", legend=other_legend(["class 1", "class 2", "water"]))
    with pytest.raises(InputError, match=r"has the classes .*3 water"):
        open_dataset(make_config((stacks, legend), tmp_path))
    with pytest.raises(InputError, match="named twice"):
        open_dataset(make_config((stacks, stacks), tmp_path))


def keep_class(number):
    def change(name, image, masks):
        masks[masks != number] = 255

    return change


def ignore_validation(name, image, masks):
    if name.startswith("val"):
        masks[:] = 255


def ignore_all(name, image, masks):
    masks[:] = 255


def invalidate_all(name, image, masks):
    image[:] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keep_class(2), r"all of class 2 \(\d+\), expected at least two classes"),
        (ignore_all, "no training pixel is labelled"),
        (ignore_validation, "no validation pixel is labelled"),
        (invalidate_all, "no training pixel is labelled"),
    ],
)
def test_data_from_which_nothing_can_be_learnt_are_refused(write_stacks, tmp_path, change, message):
    data = write_stacks(tmp_path / "stacks", change=change)
    with pytest.raises(InputError, match=message):
        train(make_config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_sizes": (31,)}, "--crop-sizes is 31, expected multiples of 2"),
        ({"validation_crop_sizes": (1,)}, "--validation-crop-sizes is 1, expected multiples of 2"),
        ({"crop_sizes": (128,)}, "largest stack has a side of 96 pixels, expected at least"),
        ({"batch_size": 0}, "0 for --batch-size, expected a whole number of at least 1"),
        ({"keep": "some"}, "--keep is 'some'"),
        ({"keep": "0"}, "--keep is '0'"),
        ({"minutes": 0.0}, "0.0 for --minutes, expected a number of more than 0"),
        ({"single_class": "lava"}, r"cannot train 'lava' .* class 1, class 2, class 3"),
        ({"loss": "ce+magic"}, "magic"),
        ({"init": "no-such-model"}, "no-such-model"),
        ({"batch_size": 10**7}, r"needs about .* GB of memory"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_message(stacks, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        train(make_config(stacks, tmp_path / "run", **changes))
    assert raised.value.hint
    assert not list((tmp_path / "run").glob("*.keras"))


def test_a_changed_stack_is_found(write_stacks, tmp_path):
    data = write_stacks(tmp_path / "stacks")
    path = data / "train_image_0.npy"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train_image_0.npy"):
        train(make_config(data, tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(stacks, tmp_path):
    config = make_config(stacks, tmp_path / "run", learning_rate=1e30, norm="none", epochs=3, steps=30)
    message = r"(loss is|weights are not finite).* batch \d+ of epoch \d"
    with pytest.raises(InputError, match=message) as raised:
        train(config)
    assert "--learning-rate" in raised.value.hint
    for path in (tmp_path / "run").glob("*.keras"):
        assert all(np.isfinite(a).all() for a in read_arrays(path).values())


def test_weights_that_are_not_finite_are_found_where_the_loss_is_finite(stacks, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "WEIGHTS_SECONDS", 0.0)
    original = keras.Model.train_on_batch

    def poison(self, *arguments, **options):
        logs = original(self, *arguments, **options)
        self.get_layer("encoder_stage0_conv2").kernel.assign(
            np.full(self.get_layer("encoder_stage0_conv2").kernel.shape, np.nan, np.float32)
        )
        return logs

    monkeypatch.setattr(keras.Model, "train_on_batch", poison)
    with pytest.raises(InputError, match=r"weights are not finite .*kernel.* after batch 1 of epoch 1"):
        train(make_config(stacks, tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.bin"))


def test_tensorboard_logs_are_refused_where_they_can_not_be_written(stacks, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="'tensorflow' is not installed"):
        train(make_config(stacks, tmp_path / "run", tensorboard=True))


def test_tensorboard_logs_are_written_on_request(stacks, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard, which writes the logs")
    train(make_config(stacks, tmp_path / "run", tensorboard=True, epochs=1))
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))


def make_row(epoch, val_loss, accuracy, f1):
    return Row(epoch, 1, 1.0, 1.0, 0.5, val_loss, accuracy, f1, 0.001, f"{epoch:02d}-{val_loss:.2f}.keras")


def test_picks_and_kept_models_follow_the_scores():
    rows = [make_row(1, 0.9, 0.5, 0.7), make_row(2, 0.4, 0.6, 0.5), make_row(3, 0.5, 0.8, 0.6),
            make_row(4, 0.6, 0.7, 0.4), make_row(5, 0.6, 0.7, 0.4)]  # fmt: skip
    assert picks_of(rows) == {
        "lowest-val-loss": "02-0.40.keras", "highest-val-accuracy": "03-0.50.keras",
        "best-macro-f1": "01-0.90.keras", "last": "05-0.60.keras",
    }  # fmt: skip
    names = [row.model for row in rows]
    assert kept_models(rows, "best") == {*names[:3], names[4]}
    assert kept_models(rows, "2") == set(names)
    assert kept_models(rows[:2] + rows[1:3], "1") == set(names[:3])
    assert kept_models(rows, "all") == set(names)


def test_every_recipe_gives_a_value_to_the_same_options():
    options = {f.name for f in dataclasses.fields(TrainConfig)}
    for recipe, values in RECIPES.items():
        assert values.keys() == RECIPES["original"].keys() <= options
        config = TrainConfig(data=("a",), out="b", recipe=recipe).resolved()
        assert all(getattr(config, name) == value for name, value in values.items())
    assert TrainConfig(data=("a",), out="b", steps=7, recipe="original").resolved().steps == 7


def test_the_history_is_kept_whole_through_interruptions(stacks, tmp_path, monkeypatch):
    config = make_config(stacks, tmp_path / "run", epochs=3)
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(10))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False


@pytest.mark.parametrize(
    ("flags", "precision", "fits"),
    [
        ("fma avx2 f16c", "bfloat16", False),
        ("fma avx512_bf16", "bfloat16", True),
        ("fma avx512_bf16", "float16", False),
        ("asimd asimdhp bf16", "float16", True),
        ("fma avx2", "float32", True),
    ],
)
def test_a_precision_that_the_processor_lacks_is_known(tmp_path, flags, precision, fits):
    described = tmp_path / "cpuinfo"
    described.write_text(f"model name\t: some processor\nflags\t\t: {flags}\n")
    assert backend.computes_in(precision, described) == fits
    assert backend.computes_in(precision, tmp_path / "none")


def test_a_slow_precision_is_warned_of(stacks, tmp_path, monkeypatch, caplog):
    config = make_config(stacks, tmp_path / "run", precision="bfloat16").resolved()
    for slow in (True, False):
        caplog.clear()
        monkeypatch.setattr(backend, "computes_in", lambda precision, slow=slow: not slow)
        train_module.prepare(config, open_dataset(config))
        assert ("does not multiply in bfloat16" in caplog.text) == slow
