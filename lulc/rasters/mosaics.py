"""Mosaics: layers of one or many files, identified by name, converted and put on one grid."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lulc.config import InputConfig
from lulc.core.channels import LIBRARY, SYKE_FORMULAS, ChannelDefinition
from lulc.core.formula import parse
from lulc.core.grid import GridSpec
from lulc.core.schema import INDICES, SIMULATED_TAG, InputError
from lulc.core.windows import Window, squares_of
from lulc.rasters.alignment import Alignment
from lulc.rasters.indices import encode
from lulc.rasters.items import is_item
from lulc.rasters.layers import Layer, Source
from lulc.rasters.masks import ValueMask
from lulc.rasters.matching import find_layers
from lulc.rasters.missing import NOTHING, Missing, as_stored
from lulc.rasters.names import SENTINEL_BANDS, canonical_name, is_mask_name, is_scene_classification
from lulc.rasters.products import SCL_VALUES, is_product
from lulc.rasters.radiometry import (
    Scaling,
    as_fractions,
    check_limits,
    check_radiometry,
    choose_scaling,
    convert,
    recognise_backscatter,
    reflectance,
)
from lulc.rasters.sources import is_store, open_classes, open_item, open_product, open_source, open_store

logger = logging.getLogger("lulc")

_NATIVE_10_M = ("B02", "B03", "B04", "B08")

_ENOUGH = 500
"""Values that suffice to recognise how a layer is coded."""

_ROUNDING = 1.0
"""Largest change by which rounding to a whole number moves a SYKE code."""


@dataclass(frozen=True)
class Plane:
    """One layer to read, with the rules of its conversion."""

    definition: ChannelDefinition
    position: int
    layer: Layer
    scaling: Scaling
    missing: Missing

    @property
    def name(self) -> str:
        """Name of the channel, without its date."""
        return self.definition.local

    @property
    def is_reflectance(self) -> bool:
        return self.definition.kind == "reflectance"


class Reader:
    """Some layers of one source, converted and on the stack's grid.

    `mask` lies on the grid of the source: the pixels that it masks become missing before resampling could mix
    them into their neighbours. Without resampling, the mask of the whole mosaic does that. All planes follow
    one resampling rule.
    """

    def __init__(
        self, source: Source, alignment: Alignment, planes: Sequence[Plane], mask: ValueMask | None = None
    ) -> None:
        self.source = source
        self.alignment = alignment
        self.planes = tuple(planes)
        self.mask = mask

    def read(self, window: Window, only: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (values float32, valid bool), each (plane, y, x), of all planes or of those in `only`."""
        planes = self.planes if only is None else [self.planes[i] for i in only]
        if planes[0].definition.resampling == "bilinear":
            return self.alignment.bilinear(lambda there: self._convert(planes, there), window)
        both, inside = self.alignment.nearest(
            lambda there: np.concatenate(self._convert(planes, there)), window
        )
        values, valid = np.split(both, 2)
        return values, (valid > 0) & inside

    def read_into(self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]) -> None:
        """Read all planes into their slots of values and valid (plane, y, x)."""
        rows = [slots[p.name] for p in self.planes]
        if self.alignment.kind == "same":
            self._convert_into(self.planes, window, [values[i] for i in rows], [valid[i] for i in rows])
        else:
            values[rows], valid[rows] = self.read(window)

    def _convert(self, planes: Sequence[Plane], there: Window) -> tuple[np.ndarray, np.ndarray]:
        values = np.empty((len(planes), *there.shape), dtype="float32")
        valid = np.empty(values.shape, dtype=bool)
        self._convert_into(planes, there, values, valid)
        return values, valid

    def _convert_into(
        self, planes: Sequence[Plane], there: Window,
        values: Iterable[np.ndarray], valid: Iterable[np.ndarray],
    ) -> None:  # fmt: skip
        positions = [p.position for p in planes]
        stored, mask = self.source.read(positions, there), self.source.read_mask(positions, there)
        clear = self.mask.read(there) if self.mask is not None else None
        for i, (plane, dn, out, ok) in enumerate(zip(planes, stored, values, valid, strict=True)):
            if plane.is_reflectance:
                reflectance(dn, plane.scaling, plane.missing, out, ok)
            elif plane.definition.stored == "syke":
                _decode(dn, plane, out, ok)
            else:
                convert(dn, plane.definition, plane.layer, out, ok)
            if mask is not None:
                ok &= mask[min(i, len(mask) - 1)]
            if clear is not None:
                ok &= clear

    def describe(self) -> dict[str, dict[str, Any]]:
        """Plane name to file and conversion, JSON-ready."""
        described = {}
        for p in self.planes:
            resampling = "none" if self.alignment.kind == "same" else p.definition.resampling
            entry: dict[str, Any] = {"file": Path(self.source.path).name, "resampling": resampling}
            if self.source.tags.get(SIMULATED_TAG):
                entry["simulated"] = True
            if p.definition.stored == "syke":
                entry |= {"coding": "read", "nodata": list(p.missing.values)}
            elif not p.is_reflectance:
                entry |= {"kind": p.definition.kind, "stored": p.definition.stored}
            else:
                entry |= {"scale": p.scaling.scale, "scale_from": p.scaling.scale_from,
                          "offset": p.scaling.offset, "offset_from": p.scaling.offset_from}  # fmt: skip
            described[p.name] = entry
        return described

    def close(self) -> None:
        self.source.close()
        if self.mask is not None:
            self.mask.close()

    def reopen(self) -> Reader:
        mask = self.mask.reopen() if self.mask else None
        return Reader(self.source.reopen(), self.alignment, self.planes, mask)


