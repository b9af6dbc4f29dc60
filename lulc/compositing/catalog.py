"""Scenes of a region and a time: from a STAC API, a static catalogue, items on disk or ``.SAFE`` products."""

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
from lulc.rasters.products import read_product
from lulc.rasters.scenes import find_scenes
from lulc.rasters.sources import is_safe

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
"""How long a catalogue may take to accept a connection, and to send the next bytes."""

SIGNING = "/vsicurl?pc_url_signing=yes&pc_collection={}&url={}"
"""How GDAL reads what Planetary Computer holds: it fetches a token for the collection, and renews it."""

RETRIES = 5
"""Times that a catalogue is asked again after a fault that passes."""

NEAREST_DAYS = 366
"""How far around the dates scenes are looked for where none is found."""

_TIME = re.compile(r"_(\d{8}T\d{6})_")


class NothingFoundError(InputError):
    """Error of a search, or of filters, that leave no scene."""


@dataclass(frozen=True)
class Found:
    """A scene as its catalogue describes it.

    Parameters
    ----------
    path
        What it is read from, if it lies on this machine.
    item
        The STAC item, with absolute addresses; None for a product.
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
        said = self.properties.get("grid:code") or self.properties.get("s2:mgrs_tile") or self.id
        match = re.search(r"(\d{2}[C-X][A-Z]{2})", str(said))
        return match and match.group(1)

    @property
    def orbit(self) -> int | None:
        said = self.properties.get("sat:relative_orbit")
        match = re.search(r"_R(\d{3})_", self.id)
        return int(said) if isinstance(said, int) else int(match.group(1)) if match else None

    @property
    def baseline(self) -> float | None:
        names = ("s2:processing_baseline", "processing:version", "lulc:baseline")
        said = next((self.properties[name] for name in names if self.properties.get(name)), None)
        match = re.search(r"_N(\d\d)(\d\d)_", self.id)
        text = str(said) if said else ".".join(match.groups()) if match else ""
        return float(text) if re.fullmatch(r"\d\d\.\d\d", text) else None


def find(
    config: MosaicConfig, region: shapely.Geometry, dates: tuple[datetime.date, datetime.date]
) -> list[Found]:
    """Return the scenes of a region and some dates, earliest first.

    Raises
    ------
    InputError
        If the catalogue doesn't answer, or no scene is left; the message says how many fell to each filter
        and the nearest dates that have some.
    """
    if (config.catalog is None) == (not config.scenes):
        raise InputError(
            "cannot tell where to look for scenes, expected one of --catalog and --scenes",
            "Type --catalog earth-search (opens connections), or --scenes FOLDER with products or items.",
        )
    found = _listed(config, region, dates)
    kept = [scene for scene in found if dates[0] <= scene.when.date() <= dates[1]]
    if not kept:
        raise _none_found(config, region, dates, found)
    filtered = _filtered(config, kept)
    _check_names(filtered)
    return sorted(filtered, key=lambda scene: (scene.when, scene.id))


def _check_names(scenes: Sequence[Found]) -> None:
    """Refuse scenes of one name, of which a list of scenes could hold only one."""
    places: dict[str, list[str]] = {}
    for scene in scenes:
        places.setdefault(scene.id, []).append(scene.path or "the catalogue or list")
    for name, own in places.items():
        if len(own) > 1:
            raise InputError(
                f"cannot use the scenes, since {len(own)} are named '{name}' ({', '.join(own[:3])}), "
                "expected each name once",
                "Leave the others out, or give each item an id of its own.",
            )


def _listed(
    config: MosaicConfig, region: shapely.Geometry, dates: tuple[datetime.date, datetime.date]
) -> list[Found]:
    if config.catalog is None:
        listed = (scene for path in config.scenes for scene in _on_disk(path, config.allow_remote))
        return [scene for scene in listed if _touches(scene, region)]
    collection = CATALOGS.get(config.catalog, ("", ""))[1]
    collections = config.collection or ((collection,) if collection else ())
    return [_from_item(item) for item in search(config.catalog, collections, region, dates)]


def _touches(scene: Found, region: shapely.Geometry) -> bool:
    geometry = (scene.item or {}).get("geometry")
    if geometry is None:
        return True
    try:
        outline = shape(geometry)
        return bool(outline.is_empty or outline.intersects(region))
    except Exception as error:
        # What a stranger's geometry may break has no common base.
        raise InputError(
            f"cannot use the item '{scene.id}', since its geometry is no GeoJSON ({_brief(error)}), "
            "expected a polygon in longitude and latitude",
            "Correct the item, or write null for its geometry.",
        ) from error


def _filtered(config: MosaicConfig, scenes: Sequence[Found]) -> list[Found]:
    """Return the scenes that pass all filters; refuse where none does."""
    filters = {
        f"--max-cloud {config.max_cloud:g}": lambda s: s.cloud is None or s.cloud <= config.max_cloud,
        f"--orbits {' '.join(map(str, config.orbits))}": lambda s: (
            not config.orbits or s.orbit in config.orbits
        ),
        f"--tiles {' '.join(config.tiles)}": lambda s: not config.tiles or s.tile in config.tiles,
        f"--min-baseline {config.min_baseline:g}": lambda s: (s.baseline or 0.0) >= config.min_baseline,
    }
    left, lost = list(scenes), []
    for name, keeps in filters.items():
        passing = [scene for scene in left if keeps(scene)]
        if len(passing) < len(left):
            lost.append(f"{len(left) - len(passing)} by {name}")
        left = passing
    if not left:
        raise NothingFoundError(
            f"cannot make a mosaic, since none of the {len(scenes)} scenes is left: {', '.join(lost)}",
            "Loosen these options, or give more dates.",
        )
    if lost:
        logger.info("scenes left out: %s", ", ".join(lost))
    return left


def _none_found(
    config: MosaicConfig, region: shapely.Geometry, dates: tuple[datetime.date, datetime.date],
    found: Sequence[Found],
) -> InputError:  # fmt: skip
    around = list(found)
    if config.catalog is not None:
        margin = datetime.timedelta(NEAREST_DAYS)
        around = _listed(config, region, (dates[0] - margin, dates[1] + margin))
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
    """Search a STAC API, page by page; walk a catalogue that offers no search.

    Parameters
    ----------
    collections
        All where empty.
    dates
        First and last day of scenes; None for items of any time.

    Yields
    ------
    dict
        Items with absolute addresses, which GDAL signs where the catalogue asks for that.
    """
    with _client(catalog) as (client, address):
        if client.conforms_to("ITEM_SEARCH"):
            found = client.search(
                collections=list(collections) or None, datetime=dates and f"{dates[0]}/{dates[1]}",
                intersects=shapely.geometry.mapping(region), limit=100, max_items=MAX_ITEMS + 1,
            )  # fmt: skip
            items: Iterable[Any] = found.items()
        else:
            listed = client.get_items(recursive=True)
            items = (item for item in listed if not collections or item.collection_id in collections)
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
    """Open a catalogue by name or address; what goes wrong with it is an `InputError`."""
    require(["pystac_client"], "search a catalogue", "mosaic")
    import pystac_client

    address, _ = CATALOGS.get(catalog, (catalog, ""))
    try:
        # The limits of time are given here, since opening sets those of the connection anew.
        limits = (CONNECT_SECONDS, ANSWER_SECONDS)
        yield pystac_client.Client.open(address, stac_io=_patient(), timeout=limits), address
    except InputError:
        raise
    except Exception as error:
        # What a stranger's answer may break lies in several libraries.
        raise InputError(
            f"cannot search '{address}', since it gave no answer that can be used ({_brief(error)})",
            "Check the address and --collection, and try again later.",
        ) from error


def _signed(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item whose addresses tell GDAL to sign them; they hold no token."""
    assets = {}
    for key, asset in item["assets"].items():
        check_secrets(item["id"], asset["href"])
        named = quote(str(item.get("collection"))), quote(asset["href"], safe=":/")
        assets[key] = asset | {"href": SIGNING.format(*named)}
    return item | {"assets": assets}


