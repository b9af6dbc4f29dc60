"""Bands, fills, indices and masks on one grid, read window by window.

What `Stack.read` gives is what the network sees, in preprocessing and classification alike:

1. Bands become reflectance x 10000 (`lulc.rasters.radiometry`); those of 20 m are interpolated bilinearly to
   the 10 m grid (`lulc.rasters.alignment`).
2. Missing reflectance is patched band by band from the fill mosaics, in order. The scene classification
   inside a ``.SAFE`` folder makes that product's own clouds missing, so that they are patched too.
3. Indices are read as SYKE code, or computed from the patched bands.
4. A pixel that lacks any channel, or that a mask, bounds or polygons leave out, is NaN in all.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lulc.config import InputConfig
from lulc.core.buffers import Buffers
from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, CHANNELS, INDICES, InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.rasters.indices import encode, needed_bands, spectral_index
from lulc.rasters.layers import Source
from lulc.rasters.masks import Masks, open_masks
from lulc.rasters.mosaics import (
    Mosaic,
    band_planes,
    build_mosaic,
    check_samples,
    finest_grid,
    index_planes,
    open_bands,
    open_in,
)
from lulc.rasters.names import SENTINEL_BANDS, is_mask_name, is_scene_classification
from lulc.rasters.scenes import Scenes, find_scenes, open_scenes
from lulc.rasters.sources import is_collection, open_source

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger("lulc")

_ROWS = 256
_STRIP = 8


@dataclass
class Coverage:
    """Counts of pixels, summed over the windows that were read with it.

    Parameters
    ----------
    pixels
        Pixels that masks, bounds and polygons admit.
    valid
        Those of them that have all channels.
    patched
        Band to pixels that a fill mosaic gave.
    missing
        Channel read from files to admitted pixels that it lacks, after patching.
    """

    pixels: int = 0
    valid: int = 0
    patched: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Coverage) -> Coverage:
        """The counts of both."""
        return Coverage(
            self.pixels + other.pixels,
            self.valid + other.valid,
            _sum_counts(self.patched, other.patched),
            _sum_counts(self.missing, other.missing),
        )

    def to_json(self) -> dict[str, Any]:
        """Counts, and shares of the admitted pixels: valid, patched and invalid per band."""
        total = max(1, self.pixels)
        return {
            "pixels": self.pixels,
            "valid": self.valid / total,
            "patched": {name: n / total for name, n in self.patched.items()},
            "invalid": {name: n / total for name, n in self.missing.items()},
        }


class Stack(Resource):
    """All channels on one grid; made by `open_stack`, closed as a context manager.

    A stack belongs to one thread; `reopen` gives another thread its own.

    Attributes
    ----------
    grid : GridSpec
        The grid of every window.
    channels : tuple of str
        Names along the last axis of what `read` gives.
    coding : dict
        Index channel to ``read`` or ``computed``.
    provenance : dict
        JSON-ready: for each channel its file and conversion, the fills, the masks.
    """

    def __init__(
        self, grid: GridSpec, channels: Sequence[str], main: Mosaic | Scenes, fills: Sequence[Mosaic],
        indices: Mosaic | None, masks: Masks,
    ) -> None:  # fmt: skip
        self.grid = grid
        self.channels = tuple(channels)
        self._main, self._fills, self._indices, self._masks = main, tuple(fills), indices, masks
        read = indices.names if indices else ()
        self.coding = {c: "read" if c in read else "computed" for c in self.channels if c in INDICES}
        # Channels lie first, in order, so that interleaving them needs no selection.
        extras = [band for band in main.names if band not in self.channels]
        self._slots = {name: i for i, name in enumerate((*self.channels, *extras))}
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self._images = Buffers()
        self._rows = min(max(_ROWS, main.block_rows), 4 * _ROWS)

    def read(self, window: Window, coverage: Coverage | None = None) -> np.ndarray:
        """All channels of a window.

        Parameters
        ----------
        window
            In pixels of the grid; beyond the grid everything is NaN.
        coverage
            Counts that are added to.

        Returns
        -------
        float32 (y, x, channel)
            Reflectance x 10000 and SYKE codes 0..200, NaN in every channel of an invalid pixel.

        Raises
        ------
        InputError
            If a file is damaged there.
        """
        image = self._images.empty((*window.shape, len(self.channels)))
        inner = window.intersect(self.grid.extent)
        if inner != window:
            image.fill(np.nan)
        first = inner.row
        # In rows of blocks: memory beyond the result stays small, and planes stay in the cache.
        while first < inner.stop[0]:
            stop = min(inner.stop[0], (first // self._rows + 1) * self._rows)
            strip = Window(first, inner.col, stop - first, inner.width)
            self._read_strip(strip, image[strip.relative_to(window).slices], coverage)
            first = stop
        return image

    def _read_strip(self, window: Window, image: np.ndarray, coverage: Coverage | None) -> None:
        if not window.width:
            return
        admitted = self._masks.read(window)
        if admitted is not None and not admitted.any():
            image.fill(np.nan)
            return
        values, valid = self._workspace(window.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            self._main.read(window, values, valid, self._slots)
            patched = [fill.patch(window, values, valid, self._slots) for fill in self._fills]
            if self._indices is not None:
                self._indices.read(window, values, valid, self._slots)
            self._compute(values, valid)
        whole = np.logical_and.reduce(valid, axis=0)
        if admitted is not None:
            whole &= admitted
        if coverage is not None:
            self._count(coverage, admitted, valid, whole, patched)
        _interleave(values[: len(self.channels)], image)
        if not whole.all():
            image[~whole] = np.nan

    def _workspace(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Arrays for the planes of a strip, values float32 and valid bool (plane, y, x).

        Kept from strip to strip: fresh memory costs as much as the arithmetic on it.
        """
        if self._arrays is None or self._arrays[0].shape[1:] != shape:
            planes = (len(self._slots), *shape)
            self._arrays = np.empty(planes, dtype="float32"), np.empty(planes, dtype=bool)
        return self._arrays

    def _compute(self, values: np.ndarray, valid: np.ndarray) -> None:
        """Compute the indices that no file gives, from the patched bands."""
        planes = {band: values[self._slots[band]] for band in self._main.names}
        for name, coding in self.coding.items():
            if coding == "computed":
                slot = self._slots[name]
                values[slot] = encode(spectral_index(name, planes))
                np.isfinite(values[slot], out=valid[slot])

    def _count(
        self, coverage: Coverage, admitted: np.ndarray | None, valid: np.ndarray, whole: np.ndarray,
        patched: Sequence[dict[str, np.ndarray]],
    ) -> None:  # fmt: skip
        inside = np.ones(whole.shape, dtype=bool) if admitted is None else admitted
        coverage.pixels += int(inside.sum())
        coverage.valid += int(whole.sum())
        for name in (*self._main.names, *(self._indices.names if self._indices else ())):
            lacking = int((inside & ~valid[self._slots[name]]).sum())
            gained = sum(int((inside & p[name]).sum()) for p in patched if name in p)
            coverage.missing[name] = coverage.missing.get(name, 0) + lacking
            if name in self._main.names:
                coverage.patched[name] = coverage.patched.get(name, 0) + gained

    def to_xarray(self) -> xr.DataArray:
        """Return the stack as a DataArray whose pixels are read when they are used, while the stack is open.

        Returns
        -------
        DataArray
            float32 (band, y, x) as `read` gives it, NaN = invalid; channel names along ``band``, the CRS in
            ``spatial_ref``.
        """
        import xarray as xr

        from lulc.rasters.lazy import coordinates_of, lazy_variable

        lock = threading.Lock()

        def read(window: Window) -> np.ndarray:
            with lock:
                return np.moveaxis(self.read(window), -1, 0).copy()

        coordinates, mapping = coordinates_of(self.grid)
        shape = (len(self.channels), *self.grid.shape)
        values = lazy_variable(read, ("band", "y", "x"), shape, np.dtype("f4"))
        named = {"band": list(self.channels), "spatial_ref": ((), np.int32(0), mapping)}
        return xr.DataArray(values, coordinates | named, name="stack", attrs={"grid_mapping": "spatial_ref"})

    @property
    def provenance(self) -> dict[str, Any]:
        channels = self._main.describe() | (self._indices.describe() if self._indices else {})
        for name, coding in self.coding.items():
            channels.setdefault(name, {"coding": coding})
        left_out = self._main.left_out
        return {
            "channels": channels,
            **({"scenes": self.scenes.provenance} if self.scenes else {}),
            "fills": [fill.describe() for fill in self._fills],
            "scene_classification": {"left_out": list(left_out)} if left_out else None,
            **self._masks.provenance,
        }

    @property
    def scenes(self) -> Scenes | None:
        """The scenes that the bands are read from, where they were given as such."""
        return self._main if isinstance(self._main, Scenes) else None

    def identity(self) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of all files that are read, each once, in the order of use."""
        mosaics = [self._main, *self._fills, *([self._indices] if self._indices else [])]
        found = [i for m in mosaics for i in m.identity()] + self._masks.identity()
        return [item for i, item in enumerate(found) if item not in found[:i]]

    def reopen(self) -> Stack:
        """The same stack with files of its own, for another thread; checks are not repeated."""
        again = copy.copy(self)
        again._arrays = None
        again._main = self._main.reopen()
        again._fills = tuple(fill.reopen() for fill in self._fills)
        again._indices = self._indices.reopen() if self._indices else None
        again._masks = self._masks.reopen()
        return again

    def close(self) -> None:
        """Release all files."""
        for mosaic in (self._main, *self._fills, *([self._indices] if self._indices else [])):
            mosaic.close()
        self._masks.close()


def open_stack(
    bands: Sequence[str | Source],
    indices: Sequence[str | Source],
    config: InputConfig,
    *,
    scenes: Sequence[str] | Scenes = (),
    channels: Sequence[str] = CHANNELS,
) -> Stack:
    """Open everything that makes one aligned stack, and check that it fits.

    Parameters
    ----------
    bands
        Sentinel-2 bands: files with one or many bands, ``.SAFE`` folders, STAC items, or open sources.
    indices
        Index rasters in SYKE coding; indices in none of them are computed from the bands.
    config
        The input options.
    scenes
        Instead of bands, scenes as `lulc.rasters.scenes.find_scenes` takes them; or those of another
        `Stack` of this config, which are not looked at again.
    channels
        Names wanted, in order; layers with other names are left out.

    Raises
    ------
    InputError
        If names are missing, unclear or given twice, grids differ, or the radiometry looks wrong.
    """
    with contextlib.ExitStack() as opened:
        given = [open_in(path, config, opened) for path in indices]
        coded = index_planes(given, config, channels)
        read = {p.name for planes in coded for p in planes}
        needed = _bands_for(channels, set(INDICES) - read)
        sources: list[Source] = []
        main: Mosaic | Scenes
        if scenes:
            main = _open_scenes(scenes, config, needed)
            opened.callback(main.close)
            grid = main.grid
        else:
            wanted = _bands_for(channels, set(INDICES))
            sources, mask = open_bands(bands, config, wanted, opened, classified=config.mask is None)
            grid, main = _lay_bands(sources, mask, config, needed, opened)
        index = build_mosaic("indices", given, coded, grid, config, None) if read else None
        fills = [_open_fill(path, config, needed, grid, opened) for path in config.fill]
        classified = any(mosaic.left_out for mosaic in (main, *fills))
        masks = opened.enter_context(open_masks(config, grid, classified=classified))
        opened.pop_all()
    numbered = bool(config.band_names or config.index_names)
    _log_left_out([*sources, *given], {*needed, *read}, by_number=numbered)
    return Stack(grid, channels, main, fills, index, masks)


def _open_scenes(scenes: Sequence[str] | Scenes, config: InputConfig, needed: Sequence[str]) -> Scenes:
    if isinstance(scenes, Scenes):
        return scenes.reopen()
    return open_scenes(find_scenes(scenes, allow_vrt=config.allow_vrt), config, needed)


def _lay_bands(
    sources: Sequence[Source], mask: Source | None, config: InputConfig, needed: Sequence[str],
    opened: contextlib.ExitStack,
) -> tuple[GridSpec, Mosaic]:  # fmt: skip
    """The grid of ``--like``, else the finest of the bands; and the bands on it, checked."""
    planes = band_planes(sources, config, needed, "bands")
    grid = finest_grid(sources, planes) if config.like is None else open_in(config.like, config, opened).grid
    main = build_mosaic("bands", sources, planes, grid, config, mask)
    check_samples(main)
    return grid, main


def sort_inputs(inputs: Sequence[str], config: InputConfig) -> tuple[list[str], list[str]]:
    """Tell band rasters from index rasters by the names of their layers.

    Parameters
    ----------
    inputs
        Files and ``.SAFE`` folders as given on the command line.
    config
        The input options; `band_names` and `index_names` tell unnamed files apart by their number.

    Returns
    -------
    (bands, indices)
        A file that holds both is in both.

    Raises
    ------
    InputError
        If the names of a file's layers tell neither.
    """
    bands, indices, unclear = [], [], []
    unnamed = 0
    for path in inputs:
        if is_collection(path) or is_scene_classification(path) or is_mask_name(path):
            bands.append(path)
            continue
        with open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote) as source:
            names = set(source.names)
            recognised = bool(names & {*SENTINEL_BANDS, *INDICES})
            if names & set(SENTINEL_BANDS):
                bands.append(path)
            if names & set(INDICES):
                indices.append(path)
            count = len(source.names)
        if not recognised and config.index_names and count == len(config.index_names):
            indices.append(path)
        elif not recognised and config.band_names and unnamed + count <= len(config.band_names):
            bands.append(path)
            unnamed += count
        elif not recognised:
            unclear.append(f"  {path}: {', '.join(str(n or '(unnamed)') for n in source.names[:15])}")
    if unclear:
        raise InputError(
            "cannot tell bands from indices, since the layers of these files are not named after them:\n"
            + "\n".join(unclear)
            + f"\nexpected {', '.join(BANDS)} or {', '.join(INDICES)}",
            f"Name them, in file order: --band-names {' '.join(BANDS)}"
            + (f" (now {len(config.band_names)} names)" if config.band_names else "")
            + f"; those of index rasters with --index-names {' '.join(INDICES)}. Or write the names into "
            "the files (band descriptions).",
        )
    return bands, indices


def _bands_for(channels: Sequence[str], computed: set[str]) -> tuple[str, ...]:
    """Bands among the channels, and those that the computed indices need."""
    own = [c for c in channels if c not in INDICES]
    return tuple(dict.fromkeys((*own, *needed_bands([c for c in channels if c in computed]))))


def _open_fill(
    path: str, config: InputConfig, needed: Sequence[str], grid: GridSpec, opened: contextlib.ExitStack
) -> Mosaic:
    sources, mask = open_bands([path], config, needed, opened)
    planes = band_planes(sources, config, needed, f"the fill mosaic '{path}'", complete=False)
    mosaic = build_mosaic(path, sources, planes, grid, config, mask)
    try:
        check_samples(mosaic)
    except InputError as error:
        # The bands passed, so that what fits the fill would spoil them.
        raise InputError(
            error.problem,
            "Convert this fill first, since --scale and --offset hold for bands and fills alike, or write "
            "its own into it: gdal_edit.py -scale S -offset O FILE, where reflectance is number x S + O.",
        ) from error
    return mosaic


def _interleave(planes: np.ndarray, image: np.ndarray) -> None:
    """Copy (channel, y, x) into (y, x, channel), a few rows at a time to stay in the cache."""
    for row in range(0, planes.shape[1], _STRIP):
        image[row : row + _STRIP] = planes[:, row : row + _STRIP].transpose(1, 2, 0)


def _log_left_out(sources: Sequence[Source], used: set[str], *, by_number: bool) -> None:
    for source in sources:
        if by_number and not any(source.names):
            continue
        extra = [str(n or "(unnamed)") for n in source.names if n not in used]
        if extra and len(extra) < len(source.names):
            logger.info("left out of '%s': %s", source.path, ", ".join(extra))
        elif extra and not set(source.names) & used:
            logger.warning("'%s' is not used: it holds %s", source.path, ", ".join(extra))


def _sum_counts(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in (*a, *(n for n in b if n not in a))}
