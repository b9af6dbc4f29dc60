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

MACRO = "macro-F1"
"""Name of the mean over classes in `Results.baseline`."""


@dataclass(frozen=True)
class Change:
    """A second map beside the first.

    Parameters
    ----------
    matrix
        int64 (N + 1, N + 1), rows this map, columns the second, index 0 unclassified.
    test
        McNemar's test on the pixels where both maps and the reference have a class.
    """

    name: str
    matrix: NDArray[np.int64]
    test: Comparison


@dataclass(frozen=True)
class Gathered:
    """The matrix of one CORINE level.

    Parameters
    ----------
    matrix
        int64 (M + 1, M + 1), the map's classes gathered.
    from_codes
        True where the reference's groups come from its codes rather than from its classes.
    summed
        The matrix where the map's group is the one with the highest summed activation; None without
        activations.
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
        int64 (N + 1,), pixels of class 0 (unclassified), 1, ..., N that count.
    hectares
        float64 (N + 1,), their geodesic areas; None where the CRS lies nowhere on the Earth.
    sample
        Interpreted points; or None.
    estimates
        What they say, areas in hectares, or in pixels without; None without a sample.
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
        """Mapped area of class 0, 1, ..., N in that unit."""
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
    """All counts of an evaluation; metrics follow from them.

    Where it is known which land the training used, everything but `seen`, `regions` and `areas` counts only
    land that it did not use.

    Parameters
    ----------
    map, reference
        Names of the files; no reference where there are interpreted points alone, or none yet.
    levels
        The same by CORINE level, where classes have groups.
    confusion
        int64 (N + 1, N + 1), rows reference, columns map, index 0 unclassified; all 0 without a reference.
    border
        Width of the band along label borders in pixels.
    near, far
        The matrix within the band, and beyond it; None without a band.
    without_map, without_reference
        Pixels that were not scored, since the one or the other has no data there.
    made
        (name, value) of what the map says about how it was made.
    areas
        Areas of the classes.
    seen
        The matrix of land that the training used; None where that is not known.
    read_as
        How the reference was read (`lulc.labels.labels.Labels.describe`).
    training
        history.csv of the run that trained the weights, or None.
    baseline
        Network and random forest on the held-out labels of that run (F1 of ``forest`` and ``network`` and the
        ``spread`` of their difference, by class and as `MACRO`), or None.
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
        """Return the metrics of all scored pixels, of held-out land where that is known."""
        return score(self.confusion, self.legend)

    @property
    def scored(self) -> str:
        """Name of the scored land, for headings."""
        return "" if self.seen is None else " on held-out land"

    def parts(self) -> list[tuple[str, Scores]]:
        """(name, metrics) of the total, the CORINE levels, border and interior; none without a reference."""
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
            "change": None
            if self.change is None
            else {
                "map": self.change.name,
                "matrix": self.change.matrix.tolist(),
                "mcnemar": dataclasses.asdict(self.change.test),
            },
            "baseline": self.baseline and dict(self.baseline),
        }


def metrics_of(matrix: NDArray[np.int64], legend: Legend) -> dict[str, Any]:
    """Return all metrics of a matrix as JSON-ready data, and the matrix."""
    return {**dataclasses.asdict(score(matrix, legend)), "confusion": matrix.tolist()}


def read_history(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Read a training's history.csv: column to its values by epoch, NaN where one is missing.

    Raises
    ------
    InputError
        If the file has no epoch.
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
