"""Run folders: their lock and key, the history, and the models that stay."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from lulc.config import TrainConfig
from lulc.core.codec import Jsonable
from lulc.core.documents import read_document, write_document, write_rows
from lulc.core.removal import OwnFolder, remove_leftovers
from lulc.core.schema import InputError
from lulc.core.storage import Lock
from lulc.models.weights import BASELINE, FEW_LABELS, PICKS_FILE

FORMAT_VERSION = 1

DOCUMENT = "run.json"
HISTORY = "history.csv"
PICTURE = "history.png"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

SCORES = {"lowest-val-loss": ("val_loss", min), "highest-val-accuracy": ("val_accuracy", max),
          "best-macro-f1": ("val_macro_f1", max)}  # fmt: skip
"""Column of the history for each pick by score, and which end of it is best."""

FREE = {"data", "validation_data", "out", "minutes", "keep", "workers", "tensorboard", "overwrite",
        "restart", "init",
        "devices", "processes", "process", "coordinator", "stacks_on",
        "pretrain", "input_options", "plan"}  # fmt: skip
"""Options left out of the key: they don't change the weights, or name inputs, whose content is in the key."""

PLAN = "plan.json"
"""Plan of the training with its reasons."""

_ENTRIES = {
    "format_version": {"const": FORMAT_VERSION}, "finished": {"type": "boolean"},
    "parameters": {"type": "object"},
    "inputs": {"type": "object", "additionalProperties": {"type": "string"}},
}  # fmt: skip
SCHEMA: dict[str, Any] = {"type": "object", "required": list(_ENTRIES), "properties": _ENTRIES}
"""JSON Schema of the document of a run."""

STREAMS = 2
"""Version of the random streams: a new one whenever a seed leads to other random numbers."""

DECISIVE = ("parameters", "inputs")
"""Entries of the document that the key is made of."""

_MODEL = re.compile(r"(\d{2,}-\d+\.\d{2})\.(keras|json)")


@dataclass(frozen=True)
class Row(Jsonable):
    """Epoch of the history.

    Parameters
    ----------
    batches
        Batches trained; fewer than planned if the time budget ended the epoch.
    seconds
        Time spent with validation, without the pauses of an interrupted run.
    loss, accuracy
        Means over the training batches, weighted by labelled pixels.
    val_loss, val_accuracy, val_macro_f1
        Metrics of the validation crops, which are the same in every epoch.
        A pretraining has other metrics here, see `lulc.training.loop.PretrainingLoop`.
    learning_rate
        At the end of the epoch.
    model
        File name of its weights in the run folder, which may have been removed since.
    """

    epoch: int
    batches: int
    seconds: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    model: str


