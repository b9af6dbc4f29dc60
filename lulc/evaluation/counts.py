"""Counts over the windows of a map, from which every metric of a report follows."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lulc.core.areas import pixel_areas
from lulc.core.schema import IGNORE, UNCLASSIFIED
from lulc.core.windows import Window
from lulc.evaluation.inputs import Inputs, read_colors
from lulc.evaluation.measures.area_estimation import estimate
from lulc.evaluation.measures.metrics import Reliability, compare, count
from lulc.evaluation.measures.results import Areas, Change, Gathered, Results
from lulc.evaluation.measures.sample import Sample
from lulc.evaluation.report.views import Viewing, Views
from lulc.labels.labels import near_borders
from lulc.labels.levels import levels_of
from lulc.maps.reader import ClassMap
from lulc.rasters.channels import set_in_tags

GROUPS = 5  # number of groups of CORINE level 1
HECTARE = 10_000.0  # square metres
Classes = NDArray[np.uint8]  # class numbers (y, x)

Mask = NDArray[np.bool_]


class Counts:
    """Counts over windows.

    Training land is counted only in a separate matrix, and every other matrix counts held-out land.

    Parameters
    ----------
    border
        Width of the band along label borders in pixels; 0 for none.
    """

    def __init__(self, inputs: Inputs, border: int) -> None:
        self._inputs = inputs
        self._border = border
        self._legend = inputs.map.legend
        n = len(self._legend)
        self._confusion, self._seen, self._near, self._change = (
            np.zeros((n + 1, n + 1), np.int64) for _ in range(4)
        )
        self._regions = np.zeros((len(inputs.regions), n + 1, n + 1), np.int64)
        self._levels = levels_of(self._legend)
        self._level1_codes = np.zeros((GROUPS + 1, GROUPS + 1), np.int64)
        self._summed = [np.zeros((len(level.legend) + 1,) * 2, np.int64) for level in self._levels]
        self._mapped = np.zeros(256, np.int64)
        self._square_metres = np.zeros(256)
        # Rows: first map wrong, right; columns: second map wrong, right.
        self._right = np.zeros((2, 2), np.int64)
        self._reliability = Reliability(n)
        self._without_map = self._without_reference = 0
        self._viewing = Viewing(
            inputs.grid, n,
            with_image=inputs.image is not None, with_activations=inputs.map.has_activations,
            with_reference=inputs.labels is not None,
        )  # fmt: skip

    def add(self, window: Window) -> None:
        inputs = self._inputs
        around = window.grow(self._border).intersect(inputs.grid.extent)
        wide = inputs.read_reference(around)
        inside = window.relative_to(around).slices
        near = near_borders(wide, self._border)[inside]
        reference = np.ascontiguousarray(wide[inside])
        in_use = inputs.masks.read(window)
        if in_use is not None:
            reference[~in_use] = IGNORE
        mapped = inputs.map.read(window)
        self._count_areas(window, mapped, in_use)
        has_reference = reference != IGNORE
        scored = has_reference & (mapped != IGNORE)
        self._without_reference += int((~has_reference).sum())
        self._without_map += int((has_reference & ~scored).sum())
        held_out = self._count(window, scored, reference, mapped, near)
        if inputs.other:
            self._compare(window, held_out, reference, mapped, inputs.other)
        activations = None
        if inputs.map.has_activations and (held_out.any() or self._viewing.holds(window)):
            activations = inputs.map.read_activations(window)
            usable = held_out & np.isfinite(activations).all(axis=-1)
            self._reliability.add(reference[usable], activations[usable])
        self._gather(window, held_out, reference, mapped, activations)
        image = None
        if inputs.image and self._viewing.holds(window):
            shown = set_in_tags(inputs.map.tags)
            image = read_colors(inputs.image, inputs.grid, window, self._viewing.step, shown)
        self._viewing.add(window, mapped, reference, image, activations)

    def _count_areas(self, window: Window, mapped: Classes, in_use: Mask | None) -> None:
        """Sum pixels and geodesic areas of each class."""
        areas = pixel_areas(self._inputs.grid, window)
        if in_use is not None:
            mapped = mapped[in_use]
        self._mapped += np.bincount(mapped.ravel(), minlength=256)
        if areas is not None:
            weights = areas if in_use is None else areas[in_use]
            self._square_metres += np.bincount(mapped.ravel(), weights.ravel(), minlength=256)

    def _count(self, window: Window, scored: Mask, reference: Classes, mapped: Classes, near: Mask) -> Mask:
        """Count by class; returns the scored pixels on held-out land."""
        n = len(self._legend)
        held_out = scored.copy()
        for region in self._inputs.ground or ():
            within = region.within(window, self._inputs.grid)
            if within is not None:
                held_out &= ~within
        self._confusion += count(reference[held_out], mapped[held_out], n)
        self._near += count(reference[held_out & near], mapped[held_out & near], n)
        seen = scored & ~held_out
        self._seen += count(reference[seen], mapped[seen], n)
        for k, region in enumerate(self._inputs.regions):
            within = region.within(window, self._inputs.grid)
            if within is not None:
                self._regions[k] += count(reference[scored & within], mapped[scored & within], n)
        return held_out

    def _gather(
        self, window: Window, held_out: Mask, reference: Classes, mapped: Classes,
        activations: NDArray[np.float32] | None,
    ) -> None:  # fmt: skip
        """Count the matrices of CORINE levels that do not follow from the matrix of classes."""
        for level, summed in zip(self._levels, self._summed, strict=True):
            groups = level.gather_map(reference)
            if level.number == 1 and self._inputs.labels and self._inputs.level1_from_codes:
                groups = self._inputs.labels.read_level1(window)
                known = held_out & (groups != IGNORE) & (groups != 0)
                self._level1_codes += count(groups[known], level.gather_map(mapped)[known], GROUPS)
            if activations is not None:
                decided = np.where(mapped == UNCLASSIFIED, UNCLASSIFIED, level.decide(activations))
                known = held_out & (groups != IGNORE) & (groups != 0) & (decided != IGNORE)
                summed += count(groups[known], decided[known], len(level.legend))

    def _compare(
        self, window: Window, held_out: Mask, reference: Classes, mapped: Classes, second: ClassMap
    ) -> None:
        other = second.read(window)
        both = (mapped != IGNORE) & (other != IGNORE)
        self._change += count(mapped[both], other[both], len(self._legend))
        both &= held_out
        right = (mapped[both] == reference[both], other[both] == reference[both])
        np.add.at(self._right, tuple(r.astype(np.intp) for r in right), 1)

    def results(self, sample: Sample | None) -> Results:
        inputs = self._inputs
        change = None
        if inputs.other:
            (neither, second), (first, both) = self._right.tolist()
            change = Change(inputs.other.name, self._change, compare(first, second, both, neither))
        banded = self._border > 0 and inputs.labels is not None
        return Results(
            map=inputs.map.name,
            reference=os.path.basename(inputs.labels.path) if inputs.labels else None,
            read_as=inputs.labels.describe() if inputs.labels else {},
            legend=self._legend,
            levels=self._gathered(),
            confusion=self._confusion,
            seen=None if inputs.ground is None else self._seen,
            border=self._border,
            near=self._near if banded else None,
            far=self._confusion - self._near if banded else None,
            regions=tuple((r.name, m) for r, m in zip(inputs.regions, self._regions, strict=True)),
            calibration=self._reliability.result(),
            change=change,
            without_map=self._without_map,
            without_reference=self._without_reference,
            made=inputs.map.made,
            areas=self._areas(sample),
        )

    def _gathered(self) -> tuple[Gathered, ...]:
        result = []
        for level, summed in zip(self._levels, self._summed, strict=True):
            from_codes = level.number == 1 and self._inputs.level1_from_codes
            matrix = self._level1_codes if from_codes else level.gather_matrix(self._confusion)
            with_sums = summed if self._inputs.map.has_activations else None
            result.append(Gathered(level, matrix, from_codes, with_sums))
        return tuple(result)

    def _areas(self, sample: Sample | None) -> Areas:
        classes = slice(0, len(self._legend) + 1)
        mapped = self._mapped[classes]
        hectares = self._square_metres[classes] / HECTARE if self._square_metres.any() else None
        areas = Areas(mapped, hectares, sample)
        if sample is None:
            return areas
        return replace(areas, estimates=estimate(sample.matrix, areas.values[1:]))

    def views(self) -> Views:
        return self._viewing.views()
