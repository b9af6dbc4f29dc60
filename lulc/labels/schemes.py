"""Schemes: tables that send each code of a label source to one class, or to ignore.

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
"""Colours of classes without one: those of Okabe and Ito (2008), then colours far from all before them for
normal sight, deuteranopia and protanopia."""

_MEANT: Mapping[str, frozenset[str]] = {
    color: frozenset(words.split())
    for color, words in {
        "#0072b2": "water waters lake lakes river rivers sea ocean",
        "#009e73": "forest forests tree trees wood woods woodland",
        "#d55e00": "built urban town towns city artificial settlement settlements",
        "#f0e442": "crop crops cropland field fields arable farmland agriculture agricultural",
        "#96b569": "grass grassland grasslands meadow meadows pasture pastures",
        "#e69f00": "bare soil sand rock rocks",
        "#56b4e9": "wetland wetlands marsh marshes bog bogs swamp",
    }.items()
}
"""Colours of `PALETTE` that classes take whose names have one of these words."""

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
        Code to CORINE level-1 group 1..5, where the code tells it; else its class does.
    by_species
        Codes whose class is that of the tree species with the larger volume.
    hint
        What to type when a code is unknown.
    tell_codes_apart
        True where a source may hold grid codes or three-digit codes and shows by itself which.
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
        """Class number of a code, 255 = ignore; None for a code that the scheme doesn't know.

        A text stands for itself, for the integer that it spells, or for the class of that name.
        """
        if isinstance(code, int):
            return self.classes.get(code)
        text = plain(code)
        if text in self.classes:
            return self.classes[text]
        if is_integer(text):
            return self.classes.get(int(text))
        return self._named.get(text)

    def knows(self, code: Code) -> bool:
        """True where the code has a class, or is ignored."""
        return self.class_of(code) is not None

    def bind(self, names: Mapping[int, str], *, indexed: bool = False) -> Scheme:
        """Return the scheme for a source that names its codes.

        Parameters
        ----------
        names
            Code to text: the values of a text field by their index, or a raster's value table.
        indexed
            True where the integers are mere indices of the texts.
        """
        classes: dict[Code, int] = {} if indexed else dict(self.classes)
        for code, text in names.items():
            number = self.class_of(text)
            if code not in classes and number is not None:
                classes[code] = number
        return dataclasses.replace(self, classes=classes, names=dict(names) if indexed else {})

    @cached_property
    def _named(self) -> dict[str, int]:
        return {plain(c.name): c.number for c in self.legend.classes}

    def remap(
        self, codes: np.ndarray, pine: np.ndarray | None = None, spruce: np.ndarray | None = None
    ) -> np.ndarray:
        """Class numbers of an array of codes.

        Raises InputError if a code is unknown; lists the unknown codes with their pixel counts.

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
            shown = ", ".join(f"{self._shown(c)} ({n} px)" for c, n in list(unknown.items())[:30])
            more = f" and {len(unknown) - 30} more" if len(unknown) > 30 else ""
            raise InputError(
                f"cannot remap labels by '{self.name}', since {where} has the unknown codes "
                f"{shown}{more}, expected {self._expected()}",
                self.hint,
            )
        if self.tell_codes_apart:
            _check_european({c for c, n in counts.items() if n}, where)

    def _shown(self, code: int) -> str:
        return repr(self.names[code]) if code in self.names else str(code)

    def _expected(self) -> str:
        if not self.names:
            return _ranges(c for c in self.classes if isinstance(c, int))
        return f"texts such as {_listed(repr(name) for name in self.legend.names)}"

    def _look_up(self, codes: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        keys, values = table
        places = np.searchsorted(keys, codes)
        np.minimum(places, len(keys) - 1, out=places)
        if not np.array_equal(keys[places], codes):
            self.check(count_codes(codes))
        return np.asarray(values[places])

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
    """Return a text as codes are compared: spaces, case and the composition of letters don't count.

    Examples
    --------
    >>> plain("  Mixed   Forest ")
    'mixed forest'
    """
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def is_integer(text: str) -> bool:
    """True for the digits of an integer of at most nine digits, with or without a sign.

    Examples
    --------
    >>> is_integer("-12"), is_integer("1.1.2")
    (True, False)
    """
    return re.fullmatch(r"[+-]?[0-9]{1,9}", text) is not None


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
    level2, level3 = (_corine_of(level) for level in (2, 3))
    groups = {code: number for number, code in enumerate(level2, start=1)}
    codes: tuple[int, ...] = ()
    rows = _rows_within("kaakonkulma-13")
    if legend.names == tuple(row["name"] for row in rows):
        codes = tuple(int(row["level2"]) for row in rows)
    elif legend.names == tuple(name for name, _ in level3.values()):
        codes = tuple(code // 10 for code in level3)
    elif legend.names == tuple(name for name, _ in level2.values()):
        codes = tuple(level2)
    return np.array([groups[code] for code in codes] or [0] * len(legend), dtype=np.uint8)


def load_scheme(name_or_csv: str, codes: str = "auto") -> Scheme:
    """Return the scheme of that name, or the one in a user's table.

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
    return Legend(
        "kaakonkulma-13",
        tuple(
            LandCoverClass(
                number, row["name"], row["color"],
                tuple(map(int, row["finnish"].split())) if finnish else (number,), int(row["level1"]),
            )
            for number, row in enumerate(_rows_within("kaakonkulma-13"), start=1)
        ),
    )  # fmt: skip


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
    rows = _rows_within("corine")
    return {int(r["code"]): (r["name"], r["color"]) for r in rows if len(r["code"]) == level}


@cache
def _rows_within(name: str) -> list[dict[str, str]]:
    """Rows of a table of this package."""
    return [row for _, row in _rows_of(str(TABLES / f"{name}.csv"), ())]


def _european(name: str, codes: str) -> Scheme:
    level = int(name[-1])
    level3 = list(_corine_of(3))
    meaning: dict[int, int] = {}
    nodata: set[int] = set()
    if codes in ("auto", "grid"):
        meaning |= dict(enumerate(level3, start=1))
        nodata |= set(_GRID_NODATA)
    if codes in ("auto", "three-digit"):
        meaning |= {code: code for code in level3}
        nodata |= set(_THREE_DIGIT_NODATA)
    groups = {code: code // 10 ** (3 - level) for code in level3}
    named = _corine_of(level)
    legend = Legend(
        name,
        tuple(
            LandCoverClass(
                number, *named[group], tuple(c for c in level3 if groups[c] == group), int(str(group)[0])
            )
            for number, group in enumerate(named, start=1)
        ),
    )
    numbers = {group: number for number, group in enumerate(named, start=1)}
    classes: dict[Code, int] = {code: numbers[groups[clc]] for code, clc in meaning.items()}
    classes |= dict.fromkeys(nodata, IGNORE)
    hint = (
        "Type --scheme clc-fi-13 if these are Finnish codes 1..49, or --scheme with a CSV "
        "(code,class,name,color) that has a row for each code; leave class empty to ignore it."
    )
    return Scheme(name, legend, classes, hint=hint, tell_codes_apart=codes == "auto")


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
    ``color`` (``#rrggbb``) of the class. Name and colour stand on one row of the class at least, and agree
    where repeated; a colour may be left out. A row without a code declares a class that these labels lack
    and others of the same legend have. A further column ``level1`` (1..5) gives CORINE's level 1. The
    separator is a comma or a semicolon, the encoding UTF-8.

    Raises
    ------
    InputError
        With the line number, if a row is not as above, or classes are not numbered 1..N without gaps.
    """
    rows = _rows_of(path)
    classes: dict[Code, int] = {}
    spelled: dict[Code, Code] = {}
    found: dict[int, dict[str, str]] = {}
    for line, row in rows:
        code, number = _code_and_class(path, line, row)
        if code in classes:
            raise _bad_row(path, line, f"code {code} is there twice", "each code once")
        if code is not None:
            classes[code] = number
            spelled[code] = row["code"] if isinstance(code, str) else code
        if number != IGNORE:
            _merge_class(path, line, found.setdefault(number, {}), row)
    if not found or sorted(found) != list(range(1, len(found) + 1)):
        raise InputError(
            f"cannot use the scheme '{path}', since its classes are "
            f"{_listed(sorted(found)) or 'all ignored'}, expected 1..N without gaps",
            "Number the classes 1, 2, 3, ... in the column 'class'.",
        )
    numbers = sorted(found)
    shown = _colored([found[n].get("name", "") for n in numbers], [found[n].get("color") for n in numbers])
    for number, color in zip(numbers, shown, strict=True):
        found[number]["color"] = color
    legend = Legend(
        Path(path).stem,
        tuple(
            _class_from(path, n, found[n], [spelled[c] for c, k in classes.items() if k == n])
            for n in sorted(found)
        ),
    )
    hint = f"Add a row for each code to '{path}'; leave the class empty to ignore it."
    return Scheme(Path(path).stem, legend, classes, hint=hint)


def write_scheme(scheme: Scheme, path: Path) -> bool:
    """Write a scheme as a table that `read_scheme` reads: a start for a user's own.

    Returns
    -------
    bool
        False where a file of other content is there already, which may be a user's and is left.
    """
    names = {plain(s): s for c in scheme.legend.classes for s in c.sources if isinstance(s, str)}
    codes = sorted(scheme.classes, key=lambda code: (isinstance(code, str), code))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, "level1"])
    written = set()
    for code in codes:
        number = scheme.classes[code]
        spelled = names.get(code, code) if isinstance(code, str) else code
        if number == IGNORE:
            writer.writerow([spelled, "ignore", "", "", ""])
            continue
        written.add(number)
        writer.writerow([spelled, *_class_cells(scheme.legend.classes[number - 1])])
    for land_cover in scheme.legend.classes:
        if land_cover.number not in written:
            writer.writerow(["", *_class_cells(land_cover)])
    content = text.getvalue().encode()
    if path.exists():
        return path.read_bytes() == content
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return True


