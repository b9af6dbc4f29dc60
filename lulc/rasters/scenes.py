"""Many scenes on one grid: opened when they are read, the first that has a pixel gives it.

Where scenes overlap, each band of a pixel is taken from the first scene, in the order given, in which it is
valid; that is the rule of ``--fill``, from scene to scene. The scene classification of a product or STAC item
makes that scene's own clouds missing, so that a later scene fills them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from rasterio.warp import transform_bounds

from lulc.config import InputConfig
from lulc.core.codec import Jsonable, limits, schema_of
from lulc.core.documents import read_document, write_document
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters import guards
from lulc.rasters.items import is_feature, is_item, item_files, read_item
from lulc.rasters.layers import WHOLE_BYTES, Source, identify
from lulc.rasters.masks import masked_out
from lulc.rasters.mosaics import (
    Mosaic,
    Plane,
    band_planes,
    build_mosaic,
    check_samples,
    finest_grid,
    open_bands,
    open_in,
)
from lulc.rasters.names import (
    SENTINEL_BANDS,
    is_companion,
    is_mask_name,
    is_scene_classification,
    split_file_name,
)
from lulc.rasters.sources import is_collection, is_safe

logger = logging.getLogger("lulc")

OPEN = 16
"""Scenes that are open at once; with a file for each band that is less than 250 files."""

_RASTERS = (".tif", ".tiff", ".img", ".jp2", ".nc", ".nc4", ".zarr")


@dataclass(frozen=True)
class Scene(Jsonable):
    """One scene, closed.

    Parameters
    ----------
    paths
        What it is read from: one file, product or item, or a file for each band.
    grid, place
        The pixels that it covers: by themselves, and as a window of the common grid, which it may leave.
    described
        JSON-ready: for each band its file and conversion.
    left_out
        Values of its scene classification that make a pixel missing; None where it has none.
    mask
        Raster that is read instead of its scene classification.
    """

    paths: Annotated[tuple[str, ...], limits(minItems=1)]
    grid: GridSpec
    place: Window
    block_rows: Annotated[int, limits(minimum=0)]
    described: dict[str, dict[str, Any]]
    left_out: tuple[int, ...] | None
    mask: str | None = None


class Scenes:
    """Scenes on their common grid, read like a `lulc.rasters.mosaics.Mosaic`; made by `open_scenes`.

    Files are opened when a window needs them, and a few are kept open. `write` and `read_scenes` hand what
    was found to another process, which then opens nothing that it doesn't read.
    """

    def __init__(
        self, scenes: Sequence[Scene], grid: GridSpec, names: Sequence[str], config: InputConfig
    ) -> None:
        self.scenes = tuple(scenes)
        self.grid = grid
        self.names = tuple(names)
        self._config = config
        self._opened: OrderedDict[int, Mosaic] = OrderedDict()
        # Rows and columns of all places, first and one past the last: int64 (4, scene).
        self._sides = np.array([(s.place.row, s.place.col, *s.place.stop) for s in scenes], np.int64).T

    @property
    def block_rows(self) -> int:
        """Rows that files store together, at most."""
        return max(scene.block_rows for scene in self.scenes)

    @property
    def left_out(self) -> tuple[int, ...] | None:
        """Values of scene classifications that make a pixel missing; None where no scene has one."""
        return next((scene.left_out for scene in self.scenes if scene.left_out), None)

    def read(self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]) -> None:
        """Fill the slots of the bands in values and valid (plane, y, x)."""
        own = [slots[name] for name in self.names]
        for slot in own:
            values[slot], valid[slot] = 0, False
        local = {name: i for i, name in enumerate(self.names)}
        for number in self._touching(window):
            common = window.intersect(self.scenes[number].place)
            rows, cols = common.relative_to(window).slices
            if all(valid[slot, rows, cols].all() for slot in own):
                continue
            found = np.empty((len(own), *common.shape), "float32")
            good = np.empty(found.shape, bool)
            there = common.relative_to(self.scenes[number].place)
            self._open(number).read(there, found, good, local)
            for i, slot in enumerate(own):
                good[i] &= ~valid[slot, rows, cols]
                np.copyto(values[slot, rows, cols], found[i], where=good[i])
                valid[slot, rows, cols] |= good[i]

    def _touching(self, window: Window) -> list[int]:
        """Numbers of the scenes that have a pixel of the window, in order."""
        top, left, bottom, right = self._sides
        there = (
            (top < window.stop[0]) & (bottom > window.row) & (left < window.stop[1]) & (right > window.col)
        )
        return [int(i) for i in np.flatnonzero(there)]

    def _open(self, number: int) -> Mosaic:
        if number not in self._opened:
            while len(self._opened) >= OPEN:
                self._opened.popitem(last=False)[1].close()
            scene = self.scenes[number]
            with contextlib.ExitStack() as opened:
                parts = _open_parts(scene.paths, self._config, self.names, opened, scene.mask)
                self._opened[number] = _built(scene.paths[0], parts, scene.grid, self._config)
                opened.pop_all()
        self._opened.move_to_end(number)
        return self._opened[number]

    def describe(self) -> dict[str, dict[str, Any]]:
        """Band to what all scenes have in common, JSON-ready."""
        described = {}
        for name in self.names:
            first, *others = [scene.described[name] for scene in self.scenes]
            same = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
            described[name] = {"file": f"{len(self.scenes)} scenes", **same}
        return described

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Files, place and conversion of each scene, JSON-ready."""
        return [
            {
                "files": [Path(path).name for path in scene.paths],
                "window": scene.place.to_json(),
                "channels": scene.described,
            }
            for scene in self.scenes
        ]

    def identity(self) -> Iterator[dict[str, Any]]:
        """Name, bytes and sha256 of all files; of samples of them where they are large together."""
        total = 0
        for number, scene in enumerate(self.scenes):
            files = [Path(path) for path in scene.paths if is_item(path)]
            for reader in self._open(number).readers:
                if guards.is_address(reader.source.path):
                    yield reader.source.identity()
                else:
                    files.append(Path(reader.source.path))
            for file in files:
                total += file.stat().st_size
                yield identify(file, sampled=total > WHOLE_BYTES)

    def write(self, path: Path) -> None:
        """Write down what was found, for `read_scenes` in a process of any folder."""
        scenes = tuple(
            dataclasses.replace(scene, paths=tuple(map(guards.from_anywhere, scene.paths)))
            for scene in self.scenes
        )
        write_document(path, _List(self.grid, self.names, scenes).to_json())

    def reopen(self) -> Scenes:
        return Scenes(self.scenes, self.grid, self.names, self._config)

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


