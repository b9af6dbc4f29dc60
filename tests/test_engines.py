"""Engines are plain functions, and averages over flips and rotations are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lulc import backend
from lulc.card import Channel, ModelCard
from lulc.engines import EngineRequest, build_engine, choose_engine, dihedral, footprint
from lulc.network import NetworkConfig
from lulc.schema import InputError, LandCoverClass, Legend
from lulc.statistics import Statistics
from lulc.unet import build_unet, geometry
from lulc.weights import save_model

NETWORK = NetworkConfig(classes=2, channels=3, filters=(4, 4))


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> EngineRequest:
    model = build_unet(NETWORK, (np.full(3, 100.0), np.full(3, 30.0)))
    window = geometry(model)
    card = ModelCard(
        name="small", channels=tuple(Channel(f"B0{i}") for i in (2, 3, 4)), network=NETWORK,
        legend=Legend("two", tuple(LandCoverClass(i, f"class {i}", "#101010") for i in (1, 2))),
        statistics=Statistics((100.0,) * 3, (30.0,) * 3), stride=window.stride, halo=window.halo,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "small.keras"
    return EngineRequest(path=path, card=save_model(model, card, path), shape=(2, 16, 24))


def test_the_keras_engine_is_the_network(request_of: EngineRequest) -> None:
    engine = build_engine("keras", request_of)
    x = np.random.default_rng(0).normal(100, 30, (2, 16, 24, 3)).astype("f4")
    x[0, :5] = np.nan
    y = engine(x)
    assert y.shape == (2, 16, 24, 2) and y.dtype == np.float32
    np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6)
    zeros = np.where(np.isnan(x), 100, x).astype("f4")
    np.testing.assert_allclose(y, engine(zeros), atol=1e-6)
    assert engine.identity["precision"] == "float32" and "keras" in engine.identity
    assert backend.name() in engine.identity


def test_auto_is_an_engine_and_other_names_are_refused() -> None:
    assert choose_engine("auto") != "auto"
    with pytest.raises(InputError, match="expected one of"):
        choose_engine("abacus")


def test_wider_networks_are_planned_with_more_memory() -> None:
    wide, narrow = (
        footprint("keras", NetworkConfig(filters=(n, n))) for n in (32, 8)
    )  # fmt: skip
    assert wide.per_pixel > narrow.per_pixel > 0


@pytest.mark.parametrize("shape", [(12, 12), (8, 12)])
def test_the_dihedral_mean_turns_with_its_input(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    ramp = rng.random((*shape, 1)).astype("f4")
    calls = []

    def network(x: np.ndarray) -> np.ndarray:
        calls.append(x.shape)
        weight = ramp if x.shape[1:3] == shape else np.swapaxes(ramp, 0, 1)
        return x[..., :2] * weight

    x = rng.random((1, *shape, 3)).astype("f4")
    average = dihedral(network)
    y = average(x)
    assert len(calls) == (8 if shape[0] == shape[1] else 4) and set(calls) == {x.shape}
    np.testing.assert_allclose(average(x[:, ::-1]), y[:, ::-1], rtol=1e-5)
    np.testing.assert_allclose(average(x[:, :, ::-1]), y[:, :, ::-1], rtol=1e-5)
    if shape[0] == shape[1]:
        turned = np.rot90(x, axes=(1, 2))
        np.testing.assert_allclose(average(turned), np.rot90(y, axes=(1, 2)), rtol=1e-5)
