"""`import lulc` costs nothing and offers each command as a function that takes its options by name."""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lulc
from lulc import api, config
from lulc.cli import make_classifications
from lulc.core.options import take
from lulc.core.schema import BANDS, CHANNELS, InputError

COMMANDS = {
    "make_stacks": config.PreprocessConfig,
    "train": config.TrainConfig,
    "classify": config.ClassifyConfig,
    "classify_share": config.ClassifyConfig,
    "forecast": config.ClassifyConfig,
    "evaluate": config.EvaluateConfig,
    "export_map": config.ExportConfig,
    "export_model": config.ExportModelConfig,
    "import_model": config.ImportModelConfig,
    "reproduce": config.ReproduceConfig,
}


def modules_after(statement: str) -> set[str]:
    """Names of the modules that a statement adds to those of a fresh interpreter."""
    listing = "print(json.dumps(list(set(sys.modules) - before)))"
    code = f"import sys, json\nbefore = set(sys.modules)\n{statement}\n{listing}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout))


def test_importing_the_package_loads_nothing_but_its_version() -> None:
    added = {
        name for name in modules_after("import lulc") if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert added == {"lulc", "lulc.core", "lulc.core.version"}


def test_no_public_name_loads_more_than_numpy_before_it_is_called() -> None:
    added = modules_after("import lulc\nfor name in lulc.__all__: getattr(lulc, name)")
    third = {name.split(".")[0] for name in added} - set(sys.stdlib_module_names)
    assert {name for name in third if not name.startswith("_")} <= {"lulc", "numpy"}


def test_the_names_are_listed_once_and_lead_somewhere() -> None:
    assert dir(lulc) == sorted(lulc.__all__) == lulc.__all__
    assert {*COMMANDS, "open_map", "open_stack", "load_model", "load_scheme"} <= set(lulc.__all__)
    for name in lulc.__all__:
        assert getattr(lulc, name) is not None
    modules_after(f"from lulc import *\nassert {{*{lulc.__all__}}} <= set(globals())")


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'classifi'"):
        lulc.classifi  # noqa: B018


@pytest.mark.parametrize(("name", "kind"), COMMANDS.items())
def test_signature_and_docstring_name_every_option(name: str, kind: type) -> None:
    function = getattr(lulc, name)
    first, *options = inspect.signature(function).parameters.values()
    assert (first.name, first.kind) == ("config", inspect.Parameter.POSITIONAL_ONLY)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert {option.name for option in options} == set(fields)
    needed = [option.default is option.empty for option in options]
    assert needed == sorted(needed, reverse=True), "what must be given comes first"
    for option in options:
        default = fields[option.name].default
        assert option.default == (option.empty if default is dataclasses.MISSING else default)
        assert f"\n{option.name} : " in function.__doc__
    assert function.__name__ == name
    assert function.__doc__.index("Parameters\n---") < function.__doc__.index("Returns\n---")
    assert "%%" not in function.__doc__
    assert not re.search(r"(?<!-)--[a-z]", function.__doc__), "options are told by their Python names"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_answered_by_the_nearest_one(name: str) -> None:
    known = next(field.name for field in dataclasses.fields(COMMANDS[name]) if len(field.name) > 3)
    with pytest.raises(TypeError, match=f"{name}.*'{known}x'; did you mean '{known}'"):
        getattr(lulc, name)(**{f"{known}x": 1})
    with pytest.raises(TypeError, match=f"help.lulc.{name}"):
        getattr(lulc, name)(qqqq=1)


def test_options_that_are_needed_are_named() -> None:
    with pytest.raises(TypeError, match=r"classify.* needs the options 'inputs' and 'out'"):
        lulc.classify(model="run")


def test_a_config_is_taken_and_options_by_name_win(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = api._config_from(
        "train", config.TrainConfig, config.TrainConfig(out="a", epochs=2), {"out": Path("b")}
    )
    assert seen == config.TrainConfig(out="b", epochs=2)
    with pytest.raises(TypeError, match="takes options by name or a TrainConfig, got EvaluateConfig"):
        lulc.train(config.EvaluateConfig(map="m", out="o"))
    with pytest.raises(TypeError, match="got str"):
        lulc.train("stacks")


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"data": [Path("a"), "b"]}, {"data": ("a", "b")}),
        ({"data": Path("a")}, {"data": ("a",)}),
        ({"data": "stacks"}, {"data": ("stacks",)}),
        ({"crop_sizes": 64}, {"crop_sizes": (64,)}),
        ({"crop_sizes": np.array([64, 96])}, {"crop_sizes": (64, 96)}),
        ({"crop_sizes": range(32, 97, 32)}, {"crop_sizes": (32, 64, 96)}),
        ({"epochs": np.int64(3)}, {"epochs": 3}),
        ({"epochs": None}, {"epochs": None}),
        ({"learning_rate": 1}, {"learning_rate": 1.0}),
        ({"learning_rate": np.float32(0.5)}, {"learning_rate": 0.5}),
        ({"overwrite": np.True_}, {"overwrite": True}),
        ({"keep": 5, "devices": 2}, {"keep": "5", "devices": "2"}),
    ],
)
def test_values_are_held_as_the_command_line_gives_them(
    options: dict[str, Any], held: dict[str, Any]
) -> None:
    made = config.TrainConfig(out="run", **options)
    for name, value in held.items():
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(value)


