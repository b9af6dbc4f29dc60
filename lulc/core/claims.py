"""Claims on outputs: only one run at a time writes a file, and the next one cleans up after a killed one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from lulc.core.removal import discard, remove_leftovers
from lulc.core.schema import InputError
from lulc.core.storage import Lock, identity_of, lock_of


@dataclass(frozen=True)
class Claims:
    """Outputs that only this run may write; made by `claim_outputs`."""

    unfinished: Set[Path]

    def may_replace(self, output: Path) -> bool:
        """True if a killed run of the same command wrote the existing file or folder."""
        return output in self.unfinished


@contextlib.contextmanager
def claim_outputs(outputs: Sequence[Path], command: object = "", *, wait: bool = False) -> Iterator[Claims]:
    """Lock outputs until the block ends, and delete temporary files that killed runs left beside them.

    Raises InputError if another process writes one of the outputs, unless `wait` is True.

    The lock of an output is a hidden file beside it. It records the command and the identity of each file
    that was renamed to the output (`rename_durably`), so that the next run recognises the output of a killed
    one. A run that fails deletes its new outputs, but not those that replaced an existing file.

    Parameters
    ----------
    command
        Description of the run; equal commands write equal outputs.
    wait
        True to wait for another process that writes one of the outputs.
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
    """Record this run in the lock; returns True if a killed run of the same command wrote the output."""
    lock = lock_of(output)
    entries = list(_entries(lock))
    same = all(entry.get("command", command) == command for entry in entries)
    with open(lock, "a" if same else "w", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"command": command, "process": os.getpid()}) + "\n")
    written = [entry["written"] for entry in entries if "written" in entry]
    return same and os.path.lexists(output) and identity_of(output) in written


def _is_of_this_run(output: Path) -> bool:
    """True if this run, the last in the lock, wrote the output."""
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
    """Raise InputError if two outputs of a command are the same file."""
    seen: set[Path] = set()
    for output in outputs:
        if output.resolve() in seen:
            raise InputError(
                f"cannot write '{output}', since the command names it twice, expected different outputs",
                "Give each output another name.",
            )
        seen.add(output.resolve())
