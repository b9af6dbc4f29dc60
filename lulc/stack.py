"""Bands, fills, indices and masks on one grid, read window by window.

What `Stack.read` gives is what the network sees, in preprocessing and classification alike:

1. Bands become reflectance x 10000 (`lulc.radiometry`); those of 20 m are interpolated bilinearly to
   the 10 m grid (`lulc.alignment`).
2. Missing reflectance is patched band by band from the fill mosaics, in order. The scene classification
   inside a ``.SAFE`` folder makes that product's own clouds missing, so that they are patched too.
3. Indices are read as SYKE code, or computed from the patched bands.
4. A pixel that lacks any channel, or that a mask, bounds or polygons leave out, is NaN in all.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lulc.alignment import Alignment
from lulc.config import InputConfig
from lulc.grid import GridSpec
from lulc.indices import encode, needed_bands, spectral_index
from lulc.layers import SENTINEL_BANDS, Layer, Source
from lulc.masks import Masks, ValueMask, open_masks
from lulc.products import SCL_VALUES
from lulc.radiometry import Scaling, check_radiometry, choose_scaling, reflectance
from lulc.schema import BANDS, CHANNELS, INDICES, InputError
from lulc.sources import is_safe, open_product, open_source
from lulc.windows import Window

logger = logging.getLogger("lulc")

_NATIVE_10_M = ("B02", "B03", "B04", "B08")
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


@dataclass(frozen=True)
class _Plane:
    """One layer that is read: which, and what becomes of it."""

    name: str
    position: int
    layer: Layer
    scaling: Scaling
    nodata: float | None


class _Reader:
    """Some layers of one source, converted and on the stack's grid."""

    def __init__(self, source: Source, alignment: Alignment, planes: Sequence[_Plane]) -> None:
        self.source = source
        self.alignment = alignment
        self.planes = tuple(planes)

    def read(self, window: Window, only: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(values float32 (plane, y, x), valid bool (plane, y, x)) of all planes, or of those of `only`."""
        planes = self.planes if only is None else [self.planes[i] for i in only]
        return self.alignment.bilinear(lambda there: self._convert(planes, there), window)

    def _convert(self, planes: Sequence[_Plane], there: Window) -> tuple[np.ndarray, np.ndarray]:
        stored = self.source.read([p.position for p in planes], there)
        values = np.empty(stored.shape, dtype="float32")
        valid = np.empty(stored.shape, dtype=bool)
        for plane, dn, out, ok in zip(planes, stored, values, valid, strict=True):
            if plane.name in INDICES:
                _decode(dn, plane, out, ok)
            else:
                reflectance(dn, plane.scaling, plane.nodata, out, ok)
        return values, valid

    def describe(self) -> dict[str, dict[str, Any]]:
        """Plane name to file and conversion, JSON-ready."""
        file = Path(self.source.path).name
        moved = {"same": "none"}.get(self.alignment.kind, "bilinear")
        described = {}
        for p in self.planes:
            said: dict[str, Any] = {"file": file, "resampling": moved}
            if p.name in INDICES:
                said |= {"coding": "read", "nodata": p.nodata}
            else:
                said |= {"scale": p.scaling.scale, "scale_from": p.scaling.scale_from,
                         "offset": p.scaling.offset, "offset_from": p.scaling.offset_from}  # fmt: skip
            described[p.name] = said
        return described

    def reopen(self) -> _Reader:
        return _Reader(self.source.reopen(), self.alignment, self.planes)


class _Mosaic:
    """The readers of one mosaic, with the scene classification of its own product where there is one."""

    def __init__(self, path: str, readers: Sequence[_Reader], mask: ValueMask | None) -> None:
        self.path = path
        self.readers = tuple(readers)
        self.mask = mask

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for r in self.readers for p in r.planes)

    def read(self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]) -> None:
        """Fill the slots of this mosaic's planes in values and valid (plane, y, x)."""
        for reader in self.readers:
            found, ok = reader.read(window)
            for plane, value, good in zip(reader.planes, found, ok, strict=True):
                values[slots[plane.name]] = value
                valid[slots[plane.name]] = good
        if self.mask is not None:
            clear = self.mask.read(window)
            for name in self.names:
                valid[slots[name]] &= clear

    def patch(
        self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]
    ) -> dict[str, np.ndarray]:
        """Fill what is missing; gives, for each band that gained, the pixels bool (y, x)."""
        gained: dict[str, np.ndarray] = {}
        clear: np.ndarray | None = None
        for reader in self.readers:
            lacking = [i for i, p in enumerate(reader.planes) if not valid[slots[p.name]].all()]
            if not lacking:
                continue
            found, ok = reader.read(window, lacking)
            if self.mask is not None and clear is None:
                clear = self.mask.read(window)
            for i, value, good in zip(lacking, found, ok, strict=True):
                slot = slots[reader.planes[i].name]
                take = good & ~valid[slot] if clear is None else good & clear & ~valid[slot]
                np.copyto(values[slot], value, where=take)
                valid[slot] |= take
                gained[reader.planes[i].name] = take
        return gained

    def reopen(self) -> _Mosaic:
        mask = self.mask.reopen() if self.mask else None
        return _Mosaic(self.path, [r.reopen() for r in self.readers], mask)

    def close(self) -> None:
        for reader in self.readers:
            reader.source.close()
        if self.mask is not None:
            self.mask.close()

    def identity(self) -> Iterator[dict[str, Any]]:
        for reader in self.readers:
            yield reader.source.identity()
        if self.mask is not None:
            yield self.mask.identity()


