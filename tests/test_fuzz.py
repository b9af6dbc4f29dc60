"""Mutated files of every kind are read or refused: no signal, no endless read, no giant memory, no bug."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/fuzz.py", "--minutes", "1", "--files", "4", "--keep", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) files, 0 failed", done.stdout)
    assert found and int(found[1]) >= 20, done.stdout
    refused = sum(int(line.split()[-4]) for line in done.stdout.splitlines()[1:-1])
    assert refused >= 10, done.stdout
