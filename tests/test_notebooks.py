"""Notebooks call the package, hold no logic and no outputs, and run from a clean state."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

LOGIC = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Try, ast.Lambda)

OTHERS = {"IPython", "geopandas", "numpy", "os", "pathlib", "tempfile"}
"""What a notebook imports beside the package."""


def hooks() -> ModuleType:
    """What the documentation executes notebooks with."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(path: Path) -> list[ast.Module]:
    cells = nbformat.read(path, as_version=4).cells
    return [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_in_git_is_valid_and_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
    assert set(json.loads(path.read_text())["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_the_package_and_holds_no_logic(path: Path) -> None:
    for tree in code_of(path):
        for node in ast.walk(tree):
            assert not isinstance(node, LOGIC), ast.unparse(node)
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= OTHERS | {"lulc"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_that_its_scene_is_simulated(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert "simulated" in cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_clean_state_and_shows_pictures_and_no_library_s_warning(path: Path) -> None:
    module = hooks()
    notebook = module.execute(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # What the toolkit says of the data is welcome; warnings of libraries are not.
    assert not [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    markdown, pictures = module.render(notebook, path.stem)
    assert pictures
    assert all(
        content.startswith(b"\x89PNG") and f"]({name})" in markdown for name, content in pictures.items()
    )
