"""The network as an OpenVINO model: what is computed with fewer multiplications is the same."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.networks import graph
from lulc.networks.graph import build_graph
from lulc.networks.network import NetworkConfig
from lulc.networks.quantization import compile_graph

WIDE = NetworkConfig(channels=3, classes=4, filters=(8, 8), decoder_filters=(graph.WINOGRAD_CHANNELS, 8))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in WIDE.variable_shapes().items():
        spread = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.2
        made[name] = rng.normal(0 if len(shape) == 4 else 1, spread, shape).astype(np.float32)
    made["standardization/mean"], made["standardization/std"] = np.zeros(3, "f4"), np.ones(3, "f4")
    return made | {name: np.abs(array) for name, array in made.items() if name.endswith("variance")}


def run(arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Activations (class, y, x) of one window (y, x, band)."""
    model = compile_graph(build_graph(WIDE, arrays, (1, *x.shape[:2])))
    return np.asarray(model(x[np.newaxis])[0][0])


@pytest.mark.parametrize("shape", [(4, 4), (12, 20), (40, 28)])
def test_a_wide_convolution_gives_what_the_direct_one_gives(
    arrays: dict[str, np.ndarray], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(1).normal(size=(*shape, 3)).astype("f4")
    found = run(arrays, x)
    monkeypatch.setattr(graph, "WINOGRAD_CHANNELS", 10**9)
    direct = run(arrays, x)
    assert (found != direct).any()
    np.testing.assert_allclose(found, direct, atol=2e-6)


def test_a_window_of_a_wide_network_gives_what_the_whole_image_gives(arrays: dict[str, np.ndarray]) -> None:
    x = np.random.default_rng(2).normal(size=(96, 64, 3)).astype("f4")
    whole, window = run(arrays, x), run(arrays, x[20:])
    # The window begins at a multiple of the stride, 4; a halo of 24 covers what this network sees.
    np.testing.assert_allclose(window[:, 24:], whole[:, 44:], atol=1e-6)
    np.testing.assert_array_equal(window[:, 24:].argmax(0), whole[:, 44:].argmax(0))


def test_eight_bits_leave_wide_convolutions_direct(arrays: dict[str, np.ndarray]) -> None:
    kinds = [
        {node.get_type_name() for node in build_graph(WIDE, arrays, (1, 8, 8), eight_bit).get_ops()}
        for eight_bit in (None, {"final_conv": 1.0})
    ]
    assert "SpaceToDepth" in kinds[0] and "SpaceToDepth" not in kinds[1]
