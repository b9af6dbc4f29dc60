"""Results of an evaluation: counts, from which every metric follows."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lulc.core.documents import read_rows
from lulc.core.schema import InputError, Legend
from lulc.core.version import __version__
from lulc.evaluation.measures.area_estimation import AreaEstimates
from lulc.evaluation.measures.metrics import Calibration, Comparison, Scores, score
from lulc.evaluation.measures.sample import Sample
from lulc.labels.levels import Level

FORMAT_VERSION = 2

MACRO = "macro-F1"  # key of the mean over classes in `Results.baseline`


@dataclass(frozen=True)
class Change:
    """Comparison with a second map.

    Parameters
    ----------
    matrix
        int64 (N + 1, N + 1), rows the first map, columns the second, index 0 unclassified.
    test
        McNemar's test on the pixels where both maps and the reference have a class.
    """

    name: str
    matrix: NDArray[np.int64]
    test: Comparison


@dataclass(frozen=True)
class Gathered:
    """Confusion matrix of one CORINE level.

    Parameters
    ----------
    matrix
        int64 (M + 1, M + 1), with the group of each mapped class.
    from_codes
        True if the reference's groups come from its codes, not from its classes.
    summed
        Matrix with the group of the highest summed activation; None without activations.
    """

    level: Level
    matrix: NDArray[np.int64]
    from_codes: bool = False
    summed: NDArray[np.int64] | None = None

    def to_json(self) -> dict[str, Any]:
        legend = self.level.legend
        summed = None if self.summed is None else metrics_of(self.summed, legend)
        return {"from_codes": self.from_codes, **metrics_of(self.matrix, legend), "summed": summed}


@dataclass(frozen=True)
class Areas:
    """Areas of the classes.

    Parameters
    ----------
    mapped
        int64 (N + 1,), pixels of class 0 (unclassified), 1, ..., N.
    hectares
        float64 (N + 1,), their geodesic areas; None for a CRS that is not on the Earth.
    sample
        Interpreted points.
    estimates
        Estimates from the sample, areas in `unit`.
    """

    mapped: NDArray[np.int64]
    hectares: NDArray[np.float64] | None
    sample: Sample | None = None
    estimates: AreaEstimates | None = None

    @property
    def unit(self) -> str:
        return "pixels" if self.hectares is None else "ha"

    @property
    def values(self) -> NDArray[np.float64]:
        """Mapped area of class 0, 1, ..., N in `unit`."""
        return self.mapped.astype(np.float64) if self.hectares is None else self.hectares

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "mapped_pixels": self.mapped.tolist(),
            "mapped_hectares": None if self.hectares is None else self.hectares.tolist(),
            "sample": None if self.sample is None else self.sample.to_json(),
            "estimates": None if self.estimates is None else self.estimates.to_json(),
        }


@dataclass(frozen=True)
class Results:
    """All counts of an evaluation, from which every metric follows.

    If the training land is known, everything but `seen`, `regions` and `areas` counts only held-out land.

    Parameters
    ----------
    map, reference
        Names of the files.
    levels
        Matrices by CORINE level, if classes have groups.
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified; all 0 without a reference.
    border
        Width of the band along label borders in pixels.
    near, far
        Matrices inside and outside the band; None without a band.
    without_map, without_reference
        Pixels that were not scored, since the map or the reference has no data there.
    made
        (name, value) of the tags about the processing of the map.
    seen
        Matrix of training land; None where it is unknown.
    read_as
        Description of the reference (`lulc.labels.labels.Labels.describe`).
    training
        history.csv of the run that trained the weights.
    baseline
        Network and random forest on the held-out labels of that run: F1 of ``forest`` and ``network`` and the
        ``spread`` of their difference, by class and as `MACRO`.
    """

    map: str
    reference: str | None
    legend: Legend
    levels: tuple[Gathered, ...]
    confusion: NDArray[np.int64]
    border: int
    near: NDArray[np.int64] | None
    far: NDArray[np.int64] | None
    regions: tuple[tuple[str, NDArray[np.int64]], ...]
    calibration: Calibration | None
    change: Change | None
    without_map: int
    without_reference: int
    made: tuple[tuple[str, str], ...]
    areas: Areas
    seen: NDArray[np.int64] | None = None
    read_as: Mapping[str, Any] = field(default_factory=dict)
    training: Path | None = None
    baseline: Mapping[str, Any] | None = None

    @property
    def scores(self) -> Scores:
        """Metrics of all scored pixels, only of held-out land if that is known."""
        return score(self.confusion, self.legend)

    @property
    def scored(self) -> str:
        """Suffix of headings that names the scored land."""
        return "" if self.seen is None else " on held-out land"

    def parts(self) -> list[tuple[str, Scores]]:
        """Return (name, metrics) of all classes, levels, border and interior; none without a reference."""
        if self.reference is None:
            return []
        named = [("all classes", self.confusion, self.legend)]
        for gathered in self.levels:
            level = gathered.level
            named.append((level.name, gathered.matrix, level.legend))
            if gathered.summed is not None:
                named.append((f"{level.name}, activations summed", gathered.summed, level.legend))
        if self.near is not None and self.far is not None:
            named.append((f"border, up to {self.border} px", self.near, self.legend))
            named.append(("interior", self.far, self.legend))
        return [(name, score(matrix, legend)) for name, matrix, legend in named]

    def to_json(self) -> dict[str, Any]:
        compared = self.reference is not None
        levels = {f"level{g.level.number}": g.to_json() for g in self.levels if compared}
        change = self.change and {
            "map": self.change.name,
            "matrix": self.change.matrix.tolist(),
            "mcnemar": dataclasses.asdict(self.change.test),
        }
        return {
            "format_version": FORMAT_VERSION,
            "lulc": __version__,
            "map": self.map,
            "reference": self.reference,
            "read_as": dict(self.read_as),
            "made": dict(self.made),
            "legend": self.legend.to_json(),
            "without_map": self.without_map if compared else None,
            "without_reference": self.without_reference if compared else None,
            "held_out": True if self.seen is not None else None,
            "total": metrics_of(self.confusion, self.legend) if compared else None,
            "seen_in_training": None if self.seen is None else metrics_of(self.seen, self.legend),
            "level1": levels.get("level1"),
            "level2": levels.get("level2"),
            "areas": self.areas.to_json(),
            "border_pixels": self.border,
            "border": None if self.near is None else metrics_of(self.near, self.legend),
            "interior": None if self.far is None else metrics_of(self.far, self.legend),
            "regions": [{"name": name, **metrics_of(m, self.legend)} for name, m in self.regions],
            "calibration": None if self.calibration is None else dataclasses.asdict(self.calibration),
            "change": change,
            "baseline": self.baseline and dict(self.baseline),
        }


def metrics_of(matrix: NDArray[np.int64], legend: Legend) -> dict[str, Any]:
    """Return a confusion matrix and its metrics as JSON-ready data."""
    return {**dataclasses.asdict(score(matrix, legend)), "confusion": matrix.tolist()}


def read_history(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Read the values of each column of a training's history.csv, NaN where one is missing.

    Raises InputError if the file has no epoch.
    """
    hint = "Give the history.csv of a run folder."
    rows = [row for _, row in read_rows(path, "the history", hint)[1]]
    if not rows or "epoch" not in rows[0]:
        raise InputError(
            f"cannot draw the history '{path}', since it has no epochs, expected a column 'epoch' "
            "and one row each",
            hint,
        )
    return {name: [_number(row.get(name)) for row in rows] for name in rows[0] if name}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
