"""Outputs of a classification: one file, or a folder of tiles with a VRT and a STAC collection.

Both are made in the folder of the journal and get their final name when they are complete. Any process can
make a part. After the last part no pixels of tiles are read, so that each takes milliseconds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lulc.core.documents import write_document
from lulc.core.grid import GridSpec
from lulc.core.removal import remove_leftovers, remove_temporary, strangers, temporary_name
from lulc.core.schema import IGNORE, InputError
from lulc.core.storage import put_folder, rename_durably, sha256_of, write_atomically
from lulc.core.templates import render_xml
from lulc.core.windows import Part, Plan, Window
from lulc.export.stac import belonging, catalog, collection, map_item
from lulc.export.styles import entries_of_counts, is_own, style_map
from lulc.inference.journal import CLAIMS, TILES, folder_of
from lulc.maps.blocks import BLOCK
from lulc.maps.geotiff import MapProfile, PartWriter, assemble, colormap, write_part
from lulc.maps.reader import open_map

COLLECTION, MOSAIC, STYLE = "collection.json", "map.vrt", "map.qml"
"""Files in the folder of a map in tiles that describe all tiles."""

FILE, FOLDER = "map.tif", "result"
"""Names of the result, one file or a folder, while it lies beside its parts."""


class Piece(NamedTuple):
    """An encoded window of a part.

    Parameters
    ----------
    window
        Position in pixels of the map.
    values : array (band, y, x), or None
        Bands of the map, None where all is no data.
    counts : int (256,)
        Pixels by class number, no data at 255.
    """

    window: Window
    values: np.ndarray | None
    counts: np.ndarray


@dataclass(frozen=True)
class Made:
    """A finished part: its number, the checksum of its files, and its pixels by class number."""

    part: int
    checksum: str
    counts: dict[int, int]


class OneFile:
    """A map in one file, assembled from part files in the folder of the journal."""

    def __init__(self, profile: MapProfile, plan: Plan, folder: Path) -> None:
        self._profile, self._plan, self._folder = profile, plan, folder

    def path_of(self, part: int) -> Path:
        """File of a part."""
        return self._folder / f"{part:06d}.part"

    def make(self, part: Part, pieces: Iterable[Piece], pool: Executor) -> Made:
        """Write a part from the pieces that tile it; its file is complete or absent."""
        with write_part(self.path_of(part.index), self._profile, part.extent, pool) as writer:
            counts = _write(writer, pieces, Window(0, 0, 0, 0))
        return Made(part.index, writer.sha256, counts)

    def checksum(self, part: int) -> str:
        """Return the checksum of a part on disk, empty where it is missing."""
        path = self.path_of(part)
        return sha256_of(path) if path.is_file() else ""

    def assemble(self, pool: Executor) -> Path:
        """Assemble the parts to the map, which stays beside them until `put` names it."""
        whole = self._folder / FILE
        parts = [(part.extent, self.path_of(part.index)) for part in self._plan.parts()]
        assemble(self._profile, parts, whole, pool)
        return whole

    def style(self, counts: dict[int, int], out: Path) -> None:
        """Write the style for QGIS, whose name follows from the final name `out` of the map."""
        with open_map(self._folder / FILE) as land_cover:
            style_map(land_cover, entries_of_counts(land_cover, counts), out)


class Tileset:
    """A map as a folder: each part with a valid pixel is a file of its own, with a STAC item.

    `folder` is that of the journal, `name` that of the STAC collection; `dates` are the day of the imagery,
    or first and last day.
    """

    def __init__(
        self, profile: MapProfile, plan: Plan, folder: Path, name: str, dates: Sequence[str]
    ) -> None:
        self._profile, self._plan, self._dates = profile, plan, tuple(dates)
        self._folder, self._name = folder / FOLDER, name
        self._digits = max(3, len(str(max(plan.part_counts) - 1)))

    def path_of(self, part: int) -> Path:
        """File of a part: ``tiles/ROW/ROW-COLUMN.tif``, counted in parts from the upper left."""
        row, col = (f"{number:0{self._digits}d}" for number in divmod(part, self._plan.part_counts[1]))
        return self._folder / "tiles" / row / f"{row}-{col}.tif"

    def make(self, part: Part, pieces: Iterable[Piece], pool: Executor) -> Made:
        path = self.path_of(part.index)
        blocks = temporary_name(self._folder.parent / path.name)
        tags = self._profile.tags | {"LULC_TILE": path.stem}
        grid = self._profile.grid.crop(part.extent)
        profile = replace(self._profile, grid=grid, tags=tags, cog=True)
        extent = profile.grid.extent
        try:
            with write_part(blocks, profile, extent, pool) as writer:
                counts = _write(writer, pieces, part.extent)
            if counts.keys() != {IGNORE}:
                # The journal's folder is not created: if it is missing, the run is over.
                for folder in (self._folder, path.parent.parent, path.parent):
                    folder.mkdir(exist_ok=True)
                assemble(profile, [(extent, blocks)], path, pool)
                write_document(path.with_suffix(".json"), self._item(path, counts))
        finally:
            remove_temporary(blocks)
        return Made(part.index, self.checksum(part.index), counts)

    def checksum(self, part: int) -> str:
        """Return the common checksum of tile and item; a part without a valid pixel has neither."""
        path = self.path_of(part)
        files = [file for file in (path, path.with_suffix(".json")) if file.is_file()]
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def assemble(self, pool: Executor) -> Path:
        """Write VRT and catalog of each row of tiles, then of the whole map."""
        del pool
        # Workers that were killed meanwhile left temporary files.
        remove_leftovers(self._folder, below=True)
        rows, cols = self._plan.part_counts
        row_files = []
        for row in range(rows):
            parts = [self._plan.part_at(row * cols + col) for col in range(cols)]
            if tiles := [part for part in parts if self.path_of(part.index).is_file()]:
                row_files.append(self._describe_row(tiles))
        grid = self._profile.grid
        write_vrt(self._folder / MOSAIC, self._profile, grid, row_files, self._profile.tags)
        children = [f"{Path(file).parent}/catalog.json" for file, _ in row_files]
        whole = collection(self._name, grid, self._profile.tags, self._dates, MOSAIC, children)
        write_document(self._folder / COLLECTION, whole)
        return self._folder

    def style(self, counts: dict[int, int], out: Path) -> None:
        """Style the VRT inside the folder."""
        del out
        with open_map(self._folder / MOSAIC, allow_vrt=True) as land_cover:
            style_map(land_cover, entries_of_counts(land_cover, counts), self._folder / MOSAIC)

    def _describe_row(self, parts: Sequence[Part]) -> tuple[str, Window]:
        """Write VRT and catalog of a row of tiles; return the name of the VRT and its window in the map."""
        paths = [self.path_of(part.index) for part in parts]
        folder, first = paths[0].parent, parts[0].extent
        extent = Window(first.row, 0, first.height, self._plan.width)
        sources = [(path.name, p.extent.relative_to(extent)) for path, p in zip(paths, parts, strict=True)]
        vrt = folder / f"{folder.name}.vrt"
        write_vrt(vrt, self._profile, self._profile.grid.crop(extent), sources, {})
        description = f"Tiles of rows {first.row} to {first.stop[0] - 1} of the map."
        items = [path.with_suffix(".json").name for path in paths]
        write_document(folder / "catalog.json", catalog(folder.name, description, _TOP, items))
        return vrt.relative_to(self._folder).as_posix(), extent

    def _item(self, path: Path, counts: dict[int, int]) -> dict[str, Any]:
        with open_map(path) as tile:
            entries = entries_of_counts(tile, counts)
            item = map_item(path, path.parent, tile, entries, self._dates)
        return belonging(item, self._name, _TOP, "catalog.json")


Output = OneFile | Tileset
"""Destination of the parts of a map."""

_TOP = f"../../{COLLECTION}"
"""Path of the collection from the folder of a row."""


def _write(writer: PartWriter, pieces: Iterable[Piece], origin: Window) -> dict[int, int]:
    """Write the pieces of a part, placed relative to `origin`; return its pixels by class number."""
    total = np.zeros(256, np.int64)
    for window, values, counts in pieces:
        writer.write(window.relative_to(origin), values)
        total += counts
    return {int(value): int(total[value]) for value in np.flatnonzero(total)}


def write_vrt(
    path: Path, profile: MapProfile, grid: GridSpec, sources: Sequence[tuple[str, Window]],
    tags: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a VRT that shows rasters with the bands of a map as one.

    `sources` are the path of each raster from the folder of the VRT, and its window in pixels of `grid`.
    """
    colors = {} if profile.encoding.has_activations else colormap(profile.legend)
    text = render_xml(
        "mosaic.vrt",
        grid=grid,
        tags=tags,
        bands=profile.band_names,
        encoding=profile.encoding,
        type=_GDAL_TYPES[profile.encoding.dtype.name],
        # Only a class band that is the only band has a colour table.
        colors=[colors.get(value, (0, 0, 0, 255)) for value in range(max(colors, default=-1) + 1)],
        sources=sources,
        block=BLOCK,
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_GDAL_TYPES = {"float32": "Float32", "uint16": "UInt16", "uint8": "Byte"}


def is_tileset(folder: Path) -> bool:
    """Return True if a folder is a complete map in tiles that a classification wrote."""
    vrt = folder / MOSAIC
    return (folder / COLLECTION).is_file() and vrt.is_file() and b"LULC_VERSION" in vrt.read_bytes()


def check_tiles(folder: Path) -> None:
    """Refuse to replace a folder that holds more than tiles and the files that GDAL writes beside them."""
    others = strangers(folder, _REPLACEABLE) if folder.is_dir() else []
    others += [STYLE] if (folder / STYLE).exists() and not is_own(folder / STYLE) else []
    if others:
        raise InputError(
            f"cannot replace '{folder}', since the folder holds '{others[0]}' beside the tiles, which would "
            "be lost, expected only tiles",
            "Move it away, or type a new name.",
        )


_REPLACEABLE = re.compile(rf"({TILES})|(tiles/\d+/\d+-\d+\.tif|tiles/\d+/\d+\.vrt|map\.vrt)\.(aux\.xml|ovr)")


def is_named(out: Path) -> bool:
    """Return True if stale parts remain beside a finished map.

    Outputs are claimed before they are named, and the result lies beside its parts until it is named.
    """
    folder = folder_of(out)
    return (folder / CLAIMS).is_file() and not any((folder / name).exists() for name in (FILE, FOLDER))


def put(whole: Path, out: Path) -> None:
    """Give a finished result, file or folder, its final name, replacing an older one."""
    if not whole.is_dir():
        rename_durably(whole, out)
        return
    check_tiles(out)
    put_folder(whole, out)
