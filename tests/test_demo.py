"""The demonstration: the whole way from rasters to a report, through the commands as one types them."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc import config
from lulc.cli.commandline import parser_for
from lulc.demo import demonstration

pytestmark = pytest.mark.integration

CONFIGS = {
    "preprocess": config.PreprocessConfig,
    "train_model": config.TrainConfig,
    "make_classifications": config.ClassifyConfig,
    "evaluate_classifications": config.EvaluateConfig,
}


def test_the_command_lines_are_those_of_the_four_commands_in_order() -> None:
    lines = demonstration.command_lines(demonstration.DemoConfig())
    assert [name for name, *_ in lines] == list(CONFIGS)
    for name, *arguments in lines:
        parser_for(CONFIGS[name], "").parse_args(arguments)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_examples_in_a_command_s_help_parse(name: str) -> None:
    text = importlib.import_module(f"lulc.cli.{name}").__doc__ or ""
    examples = re.findall(rf"python {name}\.py (.+?)(?=\n +python |\n\n|\Z)", text, re.DOTALL)
    assert examples, "the docstring of a command ends with an example"
    for example in examples:
        parser_for(CONFIGS[name], "").parse_args(shlex.split(example.replace("\\\n", " ")))


@pytest.fixture
def run(demonstration: tuple[Path, str]) -> tuple[Path, str]:
    """Folder of a short demonstration on a small scene, and what it printed."""
    return demonstration


def test_a_scene_becomes_a_map_on_its_own_grid(run: tuple[Path, str]) -> None:
    with rasterio.open(run[0] / "map.tif") as made, rasterio.open(run[0] / "summer.tif") as summer:
        assert made.count == 14
        assert (made.crs, made.transform, made.shape) == (summer.crs, summer.transform, summer.shape)
        activations = made.read(range(2, 15))
        valid = made.read(1) > 0
    np.testing.assert_allclose(activations.sum(axis=0)[valid], 1, atol=1e-4)
    assert valid.mean() > 0.9


def test_the_output_ends_with_a_class_table_and_where_each_result_lies(run: tuple[Path, str]) -> None:
    out, printed = run
    assert "13 Water bodies" in printed
    for what in ("map", "weights", "history", "picture"):
        path = re.search(rf"^{what} +(\S+)$", printed, re.MULTILINE)
        assert path, what
        assert Path(path[1]).is_file(), what
        assert Path(path[1]).is_relative_to(out)
    with (out / "run" / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_gdal_s_own_tools_read_the_map(run: tuple[Path, str]) -> None:
    if not shutil.which("gdalinfo"):
        pytest.skip("needs GDAL's tools: make system")
    call = ["gdalinfo", "-json", "-checksum", str(run[0] / "map.tif")]
    told = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    assert told["size"] == [512, 256]
    assert "3067" in told["coordinateSystem"]["wkt"]
    assert {band["noDataValue"] for band in told["bands"]} == {-1.0}
    assert {band["type"] for band in told["bands"]} == {"Float32"}
    assert all(band["description"] and band["overviews"] for band in told["bands"])
    with rasterio.open(run[0] / "map.tif") as made:
        assert [band["checksum"] for band in told["bands"]] == [made.checksum(i) for i in made.indexes]
