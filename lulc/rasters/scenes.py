"""Many scenes on one grid, opened when they are read; the first scene with a valid pixel gives it.

Where scenes overlap, each band of a pixel comes from the first scene, in the order given, in which it is
valid, as ``--fill`` patches mosaics. The scene classification of a product or STAC item masks the clouds of
that scene, so that a later scene fills them.
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
from lulc.rasters.products import is_product
from lulc.rasters.sources import is_collection

logger = logging.getLogger("lulc")

OPEN = 16
"""Scenes that are open at once; with a file for each band these are fewer than 250 files."""

_RASTERS = (".tif", ".tiff", ".img", ".jp2", ".nc", ".nc4", ".zarr")


@dataclass(frozen=True)
class Scene(Jsonable):
    """One scene, closed.

    Parameters
    ----------
    paths
        One file, product or item, or a file for each band.
    grid, place
        Grid of its pixels, and their window in the common grid, which it may leave.
    described
        JSON-ready: for each band its file and conversion.
    left_out
        Masked values of its scene classification; None without one.
    mask
        Raster that replaces its scene classification.
    """

    paths: Annotated[tuple[str, ...], limits(minItems=1)]
    grid: GridSpec
    place: Window
    block_rows: Annotated[int, limits(minimum=0)]
    described: dict[str, dict[str, Any]]
    left_out: tuple[int, ...] | None
    mask: str | None = None


class Scenes:
    """Scenes on their common grid, with the methods of a `lulc.rasters.mosaics.Mosaic`; made by
    `open_scenes`.

    Files are opened when a window needs them, and a few are kept open. `write` and `read_scenes` pass the
    list of scenes to another process, which opens only the files that it reads.
    """

    def __init__(
        self, scenes: Sequence[Scene], grid: GridSpec, names: Sequence[str], config: InputConfig
    ) -> None:
        self.scenes = tuple(scenes)
        self.grid = grid
        self.names = tuple(names)
        self._config = config
        self._opened: OrderedDict[int, Mosaic] = OrderedDict()
        # First row and column of all scenes, and those past the last: int64 (4, scene).
        self._sides = np.array([(s.place.row, s.place.col, *s.place.stop) for s in scenes], np.int64).T

    @property
    def block_rows(self) -> int:
        """Largest number of rows that one of the files stores in a block."""
        return max(scene.block_rows for scene in self.scenes)

    @property
    def left_out(self) -> tuple[int, ...] | None:
        """Masked values of the scene classifications; None without any."""
        return next((scene.left_out for scene in self.scenes if scene.left_out), None)

    def read(self, window: Window, values: np.ndarray, valid: np.ndarray, slots: dict[str, int]) -> None:
        """Fill the slots of the bands in values and valid (plane, y, x)."""
        rows_of_bands = [slots[name] for name in self.names]
        for slot in rows_of_bands:
            values[slot], valid[slot] = 0, False
        local_slots = {name: i for i, name in enumerate(self.names)}
        top, left, bottom, right = self._sides
        touching = (
            (top < window.stop[0]) & (bottom > window.row) & (left < window.stop[1]) & (right > window.col)
        )
        for number in np.flatnonzero(touching).tolist():
            common = window.intersect(self.scenes[number].place)
            rows, cols = common.relative_to(window).slices
            if all(valid[slot, rows, cols].all() for slot in rows_of_bands):
                continue
            scene_values = np.empty((len(self.names), *common.shape), "float32")
            scene_valid = np.empty(scene_values.shape, bool)
            there = common.relative_to(self.scenes[number].place)
            self._open(number).read(there, scene_values, scene_valid, local_slots)
            for i, slot in enumerate(rows_of_bands):
                scene_valid[i] &= ~valid[slot, rows, cols]
                np.copyto(values[slot, rows, cols], scene_values[i], where=scene_valid[i])
                valid[slot, rows, cols] |= scene_valid[i]

    def _open(self, number: int) -> Mosaic:
        if number not in self._opened:
            while len(self._opened) >= OPEN:
                self._opened.popitem(last=False)[1].close()
            scene = self.scenes[number]
            with contextlib.ExitStack() as opened:
                parts = _open_parts(scene.paths, self._config, self.names, opened, scene.mask)
                self._opened[number] = parts.mosaic(scene.paths[0], scene.grid, self._config)
                opened.pop_all()
        self._opened.move_to_end(number)
        return self._opened[number]

    def describe(self) -> dict[str, dict[str, Any]]:
        """Band to the entries that all scenes have in common, JSON-ready."""
        described = {}
        for name in self.names:
            first, *others = [scene.described[name] for scene in self.scenes]
            same = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
            described[name] = {"file": f"{len(self.scenes)} scenes", **same}
        return described

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Files, window and conversion of each scene, JSON-ready."""
        return [
            {
                "files": [Path(path).name for path in scene.paths], "window": scene.place.to_json(),
                "channels": scene.described,
            }
            for scene in self.scenes
        ]  # fmt: skip

    def identity(self) -> Iterator[dict[str, Any]]:
        """Yield name, bytes and sha256 of all files; sha256 of samples once they are large together."""
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
        """Write the list of scenes to a file, for `read_scenes` in a process of any folder."""
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
    """Read the scenes that `Scenes.write` wrote; the config must be the one that they were found with."""
    data = _List.from_json(read_document(path, schema_of(_List), "list of scenes", 0))
    return Scenes(data.scenes, data.grid, data.names, config)


