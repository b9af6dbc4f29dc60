"""Quantization on windows of a mosaic: ranges, and the convolutions that stay finer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.engines import quantization
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


def test_the_range_of_the_first_convolution_is_that_of_the_standardised_input(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    found = quantise(NETWORK, arrays, samples, stride=4, least=0.0, finer=False)
    standardised = [
        (s - arrays["standardization/mean"]) / arrays["standardization/std"] for s in samples[::3]
    ]
    assert found.ranges["encoder_stage0_conv1"] == pytest.approx(np.abs(standardised).max(), rel=1e-5)
    assert set(found.ranges) == set(fold(NETWORK, arrays))


def test_only_the_first_convolution_stays_finer_where_no_other_may(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    found = quantise(NETWORK, arrays, samples, stride=4, least=0.0, finer=False)
    assert found.finer == ("encoder_stage0_conv1",)
    assert set(found.eight_bit) == set(found.ranges) - set(found.finer)


def test_a_target_out_of_reach_gives_the_best_that_was_found(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    first = quantise(NETWORK, arrays, samples, stride=4, least=0.0, finer=False)
    best = quantise(NETWORK, arrays, samples, stride=4, least=1.0, finer=True)
    assert len(best.finer) > 1
    assert best.agreement >= first.agreement


def test_windows_of_a_verdict_have_no_part_in_the_search(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    judge = quantization._Judge

    class Noted(judge):  # type: ignore[misc,valid-type]
        def __init__(self, network: NetworkConfig, given: Any, windows: Sequence[np.ndarray]) -> None:
            seen.append([i for i, s in enumerate(samples) if any(np.array_equal(s, w) for w in windows)])
            super().__init__(network, given, windows)

    monkeypatch.setattr(quantization, "_Judge", Noted)
    quantise(NETWORK, arrays, samples, stride=4, least=0.99, finer=True)
    *searched, judged = seen
    assert judged == [2, 5] and all(set(windows) <= {1, 4} for windows in searched)


def test_convolutions_that_cost_much_and_change_little_are_computed_in_8_bits_first(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = NETWORK.multiplications
    flips = {name: 0.01 * i for i, name in enumerate(costs)}
    monkeypatch.setattr(
        quantization._Judge, "agreement", lambda self, tried: 1 - sum(flips[n] for n in tried.eight_bit)
    )
    plain = Quantization(dict.fromkeys(costs, 1.0), (next(iter(costs)),), "f32", 0.0)
    order = quantization._order(NETWORK, arrays, samples, plain)
    assert sorted(order) == sorted(list(costs)[1:])
    worth = [flips[name] ** 2 / costs[name] for name in order]
    assert worth == sorted(worth)
    # Of what is found, as many as may be are in 8 bits: the next one would change too many pixels.
    found = quantization._search(NETWORK, arrays, samples, plain, 0.9)[0]
    changed = sum(flips[name] for name in found.eight_bit)
    following = next(name for name in order if name not in found.eight_bit)
    assert changed <= 0.1 < changed + flips[following]


def test_a_convolution_in_8_bits_is_near_that_in_float32(
    arrays: dict[str, np.ndarray], samples: list[np.ndarray]
) -> None:
    ranges = quantise(NETWORK, arrays, samples, stride=4, least=0.0, finer=False).ranges
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


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"format_version": 3}', '{"format_version": 9}'])
def test_a_damaged_document_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.json").write_text(content)
    assert read_quantization(tmp_path / "q.json", "key") is None
