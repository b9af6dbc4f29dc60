"""A mosaic unlike the training data is called out, and one like it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lulc.core.schema import CHANNELS
from lulc.core.statistics import Statistics
from lulc.inference.domain_shift import differences, sample_windows, statistics_of

MEAN = np.array([865, 698, 455, 693, 1651, 2022, 1997, 1014, 477, 151, 133, 67, 132, 81], float)
STD = np.array([155, 207, 243, 330, 825, 1053, 1085, 634, 362, 47, 16, 30, 26, 20], float)
TRAINING = Statistics(tuple(MEAN), tuple(STD), 1000)


def judge(factor: float = 1.0, offset: float = 0.0) -> tuple[list[str], str]:
    mean = MEAN.copy()
    mean[:9] = mean[:9] * factor + offset
    return differences(CHANNELS, Statistics(tuple(mean), tuple(STD), 1000), TRAINING)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_another_season_is_no_reason_for_a_warning(factor: float) -> None:
    assert judge(factor) == ([], "")


@pytest.mark.parametrize(
    ("factor", "offset", "advice"),
    [(10, 0, "--scale"), (0.1, 0, "--scale"), (1, 1000, "--offset -1000"), (1, -1000, "--offset 0")],
)
def test_a_wrong_scale_or_offset_is_named_band_by_band(factor: float, offset: float, advice: str) -> None:
    lines, reason = judge(factor, offset)
    assert len(lines) == 9 and lines[0].startswith("B02: mean ")
    assert advice in reason


def test_a_single_odd_channel_is_named_alone() -> None:
    mean = MEAN.copy()
    mean[10] = 200
    lines, _ = differences(CHANNELS, Statistics(tuple(mean), tuple(STD), 9), TRAINING)
    assert len(lines) == 1 and lines[0].startswith("NDTI: mean 200")


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_samples_lie_inside_the_image_and_do_not_overlap_twice(height: int, width: int) -> None:
    windows = sample_windows(height, width)
    assert 1 <= len(windows) <= 36
    assert len(set(windows)) == len(windows)
    for window in windows:
        assert window.height > 0 and window.stop[0] <= height
        assert window.width > 0 and window.stop[1] <= width


def test_statistics_of_windows_are_those_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(5, 2, (300, 200, 3)).astype("f4")
    image[rng.random((300, 200)) < 0.5] = np.nan
    windows = sample_windows(300, 200, count=2, side=100)
    pixels = np.concatenate([image[w.slices].reshape(-1, 3) for w in windows])
    found = statistics_of(lambda w: image[w.slices], windows)
    np.testing.assert_allclose(found.mean, np.nanmean(pixels, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.std, np.nanstd(pixels, axis=0), rtol=1e-5)


def test_a_map_without_an_optional_channel_is_compared_in_the_others() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal((1800, -12), (150, 2), (64, 64, 2)).astype("f4")
    training = Statistics((800.0, -12.0), (150.0, 2.0), 9)
    image[..., 1] = np.nan
    found = statistics_of(lambda w: image[w.slices], sample_windows(64, 64), (1,))
    assert found.count == 64 * 64
    lines, _ = differences(["B02", "VV"], found, training)
    assert [line.partition(":")[0] for line in lines] == ["B02"]
    assert differences(["B02", "VV"], found, Statistics((1800.0, 0.0), (150.0, 1.0), 9, (0, 9))) == ([], "")
