"""Options mirror the configs, and errors become exit codes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import json
import logging
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lulc import config
from lulc.cli.commandline import ENVIRONMENT, Answer, config_from, parse, parser_for, run
from lulc.config import option
from lulc.core.options import FILE_ENDINGS, FOLDER, Excludes, Needs, Options
from lulc.core.schema import InputError

CONFIGS = [kind for name, kind in vars(config).items() if name.endswith("Config")]

COMMON = {
    "trust",
    "help",
    "version",
    "quiet",
    "verbose",
    "json",
    "log",
    "config",
    "print_config",
    "print_completion",
}
"""Options that every command has."""

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A config with one field of each kind."""

    source: str = option(..., "what to read", metavar="SOURCE", positional=True)
    size: int = option(7, "how large", unit="pixels")
    rate: float | None = option(None, "how fast")
    names: tuple[str, ...] = option((), "which", metavar="NAME")
    box: tuple[float, float] | None = option(None, "where", metavar="LEFT TOP")
    least: int = option(0, "how few")
    extra: tuple[str, ...] = option((), "what else")
    mode: str = option("fast", "how", choices=("fast", "exact"))
    force: bool = option(False, "regardless")


def actions_of(kind: type) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser_for(kind, "An example.")._actions}


def minimal(kind: type) -> list[str]:
    """The shortest command line that a config accepts."""
    words = []
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING:
            flag = "--" + field.name.replace("_", "-")
            positional = field.metadata["positional"]
            tif = field.name == "out" and (positional or ".tif" in field.metadata["endings"])
            words += [] if positional else [flag]
            words.append("x.tif" if tif else "x")
    return words


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_field_is_an_option_and_each_option_a_field(kind: type) -> None:
    found = set(actions_of(kind)) - COMMON - {argparse.SUPPRESS}
    assert found == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_option_has_help_with_its_default_and_unit(kind: type) -> None:
    actions = actions_of(kind)
    for field in dataclasses.fields(kind):
        text = str(actions[field.name].help)
        assert len(text) > 3, field.name
        assert field.metadata["unit"] in text, field.name
        default = field.default
        if default is False or default in (dataclasses.MISSING, None, (), ""):
            continue
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert f"default {shown}" in text, field.name


