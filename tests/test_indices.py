"""The five SYKE indices against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.core.schema import BANDS, INDICES
from lulc.rasters.indices import compute_indices, encode


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
