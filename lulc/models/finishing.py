"""Bands of a map, computed on the device of the network, so that fewer bytes leave a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lulc.models.calibration import Temperature


@dataclass(frozen=True)
class Finish:
    """Calibration, decision and encoding of probabilities in operations of the framework.

    The result equals that of `lulc.models.calibration`, `lulc.models.uncertainty` and
    `lulc.maps.blocks.Encoding`, apart from the last digits of temperatures and entropy.

    Parameters
    ----------
    temperature
        As in `lulc.models.calibration.calibrate`.
    min_confidence
        Pixels of a lower confidence get class 0.
    measures
        Bands after the activations: ``entropy`` and ``margin``.
    dtype, nodata
        Storage type and value of invalid pixels.
    steps
        Stored numbers per unit of an activation.
    has_activations
        True if there are bands beside the class.
    """

    temperature: Temperature
    min_confidence: float
    measures: tuple[str, ...]
    dtype: str
    nodata: float
    steps: float
    has_activations: bool

    def __call__(self, ops: Any, p: Any, x: Any) -> Any:
        """Return the bands of the map as stored, tensor (n, band, y, x).

        Pixels with a probability that is not finite become nodata, as invalid pixels do.

        Parameters
        ----------
        ops
            The operations, ``keras.ops``.
        p
            Tensor float32 (n, class, y, x), probabilities.
        x
            Tensor float32 (n, y, x, channel), the input; NaN in every channel of invalid pixels.
        """
        p = self._calibrate(ops, p)
        # A single class comes first, the rest second.
        both = p if p.shape[1] > 1 else ops.concatenate([p, 1 - p], axis=1)
        highest = ops.max(both, axis=1, keepdims=True)
        number = ops.argmax(both, axis=1)[:, None]
        classes = ops.cast(number + 1 if p.shape[1] > 1 else 1 - number, "float32")
        bands = [ops.where(highest < self.min_confidence, 0.0, classes)]
        if self.has_activations:
            values = ops.concatenate([p, *(self._measure(ops, name, both) for name in self.measures)], axis=1)
            values = ops.round(values * self.steps)
            bands.append(values if self.dtype != "float32" else values / self.steps)
        finite = ops.isfinite(ops.sum(p, axis=1, keepdims=True))
        known = ops.logical_and(finite, ops.logical_not(ops.all(ops.isnan(x), axis=-1))[:, None])
        return ops.cast(ops.where(known, ops.concatenate(bands, axis=1), self.nodata), self.dtype)

    def _calibrate(self, ops: Any, p: Any) -> Any:
        several = isinstance(self.temperature, tuple)
        if set(self.temperature if several else (self.temperature,)) == {1}:  # type: ignore[arg-type]
            return p
        exponent = 1 / ops.reshape(ops.convert_to_tensor(self.temperature, "float32"), (1, -1, 1, 1))
        powers = ops.exp(ops.log(p) * exponent)
        rest = 0.0 if p.shape[1] > 1 else ops.exp(ops.log(1 - p) * exponent)
        return powers / (ops.sum(powers, axis=1, keepdims=True) + rest)

    @staticmethod
    def _measure(ops: Any, name: str, p: Any) -> Any:
        if name == "margin":
            first, second = (ops.top_k(ops.moveaxis(p, 1, -1), 2)[0][..., k] for k in (0, 1))
            return (first - second)[:, None]
        terms = p * ops.log(ops.maximum(p, 1.17549435e-38))
        scale = ops.log(ops.convert_to_tensor(float(p.shape[1]), "float32"))
        return ops.clip(-ops.sum(terms, axis=1, keepdims=True) / scale, 0, 1)
