"""Schemes: tables that map each code of a label source to one class or to ignore.

The tables are files in the folder ``tables``. Names and colours of the European classes are those of the
official CORINE Land Cover table. Codes of the Finnish raster (20 m, 1..49) mean other classes than the
European grid codes (1..44).
"""

from __future__ import annotations

import colorsys
import csv
import dataclasses
import io
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from lulc.core.documents import read_rows
from lulc.core.schema import IGNORE, MAX_CLASSES, NO_CODE, Code, InputError, LandCoverClass, Legend
from lulc.core.storage import write_atomically

TABLES = Path(__file__).with_name("tables")

CORINE = ("clc-level1", "clc-level2", "clc-level3")
PRODUCTS = ("worldcover", "dynamic-world", "esri-10m")
SCHEMES = (*CORINE, "kaakonkulma-13", "clc-fi-13", *PRODUCTS)
"""Names of the built-in schemes."""

PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
    "#0d0df2", "#0d0d4a", "#f2f2a6", "#692b0d", "#0d0d96", "#4a69f2", "#2b4a4a", "#96b569", "#a6d4a6",
    "#0d5978", "#0d96f2", "#a6593b", "#0d3b87", "#e3d469", "#2b1c3b", "#2b2b1c", "#3b2bd4",
)  # fmt: skip
"""Default colours of classes: those of Okabe and Ito (2008), then others that differ most from all before
them for normal sight, deuteranopia and protanopia.
"""

_WORDS_OF_COLOR = {
    "#0072b2": "water waters lake lakes river rivers sea ocean",
    "#009e73": "forest forests tree trees wood woods woodland",
    "#d55e00": "built urban town towns city artificial settlement settlements",
    "#f0e442": "crop crops cropland field fields arable farmland agriculture agricultural",
    "#96b569": "grass grassland grasslands meadow meadows pasture pastures",
    "#e69f00": "bare soil sand rock rocks",
    "#56b4e9": "wetland wetlands marsh marshes bog bogs swamp",
}
"""Colours of `PALETTE` for classes with one of these words in their names."""

_PINE, _SPRUCE = 7, 8

_FINNISH_LEVEL1 = {
    1: (*range(1, 17),), 2: (*range(17, 23),), 3: (*range(23, 41),), 4: (*range(41, 47),), 5: (47, 48, 49),
}  # fmt: skip

_GRID_NODATA = (48, 0, 255, -128)
_THREE_DIGIT_NODATA = (999, 990, 995, 0, 255, -128)


