"""Several devices and processes train what one trains, and go on with what another number of them began."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lulc.config import TrainConfig
from lulc.core.schema import InputError
from lulc.models.weights import find_model, read_arrays
from lulc.training.devices import Devices, local_numbers, meeting_of, open_devices
from lulc.training.train import check_options

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).with_name("devices_run.py")

TOLERANCE = 1e-5
"""Largest difference of weights and losses, both of the order of 1, after six steps: what the order of sums
leaves (3e-7 measured)."""

SMALL = [
    *("--epochs", "2", "--steps", "3", "--validation-steps", "1", "--batch-size", "4", "--rotations", "4"),
    *("--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "4", "--seed", "3"),
    *("--learning-rate", "0.0001"),  # Adam turns the last bits of small gradients into steps of this size
    *("--loss", "ce(weights=sqrt)"),
]


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data=("stacks",), out="run", **changes).resolved()


def start(runs: list[dict[str, Any]], backend: str, **environment: str) -> subprocess.Popen[str]:
    environment = {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "OMP_NUM_THREADS": "1",
        # XLA's optimizations take ten times as long as these trainings.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(json.dumps, runs)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def codes_of(process: subprocess.Popen[str], expected: list[int]) -> tuple[str, str]:
    """What a process wrote, when its runs have ended with the exit codes that are expected."""
    out, err = process.communicate(timeout=600)
    assert out.splitlines()[-1:] == [" ".join(["codes", *map(str, expected)])], err
    return out, err


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def difference(a: Path, b: Path) -> float:
    """Largest difference of the last models of two runs, and of what their histories say of each epoch."""
    first, second = (read_arrays(find_model(str(folder), "last")) for folder in (a, b))
    assert first.keys() == second.keys()
    found = [float(np.abs(first[name] - second[name]).max()) for name in first]
    columns = ("epoch", "batches", "loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1")
    for one, other in zip(rows_of(a), rows_of(b), strict=True):
        found += [abs(float(one[name]) - float(other[name])) for name in columns]
    return max(found)


@given(devices=st.integers(1, 9), crops=st.integers(1, 6))
def test_the_shares_of_all_processes_are_the_batch_without_duplicates_or_gaps(
    devices: int, crops: int
) -> None:
    shares = [Devices(devices, k, devices).own_crops(crops * devices) for k in range(devices)]
    assert [number for share in shares for number in share] == list(range(crops * devices))
    assert {len(share) for share in shares} == {crops}


def test_slurm_tells_where_processes_meet_and_options_win() -> None:
    slurm = {"SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "r[07-09,12]g[1-2],r20", "SLURM_JOB_ID": "4097"}
    assert meeting_of(make_config(processes=4), slurm) == ("r07g1:61441", 1)
    second = slurm | {"SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "login"}
    assert meeting_of(make_config(processes=4), second) == ("login:61443", 1)
    told = make_config(processes=4, process=3, coordinator="a:1")
    assert meeting_of(told, slurm) == meeting_of(told, {}) == ("a:1", 3)


@pytest.mark.parametrize(
    ("options", "environment", "problem"),
    [
        ({}, {}, "--coordinator is not given"),
        ({"coordinator": "a:1"}, {}, "--process is not given"),
        ({"coordinator": "a:1", "process": 2}, {}, "number 2, expected 0 to 1"),
        ({"coordinator": "a:1"}, {"SLURM_PROCID": "5"}, "number 5, expected 0 to 1"),
    ],
)
def test_processes_that_cannot_meet_are_refused(
    options: dict[str, Any], environment: dict[str, str], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        meeting_of(make_config(processes=2, **options), environment)


@pytest.mark.parametrize(
    ("wanted", "environment", "numbers"),
    [
        (None, {"SLURM_LOCALID": "1"}, None),
        (1, {"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [3]),
        (2, {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        (1, {"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "2"}, None),
        (2, {}, [0, 1]),
    ],
)
def test_processes_of_a_machine_take_different_gpus(
    wanted: int | None, environment: dict[str, str], numbers: list[int] | None
) -> None:
    assert local_numbers(wanted, environment) == numbers


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"devices": "none"}, "--devices is 'none', expected a number from 1, or all"),
        ({"devices": "0"}, "--devices is '0'"),
        ({"processes": 0}, "0 for --processes, expected a whole number of at least 1"),
        ({"process": 1}, "--process without --processes"),
        ({"coordinator": "a:1"}, "--coordinator without --processes"),
        ({"processes": 2, "cross_validate": "stacks"}, "--processes with --cross-validate"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as refused:
        check_options(make_config(**options))
    assert problem in refused.value.problem


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"processes": 2}, "in several processes with the backend 'tensorflow'"),
        ({"devices": "64"}, "cannot train on 64 devices, since"),
    ],
)
def test_what_the_framework_or_the_machine_cannot_do_is_refused(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem), open_devices(make_config(**options)):
        pass


@pytest.fixture(scope="module")
def stacks(write_stacks: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stacks of which one has many more ignored pixels in its south."""

    def hide(name: str, image: np.ndarray, masks: np.ndarray) -> None:
        masks[50:] = np.where(np.random.default_rng(1).random(masks[50:].shape) < 0.6, 255, masks[50:])

    return write_stacks(tmp_path_factory.mktemp("data") / "stacks", change=hide)


