"""The demonstration: the whole way from rasters to a report, through the commands as one types them."""

from __future__ import annotations

import csv
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc import config
from lulc.commandline import parser_for
from lulc.commands import demo

CONFIGS = {
    "preprocess": config.PreprocessConfig,
    "train_model": config.TrainConfig,
    "make_classifications": config.ClassifyConfig,
    "evaluate_classifications": config.EvaluateConfig,
}


def test_the_command_lines_are_those_of_the_four_commands_in_order() -> None:
    lines = demo.command_lines(demo.DemoConfig())
    assert [name for name, *_ in lines] == list(CONFIGS)
    for name, *arguments in lines:
        parser_for(CONFIGS[name], "").parse_args(arguments)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_example_in_a_command_s_help_parses(name: str) -> None:
    text = importlib.import_module(f"lulc.commands.{name}").__doc__ or ""
    example = re.search(rf"python {name}\.py (.+?)(?:\n\n|\Z)", text, re.DOTALL)
    assert example, "the docstring of a command ends with an example"
    parser_for(CONFIGS[name], "").parse_args(shlex.split(example[1].replace("\\\n", " ")))


def test_a_scene_becomes_stacks_weights_a_map_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SHAPE", (256, 512))
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out), "--epochs", "1", "--steps", "2"]) == 0
    printed = capsys.readouterr().out

    with rasterio.open(out / "map.tif") as made, rasterio.open(out / "summer.tif") as summer:
        assert made.count == 14
        assert (made.crs, made.transform, made.shape) == (summer.crs, summer.transform, summer.shape)
        activations = made.read(range(2, 15))
        valid = made.read(1) > 0
    np.testing.assert_allclose(activations.sum(axis=0)[valid], 1, atol=1e-4)
    assert valid.mean() > 0.9
    with (out / "run" / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    assert "13 Water bodies" in printed
    for what in ("map", "weights", "history", "picture"):
        path = re.search(rf"^{what} +(\S+)$", printed, re.MULTILINE)
        assert path, what
        assert Path(path[1]).is_file(), what
