"""Channel sets by name, or from a user's file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lulc.core.channels import (
    CHANNEL_SETS,
    FORMAT_VERSION,
    LIBRARY,
    ChannelDefinition,
    ChannelName,
    ChannelSet,
    Word,
    expanded,
)
from lulc.core.codec import schema_of
from lulc.core.config_file import read_nested
from lulc.core.documents import parse_json, schema_problem
from lulc.core.formula import parse
from lulc.core.schema import InputError
from lulc.rasters.names import canonical_name

_START = "Start from a built-in set: preprocess.py --print-channels sentinel2-10 > channels.yaml"
_ENTRY = schema_of(ChannelDefinition)
_ENTRY["properties"]["name"] = {"type": "string", "maxLength": 100}
_LIST = {"type": "array", "maxItems": 1024, "items": {"type": ["string", "object"]}}
_NAME = {"type": "string", "minLength": 1, "maxLength": 200}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "channels"],
    "additionalProperties": False,
    "properties": {
        "format_version": {"type": "integer"}, "name": _NAME, "channels": _LIST, "inputs": _LIST,
        "dates": schema_of(tuple[Word, ...]) | {"maxItems": 100},
        "rgb": {"type": "array", "minItems": 3, "maxItems": 3, "items": _NAME},
    },
}  # fmt: skip


def load_channels(given: str, dates: Sequence[str] = ()) -> ChannelSet:
    """Return a built-in channel set by name, else the one in a YAML file, with the dates of the rasters.

    The file has ``format_version`` and ``channels``, a list of known names and of definitions
    (`lulc.core.channels.ChannelDefinition`); it may have dates of its own. Raises InputError if there is no
    such set or file, or its content is not as described.
    """
    if given in CHANNEL_SETS:
        return CHANNEL_SETS[given].of_dates(dates)
    if not Path(given).is_file():
        raise InputError(
            f"cannot use --channels {given}, since that is neither a built-in set nor a file, expected "
            f"{', '.join(CHANNEL_SETS)} or a file",
            _START,
        )
    data = read_nested(Path(given), "the channel set", _START)
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise _refusal(
            given, f"its format version is {version}, expected {FORMAT_VERSION}",
            "It was written for a newer version of this toolkit: upgrade lulc.",
        )  # fmt: skip
    if problem := schema_problem(data, _SCHEMA):
        raise _refusal(given, f"{problem}; expected format_version: {FORMAT_VERSION} and a list of channels")
    for entry in (*data["channels"], *data.get("inputs", ())):
        if isinstance(entry, dict) and (problem := schema_problem(entry, _ENTRY)):
            raise _refusal(given, f"of the channel {entry.get('name', '?')} {problem}")
    if version != FORMAT_VERSION:
        raise _refusal(given, f"its format version is {version}, expected format_version: {FORMAT_VERSION}")
    declared = tuple(data.get("dates", ()))
    if declared and not {*dates} <= {*declared}:
        raise _refusal(
            given, f"its dates are {', '.join(declared)}, but the rasters are of {', '.join(dates)}",
            f"Give the rasters of each of its dates: --bands {declared[0]}=FILE",
        )  # fmt: skip
    try:
        channels, inputs = (_definitions(data.get(key, ())) for key in ("channels", "inputs"))
        rgb = [canonical_name(name) or name for name in data.get("rgb", ())]
        return expanded(data.get("name", Path(given).stem), channels, inputs, declared or dates, rgb)
    except InputError as error:
        raise InputError(f"cannot use the channel set '{given}': {error.problem}", error.hint) from error


def set_in_tags(tags: Mapping[str, str]) -> ChannelSet | None:
    """Return the channel set in the tags of a map; None without a usable one."""
    try:
        data = parse_json(tags.get("LULC_CHANNEL_SET", "null"))
        if data is None or schema_problem(data, schema_of(ChannelSet)):
            return None
        return ChannelSet.from_json(data)
    except (ValueError, InputError):
        return None


def _definitions(listed: Sequence[str | Mapping[str, Any]]) -> list[ChannelDefinition]:
    """Return the definitions of entries; a name such as A00..A63 stands for many."""
    definitions = []
    for entry in listed:
        if isinstance(entry, str):
            definitions.append(_known(entry))
        else:
            definitions += [_defined({**entry, "name": name}) for name in names_in(str(entry["name"]))]
    return definitions


def _known(text: str) -> ChannelDefinition:
    """Return the definition of a known channel, which may have a date before its name."""
    date, _, local = text.rpartition("/")
    name = local if local in LIBRARY else canonical_name(local)
    if name is None or name not in LIBRARY:
        raise InputError(
            f"{text} is no channel that is known, expected names among {', '.join(LIBRARY)}",
            f"Write what it is: {{name: {text}, kind: any}}",
        )
    return dataclasses.replace(LIBRARY[name], name=f"{date}/{name}") if date else LIBRARY[name]


def _defined(entry: Mapping[str, Any]) -> ChannelDefinition:
    """Return the definition of an entry, completed by that of a known channel of the same name."""
    if problem := schema_problem(entry["name"], schema_of(ChannelName)):
        raise InputError(
            f"cannot define a channel, since of its name {problem}",
            "Write letters, digits and _, a letter first.",
        )
    low, high = entry.get("minimum"), entry.get("maximum")
    if entry.get("scale") == 0 or (low is not None and high is not None and not low < high):
        raise InputError(
            f"cannot define the channel {entry['name']}, since its scale is 0, or its minimum not below its "
            "maximum",
            "Correct these numbers, or leave them out.",
        )
    known = LIBRARY.get(entry["name"])
    one = ChannelDefinition.from_json({**(known.to_json() if known else {}), **entry})
    if not known and not one.layers and not one.formula:
        one = dataclasses.replace(one, layers=(one.local,))
    if one.formula and not one.unit and "kind" not in entry:
        parse(one.formula)
        one = dataclasses.replace(one, kind="index")
    return one.completed()


def names_in(text: str) -> list[str]:
    """Return the names in a text: ``VV,VH`` has two, ``A08..A11`` four."""
    if "," in text:
        return [name for part in text.split(",") for name in names_in(part.strip())]
    match = re.fullmatch(r"([A-Za-z_]*?)(\d+)\.\.\1(\d+)", text)
    if match is None:
        return [text]
    head, first, last = match.groups()
    if not int(first) <= int(last) <= int(first) + 1023:
        raise InputError(
            f"cannot use the names {text}, since they are none or more than 1024, expected as in A00..A63",
            "Write the smaller number first.",
        )
    return [f"{head}{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def _refusal(path: str, problem: str, hint: str = _START) -> InputError:
    return InputError(f"cannot use the channel set '{path}', since {problem}", hint)
