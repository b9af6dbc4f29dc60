"""Describe weights for catalogues: a STAC item with the machine-learning model (MLM) extension.

The result is NAME.stac.json beside the weights NAME.keras: bands and units, classes, shape of input and
output, network, checksum; from the model card alone, so that no deep-learning framework is needed.

Examples, on the demo scene:
  python export_model.py demo/run
  python export_model.py demo/run --pick all
"""

from __future__ import annotations

from collections.abc import Sequence

from lulc.cli.commandline import Answer, run
from lulc.config import ExportModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(ExportModelConfig, __doc__ or "", _act, argv)


def _act(config: ExportModelConfig) -> Answer:
    from lulc.export.export import export_model

    paths = [str(path) for path in export_model(config)]
    return Answer("\n".join(paths), {"written": paths})


if __name__ == "__main__":
    raise SystemExit(main())
