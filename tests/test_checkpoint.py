"""Checkpoints: whole or passed over, two kept, and a network that goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest

from lulc.core.removal import temporary_name
from lulc.core.schema import InputError
from lulc.models.backend import keras
from lulc.training.checkpoint import (
    KEPT,
    Checkpoint,
    clear_checkpoints,
    load_checkpoint,
    restore_variables,
    save_checkpoint,
    variables_of,
)

pytestmark = pytest.mark.integration

KEY = "a" * 64


def make_checkpoint(step):
    rng = np.random.default_rng(step)
    arrays = {
        "float": rng.normal(size=(3, 4)).astype(np.float32),
        "scalar": np.array(step, np.int64),
        "empty": np.zeros((0, 5), np.float16),
        "flags": np.array([True, False]),
    }
    return Checkpoint(arrays, {"step": step, "loss": 1.5, "rows": [{"epoch": 1, "model": "01-0.50.keras"}]})


def assert_same(found, expected):
    assert found.state == expected.state
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def make_model(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.Conv2D(3, 1, activation="softmax")(x)
    model = keras.Model(inputs, x)
    model.compile("nadam", "sparse_categorical_crossentropy")
    return model


def batch(step):
    rng = np.random.default_rng(step)
    return rng.normal(size=(2, 8, 8, 2)).astype(np.float32), rng.integers(0, 3, (2, 8, 8))


def test_what_is_read_is_what_was_written(tmp_path):
    save_checkpoint(tmp_path, make_checkpoint(7), KEY)
    assert_same(load_checkpoint(tmp_path, KEY), make_checkpoint(7))


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert load_checkpoint(tmp_path, KEY) is None
    assert load_checkpoint(tmp_path / "absent", KEY) is None


def test_the_newest_two_are_kept(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, make_checkpoint(step), KEY)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.bin"))) == KEPT == 2
    assert_same(load_checkpoint(tmp_path, KEY), make_checkpoint(4))


def test_checkpoints_of_another_key_are_passed_over(tmp_path):
    save_checkpoint(tmp_path, make_checkpoint(1), KEY)
    assert load_checkpoint(tmp_path, "b" * 64) is None


@pytest.mark.parametrize("suffix", ["bin", "json"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "lengthened", "gone"])
def test_a_damaged_newest_one_falls_back_to_the_one_before_it(tmp_path, caplog, suffix, damage):
    for trial in range(8):
        folder = tmp_path / str(trial)
        save_checkpoint(folder, make_checkpoint(1), KEY)
        save_checkpoint(folder, make_checkpoint(2), KEY)
        newest = max(folder.glob(f"*.{suffix}"))
        content = bytearray(newest.read_bytes())
        place = int(np.random.default_rng(trial).integers(1, len(content)))
        if damage == "gone":
            newest.unlink()
        else:
            flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
            newest.write_bytes({
                "truncated": content[:place], "emptied": b"", "flipped": flipped,
                "lengthened": content + b"}",
            }[damage])  # fmt: skip
        with caplog.at_level(logging.WARNING, "lulc"):
            assert_same(load_checkpoint(folder, KEY), make_checkpoint(1))
    # A marker that is gone is a checkpoint that doesn't exist, and no reason to warn.
    assert bool(caplog.records) == ((suffix, damage) != ("json", "gone"))


def test_two_damaged_ones_are_no_checkpoint(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, make_checkpoint(step), KEY)
    for path in tmp_path.glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    assert load_checkpoint(tmp_path, KEY) is None


def test_a_lying_marker_allocates_nothing(tmp_path):
    save_checkpoint(tmp_path, make_checkpoint(1), KEY)
    path = next(tmp_path.glob("*.json"))
    marker = json.loads(path.read_text())
    marker["arrays"][0]["shape"] = [3 * 10**9, 4 * 10**9]
    marker.pop("sha256_of_marker")
    marker["sha256_of_marker"] = hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(marker))
    assert load_checkpoint(tmp_path, KEY) is None


def test_a_kill_between_the_two_files_leaves_the_older_checkpoint(tmp_path):
    save_checkpoint(tmp_path, make_checkpoint(1), KEY)
    (tmp_path / "checkpoint-00000002.bin").write_bytes(b"half")
    temporary_name(tmp_path / "checkpoint-00000002.bin").write_bytes(b"half")
    assert_same(load_checkpoint(tmp_path, KEY), make_checkpoint(1))
    save_checkpoint(tmp_path, make_checkpoint(2), KEY)
    assert_same(load_checkpoint(tmp_path, KEY), make_checkpoint(2))
    clear_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_restored_network_goes_on_to_the_same_weights(tmp_path):
    straight = make_model()
    for step in range(6):
        straight.train_on_batch(*batch(step))
    first = make_model()
    for step in range(3):
        first.train_on_batch(*batch(step))
    save_checkpoint(tmp_path, Checkpoint(variables_of(first), {}), KEY)
    second = make_model(seed=99)
    restore_variables(second, load_checkpoint(tmp_path, KEY).arrays)
    for step in range(3, 6):
        second.train_on_batch(*batch(step))
    for a, b in zip(straight.variables, second.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def test_another_network_is_refused():
    arrays = variables_of(make_model())
    wider = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    wider.compile("nadam", "mse")
    with pytest.raises(InputError, match="not those of this network"):
        restore_variables(wider, arrays)
