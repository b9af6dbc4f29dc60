"""The channels of a set on one grid, read window by window.

Preprocessing and classification both read the network's input with `Stack.read`. For each date:

1. Bands are converted to reflectance x 10000 (`lulc.rasters.radiometry`); 20 m bands are interpolated
   bilinearly to the 10 m grid (`lulc.rasters.alignment`).
2. Missing reflectance is patched band by band from the fill mosaics, in order. The scene classification
   inside a ``.SAFE`` folder masks the clouds of that product, so that they are patched too.
3. Indices are read as SYKE codes.

Further rasters are resampled to the grid by the rule of each channel. Formulas are computed last. A pixel is
NaN in all channels if a mask, bounds or polygons exclude it, or if it lacks a channel that may not be
missing. A pixel that lacks another channel is NaN in that channel alone.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lulc.config import InputConfig
from lulc.core.buffers import Buffers
from lulc.core.channels import ChannelDefinition, ChannelSet, dates_of, set_of, split_prefix
from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, CHANNELS, INDICES, SENTINEL_BANDS, InputError
from lulc.core.storage import Resource
from lulc.core.windows import Window
from lulc.rasters.further import Further, open_further
from lulc.rasters.indices import encode
from lulc.rasters.layers import Source
from lulc.rasters.masks import Masks, masked_out, open_masks
from lulc.rasters.matching import find_layers, product_names
from lulc.rasters.mosaics import (
    Mosaic,
    Plane,
    band_planes,
    build_mosaic,
    check_coding,
    check_samples,
    finest_grid,
    index_planes,
    listed,
    missing_channels,
    open_bands,
    open_in,
)
from lulc.rasters.names import is_mask_name, is_scene_classification
from lulc.rasters.scenes import Scenes, find_scenes, open_scenes
from lulc.rasters.sources import is_collection, is_cube_folder, open_source

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger("lulc")

PathOrSource = TypeVar("PathOrSource", str, str | Source)

_ROWS = 256
_STRIP = 8


@dataclass
class Coverage:
    """Counts of pixels, summed over the windows that were read with it.

    Parameters
    ----------
    pixels
        Pixels inside masks, bounds and polygons.
    valid
        Those of them that have all channels.
    patched, missing
        Pixels by channel: those that a fill mosaic gave, and those inside that lack the channel after
        patching.
    """

    pixels: int = 0
    valid: int = 0
    patched: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.pixels + other.pixels, self.valid + other.valid,
            _sum_counts(self.patched, other.patched), _sum_counts(self.missing, other.missing),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Pixels, and the fractions of them that are valid, patched (by band) and invalid (by channel)."""
        total = max(1, self.pixels)
        return {
            "pixels": self.pixels,
            "valid": self.valid / total,
            "patched": {name: n / total for name, n in self.patched.items()},
            "invalid": {name: n / total for name, n in self.missing.items()},
        }


