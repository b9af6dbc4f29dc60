"""What a reader process may do, and what becomes of it when a file crashes or misleads it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lulc.core.reader_process import read_apart
from lulc.core.schema import InputError


def _values(path: str) -> dict[object, object]:
    text = Path(path).read_text()
    return {
        "text": text,
        3: [None, 1.5],
        "array": np.eye(2, 3),
        "none": np.zeros((0, 2), "u1"),
        "bytes": b"\0a",
    }


def _crash(path: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _abort(path: str) -> None:
    os.abort()


def _loop(path: str) -> None:
    while True:
        pass


def _fill_memory(path: str) -> None:
    np.ones(2**31)


def _fail(path: str) -> None:
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")


def _refuse(path: str) -> None:
    raise InputError("cannot do this", "Do that.")


def _call_out(path: str) -> int:
    return int(ctypes.CDLL(None).socket(socket.AF_INET, socket.SOCK_STREAM, 0))


def _read_elsewhere(path: str) -> str:
    return (Path(path).parents[1] / "secret.txt").read_text()


def _write(path: str) -> None:
    Path(path).with_name("new").write_text("x")


def _warn(path: str) -> None:
    logging.getLogger("lulc").warning("%s is odd", "this")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file in a folder of its own, beside a file that is nobody's business."""
    warnings.filterwarnings("ignore", "This process .* is multi-threaded")
    (tmp_path / "secret.txt").write_text("secret")
    path = tmp_path / "folder" / "file.dat"
    path.parent.mkdir()
    path.write_text("content")
    return path


def test_values_and_arrays_arrive_as_they_are(file: Path) -> None:
    found = read_apart(_values, str(file), path=file)
    assert np.array_equal(found.pop("array"), np.eye(2, 3))
    assert found.pop("none").shape == (0, 2)
    assert found == {"text": "content", 3: [None, 1.5], "bytes": b"\0a"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_crash, "SIGSEGV"),
        (_abort, "SIGABRT"),
        (_loop, "processor time"),
        (_fill_memory, "more memory"),
        (_fail, "UnicodeDecodeError"),
    ],
)
def test_whatever_ends_it_is_one_error_that_names_the_file(
    function: Callable[[str], None], reason: str, file: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read_apart(function, str(file), path=file, reading="the weights")
    assert caught.value.problem.startswith(f"cannot read the weights '{file}', since ")
    assert reason in caught.value.problem


def test_its_own_refusal_is_passed_on(file: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_apart(_refuse, str(file), path=file)
    assert (caught.value.problem, caught.value.hint) == ("cannot do this", "Do that.")


def test_it_opens_no_socket_and_writes_nothing(file: Path) -> None:
    assert read_apart(_call_out, str(file), path=file) == -1
    with pytest.raises(InputError):
        read_apart(_write, str(file), path=file)
    assert [p.name for p in file.parent.iterdir()] == ["file.dat"]


def test_it_reads_nothing_outside_the_folder_of_the_file(file: Path) -> None:
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
        pytest.skip("needs Landlock, which this kernel does not have")
    with pytest.raises(InputError, match="PermissionError"):
        read_apart(_read_elsewhere, str(file), path=file)


def test_what_it_logs_is_logged_here(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lulc"):
        read_apart(_warn, str(file), path=file)
    assert "this is odd" in caplog.text


def test_it_starts_sooner_than_an_interpreter_with_numpy(file: Path) -> None:
    read_apart(_values, str(file), path=file)

    def seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    own = min(seconds(lambda: read_apart(_values, str(file), path=file)) for _ in range(5))
    fresh = min(
        seconds(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True)) for _ in range(3)
    )
    assert own < fresh


def test_a_relative_path_is_that_of_the_folder_of_today(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("first")
    read_apart(_values, str(file), path=file)  # starts the server in another folder
    monkeypatch.chdir(file.parent)
    assert read_apart(_values, file.name, path=file.name)["text"] == "first"
