"""Masks of valid pixels: cloud mask or scene classification, bounds, and polygons."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lulc.config import MaskConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import NO_CODE, InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.rasters.codes import SingleLayer
from lulc.rasters.layers import Source
from lulc.rasters.products import SCL_VALUES
from lulc.rasters.sources import open_source

if TYPE_CHECKING:
    from lulc.rasters.vectors import VectorCodes

logger = logging.getLogger("lulc")

_SAMPLE_SIDE = 256

_UNCOVERED = "the mask '%s' does not cover the bands; pixels beyond it are kept"

_LEFT_OUT = {False: "left_out", True: "left_out_bits"}
"""Key of the values in what manifests say of a mask, by ``--mask-bits``."""

_EDGE = 0.01
"""Share of pixels beyond a mask up to which its border is that of the bands, but for the sides of pixels."""


class Bits(tuple[int, ...]):
    """Values of a mask that are bits, counted from 0: a pixel with any of them set is left out."""


_BITS = range(31)
"""Bits that a mask may have; `NO_CODE` has none of them."""


def masked_out(config: MaskConfig) -> tuple[int, ...]:
    """Return the values of ``--mask-values``, as `Bits` where ``--mask-bits`` says so.

    Raises InputError if bits are asked for without a mask or their numbers, or a mask has no such bit.
    """
    if not config.mask_bits:
        return config.mask_values
    if not (config.mask and config.mask_values and set(config.mask_values) <= set(_BITS)):
        found = " ".join(map(str, config.mask_values)) or "not given"
        raise InputError(
            f"cannot use --mask-bits, since --mask is {'given' if config.mask else 'not given'} and "
            f"--mask-values {found}, expected a raster and its bits from 0 to {_BITS[-1]}",
            "Type --mask QA_PIXEL.TIF --mask-values 1 2 3 4 --mask-bits, or leave --mask-bits out.",
        )
    return Bits(config.mask_values)


class ValueMask:
    """A raster of whole numbers, some of which leave a pixel out; read by nearest neighbour.

    Raises InputError if the raster has several layers or fractions, lies elsewhere, or its values are not
    clear.

    Parameters
    ----------
    source
        Raster with one layer beside alpha, on any grid of the same CRS. A pixel that is missing in it is left
        out; a no-data value of 0 apart, which in masks means that nothing hides the ground.
    values
        Values, or `Bits`, to leave out; empty for a mask of 0 and 1, where 1 is left out.
    resample
        Admit another CRS.
    grow
        Pixels of `grid` around a pixel that is left out, which are left out as well.
    """

    def __init__(
        self, source: Source, grid: GridSpec, values: tuple[int, ...], *, resample: bool, grow: int = 0
    ) -> None:
        if source.grid.crs != grid.crs and not resample:
            raise InputError(
                f"cannot use the mask '{source.path}', since its grid is\n  {source.grid.describe()}\n"
                f"expected the CRS of\n  {grid.describe()}",
                "Add --resample to warp it (nearest neighbour).",
            )
        source.layers = tuple(
            dataclasses.replace(layer, missing=layer.missing.without(0.0)) for layer in source.layers
        )
        hint = "Give a cloud mask, or the scene classification (SCL) of the product."
        self._layer = SingleLayer(source, grid, "a mask", hint)
        self._covers = self._layer.alignment.covers()
        # The box of a warped scene holds more than the scene, see `warn_of_uncovered`.
        if self._layer.alignment.kind != "warped" and not self._covers:
            logger.warning(_UNCOVERED, source.path)
        self._binary = not values
        if self._binary:
            _check_binary(source.path, self._sample())
            logger.info("mask '%s': pixels of value 1 are left out, those of 0 kept", source.path)
        self.path, self.values = source.path, values or (1,)
        self._percent = {*range(100, 256)} <= {*values}
        self._grid, self._grow = grid, grow

    def warn_of_uncovered(self, known: Callable[[Window], np.ndarray]) -> None:
        """Warn where a warped mask does not reach samples of the pixels that are known, bool (y, x)."""
        if self._layer.alignment.kind != "warped" or self._covers:
            return
        pixels = beyond = 0
        for window in _samples_of(self._grid, 64):
            there = known(window)
            pixels += int(there.sum())
            beyond += int((there & ~self._layer.alignment.reaches(window)).sum())
        if beyond > _EDGE * pixels:
            logger.warning(_UNCOVERED, self.path)

    def read(self, window: Window) -> np.ndarray:
        """True where a pixel counts, bool (y, x)."""
        if not self._grow:
            return self._read(window)
        wide = window.grow(self._grow).intersect(self._grid.extent)
        far = cv2.distanceTransform(self._read(wide).astype("uint8"), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return np.asarray(far[window.relative_to(wide).slices] > self._grow)

    def _read(self, window: Window) -> np.ndarray:
        codes, inside = self._layer.codes(window)
        found = np.unique(codes)
        known = found[found != NO_CODE]
        if self._binary and not np.isin(known, (0, 1)).all():
            _check_binary(self._layer.source.path, known)
        if self._percent and not np.isin(known, (*range(101), 255)).all():
            raise InputError(
                f"cannot use the cloud probability '{self.path}', since it holds the value {known.max()}, "
                "expected percent, 0 to 100, or 255 for no data",
                "Convert it first: gdal_calc.py -A IN --calc 'A / 255.0 * 100' --type Byte --outfile OUT",
            )
        if isinstance(self.values, Bits):
            hidden = codes & sum(1 << bit for bit in self.values) != 0
        else:
            hidden = np.isin(codes, self.values)
        return np.asarray(~((hidden | (codes == NO_CODE)) & inside))

    def _sample(self) -> np.ndarray:
        windows = _samples_of(self._layer.source.grid, _SAMPLE_SIDE)
        return np.unique(np.concatenate([self._layer.values_in(window) for window in windows]))

    def identity(self) -> dict[str, Any]:
        return self._layer.identity()

    def reopen(self) -> ValueMask:
        again = copy.copy(self)
        again._layer = self._layer.reopen()
        return again

    def close(self) -> None:
        self._layer.close()


class Masks(Resource):
    """All that leaves pixels of a grid out; made by `open_masks`, closed as a context manager.

    Attributes
    ----------
    provenance
        JSON-ready: mask and its values, bounds, polygons.
    """

    def __init__(
        self,
        grid: GridSpec,
        masks: Sequence[ValueMask],
        bounds: tuple[float, float, float, float] | None,
        polygons: VectorCodes | None,
        provenance: dict[str, Any],
    ) -> None:
        self.grid = grid
        self.provenance = provenance
        self.masks = tuple(masks)
        self._bounds = bounds
        self._polygons = polygons

    def read(self, window: Window) -> np.ndarray | None:
        """True where a pixel counts, bool (y, x); None where all count, since there is no mask."""
        parts = []
        if self._bounds is not None:
            rows, cols = _inside_bounds(self.grid.crop(window), self._bounds)
            parts.append(rows[:, None] & cols)
        if self._polygons is not None:
            parts.append(self._polygons.read(window) == 1)
        # A mask need not be decoded where bounds and polygons leave nothing.
        for mask in self.masks:
            if not parts or np.logical_and.reduce(parts).any():
                parts.append(mask.read(window))
        return np.logical_and.reduce(parts) if parts else None

    def identity(self) -> list[dict[str, Any]]:
        return [part.identity() for part in (*self.masks, self._polygons) if part is not None]

    def reopen(self) -> Masks:
        masks = [mask.reopen() for mask in self.masks]
        return Masks(self.grid, masks, self._bounds, self._polygons, self.provenance)

    def close(self) -> None:
        for mask in self.masks:
            mask.close()


def _samples_of(grid: GridSpec, side: int) -> list[Window]:
    """Return windows at even distances, borders included."""
    starts = [sorted({i * max(0, n - side) // 3 for i in range(4)}) for n in grid.shape]
    return [Window(row, col, side, side).intersect(grid.extent) for row in starts[0] for col in starts[1]]


def none_one_or_many(values: Sequence[Any]) -> Any:
    """Return values as journals and maps hold those of ``--mask``: None, the only one, or all as a list."""
    return values[0] if len(values) == 1 else list(values) or None


def open_masks(
    config: MaskConfig, grid: GridSpec, *, classified: bool = False, paths: Sequence[str] | None = None
) -> Masks:
    """Open what the options ``--mask --mask-values --bounds --aoi`` name.

    Raises InputError if a file cannot be used, bounds or mask lie elsewhere, or there are mask values and no
    mask.

    Parameters
    ----------
    classified
        True where products bring a scene classification, which ``--mask-values`` may mean.
    paths
        Those of ``--mask`` that leave pixels out of all dates; all where None.
    """
    left_out = masked_out(config)
    if config.mask_values and not config.mask and not classified:
        values = " ".join(map(str, config.mask_values))
        raise InputError(
            f"cannot leave out the mask values {values}, since no --mask is given, expected the raster "
            "that holds them (only .SAFE folders of level 2A bring their own)",
            f"Type --mask RASTER --mask-values {values}, or leave --mask-values out.",
        )
    polygons = None
    provenance: dict[str, Any] = {"mask": None, "bounds": None, "aoi": None}
    if config.bounds is not None:
        _check_bounds(config.bounds, grid)
        provenance["bounds"] = list(config.bounds)
    if config.aoi is not None:
        # geopandas takes longer to import than most stacks to open.
        from lulc.rasters.vectors import VectorCodes

        polygons = VectorCodes(config.aoi, grid, presence=True)
        provenance["aoi"] = Path(config.aoi).name
    masks: list[ValueMask] = []
    with contextlib.ExitStack() as opened:
        for path in config.mask if paths is None else paths:
            source = opened.enter_context(
                open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
            )
            masks.append(ValueMask(source, grid, left_out, resample=config.resample, grow=config.grow_mask))
        opened.pop_all()
    said = [{"file": Path(m.path).name, _LEFT_OUT[config.mask_bits]: list(m.values)} for m in masks]
    provenance["mask"] = none_one_or_many(said)
    return Masks(grid, masks, config.bounds, polygons, provenance)


def _check_binary(path: str, values: np.ndarray) -> None:
    """Refuse values other than 0 and 1 where nothing says which to leave out."""
    if np.isin(values, (0, 1)).all():
        return
    shown = ", ".join(str(v) for v in values[:12]) + (", ..." if values.size > 12 else "")
    scene = values.max() <= 11
    suggestion = " ".join(map(str, SCL_VALUES)) if scene else str(values.max())
    meaning = (
        " (scene classification: no data, saturated, cloud shadows, clouds, cirrus)"
        if scene
        else ", or which bits, e.g. --mask-values 1 2 3 4 --mask-bits (of QA_PIXEL: clouds, cirrus, shadows)"
    )
    raise InputError(
        f"cannot use the mask '{path}', since it holds the values {shown}, "
        "expected only 0 and 1 where no values to leave out are given",
        f"Say which values to leave out, e.g. --mask-values {suggestion}{meaning}; make_mosaic.py calls the "
        "option --clouds",
    )


def _check_bounds(bounds: tuple[float, float, float, float], grid: GridSpec) -> None:
    left, bottom, right, top = bounds
    rows, cols = _inside_bounds(grid, bounds)
    if not (left < right and bottom < top and rows.any() and cols.any()):
        raise InputError(
            f"cannot use the bounds {' '.join(f'{v:.10g}' for v in bounds)}, since no pixel lies inside, "
            f"expected left bottom right top within {' '.join(f'{v:.10g}' for v in grid.bounds)}",
            f"Give them in the CRS of the bands: {grid.describe()}",
        )


def _inside_bounds(
    grid: GridSpec, bounds: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, bool (y,) and (x,), whose pixel centres lie inside."""
    left, bottom, right, top = bounds
    t = grid.transform
    x = t.c + t.a * (np.arange(grid.width) + 0.5)
    y = t.f + t.e * (np.arange(grid.height) + 0.5)
    return (y >= bottom) & (y <= top), (x >= left) & (x <= right)
