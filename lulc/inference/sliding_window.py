"""Sliding window: a function that reads windows and a network to the probabilities of every pixel.

This module knows neither files nor deep-learning frameworks.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from lulc.core.buffers import Buffers
from lulc.core.statistics import valid_pixels
from lulc.core.threads import ahead, in_order
from lulc.core.windows import Part, Plan, PlannedWindow, Window

Read = Callable[[Window], np.ndarray]
"""Window inside the image to float32 (y, x, band), NaN in every channel of invalid pixels."""

Network = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to float32 (n, y, x, class)."""

Item = TypeVar("Item")

STRIP = 256
"""Rows of a prediction that are yielded together, as high as a block: a copy fits the processor's cache."""


class Batch(NamedTuple):
    """Windows of one part, in plan order.

    Parameters
    ----------
    windows
        Each with its mask of valid pixels, bool (y, x) of the write rectangle, or None if none is valid.
    x : float32 (n, y, x, band), or None
        The windows with valid pixels, padded with NaN to the plan's shape.
    """

    part: Part
    windows: list[tuple[PlannedWindow, np.ndarray | None]]
    x: np.ndarray | None


class Prediction(NamedTuple):
    """The result of one window, or of some of its rows.

    Parameters
    ----------
    part, window
        Position in the map; the arrays cover ``window.write``.
    probabilities : array (y, x, class), or None
        Output of the network: float32 probabilities, or bands of a map. None if no pixel is valid.
    valid : bool (y, x), or None
        True for valid pixels.
    """

    part: Part
    window: PlannedWindow
    probabilities: np.ndarray | None
    valid: np.ndarray | None


@dataclass
class Clock:
    """Seconds that the network was busy, and the time from its first to its last window."""

    busy: float = 0.0
    first: float | None = None
    last: float = 0.0
    calls: int = 0

    @property
    def span(self) -> float:
        return 0.0 if self.first is None else self.last - self.first

    @property
    def share(self) -> float:
        """Fraction of the span in which the network was busy; 1 where it never ran."""
        return self.busy / self.span if self.span else 1.0

    def measure(self, network: Network) -> Network:
        """Return `network` with its calls timed."""

        def timed(x: np.ndarray) -> np.ndarray:
            start = time.perf_counter()
            y = network(x)
            self.last = time.perf_counter()
            self.first = start if self.first is None else self.first
            self.busy += self.last - start
            self.calls += 1
            return y

        return timed


def predict_parts(
    read: Read,
    network: Network,
    plan: Plan,
    parts: Iterable[Part],
    *,
    further: Sequence[Read] = (),
    batch: int = 1,
    gaussian: bool = False,
    copy: bool = True,
    threads: bool = True,
) -> Generator[Prediction]:
    """Classify parts, one after the other.

    Reading and the network run in a thread each, one batch ahead of their consumer: while a window is
    computed, the next one is read and the caller gets the one before in strips of `STRIP` rows.

    Parameters
    ----------
    read
        Called from one thread at a time.
    network
        Called from one thread, always with the shape (batch, *plan.window, band).
    further
        More functions like `read`; each lets one more window be read at the same time.
    batch
        Windows in each call of the network.
    gaussian
        True for windows that overlap by half, averaged with Gaussian weights, instead of windows with a halo.
    copy
        False to yield views of the network's output, which stays in memory until the last view is dropped.
    threads
        False to do everything in the calling thread, in the same order.

    Yields
    ------
    Prediction
        In plan order; the write rectangles of a part tile it exactly.
    """
    work = ((part, windows_of(plan, part, gaussian=gaussian)) for part in parts)
    predictions = _predict_windows((read, *further), network, plan, work, batch, threads=threads)
    with closing(predictions):
        yield from _blend(predictions, plan) if gaussian else _strips(predictions, copy=copy)


def predict_windows(
    read: Read,
    network: Network,
    plan: Plan,
    work: Iterable[tuple[Part, Iterable[PlannedWindow]]],
    *,
    further: Sequence[Read] = (),
    batch: int = 1,
    threads: bool = True,
) -> Generator[Prediction]:
    """Classify given windows of each part without blending, as `predict_parts` does."""
    predictions = _predict_windows((read, *further), network, plan, work, batch, threads=threads)
    with closing(predictions):
        yield from _strips(predictions)


