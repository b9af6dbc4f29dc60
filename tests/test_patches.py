"""Patches of one class: small ones go, invalid pixels stay, polygons cover what they name."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.crs import CRS
from scipy import ndimage

from lulc.core.grid import GridSpec
from lulc.core.schema import LandCoverClass, Legend
from lulc.core.windows import Window
from lulc.inference.sieve import merge_small_patches, write_polygons

LEGEND = Legend("test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in (1, 2, 3)))


def classes_of(seed: int = 0, shape: tuple[int, int] = (60, 50)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    classes = (1 + np.digitize(smooth, [-0.05, 0.05])).astype(np.uint8)
    classes[rng.random(shape) < 0.02] = 0
    classes[10:20, 30:45] = 255
    return classes


def sizes(classes: np.ndarray) -> list[int]:
    """Pixels of every patch that is not invalid."""
    return [
        int(n)
        for value in np.unique(classes[classes != 255])
        for n in np.bincount(ndimage.label(classes == value)[0].ravel())[1:]
    ]


def sieved(classes: np.ndarray, size: int) -> np.ndarray:
    merged = classes.copy()
    merge_small_patches(merged, size)
    return merged


def test_no_small_patch_is_left_and_invalid_pixels_stay() -> None:
    classes = classes_of()
    assert min(sizes(classes)) < 5
    merged = sieved(classes, 5)
    assert min(sizes(merged)) >= 5
    np.testing.assert_array_equal(merged == 255, classes == 255)


def test_a_map_of_large_patches_does_not_change() -> None:
    classes = np.kron(np.array([[1, 2], [3, 1]], np.uint8), np.ones((20, 20), np.uint8))
    np.testing.assert_array_equal(sieved(classes, 100), classes)


def test_a_map_of_small_patches_alone_does_not_change() -> None:
    classes = classes_of()
    np.testing.assert_array_equal(sieved(classes, 10_000), classes)


def by_hand(classes: np.ndarray, size: int) -> np.ndarray:
    """The rule of GDAL's filter, patch by patch."""
    patches = np.zeros(classes.shape, int)
    for value in np.unique(classes[classes != 255]):
        found, _ = ndimage.label(classes == value)
        patches[found > 0] = found[found > 0] + patches.max()
    pixels = np.bincount(patches.ravel())
    largest: dict[int, int] = {}
    for row, col in np.ndindex(classes.shape):
        for there in ((row - 1, col), (row, col - 1)):
            if min(there) < 0 or not patches[row, col] or not patches[there]:
                continue
            for one, other in (patches[row, col], patches[there]), (patches[there], patches[row, col]):
                if one != other and (one not in largest or pixels[largest[one]] < pixels[other]):
                    largest[one] = other
    merged = classes.copy()
    for patch in np.flatnonzero(pixels < size):
        target, way = patch, set()
        while patch and pixels[target] < size and target in largest and target not in way:
            way.add(target)
            target = largest[target]
        if patch and pixels[target] >= size:
            merged[patches == patch] = classes[patches == target][0]
    return merged


@settings(max_examples=100, deadline=None)
@given(
    classes=arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([0, 1, 2, 3, 255]),
    ),
    size=st.integers(1, 9),
)  # fmt: skip
def test_small_patches_take_the_class_of_their_largest_neighbour(classes: np.ndarray, size: int) -> None:
    np.testing.assert_array_equal(sieved(classes, size), by_hand(classes, size))


def test_a_file_in_memory_is_sieved_in_place(tmp_path: Path) -> None:
    classes = classes_of(3)
    mapped = np.memmap(tmp_path / "classes", np.uint8, "w+", shape=classes.shape)
    mapped[...] = classes
    merge_small_patches(mapped, 20)
    np.testing.assert_array_equal(mapped, by_hand(classes, 20))


@pytest.mark.parametrize("side", [25, 100])
def test_polygons_have_the_areas_of_their_classes(tmp_path: Path, side: int) -> None:
    classes = classes_of()
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500000, 0, -10, 6700000), *classes.shape)
    windows = [
        Window(r, c, min(side, 60 - r), min(side, 50 - c))
        for r in range(0, 60, side) for c in range(0, 50, side)
    ]  # fmt: skip
    write_polygons(tmp_path / "map.gpkg", lambda w: classes[w.slices], windows, grid, LEGEND)
    frame = geopandas.read_file(tmp_path / "map.gpkg")
    assert frame.crs.to_epsg() == 3067
    assert frame.geometry.is_valid.all()
    areas = frame.groupby("class")["area_m2"].sum().to_dict()
    assert areas == {int(v): 100.0 * int((classes == v).sum()) for v in (0, 1, 2, 3)}
    assert dict(zip(frame["class"], frame["name"], strict=True)) == {
        0: "unclassified", 1: "class 1", 2: "class 2", 3: "class 3"
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["map.gpkg"]


def test_areas_of_geographic_grids_are_square_metres(tmp_path: Path) -> None:
    grid = GridSpec(CRS.from_epsg(4326), Affine(0.01, 0, 20, 0, -0.01, 60), 1, 1)
    whole = np.ones((1, 1), np.uint8)
    write_polygons(tmp_path / "m.gpkg", lambda w: whole, [Window(0, 0, 1, 1)], grid, LEGEND)
    # 0.01 degrees of latitude are 1114 m there, of longitude 558 m.
    assert geopandas.read_file(tmp_path / "m.gpkg")["area_m2"][0] == pytest.approx(1114 * 558, rel=0.01)


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500000, 0, -10, 6700000), 10, 10)

    def read(window: Window) -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_polygons(tmp_path / "map.gpkg", read, [Window(0, 0, 10, 10)], grid, LEGEND)
    assert not list(tmp_path.iterdir())
