"""A process of a cluster: scheduler, worker or command; run by path with its `TASK`.

The network of workers and commands is three lines of NumPy, and what else the task says goes wrong in it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from typing import Any

TASK: dict[str, Any] = globals().get("TASK", {})


def note(path: str) -> None:
    """One more call, counted by the length of a file."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, b".")
    os.close(handle)


def patch_engine(task: dict[str, Any]) -> None:
    """Exchange the engine for one that needs no framework."""
    import numpy as np

    from lulc.engines.registry import Engine
    from lulc.inference import job

    def network(x: np.ndarray) -> np.ndarray:
        note(task["calls"])
        if task.get("memory") == "used up":
            np.ones(2**50, np.uint8)
        if task.get("memory") == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(task.get("pause", 0.002))
        powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
        return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)

    def build(name: str, request: Any) -> Engine:
        return Engine("keras", request.shape, {"precision": task.get("precision", "float32")}, network)

    job.build_engine = build


async def scheduler(task: dict[str, Any]) -> None:
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=task["port"], dashboard=False) as running:
        await running.finished()


async def worker(task: dict[str, Any]) -> None:
    from distributed import Worker

    async with Worker(
        task["address"], host="127.0.0.1", nthreads=1, memory_limit=0, name=task.get("name"),
        local_directory=task["folder"],
    ) as running:  # fmt: skip
        if "file_size" in task:
            resource.setrlimit(resource.RLIMIT_FSIZE, (task["file_size"],) * 2)
        await running.finished()


class Lacking:
    """Finds no module of some name, as where it isn't installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self._name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def forget(name: str) -> None:
    """Go on without a package that this process has already; ours is to look for it again."""
    for module in [module for module in sys.modules if module.partition(".")[0] in (name, "lulc")]:
        del sys.modules[module]
    sys.meta_path.insert(0, Lacking(name))  # type: ignore[arg-type]


def main(task: dict[str, Any]) -> int:
    """Play the role that the task names."""
    import dask

    dask.config.set({"distributed.comm.timeouts.connect": "2s", "distributed.scheduler.worker-ttl": "10s"})
    if "lacks" in task:
        forget(task["lacks"])
    if task["role"] == "scheduler":
        asyncio.run(scheduler(task))
        return 0
    if "lacks" not in task:
        patch_engine(task)
    if task["role"] == "worker":
        asyncio.run(worker(task))
        return 0
    from lulc.cli import make_classifications

    with open(task["stderr"], "a", buffering=1) as errors:
        sys.stderr = errors
        return make_classifications.main(task["arguments"])


if TASK:
    sys.exit(main(TASK))
