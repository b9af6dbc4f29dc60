"""Reuse of array memory, since allocating it takes as long as the arithmetic on it."""

from __future__ import annotations

from typing import Any

import numpy as np


class Buffers:
    """Allocator of arrays of one type that reuses the memory of arrays without references.

    The memory is free again when neither the array nor a view of it is in use. Thread-safe.
    """

    def __init__(self, dtype: np.dtype[Any] | type[np.generic] = np.float32) -> None:
        self._dtype = dtype
        self._free: list[np.ndarray] = []

    def clear(self) -> None:
        """Release the unused memory."""
        self._free.clear()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a contiguous array with any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(shape, self._dtype)
        if memory.shape != shape:
            # Memory of an earlier shape, which is not needed any more.
            self._free.clear()
            memory = np.empty(shape, self._dtype)
        return np.asarray(_Loan(memory, self._free))


class _Loan:
    """Base of an array: returns the memory when the last view is deleted."""

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)
