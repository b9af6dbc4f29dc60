"""Public functions: each command as a function with its options as keywords.

Nothing heavy is loaded before a function is called. `lulc.config` defines the options, once for the command
line and for Python.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from lulc.config import (
    ClassifyConfig,
    EvaluateConfig,
    ExportConfig,
    ExportModelConfig,
    ImportModelConfig,
    InputConfig,
    MosaicConfig,
    PreprocessConfig,
    ReproduceConfig,
    TrainConfig,
)
from lulc.core.channels import DEFAULT_CHANNELS, ChannelSet, dates_of
from lulc.core.options import Options, help_of, nearest, take, value_type
from lulc.core.schema import InputError as InputError
from lulc.core.schema import Legend

if TYPE_CHECKING:
    import keras
    import pandas as pd
    import xarray as xr

    from lulc.compositing.mosaic import Mosaic
    from lulc.core.statistics import Statistics
    from lulc.datasets.manifest import Manifest
    from lulc.evaluation.evaluate import EvaluationResult
    from lulc.evaluation.tables import Evaluation
    from lulc.importing.import_model import Imported
    from lulc.inference.classify import ClassificationResult, Forecast, ShareResult
    from lulc.inference.reproduce import Reproduction
    from lulc.labels.schemes import Scheme
    from lulc.maps.reader import ClassMap
    from lulc.models.card import ModelCard
    from lulc.rasters.stack import Stack
    from lulc.training.train import TrainingResult

File = str | os.PathLike[str]

P = ParamSpec("P")
Result = TypeVar("Result", covariant=True)
Config = TypeVar("Config", bound=Options)
Made = TypeVar("Made")


class Command(Protocol[P, Result]):
    """A function of the options of a config by name, of a config, or of both."""

    # The first form gives editors the names; the second one allows lists for tuples and paths for texts.
    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> Result: ...
    @overload
    def __call__(self, config: Any = None, /, **options: Any) -> Result: ...


def _config_from(function: str, kind: type[Config], config: Config | None, options: dict[str, Any]) -> Config:
    """Return the config of a call; raises TypeError for unknown and missing options, as Python does."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in options:
        if name not in fields:
            similar = nearest(name, fields)
            hint = f"did you mean '{similar}'?" if similar else f"see help(lulc.{function})"
            raise TypeError(f"{function}() got an unexpected option '{name}'; {hint}")
    if config is not None and not isinstance(config, kind):
        raise TypeError(
            f"{function}() takes options by name or a {kind.__name__}, got {type(config).__name__}; "
            f"see help(lulc.{function})"
        )
    if config is not None:
        return dataclasses.replace(config, **options)
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in options]
    if missing:
        raise TypeError(f"{function}() needs the options {' and '.join(map(repr, missing))}")
    return kind(**options)


