"""STAC items of maps, mosaics and weights (machine-learning model extension, MLM).

Items hold nothing of the machine or the time of writing, and name files relative to their own folder.

References
----------
STAC 1.1.0 (https://github.com/radiantearth/stac-spec) and the extensions in `EXTENSIONS`.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import shapely
from shapely.geometry.polygon import orient

from lulc.core.documents import parse_json
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.storage import sha256_of
from lulc.core.text import class_names, printable
from lulc.core.version import __version__
from lulc.export.styles import Entry
from lulc.maps.reader import REST, ClassMap
from lulc.models.card import ModelCard, card_path
from lulc.rasters.layers import Layer

STAC_VERSION = "1.1.0"

EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in {
        "classification": "2.0.0",
        "file": "2.1.0",
        "mlm": "1.4.0",
        "processing": "1.1.0",
        "projection": "2.0.0",
        "raster": "1.1.0",
    }.items()
}
"""Identifiers of the extensions that items declare."""

MISSION = ("2015-06-23", "9999-12-31")
"""Dates from the launch of Sentinel-2A on, for weights whose dates are unknown."""

Item = dict[str, Any]


def map_item(
    path: Path, folder: Path, land_cover: ClassMap, entries: Sequence[Entry], dates: Sequence[str],
    model: tuple[str, Item] | None = None,
) -> Item:  # fmt: skip
    """Return the STAC item of a map for a folder.

    `entries` are the values of its class band, see `lulc.export.styles.count_entries`; `model` is file name
    and content of the item of its weights, to link to.
    """
    grid, tags = land_cover.grid, land_cover.tags
    geometry, bbox = footprint(grid)
    properties = {
        **_time(dates),
        "title": f"Land cover: {printable(land_cover.legend.name)}",
        "description": _description(tags),
        **_projection(grid),
        "processing:level": "L4",
        "processing:lineage": f"Land cover by the network {tags.get('LULC_MODEL', 'unknown')}, lulc "
        f"{tags.get('LULC_VERSION', 'of unknown version')}",
        "processing:software": _software(tags),
    }
    expression = {tag.removeprefix("LULC_").lower(): _parsed(tags[tag]) for tag in _MADE if tag in tags}
    if expression:
        properties["processing:expression"] = {"format": "lulc", "expression": expression}
    identity = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    title = "Class numbers, then the activation of each class"
    asset = {
        **_file_asset(path, folder, identity, _media_type(tags), title),
        "roles": ["data"],
        "bands": _bands(land_cover, entries),
        "raster:bands": _raster_bands(land_cover, entries),
    }
    links = [] if model is None else [_derived_from(*model)]
    names = ("classification", "file", "processing", "projection", "raster")
    return _item(path.stem, names, geometry, bbox, properties, links, {"map": asset})


_MADE = ("LULC_MODEL", "LULC_MODEL_SHA256", "LULC_ENGINE", "LULC_PARAMETERS", "LULC_INPUTS", "LULC_CHANNELS")


_KINDS = {".npz": ("random forest", "NumPy"), ".onnx": ("imported", "ONNX")}
"""Architecture and framework of weights that are no U-Net, by suffix."""


def model_item(path: Path, folder: Path, card: ModelCard, dates: Sequence[str] = MISSION) -> Item:
    """Return the STAC item of weights for a folder; its geometry is null, since the training area is unknown.

    `dates` are the day, or first and last day, of imagery that the weights are for.
    """
    channels = card.channel_set.channels if card.channel_set else ()
    formulas = {one.name: f": {one.formula}" for one in channels if one.formula}
    architecture, framework = _KINDS.get(path.suffix, ("U-Net", "Keras"))
    properties: dict[str, Any] = {
        **_time(dates),
        "title": card.name,
        "description": _model_description(card),
        "license": card.licence if re.fullmatch(r"[\w.+-]+", card.licence) else "other",
        "bands": [
            {"name": c.name, "description": f"{c.unit} ({c.coding}{formulas.get(c.name, '')})"}
            for c in card.channels
        ],
        "mlm:name": _model_name(card.name),
        "mlm:architecture": architecture,
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": framework,
        "mlm:total_parameters": card.network.parameters,
        "mlm:accelerator": None,
        "mlm:input": [_model_input(card)],
        "mlm:output": [_model_output(card)],
        "mlm:hyperparameters": _hyperparameters(card),
    }
    version = card.versions.get("keras", "")
    if re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        properties["mlm:framework_version"] = version
    identity = {"bytes": card.bytes, "sha256": card.sha256}
    artifacts = {".keras": "keras", ".npz": "npz", ".onnx": "onnx"}
    weights = {
        **_file_asset(path, folder, identity, "application/octet-stream", "Weights, without code"),
        "roles": ["mlm:model", "mlm:weights", "data"],
        # MLM looks for bands in properties; STAC allows them there only if an asset has some.
        "bands": [{"name": c.name} for c in card.channels],
        "mlm:artifact_type": artifacts.get(path.suffix, "keras-2-hdf5"),
    }
    assets = {"weights": weights}
    if card_path(path).is_file():
        title = "Model card: channels, legend, statistics, scores"
        assets["card"] = _metadata_asset(card_path(path), folder, "application/json", title)
    return _item(_identifier(card.name), ("file", "mlm"), None, None, properties, [], assets)


def mosaic_item(
    path: Path, folder: Path, grid: GridSpec, dates: Sequence[str], bands: Sequence[dict[str, Any]],
    scene_list: Path, sources: Sequence[str],
) -> Item:  # fmt: skip
    """Return the STAC item of a mosaic for a folder.

    `bands` are name, data type, no data, scale and offset of each band; `sources` are links to the items of
    the scenes.
    """
    geometry, bbox = footprint(grid)
    file = {"href": _href(path, folder), "type": "application/vnd+zarr", "title": "Mosaic"}
    if path.is_file():
        identity = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        file = _file_asset(path, folder, identity, "image/tiff; application=geotiff", "Mosaic")
    raster = [{k: v for k, v in band.items() if k != "name"} for band in bands]
    asset = {
        **file,
        "roles": ["data", "reflectance"],
        "bands": [{"name": band["name"]} for band in bands],
        "raster:bands": raster,
    }
    listed = _metadata_asset(scene_list, folder, "application/geo+json", "Scenes")
    properties = {
        **_time(dates),
        "title": f"Mosaic of {bands[0]['name']} to {bands[-2]['name']}",
        **_projection(grid),
        "processing:level": "L3",
        "processing:software": {"lulc": __version__},
    }
    names = ("file", "processing", "projection", "raster")
    links = [{"rel": "derived_from", "href": href, "type": "application/geo+json"} for href in sources]
    return _item(path.stem, names, geometry, bbox, properties, links, {"mosaic": asset, "scenes": listed})


def collection(
    name: str, grid: GridSpec, tags: Mapping[str, str], dates: Sequence[str], mosaic: str,
    children: Sequence[str],
) -> Item:  # fmt: skip
    """Return the STAC collection of a map in tiles.

    `mosaic`, the VRT of all tiles, and `children`, the catalogs of the rows, are paths from the collection.
    """
    first, last = parse_dates(dates)
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [],
        "id": _identifier(name),
        "title": f"Land cover: {name}",
        "description": _description(tags),
        "license": "other",
        "extent": {
            "spatial": {"bbox": [footprint(grid)[1]]},
            "temporal": {"interval": [[f"{first}T00:00:00Z", f"{last}T23:59:59Z"]]},
        },
        "links": [_link("root", "collection.json"), *(_link("child", child) for child in children)],
        "assets": {
            "map": {
                "href": f"./{mosaic}", "type": "application/x-gdal-vrt", "title": "All tiles",
                "roles": ["data"],
            }
        },
    }  # fmt: skip


def catalog(name: str, description: str, top: str, items: Sequence[str]) -> Item:
    """Return the STAC catalog of some items of a collection, `top`; all are paths from the catalog."""
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": name,
        "description": description,
        "links": [_link("root", top), _link("parent", top), *(_link("item", item) for item in items)],
    }


def belonging(item: Item, name: str, top: str, parent: str) -> Item:
    """Return an item with links to its collection `name`, the file `top`, and its catalog `parent`."""
    links = [_link("root", top), _link("parent", parent), _link("collection", top)]
    return {**item, "collection": _identifier(name), "links": [*item["links"], *links]}


def _link(kind: str, name: str) -> dict[str, Any]:
    media = "application/geo+json" if kind == "item" else "application/json"
    return {"rel": kind, "href": name if name.startswith("../") else f"./{name}", "type": media}


def footprint(grid: GridSpec) -> tuple[dict[str, Any], list[float]]:
    """Return the outline of a grid in degrees, and its bounding box west, south, east, north.

    An outline across longitude 180 is cut there; its west is then larger than its east. Grids with a pole
    inside are not supported. See RFC 7946, sections 3.1.9 (antimeridian cutting) and 5.2 (its bounding box).
    """
    outline = grid.outline_in_degrees()
    parts = shapely.get_parts(outline)
    west, south, east, north = outline.bounds
    if len(parts) > 1:
        west, east = max(part.bounds[0] for part in parts), min(part.bounds[2] for part in parts)
    # 7 digits are a centimetre.
    bbox = np.round([west, south, east, north], 7).tolist()
    rings = [[np.round(orient(part).exterior.coords, 7).tolist()] for part in parts]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}, bbox
    return {"type": "MultiPolygon", "coordinates": rings}, bbox


def parse_dates(dates: Sequence[str]) -> tuple[datetime.date, datetime.date]:
    """Parse one day, or a first and a last one, written as YYYY-MM-DD."""
    try:
        first, last = (datetime.date.fromisoformat(text) for text in (dates[0], dates[-1]))
        if len(dates) > 2 or first > last:
            raise ValueError
    except (ValueError, IndexError) as error:
        raise InputError(
            f"cannot use the dates '{' '.join(dates)}', expected one day, or a first and a last one",
            "Type --date 2018-07-01, or --date 2018-06-01 2018-08-31.",
        ) from error
    return first, last


def known_dates(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return first and last day of a map's imagery if all inputs have dates in their names, else none.

    Names of Copernicus products and bands have them: ``S2B_MSIL2A_20200223T034729_...``.

    Examples
    --------
    >>> known_dates({"LULC_PARAMETERS": '{"inputs": ["T48QUE_20200223T034729_B02_10m.jp2"], "fill": []}'})
    ('2020-02-23', '2020-02-23')
    """
    parameters = _parsed(tags.get("LULC_PARAMETERS", "{}"))
    if not isinstance(parameters, dict) or not isinstance(parameters.get("inputs"), list):
        return ()
    names = [str(name) for name in (*parameters["inputs"], *(parameters.get("fill") or ()))]
    matches = [re.search(r"(?<!\d)(20\d\d)(\d\d)(\d\d)T\d{6}(?!\d)", name) for name in names]
    days = sorted("-".join(match.groups()) for match in matches if match)
    return (days[0], days[-1]) if days and len(days) == len(names) else ()


