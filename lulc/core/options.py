"""Options: fields of a config with default, unit, help and limits, and the check of their values."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import operator
import os
import types
import typing
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from lulc.core.schema import InputError

KINDS: Mapping[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text or a path"
}  # fmt: skip
"""Names of types in messages."""

_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
"""Limits of a number: function of `operator`, and its words in messages."""


def option(
    default: Any, help: str, *, unit: str = "", choices: tuple[str, ...] | None = None,
    metavar: str | None = None, positional: bool = False, group: str = "", endings: tuple[str, ...] = (),
    texts: Mapping[str, str] | None = None, flag: str = "",
    recipes: Mapping[str, Mapping[str, Any]] | None = None, ge: float | None = None, gt: float | None = None,
    le: float | None = None, lt: float | None = None,
) -> Any:  # fmt: skip
    """Return a dataclass field that is also a command-line option.

    Parameters
    ----------
    default
        Default value; ``...`` for a required option.
    metavar
        Placeholder in the help; one word for each of a fixed number of values.
    group
        Heading in the help.
    endings
        Allowed endings of the name of an output, which decide its format; `FOLDER` for a folder.
    texts
        File contents by value; ``--print-OPTION VALUE`` prints one of them.
    flag
        Name on the command line if it isn't the field's, since a positional argument has that name.
    recipes
        Values of the options of each recipe, from which this one is taken if it is open.
    ge, gt, le, lt
        Limits of a number: at least, more than, at most, less than.
    """
    limits = zip(_LIMITS, (ge, gt, le, lt), strict=True)
    metadata = {
        "help": help, "unit": unit, "choices": choices, "metavar": metavar, "positional": positional,
        "group": group, "endings": endings, "texts": texts, "flag": flag, "recipes": recipes,
        "limits": tuple((name, limit) for name, limit in limits if limit is not None),
    }  # fmt: skip
    return field(default=dataclasses.MISSING if default is ... else default, metadata=metadata)


FOLDER = ("",)  # endings of a folder: any but those of `FILE_ENDINGS`

FILE_ENDINGS = (
    ".tif", ".tiff", ".vrt", ".img", ".jp2", ".nc", ".zarr", ".json", ".geojson", ".gpkg", ".shp", ".parquet",
    ".csv", ".qml", ".sld", ".xml", ".html", ".md", ".png", ".jpg", ".pdf", ".npy", ".keras", ".h5", ".hdf5",
    ".onnx", ".zip", ".yaml", ".yml", ".txt", ".log",
)  # fmt: skip
"""Endings that no folder should have."""


def check_ending(path: str, endings: tuple[str, ...], name: str) -> None:
    """Raise InputError if the name of an output has another ending, or a folder has that of a file."""
    stem, ending = os.path.splitext(path.rstrip("/"))
    if endings == FOLDER:
        if ending.lower() in FILE_ENDINGS and not os.path.isdir(path):
            raise InputError(
                f"cannot write a folder under the name '{path}', since {ending} is the ending of a file, "
                "expected a name without it",
                f"A folder name is needed for {name}: type for example {stem}.",
            )
    elif not path.lower().endswith(endings):
        raise InputError(
            f"cannot write '{path}', since its ending is {ending or 'missing'}, expected a name in "
            f"{' or '.join(endings)}",
            f"The ending of {name} decides the format: type for example {stem}{endings[0]}.",
        )


@dataclass(frozen=True)
class Needs:
    """Rule: some options have no effect without another one.

    Parameters
    ----------
    names
        Options, separated by blanks.
    values
        Values of the other option with which they have an effect; any where not given.
    """

    names: str
    other: str
    why: str
    values: tuple[str, ...] = ()

    def check(self, config: Options) -> None:
        other = getattr(config, self.other)
        if other in self.values or (not self.values and is_given(config, self.other)):
            return
        shown, values = _name_in(config, self.other), " or ".join(self.values)
        idle = ", ".join(_name_in(config, name) for name in self.names.split() if is_given(config, name))
        if idle:
            raise InputError(
                f"cannot use {idle} without {f'{shown} {values}'.strip()}, since {self.why}",
                f"Leave {idle} out, or add {' '.join([shown, *self.values[:1]])}.",
            )


@dataclass(frozen=True)
class Excludes:
    """Rule: an option can't be used together with others.

    Parameters
    ----------
    others
        Options, separated by blanks; ``tile=all`` for one value only.
    hint
        What to type instead; ``{out}`` stands for the value of that option.
    """

    name: str
    others: str
    why: str
    hint: str = ""

    def check(self, config: Options) -> None:
        for text in self.others.split():
            other, _, value = text.partition("=")
            both = is_given(config, self.name) and is_given(config, other)
            if both and value in ("", getattr(config, other)):
                name, shown = _name_in(config, self.name), f"{_name_in(config, other)} {value}".strip()
                raise InputError(
                    f"cannot use {name} with {shown}, since {self.why}",
                    self.hint.format_map(vars(config)) or f"Leave {name} or {shown} out.",
                )


Rule = Needs | Excludes


def is_given(config: Options, name: str) -> bool:
    """True if an option differs from its default."""
    return bool(getattr(config, name) != type(config).__dataclass_fields__[name].default)


def _name_in(config: Options, name: str) -> str:
    return shown_name(type(config).__dataclass_fields__[name])


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the configs: converts lists to tuples and paths to texts, and checks every value.

    Raises InputError if a value is invalid, or options break a rule of the class or its bases.
    """

    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __post_init__(self) -> None:
        kind: type = type(self)
        hints = _hints(kind)
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            taken = _checked(value, option, hints[option.name])
            if taken is not value:
                object.__setattr__(self, option.name, taken)
            for path in taken if isinstance(taken, tuple) else (taken,):
                if option.metadata.get("endings") and path is not None:
                    check_ending(path, option.metadata["endings"], shown_name(option))
        for rule in (rule for base in kind.__mro__ for rule in vars(base).get("RULES", ())):
            rule.check(self)


