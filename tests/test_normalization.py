"""Batch norm's statistics belong to the weights that they are saved with."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from lulc.config import TrainConfig
from lulc.models.backend import keras
from lulc.models.config import NetworkConfig
from lulc.models.unet import build_unet
from lulc.models.weights import find_model, load_model
from lulc.training import baseline
from lulc.training import train as train_module
from lulc.training.batch_norm import Normalization
from lulc.training.data.batches import BatchConfig, TileGenerator
from lulc.training.data.crops import PLAIN_LEAST, PLAIN_PIXELS, plain_crops
from lulc.training.data.dataset import Tile, open_dataset
from lulc.training.loop import Loop, Validation
from lulc.training.train import train

pytestmark = pytest.mark.integration

CONFIG = NetworkConfig(classes=3, channels=2, filters=(4, 4))


def numbers(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def statistics(model):
    return {
        layer.name: (numbers(layer.moving_mean), numbers(layer.moving_variance))
        for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)
    }  # fmt: skip


def make_crops(sides=(16, 32), steps=6):
    """Crops of two stacks that differ from one another."""
    rng = np.random.default_rng(0)
    tiles = [
        Tile(name, rng.normal(mean, 1 + mean, (64, 64, 2)).astype(np.float32), np.ones((64, 64), np.uint8))
        for name, mean in (("dark", 0.0), ("bright", 3.0))
    ]
    targets = np.full(256, 255, np.uint8)
    targets[1] = 0
    return TileGenerator(tiles, BatchConfig(steps=steps, batch_size=2, crop_sizes=sides, targets=targets))


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    return build_unet(CONFIG)


def normalization(crops=None):
    return Normalization(lambda: build_unet(CONFIG), [crops or make_crops()], workers=1)


def test_they_are_mean_and_variance_of_all_pixels_of_all_crops(model):
    crops = make_crops()
    before = keras.Model(model.input, model.get_layer("encoder_stage0_conv1").output)
    seen = [numbers(before(images)).reshape(-1, 4) for images, _ in (crops.batch(0, i) for i in range(6))]
    assert len({len(pixels) for pixels in seen}) == 2, "batches of one size would weigh alike"
    pixels = np.concatenate(seen)
    with normalization(crops).settled(model):
        mean, variance = statistics(model)["encoder_stage0_bn1"]
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(variance, pixels.var(0), rtol=5e-3)


def test_afterwards_the_network_has_its_own_again(model):
    before = statistics(model)
    with normalization().settled(model):
        inside = statistics(model)
    after = statistics(model)
    for name, values in before.items():
        assert not np.array_equal(values[0], inside[name][0])
        np.testing.assert_array_equal(values, after[name])


def test_they_follow_the_weights(model):
    of_crops = normalization()
    found = []
    for factor in (1.0, 2.0):
        kernel = model.get_layer("encoder_stage0_conv1").kernel
        kernel.assign(numbers(kernel) * factor)
        with of_crops.settled(model):
            found.append(statistics(model)["encoder_stage0_bn1"])
    np.testing.assert_allclose(found[1][0], 2 * found[0][0], rtol=1e-4)
    np.testing.assert_allclose(found[1][1], 4 * found[0][1], rtol=1e-3)


def test_a_network_without_batch_norm_is_left_alone():
    def build():
        pytest.fail("nothing has to be estimated")

    plain = build_unet(dataclasses.replace(CONFIG, norm="none"))
    with Normalization(build, [make_crops()], workers=1).settled(plain):
        pass


@pytest.fixture(scope="module")
def config(write_stacks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("normalization")
    return TrainConfig(
        data=(str(write_stacks(folder / "stacks")),), out=str(folder / "run"), epochs=2, steps=8,
        validation_steps=2, crop_sizes=(32,), validation_crop_sizes=(32,), filters=(4,), seed=3,
    ).resolved()  # fmt: skip


@pytest.mark.parametrize(("losses", "anew"), [((2.0, 1.0), True), ((1.0, 2.0), False)])
def test_models_are_saved_with_those_that_validate_better(config, monkeypatch, tmp_path, losses, anew):
    monkeypatch.setattr(baseline, "fit_ood_score", lambda *_: None)
    turns = itertools.cycle(losses)
    monkeypatch.setattr(Loop, "_validate", lambda _: Validation(next(turns), 0.5, 0.5))
    config = dataclasses.replace(config, out=str(tmp_path / "run"))
    result = train(config)
    assert {row.val_loss for row in result.rows} == {1.0}
    model, _ = load_model(find_model(config.out, "last"))
    saved = statistics(model)
    of_crops = Normalization(
        lambda: load_model(find_model(config.out, "last"))[0],
        plain_crops(config, open_dataset(config)),
        workers=1,
    )
    with of_crops.settled(model):
        expected = statistics(model)
    same = [np.allclose(values, expected[name], rtol=1e-5) for name, values in saved.items()]
    assert all(same) if anew else not any(same)


def test_every_stack_is_seen_as_often_and_as_large_as_it_is(config, caplog):
    dataset = open_dataset(config)
    first = dataset.training[0]
    sides = [first.side, 32, 48]
    tiles = tuple(
        dataclasses.replace(
            first, image=np.full_like(first.image[:side, :side], side), masks=first.masks[:side, :side]
        )
        for side in sides
    )
    long = dataclasses.replace(config, steps=1000)
    crops = plain_crops(long, dataclasses.replace(dataset, training=tiles))
    seen = [
        images for generator in crops for images in (generator.batch(0, i)[0] for i in range(len(generator)))
    ]
    shown = [(images.shape[1], float(images[0, 0, 0, 0])) for images in seen]
    assert sorted(shown) == sorted([(side // 2 * 2, side) for side in sides] * (len(seen) // 3))
    assert len(seen) >= PLAIN_LEAST
    assert not caplog.records


def test_crops_to_estimate_from_are_not_many(config):
    dataset = open_dataset(config)
    one = dataclasses.replace(dataset, training=dataset.training[:1])
    side = one.training[0].side // 2 * 2
    long = dataclasses.replace(config, steps=10**6)
    (crops,) = plain_crops(long, one)
    assert len(crops) == -(-PLAIN_PIXELS // side**2)
    many = dataclasses.replace(dataset, training=dataset.training[:1] * 50)
    assert [len(crops) for crops in plain_crops(config, many)] == [1] * PLAIN_LEAST


@pytest.mark.parametrize("average", [0.0, 0.1])
def test_validation_takes_a_share_of_an_epoch_unless_asked_for(write_stacks, tmp_path, caplog, average):
    caplog.set_level("INFO", logger="lulc")
    config = TrainConfig(
        data=(str(write_stacks(tmp_path / "stacks")),), out=str(tmp_path / "run"), steps=40,
        crop_sizes=(32,), filters=(4,), average=average,
    )  # fmt: skip
    dataset = open_dataset(config.resolved())
    settled = train_module.settle(config, dataset)
    # Of 40 training batches with as large crops: 7 % twice, beside a twelfth for the averaged weights.
    assert settled.validation_steps == (2 if average else 9)
    assert f"an epoch is validated on {settled.validation_steps} of 30 batches" in caplog.text
    assert train_module.settle(config, dataset) == settled == train_module.settle(settled, dataset)
    assert settled.validation_crop_sizes == (32,)
    plain = sum(len(crops) * crops.pixels_per_batch for crops in plain_crops(settled, dataset))
    assert not average or plain <= 1.05 * 40 * 2 * 32**2 / 12
    asked = dataclasses.replace(config, validation_steps=50)
    assert train_module.settle(asked, dataset).validation_steps == 50
    longer = dataclasses.replace(config, steps=1000)
    assert train_module.settle(longer, dataset).validation_steps == 30
