"""Preparation of rasters and labels as .npy stacks: survey, split, tiling, manifest.

The mosaic is read twice, window by window: once to count the classes of every candidate, once to write the
chosen stacks. ``progress.jsonl`` records both, so that the same command continues an interrupted run; the
manifest is written last. Sums don't depend on the order of windows, and lists are sorted, so that every file
has the same bytes whichever process made which stack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from lulc.config import ClusterConfig, InputConfig, PreprocessConfig
from lulc.core.channels import change_paths, dates_of, name_of, split_prefix
from lulc.core.config_file import format_version
from lulc.core.documents import write_document
from lulc.core.removal import OwnFolder, remove_leftovers
from lulc.core.schema import CHANNELS, IGNORE, InputError
from lulc.core.statistics import Statistics
from lulc.core.storage import Lock, check_disk, sha256_of, write_atomically
from lulc.core.windows import squares_of
from lulc.datasets.loading import load_manifest
from lulc.datasets.manifest import FORMAT_VERSION, MANIFEST, Manifest, StackFile
from lulc.distributed.cluster import open_cluster, run_tasks
from lulc.labels.schemes import write_scheme
from lulc.preprocessing.chips import Chip, Chips, find_chips
from lulc.preprocessing.journal import PROGRESS, Progress, open_progress
from lulc.preprocessing.patches import LabelledPixels, Split
from lulc.preprocessing.plan import (
    Candidate,
    Ground,
    NoRoomError,
    PlannedStack,
    list_candidates,
    may_split_patches,
    plan_patches,
    plan_stacks,
    splits_patches,
    validation_file,
)  # fmt: skip
from lulc.preprocessing.split import ENOUGH
from lulc.preprocessing.tiling import (
    CURRENT,
    PATHS,
    SCENES,
    Inputs,
    Site,
    count_labels,
    cut,
    find_labels,
    paths_of,
    run_on_worker,
    stamps_at,
    strips_of,
    survey,
    versions,
    with_absolute_paths,
)  # fmt: skip
from lulc.rasters.masks import none_one_or_many
from lulc.rasters.sources import Stamp, moments_of, stamps_of

logger = logging.getLogger("lulc")

RULES = "reading.yaml"
"""Options for reading rasters that hold for other regions too, for ``make_classifications.py --inputs``."""

CLASSES = "classes.csv"
"""The scheme as a table, for ``--scheme`` of other scenes."""

_STACK_FILE = re.compile(r"(train|val)_(image|masks)_\d+\.npy")
_NAMES = "|".join(
    [_STACK_FILE.pattern, *map(re.escape, (MANIFEST, PROGRESS, CURRENT, SCENES, CLASSES, RULES))]
)
"""Pattern of the files that a folder of stacks may hold."""

Result = TypeVar("Result")

Task = Callable[[Inputs, Any], Result]
"""Open inputs, and a candidate or planned stack, to a result."""

Executor = Callable[[Task[Any], Sequence[Any], Callable[[Any], str]], Iterator[Any]]
"""Task, its items and their names in messages to the results, each as soon as it is there."""


def make_stacks(config: PreprocessConfig) -> Manifest:
    """Cut a mosaic and its labels into training and validation stacks.

    Returns
    -------
    Manifest
        Manifest of the finished folder, which may be there already from the same inputs and parameters.

    Raises
    ------
    InputError
        If an input doesn't fit, no pixel is valid, only one class occurs, or the folder holds other
        results.
    """
    _check_options(config)
    folder = Path(config.out)
    listed = find_chips(config)
    stamps = _stamps(config, listed)
    owned = OwnFolder(folder, "stacks", _NAMES, "stacks")
    with Chips(listed) as chips, _locked(owned):
        inputs = chips.first
        parameters = _parameters(config, inputs)
        moments = [{"changed": m} for m in moments_of(stamps)]
        # Scale and offset in STAC items and products lie in none of the files that are hashed.
        key = _key_of(
            [*chips.sources, *moments, *chips.descriptions, inputs.labels.legend.to_json()], parameters
        )
        # Workers of a killed run stop when these files are gone.
        for name in (CURRENT, SCENES):
            owned.remove(name)
        remove_leftovers(folder)
        replacing = config.overwrite and (folder / MANIFEST).exists()
        if not replacing:
            _clear(owned, config)
            if (folder / MANIFEST).exists():
                return _finished(owned, key)
        with _open_executor(config, chips, owned, key) as execute:
            grounds = chips.grounds()
            progress = _survey_all(execute, config, chips, owned, key, replacing=replacing)
            planned, split = _plan(execute, config, progress.counts, grounds)
            _check_classes(config, chips, planned)
            _check_room(folder, progress, planned, len(inputs.stack.channels), replacing=replacing)
            if replacing:
                # All checks have passed: from here on the finished stacks are replaced.
                owned.remove(MANIFEST)
            _remove_stale(owned, progress)
            missing = [stack for stack in planned if stack.name not in progress.stacks]
            for done in _show(execute(cut, missing, lambda s: s.name), len(missing), "writing stacks"):
                progress.add(done)
        # Workers that were killed meanwhile left temporary files.
        remove_leftovers(folder)
        if _stamps(config, listed) != stamps:
            raise InputError(
                f"cannot finish '{folder}', since an input was changed while it was read",
                "Run the same command again when the inputs are complete.",
            )
        manifest = _manifest(config, chips, progress, planned, split, parameters)
        if not write_scheme(inputs.labels.scheme, folder / CLASSES):
            logger.warning(
                "'%s' is left as it is, since it holds other classes than the stacks; theirs are in '%s'",
                folder / CLASSES, MANIFEST,
            )  # fmt: skip
        write_rules(config, folder / RULES)
        manifest.write()
        owned.remove(PROGRESS)
        return manifest


def write_rules(config: PreprocessConfig, path: Path) -> None:
    """Write the options for reading rasters that differ from the defaults, without files and bounds.

    Further rasters are written as file names only, where layer names stand before them.
    """
    left_out = {"fill", "like", "mask", "aoi", "bounds"}
    named = any(split_prefix(text)[0] not in ("", *dates_of(config.bands)) for text in config.layers)
    options = {
        field.name: value
        for field in dataclasses.fields(InputConfig)
        if field.name not in (left_out if named else {*left_out, "layers"})
        and (value := getattr(config, field.name)) != field.default
    } | ({"layers": [*map(name_of, config.layers)]} if named else {})
    lines = [f"{name.replace('_', '-')}: {json.dumps(value)}\n" for name, value in options.items()]
    with write_atomically(path) as temporary:
        temporary.write_text(f"format_version: {format_version()}\n" + "".join(lines), encoding="utf-8")


@contextlib.contextmanager
def _locked(owned: OwnFolder) -> Iterator[None]:
    """Lock a folder that is empty or holds stacks of this toolkit."""
    owned.take(lambda: _lists_all(owned.path))
    with Lock(owned.mark, f"stacks into '{owned.path}'"):
        yield


def _lists_all(folder: Path) -> bool:
    """Return True if the manifest of a folder names all stacks in it, and no partial work lies there."""
    try:
        stacks = load_manifest(folder).stacks
    except InputError:
        return False
    listed = {path.name for file in stacks for path in (file.image, file.masks)} | {MANIFEST, CLASSES, RULES}
    return {p.name for p in folder.iterdir() if re.fullmatch(_NAMES, p.name)} <= listed


@contextlib.contextmanager
def _open_executor(config: PreprocessConfig, chips: Chips, owned: OwnFolder, key: str) -> Iterator[Executor]:
    """Open the executor that ``--dask`` asks for."""

    def run_here(task: Task[Result], items: Sequence[Any], what: Any) -> Iterator[Result]:
        return (task(chips.at(item.chip), item) for item in items)

    if config.dask is None:
        yield run_here
        return
    moved = with_absolute_paths(config)
    site = Site(moved, key, stamps_at(moved), versions())
    current, scenes = (Path(config.out) / name for name in (CURRENT, SCENES))
    with open_cluster(config) as cluster, contextlib.ExitStack() as cleanup:
        for name in (CURRENT, SCENES):
            cleanup.callback(owned.remove, name)
        write_document(current, {"key": key})
        if chips.scenes:
            chips.scenes.write(scenes)

        def run_on_cluster(
            task: Task[Result], items: Sequence[Any], what: Callable[[Any], str]
        ) -> Generator[Result]:
            return run_tasks(cluster, partial(run_on_worker, task), items, site=site, what=what)

        yield run_on_cluster


def _warn_of_gap(config: PreprocessConfig) -> None:
    if config.gap < PreprocessConfig.gap and config.validation not in (("none",), ("all",)):
        logger.warning(
            "--gap is %d, less than %d, the receptive radius of the default network: training sees pixels of "
            "validation stacks, whose scores may then be too good",
            config.gap, PreprocessConfig.gap,
        )  # fmt: skip


def _check_options(config: PreprocessConfig) -> None:
    if bool(config.bands) == bool(config.scenes) and (config.bands or not config.layers):
        given = "both are given" if config.bands else "neither is given"
        raise InputError(
            f"cannot tell what to cut, since of --bands and --scenes {given}, expected one of them",
            "Type --bands with the files of one mosaic, or --scenes with many scenes; or --layers alone.",
        )
    if config.labels is None and not (config.bands and config.bands[0].lower().endswith(".csv")):
        raise InputError(
            "cannot cut stacks without labels, since --labels is not given",
            "Type --labels with a raster or vector file of classes.",
        )


def _parameters(config: PreprocessConfig, inputs: Inputs) -> dict[str, Any]:
    """Return the options that decide the stacks, files by name and without folders."""
    values = dataclasses.asdict(config)
    where = [field.name for field in dataclasses.fields(ClusterConfig)]
    for name in ("out", "overwrite", "restart", "allow_vrt", "allow_remote", *where):
        del values[name]
    values |= {name: change_paths(values[name], name_of) for name in PATHS}
    values["mask"] = none_one_or_many(values["mask"])
    if not config.scenes:
        del values["scenes"]
    channels = inputs.stack.channel_set
    values["channels"] = list(channels.names) if channels.is_plain else channels.to_json()
    # So that stacks of earlier versions keep their key.
    if channels.names == CHANNELS and channels.is_plain:
        del values["channels"]
    if not config.layers:
        del values["layers"]
    values["validation"] = [Path(v).name for v in config.validation]
    # Sorts integer codes before text codes.
    values["classes"] = sorted(inputs.labels.scheme.classes.items(), key=lambda c: (isinstance(c[0], str), c))
    if file := validation_file(config.validation):
        values["validation_sha256"] = sha256_of(file)
    return dict(json.loads(json.dumps(values)))


def _key_of(sources: Sequence[dict[str, Any]], parameters: dict[str, Any]) -> str:
    text = json.dumps([FORMAT_VERSION, list(sources), parameters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(config: PreprocessConfig, chips: Sequence[Chip]) -> list[Stamp]:
    paths = dict.fromkeys(path for chip in chips for path in paths_of(chip.config))
    return stamps_of(list(paths), allow_vrt=config.allow_vrt)


def _clear(owned: OwnFolder, config: PreprocessConfig) -> None:
    """Remove partial work where ``--restart`` or ``--overwrite`` allow it; keep finished stacks."""
    folder = owned.path
    if (folder / MANIFEST).exists():
        return
    if config.restart:
        owned.remove(PROGRESS)
    if (folder / PROGRESS).exists():
        return
    stale = [p for p in folder.iterdir() if _STACK_FILE.fullmatch(p.name)]
    if stale and not (config.overwrite or config.restart):
        raise InputError(
            f"cannot write stacks into '{folder}', since it holds '{stale[0].name}' without a manifest",
            "Give another --out, or type --overwrite to replace what is there.",
        )
    for path in stale:
        owned.remove(path.name)


def _remove_stale(owned: OwnFolder, progress: Progress) -> None:
    """Remove stacks that are damaged or of another run."""
    finished = {path.name for file in progress.stacks.values() for path in (file.image, file.masks)}
    owned.clear(lambda name: name in finished or not _STACK_FILE.fullmatch(name))


def _finished(owned: OwnFolder, key: str) -> Manifest:
    folder = owned.path
    owned.remove(PROGRESS)
    manifest = load_manifest(folder)
    if manifest.key != key:
        raise InputError(
            f"cannot write stacks into '{folder}', since it holds finished stacks of other inputs "
            "or parameters",
            "Give another --out, or type --overwrite to replace them.",
        )
    manifest.verify()
    logger.info("'%s' is finished already, from the same inputs and parameters", folder)
    return manifest


def _survey_all(
    execute: Executor, config: PreprocessConfig, chips: Chips, owned: OwnFolder, key: str, *, replacing: bool
) -> Progress:
    """Count the classes of every candidate and return the journal; refuse unknown codes."""
    candidates = list_candidates([Ground(grid) for grid in chips.grids], config.size)
    labels = chips.first.labels
    progress = open_progress(
        owned, key, len(candidates), len(labels.legend), len(chips.first.stack.channels), replacing=replacing
    )
    missing = [candidates[number] for number in progress.unsurveyed]
    if not missing:
        return progress
    codes: list[Counter[int]] = [Counter() for _ in chips.grids]
    squares = [
        Candidate(0, square, chip)
        for chip, grid in enumerate(chips.grids)
        for square in squares_of(grid.extent, 2048)
    ]
    counted = _show(execute(count_labels, squares, _name), len(squares), "checking labels")
    # A cluster returns results in any order, but has only one chip.
    for square, code_counts in zip(squares, counted, strict=True):
        codes[square.chip] += code_counts
    for chip, counts in enumerate(codes):
        chips.at(chip).labels.check(counts)
    for done in _show(execute(survey, missing, _name), len(missing), "counting classes"):
        progress.add(done)
    return progress


def _plan(
    execute: Executor, config: PreprocessConfig, counts: np.ndarray, grounds: Sequence[Ground]
) -> tuple[list[PlannedStack], Split | None]:
    """Return the stacks to cut, and for sparse labels their split."""
    patches = splits_patches(counts, grounds, config)
    if patches and (planned := _plan_patches(execute, config, counts, grounds)):
        return planned
    try:
        stacks = plan_stacks(counts, grounds, config)
    except NoRoomError:
        # A small mosaic with many labels has too few stacks, but perhaps enough patches.
        again = not patches and may_split_patches(counts, config)
        if again and (planned := _plan_patches(execute, config, counts, grounds)):
            return planned
        raise
    _warn_of_gap(config)
    return stacks, None


def _plan_patches(
    execute: Executor, config: PreprocessConfig, counts: np.ndarray, grounds: Sequence[Ground]
) -> tuple[list[PlannedStack], Split] | None:
    """Return the stacks around sparse labels and their split; None where these can't be split."""
    candidates = [c for c in list_candidates(grounds, config.size) if counts[c.number].sum()]
    results = _show(execute(find_labels, candidates, _name), len(candidates), "finding labels")
    chip_of = {candidate.number: candidate.chip for candidate in candidates}
    by_chip: list[list[LabelledPixels]] = [[] for _ in grounds]
    # A cluster returns results in any order.
    for pixels in sorted((p for p in results if len(p)), key=lambda p: int(p.places[0])):
        by_chip[chip_of[int(pixels.places[0])]].append(pixels)
    labelled = [LabelledPixels.concatenate(parts) for parts in by_chip]
    return plan_patches(labelled, grounds, counts.shape[1], config) if any(map(len, labelled)) else None


