"""Tasks on one window of a mosaic: check its labels, count its classes, cut its stack.

A task may run in another process (`Site`), and may be repeated with the same result.
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
from lulc.core.channels import CHANNEL_SETS, change_paths, dates_of, split_prefix, with_path
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
from lulc.preprocessing.plan import Candidate, PlannedStack
from lulc.rasters.channels import load_channels
from lulc.rasters.guards import from_anywhere
from lulc.rasters.scenes import Scenes, find_scenes, read_scenes
from lulc.rasters.sources import stamps_of
from lulc.rasters.stack import Coverage, Stack, open_stack

STRIP = 2**18
"""Pixels in memory at once: 15 MB with 14 channels."""

GDAL_CACHE = 192 * 2**20
"""Bytes of GDAL's block cache; by default it takes a fraction of the machine's memory."""

SCENES, CURRENT = "scenes.json", "run.json"
"""Files beside the stacks during a run: the scenes that were found, and the key of the run."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Inputs:
    """Open inputs of one process and their options; `open_inputs` makes them.

    `check` is called before a stack gets its name; it raises where the stack must not be written.
    """

    config: PreprocessConfig
    stack: Stack
    labels: Labels
    check: Callable[[], object] = lambda: None


class Survey(NamedTuple):
    """Survey of a candidate: its number, labelled valid pixels of class 1..N, and coverage."""

    number: int
    counts: tuple[int, ...]
    coverage: Coverage


class Cut(NamedTuple):
    """A stack on disk, and the exact moments of its valid pixels."""

    file: StackFile
    moments: Moments


@dataclass(frozen=True)
class Site:
    """Description, with absolute paths, with which another process opens the same inputs.

    `key` is the digest of inputs and parameters, `stamps` that of the files' sizes and modification times.
    """

    config: PreprocessConfig
    key: str
    stamps: str
    versions: tuple[str, ...]

    @contextlib.contextmanager
    def open(self) -> Iterator[Inputs]:
        """Open the inputs on a worker; refuse other files or versions than those of the run that asks."""
        config = self.config
        with contextlib.ExitStack() as stack:
            try:
                with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
                    scenes = read_scenes(Path(config.out) / SCENES, config) if config.scenes else None
                    inputs = stack.enter_context(open_inputs(config, scenes))
                stamps = stamps_at(config)
            except InputError as error:
                raise UnfitWorkerError(
                    f"a worker cannot open what this machine can: {error.problem}",
                    "Give all workers the same files under the same paths.",
                ) from error
            if (stamps, versions()) != (self.stamps, self.versions):
                differs = "files" if stamps != self.stamps else "versions"
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
    """Return all input files that the options name, and the files of scenes in folders."""
    values = [getattr(config, name) for name in PATHS if name != "scenes"]
    scenes = find_scenes(config.scenes, allow_vrt=config.allow_vrt)
    texts = [text for v in (*scenes, *values) for text in (v if isinstance(v, tuple) else [v] if v else [])]
    return [split_prefix(text)[1] for text in texts]


def with_absolute_paths(config: PreprocessConfig) -> PreprocessConfig:
    """Return the config with absolute paths, for processes that were started in other folders."""

    def absolute(path: str) -> str:
        # Names of channel sets and schemes stay.
        return path if path in CHANNEL_SETS or not os.path.exists(path) else from_anywhere(path)

    moved = {name: change_paths(getattr(config, name), lambda t: with_path(t, absolute)) for name in PATHS}
    return dataclasses.replace(config, out=os.path.abspath(config.out), **moved)


@contextlib.contextmanager
def open_inputs(config: PreprocessConfig, found: Scenes | None = None) -> Iterator[Inputs]:
    """Open mosaic and labels; scenes that another process has `found` are not searched again."""
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


def count_labels(inputs: Inputs, candidate: Candidate) -> Counter[int]:
    """Count the pixels of each label code in a window."""
    return inputs.labels.count(candidate.window)


def survey(inputs: Inputs, candidate: Candidate) -> Survey:
    """Count the labelled valid pixels of each class in a candidate."""
    coverage, counts = Coverage(), np.zeros(256, np.int64)
    for square in squares_of(candidate.window, 1024):
        classes = inputs.labels.read(square)
        if (classes != IGNORE).any():
            classes[~valid_pixels(inputs.stack.read(square, coverage))] = IGNORE
            counts += np.bincount(classes.ravel(), minlength=256)
    return Survey(candidate.number, _by_class(counts, inputs.labels), coverage)


def find_labels(inputs: Inputs, candidate: Candidate) -> LabelledPixels:
    """Find the labelled valid pixels of a candidate."""
    pixels = []
    for square in squares_of(candidate.window, 1024):
        classes = _masked_labels(inputs.labels, square, inputs.config.border_ignore)
        if (classes != IGNORE).any():
            classes[~valid_pixels(inputs.stack.read(square))] = IGNORE
        rows, cols = np.nonzero(classes != IGNORE)
        number = np.full(len(rows), candidate.number, np.int32)
        position = (rows + square.row).astype(np.int32), (cols + square.col).astype(np.int32)
        pixels.append(LabelledPixels(*position, classes[rows, cols], number))
    return LabelledPixels.concatenate(pixels)


