"""Rebuild a map from its recorded inputs and report any difference.

Prints how the map was made, and looks for its weights and inputs by name. If they are the same (sha256), it
classifies again with the same parameters and compares the class band. The result is one line: identical, or
the share of pixels that differ and where. --difference writes a raster of them.

Exit codes: 0 the class bands are identical (with --check: weights and inputs are the same); 1 something that
the map was made from is missing or another; 2 wrong command line; 3 the class bands differ.

Example, on the demo scene: python reproduce_map.py demo/map.tif
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import ReproduceConfig
from lulc.core.text import visible

if TYPE_CHECKING:
    from lulc.inference.reproduce import Comparison, Reproduction

DIFFERS = 3
"""Exit code where the class bands differ."""

HINT = (
    "The map was not made again, since not all that it was made from is there.\n"
    "Say where it is: --inputs FOLDER ... --model FILE_OR_FOLDER (folders below are looked at too)."
)

SHOWN = 10
"""Places of differences that are printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module's docstring for exit codes."""
    return run(ReproduceConfig, __doc__ or "", _act, argv)


def _act(config: ReproduceConfig) -> Answer:
    from lulc.inference.reproduce import reproduce

    result = reproduce(config)
    blocks = [describe_provenance(result), describe_files(result)]
    code = 0
    if not all(file.same for file in result.files):
        blocks.append(HINT)
        code = 1
    elif result.comparison is not None:
        blocks.append(describe_comparison(result.comparison))
        code = DIFFERS if result.comparison.different else 0
        blocks += [path for path in (config.out, config.difference) if path is not None]
    return Answer("\n\n".join(blocks), _data_of(result), code)


def describe_provenance(result: Reproduction) -> str:
    """Describe how a map was made."""
    made = result.provenance
    rows = {
        "model": made["model"],
        "engine": _pairs(made["engine"]),
        "toolkit": _pairs({"lulc": made["version"], **made.get("versions", {})}),
        "parameters": _pairs(dict(sorted(made["parameters"].items()))),
    }
    return "\n".join(f"{name:11} {visible(text)}" for name, text in rows.items())


def describe_files(result: Reproduction) -> str:
    """List the weights and inputs that were found and those that were not."""
    lines = []
    for file in result.files:
        expected = file.sha256[:12]
        other = f"is another (sha256 {(file.found or '')[:12]}, expected {expected})"
        state = "not found" if file.path is None else f"{file.path} {'the same' if file.same else other}"
        lines.append(visible(f"{file.kind:11} {file.name} ({expected}): {state}"))
    return "\n".join(lines)


def describe_comparison(comparison: Comparison) -> str:
    """Describe where two maps differ, or that they are the same."""
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


def _data_of(result: Reproduction) -> dict[str, Any]:
    files = [dataclasses.asdict(f) | {"path": f.path and str(f.path)} for f in result.files]
    compared = None if result.comparison is None else dataclasses.asdict(result.comparison)
    return {"made": result.provenance, "files": files, "comparison": compared}


def _pairs(values: dict[str, Any]) -> str:
    shown = {k: v for k, v in values.items() if v not in (None, False, [], "")}
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in shown.items())


def _short(text: str) -> str:
    return visible(text if len(text) <= 200 else text[:197] + "...")


if __name__ == "__main__":
    raise SystemExit(main())
