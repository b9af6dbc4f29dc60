"""Figures: maps with legends, confusion matrices, reliability diagrams, training curves.

Colour is never the only key: curves also differ in line style, and classes also have their numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from lulc.core.grid import GridSpec, metres_per_pixel
from lulc.core.schema import IGNORE, UNCLASSIFIED_COLOR, Legend
from lulc.core.storage import write_atomically
from lulc.evaluation.measures.area_estimation import Estimate
from lulc.evaluation.measures.metrics import Calibration
from lulc.evaluation.measures.results import read_history
from lulc.evaluation.report.views import UnsureSquare
from lulc.maps.picture import length_label, round_length

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
"""Colours for any colour vision (Okabe and Ito, 2008)."""

VOID_COLOR = "#f2f2f2"
DPI = 150

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "text.parse_math": False,
}  # fmt: skip


@contextlib.contextmanager
def _canvas(path: str | os.PathLike[str] | None, width: float, height: float) -> Iterator[Figure]:
    """Yield a styled figure, and save it to `path`, if any, when the block ends."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure
        if path is not None:
            with write_atomically(path) as temporary:
                figure.savefig(temporary, format="png")


def draw_panels(
    panels: Sequence[tuple[str, NDArray[np.uint8]]],
    legend: Legend,
    grid: GridSpec,
    path: str | os.PathLike[str],
) -> None:
    """Draw class maps and images of one area side by side, with one legend, scale bar and north arrow.

    Parameters
    ----------
    panels
        (title, array): class numbers uint8 (y, x), 0 unclassified, 255 no data, or colours uint8 (y, x, 3).
        All cover the same area and may be decimated.
    """
    height, width = panels[0][1].shape[:2]
    columns = len(panels) if width < 1.6 * height else 1
    rows = math.ceil(len(panels) / columns)
    side = 6.2 if columns == 1 else 4.4
    scale = side / max(height, width)
    panel_width, panel_height = max(width * scale, 2.6), max(height * scale, 1.8)
    keys = _legend_keys([a for _, a in panels if a.ndim == 2], legend)
    text_width = 0.8 + 0.07 * max((len(str(k.get_label())) for k in keys), default=0)
    total_height = max(rows * (panel_height + 0.45), 0.6 + 0.24 * len(keys))
    with _canvas(path, columns * (panel_width + 0.12) + text_width, total_height) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, array) in zip(axes, panels, strict=False):
            ax.set_title(title)
            _show(ax, array, legend)
        _scale_bar(axes[0], grid, width)
        _north_arrow(axes[len(panels) - 1], grid)
        figure.legend(handles=keys, loc="outside right upper", handlelength=1.6, labelspacing=0.55)


def _show(ax: Axes, array: NDArray[np.uint8], legend: Legend) -> None:
    if array.ndim == 3:
        ax.imshow(array, interpolation="nearest")
    else:
        colors = [UNCLASSIFIED_COLOR, *legend.colors, VOID_COLOR]
        place = np.where(array > len(legend), len(legend) + 1, array)
        ax.imshow(
            place, cmap=ListedColormap(colors), vmin=-0.5, vmax=len(colors) - 0.5,
            interpolation="nearest",
        )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color("#999999")


def _legend_keys(arrays: Sequence[NDArray[np.uint8]], legend: Legend) -> list[Patch]:
    present = np.zeros(256, bool)
    for array in arrays:
        present[np.unique(array)] = True
    colors = [(c.number, c.color, _label(c.number, c.name)) for c in legend.classes]
    colors.append((0, UNCLASSIFIED_COLOR, _label(0, "unclassified")))
    colors.append((IGNORE, VOID_COLOR, _label("", "no data")))
    return [
        Patch(facecolor=color, edgecolor="#555555", linewidth=0.6, label=label)
        for number, color, label in colors
        if present[number]
    ]


def _label(number: object, name: str) -> str:
    # Figure spaces are as wide as digits and right-align the numbers.
    return f"{str(number).rjust(2, chr(0x2007))}  {name}"


def _scale_bar(ax: Axes, grid: GridSpec, shown_width: int) -> None:
    """Add a bar of a round length, about a quarter of the panel, in the lower left corner."""
    metres = metres_per_pixel(grid)
    if metres is None:
        return
    ground = grid.width * metres
    length = round_length(ground / 4)
    bar = AnchoredSizeBar(
        ax.transData, length / ground * shown_width, length_label(length), "lower left", pad=0.4,
        borderpad=0.6, sep=3, label_top=True, size_vertical=shown_width / 150, color="black",
        fill_bar=True,
    )  # fmt: skip
    bar.patch.set(edgecolor="none", alpha=0.85)
    ax.add_artist(bar)


