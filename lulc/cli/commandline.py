"""From a config dataclass to command-line options and back, and from errors to exit codes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import logging
import os
import re
import shlex
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

from lulc.core.budgets import TRUST
from lulc.core.config_file import read_settings, settings_text
from lulc.core.options import help_of, shown_name, value_type
from lulc.core.schema import InputError
from lulc.core.text import json_text, unbroken, visible
from lulc.core.version import __version__

Config = TypeVar("Config")

logger = logging.getLogger("lulc")

ENVIRONMENT = {
    TRUST: "1 lifts the limits of time and memory, as --trust does",
    "LULC_WEIGHTS": "folder of weights files, searched before the toolkit's own",
    "KERAS_BACKEND": "framework: tensorflow (default), jax or torch",
    "CUDA_VISIBLE_DEVICES": "numbers of the GPUs that may be used; empty for none",
    "JAX_COMPILATION_CACHE_DIR": "where JAX keeps what it compiles for GPUs; lulc/jax in XDG_CACHE_HOME else",
    "HF_ENDPOINT": "server that hf:// addresses of models mean; https://huggingface.co where not set",
    "XDG_CACHE_HOME": "folder of caches; ~/.cache where not set",
    "NO_COLOR": "anything: no colours on a terminal",
    "TQDM_MININTERVAL": "seconds between two lines of progress; 30 where stderr is no terminal",
}
"""Environment variables of the user."""

LOGGED = ("numpy", "rasterio", "keras", "tensorflow", "jax", "torch", "openvino")
"""Packages whose versions are written into log files."""

PATHS = {"RASTER", "FILE", "FILE.gpkg", "FILE.json", "FOLDER", "MAP", "REFERENCE", "MODEL", "DATA", "INPUT",
         "OUT", "OUT.tif", "PATH"}  # fmt: skip
"""Placeholders of options that shells complete with file names."""


@dataclass(frozen=True)
class Answer:
    """Answer of a command: text for people, the same as JSON-ready data, and the exit code."""

    text: str
    data: Mapping[str, Any]
    code: int = 0


def parser_for(
    config: type, description: str, given: Mapping[str, Any] | None = None, *, lenient: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with one option for each field of `config`.

    Parameters
    ----------
    description
        Docstring of the command: what it does, what the result is, one example.
    given
        Known values of fields, which need not be typed.
    lenient
        True if no option is required.
    """
    width = max(map(len, ENVIRONMENT))
    variables = "\n".join(f"  {name:{width}}  {text}" for name, text in ENVIRONMENT.items())
    parser = _Parser(
        description=description, epilog=f"environment variables:\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False,
    )  # fmt: skip
    groups: dict[str, Any] = {"": parser}
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        heading = field.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        default = (given or {}).get(field.name, field.default)
        needed = default is dataclasses.MISSING and not lenient
        _add_option(groups[heading], field, hints[field.name], default, needed)
    general = parser.add_argument_group("help and messages")
    general.add_argument("-h", "--help", action="help", help="show this help, then stop")
    _add_common(general)
    parser.usage = _usage(parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """Parser that answers a wrong command line with similar options and the way to the help."""

    def error(self, message: str) -> typing.NoReturn:
        self.print_usage(sys.stderr)
        wrong = re.findall(r"(?<!\S)--[\w-]+", message) if "unrecognized" in message else []
        similar = [n for w in wrong for n in difflib.get_close_matches(w, self._option_string_actions, 1)]
        hint = f"Did you mean {', '.join(similar)}? " if similar else ""
        self.exit(2, f"error: {message}\n\n{hint}All options: {self.prog} --help\n")


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage line with only the required and positional arguments."""
    words = ["%(prog)s"]
    for action in parser._actions:
        name = action.metavar or action.dest.upper()
        if action.required:
            values = f"{name} [{name} ...]" if action.nargs == "+" else name
            words.append(" ".join([*action.option_strings[:1], str(values)]))
        elif not action.option_strings:
            words.append(f"[{name} ...]" if action.nargs == "*" else f"[{name}]")
    return " ".join([*words, "[options]"])


def config_from(config: type[Config], arguments: argparse.Namespace) -> Config:
    """Return the config of the parsed arguments."""
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    values = {name: getattr(arguments, name) for name in names}
    return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def parse(config: type, description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line and the file of its ``--config``; typed options win.

    Positional arguments come from the file only if none is typed.
    """
    parser = parser_for(config, description)
    options, rest = _probe(config, parser).parse_known_args(argv)
    if options.print_completion:
        _say(_completions(parser, options.print_completion))
        parser.exit()
    if not options.config and not options.print_config:
        return parser.parse_intermixed_args(argv)
    given = read_settings(options.config, config) if options.config else {}
    has_positional = bool(rest) and not rest[0].startswith("-")
    if has_positional:
        for field in dataclasses.fields(config):
            if field.metadata["positional"]:
                given.pop(field.name, None)
    parser = parser_for(config, description, given, lenient=options.print_config and not has_positional)
    return parser.parse_intermixed_args(argv)


def run(
    config: type[Config],
    description: str,
    action: Callable[[Config], Answer | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command: parse, build the config, act, print the answer or one error message.

    With ``--json`` only the answer's data go to stdout.

    Returns
    -------
    int
        Exit code: that of the answer, 0 without one, 1 for data that don't fit or an interrupted run. A wrong
        command line exits with 2; a bug keeps its traceback.
    """
    previous = signal.signal(signal.SIGTERM, _terminate)
    end_log = _configure_logging(argparse.Namespace(quiet=False, verbose=False, log=None), argv)
    try:
        arguments = parse(config, description, argv)
        if arguments.print_config:
            _say(settings_text(vars(arguments), config), end="")
            return 0
        end_log = _configure_logging(arguments, argv)
        with (
            _trusting(arguments.trust),
            contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext(),
        ):
            answer = action(config_from(config, arguments))
        if answer is not None:
            _say(json_text(answer.data) if arguments.json else visible(answer.text, lines=True))
            return answer.code
    except Exception as error:
        message = _message_of(error)
        if message is None:
            _log_to_files("a bug ended the run", error)
            raise
        logger.error(message)
        return 1
    except KeyboardInterrupt:
        logger.error("stopped on request\n\nThe same command continues where this one stopped.")
        return 1
    finally:
        # Flushes the help of argparse, which ignores a closed pipe.
        _say("", end="")
        end_log()
        signal.signal(signal.SIGTERM, previous)
    return 0


@contextlib.contextmanager
def _trusting(trusted: bool) -> Iterator[None]:
    """Lift the limits on untrusted files in this process and those that it starts."""
    before = os.environ.get(TRUST, "")
    os.environ[TRUST] = "1" if trusted else before
    try:
        yield
    finally:
        os.environ[TRUST] = before


_USER_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE,
}  # fmt: skip


def _say(text: str, end: str = "\n") -> None:
    """Print on stdout; continue silently if its reader, such as ``head``, has ended."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        # Discards the rest of the buffer when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _message_of(error: Exception) -> str | None:
    """Return the message for the user; None for a bug, which keeps its traceback."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError):
        return "cannot continue, since memory ran out\n\nChoose smaller windows or batches."
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
        where = f" '{error.filename}'" if error.filename else ""
        return f"cannot write or read{where}: {error.strerror}"
    return None


class _Console(logging.StreamHandler[TextIO]):
    """Messages on stderr; warnings and errors in colour on a terminal with colours."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        has_colors = os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._colored = has_colors and sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        progress = sys.modules.get("tqdm")
        # Progress bars make room for the message.
        with progress.tqdm.external_write_mode(self.stream) if progress else contextlib.nullcontext():
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        text = visible(_text_of(record), lines=True)
        if record.levelno >= logging.ERROR:
            return f"\033[1;31merror:\033[0m {text}" if self._colored else f"error: {text}"
        if record.levelno >= logging.WARNING and self._colored:
            return f"\033[33m{text}\033[0m"
        return text


class _LogLine(logging.Formatter):
    """Lines of the log file, safe for terminals too."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _text_of(record)
        return super().formatMessage(record)


def _text_of(record: logging.LogRecord) -> str:
    """Return the message of a record, with the line breaks in its values escaped."""
    if isinstance(record.args, tuple) and record.args:
        values = (unbroken(value) if isinstance(value, str) else value for value in record.args)
        return str(record.msg) % tuple(values)
    return record.getMessage()


def _configure_logging(arguments: argparse.Namespace, argv: Sequence[str] | None) -> Callable[[], None]:
    """Send messages to stderr and to the log file; returns the function that closes the log."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Console)]:
        root.removeHandler(handler)
    root.addHandler(_Console())
    logger.setLevel(
        logging.WARNING if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not sys.stderr.isatty():
        # Ten lines of progress a second would flood the log of a cluster job.
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    if not arguments.log:
        return lambda: None
    os.makedirs(os.path.dirname(arguments.log) or ".", exist_ok=True)
    log = logging.FileHandler(arguments.log, encoding="utf-8")
    log.setFormatter(_LogLine("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(log)
    _log_to_files(f"$ {shlex.join([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])}")
    _log_to_files(_versions())

    def end() -> None:
        root.removeHandler(log)
        log.close()

    return end


def _log_to_files(message: str, error: BaseException | None = None) -> None:
    """Write a line only into the log files."""
    trace = (type(error), error, error.__traceback__) if error is not None else None
    level = logging.INFO if error is None else logging.CRITICAL
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("lulc", level, "", 0, message, None, trace))


def _versions() -> str:
    """Return the versions that affect the results, and the job of the cluster."""
    import importlib.metadata
    import platform

    parts = [f"lulc {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for name in LOGGED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{name} {importlib.metadata.version(name)}")
    jobs = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID")
    parts += [f"{name} {os.environ[name]}" for name in jobs if name in os.environ]
    return ", ".join(parts)


def _completions(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a shell."""
    import shtab

    tuples = [action.metavar for action in parser._actions if isinstance(action.metavar, tuple)]
    for action in parser._actions:
        if isinstance(action.metavar, tuple):
            action.metavar = " ".join(action.metavar)
        if action.metavar in PATHS or action.dest in {"config", "log"}:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell)
    for names in tuples if shell == "zsh" else ():
        # zsh needs one message for each value, or else takes the second value for another argument.
        text = text.replace(f"]:{' '.join(names)}:", "]" + "".join(f":{name}: " for name in names))
    return text


class _Print(argparse.Action):
    """Action that prints the text of a name in `const`, then stops."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        _say(self.const[values], end="")
        parser.exit()


class _Collect(argparse.Action):
    """Action that makes `--name A --name B` equal to `--name A B`; it replaces the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(before if before is not self.default else ()), *values])


def _add_common(parser: argparse._ActionsContainer) -> None:
    """Add the options of every command."""
    parser.add_argument("--version", action="version", version=f"lulc {__version__}")
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument("-q", "--quiet", action="store_true", help="no progress, only warnings")
    verbosity.add_argument("-v", "--verbose", action="store_true", help="more detail")
    flag, file = {"action": "store_true"}, {"metavar": "FILE"}
    add: Any = parser.add_argument
    add("--json", help="print the result as JSON", **flag)
    add("--trust", help="lift the limits of time and memory for files that you trust", **flag)
    add("--log", help="also append messages to this file, with times and versions", **file)
    add("--config", help="YAML file with options by name; typed options win", **file)
    add("--print-config", help="print all options as such a file, then stop", **flag)
    add("--print-completion", choices=("bash", "zsh"), help="print the completions of a shell, then stop")


def _probe(config: type, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return a parser of all named options, none of them required; positional arguments are left over."""
    probe = _Parser(prog=parser.prog, usage=parser.usage, add_help=False)
    _add_common(probe)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if not field.metadata["positional"]:
            _add_option(probe, field, hints[field.name], None, False)
    return probe


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any, default: Any, required: bool) -> None:
    meta = field.metadata
    base, many = value_type(hint)
    keywords: dict[str, Any] = {
        "help": help_of(field), "default": None if default is dataclasses.MISSING else default
    }  # fmt: skip
    if base is bool:
        keywords["action"] = "store_true"
    else:
        metavar = meta["metavar"]
        if metavar and isinstance(many, int):
            metavar = tuple(metavar.split())
        keywords |= {"type": base, "choices": meta["choices"], "metavar": metavar, "nargs": many}
    if meta["positional"]:
        if not required:
            keywords["nargs"] = "*" if many else "?"
        group.add_argument(field.name, **keywords)
        return
    name = field.name.replace("_", "-")
    if many == "+":
        keywords["action"] = _Collect
    group.add_argument(shown_name(field), dest=field.name, required=required, **keywords)
    if texts := meta.get("texts"):
        group.add_argument(
            f"--print-{name}", dest=argparse.SUPPRESS, action=_Print, const=texts, choices=tuple(texts),
            help=f"print the file of a value of --{name} to start from, then stop",
        )  # fmt: skip
    if base is bool and keywords["default"]:
        group.add_argument(f"--no-{name}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
