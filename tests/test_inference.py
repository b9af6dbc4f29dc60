"""The map equals one pass over the whole image, and survives whatever stops the run."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from lulc.config import ClassifyConfig
from lulc.core.channels import set_of
from lulc.core.schema import BANDS, InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.core.windows import Plan
from lulc.engines.ensemble import Member, check_alike
from lulc.engines.registry import Engine, EngineRequest
from lulc.inference import classify as classify_module
from lulc.inference import job, memory_plan
from lulc.inference.classify import classify, forecast_classification
from lulc.inference.sliding_window import predict_parts
from lulc.maps.reader import open_map
from lulc.models import backend
from lulc.models.card import Channel, ModelCard
from lulc.models.config import NetworkConfig
from lulc.models.unet import build_unet, geometry
from lulc.models.weights import save_model

pytestmark = pytest.mark.integration

TRANSFORM = Affine(10, 0, 566000.5, 0, -10, 6785000.25)
LEGEND = Legend("test", tuple(LandCoverClass(i, f"class {i}", f"#0{i}20a0") for i in (1, 2, 3)))
NETWORK = NetworkConfig(classes=3, channels=9, filters=(4, 8))
STATISTICS = Statistics((1500.0,) * 9, (800.0,) * 9, 1)


def network_of(config: NetworkConfig, seed: int = 0) -> Any:
    """A network with batch statistics unlike those of a fresh one, so that nothing cancels."""
    backend.keras.utils.set_random_seed(seed)
    mean, std = (np.full(config.channels, value) for value in (1500.0, 800.0))
    network = build_unet(config, (mean, std))
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if layer.name.endswith(("_bn1", "_bn2", "final_conv")):
            weights = layer.get_weights()
            layer.set_weights([w + rng.uniform(0, 0.3, w.shape) * (w.ndim == 1) for w in weights])
    return network


def card_of(network: NetworkConfig = NETWORK, legend: Legend = LEGEND, **more: Any) -> ModelCard:
    return ModelCard(
        name="test", channels=tuple(Channel(name) for name in BANDS[: network.channels]), legend=legend,
        statistics=STATISTICS, network=network, stride=4, halo=geometry(network).halo, **more,
    )  # fmt: skip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with its card."""
    network = network_of(NETWORK)
    path = tmp_path_factory.mktemp("model") / "small.keras"
    save_model(network, card_of(), path)
    return path


