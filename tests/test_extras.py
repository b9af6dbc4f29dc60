"""The extra `classify` makes maps without a framework; `make setup` tells other interpreters what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from packaging.requirements import Requirement

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
GUARD = ROOT / "tests" / "unit_guard"


def without_frameworks(*words: str | Path, hidden: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python as if Keras and its frameworks were not installed, nor what is hidden besides."""
    paths = os.pathsep.join([str(GUARD), str(ROOT)])
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths, "LULC_HIDDEN": f"keras tensorflow jax torch {hidden}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def extras() -> dict[str, dict[str, Requirement]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {extra: {r.name: r for r in map(Requirement, lines)} for extra, lines in table.items()}


def test_the_extra_for_classification_has_no_framework() -> None:
    assert set(extras()["classify"]) == {"openvino"}
    assert extras()["classify"]["openvino"] == extras()["cpu"]["openvino"]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_tensorflow_is_asked_for_where_it_has_packages(version: str) -> None:
    for extra in ("cpu", "gpu"):
        marker = extras()[extra]["tensorflow"].marker
        assert marker and marker.evaluate({"python_version": version}) is (version != "3.14")
    assert not any(one.marker for extra in ("jax", "torch") for one in extras()[extra].values())


def test_a_map_is_made_without_a_framework(write_bands: Callable[..., Path], tmp_path: Path) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 96, 128)
    told = without_frameworks(
        "make_classifications.py", "kaakonkulma-sim", mosaic, tmp_path / "map.tif", "--json"
    )
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer["engine"].startswith("openvino")
    with rasterio.open(tmp_path / "map.tif") as made, rasterio.open(mosaic) as source:
        classes, valid = made.read(1), (source.read() != 0).all(0)
        assert (made.count, made.shape) == (14, (96, 128))
        np.testing.assert_allclose(made.read()[1:, valid].sum(0), 1, atol=1e-4)
    np.testing.assert_array_equal(classes == -1, ~valid)
    counts = {c["number"]: c["pixels"] for c in answer["classes"]}
    assert counts == {n: int((classes == n).sum()) for n in counts}


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_without_openvino_too_the_extra_is_named(
    engine: str, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 64, 64)
    words = ["make_classifications.py", "kaakonkulma-sim", mosaic, tmp_path / "map.tif", "--engine", engine]
    told = without_frameworks(*words, hidden="openvino")
    assert told.returncode == 1
    assert "\nerror: cannot " in told.stderr and "Traceback" not in told.stderr
    assert "pip install '.[" in told.stderr


def test_training_without_a_framework_names_the_extra(
    write_stacks: Callable[..., Path], tmp_path: Path
) -> None:
    told = without_frameworks("train_model.py", write_stacks(tmp_path / "stacks"), "--out", tmp_path / "run")
    assert told.returncode == 1
    assert "cannot use the backend 'tensorflow'" in told.stderr
    assert "pip install '.[cpu]'" in told.stderr or sys.version_info >= (3, 14)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` looks at before it makes anything."""
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/lock.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def pretending(folder: Path, version: tuple[int, ...]) -> Path:
    """An interpreter that says that it is of a version."""
    script = folder / "python-pretending"
    told = f"import sys; sys.version_info = {version}"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{told}\n$2"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0), (4, 0, 0)])
def test_setup_with_another_interpreter_says_what_to_do(checkout: Path, version: tuple[int, ...]) -> None:
    python = pretending(checkout, version)
    told: Any = subprocess.run(
        ["make", "setup", f"PYTHON={python}"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert told.returncode != 0
    assert f"cannot set up, since '{python}' is not Python 3.11, 3.12 or 3.13" in told.stderr
    assert "PYTHON=/path/to/python" in told.stderr and "pip install '.[classify]'" in told.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 9)])
def test_setup_takes_the_interpreters_that_fit(checkout: Path, version: tuple[int, ...]) -> None:
    planned = subprocess.run(
        ["make", "-n", "setup", "PYTHON="], cwd=checkout, capture_output=True, text=True, check=True
    )
    check = next(line for line in planned.stdout.splitlines() if "version_info" in line)
    command = check[check.index("import sys") : check.index("' || {")]
    python = pretending(checkout, version)
    assert subprocess.run([python, "-c", command], check=False).returncode == 0