class Stack:
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
        self, grid: GridSpec, channels: Sequence[str], main: _Mosaic, fills: Sequence[_Mosaic],
        indices: _Mosaic | None, masks: Masks,
    ) -> None:  # fmt: skip
        self.grid = grid
        self.channels = tuple(channels)
        self._main, self._fills, self._indices, self._masks = main, tuple(fills), indices, masks
        read = indices.names if indices else ()
        self.coding = {c: "read" if c in read else "computed" for c in self.channels if c in INDICES}
        # Channels lie first, in order, so that interleaving them needs no selection.
        extras = [band for band in main.names if band not in self.channels]
        self._slots = {name: i for i, name in enumerate((*self.channels, *extras))}
        tallest = max((r.source.block[0] for r in main.readers), default=1)
        self._rows = min(max(_ROWS, tallest), 4 * _ROWS)

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
        image = np.empty((*window.shape, len(self.channels)), dtype="float32")
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
        values = np.empty((len(self._slots), *window.shape), dtype="float32")
        valid = np.ones(values.shape, dtype=bool)
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

    @property
    def provenance(self) -> dict[str, Any]:
        channels = {n: d for r in self._main.readers for n, d in r.describe().items()}
        for reader in self._indices.readers if self._indices else ():
            channels |= reader.describe()
        for name, coding in self.coding.items():
            channels.setdefault(name, {"coding": coding})
        scene = list(SCL_VALUES) if self._main.mask is None else list(self._main.mask.values)
        return {
            "channels": channels,
            "fills": [{n: d for r in f.readers for n, d in r.describe().items()} for f in self._fills],
            "scene_classification": scene if self._main.mask is not None else None,
            **self._masks.provenance,
        }

    def identity(self) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of all files that are read, each once, in the order of use."""
        mosaics = [self._main, *self._fills, *([self._indices] if self._indices else [])]
        found = [i for m in mosaics for i in m.identity()] + self._masks.identity()
        return [item for i, item in enumerate(found) if item not in found[:i]]

    def reopen(self) -> Stack:
        """The same stack with files of its own, for another thread; checks are not repeated."""
        again = copy.copy(self)
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

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_stack(
    bands: Sequence[str], indices: Sequence[str], config: InputConfig, *, channels: Sequence[str] = CHANNELS
) -> Stack:
    """Open everything that makes one aligned stack, and check that it fits.

    Parameters
    ----------
    bands
        Sentinel-2 bands: files with one or many bands, or ``.SAFE`` folders.
    indices
        Index rasters in SYKE coding; indices in none of them are computed from the bands.
    config
        The input options.
    channels
        Names wanted, in order; layers with other names are left out.

    Raises
    ------
    InputError
        If names are missing, unclear or given twice, grids differ, or the radiometry looks wrong.
    """
    with contextlib.ExitStack() as opened:
        wanted = [c for c in channels if c not in INDICES]
        sources, mask = _open_bands(bands, config, _bands_for(channels, set(INDICES)), opened)
        given = [_opened(path, config, opened) for path in indices]
        index_planes = _index_planes(given, config, channels)
        read = {p.name for planes in index_planes for p in planes}
        computed = [c for c in channels if c in INDICES and c not in read]
        needed = tuple(dict.fromkeys((*wanted, *needed_bands(computed))))
        planes = _band_planes(sources, config, needed, "bands")
        grid = _choose_grid(sources, planes, config, opened)
        main = _mosaic("bands", sources, planes, grid, config, mask)
        _check_samples(main)
        index = _mosaic("indices", given, index_planes, grid, config, None) if read else None
        fills = [_open_fill(path, config, needed, grid, opened) for path in config.fill]
        masks = opened.enter_context(open_masks(config, grid))
        opened.pop_all()
    _log_left_out([*sources, *given], {*needed, *read})
    return Stack(grid, channels, main, fills, index, masks)


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
        if is_safe(path):
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
            f"Name them, in file order: --band-names {' '.join(BANDS)} "
            f"--index-names {' '.join(INDICES)}, or write the names into the files (band descriptions).",
        )
    return bands, indices


def _opened(path: str, config: InputConfig, opened: contextlib.ExitStack) -> Source:
    return opened.enter_context(
        open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
    )


def _bands_for(channels: Sequence[str], computed: set[str]) -> tuple[str, ...]:
    """Bands among the channels, and those that the computed indices need."""
    own = [c for c in channels if c not in INDICES]
    return tuple(dict.fromkeys((*own, *needed_bands([c for c in channels if c in computed]))))


def _open_bands(
    paths: Sequence[str], config: InputConfig, wanted: Sequence[str], opened: contextlib.ExitStack
) -> tuple[list[Source], Source | None]:
    """The sources of band files and products, and the scene classification of the (only) product."""
    sources: list[Source] = []
    masks: list[Source] = []
    for path in paths:
        if not is_safe(path):
            sources.append(_opened(path, config, opened))
            continue
        found, product = open_product(path, wanted)
        sources += [opened.enter_context(source) for source in found]
        if product.mask is not None:
            masks.append(_opened(str(product.mask), config, opened))
        logger.info(
            "'%s': level %s, scale %g, offset %s DN",
            path, product.level, product.scale, sorted({product.offsets[s.names[0] or ""] for s in found}),
        )  # fmt: skip
    return sources, masks[0] if masks and config.mask is None else None


def _open_fill(
    path: str, config: InputConfig, needed: Sequence[str], grid: GridSpec, opened: contextlib.ExitStack
) -> _Mosaic:
    sources, mask = _open_bands([path], config, needed, opened)
    planes = _band_planes(sources, config, needed, f"the fill mosaic '{path}'", complete=False)
    mosaic = _mosaic(path, sources, planes, grid, config, mask)
    _check_samples(mosaic)
    return mosaic


def _mosaic(
    path: str, sources: Sequence[Source], planes: Sequence[Sequence[_Plane]], grid: GridSpec,
    config: InputConfig, mask: Source | None,
) -> _Mosaic:  # fmt: skip
    readers = [
        _Reader(source, _align(source, grid, config), own)
        for source, own in zip(sources, planes, strict=True)
        if own
    ]
    scene = None
    if mask is not None:
        scene = ValueMask(mask, grid, config.mask_values or SCL_VALUES, resample=config.resample)
    return _Mosaic(path, readers, scene)


def _band_planes(
    sources: Sequence[Source], config: InputConfig, needed: Sequence[str], what: str, *, complete: bool = True
) -> list[list[_Plane]]:
    """For each source the planes to read of it, checked against the names needed."""
    names = _given_names(sources, config.band_names, "--band-names", SENTINEL_BANDS)
    planes = [
        [
            _Plane(
                name, i, layer, choose_scaling(layer, config.scale, config.offset),
                layer.nodata if layer.nodata is not None else config.nodata,
            )
            for i, (name, layer) in enumerate(zip(own, source.layers, strict=True))
            if name in needed
        ]
        for source, own in zip(sources, names, strict=True)
    ]  # fmt: skip
    _check_names(sources, names, [p.name for own in planes for p in own], needed, what, complete=complete)
    return planes


def _index_planes(
    sources: Sequence[Source], config: InputConfig, channels: Sequence[str]
) -> list[list[_Plane]]:
    """For each index raster the planes to read of it."""
    names = _given_names(sources, config.index_names, "--index-names", INDICES)
    wanted = [c for c in channels if c in INDICES]
    planes: list[list[_Plane]] = []
    position = 0
    total = sum(name in INDICES for own in names for name in own)
    for source, own in zip(sources, names, strict=True):
        planes.append([])
        for i, (name, layer) in enumerate(zip(own, source.layers, strict=True)):
            if name not in INDICES:
                continue
            nodata = _index_nodata(source.path, str(name), layer, config.index_nodata, position, total)
            position += 1
            if name in wanted:
                planes[-1].append(_Plane(str(name), i, layer, Scaling(), nodata))
        _check_coding(source, planes[-1])
    found = [p.name for own in planes for p in own]
    if sources:
        _check_names(sources, names, found, wanted, "the index rasters", complete=False)
    return planes


def _index_nodata(
    path: str, name: str, layer: Layer, given: Sequence[float], position: int, total: int
) -> float | None:
    if layer.nodata is not None:
        return layer.nodata
    if len(given) == 1:
        return given[0]
    if given and len(given) == total:
        return given[position]
    if np.issubdtype(layer.dtype, np.floating) and not given:
        return None
    found = f"{len(given)} values were given for {total} layers" if given else "its file declares none"
    raise InputError(
        f"cannot read the index {name} of '{path}', since its no-data value is not known ({found}), "
        "expected one in the file (per band), or one for all or for each layer",
        "Say it: --index-nodata 0, or one value per layer in file order; SYKE's mosaics have 0, "
        "but 255 for NDBI: --index-nodata 0 0 255 0 0",
    )


def _given_names(
    sources: Sequence[Source], given: Sequence[str], option: str, known: Sequence[str]
) -> list[list[str | None]]:
    """Names of all layers, those without a known one named by the option, in file order."""
    names = [list(source.names) for source in sources]
    if not given:
        return names
    wrong = [n for n in given if n not in known]
    if wrong:
        raise InputError(
            f"cannot use {option} {' '.join(given)}, since {', '.join(wrong)} is no such name, "
            f"expected names among {', '.join(known)}",
            "Spell them as in B02, B8A, NDVI.",
        )
    unnamed = [(i, j) for i, own in enumerate(names) for j, n in enumerate(own) if n not in known]
    if not unnamed:
        flat = [n for own in names for n in own]
        if set(flat) & set(given) != set(given):
            raise InputError(
                f"cannot use {option} {' '.join(given)}, since the layers are named already: "
                f"{', '.join(map(str, flat))}, expected unnamed layers",
                f"Leave {option} out, or correct the names in the file (band descriptions).",
            )
        return names
    if len(unnamed) != len(given):
        raise InputError(
            f"cannot use {option} with {len(given)} names, since {len(unnamed)} layers are unnamed in "
            f"{', '.join(repr(s.path) for s in sources)}, expected one name for each",
            f"Give {len(unnamed)} names, in file order.",
        )
    for (i, j), name in zip(unnamed, given, strict=True):
        names[i][j] = name
    return names


def _check_names(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], found: Sequence[str],
    needed: Sequence[str], what: str, *, complete: bool,
) -> None:  # fmt: skip
    """Refuse names that are missing (all of them, where not `complete`) or given twice."""
    missing = [n for n in needed if n not in found]
    twice = sorted({n for n in found if found.count(n) > 1})
    if not twice and (not missing or (not complete and found)):
        return
    listing = "\n".join(
        f"  {source.path}: {', '.join(str(n or '(unnamed)') for n in own[:20])}"
        for source, own in zip(sources, names, strict=True)
    )
    index = bool(needed) and needed[0] in INDICES
    option = "--index-names" if index else "--band-names"
    problem = f"{', '.join(twice)} is there twice" if twice else f"{', '.join(missing)} is missing"
    raise InputError(
        f"cannot make a stack of {what}, since {problem}; found\n{listing or '  no file'}\n"
        f"expected {', '.join(needed)}, each once",
        "Give each band once." if twice else
        f"Give the missing files, or name unnamed layers in file order: {option} {' '.join(needed)}",
    )  # fmt: skip


def _choose_grid(
    sources: Sequence[Source], planes: Sequence[Sequence[_Plane]], config: InputConfig,
    opened: contextlib.ExitStack,
) -> GridSpec:  # fmt: skip
    """The grid of ``--like``, else the finest among the bands that Sentinel-2 has at 10 m."""
    if config.like is not None:
        return _opened(config.like, config, opened).grid
    candidates = [
        source.grid
        for preferred in (_NATIVE_10_M, SENTINEL_BANDS)
        for source, own in zip(sources, planes, strict=True)
        if any(p.name in preferred for p in own)
    ]
    if not candidates:
        raise InputError(
            "cannot decide on a grid, since no band is read, expected at least one",
            "Give the bands, or a grid: --like RASTER",
        )
    # Pixel sizes in one CRS compare; min keeps the first of equals.
    return min(candidates, key=lambda g: g.pixel_size if g.crs == candidates[0].crs else (np.inf, np.inf))


def _align(source: Source, grid: GridSpec, config: InputConfig) -> Alignment:
    alignment = Alignment(source.grid, grid)
    if alignment.kind not in ("same", "scaled") and not config.resample:
        raise InputError(
            f"cannot stack '{source.path}', since its grid is\n  {source.grid.describe()}\n"
            f"expected\n  {grid.describe()}",
            "Add --resample to resample it (bilinear), or --like RASTER to choose the grid.",
        )
    if alignment.kind not in ("same", "scaled"):
        if not alignment.touches():
            raise InputError(
                f"cannot stack '{source.path}', since it lies elsewhere:\n  {source.grid.describe()}\n"
                f"expected some of\n  {grid.describe()}",
                "Give rasters of one region.",
            )
        logger.info("'%s' is resampled (bilinear) to %s", source.path, grid.describe())
    return alignment


def _decode(dn: np.ndarray, plane: _Plane, out: np.ndarray, valid: np.ndarray) -> None:
    """SYKE code float32 of one stored index plane, and where it is valid (0..200, not no data)."""
    np.copyto(out, dn, casting="unsafe")
    if plane.layer.scale is not None:
        # Metadata that turn stored values into the index itself: v = (stored + offset) x scale.
        out += np.float32(plane.layer.offset or 0.0)
        out *= np.float32(100 * plane.layer.scale)
        out += np.float32(100)
    np.less_equal(out, 200, out=valid)
    valid &= out >= 0
    if plane.nodata is not None:
        valid &= dn != plane.nodata


def _check_coding(source: Source, planes: Sequence[_Plane]) -> None:
    """Refuse an index raster that holds -1..1 rather than SYKE code."""
    stored = [p for p in planes if np.issubdtype(p.layer.dtype, np.floating) and p.layer.scale is None]
    for p, values in zip(stored, _sample(source, stored), strict=True):
        if values.size and np.abs(values).max() <= 2:
            raise InputError(
                f"cannot read the index {p.name} of '{source.path}', since its values lie in "
                f"{values.min():.3g}..{values.max():.3g}, expected SYKE code 100 x index + 100 in 0..200",
                "Leave the index raster out, and the indices are computed from the bands.",
            )


def _check_samples(mosaic: _Mosaic) -> None:
    """Look at samples of a mosaic's bands for signs of a wrong scale or offset."""
    samples: dict[str, np.ndarray] = {}
    scaling: dict[str, Scaling] = {}
    for reader in mosaic.readers:
        for plane, values in zip(reader.planes, _sample(reader.source, reader.planes), strict=True):
            samples[plane.name] = values
            scaling[plane.name] = plane.scaling
    paths = list(dict.fromkeys(r.source.path for r in mosaic.readers))
    name = paths[0] if len(paths) == 1 else f"{paths[0]}' and {len(paths) - 1} more '"
    check_radiometry(samples, scaling, name.rstrip(" '"))


