"""Time and memory that reading one file may take, by its size."""

from __future__ import annotations

import os
from dataclasses import dataclass

TRUST = "LULC_TRUST"
"""Environment variable that lifts the limits for one's own files; ``--trust`` sets it for the command."""

MIB = 2**20


@dataclass(frozen=True)
class Allowance:
    """What a process that reads one file may use.

    Parameters
    ----------
    seconds, wall_seconds
        Processor time of one call, and the time that its answer may take.
    memory
        Bytes beside what the process has when it starts.
    files
        Open files.
    """

    seconds: int
    wall_seconds: float
    memory: int
    files: int = 256


def is_trusted() -> bool:
    """True where the user vouches for the files, so that no limit holds."""
    return os.environ.get(TRUST, "") not in ("", "0")


def allowance(stored: int) -> Allowance:
    """Return what reading a file of `stored` bytes may take: more for a larger one."""
    if is_trusted():
        return Allowance(2**31 - 1, 2.0**31, 2**62, 4096)
    seconds = 4 + stored // (8 * MIB)
    return Allowance(seconds, 30.0 + 8 * seconds, 512 * MIB + min(8 * stored, 8192 * MIB))
