"""Rasters and labels to .npy stacks: surveyed, split, then written one after the other, or by many processes.

The mosaic is read twice, place by place: once to count the classes of every place, once to write the stacks
that were chosen. Both results are kept in ``progress.jsonl``, while they grow, until the manifest, which is
written last, makes them a finished whole; the same command continues from it. What is summed over places adds
up to the same in any order, and what is listed is put in order, so that every file has the same bytes
whoever made the places, and when.
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
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from lulc.config import ClusterConfig, InputConfig, PreprocessConfig
from lulc.core.channels import dates_of, name_of, split_prefix
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
    Ground,
    NoRoomError,
    Place,
    Spot,
    candidate_spots,
    may_split_patches,
    plan_patches,
    plan_places,
    splits_patches,
    validation_file,
)
from lulc.preprocessing.split import ENOUGH
from lulc.preprocessing.tiling import (
    CURRENT,
    PATHS,
    SCENES,
    Inputs,
    Site,
    anywhere,
    count_labels,
    cut,
    find_labels,
    in_place,
    paths_of,
    stamps_at,
    strips_of,
    survey,
    versions,
)
from lulc.rasters.masks import none_one_or_many
from lulc.rasters.sources import Stamp, moments_of, stamps_of

logger = logging.getLogger("lulc")

RULES = "reading.yaml"
"""The options for reading rasters that hold at other places too, for ``make_classifications.py --inputs``."""

CLASSES = "classes.csv"
"""The scheme that was used, as a table for ``--scheme`` of other scenes."""

_STACK_FILE = re.compile(r"(train|val)_(image|masks)_\d+\.npy")
_NAMES = "|".join(
    [_STACK_FILE.pattern, *map(re.escape, (MANIFEST, PROGRESS, CURRENT, SCENES, CLASSES, RULES))]
)
"""What lies in a folder of stacks, now and then."""

Item = TypeVar("Item", Spot, Place)
Result = TypeVar("Result")


class Crew(Protocol):
    """Makers of the stacks: this process, or the workers of a cluster."""

    def __call__(
        self, work: Callable[[Inputs, Item], Result], items: Sequence[Item], what: Callable[[Item], str]
    ) -> Iterator[Result]:
        """The results of `work`, each as soon as it is there; `what` names an item in messages."""


def make_stacks(config: PreprocessConfig) -> Manifest:
    """Cut a mosaic and its labels into training and validation stacks.

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
    _check_given(config)
    folder = Path(config.out)
    listed = find_chips(config)
    stamps = _stamps(config, listed)
    own = OwnFolder(folder, "stacks", _NAMES, "stacks")
    with Chips(listed) as chips, _locked(own):
        inputs = chips.first
        parameters = _parameters(config, inputs)
        moments = [{"changed": m} for m in moments_of(stamps)]
        # What an item or product says of its numbers lies in none of the files that are hashed.
        key = _key_of([*chips.sources, *moments, *chips.found, inputs.labels.legend.to_json()], parameters)
        # Of workers of a killed run, some may still be at work for it.
        for name in (CURRENT, SCENES):
            own.remove(name)
        remove_leftovers(folder)
        replacing = config.overwrite and (folder / MANIFEST).exists()
        if not replacing:
            _clear(own, config)
            if (folder / MANIFEST).exists():
                return _finished(own, key)
        with _open_crew(config, chips, own, key) as crew:
            grounds = chips.grounds()
            progress = _surveyed(crew, config, chips, own, key, replacing=replacing)
            places, split = _plan(crew, config, progress.counts, grounds)
            _check_classes(config, chips, places)
            _check_room(folder, progress, places, len(inputs.stack.channels), replacing=replacing)
            if replacing:
                # What had to be refused was refused while the finished stacks were still there.
                own.remove(MANIFEST)
            _remove_stale(own, progress)
            missing = [place for place in places if place.name not in progress.stacks]
            for done in _shown(crew(cut, missing, lambda p: p.name), len(missing), "writing stacks"):
                progress.add(done)
        # What workers left that were killed meanwhile.
        remove_leftovers(folder)
        if _stamps(config, listed) != stamps:
            raise InputError(
                f"cannot finish '{folder}', since an input was changed while it was read",
                "Run the same command again when the inputs are complete.",
            )
        manifest = _manifest(config, chips, progress, places, split, parameters)
        if not write_scheme(inputs.labels.scheme, folder / CLASSES):
            logger.warning(
                "'%s' is left as it is, since it holds other classes than the stacks; theirs are in '%s'",
                folder / CLASSES, MANIFEST,
            )  # fmt: skip
        write_rules(config, folder / RULES)
        manifest.write()
        own.remove(PROGRESS)
        return manifest


