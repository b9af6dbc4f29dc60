"""Grid of a mosaic: the pixels of a region in one coordinate reference system."""

from __future__ import annotations

import logging
import math

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from lulc.config import MosaicConfig
from lulc.core.grid import GridSpec, settled_crs
from lulc.core.schema import InputError

WGS84 = CRS.from_epsg(4326)

WIDE = 12.0
"""Degrees of longitude above which a region is too wide for one UTM zone, so that a warning is logged."""

logger = logging.getLogger("lulc")

MAX_PIXELS = 2**33
"""Most pixels of a mosaic: a square of 920 km at 10 m."""


def grid_of(config: MosaicConfig) -> GridSpec:
    """Return the grid of the region: its bounds, extended to whole multiples of the pixel size.

    Corners of Sentinel-2's pixels are at multiples of 10 m, so that its 10 m bands aren't resampled.

    Raises
    ------
    InputError
        If neither or both of region and bounds are given, the region has no area or crosses the
        antimeridian without a CRS, or the grid would be too large.
    """
    region = _region(config)
    crs = _crs(config, region)
    left, bottom, right, top = _bounds(region, crs)
    size = config.resolution
    west, north = math.floor(left / size), math.ceil(top / size)
    width, height = math.ceil(right / size) - west, north - math.floor(bottom / size)
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(
            f"cannot make a mosaic of {height} rows x {width} columns, "
            f"expected at most {MAX_PIXELS:.0e} pixels",
            f"Give a smaller region, or larger pixels than --resolution {size:g}.",
        )
    return GridSpec(crs, Affine(size, 0, west * size, 0, -size, north * size), height, width)


def _region(config: MosaicConfig) -> BaseGeometry:
    """Return the region in longitude and latitude."""
    if (config.aoi is None) == (config.bounds is None):
        raise InputError(
            "cannot tell the region, expected one of --aoi and --bounds",
            "Type --aoi REGION.gpkg, or --bounds WEST SOUTH EAST NORTH in degrees.",
        )
    if config.bounds is not None:
        west, south, east, north = config.bounds
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise InputError(
                f"cannot use the bounds {' '.join(f'{v:g}' for v in config.bounds)}, expected west south "
                "east north in degrees, west below east and south below north",
                "A region across the antimeridian is given with --aoi and --crs.",
            )
        return box(*config.bounds)
    from lulc.rasters.vectors import read_region

    return read_region(str(config.aoi), WGS84)


def _crs(config: MosaicConfig, region: BaseGeometry) -> CRS:
    if config.crs is not None:
        try:
            return settled_crs(CRS.from_user_input(config.crs))
        except CRSError as error:
            raise InputError(
                f"cannot use --crs {config.crs}, since it is not understood, expected a code as EPSG:32635"
            ) from error
    west, south, east, north = region.bounds
    if east - west > 180:
        raise InputError(
            f"cannot choose a UTM zone, since the region reaches from longitude {west:g} to {east:g}: it "
            "crosses the antimeridian",
            "Say the CRS of the mosaic, for example --crs EPSG:32660.",
        )
    import geopandas

    try:
        zone = geopandas.GeoSeries([region], crs=WGS84).estimate_utm_crs()
    except RuntimeError as error:
        raise InputError(
            f"cannot choose a UTM zone at latitude {(south + north) / 2:.1f}, "
            "since these end at 80 S and 84 N",
            "Say the CRS of the mosaic, for example --crs EPSG:3413 or EPSG:3031.",
        ) from error
    if east - west > WIDE:
        logger.warning(
            "the region reaches from longitude %.1f to %.1f, over several UTM zones: pixels at its ends are "
            "distorted in %s; --crs chooses another CRS, for example EPSG:3035 in Europe",
            west, east, zone.to_string(),
        )  # fmt: skip
    return CRS.from_epsg(zone.to_epsg())


def _bounds(region: BaseGeometry, crs: CRS) -> tuple[float, float, float, float]:
    """Return the bounds of the region in a CRS."""
    import geopandas

    moved = geopandas.GeoSeries([region.segmentize(0.1)], crs=WGS84).to_crs(crs)
    bounds = tuple(float(value) for value in moved.total_bounds)
    if not all(math.isfinite(value) for value in bounds):
        raise InputError(
            f"cannot lay the region on {crs.to_string()}, since it has no coordinates there",
            "Give another --crs, or none for the UTM zone of its middle.",
        )
    return bounds  # type: ignore[return-value]
