"""Output of a mosaic: a tiled GeoTIFF or a Zarr folder with named, scaled bands, and its STAC item."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from lulc.compositing.composer import NODATA, Job
from lulc.compositing.scene_list import links_of, list_path
from lulc.core.documents import read_document, write_document
from lulc.core.machine import GDAL_CACHE
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.core.version import __version__
from lulc.core.windows import Part, Window
from lulc.export.stac import mosaic_item

SCALE = 0.0001
"""Reflectance of a stored value of 1."""

COUNT = "clear_observations"
"""Name of the last band: number of clear observations of each pixel."""

Pixels = Callable[[Part], np.ndarray]
"""Part to its pixels, int16 (band, y, x) with the clear observations last."""


def write_mosaic(job: Job, pixels: Pixels, clear: Mapping[int, int], seal: str) -> None:
    """Write the mosaic from its parts, and its STAC item.

    `clear` are the pixels by number of clear observations; by `seal`, the digest of the key, `finished_clear`
    recognises the mosaic.
    """
    (_write_zarr if job.out.suffix == ".zarr" else _write_geotiff)(job, pixels)
    days = sorted(one.day.isoformat() for one in job.observations)
    stored = {"data_type": "int16", "nodata": NODATA}
    bands = [{"name": name, **stored, "scale": SCALE, "offset": 0.0} for name in job.config.band_names]
    bands.append({"name": COUNT, "data_type": "int16"})
    dates, listed = (days[0], days[-1]), list_path(job.out)
    item = mosaic_item(job.out, job.out.parent, job.grid, dates, bands, listed, links_of(listed))
    counted = {str(count): pixels for count, pixels in clear.items()}
    item["properties"] |= {"lulc:clear_observations": counted, "lulc:key": seal}
    write_document(job.out.with_suffix(".json"), item)


def finished_clear(out: Path, seal: str | None = None) -> dict[int, int]:
    """Return the pixels of a finished mosaic by number of clear observations; empty if there is no mosaic.

    With `seal`, only a mosaic of the same key counts.
    """
    try:
        properties = read_document(out.with_suffix(".json"), _FINISHED, "STAC item", 0)["properties"]
    except InputError:
        return {}
    if not out.exists() or seal not in (None, properties["lulc:key"]):
        return {}
    return {int(count): pixels for count, pixels in properties["lulc:clear_observations"].items()}


_COUNTS = {
    "type": "object", "propertyNames": {"pattern": "^[0-9]+$"}, "additionalProperties": {"type": "integer"}
}  # fmt: skip
_PROPERTIES = {
    "type": "object",
    "required": ["lulc:key", "lulc:clear_observations"],
    "properties": {"lulc:key": {"type": "string"}, "lulc:clear_observations": _COUNTS},
}
_FINISHED = {"type": "object", "required": ["properties"], "properties": {"properties": _PROPERTIES}}


def _layers(job: Job) -> Iterator[tuple[str, float]]:
    """Yield name and scale of each band."""
    yield from ((name, SCALE) for name in job.config.band_names)
    yield COUNT, 1.0


def _tags(job: Job) -> dict[str, str]:
    days = sorted({one.day.isoformat() for one in job.observations})
    made = {"rule": job.config.rule, "dates": days, "toolkit": __version__}
    return {"LULC_MOSAIC": json.dumps(made), "SCENES": list_path(job.out).name}


def _write_geotiff(job: Job, pixels: Pixels) -> None:
    names, scales = zip(*_layers(job), strict=True)
    profile = {
        "driver": "GTiff", "dtype": "int16", "count": len(names), "height": job.grid.height,
        "width": job.grid.width, "crs": job.grid.crs, "transform": job.grid.transform, "nodata": NODATA,
        "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd", "predictor": 2,
        "interleave": "band", "bigtiff": "if_safer", "num_threads": "all_cpus",
    }  # fmt: skip

    def describe(data: Any) -> None:
        data.scales = scales
        for i, name in enumerate(names, 1):
            data.set_band_description(i, name)
        data.update_tags(**_tags(job))

    write_geotiff(job.out, profile, ((part.extent, pixels(part)) for part in job.plan.parts()), describe)


def write_geotiff(
    path: Path, profile: Mapping[str, Any], blocks: Iterable[tuple[Window, np.ndarray]],
    describe: Callable[[Any], None],
) -> None:  # fmt: skip
    """Write a GeoTIFF completely or not at all, and verify it, since GDAL may not report a full disk.

    `profile` are options of `rasterio.open`, `blocks` windows and their pixels (band, y, x); `describe` sets
    names and tags on the open file.

    Raises
    ------
    InputError
        If the pixels on disk are not those that were written.
    """
    sums = []
    with write_atomically(path) as temporary, rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        try:
            with rasterio.open(temporary, "w", **profile) as data:
                for window, values in blocks:
                    area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
                    data.write(values, window=area)
                    sums.append((area, zlib.crc32(values.tobytes())))
                describe(data)
            with rasterio.open(temporary) as data:
                intact = all(zlib.crc32(data.read(window=area).tobytes()) == crc for area, crc in sums)
        except RasterioError:
            intact = False
        if not intact:
            raise InputError(
                f"cannot write '{path}', since its disk did not take all of it",
                "Free some space. Then run the same command again: what is finished is kept.",
            )


def _write_zarr(job: Job, pixels: Pixels) -> None:
    from lulc.export.cf import write_store
    from lulc.maps.frames import frame_on

    attributes = {"Conventions": "CF-1.10", "source": "mosaic (lulc)", **_tags(job)}
    with write_store(job.out, frame_on(job.grid, attributes), job.grid) as create:
        chunk = (min(job.part, job.grid.height), min(job.part, job.grid.width))
        arrays = [
            create(name, np.dtype("i2"), ("y", "x"), chunk, {
                "_FillValue": np.int16(NODATA), "long_name": name, "grid_mapping": "crs", "units": "1",
                **({"scale_factor": scale, "add_offset": 0.0} if scale != 1 else {}),
            })
            for name, scale in _layers(job)
        ]  # fmt: skip
        for part in job.plan.parts():
            for array, values in zip(arrays, pixels(part), strict=True):
                array[part.extent.slices] = values
