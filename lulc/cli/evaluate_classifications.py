"""Score a land-cover map against a reference or against interpreted points, or describe it alone.

Scores every pixel that has a class in the map and in the reference. The report holds the confusion matrix,
user's and producer's accuracy, F1 and IoU of each class, overall accuracy and Cohen's kappa, also by CORINE
level, near label borders and away from them, and for each stack or region. It also shows the calibration of
the probabilities. With --compare it tests whether a second map is better.

With --regions manifest.json or --run, headline and tables count held-out land, which the training did not
use. A separate table scores the training land.

The result is a folder with report.html (one page with an interactive map), report.md, report.json, tables as
CSV and pictures.

Pixel counts are biased area estimates, since the map has errors. --design-sample draws points to interpret,
stratified by the map's classes, into sample.gpkg. Choose the class of each in QGIS; --sample then reports
areas and accuracies with 95 % intervals. Neither needs a reference of the whole map.

Examples, on the demo scene:
  python evaluate_classifications.py demo/map.tif demo/labels.tif --run demo/run --out demo/report
  python evaluate_classifications.py demo/map.tif --design-sample 600 --out demo/points
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lulc.api import evaluate
from lulc.cli.commandline import Answer, run
from lulc.config import EvaluateConfig
from lulc.core.text import columns, visible

if TYPE_CHECKING:
    from lulc.evaluation.measures.results import Results
    from lulc.evaluation.report.document import Table


def _act(config: EvaluateConfig) -> Answer:
    result = evaluate(config)
    # These load packages for tables and pictures, which a bad map need not wait for.
    from lulc.evaluation.report.sections import UNSCORED, points_words
    from lulc.labels.labels import words_of

    results = result.results
    files = sorted(str(path) for path in result.files)
    blocks = [
        f"{visible(table.caption)}\n{columns([table.header, *table.rows], table.text_columns)}"
        for table in _tables(results)
    ]
    if results.areas.estimates:
        blocks.append(points_words(results.areas))
    if results.seen is not None and not results.scores.pixels:
        blocks.append(" ".join(UNSCORED))
    if results.read_as:
        blocks += [f"reference: {line}" for line in words_of(results.read_as)]
    text = "\n\n".join([*blocks, "\n".join(map(visible, files))])
    return Answer(text, {"written": files, **result.to_json()})


def _tables(results: Results) -> list[Table]:
    """Return the tables of the report for the terminal, held-out land first."""
    from lulc.evaluation.measures.metrics import score
    from lulc.evaluation.report.sections import SEEN, area_table, class_table, score_table

    tables = []
    if results.reference is not None and (results.scores.pixels or results.seen is None):
        tables.append(class_table(results.scores, f"Classes{results.scored}"))
        tables.append(score_table(f"Scores{results.scored}", results.parts()))
    if results.seen is not None:
        seen = [("all classes", score(results.seen, results.legend))]
        tables.append(score_table(f"{SEEN}: no measure of quality", seen))
    if results.reference is None or results.areas.estimates:
        tables.append(area_table(results.areas, results.legend))
    return tables


main = partial(run, EvaluateConfig, __doc__ or "", _act)

if __name__ == "__main__":
    raise SystemExit(main())
