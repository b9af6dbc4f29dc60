"""Georeferencing from metadata: CRS by WKT, code or grid mapping, coordinates and geotransforms by CF and
GDAL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from lulc.core.grid import settled_crs
from lulc.core.schema import InputError
from lulc.rasters import guards

_WKT_STARTS = ("PRO", "GEO", "COM", "BOU")
_CRS_KEYS = ("crs_wkt", "spatial_ref", "wkt", "crs", "proj:wkt2", "proj:code", "proj:epsg", "epsg",
             "epsg_code", "horizontal_CRS_code")  # fmt: skip
_LENGTHS = {"m": 1.0, "meter": 1.0, "metre": 1.0, "km": 1000.0, "kilometer": 1000.0, "kilometre": 1000.0,
            "dm": 0.1, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "foot": 0.3048, "feet": 0.3048,
            "us_survey_foot": 1200 / 3937, "us_survey_feet": 1200 / 3937}  # fmt: skip
_EVEN = 0.05
"""Tolerance in pixels: single-precision degrees are off by up to a twentieth of a 10 m pixel."""


def crs_from_text(text: str, path: str) -> CRS | None:
    """Return the CRS of WKT or an EPSG code; None for other texts, since GDAL opens files and URLs given as a
    CRS.

    Raises InputError if it is WKT or a code that is not understood.
    """
    code = text.strip().upper().removeprefix("EPSG:").removesuffix(".0")
    guards.check_crs(text, path)
    try:
        if code.isdecimal() and len(code) <= 6:
            return CRS.from_epsg(int(code))
        if code[:3] in _WKT_STARTS and "[" in code[:30]:
            return settled_crs(CRS.from_wkt(text.strip()))
    except CRSError as error:
        raise InputError(
            f"cannot use '{path}', since its CRS '{text[:80]}' is not understood ({error}), "
            "expected WKT or an EPSG code",
            "Write the CRS again: dataset.rio.write_crs('EPSG:3067')",
        ) from error
    return None


def crs_from_attributes(attributes: Mapping[str, Any], path: str) -> CRS | None:
    """Return the CRS in the attributes of a variable, grid mapping or group; None without one."""
    texts = [_text(attributes.get(key, "")) for key in _CRS_KEYS]
    gdal_zarr = attributes.get("_CRS")
    if isinstance(gdal_zarr, dict):
        # GDAL's own Zarr: the address of the code, or WKT.
        code = re.search(r"/EPSG/[\d.]+/(\d+)$", _text(gdal_zarr.get("url", "")))
        texts.append(code.group(1) if code else _text(gdal_zarr.get("wkt", "")))
    for text in texts:
        if text and (crs := crs_from_text(text, path)):
            return crs
    return _crs_from_cf(attributes, path) if "grid_mapping_name" in attributes else None


def _crs_from_cf(attributes: Mapping[str, Any], path: str) -> CRS:
    """Return the CRS of a CF grid mapping that has parameters and no WKT."""
    import pyproj

    guards.check_crs(" ".join(map(str, attributes.values())), path)
    try:
        return settled_crs(CRS.from_wkt(pyproj.CRS.from_cf(dict(attributes)).to_wkt()))
    except (pyproj.exceptions.CRSError, CRSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot use '{path}', since its grid mapping '{attributes['grid_mapping_name']}' "
            f"is not understood ({error}), expected a CF grid mapping",
            "Write the CRS as WKT: dataset.rio.write_crs('EPSG:3067')",
        ) from error


def declared_transform(*attributes: Mapping[str, Any]) -> Affine | None:
    """Return the geotransform in the attributes of grid mappings or variables; None without one.

    ``GeoTransform`` has GDAL's order, ``transform`` and ``proj:transform`` that of affine, ``i2m`` SNAP's.
    """
    for known in attributes:
        for key, order in (("GeoTransform", (1, 2, 0, 4, 5, 3)), ("transform", range(6)),
                           ("proj:transform", range(6)), ("i2m", (0, 2, 4, 1, 3, 5))):  # fmt: skip
            terms = _floats(known.get(key))
            if len(terms) in (6, 9) and all(map(math.isfinite, terms)):
                transform = Affine(*(terms[i] for i in order))
                if transform.determinant:
                    return transform
    return None


def north_up(transform: Affine, height: int, width: int) -> tuple[Affine, tuple[bool, bool]]:
    """Return the transform of the same pixels with rows from north and columns from west, and which it
    flipped.

    A rotated or sheared transform is returned as it is.
    """
    a, b, left, d, e, top = transform[:6]
    if b or d:
        return transform, (False, False)
    flipped = (e > 0, a < 0)
    left, top = left + width * a * flipped[1], top + height * e * flipped[0]
    return Affine(abs(a), 0.0, left, 0.0, -abs(e), top), flipped


def western(transform: Affine, crs: CRS) -> Affine:
    """Return a geographic geotransform that begins east of 180 degrees (longitudes 0..360) with a longitude
    360 lower.
    """
    if crs and crs.is_geographic and transform.c >= 180:
        return Affine(transform.a, transform.b, transform.c - 360, transform.d, transform.e, transform.f)
    return transform


def unit_factor(units: str, crs: CRS, path: str) -> float:
    """Return the factor that converts coordinates to the unit of their CRS; raises InputError for an unknown
    unit.
    """
    unit = units.strip().lower()
    if not unit or unit == "1":
        return 1.0
    if crs.is_geographic and unit.startswith("deg"):
        return 1.0
    if crs.is_geographic and unit in ("rad", "radian", "radians"):
        return 180 / math.pi
    length = _LENGTHS.get(unit, _LENGTHS.get(unit.removesuffix("s")))
    if not crs.is_geographic and length:
        return length / float(crs.linear_units_factor[1]) if crs else 1.0
    raise InputError(
        f"cannot use '{path}', since its coordinates are in '{units[:40]}', "
        f"expected {'degrees' if crs.is_geographic else 'metres or another length'}",
        "Write the coordinates in the unit of the CRS, and say so in their attribute units.",
    )


def pixel_edges(
    path: str, axis: str, values: np.ndarray, *, bounds: np.ndarray | None,
    declared: tuple[float, float] | None,
) -> tuple[float, float]:  # fmt: skip
    """(outer edge of the first pixel, signed step) of a coordinate.

    Raises InputError if coordinates are missing or uneven, or contradict the geotransform.

    Parameters
    ----------
    values
        Coordinates (n,), in the unit of the CRS; empty without any.
    bounds
        Edges of each pixel (n, 2) if the file has them.
    declared
        (origin, step) of the file's geotransform along this axis, in its own direction.
    """
    if bounds is not None and bounds.shape == (values.size, 2) and np.isfinite(bounds).all():
        first, last = bounds[0], bounds[-1]
        forward = first.mean() <= last.mean()
        start, end = (min(first), max(last)) if forward else (max(first), min(last))
        return float(start), _rounded((end - start) / values.size, 12)
    step = _even_step(path, axis, values, declared)
    centre = _rounded(values[0] - step / 2), step
    if declared is None or abs(abs(declared[1]) - abs(step)) > _EVEN * abs(step) / max(1, values.size):
        # Coordinates of CF are those of centres; a geotransform of other pixels is out of date.
        return centre
    origin, declared_step = declared
    offset = ((values[0] - origin) / declared_step) % 1.0
    if abs(offset - 0.5) < _EVEN:
        return centre
    if min(offset, 1 - offset) < _EVEN:
        # A corner: the pixel extends from its coordinate in the direction of the geotransform.
        return _rounded(values[0] if declared_step * step > 0 else values[0] - step), step
    raise InputError(
        f"cannot use '{path}', since its coordinate '{axis}' begins at {values[0]:.10g}, but its "
        f"geotransform has pixels of {abs(declared_step):.10g} from {origin:.10g}, expected their centres or "
        "corners",
        "Write one of them again, e.g. dataset.rio.write_transform(recalc=True), or drop the geotransform.",
    )


def _even_step(path: str, axis: str, values: np.ndarray, declared: tuple[float, float] | None) -> float:
    if values.ndim == 1 and np.isfinite(values).all():
        if values.size == 1 and declared:
            return declared[1]
        if values.size > 1:
            step = float((values[-1] - values[0]) / (values.size - 1))
            drift = np.abs(values - (values[0] + step * np.arange(values.size))).max()
            if step != 0 and drift < _EVEN * abs(step):
                return _rounded(step, 12)
    raise InputError(
        f"cannot use '{path}', since its coordinate '{axis}' is missing or not evenly spaced, "
        "expected pixel centres at even distances",
        "Write it with coordinates of pixel centres, or warp it to a regular grid first.",
    )


def _rounded(value: float, digits: int = 15) -> float:
    """Round to significant digits: 9.999999999 of a sum to 10."""
    return float(f"{value:.{digits}g}")


def _text(value: Any) -> str:
    """Return an attribute as text, whatever kind of string or number it is."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, np.ndarray | list | tuple):
        return _text(value[0]) if len(value) == 1 else ""
    return str(value).strip()


def _floats(value: Any) -> Sequence[float]:
    if value is None:
        return ()
    if isinstance(value, np.ndarray | list | tuple):
        parts = [str(part) for part in np.ravel(value).tolist()]
    else:
        parts = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", _text(value))
    try:
        return [float(part) for part in parts]
    except ValueError:
        return ()
