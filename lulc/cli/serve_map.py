"""Show a map of any size in the browser of this machine.

Serves tiles of the map from its overviews, and the page of the reports: layers that are switched and faded, a
click that shows class and activations of a pixel; with --reference its class too, and where the map differs.
Only this machine is answered (127.0.0.1), and nothing is loaded from a network. The result is an address to
open; Ctrl-C ends it. Maps written by make_classifications.py have the overviews that make this fast.

Needs the packages of the extra 'serve': pip install '.[serve]' in the folder of this project.

Example, on the demo scene:
  python serve_map.py demo/map.tif --image demo/summer.tif --reference demo/labels.tif
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence

from lulc.cli.commandline import run
from lulc.config import ServeConfig
from lulc.core.text import visible


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module's docstring."""
    return run(ServeConfig, __doc__ or "", _act, argv)


def _act(config: ServeConfig) -> None:
    from lulc.evaluation.server import MapServer

    # It is said once, by the server, not at every tile.
    warnings.filterwarnings("ignore", "The dataset has no Overviews")
    with MapServer(config) as server:
        print(visible(f"{server.url} shows {config.map}; Ctrl-C ends."), flush=True)
        # Ctrl-C is how this ends, not how it fails.
        with contextlib.suppress(KeyboardInterrupt):
            server.run()


if __name__ == "__main__":
    raise SystemExit(main())
