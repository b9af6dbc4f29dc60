"""Identification of bands and indices from their producers' texts.

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
"""Bands by common names, those of STAC's electro-optical extension among them; small letters and digits."""

_BAND = re.compile(r"(?:B|BAND[ _]?)0?(1[0-2]|[1-9]|8A)(?=$|[^0-9A-Z])")
_PADDED = re.compile(r"(?<![0-9A-Z])B(0[1-9]|1[0-2]|8A)(?![0-9A-Z])")
_IN_FILE_NAME = re.compile(r"B(1[0-2]|0[1-9]|8A|[1-9])")
_WAVELENGTH = re.compile(r"\d+(\.\d+)?\s*(nm|um|µm|m)\b")
_FILLERS = frozenset({"band", "bands", "reflectance", "surface", "boa", "toa", "sr", "central", "wavelength"})
_PLAIN_TOKENS = re.compile(r"\d+M|\d+")
_MASK_WORDS = frozenset({"MASK", "CLOUDMASK", "CLOUDS", "CLOUD", "FMASK", "CLM", "QA60", "MSK", "CLDMASK"})
_COMPANIONS = frozenset({"AOT", "WVP", "TCI", "PVI", "CLP", "CLD", "SNW", "CLDPRB", "SNWPRB", "MSK"})
_OTHER_SENSOR = re.compile(r"(^|[^0-9A-Z])(L[COTEM]0[4-9]_|HLS\.L30|(M[OY]D|MCD|VNP|VJ1)\d\d|SUR_REFL_B)")
"""Landsat, MODIS and VIIRS, whose bands of the same number are others."""


