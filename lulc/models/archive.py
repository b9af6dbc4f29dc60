"""Reader of weights files as plain arrays, without a deep-learning framework.

``.keras`` archives (zip: JSON configuration and HDF5 weights), ``.npz`` files and Keras 2 ``.h5`` files are
opened with zipfile, numpy's reader of plain arrays and h5py alone. Content that could run code, read another
file or exhaust memory is refused with the reason before any value is read.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lulc.core.documents import parse_json
from lulc.core.reader_process import read_apart
from lulc.core.schema import InputError

Arrays = dict[str, np.ndarray]
"""float32 arrays by ``layer/variable``."""

MAX_BYTES = 2 * 2**30
"""Largest weights file; the original network has 43 MB."""

MAX_JSON_BYTES = 16 * 2**20
MAX_RATIO = 100
"""Largest compression ratio of a member; weights hardly compress, so that more is a zip bomb."""

MAX_OBJECTS = 20_000
MAX_DEPTH = 12

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "Conv2DTranspose": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Standardization": ("mean", "std"),
}
"""Variables of each layer in the order in which Keras numbers them."""

LAYERS = VARIABLES.keys() | {
    "Activation", "Add", "Concatenate", "Dropout", "InputLayer", "MaxPooling2D", "ReLU", "Softmax",
    "UpSampling2D",
}  # fmt: skip
"""Layers of networks of this toolkit."""

CLASSES = LAYERS | {
    "Functional", "Model", "DTypePolicy", "HeNormal", "GlorotUniform", "VarianceScaling", "Constant", "Zeros",
    "Ones", "__tuple__", "__keras_tensor__",
}  # fmt: skip
"""Classes that a configuration may name."""


class Refusal(Exception):
    """Reason why a file is refused."""


def read_archive(path: str | os.PathLike[str], *, sha256: str = "", limit: int = MAX_BYTES) -> Arrays:
    """Return the arrays of a weights file, ``.keras``, ``.npz`` or ``.h5``.

    They are finite float32 arrays by ``layer/variable``; those of an ``.npz`` have the types as stored.
    Raises InputError if the file is missing or is anything but plain weights.

    Parameters
    ----------
    sha256
        Expected sha256 of the file; any if empty.
    limit
        Most bytes of all arrays together.
    """
    path = Path(path)
    if not path.is_file():
        raise _refused(path, "there is no such file")
    return read_apart(_load, str(path), sha256, limit, path=path, reading="the weights")


def _load(name: str, sha256: str, limit: int) -> Arrays:
    """Read and check the arrays; runs in the reader process, since HDF5 crashes on damaged files."""
    path = Path(name)
    try:
        content = read_content(path, sha256)
        arrays = _READERS.get(path.suffix, _read_legacy)(content, limit)
        _check_values(arrays)
    except Refusal as refusal:
        raise _refused(path, str(refusal)) from refusal
    except Exception as error:  # zlib, lzma, zipfile and HDF5 each fail in ways of their own
        raise _refused(path, f"it is damaged or no weights file ({error})") from error
    return arrays


def variables_of(model: Any) -> dict[str, Any]:
    """Return the variables of a network by ``layer/variable``, named by `VARIABLES`.

    Keras' own names of layers are numbered by process.
    """
    return {
        f"{layer.name}/{name}": variable
        for layer in model.layers
        for name, variable in zip(VARIABLES.get(type(layer).__name__, ()), layer.weights, strict=False)
    }


def compare_shapes(
    shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], name: str | os.PathLike[str]
) -> None:
    """Raise InputError with the differences between two sets of variables, shapes by ``layer/variable``."""
    missing = [n for n in expected if n not in shapes]
    other = [n for n in shapes if n not in expected]
    common = [n for n in expected if n in shapes]
    differing = [f"{n} {shapes[n]} instead of {expected[n]}" for n in common if shapes[n] != expected[n]]
    lists = (("it lacks", missing), ("it has also", other), ("shapes differ:", differing))
    problems = [f"{text} {_shorten(names)}" for text, names in lists if names]
    if problems:
        raise InputError(
            f"cannot use the weights '{name}', since they are not those of this network: "
            f"{'; '.join(problems)}",
            "Take weights and card from one source, or give the options that the network was trained with.",
        )


def read_content(path: Path, sha256: str) -> bytes:
    """Read a file of a model after a check of its size and, if not empty, the expected sha256."""
    if path.stat().st_size > MAX_BYTES:
        raise Refusal(f"it has {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
    # The bytes hashed are the bytes parsed, even if the file is replaced meanwhile.
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256:
        raise Refusal(f"its sha256 is {digest}, expected {sha256} as its card says")
    return content


def read_parts(content: bytes, limit: int = MAX_BYTES) -> tuple[str, Any, Arrays]:
    """Return the version of Keras, the configuration and the arrays of any ``.keras`` file.

    Sizes and layout are checked, but the configuration is not. Arrays are named by their paths in the
    archive (``layers/conv2d/vars/0``), without those of the optimizer and of random numbers.

    Raises Refusal if it is no such archive, or holds more than a configuration and plain arrays.
    """
    members = _members(content, limit)
    version = str(parse_json(members[METADATA], foreign=True)["keras_version"])
    config = parse_json(members[CONFIG], foreign=True)
    arrays: Arrays = {}
    with h5py.File(io.BytesIO(members[WEIGHTS]), "r") as file:
        for name, dataset in dict(_walk(file, len(members[WEIGHTS]), limit)).items():
            if not name.startswith("optimizer/") and dataset.dtype.kind == "f":
                _add(arrays, name, dataset)
    return version, config, arrays


def _members(content: bytes, limit: int) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        _check_members(archive, limit)
        return {name: _member(archive, name) for name in (METADATA, CONFIG, WEIGHTS)}


def _read_keras(content: bytes, limit: int) -> Arrays:
    members = _members(content, limit)
    config, weights = parse_json(members[CONFIG], foreign=True), members[WEIGHTS]
    _check_classes(config)
    layers = config["config"]["layers"]
    classes = {str(layer["config"]["name"]): str(layer["class_name"]) for layer in layers}
    with h5py.File(io.BytesIO(weights), "r") as file:
        arrays: Arrays = {}
        for name, dataset in dict(_walk(file, len(weights), limit)).items():
            if re.fullmatch(r"layers/\w+/seed_generator/vars/0", name):
                continue
            match = re.fullmatch(r"layers/\w+/vars/(\d)", name)
            layer = _text(dataset.parent.attrs.get("name")) if match else ""
            variables = VARIABLES.get(classes.get(layer, ""), ())
            if not match or int(match[1]) >= len(variables):
                raise Refusal(f"it holds '{name}', which is no variable of a layer in its configuration")
            _add(arrays, f"{layer}/{variables[int(match[1])]}", dataset)
        return arrays


def _check_members(archive: zipfile.ZipFile, limit: int) -> None:
    names = [m.filename for m in archive.infolist()]
    if sorted(names) != sorted((CONFIG, METADATA, WEIGHTS)):
        shown = ", ".join(repr(n[:80]) for n in names[:10])
        raise Refusal(f"it holds the members {shown}, expected '{CONFIG}', '{METADATA}', '{WEIGHTS}'")
    for member in archive.infolist():
        # Keras stores; bzip2 and LZMA take memory that no header declares.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refusal(f"its member '{member.filename}' is compressed in a way that Keras does not use")
        most = limit + 2**24 if member.filename == WEIGHTS else MAX_JSON_BYTES
        if member.file_size > most or member.file_size > MAX_RATIO * max(member.compress_size, 1):
            raise Refusal(
                f"its member '{member.filename}' grows from {member.compress_size} to {member.file_size} "
                f"bytes (a zip bomb), expected at most {most} bytes and {MAX_RATIO} times"
            )


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:
        content = file.read(size + 1)
    if len(content) != size:
        raise Refusal(f"its member '{name}' has another size than the archive says (a zip bomb)")
    return content


def _check_classes(config: Any) -> None:
    """Check that every class that a configuration names is harmless."""
    waiting = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            waiting.extend(node.values())
            name = str(node.get("class_name", "Functional"))
            if name == "Lambda":
                raise Refusal("it holds a Lambda layer, which would run code")
            if name not in CLASSES:
                raise Refusal(f"its configuration names the class '{name[:80]}', which no network here has")


def _read_legacy(content: bytes, limit: int) -> Arrays:
    """Read the arrays of a Keras 2 file: a whole model, or weights only."""
    with h5py.File(io.BytesIO(content), "r") as file:
        datasets = dict(_walk(file, len(content), limit))
        config = _text(file.attrs.get("model_config"))
        if len(config) > MAX_JSON_BYTES:
            raise Refusal(f"its configuration has {len(config)} bytes, expected at most {MAX_JSON_BYTES}")
        if config:
            _check_classes(parse_json(config, foreign=True))
        arrays: Arrays = {}
        for name, dataset in datasets.items():
            parts = name.split("/")
            if parts[0] == "optimizer_weights":
                continue
            layer = parts[1] if parts[0] == "model_weights" and len(parts) > 1 else parts[0]
            _add(arrays, f"{layer}/{parts[-1].removesuffix(':0')}", dataset)
        return arrays


def pack_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return numeric arrays as an ``.npz`` file; equal arrays give equal bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return packed.getvalue()


def _read_npz(content: bytes, limit: int) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise Refusal("its members are compressed, expected plain arrays")
        most = min(limit, len(content))
        if len(members) > MAX_OBJECTS or sum(m.file_size for m in members) > most:
            raise Refusal(f"its arrays have more than {most} bytes (a zip bomb)")
        contents = {m.filename.removesuffix(".npy"): _member(archive, m.filename) for m in members}
    if len(contents) < len(members):
        raise Refusal("it holds an array twice")
    return {name: _plain_array(content) for name, content in contents.items()}


def _plain_array(content: bytes) -> np.ndarray:
    """Return the array of an .npy file, after a check of its header against its size."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise Refusal("an array has a header of another version than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or dtype.kind not in "fiu" or fortran:
        raise Refusal(f"an array has the type {dtype}, expected numbers, row by row")
    stored = len(content) - file.tell()
    if math.prod(shape) * dtype.itemsize != stored:
        raise Refusal(f"an array declares {shape} but stores {stored} bytes (a shape bomb)")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


