"""Search for scenes of a region and dates in STAC APIs, static catalogues, items on disk and products."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import shapely
from shapely.geometry import shape

from lulc.config import MosaicConfig
from lulc.core.documents import read_document
from lulc.core.packages import require
from lulc.core.schema import InputError
from lulc.rasters import guards
from lulc.rasters.products import is_product, read_product
from lulc.rasters.scenes import find_scenes

logger = logging.getLogger("lulc")

CATALOGS: Mapping[str, tuple[str, str]] = {
    "earth-search": ("https://earth-search.aws.element84.com/v1", "sentinel-2-l2a"),
    "cdse": ("https://stac.dataspace.copernicus.eu/v1", "sentinel-2-l2a"),
    "planetary": ("https://planetarycomputer.microsoft.com/api/stac/v1", "sentinel-2-l2a"),
}
"""Public STAC APIs by name: address, and the collection of Sentinel-2 level 2A."""

MAX_ITEMS = 5000
"""Items of one search; a larger answer is refused."""

CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
"""Timeouts of a catalogue: to accept a connection, and to send the next bytes."""

SIGNING = "/vsicurl?pc_url_signing=yes&pc_collection={}&url={}"
"""GDAL's name of a file of Planetary Computer: GDAL fetches and renews a token for its collection."""

RETRIES = 5
"""Further requests to a catalogue after a temporary error."""

NEAREST_DAYS = 366
"""Days before and after the dates in which the nearest scenes are searched where none is found."""

_TIME = re.compile(r"_(\d{8}T\d{6})_")


class NothingFoundError(InputError):
    """Error of a search or of filters that leave no scene."""


@dataclass(frozen=True)
class FoundScene:
    """A scene as its catalogue describes it.

    `path` is that of a scene on this machine. `item` is the STAC item with absolute addresses, None for a
    product.
    """

    id: str
    when: datetime.datetime
    cloud: float | None = None
    path: str | None = None
    item: Mapping[str, Any] | None = None

    @property
    def properties(self) -> Mapping[str, Any]:
        """Properties of the item; empty for a product."""
        return (self.item or {}).get("properties", {})

    @property
    def tile(self) -> str | None:
        """The MGRS tile, such as 35VLG."""
        code = self.properties.get("grid:code") or self.properties.get("s2:mgrs_tile") or self.id
        match = re.search(r"(\d{2}[C-X][A-Z]{2})", str(code))
        return match and match.group(1)

    @property
    def orbit(self) -> int | None:
        """The relative orbit."""
        orbit = self.properties.get("sat:relative_orbit")
        match = re.search(r"_R(\d{3})_", self.id)
        return int(orbit) if isinstance(orbit, int) else int(match.group(1)) if match else None

    @property
    def baseline(self) -> float | None:
        """The processing baseline, such as 4.0."""
        names = ("s2:processing_baseline", "processing:version", "lulc:baseline")
        value = next((self.properties[name] for name in names if self.properties.get(name)), None)
        match = re.search(r"_N(\d\d)(\d\d)_", self.id)
        text = str(value) if value else ".".join(match.groups()) if match else ""
        return float(text) if re.fullmatch(r"\d\d\.\d\d", text) else None


def find(
    config: MosaicConfig, region: shapely.Geometry, dates: tuple[datetime.date, datetime.date]
) -> list[FoundScene]:
    """Return the scenes of a region and some dates, earliest first.

    Raises
    ------
    InputError
        If the catalogue doesn't answer, or no scene is left; the message says how many scenes each filter
        removed, or the nearest dates with scenes.
    """
    if (config.catalog is None) == (not config.scenes):
        raise InputError(
            "cannot tell where to look for scenes, expected one of --catalog and --scenes",
            "Type --catalog earth-search (opens connections), or --scenes FOLDER with products or items.",
        )
    scenes = _search_all(config, region, dates)
    in_time = [scene for scene in scenes if dates[0] <= scene.when.date() <= dates[1]]
    if not in_time:
        raise _none_found(config, region, dates, scenes)
    filtered = _filtered(config, in_time)
    _check_names(filtered)
    return sorted(filtered, key=lambda scene: (scene.when, scene.id))


