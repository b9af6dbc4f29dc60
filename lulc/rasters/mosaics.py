"""Mosaics: layers of one or many files, found by name, converted, and brought onto one grid."""

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
from lulc.rasters.products import SCL_VALUES
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
from lulc.rasters.sources import (
    is_safe,
    is_store,
    open_classes,
    open_item,
    open_product,
    open_source,
    open_store,
)

logger = logging.getLogger("lulc")

_NATIVE_10_M = ("B02", "B03", "B04", "B08")

_CLASSES = re.compile("scl|scene.classification.*", re.IGNORECASE)
"""Names of a layer that holds a scene classification."""

_ENOUGH = 500
"""Values that show in which coding a layer is stored."""

_ROUNDING = 1.0
"""Step of a SYKE code that is rounded to a whole number."""


@dataclass(frozen=True)
class Plane:
    """One layer that is read: which, and what becomes of it."""

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

    `mask` lies on the pixels of the source: what it leaves out is missing before resampling could mix it into
    its neighbours. Where nothing is resampled, the mask of the whole mosaic does it. All planes are resampled
    by one rule.
    """

    def __init__(
        self, source: Source, alignment: Alignment, planes: Sequence[Plane], mask: ValueMask | None = None
    ) -> None:
        self.source = source
        self.alignment = alignment
        self.planes = tuple(planes)
        self.mask = mask

    def read(self, window: Window, only: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(values float32 (plane, y, x), valid bool (plane, y, x)) of all planes, or of those of `only`."""
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
        own = [slots[p.name] for p in self.planes]
        if self.alignment.kind == "same":
            self._convert_into(self.planes, window, [values[i] for i in own], [valid[i] for i in own])
        else:
            values[own], valid[own] = self.read(window)

    def _convert(self, planes: Sequence[Plane], there: Window) -> tuple[np.ndarray, np.ndarray]:
        values = np.empty((len(planes), *there.shape), dtype="float32")
        valid = np.empty(values.shape, dtype=bool)
        self._convert_into(planes, there, values, valid)
        return values, valid

    def _convert_into(
        self, planes: Sequence[Plane], there: Window,
        values: Iterable[np.ndarray], valid: Iterable[np.ndarray],
    ) -> None:  # fmt: skip
        own = [p.position for p in planes]
        stored, mask = self.source.read(own, there), self.source.read_mask(own, there)
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
        file = Path(self.source.path).name
        described = {}
        for p in self.planes:
            moved = "none" if self.alignment.kind == "same" else p.definition.resampling
            said: dict[str, Any] = {"file": file, "resampling": moved}
            if self.source.tags.get(SIMULATED_TAG):
                said["simulated"] = True
            if p.definition.stored == "syke":
                said |= {"coding": "read", "nodata": list(p.missing.values)}
            elif not p.is_reflectance:
                said |= {"kind": p.definition.kind, "stored": p.definition.stored}
            else:
                said |= {"scale": p.scaling.scale, "scale_from": p.scaling.scale_from,
                         "offset": p.scaling.offset, "offset_from": p.scaling.offset_from}  # fmt: skip
            described[p.name] = said
        return described

    def close(self) -> None:
        self.source.close()
        if self.mask is not None:
            self.mask.close()

    def reopen(self) -> Reader:
        mask = self.mask.reopen() if self.mask else None
        return Reader(self.source.reopen(), self.alignment, self.planes, mask)