def find_scenes(
    paths: Sequence[str], *, allow_vrt: bool = False, allow_remote: bool = False
) -> list[tuple[str, ...]]:
    """Group files into scenes; return the paths of each scene, in the order given.

    `paths` are rasters, VRTs, ``.SAFE`` folders, STAC items, and folders of these, which are searched by name
    with their subfolders. Files whose names differ in the band alone (``T35VLG_B02_10m.tif``) are one scene.
    In a folder, files of an item or VRT are no scenes of their own, and VRTs and items of remote files are
    skipped where they are not allowed. Raises InputError if a folder holds no scene.
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
            scenes.setdefault(_scene_key(entry), []).append(entry)
    return [tuple(files) for files in scenes.values()]


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not is_product(path) and path.suffix.lower() != ".zarr"


def _in_folder(folder: Path, *, allow_vrt: bool, allow_remote: bool) -> list[str]:
    """Return scenes and files of scenes in a folder and below, by name, but no files of items and VRTs."""
    entries: list[Path] = []
    members: set[Path] = set()
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        suffix = path.suffix.lower()
        if _is_plain_folder(path):
            entries += map(Path, _in_folder(path, allow_vrt=allow_vrt, allow_remote=allow_remote))
        elif is_item(path):
            files = item_files(path)
            members.update(files)
            entries += [path] if files or _is_remote_item(path, allowed=allow_remote) else []
        elif suffix == ".vrt" and allow_vrt:
            members.update(guards.vrt_sources(path))
            entries.append(path)
        elif suffix in _RASTERS and (is_companion(path) or is_mask_name(path)):
            logger.warning(
                "'%s' is not used: by its name it is no band, but a mask or another companion of bands", path
            )
        elif suffix in _RASTERS or (suffix != ".xml" and is_product(path)):
            entries.append(path)
    return [str(path) for path in entries if path.resolve() not in members]


def _is_remote_item(path: Path, *, allowed: bool) -> bool:
    """True for an item whose remote files may be opened; warns of one that is not used."""
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


def _scene_key(path: str) -> tuple[str, ...]:
    """Return a key shared by the files of a scene: the folder, and the name without band and resolution."""
    band, rest = split_file_name(path)
    if is_collection(path) or (band not in SENTINEL_BANDS and not is_scene_classification(path)):
        return (path,)
    return (str(Path(path).parent), *rest)


def open_scenes(scenes: Sequence[Sequence[str]], config: InputConfig, needed: Sequence[str]) -> Scenes:
    """Check scenes, one after the other, and put them on one grid.

    This is the grid of ``--like``, else the grid of the first scene, extended to all of them. Raises
    InputError if a scene lacks a band, is on another grid (without ``--resample``), or its radiometry looks
    wrong.
    """
    lattice: GridSpec | None = None
    if config.like is not None:
        with contextlib.ExitStack() as opened:
            lattice = open_in(config.like, config, opened).grid
    checked: list[Scene] = []
    for paths in scenes:
        with contextlib.ExitStack() as opened:
            parts = _open_parts(paths, config, needed, opened)
            scene_grid = finest_grid(parts.sources, parts.planes)
            lattice = lattice or scene_grid
            place = _place_of(paths[0], scene_grid, lattice, config)
            if config.like is not None and not all(place.intersect(lattice.extent).shape):
                logger.info("'%s' lies beyond the grid of '%s' and is left out", paths[0], config.like)
                continue
            checked.append(_check_scene(paths, parts, lattice, place, config))
    if lattice is None or not checked:
        raise InputError(
            f"cannot use the scenes, since none lies on the grid of '{config.like}'",
            "Give another --like RASTER.",
        )
    if config.like is not None:
        return Scenes(checked, lattice, needed, config)
    row, col = (min(sides) for sides in zip(*((s.place.row, s.place.col) for s in checked), strict=True))
    bottom, right = (max(sides) for sides in zip(*(s.place.stop for s in checked), strict=True))
    whole = Window(row, col, bottom - row, right - col)
    placed = [dataclasses.replace(scene, place=scene.place.relative_to(whole)) for scene in checked]
    return Scenes(placed, lattice.crop(whole), needed, config)


def lay_scene(
    paths: Sequence[str], lattice: GridSpec, config: InputConfig, needed: Sequence[str], mask: str | None
) -> Scene | None:
    """Check one scene and put it on a grid, with a raster that replaces its scene classification.

    Only its pixels on the grid count; None where there are none.
    """
    with contextlib.ExitStack() as opened:
        parts = _open_parts(paths, config, needed, opened, mask)
        place = _place_of(paths[0], finest_grid(parts.sources, parts.planes), lattice, config)
        # No pixels beyond the grid are read, not even as samples.
        place = place.intersect(lattice.extent)
        return _check_scene(paths, parts, lattice, place, config, mask) if all(place.shape) else None


class _Parts(NamedTuple):
    """Open files of a scene, and the layers read from each."""

    sources: list[Source]
    planes: list[list[Plane]]
    mask: Source | None
    left_out: tuple[int, ...] | None

    def mosaic(self, path: str, grid: GridSpec, config: InputConfig) -> Mosaic:
        """Put the files on a grid."""
        return build_mosaic(
            path, self.sources, self.planes, grid, config, self.mask, left_out=self.left_out, quiet=True
        )


def _check_scene(
    paths: Sequence[str], parts: _Parts, lattice: GridSpec, place: Window, config: InputConfig,
    mask: str | None = None,
) -> Scene:  # fmt: skip
    grid = lattice.crop(place)
    mosaic = parts.mosaic(paths[0], grid, config)
    check_samples(mosaic)
    return Scene(tuple(paths), grid, place, mosaic.block_rows, mosaic.describe(), mosaic.left_out, mask)


def _open_parts(
    paths: Sequence[str], config: InputConfig, needed: Sequence[str], opened: contextlib.ExitStack,
    mask_path: str | None = None,
) -> _Parts:  # fmt: skip
    """Open the files of a scene, with a raster that replaces its scene classification."""
    classified = not config.mask and mask_path is None
    sources, mask = open_bands(paths, config, needed, opened, classified=classified)
    if mask_path is not None:
        mask = open_in(mask_path, config, opened)
    planes = band_planes(sources, config, needed, f"'{paths[0]}'")
    return _Parts(sources, planes, mask, None if mask_path is None else masked_out(config))


def _place_of(path: str, grid: GridSpec, lattice: GridSpec, config: InputConfig) -> Window:
    """Return the window of `lattice` that a scene covers; it may reach beyond."""
    if lattice.is_aligned(grid):
        return Window(*lattice.offset_of(grid), *grid.shape)
    if not config.resample:
        raise InputError(
            f"cannot lay '{path}' beside the other scenes, since its grid is\n  {grid.describe()}\n"
            f"expected the CRS and pixels of\n  {lattice.describe()}",
            "Add --resample to resample it (bilinear) to the pixels of the first scene, or of --like RASTER.",
        )
    return lattice.window_of(transform_bounds(grid.crs, lattice.crs, *grid.bounds))
