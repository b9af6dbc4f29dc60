"""The network as an OpenVINO model: its arithmetic by hand, and windows that equal the whole image."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.engines.openvino_graph import build_graph, compile_graph
from lulc.engines.unet_graph import fold
from lulc.models.config import NetworkConfig, geometry

pytestmark = pytest.mark.integration

NETWORK = NetworkConfig(channels=3, classes=4, filters=(8, 8, 8, 8))


def arrays_of(network: NetworkConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in network.variable_shapes().items():
        spread = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.2
        made[name] = rng.normal(0 if len(shape) == 4 else 1, spread, shape).astype(np.float32)
    made["standardization/mean"], made["standardization/std"] = np.zeros(3, "f4"), np.ones(3, "f4")
    return made | {name: np.abs(array) for name, array in made.items() if name.endswith("variance")}


def run(network: NetworkConfig, x: np.ndarray) -> np.ndarray:
    """Return the probabilities (class, y, x) of one window (y, x, band)."""
    model = compile_graph(build_graph(network, arrays_of(network), (1, *x.shape[:2])))
    return np.asarray(model(x[np.newaxis])[0][0])


@pytest.mark.parametrize("block", ["transpose", "upsample", "sum"])
def test_a_window_gives_what_the_whole_image_gives(block: str) -> None:
    network = NetworkConfig(channels=3, classes=4, filters=(8, 8, 8, 8), block=block)
    halo = geometry(network).halo
    x = np.random.default_rng(2).normal(size=(224, 48, 3)).astype("f4")
    whole, window = run(network, x), run(network, x[80:])
    np.testing.assert_allclose(window[:, halo:], whole[:, 80 + halo :], atol=1e-6)
    assert np.abs(window[:, : halo - 32] - whole[:, 80 : 80 + halo - 32]).max() > 1e-3


def test_folded_batch_norms_are_those_of_the_convolution_before_them() -> None:
    arrays = arrays_of(NETWORK)
    folded = fold(NETWORK, arrays)["decoder_stage1_up"]
    norm = {v: arrays[f"decoder_stage1_bn1/{v}"] for v in ("gamma", "beta", "moving_mean", "moving_variance")}
    scale = norm["gamma"] / np.sqrt(norm["moving_variance"] + 1e-3)
    # Channel 3 of the result, from channel 2 of the input.
    kernel = arrays["decoder_stage1_up/kernel"][:, :, 3, 2] * scale[3]
    np.testing.assert_allclose(folded.kernel[2, 3], kernel, rtol=1e-5)
    np.testing.assert_allclose(folded.bias, norm["beta"] - norm["moving_mean"] * scale, rtol=1e-4, atol=1e-6)
    assert folded.transposed and not fold(NETWORK, arrays)["decoder_stage1_conv2"].transposed


def test_the_cost_of_a_convolution_is_that_of_its_resolution() -> None:
    costs = NetworkConfig().multiplications
    # The original's first and last convolutions at full resolution, and one at an eighth of it.
    assert costs["encoder_stage0_conv1"] == 9 * 14 * 32 and costs["final_conv"] == 9 * 64 * 13
    assert costs["encoder_stage3_conv2"] == 9 * 256 * 256 / 64
    # A transposed convolution reads half the resolution that it writes.
    assert costs["decoder_stage3_up"] == 16 * 128 * 64 / 4
    assert sum(costs.values()) == pytest.approx(390e3, rel=0.01)
    # The 1 x 1 convolution of a sum comes before the repetition, the other after it.
    costs = NetworkConfig(block="sum").multiplications
    assert costs["decoder_stage3_conv1"] == 64 * 32 / 4 and costs["decoder_stage3_conv2"] == 9 * 32 * 32
    assert costs["final_conv"] == 32 * 13