@pytest.mark.parametrize("kind", CONFIGS)
def test_help_can_be_printed(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parser_for(kind, "An example.").parse_args(["--help"])
    assert exit_.value.code == 0
    assert "An example." in capsys.readouterr().out


@pytest.mark.parametrize("kind", CONFIGS)
def test_defaults_on_the_command_line_are_those_of_the_config(kind: type) -> None:
    words = minimal(kind)
    parsed = config_from(kind, parser_for(kind, "").parse_args(words))
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            assert getattr(parsed, field.name) == field.default, field.name


def test_values_arrive_with_their_types() -> None:
    line = "in.tif --size 9 --rate 0.5 --names a b --box 1 2 --extra c --extra d --mode exact --force"
    assert config_from(Example, parser_for(Example, "").parse_args(line.split())) == Example(
        source="in.tif", size=9, rate=0.5, names=("a", "b"), box=(1.0, 2.0), extra=("c", "d"),
        mode="exact", force=True,
    )  # fmt: skip


def test_negative_numbers_are_values() -> None:
    parsed = parser_for(config.ClassifyConfig, "").parse_args(["m", "a", "o", "--offset", "-1000"])
    assert parsed.offset == -1000


def acting(outcome: Any) -> Any:
    def action(_: Example) -> None:
        if isinstance(outcome, BaseException):
            raise outcome

    return action


def test_a_run_that_ends_well_returns_0() -> None:
    assert run(Example, "An example.", acting(None), ["in.tif"]) == 0


@pytest.mark.parametrize(
    "error",
    [
        InputError("cannot read it, since it is empty, expected pixels", "Give another file."),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.tif"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out.tif"),
        KeyboardInterrupt(),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_exit_code_1(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Example, "An example.", acting(error), ["in.tif"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_the_message_holds_the_problem_a_blank_line_and_the_hint(capsys: pytest.CaptureFixture[str]) -> None:
    run(Example, "An example.", acting(InputError("cannot do it", "Do that.")), ["in.tif"])
    assert capsys.readouterr().err == "error: cannot do it\n\nDo that.\n"


@pytest.mark.parametrize("words", [[], ["in.tif", "--sise", "3"], ["in.tif", "--size", "large"],
                                   ["in.tif", "--mode", "slow"]])  # fmt: skip
def test_a_wrong_command_line_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(Example, "An example.", acting(None), words)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_mistyped_option_is_answered_by_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(Example, "An example.", acting(None), ["in.tif", "--sise", "3"])
    assert "Did you mean --size?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [config.TrainConfig, config.ClassifyConfig])
def test_the_usage_is_a_line_that_names_all_that_must_be_typed(kind: type) -> None:
    parser = parser_for(kind, "An example.")
    (line,) = parser.format_usage().strip().splitlines()
    needed = [a.option_strings[0] if a.option_strings else a.metavar for a in parser._actions if a.required]
    assert needed
    assert all(str(name) in line for name in needed)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Example, "An example.", acting(ZeroDivisionError()), ["in.tif"])


def test_sigterm_ends_a_run_as_ctrl_c_does_and_is_restored() -> None:
    """In a process of its own, as a command is: what other tests left in this one decides nothing."""
    code = """
import os, signal
from dataclasses import dataclass
from lulc.cli.commandline import run
from lulc.config import RunConfig

def action(config):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.sigtimedwait([], 5)

before = signal.getsignal(signal.SIGTERM)
code = run(dataclass(frozen=True)(type("Example", (RunConfig,), {})), "An example.", action, [])
assert signal.getsignal(signal.SIGTERM) is before
raise SystemExit(10 + code)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 11, ended.stderr
    assert "continues" in ended.stderr


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def answering(seen: list[Any]) -> Any:
    """An action that notes its config, prints, warns and answers."""

    def action(config: Example) -> Answer:
        seen.append(config)
        print("on the way")
        logging.getLogger("lulc").warning("take care")
        return Answer(f"size {config.size}", {"size": config.size})

    return action


def test_a_file_gives_options_and_what_is_typed_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: in.tif\nsize: 9\nnames: [a, b]\nbox: [1, 2]\nextra: [c]\nforce: true\n")
    wanted = Example(
        source="in.tif", size=9, names=("a", "b"), box=(1.0, 2.0), extra=("c",), force=True
    )  # fmt: skip
    assert config_from(Example, parse(Example, "", ["--config", str(file)])) == wanted
    words = ["other.tif", "--config", str(file), "--size", "3", "--names", "c", "--no-force"]
    typed = parse(Example, "", [*words, "--extra", "d", "--extra", "e"])
    changed = dataclasses.replace(
        wanted, source="other.tif", size=3, names=("c",), extra=("d", "e"), force=False
    )
    assert config_from(Example, typed) == changed


def test_arguments_without_names_are_taken_from_the_file_or_the_command_line_all_together(
    tmp_path: Path,
) -> None:
    file = tmp_path / "map.yaml"
    file.write_text("model: m.keras\ninputs: [a.tif, b.tif]\nout: map.tif\n")
    kind = config.ClassifyConfig
    read = config_from(kind, parse(kind, "", ["--config", str(file), "--tta"]))
    assert (read.model, read.inputs, read.out, read.tta) == ("m.keras", ("a.tif", "b.tif"), "map.tif", True)
    typed = config_from(kind, parse(kind, "", ["n.keras", "c.tif", "new.tif", "--config", str(file)]))
    assert (typed.model, typed.inputs, typed.out) == ("n.keras", ("c.tif",), "new.tif")
    with pytest.raises(SystemExit):
        parse(kind, "", ["n.keras", "--config", str(file)])


def test_a_mistyped_option_beside_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: in.tif\n")
    with pytest.raises(SystemExit) as exit_:
        parse(Example, "", ["--config", str(file), "--sise", "3"])
    assert exit_.value.code == 2
    assert "unrecognized arguments: --sise" in capsys.readouterr().err


def test_a_wrong_file_is_one_message_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: in.tif\nsise: 9\n")
    assert run(Example, "", acting(None), ["--config", str(file)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: cannot use the options in")
    assert "Did you mean 'size'?" in told


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_printed_options_are_a_file_that_gives_them_again(
    kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = minimal(kind)
    assert run(kind, "", acting(None), [*words, "--print-config"]) == 0
    file = tmp_path / "all.yaml"
    file.write_text(capsys.readouterr().out)
    again = config_from(kind, parse(kind, "", ["--config", str(file)]))
    assert again == config_from(kind, parse(kind, "", words))


@pytest.mark.parametrize("kind", CONFIGS)
def test_options_can_be_printed_before_anything_is_chosen(
    kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(kind, "", acting(None), ["--print-config"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(kind):
        needed = "# " if field.default is dataclasses.MISSING else ""
        assert f"\n{needed}{field.name.replace('_', '-')}: " in text


def test_results_go_to_stdout_and_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Example, "", answering([]), ["in.tif", "--size", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "on the way\nsize 3\n"
    assert printed.err == "take care\n"


def test_json_is_all_that_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Example, "", answering([]), ["in.tif", "--size", "3", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"size": 3}
    assert "on the way" in printed.err


def test_the_log_file_holds_command_versions_messages_and_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "logs" / "run.log"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    words = ["in.tif", "--log", str(log)]
    assert run(Example, "", answering([]), words) == 0
    assert run(Example, "", acting(InputError("cannot do it", "Do that.")), words) == 1
    with pytest.raises(ZeroDivisionError):
        run(Example, "", acting(ZeroDivisionError("by zero")), words)
    run(Example, "", answering([]), ["in.tif"])
    text = log.read_text()
    assert text.count("take care") == 1, "a later run without --log does not write into it"
    for part in ("in.tif --log", "lulc 0", "Python 3", "numpy 2", "SLURM_JOB_ID 4711", "cannot do it",
                 "Traceback", "ZeroDivisionError: by zero"):  # fmt: skip
        assert part in text, part
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stream", "variables", "colored"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    stream: type[io.StringIO],
    variables: dict[str, str],
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream())
    run(Example, "", acting(InputError("cannot do it", "Do that.")), ["in.tif"])
    assert ("\033[" in sys.stderr.getvalue()) is colored  # type: ignore[attr-defined]


def test_a_default_of_0_and_a_name_for_each_of_several_values_are_in_the_help() -> None:
    text = parser_for(Example, "").format_help()
    assert "how few [default 0]" in text and "--box LEFT TOP" in text
    assert "regardless [" not in text


def test_environment_variables_are_in_the_help() -> None:
    text = parser_for(Example, "").format_help()
    assert all(name in text for name in ENVIRONMENT)
    read = set()
    for path in (ROOT / "lulc").rglob("*.py"):
        read |= set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', path.read_text(encoding="utf-8")))
    assert read - {"TERM"} <= set(ENVIRONMENT)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["preprocess", "train_model", "make_classifications"])
def test_help_comes_at_once(name: str) -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call = [sys.executable, f"{name}.py", "--help"]
        subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Seconds of the processor, the best of a few: what else the machine does is not measured here.
    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_are_printed_and_name_every_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(config.TrainConfig, "An example.", acting(None), ["--print-completion", shell])
    assert exit_.value.code == 0
    script = capsys.readouterr().out
    for field in dataclasses.fields(config.TrainConfig):
        if not field.metadata["positional"]:
            assert f"--{field.name.replace('_', '-')}" in script, field.name
    if shell == "zsh":  # bash completes names of files where it knows no better
        assert re.search(r'^  ".*folders that preprocess.*:_files"$', script, re.MULTILINE)


def test_completions_name_the_values_of_an_option_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(config.PreprocessConfig, "An example.", acting(None), ["--print-completion", "zsh"])
    script = capsys.readouterr().out
    assert ':LEFT: :BOTTOM: :RIGHT: :TOP: "' in script and "('LEFT'" not in script


def test_bash_completes_options_choices_and_files(tmp_path: Path) -> None:
    (tmp_path / "mosaic.tif").touch()
    source = ROOT / "make_classifications.py"
    made = subprocess.run(
        [sys.executable, source, "--print-completion", "bash"], capture_output=True, check=True
    )
    (tmp_path / "completion.sh").write_bytes(made.stdout)
    bash = shutil.which("bash")
    assert bash

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in ("make_classifications.py", *words))
        script = (
            f"source completion.sh; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
            "\"$(complete -p make_classifications.py | sed 's/.*-F \\([^ ]*\\).*/\\1/')\"; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        told = subprocess.run([bash, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(told.stdout.split())

    assert {"--blend", "--batch-size"} <= completed("--b")
    assert completed("--blend", "g") == {"gaussian"}
    assert completed("--fill", "mos") == {"mosaic.tif"}


def test_options_may_stand_between_arguments_without_a_name() -> None:
    arguments = parse(config.ClassifyConfig, "", shlex.split("run s.tif --fill p.tif --pick last map.tif"))
    assert (arguments.model, arguments.inputs, arguments.out) == ("run", ["s.tif"], "map.tif")
    assert arguments.fill == ["p.tif"]


@pytest.mark.parametrize("words", [["--names", "a", "b", "--names", "c"], ["--names", "a", "b", "c"]])
def test_a_list_may_be_given_at_once_or_one_by_one(words: list[str]) -> None:
    given = parser_for(Example, "An example.", {"names": ("other",)}).parse_args(["SOURCE", *words])
    assert config_from(Example, given).names == ("a", "b", "c")


@pytest.mark.parametrize(
    "words", ["--help", "--print-completion bash", "m.keras b.tif map.tif --print-config"]
)
def test_a_reader_that_ends_early_gives_no_traceback(words: str) -> None:
    command = [sys.executable, "make_classifications.py", *words.split()]
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_control_characters_of_answers_and_messages_are_shown_as_escapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def action(config: Example) -> Answer:
        logging.getLogger("lulc").warning("read\x1b[2J")
        return Answer("class\x1b]0;title\x07\nnext", {"class": "\x9b1m"})

    log = tmp_path / "run.log"
    assert run(Example, "An example.", action, ["a.tif", "--log", str(log)]) == 0
    printed = capsys.readouterr()
    assert printed.out == "class\\x1b]0;title\\x07\nnext\n"
    assert printed.err == "read\\x1b[2J\n"
    assert "read\\x1b[2J" in log.read_text()
    assert run(Example, "An example.", action, ["a.tif", "--json"]) == 0
    assert capsys.readouterr().out == '{"class": "\\u009b1m"}\n'


def outputs() -> list[tuple[type, dataclasses.Field[Any]]]:
    known = [(kind, field) for kind in CONFIGS for field in dataclasses.fields(kind)]
    return [(kind, field) for kind, field in known if field.metadata.get("endings")]


def arguments_of(kind: type, **values: Any) -> dict[str, Any]:
    needed = (f for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING)
    return {f.name: f"given-{f.name}" for f in needed if f.name != "out"} | {"out": "o"} | values


@pytest.mark.parametrize(("kind", "field"), outputs(), ids=lambda v: getattr(v, "name", None) or v.__name__)
def test_an_output_has_an_ending_of_its_format(kind: type, field: dataclasses.Field[Any]) -> None:
    endings = field.metadata["endings"]
    right = [f"a.b{ending}" for ending in endings] + [f"A{ending.upper()}" for ending in endings if ending]
    others = [e for e in FILE_ENDINGS if not any(f"x{e}".endswith(end) for end in endings if end)]
    wrong = [f"x{ending}" for ending in others] + ([] if endings == FOLDER else ["x", "x.", ".x", "x.tif.gz"])
    base = {"out": endings[0] and f"o{endings[0]}"} if field.name == "out" else {}
    values = arguments_of(kind) | base
    if field.name != "out" and "out" in values:
        out = next(f for f in dataclasses.fields(kind) if f.name == "out")
        del values["out"]
        if out.default is dataclasses.MISSING:
            values["out"] = f"o{(out.metadata['endings'] or ('.tif',))[0]}"
    for path in right:
        kind(**values | {field.name: path})
    for path in wrong:
        with pytest.raises(InputError) as caught:
            kind(**values | {field.name: path})
        assert f"'{path}'" in caught.value.problem and "type for example" in caught.value.hint


@pytest.mark.parametrize(("tiles", "out", "right"), [
    (False, "map.tif", True), (False, "MAP.TIFF", True), (False, "map.nc", False), (False, "map", False),
    (True, "map", True), (True, "v1.2", True), (True, "map.tif", False), (True, "map.gpkg", False),
])  # fmt: skip
def test_a_map_is_a_geotiff_and_tiles_are_a_folder(tiles: bool, out: str, right: bool) -> None:
    with contextlib.nullcontext() if right else pytest.raises(InputError, match="cannot write"):
        config.ClassifyConfig(model="m", inputs=("b.tif",), out=out, tiles=tiles)


def test_weights_are_written_as_json_or_onnx_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from lulc.cli.export_model import main

    assert main(["run", "--out", str(tmp_path / "x.pb")]) == 1
    message = capsys.readouterr().err
    assert "its ending is .pb, expected a name in .json or .onnx" in message and "x.json" in message
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "run.keras").mkdir()
    config.TrainConfig(data=("stacks",), out=str(tmp_path / "run.keras"))


LIMITED = [
    (kind, field) for kind in CONFIGS for field in dataclasses.fields(kind) if field.metadata.get("limits")
]


def completed(kind: type, **values: Any) -> Any:
    """A config with placeholders for what a user must give, and some values."""
    arguments = parser_for(kind, "").parse_args(minimal(kind))
    return dataclasses.replace(config_from(kind, arguments), **values)


@pytest.mark.parametrize(("kind", "field"), LIMITED, ids=lambda v: getattr(v, "name", None) or v.__name__)
def test_numbers_outside_their_limits_are_refused_with_what_was_expected(kind: type, field: Any) -> None:
    step = 1 if "int" in str(field.type) else 0.001
    beyond = {"ge": -step, "gt": 0, "le": step, "lt": 0}
    for limit, value in field.metadata["limits"]:
        with pytest.raises(InputError, match=rf"{field.name.replace('_', '-')}.*expected .*{value}"):
            completed(kind, **{field.name: value + beyond[limit]})
    if step < 1:
        with pytest.raises(InputError):
            completed(kind, **{field.name: float("nan")})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Related(Options):
    """A config whose options need or exclude each other."""

    RULES: ClassVar = (
        Needs("speed length", "engine", "nothing runs else"),
        Needs("gear", "engine", "only these have gears", ("car", "bus")),
        Excludes("walk", "engine=car speed", "nobody walks in a car"),
    )
    engine: str | None = option(None, "what runs")
    speed: float = option(1.0, "how fast", gt=0)
    length: int | None = option(None, "how long")
    gear: int | None = option(None, "which")
    walk: bool = option(False, "on foot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heir(Related):
    """A config with rules of its own and those of its base."""

    RULES: ClassVar = (Excludes("roof", "walk", "it has none"),)
    roof: bool = option(False, "with a roof")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"speed": 2.0, "length": 3}, "cannot use --speed, --length without --engine, since nothing runs"),
        ({"gear": 1, "engine": "train"}, "cannot use --gear without --engine car or bus, since only"),
        ({"walk": True, "engine": "car"}, "cannot use --walk with --engine car, since nobody"),
        ({"walk": True, "engine": "bus", "speed": 2.0}, "cannot use --walk with --speed, since nobody"),
        ({"walk": True, "roof": True}, "cannot use --roof with --walk, since it has none"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_reason(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as refusal:
        Heir(**values)
    assert refusal.value.problem.startswith(said) and refusal.value.hint.startswith("Leave --")


@pytest.mark.parametrize(
    "values",
    [{}, {"engine": "bus", "speed": 2.0, "gear": 1}, {"engine": "bus", "walk": True}, {"speed": 1.0}],
)
def test_options_that_go_together_are_taken(values: dict[str, Any]) -> None:
    assert dataclasses.asdict(Heir(**values)).items() >= values.items()
