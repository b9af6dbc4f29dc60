"""Stacks that the processes of a Dask cluster cut: the same bytes as one process gives, whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.config import PreprocessConfig
from lulc.core.removal import OwnFolder, temporary_name
from lulc.core.schema import BANDS, InputError
from lulc.distributed import cluster as cluster_tasks
from lulc.distributed.cluster import UnfitWorkerError
from lulc.preprocessing import preprocess, tiling
from lulc.preprocessing.plan import Candidate
from lulc.preprocessing.preprocess import make_stacks

pytestmark = pytest.mark.integration

SHAPE = (200, 260)
ORIGIN = Affine(10, 0, 500000, 0, -10, 6800000)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[distributed.LocalCluster]:
    """A scheduler and two worker processes, started in a folder of their own."""
    folder, before = tmp_path_factory.mktemp("elsewhere"), os.getcwd()
    os.chdir(folder)
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(folder),
            silence_logs=50,
        ) as started:  # fmt: skip
            os.chdir(before)
            yield started
    finally:
        os.chdir(before)


def write(path: Path, layers: np.ndarray, names: tuple[str, ...], row: int = 0, col: int = 0) -> str:
    with rasterio.open(
        path, "w", driver="GTiff", height=layers.shape[1], width=layers.shape[2], count=len(layers),
        dtype=layers.dtype, crs="EPSG:3067", transform=ORIGIN @ Affine.translation(col, row), nodata=0,
        tiled=True, blockxsize=64, blockysize=64,
    ) as data:  # fmt: skip
        data.write(layers)
        data.descriptions = names
    return str(path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four scenes that overlap, labels of six classes, and bands of all of it in one file."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    bands = rng.integers(200, 4000, (len(BANDS), *SHAPE)).astype(np.uint16)
    bands[:, rng.random(SHAPE) < 0.1] = 0
    labels = (np.add.outer(np.arange(SHAPE[0]) // 20, np.arange(SHAPE[1]) // 28) % 6 + 1).astype(np.uint8)
    write(folder / "bands.tif", bands, tuple(BANDS))
    write(folder / "labels.tif", labels[None], ("class",))
    (folder / "scenes").mkdir()
    for i, (row, col) in enumerate(((0, 0), (0, 100), (80, 0), (80, 100))):
        scene = bands[:, row : row + 120, col : col + 160] + np.uint16(i)
        write(folder / "scenes" / f"{i}.tif", scene, tuple(BANDS), row, col)
    return folder


@pytest.fixture
def config(inputs: Path, tmp_path: Path) -> PreprocessConfig:
    return PreprocessConfig(
        bands=(str(inputs / "bands.tif"),), labels=str(inputs / "labels.tif"), out=str(tmp_path / "stacks"),
        scheme="kaakonkulma-13", size=64, gap=5, border_ignore=1,
    )  # fmt: skip


def contents(config: PreprocessConfig) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(config.out).iterdir()) if p.name[:6] != ".lulc-"}


def made_by(config: PreprocessConfig, tmp_path: Path, name: str, **options: Any) -> dict[str, bytes]:
    own = replace(config, out=str(tmp_path / name), **options)
    make_stacks(own)
    return contents(own)


def test_a_cluster_gives_the_bytes_of_one_process(
    config: PreprocessConfig, cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    alone = made_by(config, tmp_path, "alone")
    beside = {"manifest.json", "classes.csv", "reading.yaml"}
    assert len(alone) == 2 * 12 + len(beside) and beside < alone.keys()
    assert made_by(config, tmp_path, "address", dask=cluster.scheduler_address) == alone
    assert made_by(config, tmp_path, "local", dask="local", workers=1) == alone


@pytest.mark.parametrize("relative", [False, True])
def test_scenes_are_cut_by_workers_that_started_elsewhere(
    config: PreprocessConfig, inputs: Path, cluster: distributed.LocalCluster, tmp_path: Path, relative: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scenes = str(inputs / "scenes")
    if relative:
        monkeypatch.chdir(inputs)
        scenes = "scenes"
    config = replace(config, bands=(), scenes=(scenes,))
    alone = made_by(config, tmp_path, "alone")
    assert made_by(config, tmp_path, "cluster", dask=cluster.scheduler_address) == alone
    assert len([name for name in alone if name.endswith(".npy")]) == 2 * 12


def test_scenes_that_a_killed_run_has_noted_down_are_not_those_of_another(
    config: PreprocessConfig, inputs: Path, tmp_path: Path
) -> None:
    config = replace(config, bands=(), scenes=(str(inputs / "scenes"),))
    alone = made_by(config, tmp_path, "alone")
    fewer = replace(config, scenes=tuple(str(inputs / "scenes" / f"{i}.tif") for i in (0, 1)))
    with tiling.open_inputs(fewer) as found:
        assert found.stack.scenes
        own = OwnFolder(Path(config.out), "stacks", r"scenes\.json", "stacks")
        own.take()
        found.stack.scenes.write(own.path / "scenes.json")
    make_stacks(config)
    assert contents(config) == alone


def test_a_worker_of_a_run_that_is_over_names_no_stack(config: PreprocessConfig) -> None:
    site = tiling.Site(config, "first", tiling.stamps_at(config), tiling.versions())
    place, current = (
        tiling.PlannedStack("train_0", "train", 0, tiling.Window(0, 0, 64, 64)),
        Path(config.out, "run.json"),
    )
    for found in (None, '{"key": "second"}'):
        if found:
            current.write_text(found)
        with pytest.raises(UnfitWorkerError, match="another run"), site.open() as inputs:
            tiling.cut(inputs, place)
        assert not list(Path(config.out).glob("*.npy")) + list(Path(config.out).glob(".*.partial"))
    current.write_text('{"key": "first"}')
    with site.open() as inputs:
        assert tiling.cut(inputs, place).file.image.is_file()


def stop_after(monkeypatch: pytest.MonkeyPatch, results: int) -> None:
    """Interrupt the run, as Ctrl-C does, when so many results were taken."""
    take, taken = preprocess.Progress.add, 0

    def add(progress: Any, done: Any) -> None:
        nonlocal taken
        if taken == results:
            raise KeyboardInterrupt
        taken += 1
        take(progress, done)

    monkeypatch.setattr(preprocess.Progress, "add", add)


@pytest.mark.parametrize("results", [4, 15])
@pytest.mark.parametrize("first", ["alone", "cluster"])
def test_a_run_that_was_stopped_is_continued_by_the_other_kind(
    config: PreprocessConfig, cluster: distributed.LocalCluster, tmp_path: Path, first: str, results: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = made_by(config, tmp_path, "whole")
    kinds = {"alone": config, "cluster": replace(config, dask=cluster.scheduler_address)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, results)
        make_stacks(kinds.pop(first))
    assert not (Path(config.out) / "manifest.json").exists()
    (other,) = kinds.values()
    done: list[Any] = []
    take = preprocess.Progress.add
    monkeypatch.setattr(preprocess.Progress, "add", lambda p, d: (done.append(d), take(p, d))[1])
    make_stacks(other)
    assert contents(config) == whole
    assert len(done) == 24 - results


def test_a_worker_that_is_killed_loses_nothing(
    config: PreprocessConfig,
    cluster: distributed.LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = made_by(config, tmp_path, "whole")
    take, taken = preprocess.Progress.add, 0

    def add(progress: Any, done: Any) -> None:
        nonlocal taken
        taken += 1
        temporary_name(Path(config.out) / "train_image_0.npy").write_bytes(b"of a worker that was killed")
        if taken in (3, 14):
            worker = next(iter(cluster.workers.values()))
            os.kill(worker.process.process.pid, signal.SIGKILL)
        take(progress, done)

    monkeypatch.setattr(preprocess.Progress, "add", add)
    make_stacks(replace(config, dask=cluster.scheduler_address))
    assert contents(config) == whole


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("versions", lambda: ("0.0",), "other versions"), ("stamps_at", lambda config: "other", "other files")],
)
def test_workers_that_would_make_other_bytes_are_asked_for_nothing(
    config: PreprocessConfig, cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch, name: str,
    value: Callable[..., Any], expected: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(preprocess, name, value)
    with pytest.raises(InputError, match=expected):
        make_stacks(replace(config, dask=cluster.scheduler_address))
    assert not list(Path(config.out).glob("*.npy"))


def test_what_is_wrong_with_the_data_is_said_as_by_one_process(
    config: PreprocessConfig, cluster: distributed.LocalCluster, inputs: Path, tmp_path: Path
) -> None:
    with rasterio.open(inputs / "labels.tif") as data:
        labels = data.read()
    labels[0, 3, :4] = 77
    wrong = replace(config, labels=write(tmp_path / "wrong.tif", labels, ("class",)))
    messages = []
    for own in (wrong, replace(wrong, dask=cluster.scheduler_address)):
        with pytest.raises(InputError, match=r"77 \(4 px\)") as refused:
            make_stacks(own)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_tasks_of_a_site_open_their_inputs_once(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [
        tiling.Site(replace(config, size=size), "key", tiling.stamps_at(config), tiling.versions())
        for size in (64, 65)
    ]
    window = tiling.Window(0, 0, 8, 8)
    opened = 0
    open_inputs = tiling.open_inputs

    def counting(*arguments: Any) -> Any:
        nonlocal opened
        opened += 1
        return open_inputs(*arguments)

    monkeypatch.setattr(tiling, "open_inputs", counting)
    worker = SimpleNamespace()
    work = partial(tiling.run_on_worker, tiling.survey)
    found = {
        tuple(cluster_tasks._at_site(work, site, worker, Candidate(0, window)).counts)
        for site in (*sites[:1] * 3, *sites[1:] * 2)
    }
    assert len(found) == 1 and opened == 2
