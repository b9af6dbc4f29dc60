"""A cluster of this machine makes the map of one process; what can't run is refused before any work."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import ipaddress
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lulc.config import ClassifyConfig, ClusterConfig
from lulc.core.schema import InputError
from lulc.distributed import cluster
from lulc.distributed.cluster import Cluster, ask, open_cluster, run_tasks
from lulc.inference.classify import classify, classify_share
from lulc.inference.request import share_of

pytestmark = pytest.mark.integration


def configure(model: Path, mosaic: Path, out: Path, **more: Any) -> ClassifyConfig:
    options: dict[str, Any] = {"scale": 1e-4, "offset": 0.0, "part": 256, "engine": "openvino", **more}
    return ClassifyConfig(model=str(model), inputs=(str(mosaic),), out=str(out), **options)


def test_local_workers_continue_what_a_share_began_and_make_the_bytes_of_one_process(
    tmp_path: Path, tiny_model: Path, write_bands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bands(tmp_path / "mosaic.tif", 520, 520)
    monkeypatch.chdir(tmp_path)
    one = configure(tiny_model, Path("mosaic.tif"), Path("one.tif"))
    classify(one)
    many = dataclasses.replace(one, out="many.tif")
    assert classify_share(dataclasses.replace(many, share="1/3")).made == 3
    before = set(psutil.Process().children(recursive=True))
    result = classify(dataclasses.replace(many, dask="local", workers=2))
    assert result.engine == "openvino"
    assert Path("many.tif").read_bytes() == Path("one.tif").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "many.qml", "many.tif", "mosaic.tif", "one.qml", "one.tif",
    ]  # fmt: skip
    left = {p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}
    assert not [p for p in left - before if "spawn" in " ".join(p.cmdline())]


def test_ctrl_c_in_a_terminal_ends_the_command_and_its_workers_with_one_message(
    tmp_path: Path, tiny_model: Path, write_bands: Callable[..., Path]
) -> None:
    mosaic, out = write_bands(tmp_path / "mosaic.tif", 520, 1000), tmp_path / "map.tif"
    script = Path(__file__).parents[1] / "make_classifications.py"
    options = ["--scale", "0.0001", "--offset", "0", "--part", "256", "--window", "48", "--tta", "-q"]
    command = subprocess.Popen(
        [sys.executable, script, tiny_model, mosaic, out, *options, "--dask", "local"],
        start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=restore_interrupt,
    )  # fmt: skip
    journal = tmp_path / "map.tif.parts" / "journal.jsonl"
    end = time.monotonic() + 120
    while not journal.exists() and command.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=60)[1]
    assert command.returncode == 1, said
    assert said == "error: stopped on request\n\nThe same command continues where this one stopped.\n"
    # A worker may take a moment after the command to end, on a busy machine.
    end = time.monotonic() + 30
    while left := living(command.pid):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert journal.exists() and not out.exists()


def living(session: int) -> list[psutil.Process]:
    """Processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == session:
                found.append(process)
    return found


def restore_interrupt() -> None:
    """Tests may themselves run where SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def two_workers() -> Any:
    with open_cluster(ClusterConfig(dask="local", workers=2)) as opened:
        yield opened


def test_tasks_give_their_results_however_many_there_are(two_workers: Cluster) -> None:
    assert sorted(run_tasks(two_workers, abs, range(-100, 0))) == list(range(1, 101))
    assert list(run_tasks(two_workers, abs, [])) == []
    assert ask(two_workers, abs, -5) == 5


def test_a_fault_of_the_function_ends_the_tasks_with_where_it_was(two_workers: Cluster) -> None:
    with pytest.raises(ValueError) as caught:
        list(run_tasks(two_workers, math.sqrt, [4.0, -1.0]))
    assert "on worker tls://127.0.0.1:" in caught.value.__notes__[0]
    assert list(run_tasks(two_workers, math.sqrt, [4.0])) == [2.0]


def test_a_result_that_died_with_the_last_worker_is_made_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import distributed

    workers: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1"]
    with (
        contextlib.ExitStack() as ended,
        distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", protocol="tcp", dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):

        def refill() -> None:
            if all(worker.poll() is not None for worker in workers):
                workers.append(subprocess.Popen([*command, "--no-dashboard", local.scheduler_address]))
                ended.callback(workers[-1].kill)

        fetch = cluster._Run._fetch

        def fetch_late(run: Any, futures: list[Any]) -> dict[Any, Any]:
            if futures and len(workers) == 1:
                workers[0].kill()
                workers[0].wait()
                while client.scheduler_info()["workers"]:
                    time.sleep(0.05)
            return fetch(run, futures)

        monkeypatch.setattr(cluster._Run, "_fetch", fetch_late)
        refill()
        client.wait_for_workers(1)
        found = run_tasks(Cluster(client, "test", refill=refill), abs, [-1, -2, -3])
        assert sorted(found) == [1, 2, 3]
        assert len(workers) == 2


def test_an_error_that_can_not_be_sent_goes_as_one_that_can() -> None:
    # A class of this moment: for those that are there when Dask is imported, it finds ways.
    class OddError(MemoryError):
        """One that holds what can't be sent, as some libraries have them."""

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("cannot pickle a socket")

    odd = OddError("this and that")
    with pytest.raises(TypeError):
        copy.copy(odd)
    sent = cluster._sendable(odd)
    assert type(sent) is MemoryError and str(sent) == "OddError: this and that"
    refused = InputError("cannot do this", "Type that.")
    assert cluster._sendable(refused) is refused


