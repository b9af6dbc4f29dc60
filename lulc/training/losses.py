"""Loss functions for unbalanced classes and wrong labels, all with ignored pixels, on any backend.

A loss is given as text: names, parameters and a weighted sum, ``"ce(weights=sqrt)+0.5*dice"``. Each is a
mean over labelled pixels or over classes, so that the number of ignored pixels (255) changes nothing.

In the formulas p is the activation of a class at a pixel, q the one-hot label, C the number of classes.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lulc.core.schema import IGNORE, InputError
from lulc.models.backend import keras

__all__ = ["LOSSES", "build_loss", "class_weights"]

ops = keras.ops

Loss = Callable[[Any, Any], Any]
"""(labels (n, y, x) 0..C-1 or 255, activations (n, y, x, class)) to a scalar."""

SMALLEST = 1e-12
"""Activations below this count as this in logarithms."""

WEIGHTINGS = ("none", "inverse", "sqrt", "effective")


@dataclass(frozen=True)
class _Batch:
    """A batch as pixels: what every loss is computed from.

    Parameters
    ----------
    p
        float32 (pixel, class), activations.
    q
        float32 (pixel, class), one-hot labels; all 0 where ignored.
    known
        float32 (pixel,), 1 where labelled and 0 where ignored.
    foreground
        First class whose overlap counts: 1 where class 0 is the rest, else 0.
    counts
        Labelled training pixels of each class, or None where they are not known.
    """

    p: Any
    q: Any
    known: Any
    foreground: int
    counts: np.ndarray | None

    @property
    def log_p(self) -> Any:
        """float32 (pixel, class)."""
        return ops.log(ops.maximum(self.p, SMALLEST))

    def mean(self, values: Any, weights: str = "none", beta: float = 0.9999) -> Any:
        """Mean of `values` (pixel,) over labelled pixels, weighted by the weight of their class."""
        weight = self.known
        if weights != "none":
            of_class = ops.convert_to_tensor(class_weights(_required(self.counts, weights), weights, beta))
            weight = ops.sum(self.q * of_class, axis=-1)
        return ops.sum(values * weight) / ops.maximum(ops.sum(weight), SMALLEST)

    def mean_of_present(self, values: Any) -> Any:
        """Mean of `values` (class,) over the classes that are labelled in this batch."""
        present = ops.cast(ops.sum(self.q, axis=0) > 0, "float32")[self.foreground :]
        return ops.sum(values[self.foreground :] * present) / ops.maximum(ops.sum(present), 1.0)


def class_weights(counts: Sequence[float] | np.ndarray, weighting: str, beta: float = 0.9999) -> np.ndarray:
    """Weight of each class from its number of training pixels; the weights sum up to C.

    Parameters
    ----------
    counts
        Labelled training pixels of each class; a class without any gets weight 0.
    weighting
        ``inverse`` 1 / n, ``sqrt`` 1 / sqrt(n), ``effective`` (1 - beta) / (1 - beta^n)
        (Cui et al. 2019, CVPR, eq. 3), ``none`` 1.
    beta
        Of the effective number, 0 <= beta < 1.

    Examples
    --------
    >>> class_weights([100, 400], "sqrt").tolist()
    [1.3333333730697632, 0.6666666865348816]
    """
    n = np.maximum(np.asarray(counts, "float64"), 1)
    raw = {
        "none": np.ones_like(n),
        "inverse": 1 / n,
        "sqrt": 1 / np.sqrt(n),
        "effective": (1 - beta) / -np.expm1(n * math.log(beta)) if beta > 0 else np.ones_like(n),
    }[weighting] * (np.asarray(counts) > 0)
    return np.asarray(len(n) * raw / max(raw.sum(), SMALLEST), "float32")


def cross_entropy(
    batch: _Batch, *, weights: str = "none", beta: float = 0.9999, smoothing: float = 0.0
) -> Any:
    """Mean of -sum_c q' log p with q' = (1 - smoothing) q + smoothing / C.

    Class weights as `class_weights` gives them; label smoothing: Szegedy et al. 2016, CVPR, section 7.
    """
    classes = batch.p.shape[-1]
    target = (1 - smoothing) * batch.q + smoothing / classes
    return batch.mean(-ops.sum(target * batch.log_p, axis=-1), weights, beta)


def focal(batch: _Batch, *, gamma: float = 2.0, weights: str = "none", beta: float = 0.9999) -> Any:
    """Mean of -(1 - p_y)^gamma log p_y (Lin et al. 2017, ICCV, eq. 4)."""
    values = -ops.sum(batch.q * ops.power(_at_least_0(1 - batch.p), gamma) * batch.log_p, axis=-1)
    return batch.mean(values, weights, beta)


def dice(batch: _Batch, *, smooth: float = 1.0) -> Any:
    """Mean over classes of 1 - (2 sum p q + s) / (sum p + sum q + s) (Drozdzal et al. 2016, DLMIA, eq. 1)."""
    p = batch.p * batch.known[:, None]
    overlap = ops.sum(p * batch.q, axis=0)
    total = ops.sum(p, axis=0) + ops.sum(batch.q, axis=0)
    return batch.mean_of_present(1 - (2 * overlap + smooth) / (total + smooth))


def tversky(batch: _Batch, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> Any:
    """Mean over classes of 1 - T, T = TP / (TP + alpha FP + beta FN) (Salehi et al. 2017, MLMI, eq. 3)."""
    return batch.mean_of_present(1 - _tversky_index(batch, alpha, beta, smooth))


def focal_tversky(
    batch: _Batch, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3, smooth: float = 1.0
) -> Any:
    """Mean over classes of (1 - T)^(1 / gamma) (Abraham and Khan 2019, ISBI, eq. 4)."""
    index = _tversky_index(batch, alpha, beta, smooth)
    # The root has an infinite slope at 0, which a perfect class would turn into NaN.
    return batch.mean_of_present(ops.power(ops.maximum(1 - index, 1e-6), 1 / gamma))


def _tversky_index(batch: _Batch, alpha: float, beta: float, smooth: float) -> Any:
    hits = ops.sum(batch.p * batch.q, axis=0)
    false_alarms = ops.sum(batch.p * (batch.known[:, None] - batch.q), axis=0)
    misses = ops.sum((1 - batch.p) * batch.q, axis=0)
    return (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)


def lovasz(batch: _Batch) -> Any:
    """Lovasz extension of the Jaccard loss of each class (Berman et al. 2018, CVPR, eq. 9, algorithm 1)."""
    q = ops.transpose(batch.q)
    # Ignored pixels have error 0: they come last and add nothing.
    errors = ops.abs(q - ops.transpose(batch.p)) * batch.known[None, :]
    order = ops.argsort(-errors, axis=-1)
    errors, truth = ops.take_along_axis(errors, order, axis=-1), ops.take_along_axis(q, order, axis=-1)
    positives = ops.sum(truth, axis=-1, keepdims=True)
    intersection = positives - ops.cumsum(truth, axis=-1)
    union = positives + ops.cumsum(1 - truth, axis=-1)
    jaccard = 1 - intersection / ops.maximum(union, 1.0)
    steps = ops.concatenate([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], axis=-1)
    return batch.mean_of_present(ops.sum(errors * steps, axis=-1))


def logit_adjusted(batch: _Batch, *, tau: float = 1.0) -> Any:
    """Cross-entropy of softmax(logits + tau log prior) (Menon et al. 2021, ICLR, eq. 10)."""
    counts = np.maximum(_required(batch.counts, "logit-adjusted"), 1)
    prior = ops.convert_to_tensor(tau * np.log(counts / counts.sum()), "float32")
    # log p is the logits up to a constant of the pixel, which the softmax takes away again.
    log_p = batch.log_p + prior
    return batch.mean(-ops.sum(batch.q * (log_p - ops.logsumexp(log_p, axis=-1, keepdims=True)), axis=-1))


def symmetric(batch: _Batch, *, alpha: float = 0.1, beta: float = 1.0, floor: float = -4.0) -> Any:
    """Weighted sum alpha CE + beta RCE, RCE = -sum_c p log q with log 0 = floor (Wang et al. 2019, eq. 7)."""
    reverse = -floor * ops.sum(batch.p * (1 - batch.q), axis=-1)
    return alpha * cross_entropy(batch) + beta * batch.mean(reverse)


def bootstrap_soft(batch: _Batch, *, beta: float = 0.95) -> Any:
    """Mean of -sum_c (beta q + (1 - beta) p) log p (Reed et al. 2015, ICLR workshop, eq. 6)."""
    target = beta * batch.q + (1 - beta) * batch.p
    return batch.mean(-ops.sum(target * batch.log_p, axis=-1))


def bootstrap_hard(batch: _Batch, *, beta: float = 0.8) -> Any:
    """Mean of -sum_c (beta q + (1 - beta) [c = argmax p]) log p (Reed et al. 2015, eq. 7)."""
    guess = ops.one_hot(ops.argmax(batch.p, axis=-1), batch.p.shape[-1], dtype="float32")
    target = beta * batch.q + (1 - beta) * guess
    return batch.mean(-ops.sum(target * batch.log_p, axis=-1))


LOSSES: dict[str, Callable[..., Any]] = {
    "ce": cross_entropy,
    "focal": focal,
    "dice": dice,
    "tversky": tversky,
    "focal-tversky": focal_tversky,
    "lovasz": lovasz,
    "logit-adjusted": logit_adjusted,
    "symmetric": symmetric,
    "bootstrap-soft": bootstrap_soft,
    "bootstrap-hard": bootstrap_hard,
}
"""Losses by the names that the command line takes."""


def build_loss(text: str, class_counts: Sequence[float] | None = None, classes: int = 13) -> Loss:
    """The loss that `text` describes, for ``model.compile``.

    Parameters
    ----------
    text
        A weighted sum of `LOSSES` with parameters: ``ce``, ``ce+0.5*dice``, ``focal(gamma=1.5)``,
        ``ce(weights=effective,beta=0.999)+0.3*lovasz``.
    class_counts
        Labelled training pixels of each class; for a single class (sigmoid) of the rest and the class.
        Needed by class weights and logit adjustment.
    classes
        Outputs of the network; with 1 (sigmoid) labels are 1 for the class and 0 for the rest.

    Returns
    -------
    callable
        (labels integer (n, y, x), 0..C-1 and 255 = ignore; activations float32 (n, y, x, class)) to a
        scalar, 0 where no pixel is labelled.

    Raises
    ------
    InputError
        If the text can't be understood, or class counts are needed and not given or do not fit.
    """
    terms = [(factor, LOSSES[name], parameters) for factor, name, parameters in _parse(text)]
    columns = max(classes, 2)
    counts = None if class_counts is None else np.asarray(class_counts, "float64")
    if counts is not None and counts.shape != (columns,):
        raise InputError(
            f"cannot build the loss '{text}', since there are {counts.size} class counts, expected {columns}",
            "Give one count for each class; for a single class those of the rest and of the class.",
        )
    for _, function, parameters in terms:
        if function is logit_adjusted or parameters.get("weights", "none") != "none":
            _required(counts, text)

    def loss(labels: Any, activations: Any) -> Any:
        batch = _as_pixels(labels, activations, classes, counts)
        return sum((factor * function(batch, **parameters) for factor, function, parameters in terms), 0.0)

    return loss


def _as_pixels(labels: Any, activations: Any, classes: int, counts: np.ndarray | None) -> _Batch:
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    p = ops.reshape(ops.cast(activations, "float32"), (-1, classes))
    if classes == 1:
        p = ops.concatenate([1 - p, p], axis=-1)
    known = ops.cast(ops.not_equal(labels, IGNORE), "float32")
    first = ops.where(ops.equal(labels, IGNORE), 0, labels)
    q = ops.one_hot(first, max(classes, 2), dtype="float32") * known[:, None]
    return _Batch(p, q, known, int(classes == 1), counts)


_TERM = re.compile(
    r"\s*(?:(?P<factor>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*\*\s*)?"
    r"(?P<name>[a-z][a-z-]*)\s*(?:\((?P<parameters>[^()]*)\))?\s*"
)


def _parse(text: str) -> list[tuple[float, str, dict[str, Any]]]:
    """Factor, name and parameters of each term."""
    terms: list[tuple[float, str, dict[str, Any]]] = []
    position = 0
    while not terms or position < len(text):
        match = _TERM.match(text, position)
        if match is None:
            raise _not_understood(text, f"'{text[position:] or text}' is no term")
        if match["name"] not in LOSSES:
            raise _not_understood(text, f"there is no loss '{match['name']}'")
        parameters = _parse_parameters(text, match["name"], match["parameters"] or "")
        terms.append((float(match["factor"] or 1), match["name"], parameters))
        position = match.end()
        if position < len(text):
            if text[position] != "+" or position + 1 == len(text):
                raise _not_understood(text, f"'{text[position:]}' does not continue a sum")
            position += 1
    return terms


_RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("ce", "beta"): (0, 1),
    ("ce", "smoothing"): (0, 1),
    ("focal", "beta"): (0, 1),
    ("focal-tversky", "gamma"): (0.01, 100),
    ("symmetric", "floor"): (-1000, 0),
    ("bootstrap-soft", "beta"): (0, 1),
    ("bootstrap-hard", "beta"): (0, 1),
}
"""Least value of a parameter, and the value that it stays below, where that is not 0 and 1000."""


def _parse_parameters(text: str, name: str, listed: str) -> dict[str, Any]:
    known = {
        p.name: p.default
        for p in inspect.signature(LOSSES[name]).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    parameters: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in listed.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in known or not equals:
            raise _not_understood(text, f"{name} has no parameter '{item}', but {', '.join(known) or 'none'}")
        if key == "weights":
            if value not in WEIGHTINGS:
                raise _not_understood(text, f"weights is '{value}', expected {', '.join(WEIGHTINGS)}")
            parameters[key] = value
            continue
        least, below = _RANGES.get((name, key), (0, 1000))
        try:
            parameters[key] = float(value)
        except ValueError:
            parameters[key] = math.nan
        if not least <= parameters[key] < below:
            raise _not_understood(
                text, f"{key} of {name} is '{value}', expected a number from {least} to below {below}"
            )
    return parameters


def _not_understood(text: str, reason: str) -> InputError:
    return InputError(
        f"cannot use the loss '{text}', since {reason}",
        f"Give a weighted sum of {', '.join(LOSSES)}, e.g. ce+0.5*dice or focal(gamma=2)+0.3*lovasz.",
    )


def _required(counts: np.ndarray | None, what: str) -> np.ndarray:
    if counts is None:
        raise InputError(
            f"cannot use the loss '{what}', since the class counts of the training data are not known",
            "Prepare the data with preprocess.py, or take a loss without class weights.",
        )
    return counts


def _at_least_0(x: Any) -> Any:
    # A power of 0 has no finite slope where gamma < 1.
    return ops.maximum(x, SMALLEST)
