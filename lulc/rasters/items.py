"""STAC items of Sentinel-2 scenes: which assets hold the bands, and what the item says of their DN.

Items are read from files, without a catalogue. What an item names lies below its folder, or, where remote
files are allowed, at an address.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lulc.core.documents import read_document
from lulc.core.schema import InputError
from lulc.rasters import guards
from lulc.rasters.layers import SENTINEL_BANDS, canonical_name, declared_scaling

COMMON_NAMES: Mapping[str, str] = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge071": "B05",
    "rededge2": "B06", "rededge075": "B06", "rededge3": "B07", "rededge078": "B07", "nir": "B08",
    "nir08": "B8A", "nir09": "B09", "cirrus": "B10", "swir16": "B11", "swir22": "B12",
}  # fmt: skip
"""Bands by the common names of STAC's electro-optical extension; some catalogues number three of them."""

_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Properties that say that the offset, though declared with the bands, was added to the DN already."""

_BANDS = {
    "type": "array",
    "maxItems": 1024,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "common_name": {"type": "string"},
            "eo:common_name": {"type": "string"},
            "scale": {"type": "number"},
            "raster:scale": {"type": "number"},
            "offset": {"type": "number"},
            "raster:offset": {"type": "number"},
        },
    },
}
_ASSET: dict[str, Any] = {
    "type": "object",
    "required": ["href"],
    "properties": {
        "href": {"type": "string", "minLength": 1, "maxLength": 4096},
        "roles": {"type": "array", "items": {"type": "string"}},
        "gsd": {"type": "number", "exclusiveMinimum": 0},
        "proj:transform": {"type": "array", "minItems": 6, "items": {"type": "number"}},
        "bands": _BANDS,
        "eo:bands": _BANDS,
        "raster:bands": _BANDS,
    },
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "stac_version", "assets"],
    "properties": {
        "type": {"const": "Feature"},
        "stac_version": {"type": "string"},
        "assets": {"type": "object", "maxProperties": 1000, "additionalProperties": _ASSET},
        "properties": {"type": "object", "properties": {name: {"type": "boolean"} for name in _APPLIED}},
    },
}


@dataclass(frozen=True)
class Asset:
    """A file of an item.

    Parameters
    ----------
    path
        Absolute path, or address.
    names
        Band of each layer of the file; None for what is no band.
    scales, offsets
        reflectance = (stored + offset) x scale, layer by layer; None where the item doesn't say.
    """

    path: str
    names: tuple[str | None, ...]
    scales: tuple[float | None, ...]
    offsets: tuple[float | None, ...]


def is_item(path: str | Path) -> bool:
    """True for a file that is named like a STAC item."""
    return Path(path).suffix.lower() == ".json"


def read_item(path: Path, *, allow_remote: bool = False) -> tuple[dict[str, Asset], str | None]:
    """Find the assets of an item that hold bands.

    Parameters
    ----------
    path
        The item, a JSON file.
    allow_remote
        Admit addresses.

    Returns
    -------
    assets
        Band name to its asset: files before addresses, the finest of several, a file of one band before one
        of many.
    mask
        Path or address of the scene classification; None where the item has none.

    Raises
    ------
    InputError
        If the file is no STAC item, has no asset with a band, or an asset lies outside its folder.
    """
    guards.check_regular_file(path, "the STAC item")
    try:
        data = read_document(path, _SCHEMA, "STAC item", 0)
    except InputError as error:
        hint = "Give an item (a Feature with assets); of a collection or catalogue, give its items."
        raise InputError(error.problem, hint) from error
    added = any(data.get("properties", {}).get(name) for name in _APPLIED)
    candidates: dict[str, list[tuple[tuple[bool, int, float], str]]] = {}
    for key, asset in data["assets"].items():
        rank = (guards.is_address(asset["href"]), len(_described(asset)), _resolution(key, asset))
        for name in dict.fromkeys(_names(key, asset)):
            if name:
                candidates.setdefault(name, []).append((rank, key))
    best = {name: min(found, key=lambda one: one[0])[1] for name, found in candidates.items()}
    mask = best.pop("SCL", None)
    if not best:
        raise InputError(
            f"cannot use the STAC item '{path}', since none of its assets is a band of Sentinel-2 "
            f"({', '.join(list(data['assets'])[:9])}), expected some of {', '.join(SENTINEL_BANDS)}",
            "Name the bands in the item (eo:bands or bands), or give the files themselves.",
        )
    assets = {
        name: _asset(path, key, data["assets"][key], added=added, allow_remote=allow_remote)
        for name, key in best.items()
    }
    place = mask and _place(path, data["assets"][mask]["href"], allow_remote=allow_remote)
    return assets, place


def item_files(path: Path) -> list[Path]:
    """Files that hold bands and mask of an item; none where it is no item that can be read."""
    try:
        assets, mask = read_item(path, allow_remote=True)
    except InputError:
        return []
    places = dict.fromkeys([asset.path for asset in assets.values()] + [mask or ""])
    return [Path(place) for place in places if place and not guards.is_address(place)]


def _asset(path: Path, key: str, data: dict[str, Any], *, added: bool, allow_remote: bool) -> Asset:
    scalings = [_scaling(band, added=added) for band in _described(data)]
    return Asset(
        path=_place(path, data["href"], allow_remote=allow_remote),
        names=tuple(_names(key, data)),
        scales=tuple(scale for scale, _ in scalings),
        offsets=tuple(offset for _, offset in scalings),
    )


def _place(item: Path, href: str, *, allow_remote: bool) -> str:
    """Where an asset lies: below the folder of its item, or at an address where those are allowed."""
    if guards.is_address(href):
        # Other addresses, as /vsizip/, may lead to files of this machine, wherever they lie.
        if allow_remote and re.match(r"(https?|s3|gs|az)://|/vsicurl/https?://", href):
            return href
        raise InputError(
            f"cannot open '{href[:200]}', which the STAC item '{item}' names, since it is an address, "
            "expected files below the folder of the item",
            "Download the files beside the item, or open https://, s3://, gs://, az:// with --allow-remote.",
        )
    file = guards.check_regular_file(item.parent / href, f"a file of the STAC item '{item}',")
    guards.check_inside(file, item.parent, str(item))
    return str(file)


def _described(asset: dict[str, Any]) -> list[dict[str, Any]]:
    """What an asset says of each of its layers; one layer where it says nothing."""
    lists = [asset.get(name, []) for name in ("bands", "eo:bands", "raster:bands")]
    count = max(1, *map(len, lists))
    # What lists of another length say can't be told to belong to one layer or the other.
    fitting = [entries for entries in lists if len(entries) == count]
    return [{k: v for entries in fitting for k, v in entries[i].items()} for i in range(count)]


def _names(key: str, asset: dict[str, Any]) -> Iterator[str | None]:
    described = _described(asset)
    for band in described:
        texts = [band.get(name) for name in ("name", "eo:common_name", "common_name")]
        yield next(
            (name for name in map(_band_of, [*texts, *([key] if len(described) == 1 else [])]) if name), None
        )


def _band_of(text: str | None) -> str | None:
    """The band, or SCL, that a name of a band or of an asset means."""
    if not text:
        return None
    name = canonical_name(text)
    if name in SENTINEL_BANDS:
        return name
    if re.match(r"SCL(?![0-9A-Z])", text.upper()):
        return "SCL"
    return COMMON_NAMES.get(text.lower())


def _resolution(key: str, asset: dict[str, Any]) -> float:
    """Metres per pixel, as far as the item says; infinite where it doesn't."""
    named = re.search(r"_(\d+)m$", key)
    transform = asset.get("proj:transform")
    said = [abs(transform[0]) if transform else None]
    said += [band.get("spatial_resolution") for band in _described(asset)]
    said += [float(named.group(1)) if named else None, asset.get("gsd")]
    return next((float(n) for n in said if isinstance(n, int | float) and n > 0), math.inf)


def _scaling(band: dict[str, Any], *, added: bool) -> tuple[float | None, float | None]:
    """(scale, offset in DN) of a layer, from metadata that mean value = stored x scale + offset."""
    scale = band.get("raster:scale", band.get("scale"))
    if scale is None:
        return None, None
    offset = 0.0 if added else band.get("raster:offset", band.get("offset", 0.0))
    return declared_scaling(float(scale), float(offset))
