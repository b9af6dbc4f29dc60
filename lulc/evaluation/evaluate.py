"""A map against its reference, or what it says alone, counted window by window.

Memory does not depend on the size of the map: what grows are matrices of classes and one decimated
picture of the map and of the reference.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lulc.config import EvaluateConfig
from lulc.core.grid import GridSpec
from lulc.core.schema import IGNORE, UNCLASSIFIED, InputError, Legend
from lulc.core.windows import Window, squares_of
from lulc.evaluation.measures.area_estimation import (
    allocate,
    check_free,
    check_strata,
    draw_sample,
    estimate,
    expected_accuracies,
    hectares_per_pixel,
    read_sample,
    sample_size,
    write_sample,
)
from lulc.evaluation.measures.label_errors import find_suspects
from lulc.evaluation.measures.metrics import Reliability, Scores, compare, count
from lulc.evaluation.measures.regions import Region, read_regions
from lulc.evaluation.measures.results import Areas, Change, Findings, Gathered
from lulc.evaluation.report.publish import FILES, LAST, is_report, own_folder, write_findings
from lulc.evaluation.report.views import Viewing, Views
from lulc.labels.labels import Labels, near_borders, open_labels
from lulc.labels.levels import levels_of
from lulc.labels.schemes import SCHEMES, Scheme, load_scheme
from lulc.maps.reader import REST, ClassMap, open_map
from lulc.rasters.masks import Masks, open_masks
from lulc.rasters.sources import Source, open_source

logger = logging.getLogger("lulc")

WINDOW = 512
"""Side of the windows that are counted together, a multiple of the block size of maps."""

GROUPS = 5
"""Groups of CORINE level 1."""

SAMPLE = "sample.gpkg"
"""Points to interpret, in the report's folder."""

HISTORY = "history.csv"
"""Epochs of a training, in its run folder."""


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
    """Compare a map with a reference, or with interpreted points alone, and write a report.

    Raises
    ------
    InputError
        If there is nothing to compare with, the report's folder holds a report and may not be overwritten,
        a file can't be read, grids or legends don't fit, or no pixel has both a map and a reference.
    """
    _check_asked(config)
    folder = Path(config.out)
    _check_folder(folder, config.overwrite)
    designs = _is_designing(config)
    if designs:
        # A run that was interrupted after it had drawn its points draws them again.
        check_free(folder / SAMPLE, overwrite=config.overwrite or _is_unfinished(folder))
    findings, views = measure(config)

    def write_more() -> list[Path]:
        written = [design(config, findings, folder / SAMPLE)] if designs else []
        return written + list(suspect(config, folder) if config.suspects is not None else ())

    written = write_findings(findings, views, folder, write_more)
    return EvaluationResult(folder, tuple(written), findings)


def _check_asked(config: EvaluateConfig) -> None:
    """Refuse a map with nothing to judge it by, and what only a reference can answer where there is none.

    Raises
    ------
    InputError
        As said.
    """
    if config.reference is not None:
        return
    if config.sample is None and config.sample_error is None and not config.design_sample:
        raise InputError(
            f"cannot judge '{config.map}', since neither a reference nor a sample is given, expected labels, "
            "interpreted points, or to be told how many to draw",
            "Type the label raster behind the map, or --sample sample.gpkg, or --design-sample 600 to draw "
            "points to interpret.",
        )
    asked = {
        "--compare": config.compare, "--regions": config.regions, "--suspects": config.suspects,
        "--label-field": config.label_field, "--pine": config.pine, "--spruce": config.spruce,
        "--resample": config.resample or None,
        "--border": None if config.border == EvaluateConfig.border else config.border,
    }  # fmt: skip
    idle = [name for name, value in asked.items() if value is not None]
    if idle:
        raise InputError(
            f"cannot take {', '.join(idle)}, since no reference is given, expected one: "
            "points are compared with the map class by class alone",
            f"Type the label raster behind '{config.map}', or leave out {', '.join(idle)}.",
        )


def _is_designing(config: EvaluateConfig) -> bool:
    """True where a sample is asked for; refuses one that can't be."""
    if config.design_sample < 0:
        raise InputError(
            f"cannot draw a sample of {config.design_sample} points, expected 1 or more",
            "Type --design-sample 600, or leave it out.",
        )
    if config.sample_error is not None and not 0 < config.sample_error < 0.5:
        raise InputError(
            f"cannot size a sample for a standard error of {config.sample_error}, "
            "expected above 0 and below 0.5",
            "Type --sample-error 0.01 for an interval of about two per cent to each side.",
        )
    return bool(config.design_sample) or config.sample_error is not None


