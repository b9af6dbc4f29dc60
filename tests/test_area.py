"""Areas with intervals: the published example, properties, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.core.schema import InputError
from lulc.evaluation.measures.area_estimation import (
    allocate,
    estimate,
    expected_accuracies,
    sample_size,
)

# Olofsson et al. 2014, tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest.
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
SAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])


def test_the_published_example_is_reproduced_to_the_printed_digits() -> None:
    result = estimate(SAMPLE, PIXELS)
    assert (round(result.overall.value, 3), round(result.overall.half_width, 3)) == (0.947, 0.018)
    users = [(f"{e.value:.2f}", f"{e.half_width:.2f}") for e in result.users]
    assert users == [("0.88", "0.07"), ("0.73", "0.10"), ("0.93", "0.04"), ("0.96", "0.02")]
    assert round(result.users[0].half_width, 3) == 0.074
    assert [f"{e.value:.2f}" for e in result.producers] == ["0.75", "0.85", "0.93", "0.96"]
    assert [f"{result.producers[k].half_width:.2f}" for k in (0, 2)] == ["0.21", "0.03"]
    assert (round(result.areas[0].value), round(result.areas[0].half_width)) == (235_086, 68_418)
    hectares = [(round(e.value), round(e.half_width)) for e in estimate(SAMPLE, PIXELS * 0.09).areas]
    assert hectares == [(21_158, 6_158), (11_686, 3_756), (285_770, 15_510), (581_386, 16_282)]


def test_two_printed_intervals_of_producers_accuracy_do_not_follow_from_the_papers_own_equation() -> None:
    """The paper prints 0.85 ± 0.23 and 0.96 ± 0.01 for the second and fourth class.

    Its equation 7 gives 0.25 and 0.02 with its own table, computed here once more term by term, and so do
    other programs that publish a check against this example. Neither a divisor n instead of n - 1 nor a
    quantile of 2 gives the printed figures. (The same section prints a standard error of 34,097 pixels
    beside a half-width of 68,418, which is 1.96 times 34,907: its figures hold slips.) The simulation
    below sides with the equation, which is what `estimate` computes.
    """
    result = estimate(SAMPLE, PIXELS)
    points = SAMPLE.sum(axis=1)
    for j, printed in ((1, 0.23), (3, 0.01)):
        column = PIXELS * SAMPLE[:, j] / points
        found = column[j] / column.sum()
        users = SAMPLE[j, j] / points[j]
        variance = PIXELS[j] ** 2 * (1 - found) ** 2 * users * (1 - users) / (points[j] - 1)
        for i in range(4):
            if i != j:
                share = SAMPLE[i, j] / points[i]
                variance += found**2 * PIXELS[i] ** 2 * share * (1 - share) / (points[i] - 1)
        half_width = 1.96 * variance**0.5 / column.sum()
        assert result.producers[j].half_width == pytest.approx(half_width, rel=1e-12)
        assert round(half_width, 2) == round(printed + (0.02 if j == 1 else 0.01), 2)


def test_the_published_sample_size_is_reproduced() -> None:
    assert sample_size(PIXELS.astype(float), np.array([0.7, 0.6, 0.9, 0.95])) == 641


def test_areas_add_up_to_the_mapped_total() -> None:
    result = estimate(SAMPLE, PIXELS)
    assert sum(e.value for e in result.areas) == pytest.approx(PIXELS.sum(), rel=1e-12)


def test_a_perfect_sample_gives_the_mapped_areas_without_error() -> None:
    result = estimate(np.diag([50, 60, 70]), np.array([10.0, 20.0, 30.0]))
    assert [e.value for e in result.areas] == pytest.approx([10, 20, 30])
    assert {e.standard_error for e in (result.overall, *result.areas, *result.users)} == {0.0}
    assert result.overall.value == 1.0


def test_a_class_that_is_not_mapped_has_an_area_but_no_users_accuracy() -> None:
    result = estimate(np.array([[40, 10], [0, 0]]), np.array([100.0, 0.0]))
    assert result.areas[1].value == pytest.approx(20)
    assert np.isnan(result.users[1].value)
    assert result.producers[1].value == 0.0


def test_the_area_variance_equals_a_plain_computation_of_equation_10() -> None:
    result = estimate(SAMPLE, PIXELS)
    weights = PIXELS / PIXELS.sum()
    for k in range(4):
        variance = 0.0
        for i in range(4):
            n = SAMPLE[i].sum()
            p = weights[i] * SAMPLE[i, k] / n
            variance += (weights[i] * p - p**2) / (n - 1)
        assert result.areas[k].standard_error == pytest.approx(PIXELS.sum() * variance**0.5, rel=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(7)
    truth = np.array([[0.85, 0.1, 0.05], [0.1, 0.8, 0.1], [0.03, 0.07, 0.9]])
    mapped = np.array([2e5, 5e5, 3e5])
    points = np.array([150, 250, 200])
    area = mapped @ truth
    overall = mapped @ np.diag(truth) / mapped.sum()
    producers = mapped * np.diag(truth) / area
    hits = np.zeros(7)
    runs = 1500
    for _ in range(runs):
        sample = np.stack([rng.multinomial(n, p) for n, p in zip(points, truth, strict=True)])
        result = estimate(sample, mapped)
        for k, (found, true) in enumerate(
            zip((*result.areas, *result.producers, result.overall), (*area, *producers, overall), strict=True)
        ):
            low, high = found.interval
            hits[k] += low <= true <= high
    assert np.all((hits / runs > 0.93) & (hits / runs < 0.97)), hits / runs


def test_the_spread_of_producers_accuracy_in_the_published_example_is_that_of_repeated_sampling() -> None:
    rng = np.random.default_rng(11)
    shares = SAMPLE / SAMPLE.sum(axis=1, keepdims=True)
    found = []
    for _ in range(4000):
        sample = np.stack([rng.multinomial(n, p) for n, p in zip(SAMPLE.sum(axis=1), shares, strict=True)])
        found.append([e.value for e in estimate(sample, PIXELS).producers])
    spread = 1.96 * np.std(found, axis=0)
    claimed = [e.half_width for e in estimate(SAMPLE, PIXELS).producers]
    # A single point decides about forest gain, so that its distribution is skewed: 10 %.
    assert spread == pytest.approx(claimed, rel=0.1)


def test_a_stratum_with_one_point_is_refused() -> None:
    with pytest.raises(InputError, match=r"classes \[2\] have fewer than 2 points"):
        estimate(np.array([[5, 0], [0, 1]]), np.array([1.0, 1.0]))


def test_points_in_a_class_that_the_map_lacks_are_refused() -> None:
    with pytest.raises(InputError, match=r"points lie in the classes \[2\]"):
        estimate(np.array([[5, 0], [0, 3]]), np.array([1.0, 0.0]))


def test_allocation_gives_each_stratum_its_minimum_and_no_more_than_it_has() -> None:
    assert allocate(641, PIXELS, 100).tolist() == [100, 100, 146, 295]
    shares = allocate(200, np.array([10, 0, 1_000_000]), 50)
    assert shares.tolist() == [10, 0, 190]
    assert allocate(30, np.array([500, 500]), 50).tolist() == [50, 50]


def test_accuracies_to_expect_are_those_against_labels_kept_within_bounds() -> None:
    confusion = np.zeros((5, 5), np.int64)
    confusion[1:, 1:] = [[80, 0, 0, 0], [20, 1, 0, 0], [0, 9, 50, 0], [0, 0, 0, 0]]
    assert expected_accuracies(confusion).tolist() == [0.8, 0.5, 0.95, 0.75]
