"""Reader of a finished map: class numbers, activations and tags."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, UNCLASSIFIED, InputError, LandCoverClass, Legend
from lulc.core.storage import Resource
from lulc.core.text import printable
from lulc.core.windows import Window
from lulc.labels.value_tables import LEGEND_TAG, TAG_PREFIX, legend_of_tag
from lulc.models.uncertainty import MEASURES
from lulc.rasters.sources import Source, open_source

if TYPE_CHECKING:
    import xarray as xr

REST = LandCoverClass(2, "Other classes", "#d9d9d9")
"""Class of the rest in a map of a single class."""


class ClassMap(Resource):
    """A map on disk; `open_map` opens it, and it is a context manager.

    A map of a single class has two classes here: the class (1), and the rest, which the file holds as 0 (2).

    Attributes
    ----------
    has_activations
        True if the map has an activation band for each class.
    layers
        Stored type, no data and scale of class band and activations, without the measures of certainty
        that follow them (`lulc.models.uncertainty`).
    """

    def __init__(self, source: Source, tags: Mapping[str, str], legend: Legend) -> None:
        self.source = source
        self._tags = tags
        self.name = os.path.basename(source.path)
        self.grid: GridSpec = source.grid
        self._alone = len(legend) == 1
        self.legend = Legend(legend.name, (*legend.classes, REST)) if self._alone else legend
        self._bands = len(legend)
        self.layers = source.layers[: 1 + self._bands]
        self.has_activations = len(self.layers) == 1 + self._bands

    @property
    def made(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of the tags of provenance, without the legend."""
        return tuple(
            (key.removeprefix(TAG_PREFIX).lower().replace("_", " "), value)
            for key, value in sorted(self._tags.items())
            if key.startswith(TAG_PREFIX) and key != LEGEND_TAG
        )

    @property
    def tags(self) -> Mapping[str, str]:
        """Metadata of the file."""
        return self._tags

    def stored(self, number: int) -> int:
        """Return the value in band 1 for a class number of `legend`."""
        return UNCLASSIFIED if self._alone and number == REST.number else number

    def read(self, window: Window, step: int = 1) -> NDArray[np.uint8]:
        """Read about every `step`-th pixel, uint8 (y, x): class 1..N, 0 unclassified, 255 no data.

        Raises
        ------
        InputError
            If a value is no class number of the legend.
        """
        stored, known = self.source.read_valid([0], window, step)
        values, valid = stored[0], known[0]
        if not self.source.layers[0].missing.values and values.dtype == np.uint8:
            valid &= values != IGNORE
        numbers = np.where(valid, values, 0)
        if (numbers != np.round(numbers)).any() or numbers.min() < 0 or numbers.max() > self._bands:
            odd = numbers[(numbers != np.round(numbers)) | (numbers < 0) | (numbers > self._bands)][0]
            raise InputError(
                f"cannot read the map '{self.source.path}', since band 1 has the value {odd:g}, "
                f"expected class numbers 0..{self._bands} of '{self.legend.name}'",
                "Name the scheme of the map: --scheme NAME, or a CSV with its classes.",
            )
        classes = numbers.astype(np.uint8)
        if self._alone:
            classes[classes == UNCLASSIFIED] = REST.number
        classes[~valid] = IGNORE
        return classes

    def read_activations(self, window: Window) -> NDArray[np.float32]:
        """Read activations, float32 (y, x, class), 0..1, NaN = no data."""
        layers = range(1, 1 + self._bands)
        stored, known = self.source.read_valid(list(layers), window)
        result = np.empty((*window.shape, self._bands), np.float32)
        for k, layer in enumerate(layers):
            values = self.source.layers[layer].unpack(stored[k])
            result[..., k] = np.where(known[k], values, np.nan)
        return np.concatenate([result, 1 - result], axis=-1) if self._alone else result

    def plot(self, axes: Any = None) -> Any:
        """Draw the classes with their colours, a legend and a scale bar; large maps are subsampled.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from lulc.maps.picture import PIXELS, draw_classes

        step = -(-max(self.grid.shape) // PIXELS)
        return draw_classes(self.read(self.grid.extent, step), self.grid, self.legend, axes)

    def _repr_html_(self) -> str:
        """Return picture and size for a notebook, without links to other sites."""
        from lulc.maps.picture import embedded

        about = f"{printable(self.name)}: {self.grid.describe()}; {printable(self.legend.name)}"
        return f"<figure>{embedded(self.plot)}<figcaption>{html.escape(about)}</figcaption></figure>"

    def to_xarray(self) -> xr.Dataset:
        """Return the map as a Dataset whose pixels are read when they are used, while the map is open.

        Returns
        -------
        Dataset
            ``class`` uint8 (y, x) with CF flags and colours (0 unclassified, 255 no data), and for maps with
            activations ``probability`` float32 (class_number, y, x), NaN = no data.
        """
        from lulc.maps.frames import lazy_dataset

        return lazy_dataset(self)

    def close(self) -> None:
        """Release the file."""
        self.source.close()


def open_map(
    path: str | os.PathLike[str], legend: Legend | None = None, *, allow_vrt: bool = False,
    allow_remote: bool = False,
) -> ClassMap:  # fmt: skip
    """Open a map that make_classifications.py wrote, or another raster of class numbers.

    Parameters
    ----------
    path
        Raster whose first band holds class numbers, followed by one activation band per class or none.
    legend
        Classes of a raster without this toolkit's tags.
    allow_vrt, allow_remote
        See `lulc.rasters.sources.open_source`.

    Raises
    ------
    InputError
        If the file can't be opened, its legend is missing or damaged, or its bands don't fit the legend.
    """
    source = open_source(path, allow_vrt=allow_vrt, allow_remote=allow_remote)
    try:
        tags = source.tags
        legend = legend_of_tag(tags[LEGEND_TAG], str(path)) if LEGEND_TAG in tags else legend
        if legend is None:
            raise InputError(
                f"cannot tell the classes of '{path}', since it has no tag {LEGEND_TAG}, expected a map "
                "written by make_classifications.py",
                "Type --scheme with its nomenclature, or with a CSV (code,class,name,color) of its classes.",
            )
        measures = [name for name in source.names[1 + len(legend) :] if name in MEASURES]
        layers = sum(not layer.alpha for layer in source.layers)
        if layers - len(measures) not in (1, 1 + len(legend)):
            raise InputError(
                f"cannot read the map '{path}', since it has {layers} bands, expected 1, or "
                f"{1 + len(legend)} for the {len(legend)} classes of '{legend.name}'",
                "Give the map itself, or the scheme that fits it.",
            )
        return ClassMap(source, tags, legend)
    except BaseException:
        source.close()
        raise


def array_map(data: xr.Dataset | xr.DataArray, legend: Legend | None = None) -> ClassMap:
    """Open a map in memory, as `lulc.classify` returns it for an array, or its variable ``class``.

    Parameters
    ----------
    data
        ``class`` (y, x) with CF flags, and perhaps ``probability`` (class_number, y, x).

    Raises
    ------
    InputError
        If there are no classes, or they have no names.
    """
    from lulc.rasters.cubes import ArraySource

    frame: Any = data if hasattr(data, "data_vars") else data.to_dataset(name="class")
    legend = _flagged_legend(frame) if "class" in frame and legend is None else legend
    if "class" not in frame or legend is None:
        raise InputError(
            "cannot use the array as a map, since "
            + ("nothing names its classes" if "class" in frame else "it has no variable 'class'")
            + ", expected a result of lulc.classify()",
            "Give that result, or name the classes with scheme.",
        )
    tags = {str(k).upper(): str(v) for k, v in frame.attrs.items() if str(k).upper().startswith(TAG_PREFIX)}
    variables = [name for name in ("class", "probability") if name in frame]
    return ClassMap(ArraySource(frame[variables]), tags, legend)


def _flagged_legend(frame: xr.Dataset) -> Legend | None:
    """Return the legend of CF flags; None without flags."""
    flags = frame["class"].attrs
    names = [str(name) for name in frame["class_name"].values] if "class_name" in frame.coords else []
    names = names or str(flags.get("flag_meanings", "")).split()[1:]
    colors = str(flags.get("flag_colors", "")).split()[1:]
    if not names or len(names) != len(colors):
        return None
    rows = zip(names, colors, strict=True)
    title = str(frame.attrs.get("title", "classes")).removeprefix("Land cover: ")
    return Legend(title, tuple(LandCoverClass(k, *row) for k, row in enumerate(rows, 1)))
