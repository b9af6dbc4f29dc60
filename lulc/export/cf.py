"""A map as CF-NetCDF or Zarr, with coordinates, legend and provenance as attributes.

xarray writes coordinates and attributes; pixels follow square by square, so that the memory does not depend
on the size of the map. Equal maps give equal bytes.

References
----------
CF conventions 1.10, sections 3.5 (flags), 4 (coordinates), 5.6 (grid mappings), 8.1 (packed data).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
import zarr
from numcodecs import Zstd

from lulc.core.documents import parse_json
from lulc.core.grid import GridSpec
from lulc.core.removal import strangers
from lulc.core.schema import InputError
from lulc.core.storage import put_folder, temporary_folder, write_atomically
from lulc.core.windows import squares_of
from lulc.maps.frames import GRID_MAPPING, flags_of, frame_of
from lulc.maps.reader import ClassMap
from lulc.rasters.layers import Layer

CHUNK = 512
"""Side of a chunk in pixels."""

Create = Callable[[str, np.dtype[Any], tuple[str, ...], tuple[int, ...], dict[str, Any]], Any]
"""Function that creates a variable from name, type, dimensions, chunk and attributes."""


def write_netcdf(land_cover: ClassMap, path: Path) -> None:
    """Write a map as NetCDF-4 (deflated), completely or not at all."""
    frame = frame_of(land_cover)
    try:
        with write_atomically(path) as temporary:
            frame.to_netcdf(temporary, engine="netcdf4")
            with netCDF4.Dataset(temporary, "a") as file:
                # Every chunk is written: filling them first would only take time.
                file.set_fill_off()

                def create(
                    name: str, dtype: np.dtype[Any], dims: tuple[str, ...], chunk: tuple[int, ...],
                    attributes: dict[str, Any],
                ) -> Any:  # fmt: skip
                    fill = attributes.pop("_FillValue")
                    variable = file.createVariable(
                        name, dtype, dims, zlib=True, complevel=4, chunksizes=chunk, fill_value=fill
                    )
                    variable.setncatts(attributes)
                    variable.set_auto_maskandscale(False)
                    return variable

                _write_pixels(land_cover, create)
    except RuntimeError as error:
        raise InputError(
            f"cannot write '{path}', since the NetCDF library stopped: {error}",
            "Check that the disk has room, and that its folder is writable.",
        ) from error


def write_zarr(land_cover: ClassMap, path: Path) -> None:
    """Write a map as a Zarr folder (version 2, Zstandard), completely or not at all.

    GDAL before 3.8, and so QGIS, reads only version 2.
    """
    with write_store(path, frame_of(land_cover), land_cover.grid) as create:
        _write_pixels(land_cover, create)


@contextlib.contextmanager
def write_store(path: Path, frame: xr.Dataset, grid: GridSpec) -> Iterator[Create]:
    """Open a Zarr folder for writing, which appears completely or not at all; yield a function for variables.

    `frame` holds coordinates, CRS and attributes, see `lulc.maps.frames.frame_on`. A path that exists and is
    no Zarr folder of this toolkit is refused.
    """
    check_store(path)
    with temporary_folder(path) as folder:
        temporary = folder / path.name
        frame.to_zarr(temporary, mode="w", zarr_format=2, consolidated=False)
        group = zarr.open_group(temporary, mode="a", zarr_format=2)

        def create(
            name: str, dtype: np.dtype[Any], dims: tuple[str, ...], chunk: tuple[int, ...],
            attributes: dict[str, Any],
        ) -> Any:  # fmt: skip
            fill = attributes["_FillValue"].item()
            array = group.create_array(
                name, shape=tuple(frame.sizes[d] for d in dims), dtype=dtype, chunks=chunk, fill_value=fill,
                compressors=[Zstd(level=5)],
            )  # fmt: skip
            plain = {
                k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in attributes.items()
            }
            # From these attributes xarray and GDAL read dimensions and CRS of version 2.
            array.attrs.update(plain | {"_ARRAY_DIMENSIONS": list(dims), "_CRS": {"wkt": grid.crs.to_wkt()}})
            return array

        yield create
        os.sync()
        put_folder(temporary, path)


def _write_pixels(land_cover: ClassMap, create: Create) -> None:
    chunk = tuple(min(CHUNK, n) for n in land_cover.grid.shape)
    flags = flags_of(land_cover)
    classes = create("land_cover", np.dtype("u1"), ("y", "x"), chunk, flags)
    activations, packing = None, Packing(land_cover.layers[-1])
    if land_cover.has_activations:
        dims = ("land_cover_class", "y", "x")
        activations = create("activation", packing.dtype, dims, (1, *chunk), packing.attributes)
    for window in squares_of(land_cover.grid.extent, side=2 * CHUNK):
        classes[window.slices] = land_cover.read(window)
        if activations is not None:
            values = land_cover.read_activations(window)
            for k in range(values.shape[-1]):
                activations[(k, *window.slices)] = packing.pack(values[..., k])


class Packing:
    """Packing of activations as in the map: float32, or unsigned integers with a scale."""

    def __init__(self, layer: Layer) -> None:
        packed = layer.scale is not None and np.dtype(layer.dtype).kind == "u"
        self.dtype = np.dtype(layer.dtype) if packed else np.dtype("f4")
        self._scale = layer.scale if packed else None
        self._fill = self.dtype.type(np.iinfo(self.dtype).max if packed else math.nan)

    @property
    def attributes(self) -> dict[str, Any]:
        scaling = {} if self._scale is None else {"scale_factor": self._scale, "add_offset": 0.0}
        return {
            "_FillValue": self._fill, "long_name": "activation of each class", "units": "1",
            "grid_mapping": GRID_MAPPING, **scaling,
        }  # fmt: skip

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Pack activations float32 (y, x), NaN = no data, for storage."""
        if self._scale is None:
            return values
        missing = np.isnan(values)
        packed = np.rint(np.where(missing, 0, values) / self._scale).astype(self.dtype)
        packed[missing] = self._fill
        return packed


_GROUP = r"\.(zgroup|zattrs|zmetadata|zarray)|zarr\.json"
_STORE = re.compile(
    rf"({_GROUP})|(crs|y|x|land_cover|land_cover_class|activation|B\d[\dA]|clear_observations)"
    rf"/(({_GROUP})|\d+(\.\d+)*)?"
)
"""Pattern of the paths that `write_store` writes below the folder of a map or mosaic."""


def check_store(path: Path) -> None:
    """Refuse to replace anything but a Zarr folder that `write_store` wrote, without other files."""
    if not os.path.lexists(path):
        return
    attributes = path / ".zattrs"
    source = ""
    if path.is_dir() and not path.is_symlink() and attributes.is_file() and attributes.stat().st_size < 2**20:
        with contextlib.suppress(ValueError, AttributeError):
            source = str(parse_json(attributes.read_bytes()).get("source"))
    others = strangers(path, _STORE) if source.endswith("(lulc)") else ()
    if others or not source.endswith("(lulc)"):
        holds = f"it holds '{others[0]}'" if others else "it is no Zarr folder of this toolkit"
        raise InputError(
            f"cannot replace '{path}', since {holds}, expected one that it wrote",
            "Move it away, or give another output.",
        )
