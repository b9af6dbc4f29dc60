"""What of a map is finished: a journal of its parts, which survives a killed run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lulc.documents import write_document
from lulc.schema import InputError
from lulc.storage import Lock, remove_partial, sha256_of

FORMAT_VERSION = 1

LOCK = "lock"
CLAIMS = "claims.json"

logger = logging.getLogger("lulc")


class Journal:
    """The folder ``OUT.parts/`` beside a map: key, finished parts and their checksums.

    The key is everything that decides the bytes of a part; it lies in ``key.json``. Each line of
    ``journal.jsonl`` names a finished part and its SHA-256, ends with a checksum of itself, and is fsynced
    before the run goes on; a line that was cut short or changed is passed over, and the part made again.

    Use `open_journal`, which locks the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "journal.jsonl"
        self._checksums: dict[int, str] = {}
        self._counts: dict[int, dict[int, int]] = {}

    def path_of(self, part: int) -> Path:
        """File of part number `part`."""
        return self.folder / f"{part:06d}.part"

    @property
    def counts(self) -> dict[int, int]:
        """Pixels of each value of the class band in all finished parts."""
        total: Counter[int] = Counter()
        for counts in self._counts.values():
            total.update(counts)
        return dict(sorted(total.items()))

    def record(self, part: int, sha256: str, counts: dict[int, int]) -> None:
        """Note that a part is finished, and its pixels by class; on disk when this returns."""
        entry = {"part": part, "sha256": sha256, "counts": sorted(counts.items())}
        with open(self._lines, "a", encoding="ascii") as file:
            file.write(json.dumps({**entry, "checksum": _checksum(entry)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._checksums[part], self._counts[part] = sha256, counts

    def finished(self, parts: int) -> set[int]:
        """Numbers below `parts` of the parts whose file is there and has the recorded checksum."""
        found = set()
        for part, checksum in self._checksums.items():
            path = self.path_of(part)
            if part < parts and path.is_file() and sha256_of(path) == checksum:
                found.add(part)
            else:
                logger.warning("part %d is missing or damaged and is made again", part)
        self._checksums = {part: self._checksums[part] for part in found}
        self._counts = {part: self._counts[part] for part in found}
        return found

    @property
    def bytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def claim(self, paths: Sequence[Path]) -> None:
        """Note which files beside the map this run is about to write, for `claimed_by`."""
        claims = {"format_version": FORMAT_VERSION, "paths": [str(path.resolve()) for path in paths]}
        write_document(self.folder / CLAIMS, claims)

    def remove(self) -> None:
        """Remove the folder, the map being finished.

        Renamed first, so that a kill leaves a journal that is whole, or none: half of one would have the
        same command make parts again that the map already holds.
        """
        dropped = self._drop()
        os.rename(self.folder, dropped)
        shutil.rmtree(dropped)

    def _drop(self) -> Path:
        """Name of the folder while it is removed; what a killed run left there goes."""
        dropped = self.folder.with_name(f".{self.folder.name}.partial")
        if dropped.is_dir():
            shutil.rmtree(dropped)
        return dropped

    def begin(self, key: dict[str, Any], *, restart: bool) -> None:
        """Take up the work in the folder if it has this key; begin where there is none.

        Raises
        ------
        InputError
            If the work was begun with another key and `restart` is False.
        """
        document = {"format_version": FORMAT_VERSION, **json.loads(json.dumps(key))}
        path = self.folder / "key.json"
        found = None if restart else _read_object(path)
        if found is None:
            for leftover in self.folder.iterdir():
                if leftover.name != LOCK:
                    leftover.unlink()
            write_document(path, document)
        elif found != document:
            raise self._other_key(found, document)
        self._drop()
        remove_partial(self.folder)
        for part, checksum, counts in _read_lines(self._lines):
            self._checksums[part], self._counts[part] = checksum, counts
        self._end_line()

    def _end_line(self) -> None:
        """Close a line that a crash cut short, so that the next one begins on its own."""
        if self._lines.exists() and not self._lines.read_bytes().endswith(b"\n"):
            with open(self._lines, "ab") as file:
                file.write(b"\n")

    def _other_key(self, found: dict[str, Any], expected: dict[str, Any]) -> InputError:
        names = sorted(_differences(found, expected))
        return InputError(
            f"cannot continue the work in '{self.folder}', since it was begun with another "
            f"{', '.join(names)}",
            "Repeat the command as it was, or add --restart to drop the finished parts and begin anew.",
        )


def claimed_by(out: Path) -> set[str]:
    """Paths of files that an interrupted run for the map `out` had begun to write under their final names."""
    claims = _read_object(_folder_of(out) / CLAIMS) or {}
    paths = claims.get("paths", ())
    return {str(path) for path in paths} if isinstance(paths, list) else set()


@contextlib.contextmanager
def open_journal(out: Path) -> Iterator[Journal]:
    """Lock ``OUT.parts/``; the journal is to be begun with a key.

    Raises
    ------
    InputError
        If another process writes the map `out`.
    """
    folder = _folder_of(out)
    with Lock(folder / LOCK, f"the map '{out}'"):
        journal = Journal(folder)
        try:
            yield journal
        finally:
            if folder.is_dir() and {p.name for p in folder.iterdir()} == {LOCK}:
                journal.remove()


def _folder_of(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def _read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _read_lines(path: Path) -> Iterator[tuple[int, str, dict[int, int]]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            whole = entry.pop("checksum") == _checksum(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if whole:
            yield entry["part"], entry["sha256"], dict(entry["counts"])


def _checksum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]


def _differences(found: Any, expected: Any, name: str = "") -> Iterator[str]:
    """Names of the entries that differ between two JSON objects, nested names joined by dots."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in found.keys() | expected.keys():
            yield from _differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif found != expected:
        yield f"{name} ({_shorten(found)}, now {_shorten(expected)})"


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