@pytest.fixture
def fast(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose network is three lines of NumPy, for what does not depend on the network."""
    monkeypatch.setattr(job, "build_engine", fast_engine)
    return model


def fast_engine(name: str, request: EngineRequest) -> Engine:
    def network(x: np.ndarray) -> np.ndarray:
        powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
        return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)

    return Engine("keras", request.shape, {"precision": "float32"}, network)


def image_of(height: int, width: int, seed: int = 0, holes: str = "scattered") -> np.ndarray:
    """Digital numbers uint16 (band, y, x), 0 where there is none."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(200, 3500, (9, -(-height // 8), -(-width // 8)))
    image = np.kron(coarse, np.ones((8, 8), int))[:, :height, :width]
    image += rng.integers(0, 200, image.shape)
    if holes == "scattered":
        image[:, rng.random((height, width)) < 0.05] = 0
        image[4, rng.random((height, width)) < 0.05] = 0
    elif holes == "half":
        image[:, :, : width // 2] = 0
    elif holes == "block":
        image[:, height // 4 : height // 2, width // 4 : -1] = 0
    elif holes == "one pixel":
        keep = image[:, height - 1, width - 1].copy()
        image[:] = 0
        image[:, height - 1, width - 1] = keep
    return image.astype(np.uint16)


def write_mosaic(path: Path, image: np.ndarray) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", width=image.shape[2], height=image.shape[1], count=9, dtype="uint16",
        crs="EPSG:3067", transform=TRANSFORM, nodata=0, compress="zstd",
    ) as target:  # fmt: skip
        target.write(image)
        target.descriptions = BANDS
    return path


def configure(model: Path, mosaic: Path, out: Path, **more: Any) -> ClassifyConfig:
    options = {"scale": 1e-4, "offset": 0.0, "part": 256, **more}
    return ClassifyConfig(model=str(model), inputs=(str(mosaic),), out=str(out), **options)


def whole_pass(network: Any, image: np.ndarray, stride: int) -> np.ndarray:
    """The reference: one pass, padded right and below, standardised 0 at padding and invalid pixels."""
    height, width = image.shape[:2]
    padding = [(0, -height % stride), (0, -width % stride), (0, 0)]
    padded = np.pad(image, padding, constant_values=np.nan)
    return np.asarray(network(padded[None]))[0, :height, :width]


NETWORKS = {
    "original shape": NetworkConfig(classes=5, channels=4, filters=(4, 4, 8, 8)),
    "bottleneck": NetworkConfig(classes=3, channels=4, filters=(4, 8), bottleneck=2),
    "upsampling": NetworkConfig(classes=3, channels=4, filters=(4, 4, 8), block="upsample", norm="none"),
    "sums": NetworkConfig(classes=3, channels=4, filters=(4, 8, 8), block="sum"),
    "single class": NetworkConfig(classes=1, channels=4, filters=(4, 8), activation="sigmoid"),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_windows_give_what_one_pass_over_the_whole_image_gives(name: str) -> None:
    network = network_of(NETWORKS[name])
    function = backend.compile_predict(network)
    found = geometry(NETWORKS[name])
    for (height, width), holes in {(257, 190): "scattered", (181, 301): "half", (203, 199): "block"}.items():
        stored = np.moveaxis(image_of(height, width, holes=holes)[:4], 0, -1).astype("f4")
        image = np.where((stored == 0).any(-1, keepdims=True), np.nan, stored).astype("f4")
        expected = whole_pass(function, image, found.stride)
        padded = [-(-n // found.stride) * found.stride for n in (height, width)]
        for inner, part in ((32, 128), (64, 4096)):
            side = 2 * found.halo + inner
            window = (min(side, padded[0]), min(side + found.stride, padded[1]))
            plan = Plan(height, width, found.stride, found.halo, window, part)
            for p in predict_parts(lambda w, i=image: i[w.slices].copy(), function, plan, plan.parts()):
                if p.probabilities is None or p.valid is None:
                    continue
                reference = expected[p.window.write.slices][p.valid]
                assert np.abs(p.probabilities[p.valid] - reference).max() < 1e-5


@pytest.mark.parametrize("activations", ["float32", "uint16", "uint8", "none"])
@pytest.mark.parametrize(
    ("engine", "holes"), [("openvino", "scattered"), ("openvino", "one pixel"), ("keras", "scattered")]
)
def test_the_map_on_disk_is_the_whole_pass(
    tmp_path: Path, model: Path, activations: str, engine: str, holes: str
) -> None:
    stored = image_of(301, 270, holes=holes)
    mosaic = write_mosaic(tmp_path / "mosaic.tif", stored)
    options = {"activations": activations, "engine": engine, "window": 96}
    result = classify(configure(model, mosaic, tmp_path / "map.tif", **options))
    invalid = (stored == 0).any(0)
    image = np.where(invalid, np.nan, stored).astype("f4")
    network = network_of(NETWORK)
    expected = whole_pass(backend.compile_predict(network), np.moveaxis(image, 0, -1), 4)
    with rasterio.open(tmp_path / "map.tif") as source:
        values = source.read()
        assert source.transform == TRANSFORM and source.crs.to_epsg() == 3067
        assert (source.read_masks(1) == np.where(invalid, 0, 255)).all()
        assert (values[:, invalid] == source.nodata).all()
        scales = np.array(source.scales)[1:, None, None]
    top = np.sort(expected, axis=-1)
    clear = ~invalid & (top[..., -1] - top[..., -2] > 1e-5)
    assert (values[0][clear] == expected.argmax(-1)[clear] + 1).all()
    if activations != "none":
        difference = np.abs(values[1:] * scales - np.moveaxis(expected, -1, 0))[:, ~invalid]
        quantum = 0.0 if activations == "float32" else scales.max()
        assert difference.max() < quantum / 2 + 1e-5
    assert sum(result.counts.values()) == (~invalid).sum()
    with open_map(tmp_path / "map.tif") as opened:
        assert opened.legend == LEGEND
    table = ["map.tif.aux.xml"] if activations == "none" else []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.qml", "map.tif", *table, "mosaic.tif"]


def test_window_batch_and_parts_do_not_change_the_classes(tmp_path: Path, model: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(530, 300))
    maps = []
    for options in ({}, {"window": 96, "batch_size": 3}, {"part": 4096, "window": 128}):
        path = tmp_path / "map.tif"
        classify(configure(model, mosaic, path, overwrite=True, **options))
        with rasterio.open(path) as source:
            maps.append(source.read())
    for other in maps[1:]:
        np.testing.assert_allclose(other[1:], maps[0][1:], atol=1e-5)
        assert (other[0] != maps[0][0]).mean() < 1e-4


def test_equal_runs_give_equal_bytes_whatever_the_folder_and_the_hour(tmp_path: Path, fast: Path) -> None:
    contents = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        mosaic = write_mosaic(folder / "mosaic.tif", image_of(300, 280))
        os.utime(mosaic, (0, len(name)))
        classify(configure(fast, mosaic, folder / "map.tif", cog=True))
        contents.append((folder / "map.tif").read_bytes())
    assert contents[0] == contents[1]
    assert b"here" not in contents[0] and str(tmp_path).encode() not in contents[0]


def test_several_readers_and_many_processors_make_the_same_bytes(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(600, 580))
    few, many = tmp_path / "few.tif", tmp_path / "many.tif"
    classify(configure(fast, mosaic, few, window=64))
    monkeypatch.setattr(classify_module, "cores", lambda: 24)
    monkeypatch.setattr(job, "readers_of", lambda name: 3)
    classify(configure(fast, mosaic, many, window=64))
    assert many.read_bytes() == few.read_bytes()


def test_unclassified_pixels_are_those_below_the_confidence(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))
    result = classify(configure(fast, mosaic, tmp_path / "map.tif", min_confidence=0.6))
    with rasterio.open(tmp_path / "map.tif") as source:
        values = source.read()
    valid = values[0] >= 0
    np.testing.assert_array_equal((values[0] == 0)[valid], values[1:].max(0)[valid] < 0.6)
    assert result.counts[0] == (values[0] == 0).sum() > 0


def test_one_class_against_the_rest_gives_one_and_zero(tmp_path: Path) -> None:
    config = NetworkConfig(classes=1, channels=9, filters=(4,), activation="sigmoid")
    network = network_of(config)
    card = dataclasses.replace(card_of(), network=config, stride=2, halo=4, single_class="class 2")
    save_model(network, card, tmp_path / "one.keras")
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(120, 130))
    classify(configure(tmp_path / "one.keras", mosaic, tmp_path / "map.tif"))
    with rasterio.open(tmp_path / "map.tif") as source:
        values = source.read()
        assert source.descriptions == ("class", "class 2")
    valid = values[0] >= 0
    np.testing.assert_array_equal(values[0][valid], values[1][valid] >= 0.5)
    with pytest.raises(InputError, match="0 means the rest"):
        classify(configure(tmp_path / "one.keras", mosaic, tmp_path / "other.tif", min_confidence=0.7))


@pytest.mark.parametrize(
    "options", [{"blend": "gaussian"}, {"tta": True}, {"blend": "gaussian", "tta": True}], ids=str
)
def test_averaging_keeps_activations_that_sum_to_one(
    tmp_path: Path, model: Path, options: dict[str, Any]
) -> None:
    stored = image_of(271, 150)
    mosaic = write_mosaic(tmp_path / "mosaic.tif", stored)
    classify(configure(model, mosaic, tmp_path / "map.tif", window=96, **options))
    with rasterio.open(tmp_path / "map.tif") as source:
        values = source.read()
    invalid = (stored == 0).any(0)
    np.testing.assert_array_equal(values[0] == -1, invalid)
    np.testing.assert_allclose(values[1:][:, ~invalid].sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(values[0][~invalid], values[1:].argmax(0)[~invalid] + 1)


@pytest.mark.parametrize(("window", "averaged"), [((64, 64), 8), ((64, 96), 4)])
def test_tta_says_how_many_flips_and_rotations_it_averages(
    tmp_path: Path, fast: Path, caplog: pytest.LogCaptureFixture, window: tuple[int, int], averaged: int
) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(100, 120))
    classify(configure(fast, mosaic, tmp_path / "map.tif", tta=True, window=window))
    assert ("averages 4 instead of 8" in caplog.text) == (averaged == 4)
    with open_map(tmp_path / "map.tif") as made:
        assert json.loads(made.tags["LULC_PARAMETERS"])["tta_averaged"] == averaged


def test_sieved_map_and_polygons_lie_beside_the_raw_map(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 520))
    polygons = tmp_path / "map.gpkg"
    result = classify(configure(fast, mosaic, tmp_path / "map.tif", sieve=30, polygons=str(polygons)))
    assert result.further == (tmp_path / "map_sieved.tif", polygons)
    with rasterio.open(tmp_path / "map.tif") as raw, rasterio.open(tmp_path / "map_sieved.tif") as sieved:
        before, after = raw.read(1), sieved.read(1)
        assert sieved.count == 1 and sieved.nodata == 255
    np.testing.assert_array_equal(before == -1, after == 255)
    assert (before[before != -1] != after[before != -1]).any()
    assert polygons.exists()


def interrupt(after: int) -> Callable[[str, EngineRequest], Engine]:
    """An engine that fails after some calls, as a full memory would make it."""

    def build(name: str, request: EngineRequest) -> Engine:
        engine = fast_engine(name, request)
        calls = 0

        def network(x: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return engine(x)

        return dataclasses.replace(engine, function=network)

    return build


def interrupted(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> ClassifyConfig:
    """A configuration whose run was interrupted when some parts were finished."""
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(530, 600))
    config = configure(model, mosaic, tmp_path / "map.tif", window=128)
    before = threading.active_count()
    monkeypatch.setattr(job, "build_engine", interrupt(after=30))
    with pytest.raises(OSError, match="No space"):
        classify(config)
    assert threading.active_count() == before
    assert not (tmp_path / "map.tif").exists()
    assert list((tmp_path / "map.tif.parts").glob("*.part"))
    monkeypatch.setattr(job, "build_engine", fast_engine)
    return config


def test_other_parameters_are_refused_until_the_work_is_dropped(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = interrupted(tmp_path, fast, monkeypatch)
    other = dataclasses.replace(config, min_confidence=0.5)
    with pytest.raises(InputError, match="min_confidence"):
        classify(other)
    classify(dataclasses.replace(other, restart=True))
    assert not (tmp_path / "map.tif.parts").exists()


def test_another_mosaic_is_refused(tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = interrupted(tmp_path, fast, monkeypatch)
    write_mosaic(tmp_path / "mosaic.tif", image_of(530, 600, seed=7))
    with pytest.raises(InputError, match="inputs"):
        classify(config)


def test_damaged_parts_are_made_again(tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = interrupted(tmp_path, fast, monkeypatch)
    for path in (tmp_path / "map.tif.parts").glob("*.part"):
        path.write_bytes(path.read_bytes()[:-100])
    classify(config)
    content = (tmp_path / "map.tif").read_bytes()
    classify(dataclasses.replace(config, overwrite=True))
    assert (tmp_path / "map.tif").read_bytes() == content


def test_an_input_that_changes_in_mid_run_leaves_no_map(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))

    def build(name: str, request: EngineRequest) -> Engine:
        engine = fast_engine(name, request)

        def network(x: np.ndarray) -> np.ndarray:
            os.utime(mosaic, (1, 1))
            return engine(x)

        return dataclasses.replace(engine, function=network)

    monkeypatch.setattr(job, "build_engine", build)
    with pytest.raises(InputError, match="changed while it was read"):
        classify(configure(fast, mosaic, tmp_path / "map.tif"))
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 50}, "--window 48 or --window 52"),
        ({"window": 8}, "--window"),
        ({"part": 300}, "--part 256"),
        ({"batch_size": 0}, "batch-size"),
        ({"statistics": "none"}, "legacy"),
        ({"min_confidence": 2.0}, "min-confidence"),
        ({"out": "map.png"}, ".tif"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))
    before = {p.name for p in tmp_path.iterdir()}
    config = configure(fast, mosaic, tmp_path / "map.tif")
    with pytest.raises(InputError) as caught:
        classify(dataclasses.replace(config, **options))
    assert said in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_an_existing_map_is_replaced_only_on_request(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(100, 120))
    config = configure(fast, mosaic, tmp_path / "map.tif", polygons=str(tmp_path / "map.gpkg"))
    classify(config)
    os.utime(tmp_path / "map.tif", (0, 0))
    with pytest.raises(InputError, match="exists already") as caught:
        classify(config)
    assert "--overwrite" in caught.value.hint
    assert (tmp_path / "map.tif").stat().st_mtime == 0
    classify(dataclasses.replace(config, overwrite=True))
    assert (tmp_path / "map.tif").stat().st_mtime > 0


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["map.tif", "map_sieved.tif"])
def test_what_is_no_map_is_never_replaced(tmp_path: Path, fast: Path, name: str, overwrite: bool) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(100, 120))
    config = configure(fast, mosaic, tmp_path / "map.tif", sieve=4, overwrite=overwrite)
    for content in (mosaic.read_bytes(), b"precious", b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a map of this toolkit") as caught:
            classify(config)
        assert "last argument names the map" in caught.value.hint and "--overwrite" not in caught.value.hint
        assert (tmp_path / name).read_bytes() == content


def test_a_forgotten_name_of_the_map_costs_no_input(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(100, 120))
    forgotten = write_mosaic(tmp_path / "indices.tif", image_of(100, 120))
    content = forgotten.read_bytes()
    with pytest.raises(InputError, match="not a map of this toolkit"):
        classify(configure(fast, mosaic, forgotten, overwrite=True))
    assert forgotten.read_bytes() == content


def test_a_mosaic_is_never_overwritten(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(100, 120))
    with pytest.raises(InputError, match="an input"):
        classify(configure(fast, mosaic, mosaic, overwrite=True))


@pytest.mark.parametrize("option", ["mask", "like", "aoi", "statistics"])
def test_no_named_file_is_overwritten_even_where_it_is_a_map(tmp_path: Path, fast: Path, option: str) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(100, 120))
    config = configure(fast, mosaic, tmp_path / "map.tif")
    classify(config)
    named = {"overwrite": True, option: config.out}
    with pytest.raises(InputError, match="an input"):
        classify(dataclasses.replace(config, **named))
    area = tmp_path / "area.gpkg"
    area.write_bytes(b"precious")
    named = {option: str(area), "out": str(tmp_path / "new.tif"), "polygons": str(area), "overwrite": True}
    with pytest.raises(InputError, match="an input"):
        classify(dataclasses.replace(config, **named))
    with pytest.raises(InputError, match=r"expected a name in \.gpkg"):
        classify(dataclasses.replace(config, polygons=config.inputs[0], overwrite=True))


