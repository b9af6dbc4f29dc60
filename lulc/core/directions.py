"""Directions in images: sine and cosine of an angle clockwise from north, which turn when the image does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Directions = Sequence[tuple[int, int]]
"""Numbers of the channels that hold sine and cosine, of each direction."""


def mirror_directions(
    image: np.ndarray, directions: Directions, *, down: bool = False, across: bool = False
) -> np.ndarray:
    """Return a mirrored image (..., y, x, band) whose directions are mirrored too.

    Parameters
    ----------
    image
        Mirrored already; it is returned as it is where nothing changes.
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
    """Return an image (..., y, x, band) that was turned counter-clockwise, its directions turned too.

    Parameters
    ----------
    image
        Turned already; it is returned as it is where nothing changes.
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
