"""Domain shift: distance of a mosaic from the training data of a network, band by band."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from lulc.core.statistics import Statistics
from lulc.core.windows import Window
from lulc.rasters.names import SENTINEL_BANDS

Read = Callable[[Window], np.ndarray]

FAR = 3.0
"""Standard deviations of the training data by which a mosaic's mean may differ."""

FACTOR = 4.0
"""Ratio of means from which another scale is the likely reason."""

OFFSET, OFFSET_TOLERANCE = 1000.0, 350.0
"""Radiometric offset of processing baseline 04.00 in reflectance x 10000, and tolerance of means."""


def sample_windows(height: int, width: int, count: int = 6, side: int = 128) -> list[Window]:
    """Return at most `count` x `count` squares spread evenly over an image, at multiples of their side.

    At multiples each lies within one block of most files, so that no other block is read.
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
    """Return the statistics of the valid pixels in some disjoint windows, at least one.

    `read` returns float32 (y, x, band), NaN in every channel of invalid pixels. A valid pixel may lack the
    channels with the numbers `optional`.
    """
    return functools.reduce(Statistics.merge, (Statistics.of(read(window), optional) for window in windows))


def differences(names: Sequence[str], mosaic: Statistics, training: Statistics) -> tuple[list[str], str]:
    """Compare the statistics of a mosaic with those of the training data, channel by channel.

    Returns a line for each channel that is far away, and advice; both are empty where none is.
    """
    expected = np.asarray(training.mean)
    # A channel without a value in either is not compared.
    mean = np.where(mosaic.seen & training.seen, mosaic.mean, expected)
    deviation = np.maximum(np.asarray(training.std), 1e-6)
    score = np.abs(mean - expected) / deviation
    far, bands = score > FAR, np.array([name.rpartition("/")[2] in SENTINEL_BANDS for name in names])
    if _scaling(mean[bands], expected[bands]):
        # Another scale or offset concerns all bands.
        far |= bands
    lines = [
        f"{names[i]}: mean {mean[i]:.4g}, trained on {expected[i]:.4g} +- {deviation[i]:.4g} "
        f"({score[i]:.1f} standard deviations)"
        for i in range(len(names))
        if far[i]
    ]
    return lines, _likely_reason(mean[bands], expected[bands]) if lines else ""


def _scaling(mean: np.ndarray, expected: np.ndarray) -> str:
    """Return ``factor`` or ``offset`` where it explains the means of the bands, else an empty text."""
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
            return "The offset of +1000 seems not to be subtracted: try --offset -1000."
        return "The offset seems to be subtracted twice: try --offset 0."
    if kind == "factor":
        ratio = float(np.median(mean / expected))
        return f"Reflectances are about {ratio:.2g} times those of the training: give the right --scale."
    return "It may be another season, region or processing level: classes may be wrong there."
