"""The list of scenes beside a mosaic: which items it was made from, so that it can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lulc.compositing.catalog import Found, as_json
from lulc.core.documents import read_document, write_document
from lulc.core.schema import InputError
from lulc.core.version import __version__

Offsets = Mapping[str, Mapping[str, float]]

_VERSION = "lulc:version"


def list_path(out: Path) -> Path:
    """Return the path of the list beside a mosaic."""
    return out.with_name(f"{out.stem}_scenes.json")


def is_list(path: Path) -> bool:
    """True for a file that `write_list` wrote."""
    try:
        return _VERSION in read_document(path, {"type": "object"}, "list of scenes", 0)
    except InputError:
        return False


def write_list(path: Path, scenes: Sequence[Found], offsets: Offsets | None = None) -> None:
    """Write the scenes as a STAC item collection, which ``--scenes`` reads.

    Parameters
    ----------
    offsets
        Scene to what is added to the digital numbers of each band.
    """
    features: list[dict[str, Any]] = [as_json(scene, path.parent) for scene in scenes]
    for scene, feature in zip(scenes, features, strict=True):
        if scene.baseline is not None:
            feature["properties"] = {**feature["properties"], "lulc:baseline": scene.baseline}
        if own := (offsets or {}).get(feature["id"]):
            feature["properties"] = {**feature["properties"], "lulc:offsets": own}
    write_document(path, {"type": "FeatureCollection", _VERSION: __version__, "features": features})


def links_of(path: Path) -> list[str]:
    """Return where the items and products of a list lie: addresses, or paths from its folder."""
    found = []
    for feature in read_document(path, {"type": "object"}, "list of scenes", 0)["features"]:
        own = [link["href"] for link in feature["links"] if link["rel"] == "self"]
        found += own or [place for place in [feature["properties"].get("lulc:path")] if place]
    return found


def place_of(scene: Found, path: Path) -> str:
    """Return what a scene is read from: its path, or its entry in the list at `path`."""
    return scene.path if scene.path is not None else f"{path}#{scene.id}"
