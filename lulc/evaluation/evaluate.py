"""Score a map against a reference or interpreted points, or describe it alone, and write a report.

Memory does not depend on the size of the map: it holds counts and decimated views.
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

WINDOW = 512  # side of the windows, a multiple of the block size of maps
SAMPLE = "sample.gpkg"  # points to interpret, in the report's folder

HISTORY, BASELINE_CARD = "history.csv", "baseline.json"
"""Epochs of a training and card of its random forest, in the run folder."""

MODELS = ("forest", "small", "network")  # models whose F1 by class this card may hold


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Evaluation):
    """Results of an evaluation with its report."""

    folder: Path
    files: tuple[Path, ...]
    imprint: Imprint

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.imprint), **self.results.to_json()}


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Write a report on a map: against a reference, against interpreted points, or on the map alone.

    Raises InputError if the folder holds a report and may not be overwritten, a file can't be read, grids
    or legends don't fit, or no pixel has both a map and a reference.
    """
    folder = Path(config.out)
    _check_folder(folder, config.overwrite)
    draws_sample = bool(config.design_sample) or config.sample_error is not None
    if draws_sample:
        # An interrupted run may have drawn its points already.
        check_free(folder / SAMPLE, overwrite=config.overwrite or _is_unfinished(folder))
    results, views = measure(config)

    def write_more() -> list[Path]:
        written = design(config, results, folder / SAMPLE) if draws_sample else []
        return written + list(list_label_errors(config, folder) if config.label_errors is not None else ())

    imprint = Imprint(config.title, config.author, config.date, config.licence)
    written = write_report(results, views, folder, imprint, write_more)
    return EvaluationResult(folder=folder, files=tuple(written), results=results, imprint=imprint)


def design(config: EvaluateConfig, results: Results, path: Path) -> list[Path]:
    """Draw a stratified sample of the map's pixels for interpretation into a GeoPackage.

    Parameters
    ----------
    results
        Mapped pixels, which decide the allocation, and the agreement with labels, which decides the expected
        accuracy.

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
        "%d points to interpret in '%s'%s: choose the class of each in QGIS (field 'reference'), then type "
        "--sample with that file; don't show '%s' to the interpreters",
        len(drawn), path, ", at least 50 in each class" if len(drawn) > points else "", written[1].name,
    )  # fmt: skip
    return written


def list_label_errors(config: EvaluateConfig, folder: Path) -> tuple[Path, Path]:
    """Write candidates for wrong labels; see `lulc.evaluation.measures.label_errors`."""
    with ExitStack() as resources:
        inputs = open_inputs(config, resources)

        def read_labels(window: Window) -> NDArray[np.uint8]:
            labels, counting = inputs.read_reference(window), inputs.masks.read(window)
            return labels if counting is None else np.where(counting, labels, IGNORE).astype(np.uint8)

        return find_label_errors(
            inputs.map, read_labels, folder, least=config.label_errors or 0.0, regions=inputs.regions
        )


def measure(config: EvaluateConfig, arrays: InMemory = NO_ARRAYS) -> tuple[Results, Views]:
    """Count everything for a report, from files or arrays, and write nothing; raises errors as `evaluate`."""
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
                f"cannot describe '{config.map}', since no pixel in use has a class there",
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
            "no scored pixel lies on held-out land: all of '%s' lies in training stacks, whose scores don't "
            "apply to other land", config.reference,
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
    """True if a report was started and interrupted."""
    return own_folder(folder).is_marked and not (folder / LAST).exists()


def _history_of(run: Path) -> Path | None:
    path = run / HISTORY
    if path.is_file():
        return path
    if (run / f"{FEW_LABELS}.npz").is_file():
        return None  # small models have no epochs
    raise InputError(
        f"cannot show the training, since there is no '{path}', expected the run folder of the weights",
        "Give the folder that train_model.py wrote: --run runs/first",
    )


def _baseline_of(run: Path) -> dict[str, Any] | None:
    """Return the comparison of the models in a run, or None without one."""
    path = run / BASELINE_CARD
    compared = load_card(path).scores.get("compared") if path.is_file() else None
    if compared is None:
        return None
    compared = compared if isinstance(compared, dict) else {}
    scores: list[Any] = [compared.get(name) for name in MODELS if name == MODELS[0] or compared.get(name)]
    spread: Any = compared.get("spread")
    if isinstance(spread, dict):
        # An unknown spread is null.
        spread = {name: value or 0.0 for name, value in spread.items()}
    sizes = ["pixels", "patches"] if compared.get("small") else []
    if not (
        len(scores) > 1
        and all(_are_scores(f1) and f1.keys() == scores[0].keys() for f1 in (*scores, spread))
        and all(isinstance(compared.get(name), int) for name in sizes)
    ):
        raise InputError(
            f"cannot show the random forest, since '{path}' does not hold F1 of models by class",
            "Train again: train_model.py writes it.",
        )
    return dict(compared)


def _are_scores(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and MACRO in data
        and all(isinstance(v, int | float) and math.isfinite(v) for v in data.values())
    )
