"""The files around the code agree with each other and with the code."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = (
    "preprocess",
    "train_model",
    "make_classifications",
    "evaluate_classifications",
    "serve_map",
    "export_map",
    "make_mosaic",
    "export_model",
    "import_model",
    "reproduce_map",
)

IMPORT_NAMES = {
    "opencv-python-headless": "cv2", "scikit-learn": "sklearn", "pyyaml": "yaml", "netcdf4": "netCDF4",
    "rio-tiler": "rio_tiler", "dask-jobqueue": "dask_jobqueue", "pystac-client": "pystac_client",
}  # fmt: skip
"""Where the name that is installed is not the name that is imported."""

COMES_WITH = {
    "mpl_toolkits": "matplotlib",
    "ml_dtypes": "keras",
    "anyio": "starlette",
    "urllib3": "pystac-client",
}
"""Packages that may be imported without being declared, and what brings them."""


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = (Requirement(line) for line in lines)
    return {r.name.lower().replace("_", "-"): r for r in parsed}


def imported_by(folder: Path) -> set[str]:
    """Top-level packages imported anywhere in a folder's modules."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_conda_and_pip_ask_for_the_same_packages() -> None:
    pip = requirements(project()["dependencies"])
    for extra in ("cpu", "dev"):
        pip |= requirements(project()["optional-dependencies"][extra])
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    plain = [line for line in listed if isinstance(line, str)]
    nested = next(line["pip"] for line in listed if isinstance(line, dict))
    conda = requirements(plain + nested)
    assert conda.pop("python").specifier == project()["requires-python"]
    assert {"gdal", "pip"} <= set(conda)
    del conda["gdal"], conda["pip"]
    assert {n: str(r.specifier) for n, r in conda.items()} == {n: str(r.specifier) for n, r in pip.items()}


def test_every_declared_package_is_used() -> None:
    used = imported_by(ROOT / "lulc")
    declared = project()["dependencies"] + project()["optional-dependencies"]["cpu"]
    idle = {n for n in requirements(declared) if IMPORT_NAMES.get(n, n) not in used}
    assert not idle


@pytest.mark.integration
def test_every_package_used_is_declared() -> None:
    extras = project()["optional-dependencies"]
    kinds = ("cpu", "jax", "torch", "onnx", "serve", "cluster", "parquet", "mosaic")
    optional = [line for kind in kinds for line in extras[kind]]
    declared = requirements(project()["dependencies"] + optional)
    known = {IMPORT_NAMES.get(n, n) for n in declared} | {"lulc"} | set(COMES_WITH)
    assert not imported_by(ROOT / "lulc") - known - set(sys.stdlib_module_names)


def test_the_entry_points_are_the_commands() -> None:
    assert project()["scripts"] == {
        f"lulc-{name.replace('_', '-')}": f"lulc.cli.{name}:main" for name in COMMANDS
    }
    for target in project()["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", ["lock.txt", "backends.txt"])
def test_locks_pin_exactly_and_name_no_host_or_path(name: str) -> None:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in lines]
    for pin in filter(None, pins):
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; .+)?", pin), pin
    assert not [line for line in lines if "://" in line or "/tmp" in line or line.startswith("-")]


def test_the_lock_holds_what_is_declared() -> None:
    lock = [line.split("#")[0].split(";")[0] for line in (ROOT / "requirements" / "lock.txt").open()]
    pinned = requirements([line for line in lock if line.strip()])
    wanted = requirements(project()["dependencies"])
    for extra in ("cpu", "dev"):
        wanted |= requirements(project()["optional-dependencies"][extra])
    for name, requirement in wanted.items():
        version = str(pinned[name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), name


def test_pytorch_is_pinned_to_the_release_with_a_cpu_build() -> None:
    assert "torch==2.13.0\n" in re.sub(r" *#.*", "", (ROOT / "requirements" / "backends.txt").read_text())


def test_the_licence_is_mit_everywhere() -> None:
    text = (ROOT / "LICENSE.md").read_text()
    assert text.startswith("# MIT License")
    assert "the lulc authors" in text
    assert project()["license"] == "MIT"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "MIT"
    assert citation["version"] == importlib.import_module("lulc").__version__


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # The required keys and the closed lists of the Citation File Format 1.2.0.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in {"software", "dataset"}
    people = citation["authors"] + [a for r in citation["references"] for a in r["authors"]]
    entity, person = {"name"}, {"family-names", "given-names", "alias", "orcid", "affiliation"}
    assert all(set(one) and (set(one) == entity or set(one) <= person) for one in people)
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert reference["type"] in {"thesis", "article", "software", "book", "conference-paper"}
        assert isinstance(reference.get("year", 2018), int)
