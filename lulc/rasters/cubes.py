"""NetCDF files and Zarr folders as raster sources, read through xarray.

rasterio opens a plain NetCDF upside down, without geotransform, names or an error, and does not read Zarr 3.
Here variables or the band coordinate name the layers, the coordinates give the grid (rows in either order;
they are delivered north-up), and the CF grid mapping gives the CRS. Values stay as they are stored: the
layers describe packing and missing values.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import re
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from affine import Affine
from netCDF4 import default_fillvals
from rasterio.crs import CRS

from lulc.core.budgets import LAYERS, exceeds
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters import guards, place
from lulc.rasters.apart import Served
from lulc.rasters.groups import ancestors, check_netcdf, groups_of, store_of
from lulc.rasters.layers import (
    OPACITY,
    Layer,
    Source,
    attribute_scaling,
    baseline_offset,
    check_grid,
    declared_layer,
)
from lulc.rasters.missing import as_stored
from lulc.rasters.names import SENTINEL_BANDS, is_counted, name_layers, natural

_X = ("x", "lon", "longitude", "easting", "xc", "projection_x_coordinate")
_Y = ("y", "lat", "latitude", "northing", "yc", "projection_y_coordinate")
_DATE = re.compile(r"(19|20)\d\d-?(0[1-9]|1[0-2])(-?(0[1-9]|[12]\d|3[01]))?([T ].*)?")
_DATES = ("t", "date", "dates", "datetime", "year", "years", "month", "months", "season", "doy")
_SINCE = re.compile(r"\s*\w+\s+since\s", re.IGNORECASE)
_NAME_COORDINATES = ("common_name", "eo:common_name", "band_name", "name", "long_name", "title")
_NAME_ATTRIBUTES = ("common_name", "eo:common_name", "band_name", "band_names", "bands", "long_name",
                    "standard_name")  # fmt: skip


class _Position(NamedTuple):
    """Position of a layer: its variable, and the number of its band along a band dimension."""

    variable: Hashable
    dimension: Hashable | None
    band: int


class CubeSource(Source):
    """A NetCDF file or Zarr folder, or one group of it, in its reader process; made by `serve`.

    `only` are the variables to take for layers, in small letters; None for all that lie on the grid.
    """

    def __init__(
        self, path: str, group: str | None = None, only: frozenset[str] | None = None, *, stored: int
    ) -> None:
        self.path = path
        self._group, self._only = group, only
        resolved = Path(path).resolve()
        zarr = resolved.is_dir()
        if zarr:
            guards.check_zarr(resolved)
        else:
            check_netcdf(path, resolved)
        self._data = _open(path, resolved, group)
        try:
            self._describe(zarr=zarr)
            self._check_sizes(stored)
        except BaseException as error:
            self._data.close()
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            # Attributes and coordinates may hold anything.
            raise InputError(
                f"cannot use '{path}', since its variables or attributes are not those of a raster "
                f"({type(error).__name__}: {error})",
                "Check the file: ncdump -h FILE",
            ) from error

    def _describe(self, *, zarr: bool) -> None:
        """Find layers and grid; in a Zarr folder the order of variables means nothing."""
        path, data = self.path, self._data
        self._x, self._y = _axes(path, data)
        self.layers, self._positions = _layers(path, data, self._x, self._y, self._only, zarr=zarr)
        variables = dict.fromkeys(position.variable for position in self._positions)
        self.ordered = not zarr or len(variables) == 1 or is_counted([str(v) for v in variables])
        self.grid, self._flipped = _grid(path, data, self._x, self._y, data[self._positions[0].variable])
        check_grid(path, self.grid)

    def _check_sizes(self, stored: int) -> None:
        block_bytes = 0
        height, width = self._data.sizes[self._y], self._data.sizes[self._x]
        self.block = (1, width)
        for position in self._positions:
            variable = self._data[position.variable]
            chunks = variable.encoding.get("chunksizes") or variable.encoding.get("chunks")
            if chunks:
                block_bytes = max(block_bytes, math.prod(chunks) * variable.dtype.itemsize)
                shape = dict(zip(variable.dims, chunks, strict=True))
                self.block = (shape[self._y], shape[self._x])
        layer_bytes = max(np.dtype(layer.dtype).itemsize for layer in self.layers)
        guards.check_size(
            self.path, layers=len(self.layers), height=height, width=width, layer_bytes=layer_bytes,
            block_bytes=block_bytes, stored_bytes=stored,
        )  # fmt: skip

    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        rows, cols = (
            slice(length - part.stop, length - part.start) if flipped else part
            for part, length, flipped in zip(window.slices, self.grid.shape, self._flipped, strict=True)
        )
        try:
            planes = [self._plane(i, rows, cols) for i in layers]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read rows {window.row} to {window.stop[0]} of '{self.path}', "
                f"since it is damaged there ({error})",
                "Copy or download it again.",
            ) from error
        return np.stack(planes)[:, *self._north_up]

    @property
    def _north_up(self) -> tuple[slice, slice]:
        """Slices of rows and columns that turn stored pixels north-up, and back."""
        down, across = (slice(None, None, -1 if flipped else 1) for flipped in self._flipped)
        return down, across

    def read_mask(self, layers: Sequence[int], window: Window, step: int = 1) -> np.ndarray | None:
        """Pixels, bool (1, y, x), where no opacity layer is 0; None without such layers."""
        alpha = [i for i, layer in enumerate(self.layers) if layer.alpha]
        return (self.read(alpha, window) != 0).all(0)[None, ::step, ::step] if alpha else None

    def _plane(self, number: int, rows: slice, cols: slice) -> np.ndarray:
        values = np.asarray(self._select(number, rows, cols).values)
        return values.astype(values.dtype.newbyteorder("="), copy=False).view(self.layers[number].dtype)

    def _select(self, number: int, rows: slice, cols: slice) -> xr.DataArray:
        variable, dimension, index = self._positions[number]
        data = self._data[variable]
        if dimension is not None:
            data = data.isel({dimension: index})
        rest = {d: 0 for d in data.dims if d not in (self._x, self._y)}
        return data.isel({self._y: rows, self._x: cols, **rest}).transpose(self._y, self._x)

    def attributes(self) -> Mapping[str, Any]:
        return {str(key): value for key, value in self._data[self._positions[0].variable].attrs.items()}

    def reopen(self) -> CubeSource:
        raise NotImplementedError("a new reader process opens the file instead")

    def close(self) -> None:
        self._data.close()


class ArraySource(CubeSource):
    """An xarray object in memory, or a lazy one that is read window by window.

    `data` has bands as variables or along a dimension, and one date. Raises InputError if it has no evenly
    spaced x and y coordinates, no bands, or more than one date.
    """

    def __init__(self, data: xr.DataArray | xr.Dataset) -> None:
        self.path = "<array>"
        self._group = self._only = None
        self._data = data.to_dataset(name=data.name or "array") if isinstance(data, xr.DataArray) else data
        self._describe(zarr=True)
        self.block = (1, self._data.sizes[self._x])
        self._held = threading.local()

    @property
    def is_lazy(self) -> bool:
        """True where Dask computes the pixels."""
        return any(self._data[position.variable].chunks is not None for position in self._positions)

    def planes(self) -> list[Any]:
        """Return all layers (y, x) as `read` gives them, as Dask arrays where they are lazy."""
        return [self._select(i, *self._north_up).data for i in range(len(self.layers))]

    def like_given(self, frame: xr.Dataset) -> xr.Dataset:
        """Return a north-up result on ``y`` and ``x`` with these axes in the order of the object's own."""
        if not any(self._flipped):
            return frame
        down, across = self._north_up
        turned = frame.isel(y=down, x=across)
        # GDAL's geotransform is that of the upper edge and would contradict the coordinates.
        turned["spatial_ref"].attrs.pop("GeoTransform", None)
        return turned

    def lay(self, values: np.ndarray) -> np.ndarray:
        """Return an array with the axes of the object (y may follow x or ascend) as (y, x), north-up."""
        if values.ndim != 2:
            return values
        dimensions = self._data[self._positions[0].variable].dims
        return (values.T if dimensions.index(self._x) < dimensions.index(self._y) else values)[self._north_up]

    @contextlib.contextmanager
    def holding(self, window: Window, values: np.ndarray) -> Iterator[None]:
        """Let `read`, in this thread, take the values of a window (layer, y, x) from an array."""
        self._held.value = window, values
        try:
            yield
        finally:
            del self._held.value

    def read(self, layers: Sequence[int], window: Window) -> np.ndarray:
        held = getattr(self._held, "value", None)
        if held is None:
            return super().read(layers, window)
        rows, cols = window.relative_to(held[0]).slices
        return np.stack([held[1][i, rows, cols].astype(self.layers[i].dtype) for i in layers])

    def identity(self) -> dict[str, Any]:
        return {"name": self.path}

    def reopen(self) -> ArraySource:
        return copy.copy(self)

    def close(self) -> None:
        """Leave the object to its owner."""


