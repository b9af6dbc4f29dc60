"""Classification of arrays in memory or of Dask arrays, without a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lulc.config import ClassifyConfig
from lulc.core.claims import claim_outputs
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, UNCLASSIFIED, InputError, Legend
from lulc.core.statistics import valid_pixels
from lulc.core.storage import put_folder, temporary_folder, write_atomically
from lulc.core.windows import Part, PlannedWindow, Window
from lulc.inference.job import no_valid_pixel, open_job
from lulc.inference.sliding_window import Prediction
from lulc.labels.value_tables import LEGEND_TAG
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import REST
from lulc.maps.writer import PART, write_map
from lulc.rasters.cubes import ArraySource
from lulc.rasters.layers import Source

if TYPE_CHECKING:
    import xarray as xr


class ClassifiedArray(NamedTuple):
    """A map in memory.

    Parameters
    ----------
    classes : uint8 (y, x)
        1..N, 0 unclassified, 255 no data.
    probabilities : float32 (class, y, x)
        Calibrated, NaN = no data.
    extra
        Measures of certainty by name, float32 (y, x).
    """

    grid: GridSpec
    legend: Legend
    classes: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    extra: Mapping[str, NDArray[np.float32]]
    tags: Mapping[str, str]

    @property
    def has_activations(self) -> bool:
        """True, as there always are probabilities."""
        return True


class _Span(NamedTuple):
    """Slices of a chunk along an axis: in the array with its halo (content), and in the network's window."""

    content: slice
    filled: slice
    inner: slice

    @classmethod
    def of(cls, number: int, chunk: int, depth: int, side: int, length: int) -> _Span:
        """Place chunk `number`; windows end at the edges of the image, where the network pads."""
        start = number * chunk
        first, last = max(0, start - depth), min(length, start + chunk + depth)
        window = min(max(0, start - depth), length - side)
        shift = start - depth
        return cls(
            slice(first - shift, last - shift),
            slice(first - window, last - window),
            slice(start - window, min(start + chunk, length) - window),
        )


def classify_lazily(config: ClassifyConfig, source: ArraySource) -> ClassifiedArray:
    """Return the arrays of `classify_source` as Dask arrays, which compute each chunk when it is used.

    Chunks are the windows of the plan without their halo. Scaling, engine and model are chosen now, from a
    few windows of the source.

    Raises
    ------
    InputError
        As `classify_source`, or if the options need the whole image at once or another grid.
    """
    import dask.array as da

    config = dataclasses.replace(config, activations="float32")
    opened = open_job(config, sources=[source])
    job = opened.__enter__()
    if job.gaussian or not job.stack.grid.matches(source.grid):
        raise InputError(
            "cannot classify a lazy array with --blend gaussian or on another grid, expected its own windows",
            "Leave blend and like out, or load the array first: array.load().",
        )
    engine = job.build_engine()
    network, lock = job.network(engine), threading.Lock()
    shape, (height, width), halo = job.stack.grid.shape, job.plan.window, job.plan.halo
    depths = [0 if side >= length else halo for side, length in zip((height, width), shape, strict=True)]
    chunks = tuple(side - 2 * depth for side, depth in zip((height, width), depths, strict=True))
    if any(chunk < depth for chunk, depth in zip(chunks, depths, strict=True)):
        raise InputError(
            f"cannot classify a lazy array in windows of {height} x {width} pixels, "
            f"expected 3 times the halo of {halo} or more",
            f"Type --window {4 * halo}, or leave it out.",
        )
    legend = job.profile.legend
    bands = 1 + len(legend) + len(config.extra)

    def convert(values: np.ndarray, block_info: Any = None) -> np.ndarray:
        """Convert stored values (layer, y, x) to channels."""
        (top, bottom), (left, right) = block_info[0]["array-location"][1:]
        window = Window(top, left, bottom - top, right - left)
        with lock, source.holding(window, values):
            return np.moveaxis(job.stack.read(window), -1, 0).copy()

    def predict(x: np.ndarray, block_info: Any = None) -> np.ndarray:
        """Classify a chunk and its halo, (channel, y, x)."""
        numbers = block_info[0]["chunk-location"][1:]
        rows, cols = map(_Span.of, numbers, chunks, depths, job.plan.window, job.plan.padded)
        window = np.full((config.batch_size, height, width, len(x)), np.nan, np.float32)
        window[:, rows.filled, cols.filled] = np.moveaxis(x[:, rows.content, cols.content], 0, -1)
        sizes = (span.inner.stop - span.inner.start for span in (rows, cols))
        inner = Window(rows.inner.start, cols.inner.start, *sizes)
        result = np.full((bands, *chunks), np.nan, np.float32)
        valid = valid_pixels(window[0][inner.slices])
        if not valid.any():
            return result
        place = PlannedWindow(Window(0, 0, height, width), inner)
        # `opened` keeps the files of masks and fills open while chunks may be computed.
        with lock, contextlib.nullcontext(opened):
            probabilities = network(window)[0][inner.slices].copy()
            encoded, _ = job.encode(Prediction(Part(0, inner), place, probabilities, valid))
        assert encoded is not None
        target = result[:, : inner.height, : inner.width]
        np.copyto(target, encoded, where=encoded != job.profile.encoding.nodata)
        return result

    stored = da.stack(source.planes()).rechunk((-1, *chunks))
    names = len(job.card.channels)
    like = {"dtype": np.float32, "meta": np.empty((0, 0, 0), np.float32)}
    image = stored.map_blocks(convert, chunks=((names,), *stored.chunks[1:]), **like)
    padding = [(0, 0), *((0, -length % chunk) for length, chunk in zip(shape, chunks, strict=True))]
    image = da.pad(image, padding, constant_values=np.nan).rechunk((-1, *chunks))
    depth = {0: 0, 1: depths[0], 2: depths[1]}
    around = da.overlap.overlap(image, depth, np.nan)
    whole = around.map_blocks(predict, chunks=((bands,), *image.chunks[1:]), **like)
    values = whole[:, : shape[0], : shape[1]]
    classes = da.where(da.isnan(values[0]), IGNORE, values[0]).astype(np.uint8)
    parts = values[1 : 1 + len(legend)], [values[1 + len(legend) + k] for k in range(len(config.extra))]
    return _assembled(job.stack.grid, legend, classes, *parts, config.extra, job.tags(engine))


