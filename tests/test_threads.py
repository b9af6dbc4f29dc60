"""Work in other threads comes in the order of its items, bounded, with its errors."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lulc.core.threads import in_order


@pytest.mark.parametrize("further", [0, 1, 5, 100])
def test_results_come_in_the_order_of_the_items(further: int) -> None:
    def slower_the_earlier(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    with ThreadPoolExecutor(4) as pool:
        assert list(in_order(slower_the_earlier, range(20), pool, further)) == [i * i for i in range(20)]


def test_no_more_items_are_taken_than_were_asked_for() -> None:
    taken: list[int] = []

    def items() -> object:
        for item in range(20):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        results = in_order(lambda item: item, items(), pool, 3)
        assert [next(results), next(results)] == [0, 1]
        assert len(taken) == 5
        results.close()
    assert len(taken) == 5


def test_an_error_comes_in_its_turn_and_what_has_not_begun_never_does() -> None:
    release, begun = threading.Event(), []

    def fail_at_two(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        if item > 2:
            release.wait(0.5)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = in_order(fail_at_two, range(10), pool, 6)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)
        release.set()
    assert len(begun) <= 4


def test_nothing_runs_any_more_where_an_error_has_come() -> None:
    running = threading.Semaphore(0)
    done: list[int] = []

    def fail_first(item: int) -> None:
        if item == 0:
            running.acquire(timeout=10)
            raise ValueError("first")
        running.release()
        time.sleep(0.1)
        done.append(item)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(ValueError, match="first"):
            list(in_order(fail_first, range(2), pool, 1))
        assert done == [1]