def labels_on(grid: GridSpec, labels: Any, beside: Source | None) -> np.ndarray:
    """Return an array of labels (y, x) north-up, NaN where an xarray object declares a value missing.

    `labels` are an xarray object on the same pixels, or an array with the axes of `beside`. Raises InputError
    if an xarray object lies on other pixels.
    """
    if not hasattr(labels, "dims"):
        values = np.asarray(labels)
        return beside.lay(values) if isinstance(beside, ArraySource) else values
    source = ArraySource(labels)
    if not source.grid.matches(grid):
        raise InputError(
            f"cannot use the array of labels, since its grid is\n  {source.grid.describe()}\n"
            f"expected the pixels of the map or image:\n  {grid.describe()}",
            "Cut or resample the labels by nearest neighbour: labels.sel(x=image.x, y=image.y).",
        )
    (values,), (valid,) = source.read_valid([0], source.grid.extent)
    return np.where(valid, values, np.nan)


def serve(path: str, group: str | None, only: Sequence[str] | None, stored: int) -> Served:
    """Open and check a NetCDF file or a Zarr folder; runs in a reader process.

    Raises InputError if it is damaged, names other files, has no evenly spaced x and y coordinates, no CRS,
    or more than one date.
    """
    return Served(CubeSource(path, group, None if only is None else frozenset(only), stored=stored))


