"""Text of strangers reaches terminals, XML, JSON and spreadsheets without steering them."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lulc.cli.evaluate_classifications import main as evaluate
from lulc.cli.preprocess import main as preprocess
from lulc.core.documents import write_rows
from lulc.core.text import cell, columns, json_text, printable, visible

ANY = st.text(st.characters(codec=None, categories=None))


@given(ANY)
def test_no_character_of_a_visible_text_steers_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode()  # no lone surrogate is left, which no stream could write
    assert visible(shown) == shown


def test_what_steers_a_terminal_is_shown_and_what_people_write_is_kept() -> None:
    assert visible("a\x1b[31mb\x9bc\u202ed\ud800") == "a\\x1b[31mb\\x9bc\\u202ed\\ud800"
    for text in ("Äcker & Wälder – 25 %", "می‌شود", "क्‍ष", "a b c", "水田"):
        assert visible(text) == printable(text) == text


def test_line_breaks_are_kept_only_where_the_text_has_lines_of_its_own() -> None:
    assert visible("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert visible("a\nerror: b") == "a\\nerror: b"


@given(ANY)
def test_a_printable_text_is_well_formed_in_xml(text: str) -> None:
    root = ET.Element("a", b=printable(text))
    root.text = printable(text)
    assert ET.fromstring(ET.tostring(root, encoding="unicode").encode()).get("b") is not None


@given(st.dictionaries(ANY, ANY, max_size=3))
def test_json_on_a_terminal_holds_the_same_data_and_no_control_character(data: dict[str, str]) -> None:
    text = json_text(data)
    assert json.loads(text) == data
    assert all(c.isprintable() for c in text)


@pytest.mark.parametrize(
    "text", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", " =1", "\r=1", "＝1", "-", "=\x1b"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_led_by_an_apostrophe_or_an_escape(text: str) -> None:
    assert cell(text)[0] in "'\\"


@pytest.mark.parametrize("value", ["", "Forest", "-0.5", "+3", "-1e5", "a=b", 0, -1.5, None])
def test_other_cells_stay_as_they_are(value: object) -> None:
    assert cell(value) == value


def test_a_csv_table_holds_cells_that_spreadsheets_only_show(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv", [["class", "=cmd|' /C calc'!A0"], ['a,"b"\n', -2.5]])
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["class", "'=cmd|' /C calc'!A0"], ['a,"b"\\n', "-2.5"]]


def test_columns_are_as_wide_as_what_is_shown() -> None:
    assert columns([["name", "n"], ["\x1b", "10"]]) == "name   n\n\\x1b  10"


def test_no_text_of_a_file_begins_a_line_of_an_answer(
    tmp_path: Path, write_bands: Callable[..., Path], write_map: Callable[..., Path], capsys: Any
) -> None:
    bands = write_bands(tmp_path / "bands.tif", 128, 128)
    labels = write_bands(tmp_path / "labels\nerror: gone.tif", 128, 128, labels=True)
    options = ["--size", "64", "--gap", "0", "--scheme", "kaakonkulma-13", "--out", str(tmp_path / "out")]
    assert preprocess(["--bands", str(bands), "--labels", str(labels), *options]) == 0
    printed = capsys.readouterr()
    assert "labels\\nerror: gone.tif" in printed.out
    assert not re.search("^error: gone", printed.out + printed.err, re.MULTILINE)
    made = write_map(tmp_path / "map.tif", names=("Water", "Forest\nerror: gone", "Fields"))
    assert evaluate([str(made), "--out", str(tmp_path / "report")]) == 1
    printed = capsys.readouterr()
    assert not re.search("^error: gone", printed.out + printed.err, re.MULTILINE)
