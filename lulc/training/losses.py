"""Loss functions: cross-entropy with class weights or logit adjustment, on any backend of Keras.

A loss is given as text: a name and its parameter, ``ce``, ``ce(weights=sqrt)``, ``logit-adjusted(tau=0.65)``.
Each is a mean over labelled pixels; ignored pixels (255) take no part.

In the formulas p is the probability of a class at a pixel and q the one-hot label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lulc.core.schema import IGNORE, InputError
from lulc.models.backend import keras

__all__ = ["build_loss", "class_weights"]

ops = keras.ops

Loss = Callable[[Any, Any], Any]
"""(labels (n, y, x) 0..C-1 or 255, probabilities (n, y, x, class)) to a scalar."""

SMALLEST = 1e-12
"""Lower bound of probabilities in logarithms."""

WEIGHTINGS = ("none", "inverse", "sqrt")

EXAMPLES = "ce, ce(weights=sqrt) or logit-adjusted(tau=0.65)"


def class_weights(counts: Sequence[float] | np.ndarray, weighting: str) -> np.ndarray:
    """Return the weight of each class by its number of training pixels; the C weights sum to C.

    Parameters
    ----------
    counts
        Labelled training pixels of each class; a class without any gets weight 0.
    weighting
        ``inverse`` 1 / n, ``sqrt`` 1 / sqrt(n), ``none`` 1.
    """
    power = {"none": 0.0, "sqrt": -0.5, "inverse": -1.0}[weighting]
    raw = np.maximum(np.asarray(counts, "float64"), 1) ** power * (np.asarray(counts) > 0)
    return np.asarray(len(raw) * raw / max(raw.sum(), SMALLEST), "float32")


def _cross_entropy(log_p: Any, q: Any, weight: Any) -> Any:
    """Return the weighted mean of -sum_c q log p; (pixel, class), `weight` (pixel,), 0 where ignored."""
    values = -ops.sum(q * log_p, axis=-1)
    return ops.sum(values * weight) / ops.maximum(ops.sum(weight), SMALLEST)


def build_loss(text: str, class_counts: Sequence[float] | None = None, classes: int = 13) -> Loss:
    """Return the loss that `text` describes, for ``model.compile``.

    Raises InputError if the text is no loss, or class counts are needed but missing or of another length.

    Parameters
    ----------
    text
        ``ce``, with ``weights`` of `WEIGHTINGS`; or ``logit-adjusted``, the cross-entropy of
        softmax(logits + tau log prior) (Menon et al. 2021, ICLR, eq. 10), with ``tau`` = 1 by default.
    class_counts
        Labelled training pixels of each class; for a single class (sigmoid) of the rest and the class.
        Needed for class weights and logit adjustment.
    classes
        Outputs of the network; with 1 (sigmoid) labels are 1 for the class and 0 for the rest.

    Returns
    -------
    callable
        (labels integer (n, y, x), 0..C-1 and 255 = ignore; probabilities float32 (n, y, x, class)) to a
        scalar, 0 without a labelled pixel.
    """
    name, value = _parse(text)
    counts = _check_counts(text, class_counts, max(classes, 2))
    if name == "ce":
        weights = None if value == "none" else class_weights(_required(counts, text), str(value))

        def weighted(labels: Any, probabilities: Any) -> Any:
            log_p, q, known = _as_pixels(labels, probabilities, classes)
            if weights is not None:
                known = ops.sum(q * ops.convert_to_tensor(weights), axis=-1)
            return _cross_entropy(log_p, q, known)

        return weighted
    counts = np.maximum(_required(counts, text), 1)
    prior = float(value) * np.log(counts / counts.sum())

    def adjusted(labels: Any, probabilities: Any) -> Any:
        log_p, q, known = _as_pixels(labels, probabilities, classes)
        # log p equals the logits up to a constant for each pixel, which cancels out in the softmax.
        log_p = log_p + ops.convert_to_tensor(prior, "float32")
        log_p = log_p - ops.logsumexp(log_p, axis=-1, keepdims=True)
        return _cross_entropy(log_p, q, known)

    return adjusted


def _as_pixels(labels: Any, probabilities: Any, classes: int) -> tuple[Any, Any, Any]:
    """Return log p (pixel, class), q (pixel, class) and 1 where labelled, else 0 (pixel,); all float32."""
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    p = ops.reshape(ops.cast(probabilities, "float32"), (-1, classes))
    if classes == 1:
        p = ops.concatenate([1 - p, p], axis=-1)
    known = ops.cast(ops.not_equal(labels, IGNORE), "float32")
    valid_labels = ops.where(ops.equal(labels, IGNORE), 0, labels)
    q = ops.one_hot(valid_labels, max(classes, 2), dtype="float32") * known[:, None]
    return ops.log(ops.maximum(p, SMALLEST)), q, known


_TEXT = re.compile(r"\s*(ce|logit-adjusted)\s*(?:\(\s*([a-z]+)\s*=\s*([^()=,\s]+)\s*\))?\s*")


def _parse(text: str) -> tuple[str, str | float]:
    """Return the name of a loss and the value of its parameter."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise _not_understood(text, "it is neither a loss nor one with its parameter")
    name, parameter, value = match.groups()
    expected = {"ce": "weights", "logit-adjusted": "tau"}[name]
    if parameter not in (None, expected):
        raise _not_understood(text, f"{name} has no parameter '{parameter}', but {expected}")
    if name == "ce":
        if value not in (None, *WEIGHTINGS):
            raise _not_understood(text, f"weights is '{value}', expected {', '.join(WEIGHTINGS)}")
        return name, value or "none"
    try:
        tau = 1.0 if value is None else float(value)
    except ValueError:
        tau = math.nan
    if not 0 <= tau < 1000:
        raise _not_understood(text, f"tau is '{value}', expected a number from 0 to below 1000")
    return name, tau


def _not_understood(text: str, reason: str) -> InputError:
    return InputError(f"cannot use the loss '{text}', since {reason}", f"Give {EXAMPLES}.")


def _check_counts(text: str, counts: Sequence[float] | None, columns: int) -> np.ndarray | None:
    if counts is None:
        return None
    if np.shape(counts) != (columns,):
        raise InputError(
            f"cannot build the loss '{text}', since there are {len(counts)} class counts, expected {columns}",
            "Give one count for each class; for a single class those of the rest and of the class.",
        )
    return np.asarray(counts, "float64")


def _required(counts: np.ndarray | None, text: str) -> np.ndarray:
    if counts is None:
        raise InputError(
            f"cannot use the loss '{text}', since the class counts of the training data are not known",
            "Prepare the data with preprocess.py, or take a loss without class weights.",
        )
    return counts
