"""The channels of a set on one grid, read window by window.

What `Stack.read` gives is what the network sees, in preprocessing and classification alike. For each date:

1. Bands become reflectance x 10000 (`lulc.rasters.radiometry`); those of 20 m are interpolated bilinearly to
   the 10 m grid (`lulc.rasters.alignment`).
2. Missing reflectance is patched band by band from the fill mosaics, in order. The scene classification
   inside a ``.SAFE`` folder makes that product's own clouds missing, so that they are patched too.
3. Indices are read as SYKE code.

Further rasters are brought onto the grid by the rule of each channel. Then formulas are computed from all of
these. A pixel that lacks a channel which may not be missing, or that a mask, bounds or polygons leave out, is
NaN in all channels; one that lacks another channel is NaN there.
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

Given = TypeVar("Given", str, str | Source)
"""A path, or an open source too."""

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


@dataclass(frozen=True)
class Part(Resource):
    """Rasters of one date, or of none.

    Parameters
    ----------
    date
        Before the names of its channels; empty for none.
    """

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
        """Read into the slots; return for each fill the pixels bool (y, x) of each band that it gave."""
        own = {name: slots[self.full(name)] for name in self.local_names}
        self.main.read(window, values, valid, own)
        patched = [fill.patch(window, values, valid, own) for fill in self.fills]
        if self.indices is not None:
            self.indices.read(window, values, valid, own)
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
        Names along the last axis of what `read` gives.
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
        # Channels lie first, in order, so that interleaving them needs no selection.
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
        admitted = self._masks.read(window)
        if admitted is not None and not admitted.any():
            image.fill(np.nan)
            return
        values, valid = self._workspace(window.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            valid[self._absent] = False
            patched = [part.read(window, values, valid, self._slots) for part in self._parts]
            self._compute(values, valid)
        own = valid[: len(self.channels)]
        whole = self._whole(valid)
        if admitted is not None:
            whole &= admitted
        if coverage is not None:
            self._count(coverage, admitted, valid, whole, patched)
        _interleave(values[: len(self.channels)], image)
        if not whole.all():
            image[~whole] = np.nan
        for number in np.flatnonzero(self._optional):
            if not own[number].all():
                image[..., number][~own[number]] = np.nan

    def _whole(self, valid: np.ndarray) -> np.ndarray:
        """Pixels that count: those with all channels that may not be missing, and with any channel at all."""
        if not self._optional.any():
            return np.asarray(np.logical_and.reduce(valid, axis=0))
        own = valid[: len(self.channels)]
        return np.asarray(np.logical_and.reduce(own[~self._optional], axis=0) & own.any(axis=0))

    def _workspace(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Arrays for the planes of a strip, values float32 and valid bool (plane, y, x).

        Kept from strip to strip: fresh memory costs as much as the arithmetic on it.
        """
        if self._arrays is None or self._arrays[0].shape[1:] != shape:
            planes = (len(self._slots), *shape)
            self._arrays = np.empty(planes, dtype="float32"), np.empty(planes, dtype=bool)
        return self._arrays

    def _compute(self, values: np.ndarray, valid: np.ndarray) -> None:
        """Compute the channels that no file gives, from the patched bands."""
        slots = self._slots
        for one, formula in self._computed:
            slot = slots[one.name]
            if self._optional.any():
                # A pixel that lacks an input may count; the plane of an input has no NaN there.
                planes = {n: np.where(valid[slots[n]], values[slots[n]], np.nan) for n in formula.names}
            else:
                planes = {name: values[slots[name]] for name in formula.names}
            found = formula.evaluate(planes)
            if one.stored == "syke":
                values[slot] = encode(found)
            else:
                values[slot] = np.clip(found, one.minimum, one.maximum) if _is_bounded(one) else found
            np.isfinite(values[slot], out=valid[slot])

    def _count(
        self, coverage: Coverage, admitted: np.ndarray | None, valid: np.ndarray, whole: np.ndarray,
        patched: Sequence[Sequence[dict[str, np.ndarray]]],
    ) -> None:  # fmt: skip
        inside = np.ones(whole.shape, dtype=bool) if admitted is None else admitted
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
        channels = {
            part.full(name): said
            for part in self._parts for mosaic in (part.main, part.indices) if mosaic
            for name, said in mosaic.describe().items()
        }  # fmt: skip
        for name, coding in self.coding.items():
            channels.setdefault(name, {"coding": coding})
        left_out = next((part.main.left_out for part in self._parts if part.main.left_out), None)
        fills = [
            {part.full(name): said for name, said in fill.describe().items()}
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
        """The scenes that the bands are read from, where they were given as such."""
        return next((part.main for part in self._parts if isinstance(part.main, Scenes)), None)

    def identity(self) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of all files that are read, each once, in the order of use."""
        mosaics = [mosaic for part in self._parts for mosaic in part.mosaics]
        found = [i for m in mosaics for i in m.identity()] + self._masks.identity()
        return [item for i, item in enumerate(found) if item not in found[:i]]

    def reopen(self) -> Stack:
        """The same stack with files of its own, for another thread; checks are not repeated."""
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


def _is_bounded(one: ChannelDefinition) -> bool:
    return one.minimum is not None or one.maximum is not None


def open_stack(
    bands: Sequence[str | Source],
    indices: Sequence[str | Source],
    config: InputConfig,
    *,
    scenes: Sequence[str] | Scenes = (),
    channels: ChannelSet | Sequence[str] = CHANNELS,
) -> Stack:
    """Open everything that makes one aligned stack, and check that it fits.

    Raises InputError if names are missing, unclear or given twice, grids differ, or the radiometry looks
    wrong.

    Parameters
    ----------
    bands
        Bands: files with one or many bands, ``.SAFE`` folders, folders of one scene, STAC items, or open
        sources; a date and ``=`` before the path for one of several dates.
    indices
        Index rasters in SYKE coding; indices in none of them are computed from the bands.
    scenes
        Instead of bands, scenes as `lulc.rasters.scenes.find_scenes` takes them; or those of another
        `Stack` of this config, which are not looked at again.
    channels
        The channel set, or names of known channels in order; layers that are none of them are left out.
    """
    wanted = channels if isinstance(channels, ChannelSet) else set_of(channels)
    wanted = wanted.of_dates(dates_of(bands))
    with contextlib.ExitStack() as opened:
        stack = _Opening(wanted, config, opened).stack(bands, indices, scenes)
        opened.pop_all()
    return stack


class _Opening:
    """Opens the parts of a stack one after the other, on the grid of the first band."""

    def __init__(self, channels: ChannelSet, config: InputConfig, opened: contextlib.ExitStack) -> None:
        self._channels, self._config, self._opened = channels, config, opened
        self._grid: GridSpec | None = None
        self._dates = channels.dates or ("",)
        self._masked = False

    def stack(
        self, bands: Sequence[str | Source], indices: Sequence[str | Source],
        scenes: Sequence[str] | Scenes,
    ) -> Stack:  # fmt: skip
        """Return the stack of some inputs."""
        config = self._config
        if scenes and (self._channels.dates or (not isinstance(scenes, Scenes) and dates_of(scenes))):
            raise InputError(
                "cannot use --scenes for several dates, since they make one mosaic, expected --bands",
                "Compose each date first: make_mosaic.py --scenes FOLDER --dates FIRST/LAST --out MOSAIC.tif",
            )
        grouped = [_by_date(given, self._dates, what) for given, what in (
            (bands, "--bands"), (indices, "--indices"), (config.fill, "--fill"),
        )]  # fmt: skip
        masks = _by_date(config.mask, dict.fromkeys(("", *self._dates)), "--mask")
        self._masked = bool(masks[""])
        if second := next((own[1] for date, own in masks.items() if date and len(own) > 1), None):
            raise InputError(
                f"cannot use the mask '{second}', since its date has another one, expected one for each date",
                "Join them into one raster, or type a mask that holds for all dates without a date.",
            )
        if config.like is not None:
            self._grid = open_in(config.like, config, self._opened).grid
        layers = open_further(config.layers, self._channels, config, self._opened)
        parts = []
        for date in self._dates:
            own = [group[date] for group in grouped]
            part = self._part(date, own[0], own[1], own[2], scenes, layers, masks[date] if date else [])
            parts += [part] if part else []
        self._check_complete(parts, layers)
        grid = self._grid or layers.finest()
        parts += [Part(date, mosaic) for date, mosaic in layers.mosaics(grid, config)]
        classified = any(m.left_out for part in parts for m in (part.main, *part.fills))
        everywhere = open_masks(config, grid, classified=classified, paths=masks[""])
        stack = Stack(grid, self._channels, parts, self._opened.enter_context(everywhere))
        dated = [part.main.mask for part in parts if isinstance(part.main, Mosaic) and part.main.mask]
        for one in (*everywhere.masks, *dated):
            one.warn_of_uncovered(lambda window: np.isfinite(stack.read(window)).any(axis=-1))
        return stack

    def _part(
        self, date: str, bands: Sequence[str | Source], indices: Sequence[str | Source],
        fills: Sequence[str | Source], scenes: Sequence[str] | Scenes, layers: Further, masks: Sequence[str],
    ) -> Part | None:  # fmt: skip
        """Open the rasters of one date; None where all its channels are in further rasters."""
        config, opened = self._config, self._opened
        given = [open_in(path, config, opened) for path in indices]
        coded = index_planes(
            given, config, [one.local for one in self._channels.channels if one.date == date]
        )
        coding = [p.name for planes in coded for p in planes]
        held = {*layers.names, *(f"{date}/{name}" if date else name for name in coding)}
        # Grids are decided by all bands that an index could be computed from.
        every = self._leaves(date, layers.names)
        needed = self._leaves(date, held)
        if not every and not bands:
            _check_idle([*fills, *masks], date)
            return None
        main: Mosaic | Scenes
        sources: list[Source] = []
        planes: list[list[Plane]] = []
        own: str | None = None
        mask: Source | None = None
        left_out: tuple[int, ...] | None = None
        if scenes:
            main = _open_scenes(scenes, config, [one.local for one in needed])
            opened.callback(main.close)
            self._grid = self._grid or main.grid
        else:
            files = [file for path in bands for file in _files_of(path, config)]
            # What a date lacks is told here; what further rasters lack, when all are open.
            elsewhere = bool(layers.sources) and not (coding or date)
            if not files and (elsewhere or all(one.may_be_missing for one in needed)):
                _check_idle([*fills, *masks], date)
                _warn_of_missing(needed, "" if coding else date)
                if not coding:
                    return None
            names = list(dict.fromkeys(name for one in every for name in product_names(one)))
            # A mask of a date, or one among its bands, leaves out pixels of that date alone.
            among = [file for file in files if date and isinstance(file, str) and is_mask_name(file)]
            own = next(iter([*masks, *among]), None)
            files = [file for file in files if file is not own]
            sources, mask = open_bands(files, config, names, opened, classified=not (masks or self._masked))
            if own is not None:
                mask = open_in(own, config, opened)
                left_out = masked_out(config) if masks or not config.mask else ()
            planes = band_planes(sources, config, needed, f"bands of {date}" if date else "bands")
            # Indices decide where they are all that a date has.
            self._grid = self._grid or (
                finest_grid(sources, planes) if sources else finest_grid(given, coded)
            )
            main = build_mosaic("bands", sources, planes, self._grid, config, mask, left_out=left_out)
            check_samples(main)
        index = None
        if coding:
            # What a mask leaves out of the bands is missing; where there are none, it is left out of indices.
            alone = None if main.names else mask
            index = build_mosaic("indices", given, coded, self._grid, config, alone, left_out=left_out)
            check_coding(main, index)
        patches = tuple(_open_fill(path, config, needed, self._grid, opened) for path in fills)
        _log_left_out([*sources, *given], [*planes, *coded])
        return Part(date, main, patches, index)

    def _check_complete(self, parts: Sequence[Part], layers: Further) -> None:
        """Refuse channels of no date that no further raster holds."""
        held = {*layers.names, *(name for part in parts for name in part.names)}
        lacking = [
            one for one in self._channels.plan(held).leaves
            if one.name not in held and not one.may_be_missing
        ]  # fmt: skip
        if lacking:
            # Derivatives of terrain come after the raster that they are of.
            files = {s.path: s.names for s in reversed(layers.sources)}
            found = "\n".join(f"  {path}: {listed(names)}" for path, names in files.items()) or "  no file"
            raise missing_channels([one.name for one in lacking], found, self._channels.names)
        if not held:
            raise self._channels.refusal(
                "no raster holds any of its channels", "Give rasters: --bands RASTER, --layers RASTER."
            )

    def _leaves(self, date: str, held: Iterable[str]) -> list[ChannelDefinition]:
        """Return the channels of a date that its bands have to give, where rasters hold others."""
        held = set(held)
        leaves = self._channels.plan(held).leaves
        order = {one.name: i for i, one in enumerate(self._channels.channels)}
        found = [one for one in leaves if one.date == date and one.name not in held]
        # Channels first, in order; then bands that only formulas need, in the order of the products.
        return sorted(found, key=lambda one: (order.get(one.name, len(order)), _place_of(one)))


def _warn_of_missing(needed: Sequence[ChannelDefinition], date: str) -> None:
    if optional := [one.name for one in needed if one.may_be_missing]:
        logger.warning(
            "no raster is given for %s, which may be missing: it is missing everywhere",
            f"the date {date}" if date else ", ".join(optional),
        )


def _check_idle(given: Sequence[str | Source], date: str) -> None:
    """Refuse fills and masks where there are no bands that they could change."""
    if given:
        path = given[0] if isinstance(given[0], str) else given[0].path
        raise InputError(
            f"cannot use '{path}', since no raster with bands is given"
            + f" for the date {date}" * bool(date) + ", expected one",
            f"Give it as the bands themselves: --bands {f'{date}=' * bool(date)}{path}",
        )  # fmt: skip


def _place_of(one: ChannelDefinition) -> int:
    return SENTINEL_BANDS.index(one.local) if one.local in SENTINEL_BANDS else len(SENTINEL_BANDS)


def _files_of(path: str | Source, config: InputConfig) -> list[str | Source]:
    """Return the files of a folder that holds one scene; other paths as they are."""
    if not isinstance(path, str) or not os.path.isdir(path) or is_collection(path) or is_cube_folder(path):
        return [path]
    scenes = find_scenes([path], allow_vrt=config.allow_vrt)
    if len(scenes) != 1:
        raise InputError(
            f"cannot use the folder '{path}' for bands, since it holds {len(scenes)} scenes, expected one",
            "Give many scenes with --scenes, or compose them first: make_mosaic.py --scenes FOLDER.",
        )
    return list(scenes[0])


def _by_date(given: Sequence[Given], dates: Iterable[str], option: str) -> dict[str, list[Given]]:
    """Return what is given for each date, without the date before the path."""
    found: dict[str, list[Given]] = {date: [] for date in dates}
    for text in given:
        date, path = split_prefix(text) if isinstance(text, str) else ("", text)
        if date not in found:
            named = [one for one in found if one]
            said = f"it is of the date {date}" if date else "it has no date"
            raise InputError(
                f"cannot use '{path if isinstance(path, str) else path.path}' for {option}, since {said}, "
                f"expected one of the dates of the channels: {', '.join(named) or 'none'}",
                f"Write the date before it: {named[0]}={path}" if named else
                "Leave out what stands before '=', or give each raster of --bands a date.",
            )  # fmt: skip
        found[date].append(path)
    return found


def _open_scenes(scenes: Sequence[str] | Scenes, config: InputConfig, needed: Sequence[str]) -> Scenes:
    if isinstance(scenes, Scenes):
        return scenes.reopen()
    return open_scenes(find_scenes(scenes, allow_vrt=config.allow_vrt), config, needed)


def sort_sources(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Return the open sources that may hold bands, and those that hold indices; one may be both."""
    bands = [source for source in sources if not set(source.names) <= set(INDICES)]
    return bands, [source for source in sources if set(source.names) & set(INDICES)]


def sort_inputs(
    inputs: Sequence[str], config: InputConfig, channels: ChannelSet | None = None
) -> tuple[list[str], list[str]]:
    """Tell band rasters from index rasters by the names of their layers.

    Raises InputError if the names of a file's layers tell neither.

    Parameters
    ----------
    config
        The input options; `band_names` and `index_names` tell unnamed files apart by their number.
    channels
        What is looked for beside Sentinel-2 bands and SYKE indices.

    Returns
    -------
    (bands, indices)
        A file that holds both is in both.
    """
    bands, indices, unclear = [], [], []
    # The names that an option gives are those of each date.
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
            recognised = bool(names & {*SENTINEL_BANDS, *INDICES})
            other = bool(wanted and find_layers([source], [source.names], wanted)[0])
            recognised |= other
            if names & set(SENTINEL_BANDS) or other:
                bands.append(given)
            if names & set(INDICES):
                indices.append(given)
            count = len(source.names)
        if not recognised and config.index_names and count == len(config.index_names):
            indices.append(given)
        elif not recognised and config.band_names and unnamed[date] + count <= len(config.band_names):
            bands.append(given)
            unnamed[date] += count
        elif not recognised:
            others += [given] if None not in names else []
            unclear.append(f"  {path}: {', '.join(str(n or '(unnamed)') for n in source.names[:15])}")
    if len(others) == len(unclear) and found >= set(BANDS):
        # All bands are there, so that a layer of another name is one that nothing needs.
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
    names = list(dict.fromkeys(name for one in needed for name in product_names(one)))
    sources, mask = open_bands(_files_of(path, config), config, names, opened)
    planes = band_planes(sources, config, needed, f"the fill mosaic '{path}'", complete=False)
    mosaic = build_mosaic(str(path), sources, planes, grid, config, mask)
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


def _log_left_out(sources: Sequence[Source], planes: Sequence[Sequence[Plane]]) -> None:
    # A file may be given for bands and for indices.
    used = {(s.path, plane.position) for s, own in zip(sources, planes, strict=True) for plane in own}
    for path, names in {source.path: source.names for source in sources}.items():
        extra = [str(n or "(unnamed)") for i, n in enumerate(names) if (path, i) not in used]
        if extra and len(extra) < len(names):
            logger.info("left out of '%s': %s", path, ", ".join(extra))
        elif extra:
            logger.warning("'%s' is not used: it holds %s", path, ", ".join(extra))


def _sum_counts(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in (*a, *(n for n in b if n not in a))}
