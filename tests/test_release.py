"""Version, change log, conda recipe, workflow and forms agree with the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import lulc

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

CONDA_NAMES = {"opencv-python-headless": "py-opencv", "matplotlib": "matplotlib-base", "torch": "pytorch"}
"""Where conda-forge has another name than pip."""

KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Headings of Keep a Changelog."""


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def recipe() -> dict[str, Any]:
    """The conda recipe as conda-build reads it: a Jinja template of a YAML document."""
    text = (ROOT / "packaging" / "conda" / "meta.yaml").read_text(encoding="utf-8")
    template = jinja2.Environment(undefined=jinja2.DebugUndefined, autoescape=False).from_string(text)
    parsed: dict[str, Any] = yaml.safe_load(template.render(PYTHON="python"))
    return parsed


def conda(lines: list[str]) -> dict[str, str]:
    """Names and version ranges as the recipe would have to write them."""
    found = {}
    for line in lines:
        parsed = Requirement(line)
        name = parsed.name.lower().replace("_", "-")
        found[CONDA_NAMES.get(name, name)] = str(parsed.specifier)
    return found


def written(lines: list[str]) -> dict[str, str]:
    """Names and version ranges of the recipe."""
    return {name: specifier for name, _, specifier in (line.partition(" ") for line in lines)}


def headings(mark: str) -> list[str]:
    text = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    return re.findall(rf"^{mark} (.+)$", text, re.MULTILINE)


def test_the_change_log_opens_with_this_version() -> None:
    assert headings("##")[0].startswith(f"[{lulc.__version__}] - ")


def test_versions_of_the_change_log_fall_and_carry_a_date() -> None:
    found = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)", line) for line in headings("##")
    ]
    numbers = [Version(match[1]) for match in found if match]
    assert len(numbers) == len(found)
    assert numbers == sorted(set(numbers), reverse=True)
    assert all(match and match[2] != "unreleased" for match in found[1:])


def test_changes_are_grouped_by_kind() -> None:
    assert set(headings("###")) <= KINDS


def test_the_recipe_is_of_this_version_and_licence() -> None:
    assert recipe()["package"] == {"name": project()["name"], "version": lulc.__version__}
    assert recipe()["about"]["license"] == project()["license"]
    assert recipe()["about"]["summary"] == project()["description"]
    assert (ROOT / recipe()["about"]["license_file"]).exists()


def test_the_recipe_asks_for_what_the_package_asks_for() -> None:
    required = {"python": project()["requires-python"]} | conda(project()["dependencies"])
    assert written(recipe()["requirements"]["run"]) == required
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    host = {"python": project()["requires-python"], "pip": ""} | conda(build)
    assert written(recipe()["requirements"]["host"]) == host


def test_the_recipe_bounds_the_frameworks_as_the_extras_do() -> None:
    extras = project()["optional-dependencies"]
    frameworks: dict[str, str] = {}
    for extra in ("cpu", "jax", "torch"):
        frameworks |= conda(extras[extra])
    assert written(recipe()["requirements"]["run_constrained"]) == frameworks


def test_the_recipe_makes_the_commands_of_the_package() -> None:
    made = dict(line.split(" = ") for line in recipe()["build"]["entry_points"])
    assert made == project()["scripts"]


def test_the_workflow_calls_the_checks_and_nothing_else() -> None:
    (path,) = (ROOT / ".github" / "workflows").glob("*")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert {"push", "pull_request"} == set(triggers)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert [step["uses"].split("@")[0] for step in steps if "uses" in step] == ["actions/checkout"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_well_formed(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert {item["type"] for item in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len({item["id"] for item in fields}) == len(fields)
    assert all(item["attributes"]["label"] for item in fields)
    assert any(item.get("validations", {}).get("required") for item in fields)
