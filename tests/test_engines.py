"""Every engine is the same function: exactly in float32, within what it says in 8 bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.engines import registry
from lulc.engines.ensemble import Member, footprint_of
from lulc.engines.registry import EngineRequest, budget_of, build_engine, choose_engine, footprint, readers_of
from lulc.models import backend, weights
from lulc.models.card import Channel, ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.uncertainty import decide

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]

SMALL = NetworkConfig(classes=4, channels=3, filters=(8, 12))

NETWORKS = {
    "original's blocks": SMALL,
    "bottleneck": replace(SMALL, bottleneck=2),
    "upsampling": replace(SMALL, block="upsample"),
    "sums": replace(SMALL, block="sum", decoder_filters=(10, 6)),
    "without norm": replace(SMALL, norm="none"),
    "single class": replace(SMALL, classes=1, activation="sigmoid"),
    "uneven decoder": replace(SMALL, decoder_filters=(10, 6), dropout=0.2),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, ModelCard]]:
    """A function that writes a network with weights of all kinds, and gives file and card."""
    from lulc.models.unet import build_unet

    def write(config: NetworkConfig = SMALL) -> tuple[Path, ModelCard]:
        backend.keras.utils.set_random_seed(3)
        rng = np.random.default_rng(3)
        statistics = Statistics((500.0,) * config.channels, (200.0,) * config.channels)
        model = build_unet(config, (np.array(statistics.mean), np.array(statistics.std)))
        for layer in model.layers:
            for variable in layer.weights if layer.name != "standardization" else ():
                if len(variable.shape) == 1:
                    variable.assign(rng.uniform(0.3, 1.2, variable.shape))
        classes = tuple(LandCoverClass(i, f"class {i}", "#102030") for i in range(1, config.classes + 1))
        card = ModelCard(
            name="test", channels=tuple(Channel(f"B{i:02d}") for i in range(config.channels)),
            legend=Legend("test", classes), statistics=statistics, network=config,
            stride=2 ** len(config.filters), halo=16,
            single_class="class 1" if config.classes == 1 else None,
        )  # fmt: skip
        path = tmp_path_factory.mktemp("weights") / "model.keras"
        return path, weights.save_model(model, card, path)

    return write


def scene(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth fields with some no data, float32 (y, x, band)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(500, 250, (height // 8 + 1, width // 8 + 1, bands))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width] + rng.normal(0, 40, (height, width, bands))
    image[rng.random((height, width)) < 0.02] = np.nan
    return image.astype(np.float32)


def request_for(path: Path, card: ModelCard, shape: tuple[int, int, int], **options: Any) -> EngineRequest:
    samples = [scene(64, 64, card.network.channels, seed) for seed in range(6)]

    def give() -> Iterator[np.ndarray]:
        return iter(samples)

    return EngineRequest(path=path, card=card, shape=shape, **{"samples": give, **options})


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_gives_what_keras_gives(save: Callable[..., Any], name: str) -> None:
    path, card = save(NETWORKS[name])
    request = request_for(path, card, (1, 36, 52))
    x = scene(36, 52)[np.newaxis]
    expected = build_engine("keras", request)(x)
    found = build_engine("openvino", request)(x)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_openvino_gives_what_keras_gives_for_the_original_network(save: Callable[..., Any]) -> None:
    path, card = save(NetworkConfig(filters=(8, 16, 32, 64), decoder_filters=(64, 32, 16, 8)))
    request = request_for(path, card, (2, 48, 80))
    x = np.stack([scene(48, 80, 14, seed) for seed in (1, 2)])
    difference = build_engine("openvino", request)(x) - build_engine("keras", request)(x)
    assert np.abs(difference).max() < 1e-5


def test_no_data_is_the_mean_of_training(save: Callable[..., Any]) -> None:
    path, card = save()
    engine = build_engine("openvino", request_for(path, card, (1, 16, 16)))
    empty = np.full((1, 16, 16, 3), np.nan, np.float32)
    mean = np.full((1, 16, 16, 3), 500, np.float32)
    np.testing.assert_array_equal(engine(empty), engine(mean))


def test_a_window_of_one_stride_is_enough(save: Callable[..., Any]) -> None:
    path, card = save()
    request = request_for(path, card, (1, 4, 4))
    x = scene(4, 4)[np.newaxis]
    np.testing.assert_allclose(
        build_engine("openvino", request)(x), build_engine("keras", request)(x), atol=1e-5
    )


def test_results_stay_when_the_engine_is_called_again(save: Callable[..., Any]) -> None:
    path, card = save()
    engine = build_engine("openvino", request_for(path, card, (1, 16, 16)))
    first = engine(scene(16, 16, seed=1)[np.newaxis])
    kept = first.copy()
    engine(scene(16, 16, seed=2)[np.newaxis])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_8_bits_agree_as_often_as_they_say(save: Callable[..., Any], name: str) -> None:
    path, card = save(NETWORKS[name])
    request = request_for(path, card, (1, 128, 128), min_agreement=0.9)
    x = scene(128, 128, seed=50)[np.newaxis]
    engine = build_engine("openvino-int8", request)
    same = decide(engine(x)) == decide(build_engine("openvino", request)(x))
    assert same.mean() > 0.9
    assert same.mean() == pytest.approx(float(engine.identity["agreement"]), abs=0.03)


@pytest.mark.parametrize("block", ["transpose", "upsample", "sum"])
def test_quantised_networks_of_each_block_run(save: Callable[..., Any], block: str) -> None:
    path, card = save(replace(SMALL, block=block, bottleneck=1))
    engine = build_engine("openvino-int8", request_for(path, card, (1, 32, 32), min_agreement=0.5))
    np.testing.assert_allclose(engine(scene(32, 32)[np.newaxis]).sum(-1), 1, atol=1e-3)


@pytest.mark.parametrize("name", ["openvino-int8", "keras-float16"])
def test_too_little_agreement_stops_with_the_figure_and_the_way_out(
    save: Callable[..., Any], name: str
) -> None:
    path, card = save()
    with pytest.raises(InputError, match="agrees with float32") as error:
        build_engine(name, request_for(path, card, (1, 32, 32), min_agreement=1.0001))
    assert f"--engine {name.split('-')[0]}," in error.value.hint
    assert "--min-agreement" in error.value.hint


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, classes=1, activation="sigmoid")])
def test_float16_is_near_float32_and_not_equal_to_it(save: Callable[..., Any], config: NetworkConfig) -> None:
    path, card = save(config)
    request = request_for(path, card, (1, 64, 64))
    x = scene(64, 64, seed=51)[np.newaxis]
    half, exact = build_engine("keras-float16", request)(x), build_engine("keras", request)(x)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.02


def test_the_agreement_is_the_share_of_valid_pixels_with_the_class_of_float32(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, card = save()
    windows = [scene(61, 50, seed=seed) for seed in range(3)]
    windows[0][:20] = np.nan
    request = request_for(path, card, (1, 64, 64), samples=lambda: iter(windows))
    same = pixels = 0
    for x in windows:
        # Beyond the window is what a map has beyond its border: nothing.
        whole = np.pad(x, [(0, 64 - x.shape[0]), (0, 64 - x.shape[1]), (0, 0)], constant_values=np.nan)
        exact = build_engine("keras", request)(whole[np.newaxis])[0, : x.shape[0], : x.shape[1]]
        with backend.precision("bfloat16"):
            coarse = weights.load_model(path)[0].predict_on_batch(whole[np.newaxis])[
                0, : x.shape[0], : x.shape[1]
            ]
        valid = ~np.isnan(x[..., 0])
        same += (exact.argmax(-1) == coarse.argmax(-1))[valid].sum()
        pixels += valid.sum()
    assert same < pixels
    apart = 1 - same / pixels
    assert 1 - registry._agreement(request, "bfloat16") == pytest.approx(apart, rel=0.25)


def test_keras_computes_float32_as_such_where_a_gpu_would_round(save: Callable[..., Any]) -> None:
    import tensorflow

    tensorflow.config.experimental.enable_tensor_float_32_execution(True)
    path, card = save()
    build_engine("keras", request_for(path, card, (1, 32, 32)))
    assert not tensorflow.config.experimental.tensor_float_32_execution_enabled()


def test_a_gpu_changes_memory_and_windows_but_for_engines_that_do_not_use_it(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "has_gpu", lambda: False)
    cpu = {name: (budget_of(name), footprint(name, SMALL)) for name in ("keras", "openvino")}
    monkeypatch.setattr(registry, "has_gpu", lambda: True)
    gpu = {name: (budget_of(name), footprint(name, SMALL)) for name in ("keras", "openvino")}
    assert gpu["openvino"] == cpu["openvino"]
    assert gpu["keras"][0] > cpu["keras"][0]
    assert gpu["keras"][1].per_pixel < cpu["keras"][1].per_pixel
    assert gpu["keras"][1].fixed < 1e9 * gpu["keras"][0]
    assert (readers_of("keras"), readers_of("openvino")) == (2, 1)
    member = Member(*save())
    two = footprint_of("keras", [member, member])
    assert two.fixed == gpu["keras"][1].fixed and two.per_pixel == 2 * gpu["keras"][1].per_pixel


def test_a_gpu_that_the_framework_does_not_use_is_said(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "has_gpu", lambda: True)
    path, card = save()
    with pytest.raises(InputError, match="computes on the CPU") as error:
        build_engine("keras", request_for(path, card, (1, 32, 32)))
    assert "CUDA_VISIBLE_DEVICES=-1" in error.value.hint


def test_a_cached_quantisation_is_used_and_a_damaged_one_made_anew(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, card = save()
    request = request_for(path, card, (1, 32, 32), min_agreement=0.5)
    x = scene(32, 32)[np.newaxis]
    first = build_engine("openvino-int8", request)
    (cache,) = path.parent.glob("model.openvino-int8-*.json")
    made = []
    original = registry.quantization.quantise
    monkeypatch.setattr(
        registry.quantization, "quantise", lambda *a, **k: made.append(1) or original(*a, **k)
    )
    again = build_engine("openvino-int8", request)
    assert not made
    assert again.identity == first.identity
    np.testing.assert_array_equal(again(x), first(x))
    cache.write_text(cache.read_text().replace('"ranges": {', '"ranges": {"more": 1.0,'))
    build_engine("openvino-int8", request)
    assert made


def test_other_windows_are_another_calibration(save: Callable[..., Any]) -> None:
    path, card = save()
    for seed in (0, 1):
        samples = [scene(64, 64, seed=10 * seed + i) for i in range(6)]
        request = request_for(
            path, card, (1, 32, 32), min_agreement=0.5, samples=lambda samples=samples: iter(samples)
        )
        build_engine("openvino-int8", request)
    assert len(list(path.parent.glob("model.openvino-int8-*.json"))) == 2


def test_a_folder_that_cannot_be_written_is_no_error(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, card = save()

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(registry.quantization, "write_document", refuse)
    with caplog.at_level("WARNING", "lulc"):
        build_engine("openvino-int8", request_for(path, card, (1, 32, 32), min_agreement=0.5))
    assert "not stored" in caplog.text


def test_a_mosaic_of_one_small_window_can_be_quantised(save: Callable[..., Any]) -> None:
    path, card = save()
    sample = scene(21, 13)
    request = request_for(path, card, (1, 24, 16), min_agreement=0.5, samples=lambda: iter([sample]))
    x = np.full((1, 24, 16, 3), np.nan, np.float32)
    x[0, :21, :13] = sample
    assert np.isfinite(build_engine("openvino-int8", request)(x)).all()


def test_samples_without_a_valid_pixel_are_refused(save: Callable[..., Any]) -> None:
    path, card = save()
    empty = np.full((64, 64, 3), np.nan, np.float32)
    request = request_for(path, card, (1, 32, 32), samples=lambda: iter([empty]))
    with pytest.raises(InputError, match="no window looked at has a valid pixel"):
        build_engine("openvino-int8", request)


def test_once_cached_a_run_imports_no_deep_learning_framework(save: Callable[..., Any]) -> None:
    path, _ = save()
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from lulc.engines.registry import EngineRequest, build_engine
from lulc.models.weights import load_card
from pathlib import Path
path = Path({str(path)!r})
samples = [np.random.default_rng(i).normal(500, 200, (64, 64, 3)).astype("float32") for i in range(4)]
for name in ("openvino", "openvino-int8"):
    request = EngineRequest(
        path=path, card=load_card(path), shape=(1, 32, 32), samples=lambda: iter(samples), min_agreement=0.5
    )
    build_engine(name, request)(samples[0][None, :32, :32])
unwanted = {{"keras", "tensorflow", "torch", "jax", "openvino_telemetry"}}
assert not unwanted & {{m.split(".")[0] for m in sys.modules}}, unwanted & set(sys.modules)
"""
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr


