"""Forbid what unit tests must not do: load a deep-learning framework or Dask, start a browser or a cluster.

Alone in its folder, so that `PYTHONPATH` carries it into the Python processes that tests start.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FORBIDDEN = {"keras", "tensorflow", "jax", "torch", "distributed", "dask_jobqueue", "selenium"}
"""Packages that no unit test loads."""

HIDDEN = set(os.environ.get("LULC_HIDDEN", "").split())
"""Packages that look as if they were not installed."""

PROGRAMS = re.compile(r"chrom(e|ium)\w*|dask(-\w+)?|sbatch|srun|slurm\w+|munged")
"""Programs that no unit test starts, by the names of their files."""

HINT = "mark the test with @pytest.mark.integration, or its module with pytestmark"


class Refusal(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the forbidden packages and loads none."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Take charge of a forbidden package."""
        return importlib.machinery.ModuleSpec(name, self) if name in FORBIDDEN | HIDDEN else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Load nothing."""
        if spec.name in HIDDEN:
            raise ModuleNotFoundError(f"no module named {spec.name}", name=spec.name)
        raise ImportError(f"a unit test loads {spec.name}: {HINT}", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Never called."""


def refuse_programs(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that ends the start of a forbidden program."""
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        program = Path(os.fsdecode(arguments[0] or arguments[1][0])).name
        if PROGRAMS.fullmatch(program):
            raise RuntimeError(f"a unit test starts {program}: {HINT}")


sys.meta_path.insert(0, Refusal())
sys.addaudithook(refuse_programs)
