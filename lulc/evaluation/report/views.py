"""Views of a map, its reference, image and activations, decimated to the size of a page.

Every kept pixel is an unchanged pixel of the map, whose row and column are multiples of the step. A click
therefore shows the values in the file at that row and column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, Legend
from lulc.core.windows import Window, squares_of
from lulc.models.uncertainty import entropy

LONGEST = 2048  # longest side of a view in pixels
FINE_VALUES = 8_000_000  # number of activations (7 MB) up to which a page stores three decimals, not two
BLOCKS = 16  # least certain squares along the longest side

Stored = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Views:
    """Decimated arrays of one area.

    Parameters
    ----------
    step
        Row i and column j of a view are row i x step and column j x step of the map.
    map, reference
        uint8 (y, x), class numbers, 0 unclassified, 255 no data.
    image
        uint8 (y, x, 3).
    activations
        Activations times 10 ** digits, rounded: uint8 or uint16 (class, y, x), highest value = no data.
    """

    grid: GridSpec
    step: int
    map: NDArray[np.uint8]
    reference: NDArray[np.uint8] | None = None
    image: NDArray[np.uint8] | None = None
    activations: Stored | None = None
    digits: int = 3

    def read_activations(self, window: Window | None = None) -> NDArray[np.float32]:
        """Return activations of a window of the view, float32 (class, y, x), 0..1, NaN = no data.

        Without activations the shape is (0, y, x).
        """
        rows, cols = (window or Window(0, 0, *self.map.shape)).slices
        if self.activations is None:
            return np.zeros((0, *(part.stop - part.start for part in (rows, cols))), np.float32)
        stored = self.activations[:, rows, cols]
        scaled = stored.astype(np.float32) / np.float32(10**self.digits)
        return np.where(stored == np.iinfo(stored.dtype).max, np.float32(np.nan), scaled)

    def entropy(self) -> NDArray[np.float32] | None:
        """Return the uncertainty of the map (`lulc.models.uncertainty.entropy`); None without activations."""
        if self.activations is None:
            return None
        height, width = self.map.shape
        result = np.empty((height, width), np.float32)
        # In strips, since float activations of all classes would need half a gigabyte.
        for row in range(0, height, 128):
            rows = Window(row, 0, min(128, height - row), width)
            result[rows.slices] = entropy(np.moveaxis(self.read_activations(rows), 0, -1))
        return result


class Viewing:
    """Views that are filled window by window."""

    def __init__(
        self, grid: GridSpec, classes: int, *, with_image: bool, with_activations: bool,
        with_reference: bool = True, longest: int = LONGEST,
    ) -> None:  # fmt: skip
        self._grid = grid
        self.step = max(1, -(-max(grid.shape) // longest))
        shape = tuple(-(-side // self.step) for side in grid.shape)
        self._map = np.full(shape, IGNORE, np.uint8)
        self._reference = np.full(shape, IGNORE, np.uint8) if with_reference else None
        self._image = np.full((*shape, 3), np.nan, np.float32) if with_image else None
        self._digits = 3 if classes * shape[0] * shape[1] <= FINE_VALUES else 2
        self._activations: Stored | None = None
        if with_activations:
            kind = np.uint16 if self._digits == 3 else np.uint8
            self._activations = np.full((classes, *shape), np.iinfo(kind).max, kind)

    def holds(self, window: Window) -> bool:
        """True if a pixel of the window is kept."""
        return -window.row % self.step < window.height and -window.col % self.step < window.width

    def add(
        self,
        window: Window,
        mapped: NDArray[np.uint8],
        reference: NDArray[np.uint8],
        image: NDArray[np.float32] | None = None,
        activations: NDArray[np.float32] | None = None,
    ) -> None:
        """Keep every `step`-th row and column of the grid.

        Parameters
        ----------
        mapped, reference
            uint8 (y, x), class numbers.
        image
            float32 (y, x, 3) of only the kept rows and columns, NaN = no data.
        activations
            float32 (y, x, class), NaN = no data.
        """
        if not self.holds(window):
            return
        step = self.step
        inside = (slice(-window.row % step, None, step), slice(-window.col % step, None, step))
        height, width = mapped[inside].shape
        row, col = -(-window.row // step), -(-window.col // step)
        place = (slice(row, row + height), slice(col, col + width))
        self._map[place] = mapped[inside]
        if self._reference is not None:
            self._reference[place] = reference[inside]
        if image is not None and self._image is not None:
            self._image[place] = image
        if activations is not None and self._activations is not None:
            void = np.iinfo(self._activations.dtype).max
            scaled = np.round(activations[inside].astype(np.float64) * 10**self._digits)
            stored = np.where(np.isfinite(scaled), np.clip(scaled, 0, void - 1), void)
            self._activations[:, *place] = np.moveaxis(stored, -1, 0).astype(self._activations.dtype)

    def views(self) -> Views:
        """Return the views kept so far."""
        image = None if self._image is None else stretch(self._image)
        return Views(
            self._grid, self.step, self._map, self._reference, image, self._activations, self._digits
        )


def stretch(colors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch reflectances by the 2 % and 98 % percentiles to colours uint8 (y, x, 3), no data white."""
    result = np.full(colors.shape, 255, np.uint8)
    for k in range(colors.shape[-1]):
        plane = colors[..., k]
        valid = np.isfinite(plane)
        if valid.any():
            low, high = np.percentile(plane[valid], (2, 98))
            scaled = (plane[valid] - low) / max(high - low, 1e-6)
            result[..., k][valid] = np.clip(255 * scaled, 0, 255).astype(np.uint8)
    return result


@dataclass(frozen=True)
class UnsureSquare:
    """Square in which the map is uncertain.

    Parameters
    ----------
    entropy
        Mean uncertainty, 0..1.
    classes
        Numbers of the two classes with the highest mean activation, the highest first.
    """

    window: Window
    entropy: float
    classes: tuple[int, int]


def least_sure(views: Views, count: int = 5) -> list[UnsureSquare]:
    """Return the squares with the highest mean uncertainty, the highest first; empty without activations.

    Squares with less than half of their pixels valid are left out.
    """
    uncertainty = views.entropy()
    if uncertainty is None:
        return []
    side = max(1, -(-max(uncertainty.shape) // BLOCKS))
    squares = []
    for block in squares_of(Window(0, 0, *uncertainty.shape), side):
        values = uncertainty[block.slices]
        valid = np.isfinite(values)
        if valid.sum() < side * side / 2:
            continue
        means = views.read_activations(block)[:, valid].mean(axis=1)
        first, second = (int(k) + 1 for k in np.argsort(-means, kind="stable")[:2])
        area = Window(*(views.step * n for n in (block.row, block.col, block.height, block.width)))
        mean = float(values[valid].mean())
        squares.append(UnsureSquare(area.intersect(views.grid.extent), mean, (first, second)))
    return sorted(squares, key=lambda square: -square.entropy)[:count]


def entropy_by_class(views: Views, legend: Legend) -> list[tuple[int, float, float]]:
    """Return (class number, fraction of the valid pixels, mean uncertainty) of each mapped class."""
    uncertainty = views.entropy()
    if uncertainty is None:
        return []
    valid = np.isfinite(uncertainty) & (views.map != IGNORE)
    total = max(1, int(valid.sum()))
    masks = ((c.number, valid & (views.map == c.number)) for c in legend.classes)
    return [(k, float(m.sum()) / total, float(uncertainty[m].mean())) for k, m in masks if m.any()]
