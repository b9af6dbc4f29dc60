"""Patches, neighbouring pixels of one class: small ones merged into their neighbours, all as polygons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry import shape

from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, InputError, Legend
from lulc.core.storage import rename_durably, temporary_folder, write_atomically
from lulc.core.windows import Window

CHUNK = 20_000
"""Polygons held in memory at once."""

STRIP = 2**20
"""Pixels whose patches are looked for together."""

UNCLASSIFIED_NAME = "unclassified"

EQUAL_AREA = "EPSG:6933"
"""Cylindrical equal-area projection in which areas of geographic grids are measured."""

Numbers = NDArray[np.int32]
"""Of runs of pixels or of patches, from 0."""


def merge_small_patches(classes: NDArray[np.uint8], size: int, strip: int = STRIP) -> None:
    """Give patches of fewer than `size` pixels the class of their largest neighbour, in place.

    The rule is that of GDAL's sieve filter: of neighbours of one size the first counts, row by row, above
    before left; where the largest neighbour is too small itself, its own largest neighbour takes its place,
    and so on; a patch that comes to none that is large enough stays.

    Parameters
    ----------
    classes : uint8 (y, x)
        Class numbers, in memory or memory-mapped; 255 is no data and stays so.
    size
        Pixels that a patch has at least; pixels that touch by a side belong together.
    strip
        Pixels looked at together; memory is 60 MB for the default, and 50 bytes for each patch of the map.
    """
    rows = max(1, strip // classes.shape[1])
    strips = [classes[row : row + rows] for row in range(0, classes.shape[0], rows)]
    patch, values, counts = _survey(strips)
    sizes = np.bincount(patch, counts).astype(np.int64)
    value = np.zeros(len(sizes), np.uint8)
    value[patch] = values
    sizes[value == IGNORE] = 0
    merged = value[_targets(_largest_neighbours(strips, patch, sizes, size), sizes, size)]
    for part, numbers in _numbered(strips, patch):
        part[...] = merged[numbers]


def _survey(strips: Sequence[NDArray[np.uint8]]) -> tuple[Numbers, NDArray[np.uint8], NDArray[np.int64]]:
    """Return number in the map, class and pixels of each patch of each strip, in order."""
    values, counts = [], []
    above, below = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    edge: tuple[NDArray[np.uint8], Numbers] | None = None
    first = 0
    for part in strips:
        numbers = _label(part)
        counts.append(np.bincount(numbers.ravel()))
        values.append(np.zeros(len(counts[-1]), np.uint8))
        values[-1][numbers] = part
        numbers += np.int32(first)
        if edge is not None:
            same = edge[0] == part[0]
            above.append(edge[1][same])
            below.append(numbers[0][same])
        edge = part[-1].copy(), numbers[-1].copy()
        first += len(counts[-1])
    patch = _join(np.concatenate(above), np.concatenate(below), first)
    return patch, np.concatenate(values), np.concatenate(counts)


def _numbered(
    strips: Sequence[NDArray[np.uint8]], patch: Numbers
) -> Iterator[tuple[NDArray[np.uint8], Numbers]]:
    """Each strip, and the number of the map's patch for each of its pixels, int32 (y, x)."""
    first = 0
    for part in strips:
        numbers = _label(part)
        count = int(numbers.max()) + 1
        yield part, patch[first : first + count][numbers]
        first += count


def _label(classes: NDArray[np.uint8]) -> Numbers:
    """Number of each pixel's patch within a strip, int32 (y, x) from 0."""
    begins = np.ones(classes.shape, bool)
    np.not_equal(classes[:, 1:], classes[:, :-1], out=begins[:, 1:])
    runs = (np.cumsum(begins.ravel(), dtype=np.int32) - np.int32(1)).reshape(classes.shape)
    # Two runs that touch do so first where one of them begins.
    touching = (classes[1:] == classes[:-1]) & (begins[1:] | begins[:-1])
    return _join(runs[:-1][touching], runs[1:][touching], int(runs[-1, -1]) + 1)[runs]


def _join(a: Numbers, b: Numbers, count: int) -> Numbers:
    """Group of each of `count` things, of which the pairs (a, b) belong together: int32 (count,)."""
    pairs = coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    return np.asarray(connected_components(pairs, directed=False)[1], np.int32)