class Mosaic:
    """The readers of one mosaic, with the scene classification of its own product where there is one."""

    def __init__(self, path: str, readers: Sequence[Reader], mask: ValueMask | None) -> None:
        self.path = path
        self.readers = tuple(readers)
        self.mask = mask

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for r in self.readers for p in r.planes)

    @property
    def block_rows(self) -> int:
        """Rows that files store together, at most."""
        return max((r.source.block[0] for r in self.readers), default=1)

    @property
    def left_out(self) -> tuple[int, ...] | None:
        """Values of the scene classification that make a pixel missing; None where there is none."""
        return self.mask.values if self.mask else None

    def describe(self) -> dict[str, dict[str, Any]]:
        """Plane name to file and conversion, JSON-ready."""
        return {name: said for reader in self.readers for name, said in reader.describe().items()}

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
        """Fill missing pixels; returns, for each band that gained, the filled pixels bool (y, x)."""
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
    """Open one raster as the options admit, closed with `opened`; an open one is taken over."""
    if isinstance(path, Source):
        return opened.enter_context(path)
    return opened.enter_context(
        open_source(path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
    )


def open_bands(
    paths: Sequence[str | Source], config: InputConfig, wanted: Sequence[str], opened: contextlib.ExitStack,
    *, classified: bool = True,
) -> tuple[list[Source], Source | None]:  # fmt: skip
    """The sources of band files, products and STAC items, and the scene classification of the (only) product.

    The latter is None where there is none, or where `classified` is False.
    """
    sources: list[Source] = []
    masks: list[Source] = []
    for path in paths:
        if isinstance(path, Source):
            sources.append(opened.enter_context(path))
            continue
        if is_item(path):
            found, mask = open_item(path, wanted, allow_remote=config.allow_remote)
            sources += [opened.enter_context(source) for source in found]
            if mask is not None and classified:
                masks.append(open_in(mask, config, opened))
            continue
        if is_store(path):
            parts, own = open_store(path, wanted)
            sources += [opened.enter_context(source) for source in parts]
            if own is not None:
                opened.enter_context(own)
            masks += [own] if own is not None and classified else []
            continue
        if not is_safe(path):
            source = open_in(path, config, opened)
            if is_scene_classification(path) and len(source.layers) == 1:
                masks += [source] if classified else []
            elif is_mask_name(path) and _is_mask(source):
                logger.warning(
                    "'%s' is no band and is not used: it looks like a mask; to leave out its pixels, type "
                    "--mask %s", path, shlex.quote(path),
                )  # fmt: skip
            else:
                sources.append(source)
            continue
        found, product = open_product(path, wanted)
        sources += [opened.enter_context(source) for source in found]
        own = open_classes(product) if classified else None
        if own is not None:
            masks.append(opened.enter_context(own))
        logger.info(
            "'%s': level %s, scale %g, offset %s DN",
            path, product.level, product.scale, sorted({product.offsets[s.names[0] or ""] for s in found}),
        )  # fmt: skip
    return sources, masks[0] if masks else None


def _is_mask(source: Source) -> bool:
    """True for one layer of whole numbers that is no band by name."""
    (layer, *rest) = source.layers
    return not rest and np.issubdtype(layer.dtype, np.integer) and layer.name not in SENTINEL_BANDS + INDICES


def finest_grid(sources: Sequence[Source], planes: Sequence[Sequence[Plane]]) -> GridSpec:
    """The finest grid among the bands of Sentinel-2, of equals that of a band of 10 m; else among all."""
    candidates = [
        source.grid
        for preferred in (_NATIVE_10_M, SENTINEL_BANDS)
        for source, own in zip(sources, planes, strict=True)
        if any(p.name in preferred for p in own)
    ] or [source.grid for source, own in zip(sources, planes, strict=True) if own]
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
    """Lay the planes of some sources on one grid.

    `mask` is the scene classification of their product, or a mask of the user's own with the values that are
    `left_out` of it, 1 where there are none. `quiet` keeps what is resampled out of the messages;
    `own_grids` admits sources on any grid.
    """
    readers = []
    for source, own in zip(sources, planes, strict=True):
        for rule in dict.fromkeys(p.definition.resampling for p in own):
            alignment = _align(source, grid, config, rule, quiet=quiet, own_grid=own_grids)
            readers.append(Reader(source, alignment, [p for p in own if p.definition.resampling == rule]))
    scene = None
    if mask is not None:
        # With --mask the values given are those of that raster.
        classes = (() if config.mask else config.mask_values) or SCL_VALUES
        values = classes if left_out is None else left_out
        scene = ValueMask(mask, grid, values, resample=config.resample, grow=config.grow_mask)
        for reader in readers:
            if reader.alignment.kind != "same":
                reader.mask = ValueMask(mask, reader.source.grid, scene.values, resample=True)
    return Mosaic(path, readers, scene)


def band_planes(
    sources: Sequence[Source], config: InputConfig, needed: Sequence[str | ChannelDefinition], what: str, *,
    complete: bool = True,
) -> list[list[Plane]]:  # fmt: skip
    """For each source the planes to read of it, checked against the channels needed.

    With `complete` False, a few of them are enough. Channels that may be missing need not be there.
    """
    wanted = [LIBRARY[one] if isinstance(one, str) else one for one in needed]
    known = list(dict.fromkeys((*SENTINEL_BANDS, *(one.local for one in wanted))))
    names = _given_names(sources, config.band_names, "--band-names", known)
    found = find_layers(sources, names, wanted)
    for source, own, taken in zip(sources, names, found, strict=True):
        if unused := [n for i, n in enumerate(own) if i not in taken and re.fullmatch(_CLASSES, n or "")]:
            logger.warning(
                "'%s' holds the scene classification %s, which is not used, so that clouds stay; leave them "
                "out with --mask and --mask-values, or in Python with array.where(~scl.isin([3, 8, 9, 10]))",
                source.path, unused[0],
            )  # fmt: skip
    _check_names(
        sources, names, [one.local for own in found for one in own.values()],
        [one.local for one in wanted if not one.may_be_missing], what, complete=complete,
    )  # fmt: skip
    return [planes_of(source, own, config) for source, own in zip(sources, found, strict=True)]


def with_nodata(layer: Layer, config: InputConfig) -> Layer:
    """Return a layer with the no data of ``--nodata`` beside its own."""
    return dataclasses.replace(layer, missing=layer.missing.also(as_stored(config.nodata, layer.dtype)))


def planes_of(source: Source, found: Mapping[int, ChannelDefinition], config: InputConfig) -> list[Plane]:
    """Return the planes of the layers of a source, by position in it."""
    planes = []
    for i, one in found.items():
        # What is derived of a layer holds no stored values.
        layer = source.layers[i] if "(" in one.name else with_nodata(source.layers[i], config)
        scaling, missing = Scaling(), layer.missing
        if one.kind == "reflectance":
            scaling = choose_scaling(layer, config.scale, config.offset, (one.scale, one.offset))
            # Conversion to reflectance leaves 0 out in any case.
            missing = missing.without(0.0)
        planes.append(Plane(one, i, layer, scaling, missing))
    fractions = [
        p for p in planes if p.is_reflectance and p.layer.plain and p.scaling.scale_from == "default"
    ]
    scaled = {
        plane.position: as_fractions(plane.scaling, values)
        for plane, values in zip(fractions, _sample(source, fractions), strict=True)
    }
    planes = [dataclasses.replace(p, scaling=scaled.get(p.position, p.scaling)) for p in planes]
    bounded = [plane for plane in planes if plane.definition.has_limits and "(" not in plane.name]
    for plane, values in zip(bounded, _sample(source, bounded), strict=True):
        check_limits(values, plane.definition, plane.layer, f"{plane.name} of '{source.path}'")
    radar = [plane for plane in planes if plane.definition.stored == "auto"]
    stored = {
        plane.position: recognise_backscatter(values, plane.layer, f"{plane.name} of '{source.path}'")
        for plane, values in zip(radar, _sample(source, radar), strict=True)
    }
    return [
        dataclasses.replace(p, definition=dataclasses.replace(p.definition, stored=stored[p.position]))
        if p.position in stored else p
        for p in planes
    ]  # fmt: skip


def index_planes(
    sources: Sequence[Source], config: InputConfig, channels: Sequence[str]
) -> list[list[Plane]]:
    """For each index raster the planes to read of it."""
    names = _given_names(sources, config.index_names, "--index-names", INDICES)
    wanted = [c for c in channels if c in INDICES]
    planes: list[list[Plane]] = []
    position = 0
    total = sum(name in INDICES for own in names for name in own)
    for source, own in zip(sources, names, strict=True):
        planes.append([])
        for i, (name, layer) in enumerate(zip(own, source.layers, strict=True)):
            if name not in INDICES:
                continue
            missing = _index_missing(source, i, str(name), config.index_nodata, position, total)
            position += 1
            if name in wanted:
                planes[-1].append(Plane(LIBRARY[str(name)], i, layer, Scaling(), missing))
        _check_coding(source, planes[-1])
    found = [p.name for own in planes for p in own]
    if sources:
        _check_names(sources, names, found, wanted, "the index rasters", complete=False)
    return planes


def _index_missing(
    source: Source, number: int, name: str, given: Sequence[float], position: int, total: int
) -> Missing:
    """Return the no data of an index layer, which its file or the option must declare."""
    layer = source.layers[number]
    if len(given) in (1, total):
        return layer.missing.also(as_stored(given[0 if len(given) == 1 else position], layer.dtype))
    masked = source.read_mask([number], Window(0, 0, 1, 1)) is not None
    said = layer.missing != NOTHING or masked or np.issubdtype(layer.dtype, np.floating)
    if said and not given:
        return layer.missing
    found = f"{len(given)} values were given for {total} layers" if given else "its file declares none"
    raise InputError(
        f"cannot read the index {name} of '{source.path}', since its no-data value is not known ({found}), "
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
    wanted = [n if n in known else canonical_name(n) for n in given]
    wrong = [n for n, name in zip(given, wanted, strict=True) if name not in known]
    if wrong:
        raise InputError(
            f"cannot use {option} {' '.join(given)}, since {', '.join(wrong)} is no such name, "
            f"expected names among {', '.join(known)}",
            "Spell them as in B02, B8A, nir, NDVI.",
        )
    places = _places_to_name(sources, names, wanted, known)
    unordered = [
        sources[i].path for i, j in places or () if not sources[i].ordered and names[i][j] not in known
    ]
    if places is None or unordered:
        layers = "\n".join(f"  {s.path}: {listed(own)}" for s, own in zip(sources, names, strict=True))
        problem = (
            f"the variables of '{unordered[0]}' have no order, as in every Zarr folder"
            if unordered
            else f"{len(given)} names fit neither the unnamed layers nor all"
        )
        raise InputError(
            f"cannot use {option} {' '.join(given)}, since {problem}; found\n{layers}\n"
            "expected one name for each unnamed layer, or for each layer one that agrees with its own",
            "Rename the variables: dataset.rename({'red_reflectance': 'B04'})"
            if unordered
            else "Give the names in file order, or correct those in the file (band descriptions).",
        )
    for (i, j), name in zip(places, wanted, strict=True):
        names[i][j] = name
        if sources[i].layers[j].alpha:
            sources[i].use_alpha()
    return names


def _places_to_name(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], wanted: Sequence[str | None],
    known: Sequence[str],
) -> list[tuple[int, int]] | None:  # fmt: skip
    """(file, layer) of each given name: the unnamed layers, else all that agree; None where neither fits."""
    every = [(i, j) for i, own in enumerate(names) for j in range(len(own))]
    opaque = [(i, j) for i, j in every if not sources[i].layers[j].alpha]
    for layers in (opaque, every):
        unnamed = [(i, j) for i, j in layers if names[i][j] not in known]
        for places in (unnamed, layers):
            agree = all(
                names[i][j] in (name, None) or names[i][j] not in known
                for (i, j), name in zip(places, wanted, strict=False)
            )
            if len(places) == len(wanted) and agree:
                return places
    # Names that stand in the files already, in the same order, say nothing new.
    named = [(i, j) for i, j in every if names[i][j] in wanted]
    found = [names[i][j] for i, j in named]
    if not all(source.ordered for source in sources):
        named = [named[found.index(name)] for name in wanted if name in found]
        found = [names[i][j] for i, j in named]
    return named if found == list(wanted) else None


def missing_channels(names: Sequence[str], found: str, expected: Sequence[str]) -> InputError:
    """Return the error of channels that no raster holds; `found` lists the rasters and their layers."""
    # A derivative of terrain lies in the layer of its elevation.
    names, expected = (
        list(dict.fromkeys(n.partition("(")[2].rstrip(")") or n for n in own)) for own in (names, expected)
    )
    verb = "is" if len(names) == 1 else "are"
    return InputError(
        f"cannot make a stack, since {listed(names)} {verb} missing; found\n{found}\n"
        f"expected {listed(expected)}, each once",
        "Give the rasters that hold them: --layers RASTER; where its layers have no such names, "
        f"--layers {','.join(names[:3])}=RASTER.",
    )


def listed(names: Sequence[str | None]) -> str:
    """Return the first names of layers as one text."""
    more = [f"... ({len(names)} in all)"] if len(names) > 20 else []
    return ", ".join([*(str(n or "(unnamed)") for n in names[:20]), *more])


def _check_names(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], found: Sequence[str],
    needed: Sequence[str], what: str, *, complete: bool,
) -> None:  # fmt: skip
    """Refuse names that are missing (all of them, where not `complete`) or given twice."""
    missing = [n for n in needed if n not in found]
    twice = sorted({n for n in found if found.count(n) > 1})
    if not twice and (not missing or (not complete and found)):
        return
    listing = "\n".join(f"  {source.path}: {listed(own)}" for source, own in zip(sources, names, strict=True))
    index = bool(needed) and needed[0] in INDICES
    option = "--index-names" if index else "--band-names"
    further = [n for n in missing if n not in SENTINEL_BANDS and not index]
    unnamed = sum(name is None for own in names for name in own)
    if further and not twice and unnamed < len(needed):
        raise missing_channels(missing, listing or "  no file", needed)
    verb = "is" if len(twice or missing) == 1 else "are"
    problem = f"{', '.join(twice or missing)} {verb} {'there twice' if twice else 'missing'}"
    raise InputError(
        f"cannot make a stack of {what}, since {problem}; found\n{listing or '  no file'}\n"
        f"expected {', '.join(needed)}, each once",
        ("Give each index once." if index else "Give each band once: mosaics of other dates with --fill, "
         "neighbouring tiles as one file (gdalbuildvrt mosaic.vrt A.tif B.tif) with --allow-vrt.")
        if twice else
        f"Give the missing files, or name unnamed layers in file order: {option} {' '.join(needed)}",
    )  # fmt: skip


