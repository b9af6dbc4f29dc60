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

ARRAY = "<array>"
"""Stands for the name of a file."""


@dataclass(frozen=True)
class InMemory:
    """Arrays that stand for files of a config.

    Parameters
    ----------
    map
        Instead of ``config.map``, see `lulc.maps.reader.array_map`.
    reference
        Instead of ``config.reference``: (y, x) on the pixels of the map, its class numbers or, with
        ``config.scheme``, codes of the scheme; 0, 255 and NaN are ignored.
    sample
        Instead of ``config.sample``: a GeoDataFrame of interpreted points.
    """

    map: Any = None
    reference: Any = None
    sample: Any = None


NO_ARRAYS = InMemory()
"""No array."""


@dataclass(frozen=True)
class _ArrayCodes:
    """Codes in memory on a grid."""

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
        The reference on the map's grid, or None.
    translation
        uint8 (256,), the reference's class numbers to those of the map; all 255 without one.
    regions
        What is scored apart.
    ground
        Land that the training used; None where that is not known.
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
        """True where the reference's codes tell its level-1 group."""
        return self.labels is not None and bool(self.labels.scheme.level1)

    def read_counted(self, window: Window) -> NDArray[np.uint8]:
        """Class numbers of the map, 255 where it has no data or pixels don't count."""
        mapped = self.map.read(window)
        counting = self.masks.read(window)
        return mapped if counting is None else np.where(counting, mapped, IGNORE).astype(np.uint8)

    def read_reference(self, window: Window) -> NDArray[np.uint8]:
        """The map's class numbers 1..N of the reference, 255 = ignore; everywhere without a reference."""
        if self.labels is None:
            return np.full(window.shape, IGNORE, np.uint8)
        return self.translation[self.labels.read(window)]


def open_inputs(config: EvaluateConfig, resources: ExitStack, arrays: InMemory = NO_ARRAYS) -> Inputs:
    """Open all that the config names, or `arrays` instead; `resources` closes it.

    Raises
    ------
    InputError
        If a file can't be read, or grids or legends don't fit.
    """
    admitted = {"allow_vrt": config.allow_vrt, "allow_remote": config.allow_remote}
    given = load_scheme(config.scheme, config.codes) if config.scheme else None
    legend = given.legend if given else None
    the_map = resources.enter_context(
        open_map(config.map, legend, **admitted) if arrays.map is None else array_map(arrays.map, legend)
    )
    grid = the_map.grid
    labels, translation = None, np.full(256, IGNORE, np.uint8)
    if arrays.reference is not None:
        labels = _array_labels(arrays.reference, the_map, given)
        translation = _translation(labels.legend, the_map.legend, config)
    elif config.reference is not None:
        labels = resources.enter_context(
            open_labels(
                config.reference, grid, given or _scheme_of(the_map, config),
                field=config.label_field, layer=config.label_layer, pine=config.pine,
                spruce=config.spruce, resample=config.resample,
                **admitted,
            )
        )  # fmt: skip
        translation = _translation(labels.legend, the_map.legend, config)
    other = None
    if config.compare:
        other = resources.enter_context(open_map(config.compare, legend, **admitted))
        _check_same(the_map, other, config)
    image = None
    if config.image:
        image = resources.enter_context(open_source(config.image, **admitted))
        if not image.grid.is_aligned(grid):
            raise InputError(
                f"cannot show '{config.image}' beside the map, since its grid is\n  {image.grid.describe()}\n"
                f"expected pixels of\n  {grid.describe()}",
                "Leave out --image, or give the mosaic from which the map was made.",
            )
    masks = resources.enter_context(open_masks(config, grid))
    for mask in masks.masks:
        mask.warn_of_uncovered(lambda window: the_map.read(window) != IGNORE)
    return Inputs(
        map=the_map,
        other=other,
        labels=labels,
        translation=translation,
        regions=read_regions(config.regions, grid, the_map.tags) if config.regions else [],
        ground=read_ground(config.regions, config.run, grid, the_map.tags),
        masks=masks,
        image=image,
    )


