"""Dataset of the stacks of several folders, checked before any framework is loaded."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lulc.config import PreprocessConfig, TrainConfig
from lulc.core.channels import ChannelSet, set_of
from lulc.core.grid import GridSpec, pixel_on_ground
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.statistics import Statistics
from lulc.core.storage import sha256_of
from lulc.core.windows import Window
from lulc.datasets.arrays import Layers, Padded
from lulc.datasets.loading import find_overlaps, load_manifest
from lulc.datasets.manifest import MANIFEST, Manifest, StackFile, ground_of, open_tile
from lulc.rasters.sources import Stamp, stamps_of

logger = logging.getLogger("lulc")

ROWS_AT_ONCE = 256

GAP = PreprocessConfig.gap
"""Width in pixels of the gap around validation stacks without training labels, if no manifest has one."""


@dataclass(frozen=True)
class Tile:
    """Stack to cut crops from.

    Parameters
    ----------
    name
        Folder and name in its manifest, for messages.
    image
        float32 (y, x, band) in physical units, NaN = invalid.
    masks
        uint8 (y, x), class numbers 1..N, 255 = ignore.
    optional
        Numbers of the channels that may be missing in a valid pixel.
    """

    name: str
    image: Layers
    masks: Layers
    optional: tuple[int, ...] = ()

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.image.shape[:2])

    def valid(self, image: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return True for valid pixels of a crop (..., band)."""
        if not self.optional:
            return np.asarray(np.isfinite(image).all(axis=-1))
        required = np.isfinite(np.delete(image, self.optional, axis=-1)).all(axis=-1)
        return np.asarray(required & np.isfinite(image).any(axis=-1))

    def padded(self, side: int) -> Tile:
        """Pad this stack below and to the right with invalid pixels to sides of at least `side`."""
        if self.side >= side:
            return self
        height, width, bands = self.image.shape
        shape = (max(height, side), max(width, side))
        image = Padded(self.image, (*shape, bands), np.nan)
        return dataclasses.replace(self, image=image, masks=Padded(self.masks, shape, IGNORE))


@dataclass(frozen=True)
class Dataset:
    """Stacks that a network is trained and validated on.

    Parameters
    ----------
    training, validation
        Stacks with at least one labelled pixel.
    channels
        ``name``, ``unit`` and ``coding`` of each channel.
    statistics
        Statistics of the valid pixels of all training stacks.
    counts
        int64 (class,), labelled training pixels of class 1..N.
    inputs
        sha256 by folder in the order given, for the key of the run.
    provenance
        Folders, stacks and sources for the model card; JSON-ready.
    stamps
        Stamps of the files of all stacks, taken before reading.
    channel_set
        Definitions of the channels; None if their names define them.
    """

    training: tuple[Tile, ...]
    validation: tuple[Tile, ...]
    channels: tuple[dict[str, str], ...]
    legend: Legend
    statistics: Statistics
    counts: NDArray[np.int64]
    inputs: dict[str, str]
    provenance: list[dict[str, Any]]
    stamps: tuple[Stamp, ...] = ()
    channel_set: ChannelSet | None = None

    @property
    def described_channels(self) -> ChannelSet:
        """Definitions of the channels, by their names if none were recorded."""
        return self.channel_set or set_of([channel["name"] for channel in self.channels])

    @property
    def simulated(self) -> bool:
        """True if imagery of a folder was simulated."""
        return any(entry.get("simulated") for entry in self.provenance)

    def targets(self, single_class: str | None) -> NDArray[np.uint8]:
        """Return the network class of each value in the masks, see `class_targets`."""
        number = None if single_class is None else self.legend.names.index(single_class) + 1
        return class_targets(len(self.legend), number)

    def check_unchanged(self) -> None:
        """Raise InputError if a file of a stack changed since it was opened; training reads it to the end."""
        changed = set(stamps_of(stamp.path for stamp in self.stamps)) ^ set(self.stamps)
        if changed:
            raise InputError(
                f"cannot finish the training, since '{min(changed).path}' was changed while it was read, "
                "expected the same stacks to the end",
                "Give `--restart` when nothing writes to the stacks: the training so far used both versions.",
            )


def open_dataset(config: TrainConfig) -> Dataset:
    """Open the folders of ``config.data`` and check that a network can learn from them.

    Raises InputError if a folder is damaged, folders differ in channels or legend, or training labels of two
    classes or validation labels are missing.
    """
    return _assemble(_load(config), config)


