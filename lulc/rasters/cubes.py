"""NetCDF files and Zarr folders as raster sources, read through xarray.

rasterio opens a plain NetCDF upside down, without a geotransform, names or an error, and does not
read Zarr 3; here layer names come from variables or from the band coordinate, the grid from the
coordinates (rows may run either way; they are delivered north-up), the CRS from the CF grid mapping.
Values stay as they are stored: packing and missing values are described by the layers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import re
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from netCDF4 import default_fillvals
from rasterio.crs import CRS

from lulc.core.budgets import LAYERS, exceeds
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.windows import Window
from lulc.rasters import guards
from lulc.rasters.apart import Served
from lulc.rasters.groups import ancestors, check_netcdf, groups_of, store_of
from lulc.rasters.layers import (
    BASELINE_OFFSET,
    OFFSET_SINCE,
    OPACITY,
    Layer,
    Source,
    attribute_scaling,
    baseline_of,
    baseline_of_name,
    check_grid,
    declared_scaling,
    is_offset_applied,
    is_plain,
    odd_scaling,
    warn_of_odd,
)
from lulc.rasters.missing import as_stored, declared_missing, odd_values
from lulc.rasters.names import SENTINEL_BANDS, is_counted, name_layers, natural
from lulc.rasters.place import (
    crs_from_attributes,
    declared_transform,
    north_up,
    pixel_edges,
    unit_factor,
    western,
)

_X = ("x", "lon", "longitude", "easting", "xc", "projection_x_coordinate")
_Y = ("y", "lat", "latitude", "northing", "yc", "projection_y_coordinate")
_DATE = re.compile(r"(19|20)\d\d-?(0[1-9]|1[0-2])(-?(0[1-9]|[12]\d|3[01]))?([T ].*)?")
_DATES = ("t", "date", "dates", "datetime", "year", "years", "month", "months", "season", "doy")
_SINCE = re.compile(r"\s*\w+\s+since\s", re.IGNORECASE)
_NAME_COORDINATES = ("common_name", "eo:common_name", "band_name", "name", "long_name", "title")
_NAME_ATTRIBUTES = ("common_name", "eo:common_name", "band_name", "band_names", "bands", "long_name",
                    "standard_name")  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Place of a layer: its variable, and the position along the band dimension (or none)."""

    variable: Hashable
    dimension: Hashable | None
    position: int