class Mosaic:
    """Readers of one mosaic, and the scene classification of its product if it has one."""

    def __init__(self, path: str, readers: Sequence[Reader], mask: ValueMask | None) -> None:
        self.path = path
        self.readers = tuple(readers)
        self.mask = mask

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for r in self.readers for p in r.planes)

    @property
    def block_rows(self) -> int:
        """Largest number of rows that one of its files stores in a block."""
        return max((r.source.block[0] for r in self.readers), default=1)

    @property
    def left_out(self) -> tuple[int, ...] | None:
        """Masked values of the scene classification; None without one."""
        return self.mask.values if self.mask else None

    def describe(self) -> dict[str, dict[str, Any]]:
        """Plane name to file and conversion, JSON-ready."""
        return {name: entry for reader in self.readers for name, entry in reader.describe().items()}

    def read(self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]) -> None:
        """Fill the slots of this mosaic's planes in values and valid (plane, y, x)."""
        for reader in self.readers:
            reader.read_into(window, values, valid, slots)
        if self.mask is not None:
            clear = self.mask.read(window)
            for name in self.names:
                valid[slots[name]] &= clear

    def patch(
        self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]
    ) -> dict[str, np.ndarray]:
        """Fill missing pixels in place; return the filled pixels, bool (y, x), of each band that had any."""
        filled: dict[str, np.ndarray] = {}
        clear: np.ndarray | None = None
        for reader in self.readers:
            lacking = [i for i, p in enumerate(reader.planes) if not valid[slots[p.name]].all()]
            if not lacking:
                continue
            fill_values, fill_valid = reader.read(window, lacking)
            if self.mask is not None and clear is None:
                clear = self.mask.read(window)
            for i, value, ok in zip(lacking, fill_values, fill_valid, strict=True):
                slot = slots[reader.planes[i].name]
                take = ok & ~valid[slot] if clear is None else ok & clear & ~valid[slot]
                np.copyto(values[slot], value, where=take)
                valid[slot] |= take
                filled[reader.planes[i].name] = take
        return filled

    def reopen(self) -> Mosaic:
        mask = self.mask.reopen() if self.mask else None
        return Mosaic(self.path, [r.reopen() for r in self.readers], mask)

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
        if self.mask is not None:
            self.mask.close()

    def identity(self) -> Iterator[dict[str, Any]]:
        for reader in self.readers:
            yield reader.source.identity()
        if self.mask is not None:
            yield self.mask.identity()


def open_in(path: str | Source, config: InputConfig, opened: contextlib.ExitStack) -> Source:
    """Open one raster as the options allow and let `opened` close it; an open source is taken over."""
    if isinstance(path, Source):
        return opened.enter_context(path)
    return opened.enter_context(
        open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
    )