def take(value: Any, hint: Any) -> Any:
    """Convert a value to the type of a config's field: paths to texts, lists to tuples.

    Raises TypeError or ValueError if it has another type or length.

    Parameters
    ----------
    value
        Path, text, number, date, boolean or None, or a list, tuple or array of them. One value stands for
        a list of one.

    Examples
    --------
    >>> from pathlib import Path
    >>> take([Path("a.tif"), "b.tif"], tuple[str, ...])
    ('a.tif', 'b.tif')
    >>> take(64, tuple[int, ...])
    (64,)
    """
    arms = typing.get_args(hint) if _is_union(hint) else (hint,)
    if value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    several = _is_several(value)
    for arm in arms:
        if typing.get_origin(arm) is not tuple:
            if not several:
                return _TAKERS[arm](_plain(value))
            continue
        kinds = typing.get_args(arm)
        items = tuple(value) if several else (value,)
        if kinds[-1] is not Ellipsis and len(kinds) != len(items):
            raise ValueError(value)
        return tuple(_TAKERS[kinds[0]](_plain(item)) for item in items)
    raise TypeError(value)


def value_type(hint: Any) -> tuple[type, str | int | None]:
    """Return the type of a field's values, and their number: None for one value, ``"+"`` for any number."""
    if _is_union(hint):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        return arguments[0], "+" if arguments[-1] is Ellipsis else len(arguments)
    return hint, None


def shown_name(option: dataclasses.Field[Any]) -> str:
    """Return the name of an option as it is typed on the command line."""
    if option.metadata["positional"]:
        return str(option.metadata["metavar"] or option.name.upper())
    return "--" + (option.metadata.get("flag") or option.name).replace("_", "-")


def help_of(option: dataclasses.Field[Any]) -> str:
    """Return help, unit and default of an option for argparse, with % doubled."""
    text = str(option.metadata["help"])
    notes = [option.metadata["unit"]] if option.metadata["unit"] else []
    recipes = {n: _shown(v[option.name]) for n, v in (option.metadata["recipes"] or {}).items()}
    if len(set(recipes.values())) > 1:
        notes.append("by recipe: " + ", ".join(f"{name} {value}" for name, value in recipes.items()))
    elif recipes:
        notes.append(f"default {recipes['default']}")
    elif option.default is not False and option.default not in (dataclasses.MISSING, None, (), ""):
        notes.append(f"default {_shown(option.default)}")
    return f"{text} [{'; '.join(notes)}]" if notes else text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to a mistyped one, or None."""
    return next(iter(difflib.get_close_matches(name.replace("-", "_"), list(known), 1)), None)


def _checked(value: Any, option: dataclasses.Field[Any], hint: Any) -> Any:
    """Return the value in the type of the field; a field with the default None also accepts None."""
    if value is None and option.default is None:
        return None
    choices, limits = option.metadata.get("choices"), option.metadata.get("limits", ())
    try:
        taken = take(value, hint)
        items = [item for item in (taken if isinstance(taken, tuple) else (taken,)) if item is not None]
        if choices and (not {*items} <= {*choices} or len({*items}) < len(items)):
            raise ValueError(value)
        # NaN lies within no limit.
        if not all(getattr(operator, name)(item, limit) for item in items for name, limit in limits):
            raise ValueError(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"cannot use {_short(value)} for {shown_name(option)}, expected {_expected(option, hint)}",
            f"{shown_name(option)}: {str(option.metadata['help']).replace('%%', '%')}.",
        ) from error
    return taken


def _expected(option: dataclasses.Field[Any], hint: Any) -> str:
    """Describe the valid values of an option."""
    base, many = value_type(hint)
    choices = option.metadata.get("choices")
    limits = " and ".join(f"{_LIMITS[name]} {limit}" for name, limit in option.metadata.get("limits", ()))
    one = f"one of {', '.join(choices)}" if choices else " of ".join(filter(None, (KINDS[base], limits)))
    if many is None:
        return one
    return f"{one}, or a list of them" if many == "+" else f"{many} values, each {one}"


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _is_several(value: Any) -> bool:
    """True for lists, tuples and arrays, but not for sets, since the order of files matters."""
    is_single = isinstance(value, str | bytes | os.PathLike | Mapping | AbstractSet)
    return isinstance(value, Iterable) and not is_single and getattr(value, "ndim", 1) == 1


def _plain(value: Any) -> Any:
    """Convert a NumPy number to Python's."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _text(value: Any) -> str:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if type(value) in (int, float):
        return str(value)
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(value)
    return path


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(value)
    return float(value)


_TAKERS: Mapping[Any, Any] = {bool: _switch, int: _whole, float: _number, str: _text}


def _shown(value: Any) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def _short(value: Any) -> str:
    if getattr(value, "ndim", 0):
        return f"an array of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
