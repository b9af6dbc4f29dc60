"""Stacks on disk: .npy files, the manifest that describes them, and folders in the original's naming."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from rasterio.warp import transform_bounds

from lulc.documents import read_document, write_document
from lulc.grid import GridSpec
from lulc.nomenclature import load_scheme
from lulc.schema import BANDS, CHANNELS, IGNORE, INDEX_UNIT, REFLECTANCE_UNIT, InputError, Legend
from lulc.sources import Source, open_source
from lulc.split import near_windows
from lulc.statistics import STATISTICS_SCHEMA, Statistics, read_statistics
from lulc.storage import sha256_of
from lulc.windows import Window

logger = logging.getLogger("lulc")

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

STANDARDISED_BELOW = 20.0
"""Median of absolute band values: standardised ones lie near 1, reflectance x 10000 in the hundreds."""

_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_ORIGINAL_NAME = re.compile(r"(train|val)_(image|masks)_(\d{1,6})\.(npy|tif|tiff|img|nc|zarr)")


class Layers(Protocol):
    """An image (y, x, band) or masks (y, x): a shape, and slicing by (rows, columns)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(y, x, band) or (y, x)."""

    def __getitem__(self, key: Any) -> Any:
        """Pixels."""


@dataclass(frozen=True)
class StackFile:
    """One stack on disk.

    Parameters
    ----------
    name
        ``train_0``, ``val_1``.
    split
        ``train`` or ``val``.
    image, masks
        Paths of the two files.
    shape
        (rows, columns).
    class_counts
        Labelled valid pixels of class 1, 2, ..., N.
    number
        Its place on the regular grid of stacks, as ``--validation`` counts them; None where unknown.
    grid, window
        Where it lies: its own grid, and its window in the mosaic; None where unknown.
    statistics
        Of its valid pixels; None where unknown.
    sha256
        Of image and masks; empty where unknown.
    standardised_by
        Statistics that the image on disk is standardised with; None for physical units.
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

    def to_json(self) -> dict[str, Any]:
        """The entry in the manifest."""
        assert self.grid and self.window and self.statistics and self.sha256
        return {
            "name": self.name,
            "number": self.number,
            "split": self.split,
            "image": {"file": self.image.name, "sha256": self.sha256[0]},
            "masks": {"file": self.masks.name, "sha256": self.sha256[1]},
            "grid": self.grid.to_json(),
            "window": [self.window.row, self.window.col, self.window.height, self.window.width],
            "class_counts": list(self.class_counts),
            "statistics": self.statistics.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> StackFile:
        """The stack of a validated entry; its files are checked not to lie outside `folder`."""
        window = Window(*data["window"])
        return cls(
            name=data["name"],
            split=data["split"],
            image=_inside(folder, data["image"]["file"]),
            masks=_inside(folder, data["masks"]["file"]),
            shape=window.shape,
            class_counts=tuple(data["class_counts"]),
            number=data["number"],
            grid=GridSpec.from_json(data["grid"]),
            window=window,
            statistics=Statistics.from_json(data["statistics"]),
            sha256=(data["image"]["sha256"], data["masks"]["sha256"]),
        )


@dataclass(frozen=True)
class Manifest:
    """What a folder of stacks holds.

    Parameters
    ----------
    folder
        Where the files lie.
    channels
        For each channel ``name``, ``unit`` and ``coding`` ("read", "computed", or "unknown").
    scheme
        Name of the scheme that made classes of codes.
    legend
        The classes.
    stacks
        Training stacks first, then validation.
    statistics
        Of the valid pixels of all training stacks, in physical units.
    sources
        Name, bytes and sha256 of each file that was read.
    parameters
        What else decides the stacks.
    provenance
        How bands and indices were read: scale, offset, shares patched and invalid.
    key
        sha256 of sources and parameters together; empty for folders in the original's naming.
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

    def of(self, split: str) -> tuple[StackFile, ...]:
        """The stacks of ``train`` or ``val``."""
        return tuple(s for s in self.stacks if s.split == split)

    def class_counts(self, split: str) -> np.ndarray:
        """Labelled valid pixels of class 1..N in all stacks of ``train`` or ``val``: int64 (class,)."""
        return sum((np.array(s.class_counts) for s in self.of(split)), np.zeros(len(self.legend), np.int64))

    def write(self) -> None:
        """Write ``manifest.json`` into the folder, whole or not at all."""
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
        }
        write_sealed(self.folder / MANIFEST, data)

    def verify(self) -> None:
        """Compare the sha256 of every file with the manifest.

        Raises
        ------
        InputError
            Naming the first file that differs.
        """
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
_FILE = {
    "type": "object",
    "required": ["file", "sha256"],
    "properties": {"file": {"type": "string", "pattern": _PLAIN_NAME, "maxLength": 100}, "sha256": _SHA256},
}
GRID_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["crs", "transform", "height", "width"],
    "properties": {
        "crs": {"type": "string", "maxLength": 100_000},
        "transform": {"type": "array", "minItems": 6, "maxItems": 6, "items": {"type": "number"}},
        "height": {"type": "integer", "minimum": 1},
        "width": {"type": "integer", "minimum": 1},
    },
}
LEGEND_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name", "classes"],
    "properties": {
        "name": {"type": "string"},
        "classes": {
            "type": "array",
            "minItems": 1,
            "maxItems": 254,
            "items": {
                "type": "object",
                "required": ["number", "name", "color"],
                "properties": {
                    "number": {"type": "integer", "minimum": 1, "maximum": 254},
                    "name": {"type": "string", "maxLength": 200},
                    "color": {"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"},
                    "sources": {"type": "array", "items": {"type": "integer"}},
                    "level1": {"type": "integer", "minimum": 0, "maximum": 5},
                },
            },
        },
    },
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
        "grid": GRID_SCHEMA,
        "window": {"type": "array", "minItems": 4, "maxItems": 4, "items": _COUNT},
        "class_counts": {"type": "array", "minItems": 1, "maxItems": 254, "items": _COUNT},
        "statistics": STATISTICS_SCHEMA,
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
        "legend": LEGEND_SCHEMA,
        "stacks": {"type": "array", "minItems": 1, "maxItems": 1_000_000, "items": STACK_SCHEMA},
        "statistics": STATISTICS_SCHEMA,
        "sources": {"type": "array", "items": {"type": "object"}},
        "parameters": {"type": "object"},
        "provenance": {"type": "object"},
    },
}


def write_sealed(path: Path, data: dict[str, Any]) -> None:
    """Write a document with a field ``seal``, the sha256 of all others."""
    write_document(path, data | {"seal": _seal_of(data)})


def read_sealed(path: Path, schema: dict[str, Any], kind: str) -> dict[str, Any]:
    """Read a document that `write_sealed` wrote.

    Raises
    ------
    InputError
        If it doesn't fit the schema, or was changed since.
    """
    data = read_document(path, schema, kind, FORMAT_VERSION)
    if data.pop("seal") != _seal_of(data):
        raise InputError(
            f"cannot use the {kind} '{path}', since it was changed after it was written (its seal differs)",
            "Make it again with preprocess.py; options decide what it holds, not an editor.",
        )
    return data


def _seal_of(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_manifest(folder: str | os.PathLike[str], *, already_standardised: bool = False) -> Manifest:
    """Read and check a folder of stacks.

    Parameters
    ----------
    folder
        What preprocess.py wrote, or a folder in the original's naming without a manifest
        (``train_image_0.npy``, ``train_masks_0.npy``, ``val_...``; also .tif, .img, .nc, .zarr).
    already_standardised
        Take standardised images of such a folder as they are, where its statistics are lost.

    Returns
    -------
    Manifest
        For a folder in the original's naming made up in memory: grids unknown, images turned back into
        physical units with the statistics of its ``*mean_and_std*.obj``.

    Raises
    ------
    InputError
        If the manifest or a file is missing, damaged, or lies outside the folder.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder)
    elif folder.is_dir() and any(_ORIGINAL_NAME.fullmatch(p.name) for p in folder.iterdir()):
        manifest = _read_original(folder, already_standardised)
    else:
        raise InputError(
            f"cannot find stacks in '{folder}', since there is neither {MANIFEST} nor train_image_0.npy",
            f"Make them: python preprocess.py --bands ... --labels ... --out {folder}",
        )
    for stack in manifest.stacks:
        open_tile(stack)
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    data = read_sealed(folder / MANIFEST, _SCHEMA, "manifest")
    legend = Legend.from_json(data["legend"])
    stacks = tuple(StackFile.from_json(entry, folder) for entry in data["stacks"])
    channels = len(data["channels"])
    for stack in stacks:
        sizes = {len(stack.class_counts): len(legend), len(stack.statistics.mean): channels}  # type: ignore[union-attr]
        if any(a != b for a, b in sizes.items()) or stack.grid.shape != stack.shape:  # type: ignore[union-attr]
            raise InputError(
                f"cannot use the manifest '{folder / MANIFEST}', since the entry of {stack.name} "
                "doesn't fit its legend, channels or grid",
                "Make the stacks again with preprocess.py.",
            )
    return Manifest(
        folder=folder,
        channels=tuple(data["channels"]),
        scheme=data["scheme"],
        legend=legend,
        stacks=stacks,
        statistics=Statistics.from_json(data["statistics"]),
        sources=tuple(data.get("sources", ())),
        parameters=data.get("parameters", {}),
        provenance=data.get("provenance", {}),
        key=data.get("key", ""),
    )


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"cannot use '{path}', since it leads out of the folder of its manifest (to '{path.resolve()}')",
            "Copy the file into the folder.",
        )
    return path


