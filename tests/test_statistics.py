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