def test_numbers_and_days_become_the_texts_that_an_option_holds() -> None:
    made = config.PreprocessConfig(labels="l", out="o", validation=[3, 7], bounds=[1, 2, 3, 4])
    assert (made.validation, made.bounds) == (("3", "7"), (1.0, 2.0, 3.0, 4.0))
    assert config.PreprocessConfig(labels="l", out="o", validation=0.2).validation == ("0.2",)
    dated = config.ExportConfig(map="m", date=[datetime.date(2018, 6, 1), "2018-08-31"])
    assert dated.date == ("2018-06-01", "2018-08-31")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": "3"}, "'3' for --epochs, expected a whole number"),
        ({"epochs": 2.5}, "2.5 for --epochs, expected a whole number"),
        ({"epochs": True}, "True for --epochs, expected a whole number"),
        ({"epochs": [1, 2]}, r"\[1, 2\] for --epochs, expected a whole number"),
        ({"learning_rate": "fast"}, "'fast' for --learning-rate, expected a number"),
        ({"overwrite": 1}, "1 for --overwrite, expected true or false"),
        ({"out": None}, "None for --out, expected a text or a path"),
        ({"out": b"run"}, "b'run' for --out, expected a text or a path"),
        ({"data": {"a", "b"}}, "for DATA, expected a text or a path, or a list of them"),
        ({"data": {"a": 1}}, "for DATA, expected a text or a path"),
        ({"data": np.zeros((4, 5))}, r"an array of shape \(4, 5\) for DATA, expected a text or a path"),
        (
            {"recipe": "orignal"},
            "'orignal' for --recipe, expected one of auto, default, few-labels, original",
        ),
        ({"crop_sizes": "64"}, "'64' for --crop-sizes, expected a whole number, or a list of them"),
    ],
)
def test_values_of_another_kind_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as refused:
        config.TrainConfig(**{"out": "run", **options})
    assert refused.value.hint


def test_a_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(InputError, match="expected 4 values, each a number"):
        config.InputConfig(bounds=[1, 2, 3])


@pytest.mark.parametrize("kind", sorted(set(COMMANDS.values()), key=lambda kind: kind.__name__))
def test_defaults_are_values_of_their_options(kind: type) -> None:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING and field.default is not None:
            assert take(field.default, hints[field.name]) == field.default, field.name


def test_planning_and_shares_are_refused_by_classify_and_told_where_they_are() -> None:
    common = {"model": "m", "inputs": "a.tif", "out": "map.tif"}
    with pytest.raises(InputError, match=r"lulc\.forecast"):
        lulc.classify(plan=True, **common)
    with pytest.raises(InputError, match=r"lulc\.classify_share"):
        lulc.classify(share="1/2", **common)
    with pytest.raises(InputError, match="none is named"):
        lulc.classify_share(**common)