def canonical_name(text: str | None) -> str | None:
    """The band or index that a text names by itself, None where it names none.

    Examples
    --------
    >>> canonical_name("B2, central wavelength 490 nm"), canonical_name("b8a"), canonical_name("Band 11 SWIR")
    ('B02', 'B8A', 'B11')
    >>> canonical_name("ndvi"), canonical_name("AOT"), canonical_name("Red edge 1 (705 nm)")
    ('NDVI', None, 'B05')
    >>> canonical_name("reflectance at spectral band b02 492.3 nm")
    'B02'
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
    """Names of all layers of a file.

    Parameters
    ----------
    texts
        For each layer what the file says about it: descriptions of the same kinds in the same order.
    path
        File; its name counts where it has one layer.

    Returns
    -------
    tuple of str or None
        Band or index names, else the first text of the layer; None where it has none.

    Examples
    --------
    >>> name_layers([["b1"], ["b2"]]), name_layers([["Band 1: B8A"], ["Band 2: B11"]])
    (('b1', 'b2'), ('B8A', 'B11'))
    >>> name_layers([["Band 8"], ["Band 4"]]), name_layers([["Band 1"]], "T35VLG_B04.tif")
    (('B08', 'B04'), ('B04',))
    """
    columns = [uncounted(column) for column in zip(*texts, strict=True)] if texts else []
    names: list[str | None] = []
    for own, plain in zip(texts, zip(*columns, strict=True) if columns else texts, strict=True):
        found = (name for name in map(canonical_name, plain) if name)
        # A count that looks like a band, as B10 of B1..B12, must not be taken for its name.
        shown = (t.strip() for t in own if t and t.strip() and t.strip() not in SENTINEL_BANDS)
        names.append(next(found, None) or next(shown, None))
    if len(names) == 1 and names[0] not in (*SENTINEL_BANDS, *INDICES):
        names[0] = name_from_file(path) or names[0]
    return tuple(names)


def uncounted(texts: Sequence[str | None]) -> list[str | None]:
    """The texts without numbers that count the layers from 0 or 1; None for one that is nothing else.

    Two digits where one would do (``B01..B09``) are names, not counts.

    Examples
    --------
    >>> uncounted(["Band 1: B02", "Band 2: B03"]), uncounted(["B02", "B03"]), uncounted(["b1", "b2"])
    (['B02', 'B03'], ['B02', 'B03'], [None, None])
    """
    if all(_plain((text or "").upper()) in COMMON_NAMES for text in texts):
        return list(texts)
    parts = [re.split(r"(\d+)", text or "") for text in texts]
    for number in range(1, min(map(len, parts), default=0), 2):
        heads = {"".join(p[:number]).casefold() for p in parts}
        counts = [p[number] for p in parts]
        own = all(re.search(r"(^|[^a-z])b$", head) for head in heads)
        padded = own and len(parts) < 10 and any(len(count) > 1 for count in counts)
        places = [int(count) for count in counts]
        if len(heads) == 1 and not padded and places in (_count_from(0, parts), _count_from(1, parts)):
            return ["".join(p[number + 1 :]).strip(" :,;.()-_") or None for p in parts]
    return list(texts)


def is_counted(texts: Sequence[str | None]) -> bool:
    """True where the texts do no more than count."""
    return bool(texts) and all(text is None for text in uncounted(texts))


def natural(text: str) -> tuple[tuple[str, int], ...]:
    """Sort key under which band_2 comes before band_10."""
    parts = re.split(r"(\d+)", text)
    pairs = itertools.zip_longest(parts[::2], parts[1::2], fillvalue="-1")
    return tuple((words, int(number)) for words, number in pairs)


def name_from_file(path: str | os.PathLike[str]) -> str | None:
    """The band or index in a file name, None where there is none or more than one.

    Examples
    --------
    >>> name_from_file("T35VLG_20200701_B02_10m.tif"), name_from_file("swir16.tif"), name_from_file("a.tif")
    ('B02', 'B11', None)
    >>> name_from_file("LC08_L2SP_188017_20200701_SR_B5.tif")
    """
    return split_file_name(path)[0]


def is_scene_classification(path: str | os.PathLike[str]) -> bool:
    """True for a file that is named as the scene classification of a product (``..._SCL_20m.jp2``)."""
    return "SCL" in _tokens(path)


def is_mask_name(path: str | os.PathLike[str]) -> bool:
    """True for a file that is named as a mask of clouds or quality (``cloud_mask.tif``)."""
    return bool(_MASK_WORDS & _tokens(path))


def is_companion(path: str | os.PathLike[str]) -> bool:
    """True for a file that products keep beside their bands: water vapour, aerosol, true colour."""
    return bool(_COMPANIONS & _tokens(path))


def _tokens(path: str | os.PathLike[str]) -> set[str]:
    return set(re.split(r"[^0-9A-Z]+", Path(path).stem.upper()))


def split_file_name(path: str | os.PathLike[str]) -> tuple[str | None, tuple[str, ...]]:
    """(band or index in a file name, the other words of the name without band and resolution)."""
    stem = Path(path).stem
    tokens = re.split(r"[^0-9A-Za-z]+", stem)
    named = {token: _of_token(token) for token in tokens}
    found = {name for name in named.values() if name}
    if _OTHER_SENSOR.search(stem.upper()):
        return None, tuple(tokens)
    rest = [t for t in tokens if not re.fullmatch(r"\d+[mM]", t)]
    if is_scene_classification(path):
        return None, tuple(t for t in rest if t.upper() != "SCL")
    if found:
        return (found.pop() if len(found) == 1 else None), tuple(t for t in rest if not named[t])
    last = len(rest)
    while last and _PLAIN_TOKENS.fullmatch(rest[last - 1].upper()):
        # The 1 of red_edge_1 is no date.
        if _common(rest[:last]):
            break
        last -= 1
    count = _common(rest[:last])
    if not count:
        return None, tuple(rest)
    name = COMMON_NAMES["".join(rest[last - count : last]).lower()]
    return name, (*rest[: last - count], *rest[last:])


def _common(tokens: Sequence[str]) -> int:
    """Return how many of the last tokens together are a common name; 0 for none."""
    fits = (n for n in (3, 2, 1) if n <= len(tokens) and "".join(tokens[-n:]).lower() in COMMON_NAMES)
    return next(fits, 0)


def _of_token(token: str) -> str | None:
    upper = token.upper()
    if upper in INDICES:
        return upper
    match = _IN_FILE_NAME.fullmatch(upper)
    return _padded(match.group(1)) if match else None


def _plain(upper: str) -> str:
    """A text as a key of `COMMON_NAMES`: without wavelengths, resolutions, brackets and filling words."""
    text = _WAVELENGTH.sub(" ", re.sub(r"\(.*?\)", " ", upper.lower()))
    words = [w for w in re.split(r"[^0-9a-zµ]+", text) if w and w not in _FILLERS]
    return "".join(words)


def _count_from(start: int, parts: Sequence[object]) -> list[int]:
    return list(range(start, start + len(parts)))


def _padded(number: str) -> str:
    return f"B{number}" if number == "8A" else f"B{int(number):02d}"
