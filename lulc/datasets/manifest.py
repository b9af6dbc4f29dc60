"""Manifest of a folder of stacks, and the files that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.channels import ChannelSet, set_of
from lulc.core.codec import schema_of
from lulc.core.documents import read_document, seal_of, write_document
from lulc.core.grid import GridSpec
from lulc.core.schema import CHANNELS, InputError, Legend
from lulc.core.statistics import Statistics
from lulc.core.storage import sha256_of
from lulc.core.windows import Window
from lulc.datasets.arrays import Converted, Ignoring, Layers, class_numbers, open_layers, physical_units

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


@dataclass(frozen=True)
class StackFile:
    """One stack on disk.

    Parameters
    ----------
    name, split
        ``train_0``, ``val_1``; ``train`` or ``val``.
    shape
        (rows, columns).
    class_counts
        Labelled valid pixels of class 1, 2, ..., N.
    number
        Position on the regular grid of stacks, as ``--validation`` counts them; None where unknown.
    grid, window
        Its grid, and its window in the mosaic; None where unknown.
    statistics
        Of its valid pixels; None where unknown.
    sha256
        Of image and masks; empty where unknown.
    standardised_by
        Statistics by which the image on disk is standardised; None for physical units.
    group
        Common name of chips that no split may separate; empty for a stack of a mosaic.
    patches
        Windows of sparse labels: only these train or validate. Empty where the whole stack does.
    """

    name: str
    split: str
    image: Path
    masks: Path
    shape: tuple[int, int]
    class_counts: tuple[int, ...]
    number: int | None = None
    grid: GridSpec | None = None
    window: Window | None = None
    statistics: Statistics | None = None
    sha256: tuple[str, str] | tuple[()] = ()
    standardised_by: Statistics | None = None
    group: str = ""
    patches: tuple[Window, ...] = ()

    @property
    def as_cut(self) -> bool:
        """True where preprocess.py chose its side; False where a fold of cross-validation did."""
        return self.name.startswith(f"{self.split}_")

    @property
    def ground(self) -> tuple[GridSpec, ...]:
        """Grids of the pixels that train or validate; empty where unknown."""
        if self.grid is None:
            return ()
        return tuple(self.grid.crop(patch) for patch in self.patches) or (self.grid,)

    def to_json(self) -> dict[str, Any]:
        assert self.grid and self.window and self.statistics and self.sha256
        return {
            "name": self.name,
            "number": self.number,
            "split": self.split,
            "image": {"file": self.image.name, "sha256": self.sha256[0]},
            "masks": {"file": self.masks.name, "sha256": self.sha256[1]},
            "grid": self.grid.to_json(),
            "window": self.window.to_json(),
            "class_counts": list(self.class_counts),
            "statistics": self.statistics.to_json(),
            **({"group": self.group} if self.group else {}),
            **({"patches": [patch.to_json() for patch in self.patches]} if self.patches else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> StackFile:
        """Return the stack of a validated entry; refuse files outside `folder`."""
        window = Window.from_json(data["window"])
        return cls(
            name=data["name"],
            split=data["split"],
            image=path_inside(folder, data["image"]["file"]),
            masks=path_inside(folder, data["masks"]["file"]),
            shape=window.shape,
            class_counts=tuple(data["class_counts"]),
            number=data["number"],
            grid=GridSpec.from_json(data["grid"]),
            window=window,
            statistics=Statistics.from_json(data["statistics"]),
            sha256=(data["image"]["sha256"], data["masks"]["sha256"]),
            group=data.get("group", ""),
            patches=tuple(map(Window.from_json, data.get("patches", ()))),
        )


@dataclass(frozen=True)
class Manifest:
    """Content of a folder of stacks.

    Parameters
    ----------
    channels
        For each channel ``name``, ``unit`` and ``coding`` ("read", "computed", or "unknown").
    scheme
        Name of the scheme that mapped codes to classes.
    stacks
        Training stacks first, then validation.
    statistics
        Of the valid pixels of all training stacks, in physical units.
    sources
        Name, bytes and sha256 of each file that was read.
    parameters
        Options that decide the stacks, beside the sources.
    provenance
        Conversion of bands and indices: scale, offset, fractions patched and invalid.
    key
        sha256 of sources and parameters together; empty for folders in the original's naming.
    channel_set
        Definitions of the channels; None where their names suffice.
    """

    folder: Path
    channels: tuple[dict[str, str], ...]
    scheme: str
    legend: Legend
    stacks: tuple[StackFile, ...]
    statistics: Statistics
    sources: tuple[dict[str, Any], ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    channel_set: ChannelSet | None = None

    def of(self, split: str) -> tuple[StackFile, ...]:
        """The stacks of ``train`` or ``val``."""
        return tuple(s for s in self.stacks if s.split == split)

    def class_counts(self, split: str) -> np.ndarray:
        """Labelled valid pixels of class 1..N in all stacks of ``train`` or ``val``: int64 (class,)."""
        return sum((np.array(s.class_counts) for s in self.of(split)), np.zeros(len(self.legend), np.int64))

    def write(self) -> None:
        """Write ``manifest.json`` into the folder, whole or not at all, with the sha256 of its fields."""
        data = {
            "format_version": FORMAT_VERSION,
            "key": self.key,
            "channels": list(self.channels),
            "scheme": self.scheme,
            "legend": self.legend.to_json(),
            "stacks": [s.to_json() for s in self.stacks],
            "statistics": self.statistics.to_json(),
            "sources": list(self.sources),
            "parameters": self.parameters,
            "provenance": self.provenance,
            **({"channel_set": self.channel_set.to_json()} if self.channel_set else {}),
        }
        write_document(self.folder / MANIFEST, data | {"seal": seal_of(data)})

    def verify(self) -> None:
        """Compare the sha256 of every file with the manifest; raise InputError for the first that differs."""
        for stack in self.stacks:
            for path, expected in zip((stack.image, stack.masks), stack.sha256, strict=False):
                if sha256_of(path) != expected:
                    raise InputError(
                        f"cannot use '{path}', since its content isn't what '{self.folder / MANIFEST}' "
                        "recorded (sha256)",
                        "It was changed or damaged; make the stacks again with preprocess.py --overwrite.",
                    )


_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}
_WINDOW = Window.SCHEMA | {"items": _COUNT}
_FILE = {
    "type": "object",
    "required": ["file", "sha256"],
    "properties": {"file": {"type": "string", "pattern": _PLAIN_NAME, "maxLength": 100}, "sha256": _SHA256},
}
STACK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": [
        "name", "number", "split", "image", "masks", "grid", "window", "class_counts", "statistics",
    ],
    "properties": {
        "name": {"type": "string", "pattern": _PLAIN_NAME},
        "number": _COUNT,
        "split": {"enum": ["train", "val"]},
        "image": _FILE,
        "masks": _FILE,
        "grid": GridSpec.SCHEMA,
        "window": _WINDOW,
        "class_counts": {"type": "array", "minItems": 1, "maxItems": 254, "items": _COUNT},
        "statistics": schema_of(Statistics),
        "group": {"type": "string", "maxLength": 1000},
        "patches": {"type": "array", "maxItems": 1_000_000, "items": _WINDOW},
    },
}  # fmt: skip
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "seal", "channels", "legend", "scheme", "stacks", "statistics"],
    "properties": {
        "format_version": {"type": "integer", "minimum": 1},
        "seal": _SHA256,
        "key": {"type": "string"},
        "channels": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1024,
            "items": {
                "type": "object",
                "required": ["name", "unit", "coding"],
                "properties": {k: {"type": "string", "maxLength": 200} for k in ("name", "unit", "coding")},
            },
        },
        "scheme": {"type": "string"},
        "legend": schema_of(Legend),
        "stacks": {"type": "array", "minItems": 1, "maxItems": 1_000_000, "items": STACK_SCHEMA},
        "statistics": schema_of(Statistics),
        "sources": {"type": "array", "items": {"type": "object"}},
        "parameters": {"type": "object"},
        "provenance": {"type": "object"},
        "channel_set": schema_of(ChannelSet),
    },
}


GROUND_SCHEMA: dict[str, Any] = {
    "type": "array", "maxItems": 10_000,
    "items": {
        "type": "object", "required": ["crs", "stacks"],
        "properties": {
            "crs": GridSpec.SCHEMA["properties"]["crs"],
            "stacks": {
                "type": "array", "maxItems": 1_000_000,
                "items": {"type": "array", "minItems": 8, "maxItems": 8, "items": {"type": "number"}},
            },
        },
    },
}  # fmt: skip
"""JSON Schema of `ground_of`."""


def ground_of(grids: Sequence[GridSpec | None]) -> list[dict[str, Any]] | None:
    """Return geotransform, rows and columns of each grid, grouped by CRS; None if a grid is unknown."""
    by_crs: dict[str, list[list[float]]] = {}
    for known in grids:
        if known is None:
            return None
        grid = known.to_json()
        by_crs.setdefault(grid["crs"], []).append([*grid["transform"], grid["height"], grid["width"]])
    return [{"crs": crs, "stacks": stacks} for crs, stacks in by_crs.items()]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest that preprocess.py wrote; raises InputError if it doesn't fit or was changed."""
    path = folder / MANIFEST
    data = read_document(path, _SCHEMA, "manifest", FORMAT_VERSION)
    if data.pop("seal") != seal_of(data):
        raise InputError(
            f"cannot use the manifest '{path}', since it was changed after it was written (its seal differs)",
            "Make it again with preprocess.py; options decide what it holds, not an editor.",
        )
    legend = Legend.from_json(data["legend"])
    stacks = tuple(StackFile.from_json(entry, folder) for entry in data["stacks"])
    channels = len(data["channels"])
    channel_set = ChannelSet.from_json(data["channel_set"]) if "channel_set" in data else None
    if channel_set and list(channel_set.names) != [c["name"] for c in data["channels"]]:
        raise InputError(
            f"cannot use the manifest '{path}', since its channel set has other channels",
            "Make the stacks again with preprocess.py.",
        )
    for stack in stacks:
        assert stack.statistics and stack.grid
        sizes = len(stack.class_counts), len(stack.statistics.mean)
        if sizes != (len(legend), channels) or stack.grid.shape != stack.shape:
            raise InputError(
                f"cannot use the manifest '{path}', since the entry of {stack.name} doesn't fit its legend, "
                "channels or grid",
                "Make the stacks again with preprocess.py.",
            )
    statistics = Statistics.from_json(data["statistics"])
    optional = {name: data[name] for name in ("parameters", "provenance", "key") if name in data}
    return Manifest(
        folder, tuple(data["channels"]), data["scheme"], legend, stacks, statistics,
        tuple(data.get("sources", ())), **optional, channel_set=channel_set,
    )  # fmt: skip


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder; raises InputError if a link leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"cannot use '{path}', since it leads out of the folder of its manifest (to '{path.resolve()}')",
            "Copy the file into the folder.",
        )
    return path