def open_bands(
    paths: Sequence[str | Source], config: InputConfig, wanted: Sequence[str], opened: contextlib.ExitStack,
    *, classified: bool = True,
) -> tuple[list[Source], Source | None]:  # fmt: skip
    """Open band files, products and STAC items; return their sources and the first scene classification.

    The latter is None where there is none, or where `classified` is False.
    """
    sources: list[Source] = []
    masks: list[Source] = []

    def add(band_sources: Sequence[Source], mask: Source | str | None) -> None:
        sources.extend(opened.enter_context(source) for source in band_sources)
        if mask is not None and classified:
            masks.append(open_in(mask, config, opened))
        elif isinstance(mask, Source):
            opened.enter_context(mask)

    for path in paths:
        if isinstance(path, Source):
            add([path], None)
        elif is_item(path):
            add(*open_item(path, wanted, allow_remote=config.allow_remote))
        elif is_store(path):
            add(*open_store(path, wanted))
        elif is_product(path):
            bands, product = open_product(path, wanted)
            # First the bands, so that they are closed if the scene classification can't be opened.
            add(bands, None)
            add([], open_classes(product) if classified else None)
            offsets = sorted({product.offsets[s.names[0] or ""] for s in bands})
            logger.info("'%s': level %s, scale %g, offset %s DN", path, product.level, product.scale, offsets)
        else:
            source = open_in(path, config, opened)
            if is_scene_classification(path) and len(source.layers) == 1:
                masks += [source] if classified else []
            elif is_mask_name(path) and _is_mask(source):
                logger.warning(
                    "'%s' is not used: it looks like a mask and is no band; to mask its pixels, type "
                    "--mask %s", path, shlex.quote(path),
                )  # fmt: skip
            else:
                sources.append(source)
    return sources, masks[0] if masks else None


def _is_mask(source: Source) -> bool:
    """True for a source with a single integer layer whose name is neither a band nor an index."""
    (layer, *rest) = source.layers
    return not rest and np.issubdtype(layer.dtype, np.integer) and layer.name not in SENTINEL_BANDS + INDICES


def finest_grid(sources: Sequence[Source], planes: Sequence[Sequence[Plane]]) -> GridSpec:
    """Return the finest grid among the Sentinel-2 bands (10 m bands win ties), else among all layers read."""
    candidates = [
        source.grid
        for preferred in (_NATIVE_10_M, SENTINEL_BANDS)
        for source, source_planes in zip(sources, planes, strict=True)
        if any(p.name in preferred for p in source_planes)
    ] or [source.grid for source, source_planes in zip(sources, planes, strict=True) if source_planes]
    if not candidates:
        raise InputError(
            "cannot decide on a grid, since no band is read, expected at least one",
            "Give the bands, or a grid: --like RASTER",
        )
    # Pixel sizes in one CRS compare; min keeps the first of equals.
    return min(candidates, key=lambda g: g.pixel_size if g.crs == candidates[0].crs else (np.inf, np.inf))


def build_mosaic(
    path: str, sources: Sequence[Source], planes: Sequence[Sequence[Plane]], grid: GridSpec,
    config: InputConfig, mask: Source | None, *, left_out: tuple[int, ...] | None = None, quiet: bool = False,
    own_grids: bool = False,
) -> Mosaic:  # fmt: skip
    """Put the planes of some sources on one grid.

    Parameters
    ----------
    mask
        Scene classification of the product; with `left_out` (masked values, empty for 1) a mask of the user.
    quiet
        Log resampling at the level DEBUG.
    own_grids
        Accept sources on any grid, as with ``--resample``.
    """
    readers = []
    for source, source_planes in zip(sources, planes, strict=True):
        for rule in dict.fromkeys(p.definition.resampling for p in source_planes):
            alignment = Alignment(source.grid, grid)
            if alignment.kind not in ("same", "scaled"):
                _check_resampling(alignment, source.path, allowed=config.resample or own_grids)
                level = logging.DEBUG if quiet else logging.INFO
                logger.log(level, "'%s' is resampled (%s) to %s", source.path, rule, grid.describe())
            resampled = [p for p in source_planes if p.definition.resampling == rule]
            readers.append(Reader(source, alignment, resampled))
    if mask is None:
        return Mosaic(path, readers, None)
    if left_out is None:
        # With --mask, --mask-values are the values of that raster, not of the scene classification.
        left_out = (() if config.mask else config.mask_values) or SCL_VALUES
    scene = ValueMask(mask, grid, left_out, resample=config.resample, grow=config.grow_mask)
    for reader in readers:
        if reader.alignment.kind != "same":
            reader.mask = ValueMask(mask, reader.source.grid, scene.values, resample=True)
    return Mosaic(path, readers, scene)


