"""Calibration of probabilities by temperature scaling."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE

Temperature = float | tuple[float, ...]
"""Divisor of the logits: one number, or one for each class."""

PIXELS = 200_000
"""Most held-out pixels for fitting a temperature; more would change it by less than 0.001."""

BOUNDS = (0.2, 20.0)
"""Range of fitted temperatures: without an error the optimum is 0, where powers of float32 underflow."""

AT_ONCE = 2**18
"""Probabilities calibrated together: 1 MB, which stays in the processor's cache."""

SMALLEST = 1e-7
"""Lower bound of probabilities when fitting: the softmax in float32 rounds smaller ones away."""


class Holdout:
    """Sample of the labelled pixels of held-out predictions, at regular intervals.

    Parameters
    ----------
    batches
        Number of batches that will be added, each with at most `PIXELS` / `batches` pixels.
    """

    def __init__(self, batches: int) -> None:
        self._most = -(-PIXELS // batches)
        self._probabilities: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.uint8]] = []

    def add(self, probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        """Add a sample of the pixels of a batch.

        Parameters
        ----------
        probabilities
            float32 (..., class).
        labels
            uint8 (...), 0..N-1, 255 = ignore; with one class 1 is the class and 0 the rest.
        """
        known = np.flatnonzero(labels != IGNORE)
        chosen = known[:: max(1, -(-known.size // self._most))]
        self._probabilities.append(probabilities.reshape(-1, probabilities.shape[-1])[chosen])
        self._labels.append(labels.reshape(-1)[chosen])

    def pixels(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return all pixels added: probabilities float32 (pixel, class), labels uint8 (pixel,)."""
        return np.concatenate(self._probabilities), np.concatenate(self._labels)

    def fit(self, *, per_class: bool = False) -> Temperature:
        """Fit a temperature on all pixels added; 1 without a labelled pixel."""
        probabilities, labels = self.pixels()
        return fit_temperature(probabilities, labels, per_class=per_class) if labels.size else 1.0


def fit_temperature(
    probabilities: NDArray[np.float32], labels: NDArray[np.uint8], *, per_class: bool = False
) -> Temperature:
    """Return the temperature for `calibrate` with the least negative log-likelihood of the labels.

    Parameters
    ----------
    probabilities
        float32 (pixel, class), of a softmax; or of a sigmoid, with one class.
    labels
        uint8 (pixel,), 0..N-1; with one class 1 is the class and 0 the rest.
    per_class
        Fit one temperature for each class, the divisor of its log probabilities; one for a sigmoid.

    References
    ----------
    Guo et al. 2017, ICML, section 4.2: temperature scaling; per class it is vector scaling without bias.
    """
    # Importing this takes longer than all other imports for making a map.
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
    optimum = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    temperatures = tuple(float(t) for t in np.exp(optimum).round(6))
    return temperatures if per_class else temperatures[0]


def calibrate(probabilities: np.ndarray, temperature: Temperature) -> np.ndarray:
    """Return probabilities at another temperature: the softmax of their logarithms divided by it.

    Parameters
    ----------
    probabilities : float32 (..., class), 0..1
        Probabilities of a softmax; or of a sigmoid, with one class.
    temperature
        One, or one for each class; 1 changes nothing.

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
    for image, result in pairs:
        rows = max(1, AT_ONCE // max(1, image[:1].size))
        for top in range(0, len(image), rows):
            _temper(image[top : top + rows], exponent, result[top : top + rows])
    return calibrated


def _temper(probabilities: np.ndarray, exponent: np.ndarray, powers: np.ndarray) -> None:
    """Write powers of probabilities, normalised to a sum of 1; ``**`` would take twice as long."""
    with np.errstate(divide="ignore"):
        # A probability of 0 stays 0: its logarithm is minus infinity.
        np.log(probabilities, out=powers)
    np.exp(np.multiply(powers, exponent, out=powers), out=powers)
    np.divide(powers, powers.sum(axis=-1, keepdims=True), out=powers)