def _signature(config: type[Options], function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a call with options by name."""
    kinds, empty = inspect.Parameter, inspect.Parameter.empty
    hints = typing.get_type_hints(config)
    parameters = [kinds("config", kinds.POSITIONAL_ONLY, default=None, annotation=config | None)]
    for field in _ordered(config):
        default = empty if field.default is dataclasses.MISSING else field.default
        parameters.append(
            kinds(field.name, kinds.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )
    returned = inspect.signature(function).return_annotation
    return inspect.Signature(parameters, return_annotation=returned)


def _documentation(config: type[Options], function: Callable[..., Any]) -> str:
    """Return the docstring of a function with a section that documents each option."""
    lines = [
        "Parameters",
        "----------",
        f"config : {config.__name__}, optional",
        "    Options as an object; those given by name win.",
    ]
    hints = typing.get_type_hints(config)
    for field in _ordered(config):
        optional = "" if field.default is dataclasses.MISSING else ", optional"
        lines.append(f"{field.name} : {_type_name(field, hints[field.name])}{optional}")
        text = re.sub(r"--([a-z][a-z-]+)", lambda m: m[1].replace("-", "_"), help_of(field))
        sentence = text[0].upper() + text[1:].replace("%%", "%")
        lines += textwrap.wrap(sentence, 96, initial_indent="    ", subsequent_indent="    ")
    head, mark, rest = (inspect.getdoc(function) or "").partition("Returns\n-------\n")
    return head + "\n".join(lines) + "\n\n" + mark + rest


def _ordered(config: type[Options]) -> list[dataclasses.Field[Any]]:
    """Return the required options, then those of the command, then those under a heading."""
    fields = dataclasses.fields(config)
    return sorted(fields, key=lambda f: (f.default is not dataclasses.MISSING, f.metadata["group"] != ""))


def _type_name(field: dataclasses.Field[Any], hint: Any) -> str:
    """Return the type of an option as docstrings write it."""
    base, many = value_type(hint)
    choices = field.metadata["choices"]
    one = f"{{{', '.join(map(repr, choices))}}}" if choices else base.__name__
    one = "str or path" if one == "str" else one
    return one if many is None else f"list of {one}" if many == "+" else f"{many} {one}s"


_ARRAY_OPTIONS = frozenset(field.name for field in dataclasses.fields(InputConfig)) | {
    "model", "inputs", "pick", "statistics", "strict", "engine", "min_agreement", "memory", "window", "part",
    "batch_size", "blend", "tta", "ensemble", "extra", "min_confidence",
}  # fmt: skip
"""Options of `classify` that affect values; the others concern the file of the map."""


def _is_array(value: Any) -> bool:
    """True for an array of any kind, without loading xarray."""
    return type(value).__module__.partition(".")[0] in ("xarray", "numpy", "dask")


def _are_arrays(images: Any) -> bool:
    """True for one array or several; raises TypeError for a path, as Python does."""
    if isinstance(images, str | os.PathLike):
        raise TypeError("train() takes options by name or a TrainConfig, got str; see help(lulc.train)")
    return images is not None


def classify_array(
    model: File,
    inputs: xr.DataArray | xr.Dataset,
    config: ClassifyConfig | None = None,
    *,
    out: File | None = None,
    overwrite: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Classify an xarray object in memory; no temporary file is written.

    Parameters
    ----------
    model
        Weights file, run folder, or name in a weights folder.
    inputs
        Bands by name as variables or along a dimension, with coordinates and a CRS (``spatial_ref``). A few
        windows of a lazy object (Dask) are read at once, the others when the result is computed.
    config
        Options as an object; those given by name win.
    out
        Also write the result to this ``.nc``, ``.zarr`` or, if the array isn't lazy, ``.tif``; a lazy result
        is then read from this file.
    overwrite
        Replace the file `out`.
    **options
        Options of `classify` that affect values, such as ``scale``, ``engine``, ``tta`` and ``blend``.

    Returns
    -------
    Dataset
        ``class`` with CF flags (0 unclassified, 255 no data), ``probability`` (class, y, x), and a variable
        for each measure in ``extra``. Rows and columns are in the order of the input. Lazy (Dask, threads)
        for a lazy input, else in memory.

    Raises
    ------
    InputError
        If the model or the array is invalid, they don't fit together, or an option concerns files.
    """
    if not hasattr(inputs, "coords"):
        raise InputError(
            f"cannot classify an array of the type {type(inputs).__name__}, expected an xarray object, which "
            "names bands and places",
            "xarray.DataArray(array, dims=('band', 'y', 'x'), coords={'band': names, 'y': y, 'x': x})",
        )
    if config is not None:
        fields = [f for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING]
        values = {f.name: getattr(config, f.name) for f in fields}
        options = {f.name: values[f.name] for f in fields if values[f.name] != f.default} | options
    overwrite = options.pop("overwrite", overwrite)
    if filed := options.keys() & {f.name for f in dataclasses.fields(ClassifyConfig)} - _ARRAY_OPTIONS:
        raise InputError(
            f"cannot use the option '{min(filed)}' with an array, since it concerns the file of a map",
            "Leave it out, or write the array to a file and classify that.",
        )
    options |= {"model": model, "inputs": "array", "out": "array.tif"}
    settings = _config_from("classify", ClassifyConfig, None, options)
    from lulc.inference.arrays import classify_lazily, classify_source, write_array
    from lulc.maps.frames import dataset_of
    from lulc.rasters.cubes import ArraySource

    source = ArraySource(inputs)
    made = classify_lazily(settings, source) if source.is_lazy else classify_source(settings, source)
    frame = dataset_of(made, made.classes, made.probabilities, made.extra)
    if out is not None:
        frame = write_array(made, frame, Path(out), overwrite=overwrite)
    return source.like_given(frame)


def _arguments(
    function: str, names: Sequence[str], positional: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the config of a call, and all options by name, also those given by position."""
    if not positional:
        return None, options
    if len(positional) == 1 and (not names or isinstance(positional[0], Options | None)):
        return positional[0], options
    if len(positional) > len(names):
        raise TypeError(f"{function}() takes {len(names) or 1} arguments by position, got {len(positional)}")
    named = dict(zip(names, positional, strict=False))
    if twice := named.keys() & options.keys():
        raise TypeError(f"{function}() got several values for '{min(twice)}'")
    return None, named | options


def _command(
    kind: Callable[P, Config],
    positional: Sequence[str] = (),
    for_arrays: Callable[[Any, dict[str, Any]], Callable[..., Any] | None] = lambda config, options: None,
) -> Callable[[Callable[[Config], Made]], Command[P, Made]]:
    """Let a function of a config take the config's fields by name, and document them.

    Parameters
    ----------
    kind
        Class of the config.
    positional
        Options that may also be given by position, in order.
    for_arrays
        Returns the function for a call with arrays, from config and options; None for a call with files.
    """
    config_type = typing.cast("type[Config]", kind)

    def decorate(function: Callable[[Config], Made]) -> Command[P, Made]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Made:
            config, options = _arguments(function.__name__, positional, arguments, options)
            if (other := for_arrays(config, options)) is not None:
                return typing.cast("Made", other(config=config, **options))
            return function(_config_from(function.__name__, config_type, config, options))

        command: Any = call
        command.__signature__ = _signature(config_type, function)
        command.__doc__ = _documentation(config_type, function)
        return typing.cast("Command[P, Made]", command)

    return decorate


@_command(MosaicConfig)
def make_mosaic(config: MosaicConfig) -> list[Mosaic]:
    """Make a mosaic of a region from satellite scenes; one for each period.

    Returns
    -------
    list of Mosaic
        Path, scenes, dates and clear observations of each.

    Raises
    ------
    InputError
        If no scene is found, one can't be read, or the mosaic exists already.

    Examples
    --------
    >>> import lulc
    >>> lulc.make_mosaic(
    ...     aoi="region.gpkg", dates="2024-06-01/2024-08-31", catalog="earth-search", out="summer.tif"
    ... )  # doctest: +SKIP
    """
    from lulc.compositing.mosaic import make_mosaic

    return make_mosaic(config)


@_command(PreprocessConfig)
def make_stacks(config: PreprocessConfig) -> Manifest:
    """Cut a mosaic and its labels into stacks for training and validation.

    Returns
    -------
    Manifest
        Files, classes, channels and statistics of the stacks.

    Raises
    ------
    InputError
        If an input doesn't fit, no pixel is valid, or the folder holds other results.

    Examples
    --------
    >>> import lulc
    >>> lulc.make_stacks(bands="mosaic.tif", labels="labels.tif", out="stacks")  # doctest: +SKIP
    """
    from lulc.preprocessing.preprocess import make_stacks

    return make_stacks(config)


def train_arrays(
    images: Any,
    labels: Any,
    config: TrainConfig | None = None,
    *,
    channels: Sequence[str],
    legend: Legend | Mapping[str, str] | Sequence[str],
    validation: Sequence[int] | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a network on arrays in memory; the same call continues an interrupted run.

    Parameters
    ----------
    images
        One array or a list: float (y, x, channel) in the units of the channels, NaN = invalid; or xarray
        objects with bands by name, which are scaled like files.
    labels
        One array for each image, (y, x): class numbers 1..N; 0, 255 and NaN are ignored. The labels of an
        xarray image may be an xarray object with the same coordinates.
    config
        Options as an object; those given by name win.
    channels
        Names of the channels, in order, by which `classify` finds them.
    legend
        Names of the classes 1..N, a dictionary of names and colours (``#rrggbb``), or a Legend.
    validation
        Numbers of the validation images, counted from 0. By default the lower quarter of each image is for
        validation, and labels near it are ignored.
    **options
        Options of `train`, and of `open_stack` for xarray objects, such as ``scale``.

    Returns
    -------
    TrainingResult
        As of `train`.

    Raises
    ------
    InputError
        If images, labels, names and classes don't fit each other, or as `train` does.
    """
    fields = {field.name for field in dataclasses.fields(InputConfig)}
    reading = InputConfig(**{name: options.pop(name) for name in fields & options.keys()})
    settings = _config_from("train", TrainConfig, config, options)
    if not isinstance(images, list | tuple):
        images, labels = [images], [labels]
    from lulc.training.data.in_memory import dataset_of

    dataset = dataset_of(images, labels, channels, legend, validation, settings, reading)
    from lulc.training.train import train

    return train(settings, dataset)


@_command(
    TrainConfig,
    ("images", "labels"),
    lambda config, options: train_arrays if _are_arrays(options.get("images")) else None,
)
def train(config: TrainConfig) -> TrainingResult:
    """Train a network on the stacks of `make_stacks`; the same call continues an interrupted run.

    Images and labels in memory are given by position, see `train_arrays`.

    Returns
    -------
    TrainingResult
        The run folder, its best weights and its history.

    Raises
    ------
    InputError
        If the data don't fit the network or each other, memory or disk can't hold the run, or the folder
        holds another one.

    Examples
    --------
    >>> import lulc
    >>> run = lulc.train(data="stacks", out="run", epochs=4)  # doctest: +SKIP
    >>> run.picks["lowest-val-loss"]  # doctest: +SKIP
    """
    # Check folders and weights before the slow import of the framework. Searching a mosaic for pretraining
    # takes long, so it comes last.
    from lulc.models.weights import check_model, find_model
    from lulc.training.data.dataset import open_dataset

    if config.plan:
        raise InputError(
            "cannot train with plan=True, since train_model.py --plan stops before the training",
            "Leave it out; plan.json in the run folder holds the plan.",
        )
    dataset = None if config.pretrain else open_dataset(config)
    if config.init:
        check_model(find_model(config.init))
    from lulc.training.train import train

    if not config.cross_validate:
        return train(config, dataset)
    from lulc.training.cross_validation import cross_validate

    folds = cross_validate(config)
    temperature = None if config.resolved().calibrate == "none" else folds.temperature
    return dataclasses.replace(train(config, dataset, temperature), cross_validation=folds)


@_command(
    ClassifyConfig,
    ("model", "inputs", "out"),
    lambda config, options: classify_array if _is_array(options.get("inputs")) else None,
)
def classify(config: ClassifyConfig) -> ClassificationResult:
    """Classify a mosaic with trained weights; the same call continues an interrupted run.

    Model, inputs and map may be given by position. An xarray object as `inputs` is classified in memory, see
    `classify_array`.

    Returns
    -------
    ClassificationResult
        Path of the map, its classes and their pixel counts, engine and seconds.

    Raises
    ------
    InputError
        If the model or the mosaic is invalid, they don't fit together, or the map exists.

    Examples
    --------
    >>> import lulc
    >>> made = lulc.classify(model="run", inputs="mosaic.tif", out="map.tif")  # doctest: +SKIP
    >>> with lulc.open_map(made.path) as land_cover:  # doctest: +SKIP
    ...     classes = land_cover.read(land_cover.grid.extent)
    """
    for name, other in (("plan", "forecast"), ("share", "classify_share")):
        if getattr(config, name):
            raise InputError(
                f"cannot make a map with --{name}, since that option makes no map",
                f"Call lulc.{other}() with the same options.",
            )
    from lulc.inference.classify import classify

    return classify(config)


@_command(ClassifyConfig)
def classify_share(config: ClassifyConfig) -> ShareResult:
    """Make one share of a map (``share="1/8"``) while other processes make theirs.

    `classify` with the same options, without `share`, then makes the map.

    Returns
    -------
    ShareResult
        Number of parts in the share, and of those that this call made.

    Raises
    ------
    InputError
        As `classify` does, or if the share is missing or invalid, or another process is making it.
    """
    if not config.share:
        raise InputError("cannot make a share of the map, since none is named", 'Add share="1/8".')
    from lulc.inference.classify import classify_share

    return classify_share(config)


@_command(ClassifyConfig)
def forecast(config: ClassifyConfig) -> Forecast:
    """Estimate windows, memory, disk and time of `classify` with the same options; writes nothing.

    Returns
    -------
    Forecast
        Bytes and seconds, measured on a few windows.

    Raises
    ------
    InputError
        As `classify` does.
    """
    from lulc.inference.classify import forecast_classification

    return forecast_classification(dataclasses.replace(config, plan=True))


def evaluate_in_memory(
    map: Any,
    reference: Any = None,
    config: EvaluateConfig | None = None,
    *,
    sample: Any = None,
    **options: Any,
) -> Evaluation:
    """Score a map as tables and figures; no report is written.

    Parameters
    ----------
    map
        Path of a map, or a result of `classify` for an array.
    reference
        Path of the labels; or an array (y, x) on the pixels of the map: its class numbers, or codes of
        ``scheme``; 0, 255 and NaN are ignored.
    config
        Options as an object; those given by name win.
    sample
        Path of interpreted points, or a GeoDataFrame of them.
    **options
        Options of `evaluate`.

    Returns
    -------
    Evaluation
        Tables `summary`, `classes`, `confusion` and `areas`; figures by `plot_confusion`, `plot_reliability`
        and `plot_areas`.

    Raises
    ------
    InputError
        As `evaluate`, or if an option asks for a file.
    """
    if filed := [n for n in ("overwrite", "label_errors", "design_sample", "sample_error") if n in options]:
        raise InputError(
            f"cannot use the option '{filed[0]}' without out, since it concerns the files of a report",
            f"Add out, or leave {filed[0]} out.",
        )
    inputs = {n: v for n, v in (("map", map), ("reference", reference), ("sample", sample)) if v is not None}
    arrays = {n: v for n, v in inputs.items() if not isinstance(v, str | os.PathLike)}
    options |= inputs | dict.fromkeys(arrays, "<array>") | {"out": "none"}
    settings = _config_from("evaluate", EvaluateConfig, config, options)
    from lulc.evaluation.evaluate import measure
    from lulc.evaluation.inputs import InMemory
    from lulc.evaluation.tables import Evaluation

    return Evaluation(results=measure(settings, InMemory(**arrays))[0])


def estimate_areas(sample: Any, map: Any, **options: Any) -> pd.DataFrame:
    """Estimate the area of each class from interpreted points, with standard errors and 95 % intervals.

    Parameters
    ----------
    sample
        Path of the interpreted points that `evaluate` drew, or a GeoDataFrame of them.
    map
        The map that they were drawn from: its path, or a result of `classify` for an array.
    **options
        Options of `evaluate` that choose the pixels in use: ``scheme``, ``mask``, ``bounds``, ``aoi``.

    Returns
    -------
    DataFrame
        A row for each class: mapped and estimated area, user's and producer's accuracy. ``attrs`` holds unit
        and overall accuracy.

    Raises
    ------
    InputError
        If the points are no sample of this map, or a class has fewer than two.

    References
    ----------
    Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015.
    """
    return evaluate_in_memory(map, sample=sample, **options).areas


@_command(
    EvaluateConfig,
    ("map", "reference", "out"),
    lambda config, options: (
        evaluate_in_memory if config is None and "map" in options and "out" not in options else None
    ),
)
def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Score a map against a reference, or against interpreted points, and write a report.

    Map, reference and folder may be given by position. Without `out` no report is written: tables and
    figures of files or arrays are returned, see `evaluate_in_memory`.

    Returns
    -------
    EvaluationResult
        Folder and files of the report, and all results.

    Raises
    ------
    InputError
        If the folder holds a report already, a file can't be read, or grids or classes don't fit.

    Examples
    --------
    >>> import lulc
    >>> result = lulc.evaluate(map="map.tif", reference="labels.tif", out="report")  # doctest: +SKIP
    >>> result.scores.overall_accuracy  # doctest: +SKIP
    """
    from lulc.rasters.sources import open_source

    # Check the map before the slow import of the packages for tables and pictures.
    open_source(config.map, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote).close()
    from lulc.evaluation.evaluate import evaluate

    return evaluate(config)


@_command(ExportConfig)
def export_map(config: ExportConfig) -> tuple[Path, ...]:
    """Write a map in the formats of other programs: QGIS, SLD, STAC, NetCDF, Zarr.

    Returns
    -------
    tuple of Path
        Written files.

    Raises
    ------
    InputError
        If the map has no class names, an output's ending is unknown, or an output exists.

    Examples
    --------
    >>> import lulc
    >>> lulc.export_map(map="map.tif", out=["map.qml", "map.nc"])  # doctest: +SKIP
    """
    from lulc.export.export import export_map

    return export_map(config)


@_command(ExportModelConfig)
def export_model(config: ExportModelConfig) -> tuple[Path, ...]:
    """Write weights for other programs: an ONNX file, or a STAC item.

    Returns
    -------
    tuple of Path
        Written files.

    Raises
    ------
    InputError
        If the weights have no card, an option does not fit the format, or an output exists.

    Examples
    --------
    >>> import lulc
    >>> lulc.export_model(model="run", out="net.onnx")  # doctest: +SKIP
    """
    from lulc.export.export import export_model

    return export_model(config)


@_command(ImportModelConfig)
def import_model(config: ImportModelConfig) -> Imported:
    """Import a network of another toolkit (ONNX, Keras) as a model.

    Returns
    -------
    Imported
        Path of the network, its card, and the reason if its windows are blended.

    Raises
    ------
    InputError
        If the file is invalid, channels or classes don't fit it, or the folder holds a network already.

    Examples
    --------
    >>> import lulc
    >>> lulc.import_model(
    ...     model="net.onnx", channels=["B04", "B03", "B02"], legend="worldcover", out="models/net"
    ... )  # doctest: +SKIP
    """
    from lulc.importing.import_model import import_model

    return import_model(config)


@_command(ReproduceConfig)
def reproduce(config: ReproduceConfig) -> Reproduction:
    """Rebuild a map from its recorded inputs, and report any difference.

    Returns
    -------
    Reproduction
        Processing of the map, inputs and weights found, and the comparison of both maps.

    Raises
    ------
    InputError
        If the tags of the map are incomplete, an output exists, or the inputs can't be classified.
    """
    from lulc.inference.reproduce import reproduce

    return reproduce(config)


def open_map(
    path: File, *, scheme: File | Scheme | None = None, allow_vrt: bool = False, allow_remote: bool = False
) -> ClassMap:
    """Open a map for reading; a context manager.

    Parameters
    ----------
    path
        Map of `classify`, or another raster whose first band holds class numbers.
    scheme
        Name, table or result of `load_scheme` with the classes of a map without class tags.
    allow_vrt
        Accept a VRT, whose files must lie below its folder.
    allow_remote
        Accept a remote file, which opens a connection.

    Raises
    ------
    InputError
        If the file can't be opened, or its classes are missing, damaged, or don't fit its bands.
    """
    from lulc.maps.reader import open_map

    if isinstance(scheme, str | os.PathLike):
        scheme = load_scheme(scheme)
    legend = None if scheme is None else scheme.legend
    return open_map(path, legend, allow_vrt=allow_vrt, allow_remote=allow_remote)


def open_stack(
    bands: File | Sequence[File] = (),
    indices: File | Sequence[File] = (),
    config: InputConfig | None = None,
    *,
    scenes: File | Sequence[File] = (),
    channels: File | Sequence[str] | ChannelSet = DEFAULT_CHANNELS,
    **options: Any,
) -> Stack:
    """Open rasters as one aligned stack of channels, as preprocessing and classification do.

    The stack is a context manager; its `read` gives windows as float32 arrays (y, x, channel), NaN where a
    pixel is invalid.

    Parameters
    ----------
    bands
        Bands: files with one or many, ``.SAFE`` folders, or STAC items; ``"spring=april.tif"`` for a date.
    indices
        Index rasters in SYKE coding; missing indices are computed from the bands.
    config
        Input options.
    scenes
        Instead of bands, many scenes on one grid; where they overlap, the first with data is used.
    channels
        Name or file of a channel set, or names of known channels in order.
    **options
        Further input options by name (see `InputConfig`), such as `layers`; they win over `config`.

    Raises
    ------
    InputError
        If names are missing, unclear or given twice, grids differ, or the radiometry looks wrong.
    """
    from lulc.rasters.channels import load_channels
    from lulc.rasters.stack import open_stack

    band_files, index_files, scene_files = (take(f, tuple[str, ...]) for f in (bands, indices, scenes))
    settings = _config_from("open_stack", InputConfig, config, options)
    if isinstance(channels, str | os.PathLike):
        channels = load_channels(os.fspath(channels), dates_of(band_files))
    return open_stack(band_files, index_files, settings, scenes=scene_files, channels=channels)


def load_model(
    model: File, *, pick: str = "lowest-val-loss", statistics: Statistics | None = None
) -> tuple[keras.Model, ModelCard]:
    """Load a network and its model card.

    Parameters
    ----------
    model
        Weights file, run folder, or name in a weights folder.
    pick
        Which weights of a run folder: ``lowest-val-loss``, ``best-macro-f1``, ``highest-val-accuracy`` or
        ``last``.
    statistics
        Training statistics for a legacy ``.h5`` file, which holds none.

    Raises
    ------
    InputError
        If the weights are missing or invalid.
    """
    from lulc.models import weights

    return weights.load_model(weights.find_model(os.fspath(model), pick), statistics=statistics)


def load_scheme(scheme: File, codes: str = "auto") -> Scheme:
    """Load a scheme: the classes of label codes, with names and colours.

    Parameters
    ----------
    scheme
        Name of a scheme (``clc-level1``), or path of a CSV with the columns code, class, name and color.
    codes
        Form of European CORINE codes: ``grid`` (1..44), ``three-digit`` (111..523), or ``auto``.

    Raises
    ------
    InputError
        If there is neither such a scheme nor such a table.
    """
    from lulc.labels.schemes import load_scheme

    return load_scheme(os.fspath(scheme), codes)
