"""The command train_model.py, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lulc.cli.train_model import describe, main
from lulc.core.channels import set_of
from lulc.models.weights import find_model, read_arrays
from lulc.training.run_folder import Row, picks_of
from lulc.training.train import TrainingResult

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).resolve().parents[1] / "train_model.py"
SMALL = [
    "--steps", "4", "--validation-steps", "1", "--batch-size", "2", "--crop-sizes", "32",
    "--validation-crop-sizes", "32", "--filters", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def stacks(write_stacks, tmp_path_factory):
    return write_stacks(tmp_path_factory.mktemp("data") / "stacks")


def command(*arguments):
    return [sys.executable, str(SCRIPT), *(str(a) for a in arguments)]


def frameworks_after(arguments):
    """Exit code of the command, and which frameworks it loaded."""
    code = (
        "import sys\nfrom lulc.cli.train_model import main\n"
        f"try:\n    code = main({[str(a) for a in arguments]!r})\n"
        "except SystemExit as error:\n    code = error.code\n"
        "print('loaded', code, *({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    _, code, *loaded = done.stdout.splitlines()[-1].split()
    return int(code), loaded, done


def test_it_prints_the_picks_the_history_and_what_to_type_next(stacks, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([str(stacks), "--out", str(out), "--epochs", "2", "-q", *SMALL]) == 0
    printed = capsys.readouterr().out
    for pick in ("lowest-val-loss", "highest-val-accuracy", "best-macro-f1", "last"):
        line = next(line for line in printed.splitlines() if line.startswith(pick))
        assert find_model(str(out), pick).name in line
    assert str(out / "history.csv") in printed and str(out / "history.png") in printed
    assert f"python make_classifications.py {out}" in printed


def test_an_epoch_that_the_time_cut_short_is_said_to_be_replaced(stacks, tmp_path, capsys):
    arguments = [
        str(stacks),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "2",
        "--minutes",
        "1e-6",
        "-q",
        *SMALL,
    ]
    assert main(arguments) == 0
    said = "The time is up in epoch 1 of 2 (batch 1 of 4); the same command continues and replaces the model"
    assert said in capsys.readouterr().out


def result_of(*accuracies, finished=True):
    """A result of as many epochs with losses that rise."""
    rows = tuple(
        Row(i, 4, 1.0, 1.0, 0.5, float(i), accuracy, 0.4, 0.001, f"{i:02d}-{i}.00.keras")
        for i, accuracy in enumerate(accuracies, 1)
    )
    return TrainingResult(
        folder=Path("run"), picks={pick: Path("run") / name for pick, name in picks_of(rows).items()},
        rows=rows, history=Path("run/history.csv"), picture=Path("run/history.png"), finished=finished,
        first=True, epochs=3, steps=4, channels=set_of(("B02", "B03")),
    )  # fmt: skip


def test_a_lowest_loss_with_far_less_accuracy_is_told():
    told = describe(result_of(0.42, 0.71))
    assert "far less accurate than 02-2.00.keras: compare `--pick highest-val-accuracy`" in told
    assert "less accurate" not in describe(result_of(0.68, 0.71))


def test_a_time_that_is_up_after_a_whole_epoch_replaces_nothing():
    assert "The time is up after epoch 2 of 3; the same" in describe(result_of(0.4, 0.4, finished=False))


def test_the_same_command_again_says_that_the_run_is_finished(stacks, tmp_path, capsys):
    arguments = [str(stacks), "--out", str(tmp_path / "run"), "--epochs", "1", "-q", *SMALL]
    assert main(arguments) == 0
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and "finished run" in error and "--overwrite" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], 0),
        (["stacks", "--out", "run", "--epochs", "many"], 2),
        (["no-such-folder", "--out", "run"], 1),
    ],
)
def test_help_mistakes_and_bad_folders_are_answered_without_a_framework(arguments, expected):
    code, loaded, done = frameworks_after(arguments)
    assert code == expected
    assert loaded == []
    assert "Traceback" not in done.stderr


def test_a_manifest_that_was_tampered_with_is_refused_without_a_framework(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stacks"][0]["image"]["file"] = "../../etc/passwd"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, loaded, done = frameworks_after([folder, "--out", tmp_path / "run"])
    assert (code, loaded) == (1, [])
    assert done.stderr.startswith("error: ") and "manifest" in done.stderr
    assert not (tmp_path / "run").exists()


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert condition(), process.communicate()


LONG = ["--epochs", "8", "-q", *SMALL]


@pytest.fixture(scope="module")
def straight(stacks, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert main([str(stacks), "--out", str(out), *LONG]) == 0
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_is_continued_by_the_same_command(stacks, straight, tmp_path, number):
    out = tmp_path / "run"
    process = subprocess.Popen(command(stacks, "--out", out, *LONG), stderr=subprocess.PIPE, text=True)
    wait_for((out / "history.csv").exists, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == (1 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert "error: stopped on request" in error and "The same command continues" in error
        assert "Traceback" not in error
    assert not json.loads((out / "run.json").read_text())["finished"]
    assert main([str(stacks), "--out", str(out), *LONG]) == 0
    found, expected = (read_arrays(find_model(str(folder), "last")) for folder in (out, straight))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert not [p for p in out.rglob("*") if p.name.endswith(".partial")]
