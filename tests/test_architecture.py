"""The table of packages in docs/architecture.md is what the code does: who imports whom, who opens what."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lulc"

PACKAGE_DOORS = {
    "argparse",
    "pickle",
    "matplotlib",
    "jinja2",
    "keras",
    "openvino",
    "onnx",
    "h5py",
    "tensorflow",
    "jax",
    "torch",
    "numcodecs",
    "xarray",
    "geopandas",
    "jsonschema",
    "sklearn",
    "rio_tiler",
    "starlette",
    "uvicorn",
    "dask",
    "distributed",
    "dask_jobqueue",
}
"""Packages that only the modules whose row names them import."""

CALL_DOORS = {"rasterio.open", "np.load", "np.save", "print", "sys.exit"}
"""Calls that only the modules whose row names them make."""

FRAMEWORKS = {"keras", "tensorflow", "jax", "torch", "openvino", "distributed"}

COMMANDS = (
    "cli.preprocess", "cli.train_model", "cli.make_classifications", "cli.evaluate_classifications",
    "cli.export_map", "cli.export_model", "cli.import_model", "cli.reproduce_map", "cli.serve_map",
    "demo.demonstration",
)  # fmt: skip


@functools.cache
def modules() -> dict[str, Path]:
    """Path of each module by its name within the package, ``rasters.sources``."""
    paths = (p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(paths)}


@functools.cache
def table() -> dict[str, tuple[int, str]]:
    """(row, doors) of each package of the table; rows go from the commands down to `core`."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.search(r"\| package \|.*?\n\|[-|]+\n(.*?)\n\n", text, re.DOTALL)
    assert rows, "docs/architecture.md has no table of packages"
    found = {}
    for number, line in enumerate(rows.group(1).splitlines()):
        name, _, doors = line.strip("|").split("|")
        found[name.strip(" `")] = (number, doors.replace("`", ""))
    return found


def package_of(module: str) -> str:
    """The package of a module, the innermost one; modules at the top stand for themselves."""
    return module.rpartition(".")[0] or module


def row_of(module: str) -> tuple[int, str]:
    return table()[package_of(module)]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names that a module imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def own_imports(path: Path) -> set[str]:
    """Modules of the package that a module imports, as named by `modules`."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "lulc":
            candidates = (".".join(parts[1:n]) for n in (2, 3, 4))
            found |= {c for c in candidates if c in modules()}
    return found


def calls(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}


def test_every_package_is_in_the_table_and_the_table_has_no_others() -> None:
    assert {package_of(name) for name in modules()} == set(table())


def test_every_package_says_what_lives_there_and_what_does_not() -> None:
    for folder in {path.parent for path in modules().values()} - {PACKAGE}:
        text = ast.get_docstring(tree(folder / "__init__.py")) or ""
        assert 2 <= len(text.splitlines()) <= 5, f"{folder.name} has no docstring of three lines"


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down_the_table(module: str) -> None:
    here = row_of(module)[0]
    up = {other for other in own_imports(modules()[module]) if row_of(other)[0] < here}
    assert not up, f"{module} imports {up}, which stand above it in docs/architecture.md"


def test_no_package_and_no_module_imports_itself_through_others() -> None:
    graph = {name: own_imports(path) for name, path in modules().items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("module", sorted(modules()))
def test_third_party_doors_are_opened_only_where_the_table_says(module: str) -> None:
    path = modules()[module]
    opened = {name.split(".")[0] for name in imports(path)} & PACKAGE_DOORS | calls(path) & CALL_DOORS
    admitted = dict(clause.strip().split(": ") for clause in row_of(module)[1].split(";") if clause.strip())
    closed = opened - set(admitted.get(module.rpartition(".")[2], "").split(", "))
    assert not closed, f"{module} opens {closed}, which its row in docs/architecture.md does not name"


def test_only_one_module_deletes_files_and_only_two_rename_them() -> None:
    deletes, renames = {"unlink", "rmtree", "rmdir", "removedirs"}, {"os.rename", "os.replace", "shutil.move"}
    for module, path in modules().items():
        made = calls(path)
        found = {name for name in made if name.rpartition(".")[2] in deletes or name == "os.remove"}
        assert not found or module == "core.removal", f"{module} deletes by {found}: see lulc/core/removal.py"
        assert not made & renames or module in ("core.removal", "core.storage"), module


def test_only_backend_and_devices_name_a_framework_other_than_keras() -> None:
    backends = {"tensorflow", "jax", "torch"}
    users = {m for m, p in modules().items() if {n.split(".")[0] for n in imports(p)} & backends}
    assert users <= {"models.backend", "training.devices"}


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda p: p.name)
def test_scripts_only_hand_over_to_their_command(script: Path) -> None:
    assert own_imports(script) == {f"cli.{script.stem}"}
    assert len(script.read_text(encoding="utf-8").splitlines()) < 20


@pytest.mark.parametrize("statement", ["import lulc", *(f"import lulc.{c}" for c in COMMANDS)])
def test_importing_loads_no_framework(statement: str) -> None:
    assert not FRAMEWORKS & loaded_after(statement)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--no-such-option", 2)])
def test_help_and_a_mistyped_option_load_no_framework(command: str, argument: str, code: int) -> None:
    statement = (
        f"from lulc.{command} import main\n"
        f"try:\n    main([{argument!r}])\n"
        f"except SystemExit as end:\n    assert end.code == {code}, end.code\n"
        "else:\n    raise AssertionError('did not exit')"
    )
    assert not FRAMEWORKS & loaded_after(statement)


SLOW_TO_LOAD = {"geopandas", "pandas", "pyogrio", "matplotlib", "scipy", "xarray", "sklearn"}
"""Packages that a stage loads when it needs them; together they take longer than refusing a bad input."""


@pytest.mark.parametrize("stage", ["evaluation.evaluate", "preprocessing.preprocess", "inference.classify"])
def test_importing_a_stage_loads_no_package_that_few_runs_need(stage: str) -> None:
    assert not (SLOW_TO_LOAD | FRAMEWORKS) & loaded_after(f"import lulc.{stage}")


def loaded_after(statement: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n' + ' '.join({{m.split('.')[0] for m in sys.modules}}))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split())
