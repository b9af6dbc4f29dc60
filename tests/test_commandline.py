"""Options mirror the configs, and errors become exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import signal
from typing import Any

import pytest

from lulc import config
from lulc.commandline import config_from, parser_for, run
from lulc.config import option
from lulc.schema import InputError

CONFIGS = [config.PreprocessConfig, config.TrainConfig, config.ClassifyConfig, config.EvaluateConfig]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A config with one field of each kind."""

    source: str = option(..., "what to read", metavar="SOURCE", positional=True)
    size: int = option(7, "how large", unit="pixels")
    rate: float | None = option(None, "how fast")
    names: tuple[str, ...] = option((), "which", metavar="NAME")
    box: tuple[float, float] | None = option(None, "where")
    extra: tuple[str, ...] = option((), "what else", repeat=True)
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
            words += ["x"] if field.metadata["positional"] else [flag, "x"]
    return sorted(words, key=lambda w: not w.startswith("x")) if words.count("x") == len(words) else words


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_field_is_an_option_and_each_option_a_field(kind: type) -> None:
    beside = {"help", "version", "quiet", "verbose"}
    assert set(actions_of(kind)) - beside == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_option_has_help_with_its_default_and_unit(kind: type) -> None:
    actions = actions_of(kind)
    for field in dataclasses.fields(kind):
        text = str(actions[field.name].help)
        assert len(text) > 3, field.name
        assert field.metadata["unit"] in text, field.name
        default = field.default
        if default in (dataclasses.MISSING, None, False, (), ""):
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


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Example, "An example.", acting(ZeroDivisionError()), ["in.tif"])


def test_sigterm_ends_a_run_as_ctrl_c_does_and_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def action(_: Example) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)

    assert run(Example, "An example.", action, ["in.tif"]) == 1
    assert "continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
