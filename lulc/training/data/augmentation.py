"""Augmentation of crops: geometry and radiometry.

Geometric changes apply to image and labels, which are never interpolated. Radiometric changes apply to bands
in reflectance x 10000 and to indices computed from them. Indices read from a raster (other dates, other
coding) stay unchanged, since their relation to the bands is unknown.
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
"""Pixels added to the square around a rotated crop, so that rounding never leaves it."""

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
Augmentation = Callable[[Image, Labels, np.random.Generator], tuple[Image, Labels]]
"""(image (y, x, band), labels (y, x), rng) to image and labels of the same shape, views or new arrays."""


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
    """Return the side of the upright square around a square of `side` pixels rotated by `angle` degrees."""
    if angle % 90 == 0:
        return side
    turn = math.radians(angle)
    return math.ceil(side * (abs(math.cos(turn)) + abs(math.sin(turn)))) + MARGIN


def rotate(
    image: Image, labels: Labels, angle: float, side: int, *,
    directions: Directions = (), nearest: Sequence[int] = (),
) -> tuple[Image, Labels]:  # fmt: skip
    """Rotate image and labels counter-clockwise about their centre, and cut the inner square.

    Multiples of 90 degrees only move pixels. At other angles the image is interpolated bilinearly, where a
    pixel with an invalid source becomes invalid (NaN), and labels take their nearest source.

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
        Numbers of the channels that hold sine and cosine of a direction, which is rotated as well.
    nearest
        Numbers of the channels that take their nearest source.
    """
    quarters, rest = divmod(angle, 90)
    if rest == 0:
        rotated = np.rot90(image, int(quarters))
        return turn_directions(rotated, directions, angle), np.rot90(labels, int(quarters))
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    source, target = (image.shape[0] - 1) / 2, (side - 1) / 2
    # Maps a pixel (x, y) of the result to its source; rows count downwards, so the sign of sin is flipped.
    matrix = np.array(
        [[cos, -sin, source - cos * target + sin * target], [sin, cos, source - sin * target - cos * target]]
    )

    def warp(array: Any, method: int) -> Any:
        return cv2.warpAffine(array, matrix, (side, side), flags=method | cv2.WARP_INVERSE_MAP)

    # OpenCV drops the axis of a single band.
    rotated = warp(image, cv2.INTER_LINEAR).reshape(side, side, image.shape[2])
    for channel in nearest:
        rotated[..., channel] = warp(np.ascontiguousarray(image[..., channel]), cv2.INTER_NEAREST)
    return turn_directions(rotated, directions, angle), warp(labels, cv2.INTER_NEAREST)


class Jitter:
    """Random gain and offset of each band of a crop; indices are recomputed.

    Raises InputError if no channel is a reflectance.

    Parameters
    ----------
    channels
        ``name``, ``unit`` and ``coding`` of each channel, as in a manifest.
    channel_set
        Formulas of the channels; by default those of known names.
    gain
        Standard deviation of the logarithm of a band's factor.
    offset
        Standard deviation of a band's summand, reflectance x 10000.
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
            (channel, formula) for channel, formula in described.plan(read).computed
            if channel.name in names and set(formula.names) <= names.keys()
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
        for channel, formula in self._computed:
            values = formula.evaluate(planes)
            if channel.stored == "syke":
                values = encode(values)
            elif channel.minimum is not None or channel.maximum is not None:
                values = np.clip(values, channel.minimum, channel.maximum)
            changed[..., self._names[channel.name]] = values
        return changed, labels


class Dropout:
    """Random removal of channels that may be missing, so that a network learns to do without them.

    All channels of a date, or without a date all of a kind, are dropped together, with the channels computed
    from them. A crop keeps at least one channel.

    Parameters
    ----------
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
        """Set the dropped channels of one crop (y, x, band) to NaN."""
        dropped = rng.random(len(self._groups)) < self._rate
        if dropped.all() and not self._may_drop_all:
            dropped[rng.integers(len(dropped))] = False
        if not dropped.any():
            return image, labels
        changed = image.copy()
        for group, is_dropped in zip(self._groups, dropped, strict=True):
            if is_dropped:
                changed[..., group] = np.nan
        return changed, labels
