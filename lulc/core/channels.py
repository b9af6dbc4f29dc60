"""Built-in channel sets: the channels of a stack, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lulc.core.schema import CHANNELS

FORMAT_VERSION = 1
"""Version of the files that `channels_text` writes."""

DEFAULT_CHANNELS = "kaakonkulma-14"
"""Name of the set of the original system."""

CHANNEL_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        DEFAULT_CHANNELS: CHANNELS,
        "sentinel2-10": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
        "sentinel2-12": (
            "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12",
        ),
    }
)  # fmt: skip
"""Channels by the name of their set: the bands of 10 and 20 m, and all bands of level 2A, for example."""


def channels_text(channels: Sequence[str]) -> str:
    """Return the YAML file of a channel set.

    Examples
    --------
    >>> print(channels_text(["B04", "NDVI"]), end="")
    format_version: 1
    channels: [B04, NDVI]
    """
    return f"format_version: {FORMAT_VERSION}\nchannels: [{', '.join(channels)}]\n"
