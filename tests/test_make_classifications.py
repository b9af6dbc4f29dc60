"""The command: the original's call, what it prints, and how it fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from lulc.cli.make_classifications import _disk_advice, main
from lulc.core.schema import CHANNELS
from lulc.core.statistics import Statistics
from lulc.demo.landscape import simulate, write_scene
from lulc.labels.schemes import load_scheme
from lulc.models.card import Channel, ModelCard
from lulc.models.config import NetworkConfig

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]

MEAN = (865, 698, 455, 693, 1651, 2022, 1997, 1014, 477, 151, 133, 67, 132, 81)
STD = (155, 207, 243, 330, 825, 1053, 1085, 634, 362, 47, 16, 30, 26, 20)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A simulated scene, and a network with random weights as `model`."""
    from lulc.models.unet import build_unet, geometry
    from lulc.models.weights import save_model

    folder = tmp_path_factory.mktemp("scene")
    paths = write_scene(simulate((280, 200), seed=3), folder)
    statistics = Statistics(tuple(map(float, MEAN)), tuple(map(float, STD)), 1)
    network = NetworkConfig(filters=(4, 4))
    model = build_unet(network, (np.array(MEAN, float), np.array(STD, float)))
    window = geometry(network)
    card = ModelCard(
        name="random", channels=tuple(Channel(name, coding="read") for name in CHANNELS), network=network,
        legend=load_scheme("kaakonkulma-13").legend, statistics=statistics, stride=window.stride,
        halo=window.halo,
    )  # fmt: skip
    save_model(model, card, folder / "model.keras")
    return paths | {"model": folder / "model.keras"}


def run(scene: dict[str, Path], out: Path, *more: str, indices: bool = True) -> int:
    inputs = [str(scene["summer"]), *([str(scene["indices"])] if indices else [])]
    return main([str(scene["model"]), *inputs, str(out), "-q", "--part", "256", *more])


def test_the_original_call_gives_fourteen_bands(
    scene: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scene, tmp_path / "map.tif") == 0
    printed = capsys.readouterr().out
    assert f"The map is {tmp_path / 'map.tif'}" in printed
    assert "evaluate_classifications.py" in printed
    assert re.search(r"[\d.]+ Mpx/s", printed)
    shares = [float(v) for v in re.findall(r"(\d+\.\d\d) %", printed)]
    assert len(shares) == 13 and sum(shares) == pytest.approx(100, abs=0.1)
    with rasterio.open(tmp_path / "map.tif") as source, rasterio.open(scene["summer"]) as mosaic:
        assert (source.count, source.dtypes[0], source.nodata) == (14, "float32", -1)
        assert (source.transform, source.crs, source.shape) == (mosaic.transform, mosaic.crs, mosaic.shape)


def test_indices_may_be_left_out_and_more_is_valid_where_gaps_are_filled(
    scene: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scene, tmp_path / "a.tif", indices=False) == 0
    assert "NDVI, NDTI, NDBI, NDMI, NDSI: computed here, read where" in capsys.readouterr().err
    assert run(scene, tmp_path / "b.tif", "--fill", str(scene["spring"]), indices=False) == 0
    valid = []
    for name in ("a.tif", "b.tif"):
        with rasterio.open(tmp_path / name) as source:
            valid.append(int((source.read(1) >= 0).sum()))
    assert valid[1] > valid[0]


def test_bounds_leave_the_rest_without_data(scene: dict[str, Path], tmp_path: Path) -> None:
    with rasterio.open(scene["summer"]) as source:
        left, _, _, top = source.bounds
    bounds = [str(v) for v in (left + 100, top - 600, left + 700, top - 200)]
    assert run(scene, tmp_path / "map.tif", "--bounds", *bounds, "--fill", str(scene["spring"])) == 0
    with rasterio.open(tmp_path / "map.tif") as source:
        rows, cols = np.nonzero(source.read(1) >= 0)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (20, 59, 10, 69)


def test_the_plan_is_printed_and_nothing_is_written(
    scene: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scene, tmp_path / "map.tif", "--plan") == 0
    printed = capsys.readouterr().out
    for word in ("windows", "halo", "parts", "engine", "memory", "disk", "time"):
        assert word in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.keras", "{summer}", "map.tif"], "missing.keras"),
        (["{model}", "missing.tif", "map.tif"], "missing.tif"),
        (["{model}", "{labels}", "map.tif"], "labels.tif"),
        (["{model}", "{indices}", "map.tif"], "B02"),
        (["{model}", "{summer}", "{indices}"], "indices.tif"),
        (["{model}", "{summer}", "nowhere/map.png"], ".tif"),
    ],
)
def test_what_does_not_fit_is_one_message_and_exit_code_one(
    scene: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([a.format(**scene) for a in arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: cannot ")
    assert said in message and "\n\n" in message
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_grow_is_a_message_and_no_map(scene: dict[str, Path], tmp_path: Path) -> None:
    limited = (
        "import resource, sys\n"
        "from lulc.cli.make_classifications import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [str(scene["model"]), str(scene["summer"]), str(scene["indices"]), str(tmp_path / "map.tif")]
    found = subprocess.run(
        [sys.executable, "-c", limited, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, found.stderr
    assert "error: cannot write" in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "map.tif").exists()


def test_help_answers_without_a_framework() -> None:
    code = (
        "import sys\n"
        "from lulc.cli.make_classifications import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print(sorted({'keras', 'tensorflow', 'rasterio'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Example: python make_classifications.py" in found.stdout
    assert found.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("activations", "share", "seconds", "advised"),
    [("float32", 0.2, 100.0, True), ("uint8", 0.2, 100.0, False), ("float32", 0.9, 1e4, False),
     ("float32", 0.2, 10.0, False)],
)  # fmt: skip
def test_a_network_that_waits_for_the_disk_is_told_of(activations, share, seconds, advised) -> None:
    text = _disk_advice(activations, share, seconds)
    assert ("80% of that time" in text and "--activations uint8" in text) is advised