@dataclass(frozen=True)
class _List(Jsonable):
    """Document of `Scenes.write`."""

    grid: GridSpec
    names: tuple[Literal[SENTINEL_BANDS], ...]  # type: ignore[valid-type]
    scenes: Annotated[tuple[Scene, ...], limits(minItems=1)]


def read_scenes(path: Path, config: InputConfig) -> Scenes:
    """The scenes that `Scenes.write` wrote down, for the config that they were found with."""
    data = _List.from_json(read_document(path, schema_of(_List), "list of scenes", 0))
    return Scenes(data.scenes, data.grid, data.names, config)


def find_scenes(
    paths: Sequence[str], *, allow_vrt: bool = False, allow_remote: bool = False
) -> list[tuple[str, ...]]:
    """Tell which files make a scene.

    Raises InputError if a folder holds no scene.

    Parameters
    ----------
    paths
        Rasters, VRTs, ``.SAFE`` folders, STAC items, and folders of these, searched by name, deeper folders
        included. Files whose names differ in the band alone (``T35VLG_B02_10m.tif``) are one scene. In a
        folder, what an item or VRT names is not taken a second time, and VRTs and items of files at addresses
        are passed over where they are not allowed.

    Returns
    -------
    list of tuple of str
        Paths of each scene, in the order given.
    """
    scenes: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        entries = [path]
        if _is_plain_folder(Path(path)):
            entries = _in_folder(Path(path), allow_vrt=allow_vrt, allow_remote=allow_remote)
            if not entries:
                raise InputError(
                    f"cannot use the folder '{path}', since it holds no scene, expected rasters, "
                    ".SAFE folders or STAC items",
                    "Check the path; VRTs are taken with --allow-vrt.",
                )
        for entry in entries:
            scenes.setdefault(_scene_of(entry), []).append(entry)
    return [tuple(files) for files in scenes.values()]


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not is_safe(path) and path.suffix.lower() != ".zarr"


def _in_folder(folder: Path, *, allow_vrt: bool, allow_remote: bool) -> list[str]:
    """Scenes and files of scenes in a folder and below, by name; what others of them name is left out."""
    found: list[Path] = []
    named: set[Path] = set()
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        suffix = path.suffix.lower()
        if _is_plain_folder(path):
            below = _in_folder(path, allow_vrt=allow_vrt, allow_remote=allow_remote)
            found += map(Path, below)
        elif is_item(path):
            members = item_files(path)
            named.update(members)
            found += [path] if members or _is_remote_item(path, allowed=allow_remote) else []
        elif suffix == ".vrt" and allow_vrt:
            named.update(guards.vrt_sources(path))
            found.append(path)
        elif suffix in _RASTERS and (is_companion(path) or is_mask_name(path)):
            logger.warning("'%s' is not used: it is named as no band, but as what lies beside bands", path)
        elif suffix in _RASTERS or (suffix != ".xml" and is_safe(path)):
            found.append(path)
    return [str(path) for path in found if path.resolve() not in named]


def _is_remote_item(path: Path, *, allowed: bool) -> bool:
    """Return True for an item of files at addresses that may be opened; say why another isn't used."""
    if not is_feature(path):
        return False
    problem = "its files lie at addresses, which --allow-remote opens"
    try:
        read_item(path, allow_remote=True)
    except InputError as error:
        allowed, problem = False, error.problem
    if not allowed:
        logger.warning("'%s' is not used: %s", path, problem)
    return allowed


