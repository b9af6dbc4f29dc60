"""The five SYKE spectral indices and their coding.

References
----------
SYKE, Sentinel-2 image index mosaics (S2ind), metadata at luontotieto.fi.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lulc.core.channels import SYKE_FORMULAS
from lulc.core.formula import parse
from lulc.core.schema import BANDS, INDICES


def encode(index: np.ndarray) -> np.ndarray:
    """Return the SYKE code of an index float32: 100 v + 100, clipped to 0..200, not rounded; NaN stays NaN.

    Examples
    --------
    >>> encode(np.array([-2.0, -1.0, 0.125, 1.0])).tolist()
    [0.0, 0.0, 112.5, 200.0]
    """
    code = index * 100
    code += 100
    return np.clip(code, 0, 200, out=code)


def compute_indices(bands: np.ndarray, names: Sequence[str] = INDICES) -> np.ndarray:
    """Return the SYKE codes of indices: float32 (y, x, index), 0..200, NaN where a band is missing or a
    denominator is 0. `bands` are float32 (y, x, 9), reflectance x 10000 in the order of `schema.BANDS`, NaN =
    no data.
    """
    planes = {band: bands[..., i] for i, band in enumerate(BANDS)}
    return np.stack([encode(parse(SYKE_FORMULAS[name]).evaluate(planes)) for name in names], axis=-1)
