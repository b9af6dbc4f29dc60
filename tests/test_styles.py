"""Styles and attribute tables say what the legend says, and GDAL and QGIS read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc.cli.export_map import main
from lulc.cli.make_classifications import main as make_classifications
from lulc.export.styles import (
    Entry,
    attribute_table,
    count_entries,
    entries_of_counts,
    is_own,
    qml,
    sld,
    style_map,
)
from lulc.maps.reader import REST, open_map

WriteMap = Callable[..., Path]

HOSTILE = "<b>\"Wet\" & 'dry'</b> \x00\x1b[31m]]>"

SYSTEM_PYTHON = "/usr/bin/python3"
"""The interpreter that Debian's QGIS is built for."""


def counts_by_rasterio(path: Path) -> dict[int, int]:
    with rasterio.open(path) as source:
        values, counts = np.unique(source.read(1, masked=True).compressed(), return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True)}


def gdal(*command: str | Path) -> str:
    """What a GDAL program prints; a warning or an error fails the test."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"needs {command[0]} (make system installs gdal-bin)")
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr, ended.stderr
    assert "ERROR" not in ended.stderr, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("activations", ["float32", "uint8", "none"])
def test_counts_are_those_of_rasterio(tmp_path: Path, write_map: WriteMap, activations: str) -> None:
    path = write_map(tmp_path / "map.tif", activations=activations, unclassified=True)
    with open_map(path) as land_cover:
        entries = count_entries(land_cover)
    assert {e.value: e.count for e in entries} == counts_by_rasterio(path)
    assert [e.value for e in entries] == [0, 1, 2, 3]


def test_a_map_of_one_class_is_styled_by_the_values_of_its_file(tmp_path: Path, write_map: WriteMap) -> None:
    path = write_map(tmp_path / "map.tif", names=("Water",))
    with open_map(path) as land_cover:
        entries = count_entries(land_cover)
    assert [(e.value, e.name) for e in entries] == [(0, REST.name), (1, "Water")]
    assert {e.value: e.count for e in entries} == counts_by_rasterio(path)


def test_qml_and_sld_have_one_colour_and_label_for_each_value() -> None:
    entries = [Entry(0, "Unclassified", "#000000", 1), Entry(3, "Å & <b>", "#12ab9f", 2)]
    palette = ET.fromstring(qml(entries)).findall(".//paletteEntry")
    assert [(p.get("value"), p.get("color"), p.get("label")) for p in palette] == [
        ("0", "#000000", "Unclassified"), ("3", "#12ab9f", "Å & <b>"),
    ]  # fmt: skip
    colors = ET.fromstring(sld(entries, "map")).findall(".//{http://www.opengis.net/sld}ColorMapEntry")
    assert [(c.get("quantity"), c.get("color"), c.get("label")) for c in colors] == [
        ("0", "#000000", "Unclassified"), ("3", "#12ab9f", "Å & <b>"),
    ]  # fmt: skip


def test_names_that_xml_cannot_hold_do_not_break_it(tmp_path: Path, write_map: WriteMap) -> None:
    path = write_map(tmp_path / "map.tif", names=("Water", HOSTILE))
    with open_map(path) as land_cover:
        entries = count_entries(land_cover)
    for text in (qml(entries), sld(entries, HOSTILE), attribute_table(entries)):
        ET.fromstring(text)
    assert entries[-1].name == HOSTILE.replace("\x00", "").replace("\x1b", "")


def test_without_outputs_the_styles_lie_beside_the_map_and_equal_runs_give_equal_bytes(
    tmp_path: Path, write_map: WriteMap, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_map(tmp_path / "map.tif")
    assert main([str(path)]) == 0
    written = [tmp_path / name for name in ("map.qml", "map.sld", "map.tif.aux.xml")]
    assert capsys.readouterr().out.split() == [str(w) for w in written]
    first = [w.read_bytes() for w in written]
    # Styles that nobody changed are replaced unasked, others are not.
    assert main([str(path)]) == 0
    assert [w.read_bytes() for w in written] == first
    written[0].write_text(written[0].read_text().replace("Forest", "Wood"))
    assert main([str(path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([str(path), "--overwrite"]) == 0
    assert [w.read_bytes() for w in written] == first


def test_a_style_of_the_users_beside_a_map_is_never_replaced(
    tmp_path: Path, write_map: WriteMap, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_map(tmp_path / "map.tif", activations="none")
    style, table = tmp_path / "map.qml", tmp_path / "map.tif.aux.xml"
    style.write_text("<qgis>my colours</qgis>\n")
    table.symlink_to(tmp_path / "elsewhere.xml")
    with open_map(path) as land_cover:
        style_map(land_cover, count_entries(land_cover), path)
    assert style.read_text() == "<qgis>my colours</qgis>\n"
    assert table.is_symlink() and not (tmp_path / "elsewhere.xml").exists()
    assert sum("is left as it is" in message for message in caplog.messages) == 2


def test_the_table_of_a_replaced_map_does_not_stay(tmp_path: Path, write_map: WriteMap) -> None:
    for activations, exists in (("none", True), ("float32", False)):
        path = write_map(tmp_path / "map.tif", activations=activations)
        with open_map(path) as land_cover:
            style_map(land_cover, count_entries(land_cover), path)
        assert (tmp_path / "map.tif.aux.xml").exists() == exists and is_own(tmp_path / "map.qml")


@pytest.mark.parametrize("names", [("Water",), ("Water", "Forest")])
@pytest.mark.parametrize("activations", ["float32", "none"])
def test_counts_by_number_of_the_file_make_the_entries_of_the_map(
    tmp_path: Path, write_map: WriteMap, names: tuple[str, ...], activations: str
) -> None:
    path = write_map(tmp_path / "map.tif", names=names, activations=activations)
    with open_map(path) as land_cover:
        assert entries_of_counts(land_cover, counts_by_rasterio(path)) == count_entries(land_cover)


def test_gdal_finds_the_attribute_table_by_itself(tmp_path: Path, write_map: WriteMap) -> None:
    path = write_map(tmp_path / "map.tif", unclassified=True)
    assert main([str(path)]) == 0
    table = json.loads(gdal("gdalinfo", "-json", path))["rat"]
    columns = [field["name"] for field in table["fieldDefn"]]
    assert columns == ["Value", "Count", "Class", "Red", "Green", "Blue"]
    rows = [dict(zip(columns, row["f"], strict=True)) for row in table["row"]]
    assert {row["Value"]: row["Count"] for row in rows} == counts_by_rasterio(path)
    assert [row["Class"] for row in rows] == ["Unclassified", "Water & ice", "Forest", "Peltoja å"]
    assert [rows[3][c] for c in ("Red", "Green", "Blue")] == [120, 160, 3]


def test_the_attribute_table_goes_along_when_gdal_converts(tmp_path: Path, write_map: WriteMap) -> None:
    path = write_map(tmp_path / "map.tif")
    assert main([str(path)]) == 0
    copy = tmp_path / "copy.img"
    gdal("gdal_translate", "-q", "-b", "1", "-of", "HFA", path, copy)
    assert "Peltoja" in gdal("gdalinfo", copy)


def test_a_map_of_tiles_is_styled_by_its_vrt(tmp_path: Path, write_map: WriteMap, capsys) -> None:
    path = write_map(tmp_path / "map.tif")
    gdal("gdal_translate", "-q", "-of", "VRT", path, tmp_path / "tiles.vrt")
    assert main([str(tmp_path / "tiles.vrt")]) == 1
    assert "--allow-vrt" in capsys.readouterr().err
    assert main([str(tmp_path / "tiles.vrt"), "--allow-vrt"]) == 0
    assert main([str(path)]) == 0
    assert (tmp_path / "tiles.qml").read_bytes() == (tmp_path / "map.qml").read_bytes()


QGIS = """
import sys
from qgis.core import QgsApplication, QgsMapRendererParallelJob, QgsMapSettings, QgsRasterLayer
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
application = QgsApplication([], False)
application.initQgis()
source, style, sld, picture = sys.argv[1:]
layer = QgsRasterLayer(source, "map")
assert layer.isValid(), source
if style:
    message, ended = layer.loadNamedStyle(style)
    assert ended, message
