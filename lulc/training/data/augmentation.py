"""Changes of crops that keep what they show: geometry, radiometry, and mixtures of crops.

Whatever moves, moves in image and labels together, and labels are never interpolated. Bands are changed
in reflectance x 10000; indices that were computed from the bands follow them. Indices that were read from
a raster of their own (other dates, other coding) are left as they are, since nothing here knows how they
would change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lulc.core.schema import IGNORE, REFLECTANCE_UNIT, InputError
from lulc.rasters.indices import NEEDS, encode, spectral_index
from lulc.training.data.dataset import Tile
from lulc.training.data.sampling import class_shares

MARGIN = 2
"""Pixels added to the square that a rotated crop is cut from, so that rounding never leaves it."""

WAVELENGTHS = {
    "B01": 443, "B02": 490, "B03": 560, "B04": 665, "B05": 705, "B06": 740, "B07": 783, "B08": 842,
    "B8A": 865, "B09": 945, "B11": 1610, "B12": 2190,
}  # fmt: skip
"""Central wavelength of Sentinel-2's bands in nm."""

MIXES = ("none", "cutmix", "classmix")

BLOCK = 1024
"""Side of the pieces in which stacks are searched for components."""

LARGEST = 192
"""Longest side of a component that is pasted, in pixels; larger ones would hide the crop."""

SMALLEST = 16
"""Pixels of the smallest component that is pasted: below, labels are mostly borders."""

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


def square_around(side: int, angle: float, scale: float = 1.0) -> int:
    """Side of the upright square that holds a square of `scale` x `side` pixels turned by `angle` degrees.

    Examples
    --------
    >>> square_around(128, 90), square_around(128, 45), square_around(128, 0, 1.5)
    (128, 184, 194)
    """
    if angle % 90 == 0 and scale == 1:
        return side
    turn = math.radians(angle)
    return math.ceil(scale * side * (abs(math.cos(turn)) + abs(math.sin(turn)))) + MARGIN


def rotate(image: Image, labels: Labels, angle: float, side: int, scale: float = 1.0) -> tuple[Image, Labels]:
    """Turn both counter-clockwise about their centre and keep the inner square, which has no empty corner.

    Multiples of 90 degrees at scale 1 move pixels and compute nothing. Elsewhere the image is bilinear,
    and a pixel of which any of the four sources is invalid is invalid (NaN passes through the sum);
    labels take their nearest source under the same transform.

    Parameters
    ----------
    image
        float32 (y, x, band), a square of `square_around(side, angle, scale)` pixels, NaN = invalid.
    labels
        uint8 (y, x).
    angle
        Degrees.
    side
        Side of the result in pixels.
    scale
        Pixels of the image for one of the result, along a side; above 1 things get smaller.
    """
    quarters, rest = divmod(angle, 90)
    if rest == 0 and scale == 1:
        return np.rot90(image, int(quarters)), np.rot90(labels, int(quarters))
    turn = math.radians(angle)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
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
    """Gain and offset of each band and haze over all, drawn for each crop; indices are computed anew.

    Haze is a smooth field of path radiance that falls with the wavelength as 1 / wavelength, Chavez's
    relative scattering of a hazy sky; half of the crops get some.

    Parameters
    ----------
    channels
        For each channel ``name``, ``unit`` and ``coding``, as in a manifest.
    gain
        Standard deviation of the logarithm of the factor of a band.
    offset
        Standard deviation of what is added to a band, reflectance x 10000.
    haze
        Most that haze adds to B02, reflectance x 10000.

    Raises
    ------
    InputError
        If no channel is a reflectance.

    References
    ----------
    Chavez 1988, Remote Sensing of Environment 24, 459-479, table 1.
    """

    def __init__(
        self, channels: Sequence[dict[str, str]], *, gain: float = 0.0, offset: float = 0.0, haze: float = 0.0
    ) -> None:
        self._gain, self._offset, self._haze = gain, offset, haze
        names = {c["name"]: i for i, c in enumerate(channels)}
        self._bands = {c["name"]: names[c["name"]] for c in channels if c["unit"] == REFLECTANCE_UNIT}
        if not self._bands:
            raise InputError(
                "cannot change gain, offset or haze of the bands, since no channel of the stacks is a "
                f"reflectance, expected the unit '{REFLECTANCE_UNIT}'",
                "Leave --gain, --offset-jitter and --haze out.",
            )
        self._computed = {
            c["name"]: names[c["name"]] for c in channels
            if c["coding"] == "computed" and set(NEEDS.get(c["name"], ("",))) <= self._bands.keys()
        }  # fmt: skip
        known = [WAVELENGTHS.get(name, math.inf) for name in self._bands]
        self._scattering = np.array([WAVELENGTHS["B02"] / w for w in known], np.float32)

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Change the bands of one crop (y, x, band), NaN = invalid."""
        where = list(self._bands.values())
        factor = np.exp(rng.normal(0, self._gain, len(where))).astype(np.float32)
        added = rng.normal(0, self._offset, len(where)).astype(np.float32)
        bands = image[..., where] * factor + added
        if self._haze and rng.integers(2):
            thickness = np.float32(rng.uniform(0, self._haze)) * _smooth_field(image.shape[:2], rng)
            bands += thickness[..., np.newaxis] * self._scattering
        changed = image.copy()
        changed[..., where] = bands
        planes = {name: bands[..., i] for i, name in enumerate(self._bands)}
        for name, channel in self._computed.items():
            changed[..., channel] = encode(spectral_index(name, planes))
        return changed, labels


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """float32 (y, x) in 0..1 that varies over a quarter of the crop."""
    coarse = rng.random((5, 5), np.float32)
    return np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


class ChannelDropout:
    """Replaces channels by their training mean, which the network sees as 0; at least one stays.

    Parameters
    ----------
    share
        Of the channels, each drawn for itself, 0..1.
    mean
        float (band,), of the training data.
    """

    def __init__(self, share: float, mean: Sequence[float]) -> None:
        self._share = share
        self._mean = np.asarray(mean, np.float32)

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Drop channels of one crop (y, x, band); invalid pixels stay invalid."""
        dropped = rng.random(len(self._mean)) < self._share
        dropped[rng.integers(len(dropped))] = False
        if not dropped.any():
            return image, labels
        return np.where(dropped & np.isfinite(image), self._mean, image), labels