def open_tile(stack: StackFile, ignore: Sequence[Window] = ()) -> tuple[Layers, Layers]:
    """Open a stack without reading it.

    Parameters
    ----------
    stack
        From a manifest.
    ignore
        Windows of the stack whose labels are to read as 255, e.g. those of `find_overlaps`.

    Returns
    -------
    image : float32 (y, x, band), physical units, NaN = invalid
        A memory map, or an array-like that converts what is sliced.
    masks : uint8 (y, x), 1..N, 255 = ignore
        Likewise.

    Raises
    ------
    InputError
        If a file is missing, holds objects, or its size, type or shape isn't what its header and the
        manifest say.
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
        image = _Physical(image, stack.standardised_by)
    elif getattr(image, "dtype", None) != np.float32:
        image = _Converted(image, np.dtype(np.float32))
    if getattr(masks, "dtype", None) != np.uint8:
        masks = _Classes(masks, str(stack.masks))
    return image, _Ignoring(masks, tuple(ignore)) if ignore else masks


@dataclass(frozen=True)
class Overlap:
    """Pixels of a training stack that a validation stack holds, too.

    Parameters
    ----------
    train, val
        The two stacks.
    window
        In the training stack.
    """

    train: StackFile
    val: StackFile
    window: Window


def find_overlaps(stacks: Sequence[StackFile], gap: int = 0) -> list[Overlap]:
    """Where training stacks lie on the ground of validation stacks, by their grids.

    Parameters
    ----------
    stacks
        Of one or more manifests; those whose grid is unknown can't be compared and are passed over.
    gap
        Also report pixels nearer than this, in pixels of the training stack.
    """
    located = [s for s in stacks if s.grid is not None and s.grid.crs]
    found = []
    for train in (s for s in located if s.split == "train"):
        for val in (s for s in located if s.split == "val"):
            footprint = _footprint(val.grid, train.grid)  # type: ignore[arg-type]
            for window in near_windows(Window(0, 0, *train.shape), [footprint] if footprint else [], gap):
                found.append(Overlap(train, val, window))
    return found


def _footprint(grid: GridSpec, on: GridSpec) -> Window | None:
    """The window of `on`, perhaps beyond its borders, that holds all pixels of `grid`; None far away."""
    bounds = grid.bounds
    if grid.crs != on.crs:
        left, bottom, right, top = bounds
        ordered = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
        bounds = transform_bounds(grid.crs, on.crs, *ordered)
    if not np.isfinite(bounds).all():
        return None
    corners = [~on.transform @ (x, y) for x in bounds[::2] for y in bounds[1::2]]
    # Corners that differ by rounding only are the same corner.
    cols = [round(c[0], 2) for c in corners]
    rows = [round(c[1], 2) for c in corners]
    top, left = int(np.floor(min(rows))), int(np.floor(min(cols)))
    return Window(top, left, int(np.ceil(max(rows))) - top, int(np.ceil(max(cols))) - left)


class NpyWriter:
    """Write an array to a .npy file strip by strip.

    Parameters
    ----------
    path
        File to write.
    dtype
        Type of the array.
    shape
        Shape of the whole array; strips follow one another along its first axis.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype = dtype
        self._left = int(np.prod(shape, dtype=np.int64))
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, strip: np.ndarray) -> None:
        """Append rows."""
        self._file.write(np.ascontiguousarray(strip, self._dtype.newbyteorder("<")).data)
        self._left -= strip.size

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is None and self._left:
            raise ValueError(f"{self._left} values are missing, expected the whole array")