def choose_groups(path: str, bands: Sequence[str], stored: int) -> tuple[dict[str, list[str]], list[str]]:
    """Choose the groups that hold bands of a product with the finest pixels; runs in a reader process.

    Return the variables to take, by group; and group and variable of the scene classification (``scl``),
    empty without one.
    """
    sources: list[tuple[str, CubeSource]] = []
    failures: list[InputError] = []
    for group in groups_of(path):
        address = (str(Path(path, group)), None) if Path(path).is_dir() else (path, group)
        try:
            sources.append((group, CubeSource(*address, stored=stored)))
        except InputError as error:
            failures.append(error)
    best = _finest(sources, (*bands, "SCL"))
    scl = best.pop("SCL", None)
    if not best:
        tried = f" ({failures[0].problem})" if failures else ""
        raise InputError(
            f"cannot use '{path}', since none of its groups has a band{tried}, expected variables named "
            f"{', '.join(SENTINEL_BANDS[1:4])}... on coordinates x and y",
            "Give one group itself: PRODUCT.zarr/measurements/reflectance/r10m",
        )
    groups: dict[str, list[str]] = {}
    for group, variable in best.values():
        groups.setdefault(group, []).append(variable)
    return groups, list(scl or ())


def _finest(sources: Sequence[tuple[str, CubeSource]], wanted: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Band (or SCL) to the group and variable that hold it with the finest pixels."""
    best: dict[str, tuple[float, str, str]] = {}
    for group, source in sources:
        for layer, position in zip(source.layers, source._positions, strict=True):
            variable = str(position.variable).lower()
            name = "SCL" if variable == "scl" else layer.name or ""
            entry = (source.grid.pixel_size[0], group, variable)
            if name in wanted and position.dimension is None:
                best[name] = min(best.get(name, entry), entry)
    return {name: (group, variable) for name, (_, group, variable) in best.items()}


def _open(path: str, resolved: Path, group: str | None) -> xr.Dataset:
    extra: dict[str, Any] = {"engine": "netcdf4", "group": group}
    if resolved.is_dir():
        # Consolidated metadata would be a second, unchecked description of the same arrays.
        extra = {"engine": "zarr", "consolidated": False}
    extra |= dict.fromkeys(("mask_and_scale", "decode_times", "decode_timedelta", "cache"), False)
    try:
        return xr.open_dataset(str(resolved), **extra)
    except Exception as error:
        raise InputError(
            f"cannot read '{path}', since xarray cannot open it ({type(error).__name__}: {error})",
            "It is damaged, truncated or of another kind; write it again.",
        ) from error


def _axes(path: str, data: xr.Dataset) -> tuple[Hashable, Hashable]:
    """(x, y) dimensions, by standard name, CF axis or usual name."""
    axes: dict[str, Hashable] = {}
    for dimension in data.sizes:
        attributes = data[dimension].attrs if dimension in data.coords else {}
        name = str(dimension).lower()
        standard = str(attributes.get("standard_name", ""))
        axis = str(attributes.get("axis", ""))
        if name in _X or axis == "X" or standard in ("projection_x_coordinate", "longitude"):
            axes.setdefault("x", dimension)
        elif name in _Y or axis == "Y" or standard in ("projection_y_coordinate", "latitude"):
            axes.setdefault("y", dimension)
    if len(axes) < 2:
        groups = groups_of(path) if Path(path).exists() else []
        raise InputError(
            f"cannot use '{path}', since its dimensions are {', '.join(map(str, data.sizes)) or 'none'}, "
            "expected x and y (or lon and lat) with coordinates",
            f"Give one of its groups: {path.rstrip('/')}/{groups[0]}"
            if groups and Path(path).is_dir()
            else "Rename the dimensions: dataset.rename({'columns': 'x', 'rows': 'y'})",
        )
    return axes["x"], axes["y"]


def _layers(
    path: str, data: xr.Dataset, x: Hashable, y: Hashable, only: frozenset[str] | None, *, zarr: bool
) -> tuple[tuple[Layer, ...], tuple[_Position, ...]]:
    layers: list[Layer] = []
    positions: list[_Position] = []
    # A Zarr folder lists its members in no particular order, a NetCDF file in that of writing.
    variables = sorted(data.data_vars, key=lambda v: natural(str(v))) if zarr else list(data.data_vars)
    for name in variables:
        variable = data[name]
        if not {x, y} <= set(variable.dims) or variable.dtype.kind not in "iufb":
            continue
        if only is not None and str(name).lower() not in only:
            continue
        dimension = _band_dimension(path, data, name, (x, y))
        size = variable.sizes[dimension] if dimension is not None else 1
        count = len(layers) + size
        if exceeds(count, LAYERS):
            raise InputError(
                f"cannot read '{path}', since '{name}' makes it {count} layers, expected at most {LAYERS}",
                "Choose some of them: dataset.isel(band=slice(12))",
            )
        positions += [_Position(name, dimension, i) for i in range(size)]
        layers += [_layer(path, variable, zarr=zarr)] * size
    if not layers:
        raise InputError(
            f"cannot use '{path}', since no variable of it has the dimensions {y} and {x}, "
            "expected bands as variables, or one variable with a band dimension",
            "Check the file: ncdump -h FILE",
        )
    names = name_layers([_texts(data, position) for position in positions], path)
    alpha = [len(names) > 1 and re.fullmatch(OPACITY, name or "", re.I) is not None for name in names]
    named = (
        dataclasses.replace(layer, name="alpha" if is_alpha else name, alpha=is_alpha)
        for layer, name, is_alpha in zip(layers, names, alpha, strict=True)
    )
    return tuple(named), tuple(positions)


def _band_dimension(
    path: str, data: xr.Dataset, name: Hashable, axes: tuple[Hashable, Hashable]
) -> Hashable | None:
    """Return the dimension along which a variable has its bands, None without one."""
    variable = data[name]
    others = [d for d in variable.dims if d not in axes]
    # A dimension of length one, such as a single date, is only a label.
    long = [d for d in others if variable.sizes[d] != 1]
    dates = [d for d in long if _is_time(data, d)]
    if len(long) > 1 or dates:
        raise InputError(
            f"cannot use '{path}', since '{name}' has the dimensions {tuple(map(str, variable.dims))} "
            f"of lengths {variable.shape}, expected y, x and at most one dimension of bands, of one date",
            f"Choose one date first: dataset.isel({(dates or long)[0]}=0)",
        )
    timeless = [d for d in others if not _is_time(data, d)]
    return next(iter([*long, *(d for d in timeless if _words(data, d)), *timeless, *others]), None)


def _is_time(data: xr.Dataset, dimension: Hashable) -> bool:
    """True for a dimension of dates, by its name, axis, standard name, unit, type or labels."""
    name = str(dimension).lower()
    if name in _DATES or name.startswith("time"):
        return True
    if dimension not in data.coords:
        return False
    coordinate = data[dimension]
    known = {key: str(value) for key, value in coordinate.attrs.items()}
    if known.get("axis", "").upper() == "T" or known.get("standard_name", "").lower() == "time":
        return True
    if coordinate.dtype.kind in "Mm" or _SINCE.match(known.get("units", "")):
        return True
    words = _words(data, dimension)
    if coordinate.dtype.kind in "iu":  # 20200601; 202006 is as likely a count of something
        words = [word for word in map(str, np.ravel(coordinate.values).tolist()) if len(word) == 8]
    return len(words) == coordinate.size > 0 and all(map(_DATE.fullmatch, words))


def _words(data: xr.Dataset, coordinate: Hashable | None) -> list[str]:
    """Labels of a coordinate of strings; numbers are positions, which name nothing."""
    if coordinate not in data.coords or data[coordinate].dtype.kind not in "USOT":
        return []
    return [_word(value) for value in np.ravel(data[coordinate].values).tolist()]


def _word(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.strip("\x00 ")


def _texts(data: xr.Dataset, position: _Position) -> list[str | None]:
    """Return the texts about one layer: labels of its band, attributes and name of its variable."""
    variable, size = data[position.variable], 1
    labels: list[str | None] = [None] * (3 + len(_NAME_COORDINATES))
    dimension = position.dimension
    if dimension is not None:
        size = variable.sizes[dimension]
        along = [c for c in data.coords if data[c].dims == (dimension,) and c != dimension]
        usual = [c if c in along else None for c in _NAME_COORDINATES]
        other = next((c for c in along if c not in _NAME_COORDINATES and _words(data, c)), None)
        words = [_words(data, c) for c in (dimension, *usual, other)]
        # Numbers may be explained as flags.
        numbers = data[dimension].attrs if dimension in data.coords else {}
        words.append(_word(numbers.get("flag_meanings", "")).split())
        labels = [texts[position.band] if len(texts) == size else None for texts in words]
    attributes = [_attribute(variable.attrs.get(key), position.band, size) for key in _NAME_ATTRIBUTES]
    name = str(position.variable) if size == 1 else None
    return [*labels, *attributes[:-2], name, *attributes[-2:]]


def _attribute(value: Any, index: int, size: int) -> str | None:
    """Return an attribute as text; of a list with a text for each layer, the text of this layer."""
    if value is None:
        return None
    if isinstance(value, list | tuple | np.ndarray):
        parts = [_word(item) for item in np.ravel(np.asarray(value, dtype=object)).tolist()]
    else:
        parts = [_word(value)] if size == 1 else re.split(r"[,;|]", _word(value))
    return _word(parts[index]) if len(parts) == size else None


def _layer(path: str, variable: xr.DataArray, *, zarr: bool) -> Layer:
    # ESA's products have the attributes of an array in _eopf_attrs too, or only there.
    nested = variable.attrs.get("_eopf_attrs")
    attributes = {**(nested if isinstance(nested, dict) else {}), **variable.attrs}
    dtype, units = _read_dtype(variable), str(attributes.get("units", ""))
    layer = declared_layer(path, attributes, dtype, attribute_scaling(attributes, path), units)
    if layer.offset == 0 and "add_offset" not in attributes:
        layer = dataclasses.replace(layer, offset=None)
    unscaled = (layer.scale, layer.offset) == (None, None)
    if unscaled and np.dtype(dtype).kind in "iu":
        # Names and metadata of Zarr products state their processing baseline.
        layer = dataclasses.replace(layer, offset=baseline_offset(*ancestors(path), name=store_of(path).name))
    if not zarr and variable.dtype.itemsize > 1 and "_FillValue" not in attributes:
        # Values that were never written to a NetCDF file have the default of their type.
        fill = default_fillvals.get(f"{variable.dtype.kind}{variable.dtype.itemsize}")
        missing = layer.missing.also(as_stored(None if fill is None else float(fill), dtype))
        layer = dataclasses.replace(layer, missing=missing)
    return layer


def _read_dtype(variable: xr.DataArray) -> str:
    """Return the type that values are read as: ``_Unsigned`` makes bytes of NetCDF 3 unsigned, or signed."""
    kind, size = variable.dtype.kind, variable.dtype.itemsize
    unsigned = _word(variable.attrs.get("_Unsigned", "")).lower()
    if kind == "b" or (kind == "i" and unsigned in ("true", "1")):
        return f"uint{8 * size}"
    return f"int{8 * size}" if kind == "u" and unsigned in ("false", "0") else variable.dtype.name


def _grid(
    path: str, data: xr.Dataset, x: Hashable, y: Hashable, variable: xr.DataArray
) -> tuple[GridSpec, tuple[bool, bool]]:
    """(north-up grid, whether rows are stored from south to north and columns from east to west)."""
    crs = _crs(path, data, variable)
    declared = place.declared_transform(_mapping(data, variable), variable.attrs, data.attrs)
    height, width = data.sizes[y], data.sizes[x]
    if declared and (declared.b or declared.d):
        return GridSpec(crs, declared, height, width), (False, False)
    left, x_step = _edges(path, data, x, (declared.c, declared.a) if declared else None, crs)
    top, y_step = _edges(path, data, y, (declared.f, declared.e) if declared else None, crs)
    transform, flipped = place.north_up(Affine(x_step, 0.0, left, 0.0, y_step, top), height, width)
    return GridSpec(crs, place.western(transform, crs), height, width), flipped


def _edges(
    path: str, data: xr.Dataset, axis: Hashable, declared: tuple[float, float] | None, crs: CRS
) -> tuple[float, float]:
    """(outer edge of the first pixel, signed step) along an axis, in units of the CRS."""
    if axis not in data.coords:
        return declared or place.pixel_edges(path, str(axis), np.empty(0), bounds=None, declared=None)
    coordinate = data[axis]
    factor, addend = attribute_scaling(coordinate.attrs, path)
    unit = place.unit_factor(str(coordinate.attrs.get("units", "")), crs, path)

    def unpacked(values: np.ndarray) -> np.ndarray:
        stored = values.view(_read_dtype(coordinate)) if values.dtype.kind in "iu" else values
        values = np.asarray((stored.astype("float64") * factor + addend) * unit)
        # Longitudes may jump at 180 or 360 degrees.
        return np.unwrap(values.ravel(), period=360).reshape(values.shape) if crs.is_geographic else values

    bounds = data.variables.get(coordinate.attrs.get("bounds"))
    return place.pixel_edges(
        path, str(axis), unpacked(coordinate.values),
        bounds=None if bounds is None else unpacked(np.asarray(bounds.values)), declared=declared,
    )  # fmt: skip


def _mapping(data: xr.Dataset, variable: xr.DataArray) -> Mapping[str, Any]:
    """Attributes of the grid mapping of a variable; empty without one."""
    named = variable.attrs.get("grid_mapping") or variable.encoding.get("grid_mapping") or ""
    # CF's long form is "crs: x y".
    mappings: list[Hashable] = [str(named).split(":")[0].strip(), "spatial_ref", "crs"]
    mappings += [v for v in data.variables if "grid_mapping_name" in data[v].attrs]
    return next((dict(data[m].attrs) for m in mappings if m in data.variables), {})


def _crs(path: str, data: xr.Dataset, variable: xr.DataArray) -> CRS:
    """Return the CRS of a grid mapping or attribute; an empty one without any."""
    for attributes in (_mapping(data, variable), variable.attrs, data.attrs, *ancestors(path)):
        if crs := place.crs_from_attributes(attributes, path):
            return crs
    axes = [data[d].attrs for d in variable.dims if d in data.coords]
    degrees = [a for a in axes if str(a.get("units", "")).lower().startswith("degree")]
    standard = [a for a in axes if a.get("standard_name") in ("longitude", "latitude")]
    # Longitude and latitude of CF without a datum are WGS 84 by convention.
    return CRS.from_epsg(4326) if len(degrees) == 2 or len(standard) == 2 else CRS()
