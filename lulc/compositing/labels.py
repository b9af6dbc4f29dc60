"""Land-cover labels on the grid of a mosaic, from the files of a product or a STAC collection."""

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
"""What the collections of a product are called."""

SIDE = 2048
"""Side of the squares in which labels are written."""

NODATA = -32768
"""Stored value of a pixel without a label."""


def labels_path(out: Path) -> Path:
    """Return the path of the labels beside a mosaic."""
    return out.with_name(f"{out.stem}_labels.tif")


def check_product(options: Sequence[str]) -> tuple[str, list[str]]:
    """Return the product and the places that ``--labels`` names, known and, if on this machine, there.

    Raises
    ------
    InputError
        If the product isn't known, or there is no such path.
    """
    product, *places = options
    missing = [place for place in places if not _is_catalog(place) and not Path(place).exists()]
    if product not in PRODUCTS or not places or missing:
        why = f"since there is no '{missing[0]}', " if missing else ""
        raise InputError(
            f"cannot write labels from '{' '.join(options)}', {why}expected {' or '.join(PRODUCTS)}, then "
            "the files or folders that hold the product, or a catalogue",
            "Type for example --labels worldcover ESA_WorldCover_10m_2021_v200_N60E024_Map.tif, or "
            "--labels worldcover planetary",
        )
    for place in places:
        check_secrets("labels", place)
    return product, places


def _is_catalog(place: str) -> bool:
    return place in CATALOGS or is_address(place)


def find_labels(options: Sequence[str], grid: GridSpec, year: int) -> list[str]:
    """Return the rasters of a land-cover product that may have a pixel of a grid: paths or addresses.

    Parameters
    ----------
    options
        The product, then files or folders that hold its tiles, or catalogues.
    year
        Of a catalogue's items those of the nearest year come first.

    Raises
    ------
    InputError
        If the product isn't known, or a catalogue has none of it there.
    """
    product, places = check_product(options)
    return list(_rasters(product, places, grid, year))


def write_labels(product: str, rasters: Sequence[str], grid: GridSpec, out: Path) -> None:
    """Write the codes of a land-cover product on a grid, by the nearest pixel, never interpolated.

    Parameters
    ----------
    rasters
        As `find_labels` gives them; where they overlap, the first gives the code.
    out
        GeoTIFF, int16, `NODATA` where no raster has a code; its tags name the codes.

    Raises
    ------
    InputError
        If no raster has a pixel of the grid.
    """
    with ExitStack() as opened, rasterio.Env(**GDAL):
        tiles = []
        for path in rasters:
            source = opened.enter_context(retrying(partial(_open, path), path))
            if Alignment(source.grid, grid).touches():
                tiles.append(SingleLayer(source, grid, "labels", "Give the land-cover raster itself."))
        if not tiles:
            raise InputError(
                f"cannot write labels, since none of {len(rasters)} rasters of {product} has a pixel there",
                "Give the tiles of the product that cover it.",
            )
        _write(tiles, product, grid, out)


def _open(path: str) -> Any:
    return open_source(path, allow_remote=is_address(path))


def _rasters(product: str, places: Sequence[str], grid: GridSpec, year: int) -> Iterator[str]:
    for place in places:
        if place not in CATALOGS and re.search(r"\.(tiff?|img)$", place, re.IGNORECASE):
            yield place
        elif _is_catalog(place):
            yield from _of_catalog(product, place, grid, year)
        else:
            # The tiles of a static catalogue lie below it.
            folder = Path(place).parent if place.endswith(".json") else Path(place)
            yield from (str(path) for path in sorted(folder.rglob("*.tif")))


def _of_catalog(product: str, catalog: str, grid: GridSpec, year: int) -> list[str]:
    """Return the addresses of the maps that a catalogue has of the region, of the nearest year first."""
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
    return [place for item in items for place in [_map_of(item)] if place]


def _year(item: Mapping[str, Any]) -> int:
    said = item["properties"]
    return int(str(said.get("start_datetime") or said.get("datetime") or "0000")[:4])


def _map_of(item: Mapping[str, Any]) -> str | None:
    """Return the address of the asset that is the map: the one called so, else the only one with data."""
    rasters = {
        key: asset
        for key, asset in item["assets"].items()
        if "tiff" in str(asset.get("type", "")) and "metadata" not in asset.get("roles", ())
    }
    named = [key for key in rasters if re.search(r"(^|_)map$", key, re.IGNORECASE)] or list(rasters)
    if len(named) != 1:
        raise InputError(
            f"cannot tell which asset of '{item['id']}' is the map, since {len(named)} may be it "
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

    place = tiles[0].source.path
    windows = squares_of(grid.extent, SIDE)
    blocks = ((window, retrying(partial(_codes, tiles, window), place)[np.newaxis]) for window in windows)
    write_geotiff(out, profile, blocks, describe)


def _names(product: str) -> dict[str, str]:
    """Return the names of a product's codes as CF has them, by which `preprocess.py` knows the classes."""
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
