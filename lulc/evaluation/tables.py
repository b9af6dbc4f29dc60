"""Results of an evaluation as pandas tables and figures, for notebooks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lulc.core.schema import UNCLASSIFIED_NAME, InputError
from lulc.evaluation.measures.metrics import Scores
from lulc.evaluation.measures.results import Results

if TYPE_CHECKING:
    import pandas as pd

    from lulc.evaluation.report.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Comparison of a map with its reference as tables and figures, which follow from the counts."""

    results: Results

    @property
    def scores(self) -> Scores:
        """Metrics of all scored pixels, only of held-out land if that is known."""
        return self.results.scores

    @property
    def summary(self) -> pd.DataFrame:
        """Overall accuracy, kappa and macro means: of all classes, CORINE levels, border and interior."""
        import pandas as pd

        rows = {}
        for name, scores in self.results.parts():
            row = {n: getattr(scores, n) for n in ("pixels", "overall_accuracy", "kappa")}
            macro = dataclasses.asdict(scores.macro) if scores.macro else {}
            rows[name] = row | {f"macro_{n}": value for n, value in macro.items()}
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

        areas = self.results.areas
        table = pd.DataFrame(index=pd.Index(self.results.legend.names, name="class"))
        table["mapped"] = areas.values[1:]
        table.attrs["unit"] = areas.unit
        if areas.estimates is None:
            return table
        for name in ("areas", "users", "producers"):
            estimates, prefix = getattr(areas.estimates, name), "area" if name == "areas" else name
            table[prefix if name == "areas" else f"{name}_accuracy"] = [e.value for e in estimates]
            table[f"{prefix}_standard_error"] = [e.standard_error for e in estimates]
            table[f"{prefix}_low"], table[f"{prefix}_high"] = zip(
                *(e.interval for e in estimates), strict=True
            )
        overall = areas.estimates.overall
        table.attrs["overall_accuracy"] = overall.value
        table.attrs["overall_standard_error"] = overall.standard_error
        return table

    def plot_confusion(self) -> Figure:
        """Draw the confusion matrix in percent of each reference class."""
        from lulc.evaluation.report.figures import draw_confusion

        if self.results.reference is None:
            raise _missing("a confusion matrix", "a reference")
        title = f"Confusion matrix, % of each reference class{self._of_map()}"
        return draw_confusion(self.results.confusion, self.results.legend, title=title)

    def _of_map(self) -> str:
        """Return the name of the map for a title; empty for an array."""
        return "" if self.results.map.startswith("<") else f": {self.results.map}"

    def plot_reliability(self) -> Figure:
        """Draw accuracy over confidence."""
        from lulc.evaluation.report.figures import draw_reliability

        if self.results.calibration is None:
            raise _missing("a reliability diagram", "a map with activations and a reference")
        return draw_reliability(self.results.calibration, title=f"Calibration{self._of_map()}")

    def plot_areas(self) -> Figure:
        """Draw estimated areas with their intervals, and mapped areas beside them."""
        from lulc.evaluation.report.figures import draw_areas

        areas = self.results.areas
        if areas.estimates is None:
            raise _missing("areas with intervals", "a sample of interpreted points")
        mapped = areas.values[1:].tolist()
        return draw_areas(areas.estimates.areas, mapped, self.results.legend, unit=areas.unit)


def _missing(figure: str, needed: str) -> InputError:
    return InputError(f"cannot draw {figure}, expected {needed}", "Evaluate with it.")