def write_rules(config: PreprocessConfig, path: Path) -> None:
    """Write the options for reading rasters that were given, without the files and bounds of this place.

    Of further rasters the names of their layers hold, which stand before the files.
    """
    place = {"fill", "like", "mask", "aoi", "bounds"}
    named = any(split_prefix(text)[0] not in ("", *dates_of(config.bands)) for text in config.layers)
    given = {
        field.name: value
        for field in dataclasses.fields(InputConfig)
        if field.name not in ({*place} if named else {*place, "layers"})
        and (value := getattr(config, field.name)) != field.default
    } | ({"layers": [*map(name_of, config.layers)]} if named else {})
    lines = [f"{name.replace('_', '-')}: {json.dumps(value)}\n" for name, value in given.items()]
    with write_atomically(path) as temporary:
        temporary.write_text(f"format_version: {format_version()}\n" + "".join(lines), encoding="utf-8")


@contextlib.contextmanager
def _locked(own: OwnFolder) -> Iterator[None]:
    """Take the folder over, which holds stacks of this toolkit or none, and lock it."""
    own.take(lambda: _lists_all(own.path))
    with Lock(own.mark, f"stacks into '{own.path}'"):
        yield


def _lists_all(folder: Path) -> bool:
    """True where the manifest of a folder names all stacks in it, and no other work lies there."""
    try:
        stacks = load_manifest(folder).stacks
    except InputError:
        return False
    listed = {path.name for file in stacks for path in (file.image, file.masks)}
    return {p.name for p in folder.iterdir() if re.fullmatch(_NAMES, p.name)} <= listed | {
        MANIFEST,
        CLASSES,
        RULES,
    }


@contextlib.contextmanager
def _open_crew(config: PreprocessConfig, chips: Chips, own: OwnFolder, key: str) -> Iterator[Crew]:
    """Open the makers that ``--dask`` asks for."""

    def here(work: Callable[[Inputs, Item], Result], items: Sequence[Item], what: Any) -> Iterator[Result]:
        return (work(chips.at(item.chip), item) for item in items)

    if config.dask is None:
        yield here
        return
    site = Site(anywhere(config), key, stamps_at(anywhere(config)), versions())
    current, listed = (Path(config.out) / name for name in (CURRENT, SCENES))
    with open_cluster(config) as cluster, contextlib.ExitStack() as kept:
        for name in (CURRENT, SCENES):
            kept.callback(own.remove, name)
        write_document(current, {"key": key})
        if chips.scenes:
            chips.scenes.write(listed)

        def away(
            work: Callable[[Inputs, Item], Result], items: Sequence[Item], what: Callable[[Item], str]
        ) -> Generator[Result, None, None]:
            return run_tasks(cluster, partial(in_place, work), items, site=site, what=what)

        yield away


def _warn_of_gap(config: PreprocessConfig) -> None:
    if config.gap < PreprocessConfig.gap and config.validation not in (("none",), ("all",)):
        logger.warning(
            "--gap is %d, less than %d, the receptive radius of the default network: training sees pixels of "
            "validation stacks, whose scores may then be too good",
            config.gap, PreprocessConfig.gap,
        )  # fmt: skip


