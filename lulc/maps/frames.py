"""Maps as xarray objects: CF coordinates, flags and lazily read pixels.

References
----------
CF conventions 1.10, sections 3.5 (flags), 4 (coordinates), 5.6 (grid mappings).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import xarray as xr

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, UNCLASSIFIED, UNCLASSIFIED_COLOR, UNCLASSIFIED_NAME, Legend
from lulc.core.text import class_names, printable
from lulc.core.windows import Window
from lulc.labels.value_tables import LEGEND_TAG, TAG_PREFIX
from lulc.rasters.lazy import coordinates_of, lazy_variable

GRID_MAPPING = "crs"


class Described(Protocol):
    """A map on disk or in memory, from which coordinates and attributes are made."""

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
    classes: np.ndarray | xr.Variable,
    probabilities: np.ndarray | xr.Variable | None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """Return a map in memory as a Dataset.

    Parameters
    ----------
    classes : uint8 (y, x)
        1..N, 0 unclassified, 255 no data.
    probabilities : float32 (class, y, x), or None
        NaN = no data.
    extra
        Further variables by name, float32 (y, x).

    Returns
    -------
    Dataset
        ``class`` with CF flags, ``probability``, and the further variables; the CRS is in ``spatial_ref``.
    """
    frame = frame_of(land_cover).rename({GRID_MAPPING: "spatial_ref"}).set_coords("spatial_ref")
    mapping = {"grid_mapping": "spatial_ref"}
    frame["class"] = _variable(("y", "x"), classes, flags_of(land_cover) | mapping)
    if probabilities is not None:
        frame = frame.rename({"land_cover_class": "class_name"}).rename_dims({"class_name": "class_number"})
        frame = frame.assign_coords(class_number=np.arange(1, 1 + len(land_cover.legend)))
        named = {"long_name": "probability of each class", "units": "1"} | mapping
        frame["probability"] = _variable(("class_number", "y", "x"), probabilities, named)
    for name, values in (extra or {}).items():
        frame[name] = (("y", "x"), values, mapping)
    return frame


def _variable(
    dimensions: tuple[str, ...], values: np.ndarray | xr.Variable, attributes: dict[str, Any]
) -> xr.Variable:
    variable = values if isinstance(values, xr.Variable) else xr.Variable(dimensions, values)
    variable.attrs = attributes
    return variable


def frame_of(land_cover: Described) -> xr.Dataset:
    """Return coordinates, CRS and attributes of a map, without its pixels.

    Returns
    -------
    Dataset
        Pixel centres ``y`` and ``x``; ``land_cover_class``, the names along the activations; the grid
        mapping ``crs``; the provenance as global attributes ``lulc_...``.
    """
    further = {}
    if land_cover.has_activations:
        # Of fixed length, since GDAL reads no other texts from Zarr.
        names = np.array([printable(name) for name in land_cover.legend.names], "U")
        further["land_cover_class"] = ("land_cover_class", names, {"long_name": "class of an activation"})
    return frame_on(land_cover.grid, _global_attributes(land_cover), further)


def frame_on(
    grid: GridSpec, attributes: Mapping[str, str], further: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Return pixel centres ``y`` and ``x``, further coordinates, the grid mapping ``crs`` and attributes."""
    coordinates, mapping = coordinates_of(grid)
    frame = xr.Dataset(
        {GRID_MAPPING: ((), np.int32(0), mapping)}, {**coordinates, **(further or {})}, attributes
    )
    for name in frame.variables:
        frame[name].encoding = {"_FillValue": None}
    return frame


def _global_attributes(land_cover: Described) -> dict[str, str]:
    # NetCDF does not allow the names of some other tags.
    pattern = re.compile(f"{TAG_PREFIX}[A-Z0-9_]+")
    named = sorted((k, v) for k, v in land_cover.tags.items() if k != LEGEND_TAG and pattern.fullmatch(k))
    tags = {k.lower(): v for k, v in named}
    return {
        "Conventions": "CF-1.10",
        "title": f"Land cover: {printable(land_cover.legend.name)}",
        "source": f"network {tags.get('lulc_model', 'unknown')} (lulc)",
        **tags,
    }


def flags_of(land_cover: Described) -> dict[str, Any]:
    """Return the attributes of the class variable: CF flags, one colour and one word for each value."""
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


class Readable(Described, Protocol):
    """A map that is read by windows, such as `lulc.maps.reader.ClassMap`."""

    def read(self, window: Window) -> np.ndarray: ...
    def read_activations(self, window: Window) -> np.ndarray: ...


def lazy_dataset(land_cover: Readable) -> xr.Dataset:
    """Return an open map as a Dataset like `dataset_of`; its pixels are read when they are used."""
    shape, lock = land_cover.grid.shape, threading.Lock()

    def classes(window: Window) -> np.ndarray:
        with lock:
            return land_cover.read(window)[np.newaxis]

    def probabilities(window: Window) -> np.ndarray:
        with lock:
            return np.moveaxis(land_cover.read_activations(window), -1, 0)

    numbers = lazy_variable(classes, ("number", "y", "x"), (1, *shape), np.dtype("u1")).isel(number=0)
    planes = (len(land_cover.legend), *shape)
    values = lazy_variable(probabilities, ("class_number", "y", "x"), planes, np.dtype("f4"))
    return dataset_of(land_cover, numbers, values if land_cover.has_activations else None)
