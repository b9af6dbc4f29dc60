"""A model is weights and a card: written whole, loaded without running anything, found by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lulc.core.schema import CHANNELS, InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.models import weights
from lulc.models.backend import compile_predict, keras
from lulc.models.card import Channel, ModelCard
from lulc.models.unet import NetworkConfig, build_unet, geometry
from lulc.models.weights import (
    find_model,
    load_card,
    load_model,
    read_arrays,
    read_picks,
    record_picks,
    save_model,
    transfer,
)

pytestmark = pytest.mark.integration


def card_of(network: NetworkConfig, **changes: object) -> ModelCard:
    windows = geometry(network)
    fields = {
        "name": "test",
        "channels": tuple(Channel(n, "unit", "reflectance") for n in CHANNELS[: network.channels]),
        "legend": Legend("t", tuple(LandCoverClass(i, f"c{i}", "#10ff00") for i in range(1, 4))),
        "statistics": Statistics((900.5, 0.25), (200.25, 1e-3), 10**12),
        "network": network,
        "stride": windows.stride,
        "halo": windows.halo,
        "training": {"epochs": 3, "data": ["ü"]},
        "scores": {"val_loss": 0.5},
        "versions": {"lulc": "1"},
    }
    return ModelCard(**fields | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def network() -> NetworkConfig:
    return NetworkConfig(classes=3, channels=2, filters=(4, 6), dropout=0.25)


@pytest.fixture(scope="module")
def model(network: NetworkConfig) -> keras.Model:
    keras.utils.set_random_seed(1)
    statistics = card_of(network).statistics
    model = build_unet(network, (np.array(statistics.mean), np.array(statistics.std)))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for v in layer.weights if "_bn" in layer.name else ():
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    return model


@pytest.fixture
def saved(tmp_path: Path, model: keras.Model, network: NetworkConfig) -> Path:
    save_model(model, card_of(network), tmp_path / "01-0.53.keras")
    return tmp_path / "01-0.53.keras"


def picture() -> np.ndarray:
    x = np.random.default_rng(2).normal((900, 0.25), (200, 1e-3), (1, 16, 24, 2)).astype("float32")
    x[0, 3, 4] = np.nan
    return x


def test_a_model_predicts_the_same_after_saving_and_loading(saved: Path, model: keras.Model) -> None:
    loaded, card = load_model(saved)
    assert (compile_predict(loaded)(picture()) == compile_predict(model)(picture())).all()
    assert card == load_card(saved)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["01-0.53.json", "01-0.53.keras"]


def test_equal_models_are_equal_bytes(tmp_path: Path, model: keras.Model, network: NetworkConfig) -> None:
    cards = [save_model(model, card_of(network), tmp_path / f"{i}.keras") for i in range(2)]
    assert cards[0] == cards[1]
    assert (tmp_path / "0.keras").read_bytes() == (tmp_path / "1.keras").read_bytes()
    assert cards[0].bytes == (tmp_path / "0.keras").stat().st_size


def test_a_card_keeps_everything(network: NetworkConfig) -> None:
    full = card_of(
        network,
        temperature=(1.0, 1.5, 2.0),
        description="d",
        licence="l",
        attribution="a",
        not_for="n",
        sha256="0" * 64,
        bytes=5,
    )
    assert ModelCard.from_json(json.loads(json.dumps(full.to_json()))) == full


def test_a_single_class_has_one_output_whatever_the_legend() -> None:
    single = NetworkConfig(classes=1, channels=2, filters=(2,), activation="sigmoid")
    assert card_of(single, single_class="c2").single_class == "c2"
    with pytest.raises(InputError, match="not in its legend"):
        card_of(single, single_class="c9")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"channels": (Channel("B02"),)}, "names 1 channels"),
        ({"channels": (Channel("B02"), Channel("B02"))}, "twice"),
        ({"statistics": Statistics((1.0,), (1.0,))}, "statistics are of 1"),
        ({"statistics": Statistics((1.0, 2.0), (1.0, 0.0))}, "positive"),
        ({"legend": Legend("t", (LandCoverClass(1, "a", "#000000"),))}, "3 outputs, expected 1"),
        ({"halo": 3}, "multiple of its stride"),
        ({"temperature": (1.0, 2.0)}, "temperatures"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    network: NetworkConfig, changes: dict, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        card_of(network, **changes)


@pytest.mark.parametrize(
    "key, value",
    [
        ("format_version", 2),
        ("stride", 0),
        ("stride", "16"),
        ("halo", -4),
        ("temperature", 0),
        ("temperature", 0.01),
        ("sha256", "x"),
        ("network", {"classes": 3, "channels": 2, "filters": [10**9]}),
        ("channels", []),
        ("bytes", 0),
        ("statistics", {"mean": [1, 2], "std": [-1, 2]}),
        ("legend", {"name": "t", "classes": []}),
        ("extra", 1),
        ("name", "x" * 300),
    ],
)
def test_a_card_is_held_to_its_schema(saved: Path, key: str, value: object) -> None:
    path = saved.with_suffix(".json")
    data = json.loads(path.read_text()) | {key: value}
    # A seal would be broken by any change, and by that alone the card be refused.
    del data["seal"]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="model card") as caught:
        load_card(saved)
    assert "01-0.53.json" in str(caught.value)


def test_half_size_weights_keep_statistics_and_batch_norm_exact(
    tmp_path: Path, model: keras.Model, network: NetworkConfig
) -> None:
    save_model(model, card_of(network), tmp_path / "half.keras", half=True)
    arrays, exact = read_arrays(tmp_path / "half.keras"), weights.arrays_of(model)
    for name, array in arrays.items():
        assert array.dtype == "float32"
        if name.endswith("/kernel"):
            np.testing.assert_allclose(array, exact[name], rtol=1e-3)
        else:
            np.testing.assert_array_equal(array, exact[name])
    loaded, _ = load_model(tmp_path / "half.keras")
    found, expected = (compile_predict(m)(picture()) for m in (loaded, model))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_kernels_beyond_float16_are_not_halved(tmp_path: Path, network: NetworkConfig) -> None:
    statistics = card_of(network).statistics
    large = build_unet(network, (np.array(statistics.mean), np.array(statistics.std)))
    kernel = large.get_layer("encoder_stage0_conv1").weights[0]
    kernel.assign(np.full(kernel.shape, 1e5))
    with pytest.raises(InputError, match="float16"):
        save_model(large, card_of(network), tmp_path / "m.keras", half=True)
    assert not list(tmp_path.iterdir())


def test_keras_itself_opens_the_archive(saved: Path, model: keras.Model) -> None:
    opened = keras.saving.load_model(saved)
    assert (compile_predict(opened)(picture()) == compile_predict(model)(picture())).all()


def test_other_weights_than_the_cards_are_not_saved(
    tmp_path: Path, model: keras.Model, network: NetworkConfig
) -> None:
    with pytest.raises(InputError, match="shapes differ"):
        save_model(model, card_of(replace(network, filters=(4, 7))), tmp_path / "m.keras")
    with pytest.raises(InputError, match="std"):
        card = card_of(network, statistics=Statistics((900.5, 0.25), (1.0, 1e-3)))
        save_model(model, card, tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"\.keras"):
        save_model(model, card_of(network), tmp_path / "m.h5")
    assert not list(tmp_path.iterdir())


def test_weights_are_never_beside_a_former_card(
    saved: Path, model: keras.Model, network: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lulc.models.card.write_card", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, card_of(network, name="new"), saved)
    with pytest.raises(InputError, match="no file"):
        load_model(saved)


def test_weights_are_read_without_a_framework(saved: Path) -> None:
    code = (
        "import sys; from lulc.models import weights; weights.read_arrays(weights.find_model(sys.argv[1]));"
        "print([m for m in ('keras', 'tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"


def test_statistics_are_for_legacy_files_only(saved: Path) -> None:
    with pytest.raises(InputError, match="cannot use other statistics"):
        load_model(saved, statistics=Statistics((0.0, 0.0), (1.0, 1.0)))


def test_transfer_copies_what_fits_but_head_and_statistics(
    model: keras.Model, network: NetworkConfig
) -> None:
    arrays = weights.arrays_of(model)
    other = build_unet(replace(network, classes=5, dropout=0.0))
    before = weights.arrays_of(other)
    assert transfer(other, arrays) == []
    after = weights.arrays_of(other)
    for name in after:
        source = before if name.startswith(("final_conv", "standardization")) else arrays
        np.testing.assert_array_equal(after[name], source[name])
    deeper = build_unet(replace(network, filters=(4, 6, 8), decoder_filters=()))
    assert "encoder_stage2_conv1/kernel" in transfer(deeper, arrays)


def test_a_run_folder_points_out_its_models(saved: Path) -> None:
    folder = saved.parent
    record_picks(folder, {"lowest-val-loss": saved.name, "last": "02-0.70.keras"})
    assert read_picks(folder)["last"] == "02-0.70.keras"
    assert find_model(str(folder)) == saved
    for pick in ("last", "best-macro-f1"):
        with pytest.raises(InputError, match=r"01-0\.53\.keras"):
            find_model(str(folder), pick)


@pytest.mark.parametrize("pick", ["auto", "last", "best-macro-f1", "baseline"])
def test_a_network_beside_a_run_is_none_of_its_picks(tmp_path: Path, pick: str) -> None:
    for name in ("network.onnx", "epoch-1.keras", "epoch-2.keras", "baseline.npz"):
        (tmp_path / name).touch()
    record_picks(tmp_path, {"auto": "epoch-1.keras", "last": "epoch-2.keras"})
    expected = {"auto": "epoch-1.keras", "last": "epoch-2.keras", "baseline": "baseline.npz"}
    if pick in expected:
        assert find_model(str(tmp_path), pick).name == expected[pick]
        return
    with pytest.raises(InputError, match=r"epoch-2\.keras, network\.onnx"):
        find_model(str(tmp_path), pick)


def test_an_imported_network_stands_for_each_network_but_for_no_forest(tmp_path: Path) -> None:
    (tmp_path / "network.onnx").touch()
    for pick in ("auto", "last", "lowest-val-loss"):
        assert find_model(str(tmp_path), pick).name == "network.onnx"
    for pick in ("baseline", "few-labels"):
        with pytest.raises(InputError, match=r"holds the weights network\.onnx"):
            find_model(str(tmp_path), pick)


@pytest.mark.parametrize("name", ["../secret.keras", "/etc/passwd", "a/b.keras", "..keras", "x.h5"])
def test_picks_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    record_picks(tmp_path, {"last": name})
    with pytest.raises(InputError, match="picks/last"):
        find_model(str(tmp_path), "last")


def test_models_are_found_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "more" / "region"
    folder.mkdir(parents=True)
    (folder / "lowest-val-loss.keras").write_bytes(saved.read_bytes())
    monkeypatch.setenv("LULC_WEIGHTS", os.pathsep.join(("/nonexistent", str(tmp_path / "more"))))
    for name in ("region/lowest-val-loss", "region/lowest-val-loss.keras", "region"):
        assert find_model(name) == folder / "lowest-val-loss.keras"
    with pytest.raises(InputError, match="region/lowest-val-loss"):
        find_model("regoin")
    with pytest.raises(InputError, match="cannot find the model"):
        find_model(f"../{saved.stem}")


@pytest.mark.parametrize("name", ["keras2-model.h5", "keras2-weights.h5"])
def test_networks_of_the_original_system_give_their_results(shared: Path, name: str) -> None:
    with np.load(shared / "legacy" / "expected.npz") as expected:
        x, y = expected["x"].astype("float32"), expected["y"]
    model, card = load_model(shared / "legacy" / name)
    np.testing.assert_allclose(compile_predict(model)(x), y, atol=1e-4)
    assert card.network.filters == (8, 16, 32, 64) and (card.stride, card.halo) == (16, 64)
    assert len(card.legend) == 13
    assert [c.coding for c in card.channels[-2:]] == ["unknown", "unknown"]


def test_legacy_networks_take_statistics(shared: Path) -> None:
    with np.load(shared / "legacy" / "expected.npz") as expected:
        x, y = expected["x"].astype("float64"), expected["y"]
    rng = np.random.default_rng(0)
    statistics = Statistics(tuple(rng.uniform(100, 900, 14)), tuple(rng.uniform(10, 90, 14)))
    model, card = load_model(shared / "legacy" / "keras2-model.h5", statistics=statistics)
    raw = (x * statistics.std + statistics.mean).astype("float32")
    np.testing.assert_allclose(compile_predict(model)(raw), y, atol=1e-4)
    assert card.statistics == statistics
    with pytest.raises(InputError, match="statistics"):
        load_model(shared / "legacy" / "keras2-model.h5", statistics=Statistics((0.0,), (1.0,)))
