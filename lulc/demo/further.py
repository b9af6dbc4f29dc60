"""Further rasters of the simulated scene: a third date, radar and terrain. Nothing in them was measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from lulc.core.schema import BANDS
from lulc.core.storage import write_atomically
from lulc.demo.landscape import Scene, smooth_field, write_raster

_LOOKS = 16
"""Averaged looks; the standard deviation of speckle is 1 / sqrt(looks) of the power."""

_BACKSCATTER = (
    (-8.0, -14.5), (-5.0, -12.5), (-11.5, -19.5), (-12.0, -18.5), (-11.0, -17.5), (-10.0, -15.0),
    (-9.5, -15.5), (-9.0, -15.0), (-9.5, -15.0), (-10.5, -16.5), (-11.5, -18.0), (-13.0, -21.0),
    (-20.0, -27.0),
)  # fmt: skip
"""VV and VH of classes 1..13 in dB, similar to C-band images of boreal land."""

_RELIEF = ((120.0, 18.0), (25.0, 4.0))
"""Correlation length in pixels and standard deviation in metres of the hills."""


def write_further(scene: Scene, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write autumn.tif, sentinel1.tif (VV and VH, linear power) and elevation.tif (20 m pixels) of a scene.

    Equal scenes give equal files.

    Returns
    -------
    dict
        Path of each file by name.
    """
    autumn, radar, relief = np.random.default_rng([scene.seed, 2]).spawn(3)
    elevation = _elevation(scene, relief)
    contents: Sequence[tuple[str, NDArray[np.generic], tuple[str, ...], float, int]] = (
        ("autumn", _autumn(scene, autumn), BANDS, 0, 1),
        ("sentinel1", _power(scene, radar), ("VV", "VH"), 0, 1),
        ("elevation", elevation[::2, ::2, np.newaxis], ("elevation",), -9999, 2),
    )
    paths = {}
    for name, image, names, nodata, step in contents:
        paths[name] = Path(folder) / f"{name}.tif"
        with write_atomically(paths[name]) as temporary:
            transform = scene.grid.transform @ Affine.scale(step)
            write_raster(temporary, image, scene, names, "further", nodata=nodata, transform=transform)
    return paths


def _autumn(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return reflectance x 10000 between that of summer and of spring; no data where either has none."""
    summer, spring = scene.summer.astype(np.float32), scene.spring.astype(np.float32)
    image = 0.4 * summer + 0.6 * spring
    image *= 1 + 0.04 * rng.standard_normal(image.shape, dtype=np.float32)
    digits = np.clip(np.rint(image), 1, 65535).astype(np.uint16)
    digits[(summer == 0).any(axis=-1) | (spring == 0).any(axis=-1)] = 0
    return digits


def _power(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the linear power of VV and VH (y, x, 2) with speckle."""
    decibel = np.array(_BACKSCATTER, np.float32)[scene.truth.astype(np.intp) - 1]
    decibel += 0.8 * smooth_field(scene.grid.shape, 8, rng)[..., np.newaxis]
    speckle = rng.gamma(_LOOKS, 1 / _LOOKS, decibel.shape)
    return np.asarray(10 ** (decibel / 10) * speckle, np.float32)


def _elevation(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the elevation in metres (y, x): hills, and level water below them."""
    hills = [height * smooth_field(scene.grid.shape, length, rng) for length, height in _RELIEF]
    land = 110 + np.add.reduce(hills)
    return np.asarray(np.where(scene.truth == 13, 78.0, np.maximum(land, 78.5)), np.float32)
