"""A map says how it was made, and is made again from that alone: the same, or with the places that differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.cli.export_map import main as export
from lulc.cli.make_classifications import main as make
from lulc.cli.reproduce_map import main
from lulc.config import ReproduceConfig
from lulc.core.schema import BANDS, InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.core.storage import sha256_of
from lulc.demo.landscape import simulate, write_product
from lulc.inference.reproduce import compare, read_provenance, reproduce
from lulc.inference.request import sieved_path
from lulc.models import backend
from lulc.models.card import Channel, ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.unet import build_unet, geometry
from lulc.models.weights import save_model

pytestmark = pytest.mark.integration

WriteMap = Callable[..., Path]

NETWORK = NetworkConfig(classes=3, channels=9, filters=(4, 8))


def write_model(path: Path, seed: int) -> Path:
    """A small network with random weights and its card."""
    backend.keras.utils.set_random_seed(seed)
    network = build_unet(NETWORK, (np.full(9, 1500.0), np.full(9, 800.0)))
    legend = Legend("test", tuple(LandCoverClass(i, f"class {i}", f"#0{i}20a0", (), i) for i in (1, 2, 3)))
    card = ModelCard(
        name="small", channels=tuple(Channel(name) for name in BANDS), legend=legend,
        statistics=Statistics((1500.0,) * 9, (800.0,) * 9, 1), network=NETWORK, stride=4,
        halo=geometry(NETWORK).halo,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(network, card, path)
    return path


def write_mosaic(path: Path, seed: int = 0, gap: bool = True) -> Path:
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(200, 3500, (9, 25, 19)), np.ones((8, 8), int)) + rng.integers(
        0, 200, (9, 200, 152)
    )
    if gap:
        image[:, 20:60, 30:80] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=152, height=200, count=9, dtype="uint16", crs="EPSG:3067",
        transform=Affine(10, 0, 566000, 0, -10, 6785000), nodata=0,
    ) as target:  # fmt: skip
        target.write(image.astype("uint16"))
        target.descriptions = BANDS
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs, weights and a map, each in a folder of its own; treat it as read-only."""
    folder = tmp_path_factory.mktemp("scene")
    model = write_model(folder / "run" / "small.keras", seed=1)
    write_model(folder / "run" / "other.keras", seed=2)
    inputs = folder / "inputs" / "deep"
    summer, spring = write_mosaic(inputs / "summer.tif"), write_mosaic(inputs / "spring.tif", 1, gap=False)
    (folder / "maps").mkdir()
    command = [model, summer, folder / "maps" / "map.tif", "--fill", spring, *OPTIONS]
    assert make(list(map(str, command))) == 0
    return folder


OPTIONS = [
    "--scale",
    "1e-4",
    "--offset",
    "0",
    "--part",
    "256",
    "--min-confidence",
    "0.35",
    "--sieve",
    "5",
    "-q",
]


