"""An ONNX file computes what the toolkit computes, in a runtime that knows nothing of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.cli.export_model import main
from lulc.core.schema import LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.models import backend, weights
from lulc.models.calibration import calibrate
from lulc.models.card import Channel, ModelCard, load_card
from lulc.models.config import NetworkConfig

pytestmark = pytest.mark.integration

SMALL = NetworkConfig(classes=4, channels=3, filters=(8, 12))

NETWORKS: dict[str, tuple[NetworkConfig, float | tuple[float, ...]]] = {
    "original's blocks": (SMALL, 1.0),
    "original's depth": (replace(SMALL, filters=(4, 6, 8, 10), decoder_filters=()), 0.7),
    "temperature": (SMALL, 1.8),
    "temperatures of classes": (SMALL, (0.6, 1.0, 1.7, 2.5)),
    "bottleneck": (replace(SMALL, bottleneck=2), 1.0),
    "upsampling": (replace(SMALL, block="upsample"), 1.3),
    "sums": (replace(SMALL, block="sum", decoder_filters=(10, 6)), 1.0),
    "without norm": (replace(SMALL, norm="none"), 1.0),
    "single class": (replace(SMALL, classes=1, activation="sigmoid"), 1.6),
    "uneven decoder": (replace(SMALL, decoder_filters=(10, 6), dropout=0.2), 1.0),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A function that writes a network with weights of all kinds, and gives file and Keras model."""
    from lulc.models.unet import build_unet

    def write(config: NetworkConfig = SMALL, temperature: float | tuple[float, ...] = 1.0) -> Any:
        backend.keras.utils.set_random_seed(3)
        rng = np.random.default_rng(3)
        statistics = Statistics((500.0, 40.0, 0.1)[: config.channels], (200.0, 9.0, 0.02)[: config.channels])
        model = build_unet(config, (np.array(statistics.mean), np.array(statistics.std)))
        for layer in model.layers:
            for variable in layer.weights if layer.name != "standardization" else ():
                if len(variable.shape) == 1:
                    variable.assign(rng.uniform(0.3, 1.2, variable.shape))
        numbers = range(1, max(2, config.classes) + 1)
        card = ModelCard(
            name="test", channels=tuple(Channel(f"B{i:02d}", "reflectance x 10000") for i in range(3)),
            legend=Legend("test", tuple(LandCoverClass(i, f"Pelto {i}, å", "#102030") for i in numbers)),
            statistics=statistics, network=config, stride=2 ** len(config.filters), halo=16,
            temperature=temperature, single_class="Pelto 2, å" if config.classes == 1 else None,
            attribution="Contains data of someone", training={"data": [{"pixel_size": 20.0}]},
        )  # fmt: skip
        path = tmp_path_factory.mktemp("weights") / "model.keras"
        weights.save_model(model, card, path)
        return path, model

    return write


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth fields with some no data, float32 (1, y, x, band)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (height // 8 + 1, width // 8 + 1, 3))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width] + rng.normal(0, 0.2, (height, width, 3))
    image = image * (200, 9, 0.02) + (500, 40, 0.1)
    image[rng.random((height, width)) < 0.05] = np.nan
    return image.astype(np.float32)[np.newaxis]


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path: Path, x: np.ndarray) -> np.ndarray:
    """Probabilities (n, y, x, class) of an ONNX file."""
    (found,) = session(path).run(None, {"input": np.moveaxis(x, -1, 1)})
    return np.moveaxis(found, 1, -1)


