"""Where disk, memory, permission or an input fails, a command says so and leaves nothing half-made."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.cli.make_classifications import main as make_classifications
from lulc.cli.preprocess import main as preprocess
from lulc.cli.train_model import main as train_model
from lulc.core import machine
from lulc.core.schema import InputError
from lulc.core.storage import Lock
from lulc.engines.registry import Engine, EngineRequest
from lulc.inference import job
from lulc.preprocessing import preprocess as preprocess_module

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
WriteBands = Callable[..., Path]

FEW_BYTES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
"""

LITTLE_MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000, 1_000_000_000))
"""

# Permissions bind root, too, once it has given up the capability to pass over them.
NO_PRIVILEGE = """
import ctypes
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
kernel = ctypes.CDLL(None, use_errno=True)
assert kernel.capget(header, sets) == 0
for i in range(0, 6, 3):
    sets[i] = 0
assert kernel.capset(header, sets) == 0
"""


def limited(setting: str, command: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which first limits itself."""
    code = f"import sys\n{setting}\nfrom lulc.cli.{command} import main\nsys.exit(main({arguments!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def check_refusal(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr


@pytest.fixture
def mapping(tmp_path: Path, tiny_model: Path, write_bands: WriteBands) -> list[str]:
    """Arguments of make_classifications.py; the map is ``out/map.tif``."""
    mosaic = write_bands(tmp_path / "mosaic.tif", 530, 600)
    (tmp_path / "out").mkdir(exist_ok=True)
    options = ["--scale", "0.0001", "--offset", "0", "--part", "256", "--window", "128", "-q"]
    return [str(tiny_model), str(mosaic), str(tmp_path / "out" / "map.tif"), *options]


@pytest.fixture
def cutting(tmp_path: Path, write_bands: WriteBands) -> list[str]:
    """Arguments of preprocess.py; the stacks are in ``out``."""
    bands = write_bands(tmp_path / "bands.tif", 160, 224)
    labels = write_bands(tmp_path / "labels.tif", 160, 224, labels=True)
    (tmp_path / "out").mkdir(exist_ok=True)
    inputs = ["--bands", str(bands), "--labels", str(labels), "--out", str(tmp_path / "out")]
    return [*inputs, "--scheme", "kaakonkulma-13", "--size", "64", "--gap", "4", "-q"]


