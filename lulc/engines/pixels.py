"""Models of single pixels as an engine, computed in numpy strip by strip."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lulc.core.machine import cores
from lulc.core.statistics import valid_pixels
from lulc.models.card import ModelCard
from lulc.models.config import PixelConfig
from lulc.models.pixel_model import PixelModel, read_pixel_model, texture_features

ROWS = 64
"""Rows of a strip, so that the memory of features does not depend on the window."""


def open_pixel_model(path: Path, card: ModelCard) -> Callable[[np.ndarray], np.ndarray]:
    """Return the model of a file as a function from float32 (n, y, x, band) to float32 (n, y, x, class).

    Raises InputError if the file is refused.
    """
    model = read_pixel_model(path, card)

    def predict(x: np.ndarray) -> np.ndarray:
        y = np.empty((*x.shape[:3], card.network.classes), np.float32)
        tops = [(n, top) for n in range(len(x)) for top in range(0, x.shape[1], ROWS)]
        with ThreadPoolExecutor(cores()) as pool:
            strips = pool.map(lambda strip: predict_strip(model, card, x[strip[0]], strip[1]), tops)
            for (n, top), strip in zip(tops, strips, strict=True):
                y[n, top : top + ROWS] = strip
        return y

    return predict


def predict_strip(model: PixelModel, card: ModelCard, x: np.ndarray, top: int) -> np.ndarray:
    """Return the probabilities of `ROWS` rows of an image float32 (y, x, band), as float32 (y, x, class).

    Invalid pixels get equal probabilities, since the calibration divides by their sum.
    """
    assert isinstance(card.network, PixelConfig)
    reach = max(card.network.radii, default=0)
    first = max(top - reach, 0)
    rows = x[np.newaxis, first : top + ROWS + reach]
    features = texture_features(rows, card.statistics, card.network.radii)[0, top - first :][:ROWS]
    valid = valid_pixels(x[top : top + ROWS])
    probabilities = np.full((*valid.shape, card.network.classes), 1 / card.network.classes, np.float32)
    probabilities[valid] = model.predict(features[valid])
    return probabilities