def test_a_cluster_of_this_machine_is_encrypted_and_heard_on_loopback_alone(two_workers: Cluster) -> None:
    assert all(address.startswith("tls://127.0.0.1:") for address in two_workers.workers)
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    heard = [c for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert heard
    assert all(ipaddress.ip_address(found.laddr.ip).is_loopback for found in heard)


def test_workers_keep_the_memory_of_their_arrays(two_workers: Cluster) -> None:
    # Dask's own setting is 64 KiB; it costs a fifth of a worker's time.
    assert set(two_workers.client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()) == {None}


@pytest.mark.parametrize("path", ["jobs/dask_workers.sh", "docs/howto/dask.md"])
def test_workers_that_others_start_are_told_the_same(path: str) -> None:
    said = (Path(__file__).resolve().parents[1] / path).read_text(encoding="utf-8")
    assert all(line.removeprefix("export ") in said for line in cluster.KEEP_MEMORY)


def test_each_worker_has_cores_of_its_own_where_there_are_enough(two_workers: Cluster) -> None:
    cores = list(two_workers.cores.values())
    assert len(cores) == 2
    if len(cores[0] | cores[1]) > 1:
        assert not cores[0] & cores[1]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"dask": "slurmm"}, "expected local, slurm or the address"),
        ({"dask": "local", "workers": 0}, "expected a whole number of at least 1"),
        ({"dask": "local", "worker_wait": -1.0}, "expected a number of at least 0"),
        ({"dask": "slurm"}, "cannot start workers as jobs of SLURM"),
        ({"dask": "tcp://127.0.0.1:1"}, "no scheduler answers there"),
    ],
)
def test_a_cluster_that_is_none_is_refused(
    config: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1.0)
    with pytest.raises(InputError) as caught, open_cluster(ClusterConfig(**config)):
        pass
    assert problem in caught.value.problem
    assert caught.value.hint


def test_what_is_waited_for_is_said_at_growing_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    absence = cluster._Absence(Cluster(None, "tcp://a:1"))
    told = []
    for now in range(0, 1000, 10):
        absence.note([] if now != 500 else ["tcp://b:2"])
        if caplog.messages:
            told.append(now)
            assert "no worker of tcp://a:1" in caplog.messages[0] and "dask worker tcp://a:1" in caplog.text
            caplog.clear()
    assert told == [60, 120, 240, 480, 570, 630, 750, 990]


@pytest.mark.parametrize(
    ("name", "needed"),
    [("local", "distributed, cryptography"), ("slurm", "distributed, cryptography, dask_jobqueue")],
)
def test_all_packages_that_a_cluster_lacks_are_told_with_what_installs_them(
    name: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError) as caught, open_cluster(ClusterConfig(dask=name)):
        pass
    assert caught.value.problem.endswith(f"not installed: {needed}")
    assert "pip install '.[cluster]'" in caught.value.hint


def test_a_run_without_a_cluster_does_not_load_dask() -> None:
    code = (
        "import sys, lulc.inference.classify; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        share_of(text)
    assert "SLURM_ARRAY_TASK_ID" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"share": "1/2", "dask": "local"}, "--share with --dask"),
        ({"share": "1/2", "restart": True}, "--share with --restart"),
        ({"workers": 3}, "--workers without --dask"),
        ({"workers": 3, "dask": "tcp://127.0.0.1:1"}, "--workers without --dask local or slurm"),
        ({"worker_wait": 3.0}, "--worker-wait without --dask"),
        ({"plan": True, "dask": "local"}, "--plan with"),
        ({"plan": True, "share": "1/2"}, "--plan with"),
    ],
)
def test_options_that_can_not_work_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError) as caught:
        configure(Path("no.keras"), Path("no.tif"), tmp_path / "map.tif", **changes)
    assert problem in caught.value.problem
    assert caught.value.hint
