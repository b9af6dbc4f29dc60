"""Quantization on windows of a mosaic: ranges, and agreement with float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lulc.engines.openvino_graph import build_graph, compile_graph
from lulc.engines.quantization import Quantization, quantise, read_quantization, write_quantization
from lulc.engines.unet_graph import fold
from lulc.models.config import NetworkConfig

pytestmark = pytest.mark.integration

NETWORK = NetworkConfig(classes=3, channels=2, filters=(6, 8))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in NETWORK.variable_shapes().items():
        spread = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.2
        made[name] = rng.normal(0 if len(shape) == 4 else 1, spread, shape).astype(np.float32)
    made["standardization/mean"], made["standardization/std"] = np.float32([100, 50]), np.float32([30, 10])
    made |= {name: np.abs(array) for name, array in made.items() if name.endswith("variance")}
    return made


@pytest.fixture(scope="module")
def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal((100, 50), (30, 10), (32, 32, 2)).astype(np.float32) for _ in range(6)]


def test_ranges_are_those_of_every_convolution_but_the_first(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    found = quantise(NETWORK, arrays, samples, stride=4)
    assert list(found.ranges) == list(fold(NETWORK, arrays))[1:]
    # The second convolution takes what the first gives, after its ReLU.
    first = fold(NETWORK, arrays)["encoder_stage0_conv1"]
    largest = 0.0
    for sample in samples[::2]:
        x = (sample - arrays["standardization/mean"]) / arrays["standardization/std"]
        x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))
        y = np.einsum("hwcij,ocij->hwo", patches, first.kernel) + first.bias
        largest = max(largest, float(y.max()))
    assert found.ranges["encoder_stage0_conv2"] == pytest.approx(largest, rel=1e-5)


def test_windows_of_the_verdict_have_no_part_in_the_ranges(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    brighter = [sample * (1 + i % 2) for i, sample in enumerate(samples)]
    found, usual = (quantise(NETWORK, arrays, given, stride=4) for given in (brighter, samples))
    assert found.ranges == usual.ranges and 0.5 < found.agreement <= 1


def test_a_convolution_in_8_bits_is_near_that_in_float32(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    ranges = quantise(NETWORK, arrays, samples, stride=4).ranges
    x = samples[0][np.newaxis]
    exact = compile_graph(build_graph(NETWORK, arrays, (1, 32, 32)))(x)[0]
    for name, largest in ranges.items():
        rounded = compile_graph(build_graph(NETWORK, arrays, (1, 32, 32), {name: largest}))(x)[0]
        difference = np.abs(rounded - exact)
        assert 0 < difference.max() < 0.2 and difference.mean() < 0.02, name


def test_what_was_found_is_read_again_only_under_its_key(tmp_path: Path) -> None:
    written = Quantization({"a": 1.5, "b": 0.25}, "bf16", 0.99)
    write_quantization(tmp_path / "q.json", "key", written)
    assert read_quantization(tmp_path / "q.json", "key") == written
    assert read_quantization(tmp_path / "q.json", "another") is None
    assert read_quantization(tmp_path / "absent.json", "key") is None


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"format_version": 3}', '{"format_version": 9}'])
def test_a_damaged_document_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.json").write_text(content)
    assert read_quantization(tmp_path / "q.json", "key") is None
