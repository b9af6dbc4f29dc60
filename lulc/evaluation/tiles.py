"""Layers of tiles: files that several threads read at the same time, and the colours of their values."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import cv2
import numpy as np
import rasterio

from lulc.core.channels import ChannelSet
from lulc.core.machine import GDAL_CACHE
from lulc.core.schema import IGNORE, UNCLASSIFIED_COLOR, InputError
from lulc.evaluation.report.viewer import ACTIVATION_RAMP, UNSURE_RAMP, WRONG_COLOR
from lulc.maps.reader import REST, ClassMap
from lulc.models.uncertainty import entropy
from lulc.rasters.channels import set_in_tags
from lulc.rasters.matching import picture_layers
from lulc.rasters.sources import RasterSource, open_source

TILE_SIZE = 256  # side of a tile of the page in pixels
PALE = 38  # alpha of the other classes while one class is shown alone
READERS = 4  # concurrent reads; each holds a tile of all bands in memory
BLANK = cv2.imencode(".png", np.zeros((1, 1, 4), np.uint8))[1].tobytes()  # transparent tile outside the map


class TileFile:
    """Raster for several threads, each with its own guarded dataset, which `resources` closes."""

    def __init__(self, path: str, resources: ExitStack, *, allow_vrt: bool = False) -> None:
        source = resources.enter_context(open_source(path, allow_vrt=allow_vrt, in_process=True))
        if not isinstance(source, RasterSource):
            raise InputError(
                f"cannot show '{path}', since tiles are made of GeoTIFF, JPEG 2000 and VRT",
                "Convert it: gdal_translate IN OUT.tif",
            )
        self.names = list(source.names)
        self._free: queue.LifoQueue[RasterSource] = queue.LifoQueue()
        for again in (source, *(resources.enter_context(source.reopen()) for _ in range(READERS - 1))):
            self._free.put(again)

    def read(self, read: Callable[[Any], Any]) -> Any:
        """Call a function with a reader of rio-tiler."""
        from rio_tiler.io import Reader

        source = self._free.get()
        try:
            cache = rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE)
            with cache, source.opened() as dataset, Reader(None, dataset=dataset) as reader:
                return read(reader)
        finally:
            self._free.put(source)


@dataclasses.dataclass(frozen=True)
class TileLayer:
    """A layer of the page.

    Parameters
    ----------
    bands
        Bands of the file, counted from 1.
    paint
        Function from masked values (band, y, x) and the class shown alone to colours uint8 (y, x, 4).
    more
        Further fields of the layer in the page.
    unscale
        True if the values are stored scaled.
    """

    id: str
    name: str
    kind: str
    file: TileFile
    bands: tuple[int, ...]
    paint: Callable[[np.ma.MaskedArray[Any, Any], int | None], np.ndarray]
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    unscale: bool = False

    def tile(self, x: int, y: int, z: int, size: int, alone: int | None) -> bytes:
        from rio_tiler.errors import TileOutsideBounds

        def read(reader: Any) -> Any:
            image = reader.tile(x, y, z, tilesize=size, indexes=self.bands, unscale=self.unscale)
            return image.array

        try:
            values = self.file.read(read)
        except TileOutsideBounds:
            return BLANK
        colors = self.paint(values, alone)
        colors[np.ma.getmaskarray(values).any(axis=0), 3] = 0
        return cv2.imencode(".png", cv2.cvtColor(colors, cv2.COLOR_RGBA2BGRA))[1].tobytes()

    def described(self) -> dict[str, Any]:
        tiles = f"{self.id}/tiles/WebMercatorQuad/{{z}}/{{x}}/{{y}}.png?tilesize={TILE_SIZE}"
        fields = {"id": self.id, "name": self.name, "kind": self.kind, "tiles": tiles}
        return {"on": False, "group": "layers"} | fields | self.more


def _has_single_class(the_map: ClassMap) -> bool:
    """True for a map of one class against the rest, which has no band for the rest."""
    return the_map.legend.classes[-1] == REST


def layers_of(
    the_map: ClassMap, file: TileFile, image: TileFile | None, reference: tuple[TileFile, TileFile] | None
) -> list[TileLayer]:
    """Return the layers of a page, lowest first."""
    legend = the_map.legend
    colors = {0: REST.color if _has_single_class(the_map) else UNCLASSIFIED_COLOR}
    palette = partial(_paint_classes, colors | {c.number: c.color for c in legend.classes})
    layers = [TileLayer("map", "Map", "classes", file, (1,), palette, {"on": True})]
    if reference:
        labels, wrong = reference
        layers.append(TileLayer("reference", "Reference", "classes", labels, (1,), palette))
        where = partial(_paint_classes, {1: WRONG_COLOR})
        name, color = "Map differs from reference", {"color": WRONG_COLOR}
        layers.append(TileLayer("difference", name, "difference", wrong, (1,), where, color))
    if image:
        bands, picture = _picture_of(image, set_in_tags(the_map.tags))
        layers.insert(0, TileLayer("image", "Image", "picture", image, bands, picture, {"on": True}))
    if the_map.has_activations:
        layers += _ramps(the_map, file)
    return layers


def _ramps(the_map: ClassMap, file: TileFile) -> list[TileLayer]:
    """Return the layers of the uncertainty and of the activation of each class."""
    stored = tuple(range(2, len(the_map.layers) + 1))
    uncertainty = partial(_paint_ramp, "inferno", partial(_entropy_of, _has_single_class(the_map)))
    activation = partial(_paint_ramp, "viridis", lambda values: values[0])
    colors: dict[str, Any] = {"colors": UNSURE_RAMP}
    layers = [TileLayer("entropy", "Uncertainty", "ramp", file, stored, uncertainty, colors, unscale=True)]
    colors = {"colors": ACTIVATION_RAMP, "group": "activations"}
    names = the_map.legend.names[: len(stored)]
    return layers + [
        TileLayer(f"activation{k}", f"{k} {name}", "ramp", file, (k + 1,), activation, colors, unscale=True)
        for k, name in enumerate(names, start=1)
    ]


def _paint_classes(
    colors: dict[int, str], values: np.ma.MaskedArray[Any, Any], alone: int | None
) -> np.ndarray:
    """Colour class numbers; pixels without a class are transparent, and classes beside `alone` pale."""
    table = np.zeros((256, 4), np.uint8)
    for number, color in colors.items():
        table[number] = (*bytes.fromhex(color[1:]), 255 if alone in (None, number) else PALE)
    return table[np.clip(values[0].filled(IGNORE), 0, IGNORE).astype(np.uint8)]


def _paint_ramp(
    name: str,
    value: Callable[[np.ndarray], np.ndarray],
    values: np.ma.MaskedArray[Any, Any],
    alone: int | None,
) -> np.ndarray:
    """Colour values 0..1."""
    from rio_tiler.colormap import cmap

    ramp = cmap.get(name)
    table = np.array([ramp[level] for level in range(256)], np.uint8)
    shown = np.nan_to_num(value(values.filled(0).astype(np.float32)))
    return table[np.clip(np.rint(255 * shown), 0, 255).astype(np.uint8)]


def _entropy_of(single_class: bool, values: np.ndarray) -> np.ndarray:
    """Return the uncertainty of activations (class, y, x)."""
    return entropy(np.moveaxis(np.concatenate([values, 1 - values]) if single_class else values, 0, -1))


def _picture_of(
    image: TileFile, channels: ChannelSet | None
) -> tuple[tuple[int, ...], Callable[..., np.ndarray]]:
    """Return the bands of an image, and a function that stretches them by the 2 % and 98 % percentiles."""
    bands = [k + 1 for k in picture_layers(image.names, channels)]
    limits = []
    for plane in image.read(lambda reader: reader.preview(indexes=bands, max_size=512).array):
        values = plane.compressed()
        values = values[np.isfinite(values) & (values != 0)]
        low, high = np.percentile(values, (2, 98)) if len(values) else (0, 1)
        limits.append((low, max(high, low + 1e-6)))
    return tuple(bands), partial(_paint_picture, np.array(limits, np.float64))


def _paint_picture(limits: np.ndarray, values: np.ma.MaskedArray[Any, Any], alone: int | None) -> np.ndarray:
    low, high = limits[:, 0, np.newaxis, np.newaxis], limits[:, 1, np.newaxis, np.newaxis]
    shown = np.clip((np.nan_to_num(values.filled(0)) - low) / (high - low), 0, 1)
    opaque = np.ones((1, *shown.shape[1:]))
    return np.ascontiguousarray(np.moveaxis(np.rint(255 * np.concatenate([shown, opaque])), 0, -1), np.uint8)
