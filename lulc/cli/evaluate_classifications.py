"""Score a land-cover map against a reference, or against interpreted points.

Counts every pixel that has a class in the map and in the reference: confusion matrix, precision, recall,
F1 and IoU of each class, their means, overall accuracy and Cohen's kappa, at CORINE level 1 too, near label
borders and away from them, and for each stack or region. Where the map holds activations, how far they can
be read as probabilities. With --compare, how a second map differs, and whether it is better.

The result is a folder with report.html (everything on one page, with a map to move and to ask), report.md,
report.json, tables as CSV and pictures.

Areas are no pixel counts: --design-sample draws points to interpret, stratified by the map's classes, into
sample.gpkg; once their field 'reference' is filled in, --sample reports areas and accuracies with 95 %
intervals. Neither needs a reference of the whole map.

Examples, on the demo scene:
  python evaluate_classifications.py demo/map.tif demo/labels.tif --out demo/report
  python evaluate_classifications.py demo/map.tif --design-sample 600 --out demo/points
"""

from __future__ import annotations

from collections.abc import Sequence

from lulc.api import evaluate
from lulc.cli.commandline import Answer, run
from lulc.config import EvaluateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module's docstring."""
    return run(EvaluateConfig, __doc__ or "", _act, argv)


def _act(config: EvaluateConfig) -> Answer:
    result = evaluate(config)
    from lulc.evaluation.report.document import plain_table
    from lulc.evaluation.report.sections import area_table, class_table, points_words, score_table

    findings = result.findings
    files = sorted(str(path) for path in result.files)
    tables = [class_table(result.scores), score_table("Scores", findings.parts())] if config.reference else []
    if not config.reference or findings.areas.estimates:
        tables.append(area_table(findings.areas, findings.legend))
    words = [points_words(findings.areas)] if findings.areas.estimates else []
    text = "\n\n".join([*map(plain_table, tables), *words, "\n".join(files)])
    return Answer(text, {"written": files, **findings.to_json()})