def _class_cells(land_cover: LandCoverClass) -> tuple[int, str, str, int | str]:
    return (land_cover.number, land_cover.name, land_cover.color, land_cover.level1 or "")


def scheme_of_names(
    name: str, names: Mapping[int, str] | Mapping[str, str], colors: Mapping[int, str] | None = None
) -> Scheme:
    """Return the scheme of a source that names its classes itself.

    Raises InputError if there are too many classes, or a name can't be printed.

    Parameters
    ----------
    name
        Of the legend.
    names
        Code to name of the class; codes of one name make one class. A text code names itself.
    colors
        Integer code to ``#rrggbb``; `PALETTE` where there is none.
    """
    first: dict[str, str] = {}
    for text in names.values():
        first.setdefault(plain(text), " ".join(text.split()))
    if len(first) > MAX_CLASSES:
        raise InputError(
            f"cannot make classes of '{name}', since it names {len(first)}, expected at most {MAX_CLASSES}",
            "Type --scheme with a CSV (code,class,name,color) that gathers them.",
        )
    for text in first.values():
        if not re.fullmatch(_PATTERNS["name"][0], text):
            raise InputError(
                f"cannot make a class of {text[:40]!r} in '{name}', expected {_PATTERNS['name'][1]}",
                "Type --scheme with a CSV (code,class,name,color) that gives it a name.",
            )
    members: dict[str, list[Code]] = {}
    given: dict[Code, str] = dict((colors or {}).items())
    for code, text in names.items():
        members.setdefault(plain(text), []).append(code)
    # A text field has no order of its own, and a file's order changes when it is edited.
    order = sorted(members) if all(isinstance(code, str) for code in names) else list(members)
    classes = {
        plain(code) if isinstance(code, str) else code: number
        for number, key in enumerate(order, start=1)
        for code in members[key]
    }
    shown = _colored([first[key] for key in order], [given.get(members[key][0]) for key in order])
    legend = Legend(name, tuple(
        LandCoverClass(number, first[key], shown[number - 1], tuple(members[key]))
        for number, key in enumerate(order, start=1)
    ))  # fmt: skip
    hint = "Type --scheme with a CSV (code,class,name,color) that has a row for each code."
    return Scheme(name, legend, classes, hint=hint)


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


