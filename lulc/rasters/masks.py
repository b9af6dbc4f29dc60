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

_UNCOVERED = "the mask '%s' does not cover the bands; pixels beyond it are kept"

_EDGE = 0.01
"""Fraction of pixels beyond a mask that is tolerated, since the borders of warped rasters differ by pixels.
"""


class Bits(tuple[int, ...]):
    """Bits of a mask, counted from 0: a pixel with any of them set is masked."""


_BITS = range(31)
"""Bits that a mask may have; none of them is set in `NO_CODE`."""


def masked_out(config: MaskConfig) -> tuple[int, ...]:
    """Return the values of ``--mask-values``, as `Bits` with ``--mask-bits``.

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
    """A raster of whole numbers, some of which mask a pixel; read by nearest neighbour.

    A pixel that is missing in it is masked too, unless its no-data value is 0, which in masks means a clear
    view of the ground. Raises InputError if the raster has several layers or fractions, lies elsewhere, or
    its values are not clear.

    Parameters
    ----------
    source
        Raster with one layer beside alpha, on any grid of the same CRS.
    values
        Masked values or `Bits`; empty for a mask of 0 and 1, where 1 is masked.
    resample
        Allow another CRS.
    grow
        Distance in pixels of `grid` up to which the neighbours of a masked pixel are masked too.
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
        # The box around a warped scene is larger than the scene, see `warn_of_uncovered`.
        if self._layer.alignment.kind != "warped" and not self._covers:
            logger.warning(_UNCOVERED, source.path)
        self._binary = not values
        if self._binary:
            windows = _sample_windows(source.grid, 256)
            _check_binary(source.path, np.unique(np.concatenate([*map(self._layer.values_in, windows)])))
            logger.info("mask '%s': pixels of value 1 are left out, those of 0 kept", source.path)
        self.path, self.values = source.path, values or (1,)
        self._percent = {*range(100, 256)} <= {*values}
        self._grid, self._grow = grid, grow

    def warn_of_uncovered(self, valid: Callable[[Window], np.ndarray]) -> None:
        """Warn if a warped mask does not cover the valid pixels, bool (y, x) by window, in samples."""
        if self._layer.alignment.kind != "warped" or self._covers:
            return
        pixels = beyond = 0
        for window in _sample_windows(self._grid, 64):
            there = valid(window)
            pixels += int(there.sum())
            beyond += int((there & ~self._layer.alignment.reaches(window)).sum())
        if beyond > _EDGE * pixels:
            logger.warning(_UNCOVERED, self.path)

    def read(self, window: Window) -> np.ndarray:
        """Unmasked pixels, bool (y, x)."""
        if not self._grow:
            return self._read(window)
        wide = window.grow(self._grow).intersect(self._grid.extent)
        far = cv2.distanceTransform(self._read(wide).astype("uint8"), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return np.asarray(far[window.relative_to(wide).slices] > self._grow)

    def _read(self, window: Window) -> np.ndarray:
        codes, inside = self._layer.codes(window)
        found = np.unique(codes)
        known = found[found != NO_CODE]
        if self._binary:
            _check_binary(self._layer.source.path, known)
        if self._percent and not np.isin(known, (*range(101), 255)).all():
            raise InputError(
                f"cannot use the cloud probability '{self.path}', since it holds the value {known.max()}, "
                "expected percent, 0 to 100, or 255 for no data",
                "Convert it first: gdal_calc.py -A IN --calc 'A / 255.0 * 100' --type Byte --outfile OUT",
            )
        if isinstance(self.values, Bits):
            masked = codes & sum(1 << bit for bit in self.values) != 0
        else:
            masked = np.isin(codes, self.values)
        return np.asarray(~((masked | (codes == NO_CODE)) & inside))

    def identity(self) -> dict[str, Any]:
        return self._layer.identity()

    def reopen(self) -> ValueMask:
        again = copy.copy(self)
        again._layer = self._layer.reopen()
        return again

    def close(self) -> None:
        self._layer.close()


class Masks(Resource):
    """All masks of a grid; made by `open_masks`, closed as a context manager.

    `provenance` is JSON-ready: mask and its values, bounds, polygons.
    """

    def __init__(
        self, grid: GridSpec, masks: Sequence[ValueMask], bounds: tuple[float, float, float, float] | None,
        polygons: VectorCodes | None, provenance: dict[str, Any],
    ) -> None:  # fmt: skip
        self.grid = grid
        self.provenance = provenance
        self.masks = tuple(masks)
        self._bounds = bounds
        self._polygons = polygons

    def read(self, window: Window) -> np.ndarray | None:
        """Unmasked pixels, bool (y, x); None without any mask."""
        parts = []
        if self._bounds is not None:
            rows, cols = _inside_bounds(self.grid.crop(window), self._bounds)
            parts.append(rows[:, None] & cols)
        if self._polygons is not None:
            parts.append(self._polygons.read(window) == 1)
        # A mask is not decoded where all pixels are outside bounds and polygons.
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


def _sample_windows(grid: GridSpec, side: int) -> list[Window]:
    """Return 4 x 4 windows at even distances, borders included."""
    starts = [sorted({i * max(0, n - side) // 3 for i in range(4)}) for n in grid.shape]
    return [Window(row, col, side, side).intersect(grid.extent) for row in starts[0] for col in starts[1]]


def none_one_or_many(values: Sequence[Any]) -> Any:
    """Return values in the form of ``--mask`` in journals and maps: None, the only one, or all as a list."""
    return values[0] if len(values) == 1 else list(values) or None


def open_masks(
    config: MaskConfig, grid: GridSpec, *, classified: bool = False, paths: Sequence[str] | None = None
) -> Masks:
    """Open the masks of the options ``--mask --mask-values --bounds --aoi``.

    Raises InputError if a file cannot be used, bounds or mask lie elsewhere, or there are mask values and no
    mask.

    Parameters
    ----------
    classified
        True where products have a scene classification, to which ``--mask-values`` may apply.
    paths
        Masks that apply to all dates; None for all of ``--mask``.
    """
    values = masked_out(config)
    if config.mask_values and not config.mask and not classified:
        given = " ".join(map(str, config.mask_values))
        raise InputError(
            f"cannot leave out the mask values {given}, since no --mask is given, expected the raster "
            "that holds them (only .SAFE folders of level 2A bring their own)",
            f"Type --mask RASTER --mask-values {given}, or leave --mask-values out.",
        )
    polygons = None
    if config.bounds is not None:
        _check_bounds(config.bounds, grid)
    if config.aoi is not None:
        # geopandas takes longer to import than most stacks to open.
        from lulc.rasters.vectors import VectorCodes

        polygons = VectorCodes(config.aoi, grid, presence=True)
    masks: list[ValueMask] = []
    with contextlib.ExitStack() as opened:
        for path in config.mask if paths is None else paths:
            source = open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
            opened.enter_context(source)
            masks.append(ValueMask(source, grid, values, resample=config.resample, grow=config.grow_mask))
        opened.pop_all()
    key = "left_out_bits" if config.mask_bits else "left_out"
    provenance = {
        "mask": none_one_or_many([{"file": Path(m.path).name, key: list(m.values)} for m in masks]),
        "bounds": None if config.bounds is None else list(config.bounds),
        "aoi": None if config.aoi is None else Path(config.aoi).name,
    }
    return Masks(grid, masks, config.bounds, polygons, provenance)


def _check_binary(path: str, values: np.ndarray) -> None:
    """Refuse values other than 0 and 1 where the options name no masked values."""
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
        f"Type which values to leave out, e.g. --mask-values {suggestion}{meaning}; make_mosaic.py calls the "
        "option --clouds",
    )


def _check_bounds(bounds: tuple[float, float, float, float], grid: GridSpec) -> None:
    left, bottom, right, top = bounds
    rows, cols = _inside_bounds(grid, bounds)
    if not (left < right and bottom < top and rows.any() and cols.any()):
        given, within = (" ".join(f"{v:.10g}" for v in box) for box in (bounds, grid.bounds))
        raise InputError(
            f"cannot use the bounds {given}, since no pixel lies inside, "
            f"expected left bottom right top within {within}",
            f"Give them in the CRS of the bands: {grid.describe()}",
        )


def _inside_bounds(
    grid: GridSpec, bounds: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, bool (y,) and (x,), whose pixel centres are inside."""
    left, bottom, right, top = bounds
    t = grid.transform
    x = t.c + t.a * (np.arange(grid.width) + 0.5)
    y = t.f + t.e * (np.arange(grid.height) + 0.5)
    return (y >= bottom) & (y <= top), (x >= left) & (x <= right)
