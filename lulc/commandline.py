"""From a config dataclass to command-line options and back, and from errors to exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lulc import __version__
from lulc.schema import InputError

Config = TypeVar("Config")

logger = logging.getLogger("lulc")


def parser_for(config: type, description: str) -> argparse.ArgumentParser:
    """A parser with one option for each field of `config`.

    Parameters
    ----------
    config
        Dataclass whose fields were made by `lulc.config.option`.
    description
        Docstring of the command: what it does, what the result is, one example.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lulc {__version__}")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("-q", "--quiet", action="store_true", help="no progress, warnings only")
    noise.add_argument("-v", "--verbose", action="store_true", help="more detail")
    groups: dict[str, Any] = {"": parser}
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        heading = field.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        _add_option(groups[heading], field, hints[field.name])
    return parser


def config_from(config: type[Config], arguments: argparse.Namespace) -> Config:
    """The config that the parsed arguments describe."""
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(arguments, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**values)


def run(
    config: type[Config],
    description: str,
    action: Callable[[Config], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, build the config, act; errors of the user's data become one message.

    Returns
    -------
    int
        0 done; 1 the data don't fit, or the run was interrupted. A wrong command line exits with 2;
        a bug keeps its traceback.
    """
    arguments = parser_for(config, description).parse_args(argv)
    _configure_logging(quiet=arguments.quiet, verbose=arguments.verbose)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        action(config_from(config, arguments))
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped on request\n\nThe same command continues where this one stopped.")
    except MemoryError:
        return _fail("cannot go on, since memory ran out\n\nAsk for smaller windows or batches.")
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        return _fail(f"cannot write or read{where}: {error.strerror}")
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


_USER_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE,
}  # fmt: skip


def _terminate(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _configure_logging(*, quiet: bool, verbose: bool) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    meta = field.metadata
    required = field.default is dataclasses.MISSING
    keywords: dict[str, Any] = {"help": _help_of(field, required)}
    if meta["choices"]:
        keywords["choices"] = meta["choices"]
    base, many = _unwrap(hint)
    if base is bool:
        keywords["action"] = "store_true"
    else:
        keywords["type"] = base
        if meta["metavar"]:
            keywords["metavar"] = meta["metavar"]
        if many:
            keywords |= {"action": "append"} if meta["repeat"] else {"nargs": many}
    if meta["positional"]:
        group.add_argument(field.name, **keywords)
        return
    flag = "--" + field.name.replace("_", "-")
    default: Any = None if required else field.default
    if meta["repeat"]:
        # What argparse appends to has to be a list.
        default = list(default or ())
    group.add_argument(flag, required=required, default=default, **keywords)


def _help_of(field: dataclasses.Field[Any], required: bool) -> str:
    text = str(field.metadata["help"])
    notes = [field.metadata["unit"]] if field.metadata["unit"] else []
    recipes = {name: _shown(value) for name, value in field.metadata.get("by_recipe", {}).items()}
    if len(set(recipes.values())) > 1:
        notes.append("by recipe: " + ", ".join(f"{name} {value}" for name, value in recipes.items()))
    elif recipes:
        notes.append(f"default {recipes['default']}")
    elif not required and field.default not in (None, False, (), ""):
        notes.append(f"default {_shown(field.default)}")
    return f"{text} [{'; '.join(notes)}]" if notes else text


def _shown(value: Any) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def _unwrap(hint: Any) -> tuple[type, str | int | None]:
    """(type of one value, nargs) of a field's type."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        if arguments[-1] is Ellipsis:
            return arguments[0], "+"
        return arguments[0], len(arguments)
    return hint, None
