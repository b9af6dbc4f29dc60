"""Rasters and labels to .npy stacks: surveyed, split, then written one after the other.

The mosaic is read twice, in windows: once to count the classes of every place, once to write the
stacks that were chosen. Both results are kept in ``progress.json`` until the manifest, which is written
last, makes them a finished whole; the same command continues from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

from lulc.arrays import NpyWriter
from lulc.config import PreprocessConfig
from lulc.labels import Labels, VectorCodes, near_borders, open_labels
from lulc.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    STACK_SCHEMA,
    Manifest,
    StackFile,
    channel_units,
    read_sealed,
    write_sealed,
)
from lulc.nomenclature import NO_CODE, load_scheme
from lulc.schema import CHANNELS, IGNORE, InputError
from lulc.sources import Stamp, moments_of, stamps_of
from lulc.split import ENOUGH, candidate_windows, choose_stacks, choose_validation, near_windows
from lulc.stack import Coverage, Stack, open_stack
from lulc.statistics import Statistics
from lulc.storage import Lock, check_disk, remove_partial, sha256_of, write_atomically
from lulc.tiles import load_manifest
from lulc.windows import Window, squares_of

logger = logging.getLogger("lulc")

PROGRESS = "progress.json"
LOCK = ".lock"

STRIP = 2**18
"""Pixels that are held in memory at once: 14 channels of them are 15 MB, in float64 29 MB."""

GDAL_CACHE = 192
"""MB of decoded blocks; GDAL's own default is a share of the machine's memory, however large that is."""

_STACK_FILE = re.compile(r"(train|val)_(image|masks)_\d+\.npy")

_PROGRESS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "seal", "key", "counts", "provenance", "stacks"],
    "properties": {
        "key": {"type": "string"},
        "counts": {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
        "provenance": {"type": "object"},
        "stacks": {"type": "array", "items": STACK_SCHEMA},
    },
}


@dataclass(frozen=True)
class Place:
    """A stack to be cut.

    Parameters
    ----------
    name, split, number, window
        As in `lulc.tiles.StackFile`.
    hidden
        Windows, in the stack, whose labels lie in the gap around a validation stack.
    """

    name: str
    split: str
    number: int
    window: Window
    hidden: tuple[Window, ...] = ()


@dataclass
class Progress:
    """What an interrupted run has finished: the survey and the stacks."""

    key: str
    counts: list[list[int]] = dataclasses.field(default_factory=list)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    stacks: list[StackFile] = dataclasses.field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``progress.json``, whole or not at all."""
        data = {
            "format_version": FORMAT_VERSION,
            "key": self.key,
            "counts": self.counts,
            "provenance": self.provenance,
            "stacks": [s.to_json() for s in self.stacks],
        }
        write_sealed(folder / PROGRESS, data)


def make_stacks(config: PreprocessConfig) -> Manifest:
    """Cut a mosaic and its labels into training and validation stacks.

    Parameters
    ----------
    config
        What the options of ``preprocess.py`` say.

    Returns
    -------
    Manifest
        Of the finished folder; of the one that is there already where it was made from the same inputs
        and parameters.

    Raises
    ------
    InputError
        If an input doesn't fit, no pixel is valid, only one class occurs, or the folder holds other
        results.
    """
    _check_numbers(config)
    folder = Path(config.out)
    scheme = load_scheme(config.scheme, config.codes)
    stamps = _stamps(config)
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE),
        open_stack(config.bands, config.indices, config) as stack,
        open_labels(
            config.labels, stack.grid, scheme, field=config.label_field, pine=config.pine,
            spruce=config.spruce, resample=config.resample, allow_vrt=config.allow_vrt,
            allow_remote=config.allow_remote,
        ) as labels,
        Lock(folder / LOCK, f"stacks into '{folder}'"),
    ):  # fmt: skip
        sources = [*stack.identity(), *labels.identity()]
        parameters = _parameters(config, labels)
        moments = [{"changed": m} for m in moments_of(stamps)]
        key = _key_of([*sources, *moments, labels.legend.to_json()], parameters)
        progress, places = Progress(key), []
        if config.overwrite and (folder / MANIFEST).exists():
            # What must be refused is refused while the finished stacks are still there.
            places = _planned(progress, stack, labels, config)
        _clear(folder, config)
        if (folder / MANIFEST).exists():
            (folder / PROGRESS).unlink(missing_ok=True)
            return _finished(folder, key)
        if not places:
            progress = _progress(folder, key)
            places = _planned(progress, stack, labels, config)
        progress.write(folder)
        _write_stacks(folder, progress, places, stack, labels, config.border_ignore)
        if _stamps(config) != stamps:
            raise InputError(
                f"cannot finish '{folder}', since an input was changed while it was read",
                "Run the same command again when the inputs are complete.",
            )
        manifest = _manifest(folder, progress, places, stack, labels, sources, parameters)
        manifest.write()
        (folder / PROGRESS).unlink(missing_ok=True)
        return manifest


