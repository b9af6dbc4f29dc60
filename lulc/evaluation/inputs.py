"""Inputs of an evaluation: map, reference, regions, masks and image, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.config import EvaluateConfig
from lulc.core.channels import ChannelSet
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, NO_CODE, Code, InputError, Legend
from lulc.core.windows import Window
from lulc.evaluation.measures.regions import Region, read_ground, read_regions
from lulc.labels.labels import Labels, open_labels
from lulc.labels.schemes import SCHEMES, Scheme, load_scheme
from lulc.maps.reader import REST, ClassMap, array_map, open_map
from lulc.rasters.masks import Masks, open_masks
from lulc.rasters.matching import picture_layers
from lulc.rasters.sources import Source, open_source

ARRAY = "<array>"  # replaces the name of a file


@dataclass(frozen=True)
class InMemory:
    """Arrays that replace files of a config.

    Parameters
    ----------
    map
        See `lulc.maps.reader.array_map`.
    reference
        (y, x) on the pixels of the map: its class numbers or, with ``config.scheme``, codes of the scheme; 0,
        255 and NaN are ignored.
    sample
        GeoDataFrame of interpreted points.
    """

    map: Any = None
    reference: Any = None
    sample: Any = None


NO_ARRAYS = InMemory()


@dataclass(frozen=True)
class _ArrayCodes:
    """Codes of an array, read like those of a file."""

    values: NDArray[Any]
    names: Mapping[int, str] = field(default_factory=dict)

    def read(self, window: Window) -> NDArray[np.int32]:
        values = self.values[window.slices]
        known = np.isfinite(values)
        codes = np.where(known, values, 0)
        if (codes != np.round(codes)).any():
            raise InputError(
                "cannot use the array as a reference, since it has values between whole numbers",
                "Give class numbers: they are never interpolated.",
            )
        return np.where(known, codes, NO_CODE).astype(np.int32)

    def identity(self) -> dict[str, Any]:
        return {"name": ARRAY}


@dataclass(frozen=True)
class Inputs:
    """Opened and checked inputs, which are read window by window.

    Parameters
    ----------
    labels
        Reference on the map's grid.
    translation
        uint8 (256,), class number of the map for each class number of the reference, 255 = ignore.
    regions
        Regions to score separately.
    ground
        Training land; None if it is unknown.
    """

    map: ClassMap
    other: ClassMap | None
    labels: Labels | None
    translation: NDArray[np.uint8]
    regions: list[Region]
    ground: list[Region] | None
    masks: Masks
    image: Source | None

    @property
    def grid(self) -> GridSpec:
        return self.map.grid

    @property
    def level1_from_codes(self) -> bool:
        """True if the codes of the reference define its level-1 groups."""
        return self.labels is not None and bool(self.labels.scheme.level1)

    def read_counted(self, window: Window) -> NDArray[np.uint8]:
        """Read class numbers of the map, 255 for no data and masked pixels."""
        mapped = self.map.read(window)
        counting = self.masks.read(window)
        return mapped if counting is None else np.where(counting, mapped, IGNORE).astype(np.uint8)

    def read_reference(self, window: Window) -> NDArray[np.uint8]:
        """Read the reference in the map's class numbers 1..N, 255 = ignore or no reference."""
        if self.labels is None:
            return np.full(window.shape, IGNORE, np.uint8)
        return self.translation[self.labels.read(window)]


def open_inputs(config: EvaluateConfig, resources: ExitStack, arrays: InMemory = NO_ARRAYS) -> Inputs:
    """Open all files of the config, or `arrays` instead of them; `resources` closes them.

    Raises InputError if a file can't be read, or grids or legends don't fit.
    """
    allowed = {"allow_vrt": config.allow_vrt, "allow_remote": config.allow_remote}
    scheme = load_scheme(config.scheme, config.codes) if config.scheme else None
    legend = scheme.legend if scheme else None
    the_map = resources.enter_context(
        open_map(config.map, legend, **allowed) if arrays.map is None else array_map(arrays.map, legend)
    )
    grid = the_map.grid
    labels, translation = None, np.full(256, IGNORE, np.uint8)
    if arrays.reference is not None:
        labels = _array_labels(arrays.reference, the_map, scheme)
    elif config.reference is not None:
        scheme = scheme or _scheme_of(the_map, config)
        labels = resources.enter_context(
            open_labels(
                config.reference, grid, scheme, field=config.label_field, layer=config.label_layer,
                pine=config.pine, spruce=config.spruce, resample=config.resample, **allowed,
            )
        )  # fmt: skip
    if labels is not None:
        translation = _translation(labels.legend, the_map.legend, config)
    other = None
    if config.compare:
        other = resources.enter_context(open_map(config.compare, legend, **allowed))
        _check_same(the_map, other, config)
    image = None
    if config.image:
        image = resources.enter_context(open_source(config.image, **allowed))
        if not image.grid.is_aligned(grid):
            raise InputError(
                f"cannot show '{config.image}' beside the map, since its grid is\n  {image.grid.describe()}\n"
                f"expected pixels of\n  {grid.describe()}",
                "Leave out --image, or give the mosaic from which the map was made.",
            )
    masks = resources.enter_context(open_masks(config, grid))
    for mask in masks.masks:
        mask.warn_of_uncovered(lambda window: the_map.read(window) != IGNORE)
    regions = read_regions(config.regions, grid, the_map.tags) if config.regions else []
    ground = read_ground(config.regions, config.run, grid, the_map.tags)
    return Inputs(the_map, other, labels, translation, regions, ground, masks, image)


