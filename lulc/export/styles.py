"""Styles of the class band for other programs: QGIS (.qml), OGC (.sld), GDAL's raster attribute table.

A style depends only on the legend, the table also on pixel counts. Its last line is a seal, by which the
toolkit distinguishes its own styles, which it may replace, from those of users.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lulc.core.removal import withdraw
from lulc.core.schema import UNCLASSIFIED, UNCLASSIFIED_COLOR, UNCLASSIFIED_NAME
from lulc.core.storage import write_atomically
from lulc.core.templates import render_xml
from lulc.core.text import printable
from lulc.core.windows import squares_of
from lulc.maps.reader import REST, ClassMap

logger = logging.getLogger("lulc")

MAX_BYTES = 10_000_000
"""Largest file that is checked for a seal; a style of 254 classes has 60 kB."""

_SEAL = "<!-- written by lulc, seal {} -->\n"
_SEALED = re.compile(_SEAL.format("([0-9a-f]{64})") + r"\Z")


@dataclass(frozen=True)
class Entry:
    """One value of the class band, as stored, with its name, colour and number of pixels."""

    value: int
    name: str
    color: str
    count: int


def count_entries(land_cover: ClassMap) -> tuple[Entry, ...]:
    """Return all classes of a map, and 0 (unclassified) if it occurs, by value; reads the class band once."""
    counts = np.zeros(256, np.int64)
    for window in squares_of(land_cover.grid.extent):
        counts += np.bincount(land_cover.read(window).ravel(), minlength=256)
    return describe_entries(land_cover, counts)


def describe_entries(land_cover: ClassMap, counts: Sequence[int] | np.ndarray) -> tuple[Entry, ...]:
    """Return the entries of `count_entries` from pixel counts by class number of the legend."""
    entries = [
        Entry(land_cover.stored(c.number), printable(c.name), c.color, int(counts[c.number]))
        for c in land_cover.legend.classes
    ]
    if counts[UNCLASSIFIED]:
        unclassified = int(counts[UNCLASSIFIED])
        entries.append(Entry(UNCLASSIFIED, UNCLASSIFIED_NAME, UNCLASSIFIED_COLOR, unclassified))
    return tuple(sorted(entries, key=lambda e: e.value))


def entries_of_counts(land_cover: ClassMap, counts: Mapping[int, int]) -> tuple[Entry, ...]:
    """Return the entries of `count_entries` from the pixel counts of a classification."""
    by_number = np.zeros(256, np.int64)
    by_number[list(counts)] = list(counts.values())
    if land_cover.legend.classes[-1] == REST:
        # The classification counted the rest as 0, which is the second class of the legend.
        by_number[[REST.number, UNCLASSIFIED]] = by_number[UNCLASSIFIED], 0
    return describe_entries(land_cover, by_number)


def qml(entries: Iterable[Entry]) -> str:
    """Return a QGIS layer style with a colour and a label for each value ("QGIS file formats", QML)."""
    return render_xml("style.qml", entries=list(entries))


def sld(entries: Iterable[Entry], name: str) -> str:
    """Return a styled layer descriptor 1.0.0 with a colour map of values.

    References
    ----------
    OGC 02-070, section 11.5 (RasterSymbolizer); ``type="values"`` is an extension of GeoServer.
    """
    return render_xml("style.sld", entries=list(entries), name=name)


def attribute_table(entries: Iterable[Entry]) -> str:
    """Return the raster attribute table of band 1 as GDAL's ``.aux.xml``: value, pixels, class, colour."""
    entries = tuple(entries)
    names = {e.value: e.name for e in entries}
    return render_xml(
        "attributes.xml",
        names=[names.get(value, "") for value in range(max(names, default=-1) + 1)],
        rows=[(e.value, e.count, e.name, *bytes.fromhex(e.color[1:])) for e in entries],
    )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a style with its seal, completely or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(text + _SEAL.format(_digest(text)), encoding="utf-8")


def is_own(path: Path) -> bool:
    """Return True for a style that this toolkit wrote and nobody has changed."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    text = path.read_bytes().decode("utf-8", errors="replace")
    seal = _SEALED.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def style_paths(path: Path) -> tuple[Path, Path]:
    """Return the paths of the style for QGIS and of the attribute table that `style_map` writes."""
    return path.with_suffix(".qml"), Path(f"{path}.aux.xml")


def style_map(land_cover: ClassMap, entries: Sequence[Entry], path: Path) -> None:
    """Write styles for QGIS and GDAL beside the map at `path`; a style that the user changed stays.

    ``map.qml`` lies beside ``map.tif``. A map without activations also gets ``map.tif.aux.xml`` with the
    names of the classes.
    """
    style, table = style_paths(path)
    texts = {style: qml(entries)}
    if not land_cover.has_activations:
        texts[table] = attribute_table(entries)
    elif is_own(table):
        # It belongs to the map that was replaced.
        withdraw(table)
    for file, text in texts.items():
        if is_own(file) or not os.path.lexists(file):
            write_text(file, text)
        else:
            logger.warning(
                "'%s' is left as it is, since this toolkit did not write it or it was changed: the map may "
                "be shown with other classes; move it away and type: python export_map.py %s --out %s",
                file, path, file,
            )  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
