"""Windows are chosen for the memory, and what does not fit is refused."""

from __future__ import annotations

import resource

import pytest
from affine import Affine
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.machine import free_memory
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.engines.registry import Footprint
from lulc.inference.memory_plan import Demand, check_memory, disk_needed, plan_map
from lulc.maps.geotiff import MapProfile

LEGEND = Legend("test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in range(1, 14)))
DEMAND = Demand(Footprint(0.5e9, 1000), channels=14, classes=13)


def profile_of(height: int, width: int, activations: str = "float32") -> MapProfile:
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 0, 0, -10, 0), height, width)
    return MapProfile(grid, LEGEND, activations, 4096)


@pytest.mark.parametrize("memory", [1.5e9, 2e9, 4e9])
@pytest.mark.parametrize("size", [2048, 16384, 60000])
def test_the_plan_stays_within_the_memory_whatever_the_size(memory: float, size: int) -> None:
    profile = profile_of(size, size)
    plan = plan_map(profile, DEMAND, stride=16, halo=64, memory=memory)
    assert DEMAND.bytes_of(plan, profile) <= memory
    assert plan.computed_pixels <= 1.6 * size * size


def test_memory_does_not_grow_with_the_map() -> None:
    used = []
    for size in (8192, 65536):
        profile = profile_of(size, size)
        plan = plan_map(profile, DEMAND, stride=16, halo=64, memory=2e9, window=1024)
        used.append(DEMAND.bytes_of(plan, profile))
    assert used[0] == used[1]


def test_windows_of_a_small_map_are_the_padded_map() -> None:
    plan = plan_map(profile_of(100, 90), DEMAND, stride=16, halo=64, memory=2e9, window=512)
    assert plan.window == (112, 96)


@pytest.mark.parametrize(("window", "advice"), [(500, "--window 496 or --window 512"), (96, "--window 144")])
def test_windows_that_cannot_be_exact_are_refused_with_those_that_can(window: int, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        plan_map(profile_of(3000, 3000), DEMAND, stride=16, halo=64, memory=2e9, window=window)


def test_square_windows_are_square() -> None:
    plan = plan_map(profile_of(5000, 3000), DEMAND, stride=16, halo=64, memory=2e9, square=True)
    assert plan.window[0] == plan.window[1]


def test_what_does_not_fit_in_memory_is_refused() -> None:
    check_memory(1e6)
    with pytest.raises(InputError, match="GB are free"):
        check_memory(1e15)


def test_a_limit_of_the_process_counts_as_the_end_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (int(1e8), int(1e8)))
    assert free_memory() < before


def test_disk_is_planned_for_parts_and_map_together() -> None:
    raw = 4096 * 4096 * 14 * 4
    assert disk_needed(profile_of(4096, 4096)) > 2 * raw
    assert disk_needed(profile_of(4096, 4096, "uint8")) < raw
