"""Work grows with the number of parts and no faster: counted in calls and bytes, not in seconds."""

from __future__ import annotations

import cProfile
import importlib
import pstats
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.removal import OwnFolder
from lulc.core.windows import Neighbours, Window
from lulc.datasets.loading import find_overlaps
from lulc.datasets.manifest import StackFile
from lulc.preprocessing.journal import open_progress
from lulc.preprocessing.patches import LabelledPixels, split_groups
from lulc.preprocessing.split import candidate_windows
from lulc.preprocessing.tiling import Survey
from lulc.rasters.stack import Coverage

ROOT = Path(__file__).resolve().parents[1]
FEW, MANY = 60, 240


@pytest.fixture(scope="module")
def scale() -> Any:
    """The benchmark, as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("scale")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def calls_of(function: Callable[[], object]) -> int:
    """Calls of Python and C functions that a function makes."""
    with cProfile.Profile() as profile:
        function()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def bytes_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def test_plan_journal_and_collection_grow_with_the_parts(scale: Any, tmp_path: Path) -> None:
    calls: dict[str, list[int]] = {}
    sizes = []
    for number in (FEW, FEW, MANY):
        # Once before it counts: what is imported or cached the first time belongs to no part.
        place = tmp_path / f"{len(sizes)}"
        for name, step in scale.steps(place, number):
            calls.setdefault(name, []).append(calls_of(step))
        sizes.append(bytes_of(place / "map.parts"))
    for name, (_, few, many) in calls.items():
        assert many / few < 1.1 * MANY / FEW, f"{name}: {few} calls for {FEW} parts, {many} for {MANY}"
    assert sizes[2] / sizes[1] < 1.1 * MANY / FEW


def survey(folder: Path, places: int) -> None:
    """Record a survey, then take it up again."""
    coverage = Coverage(100, 90, {"B02": 3}, {"B02": 7})
    for _ in range(2):
        own = OwnFolder(folder, "stacks", r".*", "stacks")
        own.take()
        progress = open_progress(own, "key", places, 13, 14, replacing=False)
        for number in progress.unsurveyed:
            progress.add(Survey(number, (number,) * 13, coverage))
        assert progress.coverage.pixels == 100 * places


def test_the_record_of_a_survey_grows_with_the_places(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(3)]
    calls = []
    for folder, places in zip(folders, (FEW, FEW, MANY), strict=True):
        folder.mkdir()
        calls.append(calls_of(lambda folder=folder, places=places: survey(folder, places)))  # type: ignore[misc]
    assert calls[2] / calls[1] < 1.1 * MANY / FEW
    assert bytes_of(folders[2]) / bytes_of(folders[1]) < 1.1 * MANY / FEW


def look_round(side: int) -> int:
    """Look for validation stacks near each of side x side others, a fifth of which validate."""
    windows = candidate_windows(100 * side, 100 * side, 100)
    near = Neighbours(windows[::5], 30)
    return sum(len(near.of(window)) for window in windows)


def test_stacks_near_validation_are_found_without_looking_at_all() -> None:
    calls = [calls_of(lambda side=side: look_round(side)) for side in (8, 16)]  # type: ignore[misc]
    assert calls[1] / calls[0] < 1.2 * 4


def patches_of(split: str, side: int) -> list[StackFile]:
    """side x side stacks with ten patches each, which overlap those of the other split."""
    rng = np.random.default_rng(side + (split == "val"))
    found = []
    for row, col in np.ndindex(side, side):
        left, top = 500000 + 2000 * col + 700 * (split == "val"), 5000000 - 2000 * row
        grid = GridSpec(CRS.from_epsg(32633), Affine(10, 0, left, 0, -10, top), 256, 256)
        patches = tuple(Window(*map(int, place), 6, 6) for place in rng.integers(0, 240, (10, 2)))
        image = Path(split) / f"{row}_{col}.npy"
        stack = StackFile(image.stem, split, image, image, (256, 256), (), grid=grid, patches=patches)
        found.append(stack)
    return found


@pytest.mark.integration
def test_overlaps_of_many_patches_are_found_without_looking_at_all_pairs() -> None:
    folders = [[*patches_of("train", side), *patches_of("val", side)] for side in (5, 5, 10)]
    calls = [calls_of(lambda stacks=stacks: find_overlaps(stacks, 32)) for stacks in folders]  # type: ignore[misc]
    # Of more stacks a smaller share lies at the border, with fewer neighbours.
    assert calls[2] / calls[1] < 1.3 * 4
    trained, held = (patches_of(split, 5) for split in ("train", "val"))
    expected = sum(len(find_overlaps([one, other], 32)) for one in trained for other in held)
    assert len(find_overlaps([*trained, *held], 32)) == expected > 0


def divide(side: int) -> int:
    """Divide side x side patches that lie apart, so that each is a group."""
    rows, cols = (50 * a.ravel().astype(np.int32) for a in np.indices((side, side)))
    classes = (1 + np.arange(side * side) % 3).astype(np.uint8)
    split = split_groups([LabelledPixels(rows, cols, classes, np.zeros_like(rows))], [""], 3, 0.2, 8, 1)
    return int(split.validates.sum())


def test_groups_are_chosen_in_work_that_grows_with_them() -> None:
    divide(5)
    calls = [calls_of(lambda side=side: divide(side)) for side in (20, 40)]  # type: ignore[misc]
    assert calls[1] / calls[0] < 1.3 * 4
    assert divide(40) == pytest.approx(320, abs=3)


def test_neighbours_are_those_found_by_looking_at_all() -> None:
    from lulc.core.windows import near_windows

    rng = np.random.default_rng(0)
    for gap in (0, 1, 30, 500):
        windows = [
            Window(*map(int, rng.integers(0, 900, 2)), *map(int, rng.integers(1, 90, 2))) for _ in range(60)
        ]
        near = Neighbours(windows[:30], gap)
        for window in windows[30:]:
            assert near.of(window) == near_windows(window, windows[:30], gap)
    assert Neighbours([], 5).of(Window(0, 0, 9, 9)) == []


def test_what_is_reckoned_follows_from_the_assumptions(scale: Any) -> None:
    assumed = scale.Assumptions(
        part=1000, core_speed=1e5, gpu_speed=1e7, read_bytes=18, written_bytes=20, halo=0, core_price=0.5,
        gpu_price=2.0, encode_speed=5e6, disk_speed=78e6, tasks=10.0,
    )  # fmt: skip
    found = scale.reckon(3.6e9, assumed)
    assert (found["parts"], found["core_hours"], found["core_price"]) == (3600, 10.0, 5.0)
    assert (found["gpu_hours"], found["gpu_price"]) == (0.1, 0.2)
    # Read once, and the blocks once more where they are assembled, which writes them a second time.
    assert (found["read"], found["written"]) == (3.6e9 * 38, 3.6e9 * 40)
    assert found["disk_hours"] == pytest.approx(1.0)
    assert found["workers_by_scheduler"] == pytest.approx(10.0 * 1e6 / 1e5)
    assert found["workers_by_disk"] == pytest.approx(1e6 / 1e5)
    assert found["encoding_cores_for_a_gpu"] == 2
    doubled = scale.reckon(7.2e9, assumed)
    assert doubled["core_hours"] == 20 and doubled["workers_by_disk"] == found["workers_by_disk"]
