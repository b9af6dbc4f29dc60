"""Out-of-distribution score: the distance of a pixel from the training data of the classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from lulc.core.codec import Jsonable, limits
from lulc.core.schema import IGNORE, MAX_CLASSES, InputError
from lulc.core.statistics import Statistics
from lulc.datasets.arrays import Layers

PIXELS = 200_000
"""Most pixels for the centres, and most held-out pixels for the distances."""

AT_ONCE = 1 << 16
"""Pixels whose distances are computed together, to bound the memory."""

SHRINKAGE = 1e-3
"""Added to the variances of the standardised channels, since indices are nearly functions of the bands."""

QUANTILES = (
    *np.linspace(0, 0.99, 100).round(2).tolist(),
    *np.linspace(0.991, 0.999, 9).round(3).tolist(),
    1.0,
)
"""Quantiles of the held-out pixels' distances that are stored."""

Row = Annotated[tuple[float, ...], limits(minItems=1, maxItems=1024)]
Distances = Annotated[
    tuple[Annotated[float, limits(minimum=0)], ...], limits(minItems=len(QUANTILES), maxItems=len(QUANTILES))
]
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class OodScore(Jsonable):
    """Out-of-distribution score of pixels, by their distance from the training data.

    Raises InputError if the shapes don't fit each other, values are not finite, or distances are not
    ascending.

    Parameters
    ----------
    centres
        (class, channel): mean of each class among the training pixels, in whitened standardised channels.
    whitening
        (channel, channel); transforms the common covariance of the classes to the identity.
    distances
        Quantiles of the held-out pixels' distances from the nearest centre, at `QUANTILES`.

    References
    ----------
    Lee et al. 2018, NeurIPS, section 2.1: Mahalanobis distance from the nearest of Gaussians with one
    covariance; there for the features of a layer, here for the channels, which every engine has.
    """

    centres: Annotated[Rows, limits(minItems=1, maxItems=MAX_CLASSES)]
    whitening: Annotated[Rows, limits(minItems=1, maxItems=1024)]
    distances: Distances

    def __post_init__(self) -> None:
        channels = len(self.whitening)
        square = all(len(row) == channels for row in (*self.whitening, *self.centres))
        values = [*itertools.chain(*self.whitening, *self.centres), *self.distances]
        rising = all(a <= b for a, b in itertools.pairwise(self.distances))
        if not (square and rising and np.isfinite(values).all() and len(self.distances) == len(QUANTILES)):
            raise InputError(
                "cannot compute the out-of-distribution score, since centres, whitening and distances don't "
                "fit together, expected finite numbers, as many for each class as there are channels, and "
                "distances that rise",
                "They come from training: train again, or take the original card.",
            )

    def of(self, x: NDArray[np.float32], statistics: Statistics) -> NDArray[np.float32]:
        """Return the fraction of held-out pixels that lie nearer to the training data, float32 (...), 0..1.

        A threshold of 0.99 flags 1 % of pixels like the held-out ones; 1 is farther away than all of them.
        `x` is float32 (..., band) in physical units. A channel that is NaN counts as its mean; the score is
        NaN if all are.
        """
        pixels = x.reshape(-1, x.shape[-1])
        scores = np.empty(len(pixels), np.float32)
        for start in range(0, len(pixels), AT_ONCE):
            block = slice(start, start + AT_ONCE)
            distances = np.sqrt(self._squares(pixels[block], statistics))
            scores[block] = np.interp(distances, self.distances, QUANTILES)
        return scores.reshape(x.shape[:-1])

    def _squares(self, pixels: NDArray[np.float32], statistics: Statistics) -> NDArray[np.float32]:
        """Return the squared distance from the nearest centre, float32 (pixel,)."""
        z = _standardise(pixels, statistics)
        missing = np.isnan(z)
        # Added to the result, this marks pixels without any channel.
        none = np.where(missing.all(axis=1), np.float32(np.nan), np.float32(0))
        z = np.where(missing, np.float32(0), z) @ np.array(self.whitening, np.float32).T
        centres = np.array(self.centres, np.float32)
        products = z @ centres.T
        nearest = (0.5 * np.einsum("cb,cb->c", centres, centres) - products).min(axis=1)
        return np.asarray(np.maximum(np.einsum("pb,pb->p", z, z) + 2 * nearest, 0) + none, np.float32)


Stacks = Sequence[tuple[Layers, Layers]]
"""Images (y, x, band) in physical units, and their masks uint8 (y, x), 255 = ignore."""


def fit_ood_score(training: Stacks, held_out: Stacks, statistics: Statistics) -> OodScore | None:
    """Fit the centres on labelled training pixels, and the quantiles on held-out pixels; None without any."""
    values, labels = _pixels(training)
    known = labels != IGNORE
    compared, _ = _pixels(held_out)
    if not known.any() or not len(compared):
        return None
    z, labels = _standardise(values[known], statistics).astype(np.float64), labels[known]
    classes = np.unique(labels)
    centres = np.stack([z[labels == k].mean(axis=0) for k in classes])
    spread = z - centres[np.searchsorted(classes, labels)]
    covariance = spread.T @ spread / len(z) + SHRINKAGE * np.eye(z.shape[1])
    # With the factor L of the covariance, |L^-1 z| is the Mahalanobis distance of z.
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    unscaled = OodScore(_rows(centres @ whitening.T), _rows(whitening), (0.0,) * len(QUANTILES))
    distances = np.quantile(np.sqrt(unscaled._squares(compared, statistics)), QUANTILES)
    return OodScore(unscaled.centres, unscaled.whitening, tuple(distances.astype(float).tolist()))


def _standardise(pixels: NDArray[np.float32], statistics: Statistics) -> NDArray[np.float32]:
    mean, std = (np.array(values, np.float32) for values in (statistics.mean, statistics.std))
    return (pixels - mean) / std


def _pixels(stacks: Stacks) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return valid pixels of evenly spaced rows: values float32 (pixel, band), labels uint8 (pixel,)."""
    total = sum(image.shape[0] * image.shape[1] for image, _ in stacks)
    step = max(1, -(-total // PIXELS))
    values, labels = [np.empty((0, stacks[0][0].shape[-1]), np.float32)], [np.empty(0, np.uint8)]
    for rows, mask in _rows_of(stacks, step):
        valid = np.isfinite(rows).all(axis=-1)
        values.append(rows[valid])
        labels.append(mask[valid])
    return np.concatenate(values), np.concatenate(labels)


def _rows_of(stacks: Stacks, step: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yield every `step`-th row of all stacks, one below the other."""
    above = 0
    for image, masks in stacks:
        height, width = masks.shape
        first, above = -above % step, above + height
        for row in range(first, height, step):
            window = (slice(row, row + 1), slice(0, width))
            yield np.asarray(image[window], np.float32), np.asarray(masks[window])


def _rows(values: Iterable[Iterable[float]]) -> Rows:
    """Return Python floats of six digits, which are enough for a distance."""
    return tuple(tuple(float(f"{v:.6g}") for v in row) for row in values)
