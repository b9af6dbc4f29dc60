"""Options of the commands as forms for the QGIS plug-in, in JSON: ``python -m lulc.cli.forms``.

Names, help, units, choices, limits and defaults are those of the config dataclasses.
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
"""Options that are not shown."""

HIDDEN_GROUPS = {config.CLUSTER, config.DEVICES}

_SAMPLE = {
    "map", "out", "design_sample", "sample_error", "seed", "scheme", "mask", "mask_values", "mask_bits",
    "bounds", "aoi", "overwrite",
}  # fmt: skip

_PATHS = {
    "RASTER": "raster", "INPUT": "raster", "MAP": "raster", "MODEL": "path", "DATA": "folder",
    "FOLDER": "folder", "FILE": "path", "FILE.gpkg": "path", "REFERENCE": "path", "SCENE": "path",
}  # fmt: skip
"""Kind of an input by its placeholder; a path is a file or a folder."""

_LAYERS = {"labels": "layer", "reference": "layer", "aoi": "vector", "sample": "vector"}
"""Options that are chosen as layers: a vector, or a raster or vector."""


class Form(NamedTuple):
    """A command as an algorithm of QGIS.

    Parameters
    ----------
    only
        Names of the options to show; empty for all.
    defaults
        Defaults that differ from the config's.
    layers
        Vector layers to show afterwards: file in the output folder and name of the layer.
    page
        HTML page to show afterwards.
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
        if f.name in (form.only or hints) and f.name not in HIDDEN
        and f.metadata["group"] not in HIDDEN_GROUPS
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
    metadata = field.metadata
    base, many = value_type(hint)
    default = None if field.default is dataclasses.MISSING else field.default
    default = list(default) if isinstance(default, tuple) else default
    limits = dict(metadata["limits"])
    return {
        "name": field.name,
        "flag": "" if metadata["positional"] else shown_name(field),
        "title": field.name.replace("_", " ").capitalize(),
        "help": help_of(field).replace("%%", "%"),
        "kind": _kind(field, base),
        "several": many is not None,
        "choices": list(metadata["choices"] or ()),
        "default": default,
        "preset": defaults.get(field.name, default),
        "required": field.default is dataclasses.MISSING,
        "group": metadata["group"],
        "least": limits.get("ge", limits.get("gt")),
        "most": limits.get("le", limits.get("lt")),
        "ending": next(iter(metadata["endings"]), ""),
    }


def _kind(field: dataclasses.Field[Any], base: type) -> str:
    """Return the kind of input for an option."""
    metavar = field.metadata["metavar"] or ""
    if base is not str:
        return {bool: "switch", int: "whole", float: "number"}[base]
    if field.metadata["choices"]:
        return "choice"
    if field.name in _LAYERS:
        return _LAYERS[field.name]
    if field.name == "out" or field.metadata["endings"]:
        kinds = {"OUT": "new raster", "FOLDER": "new folder", "FILE.gpkg": "new vector"}
        return kinds.get(metavar, "new file")
    return _PATHS.get(metavar, "text")


if __name__ == "__main__":
    sys.stdout.write(json_text(forms()) + "\n")