def leave_one_out(config: TrainConfig) -> list[tuple[str, Dataset]]:
    """Return name and dataset of each fold: one group of training stacks validates, the others train.

    By ``config.cross_validate`` a group is stacks that overlap on the ground, a folder, or a scene. The
    validation stacks of the folders are not used. Training labels on the ground of the group, and in the gap
    around it, are ignored. The statistics are those of the training stacks, if the manifest has them.

    Raises InputError as `open_dataset`; or if there are fewer than two groups, or validation data are given.
    """
    if config.validation_data:
        raise InputError(
            "cannot take --validation-data with --cross-validate, which validates on the data it leaves out",
            "Leave one of them out.",
        )
    loaded = _load(config)
    manifests = loaded.manifests
    kind = config.cross_validate or "stacks"
    groups = {"stacks": _by_ground, "folders": _by_folder, "scenes": _by_scene}[kind](manifests)
    if len(groups) < 2:
        reason = f"its labelled training stacks are of one of the {kind}"
        if groups and kind == "stacks":
            reason = "its labelled training stacks all overlap on the ground"
        raise InputError(
            f"cannot cross-validate on {' '.join(config.data)}, since "
            f"{reason if groups else 'it has no training stack'}, expected two that lie apart",
            "Prepare more of them, choose another kind after --cross-validate, or train without it.",
        )
    folds = []
    for name, group in groups:
        left_out = {stack.image for stack in group}
        split = [_with_validation(manifest, left_out) for manifest in manifests]
        fold = _assemble(loaded._replace(manifests=split), config)
        folds.append((name, dataclasses.replace(fold, inputs=fold.inputs | {"left out": name})))
    return folds


class _Loaded(NamedTuple):
    """Opened folders: their manifests, the sha256 of each, and stamps of their files."""

    manifests: list[Manifest]
    identities: list[str]
    stamps: tuple[Stamp, ...]


