"""The network as an OpenVINO model: what is computed with fewer multiplications is the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lulc.networks import graph
from lulc.networks.graph import build_graph, load_openvino
from lulc.networks.network import NetworkConfig
from lulc.networks.quantization import compile_graph
from lulc.networks.winograd import TRANSFORMS, Winograd

WIDE = NetworkConfig(
    channels=3,
    classes=4,
    filters=(8, 8, 8),
    decoder_filters=(graph.SQUARES_CHANNELS, graph.SQUARES_CHANNELS, graph.LINES_CHANNELS),
)
"""Squares of 2 x 2 and of 4 x 4 results, and lines."""


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in WIDE.variable_shapes().items():
        spread = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.2
        made[name] = rng.normal(0 if len(shape) == 4 else 1, spread, shape).astype(np.float32)
    made["standardization/mean"], made["standardization/std"] = np.zeros(3, "f4"), np.ones(3, "f4")
    return made | {name: np.abs(array) for name, array in made.items() if name.endswith("variance")}


def run(arrays: dict[str, np.ndarray], x: np.ndarray, *, winograd: bool = True) -> np.ndarray:
    """Activations (class, y, x) of one window (y, x, band)."""
    model = compile_graph(build_graph(WIDE, arrays, (1, *x.shape[:2]), winograd=winograd))
    return np.asarray(model(x[np.newaxis])[0][0])


@pytest.mark.parametrize("shape", [(8, 8), (24, 40), (80, 56)])
def test_a_wide_convolution_gives_what_the_direct_one_gives(
    arrays: dict[str, np.ndarray], shape: tuple[int, int]
) -> None:
    x = np.random.default_rng(1).normal(size=(*shape, 3)).astype("f4")
    found, direct = run(arrays, x), run(arrays, x, winograd=False)
    assert (found != direct).any()
    np.testing.assert_allclose(found, direct, atol=5e-6)


def test_a_window_of_a_wide_network_gives_what_the_whole_image_gives(arrays: dict[str, np.ndarray]) -> None:
    x = np.random.default_rng(2).normal(size=(168, 64, 3)).astype("f4")
    whole, window = run(arrays, x), run(arrays, x[40:])
    # The window begins at a multiple of the stride, 8; a halo of 48 covers what this network sees.
    np.testing.assert_array_equal(window[:, 48:], whole[:, 88:])


def test_eight_bits_leave_wide_convolutions_direct(arrays: dict[str, np.ndarray]) -> None:
    kinds = [
        {node.get_type_name() for node in build_graph(WIDE, arrays, (1, 8, 8), eight_bit).get_ops()}
        for eight_bit in (None, {"final_conv": 1.0})
    ]
    assert "SpaceToDepth" in kinds[0] and "SpaceToDepth" not in kinds[1]


@pytest.mark.parametrize("way", ["squares", "lines"])
@pytest.mark.parametrize("side", TRANSFORMS)
def test_fewer_multiplications_give_a_convolution_as_opencv_computes_it(side: int, way: str) -> None:
    openvino = load_openvino()
    rng = np.random.default_rng(3)
    image, kernel = rng.normal(size=(5, 12, 16)).astype("f4"), rng.normal(size=(7, 5, 3, 3)).astype("f4")
    given = openvino.opset13.parameter([1, *image.shape], np.float32)
    result = getattr(Winograd(openvino.opset13, side), way)(given, kernel)
    (found,) = compile_graph(openvino.Model([result.output(0)], [given], "one"))(image[np.newaxis])[0]
    zero = cv2.BORDER_CONSTANT
    planes = [
        [cv2.filter2D(p.astype("f8"), -1, k, borderType=zero) for p, k in zip(image, own, strict=True)]
        for own in kernel
    ]
    np.testing.assert_allclose(found, np.sum(planes, axis=1), atol=1e-4)
