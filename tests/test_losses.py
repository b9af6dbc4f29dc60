"""Each loss is its paper's formula, and ignored pixels change nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lulc.core.schema import IGNORE, InputError
from lulc.models import backend
from lulc.models.backend import keras
from lulc.training.losses import LOSSES, build_loss, class_weights

COUNTS = [500.0, 40.0, 3.0]

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


def over_classes(value: Callable[[float, float, float], float]) -> Reference:
    """Mean over present classes of a function of soft true positives, false positives, false negatives."""

    def reference(labels: np.ndarray, p: np.ndarray) -> float:
        scores = []
        for c in range(3):
            tp = sum(row[c] for y, row in pixels(labels, p) if y == c)
            fp = sum(row[c] for y, row in pixels(labels, p) if y != c)
            fn = sum(1 - row[c] for y, row in pixels(labels, p) if y == c)
            if any(y == c for y, _ in pixels(labels, p)):
                scores.append(value(tp, fp, fn))
        return float(np.mean(scores))

    return reference


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """Jaccard loss of a prediction that errs at the pixels `wrong` (Berman et al. 2018, eq. 6)."""
    return len(wrong) / len(truth | wrong) if truth | wrong else 0.0


def lovasz_by_definition(labels: np.ndarray, p: np.ndarray) -> float:
    """Choquet integral of the set function above: eq. 8, on sets instead of sums."""
    known = pixels(labels, p)
    scores = []
    for c in {y for y, _ in known}:
        errors = [1 - row[c] if y == c else row[c] for y, row in known]
        truth = {i for i, (y, _) in enumerate(known) if y == c}
        order = np.argsort(errors)[::-1]
        value, wrong = 0.0, set()
        for i in order:
            before = jaccard_loss(wrong, truth)
            wrong = wrong | {int(i)}
            value += errors[i] * (jaccard_loss(wrong, truth) - before)
        scores.append(value)
    return float(np.mean(scores))


def adjusted(c: int, row: np.ndarray) -> float:
    logits = np.log(row) + 1.5 * np.log(np.array(COUNTS) / np.sum(COUNTS))
    return -float(logits[c] - np.log(np.exp(logits).sum()))


def ce(c: int, row: np.ndarray) -> float:
    return -float(np.log(row[c]))


REFERENCES: dict[str, Reference] = {
    "ce": mean_over_pixels(ce),
    "ce(weights=inverse)": weighted(lambda n: 1 / n, ce),
    "ce(weights=sqrt)": weighted(lambda n: n**-0.5, ce),
    "ce(weights=effective,beta=0.99)": weighted(lambda n: 0.01 / (1 - 0.99**n), ce),
    "ce(smoothing=0.2)": mean_over_pixels(lambda c, row: 0.8 * ce(c, row) - 0.2 / 3 * np.log(row).sum()),
    "focal(gamma=2)": mean_over_pixels(lambda c, row: (1 - row[c]) ** 2 * ce(c, row)),
    "focal(gamma=0)": mean_over_pixels(ce),
    "dice(smooth=0)": over_classes(lambda tp, fp, fn: 1 - 2 * tp / (2 * tp + fp + fn)),
    "tversky(alpha=0.2,beta=0.8,smooth=0)": over_classes(
        lambda tp, fp, fn: 1 - tp / (tp + 0.2 * fp + 0.8 * fn)
    ),
    "focal-tversky(alpha=0.3,beta=0.7,gamma=2,smooth=0)": over_classes(
        lambda tp, fp, fn: (1 - tp / (tp + 0.3 * fp + 0.7 * fn)) ** 0.5
    ),
    "lovasz": lovasz_by_definition,
    "logit-adjusted(tau=1.5)": mean_over_pixels(adjusted),
    "symmetric(alpha=0.5,beta=2)": mean_over_pixels(lambda c, row: 0.5 * ce(c, row) + 2 * 4 * (1 - row[c])),
    "bootstrap-soft(beta=0.9)": mean_over_pixels(
        lambda c, row: 0.9 * ce(c, row) - 0.1 * (row * np.log(row)).sum()
    ),
    "bootstrap-hard(beta=0.7)": mean_over_pixels(
        lambda c, row: 0.7 * ce(c, row) - 0.3 * float(np.log(row.max()))
    ),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_a_loss_is_the_formula_of_its_paper(text: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    assert evaluate(text, *batch) == pytest.approx(REFERENCES[text](*batch), rel=1e-5)


def test_every_loss_has_a_reference() -> None:
    assert {text.partition("(")[0] for text in REFERENCES} == set(LOSSES)


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
    if name != "logit-adjusted":
        assert evaluate(name, labels, perfect) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_costs_nothing(name: str, batch: tuple[np.ndarray, np.ndarray]) -> None:
    assert evaluate(name, np.full_like(batch[0], IGNORE), batch[1]) == 0


def test_a_sum_is_the_weighted_sum_of_its_terms(batch: tuple[np.ndarray, np.ndarray]) -> None:
    parts = evaluate("ce", *batch), evaluate("dice", *batch), evaluate("focal(gamma=1)", *batch)
    total = evaluate(" ce + 0.5*dice+2e-1 * focal( gamma = 1 )", *batch)
    assert total == pytest.approx(parts[0] + 0.5 * parts[1] + 0.2 * parts[2], rel=1e-6)


def test_a_single_class_is_binary_cross_entropy(batch: tuple[np.ndarray, np.ndarray]) -> None:
    labels = np.where(batch[0] == IGNORE, IGNORE, batch[0] == 1).astype("uint8")
    p = batch[1][..., :1]
    known = labels != IGNORE
    y, q = labels[known], p[known][:, 0]
    expected = -np.mean(y * np.log(q) + (1 - y) * np.log(1 - q))
    assert evaluate("ce", labels, p, 1) == pytest.approx(expected, rel=1e-5)
    # Keras hands a single channel on without its last axis.
    assert evaluate("ce", labels, p[..., 0], 1) == pytest.approx(expected, rel=1e-5)
    overlap = 1 - 2 * (y * q).sum() / (y.sum() + q.sum())
    assert evaluate("dice(smooth=0)", labels, p, 1) == pytest.approx(overlap, rel=1e-5)


@pytest.mark.parametrize("weighting", ["inverse", "sqrt", "effective"])
def test_rare_classes_weigh_more_and_absent_ones_nothing(weighting: str) -> None:
    weights = class_weights([1e6, 1e3, 10, 0], weighting)
    assert weights[0] < weights[1] < weights[2] and weights[3] == 0
    assert weights.sum() == pytest.approx(4)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no term"),
        ("cross", "no loss 'cross'"),
        ("ce+", "does not continue"),
        ("ce dice", "continue"),
        ("ce-dice", "no loss"),
        ("2ce", "no term"),
        ("focal(alpha=1)", "no parameter"),
        ("focal(gamma)", "no parameter"),
        ("focal(gamma=x)", "expected a number"),
        ("focal(gamma=inf)", "number"),
        ("ce(weights=magic)", "expected none"),
        ("focal(gamma=-1)", "expected"),
        ("dice*0.5", "continue"),
        ("ce(smoothing=1)", "expected"),
        ("ce(weights=effective,beta=1)", "expected"),
        ("focal-tversky(gamma=0)", "expected"),
        ("__import__('os')", "no term"),
        ("ce(weights=inverse", "continue"),
    ],
)
def test_what_is_no_loss_is_answered_with_the_losses(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        build_loss(text, COUNTS, 3)
    assert "lovasz" in str(caught.value)


def test_class_counts_are_asked_for_where_they_are_needed() -> None:
    for text in ("ce(weights=sqrt)", "logit-adjusted", "dice+focal(weights=inverse)"):
        with pytest.raises(InputError, match="class counts"):
            build_loss(text, None, 3)
    with pytest.raises(InputError, match="expected 3"):
        build_loss("ce", [1, 2], 3)
    build_loss("ce+dice", None, 3)