def _north_arrow(ax: Axes, grid: GridSpec) -> None:
    if not grid.is_north_up:
        return
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.85, "edgecolor": "none"}
    ax.text(
        0.97, 0.97, "N\n▲", transform=ax.transAxes, ha="right", va="top", fontsize=9, weight="bold",
        linespacing=0.95, bbox=box,
    )  # fmt: skip


def draw_confusion(
    confusion: NDArray[np.int64], legend: Legend, path: str | os.PathLike[str] | None = None, *, title: str
) -> Figure:
    """Draw a confusion matrix in percent of each reference class.

    Parameters
    ----------
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified.
    """
    rows = [i for i in range(1, len(legend) + 1) if confusion[i].sum()]
    cols = [i for i in range(1, len(legend) + 1) if confusion[:, i].sum() or confusion[i].sum()]
    names = {c.number: f"{c.number}  {c.name}" for c in legend.classes} | {0: "0  unclassified"}
    cols += [0] if confusion[:, 0].sum() else []
    counts = confusion[np.ix_(rows, cols)].astype(np.float64)
    shares = counts / confusion[rows].sum(axis=1, keepdims=True)
    cell = 0.42 if len(cols) <= 20 else 0.28
    names_width = 0.08 * max(len(names[i]) for i in rows + cols)
    size = (names_width + cell * len(cols) + 2.0, 0.75 * names_width + cell * len(rows) + 1.4)
    with _canvas(path, *size) as figure:
        ax = figure.subplots()
        image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        # About twelve letters per inch.
        ax.set_title(textwrap.fill(title, max(16, int(12 * (cell * len(cols) + 1)))))
        ax.set_xticks(range(len(cols)), [names[i] for i in cols], rotation=50, ha="right",
                      rotation_mode="anchor")  # fmt: skip
        ax.set_yticks(range(len(rows)), [names[i] for i in rows])
        ax.set_xlabel("map")
        ax.set_ylabel("reference")
        ax.tick_params(length=0)
        if len(cols) <= 20:
            for i, j in np.argwhere(shares >= 0.005):
                ax.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=8,
                        color="white" if shares[i, j] > 0.55 else "black")  # fmt: skip
        bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02)
        bar.set_label("share of the reference class")
        bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "25 %", "50 %", "75 %", "100 %"])
    return figure


def draw_reliability(
    calibration: Calibration, path: str | os.PathLike[str] | None = None, *, title: str
) -> Figure:
    """Draw accuracy over confidence, and the frequency of each confidence."""
    bins = [b for b in calibration.bins if b.pixels]
    width = 1 / len(calibration.bins)
    with _canvas(path, 5.2, 5.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.set_title(title)
        top.bar([b.lower for b in bins], [b.accuracy for b in bins], width, align="edge",
                color=BLUE, edgecolor="white", label="accuracy")  # fmt: skip
        top.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o", color=ORANGE,
                 markeredgecolor="black", markersize=5, clip_on=False,
                 label="mean confidence of the bin")  # fmt: skip
        top.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="confidence = accuracy")
        top.set(ylim=(0, 1), ylabel="share of pixels that are right")
        top.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
        top.text(
            0.98, 0.04, f"ECE {calibration.ece:.3f}", transform=top.transAxes, ha="right", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "#999999", "boxstyle": "round,pad=0.35"},
        )  # fmt: skip
        shares = [100 * b.pixels / calibration.pixels for b in bins]
        bottom.bar([b.lower for b in bins], shares, width, align="edge", color="#777777", edgecolor="white")
        bottom.set(xlim=(0, 1), xlabel="confidence (highest activation)", ylabel="% of pixels")
    return figure