class Mix:
    """Puts parts of each crop's neighbour in the batch over it, image and labels together.

    ``cutmix`` pastes a rectangle, its area uniform in 0..1 (Yun et al. 2019, ICCV, algorithm A1);
    ``classmix`` pastes all pixels of half of the neighbour's classes (Olsson et al. 2021, WACV, section
    3.1), by their labels here.

    Parameters
    ----------
    kind
        ``cutmix`` or ``classmix``.
    share
        Of the crops that get something pasted, 0..1.
    """

    def __init__(self, kind: str, share: float) -> None:
        self._draw = {"cutmix": _rectangle, "classmix": _half_of_the_classes}[kind]
        self._share = share

    def __call__(self, images: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Mix a batch: images (n, y, x, band), labels (n, y, x)."""
        mixed, mixed_labels = images.copy(), labels.copy()
        for i in range(len(images)):
            if rng.random() < self._share:
                other = (i + 1) % len(images)
                pasted = self._draw(labels[other], rng)
                mixed[i][pasted] = images[other][pasted]
                mixed_labels[i][pasted] = labels[other][pasted]
        return mixed, mixed_labels


def _rectangle(labels: Labels, rng: np.random.Generator) -> NDArray[np.bool_]:
    share = math.sqrt(rng.random())
    (height, row), (width, col) = (
        (size := round(share * side), int(rng.integers(side - size + 1))) for side in labels.shape
    )
    chosen = np.zeros(labels.shape, bool)
    chosen[row : row + height, col : col + width] = True
    return chosen


def _half_of_the_classes(labels: Labels, rng: np.random.Generator) -> NDArray[np.bool_]:
    present = np.unique(labels)
    present = present[present != IGNORE]
    return np.isin(labels, rng.permutation(present)[: -(-len(present) // 2)])


@dataclass(frozen=True)
class Component:
    """Connected pixels of one class: its stack, bounding box, and one of its pixels."""

    tile: Tile
    value: int
    row: int
    col: int
    height: int
    width: int
    seed: tuple[int, int]


class CopyPaste:
    """Pastes connected components of labels, with their pixels in all channels, from any of the stacks.

    Classes are drawn by `class_shares`, then one of their components, which is flipped and turned by quarters
    and put anywhere in the crop.

    Parameters
    ----------
    tiles
        Training stacks; searched once, in pieces of `BLOCK` pixels.
    targets
        uint8 (256,), network class of each value in the masks.
    mean
        Number of components in a crop on average; the number is Poisson distributed.
    temperature
        Of `class_shares`.

    References
    ----------
    Ghiasi et al. 2021, CVPR (copy-paste of instances).
    """

    def __init__(self, tiles: Sequence[Tile], targets: Labels, mean: float, temperature: float) -> None:
        self._targets, self._mean = targets, mean
        classes = int(targets[targets != IGNORE].max(initial=0)) + 1
        self._components: list[list[Component]] = [[] for _ in range(classes)]
        counts = np.zeros(classes, np.int64)
        for tile in tiles:
            for value, pixels, component in _components_of(tile, targets):
                counts[value] += pixels
                if component is not None:
                    self._components[value].append(component)
        shares = class_shares(counts, temperature) * [bool(found) for found in self._components]
        self._shares = shares / shares.sum() if shares.any() else shares

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
        """Paste into one crop: image (y, x, band), labels (y, x) of network classes."""
        count = int(rng.poisson(self._mean)) if self._shares.any() else 0
        if not count:
            return image, labels
        image, labels = image.copy(), labels.copy()
        for _ in range(count):
            of_class = self._components[int(rng.choice(len(self._shares), p=self._shares))]
            pixels, shape = _cut_out(of_class[rng.integers(len(of_class))])
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            if mirrored:
                pixels, shape = pixels[::-1], shape[::-1]
            value = int(self._targets[of_class[0].value])
            _paste((image, labels), (np.rot90(pixels, turns), np.rot90(shape, turns)), value, rng)
        return image, labels


def _components_of(tile: Tile, targets: Labels) -> Any:
    """(class, pixels, `Component` or None where it isn't one to paste) of each component of a stack."""
    height, width = tile.masks.shape
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            values = np.asarray(tile.masks[top : top + BLOCK, left : left + BLOCK])
            for value in np.unique(values[targets[values] != IGNORE]):
                mask = (values == value).astype(np.uint8)
                _, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
                for number, (col, row, wide, high, pixels) in enumerate(boxes[1:].tolist(), 1):
                    component = None
                    if pixels >= SMALLEST and max(high, wide) <= LARGEST:
                        seed = (0, int(np.argmax(numbers[row, col : col + wide] == number)))
                        component = Component(tile, int(value), top + row, left + col, high, wide, seed)
                    yield int(targets[value]), pixels, component


def _cut_out(component: Component) -> tuple[Image, NDArray[np.bool_]]:
    """(image (y, x, band), bool (y, x) where the component is valid) of its bounding box."""
    place = (
        slice(component.row, component.row + component.height),
        slice(component.col, component.col + component.width),
    )
    image = np.asarray(component.tile.image[place], np.float32)
    mask = (np.asarray(component.tile.masks[place]) == component.value).astype(np.uint8)
    _, numbers = cv2.connectedComponents(mask, connectivity=4)
    return image, (numbers == numbers[component.seed]) & np.isfinite(image).all(axis=-1)


def _paste(
    crop: tuple[Image, Labels],
    component: tuple[Image, NDArray[np.bool_]],
    value: int,
    rng: np.random.Generator,
) -> None:
    """Put a component at a place where at least its centre is inside; writes into image and labels."""
    (image, labels), (pixels, shape) = crop, component
    inside, cut = [], []
    for side, size in zip(labels.shape, shape.shape, strict=True):
        at = int(rng.integers(side)) - size // 2
        inside.append(slice(max(at, 0), min(at + size, side)))
        cut.append(slice(max(-at, 0), min(side - at, size)))
    shown = shape[tuple(cut)]
    image[tuple(inside)][shown] = pixels[tuple(cut)][shown]
    labels[tuple(inside)][shown] = value
