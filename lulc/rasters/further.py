"""Further rasters of a stack: named layers on grids of their own, and derivatives of elevation."""

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
    listed,
    open_bands,
    planes_of,
    with_nodata,
)
from lulc.rasters.terrain import TerrainSource

logger = logging.getLogger("lulc")


@dataclass
class Further:
    """Open further rasters and the planes to read from each; made by `open_further`."""

    sources: list[Source] = field(default_factory=list)
    planes: list[list[Plane]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of their channels, with dates."""
        return tuple(plane.definition.name for planes in self.planes for plane in planes)

    def mosaics(self, grid: GridSpec, config: InputConfig) -> list[tuple[str, Mosaic]]:
        """Return a date and its checked mosaic on a grid, for each date."""
        mosaics = []
        for date in dict.fromkeys(plane.definition.date for planes in self.planes for plane in planes):
            of_date = [[plane for plane in planes if plane.definition.date == date] for planes in self.planes]
            mosaic = build_mosaic("layers", self.sources, of_date, grid, config, None, own_grids=True)
            check_samples(mosaic)
            mosaics.append((date, mosaic))
        return mosaics


def open_further(
    paths: Sequence[str], channels: ChannelSet, config: InputConfig, opened: contextlib.ExitStack
) -> Further:
    """Open rasters and find the channels of a set in their layers.

    A path may have ``=`` before it, after a date or the names of its layers in file order. Raises InputError
    if names don't fit a raster, or a channel is in two of them.
    """
    further = Further()
    rasters: dict[str, list[tuple[list[str], str]]] = {date: [] for date in ("", *channels.dates)}
    for text in paths:
        prefix, path = split_prefix(text)
        if prefix in channels.dates:
            rasters[prefix].append(([], path))
        else:
            rasters[""].append((names_in(prefix) if prefix else [], path))
    for date, of_date in rasters.items():
        if of_date:
            _add(further, of_date, date, channels, config, opened)
    used = {source.path for source, planes in zip(further.sources, further.planes, strict=True) if planes}
    for source in further.sources:
        if source.path not in used:
            logger.warning("'%s' is not used: it holds %s", source.path, listed(source.names))
    names = further.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"cannot use --layers {' '.join(paths)}, since {', '.join(twice)} is in two layers, expected "
            "each channel once",
            "Leave one of them out, or name the layers: --layers NAME=RASTER.",
        )
    return further


def _add(
    further: Further, rasters: Sequence[tuple[list[str], str]], date: str, channels: ChannelSet,
    config: InputConfig, opened: contextlib.ExitStack,
) -> None:  # fmt: skip
    """Open the rasters of one date, each given as the names of its layers and its path."""
    leaves = [one for one in channels.plan().leaves if one.date == date]
    defined = (*channels.channels, *channels.inputs)
    leaves += [one for one in defined if one.formula and one.layers and one.date == date]
    terrain = [one for one in leaves if "(" in one.name]
    plain = [one for one in leaves if "(" not in one.name]
    sources, names = _opened(rasters, plain, config, opened)
    for source, positions in zip(sources, find_layers(sources, names, plain), strict=True):
        further.sources.append(source)
        further.planes.append(planes_of(source, positions, config))
    for layer in dict.fromkeys(one.name[:-1].partition("(")[2] for one in terrain):
        elevation = channels.definition(layer)
        derivatives = {
            TERRAIN.index(one.name.partition("(")[0]): one for one in terrain if f"({layer})" in one.name
        }
        for source, positions in zip(sources, find_layers(sources, names, [elevation]), strict=True):
            for position in positions:
                again = source.reopen()
                again.layers = tuple(with_nodata(one, config) for one in again.layers)
                further.sources.append(opened.enter_context(TerrainSource(again, position, elevation)))
                further.planes.append(planes_of(further.sources[-1], derivatives, config))


def _opened(
    rasters: Sequence[tuple[list[str], str]], wanted: Sequence[ChannelDefinition], config: InputConfig,
    opened: contextlib.ExitStack,
) -> tuple[list[Source], list[list[str | None]]]:  # fmt: skip
    """Open rasters; return them and the names of their layers, given or their own."""
    bands = list(dict.fromkeys(name for one in wanted for name in product_names(one)))
    sources: list[Source] = []
    names: list[list[str | None]] = []
    for given, path in rasters:
        of_path, _ = open_bands([path], config, bands, opened, classified=False)
        sources += of_path
        if not given:
            names += [list(source.names) for source in of_path]
            continue
        count = len(of_path[0].names) if len(of_path) == 1 else 0
        if count != len(given) or not of_path[0].ordered:
            raise InputError(
                f"cannot name the layers of '{path}' {', '.join(given[:10])}, since it has {count} in a "
                f"known order, expected {len(given)}",
                "Give one name for each layer, in file order: --layers VV,VH=RASTER.",
            )
        names.append(list(given))
    return sources, names