def _load(config: TrainConfig) -> _Loaded:
    folders = [Path(folder) for folder in (*config.data, *config.validation_data)]
    if not config.data:
        raise InputError(
            "cannot train, since no folder with stacks is given, expected at least one",
            "Type python train_model.py DATA --out FOLDER with a folder that preprocess.py wrote, or without "
            "labels python train_model.py --pretrain MOSAIC --out FOLDER",
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(
            f"cannot train on {', '.join(map(str, folders))}, since a folder is named twice, expected each "
            "once",
            "Leave the second one out.",
        )
    manifests = [load_manifest(f, already_standardised=config.already_standardised) for f in folders]
    _check_agreement(manifests)
    files = [str(f) for m in manifests for s in m.stacks for f in (s.image, s.masks)]
    stamps = tuple(stamps_of(files))
    identities = [_identity_of(manifest) for manifest in manifests]
    if config.validation_data:
        count = len(config.data)
        manifests = [*map(_only_training, manifests[:count]), *map(_all_validation, manifests[count:])]
    return _Loaded(manifests, identities, stamps)


def _only_training(manifest: Manifest) -> Manifest:
    if manifest.of("val"):
        logger.warning(
            "the %d validation stacks of '%s' take no part, since --validation-data is given",
            len(manifest.of("val")), manifest.folder,
        )  # fmt: skip
    return dataclasses.replace(manifest, stacks=manifest.of("train"))


def _all_validation(manifest: Manifest) -> Manifest:
    """Return a manifest whose stacks all validate, with statistics of weight 0."""
    stacks = tuple(dataclasses.replace(stack, split="val") for stack in manifest.stacks)
    statistics = dataclasses.replace(manifest.statistics, count=0)
    return dataclasses.replace(manifest, stacks=stacks, statistics=statistics)


def _assemble(loaded: _Loaded, config: TrainConfig) -> Dataset:
    manifests, identities, stamps = loaded
    training, counts = _open_split(manifests, "train")
    validation, val_counts = _open_split(manifests, "val")
    legend = _merge_legends([manifest.legend for manifest in manifests])
    check_learnable(counts, val_counts, legend, config, " ".join(config.data))
    return Dataset(
        training=training,
        validation=validation,
        channels=manifests[0].channels,
        legend=legend,
        statistics=_merge_statistics(manifests),
        counts=counts,
        inputs={
            f"data {i}" if i <= len(config.data) else f"validation data {i - len(config.data)}": identity
            for i, identity in enumerate(identities, 1)
        },
        provenance=[_provenance_of(m, sha256) for m, sha256 in zip(manifests, identities, strict=True)],
        stamps=stamps,
        channel_set=manifests[0].channel_set,
    )


_Groups = list[tuple[str, list[StackFile]]]


def _labelled(manifest: Manifest) -> list[StackFile]:
    return [stack for stack in manifest.of("train") if any(stack.class_counts)]


def _by_ground(manifests: Sequence[Manifest]) -> _Groups:
    """Return name and stacks of each group that shares pixels on the ground."""
    groups = _groups([stack for manifest in manifests for stack in _labelled(manifest)])
    return [(" + ".join(f"{s.image.parent.name}/{s.name}" for s in group), group) for group in groups]


def _by_folder(manifests: Sequence[Manifest]) -> _Groups:
    """Return path and stacks of each folder."""
    return [(str(m.folder), _labelled(m)) for m in manifests if _labelled(m)]


def _by_scene(manifests: Sequence[Manifest]) -> _Groups:
    """Return names and stacks of each image; images that share a stack form one group."""
    groups: list[tuple[set[str], list[StackFile]]] = []
    for manifest in manifests:
        for stack in _labelled(manifest):
            scenes = _scenes_of(manifest, stack)
            joined = [group for group in groups if group[0] & scenes]
            groups = [group for group in groups if not group[0] & scenes]
            merged = (scenes.union(*(g[0] for g in joined)), [s for g in joined for s in g[1]] + [stack])
            groups.append(merged)
    return [(" + ".join(sorted(name.split("\n")[0] for name in names)), stacks) for names, stacks in groups]


def _scenes_of(manifest: Manifest, stack: StackFile) -> set[str]:
    """Return the names of the images that a stack was cut from, with checksums from the manifest."""
    if stack.group:
        return {stack.group}
    scenes = set()
    for scene in manifest.provenance.get("scenes", ()):
        overlap = Window(*scene["window"]).intersect(stack.window) if stack.window else None
        if overlap is None or (overlap.height > 0 and overlap.width > 0):
            scenes.add(" ".join(scene["files"]))
    bands = set(manifest.parameters.get("bands") or ())
    images = [s for s in manifest.sources if s.get("name") in bands]
    if not scenes and images:
        digest = ",".join(sorted(str(s.get("sha256", "")) for s in images))
        scenes.add(f"{', '.join(sorted(str(s['name']) for s in images))}\n{digest}")
    return scenes or {str(manifest.folder)}


def _groups(stacks: Sequence[StackFile]) -> list[list[StackFile]]:
    """Group stacks that share pixels on the ground, directly or through others."""
    if any(stack.grid is None for stack in stacks):
        logger.warning("some stacks have no georeference: it is not known whether they overlap on the ground")
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    copies = [dataclasses.replace(stack, split=split) for split in ("train", "val") for stack in stacks]
    numbers = {stack.image: number for number, stack in enumerate(stacks)}
    pairs = [(numbers[o.train.image], numbers[o.val.image]) for o in find_overlaps(copies)]
    one, other = np.reshape(pairs, (-1, 2)).T.astype(int)
    graph = coo_array((np.ones(len(one), bool), (one, other)), (len(stacks), len(stacks)))
    groups: dict[int, list[StackFile]] = {}
    for number, stack in zip(connected_components(graph, directed=False)[1], stacks, strict=True):
        groups.setdefault(number, []).append(stack)
    return list(groups.values())


def _with_validation(manifest: Manifest, left_out: set[Path]) -> Manifest:
    """Return a manifest whose training stacks in `left_out` validate instead of its own validation stacks."""
    stacks = tuple(
        dataclasses.replace(stack, split="val" if stack.image in left_out else "train")
        for stack in manifest.of("train")
    )
    trained = [stack for stack in stacks if stack.split == "train"]
    known = [stack.statistics for stack in trained if stack.statistics is not None]
    # Statistics of a folder without a training stack get a weight of 0.
    statistics = dataclasses.replace(manifest.statistics, count=manifest.statistics.count if trained else 0)
    if known and len(known) == len(trained):
        statistics = functools.reduce(Statistics.merge, known)
    return dataclasses.replace(manifest, stacks=stacks, statistics=statistics)


def _check_agreement(manifests: Sequence[Manifest]) -> None:
    first = manifests[0]
    for other in manifests[1:]:
        pair = (first, other)
        described = [_described(m) for m in pair]
        named = [[f"{c.number} {c.name}" for c in m.legend.classes] for m in pair]
        for what, (a, b), option in (
            ("channels", described, "the same bands and indices"),
            ("classes", named, f"the same `--scheme`, for example {first.folder}/classes.csv"),
        ):
            if a != b:
                raise InputError(
                    f"cannot train on both, since '{other.folder}' has the {what} {', '.join(b)}, expected "
                    f"those of '{first.folder}': {', '.join(a)}",
                    f"Prepare both with preprocess.py and {option}.",
                )


def _described(manifest: Manifest) -> list[str]:
    """Return a description of each channel, in which all folders must agree."""
    described = [f"{c['name']} ({c['unit']}, {c['coding']})" for c in manifest.channels]
    if manifest.channel_set is None:
        return described
    return [
        f"{text} {channel.formula}{' may be missing' * channel.may_be_missing}".strip()
        for text, channel in zip(described, manifest.channel_set.channels, strict=True)
    ]


def _merge_legends(legends: Sequence[Legend]) -> Legend:
    """Return the first legend; classes whose source codes differ between folders lose them."""
    first = legends[0]
    classes = tuple(
        c if all(c.sources == legend.classes[i].sources for legend in legends)
        else dataclasses.replace(c, sources=())
        for i, c in enumerate(first.classes)
    )  # fmt: skip
    return Legend(first.name, classes)


def _merge_statistics(manifests: Sequence[Manifest]) -> Statistics:
    """Merge the statistics of all folders; one without a count of pixels is weighted by all its pixels."""
    weighted = []
    for manifest in manifests:
        training = manifest.of("train")
        # The original system stored no count; that of preprocess.py may be 0.
        pixels = sum(stack.shape[0] * stack.shape[1] for stack in training if stack.statistics is None)
        # A folder prepared for validation alone gets a weight of 0.
        count = manifest.statistics.count if training else 0
        weighted.append(dataclasses.replace(manifest.statistics, count=count or pixels))
    return functools.reduce(Statistics.merge, weighted)


def _open_split(manifests: Sequence[Manifest], split: str) -> tuple[tuple[Tile, ...], NDArray[np.int64]]:
    """Open the labelled stacks of all folders, and count their pixels per class.

    Training labels on the ground of validation stacks of any folder, and in the gap around them, are ignored,
    since they lie in the receptive field of validated pixels. The largest gap of the folders applies.
    """
    near: dict[Path, list[Window]] = {}
    if split == "train":
        gap = max(_gap_of(manifest) for manifest in manifests)
        for overlap in find_overlaps([stack for manifest in manifests for stack in manifest.stacks], gap):
            near.setdefault(overlap.train.image, []).append(overlap.window)
    tiles, counts = [], np.zeros(len(manifests[0].legend), np.int64)
    for manifest in manifests:
        optional = manifest.channel_set.optional if manifest.channel_set else ()
        for stack in manifest.of(split):
            name = f"{manifest.folder.name}/{stack.name}"
            masks = open_tile(stack)[1]
            # preprocess.py has removed the labels around validation stacks of the same folder.
            ignored = [w for w in near.get(stack.image, []) if _count(masks, len(counts), w).any()]
            tile = Tile(name, *open_tile(stack, ignored), optional)
            labelled = _count(tile.masks, len(counts)) if ignored else np.array(stack.class_counts)
            if ignored:
                logger.warning("labels of '%s' in or near a validation stack are ignored", name)
            if labelled.any():
                tiles.append(tile)
                counts += labelled
            else:
                logger.warning("'%s' is left out, since none of its pixels is labelled", name)
    return tuple(tiles), counts


def _gap_of(manifest: Manifest) -> int:
    gap = manifest.parameters.get("gap")
    return gap if isinstance(gap, int) and gap >= 0 else GAP


def _count(masks: Layers, classes: int, window: Window | None = None) -> NDArray[np.int64]:
    """Count the pixels of class 1..N, in a window if one is given; int64 (class,)."""
    window = window or Window(0, 0, *masks.shape)
    rows, cols = window.slices
    total = np.zeros(256, np.int64)
    for row in range(rows.start, rows.stop, ROWS_AT_ONCE):
        block = masks[row : min(row + ROWS_AT_ONCE, rows.stop), cols]
        total += np.bincount(block.ravel(), minlength=256)
    return total[1 : classes + 1]


def check_learnable(
    counts: NDArray[np.int64], val_counts: NDArray[np.int64], legend: Legend, config: TrainConfig, where: str
) -> None:
    """Raise InputError unless the training labels have two classes, and there are validation labels."""
    present = [f"{c.name} ({n})" for c, n in zip(legend.classes, counts, strict=True) if n]
    if not present:
        raise InputError(
            f"cannot train on {where}, since no training pixel is labelled, expected at least two classes",
            "Check labels and scheme: preprocess.py prints the pixels of each class.",
        )
    if config.single_class is not None and config.single_class not in legend.names:
        raise InputError(
            f"cannot train '{config.single_class}' against the rest, since the classes of {where} are "
            f"{', '.join(legend.names)}",
            "Give one of these names with `--single-class`.",
        )
    single = config.single_class is not None and not counts[legend.names.index(config.single_class)]
    if len(present) == 1 or single:
        raise InputError(
            f"cannot train on {where}, since the labelled training pixels are all of "
            f"{', '.join(present)}, expected "
            + (f"some of '{config.single_class}'" if single else "at least two classes"),
            "Prepare stacks from a region, or with a scheme, where more classes occur.",
        )
    if not val_counts.any():
        raise InputError(
            f"cannot train on {where}, since no validation pixel is labelled, expected a validation stack",
            "Prepare the data with e.g. `--validation 0.2`, or type --validation-data with another folder.",
        )


def _identity_of(manifest: Manifest) -> str:
    """Return the sha256 of a folder's content, after a check of its files against its manifest."""
    path = manifest.folder / MANIFEST
    if path.exists():
        manifest.verify()
        return sha256_of(path)
    digests = [sha256_of(file) for stack in manifest.stacks for file in (stack.image, stack.masks)]
    statistics = str(manifest.statistics.to_json())
    return hashlib.sha256("".join([*digests, statistics]).encode()).hexdigest()


def pixel_size_of(grids: Sequence[GridSpec | None]) -> dict[str, float]:
    """Return the median width and height of the pixels of grids on the ground, as entries of a card."""
    sizes = [size for grid in grids if grid and (size := pixel_on_ground(grid)) is not None]
    if not sizes:
        return {}
    width, height = np.median(sizes, axis=0).round(3).tolist()
    return {"pixel_size": width, "pixel_height": height}


def _provenance_of(manifest: Manifest, sha256: str) -> dict[str, Any]:
    training, validation = manifest.of("train"), manifest.of("val")
    patches = sum(len(stack.patches) for stack in training)
    ground, held_out = (
        ground_of([grid for stack in stacks for grid in stack.ground or (None,)])
        for stacks in (training, validation)
    )
    return {
        **pixel_size_of([stack.grid for stack in training]),
        "folder": manifest.folder.resolve().name,
        "sha256": sha256,
        "scheme": manifest.scheme,
        "training_stacks": [stack.name for stack in training],
        **({"ground": ground} if ground is not None else {}),
        **({"validation_ground": held_out} if held_out else {}),
        "validation_stacks": [stack.name for stack in validation],
        **({"patches": patches} if patches else {}),
        "sources": list(manifest.sources),
        **({"simulated": True} if _is_simulated(manifest.provenance) else {}),
    }


def _is_simulated(document: Any) -> bool:
    """Return True if a manifest marks one of its files as simulated."""
    if isinstance(document, dict):
        return document.get("simulated") is True or any(map(_is_simulated, document.values()))
    return isinstance(document, list) and any(map(_is_simulated, document))


def class_targets(classes: int, single_class: int | None = None) -> NDArray[np.uint8]:
    """Return the network class of each value in the masks, uint8 (256,); 255 for values that are no class.

    With a `single_class`, a number from 1, this class becomes 1 and the others 0.

    Examples
    --------
    >>> class_targets(3)[[0, 1, 3, 255]].tolist(), class_targets(3, 2)[[0, 1, 2, 3]].tolist()
    ([255, 0, 2, 255], [255, 0, 1, 0])
    """
    targets = np.full(256, IGNORE, np.uint8)
    targets[1 : classes + 1] = np.arange(classes) if single_class is None else 0
    if single_class is not None:
        targets[single_class] = 1
    return targets