def _check_resampling(alignment: Alignment, path: str, *, allowed: bool) -> None:
    """Refuse a source on another grid where resampling is not allowed, or where it lies elsewhere."""
    if not allowed:
        raise InputError(
            f"cannot stack '{path}', since its grid is\n  {alignment.source.describe()}\n"
            f"expected\n  {alignment.grid.describe()}",
            "Add --resample to resample it (bilinear), or --like RASTER to choose the grid.",
        )
    if not alignment.touches():
        raise InputError(
            f"cannot stack '{path}', since it lies elsewhere:\n  {alignment.source.describe()}\n"
            f"expected some of\n  {alignment.grid.describe()}",
            "Give rasters of one region.",
        )


def band_planes(
    sources: Sequence[Source], config: InputConfig, needed: Sequence[str | ChannelDefinition], what: str, *,
    complete: bool = True,
) -> list[list[Plane]]:  # fmt: skip
    """Return the planes to read from each source, checked against the channels needed.

    With `complete` False, one of the channels suffices. Channels that may be missing are never required.
    """
    wanted = [LIBRARY[one] if isinstance(one, str) else one for one in needed]
    known = list(dict.fromkeys((*SENTINEL_BANDS, *(one.local for one in wanted))))
    names = _name_layers(sources, config.band_names, "--band-names", known)
    channels = find_layers(sources, names, wanted)
    for source, layer_names, taken in zip(sources, names, channels, strict=True):
        unused = [name or "" for i, name in enumerate(layer_names) if i not in taken]
        if classes := [n for n in unused if re.fullmatch("scl|scene.classification.*", n, re.IGNORECASE)]:
            logger.warning(
                "'%s' holds the scene classification %s, which is not used, so that clouds stay; leave them "
                "out with --mask and --mask-values, or in Python with array.where(~scl.isin([3, 8, 9, 10]))",
                source.path, classes[0],
            )  # fmt: skip
    _check_names(
        sources, names, [one.local for taken in channels for one in taken.values()],
        [one.local for one in wanted if not one.may_be_missing], what, complete=complete,
    )  # fmt: skip
    return [planes_of(source, taken, config) for source, taken in zip(sources, channels, strict=True)]


def with_nodata(layer: Layer, config: InputConfig) -> Layer:
    """Return a layer whose missing values include that of ``--nodata``."""
    return dataclasses.replace(layer, missing=layer.missing.also(as_stored(config.nodata, layer.dtype)))


def planes_of(source: Source, channels: Mapping[int, ChannelDefinition], config: InputConfig) -> list[Plane]:
    """Return the planes of a source for the channels at these positions."""
    planes = []
    for i, one in channels.items():
        # Derivatives of terrain are computed, so that --nodata doesn't apply to them.
        layer = source.layers[i] if "(" in one.name else with_nodata(source.layers[i], config)
        scaling, missing = Scaling(), layer.missing
        if one.kind == "reflectance":
            scaling = choose_scaling(layer, config.scale, config.offset, (one.scale, one.offset))
            # Conversion to reflectance masks 0 in any case.
            missing = missing.without(0.0)
        planes.append(Plane(one, i, layer, scaling, missing))
    unscaled = [p for p in planes if p.is_reflectance and p.layer.plain and p.scaling.scale_from == "default"]
    for plane, values in zip(unscaled, _sample(source, unscaled), strict=True):
        planes[planes.index(plane)] = dataclasses.replace(plane, scaling=as_fractions(plane.scaling, values))
    bounded = [plane for plane in planes if plane.definition.has_limits and "(" not in plane.name]
    for plane, values in zip(bounded, _sample(source, bounded), strict=True):
        check_limits(values, plane.definition, plane.layer, f"{plane.name} of '{source.path}'")
    radar = [plane for plane in planes if plane.definition.stored == "auto"]
    for plane, values in zip(radar, _sample(source, radar), strict=True):
        stored = recognise_backscatter(values, plane.layer, f"{plane.name} of '{source.path}'")
        definition = dataclasses.replace(plane.definition, stored=stored)
        planes[planes.index(plane)] = dataclasses.replace(plane, definition=definition)
    return planes


