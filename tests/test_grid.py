"""Grids match where they hold the same pixels, and nowhere else."""

from __future__ import annotations

import json

import pytest
from affine import Affine
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.windows import Window

UTM = CRS.from_epsg(32635)


def grid(
    x: float = 566000.0, y: float = 6785000.0, size: float = 10.0, shape: tuple[int, int] = (100, 80)
) -> GridSpec:
    return GridSpec(UTM, Affine(size, 0, x, 0, -size, y), *shape)


def test_a_grid_survives_json_exactly() -> None:
    odd = grid(566000.1234567891, 6785000.987654321, 10.000000001)
    again = GridSpec.from_json(json.loads(json.dumps(odd.to_json())))
    assert again.transform == odd.transform
    assert again == odd


@pytest.mark.parametrize(
    "other",
    [
        grid(x=566005.0),
        grid(y=6785005.0),
        grid(size=20.0),
        grid(shape=(100, 81)),
        GridSpec(CRS.from_epsg(32636), grid().transform, 100, 80),
        GridSpec(CRS(), grid().transform, 100, 80),
    ],
    ids=["half a pixel east", "half a pixel north", "20 m", "another size", "another CRS", "no CRS"],
)
def test_other_pixels_do_not_match(other: GridSpec) -> None:
    assert not grid().matches(other)


def test_rounding_in_a_file_does_not_make_another_grid() -> None:
    assert grid().matches(grid(x=566000.001, size=10.0000001))


def test_a_crop_is_aligned_and_knows_its_place() -> None:
    cropped = grid().crop(Window(7, 11, 20, 30))
    assert cropped.shape == (20, 30)
    assert grid().is_aligned(cropped)
    assert grid().offset_of(cropped) == (7, 11)
    assert not grid().matches(cropped)


def test_bounds_and_pixel_size_are_those_of_the_corners() -> None:
    assert grid().bounds == (566000.0, 6784000.0, 566800.0, 6785000.0)
    assert grid().pixel_size == (10.0, 10.0)


def test_only_unrotated_grids_with_rows_to_the_south_are_north_up() -> None:
    assert grid().is_north_up
    assert not GridSpec(UTM, Affine(10, 0, 0, 0, 10, 0), 5, 5).is_north_up
    assert not GridSpec(UTM, Affine(9.8, 1.7, 0, 1.7, -9.8, 0), 5, 5).is_north_up


def test_the_description_names_crs_size_and_origin() -> None:
    said = grid().describe()
    assert "EPSG:32635" in said and "100 rows x 80 columns" in said and "566000" in said
    assert "no CRS" in GridSpec(CRS(), grid().transform, 1, 1).describe()
