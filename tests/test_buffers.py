"""Memory that is used again, and never while somebody holds it."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import numpy as np

from lulc.core.buffers import Buffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_that_nobody_holds_is_given_out_again() -> None:
    buffers = Buffers()
    first = buffers.empty((300, 400))
    place = address(first)
    del first
    assert address(buffers.empty((300, 400))) == place


def test_a_view_keeps_its_memory() -> None:
    buffers = Buffers()
    first = buffers.empty((30, 40, 2))
    first[:] = 1
    view = first[3:5].transpose(2, 0, 1)[0]
    del first
    gc.collect()
    second = buffers.empty((30, 40, 2))
    second[:] = 2
    assert (view == 1).all()
    assert not np.shares_memory(view, second)


def test_another_shape_gets_memory_of_its_own() -> None:
    buffers = Buffers()
    buffers.empty((3, 4))
    other = buffers.empty((5, 6))
    assert other.shape == (5, 6) and other.dtype == np.float32 and other.flags.writeable
    assert buffers.empty((3, 4)).shape == (3, 4)


def test_threads_never_share_an_array() -> None:
    buffers = Buffers()
    wrong = []

    def work(number: int) -> None:
        for _ in range(2000):
            array = buffers.empty((16,))
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_that_nobody_holds_can_be_given_up() -> None:
    tracemalloc.start()
    try:
        buffers = Buffers()
        held, other = buffers.empty((500, 400)), buffers.empty((500, 400))
        held[:] = 1
        del other
        before = tracemalloc.get_traced_memory()[0]
        buffers.clear()
        assert before - tracemalloc.get_traced_memory()[0] > 0.9 * 4 * 500 * 400
    finally:
        tracemalloc.stop()
    assert (held == 1).all()
