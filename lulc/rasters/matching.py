"""Layers of rasters that hold the channels of a set."""

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
"""Names that may count layers and say nothing of them."""

Found = list[dict[int, ChannelDefinition]]
"""For each source, channels by the position of their layer."""


def find_layers(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], wanted: Sequence[ChannelDefinition]
) -> Found:
    """Return the layers that hold channels.

    A layer holds a channel whose name, or one of whose ``layers``, is its own; else one whose words stand in
    its own name (``Sigma0_VV_db``), or in the file name where the file has one layer. The first of a
    channel's names that any layer has decides. Raises InputError if a layer holds two of them.
    """
    found: Found = [{} for _ in sources]
    for one in wanted:
        for i, j in _places(sources, names, one):
            other = found[i].setdefault(j, one)
            if other is not one:
                raise InputError(
                    f"cannot tell which channel '{names[i][j]}' of '{sources[i].path}' is, since it may be "
                    f"{other.local} or {one.local}, expected one",
                    "Name the layer in the file, or write its name into the channel set: layers: [NAME].",
                )
    return found


def _places(
    sources: Sequence[Source], names: Sequence[Sequence[str | None]], one: ChannelDefinition
) -> list[tuple[int, int]]:
    """(source, layer) of the layers of a channel."""
    every = [(i, j) for i, own in enumerate(names) for j in range(len(own))]
    aliases = one.layers or (one.local,)
    for alias in aliases:
        exact = [(i, j) for i, j in every if _is(alias, names[i][j], sources[i])]
        if exact:
            return exact
    if not one.layers:
        return []
    for alias in aliases:
        near = [(i, j) for i, j in every if _mentions(alias, names[i][j], sources[i])]
        if near:
            return near
    return []


def _is(alias: str, name: str | None, source: Source) -> bool:
    if "*" in alias:
        file = Path(source.path).name
        return len(source.names) == 1 and any(
            fnmatch.fnmatch(text, alias) for text in (file, Path(file).stem)
        )
    if name is None or (_COUNT.fullmatch(name) and name not in SENTINEL_BANDS):
        return False
    return _same(alias, name)


def _same(alias: str, name: str) -> bool:
    return canonical_name(alias) == name or _words(alias) == _words(name)


def _mentions(alias: str, name: str | None, source: Source) -> bool:
    if "*" in alias:
        return False
    counted = name is None or _COUNT.fullmatch(name)
    texts = ["" if counted else str(name), *([Path(source.path).stem] if len(source.names) == 1 else [])]
    own = _words(alias)
    return any(
        own == words[start : start + len(own)]
        for words in map(_words, texts) for start in range(len(words) - len(own) + 1)
    )  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def picture_layers(names: Sequence[str | None], channels: ChannelSet | None = None) -> list[int]:
    """Return the positions of red, green and blue among the layers of a raster.

    Those that the set shows, else true colour of Sentinel-2, else the first three.

    Examples
    --------
    >>> picture_layers(["B02", "B03", "B04"]), picture_layers(["VV", "VH"])
    ([2, 1, 0], [0, 1, 1])
    """
    own = [channels.definition(name) for name in channels.rgb] if channels else []
    for trio in ([one.layers or (one.local,) for one in own], [("B04",), ("B03",), ("B02",)]):
        found = [
            next((i for i, name in enumerate(names) if name and any(_same(a, name) for a in aliases)), -1)
            for aliases in trio
        ]
        if len(found) == 3 and min(found) >= 0:
            return found
    return [min(k, len(names) - 1) for k in range(3)]


def product_names(one: ChannelDefinition) -> list[str]:
    """Return the names under which products and items may hold a channel."""
    return [canonical_name(alias) or alias for alias in (one.layers or (one.local,))]
