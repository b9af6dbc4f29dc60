"""Calibration: temperatures that make probabilities equal the share of right pixels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE

PIXELS = 200_000
"""Held-out pixels that a temperature is fitted on, at most; more move it by less than 0.001."""

BOUNDS = (0.2, 20.0)
"""Temperatures that are looked for between; a network that never errs would ask for 0, and powers of float32
end where 1 / T is large."""

NEAR = 2**18
"""Probabilities that are calibrated at a time: 1 MB stays in the processor's cache from step to step."""

SMALLEST = 1e-7
"""Probabilities below this count as this: float32 can't tell them from what softmax rounded away."""


class Holdout:
    """Labelled pixels of held-out predictions, evenly thinned out.

    Parameters
    ----------
    batches
        Batches that will be added; each gives at most its share of `PIXELS`.
    """

    def __init__(self, batches: int) -> None:
        self._most = -(-PIXELS // batches)
        self._activations: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.uint8]] = []

    def add(self, probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        """Add some pixels of a batch.

        Parameters
        ----------
        probabilities
            float32 (..., class).
        labels
            uint8 (...), 0..N-1, 255 = ignore; with one class 1 is the class and 0 the rest.
        """
        known = np.flatnonzero(labels != IGNORE)
        chosen = known[:: max(1, -(-known.size // self._most))]
        self._activations.append(probabilities.reshape(-1, probabilities.shape[-1])[chosen])
        self._labels.append(labels.reshape(-1)[chosen])

    def pixels(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return all pixels added: probabilities float32 (pixel, class), labels uint8 (pixel,)."""
        return np.concatenate(self._activations), np.concatenate(self._labels)

    def fit(self, *, per_class: bool = False) -> float | tuple[float, ...]:
        """Fit a temperature on all pixels added; 1 where none is labelled."""
        probabilities, labels = self.pixels()
        return fit_temperature(probabilities, labels, per_class=per_class) if labels.size else 1.0


def fit_temperature(
    probabilities: NDArray[np.float32], labels: NDArray[np.uint8], *, per_class: bool = False
) -> float | tuple[float, ...]:
    """Return the temperature with the least negative log-likelihood of the labels.

    Parameters
    ----------
    probabilities
        float32 (pixel, class), of a softmax; or of a sigmoid, with one class.
    labels
        uint8 (pixel,), 0..N-1; with one class 1 is the class and 0 the rest.
    per_class
        One for each class: each log activation is divided by that of its class (for a sigmoid there is
        one in any case).

    Returns
    -------
    float or tuple of float
        As `calibrate` applies it.

    References
    ----------
    Guo et al. 2017, ICML, section 4.2: temperature scaling; per class it is vector scaling without bias.
    """
    # It takes longer to import than everything else that making a map needs.
    from scipy import optimize, special

    p = np.asarray(probabilities, np.float64)
    if p.shape[1] == 1:
        p, per_class = np.concatenate([1 - p, p], axis=1), False
    log_p = np.log(np.maximum(p, SMALLEST))
    pixels = np.arange(len(labels))

    def loss(log_temperature: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        exponent = np.exp(-log_temperature)
        log_q = special.log_softmax(log_p * exponent, axis=1)
        gap = np.exp(log_q)
        gap[pixels, labels] -= 1
        slope = -(gap * log_p).mean(axis=0) * exponent
        return -float(log_q[pixels, labels].mean()), slope if per_class else slope.sum(keepdims=True)

    start = np.zeros(p.shape[1] if per_class else 1)
    bounds = [(math.log(BOUNDS[0]), math.log(BOUNDS[1]))] * len(start)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    temperatures = tuple(float(t) for t in np.exp(found.x).round(6))
    return temperatures if per_class else temperatures[0]


def calibrate(probabilities: np.ndarray, temperature: float | tuple[float, ...]) -> np.ndarray:
    """Return probabilities at another temperature: the softmax of their logarithms divided by it.

    Parameters
    ----------
    probabilities : float32 (..., class), 0..1
        Probabilities of a softmax; or of a sigmoid, with one class.
    temperature
        One, or one for each class; at 1 nothing changes.

    References
    ----------
    Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Examples
    --------
    >>> calibrate(np.float32([[[0.9, 0.1]]]), 2.0).round(2).tolist()
    [[[0.75, 0.25]]]
    """
    exponent = 1 / np.asarray(temperature, np.float32)
    if (exponent == 1).all():
        return probabilities
    if probabilities.shape[-1] == 1:
        powers = probabilities**exponent
        return np.asarray(powers / (powers + (1 - probabilities) ** exponent), np.float32)
    calibrated = np.empty_like(probabilities, np.float32)
    several = probabilities.ndim > 3
    pairs = zip(probabilities, calibrated, strict=True) if several else [(probabilities, calibrated)]
    for given, result in pairs:
        rows = max(1, NEAR // max(1, given[:1].size))
        for top in range(0, len(given), rows):
            _temper(given[top : top + rows], exponent, result[top : top + rows])
    return calibrated


def _temper(probabilities: np.ndarray, exponent: np.ndarray, powers: np.ndarray) -> None:
    """Write powers of probabilities, normalised to a sum of 1. A power function takes twice as long."""
    with np.errstate(divide="ignore"):
        # An activation of 0 stays 0 by way of minus infinity.
        np.log(probabilities, out=powers)
    np.exp(np.multiply(powers, exponent, out=powers), out=powers)
    np.divide(powers, powers.sum(axis=-1, keepdims=True), out=powers)
