"""The five SYKE spectral indices as formulas, and how they are coded.

References
----------
SYKE, Sentinel-2 image index mosaics (S2ind), metadata at luontotieto.fi.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lulc.core.channels import SYKE_FORMULAS
from lulc.core.formula import parse
from lulc.core.schema import BANDS, INDICES

FORMULAS = {name: parse(text) for name, text in SYKE_FORMULAS.items()}


def needed_bands(indices: Sequence[str]) -> tuple[str, ...]:
    """Bands that the named indices are computed from, in stack order.

    Examples
    --------
    >>> needed_bands(["NDVI", "NDSI"])
    ('B03', 'B04', 'B08', 'B11')
    """
    wanted = {band for index in indices for band in FORMULAS[index].names}
    return tuple(band for band in BANDS if band in wanted)


def spectral_index(name: str, planes: Mapping[str, np.ndarray]) -> np.ndarray:
    """One index from reflectance planes.

    Parameters
    ----------
    name
        One of the SYKE indices. NDTI is the tillage index, not turbidity; NDBI lies in -2..2.
    planes
        Band name to float32 (y, x) reflectance, in any one unit.

    Returns
    -------
    float32 (y, x)
        NaN where a denominator is zero or an input is NaN; never infinite.
    """
    return FORMULAS[name].evaluate(planes)


def encode(index: np.ndarray) -> np.ndarray:
    """SYKE code of an index: 100 v + 100, clipped to 0..200, not rounded; NaN stays NaN.

    Parameters
    ----------
    index
        float32, any shape, -1..1 (values outside are clipped).

    Examples
    --------
    >>> encode(np.array([-2.0, -1.0, 0.125, 1.0])).tolist()
    [0.0, 0.0, 112.5, 200.0]
    """
    code = index * 100
    code += 100
    return np.clip(code, 0, 200, out=code)


def compute_indices(bands: np.ndarray, names: Sequence[str] = INDICES) -> np.ndarray:
    """All indices of a stack, coded.

    Parameters
    ----------
    bands
        float32 (y, x, 9) reflectance x 10000 in the order of `schema.BANDS`, NaN = no data.
    names
        Which indices, in the order wanted.

    Returns
    -------
    float32 (y, x, index)
        SYKE codes 0..200, NaN where a band is missing or a denominator is zero.
    """
    planes = {band: bands[..., i] for i, band in enumerate(BANDS)}
    return np.stack([encode(spectral_index(name, planes)) for name in names], axis=-1)
