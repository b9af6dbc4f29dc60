"""The jobs of jobs/, run by a real SLURM whose daemons all live on this machine, in a folder of their own."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lulc import config
from lulc.cli import make_classifications, preprocess, train_model
from lulc.cli.commandline import parse
from lulc.demo.landscape import simulate, write_scene
from lulc.models.weights import find_model, read_arrays
from lulc.training.data.batches import TileGenerator

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
JOBS = ROOT / "jobs"

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "setpriv")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
KillWait=20
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=8 RealMemory=4000
PartitionName=small Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""
"""Two nodes on one machine; a job that is queued again waits as long as credentials last, 5 s at least."""

SITE = """
ACCOUNT=test
declare -A RESOURCES=(
    [preprocess]="--cpus-per-task=1 --time=30"
    [preprocess-dask]="--ntasks=2 --cpus-per-task=1 --time=30"
    [train-gpu]="--cpus-per-task=1 --time=30"
    [train-node]="--cpus-per-task=1 --time=30"
    [train-nodes]="--nodes=2 --cpus-per-task=1 --time=30"
    [classify-array]="--array=1-2 --cpus-per-task=1 --time=30"
    [classify]="--cpus-per-task=1 --time=30"
    [classify-dask]="--ntasks=2 --cpus-per-task=1 --time=30"
)
RESTARTS=2
FRAMEWORK=tensorflow
# XLA's optimizations take ten times as long as these trainings.
export JAX_DISABLE_MOST_OPTIMIZATIONS=1
export PATH={binaries}:$PATH
START=({start})
"""

NOTES = """
import os, signal, sys, time

def note(number, frame):
    print("told to stop", flush=True)
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(1)

