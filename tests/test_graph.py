"""The network as an OpenVINO model: what is computed with fewer multiplications is the same."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from lulc.engines import openvino_graph
from lulc.engines.openvino_graph import build_graph, load_openvino
from lulc.engines.quantization import compile_graph
from lulc.engines.winograd import TRANSFORMS, Winograd
from lulc.models.config import NetworkConfig
from lulc.models.unet import geometry

WIDE = NetworkConfig(
    channels=3,
    classes=4,
    filters=(8, 8, 8, 8),
    decoder_filters=(
        openvino_graph.SQUARES_CHANNELS,
        openvino_graph.SQUARES_CHANNELS,
        openvino_graph.LINES_CHANNELS,
        8,
    ),
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


@pytest.mark.parametrize("shape", [(16, 16), (48, 80)])
def test_a_wide_convolution_gives_what_the_direct_one_gives(
    arrays: dict[str, np.ndarray], shape: tuple[int, int]
) -> None:
    x = np.random.default_rng(1).normal(size=(*shape, 3)).astype("f4")
    found, direct = run(arrays, x), run(arrays, x, winograd=False)
    assert (found != direct).any()
    np.testing.assert_allclose(found, direct, atol=5e-6)


def test_a_window_of_a_wide_network_gives_what_the_whole_image_gives(arrays: dict[str, np.ndarray]) -> None:
    halo = geometry(WIDE).halo
    assert halo == 64
    x = np.random.default_rng(2).normal(size=(224, 48, 3)).astype("f4")
    whole, window = run(arrays, x), run(arrays, x[80:])
    # What lies beyond the halo cancels out of a square, but for rounding.
    np.testing.assert_allclose(window[:, halo:], whole[:, 80 + halo :], atol=5e-6)
    np.testing.assert_array_equal(window[:, halo:].argmax(0), whole[:, 80 + halo :].argmax(0))
    # A stride further on no square holds any of it.
    np.testing.assert_array_equal(window[:, halo + 16 :], whole[:, 80 + halo + 16 :])


@pytest.mark.parametrize(
    ("network", "ways"),
    [
        # The original's, and half its width.
        (NetworkConfig(), {0: ("squares", 2), 1: ("squares", 4), 2: ("lines", 4)}),
        (NetworkConfig(filters=(16, 32, 64, 128)), {0: ("squares", 2), 1: ("lines", 4)}),
        # Squares at half resolution, and lines at full, would take more memory than the network without.
        (NetworkConfig(filters=(64, 128)), {}),
    ],
)
def test_convolutions_are_computed_in_squares_and_lines_where_that_saves_time(
    network: NetworkConfig, ways: dict[int, tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[int, tuple[str, int]] = {}
    for way in ("squares", "lines"):
        own = getattr(Winograd, way)

        def noted(self: Winograd, x: Any, kernel: np.ndarray, way: str = way, own: Any = own) -> Any:
            taken[stages[kernel.shape]] = (way, self.side)
            return own(self, x, kernel)

        monkeypatch.setattr(Winograd, way, noted)
    shapes = network.variable_shapes()
    stages = {
        (*reversed(shapes[f"decoder_stage{s}_conv2/kernel"][2:]), 3, 3): s
        for s in range(len(network.decoder_filters))
    }
    build_graph(network, {name: np.ones(shape, "f4") for name, shape in shapes.items()}, (1, 64, 64))
    assert taken == ways


def test_eight_bits_leave_wide_convolutions_direct(arrays: dict[str, np.ndarray]) -> None:
    kinds = [
        {node.get_type_name() for node in build_graph(WIDE, arrays, (1, 16, 16), eight_bit).get_ops()}
        for eight_bit in (None, {"final_conv": 1.0})
    ]
    assert "SpaceToDepth" in kinds[0] and "SpaceToDepth" not in kinds[1]


@pytest.mark.parametrize("way", ["squares", "lines"])
@pytest.mark.parametrize("side", TRANSFORMS)
def test_fewer_multiplications_give_a_convolution_as_opencv_computes_it(side: int, way: str) -> None:
    openvino = load_openvino()
    rng = np.random.default_rng(3)
    image, kernel = (rng.normal(size=size).astype("f4") for size in ((5, 12, 16), (7, 5, 3, 3)))
    kernel /= np.sqrt(kernel[0].size)
    given = openvino.opset13.parameter([1, *image.shape], np.float32)
    result = getattr(Winograd(openvino.opset13, side), way)(given, kernel)
    (found,) = compile_graph(openvino.Model([result.output(0)], [given], "one"))(image[np.newaxis])[0]
    zero = cv2.BORDER_CONSTANT
    planes = [
        [cv2.filter2D(p.astype("f8"), -1, k, borderType=zero) for p, k in zip(image, own, strict=True)]
        for own in kernel
    ]
    np.testing.assert_allclose(found, np.sum(planes, axis=1), atol=1e-4)
