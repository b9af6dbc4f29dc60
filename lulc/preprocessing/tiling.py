"""Work at one place of a mosaic: check its labels, count its classes, cut its stack.

Each is a task of its own, which may run in another process (`Site`), any number of times, to the same
result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import rasterio

from lulc.config import PreprocessConfig
from lulc.core.channels import CHANNEL_SETS, dates_of, split_prefix, with_path
from lulc.core.documents import parse_json
from lulc.core.schema import IGNORE, InputError
from lulc.core.statistics import Moments, valid_pixels
from lulc.core.storage import sha256_of, write_atomically
from lulc.core.version import __version__
from lulc.core.windows import Window, near_windows, squares_of
from lulc.datasets.arrays import NpyWriter
from lulc.datasets.manifest import StackFile
from lulc.distributed.cluster import UnfitWorkerError
from lulc.labels.labels import Labels, near_borders, open_labels
from lulc.labels.schemes import load_scheme
from lulc.preprocessing.patches import LabelledPixels
from lulc.preprocessing.plan import Place, Spot
from lulc.rasters.channels import load_channels
from lulc.rasters.guards import is_address
from lulc.rasters.scenes import Scenes, find_scenes, read_scenes
from lulc.rasters.sources import stamps_of
from lulc.rasters.stack import Coverage, Stack, open_stack

STRIP = 2**18
"""Pixels that are held in memory at once: 14 channels of them are 15 MB, in float64 29 MB."""

GDAL_CACHE = 192 * 2**20
"""Bytes of decoded blocks; GDAL's own default is a share of the machine's memory, however large that is."""

SCENES, CURRENT = "scenes.json", "run.json"
"""Beside the stacks while they are made: the scenes that were found, and the key of the run."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Inputs:
    """Open inputs of one process and their options; made by `open_inputs`.

    `check` is called before a stack gets its name, and raises where it must not.
    """

    config: PreprocessConfig
    stack: Stack
    labels: Labels
    check: Callable[[], object] = lambda: None


class Survey(NamedTuple):
    """Survey of a place: its number, labelled valid pixels of class 1..N, and how its pixels were read."""

    number: int
    counts: tuple[int, ...]
    coverage: Coverage


class Cut(NamedTuple):
    """A stack on disk, and the exact sums over its valid pixels."""

    file: StackFile
    moments: Moments


@dataclass(frozen=True)
class Site:
    """Description with which another process opens the same inputs.

    Parameters
    ----------
    config
        With absolute paths.
    key
        Of inputs and parameters.
    stamps
        Digest of the files' sizes and times of change.
    versions
        Of what decides the bytes of a stack.
    """

    config: PreprocessConfig
    key: str
    stamps: str
    versions: tuple[str, ...]

    @contextlib.contextmanager
    def open(self) -> Iterator[Inputs]:
        """Open the inputs on a worker; refuse others than those of the run that asks."""
        config = self.config
        with contextlib.ExitStack() as stack:
            try:
                with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
                    scenes = read_scenes(Path(config.out) / SCENES, config) if config.scenes else None
                    inputs = stack.enter_context(open_inputs(config, scenes))
                found = stamps_at(config)
            except InputError as error:
                raise UnfitWorkerError(
                    f"a worker cannot open what this machine can: {error.problem}",
                    "Give all workers the same files under the same paths.",
                ) from error
            if (found, versions()) != (self.stamps, self.versions):
                differs = "files" if found != self.stamps else "versions"
                raise UnfitWorkerError(
                    f"a worker has other {differs} than this machine, expected the same on all",
                    "Give all workers the same files under the same paths, and the same environment.",
                )
            yield dataclasses.replace(inputs, check=partial(_check_current, self))


PATHS = (
    "bands", "scenes", "indices", "layers", "channels", "fill", "labels", "like", "mask", "aoi", "pine",
    "spruce", "scheme",
)  # fmt: skip
"""Options that name inputs."""