def _check_names(scenes: Sequence[FoundScene]) -> None:
    """Refuse two scenes of one name, since a list of scenes can hold only one of them."""
    paths: dict[str, list[str]] = {}
    for scene in scenes:
        paths.setdefault(scene.id, []).append(scene.path or "the catalogue or list")
    for name, same in paths.items():
        if len(same) > 1:
            raise InputError(
                f"cannot use the scenes, since {len(same)} are named '{name}' ({', '.join(same[:3])}), "
                "expected each name once",
                "Leave the others out, or give each item an id of its own.",
            )


def _search_all(
    config: MosaicConfig, region: shapely.Geometry, dates: tuple[datetime.date, datetime.date]
) -> list[FoundScene]:
    if config.catalog is None:
        scenes = (scene for path in config.scenes for scene in _on_disk(path, config.allow_remote))
        return [scene for scene in scenes if _touches(scene, region)]
    collection = CATALOGS.get(config.catalog, ("", ""))[1]
    collections = config.collection or ((collection,) if collection else ())
    return [_from_item(item) for item in search(config.catalog, collections, region, dates)]


def _touches(scene: FoundScene, region: shapely.Geometry) -> bool:
    geometry = (scene.item or {}).get("geometry")
    if geometry is None:
        return True
    try:
        outline = shape(geometry)
        return bool(outline.is_empty or outline.intersects(region))
    except Exception as error:
        # Errors of foreign geometries have no common base class.
        raise InputError(
            f"cannot use the item '{scene.id}', since its geometry is no GeoJSON ({_brief(error)}), "
            "expected a polygon in longitude and latitude",
            "Correct the item, or write null for its geometry.",
        ) from error


def _filtered(config: MosaicConfig, scenes: Sequence[FoundScene]) -> list[FoundScene]:
    """Return the scenes that pass all filters; refuse where none does."""
    filters = {
        f"--max-cloud {config.max_cloud:g}": lambda s: s.cloud is None or s.cloud <= config.max_cloud,
        f"--orbits {' '.join(map(str, config.orbits))}": (
            lambda s: not config.orbits or s.orbit in config.orbits
        ),
        f"--tiles {' '.join(config.tiles)}": lambda s: not config.tiles or s.tile in config.tiles,
        f"--min-baseline {config.min_baseline:g}": lambda s: (s.baseline or 0.0) >= config.min_baseline,
    }
    remaining, removed = list(scenes), []
    for name, admits in filters.items():
        passing = [scene for scene in remaining if admits(scene)]
        if len(passing) < len(remaining):
            removed.append(f"{len(remaining) - len(passing)} by {name}")
        remaining = passing
    if not remaining:
        raise NothingFoundError(
            f"cannot make a mosaic, since none of the {len(scenes)} scenes is left: {', '.join(removed)}",
            "Loosen these options, or give more dates.",
        )
    if removed:
        logger.info("scenes left out: %s", ", ".join(removed))
    return remaining


def _none_found(
    config: MosaicConfig, region: shapely.Geometry, dates: tuple[datetime.date, datetime.date],
    scenes: Sequence[FoundScene],
) -> InputError:  # fmt: skip
    around = list(scenes)
    if config.catalog is not None:
        margin = datetime.timedelta(NEAREST_DAYS)
        around = _search_all(config, region, (dates[0] - margin, dates[1] + margin))
    middle = dates[0] + (dates[1] - dates[0]) / 2
    days = sorted({scene.when.date() for scene in around}, key=lambda day: abs(day - middle))[:5]
    where = config.catalog or " ".join(config.scenes)
    west, south, east, north = region.bounds
    return NothingFoundError(
        f"cannot make a mosaic, since '{where}' has no scene from {dates[0]} to {dates[1]} in longitude "
        f"{west:.3f} to {east:.3f}, latitude {south:.3f} to {north:.3f}",
        f"The nearest dates with scenes are {', '.join(map(str, sorted(days)))}."
        if days
        else "Nor is there any within a year around: check region and collection.",
    )