def _patient() -> Any:
    """Return the connection of a search, patient with errors that pass."""
    import pystac_client.stac_api_io
    from urllib3 import Retry

    return pystac_client.stac_api_io.StacApiIO(
        max_retries=Retry(
            total=RETRIES,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            respect_retry_after_header=True,
        )
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _has_time(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("properties", {}).get("datetime"), str)


def _from_item(item: Mapping[str, Any], path: str | None = None) -> Found:
    if not _has_time(item) or "id" not in item:
        named = path or item.get("id", "without id")
        raise InputError(f"cannot use the item '{named}', since it has no id or datetime, expected both")
    properties = item["properties"]
    cloud = properties.get("eo:cloud_cover")
    return Found(
        id=str(item["id"]),
        when=_moment(properties["datetime"], str(item["id"])),
        cloud=float(cloud) if isinstance(cloud, int | float) else None,
        path=path,
        item=item,
    )


def _moment(text: str, name: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"cannot use the item '{name}', since its datetime is '{text[:40]}', expected a time as in "
            "2024-06-01T09:50:31Z"
        ) from error
    return moment.astimezone(datetime.UTC) if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


_LISTED: dict[str, Any] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string"},
        "id": {"type": "string"},
        "geometry": {"type": ["object", "null"]},
        "properties": {"type": "object"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "properties", "assets"],
                "properties": {
                    "properties": {"type": "object"},
                    "assets": {"type": "object", "additionalProperties": {"type": "object"}},
                },
            },
        },
    },
}