def draw_uncertainty(
    uncertainty: NDArray[np.float32], places: Sequence[UnsureSquare], grid: GridSpec,
    path: str | os.PathLike[str], *, title: str,
) -> None:  # fmt: skip
    """Draw the uncertainty of a map, with numbered frames around the least certain places.

    Parameters
    ----------
    uncertainty
        float32 (y, x), 0..1, NaN = no data; may be decimated.
    places
        Least certain places, in pixels of the map.
    """
    # Finer noise is invisible in the figure and would be most of its bytes.
    step = max(1, max(uncertainty.shape) // 500)
    uncertainty = uncertainty[::step, ::step]
    height, width = uncertainty.shape
    scale = 6.2 / max(height, width)
    with _canvas(path, max(width * scale, 2.6) + 1.0, max(height * scale, 1.8) + 0.4) as figure:
        ax = figure.subplots()
        ax.set_title(title)
        ax.set_facecolor(VOID_COLOR)
        image = ax.imshow(uncertainty, cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
        per_pixel = width / grid.width
        for k, place in enumerate(places, start=1):
            w = place.window
            left, top = w.col * per_pixel, w.row * per_pixel
            for color, line in (("black", 3.0), ("white", 1.4)):
                ax.add_patch(
                    Rectangle((left, top), w.width * per_pixel, w.height * per_pixel,
                              fill=False, edgecolor=color, linewidth=line)
                )  # fmt: skip
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}
            ax.text(left, top, str(k), ha="left", va="top", fontsize=8, weight="bold", bbox=box)
        ax.set_xticks([])
        ax.set_yticks([])
        _scale_bar(ax, grid, width)
        _north_arrow(ax, grid)
        bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02)
        bar.set_label("0 one class is certain, 1 all are equally likely")


def draw_areas(
    areas: Sequence[Estimate], mapped: Sequence[float], legend: Legend,
    path: str | os.PathLike[str] | None = None, *, unit: str,
) -> Figure:  # fmt: skip
    """Draw estimated areas in `unit` with their 95 % intervals, and mapped areas beside them."""
    rows = range(len(legend))
    names = [f"{c.number}  {c.name}" for c in legend.classes]
    with _canvas(path, 7.5, 1.2 + 0.32 * len(legend)) as figure:
        ax = figure.subplots()
        ax.set_title("Area of each class, with its 95 % interval")
        for k, (area, color) in enumerate(zip(areas, legend.colors, strict=True)):
            low, high = area.interval
            ax.plot([max(low, 0), high], [k, k], color="black", linewidth=5, solid_capstyle="butt")
            ax.plot([max(low, 0), high], [k, k], color=color, linewidth=3.4, solid_capstyle="butt")
        ax.plot([a.value for a in areas], rows, "o", color="black", markersize=5, label="estimated")
        # Below the bar, where it hides no part of the interval.
        ax.plot(mapped, [k + 0.3 for k in rows], "^", color=RED, markersize=6, label="mapped")
        ax.set_yticks(rows, names)
        ax.invert_yaxis()
        ax.set_xlim(left=0)
        ax.set_xlabel(unit)
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.grid(axis="x", alpha=0.25)
        # Inside the axes it could hide an interval.
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_history(history: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw the curves of a training: losses, scores and learning rate over epochs.

    Raises InputError if the file has no epoch.

    Parameters
    ----------
    history
        CSV with the columns epoch, loss, accuracy, val_loss, val_accuracy, val_macro_f1 and
        learning_rate; a column or a value may be missing.
    """
    columns = read_history(history)
    curves = (
        ("Loss", (("loss", "training"), ("val_loss", "validation")), min),
        (
            "Scores",
            (("accuracy", "training accuracy"), ("val_accuracy", "validation accuracy"),
             ("val_macro_f1", "validation macro-F1")),
            max,
        ),
        ("Learning rate", (("learning_rate", "learning rate"),), None),
    )  # fmt: skip
    with _canvas(path, 11, 3.4) as figure:
        for ax, (title, names, best) in zip(figure.subplots(1, 3), curves, strict=True):
            _draw_curves(ax, columns, title, names, best)


def _draw_curves(ax: Axes, columns: dict[str, list[float]], title: str, names: Any, best: Any) -> None:
    ax.set_title(title)
    epochs = columns["epoch"]
    styles = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"))
    for (name, label), (color, line, marker) in zip(names, styles, strict=False):
        values = columns.get(name, [])
        finite = [v for v in values if math.isfinite(v)]
        if not finite:
            continue
        if best and name.startswith("val_"):
            top = best(finite)
            at = epochs[values.index(top)]
            label = f"{label}, best {top:.3f} (epoch {at:g})"
            ax.plot([at], [top], "o", markersize=9, markerfacecolor="none", color="black")
        few = marker if len(epochs) <= 30 else ""
        ax.plot(epochs, values, line, color=color, marker=few, markersize=3.5, label=label)
    if title == "Learning rate":
        ax.set_yscale("log")
        # Powers of ten would need mathematical text, which STYLE turns off because of class names.
        ax.yaxis.set_major_formatter("{x:.0e}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif ax.lines:
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    ax.grid(alpha=0.25)