def design(config: EvaluateConfig, findings: Findings, path: Path) -> Path:
    """Draw a stratified sample of the map's pixels, to be interpreted, into a GeoPackage.

    Parameters
    ----------
    config
        Number of points, or the standard error that they shall reach, and the seed.
    findings
        Mapped pixels, which share the points out, and the agreement with labels, from which the accuracy
        to expect follows.
    path
        File to write.
    """
    pixels = findings.areas.mapped[1:]
    points = config.design_sample
    if config.sample_error is not None:
        expected = expected_accuracies(findings.confusion)
        points = max(points, sample_size(pixels.astype(float), expected, config.sample_error))
    with ExitStack() as resources:
        inputs = open_inputs(config, resources)
        windows = squares_of(inputs.grid.extent, WINDOW)
        drawn = draw_sample(
            inputs.read_counted, windows, inputs.grid, pixels, allocate(points, pixels),
            np.random.default_rng(config.seed),
        )  # fmt: skip
    write_sample(drawn, path)
    logger.info(
        "%d points to interpret in '%s': fill in the field 'reference', then give --sample", len(drawn), path
    )
    return path


def suspect(config: EvaluateConfig, folder: Path) -> tuple[Path, Path]:
    """Write where the map contradicts the reference; see `lulc.evaluation.measures.label_errors`."""
    with ExitStack() as resources:
        inputs = open_inputs(config, resources)

        def read_labels(window: Window) -> NDArray[np.uint8]:
            labels, counting = inputs.read_reference(window), inputs.masks.read(window)
            return labels if counting is None else np.where(counting, labels, IGNORE).astype(np.uint8)

        return find_suspects(
            inputs.map, read_labels, folder, least=config.suspects or 0.0, regions=inputs.regions
        )


def measure(config: EvaluateConfig) -> tuple[Findings, Views]:
    """Compare a map with a reference, or with interpreted points alone; nothing is written.

    Raises
    ------
    InputError
        As `evaluate`, but for the folder.
    """
    _check_asked(config)
    with ExitStack() as resources:
        inputs = open_inputs(config, resources)
        counts = Counts(inputs, config.border)
        windows = list(squares_of(inputs.grid.extent, WINDOW))
        for window in tqdm(windows, desc="scoring", disable=not logger.isEnabledFor(logging.INFO)):
            counts.add(window)
        findings, views = counts.findings(config), counts.views()
    if config.reference is None:
        if not findings.areas.mapped.any():
            raise InputError(
                f"cannot judge '{config.map}', since no pixel that counts has a class there",
                "Check --mask, --bounds and --aoi.",
            )
    elif not findings.confusion.any():
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
    own_folder(folder).check(lambda: is_report(folder))
    present = [name for name in FILES if (folder / name).exists()]
    if present and not _is_unfinished(folder) and not overwrite:
        raise InputError(
            f"cannot write the report to '{folder}', since it holds {', '.join(present)} already",
            "Add --overwrite to replace that report, or give another folder.",
        )


def _is_unfinished(folder: Path) -> bool:
    """True where a report was begun and interrupted."""
    return own_folder(folder).is_marked and not (folder / LAST).exists()


@dataclass(frozen=True)
class Inputs:
    """Everything that is read window by window, opened and checked.

    Parameters
    ----------
    map, other
        The map, and the second map of a comparison.
    labels
        The reference on the map's grid, or None.
    translation
        uint8 (256,), the reference's class numbers to those of the map; all 255 without one.
    regions
        What is scored apart.
    masks
        Which pixels count.
    image
        Mosaic for the pictures.
    """

    map: ClassMap
    other: ClassMap | None
    labels: Labels | None
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
        return self.labels is not None and bool(self.labels.scheme.level1)

    def read_counted(self, window: Window) -> NDArray[np.uint8]:
        """Class numbers of the map, 255 where it has no data or pixels don't count."""
        mapped = self.map.read(window)
        counting = self.masks.read(window)
        return mapped if counting is None else np.where(counting, mapped, IGNORE).astype(np.uint8)

    def read_reference(self, window: Window) -> NDArray[np.uint8]:
        """The map's class numbers 1..N of the reference, 255 = ignore; everywhere without a reference."""
        if self.labels is None:
            return np.full(window.shape, IGNORE, np.uint8)
        return self.translation[self.labels.read(window)]


