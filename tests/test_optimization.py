"""How weights change: learning rates, decay, clipping, averages, accumulation and precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lulc.config import RECIPES, TrainConfig
from lulc.core.schema import InputError
from lulc.models.backend import keras, precision
from lulc.models.config import NetworkConfig
from lulc.models.unet import build_unet
from lulc.models.weights import load_card, load_model, read_arrays
from lulc.training import loop as loop_module
from lulc.training import train as train_module
from lulc.training.optimizer import FINAL, Schedule, averaged, build_optimizer
from lulc.training.run_folder import Row, is_stale
from lulc.training.train import train

pytestmark = pytest.mark.integration


def make_config(**changes):
    options = {"data": ("a",), "out": "b", "epochs": 4, "steps": 50, "filters": (4,)}
    return TrainConfig(**options | changes).resolved()


def numbers(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    schedule = Schedule(0.1, 10, 110, cosine=True)
    rates = numbers(schedule(np.arange(111)))
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    expected = 0.1 * (FINAL + (1 - FINAL) * 0.5 * (1 + np.cos(np.pi * np.arange(101) / 100)))
    np.testing.assert_allclose(rates[10:], expected, rtol=1e-4)
    constant = numbers(Schedule(0.1, 10, 110, cosine=False)(np.arange(111)))
    assert (constant[10:] == np.float32(0.1)).all()


def test_the_original_recipe_is_nadam_with_default_settings():
    optimizer = build_optimizer(make_config(recipe="original"))
    plain = keras.optimizers.Nadam(learning_rate=0.001)
    assert type(optimizer) is type(plain)
    assert {k: v for k, v in optimizer.get_config().items() if k not in ("name", "ema_momentum")} == {
        k: v for k, v in plain.get_config().items() if k not in ("name", "ema_momentum")
    }
    assert RECIPES["original"]["loss"] == "ce" and RECIPES["original"]["rare_classes"] == 0


def test_adamw_without_decay_moves_no_weight_without_a_gradient():
    optimizer = build_optimizer(make_config(optimizer="adamw", weight_decay=0.0))
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer.build([variable])
    optimizer.apply([keras.ops.zeros(3)], [variable])
    assert (numbers(variable) == 1).all()


def make_model(config):
    keras.utils.set_random_seed(1)
    model = build_unet(NetworkConfig(classes=3, channels=2, filters=(4,)))
    model.compile(optimizer=build_optimizer(config), loss="sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    return model


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(2, 8, 8, 2)).astype(np.float32), rng.integers(0, 3, (2, 8, 8)))
        for _ in range(count)
    ]


def kernels(model):
    return np.array(numbers(model.get_layer("final_conv").kernel))


def test_averaged_weights_are_the_moving_average_and_the_own_ones_come_back():
    config = make_config(average=0.05, schedule="constant", warmup=0)
    model = make_model(config)
    momentum, average = 1 - 1 / (0.05 * 200), None
    for x, y in batches(40):
        model.train_on_batch(x, y)
        now = kernels(model)
        average = now if average is None else momentum * average + (1 - momentum) * now
    own = [np.array(numbers(v)) for v in model.trainable_variables]
    with averaged(model):
        np.testing.assert_allclose(kernels(model), average, rtol=1e-4, atol=1e-6)
    for before, variable in zip(own, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(before, numbers(variable))
    assert not np.allclose(average, kernels(model))


def test_an_average_that_remembers_the_beginning_is_not_taken():
    model = make_model(make_config(average=0.5))
    for x, y in batches(6):
        model.train_on_batch(x, y)
    before = kernels(model)
    with averaged(model):
        np.testing.assert_array_equal(kernels(model), before)


def test_without_averaging_the_weights_are_the_weights():
    model = make_model(make_config(recipe="original"))
    before = kernels(model)
    with averaged(model):
        np.testing.assert_array_equal(kernels(model), before)


def test_decay_pulls_kernels_only():
    model = make_model(make_config(weight_decay=1.0, learning_rate=0.1, warmup=0, clip_norm=0.0))
    zero = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    before = {v.path: np.array(numbers(v)) for v in model.trainable_variables}
    model.optimizer.apply(zero, model.trainable_variables)
    for variable in model.trainable_variables:
        same = np.array_equal(before[variable.path], numbers(variable))
        assert same != ("kernel" in variable.path), variable.path


def test_gradients_are_clipped_by_their_norm_together():
    optimizer = build_optimizer(make_config(clip_norm=0.5))
    clipped = optimizer._clip_gradients([keras.ops.ones(100), keras.ops.ones(100) * 3])
    assert np.sqrt(sum((numbers(g) ** 2).sum() for g in clipped)) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_layers_compute_in_the_precision_and_weights_stay_float32(name):
    with precision(name):
        model = build_unet(NetworkConfig(classes=3, channels=2, filters=(4,)))
    assert keras.config.dtype_policy().name == "float32"
    assert model.get_layer("encoder_stage0_conv1").compute_dtype == name
    assert {v.dtype for v in model.variables} == {"float32"}
    assert model.get_layer("standardization").compute_dtype == "float32"
    y = model(np.full((1, 8, 8, 2), 9000, np.float32))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


SMALL = {
    "epochs": 3, "steps": 4, "validation_steps": 2, "batch_size": 2, "crop_sizes": (32,),
    "validation_crop_sizes": (32,), "rotations": 8, "filters": (4,), "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def stacks(write_stacks, tmp_path_factory):
    return write_stacks(tmp_path_factory.mktemp("data") / "stacks")


class StopAfter:
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


def test_averages_and_loss_scale_survive_an_interruption(stacks, tmp_path, monkeypatch):
    options = SMALL | {"average": 0.5, "precision": "float16"}
    config = TrainConfig(data=(str(stacks),), out=str(tmp_path / "straight"), **options)
    straight = train(config)
    config = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAfter(5))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    continued = train(config)
    expected, found = (read_arrays(r.picks["last"]) for r in (straight, continued))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert array.dtype == np.float32


def test_cards_hold_the_fitted_temperature_and_the_averaged_weights(stacks, tmp_path, monkeypatch):
    seen = []
    original = loop_module.Loop._validate

    def note(self):
        found = original(self)
        seen.append((found, kernels(self.model)))
        return found

    monkeypatch.setattr(loop_module.Loop, "_validate", note)
    config = TrainConfig(data=(str(stacks),), out=str(tmp_path / "run"), keep="all", **SMALL)
    result = train(config)
    # Validated twice, with both kinds of statistics of batch norm.
    assert len(seen) == 2 * len(result.rows)
    for row, gathered, anew in zip(result.rows, seen[::2], seen[1::2], strict=True):
        (*_, holdout), kernel = anew if anew[0].loss < gathered[0].loss else gathered
        card = load_card(result.folder / row.model)
        assert card.temperature == holdout.fit() != 1.0
        np.testing.assert_array_equal(kernels(load_model(result.folder / row.model)[0]), kernel)


def make_row(epoch, val_loss):
    return Row(epoch, 1, 1.0, 1.0, 0.5, val_loss, 0.5, 0.5, 0.001, f"{epoch:02d}-{val_loss:.2f}.keras")


def test_a_run_is_stale_when_no_score_got_better_for_so_long():
    rows = [make_row(i, loss) for i, loss in enumerate([0.9, 0.8, 0.85, 0.84], 1)]
    assert not is_stale((), 1) and not is_stale(rows, 0)
    assert is_stale(rows, 2) and not is_stale(rows, 3) and not is_stale(rows[:2], 1)


def test_patience_ends_a_run_early_and_finished(stacks, tmp_path):
    options = SMALL | {"epochs": 9, "learning_rate": 0.0, "average": 0.0, "norm": "none", "patience": 2}
    result = train(TrainConfig(data=(str(stacks),), out=str(tmp_path / "run"), **options))
    assert result.finished and len(result.rows) == 3


@pytest.mark.parametrize(
    ("option", "value"), [("rare_classes", 1.5), ("gain", 2.0), ("rotations", 0), ("average", -0.1)]
)
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match=f"cannot use {value} for --{option.replace('_', '-')}, expected"):
        TrainConfig(data=("stacks",), out="run", **SMALL | {option: value})
