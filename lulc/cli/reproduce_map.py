"""Rebuild a map from its recorded inputs and report any difference.

Prints the processing of the map, and searches its weights and inputs by name. If these are the same (sha256),
it classifies again with the same parameters and compares the class band. The result is one line: identical,
or the fraction of pixels that differ and where. --difference writes a raster of them.

Exit codes: 0 the class bands are identical (with --check: weights and inputs are the same); 1 weights or
inputs are missing or have changed; 2 wrong command line; 3 the class bands differ.

Example, on the demo scene: python reproduce_map.py demo/map.tif
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import ReproduceConfig
from lulc.core.text import visible

if TYPE_CHECKING:
    from lulc.inference.reproduce import Comparison, Reproduction

DIFFERS = 3  # exit code for class bands that differ

HINT = (
    "The map was not rebuilt, since weights or inputs are missing or have changed.\n"
    "Give their folders: --inputs FOLDER ... --model FILE_OR_FOLDER (subfolders are searched too)."
)

SHOWN = 10  # printed places of differences


def _act(config: ReproduceConfig) -> Answer:
    from lulc.inference.reproduce import reproduce

    result = reproduce(config)
    blocks = [_provenance(result), _files(result)]
    code = 0
    if not all(file.same for file in result.files):
        blocks.append(HINT)
        code = 1
    elif result.comparison is not None:
        blocks.append(_differences(result.comparison))
        code = DIFFERS if result.comparison.different else 0
        blocks += [path for path in (config.out, config.difference) if path is not None]
    files = [dataclasses.asdict(f) | {"path": f.path and str(f.path)} for f in result.files]
    comparison = None if result.comparison is None else dataclasses.asdict(result.comparison)
    data = {"made": result.provenance, "files": files, "comparison": comparison}
    return Answer("\n\n".join(blocks), data, code)


def _provenance(result: Reproduction) -> str:
    """Describe the processing of a map."""
    made = result.provenance
    rows = {
        "model": made["model"],
        "engine": _pairs(made["engine"]),
        "toolkit": _pairs({"lulc": made["version"], **made.get("versions", {})}),
        "parameters": _pairs(dict(sorted(made["parameters"].items()))),
    }
    return "\n".join(f"{name:11} {visible(text)}" for name, text in rows.items())


def _files(result: Reproduction) -> str:
    """List the weights and inputs, and whether they were found unchanged."""
    lines = []
    for file in result.files:
        expected = file.sha256[:12]
        other = f"is another (sha256 {(file.found or '')[:12]}, expected {expected})"
        state = "not found" if file.path is None else f"{file.path} {'the same' if file.same else other}"
        lines.append(visible(f"{file.kind:11} {file.name} ({expected}): {state}"))
    return "\n".join(lines)


def _differences(comparison: Comparison) -> str:
    """Describe where two maps differ, or that they are identical."""
    if comparison.same_file:
        return f"Identical, byte for byte ({comparison.pixels:,} pixels)."
    lines = [f"{_short(tag)}: {_short(a)} became {_short(b)}" for tag, a, b in comparison.tags]
    if not comparison.different:
        head = f"The class bands are identical ({comparison.pixels:,} pixels); the files are not the same"
        return "\n".join([head + (":" if lines else "."), *lines])
    share = comparison.different / comparison.pixels
    places = [
        f"  rows {w.row}..{w.stop[0] - 1}, columns {w.col}..{w.stop[1] - 1}: {cell.count:,} pixels"
        for cell in comparison.cells[:SHOWN]
        for w in [cell.window]
    ]
    rest = len(comparison.cells) - SHOWN
    places += [f"  and {rest} more places"] if rest > 0 else []
    head = f"The class differs on {comparison.different:,} of {comparison.pixels:,} pixels ({share:.4%}):"
    return "\n".join([head, *places, *lines])


def _pairs(values: dict[str, Any]) -> str:
    shown = {k: v for k, v in values.items() if v not in (None, False, [], "")}
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in shown.items())


def _short(text: str) -> str:
    return visible(text if len(text) <= 200 else text[:197] + "...")


main = partial(run, ReproduceConfig, __doc__ or "", _act)

if __name__ == "__main__":
    raise SystemExit(main())