def _on_disk(path: str, allow_remote: bool) -> Iterator[Found]:
    """Yield the scenes of a path: a list of scenes, an item, a product, or a folder of these."""
    if Path(path).suffix.lower() == ".json":
        data = read_document(
            guards.check_regular_file(path, "the list of scenes"), _LISTED, "list of scenes", 0
        )
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


def _from_list(feature: dict[str, Any], path: Path) -> Found:
    """Return a scene of a list that `lulc.compositing.scene_list` wrote."""
    local = feature["properties"].get("lulc:path")
    if not isinstance(local, str):
        _check_addresses(feature, path)
        return _from_item(feature)
    place = path.parent / local
    guards.check_inside(place, path.parent, str(path))
    return dataclasses.replace(_scene_on_disk(str(place)), id=str(feature["id"]))


def _check_addresses(feature: dict[str, Any], path: Path) -> None:
    """Refuse an item of a list that names files, since the new list may lie in another folder."""
    places = [str(asset.get("href", "")) for asset in feature["assets"].values()]
    for place in places:
        check_secrets(str(feature["id"]), place)
    if files := [place for place in places if not guards.is_address(place)]:
        raise InputError(
            f"cannot use '{path}', since its item '{feature['id']}' names the file '{files[0][:200]}', "
            "expected an address",
            "Save each item as a file of its own beside its rasters, and give --scenes their folder.",
        )


def _scene_on_disk(path: str) -> Found:
    if is_safe(path):
        name = re.sub(r"(\.SAFE)?(\.zip)?$|\.xml$", "", Path(path).name, flags=re.IGNORECASE)
        found = _TIME.search(name) or _TIME.search(Path(path).parent.name)
        if found is None:
            raise InputError(
                f"cannot tell the date of '{path}', since its name holds none, expected one as in "
                "S2A_MSIL2A_20240601T095031_...SAFE",
                "Give the product under its own name.",
            )
        return Found(name, _moment(found.group(1), name), read_product(Path(path)).cloud, path)
    if Path(path).suffix.lower() != ".json":
        raise InputError(
            f"cannot use '{path}' as a scene, since it says no date, expected .SAFE products or STAC items",
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


def as_json(scene: Found, folder: Path) -> dict[str, Any]:
    """Return a scene as a STAC item of a list in `folder`: what is needed to read it again, without links.

    Raises
    ------
    InputError
        If an address in it holds a password or a signature, which a list must not keep.
    """
    if scene.path is None:
        item = {key: value for key, value in (scene.item or {}).items() if key in _KEPT}
        for asset in item["assets"].values():
            check_secrets(scene.id, str(asset.get("href", "")))
        links = (scene.item or {}).get("links", [])
        return item | {"links": [link for link in links if link.get("rel") == "self"]}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": scene.id,
        "geometry": (scene.item or {}).get("geometry"),
        "properties": {
            "datetime": scene.when.isoformat().replace("+00:00", "Z"),
            "lulc:path": os.path.relpath(scene.path, folder),
        },
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
            "Give credentials by the environment, as in AWS_ACCESS_KEY_ID or AZURE_STORAGE_SAS_TOKEN.",
        )
