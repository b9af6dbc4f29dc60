"""JSON documents (model cards, manifests, journals) and CSV tables: bounded, checked, versioned."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.core.text import cell

MAX_BYTES = 64 * 2**20  # bytes of a document, checked before it is read
MAX_VALUES = 2_000_000  # values of a document; Python needs a hundred bytes for each

MAX_TABLE_BYTES, MAX_COLUMNS = 10_000_000, 100
"""Size of a CSV table; 100,000 chips have a tenth of these bytes."""

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that control a terminal, end a C string, or are no text."""

_DAMAGED = "It is damaged or was not written by this toolkit; make it again."


def read_document(
    path: str | os.PathLike[str], schema: dict[str, Any], kind: str, version: int
) -> dict[str, Any]:
    """Read a JSON document and check it.

    Raises InputError if the file is missing, too large, no JSON, of a newer version, or does not fit the
    schema.

    Parameters
    ----------
    kind
        Kind of document, for messages ("model card").
    version
        Highest known ``format_version``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read the {kind}, since there is no file '{path}'", "Check the path.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(
            f"cannot read the {kind} '{path}', since it has {size} bytes, expected at most {MAX_BYTES}",
            _DAMAGED,
        )
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"cannot read the {kind} '{path}', since it is not valid JSON ({error})", _DAMAGED
        ) from error
    found = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found > version:
        raise InputError(
            f"cannot read the {kind} '{path}', since its format version is {found}, "
            f"expected at most {version}",
            "It was written by a newer version of this toolkit: upgrade lulc.",
        )
    check_document(data, schema, kind, str(path))
    return data


def check_document(data: Any, schema: dict[str, Any], kind: str, where: str) -> None:
    """Raise InputError naming the first place of `data` that does not fit `schema`."""
    if problem := schema_problem(data, schema):
        raise InputError(f"cannot use the {kind} '{where}', since {problem}", _DAMAGED)


def schema_problem(data: Any, schema: dict[str, Any]) -> str:
    """Return the first place of `data` that does not fit `schema`, and why; empty where all fits."""
    first = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(data)), None)
    if first is None:
        return ""
    place = "/".join(str(p) for p in first.absolute_path) or "the top level"
    reason = first.message
    return f"{place} does not fit: {reason if len(reason) < 200 else f'{reason[:150]} ... {reason[-45:]}'}"


def write_document(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write `data` as JSON, whole or not at all; equal data give equal bytes."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: str | os.PathLike[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table, whole or not at all, with cells that no spreadsheet runs as formulas."""
    with write_atomically(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)


def append_line(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Append `data` to a journal, a file of JSON lines with checksums; it is on disk on return."""
    line = json.dumps({**data, "checksum": seal_of(data)[:16]}, allow_nan=False)
    with open(path, "a+b") as file:
        # End a line that a crash cut short.
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the entries that `append_line` wrote, without damaged ones; none for a missing file."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        while line := file.readline(MAX_BYTES):
            try:
                data = parse_json(line)
                checksum = data.pop("checksum")
                if checksum == seal_of(data)[:16]:
                    yield data
            except (ValueError, KeyError, TypeError, AttributeError):
                continue


def seal_of(data: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON-ready data, independent of their layout; detects damage, not forgery."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_rows(
    path: str | os.PathLike[str], what: str, hint: str, delimiters: str = ","
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV table: its column names in lower case, and the line number and cells of each row.

    Raises InputError if the file is missing, too large, or no CSV in UTF-8.

    A short row has None in its last cells, and a long row its further cells under the key None.

    Parameters
    ----------
    what, hint
        Name in messages ("the scheme"), and what to do instead.
    delimiters
        Possible delimiters; the most frequent one in the first line is used.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(
            f"cannot read {what} '{path}', since it is no regular file of at most {MAX_TABLE_BYTES} bytes",
            hint,
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
        first = re.split("[\r\n]", text, maxsplit=1)[0]
        delimiter = max(delimiters, key=first.count)
        lines = text.count("\n") + text.count("\r")
        columns = first.count(delimiter) + 1
        if columns > MAX_COLUMNS or lines * columns > MAX_VALUES:
            raise InputError(
                f"cannot read {what} '{path}', since it has {columns} columns in {lines} lines, expected at "
                f"most {MAX_COLUMNS} columns and {MAX_VALUES} cells",
                hint,
            )
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        reader.fieldnames = header = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        return header, [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"cannot read {what} '{path}', since it is no CSV in UTF-8 ({error})",
            "Save the table as 'CSV UTF-8'.",
        ) from error


def parse_json(text: str | bytes, *, foreign: bool = False) -> Any:
    """Parse JSON of bounded size, with finite numbers and without control characters.

    `foreign` also allows NaN, long integers and any character, for documents of other programs.

    Raises ValueError if it is invalid, too large, or nested too deep.
    """
    text = text if isinstance(text, str) else text.decode()
    values = text.count(",") + text.count("[") + text.count("{")
    if values > MAX_VALUES:
        raise ValueError(f"about {values} values, expected at most {MAX_VALUES}")
    try:
        if foreign:
            return json.loads(text)
        data = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_bounded_int
        )
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    # Control characters stand in the text itself or come from its escapes.
    if _FORBIDDEN.search(text) or ("\\" in text and any(map(_FORBIDDEN.search, _strings_of(data)))):
        raise ValueError("it holds control characters")
    return data


def _strings_of(data: Any) -> Iterator[str]:
    waiting = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the value {name} is not allowed")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _bounded_int(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"the number {text[:40]} is too large")
    return int(text)