signal.signal(signal.SIGTERM, note)
print("started", os.environ.get("SLURM_RESTART_COUNT", "0"), flush=True)
time.sleep({seconds})
sys.exit({code})
"""
"""A command that takes a second to save what it has when it is stopped, as a training does."""


class Slurm:
    """A running cluster.

    Parameters
    ----------
    folder
        Of the cluster; its jobs work in `folder/work`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        self.work.mkdir()
        # Neither the settings of this test run nor those of a job that it may itself be.
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "LULC_"))}
        self.environment = plain | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str, site: Path | None = None) -> str:
        found = {"LULC_SITE": str(site or self.site())}
        answer = subprocess.run(
            command, cwd=self.work, env=self.environment | found, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def site(self, name: str = "site", *start: str) -> Path:
        """A file in place of jobs/site.sh: no GPU, no module, and what `start` says before each command."""
        path = self.folder / f"{name}.sh"
        whole = path.with_suffix(".new")
        whole.write_text(SITE.format(binaries=Path(sys.executable).parent, start=shlex.join(start)))
        # A job that starts just now may be reading it.
        return whole.replace(path)

    def submit(self, *arguments: str, site: Path | None = None) -> list[str]:
        """Numbers of the jobs that jobs/submit makes of its arguments."""
        return re.findall(r"^job (\d+)", self.run(str(JOBS / "submit"), *arguments, site=site), re.MULTILINE)

    def show(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job)))

    def wait_for(self, done: Callable[[], bool], job: str = "", seconds: float = 300.0) -> None:
        """Wait for something; not in vain for what a job does that has failed."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.logs()
            assert not job or self.show(job)["JobState"] != "FAILED", self.logs()
            time.sleep(0.1)

    def wait(self, *jobs: str) -> list[str]:
        """Wait for the end of jobs; their last states."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"}
        self.wait_for(lambda: all(self.show(job)["JobState"] in over for job in jobs))
        return [self.show(job)["JobState"] for job in jobs]

    def log(self, job: str) -> str:
        """What a job has said so far."""
        return "".join(path.read_text() for path in self.work.glob(f"*-{job}.out"))

    def logs(self) -> str:
        """What daemons and jobs have said."""
        paths = [self.folder / "daemons.log", *sorted(self.work.glob("*.out"))]
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in paths)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@contextlib.contextmanager
def daemon(*command: str, folder: Path, user: str = "") -> Iterator[None]:
    """A program in the foreground that ends with the block, and with this process whatever becomes of it."""
    change = [f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    with (folder / "daemons.log").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", *change, "--pdeathsig", "KILL", *command], env=environment, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Processes whose parents end, as those that watch over jobs have it, become children of this one."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(set_child_subreaper, 0, 0, 0, 0)


def left_over(folder: Path) -> list[psutil.Process]:
    """Processes of this cluster: what watches over jobs, and whatever knows its configuration."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get("SLURM_CONF") == str(folder / "slurm.conf")
            # These write their title over their environment.
            if ours or process.name() == "slurmstepd":
                found.append(process)
    return found


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    (folder / "munge").mkdir()
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o400)
    for path in (folder / "munge", folder / "munge" / "key"):
        shutil.chown(path, "munge", "munge")
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, ports=free_ports(3)))
    slurm = Slurm(folder)
    paths = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge/{name}" for option, name in paths.items()]
    with adopting():
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(daemon("munged", "--foreground", *munge, folder=folder, user="munge"))
                slurm.wait_for((folder / "munge" / "socket").exists, seconds=60)
                stack.enter_context(daemon("slurmctld", "-D", "-f", str(conf), folder=folder))
                for node in ("n1", "n2"):
                    stack.enter_context(daemon("slurmd", "-D", "-N", node, "-f", str(conf), folder=folder))
                slurm.wait_for(lambda: answers(slurm), seconds=60)
                yield slurm
        finally:
            remaining = left_over(folder)
            for process in remaining:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(remaining, 10)
            remaining = left_over(folder)
        assert not remaining


def answers(slurm: Slurm) -> bool:
    """Whether both nodes are there."""
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%D %t", "--partition=small"],
        env=slurm.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stdout.strip() == "2 idle"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """SLURM on this machine; tests skip where it can't be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root, who alone may start a SLURM that runs jobs")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not any(user.pw_name == "munge" for user in pwd.getpwall()):
        pytest.skip(f"needs SLURM ({' '.join(missing)}), which `make system` installs")
    # Not pytest's folder, which is closed to the user munge; short, for the sake of sockets.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with running_slurm(folder) as running:
            yield running


def notes(slurm: Slurm, name: str, *, code: int = 0, restarts: int = 2) -> Path:
    """A site where each job runs `NOTES` in place of its command."""
    script = slurm.folder / f"{name}.py"
    script.write_text(NOTES.format(seconds=0 if code else 60, code=code))
    site = slurm.site(name, sys.executable, str(script))
    site.write_text(site.read_text().replace("RESTARTS=2", f"RESTARTS={restarts}"))
    return site


def test_a_job_whose_time_is_nearly_over_saves_and_is_queued_again(slurm: Slurm) -> None:
    (job,) = slurm.submit("preprocess", site=notes(slurm, "over"))
    slurm.wait_for(lambda: "started 0" in slurm.log(job))
    # What --signal in the job asks SLURM for, two minutes before its time is over.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(lambda: "started 1" in slurm.log(job))
    assert slurm.log(job).count("told to stop") == slurm.log(job).count("saved") == 1
    slurm.run("scancel", job)
    slurm.wait(job)


def test_a_job_that_a_more_urgent_one_displaces_saves_and_is_queued_again(slurm: Slurm) -> None:
    (job,) = slurm.submit("--nodes=2", "--exclusive", "train-nodes", site=notes(slurm, "displaced"))
    slurm.wait_for(lambda: slurm.log(job).count("started 0") == 2)
    urgent = slurm.run("sbatch", "--parsable", "--partition=urgent", "--ntasks=16", "--wrap=true").strip()
    assert slurm.wait(urgent) == ["COMPLETED"]
    slurm.wait_for(lambda: slurm.log(job).count("started 1") == 2)
    assert slurm.log(job).count("told to stop") == slurm.log(job).count("saved") == 2
    slurm.run("scancel", job)
    slurm.wait(job)


def test_cancelled_and_failed_jobs_and_those_queued_often_enough_are_not_queued_again(
    slurm: Slurm,
) -> None:
    (cancelled,) = slurm.submit("preprocess", site=notes(slurm, "cancelled"))
    (failed,) = slurm.submit("preprocess", site=notes(slurm, "failed", code=1))
    (last,) = slurm.submit("preprocess", site=notes(slurm, "last", restarts=0))
    slurm.wait_for(lambda: "started" in slurm.log(cancelled) and "started" in slurm.log(last))
    slurm.run("scancel", cancelled)
    slurm.run("scancel", "--batch", "--signal=USR1", last)
    assert slurm.wait(cancelled, failed, last) == ["CANCELLED", "FAILED", "FAILED"]
    assert "saved" in slurm.log(cancelled)
    assert "saved" in slurm.log(last)
    assert "not queued again, since it was 0 times already" in slurm.log(last)
    assert not any("queued again as job" in slurm.log(job) for job in (cancelled, failed, last))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[:6] != ".lulc-"}


