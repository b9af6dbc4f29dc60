"""Weights files and their cards: saving, finding, loading, and transfer to another network.

A model is two files, ``NAME.keras`` (weights) and ``NAME.json`` (its card). It is loaded by building the
network of the card and assigning arrays; no code in the weights file runs. This module, `find_model`,
`load_card` and `read_arrays` import no deep-learning framework.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from lulc.core.documents import read_document, write_document
from lulc.core.schema import InputError
from lulc.core.statistics import Statistics
from lulc.core.storage import temporary_folder
from lulc.models.archive import CONFIG, METADATA, WEIGHTS, Arrays, compare_shapes, read_archive, variables_of
from lulc.models.card import ModelCard, load_card, write_with_card
from lulc.models.hub import fetch, is_hub
from lulc.models.legacy import describe_legacy, read_legacy

if TYPE_CHECKING:
    from lulc.models.backend import keras

PICKS = ("lowest-val-loss", "highest-val-accuracy", "best-macro-f1", "last")
"""Picks of networks of a run."""

BASELINE = "baseline"
"""Pick of the random forest of each training, ``baseline.npz``."""

FEW_LABELS = "few-labels"
"""Recipe for few labels, and pick of its small models, ``few-labels.npz``."""

RECOMMENDED = "auto"
"""Pick of the model that the training recommends."""

IMPORTED = "network.onnx"
"""Network in a folder of import_model.py."""

CARDED = (".keras", ".npz", ".onnx")
"""Suffixes of files with a card: networks, models of single pixels, and imported networks."""

RUN_FILE = "run.json"
"""Document of a run folder, with its state."""

_RUN_SCHEMA = {"type": "object", "required": ["finished"], "properties": {"finished": {"type": "boolean"}}}

PICKS_FILE = "models.json"

_PICKS = {
    "type": "object", "propertyNames": {"enum": [*PICKS, RECOMMENDED]},
    "additionalProperties": {"type": "string", "pattern": r"^[^/\\.][^/\\]*\.(keras|npz)$"},
}  # fmt: skip
_PICKS_SCHEMA: dict[str, Any] = {
    "type": "object", "required": ["format_version", "picks"],
    "properties": {"format_version": {"const": 1}, "picks": _PICKS},
}  # fmt: skip


def save_model(
    model: keras.Model, card: ModelCard, path: str | os.PathLike[str], *, half: bool = False
) -> ModelCard:
    """Write weights and then their card, each whole or not at all; return the card as written.

    Equal weights and cards give equal bytes.

    Raises InputError if `path` does not end in ``.keras``, or a kernel is beyond float16.

    Parameters
    ----------
    half
        Store kernels as float16, half the size; statistics, batch norm and biases stay float32, since
        the variance of reflectance x 10000 is beyond float16.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(
            f"cannot write weights to '{path}', since weights are .keras files",
            f"Give '{path.with_suffix('.keras')}'.",
        )
    arrays = arrays_of(model)
    _compare(arrays, card, path)
    return write_with_card(_pack(card, arrays, half, path.parent), card, path)


def load_model(
    path: str | os.PathLike[str], *, statistics: Statistics | None = None
) -> tuple[keras.Model, ModelCard]:
    """Build the network of a card and assign the weights beside it.

    Raises InputError if the file is refused (see `read_arrays`), or the weights are not those of the card's
    network.

    Parameters
    ----------
    path
        ``NAME.keras`` with its card, or a Keras 2 ``.h5`` of the original system.
    statistics
        Statistics for ``.h5`` files, which have none; by default their input is already standardised.
    """
    if Path(path).suffix not in CARDED:
        return load_legacy(path, statistics)
    if statistics is not None:
        raise InputError(
            f"cannot use other statistics with '{path}', since its card has those that it was trained with",
            "Leave --statistics out; it is for .h5 files of the original system.",
        )
    card = load_card(path)
    arrays = read_arrays(path, card)
    from lulc.models.unet import build_unet

    model = build_unet(card.unet)
    assign(model, arrays)
    return model, card


