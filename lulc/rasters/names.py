"""Bands and indices in the texts of their producers.

Texts are tried in order (description, long name, common name, file name); the first that names a band or
index decides. Numbers that only count layers (``b1..b12``, ``Band 11: B10``) name nothing.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lulc.core.schema import INDICES, SENTINEL_BANDS

COMMON_NAMES: Mapping[str, str] = {
    "coastal": "B01", "coastalaerosol": "B01", "blue": "B02", "green": "B03", "red": "B04",
    "rededge1": "B05", "rededge071": "B05", "re1": "B05", "vegetationrededge1": "B05",
    "rededge2": "B06", "rededge075": "B06", "re2": "B06", "vegetationrededge2": "B06",
    "rededge3": "B07", "rededge078": "B07", "re3": "B07", "vegetationrededge3": "B07",
    "nir": "B08", "nirbroad": "B08", "broadnir": "B08", "broadnearinfrared": "B08",
    "nir08": "B8A", "nirnarrow": "B8A", "narrownir": "B8A", "rededge4": "B8A",
    "nir09": "B09", "cirrus": "B10", "swircirrus": "B10",
    "swir16": "B11", "swir1": "B11", "shortwaveinfrared1": "B11",
    "swir22": "B12", "swir2": "B12", "shortwaveinfrared2": "B12",
}  # fmt: skip
"""Bands by common names, also those of STAC's electro-optical extension, in small letters and digits."""

_BAND = re.compile(r"(?:B|BAND[ _]?)0?(1[0-2]|[1-9]|8A)(?=$|[^0-9A-Z])")
_PADDED = re.compile(r"(?<![0-9A-Z])B(0[1-9]|1[0-2]|8A)(?![0-9A-Z])")
_IN_FILE_NAME = re.compile(r"B(1[0-2]|0[1-9]|8A|[1-9])")
_WAVELENGTH = re.compile(r"\d+(\.\d+)?\s*(nm|um|µm|m)\b")
_FILLERS = frozenset({"band", "bands", "reflectance", "surface", "boa", "toa", "sr", "central", "wavelength"})
_MASK_WORDS = frozenset({"MASK", "CLOUDMASK", "CLOUDS", "CLOUD", "FMASK", "CLM", "QA60", "MSK", "CLDMASK"})
_COMPANIONS = frozenset({"AOT", "WVP", "TCI", "PVI", "CLP", "CLD", "SNW", "CLDPRB", "SNWPRB", "MSK"})
_OTHER_SENSOR = re.compile(r"(^|[^0-9A-Z])(L[COTEM]0[4-9]_|HLS\.L30|(M[OY]D|MCD|VNP|VJ1)\d\d|SUR_REFL_B)")
"""Names of Landsat, MODIS and VIIRS, whose bands have other meanings."""


def canonical_name(text: str | None) -> str | None:
    """Return the band or index that a text names, such as "b8a", "Band 11 SWIR" or "Red edge 1 (705 nm)",
    else None.
    """
    upper = (text or "").strip().upper()
    if upper in INDICES:
        return upper
    if _OTHER_SENSOR.search(upper):
        return None
    if match := _BAND.match(upper):
        return _padded(match.group(1))
    if common := COMMON_NAMES.get(_plain(upper)):
        return common
    named = set(_PADDED.findall(upper))
    return _padded(named.pop()) if len(named) == 1 else None


def name_layers(texts: Sequence[Sequence[str | None]], path: str = "") -> tuple[str | None, ...]:
    """Return the names of all layers of a file: bands or indices, else the first text of a layer, else None.

    `texts` are what the file says of each layer: descriptions of the same kinds in the same order. The name
    of a file with one layer counts too.
    """
    columns = [uncounted(column) for column in zip(*texts, strict=True)] if texts else []
    names: list[str | None] = []
    for of_layer, plain in zip(texts, zip(*columns, strict=True) if columns else texts, strict=True):
        known = (name for name in map(canonical_name, plain) if name)
        # A count that looks like a band, as B10 of B1..B12, must not be taken for its name.
        other = (t.strip() for t in of_layer if t and t.strip() and t.strip() not in SENTINEL_BANDS)
        names.append(next(known, None) or next(other, None))
    if len(names) == 1 and names[0] not in (*SENTINEL_BANDS, *INDICES):
        names[0] = name_from_file(path) or names[0]
    return tuple(names)


