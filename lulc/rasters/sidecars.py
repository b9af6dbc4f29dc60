"""Side-car files of a raster: ``.aux.xml`` (GDAL's own metadata) and ``.msk`` (a mask).

GDAL would open whatever they name; here they are read as plain XML and as a GeoTIFF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from affine import Affine
from rasterio.crs import CRS

from lulc.core.schema import InputError
from lulc.rasters import guards
from lulc.rasters.place import crs_from_text


@dataclass(frozen=True)
class LayerMetadata:
    """Metadata of one layer in a side-car file; value = stored x scale + offset."""

    description: str | None = None
    units: str = ""
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sidecar:
    """Metadata of a raster in ``FILE.aux.xml``; empty where there is none."""

    crs: CRS | None = None
    transform: Affine | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[int, LayerMetadata] = field(default_factory=dict)

    def __bool__(self) -> bool:
        described = any(layer != LayerMetadata() for layer in self.layers.values())
        return bool(self.crs or self.transform or self.tags or described)


def mask_beside(path: Path) -> Path | None:
    """Return the external mask of a raster, ``FILE.msk``; None where there is none."""
    return _beside(path, ".msk")


def read_sidecar(path: Path) -> Sidecar:
    """Read ``FILE.aux.xml``.

    Raises InputError if it is damaged, or a link that leaves the folder.
    """
    file = _beside(path, ".aux.xml")
    if file is None:
        return Sidecar()
    root = guards.read_xml(file, "the side-car file")
    try:
        terms = [float(part) for part in (root.findtext("GeoTransform") or "").split(",") if part.strip()]
        srs = (root.findtext("SRS") or "").strip()
        crs = crs_from_text(srs, str(file)) if srs else None
        transform = Affine.from_gdal(*terms) if len(terms) == 6 else None
        bands = root.findall("PAMRasterBand")
        layers = {int(band.get("band", "0")): _layer_metadata(band) for band in bands}
        return Sidecar(crs, transform, _tags(root), layers)
    except ValueError as error:
        raise InputError(
            f"cannot read the side-car file '{file}', since it has a text instead of a number ({error})",
            "It is damaged: remove it, or write it again with GDAL.",
        ) from error


def _beside(path: Path, ending: str) -> Path | None:
    file = path.with_name(path.name + ending)
    if not file.is_file():
        return None
    guards.check_inside(file, path.parent, str(path))
    return file


def _layer_metadata(band: Element) -> LayerMetadata:
    def number(name: str) -> float | None:
        text = band.findtext(name)
        return float(text) if text and text.strip() else None

    return LayerMetadata(
        band.findtext("Description"), band.findtext("UnitType") or "", number("NoDataValue"), number("Scale"),
        number("Offset"), _tags(band),
    )  # fmt: skip


def _tags(element: Element) -> Mapping[str, Any]:
    """Metadata of the default domain, without statistics, which viewers add at any time."""
    items = [
        (item.get("key", ""), item.text or "")
        for block in element.findall("Metadata")
        if block.get("domain") is None
        for item in block.findall("MDI")
    ]
    return {key: text for key, text in items if not key.startswith("STATISTICS_")}