def numpy_engine(name: str, request: EngineRequest, before: Callable[[], object] = lambda: None) -> Engine:
    def network(x: np.ndarray) -> np.ndarray:
        before()
        powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
        return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)

    return Engine("keras", request.shape, {"precision": "float32"}, network)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has maps made by three lines of NumPy, and something done before each call of them."""

    def set_engine(before: Callable[[], object] = lambda: None) -> None:
        monkeypatch.setattr(job, "build_engine", lambda name, request: numpy_engine(name, request, before))

    return set_engine


def test_a_full_disk_ends_a_classification_without_a_map(tmp_path: Path, mapping: list[str]) -> None:
    check_refusal(limited(FEW_BYTES, "make_classifications", [*mapping, "--engine", "keras"]), "cannot write")
    assert not list(tmp_path.glob("out/*.tif")) and not list(tmp_path.glob("out/**/*.part"))


def test_a_full_disk_ends_preprocessing_without_a_manifest(tmp_path: Path, cutting: list[str]) -> None:
    check_refusal(limited(FEW_BYTES, "preprocess", cutting), "cannot write")
    assert not list(tmp_path.glob("out/*.npy")) and not (tmp_path / "out" / "manifest.json").exists()
    assert not list(tmp_path.glob("out/.*.partial"))
    assert preprocess(cutting) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16M", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder: Path) -> None:
    """Take all room of a disk but a page or two, as another program might."""
    with open(folder / "filler", "wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))


def on_disk(arguments: list[str], out: Path, disk: Path) -> list[str]:
    return [str(disk / Path(a).relative_to(out)) if a.startswith(str(out)) else a for a in arguments]


def check_full(code: int, message: str) -> None:
    assert code == 1
    # TensorFlow, of which this process has asked much by then, may say things of its own.
    (said,) = (line for line in message.splitlines() if line.startswith("error: "))
    assert "No space left on device" in said and "Traceback" not in message


def test_a_disk_that_fills_up_ends_a_classification_that_continues_when_there_is_room(
    tmp_path: Path, mapping: list[str], fast: Any, capfd: Any, small_disk: Path
) -> None:
    arguments = on_disk(mapping, tmp_path / "out", small_disk)
    fast(change_after(5, lambda: fill_up(small_disk)))
    check_full(make_classifications(arguments), capfd.readouterr().err)
    assert not list(small_disk.glob("*.tif"))
    (small_disk / "filler").unlink()
    fast()
    assert make_classifications(arguments) == make_classifications(mapping) == 0
    assert (small_disk / "map.tif").read_bytes() == (tmp_path / "out" / "map.tif").read_bytes()
    assert sorted(p.name for p in small_disk.iterdir()) == ["map.qml", "map.tif"]


def test_a_disk_that_fills_up_ends_preprocessing_that_continues_when_there_is_room(
    tmp_path: Path, cutting: list[str], capfd: Any, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    arguments = on_disk(cutting, tmp_path / "out", small_disk)
    write = preprocess_module.cut
    count = change_after(2, lambda: fill_up(small_disk))
    with monkeypatch.context() as patch:
        patch.setattr(preprocess_module, "cut", lambda *a: (count(), write(*a))[1])
        check_full(preprocess(arguments), capfd.readouterr().err)
    assert not (small_disk / "manifest.json").exists() and not list(small_disk.glob(".*.partial"))
    (small_disk / "filler").unlink()
    assert preprocess(arguments) == preprocess(cutting) == 0
    assert contents(small_disk) == contents(tmp_path / "out")


def test_a_disk_that_fills_up_ends_a_training_that_continues_when_there_is_room(
    tmp_path: Path,
    write_stacks: Callable[..., Path],
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Path,
) -> None:
    from lulc.training import loop

    small = ["--epochs", "2", "--steps", "2", "--validation-steps", "1", "--batch-size", "1", "-q"]
    small += ["--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "2", "--workers", "1"]
    arguments = [str(write_stacks(tmp_path / "stacks", side=64)), *small, "--out"]
    check = loop.Loop._check_finite
    count = change_after(3, lambda: fill_up(small_disk))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_check_finite", lambda *a: (count(), check(*a))[1])
        check_full(train_model([*arguments, str(small_disk / "run")]), capfd.readouterr().err)
    models = contents(small_disk / "run", "*.keras")
    assert len(models) == 1 and not list(small_disk.rglob(".*.partial"))
    (small_disk / "filler").unlink()
    for run in (small_disk / "run", tmp_path / "run"):
        assert train_model([*arguments, str(run)]) == 0
    # Cards name the run's folder, which is the same.
    assert contents(small_disk / "run", "??-*") == contents(tmp_path / "run", "??-*")


def contents(folder: Path, names: str = "[!.]*") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob(names)) if p.is_file()}


def test_a_disk_that_will_not_do_is_refused_before_any_work(
    tmp_path: Path, mapping: list[str], cutting: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("lulc.core.storage.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    for command, arguments in ((make_classifications, mapping), (preprocess, cutting)):
        assert command(arguments) == 1
        assert "GB are free there" in capfd.readouterr().err
    assert not list(tmp_path.glob("out/*.tif")) and not list(tmp_path.glob("out/*.npy"))


def test_a_folder_that_may_not_be_written_is_named(
    tmp_path: Path, mapping: list[str], cutting: list[str]
) -> None:
    (tmp_path / "out").chmod(0o555)
    for command, arguments in (("make_classifications", mapping), ("preprocess", cutting)):
        check_refusal(limited(NO_PRIVILEGE, command, arguments), str(tmp_path / "out"), "Permission denied")
    assert not list((tmp_path / "out").iterdir())


def test_an_input_that_may_not_be_read_is_named(tmp_path: Path, mapping: list[str]) -> None:
    (tmp_path / "mosaic.tif").chmod(0o000)
    check_refusal(limited(NO_PRIVILEGE, "make_classifications", mapping), "mosaic.tif")


def change_after(calls: int, change: Callable[[], object]) -> Callable[[], None]:
    left = calls

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            change()

    return count


def rewrite(path: Path) -> None:
    """The same size and another pixel, as an editor or a download writes it."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Another file of the same size and time under the same name."""
    status = path.stat()
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, 3000)