@dataclass(frozen=True)
class Part(Resource):
    """Rasters of one date; the date is empty for rasters without one."""

    date: str
    main: Mosaic | Scenes
    fills: tuple[Mosaic, ...] = ()
    indices: Mosaic | None = None

    @property
    def mosaics(self) -> tuple[Mosaic | Scenes, ...]:
        """All mosaics, in the order of use."""
        return (self.main, *self.fills, *([self.indices] if self.indices else []))

    def full(self, name: str) -> str:
        """Return the name of a channel with its date."""
        return f"{self.date}/{name}" if self.date else name

    @property
    def local_names(self) -> tuple[str, ...]:
        """Names of all channels that are read, without the date."""
        return (*self.main.names, *(self.indices.names if self.indices else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all channels that are read."""
        return tuple(map(self.full, self.local_names))

    def read(
        self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]
    ) -> list[dict[str, np.ndarray]]:
        """Read into the slots; return for each fill mosaic the pixels bool (y, x) that it gave, by band."""
        local_slots = {name: slots[self.full(name)] for name in self.local_names}
        self.main.read(window, values, valid, local_slots)
        patched = [fill.patch(window, values, valid, local_slots) for fill in self.fills]
        if self.indices is not None:
            self.indices.read(window, values, valid, local_slots)
        return patched

    def reopen(self) -> Part:
        return Part(
            self.date, self.main.reopen(), tuple(fill.reopen() for fill in self.fills),
            self.indices.reopen() if self.indices else None,
        )  # fmt: skip

    def close(self) -> None:
        for mosaic in self.mosaics:
            mosaic.close()


class Stack(Resource):
    """All channels on one grid; made by `open_stack`, closed as a context manager.

    A stack belongs to one thread; `reopen` gives another thread its own.

    Attributes
    ----------
    channels : tuple of str
        Names along the last axis of the array from `read`.
    coding : dict
        Index, and channel with a formula, to ``read`` or ``computed``.
    """

    def __init__(self, grid: GridSpec, channel_set: ChannelSet, parts: Sequence[Part], masks: Masks) -> None:
        self.grid = grid
        self.channel_set = channel_set
        self.channels = channel_set.names
        self._parts, self._masks = tuple(parts), masks
        read = {name for part in parts for name in part.names}
        plan = channel_set.plan(read)
        self._computed = plan.computed
        computed = {one.name for one, _ in plan.computed}
        self.coding = {
            one.name: "computed" if one.name in computed else "read"
            for one in channel_set.channels if one.formula
        }  # fmt: skip
        # The channels have the first slots, in order, so that interleaving needs no selection.
        extras = [one.name for one in (*plan.leaves, *(one for one, _ in plan.computed))]
        extras += [name for part in parts for name in part.names]
        self._slots = {name: i for i, name in enumerate(dict.fromkeys((*self.channels, *extras)))}
        self._absent = [self._slots[one.name] for one in plan.leaves if one.name not in read]
        self._optional = np.array([one.may_be_missing for one in channel_set.channels])
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self._images = Buffers()
        self._rows = min(max([_ROWS, *(part.main.block_rows for part in parts)]), 4 * _ROWS)

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
            Values in the units of the set: reflectance x 10000, SYKE codes 0..200, dB, metres. NaN in every
            channel of an invalid pixel, and in channels that may be missing where they are.

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
        inside = self._masks.read(window)
        if inside is not None and not inside.any():
            image.fill(np.nan)
            return
        values, valid = self._workspace(window.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            valid[self._absent] = False
            patched = [part.read(window, values, valid, self._slots) for part in self._parts]
            self._compute(values, valid)
        whole = self._whole(valid)
        if inside is not None:
            whole &= inside
        if coverage is not None:
            self._count(coverage, inside, valid, whole, patched)
        # A few rows at a time stay in the cache.
        for row in range(0, window.height, _STRIP):
            rows = slice(row, row + _STRIP)
            image[rows] = values[: len(self.channels), rows].transpose(1, 2, 0)
        if not whole.all():
            image[~whole] = np.nan
        for number in np.flatnonzero(self._optional):
            if not valid[number].all():
                image[..., number][~valid[number]] = np.nan

    def _whole(self, valid: np.ndarray) -> np.ndarray:
        """Valid pixels: those with all channels that may not be missing, and at least one channel."""
        if not self._optional.any():
            return np.asarray(np.logical_and.reduce(valid, axis=0))
        channels = valid[: len(self.channels)]
        return np.asarray(np.logical_and.reduce(channels[~self._optional], axis=0) & channels.any(axis=0))

    def _workspace(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Arrays values float32 and valid bool (plane, y, x), reused since fresh memory is slow."""
        if self._arrays is None or self._arrays[0].shape[1:] != shape:
            planes = (len(self._slots), *shape)
            self._arrays = np.empty(planes, dtype="float32"), np.empty(planes, dtype=bool)
        return self._arrays

    def _compute(self, values: np.ndarray, valid: np.ndarray) -> None:
        """Compute the channels that have a formula and no file, from the patched bands."""
        slots = self._slots
        for one, formula in self._computed:
            slot = slots[one.name]
            if self._optional.any():
                # A pixel that lacks an input may be valid, and the plane of the input isn't NaN there.
                planes = {n: np.where(valid[slots[n]], values[slots[n]], np.nan) for n in formula.names}
            else:
                planes = {name: values[slots[name]] for name in formula.names}
            result = formula.evaluate(planes)
            bounded = one.minimum is not None or one.maximum is not None
            if one.stored == "syke":
                values[slot] = encode(result)
            else:
                values[slot] = np.clip(result, one.minimum, one.maximum) if bounded else result
            np.isfinite(values[slot], out=valid[slot])

    def _count(
        self, coverage: Coverage, inside: np.ndarray | None, valid: np.ndarray, whole: np.ndarray,
        patched: Sequence[Sequence[dict[str, np.ndarray]]],
    ) -> None:  # fmt: skip
        inside = np.ones(whole.shape, dtype=bool) if inside is None else inside
        coverage.pixels += int(inside.sum())
        coverage.valid += int(whole.sum())
        for part, fills in zip(self._parts, patched, strict=True):
            for name in part.names:
                lacking = int((inside & ~valid[self._slots[name]]).sum())
                coverage.missing[name] = coverage.missing.get(name, 0) + lacking
            for band in part.main.names:
                gained = sum(int((inside & p[band]).sum()) for p in fills if band in p)
                full = part.full(band)
                coverage.patched[full] = coverage.patched.get(full, 0) + gained

    def to_xarray(self) -> xr.DataArray:
        """Return the stack as a lazy DataArray, whose pixels can be read while the stack is open.

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
        channels = {
            part.full(name): entry
            for part in self._parts for mosaic in (part.main, part.indices) if mosaic
            for name, entry in mosaic.describe().items()
        }  # fmt: skip
        for name, coding in self.coding.items():
            channels.setdefault(name, {"coding": coding})
        left_out = next((part.main.left_out for part in self._parts if part.main.left_out), None)
        fills = [
            {part.full(name): entry for name, entry in fill.describe().items()}
            for part in self._parts for fill in part.fills
        ]  # fmt: skip
        return {
            "channels": channels,
            **({} if self.channel_set.is_plain else {"channel_set": self.channel_set.to_json()}),
            **({"scenes": self.scenes.provenance} if self.scenes else {}),
            "fills": fills,
            "scene_classification": {"left_out": list(left_out)} if left_out else None,
            **self._masks.provenance,
        }

    @property
    def scenes(self) -> Scenes | None:
        """The scenes that the bands are read from, if ``--scenes`` gave them."""
        return next((part.main for part in self._parts if isinstance(part.main, Scenes)), None)

    def identity(self) -> list[dict[str, Any]]:
        """Return name, bytes and sha256 of all files that are read, each once, in the order of use."""
        mosaics = [mosaic for part in self._parts for mosaic in part.mosaics]
        files = [i for m in mosaics for i in m.identity()] + self._masks.identity()
        return [item for i, item in enumerate(files) if item not in files[:i]]

    def reopen(self) -> Stack:
        """Open the files again, for another thread; checks are not repeated."""
        again = copy.copy(self)
        again._arrays = None
        again._parts = tuple(part.reopen() for part in self._parts)
        again._masks = self._masks.reopen()
        return again

    def close(self) -> None:
        """Release all files."""
        for part in self._parts:
            part.close()
        self._masks.close()


def open_stack(
    bands: Sequence[str | Source],
    indices: Sequence[str | Source],
    config: InputConfig,
    *,
    scenes: Sequence[str] | Scenes = (),
    channels: ChannelSet | Sequence[str] = CHANNELS,
) -> Stack:
    """Open the rasters of a stack and check that they fit together.

    Raises InputError if names are missing, unclear or given twice, grids differ, or the radiometry looks
    wrong.

    Parameters
    ----------
    bands
        Files with one or many bands, ``.SAFE`` folders, folders of one scene, STAC items, or open sources;
        of several dates, each path with its date and ``=`` before it.
    indices
        Index rasters in SYKE coding; all other indices are computed from the bands.
    scenes
        Instead of bands, scenes as `lulc.rasters.scenes.find_scenes` takes them; or those of another
        `Stack` of this config, which are not checked again.
    channels
        The channel set, or names of known channels in order; other layers are left out.
    """
    wanted = channels if isinstance(channels, ChannelSet) else set_of(channels)
    wanted = wanted.of_dates(dates_of(bands))
    with contextlib.ExitStack() as opened:
        stack = _Opening(wanted, config, opened).stack(bands, indices, scenes)
        opened.pop_all()
    return stack


class _Opening:
    """Opens the parts of a stack one after the other, by default on the grid of the bands."""

    def __init__(self, channels: ChannelSet, config: InputConfig, opened: contextlib.ExitStack) -> None:
        self._channels, self._config, self._opened = channels, config, opened
        self._grid: GridSpec | None = None
        self._dates = channels.dates or ("",)
        self._masked = False

    def stack(
        self, bands: Sequence[str | Source], indices: Sequence[str | Source],
        scenes: Sequence[str] | Scenes,
    ) -> Stack:  # fmt: skip
        config = self._config
        if scenes and (self._channels.dates or (not isinstance(scenes, Scenes) and dates_of(scenes))):
            raise InputError(
                "cannot use --scenes for several dates, since they make one mosaic, expected --bands",
                "Compose each date first: make_mosaic.py --scenes FOLDER --dates FIRST/LAST --out MOSAIC.tif",
            )
        bands_of, indices_of, fills_of = (
            _by_date(given, self._dates, option)
            for given, option in ((bands, "--bands"), (indices, "--indices"), (config.fill, "--fill"))
        )
        masks = _by_date(config.mask, dict.fromkeys(("", *self._dates)), "--mask")
        self._masked = bool(masks[""])
        if second := next((paths[1] for date, paths in masks.items() if date and len(paths) > 1), None):
            raise InputError(
                f"cannot use the mask '{second}', since its date has another one, expected one for each date",
                "Join them into one raster, or type a mask that holds for all dates without a date.",
            )
        if config.like is not None:
            self._grid = open_in(config.like, config, self._opened).grid
        layers = open_further(config.layers, self._channels, config, self._opened)
        parts = []
        for date in self._dates:
            date_masks = masks[date] if date else []
            part = self._part(
                date, bands_of[date], indices_of[date], fills_of[date], scenes, layers, date_masks
            )
            parts += [part] if part else []
        self._check_complete(parts, layers)
        grid = self._grid or finest_grid(layers.sources, layers.planes)
        parts += [Part(date, mosaic) for date, mosaic in layers.mosaics(grid, config)]
        classified = any(m.left_out for part in parts for m in (part.main, *part.fills))
        everywhere = open_masks(config, grid, classified=classified, paths=masks[""])
        stack = Stack(grid, self._channels, parts, self._opened.enter_context(everywhere))
        dated = [part.main.mask for part in parts if isinstance(part.main, Mosaic) and part.main.mask]
        for mask in (*everywhere.masks, *dated):
            mask.warn_of_uncovered(lambda window: np.isfinite(stack.read(window)).any(axis=-1))
        return stack

    def _part(
        self, date: str, bands: Sequence[str | Source], indices: Sequence[str | Source],
        fills: Sequence[str | Source], scenes: Sequence[str] | Scenes, layers: Further, masks: Sequence[str],
    ) -> Part | None:  # fmt: skip
        """Open the rasters of one date; return None if further rasters hold all its channels."""
        config, opened = self._config, self._opened
        index_sources = [open_in(path, config, opened) for path in indices]
        index_names = [one.local for one in self._channels.channels if one.date == date]
        index_layers = index_planes(index_sources, config, index_names)
        read_indices = [p.name for planes in index_layers for p in planes]
        held = {*layers.names, *(f"{date}/{name}" if date else name for name in read_indices)}
        # All bands that an index could be computed from decide on the grid.
        every = self._leaves(date, layers.names)
        needed = self._leaves(date, held)
        if not every and not bands:
            _check_unused([*fills, *masks], date)
            return None
        main: Mosaic | Scenes
        sources: list[Source] = []
        planes: list[list[Plane]] = []
        mask: Source | None = None
        left_out: tuple[int, ...] | None = None
        if scenes:
            if isinstance(scenes, Scenes):
                main = scenes.reopen()
            else:
                found = find_scenes(scenes, allow_vrt=config.allow_vrt)
                main = open_scenes(found, config, [one.local for one in needed])
            opened.callback(main.close)
            self._grid = self._grid or main.grid
        else:
            files = [file for path in bands for file in _files_of(path, config)]
            # Channels that a date lacks are refused here; those of no date when all rasters are open.
            elsewhere = bool(layers.sources) and not (read_indices or date)
            if not files and (elsewhere or all(one.may_be_missing for one in needed)):
                _check_unused([*fills, *masks], date)
                _warn_of_missing(needed, "" if read_indices else date)
                if not read_indices:
                    return None
            sources, planes, mask, left_out = self._open_bands(date, files, masks, every, needed)
            # A date without bands takes the grid of its indices.
            self._grid = self._grid or (
                finest_grid(sources, planes) if sources else finest_grid(index_sources, index_layers)
            )
            main = build_mosaic("bands", sources, planes, self._grid, config, mask, left_out=left_out)
            check_samples(main)
        index = None
        if read_indices:
            # The mask of the bands applies to indices only where there are no bands.
            index = build_mosaic(
                "indices", index_sources, index_layers, self._grid, config, None if main.names else mask,
                left_out=left_out,
            )  # fmt: skip
            check_coding(main, index)
        patches = tuple(_open_fill(path, config, needed, self._grid, opened) for path in fills)
        _log_left_out([*sources, *index_sources], [*planes, *index_layers])
        return Part(date, main, patches, index)

    def _open_bands(
        self, date: str, files: Sequence[str | Source], masks: Sequence[str],
        every: Sequence[ChannelDefinition], needed: Sequence[ChannelDefinition],
    ) -> tuple[list[Source], list[list[Plane]], Source | None, tuple[int, ...] | None]:  # fmt: skip
        """Open the bands of one date; return sources, planes, mask and its masked values."""
        config, left_out = self._config, None
        # A mask of a date, or one among its bands, masks pixels of that date alone.
        among_bands = [file for file in files if date and isinstance(file, str) and is_mask_name(file)]
        mask_file = next(iter([*masks, *among_bands]), None)
        files = [file for file in files if file is not mask_file]
        classified = not (masks or self._masked)
        sources, mask = open_bands(files, config, _product_names(every), self._opened, classified=classified)
        if mask_file is not None:
            mask = open_in(mask_file, config, self._opened)
            left_out = masked_out(config) if masks or not config.mask else ()
        planes = band_planes(sources, config, needed, f"bands of {date}" if date else "bands")
        return sources, planes, mask, left_out

    def _check_complete(self, parts: Sequence[Part], layers: Further) -> None:
        """Refuse a set with channels that no raster holds."""
        held = {*layers.names, *(name for part in parts for name in part.names)}
        lacking = [
            one for one in self._channels.plan(held).leaves
            if one.name not in held and not one.may_be_missing
        ]  # fmt: skip
        if lacking:
            # Derivatives of terrain follow the raster that they are computed from.
            files = {s.path: s.names for s in reversed(layers.sources)}
            found = "\n".join(f"  {path}: {listed(names)}" for path, names in files.items()) or "  no file"
            raise missing_channels([one.name for one in lacking], found, self._channels.names)
        if not held:
            raise self._channels.refusal(
                "no raster holds any of its channels", "Give rasters: --bands RASTER, --layers RASTER."
            )

    def _leaves(self, date: str, held: Iterable[str]) -> list[ChannelDefinition]:
        """Return the channels that the bands of a date must give where other rasters hold `held`."""
        held = set(held)
        order = {one.name: i for i, one in enumerate(self._channels.channels)}
        leaves = [
            one for one in self._channels.plan(held).leaves if one.date == date and one.name not in held
        ]
        # Channels first, in order; then bands that only formulas need, in the order of Sentinel-2.
        bands = {name: i for i, name in enumerate(SENTINEL_BANDS)}
        return sorted(
            leaves, key=lambda one: (order.get(one.name, len(order)), bands.get(one.local, len(bands)))
        )


def _warn_of_missing(needed: Sequence[ChannelDefinition], date: str) -> None:
    if optional := [one.name for one in needed if one.may_be_missing]:
        logger.warning(
            "no raster is given for %s, which may be missing: it is missing everywhere",
            f"the date {date}" if date else ", ".join(optional),
        )


def _check_unused(given: Sequence[str | Source], date: str) -> None:
    """Refuse fills and masks of a date that has no bands."""
    if given:
        path = given[0] if isinstance(given[0], str) else given[0].path
        raise InputError(
            f"cannot use '{path}', since no raster with bands is given"
            + f" for the date {date}" * bool(date) + ", expected one",
            f"Give it as the bands themselves: --bands {f'{date}=' * bool(date)}{path}",
        )  # fmt: skip


def _files_of(path: str | Source, config: InputConfig) -> list[str | Source]:
    """Return the files of a folder that holds one scene; any other path alone."""
    if not isinstance(path, str) or not os.path.isdir(path) or is_collection(path) or is_cube_folder(path):
        return [path]
    scenes = find_scenes([path], allow_vrt=config.allow_vrt)
    if len(scenes) != 1:
        raise InputError(
            f"cannot use the folder '{path}' for bands, since it holds {len(scenes)} scenes, expected one",
            "Give many scenes with --scenes, or compose them first: make_mosaic.py --scenes FOLDER.",
        )
    return list(scenes[0])


def _by_date(
    given: Sequence[PathOrSource], dates: Iterable[str], option: str
) -> dict[str, list[PathOrSource]]:
    """Return the rasters of each date, without the date before their path."""
    rasters: dict[str, list[PathOrSource]] = {date: [] for date in dates}
    for text in given:
        date, path = split_prefix(text) if isinstance(text, str) else ("", text)
        if date not in rasters:
            named = [one for one in rasters if one]
            has = f"it is of the date {date}" if date else "it has no date"
            raise InputError(
                f"cannot use '{path if isinstance(path, str) else path.path}' for {option}, since {has}, "
                f"expected one of the dates of the channels: {', '.join(named) or 'none'}",
                f"Write the date before it: {named[0]}={path}" if named else
                "Leave out what stands before '=', or give each raster of --bands a date.",
            )  # fmt: skip
        rasters[date].append(path)
    return rasters


def sort_sources(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Return the open sources that may hold bands, and those that hold indices; a source may do both."""
    bands = [source for source in sources if not set(source.names) <= set(INDICES)]
    return bands, [source for source in sources if set(source.names) & set(INDICES)]


def sort_inputs(
    inputs: Sequence[str], config: InputConfig, channels: ChannelSet | None = None
) -> tuple[list[str], list[str]]:
    """Return the band rasters and the index rasters among some inputs, by the names of their layers.

    A file that holds both is in both lists. Files with unnamed layers are told apart by the number of
    `band_names` and `index_names` in the config. Raises InputError if a file has no layer of Sentinel-2, none
    of SYKE's indices and none of `channels`.
    """
    bands, indices, unclear = [], [], []
    # --band-names gives the names of each date.
    unnamed, found, others = Counter[str](), set[str | None](), []
    wanted = [] if channels is None else [leaf for leaf in channels.plan().leaves if leaf.layers]
    for given in inputs:
        date, path = split_prefix(given)
        folder = os.path.isdir(path) and not is_cube_folder(path)
        if folder or is_collection(path) or is_scene_classification(path) or is_mask_name(path):
            bands.append(given)
            continue
        with open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote) as source:
            names = set(source.names)
            found |= names
            is_band = bool(names & set(SENTINEL_BANDS))
            is_band |= bool(wanted and find_layers([source], [source.names], wanted)[0])
            is_index = bool(names & set(INDICES))
            count = len(source.names)
        bands += [given] if is_band else []
        indices += [given] if is_index else []
        if is_band or is_index:
            continue
        if config.index_names and count == len(config.index_names):
            indices.append(given)
        elif config.band_names and unnamed[date] + count <= len(config.band_names):
            bands.append(given)
            unnamed[date] += count
        else:
            others += [given] if None not in names else []
            unclear.append(f"  {path}: {', '.join(str(n or '(unnamed)') for n in source.names[:15])}")
    if len(others) == len(unclear) and found >= set(BANDS):
        # All bands are there, so that no channel needs the layers of other names.
        return [*bands, *others], indices
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


def _open_fill(
    path: str | Source, config: InputConfig, needed: Sequence[ChannelDefinition], grid: GridSpec,
    opened: contextlib.ExitStack,
) -> Mosaic:  # fmt: skip
    sources, mask = open_bands(_files_of(path, config), config, _product_names(needed), opened)
    planes = band_planes(sources, config, needed, f"the fill mosaic '{path}'", complete=False)
    mosaic = build_mosaic(str(path), sources, planes, grid, config, mask)
    try:
        check_samples(mosaic)
    except InputError as error:
        # The bands passed with these options, which apply to them too.
        raise InputError(
            error.problem,
            "Convert this fill first, since --scale and --offset hold for bands and fills alike, or write "
            "its own into it: gdal_edit.py -scale S -offset O FILE, where reflectance is number x S + O.",
        ) from error
    return mosaic


def _product_names(channels: Sequence[ChannelDefinition]) -> list[str]:
    return list(dict.fromkeys(name for one in channels for name in product_names(one)))


def _log_left_out(sources: Sequence[Source], planes: Sequence[Sequence[Plane]]) -> None:
    # A file may be given for bands and for indices.
    used = {(s.path, plane.position) for s, own in zip(sources, planes, strict=True) for plane in own}
    for path, names in {source.path: source.names for source in sources}.items():
        unused = [str(n or "(unnamed)") for i, n in enumerate(names) if (path, i) not in used]
        if unused and len(unused) < len(names):
            logger.info("left out of '%s': %s", path, ", ".join(unused))
        elif unused:
            logger.warning("'%s' is not used: it holds %s", path, ", ".join(unused))


def _sum_counts(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in (*a, *(n for n in b if n not in a))}
