"""Calibration: the temperature that was hidden in the data is found, and applied as the maps apply it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from lulc.models import calibration
from lulc.models.calibration import PIXELS, Holdout, calibrate, fit_temperature


def draw(temperature, classes=5, pixels=40_000, seed=0):
    """Activations, and labels drawn from the same logits at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (pixels, classes))
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    truth = calibrate(p[None].astype(np.float32), temperature)[0].astype(float)
    truth /= truth.sum(1, keepdims=True)
    labels = (rng.random((pixels, 1)) > truth.cumsum(1)).sum(1).clip(0, classes - 1)
    return p.astype(np.float32), labels.astype(np.uint8)


def nll(p, labels):
    return -np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-9)).mean()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_data_is_found(temperature):
    assert fit_temperature(*draw(temperature)) == pytest.approx(temperature, rel=0.04)


def test_it_is_the_minimum_of_the_likelihood_as_maps_are_calibrated():
    p, labels = draw(1.7, pixels=5000, seed=1)

    def loss(t):
        return nll(calibrate(p[None], float(t))[0], labels)

    other = optimize.minimize_scalar(loss, bounds=(0.2, 10), method="bounded").x
    assert fit_temperature(p, labels) == pytest.approx(other, rel=0.01)


def test_temperatures_of_classes_fit_better_and_are_found():
    hidden = (1.0, 1.5, 2.0, 0.8, 1.2)
    p, labels = draw(hidden, seed=2)
    found = fit_temperature(p, labels, per_class=True)
    np.testing.assert_allclose(found, hidden, rtol=0.08)
    assert nll(calibrate(p[None], found)[0], labels) < nll(
        calibrate(p[None], fit_temperature(p, labels))[0], labels
    )


def test_classes_do_not_change_with_one_temperature():
    p, labels = draw(2.0, pixels=500)
    assert (calibrate(p[None], fit_temperature(p, labels))[0].argmax(1) == p.argmax(1)).all()


@pytest.mark.parametrize("temperature", [1, 1.0, (1.0, 1.0, 1.0)])
def test_a_temperature_of_one_costs_nothing(temperature):
    p = np.full((2, 2, 3), 1 / 3, np.float32)
    assert calibrate(p, temperature) is p


def test_one_class_against_the_rest_has_one_temperature():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, 40_000)
    labels = (rng.random(logits.size) < 1 / (1 + np.exp(-logits / 2))).astype(np.uint8)
    p = (1 / (1 + np.exp(-logits)))[:, None].astype(np.float32)
    for per_class in (False, True):
        assert fit_temperature(p, labels, per_class=per_class) == pytest.approx(2.0, rel=0.05)


def test_a_network_that_never_errs_gets_the_smallest_temperature_and_nothing_overflows():
    p = np.tile(np.float32([[1.0, 0.0], [0.0, 1.0]]), (50, 1))
    right = np.tile(np.uint8([0, 1]), 50)
    assert np.isfinite(fit_temperature(p, right))
    assert fit_temperature(p, 1 - right) == pytest.approx(20.0)


def test_a_holdout_thins_out_and_leaves_ignored_pixels_out():
    holdout = Holdout(batches=PIXELS // 100)
    p = np.zeros((2, 30, 30, 3), np.float32)
    labels = np.full((2, 30, 30), 255, np.uint8)
    holdout.add(p, labels)
    assert holdout.fit() == 1.0
    labels[0] = 1
    holdout.add(p, labels)
    activations, kept = holdout.pixels()
    assert 80 < len(kept) <= 100 and (kept == 1).all() and activations.shape == (len(kept), 3)


@pytest.mark.parametrize("temperature", [0.4, 3.0, (0.5, 1.0, 2.0, 20.0, 0.3)])
@pytest.mark.parametrize("shape", [(37, 20, 5), (2, 37, 20, 5), (300, 5), (0, 20, 5)])
def test_activations_are_calibrated_piece_by_piece_as_at_once(monkeypatch, shape, temperature):
    p = np.random.default_rng(3).dirichlet(np.full(5, 0.2), shape[:-1]).astype(np.float32)
    p[..., 1] = 0
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-6)
    powers = p.astype(np.float64) ** (1 / np.asarray(temperature))
    expected = powers / powers.sum(-1, keepdims=True)
    monkeypatch.setattr(calibration, "AT_ONCE", 700)
    for given in (p, np.moveaxis(np.ascontiguousarray(np.moveaxis(p, -1, 0)), 0, -1)):
        found = calibrate(given, temperature)
        assert found.dtype == np.float32 and found.strides == given.strides
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        assert (found[..., 1] == 0).all()
