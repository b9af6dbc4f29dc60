"""Codec between frozen dataclasses and JSON: schema, writing and reading follow from the types of the fields.

Fields hold int, float, str, bool, None, Fraction, dataclasses, dictionaries, tuples of these, and classes
with their own ``SCHEMA``, `to_json` and `from_json`. ``Annotated[int, limits(minimum=1)]`` adds keywords of
JSON Schema; `REQUIRED` beside them makes a field with a default required in documents.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

REQUIRED = "required"

Limits = tuple[tuple[str, Any], ...]  # keywords of JSON Schema and their values

_MISSING = dataclasses.MISSING
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}

_FRACTION = {"type": "string", "pattern": "^-?[0-9]{1,400}(/[1-9][0-9]{0,400})?$"}


def limits(**keywords: Any) -> Limits:
    """Return keywords of JSON Schema as a hashable annotation."""
    return tuple(keywords.items())


class Jsonable:
    """Base of dataclasses that are written to documents."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data, the inverse of `from_json`."""
        return {name: _plain(getattr(self, name)) for name in _types_of(type(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return an object from data that fit `schema_of` this class."""
        hints = _types_of(cls)
        return cls(**{name: _value(hints[name], item) for name, item in data.items()})


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type; it allows only the fields of a dataclass."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        keywords = [item for annotation in arguments[1:] if annotation != REQUIRED for item in annotation]
        return schema_of(arguments[0]) | {k: list(v) if isinstance(v, tuple) else v for k, v in keywords}
    if hasattr(kind, "SCHEMA"):
        return dict(kind.SCHEMA)
    if dataclasses.is_dataclass(kind):
        hints = _types_of(kind)
        needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is _MISSING}
        return {
            "type": "object",
            "required": [n for n, hint in hints.items() if n in needed or REQUIRED in get_args(hint)],
            "additionalProperties": False,
            "properties": {name: schema_of(hint) for name, hint in hints.items()},
        }
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is dict:
        values = {} if arguments[1] is Any else {"additionalProperties": schema_of(arguments[1])}
        return {"type": "object"} | values
    if origin in (Union, types.UnionType):
        return {"oneOf": [schema_of(argument) for argument in arguments]}
    return dict(_FRACTION) if kind is Fraction else {"type": _TYPES[kind]}


_hints_of = functools.cache(functools.partial(get_type_hints, include_extras=True))


def _types_of(kind: Any) -> dict[str, Any]:
    """Return the type of each field, with its annotations."""
    hints = _hints_of(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value


def _value(kind: Any, data: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _value(arguments[0], data)
    if origin in (Union, types.UnionType):
        return _value(next(arm for arm in arguments if _fits(arm, data)), data)
    if origin is tuple:
        return tuple(_value(arguments[0], item) for item in data)
    if hasattr(kind, "from_json"):
        return kind.from_json(data)
    return kind(data) if kind in (int, float, str, Fraction) else data


def _fits(kind: Any, data: Any) -> bool:
    """True if one type of a union is that of the data: null, an array, an object or a value."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if data is None or kind is types.NoneType:
        return data is None and kind is types.NoneType
    if isinstance(data, list):
        return get_origin(kind) is tuple
    if isinstance(data, str) or kind is str:
        return isinstance(data, str) and kind is str
    if isinstance(data, dict) and dataclasses.is_dataclass(kind):
        return set(schema_of(kind)["required"]) <= data.keys() <= _types_of(kind).keys()
    return isinstance(data, dict) == (get_origin(kind) is dict or dataclasses.is_dataclass(kind))