def test_a_mosaic_without_a_valid_pixel_is_refused(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", np.zeros((9, 300, 280), np.uint16))
    with pytest.raises(InputError, match="no pixel of the mosaic is valid"):
        classify(configure(fast, mosaic, tmp_path / "map.tif"))
    assert not (tmp_path / "map.tif").exists() and not (tmp_path / "map.tif.parts").exists()


def test_too_little_memory_or_disk_is_refused(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))
    with monkeypatch.context() as patch:
        patch.setattr(memory_plan, "free_memory", lambda: 1e8)
        with pytest.raises(InputError, match="GB of memory"):
            classify(configure(fast, mosaic, tmp_path / "map.tif"))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match="GB are free"):
            classify(configure(fast, mosaic, tmp_path / "map.tif"))
    assert not (tmp_path / "map.tif.parts").exists()


def test_sieving_adds_to_the_memory_of_the_engine_and_says_so(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))
    config = configure(fast, mosaic, tmp_path / "map.tif")
    plain, sieved = (forecast_classification(dataclasses.replace(config, sieve=n)).memory for n in (0, 30))
    assert sieved - plain >= 300 * 280
    monkeypatch.setattr(memory_plan, "free_memory", lambda: (plain + sieved) / 2)
    with pytest.raises(InputError, match="GB of memory") as caught:
        classify(dataclasses.replace(config, sieve=30))
    assert "--sieve" in caught.value.hint and "--window" not in caught.value.hint
    classify(config)


