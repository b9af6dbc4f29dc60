"""Places: the stacks to be cut from a mosaic, once it is known what lies where."""

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
)
from lulc.preprocessing.split import MIN_SIDE, candidate_windows, choose_stacks, choose_validation
from lulc.rasters.vectors import VectorCodes

logger = logging.getLogger("lulc")

MAX_PLACES = 10_000
"""Stacks that one manifest can name within what `lulc.core.documents` reads; 0.4 TB of the default size."""


class Ground(NamedTuple):
    """Pixels of a mosaic or chip; the name is empty for one mosaic.

    Chips of one group validate together or not at all.
    """

    grid: GridSpec
    name: str = ""
    group: str = ""


class Spot(NamedTuple):
    """A window of a mosaic or chip, and its number among all that may become stacks."""

    number: int
    window: Window
    chip: int = 0


@dataclass(frozen=True)
class Place:
    """A stack to be cut.

    Parameters
    ----------
    name, split, number, window, group
        As in `lulc.datasets.manifest.StackFile`.
    hidden
        Windows, in the stack, whose labels lie in the gap around a validation stack.
    chip
        Position of the mosaic or chip that it is cut from.
    labels
        Of sparse labels, those of the stack; None for all in the window.
    withheld
        Pixels that a training stack may not see, as they validate.
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


def candidate_spots(grounds: Sequence[Ground], size: int) -> list[Spot]:
    """Return the places that may become stacks, chip by chip."""
    found = [
        (window, chip)
        for chip, ground in enumerate(grounds)
        for window in candidate_windows(ground.grid.height, ground.grid.width, size)
    ]
    return [Spot(number, *place) for number, place in enumerate(found)]


def plan_places(counts: np.ndarray, grounds: Sequence[Ground], config: PreprocessConfig) -> list[Place]:
    """The stacks to write, training first, each split in the order of the regular grid.

    Parameters
    ----------
    counts : int64 (place, class)
        Labelled valid pixels of each candidate.
    config
        What decides the choice: size, stacks, validation, gap, seed.

    Raises
    ------
    InputError
        If nothing is labelled, the validation names what isn't there, or no training stack is left.
    """
    if not counts.sum():
        mosaic = (*config.bands, *config.scenes, *config.layers)[0]
        raise InputError(
            f"cannot cut stacks, since no valid pixel of '{mosaic}' has a label in "
            f"'{config.labels or mosaic}'",
            "Check in QGIS that bands and labels overlap, and --mask, --bounds, --aoi and --fill.",
        )
    spots = candidate_spots(grounds, config.size)
    rng = np.random.default_rng(config.seed)
    named = _named_stacks(config.validation, spots, counts, grounds)
    if named and 0 < config.stacks <= len(named) and not _is_all(config.validation):
        raise InputError(
            f"cannot cut {config.stacks} stacks, since --validation takes {len(named)} of them, "
            "expected some for training as well",
            f"--stacks must exceed the number of validation stacks: type --stacks {len(named) + 1} or more.",
        )
    chosen = _chosen(counts, config, rng, () if _is_all(config.validation) else named or ())
    if _is_all(config.validation):
        validation = set(chosen)
    elif named is None:
        validation = _by_share(counts, [spots[i] for i in chosen], grounds, config)
    else:
        validation = set(named)
    near = _near_validation([spots[i] for i in sorted(validation)], grounds, config.gap)
    train: list[Place] = []
    val: list[Place] = []
    for number, window, chip in (spots[i] for i in chosen):
        group = grounds[chip].group
        if number in validation:
            val.append(Place(f"val_{len(val)}", "val", number, window, chip=chip, group=group))
            continue
        hidden = tuple(near[chip].of(window))
        if any(h.shape == window.shape for h in hidden):
            name = f" of chip '{grounds[chip].name}'" if grounds[chip].name else ""
            logger.warning("stack %d%s lies in the gap around validation and is left out", number, name)
            continue
        train.append(Place(f"train_{len(train)}", "train", number, window, hidden, chip, group))
    if not train and not _is_all(config.validation):
        raise _no_room(config, spots[chosen[0]].window)
    return train + val


def splits_patches(counts: np.ndarray, grounds: Sequence[Ground], config: PreprocessConfig) -> bool:
    """Return whether patches of labels train or validate, rather than stacks.

    Raises
    ------
    InputError
        If the user asks for patches and for what is about stacks, or there are too many labels.
    """
    numbers = _are_numbers(config.validation)
    labelled = int(counts.sum())
    if config.split != "patches":
        pixels = sum(ground.grid.height * ground.grid.width for ground in grounds)
        return may_split_patches(counts, config) and 0 < labelled < SPARSE * pixels
    wrong = "--validation names stacks by their numbers" if numbers else ""
    wrong = f"--stacks is {config.stacks}, which chooses among stacks" if config.stacks else wrong
    wrong = f"{labelled:,} pixels are labelled, expected at most {MOST:,}" if labelled > MOST else wrong
    if wrong:
        raise InputError(f"cannot split the labels by patches, since {wrong}", "Type --split stacks.")
    return True


def may_split_patches(counts: np.ndarray, config: PreprocessConfig) -> bool:
    """Return whether patches may train or validate without being asked for."""
    about_stacks = _are_numbers(config.validation) or config.stacks
    return config.split == "auto" and not about_stacks and int(counts.sum()) <= MOST


def _are_numbers(validation: Sequence[str]) -> bool:
    return all(v.isdecimal() for v in validation)


def plan_patches(
    found: Sequence[LabelledPixels], grounds: Sequence[Ground], classes: int, config: PreprocessConfig
) -> tuple[list[Place], Split] | None:
    """Return the stacks around sparse labels, training first, and how these were split.

    A place of the regular grid gives a stack of its training labels and one of its validation labels, each
    with as much of the mosaic around them as ``--gap`` says. Training stacks are without the pixels whose
    labels validate.

    Parameters
    ----------
    found
        Labelled pixels of each mosaic or chip.
    grounds, config
        As in `plan_places`.

    Returns
    -------
    tuple
        None where all labels are one group, so that none can validate, or too scattered to be listed.
    """
    split = _split_of(found, grounds, classes, config)
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
    ends = np.cumsum([len(own) for own in found])[:-1]
    sides = zip(np.split(held, ends), np.split(trains, ends), strict=True)
    places: dict[str, list[Place]] = {"train": [], "val": []}
    for chip, (ground, own, (validating, training)) in enumerate(zip(grounds, found, sides, strict=True)):
        unseen = own.take(validating)
        for name, some in (("train", own.take(training)), ("val", unseen)):
            for number, labels in some.by_place():
                window = _around(labels.extent, config.gap, ground.grid)
                withheld = unseen.take(unseen.within(window)) if name == "train" else None
                place = Place(
                    f"{name}_{len(places[name])}", name, number, window,
                    chip=chip, group=ground.group, labels=labels, withheld=withheld,
                )  # fmt: skip
                places[name].append(place)
    planned = places["train"] + places["val"]
    _check_number(len(planned))
    if sum(len(place.labels.rectangles()) for place in planned if place.labels) > MOST_RECTANGLES:
        if config.split == "auto":
            return None
        raise InputError(
            f"cannot split the labels by patches, since more than {MOST_RECTANGLES:,} rectangles are needed "
            "to say where they lie",
            "Type --split stacks.",
        )
    return planned, split


def _split_of(
    found: Sequence[LabelledPixels], grounds: Sequence[Ground], classes: int, config: PreprocessConfig
) -> Split:
    together = _together(grounds, config.gap)
    inside: list[np.ndarray]
    if _is_all(config.validation) or list(config.validation) == ["none"]:
        inside = [np.full(len(own), _is_all(config.validation)) for own in found]
    elif file := validation_file(config.validation):
        contains = _within_folder if Path(file).name == MANIFEST else _within_polygons
        inside = [contains(file, own, ground.grid) for own, ground in zip(found, grounds, strict=True)]
    else:
        share = _share(config.validation)
        return split_groups(found, together, classes, share, config.gap, config.seed)
    groups = groups_of(found, together, 1)
    validates = np.bincount(groups, np.concatenate(inside)) >= 0.5 * np.bincount(groups)
    split = leave_gap(found, Split(groups, validates, 1), classes, config.gap)
    if split.gap < PreprocessConfig.gap and split.sides > 1:
        logger.warning(
            "labels more than %d pixels from validating ones train, fewer than %d, the receptive radius of "
            "the default network%s: scores may be too good",
            split.gap, PreprocessConfig.gap,
            ", since within --gap a class would lose more than half of its training labels"
            * (split.gap < config.gap),
        )  # fmt: skip
    return split


def _together(grounds: Sequence[Ground], gap: int) -> list[str]:
    """Return the group of each chip; chips that share ground, or lie within the gap, are of one."""
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
    # A group is called by the first of its names.
    first = np.unique(joined, return_index=True)[1]
    groups = [str(names[first[joined[number]]]) for number in numbers]
    chips = Counter(groups)
    # A chip that lies alone is divided like a mosaic.
    alone = [chips[group] == 1 and not ground.group for group, ground in zip(groups, grounds, strict=True)]
    return ["" if single else group for single, group in zip(alone, groups, strict=True)]


def _within_polygons(path: str, pixels: LabelledPixels, grid: GridSpec) -> np.ndarray:
    """True where a pixel lies in polygons: bool (pixel,)."""
    regions = VectorCodes(path, grid, presence=True)
    inside = np.zeros(len(pixels), bool)
    for square in squares_of(pixels.extent, 1024) if len(pixels) else ():
        chosen = pixels.within(square)
        if chosen.any():
            rows, cols = pixels.rows[chosen] - square.row, pixels.cols[chosen] - square.col
            inside[chosen] = regions.read(square)[rows, cols] != NO_CODE
    return inside


def _within_folder(path: str, pixels: LabelledPixels, grid: GridSpec) -> np.ndarray:
    """True where a pixel lies on what validates in another folder: bool (pixel,)."""
    import shapely

    stacks = load_manifest(Path(path).parent).of("val")
    outlines = [part.outline_on(grid.crs) for stack in stacks for part in stack.ground]
    a, b, c, d, e, f = grid.transform[:6]
    col, row = pixels.cols + 0.5, pixels.rows + 0.5
    x, y = a * col + b * row + c, d * col + e * row + f
    return np.asarray(shapely.contains_xy(shapely.union_all(outlines), x, y))


def _around(extent: Window, gap: int, grid: GridSpec) -> Window:
    """Return a window with a gap around it, of a crop's size at least where the mosaic has that."""
    sides = []
    for start, length, limit in zip(
        (extent.row, extent.col), extent.shape, (grid.height, grid.width), strict=True
    ):
        more = max(gap, -(-(MIN_SIDE - length) // 2))
        first, last = start - more, start + length + more
        # At a border the other side gives what is missing of a crop.
        first, last = min(first, limit - MIN_SIDE), max(last, MIN_SIDE)
        sides.append((max(first, 0), min(last, limit)))
    (top, bottom), (left, right) = sides
    return Window(top, left, bottom - top, right - left)


def _by_share(
    counts: np.ndarray, spots: Sequence[Spot], grounds: Sequence[Ground], config: PreprocessConfig
) -> set[int]:
    """Return the numbers of the places that validate; groups of chips as a whole."""
    share = _share(config.validation)
    groups: dict[str | int, list[int]] = {}
    for spot in spots:
        groups.setdefault(grounds[spot.chip].group or spot.number, []).append(spot.number)
    if share > 0 and len(groups) < 2:
        if (group := grounds[spots[0].chip].group) and len(grounds) > 1:
            raise InputError(
                f"cannot set validation aside, since all chips are of the group '{group}' (a column of the "
                "table, or the same ground)",
                "Type --validation with a file of polygons, or --validation none.",
            )
        raise _no_room(config, spots[0].window)
    members = list(groups.values())
    chosen = choose_validation(np.array([counts[numbers].sum(axis=0) for numbers in members]), share)
    return {number for i in chosen for number in members[i]}


def _near_validation(spots: Sequence[Spot], grounds: Sequence[Ground], gap: int) -> list[Neighbours]:
    """Return, for each chip, the validation stacks that reach it, in its pixels."""
    import shapely

    own: list[list[Window]] = [[] for _ in grounds]
    for spot in spots:
        own[spot.chip].append(spot.window)
    if len(grounds) > 1 and all(ground.grid.crs for ground in grounds):
        stacks = [grounds[spot.chip].grid.crop(spot.window) for spot in spots]
        tree = shapely.STRtree([stack.outline_in_degrees() for stack in stacks])
        wide = [ground.grid.crop(ground.grid.extent.grow(gap + 1)) for ground in grounds]
        reached = [grid.outline_in_degrees() for grid in wide]
        for chip, number in zip(*tree.query(reached), strict=True):
            if spots[number].chip != chip and (window := footprint(stacks[number], grounds[chip].grid)):
                own[chip].append(window)
    return [Neighbours(windows, gap) for windows in own]


def _chosen(
    counts: np.ndarray, config: PreprocessConfig, rng: np.random.Generator, named: Sequence[int]
) -> list[int]:
    """Numbers of all stacks to cut, those `named` among them."""
    usable = int((counts.sum(axis=1) > 0).sum())
    wanted = min(config.stacks or usable, usable)
    _check_number(wanted)
    chosen = choose_stacks(counts, config.stacks, rng, named)
    if config.stacks > len(chosen):
        logger.warning(
            "%d stacks are cut instead of %d, since no more places hold labels; a smaller --size gives more",
            len(chosen), config.stacks,
        )  # fmt: skip
    return chosen


def _check_number(wanted: int) -> None:
    if wanted > MAX_PLACES:
        raise InputError(
            f"cannot cut {wanted} stacks, since one manifest names at most {MAX_PLACES}",
            f"Type --stacks {MAX_PLACES} or fewer (places with rare classes are preferred), a larger --size, "
            "or prepare regions apart, with --bounds: train_model.py takes several folders.",
        )


class NoRoomError(InputError):
    """Stacks so large, or so near each other, that none is left for training."""


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
    """Return the file that ``--validation`` names: polygons, or the manifest of a folder; None for others."""
    if len(validation) != 1 or validation[0] in WORDS:
        return None
    path = Path(validation[0])
    manifest = path / MANIFEST
    return str(path) if path.is_file() else str(manifest) if manifest.is_file() else None


WORDS = ("none", "all")
"""What ``--validation`` takes besides a share, stack numbers, polygons and a folder."""


def _is_all(validation: Sequence[str]) -> bool:
    return list(validation) == ["all"]


def _share(validation: Sequence[str]) -> float:
    text = " ".join(validation)
    if not re.fullmatch(r"0?\.[0-9]+", text):
        raise InputError(
            f"cannot split the stacks, since --validation is '{text}', expected a share between 0 and 1 "
            "(0.2), stack numbers (3 7), a polygon file, a folder that preprocess.py wrote, none or all",
            "Type --validation 0.2, or check the path of the file or folder.",
        )
    return float(text)


def _named_stacks(
    validation: Sequence[str], spots: Sequence[Spot], counts: np.ndarray, grounds: Sequence[Ground]
) -> list[int] | None:
    """Return the numbers of the validation stacks that the user names or draws; None for a (valid) share."""
    if list(validation) == ["none"]:
        return []
    usable = [int(i) for i in np.flatnonzero(counts.sum(axis=1))]
    if _is_all(validation):
        return usable
    if file := validation_file(validation):
        inside = _inside_folder if Path(file).name == MANIFEST else _inside_polygons
        return [i for i in inside(file, spots, grounds) if counts[i].sum()]
    if all(v.isdecimal() for v in validation):
        numbers = sorted({int(v) for v in validation})
        if wrong := sorted(set(numbers) - set(usable)):
            raise InputError(
                f"cannot validate on stack {wrong[0]}, since the stacks with labels are "
                f"{', '.join(map(str, usable[:50]))}",
                "They are numbered from 0, row by row from the upper left; a share is written 0.2.",
            )
        return numbers
    _share(validation)
    return None


def _inside_polygons(path: str, spots: Sequence[Spot], grounds: Sequence[Ground]) -> list[int]:
    """Return the places that polygons cover by half or more."""
    inside = []
    for chip, own in itertools.groupby(spots, lambda spot: spot.chip):
        regions = VectorCodes(path, grounds[chip].grid, presence=True)
        inside += [spot.number for spot in own if _share_inside(regions, spot.window) >= 0.5]
    if not inside:
        raise InputError(
            f"cannot split the stacks, since the polygons in '{path}' cover no stack by half or more",
            "Draw them larger, or type a smaller --size.",
        )
    return inside


def _inside_folder(path: str, spots: Sequence[Spot], grounds: Sequence[Ground]) -> list[int]:
    """Return the places that the validation stacks of another folder cover by half or more."""
    import shapely

    folder = Path(path).parent
    grids = [stack.grid for stack in load_manifest(folder).of("val") if stack.grid is not None]
    inside = []
    for chip, own in itertools.groupby(spots, lambda spot: spot.chip):
        grid = grounds[chip].grid
        ground = shapely.union_all([stack.outline_on(grid.crs) for stack in grids])
        for spot in own:
            place = grid.crop(spot.window).outline()
            if shapely.area(shapely.intersection(ground, place)) >= 0.5 * shapely.area(place):
                inside.append(spot.number)
    if not inside:
        has = (
            f"its {len(grids)} validation stacks cover no stack here by half or more"
            if grids
            else ("it has no validation stack whose place is known")
        )
        raise InputError(
            f"cannot validate where '{folder}' does, since {has}",
            f"Type --validation none, and train with: python train_model.py OUT --validation-data {folder}",
        )
    return inside


def _share_inside(regions: VectorCodes, window: Window) -> float:
    covered = sum(int((regions.read(part) != NO_CODE).sum()) for part in squares_of(window, 1024))
    return covered / (window.height * window.width)
