"""Channel sets by name, or from a file of the user."""

from __future__ import annotations

from pathlib import Path

from lulc.core.channels import CHANNEL_SETS, FORMAT_VERSION
from lulc.core.config_file import read_texts
from lulc.core.schema import INDICES, InputError
from lulc.rasters.names import SENTINEL_BANDS, canonical_name

_KEYS = ("channels", "format_version")
_START = "Start from a built-in set: preprocess.py --print-channels sentinel2-10 > channels.yaml"


def load_channels(given: str) -> tuple[str, ...]:
    """Return the channels of a set, in order.

    Parameters
    ----------
    given
        Name of a built-in set, else a YAML file with ``format_version`` and ``channels``, a list of
        Sentinel-2 bands and SYKE indices. Bands may have their common names (``nir``).

    Raises
    ------
    InputError
        If there is no such set or file, or its content is not as described.
    """
    if given in CHANNEL_SETS:
        return CHANNEL_SETS[given]
    if not Path(given).is_file():
        raise InputError(
            f"cannot use --channels {given}, since that is neither a built-in set nor a file, expected "
            f"{', '.join(CHANNEL_SETS)} or a file",
            _START,
        )
    texts = read_texts(Path(given), "the channel set", "Write the channels as a list, channels: [B04, B08].")
    version, listed = texts.get("format_version"), texts.get("channels")
    if isinstance(version, str) and version.isdecimal() and int(version) > FORMAT_VERSION:
        raise InputError(
            f"cannot use the channel set '{given}', since its format version is {version}, expected "
            f"{FORMAT_VERSION}",
            "It was written for a newer version of this toolkit: upgrade lulc.",
        )
    if sorted(texts) != sorted(_KEYS) or version != str(FORMAT_VERSION) or not isinstance(listed, list):
        raise InputError(
            f"cannot use the channel set '{given}', since it has {', '.join(texts) or 'nothing'}, expected "
            f"format_version: {FORMAT_VERSION} and a list of channels",
            _START,
        )
    return _checked(listed, given)


def _checked(listed: list[str], path: str) -> tuple[str, ...]:
    """Names in their usual spelling; refuses those that are unknown or stand twice."""
    names = {text: canonical_name(text) for text in listed}
    unknown = [text for text, name in names.items() if name is None]
    found = tuple(name for text in listed if (name := names[text]))
    twice = sorted({name for name in found if found.count(name) > 1})
    known = f"names among {', '.join((*SENTINEL_BANDS, *INDICES))}, each once"
    if unknown or twice or not found:
        problem = (
            f"{', '.join(unknown)} is no channel that can be read" if unknown
            else f"{', '.join(twice)} stands twice" if twice
            else "its list is empty"
        )  # fmt: skip
        raise InputError(
            f"cannot use the channel set '{path}', since {problem}, expected {known}",
            "Correct the list of channels.",
        )
    return found
