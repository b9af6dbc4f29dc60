"""Networks of the original system: Keras 2 ``.h5`` files, whole models or weights only, of any width."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from lulc.core.schema import BANDS, INDEX_UNIT, REFLECTANCE_UNIT, InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.core.storage import sha256_of
from lulc.labels.schemes import load_scheme
from lulc.models.archive import Arrays, compare_shapes, read_archive
from lulc.models.card import Channel, ModelCard
from lulc.models.config import NetworkConfig

UNKNOWN = "unknown"


def read_legacy(path: str | os.PathLike[str]) -> tuple[NetworkConfig, Arrays]:
    """Read the weights and the shape of the network of a Keras 2 file, without a framework.

    Widths, depth and block follow from names and shapes, all of which are then compared with that network.

    Raises InputError if the file is refused (see `lulc.models.archive`), or its layers are not those of the
    original network of any width.
    """
    arrays = read_archive(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    depth = len([n for n in shapes if re.fullmatch(r"encoder_stage\d+_conv1/kernel", n)])
    try:
        classes = shapes["final_conv/kernel"][-1]
        config = NetworkConfig(
            classes=classes,
            channels=shapes["encoder_stage0_conv1/kernel"][2],
            filters=tuple(shapes[f"encoder_stage{s}_conv1/kernel"][-1] for s in range(depth)),
            decoder_filters=tuple(shapes[f"decoder_stage{s}_conv2/kernel"][-1] for s in range(depth)),
            block="transpose" if "decoder_stage0_up/kernel" in shapes else "upsample",
            norm="batch" if "encoder_stage0_bn1/gamma" in shapes else "none",
            activation="sigmoid" if classes == 1 else "softmax",
        )
    except (KeyError, IndexError, InputError) as error:
        names = ", ".join(sorted(shapes)[:5]) or "none at all"
        reason = getattr(error, "problem", f"they have no fitting variable {error}, but {names}")
        raise InputError(
            f"cannot read the weights '{path}' as those of the original network, since {reason}",
            "Give a .h5 file of the original system, or train with train_model.py.",
        ) from error
    expected = {n: s for n, s in config.variable_shapes().items() if not n.startswith("standardization/")}
    compare_shapes(shapes, expected, path)
    return config, arrays


def describe_legacy(
    path: str | os.PathLike[str], config: NetworkConfig, statistics: Statistics, stride: int, halo: int
) -> ModelCard:
    """Return a card for a Keras 2 file."""
    legend = _legend(config.classes)
    return ModelCard(
        name=Path(path).stem,
        channels=_channels(config.channels),
        legend=legend,
        statistics=statistics,
        network=config,
        stride=stride,
        halo=halo,
        single_class=legend.names[0] if config.classes == 1 else None,
        sha256=sha256_of(path),
        bytes=Path(path).stat().st_size,
        description="Weights of the original system (Keras 2). It kept no statistics with them, and how its "
        "last two index channels were coded is unknown.",
    )


def _channels(count: int) -> tuple[Channel, ...]:
    """Return the channels according to the statistics of the original data, which its README contradicts."""
    bands = tuple(Channel(name, REFLECTANCE_UNIT, "reflectance") for name in BANDS)
    indices = tuple(Channel(name, INDEX_UNIT, "syke") for name in ("NDVI", "NDTI", "NDMI"))
    unknown = tuple(Channel(name, "", UNKNOWN) for name in ("NDBI", "NDSI"))
    known = bands + indices + unknown
    if count in (len(bands), len(known)):
        return known[:count]
    return tuple(Channel(f"channel {i}", "", UNKNOWN) for i in range(1, count + 1))


def _legend(classes: int) -> Legend:
    if classes == 13:
        return load_scheme("kaakonkulma-13").legend
    greys = [f"#{v:02x}{v:02x}{v:02x}" for v in np.linspace(40, 220, classes).astype(int)]
    return Legend(UNKNOWN, tuple(LandCoverClass(i, f"class {i}", grey) for i, grey in enumerate(greys, 1)))
