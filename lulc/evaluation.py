"""A map against its reference, counted window by window.

Memory does not depend on the size of the map: what grows are matrices of classes and one decimated
picture of the map and of the reference.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lulc.accuracy import Reliability, Scores, aggregate, compare, count
from lulc.config import EvaluateConfig
from lulc.findings import FILES, Change, Findings, Views, write_findings
from lulc.grid import GridSpec
from lulc.labels import Labels, open_labels, tiles_of
from lulc.maps import REST, ClassMap, open_map
from lulc.masks import Masks, open_masks
from lulc.nomenclature import SCHEMES, Scheme, level1_of, load_scheme
from lulc.regions import Region, read_regions
from lulc.schema import IGNORE, InputError, Legend
from lulc.sources import Source, open_source
from lulc.windows import Window

logger = logging.getLogger("lulc")

WINDOW = 512
"""Side of the windows that are counted together, a multiple of the block size of maps."""

PICTURE = 1400
"""Longest side of the maps in pictures, in pixels."""

GROUPS = 5
"""Groups of CORINE level 1."""


@dataclass(frozen=True)
class EvaluationResult:
    """Where a report is, and what it found.

    Parameters
    ----------
    folder
        The report's folder.
    files
        What was written there.
    findings
        All counts, from which every figure follows.
    """

    folder: Path
    files: tuple[Path, ...]
    findings: Findings

    @property
    def scores(self) -> Scores:
        """Figures of all scored pixels."""
        return self.findings.scores


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Compare a map with a reference and write a report.

    Raises
    ------
    InputError
        If the report's folder holds a report and may not be overwritten, a file can't be read, grids or
        legends don't fit, or no pixel has both a map and a reference.
    """
    folder = Path(config.out)
    _check_folder(folder, config.overwrite)
    findings, views = measure(config)
    return EvaluationResult(folder, tuple(write_findings(findings, views, folder)), findings)


def measure(config: EvaluateConfig) -> tuple[Findings, Views]:
    """Compare a map with a reference; nothing is written.

    Raises
    ------
    InputError
        As `evaluate`, but for the folder.
    """
    with ExitStack() as resources:
        inputs = _open(config, resources)
        counts = Counts(inputs, config.border)
        windows = list(tiles_of(inputs.grid.extent, WINDOW))
        for window in tqdm(windows, desc="scoring", disable=not logger.isEnabledFor(logging.INFO)):
            counts.add(window)
        findings, views = counts.findings(), counts.views()
    if not findings.confusion.any():
        raise InputError(
            f"cannot score '{config.map}', since no pixel has both a class there and a class in "
            f"'{config.reference}'",
            "Check that both cover the same place, and --mask, --bounds, --aoi and --scheme.",
        )
    return findings, views


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"cannot write the report to '{folder}', since that is a file, expected a folder",
            "Give another folder: --out report/",
        )
    present = [name for name in FILES if (folder / name).exists()]
    if present and not overwrite:
        raise InputError(
            f"cannot write the report to '{folder}', since it holds {', '.join(present)} already",
            "Add --overwrite to replace that report, or give another folder.",
        )


@dataclass(frozen=True)
class Inputs:
    """Everything that is read window by window, opened and checked.

    Parameters
    ----------
    map, other
        The map, and the second map of a comparison.
    labels
        The reference on the map's grid.
    translation
        uint8 (256,), the reference's class numbers to those of the map.
    regions
        What is scored apart.
    masks
        Which pixels count.
    image
        Mosaic for the pictures.
    """

    map: ClassMap
    other: ClassMap | None
    labels: Labels
    translation: NDArray[np.uint8]
    regions: list[Region]
    masks: Masks
    image: Source | None

    @property
    def grid(self) -> GridSpec:
        """The grid of the map."""
        return self.map.grid

    @property
    def level1_from_codes(self) -> bool:
        """True where the reference's codes tell its level-1 group."""
        return bool(self.labels.scheme.level1)

    def read_reference(self, window: Window) -> NDArray[np.uint8]:
        """The map's class numbers 1..N of the reference, 255 = ignore."""
        return self.translation[self.labels.read(window)]