def _scene_of(path: str) -> tuple[str, ...]:
    """Equal for the files of one scene: the folder, and the name without band and resolution."""
    band, rest = split_file_name(path)
    if is_collection(path) or (band not in SENTINEL_BANDS and not is_scene_classification(path)):
        return (path,)
    return (str(Path(path).parent), *rest)


def open_scenes(scenes: Sequence[Sequence[str]], config: InputConfig, needed: Sequence[str]) -> Scenes:
    """Look at scenes, one after the other, and lay them on one grid.

    Raises InputError if a scene lacks a band, lies on other pixels (without ``--resample``), or its
    radiometry looks wrong.

    Returns
    -------
    Scenes
        On the grid of ``--like``, else on the pixels of the first scene, extended to all of them.
    """
    lattice: GridSpec | None = None
    if config.like is not None:
        with contextlib.ExitStack() as opened:
            lattice = open_in(config.like, config, opened).grid
    found: list[Scene] = []
    for paths in scenes:
        with contextlib.ExitStack() as opened:
            parts = _open_parts(paths, config, needed, opened)
            own = finest_grid(parts.sources, parts.planes)
            lattice = lattice or own
            place = _place_of(paths[0], own, lattice, config)
            if config.like is not None and not all(place.intersect(lattice.extent).shape):
                logger.info("'%s' lies beyond the grid of '%s' and is left out", paths[0], config.like)
                continue
            found.append(_look_at(tuple(paths), parts, lattice.crop(place), place, config))
    if lattice is None or not found:
        raise InputError(
            f"cannot use the scenes, since none lies on the grid of '{config.like}'",
            "Give another --like RASTER.",
        )
    if config.like is not None:
        return Scenes(found, lattice, needed, config)
    whole = _union([scene.place for scene in found])
    placed = [dataclasses.replace(scene, place=scene.place.relative_to(whole)) for scene in found]
    return Scenes(placed, lattice.crop(whole), needed, config)


def lay_scene(
    paths: Sequence[str], lattice: GridSpec, config: InputConfig, needed: Sequence[str], mask: str | None
) -> Scene | None:
    """Look at one scene and lay it on a grid.

    Parameters
    ----------
    lattice
        The grid; of a scene that reaches beyond it, the pixels on it count.
    mask
        Raster to read instead of its scene classification.

    Returns
    -------
    Scene or None
        None where it has no pixel on the grid.
    """
    with contextlib.ExitStack() as opened:
        parts = _open_parts(paths, config, needed, opened, mask)
        own = finest_grid(parts.sources, parts.planes)
        place = _place_of(paths[0], own, lattice, config)
        # Only the pixels of the grid are laid out, so that no others are read, not even as samples.
        place = place.intersect(lattice.extent)
        if not all(place.shape):
            return None
        return _look_at(tuple(paths), parts, lattice.crop(place), place, config, mask)


class _Parts(NamedTuple):
    """Open files of a scene, and the layers read from each."""

    sources: list[Source]
    planes: list[list[Plane]]
    mask: Source | None
    left_out: tuple[int, ...] | None


def _look_at(
    paths: tuple[str, ...], parts: _Parts, grid: GridSpec, place: Window, config: InputConfig,
    mask: str | None = None,
) -> Scene:  # fmt: skip
    mosaic = _built(paths[0], parts, grid, config)
    check_samples(mosaic)
    return Scene(paths, grid, place, mosaic.block_rows, mosaic.describe(), mosaic.left_out, mask)


def _open_parts(
    paths: Sequence[str], config: InputConfig, needed: Sequence[str], opened: contextlib.ExitStack,
    instead: str | None = None,
) -> _Parts:  # fmt: skip
    """Open the files of a scene; `instead` is read in the place of its scene classification."""
    own = not config.mask and instead is None
    sources, mask = open_bands(paths, config, needed, opened, classified=own)
    if instead is not None:
        mask = open_in(instead, config, opened)
    planes = band_planes(sources, config, needed, f"'{paths[0]}'")
    return _Parts(sources, planes, mask, None if instead is None else masked_out(config))


def _built(path: str, parts: _Parts, grid: GridSpec, config: InputConfig) -> Mosaic:
    return build_mosaic(
        path, parts.sources, parts.planes, grid, config, parts.mask, left_out=parts.left_out, quiet=True
    )


def _place_of(path: str, own: GridSpec, lattice: GridSpec, config: InputConfig) -> Window:
    """The window of `lattice`, beyond which it may reach, that a scene covers."""
    if lattice.is_aligned(own):
        return Window(*lattice.offset_of(own), *own.shape)
    if not config.resample:
        raise InputError(
            f"cannot lay '{path}' beside the other scenes, since its grid is\n  {own.describe()}\n"
            f"expected the CRS and pixels of\n  {lattice.describe()}",
            "Add --resample to resample it (bilinear) to the pixels of the first scene, or of --like RASTER.",
        )
    return lattice.window_of(transform_bounds(own.crs, lattice.crs, *own.bounds))


def _union(places: Sequence[Window]) -> Window:
    """The smallest window that holds all."""
    row, col = min(p.row for p in places), min(p.col for p in places)
    bottom, right = (max(p.stop[axis] for p in places) for axis in (0, 1))
    return Window(row, col, bottom - row, right - col)
