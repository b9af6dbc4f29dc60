"""Crops cut on the device are those cut on the host, bit for bit, or refused with a reason."""

from __future__ import annotations

import dataclasses
import re
import weakref

import numpy as np
import pytest

from lulc.config import TrainConfig
from lulc.core.schema import IGNORE, InputError
from lulc.models import backend
from lulc.models.backend import keras
from lulc.models.weights import read_arrays
from lulc.training import train
from lulc.training.data import crops
from lulc.training.data.batches import cut_ahead
from lulc.training.data.crops import check_crop_device, choose_crop_device, training_crops
from lulc.training.data.dataset import open_dataset
from lulc.training.data.on_device import ResidentCrops

pytestmark = pytest.mark.integration

MOVED = [
    {},
    {"rotations": 1, "batch_from": "one", "balance": "stacks"},
    {"rare_classes": 0.5, "balance": "classes"},
]
COMPUTED = {
    "--rotations is 16, expected 1, 2 or 4": {"rotations": 16},
    "--gain is 0.05, expected 0": {"gain": 0.05},
    "--offset-jitter is 20.0, expected 0": {"offset_jitter": 20.0},
    "a pretraining masks parts of crops": {"pretrain": ("mosaic.tif",)},
}


def config_of(folder, **changes):
    options = {"crop_sizes": (32, 64), "steps": 4, "batch_size": 3, "stacks_on": "device"} | changes
    data = () if "pretrain" in changes else (str(folder),)
    return TrainConfig(data=data, out="-", **options).resolved()


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


@pytest.mark.parametrize("problem", COMPUTED)
def test_crops_that_are_computed_are_refused_there(problem):
    config = config_of("stacks", **COMPUTED[problem])
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        check_crop_device(config)
    assert "--stacks-on host" in caught.value.hint
    check_crop_device(dataclasses.replace(config, stacks_on="auto"))


def test_options_that_can_not_be_are_refused_before_their_place():
    with pytest.raises(InputError, match="--devices is 'none', expected a number from 1, or all"):
        train.check_options(config_of("stacks", devices="none", rotations=16))
    with pytest.raises(InputError, match="--rotations is 16, expected 1, 2 or 4"):
        train.check_options(config_of("stacks", rotations=16))


def test_auto_takes_one_gpu_for_small_stacks_and_moved_crops(write_stacks, tmp_path, monkeypatch):
    config = config_of(write_stacks(tmp_path / "stacks"), stacks_on="auto")
    dataset = open_dataset(config)
    size = 4 * sum(tile.image.size for tile in dataset.training)

    def place(devices=1, free=1e12, **changes):
        return choose_crop_device(dataclasses.replace(config, **changes), dataset, devices, free)

    assert place() == "host"
    monkeypatch.setattr(backend, "device_name", lambda: "a GPU")
    assert place() == "device"
    assert place(rotations=2) == "device"
    assert place(stacks_on="host") == "host"
    for hindered in ({"rotations": 16}, {"devices": 2}, {"free": 2.9 * size}):
        assert place(**hindered) == "host"
    monkeypatch.setattr(crops, "SMALL", size - 1)
    assert place() == "host"
    assert place(stacks_on="device") == "device"


def test_stacks_that_can_not_be_copied_are_refused(write_stacks, tmp_path):
    config = config_of(write_stacks(tmp_path / "stacks"))
    dataset = open_dataset(config)
    with pytest.raises(InputError, match=r"GB of memory for the copy, expected at most .* 0\.0 GB"):
        choose_crop_device(config, dataset, 1, 1e3)
    with pytest.raises(InputError, match="2 devices train, expected one"):
        choose_crop_device(config, dataset, 2, 1e12)
    # Numbers of pixels are of four bytes.
    huge = np.broadcast_to(np.float32(1), (2**17, 2**15, 3))
    tiles = (dataclasses.replace(dataset.training[0], image=huge),)
    with pytest.raises(InputError, match="4295 million pixels"):
        choose_crop_device(config, dataclasses.replace(dataset, training=tiles), 1, 1e12)


def test_a_device_that_is_none_is_said(write_stacks, tmp_path, caplog):
    config = config_of(write_stacks(tmp_path / "stacks"))
    assert choose_crop_device(config, open_dataset(config), 1, 1e12) == "device"
    assert "there is no GPU" in caplog.text


def test_memory_of_the_device_is_given_up_at_the_end(write_stacks, tmp_path):
    config = config_of(write_stacks(tmp_path / "stacks"))
    batches = training_crops(config, open_dataset(config))
    batches.batch(0, 0)
    held = weakref.ref(batches._pixels)
    batches.close()
    assert held() is None


def test_a_training_begun_in_one_place_goes_on_in_the_other(write_stacks, tmp_path):
    config = config_of(
        write_stacks(tmp_path / "stacks"), crop_sizes=(32,), validation_crop_sizes=(32,), epochs=2, steps=2,
        validation_steps=2, filters=(4,), average=0.0, dropout=0.0,
        stacks_on="host",
    )  # fmt: skip
    whole = train.train(dataclasses.replace(config, out=str(tmp_path / "whole")))
    begun = dataclasses.replace(config, out=str(tmp_path / "begun"), minutes=1e-6)
    assert not train.train(begun).finished
    rest = train.train(dataclasses.replace(begun, stacks_on="device", minutes=None))
    assert rest.finished and rest.rows[-1].loss == whole.rows[-1].loss
    expected, found = (read_arrays(result.picks["last"]) for result in (whole, rest))
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