def _name(candidate: Candidate) -> str:
    return f"the window at row {candidate.window.row}, column {candidate.window.col}"


def _check_room(
    folder: Path, progress: Progress, planned: Sequence[PlannedStack], channels: int, *, replacing: bool
) -> None:
    """Refuse stacks that the disk can't hold, counting the space that replaced ones free."""
    pixels = sum(s.window.height * s.window.width for s in planned if s.name not in progress.stacks)
    stale = [p for p in folder.iterdir() if _STACK_FILE.fullmatch(p.name)] if replacing else []
    needed = pixels * (4 * channels + 1) + 2**20
    check_disk(folder, needed - sum(p.stat().st_size for p in stale), "the stacks")


def _manifest(
    config: PreprocessConfig, chips: Chips, progress: Progress, planned: Sequence[PlannedStack],
    split: Split | None, parameters: dict[str, Any],
) -> Manifest:  # fmt: skip
    stack, labels = chips.first.stack, chips.first.labels
    sources = {json.dumps(source, sort_keys=True): source for source in chips.sources}
    # In the order of the plan; workers may know the folder by another path.
    files = [progress.stacks[stack.name] for stack in planned]
    folder = Path(config.out)
    stacks = tuple(
        dataclasses.replace(file, image=folder / file.image.name, masks=folder / file.masks.name)
        for file in files
    )
    labelled = _label_use(progress.counts, stacks, split)
    statistics = progress.moments.statistics
    if not any(file.split == "train" for file in stacks):
        # Without training stacks the statistics only describe the imagery.
        statistics = functools.reduce(Statistics.merge, [s.statistics for s in stacks if s.statistics])
    manifest = Manifest(
        folder=folder,
        channels=tuple(
            {"name": one.name, "unit": one.unit, "coding": stack.coding.get(one.name, "read")}
            for one in stack.channel_set.channels
        ),
        scheme=labels.scheme.name,
        legend=labels.legend,
        stacks=stacks,
        statistics=statistics,
        sources=tuple(sources.values() if chips.are_many else chips.sources),
        parameters=parameters,
        provenance={**chips.provenance, "coverage": progress.coverage.to_json(), "labelled": labelled},
        key=progress.key,
        channel_set=stack.channel_set.recorded,
    )
    _warn_of_rare_classes(manifest, sparse=split is not None)
    return manifest