def found(scene: Path) -> list[str]:
    return ["--inputs", str(scene / "inputs"), "--model", str(scene / "run"), "-q"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and data of a run."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_map_is_made_again_byte_for_byte(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    again = tmp_path / "again.tif"
    code, data = answer(capsys, scene / "maps" / "map.tif", *found(scene), "--out", again)
    assert code == 0
    assert data["comparison"]["same_file"]
    assert data["comparison"]["different"] == 0
    assert again.read_bytes() == (scene / "maps" / "map.tif").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.tif"]


def test_a_sieved_map_is_made_again_too(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data = answer(capsys, sieved_path(scene / "maps" / "map.tif"), *found(scene))
    assert code == 0
    assert data["comparison"]["same_file"]


def test_a_map_of_a_level_is_made_again_too(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "level.tif"
    assert export([str(scene / "maps" / "map.tif"), "--level", "1", "--out", str(path), "-q"]) == 0
    code, data = answer(capsys, path, *found(scene))
    assert code == 0
    assert data["comparison"]["same_file"]


def test_a_map_of_several_networks_with_measures_is_made_again(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "map.tif"
    inputs = [scene / "run" / "small.keras", scene / "inputs" / "deep" / "spring.tif", path]
    more = ["--ensemble", str(scene / "run" / "other.keras"), "--extra", "entropy", "margin"]
    assert make([*map(str, inputs), *more, *OPTIONS]) == 0
    code, data = answer(capsys, path, *found(scene))
    assert code == 0
    assert data["comparison"]["same_file"]
    assert [file["kind"] for file in data["files"]] == ["weights", "weights", "input"]


def test_a_map_of_a_product_folder_is_made_again(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    product = write_product(simulate((96, 96), seed=1), tmp_path / "products")
    path = tmp_path / "map.tif"
    assert make([str(scene / "run" / "small.keras"), str(product), str(path), "-q"]) == 0
    options = ["--inputs", tmp_path / "products", "--model", scene / "run"]
    code, data = answer(capsys, path, *options)
    assert code == 0
    assert data["comparison"]["same_file"]


def test_how_a_map_was_made_is_printed_without_its_inputs(
    scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scene / "maps" / "map.tif"
    assert main([str(path), "--check", "-q"]) == 1
    out = capsys.readouterr().out
    for text in ("small", "min_confidence 0.35", "summer.tif", "spring.tif", "numpy", "not found"):
        assert text in out
    assert main([str(path), "--check", *found(scene)]) == 0
    assert capsys.readouterr().out.count("the same") == 3


def test_tags_hold_nothing_of_the_machine(scene: Path) -> None:
    with rasterio.open(scene / "maps" / "map.tif") as source:
        text = json.dumps(source.tags())
    for part in (*scene.parts[1:], "inputs/deep"):
        assert f"/{part}" not in text, part


def test_weights_are_found_by_content_whatever_their_name(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("small.keras", "small.json"):
        shutil.copy(scene / "run" / name, tmp_path / name.replace("small", "renamed"))
    options = ["--inputs", scene / "inputs", "--model", tmp_path]
    code, data = answer(capsys, scene / "maps" / "map.tif", "--check", *options)
    assert code == 0
    assert data["files"][0]["path"] == str(tmp_path / "renamed.keras")


def test_other_weights_are_refused(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--inputs", str(scene / "inputs"), "--model", str(scene / "run" / "other.keras")]
    code, data = answer(capsys, scene / "maps" / "map.tif", *options)
    assert code == 1
    assert not data["files"][0]["same"]
    assert data["comparison"] is None


def test_files_of_the_right_name_and_other_content_are_shown_with_both_checksums(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = Path(shutil.copy(scene / "run" / "other.keras", tmp_path / "small.keras"))
    summer = write_mosaic(tmp_path / "summer.tif", seed=5)
    path = scene / "maps" / "map.tif"
    arguments = [str(path), "--check", "-q", "--inputs", str(tmp_path), "--model", str(tmp_path)]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    expected = {"weights": scene / "run" / "small.keras", "input": scene / "inputs" / "deep" / "summer.tif"}
    for kind, file in (("weights", weights), ("input", summer)):
        right = sha256_of(expected[kind])[:12]
        assert f"{file} is another (sha256 {sha256_of(file)[:12]}, expected {right})" in printed
    assert printed.count("not found") == 1


def test_a_changed_input_is_found_and_the_right_one_of_two_is_taken(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(scene / "inputs" / "deep", tmp_path / "a")
    write_mosaic(tmp_path / "a" / "summer.tif", seed=5)
    options = [str(scene / "maps" / "map.tif"), "--model", str(scene / "run"), "--inputs", str(tmp_path)]
    code, data = answer(capsys, *options)
    assert code == 1
    assert [f["same"] for f in data["files"]] == [True, False, True]
    shutil.copytree(scene / "inputs", tmp_path / "b")
    code, data = answer(capsys, *options)
    assert code == 0
    assert data["files"][1]["path"] == str(tmp_path / "b" / "deep" / "summer.tif")


def test_differences_are_counted_and_placed(
    scene: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = Path(shutil.copy(scene / "maps" / "map.tif", tmp_path / "map.tif"))
    with rasterio.open(path, "r+") as target:
        classes = target.read(1)
        classes[40:50, 70:90] = classes[40:50, 70:90] % 3 + 1
        target.write(classes, 1)
    difference = tmp_path / "difference.tif"
    code, data = answer(capsys, path, *found(scene), "--difference", difference)
    compared = data["comparison"]
    assert code == 3
    assert compared["different"] == 200
    assert compared["pixels"] == np.count_nonzero(classes >= 0)
    (cell,) = compared["cells"]
    assert cell["window"] == {"row": 40, "col": 70, "height": 10, "width": 20}
    with rasterio.open(difference) as source, rasterio.open(path) as original:
        assert source.transform == original.transform
        values = source.read(1)
        expected = np.zeros(classes.shape, np.uint8)
        expected[40:50, 70:90] = 1
        np.testing.assert_array_equal(values, np.where(classes == -1, 255, expected))
    assert main([str(path), *found(scene)]) == 3
    assert "rows 40..49, columns 70..89: 200 pixels" in capsys.readouterr().out


def test_comparison_agrees_with_numpy_on_random_maps(tmp_path: Path, write_map: WriteMap) -> None:
    paths = [write_map(tmp_path / f"{seed}.tif", shape=(1100, 1050), seed=seed) for seed in (1, 2)]
    one, other = (rasterio.open(p).read(1) for p in paths)
    compared = compare(*paths)
    assert compared.different == np.count_nonzero(one != other)
    assert compared.pixels == np.count_nonzero((one != -1) | (other != -1))
    assert sum(cell.count for cell in compared.cells) == compared.different
    assert [c.count for c in compared.cells] == sorted((c.count for c in compared.cells), reverse=True)
    assert not compared.same_file
    assert compare(paths[0], paths[0]).same_file


def test_maps_of_other_grids_are_not_compared(tmp_path: Path, write_map: WriteMap) -> None:
    one, other = write_map(tmp_path / "a.tif"), write_map(tmp_path / "b.tif", origin=(500_010.0, 6_700_000.0))
    with pytest.raises(InputError, match="cannot compare"):
        compare(one, other)


def hostile(scene: Path, tmp_path: Path, **changes: Any) -> Path:
    """The map with some tags replaced."""
    path = Path(shutil.copy(scene / "maps" / "map.tif", tmp_path / "map.tif"))
    with rasterio.open(path, "r+") as target:
        target.update_tags(**{k: v if isinstance(v, str) else json.dumps(v) for k, v in changes.items()})
    return path


@pytest.mark.parametrize(
    "tags",
    [
        {"LULC_INPUTS": [{"name": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}]},
        {"LULC_INPUTS": "[" * 100_000},
        {"LULC_MODEL_SHA256": "../weights"},
        {"LULC_PARAMETERS": {"inputs": []}},
        {"LULC_PARAMETERS": "rm -rf"},
        {"LULC_ENGINE": []},
    ],
)
def test_tags_that_say_nonsense_are_refused(
    scene: Path, tmp_path: Path, tags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(hostile(scene, tmp_path, **tags)), *found(scene)]) == 1
    assert "provenance in the tags" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", [0, -1]), ("window", [[1], 2]), ("batch_size", True), ("scale", "1"), ("bounds", [1, 2]),
        ("blend", "none; rm"), ("extra", ["margin", "margin"]), ("mask_values", [{"a": 1}]), ("tta", 1),
        ("min_confidence", 7), ("nodata", {}), ("part", 1.5),
    ],
)  # fmt: skip
def test_options_in_tags_that_are_none_are_refused(
    scene: Path, tmp_path: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with rasterio.open(scene / "maps" / "map.tif") as source:
        parameters = json.loads(source.tags()["LULC_PARAMETERS"])
    path = hostile(scene, tmp_path, LULC_PARAMETERS={**parameters, name: value})
    assert main([str(path), *found(scene)]) == 1
    assert f"--{name.replace('_', '-')}" in capsys.readouterr().err


def test_tags_cannot_steer_the_terminal(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = {"LULC_MODEL": "m[2J\nfake line", "LULC_ENGINE": {"name": "e\x9b1m", "\x1bkey": "\u202e"}}
    assert main([str(hostile(scene, tmp_path, **forged)), *found(scene), "--check"]) == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "m[2J\\nfake line" in out and "e\\x9b1m" in out


def test_tags_cannot_name_files_outside_the_folders_of_the_user(scene: Path, tmp_path: Path) -> None:
    with rasterio.open(scene / "maps" / "map.tif") as source:
        parameters = json.loads(source.tags()["LULC_PARAMETERS"])
    secret = write_mosaic(tmp_path / "secret.tif")
    for name in (str(secret), "../secret.tif", "secret.tif"):
        path = hostile(
            scene, tmp_path, LULC_PARAMETERS={**parameters, "inputs": [name], "allow_remote": True}
        )
        config = ReproduceConfig(
            map=str(path), inputs=(str(scene / "inputs"),), model=str(scene / "run" / "small.keras")
        )
        with pytest.raises(InputError):
            reproduce(config)


def test_a_map_without_provenance_is_refused(
    tmp_path: Path, write_map: WriteMap, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_map(tmp_path / "map.tif"))]) == 1
    assert "is a required property" in capsys.readouterr().err


def test_an_output_that_exists_is_refused_before_any_work(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken.tif"
    taken.write_bytes(b"precious")
    for option in ("--out", "--difference"):
        assert main([str(scene / "maps" / "map.tif"), *found(scene), option, str(taken)]) == 1
        assert "exists already" in capsys.readouterr().err
    assert taken.read_bytes() == b"precious"


def test_the_windows_of_a_map_are_known_from_its_tags(scene: Path) -> None:
    from lulc.maps.reader import open_map

    with open_map(scene / "maps" / "map.tif") as land_cover:
        made = read_provenance(land_cover)
    assert made["parameters"]["window"] == [200, 152]
    assert made["parameters"]["part"] == 256
    assert made["parameters"]["inputs"] == ["summer.tif"]
