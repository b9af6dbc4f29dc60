"""Areas and accuracies with confidence intervals, from a stratified random sample of interpreted points.

Pixel counts are biased area estimates, since the map has errors. The confusion matrix of interpreted points,
drawn in each mapped class as a stratum (`lulc.evaluation.measures.sample`), corrects them.

References
----------
Olofsson, P., Foody, G. M., Herold, M., Stehman, S. V., Woodcock, C. E., Wulder, M. A. (2014). Good
practices for estimating area and assessing accuracy of land change. Remote Sensing of Environment 148,
42-57. Equation numbers are those of this paper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import InputError

Z95 = 1.96  # half the width of a 95 % interval in standard errors, as rounded in the paper


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
        """Return value, standard error and interval as JSON-ready data; None if undefined."""
        if not np.isfinite([self.value, self.standard_error]).all():
            return None
        return {**asdict(self), "interval_95": list(self.interval)}


@dataclass(frozen=True)
class AreaEstimates:
    """Areas and accuracies estimated from a stratified sample.

    Parameters
    ----------
    users, producers
        User's (precision) and producer's (recall) accuracy of each class; NaN if a class is not mapped, or
        not in the sample.
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
        Points (class, class): rows the map's class (stratum), columns the reference.
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
        fractions = np.where(mapped[:, None] > 0, counts / points[:, None], 0.0)
        # Variance of each fraction within its stratum, a term of eqs 5, 6, 7 and 10.
        variances = np.where(mapped[:, None] > 0, fractions * (1 - fractions) / (points[:, None] - 1), 0.0)
        right, right_variances = np.diag(fractions), np.diag(variances)
        proportions = weights @ fractions  # eq 9
        producers = weights * right / proportions  # eq 3
        elsewhere = (weights**2) @ (variances * ~np.eye(len(counts), dtype=bool))
        producer_variances = (
            (weights * (1 - producers)) ** 2 * right_variances + producers**2 * elsewhere
        ) / proportions**2  # eq 7
    users = np.where(mapped > 0, right, np.nan)
    return AreaEstimates(
        overall=Estimate(float(weights @ right), float(np.sqrt(weights**2 @ right_variances))),  # eqs 1, 5
        users=_estimates(users, np.where(mapped > 0, right_variances, np.nan)),  # eqs 2, 6
        producers=_estimates(producers, producer_variances),
        areas=_estimates(total * proportions, total**2 * (weights**2 @ variances)),  # eqs 10, 11
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
    """Return the points needed for a standard error of the overall accuracy (eq 13, large population).

    Parameters
    ----------
    mapped, expected
        Mapped area and expected user's accuracy of each class (class,).

    Examples
    --------
    The worked example of the paper:

    >>> sample_size(np.array([2, 1.5, 32, 64.5]), np.array([0.7, 0.6, 0.9, 0.95]))
    641
    """
    weights = np.asarray(mapped, np.float64) / np.sum(mapped)
    spread = np.sqrt(np.asarray(expected) * (1 - np.asarray(expected)))
    # Rounding first, so that a sum of 3.0000000000000004 does not need a fourth point.
    return int(np.ceil(round(float((weights @ spread / standard_error) ** 2), 6)))


def expected_accuracies(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Guess user's accuracies (class,) for `sample_size` from a confusion matrix with labels.

    They are clipped to 0.5..0.95, since labels are no sample of interpreted points, and 0.75 without pixels.
    """
    mapped = confusion[:, 1:].sum(axis=0)
    hits = np.diag(confusion)[1:]
    accuracies = np.divide(hits, mapped, out=np.full(len(mapped), 0.75), where=mapped > 0)
    return np.clip(accuracies, 0.5, 0.95)


def allocate(points: int, pixels: NDArray[np.int64], minimum: int = 50) -> NDArray[np.int64]:
    """Allocate points to strata: at least `minimum` in each, the rest in proportion to the area.

    This is the compromise of section 5.1.1 of the paper between equal allocation, for the user's accuracies,
    and proportional allocation, for overall accuracy and areas.

    Parameters
    ----------
    points
        Points in all; the minima may need more.
    pixels
        Mapped pixels of each class (class,); no stratum gets more points than it has pixels.

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
