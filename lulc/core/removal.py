"""The only module that deletes files, and only those that the toolkit can prove to be its own.

There are two proofs:

- A temporary file or folder has a sealed name (`temporary_name`), which ends with a checksum of itself.
- A folder has a mark (`OwnFolder`), which the toolkit sets if the folder holds no file with one of its names.
  In a marked folder it may delete files with these names, and no others.

The toolkit makes no links, so it neither deletes nor follows any.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lulc.core.schema import InputError

logger = logging.getLogger("lulc")

_SEALED = re.compile(r"\.(?P<name>.+)\.(?P<nonce>[0-9a-f]{8})(?P<seal>[0-9a-f]{12})\.partial", re.DOTALL)

_LONGEST = 200  # bytes of a name in its temporary name; file systems allow 255 in all

MOVE_AWAY = "Move it away, or give another output."


def temporary_name(target: Path) -> Path:
    """Return a new sealed name beside `target`, for a file or folder that may be deleted at any time."""
    name, nonce = _shortened(target.name), secrets.token_hex(4)
    return target.with_name(f".{name}.{nonce}{_seal(name, nonce)}.partial")


def is_temporary(path: Path) -> bool:
    """True if a path has a sealed name and is no link."""
    match = _SEALED.fullmatch(path.name)
    return bool(match and match["seal"] == _seal(match["name"], match["nonce"]) and not path.is_symlink())


def remove_temporary(path: Path) -> None:
    """Delete a temporary file or folder if it exists; raises ValueError for a name without a seal."""
    if not is_temporary(path):
        raise ValueError(f"'{path}' is not a temporary name of this toolkit")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_leftovers(folder: Path, of: str | None = None, *, below: bool = False) -> None:
    """Delete temporary files and folders that killed runs left; the caller holds the lock.

    Parameters
    ----------
    of
        Name of the file that they were written for; None for any.
    below
        True to search subfolders too.
    """
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            path = Path(entry.path)
            if is_temporary(path):
                match = _SEALED.fullmatch(path.name)
                if of is None or (match is not None and match["name"] == _shortened(of)):
                    remove_temporary(path)
            elif below and entry.is_dir(follow_symlinks=False):
                remove_leftovers(path, of, below=True)


def withdraw(path: Path) -> None:
    """Delete an output that the caller may replace and is about to write."""
    if not path.is_symlink() and path.is_dir():
        raise InputError(f"cannot replace '{path}', since it is a folder, expected a file", MOVE_AWAY)
    path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Delete a file or folder that the caller has just made; a kill leaves all of it or nothing."""
    temporary = temporary_name(path)
    os.rename(path, temporary)
    remove_temporary(temporary)


def strangers(folder: Path, names: re.Pattern[str]) -> list[str]:
    """Return the paths in a folder that the toolkit did not make, relative to the folder.

    Parameters
    ----------
    folder
        It need not exist.
    names
        Relative paths that the toolkit makes there; those of folders end with ``/``.
    """
    return [name for name, is_own in _survey(folder, names) if not is_own]


