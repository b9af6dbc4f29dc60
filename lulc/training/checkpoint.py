"""Checkpoints: the arrays of an interrupted training, and a marker with their checksum.

A checkpoint is two files. ``checkpoint-{serial}.bin`` holds the raw arrays one after the other;
``checkpoint-{serial}.json``, the marker, is written after it and holds their names, types and shapes, the
sha256 of the first file, and the counters of the run. A file without its marker is ignored. Two checkpoints
are kept, so that a damaged one costs minutes.
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
"""Checkpoints that stay in a folder."""

DTYPES = (
    "bool", "uint8", "int8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
    "bfloat16",
)  # fmt: skip

_COUNT = {"type": "integer", "minimum": 0}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_ARRAY = {
    "name": {"type": "string"}, "dtype": {"enum": list(DTYPES)}, "shape": {"type": "array", "items": _COUNT}
}  # fmt: skip
_MARKER = {
    "format_version": {"const": FORMAT_VERSION}, "key": {"type": "string"}, "sha256": _SHA256,
    "bytes": _COUNT, "state": {"type": "object"}, "sha256_of_marker": _SHA256,
    "arrays": {
        "type": "array", "items": {"type": "object", "required": list(_ARRAY), "properties": _ARRAY}
    },
}  # fmt: skip
SCHEMA: dict[str, Any] = {"type": "object", "required": list(_MARKER), "properties": _MARKER}
"""JSON Schema of a marker."""

_NAME = re.compile(r"checkpoint-(\d{8})\.json")
_FILE = re.compile(r"checkpoint-\d{8}\.(bin|json)")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """State of a run: variables by name, and counters and history, JSON-ready."""

    arrays: Arrays
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, key: str) -> None:
    """Write a checkpoint with the key of the run's inputs and parameters; keep the newest `KEPT`."""
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
        # The marker goes first: without it the arrays are ignored.
        withdraw(_marker_file(folder, old))
        withdraw(_arrays_file(folder, old))


def load_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """Return the newest intact checkpoint with this key; None if there is none.

    A damaged checkpoint (missing, truncated or changed bytes in either file) causes a warning, and the one
    before it is used.
    """
    for serial in sorted(_serials(folder), reverse=True):
        path = _marker_file(folder, serial)
        try:
            marker = read_document(path, SCHEMA, "checkpoint", FORMAT_VERSION)
            if _digest_of(marker) != marker["sha256_of_marker"]:
                raise _damaged(path, "its own sha256 differs")
            if marker["key"] == key:
                return Checkpoint(_read_arrays(_arrays_file(folder, serial), marker), marker["state"])
        except InputError as error:
            logger.warning("%s; continuing from the checkpoint before it", error.problem)
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, and temporary files of an interrupted writing."""
    remove_leftovers(folder)
    for path in folder.glob("checkpoint-*"):
        if _FILE.fullmatch(path.name):
            withdraw(path)


def variables_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Return weights, random states and optimizer variables of a compiled model, numbered in their order.

    Keras' names don't identify them, since they number the optimizers of a process.
    """
    return {
        name: np.asarray(keras.ops.convert_to_numpy(variable)) for name, variable in _named_variables(model)
    }


def restore_variables(model: keras.Model, arrays: Arrays) -> None:
    """Assign the arrays of `variables_of` to a model compiled in the same way.

    Raises InputError if names or shapes differ.
    """
    variables = dict(_named_variables(model))
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if expected != shapes:
        differing = sorted(set(expected.items()) ^ set(shapes.items()))[:3]
        raise InputError(
            "cannot continue from the checkpoint, since its arrays are not those of this network: "
            f"{differing}",
            "Give `--restart` to drop the partial work and start again.",
        )
    for name, variable in variables.items():
        variable.assign(np.array(arrays[name]))


def _named_variables(model: keras.Model) -> list[tuple[str, Any]]:
    # An optimizer that scales the loss gets a second set of variables if it is built twice.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [
        (f"{owner}/{i:04d}", variable)
        for owner, variables in (("model", model.variables), ("optimizer", model.optimizer.variables))
        for i, variable in enumerate(variables)
    ]


def _read_arrays(path: Path, marker: dict[str, Any]) -> dict[str, np.ndarray]:
    layout = [(a["name"], np.dtype(_dtype(a["dtype"])), tuple(a["shape"])) for a in marker["arrays"]]
    if not path.is_file():
        raise _damaged(path, "there is no such file")
    expected = sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in layout)
    if not path.stat().st_size == marker["bytes"] == expected:
        raise _damaged(path, f"it has {path.stat().st_size} bytes, expected {expected}")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != marker["sha256"]:
        raise _damaged(path, "its sha256 differs from that in its marker")
    arrays, start = {}, 0
    for name, dtype, shape in layout:
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
    content = {name: value for name, value in marker.items() if name != "sha256_of_marker"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _serials(folder: Path) -> list[int]:
    return [int(m.group(1)) for path in folder.glob("checkpoint-*.json") if (m := _NAME.fullmatch(path.name))]


def _arrays_file(folder: Path, serial: int) -> Path:
    return folder / f"checkpoint-{serial:08d}.bin"


def _marker_file(folder: Path, serial: int) -> Path:
    return folder / f"checkpoint-{serial:08d}.json"
