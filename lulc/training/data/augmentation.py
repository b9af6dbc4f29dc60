"""Augmentation of crops: geometry and radiometry.

Image and labels move together, and labels are never interpolated. Bands change in reflectance x 10000, and
indices that were computed from them follow. Indices from a raster of their own (other dates, other coding)
stay as they are, since how they would change is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import REFLECTANCE_UNIT, InputError
from lulc.rasters.indices import NEEDS, encode, spectral_index

MARGIN = 2
"""Pixels added to the square that a rotated crop is cut from, so that rounding never leaves it."""

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
Augmentation = Callable[[Image, Labels, np.random.Generator], tuple[Image, Labels]]
"""(image (y, x, band), labels (y, x), rng) to the same; keeps the shape and gives views or new arrays."""


def flip(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Mirror both upside down and left to right, each with probability 1/2."""
    if rng.integers(2):
        image, labels = image[::-1], labels[::-1]
    if rng.integers(2):
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image, labels


def square_around(side: int, angle: float) -> int:
    """Return the side of the upright square that holds a square of `side` pixels turned by `angle` degrees.

    Examples
    --------
    >>> square_around(128, 90), square_around(128, 45)
    (128, 184)
    """
    if angle % 90 == 0:
        return side
    turn = math.radians(angle)
    return math.ceil(side * (abs(math.cos(turn)) + abs(math.sin(turn)))) + MARGIN


def rotate(image: Image, labels: Labels, angle: float, side: int) -> tuple[Image, Labels]:
    """Turn both counter-clockwise about their centre and keep the inner square, which has no empty corner.

    Multiples of 90 degrees move pixels and compute nothing. Elsewhere the image is bilinear, and a pixel is
    invalid where any of its four sources is (NaN passes through the sum). Labels take their nearest source
    under the same transform.

    Parameters
    ----------
    image
        float32 (y, x, band), a square of `square_around(side, angle)` pixels, NaN = invalid.
    labels
        uint8 (y, x).
    angle
        Degrees.
    side
        Side of the result in pixels.
    """
    quarters, rest = divmod(angle, 90)
    if rest == 0:
        return np.rot90(image, int(quarters)), np.rot90(labels, int(quarters))
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    source, target = (image.shape[0] - 1) / 2, (side - 1) / 2
    # From a pixel of the result (x, y) to its source: rows grow downwards, so the sign of sin is flipped.
    matrix = np.array(
        [
            [cos, -sin, source - cos * target + sin * target],
            [sin, cos, source - sin * target - cos * target],
        ]
    )
    turned: list[Any] = [
        cv2.warpAffine(array, matrix, (side, side), flags=method | cv2.WARP_INVERSE_MAP)
        for array, method in ((image, cv2.INTER_LINEAR), (labels, cv2.INTER_NEAREST))
    ]
    # OpenCV drops the axis of a single band.
    return turned[0].reshape(side, side, image.shape[2]), turned[1]


class Jitter:
    """Gain and offset of each band, drawn for each crop; indices are computed anew.

    Parameters
    ----------
    channels
        For each channel ``name``, ``unit`` and ``coding``, as in a manifest.
    gain
        Standard deviation of the logarithm of the factor of a band.
    offset
        Standard deviation of what is added to a band, reflectance x 10000.

    Raises
    ------
    InputError
        If no channel is a reflectance.
    """

    def __init__(self, channels: Sequence[dict[str, str]], *, gain: float = 0.0, offset: float = 0.0) -> None:
        self._gain, self._offset = gain, offset
        names = {c["name"]: i for i, c in enumerate(channels)}
        self._bands = {c["name"]: names[c["name"]] for c in channels if c["unit"] == REFLECTANCE_UNIT}
        if not self._bands:
            raise InputError(
                "cannot change gain or offset of the bands, since no channel of the stacks is a "
                f"reflectance, expected the unit '{REFLECTANCE_UNIT}'",
                "Leave --gain and --offset-jitter out.",
            )
        self._computed = {
            c["name"]: names[c["name"]] for c in channels
            if c["coding"] == "computed" and set(NEEDS.get(c["name"], ("",))) <= self._bands.keys()
        }  # fmt: skip

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Change the bands of one crop (y, x, band), NaN = invalid."""
        where = list(self._bands.values())
        factor = np.exp(rng.normal(0, self._gain, len(where))).astype(np.float32)
        added = rng.normal(0, self._offset, len(where)).astype(np.float32)
        bands = image[..., where] * factor + added
        changed = image.copy()
        changed[..., where] = bands
        planes = {name: bands[..., i] for i, name in enumerate(self._bands)}
        for name, channel in self._computed.items():
            changed[..., channel] = encode(spectral_index(name, planes))
        return changed, labels
