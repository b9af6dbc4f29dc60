"""A command that is killed, or whose disk fills, at any of its file operations leaves nothing behind.

`benchmarks/faults.py` tries every operation; here it tries a few of each command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "faults.py"
ROWS = (
    "map", "map over a map", "map as tiles", "sieved map", "polygons", "map again", "stacks", "mosaic",
    "export .nc, .zarr", "export styles", "export level", "report", "points", "model as ONNX", "model item",
    "model repository", "imported model",
)  # fmt: skip
"""All rows but the training, for which `tests/test_survival.py` and `tests/test_limits.py` stand."""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_command_that_dies_or_has_no_room_is_repeated_to_the_same_files(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(BENCHMARK), "--points", "2", "--only", *ROWS]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    rows = [line for line in found.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * len(ROWS) + 2, found.stderr
    assert all(row.endswith("| 2 | nothing |") for row in rows[2:]), f"{found.stdout}\n{found.stderr}"
    assert found.returncode == 0
