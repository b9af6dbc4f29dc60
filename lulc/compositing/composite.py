"""Compositing rules: from the observations of a pixel over time to one value.

Arrays are float32 (observation, band, y, x), NaN without an observation. `complete` makes an observation
missing in all bands of a pixel or in none, so that all bands come from the same dates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

CHUNK = 2**14
"""Pixels that are sorted together, so that their observations stay in the processor's cache."""

Rule = Callable[[np.ndarray], np.ndarray]


def complete(observations: np.ndarray) -> np.ndarray:
    """Make observations that lack a band missing, in place; return their number, uint16 (y, x)."""
    missing = np.isnan(observations).any(axis=1, keepdims=True)
    np.copyto(observations, np.float32(np.nan), where=missing)
    return np.asarray((~missing[:, 0]).sum(axis=0, dtype="uint16"))


def first(observations: np.ndarray) -> np.ndarray:
    """Return the first observation of each pixel, float32 (band, y, x)."""
    return _pick(observations, np.argmin(np.isnan(observations[:, 0]), axis=0))


def median(observations: np.ndarray) -> np.ndarray:
    """Return the median of each band, float32 (band, y, x); for even numbers the mean of the middle two."""
    pixels = observations.reshape(len(observations), -1)
    result = np.empty(pixels.shape[1], "float32")
    for start in range(0, pixels.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        result[part] = _median(pixels[:, part])
    return result.reshape(observations.shape[1:])


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median of float32 (observation, n) along the first axis."""
    missing = np.isnan(values)
    count = len(values) - missing.sum(axis=0, dtype="intp")
    ordered = _ordered(np.where(missing, np.float32(np.inf), values))
    pixels = np.arange(values.shape[1])
    lower = ordered[np.maximum(count - 1, 0) // 2, pixels]
    upper = ordered[np.minimum(count // 2, len(ordered) - 1), pixels]
    # Without an observation both are infinite, and their difference is NaN.
    with np.errstate(invalid="ignore"):
        return np.asarray(lower + (upper - lower) / np.float32(2))


def _ordered(values: np.ndarray) -> np.ndarray:
    """Sort along the first axis, in place.

    A sorting network compares whole rows, which is several times as fast as sorting short columns: Batcher's
    odd-even merge sort (AFIPS 32, 1968), Knuth, "The Art of Computer Programming" 3, algorithm 5.2.2M.
    """
    count = len(values)
    p = top = 1 << max(0, (count - 1).bit_length() - 1)
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            for i in range(count - d):
                if i & p == r:
                    low = np.minimum(values[i], values[i + d])
                    np.maximum(values[i], values[i + d], out=values[i + d])
                    values[i] = low
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return values


def medoid(observations: np.ndarray) -> np.ndarray:
    """Return the observation of each pixel with the smallest sum of distances to the others.

    Distances are Euclidean over the bands; of equal sums the first wins. The result is float32 (band, y, x).

    References
    ----------
    N. Flood, "Seasonal composite Landsat TM/ETM+ images using the medoid", Remote Sensing 5 (2013) 6481.
    """
    count = len(observations)
    total = np.zeros((count, *observations.shape[2:]), "float32")
    for i in range(count):
        for j in range(i + 1, count):
            distance = np.sqrt(((observations[i] - observations[j]) ** 2).sum(axis=0))
            # Missing observations add no distance.
            distance = np.nan_to_num(distance, copy=False, nan=0.0)
            total[i] += distance
            total[j] += distance
    total[np.isnan(observations[:, 0])] = np.inf
    return _pick(observations, total.argmin(axis=0))


def _pick(observations: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen observation of each pixel; `chosen` is int (y, x)."""
    return np.asarray(np.take_along_axis(observations, chosen[None, None], axis=0)[0])


RULES: Mapping[str, Rule] = {"median": median, "medoid": medoid, "best": first, "first": first}
"""Rules by name. Observations are in the order of their rank for ``best``, of time for ``first``."""
