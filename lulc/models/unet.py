"""U-Net whose first layer standardises its input.

The default has the layers and names of the original network: four encoder stages of two 3x3 convolutions, no
bottleneck, four decoder stages that upsample by 4x4 transposed convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lulc.core.schema import InputError
from lulc.models.backend import keras
from lulc.models.config import Geometry, NetworkConfig, geometry

__all__ = ["Geometry", "NetworkConfig", "Standardization", "build_unet", "geometry"]

Array = np.ndarray


@keras.saving.register_keras_serializable(package="lulc")
class Standardization(keras.layers.Layer):
    """``(x - mean) / std`` per channel; NaN becomes exactly 0.

    Mean and standard deviation are weights that are not trained. The layer computes in float32 whatever the
    precision of the others: in bfloat16, reflectance x 10000 would have two digits.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs, "trainable": False})

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (input_shape[-1],)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.std = self.add_weight(name="std", shape=shape, initializer="ones", trainable=False)

    def call(self, x: Any) -> Any:
        """Standardise x (n, y, x, band)."""
        # NaN is replaced by the mean before the arithmetic, so that no gradient is NaN.
        mean = keras.ops.convert_to_tensor(self.mean)
        known = keras.ops.where(keras.ops.isnan(x), mean, x)
        return (known - mean) / self.std

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape


def build_unet(
    config: NetworkConfig | None = None, statistics: tuple[Array, Array] | None = None
) -> keras.Model:
    """Build the network with random weights (He-normal).

    Raises InputError if means are not finite or standard deviations not positive, or their number is not that
    of channels.

    Parameters
    ----------
    statistics
        Mean and standard deviation of each channel, float (band,), in the units of the input; 0 and 1 by
        default.

    Returns
    -------
    keras.Model
        float32 (n, y, x, band) in physical units, NaN = no data, to float32 (n, y, x, class) probabilities.
        y and x are multiples of the network's stride.
    """
    config = config or NetworkConfig()
    inputs = keras.Input((None, None, config.channels), name="input")
    standardization = Standardization(name="standardization")
    x = standardization(inputs)
    if statistics is not None:
        _check_statistics(statistics, config.channels)
        standardization.set_weights([np.asarray(s, "float32") for s in statistics])
    *skips, x = _encode(x, config)
    for i in range(1, config.bottleneck + 1):
        x = _convolve(x, config, config.bottleneck_filters, "bottleneck", i)
    for s, filters in enumerate(config.decoder_filters):
        x = _decode(x, skips.pop(), config, filters, f"decoder_stage{s}")
    if config.dropout:
        x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    x = keras.layers.Conv2D(
        config.classes, config.head_side, padding="same", kernel_initializer="he_normal", name="final_conv"
    )(x)
    x = keras.layers.Activation(config.activation, dtype="float32", name=config.activation)(x)
    return keras.Model(inputs, x, name="unet")


def _check_statistics(statistics: tuple[Array, Array], channels: int) -> None:
    mean, std = (np.asarray(s, "float64") for s in statistics)
    if mean.shape != (channels,) or std.shape != (channels,):
        raise InputError(
            f"cannot build the network, since the statistics have the shapes {mean.shape} and {std.shape}, "
            f"expected one mean and one standard deviation for each of its {channels} channels",
            "Give the statistics of the network's own training data.",
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise InputError(
            f"cannot build the network, since the statistics hold mean {mean.tolist()} and std "
            f"{std.tolist()}, expected finite means and positive standard deviations",
            "A channel that is constant over all training stacks carries no information: leave it out.",
        )


def _encode(x: Any, config: NetworkConfig) -> list[Any]:
    """Return the feature maps of the encoder stages at strides 1, 2, ..., and the input of the decoder."""
    skips = []
    for s, filters in enumerate(config.filters):
        for i in (1, 2):
            x = _convolve(x, config, filters, f"encoder_stage{s}", i)
        skips.append(x)
        x = keras.layers.MaxPooling2D(2, name=f"encoder_stage{s}_pool")(x)
    return [*skips, x]


def _convolve(x: Any, config: NetworkConfig, filters: int, stage: str, i: int, side: int = 3) -> Any:
    """Append a convolution, normalisation and ReLU."""
    options = _options(config) | {"name": f"{stage}_conv{i}"}
    return _activate(keras.layers.Conv2D(filters, side, **options)(x), config, stage, i)


def _options(config: NetworkConfig) -> dict[str, Any]:
    return {"padding": "same", "use_bias": config.norm == "none", "kernel_initializer": "he_normal"}


def _activate(x: Any, config: NetworkConfig, stage: str, i: int) -> Any:
    if config.norm == "batch":
        x = keras.layers.BatchNormalization(name=f"{stage}_bn{i}")(x)
    return keras.layers.Activation("relu", name=f"{stage}_relu{i}")(x)


def _decode(x: Any, skip: Any, config: NetworkConfig, filters: int, stage: str) -> Any:
    """Append a decoder stage: double the resolution and join the skip connection."""
    if config.block == "transpose":
        options = _options(config) | {"name": f"{stage}_up"}
        x = keras.layers.Conv2DTranspose(filters, 4, strides=2, **options)(x)
        x = _activate(x, config, stage, 1)
    else:
        if config.block == "sum":
            x = _convolve(x, config, skip.shape[-1], stage, 1, side=1)
        x = keras.layers.UpSampling2D(2, name=f"{stage}_up")(x)
    if config.block == "sum":
        return _convolve(keras.layers.Add(name=f"{stage}_sum")([x, skip]), config, filters, stage, 2)
    x = keras.layers.Concatenate(name=f"{stage}_concat")([x, skip])
    if config.block == "upsample":
        x = _convolve(x, config, filters, stage, 1)
    return _convolve(x, config, filters, stage, 2)
