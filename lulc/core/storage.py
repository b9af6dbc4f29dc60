"""Files on disk: atomic writing, checksums, locks and free space."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from lulc.core.removal import remove_temporary, temporary_name, withdraw
from lulc.core.schema import InputError


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str], *, parents: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without error.

    `parents` makes a missing folder.

    The file is synced to disk before the rename and its folder after it, so that after a crash `path` holds
    all of the old or of the new content. On an error the temporary file is removed.

    Examples
    --------
    >>> with write_atomically("/tmp/lulc-example.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> Path("/tmp/lulc-example.txt").read_text()
    'whole'
    """
    target = Path(path)
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _fsync(temporary)
        rename_durably(temporary, target)
    finally:
        remove_temporary(temporary)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, and remove it when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_name(target)
    folder.mkdir()
    try:
        yield folder
    finally:
        remove_temporary(folder)


def rename_durably(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a finished, synced file to its final name and sync the folder.

    If the output is claimed, its lock first records the identity of the file for the next run.
    """
    lock = lock_of(Path(target))
    if lock.is_file() and not lock.is_symlink():
        with open(lock, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"written": identity_of(Path(source))}) + "\n")
    os.replace(source, target)
    _fsync(Path(target).parent)


def identity_of(path: Path) -> list[int]:
    """Return inode, size and time, which identify a file or folder in its file system."""
    status = os.lstat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def put_folder(whole: Path, out: Path) -> None:
    """Rename a finished folder to its final name, in place of a folder that the caller may replace.

    A folder can't be renamed over another: a kill in between leaves the old one under a temporary name.
    """
    old = temporary_name(out)
    if out.exists():
        os.rename(out, old)
    rename_durably(whole, out)
    remove_temporary(old)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_disk(folder: str | os.PathLike[str], needed: int, what: str) -> None:
    """Raise InputError if the disk of `folder` has less than `needed` free bytes."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"cannot write {what} to '{folder}', since {free / 1e9:.2f} GB are free there, "
            f"expected at least {needed / 1e9:.2f} GB",
            "Free some space, or give a path on another disk.",
        )


def check_absent(path: Path, hint: str = "Give another output, or add --overwrite to replace it.") -> None:
    """Raise InputError if a file or folder exists already."""
    if path.exists():
        raise InputError(f"cannot write '{path}', since it exists already", hint)


class Resource:
    """Base of objects with open files, which `close` or the end of a `with` block closes."""

    def close(self) -> None:
        """Close the files."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def lock_of(output: Path) -> Path:
    """Return the path of the lock on an output: a hidden file beside it."""
    return output.parent.resolve() / f".{output.name}.lulc-lock"


class Lock:
    """A lock on a path (``flock``), which ends with the process that holds it.

    Parameters
    ----------
    what
        Output that it protects, for messages.
    shared
        True to share it with other shared locks.
    wait
        True to wait for its holder instead of raising an error.
    remove
        True to remove the file at the end, unless others share it.

    Raises
    ------
    InputError
        On entering, if another process holds it.
    """

    def __init__(
        self, path: Path, what: str, *, shared: bool = False, wait: bool = False, remove: bool = False
    ) -> None:
        self._path = path
        self._what = what
        self._kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        self._remove = remove
        self._descriptor = -1

    def __enter__(self) -> Lock:
        if not any(self._acquire() for _ in range(100)):
            raise self._refuse("its lock is removed again and again")
        return self

    def _acquire(self) -> bool:
        """Open and lock the file; returns False if the last holder removed it in between."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_symlink():
            raise self._refuse("a link lies in the place of its lock")
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, self._kind)
            # A lock on a file without a name locks nobody out.
            if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                self._descriptor = descriptor
                return True
        except BlockingIOError as error:
            os.close(descriptor)
            raise self._refuse(f"another run is writing it{self._holder()}") from error
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            raise self._refuse(f"its file system gives no locks: {error.strerror}") from error
        os.close(descriptor)
        return False

    def _holder(self) -> str:
        """Return the process id that the lock records, in words."""
        numbers = re.findall(r'"process": (\d+)', self._path.read_text(errors="replace"))
        return f" (process {numbers[-1]})" if numbers else ""

    def _refuse(self, why: str) -> InputError:
        return InputError(
            f"cannot write {self._what}, since {why} (the lock is '{self._path}')",
            "Wait for the other run to end, or give another output.",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._remove:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._descriptor), os.lstat(self._path)):
                    withdraw(self._path)
        os.close(self._descriptor)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
