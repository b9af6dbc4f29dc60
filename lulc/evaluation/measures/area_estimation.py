"""Areas and accuracies with confidence intervals, from a stratified random sample of interpreted points.

A pixel count is no area: it carries the errors of the map. The map's classes serve as strata instead;
points are drawn in each, interpreted, and their confusion matrix corrects the mapped areas.

References
----------
Olofsson, P., Foody, G. M., Herold, M., Stehman, S. V., Woodcock, C. E., Wulder, M. A. (2014). Good
practices for estimating area and assessing accuracy of land change. Remote Sensing of Environment 148,
42-57. Equation numbers are those of this paper.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.grid import GridSpec
from lulc.core.removal import remove_temporary
from lulc.core.schema import InputError, Legend
from lulc.core.storage import write_atomically
from lulc.core.windows import Window

if TYPE_CHECKING:
    import geopandas

Z95 = 1.96
"""Half the width of a 95 % interval in standard errors, as rounded in the paper."""

LAYER = "sample"
ReadClasses = Callable[[Window], NDArray[np.uint8]]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, in the unit of the value."""

    value: float
    standard_error: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        return Z95 * self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return (self.value - self.half_width, self.value + self.half_width)

    def to_json(self) -> dict[str, Any] | None:
        """Value, standard error and interval as JSON-ready data; None where the value is not defined."""
        if not np.isfinite([self.value, self.standard_error]).all():
            return None
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True)
class AreaEstimates:
    """What a stratified sample says about a map.

    Parameters
    ----------
    overall
        Overall accuracy.
    users, producers
        User's (precision) and producer's (recall) accuracy of each class; NaN where a class is not
        mapped, or was never found.
    areas
        Area of each class, in the unit of the mapped areas.
    """

    overall: Estimate
    users: tuple[Estimate, ...]
    producers: tuple[Estimate, ...]
    areas: tuple[Estimate, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON-ready data."""
        lists = {"users": self.users, "producers": self.producers, "areas": self.areas}
        return {"overall": self.overall.to_json()} | {n: [e.to_json() for e in v] for n, v in lists.items()}


def estimate(sample: NDArray[np.int64], mapped: NDArray[np.float64]) -> AreaEstimates:
    """Estimate accuracy and area from a stratified random sample.

    Parameters
    ----------
    sample
        Points (class, class): rows the map's class, which is the stratum, columns the reference.
    mapped
        Mapped area of each class (class,), in any unit.

    Raises
    ------
    InputError
        If a mapped class has fewer than two points.
    """
    counts, mapped = np.asarray(sample, np.float64), np.asarray(mapped, np.float64)
    points = counts.sum(axis=1)
    _check_strata(points, mapped)
    total = mapped.sum()
    weights = mapped / total
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(mapped[:, None] > 0, counts / points[:, None], 0.0)
        # Variance of each share within its stratum: the term that eqs 5, 6, 7 and 10 have in common.
        spread = np.where(mapped[:, None] > 0, shares * (1 - shares) / (points[:, None] - 1), 0.0)
        right, right_spread = np.diag(shares), np.diag(spread)
        proportions = weights @ shares  # eq 9
        producers = weights * right / proportions  # eq 3
        elsewhere = (weights**2) @ (spread * ~np.eye(len(counts), dtype=bool))
        producer_variance = (
            (weights * (1 - producers)) ** 2 * right_spread + producers**2 * elsewhere
        ) / proportions**2  # eq 7
    users = np.where(mapped > 0, right, np.nan)
    return AreaEstimates(
        overall=Estimate(float(weights @ right), float(np.sqrt(weights**2 @ right_spread))),  # eqs 1, 5
        users=_estimates(users, np.where(mapped > 0, right_spread, np.nan)),  # eqs 2, 6
        producers=_estimates(producers, producer_variance),
        areas=_estimates(total * proportions, total**2 * (weights**2 @ spread)),  # eqs 10, 11
    )


def _estimates(values: NDArray[np.float64], variances: NDArray[np.float64]) -> tuple[Estimate, ...]:
    return tuple(Estimate(float(v), float(s)) for v, s in zip(values, np.sqrt(variances), strict=True))


def _check_strata(points: NDArray[np.float64], mapped: NDArray[np.float64]) -> None:
    few = [int(i) + 1 for i in np.flatnonzero((mapped > 0) & (points < 2))]
    astray = [int(i) + 1 for i in np.flatnonzero((mapped <= 0) & (points > 0))]
    if few or not mapped.sum() > 0:
        raise InputError(
            f"cannot estimate areas, since the mapped classes {few} have fewer than 2 points, "
            "expected at least 2 in each, better 50",
            "Interpret more points there, or merge rare classes before sampling.",
        )
    if astray:
        raise InputError(
            f"cannot estimate areas, since points lie in the classes {astray}, which the map does not have",
            "Give the mapped areas of the map from which the points were drawn.",
        )


def sample_size(
    mapped: NDArray[np.float64], expected: NDArray[np.float64], standard_error: float = 0.01
) -> int:
    """Points needed for an overall accuracy of a given standard error (eq 13, large population).

    Parameters
    ----------
    mapped
        Mapped area of each class (class,).
    expected
        User's accuracy that is expected of each class, 0..1.
    standard_error
        Wanted standard error of the overall accuracy.

    Examples
    --------
    The worked example of the paper:

    >>> sample_size(np.array([2, 1.5, 32, 64.5]), np.array([0.7, 0.6, 0.9, 0.95]))
    641
    """
    weights = np.asarray(mapped, np.float64) / np.sum(mapped)
    spread = np.sqrt(np.asarray(expected) * (1 - np.asarray(expected)))
    # Rounding first keeps a sum such as 3.0000000000000004 from asking for a fourth point.
    return int(np.ceil(round(float((weights @ spread / standard_error) ** 2), 6)))


def expected_accuracies(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """User's accuracies (class,) to expect, from a comparison with labels, for `sample_size`.

    Labels are no sample of interpreted points, and their figures only a guess: kept within 0.5 and 0.95,
    and 0.75 where no pixel was compared.

    Parameters
    ----------
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified.
    """
    mapped = confusion[:, 1:].sum(axis=0)
    hits = np.diag(confusion)[1:]
    shares = np.divide(hits, mapped, out=np.full(len(mapped), 0.75), where=mapped > 0)
    return np.clip(shares, 0.5, 0.95)


def allocate(points: int, pixels: NDArray[np.int64], minimum: int = 50) -> NDArray[np.int64]:
    """Share points among strata: at least `minimum` in each, the rest in proportion to the area.

    This is the compromise of section 5.1.1 of the paper between equal shares, which serve the user's
    accuracies, and proportional ones, which serve overall accuracy and areas.

    Parameters
    ----------
    points
        Points in all; more are given where the minima alone need more.
    pixels
        Mapped pixels of each class (class,); no stratum gets more points than it has pixels.
    minimum
        Points of the smallest strata.

    Examples
    --------
    >>> allocate(641, np.array([200_000, 150_000, 3_200_000, 6_450_000]), 75).tolist()
    [75, 75, 163, 328]
    """
    pixels = np.asarray(pixels, np.int64)
    least = np.minimum(minimum, pixels)
    fixed = pixels <= 0
    while True:
        free = max(0, points - int(least[fixed].sum()))
        ideal = np.where(fixed, 0.0, free * pixels / max(1, pixels[~fixed].sum()))
        small = ~fixed & (ideal < least)
        if not small.any():
            break
        fixed = fixed | small
    result = np.where(fixed, least, np.minimum(np.floor(ideal), pixels)).astype(np.int64)
    order = np.argsort(-(ideal - np.floor(ideal)), kind="stable")
    for i in order:
        if result.sum() < points and not fixed[i] and result[i] < pixels[i]:
            result[i] += 1
    return result


def count_classes(read: ReadClasses, windows: Iterable[Window], classes: int) -> NDArray[np.int64]:
    """Mapped pixels of the classes 1..N (class,), read window by window."""
    total = np.zeros(256, np.int64)
    for window in windows:
        total += np.bincount(read(window).ravel(), minlength=256)
    return total[1 : classes + 1]


def hectares_per_pixel(grid: GridSpec) -> float:
    """Area of a pixel.

    Raises
    ------
    InputError
        If the CRS counts degrees, where pixels differ in area.
    """
    if not grid.crs or not grid.crs.is_projected:
        raise InputError(
            f"cannot compute areas, since the map has no projected CRS ({grid.describe()}), "
            "expected one in metres",
            "Reproject the map to an equal-area CRS such as EPSG:3035, with nearest neighbour.",
        )
    x, y = grid.pixel_size
    return x * y * float(grid.crs.linear_units_factor[1]) ** 2 / 10_000


def draw_sample(
    read: ReadClasses,
    windows: Iterable[Window],
    grid: GridSpec,
    pixels: NDArray[np.int64],
    allocation: NDArray[np.int64],
    rng: np.random.Generator,
) -> geopandas.GeoDataFrame:
    """Draw a stratified random sample of pixels, without replacement, window by window.

    Parameters
    ----------
    read
        Gives the class numbers uint8 (y, x) of a window.
    windows
        Windows that tile the map, in the order in which `pixels` was counted.
    grid
        Grid of the map.
    pixels, allocation
        Mapped pixels and wanted points of each class (class,).
    rng
        Source of randomness.

    Returns
    -------
    GeoDataFrame
        Pixel centres with the columns id (in random order, so that the sequence tells nothing about
        the map's class), stratum (the map's class) and reference (empty, to be interpreted).
    """
    import geopandas
    import pandas as pd

    # Choosing ranks first, then meeting them in passing, needs memory for the sample alone.
    ranks = [
        np.sort(rng.choice(int(n), int(k), replace=False)) for n, k in zip(pixels, allocation, strict=True)
    ]
    seen = np.zeros(len(pixels), np.int64)
    found: list[tuple[int, int, int]] = []
    for window in windows:
        classes = read(window).ravel()
        for k, chosen in enumerate(ranks):
            places = np.flatnonzero(classes == k + 1)
            low, high = np.searchsorted(chosen, (seen[k], seen[k] + len(places)))
            for place in places[chosen[low:high] - seen[k]]:
                row, col = divmod(int(place), window.width)
                found.append((k + 1, window.row + row, window.col + col))
            seen[k] += len(places)
    shuffled = [found[i] for i in rng.permutation(len(found))]
    centres = [grid.transform @ (col + 0.5, row + 0.5) for _, row, col in shuffled]
    return geopandas.GeoDataFrame(
        {
            "id": np.arange(1, len(shuffled) + 1),
            "stratum": [stratum for stratum, _, _ in shuffled],
            "reference": pd.array([None] * len(shuffled), dtype="Int32"),
        },
        geometry=geopandas.points_from_xy(*np.reshape(centres, (-1, 2)).T),
        crs=grid.crs.to_wkt(),
    )


def write_sample(points: geopandas.GeoDataFrame, path: str | os.PathLike[str]) -> None:
    """Write points to interpret as GeoPackage: fill in the field `reference` with class numbers."""
    with write_atomically(path) as temporary:
        # The driver makes its own file, and wants none of that name to be there.
        remove_temporary(temporary)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The filename extension should be 'gpkg'")
            points.to_file(temporary, layer=LAYER, driver="GPKG")


def read_points(path: str | os.PathLike[str], legend: Legend) -> geopandas.GeoDataFrame:
    """Interpreted points, each with a stratum and a reference of the legend.

    Raises
    ------
    InputError
        If the file is no sample, or points are not interpreted, or have class numbers that the legend
        doesn't know.
    """
    import geopandas

    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read the sample, since there is no file '{path}'", "Check the path.")
    try:
        points = geopandas.read_file(path, layer=LAYER)
    except Exception as error:  # pyogrio has several kinds for files that it can't read
        raise InputError(
            f"cannot read the sample '{path}', since it has no readable layer '{LAYER}' ({error})",
            "Give the GeoPackage that was drawn for this map.",
        ) from error
    missing = {"stratum", "reference"} - set(points.columns)
    if missing:
        raise InputError(
            f"cannot read the sample '{path}', since it lacks the fields {sorted(missing)}",
            "Give the GeoPackage that was drawn for this map.",
        )
    known = range(1, len(legend) + 1)
    bad = points[~(points["stratum"].isin(known) & points["reference"].isin(known))]
    if len(bad):
        values = sorted({str(v) for v in bad["reference"]})[:10]
        raise InputError(
            f"cannot use the sample '{path}', since {len(bad)} of {len(points)} points have the reference "
            f"{', '.join(values)}, expected class numbers 1..{len(legend)}",
            "Interpret these points, and fill in their field 'reference'.",
        )
    return points


def read_sample(path: str | os.PathLike[str], legend: Legend) -> NDArray[np.int64]:
    """The confusion matrix of interpreted points.

    Returns
    -------
    int64 (class, class)
        Rows the map's class, columns the reference, as `estimate` takes it.

    Raises
    ------
    InputError
        As `read_points`.
    """
    points = read_points(path, legend)
    matrix = np.zeros((len(legend), len(legend)), np.int64)
    np.add.at(matrix, (points["stratum"].astype(int) - 1, points["reference"].astype(int) - 1), 1)
    return matrix


def check_strata(path: str | os.PathLike[str], legend: Legend, grid: GridSpec, read: ReadClasses) -> None:
    """Refuse a sample that was drawn from another map.

    Parameters
    ----------
    path, legend
        As in `read_points`.
    grid, read
        Grid of the map, and class numbers uint8 (y, x) of a window.

    Raises
    ------
    InputError
        If a point lies outside the map, or where the map has another class than its stratum.
    """
    points = read_points(path, legend)
    if points.crs is not None and points.crs.to_wkt() != grid.crs.to_wkt():
        points = points.to_crs(grid.crs.to_wkt())
    cols, rows = ~grid.transform @ (points.geometry.x.to_numpy(), points.geometry.y.to_numpy())
    strata = points["stratum"].astype(int)
    astray = 0
    for row, col, stratum in zip(np.floor(rows), np.floor(cols), strata, strict=True):
        pixel = Window(int(row), int(col), 1, 1).intersect(grid.extent)
        astray += not pixel.height or not pixel.width or int(read(pixel)[0, 0]) != stratum
    if astray:
        raise InputError(
            f"cannot use the sample '{path}', since {astray} of {len(points)} points lie where the map has "
            "another class than their stratum, expected points that were drawn from this map",
            "Give the map from which they were drawn, with the same --mask, --bounds and --aoi.",
        )


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse to replace a sample: it may hold days of interpretation.

    Raises
    ------
    InputError
        If there is a file and `overwrite` is not set, or a point in it has a reference.
    """
    import geopandas

    path = Path(path)
    if not path.exists():
        return
    try:
        begun = overwrite and geopandas.read_file(path, layer=LAYER)["reference"].notna().any()
    except Exception:  # what can't be read may be anything
        begun = True
    if begun or not overwrite:
        raise InputError(
            f"cannot draw a sample into '{path}', since there is one already"
            + (", with points that were interpreted" if overwrite else ""),
            f"Use it: --sample {path}. Or move it away.",
        )
