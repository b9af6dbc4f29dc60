"""Windows through a function: every pixel once, in order, with errors and ends that arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lulc.core.windows import Part, Plan, Window
from lulc.inference.sliding_window import Clock, Prediction, predict_parts

CLASSES = 3


def image_of(height: int, width: int, seed: int = 0, holes: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.random((height, width, CLASSES)).astype("f4")
    image[rng.random((height, width)) < holes] = np.nan
    image[: height // 2, : width // 2] = np.nan
    return image


def collect(plan: Plan, predictions: list[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """(activations, how often each pixel was given)."""
    result = np.full((plan.height, plan.width, CLASSES), np.nan, "f4")
    times = np.zeros((plan.height, plan.width), int)
    for p in predictions:
        times[p.window.write.slices] += 1
        if p.probabilities is not None and p.valid is not None:
            result[p.window.write.slices] = np.where(p.valid[..., None], p.probabilities, np.nan)
    return result, times


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 99),
    st.sampled_from([16, 32, 64]),
)
def test_the_identity_gives_the_image_and_its_holes(
    height: int, width: int, batch: int, gaussian: bool, seed: int, part: int
) -> None:
    image = image_of(height, width, seed)
    padded = [-(-n // 4) * 4 for n in (height, width)]
    plan = Plan(height, width, 4, 4, (min(16, padded[0]), min(20, padded[1])), part)

    def network(x: np.ndarray) -> np.ndarray:
        assert x.shape == (batch, *plan.window, CLASSES)
        return np.nan_to_num(x)

    given_parts = list(plan.parts())
    predictions = list(
        predict_parts(
            lambda w: image[w.slices].copy(), network, plan, given_parts, batch=batch, gaussian=gaussian
        )
    )
    result, times = collect(plan, predictions)
    assert (times == 1).all()
    np.testing.assert_allclose(result, image, rtol=1e-5)
    assert [p.part.index for p in predictions] == sorted(p.part.index for p in predictions)


def test_reads_never_leave_the_image_and_padding_is_invalid() -> None:
    plan = Plan(21, 18, 8, 8, (24, 24), 24)
    seen = []

    def read(window: Window) -> np.ndarray:
        assert window.stop[0] <= 21 and window.stop[1] <= 18
        return np.ones((*window.shape, CLASSES), "f4")

    def network(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return x

    list(predict_parts(read, network, plan, plan.parts()))
    assert np.isnan(seen[0][0, 21:]).all() and np.isnan(seen[0][0, :, 18:]).all()
    assert (seen[0][0, :21, :18] == 1).all()


def test_windows_without_a_valid_pixel_are_not_computed() -> None:
    image = np.full((64, 64, CLASSES), np.nan, "f4")
    image[3, 60] = 1
    plan = Plan(64, 64, 4, 0, (16, 16), 64)
    clock = Clock()
    predictions = list(
        predict_parts(lambda w: image[w.slices], clock.measure(lambda x: x), plan, plan.parts())
    )
    assert clock.calls == 1
    assert sum(p.probabilities is not None for p in predictions) == 1


@pytest.mark.parametrize("gaussian", [False, True])
def test_threads_change_nothing(gaussian: bool) -> None:
    image = image_of(100, 90)
    plan = Plan(100, 90, 4, 8, (32, 32), 64)
    results = []
    for threads in (False, True):
        predictions = predict_parts(
            lambda w: image[w.slices].copy(), np.nan_to_num, plan, plan.parts(), gaussian=gaussian,
            threads=threads,
        )  # fmt: skip
        results.append(collect(plan, list(predictions))[0])
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_several_readers_change_nothing_and_each_is_called_by_one_thread_at_a_time(
    gaussian: bool, batch: int
) -> None:
    image = image_of(75, 90)
    plan = Plan(75, 90, 4, 4, (16, 20), 32)
    used: set[int] = set()

    def reader(number: int) -> Callable[[Window], np.ndarray]:
        busy = threading.Lock()

        def read(window: Window) -> np.ndarray:
            assert busy.acquire(blocking=False), "two threads at a time"
            time.sleep(0.001 * (number + 1))
            used.add(number)
            busy.release()
            return image[window.slices].copy()

        return read

    def run(count: int) -> list[Prediction]:
        first, *further = map(reader, range(count))
        options = {"further": further, "gaussian": gaussian, "batch": batch}
        return list(predict_parts(first, np.nan_to_num, plan, plan.parts(), **options))

    one, three = run(1), run(3)
    assert used == {0, 1, 2}
    assert [p.window for p in three] == [p.window for p in one]
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
        np.testing.assert_array_equal(a.valid, b.valid)


def test_blended_parts_meet_without_a_seam() -> None:
    image = image_of(96, 96, holes=0.0)
    image[:] = np.nan_to_num(image)

    def network(x: np.ndarray) -> np.ndarray:
        return x + np.arange(x.shape[1], dtype="f4")[None, :, None, None]

    results = []
    for part in (32, 96):
        plan = Plan(96, 96, 4, 0, (16, 16), part)
        predictions = list(
            predict_parts(lambda w: image[w.slices], network, plan, plan.parts(), gaussian=True)
        )
        results.append(collect(plan, predictions)[0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


@pytest.mark.parametrize("where", ["read", "network"])
def test_an_error_in_any_thread_arrives_and_all_threads_end(where: str) -> None:
    plan = Plan(64, 64, 4, 0, (16, 16), 64)
    before = threading.active_count()
    calls = {"read": 0, "network": 0}

    def failing(name: str, value: np.ndarray) -> np.ndarray:
        calls[name] += 1
        if name == where and calls[name] == 5:
            raise OSError("gone")
        return value

    with pytest.raises(OSError, match="gone"):
        list(
            predict_parts(
                lambda w: failing("read", np.ones((*w.shape, CLASSES), "f4")),
                lambda x: failing("network", x),
                plan,
                plan.parts(),
            )
        )
    assert threading.active_count() == before


def test_all_threads_end_when_the_caller_stops() -> None:
    plan = Plan(64, 64, 4, 0, (16, 16), 64)
    before = threading.active_count()
    predictions = predict_parts(lambda w: np.ones((*w.shape, CLASSES), "f4"), lambda x: x, plan, plan.parts())
    next(predictions)
    predictions.close()
    assert threading.active_count() == before


def test_reading_stays_a_few_windows_ahead_of_a_slow_caller() -> None:
    plan = Plan(16, 1600, 4, 0, (16, 16), 1600)
    reads = 0

    def read(window: Window) -> np.ndarray:
        nonlocal reads
        reads += 1
        return np.ones((*window.shape, CLASSES), "f4")

    predictions = predict_parts(read, lambda x: x, plan, plan.parts())
    next(predictions)
    time.sleep(0.3)
    assert reads <= 8
    predictions.close()


def test_the_clock_tells_busy_time_from_waiting() -> None:
    clock = Clock()
    network = clock.measure(lambda x: (time.sleep(0.02), x)[1])
    for _ in range(3):
        network(np.zeros(1))
        time.sleep(0.02)
    assert clock.calls == 3
    assert 0.3 < clock.share < 0.9
    assert Clock().share == 1.0


def test_parts_can_be_done_in_any_selection() -> None:
    image = image_of(64, 64, holes=0.0)
    plan = Plan(64, 64, 4, 4, (24, 24), 32)
    chosen = [Part(2, plan.part_at(2).extent)]
    predictions = list(predict_parts(lambda w: image[w.slices], np.nan_to_num, plan, chosen))
    _, times = collect(plan, predictions)
    assert times[32:, :32].all() and times.sum() == 32 * 32