def search(
    catalog: str, collections: Sequence[str], region: shapely.Geometry,
    dates: tuple[datetime.date, datetime.date] | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Search a STAC API page by page; walk through a catalogue without a search.

    Without `collections` all are searched, without `dates` (first and last day) items of any time. Addresses
    in the items are absolute, and GDAL signs them if the catalogue needs that.
    """
    with _client(catalog) as (client, address):
        if client.conforms_to("ITEM_SEARCH"):
            answer = client.search(
                collections=list(collections) or None, datetime=dates and f"{dates[0]}/{dates[1]}",
                intersects=shapely.geometry.mapping(region), limit=100, max_items=MAX_ITEMS + 1,
            )  # fmt: skip
            items: Iterable[Any] = answer.items()
        else:
            every = client.get_items(recursive=True)
            items = (item for item in every if not collections or item.collection_id in collections)
        for number, item in enumerate(items):
            if number >= MAX_ITEMS:
                raise InputError(
                    f"cannot use the answer of '{address}', since it has more than {MAX_ITEMS} items",
                    "Give fewer dates, a smaller region, or --tiles.",
                )
            item.make_asset_hrefs_absolute()
            data = item.to_dict(include_self_link=False, transform_hrefs=False)
            data["links"] = [{"rel": "self", "href": item.get_self_href()}] if item.get_self_href() else []
            if (not dates or _has_time(data)) and shape(data["geometry"]).intersects(region):
                yield _signed(data) if address == CATALOGS["planetary"][0] else data


def collections_of(catalog: str, named: re.Pattern[str]) -> list[str]:
    """Return the collections of a catalogue whose identifiers match."""
    with _client(catalog) as (client, _):
        return [one.id for one in client.get_collections() if named.search(one.id)]


@contextlib.contextmanager
def _client(catalog: str) -> Iterator[tuple[Any, str]]:
    """Open a catalogue by name or address; every error becomes an `InputError`."""
    require(["pystac_client"], "search a catalogue", "mosaic")
    import pystac_client

    address, _ = CATALOGS.get(catalog, (catalog, ""))
    try:
        # Timeouts are given here, since opening replaces those of the connection.
        timeouts = (CONNECT_SECONDS, ANSWER_SECONDS)
        yield pystac_client.Client.open(address, stac_io=_retrying_io(), timeout=timeouts), address
    except InputError:
        raise
    except Exception as error:
        # Foreign answers raise errors of several libraries.
        raise InputError(
            f"cannot search '{address}', since it gave no answer that can be used ({_brief(error)})",
            "Check the address and --collection, and try again later.",
        ) from error


def _signed(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item whose addresses make GDAL sign them; they hold no token."""
    assets = {}
    for key, asset in item["assets"].items():
        check_secrets(item["id"], asset["href"])
        named = quote(str(item.get("collection"))), quote(asset["href"], safe=":/")
        assets[key] = asset | {"href": SIGNING.format(*named)}
    return item | {"assets": assets}


def _retrying_io() -> Any:
    """Return the connection of a search, which repeats requests after temporary errors."""
    import pystac_client.stac_api_io
    from urllib3 import Retry

    temporary = (429, 500, 502, 503, 504)
    retry = Retry(total=RETRIES, backoff_factor=0.5, status_forcelist=temporary, allowed_methods=None)
    return pystac_client.stac_api_io.StacApiIO(max_retries=retry)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _has_time(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("properties", {}).get("datetime"), str)


def _from_item(item: Mapping[str, Any], path: str | None = None) -> FoundScene:
    if not _has_time(item) or "id" not in item:
        name = path or item.get("id", "without id")
        raise InputError(f"cannot use the item '{name}', since it has no id or datetime, expected both")
    name, cloud = str(item["id"]), item["properties"].get("eo:cloud_cover")
    percent = float(cloud) if isinstance(cloud, int | float) else None
    return FoundScene(name, _parse_time(item["properties"]["datetime"], name), percent, path, item)


def _parse_time(text: str, name: str) -> datetime.datetime:
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"cannot use the item '{name}', since its datetime is '{text[:40]}', expected a time as in "
            "2024-06-01T09:50:31Z"
        ) from error
    return time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)


_OBJECT = {"type": "object"}
_FEATURE = {
    "type": "object",
    "required": ["id", "properties", "assets"],
    "properties": {"properties": _OBJECT, "assets": {"type": "object", "additionalProperties": _OBJECT}},
}
_LISTED: dict[str, Any] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string"},
        "id": {"type": "string"},
        "geometry": {"type": ["object", "null"]},
        "properties": _OBJECT,
        "features": {"type": "array", "items": _FEATURE},
    },
}


