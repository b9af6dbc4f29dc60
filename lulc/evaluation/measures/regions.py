"""Regions of a map: stacks of a manifest, polygons, and training land."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask

from lulc.core.documents import check_document
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.datasets.loading import load_manifest
from lulc.datasets.manifest import GROUND_SCHEMA, MANIFEST
from lulc.models.card import card_path, load_card
from lulc.models.weights import FEW_LABELS
from lulc.rasters.vectors import VectorCodes, convert, read_features

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

logger = logging.getLogger("lulc")

SPLITS = {"train": "training", "val": "validation"}

MODEL_TAG, MODEL_SHA256_TAG, ENSEMBLE_TAG = "LULC_MODEL", "LULC_MODEL_SHA256", "LULC_ENSEMBLE"
"""Tags of a map: name and sha256 of its model, and those of all models of an ensemble."""

NAME_FIELDS = ("name", "region", "id")  # fields with the names of polygons, the first that exists


@dataclass(frozen=True)
class Region:
    """A region of a map.

    Parameters
    ----------
    extent
        Bounding window on the map's grid.
    shape
        Polygon in the CRS of the grid; None for the whole window.
    """

    name: str
    extent: Window
    shape: BaseGeometry | None = None

    def within(self, window: Window, grid: GridSpec) -> NDArray[np.bool_] | None:
        """Return True where the centre of a pixel of `window` is inside; None if none is."""
        common = self.extent.intersect(window)
        if not common.height or not common.width:
            return None
        inside = np.zeros(window.shape, bool)
        transform = grid.crop(common).transform
        inside[common.relative_to(window).slices] = (
            True if self.shape is None
            else geometry_mask([self.shape], common.shape, transform, invert=True)
        )  # fmt: skip
        return inside


def trains_on_all(tags: Mapping[str, str]) -> bool:
    """True if the small models for few labels made the map, which learn from validation labels too."""
    model, ensemble = tags.get(MODEL_TAG, ""), tags.get(ENSEMBLE_TAG, "")
    return model.endswith(f"/{FEW_LABELS}") or f'/{FEW_LABELS}"' in ensemble


def read_regions(
    path: str | os.PathLike[str], grid: GridSpec, tags: Mapping[str, str] | None = None
) -> list[Region]:
    """Read the stacks of a manifest.json or its folder, or the polygons of a GeoPackage or GeoJSON.

    Raises InputError if the file can't be read, or no region overlaps the map.
    """
    path = Path(path)
    if _is_manifest(path):
        regions = _from_manifest(_folder_of(path), grid, all_train=trains_on_all(tags or {}))
    else:
        regions = _from_polygons(path, grid)
    if not regions:
        raise InputError(
            f"cannot score the regions of '{path}', since none of them lies on the map ({grid.describe()})",
            "Give the manifest or polygons of the same place.",
        )
    return regions


def _is_manifest(path: Path) -> bool:
    return path.is_dir() or path.name == MANIFEST


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _from_manifest(folder: Path, grid: GridSpec, *, all_train: bool) -> list[Region]:
    regions = []
    for stack in load_manifest(folder).stacks:
        if stack.grid is None:
            raise InputError(
                f"cannot score the stacks of '{folder}', since '{stack.name}' doesn't say where it lies",
                "Give polygons instead: --regions regions.gpkg",
            )
        if not grid.is_aligned(stack.grid):
            raise InputError(
                f"cannot score the stacks of '{folder}', since the grid of '{stack.name}' is\n"
                f"  {stack.grid.describe()}\nexpected pixels of the map\n  {grid.describe()}",
                "Give the manifest of stacks from the same mosaic, or polygons.",
            )
        split = SPLITS["train" if all_train else stack.split]
        region = _stack_region(f"{stack.name} ({split})", stack.ground, grid)
        if region.extent.height and region.extent.width:
            regions.append(region)
    return regions


def read_ground(
    regions: str | os.PathLike[str] | None,
    run: str | os.PathLike[str] | None,
    grid: GridSpec,
    tags: Mapping[str, str] | None = None,
) -> list[Region] | None:
    """Return the training land on a map, from a manifest and from the card of a run.

    Parameters
    ----------
    grid, tags
        Those of the map. For the small models for few labels, validation stacks are training land too.

    Returns
    -------
    list of Region
        None if neither records the training land.
    """
    land: list[Region] | None = None
    tags = tags or {}
    if trains_on_all(tags):
        logger.warning(
            "the small models of this map learnt from all labels, also from those for validation: labels of "
            "their stacks don't measure its accuracy; the table that train_model.py printed does"
        )
    if regions is not None and _is_manifest(Path(regions)):
        manifest = load_manifest(_folder_of(Path(regions)))
        stacks = manifest.stacks if trains_on_all(tags) else manifest.of("train")
        land = [_stack_region(s.name, s.ground, grid) for s in stacks if s.ground]
    if run is not None:
        ground = _ground_of(Path(run), tags)
        if ground is None and land is None:
            logger.warning(
                "the models in '%s' don't record their training land: give --regions with the manifest.json "
                "of their stacks", run,
            )  # fmt: skip
        elif ground is not None:
            land = [*(land or ()), *(_stack_region("training", [stack], grid) for stack in ground)]
    return None if land is None else [r for r in land if r.extent.height and r.extent.width]


def _ground_of(run: Path, tags: Mapping[str, str]) -> list[GridSpec] | None:
    """Return the grids of the training stacks of a run; None if no card records them.

    The card is that of the map's model, and of an ensemble with the small models, which use most labels, that
    of these. For a map of another model any network will do, since all use the same stacks.
    """
    made = tags.get(MODEL_SHA256_TAG, "") + tags.get(ENSEMBLE_TAG, "")
    models = [p for p in (*sorted(run.glob("*.keras")), *sorted(run.glob("*.npz"))) if card_path(p).exists()]
    cards = [(path, load_card(path)) for path in models]
    if not cards:
        return None
    cards.sort(key=lambda entry: (entry[1].sha256 not in made, entry[0].stem != FEW_LABELS))
    if cards[0][1].sha256 not in made:
        cards.sort(key=lambda entry: entry[0].suffix)
    path, card = cards[0]
    grids: list[GridSpec] = []
    for entry in card.training.get("data", ()):
        if "ground" not in entry:
            return None
        check_document(entry["ground"], GROUND_SCHEMA, "training land in the card", str(path))
        for group in entry["ground"]:
            for s in group["stacks"]:
                data = {"crs": group["crs"], "transform": s[:6], "height": s[6], "width": s[7]}
                grids.append(GridSpec.from_json(data))
    return grids


def _stack_region(name: str, ground: Sequence[GridSpec], grid: GridSpec) -> Region:
    """Return the region of a stack: a window of the map, or a polygon if its grid is not aligned."""
    import shapely

    if len(ground) == 1 and grid.is_aligned(ground[0]):
        return Region(name, Window(*grid.offset_of(ground[0]), *ground[0].shape).intersect(grid.extent))
    outline = shapely.union_all([part.outline_on(grid.crs) for part in ground])
    if outline.is_empty:
        return Region(name, Window(0, 0, 0, 0))
    return Region(name, grid.window_of(outline.bounds).intersect(grid.extent), outline)


def _from_polygons(path: Path, grid: GridSpec) -> list[Region]:
    VectorCodes(str(path), grid, presence=True)  # checks that the polygons overlap the grid
    frame = read_features(str(path))
    fields = {str(c).lower(): c for c in frame.columns}
    field = next((fields[n] for n in NAME_FIELDS if n in fields), None)
    shapes = convert(frame.geometry, grid.crs.to_wkt(), str(path))
    regions = []
    for k, shape in enumerate(shapes):
        if shape is None or shape.is_empty:
            continue
        extent = grid.window_of(shape.bounds).intersect(grid.extent)
        if extent.height and extent.width:
            regions.append(Region(str(frame[field].iloc[k]) if field else f"region {k + 1}", extent, shape))
    return regions
