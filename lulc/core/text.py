"""Text that may come from a stranger's file, made safe for terminals, XML, JSON and spreadsheets."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = frozenset("=+-@＝＋－＠")
"""First characters by which spreadsheets know a formula, in both widths."""

_JOINERS = "\u200c\u200d"
"""Invisible, but part of the spelling in Persian and the scripts of India."""


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return the text with control characters, bidirectional overrides and the like as escapes.

    Parameters
    ----------
    lines
        True for a text of several lines, whose line breaks and tabs are its own.

    Examples
    --------
    >>> visible("Forest\x1b[2J")
    'Forest\\x1b[2J'
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if _is_plain(c) or c in kept else ascii(c)[1:-1] for c in text)


def unbroken(text: str) -> str:
    r"""Return a message in which a name or value from a file begins no line of its own.

    Only indented lines, and those that say what was expected, are the message's own.

    Examples
    --------
    >>> unbroken("cannot read 'a\nerror: b', since its grid is\n  EPSG:3067\nexpected another")
    "cannot read 'a\\nerror: b', since its grid is\n  EPSG:3067\nexpected another"
    """
    return _BREAK.sub(lambda found: ascii(found[0])[1:-1], text)


_BREAK = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]|\n(?!\n?  |expected[ \n])")


def printable(text: str) -> str:
    """Return the text without the characters that `visible` escapes, since XML can't hold them."""
    return text if text.isprintable() else "".join(filter(_is_plain, text))


def json_text(data: Any) -> str:
    """Return data as one line of JSON that is safe to print on a terminal."""
    text = json.dumps(data, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def cell(value: Any) -> Any:
    """Return a cell of a CSV table, text led by an apostrophe where a spreadsheet would run it.

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
    """Return a time span with two digits or more.

    Examples
    --------
    >>> duration(0.4), duration(47.3), duration(240), duration(9000)
    ('1 s', '47 s', '4.0 minutes', '2.5 hours')
    """
    if seconds < 99.5:
        return f"{math.ceil(seconds) if seconds < 1 else round(seconds)} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5970 else f"{seconds / 3600:.1f} hours"


def columns(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return rows as lines, the first columns aligned left and the others, which hold numbers, right.

    Examples
    --------
    >>> print(columns([["class", "ha"], ["Water", "12"]]))
    class  ha
    Water  12
    """
    shown = [[visible(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    aligned = [
        [
            text.ljust(width) if i < text_columns else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in shown
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _is_plain(character: str) -> bool:
    """True for what has a place in a line of text, blanks of any width included."""
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in _JOINERS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_names(names: Iterable[str]) -> list[str]:
    """Names of letters, digits and hyphens, each different, as the classification extension asks.

    Examples
    --------
    >>> class_names(["Built-up areas, sparse", "Forêt", "ヨシ", "foret"])
    ['built-up-areas-sparse', 'foret', 'class-3', 'foret-4']
    """
    found: list[str] = []
    for i, name in enumerate(names, start=1):
        # Letters keep their base where they have one: é becomes e.
        letters = unicodedata.normalize("NFKD", name.lower())
        plain = "".join(c for c in letters if not unicodedata.combining(c))
        short = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or f"class-{i}"
        while short in found:
            short = f"{short}-{i}"
        found.append(short)
    return found
