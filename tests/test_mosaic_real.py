"""Mosaics of real Sentinel-2 dates, into which clouds are pasted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from lulc.compositing.composer import NODATA
from lulc.compositing.mosaic import make_mosaic
from lulc.config import MosaicConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from mosaic_peers import BANDS, medians, write_items

pytestmark = pytest.mark.integration

CLOUDS = {"20180524": (10, 20, 24), "20180628": (10, 20, 24), "20170926": (30, 0, 34)}


@pytest.fixture(scope="module")
def block(shared: Path) -> Path:
    return shared / "data" / "belgium-dates" / "west"


@pytest.fixture(scope="module")
def clouded(block: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("clouded")
    return folder, write_items(block, folder, CLOUDS)


def mosaic(folder: Path, bounds: list[float], out: Path, **options: Any) -> np.ndarray:
    """Return int16 (band, y, x), the clear observations last."""
    given: dict[str, Any] = {"dates": "2017-08-01/2018-11-30", "max_cloud": 100.0, **options}
    make_mosaic(MosaicConfig(bounds=tuple(bounds), crs="EPSG:32631", scenes=(str(folder),), out=str(out),
                             band_names=BANDS, **given))  # fmt: skip
    with rasterio.open(out) as data:
        return data.read()


def test_the_median_of_real_dates_equals_that_of_odc_stac(clouded: tuple[Path, list[float]]) -> None:
    found = medians(*clouded, 32631)
    np.testing.assert_array_equal(found["make_mosaic.py"], found["odc-stac"])
    assert (found["odc-stac"] > 0).mean() > 0.9


def test_a_cloud_takes_its_date_out_of_its_pixels_and_changes_no_others(
    block: Path, clouded: tuple[Path, list[float]], tmp_path: Path
) -> None:
    clear, without = tmp_path / "clear", tmp_path / "without"
    bounds = write_items(block, clear, {})
    write_items(block, without, {})
    for day in CLOUDS:
        (without / f"S2_{day}.json").unlink()
    seen, whole = mosaic(*clouded, tmp_path / "a.tif"), mosaic(clear, bounds, tmp_path / "b.tif")
    fewer = mosaic(without, bounds, tmp_path / "c.tif")
    hidden = seen[-1] != whole[-1]
    assert hidden.any()
    np.testing.assert_array_equal(seen[:, ~hidden], whole[:, ~hidden])
    # Where two of the three dates have the same cloud, the third counts; the dates without any are fewer.
    assert (seen[-1] >= fewer[-1]).all()
    alike = hidden & (seen[-1] == fewer[-1])
    np.testing.assert_array_equal(seen[:, alike], fewer[:, alike])


def test_the_medoid_of_real_dates_is_one_of_them(clouded: tuple[Path, list[float]], tmp_path: Path) -> None:
    folder, bounds = clouded
    made = mosaic(folder, bounds, tmp_path / "m.tif", rule="medoid")[:-1]
    grid = rasterio.open(tmp_path / "m.tif")
    there, found = made[0] != NODATA, np.zeros(made.shape[1:], bool)
    for path in sorted(folder.glob("S2_*.json")):
        layers = []
        for band in BANDS:
            with rasterio.open(folder / path.stem / f"{band}.tif") as data:
                left = round((data.transform.c - grid.transform.c) / 10)
                top = round((grid.transform.f - data.transform.f) / 10)
                padded = np.zeros(made.shape[1:], "int32")
                padded[top : top + data.height, left : left + data.width] = data.read(1)
                layers.append(padded)
        found |= (np.stack(layers) == made).all(axis=0)
    grid.close()
    assert there.mean() > 0.9
    assert found[there].all()
    assert not (made == 9000).any()
