"""STAC items of Sentinel-2 scenes: the assets of the bands, and the scaling of their DN.

Items are read from files, without a catalogue. Their assets must be below their folder or, where remote files
are allowed, at an address.
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
from lulc.rasters.layers import OFFSET_APPLIED, baseline_offset, declared_scaling, is_offset_applied
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
_BAND_NAMES = {key: {"type": "string"} for key in ("name", "common_name", "eo:common_name")}
_BANDS = {"type": "array", "maxItems": 1024, "items": {"type": "object", "properties": _BAND_NAMES | _VALUES}}
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

_FEATURE = _SCHEMA | {
    "required": [*_SCHEMA["required"], "id"],
    "properties": {**_SCHEMA["properties"], "id": {"type": "string", "minLength": 1}},
}
_COLLECTION: dict[str, Any] = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"}, "features": {"type": "array", "items": _FEATURE},
    },
}  # fmt: skip

_ADDRESS = r"(https?|s3|gs|az)://|/vsicurl(/|\?pc_url_signing=yes&pc_collection=[\w.%-]+&url=)https?://"
"""Addresses that items may have; the last form lets GDAL sign them for Planetary Computer."""


@dataclass(frozen=True)
class Asset:
    """A file of an item, described layer by layer.

    Parameters
    ----------
    names
        Band of each layer; None for layers of no band.
    scales, offsets
        reflectance = (stored + offset) x scale; None where the item doesn't say.
    nodatas
        No-data values; None where the item doesn't say.
    """

    path: str
    names: tuple[str | None, ...]
    scales: tuple[float | None, ...]
    offsets: tuple[float | None, ...]
    nodatas: tuple[float | None, ...]


def is_item(path: str | Path) -> bool:
    """True for a file named like a STAC item, or a feature of an item collection (``FILE#ID``)."""
    return Path(str(path).partition("#")[0]).suffix.lower() == ".json"


@functools.lru_cache(maxsize=4)
def _features(path: Path, changed: int) -> dict[str, Any]:
    """Return the features of an item collection by identifier; `changed` is its modification time, for the
    cache.
    """
    data = read_document(path, _COLLECTION, "STAC item collection", 0)
    return {feature["id"]: feature for feature in data["features"]}


def _document(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return file and content of an item, which may be a feature of an item collection."""
    name, _, feature = str(path).partition("#")
    file = Path(name)
    guards.check_regular_file(file, "the STAC item")
    if not feature:
        return file, read_document(file, _SCHEMA, "STAC item", 0)
    item = _features(file, file.stat().st_mtime_ns).get(feature)
    if item is None:
        raise InputError(f"cannot find the item '{feature}' in '{file}'", "Make the list of scenes again.")
    return file, item


def is_feature(path: Path) -> bool:
    """True for a valid item with any assets."""
    try:
        _document(path)
    except InputError:
        return False
    return True


def asset_place(path: str, key: str, *, allow_remote: bool = False) -> str | None:
    """Return path or address of an asset of an item by its key; None if the item has no such asset."""
    file, data = _document(Path(path))
    asset = data["assets"].get(key)
    return asset and _place(file, asset["href"], allow_remote=allow_remote)


def read_item(path: Path, *, allow_remote: bool = False) -> tuple[dict[str, Asset], str | None]:
    """Return the asset of each band of an item, and path or address of its scene classification, if it has
    one.

    Of several assets of a band, files have priority over addresses, then those with fewer bands, then those
    with finer pixels. Raises InputError if the file is no STAC item, has no asset with a band, or an asset
    lies outside its folder.
    """
    try:
        path, data = _document(path)
    except InputError as error:
        hint = "Give an item (a Feature with assets); of a collection or catalogue, give its items."
        raise InputError(error.problem, hint) from error
    properties = data.get("properties", {})
    candidates: dict[str, list[tuple[tuple[bool, int, float], str]]] = {}
    for key, asset in data["assets"].items():
        rank = (guards.is_address(asset["href"]), len(_layers_of(asset)), _resolution(key, asset))
        for name in dict.fromkeys(_names(key, asset, properties)):
            if name:
                candidates.setdefault(name, []).append((rank, key))
    best = {name: min(ranked, key=lambda one: one[0])[1] for name, ranked in candidates.items()}
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
    return assets, mask and _place(path, data["assets"][mask]["href"], allow_remote=allow_remote)


def item_files(path: Path) -> list[Path]:
    """Local files of the bands and mask of an item; empty for any other file."""
    try:
        assets, mask = read_item(path, allow_remote=True)
    except InputError:
        return []
    places = dict.fromkeys([asset.path for asset in assets.values()] + [mask or ""])
    return [Path(place) for place in places if place and not guards.is_address(place)]


def _asset(
    path: Path, key: str, data: dict[str, Any], properties: Mapping[str, Any], *, allow_remote: bool
) -> Asset:
    layers = _layers_of(data)
    scales, offsets = zip(*(_scaling(layer, properties) for layer in layers), strict=True)
    nodatas = tuple(next(iter(declared_missing(layer).values), None) for layer in layers)
    place = _place(path, data["href"], allow_remote=allow_remote)
    return Asset(place, tuple(_names(key, data, properties)), scales, offsets, nodatas)


def _place(item: Path, href: str, *, allow_remote: bool) -> str:
    """Return the path of an asset, which must be below the folder of its item, or its allowed address."""
    if guards.is_address(href):
        # Other addresses, such as /vsizip/, may lead to any file of this machine.
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


def _layers_of(asset: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the description of each layer of an asset; of a single layer where it has no list."""
    lists = [asset.get(name, []) for name in ("bands", "eo:bands", "raster:bands")]
    count = max(1, *map(len, lists))
    # A shorter list doesn't say which layers it describes.
    complete = [entries for entries in lists if len(entries) == count]
    whole = {key: asset[key] for key in _VALUES if key in asset}
    return [whole | {k: v for entries in complete for k, v in entries[i].items()} for i in range(count)]


def _names(key: str, asset: dict[str, Any], properties: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield the band (or SCL) of each layer of an asset, None for layers of no band."""
    layers = _layers_of(asset)
    # Other satellites have other numbers for their bands, but the same common names.
    satellites = (str(properties.get(k, "")) for k in ("platform", "constellation", "eo:platform"))
    platform = " ".join(satellites).lower()
    foreign = platform.strip() != "" and "sentinel-2" not in platform.replace("_", "-")
    keys = ("eo:common_name", "common_name") if foreign else ("name", "eo:common_name", "common_name")
    for layer in layers:
        texts = [layer.get(name) for name in keys]
        if len(layers) == 1:
            # The key of an asset names its only band.
            texts.append(None if foreign and key.lower() not in COMMON_NAMES else key)
        yield next((name for name in map(_band_of, texts) if name), None)


def _band_of(text: str | None) -> str | None:
    """Return the band, or SCL, that a text names; None for any other text."""
    if not text:
        return None
    name = canonical_name(text)
    if name in SENTINEL_BANDS:
        return name
    return "SCL" if re.match(r"SCL(?![0-9A-Z])", text.upper()) else None


def _resolution(key: str, asset: dict[str, Any]) -> float:
    """Return the metres per pixel; infinity where the item doesn't say."""
    in_key = re.search(r"_(\d+)m$", key)
    transform = asset.get("proj:transform")
    sizes = [abs(transform[0]) if transform else None]
    sizes += [layer.get("spatial_resolution") for layer in _layers_of(asset)]
    sizes += [float(in_key.group(1)) if in_key else None, asset.get("gsd")]
    return next((float(n) for n in sizes if isinstance(n, int | float) and n > 0), math.inf)


def _scaling(layer: dict[str, Any], properties: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(scale, offset in DN) of a layer; None where the item doesn't say.

    Metadata mean value = stored x scale + offset. The DN of an item with a processing baseline have the
    offset of that baseline, unless the item has an offset or says that it was removed.
    """
    scale, offset = (layer.get(f"raster:{key}", layer.get(key)) for key in ("scale", "offset"))
    dtype = "float32" if "float" in layer.get("data_type", "") else "uint16"
    factor, addend = declared_scaling(scale, 0.0 if is_offset_applied(properties) else offset, dtype)
    if offset is not None:
        return factor, addend or 0.0
    return factor, baseline_offset(properties) if scale is None else None
