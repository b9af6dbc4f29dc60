"""Text from untrusted files, made safe for terminals, XML, JSON and spreadsheets."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = frozenset("=+-@＝＋－＠")  # first characters of spreadsheet formulas, in both widths

_JOINERS = "\u200c\u200d"
"""Invisible characters that belong to the spelling in Persian and the scripts of India."""

_BREAK = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]|\n(?!\n?  |expected[ \n])")


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return the text with control characters, bidirectional overrides and the like as escapes.

    `lines` keeps line breaks and tabs.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if _is_plain(c) or c in kept else ascii(c)[1:-1] for c in text)


def unbroken(text: str) -> str:
    r"""Escape the line breaks of a message that may come from names or values in a file.

    Line breaks before indented lines and before "expected" belong to the message itself.

    Examples
    --------
    >>> unbroken("cannot read 'a\nerror: b', since its grid is\n  EPSG:3067\nexpected another")
    "cannot read 'a\\nerror: b', since its grid is\n  EPSG:3067\nexpected another"
    """
    return _BREAK.sub(lambda match: ascii(match[0])[1:-1], text)


def printable(text: str) -> str:
    """Return the text without the characters that `visible` escapes, for XML."""
    return text if text.isprintable() else "".join(filter(_is_plain, text))


def json_text(data: Any) -> str:
    """Return data as one line of JSON that is safe for a terminal."""
    text = json.dumps(data, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def cell(value: Any) -> Any:
    """Return a cell of a CSV table; text that a spreadsheet would run as a formula gets an apostrophe.

    Examples
    --------
    >>> cell("=1+1"), cell("-0.5"), cell(-0.5)
    ("'=1+1", '-0.5', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    runs = text.lstrip()[:1] in _FORMULA and not _is_number(text)
    return f"'{text}" if runs else text


def duration(seconds: float) -> str:
    """Return a time span in words, with two digits or more.

    Examples
    --------
    >>> duration(0.4), duration(47.3), duration(240), duration(9000)
    ('1 s', '47 s', '4.0 minutes', '2.5 hours')
    """
    if seconds < 99.5:
        return f"{math.ceil(seconds) if seconds < 1 else round(seconds)} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5970 else f"{seconds / 3600:.1f} hours"


def columns(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return rows as lines, with text columns first, aligned left, then numbers, aligned right."""
    shown = [[visible(text) for text in row] for row in rows]
    aligned = []
    for i, column in enumerate(zip(*shown, strict=True)):
        width = max(map(len, column))
        aligned.append([text.ljust(width) if i < text_columns else text.rjust(width) for text in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*aligned, strict=True))


def _is_plain(character: str) -> bool:
    """True for printable characters and spaces of any width."""
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in _JOINERS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_names(names: Iterable[str]) -> list[str]:
    """Return different names of letters, digits and hyphens, as STAC's classification extension requires.

    Examples
    --------
    >>> class_names(["Built-up areas, sparse", "Forêt", "ヨシ", "foret"])
    ['built-up-areas-sparse', 'foret', 'class-3', 'foret-4']
    """
    short_names: list[str] = []
    for i, name in enumerate(names, start=1):
        # é becomes e.
        letters = unicodedata.normalize("NFKD", name.lower())
        plain = "".join(c for c in letters if not unicodedata.combining(c))
        short = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or f"class-{i}"
        while short in short_names:
            short = f"{short}-{i}"
        short_names.append(short)
    return short_names