def open_tile(stack: StackFile, ignore: Sequence[Window] = ()) -> tuple[Layers, Layers]:
    """Open a stack without reading it; masks are 255 within the windows to `ignore`.

    Raises InputError if a file is missing, holds objects, or its size, type or shape isn't what its header
    and the manifest say.

    Returns
    -------
    image : float32 (y, x, band), physical units, NaN = invalid
        A memory map, or an array-like that converts pixels as they are sliced.
    masks : uint8 (y, x), 1..N, 255 = ignore
        Likewise.
    """
    image, masks = open_layers(stack.image), open_layers(stack.masks)
    for path, layers, dimensions in ((stack.image, image, 3), (stack.masks, masks, 2)):
        if len(layers.shape) != dimensions or tuple(layers.shape[:2]) != stack.shape:
            raise InputError(
                f"cannot use '{path}', since its shape is {tuple(layers.shape)}, expected "
                f"{stack.shape[0]} x {stack.shape[1]} pixels{' and bands' if dimensions == 3 else ''}",
                "Make the stacks again with preprocess.py.",
            )
    if stack.standardised_by is not None:
        image = Converted(image, partial(physical_units, statistics=stack.standardised_by))
    elif getattr(image, "dtype", None) != np.float32:
        image = Converted(image, partial(np.asarray, dtype=np.float32))
    if getattr(masks, "dtype", None) != np.uint8:
        masks = Converted(masks, partial(class_numbers, path=str(stack.masks)))
    return image, Ignoring(masks, tuple(ignore)) if ignore else masks


def channel_units(channels: Sequence[str] = CHANNELS) -> dict[str, str]:
    """Unit of each channel, in stack order."""
    return {one.name: one.unit for one in set_of(channels).channels}
