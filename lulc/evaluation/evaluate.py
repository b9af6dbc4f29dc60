"""Score a map against a reference or interpreted points, or describe it alone, and write a report.

Memory does not depend on the size of the map: matrices of classes grow, and one decimated picture of the map
and of the reference.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lulc.config import EvaluateConfig
from lulc.core.schema import IGNORE, InputError
from lulc.core.windows import Window, squares_of
from lulc.evaluation.counts import Counts
from lulc.evaluation.inputs import NO_ARRAYS, InMemory, open_inputs
from lulc.evaluation.measures.area_estimation import allocate, expected_accuracies, sample_size
from lulc.evaluation.measures.label_errors import find_label_errors
from lulc.evaluation.measures.results import MACRO, Results
from lulc.evaluation.measures.sample import check_free, draw_sample, read_sample, write_sample
from lulc.evaluation.report.publish import FILES, LAST, is_report, own_folder, write_report
from lulc.evaluation.report.sections import Imprint
from lulc.evaluation.report.views import Views
from lulc.evaluation.tables import Evaluation
from lulc.models.card import load_card
from lulc.models.weights import FEW_LABELS

logger = logging.getLogger("lulc")

WINDOW = 512
"""Side of the windows that are counted together, a multiple of the block size of maps."""

SAMPLE = "sample.gpkg"
"""Points to interpret, in the report's folder."""

HISTORY = "history.csv"
"""Epochs of a training, in its run folder."""

BASELINE_CARD = "baseline.json"
"""Card of the random forest beside a training, in its run folder."""

PARTS = ("forest", "small", "network")
"""F1 of models by class that this card may have."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Evaluation):
    """Path and results of a report."""

    folder: Path
    files: tuple[Path, ...]
    imprint: Imprint

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.imprint), **self.results.to_json()}


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Write a report on a map: against a reference, against interpreted points, or on the map alone.

    Raises
    ------
    InputError
        If the report's folder holds a report and may not be overwritten, a file can't be read, grids or
        legends don't fit, no pixel has both a map and a reference, or an option lacks what it needs.
    """
    folder = Path(config.out)
    _check_folder(folder, config.overwrite)
    designs = _is_designing(config)
    if designs:
        # A run that was interrupted after it had drawn its points draws them again.
        check_free(folder / SAMPLE, overwrite=config.overwrite or _is_unfinished(folder))
    results, views = measure(config)

    def write_more() -> list[Path]:
        written = design(config, results, folder / SAMPLE) if designs else []
        return written + list(list_label_errors(config, folder) if config.label_errors is not None else ())

    imprint = Imprint(config.title, config.author, config.date, config.licence)
    written = write_report(results, views, folder, imprint, write_more)
    return EvaluationResult(folder=folder, files=tuple(written), results=results, imprint=imprint)


def _is_designing(config: EvaluateConfig) -> bool:
    """Return True if a sample is to be drawn."""
    return bool(config.design_sample) or config.sample_error is not None


def design(config: EvaluateConfig, results: Results, path: Path) -> list[Path]:
    """Draw a stratified sample of the map's pixels, to be interpreted, into a GeoPackage.

    Parameters
    ----------
    results
        Mapped pixels, which share the points out, and the agreement with labels, from which the accuracy
        to expect follows.

    Returns
    -------
    list of Path
        The points, and the table with their strata.
    """
    pixels = results.areas.mapped[1:]
    points = config.design_sample
    if config.sample_error is not None:
        expected = expected_accuracies(results.confusion)
        points = max(points, sample_size(results.areas.values[1:], expected, config.sample_error))
    with ExitStack() as resources:
        inputs = open_inputs(config, resources)
        windows = squares_of(inputs.grid.extent, WINDOW)
        drawn = draw_sample(
            inputs.read_counted, windows, inputs.grid, pixels, allocate(points, pixels),
            np.random.default_rng(config.seed),
        )  # fmt: skip
        written = write_sample(drawn, path, inputs.map.legend)
    logger.info(
        "%d points to interpret in '%s'%s: choose each one's class in QGIS (field 'reference'), then type "
        "--sample with that file; keep '%s' from the interpreters",
        len(drawn), path, ", at least 50 in each class" if len(drawn) > points else "", written[1].name,
    )  # fmt: skip
    return written


