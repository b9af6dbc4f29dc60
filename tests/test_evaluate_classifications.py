"""The command: what it prints, where it writes, how it fails."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.cli.evaluate_classifications import main
from lulc.evaluation.report.publish import FILES
from lulc.labels.schemes import load_scheme

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A folder with map.tif and labels.tif, 30 x 40."""
    labels = np.random.default_rng(1).integers(0, 14, (1, 30, 40)).astype(np.uint8)
    mapped = np.where(labels == 0, 5, labels).astype(np.uint8)
    mapped[0, :3] = 13
    profile = {
        "driver": "GTiff", "count": 1, "height": 30, "width": 40, "dtype": "uint8",
        "crs": "EPSG:3067", "transform": Affine(10, 0, 500_000, 0, -10, 6_700_000),
    }  # fmt: skip
    for name, values in (("labels", labels), ("map", mapped)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as file:
            file.write(values)
            if name == "map":
                file.update_tags(LULC_LEGEND=json.dumps(load_scheme("kaakonkulma-13").legend.to_json()))
    return tmp_path


def arguments(scene: Path) -> list[str]:
    return [str(scene / "map.tif"), str(scene / "labels.tif"), "--out", str(scene / "report"), "-q"]


def test_the_command_prints_the_table_the_totals_and_its_files(scene, capsys) -> None:
    assert main(arguments(scene)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    total = json.loads((scene / "report" / "report.json").read_text())["total"]
    for c in total["classes"]:
        line = next(text for text in out.splitlines() if text.startswith(f"{c['number']} {c['name']}"))
        assert f"{c['f1']:.3f}" in line
    line = next(text for text in out.splitlines() if text.startswith("all classes"))
    assert f"{total['overall_accuracy']:.3f}" in line and f"{total['macro']['f1']:.3f}" in line
    for path in (scene / "report").iterdir():
        assert str(path) in out
        assert path.name in FILES
    assert not list(scene.rglob("*.partial"))


def test_a_second_run_is_refused_without_overwrite(scene, capsys) -> None:
    assert main(arguments(scene)) == 0
    assert main(arguments(scene)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write the report") and "--overwrite" in error
    assert main([*arguments(scene), "--overwrite"]) == 0


def test_a_missing_map_is_one_message_and_no_report(scene, capsys) -> None:
    wrong = [str(scene / "absent.tif"), *arguments(scene)[1:]]
    assert main(wrong) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "absent.tif" in error and "Traceback" not in error
    assert not (scene / "report").exists()


def test_a_reference_with_unknown_codes_lists_them(scene, capsys) -> None:
    with rasterio.open(scene / "labels.tif", "r+") as file:
        labels = file.read(1)
        labels[0, :4] = 77
        file.write(labels, 1)
    assert main(arguments(scene)) == 1
    assert "77 (4 px)" in capsys.readouterr().err
    assert not (scene / "report").exists()


def test_a_report_over_a_file_is_refused(scene, capsys) -> None:
    (scene / "report").write_text("mine")
    assert main(arguments(scene)) == 1
    assert "expected a folder" in capsys.readouterr().err
    assert (scene / "report").read_text() == "mine"


def test_the_script_shows_its_help_and_refuses_a_mistyped_option() -> None:
    script = str(ROOT / "evaluate_classifications.py")
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "The result is a folder" in shown.stdout and "--compare" in shown.stdout
    assert "--overwrite" in shown.stdout and "--restart" not in shown.stdout
    wrong = subprocess.run([sys.executable, script, "--comprae"], capture_output=True, text=True)
    assert wrong.returncode == 2


def test_figures_for_machines_are_those_of_the_report(scene, capsys) -> None:
    assert main([*arguments(scene), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    written = answer.pop("written")
    (report,) = (path for path in written if path.endswith("report.json"))
    assert json.loads(Path(report).read_text(encoding="utf-8")) == answer


def test_points_are_drawn_and_read_without_a_reference(scene, capsys) -> None:
    drawn = [str(scene / "map.tif"), "--design-sample", "60", "--out", str(scene / "points"), "-q"]
    assert main(drawn) == 0
    path = scene / "points" / "sample.gpkg"
    points = geopandas.read_file(path, layer="sample")
    with open(path.with_name("sample-strata.csv"), newline="") as file:
        strata = {int(row["id"]): row["class"] for row in csv.DictReader(file)}
    points["reference"] = [strata[i] for i in points["id"]]
    points.to_file(path, layer="sample", driver="GPKG")
    capsys.readouterr()
    areas = [str(scene / "map.tif"), "--sample", str(path), "--out", str(scene / "areas"), "-q"]
    assert main(areas) == 0
    out, _ = capsys.readouterr()
    assert "overall accuracy 1.000 ± 0.000" in out and "producer's accuracy" in out
    assert "kappa" not in out
    assert main([str(scene / "map.tif"), "--out", str(scene / "alone"), "-q"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("Mapped areas\nclass ") and "accuracy" not in out


def test_class_names_steer_neither_terminal_nor_spreadsheet(scene, capsys) -> None:
    legend = load_scheme("kaakonkulma-13").legend.to_json()
    legend["classes"][0]["name"] = "=HYPERLINK(1)$\\frac$\x1b[2J\r\u202e"
    with rasterio.open(scene / "map.tif", "r+") as file:
        file.update_tags(LULC_LEGEND=json.dumps(legend))
    assert main(arguments(scene)) == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out) and "=HYPERLINK(1)$\\frac$\\x1b[2J\\r\\u202e" in out
    for path in (scene / "report").glob("*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert any("HYPERLINK" in cell for cell in cells), path
        assert all(cell.isprintable() and cell[:1] not in "=+@" for cell in cells if cell)
    assert "\x1b" not in (scene / "report" / "report.md").read_text()
