"""Write a map in the formats of other programs.

QGIS style, SLD and raster attribute table with the legend's colours; a STAC item for catalogues; the pixels
as CF-NetCDF or Zarr; the map of the groups of a CORINE level (--level), as GeoTIFF. Beside MAP and under its
name, QGIS takes the style and GDAL the table by themselves. The result is the files named, each whole or
absent; equal maps give equal files.

Examples, on the demo scene:
  python export_map.py demo/map.tif
  python export_map.py demo/map.tif --out demo/map.nc demo/map.zarr
  python export_map.py demo/map.tif --level 1
  python export_map.py demo/map.tif --out demo/map.json --date 2018-06-01 2018-08-31 --model demo/run
"""

from __future__ import annotations

from collections.abc import Sequence

from lulc.cli.commandline import Answer, run
from lulc.config import ExportConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(ExportConfig, __doc__ or "", _act, argv)


def _act(config: ExportConfig) -> Answer:
    from lulc.export.export import export_map

    paths = [str(path) for path in export_map(config)]
    return Answer("\n".join(paths), {"written": paths})


if __name__ == "__main__":
    raise SystemExit(main())