def _sample(source: Source, planes: Sequence[_Plane]) -> list[np.ndarray]:
    """Stored values (n,) of each plane without no data, from a lattice of places."""
    if not planes:
        return []
    # Few places where blocks are large and slow to decode; each within one block where it can be.
    large = source.block[0] * source.block[1] > 2**19
    stored: list[np.ndarray] = []
    for count, side in ((2, 512) if large else (4, 128), (8, 64)):
        windows = _lattice(source, count, side)
        read = [source.read([p.position for p in planes], w).reshape(len(planes), -1) for w in windows]
        stored = list(np.concatenate(read, axis=1))
        present = np.logical_and.reduce([_present(v, p) for v, p in zip(stored, planes, strict=True)])
        if present.sum() >= 4096:
            break
    return [v[present] for v in stored]


def _present(values: np.ndarray, plane: _Plane) -> np.ndarray:
    present = np.isfinite(values)
    if plane.name not in INDICES and values.dtype.kind in "iu":
        present &= values != 0
    if plane.nodata is not None:
        present &= values != plane.nodata
    return present


def _lattice(source: Source, count: int, side: int) -> list[Window]:
    starts = []
    for length, block in zip(source.grid.shape, source.block, strict=True):
        own = min(side, length)
        places = (round(i * (length - own) / max(1, count - 1)) for i in range(count))
        snapped = {p // block * block if block >= own and p // block * block + own <= length else p for p in places}
        starts.append((sorted(snapped), own))
    (rows, height), (cols, width) = starts
    return [Window(row, col, height, width) for row in rows for col in cols]


def _interleave(planes: np.ndarray, image: np.ndarray) -> None:
    """Copy (channel, y, x) into (y, x, channel), a few rows at a time to stay in the cache."""
    for row in range(0, planes.shape[1], _STRIP):
        image[row : row + _STRIP] = planes[:, row : row + _STRIP].transpose(1, 2, 0)


def _log_left_out(sources: Sequence[Source], used: set[str]) -> None:
    for source in sources:
        extra = [str(n or "(unnamed)") for n in source.names if n not in used]
        if extra and len(extra) < len(source.names):
            logger.info("left out of '%s': %s", source.path, ", ".join(extra))
        elif extra and not {n for n in source.names} & used and None not in source.names:
            logger.info("'%s' is not used: it holds %s", source.path, ", ".join(extra))


def _sum_counts(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in (*a, *(n for n in b if n not in a))}
