"""`make unit` takes unit tests alone, and a unit test that does what it must not do fails."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]


def unit(folder: Path, *modules: str) -> tuple[str, int]:
    """What `pytest --unit` prints of some test modules, and its exit code."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    shutil.copytree(ROOT / "tests" / "unit_guard", folder / "unit_guard")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  integration\n  stress\n  documents\n")
    for number, text in enumerate(modules):
        (folder / f"test_{number}.py").write_text(text)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--unit",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            str(folder),
        ],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stdout, ended.returncode


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("import keras", "a unit test loads keras"),
        ("import torch.nn", "a unit test loads torch"),
        ("import importlib; importlib.import_module('distributed')", "a unit test loads distributed"),
        ("from selenium import webdriver", "a unit test loads selenium"),
        ("import subprocess; subprocess.run(['chromium', '--version'])", "a unit test starts chromium"),
        ("import subprocess; subprocess.Popen('/usr/bin/chromedriver')", "a unit test starts chromedriver"),
        ("import os; os.execv('/usr/bin/sbatch', ['sbatch'])", "a unit test starts sbatch"),
    ],
)
def test_what_a_unit_test_must_not_do_fails_and_says_how_to_mark_it(
    body: str, told: str, tmp_path: Path
) -> None:
    printed, code = unit(tmp_path, f"def test_it():\n    {body}\n")
    assert code == 1 and "1 failed" in printed
    assert f"{told}: mark the test with @pytest.mark.integration" in printed


def test_python_processes_of_unit_tests_are_held_to_the_same(tmp_path: Path) -> None:
    call = "subprocess.run([sys.executable, '-c', 'import keras'], check=True)"
    printed, code = unit(tmp_path, f"import subprocess, sys\ndef test_it():\n    {call}\n")
    assert code == 1 and "a unit test loads keras" in printed


def test_modules_and_tests_with_the_marker_are_left_out_and_others_run(tmp_path: Path) -> None:
    marked = "import pytest\nimport keras\npytestmark = pytest.mark.integration\ndef test_it(): pass\n"
    several = marked.replace("pytest.mark.integration", "[pytest.mark.integration, pytest.mark.stress]")
    single = "import pytest\n@pytest.mark.integration\ndef test_it(): import keras\ndef test_other(): pass\n"
    fixture = "def test_it(tiny_model): pass\n"
    printed, code = unit(tmp_path, marked, several, single, fixture)
    assert code == 0 and "1 passed, 2 deselected" in printed


def test_a_module_that_loads_a_framework_without_the_marker_fails(tmp_path: Path) -> None:
    printed, code = unit(tmp_path, "import jax\ndef test_it(): pass\n")
    assert code != 0 and "a unit test loads jax" in printed


def test_the_marker_of_modules_is_read_where_it_stands() -> None:
    read = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.integration\b", re.MULTILINE)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        marks = [node for node in ast.parse(text).body if ast.unparse(node).startswith("pytestmark")]
        assert any("integration" in ast.unparse(node) for node in marks) == bool(read.search(text)), path.name


def test_the_makefile_has_both_tiers() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^check: lint unit ", text, re.MULTILINE)
    assert re.search(r"^unit: setup.*\n\t.*pytest --unit ", text, re.MULTILINE)
    tests = text.split("\ntest: setup")[1].split("\n\n")[0]
    assert "--unit" not in tests and "pytest -m" not in tests, "make test runs everything"
