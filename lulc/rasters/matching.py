"""Search for the layers of rasters that hold the channels of a set."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from lulc.core.channels import ChannelDefinition, ChannelSet
from lulc.core.schema import SENTINEL_BANDS, InputError
from lulc.rasters.layers import Source
from lulc.rasters.names import canonical_name

_COUNT = re.compile(r"(b|band|layer|channel)?[ _]*\d+", re.IGNORECASE)
"""Names that may only count layers."""


def find_layers(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], wanted: Sequence[ChannelDefinition]
) -> list[dict[int, ChannelDefinition]]:
    """Return the channels that each source holds, by the position of their layer.

    A layer holds a channel if its name is that of the channel or one of the channel's ``layers``; else if the
    words of such a name occur in it (``Sigma0_VV_db``), or in the name of a file with one layer. The first of
    a channel's names that any layer has decides. Raises InputError if a layer holds two channels.
    """
    channels: list[dict[int, ChannelDefinition]] = [{} for _ in sources]
    for one in wanted:
        for i, j in _layers_of(sources, names, one):
            other = channels[i].setdefault(j, one)
            if other is not one:
                raise InputError(
                    f"cannot tell which channel '{names[i][j]}' of '{sources[i].path}' is, since it may be "
                    f"{other.local} or {one.local}, expected one",
                    "Name the layer in the file, or write its name into the channel set: layers: [NAME].",
                )
    return channels


def _layers_of(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], one: ChannelDefinition
) -> list[tuple[int, int]]:
    """Return (source, layer) of the layers of a channel."""
    every = [(i, j) for i, layer_names in enumerate(names) for j in range(len(layer_names))]
    for matches in (_is, _mentions) if one.layers else (_is,):
        for alias in one.layers or (one.local,):
            if matching := [(i, j) for i, j in every if matches(alias, names[i][j], sources[i])]:
                return matching
    return []


def _is(alias: str, name: str | None, source: Source) -> bool:
    if "*" in alias:
        file = Path(source.path)
        return len(source.names) == 1 and any(fnmatch.fnmatch(text, alias) for text in (file.name, file.stem))
    counted = name is None or (_COUNT.fullmatch(name) and name not in SENTINEL_BANDS)
    return not counted and _same(alias, str(name))


def _same(alias: str, name: str) -> bool:
    return canonical_name(alias) == name or _words(alias) == _words(name)


def _mentions(alias: str, name: str | None, source: Source) -> bool:
    if "*" in alias:
        return False
    counted = name is None or _COUNT.fullmatch(name)
    texts = ["" if counted else str(name), *([Path(source.path).stem] if len(source.names) == 1 else [])]
    sought = _words(alias)
    return any(
        sought == words[start : start + len(sought)]
        for words in map(_words, texts) for start in range(len(words) - len(sought) + 1)
    )  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def picture_layers(names: Sequence[str | None], channels: ChannelSet | None = None) -> list[int]:
    """Return the positions of red, green and blue among the layers of a raster.

    These are the channels that the set shows, else Sentinel-2's true colour, else the first three layers.
    """
    shown = [channels.definition(name) for name in channels.rgb] if channels else []
    for colors in ([one.layers or (one.local,) for one in shown], [("B04",), ("B03",), ("B02",)]):
        positions = [
            next((i for i, name in enumerate(names) if name and any(_same(a, name) for a in aliases)), -1)
            for aliases in colors
        ]
        if len(positions) == 3 and min(positions) >= 0:
            return positions
    return [min(k, len(names) - 1) for k in range(3)]


def product_names(one: ChannelDefinition) -> list[str]:
    """Return the names by which products and items may hold a channel."""
    return [canonical_name(alias) or alias for alias in (one.layers or (one.local,))]