def _open(config: EvaluateConfig, resources: ExitStack) -> Inputs:
    admitted = {"allow_vrt": config.allow_vrt, "allow_remote": config.allow_remote}
    given = load_scheme(config.scheme, config.codes) if config.scheme else None
    legend = given.legend if given else None
    the_map = resources.enter_context(open_map(config.map, legend, **admitted))
    grid = the_map.grid
    labels = resources.enter_context(
        open_labels(
            config.reference, grid, given or _scheme_of(the_map.legend, config.codes),
            field=config.label_field, pine=config.pine, spruce=config.spruce, resample=config.resample,
            **admitted,
        )
    )  # fmt: skip
    other = None
    if config.compare:
        other = resources.enter_context(open_map(config.compare, legend, **admitted))
        _check_same(the_map, other, config)
    image = None
    if config.image:
        image = resources.enter_context(open_source(config.image, **admitted))
        if not image.grid.is_aligned(grid):
            raise InputError(
                f"cannot show '{config.image}' beside the map, since its grid is\n  {image.grid.describe()}\n"
                f"expected pixels of\n  {grid.describe()}",
                "Leave out --image, or give the mosaic from which the map was made.",
            )
    return Inputs(
        the_map,
        other,
        labels,
        _translation(labels.legend, the_map.legend, config),
        read_regions(config.regions, grid) if config.regions else [],
        resources.enter_context(open_masks(config, grid)),
        image,
    )


def _scheme_of(legend: Legend, codes: str) -> Scheme:
    """The scheme by which a reference is read where none is named: that of the map's own legend."""
    if legend.name in SCHEMES:
        return load_scheme(legend.name, codes)
    if legend.classes[-1] == REST:
        raise InputError(
            f"cannot read the reference, since the map holds the single class '{legend.names[0]}', "
            "expected to be told how codes become classes",
            "Type --scheme with the scheme of the training, e.g. --scheme kaakonkulma-13.",
        )
    numbers = {c.number: c.number for c in legend.classes}
    hint = "Name the scheme of the reference: --scheme NAME, or a CSV with its codes."
    return Scheme(legend.name, legend, {0: IGNORE, IGNORE: IGNORE} | numbers, hint=hint)


def _translation(reference: Legend, mapped: Legend, config: EvaluateConfig) -> NDArray[np.uint8]:
    """uint8 (256,): class number of the reference to class number of the map, 255 = ignore."""
    table = np.full(256, IGNORE, np.uint8)
    if reference.names == mapped.names:
        numbers = np.arange(1, len(mapped) + 1)
        table[numbers] = numbers
    elif len(mapped) == 2 and len(set(mapped.names) & set(reference.names)) == 1:
        # One class against the rest: all others of the reference are the rest.
        single = next(c for c in mapped.classes if c.name in reference.names)
        table[1 : len(reference) + 1] = 3 - single.number
        table[reference.names.index(single.name) + 1] = single.number
    else:
        raise InputError(
            f"cannot compare '{config.map}' with '{config.reference}', since the map has the classes "
            f"{', '.join(mapped.names)}, and the reference {', '.join(reference.names)}",
            "Name the scheme by which the map was trained: --scheme NAME.",
        )
    return table


def _check_same(first: ClassMap, second: ClassMap, config: EvaluateConfig) -> None:
    if not first.grid.matches(second.grid):
        raise InputError(
            f"cannot compare '{config.map}' with '{config.compare}', since their grids are\n"
            f"  {first.grid.describe()}\n  {second.grid.describe()}\nexpected the same",
            "Give two maps of the same mosaic.",
        )
    if first.legend.names != second.legend.names:
        raise InputError(
            f"cannot compare '{config.map}' with '{config.compare}', since their classes are "
            f"{', '.join(first.legend.names)} and {', '.join(second.legend.names)}, expected the same",
            "Give two maps with one legend.",
        )


