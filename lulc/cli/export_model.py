"""Write a trained network for other programs: an ONNX file, or a STAC item for catalogues.

NAME.onnx holds the whole network, from channels in physical units (NaN = no data) to calibrated
probabilities, with the names of channels and classes as metadata. NAME.stac.json describes the weights with
the machine-learning model (MLM) extension. Neither needs a deep-learning framework.

Examples, on the demo scene:
  python export_model.py demo/run
  python export_model.py demo/run --pick all
  python export_model.py demo/run --format onnx
  python export_model.py demo/run --out demo/qgis.onnx --tile 512
"""

from __future__ import annotations

from functools import partial

from lulc.cli.commandline import Answer, run
from lulc.config import ExportModelConfig


def _act(config: ExportModelConfig) -> Answer:
    from lulc.export.export import export_model

    paths = [str(path) for path in export_model(config)]
    return Answer("\n".join(paths), {"written": paths})


main = partial(run, ExportModelConfig, __doc__ or "", _act)

if __name__ == "__main__":
    raise SystemExit(main())