def _check_numbers(config: PreprocessConfig) -> None:
    least = {"size": 1, "stacks": 0, "gap": 0, "border_ignore": 0}
    for name, lowest in least.items():
        value = getattr(config, name)
        if value < lowest:
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"cannot cut stacks, since {option} is {value}, expected at least {lowest}",
                f"Type {option} with a larger number.",
            )


_PATHS = ("bands", "indices", "fill", "labels", "like", "mask", "aoi", "pine", "spruce", "scheme")


def _parameters(config: PreprocessConfig, labels: Labels) -> dict[str, Any]:
    """What decides the stacks beside the content of the inputs; paths by their last part only."""
    values = dataclasses.asdict(config)
    for name in ("out", "overwrite", "restart", "allow_vrt", "allow_remote"):
        del values[name]
    for name in _PATHS:
        value = values[name]
        many = isinstance(value, tuple)
        values[name] = [Path(v).name for v in value] if many else value and Path(value).name
    values["validation"] = [Path(v).name for v in config.validation]
    values["classes"] = sorted(labels.scheme.classes.items())
    if polygons := _polygon_file(config.validation):
        values["validation_sha256"] = sha256_of(polygons)
    return dict(json.loads(json.dumps(values)))


def _key_of(sources: Sequence[dict[str, Any]], parameters: dict[str, Any]) -> str:
    text = json.dumps([FORMAT_VERSION, list(sources), parameters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(config: PreprocessConfig) -> list[Stamp]:
    paths: list[str] = []
    for name in _PATHS:
        value = getattr(config, name)
        paths += value if isinstance(value, tuple) else [value] if value else []
    return stamps_of(paths, allow_vrt=config.allow_vrt)


def _clear(folder: Path, config: PreprocessConfig) -> None:
    """Remove what an interrupted run left half-written, and what the user allowed to be dropped."""
    remove_partial(folder)
    if config.overwrite and (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink()
        (folder / PROGRESS).unlink(missing_ok=True)
    known = (folder / MANIFEST).exists() or (folder / PROGRESS).exists()
    if config.restart and not (folder / MANIFEST).exists() and known:
        (folder / PROGRESS).unlink()
    elif known:
        return
    stale = [p for p in folder.iterdir() if _STACK_FILE.fullmatch(p.name)]
    if stale and not (config.overwrite or config.restart):
        raise InputError(
            f"cannot write stacks into '{folder}', since it holds '{stale[0].name}' of another origin "
            "(there is no manifest)",
            "Give another --out, or type --overwrite to replace what is there.",
        )
    for path in stale:
        path.unlink()


def _finished(folder: Path, key: str) -> Manifest:
    manifest = load_manifest(folder)
    if manifest.key != key:
        raise InputError(
            f"cannot write stacks into '{folder}', since it holds finished stacks of other inputs "
            "or parameters",
            "Give another --out, or type --overwrite to replace them.",
        )
    manifest.verify()
    logger.info("'%s' is finished already, of the same inputs and parameters", folder)
    return manifest


def _progress(folder: Path, key: str) -> Progress:
    """What can be kept of an interrupted run."""
    if not (folder / PROGRESS).exists():
        return Progress(key)
    try:
        data = read_sealed(folder / PROGRESS, _PROGRESS_SCHEMA, "record of progress")
    except InputError as error:
        logger.warning("starting anew: %s", error.problem)
        return Progress(key)
    if data["key"] != key:
        raise InputError(
            f"cannot continue in '{folder}', since it holds partial work of other inputs or parameters",
            "Give another --out, or type --restart to drop the partial work.",
        )
    progress = Progress(key, data["counts"], data["provenance"])
    for entry in data["stacks"]:
        stack = StackFile.from_json(entry, folder)
        paths = (stack.image, stack.masks)
        if all(p.is_file() and sha256_of(p) == s for p, s in zip(paths, stack.sha256, strict=True)):
            progress.stacks.append(stack)
    logger.info("continuing: %d stacks are there already", len(progress.stacks))
    return progress


def _planned(progress: Progress, stack: Stack, labels: Labels, config: PreprocessConfig) -> list[Place]:
    """The stacks to write, after a survey where there was none."""
    if not progress.counts:
        _survey(progress, stack, labels, config.size)
    return _plan(np.array(progress.counts), stack, config)


def _survey(progress: Progress, stack: Stack, labels: Labels, size: int) -> None:
    """Count the labelled valid pixels of each class in every place, and refuse unknown codes."""
    labels.check()
    coverage = Coverage()
    windows = candidate_windows(stack.grid.height, stack.grid.width, size)
    lost = 1 - sum(w.height * w.width for w in windows) / (stack.grid.height * stack.grid.width)
    if lost > 0:
        logger.info("%.1f %% of the mosaic are strips too narrow for a stack", 100 * lost)
    for window in _shown(windows, "counting classes"):
        counts = np.zeros(256, np.int64)
        for part in squares_of(window, 1024):
            classes = labels.read(part)
            if (classes != IGNORE).any():
                classes[~_valid(stack.read(part, coverage))] = IGNORE
                counts += np.bincount(classes.ravel(), minlength=256)
        progress.counts.append([int(n) for n in counts[1 : len(labels.legend) + 1]])
    progress.provenance = {**stack.provenance, "coverage": coverage.to_json()}


def _plan(counts: np.ndarray, stack: Stack, config: PreprocessConfig) -> list[Place]:
    """The stacks to write, training first, each split in the order of the regular grid."""
    if not counts.sum():
        raise InputError(
            f"cannot cut stacks, since no valid pixel of '{config.bands[0]}' has a label in "
            f"'{config.labels}'",
            "Check in QGIS that bands and labels overlap, and --mask, --bounds, --aoi and --fill.",
        )
    windows = candidate_windows(stack.grid.height, stack.grid.width, config.size)
    rng = np.random.default_rng(config.seed)
    named = _named_stacks(config.validation, windows, counts, stack)
    if named and 0 < config.stacks <= len(named):
        raise InputError(
            f"cannot cut {config.stacks} stacks, since --validation takes {len(named)} of them, "
            "expected some for training as well",
            f"--stacks must exceed the number of validation stacks: type --stacks {len(named) + 1} or more.",
        )
    chosen = choose_stacks(counts, config.stacks, rng, named or ())
    if config.stacks > len(chosen):
        logger.warning(
            "%d stacks are cut instead of %d, since no more places hold labels; a smaller --size gives more",
            len(chosen), config.stacks,
        )  # fmt: skip
    if named is None:
        fraction = _fraction(config.validation)
        if fraction > 0 and len(chosen) < 2:
            raise _no_room(config, windows[chosen[0]])
        validation = {chosen[i] for i in choose_validation(counts[chosen], fraction)}
    else:
        validation = set(named)
    val_windows = [windows[i] for i in sorted(validation)]
    train: list[Place] = []
    val: list[Place] = []
    for number in chosen:
        window = windows[number]
        if number in validation:
            val.append(Place(f"val_{len(val)}", "val", number, window))
            continue
        hidden = tuple(near_windows(window, val_windows, config.gap))
        if any(h.shape == window.shape for h in hidden):
            logger.warning("stack %d lies in the gap around validation and is left out", number)
            continue
        train.append(Place(f"train_{len(train)}", "train", number, window, hidden))
    if not train:
        raise _no_room(config, windows[chosen[0]])
    return train + val


def _no_room(config: PreprocessConfig, window: Window) -> InputError:
    smaller = max(64, max(window.shape) // 3)
    return InputError(
        f"cannot set validation aside, since no training stack is left beside it with --size {config.size} "
        f"and --gap {config.gap}",
        f"Type a smaller --size, for example --size {smaller} --gap {min(config.gap, smaller // 4)}, or "
        "--validation 0.0 to validate on other data.",
    )


def _polygon_file(validation: Sequence[str]) -> str | None:
    """The polygon file that ``--validation`` names, None for numbers."""
    if len(validation) == 1 and Path(validation[0]).is_file():
        return validation[0]
    return None


def _fraction(validation: Sequence[str]) -> float:
    text = " ".join(validation)
    if not re.fullmatch(r"0?\.[0-9]+", text):
        raise InputError(
            f"cannot split the stacks, since --validation is '{text}', expected a fraction (0.2), "
            "stack numbers (3 7) or a polygon file",
            "Type --validation 0.2, or check the path of the file.",
        )
    return float(text)


def _named_stacks(
    validation: Sequence[str], windows: Sequence[Window], counts: np.ndarray, stack: Stack
) -> list[int] | None:
    """Numbers of the validation stacks that the user names or draws; None for a (valid) fraction."""
    if polygons := _polygon_file(validation):
        regions = VectorCodes(polygons, stack.grid, presence=True)
        shares = [_share_inside(regions, window) for window in windows]
        inside = [i for i, share in enumerate(shares) if share >= 0.5 and counts[i].sum()]
        if not inside:
            raise InputError(
                f"cannot split the stacks, since the polygons in '{polygons}' cover no stack by half or more",
                "Draw them larger, or type a smaller --size.",
            )
        return inside
    if all(v.isdecimal() for v in validation):
        numbers = sorted({int(v) for v in validation})
        usable = [i for i in range(len(windows)) if counts[i].sum()]
        if wrong := [n for n in numbers if n not in usable]:
            raise InputError(
                f"cannot validate on stack {wrong[0]}, since the stacks with labels are "
                f"{', '.join(map(str, usable[:50]))}",
                "They are numbered from 0, row by row from the upper left.",
            )
        return numbers
    _fraction(validation)
    return None


def _share_inside(regions: VectorCodes, window: Window) -> float:
    covered = sum(int((regions.read(part) != NO_CODE).sum()) for part in squares_of(window, 1024))
    return covered / (window.height * window.width)


def _write_stacks(
    folder: Path, progress: Progress, places: Sequence[Place], stack: Stack, labels: Labels, border: int
) -> None:
    done = {s.name for s in progress.stacks}
    missing = [p for p in places if p.name not in done]
    pixels = sum(p.window.height * p.window.width for p in missing)
    check_disk(folder, pixels * (4 * len(CHANNELS) + 1) + 2**20, "the stacks")
    for place in _shown(missing, "writing stacks"):
        progress.stacks.append(_write_stack(folder, place, stack, labels, border))
        progress.write(folder)


def _write_stack(folder: Path, place: Place, stack: Stack, labels: Labels, border: int) -> StackFile:
    """Write image and masks of one place, strip by strip."""
    window = place.window
    index = place.name.rpartition("_")[2]
    paths = [folder / f"{place.split}_{kind}_{index}.npy" for kind in ("image", "masks")]
    counts = np.zeros(256, np.int64)
    statistics = Statistics((0.0,) * len(CHANNELS), (0.0,) * len(CHANNELS))
    rows = max(1, STRIP // window.width)
    with write_atomically(paths[0]) as first, write_atomically(paths[1]) as second:
        with (
            NpyWriter(first, np.dtype(np.float32), (*window.shape, len(CHANNELS))) as images,
            NpyWriter(second, np.dtype(np.uint8), window.shape) as masks,
        ):
            for row in range(0, window.height, rows):
                strip = Window(window.row + row, window.col, rows, window.width).intersect(window)
                image = stack.read(strip)
                classes = _masked_labels(labels, strip, border)
                classes[~_valid(image)] = IGNORE
                for hidden in near_windows(strip.relative_to(window), place.hidden, 0):
                    classes[hidden.slices] = IGNORE
                images.write(image)
                masks.write(classes)
                counts += np.bincount(classes.ravel(), minlength=256)
                statistics = statistics.merge(Statistics.of(image))
        sha256 = (sha256_of(first), sha256_of(second))
    return StackFile(
        name=place.name,
        split=place.split,
        image=paths[0],
        masks=paths[1],
        shape=window.shape,
        class_counts=tuple(int(n) for n in counts[1 : len(labels.legend) + 1]),
        number=place.number,
        grid=stack.grid.crop(window),
        window=window,
        statistics=statistics,
        sha256=sha256,
    )


def _masked_labels(labels: Labels, window: Window, border: int) -> np.ndarray:
    """Class numbers of a window, 255 within `border` pixels of another class: uint8 (y, x)."""
    if not border:
        return labels.read(window)
    grown = Window(
        window.row - border, window.col - border, window.height + 2 * border, window.width + 2 * border
    ).intersect(labels.grid.extent)
    classes = labels.read(grown)
    classes[near_borders(classes, border)] = IGNORE
    return classes[window.relative_to(grown).slices].copy()


def _manifest(
    folder: Path,
    progress: Progress,
    places: Sequence[Place],
    stack: Stack,
    labels: Labels,
    sources: Sequence[dict[str, Any]],
    parameters: dict[str, Any],
) -> Manifest:
    by_name = {s.name: s for s in progress.stacks}
    stacks = tuple(by_name[p.name] for p in places)
    statistics = Statistics((0.0,) * len(CHANNELS), (0.0,) * len(CHANNELS))
    for file in stacks:
        if file.split == "train" and file.statistics:
            statistics = statistics.merge(file.statistics)
    manifest = Manifest(
        folder=folder,
        channels=tuple(
            {"name": name, "unit": unit, "coding": stack.coding.get(name, "read")}
            for name, unit in channel_units().items()
        ),
        scheme=labels.scheme.name,
        legend=labels.legend,
        stacks=stacks,
        statistics=statistics,
        sources=tuple(sources),
        parameters=parameters,
        provenance=progress.provenance,
        key=progress.key,
    )
    _check_classes(manifest)
    return manifest


def _check_classes(manifest: Manifest) -> None:
    train, val = manifest.class_counts("train"), manifest.class_counts("val")
    present = [c.name for c, n in zip(manifest.legend.classes, train, strict=True) if n]
    if len(present) < 2:
        has = f"only '{present[0]}'" if present else "no class at all"
        raise InputError(
            f"cannot train on the stacks in '{manifest.folder}', since their labels hold {has}, "
            "expected two classes at least",
            "Give a larger mosaic, a smaller --gap or --border-ignore, or another --scheme.",
        )
    for land_cover, in_train, in_val in zip(manifest.legend.classes, train, val, strict=True):
        for count, split in ((in_train, "training"), (in_val, "validation")):
            if count < ENOUGH and (split == "training" or manifest.of("val")):
                logger.warning(
                    "class %d %s has next to nothing in %s: %d px",
                    land_cover.number, land_cover.name, split, count,
                )  # fmt: skip


def _valid(image: np.ndarray) -> np.ndarray:
    """True where no channel is NaN: bool (y, x)."""
    return ~np.isnan(image).any(axis=-1)


def _shown(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with progress on stderr."""
    return tqdm(items, desc=what, unit="stack", disable=not logger.isEnabledFor(logging.INFO))