def _align(
    source: Source, grid: GridSpec, config: InputConfig, rule: str, *, quiet: bool, own_grid: bool
) -> Alignment:
    alignment = Alignment(source.grid, grid)
    if alignment.kind not in ("same", "scaled") and not (config.resample or own_grid):
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
        level = logging.DEBUG if quiet else logging.INFO
        logger.log(level, "'%s' is resampled (%s) to %s", source.path, rule, grid.describe())
    return alignment


def _decode(dn: np.ndarray, plane: Plane, out: np.ndarray, valid: np.ndarray) -> None:
    """SYKE code float32 of one stored index plane, and where it is valid (0..200, not no data)."""
    np.copyto(out, dn, casting="unsafe")
    factor, addend = plane.layer.packing
    if (factor, addend) != (1.0, 0.0):
        # Metadata that turn stored values into the index itself: v = stored x factor + addend.
        out *= np.float32(100 * factor)
        out += np.float32(100 * addend + 100)
    np.less_equal(out, 200, out=valid)
    valid &= out >= 0
    plane.missing.mark(dn, valid)


def _check_coding(source: Source, planes: Sequence[Plane]) -> None:
    """Refuse an index raster that by its values alone holds no SYKE code, but -1..1 or larger numbers.

    Most values decide, since a raster may hold a no data that it doesn't declare: one value, if often.
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
    """Refuse an index raster of another coding than SYKE's, by the indices of samples of the bands.

    Raises InputError if an index that was computed from these bands, or one of another date, is coded in
    another way.
    """
    formulas = {name: parse(SYKE_FORMULAS[name]) for name in indices.names}
    known = {name: formula for name, formula in formulas.items() if {*formula.names} <= {*bands.names}}
    if not known:
        return
    names = (*bands.names, *indices.names)
    slots, parts = {name: i for i, name in enumerate(names)}, []
    first = indices.readers[0]
    large = first.source.block[0] * first.source.block[1] > 2**19
    for window in _lattice(first.alignment.grid, first.source.block, *((2, 512) if large else (4, 128))):
        shape = (len(names), *window.shape)
        values, valid = np.zeros(shape, "float32"), np.zeros(shape, bool)
        bands.read(window, values, valid, slots)
        indices.read(window, values, valid, slots)
        parts.append(np.where(valid, values, np.nan).reshape(len(names), -1))
    planes = dict(zip(names, np.concatenate(parts, axis=1), strict=True))
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
    """True where values (n,) are other codes of an index than SYKE's, whose codes (n,) bands give.

    An index computed from these very bands is a straight line of their code, but for rounding; one of slope 1
    and intercept 0 is SYKE's. Other dates and composites scatter around any line. Of them only
    100 x index is told apart, 100 codes off, which is more than seasons move the middle of an image.
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
    """Look at samples of a mosaic's bands for signs of a wrong scale or offset."""
    bands = [
        Reader(reader.source, reader.alignment, planes)
        for reader in mosaic.readers
        if (planes := [plane for plane in reader.planes if plane.is_reflectance])
    ]
    if not bands:
        return
    samples = _sample_bands(bands)
    scaling = {plane.name: plane.scaling for reader in bands for plane in reader.planes}
    paths = list(dict.fromkeys(r.source.path for r in bands))
    name = paths[0] if len(paths) == 1 else f"{paths[0]}' and {len(paths) - 1} more '"
    check_radiometry(samples, scaling, name.rstrip(" '"))