def _array_labels(reference: Any, the_map: ClassMap, scheme: Scheme | None) -> Labels:
    """Return an array as labels on the grid of a map."""
    from lulc.rasters.cubes import labels_on

    grid, values = the_map.grid, labels_on(the_map.grid, reference, the_map.source)
    if values.shape != grid.shape:
        raise InputError(
            f"cannot compare the map with the array, since its shape is {values.shape}, "
            f"expected {grid.shape} as the map has",
            "Give labels on the pixels of the map.",
        )
    if scheme is None:
        legend = the_map.legend
        numbers: dict[Code, int] = {0: IGNORE, IGNORE: IGNORE, **{c.number: c.number for c in legend.classes}}
        hint = "Give class numbers of the map, or name the scheme of the codes."
        scheme = Scheme(legend.name, legend, numbers, hint=hint)
    return Labels(ARRAY, grid, scheme, _ArrayCodes(values), (), ExitStack())


def _scheme_of(the_map: ClassMap, config: EvaluateConfig) -> Scheme:
    """Return the scheme of the map's legend for a reference without a named scheme.

    Raises InputError if the legend has no codes, so that the numbers of the reference may have another
    meaning.
    """
    legend = the_map.legend
    for name in SCHEMES:
        scheme = load_scheme(name, config.codes)
        if legend.name in (name, scheme.legend.name) and _agrees(legend, scheme.legend):
            return scheme
    hint = "Type --scheme with the scheme of the training: a name, or the CSV with its codes."
    numbers = {code: c.number for c in legend.classes for code in c.sources}
    if legend.classes[-1] == REST or not numbers:
        reason = f"the legend '{legend.name}' of the map has no source codes"
        if legend.classes[-1] == REST:
            reason = f"the map holds the single class '{legend.names[0]}'"
        raise InputError(
            f"cannot read '{config.reference}', since {reason}, expected a scheme that maps codes to classes",
            hint,
        )
    return Scheme(legend.name, legend, {0: IGNORE, IGNORE: IGNORE, **numbers}, hint=hint)


def _agrees(legend: Legend, known: Legend) -> bool:
    """True if every class of a legend has no codes, or those of the same class in a known legend."""
    codes = {c.name: c.sources for c in known.classes}
    return all(c.sources in ((), codes.get(c.name)) for c in legend.classes)


def _translation(reference: Legend, mapped: Legend, config: EvaluateConfig) -> NDArray[np.uint8]:
    """Return uint8 (256,): class number of the map for each of the reference, 255 = ignore."""
    table = np.full(256, IGNORE, np.uint8)
    if reference.names == mapped.names:
        numbers = np.arange(1, len(mapped) + 1)
        table[numbers] = numbers
    elif len(mapped) == 2 and len(set(mapped.names) & set(reference.names)) == 1:
        # One class against the rest, which is all other classes of the reference.
        single = next(c for c in mapped.classes if c.name in reference.names)
        table[1 : len(reference) + 1] = 3 - single.number
        table[reference.names.index(single.name) + 1] = single.number
    else:
        raise InputError(
            f"cannot compare '{config.map}' with '{config.reference}', since the map has the classes "
            f"{', '.join(mapped.names)}, and the reference {', '.join(reference.names)}",
            "Name the scheme by which the map was trained: --scheme NAME.",
        )
    return table


def _check_same(first: ClassMap, second: ClassMap, config: EvaluateConfig) -> None:
    if not first.grid.matches(second.grid):
        raise InputError(
            f"cannot compare '{config.map}' with '{config.compare}', since their grids are\n"
            f"  {first.grid.describe()}\n  {second.grid.describe()}\nexpected the same",
            "Give two maps of the same mosaic.",
        )
    if first.legend.names != second.legend.names:
        raise InputError(
            f"cannot compare '{config.map}' with '{config.compare}', since their classes are "
            f"{', '.join(first.legend.names)} and {', '.join(second.legend.names)}, expected the same",
            "Give two maps with one legend.",
        )


def read_colors(
    image: Source, grid: GridSpec, window: Window, step: int, channels: ChannelSet | None = None
) -> NDArray[np.float32]:
    """Return red, green and blue of a mosaic, float32 (y, x, 3), NaN = no data or outside.

    Rows and columns are those of `window` that are multiples of `step` in `grid`; `channels` defines the
    layers to show.
    """
    layers = picture_layers(image.names, channels)
    top, left = -window.row % step, -window.col % step
    row, col = image.grid.offset_of(grid)
    there = Window(window.row + row + top, window.col + col + left, window.height - top, window.width - left)
    # Skip whole steps above and left of the image.
    above, before = (step * max(0, -(n // step)) for n in (there.row, there.col))
    common = Window(
        there.row + above, there.col + before, there.height - above, there.width - before
    ).intersect(image.grid.extent)
    result = np.full((*(-(-side // step) for side in there.shape), 3), np.nan, np.float32)
    if common.height > 0 and common.width > 0:
        stored, valid = image.read_valid(layers, common, step)
        values = np.moveaxis(np.where(valid & (stored != 0), stored, np.nan), 0, -1)
        inside = result[above // step :, before // step :][: values.shape[0], : values.shape[1]]
        inside[...] = values
    return result
