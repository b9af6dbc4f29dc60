"""A network as an ONNX graph, made from its arrays and its card.

The graph takes physical units and returns calibrated probabilities: it contains standardisation, the handling
of no data, temperature and softmax.

References
----------
Metadata of the QGIS plug-in Deepness: https://qgis-plugin-deepness.readthedocs.io, "Adding metadata to ONNX
model".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.packages import require
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.core.version import __version__
from lulc.engines.unet_graph import Arrays, GraphBuilder
from lulc.models.card import ModelCard
from lulc.models.onnx_nodes import OnnxNodes

MOST_BYTES = 2**31 - 1
"""Largest ONNX file without a second file for its weights, in bytes."""


def write_onnx(card: ModelCard, arrays: Arrays, out: Path, tile: int | None = None) -> None:
    """Write a network as an ONNX file, completely or not at all.

    The graph takes windows of any size, or with `tile` only those of that side in pixels.

    Raises
    ------
    InputError
        If the package ``onnx`` is missing, the tile does not fit the stride, or the weights are too large.
    """
    require(["onnx"], "write an ONNX file", "onnx")
    import onnx
    import onnx.checker

    if tile is not None and (tile < 1 or tile % card.stride):
        near = max(card.stride, round(tile / card.stride) * card.stride)
        raise InputError(
            f"cannot write '{out}' for tiles of {tile} pixels, expected a multiple of the network's stride "
            f"{card.stride}",
            f"Type --tile {near}.",
        )
    if 4 * card.network.parameters > MOST_BYTES - 2**24:
        raise InputError(
            f"cannot write '{out}', since the network has {card.network.parameters} weights and an ONNX file "
            "holds at most 2 GB",
            "Use the weights file itself.",
        )
    model = _Builder(onnx, card, arrays).model(tile)
    onnx.checker.check_model(model, full_check=True)
    with write_atomically(out) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def _metadata(card: ModelCard, tile: int | None) -> dict[str, str]:
    """Return the metadata: keys that Deepness reads, and the model card."""
    names = list(card.legend.names)
    if card.single_class is not None:
        # Deepness takes a single output for two classes: 0 below the threshold, 1 above.
        names = [f"not {card.single_class}", card.single_class]
    size = tile or max(256, 8 * card.halo)
    channels = len(card.channels)
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(i): name for i, name in enumerate(names)},
        "tile_size": size,
        "tiles_size": size,
        # Percent of the tile; within a halo of its edges a tile isn't exact.
        "tiles_overlap": min(80, -(-200 * card.halo // size)),
        "seg_thresh": 0.5 if card.single_class is not None else 0.0,
        "seg_small_segment": 0,
        # Deepness divides pixels by 255 first; this restores the physical units.
        "standardization_mean": [0.0] * channels,
        "standardization_std": [1 / 255] * channels,
        "channels": [c.to_json() for c in card.channels],
        "stride": card.stride,
        "halo": card.halo,
    }
    entries = [entry for entry in card.training.get("data", []) if isinstance(entry, dict)]
    if widths := [entry["pixel_size"] for entry in entries if "pixel_size" in entry]:
        values["resolution"] = 100 * float(np.median(widths))  # centimetres for each pixel
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    return texts | {"model_card": json.dumps(card.to_json(), ensure_ascii=False)}


class _Builder(GraphBuilder, OnnxNodes):
    """Builder of a graph whose layers are ONNX nodes."""

    def __init__(self, onnx: Any, card: ModelCard, arrays: Arrays) -> None:
        GraphBuilder.__init__(self, card.unet, arrays)
        OnnxNodes.__init__(self, onnx)
        self._card = card

    def model(self, tile: int | None) -> Any:
        """Return the model: float32 (n, band, y, x), NaN = no data, to float32 (n, class, y, x)."""
        x = self._pad("input") if tile is None else "input"
        result = self._probabilities(self._unet(self._standardise(x)))
        result = self._crop(result) if tile is None else result
        self._add("Identity", result, to="probabilities")
        batch, *sides = ["n", "height", "width"] if tile is None else [1, tile, tile]
        network, card = self._network, self._card
        model = self._model(
            "unet",
            {"input": [batch, network.channels, *sides]},
            {"probabilities": [batch, network.classes, *sides]},
        )
        model.producer_name, model.producer_version = "lulc", __version__
        model.doc_string = "\n".join(filter(None, (card.description, card.licence, card.attribution)))
        self._onnx.helper.set_model_props(model, _metadata(card, tile))
        return model

    def _standardise(self, x: str) -> str:
        mean, std = (self._arrays[f"standardization/{v}"].reshape(-1, 1, 1) for v in ("mean", "std"))
        known = self._add("Where", self._add("IsNaN", x), mean, x)
        return self._add("Div", self._add("Sub", known, mean), std)

    def _probabilities(self, logits: str) -> str:
        """Append temperature and activation, as `lulc.models.calibration.calibrate` applies them."""
        exponent = 1 / np.asarray(self._card.temperature, np.float32).reshape(-1, 1, 1)
        if self._network.activation == "sigmoid":
            return self._add("Sigmoid", self._add("Mul", logits, exponent))
        if exponent.size > 1:
            # Class temperatures scale logarithms of probabilities; logits are only known up to a constant.
            logits = self._add("LogSoftmax", logits, axis=1)
        return self._add("Softmax", self._add("Mul", logits, exponent), axis=1)

    def _pad(self, x: str) -> str:
        """Pad below and on the right with invalid pixels, up to a multiple of the stride."""
        self._size = self._add("Shape", x, start=2)
        stride = np.array([self._card.stride])
        missing = self._add("Mod", self._add("Neg", self._size), stride)
        pads = self._add("Concat", np.zeros(6, np.int64), missing, axis=0)
        return self._add("Pad", x, pads, np.float32(np.nan), mode="constant")

    def _crop(self, x: str) -> str:
        return self._add("Slice", x, np.zeros(2, np.int64), self._size, np.array([2, 3]))

    def _convolve(self, x: str, name: str, *, activate: bool = True) -> str:
        convolution = self._convolutions[name]
        kernel, bias, pads = convolution.kernel, convolution.bias, convolution.padding * 2
        if convolution.transposed:
            x = self._add("ConvTranspose", x, kernel, bias, strides=[2, 2], pads=pads)
        else:
            x = self._add("Conv", x, kernel, bias, pads=pads)
        return self._add("Relu", x) if activate else x

    def _halve(self, x: str) -> str:
        return self._add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def _repeat(self, x: str) -> str:
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._add("Resize", x, "", np.array([1, 1, 2, 2], np.float32), **modes)

    def _join(self, x: str, skip: str) -> str:
        if self._network.block == "sum":
            return self._add("Add", x, skip)
        return self._add("Concat", x, skip, axis=1)