def list_label_errors(config: EvaluateConfig, folder: Path) -> tuple[Path, Path]:
    """Write where the map contradicts the reference; see `lulc.evaluation.measures.label_errors`."""
    with ExitStack() as resources:
        inputs = open_inputs(config, resources)

        def read_labels(window: Window) -> NDArray[np.uint8]:
            labels, counting = inputs.read_reference(window), inputs.masks.read(window)
            return labels if counting is None else np.where(counting, labels, IGNORE).astype(np.uint8)

        return find_label_errors(
            inputs.map, read_labels, folder, least=config.label_errors or 0.0, regions=inputs.regions
        )


def measure(config: EvaluateConfig, arrays: InMemory = NO_ARRAYS) -> tuple[Results, Views]:
    """Count all that a report says, of files or of arrays instead of them; nothing is written.

    Raises
    ------
    InputError
        As `evaluate`, but for the folder.
    """
    with ExitStack() as resources:
        inputs = open_inputs(config, resources, arrays)
        counts = Counts(inputs, config.border)
        windows = list(squares_of(inputs.grid.extent, WINDOW))
        for window in tqdm(windows, desc="scoring", disable=not logger.isEnabledFor(logging.INFO)):
            counts.add(window)
        sample = None
        if config.sample is not None:
            sample = read_sample(
                config.sample, inputs.map.legend, inputs.grid, inputs.read_counted, arrays.sample
            )
        results = counts.results(sample)
        if config.run:
            run = Path(config.run)
            results = dataclasses.replace(results, training=_history_of(run), baseline=_baseline_of(run))
        views = counts.views()
    _check_counted(config, results)
    return results, views


def _check_counted(config: EvaluateConfig, results: Results) -> None:
    if config.reference is None:
        if not results.areas.mapped.any():
            raise InputError(
                f"cannot describe '{config.map}', since no pixel that counts has a class there",
                "Check --mask, --bounds and --aoi.",
            )
        return
    seen = results.seen is not None and results.seen.any()
    if not results.confusion.any() and not seen:
        raise InputError(
            f"cannot score '{config.map}', since no pixel has both a class there and a class in "
            f"'{config.reference}'",
            "Check that both cover the same place, and --mask, --bounds, --aoi and --scheme.",
        )
    if not results.confusion.any():
        logger.warning(
            "no scored pixel lies on held-out land: all of '%s' lies in training stacks, whose scores say "
            "nothing about other land", config.reference,
        )  # fmt: skip


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


def _history_of(run: Path) -> Path | None:
    path = run / HISTORY
    if not path.is_file() and (run / f"{FEW_LABELS}.npz").is_file():
        # Small models have no epochs.
        return None
    if not path.is_file():
        raise InputError(
            f"cannot show the training, since there is no '{path}', expected the run folder of the weights",
            "Give the folder that train_model.py wrote: --run runs/first",
        )
    return path


def _baseline_of(run: Path) -> dict[str, Any] | None:
    """Return the comparison of the models that a run holds; None where it holds none."""
    path = run / BASELINE_CARD
    found = load_card(path).scores.get("compared") if path.is_file() else None
    if found is None:
        return None
    compared = found if isinstance(found, dict) else {}
    given: list[Any] = [compared.get(name) for name in PARTS if name == PARTS[0] or compared.get(name)]
    spread = compared.get("spread")
    # A spread that can't be known is null.
    known: Any = {n: s or 0.0 for n, s in spread.items()} if isinstance(spread, dict) else None
    sizes = ["pixels", "patches"] if compared.get("small") else []
    if not (
        len(given) > 1
        and all(_are_scores(f1) and f1.keys() == given[0].keys() for f1 in (*given, known))
        and all(isinstance(compared.get(name), int) for name in sizes)
    ):
        raise InputError(
            f"cannot show the random forest, since '{path}' does not hold F1 of models by class",
            "Train again: train_model.py writes it.",
        )
    return dict(compared)


def _are_scores(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and MACRO in found
        and all(isinstance(v, int | float) and math.isfinite(v) for v in found.values())
    )