def classify_source(config: ClassifyConfig, source: Source) -> ClassifiedArray:
    """Classify an open raster with the windows, engine and calibration of `classify`, and close it.

    Options about the file of the map are ignored.

    Raises
    ------
    InputError
        If the model or the raster can't be used, they don't fit together, or no pixel is valid.
    """
    config = dataclasses.replace(config, activations="float32")
    with open_job(config, sources=[source]) as job:
        engine = job.build_engine()
        legend, shape = job.profile.legend, job.stack.grid.shape
        values = np.full((1 + len(legend) + len(config.extra), *shape), np.nan, np.float32)
        for prediction in job.predictions(job.network(engine), list(job.plan.parts())):
            encoded, _ = job.encode(prediction)
            if encoded is not None:
                rows, cols = prediction.window.write.slices
                values[:, rows, cols] = np.where(encoded == job.profile.encoding.nodata, np.nan, encoded)
        grid, tags = job.stack.grid, job.tags(engine)
    valid = ~np.isnan(values[0])
    if not valid.any():
        raise no_valid_pixel()
    classes = np.where(valid, values[0], IGNORE).astype(np.uint8)
    probabilities, extra = np.split(values[1:], [len(legend)])
    return _assembled(grid, legend, classes, probabilities, list(extra), config.extra, tags)


def write_array(made: ClassifiedArray, frame: xr.Dataset, out: Path, *, overwrite: bool) -> xr.Dataset:
    """Write a map in memory, completely or not at all; return it, a lazy one opened from its file.

    Parameters
    ----------
    made, frame
        The map, and the same as a Dataset.
    out
        ``.nc`` or ``.zarr``, which take lazy maps chunk by chunk, or ``.tif`` for maps in memory.

    Raises
    ------
    InputError
        If `out` has another suffix, or exists.
    """
    lazy = not isinstance(made.classes, np.ndarray)
    if out.suffix not in (".nc", ".zarr", *([] if lazy else [".tif"])):
        raise InputError(
            f"cannot write {'a lazy array' if lazy else 'an array'} to '{out}', expected .nc or .zarr"
            + ("" if lazy else ", or .tif"),
            "Give another suffix, or omit out and write the result yourself.",
        )
    with claim_outputs([out], "array") as claims:
        replaceable = (overwrite and not out.is_dir()) or claims.may_replace(out)
        if out.exists() and not replaceable:
            raise InputError(
                f"cannot write '{out}', since it exists already",
                "Move it away, or give another out" + (", or overwrite=True." if out.is_file() else "."),
            )
        if out.suffix == ".tif":
            _write_geotiff(made, out)
        elif out.suffix == ".nc":
            packing = {name: {"zlib": True, "complevel": 4} for name in frame.data_vars}
            with write_atomically(out) as temporary:
                frame.to_netcdf(temporary, engine="netcdf4", encoding=packing)
        else:
            with temporary_folder(out) as folder:
                frame.to_zarr(folder / out.name, zarr_format=2, consolidated=True)
                put_folder(folder / out.name, out)
    if not lazy:
        return frame
    import xarray as xr

    engine = "zarr" if out.suffix == ".zarr" else "netcdf4"
    return xr.open_dataset(out, chunks={}, mask_and_scale=False, decode_coords="all", engine=engine)


def _write_geotiff(made: ClassifiedArray, out: Path) -> None:
    legend = json.dumps(made.legend.to_json(), ensure_ascii=False, sort_keys=True)
    tags = dict(made.tags) | {LEGEND_TAG: legend}
    profile = MapProfile(made.grid, made.legend, "float32", PART, tags, extra=tuple(made.extra))
    planes = np.concatenate([made.probabilities, *(values[np.newaxis] for values in made.extra.values())])

    def read(window: Window) -> np.ndarray:
        classes = made.classes[window.slices]
        values = np.moveaxis(planes[(slice(None), *window.slices)], 0, -1)
        return profile.encoding.apply(classes, values, classes != IGNORE)

    write_map(profile, read, out)


def _assembled(
    grid: GridSpec, legend: Legend, classes: Any, probabilities: Any, extra: Sequence[Any],
    names: Sequence[str], tags: Mapping[str, str],
) -> ClassifiedArray:  # fmt: skip
    """Return a map in memory; with a single class, the rest is a class of its own."""
    if len(legend) == 1:
        # `lulc.maps.reader` reads the file of such a map in the same way.
        classes = np.where(classes == UNCLASSIFIED, np.uint8(REST.number), classes)
        probabilities = np.concatenate([probabilities, 1 - probabilities])
        legend = Legend(legend.name, (*legend.classes, REST))
    return ClassifiedArray(grid, legend, classes, probabilities, dict(zip(names, extra, strict=True)), tags)
