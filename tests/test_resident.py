"""Crops cut on the device are those cut on the host, bit for bit, or refused with a reason."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lulc import training
from lulc.config import TrainConfig
from lulc.generator import cut_ahead
from lulc.networks import backend
from lulc.networks.backend import keras
from lulc.samples import crops
from lulc.samples.crops import check_place, training_crops
from lulc.samples.dataset import open_dataset
from lulc.samples.resident import ResidentCrops
from lulc.schema import IGNORE, InputError
from lulc.weights import read_arrays

MOVED = [
    {},
    {"rotations": 1, "batch_from": "one", "balance": "stacks"},
    {"mix": "cutmix", "mix_share": 1.0},
    {"mix": "classmix", "mix_share": 1.0},
    {"rare_classes": 0.5, "balance": "classes"},
]
COMPUTED = [
    {"rotations": 16}, {"scale": 1.2}, {"gain": 0.05}, {"offset_jitter": 20.0}, {"haze": 200.0},
    {"channel_dropout": 0.1}, {"copy_paste": 1.0}, {"devices": "2"}, {"processes": 2},
    {"pretrain": ("mosaic.tif",)},
]  # fmt: skip


def config_of(folder, **changes):
    options = {"crop_sizes": (16, 32), "steps": 4, "batch_size": 3, "stacks_on": "device"} | changes
    return TrainConfig(data=(str(folder),), out="-", **options).resolved()


@pytest.mark.parametrize("changes", MOVED, ids=str)
def test_batches_are_those_of_the_host_bit_for_bit(write_stacks, tmp_path, changes):
    config = config_of(write_stacks(tmp_path / "stacks"), **changes)
    dataset = open_dataset(config)
    there = training_crops(config, dataset)
    here = training_crops(dataclasses.replace(config, stacks_on="host"), dataset)
    assert isinstance(there, ResidentCrops) and not isinstance(here, ResidentCrops)
    invalid = 0
    for (images, labels), (expected, same) in zip(
        cut_ahead(there, 1, 0, 2), cut_ahead(here, 1, 0, 1), strict=True
    ):
        assert keras.ops.is_tensor(images)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(images), expected)
        np.testing.assert_array_equal(labels, same)
        invalid += int(np.isnan(expected).sum())
    assert invalid, "no crop showed what becomes of invalid pixels"


def test_a_pixel_without_one_of_its_bands_is_invalid_there_too(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks")
    config = config_of(folder, crop_sizes=(32,))
    dataset = open_dataset(config)
    broken = []
    for tile in dataset.training:
        image, masks = np.array(tile.image), np.full(tile.masks.shape, 1, np.uint8)
        image[::3, :, 1] = np.inf
        broken.append(dataclasses.replace(tile, image=image, masks=masks))
    dataset = dataclasses.replace(dataset, training=tuple(broken))
    images, labels = training_crops(config, dataset).batch(0, 0)
    images = keras.ops.convert_to_numpy(images)
    invalid = np.isnan(images[..., 0])
    assert 0.2 < invalid.mean() < 0.9
    assert (np.isnan(images).any(-1) == invalid).all() and np.isfinite(images[~invalid]).all()
    assert (labels[invalid] == IGNORE).all() and (labels[~invalid] == 0).all()


@pytest.mark.parametrize("changes", COMPUTED, ids=str)
def test_crops_that_are_computed_are_refused_there_and_cut_on_the_host_otherwise(changes):
    name = next(iter(changes))
    config = config_of("stacks", **changes)
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is .*expected none") as caught:
        check_place(config)
    assert "--stacks-on host" in caught.value.hint
    check_place(dataclasses.replace(config, stacks_on="auto"))


def test_auto_takes_a_gpu_for_small_stacks_and_moved_crops(write_stacks, tmp_path, monkeypatch):
    config = config_of(write_stacks(tmp_path / "stacks"), stacks_on="auto")
    dataset = open_dataset(config)

    def resident(config):
        return isinstance(training_crops(config, dataset), ResidentCrops)

    assert not resident(config)
    monkeypatch.setattr(backend, "device_name", lambda: "a GPU")
    assert resident(config)
    assert not resident(dataclasses.replace(config, rotations=16))
    monkeypatch.setattr(crops, "SMALL", 1000)
    assert not resident(config)


def test_stacks_larger_than_the_free_memory_are_refused(write_stacks, tmp_path, monkeypatch):
    config = config_of(write_stacks(tmp_path / "stacks"))
    monkeypatch.setattr(training, "free_memory", lambda: 1e3)
    with pytest.raises(InputError, match=r"GB of memory on their way, expected at most 0\.0 GB"):
        training.prepare(config, open_dataset(config))


def test_a_training_begun_in_one_place_goes_on_in_the_other(write_stacks, tmp_path):
    config = config_of(
        write_stacks(tmp_path / "stacks"), crop_sizes=(32,), validation_crop_sizes=(32,), epochs=2, steps=2,
        validation_steps=2, filters=(4,), average=0.0, stacks_on="host",
    )  # fmt: skip
    whole = training.train(dataclasses.replace(config, out=str(tmp_path / "whole")))
    begun = dataclasses.replace(config, out=str(tmp_path / "begun"), minutes=1e-6)
    assert not training.train(begun).finished
    rest = training.train(dataclasses.replace(begun, stacks_on="device", minutes=None))
    assert rest.finished and rest.rows[-1].loss == whole.rows[-1].loss
    expected, found = (read_arrays(result.picks["last"]) for result in (whole, rest))
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
