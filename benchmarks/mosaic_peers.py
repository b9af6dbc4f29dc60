"""Compare the median of make_mosaic.py with those of odc-stac and stackstac on the same items, by pixel.

The items are real Sentinel-2 dates of a block, each 10 m band a file of its own, with the scene
classification; square clouds are pasted into some dates. All three take the pixels as they are, leave out the
same classes, and round the median to whole digital numbers, so that their results should be equal.

Example: python benchmarks/mosaic_peers.py shared/data/belgium-dates/west
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.warp import transform_bounds

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from classify import describe_machine  # noqa: E402

from lulc.compositing.mosaic import make_mosaic  # noqa: E402
from lulc.config import MosaicConfig  # noqa: E402

BANDS = ("B02", "B03", "B04", "B08")
LEFT_OUT = (0, 1, 3, 8, 9, 10)
CLOUD = 9000
"""Digital number of the clouds that are pasted in."""


def write_items(block: Path, folder: Path, clouds: Mapping[str, tuple[int, int, int]]) -> list[float]:
    """Write the dates of a block as STAC items with a file for each 10 m band; return the bounds in degrees.

    Parameters
    ----------
    block
        Folder with ``DATE_10m.tif`` and ``DATE_scl_20m.tif``.
    folder
        Where the items go.
    clouds
        Date to row, column and side in pixels of 10 m, even numbers, of a cloud that is pasted in.
    """
    bounds: list[float] = []
    for path in sorted(block.glob("*_10m.tif")):
        day = path.name[:8]
        with rasterio.open(path) as data, rasterio.open(block / f"{day}_scl_20m.tif") as classified:
            values, classes = data.read(), classified.read(1)
            profiles = data.profile, classified.profile
            bounds = list(transform_bounds(data.crs, "EPSG:4326", *data.bounds))
            epsg = data.crs.to_epsg()
        if day in clouds:
            row, col, side = clouds[day]
            values[:, row : row + side, col : col + side] = CLOUD
            classes[row // 2 : (row + side) // 2, col // 2 : (col + side) // 2] = 9
        name = f"S2_{day}"
        layers = {
            "scl": (classes, profiles[1]),
            **{b: (v, profiles[0]) for b, v in zip(BANDS, values, strict=True)},
        }
        assets: dict[str, Any] = {}
        for key, (layer, profile) in layers.items():
            file = folder / name / f"{key}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(file, "w", **{**profile, "count": 1}) as data:
                data.write(layer, 1)
            assets[key] = {"href": f"{name}/{key}.tif", "type": "image/tiff; application=geotiff"}
        for band in BANDS:
            said = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": 0.0}
            assets[band] |= {"eo:bands": [{"name": band}], "raster:bands": [said]}
        _write_item(folder, name, f"{day[:4]}-{day[4:6]}-{day[6:]}", epsg, bounds, assets)
    return bounds


def _write_item(
    folder: Path, name: str, day: str, epsg: int, bounds: list[float], assets: dict[str, Any]
) -> None:
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    names = ("projection/v1.1.0", "eo/v1.1.0", "raster/v1.1.0")
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "links": [], "assets": assets,
        "stac_extensions": [f"https://stac-extensions.github.io/{n}/schema.json" for n in names],
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": bounds,
        "properties": {"datetime": f"{day}T10:50:31Z", "proj:epsg": epsg, "platform": "sentinel-2a"},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(item))


def medians(folder: Path, bounds: list[float], epsg: int) -> dict[str, np.ndarray]:
    """Return the median of each program that is installed, int16 (band, y, x), 0 where nothing is clear."""
    import odc.stac
    import pystac

    days = sorted(path.stem[3:] for path in folder.glob("S2_*.json"))
    first, last = (datetime.datetime.strptime(day, "%Y%m%d").date() for day in (days[0], days[-1]))
    out = folder / "ours.tif"
    config = MosaicConfig(
        bounds=tuple(bounds), dates=f"{first}/{last}", crs=f"EPSG:{epsg}", scenes=(str(folder),),
        out=str(out), band_names=BANDS, max_cloud=100,
    )  # fmt: skip
    make_mosaic(config)
    with rasterio.open(out) as data:
        ours, box = data.read()[:-1], data.bounds
    found = {"make_mosaic.py": np.where(ours == -32768, 0, ours)}
    items = [pystac.Item.from_file(str(path)) for path in sorted(folder.glob("S2_*.json"))]
    # One after the other from the corner of our grid.
    edges = {"x": (box.left, box.right), "y": (box.bottom, box.top)}
    for item in items:
        item.make_asset_hrefs_absolute()
    theirs = odc.stac.load(items, bands=[*BANDS, "scl"], crs=f"EPSG:{epsg}", resolution=10, **edges)
    found["odc-stac"] = _median([theirs[band].values for band in BANDS], theirs["scl"].values)
    try:
        import stackstac
    except ImportError:
        return found
    stack = stackstac.stack(
        items, assets=[*BANDS, "scl"], epsg=epsg, resolution=10, bounds=tuple(box), dtype="float64",
        fill_value=np.nan, rescale=False,
    )  # fmt: skip
    values = stack.compute().values
    found["stackstac"] = _median(list(np.nan_to_num(values[:, :-1]).swapaxes(0, 1)), values[:, -1])
    return found


def _median(bands: list[np.ndarray], classes: np.ndarray) -> np.ndarray:
    """Return the median over time of each (time, y, x), where classes are clear and all bands are there."""
    clear = ~np.isin(np.nan_to_num(classes), LEFT_OUT) & np.all([band > 0 for band in bands], axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        made = [np.nanmedian(np.where(clear, band, np.nan), axis=0) for band in bands]
    return np.rint(np.nan_to_num(made)).astype("int16")


def main() -> None:
    """Compare, print and store the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("block", type=Path, help="folder with DATE_10m.tif and DATE_scl_20m.tif")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "mosaic-peers.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clouds = {
            path.name[:8]: (8 + 2 * n, 10, 30)
            for n, path in enumerate(sorted(given.block.glob("*_10m.tif"))[::3])
        }
        bounds = write_items(given.block, Path(name), clouds)
        with rasterio.open(next(given.block.glob("*_10m.tif"))) as data:
            epsg = data.crs.to_epsg()
        found = medians(Path(name), bounds, epsg)
    ours = found.pop("make_mosaic.py")
    rows = {}
    for peer, theirs in found.items():
        difference = np.abs(ours.astype(int) - theirs)
        rows[peer] = {"values": int(difference.size), "differing": int((difference > 0).sum()),
                      "largest_difference": int(difference.max())}  # fmt: skip
        with_version = f"{peer} {_version(peer)}"
        print(f"{with_version:20} {rows[peer]['differing']} of {rows[peer]['values']} values differ")
        rows[peer]["version"] = _version(peer)
    result = {"machine": describe_machine(), "data": f"{given.block.name}: real dates, clouds pasted in",
              "dates": len(clouds) * 3, "peers": rows}  # fmt: skip
    Path(given.out).write_text(json.dumps(result, indent=2) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
