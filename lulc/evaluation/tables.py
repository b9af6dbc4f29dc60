"""Results of an evaluation as pandas tables and figures, for notebooks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lulc.core.schema import UNCLASSIFIED_NAME, InputError
from lulc.evaluation.measures.metrics import Scores
from lulc.evaluation.measures.results import Results

if TYPE_CHECKING:
    import pandas as pd

    from lulc.evaluation.report.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Comparison of a map with its reference, as tables and figures.

    Parameters
    ----------
    results
        All counts, from which every metric follows.
    """

    results: Results

    @property
    def scores(self) -> Scores:
        """Return the metrics of all scored pixels, of held-out land where that is known."""
        return self.results.scores

    @property
    def summary(self) -> pd.DataFrame:
        """Overall accuracy, kappa and macro means: of all classes, CORINE levels, border and interior."""
        import pandas as pd

        rows = {}
        for name, scores in self.results.parts():
            macro = (
                {f"macro_{k}": v for k, v in dataclasses.asdict(scores.macro).items()} if scores.macro else {}
            )
            rows[name] = {
                "pixels": scores.pixels, "overall_accuracy": scores.overall_accuracy, "kappa": scores.kappa,
                **macro,
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")

    @property
    def classes(self) -> pd.DataFrame:
        """Precision, recall, F1, IoU and pixels of each class."""
        import pandas as pd

        rows = [dataclasses.asdict(c) for c in self.scores.classes]
        return pd.DataFrame(rows).rename(columns={"name": "class"}).set_index("class")

    @property
    def confusion(self) -> pd.DataFrame:
        """Confusion matrix in pixels: rows reference, columns map; the last column is unclassified."""
        import pandas as pd

        names = list(self.results.legend.names)
        matrix = np.roll(self.results.confusion[1:], -1, axis=1)
        rows = pd.Index(names, name="reference")
        return pd.DataFrame(matrix, rows, pd.Index([*names, UNCLASSIFIED_NAME], name="map"))

    @property
    def areas(self) -> pd.DataFrame:
        """Mapped area of each class and, with a sample, estimates with standard errors and 95 % intervals.

        ``attrs`` holds the unit and, with a sample, the overall accuracy with its standard error.
        """
        import pandas as pd

        found = self.results.areas
        table = pd.DataFrame(index=pd.Index(self.results.legend.names, name="class"))
        table["mapped"] = found.values[1:]
        table.attrs["unit"] = found.unit
        if found.estimates is None:
            return table
        given = {"area": found.estimates.areas, "users": found.estimates.users,
                 "producers": found.estimates.producers}  # fmt: skip
        for name, estimates in given.items():
            accuracy = "" if name == "area" else "_accuracy"
            table[f"{name}{accuracy}"] = [e.value for e in estimates]
            table[f"{name}_standard_error"] = [e.standard_error for e in estimates]
            table[f"{name}_low"], table[f"{name}_high"] = zip(*(e.interval for e in estimates), strict=True)
        overall = found.estimates.overall
        table.attrs |= {
            "overall_accuracy": overall.value, "overall_standard_error": overall.standard_error,
        }  # fmt: skip
        return table

    def plot_confusion(self) -> Figure:
        """Draw the confusion matrix as shares of each reference class."""
        from lulc.evaluation.report.figures import draw_confusion

        self._check(self.results.reference, "a confusion matrix", "a reference")
        title = f"Confusion matrix, % of each reference class{self._of_map()}"
        return draw_confusion(self.results.confusion, self.results.legend, title=title)

    def _of_map(self) -> str:
        """Name the file of the map in a title; nothing for an array."""
        return "" if self.results.map.startswith("<") else f": {self.results.map}"

    def plot_reliability(self) -> Figure:
        """Draw accuracy over confidence."""
        from lulc.evaluation.report.figures import draw_reliability

        self._check(
            self.results.calibration, "a reliability diagram", "a map with activations and a reference"
        )
        assert self.results.calibration is not None
        return draw_reliability(self.results.calibration, title=f"Calibration{self._of_map()}")

    def plot_areas(self) -> Figure:
        """Draw estimated areas with their intervals, and mapped areas beside them."""
        from lulc.evaluation.report.figures import draw_areas

        areas = self.results.areas
        self._check(areas.estimates, "areas with intervals", "a sample of interpreted points")
        assert areas.estimates is not None
        mapped = areas.values[1:].tolist()
        return draw_areas(areas.estimates.areas, mapped, self.results.legend, unit=areas.unit)

    @staticmethod
    def _check(given: Any, what: str, needed: str) -> None:
        if given is None:
            raise InputError(f"cannot draw {what}, expected {needed}", "Evaluate with it.")
