"""Zipped products (``.SAFE.zip``): their entries, checked before GDAL reads one."""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from lulc.core.budgets import TEXT_BYTES
from lulc.core.schema import InputError

_END = b"PK\x05\x06"
_END_BYTES = 22 + 65535
_MAX_DIRECTORY = 16 * 2**20
_MAX_RATIO = 200
_ENTRY = re.compile(
    r"(?:[\w.-]+\.SAFE/)?(?:MTD_MSIL\w\w\.xml|GRANULE/[\w.-]+/IMG_DATA/(?:R\d\dm/)?[\w.-]+\.(?:jp2|tif))",
    re.IGNORECASE,
)
_PREFIX = "/vsizip/{"


def is_zipped(path: Path) -> bool:
    """True for a zip archive of a Copernicus product."""
    return (
        path.suffix.lower() == ".zip"
        and path.is_file()
        and any(re.search(r"(^|/)MTD_MSIL(2A|1C)\.xml$", name) for name in entries(path))
    )


def entries(path: Path) -> Mapping[str, int]:
    """Return the entries of an archive that may belong to a product, and the bytes of each.

    Raises InputError if the archive is damaged, or made to exhaust the machine.
    """
    status = path.stat()
    return _entries(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _entries(path: str, size: int, changed: int) -> Mapping[str, int]:
    # zipfile reads the directory whole: its size is checked first.
    with open(path, "rb") as file:
        file.seek(max(0, size - _END_BYTES))
        end = file.read()
    place = end.rfind(_END)
    length = int.from_bytes(end[place + 12 : place + 16], "little") if place >= 0 else 0
    if length > _MAX_DIRECTORY:
        raise _refuse(path, f"its directory has {length} bytes, expected at most {_MAX_DIRECTORY}")
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except Exception as error:  # zipfile fails in many ways at damaged names and numbers
        raise _refuse(path, f"it is damaged or no zip archive ({error})") from error
    held = [entry for entry in found if _ENTRY.fullmatch(entry.filename) and ".." not in entry.filename]
    for entry in held:
        if entry.flag_bits & 1:
            raise _refuse(path, f"'{entry.filename}' in it is encrypted")
        # bzip2 and LZMA take memory that no header declares.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refuse(path, f"'{entry.filename}' in it is compressed in a way that products do not use")
        if entry.file_size > max(2**24, _MAX_RATIO * entry.compress_size):
            raise _refuse(path, f"'{entry.filename}' in it unpacks to {entry.file_size} bytes")
    if len({entry.filename for entry in held}) < len(held):
        raise _refuse(path, "it holds an entry twice")
    return {entry.filename: entry.file_size for entry in held}


def _refuse(path: str, problem: str) -> InputError:
    return InputError(
        f"cannot read '{path}', since {problem}",
        f"Get it again, or unpack it and give the folder: unzip {shlex.quote(path)}",
    )


def read_entry(path: Path, name: str) -> bytes:
    """Return the content of a small entry; raises InputError if it is damaged or too large."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as entry:
            content = entry.read(TEXT_BYTES + 1)
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise _refuse(str(path), f"'{name}' in it is damaged ({error})") from error
    if len(content) > TEXT_BYTES:
        raise _refuse(str(path), f"'{name}' in it has more than {TEXT_BYTES} bytes")
    return content


def address_of(path: Path, name: str) -> str:
    """Return the path by which GDAL opens an entry."""
    return f"{_PREFIX}{path.resolve()}}}/{name}"


def split_address(address: str) -> tuple[Path, str] | None:
    """(archive, entry) of a path by `address_of`; None for other paths."""
    if not address.startswith(_PREFIX):
        return None
    archive, _, name = address.removeprefix(_PREFIX).rpartition("}/")
    return Path(archive), name