def index_planes(
    sources: Sequence[Source], config: InputConfig, channels: Sequence[str]
) -> list[list[Plane]]:
    """Return the planes to read from each index raster."""
    names = _name_layers(sources, config.index_names, "--index-names", INDICES)
    wanted = [c for c in channels if c in INDICES]
    planes: list[list[Plane]] = []
    number = 0
    total = sum(name in INDICES for layer_names in names for name in layer_names)
    for source, layer_names in zip(sources, names, strict=True):
        planes.append([])
        for i, (name, layer) in enumerate(zip(layer_names, source.layers, strict=True)):
            if name not in INDICES:
                continue
            missing = _index_missing(source, i, str(name), config.index_nodata, number, total)
            number += 1
            if name in wanted:
                planes[-1].append(Plane(LIBRARY[str(name)], i, layer, Scaling(), missing))
        _check_coding(source, planes[-1])
    found = [p.name for source_planes in planes for p in source_planes]
    if sources:
        _check_names(sources, names, found, wanted, "the index rasters", complete=False)
    return planes


def _index_missing(
    source: Source, position: int, name: str, given: Sequence[float], number: int, total: int
) -> Missing:
    """Return the missing values of an index layer, which its file or the option must declare."""
    layer = source.layers[position]
    if len(given) in (1, total):
        return layer.missing.also(as_stored(given[0 if len(given) == 1 else number], layer.dtype))
    masked = source.read_mask([position], Window(0, 0, 1, 1)) is not None
    declared = layer.missing != NOTHING or masked or np.issubdtype(layer.dtype, np.floating)
    if declared and not given:
        return layer.missing
    found = f"{len(given)} values were given for {total} layers" if given else "its file declares none"
    raise InputError(
        f"cannot read the index {name} of '{source.path}', since its no-data value is not known ({found}), "
        "expected one in the file (per band), or one for all or for each layer",
        "Type --index-nodata 0, or one value per layer in file order; SYKE's mosaics have 0, "
        "but 255 for NDBI: --index-nodata 0 0 255 0 0",
    )


def _name_layers(
    sources: Sequence[Source], given: Sequence[str], option: str, known: Sequence[str]
) -> list[list[str | None]]:
    """Return the names of all layers; the option names those without a known name, in file order."""
    names = [list(source.names) for source in sources]
    if not given:
        return names
    wanted = [n if n in known else canonical_name(n) for n in given]
    unknown = [n for n, name in zip(given, wanted, strict=True) if name not in known]
    if unknown:
        raise InputError(
            f"cannot use {option} {' '.join(given)}, since {', '.join(unknown)} is no such name, "
            f"expected names among {', '.join(known)}",
            "Spell them as in B02, B8A, nir, NDVI.",
        )
    positions = _layers_to_name(sources, names, wanted, known)
    unordered = [
        sources[i].path for i, j in positions or () if not sources[i].ordered and names[i][j] not in known
    ]
    if positions is None or unordered:
        problem, hint = (
            f"{len(given)} names fit neither the unnamed layers nor all",
            "Give the names in file order, or correct those in the file (band descriptions).",
        )
        if unordered:
            problem = f"the variables of '{unordered[0]}' have no order, as in every Zarr folder"
            hint = "Rename the variables: dataset.rename({'red_reflectance': 'B04'})"
        raise InputError(
            f"cannot use {option} {' '.join(given)}, since {problem}; found\n{_listing(sources, names)}\n"
            "expected one name for each unnamed layer, or for each layer one that agrees with its own",
            hint,
        )
    for (i, j), name in zip(positions, wanted, strict=True):
        names[i][j] = name
        if sources[i].layers[j].alpha:
            sources[i].use_alpha()
    return names