def load_legacy(
    path: str | os.PathLike[str], statistics: Statistics | None = None
) -> tuple[keras.Model, ModelCard]:
    """Build the network of a Keras 2 ``.h5`` file of the original system, of any width.

    Raises InputError if the file is refused, or its layers are not those of the original network.
    """
    config, arrays = read_legacy(path)
    from lulc.models.unet import build_unet, geometry

    statistics = statistics or Statistics((0.0,) * config.channels, (1.0,) * config.channels)
    mean, std = np.asarray(statistics.mean, "float32"), np.asarray(statistics.std, "float32")
    model = build_unet(config, (mean, std))
    assign(model, arrays | {"standardization/mean": mean, "standardization/std": std})
    windows = geometry(config)
    return model, describe_legacy(path, config, statistics, windows.stride, windows.halo)


def read_arrays(path: str | os.PathLike[str], card: ModelCard | None = None) -> Arrays:
    """Return the float32 arrays of a ``.keras`` or legacy file by ``layer/variable``, without a framework.

    They are exactly those of the network of `card`, by default the card beside the file; a legacy file needs
    one. Raises InputError if the sha256 is wrong, the file holds anything but plain weights (see
    `lulc.models.archive`), layers, shapes or statistics differ from the card's, or values are not finite.
    """
    card = card or load_card(path)
    network = card.unet
    if Path(path).suffix != ".keras":
        moments = {"mean": card.statistics.mean, "std": card.statistics.std}
        standardization = {f"standardization/{k}": np.asarray(v, "float32") for k, v in moments.items()}
        return read_legacy(path)[1] | standardization
    # A file may also hold the random state of dropout.
    arrays = read_archive(path, sha256=card.sha256, limit=4 * network.parameters + 2**16)
    _compare(arrays, card, path)
    return arrays


def check_model(path: str | os.PathLike[str]) -> None:
    """Refuse a file that `load_model` would refuse, before a framework is loaded."""
    if Path(path).suffix in CARDED:
        read_arrays(path)
    else:
        read_legacy(path)


def arrays_of(model: keras.Model) -> Arrays:
    """Return copies of the weights of `model` as float32 by ``layer/variable``."""
    from lulc.models.backend import keras

    return {
        name: np.array(keras.ops.convert_to_numpy(v), "float32") for name, v in variables_of(model).items()
    }


def assign(model: keras.Model, arrays: Arrays) -> None:
    """Assign `arrays` to the variables of the same names; raises InputError if names or shapes differ."""
    variables = variables_of(model)
    compare_shapes(
        {n: a.shape for n, a in arrays.items()}, {n: tuple(v.shape) for n, v in variables.items()}, model.name
    )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def transfer(
    model: keras.Model, arrays: Arrays, *, fresh: tuple[str, ...] = ("standardization", "final_conv")
) -> list[str]:
    """Copy the arrays by ``layer/variable`` that fit into a network of another shape or legend.

    The layers `fresh` stay unchanged: statistics belong to the data, the head to the legend. Returns the
    variables of other layers that have no fitting array and keep their values.
    """
    unfit = []
    for name, variable in variables_of(model).items():
        if name.split("/")[0] in fresh:
            continue
        array = arrays.get(name)
        if array is None or array.shape != tuple(variable.shape):
            unfit.append(name)
        else:
            variable.assign(array)
    return unfit


def record_picks(folder: str | os.PathLike[str], picks: dict[str, str]) -> None:
    """Write the model file of each pick of a run folder."""
    write_document(Path(folder) / PICKS_FILE, {"format_version": 1, "picks": picks})