Change = Callable[[Path], object]
CHANGES: list[Change] = [Path.unlink, rewrite, exchange, truncate]


@pytest.mark.parametrize("change", CHANGES, ids=["vanished", "rewritten", "exchanged", "truncated"])
def test_an_input_that_changes_in_mid_run_leaves_no_map(
    tmp_path: Path, mapping: list[str], fast: Any, capfd: Any, change: Change
) -> None:
    fast(change_after(5, lambda: change(tmp_path / "mosaic.tif")))
    assert make_classifications(mapping) == 1
    message = capfd.readouterr().err
    assert "changed while it was read" in message or "damaged or truncated" in message
    assert not (tmp_path / "out" / "map.tif").exists()


@pytest.mark.parametrize("change", CHANGES, ids=["vanished", "rewritten", "exchanged", "truncated"])
def test_an_input_that_changes_in_mid_run_leaves_no_manifest(
    tmp_path: Path,
    cutting: list[str],
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
) -> None:
    write = preprocess_module.cut
    count = change_after(2, lambda: change(tmp_path / "bands.tif"))

    def counted(*arguments: Any) -> Any:
        count()
        return write(*arguments)

    monkeypatch.setattr(preprocess_module, "cut", counted)
    assert preprocess(cutting) == 1
    message = capfd.readouterr().err
    assert "changed while it was read" in message or "damaged or truncated" in message
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_stack_that_changes_while_a_network_trains_on_it_is_named(
    tmp_path: Path, write_stacks: Callable[..., Path], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lulc.training import loop

    stacks = write_stacks(tmp_path / "stacks", side=64)
    check = loop.Loop._check_finite
    count = change_after(2, lambda: rewrite(stacks / "train_image_0.npy"))

    def counted(*arguments: Any) -> None:
        count()
        check(*arguments)

    monkeypatch.setattr(loop.Loop, "_check_finite", counted)
    small = ["--epochs", "1", "--steps", "3", "--validation-steps", "1", "--batch-size", "1", "-q"]
    small += ["--crop-sizes", "32", "--validation-crop-sizes", "32", "--filters", "2"]
    assert train_model([str(stacks), "--out", str(tmp_path / "run"), *small]) == 1
    assert "train_image_0.npy' was changed" in capfd.readouterr().err
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_too_little_memory_is_refused_before_any_work(tmp_path: Path, mapping: list[str]) -> None:
    done = limited(LITTLE_MEMORY, "make_classifications", [*mapping, "--engine", "keras"])
    check_refusal(done, "cannot classify, since that takes about", "of memory")
    assert not list((tmp_path / "out").iterdir())


def test_a_training_that_no_memory_holds_is_refused(
    tmp_path: Path, write_stacks: Callable[..., Path], capfd: Any
) -> None:
    stacks = write_stacks(tmp_path / "stacks", side=64)
    large = ["--batch-size", "100000", "--crop-sizes", "64", "--validation-crop-sizes", "64", "-q"]
    assert train_model([str(stacks), "--out", str(tmp_path / "run"), *large]) == 1
    message = capfd.readouterr().err
    assert "GB of memory" in message and "--batch-size" in message
    assert not list((tmp_path / "run").glob("*.keras"))


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups_count(tmp_path: Path, version: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    root = tmp_path / "groups"
    group = root / ("memory" if version == 1 else "") / "slurm" / "job_7"
    group.mkdir(parents=True)
    (group.parent / names[0]).write_text("max\n")
    (group / names[0]).write_text("5000000000\n")
    (group / names[1]).write_text("3000000000\n")
    (group / "memory.stat").write_text(f"anon 1\n{names[2]} 500000000\n")
    own = tmp_path / "own"
    own.write_text("4:memory:/slurm/job_7\n" if version == 1 else "0::/slurm/job_7\n")
    assert machine.left_in_groups(root, own) == [2.5e9]


def test_memory_that_runs_out_after_all_is_one_message(mapping: list[str], fast: Any, capfd: Any) -> None:
    def fail() -> None:
        raise MemoryError

    fast(fail)
    assert make_classifications(mapping) == 1
    assert capfd.readouterr().err.startswith("error: cannot continue, since memory ran out")


def test_a_lock_keeps_others_out_and_a_removed_file_locks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "out.parts" / "lock"
    with Lock(path, "the map"):
        with pytest.raises(InputError, match="another run"), Lock(path, "the map"):
            pass
        path.unlink()
        with Lock(path, "the map"), pytest.raises(InputError, match="another run"), Lock(path, "the map"):
            pass
    with Lock(path, "the map"):
        pass


def test_a_lock_where_none_can_lie_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(InputError, match="a link lies"), Lock(tmp_path / "lock", "the map"):
        pass


def test_files_and_threads_are_given_back(tmp_path: Path, mapping: list[str], fast: Any) -> None:
    fast()
    assert make_classifications([*mapping, "--overwrite"]) == 0
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        assert make_classifications([*mapping, "--overwrite"]) == 0
        assert make_classifications(mapping) == 1
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["map.qml", "map.tif"]


def test_what_an_interrupted_run_has_written_is_not_asked_for_again(
    mapping: list[str], fast: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    asked = []
    monkeypatch.setattr(
        "lulc.inference.classify.check_disk", lambda folder, needed, what: asked.append(needed)
    )
    fast(change_after(30, lambda: (_ for _ in ()).throw(MemoryError)))
    assert make_classifications(mapping) == 1
    fast()
    assert make_classifications(mapping) == 0
    assert asked[1] < asked[0]


def test_files_beside_the_map_that_a_killed_run_has_named_do_not_stop_the_next(
    tmp_path: Path, mapping: list[str], fast: Any, monkeypatch: pytest.MonkeyPatch, write_bands: WriteBands
) -> None:
    from lulc.core import claims
    from lulc.inference import classify

    write_bands(tmp_path / "mosaic.tif", 60, 70)

    class Killed(BaseException):
        pass

    def die(source: Path, target: Path) -> None:
        raise Killed

    fast()
    further = ["--sieve", "20", "--polygons", str(tmp_path / "out" / "areas.gpkg")]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(classify, "put", die)
        patch.setattr(claims, "discard", lambda output: None)  # a killed run takes nothing back
        make_classifications([*mapping, *further])
    assert (tmp_path / "out" / "map_sieved.tif").exists() and not (tmp_path / "out" / "map.tif").exists()
    assert make_classifications([*mapping, *further]) == 0
    assert (tmp_path / "out" / "map.tif").exists()


@pytest.mark.parametrize("tiles", [[], ["--tiles", "--date", "2018-07-01"]], ids=["file", "tiles"])
def test_parts_that_a_run_left_which_was_killed_when_the_map_had_its_name_go_with_the_same_command(
    tmp_path: Path,
    mapping: list[str],
    fast: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    tiles: list[str],
) -> None:
    from lulc.inference.journal import Journal

    class Killed(BaseException):
        pass

    def die(journal: Journal) -> None:
        raise Killed

    fast()
    command = [
        str(tmp_path / "out" / "map") if tiles and word.endswith("map.tif") else word for word in mapping
    ]
    command += tiles
    out = tmp_path / "out" / ("map" if tiles else "map.tif")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "remove", die)
        make_classifications(command)
    parts = out.with_name(out.name + ".parts")
    assert out.exists() and parts.is_dir()
    # What a run with --overwrite has not finished yet is not touched.
    unfinished = parts / ("result" if tiles else "map.tif")
    unfinished.touch()
    assert make_classifications(command) == 1
    assert parts.is_dir()
    unfinished.unlink()
    assert make_classifications(command) == 1
    assert "exists already" in capfd.readouterr().err
    assert out.exists() and not parts.exists()