def test_a_strange_mosaic_is_called_out_and_refused_when_strict(
    tmp_path: Path, fast: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))
    strange = configure(fast, mosaic, tmp_path / "map.tif", scale=5e-6)
    with pytest.raises(InputError) as caught:
        classify(dataclasses.replace(strange, strict=True))
    assert "B02: mean" in caught.value.problem
    classify(strange)
    assert "B02: mean" in caplog.text and "--scale" in caplog.text


def test_activations_that_are_no_numbers_stop_the_run(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, request: EngineRequest) -> Engine:
        return dataclasses.replace(fast_engine(name, request), function=lambda x: x[..., :3] * np.nan)

    monkeypatch.setattr(job, "build_engine", build)
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(300, 280))
    with pytest.raises(InputError, match="not finite"):
        classify(configure(fast, mosaic, tmp_path / "map.tif"))
    assert not (tmp_path / "map.tif").exists()


def test_a_forecast_writes_nothing_and_counts_what_is_done(tmp_path: Path, fast: Path) -> None:
    mosaic = write_mosaic(tmp_path / "mosaic.tif", image_of(530, 600, holes="half"))
    config = configure(fast, mosaic, tmp_path / "map.tif", window=64, plan=True)
    before = {p.name for p in tmp_path.iterdir()}
    found = forecast_classification(config)
    assert {p.name for p in tmp_path.iterdir()} == before
    assert found.windows == sum(len(found.plan.windows(part)) for part in found.plan.parts())
    assert 0.3 < found.empty < 0.7
    assert found.seconds["all"] > 0
    classify(dataclasses.replace(config, plan=False))
    assert found.disk / 2 == pytest.approx((tmp_path / "map.tif").stat().st_size, rel=0.3)
    assert found.disk < found.disk_bound


