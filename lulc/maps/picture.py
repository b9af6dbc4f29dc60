"""Picture of a map: classes in their colours, a legend and a scale bar."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lulc.core.grid import GridSpec, metres_per_pixel
from lulc.core.schema import IGNORE, UNCLASSIFIED, UNCLASSIFIED_COLOR, UNCLASSIFIED_NAME, Legend
from lulc.core.text import printable

PIXELS = 1500
"""Most rows and columns of a picture; larger maps are subsampled."""


def draw_classes(classes: np.ndarray, grid: GridSpec, legend: Legend, axes: Any = None) -> Any:
    """Draw class numbers.

    Parameters
    ----------
    classes : uint8 (y, x)
        1..N, 0 unclassified, 255 no data; all pixels of the grid, or every n-th.

    Returns
    -------
    matplotlib.axes.Axes
    """
    from matplotlib import pyplot
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    axes = axes if axes is not None else pyplot.subplots(layout="constrained")[1]
    names, colors = [UNCLASSIFIED_NAME, *legend.names], [UNCLASSIFIED_COLOR, *legend.colors]
    left, bottom, right, top = grid.bounds
    axes.imshow(
        np.ma.masked_equal(classes, IGNORE),
        cmap=ListedColormap(colors),
        norm=BoundaryNorm(np.arange(len(colors) + 1) - 0.5, len(colors)),
        extent=(left, right, bottom, top),
        interpolation="none",
    )
    present = [n for n in np.unique(classes) if n not in (IGNORE, UNCLASSIFIED)]
    present += [UNCLASSIFIED] * bool((classes == UNCLASSIFIED).any())
    # A dollar sign would start a formula.
    patches = [Patch(color=colors[n], label=printable(names[n]).replace("$", r"\$")) for n in present]
    axes.legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xticks([])
    axes.set_yticks([])
    _draw_scale_bar(axes, grid)
    return axes


def embedded(draw: Callable[[Any], Any]) -> str:
    """Return a drawing as an HTML image element with its PNG inside."""
    from matplotlib.figure import Figure

    buffer, figure = io.BytesIO(), Figure(figsize=(8, 5), layout="constrained")
    draw(figure.add_subplot())
    figure.savefig(buffer, format="png")
    return f'<img alt="map" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _draw_scale_bar(axes: Any, grid: GridSpec) -> None:
    """Draw a bar of a round length, at most a quarter of the width; none where metres are unknown."""
    metres = metres_per_pixel(grid)
    if metres is None:
        return
    length = round_length(metres * grid.width / 4)
    fraction = length / (metres * grid.width)
    below = {"transform": axes.transAxes, "clip_on": False}
    axes.plot([0, fraction], [-0.03, -0.03], color="black", linewidth=3, solid_capstyle="butt", **below)
    axes.text(fraction / 2, -0.045, length_label(length), ha="center", va="top", **below)


def round_length(most: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above `most`."""
    power = 10 ** math.floor(math.log10(most))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= most * (1 + 1e-9))


def length_label(metres: float) -> str:
    """Return a length in kilometres from 1000 m on, in metres below."""
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
