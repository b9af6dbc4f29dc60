"""STAC items of Sentinel-2 scenes: which assets hold the bands, and what the item says of their DN.

Items are read from files, without a catalogue. What an item names lies below its folder, or, where remote
files are allowed, at an address.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lulc.core.documents import read_document
from lulc.core.schema import InputError
from lulc.rasters import guards
from lulc.rasters.layers import (
    BASELINE_OFFSET,
    OFFSET_APPLIED,
    OFFSET_SINCE,
    baseline_of,
    declared_scaling,
    is_offset_applied,
)
from lulc.rasters.missing import declared_missing
from lulc.rasters.names import COMMON_NAMES, SENTINEL_BANDS, canonical_name

_VALUES = {
    **{f"{prefix}{key}": {"type": "number"} for prefix in ("", "raster:") for key in ("scale", "offset")},
    "nodata": {"type": ["number", "string", "null"]},
    "data_type": {"enum": [
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
        "float64", "cint16", "cint32", "cfloat32", "cfloat64", "other",
    ]},
}  # fmt: skip
_BANDS = {
    "type": "array",
    "maxItems": 1024,
    "items": {
        "type": "object",
        "properties": {key: {"type": "string"} for key in ("name", "common_name", "eo:common_name")}
        | _VALUES,
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
        **dict.fromkeys(("bands", "eo:bands", "raster:bands"), _BANDS),
        **_VALUES,
    },
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "stac_version", "assets"],
    "properties": {
        "type": {"const": "Feature"},
        "stac_version": {"type": "string"},
        "assets": {"type": "object", "maxProperties": 1000, "additionalProperties": _ASSET},
        "properties": {"type": "object", "properties": {key: {"type": "boolean"} for key in OFFSET_APPLIED}},
    },
}

_COLLECTION: dict[str, Any] = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                **_SCHEMA,
                "required": [*_SCHEMA["required"], "id"],
                "properties": {**_SCHEMA["properties"], "id": {"type": "string", "minLength": 1}},
            },
        },
    },
}

_ADDRESS = r"(https?|s3|gs|az)://|/vsicurl(/|\?pc_url_signing=yes&pc_collection=[\w.%-]+&url=)https?://"
"""Addresses that items may name; the last form lets GDAL sign them for Planetary Computer."""


@dataclass(frozen=True)
class Asset:
    """A file of an item.

    Parameters
    ----------
    names
        Band of each layer of the file; None for what is no band.
    scales, offsets
        reflectance = (stored + offset) x scale, layer by layer; None where the item doesn't say.
    nodatas
        Stored values of no data, layer by layer; None where the item doesn't say.
    """

    path: str
    names: tuple[str | None, ...]
    scales: tuple[float | None, ...]
    offsets: tuple[float | None, ...]
    nodatas: tuple[float | None, ...]


def is_item(path: str | Path) -> bool:
    """True for a file that is named like a STAC item, or a feature of a collection of items (``FILE#ID``)."""
    return Path(str(path).partition("#")[0]).suffix.lower() == ".json"


@functools.lru_cache(maxsize=4)
def _features(path: Path, changed: int) -> dict[str, Any]:
    """Return the features of an item collection by their identifiers; `changed` tells its states apart."""
    data = read_document(path, _COLLECTION, "STAC item collection", 0)
    return {feature["id"]: feature for feature in data["features"]}


def _document(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file and the content of an item, which may be a feature of a collection of items."""
    name, _, feature = str(path).partition("#")
    file = Path(name)
    guards.check_regular_file(file, "the STAC item")
    if not feature:
        return file, read_document(file, _SCHEMA, "STAC item", 0)
    found = _features(file, file.stat().st_mtime_ns).get(feature)
    if found is None:
        raise InputError(f"cannot find the item '{feature}' in '{file}'", "Make the list of scenes again.")
    return file, found


def is_feature(path: Path) -> bool:
    """True for a document that is written like an item, whatever its assets are."""
    try:
        _document(path)
    except InputError:
        return False
    return True


def asset_place(path: str, key: str, *, allow_remote: bool = False) -> str | None:
    """Return path or address of the asset of an item with that key; None where it has none."""
    file, data = _document(Path(path))
    asset = data["assets"].get(key)
    return asset and _place(file, asset["href"], allow_remote=allow_remote)


def read_item(path: Path, *, allow_remote: bool = False) -> tuple[dict[str, Asset], str | None]:
    """Find the assets of an item that hold bands.

    Raises InputError if the file is no STAC item, has no asset with a band, or an asset lies outside its
    folder.

    Returns
    -------
    assets
        Band name to its asset: files before addresses, the finest of several, a file of one band before one
        of many.
    mask
        Path or address of the scene classification; None where the item has none.
    """
    try:
        path, data = _document(path)
    except InputError as error:
        hint = "Give an item (a Feature with assets); of a collection or catalogue, give its items."
        raise InputError(error.problem, hint) from error
    properties = data.get("properties", {})
    candidates: dict[str, list[tuple[tuple[bool, int, float], str]]] = {}
    for key, asset in data["assets"].items():
        rank = (guards.is_address(asset["href"]), len(_described(asset)), _resolution(key, asset))
        for name in dict.fromkeys(_names(key, asset, properties)):
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
        name: _asset(path, key, data["assets"][key], properties, allow_remote=allow_remote)
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


def _asset(
    path: Path, key: str, data: dict[str, Any], properties: Mapping[str, Any], *, allow_remote: bool
) -> Asset:
    described = _described(data)
    scalings = [_scaling(band, properties) for band in described]
    return Asset(
        path=_place(path, data["href"], allow_remote=allow_remote),
        names=tuple(_names(key, data, properties)),
        scales=tuple(scale for scale, _ in scalings),
        offsets=tuple(offset for _, offset in scalings),
        nodatas=tuple(next(iter(declared_missing(band).values), None) for band in described),
    )


def _place(item: Path, href: str, *, allow_remote: bool) -> str:
    """Return the place of an asset: below the folder of its item, or an address where those are allowed."""
    if guards.is_address(href):
        # Other addresses, as /vsizip/, may lead to files of this machine, wherever they lie.
        if allow_remote and re.match(_ADDRESS, href):
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
    """Return the description of each layer of an asset; one layer where it has no list."""
    lists = [asset.get(name, []) for name in ("bands", "eo:bands", "raster:bands")]
    count = max(1, *map(len, lists))
    # What lists of another length say can't be told to belong to one layer or the other.
    fitting = [entries for entries in lists if len(entries) == count]
    whole = {key: asset[key] for key in _VALUES if key in asset}
    return [whole | {k: v for entries in fitting for k, v in entries[i].items()} for i in range(count)]


def _names(key: str, asset: dict[str, Any], properties: Mapping[str, Any]) -> Iterator[str | None]:
    described = _described(asset)
    # Other satellites number their bands otherwise; common names mean the same on all.
    platform = " ".join(
        str(properties.get(k, "")) for k in ("platform", "constellation", "eo:platform")
    ).lower()
    foreign = platform.strip() != "" and "sentinel-2" not in platform.replace("_", "-")
    keys = ("eo:common_name", "common_name") if foreign else ("name", "eo:common_name", "common_name")
    for band in described:
        texts = [band.get(name) for name in keys]
        if len(described) == 1:
            # A file of its own bears the name of its asset.
            texts.append(None if foreign and key.lower() not in COMMON_NAMES else key)
        yield next((name for name in map(_band_of, texts) if name), None)


def _band_of(text: str | None) -> str | None:
    """The band, or SCL, that a name of a band or of an asset means."""
    if not text:
        return None
    name = canonical_name(text)
    if name in SENTINEL_BANDS:
        return name
    return "SCL" if re.match(r"SCL(?![0-9A-Z])", text.upper()) else None


def _resolution(key: str, asset: dict[str, Any]) -> float:
    """Metres per pixel, as far as the item says; infinite where it doesn't."""
    named = re.search(r"_(\d+)m$", key)
    transform = asset.get("proj:transform")
    said = [abs(transform[0]) if transform else None]
    said += [band.get("spatial_resolution") for band in _described(asset)]
    said += [float(named.group(1)) if named else None, asset.get("gsd")]
    return next((float(n) for n in said if isinstance(n, int | float) and n > 0), math.inf)


def _scaling(band: dict[str, Any], properties: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(scale, offset in DN) of a layer; None where the item says nothing of it.

    Metadata mean value = stored x scale + offset. An item that names its processing baseline, and neither an
    offset nor that it was taken off, holds the DN of that baseline.
    """
    scale, offset = (band.get(f"raster:{key}", band.get(key)) for key in ("scale", "offset"))
    added = is_offset_applied(properties)
    dtype = "float32" if "float" in band.get("data_type", "") else "uint16"
    found, moved = declared_scaling(scale, 0.0 if added else offset, dtype)
    if offset is not None:
        return found, moved or 0.0
    if scale is None and not added and baseline_of(properties) >= OFFSET_SINCE:
        return None, BASELINE_OFFSET
    return found, None
