"""A map as CF-NetCDF or Zarr: the same pixels, with coordinates, legend and provenance as attributes.

xarray writes coordinates and attributes; pixels follow square by square, so that memory does not depend on
the size of the map. Equal maps give equal bytes.

References
----------
CF conventions 1.10, sections 3.5 (flags), 4 (coordinates), 5.6 (grid mappings), 8.1 (packed data).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import netCDF4
import numpy as np
import pyproj
import xarray as xr
import zarr
from numcodecs import Zstd

from lulc.core.grid import GridSpec
from lulc.core.removal import strangers
from lulc.core.schema import IGNORE, UNCLASSIFIED, InputError, Legend
from lulc.core.storage import put_folder, temporary_folder, write_atomically
from lulc.core.text import printable
from lulc.core.windows import Window, squares_of
from lulc.export.stac import class_names
from lulc.export.styles import UNCLASSIFIED_COLOR, UNCLASSIFIED_NAME
from lulc.labels.value_tables import LEGEND_TAG
from lulc.maps.reader import TAG_PREFIX, ClassMap
from lulc.rasters.layers import Layer

CHUNK = 512
"""Side of a chunk in pixels."""

GRID_MAPPING = "crs"

Create = Callable[[str, np.dtype[Any], tuple[str, ...], tuple[int, ...], dict[str, Any]], Any]
"""Name, type, dimensions, chunk and attributes to a variable that takes values by slices."""


def write_netcdf(land_cover: ClassMap, path: Path) -> None:
    """Write a map as NetCDF-4 (deflated), whole or not at all.

    Raises
    ------
    InputError
        If the map is damaged.
    """
    frame = frame_of(land_cover)
    with write_atomically(path) as temporary:
        frame.to_netcdf(temporary, engine="netcdf4")
        with netCDF4.Dataset(temporary, "a") as file:
            # Every chunk is written, so that filling them before would only cost time.
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


def write_zarr(land_cover: ClassMap, path: Path) -> None:
    """Write a map as a Zarr folder (version 2, Zstandard), whole or not at all.

    Version 2, since GDAL before 3.8 and QGIS with it read no other.

    Raises
    ------
    InputError
        If the map is damaged, or what is to be replaced is no Zarr folder of this toolkit.
    """
    check_store(path)
    with temporary_folder(path) as folder:
        temporary = folder / path.name
        frame_of(land_cover).to_zarr(temporary, mode="w", zarr_format=2, consolidated=False)
        group = zarr.open_group(temporary, mode="a", zarr_format=2)
        sizes = dict(zip(("y", "x"), land_cover.grid.shape, strict=True))
        sizes["land_cover_class"] = len(land_cover.legend)

        def create(
            name: str, dtype: np.dtype[Any], dims: tuple[str, ...], chunk: tuple[int, ...],
            attributes: dict[str, Any],
        ) -> Any:  # fmt: skip
            fill = attributes["_FillValue"].item()
            array = group.create_array(
                name, shape=tuple(sizes[d] for d in dims), dtype=dtype, chunks=chunk, fill_value=fill,
                compressors=[Zstd(level=5)],
            )  # fmt: skip
            plain = {
                k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in attributes.items()
            }
            # How xarray and GDAL know dimensions and CRS of version 2.
            array.attrs.update(
                plain | {"_ARRAY_DIMENSIONS": list(dims), "_CRS": {"wkt": land_cover.grid.crs.to_wkt()}}
            )
            return array

        _write_pixels(land_cover, create)
        os.sync()
        put_folder(temporary, path)


class Described(Protocol):
    """What coordinates and attributes are made of: a map on disk or in memory."""

    @property
    def grid(self) -> GridSpec: ...
    @property
    def legend(self) -> Legend: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def has_activations(self) -> bool: ...


def dataset_of(
    land_cover: Described,
    classes: np.ndarray,
    probabilities: np.ndarray,
    extra: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """Return a map in memory as a Dataset.

    Parameters
    ----------
    land_cover
        Grid, legend and tags.
    classes : uint8 (y, x)
        1..N, 0 unclassified, 255 no data.
    probabilities : float32 (class, y, x)
        NaN = no data.
    extra
        Further variables by name, float32 (y, x).

    Returns
    -------
    Dataset
        ``class`` with CF flags, ``probability``, and the further variables; the CRS in ``spatial_ref``.
    """
    frame = frame_of(land_cover).rename({"land_cover_class": "class_name", GRID_MAPPING: "spatial_ref"})
    frame = frame.set_coords("spatial_ref").rename_dims({"class_name": "class_number"})
    frame = frame.assign_coords(class_number=np.arange(1, 1 + len(land_cover.legend)))
    mapping = {"grid_mapping": "spatial_ref"}
    frame["class"] = (("y", "x"), classes, _flags(land_cover) | mapping)
    named = {"long_name": "probability of each class", "units": "1"} | mapping
    frame["probability"] = (("class_number", "y", "x"), probabilities, named)
    for name, values in (extra or {}).items():
        frame[name] = (("y", "x"), values, mapping)
    return frame


def frame_of(land_cover: Described) -> xr.Dataset:
    """Coordinates, CRS and attributes of a map, without its pixels.

    Returns
    -------
    Dataset
        Pixel centres ``y`` and ``x``; ``land_cover_class``, the names along the activations; the grid
        mapping ``crs``; the provenance as global attributes ``lulc_...``.
    """
    grid = land_cover.grid
    code = grid.crs.to_epsg()
    crs = pyproj.CRS.from_epsg(code) if code else pyproj.CRS.from_wkt(grid.crs.to_wkt())
    axes = {axis["axis"].lower(): axis for axis in crs.cs_to_cf()}
    t = grid.transform
    wkt = grid.crs.to_wkt()
    mapping = crs.to_cf() | {
        "crs_wkt": wkt,
        "spatial_ref": wkt,
        "GeoTransform": " ".join(map(repr, t.to_gdal())),
    }
    coordinates = {
        "y": ("y", t.f + t.e * (np.arange(grid.height) + 0.5), axes["y"]),
        "x": ("x", t.c + t.a * (np.arange(grid.width) + 0.5), axes["x"]),
    }
    if land_cover.has_activations:
        # Of fixed length, since GDAL reads no others from Zarr.
        names = np.array([printable(name) for name in land_cover.legend.names], "U")
        coordinates["land_cover_class"] = ("land_cover_class", names, {"long_name": "class of an activation"})
    frame = xr.Dataset(
        {GRID_MAPPING: ((), np.int32(0), mapping)}, coordinates, _global_attributes(land_cover)
    )
    for name in frame.variables:
        frame[name].encoding = {"_FillValue": None}
    return frame


def _global_attributes(land_cover: Described) -> dict[str, str]:
    # Other tags might have names that NetCDF does not admit.
    own = {k: v for k, v in sorted(land_cover.tags.items()) if re.fullmatch(f"{TAG_PREFIX}[A-Z0-9_]+", k)}
    tags = {k.lower(): v for k, v in own.items()}
    tags.pop(LEGEND_TAG.lower(), None)
    return {
        "Conventions": "CF-1.10",
        "title": f"Land cover: {printable(land_cover.legend.name)}",
        "source": f"network {tags.get('lulc_model', 'unknown')} (lulc)",
        **tags,
    }


def _write_pixels(land_cover: ClassMap, create: Create) -> None:
    chunk = tuple(min(CHUNK, n) for n in land_cover.grid.shape)
    flags = _flags(land_cover)
    classes = create("land_cover", np.dtype("u1"), ("y", "x"), chunk, flags)
    activations, packing = None, Packing(land_cover.layers[-1])
    if land_cover.has_activations:
        dims = ("land_cover_class", "y", "x")
        activations = create("activation", packing.dtype, dims, (1, *chunk), packing.attributes)
    for window in squares_of(land_cover.grid.extent, side=2 * CHUNK):
        classes[window.slices] = land_cover.read(window)
        if activations is not None:
            _write_activations(land_cover, window, activations, packing)


def _write_activations(land_cover: ClassMap, window: Window, target: Any, packing: Packing) -> None:
    values = land_cover.read_activations(window)
    for k in range(values.shape[-1]):
        target[(k, *window.slices)] = packing.pack(values[..., k])


def _flags(land_cover: Described) -> dict[str, Any]:
    """Attributes of the class variable: CF flags, one colour and one word for each value."""
    legend = land_cover.legend
    names = [UNCLASSIFIED_NAME, *legend.names]
    return {
        "_FillValue": np.uint8(IGNORE),
        "long_name": f"land-cover class, {printable(legend.name)}",
        "flag_values": np.arange(UNCLASSIFIED, len(names), dtype="u1"),
        "flag_meanings": " ".join(word.replace("-", "_") for word in class_names(names)),
        "flag_colors": " ".join([UNCLASSIFIED_COLOR, *legend.colors]),
        "grid_mapping": GRID_MAPPING,
    }


class Packing:
    """How activations are stored: as in the map, float32 or packed into unsigned integers.

    Parameters
    ----------
    layer
        An activation band of the map.
    """

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
        """Activations float32 (y, x), NaN = no data, as they are stored."""
        if self._scale is None:
            return values
        missing = np.isnan(values)
        packed = np.rint(np.where(missing, 0, values) / self._scale).astype(self.dtype)
        packed[missing] = self._fill
        return packed


_GROUP = r"\.(zgroup|zattrs|zmetadata|zarray)|zarr\.json"
_STORE = re.compile(rf"({_GROUP})|(crs|y|x|land_cover|land_cover_class|activation)/(({_GROUP})|\d+(\.\d+)*)?")
"""What `write_zarr` writes: pattern of the paths below the folder."""


def check_store(path: Path) -> None:
    """Refuse to replace a folder unless `write_zarr` wrote all that it holds.

    Raises
    ------
    InputError
        If it is no Zarr folder of this toolkit, or holds anything else.
    """
    if not os.path.lexists(path):
        return
    attributes = path / ".zattrs"
    source = ""
    if path.is_dir() and not path.is_symlink() and attributes.is_file() and attributes.stat().st_size < 2**20:
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            source = str(json.loads(attributes.read_bytes()).get("source"))
    others = strangers(path, _STORE) if source.endswith("(lulc)") else ()
    if others or not source.endswith("(lulc)"):
        holds = f"it holds '{others[0]}'" if others else "it is no Zarr folder of this toolkit"
        raise InputError(
            f"cannot replace '{path}', since {holds}, expected what export_map.py wrote",
            "Move it away, or give another output.",
        )
