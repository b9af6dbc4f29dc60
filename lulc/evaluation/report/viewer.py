"""Data for the map viewer of a page: layers, values, legend and places.

Values are compressed bytes in base64, which the browser paints and shows on a click. The demonstration scene
with 1024 x 1024 pixels and 13 classes takes 6 MB.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lulc.core.areas import pixel_area
from lulc.core.grid import GridSpec, metres_per_pixel
from lulc.core.schema import UNCLASSIFIED_COLOR, InputError, Legend
from lulc.core.windows import Window
from lulc.evaluation.report.views import UnsureSquare, Views
from lulc.labels.levels import Level

JPEG_QUALITY = 88

UNSURE_RAMP = ("#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4")
ACTIVATION_RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Colours from 0 to 1 at equal distances; lightness rises with the value (inferno and viridis)."""

WRONG_COLOR = "#d6006c"


@dataclass(frozen=True)
class Viewer:
    """The map of a page.

    Parameters
    ----------
    data
        JSON-ready input of `templates/viewer.js`.
    caption
        Text alternative.
    live
        True if tiles and values come from the server of the page.
    """

    data: Mapping[str, Any] = field(repr=False)
    caption: str
    live: bool = False


def embed(
    views: Views, legend: Legend, levels: Sequence[Level], places: Sequence[UnsureSquare], name: str
) -> Viewer:
    """Return a viewer with all data inside, also of CORINE levels (by summed activations, if any)."""
    planes = {"map": pack(views.map)}
    layers = [_layer("map", "Map", "classes", palette=_palette(legend), on=True)]
    if views.image is not None:
        layers.insert(0, _layer("image", "Image", "picture", source=_jpeg(views.image), on=True))
    if views.reference is not None:
        planes["reference"] = pack(views.reference)
        layers.append(_layer("reference", "Reference", "classes", palette=_palette(legend)))
        layers.append(_layer("difference", "Map differs from reference", "difference", color=WRONG_COLOR))
    for level in levels:
        groups = _level_view(views, level)
        planes[f"level{level.number}"] = pack(groups)
        more: dict[str, Any] = {"palette": _palette(level.legend), "classes": _classes(level.legend, groups)}
        layers.append(_layer(f"level{level.number}", level.name, "classes", **more))
    if views.activations is not None:
        layers.append(_layer("entropy", "Uncertainty", "ramp", colors=UNSURE_RAMP))
        more = {"colors": ACTIVATION_RAMP, "group": "activations"}
        for c, plane in zip(legend.classes, views.activations, strict=True):
            planes[f"activation{c.number}"] = pack(plane)
            layers.append(_layer(f"activation{c.number}", f"{c.number} {c.name}", "ramp", **more))
    words = [f"{p.entropy:.2f}, {' or '.join(legend.names[k - 1] for k in p.classes)}" for p in places]
    data = {
        "source": "embedded",
        **describe(views.grid, legend, name),
        "step": views.step,
        "size": list(views.map.shape),
        "digits": views.digits,
        "layers": layers,
        "shares": _fractions(views.map, legend),
        "hasActivations": views.activations is not None,
        "planes": planes,
        "places": [{"window": p.window.to_json(), "words": w} for p, w in zip(places, words, strict=True)],
    }
    return Viewer(data, f"Land-cover map {name} with {len(layers)} layers")


def describe(grid: GridSpec, legend: Legend, name: str) -> dict[str, Any]:
    """Return name, grid and classes of a map for its viewer."""
    epsg = grid.crs.to_epsg() if grid.crs else None
    across, (width, height) = metres_per_pixel(grid), grid.pixel_size
    # Degrees of longitude and latitude differ in length: the viewer draws pixels in their true proportions.
    area = pixel_area(grid) if grid.crs and grid.crs.is_geographic else None
    down = area / across if area and across else None
    return {
        "name": name,
        "shape": list(grid.shape),
        "hasLength": across is not None,
        "pixel": [down or (across or 1.0) * height / width, across or 1.0],
        "transform": list(grid.transform)[:6],
        "crs": f"EPSG:{epsg}" if epsg else "",
        "geographic": bool(grid.crs and grid.crs.is_geographic),
        "unclassified": UNCLASSIFIED_COLOR,
        "classes": _classes(legend),
    }


def _classes(legend: Legend, mapped: NDArray[np.uint8] | None = None) -> list[dict[str, Any]]:
    """Return the classes of a legend as JSON-ready data, with their fractions of a map, if any."""
    classes: list[dict[str, Any]] = [
        {"number": c.number, "name": c.name, "color": c.color} for c in legend.classes
    ]
    if mapped is not None:
        fractions = _fractions(mapped, legend)
        classes = [c | {"share": fractions[c["number"]]} for c in classes]
    return classes


def pack(plane: NDArray[np.uint8] | NDArray[Any]) -> dict[str, Any]:
    """Compress values uint8 or uint16 (y, x) to text; high bytes come first, which compresses better."""
    parts = [plane] if plane.dtype == np.uint8 else [plane >> 8, plane & 255]
    raw = b"".join(np.ascontiguousarray(part, np.uint8).tobytes() for part in parts)
    return {"bytes": len(parts), "data": base64.b64encode(zlib.compress(raw, 9)).decode("ascii")}


def _layer(key: str, name: str, kind: str, *, on: bool = False, **more: Any) -> dict[str, Any]:
    return {"id": key, "name": name, "kind": kind, "on": on, "group": "layers"} | more


def _palette(legend: Legend) -> list[str]:
    return [UNCLASSIFIED_COLOR, *legend.colors]


def _level_view(views: Views, level: Level) -> NDArray[np.uint8]:
    """Return the groups of a level, uint8 (y, x), by summed activations, if any."""
    if views.activations is None:
        return level.gather_map(views.map)
    groups = np.empty_like(views.map)
    # In strips, since float activations of all classes would need half a gigabyte.
    for row in range(0, len(groups), 128):
        rows = Window(row, 0, min(128, len(groups) - row), groups.shape[1])
        groups[rows.slices] = level.gather(
            views.map[rows.slices], np.moveaxis(views.read_activations(rows), 0, -1)
        )
    return groups


def _fractions(classes: NDArray[np.uint8], legend: Legend) -> list[float]:
    """Return the fractions of class 0, 1, ..., N among the pixels with data."""
    counts = np.bincount(classes.ravel(), minlength=256)[: len(legend) + 1]
    return [float(n) for n in counts / max(1, int(counts.sum()))]


def _jpeg(image: NDArray[np.uint8]) -> str:
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise InputError("cannot embed the image, since it can't be encoded", "Leave out --image.")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
