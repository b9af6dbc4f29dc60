"""Statistics of pieces are those of the whole, and files of statistics can't do anything."""

from __future__ import annotations

import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lulc.core.schema import InputError
from lulc.core.statistics import Moments, Statistics, read_statistics


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_merged_pieces_are_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = [rng.normal((1e4, -3), (1e-2, 50), (n, 2)) for n in sizes]
    merged = Statistics.of(pieces[0])
    for piece in pieces[1:]:
        merged = merged.merge(Statistics.of(piece))
    whole = np.concatenate(pieces)
    assert merged.count == len(whole)
    if len(whole):
        np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-12)
        np.testing.assert_allclose(merged.std, whole.std(0), rtol=1e-6, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
        max_size=40,
    ),
    st.integers(0, 2**32 - 1),
)
def test_moments_are_the_exact_sums_however_the_pixels_are_divided(
    rows: list[list[float]], seed: int
) -> None:
    pixels = np.array(rows, np.float32).reshape(-1, 2)
    whole = Moments.of(pixels)
    assert whole.sums == tuple(sum(map(Fraction, column.tolist()), Fraction(0)) for column in pixels.T)
    assert whole.squares == tuple(
        sum((Fraction(v) ** 2 for v in column.tolist()), Fraction(0)) for column in pixels.T
    )
    rng = np.random.default_rng(seed)
    pieces = np.array_split(rng.permutation(pixels), rng.integers(1, 6))
    assert sum(map(Moments.of, pieces), Moments.zero(2)) == whole
    assert Moments.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_statistics_of_moments_are_those_of_the_valid_pixels_without_cancellation() -> None:
    x = np.array([[[4096.0, 1.0], [4096.5, np.nan]], [[4097.0, 3.0], [4096.0, 2.0]]], np.float32)
    valid = x.reshape(-1, 2)[[0, 2, 3]].astype(np.float64)
    found = Moments.of(x).statistics
    assert found == Statistics(tuple(valid.mean(0)), tuple(valid.std(0)), 3)
    far = np.float32(2**23) + np.arange(100_000, dtype=np.float32)[:, None] % 2
    assert Moments.of(far).statistics == Statistics((2**23 + 0.5,), (0.5,), 100_000)
    assert Moments.zero(2).statistics == Statistics((0.0, 0.0), (0.0, 0.0), 0)


def test_pixels_with_any_invalid_channel_do_not_count() -> None:
    x = np.array([[[1.0, 10.0], [3.0, np.nan]], [[5.0, 30.0], [np.nan, np.nan]]])
    assert Statistics.of(x) == Statistics((3.0, 20.0), (2.0, 10.0), 2)


def images_that_lack_channels() -> list[np.ndarray]:
    """Three images: of two with the last of three channels in part, one without it."""
    rng = np.random.default_rng(3)
    images = [rng.normal((900, 40, -12), (90, 4, 2), (n, 3)).astype(np.float32) for n in (500, 300, 400)]
    images[0][:200, 2] = np.nan
    images[1][:, 2] = np.nan
    images[2][:50] = np.nan
    images[2][50:60, 0] = np.nan
    return images


def test_a_channel_that_pixels_may_lack_counts_where_it_is() -> None:
    images = images_that_lack_channels()
    whole = np.concatenate(images)
    pixels = whole[np.isfinite(whole[:, :2]).all(axis=1)].astype(np.float64)
    moments = [Moments.of(image, (2,)) for image in images]
    sides = [Statistics.of(image, (2,)) for image in images]
    found = [
        Moments.of(whole, (2,)).statistics, sum(moments, Moments.zero(3)).statistics,
        Statistics.of(whole, (2,)), sides[0].merge(sides[1]).merge(sides[2]),
        sides[1].merge(sides[0]).merge(sides[2]),
    ]  # fmt: skip
    for statistics in found:
        assert (statistics.count, statistics.lacking) == (1140, (0, 0, 500))
        np.testing.assert_allclose(statistics.mean, np.nanmean(pixels, axis=0), rtol=1e-9)
        np.testing.assert_allclose(statistics.std, np.nanstd(pixels, axis=0), rtol=1e-9)
        assert Statistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics
    assert sum(moments, Moments.zero(3)) == Moments.of(whole, (2,))


