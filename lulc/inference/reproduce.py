"""Reproduction: rebuild a map from its tags and report any difference, pixel by pixel.

Tags hold no paths: weights and inputs are searched by name and identified by their checksums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from lulc.config import ClassifyConfig, InputConfig, ReproduceConfig
from lulc.core.channels import with_path
from lulc.core.claims import check_distinct, claim_outputs
from lulc.core.documents import check_document, parse_json, write_document
from lulc.core.machine import GDAL_CACHE
from lulc.core.options import take
from lulc.core.schema import IGNORE, InputError, LandCoverClass, Legend
from lulc.core.storage import check_absent, rename_durably, sha256_of, temporary_folder
from lulc.core.windows import Window, squares_of
from lulc.export.export import write_level
from lulc.inference.classify import classify
from lulc.inference.job import PARAMETERS
from lulc.inference.request import sieved_path
from lulc.labels.value_tables import LEGEND_TAG
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import ClassMap, open_map
from lulc.maps.writer import PART, write_map
from lulc.models.weights import CARDED, weights_folders
from lulc.rasters.layers import identify

logger = logging.getLogger("lulc")

CELL = 1024
"""Side in pixels of the squares in which differences are counted."""

DIFFERENT = Legend("differences", (LandCoverClass(1, "differs", "#d7191c"),))

_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["name", "bytes", "sha256"],
    "properties": {
        # A name, never a path: it is searched below folders that the user gives.
        "name": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^/\\\x00]+$"},
        "bytes": {"type": "integer", "minimum": 0},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    },
}
_WEIGHTS = {
    "type": "object",
    "required": ["name", "sha256"],
    "properties": {"name": {"type": "string"}, "sha256": _FILE["properties"]["sha256"]},
}
_NAMES: dict[str, Any] = {"type": "array", "maxItems": 10_000, "items": _FILE["properties"]["name"]}
_NAME_OR_NOTHING = {"oneOf": [_NAMES["items"], {"type": "null"}]}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["version", "model", "model_sha256", "engine", "parameters", "inputs"],
    "properties": {
        "version": {"type": "string"},
        "model": {"type": "string"},
        "model_sha256": _FILE["properties"]["sha256"],
        "engine": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        "ensemble": {"type": "array", "minItems": 1, "maxItems": 100, "items": _WEIGHTS},
        "inputs": {"type": "array", "maxItems": 10_000, "items": _FILE},
        "parameters": {
            "type": "object",
            "required": ["inputs", "fill", "window", "part", "halo", "batch_size", "blend", "activations"],
            # Values of options are checked when the options are used.
            "properties": {
                **dict.fromkeys(("inputs", "fill"), _NAMES),
                **dict.fromkeys(("like", "aoi"), _NAME_OR_NOTHING),
                "mask": {"oneOf": [_NAMES, *_NAME_OR_NOTHING["oneOf"]]},
            },
        },
        "statistics": {"type": "object"},
        "sieve": {"type": "integer", "minimum": 0},
        "level": {"enum": [1, 2]},
    },
}
"""JSON Schema of the result of `read_provenance`: tags by their names without ``LULC_``."""


Places = dict[str, list[Path]]
"""Paths by file name."""


@dataclass(frozen=True)
class File:
    """A file that a map was made from.

    Parameters
    ----------
    kind
        ``weights`` or ``input``.
    name, sha256
        Name without folders, and checksum in the tags.
    path, found
        Path and checksum of the file that was found; None where there is none of this name.
    same
        True if both checksums are equal.
    """

    kind: str
    name: str
    sha256: str
    path: Path | None
    same: bool
    found: str | None


@dataclass(frozen=True)
class Cell:
    """Bounding box, in pixels, and number of the pixels that differ in one square of the map."""

    window: Window
    count: int


@dataclass(frozen=True)
class Comparison:
    """Differences between two maps of one grid.

    Parameters
    ----------
    same_file
        True if the files are equal byte for byte.
    pixels, different
        Pixels with a class in at least one map, and those whose class differs.
    cells
        Squares with differences, those with most pixels first.
    tags
        Tags that differ: (tag, first map, second map).
    """

    same_file: bool
    pixels: int
    different: int
    cells: tuple[Cell, ...]
    tags: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Reproduction:
    """Result of a reproduction.

    Parameters
    ----------
    provenance
        Tags of the map, see `read_provenance`.
    files
        Weights first, then inputs.
    comparison
        None if the map was not rebuilt: on request, or since weights or inputs are missing or differ.
    """

    provenance: dict[str, Any]
    files: tuple[File, ...]
    comparison: Comparison | None


def reproduce(config: ReproduceConfig) -> Reproduction:
    """Rebuild a map from its tags and compare, if weights and inputs are found with their checksums.

    Raises
    ------
    InputError
        If the tags are incomplete, an output exists, or the inputs can't be classified.
    """
    outputs = [Path(name) for name in (config.out, config.difference) if name is not None]
    check_distinct([Path(config.map), *outputs])
    with claim_outputs(outputs, config) as claims:
        for out in outputs:
            if not config.overwrite and not claims.may_replace(out):
                check_absent(out)
        return _reproduce(config)


def _reproduce(config: ReproduceConfig) -> Reproduction:
    path = Path(config.map)
    with open_map(path) as original:
        provenance = read_provenance(original)
    if "tile" in provenance:
        raise InputError(
            f"cannot make '{path}' again, since it is a tile of a larger map, expected a map in one file",
            "Classify the inputs again with --tiles into another folder, and compare the tiles.",
        )
    folders = [Path(f) for f in config.inputs] or [path.parent]
    places = list_places(folders)
    files = (*_find_models(provenance, config, folders), *find_inputs(provenance, places))
    if config.check or not all(file.same for file in files):
        return Reproduction(provenance, files, None)
    with _workplace(config) as folder:
        again = folder / "map.tif"
        classify(_classify_config(provenance, files, places, config, again))
        if "sieve" in provenance:
            again = sieved_path(again)
        if "level" in provenance:
            with open_map(again) as land_cover:
                again = folder / "level.tif"
                write_level(land_cover, provenance["level"], again)
        comparison = compare(path, again, Path(config.difference) if config.difference else None)
        if config.out is not None:
            rename_durably(again, config.out)
    return Reproduction(provenance, files, comparison)


def read_provenance(land_cover: ClassMap) -> dict[str, Any]:
    """Read the provenance of a map from its tags, checked against `SCHEMA`.

    Raises
    ------
    InputError
        If the map is not of make_classifications.py, or of a version that recorded less.
    """
    parsed: dict[str, Any] = {}
    for tag, value in land_cover.tags.items():
        if tag.startswith("LULC_"):
            name = tag.removeprefix("LULC_").lower()
            parsed[name] = value if name in ("version", "model", "model_sha256") else _parse(value)
    check_document(parsed, SCHEMA, "provenance in the tags of the map", land_cover.name)
    return parsed


def find_inputs(provenance: Mapping[str, Any], places: Places) -> Iterator[File]:
    """Yield each input of the tags, searched by name."""
    for wanted in provenance["inputs"]:
        path, found = None, None
        for candidate in places.get(wanted["name"], []):
            sha256 = identify(candidate)["sha256"]
            # Where no checksum fits, the file in the shallowest folder is reported.
            if path is None or sha256 == wanted["sha256"]:
                path, found = candidate, sha256
            if sha256 == wanted["sha256"]:
                break
        yield File("input", wanted["name"], wanted["sha256"], path, found == wanted["sha256"], found)


def compare(first: Path, second: Path, difference: Path | None = None) -> Comparison:
    """Compare the class bands of two maps, window by window.

    Parameters
    ----------
    difference
        GeoTIFF to write: 1 where the classes differ, 0 where they don't, no data where neither has one.

    Raises
    ------
    InputError
        If their grids differ.
    """
    cache = rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE)
    with cache, open_map(first) as a, open_map(second) as b:
        if not a.grid.matches(b.grid):
            raise InputError(
                f"cannot compare '{first}' with the map made again, since its grid is {a.grid.describe()}, "
                f"and that of the other {b.grid.describe()}",
                "Check whether these are the inputs of the map.",
            )
        cells = []
        pixels = different = 0
        for window in squares_of(a.grid.extent, side=CELL):
            changed, counted = _difference(a, b, window)
            pixels += int(counted.sum())
            if changed.any():
                cells.append(_cell(window, changed))
                different += cells[-1].count
        if difference is not None:
            _write_difference(a, b, difference)
        names = sorted({*a.tags, *b.tags})
        tags = [(n, a.tags.get(n, ""), b.tags.get(n, "")) for n in names]
    return Comparison(
        same_file=sha256_of(first) == sha256_of(second),
        pixels=pixels,
        different=different,
        cells=tuple(sorted(cells, key=lambda c: -c.count)),
        tags=tuple(t for t in tags if t[1] != t[2]),
    )


def _parse(text: str) -> Any:
    try:
        return parse_json(text, foreign=True)
    except ValueError:
        return text


def list_places(folders: Iterable[Path]) -> Places:
    """List all paths below some folders by name, those in the shallowest folders first."""
    places: Places = {}
    for path in sorted({p for folder in folders for p in folder.rglob("*")}, key=lambda p: (len(p.parts), p)):
        places.setdefault(path.name, []).append(path)
    return places


def _find_models(
    provenance: Mapping[str, Any], config: ReproduceConfig, folders: list[Path]
) -> Iterator[File]:
    """Yield the weights of the tags, identified by their checksums, not by their file names."""
    named = Path(config.model) if config.model is not None else None
    places = [named] if named is not None else [*weights_folders(), *folders]
    single = {"name": provenance["model"], "sha256": provenance["model_sha256"]}
    members = provenance.get("ensemble", [single])
    missing = {member["sha256"] for member in members}
    known: dict[str, Path] = {}
    files = (p for place in places for p in ([place] if place.is_file() else sorted(place.rglob("*"))))
    for path in (p for p in files if p.suffix in (*CARDED, ".h5") and p.is_file()):
        if not missing - known.keys():
            break
        known.setdefault(sha256_of(path), path)
    for member in members:
        name, sha256 = member["name"], member["sha256"]
        # Where no checksum fits, a file of this name, or the file that the user named, is reported.
        others = {p: found for found, p in known.items() if p == named or p.stem == name.split("/")[-1]}
        shown = min(others, key=lambda p: f"{p.parent.name}/{p.stem}" != name, default=None)
        chosen = known.get(sha256, shown)
        found = None if chosen is None else sha256 if sha256 in known else others[chosen]
        yield File("weights", name, sha256, chosen, sha256 in known, found)


_OPTIONS = {f.name for f in dataclasses.fields(InputConfig)} | {*PARAMETERS, "part", "window"}
"""Parameters in the tags that are options as well."""


def _classify_config(
    provenance: Mapping[str, Any], files: tuple[File, ...], places: Places, config: ReproduceConfig, out: Path
) -> ClassifyConfig:
    """Return the options that the map was made with, file names replaced by the paths that were found."""
    models = [str(file.path) for file in files if file.kind == "weights"]
    inputs = [file for file in files if file.kind == "input"]
    # Folders (.SAFE) and the raster of --like have no checksum: they are found by name alone.
    paths_by_name = {name: list(paths) for name, paths in places.items()}
    for name in {file.name for file in inputs}:
        paths_by_name[name] = [file.path for file in inputs if file.name == name and file.path is not None]

    def path_of(name: str) -> str:
        paths = paths_by_name.get(name)
        if not paths:
            raise InputError(
                f"cannot make the map again, since there is no '{name}' in the folders that are searched",
                "Say where it is: --inputs FOLDER ...",
            )
        return str(paths.pop(0) if len(paths) > 1 else paths[0])

    def locate(text: str) -> str:
        return with_path(text, path_of)

    parameters = provenance["parameters"]
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in parameters.items()
        if name in _OPTIONS
    }
    options |= {n: tuple(map(locate, parameters.get(n, ()))) for n in ("fill", "layers")}
    masks = take(parameters.get("mask") or (), tuple[str, ...])
    options |= {n: locate(options[n]) for n in ("like", "aoi") if options.get(n)}
    options["mask"] = tuple(map(locate, masks))
    statistics = None
    if "statistics" in provenance:
        statistics = str(out.with_name("statistics.json"))
        write_document(statistics, provenance["statistics"])
    options |= {"allow_vrt": config.allow_vrt, "allow_remote": False}
    return ClassifyConfig(
        model=models[0],
        ensemble=tuple(models[1:]),
        inputs=tuple(map(locate, parameters["inputs"])),
        out=str(out),
        engine=provenance["engine"]["name"],
        statistics=statistics,
        memory=config.memory,
        sieve=provenance.get("sieve", 0),
        **options,
    )


@contextlib.contextmanager
def _workplace(config: ReproduceConfig) -> Iterator[Path]:
    """Create a folder for the rebuilt map, on the disk of ``--out`` or else on that of the map."""
    place = Path(config.out or f"{config.map}.again").absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(place.parent, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="lulc-reproduced-") as temporary:
            yield Path(temporary)
        return
    # The claim deletes the folder of a run that was killed; --out is claimed already.
    claim = contextlib.nullcontext() if config.out else claim_outputs([place])
    with claim, temporary_folder(place) as folder:
        yield folder


def _difference(a: ClassMap, b: ClassMap, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return where the classes differ and where at least one map has a class, bool (y, x)."""
    one, other = a.read(window), b.read(window)
    return one != other, (one != IGNORE) | (other != IGNORE)


def _cell(window: Window, changed: np.ndarray) -> Cell:
    rows, cols = (np.flatnonzero(changed.any(axis)).tolist() for axis in (1, 0))
    height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    box = Window(window.row + rows[0], window.col + cols[0], height, width)
    return Cell(box, int(changed.sum()))


def _write_difference(a: ClassMap, b: ClassMap, path: Path) -> None:
    def read(window: Window) -> np.ndarray:
        changed, counted = _difference(a, b, window)
        return np.where(counted, changed, IGNORE).astype(np.uint8)[np.newaxis]

    tags = {LEGEND_TAG: json.dumps(DIFFERENT.to_json())}
    write_map(MapProfile(a.grid, DIFFERENT, "none", PART, tags), read, path)