def _check_given(config: PreprocessConfig) -> None:
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
    """Return the options that decide the stacks; paths by their last part only."""
    values = dataclasses.asdict(config)
    where = [field.name for field in dataclasses.fields(ClusterConfig)]
    for name in ("out", "overwrite", "restart", "allow_vrt", "allow_remote", *where):
        del values[name]
    for name in PATHS:
        value = values[name]
        many = isinstance(value, tuple)
        values[name] = [name_of(v) for v in value] if many else value and name_of(value)
    values["mask"] = none_one_or_many(values["mask"])
    if not config.scenes:
        del values["scenes"]
    channels = inputs.stack.channel_set
    values["channels"] = list(channels.names) if channels.is_plain else channels.to_json()
    # So that stacks of former versions keep their key.
    if channels.names == CHANNELS and channels.is_plain:
        del values["channels"]
    if not config.layers:
        del values["layers"]
    values["validation"] = [Path(v).name for v in config.validation]
    # Integers before texts.
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


def _clear(own: OwnFolder, config: PreprocessConfig) -> None:
    """Remove what the user allowed to be dropped, where no finished stacks are to be replaced."""
    folder = own.path
    if (folder / MANIFEST).exists():
        return
    if config.restart:
        own.remove(PROGRESS)
    if (folder / PROGRESS).exists():
        return
    stale = [p for p in folder.iterdir() if _STACK_FILE.fullmatch(p.name)]
    if stale and not (config.overwrite or config.restart):
        raise InputError(
            f"cannot write stacks into '{folder}', since it holds '{stale[0].name}' of another origin "
            "(there is no manifest)",
            "Give another --out, or type --overwrite to replace what is there.",
        )
    for path in stale:
        own.remove(path.name)


def _remove_stale(own: OwnFolder, progress: Progress) -> None:
    """Remove stacks that are damaged, or of no finished piece of this work."""
    kept = {path.name for file in progress.stacks.values() for path in (file.image, file.masks)}
    own.clear(lambda name: name in kept or not _STACK_FILE.fullmatch(name))


def _finished(own: OwnFolder, key: str) -> Manifest:
    folder = own.path
    own.remove(PROGRESS)
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


def _surveyed(
    crew: Crew, config: PreprocessConfig, chips: Chips, own: OwnFolder, key: str, *, replacing: bool
) -> Progress:
    """Return the journal once the classes of every place are counted; refuses unknown codes."""
    spots = candidate_spots([Ground(grid) for grid in chips.grids], config.size)
    labels = chips.first.labels
    progress = open_progress(
        own, key, len(spots), len(labels.legend), len(chips.first.stack.channels), replacing=replacing
    )
    missing = [spots[number] for number in progress.unsurveyed]
    if not missing:
        return progress
    codes: dict[int, Counter[int]] = {}
    squares = [
        Spot(0, square, chip)
        for chip, grid in enumerate(chips.grids)
        for square in squares_of(grid.extent, 2048)
    ]
    counted = _shown(crew(count_labels, squares, _at), len(squares), "checking labels")
    # A cluster counts in any order, of one mosaic alone.
    for square, found in zip(squares, counted, strict=True):
        codes[square.chip] = codes.get(square.chip, Counter()) + found
    for chip, counts in codes.items():
        chips.at(chip).labels.check(counts)
    for done in _shown(crew(survey, missing, _at), len(missing), "counting classes"):
        progress.add(done)
    return progress


def _plan(
    crew: Crew, config: PreprocessConfig, counts: np.ndarray, grounds: Sequence[Ground]
) -> tuple[list[Place], Split | None]:
    """Return the stacks to cut, and of sparse labels their split."""
    patches = splits_patches(counts, grounds, config)
    if patches and (planned := _plan_patches(crew, config, counts, grounds)):
        return planned
    try:
        places = plan_places(counts, grounds, config)
    except NoRoomError:
        # A small mosaic of many labels: too few stacks, and perhaps enough patches.
        again = not patches and may_split_patches(counts, config)
        if again and (planned := _plan_patches(crew, config, counts, grounds)):
            return planned
        raise
    _warn_of_gap(config)
    return places, None


