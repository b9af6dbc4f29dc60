"""JSON documents (model cards, manifests, journals): bounded, checked against a schema, versioned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema

from lulc.schema import InputError
from lulc.storage import write_atomically

MAX_BYTES = 64 * 2**20
"""No document of the toolkit comes near this; a larger one is refused before it is read."""


def read_document(
    path: str | os.PathLike[str], schema: dict[str, Any], kind: str, version: int
) -> dict[str, Any]:
    """Read a JSON document and check it.

    Parameters
    ----------
    path
        File to read.
    schema
        JSON Schema (draft 2020-12) of the document.
    kind
        What it is, for messages ("model card").
    version
        Highest ``format_version`` that this program knows.

    Raises
    ------
    InputError
        If the file is missing, too large, no JSON, of a newer version, or not as the schema says.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read the {kind}, since there is no file '{path}'", "Check the path.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(
            f"cannot read the {kind} '{path}', since it has {size} bytes, expected at most {MAX_BYTES}",
            "It is damaged or was not written by this toolkit; make it again.",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read the {kind} '{path}', since it is not valid JSON ({error})",
            "It is damaged or was not written by this toolkit; make it again.",
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
    error = jsonschema.Draft202012Validator(schema).iter_errors(data)
    first = next(iter(error), None)
    if first is not None:
        place = "/".join(str(p) for p in first.absolute_path) or "the top level"
        raise InputError(
            f"cannot use the {kind} '{where}', since {place} does not fit: {first.message[:200]}",
            "It is damaged or was not written by this toolkit; make it again.",
        )


def write_document(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write `data` as JSON, whole or not at all; equal data give equal bytes."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the value {name} is not allowed")
