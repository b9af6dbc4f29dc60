"""Options in a YAML file: reading and writing the values of a config.

A value in the file is read as if it were typed on the command line. Nothing in the file is executed: it may
hold only names, plain values and lists of them.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lulc.core.options import KINDS, nearest, value_type
from lulc.core.schema import InputError

Texts = dict[str, str | list[str] | None]  # options by name, as the file writes their values

UPGRADERS: tuple[Callable[[Texts], Texts], ...] = ()
"""The n-th converts the content of a file of format version n (from 1) to version n + 1."""

MAX_BYTES = 2**20
MAX_VALUES = 100_000  # values of a file; one that YAML repeats by reference counts each time

_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def format_version() -> int:
    """Return the version of the files that `settings_text` writes."""
    return len(UPGRADERS) + 1


def read_settings(path: str | os.PathLike[str], config: type) -> dict[str, Any]:
    """Read values of the fields of `config` from a YAML file with options by name.

    The file may have a ``format_version``; the default is the newest.

    Raises InputError if the file can't be read, is no mapping of options, has a newer version, or a name
    or value in it is invalid.
    """
    texts = _read_texts(Path(path))
    version = texts.pop("format_version", str(format_version()))
    newest = format_version()
    if not isinstance(version, str) or not version.isdecimal() or not 1 <= int(version) <= newest:
        raise InputError(
            f"cannot use the options in '{path}', since its format version is {version}, "
            f"expected 1 to {newest}",
            "If it was written by a newer version of this toolkit, upgrade lulc.",
        )
    for upgrade in UPGRADERS[int(version) - 1 :]:
        texts = upgrade(texts)
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)
    values = {}
    for name, text in texts.items():
        field = fields.get(name.replace("-", "_"))
        if field is None:
            hint = "See --help; --print-config writes a file with all options."
            if similar := nearest(name, fields):
                hint = f"Did you mean '{similar.replace('_', '-')}'?"
            raise InputError(
                f"cannot use the options in '{path}', since '{name}' is no option of this command", hint
            )
        if text is None and field.default is dataclasses.MISSING:
            continue
        values[field.name] = _value(text, field, hints[field.name], path)
    return values


def settings_text(values: Mapping[str, Any], config: type) -> str:
    """Return a settings file with the help of each option; required options without a value are comments."""
    import yaml

    lines = [f"format_version: {format_version()}"]
    for field in dataclasses.fields(config):
        help_ = field.metadata["help"].replace("%%", "%")
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        recipe = "; null: from the recipe" if field.metadata["recipes"] else ""
        lines.append(f"\n# {help_}{unit}{recipe}")
        name = field.name.replace("_", "-")
        value = values.get(field.name)
        if value in (None, []) and field.default is dataclasses.MISSING:
            lines.append(f"# {name}: {field.metadata['metavar'] or '...'}")
            continue
        plain = list(value) if isinstance(value, tuple) else value
        lines.append(f"{name}: {yaml.safe_dump(plain, default_flow_style=True, width=1e6).split(chr(10))[0]}")
    return "\n".join(lines) + "\n"


_WHAT = "the options"
_FORM = "Write one option a line, 'epochs: 8'; --print-config shows the form."


def _read_texts(path: Path) -> Texts:
    """Read names and plain values or lists of a YAML file."""
    import yaml

    root = _compose(path, _WHAT, _FORM)
    texts: Texts = {}
    for key, node in root.value if isinstance(root, yaml.MappingNode) else [(root, None)]:
        if node is None or not isinstance(key, yaml.ScalarNode):
            raise _unreadable(path, _WHAT, "it has no names of options, expected each name once", _FORM)
        if key.value in texts:
            raise _unreadable(path, _WHAT, f"it has '{key.value}' twice, expected each name once", _FORM)
        texts[key.value] = _text(node, key.value, path)
    return texts


def read_nested(path: Path, what: str, form: str) -> Any:
    """Read the mappings, lists and plain values of a YAML file.

    Messages name the content by `what`, and show `form` as the hint.

    Raises InputError if the file is missing, too large or no YAML, a name stands twice, or a value has
    another type.
    """
    import yaml

    left = MAX_VALUES

    def plain(node: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _unreadable(path, what, f"it has more than {MAX_VALUES} values", form)
        if isinstance(node, yaml.SequenceNode):
            return [plain(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            names = [key.value if isinstance(key, yaml.ScalarNode) else None for key, _ in node.value]
            often = Counter(names)
            wrong = next((name for name in names if often[name] > 1 or not isinstance(name, str)), "")
            if wrong != "":
                raise _unreadable(path, what, f"it has '{wrong}' twice or no names", form)
            return {name: plain(item) for name, (_, item) in zip(names, node.value, strict=True)}
        kind = _SCALARS.get(node.tag.removeprefix("tag:yaml.org,2002:"))
        try:
            return kind(node.value) if kind else node.value
        except (ValueError, KeyError) as error:
            raise _unreadable(path, what, f"'{node.value[:40]}' is no plain value", form) from error

    try:
        return plain(_compose(path, what, form))
    except RecursionError as error:
        raise _unreadable(path, what, "its values nest too deep", form) from error


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: _SWITCHES[text.lower()],
    "int": int,
    "float": float,
}


def _unreadable(path: Path, what: str, problem: str, form: str) -> InputError:
    return InputError(f"cannot read {what} in '{path}', since {problem}", form)


def _compose(path: Path, what: str, form: str) -> Any:
    """Return the root node of a YAML file."""
    import yaml

    if not path.is_file():
        raise InputError(f"cannot read {what}, since there is no file '{path}'", "Check the path.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise _unreadable(path, what, f"it has {size} bytes, expected at most {MAX_BYTES}", form)
    try:
        text = path.read_text(encoding="utf-8")
        if sum(map(text.count, ",:[{\n")) > MAX_VALUES:
            raise _unreadable(path, what, f"it has more than {MAX_VALUES} values", form)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise _unreadable(path, what, f"it is not valid YAML ({problem})", form) from error


def _text(node: Any, name: str, path: Path) -> str | list[str] | None:
    """Return the value of a node: a text, a list of texts, or None for null."""
    import yaml

    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(item, yaml.ScalarNode) for item in items):
        line = node.start_mark.line + 1
        problem = f"line {line} has a nested value for '{name}', expected one value or a list of values"
        raise _unreadable(path, _WHAT, problem, "Write lists as [a, b].")
    if isinstance(node, yaml.SequenceNode):
        return [item.value for item in items]
    return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)


def _value(
    text: str | list[str] | None, field: dataclasses.Field[Any], hint: Any, path: str | os.PathLike[str]
) -> Any:
    """Convert the text in a settings file to the type of its field."""
    if text is None:
        return field.default
    base, many = value_type(hint)
    words = text if isinstance(text, list) else [text]
    choices = field.metadata["choices"]
    expected = f"one of {', '.join(choices)}" if choices else KINDS[base]
    try:
        values = tuple(_SWITCHES[w.lower()] if base is bool else base(w) for w in words)
        if (isinstance(text, list) and many is None) or (isinstance(many, int) and len(values) != many):
            expected = f"{many or 1} of it"
            raise ValueError
        if choices and not set(values) <= set(choices):
            raise ValueError
    except (ValueError, KeyError) as error:
        name = field.name.replace("_", "-")
        raise InputError(
            f"cannot use the options in '{path}', since '{name}' is {text!r}, expected {expected}",
            f"See the help of --{name}.",
        ) from error
    return values[0] if many is None else values
