"""Tile plan: which stacks are cut from mosaics or chips, and which of them validate."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lulc.config import PreprocessConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import NO_CODE, SPARSE, InputError
from lulc.core.windows import Neighbours, Window, squares_of
from lulc.datasets.loading import footprint, load_manifest
from lulc.datasets.manifest import MANIFEST
from lulc.preprocessing.patches import (
    MOST,
    MOST_RECTANGLES,
    LabelledPixels,
    Split,
    groups_of,
    leave_gap,
    split_groups,
)  # fmt: skip
from lulc.preprocessing.split import MIN_SIDE, candidate_windows, choose_stacks, choose_validation
from lulc.rasters.vectors import VectorCodes

logger = logging.getLogger("lulc")

MAX_STACKS = 10_000
"""Stacks of one manifest at most, so that `lulc.core.documents` reads it; 0.4 TB of the default size."""


class Ground(NamedTuple):
    """Grid of a mosaic or chip; a single mosaic has no name.

    Chips of one group validate together or not at all.
    """

    grid: GridSpec
    name: str = ""
    group: str = ""


class Candidate(NamedTuple):
    """A window of a mosaic or chip that may become a stack, and its number among all of them."""

    number: int
    window: Window
    chip: int = 0


@dataclass(frozen=True)
class PlannedStack:
    """A stack to be cut.

    Parameters
    ----------
    name, split, number, window, group
        As in `lulc.datasets.manifest.StackFile`.
    hidden
        Windows in the stack without labels, since they lie in the gap around a validation stack.
    chip
        Position of the mosaic or chip that it is cut from.
    labels
        Sparse labels of the stack; None for all labels in the window.
    withheld
        Validation pixels, which become invalid in a training stack.
    """

    name: str
    split: str
    number: int
    window: Window
    hidden: tuple[Window, ...] = ()
    chip: int = 0
    group: str = ""
    labels: LabelledPixels | None = None
    withheld: LabelledPixels | None = None


def list_candidates(grounds: Sequence[Ground], size: int) -> list[Candidate]:
    """Return the windows that may become stacks, chip by chip."""
    windows = (
        (window, chip)
        for chip, ground in enumerate(grounds)
        for window in candidate_windows(ground.grid.height, ground.grid.width, size)
    )
    return [Candidate(number, *window) for number, window in enumerate(windows)]


def plan_stacks(
    counts: np.ndarray, grounds: Sequence[Ground], config: PreprocessConfig
) -> list[PlannedStack]:
    """Return the stacks to write, training first, each split in the order of the regular grid.

    Parameters
    ----------
    counts : int64 (candidate, class)
        Labelled valid pixels.

    Raises
    ------
    InputError
        If nothing is labelled, ``--validation`` names no such stack, or no training stack is left.
    """
    if not counts.sum():
        mosaic = (*config.bands, *config.scenes, *config.layers)[0]
        raise InputError(
            f"cannot cut stacks, since no valid pixel of '{mosaic}' has a label in "
            f"'{config.labels or mosaic}'",
            "Check in QGIS that bands and labels overlap, and --mask, --bounds, --aoi and --fill.",
        )
    candidates = list_candidates(grounds, config.size)
    rng = np.random.default_rng(config.seed)
    named = _named_stacks(config.validation, candidates, counts, grounds)
    if named and 0 < config.stacks <= len(named) and not _is_all(config.validation):
        raise InputError(
            f"cannot cut {config.stacks} stacks, since --validation takes {len(named)} of them, "
            "expected some for training as well",
            f"--stacks must exceed the number of validation stacks: type --stacks {len(named) + 1} or more.",
        )
    chosen = _choose(counts, config, rng, () if _is_all(config.validation) else named or ())
    if _is_all(config.validation):
        validation = set(chosen)
    elif named is None:
        validation = _draw_validation(counts, [candidates[i] for i in chosen], grounds, config)
    else:
        validation = set(named)
    neighbours = _validation_neighbours([candidates[i] for i in sorted(validation)], grounds, config.gap)
    train: list[PlannedStack] = []
    val: list[PlannedStack] = []
    for number, window, chip in (candidates[i] for i in chosen):
        group = grounds[chip].group
        if number in validation:
            val.append(PlannedStack(f"val_{len(val)}", "val", number, window, chip=chip, group=group))
            continue
        hidden = tuple(neighbours[chip].of(window))
        if any(h.shape == window.shape for h in hidden):
            name = f" of chip '{grounds[chip].name}'" if grounds[chip].name else ""
            logger.warning("stack %d%s lies in the gap around validation and is left out", number, name)
            continue
        train.append(PlannedStack(f"train_{len(train)}", "train", number, window, hidden, chip, group))
    if not train and not _is_all(config.validation):
        raise _no_room(config, candidates[chosen[0]].window)
    return train + val


def splits_patches(counts: np.ndarray, grounds: Sequence[Ground], config: PreprocessConfig) -> bool:
    """Return True if the split is by patches of labels rather than by stacks.

    Raises
    ------
    InputError
        If ``--split patches`` doesn't fit other options, or there are too many labels.
    """
    labelled = int(counts.sum())
    if config.split != "patches":
        pixels = sum(ground.grid.height * ground.grid.width for ground in grounds)
        return may_split_patches(counts, config) and 0 < labelled < SPARSE * pixels
    wrong = "--validation names stacks by their numbers" if _are_numbers(config.validation) else ""
    wrong = f"--stacks is {config.stacks}, which chooses among stacks" if config.stacks else wrong
    wrong = f"{labelled:,} pixels are labelled, expected at most {MOST:,}" if labelled > MOST else wrong
    if wrong:
        raise InputError(f"cannot split the labels by patches, since {wrong}", "Type --split stacks.")
    return True


def may_split_patches(counts: np.ndarray, config: PreprocessConfig) -> bool:
    """Return True if ``--split auto`` may choose patches."""
    about_stacks = _are_numbers(config.validation) or config.stacks
    return config.split == "auto" and not about_stacks and int(counts.sum()) <= MOST


def _are_numbers(validation: Sequence[str]) -> bool:
    return all(v.isdecimal() for v in validation)


def plan_patches(
    labelled: Sequence[LabelledPixels], grounds: Sequence[Ground], classes: int, config: PreprocessConfig
) -> tuple[list[PlannedStack], Split] | None:
    """Return the stacks around sparse labels, training first, and the split of the labels.

    Each candidate gives a stack of its training labels and one of its validation labels, with ``--gap``
    pixels of the mosaic around them. Validation pixels are invalid in training stacks. The result is None for
    ``--split auto`` where all labels are one group or too scattered to be listed.
    """
    split = _split_of(labelled, grounds, classes, config)
    if split.sides < 2 and not (_is_all(config.validation) or list(config.validation) == ["none"]):
        if config.split == "auto":
            return None
        raise InputError(
            "cannot split the labels by patches, since all of them touch or lie within --gap, or all lie on "
            "one side of --validation",
            "Type --split stacks, or --validation none.",
        )
    held = split.validates[split.groups]
    trains = ~held if split.left_out is None else ~(held | split.left_out)
    ends = np.cumsum([len(pixels) for pixels in labelled])[:-1]
    sides = zip(np.split(held, ends), np.split(trains, ends), strict=True)
    stacks: dict[str, list[PlannedStack]] = {"train": [], "val": []}
    for chip, (ground, pixels, (held_here, trains_here)) in enumerate(
        zip(grounds, labelled, sides, strict=True)
    ):
        validating = pixels.take(held_here)
        for side, of_side in (("train", pixels.take(trains_here)), ("val", validating)):
            for number, labels in of_side.by_place():
                window = _around(labels.extent, config.gap, ground.grid)
                withheld = validating.take(validating.within(window)) if side == "train" else None
                stack = PlannedStack(
                    f"{side}_{len(stacks[side])}", side, number, window,
                    chip=chip, group=ground.group, labels=labels, withheld=withheld,
                )  # fmt: skip
                stacks[side].append(stack)
    planned = stacks["train"] + stacks["val"]
    _check_number(len(planned))
    if sum(len(stack.labels.rectangles()) for stack in planned if stack.labels) > MOST_RECTANGLES:
        if config.split == "auto":
            return None
        raise InputError(
            f"cannot split the labels by patches, since more than {MOST_RECTANGLES:,} rectangles are needed "
            "to describe where they are",
            "Type --split stacks.",
        )
    return planned, split


def _split_of(
    labelled: Sequence[LabelledPixels], grounds: Sequence[Ground], classes: int, config: PreprocessConfig
) -> Split:
    chip_groups = _chip_groups(grounds, config.gap)
    inside: list[np.ndarray]
    if _is_all(config.validation) or list(config.validation) == ["none"]:
        inside = [np.full(len(pixels), _is_all(config.validation)) for pixels in labelled]
    elif file := validation_file(config.validation):
        contains = _within_folder if Path(file).name == MANIFEST else _within_polygons
        pairs = zip(labelled, grounds, strict=True)
        inside = [contains(file, pixels, ground.grid) for pixels, ground in pairs]
    else:
        fraction = _fraction(config.validation)
        return split_groups(labelled, chip_groups, classes, fraction, config.gap, config.seed)
    groups = groups_of(labelled, chip_groups, 1)
    validates = np.bincount(groups, np.concatenate(inside)) >= 0.5 * np.bincount(groups)
    split = leave_gap(labelled, Split(groups, validates, 1), classes, config.gap)
    if split.gap < PreprocessConfig.gap and split.sides > 1:
        logger.warning(
            "labels more than %d pixels from validating ones train, fewer than %d, the receptive radius of "
            "the default network%s: scores may be too good",
            split.gap, PreprocessConfig.gap,
            ", since within --gap a class would lose more than half of its training labels"
            * (split.gap < config.gap),
        )  # fmt: skip
    return split


def _chip_groups(grounds: Sequence[Ground], gap: int) -> list[str]:
    """Return the group of each chip; chips that overlap or lie within the gap are of one group."""
    if len(grounds) == 1 or not all(ground.grid.crs for ground in grounds):
        return [ground.group for ground in grounds]
    import shapely
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups = [ground.group or f"chip {number}" for number, ground in enumerate(grounds)]
    names, numbers = np.unique(groups, return_inverse=True)
    outlines = [ground.grid.outline_in_degrees() for ground in grounds]
    near = [ground.grid.crop(ground.grid.extent.grow(gap)).outline_in_degrees() for ground in grounds]
    edges = numbers[shapely.STRtree(outlines).query(near, predicate="intersects")]
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), (len(names), len(names)))
    joined = connected_components(graph, directed=False)[1]
    # A joined group has the first of its names.
    first = np.unique(joined, return_index=True)[1]
    groups = [str(names[first[joined[number]]]) for number in numbers]
    chips = Counter(groups)
    # The labels of a chip without neighbours are split like those of a mosaic.
    alone = [chips[group] == 1 and not ground.group for group, ground in zip(groups, grounds, strict=True)]
    return ["" if single else group for single, group in zip(alone, groups, strict=True)]


def _within_polygons(path: str, pixels: LabelledPixels, grid: GridSpec) -> np.ndarray:
    """Return where pixels lie in polygons, bool (pixel,)."""
    regions = VectorCodes(path, grid, presence=True)
    inside = np.zeros(len(pixels), bool)
    for square in squares_of(pixels.extent, 1024) if len(pixels) else ():
        chosen = pixels.within(square)
        if chosen.any():
            rows, cols = pixels.rows[chosen] - square.row, pixels.cols[chosen] - square.col
            inside[chosen] = regions.read(square)[rows, cols] != NO_CODE
    return inside


def _within_folder(path: str, pixels: LabelledPixels, grid: GridSpec) -> np.ndarray:
    """Return where pixels lie in the validation area of another folder, bool (pixel,)."""
    import shapely

    stacks = load_manifest(Path(path).parent).of("val")
    outlines = [part.outline_on(grid.crs) for stack in stacks for part in stack.ground]
    a, b, c, d, e, f = grid.transform[:6]
    col, row = pixels.cols + 0.5, pixels.rows + 0.5
    x, y = a * col + b * row + c, d * col + e * row + f
    return np.asarray(shapely.contains_xy(shapely.union_all(outlines), x, y))


def _around(extent: Window, gap: int, grid: GridSpec) -> Window:
    """Return a window with a gap around it, at least as large as a crop if the mosaic is."""
    sides = []
    for start, length, limit in zip((extent.row, extent.col), extent.shape, grid.shape, strict=True):
        margin = max(gap, -(-(MIN_SIDE - length) // 2))
        # At the edge of the mosaic the window grows to the other side.
        first, last = min(start - margin, limit - MIN_SIDE), max(start + length + margin, MIN_SIDE)
        sides.append((max(first, 0), min(last, limit)))
    (top, bottom), (left, right) = sides
    return Window(top, left, bottom - top, right - left)


def _draw_validation(
    counts: np.ndarray, candidates: Sequence[Candidate], grounds: Sequence[Ground], config: PreprocessConfig
) -> set[int]:
    """Choose a fraction of the candidates for validation; groups of chips stay together."""
    fraction = _fraction(config.validation)
    groups: dict[str | int, list[int]] = {}
    for candidate in candidates:
        groups.setdefault(grounds[candidate.chip].group or candidate.number, []).append(candidate.number)
    if fraction > 0 and len(groups) < 2:
        if (group := grounds[candidates[0].chip].group) and len(grounds) > 1:
            raise InputError(
                f"cannot set validation aside, since all chips are of the group '{group}' (a column of the "
                "table, or the same ground)",
                "Type --validation with a file of polygons, or --validation none.",
            )
        raise _no_room(config, candidates[0].window)
    members = list(groups.values())
    chosen = choose_validation(np.array([counts[numbers].sum(axis=0) for numbers in members]), fraction)
    return {number for i in chosen for number in members[i]}


def _validation_neighbours(
    candidates: Sequence[Candidate], grounds: Sequence[Ground], gap: int
) -> list[Neighbours]:
    """Return, for each chip, the validation stacks that overlap it or its gap, in its pixels."""
    import shapely

    by_chip: list[list[Window]] = [[] for _ in grounds]
    for candidate in candidates:
        by_chip[candidate.chip].append(candidate.window)
    if len(grounds) > 1 and all(ground.grid.crs for ground in grounds):
        stacks = [grounds[candidate.chip].grid.crop(candidate.window) for candidate in candidates]
        tree = shapely.STRtree([stack.outline_in_degrees() for stack in stacks])
        wide = [ground.grid.crop(ground.grid.extent.grow(gap + 1)) for ground in grounds]
        reached = [grid.outline_in_degrees() for grid in wide]
        for chip, number in zip(*tree.query(reached), strict=True):
            if candidates[number].chip != chip and (window := footprint(stacks[number], grounds[chip].grid)):
                by_chip[chip].append(window)
    return [Neighbours(windows, gap) for windows in by_chip]


def _choose(
    counts: np.ndarray, config: PreprocessConfig, rng: np.random.Generator, named: Sequence[int]
) -> list[int]:
    """Return the numbers of all stacks to cut, including those `named`."""
    usable = int((counts.sum(axis=1) > 0).sum())
    wanted = min(config.stacks or usable, usable)
    _check_number(wanted)
    chosen = choose_stacks(counts, config.stacks, rng, named)
    if config.stacks > len(chosen):
        logger.warning(
            "%d stacks are cut instead of %d, since no more windows hold labels; a smaller --size gives more",
            len(chosen), config.stacks,
        )  # fmt: skip
    return chosen


def _check_number(wanted: int) -> None:
    if wanted > MAX_STACKS:
        raise InputError(
            f"cannot cut {wanted} stacks, since one manifest names at most {MAX_STACKS}",
            f"Type --stacks {MAX_STACKS} or fewer (stacks with rare classes are preferred), a larger --size, "
            "or prepare each region by itself with --bounds: train_model.py takes several folders.",
        )


class NoRoomError(InputError):
    """Error of stacks so large, or so near each other, that none is left for training."""


def _no_room(config: PreprocessConfig, window: Window) -> NoRoomError:
    smaller = max(64, max(window.shape) // 3)
    return NoRoomError(
        f"cannot set validation aside, since no training stack is left beside it with --size {config.size} "
        f"and --gap {config.gap}",
        f"Type a smaller --size, for example --size {smaller} --gap {min(config.gap, smaller // 4)}, or "
        "--validation none to validate on another folder (train_model.py --validation-data), or --validation "
        "all to validate on this one.",
    )


def validation_file(validation: Sequence[str]) -> str | None:
    """Return the file that ``--validation`` names: polygons, or the manifest of a folder; else None."""
    if len(validation) != 1 or validation[0] in WORDS:
        return None
    path = Path(validation[0])
    manifest = path / MANIFEST
    return str(path) if path.is_file() else str(manifest) if manifest.is_file() else None


WORDS = ("none", "all")
"""Values of ``--validation`` besides a fraction, stack numbers, polygons and a folder."""


def _is_all(validation: Sequence[str]) -> bool:
    return list(validation) == ["all"]


def _fraction(validation: Sequence[str]) -> float:
    text = " ".join(validation)
    if not re.fullmatch(r"0?\.[0-9]+", text):
        raise InputError(
            f"cannot split the stacks, since --validation is '{text}', expected a fraction between 0 and 1 "
            "(0.2), stack numbers (3 7), a polygon file, a folder that preprocess.py wrote, none or all",
            "Type --validation 0.2, or check the path of the file or folder.",
        )
    return float(text)


def _named_stacks(
    validation: Sequence[str], candidates: Sequence[Candidate], counts: np.ndarray, grounds: Sequence[Ground]
) -> list[int] | None:
    """Return the numbers of the validation stacks that the user names or draws; None for a fraction."""
    if list(validation) == ["none"]:
        return []
    usable = [int(i) for i in np.flatnonzero(counts.sum(axis=1))]
    if _is_all(validation):
        return usable
    if file := validation_file(validation):
        inside = _inside_folder if Path(file).name == MANIFEST else _inside_polygons
        return [i for i in inside(file, candidates, grounds) if counts[i].sum()]
    if _are_numbers(validation):
        numbers = sorted({int(v) for v in validation})
        if wrong := sorted(set(numbers) - set(usable)):
            raise InputError(
                f"cannot validate on stack {wrong[0]}, since the stacks with labels are "
                f"{', '.join(map(str, usable[:50]))}",
                "They are numbered from 0, row by row from the upper left; a fraction is written 0.2.",
            )
        return numbers
    _fraction(validation)
    return None


def _inside_polygons(path: str, candidates: Sequence[Candidate], grounds: Sequence[Ground]) -> list[int]:
    """Return the candidates that polygons cover by half or more."""
    inside = []
    for chip, of_chip in itertools.groupby(candidates, lambda candidate: candidate.chip):
        regions = VectorCodes(path, grounds[chip].grid, presence=True)
        inside += [candidate.number for candidate in of_chip if _covered(regions, candidate.window) >= 0.5]
    if not inside:
        raise InputError(
            f"cannot split the stacks, since the polygons in '{path}' cover no stack by half or more",
            "Draw them larger, or type a smaller --size.",
        )
    return inside


def _inside_folder(path: str, candidates: Sequence[Candidate], grounds: Sequence[Ground]) -> list[int]:
    """Return the candidates that the validation stacks of another folder cover by half or more."""
    import shapely

    folder = Path(path).parent
    grids = [stack.grid for stack in load_manifest(folder).of("val") if stack.grid is not None]
    inside = []
    for chip, of_chip in itertools.groupby(candidates, lambda candidate: candidate.chip):
        grid = grounds[chip].grid
        area = shapely.union_all([stack.outline_on(grid.crs) for stack in grids])
        for candidate in of_chip:
            outline = grid.crop(candidate.window).outline()
            if shapely.area(shapely.intersection(area, outline)) >= 0.5 * shapely.area(outline):
                inside.append(candidate.number)
    if not inside:
        has = "it has no validation stack whose place is known"
        if grids:
            has = f"its {len(grids)} validation stacks cover no stack here by half or more"
        raise InputError(
            f"cannot validate where '{folder}' does, since {has}",
            f"Type --validation none, and train with: python train_model.py OUT --validation-data {folder}",
        )
    return inside


def _covered(regions: VectorCodes, window: Window) -> float:
    """Return the fraction of a window that polygons cover."""
    covered = sum(int((regions.read(part) != NO_CODE).sum()) for part in squares_of(window, 1024))
    return covered / (window.height * window.width)
