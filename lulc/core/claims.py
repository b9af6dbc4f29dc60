"""Claims on outputs: one run at a time writes a file, and the next one clears up after a dead one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lulc.core.removal import discard, remove_leftovers
from lulc.core.schema import InputError
from lulc.core.storage import Lock, identity_of, lock_of


class Claims:
    """Outputs that this run alone may write; made by `claim_outputs`."""

    def __init__(self, unfinished: set[Path]) -> None:
        self._unfinished = unfinished

    def may_replace(self, output: Path) -> bool:
        """True where a killed run of the same command wrote the file or folder that lies there."""
        return output in self._unfinished


@contextlib.contextmanager
def claim_outputs(outputs: Sequence[Path], command: object = "", *, wait: bool = False) -> Iterator[Claims]:
    """Lock outputs until the block ends, and delete temporary files that killed runs left beside them.

    The lock of an output is a hidden file beside it, which a killed run leaves. It holds the command and the
    identity of each file that got the output's name under the lock (`rename_durably`). Only a file with
    such an identity counts as the killed run's own. A run that fails deletes what it wrote so far, unless it
    was to replace what lay there.

    Parameters
    ----------
    command
        What the run was asked for; two equal commands write the same.
    wait
        Wait for another process that writes one of them instead of being refused.

    Raises
    ------
    InputError
        If another process writes one of them, unless `wait` is True.
    """
    with contextlib.ExitStack() as stack:
        new, unfinished = [], set()
        for output in sorted(set(outputs)):
            stack.enter_context(Lock(lock_of(output), f"'{output}'", wait=wait, remove=True))
            remove_leftovers(output.parent, output.name)
            if _take_over(output, repr(command)):
                unfinished.add(output)
            if output in unfinished or not os.path.lexists(output):
                new.append(output)
        try:
            yield Claims(unfinished)
        except BaseException:
            for output in filter(_is_of_this_run, new):
                discard(output)
            raise


def _take_over(output: Path, command: str) -> bool:
    """Note this run in the lock; True where a killed run of the same command wrote what lies there."""
    lock = lock_of(output)
    entries = list(_entries(lock))
    same = all(entry.get("command", command) == command for entry in entries)
    with open(lock, "a" if same else "w", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"command": command, "process": os.getpid()}) + "\n")
    written = [entry["written"] for entry in entries if "written" in entry]
    return same and os.path.lexists(output) and identity_of(output) in written


def _is_of_this_run(output: Path) -> bool:
    """True where this run, the last that its lock names, wrote what lies there."""
    written: list[object] = []
    for entry in _entries(lock_of(output)):
        written = [] if "command" in entry else [*written, entry.get("written")]
    return os.path.lexists(output) and identity_of(output) in written


def _entries(lock: Path) -> Iterator[dict[str, object]]:
    for line in lock.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def check_distinct(outputs: Sequence[Path]) -> None:
    """Refuse outputs of one command that are the same file.

    Raises
    ------
    InputError
        Naming the first that comes twice.
    """
    seen: set[Path] = set()
    for output in outputs:
        if output.resolve() in seen:
            raise InputError(
                f"cannot write '{output}', since the command names it twice, expected different outputs",
                "Give each output a name of its own.",
            )
        seen.add(output.resolve())