def _predict_windows(
    reads: Sequence[Read], network: Network, plan: Plan,
    work: Iterable[tuple[Part, Iterable[PlannedWindow]]], batch: int, *, threads: bool,
) -> Generator[Prediction]:  # fmt: skip
    run_ahead = ahead if threads else _in_this_thread
    batches = run_ahead(_read_batches(reads if threads else reads[:1], plan, work, batch))
    predictions = run_ahead(_predict(batches, network, batch))
    with closing(batches), closing(predictions):
        yield from predictions


def windows_of(plan: Plan, part: Part, *, gaussian: bool = False) -> list[PlannedWindow]:
    """Return the windows of a part: those of the plan, or for `gaussian` those that overlap by half."""
    return overlapping_windows(plan, part) if gaussian else plan.windows(part)


def overlapping_windows(plan: Plan, part: Part) -> list[PlannedWindow]:
    """Return the windows that meet a part, of a lattice over the whole image with steps of half a window.

    The lattice does not depend on the part, so that blended parts fit together without a seam.
    """

    def starts(length: int, size: int) -> list[int]:
        step = max(plan.stride, size // 2 // plan.stride * plan.stride)
        return [*range(0, length - size, step), length - size]

    rows, cols = map(starts, plan.padded, plan.window)
    windows = [Window(row, col, *plan.window) for row in rows for col in cols]
    pairs = [(read, read.intersect(part.extent)) for read in windows]
    return [PlannedWindow(read, write) for read, write in pairs if write.height and write.width]


class _Loaded(NamedTuple):
    """A window with its mask and its values; both are None where no pixel is valid."""

    part: Part
    window: PlannedWindow
    valid: np.ndarray | None
    x: np.ndarray | None


def _read_batches(
    reads: Sequence[Read], plan: Plan, work: Iterable[tuple[Part, Iterable[PlannedWindow]]], size: int
) -> Iterator[Batch]:
    planned = ((part, window) for part, windows in work for window in windows)
    windows: list[tuple[PlannedWindow, np.ndarray | None]] = []
    arrays: list[np.ndarray] = []
    batch_part: Part | None = None
    with closing(_load(reads, plan, planned)) as loaded:
        for part, window, valid, x in loaded:
            if windows and batch_part is not None and part != batch_part:
                yield Batch(batch_part, windows, _stack(arrays))
                windows, arrays = [], []
            batch_part = part
            windows.append((window, valid))
            if x is not None:
                arrays.append(x)
            # So that the memory is free for the next window.
            del x
            if len(arrays) == size:
                yield Batch(part, windows, _stack(arrays))
                windows, arrays = [], []
    if windows and batch_part is not None:
        yield Batch(batch_part, windows, _stack(arrays))


def _load(
    reads: Sequence[Read], plan: Plan, planned: Iterable[tuple[Part, PlannedWindow]]
) -> Generator[_Loaded]:
    """Read windows in order, as many at a time as there are functions that read."""
    free: queue.SimpleQueue[Read] = queue.SimpleQueue()
    for read in reads:
        free.put(read)

    def load(item: tuple[Part, PlannedWindow]) -> _Loaded:
        part, window = item
        read = free.get()
        try:
            x = _read_padded(read, plan, window.read)
        finally:
            free.put(read)
        valid = valid_pixels(x[window.valid.slices])
        return _Loaded(part, window, valid, x) if valid.any() else _Loaded(part, window, None, None)

    if len(reads) == 1:
        yield from map(load, planned)
        return
    with ThreadPoolExecutor(len(reads), thread_name_prefix="reads") as pool:
        yield from in_order(load, planned, pool, len(reads) - 1)


def _stack(arrays: list[np.ndarray]) -> np.ndarray | None:
    if len(arrays) == 1:
        return arrays[0][np.newaxis]
    return np.stack(arrays) if arrays else None


def _read_padded(read: Read, plan: Plan, window: Window) -> np.ndarray:
    """Read a window, padded right and below to the plan's shape with NaN, which the network turns into 0."""
    inside = window.intersect(Window(0, 0, plan.height, plan.width))
    values = read(inside)
    if inside == window:
        return values
    padded = np.full((*window.shape, values.shape[-1]), np.nan, np.float32)
    padded[: inside.height, : inside.width] = values
    return padded


def _predict(batches: Iterable[Batch], network: Network, size: int) -> Iterator[Prediction]:
    for part, windows, x in batches:
        results: Iterator[np.ndarray] = iter(())
        if x is not None:
            if len(x) < size:
                # The last batch of a part is filled up, since all calls have the same shape.
                x = np.concatenate([x, np.full((size - len(x), *x.shape[1:]), np.nan, np.float32)])
            results = iter(network(x))
        # So that the memory is free for the next batch.
        x = None
        for window, valid in windows:
            probabilities = None if valid is None else next(results)[window.valid.slices]
            yield Prediction(part, window, probabilities, valid)


def _strips(predictions: Iterable[Prediction], *, copy: bool = True) -> Iterator[Prediction]:
    """Cut predictions at multiples of `STRIP` rows of the map; the planes of copies are contiguous."""
    memory = Buffers() if copy else None
    for prediction in predictions:
        yield from _cut(prediction, memory)
        # The caller holds copies: the network's array is freed before the next one is computed.
        del prediction


def _cut(prediction: Prediction, memory: Buffers | None) -> Iterator[Prediction]:
    part, window, probabilities, valid = prediction
    if probabilities is None or valid is None:
        yield prediction
        return
    write = window.write
    for top in range(write.row // STRIP * STRIP, write.stop[0], STRIP):
        rows = Window(top, write.col, STRIP, write.width).intersect(write)
        place = rows.relative_to(write).slices
        planes = np.moveaxis(probabilities[place], -1, 0)
        if memory is not None:
            # All of one shape, so that strips reuse the same memory.
            copied = memory.empty((len(planes), STRIP, write.width))[:, : rows.height]
            np.copyto(copied, planes)
            planes = copied
        yield Prediction(part, PlannedWindow(window.read, rows), np.moveaxis(planes, 0, -1), valid[place])


def _blend(predictions: Iterable[Prediction], plan: Plan) -> Iterator[Prediction]:
    """Average overlapping windows by their weights; yield strips that no later window reaches."""
    weights = _gaussian(plan.window)
    strip: _Strip | None = None
    for prediction in predictions:
        top = prediction.window.write.row
        if strip is not None and (strip.part != prediction.part or top > strip.top):
            below = top if strip.part == prediction.part else strip.part.extent.stop[0]
            yield from strip.release(below)
            strip = strip if strip.part == prediction.part else None
        strip = strip or _Strip(prediction.part, plan.window[0])
        strip.add(prediction, weights[prediction.window.valid.slices])
    if strip is not None:
        yield from strip.release(strip.part.extent.stop[0])


class _Strip:
    """Weighted sums over the rows of a part that windows still reach."""

    def __init__(self, part: Part, height: int) -> None:
        self.part = part
        self.top = part.extent.row
        self._rows = min(height, part.extent.height)
        self._sum: np.ndarray | None = None
        self._weight = np.zeros((self._rows, part.extent.width), np.float32)
        self._valid = np.zeros((self._rows, part.extent.width), bool)

    def add(self, prediction: Prediction, weight: np.ndarray) -> None:
        if prediction.probabilities is None or prediction.valid is None:
            return
        if self._sum is None:
            self._sum = np.zeros((*self._weight.shape, prediction.probabilities.shape[-1]), np.float32)
        origin = Window(self.top, self.part.extent.col, *self._weight.shape)
        place = prediction.window.write.relative_to(origin).slices
        self._sum[place] += prediction.probabilities * weight[..., np.newaxis]
        self._weight[place] += weight
        self._valid[place] |= prediction.valid

    def release(self, below: int) -> Iterator[Prediction]:
        """Yield the rows above row `below` of the image and move down to it."""
        count = below - self.top
        window = Window(self.top, self.part.extent.col, count, self.part.extent.width)
        valid = self._valid[:count].copy()
        planned = PlannedWindow(window, window)
        if self._sum is None or not valid.any():
            yield Prediction(self.part, planned, None, None)
        else:
            weight = np.maximum(self._weight[:count], np.finfo(np.float32).tiny)
            yield Prediction(self.part, planned, self._sum[:count] / weight[..., np.newaxis], valid)
        for array in (self._sum, self._weight, self._valid):
            if array is not None:
                array[: -count or None] = array[count:].copy()
                array[self._rows - count :] = 0
        self.top = below


def _gaussian(shape: tuple[int, int]) -> np.ndarray:
    """Return the weights of a window, float32 (y, x): a Gaussian whose deviation is an eighth of the side.

    So does nnU-Net: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z.
    """
    axes = []
    for size in shape:
        distance = np.arange(size) - (size - 1) / 2
        axes.append(np.exp(-0.5 * (distance / (size / 8)) ** 2))
    return np.maximum(np.outer(*axes), 1e-4).astype(np.float32)


def _in_this_thread(items: Iterator[Item]) -> Generator[Item]:
    yield from items
