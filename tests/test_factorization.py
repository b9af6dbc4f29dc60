"""Convolutions in two steps: what they compute, what they cost, and which are chosen."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.signal import correlate

from lulc.engines.convolutions import Convolution, Factor, cost_of_second, fold, in_two_steps
from lulc.engines.low_rank import Space, Way, candidates, cost_of, ladder_of, noise_of, ranks_of, ways_of
from lulc.engines.openvino_graph import build_graph
from lulc.engines.quantization import compile_graph
from lulc.models.config import NetworkConfig

RNG = np.random.default_rng(3)


def convolve(x: np.ndarray, convolution: Convolution) -> np.ndarray:
    """(in, y, x) to (out, y, x) by SciPy; a transposed one spreads its input and turns its kernel first."""
    kernel = convolution.kernel.astype(float)
    if convolution.transposed:
        spread = np.zeros((len(x), 2 * x.shape[1] - 1, 2 * x.shape[2] - 1))
        spread[:, ::2, ::2] = x
        x, kernel = np.pad(spread, ((0, 0), (2, 2), (2, 2))), kernel.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    else:
        x = np.pad(x, ((0, 0), *[(kernel.shape[2] // 2,) * 2] * 2))
    channels = [correlate(x, one, mode="valid")[0] for one in kernel]
    return np.stack(channels) + convolution.bias[:, None, None]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_two_steps_give_the_projection_of_one(transposed: bool, rank: int) -> None:
    shape = (4, 6, 4, 4) if transposed else (6, 4, 3, 3)
    whole = Convolution(RNG.normal(size=shape).astype("f4"), RNG.normal(size=6).astype("f4"), transposed, 1.0)
    factor = Factor(np.linalg.qr(RNG.normal(size=(6, rank)))[0].astype("f4"), RNG.normal(size=6).astype("f4"))
    x = RNG.normal(size=(4, 5, 7))
    first, second = in_two_steps(whole, factor)
    mean = factor.mean[:, None, None]
    basis = factor.basis.astype(float)
    expected = np.einsum("or,pr,pyx->oyx", basis, basis, convolve(x, whole) - mean) + mean
    np.testing.assert_allclose(convolve(convolve(x, first), second), expected, atol=1e-5)


def test_the_graph_computes_both_steps() -> None:
    network = NetworkConfig(classes=3, channels=2, filters=(4, 6))
    arrays = {n: RNG.normal(0.5, 0.5, s).astype("f4") for n, s in network.variable_shapes().items()}
    arrays = {n: np.abs(a) if n.endswith("variance") else a for n, a in arrays.items()}
    arrays |= {"standardization/mean": np.zeros(2, "f4"), "standardization/std": np.ones(2, "f4")}
    x = RNG.normal(size=(1, 16, 12, 2)).astype("f4")
    whole = {
        name: Factor(np.linalg.qr(RNG.normal(size=(n, n)))[0].astype("f4"), RNG.normal(size=n).astype("f4"))
        for name, n in ((name, len(c.bias)) for name, c in fold(network, arrays).items())
    }
    # A space of all dimensions misses nothing.
    expected = compile_graph(build_graph(network, arrays, (1, 16, 12)))(x)[0]
    found = compile_graph(build_graph(network, arrays, (1, 16, 12), factors=whole))(x)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    poor = {n: Factor(f.basis[:, :1], f.mean) for n, f in whole.items()}
    found = compile_graph(build_graph(network, arrays, (1, 16, 12), factors=poor))(x)[0]
    assert np.abs(found - expected).max() > 0.01


def test_sums_and_products_are_those_of_the_results() -> None:
    network = NetworkConfig(classes=3, channels=2, filters=(4,))
    arrays = {n: RNG.normal(0.5, 0.5, s).astype("f4") for n, s in network.variable_shapes().items()}
    arrays = {n: np.abs(a) if n.endswith("variance") else a for n, a in arrays.items()}
    arrays |= {"standardization/mean": np.zeros(2, "f4"), "standardization/std": np.ones(2, "f4")}
    x = RNG.normal(size=(1, 8, 10, 2)).astype("f4")
    run = compile_graph(build_graph(network, arrays, (1, 8, 10), probe="results"))
    _, sums, products, *_ = run(x).values()
    first = fold(network, arrays)["encoder_stage0_conv1"]
    results = convolve(x[0].transpose(2, 0, 1), first).reshape(4, -1)
    np.testing.assert_allclose(sums[:, 0], results.sum(1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(products, results @ results.T, rtol=1e-4, atol=1e-2)
    space = Space.of(results.shape[1], sums[:, 0].astype(float), products.astype(float))
    _, singular, _ = np.linalg.svd((results - results.mean(1, keepdims=True)).T, full_matrices=False)
    np.testing.assert_allclose(space.variances, singular**2 / results.shape[1], rtol=1e-3)
    assert space.missed(4) == 0
    assert space.missed(1) == pytest.approx(1 - singular[0] ** 2 / (singular**2).sum(), abs=1e-4)


def test_a_factor_spans_the_first_components_and_spreads_them() -> None:
    variances = np.array([100.0, 10.0, 1.0, 0.1])
    components = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    factor = Space(np.zeros(4), variances, components).factor(2)
    first = components[:, :2]
    np.testing.assert_allclose(factor.basis @ factor.basis.T, first @ first.T, atol=2e-3)
    spread = np.diag(factor.basis.T @ (components * variances) @ components.T @ factor.basis)
    assert spread.max() < 100


def test_the_second_step_costs_a_product_for_each_pair_of_channels() -> None:
    convolution = Convolution(np.zeros((6, 4, 3, 3), "f4"), np.zeros(6, "f4"), False, 6 * 4 * 9 / 16)
    assert cost_of_second(convolution) == pytest.approx(6 * 6 / 16)
    # Its results have four times as many pixels as its input.
    doubling = Convolution(np.zeros((4, 6, 4, 4), "f4"), np.zeros(6, "f4"), True, 4 * 6 * 16 / 64)
    assert cost_of_second(doubling) == pytest.approx(6 * 6 / 16)


def test_only_what_saves_is_worth_two_steps() -> None:
    wide = Convolution(np.zeros((64, 96, 3, 3), "f4"), np.zeros(64, "f4"), False, 64.0 * 96 * 9)
    narrow = Convolution(np.zeros((16, 96, 3, 3), "f4"), np.zeros(16, "f4"), False, 16.0 * 96 * 9)
    assert ranks_of(wide) == [16, 32, 48] and not ranks_of(narrow)
    light = Convolution(wide.kernel, wide.bias, False, 1.0)
    names = {"first": wide, "wide": wide, "narrow": narrow, "light": light, "last": wide}
    assert candidates(names) == ["wide"]


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_with_as_little_noise_costs_less_than_a_rung(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ways = {
        name: [Way(None, True, *values) for values in rng.random((4, 2)).tolist()] for name in ("a", "b", "c")
    }
    ladder = ladder_of(ways)
    choices = [dict(zip(ways, chosen, strict=True)) for chosen in product(*ways.values())]
    for rung in ladder:
        rivals = [cost_of(c) for c in choices if noise_of(c) <= noise_of(rung) + 1e-12]
        assert cost_of(rung) == pytest.approx(min(rivals))
    costs, noises = ([of(rung) for rung in ladder] for of in (cost_of, noise_of))
    assert costs == sorted(costs, reverse=True) and noises == sorted(noises)
    assert costs[-1] == pytest.approx(min(map(cost_of, choices)))


def test_finer_ways_cost_more_and_add_no_rounding() -> None:
    whole = Convolution(np.zeros((64, 96, 3, 3), "f4"), np.zeros(64, "f4"), False, 64.0 * 96 * 9)
    space = Space(np.zeros(64), np.arange(64, 0, -1.0), np.eye(64))
    ways = ways_of(whole, space=space, sensitivity=2.0, rounding=0.5, finer=3.0)
    by_kind = {(w.rank, w.eight_bit): w for w in ways}
    assert len(by_kind) == 8
    assert by_kind[None, True] == Way(None, True, whole.cost, 0.5)
    assert by_kind[None, False] == Way(None, False, 3 * whole.cost, 0.0)
    assert by_kind[16, False].noise == pytest.approx(2 * space.missed(16))
    assert by_kind[16, True].noise == pytest.approx(0.5 + 2 * space.missed(16))
    only = ways_of(whole, space=None, sensitivity=0.0, rounding=0.0, finer=None)
    assert only == [Way(None, True, whole.cost, 0.0)]
