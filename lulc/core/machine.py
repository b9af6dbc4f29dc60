"""Memory and processor cores that this process may use."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import psutil

GDAL_CACHE = 64 * 2**20  # bytes of GDAL's block cache; its default is a twentieth of the machine's memory


def free_memory() -> float:
    """Return the memory that this process may use, in bytes, by machine, control groups and limits."""
    process = psutil.Process().memory_info()
    free = [float(psutil.virtual_memory().available) + process.rss]
    for limit, used in ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, process.rss)):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            free.append(float(soft) - used + process.rss)
    free += [left + process.rss for left in left_in_groups()]
    return min(free)


def left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Return the free bytes of each control group of this process, set by batch systems and containers."""
    if not own.is_file():
        return []
    free = []
    for line in own.read_text().splitlines():
        number, kind, name = line.split(":", 2)
        if number == "0":
            base, files = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kind.split(","):
            base = root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the names are those of the host, and only the mount itself exists.
        group = base / name.lstrip("/")
        for folder in dict.fromkeys((group, *group.parents, base)):
            if folder == base or base in folder.parents:
                free += _left_in(folder, *files)
    return free


def _left_in(group: Path, limit: str, used: str, cache: str) -> list[float]:
    """Return the free bytes of one group, its file cache included; empty without a limit."""
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit():
            return []
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [float(most) - float((group / used).read_text()) + float(statistics.get(cache, 0))]
    except (OSError, ValueError):
        return []


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))