def read_picks(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Read the file names by pick that `record_picks` wrote; raises InputError if missing or damaged."""
    document = read_document(Path(folder) / PICKS_FILE, _PICKS_SCHEMA, "list of models", 1)
    return {str(k): str(v) for k, v in document["picks"].items()}


def find_model(name_or_path: str, pick: str = "lowest-val-loss") -> Path:
    """Return the weights file of a name or path.

    Raises InputError if there is none; the message lists the names in weights folders.

    Parameters
    ----------
    name_or_path
        A weights file, a run folder, an address (see `lulc.models.hub.fetch`), or a name in a folder of
        `weights_folders` (``kaakonkulma-sim/lowest-val-loss``).
    """
    if is_hub(name_or_path):
        return fetch(name_or_path)
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        return _pick_from(path, pick)
    for folder in weights_folders():
        named = folder / name_or_path.removeprefix("weights/")
        if not named.resolve().is_relative_to(folder.resolve()):
            continue
        if named.is_file():
            return named
        if named.with_name(f"{named.name}.keras").is_file():
            return named.with_name(f"{named.name}.keras")
        if named.is_dir():
            return _pick_from(named, pick)
    known = sorted(
        {
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in weights_folders()
            for path in folder.glob("**/*.keras")
        }
    )
    near = difflib.get_close_matches(name_or_path.removeprefix("weights/"), known, 1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise InputError(
        f"cannot find the model '{name_or_path}', since it is neither a file, nor a run folder, nor a name "
        f"in weights/ (there: {', '.join(known) or 'none'})",
        f"{meant}Give a weights file (.keras, .h5), the folder that train_model.py wrote, or one of these "
        "names.",
    )


def unfinished_run(model: Path) -> str:
    """Return a warning for weights of an unfinished training; empty if it is finished or unknown."""
    try:
        run = read_document(model.parent / RUN_FILE, _RUN_SCHEMA, "run", 1)
    except InputError:
        return ""
    if run["finished"]:
        return ""
    return f"the training in '{model.parent.name}' is not finished: its later weights may be better"


def _pick_from(folder: Path, pick: str) -> Path:
    for named in (folder / f"{pick}.keras", folder / f"{pick}.npz"):
        if named.is_file():
            return named
    picks = read_picks(folder) if (folder / PICKS_FILE).is_file() else {}
    # An imported network is alone in its folder: every pick of a network means it.
    if not picks and pick in (RECOMMENDED, *PICKS) and (folder / IMPORTED).is_file():
        return folder / IMPORTED
    if pick in picks and (folder / picks[pick]).is_file():
        return folder / picks[pick]
    if pick == RECOMMENDED:
        return _pick_from(folder, PICKS[0])
    weights = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in CARDED)) or "none"
    raise InputError(
        f"cannot find the model '{pick}' in the folder '{folder}', since it has the picks "
        f"{', '.join(picks) or 'none'} and holds the weights {weights}",
        "Give one of these files, another --pick, or train first: python train_model.py DATA --out FOLDER",
    )


def weights_folders() -> Iterator[Path]:
    """Yield the folders with weights: those in ``LULC_WEIGHTS``, then the toolkit's own."""
    named = os.environ.get("LULC_WEIGHTS", "")
    yield from (Path(p) for p in named.split(os.pathsep) if p)
    yield Path(__file__).resolve().parents[2] / "weights"
    yield Path(sys.prefix) / "share" / "lulc" / "weights"


def _compare(arrays: Arrays, card: ModelCard, where: str | os.PathLike[str]) -> None:
    compare_shapes({n: a.shape for n, a in arrays.items()}, card.unet.variable_shapes(), where)
    for key in ("mean", "std"):
        values, expected = arrays[f"standardization/{key}"], getattr(card.statistics, key)
        if not np.allclose(values, expected, rtol=1e-5, atol=1e-6):
            raise InputError(
                f"cannot use the weights '{where}', since they hold the {key} {values.tolist()}, "
                f"expected {list(expected)} as their card says",
                "Take weights and card from one source.",
            )


def _pack(card: ModelCard, arrays: Arrays, half: bool, beside: Path) -> bytes:
    """Return a ``.keras`` archive of Keras without optimizer and date; writes temporary files in `beside`."""
    from lulc.models.unet import build_unet

    model = build_unet(card.unet)
    assign(model, arrays)
    with temporary_folder(beside / "model.keras") as folder:
        model.save(f"{folder}/model.keras")
        with zipfile.ZipFile(f"{folder}/model.keras") as archive:
            members = {name: archive.read(name) for name in (METADATA, CONFIG, WEIGHTS)}
    # The date and the ids of shared objects differ between files of equal models.
    metadata = json.loads(members[METADATA])
    members[METADATA] = json.dumps({"keras_version": metadata["keras_version"]}).encode()
    members[CONFIG] = re.sub(rb', "shared_object_id": \d+', b"", members[CONFIG])
    if half:
        members[WEIGHTS] = _halve(members[WEIGHTS])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def _halve(weights: bytes) -> bytes:
    """Return the same HDF5 file with its kernels (all arrays of four axes) as float16."""
    target = io.BytesIO()
    with h5py.File(io.BytesIO(weights), "r") as old, h5py.File(target, "w") as new:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                new.require_group(name).attrs.update(item.attrs)
                return
            array = item[()]
            if array.ndim == 4 and np.abs(array).max() > np.finfo("float16").max:
                raise InputError(
                    f"cannot store '{name}' as float16, since it holds values beyond 65504",
                    "Store this network in float32.",
                )
            new[name] = array.astype("float16") if array.ndim == 4 else array

        old.visititems(copy)
    return target.getvalue()
