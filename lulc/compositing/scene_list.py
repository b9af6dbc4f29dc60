"""List of the scenes of a mosaic, beside it, from which the mosaic can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lulc.compositing.catalog import FoundScene, as_json
from lulc.core.documents import read_document, write_document
from lulc.core.schema import InputError
from lulc.core.version import __version__

Offsets = Mapping[str, Mapping[str, float]]

_VERSION = "lulc:version"


def list_path(out: Path) -> Path:
    """Return the path of the list beside a mosaic."""
    return out.with_name(f"{out.stem}_scenes.json")


def is_list(path: Path) -> bool:
    """Return True for a file that `write_list` wrote."""
    try:
        return _VERSION in read_document(path, {"type": "object"}, "list of scenes", 0)
    except InputError:
        return False


def write_list(path: Path, scenes: Sequence[FoundScene], offsets: Offsets | None = None) -> None:
    """Write the scenes as a STAC item collection, which ``--scenes`` reads.

    `offsets` are those of the digital numbers of each band, by scene.
    """
    features: list[dict[str, Any]] = [as_json(scene, path.parent) for scene in scenes]
    for scene, feature in zip(scenes, features, strict=True):
        if scene.baseline is not None:
            feature["properties"] = {**feature["properties"], "lulc:baseline": scene.baseline}
        if of_scene := (offsets or {}).get(feature["id"]):
            feature["properties"] = {**feature["properties"], "lulc:offsets": of_scene}
    write_document(path, {"type": "FeatureCollection", _VERSION: __version__, "features": features})


def links_of(path: Path) -> list[str]:
    """Return the links of a list to its items and products: addresses, or paths from its folder."""
    links = []
    for feature in read_document(path, {"type": "object"}, "list of scenes", 0)["features"]:
        hrefs = [link["href"] for link in feature["links"] if link["rel"] == "self"]
        links += hrefs or [file for file in [feature["properties"].get("lulc:path")] if file]
    return links


def place_of(scene: FoundScene, path: Path) -> str:
    """Return the path of a scene, or the name of its entry in the list at `path`."""
    return scene.path if scene.path is not None else f"{path}#{scene.id}"