def paths_of(config: PreprocessConfig) -> list[str]:
    """All inputs that the options name, folders of scenes as what was found there."""
    values = [getattr(config, name) for name in PATHS if name != "scenes"]
    found = find_scenes(config.scenes, allow_vrt=config.allow_vrt)
    texts = [text for v in (*found, *values) for text in (v if isinstance(v, tuple) else [v] if v else [])]
    return [split_prefix(text)[1] for text in texts]


def anywhere(config: PreprocessConfig) -> PreprocessConfig:
    """The config with absolute paths, for processes that were started in other folders."""

    def absolute(path: str) -> str:
        named = is_address(path) or path in CHANNEL_SETS or not os.path.exists(path)
        return path if named else os.path.abspath(path)

    def moved_from(text: str) -> str:
        return with_path(text, absolute)

    moved: dict[str, Any] = {"out": os.path.abspath(config.out)}
    for name in PATHS:
        value = getattr(config, name)
        moved[name] = (
            tuple(map(moved_from, value)) if isinstance(value, tuple) else value and moved_from(value)
        )
    return dataclasses.replace(config, **moved)


@contextlib.contextmanager
def open_inputs(config: PreprocessConfig, found: Scenes | None = None) -> Iterator[Inputs]:
    """Open mosaic and labels; of scenes that another process has `found`, only those that are read."""
    assert config.labels is not None
    with (
        open_stack(
            config.bands, config.indices, config,
            scenes=found or config.scenes,
            channels=load_channels(config.channels, dates_of(config.bands)),
        ) as stack,
        open_labels(
            config.labels, stack.grid, load_scheme(config.scheme, config.codes) if config.scheme else None,
            field=config.label_field, layer=config.label_layer, pine=config.pine,
            spruce=config.spruce, resample=config.resample,
            allow_vrt=config.allow_vrt, allow_remote=config.allow_remote,
        ) as labels,
    ):  # fmt: skip
        yield Inputs(config, stack, labels)


def count_labels(inputs: Inputs, spot: Spot) -> Counter[int]:
    """Source codes of a window, with their pixels."""
    return inputs.labels.count(spot.window)


def survey(inputs: Inputs, spot: Spot) -> Survey:
    """Count the labelled valid pixels of each class at a numbered place."""
    coverage = Coverage()
    return Survey(spot.number, count_classes(inputs, spot.window, coverage), coverage)


def count_classes(inputs: Inputs, window: Window, coverage: Coverage) -> tuple[int, ...]:
    """Return the labelled valid pixels of class 1..N in a window; `coverage` takes how they were read."""
    counts = np.zeros(256, np.int64)
    for part in squares_of(window, 1024):
        classes = inputs.labels.read(part)
        if (classes != IGNORE).any():
            classes[~valid_pixels(inputs.stack.read(part, coverage))] = IGNORE
            counts += np.bincount(classes.ravel(), minlength=256)
    return _by_class(counts, inputs.labels)


def find_labels(inputs: Inputs, spot: Spot) -> LabelledPixels:
    """Find the labelled valid pixels of a numbered place."""
    found = []
    for part in squares_of(spot.window, 1024):
        classes = _masked_labels(inputs.labels, part, inputs.config.border_ignore)
        if (classes != IGNORE).any():
            classes[~valid_pixels(inputs.stack.read(part))] = IGNORE
        rows, cols = np.nonzero(classes != IGNORE)
        number = np.full(len(rows), spot.number, np.int32)
        place = (rows + part.row).astype(np.int32), (cols + part.col).astype(np.int32)
        found.append(LabelledPixels(*place, classes[rows, cols], number))
    return LabelledPixels.concatenate(found)


