"""A map says which weights made it, and what speaks against them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin

from lulc.cli.make_classifications import main as make_classifications
from lulc.core.grid import GridSpec
from lulc.datasets.loading import load_manifest
from lulc.demo.landscape import simulate, write_scene
from lulc.inference.job import pixel_size_problem
from lulc.models.card import load_card, write_card
from lulc.models.weights import find_model, unfinished_run
from lulc.preprocessing.preprocess import PreprocessConfig, make_stacks
from lulc.training.data.dataset import _provenance_of

WriteBands = Callable[..., Path]


def tags_of(path: Path) -> dict[str, str]:
    with rasterio.open(path) as file:
        return dict(file.tags())


@pytest.fixture
def arguments(tmp_path: Path, tiny_model: Path, write_bands: WriteBands) -> list[str]:
    """Arguments of make_classifications.py for weights in a run folder of their own."""
    run = tmp_path / "run"
    run.mkdir()
    for path in (tiny_model, tiny_model.with_suffix(".json")):
        (run / path.name).write_bytes(path.read_bytes())
    mosaic = write_bands(tmp_path / "mosaic.tif", 96, 96)
    scaling = ["--scale", "0.0001", "--offset", "0"]
    return [str(run / tiny_model.name), str(mosaic), str(tmp_path / "map.tif"), *scaling]


@pytest.mark.parametrize("finished", [True, False])
def test_weights_of_an_unfinished_run_are_called_out(
    arguments: list[str], tmp_path: Path, finished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "run.json").write_text(json.dumps({"format_version": 1, "finished": finished}))
    assert make_classifications(arguments) == 0
    printed, remarks = capsys.readouterr(), tags_of(tmp_path / "map.tif").get("LULC_REMARKS", "")
    for text in (printed.out, printed.err, remarks):
        assert ("the training in 'run' is not finished" in text) is not finished


def test_weights_of_simulated_imagery_say_so_at_each_use(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(arguments[0])
    write_card(dataclasses.replace(load_card(model), simulated=True), model)
    assert make_classifications([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert "trained on simulated imagery" in printed.err
    assert any("trained on simulated imagery" in remark for remark in answer["remarks"])
    assert "trained on simulated imagery" in tags_of(tmp_path / "map.tif")["LULC_REMARKS"]
    assert answer["weights"][0].startswith(load_card(model).name)


def test_the_result_names_weights_epoch_and_what_is_known_of_their_accuracy(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(arguments[0])
    card = load_card(model)
    data = [{"folder": "stacks", "validation_stacks": ["val_0"]}]
    training = {"parameters": {"epochs": 6}, "epoch": 3, "data": data}
    write_card(dataclasses.replace(card, training=training, scores={"val_accuracy": 0.71}), model)
    assert make_classifications(arguments) == 0
    printed = capsys.readouterr().out
    assert f"weights: {card.name}, epoch 3 of 6 planned, sha256 {card.sha256[:12]}" in printed
    assert "overall accuracy was 0.71 on the validation stacks of the training (stacks/val_0)" in printed
    assert tags_of(tmp_path / "map.tif")["LULC_MODEL_EPOCH"] == "epoch 3 of 6 planned"
    write_card(dataclasses.replace(card, training={}, scores={}), model)
    assert make_classifications([*arguments, "--overwrite"]) == 0
    assert "accuracy: nothing is known of the accuracy of" in capsys.readouterr().out


def test_the_shipped_weights_know_whether_they_are_of_simulated_imagery() -> None:
    for name, simulated in (("kaakonkulma-sim", True), ("level1-sentinel2/last", False)):
        model = find_model(name)
        assert load_card(model).simulated is simulated
        assert unfinished_run(model) == ""


def test_stacks_of_the_simulated_scene_say_that_they_are(tmp_path: Path) -> None:
    scene = write_scene(simulate((128, 128), seed=1), tmp_path)
    given = {"labels": str(scene["labels"]), "scheme": "kaakonkulma-13", "validation": ("none",)}
    make_stacks(PreprocessConfig(bands=(str(scene["summer"]),), out=str(tmp_path / "stacks"), **given))
    assert _provenance_of(load_manifest(tmp_path / "stacks"), "0" * 64)["simulated"] is True
    with rasterio.open(scene["summer"], "r+") as file:
        file.update_tags(LULC_SIMULATED="")
    make_stacks(PreprocessConfig(bands=(str(scene["summer"]),), out=str(tmp_path / "real"), **given))
    assert "simulated" not in _provenance_of(load_manifest(tmp_path / "real"), "0" * 64)


@pytest.mark.parametrize(("crs", "place", "pixel", "trained", "side"), [
    (32635, (500000, 6700000), (10, 10), {}, ""),
    (32635, (500000, 6700000), (20, 20), {}, "20 m wide"),
    (32635, (500000, 6700000), (10, 20), {}, "20 m high"),
    (4326, (25, 60), (1.8e-4, 9e-5), {}, ""),
    (4326, (25, 60), (1.8e-4, 1.8e-4), {}, "20.1 m high"),
    (4326, (25, 60), (9e-5, 9e-5), {"pixel_size": 5.0, "pixel_height": 10.0}, ""),
    (3857, (2.7e6, 11068715), (10, 10), {}, "3.43 m wide"),
    (3857, (2.7e6, 11068715), (29.2, 29.2), {}, ""),
    (2263, (980000, 200000), (32.8, 32.8), {}, ""),
    (2263, (980000, 200000), (10, 10), {}, "3.05 m wide"),
    (32635, (500000, 6700000), (30, 30), {"pixel_size": 30.0}, ""),
    (32635, (500000, 6700000), (10, 10), {"pixel_size": 30.0}, "trained on pixels of 30 m"),
])  # fmt: skip
def test_pixels_are_compared_by_their_width_and_height_on_the_ground(
    tiny_model: Path, crs: int, place: tuple[float, float], pixel: tuple[float, float],
    trained: dict[str, float], side: str,
) -> None:  # fmt: skip
    card = load_card(tiny_model)
    card = dataclasses.replace(card, training={**card.training, "data": [trained]})
    grid = GridSpec(CRS.from_epsg(crs), from_origin(*place, *pixel), 100, 100)
    problem = pixel_size_problem(card, grid)
    assert side in problem and bool(problem) == bool(side)
