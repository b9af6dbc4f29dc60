"""Sampling: every class and stack is drawn as often as was asked for, and crops never leave their stack."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.training.data import sampling
from lulc.training.data.dataset import Tile, class_targets
from lulc.training.data.sampling import (
    ClassSampler,
    LabelledPixels,
    class_probabilities,
    draw_anywhere,
    stack_weights,
)


def make_tile(masks, name="stack"):
    masks = np.asarray(masks, np.uint8)
    return Tile(name, np.zeros((*masks.shape, 2), np.float32), masks)


@pytest.fixture
def lake():
    """99 % class 1, a corner of class 2, a single pixel of class 3, and ignored rows."""
    masks = np.ones((100, 120), np.uint8)
    masks[:10, :12] = 2
    masks[60, 70] = 3
    masks[90:] = 255
    return make_tile(masks)


def test_shares_of_classes_follow_the_formula():
    counts = np.array([600, 300, 100, 0])
    for temperature in (0.05, 0.5, 10.0):
        raw = np.exp((1 - counts[:3] / 1000) / temperature)
        np.testing.assert_allclose(class_probabilities(counts, temperature)[:3], raw / raw.sum())
    assert class_probabilities(counts, 0.001).argmax() == 2 and class_probabilities(counts, 0.001)[3] == 0
    np.testing.assert_allclose(class_probabilities(counts, 1e6)[:3], 1 / 3, atol=1e-5)
    assert class_probabilities(np.zeros(3, int), 1.0).sum() == 0


def test_places_are_pixels_of_their_class_and_counts_those_of_the_masks(lake, monkeypatch):
    monkeypatch.setattr(sampling, "ROWS_AT_ONCE", 7)
    places = LabelledPixels([lake], class_targets(3), seed=1)
    counts, kept = places.of(lake)
    assert counts.tolist() == [np.count_nonzero(lake.masks == c) for c in (1, 2, 3)]
    for value, found in enumerate(kept, 1):
        assert (lake.masks.ravel()[found] == value).all()
        assert len(np.unique(found)) == len(found) == min(counts[value - 1], sampling.KEPT)


def test_kept_places_are_an_even_choice_whatever_the_strips(monkeypatch):
    tile = make_tile(np.ones((64, 64)))
    monkeypatch.setattr(sampling, "KEPT", 400)
    for rows in (5, 64):
        monkeypatch.setattr(sampling, "ROWS_AT_ONCE", rows)
        kept = np.concatenate([LabelledPixels([tile], class_targets(1), s).of(tile)[1][0] for s in range(20)])
        quarters = np.bincount(kept // 1024, minlength=4) / len(kept)
        np.testing.assert_allclose(quarters, 0.25, atol=0.02)


def test_crops_stay_in_the_stack_and_hold_a_pixel_of_the_drawn_class(lake):
    sampler = ClassSampler(LabelledPixels([lake], class_targets(3), 1), ratio=1.0, temperature=0.001)
    rng = np.random.default_rng(2)
    for side in (8, 31, 64, 100):
        for _ in range(20):
            row, col = sampler(lake, side, rng)
            assert 0 <= row <= 100 - side and 0 <= col <= 120 - side
            assert (lake.masks[row : row + side, col : col + side] == 3).any()


@pytest.mark.parametrize("side", [8, 9])
def test_the_pixel_is_in_the_middle_where_there_is_room(lake, side):
    sampler = ClassSampler(LabelledPixels([lake], class_targets(3), 1), ratio=1.0, temperature=0.001)
    found = {sampler(lake, side, np.random.default_rng(i)) for i in range(40)}
    middles = {60 - row for row, _ in found} | {70 - col for _, col in found}
    assert middles == ({4} if side % 2 else {3, 4})


def test_the_share_of_rare_crops_is_the_one_asked_for(lake):
    rng = np.random.default_rng(3)
    places = LabelledPixels([lake], class_targets(3), 1)
    for share, expected in ((0.0, 0.0), (0.33, 0.33), (1.0, 1.0)):
        sampler = ClassSampler(places, share, temperature=0.001)
        hits = [sampler(lake, 1, rng) == (60, 70) for _ in range(600)]
        assert np.mean(hits) == pytest.approx(expected, abs=0.06)


def test_a_class_that_a_stack_lacks_is_not_looked_for_there(lake):
    water = make_tile(np.ones((50, 50)), "water")
    sampler = ClassSampler(LabelledPixels([lake, water], class_targets(3), 1), ratio=1.0, temperature=0.001)
    row, col = sampler(water, 16, np.random.default_rng(4))
    assert 0 <= row <= 34 and 0 <= col <= 34
    nothing = make_tile(np.full((50, 50), 255))
    alone = ClassSampler(LabelledPixels([nothing], class_targets(3), 1), ratio=1.0, temperature=1.0)
    assert 0 <= alone(nothing, 16, np.random.default_rng(5))[0] <= 34


def test_stacks_are_balanced_as_asked():
    common = make_tile(np.ones((40, 40)))
    rare = np.ones((20, 20))
    rare[:10] = 2
    places = LabelledPixels([common, make_tile(rare)], class_targets(2), 1)
    assert stack_weights(places, "stacks", 1.0).tolist() == [0.5, 0.5]
    np.testing.assert_allclose(stack_weights(places, "pixels", 1.0), [0.8, 0.2])
    # Both classes alike: class 2 is all in the second stack, of class 1 a ninth.
    np.testing.assert_allclose(stack_weights(places, "classes", 1e6), [4 / 9, 5 / 9], atol=1e-5)
    for balance in ("stacks", "pixels", "classes"):
        assert stack_weights(places, balance, 0.1).sum() == pytest.approx(1)


def test_places_are_drawn_evenly():
    tile = make_tile(np.ones((10, 30)))
    rng = np.random.default_rng(6)
    places = np.array([draw_anywhere(tile, 10, rng) for _ in range(2000)])
    assert (places[:, 0] == 0).all() and set(places[:, 1]) == set(range(21))