def test_stacks_of_jobs_are_those_of_the_command(slurm: Slurm, tmp_path: Path) -> None:
    scene = write_scene(simulate((256, 256), seed=1), slurm.work)
    options = ["--bands", str(scene["summer"]), "--labels", str(scene["labels"]), "--size", "128"]
    options += ["--scheme", "kaakonkulma-13"]
    (job,) = slurm.submit("preprocess", *options, "--out", "stacks")
    (dask,) = slurm.submit("preprocess-dask", *options, "--out", "dask")
    assert preprocess.main([*options, "--out", str(tmp_path / "stacks"), "-q"]) == 0
    assert slurm.wait(job, dask) == ["COMPLETED", "COMPLETED"], slurm.logs()
    expected = contents(tmp_path / "stacks")
    assert contents(slurm.work / "stacks") == expected
    assert contents(slurm.work / "dask") == expected
    assert not list(slurm.work.glob(".dask-*"))


TINY = ["--epochs", "3", "--steps", "60", "--validation-steps", "1", "--filters", "4", "4"]
TINY += ["--crop-sizes", "32", "--validation-crop-sizes", "32", "--batch-size", "2"]
TINY += ["--block", "transpose"]
"""A training of seconds."""


def test_a_training_that_is_queued_again_gives_the_weights_of_one_that_is_not(
    slurm: Slurm, tmp_path: Path, write_stacks: Callable[..., Path]
) -> None:
    options = [str(write_stacks(tmp_path / "stacks")), *TINY]
    straight, run = tmp_path / "straight", slurm.work / "run"
    (job,) = slurm.submit("train-gpu", *options, "--out", "run")
    (other,) = slurm.submit("train-node", *options, "--out", str(straight))
    slurm.wait_for((run / "history.csv").exists, job)
    # As SLURM does it where a node fails.
    slurm.run("scontrol", "requeue", job)
    assert slurm.wait(job, other) == ["COMPLETED", "COMPLETED"], slurm.logs()
    assert slurm.log(job).count("stopped on request") == slurm.log(job).count("continuing in epoch") == 1
    first, second = trained(straight), trained(run)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def trained(run: Path) -> dict[str, np.ndarray]:
    return dict(read_arrays(find_model(str(run), "last")))


GENTLE = [*TINY, "--learning-rate", "0.00001"]
"""The same in steps so small that they don't feed on themselves. At the default rate the last bits of the
first weights may leave as much after 180 steps as a repeated batch: 1e-7 of them 2e-6, but 1e-6 of them 0.08,
and the repeated batch 0.05. Here these are 4e-6, 6e-6 and 2e-3 to 7e-3."""

SAME = 5e-4
"""Largest difference of weights and of losses of gentle trainings that went through the same batches."""


def apart(a: Path, b: Path) -> float:
    """Largest difference of the last weights of two runs, and of the losses of all their epochs."""
    first, second = trained(a), trained(b)
    assert first.keys() == second.keys()
    found = [float(np.abs(first[name] - second[name]).max()) for name in first]
    columns = ("epoch", "batches", "loss", "val_loss")
    rows = [csv.DictReader((run / "history.csv").read_text().splitlines()) for run in (a, b)]
    for one, other in zip(*rows, strict=True):
        found += [abs(float(one[name]) - float(other[name])) for name in columns]
    return max(found)


@pytest.mark.backends
def test_a_training_on_two_nodes_that_is_queued_again_is_that_of_one_process(
    slurm: Slurm, tmp_path: Path, write_stacks: Callable[..., Path]
) -> None:
    pytest.importorskip("jax", reason="needs JAX, which `make test-backends` installs")
    options = [str(write_stacks(tmp_path / "stacks")), *GENTLE]
    # The names of this cluster's nodes are no names of machines.
    wide = ["--out", "wide", "--coordinator", f"127.0.0.1:{free_ports(1)[0]}"]
    (job,) = slurm.submit("train-nodes", *options, *wide)
    site = slurm.site("jax")
    site.write_text(site.read_text().replace("FRAMEWORK=tensorflow", "FRAMEWORK=jax"))
    (other,) = slurm.submit("train-gpu", *options, "--out", str(tmp_path / "one"), site=site)
    history = slurm.work / "wide" / "history.csv"
    slurm.wait_for(history.exists, job)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job, other) == ["COMPLETED", "COMPLETED"], slurm.logs()
    assert slurm.log(job).count("continuing in epoch") == 1
    assert apart(tmp_path / "one", slurm.work / "wide") < SAME


@pytest.mark.parametrize("missed", [61, 120])
def test_a_training_that_took_one_batch_for_another_is_seen_to_be_another(
    tmp_path: Path, write_stacks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, missed: int
) -> None:
    options = [str(write_stacks(tmp_path / "stacks")), *GENTLE, "-q"]
    one, other = tmp_path / "one", tmp_path / "other"
    assert train_model.main([*options, "--out", str(one)]) == 0
    cut = TileGenerator.batch

    def repeated(crops: TileGenerator, epoch: int, index: int) -> Any:
        # Epochs count from 1, validation is epoch 0.
        again = epoch > 0 and (epoch - 1) * 60 + index == missed - 1
        return cut(crops, epoch, index - 1 if again and index else index + again)

    monkeypatch.setattr(TileGenerator, "batch", repeated)
    assert train_model.main([*options, "--out", str(other)]) == 0
    assert apart(one, other) > 2 * SAME


