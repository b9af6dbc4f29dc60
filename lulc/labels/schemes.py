"""CORINE codes to classes: schemes as data, each of which sends every code to one class or to ignore.

Names of the 44 European classes and their colours are those of the official CORINE Land Cover table;
values of the Finnish raster (20 m, 1..49) have other meanings than the European grid codes (1..44).
"""

from __future__ import annotations

import colorsys
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lulc.core.schema import IGNORE, MAX_CLASSES, NO_CODE, InputError, LandCoverClass, Legend

SCHEMES = ("kaakonkulma-13", "clc-fi-13", "clc-level1", "clc-level2", "clc-level3")
"""Names of the built-in schemes."""


LEVEL1_NAMES = (
    "Artificial surfaces", "Agricultural areas", "Forest and semi-natural areas", "Wetlands", "Water bodies",
)  # fmt: skip
"""CORINE level 1, groups 1..5."""

_LEVEL1_COLORS = ("#ff0000", "#ffffa8", "#00a600", "#a6a6ff", "#80f2e6")

_LEVEL2 = {
    11: ("Urban fabric", "#ff0000"),
    12: ("Industrial, commercial and transport units", "#cc4df2"),
    13: ("Mine, dump and construction sites", "#a600cc"),
    14: ("Artificial, non-agricultural vegetated areas", "#ffa6ff"),
    21: ("Arable land", "#ffffa8"),
    22: ("Permanent crops", "#e68000"),
    23: ("Pastures", "#e6e64d"),
    24: ("Heterogeneous agricultural areas", "#ffe6a6"),
    31: ("Forests", "#00a600"),
    32: ("Scrub and/or herbaceous vegetation associations", "#a6f200"),
    33: ("Open spaces with little or no vegetation", "#cccccc"),
    41: ("Inland wetlands", "#a6a6ff"),
    42: ("Maritime wetlands", "#ccccff"),
    51: ("Inland waters", "#80f2e6"),
    52: ("Marine waters", "#e6f2ff"),
}

_LEVEL3 = {
    111: ("Continuous urban fabric", "#e6004d"),
    112: ("Discontinuous urban fabric", "#ff0000"),
    121: ("Industrial or commercial units", "#cc4df2"),
    122: ("Road and rail networks and associated land", "#cc0000"),
    123: ("Port areas", "#e6cccc"),
    124: ("Airports", "#e6cce6"),
    131: ("Mineral extraction sites", "#a600cc"),
    132: ("Dump sites", "#a64d00"),
    133: ("Construction sites", "#ff4dff"),
    141: ("Green urban areas", "#ffa6ff"),
    142: ("Sport and leisure facilities", "#ffe6ff"),
    211: ("Non-irrigated arable land", "#ffffa8"),
    212: ("Permanently irrigated land", "#ffff00"),
    213: ("Rice fields", "#e6e600"),
    221: ("Vineyards", "#e68000"),
    222: ("Fruit trees and berry plantations", "#f2a64d"),
    223: ("Olive groves", "#e6a600"),
    231: ("Pastures", "#e6e64d"),
    241: ("Annual crops associated with permanent crops", "#ffe6a6"),
    242: ("Complex cultivation patterns", "#ffe64d"),
    243: (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "#e6cc4d",
    ),
    244: ("Agro-forestry areas", "#f2cca6"),
    311: ("Broad-leaved forest", "#80ff00"),
    312: ("Coniferous forest", "#00a600"),
    313: ("Mixed forest", "#4dff00"),
    321: ("Natural grasslands", "#ccf24d"),
    322: ("Moors and heathland", "#a6ff80"),
    323: ("Sclerophyllous vegetation", "#a6e64d"),
    324: ("Transitional woodland-shrub", "#a6f200"),
    331: ("Beaches, dunes, sands", "#e6e6e6"),
    332: ("Bare rocks", "#cccccc"),
    333: ("Sparsely vegetated areas", "#ccffcc"),
    334: ("Burnt areas", "#000000"),
    335: ("Glaciers and perpetual snow", "#a6e6cc"),
    411: ("Inland marshes", "#a6a6ff"),
    412: ("Peat bogs", "#4d4dff"),
    421: ("Salt marshes", "#ccccff"),
    422: ("Salines", "#e6e6ff"),
    423: ("Intertidal flats", "#a6a6e6"),
    511: ("Water courses", "#00ccf2"),
    512: ("Water bodies", "#80f2e6"),
    521: ("Coastal lagoons", "#00ffa6"),
    522: ("Estuaries", "#a6ffe6"),
    523: ("Sea and ocean", "#e6f2ff"),
}