def test_a_map_from_python_is_the_map_of_the_command_line(
    tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 70, 90)
    common: dict[str, Any] = {"model": tiny_model, "inputs": [mosaic], "engine": "openvino"}
    forecast = lulc.forecast(out=tmp_path / "map.tif", **common)
    assert forecast.windows == 1 and not (tmp_path / "map.tif").exists()
    made = lulc.classify(out=tmp_path / "map.tif", **common)
    words = [str(tiny_model), str(mosaic), str(tmp_path / "typed.tif"), "--engine", "openvino"]
    assert make_classifications.main(words) == 0
    assert made.path.read_bytes() == (tmp_path / "typed.tif").read_bytes()
    with lulc.open_map(made.path) as land_cover:
        classes = land_cover.read(land_cover.grid.extent)
        counts = {n: int((classes == n).sum()) for n in (1, 2, 3)}
    assert counts == {n: made.counts.get(n, 0) for n in (1, 2, 3)}
    shared = lulc.classify_share(out=tmp_path / "other.tif", share="1/1", **common)
    assert (shared.parts, shared.made) == (1, 1)


@pytest.mark.integration
def test_stacks_report_and_export_take_paths(
    write_bands: Callable[..., Path], write_map: Callable[..., Path], tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 120, 160)
    labels = write_bands(tmp_path / "labels.tif", 120, 160, labels=True)
    table = tmp_path / "classes.csv"
    table.write_text(
        "code,class,name,color\n" + "".join(f"{n},{n},class {n},#0000{n}0\n" for n in range(1, 7))
    )
    manifest = lulc.make_stacks(
        bands=[mosaic], labels=labels, scheme=table, size=64, gap=0, out=tmp_path / "stacks", validation=0.5
    )
    assert len(lulc.load_scheme(table).legend) == len(manifest.legend) == 6
    assert manifest.folder == tmp_path / "stacks" and manifest.of("val")
    land_cover = write_map(
        tmp_path / "map.tif", shape=(120, 160), names=manifest.legend.names, origin=(566000, 6785000)
    )
    report = lulc.evaluate(map=land_cover, reference=labels, scheme=table, out=tmp_path / "report")
    assert 0 < report.scores.overall_accuracy < 0.9, "the map is of noise"
    assert lulc.export_map(map=land_cover, out=tmp_path / "map.qml") == (tmp_path / "map.qml",)


def test_a_stack_is_opened_with_paths_and_options(write_bands: Callable[..., Path], tmp_path: Path) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 40, 50)
    with lulc.open_stack(mosaic) as stack:
        assert stack.channels == CHANNELS
        assert stack.read(stack.grid.extent).shape == (40, 50, len(CHANNELS))
    with lulc.open_stack([mosaic], channels=BANDS[:2], scale=0.0002) as stack:
        double = stack.read(stack.grid.extent)
    with lulc.open_stack([mosaic], config=config.InputConfig(scale=0.0001), channels=BANDS[:2]) as stack:
        np.testing.assert_allclose(double, 2 * stack.read(stack.grid.extent), rtol=1e-6)
    with pytest.raises(TypeError, match=r"open_stack.*'scael'; did you mean 'scale'"):
        lulc.open_stack(mosaic, scael=1)


def test_a_model_is_loaded_from_a_run_folder_or_a_file(tiny_model: Path) -> None:
    model, card = lulc.load_model(tiny_model)
    assert (card.name, model.output_shape[-1]) == ("tiny", 3)
    with pytest.raises(InputError, match="cannot find the model 'no-such-model'"):
        lulc.load_model("no-such-model")


def test_a_map_without_class_names_takes_those_of_a_scheme(
    write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    labels = write_bands(tmp_path / "labels.tif", 40, 50, labels=True)
    for scheme in ("kaakonkulma-13", lulc.load_scheme("kaakonkulma-13")):
        with lulc.open_map(labels, scheme=scheme) as land_cover:
            assert len(land_cover.legend) == 13
    with pytest.raises(InputError, match="cannot tell the classes"):
        lulc.open_map(labels)


@pytest.mark.integration
def test_a_run_is_trained_from_python(write_stacks: Callable[..., Path], tmp_path: Path) -> None:
    stacks = write_stacks(tmp_path / "stacks")
    small: dict[str, Any] = {
        "epochs": 1,
        "steps": 1,
        "validation_steps": 1,
        "filters": [2],
        "crop_sizes": [32],
    }
    run = lulc.train(data=stacks, out=tmp_path / "run", validation_crop_sizes=32, **small)
    assert run.finished and run.folder == tmp_path / "run"
    model, card = lulc.load_model(run.folder, pick="last")
    assert model.output_shape[-1] == len(card.legend) == 3