def picks_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the model file of each pick; the first of equally good epochs."""
    picks = {
        pick: best(rows, key=operator.attrgetter(column)).model for pick, (column, best) in SCORES.items()
    }
    return picks | {"last": rows[-1].model}


def kept_models(rows: Sequence[Row], keep: str) -> set[str]:
    """Return the model files to keep: every pick, and by `keep` all, the last or a number of last ones."""
    if keep == "all":
        return {row.model for row in rows}
    count = int(keep) if keep != "best" else 1
    return set(picks_of(rows).values()) | {row.model for row in rows[-count:]}


def is_stale(rows: Sequence[Row], patience: int) -> bool:
    """Return True if none of the last `patience` epochs is a pick by score; always False for 0."""
    if not rows or not patience:
        return False
    picked = [rows.index(row) for row in rows for pick in SCORES if row.model == picks_of(rows)[pick]]
    return len(rows) - 1 - max(picked) >= patience


class Run:
    """Folder of a run; `open_run` makes it and holds its lock.

    Parameters
    ----------
    parameters, inputs
        Options that decide the weights, JSON-ready, and sha256 of each input, by name.
    """

    def __init__(self, folder: Path, parameters: dict[str, Any], inputs: dict[str, str]) -> None:
        self.folder = folder
        self._files = _files_of(folder)
        self._document: dict[str, Any] = {
            "format_version": FORMAT_VERSION, "finished": False, "parameters": parameters, "inputs": inputs
        }  # fmt: skip
        self._clear_first = False

    @property
    def key(self) -> str:
        """sha256 of parameters and inputs."""
        decisive = [self._document[entry] for entry in DECISIVE]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def check(self, *, overwrite: bool, restart: bool) -> None:
        """Decide whether to continue the run in the folder or to start from nothing; results stay untouched.

        Raises InputError if the folder holds a finished run, a run with another key, or models without a run.
        """
        remove_leftovers(self.folder)
        remove_leftovers(self.checkpoints)
        path = self.folder / DOCUMENT
        self._clear_first = True
        if overwrite:
            document = _document_in(self.folder)
            interrupted = document is not None and not document["finished"] and self._has_key_of(document)
            self._clear_first = restart or not interrupted
        elif not path.exists():
            if self._models():
                raise InputError(
                    f"cannot train into '{self.folder}', since it holds models but no '{DOCUMENT}', "
                    "expected an empty folder or a run of this command",
                    "Give another --out, or `--overwrite` to replace them.",
                )
        else:
            document = self._read(path)
            if document["finished"]:
                # A kill at the very end leaves checkpoints behind.
                self._files.clear(lambda name: not name.startswith(CHECKPOINTS))
            if not restart or document["finished"]:
                self._compare(document)
                self._clear_first = False

    def begin(self) -> None:
        """Clear the folder if `check` decided so, and write the document of the run."""
        if self._clear_first:
            self.clear()
        write_document(self.folder / DOCUMENT, self._document)

    def finish(self) -> None:
        write_document(self.folder / DOCUMENT, {**self._document, "finished": True})

    def write_history(self, rows: Sequence[Row]) -> None:
        write_rows(self.folder / HISTORY, [[f.name for f in fields(Row)], *map(astuple, rows)])

    def tidy(self, rows: Sequence[Row], keep: str) -> None:
        """Remove the models that `keep` does not ask for, with their cards."""
        kept = kept_models(rows, keep)
        for path in self._models():
            if path.with_suffix(".keras").name not in kept:
                self._files.remove(path.name)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read_document(path, SCHEMA, "run", FORMAT_VERSION)
        except InputError as error:
            raise InputError(
                error.problem, "Give another --out, or `--overwrite` to drop what is there and start again."
            ) from error

    def _compare(self, document: dict[str, Any]) -> None:
        if document["finished"]:
            raise InputError(
                f"cannot train into '{self.folder}', since it holds a finished run, expected an empty folder",
                "Give another --out, or `--overwrite` to replace it.",
            )
        for entry in DECISIVE:
            old, new = document[entry], self._document[entry]
            for name in sorted(old.keys() | new.keys()):
                if old.get(name) != new.get(name):
                    raise InputError(
                        f"cannot continue the run in '{self.folder}', since its {entry[:-1]} {name} was "
                        f"{old.get(name)}, expected the same as now: {new.get(name)}",
                        "Give `--restart` to drop the partial work and start again, or another --out.",
                    )

    def _has_key_of(self, document: dict[str, Any]) -> bool:
        return all(document[entry] == self._document[entry] for entry in DECISIVE)

    def is_finished(self) -> bool:
        """Return True if the folder holds this very run, complete."""
        document = _document_in(self.folder)
        return document is not None and document["finished"] and self._has_key_of(document)

    def _models(self) -> list[Path]:
        return [path for path in self.folder.glob("*-*.*") if _MODEL.fullmatch(path.name)]

    def clear(self) -> None:
        """Remove the files of a run from its folder, and nothing else."""
        self._files.clear()


def parameters_of(config: TrainConfig) -> dict[str, Any]:
    """Return the options of a resolved config that decide the weights, and `STREAMS`; JSON-ready."""
    options = {name: value for name, value in asdict(config).items() if name not in FREE}
    return dict(json.loads(json.dumps(options | {"random streams": STREAMS})))


def is_finished(config: TrainConfig, inputs: dict[str, str]) -> bool:
    """Return True if the folder of a resolved config holds this very run, complete."""
    return Run(Path(config.out), parameters_of(config), inputs).is_finished()


def is_interrupted(folder: Path) -> bool:
    """Return True if a folder holds an interrupted run."""
    document = _document_in(folder)
    return document is not None and not document["finished"]


def clear_run(folder: Path) -> None:
    """Remove the files of a run from a folder; raises InputError if another process works on it."""
    with _lock(folder):
        Run(folder, {}, {}).clear()


def _document_in(folder: Path) -> dict[str, Any] | None:
    """Read the document of a folder; None if it is missing or damaged."""
    try:
        return read_document(folder / DOCUMENT, SCHEMA, "run", FORMAT_VERSION)
    except InputError:
        return None


def _files_of(folder: Path) -> OwnFolder:
    """Return the folder with the patterns of all file names that a run writes."""
    names = [re.escape(name) for name in (DOCUMENT, HISTORY, PICTURE, PICKS_FILE)]
    names += [rf"({BASELINE}|{FEW_LABELS})\.(npz|json)", re.escape(PLAN)]
    names += [_MODEL.pattern, rf"{CHECKPOINTS}/(checkpoint-\d{{8}}\.(bin|json))?"]
    names += [rf"{TENSORBOARD}/(train|validation)?(/|/events\.out\.tfevents\..+)?"]
    return OwnFolder(folder, "run", "|".join(names), "a run")


def _lock(folder: Path) -> Lock:
    """Return the lock of a folder that holds a run of this toolkit, or no file at all."""
    files = _files_of(folder)
    files.take(lambda: _document_in(folder) is not None)
    return Lock(files.mark, f"the run '{folder}'")


@contextlib.contextmanager
def open_run(config: TrainConfig, inputs: dict[str, str], *, follow: bool = False) -> Iterator[Run]:
    """Lock the run folder of a resolved config and check that it can be used; `Run.begin` then uses it.

    Raises InputError as `Run.check` does, and if another process holds the lock.

    Parameters
    ----------
    inputs
        sha256 of each input by name.
    follow
        True in a process that trains with the one that holds the lock, and writes nothing.
    """
    folder = Path(config.out)
    run = Run(folder, parameters_of(config), inputs)
    if follow:
        yield run
        return
    with _lock(folder):
        run.check(overwrite=config.overwrite, restart=config.restart)
        yield run