def _layers_to_name(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], wanted: Sequence[str | None],
    known: Sequence[str],
) -> list[tuple[int, int]] | None:  # fmt: skip
    """Return (source, layer) of each given name: the unnamed layers, else all; None where neither fits."""
    every = [(i, j) for i, layer_names in enumerate(names) for j in range(len(layer_names))]
    opaque = [(i, j) for i, j in every if not sources[i].layers[j].alpha]
    for layers in (opaque, every):
        unnamed = [(i, j) for i, j in layers if names[i][j] not in known]
        for candidates in (unnamed, layers):
            agree = all(
                names[i][j] in (name, None) or names[i][j] not in known
                for (i, j), name in zip(candidates, wanted, strict=False)
            )
            if len(candidates) == len(wanted) and agree:
                return candidates
    # The option may repeat, in the same order, names that the files have already.
    named = [(i, j) for i, j in every if names[i][j] in wanted]
    found = [names[i][j] for i, j in named]
    if not all(source.ordered for source in sources):
        named = [named[found.index(name)] for name in wanted if name in found]
        found = [names[i][j] for i, j in named]
    return named if found == list(wanted) else None


def missing_channels(names: Sequence[str], found: str, expected: Sequence[str]) -> InputError:
    """Return the error for channels that no raster holds; `found` lists the rasters and their layers."""
    # Derivatives of terrain are computed from the layer in their brackets.
    names, expected = (
        list(dict.fromkeys(n.partition("(")[2].rstrip(")") or n for n in group))
        for group in (names, expected)
    )
    verb = "is" if len(names) == 1 else "are"
    return InputError(
        f"cannot make a stack, since {listed(names)} {verb} missing; found\n{found}\n"
        f"expected {listed(expected)}, each once",
        "Give the rasters that hold them: --layers RASTER; where its layers have no such names, "
        f"--layers {','.join(names[:3])}=RASTER.",
    )


def listed(names: Sequence[str | None]) -> str:
    """Return up to 20 names of layers as text."""
    more = [f"... ({len(names)} in all)"] if len(names) > 20 else []
    return ", ".join([*(str(n or "(unnamed)") for n in names[:20]), *more])


def _listing(sources: Sequence[Source], names: Sequence[Sequence[str | None]]) -> str:
    """Return a line for each source, with the names of its layers, for error messages."""
    return "\n".join(f"  {s.path}: {listed(own)}" for s, own in zip(sources, names, strict=True))


def _check_names(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], found: Sequence[str],
    needed: Sequence[str], what: str, *, complete: bool,
) -> None:  # fmt: skip
    """Refuse names that occur twice, or are missing; without `complete`, only if all are missing."""
    missing = [n for n in needed if n not in found]
    twice = sorted({n for n in found if found.count(n) > 1})
    if not twice and (not missing or (not complete and found)):
        return
    listing = _listing(sources, names) or "  no file"
    index = bool(needed) and needed[0] in INDICES
    option = "--index-names" if index else "--band-names"
    further = [n for n in missing if n not in SENTINEL_BANDS and not index]
    unnamed = sum(name is None for own in names for name in own)
    if further and not twice and unnamed < len(needed):
        raise missing_channels(missing, listing, needed)
    verb = "is" if len(twice or missing) == 1 else "are"
    problem = f"{', '.join(twice or missing)} {verb} {'there twice' if twice else 'missing'}"
    raise InputError(
        f"cannot make a stack of {what}, since {problem}; found\n{listing}\n"
        f"expected {', '.join(needed)}, each once",
        ("Give each index once." if index else "Give each band once: mosaics of other dates with --fill, "
         "neighbouring tiles as one file (gdalbuildvrt mosaic.vrt A.tif B.tif) with --allow-vrt.")
        if twice else
        f"Give the missing files, or name unnamed layers in file order: {option} {' '.join(needed)}",
    )  # fmt: skip


def _decode(dn: np.ndarray, plane: Plane, out: np.ndarray, valid: np.ndarray) -> None:
    """Write the SYKE code of a stored index plane to `out` float32, and where it is in 0..200 to `valid`."""
    np.copyto(out, dn, casting="unsafe")
    factor, addend = plane.layer.packing
    if (factor, addend) != (1.0, 0.0):
        # The metadata convert stored values to the index itself: index = stored x factor + addend.
        out *= np.float32(100 * factor)
        out += np.float32(100 * addend + 100)
    np.less_equal(out, 200, out=valid)
    valid &= out >= 0
    plane.missing.mark(dn, valid)


