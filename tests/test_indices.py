"""The five SYKE indices against their definitions written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.config import InputConfig
from lulc.core.schema import BANDS, INDICES, InputError
from lulc.rasters.indices import compute_indices, encode
from lulc.rasters.stack import open_stack


@pytest.fixture
def bands() -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 8000, (7, 5, 9)).astype("float32")


def test_codes_equal_the_definitions_in_double_precision(bands: np.ndarray) -> None:
    b = {name: bands[..., i].astype("float64") for i, name in enumerate(BANDS)}
    ndvi = (b["B08"] - b["B04"]) / (b["B08"] + b["B04"])
    expected = {
        "NDVI": ndvi,
        "NDTI": (b["B11"] - b["B12"]) / (b["B11"] + b["B12"]),
        "NDBI": (b["B11"] - b["B08"]) / (b["B11"] + b["B08"]) - ndvi,
        "NDMI": (b["B08"] - b["B11"]) / (b["B08"] + b["B11"]),
        "NDSI": (b["B03"] - b["B11"]) / (b["B03"] + b["B11"]),
    }
    coded = np.stack([np.clip(100 * expected[n] + 100, 0, 200) for n in INDICES], axis=-1)
    assert compute_indices(bands).dtype == np.float32
    np.testing.assert_allclose(compute_indices(bands), coded, atol=1e-4)


def test_codes_are_clipped_but_not_rounded() -> None:
    assert encode(np.array([-1.7, -0.123, 1.5])).tolist() == pytest.approx([0, 87.7, 200])


def test_the_unit_of_reflectance_does_not_matter(bands: np.ndarray) -> None:
    np.testing.assert_allclose(compute_indices(bands), compute_indices(bands / 10000), atol=1e-4)


def test_a_zero_denominator_gives_nan_and_nothing_infinite() -> None:
    bands = np.zeros((2, 2, 9), "float32")
    bands[1] = 100
    bands[1, 1, BANDS.index("B04")] = -100
    coded = compute_indices(bands)
    assert np.isnan(coded[0]).all() and np.isnan(coded[1, 1, INDICES.index("NDVI")])
    assert not np.isinf(coded).any() and np.isfinite(coded[1, 0]).all()


def test_nan_in_a_band_reaches_the_indices_that_need_it_only(bands: np.ndarray) -> None:
    bands[0, 0, BANDS.index("B12")] = np.nan
    missing = np.isnan(compute_indices(bands)[0, 0])
    assert [n for n, m in zip(INDICES, missing, strict=True) if m] == ["NDTI"]


def test_inputs_are_left_as_they_are(bands: np.ndarray) -> None:
    before = bands.copy()
    compute_indices(bands)
    np.testing.assert_array_equal(bands, before)


def coded_scene(folder: Path, coding: Callable[[np.ndarray], np.ndarray], **options: Any) -> Any:
    """Return red, near infrared and NDVI of a raster of some coding, read as a stack."""
    rng, shape = np.random.default_rng(5), (100, 100)
    cover = np.kron(rng.uniform(0, 1, (20, 20)), np.ones((5, 5)))
    red = (900 - 600 * cover + rng.normal(0, 30, shape)).astype(np.uint16)
    infrared = (1500 + 2500 * cover + rng.normal(0, 90, shape)).astype(np.uint16)
    ndvi = (infrared.astype("f8") - red) / (infrared.astype("f8") + red)
    index = coding(ndvi)
    nodata = options.pop("nodata", None)
    for name, planes, bands, value in (
        ("b.tif", np.stack([red, infrared]), ["B04", "B08"], 0), ("i.tif", index[None], ["NDVI"], nodata),
    ):  # fmt: skip
        with rasterio.open(
            folder / name, "w", driver="GTiff", height=100, width=100, count=len(planes), dtype=planes.dtype,
            crs="EPSG:32635", transform=Affine(10, 0, 500_000, 0, -10, 6_700_000), nodata=value,
        ) as data:  # fmt: skip
            data.write(planes)
            data.descriptions = bands
    with open_stack(
        [str(folder / "b.tif")], [str(folder / "i.tif")], InputConfig(**options),
        channels=["B04", "B08", "NDVI"],
    ) as stack:  # fmt: skip
        return ndvi, stack.read(stack.grid.extent)[..., 2]


def with_corner(values: np.ndarray, fill: float, side: int = 3) -> np.ndarray:
    values = values.copy()
    values[:side, :side] = fill
    return values


NOISE = np.random.default_rng(1).normal(0, 0.05, (100, 100))
WRONG: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float | None]] = {
    "-1..1": (lambda v: v.astype("f4"), None),
    "-1..1 with 9 of -9999": (lambda v: with_corner(v.astype("f4"), -9999), None),
    "-1..1 with 9 of 3": (lambda v: with_corner(v.astype("f4"), 3), None),
    "-1..1 with half of -9999": (lambda v: with_corner(v.astype("f4"), -9999, 75), None),
    "x 100": (lambda v: np.round(v * 100).astype("i2"), -9999),
    "x 100 of another date": (lambda v: np.round((0.7 * v + NOISE) * 100).astype("i2"), -9999),
    "x 1000": (lambda v: np.round(v * 1000).astype("i2"), -9999),
    "x 10000": (lambda v: np.round(v * 10_000).astype("i2"), -9999),
    "x 10000 with a margin of 0": (lambda v: with_corner(np.round(v * 1e4).astype("i2"), 0, 60), -1),
    "8 bits": (lambda v: np.round(v * 127.5 + 127.5).astype("u1"), 0),
    "0..250": (lambda v: np.round((v + 0.08) / 0.004).astype("u1"), 255),
    "half steps": (lambda v: np.round(v * 50 + 50).astype("u1"), 255),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_index_raster_of_another_coding_is_refused(tmp_path: Path, name: str) -> None:
    coding, nodata = WRONG[name]
    with pytest.raises(InputError, match=r"NDVI of .*i.tif.* expected SYKE code"):
        coded_scene(tmp_path, coding, nodata=nodata)


RIGHT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "of the same mosaic": lambda v: v,
    "of autumn": lambda v: 0.6 * v - 0.05 + NOISE,
    "of a field that is bare later": lambda v: np.where(v > 0.5, 0.15, v) + NOISE,
    "of the greenest days": lambda v: np.maximum(v, 0.75 + NOISE),
    "of snow": lambda v: 0.05 * v + NOISE / 5,
    "of other bands": lambda v: 0.9 * v**2 + 0.05,
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("stored", ["u1", "f4", "i2"])
def test_an_index_raster_in_syke_code_is_read_whatever_its_date(
    tmp_path: Path, name: str, stored: str
) -> None:
    def coding(ndvi: np.ndarray) -> np.ndarray:
        code = 100 * np.clip(RIGHT[name](ndvi), -1, 1) + 100
        return with_corner((code if stored == "f4" else np.round(code)).astype(stored), 255)

    ndvi, read = coded_scene(tmp_path, coding, nodata=0)
    assert np.isnan(read[:3, :3]).all()
    np.testing.assert_allclose(read[5:], 100 * RIGHT[name](ndvi)[5:] + 100, atol=0.51)
