"""What is found on windows of a mosaic: ranges, and the convolutions that stay finer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lulc.networks.graph import build_graph, fold
from lulc.networks.network import NetworkConfig
from lulc.networks.quantization import (
    Quantization,
    compile_graph,
    quantise,
    read_quantization,
    write_quantization,
)

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


def test_the_range_of_the_first_convolution_is_that_of_the_standardised_input(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    found = quantise(NETWORK, arrays, samples, stride=4, target=None)
    standardised = [
        (s - arrays["standardization/mean"]) / arrays["standardization/std"] for s in samples[::3]
    ]
    assert found.ranges["encoder_stage0_conv1"] == pytest.approx(np.abs(standardised).max(), rel=1e-5)
    assert set(found.ranges) == set(fold(NETWORK, arrays))


def test_only_the_first_convolution_stays_finer_without_a_target(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    found = quantise(NETWORK, arrays, samples, stride=4, target=None)
    assert found.finer == ("encoder_stage0_conv1",)
    assert set(found.eight_bit) == set(found.ranges) - set(found.finer)


def test_a_target_out_of_reach_gives_the_best_that_was_found(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    first = quantise(NETWORK, arrays, samples, stride=4, target=None)
    best = quantise(NETWORK, arrays, samples, stride=4, target=1.0)
    assert len(best.finer) > 1
    assert best.agreement >= first.agreement


def test_a_convolution_in_8_bits_is_near_that_in_float32(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    ranges = quantise(NETWORK, arrays, samples, stride=4, target=None).ranges
    x = samples[0][np.newaxis]
    exact = compile_graph(build_graph(NETWORK, arrays, (1, 32, 32)))(x)[0]
    for name, largest in ranges.items():
        rounded = compile_graph(build_graph(NETWORK, arrays, (1, 32, 32), {name: largest}))(x)[0]
        difference = np.abs(rounded - exact)
        assert 0 < difference.max() < 0.2 and difference.mean() < 0.02, name


def test_what_was_found_is_read_again_only_under_its_key(tmp_path: Path) -> None:
    written = Quantization({"a": 1.5, "b": 0.25}, ("a",), "bf16", 0.99)
    write_quantization(tmp_path / "q.json", "key", written)
    assert read_quantization(tmp_path / "q.json", "key") == written
    assert read_quantization(tmp_path / "q.json", "another") is None
    assert read_quantization(tmp_path / "absent.json", "key") is None


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"format_version": 2}'])
def test_a_damaged_document_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.json").write_text(content)
    assert read_quantization(tmp_path / "q.json", "key") is None
