"""Write a map in the formats of other programs.

Writes QGIS and SLD styles and a raster attribute table with the legend's colours, a STAC item for catalogues,
the pixels as CF-NetCDF or Zarr, and a GeoTIFF of the groups of a CORINE level (--level). QGIS and GDAL find
style and table by themselves if these lie beside MAP under its name. Equal maps give equal files.

Examples, on the demo scene:
  python export_map.py demo/map.tif
  python export_map.py demo/map.tif --out demo/map.nc demo/map.zarr
  python export_map.py demo/map.tif --level 1
  python export_map.py demo/map.tif --out demo/map.json --date 2018-06-01 2018-08-31 --model demo/run
"""

from __future__ import annotations

from functools import partial

from lulc.cli.commandline import Answer, run
from lulc.config import ExportConfig


def _act(config: ExportConfig) -> Answer:
    from lulc.export.export import export_map

    paths = [str(path) for path in export_map(config)]
    return Answer("\n".join(paths), {"written": paths})


main = partial(run, ExportConfig, __doc__ or "", _act)

if __name__ == "__main__":
    raise SystemExit(main())