def _check_coding(source: Source, planes: Sequence[Plane]) -> None:
    """Refuse an index raster whose values can't be SYKE codes: those within -1..1, and those above 200.

    The majority of values decides, since an undeclared no-data value, though only one, may occur often.
    """
    stored = [p for p in planes if p.layer.packing == (1.0, 0.0)]
    for p, values in zip(stored, _sample(source, stored), strict=True):
        near = values[(values >= -2) & (values <= 200) & (values != 0)]
        is_code = (values >= 0) & (values <= 200)
        _, others = np.unique(values[~is_code], return_counts=True)
        if (near.size and np.quantile(np.abs(near), 0.9) <= 2) or (
            others.sum() - others.max(initial=0) > is_code.sum()
        ):
            low, high = np.quantile(values, (0.25, 0.75))
            raise _not_coded(p.name, source.path, f"half of its values lie in {low:.3g}..{high:.3g}")


def check_coding(bands: Any, indices: Mosaic) -> None:
    """Refuse an index raster in another coding than SYKE's, by comparing samples with the bands' indices.

    Detected are an index of these very bands in another coding, and 100 x index of any date.
    """
    formulas = {name: parse(SYKE_FORMULAS[name]) for name in indices.names}
    known = {name: formula for name, formula in formulas.items() if {*formula.names} <= {*bands.names}}
    if not known:
        return
    names = (*bands.names, *indices.names)
    slots, samples = {name: i for i, name in enumerate(names)}, []
    first = indices.readers[0]
    for window in _sample_windows(first.alignment.grid, first.source.block):
        shape = (len(names), *window.shape)
        values, valid = np.zeros(shape, "float32"), np.zeros(shape, bool)
        bands.read(window, values, valid, slots)
        indices.read(window, values, valid, slots)
        samples.append(np.where(valid, values, np.nan).reshape(len(names), -1))
    planes = dict(zip(names, np.concatenate(samples, axis=1), strict=True))
    for name, formula in known.items():
        path = next(r.source.path for r in indices.readers if name in {p.name for p in r.planes})
        computed = encode(formula.evaluate(planes))
        # Codes at the ends may be clipped.
        both = (planes[name] > 0) & (planes[name] < 200) & (computed > 0) & (computed < 200)
        if both.sum() >= _ENOUGH and _is_recoded(planes[name][both], computed[both]):
            read, expected = (np.median(codes[both]) for codes in (planes[name], computed))
            found = f"the median of samples is {read:.4g}, where the bands give the code {expected:.4g}"
            raise _not_coded(name, path, found)


