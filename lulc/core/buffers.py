"""Reuse of the memory of arrays: fresh memory costs as much as the arithmetic on it."""

from __future__ import annotations

from typing import Any

import numpy as np


class Buffers:
    """Gives arrays of one type and one shape after another, in memory that earlier ones no longer use.

    An array is the caller's for as long as it or a view of it is held anywhere; its memory is given out
    again only then. May be called from several threads.
    """

    def __init__(self, dtype: np.dtype[Any] | type[np.generic] = np.float32) -> None:
        self._dtype = dtype
        self._free: list[np.ndarray] = []

    def clear(self) -> None:
        """Free the memory that is not in use."""
        self._free.clear()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array with any content, contiguous."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(shape, self._dtype)
        if memory.shape != shape:
            # Of another run of calls, whose memory is not needed any more.
            self._free.clear()
            memory = np.empty(shape, self._dtype)
        return np.asarray(_Loan(memory, self._free))


class _Loan:
    """Base of an array on loan: dies with its last view, and gives the memory back."""

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)
