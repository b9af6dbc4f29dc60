"""Channels with sine and cosine of a direction (clockwise from north), which rotate with the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Directions = Sequence[tuple[int, int]]  # numbers of the sine and cosine channel of each direction


def mirror_directions(
    image: np.ndarray, directions: Directions, *, down: bool = False, across: bool = False
) -> np.ndarray:
    """Return a copy of a mirrored image (..., y, x, channel) with mirrored directions.

    An image without changes is returned itself.
    """
    if not directions or not (down or across):
        return image
    mirrored = image.copy()
    for sine, cosine in directions:
        if across:
            mirrored[..., sine] *= -1
        if down:
            mirrored[..., cosine] *= -1
    return mirrored


def turn_directions(image: np.ndarray, directions: Directions, angle: float) -> np.ndarray:
    """Return a copy of an image (..., y, x, channel) rotated counter-clockwise, with rotated directions.

    An image without changes is returned itself.
    """
    if not directions or angle % 360 == 0:
        return image
    # Rounded, so that quarter turns are exact.
    sin, cos = (round(part(math.radians(angle)), 15) for part in (math.sin, math.cos))
    turned = image.copy()
    for sine, cosine in directions:
        east, north = image[..., sine], image[..., cosine]
        turned[..., sine] = cos * east - sin * north
        turned[..., cosine] = sin * east + cos * north
    return turned
