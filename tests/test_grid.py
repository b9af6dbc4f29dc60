"""Grids match where they hold the same pixels, and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from lulc.core.grid import GridSpec
from lulc.core.windows import Window

UTM = CRS.from_epsg(32635)
WGS84 = CRS.from_epsg(4326)


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


PACIFIC = CRS.from_epsg(32760)
GRIDS = {
    # With the area in square degrees; the cap around the pole holds all longitudes.
    "zone 60": (GridSpec(PACIFIC, Affine(100, 0, 809_000, 0, -100, 8_130_000), 200, 200), 0.0339),
    "degrees": (GridSpec(WGS84, Affine(0.1, 0, 179, 0, -0.1, 10), 20, 20), 4.0),
    "turned": (GridSpec(WGS84, Affine(0.1, 0, 190, 0, -0.1, 10), 20, 20), 4.0),
    "globe": (GridSpec(WGS84, Affine(1, 0, -180, 0, -1, 90), 180, 360), 64_800.0),
    "0 to 360": (GridSpec(WGS84, Affine(1, 0, 0, 0, -1, 90), 180, 360), 64_800.0),
    "pole": (GridSpec(CRS.from_epsg(3031), Affine(1e4, 0, -1e6, 0, -1e4, 1e6), 200, 200), 3713.0),
    "Finland": (GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500_000, 0, -10, 6_700_000), 200, 200), 6.525e-4),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_border_in_degrees_is_cut_where_longitudes_begin_anew(name: str) -> None:
    grid, area = GRIDS[name]
    outline = grid.outline_in_degrees()
    west, south, east, north = outline.bounds
    assert outline.is_valid and outline.area == pytest.approx(area, rel=0.01)
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    rows, cols = np.mgrid[0.02 : grid.height : 7j, 0.02 : grid.width : 7j] * 0.99
    xs, ys = grid.transform @ np.array([cols.ravel(), rows.ravel()])
    lons, lats = transform(grid.crs, WGS84, xs, ys)
    inside = shapely.contains_xy(outline.buffer(1e-3), (np.array(lons) + 180) % 360 - 180, lats)
    assert inside.all()


def test_grids_of_neighbouring_zones_meet_across_longitude_180() -> None:
    east, west = (
        GRIDS["zone 60"][0],
        GridSpec(CRS.from_epsg(32701), Affine(100, 0, 180_000, 0, -100, 8_130_000), 99, 99),
    )
    far = GridSpec(CRS.from_epsg(32633), Affine(100, 0, 500_000, 0, -100, 8_130_000), 99, 99)
    assert east.outline_in_degrees().intersects(west.outline_in_degrees())
    assert not east.outline_in_degrees().intersects(far.outline_in_degrees())
    left, _, right, _ = east.bounds_on(WGS84)
    assert 179 < left < 180 < right < 181