_READERS = {".keras": _read_keras, ".npz": _read_npz}


def _walk(file: h5py.File, size: int, limit: int) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset with its path, after a check that each link and dataset is harmless."""
    waiting: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    addresses: set[int] = set()
    declared = 0
    while waiting:
        parent, group, depth = waiting.pop()
        for name in group:
            path = f"{parent}{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
                raise Refusal(f"'{path[:80]}' is {kind}, expected arrays only")
            child = group[name]
            address = h5py.h5o.get_info(child.id).addr
            if address in addresses or len(addresses) >= MAX_OBJECTS or depth >= MAX_DEPTH:
                raise Refusal(f"'{path[:80]}' is linked twice, or lies among too many or too deep groups")
            addresses.add(address)
            if isinstance(child, h5py.Group):
                waiting.append((f"{path}/", child, depth + 1))
                continue
            _check_dataset(path, child)
            declared += child.size * child.dtype.itemsize
            if declared > min(size, limit):
                raise Refusal(
                    f"its arrays have over {declared} bytes with '{path[:80]}' (a shape bomb), "
                    f"expected at most {min(size, limit)}"
                )
            yield path, child


def _check_dataset(path: str, dataset: Any) -> None:
    if not isinstance(dataset, h5py.Dataset):
        raise Refusal(f"'{path[:80]}' is neither group nor array")
    if dataset.dtype.kind not in "fiub" or dataset.dtype.hasobject:
        raise Refusal(f"'{path[:80]}' has the type {dataset.dtype}, expected numbers")
    layout = dataset.id.get_create_plist()
    if layout.get_external_count() or dataset.is_virtual:
        raise Refusal(f"'{path[:80]}' takes its values from another file")
    if layout.get_nfilters():
        raise Refusal(f"'{path[:80]}' is compressed, expected plain arrays")
    needed, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if stored < needed:
        raise Refusal(
            f"'{path[:80]}' declares {dataset.shape} but stores {stored} of {needed} bytes (a shape bomb)"
        )


def _add(arrays: Arrays, name: str, dataset: h5py.Dataset) -> None:
    if name in arrays:
        raise Refusal(f"it holds '{name[:80]}' twice")
    if dataset.dtype.kind != "f":
        raise Refusal(f"'{name[:80]}' has the type {dataset.dtype}, expected floating-point numbers")
    arrays[name] = dataset[()].astype("float32")


def _check_values(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Refusal(f"'{name[:80]}' holds NaN or infinite weights")
        low = 0 if name.endswith("/moving_variance") else np.nextafter(np.float32(0), np.float32(1))
        if name.endswith(("/moving_variance", "/std")) and (array < low).any():
            raise Refusal(f"'{name[:80]}' holds {array.min()}, expected positive values")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _shorten(names: Iterable[str], most: int = 5) -> str:
    names = [n[:120] for n in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _refused(path: Path, reason: str) -> InputError:
    return InputError(
        f"cannot read the weights '{path}', since {reason}",
        "Get the file from its source again, or train with train_model.py; only files that hold nothing but "
        "weights are read.",
    )