def uncounted(texts: Sequence[str | None]) -> list[str | None]:
    """Return the texts without numbers that count layers from 0 or 1: "B02" of "Band 1: B02", None of "b1".

    Two digits where one would do (``B01..B09``) are names, not counts.
    """
    if all(_plain((text or "").upper()) in COMMON_NAMES for text in texts):
        return list(texts)
    parts = [re.split(r"(\d+)", text or "") for text in texts]
    for number in range(1, min(map(len, parts), default=0), 2):
        heads = {"".join(p[:number]).casefold() for p in parts}
        digits = [p[number] for p in parts]
        band_like = all(re.search(r"(^|[^a-z])b$", head) for head in heads)
        padded = band_like and len(parts) < 10 and any(len(text) > 1 for text in digits)
        counts = [int(text) for text in digits]
        counted = counts in ([*range(len(parts))], [*range(1, len(parts) + 1)])
        if len(heads) == 1 and not padded and counted:
            return ["".join(p[number + 1 :]).strip(" :,;.()-_") or None for p in parts]
    return list(texts)


def is_counted(texts: Sequence[str | None]) -> bool:
    """True where the texts only count."""
    return bool(texts) and all(text is None for text in uncounted(texts))


def natural(text: str) -> tuple[tuple[str, int], ...]:
    """Sort key by which band_2 precedes band_10."""
    parts = re.split(r"(\d+)", text)
    pairs = itertools.zip_longest(parts[::2], parts[1::2], fillvalue="-1")
    return tuple((words, int(number)) for words, number in pairs)


def name_from_file(path: str | os.PathLike[str]) -> str | None:
    """Return the band or index in a file name, None where there is none or more than one."""
    return split_file_name(path)[0]


def is_scene_classification(path: str | os.PathLike[str]) -> bool:
    """True for a file named as the scene classification of a product (``..._SCL_20m.jp2``)."""
    return "SCL" in _tokens(path)


def is_mask_name(path: str | os.PathLike[str]) -> bool:
    """True for a file named as a mask of clouds or quality (``cloud_mask.tif``)."""
    return bool(_MASK_WORDS & _tokens(path))


def is_companion(path: str | os.PathLike[str]) -> bool:
    """True for a file that products have beside their bands: water vapour, aerosol, true colour."""
    return bool(_COMPANIONS & _tokens(path))


def _tokens(path: str | os.PathLike[str]) -> set[str]:
    return set(re.split(r"[^0-9A-Z]+", Path(path).stem.upper()))


def split_file_name(path: str | os.PathLike[str]) -> tuple[str | None, tuple[str, ...]]:
    """(band or index in a file name, the other words of the name without band and resolution)."""
    stem = Path(path).stem
    tokens = re.split(r"[^0-9A-Za-z]+", stem)
    if _OTHER_SENSOR.search(stem.upper()):
        return None, tuple(tokens)
    rest = [t for t in tokens if not re.fullmatch(r"\d+[mM]", t)]
    if is_scene_classification(path):
        return None, tuple(t for t in rest if t.upper() != "SCL")
    named = {token: _of_token(token) for token in tokens}
    if names := {name for name in named.values() if name}:
        return (names.pop() if len(names) == 1 else None), tuple(t for t in rest if not named[t])
    last = len(rest)
    # Dates and numbers may follow a common name; the 1 of red_edge_1 belongs to it.
    while last and re.fullmatch(r"\d+M|\d+", rest[last - 1].upper()) and not _common(rest[:last]):
        last -= 1
    count = _common(rest[:last])
    if not count:
        return None, tuple(rest)
    name = COMMON_NAMES["".join(rest[last - count : last]).lower()]
    return name, (*rest[: last - count], *rest[last:])


def _common(tokens: Sequence[str]) -> int:
    """Return how many of the last tokens together form a common name; 0 for none."""
    fits = (n for n in (3, 2, 1) if n <= len(tokens) and "".join(tokens[-n:]).lower() in COMMON_NAMES)
    return next(fits, 0)


def _of_token(token: str) -> str | None:
    upper = token.upper()
    if upper in INDICES:
        return upper
    match = _IN_FILE_NAME.fullmatch(upper)
    return _padded(match.group(1)) if match else None


def _plain(upper: str) -> str:
    """Return a text as a key of `COMMON_NAMES`: no wavelengths, resolutions, brackets and filling words."""
    text = _WAVELENGTH.sub(" ", re.sub(r"\(.*?\)", " ", upper.lower()))
    words = [w for w in re.split(r"[^0-9a-zµ]+", text) if w and w not in _FILLERS]
    return "".join(words)


def _padded(number: str) -> str:
    return f"B{number}" if number == "8A" else f"B{int(number):02d}"
