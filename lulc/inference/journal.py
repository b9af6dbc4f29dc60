"""Journal of the finished parts of a map, which survives a killed run."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lulc.core.documents import append_line, parse_json, read_lines, write_document
from lulc.core.removal import OwnFolder, remove_leftovers
from lulc.core.schema import InputError
from lulc.core.storage import Lock, lock_of

FORMAT_VERSION = 1

KEY = "key.json"
CLAIMS = "claims.json"

TILES = (
    r"tiles/(\d+/(\d+-\d+\.(tif|json)|\d+\.vrt|catalog\.json)?)?|collection\.json"
    r"|map\.(vrt|vrt\.aux\.xml|qml)"
)
"""Pattern of the paths below the folder of a map in tiles."""

_NAMES = (
    r"(begin|\d+-of-\d+)\.lock|key\.json|claims\.json|journal(-\d+-of-\d+)?\.jsonl|\d{6,}\.part"
    rf"|map\.tif|sieved\.tif|sieved-\d{{6,}}\.part|classes|result/({TILES})?"
)
"""Pattern of the paths below the folder of the parts."""

logger = logging.getLogger("lulc")


class Journal:
    """The folder ``OUT.parts/`` beside a map: key, finished parts and their checksums.

    The key, in ``key.json``, is everything that decides the bytes of a part. Each line of ``journal.jsonl``
    names a finished part and its SHA-256, ends with a checksum of itself, and is fsynced before the run goes
    on. A damaged line is ignored and its part made again.

    Runs that make one share of the parts each write their own journals (``journal-3-of-8.jsonl``) at the
    same time; a part that any of them names is finished.

    Use `open_journal`, which locks the folder.
    """

    def __init__(self, owned: OwnFolder, share: str | None = None) -> None:
        self._owned, self._share = owned, share
        self.folder = owned.path
        self.key: dict[str, Any] = {}
        self._lines = owned.path / (f"journal-{share}.jsonl" if share else "journal.jsonl")
        self._checksums: dict[int, str] = {}
        self._counts: dict[int, tuple[tuple[int, int], ...]] = {}

    @property
    def part_counts(self) -> dict[int, dict[int, int]]:
        """Pixels of each value of the class band, by finished part."""
        return {part: dict(counts) for part, counts in self._counts.items()}

    @property
    def counts(self) -> dict[int, int]:
        """Pixels of each value of the class band in all finished parts."""
        total: Counter[int] = Counter()
        for counts in self._counts.values():
            total.update(dict(counts))
        return dict(sorted(total.items()))

    def record(self, part: int, sha256: str, counts: dict[int, int]) -> None:
        """Record a finished part and its pixels by class; they are on disk when this returns."""
        append_line(self._lines, {"part": part, "sha256": sha256, "counts": sorted(counts.items())})
        self._checksums[part], self._counts[part] = sha256, tuple(counts.items())

    def finished(self, parts: Collection[int], checksum_of: Callable[[int], str]) -> set[int]:
        """Return those of `parts` that are on disk with the recorded checksum; the journal keeps only these.

        `checksum_of` returns the checksum of a part on disk, empty where it is missing.
        """
        intact = set()
        for part, checksum in self._checksums.items():
            if part in parts and checksum_of(part) == checksum:
                intact.add(part)
            elif part in parts:
                logger.warning("part %d is missing or damaged and is made again", part)
        self._checksums = {part: self._checksums[part] for part in intact}
        self._counts = {part: self._counts[part] for part in intact}
        return intact

    @property
    def is_begun(self) -> bool:
        """True if the folder holds more than locks."""
        return not all(p == self._owned.mark or _is_lock(p.name) for p in self.folder.iterdir())

    @property
    def bytes(self) -> int:
        """Bytes of all files in the folder."""
        total = 0
        for path in self.folder.rglob("*"):
            # Another run may rename its files meanwhile.
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def claim(self, paths: Sequence[Path]) -> None:
        """Record the files beside the map that this run is about to write, for `claimed_by`."""
        claims = {"format_version": FORMAT_VERSION, "paths": [str(path.resolve()) for path in paths]}
        write_document(self.folder / CLAIMS, claims)

    def remove(self) -> None:
        """Remove the folder when the map is finished."""
        self._owned.drop()

    def begin(self, key: dict[str, Any], *, restart: bool) -> None:
        """Continue the work in the folder if it has this key; start if there is none.

        Raises
        ------
        InputError
            If the work was begun with another key and `restart` is False.
        """
        self.key = document = document_of(key)
        with Lock(self.folder / "begin.lock", "the key of the work", wait=True):
            recorded = None if restart else read_key(self.folder)
            if recorded is None:
                self._owned.clear(kept=_is_lock)
                write_document(self.folder / KEY, document)
        if recorded is not None and recorded != document:
            begin_anew = f"remove '{self.folder}'" if self._share else "add --restart"
            raise InputError(
                f"cannot continue the work in '{self.folder}', since it was begun with another "
                f"{differences(recorded, document)}",
                f"Repeat the command as it was, or {begin_anew} to drop the finished parts and begin anew.",
            )
        if self._share is None:
            # With shares, temporary files may belong to runs that are alive.
            remove_leftovers(self.folder, below=True)
        journals = sorted(self.folder.glob("journal*.jsonl"))
        for entry in itertools.chain.from_iterable(map(read_lines, journals)):
            part = entry["part"]
            self._checksums[part] = entry["sha256"]
            self._counts[part] = tuple((value, count) for value, count in entry["counts"])


def document_of(key: dict[str, Any]) -> dict[str, Any]:
    """Return a key as `read_key` reads it after it was written."""
    return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(key))}


def read_key(folder: Path) -> dict[str, Any] | None:
    """Return the key that the work in a folder was begun with; None if there is none."""
    return _read_object(folder / KEY)


def differences(recorded: Any, current: Any) -> str:
    """Describe the differences between two keys."""
    return ", ".join(sorted(_differences(recorded, current)))


def claimed_by(out: Path) -> set[str]:
    """Return the files that an interrupted run for the map `out` has written under their final names."""
    claims = _read_object(folder_of(out) / CLAIMS) or {}
    paths = claims.get("paths", ())
    return {str(path) for path in paths} if isinstance(paths, list) else set()


@contextlib.contextmanager
def open_journal(out: Path, share: str | None = None, *, claimed: bool = False) -> Iterator[Journal]:
    """Lock ``OUT.parts/`` and open its journal; `Journal.begin` then compares the key.

    Parameters
    ----------
    share
        Name of a share of the parts (``3-of-8``), if other processes make the other shares.
    claimed
        True if the caller holds the lock on the map (`claim_outputs`).

    Raises
    ------
    InputError
        If another process writes the map `out`, or the same share of it.
    """
    owned = OwnFolder(folder_of(out), "parts", _NAMES, f"the parts of the map '{out}'", exclusive=True)
    with contextlib.ExitStack() as stack:
        if not claimed:
            stack.enter_context(Lock(lock_of(out), f"the map '{out}'", shared=share is not None, remove=True))
        if share is None:
            remove_leftovers(out.parent, owned.path.name)
        owned.take()
        if share is not None:
            stack.enter_context(Lock(owned.path / f"{share}.lock", f"share {share} of the map '{out}'"))
        journal = Journal(owned, share)
        try:
            yield journal
        finally:
            if share is None and owned.path.is_dir() and not journal.is_begun:
                journal.remove()


def folder_of(out: Path) -> Path:
    """Return the folder that holds the parts of a map until it is whole."""
    return out.with_name(out.name + ".parts")


def _is_lock(name: str) -> bool:
    return name.endswith(".lock")


def _read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none.

    A disk that doesn't answer raises OSError, lest the finished parts are taken for missing.
    """
    try:
        data = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _differences(recorded: Any, current: Any, name: str = "") -> Iterator[str]:
    """Yield the entries that differ between two JSON objects, nested names joined by dots."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        for key in recorded.keys() | current.keys():
            yield from _differences(recorded.get(key), current.get(key), f"{name}.{key}" if name else key)
    elif recorded != current:
        yield f"{name} ({_shorten(recorded)}, now {_shorten(current)})"


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
