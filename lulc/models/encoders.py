"""Encoders of `keras.applications` under the U-Net's decoder, and their weights for more than three channels.

What Keras nests or leaves to chance is laid flat and named here, so that a network with such an encoder is a
plain list of layers whose variables are those of `lulc.models.backbones`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.schema import InputError
from lulc.models.archive import Arrays, compare_shapes, read_layers, variables_of
from lulc.models.backbones import BACKBONES, Backbone
from lulc.models.backend import keras

logger = logging.getLogger("lulc")

IMAGENET = "imagenet"
"""Weights that Keras downloads."""

COLOURS = {"R": "B04", "G": "B03", "B": "B02"}
"""Band of each colour."""


def encode(name: str, x: Any, levels: int) -> list[Any]:
    """The results of an encoder with fresh weights.

    Parameters
    ----------
    name
        One of `lulc.models.backbones.BACKBONES`.
    x
        Symbolic tensor (n, y, x, channel).
    levels
        How often it halves the resolution.

    Returns
    -------
    list of tensors, or None
        At strides 1 (`x` itself), 2, 4, ...; None where the encoder has no result.
    """
    backbone = BACKBONES[name]
    application = _application(backbone, x.shape[-1])
    described = backbone.describe(x.shape[-1])[:levels]
    wanted = [_result(application, level.entry) if level.width else None for level in described]
    trunk = keras.Model(application.inputs[0], wanted[-1])
    made: dict[str, Any] = {}

    def call(layer: Any, *arguments: Any, **keywords: Any) -> Any:
        made[layer.name] = _call(layer, arguments, keywords)
        return made[layer.name]

    keras.models.clone_model(trunk, input_tensors=x, call_function=call)
    return [x, *(None if t is None else made[t._keras_history.operation.name] for t in wanted)]


def _application(backbone: Backbone, channels: int, weights: str | None = None) -> Any:
    """The encoder as Keras builds it, without its head and its preprocessing."""
    build = getattr(keras.applications, backbone.application)
    own = {} if backbone.application.startswith("ResNet") else {"include_preprocessing": False}
    inputs = keras.Input((None, None, channels))
    return build(include_top=False, weights=weights, input_tensor=inputs, **own)


def _result(application: Any, entry: str) -> Any:
    """The tensor that the layer `entry` takes; without one, what ends the encoder."""
    if entry:
        return application.get_layer(entry).input
    last = application.layers[-1]
    # ConvNeXt normalises what its head would average.
    return last.input if isinstance(last, keras.layers.LayerNormalization) else last.output


def _call(layer: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    if isinstance(layer, keras.Sequential):
        (x,) = arguments
        for inner in layer.layers:
            x = type(inner).from_config(inner.get_config())(x)
        return x
    if not isinstance(layer, keras.layers.Layer):
        # A sum written with + has a number for its name, which depends on what was built before.
        name = arguments[-1]._keras_history.operation.name
        return keras.layers.Add(name=f"{name}_add")(list(arguments))
    return layer(*arguments, **keywords)


def load_encoder(
    model: keras.Model, name: str, channels: Sequence[str], source: str, first: str = "repeat"
) -> None:
    """Give the encoder of a network weights that were trained on colour pictures.

    Parameters
    ----------
    model
        Network over the encoder `name`; may have fewer levels than the weights.
    name
        One of `lulc.models.backbones.BACKBONES`.
    channels
        Names of its input channels.
    source
        ``imagenet``, which Keras downloads, or an HDF5 file that Keras wrote: weights only, or a whole model.
    first
        How the first convolution goes from three colours to the channels, see `adapt`.

    Raises
    ------
    InputError
        If the weights can't be downloaded, the file is refused or is of another network, or the channels have
        no band for a colour.
    """
    backbone = BACKBONES[name]
    arrays = _download(backbone) if source == IMAGENET else _read(backbone, source)
    kernel = f"{backbone.first}/kernel"
    variables = variables_of(model)
    fresh = np.array(keras.ops.convert_to_numpy(variables[kernel]))
    arrays[kernel] = adapt(arrays[kernel], fresh, channels, backbone, first)
    taken = backbone.variable_shapes(len(channels)).keys() & variables.keys()
    for variable in taken:
        variables[variable].assign(arrays[variable])
    logger.info("%s starts with the weights '%s': %d arrays", name, source, len(taken))


def _download(backbone: Backbone) -> Arrays:
    try:
        application = _application(backbone, 3, IMAGENET)
    # Keras wraps whatever hinders a download in a plain Exception.
    except Exception as error:
        raise InputError(
            f"cannot load the ImageNet weights of {backbone.application}, since Keras can't download them "
            f"({error})",
            "Download its file '..._notop.h5' on a machine with a connection (the message has the address), "
            "and give it with --encoder-weights FILE.h5; or leave the option out.",
        ) from error
    layers = [inner for layer in application.layers for inner in getattr(layer, "layers", [layer])]
    return {
        name: np.array(keras.ops.convert_to_numpy(v), "float32") for name, v in variables_of(layers).items()
    }


def _read(backbone: Backbone, path: str) -> Arrays:
    arrays = read_layers(path, backbone.groups())
    shapes = {name: array.shape for name, array in arrays.items()}
    compare_shapes(shapes, backbone.variable_shapes(len(COLOURS)), Path(path))
    return arrays


def adapt(
    kernel: np.ndarray, fresh: np.ndarray, channels: Sequence[str], backbone: Backbone, how: str
) -> np.ndarray:
    """The first convolution for standardised channels instead of a picture's colours.

    Parameters
    ----------
    kernel : float32 (y, x, 3, filter)
        For colours in the order and units of the weights.
    fresh : float32 (y, x, channel, filter)
        A random kernel.
    channels
        Names of the channels; B04, B03 and B02 are red, green and blue.
    backbone
        Says which order and units these are.
    how
        What the other channels get: ``repeat``, red, green and blue in turn, each divided by the number of
        channels that have it; ``zero``; ``mean``, the mean of the three, all scaled so that a grey image
        gives what it gave; ``random``, the fresh kernel.

    Returns
    -------
    float32 (y, x, channel, filter)

    Raises
    ------
    InputError
        If the channels have no band for a colour.
    """
    missing = [band for band in COLOURS.values() if band not in channels]
    if missing:
        raise InputError(
            f"cannot use weights of colour pictures, since the channels are {', '.join(channels)}, expected "
            f"{', '.join(COLOURS.values())} among them",
            "Leave --encoder-weights out, or prepare stacks with these bands.",
        )
    # Standardised channels have a deviation of 1, where a picture has that of ImageNet.
    colours = {
        colour: kernel[:, :, i] * backbone.deviation["RGB".index(colour)]
        for i, colour in enumerate(backbone.order)
    }
    named = {channels.index(band): colour for colour, band in COLOURS.items()}
    others = [i for i in range(len(channels)) if i not in named]
    if how == "repeat":
        named |= {channel: "RGB"[i % 3] for i, channel in enumerate(others)}
    adapted = np.array(fresh if how == "random" else np.zeros_like(fresh))
    for channel, colour in named.items():
        adapted[:, :, channel] = colours[colour] / (
            list(named.values()).count(colour) if how == "repeat" else 1
        )
    if how == "mean":
        adapted[:, :, others] = np.mean(list(colours.values()), axis=0)[:, :, np.newaxis]
        adapted *= len(COLOURS) / len(channels)
    return adapted