def _class_from(path: str, number: int, known: dict[str, str], codes: Iterable[Code]) -> LandCoverClass:
    if "name" not in known:
        raise InputError(
            f"cannot use the scheme '{path}', since class {number} has no name",
            "Fill in the column 'name' on one row of each class.",
        )
    sources = tuple(sorted(codes, key=lambda code: (isinstance(code, str), code)))
    return LandCoverClass(number, known["name"], known["color"].lower(), sources, int(known.get("level1", 0)))


def _colored(names: Sequence[str], given: Sequence[str | None]) -> list[str]:
    """Return the colours of classes: those given, else by the words of their names, else spare ones.

    Examples
    --------
    >>> _colored(["Bog", "Inland water", "Fields", "Lake", "Other"], [None, "#0072b2", None, None, None])
    ['#56b4e9', '#0072b2', '#f0e442', '#e69f00', '#009e73']
    """
    colors = [color and color.lower() for color in given]
    for i, name in enumerate(names):
        words = {*re.findall(r"[a-z]+", plain(name))}
        free = (color for color, meant in _MEANT.items() if words & meant and color not in colors)
        colors[i] = colors[i] or next(free, None)
    spare = (color for number in itertools.count(1) if (color := _spare_color(number)) not in colors)
    return [color or next(spare) for color in colors]


def _spare_color(number: int) -> str:
    """Return a colour for a class without one; beyond `PALETTE` hues a golden angle apart."""
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