def _is_recoded(read: np.ndarray, computed: np.ndarray) -> bool:
    """True where values (n,) are an index in another coding than the SYKE codes (n,) computed from the bands.

    An index of these very bands is, but for rounding, a straight line over their code; SYKE's coding has
    slope 1 and intercept 0. Indices of other dates and composites scatter around any line. Among those only
    100 x index is recognised: it is off by 100 codes, more than seasons move the median of an image.
    """
    order = np.argsort(computed)
    thirds = order[: len(order) // 3], order[-(len(order) // 3) :]
    (x0, y0), (x1, y1) = ((np.median(computed[part]), np.median(read[part])) for part in thirds)
    if x1 - x0 > _ROUNDING and y1 > y0:
        slope = (y1 - y0) / (x1 - x0)
        scatter = np.median(np.abs(read - y0 - slope * (computed - x0))) / slope
        if 2 * scatter <= _ROUNDING and max(abs(y0 - x0), abs(y1 - x1)) > 2 * _ROUNDING:
            return True
    return bool(2 * np.median(np.abs(read + 100 - computed)) < np.median(np.abs(read - computed)))


def _not_coded(name: str, path: str, found: str) -> InputError:
    return InputError(
        f"cannot read the index {name} of '{path}', since {found}, expected SYKE code 100 x index + 100 in "
        "0..200",
        "Leave the index raster out, and the indices are computed from the bands.",
    )


def check_samples(mosaic: Mosaic) -> None:
    """Check samples of a mosaic's bands for signs of a wrong scale or offset."""
    readers = [
        Reader(reader.source, reader.alignment, planes)
        for reader in mosaic.readers
        if (planes := [plane for plane in reader.planes if plane.is_reflectance])
    ]
    if not readers:
        return
    scaling = {plane.name: plane.scaling for reader in readers for plane in reader.planes}
    paths = list(dict.fromkeys(r.source.path for r in readers))
    check_radiometry(_sample_bands(readers), scaling, paths[0], len(paths) - 1)


def _sample_bands(readers: Sequence[Reader]) -> dict[str, np.ndarray]:
    """Return stored values (n,) of each band from the same pixels of the grid, 0 where they are missing."""
    finest = next((r for r in readers if r.alignment.kind == "same"), readers[0])
    samples: dict[str, np.ndarray] = {}
    for density in (None, (8, 64)):
        windows = _sample_windows(readers[0].alignment.grid, finest.source.block, density)
        samples = {}
        for reader in readers:
            parts = [_stored_on_grid(reader, window).reshape(len(reader.planes), -1) for window in windows]
            samples |= dict(zip((p.name for p in reader.planes), np.concatenate(parts, axis=1), strict=True))
        if np.logical_and.reduce([values != 0 for values in samples.values()]).sum() >= 4096:
            break
    return samples


def _stored_on_grid(reader: Reader, window: Window) -> np.ndarray:
    """Return stored values (plane, y, x) on the grid, by nearest neighbour, 0 where they are missing."""

    def read(there: Window) -> np.ndarray:
        stored, present = _stored(reader.source, reader.planes, there)
        return np.where(present, stored, stored.dtype.type(0))

    values, inside = reader.alignment.nearest(read, window)
    return np.where(inside, values, values.dtype.type(0))


def _sample(source: Source, planes: Sequence[Plane]) -> list[np.ndarray]:
    """Return stored values (n,) of each plane, without missing ones, from sample windows of its file.

    Where these hold too few, the whole file is read until there are enough.
    """
    if not planes:
        return []
    samples = _values_in(source, planes, _sample_windows(source.grid, source.block, (4, 128)))
    for window in squares_of(source.grid.extent):
        if all(values.size >= _ENOUGH for values in samples):
            break
        more = _values_in(source, planes, [window])
        samples = [
            old if old.size >= _ENOUGH else np.concatenate((old, new))
            for old, new in zip(samples, more, strict=True)
        ]
    return samples


def _values_in(source: Source, planes: Sequence[Plane], windows: Sequence[Window]) -> list[np.ndarray]:
    """Return stored values (n,) of each plane in some windows of its file, without missing ones."""
    parts = []
    for window in windows:
        stored, present = _stored(source, planes, window)
        parts.append([values[there] for values, there in zip(stored, present, strict=True)])
    return [np.concatenate(plane_parts) for plane_parts in zip(*parts, strict=True)]


def _stored(source: Source, planes: Sequence[Plane], window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return stored values of some planes and, bool, where they are not missing; both (plane, y, x)."""
    positions = [plane.position for plane in planes]
    stored, mask = source.read(positions, window), source.read_mask(positions, window)
    present = np.stack([p.missing.present(values) for p, values in zip(planes, stored, strict=True)])
    for i, plane in enumerate(planes):
        if plane.definition.kind in ("reflectance", "backscatter"):
            present[i] &= stored[i] != 0
    return stored, present if mask is None else present & mask


def _sample_windows(
    grid: GridSpec, block: tuple[int, int], density: tuple[int, int] | None = None
) -> list[Window]:
    """Return windows at even distances, each within one stored block if it fits.

    `density` is their number along each axis and their side; None for few where blocks are slow to decode.
    """
    count, side = density or ((2, 512) if block[0] * block[1] > 2**19 else (4, 128))
    axes = []
    for length, block_length in zip(grid.shape, block, strict=True):
        size = min(side, length)
        starts = set()
        for i in range(count):
            start = round(i * (length - size) / max(1, count - 1))
            in_block = start // block_length * block_length
            starts.add(in_block if block_length >= size and in_block + size <= length else start)
        axes.append((sorted(starts), size))
    (rows, height), (cols, width) = axes
    return [Window(row, col, height, width) for row in rows for col in cols]