class CubeSource(Source):
    """A NetCDF file or Zarr folder, or one group of it, in its reader process; made by `serve`.

    Parameters
    ----------
    only
        Variables to take for layers, by name in small letters; None for all that lie on the grid.
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
            # What attributes and coordinates hold is up to whoever wrote them.
            raise InputError(
                f"cannot use '{path}', since its variables or attributes are not those of a raster "
                f"({type(error).__name__}: {error})",
                "Check the file: ncdump -h FILE",
            ) from error

    def _describe(self, *, zarr: bool) -> None:
        """Find layers and grid; `zarr` says that the order of variables means nothing."""
        path, data = self.path, self._data
        self._x, self._y = _axes(path, data)
        self.layers, self._places = _layers(path, data, self._x, self._y, self._only, zarr=zarr)
        variables = dict.fromkeys(place.variable for place in self._places)
        self.ordered = not zarr or len(variables) == 1 or is_counted([str(v) for v in variables])
        crs = _crs(path, data, data[self._places[0].variable])
        self.grid, self._flipped = _grid(path, data, self._x, self._y, self._places[0], crs)
        check_grid(path, self.grid)

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
        slices = []
        for part, length, flipped in zip(window.slices, self.grid.shape, self._flipped, strict=True):
            slices.append(slice(length - part.stop, length - part.start) if flipped else part)
        rows, cols = slices
        try:
            planes = [self._plane(i, rows, cols) for i in layers]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read rows {window.row} to {window.stop[0]} of '{self.path}', "
                f"since it is damaged there ({error})",
                "Copy or download it again.",
            ) from error
        down, across = (-1 if flipped else 1 for flipped in self._flipped)
        return np.stack(planes)[:, ::down, ::across]

    def read_mask(self, layers: Sequence[int], window: Window, step: int = 1) -> np.ndarray | None:
        """Pixels, bool (1, y, x), that layers of opacity leave in; None where there are none."""
        own = [i for i, layer in enumerate(self.layers) if layer.alpha]
        return (self.read(own, window) != 0).all(0)[None, ::step, ::step] if own else None

    def _plane(self, number: int, rows: slice, cols: slice) -> np.ndarray:
        values = np.asarray(self._select(number, rows, cols).values)
        return values.astype(values.dtype.newbyteorder("="), copy=False).view(self.layers[number].dtype)

    def _select(self, number: int, rows: slice, cols: slice) -> xr.DataArray:
        place = self._places[number]
        data = self._data[place.variable]
        if place.dimension is not None:
            data = data.isel({place.dimension: place.position})
        rest = {d: 0 for d in data.dims if d not in (self._x, self._y)}
        return data.isel({self._y: rows, self._x: cols, **rest}).transpose(self._y, self._x)

    def attributes(self) -> Mapping[str, Any]:
        return {str(key): value for key, value in self._data[self._places[0].variable].attrs.items()}

    def reopen(self) -> CubeSource:
        raise NotImplementedError("the process that reads the file is started again instead")

    def close(self) -> None:
        self._data.close()


class ArraySource(CubeSource):
    """An xarray object in memory, or a lazy one that is read window by window.

    Raises InputError if it has no evenly spaced x and y coordinates, no bands, or more than one date.

    Parameters
    ----------
    data
        Bands as variables, or along a dimension; one date.
    """

    def __init__(self, data: xr.DataArray | xr.Dataset) -> None:
        self.path = "<array>"
        self._group = self._only = None
        named = data.to_dataset(name=data.name or "array") if isinstance(data, xr.DataArray) else data
        self._data = named
        self._describe(zarr=True)
        self.block = (1, self._data.sizes[self._x])
        self._held = threading.local()

    @property
    def is_lazy(self) -> bool:
        """True where Dask computes the pixels."""
        return any(self._data[place.variable].chunks is not None for place in self._places)

    def planes(self) -> list[Any]:
        """Return what `read` gives of all layers, one (y, x) each, as Dask arrays where they are lazy."""
        down, across = (slice(None, None, -1 if flipped else 1) for flipped in self._flipped)
        return [self._select(i, down, across).data for i in range(len(self.layers))]

    def like_given(self, frame: xr.Dataset) -> xr.Dataset:
        """Return a north-up result with dimensions ``y`` and ``x`` in the order of the object's own axes."""
        if not any(self._flipped):
            return frame
        down, across = (slice(None, None, -1 if flipped else 1) for flipped in self._flipped)
        turned = frame.isel(y=down, x=across)
        # GDAL's geotransform is that of the upper edge and would contradict the coordinates.
        turned["spatial_ref"].attrs.pop("GeoTransform", None)
        return turned

    def lay(self, values: np.ndarray) -> np.ndarray:
        """Turn an array that lies as the object does, whose y may come after x or ascend, as `read` does."""
        if values.ndim != 2:
            return values
        dimensions = self._data[self._places[0].variable].dims
        if dimensions.index(self._x) < dimensions.index(self._y):
            values = values.T
        down, across = (-1 if flipped else 1 for flipped in self._flipped)
        return values[::down, ::across]

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
    """Return an array of labels (y, x) north-up, NaN where an xarray object says that a value is missing.

    Raises InputError if an xarray object lies on other pixels.

    Parameters
    ----------
    labels
        An xarray object on the same pixels, or an array that lies as `beside` does.
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
    """Open a NetCDF file or a Zarr folder after checking what it holds; runs in a reader process.

    Raises InputError if it is damaged, names other files, has no evenly spaced x and y coordinates, no CRS,
    or more than one date.
    """
    return Served(CubeSource(path, group, None if only is None else frozenset(only), stored=stored))


def choose_groups(path: str, bands: Sequence[str], stored: int) -> tuple[dict[str, list[str]], list[str]]:
    """Choose the groups of a product that give its bands, each with the finest pixels; runs apart.

    Returns
    -------
    groups
        Variables to take, by group.
    mask
        Group and variable of the scene classification (``scl``), empty where there is none.
    """
    found: list[tuple[str, CubeSource]] = []
    failures: list[InputError] = []
    for group in groups_of(path):
        place = (str(Path(path, group)), None) if Path(path).is_dir() else (path, group)
        try:
            found.append((group, CubeSource(*place, stored=stored)))
        except InputError as error:
            failures.append(error)
    best = _finest(found, (*bands, "SCL"))
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


def _finest(found: Sequence[tuple[str, CubeSource]], wanted: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Band (or SCL) to the group and variable that hold it with the finest pixels."""
    best: dict[str, tuple[float, str, str]] = {}
    for group, source in found:
        for layer, place in zip(source.layers, source._places, strict=True):
            name = "SCL" if str(place.variable).lower() == "scl" else layer.name or ""
            entry = (source.grid.pixel_size[0], group, str(place.variable).lower())
            if name in wanted and place.dimension is None:
                best[name] = min(best.get(name, entry), entry)
    return {name: (group, variable) for name, (_, group, variable) in best.items()}


