"""Each loss is its paper's formula, and ignored pixels change nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lulc.core.schema import IGNORE, InputError
from lulc.models import backend
from lulc.models.backend import keras
from lulc.training.losses import build_loss, class_weights

pytestmark = pytest.mark.integration

COUNTS = [500.0, 40.0, 3.0]

LOSSES = ("ce", "ce(weights=inverse)", "ce( weights = sqrt )", "logit-adjusted", "logit-adjusted(tau=0.65)")

Reference = Callable[[np.ndarray, np.ndarray], float]


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 5, 6, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = rng.integers(0, 3, (2, 5, 6)).astype("uint8")
    labels[rng.random(labels.shape) < 0.3] = IGNORE
    return labels, p.astype("float32")


def evaluate(text: str, labels: np.ndarray, p: np.ndarray, classes: int = 3) -> float:
    counts = COUNTS[: max(classes, 2)]
    loss = build_loss(text, counts, classes)
    value = loss(keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(p))
    return float(keras.ops.convert_to_numpy(value))


def pixels(labels: np.ndarray, p: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Labelled pixels one by one, in float64: what every reference below loops over."""
    return [(int(c), p[i].astype("float64")) for i, c in np.ndenumerate(labels) if c != IGNORE]


def mean_over_pixels(value: Callable[[int, np.ndarray], float]) -> Reference:
    def reference(labels: np.ndarray, p: np.ndarray) -> float:
        return float(np.mean([value(c, row) for c, row in pixels(labels, p)]))

    return reference


def weighted(weight: Callable[[float], float], value: Callable[[int, np.ndarray], float]) -> Reference:
    def reference(labels: np.ndarray, p: np.ndarray) -> float:
        weights = [weight(COUNTS[c]) for c, _ in pixels(labels, p)]
        return float(np.average([value(c, row) for c, row in pixels(labels, p)], weights=weights))

    return reference


def adjusted(c: int, row: np.ndarray) -> float:
    logits = np.log(row) + 1.5 * np.log(np.array(COUNTS) / np.sum(COUNTS))
    return -float(logits[c] - np.log(np.exp(logits).sum()))


def ce(c: int, row: np.ndarray) -> float:
    return -float(np.log(row[c]))


REFERENCES: dict[str, Reference] = {
    "ce": mean_over_pixels(ce),
    "ce(weights=inverse)": weighted(lambda n: 1 / n, ce),
    "ce(weights=sqrt)": weighted(lambda n: n**-0.5, ce),
    "logit-adjusted(tau=1.5)": mean_over_pixels(adjusted),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_a_loss_is_the_formula_of_its_paper(text: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    assert evaluate(text, *batch) == pytest.approx(REFERENCES[text](*batch), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_nothing(name: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    labels, p = batch
    other = p.copy()
    other[labels == IGNORE] = [0.0, 1.0, 0.0]
    alone = labels[labels != IGNORE].reshape(1, 1, -1), p[labels != IGNORE].reshape(1, 1, -1, 3)
    assert evaluate(name, labels, other) == pytest.approx(evaluate(name, labels, p), rel=1e-6)
    assert evaluate(name, *alone) == pytest.approx(evaluate(name, labels, p), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_get_no_gradient_and_labelled_ones_do(
    name: str, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    labels, p = batch
    gradient = gradient_of(build_loss(name, COUNTS, 3), labels, p)
    assert np.isfinite(gradient).all()
    assert (gradient[labels == IGNORE] == 0).all()
    assert (np.abs(gradient[labels != IGNORE]).max(-1) > 0).mean() > 0.9


@pytest.mark.parametrize("name", LOSSES)
def test_saturated_activations_give_finite_gradients(name: str) -> None:
    labels = np.array([[[0, 1, IGNORE, 2]]], "uint8")
    right = np.eye(3, dtype="float32")[[0, 1, 0, 2]].reshape(1, 1, 4, 3)
    for p in (right, right[..., ::-1]):
        assert np.isfinite(evaluate(name, labels, p))
        assert np.isfinite(gradient_of(build_loss(name, COUNTS, 3), labels, p)).all()


def gradient_of(loss: Callable, labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    if backend.name() != "tensorflow":
        pytest.skip("the gradient is taken with TensorFlow; test_backends trains on the others")
    import tensorflow

    x = tensorflow.constant(p)
    with tensorflow.GradientTape() as tape:
        tape.watch(x)
        value = loss(tensorflow.constant(labels), x)
    return np.asarray(tape.gradient(value, x))


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_map_scores_best(name: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    labels, p = batch
    perfect = 0.9998 * np.eye(3, dtype="float32")[np.where(labels == IGNORE, 0, labels)] + 0.0002 / 3
    assert evaluate(name, labels, perfect) < evaluate(name, labels, p)
    if name.startswith("ce"):
        assert evaluate(name, labels, perfect) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_costs_nothing(name: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    assert evaluate(name, np.full_like(batch[0], IGNORE), batch[1]) == 0


def test_a_single_class_is_binary_cross_entropy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    labels = np.where(batch[0] == IGNORE, IGNORE, batch[0] == 1).astype("uint8")
    p = batch[1][..., :1]
    known = labels != IGNORE
    y, q = labels[known], p[known][:, 0]
    expected = -np.mean(y * np.log(q) + (1 - y) * np.log(1 - q))
    assert evaluate("ce", labels, p, 1) == pytest.approx(expected, rel=1e-5)
    # Keras hands a single channel on without its last axis.
    assert evaluate("ce", labels, p[..., 0], 1) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weighting", ["inverse", "sqrt"])
def test_rare_classes_weigh_more_and_absent_ones_nothing(weighting: str) -> None:
    weights = class_weights([1e6, 1e3, 10, 0], weighting)
    assert weights[0] < weights[1] < weights[2] and weights[3] == 0
    assert weights.sum() == pytest.approx(4)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "neither a loss"),
        ("cross", "neither a loss"),
        ("ce+logit-adjusted", "neither a loss"),
        ("2ce", "neither a loss"),
        ("ce(tau=1)", "ce has no parameter 'tau', but weights"),
        ("logit-adjusted(weights=sqrt)", "no parameter 'weights', but tau"),
        ("logit-adjusted(tau)", "neither a loss"),
        ("logit-adjusted(tau=x)", "expected a number"),
        ("logit-adjusted(tau=inf)", "expected a number"),
        ("logit-adjusted(tau=-1)", "expected a number"),
        ("logit-adjusted(tau=nan)", "expected a number"),
        ("ce(weights=magic)", "expected none, inverse, sqrt"),
        ("__import__('os')", "neither a loss"),
        ("ce(weights=inverse", "neither a loss"),
    ],
)
def test_what_is_no_loss_is_answered_with_the_losses(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        build_loss(text, COUNTS, 3)
    assert "ce(weights=sqrt) or logit-adjusted(tau=0.65)" in str(caught.value)


def test_class_counts_are_asked_for_where_they_are_needed() -> None:
    for text in ("ce(weights=sqrt)", "logit-adjusted"):
        with pytest.raises(InputError, match="class counts"):
            build_loss(text, None, 3)
    with pytest.raises(InputError, match="expected 3"):
        build_loss("ce", [1, 2], 3)
    build_loss("ce", None, 3)
