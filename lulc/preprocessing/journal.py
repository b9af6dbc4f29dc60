"""Journal of the survey and the finished stacks of a folder, which survives a killed run."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.codec import schema_of
from lulc.core.documents import append_line, check_document, read_lines
from lulc.core.removal import OwnFolder
from lulc.core.schema import InputError
from lulc.core.statistics import Moments
from lulc.core.storage import sha256_of
from lulc.datasets.manifest import FORMAT_VERSION, STACK_SCHEMA, StackFile
from lulc.preprocessing.tiling import Cut, Survey
from lulc.rasters.stack import Coverage

PROGRESS = "progress.jsonl"

_STACK = {
    "type": "object",
    "required": ["stack", "moments"],
    "properties": {"stack": STACK_SCHEMA, "moments": schema_of(Moments)},
}

logger = logging.getLogger("lulc")


class Progress:
    """The survey and the finished stacks, in memory and in ``progress.jsonl``.

    `counts`, int64 (candidate, class), are the labelled valid pixels, -1 where a candidate is not surveyed.
    `coverage`, of the survey, and `moments`, of the training stacks, are exact sums: they don't depend on the
    order in which results are added.
    """

    def __init__(self, folder: Path, key: str, candidates: int, classes: int, channels: int) -> None:
        self.path = folder / PROGRESS
        self.key = key
        self.counts = np.full((candidates, classes), -1, np.int64)
        self.coverage = Coverage()
        self.stacks: dict[str, StackFile] = {}
        self.moments = Moments.zero(channels)

    @property
    def unsurveyed(self) -> list[int]:
        """Numbers of the candidates that are not surveyed yet."""
        return [int(i) for i in np.flatnonzero(self.counts[:, 0] < 0)]

    def add(self, done: Survey | Cut) -> None:
        """Record a surveyed candidate or a finished stack; it is on disk when this returns."""
        if not self.path.exists():
            append_line(self.path, {"format_version": FORMAT_VERSION, "key": self.key})
        append_line(self.path, _entry_of(done))
        self._take(done)

    def _take(self, done: Survey | Cut) -> None:
        if isinstance(done, Survey):
            # A worker that was given up may have surveyed it as well: it counts once.
            if self.counts[done.number, 0] < 0:
                self.counts[done.number] = done.counts
                self.coverage += done.coverage
        elif done.file.name not in self.stacks:
            self.stacks[done.file.name] = done.file
            if done.file.split == "train":
                self.moments += done.moments


def open_progress(
    owned: OwnFolder, key: str, candidates: int, classes: int, channels: int, *, replacing: bool
) -> Progress:
    """Open the journal with the results of an interrupted run that can be kept.

    If finished stacks are to be replaced (`replacing`), only a survey can be kept.

    Raises
    ------
    InputError
        If stacks of another key are there.
    """
    folder = owned.path
    progress = Progress(folder, key, candidates, classes, channels)
    entries = read_lines(progress.path)
    header = next(entries, None)
    if header is None or header.get("format_version") != FORMAT_VERSION or "key" not in header:
        if progress.path.exists():
            logger.warning("starting anew: '%s' is damaged", progress.path)
        return _begun_anew(owned, progress)
    if header["key"] != key:
        if replacing or not any("stack" in entry for entry in entries):
            return _begun_anew(owned, progress)
        raise InputError(
            f"cannot continue in '{folder}', since it holds partial work of other inputs or parameters",
            "Give another --out, or type --restart to drop the partial work.",
        )
    for entry in entries:
        done = _done_of(entry, progress)
        if done is not None and not (replacing and isinstance(done, Cut)):
            progress._take(done)
    if progress.stacks:
        logger.info("continuing: %d stacks are there already", len(progress.stacks))
    return progress


def _begun_anew(owned: OwnFolder, progress: Progress) -> Progress:
    owned.remove(PROGRESS)
    return progress


def _entry_of(done: Survey | Cut) -> dict[str, Any]:
    if isinstance(done, Survey):
        coverage = dataclasses.asdict(done.coverage)
        return {"place": done.number, "counts": list(done.counts), "coverage": coverage}
    return {"stack": done.file.to_json(), "moments": done.moments.to_json()}


def _done_of(entry: dict[str, Any], progress: Progress) -> Survey | Cut | None:
    """Return the result that an entry records; None if it doesn't fit this run or its files are damaged."""
    try:
        if "place" in entry:
            number, counts = int(entry["place"]), tuple(map(int, entry["counts"]))
            fits = 0 <= number < len(progress.counts) and len(counts) == progress.counts.shape[1]
            return Survey(number, counts, Coverage(**entry["coverage"])) if fits else None
        check_document(entry, _STACK, "record of progress", str(progress.path))
        file = StackFile.from_json(entry["stack"], progress.path.parent)
    except (InputError, KeyError, TypeError, ValueError):
        return None
    paths = zip((file.image, file.masks), file.sha256, strict=True)
    intact = all(path.is_file() and sha256_of(path) == sha256 for path, sha256 in paths)
    return Cut(file, Moments.from_json(entry["moments"])) if intact else None