@pytest.mark.parametrize("name", NETWORKS)
def test_probabilities_are_those_of_keras_calibrated(
    save: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    path, model = save(*NETWORKS[name])
    out = tmp_path / "net.onnx"
    assert main([str(path), "--out", str(out)]) == 0
    x = np.concatenate([scene(48, 80), scene(48, 80, 1)])
    expected = calibrate(model.predict(x, verbose=0), NETWORKS[name][1])
    found = run(out, x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_any_height_and_width_give_what_invalid_pixels_beyond_the_edge_give(
    save: Callable[..., Any], tmp_path: Path
) -> None:
    path, _ = save()
    assert main([str(path), "--format", "onnx"]) == 0
    x = scene(45, 50)
    whole = np.full((1, 48, 52, 3), np.nan, np.float32)
    whole[:, :45, :50] = x
    out = path.with_suffix(".onnx")
    found = run(out, x)
    assert found.shape == (1, 45, 50, 4)
    np.testing.assert_allclose(found, run(out, whole)[:, :45, :50], atol=1e-6)


def test_another_runtime_gives_the_same(save: Callable[..., Any], tmp_path: Path) -> None:
    from lulc.engines.openvino_graph import compile_graph, load_openvino

    path, model = save(SMALL, 1.4)
    out = tmp_path / "net.onnx"
    assert main([str(path), "--out", str(out)]) == 0
    x = scene(32, 48)
    read = compile_graph(load_openvino().Core().read_model(str(out)))
    found = np.moveaxis(read(np.moveaxis(x, -1, 1))[0], 1, -1)
    np.testing.assert_allclose(found, calibrate(model.predict(x, verbose=0), 1.4), atol=1e-5)


def test_a_tile_makes_the_shape_that_deepness_loads(save: Callable[..., Any], tmp_path: Path) -> None:
    path, model = save()
    out = tmp_path / "net.onnx"
    assert main([str(path), "--out", str(out), "--tile", "64"]) == 0
    loaded = session(out)
    assert [i.shape for i in loaded.get_inputs()] == [[1, 3, 64, 64]]
    assert [o.shape for o in loaded.get_outputs()] == [[1, 4, 64, 64]]
    found = loaded.get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(value) for key, value in found.items()}
    assert metadata["model_type"] == "Segmentor"
    assert metadata["class_names"] == {str(i): f"Pelto {i + 1}, å" for i in range(4)}
    assert metadata["tile_size"] == metadata["tiles_size"] == 64
    assert metadata["tiles_overlap"] == 50  # 16 pixels of halo on both sides
    # Types that its documentation names, as it reads them: JSON, then converted.
    documented = {"model_type": str, "class_names": dict, "resolution": float, "tile_size": int,
                  "tiles_overlap": int, "seg_thresh": float, "seg_small_segment": int}  # fmt: skip
    assert {key: type(metadata[key]) for key in documented} == documented
    assert metadata["resolution"] == 2000 and metadata["seg_thresh"] == 0
    # What Deepness computes before it calls the network.
    x = np.nan_to_num(scene(64, 64), nan=123.0)
    mean, std = metadata["standardization_mean"], metadata["standardization_std"]
    given = ((np.float32(x / 255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    (probabilities,) = loaded.run(None, {"input": given})
    # Its two divisions round the input, which steep classes pass on.
    np.testing.assert_allclose(np.moveaxis(probabilities, 1, -1), model.predict(x, verbose=0), atol=1e-3)


def test_metadata_hold_the_card(save: Callable[..., Any], tmp_path: Path) -> None:
    import onnx

    path, _ = save(*NETWORKS["single class"])
    out = tmp_path / "net.onnx"
    assert main([str(path), "--out", str(out)]) == 0
    model = onnx.load(out)
    metadata = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert [c["name"] for c in metadata["channels"]] == ["B00", "B01", "B02"]
    # Deepness reads a single output as two classes.
    assert metadata["class_names"] == {"0": "not Pelto 2, å", "1": "Pelto 2, å"}
    assert metadata["seg_thresh"] == 0.5
    assert ModelCard.from_json(metadata["model_card"]) == load_card(path)
    assert model.doc_string == "Contains data of someone"
    assert model.opset_import[0].version == 17 and model.producer_name == "lulc"
    assert not any(t.external_data for t in model.graph.initializer)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--out", "net.onnx", "--format", "stac"], "its ending stands for onnx"),
        (["--out", "net.json", "--format", "onnx"], "its ending stands for stac"),
        (["--out", "net.onnx", "--date", "2018-07-01"], "with --date"),
        (["--tile", "64"], "with --tile"),
        (["--out", "net.onnx", "--tile", "62"], "a multiple of the network's stride 4"),
        (["--out", "net.onnx", "--tile", "-4"], "expected a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    save: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    path, _ = save()
    monkeypatch.chdir(tmp_path)
    assert main([str(path), *options]) == 1
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and not path.with_suffix(".onnx").exists()


def test_without_the_package_the_message_says_what_to_install(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = save()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([str(path), "--format", "onnx"]) == 1
    assert "pip install '.[onnx]'" in capsys.readouterr().err


def test_damaged_weights_are_refused(save: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = save()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main([str(path), "--format", "onnx"]) == 1
    assert "sha256" in capsys.readouterr().err
    assert not path.with_suffix(".onnx").exists()
