"""CORINE levels: maps, activations and matrices gathered alike."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.accuracy import count
from lulc.levels import levels_of
from lulc.nomenclature import load_scheme
from lulc.schema import LandCoverClass, Legend

LEGEND = load_scheme("kaakonkulma-13").legend
LEVEL1, LEVEL2 = levels_of(LEGEND)


@pytest.mark.parametrize("name", ["kaakonkulma-13", "clc-fi-13", "clc-level1", "clc-level2", "clc-level3"])
def test_level_2_lies_within_level_1(name: str) -> None:
    levels = {level.number: level for level in levels_of(load_scheme(name).legend)}
    if 2 in levels:
        parents = np.repeat([1, 2, 3, 4, 5], [4, 4, 3, 2, 2])
        assert (parents[levels[2].groups - 1] == levels[1].groups).all()
    assert (2 in levels) == (name != "clc-level1")


def test_level_2_of_the_official_classes_is_that_of_their_codes() -> None:
    scheme = load_scheme("clc-level3", "three-digit")
    second = load_scheme("clc-level2", "three-digit")
    codes = np.array([111, 124, 244, 335, 423, 523])
    (level,) = (k for k in levels_of(scheme.legend) if k.number == 2)
    assert (level.gather_map(scheme.remap(codes)) == second.remap(codes)).all()


def test_a_legend_without_groups_has_no_levels() -> None:
    assert levels_of(Legend("own", (LandCoverClass(1, "Peat", "#112233"),))) == ()


@pytest.mark.parametrize("level", [LEVEL1, LEVEL2], ids=lambda k: k.name)
def test_a_matrix_gathered_is_the_matrix_of_maps_gathered(level) -> None:
    rng = np.random.default_rng(1)
    reference, mapped = rng.integers(1, 14, 500).astype(np.uint8), rng.integers(0, 14, 500).astype(np.uint8)
    expected = count(level.gather_map(reference), level.gather_map(mapped), len(level.legend))
    assert np.array_equal(level.gather_matrix(count(reference, mapped, 13)), expected)


def test_unclassified_and_no_data_stay_what_they_are() -> None:
    assert LEVEL1.gather_map(np.array([[0, 255, 13]], np.uint8)).tolist() == [[0, 255, 5]]


@pytest.mark.parametrize("level", [LEVEL1, LEVEL2], ids=lambda k: k.name)
def test_activations_are_summed_by_group_and_keep_their_total(level) -> None:
    shares = np.random.default_rng(2).dirichlet(np.ones(13), (4, 5)).astype(np.float32)
    summed = level.gather_activations(shares)
    for k in range(len(level.legend)):
        assert np.allclose(summed[..., k], shares[..., level.groups == k + 1].sum(axis=-1), atol=1e-6)
    assert np.allclose(summed.sum(axis=-1), 1, atol=1e-5)


def test_three_forests_outvote_one_field() -> None:
    shares = np.zeros((1, 2, 13), np.float32)
    shares[0, 0, [5, 6, 7]], shares[0, 0, 4] = 0.2, 0.4
    shares[0, 1] = np.nan
    assert LEVEL1.decide(shares).tolist() == [[3, 255]]
    assert LEVEL1.gather_map(np.array([[5]], np.uint8)).tolist() == [[2]]
