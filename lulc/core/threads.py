"""Work in other threads, with results in the order of the items."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, further: int
) -> Generator[Result, None, None]:
    """Yield the results of ``map(function, items)``, while `pool` works `further` items ahead."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            del item
            if len(pending) > further:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        # A started task may use a file that the caller closes next.
        wait(pending)


_END = object()


class _Failure(NamedTuple):
    error: BaseException


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Iterate in another thread, which makes the next item while the caller uses the last one.

    An error in the thread is raised here, and the thread ends when the caller stops early. Neither keeps a
    reference to an item that the caller has released.
    """
    finished: queue.SimpleQueue[object] = queue.SimpleQueue()
    wanted = threading.Semaphore()
    stop = threading.Event()

    def work() -> None:
        try:
            while wanted.acquire() and not stop.is_set():
                item = next(items, _END)
                finished.put(item)
                if item is _END:
                    return
                del item
        except BaseException as error:
            finished.put(_Failure(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := finished.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            wanted.release()
            box = [item]
            del item
            yield box.pop()  # type: ignore[misc]
    finally:
        stop.set()
        wanted.release()
        thread.join()