def cut(inputs: Inputs, planned: PlannedStack) -> Cut:
    """Write image and masks of one stack, strip by strip."""
    window = planned.window
    index = planned.name.rpartition("_")[2]
    paths = [Path(inputs.config.out) / f"{planned.split}_{kind}_{index}.npy" for kind in ("image", "masks")]
    counts = np.zeros(256, np.int64)
    moments = Moments.zero(len(inputs.stack.channels))
    with write_atomically(paths[0]) as first, write_atomically(paths[1]) as second:
        with (
            NpyWriter(first, np.dtype(np.float32), (*window.shape, len(inputs.stack.channels))) as images,
            NpyWriter(second, np.dtype(np.uint8), window.shape) as masks,
        ):
            for image, classes in strips_of(inputs, planned):
                images.write(image)
                masks.write(classes)
                counts += np.bincount(classes.ravel(), minlength=256)
                moments += Moments.of(image, inputs.stack.channel_set.optional)
        sha256 = (sha256_of(first), sha256_of(second))
        inputs.check()
    file = StackFile(
        name=planned.name,
        split=planned.split,
        image=paths[0],
        masks=paths[1],
        shape=window.shape,
        class_counts=_by_class(counts, inputs.labels),
        number=planned.number,
        grid=inputs.stack.grid.crop(window),
        window=window,
        statistics=moments.statistics,
        sha256=sha256,
        group=planned.group,
        patches=planned.labels.inside(window).rectangles() if planned.labels else (),
    )
    return Cut(file, moments)


def strips_of(inputs: Inputs, planned: PlannedStack) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield image float32 (y, x, band) and masks uint8 (y, x) of a stack, strip by strip from above."""
    window = planned.window
    rows = max(1, STRIP // window.width)
    for row in range(0, window.height, rows):
        strip = Window(window.row + row, window.col, rows, window.width).intersect(window)
        image = inputs.stack.read(strip)
        if planned.labels:
            classes = _sparse_labels(planned, strip, image)
        else:
            classes = _masked_labels(inputs.labels, strip, inputs.config.border_ignore)
        classes[~valid_pixels(image)] = IGNORE
        for hidden in near_windows(strip.relative_to(window), planned.hidden, 0):
            classes[hidden.slices] = IGNORE
        yield image, classes


def run_on_worker(work: Callable[[Inputs, Item], Result], inputs: Inputs, item: Item) -> Result:
    """Run `count_labels`, `survey`, `find_labels` or `cut` on a worker."""
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        return work(inputs, item)


def _check_current(site: Site) -> None:
    """Refuse to write a stack after the run that asked for it is over, since another may be writing."""
    current = Path(site.config.out) / CURRENT
    if not current.is_file() or parse_json(current.read_bytes()) != {"key": site.key}:
        raise UnfitWorkerError(f"cannot cut stacks into '{site.config.out}', since another run does so now")


def stamps_at(config: PreprocessConfig) -> str:
    """Return a digest of the paths, sizes and modification times of all inputs, as this machine sees them."""
    stamps = stamps_of(paths_of(config), allow_vrt=config.allow_vrt)
    listed = [(stamp.path, stamp.bytes, stamp.changed) for stamp in stamps]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def versions() -> tuple[str, ...]:
    """Versions of the libraries that decide the bytes of a stack."""
    gdal: Any = rasterio.__gdal_version__
    return (__version__, np.__version__, gdal, platform.machine())


def _by_class(counts: np.ndarray, labels: Labels) -> tuple[int, ...]:
    return tuple(int(n) for n in counts[1 : len(labels.legend) + 1])


def _masked_labels(labels: Labels, window: Window, border: int) -> np.ndarray:
    """Return the class numbers of a window, uint8 (y, x), 255 within `border` pixels of another class."""
    if not border:
        return labels.read(window)
    grown = window.grow(border).intersect(labels.grid.extent)
    classes = labels.read(grown)
    classes[near_borders(classes, border)] = IGNORE
    return classes[window.relative_to(grown).slices].copy()


def _sparse_labels(planned: PlannedStack, window: Window, image: np.ndarray) -> np.ndarray:
    """Return the class numbers of a window from the stack's pixels; withheld pixels of `image` become NaN."""
    assert planned.labels
    classes = np.full(window.shape, IGNORE, np.uint8)
    labels = planned.labels.inside(window)
    classes[labels.rows, labels.cols] = labels.classes
    if planned.withheld:
        withheld = planned.withheld.inside(window)
        image[withheld.rows, withheld.cols] = np.nan
    return classes
