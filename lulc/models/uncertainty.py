"""Class, confidence and uncertainty measures of a pixel, from its probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]


def decide(probabilities: Probabilities) -> NDArray[np.uint8]:
    """Return the network class of each pixel.

    Parameters
    ----------
    probabilities
        float32 (..., class): softmax, or with one class sigmoid, decided at 0.5.

    Returns
    -------
    uint8 (...)
        0..N-1; with sigmoid 1 for the class and 0 for the rest.

    Examples
    --------
    >>> decide(np.float32([[0.2, 0.7, 0.1]])).tolist(), decide(np.float32([[0.2], [0.5]])).tolist()
    ([1], [0, 1])
    """
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= 0.5).astype(np.uint8)
    highest = probabilities.max(axis=-1)
    classes = np.zeros(highest.shape, np.uint8)
    # Plane by plane, the first of equals last: many times faster than argmax where planes are contiguous.
    for number in range(probabilities.shape[-1] - 1, 0, -1):
        np.copyto(classes, np.uint8(number), where=probabilities[..., number] == highest)
    np.copyto(classes, np.uint8(0), where=probabilities[..., 0] == highest)
    return classes


def confidence(probabilities: Probabilities) -> Probabilities:
    """Return the probability of the class that `decide` gives, float32 (...)."""
    highest = probabilities.max(axis=-1)
    return np.maximum(highest, 1 - highest) if probabilities.shape[-1] == 1 else np.asarray(highest)


def entropy(probabilities: Probabilities) -> Probabilities:
    """Return -sum p log p / log N: 0 where one class is certain, 1 where all are alike.

    Parameters
    ----------
    probabilities
        float32 (y, x, class), two classes or more that sum up to 1.

    Returns
    -------
    float32 (y, x)

    Examples
    --------
    >>> entropy(np.float32([[[0.5, 0.5], [1.0, 0.0]]])).tolist()
    [[1.0, 0.0]]
    """
    terms = probabilities * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.asarray(np.clip((0 - terms.sum(axis=-1)) / np.log(probabilities.shape[-1]), 0, 1), np.float32)


def margin(probabilities: Probabilities) -> Probabilities:
    """Return the highest probability less the second: 0 where two classes are alike, 1 where one is certain.

    Parameters
    ----------
    probabilities
        float32 (y, x, class), two classes or more.

    Returns
    -------
    float32 (y, x)

    Examples
    --------
    >>> margin(np.float32([[[0.125, 0.625, 0.25]]])).tolist()
    [[0.375]]
    """
    second, first = np.moveaxis(np.partition(probabilities, -2, axis=-1)[..., -2:], -1, 0)
    return np.asarray(first - second, np.float32)


_OF_ACTIVATIONS: dict[str, Callable[[Probabilities], Probabilities]] = {"entropy": entropy, "margin": margin}

NOVELTY = "novelty"
"""The measure that looks at the channels instead (`lulc.models.ood_score`)."""

MEASURES = (*_OF_ACTIVATIONS, NOVELTY)
"""Names of the further bands; all within 0..1."""


def with_measures(
    probabilities: Probabilities, names: Sequence[str], novelty: Probabilities | None = None
) -> Probabilities:
    """Append the named measures to probabilities (y, x, class): float32 (y, x, class + measure).

    `novelty`, float32 (y, x), is needed where it is named.
    """
    if not names:
        return probabilities
    both = probabilities
    if probabilities.shape[-1] == 1:
        both = np.concatenate([probabilities, 1 - probabilities], axis=-1)
    measures = [novelty if name == NOVELTY else _OF_ACTIVATIONS[name](both) for name in names]
    return np.concatenate([probabilities, *(m[..., np.newaxis] for m in measures if m is not None)], axis=-1)
