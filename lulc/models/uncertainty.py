"""What a network says of a pixel, and how sure it is of that: class, confidence, further bands of a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Activations = NDArray[np.float32]


def decide(activations: Activations) -> NDArray[np.uint8]:
    """Network class of each pixel.

    Parameters
    ----------
    activations
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
    if activations.shape[-1] == 1:
        return (activations[..., 0] >= 0.5).astype(np.uint8)
    highest = activations.max(axis=-1)
    classes = np.zeros(highest.shape, np.uint8)
    # Plane by plane, the first of equals last: many times faster than argmax where planes are contiguous.
    for number in range(activations.shape[-1] - 1, 0, -1):
        np.copyto(classes, np.uint8(number), where=activations[..., number] == highest)
    np.copyto(classes, np.uint8(0), where=activations[..., 0] == highest)
    return classes


def confidence(activations: Activations) -> Activations:
    """Activation of the class that `decide` gives, with sigmoid that of the rest too: float32 (...)."""
    highest = activations.max(axis=-1)
    return np.maximum(highest, 1 - highest) if activations.shape[-1] == 1 else np.asarray(highest)


def entropy(activations: Activations) -> Activations:
    """Entropy of the activations, -sum p log p / log N: 0 where one class is certain, 1 where all are alike.

    Parameters
    ----------
    activations
        float32 (y, x, class), two classes or more that sum up to 1.

    Returns
    -------
    float32 (y, x)

    Examples
    --------
    >>> entropy(np.float32([[[0.5, 0.5], [1.0, 0.0]]])).tolist()
    [[1.0, 0.0]]
    """
    terms = activations * np.log(np.maximum(activations, np.finfo(np.float32).tiny))
    return np.asarray(np.clip((0 - terms.sum(axis=-1)) / np.log(activations.shape[-1]), 0, 1), np.float32)


def margin(activations: Activations) -> Activations:
    """Highest activation less the second highest: 0 where two classes are alike, 1 where one is certain.

    Parameters
    ----------
    activations
        float32 (y, x, class), two classes or more.

    Returns
    -------
    float32 (y, x)

    Examples
    --------
    >>> margin(np.float32([[[0.125, 0.625, 0.25]]])).tolist()
    [[0.375]]
    """
    second, first = np.moveaxis(np.partition(activations, -2, axis=-1)[..., -2:], -1, 0)
    return np.asarray(first - second, np.float32)


_OF_ACTIVATIONS: dict[str, Callable[[Activations], Activations]] = {"entropy": entropy, "margin": margin}

NOVELTY = "novelty"
"""The measure that looks at the channels instead (`lulc.models.ood_score`)."""

MEASURES = (*_OF_ACTIVATIONS, NOVELTY)
"""Names of the further bands; all within 0..1."""


def with_measures(
    activations: Activations, names: Sequence[str], novelty: Activations | None = None
) -> Activations:
    """Activations (y, x, class) and after them the named measures, float32 (y, x, class + measure).

    `novelty`, float32 (y, x), is needed where it is named.
    """
    if not names:
        return activations
    both = activations
    if activations.shape[-1] == 1:
        both = np.concatenate([activations, 1 - activations], axis=-1)
    measures = [novelty if name == NOVELTY else _OF_ACTIVATIONS[name](both) for name in names]
    return np.concatenate([activations, *(m[..., np.newaxis] for m in measures if m is not None)], axis=-1)
