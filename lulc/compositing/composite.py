"""Compositing rules: from the observations of a pixel over time to one value.

Arrays are float32 (observation, band, y, x) with NaN where an observation is missing. An observation is
missing in all bands of a pixel or in none (`complete`), so that all bands come from the same dates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Rule = Callable[[np.ndarray], np.ndarray]


def complete(observations: np.ndarray) -> np.ndarray:
    """Mark the observations of a pixel that lack a band as missing, in place.

    Returns
    -------
    uint16 (y, x)
        Observations that each pixel has.
    """
    missing = np.isnan(observations).any(axis=1, keepdims=True)
    np.copyto(observations, np.float32(np.nan), where=missing)
    return np.asarray((~missing[:, 0]).sum(axis=0, dtype="uint16"))


def first(observations: np.ndarray) -> np.ndarray:
    """Return the first observation of each pixel, float32 (band, y, x)."""
    return _pick(observations, np.argmin(np.isnan(observations[:, 0]), axis=0))


def median(observations: np.ndarray) -> np.ndarray:
    """Return the median of each band, float32 (band, y, x); of an even number the mean of the middle two."""
    ordered = np.sort(observations, axis=0)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=0, keepdims=True)
    lower = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=0)[0]
    upper = np.take_along_axis(ordered, np.minimum(count // 2, len(ordered) - 1), axis=0)[0]
    return np.asarray(lower + (upper - lower) / np.float32(2))


def medoid(observations: np.ndarray) -> np.ndarray:
    """Return the observation that is nearest to all others of its pixel, float32 (band, y, x).

    The sum of Euclidean distances in the space of the bands decides; the first of equals is taken.

    References
    ----------
    N. Flood, "Seasonal composite Landsat TM/ETM+ images using the medoid", Remote Sensing 5 (2013) 6481.
    """
    count = len(observations)
    total = np.zeros((count, *observations.shape[2:]), "float32")
    for i in range(count):
        for j in range(i + 1, count):
            distance = np.sqrt(((observations[i] - observations[j]) ** 2).sum(axis=0))
            # A missing observation is at no distance from the others.
            distance = np.nan_to_num(distance, copy=False, nan=0.0)
            total[i] += distance
            total[j] += distance
    total[np.isnan(observations[:, 0])] = np.inf
    return _pick(observations, total.argmin(axis=0))


def _pick(observations: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen observation of each pixel; `chosen` is int (y, x)."""
    return np.asarray(np.take_along_axis(observations, chosen[None, None], axis=0)[0])


RULES: Mapping[str, Rule] = {"median": median, "medoid": medoid, "best": first, "first": first}
"""Rules by name. Observations come in the order of their rank for ``best``, of time for ``first``."""