def _array_labels(reference: Any, the_map: ClassMap, given: Scheme | None) -> Labels:
    """Return an array as labels on the grid of a map."""
    from lulc.rasters.cubes import labels_on

    grid, values = the_map.grid, labels_on(the_map.grid, reference, the_map.source)
    if values.shape != grid.shape:
        raise InputError(
            f"cannot compare the map with the array, since its shape is {values.shape}, "
            f"expected {grid.shape} as the map has",
            "Give labels on the pixels of the map.",
        )
    numbers: dict[Code, int] = {0: IGNORE, IGNORE: IGNORE}
    numbers.update({c.number: c.number for c in the_map.legend.classes})
    hint = "Give class numbers of the map, or name the scheme of the codes."
    scheme = given or Scheme(the_map.legend.name, the_map.legend, numbers, hint=hint)
    return Labels(ARRAY, grid, scheme, _ArrayCodes(values), (), ExitStack())


def _scheme_of(the_map: ClassMap, config: EvaluateConfig) -> Scheme:
    """Return the scheme of the map's legend, for a reference whose scheme is not named.

    Raises
    ------
    InputError
        If the legend tells no codes: its numbers may be those of the reference, or may not.
    """
    legend = the_map.legend
    for name in SCHEMES:
        scheme = load_scheme(name, config.codes)
        if legend.name in (name, scheme.legend.name) and _agrees(legend, scheme.legend):
            return scheme
    hint = "Type --scheme with the scheme of the training: a name, or the CSV with its codes."
    if legend.classes[-1] == REST:
        raise InputError(
            f"cannot read '{config.reference}', since the map holds the single class '{legend.names[0]}', "
            "expected to be told how codes become classes",
            hint,
        )
    numbers = {code: c.number for c in legend.classes for code in c.sources}
    if not numbers:
        raise InputError(
            f"cannot read '{config.reference}', since the legend '{legend.name}' of the map has no source "
            "codes, expected to be told how codes become classes",
            hint,
        )
    return Scheme(legend.name, legend, {0: IGNORE, IGNORE: IGNORE, **numbers}, hint=hint)


def _agrees(legend: Legend, known: Legend) -> bool:
    """True where no class of a legend gathers other codes than the class of that name in a known one."""
    codes = {c.name: c.sources for c in known.classes}
    return all(c.sources in ((), codes.get(c.name)) for c in legend.classes)


def _translation(reference: Legend, mapped: Legend, config: EvaluateConfig) -> NDArray[np.uint8]:
    """uint8 (256,): class number of the reference to class number of the map, 255 = ignore."""
    table = np.full(256, IGNORE, np.uint8)
    if reference.names == mapped.names:
        numbers = np.arange(1, len(mapped) + 1)
        table[numbers] = numbers
    elif len(mapped) == 2 and len(set(mapped.names) & set(reference.names)) == 1:
        # One class against the rest: all others of the reference are the rest.
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

    Rows and columns are those of `window` whose numbers in `grid` are multiples of `step`; `channels` says
    which layers are shown.
    """
    layers = picture_layers(image.names, channels)
    top, left = -window.row % step, -window.col % step
    row, col = image.grid.offset_of(grid)
    there = Window(window.row + row + top, window.col + col + left, window.height - top, window.width - left)
    # What lies left of or above the image is left out in whole steps.
    above, before = (step * max(0, -(n // step)) for n in (there.row, there.col))
    common = Window(
        there.row + above, there.col + before, there.height - above, there.width - before
    ).intersect(image.grid.extent)
    result = np.full((*(-(-side // step) for side in there.shape), 3), np.nan, np.float32)
    if common.height > 0 and common.width > 0:
        stored, valid = image.read_valid(layers, common, step)
        values = np.moveaxis(np.where(valid & (stored != 0), stored, np.nan), 0, -1)
        part = result[above // step :, before // step :][: values.shape[0], : values.shape[1]]
        part[...] = values
    return result