def test_a_channel_that_all_pixels_lack_has_mean_0_and_deviation_1() -> None:
    image = images_that_lack_channels()[1]
    none = Statistics.of(np.full((4, 3), np.nan), (2,))
    assert none.count == 0
    once = Statistics.of(image, (2,))
    for found in (once, Moments.of(image, (2,)).statistics, none.merge(once), once.merge(none)):
        assert (found.count, found.lacking) == (300, (0, 0, 300))
        assert (found.mean[2], found.std[2]) == (0, 1)
        np.testing.assert_allclose(found.mean[:2], image[:, :2].mean(0, dtype=np.float64), rtol=1e-9)
        assert found.seen.tolist() == [True, True, False]


def test_statistics_of_pixels_that_have_all_channels_are_written_as_before() -> None:
    image = np.random.default_rng(4).normal(0, 1, (50, 2)).astype(np.float32)
    assert Statistics.of(image, (1,)) == Statistics.of(image)
    assert Moments.of(image, (1,)).statistics == Moments.of(image).statistics
    assert list(Statistics.of(image, (1,)).to_json()) == ["mean", "std", "count"]


def test_statistics_of_other_channels_do_not_merge() -> None:
    with pytest.raises(InputError, match="channels"):
        Statistics((1.0,), (1.0,), 1).merge(Statistics((1.0, 2.0), (1.0, 2.0), 1))


@pytest.mark.parametrize(
    "mean, std",
    [
        ((1.0,), (1.0, 2.0)),
        ((float("nan"),), (1.0,)),
        ((1.0,), (-1.0,)),
        ((1.0,), (float("inf"),)),
    ],
)
def test_impossible_statistics_are_refused(mean: tuple, std: tuple) -> None:
    with pytest.raises(InputError, match="cannot use the statistics"):
        Statistics(mean, std)


def test_json_of_statistics_manifest_or_card_is_read(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    statistics = Statistics((1.5, 2.0), (0.5, 3.0), 7)
    for data in (statistics.to_json(), {"statistics": statistics.to_json(), "name": "x"}):
        path.write_text(json.dumps(data))
        assert read_statistics(path) == statistics


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("number", [float, np.float32, np.float64, np.int64])
def test_pickled_numbers_are_read(tmp_path: Path, protocol: int, number: type) -> None:
    path = tmp_path / "train_mean_and_std.obj"
    path.write_bytes(pickle.dumps(([number(864), number(3)], [number(155), number(1)]), protocol=protocol))
    assert read_statistics(path) == Statistics((864.0, 3.0), (155.0, 1.0))


def test_the_originals_pickle_is_read(shared: Path) -> None:
    statistics = read_statistics(shared / "legacy" / "train_mean_and_std.obj")
    assert statistics.mean[:2] == pytest.approx((864.98, 697.62), abs=0.01)
    assert statistics.std[-2:] == pytest.approx((17.15, 55.87), abs=0.01)


class Runs:
    def __reduce__(self) -> tuple:
        return os.system, ("touch canary",)


class RunsByName:
    def __reduce__(self) -> tuple:
        return eval, ("__import__('os').system('touch canary')",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Runs()),
        pickle.dumps(RunsByName()),
        pickle.dumps(([Runs()], [1.0]), protocol=0),
        pickle.dumps(([1.0], np.array([1.0]))),
        pickle.dumps(([1.0], "abc")),
        pickle.dumps({"mean": [1.0]}),
        b"cos\nsystem\n(S'touch canary'\ntR.",
        b"cnumpy\nload\n(S'canary'\ntR.",
        b"\x80\x04r\xff\xff\xff\x7f.",
        b"(lr\xff\xff\xff\x7f0.",
        b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".",
        b"",
        b"\x00" * 100,
        b"[1, 2]",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'abcdefgh'\ntR.",
        pickle.dumps(([1.0] * 20_000, [1.0] * 20_000)),
        b'{"mean": [1], "std": [NaN]}',
        b'{"mean": 1, "std": 2}',
        b'{"mean": [1]}',
        b'{"mean": ["a"], "std": ["b"]}',
        b'{"statistics": [1]}',
        b"{" * 100_000,
        b'{"mean": [1e999], "std": [1]}',
        b'{"mean": [1], "std": [1], "count": 1e999}',
    ],
)
def test_files_that_hold_more_than_numbers_are_refused(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "statistics.obj"
    path.write_bytes(content)
    with pytest.raises(InputError, match="statistics"):
        read_statistics(path)
    assert not (tmp_path / "canary").exists()