class OwnFolder:
    """A folder that the toolkit writes into, and the names that it may delete there.

    Parameters
    ----------
    kind
        Suffix of the mark ``.lulc-KIND``.
    names
        Pattern of the relative paths that the toolkit makes there, as in `strangers`.
    what
        Content of the folder, for messages.
    exclusive
        True for a folder that the toolkit makes and removes, and that holds nothing else.
    """

    def __init__(self, path: Path, kind: str, names: str, what: str, *, exclusive: bool = False) -> None:
        self.path = path
        self.mark = path / f".lulc-{kind}"
        self._names = re.compile(f"(?:{names})|{re.escape(self.mark.name)}")
        self._what = what
        self._exclusive = exclusive

    @property
    def is_marked(self) -> bool:
        return self.mark.is_file() and not self.mark.is_symlink()

    def check(self, is_proven: Callable[[], bool] = lambda: False) -> None:
        """Raise the error that `take` would raise, and write nothing."""
        if self.is_marked or self._exclusive:
            return
        names = (name for name, _ in _survey(self.path, self._names) if self._names.fullmatch(name))
        first = next(names, None)
        if first is not None and not is_proven():
            raise self._refuse(f"it holds '{first}', which this toolkit did not write there")

    def take(self, is_proven: Callable[[], bool] = lambda: False) -> None:
        """Mark the folder, and make it if it is missing.

        `is_proven` tells whether the content shows that the toolkit wrote the files of an unmarked folder.

        Raises InputError if the folder, or a file in it that the toolkit would write or delete, is
        not its own.
        """
        if self._exclusive:
            self._take_alone()
            return
        self.check(is_proven)
        self.path.mkdir(parents=True, exist_ok=True)
        self.mark.touch()

    def _take_alone(self) -> None:
        while True:
            if self.path.is_symlink():
                raise self._refuse("it is a link, expected a folder that this toolkit made")
            if os.path.lexists(self.path):
                others = strangers(self.path, self._names) if self.path.is_dir() else []
                if not self.is_marked:
                    holds = f" (it holds '{others[0]}')" if others else ""
                    raise self._refuse(f"this toolkit did not make it{holds}")
                if others:
                    raise self._refuse(f"it holds '{others[0]}', which this toolkit did not write")
                return
            # The folder appears together with its mark, so that a kill never leaves an unmarked one.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_name(self.path)
            temporary.mkdir()
            (temporary / self.mark.name).touch()
            try:
                os.rename(temporary, self.path)
            except OSError:
                remove_temporary(temporary)
                if not os.path.lexists(self.path):
                    raise

    def _refuse(self, why: str) -> InputError:
        return InputError(f"cannot keep {self._what} in '{self.path}', since {why}", MOVE_AWAY)

    def remove(self, name: str) -> None:
        """Delete a file of the toolkit, if it exists, by its path below the folder."""
        if not self._names.fullmatch(name) or not self.is_marked:
            raise ValueError(f"'{name}' in '{self.path}' is not this toolkit's own")
        path = self.path / name
        if not path.is_symlink():
            path.unlink(missing_ok=True)

    def clear(self, kept: Callable[[str], bool] = lambda name: False) -> None:
        """Delete all files of the toolkit except the mark and those for which `kept` is True."""
        for name, is_own in _survey(self.path, self._names):
            if is_own and name != self.mark.name and not kept(name):
                _delete(self.path / name)

    def release(self) -> None:
        """Delete the mark: from now on the content has to prove whose it is."""
        if self.is_marked:
            self.mark.unlink()

    def drop(self) -> None:
        """Delete an exclusive folder; files of others stay, with a warning.

        It gets a temporary name first, so that a kill leaves all of the folder or nothing.
        """
        if others := strangers(self.path, self._names):
            logger.warning(
                "'%s' stays, since it holds '%s', which this toolkit did not write", self.path, others[0]
            )
            self.clear()
            self.release()
            return
        temporary = temporary_name(self.path)
        os.rename(self.path, temporary)
        # NFS keeps files that are still open, so that the folder may not be empty yet.
        with contextlib.suppress(OSError):
            remove_temporary(temporary)


def _survey(folder: Path, names: re.Pattern[str], above: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each path below a folder, content first, and whether the toolkit made it."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        name = above + entry.name
        if entry.is_symlink():
            yield name, False
        elif entry.is_dir():
            is_own = names.fullmatch(f"{name}/") is not None
            if is_own:
                yield from _survey(Path(entry.path), names, f"{name}/")
            yield name, is_own or is_temporary(Path(entry.path))
        elif not entry.name.startswith(".nfs"):
            yield name, names.fullmatch(name) is not None or is_temporary(Path(entry.path))


def _delete(path: Path) -> None:
    """Delete a file, a temporary folder, or an empty folder."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif is_temporary(path):
        remove_temporary(path)
    else:
        with contextlib.suppress(OSError):
            path.rmdir()


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST])


def _seal(name: str, nonce: str) -> str:
    return hashlib.sha256(b"lulc " + os.fsencode(f"{name} {nonce}")).hexdigest()[:12]
