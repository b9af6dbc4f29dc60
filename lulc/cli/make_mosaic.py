"""Find the Sentinel-2 scenes of a region, leave out clouds, and compose them into one mosaic.

The result is a GeoTIFF or Zarr folder with named bands (int16, reflectance x 10000, -32768 where no scene
is clear; the last band counts the clear observations), for preprocess.py and make_classifications.py. Beside
it lie OUT.json, a STAC item, and OUT_scenes.json, which makes the same mosaic again. The same command
continues an interrupted run.

Example: python make_mosaic.py --aoi region.gpkg --dates 2024-06-01/2024-08-31 --catalog earth-search
--out summer.tif
"""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import MosaicConfig
from lulc.core.text import columns, duration

if TYPE_CHECKING:
    from lulc.compositing.forecast import Forecast
    from lulc.compositing.mosaic import Mosaic


def _make(config: MosaicConfig) -> Answer:
    if config.plan:
        from lulc.compositing.forecast import forecast

        plans = forecast(config)
        return Answer("\n\n".join(map(_planned, plans)), {"plans": [plan.to_json() for plan in plans]})
    from lulc.compositing.mosaic import make_mosaic

    mosaics = make_mosaic(config)
    rows = [["mosaic", "dates", "covered", "clear observations per pixel"]]
    for m in mosaics:
        rows.append([str(m.path), str(len(m.days)), f"{100 * m.covered:.1f} %", f"{m.mean_clear:.1f}"])
    following = (
        f"python preprocess.py --bands {shlex.quote(str(mosaics[0].path))} --labels LABELS --out stacks"
    )
    return Answer(f"{columns(rows)}\n\nNext:\n\n    {following}", {"mosaics": list(map(_to_json, mosaics))})


def _to_json(mosaic: Mosaic) -> dict[str, Any]:
    return {
        "path": str(mosaic.path),
        "scenes": str(mosaic.scenes),
        "dates": [day.isoformat() for day in mosaic.days],
        "covered": mosaic.covered,
        "clear_observations": {str(count): pixels for count, pixels in mosaic.clear.items()},
    }


def _planned(plan: Forecast) -> str:
    rows = [["date", "scene", "cloud cover", "clear here"]]
    for scene in plan.scenes:
        cloud = "" if scene.cloud is None else f"{scene.cloud:.0f} %"
        rows.append([scene.day.isoformat(), scene.id, cloud, f"{100 * scene.clear:.0f} %"])
    return (
        f"{plan.out}: {plan.grid.describe()}\n\n{columns(rows)}\n\n"
        f"pixels with a clear observation: {100 * plan.covered:.1f} %; {plan.mean_clear:.1f} per pixel\n"
        f"to read: about {plan.bytes / 1e6:,.0f} MB in about {duration(plan.seconds)}"
    )


main = partial(run, MosaicConfig, __doc__ or "", _make)

if __name__ == "__main__":
    raise SystemExit(main())
