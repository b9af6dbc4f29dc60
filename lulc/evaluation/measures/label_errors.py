"""Label errors: pixels where a map confidently contradicts the labels, as a raster and a list of places.

A candidate is a labelled pixel whose activation of the mapped class exceeds that of the labelled class by a
margin. Check the candidates: a network trained on these labels has learnt some of their errors, and a map
from cross-validation finds more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lulc.core.documents import write_rows
from lulc.core.schema import IGNORE, InputError
from lulc.core.windows import Window
from lulc.evaluation.measures.regions import Region
from lulc.labels.value_tables import LEGEND_TAG
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import ClassMap
from lulc.maps.writer import PART, write_map

RASTER = "label-errors.tif"
TABLE = "label-errors.csv"

SMALLEST, LISTED = 4, 1000
"""Fewest pixels of a listed place, and number of listed places; the raster shows all."""

Read = Callable[[Window], NDArray[np.uint8]]


@dataclass(frozen=True)
class Patch:
    """Adjacent candidates.

    Parameters
    ----------
    x, y
        Centre in the CRS of the map.
    labelled, mapped
        Most frequent class of the labels and of the map.
    margin
        Mean difference of the activations of the mapped and the labelled class.
    """

    x: float
    y: float
    region: str
    pixels: int
    labelled: str
    mapped: str
    margin: float

    @property
    def weight(self) -> float:
        """Weight for ranking."""
        return self.pixels * self.margin


def find_label_errors(
    land_cover: ClassMap, read_labels: Read, folder: Path, *, least: float, regions: Sequence[Region] = ()
) -> tuple[Path, Path]:
    """Write where a map contradicts labels: a raster of the map's classes, and a table of places.

    Raises InputError if the map has no activations.

    Parameters
    ----------
    read_labels
        Returns the labels of a window in the map's classes, uint8 (y, x), 255 = ignore.
    folder
        Folder for `RASTER` (0 no candidate, 255 no map or no label) and `TABLE`.

    Returns
    -------
    (Path, Path)
        Raster and table.
    """
    if not land_cover.has_activations:
        raise InputError(
            f"cannot look for wrong labels with '{land_cover.name}', since it has no activation bands",
            "Make the map without `--activations none`, or leave --label-errors out.",
        )
    patches: list[Patch] = []
    raster = folder / RASTER
    tags = {LEGEND_TAG: land_cover.tags.get(LEGEND_TAG, "")}

    def find(window: Window) -> np.ndarray:
        candidates = _find_candidates(land_cover, read_labels, window, least)
        patches.extend(_patches(candidates, land_cover, window, regions))
        patches[:] = sorted(patches, key=lambda patch: -patch.weight)[:LISTED]
        return candidates.values[np.newaxis]

    write_map(MapProfile(land_cover.grid, land_cover.legend, "none", PART, tags), find, raster)
    _write_table(patches, folder / TABLE)
    return raster, folder / TABLE


class _Candidates(NamedTuple):
    """Stored values, labels and margins of one window; a margin is NaN without a candidate."""

    values: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    margins: NDArray[np.float32]


def _find_candidates(land_cover: ClassMap, read_labels: Read, window: Window, least: float) -> _Candidates:
    activations, labels = land_cover.read_activations(window), read_labels(window)
    known = (labels != IGNORE) & np.isfinite(activations).all(axis=-1)
    usable = np.nan_to_num(activations)
    mapped = usable.argmax(axis=-1)
    labelled = np.where(known, labels.astype(np.intp) - 1, 0)
    margins = usable.max(axis=-1) - np.take_along_axis(usable, labelled[..., np.newaxis], axis=-1)[..., 0]
    suspect = known & (margins >= least)
    values = np.where(suspect, mapped + 1, np.where(known, 0, IGNORE)).astype(np.uint8)
    return _Candidates(values, labels, np.where(suspect, margins, np.nan).astype(np.float32))


def _patches(
    candidates: _Candidates, land_cover: ClassMap, window: Window, regions: Sequence[Region]
) -> Iterator[Patch]:
    mask = np.isfinite(candidates.margins).astype(np.uint8)
    _, numbers, boxes, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
    names = land_cover.legend.names
    for number, (left, top, wide, high, pixels) in enumerate(boxes.tolist()):
        if number == 0 or pixels < SMALLEST:
            continue
        box = (slice(top, top + high), slice(left, left + wide))
        inside = numbers[box] == number
        col, row = (int(centre) for centre in centres[number])
        x, y = land_cover.grid.transform @ (window.col + col + 0.5, window.row + row + 0.5)
        labelled, mapped = (
            names[int(np.bincount(values[box][inside]).argmax()) - 1]
            for values in (candidates.labels, candidates.values)
        )
        region = _region_at(regions, land_cover, window.row + row, window.col + col)
        margin = float(candidates.margins[box][inside].mean())
        yield Patch(x, y, region, pixels, labelled, mapped, margin)


def _region_at(regions: Sequence[Region], land_cover: ClassMap, row: int, col: int) -> str:
    for region in regions:
        inside = region.within(Window(row, col, 1, 1), land_cover.grid)
        if inside is not None and inside.any():
            return region.name
    return ""


def _write_table(places: Sequence[Patch], path: Path) -> None:
    header = ("rank", "x", "y", "region", "pixels", "labelled", "mapped", "margin")
    rows = (
        (rank, p.x, p.y, p.region, p.pixels, p.labelled, p.mapped, f"{p.margin:.3f}")
        for rank, p in enumerate(places, 1)
    )
    write_rows(path, [header, *rows])
