"""What is found on windows of a mosaic: ranges, convolutions in two steps, and those that stay finer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lulc.engines import openvino_graph, quantization
from lulc.engines.convolutions import SECOND_STEP, Factor, fold
from lulc.engines.openvino_graph import build_graph
from lulc.engines.quantization import (
    Quantization,
    compile_graph,
    quantise,
    read_quantization,
    write_quantization,
)
from lulc.models.config import NetworkConfig

NETWORK = NetworkConfig(classes=3, channels=2, filters=(6, 8))
NAME = "encoder_stage1_conv2"


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
    found = quantise(NETWORK, arrays, samples, stride=4, target=1.0, least=0.0, finer=False)
    standardised = [
        (s - arrays["standardization/mean"]) / arrays["standardization/std"] for s in samples[::3]
    ]
    assert found.ranges["encoder_stage0_conv1"] == pytest.approx(np.abs(standardised).max(), rel=1e-5)
    assert set(found.ranges) == set(fold(NETWORK, arrays))


def test_only_the_first_convolution_stays_finer_where_no_other_may(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    found = quantise(NETWORK, arrays, samples, stride=4, target=1.0, least=0.0, finer=False)
    assert found.finer == ("encoder_stage0_conv1",)
    assert set(found.eight_bit) == set(found.ranges) - set(found.finer)


def test_a_target_out_of_reach_gives_the_best_that_was_found(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    first = quantise(NETWORK, arrays, samples, stride=4, target=1.0, least=0.0, finer=False)
    best = quantise(NETWORK, arrays, samples, stride=4, target=1.0, least=0.0, finer=True)
    assert len(best.finer) > 1
    assert best.agreement >= first.agreement


@pytest.fixture(scope="module")
def redundant() -> tuple[NetworkConfig, dict[str, np.ndarray]]:
    """A network whose decoder computes 64 channels that lie in a space of 10 dimensions, but for a little."""
    network = NetworkConfig(classes=3, channels=2, filters=(8, 8), decoder_filters=(64, 16))
    rng = np.random.default_rng(5)
    made = {}
    for name, shape in network.variable_shapes().items():
        spread = np.sqrt(2 / np.prod(shape[:3])) if len(shape) == 4 else 0.1
        made[name] = rng.normal(0 if len(shape) == 4 else 1, spread, shape).astype(np.float32)
    kernel = made["decoder_stage0_conv2/kernel"]
    few = np.linalg.qr(rng.normal(size=(64, 10)))[0]
    made["decoder_stage0_conv2/kernel"] = (kernel @ few @ few.T + 1e-3 * kernel).astype(np.float32)
    made["standardization/mean"], made["standardization/std"] = np.float32([100, 50]), np.float32([30, 10])
    return network, {n: np.abs(a) if n.endswith("variance") else a for n, a in made.items()}


@pytest.mark.parametrize("finer", [False, True])
def test_results_near_a_space_of_few_dimensions_are_computed_in_two_steps(
    redundant: tuple[NetworkConfig, dict[str, np.ndarray]], samples: list[np.ndarray], finer: bool
) -> None:
    found = quantise(*redundant, samples, stride=4, target=0.9, least=0.0, finer=finer)
    assert found.factors["decoder_stage0_conv2"].rank == 16
    assert "decoder_stage0_conv2" + SECOND_STEP in found.ranges
    assert found.agreement > 0.85


def test_agreement_is_given_for_speed_only_down_to_the_target(
    redundant: tuple[NetworkConfig, dict[str, np.ndarray]], samples: list[np.ndarray]
) -> None:
    plain = quantise(*redundant, samples, stride=4, target=1.0, least=0.0, finer=False)
    assert not plain.factors
    # Twice the pixels may change; samples of 32 x 32 differ from one another.
    found = quantise(*redundant, samples, stride=4, target=2 * plain.agreement - 1, least=0.0, finer=False)
    assert found.factors
    assert 1 - found.agreement < 4 * (1 - plain.agreement)


def test_a_network_that_fails_on_other_windows_gives_way_to_a_slower_one(
    redundant: tuple[NetworkConfig, dict[str, np.ndarray]], samples: list[np.ndarray]
) -> None:
    plain = quantise(*redundant, samples, stride=4, target=1.0, least=0.0, finer=False)
    fast = quantise(*redundant, samples, stride=4, target=0.5, least=0.0, finer=False)
    assert fast.agreement < plain.agreement
    slower = quantise(*redundant, samples, stride=4, target=0.5, least=plain.agreement, finer=False)
    assert slower.agreement >= plain.agreement


def test_kernels_for_winograd_can_be_left_out() -> None:
    network = NetworkConfig(
        classes=3, channels=2, filters=(8, 8, 8), decoder_filters=(openvino_graph.SQUARES_CHANNELS, 8, 8)
    )
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(1, 0.1, s).astype("f4") for n, s in network.variable_shapes().items()}
    kinds = [
        {n.get_type_name() for n in build_graph(network, arrays, (1, 8, 8), {}, winograd=way).get_ops()}
        for way in (True, False)
    ]
    assert "SpaceToDepth" in kinds[0] and "SpaceToDepth" not in kinds[1]


def test_a_convolution_in_8_bits_is_near_that_in_float32(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    ranges = quantise(NETWORK, arrays, samples, stride=4, target=1.0, least=0.0, finer=False).ranges
    x = samples[0][np.newaxis]
    exact = compile_graph(build_graph(NETWORK, arrays, (1, 32, 32)))(x)[0]
    for name, largest in ranges.items():
        rounded = compile_graph(build_graph(NETWORK, arrays, (1, 32, 32), {name: largest}))(x)[0]
        difference = np.abs(rounded - exact)
        assert 0 < difference.max() < 0.2 and difference.mean() < 0.02, name


def test_what_was_found_is_read_again_only_under_its_key(tmp_path: Path) -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0].astype("f2").astype("f4")
    factor = Factor(basis, np.arange(8, dtype="f4"))
    written = Quantization({"a": 1.5, "b": 0.25}, ("a",), "bf16", 0.99, {NAME: factor})
    write_quantization(tmp_path / "q.json", "key", written)
    read = read_quantization(tmp_path / "q.json", "key", NETWORK)
    assert read is not None
    assert replace(read, factors={}) == replace(written, factors={})
    np.testing.assert_array_equal(read.factors[NAME].basis, basis)
    np.testing.assert_array_equal(read.factors[NAME].mean, factor.mean)
    assert read_quantization(tmp_path / "q.json", "another", NETWORK) is None
    assert read_quantization(tmp_path / "absent.json", "key", NETWORK) is None


@pytest.mark.parametrize("basis", ["AAA", "AAAA", "no base 64", "", "A" * 4 * 1000])
def test_factors_that_have_no_shape_are_passed_over(tmp_path: Path, basis: str) -> None:
    path = tmp_path / "q.json"
    write_quantization(path, "key", Quantization({}, (), "f32", 1.0, {NAME: Factor(np.eye(8), np.ones(8))}))
    document = json.loads(path.read_text())
    document["factors"][NAME]["basis"] = basis
    document["sha256"] = quantization._checksum(document)
    path.write_text(json.dumps(document))
    assert read_quantization(path, "key", NETWORK) is None


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"format_version": 3}'])
def test_a_damaged_document_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.json").write_text(content)
    assert read_quantization(tmp_path / "q.json", "key", NETWORK) is None
