"""Parts of a map that are scored apart: stacks of a manifest, polygons, and the land that a training used."""

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
"""Splits of a manifest as they are printed."""

MODEL_TAG, MODEL_SHA256_TAG, ENSEMBLE_TAG = "LULC_MODEL", "LULC_MODEL_SHA256", "LULC_ENSEMBLE"
"""Tags of a map: name and sha256 of its model, and these of all that were averaged."""

NAME_FIELDS = ("name", "region", "id")
"""Fields of polygons that give their names, in this order; numbers where there is none."""


@dataclass(frozen=True)
class Region:
    """Some pixels of a map.

    Parameters
    ----------
    extent
        Rectangle of the map's grid that holds it.
    shape
        Polygon in the CRS of the grid; None for the whole rectangle.
    """

    name: str
    extent: Window
    shape: BaseGeometry | None = None

    def within(self, window: Window, grid: GridSpec) -> NDArray[np.bool_] | None:
        """True where a pixel of `window` (its centre) is inside; None where none can be."""
        common = self.extent.intersect(window)
        if not common.height or not common.width:
            return None
        inside = np.zeros(window.shape, bool)
        place = common.relative_to(window).slices
        if self.shape is None:
            inside[place] = True
        else:
            inside[place] = geometry_mask(
                [self.shape], common.shape, grid.crop(common).transform, invert=True
            )
        return inside


def trains_on_all(tags: Mapping[str, str]) -> bool:
    """True where a map is by the small models for few labels, which learn the validation labels as well."""
    return tags.get(MODEL_TAG, "").endswith(f"/{FEW_LABELS}") or f'/{FEW_LABELS}"' in tags.get(
        ENSEMBLE_TAG, ""
    )


def read_regions(
    path: str | os.PathLike[str], grid: GridSpec, tags: Mapping[str, str] | None = None
) -> list[Region]:
    """Regions from a manifest.json (its stacks) or from a polygon file.

    Parameters
    ----------
    path
        ``manifest.json`` or its folder, or GeoPackage or GeoJSON.

    Raises
    ------
    InputError
        If the file can't be read, or nothing of it lies on the map.
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
    """Return the training stacks on a map, from a manifest and from the card of a run.

    Parameters
    ----------
    grid, tags
        Of the map. Where these name the small models for few labels, validation stacks count as well.

    Returns
    -------
    list of Region
        None where neither says where the training stacks lie.
    """
    found: list[Region] | None = None
    tags = tags or {}
    if trains_on_all(tags):
        logger.warning(
            "the small models of this map learnt from all labels, those for validation included: labels "
            "of their stacks say nothing of its accuracy; the table that train_model.py printed does"
        )
    if regions is not None and _is_manifest(Path(regions)):
        manifest = load_manifest(_folder_of(Path(regions)))
        stacks = manifest.stacks if trains_on_all(tags) else manifest.of("train")
        found = [_stack_region(s.name, s.ground, grid) for s in stacks if s.ground]
    if run is not None:
        ground = _ground_of(Path(run), tags)
        if ground is None and found is None:
            logger.warning(
                "the models in '%s' don't say which land they were trained on: give --regions with the "
                "manifest.json of their stacks", run,
            )  # fmt: skip
        elif ground is not None:
            found = [*(found or ()), *(_stack_region("training", [stack], grid) for stack in ground)]
    return None if found is None else [r for r in found if r.extent.height and r.extent.width]


def _ground_of(run: Path, tags: Mapping[str, str]) -> list[GridSpec] | None:
    """Return the grids of the stacks that a model of a run was trained on; None where its card doesn't tell.

    Of several that made a map the one that learnt most counts. Of a map whose model isn't among them any
    network does: all were trained on the same stacks.
    """
    made = tags.get(MODEL_SHA256_TAG, "") + tags.get(ENSEMBLE_TAG, "")
    found: list[GridSpec] = []
    models = [p for p in (*sorted(run.glob("*.keras")), *sorted(run.glob("*.npz"))) if card_path(p).exists()]
    cards = [(path, load_card(path)) for path in models]
    cards.sort(key=lambda entry: (entry[1].sha256 not in made, entry[0].stem != FEW_LABELS))
    if cards and cards[0][1].sha256 not in made:
        cards.sort(key=lambda entry: entry[0].suffix)
    for path, card in cards:
        for entry in card.training.get("data", ()):
            if "ground" not in entry:
                return None
            check_document(entry["ground"], GROUND_SCHEMA, "land of the training in the card", str(path))
            for part in entry["ground"]:
                grids = (
                    {"crs": part["crs"], "transform": s[:6], "height": s[6], "width": s[7]}
                    for s in part["stacks"]
                )
                found += map(GridSpec.from_json, grids)
        return found
    return None


def _stack_region(name: str, ground: Sequence[GridSpec], grid: GridSpec) -> Region:
    """Return the region of a stack, by its outline where that is no rectangle of the map's pixels."""
    import shapely

    if len(ground) == 1 and grid.is_aligned(ground[0]):
        return Region(name, Window(*grid.offset_of(ground[0]), *ground[0].shape).intersect(grid.extent))
    outline = shapely.union_all([part.outline_on(grid.crs) for part in ground])
    if outline.is_empty:
        return Region(name, Window(0, 0, 0, 0))
    return Region(name, grid.window_of(outline.bounds).intersect(grid.extent), outline)


def _from_polygons(path: Path, grid: GridSpec) -> list[Region]:
    VectorCodes(str(path), grid, presence=True)  # refuses what can't lie on this grid
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
