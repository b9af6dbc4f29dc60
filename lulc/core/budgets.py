"""Limits on what a file may declare, and on the time and memory that reading it may take."""

from __future__ import annotations

import os
from dataclasses import dataclass

TRUST = "LULC_TRUST"
"""Environment variable that lifts the limits for one's own files; ``--trust`` sets it for the command."""

MIB = 2**20

SIDE = 2_000_000
"""Pixels along one side, and values of one coordinate; the whole Earth at 20 m has this many columns."""

LAYERS = 1024
"""Layers of one raster."""

BLOCK_BYTES = 256 * MIB
"""Bytes of one block, chunk, strip or tile when it is unpacked, of every overview and mask too."""

GROWTH = 20_000
"""Declared bytes per stored byte, above `LARGE_BYTES`; sparse but honest mosaics stay far below."""

LARGE_BYTES = 64 * 2**30
"""Rasters up to this size are read window by window whatever their compression."""

ARRAYS = 10_000
"""Arrays and groups of a NetCDF file or Zarr folder, and directories of a TIFF."""

TEXT_BYTES = 16 * MIB
"""Bytes of an XML or JSON document beside or inside a raster, of a coordinate of words, of attributes."""

FIELDS = 1000
"""Fields of a vector layer, and tables of a GeoPackage."""

ENTRIES = 1_000_000
"""Files of a folder."""


@dataclass(frozen=True)
class Allowance:
    """Limits on a process that reads one file.

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


def exceeds(found: float, most: float) -> bool:
    """True where a file has more than a limit allows, and nobody vouches for it."""
    return found > most and not is_trusted()


def allowance(stored: int) -> Allowance:
    """Return what reading a file of `stored` bytes may take: more for a larger one."""
    if is_trusted():
        return Allowance(2**31 - 1, 2.0**31, 2**62, 4096)
    seconds = 4 + stored // (8 * MIB)
    return Allowance(seconds, 30.0 + 8 * seconds, 512 * MIB + min(8 * stored, 8192 * MIB))
