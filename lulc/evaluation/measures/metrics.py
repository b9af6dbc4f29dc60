"""Metrics of agreement between a map and its reference, computed from counts.

Confusion matrices and sums grow window by window, so that memory does not depend on the size of the map.

A matrix has shape (N + 1, N + 1): rows are the reference, columns the map, and index 0 is *unclassified*.
Row 0 is empty, since a pixel without a reference class is not scored. Column 0 counts pixels that the map
left unclassified, which are misses of their reference class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import Legend

EXACT_BELOW = 25  # number of discordant pixels below which McNemar's test is exact
NLL_FLOOR = 1e-7  # lowest activation in the logarithm, so that a stored zero gives no infinite loss
BINS = 15  # bins of the reliability diagram and of the expected calibration error


def count(reference: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix, int64 (N + 1, N + 1), of class numbers 1..N and predictions 0..N, uint8.

    Examples
    --------
    >>> count(np.array([1, 1, 2], "u1"), np.array([1, 0, 2], "u1"), 2).tolist()
    [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    side = classes + 1
    joint = reference.astype(np.intp).ravel() * side + predicted.ravel()
    return np.bincount(joint, minlength=side * side).astype(np.int64).reshape(side, side)


@dataclass(frozen=True)
class ClassScore:
    """Agreement of one class; the ratios are None if it occurs neither in the reference nor in the map.

    Parameters
    ----------
    precision
        Fraction of the mapped pixels that are right (user's accuracy).
    recall
        Fraction of the reference pixels that are found (producer's accuracy).
    support, mapped
        Pixels of the class in the reference and in the map.
    """

    number: int
    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    iou: float | None
    support: int
    mapped: int


@dataclass(frozen=True)
class Averages:
    """Means over the classes that occur."""

    precision: float
    recall: float
    f1: float
    iou: float


@dataclass(frozen=True)
class Scores:
    """Agreement of a map with its reference.

    Macro and weighted means are over the classes that occur in the reference **or** in the map, as in
    scikit-learn with these ``labels`` and ``zero_division=0``: a class that occurs only in the map counts as
    much as one that is never found.

    Parameters
    ----------
    pixels, unclassified
        Scored pixels, and those that the map left unclassified (class 0), which are misses.
    overall_accuracy
        Fraction of scored pixels that are right; None without pixels.
    kappa
        Cohen's kappa; None where chance agreement is complete.
    """

    pixels: int
    unclassified: int
    overall_accuracy: float | None
    kappa: float | None
    macro: Averages | None
    weighted: Averages | None
    classes: tuple[ClassScore, ...]


def score(confusion: NDArray[np.int64], legend: Legend) -> Scores:
    """Compute all metrics of a confusion matrix.

    Parameters
    ----------
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified.

    References
    ----------
    Cohen, J. (1960). A coefficient of agreement for nominal scales. Educational and Psychological
    Measurement 20, 37-46.
    """
    hits, support, mapped = (
        a[1:].astype(np.float64) for a in (np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
    )
    occurs = (support + mapped) > 0
    ratios = _ratios(hits, support, mapped)
    total = int(confusion.sum())
    classes = []
    for i, c in enumerate(legend.classes):
        precision, recall, f1, iou = (float(r[i]) if occurs[i] else None for r in ratios)
        size = (int(support[i]), int(mapped[i]))
        classes.append(ClassScore(c.number, c.name, precision, recall, f1, iou, *size))
    macro = weighted = None
    if total:
        occurring = [r[occurs] for r in ratios]
        macro = Averages(*(float(r.mean()) for r in occurring))
        weighted = Averages(*(float(np.average(r, weights=support[occurs])) for r in occurring))
    accuracy = float(hits.sum() / total) if total else None
    unclassified = int(confusion[:, 0].sum())
    return Scores(total, unclassified, accuracy, _kappa(confusion), macro, weighted, tuple(classes))


def _ratios(hits: Any, support: Any, mapped: Any) -> tuple[Any, Any, Any, Any]:
    """Return (precision, recall, F1, IoU), 0 where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = (hits / mapped, hits / support, 2 * hits / (support + mapped), hits / (support + mapped - hits))
    return tuple(np.where(np.isfinite(r), r, 0.0) for r in raw)  # type: ignore[return-value]


def _kappa(confusion: NDArray[np.int64]) -> float | None:
    # Python integers: only the last two operations round.
    rows, cols = (confusion.sum(axis=axis).tolist() for axis in (1, 0))
    total, wrong = sum(rows), int(confusion.sum() - np.trace(confusion))
    by_chance = total * total - sum(r * c for r, c in zip(rows, cols, strict=True))
    return 1 - wrong * total / by_chance if by_chance else None


@dataclass(frozen=True)
class Comparison:
    """McNemar's test of two maps on the same reference pixels.

    Parameters
    ----------
    only_first, only_second, both, neither
        Pixels that are right in these maps.
    statistic
        Chi-squared with continuity correction, one degree of freedom; None if the test is exact.
    p_value
        Two-sided, for independent pixels; since neighbouring pixels are not, it is a lower bound.
    exact
        True if the binomial distribution was used.
    """

    only_first: int
    only_second: int
    both: int
    neither: int
    statistic: float | None
    p_value: float
    exact: bool


def compare(only_first: int, only_second: int, both: int, neither: int) -> Comparison:
    """Compute McNemar's test.

    References
    ----------
    McNemar, Q. (1947). Note on the sampling error of the difference between correlated proportions or
    percentages. Psychometrika 12, 153-157. Continuity correction: Edwards, A. L. (1948), Psychometrika
    13, 185-187.

    Examples
    --------
    >>> round(compare(121, 59, 150, 20).statistic, 2)
    20.67
    """
    from scipy import special

    discordant = only_first + only_second
    if discordant < EXACT_BELOW:
        # Both tails of the binomial distribution of equal chances; they overlap where both counts are equal.
        p = min(1.0, 2 * float(special.bdtr(min(only_first, only_second), discordant, 0.5)))
        return Comparison(only_first, only_second, both, neither, None, p, True)
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / discordant
    p = float(special.chdtrc(1, statistic))
    return Comparison(only_first, only_second, both, neither, statistic, p, False)


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram; the means are None without pixels."""

    lower: float
    upper: float
    pixels: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of activations as probabilities.

    Parameters
    ----------
    pixels
        Pixels with a reference and activations.
    ece
        Expected calibration error: mean difference of confidence (highest activation) and accuracy over
        equally wide bins, weighted by pixels.
    classwise_ece
        The same for the activation of each class, averaged over the classes.
    nll
        Mean negative natural logarithm of the activation of the true class.
    brier
        Mean squared difference of activations and truth, summed over classes (0..2).
    """

    pixels: int
    ece: float
    classwise_ece: float
    nll: float
    brier: float
    bins: tuple[Bin, ...]


class Reliability:
    """Accumulator of `Calibration`.

    References
    ----------
    Guo, C. et al. (2017). On calibration of modern neural networks. ICML. Classwise: Kull, M. et al.
    (2019). Beyond temperature scaling. NeurIPS. Brier, G. W. (1950). Monthly Weather Review 78, 1-3.
    """

    def __init__(self, classes: int, bins: int = BINS) -> None:
        self._bins = bins
        # (pixels, sum of activations, sum of truth) by row: row 0 the highest activation, 1..N the classes.
        self._sums = np.zeros((3, classes + 1, bins))
        self._nll = 0.0
        self._brier = 0.0

    def add(self, reference: NDArray[np.uint8], activations: NDArray[np.float32]) -> None:
        """Add pixels: class numbers 1..N, uint8 (pixel,), and finite activations, float32 (pixel, class)."""
        if not len(reference):
            return
        p = activations.astype(np.float64)
        truth = np.arange(p.shape[1]) == reference[:, None].astype(np.intp) - 1
        highest = p.argmax(axis=1)
        rows = np.arange(len(p))
        self._count(0, p[rows, highest], truth[rows, highest])
        for k in range(p.shape[1]):
            self._count(k + 1, p[:, k], truth[:, k])
        self._nll -= float(np.log(np.maximum(p[truth], NLL_FLOOR)).sum())
        self._brier += float(((p - truth) ** 2).sum())

    def _count(self, row: int, p: NDArray[np.float64], truth: NDArray[np.bool_]) -> None:
        place = np.minimum((p * self._bins).astype(np.intp), self._bins - 1)
        for sums, weights in zip(self._sums, (None, p, truth), strict=True):
            sums[row] += np.bincount(place, weights, minlength=self._bins)

    def result(self) -> Calibration | None:
        """Return the metrics; None where no pixel was counted."""
        pixels, confidence, truth = self._sums
        total = pixels[0].sum()
        if not total:
            return None
        errors = np.abs(confidence - truth).sum(axis=1) / total
        bins = []
        for k, n in enumerate(pixels[0]):
            means = (float(sums[0, k] / n) if n else None for sums in (confidence, truth))
            bins.append(Bin(k / self._bins, (k + 1) / self._bins, int(n), *means))
        return Calibration(
            pixels=int(total),
            ece=float(errors[0]),
            classwise_ece=float(errors[1:].mean()),
            nll=float(self._nll / total),
            brier=float(self._brier / total),
            bins=tuple(bins),
        )
