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

from lulc.core.channels import LIBRARY, ChannelSet, set_of
from lulc.core.directions import Directions, mirror_directions, turn_directions
from lulc.core.schema import REFLECTANCE_UNIT, InputError
from lulc.rasters.indices import encode

MARGIN = 2
"""Pixels added to the square that a rotated crop is cut from, so that rounding never leaves it."""

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
Augmentation = Callable[[Image, Labels, np.random.Generator], tuple[Image, Labels]]
"""(image (y, x, band), labels (y, x), rng) to the same; keeps the shape and gives views or new arrays."""


class Flip:
    """Mirrors both upside down and left to right, each with probability 1/2.

    Parameters
    ----------
    directions
        Numbers of the channels that hold sine and cosine of a direction, clockwise from north.
    """

    def __init__(self, directions: Directions = ()) -> None:
        self._directions = directions

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Mirror one crop (y, x, band) and its labels (y, x)."""
        down, across = bool(rng.integers(2)), bool(rng.integers(2))
        if down:
            image, labels = image[::-1], labels[::-1]
        if across:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return mirror_directions(image, self._directions, down=down, across=across), labels


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


def rotate(
    image: Image, labels: Labels, angle: float, side: int, *,
    directions: Directions = (), nearest: Sequence[int] = (),
) -> tuple[Image, Labels]:  # fmt: skip
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
    directions
        Numbers of the channels that hold sine and cosine of a direction, which turns too.
    nearest
        Numbers of the channels that take their nearest source as labels do.
    """
    quarters, rest = divmod(angle, 90)
    if rest == 0:
        turned = np.rot90(image, int(quarters))
        return turn_directions(turned, directions, angle), np.rot90(labels, int(quarters))
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

    def warp(array: Any, method: int) -> Any:
        return cv2.warpAffine(array, matrix, (side, side), flags=method | cv2.WARP_INVERSE_MAP)

    # OpenCV drops the axis of a single band.
    turned = warp(image, cv2.INTER_LINEAR).reshape(side, side, image.shape[2])
    for channel in nearest:
        turned[..., channel] = warp(np.ascontiguousarray(image[..., channel]), cv2.INTER_NEAREST)
    return turn_directions(turned, directions, angle), warp(labels, cv2.INTER_NEAREST)


class Jitter:
    """Gain and offset of each band, drawn for each crop; indices are computed anew.

    Parameters
    ----------
    channels
        For each channel ``name``, ``unit`` and ``coding``, as in a manifest.
    channel_set
        Their formulas; those of the known names where None.
    gain
        Standard deviation of the logarithm of the factor of a band.
    offset
        Standard deviation of what is added to a band, reflectance x 10000.

    Raises
    ------
    InputError
        If no channel is a reflectance.
    """

    def __init__(
        self, channels: Sequence[dict[str, str]], channel_set: ChannelSet | None = None, *,
        gain: float = 0.0, offset: float = 0.0,
    ) -> None:  # fmt: skip
        self._gain, self._offset = gain, offset
        names = {c["name"]: i for i, c in enumerate(channels)}
        self._bands = {c["name"]: names[c["name"]] for c in channels if c["unit"] == REFLECTANCE_UNIT}
        if not self._bands:
            raise InputError(
                "cannot change gain or offset of the bands, since no channel of the stacks is a "
                f"reflectance, expected the unit '{REFLECTANCE_UNIT}'",
                "Leave --gain and --offset-jitter out.",
            )
        known = [name for name in names if name.rpartition("/")[2] in LIBRARY]
        described = channel_set or set_of(known)
        read = [c["name"] for c in channels if c["coding"] != "computed"]
        self._names = names
        self._computed = [
            (one, formula) for one, formula in described.plan(read).computed
            if one.name in names and set(formula.names) <= names.keys()
        ]  # fmt: skip

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Change the bands of one crop (y, x, band), NaN = invalid."""
        where = list(self._bands.values())
        factor = np.exp(rng.normal(0, self._gain, len(where))).astype(np.float32)
        added = rng.normal(0, self._offset, len(where)).astype(np.float32)
        bands = image[..., where] * factor + added
        changed = image.copy()
        changed[..., where] = bands
        planes = {name: changed[..., i] for name, i in self._names.items()}
        for one, formula in self._computed:
            found = formula.evaluate(planes)
            if one.stored == "syke":
                found = encode(found)
            elif one.minimum is not None or one.maximum is not None:
                found = np.clip(found, one.minimum, one.maximum)
            changed[..., self._names[one.name]] = found
        return changed, labels


class Dropout:
    """Drops channels that may be missing, all of a date together, so that a network learns to do without.

    Channels of no date are dropped with those of their kind, and computed ones with what they are computed
    from. A crop keeps at least one channel.

    Parameters
    ----------
    channel_set
        The channels.
    rate
        Probability that a crop loses the channels of a date.
    """

    def __init__(self, channel_set: ChannelSet, rate: float) -> None:
        groups: dict[str, list[int]] = {}
        for number, needed in enumerate(channel_set.dependencies()):
            if channel_set.channels[number].may_be_missing:
                for group in sorted(needed):
                    groups.setdefault(group, []).append(number)
        self._groups, self._rate = list(groups.values()), rate
        self._may_drop_all = len(set().union(*self._groups)) < len(channel_set.channels)

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Drop channels of one crop (y, x, band): they become NaN."""
        dropped = rng.random(len(self._groups)) < self._rate
        if dropped.all() and not self._may_drop_all:
            dropped[rng.integers(len(dropped))] = False
        if not dropped.any():
            return image, labels
        changed = image.copy()
        for group, gone in zip(self._groups, dropped, strict=True):
            if gone:
                changed[..., group] = np.nan
        return changed, labels
