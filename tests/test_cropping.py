"""The core of a window is what one pass over the whole image gives there, wherever it lies."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.core.windows import Plan
from lulc.engines import openvino_graph
from lulc.engines.convolutions import Factor, Factors, fold
from lulc.engines.cropping import MARGIN, computed, cores_of, level_of, work_by_margin
from lulc.engines.openvino_graph import build_graph
from lulc.engines.quantization import compile_graph
from lulc.inference.sliding_window import predict_parts
from lulc.models.config import NetworkConfig
from lulc.models.unet import geometry

SMALL = NetworkConfig(classes=4, channels=3, filters=(4, 6))

NETWORKS = {
    "original's shape": replace(SMALL, filters=(4, 4, 8, 8), decoder_filters=()),
    "one level": replace(SMALL, filters=(6,), decoder_filters=()),
    "three levels, wide": replace(
        SMALL, filters=(8, 8, 8), decoder_filters=(openvino_graph.SQUARES_CHANNELS, 192, 8)
    ),
    "four levels, wide": replace(
        SMALL,
        filters=(4, 4, 4, 4),
        decoder_filters=(4, openvino_graph.SQUARES_CHANNELS, openvino_graph.LINES_CHANNELS, 4),
    ),
    "five levels": replace(SMALL, filters=(4, 4, 4, 4, 6), decoder_filters=()),
    "bottleneck": replace(SMALL, bottleneck=2),
    "upsampling": replace(SMALL, filters=(4, 6, 8), decoder_filters=(), block="upsample", norm="none"),
    "single class": replace(SMALL, classes=1, activation="sigmoid"),
}

MULTIPLIES_BYTES = not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(
    Path("/proc/cpuinfo").read_text().split()
)
"""Whether this processor has instructions for 8 bits, whose sums are exact."""


def arrays_of(network: NetworkConfig) -> dict[str, np.ndarray]:
    """Weights of all kinds, so that nothing cancels."""
    rng = np.random.default_rng(7)
    arrays = {}
    for name, shape in network.variable_shapes().items():
        kernel = len(shape) == 4
        spread = np.sqrt(3 / np.prod(shape[:3])) if kernel else 0.2
        arrays[name] = rng.normal(0 if kernel else 0.7, spread, shape).astype("f4")
    arrays |= {name: np.abs(array) + np.float32(0.3) for name, array in arrays.items() if "variance" in name}
    return arrays | {"standardization/mean": np.zeros(3, "f4"), "standardization/std": np.ones(3, "f4")}


def factors_of(network: NetworkConfig, arrays: dict[str, np.ndarray]) -> Factors:
    """Half the dimensions for each convolution between the first and the last."""
    rng = np.random.default_rng(8)
    made = {}
    for name, convolution in list(fold(network, arrays).items())[1:-1]:
        channels = len(convolution.bias)
        basis = np.linalg.qr(rng.normal(size=(channels, channels // 2)))[0].astype("f4")
        made[name] = Factor(basis, rng.normal(size=channels).astype("f4"))
    return made


def ranges_of(
    network: NetworkConfig, arrays: dict[str, np.ndarray], x: np.ndarray, factors: Factors | None
) -> dict[str, float]:
    """Of all convolutions but the first, which stays finer."""
    found = compile_graph(build_graph(network, arrays, x.shape[:3], factors=factors, probe="inputs"))(x)
    names = list(fold(network, arrays, factors))
    return {name: float(found[i + 1].max()) for i, name in enumerate(names) if i}


def image_of(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    image = rng.normal(size=(height, width, 3)).astype("f4")
    image[rng.random((height, width)) < 0.05] = np.nan
    image[height // 3 : height // 2, width // 4 :] = np.nan
    return image


def run(model: Any, x: np.ndarray, first: np.ndarray | None = None) -> np.ndarray:
    found = compile_graph(model)((x,) if first is None else (x, first))
    return np.moveaxis(np.asarray(found[0]), 1, -1)


@pytest.mark.parametrize("how", ["float32", "8 bits", "8 bits in two steps"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_of_cores_is_one_pass_over_the_whole_image(name: str, how: str) -> None:
    network = NETWORKS[name]
    arrays = arrays_of(network)
    known = geometry(network)
    stride, halo = known.stride, known.halo
    assert halo is not None
    height, width = 4 * halo + 3 * stride + 5, 3 * halo + stride - 3
    image = image_of(height, width)
    padded = np.full((1, height + -height % stride, width + -width % stride, 3), np.nan, "f4")
    padded[0, :height, :width] = image
    factors = factors_of(network, arrays) if "two steps" in how else None
    ranges = None if how == "float32" else ranges_of(network, arrays, padded, factors)
    expected = run(build_graph(network, arrays, padded.shape[:3], ranges, factors=factors), padded)[0]
    margins = tuple(work_by_margin(network, halo).items())
    for window in ((2 * halo + 2 * stride, 2 * halo + stride), (2 * halo + stride, padded.shape[2])):
        plan = Plan(height, width, stride, halo, window, 4 * stride * (halo // stride), margins)
        model = build_graph(network, arrays, (2, *window), ranges, core=plan.core, factors=factors)
        function = compile_graph(model)

        def cores(x: np.ndarray, first: np.ndarray, plan: Plan = plan, call: Any = function) -> np.ndarray:
            y = np.moveaxis(np.asarray(call((x, first))[0]), 1, -1)
            return cores_of(y, plan.window, plan.core, first)

        read = lambda w: image[w.slices].copy()  # noqa: E731
        for p in predict_parts(read, cores, plan, plan.parts(), batch=2, threads=False):
            if p.probabilities is not None and p.valid is not None:
                wanted = expected[p.window.write.slices][p.valid]
                # Rounding in a square or line depends on all that it is made of.
                atol = 5e-6 if "wide" in name and how == "float32" else 2e-6
                if how != "float32" and not MULTIPLIES_BYTES:
                    # Sums differ in their last digits there, and one digit can tip a value to another level.
                    atol = 1e-2
                np.testing.assert_allclose(p.probabilities[p.valid], wanted, atol=atol)


@pytest.mark.parametrize("name", ["original's shape", "upsampling"])
def test_a_narrower_margin_would_be_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS[name]
    arrays = arrays_of(network)
    known = geometry(network)
    stride, halo = known.stride, known.halo
    assert halo is not None
    core = (3 * stride, 3 * stride)
    shape = (1, 2 * halo + core[0], 2 * halo + core[1])
    x = np.random.default_rng(0).normal(size=(*shape, 3)).astype("f4")
    whole = run(build_graph(network, arrays, shape), x)[0, halo:-halo, halo:-halo]
    first = np.array([[halo, halo]], np.int32)
    found = {}
    for margin in (MARGIN, MARGIN - 2):
        monkeypatch.setattr("lulc.engines.cropping.MARGIN", margin)
        y = run(build_graph(network, arrays, shape, core=core), x, first)
        found[margin] = np.abs(cores_of(y, shape[1:], core, first)[0] - whole).max()
    assert found[MARGIN] < 2e-6 < 1e-4 < found[MARGIN - 2]


def test_each_window_of_a_batch_has_its_core_where_it_is_said_to_be() -> None:
    network = NETWORKS["original's shape"]
    arrays, halo = arrays_of(network), 64
    shape, core = (1, 176, 192), (48, 64)
    x = image_of(*shape[1:])[np.newaxis]
    whole = run(build_graph(network, arrays, shape), x)[0]
    places = np.array(list(product((0, 16, halo, 128), (0, 48, halo, 128))), np.int32)
    many = np.repeat(x, len(places), axis=0)
    y = run(build_graph(network, arrays, many.shape[:3], core=core), many, places)
    assert y.shape[1:3] == computed(shape[1:], core)
    for found, (row, col) in zip(cores_of(y, shape[1:], core, places), places, strict=True):
        np.testing.assert_allclose(found, whole[row : row + core[0], col : col + core[1]], atol=2e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_work_is_that_of_all_convolutions(name: str) -> None:
    network = NETWORKS[name]
    costs = {name: c.cost for name, c in fold(network, arrays_of(network)).items()}
    work = work_by_margin(network, 64)
    assert sum(work.values()) == pytest.approx(sum(costs.values()))
    assert work[MARGIN] >= costs["final_conv"]


def test_the_narrowest_margin_is_that_of_full_resolution() -> None:
    network = NetworkConfig()
    work = work_by_margin(network, 64)
    assert sorted(work) == [4, 8, 16, 32, 64]
    assert level_of("decoder_stage3_up", network) == 1 and level_of("decoder_stage3_conv2", network) == 0
    # 14 % of the arithmetic is the encoder's.
    assert work[64] / sum(work.values()) == pytest.approx(0.14, abs=0.005)