@pytest.fixture(scope="module")
def mosaic(
    slurm: Slurm, tiny_model: Path, write_bands: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], bytes]:
    """Weights and a mosaic of nine parts, as arguments, and the map that the command makes of them."""
    options = [str(tiny_model), str(write_bands(slurm.work / "mosaic.tif", 600, 700)), "--part", "256"]
    options += ["--scale", "0.0001", "--offset", "0"]
    alone = tmp_path_factory.mktemp("alone") / "map.tif"
    assert make_classifications.main([*options[:2], str(alone), *options[2:], "-q"]) == 0
    return options, alone.read_bytes()


def test_an_array_makes_the_parts_of_one_map_that_the_next_job_assembles(
    slurm: Slurm, mosaic: tuple[list[str], bytes]
) -> None:
    (model, bands, *options), expected = mosaic
    jobs = slurm.submit("--array=1-3", "classify-array", model, bands, "array.tif", *options)
    assert slurm.wait(*jobs) == ["COMPLETED", "COMPLETED"], slurm.logs()
    assert (slurm.work / "array.tif").read_bytes() == expected


def test_a_map_that_dask_workers_make_is_that_of_the_command(
    slurm: Slurm, mosaic: tuple[list[str], bytes]
) -> None:
    (model, bands, *options), expected = mosaic
    (job,) = slurm.submit("classify-dask", model, bands, "dask.tif", *options)
    assert slurm.wait(job) == ["COMPLETED"], slurm.logs()
    assert (slurm.work / "dask.tif").read_bytes() == expected


def test_workers_whose_jobs_end_are_replaced_by_others(
    slurm: Slurm, tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    bands = write_bands(tmp_path / "mosaic.tif", 1500, 1500)
    alone, out = tmp_path / "a.tif", tmp_path / "b.tif"
    options = ["--part", "256", "--window", "256", "--scale", "0.0001", "--offset", "0", "-q"]
    assert make_classifications.main([str(tiny_model), str(bands), str(alone), *options]) == 0
    settings = {"CORES": "1", "MEMORY": "2GB", "WALLTIME": "00:10:00", "SHARED_TEMP_DIRECTORY": str(tmp_path)}
    environment = slurm.environment | {f"DASK_JOBQUEUE__SLURM__{k}": v for k, v in settings.items()}
    environment["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "1s"
    command = [sys.executable, str(ROOT / "make_classifications.py"), str(tiny_model), str(bands), str(out)]
    with subprocess.Popen(
        [*command, *options, "--dask", "slurm", "--workers", "1"],
        env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        slurm.wait_for(lambda: any(tmp_path.glob("b.tif.parts/*.part")) or run.poll() is not None)
        slurm.run("scancel", "--name=dask-worker")
        try:
            _, said = run.communicate(timeout=120)
        finally:
            run.kill()  # a run that hangs fails this test, and keeps no other waiting
    assert run.returncode == 0, said
    assert "no worker" in said
    assert out.read_bytes() == alone.read_bytes()


def test_a_job_that_does_not_exist_is_refused_with_those_that_do() -> None:
    command = [str(JOBS / "submit"), "clasify", "a.tif"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "cannot submit the job 'clasify'" in refused.stderr
    assert "classify-array" in refused.stderr


def scripts() -> set[str]:
    return {path.stem for path in JOBS.glob("*.sh")} - {"site", "until_done", "dask_workers"}


def test_the_site_has_resources_for_every_job_and_the_readme_names_it() -> None:
    named = re.findall(r"^    \[([\w-]+)\]=", (JOBS / "site.sh").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(scripts())
    readme = (JOBS / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in scripts())


CONFIGS = {
    "preprocess": config.PreprocessConfig,
    "train": config.TrainConfig,
    "classify": config.ClassifyConfig,
}


@pytest.mark.parametrize("path", ["jobs/README.md", "docs/howto/slurm.md"])
def test_submissions_in_documents_parse(path: str) -> None:
    lines = re.findall(r"^jobs/submit (.+)$", (ROOT / path).read_text().replace("\\\n", " "), re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        while words[0].startswith("--"):
            words.pop(0)
        assert words[0] in scripts(), line
        parse(CONFIGS[words[0].split("-")[0]], "", words[1:])
