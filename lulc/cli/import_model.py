"""Import a network of another toolkit, so that it makes maps like one that train_model.py trained.

The file is ONNX, or a Keras 3 model of known layers (.keras): an image of any size or of a fixed one, to a
score of each class at each pixel. It is checked in a process of its own before anything runs it. OUT then
holds the network and its model card, and stands for MODEL in make_classifications.py. Stride and halo follow
from the graph; windows of a network that no halo makes exact are blended.

Examples, with networks of your own:
  python import_model.py unet.onnx --channels B04 B03 B02 B08 --legend classes.csv --out models/unet
  python import_model.py unet.keras --channels sentinel2-10 --legend worldcover --out unet --calibrate stacks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lulc.cli.commandline import Answer, run
from lulc.config import ImportModelConfig
from lulc.core.schema import REFLECTANCE_UNIT
from lulc.core.text import visible


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(ImportModelConfig, __doc__ or "", _act, argv)


def _act(config: ImportModelConfig) -> Answer:
    from lulc.importing.import_model import import_model

    made = import_model(config)
    card = made.card
    network: Any = card.network
    how = f"stride {card.stride}, halo {card.halo} pixels: exact in windows"
    if network.reason:
        how = f"windows are blended, since no halo is enough ({network.reason})"
    lines = [f"{made.path}: {len(card.channels)} channels, {network.classes} outputs; {how}"]
    if not config.mean and not config.std:
        units = list(dict.fromkeys(channel.unit for channel in card.channels))
        scaled = "; one that takes 0..1 needs --std 10000" if units == [REFLECTANCE_UNIT] else ""
        lines.append(f"its input is taken as it is, in {', '.join(units)}{scaled}")
    if made.accuracy is not None:
        lines.append(f"accuracy {made.accuracy:.3f}, temperature {card.temperature}")
    data = {"written": str(made.path), "stride": card.stride, "halo": card.halo, "exact": network.exact,
            "reason": network.reason, "temperature": card.temperature, "accuracy": made.accuracy}  # fmt: skip
    return Answer("\n".join(map(visible, lines)), data)


if __name__ == "__main__":
    raise SystemExit(main())
