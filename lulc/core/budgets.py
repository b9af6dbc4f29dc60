"""Limits on the content of untrusted files, and on the time and memory of reading them."""

from __future__ import annotations

import os
from dataclasses import dataclass

TRUST = "LULC_TRUST"  # environment variable that lifts the limits; ``--trust`` sets it for the command

MIB = 2**20

SIDE = 2_000_000
"""Pixels along one side, and values of one coordinate; the whole Earth at 20 m has this many columns."""

LAYERS = 1024  # layers of one raster
BLOCK_BYTES = 256 * MIB  # bytes of one unpacked block, chunk, strip or tile, also of overviews and masks

LARGE_BYTES, GROWTH = 64 * 2**30, 20_000
"""Rasters above this size may unpack to at most this many bytes per stored byte."""

ARRAYS = 10_000  # arrays and groups of a NetCDF file or Zarr folder, and directories of a TIFF
TEXT_BYTES = 16 * MIB  # bytes of an XML or JSON document, of a text coordinate, and of attributes
FIELDS = 1000  # fields of a vector layer, and tables of a GeoPackage
ENTRIES = 1_000_000  # files of a folder


@dataclass(frozen=True)
class Allowance:
    """Limits on a process that reads one file.

    Parameters
    ----------
    seconds, wall_seconds
        Processor time and elapsed time of one call.
    memory
        Bytes beyond those at its start.
    files
        Open files.
    """

    seconds: int
    wall_seconds: float
    memory: int
    files: int = 256


def is_trusted() -> bool:
    """True if the user trusts the files, so that no limit applies."""
    return os.environ.get(TRUST, "") not in ("", "0")


def exceeds(value: float, limit: float) -> bool:
    """True if a value exceeds its limit and the files are not trusted."""
    return value > limit and not is_trusted()


def allowance(stored: int) -> Allowance:
    """Return the limits for reading a file of `stored` bytes."""
    if is_trusted():
        return Allowance(2**31 - 1, 2.0**31, 2**62, 4096)
    seconds = 4 + stored // (8 * MIB)
    return Allowance(seconds, 30.0 + 8 * seconds, 512 * MIB + min(8 * stored, 8192 * MIB))
