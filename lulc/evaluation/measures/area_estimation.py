"""Areas and accuracies with confidence intervals, from a stratified random sample of interpreted points.

Pixel counts are biased area estimates, since the map has errors. Instead the map's classes are strata: points
are drawn in each (`lulc.evaluation.measures.sample`) and interpreted, and their confusion matrix corrects the
mapped areas.

References
----------
Olofsson, P., Foody, G. M., Herold, M., Stehman, S. V., Woodcock, C. E., Wulder, M. A. (2014). Good
practices for estimating area and assessing accuracy of land change. Remote Sensing of Environment 148,
42-57. Equation numbers are those of this paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import InputError

Z95 = 1.96
"""Half the width of a 95 % interval in standard errors, as rounded in the paper."""


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, in the unit of the value."""

    value: float
    standard_error: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        return Z95 * self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return (self.value - self.half_width, self.value + self.half_width)

    def to_json(self) -> dict[str, Any] | None:
        """Value, standard error and interval as JSON-ready data; None where the value is not defined."""
        if not np.isfinite([self.value, self.standard_error]).all():
            return None
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True)
class AreaEstimates:
    """Areas and accuracies estimated from a stratified sample.

    Parameters
    ----------
    users, producers
        User's (precision) and producer's (recall) accuracy of each class; NaN where a class is not
        mapped, or was never found.
    areas
        Area of each class, in the unit of the mapped areas.
    """

    overall: Estimate
    users: tuple[Estimate, ...]
    producers: tuple[Estimate, ...]
    areas: tuple[Estimate, ...]

    def to_json(self) -> dict[str, Any]:
        lists = {"users": self.users, "producers": self.producers, "areas": self.areas}
        return {"overall": self.overall.to_json()} | {n: [e.to_json() for e in v] for n, v in lists.items()}


def estimate(sample: NDArray[np.int64], mapped: NDArray[np.float64]) -> AreaEstimates:
    """Estimate accuracy and area from a stratified random sample.

    Parameters
    ----------
    sample
        Points (class, class): rows the map's class, which is the stratum, columns the reference.
    mapped
        Mapped area of each class (class,), in any unit.

    Raises
    ------
    InputError
        If a mapped class has fewer than two points.
    """
    counts, mapped = np.asarray(sample, np.float64), np.asarray(mapped, np.float64)
    points = counts.sum(axis=1)
    _check_strata(points, mapped)
    total = mapped.sum()
    weights = mapped / total
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(mapped[:, None] > 0, counts / points[:, None], 0.0)
        # Variance of each share within its stratum: the term that eqs 5, 6, 7 and 10 have in common.
        spread = np.where(mapped[:, None] > 0, shares * (1 - shares) / (points[:, None] - 1), 0.0)
        right, right_spread = np.diag(shares), np.diag(spread)
        proportions = weights @ shares  # eq 9
        producers = weights * right / proportions  # eq 3
        elsewhere = (weights**2) @ (spread * ~np.eye(len(counts), dtype=bool))
        producer_variance = (
            (weights * (1 - producers)) ** 2 * right_spread + producers**2 * elsewhere
        ) / proportions**2  # eq 7
    users = np.where(mapped > 0, right, np.nan)
    return AreaEstimates(
        overall=Estimate(float(weights @ right), float(np.sqrt(weights**2 @ right_spread))),  # eqs 1, 5
        users=_estimates(users, np.where(mapped > 0, right_spread, np.nan)),  # eqs 2, 6
        producers=_estimates(producers, producer_variance),
        areas=_estimates(total * proportions, total**2 * (weights**2 @ spread)),  # eqs 10, 11
    )


def _estimates(values: NDArray[np.float64], variances: NDArray[np.float64]) -> tuple[Estimate, ...]:
    return tuple(Estimate(float(v), float(s)) for v, s in zip(values, np.sqrt(variances), strict=True))


def _check_strata(points: NDArray[np.float64], mapped: NDArray[np.float64]) -> None:
    few = [int(i) + 1 for i in np.flatnonzero((mapped > 0) & (points < 2))]
    astray = [int(i) + 1 for i in np.flatnonzero((mapped <= 0) & (points > 0))]
    if few or not mapped.sum() > 0:
        raise InputError(
            f"cannot estimate areas, since the mapped classes {few} have fewer than 2 points, "
            "expected at least 2 in each, better 50",
            "Interpret more points there, or merge rare classes before sampling.",
        )
    if astray:
        raise InputError(
            f"cannot estimate areas, since points lie in the classes {astray}, which the map does not have",
            "Give the mapped areas of the map from which the points were drawn.",
        )


def sample_size(
    mapped: NDArray[np.float64], expected: NDArray[np.float64], standard_error: float = 0.01
) -> int:
    """Points needed for an overall accuracy of a given standard error (eq 13, large population).

    Parameters
    ----------
    mapped
        Mapped area of each class (class,).
    expected
        User's accuracy that is expected of each class, 0..1.
    standard_error
        Wanted standard error of the overall accuracy.

    Examples
    --------
    The worked example of the paper:

    >>> sample_size(np.array([2, 1.5, 32, 64.5]), np.array([0.7, 0.6, 0.9, 0.95]))
    641
    """
    weights = np.asarray(mapped, np.float64) / np.sum(mapped)
    spread = np.sqrt(np.asarray(expected) * (1 - np.asarray(expected)))
    # Rounding first keeps a sum such as 3.0000000000000004 from asking for a fourth point.
    return int(np.ceil(round(float((weights @ spread / standard_error) ** 2), 6)))


def expected_accuracies(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """User's accuracies (class,) to expect, from a comparison with labels, for `sample_size`.

    Labels are no sample of interpreted points, so the accuracy against them is a guess: it is kept within 0.5
    and 0.95, and is 0.75 where no pixel was compared.

    Parameters
    ----------
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified.
    """
    mapped = confusion[:, 1:].sum(axis=0)
    hits = np.diag(confusion)[1:]
    shares = np.divide(hits, mapped, out=np.full(len(mapped), 0.75), where=mapped > 0)
    return np.clip(shares, 0.5, 0.95)


def allocate(points: int, pixels: NDArray[np.int64], minimum: int = 50) -> NDArray[np.int64]:
    """Share points among strata: at least `minimum` in each, the rest in proportion to the area.

    This is the compromise of section 5.1.1 of the paper between equal shares, which serve the user's
    accuracies, and proportional ones, which serve overall accuracy and areas.

    Parameters
    ----------
    points
        Points in all; more are given where the minima alone need more.
    pixels
        Mapped pixels of each class (class,); no stratum gets more points than it has pixels.
    minimum
        Points of the smallest strata.

    Examples
    --------
    >>> allocate(641, np.array([200_000, 150_000, 3_200_000, 6_450_000]), 75).tolist()
    [75, 75, 163, 328]
    """
    pixels = np.asarray(pixels, np.int64)
    least = np.minimum(minimum, pixels)
    fixed = pixels <= 0
    while True:
        free = max(0, points - int(least[fixed].sum()))
        ideal = np.where(fixed, 0.0, free * pixels / max(1, pixels[~fixed].sum()))
        small = ~fixed & (ideal < least)
        if not small.any():
            break
        fixed = fixed | small
    result = np.where(fixed, least, np.minimum(np.floor(ideal), pixels)).astype(np.int64)
    order = np.argsort(-(ideal - np.floor(ideal)), kind="stable")
    for i in order:
        if result.sum() < points and not fixed[i] and result[i] < pixels[i]:
            result[i] += 1
    return result