_PINE, _SPRUCE = 7, 8

# Name, colour, level-1 group, Finnish codes. Hues follow CORINE; lightness tells apart under red-green
# blindness what hue alone does not. Bare areas (3) span groups 1, 3 and 4 and count as artificial,
# grasslands (4) span 1, 2 and 3 and count as semi-natural: only where codes are unknown.
_KAAKONKULMA: tuple[tuple[str, str, int, tuple[int, ...]], ...] = (
    ("Built-up areas, sparse", "#f00000", 1, (2, 13)),
    ("Built-up areas, dense", "#730073", 1, (1, 3, 4, 5, 6, 7)),
    ("Bare areas", "#b8b8b8", 1, (8, 9, 10, 11, 38, 39, 40, 44)),
    ("Grasslands", "#e0b000", 3, (12, 14, 15, 16, 19, 20, 31, 32)),
    ("Fields", "#ffffa8", 2, (17, 18, 21, 22)),
    ("Broad-leaved forest", "#99ff33", 3, (23, 24)),
    ("Pine-dominated coniferous forest", "#00b35c", 3, (25, 26, 27)),
    ("Spruce-dominated coniferous forest", "#003319", 3, (25, 26, 27)),
    ("Mixed forest", "#3d8f8f", 3, (28, 29, 30)),
    ("Transitional woodland shrub", "#7a5230", 3, (33, 34, 35, 36, 37)),
    ("Inland marshes", "#a6a6ff", 4, (41, 43, 45)),
    ("Water vegetation", "#3d3df5", 4, (42, 46)),
    ("Water bodies", "#80f2ff", 5, (47, 48, 49)),
)

_KAAKONKULMA_LEVEL2 = (11, 12, 13, 32, 21, 31, 31, 31, 31, 32, 41, 41, 51)

_FINNISH_LEVEL1 = {
    1: (*range(1, 17),), 2: (*range(17, 23),), 3: (*range(23, 41),), 4: (*range(41, 47),), 5: (47, 48, 49),
}  # fmt: skip

_GRID_CODES = dict(enumerate(_LEVEL3, start=1))
_GRID_NODATA = (48, 0, 255, -128)
_THREE_DIGIT_NODATA = (999, 990, 995, 0, 255, -128)


