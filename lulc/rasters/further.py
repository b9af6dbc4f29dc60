"""Further rasters of a stack: named layers of any source on their own grids, and derivatives of elevation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from lulc.config import InputConfig
from lulc.core.channels import ChannelDefinition, ChannelSet, split_prefix
from lulc.core.formula import TERRAIN
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.rasters.channels import names_in
from lulc.rasters.layers import Source
from lulc.rasters.matching import find_layers, product_names
from lulc.rasters.mosaics import (
    Mosaic,
    Plane,
    build_mosaic,
    check_samples,
    finest_grid,
    listed,
    open_bands,
    planes_of,
    with_nodata,
)
from lulc.rasters.terrain import TerrainSource

logger = logging.getLogger("lulc")


@dataclass
class Further:
    """Open further rasters; made by `open_further`."""

    sources: list[Source] = field(default_factory=list)
    planes: list[list[Plane]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the channels that they hold."""
        return tuple(plane.definition.name for own in self.planes for plane in own)

    def finest(self) -> GridSpec:
        """Return the finest of their grids, for a stack without bands."""
        return finest_grid(self.sources, self.planes)

    def mosaics(self, grid: GridSpec, config: InputConfig) -> list[tuple[str, Mosaic]]:
        """Return a mosaic on a grid for each date, checked."""
        dates = dict.fromkeys(plane.definition.date for own in self.planes for plane in own)
        found = []
        for date in dates:
            planes = [[plane for plane in own if plane.definition.date == date] for own in self.planes]
            mosaic = build_mosaic("layers", self.sources, planes, grid, config, None, own_grids=True)
            check_samples(mosaic)
            found.append((date, mosaic))
        return found


def open_further(
    paths: Sequence[str], channels: ChannelSet, config: InputConfig, opened: contextlib.ExitStack
) -> Further:
    """Open rasters and find the channels of a set in their layers.

    Raises InputError if names don't fit a raster, or a channel is in two of them.

    Parameters
    ----------
    paths
        Rasters; before each may stand ``=`` and a date, or the names of its layers in file order.
    """
    further = Further()
    for date in ("", *channels.dates):
        own = [
            (names, path) for found, names, path in (_parts_of(p, channels) for p in paths) if found == date
        ]
        if own:
            _add(further, own, date, channels, config, opened)
    used = {source.path for source, own in zip(further.sources, further.planes, strict=True) if own}
    for source in further.sources:
        if source.path not in used:
            logger.warning("'%s' is not used: it holds %s", source.path, listed(source.names))
    found = further.names
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise InputError(
            f"cannot use --layers {' '.join(paths)}, since {', '.join(twice)} is in two layers, expected "
            "each channel once",
            "Leave one of them out, or name the layers: --layers NAME=RASTER.",
        )
    return further


def _parts_of(text: str, channels: ChannelSet) -> tuple[str, list[str], str]:
    """(date, names of the layers, path) of a raster."""
    prefix, path = split_prefix(text)
    if prefix in channels.dates:
        return prefix, [], path
    return "", names_in(prefix) if prefix else [], path


def _add(
    further: Further, given: Sequence[tuple[list[str], str]], date: str, channels: ChannelSet,
    config: InputConfig, opened: contextlib.ExitStack,
) -> None:  # fmt: skip
    leaves = [one for one in channels.plan().leaves if one.date == date]
    own = (*channels.channels, *channels.inputs)
    leaves += [one for one in own if one.formula and one.layers and one.date == date]
    terrain = [one for one in leaves if "(" in one.name]
    plain = [one for one in leaves if "(" not in one.name]
    sources, names = _opened(given, plain, config, opened)
    for source, found in zip(sources, find_layers(sources, names, plain), strict=True):
        further.sources.append(source)
        further.planes.append(planes_of(source, found, config))
    for layer in dict.fromkeys(one.name[:-1].partition("(")[2] for one in terrain):
        elevation = channels.definition(layer)
        for source, found in zip(sources, find_layers(sources, names, [elevation]), strict=True):
            for position in found:
                again = source.reopen()
                again.layers = tuple(with_nodata(one, config) for one in again.layers)
                derived = opened.enter_context(TerrainSource(again, position, elevation))
                further.sources.append(derived)
                wanted = {
                    TERRAIN.index(one.name.partition("(")[0]): one
                    for one in terrain
                    if f"({layer})" in one.name
                }
                further.planes.append(planes_of(derived, wanted, config))


def _opened(
    given: Sequence[tuple[list[str], str]], wanted: Sequence[ChannelDefinition], config: InputConfig,
    opened: contextlib.ExitStack,
) -> tuple[list[Source], list[list[str | None]]]:  # fmt: skip
    """Open rasters; return them and the names of their layers, those that the user gave before others."""
    asked = list(dict.fromkeys(name for one in wanted for name in product_names(one)))
    sources: list[Source] = []
    names: list[list[str | None]] = []
    for own, path in given:
        found, _ = open_bands([path], config, asked, opened, classified=False)
        sources += found
        if not own:
            names += [list(source.names) for source in found]
            continue
        count = len(found[0].names) if len(found) == 1 else 0
        if count != len(own) or not found[0].ordered:
            raise InputError(
                f"cannot name the layers of '{path}' {', '.join(own[:10])}, since it has {count} in a known "
                f"order, expected {len(own)}",
                "Give one name for each layer, in file order: --layers VV,VH=RASTER.",
            )
        names.append(list(own))
    return sources, names