def test_openvino_that_is_not_installed_says_what_to_install(
    save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, card = save()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="is not installed") as error:
        build_engine("openvino", request_for(path, card, (1, 16, 16)))
    assert "pip install" in error.value.hint and "--engine keras" in error.value.hint


def test_auto_is_exact_and_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("auto") in ("keras", "openvino")
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto") == "keras"
    with pytest.raises(InputError, match="expected one of"):
        choose_engine("tensorrt")


@pytest.mark.parametrize(
    ("files", "visible", "expected", "why"),
    [
        (["nvidia0"], None, "keras", "nvidia0"),
        (["nvidia3", "nvidiactl"], "3", "keras", "nvidia3"),
        (["nvidia0"], "", "openvino", "CUDA_VISIBLE_DEVICES"),
        (["nvidia0"], "-1", "openvino", "CUDA_VISIBLE_DEVICES"),
        (["nvidiactl"], None, "openvino", "no NVIDIA GPU"),
    ],
)
def test_auto_takes_any_gpu_that_is_not_hidden_and_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: list[str],
    visible: str | None,
    expected: str,
    why: str,
) -> None:
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with caplog.at_level("INFO", "lulc"):
        assert choose_engine("auto", tmp_path) == expected
    assert why in caplog.text


def test_legacy_weights_run_without_a_framework(shared: Path) -> None:
    path = shared / "legacy" / "keras2-weights.h5"
    expected = np.load(shared / "legacy" / "expected.npz")
    card = weights.load_legacy(path)[1]
    x = expected["x"].astype(np.float32)
    engine = build_engine("openvino", EngineRequest(path=path, card=card, shape=x.shape[:3]))
    np.testing.assert_allclose(engine(x), expected["y"], atol=1e-4)


@pytest.mark.parametrize(
    ("engine", "block", "width", "side", "measured"),
    [
        ("openvino", "transpose", 16, 1024, 0.72),
        ("openvino", "transpose", 32, 1024, 1.25),
        ("openvino", "transpose", 64, 512, 1.13),
        ("openvino", "transpose", 64, 1024, 2.45),
        ("openvino", "sum", 32, 1024, 0.77),
        # On a processor without AVX-512.
        ("openvino-int8", "sum", 32, 1024, 0.67),
        ("openvino-int8", "sum", 32, 2048, 2.08),
    ],
)
def test_memory_is_planned_as_it_was_measured_at_each_width(
    engine: str, block: str, width: int, side: int, measured: float
) -> None:
    found = footprint(engine, NetworkConfig(filters=tuple(width << s for s in range(4)), block=block))
    # One window of the original's channels and classes; GB of a process that runs it.
    per_pixel = found.per_pixel + 4 * (14 + 13)
    assert 0.95 * measured < (found.fixed + per_pixel * side**2) / 1e9 < 1.2 * measured
