"""NetCDF files and Zarr folders as raster sources, read through xarray.

rasterio opens a plain NetCDF upside down, without a geotransform, names or an error, and does not
read Zarr 3; here layer names come from variables or from the band coordinate, the grid from the
coordinates (rows may run either way; they are delivered north-up), the CRS from the CF grid mapping.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters import guards
from lulc.rasters.layers import Layer, Source, canonical_name, check_grid, declared_nodata, declared_scaling

_X = ("x", "lon", "longitude", "easting")
_Y = ("y", "lat", "latitude", "northing")
_WKT = ("crs_wkt", "spatial_ref", "wkt")


@dataclass(frozen=True)
class _Place:
    """Where a layer lies: its variable, and the position along the band dimension (or none)."""

    variable: Hashable
    dimension: Hashable | None
    position: int


class CubeSource(Source):
    """A NetCDF file or Zarr folder; made by `open_cube`."""

    def __init__(self, path: str) -> None:
        self.path = path
        resolved = Path(path).resolve()
        self._zarr = resolved.is_dir()
        stored = guards.check_zarr(resolved) if self._zarr else _check_netcdf(path, resolved)
        self._data = _open(path, resolved, "zarr" if self._zarr else "netcdf4")
        try:
            self._x, self._y = _axes(path, self._data)
            self.layers, self._places = _layers(path, self._data, self._x, self._y)
            self._check_sizes(stored)
            self.grid, self._south_up = _grid(path, self._data, self._x, self._y, self._places[0])
            check_grid(path, self.grid)
        except BaseException as error:
            self._data.close()
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            # What attributes and coordinates hold is up to whoever wrote them.
            raise InputError(
                f"cannot use '{path}', since its variables or attributes are not those of a raster "
                f"({type(error).__name__}: {error})",
                "Check the file: ncdump -h FILE",
            ) from error

    def _check_sizes(self, stored: int) -> None:
        block_bytes = 0
        self.block = (1, self._data.sizes[self._x])
        for place in self._places:
            variable = self._data[place.variable]
            chunks = variable.encoding.get("chunksizes") or variable.encoding.get("chunks")
            if chunks:
                block_bytes = max(block_bytes, math.prod(chunks) * variable.dtype.itemsize)
                shape = dict(zip(variable.dims, chunks, strict=True))
                self.block = (shape[self._y], shape[self._x])
        guards.check_size(
            self.path,
            layers=len(self.layers),
            height=self._data.sizes[self._y],
            width=self._data.sizes[self._x],
            layer_bytes=max(np.dtype(layer.dtype).itemsize for layer in self.layers),
            block_bytes=block_bytes,
            stored_bytes=stored,
        )

    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        rows, cols = window.slices
        if self._south_up:
            height = self.grid.height
            rows = slice(height - rows.stop, height - rows.start)
        try:
            planes = [self._plane(self._places[i], rows, cols) for i in layers]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read rows {window.row} to {window.stop[0]} of '{self.path}', "
                f"since it is damaged there ({error})",
                "Copy or download it again.",
            ) from error
        array = np.stack(planes)
        return array[:, ::-1] if self._south_up else array

    def _plane(self, place: _Place, rows: slice, cols: slice) -> np.ndarray:
        data = self._data[place.variable]
        if place.dimension is not None:
            data = data.isel({place.dimension: place.position})
        rest = {d: 0 for d in data.dims if d not in (self._x, self._y)}
        window = data.isel({self._y: rows, self._x: cols, **rest})
        return np.asarray(window.transpose(self._y, self._x).values)

    def reopen(self) -> CubeSource:
        return CubeSource(self.path)

    def close(self) -> None:
        self._data.close()


def open_cube(path: str) -> CubeSource:
    """Open a NetCDF file or a Zarr folder after checking what it holds.

    Raises
    ------
    InputError
        If it is damaged, names other files, has no evenly spaced x and y coordinates, no CRS, or
        more than one date.
    """
    return CubeSource(path)


def _check_netcdf(path: str, resolved: Path) -> int:
    with open(resolved, "rb") as file:
        head = file.read(8)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        guards.check_hdf5(resolved)
    elif head[:4] not in (b"CDF\x01", b"CDF\x02", b"CDF\x05"):
        raise InputError(
            f"cannot read '{path}', since it does not begin like a NetCDF file, expected NetCDF 3 or 4",
            "Copy or download it again.",
        )
    return resolved.stat().st_size


def _open(path: str, resolved: Path, engine: str) -> xr.Dataset:
    # Consolidated metadata would be a second, unchecked description of the same arrays.
    extra: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
    try:
        return xr.open_dataset(
            str(resolved), engine=engine, mask_and_scale=False, decode_times=False, cache=False, **extra
        )
    except Exception as error:
        raise InputError(
            f"cannot read '{path}', since xarray cannot open it ({type(error).__name__}: {error})",
            "It is damaged, truncated or of another kind; write it again.",
        ) from error


def _axes(path: str, data: xr.Dataset) -> tuple[Hashable, Hashable]:
    """(x, y) dimensions, by standard name, CF axis or usual name."""
    found: dict[str, Hashable] = {}
    for dimension in data.sizes:
        attributes = data[dimension].attrs if dimension in data.coords else {}
        name = str(dimension).lower()
        standard = str(attributes.get("standard_name", ""))
        axis = str(attributes.get("axis", ""))
        if name in _X or axis == "X" or standard in ("projection_x_coordinate", "longitude"):
            found.setdefault("x", dimension)
        elif name in _Y or axis == "Y" or standard in ("projection_y_coordinate", "latitude"):
            found.setdefault("y", dimension)
    if len(found) < 2:
        raise InputError(
            f"cannot use '{path}', since its dimensions are {', '.join(map(str, data.sizes)) or 'none'}, "
            "expected x and y (or lon and lat) with coordinates",
            "Rename the dimensions: dataset.rename({'columns': 'x', 'rows': 'y'})",
        )
    return found["x"], found["y"]


def _layers(
    path: str, data: xr.Dataset, x: Hashable, y: Hashable
) -> tuple[tuple[Layer, ...], tuple[_Place, ...]]:
    layers, places = [], []
    # By name: a Zarr folder lists its members in no particular order.
    for name in sorted(data.data_vars, key=str):
        variable = data[name]
        if not {x, y} <= set(variable.dims) or variable.dtype.kind not in "iufb":
            continue
        # A dimension of length one (a single date) is no more than a label.
        others = [d for d in variable.dims if d not in (x, y) and variable.sizes[d] != 1]
        singles = [d for d in variable.dims if d not in (x, y) and variable.sizes[d] == 1]
        if len(others) > 1 or (others and "time" in str(others[0]).lower()):
            raise InputError(
                f"cannot use '{path}', since '{name}' has the dimensions {tuple(map(str, variable.dims))} "
                f"of lengths {variable.shape}, expected y, x and at most one dimension of bands",
                "Choose one date first: dataset.isel(time=0)",
            )
        singles.sort(key=lambda d: not _names_bands(data, d))
        dimension = next(iter(others or singles), None)
        for i in range(variable.sizes[dimension] if dimension is not None else 1):
            label = _label(data, name, dimension, i)
            layers.append(_layer(label, variable))
            places.append(_Place(name, dimension, i))
    if not layers:
        raise InputError(
            f"cannot use '{path}', since no variable of it has the dimensions {y} and {x}, "
            "expected bands as variables, or one variable with a band dimension",
            "Check the file: ncdump -h FILE",
        )
    return tuple(layers), tuple(places)


def _label(data: xr.Dataset, variable: Hashable, dimension: Hashable | None, position: int) -> str | None:
    """Name of a layer: the band coordinate where it has one that names, else the variable."""
    if dimension is not None and _names_bands(data, dimension):
        label = data[dimension].values[position]
        return label.decode() if isinstance(label, bytes) else str(label)
    long = dimension is not None and data.sizes[dimension] > 1
    return None if long else str(variable)


def _names_bands(data: xr.Dataset, dimension: Hashable) -> bool:
    """True for a coordinate of words; numbers along a dimension are positions, which name nothing."""
    return dimension in data.coords and data[dimension].dtype.kind in "USO"


def _layer(label: str | None, variable: xr.DataArray) -> Layer:
    attributes = variable.attrs
    scale, offset = declared_scaling(
        float(attributes.get("scale_factor", 1.0)), float(attributes.get("add_offset", 0.0))
    )
    dtype = "uint8" if variable.dtype.kind == "b" else variable.dtype.name
    nodata = declared_nodata({"_FillValue": attributes.get("_FillValue")}, None)
    if nodata is None:
        nodata = declared_nodata(attributes, None)
    return Layer(canonical_name(label) or label, dtype, nodata, scale, offset)


def _grid(path: str, data: xr.Dataset, x: Hashable, y: Hashable, first: _Place) -> tuple[GridSpec, bool]:
    """(north-up grid, whether rows are stored from south to north)."""
    left, x_step = _even_spacing(path, data, x)
    top, y_step = _even_spacing(path, data, y)
    height, width = data.sizes[y], data.sizes[x]
    south_up = y_step > 0
    if south_up:
        top, y_step = top + height * y_step, -y_step
    transform = Affine(x_step, 0.0, left, 0.0, y_step, top)
    return GridSpec(_crs(path, data, data[first.variable]), transform, height, width), south_up


def _even_spacing(path: str, data: xr.Dataset, axis: Hashable) -> tuple[float, float]:
    """(outer edge of the first pixel, signed step) of a coordinate of pixel centres."""
    values = np.asarray(data[axis].values, dtype="float64") if axis in data.coords else np.empty(0)
    if values.ndim == 1 and values.size > 1 and np.isfinite(values).all():
        step = (values[-1] - values[0]) / (values.size - 1)
        # Single-precision degrees are off by up to a twentieth of a 10 m pixel.
        drift = np.abs(values - (values[0] + step * np.arange(values.size))).max()
        if step != 0 and drift < 0.05 * abs(step):
            # Sums of 0.1 and the like would give 9.999999999; the step is meant to be short.
            step = float(f"{step:.12g}")
            return float(f"{values[0] - step / 2:.15g}"), step
    raise InputError(
        f"cannot use '{path}', since its coordinate '{axis}' is missing or not evenly spaced, "
        "expected pixel centres at even distances",
        "Write it with coordinates of pixel centres, or warp it to a regular grid first.",
    )


def _crs(path: str, data: xr.Dataset, variable: xr.DataArray) -> CRS:
    """The CRS that a grid mapping or attribute states; an empty one where there is none."""
    mapping = variable.attrs.get("grid_mapping") or variable.encoding.get("grid_mapping")
    places = [mapping, "spatial_ref", "crs"]
    candidates = [dict(data[p].attrs) for p in places if p is not None and p in data.variables]
    for attributes in (*candidates, dict(variable.attrs), dict(data.attrs)):
        found = _crs_from_attributes(path, attributes)
        if found:
            return found
    return CRS()


def _crs_from_attributes(path: str, attributes: dict[str, Any]) -> CRS | None:
    for key in (*_WKT, "crs", "proj:epsg", "epsg", "epsg_code"):
        text = str(attributes.get(key, "")).strip()
        code = text.upper().removeprefix("EPSG:")
        try:
            if code.isdecimal() and len(code) <= 6:
                return CRS.from_epsg(int(code))
            # Only WKT goes further: GDAL opens files and URLs given as a CRS.
            if text[:3].upper() in ("PRO", "GEO", "COM", "BOU") and "[" in text[:30]:
                return CRS.from_wkt(text)
        except CRSError as error:
            raise InputError(
                f"cannot use '{path}', since its CRS '{text[:80]}' is not understood ({error}), "
                "expected WKT or an EPSG code",
                "Write the CRS again: dataset.rio.write_crs('EPSG:3067')",
            ) from error
    if "grid_mapping_name" in attributes:
        return _crs_from_cf(path, attributes)
    return None


def _crs_from_cf(path: str, attributes: dict[str, Any]) -> CRS:
    """A CRS from the parameters of a CF grid mapping that has no WKT."""
    import pyproj

    try:
        return CRS.from_wkt(pyproj.CRS.from_cf(attributes).to_wkt())
    except (pyproj.exceptions.CRSError, CRSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot use '{path}', since its grid mapping '{attributes['grid_mapping_name']}' "
            f"is not understood ({error}), expected a CF grid mapping",
            "Write the CRS as WKT: dataset.rio.write_crs('EPSG:3067')",
        ) from error