def _label_use(counts: np.ndarray, stacks: Sequence[StackFile], split: Split | None) -> dict[str, Any]:
    """Count the labelled valid pixels: given, used in training and validation, in no stack, or hidden."""
    used = {name: sum(sum(s.class_counts) for s in stacks if s.split == name) for name in ("train", "val")}
    given = int(counts.sum())
    in_stacks = int(counts[sorted({s.number for s in stacks if s.number is not None})].sum())
    pixels = {
        "given": given,
        "training": used["train"],
        "validation": used["val"],
        "not_cut": given - in_stacks,
        "hidden": in_stacks - used["train"] - used["val"],
    }
    if split is None:
        return pixels
    groups = {"training": int((~split.validates).sum()), "validation": int(split.validates.sum())}
    return pixels | {"groups": groups, "distance": split.distance}


def _check_classes(config: PreprocessConfig, chips: Chips, planned: Sequence[PlannedStack]) -> None:
    """Refuse training stacks with fewer than two classes; reading stops at the second class."""
    training = [stack for stack in planned if stack.split == "train"]
    if not training:
        return
    present: set[int] = set()
    for stack in training:
        for _, classes in strips_of(chips.at(stack.chip), stack):
            present |= set(np.unique(classes).tolist()) - {IGNORE}
            if len(present) > 1:
                return
    names = [c.name for c in chips.first.labels.legend.classes if c.number in present]
    has = f"only '{names[0]}'" if names else "no class at all"
    raise InputError(
        f"cannot train on the stacks in '{config.out}', since their labels hold {has}, "
        "expected two classes at least",
        "Give a larger mosaic, a smaller --gap or --border-ignore, or another --scheme.",
    )


def _warn_of_rare_classes(manifest: Manifest, *, sparse: bool) -> None:
    train, val = manifest.class_counts("train"), manifest.class_counts("val")
    for land_cover, in_train, in_val in zip(manifest.legend.classes, train, val, strict=True):
        for count, split in ((in_train, "training"), (in_val, "validation")):
            if sparse and not in_train + in_val:
                # The table of classes shows those without labels.
                continue
            if count < (1 if sparse else ENOUGH) and manifest.of("train" if split == "training" else "val"):
                logger.warning(
                    "class %d %s has %s in %s: %d px",
                    land_cover.number, land_cover.name, "almost nothing" if count else "nothing", split,
                    count,
                )  # fmt: skip


def _show(results: Iterator[Result], total: int, what: str) -> Iterator[Result]:
    """Yield results with a progress bar on stderr."""
    quiet = not logger.isEnabledFor(logging.INFO)
    yield from tqdm(results, total=total, desc=what, unit="window", disable=quiet)