@pytest.fixture(scope="module")
def mirrored(stacks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one and two devices of TensorFlow, and one that changes between them."""
    out = tmp_path_factory.mktemp("mirrored")
    # Each of TensorFlow's devices draws for its own crops what is dropped; JAX draws for the batch.
    options = [*SMALL, "--dropout", "0"]
    words = {
        name: [str(stacks), "--out", str(out / name), *options] for name in ("one", "two", "apart", "mixed")
    }
    both = ["--devices", "2"]
    runs: list[dict[str, Any]] = [
        {"words": words["one"]},
        {"words": [*words["two"], *both]},
        {"words": [*words["apart"], *both], "apart": True},
        {"words": [*words["mixed"], *both], "stop": 2},
        {"words": words["mixed"], "stop": 2},
        {"words": [*words["mixed"], *both]},
        {"words": [*words["two"], *both, "--precision", "float16"]},
        {"words": [*words["two"], "--devices", "all", "--batch-size", "3"]},
    ]
    _, err = codes_of(start(runs, "tensorflow"), [0, 0, 0, 1, 1, 0, 1, 1])
    (out / "errors").write_text(err)
    return out


def test_two_devices_of_tensorflow_train_what_one_trains(mirrored: Path) -> None:
    assert difference(mirrored / "one", mirrored / "two") < TOLERANCE


def test_batch_norm_of_each_device_alone_would_train_something_else(mirrored: Path) -> None:
    assert difference(mirrored / "one", mirrored / "apart") > 100 * TOLERANCE


def test_one_device_continues_what_two_began_and_two_what_one_began(mirrored: Path) -> None:
    assert difference(mirrored / "one", mirrored / "mixed") < TOLERANCE


def test_tensorflow_refuses_what_its_devices_cannot_do(mirrored: Path) -> None:
    errors = (mirrored / "errors").read_text()
    assert "cannot train on 2 devices with --precision float16" in errors
    assert "--batch-size is 3, expected a multiple of the number of devices, 2" in errors


@pytest.fixture(scope="module")
def parallel(stacks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on JAX: of one device; of two processes after one device; of two devices after two processes."""
    if not importlib.util.find_spec("jax"):
        pytest.skip("needs jax: make test-backends installs JAX and PyTorch")
    out = tmp_path_factory.mktemp("parallel")
    words = {name: [str(stacks), "--out", str(out / name), *SMALL] for name in ("one", "first", "second")}
    codes_of(start([{"words": words["one"]}, {"words": words["first"], "stop": 2}], "jax"), [0, 1])
    together(words["second"], [{}, {"stop": 2}], 1)
    alone = start([{"words": [*words["second"], "--devices", "2"]}], "jax", XLA_FLAGS=TWO)
    said = together(words["first"], [{}, {"readonly": True}], 0)
    codes_of(alone, [0])
    (out / "said").write_text(json.dumps(said))
    return out


TWO = "--xla_force_host_platform_device_count=2"


def together(words: list[str], each: list[dict[str, Any]], code: int) -> list[tuple[str, str]]:
    """What processes wrote that met over loopback, and ended with the same code."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [
        start(
            [
                {
                    "words": [
                        *words,
                        *f"--processes {len(each)} --process {k} --coordinator {address}".split(),
                    ],
                    **it,
                }
            ],
            "jax",
        )
        for k, it in enumerate(each)
    ]
    return [codes_of(process, [code]) for process in processes]


@pytest.mark.backends
def test_two_processes_of_jax_continue_what_one_began_as_one_would(parallel: Path) -> None:
    assert difference(parallel / "one", parallel / "first") < TOLERANCE


@pytest.mark.backends
def test_two_devices_continue_what_two_processes_began_when_one_of_them_was_told_to_stop(
    parallel: Path,
) -> None:
    assert difference(parallel / "one", parallel / "second") < TOLERANCE


@pytest.mark.backends
def test_the_first_process_alone_answers_and_the_other_may_write_to_no_file(parallel: Path) -> None:
    (first, _), (second, errors) = json.loads((parallel / "said").read_text())
    assert "lowest-val-loss" in first and second == "codes 0\n"
    assert "epoch" not in errors