def _plan_patches(
    crew: Crew, config: PreprocessConfig, counts: np.ndarray, grounds: Sequence[Ground]
) -> tuple[list[Place], Split] | None:
    """Return the stacks around sparse labels and their split; None where these can't be split."""
    spots = [s for s in candidate_spots(grounds, config.size) if counts[s.number].sum()]
    parts = list(_shown(crew(find_labels, spots, _at), len(spots), "finding labels"))
    chip_of = {spot.number: spot.chip for spot in spots}
    found: list[list[LabelledPixels]] = [[] for _ in grounds]
    # A cluster gives them in any order.
    for part in sorted((p for p in parts if len(p)), key=lambda part: int(part.places[0])):
        found[chip_of[int(part.places[0])]].append(part)
    pixels = [LabelledPixels.concatenate(own) for own in found]
    return plan_patches(pixels, grounds, counts.shape[1], config) if any(map(len, pixels)) else None


def _at(spot: Spot) -> str:
    return f"the place at row {spot.window.row}, column {spot.window.col}"


def _check_room(
    folder: Path, progress: Progress, places: Sequence[Place], channels: int, *, replacing: bool
) -> None:
    """Refuse stacks that the disk can't hold, counting what the replaced ones free."""
    pixels = sum(p.window.height * p.window.width for p in places if p.name not in progress.stacks)
    stale = [p for p in folder.iterdir() if _STACK_FILE.fullmatch(p.name)] if replacing else []
    needed = pixels * (4 * channels + 1) + 2**20
    check_disk(folder, needed - sum(p.stat().st_size for p in stale), "the stacks")


def _manifest(
    config: PreprocessConfig, chips: Chips, progress: Progress, places: Sequence[Place],
    split: Split | None, parameters: dict[str, Any],
) -> Manifest:  # fmt: skip
    stack, labels = chips.first.stack, chips.first.labels
    sources = {json.dumps(source, sort_keys=True): source for source in chips.sources}
    # In the order of the plan, under the folder's name here, whoever wrote them.
    stacks = tuple(_in_folder(progress.stacks[place.name], config) for place in places)
    labelled = _labelled(progress.counts, stacks, split)
    statistics = progress.moments.statistics
    if not any(file.split == "train" for file in stacks):
        # Nothing here trains: these say what the imagery is like, and no training takes them.
        statistics = functools.reduce(Statistics.merge, [s.statistics for s in stacks if s.statistics])
    manifest = Manifest(
        folder=Path(config.out),
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


def _labelled(counts: np.ndarray, stacks: Sequence[StackFile], split: Split | None) -> dict[str, Any]:
    """Return how many labelled valid pixels there are, which of them are used, and what the others lie in."""
    used = {name: sum(sum(s.class_counts) for s in stacks if s.split == name) for name in ("train", "val")}
    given = int(counts.sum())
    in_stacks = int(counts[sorted({s.number for s in stacks if s.number is not None})].sum())
    found = {
        "given": given,
        "training": used["train"],
        "validation": used["val"],
        "not_cut": given - in_stacks,
        "hidden": in_stacks - used["train"] - used["val"],
    }
    if split is None:
        return found
    groups = {"training": int((~split.validates).sum()), "validation": int(split.validates.sum())}
    return found | {"groups": groups, "distance": split.distance}


def _in_folder(file: StackFile, config: PreprocessConfig) -> StackFile:
    folder = Path(config.out)
    return dataclasses.replace(file, image=folder / file.image.name, masks=folder / file.masks.name)


def _check_classes(config: PreprocessConfig, chips: Chips, places: Sequence[Place]) -> None:
    """Refuse training stacks of fewer than two classes, reading no more of them than shows two."""
    if all(place.split != "train" for place in places):
        return
    present: set[int] = set()
    for place in places:
        if place.split != "train":
            continue
        for _, classes in strips_of(chips.at(place.chip), place):
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
                # The table shows classes of the scheme that no label names.
                continue
            if count < (1 if sparse else ENOUGH) and manifest.of("train" if split == "training" else "val"):
                logger.warning(
                    "class %d %s has %s in %s: %d px",
                    land_cover.number, land_cover.name, "next to nothing" if count else "nothing", split,
                    count,
                )  # fmt: skip


def _shown(results: Iterator[Result], total: int, what: str) -> Iterator[Result]:
    """The results, with progress on stderr."""
    shown = tqdm(results, total=total, desc=what, unit="place", disable=not logger.isEnabledFor(logging.INFO))
    yield from shown