def _largest_neighbours(
    strips: Sequence[NDArray[np.uint8]], patch: Numbers, sizes: NDArray[np.int64], size: int
) -> Numbers:
    """The largest neighbour of each patch below `size`, -1 where it has none: int32 (patch,)."""
    largest = np.full(len(sizes), -1, np.int32)
    last: Numbers | None = None
    for _, here in _numbered(strips, patch):
        up = np.concatenate([here[:1] if last is None else last, here[:-1]])
        left = np.concatenate([here[:, :1], here[:, :-1]], axis=1)
        last = here[-1:].copy()
        one, other, order = [], [], []
        for step, there in enumerate((up, left)):
            place = np.flatnonzero((here != there) & (sizes[here] > 0) & (sizes[there] > 0))
            pair = here.ravel()[place], there.ravel()[place]
            for mine, its in (pair, pair[::-1]):
                small = sizes[mine] < size
                one.append(mine[small])
                other.append(its[small])
                order.append(2 * place[small] + step)
        mine, its = np.concatenate(one), np.concatenate(other)
        best = np.lexsort((np.concatenate(order), -sizes[its], mine))
        mine, its = mine[best], its[best]
        leads = np.concatenate([[True], mine[1:] != mine[:-1]])[: len(mine)]
        mine, its = mine[leads], its[leads]
        before = largest[mine]
        better = (before < 0) | (sizes[before] < sizes[its])
        largest[mine[better]] = its[better]
    return largest


def _targets(largest: Numbers, sizes: NDArray[np.int64], size: int) -> Numbers:
    """The patch that each patch takes its class from: int32 (patch,)."""
    own = np.arange(len(sizes), dtype=np.int32)
    target = np.where(largest >= 0, largest, own)
    # Each round doubles the way gone; rings of small patches lead nowhere.
    for _ in range(len(sizes).bit_length()):
        target = target[target]
    return np.where(sizes[target] >= size, target, own)


def write_polygons(
    path: Path,
    read: Callable[[Window], np.ndarray],
    windows: Iterable[Window],
    grid: GridSpec,
    legend: Legend,
) -> None:
    """Write patches as polygons to a GeoPackage, whole or not at all.

    Parameters
    ----------
    path
        File to write; its layer has the fields class, name and area_m2.
    read
        Window to class numbers, uint8 (y, x), 255 where there is no data.
    windows
        Pieces of the map; patches are cut at their borders, so that memory stays that of one piece.
    grid, legend
        Of the map.
    """
    names = {0: UNCLASSIFIED_NAME} | {c.number: c.name for c in legend.classes}
    # SQLite keeps further files beside its own while it writes.
    with temporary_folder(path) as folder, write_atomically(path) as temporary:
        package = folder / path.name
        for number, frame in enumerate(_frames(read, windows, grid, names)):
            try:
                frame.to_file(package, driver="GPKG", layer=path.stem, mode="a" if number else "w")
            except RuntimeError as error:
                raise InputError(
                    f"cannot write '{path}', since GDAL stopped: {error}",
                    "See that its disk has room, and that files may be written to its folder.",
                ) from error
        rename_durably(package, temporary)


def _frames(
    read: Callable[[Window], np.ndarray], windows: Iterable[Window], grid: GridSpec, names: dict[int, str]
) -> Iterator[geopandas.GeoDataFrame]:
    found = _patches(read, windows, grid)
    first = True
    while (chunk := list(itertools.islice(found, CHUNK))) or first:
        numbers = [number for _, number in chunk]
        columns = {"class": np.array(numbers, np.int32), "name": [names[n] for n in numbers]}
        geometries = [shape(geometry) for geometry, _ in chunk]
        frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs=grid.crs or None)
        frame["area_m2"] = _square_metres(frame.geometry).round(2)
        yield frame
        first = False


def _patches(
    read: Callable[[Window], np.ndarray], windows: Iterable[Window], grid: GridSpec
) -> Iterator[tuple[dict[str, Any], int]]:
    for window in windows:
        classes = read(window)
        transform = grid.crop(window).transform
        for geometry, value in shapes(classes, classes != IGNORE, connectivity=4, transform=transform):
            yield geometry, int(value)


def _square_metres(geometry: geopandas.GeoSeries) -> Any:
    if geometry.crs is None:
        return geometry.area
    if geometry.crs.is_geographic:
        return geometry.to_crs(EQUAL_AREA).area
    return geometry.area * geometry.crs.axis_info[0].unit_conversion_factor ** 2
