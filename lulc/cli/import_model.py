"""Import a network of another toolkit as a model for make_classifications.py.

The file is ONNX, or a Keras 3 model of known layers (.keras), which maps an image of any or a fixed size to a
score for each class and pixel. It is checked in a separate process before anything runs it. The result is the
folder OUT with the network and its model card; type it as MODEL. Stride and halo follow from the graph. If no
halo makes windows exact, they are blended.

Examples, with networks of your own:
  python import_model.py unet.onnx --channels B04 B03 B02 B08 --legend classes.csv --out models/unet
  python import_model.py unet.keras --channels sentinel2-10 --legend worldcover --out unet --calibrate stacks
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lulc.cli.commandline import Answer, run
from lulc.config import ImportModelConfig
from lulc.core.schema import REFLECTANCE_UNIT
from lulc.core.text import visible


def _act(config: ImportModelConfig) -> Answer:
    from lulc.importing.import_model import import_model

    imported = import_model(config)
    card = imported.card
    network: Any = card.network
    windows = f"stride {card.stride}, halo {card.halo} pixels: exact in windows"
    if network.reason:
        windows = f"windows are blended, since no halo is enough ({network.reason})"
    lines = [f"{imported.path}: {len(card.channels)} channels, {network.classes} outputs; {windows}"]
    if not config.mean and not config.std:
        units = list(dict.fromkeys(channel.unit for channel in card.channels))
        hint = "; for a network of 0..1 add --std 10000" if units == [REFLECTANCE_UNIT] else ""
        lines.append(f"input is not scaled, in {', '.join(units)}{hint}")
    if imported.accuracy is not None:
        lines.append(f"accuracy {imported.accuracy:.3f}, temperature {card.temperature}")
    data = {
        "written": str(imported.path), "stride": card.stride, "halo": card.halo, "exact": network.exact,
        "reason": network.reason, "temperature": card.temperature, "accuracy": imported.accuracy,
    }  # fmt: skip
    return Answer("\n".join(map(visible, lines)), data)


main = partial(run, ImportModelConfig, __doc__ or "", _act)

if __name__ == "__main__":
    raise SystemExit(main())