@dataclass(frozen=True)
class Scheme:
    """Mapping from the codes of a label source to classes.

    Parameters
    ----------
    name
        Built-in name, or the name of the user's table.
    classes
        Code to class number 1..N, or to 255 (ignore). A code is an integer or a text (`plain`). Every code
        of the source must be here.
    level1
        Code to CORINE level-1 group 1..5, where the code decides it; else its class does.
    by_species
        Codes whose class is that of the tree species with the larger volume.
    hint
        Hint of the error message for unknown codes.
    tell_codes_apart
        True where a source may hold either grid codes or three-digit codes, which the codes themselves show.
    names
        Texts that the integer codes of a source stand for; `bind` sets them.
    """

    name: str
    legend: Legend
    classes: Mapping[Code, int]
    level1: Mapping[int, int] = field(default_factory=dict)
    by_species: frozenset[Code] = frozenset()
    hint: str = ""
    tell_codes_apart: bool = False
    names: Mapping[int, str] = field(default_factory=dict)

    def class_of(self, code: Code) -> int | None:
        """Return the class number of a code, 255 = ignore; None for an unknown code.

        A text is a key itself, the integer that it spells, or the name of a class.
        """
        if isinstance(code, int):
            return self.classes.get(code)
        text = plain(code)
        if text in self.classes:
            return self.classes[text]
        if is_integer(text):
            return self.classes.get(int(text))
        return self._number_by_name.get(text)

    def knows(self, code: Code) -> bool:
        """True where the code has a class, or is ignored."""
        return self.class_of(code) is not None

    def bind(self, names: Mapping[int, str], *, indexed: bool = False) -> Scheme:
        """Return the scheme for a source whose codes have names.

        `names` are the texts of a field by their index (`indexed` is True), or the names in a raster's value
        table, whose codes keep the classes of the scheme.
        """
        classes: dict[Code, int] = {} if indexed else dict(self.classes)
        for code, text in names.items():
            number = self.class_of(text)
            if code not in classes and number is not None:
                classes[code] = number
        return dataclasses.replace(self, classes=classes, names=dict(names) if indexed else {})

    @cached_property
    def _number_by_name(self) -> dict[str, int]:
        return {plain(c.name): c.number for c in self.legend.classes}

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
        """Refuse unknown codes, all at once, and European codes of both kinds.

        `counts` are the pixels of each code, summed over all windows (`count_codes`); `where` is the file,
        for the message. Raises InputError that lists each unknown code with its pixel count.
        """
        unknown = {c: n for c, n in sorted(counts.items()) if c not in self.classes and c != NO_CODE}
        if unknown:
            names = {c: repr(self.names[c]) for c in unknown if c in self.names}
            shown = ", ".join(f"{names.get(c, c)} ({n} px)" for c, n in list(unknown.items())[:30])
            more = f" and {len(unknown) - 30} more" if len(unknown) > 30 else ""
            expected = _ranges(c for c in self.classes if isinstance(c, int))
            if self.names:
                expected = f"texts such as {_listed(repr(name) for name in self.legend.names)}"
            raise InputError(
                f"cannot remap labels by '{self.name}', since {where} has the unknown codes "
                f"{shown}{more}, expected {expected}",
                self.hint,
            )
        if self.tell_codes_apart:
            _check_european({c for c, n in counts.items() if n}, where)

    def _look_up(self, codes: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        keys, values = table
        positions = np.searchsorted(keys, codes)
        np.minimum(positions, len(keys) - 1, out=positions)
        if not np.array_equal(keys[positions], codes):
            self.check(count_codes(codes))
        return np.asarray(values[positions])

    @cached_property
    def _class_table(self) -> tuple[np.ndarray, np.ndarray]:
        return _table({c: n for c, n in self.classes.items() if isinstance(c, int)})

    @cached_property
    def _level1_table(self) -> tuple[np.ndarray, np.ndarray]:
        groups = [0, *level1_of(self.legend)]
        by_class = {
            c: groups[k] if k != IGNORE else IGNORE for c, k in self.classes.items() if isinstance(c, int)
        }
        return _table({c: self.level1.get(c, group) or IGNORE for c, group in by_class.items()})


def plain(text: str) -> str:
    """Return a text as codes are compared: with single spaces, casefolded, in Unicode's form NFC."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def is_integer(text: str) -> bool:
    """True for an integer of at most nine digits, with or without a sign."""
    return re.fullmatch(r"[+-]?[0-9]{1,9}", text) is not None


def count_codes(codes: np.ndarray) -> Counter[int]:
    """Code to number of pixels in an integer array (y, x), without `NO_CODE`."""
    found, counts = np.unique(codes, return_counts=True)
    return Counter({int(c): int(n) for c, n in zip(found, counts, strict=True) if c != NO_CODE})


def level1_of(legend: Legend) -> np.ndarray:
    """Return the CORINE level-1 group 1..5 of each class of a legend, 0 for none: uint8 (class,).

    Classes of several groups have one in the legend: of the 13 classes, bare areas are artificial and
    grasslands semi-natural. Where the codes are known, `Scheme.remap_level1` gives the right groups instead.
    """
    return np.array([c.level1 for c in legend.classes], dtype=np.uint8)


def level2_of(legend: Legend) -> np.ndarray:
    """Return the CORINE level-2 group of each class of a legend: uint8 (class,).

    Groups 1..15 are numbered as the classes of ``clc-level2``; 0 for all classes of legends that are not
    built in. A class of several groups has the one that holds most of it: of the 13 classes, dense built-up
    areas are industrial, commercial and transport units, bare areas are mines, dumps and construction sites,
    fields are arable land.
    """
    level2, level3 = (_corine_of(level) for level in (2, 3))
    groups = {code: number for number, code in enumerate(level2, start=1)}
    codes: tuple[int, ...] = ()
    rows = _builtin_rows("kaakonkulma-13")
    if legend.names == tuple(row["name"] for row in rows):
        codes = tuple(int(row["level2"]) for row in rows)
    elif legend.names == tuple(name for name, _ in level3.values()):
        codes = tuple(code // 10 for code in level3)
    elif legend.names == tuple(name for name, _ in level2.values()):
        codes = tuple(level2)
    return np.array([groups[code] for code in codes] or [0] * len(legend), dtype=np.uint8)


def load_scheme(name_or_csv: str, codes: str = "auto") -> Scheme:
    """Return a built-in scheme by its name, or the scheme in a user's table.

    Parameters
    ----------
    name_or_csv
        One of `SCHEMES`, or the path of a CSV (see `read_scheme`).
    codes
        Kind of European codes: "grid" (1..44), "three-digit" (111..523), or "auto" to infer it from the
        codes, which never overlap; a file that holds both is refused (`Scheme.check`).

    Raises
    ------
    InputError
        If there is neither such a scheme nor such a file, the file is no valid table, or `codes` is given
        for a scheme that has no European codes.
    """
    if codes != "auto" and name_or_csv not in CORINE:
        raise InputError(
            f"cannot read the codes of the scheme '{name_or_csv}' as '{codes}', since only "
            f"{', '.join(CORINE)} know both kinds of European codes",
            f"Leave out --codes, or type one of these names, for example --scheme {CORINE[0]}.",
        )
    if name_or_csv in CORINE:
        return _european(name_or_csv, codes)
    if name_or_csv == "kaakonkulma-13":
        classes: dict[Code, int] = {**{n: n for n in range(1, 14)}, 0: IGNORE, IGNORE: IGNORE}
        return Scheme(name_or_csv, _kaakonkulma_legend(finnish=False), classes, hint=_HINT_OTHER)
    if name_or_csv == "clc-fi-13":
        return _finnish()
    if name_or_csv in PRODUCTS:
        found = read_scheme(str(TABLES / f"{name_or_csv}.csv"))
        return dataclasses.replace(found, hint=_HINT_OTHER)
    if not Path(name_or_csv).exists():
        raise InputError(
            f"cannot find the scheme '{name_or_csv}', since it is neither a file nor one of "
            f"{', '.join(SCHEMES)}",
            "Type --scheme with one of these names, or with the path of a CSV (code,class,name,color).",
        )
    return read_scheme(name_or_csv)


_HINT_OTHER = (
    f"Type --scheme with the nomenclature of the file ({', '.join(SCHEMES)}), "
    "or with a CSV (code,class,name,color) that has a row for each code; leave class empty to ignore it."
)


@cache
def _kaakonkulma_legend(*, finnish: bool) -> Legend:
    classes = []
    for number, row in enumerate(_builtin_rows("kaakonkulma-13"), start=1):
        sources = tuple(map(int, row["finnish"].split())) if finnish else (number,)
        classes.append(LandCoverClass(number, row["name"], row["color"], sources, int(row["level1"])))
    return Legend("kaakonkulma-13", tuple(classes))


def _finnish() -> Scheme:
    legend = _kaakonkulma_legend(finnish=True)
    split = frozenset(legend.classes[_PINE - 1].sources)
    classes: dict[Code, int] = {code: c.number for c in legend.classes for code in c.sources}
    classes |= dict.fromkeys((*split, 0, 255), IGNORE)
    level1 = {code: group for group, members in _FINNISH_LEVEL1.items() for code in members}
    return Scheme("clc-fi-13", legend, classes, level1, split, _HINT_OTHER)


@cache
def _corine_of(level: int) -> dict[int, tuple[str, str]]:
    """Code to name and colour of the groups of a CORINE level, in the order of their codes."""
    rows = _builtin_rows("corine")
    return {int(r["code"]): (r["name"], r["color"]) for r in rows if len(r["code"]) == level}


@cache
def _builtin_rows(name: str) -> list[dict[str, str]]:
    """Rows of a table in the folder ``tables``."""
    return [row for _, row in _rows_of(str(TABLES / f"{name}.csv"), ())]


def _european(name: str, codes: str) -> Scheme:
    level = int(name[-1])
    level3 = list(_corine_of(3))
    group_of: dict[int, int] = {code: code // 10 ** (3 - level) for code in level3}
    legend_classes = tuple(
        LandCoverClass(
            number, *named, tuple(c for c in level3 if group_of[c] == group), int(str(group)[0])
        )
        for number, (group, named) in enumerate(_corine_of(level).items(), start=1)
    )  # fmt: skip
    numbers = {c: land_cover.number for land_cover in legend_classes for c in land_cover.sources}
    classes: dict[Code, int] = {}
    if codes in ("auto", "grid"):
        classes |= {grid_code: numbers[code] for grid_code, code in enumerate(level3, start=1)}
        classes |= dict.fromkeys(_GRID_NODATA, IGNORE)
    if codes in ("auto", "three-digit"):
        classes |= numbers | dict.fromkeys(_THREE_DIGIT_NODATA, IGNORE)
    hint = (
        "Type --scheme clc-fi-13 if these are Finnish codes 1..49, or --scheme with a CSV "
        "(code,class,name,color) that has a row for each code; leave class empty to ignore it."
    )
    return Scheme(name, Legend(name, legend_classes), classes, hint=hint, tell_codes_apart=codes == "auto")


def _check_european(codes: set[int], where: str) -> None:
    level3 = _corine_of(3)
    grid, digits = sorted(codes & set(range(1, len(level3) + 1))), sorted(codes & set(level3))
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


_COLUMNS = ("code", "class", "name", "color")


def read_scheme(path: str) -> Scheme:
    """Read a scheme from a table with a row for each code.

    Columns are ``code`` (an integer or a text), ``class`` (1..N, or empty or ``ignore``), ``name`` and
    ``color`` (``#rrggbb``) of the class. At least one row of each class has its name; names and colours agree
    where repeated, and colours may be left out. A row without a code declares a class of the legend that
    these labels lack. A further column ``level1`` (1..5) gives CORINE's level 1. The separator is a comma or
    a semicolon, the encoding UTF-8. Raises InputError with the line number if a row is not like this, or if
    classes are not numbered 1..N without gaps.
    """
    classes: dict[Code, int] = {}
    spelling: dict[Code, Code] = {}
    cells: dict[int, dict[str, str]] = {}
    for line, row in _rows_of(path):
        code, number = _code_and_class(path, line, row)
        if code in classes:
            raise _bad_row(path, line, f"code {code} is there twice", "each code once")
        if code is not None:
            classes[code] = number
            spelling[code] = row["code"] if isinstance(code, str) else code
        if number != IGNORE:
            _merge_class(path, line, cells.setdefault(number, {}), row)
    numbers = sorted(cells)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise InputError(
            f"cannot use the scheme '{path}', since its classes are "
            f"{_listed(numbers) or 'all ignored'}, expected 1..N without gaps",
            "Number the classes 1, 2, 3, ... in the column 'class'.",
        )
    colors = _colored([cells[n].get("name", "") for n in numbers], [cells[n].get("color") for n in numbers])
    land_cover = []
    for number, color in zip(numbers, colors, strict=True):
        if "name" not in cells[number]:
            raise InputError(
                f"cannot use the scheme '{path}', since class {number} has no name",
                "Fill in the column 'name' on one row of each class.",
            )
        codes = tuple(sorted((spelling[c] for c, k in classes.items() if k == number), key=_code_order))
        level1 = int(cells[number].get("level1", 0))
        land_cover.append(LandCoverClass(number, cells[number]["name"], color, codes, level1))
    hint = f"Add a row for each code to '{path}'; leave the class empty to ignore it."
    name = Path(path).stem
    return Scheme(name, Legend(name, tuple(land_cover)), classes, hint=hint)


def _code_order(code: Code) -> tuple[bool, Code]:
    """Sort key of codes: integers before texts."""
    return isinstance(code, str), code


def write_scheme(scheme: Scheme, path: Path) -> bool:
    """Write a scheme as a table for `read_scheme`, which a user can edit.

    Return False if there is a file with other content, possibly a user's, which is left as it is.
    """
    spelling = {plain(s): s for c in scheme.legend.classes for s in c.sources if isinstance(s, str)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, "level1"])
    cells: dict[int, tuple[int | str, ...]] = {
        c.number: (c.number, c.name, c.color, c.level1 or "") for c in scheme.legend.classes
    }
    cells[IGNORE] = ("ignore", "", "", "")
    for code in sorted(scheme.classes, key=_code_order):
        spelled = spelling.get(code, code) if isinstance(code, str) else code
        writer.writerow([spelled, *cells[scheme.classes[code]]])
    for number in cells:
        if number not in {*scheme.classes.values(), IGNORE}:
            writer.writerow(["", *cells[number]])
    content = text.getvalue().encode()
    if path.exists():
        return path.read_bytes() == content
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return True


def scheme_of_names(
    name: str, names: Mapping[int, str] | Mapping[str, str], colors: Mapping[int, str] | None = None
) -> Scheme:
    """Return the scheme of a source that names its classes itself.

    Raises InputError if there are too many classes, or a name can't be printed.

    Parameters
    ----------
    names
        Code to name of the class; codes with the same name make one class. A text code is its own name.
    colors
        Integer code to ``#rrggbb``; other classes have default colours.
    """
    spelling: dict[str, str] = {}
    members: dict[str, list[Code]] = {}
    for code, text in names.items():
        spelling.setdefault(plain(text), " ".join(text.split()))
        members.setdefault(plain(text), []).append(code)
    if len(members) > MAX_CLASSES:
        raise InputError(
            f"cannot make classes of '{name}', since it names {len(members)}, expected at most {MAX_CLASSES}",
            "Type --scheme with a CSV (code,class,name,color) that gathers them.",
        )
    for text in spelling.values():
        if not re.fullmatch(_PATTERNS["name"][0], text):
            raise InputError(
                f"cannot make a class of {text[:40]!r} in '{name}', expected {_PATTERNS['name'][1]}",
                "Type --scheme with a CSV (code,class,name,color) that gives it a name.",
            )
    # A text field has no order of its own, and a file's order changes when it is edited.
    order = sorted(members) if all(isinstance(code, str) for code in names) else list(members)
    given: dict[Code, str] = dict((colors or {}).items())
    shown = _colored([spelling[key] for key in order], [given.get(members[key][0]) for key in order])
    classes: dict[Code, int] = {}
    land_cover = []
    for number, (key, color) in enumerate(zip(order, shown, strict=True), start=1):
        classes |= {plain(code) if isinstance(code, str) else code: number for code in members[key]}
        land_cover.append(LandCoverClass(number, spelling[key], color, tuple(members[key])))
    hint = "Type --scheme with a CSV (code,class,name,color) that has a row for each code."
    return Scheme(name, Legend(name, tuple(land_cover)), classes, hint=hint)


def _rows_of(path: str, columns: tuple[str, ...] = _COLUMNS) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a table with at least these columns."""
    hint = f"Let the first line be {','.join(_COLUMNS)}."
    header, rows = read_rows(path, "the scheme", hint, ",;")
    if "colour" in header:
        header = ["color" if name == "colour" else name for name in header]
        rows = [(line, dict(zip(header, row.values(), strict=False))) for line, row in rows]
    missing = [c for c in columns if c not in header]
    if missing:
        raise InputError(
            f"cannot use the scheme '{path}', since its first line is '{','.join(header)[:80]}' and lacks "
            f"{', '.join(missing)}",
            hint,
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise _bad_row(path, line, "the number of values differs", f"{len(header)} values")
    return [(line, {k: v.strip() for k, v in row.items()}) for line, row in rows if any(row.values())]


def _code_and_class(path: str, line: int, row: dict[str, str]) -> tuple[Code | None, int]:
    text, number = row["code"], row["class"].lower()
    ignored = number in ("", "ignore")
    if (text or ignored) and not re.fullmatch(_PATTERNS["name"][0], text):
        raise _bad_row(path, line, f"the code is {text[:40]!r}", "an integer, or a text")
    code = (int(text) if is_integer(text) else plain(text)) if text else None
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


def _colored(names: Sequence[str], given: Sequence[str | None]) -> list[str]:
    """Return the colours of classes: the given one, else one that suits a word of the name, else a spare one.

    Examples
    --------
    >>> _colored(["Bog", "Inland water", "Fields", "Lake", "Other"], [None, "#0072b2", None, None, None])
    ['#56b4e9', '#0072b2', '#f0e442', '#e69f00', '#009e73']
    """
    colors = [color and color.lower() for color in given]
    for i, name in enumerate(names):
        words = {*re.findall(r"[a-z]+", plain(name))}
        suited = (c for c, meant in _WORDS_OF_COLOR.items() if words & {*meant.split()} and c not in colors)
        colors[i] = colors[i] or next(suited, None)
    spare = (color for number in itertools.count(1) if (color := _spare_color(number)) not in colors)
    return [color or next(spare) for color in colors]


def _spare_color(number: int) -> str:
    """Return a default colour: of `PALETTE`, and beyond it hues a golden angle apart."""
    if number <= len(PALETTE):
        return PALETTE[number - 1]
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


def _listed(codes: Iterable[object]) -> str:
    shown = [str(c) for c in codes]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _ranges(codes: Iterable[int]) -> str:
    """Return codes as ranges: ``1..13, 255``."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in ranges)
