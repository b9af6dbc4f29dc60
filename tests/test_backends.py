"""The same network trains and predicts on TensorFlow, JAX and PyTorch, each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lulc.core.schema import LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.models.backend import BACKENDS, compile_predict
from lulc.models.card import Channel, ModelCard
from lulc.models.unet import NetworkConfig, build_unet, geometry
from lulc.models.weights import save_model

pytestmark = [pytest.mark.integration, pytest.mark.backends]

SCRIPT = Path(__file__).with_name("backend_run.py")

LOSSES = ("ce", "ce(weights=sqrt)", "logit-adjusted")

NETWORK = NetworkConfig(classes=3, channels=2, filters=(4, 6))
STATISTICS = Statistics((1000.0, 100.0), (300.0, 40.0))

Run = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, a picture, and what the backend of this process makes of it."""
    folder = tmp_path_factory.mktemp("backends")
    windows = geometry(NETWORK)
    legend = Legend("t", tuple(LandCoverClass(i, f"c{i}", "#000000") for i in (1, 2, 3)))
    card = ModelCard(
        name="t",
        channels=(Channel("B02"), Channel("NDVI")),
        legend=legend,
        statistics=STATISTICS,
        network=NETWORK,
        stride=windows.stride,
        halo=windows.halo,
    )
    model = build_unet(NETWORK, (np.array(STATISTICS.mean), np.array(STATISTICS.std)))
    save_model(model, card, folder / "model.keras")
    x = np.random.default_rng(1).normal(STATISTICS.mean, STATISTICS.std, (2, 24, 16, 2)).astype("float32")
    x[0, 3:7, 4:9] = np.nan
    np.savez(folder / "picture.npz", x=x, y=compile_predict(model)(x))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """What backend_run.py gives on a backend, once for all tests."""

    def run_on(backend: str) -> dict[str, np.ndarray]:
        if not importlib.util.find_spec(backend):
            pytest.skip(f"needs {backend}: make test-backends installs JAX and PyTorch")
        result = folder / f"{backend}.npz"
        if not result.exists():
            done = start([str(SCRIPT), str(folder), *LOSSES], backend)
            assert done.returncode == 0, done.stderr
        with np.load(result) as arrays:
            return dict(arrays)

    return run_on


def start(arguments: list[str], backend: str) -> subprocess.CompletedProcess[str]:
    environment = {"KERAS_BACKEND": backend, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_steps_lower_the_loss(backend: str, run: Run) -> None:
    for number, text in enumerate(LOSSES):
        losses = run(backend)[f"loss{number}"]
        assert np.isfinite(losses).all() and losses[-1] < losses[0], text


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_class_trains(backend: str, run: Run) -> None:
    losses = run(backend)["single"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_and_invalid_pixels_leave_the_weights_finite(backend: str, run: Run) -> None:
    assert run(backend)["finite"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_weights_predict_the_same(backend: str, run: Run, folder: Path) -> None:
    with np.load(folder / "picture.npz") as picture:
        expected = picture["y"]
    np.testing.assert_allclose(run(backend)["prediction"], expected, atol=1e-4)
    assert np.ptp(expected) > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_crops_cut_on_the_device_are_those_cut_on_the_host(backend: str, run: Run) -> None:
    there, here = run(backend)["there"], run(backend)["here"]
    assert np.isnan(here).any() and here.shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_keep_their_values_where_they_are_placed(backend: str, run: Run) -> None:
    assert run(backend)["placed"]


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    done = start(["-c", "import lulc.models.backend"], "theano")
    assert "cannot use the backend 'theano', expected one of tensorflow, jax, torch" in done.stderr


def test_starting_writes_nothing_to_standard_error() -> None:
    done = start(
        ["-c", "import lulc.models.unet as u; u.build_unet(u.NetworkConfig(filters=(2,)))"], "tensorflow"
    )
    assert (done.returncode, done.stderr) == (0, "")