def _sample_bands(readers: Sequence[Reader]) -> dict[str, np.ndarray]:
    """Band to stored values (n,) of the same places in all bands, 0 where a value is missing."""
    if not readers:
        return {}
    finest = next((r for r in readers if r.alignment.kind == "same"), readers[0])
    # Few places where blocks are large and slow to decode; each within one block where it can be.
    large = finest.source.block[0] * finest.source.block[1] > 2**19
    found: dict[str, np.ndarray] = {}
    for count, side in ((2, 512) if large else (4, 128), (8, 64)):
        windows = _lattice(readers[0].alignment.grid, finest.source.block, count, side)
        found = {}
        for reader in readers:
            parts = [_stored(reader, window).reshape(len(reader.planes), -1) for window in windows]
            found |= dict(zip((p.name for p in reader.planes), np.concatenate(parts, axis=1), strict=True))
        if np.logical_and.reduce([values != 0 for values in found.values()]).sum() >= 4096:
            break
    return found


def _stored(reader: Reader, window: Window) -> np.ndarray:
    """Stored values (plane, y, x) on the grid by the nearest rule, 0 where they are missing."""
    own = [plane.position for plane in reader.planes]

    def read(there: Window) -> np.ndarray:
        stored, mask = reader.source.read(own, there), reader.source.read_mask(own, there)
        known = np.stack([_present(v, p) for v, p in zip(stored, reader.planes, strict=True)])
        return np.where(known if mask is None else known & mask, stored, stored.dtype.type(0))

    values, inside = reader.alignment.nearest(read, window)
    return np.where(inside, values, values.dtype.type(0))


