"""Distance of a mosaic from the training data of a network, band by band."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lulc.core.statistics import Statistics
from lulc.core.windows import Window
from lulc.rasters.names import SENTINEL_BANDS

Read = Callable[[Window], np.ndarray]

FAR = 3.0
"""Training standard deviations by which a mosaic's mean may differ."""

FACTOR = 4.0
"""Ratio of means from which another scale is the likely reason."""

OFFSET, OFFSET_TOLERANCE = 1000.0, 350.0
"""Radiometric offset of processing baseline 04.00 in reflectance x 10000, and how well means show it."""

_SIDE, _SAMPLES = 128, 6


def sample_windows(height: int, width: int, count: int = _SAMPLES, side: int = _SIDE) -> list[Window]:
    """At most `count` x `count` squares spread evenly over an image, at multiples of their side.

    So each lies within one block of most files: one across four takes four times as long to read.
    """
    axes = []
    for length in (height, width):
        number = max(1, min(count, length // side))
        last = max(0, length - side)
        axes.append(sorted({round(i * last / max(1, number - 1)) // side * side for i in range(number)}))
    return [
        Window(row, col, min(side, height - row), min(side, width - col))
        for row in axes[0]
        for col in axes[1]
    ]


def statistics_of(read: Read, windows: Sequence[Window], optional: Sequence[int] = ()) -> Statistics:
    """Statistics of the valid pixels in some windows, each read by itself.

    Parameters
    ----------
    read
        Window to float32 (y, x, band), NaN in every channel of invalid pixels.
    windows
        At least one, disjoint.
    optional
        Numbers of the channels that a valid pixel may lack.
    """
    total: Statistics | None = None
    for window in windows:
        found = Statistics.of(read(window), optional)
        total = found if total is None else total.merge(found)
    assert total is not None
    return total


def differences(names: Sequence[str], found: Statistics, training: Statistics) -> tuple[list[str], str]:
    """Return the differences between a mosaic and the training data.

    Parameters
    ----------
    names
        Channels, in the order of the statistics.
    found
        Of valid pixels of the mosaic.
    training
        Of the training pixels.

    Returns
    -------
    (list of str, str)
        One line for each channel that lies far away, and what to try; empty where all is well.

    Examples
    --------
    >>> differences(["B02"], Statistics((1800.0,), (150.0,), 9), Statistics((800.0,), (150.0,), 9))
    (['B02: mean 1800, trained on 800 +- 150 (6.7 standard deviations)'], 'The difference is that of an \
offset of +1000 left in: try --offset -1000.')
    """
    expected = np.asarray(training.mean)
    # Nothing is known of a channel that either lacks everywhere.
    mean = np.where(found.seen & training.seen, found.mean, expected)
    deviation = np.maximum(np.asarray(training.std), 1e-6)
    score = np.abs(mean - expected) / deviation
    far = _far(names, mean, expected, score)
    lines = [
        f"{names[i]}: mean {mean[i]:.4g}, trained on {expected[i]:.4g} +- {deviation[i]:.4g} "
        f"({score[i]:.1f} standard deviations)"
        for i in range(len(names))
        if far[i]
    ]
    if not lines:
        return [], ""
    bands = [i for i, name in enumerate(names) if _is_band(name)]
    return lines, _likely_reason(mean[bands], expected[bands])


def _is_band(name: str) -> bool:
    """True for a Sentinel-2 band of any date."""
    return name.rpartition("/")[2] in SENTINEL_BANDS


def _far(names: Sequence[str], mean: np.ndarray, expected: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Channels beyond `FAR`, and all bands where their means differ as by another scale or offset."""
    far = score > FAR
    bands = np.array([_is_band(name) for name in names])
    if bands.any() and _scaling(mean[bands], expected[bands]):
        far |= bands
    return far


def _scaling(mean: np.ndarray, expected: np.ndarray) -> str:
    """``factor``, ``offset``, or nothing: what would explain the means of the bands."""
    if not len(mean):
        return ""
    ratio = float(np.median(mean / np.maximum(expected, 1.0)))
    shift = float(np.median(mean - expected))
    residuals = {}
    if not 1 / FACTOR <= ratio <= FACTOR:
        residuals["factor"] = float(np.median(np.abs(mean - ratio * expected)))
    if abs(abs(shift) - OFFSET) < OFFSET_TOLERANCE:
        residuals["offset"] = float(np.median(np.abs(mean - expected - shift)))
    kind = min(residuals, key=lambda name: residuals[name], default="")
    return "" if kind == "offset" and residuals[kind] >= OFFSET_TOLERANCE else kind


def _likely_reason(mean: np.ndarray, expected: np.ndarray) -> str:
    kind = _scaling(mean, expected)
    if kind == "offset":
        if np.median(mean - expected) > 0:
            return "The difference is that of an offset of +1000 left in: try --offset -1000."
        return "The difference is that of an offset subtracted twice: try --offset 0."
    if kind == "factor":
        ratio = float(np.median(mean / expected))
        return f"Reflectances are about {ratio:.2g} times those of the training: give the right --scale."
    return "It may be another season, region or processing level: classes may be wrong there."
