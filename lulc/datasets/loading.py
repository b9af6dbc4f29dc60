"""Folders of stacks: loading of both formats, and stacks that overlap on the ground."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Neighbours, Window
from lulc.datasets.legacy import is_original, read_originals
from lulc.datasets.manifest import MANIFEST, Manifest, StackFile, open_tile, read_manifest


def load_manifest(folder: str | os.PathLike[str], *, already_standardised: bool = False) -> Manifest:
    """Read and check a folder of stacks.

    Parameters
    ----------
    folder
        Output of preprocess.py, or a folder in the naming of the original system without a manifest
        (``train_image_0.npy``, ``train_masks_0.npy``, ``val_...``; also .tif, .img, .nc, .zarr).
    already_standardised
        Use standardised images of such a folder as they are, where their statistics are lost.

    Returns
    -------
    Manifest
        Of a folder without a manifest, one made in memory: grids are unknown, and images are converted to
        physical units with the statistics of its ``*mean_and_std*.obj``.

    Raises
    ------
    InputError
        If the manifest or a file is missing, damaged, or lies outside the folder.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
    elif is_original(folder):
        manifest = read_originals(folder, already_standardised)
    else:
        raise InputError(
            f"cannot find stacks in '{folder}', since there is neither {MANIFEST} nor train_image_0.npy",
            f"Make them: python preprocess.py --bands ... --labels ... --scheme ... --out {folder}",
        )
    for stack in manifest.stacks:
        open_tile(stack)
    return manifest


@dataclass(frozen=True)
class Overlap:
    """Window of a training stack whose pixels a validation stack holds, too."""

    train: StackFile
    val: StackFile
    window: Window


def find_overlaps(stacks: Sequence[StackFile], gap: int = 0) -> list[Overlap]:
    """Find the windows of training stacks that overlap validation stacks on the ground.

    Parameters
    ----------
    stacks
        Of one or more manifests; stacks without a grid can't be compared and are left out.
    gap
        Include pixels nearer than this, in pixels of the training stack.
    """
    located = [s for s in stacks if s.grid is not None and s.grid.crs]
    trained, held = ([s for s in located if s.split == split] for split in ("train", "val"))
    found = []
    for train, val in _near_pairs(trained, held, gap):
        of_patches = train.patches and val.patches and train.image.parent == val.image.parent
        if of_patches and train.as_cut and val.as_cut:
            # No patch is in two stacks, and training images are NaN where patches validate.
            continue
        grounds = [footprint(ground, train.grid) for ground in val.ground]  # type: ignore[arg-type]
        near = Neighbours([ground for ground in grounds if ground], gap)
        for patch in train.patches or [Window(0, 0, *train.shape)]:
            for window in near.of(patch):
                moved = Window(window.row + patch.row, window.col + patch.col, *window.shape)
                found.append(Overlap(train, val, moved))
    return found


def _near_pairs(
    trained: Sequence[StackFile], held: Sequence[StackFile], gap: int
) -> Iterator[tuple[StackFile, StackFile]]:
    """Yield each pair of a training and a validation stack whose grids are near each other."""
    for crs in {stack.grid.crs for stack in trained if stack.grid}:
        own = [stack for stack in trained if stack.grid and stack.grid.crs == crs]
        bounds = [stack.grid.bounds_on(crs) for stack in held if stack.grid]
        tree = shapely.STRtree([shapely.box(*b) if np.isfinite(b).all() else shapely.Point() for b in bounds])
        # One pixel more, since `footprint` rounds.
        wide = [stack.grid.crop(stack.grid.extent.grow(gap + 1)) for stack in own if stack.grid]
        for one, other in sorted(zip(*tree.query([shapely.box(*grid.bounds) for grid in wide]), strict=True)):
            yield own[one], held[other]


def footprint(grid: GridSpec, on: GridSpec) -> Window | None:
    """Return the window of `on`, possibly beyond its borders, that holds all of `grid`; None if it can't be
    projected.
    """
    bounds = grid.bounds_on(on.crs)
    if not np.isfinite(bounds).all():
        return None
    corners = [~on.transform @ (x, y) for x in bounds[::2] for y in bounds[1::2]]
    # Corners that differ by rounding only are the same corner.
    cols = [round(c[0], 2) for c in corners]
    rows = [round(c[1], 2) for c in corners]
    top, left = int(np.floor(min(rows))), int(np.floor(min(cols)))
    return Window(top, left, int(np.ceil(max(rows))) - top, int(np.ceil(max(cols))) - left)