def open_inputs(config: EvaluateConfig, resources: ExitStack) -> Inputs:
    """Open all that the config names; `resources` closes it."""
    admitted = {"allow_vrt": config.allow_vrt, "allow_remote": config.allow_remote}
    given = load_scheme(config.scheme, config.codes) if config.scheme else None
    legend = given.legend if given else None
    the_map = resources.enter_context(open_map(config.map, legend, **admitted))
    grid = the_map.grid
    labels, translation = None, np.full(256, IGNORE, np.uint8)
    if config.reference is not None:
        labels = resources.enter_context(
            open_labels(
                config.reference, grid, given or _scheme_of(the_map, config),
                field=config.label_field, pine=config.pine, spruce=config.spruce, resample=config.resample,
                **admitted,
            )
        )  # fmt: skip
        translation = _translation(labels.legend, the_map.legend, config)
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
        translation,
        read_regions(config.regions, grid) if config.regions else [],
        resources.enter_context(open_masks(config, grid)),
        image,
    )


def _scheme_of(the_map: ClassMap, config: EvaluateConfig) -> Scheme:
    """The scheme by which a reference is read where none is named: that of the map's own legend.

    Raises
    ------
    InputError
        If the legend tells no codes: its numbers may be those of the reference, or may not.
    """
    legend = the_map.legend
    for name in SCHEMES:
        scheme = load_scheme(name, config.codes)
        if legend.name in (name, scheme.legend.name) and _agrees(legend, scheme.legend):
            return scheme
    hint = "Type --scheme with the scheme of the training: a name, or the CSV with its codes."
    if legend.classes[-1] == REST:
        raise InputError(
            f"cannot read '{config.reference}', since the map holds the single class '{legend.names[0]}', "
            "expected to be told how codes become classes",
            hint,
        )
    numbers = {code: c.number for c in legend.classes for code in c.sources}
    if not numbers:
        raise InputError(
            f"cannot read '{config.reference}', since the legend '{legend.name}' of the map has no source "
            "codes, expected to be told how codes become classes",
            hint,
        )
    return Scheme(legend.name, legend, {0: IGNORE, IGNORE: IGNORE, **numbers}, hint=hint)


