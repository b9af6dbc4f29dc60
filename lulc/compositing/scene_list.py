"""The list of scenes beside a mosaic: which items it was made from, so that it can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lulc.compositing.catalog import Found, as_json
from lulc.core.documents import read_document, write_document
from lulc.core.schema import InputError
from lulc.core.version import __version__

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


def write_list(path: Path, scenes: Sequence[Found]) -> None:
    """Write the scenes as a STAC item collection, which ``--scenes`` reads."""
    features: list[dict[str, Any]] = [as_json(scene, path.parent) for scene in scenes]
    write_document(path, {"type": "FeatureCollection", _VERSION: __version__, "features": features})


def place_of(scene: Found, path: Path) -> str:
    """Return what a scene is read from: its path, or its entry in the list at `path`."""
    return scene.path if scene.path is not None else f"{path}#{scene.id}"