@dataclass(frozen=True)
class Scheme:
    """How the codes of a label source become classes.

    Parameters
    ----------
    name
        Built-in name, or the name of the user's table.
    legend
        The classes.
    classes
        Code to class number 1..N, or to 255 (ignore). Every code of the source must be here.
    level1
        Code to CORINE level-1 group 1..5, where the code tells it; else its class does.
    by_species
        Codes whose class is that of the tree species with the larger volume.
    hint
        What to type when a code is unknown.
    tell_codes_apart
        True where a source may hold grid codes or three-digit codes and shows by itself which.
    """

    name: str
    legend: Legend
    classes: Mapping[int, int]
    level1: Mapping[int, int] = field(default_factory=dict)
    by_species: frozenset[int] = frozenset()
    hint: str = ""
    tell_codes_apart: bool = False

    def remap(
        self, codes: np.ndarray, pine: np.ndarray | None = None, spruce: np.ndarray | None = None
    ) -> np.ndarray:
        """Class numbers of an array of codes.

        Parameters
        ----------
        codes : integer (y, x)
            Source codes; `NO_CODE` where there is no label.
        pine, spruce : float (y, x), any unit of volume
            Volume of either species, NaN = unknown. Without them the codes of `by_species` are ignored.

        Returns
        -------
        uint8 (y, x)
            1..N, 255 = ignore.

        Raises
        ------
        InputError
            If a code is unknown; lists the unknown codes with their pixel counts.
        """
        classes = self._look_up(codes, self._class_table)
        if self.by_species and pine is not None and spruce is not None:
            chosen = np.where(pine > spruce, _PINE, np.where(spruce > pine, _SPRUCE, IGNORE))
            conifers = np.isin(codes, list(self.by_species))
            classes[conifers] = chosen[conifers]
        return classes

    def remap_level1(self, codes: np.ndarray) -> np.ndarray:
        """CORINE level-1 groups of an array of codes: uint8 (y, x), 1..5, 255 = ignore or no group."""
        return self._look_up(codes, self._level1_table)

    def check(self, counts: Mapping[int, int], where: str = "the labels") -> None:
        """Refuse codes that the scheme doesn't know, all at once.

        Parameters
        ----------
        counts
            Code to number of pixels, summed over all windows (`count_codes`).
        where
            The file, for the message.

        Raises
        ------
        InputError
            Listing each unknown code with its pixel count, or if European grid codes and three-digit
            codes can't be told apart.
        """
        unknown = {c: n for c, n in sorted(counts.items()) if c not in self.classes and c != NO_CODE}
        if unknown:
            shown = ", ".join(f"{c} ({n} px)" for c, n in list(unknown.items())[:30])
            more = f" and {len(unknown) - 30} more" if len(unknown) > 30 else ""
            raise InputError(
                f"cannot remap labels by '{self.name}', since {where} has the unknown codes "
                f"{shown}{more}, expected {_ranges(self.classes)}",
                self.hint,
            )
        if self.tell_codes_apart:
            _check_european({c for c, n in counts.items() if n}, where)

    def _look_up(self, codes: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        keys, values = table
        places = np.searchsorted(keys, codes)
        np.minimum(places, len(keys) - 1, out=places)
        if not np.array_equal(keys[places], codes):
            self.check(count_codes(codes))
        return np.asarray(values[places])

    @cached_property
    def _class_table(self) -> tuple[np.ndarray, np.ndarray]:
        return _table(self.classes)

    @cached_property
    def _level1_table(self) -> tuple[np.ndarray, np.ndarray]:
        groups = [0, *level1_of(self.legend)]
        by_class = {c: groups[k] if k != IGNORE else IGNORE for c, k in self.classes.items()}
        return _table({c: self.level1.get(c, group) or IGNORE for c, group in by_class.items()})


def count_codes(codes: np.ndarray) -> Counter[int]:
    """Code to number of pixels in an integer array (y, x), without `NO_CODE`.

    Examples
    --------
    >>> count_codes(np.array([[5, 5], [7, NO_CODE]]))
    Counter({5: 2, 7: 1})
    """
    found, counts = np.unique(codes, return_counts=True)
    return Counter({int(c): int(n) for c, n in zip(found, counts, strict=True) if c != NO_CODE})


def level1_of(legend: Legend) -> np.ndarray:
    """CORINE level-1 group of each class of a legend.

    Classes of several groups count as the legend says: of the 13 classes, bare areas as artificial and
    grasslands as semi-natural. Where the codes are known, `Scheme.remap_level1` is right instead.

    Returns
    -------
    uint8 (class,)
        Group 1..5 of class 1, 2, ..., N; 0 where the class belongs to none.
    """
    return np.array([c.level1 for c in legend.classes], dtype=np.uint8)


def level2_of(legend: Legend) -> np.ndarray:
    """CORINE level-2 group of each class of a built-in legend.

    Classes of several groups count as the one that holds most of them: of the 13 classes, dense built-up
    areas as industrial, commercial and transport units, bare areas as mines, dumps and construction sites,
    fields as arable land.

    Returns
    -------
    uint8 (class,)
        Group 1..15 of class 1, 2, ..., N, numbered as the classes of ``clc-level2``; 0 where there is none,
        as for all classes of other legends.
    """
    groups = {code: number for number, code in enumerate(sorted(_LEVEL2), start=1)}
    codes: tuple[int, ...] = ()
    if legend.names == _kaakonkulma_legend(finnish=False).names:
        codes = _KAAKONKULMA_LEVEL2
    elif legend.names == tuple(name for name, _ in _LEVEL3.values()):
        codes = tuple(code // 10 for code in _LEVEL3)
    elif legend.names == tuple(_LEVEL2[code][0] for code in sorted(_LEVEL2)):
        codes = tuple(sorted(_LEVEL2))
    return np.array([groups[code] for code in codes] or [0] * len(legend), dtype=np.uint8)


def load_scheme(name_or_csv: str, codes: str = "auto") -> Scheme:
    """The scheme of that name, or the one in a user's table.

    Parameters
    ----------
    name_or_csv
        One of `SCHEMES`, or the path of a CSV (see `read_scheme`).
    codes
        Meaning of European codes: "grid" (1..44), "three-digit" (111..523), or "auto" to see it from the
        codes themselves, which never overlap; a file that holds both is refused (`Scheme.check`).

    Raises
    ------
    InputError
        If there is neither such a scheme nor such a file, or the file is no valid table.
    """
    if name_or_csv == "kaakonkulma-13":
        classes = {n: n for n in range(1, 14)} | {0: IGNORE, IGNORE: IGNORE}
        return Scheme(name_or_csv, _kaakonkulma_legend(finnish=False), classes, hint=_HINT_OTHER)
    if name_or_csv == "clc-fi-13":
        return _finnish()
    if name_or_csv in SCHEMES:
        return _european(name_or_csv, codes)
    if not Path(name_or_csv).exists():
        raise InputError(
            f"cannot find the scheme '{name_or_csv}', since it is neither a file nor one of "
            f"{', '.join(SCHEMES)}",
            "Type --scheme with one of these names, or with the path of a CSV (code,class,name,color).",
        )
    return read_scheme(name_or_csv)


_HINT_OTHER = (
    "Type --scheme with the nomenclature of the file (clc-fi-13, clc-level1, clc-level2, clc-level3), "
    "or with a CSV (code,class,name,color) that has a row for each code; leave class empty to ignore it."
)


def _kaakonkulma_legend(*, finnish: bool) -> Legend:
    return Legend(
        "kaakonkulma-13",
        tuple(
            LandCoverClass(i, name, color, codes if finnish else (i,), level1)
            for i, (name, color, level1, codes) in enumerate(_KAAKONKULMA, start=1)
        ),
    )


def _finnish() -> Scheme:
    split = frozenset(_KAAKONKULMA[_PINE - 1][3])
    classes = {
        code: IGNORE if code in split else number
        for number, (_, _, _, finnish) in enumerate(_KAAKONKULMA, start=1)
        for code in finnish
    }
    classes |= {0: IGNORE, 255: IGNORE}
    level1 = {code: group for group, members in _FINNISH_LEVEL1.items() for code in members}
    hint = _HINT_OTHER.replace("clc-fi-13, ", "")
    return Scheme("clc-fi-13", _kaakonkulma_legend(finnish=True), classes, level1, split, hint)


def _european(name: str, codes: str) -> Scheme:
    level = int(name[-1])
    groups = sorted({code // 10 ** (3 - level) for code in _LEVEL3})
    numbers = {group: i for i, group in enumerate(groups, start=1)}
    meaning: dict[int, int] = {}
    nodata: set[int] = set()
    if codes in ("auto", "grid"):
        meaning |= _GRID_CODES
        nodata |= set(_GRID_NODATA)
    if codes in ("auto", "three-digit"):
        meaning |= {code: code for code in _LEVEL3}
        nodata |= set(_THREE_DIGIT_NODATA)
    members = {g: tuple(c for c in _LEVEL3 if c // 10 ** (3 - level) == g) for g in groups}
    legend = Legend(
        name,
        tuple(LandCoverClass(numbers[g], *_european_class(g), members[g], int(str(g)[0])) for g in groups),
    )
    classes = {code: numbers[clc // 10 ** (3 - level)] for code, clc in meaning.items()}
    classes |= dict.fromkeys(nodata, IGNORE)
    hint = (
        "Type --scheme clc-fi-13 if these are Finnish codes 1..49, or --scheme with a CSV "
        "(code,class,name,color) that has a row for each code; leave class empty to ignore it."
    )
    return Scheme(name, legend, classes, hint=hint, tell_codes_apart=codes == "auto")


def _european_class(group: int) -> tuple[str, str]:
    if group < 10:
        return LEVEL1_NAMES[group - 1], _LEVEL1_COLORS[group - 1]
    return _LEVEL2[group] if group < 100 else _LEVEL3[group]


def _check_european(codes: set[int], where: str) -> None:
    grid, digits = sorted(codes & set(_GRID_CODES)), sorted(codes & set(_LEVEL3))
    if grid and digits:
        raise InputError(
            f"cannot tell what the codes of {where} mean, since it has grid codes ({_listed(grid)}) and "
            f"three-digit codes ({_listed(digits)}), expected one kind",
            "Type --codes grid or --codes three-digit, or --scheme with a CSV that has a row for each code.",
        )
    if grid and max(grid) <= 5:
        raise InputError(
            f"cannot tell what the codes of {where} mean, since all lie in 1..5 ({_listed(grid)}), which are "
            "grid codes of artificial surfaces or level-1 groups already",
            "Type --codes grid if they are grid codes, else --scheme with a CSV (code,class,name,color).",
        )


MAX_CSV_BYTES = 2**20
_COLUMNS = ("code", "class", "name", "color")


def read_scheme(path: str) -> Scheme:
    """A scheme from a table with a row for each code.

    Columns are ``code`` (an integer), ``class`` (1..N, or empty or ``ignore``), ``name`` and ``color``
    (``#rrggbb``) of the class, which must be given on one row at least, and agree where repeated;
    a colour may be left out. A row without a code declares a class that these labels lack and others of
    the same legend have. A further column ``level1`` (1..5) gives CORINE's level 1. Separated by comma or
    semicolon, UTF-8.

    Raises
    ------
    InputError
        With the line number, if a row is not as above, or classes are not numbered 1..N without gaps.
    """
    rows = _rows_of(path)
    classes: dict[int, int] = {}
    found: dict[int, dict[str, str]] = {}
    for line, row in rows:
        code, number = _code_and_class(path, line, row)
        if code in classes:
            raise _bad_row(path, line, f"code {code} is there twice", "each code once")
        if code is not None:
            classes[code] = number
        if number != IGNORE:
            _merge_class(path, line, found.setdefault(number, {}), row)
    if not found or sorted(found) != list(range(1, len(found) + 1)):
        raise InputError(
            f"cannot use the scheme '{path}', since its classes are "
            f"{_listed(sorted(found)) or 'all ignored'}, expected 1..N without gaps",
            "Number the classes 1, 2, 3, ... in the column 'class'.",
        )
    legend = Legend(Path(path).stem, tuple(_class_from(path, n, found[n], classes) for n in sorted(found)))
    hint = f"Add a row for each code to '{path}'; leave the class empty to ignore it."
    return Scheme(Path(path).stem, legend, classes, hint=hint)


def _rows_of(path: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a scheme's table."""
    file = Path(path)
    if not file.is_file() or file.stat().st_size > MAX_CSV_BYTES:
        raise InputError(
            f"cannot read the scheme '{path}', since it is no regular file of at most {MAX_CSV_BYTES} bytes",
            f"Give a CSV with the columns {', '.join(_COLUMNS)}.",
        )
    try:
        text = file.read_bytes().decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = ";" if first.count(";") > first.count(",") else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        header = ["color" if name == "colour" else name for name in header]
        reader.fieldnames = header
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"cannot read the scheme '{path}', since it is no CSV in UTF-8 ({error})",
            "Save the table as 'CSV UTF-8'.",
        ) from error
    missing = [c for c in _COLUMNS if c not in header]
    if missing:
        raise InputError(
            f"cannot use the scheme '{path}', since its first line is '{first.strip()[:80]}' and lacks "
            f"{', '.join(missing)}",
            f"Let the first line be {','.join(_COLUMNS)}.",
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise _bad_row(path, line, "the number of values differs", f"{len(header)} values")
    return [(line, {k: v.strip() for k, v in row.items()}) for line, row in rows if any(row.values())]


def _code_and_class(path: str, line: int, row: dict[str, str]) -> tuple[int | None, int]:
    text, number = row["code"], row["class"].lower()
    ignored = number in ("", "ignore")
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text) and (text or ignored):
        raise _bad_row(path, line, f"the code is '{text[:40]}'", "an integer")
    code = int(text) if text else None
    if ignored:
        return code, IGNORE
    if not re.fullmatch(r"[0-9]{1,3}", number) or not 1 <= int(number) <= MAX_CLASSES:
        raise _bad_row(path, line, f"the class is '{number[:40]}'", f"1..{MAX_CLASSES}, 'ignore' or nothing")
    return code, int(number)


_PATTERNS = {
    "name": (r"[^\x00-\x1f\x7f]{1,120}", "up to 120 printable characters"),
    "color": (r"#[0-9a-fA-F]{6}", "#rrggbb"),
    "level1": (r"[1-5]", "1..5"),
}


def _merge_class(path: str, line: int, known: dict[str, str], row: dict[str, str]) -> None:
    for column, (pattern, expected) in _PATTERNS.items():
        value = row.get(column, "")
        if not value:
            continue
        if not re.fullmatch(pattern, value):
            raise _bad_row(path, line, f"the {column} is '{value[:40]}'", expected)
        if known.setdefault(column, value) != value:
            has = f"the {column} of class {row['class']} is '{value}'"
            raise _bad_row(path, line, has, f"'{known[column]}' as above")


def _class_from(path: str, number: int, known: dict[str, str], classes: dict[int, int]) -> LandCoverClass:
    if "name" not in known:
        raise InputError(
            f"cannot use the scheme '{path}', since class {number} has no name",
            "Fill in the column 'name' on one row of each class.",
        )
    codes = tuple(sorted(c for c, n in classes.items() if n == number))
    color = known.get("color") or _spare_color(number)
    return LandCoverClass(number, known["name"], color.lower(), codes, int(known.get("level1", 0)))


def _spare_color(number: int) -> str:
    """A colour for a class without one: hues a golden angle apart, in alternating lightness."""
    rgb = colorsys.hls_to_rgb(number * 0.381966 % 1, (0.35, 0.5, 0.7)[number % 3], 0.7)
    return "#" + "".join(f"{round(255 * v):02x}" for v in rgb)


def _bad_row(path: str, line: int, has: str, expected: str) -> InputError:
    return InputError(
        f"cannot use the scheme '{path}', since on line {line} {has}, expected {expected}",
        f"Correct line {line} of '{path}'.",
    )


def _table(values: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(sorted codes int64, uint8 values) with `NO_CODE` first."""
    pairs = sorted({NO_CODE: IGNORE, **values}.items())
    keys, numbers = zip(*pairs, strict=True)
    return np.array(keys, dtype=np.int64), np.array(numbers, dtype=np.uint8)


def _listed(codes: Iterable[int]) -> str:
    shown = [str(c) for c in codes]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _ranges(codes: Iterable[int]) -> str:
    """Codes as ranges: 1..13, 255.

    Examples
    --------
    >>> _ranges([1, 2, 3, 7])
    '1..3, 7'
    """
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