def _agrees(legend: Legend, known: Legend) -> bool:
    """True where no class of a legend gathers other codes than the class of that name in a known one."""
    codes = {c.name: c.sources for c in known.classes}
    return all(c.sources in ((), codes.get(c.name)) for c in legend.classes)


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
        self._levels = levels_of(self._legend)
        self._level1_codes = np.zeros((GROUPS + 1, GROUPS + 1), np.int64)
        self._summed = [np.zeros((len(k.legend) + 1,) * 2, np.int64) for k in self._levels]
        self._mapped = np.zeros(256, np.int64)
        # Rows: this map wrong, right; columns: the second map wrong, right.
        self._right = np.zeros((2, 2), np.int64)
        self._reliability = Reliability(n)
        self._without_map = self._without_reference = 0
        self._viewing = Viewing(
            inputs.grid, n,
            with_image=inputs.image is not None, with_activations=inputs.map.has_activations,
            with_reference=inputs.labels is not None,
        )  # fmt: skip

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
        self._mapped += np.bincount((mapped if counting is None else mapped[counting]).ravel(), minlength=256)
        has_reference = reference != IGNORE
        scored = has_reference & (mapped != IGNORE)
        self._without_reference += int((~has_reference).sum())
        self._without_map += int((has_reference & ~scored).sum())
        self._count(window, scored, reference, mapped, near)
        if inputs.other:
            self._compare(window, scored, reference, mapped, inputs.other)
        activations = None
        if inputs.map.has_activations and (scored.any() or self._viewing.holds(window)):
            activations = inputs.map.read_activations(window)
            usable = scored & np.isfinite(activations).all(axis=-1)
            self._reliability.add(reference[usable], activations[usable])
        self._gather(window, scored, reference, mapped, activations)
        image = None
        if inputs.image and self._viewing.holds(window):
            image = _colors(inputs.image, inputs.grid, window, self._viewing.step)
        self._viewing.add(window, mapped, reference, image, activations)

    def _gather(
        self,
        window: Window,
        scored: NDArray[np.bool_],
        reference: NDArray[np.uint8],
        mapped: NDArray[np.uint8],
        activations: NDArray[np.float32] | None,
    ) -> None:
        """Count by CORINE level what the matrix of classes does not tell."""
        for level, summed in zip(self._levels, self._summed, strict=True):
            groups = level.gather_map(reference)
            if level.number == 1 and self._inputs.labels and self._inputs.level1_from_codes:
                groups = self._inputs.labels.read_level1(window)
                known = scored & (groups != IGNORE) & (groups != 0)
                found = level.gather_map(mapped)
                self._level1_codes += count(groups[known], found[known], GROUPS)
            if activations is not None:
                decided = np.where(mapped == UNCLASSIFIED, UNCLASSIFIED, level.decide(activations))
                known = scored & (groups != IGNORE) & (groups != 0) & (decided != IGNORE)
                summed += count(groups[known], decided[known], len(level.legend))

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

    def findings(self, config: EvaluateConfig) -> Findings:
        """The counts so far, with what a sample and a run folder add."""
        inputs = self._inputs
        change = None
        if inputs.other:
            (neither, second), (first, both) = self._right.tolist()
            change = Change(inputs.other.name, self._change, compare(first, second, both, neither))
        banded = self._border > 0 and inputs.labels is not None
        return Findings(
            map=inputs.map.name,
            reference=os.path.basename(inputs.labels.path) if inputs.labels else None,
            legend=self._legend,
            levels=self._gathered(),
            confusion=self._confusion,
            border=self._border,
            near=self._near if banded else None,
            far=self._confusion - self._near if banded else None,
            regions=tuple((r.name, m) for r, m in zip(inputs.regions, self._regions, strict=True)),
            calibration=self._reliability.result(),
            change=change,
            without_map=self._without_map,
            without_reference=self._without_reference,
            made=inputs.map.made,
            areas=self._areas(config.sample),
            training=_history_of(config.run) if config.run else None,
        )

    def _gathered(self) -> tuple[Gathered, ...]:
        result = []
        for level, summed in zip(self._levels, self._summed, strict=True):
            from_codes = level.number == 1 and self._inputs.level1_from_codes
            matrix = self._level1_codes if from_codes else level.gather_matrix(self._confusion)
            with_sums = summed if self._inputs.map.has_activations else None
            result.append(Gathered(level, matrix, from_codes, with_sums))
        return tuple(result)

    def _areas(self, sample: str | None) -> Areas:
        mapped, grid = self._mapped[: len(self._legend) + 1], self._inputs.grid
        hectares = hectares_per_pixel(grid) if grid.crs and grid.crs.is_projected else None
        if sample is None:
            return Areas(mapped, hectares)
        check_strata(sample, self._legend, grid, self._inputs.read_counted)
        matrix = read_sample(sample, self._legend)
        estimates = estimate(matrix, mapped[1:].astype(np.float64) * (hectares or 1.0))
        return Areas(mapped, hectares, matrix, estimates, os.path.basename(sample))

    def views(self) -> Views:
        """The pictures so far."""
        return self._viewing.views()


def _history_of(run: str) -> Path:
    path = Path(run) / HISTORY
    if not path.is_file():
        raise InputError(
            f"cannot show the training, since there is no '{path}', expected the run folder of the weights",
            "Give the folder that train_model.py wrote: --run runs/first",
        )
    return path


def _colors(image: Source, grid: GridSpec, window: Window, step: int) -> NDArray[np.float32]:
    """Red, green and blue of a mosaic, float32 (y, x, 3), NaN = no data or outside.

    Rows and columns are those of `window` whose numbers in `grid` are multiples of `step`.
    """
    names = list(image.names)
    true_color = ("B04", "B03", "B02")
    layers = [names.index(n) for n in true_color] if set(true_color) <= set(names) else [0, 1, 2]
    layers = [min(k, len(names) - 1) for k in layers]
    top, left = -window.row % step, -window.col % step
    row, col = image.grid.offset_of(grid)
    there = Window(window.row + row + top, window.col + col + left, window.height - top, window.width - left)
    # What lies left of or above the image is left out in whole steps.
    above, before = (step * max(0, -(n // step)) for n in (there.row, there.col))
    common = Window(
        there.row + above, there.col + before, there.height - above, there.width - before
    ).intersect(image.grid.extent)
    result = np.full((*(-(-side // step) for side in there.shape), 3), np.nan, np.float32)
    if common.height > 0 and common.width > 0:
        stored, valid = image.read_valid(layers, common, step)
        values = np.moveaxis(np.where(valid & (stored != 0), stored, np.nan), 0, -1)
        part = result[above // step :, before // step :][: values.shape[0], : values.shape[1]]
        part[...] = values
    return result
