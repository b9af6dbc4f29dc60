"""Score a land-cover map against a reference, against interpreted points, or describe it alone.

Counts every pixel that has a class in the map and in the reference. The report holds the confusion matrix,
user's and producer's accuracy, F1 and IoU of each class, and overall accuracy and Cohen's kappa. It repeats
them by CORINE level, near label borders and away from them, and for each stack or region. It also says how
well probabilities are calibrated. With --compare it says how a second map differs, and whether it is better.

With --regions manifest.json or --run, headline and tables count held-out land: land that the training did not
use. What it used is scored in a table of its own.

The result is a folder with report.html (one page with a map to move and to ask), report.md, report.json,
tables as CSV and pictures.

Areas of mapped pixels have the errors of the map. --design-sample draws points to interpret, stratified by
the map's classes, into sample.gpkg. Choose the class of each in QGIS; --sample then reports areas and
accuracies with 95 % intervals. Neither needs a reference of the whole map.

Examples, on the demo scene:
  python evaluate_classifications.py demo/map.tif demo/labels.tif --run demo/run --out demo/report
  python evaluate_classifications.py demo/map.tif --design-sample 600 --out demo/points
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lulc.cli.commandline import Answer, run
from lulc.config import EvaluateConfig
from lulc.core.text import columns, visible

if TYPE_CHECKING:
    from lulc.evaluation.measures.results import Results
    from lulc.evaluation.report.document import Table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module's docstring."""
    return run(EvaluateConfig, __doc__ or "", _act, argv)


def _act(config: EvaluateConfig) -> Answer:
    # What tables and pictures need takes longer to load than it takes to refuse a bad map.
    from lulc.rasters.sources import open_source

    open_source(config.map, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote).close()
    from lulc.evaluation.evaluate import evaluate
    from lulc.evaluation.report.sections import UNSCORED, points_words
    from lulc.labels.labels import words_of

    result = evaluate(config)
    results = result.results
    files = sorted(str(path) for path in result.files)
    shown = [
        f"{visible(table.caption)}\n{columns([table.header, *table.rows], table.text_columns)}"
        for table in _tables(results)
    ]
    words = [points_words(results.areas)] if results.areas.estimates else []
    if results.seen is not None and not results.scores.pixels:
        words.append(" ".join(UNSCORED))
    words += [f"reference: {line}" for line in words_of(results.read_as)] if results.read_as else []
    text = "\n\n".join([*shown, *words, "\n".join(map(visible, files))])
    return Answer(text, {"written": files, **result.to_json()})


def _tables(results: Results) -> list[Table]:
    """Return the tables of the page that belong on a terminal, held-out land first."""
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


if __name__ == "__main__":
    raise SystemExit(main())
