"""Class, confidence and uncertainty of pixels by their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]


def decide(probabilities: Probabilities) -> NDArray[np.uint8]:
    """Return the network class 0..N-1 of each pixel, uint8 (...); the first of equally probable ones.

    Parameters
    ----------
    probabilities
        float32 (..., class): softmax; or sigmoid of one class, which gives 1 from 0.5, else 0.

    Examples
    --------
    >>> decide(np.float32([[0.2, 0.7, 0.1]])).tolist(), decide(np.float32([[0.2], [0.5]])).tolist()
    ([1], [0, 1])
    """
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= 0.5).astype(np.uint8)
    highest = probabilities.max(axis=-1)
    classes = np.zeros(highest.shape, np.uint8)
    # Much faster than argmax for contiguous planes; the first of equal classes is written last.
    for number in range(probabilities.shape[-1] - 1, 0, -1):
        np.copyto(classes, np.uint8(number), where=probabilities[..., number] == highest)
    np.copyto(classes, np.uint8(0), where=probabilities[..., 0] == highest)
    return classes


def confidence(probabilities: Probabilities) -> Probabilities:
    """Return the probability of the class of `decide`, float32 (...)."""
    highest = probabilities.max(axis=-1)
    return np.maximum(highest, 1 - highest) if probabilities.shape[-1] == 1 else np.asarray(highest)


def entropy(probabilities: Probabilities) -> Probabilities:
    """Return -sum p log p / log N, float32 (y, x): 0 if one class is certain, 1 if all are equally probable.

    Parameters
    ----------
    probabilities
        float32 (y, x, class), at least two classes, sums to 1.
    """
    terms = probabilities * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.asarray(np.clip((0 - terms.sum(axis=-1)) / np.log(probabilities.shape[-1]), 0, 1), np.float32)


def margin(probabilities: Probabilities) -> Probabilities:
    """Return the highest probability minus the second, float32 (y, x).

    Parameters
    ----------
    probabilities
        float32 (y, x, class), at least two classes.
    """
    second, first = np.moveaxis(np.partition(probabilities, -2, axis=-1)[..., -2:], -1, 0)
    return np.asarray(first - second, np.float32)


_OF_PROBABILITIES: dict[str, Callable[[Probabilities], Probabilities]] = {
    "entropy": entropy,
    "margin": margin,
}

NOVELTY = "novelty"
"""The out-of-distribution score, a measure by the channels (`lulc.models.ood_score`)."""

MEASURES = (*_OF_PROBABILITIES, NOVELTY)
"""Names of the bands after the activations, all within 0..1."""


def with_measures(
    probabilities: Probabilities, names: Sequence[str], novelty: Probabilities | None = None
) -> Probabilities:
    """Append the named measures to probabilities (y, x, class): float32 (y, x, class + measure).

    `novelty`, float32 (y, x), is required if it is named.
    """
    if not names:
        return probabilities
    both = probabilities
    if probabilities.shape[-1] == 1:
        both = np.concatenate([probabilities, 1 - probabilities], axis=-1)
    measures = [novelty if name == NOVELTY else _OF_PROBABILITIES[name](both) for name in names]
    return np.concatenate([probabilities, *(m[..., np.newaxis] for m in measures if m is not None)], axis=-1)