def _time(dates: Sequence[str]) -> dict[str, Any]:
    first, last = parse_dates(dates)
    if first == last:
        return {"datetime": f"{first}T00:00:00Z"}
    return {
        "datetime": None, "start_datetime": f"{first}T00:00:00Z", "end_datetime": f"{last}T23:59:59Z"
    }  # fmt: skip


def _item(
    name: str, extensions: Iterable[str], geometry: dict[str, Any] | None, bbox: list[float] | None,
    properties: dict[str, Any], links: list[dict[str, Any]], assets: dict[str, Any],
) -> Item:  # fmt: skip
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [EXTENSIONS[e] for e in extensions],
        "id": name,
        "geometry": geometry,
        **({} if bbox is None else {"bbox": bbox}),
        "properties": properties,
        "links": links,
        "assets": assets,
    }


def _metadata_asset(path: Path, folder: Path, kind: str, title: str) -> dict[str, Any]:
    return {"href": _href(path, folder), "type": kind, "title": title, "roles": ["metadata"]}


def _href(path: Path, folder: Path) -> str:
    """Return the path of a file relative to a folder, as a link."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return quote(relative if relative.startswith("../") else f"./{relative}")


def _file_asset(
    path: Path, folder: Path, identity: Mapping[str, Any], kind: str, title: str
) -> dict[str, Any]:
    return {
        "href": _href(path, folder),
        "type": kind,
        "title": title,
        "file:size": identity["bytes"],
        # A multihash: 0x12 for SHA-256, 0x20 for its 32 bytes.
        "file:checksum": f"1220{identity['sha256']}",
    }


def _media_type(tags: Mapping[str, str]) -> str:
    parameters = _parsed(tags.get("LULC_PARAMETERS", "{}"))
    optimised = isinstance(parameters, dict) and parameters.get("cog")
    return f"image/tiff; application=geotiff{'; profile=cloud-optimized' if optimised else ''}"


def _projection(grid: GridSpec) -> dict[str, Any]:
    code = grid.crs.to_epsg()
    crs = {"proj:code": f"EPSG:{code}"} if code else {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
    return {
        **crs,
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
        "proj:bbox": list(grid.bounds),
    }


def _bands(land_cover: ClassMap, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    described = ["Class number", *(f"Activation, 0..1: {name}" for name in _stored_names(land_cover))]
    described += [f"Measure, 0..1: {name}" for name in _measures(land_cover)]
    short = ["class", *class_names([*_stored_names(land_cover), *_measures(land_cover)])]
    bands: list[dict[str, Any]] = [
        {"name": name, "description": text, "data_type": layer.dtype}
        | ({} if layer.nodata is None else {"nodata": layer.nodata})
        for name, text, layer in zip(short, described, _layers(land_cover), strict=True)
    ]
    bands[0]["classification:classes"] = _classes(entries)
    return bands


def _raster_bands(land_cover: ClassMap, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    bands = []
    for layer in _layers(land_cover):
        band: dict[str, Any] = {"data_type": layer.dtype, "sampling": "area"}
        if layer.nodata is not None:
            band["nodata"] = layer.nodata
        if land_cover.grid.crs.is_projected:
            band["spatial_resolution"] = land_cover.grid.pixel_size[0]
        if layer.scale is not None:
            band |= {"scale": layer.scale, "offset": (layer.offset or 0.0) * layer.scale}
        bands.append(band)
    bands[0]["classification:classes"] = _classes(entries)
    return bands


def _stored_names(land_cover: ClassMap) -> list[str]:
    """Return the names of the activation bands of the file; a map of a single class has one."""
    return [printable(name) for name in land_cover.legend.names[: len(land_cover.layers) - 1]]


def _measures(land_cover: ClassMap) -> list[str]:
    """Return the names of the bands after the activations, which are stored like them."""
    parameters = _parsed(land_cover.tags.get("LULC_PARAMETERS", "{}"))
    extra = parameters.get("extra") if isinstance(parameters, dict) else None
    return [str(name) for name in extra] if isinstance(extra, list) and land_cover.has_activations else []


def _layers(land_cover: ClassMap) -> list[Layer]:
    """Return the layer that describes each band."""
    return [*land_cover.layers, *[land_cover.layers[-1]] * len(_measures(land_cover))]


def _classes(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    short = class_names(e.name for e in entries)
    return [
        {
            "value": e.value, "name": name, "title": e.name, "description": e.name,
            "color_hint": e.color[1:].upper(), "count": e.count,
        }
        for name, e in zip(short, entries, strict=True)
    ]  # fmt: skip


def _software(tags: Mapping[str, str]) -> dict[str, str]:
    engine = _parsed(tags.get("LULC_ENGINE", "{}"))
    named = engine.items() if isinstance(engine, dict) else ()
    versions = {k: v for k, v in named if isinstance(v, str) and re.match(r"\d+\.", v)}
    return {"lulc": tags.get("LULC_VERSION", __version__), **dict(sorted(versions.items()))}


def _description(tags: Mapping[str, str]) -> str:
    bands = "Band 1 holds class numbers, each further band the activation of one class."
    return " ".join(filter(None, (bands, tags.get("LULC_ATTRIBUTION"))))


def _derived_from(href: str, model: Item) -> dict[str, Any]:
    return {
        "rel": "derived_from",
        "href": href,
        "type": "application/geo+json",
        "title": "The weights that it was made with",
        "mlm:name": model["properties"]["mlm:name"],
        "processing:level": "L4",
    }


def _model_description(card: ModelCard) -> str:
    limits = f"Not for: {card.not_for}" if card.not_for else ""
    parts = (card.description, limits, card.attribution)
    return " ".join(p for p in parts if p) or f"Land cover of the legend {card.legend.name}."


def _model_name(name: str) -> str:
    """Return a name that the MLM extension allows: letters, digits, dots, hyphens and blanks."""
    return f"lulc {re.sub(r'[^A-Za-z0-9_. -]+', '-', name)}".rstrip("_. -")


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _hyperparameters(card: ModelCard) -> dict[str, Any]:
    parameters = card.training.get("parameters")
    named = parameters if isinstance(parameters, dict) else {}
    # The MLM extension allows no other names.
    allowed = {k: v for k, v in named.items() if re.fullmatch(r"[0-9a-zA-Z_.-]+", k)}
    return {"network": card.network.to_json(), **allowed}


def _model_input(card: ModelCard) -> dict[str, Any]:
    return {
        "name": "stack",
        "description": f"Physical units, NaN in every channel of an invalid pixel; the network standardises. "
        f"Height and width are multiples of {card.stride}.",
        "bands": [c.name for c in card.channels],
        "input": _structure(card.network.channels),
        "value_scaling": None,
        "resize_type": None,
        "pre_processing_function": None,
    }


def _model_output(card: ModelCard) -> dict[str, Any]:
    legend = [c for c in card.legend.classes if card.single_class in (None, c.name)]
    entries = [Entry(i, c.name, c.color, 0) for i, c in enumerate(legend, start=1)]
    if card.single_class is not None:
        entries.insert(0, Entry(0, REST.name, REST.color, 0))
    classes = [{k: v for k, v in c.items() if k != "count"} for c in _classes(entries)]
    return {
        "name": "activations",
        "description": "One activation for each class, 0..1; class numbers count from 1.",
        "tasks": ["semantic-segmentation"],
        "result": _structure(card.network.classes),
        "classification:classes": classes,
        "post_processing_function": None,
    }


def _structure(channels: int) -> dict[str, Any]:
    order = ["batch", "height", "width", "bands"]
    return {"shape": [-1, -1, -1, channels], "dim_order": order, "data_type": "float32"}


def _parsed(text: str) -> Any:
    """Parse a tag that holds JSON or plain text."""
    try:
        return parse_json(text, foreign=True)
    except ValueError:
        return text