def cut(inputs: Inputs, place: Place) -> Cut:
    """Write image and masks of one place, strip by strip."""
    window = place.window
    index = place.name.rpartition("_")[2]
    paths = [Path(inputs.config.out) / f"{place.split}_{kind}_{index}.npy" for kind in ("image", "masks")]
    counts = np.zeros(256, np.int64)
    moments = Moments.zero(len(inputs.stack.channels))
    with write_atomically(paths[0]) as first, write_atomically(paths[1]) as second:
        with (
            NpyWriter(first, np.dtype(np.float32), (*window.shape, len(inputs.stack.channels))) as images,
            NpyWriter(second, np.dtype(np.uint8), window.shape) as masks,
        ):
            for image, classes in strips_of(inputs, place):
                images.write(image)
                masks.write(classes)
                counts += np.bincount(classes.ravel(), minlength=256)
                moments += Moments.of(image, inputs.stack.channel_set.optional)
        sha256 = (sha256_of(first), sha256_of(second))
        inputs.check()
    file = StackFile(
        name=place.name,
        split=place.split,
        image=paths[0],
        masks=paths[1],
        shape=window.shape,
        class_counts=_by_class(counts, inputs.labels),
        number=place.number,
        grid=inputs.stack.grid.crop(window),
        window=window,
        statistics=moments.statistics,
        sha256=sha256,
        group=place.group,
        patches=place.labels.inside(window).rectangles() if place.labels else (),
    )
    return Cut(file, moments)


def strips_of(inputs: Inputs, place: Place) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image float32 (y, x, band) and masks uint8 (y, x) of a place, strip by strip from above."""
    window = place.window
    rows = max(1, STRIP // window.width)
    for row in range(0, window.height, rows):
        strip = Window(window.row + row, window.col, rows, window.width).intersect(window)
        image = inputs.stack.read(strip)
        if place.labels:
            classes = _sparse_labels(place, strip, image)
        else:
            classes = _masked_labels(inputs.labels, strip, inputs.config.border_ignore)
        classes[~valid_pixels(image)] = IGNORE
        for hidden in near_windows(strip.relative_to(window), place.hidden, 0):
            classes[hidden.slices] = IGNORE
        yield image, classes


def in_place(work: Callable[[Inputs, Item], Result], inputs: Inputs, item: Item) -> Result:
    """On a worker: the result of `survey`, `cut` or `count_labels`."""
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        return work(inputs, item)


def _check_current(site: Site) -> None:
    """Raise if the run that asked is over, since another may be writing stacks by now."""
    current = Path(site.config.out) / CURRENT
    if not current.is_file() or parse_json(current.read_bytes()) != {"key": site.key}:
        raise UnfitWorkerError(f"cannot cut stacks into '{site.config.out}', since another run does so now")


def stamps_at(config: PreprocessConfig) -> str:
    """Digest of what all machines must see alike: paths, sizes and times of change of all inputs."""
    stamps = stamps_of(paths_of(config), allow_vrt=config.allow_vrt)
    listed = [(stamp.path, stamp.bytes, stamp.changed) for stamp in stamps]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def versions() -> tuple[str, ...]:
    """Versions of what decides the bytes of a stack."""
    gdal: Any = rasterio.__gdal_version__
    return (__version__, np.__version__, gdal, platform.machine())


def _by_class(counts: np.ndarray, labels: Labels) -> tuple[int, ...]:
    return tuple(int(n) for n in counts[1 : len(labels.legend) + 1])


def _masked_labels(labels: Labels, window: Window, border: int) -> np.ndarray:
    """Class numbers of a window, 255 within `border` pixels of another class: uint8 (y, x)."""
    if not border:
        return labels.read(window)
    grown = window.grow(border).intersect(labels.grid.extent)
    classes = labels.read(grown)
    classes[near_borders(classes, border)] = IGNORE
    return classes[window.relative_to(grown).slices].copy()


def _sparse_labels(place: Place, window: Window, image: np.ndarray) -> np.ndarray:
    """Class numbers of a window, 255 beside the place's own pixels; `image` loses what it may not see."""
    assert place.labels
    classes = np.full(window.shape, IGNORE, np.uint8)
    own = place.labels.inside(window)
    classes[own.rows, own.cols] = own.classes
    if place.withheld:
        unseen = place.withheld.inside(window)
        image[unseen.rows, unseen.cols] = np.nan
    return classes