def near_borders(labels: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Pixels from which another class lies within `width` pixels in any of the 8 directions.

    Parameters
    ----------
    labels
        uint8 (y, x), class numbers 1..254, 255 ignore: not a class, so it makes no border.
    width
        Pixels; 1 marks the pixels on both sides of each border.

    Returns
    -------
    bool (y, x)

    Examples
    --------
    >>> near_borders(np.array([[1, 1, 1, 2, 2]], "u1"), 1).tolist()
    [[False, False, True, True, False]]
    """
    if width == 0:
        return np.zeros(labels.shape, bool)
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # 255 is the neutral element of the minimum, 0 that of the maximum.
    lowest = cv2.erode(labels, square)
    highest = cv2.dilate(np.where(labels == IGNORE, 0, labels).astype(np.uint8), square)
    return np.asarray((lowest != highest) & (labels != IGNORE))


class Counts:
    """What is counted over the windows of a map.

    Parameters
    ----------
    inputs
        What is read.
    border
        Width of the band along label borders in pixels; 0 for none.
    """

    def __init__(self, inputs: Inputs, border: int) -> None:
        if border < 0:
            raise InputError(
                f"cannot score a border of {border} pixels, expected 0 or more", "Type --border 0 for none."
            )
        self._inputs = inputs
        self._border = border
        self._legend = inputs.map.legend
        n = len(self._legend)
        self._confusion, self._near, self._change = (np.zeros((n + 1, n + 1), np.int64) for _ in range(3))
        self._regions = np.zeros((len(inputs.regions), n + 1, n + 1), np.int64)
        self._groups = np.concatenate([[0], level1_of(self._legend)]).astype(np.uint8)
        self._level1 = np.zeros((GROUPS + 1, GROUPS + 1), np.int64)
        # Rows: this map wrong, right; columns: the second map wrong, right.
        self._right = np.zeros((2, 2), np.int64)
        self._reliability = Reliability(n)
        self._without_map = self._without_reference = 0
        self._step = max(1, -(-max(inputs.grid.shape) // PICTURE))
        shape = tuple(-(-side // self._step) for side in inputs.grid.shape)
        self._map_view, self._reference_view = (np.full(shape, IGNORE, np.uint8) for _ in range(2))
        self._image_view = np.full((*shape, 3), np.nan, np.float32)

    def add(self, window: Window) -> None:
        """Count the pixels of a window."""
        inputs = self._inputs
        around = Window(
            window.row - self._border, window.col - self._border,
            window.height + 2 * self._border, window.width + 2 * self._border,
        ).intersect(inputs.grid.extent)  # fmt: skip
        wide = inputs.read_reference(around)
        inside = window.relative_to(around).slices
        near = near_borders(wide, self._border)[inside]
        reference = np.ascontiguousarray(wide[inside])
        counting = inputs.masks.read(window)
        if counting is not None:
            reference[~counting] = IGNORE
        mapped = inputs.map.read(window)
        has_reference = reference != IGNORE
        scored = has_reference & (mapped != IGNORE)
        self._without_reference += int((~has_reference).sum())
        self._without_map += int((has_reference & ~scored).sum())
        self._count(window, scored, reference, mapped, near)
        if inputs.level1_from_codes:
            groups = inputs.labels.read_level1(window)
            known = scored & (groups != IGNORE)
            self._level1 += count(groups[known], self._groups[mapped[known]], GROUPS)
        if inputs.other:
            self._compare(window, scored, reference, mapped, inputs.other)
        if inputs.map.has_activations and scored.any():
            activations = inputs.map.read_activations(window)
            usable = scored & np.isfinite(activations).all(axis=-1)
            self._reliability.add(reference[usable], activations[usable])
        self._show(window, mapped, reference)

    def _count(
        self,
        window: Window,
        scored: NDArray[np.bool_],
        reference: NDArray[np.uint8],
        mapped: NDArray[np.uint8],
        near: NDArray[np.bool_],
    ) -> None:
        n = len(self._legend)
        self._confusion += count(reference[scored], mapped[scored], n)
        self._near += count(reference[scored & near], mapped[scored & near], n)
        for k, region in enumerate(self._inputs.regions):
            within = region.within(window, self._inputs.grid)
            if within is not None:
                self._regions[k] += count(reference[scored & within], mapped[scored & within], n)

    def _compare(
        self,
        window: Window,
        scored: NDArray[np.bool_],
        reference: NDArray[np.uint8],
        mapped: NDArray[np.uint8],
        second: ClassMap,
    ) -> None:
        other = second.read(window)
        both = (mapped != IGNORE) & (other != IGNORE)
        self._change += count(mapped[both], other[both], len(self._legend))
        both &= scored
        right = (mapped[both] == reference[both], other[both] == reference[both])
        np.add.at(self._right, tuple(r.astype(np.intp) for r in right), 1)

    def _show(self, window: Window, mapped: NDArray[np.uint8], reference: NDArray[np.uint8]) -> None:
        """Keep every `step`-th row and column of the grid for the pictures."""
        step = self._step
        top, left = -window.row % step, -window.col % step
        if top >= window.height or left >= window.width:
            return
        inside = (slice(top, None, step), slice(left, None, step))
        row, col = (window.row + top) // step, (window.col + left) // step
        height, width = mapped[inside].shape
        place = (slice(row, row + height), slice(col, col + width))
        self._map_view[place] = mapped[inside]
        self._reference_view[place] = reference[inside]
        if self._inputs.image:
            self._image_view[place] = _colors(self._inputs.image, self._inputs.grid, window)[inside]

    def findings(self) -> Findings:
        """The counts so far."""
        inputs = self._inputs
        level1: NDArray[np.int64] | None = None
        if self._groups.any():
            by_class = aggregate(self._confusion, self._groups.astype(np.intp), GROUPS)
            level1 = self._level1 if inputs.level1_from_codes else by_class
        change = None
        if inputs.other:
            (neither, second), (first, both) = self._right.tolist()
            change = Change(inputs.other.name, self._change, compare(first, second, both, neither))
        banded = self._border > 0
        return Findings(
            map=inputs.map.name,
            reference=os.path.basename(inputs.labels.path),
            legend=self._legend,
            level1_legend=load_scheme("clc-level1").legend,
            confusion=self._confusion,
            level1=level1,
            level1_from_codes=inputs.level1_from_codes,
            border=self._border,
            near=self._near if banded else None,
            far=self._confusion - self._near if banded else None,
            regions=tuple((r.name, m) for r, m in zip(inputs.regions, self._regions, strict=True)),
            calibration=self._reliability.result(),
            change=change,
            without_map=self._without_map,
            without_reference=self._without_reference,
            made=inputs.map.made,
        )

    def views(self) -> Views:
        """The pictures so far."""
        image = stretch(self._image_view) if self._inputs.image else None
        return Views(self._inputs.grid, self._map_view, self._reference_view, image)


def _colors(image: Source, grid: GridSpec, window: Window) -> NDArray[np.float32]:
    """Red, green and blue of a mosaic, float32 (y, x, 3), NaN = no data or outside."""
    names = list(image.names)
    true_color = ("B04", "B03", "B02")
    layers = [names.index(n) for n in true_color] if set(true_color) <= set(names) else [0, 1, 2]
    layers = [min(k, len(names) - 1) for k in layers]
    row, col = image.grid.offset_of(grid)
    there = Window(window.row + row, window.col + col, window.height, window.width)
    common = there.intersect(image.grid.extent)
    result = np.full((*window.shape, 3), np.nan, np.float32)
    if common.height and common.width:
        values = np.moveaxis(image.read(layers, common), 0, -1).astype(np.float32)
        nodata = [image.nodata[k] for k in layers]
        invalid = (values == [np.nan if v is None else v for v in nodata]) | (values == 0)
        result[common.relative_to(there).slices] = np.where(invalid, np.nan, values)
    return result


def stretch(colors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours uint8 (y, x, 3) of reflectances: 2 % of each end saturated, white where there is none."""
    result = np.full(colors.shape, 255, np.uint8)
    for k in range(colors.shape[-1]):
        plane = colors[..., k]
        valid = np.isfinite(plane)
        if valid.any():
            low, high = np.percentile(plane[valid], (2, 98))
            scaled = (plane[valid] - low) / max(high - low, 1e-6)
            result[..., k][valid] = np.clip(255 * scaled, 0, 255).astype(np.uint8)
    return result
