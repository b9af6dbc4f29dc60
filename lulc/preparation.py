"""Rasters and labels to .npy stacks: surveyed, split, then written one after the other.

The mosaic is read twice, in windows: once to count the classes of every place, once to write the
stacks that were chosen. Both results are kept in ``progress.json``, while they grow, until the manifest,
which is written last, makes them a finished whole; the same command continues from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
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

SURVEY_SECONDS = 10.0
"""Time after which the survey is written down again."""

_STACK_FILE = re.compile(r"(train|val)_(image|masks)_\d+\.npy")

_COUNTED = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
_PROGRESS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "seal", "key", "counts", "coverage", "stacks"],
    "properties": {
        "key": {"type": "string"},
        "counts": {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
        "coverage": {
            "type": "object",
            "required": ["pixels", "valid", "patched", "missing"],
            "additionalProperties": False,
            "properties": {
                "pixels": {"type": "integer", "minimum": 0},
                "valid": {"type": "integer", "minimum": 0},
                "patched": _COUNTED,
                "missing": _COUNTED,
            },
        },
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
    """What an interrupted run has finished.

    Parameters
    ----------
    key
        sha256 of inputs and parameters.
    counts
        Labelled valid pixels of each class, for each place surveyed so far, in the order of the places.
    coverage
        Of the pixels read for it.
    stacks
        Those written.
    """

    key: str
    counts: list[list[int]] = dataclasses.field(default_factory=list)
    coverage: Coverage = dataclasses.field(default_factory=Coverage)
    stacks: list[StackFile] = dataclasses.field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``progress.json``, whole or not at all."""
        data = {
            "format_version": FORMAT_VERSION,
            "key": self.key,
            "counts": self.counts,
            "coverage": dataclasses.asdict(self.coverage),
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
        remove_partial(folder)
        replacing = config.overwrite and (folder / MANIFEST).exists()
        if not replacing:
            _clear(folder, config)
            if (folder / MANIFEST).exists():
                return _finished(folder, key)
        progress = _progress(folder, key, replacing=replacing)
        places = _planned(folder, progress, stack, labels, config)
        _check_room(folder, progress, places, replacing=replacing)
        if replacing:
            # What had to be refused was refused while the finished stacks were still there.
            _clear(folder, config)
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
    """Remove what the user allowed to be dropped."""
    if config.overwrite and (folder / MANIFEST).exists():
        # In this order a kill leaves the finished whole, or stacks that the same command removes.
        (folder / PROGRESS).unlink(missing_ok=True)
        (folder / MANIFEST).unlink()
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
    (folder / PROGRESS).unlink(missing_ok=True)
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


def _progress(folder: Path, key: str, *, replacing: bool) -> Progress:
    """What can be kept of an interrupted run; of one that was to replace finished stacks, its survey."""
    if not (folder / PROGRESS).exists():
        return Progress(key)
    try:
        data = read_sealed(folder / PROGRESS, _PROGRESS_SCHEMA, "record of progress")
    except InputError as error:
        logger.warning("starting anew: %s", error.problem)
        return Progress(key)
    if data["key"] != key and (replacing or not data["stacks"]):
        return Progress(key)
    if data["key"] != key:
        raise InputError(
            f"cannot continue in '{folder}', since it holds partial work of other inputs or parameters",
            "Give another --out, or type --restart to drop the partial work.",
        )
    progress = Progress(key, data["counts"], Coverage(**data["coverage"]))
    if replacing:
        return progress
    for entry in data["stacks"]:
        stack = StackFile.from_json(entry, folder)
        paths = (stack.image, stack.masks)
        if all(p.is_file() and sha256_of(p) == s for p, s in zip(paths, stack.sha256, strict=True)):
            progress.stacks.append(stack)
    logger.info("continuing: %d stacks are there already", len(progress.stacks))
    return progress


def _planned(
    folder: Path, progress: Progress, stack: Stack, labels: Labels, config: PreprocessConfig
) -> list[Place]:
    """The stacks to write, once the mosaic is surveyed."""
    _survey(folder, progress, stack, labels, config.size)
    places = _plan(np.array(progress.counts), stack, config)
    _check_classes(folder, places, stack, labels, config.border_ignore)
    return places


def _survey(folder: Path, progress: Progress, stack: Stack, labels: Labels, size: int) -> None:
    """Count the labelled valid pixels of each class in every place, and refuse unknown codes."""
    windows = candidate_windows(stack.grid.height, stack.grid.width, size)
    if len(progress.counts) == len(windows):
        return
    labels.check()
    lost = 1 - sum(w.height * w.width for w in windows) / (stack.grid.height * stack.grid.width)
    if lost > 0:
        logger.info("%.1f %% of the mosaic are strips too narrow for a stack", 100 * lost)
    written = time.monotonic()
    for window in _shown(windows[len(progress.counts) :], "counting classes"):
        counts = np.zeros(256, np.int64)
        for part in squares_of(window, 1024):
            classes = labels.read(part)
            if (classes != IGNORE).any():
                classes[~_valid(stack.read(part, progress.coverage))] = IGNORE
                counts += np.bincount(classes.ravel(), minlength=256)
        progress.counts.append([int(n) for n in counts[1 : len(labels.legend) + 1]])
        if time.monotonic() - written >= SURVEY_SECONDS:
            progress.write(folder)
            written = time.monotonic()


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


def _missing(progress: Progress, places: Sequence[Place]) -> list[Place]:
    done = {s.name for s in progress.stacks}
    return [p for p in places if p.name not in done]


def _check_room(folder: Path, progress: Progress, places: Sequence[Place], *, replacing: bool) -> None:
    """Refuse stacks that the disk can't hold, counting what the replaced ones free."""
    pixels = sum(p.window.height * p.window.width for p in _missing(progress, places))
    stale = [p for p in folder.iterdir() if _STACK_FILE.fullmatch(p.name)] if replacing else []
    needed = pixels * (4 * len(CHANNELS) + 1) + 2**20
    check_disk(folder, needed - sum(p.stat().st_size for p in stale), "the stacks")


def _write_stacks(
    folder: Path, progress: Progress, places: Sequence[Place], stack: Stack, labels: Labels, border: int
) -> None:
    for place in _shown(_missing(progress, places), "writing stacks"):
        progress.stacks.append(_write_stack(folder, place, stack, labels, border))
        progress.write(folder)


def _write_stack(folder: Path, place: Place, stack: Stack, labels: Labels, border: int) -> StackFile:
    """Write image and masks of one place, strip by strip."""
    window = place.window
    index = place.name.rpartition("_")[2]
    paths = [folder / f"{place.split}_{kind}_{index}.npy" for kind in ("image", "masks")]
    counts = np.zeros(256, np.int64)
    statistics = Statistics((0.0,) * len(CHANNELS), (0.0,) * len(CHANNELS))
    with write_atomically(paths[0]) as first, write_atomically(paths[1]) as second:
        with (
            NpyWriter(first, np.dtype(np.float32), (*window.shape, len(CHANNELS))) as images,
            NpyWriter(second, np.dtype(np.uint8), window.shape) as masks,
        ):
            for image, classes in _strips(place, stack, labels, border):
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


def _strips(
    place: Place, stack: Stack, labels: Labels, border: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image float32 (y, x, band) and masks uint8 (y, x) of a place, strip by strip from above."""
    window = place.window
    rows = max(1, STRIP // window.width)
    for row in range(0, window.height, rows):
        strip = Window(window.row + row, window.col, rows, window.width).intersect(window)
        image = stack.read(strip)
        classes = _masked_labels(labels, strip, border)
        classes[~_valid(image)] = IGNORE
        for hidden in near_windows(strip.relative_to(window), place.hidden, 0):
            classes[hidden.slices] = IGNORE
        yield image, classes


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
        provenance={**stack.provenance, "coverage": progress.coverage.to_json()},
        key=progress.key,
    )
    _warn_of_rare_classes(manifest)
    return manifest


def _check_classes(folder: Path, places: Sequence[Place], stack: Stack, labels: Labels, border: int) -> None:
    """Refuse training stacks of fewer than two classes, reading no more of them than shows two."""
    present: set[int] = set()
    for place in places:
        if place.split != "train":
            continue
        for _, classes in _strips(place, stack, labels, border):
            present |= set(np.unique(classes).tolist()) - {IGNORE}
            if len(present) > 1:
                return
    names = [c.name for c in labels.legend.classes if c.number in present]
    has = f"only '{names[0]}'" if names else "no class at all"
    raise InputError(
        f"cannot train on the stacks in '{folder}', since their labels hold {has}, "
        "expected two classes at least",
        "Give a larger mosaic, a smaller --gap or --border-ignore, or another --scheme.",
    )


def _warn_of_rare_classes(manifest: Manifest) -> None:
    train, val = manifest.class_counts("train"), manifest.class_counts("val")
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
