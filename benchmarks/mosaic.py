"""Compose simulated scenes of several dates with make_mosaic.py and with odc-stac on Dask: Mpx/s and memory.

Both read the same files on the same number of processors and take the median of the clear observations;
odc-stac by its defaults (nearest neighbour, chunks of 1024 pixels), written as Zarr. Each is a
process of its own, whose wall time, processor time and peak memory are measured. The scenes are one simulated
tile, repeated, with noise and clouds of their own for each date.

Example: python benchmarks/mosaic.py --side 4096 --dates 6 --bands B02 B03 B04 B08
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from classify import describe_machine  # noqa: E402

from lulc.core.schema import BANDS  # noqa: E402
from lulc.demo.landscape import simulate  # noqa: E402

TILE = 1024
COARSE = ("B05", "B06", "B07", "B11", "B12")
CORNER = Affine(10, 0, 399960, 0, -10, 6800040)
SEED = 5

OURS = """
import json, resource, sys, time
from lulc.compositing.mosaic import make_mosaic
from lulc.config import MosaicConfig
begun = time.perf_counter()
make_mosaic(MosaicConfig(bounds=tuple(json.loads(sys.argv[2])), dates="2024-06-01/2024-08-31",
                         crs="EPSG:32635", scenes=(sys.argv[1],), out=sys.argv[3],
                         band_names=tuple(json.loads(sys.argv[5])), connections=int(sys.argv[4])))
"""

THEIRS = """
import json, resource, sys, time
from pathlib import Path
import dask, odc.stac, pystac
begun = time.perf_counter()
items = [pystac.Item.from_file(str(p)) for p in sorted(Path(sys.argv[1]).glob("*.json"))]
bands = json.loads(sys.argv[5])
with dask.config.set(scheduler="threads", num_workers=int(sys.argv[4])):
    loaded = odc.stac.load(items, bands=[*bands, "scl"], crs="EPSG:32635", resolution=10,
                           bbox=json.loads(sys.argv[2]), chunks={"x": 1024, "y": 1024})
    clear = ~loaded["scl"].isin([0, 1, 3, 8, 9, 10])
    kept = loaded[bands].where(clear & (loaded[bands] > 0)).chunk(time=-1)
    made = kept.median("time").fillna(0).round().astype("int16")
    made.to_zarr(sys.argv[3] + ".zarr")
"""

MEASURED = """
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.perf_counter() - begun, "processor_seconds": used.ru_utime + used.ru_stime,
                  "peak": used.ru_maxrss * 1024}))
"""


def write_scenes(folder: Path, side: int, dates: int, bands: list[str]) -> list[float]:
    """Write the files and items of one tile for each date; return the bounds in degrees."""
    from rasterio.warp import transform_bounds

    scene = simulate((TILE, TILE), SEED, clouds=0.0)
    repeat = -(-side // TILE)
    bounds = transform_bounds(
        "EPSG:32635", "EPSG:4326", CORNER.c, CORNER.f - 10 * side, CORNER.c + 10 * side, CORNER.f
    )
    for number in range(dates):
        name = f"S2A_35VLG_2024{6 + number // 4:02d}{3 + 5 * (number % 4):02d}_0_L2A"
        rng = np.random.default_rng(SEED + number)
        blocks = -(-side // 128)
        cloudy = np.kron(rng.random((blocks, blocks)) < 0.2, np.ones((64, 64), bool))
        cloudy = cloudy[: side // 2, : side // 2]
        assets = {"scl": {"href": f"{name}/SCL.tif"}}
        _write(folder / name / "SCL.tif", np.where(cloudy, 9, 4).astype("uint8"), 2)
        for band in bands:
            step = 2 if band in COARSE else 1
            image = np.tile(scene.summer[::step, ::step, BANDS.index(band)], (repeat, repeat))
            noise = rng.integers(-40, 40, image.shape, dtype="int16")
            values = np.maximum(image.astype("int16") + noise, 1).astype("uint16")
            _write(folder / name / f"{band}.tif", values[: side // step, : side // step], step)
            said = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": 0.0}
            assets[band] = {
                "href": f"{name}/{band}.tif",
                "raster:bands": [said],
                "eo:bands": [{"name": band}],
            }
        west, south, east, north = bounds
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        item = {
            "type": "Feature", "stac_version": "1.0.0", "id": name, "links": [], "assets": assets,
            "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json",
                                "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
                                "https://stac-extensions.github.io/raster/v1.1.0/schema.json"],
            "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": list(bounds),
            "properties": {"datetime": f"{name[10:14]}-{name[14:16]}-{name[16:18]}T09:50:31Z",
                           "proj:epsg": 32635, "description": "simulated, not measured"},
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(item))
    inward = 0.0005
    return [bounds[0] + inward, bounds[1] + inward, bounds[2] - inward, bounds[3] - inward]


def _write(path: Path, array: np.ndarray, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=array.shape[0], width=array.shape[1], count=1, dtype=array.dtype,
        crs="EPSG:32635", transform=CORNER @ Affine.scale(step), nodata=0, tiled=True, blockxsize=512,
        blockysize=512, compress="zstd", zstd_level=1, predictor=2, num_threads="all_cpus",
    ) as data:  # fmt: skip
        data.write(array, 1)


def measure(
    program: str, folder: Path, bounds: list[float], out: Path, cores: int, bands: list[str]
) -> dict[str, float]:
    """Run one of the two in a process of its own."""
    arguments = [str(folder), json.dumps(bounds), str(out), str(cores), json.dumps(bands)]
    done = subprocess.run(
        [sys.executable, "-c", program + MEASURED, *arguments], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure both in turns, and print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10980, help="side of the tile in pixels")
    parser.add_argument("--dates", type=int, default=6)
    parser.add_argument("--bands", nargs="+", default=list(BANDS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "mosaic.json"))
    given = parser.parse_args()
    side = given.side // 4 * 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenes").mkdir()
        bounds = write_scenes(folder / "scenes", side, given.dates, given.bands)
        rows: dict[str, list[dict[str, float]]] = {"make_mosaic.py": [], "odc-stac": []}
        for repeat in range(given.repeats):
            for label, program in (("make_mosaic.py", OURS), ("odc-stac", THEIRS)):
                out = folder / f"{label}_{repeat}.tif"
                print(f"{label}: run {repeat + 1} begins", file=sys.stderr, flush=True)
                rows[label].append(measure(program, folder / "scenes", bounds, out, given.cores, given.bands))
                print(rows[label][-1], file=sys.stderr, flush=True)
    best = {label: min(found, key=lambda row: row["seconds"]) for label, found in rows.items()}
    for label, row in best.items():
        row["mpx_per_second"] = side * side / 1e6 / row["seconds"]
        print(
            f"{label:15} {row['seconds']:7.1f} s {row['mpx_per_second']:6.2f} Mpx/s "
            f"{row['processor_seconds']:7.1f} processor s {row['peak'] / 1e9:5.2f} GB"
        )
    options = {"side": side, "dates": given.dates, "bands": given.bands, "repeats": given.repeats,
               "cores": given.cores, "load_average_at_end": os.getloadavg()}  # fmt: skip
    result = {"machine": describe_machine(), "options": options, "best": best, "all": rows,
              "data": "simulated"}  # fmt: skip
    Path(given.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
