"""Checkpoints: the arrays of an interrupted training, and a marker that vouches for them.

A checkpoint is two files. ``checkpoint-{serial}.bin`` holds the arrays one after the other, raw;
``checkpoint-{serial}.json``, written after it, lists their names, types and shapes, the sha256 of
the first file, and the counters of the run. A checkpoint without its marker doesn't exist. Two are kept,
so that a damaged newest one costs minutes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lulc.core.documents import read_document, write_document
from lulc.core.removal import remove_leftovers, withdraw
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.models.backend import keras

logger = logging.getLogger("lulc")

FORMAT_VERSION = 1
KEPT = 2
"""Checkpoints kept in a folder, the newest ones."""

DTYPES = (
    "bool", "uint8", "int8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
    "bfloat16",
)  # fmt: skip
"""Types that arrays of a checkpoint may have."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "key", "sha256", "bytes", "arrays", "state", "sha256_of_marker"],
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "key": {"type": "string"},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "sha256_of_marker": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "bytes": {"type": "integer", "minimum": 0},
        "state": {"type": "object"},
        "arrays": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "dtype", "shape"],
                "properties": {
                    "name": {"type": "string"},
                    "dtype": {"enum": list(DTYPES)},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                },
            },
        },
    },
}

_NAME = re.compile(r"checkpoint-(\d{8})\.json")
_FILE = re.compile(r"checkpoint-\d{8}\.(bin|json)")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """State from which a run continues as if it had never stopped.

    Parameters
    ----------
    arrays
        Variables by name.
    state
        Counters, scores and history; JSON-ready.
    """

    arrays: Arrays
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, key: str) -> None:
    """Write a checkpoint beside the older ones, then drop all but the newest `KEPT`.

    Parameters
    ----------
    key
        Key of the run's inputs and parameters; `load_checkpoint` skips checkpoints with another one.
    """
    serial = max(_serials(folder), default=0) + 1
    digest = hashlib.sha256()
    size = 0
    listed = []
    with write_atomically(_arrays_file(folder, serial)) as temporary, open(temporary, "wb") as file:
        for name, array in checkpoint.arrays.items():
            raw = np.ascontiguousarray(array).tobytes()
            file.write(raw)
            digest.update(raw)
            size += len(raw)
            listed.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape)})
    marker = {
        "format_version": FORMAT_VERSION,
        "key": key,
        "sha256": digest.hexdigest(),
        "bytes": size,
        "arrays": listed,
        "state": checkpoint.state,
    }
    marker["sha256_of_marker"] = _digest_of(marker)
    write_document(_marker_file(folder, serial), marker)
    for old in sorted(_serials(folder))[:-KEPT]:
        _remove(folder, old)


def load_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """Return the newest whole checkpoint with this key; None where there is none.

    A damaged one (missing, truncated or changed bytes in either file) is named in a warning, and the one
    before it is taken.
    """
    for serial in sorted(_serials(folder), reverse=True):
        try:
            marker = read_document(_marker_file(folder, serial), SCHEMA, "checkpoint", FORMAT_VERSION)
            if _digest_of(marker) != marker["sha256_of_marker"]:
                raise _damaged(_marker_file(folder, serial), "its sha256 of itself differs")
            if marker["key"] != key:
                continue
            return Checkpoint(_read_arrays(_arrays_file(folder, serial), marker), marker["state"])
        except InputError as error:
            logger.warning("%s; going on from the checkpoint before it", error.problem)
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove every checkpoint, and files of an interrupted writing."""
    remove_leftovers(folder)
    for path in folder.glob("checkpoint-*"):
        if _FILE.fullmatch(path.name):
            withdraw(path)


def variables_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Return weights, random states and optimizer variables of a compiled model, by their position.

    Names would not do: Keras numbers its optimizers, so that the second one of a process is another.
    """
    return {
        name: np.asarray(keras.ops.convert_to_numpy(variable)) for name, variable in _named_variables(model)
    }


def restore_variables(model: keras.Model, arrays: Arrays) -> None:
    """Assign the variables that `variables_of` took from a model compiled in the same way.

    Raises
    ------
    InputError
        If names or shapes differ.
    """
    named = dict(_named_variables(model))
    expected = {name: tuple(variable.shape) for name, variable in named.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[:3]
        raise InputError(
            f"cannot continue from the checkpoint, since its arrays are not those of this network: {wrong}",
            "Give `--restart` to drop the partial work and begin again.",
        )
    for name, variable in named.items():
        variable.assign(np.array(arrays[name]))


def _named_variables(model: keras.Model) -> list[tuple[str, Any]]:
    # Building a second time gives an optimizer that scales the loss a second set of variables.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [
        (f"{owner}/{i:04d}", variable)
        for owner, variables in (("model", model.variables), ("optimizer", model.optimizer.variables))
        for i, variable in enumerate(variables)
    ]


def _read_arrays(path: Path, marker: dict[str, Any]) -> dict[str, np.ndarray]:
    listed = [(a["name"], np.dtype(_dtype(a["dtype"])), tuple(a["shape"])) for a in marker["arrays"]]
    if not path.is_file():
        raise _damaged(path, "there is no such file")
    needed = sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in listed)
    if not path.stat().st_size == marker["bytes"] == needed:
        raise _damaged(path, f"it has {path.stat().st_size} bytes, expected {needed}")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != marker["sha256"]:
        raise _damaged(path, "its sha256 differs from its marker's")
    arrays, start = {}, 0
    for name, dtype, shape in listed:
        arrays[name] = np.frombuffer(raw, dtype, math.prod(shape), start).reshape(shape)
        start += arrays[name].nbytes
    return arrays


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return name


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"cannot read the checkpoint '{path}', since {why}")


def _digest_of(marker: dict[str, Any]) -> str:
    rest = {name: value for name, value in marker.items() if name != "sha256_of_marker"}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _serials(folder: Path) -> list[int]:
    return [int(m.group(1)) for path in folder.glob("checkpoint-*.json") if (m := _NAME.fullmatch(path.name))]


def _arrays_file(folder: Path, serial: int) -> Path:
    return folder / f"checkpoint-{serial:08d}.bin"


def _marker_file(folder: Path, serial: int) -> Path:
    return folder / f"checkpoint-{serial:08d}.json"


def _remove(folder: Path, serial: int) -> None:
    # The marker goes first: a checkpoint without it doesn't exist.
    withdraw(_marker_file(folder, serial))
    withdraw(_arrays_file(folder, serial))
