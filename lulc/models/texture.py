"""Features of a pixel: its standardised channels, and their mean and standard deviation in squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lulc.core.statistics import Statistics, valid_pixels


def texture_features(
    x: NDArray[np.float32], statistics: Statistics, radii: Sequence[int]
) -> NDArray[np.float32]:
    """Return the features of each pixel for a model of single pixels.

    A value depends on its square alone, to the last bit, so that windows give the values of the whole image.
    Mean and deviation are over the valid pixels of the square.

    Parameters
    ----------
    x
        float32 (n, y, x, channel) in physical units, NaN in every channel of an invalid pixel.
    radii
        Radii of the squares in pixels: 2 for 5 x 5.

    Returns
    -------
    float32 (n, y, x, feature)
        The channels, then for each radius their means and their deviations; 0 for invalid pixels.

    Examples
    --------
    >>> one = Statistics((0.0,), (1.0,), 1)
    >>> image = np.float32([[[[1], [3], [np.nan]]]])
    >>> texture_features(image, one, [1])[0, 0].tolist()
    [[1.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
    """
    z = (x.astype(np.float64) - statistics.mean) / statistics.std
    valid = valid_pixels(z)[..., np.newaxis]
    # A missing channel of a valid pixel gets the mean, 0.
    z = np.where(np.isnan(z), 0.0, z)
    layers = [z]
    for radius in radii:
        count = np.maximum(_box_sum(valid.astype(np.float64), radius), 1.0)
        mean = _box_sum(z, radius) / count
        square = _box_sum(z * z, radius) / count
        layers += [mean, np.sqrt(np.maximum(square - mean * mean, 0.0))]
    return np.where(valid, np.concatenate(layers, axis=-1), 0.0).astype(np.float32)


def _box_sum(a: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Sum over the square around each pixel in a fixed order; running sums would round differently."""
    for axis in (0, 1):
        total = a.copy()
        sums, values = (np.moveaxis(b, axis + 1, 0) for b in (total, a))
        for shift in range(1, min(radius, len(values) - 1) + 1):
            sums[:-shift] += values[shift:]
            sums[shift:] += values[:-shift]
        a = total
    return a
