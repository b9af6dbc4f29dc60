"""A file of options says what the command line would, and what it can't say is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lulc.config import option
from lulc.core import config_file
from lulc.core.config_file import read_settings, settings_text
from lulc.core.schema import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A config with one field of each kind."""

    source: str = option(..., "what to read", metavar="SOURCE", positional=True)
    tile_size: int = option(7, "how large, 5 %% more or less", unit="pixels")
    rate: float | None = option(None, "how fast")
    names: tuple[str, ...] = option((), "which")
    box: tuple[float, float] | None = option(None, "where")
    mode: str = option("fast", "how", choices=("fast", "none"))
    force: bool = option(False, "regardless")


def read(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, Example)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("tile-size: 9", {"tile_size": 9}),
        ("tile_size: 9", {"tile_size": 9}),
        ("rate: 1e-3", {"rate": 0.001}),
        ("rate: null", {"rate": None}),
        ("names: a", {"names": ("a",)}),
        ("names: [0.2, 'null', 2020-01-01, no]", {"names": ("0.2", "null", "2020-01-01", "no")}),
        ("names: []", {"names": ()}),
        ("box: [1, 2.5]", {"box": (1.0, 2.5)}),
        ("mode: none", {"mode": "none"}),
        ("force: yes", {"force": True}),
        ("source: null", {}),
        ("format_version: 1\nsource: Länsi.tif", {"source": "Länsi.tif"}),
        ("# nothing\nformat_version: 1", {}),
    ],
)
def test_values_are_read_as_they_are_typed(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    assert read(tmp_path, text) == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tile-size: large", "'tile-size' is 'large', expected a whole number"),
        ("tile-size: [1, 2]", "expected 1 of it"),
        ("box: [1, 2, 3]", "expected 2 of it"),
        ("mode: slow", "expected one of fast, none"),
        ("force: 2", "expected true or false"),
        ("tile-sise: 9", "Did you mean 'tile-size'?"),
        ("zzz: 9", "--print-config"),
        ("tile-size: 9\ntile-size: 8", "'tile-size' twice"),
        ("box: {a: 1}", "line 1 has a nested value for 'box'"),
        ("names: [[a]]", "nested value"),
        ("- a\n- b", "no names of options"),
        ("", "no names of options"),
        ("[1, 2]: 3", "no names of options"),
        ("names: [a", "not valid YAML"),
        ("source: !!python/object/apply:os.system [ls]", "'source' is ['ls'], expected 1 of it"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "nested value"),
        ("names: " + "[" * 5000, "not valid YAML"),
        ("format_version: 2", "its format version is 2, expected 1 to 1"),
        ("format_version: -1", "format version"),
        ("# " + "x" * 2**20, "expected at most"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, text)
    assert told in str(refusal.value)
    assert "options.yaml" in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_settings(tmp_path / "absent.yaml", Example)


def test_old_files_are_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(texts: config_file.Texts) -> config_file.Texts:
        return {("tile-size" if name == "size" else name): text for name, text in texts.items()}

    def split(texts: config_file.Texts) -> config_file.Texts:
        return texts | {"names": str(texts.pop("names")).split("+")}

    monkeypatch.setattr(config_file, "UPGRADERS", (renamed, split))
    assert read(tmp_path, "format_version: 1\nsize: 9\nnames: a+b") == {"tile_size": 9, "names": ("a", "b")}
    assert read(tmp_path, "format_version: 2\ntile-size: 9\nnames: a+b")["names"] == ("a", "b")
    assert read(tmp_path, "format_version: 3\nnames: a+b")["names"] == ("a+b",)
    assert read(tmp_path, "names: a+b")["names"] == ("a+b",), "a file without a version is a new one"
    assert settings_text({}, Example).startswith("format_version: 3\n")


printable = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20)


@given(
    source=printable,
    tile_size=st.integers(),
    rate=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(printable).map(tuple),
    box=st.none() | st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
    force=st.booleans(),
)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    values |= {"mode": "none"}
    text = settings_text(values, Example)
    assert read(tmp_path_factory.getbasetemp(), text) == values
    assert "%%" not in text
