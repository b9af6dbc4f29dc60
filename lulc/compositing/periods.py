"""Spans of days: parsed from options, and split into months, seasons or years."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from lulc.core.schema import InputError

Span = tuple[datetime.date, datetime.date]
"""First and last day."""

SEASONS = ("winter", "spring", "summer", "autumn")
"""Meteorological seasons; a winter starts in December and is named by the year in which it ends."""


def day(text: str) -> datetime.date:
    """Parse a day such as ``2024-06-01``."""
    try:
        return datetime.date.fromisoformat(text.strip())
    except ValueError as error:
        raise InputError(f"cannot use '{text[:40]}' as a day, expected one as in 2024-06-01") from error


def parse(text: str) -> Span:
    """Parse one day or a span such as ``2024-06-01/2024-08-31``."""
    first, _, last = text.partition("/")
    span = day(first), day(last or first)
    if span[0] > span[1]:
        raise InputError(f"cannot use the dates {text}, since the first is later than the last")
    return span


def span_of(text: str, near: Span) -> Span | None:
    """Return the days of a span or season; None for a path.

    A season is that of the year in which the span `near` begins.

    Examples
    --------
    >>> [one.isoformat() for one in span_of("winter", parse("2024-06-01/2024-08-31"))]
    ['2023-12-01', '2024-02-29']
    """
    if text in SEASONS:
        begin = 12 * near[0].year + 3 * SEASONS.index(text) - 1
        first, after = (datetime.date(months // 12, months % 12 + 1, 1) for months in (begin, begin + 3))
        return first, after - datetime.timedelta(1)
    return parse(text) if re.fullmatch(r"\d{4}-\d\d-\d\d(/\d{4}-\d\d-\d\d)?", text) else None


def split(span: Span, every: str) -> Iterator[tuple[str, Span]]:
    """Split a span into calendar months, seasons or years; yield their names and days.

    Examples
    --------
    >>> [name for name, _ in split(parse("2023-11-15/2024-04-10"), "season")]
    ['2023-autumn', '2024-winter', '2024-spring']
    """
    if every == "all":
        yield "", span
        return
    first = span[0]
    while first <= span[1]:
        last = first
        while last < span[1] and _name(last + datetime.timedelta(1), every) == _name(first, every):
            last += datetime.timedelta(1)
        yield _name(first, every), (first, last)
        first = last + datetime.timedelta(1)


def _name(date: datetime.date, every: str) -> str:
    if every == "year":
        return f"{date.year}"
    if every == "month":
        return f"{date.year}-{date.month:02d}"
    return f"{date.year + int(date.month == 12)}-{SEASONS[date.month % 12 // 3]}"