def test_the_legacy_network_runs_with_statistics_of_three_kinds(tmp_path: Path, shared: Path) -> None:
    data = shared / "data" / "kaakonkulma-sim"
    window = rasterio.windows.Window(100, 100, 150, 130)
    for name in ("summer", "indices"):
        with rasterio.open(data / f"{name}.tif") as source:
            profile = source.profile | {
                "width": 150, "height": 130, "transform": source.window_transform(window), "tiled": False
            }  # fmt: skip
            with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as target:
                target.write(source.read(window=window))
                target.descriptions = source.descriptions
                for band in source.indexes:
                    target.update_tags(band, **source.tags(band))
    config = ClassifyConfig(
        model=str(shared / "legacy" / "keras2-model.h5"), out=str(tmp_path / "map.tif"),
        inputs=(str(tmp_path / "summer.tif"), str(tmp_path / "indices.tif")),
        overwrite=True, index_nodata=(0, 0, 255, 0, 0),
    )  # fmt: skip
    with pytest.raises(InputError, match="--statistics"):
        classify(config)
    for statistics in (str(shared / "legacy" / "train_mean_and_std.obj"), "mosaic", "none"):
        result = classify(dataclasses.replace(config, statistics=statistics))
        assert sum(result.counts.values()) > 0


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two further networks: one overconfident, one deeper, with another stride and halo."""
    folder = tmp_path_factory.mktemp("others")
    deeper = NetworkConfig(classes=3, channels=9, filters=(4, 4, 4))
    cards = [card_of(temperature=2.0), dataclasses.replace(
        card_of(), network=deeper, stride=8, halo=geometry(deeper).halo, temperature=(1.0, 1.5, 0.7)
    )]  # fmt: skip
    paths = [folder / "hot.keras", folder / "deep.keras"]
    for seed, (path, card) in enumerate(zip(paths, cards, strict=True), 1):
        save_model(network_of(card.network, seed), card, path)
    return paths


def test_the_map_of_an_ensemble_is_the_mean_of_the_calibrated_maps(
    tmp_path: Path, model: Path, others: list[Path]
) -> None:
    # Sides are multiples of both strides: what lies beyond the image depends on the stride.
    mosaic = write_mosaic(tmp_path / "bands.tif", image_of(88, 112))
    alone = []
    for i, path in enumerate([model, *others]):
        classify(configure(path, mosaic, tmp_path / f"{i}.tif"))
        with rasterio.open(tmp_path / f"{i}.tif") as source:
            alone.append(source.read())
    config = configure(model, mosaic, tmp_path / "mean.tif", ensemble=tuple(map(str, others)))
    classify(config)
    with rasterio.open(tmp_path / "mean.tif") as source:
        mean, tags = source.read(), source.tags()
    valid = mean[0] != -1
    np.testing.assert_allclose(mean[1:], np.mean(alone, axis=0)[1:], atol=2e-5)
    np.testing.assert_array_equal(mean[0][valid], mean[1:].argmax(0)[valid] + 1)
    names = [member["sha256"] for member in json.loads(tags["LULC_ENSEMBLE"])]
    assert len(set(names)) == 3 and tags["LULC_MODEL_SHA256"] == names[0]
    assert "LULC_ENSEMBLE" not in rasterio.open(tmp_path / "0.tif").tags()


def test_networks_of_other_classes_or_channels_are_not_averaged(tmp_path: Path, model: Path) -> None:
    renamed = Legend("test", tuple(dataclasses.replace(c, name=f"other {c.number}") for c in LEGEND.classes))
    save_model(network_of(NETWORK), card_of(legend=renamed), tmp_path / "renamed.keras")
    mosaic = write_mosaic(tmp_path / "bands.tif", image_of(40, 40))
    with pytest.raises(InputError, match=r"classes of the second are other 1, .* expected .* class 1"):
        classify(configure(model, mosaic, tmp_path / "map.tif", ensemble=(str(tmp_path / "renamed.keras"),)))


def test_networks_whose_channels_mean_other_things_are_not_averaged() -> None:
    plain = set_of(BANDS)

    def with_first(**changes: Any) -> ModelCard:
        first = dataclasses.replace(plain.channels[0], **changes)
        return card_of(channel_set=dataclasses.replace(plain, channels=(first, *plain.channels[1:])))

    def compared(card: ModelCard) -> None:
        check_alike([Member(Path("a.keras"), card_of()), Member(Path("b.keras"), card)])

    for alike in ({}, {"scale": 1e-4}, {"layers": ("blue",)}):
        compared(with_first(**alike))
    with pytest.raises(InputError, match=r"channels of the second are B02 \(K\), expected .* B02 \(refl"):
        compared(with_first(unit="K"))
    with pytest.raises(InputError, match=r"second are B02 \(reflectance x 10000: \(B03 \* 2\)\), expected"):
        compared(with_first(formula="B03*2"))
    with pytest.raises(InputError, match=r"channels that may be missing of the second are B02, .* none"):
        compared(with_first(may_be_missing=True))


def test_an_interrupted_ensemble_goes_on_with_the_same_networks_only(
    tmp_path: Path, model: Path, others: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaic = write_mosaic(tmp_path / "bands.tif", image_of(300, 520))
    config = configure(model, mosaic, tmp_path / "map.tif", ensemble=(str(others[0]),), part=256, window=64)
    monkeypatch.setattr(job, "build_engine", interrupt(after=50))
    with pytest.raises(OSError, match="No space"):
        classify(config)
    monkeypatch.setattr(job, "build_engine", fast_engine)
    with pytest.raises(InputError):
        classify(dataclasses.replace(config, ensemble=(str(others[1]),)))
    classify(config)
    classify(dataclasses.replace(config, out=str(tmp_path / "straight.tif")))
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "straight.tif").read_bytes()


@pytest.mark.parametrize("activations", ["float32", "uint8"])
def test_entropy_and_margin_follow_the_activations(tmp_path: Path, fast: Path, activations: str) -> None:
    mosaic = write_mosaic(tmp_path / "bands.tif", image_of(300, 260))
    out = tmp_path / "map.tif"
    classify(configure(fast, mosaic, out, activations=activations, extra=("margin", "entropy")))
    with rasterio.open(out) as source:
        assert source.descriptions == ("class", *LEGEND.names, "margin", "entropy")
        assert set(source.scales[1:]) == {1.0 if activations == "float32" else 1 / 254}
        stored, valid = (
            source.read(masked=True) * np.array(source.scales)[:, None, None],
            source.read_masks(1),
        )
    p, known = np.asarray(stored[1:4], float), valid > 0
    _, middle, high = np.sort(p, axis=0)
    near = 1e-5 if activations == "float32" else 0.02
    np.testing.assert_allclose(stored[4][known], (high - middle)[known], atol=near)
    expected = -(p * np.log(np.maximum(p, 1e-9))).sum(0) / np.log(3)
    np.testing.assert_allclose(stored[5][known], expected[known], atol=3 * near)
    with open_map(out) as found:
        assert found.has_activations and len(found.layers) == 4
        assert found.read_activations(found.grid.extent).shape[-1] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": ("energy",)}, "for --extra, expected"),
        ({"extra": ("margin",), "activations": "none"}, "--extra"),
    ],
)
def test_measures_that_there_are_not_are_refused(
    tmp_path: Path, fast: Path, changes: dict[str, Any], message: str
) -> None:
    mosaic = write_mosaic(tmp_path / "bands.tif", image_of(40, 40))
    with pytest.raises(InputError, match=message):
        classify(configure(fast, mosaic, tmp_path / "map.tif", **changes))