def _sample(source: Source, planes: Sequence[Plane]) -> list[np.ndarray]:
    """Stored values (n,) of each plane without no data, from a lattice of places of its own file.

    Where these hold next to nothing, the whole file is looked through until there is enough.
    """
    if not planes:
        return []
    found = _values_in(source, planes, _lattice(source.grid, source.block, 4, 128))
    for window in squares_of(source.grid.extent):
        if all(values.size >= _ENOUGH for values in found):
            break
        more = _values_in(source, planes, [window])
        found = [
            old if old.size >= _ENOUGH else np.concatenate((old, new))
            for old, new in zip(found, more, strict=True)
        ]
    return found


def _values_in(source: Source, planes: Sequence[Plane], windows: Sequence[Window]) -> list[np.ndarray]:
    """Stored values (n,) of each plane without no data in some windows of its file."""
    own = [plane.position for plane in planes]
    parts: list[list[np.ndarray]] = [[] for _ in planes]
    for window in windows:
        stored, mask = source.read(own, window), source.read_mask(own, window)
        known = np.stack([_present(v, p) for v, p in zip(stored, planes, strict=True)])
        known = known if mask is None else known & mask
        for part, values, there in zip(parts, stored, known, strict=True):
            part.append(values[there])
    return [np.concatenate(part) for part in parts]


def _present(values: np.ndarray, plane: Plane) -> np.ndarray:
    present = plane.missing.present(values)
    return present & (values != 0) if plane.definition.kind in ("reflectance", "backscatter") else present


def _lattice(grid: GridSpec, blocks: tuple[int, int], count: int, side: int) -> list[Window]:
    starts = []
    for length, block in zip(grid.shape, blocks, strict=True):
        own = min(side, length)
        places = (round(i * (length - own) / max(1, count - 1)) for i in range(count))
        snapped = {_snap(place, block, own, length) for place in places}
        starts.append((sorted(snapped), own))
    (rows, height), (cols, width) = starts
    return [Window(row, col, height, width) for row in rows for col in cols]


def _snap(place: int, block: int, size: int, length: int) -> int:
    """The start of the block that holds `place`, where a window of `size` fits into that block."""
    start = place // block * block
    return start if block >= size and start + size <= length else place