def _open(path: str, resolved: Path, group: str | None) -> xr.Dataset:
    extra: dict[str, Any] = {"engine": "netcdf4", "group": group}
    if resolved.is_dir():
        # Consolidated metadata would be a second, unchecked description of the same arrays.
        extra = {"engine": "zarr", "consolidated": False}
    try:
        return xr.open_dataset(
            str(resolved),
            mask_and_scale=False,
            decode_times=False,
            decode_timedelta=False,
            cache=False,
            **extra,
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
        groups = groups_of(path) if Path(path).exists() else []
        raise InputError(
            f"cannot use '{path}', since its dimensions are {', '.join(map(str, data.sizes)) or 'none'}, "
            "expected x and y (or lon and lat) with coordinates",
            f"Give one of its groups: {path.rstrip('/')}/{groups[0]}"
            if groups and Path(path).is_dir()
            else "Rename the dimensions: dataset.rename({'columns': 'x', 'rows': 'y'})",
        )
    return found["x"], found["y"]


def _layers(
    path: str, data: xr.Dataset, x: Hashable, y: Hashable, only: frozenset[str] | None, *, zarr: bool
) -> tuple[tuple[Layer, ...], tuple[_Place, ...]]:
    layers: list[Layer] = []
    places: list[_Place] = []
    texts = []
    # A Zarr folder lists its members in no particular order, a NetCDF file in that of writing.
    names = sorted(data.data_vars, key=lambda v: natural(str(v))) if zarr else list(data.data_vars)
    for name in names:
        variable = data[name]
        if not {x, y} <= set(variable.dims) or variable.dtype.kind not in "iufb":
            continue
        if only is not None and str(name).lower() not in only:
            continue
        dimension = _band_dimension(path, data, name, (x, y))
        count = len(layers) + (variable.sizes[dimension] if dimension is not None else 1)
        if exceeds(count, LAYERS):
            raise InputError(
                f"cannot read '{path}', since '{name}' makes it {count} layers, expected at most {LAYERS}",
                "Choose some of them: dataset.isel(band=slice(12))",
            )
        for i in range(variable.sizes[dimension] if dimension is not None else 1):
            places.append(_Place(name, dimension, i))
            texts.append(_texts(data, places[-1]))
            layers.append(_layer(path, variable, zarr=zarr))
    if not layers:
        raise InputError(
            f"cannot use '{path}', since no variable of it has the dimensions {y} and {x}, "
            "expected bands as variables, or one variable with a band dimension",
            "Check the file: ncdump -h FILE",
        )
    found = name_layers(texts, path)
    alpha = [len(found) > 1 and re.fullmatch(OPACITY, name or "", re.I) is not None for name in found]
    named = (
        dataclasses.replace(layer, name="alpha" if own else name, alpha=own)
        for layer, name, own in zip(layers, found, alpha, strict=True)
    )
    return tuple(named), tuple(places)


def _band_dimension(
    path: str, data: xr.Dataset, name: Hashable, axes: tuple[Hashable, Hashable]
) -> Hashable | None:
    """The dimension along which a variable has its bands, None where it has none."""
    variable = data[name]
    rest = [d for d in variable.dims if d not in axes]
    # A dimension of length one (a single date) is no more than a label.
    long = [d for d in rest if variable.sizes[d] != 1]
    dates = [d for d in long if _is_time(data, d)]
    if len(long) > 1 or dates:
        chosen = (dates or long)[0]
        raise InputError(
            f"cannot use '{path}', since '{name}' has the dimensions {tuple(map(str, variable.dims))} "
            f"of lengths {variable.shape}, expected y, x and at most one dimension of bands, of one date",
            f"Choose one date first: dataset.isel({chosen}=0)",
        )
    words = [d for d in rest if _words(data, d) and not _is_time(data, d)]
    return next(iter([*long, *words, *(d for d in rest if not _is_time(data, d)), *rest]), None)


def _is_time(data: xr.Dataset, dimension: Hashable) -> bool:
    """True for a dimension of dates, by its axis, standard name, unit, type, labels or name."""
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
    """Labels of a coordinate of words, of any kind of string; numbers are positions, which name nothing."""
    if coordinate not in data.coords or data[coordinate].dtype.kind not in "USOT":
        return []
    return [_word(value) for value in np.ravel(data[coordinate].values).tolist()]


def _word(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.strip("\x00 ")


def _texts(data: xr.Dataset, place: _Place) -> list[str | None]:
    """Return the texts about one layer: labels of its band, attributes and name of its variable."""
    variable, size = data[place.variable], 1
    labels: list[str | None] = [None] * (3 + len(_NAME_COORDINATES))
    if place.dimension is not None:
        size = variable.sizes[place.dimension]
        along = [c for c in data.coords if data[c].dims == (place.dimension,) and c != place.dimension]
        named = [c if c in along else None for c in _NAME_COORDINATES]
        others = next((c for c in along if c not in _NAME_COORDINATES and _words(data, c)), None)
        words = [_words(data, c) for c in (place.dimension, *named, others)]
        # Numbers whose meaning is given as flags.
        numbers = data[place.dimension].attrs if place.dimension in data.coords else {}
        words.append(_word(numbers.get("flag_meanings", "")).split())
        labels = [own[place.position] if len(own) == size else None for own in words]
    attributes = [_attribute(variable.attrs.get(key), place.position, size) for key in _NAME_ATTRIBUTES]
    alone = str(place.variable) if size == 1 else None
    return [*labels, *attributes[:-2], alone, *attributes[-2:]]


def _attribute(value: Any, position: int, size: int) -> str | None:
    """An attribute as text: of a list with a text for each layer the own one."""
    if value is None:
        return None
    if isinstance(value, list | tuple | np.ndarray):
        items = np.ravel(np.asarray(value, dtype=object)).tolist()
        return _word(items[position]) if len(items) == size else None
    parts = [_word(value)] if size == 1 else re.split(r"[,;|]", _word(value))
    return _word(parts[position]) if len(parts) == size else None


def _layer(path: str, variable: xr.DataArray, *, zarr: bool) -> Layer:
    # ESA's products repeat the attributes of an array in _eopf_attrs, or keep them there alone.
    nested = variable.attrs.get("_eopf_attrs")
    attributes = {**(nested if isinstance(nested, dict) else {}), **variable.attrs}
    dtype = _read_dtype(variable)
    factor, addend = attribute_scaling(attributes, path)
    odd = odd_scaling(factor, addend)
    warn_of_odd(path, [*odd, *odd_values(attributes, dtype)])
    if odd:
        factor, addend = 1.0, 0.0
    scale, offset = declared_scaling(factor, addend, dtype, units=str(attributes.get("units", "")))
    if offset == 0 and "add_offset" not in attributes:
        offset = None
    if (scale, offset) == (None, None) and np.dtype(dtype).kind in "iu" and _keeps_offset(path):
        offset = BASELINE_OFFSET
    missing = declared_missing(attributes, dtype=dtype, scale=factor, offset=addend)
    if not zarr and variable.dtype.itemsize > 1 and "_FillValue" not in attributes:
        # What was never written to a NetCDF file holds the default of its type.
        fill = default_fillvals.get(f"{variable.dtype.kind}{variable.dtype.itemsize}")
        missing = missing.also(as_stored(None if fill is None else float(fill), dtype))
    plain = is_plain(dtype, str(attributes.get("units", "")))
    return Layer(None, dtype, missing, scale, offset, packing=(factor, addend), plain=plain)


def _keeps_offset(path: str) -> bool:
    """True for a Zarr product whose metadata or name state a processing baseline that adds to DN."""
    properties = list(ancestors(path))
    if any(map(is_offset_applied, properties)):
        return False
    stated = [baseline_of_name(store_of(path).name), *map(baseline_of, properties)]
    return max(stated) >= OFFSET_SINCE


def _read_dtype(variable: xr.DataArray) -> str:
    """The type that values are read as: ``_Unsigned`` makes bytes of NetCDF 3 unsigned, or signed."""
    kind, size = variable.dtype.kind, variable.dtype.itemsize
    said = _word(variable.attrs.get("_Unsigned", "")).lower()
    if kind == "b" or (kind == "i" and said in ("true", "1")):
        return f"uint{8 * size}"
    return f"int{8 * size}" if kind == "u" and said in ("false", "0") else variable.dtype.name


def _grid(
    path: str, data: xr.Dataset, x: Hashable, y: Hashable, first: _Place, crs: CRS
) -> tuple[GridSpec, tuple[bool, bool]]:
    """(north-up grid, whether rows are stored from south to north and columns from east to west)."""
    variable = data[first.variable]
    declared = declared_transform(_mapping(data, variable), variable.attrs, data.attrs)
    height, width = data.sizes[y], data.sizes[x]
    if declared and (declared.b or declared.d):
        return GridSpec(crs, declared, height, width), (False, False)
    axes = (
        ((x, (declared.c, declared.a)), (y, (declared.f, declared.e))) if declared else ((x, None), (y, None))
    )
    (left, x_step), (top, y_step) = (_edges(path, data, axis, own, crs) for axis, own in axes)
    transform, flipped = north_up(Affine(x_step, 0.0, left, 0.0, y_step, top), height, width)
    return GridSpec(crs, western(transform, crs), height, width), flipped


def _edges(
    path: str, data: xr.Dataset, axis: Hashable, declared: tuple[float, float] | None, crs: CRS
) -> tuple[float, float]:
    """(outer edge of the first pixel, signed step) along an axis, in units of the CRS."""
    if axis not in data.coords:
        return declared or pixel_edges(path, str(axis), np.empty(0), bounds=None, declared=None)
    coordinate = data[axis]
    factor, addend = attribute_scaling(coordinate.attrs, path)
    unit = unit_factor(str(coordinate.attrs.get("units", "")), crs, path)

    def unpacked(values: np.ndarray) -> np.ndarray:
        stored = values.view(_read_dtype(coordinate)) if values.dtype.kind in "iu" else values
        found = np.asarray((stored.astype("float64") * factor + addend) * unit)
        # Longitudes run on where they begin anew, at 180 or 360 degrees.
        return np.unwrap(found.ravel(), period=360).reshape(found.shape) if crs.is_geographic else found

    bounds = data.variables.get(coordinate.attrs.get("bounds"))
    return pixel_edges(
        path, str(axis), unpacked(coordinate.values),
        bounds=None if bounds is None else unpacked(np.asarray(bounds.values)), declared=declared,
    )  # fmt: skip


def _mapping(data: xr.Dataset, variable: xr.DataArray) -> Mapping[str, Any]:
    """Attributes of the grid mapping of a variable; empty where there is none."""
    named = variable.attrs.get("grid_mapping") or variable.encoding.get("grid_mapping") or ""
    # CF's long form is "crs: x y".
    places: list[Hashable] = [str(named).split(":")[0].strip(), "spatial_ref", "crs"]
    places += [v for v in data.variables if "grid_mapping_name" in data[v].attrs]
    return next((dict(data[p].attrs) for p in places if p in data.variables), {})


def _crs(path: str, data: xr.Dataset, variable: xr.DataArray) -> CRS:
    """The CRS that a grid mapping or attribute states; an empty one where there is none."""
    for attributes in (_mapping(data, variable), variable.attrs, data.attrs, *ancestors(path)):
        found = crs_from_attributes(attributes, path)
        if found:
            return found
    axes = [data[d].attrs for d in variable.dims if d in data.coords]
    degrees = [a for a in axes if str(a.get("units", "")).lower().startswith("degree")]
    standard = [a for a in axes if a.get("standard_name") in ("longitude", "latitude")]
    # CF's longitude and latitude without a datum are taken for WGS 84, as everywhere.
    return CRS.from_epsg(4326) if len(degrees) == 2 or len(standard) == 2 else CRS()