def _on_disk(path: str, allow_remote: bool) -> Iterator[FoundScene]:
    """Yield the scenes of a path: a list of scenes, an item, a product, or a folder of these."""
    if Path(path).suffix.lower() == ".json":
        regular = guards.check_regular_file(path, "the list of scenes")
        data = read_document(regular, _LISTED, "list of scenes", 0)
        if data["type"] == "FeatureCollection":
            yield from (_from_list(feature, Path(path)) for feature in data.get("features", ()))
            return
        if data["type"] in ("Catalog", "Collection"):
            path = str(Path(path).parent)  # the items of a static catalogue lie below it
    for *_, entry in find_scenes([path], allow_remote=allow_remote):
        try:
            yield _scene_on_disk(entry)
        except InputError as error:
            if entry == path:
                raise
            logger.warning("'%s' is not used: %s", entry, error.problem)


def _from_list(feature: dict[str, Any], path: Path) -> FoundScene:
    """Return a scene of a list that `lulc.compositing.scene_list` wrote."""
    local = feature["properties"].get("lulc:path")
    if not isinstance(local, str):
        _check_addresses(feature, path)
        return _from_item(feature)
    file = path.parent / local
    guards.check_inside(file, path.parent, str(path))
    return dataclasses.replace(_scene_on_disk(str(file)), id=str(feature["id"]))


def _check_addresses(feature: dict[str, Any], path: Path) -> None:
    """Refuse an item of a list that names files, since the new list may lie in another folder."""
    hrefs = [str(asset.get("href", "")) for asset in feature["assets"].values()]
    for href in hrefs:
        check_secrets(str(feature["id"]), href)
    if files := [href for href in hrefs if not guards.is_address(href)]:
        raise InputError(
            f"cannot use '{path}', since its item '{feature['id']}' names the file '{files[0][:200]}', "
            "expected an address",
            "Save each item as a file of its own beside its rasters, and give --scenes their folder.",
        )


def _scene_on_disk(path: str) -> FoundScene:
    if is_product(path):
        name = re.sub(r"(\.SAFE)?(\.zip)?$|\.xml$", "", Path(path).name, flags=re.IGNORECASE)
        match = _TIME.search(name) or _TIME.search(Path(path).parent.name)
        if match is None:
            raise InputError(
                f"cannot tell the date of '{path}', since its name holds none, expected one as in "
                "S2A_MSIL2A_20240601T095031_...SAFE",
                "Give the product under its own name.",
            )
        return FoundScene(name, _parse_time(match.group(1), name), read_product(Path(path)).cloud, path)
    if Path(path).suffix.lower() != ".json":
        raise InputError(
            f"cannot use '{path}' as a scene, since it has no date, expected .SAFE products or STAC items",
            "Describe it by a STAC item beside it, or give it to preprocess.py --scenes as it is.",
        )
    data = read_document(path, _LISTED, "STAC item", 0)
    if str(data.get("properties", {}).get("processing:level", "L2")) in ("L3", "L4"):
        raise InputError(
            f"cannot use the item '{path}' as a scene, since it is of level "
            f"{data['properties']['processing:level']}, expected a scene of one date",
            "Fill gaps from a mosaic with --fill-from.",
        )
    return _from_item(data, path)


def as_json(scene: FoundScene, folder: Path) -> dict[str, Any]:
    """Return a scene as a STAC item of a list in `folder`, with all that is needed to read it again.

    Raises
    ------
    InputError
        If an address in it holds a password or a signature.
    """
    if scene.path is None:
        item = {key: value for key, value in (scene.item or {}).items() if key in _KEPT}
        for asset in item["assets"].values():
            check_secrets(scene.id, str(asset.get("href", "")))
        links = (scene.item or {}).get("links", [])
        return item | {"links": [link for link in links if link.get("rel") == "self"]}
    time, path = scene.when.isoformat().replace("+00:00", "Z"), os.path.relpath(scene.path, folder)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": scene.id,
        "geometry": (scene.item or {}).get("geometry"),
        "properties": {"datetime": time, "lulc:path": path},
        "assets": {},
        "links": [],
    }


_KEPT = ("type", "stac_version", "id", "geometry", "bbox", "properties", "assets", "collection")

_SECRET = re.compile(
    r"(?i)[?&](sig|signature|token|access_token|x-amz-[a-z]+|awsaccesskeyid|sv|se)=|://[^/]*@"
)


def check_secrets(name: str, href: str) -> None:
    """Refuse an address that holds a password or a signature."""
    if _SECRET.search(href):
        raise InputError(
            f"cannot use the scene '{name}', since its address '{href.split('?')[0][:200]}' comes with a "
            "signature or password, expected one without",
            "Give credentials by environment variables such as AWS_ACCESS_KEY_ID or AZURE_STORAGE_SAS_TOKEN.",
        )
