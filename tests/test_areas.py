"""The area of a pixel is that on the ground, whatever projection its grid has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Geod, Transformer
from rasterio.crs import CRS

from lulc.core.areas import pixel_area, pixel_areas
from lulc.core.grid import GridSpec
from lulc.core.windows import Plan, Window


def grid(crs: int | str, lon: float, lat: float, pixel: float, side: int = 200) -> GridSpec:
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    parsed = CRS.from_user_input(crs)
    return GridSpec(parsed, Affine(pixel, 0, x, 0, -pixel, y), side, side)


GRIDS = {
    "web mercator in the north": grid(3857, 26, 61.5, 10),
    "web mercator at the equator": grid(3857, 100, 0.5, 10),
    "degrees": grid(4326, 26, 61.5, 0.0001),
    "coarse degrees": grid(4326, -10, 70, 0.25),
    "UTM in its zone": grid(32635, 26, 61.5, 10),
    "UTM far from its zone": grid(32635, 50, 61.5, 10),
    "equal area": grid(3035, 26, 61.5, 100),
    "feet": grid(2263, -74, 40.7, 33),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_areas_of_all_pixels_add_up_to_the_ground(name: str) -> None:
    """The outline, with many points on each side, is measured on the ellipsoid by itself."""
    place = GRIDS[name]
    sides = np.linspace(0, place.width, 400)
    ring = [(s, 0) for s in sides] + [(place.width, s) for s in sides]
    ring += [(s, place.height) for s in sides[::-1]] + [(0, s) for s in sides[::-1]]
    xs, ys = zip(*(place.transform @ point for point in ring), strict=True)
    lons, lats = Transformer.from_crs(place.crs.to_wkt(), 4326, always_xy=True).transform(xs, ys)
    true = abs(Geod(ellps="WGS84").polygon_area_perimeter(lons, lats)[0])
    areas = pixel_areas(place)
    assert areas is not None and areas.shape == place.shape
    assert areas.sum() == pytest.approx(true, rel=1e-4)
    assert pixel_area(place) == pytest.approx(true / areas.size, rel=2e-3)


def test_an_equal_area_projection_keeps_its_nominal_areas() -> None:
    areas = pixel_areas(GRIDS["equal area"])
    assert areas is not None
    np.testing.assert_allclose(areas, 10_000, rtol=1e-6)


def test_areas_of_a_window_are_those_of_the_whole() -> None:
    for name in ("web mercator in the north", "coarse degrees", "UTM far from its zone"):
        whole = pixel_areas(GRIDS[name])
        part = pixel_areas(GRIDS[name], Window(30, 50, 100, 70))
        assert whole is not None and part is not None
        np.testing.assert_allclose(part, whole[30:130, 50:120], rtol=1e-12)
    assert pixel_areas(GRIDS["coarse degrees"], Window(3, 4, 1, 1)).shape == (1, 1)  # type: ignore[union-attr]


def test_a_grid_without_a_place_on_the_earth_has_no_areas() -> None:
    nowhere = GridSpec(CRS(), Affine(10, 0, 0, 0, -10, 0), 9, 9)
    local = GridSpec(
        CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'),
        nowhere.transform,
        9,
        9,
    )
    assert pixel_areas(nowhere) is None and pixel_area(nowhere) is None
    assert pixel_areas(local) is None


@pytest.mark.integration
@pytest.mark.parametrize("name", ["coarse degrees", "web mercator in the north", "equal area"])
def test_areas_of_a_maps_classes_follow_the_latitude_inside_a_part(tmp_path: Path, name: str) -> None:
    from lulc.inference.classify import _areas_of

    place, plan = GRIDS[name], Plan(200, 200, 16, 16, (128, 128), 128)
    classes = np.where(np.arange(200)[:, None] < 70, 1, 2) * np.ones((1, 200), np.uint8)
    classes[:, 150:] = 255
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", height=200, width=200, count=1, dtype="int16",
        crs=place.crs, transform=place.transform, nodata=-1,
    ) as file:  # fmt: skip
        file.write(np.where(classes == 255, -1, classes).astype("int16"), 1)
    counts = {
        part.index: {int(n): int((classes[part.extent.slices] == n).sum()) for n in (1, 2, 255)}
        for part in plan.parts()
    }
    areas = pixel_areas(place)
    found = _areas_of(tmp_path / "map.tif", plan, place, counts)
    assert areas is not None and found is not None
    for number in (1, 2):
        assert found[number] == pytest.approx(float(areas[classes == number].sum()), rel=1e-3)
