"""Land-cover labels on the grid of a mosaic, from files of a product or from a STAC collection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from shapely.geometry import shape

from lulc.compositing.catalog import CATALOGS, check_secrets, collections_of, search
from lulc.compositing.composer import NODATA
from lulc.compositing.observation import GDAL, retrying
from lulc.compositing.output import write_geotiff
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, NO_CODE, InputError
from lulc.core.windows import Window, squares_of
from lulc.export.stac import footprint
from lulc.labels.schemes import load_scheme
from lulc.rasters.alignment import Alignment
from lulc.rasters.codes import SingleLayer
from lulc.rasters.guards import is_address
from lulc.rasters.sources import open_source

PRODUCTS = {"worldcover": "worldcover", "corine": "clc-level3"}
"""Scheme of each product."""

COLLECTIONS: Mapping[str, re.Pattern[str]] = {
    "worldcover": re.compile(r"world.?cover", re.IGNORECASE),
    "corine": re.compile(r"corine|clc", re.IGNORECASE),
}
"""Patterns of the identifiers of a product's collections."""

SIDE = 2048
"""Side of the squares in which labels are written."""


def labels_path(out: Path) -> Path:
    """Return the path of the labels beside a mosaic."""
    return out.with_name(f"{out.stem}_labels.tif")


def check_product(options: Sequence[str]) -> tuple[str, list[str]]:
    """Return the product, and the files, folders or catalogues of ``--labels``; refuse unknown ones."""
    product, *sources = options
    missing = [source for source in sources if not _is_catalog(source) and not Path(source).exists()]
    if product not in PRODUCTS or not sources or missing:
        why = f"since there is no '{missing[0]}', " if missing else ""
        raise InputError(
            f"cannot write labels from '{' '.join(options)}', {why}expected {' or '.join(PRODUCTS)}, then "
            "the files or folders that hold the product, or a catalogue",
            "Type for example --labels worldcover ESA_WorldCover_10m_2021_v200_N60E024_Map.tif, or "
            "--labels worldcover planetary",
        )
    for source in sources:
        check_secrets("labels", source)
    return product, sources


def _is_catalog(source: str) -> bool:
    return source in CATALOGS or is_address(source)


def find_labels(options: Sequence[str], grid: GridSpec, year: int) -> list[str]:
    """Return paths or addresses of the rasters of a land-cover product that may overlap a grid.

    `options` are the values of ``--labels``. Items of a catalogue are sorted by their distance from `year`; a
    catalogue without an item in the region is refused.
    """
    product, sources = check_product(options)
    return list(_rasters(product, sources, grid, year))


def write_labels(product: str, rasters: Sequence[str], grid: GridSpec, out: Path) -> None:
    """Write the codes of a land-cover product on a grid, resampled by nearest neighbour.

    Where rasters overlap, the first with a code gives it. `out` is an int16 GeoTIFF, `NODATA` where no raster
    has a code; its tags name the codes. If no raster has a pixel of the grid, InputError is raised.
    """
    with ExitStack() as resources, rasterio.Env(**GDAL):
        tiles = []
        for path in rasters:
            opening = partial(open_source, path, allow_remote=is_address(path))
            source = resources.enter_context(retrying(opening, path))
            if Alignment(source.grid, grid).touches():
                tiles.append(SingleLayer(source, grid, "labels", "Give the land-cover raster itself."))
        if not tiles:
            raise InputError(
                f"cannot write labels, since none of {len(rasters)} rasters of {product} has a pixel there",
                "Give the tiles of the product that cover it.",
            )
        _write(tiles, product, grid, out)


def _rasters(product: str, sources: Sequence[str], grid: GridSpec, year: int) -> Iterator[str]:
    for source in sources:
        if source not in CATALOGS and re.search(r"\.(tiff?|img)$", source, re.IGNORECASE):
            yield source
        elif _is_catalog(source):
            yield from _search_maps(product, source, grid, year)
        else:
            # The tiles of a static catalogue lie below it.
            folder = Path(source).parent if source.endswith(".json") else Path(source)
            yield from (str(path) for path in sorted(folder.rglob("*.tif")))


def _search_maps(product: str, catalog: str, grid: GridSpec, year: int) -> list[str]:
    """Return the addresses of a catalogue's maps of the region, those of the nearest year first."""
    named = COLLECTIONS[product]
    collections = collections_of(catalog, named)
    items = list(search(catalog, collections, shape(footprint(grid)[0]))) if collections else []
    if not items:
        raise InputError(
            f"cannot write labels, since '{catalog}' has no {product} of the region "
            f"(its collections of that name: {', '.join(collections) or 'none'})",
            "Give the files of the product, or another catalogue.",
        )
    items.sort(key=lambda item: (abs(_year(item) - year), -_year(item), item["id"]))
    return list(filter(None, map(_map_of, items)))


def _year(item: Mapping[str, Any]) -> int:
    properties = item["properties"]
    return int(str(properties.get("start_datetime") or properties.get("datetime") or "0000")[:4])


def _map_of(item: Mapping[str, Any]) -> str:
    """Return the address of the map of an item: the asset called map, else the only data asset."""
    rasters = {
        key: asset
        for key, asset in item["assets"].items()
        if "tiff" in str(asset.get("type", "")) and "metadata" not in asset.get("roles", ())
    }
    named = [key for key in rasters if re.search(r"(^|_)map$", key, re.IGNORECASE)] or list(rasters)
    if len(named) != 1:
        raise InputError(
            f"cannot tell which asset of '{item['id']}' is the map, since there are {len(named)} candidates "
            f"({', '.join(named[:9])}), expected one called map",
            "Give the address of the file itself.",
        )
    check_secrets(item["id"], rasters[named[0]]["href"])
    return str(rasters[named[0]]["href"])


def _write(tiles: Sequence[SingleLayer], product: str, grid: GridSpec, out: Path) -> None:
    profile = {
        "driver": "GTiff", "dtype": "int16", "count": 1, "height": grid.height, "width": grid.width,
        "crs": grid.crs, "transform": grid.transform, "nodata": NODATA, "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "zstd",
    }  # fmt: skip

    def describe(data: Any) -> None:
        data.set_band_description(1, product)
        data.update_tags(SCHEME=PRODUCTS[product])
        data.update_tags(1, **_names(product))

    path, windows = tiles[0].source.path, squares_of(grid.extent, SIDE)
    blocks = ((window, retrying(partial(_codes, tiles, window), path)[np.newaxis]) for window in windows)
    write_geotiff(out, profile, blocks, describe)


def _names(product: str) -> dict[str, str]:
    """Return the names of a product's codes as CF flags, which `preprocess.py` reads."""
    scheme = load_scheme(PRODUCTS[product])
    named = {
        code: scheme.legend.names[number - 1]
        for code, number in scheme.classes.items()
        if isinstance(code, int) and number != IGNORE
    }
    meanings = " ".join(name.replace(" ", "_") for name in named.values())
    return {"flag_values": " ".join(map(str, named)), "flag_meanings": meanings}


def _codes(tiles: Sequence[SingleLayer], window: Window) -> np.ndarray:
    codes = np.full(window.shape, NO_CODE, "int32")
    for tile in tiles:
        missing = codes == NO_CODE
        if not missing.any():
            break
        np.copyto(codes, tile.codes(window)[0], where=missing, casting="unsafe")
    return np.where(codes == NO_CODE, NODATA, codes).astype("int16")
