"""The options of the commands as forms, JSON that the QGIS plug-in reads: ``python -m lulc.cli.forms``.

Names, help, units, choices, limits and defaults are those of the config dataclasses; the plug-in holds none.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lulc import config
from lulc.core.options import help_of, shown_name, value_type
from lulc.core.text import json_text
from lulc.core.version import __version__

FORMAT_VERSION = 1

HIDDEN = {"plan", "share", "tiles", "date", "tensorboard", "input_options", "process", "processes"}
"""Options that a form has no use for."""

HIDDEN_GROUPS = {config.CLUSTER, config.DEVICES}

_SAMPLE = {
    "map", "out", "design_sample", "sample_error", "seed", "scheme", "mask", "mask_values", "mask_bits",
    "bounds", "aoi", "overwrite",
}  # fmt: skip

_PATHS = {
    "RASTER": "raster", "INPUT": "raster", "MAP": "raster", "MODEL": "path", "DATA": "folder",
    "FOLDER": "folder", "FILE": "path", "FILE.gpkg": "path", "REFERENCE": "path", "SCENE": "path",
}  # fmt: skip
"""Kind of a path by its placeholder; a path is a file or a folder."""

_LAYERS = {"labels": "layer", "reference": "layer", "aoi": "vector", "sample": "vector"}
"""Files that are chosen as layers: a vector, or a raster or vector."""


class Form(NamedTuple):
    """A command as an algorithm.

    Parameters
    ----------
    name, title
        Of the algorithm.
    only
        Names of those that are shown; all where not given.
    defaults
        Other values than the config's.
    layers
        Vector layers that the command writes into its folder, to be shown: file and name of the layer.
    """

    name: str
    title: str
    module: str
    options: type
    only: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = MappingProxyType({})
    layers: tuple[tuple[str, str], ...] = ()
    page: str = ""


FORMS = (
    Form("prepare", "Prepare stacks", "preprocess", config.PreprocessConfig),
    Form("train", "Train a network", "train_model", config.TrainConfig),
    Form("classify", "Classify a mosaic", "make_classifications", config.ClassifyConfig),
    Form(
        "evaluate", "Evaluate a map", "evaluate_classifications", config.EvaluateConfig, page="report.html"
    ),
    Form(
        "areasample", "Draw an area sample", "evaluate_classifications", config.EvaluateConfig,
        frozenset(_SAMPLE), {"design_sample": 600}, (("sample.gpkg", "sample"),),
    ),
)  # fmt: skip


def forms() -> dict[str, Any]:
    """Return all forms, JSON-ready."""
    return {
        "format_version": FORMAT_VERSION,
        "lulc": __version__,
        "algorithms": [_algorithm(form) for form in FORMS],
    }


def _algorithm(form: Form) -> dict[str, Any]:
    command = importlib.import_module(f"lulc.cli.{form.module}")
    text = str(command.__doc__).partition("\n\nExample")[0].strip()
    hints = typing.get_type_hints(form.options)
    fields = [
        f for f in dataclasses.fields(form.options)
        if f.name not in HIDDEN and f.metadata["group"] not in HIDDEN_GROUPS
        and (not form.only or f.name in form.only)
    ]  # fmt: skip
    fields.sort(key=lambda f: (f.metadata["group"] != "", f.default is not dataclasses.MISSING))
    return {
        "name": form.name,
        "title": form.title,
        "module": f"lulc.cli.{form.module}",
        "help": "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")),
        "options": [_option(f, hints[f.name], form.defaults) for f in fields],
        "layers": [list(layer) for layer in form.layers],
        "page": form.page,
    }


def _option(field: dataclasses.Field[Any], hint: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = field.metadata
    base, many = value_type(hint)
    default = None if field.default is dataclasses.MISSING else field.default
    default = list(default) if isinstance(default, tuple) else default
    limits = dict(given.get("limits") or ())
    return {
        "name": field.name,
        "flag": "" if given["positional"] else shown_name(field),
        "title": field.name.replace("_", " ").capitalize(),
        "help": help_of(field).replace("%%", "%"),
        "kind": _kind(field, base),
        "several": many is not None,
        "choices": list(given["choices"] or ()),
        "default": default,
        "preset": defaults.get(field.name, default),
        "required": field.default is dataclasses.MISSING,
        "group": given["group"],
        "least": limits.get("ge", limits.get("gt")),
        "most": limits.get("le", limits.get("lt")),
        "ending": next(iter(given["endings"]), ""),
    }


def _kind(field: dataclasses.Field[Any], base: type) -> str:
    """Return which element of a form fits an option."""
    if base is not str:
        return {bool: "switch", int: "whole", float: "number"}[base]
    if field.metadata["choices"]:
        return "choice"
    if field.name in _LAYERS:
        return _LAYERS[field.name]
    if field.name == "out" or field.metadata["endings"]:
        return "new raster" if field.metadata["metavar"] == "OUT" else (
            {"FOLDER": "new folder", "FILE.gpkg": "new vector"}.get(field.metadata["metavar"], "new file")
        )  # fmt: skip
    return _PATHS.get(field.metadata["metavar"] or "", "text")


if __name__ == "__main__":
    sys.stdout.write(json_text(forms()) + "\n")
