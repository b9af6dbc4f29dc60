"""Convolutions of 3 x 3 with fewer multiplications, as operations of OpenVINO.

Winograd's algorithm computes neighbouring results at once: what they are made of is transformed, multiplied
with the transformed kernel number by number, and transformed back. The transforms are sums. A square of
2 x 2 results takes 16 multiplications instead of 36, one of 4 x 4 takes 36 instead of 144, and a line of
4, which is transformed along one axis only, 18 instead of 36.

References
----------
Lavin & Gray 2016, doi:10.1109/CVPR.2016.435, sections 4.1 and 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Transforms:
    """How so many neighbouring results are computed, along one axis.

    Parameters
    ----------
    into, kernel, back
        Transforms of the input, of the kernel and of the products. Rows 1 and 2 of the first are sum and
        difference of the same two terms, as are rows 3 and 4, and likewise columns of the last.
    """

    into: np.ndarray
    kernel: np.ndarray
    back: np.ndarray

    @property
    def side(self) -> int:
        """How many results, in pixels."""
        return len(self.back)


TRANSFORMS = {
    2: Transforms(
        into=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        kernel=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
        back=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: Transforms(
        into=np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        kernel=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        back=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    ),
}
"""F(2, 3) and F(4, 3), by the number of results."""

Line = Sequence[Any]
"""Nodes along one axis."""


class Winograd:
    """Appends convolutions to a graph, zeros around what they take.

    Parameters
    ----------
    operations
        OpenVINO's.
    side
        Of squares and lines of results: a key of `TRANSFORMS`.
    """

    def __init__(self, operations: Any, side: int) -> None:
        self._op = operations
        self._transforms = TRANSFORMS[side]
        self.side = self._transforms.side
        # Pixels that the results of one line are made of.
        self._taken = len(self._transforms.into)

    def squares(self, x: Any, kernel: np.ndarray) -> Any:
        """A convolution, computed in squares.

        Parameters
        ----------
        x
            (n, in, y, x), both sides multiples of the square's.
        kernel
            float32 (out, in, 3, 3).

        Returns
        -------
        node
            (n, out, y, x).
        """
        op, side = self._op, self.side
        _, channels, height, width = x.get_output_shape(0)
        # Its phases as channels, so that the pixels under each square are slices without steps. Below and on
        # the right there is one square more.
        phases = op.space_to_depth(self._pad(x, (1, 1), (side - 1, side - 1)), "blocks_first", side)

        def pixel(row: int, col: int) -> Any:
            first = integers([(row % side * side + col % side) * channels, row // side, col // side])
            last = first + integers([channels, height // side, width // side])
            return op.slice(phases, first, last, integers([1, 1, 1]), integers([1, 2, 3]))

        transform = self._transforms.kernel
        kernels = np.einsum(
            "ia,ocab,jb->ijoc", transform, kernel.astype(np.float64), transform, optimize=True
        )
        square = [[pixel(i, j) for j in range(self._taken)] for i in range(self._taken)]
        numbers = _both_axes(square, self._into)
        products = [
            [self._multiply(number, matrix[..., np.newaxis, np.newaxis]) for number, matrix in pairs]
            for pairs in map(zip, numbers, kernels)
        ]
        results = _both_axes(products, self._back)
        return op.depth_to_space(
            op.concat([node for row in results for node in row], 1), "blocks_first", side
        )

    def lines(self, x: Any, kernel: np.ndarray) -> Any:
        """A convolution, computed in lines down the columns: less to transform, more to multiply.

        As `squares`, but for the width of `x`, which may be any.
        """
        op, side = self._op, self.side
        count, _, height, width = x.get_output_shape(0)
        padded = self._pad(x, (1, 1), (side - 1, 1))
        last, step, rows = integers([height - side + 1]), integers([side]), integers([2])
        line = [op.slice(padded, integers([i]), last + i, step, rows) for i in range(self._taken)]
        kernels = np.einsum("ia,ocab->iocb", self._transforms.kernel, kernel.astype(np.float64))
        products = [
            self._multiply(number, matrix[:, :, np.newaxis])
            for number, matrix in zip(self._into(line), kernels, strict=True)
        ]
        # OpenVINO keeps the channels of a pixel together, so that transpositions and reshaping move nothing.
        flat = integers([count, height // side, 1, width * len(kernel)])
        results = [op.transpose(node, integers([0, 2, 3, 1])) for node in self._back(products)]
        whole = [op.reshape(node, flat, False) for node in results]
        together = op.reshape(op.concat(whole, 2), integers([count, height, width, -1]), False)
        return op.transpose(together, integers([0, 3, 1, 2]))

    def _pad(self, x: Any, before: tuple[int, int], after: tuple[int, int]) -> Any:
        """Zeros around (n, channel, y, x): rows and columns before and after."""
        around = integers([0, 0, *before]), integers([0, 0, *after])
        return self._op.pad(x, *around, "constant", np.float32(0))

    def _multiply(self, x: Any, kernel: np.ndarray) -> Any:
        """The convolution of `x` with `kernel` (out, in, y, x), nothing around it."""
        constant = self._op.constant(np.ascontiguousarray(kernel, np.float32))
        return self._op.convolution(x, constant, [1, 1], [0, 0], [0, 0], [1, 1])

    def _into(self, line: Line) -> Line:
        """A line of the input transformed."""
        into = self._transforms.into
        made = [self._sum(line, into[0])]
        for one, other in zip(into[1:-1:2], into[2:-1:2], strict=True):
            even, odd = self._sum(line, (one + other) / 2), self._sum(line, (one - other) / 2)
            made += [self._op.add(even, odd), self._op.subtract(even, odd)]
        return [*made, self._sum(line, into[-1])]

    def _back(self, line: Line) -> Line:
        """A line of products transformed back."""
        back = self._transforms.back
        terms, factors = [line[0]], [back[:, 0]]
        for k in range(1, len(line) - 1, 2):
            one, other = back[:, k], back[:, k + 1]
            terms += [self._op.add(line[k], line[k + 1]), self._op.subtract(line[k], line[k + 1])]
            factors += [(one + other) / 2, (one - other) / 2]
        factors = [*factors, back[:, -1]]
        return [self._sum([*terms, line[-1]], row) for row in np.transpose(factors)]

    def _sum(self, nodes: Line, factors: np.ndarray) -> Any:
        """The sum of nodes times factors, of which at least one is positive."""
        op = self._op
        # Positive terms first, so that none has to be negated.
        terms = sorted(((f, n) for f, n in zip(factors, nodes, strict=True) if f), key=lambda t: -t[0])
        scaled = [n if abs(f) == 1 else op.multiply(n, op.constant(np.float32(abs(f)))) for f, n in terms]
        total = scaled[0]
        for (factor, _), node in zip(terms[1:], scaled[1:], strict=True):
            total = op.add(total, node) if factor > 0 else op.subtract(total, node)
        return total


def _both_axes(square: Sequence[Line], transform: Callable[[Line], Line]) -> list[Line]:
    """A square of nodes with its columns transformed, and then its rows."""
    columns = [transform(column) for column in zip(*square, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def integers(values: Sequence[int]) -> np.ndarray:
    """What operations take as sizes, axes and places."""
    return np.asarray(values, np.int64)
