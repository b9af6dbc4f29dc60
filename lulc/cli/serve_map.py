"""Show a map of any size in the browser of this machine.

Serves tiles of the map from its overviews, and the viewer of the reports: layers to switch and fade, and a
click that shows class and activations of a pixel. With --reference it also shows the reference and where the
map differs. It answers only this machine (127.0.0.1) and loads nothing from a network. The result is an
address to open; Ctrl-C ends it. Maps of make_classifications.py have the overviews that make this fast.

Needs the packages of the extra 'serve': pip install '.[serve]' in the folder of this project.

Example, on the demo scene:
  python serve_map.py demo/map.tif --image demo/summer.tif --reference demo/labels.tif
"""

from __future__ import annotations

import contextlib
import warnings
from functools import partial

from lulc.cli.commandline import run
from lulc.config import ServeConfig
from lulc.core.text import visible


def _act(config: ServeConfig) -> None:
    from lulc.evaluation.server import MapServer

    # The server warns once; rio-tiler would warn at every tile.
    warnings.filterwarnings("ignore", "The dataset has no Overviews")
    with MapServer(config) as server:
        print(visible(f"{server.url} shows {config.map}; Ctrl-C ends."), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run()


main = partial(run, ServeConfig, __doc__ or "", _act)

if __name__ == "__main__":
    raise SystemExit(main())