def open_layers(path: Path) -> Layers:
    """An image or masks as an array-like: .npy memory-mapped, rasters read as they are sliced."""
    if path.suffix == ".npy":
        return _open_npy(path)
    return _RasterLayers(open_source(str(path)))


def _open_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"cannot open '{path}', since there is no such file", "Check the folder.")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
            offset = file.tell()
        if dtype.hasobject or dtype.kind not in "fiu" or dtype.itemsize > 8:
            raise ValueError(f"its type is {dtype}")
        needed = dtype.itemsize
        for side in shape:
            needed *= int(side)
        if fortran or min(shape, default=0) < 1 or offset + needed != path.stat().st_size:
            raise ValueError(
                f"its header declares shape {shape} of {dtype}, which is not what its "
                f"{path.stat().st_size} bytes hold row by row"
            )
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, KeyError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        raise InputError(
            f"cannot open '{path}', since it is no plain array of numbers in .npy format ({error})",
            "It is damaged or was not written by numpy.save; make it again.",
        ) from error


class _RasterLayers:
    """A raster file as (y, x, band), or (y, x) where it has one layer; no data reads as NaN."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._single = len(source.names) == 1
        self.names = tuple(source.names)
        grid = source.grid.shape
        self.shape: tuple[int, ...] = grid if self._single else (*grid, len(source.names))

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (r0, r1, _), (c0, c1, _) = (k.indices(n) for k, n in zip(key, self.shape, strict=False))
        window = Window(r0, c0, max(0, r1 - r0), max(0, c1 - c0))
        values = self._source.read(range(len(self.names)), window).astype(np.float32)
        for layer, nodata in zip(values, self._source.nodata, strict=True):
            if nodata is not None:
                layer[layer == np.float32(nodata)] = np.nan
        return values[0] if self._single else np.moveaxis(values, 0, -1)


@dataclass(frozen=True)
class _Converted:
    """Layers whose type changes as they are sliced."""

    layers: Layers
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self.layers[key], self.dtype)


@dataclass(frozen=True)
class _Physical:
    """A standardised image, turned back into physical units as it is sliced; float32."""

    layers: Layers
    statistics: Statistics

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        pixels = np.asarray(self.layers[key], np.float64)
        return (pixels * self.statistics.std + self.statistics.mean).astype(np.float32)


@dataclass(frozen=True)
class _Classes:
    """Masks of another type as uint8 class numbers; NaN, 0 and 255 are ignored."""

    layers: Layers
    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        values = np.asarray(self.layers[key], np.float64)
        known = np.where(np.isnan(values) | (values == 0), IGNORE, values)
        if (known != np.round(known)).any() or (known < 0).any() or (known > IGNORE).any():
            odd = known[(known != np.round(known)) | (known < 0) | (known > IGNORE)][0]
            raise InputError(
                f"cannot read class numbers from '{self.path}', since it has the value {odd:.6g}, expected "
                "whole numbers 1..254, NaN or 255 to ignore",
                "Masks must not be interpolated; make them again by nearest neighbour.",
            )
        return known.astype(np.uint8)


@dataclass(frozen=True)
class _Ignoring:
    """Masks that read as 255 within some windows."""

    layers: Layers
    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers.shape

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        values = np.array(self.layers[key])
        (r0, r1, _), (c0, c1, _) = (k.indices(n) for k, n in zip(key, self.shape, strict=False))
        sliced = Window(r0, c0, max(0, r1 - r0), max(0, c1 - c0))
        for window in near_windows(sliced, self.windows, 0):
            values[window.slices] = IGNORE
        return values


def _read_original(folder: Path, already_standardised: bool) -> Manifest:
    """A manifest made up for a folder in the original's naming."""
    legend = load_scheme("kaakonkulma-13").legend
    pairs = _original_pairs(folder)
    scaling = _original_scaling(folder, pairs, already_standardised)
    stacks = tuple(
        _original_stack(split, index, image, masks, len(legend), scaling)
        for (split, index), (image, masks) in sorted(pairs.items())
    )
    if already_standardised and scaling is None:
        statistics = Statistics((0.0,) * len(CHANNELS), (1.0,) * len(CHANNELS))
    else:
        statistics = scaling or _stream_statistics([s for s in stacks if s.split == "train"] or stacks)
    logger.warning(
        "%s has no manifest: channels are taken to be %s as in the original system; the coding of its "
        "last two indices is unknown, and stacks that overlap on the ground can't be found",
        folder,
        " ".join(CHANNELS),
    )
    channels = tuple(
        {"name": name, "unit": unit, "coding": "unknown" if name in ("NDBI", "NDSI") else "read"}
        for name, unit in channel_units().items()
    )
    return Manifest(folder, channels, "kaakonkulma-13", legend, stacks, statistics)


