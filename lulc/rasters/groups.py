"""Groups of NetCDF files and Zarr folders that hold rasters, found without reading a raster."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.budgets import TEXT_BYTES, exceeds
from lulc.core.documents import parse_json
from lulc.core.reader_process import read_apart
from lulc.core.schema import InputError
from lulc.rasters import guards
from lulc.rasters.names import natural

NETCDF = (".nc", ".nc4", ".cdf")
"""Endings of NetCDF files."""

_MAX_GROUPS = 200


def is_cube_folder(path: str | os.PathLike[str]) -> bool:
    """True for a Zarr folder, or for a group inside one."""
    folder = Path(path)
    inside = any(place.suffix.lower() == ".zarr" for place in (folder, *folder.absolute().parents))
    return folder.is_dir() and inside and (folder.suffix.lower() == ".zarr" or _is_zarr(folder))


def is_grouped(path: str | os.PathLike[str]) -> bool:
    """True for a NetCDF file or Zarr folder with its rasters in groups and none at its top."""
    file = Path(path)
    if is_cube_folder(file):
        arrays = any(_is_zarr_array(file / name) for name in os.listdir(file))
        return not arrays and bool(groups_of(str(file)))
    if file.suffix.lower() not in NETCDF or not file.is_file():
        return False
    status = file.stat()
    return _has_groups(str(file.absolute()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _has_groups(path: str, size: int, changed: int) -> bool:
    """True where a NetCDF file holds rasters in groups; cached for each state of the file."""
    return len(read_apart(groups_of, path, path=path)) > 0


def store_of(path: str) -> Path:
    """Return the Zarr store of a folder, whose attributes apply to its groups; other paths as they are."""
    place = Path(path).absolute()
    above = (place, *place.parents) if place.is_dir() else ()
    return next((folder for folder in above if folder.suffix.lower() == ".zarr"), place)


def stored_bytes(path: str) -> int:
    """Return the bytes of a file, or of a folder, which is checked by `guards.check_folder`."""
    place = Path(path).resolve()
    return guards.check_folder(place) if place.is_dir() else place.stat().st_size


def groups_of(path: str) -> list[str]:
    """Return the paths of the groups with rasters below the top of a NetCDF file or Zarr folder."""
    root = Path(path)
    if not root.is_dir():
        from netCDF4 import Dataset

        check_netcdf(path, root.resolve())
        with Dataset(path) as data:
            return _netcdf_groups(data, "")[:_MAX_GROUPS]
    groups = []
    for place, folders, _ in os.walk(root):
        inside = [f for f in folders if _is_zarr_array(Path(place, f))]
        # Below an array are its chunks.
        folders[:] = sorted(set(folders) - set(inside), key=natural)
        if inside and Path(place) != root and _is_zarr(Path(place)):
            groups.append(Path(place).relative_to(root).as_posix())
    return groups[:_MAX_GROUPS]


def check_netcdf(path: str, resolved: Path) -> None:
    """Check that a file is NetCDF and names no other file; runs in a reader process."""
    with open(resolved, "rb") as file:
        head = file.read(8)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        guards.check_hdf5(resolved)
    elif head[:4] not in (b"CDF\x01", b"CDF\x02", b"CDF\x05"):
        raise InputError(
            f"cannot read '{path}', since it does not begin like a NetCDF file, expected NetCDF 3 or 4",
            "Copy or download it again.",
        )
    from netCDF4 import Dataset

    try:
        with Dataset(resolved) as data:
            _check_variables(path, data)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot read '{path}', since it is damaged or truncated ({error})", "Copy or download it again."
        ) from error


def _check_variables(path: str, group: Any) -> None:
    for name, variable in group.variables.items():
        chunk = variable.chunking()
        size = variable.dtype.itemsize if isinstance(variable.dtype, np.dtype) else 8
        guards.check_array(path, name, variable.shape, None if chunk == "contiguous" else chunk, size)
    for inner in group.groups.values():
        _check_variables(path, inner)


def ancestors(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the attributes of a Zarr group's parents, up to the store, and all dictionaries
    nested in them.
    """
    folder = Path(path)
    while folder.suffix.lower() != ".zarr" and is_cube_folder(folder):
        folder = folder.absolute().parent
        attributes = _read_json(folder / ".zattrs") or _read_json(folder / "zarr.json").get("attributes", {})
        pending = [attributes]
        while pending:
            level = pending.pop(0)
            yield level
            pending += [value for value in level.values() if isinstance(value, dict)]


def _netcdf_groups(data: Any, prefix: str) -> list[str]:
    groups = []
    for name, group in data.groups.items():
        path = f"{prefix}/{name}"
        if any(variable.ndim >= 2 for variable in group.variables.values()):
            groups.append(path)
        groups += _netcdf_groups(group, path)
    return groups


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _is_zarr_array(folder: Path) -> bool:
    return (folder / ".zarray").is_file() or _read_json(folder / "zarr.json").get("node_type") == "array"


def _read_json(path: Path) -> dict[str, Any]:
    """Return a small JSON object; empty without a readable one."""
    try:
        if not path.is_file() or exceeds(path.stat().st_size, TEXT_BYTES):
            return {}
        data = parse_json(path.read_bytes(), foreign=True)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
