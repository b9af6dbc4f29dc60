"""Bands of a map from the framework are those that numpy computes."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.maps.blocks import ENCODINGS
from lulc.models.backend import compile_predict, keras
from lulc.models.calibration import calibrate
from lulc.models.finishing import Finish
from lulc.models.uncertainty import confidence, decide, with_measures

pytestmark = pytest.mark.integration


def bands_of(x: np.ndarray, finish: Finish) -> np.ndarray:
    """The bands that the framework computes where the input are the probabilities."""
    given = keras.Input((None, None, x.shape[-1]))
    model = keras.Model(given, keras.layers.Activation("linear")(given))
    return np.moveaxis(compile_predict(model, finish=finish)(x[np.newaxis])[0], -1, 0)


def finish_of(activations: str, temperature: float | tuple[float, ...], measures: tuple[str, ...]) -> Finish:
    encoding = ENCODINGS[activations]
    return Finish(
        temperature, 0.4, measures, encoding.dtype.name, encoding.nodata, encoding.steps,
        encoding.has_activations,
    )  # fmt: skip


def image_of(classes: int) -> np.ndarray:
    """Probabilities with ties, some of them 0 or 1, and pixels without data."""
    rng = np.random.default_rng(0)
    x = rng.dirichlet([0.3] * classes, (40, 50)) if classes > 1 else rng.random((40, 50, 1))
    x[:3], x[3, :7, 0] = 1 / classes, 0.5
    x[4] = np.eye(classes)[0]
    x[rng.random((40, 50)) < 0.1] = np.nan
    return x.astype(np.float32)


@pytest.mark.parametrize("activations", ENCODINGS)
@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("temperature", ["none", "one", "per class"])
def test_the_framework_gives_the_bands_that_numpy_gives(
    activations: str, classes: int, temperature: str
) -> None:
    x = image_of(classes)
    choices = {"none": 1.0, "one": 1.7, "per class": tuple(np.linspace(0.8, 1.9, classes))}
    found = bands_of(x, finish_of(activations, choices[temperature], ("entropy", "margin")))
    valid = ~np.isnan(x).any(-1)
    p = calibrate(np.where(valid[..., None], x, np.float32(1 / classes)), choices[temperature])
    numbers = decide(p) + np.uint8(classes > 1)
    numbers[confidence(p) < 0.4] = 0
    encoding = ENCODINGS[activations]
    expected = encoding.apply(numbers, with_measures(p, ("entropy", "margin")), valid)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if temperature == "none":
        np.testing.assert_array_equal(found[: 1 + classes], expected[: 1 + classes])
    np.testing.assert_array_equal(found[0], expected[0])
    tolerance = 1e-5 if encoding.dtype.kind == "f" else 1
    np.testing.assert_allclose(found.astype("f8"), expected.astype("f8"), atol=tolerance)


@pytest.mark.parametrize("activations", ENCODINGS)
def test_a_pixel_that_is_not_finite_has_no_data(activations: str) -> None:
    x = image_of(5)
    x[20, 20, 3], x[21, 21] = np.nan, np.inf
    found = bands_of(x, finish_of(activations, 1.0, ()))
    assert (found[:, [20, 21], [20, 21]] == ENCODINGS[activations].nodata).all()
