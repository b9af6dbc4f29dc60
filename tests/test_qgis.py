"""The QGIS plug-in makes its forms from the commands, and runs them in the QGIS of this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from lulc import config
from lulc.cli.forms import FORMS, HIDDEN, HIDDEN_GROUPS, forms

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
QGIS_PYTHON = "/usr/bin/python3"

START = """
import json, sys
sys.path[:0] = [sys.argv[1], "/usr/share/qgis/python/plugins"]
from qgis.core import *
application = QgsApplication([], False)
application.initQgis()
from processing.core.Processing import Processing
import processing
Processing.initialize()
import lulc_maps
plugin = lulc_maps.classFactory(None)
plugin.initProcessing()
given = json.loads(sys.argv[2])
feedback = QgsProcessingFeedback()
project = QgsProject.instance()
"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def in_qgis(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program in QGIS with the plug-in registered; returns what it prints as JSON."""
    folder = tmp_path_factory.mktemp("qgis")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    } | {
        "QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder),
        "LULC_PYTHON": str(python), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip

    def run(program: str, fails: bool = False, python: str | None = None, **given: Any) -> Any:
        call = [QGIS_PYTHON, "-c", START + program, str(ROOT / "qgis"), json.dumps(given, default=str)]
        known = environment if python is None else environment | {"LULC_PYTHON": python}
        done = subprocess.run(call, env=known, capture_output=True, text=True, check=False, timeout=500)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr + done.stdout if fails else json.loads(done.stdout.splitlines()[-1])

    found = (
        os.path.exists(QGIS_PYTHON)
        and not subprocess.run(
            [QGIS_PYTHON, "-c", "import qgis.core"], env=environment, capture_output=True, check=False
        ).returncode
    )
    if not found:
        pytest.skip("needs QGIS for Python (Debian: python3-qgis)")
    return run


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_shows_every_option_of_its_command_with_its_help_and_default(form: Any) -> None:
    shown = next(a for a in forms()["algorithms"] if a["name"] == form.name)
    options = {option["name"]: option for option in shown["options"]}
    for field in dataclasses.fields(form.options):
        hidden = field.name in HIDDEN or field.metadata["group"] in HIDDEN_GROUPS
        if hidden or (form.only and field.name not in form.only):
            assert field.name not in options
            continue
        option = options.pop(field.name)
        assert str(field.metadata["help"]).replace("%%", "%") in option["help"]
        assert option["required"] == (field.default is dataclasses.MISSING)
        if not option["required"]:
            expected = list(field.default) if isinstance(field.default, tuple) else field.default
            assert option["default"] == expected
        assert option["choices"] == list(field.metadata["choices"] or ())
    assert not options


def test_qgis_lists_the_algorithms_with_help_choices_and_limits(in_qgis: Run) -> None:
    found = in_qgis(
        """
registry = QgsApplication.processingRegistry()
shown = {}
for algorithm in registry.providerById("lulc").algorithms():
    shown[algorithm.name()] = {
        p.name(): [type(p).__name__, p.help(), p.options() if hasattr(p, "options") else None]
        for p in algorithm.parameterDefinitions()
    }
print(json.dumps(shown))
"""
    )
    assert set(found) == {"prepare", "train", "classify", "evaluate", "areasample"}
    kind, text, choices = found["classify"]["engine"]
    field = next(f for f in dataclasses.fields(config.ClassifyConfig) if f.name == "engine")
    assert kind == "QgsProcessingParameterEnum" and choices == list(field.metadata["choices"])
    assert field.metadata["help"] in text
    assert found["classify"]["inputs"][0] == "QgsProcessingParameterMultipleLayers"
    assert found["classify"]["out"][0] == "QgsProcessingParameterRasterDestination"


def test_a_mosaic_is_classified_and_its_map_has_its_colours(
    in_qgis: Run, tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 60, 70)
    made = in_qgis(
        """
result = processing.run("lulc:classify", {
    "model": given["model"], "inputs": [given["mosaic"]], "out": given["out"], "window": 32,
    "engine": "openvino", "tta": True,
}, feedback=feedback)
layer = QgsRasterLayer(result["out"], "map")
renderer = layer.renderer()
print(json.dumps({"out": result["out"], "kind": renderer.type(), "progress": feedback.progress(),
                  "labels": [c.label for c in renderer.classes()]}))
""",
        model=tiny_model, mosaic=mosaic, out=tmp_path / "map.tif",
    )  # fmt: skip
    assert made["kind"] == "paletted" and made["progress"] == 100
    assert any("class 1" in label for label in made["labels"])
    with rasterio.open(tmp_path / "map.tif") as land_cover:
        parameters = json.loads(land_cover.tags()["LULC_PARAMETERS"])
    assert parameters["tta"] is True and parameters["window"] == [32, 32]


def test_an_area_sample_opens_with_the_classes_as_a_list(
    in_qgis: Run, write_map: Callable[..., Path], tmp_path: Path
) -> None:
    made = in_qgis(
        """
context = QgsProcessingContext()
context.setProject(project)
result = processing.run("lulc:areasample", {
    "map": given["map"], "out": given["out"], "design_sample": 60,
}, feedback=feedback, context=context)
loaded = list(context.layersToLoadOnCompletion())
from processing.gui.Postprocessing import handleAlgorithmResults
algorithm = QgsApplication.processingRegistry().algorithmById("lulc:areasample")
handleAlgorithmResults(algorithm, context, feedback)
layer = next(iter(project.mapLayers().values()))
widget = layer.editorWidgetSetup(layer.fields().indexOf("reference"))
print(json.dumps({"type": widget.type(), "entries": str(widget.config()), "points": layer.featureCount(),
                  "loaded": loaded}))
""",
        map=write_map(tmp_path / "map.tif"), out=tmp_path / "report",
    )  # fmt: skip
    assert made["type"] == "ValueMap" and "cannot be interpreted" in made["entries"]
    assert made["points"] >= 60
    assert "sample.gpkg" in made["loaded"][0]


def test_areas_of_interest_are_layers_even_of_no_file(
    in_qgis: Run, tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 60, 70)
    made = in_qgis(
        """
layer = QgsVectorLayer("Polygon?crs=EPSG:3067&field=kind:string", "place of work", "memory")
for kind, west in (("in", 566100), ("out", 566400)):
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(west, 6784700, west + 200, 6784900)))
    feature.setAttributes([kind])
    layer.dataProvider().addFeatures([feature])
layer.setSubsetString("\\"kind\\" = 'in'")
project.addMapLayer(layer)
context = QgsProcessingContext()
context.setProject(project)
registry = QgsApplication.processingRegistry()
model = registry.algorithmById("lulc:classify").parameterDefinition("model")
assert all(model.checkValueIsAcceptable(v) for v in ("demo/run", "kaakonkulma-sim", "hf://a/b@c", "x.keras"))
kinds = [type(registry.algorithmById("lulc:" + name).parameterDefinition(option)).__name__
         for name, option in (("classify", "aoi"), ("prepare", "labels"), ("evaluate", "reference"))]
processing.run("lulc:classify", {
    "model": given["model"], "inputs": [given["mosaic"]], "out": given["out"], "window": 32,
    "engine": "openvino", "aoi": layer.id(), "polygons": given["polygons"],
} | {"out": QgsProcessingOutputLayerDefinition(given["out"], project)}, feedback=feedback, context=context)
from processing.gui.Postprocessing import handleAlgorithmResults
handleAlgorithmResults(registry.algorithmById("lulc:classify"), context, feedback)
shown = [one for one in project.mapLayers().values() if isinstance(one, QgsRasterLayer)]
print(json.dumps([*kinds, *(one.renderer().type() for one in shown)]))
""",
        model=tiny_model, mosaic=mosaic, out=tmp_path / "map.tif", polygons=tmp_path / "patches.gpkg",
    )  # fmt: skip
    assert made == ["QgsProcessingParameterVectorLayer", *["QgsProcessingParameterMapLayer"] * 2, "paletted"]
    with rasterio.open(tmp_path / "map.tif") as land_cover, rasterio.open(mosaic) as bands:
        valid = land_cover.read_masks(1) > 0
        rows, cols = np.nonzero(valid)
        assert (rows.min(), rows.max(), cols.min(), cols.max()) == (10, 29, 10, 29)
        assert (valid == (bands.read_masks(1) > 0))[10:30, 10:30].all()
    assert len(geopandas.read_file(tmp_path / "patches.gpkg"))


def test_a_layer_of_several_in_a_file_is_the_reference(
    in_qgis: Run, write_map: Callable[..., Path], tmp_path: Path
) -> None:
    land_cover = write_map(tmp_path / "map of it.tif")
    labels, scheme = tmp_path / "my labels.gpkg", tmp_path / "scheme.csv"
    names = ("Water & ice", "Forest", "Peltoja å")
    rows = "".join(f"{name},{number},{name},#102030\n" for number, name in enumerate(names, 1))
    scheme.write_text("code,class,name,color\n" + rows, encoding="utf-8")
    for name, east in (("first", -5000), ("second", 300)):
        box = shapely.box(500_000 + east, 6_699_400, 500_200 + east, 6_699_900)
        frame = geopandas.GeoDataFrame({"cover": ["Forest"]}, geometry=[box], crs="EPSG:3067")
        frame.to_file(labels, layer=name)
    made = in_qgis(
        """
layer = QgsVectorLayer(given["labels"] + "|layername=second", "labels")
project.addMapLayer(layer)
context = QgsProcessingContext()
context.setProject(project)
found = processing.run("lulc:evaluate", {
    "map": given["map"], "reference": layer.id(), "label_field": "cover", "out": given["out"],
    "scheme": given["scheme"],
}, feedback=feedback, context=context)
layer.startEditing()
layer.changeAttributeValue(1, 1, "Water & ice")
try:
    processing.run("lulc:evaluate", {
        "map": given["map"], "reference": layer.id(), "label_field": "cover",
        "out": given["out"] + "2", "scheme": given["scheme"],
    }, feedback=feedback, context=context)
except QgsProcessingException as error:
    found["error"] = str(error)
print(json.dumps(found))
""",
        map=land_cover, labels=labels, scheme=scheme, out=tmp_path / "the report",
    )  # fmt: skip
    # Labels of the first layer lie outside the map.
    assert Path(made["PAGE"]).read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert "edits are not saved" in made["error"]


def test_several_values_are_quoted_where_they_hold_blanks(in_qgis: Run, tmp_path: Path) -> None:
    (tmp_path / "two words").mkdir()
    texts = [str(tmp_path / "two words"), f"'{tmp_path}/two words' other", "0.2", "3 7"]
    found = in_qgis(
        """
from lulc_maps.command import several_of
print(json.dumps([several_of(text) for text in given["texts"]]))
""",
        texts=texts,
    )
    assert found == [[texts[0]], [texts[0], "other"], ["0.2"], ["3", "7"]]


def test_an_error_of_a_command_is_shown_as_it_is_said(in_qgis: Run, tmp_path: Path) -> None:
    said = in_qgis(
        """
processing.run("lulc:evaluate", {"map": given["map"], "out": given["out"]}, feedback=feedback)
""",
        fails=True, map=tmp_path / "none.tif", out=tmp_path / "report",
    )  # fmt: skip
    assert "none.tif" in said


def test_a_canceled_run_ends_and_the_same_inputs_continue_it(
    in_qgis: Run, tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 300, 300)
    program = """
feedback.pushInfo = lambda text: None
if given["cancel"]:
    feedback.cancel()
result = processing.run("lulc:classify", {
    "model": given["model"], "inputs": [given["mosaic"]], "out": given["out"], "window": 16, "part": 256,
    "engine": "openvino",
}, feedback=feedback)
print(json.dumps(result))
"""
    given = {"model": tiny_model, "mosaic": mosaic, "out": tmp_path / "map.tif"}
    said = in_qgis(program, fails=True, cancel=True, **given)
    assert "canceled" in said and not (tmp_path / "map.tif").exists()
    in_qgis(program, cancel=False, **given)
    assert (tmp_path / "map.tif").exists()


def test_without_lulc_the_toolbox_is_empty_and_nothing_breaks(in_qgis: Run, tmp_path: Path) -> None:
    for python in (tmp_path / "none", QGIS_PYTHON):
        count = in_qgis(
            'print(len(QgsApplication.processingRegistry().providerById("lulc").algorithms()))',
            python=str(python),
        )
        assert count == 0


def test_the_zip_holds_the_plug_in_alone(tmp_path: Path) -> None:
    subprocess.run(["make", "-C", str(ROOT), "qgis"], check=True, capture_output=True)
    with zipfile.ZipFile(ROOT / "dist" / "lulc_maps.zip") as archive:
        names = set(archive.namelist())
    files = {f"lulc_maps/{p.name}" for p in (ROOT / "qgis" / "lulc_maps").iterdir() if p.is_file()}
    assert names - {"lulc_maps/"} == files
    assert "lulc_maps/metadata.txt" in names
