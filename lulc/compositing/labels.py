"""Land-cover labels on the grid of a mosaic, from the files of a product."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio

from lulc.core.grid import GridSpec
from lulc.core.schema import NO_CODE, InputError
from lulc.core.storage import write_atomically
from lulc.core.windows import Window, squares_of
from lulc.rasters.alignment import Alignment
from lulc.rasters.codes import SingleLayer
from lulc.rasters.sources import open_source

PRODUCTS = {"worldcover": "worldcover", "corine": "clc-level3"}
"""Scheme of each product."""

SIDE = 2048
"""Side of the squares in which labels are written."""

NODATA = -32768
"""Stored value of a pixel without a label."""


def labels_path(out: Path) -> Path:
    """Return the path of the labels beside a mosaic."""
    return out.with_name(f"{out.stem}_labels.tif")


def check_product(options: Sequence[str]) -> tuple[str, list[str]]:
    """Return the product and the paths that ``--labels`` names, known and there.

    Raises
    ------
    InputError
        If the product isn't known, or there is no such path.
    """
    product, *paths = options
    missing = [path for path in paths if not Path(path).exists()]
    if product not in PRODUCTS or not paths or missing:
        why = f"since there is no '{missing[0]}', " if missing else ""
        raise InputError(
            f"cannot write labels from '{' '.join(options)}', {why}expected {' or '.join(PRODUCTS)}, then "
            "the files or folders that hold the product",
            "Type for example --labels worldcover ESA_WorldCover_10m_2021_v200_N60E024_Map.tif",
        )
    return product, paths


def write_labels(options: Sequence[str], grid: GridSpec, out: Path) -> None:
    """Write the codes of a land-cover product on a grid, by the nearest pixel.

    Parameters
    ----------
    options
        The product, then files or folders that hold its tiles; where tiles overlap, the first gives the code.
    grid
        Pixels of the result.
    out
        GeoTIFF, int16, `NODATA` where no tile has a code.

    Raises
    ------
    InputError
        If the product isn't known, or no file has a pixel of the grid.
    """
    product, paths = check_product(options)
    with ExitStack() as opened:
        tiles = []
        for path in _rasters(paths):
            source = opened.enter_context(open_source(path))
            if Alignment(source.grid, grid).touches():
                tiles.append(SingleLayer(source, grid, "labels", "Give the land-cover raster itself."))
        if not tiles:
            raise InputError(
                f"cannot write labels, since no raster of {' '.join(paths)} has a pixel of the region",
                "Give the tiles of the product that cover it.",
            )
        _write(tiles, product, grid, out)


def _rasters(paths: Sequence[str]) -> list[str]:
    found = []
    for path in map(Path, paths):
        found += [str(p) for p in sorted(path.rglob("*.tif"))] if path.is_dir() else [str(path)]
    return found


def _write(tiles: Sequence[SingleLayer], product: str, grid: GridSpec, out: Path) -> None:
    profile = {
        "driver": "GTiff", "dtype": "int16", "count": 1, "height": grid.height, "width": grid.width,
        "crs": grid.crs, "transform": grid.transform, "nodata": NODATA, "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "zstd",
    }  # fmt: skip
    with write_atomically(out) as temporary, rasterio.open(temporary, "w", **profile) as data:
        data.set_band_description(1, product)
        data.update_tags(SCHEME=PRODUCTS[product])
        for window in squares_of(grid.extent, SIDE):
            area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
            data.write(_codes(tiles, window), 1, window=area)


def _codes(tiles: Sequence[SingleLayer], window: Window) -> np.ndarray:
    codes = np.full(window.shape, NO_CODE, "int32")
    for tile in tiles:
        missing = codes == NO_CODE
        if not missing.any():
            break
        np.copyto(codes, tile.codes(window)[0], where=missing, casting="unsafe")
    return np.where(codes == NO_CODE, NODATA, codes).astype("int16")