renderer = layer.renderer()
assert renderer.type() == "paletted", renderer.type()
print([(int(c.value), c.label, c.color.name()) for c in renderer.classes()])
print(layer.crs().authid(), layer.extent().toString(0))
message, ended = layer.saveSldStyle(sld)
assert ended, message
settings = QgsMapSettings()
settings.setLayers([layer])
settings.setExtent(layer.extent())
settings.setDestinationCrs(layer.crs())
settings.setOutputSize(QSize(layer.width(), layer.height()))
settings.setBackgroundColor(QColor("white"))
job = QgsMapRendererParallelJob(settings)
job.start()
job.waitForFinished()
assert not job.errors()
assert job.renderedImage().save(picture)
"""


def colors_of(text: str) -> list[tuple[str | None, ...]]:
    """Value, colour and label of each entry of an SLD, whatever its namespace."""
    found = ET.fromstring(text).findall(".//{*}ColorMapEntry")
    return [(e.get("quantity"), e.get("color"), e.get("label")) for e in found]


Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def qgis(tmp_path: Path) -> Python:
    """Run a program in the interpreter of QGIS; skips where there is none."""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(tmp_path)}
    environment.pop("PYTHONPATH", None)

    def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [SYSTEM_PYTHON, "-c", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    if not os.path.exists(SYSTEM_PYTHON) or python("import qgis.core").returncode:
        pytest.skip("needs QGIS for Python (Debian: python3-qgis)")
    return python


@pytest.mark.stress
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], "map.tif"),
        (["--activations", "none"], "map.tif"),
        (["--sieve", "20"], "map_sieved.tif"),
        (["--tiles", "--date", "2018-07-01"], "map.vrt"),
        (["--tiles", "--date", "2018-07-01", "--activations", "none"], "map.vrt"),
    ],
)
def test_qgis_shows_a_map_rightly_as_it_was_made(
    tmp_path: Path,
    tiny_model: Path,
    write_bands: Callable[..., Path],
    qgis: Python,
    options: list[str],
    shown: str,
) -> None:
    mosaic = write_bands(tmp_path / "mosaic.tif", 300, 400)
    out = tmp_path / "map" if "--tiles" in options else tmp_path / "map.tif"
    scaling = ["--scale", "0.0001", "--offset", "0", "--part", "256", "-q"]
    assert make_classifications([str(tiny_model), str(mosaic), str(out), *scaling, *options]) == 0
    source = (out if out.is_dir() else tmp_path) / shown
    with open_map(source, allow_vrt=True) as land_cover:
        entries = count_entries(land_cover)
    picture = tmp_path / "picture.png"
    ended = qgis(QGIS, source, "", tmp_path / "qgis.sld", picture)
    assert ended.returncode == 0, ended.stderr
    expected = [(e.value, e.name, e.color) for e in entries]
    assert ended.stdout.splitlines()[0] == str(expected)
    colors = {e.value: [int(e.color[k : k + 2], 16) for k in (1, 3, 5)] for e in entries}
    with rasterio.open(source) as file, rasterio.open(picture) as painted:
        classes, found = file.read(1, masked=True), np.moveaxis(painted.read([1, 2, 3]), 0, -1)
    assert found.shape[:2] == classes.shape and len(np.unique(classes.compressed())) > 1
    for value in np.unique(classes.compressed()):
        assert (found[(classes == value).filled(False)] == colors[int(value)]).all()


@pytest.mark.stress
def test_qgis_shows_every_form_of_a_map_in_the_colours_of_its_legend(
    tmp_path: Path, write_map: WriteMap, qgis: Python
) -> None:
    path = write_map(tmp_path / "map.tif")
    vrt, netcdf, zarr = tmp_path / "map.vrt", tmp_path / "map.nc", tmp_path / "map.zarr"
    gdal("gdal_translate", "-q", "-of", "VRT", path, vrt)
    assert main([str(path)]) == 0
    assert main([str(path), "--out", str(netcdf), str(zarr)]) == 0
    style, sld, picture = tmp_path / "map.qml", tmp_path / "qgis.sld", tmp_path / "qgis.png"
    expected = [(1, "Water & ice", "#28a001"), (2, "Forest", "#50a002"), (3, "Peltoja å", "#78a003")]
    colors = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for _, _, c in expected], np.uint8)
    with rasterio.open(path) as file:
        stored = file.read(1)
    painted = np.where((stored > 0)[..., None], colors[np.maximum(stored, 1).astype(int) - 1], 255)
    # Beside the map and the VRT of its name lies their style; the others are given it.
    for source, given in (
        (path, ""), (vrt, ""), (path, style), (f"NETCDF:{netcdf}:land_cover", style),
        (f'ZARR:"{zarr}":/land_cover', style),
    ):  # fmt: skip
        ended = qgis(QGIS, source, given, sld, picture)
        assert ended.returncode == 0, (source, ended.stderr)
        assert ended.stdout.splitlines() == [
            str(expected), "EPSG:3067 500000,6699300 : 500900,6700000"
        ]  # fmt: skip
        assert colors_of((tmp_path / "map.sld").read_text()) == colors_of(sld.read_text())
        with rasterio.open(picture) as file:
            assert np.array_equal(np.moveaxis(file.read([1, 2, 3]), 0, -1), painted), source