def channel_units() -> dict[str, str]:
    """Unit of each channel, in stack order."""
    return {name: REFLECTANCE_UNIT if name in BANDS else INDEX_UNIT for name in CHANNELS}


def _original_pairs(folder: Path) -> dict[tuple[str, int], tuple[Path, Path]]:
    """(split, index) to (image, masks)."""
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _ORIGINAL_NAME.fullmatch(path.name)
        if not match:
            continue
        split, kind, index, _ = match.groups()
        entry = found.setdefault((split, int(index)), {})
        if kind in entry:
            raise InputError(
                f"cannot use '{folder}', since it has both '{entry[kind].name}' and '{path.name}'",
                "Keep one of them.",
            )
        entry[kind] = _inside(folder, path.name)
    for (split, index), entry in found.items():
        for kind in ("image", "masks"):
            if kind not in entry:
                raise InputError(
                    f"cannot use '{folder}', since there is no {split}_{kind}_{index}.npy beside "
                    f"'{next(iter(entry.values())).name}'",
                    "A stack is an image and its masks.",
                )
    return {key: (entry["image"], entry["masks"]) for key, entry in found.items()}


def _original_scaling(
    folder: Path, pairs: dict[tuple[str, int], tuple[Path, Path]], already_standardised: bool
) -> Statistics | None:
    """Statistics that the images are standardised with; None if they are to be taken as they are."""
    image = open_layers(next(iter(pairs.values()))[0])
    if len(image.shape) != 3 or image.shape[2] != len(CHANNELS):
        raise InputError(
            f"cannot use the stacks in '{folder}', since their shape is {tuple(image.shape)}, expected "
            f"(rows, columns, {len(CHANNELS)})",
            "Without a manifest, stacks have the 14 channels of the original system.",
        )
    row, col = (max(0, n // 2 - 64) for n in image.shape[:2])
    sample = np.abs(np.asarray(image[row : row + 128, col : col + 128], np.float64)[..., : len(BANDS)])
    if already_standardised or (sample.size and np.nanmedian(sample) > STANDARDISED_BELOW):
        return None
    files = sorted(folder.glob("*mean_and_std*.obj"))
    if len(files) != 1:
        raise InputError(
            f"cannot use the stacks in '{folder}', since they are standardised and {len(files)} files "
            "*mean_and_std*.obj lie beside them, expected one",
            "Copy the pickle with their statistics into the folder, or type --already-standardised.",
        )
    scaling = read_statistics(_inside(folder, files[0].name))
    if len(scaling.mean) != len(CHANNELS):
        raise InputError(
            f"cannot use '{files[0]}', since it has {len(scaling.mean)} channels, expected {len(CHANNELS)}",
            "Give the statistics of these stacks.",
        )
    return scaling


def _original_stack(
    split: str, index: int, image: Path, masks: Path, classes: int, scaling: Statistics | None
) -> StackFile:
    height, width = open_layers(masks).shape[:2]
    stack = StackFile(f"{split}_{index}", split, image, masks, (height, width), (), standardised_by=scaling)
    opened = open_tile(stack)[1]
    counts = np.zeros(256, np.int64)
    for row in range(0, height, 512):
        counts += np.bincount(opened[row : row + 512, 0:width].ravel(), minlength=256)
    if counts[classes + 1 : IGNORE].any() or counts[0]:
        odd = int(np.flatnonzero(counts[classes + 1 : IGNORE])[0]) + classes + 1 if not counts[0] else 0
        raise InputError(
            f"cannot use '{masks}', since it has the class {odd}, expected 1..{classes}",
            "Without a manifest, masks have the 13 classes of the original system.",
        )
    counted = tuple(int(n) for n in counts[1 : classes + 1])
    return StackFile(
        f"{split}_{index}", split, image, masks, (height, width), counted, standardised_by=scaling
    )


def _stream_statistics(stacks: Sequence[StackFile]) -> Statistics:
    zeros = (0.0,) * len(CHANNELS)
    statistics = Statistics(zeros, zeros, 0)
    for stack in stacks:
        image = open_tile(stack)[0]
        for row in range(0, stack.shape[0], 128):
            strip = image[row : row + 128, 0 : stack.shape[1]]
            statistics = statistics.merge(Statistics.of(strip))
    return statistics
