"""Classify a Sentinel-2 mosaic with trained weights.

The result is a GeoTIFF on the grid of the mosaic: band 1 holds class numbers 1..N, one further band for each
class its activation (0..1), and all bands are -1 where the mosaic has no data. Index rasters may be left out:
they are computed from the bands. An interrupted run is continued by the same command; the map appears under
its name when it is whole.

Example: python make_classifications.py demo/run demo/summer.tif demo/indices.tif demo/map.tif
--fill demo/spring.tif
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import ClassifyConfig
from lulc.core.text import columns, visible

if TYPE_CHECKING:
    from lulc.inference.classify import ClassificationResult, Forecast, ShareResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for data that don't fit, 2 for a wrong command line."""
    return run(ClassifyConfig, __doc__ or "", _classify, argv)


def _classify(config: ClassifyConfig) -> Answer:
    from lulc.inference.classify import classify, classify_share, forecast_classification
    from lulc.inference.outputs import MOSAIC

    if config.plan:
        forecast = forecast_classification(config)
        return Answer(describe_forecast(forecast), figures_of_forecast(forecast))
    if config.share:
        share = classify_share(config)
        return Answer(describe_share(share), figures_of_share(share))
    result = classify(config)
    where = " ".join([f"The map is {result.path}", *(f"and {path}" for path in result.further)])
    raster = [str(result.path / MOSAIC), "--allow-vrt"] if config.tiles else [str(result.path)]
    # A run knows which land it was trained on, so that the report can score held-out land.
    more = ["--run", config.model] if os.path.isdir(config.model) else []
    words = ["python", "evaluate_classifications.py", *raster, "LABELS", *more, "--out", "report"]
    command = shlex.join(words)
    text = f"{describe_result(result)}\n\n{where}\nNext, where there are reference labels:\n\n    {command}"
    return Answer(text, figures_of_result(result))


def figures_of_result(result: ClassificationResult) -> dict[str, Any]:
    """Return path, pixels of each class and times, JSON-ready; areas in square metres."""
    names = {0: "unclassified"} | {c.number: c.name for c in result.legend.classes}
    areas, counted = result.areas, sum(result.counts.values())
    return {
        "map": str(result.path),
        "further": [str(path) for path in result.further],
        "classes": [
            {
                "number": number,
                "name": name,
                "pixels": result.counts.get(number, 0),
                "area": None if areas is None else areas.get(number, 0.0),
            }
            for number, name in names.items()
        ],
        "pixels": result.pixels,
        "pixel_area": None if areas is None else sum(areas.values()) / counted,
        "remarks": list(result.remarks),
        "weights": list(result.weights),
        "accuracy": result.accuracy,
        "engine": result.engine,
        "seconds": result.seconds,
    }


def figures_of_share(result: ShareResult) -> dict[str, Any]:
    """Return the share of the parts that is made, JSON-ready."""
    return {
        "map": str(result.path),
        "share": [result.number, result.of],
        "parts": result.parts,
        "made": result.made,
        "engine": result.engine,
        "seconds": result.seconds,
    }


def describe_share(result: ShareResult) -> str:
    """Describe the share of the parts that is made, and the command that joins the shares."""
    return (
        f"Share {result.number} of {result.of} is made: {result.parts} parts, {result.made} of them now, in "
        f"{result.seconds:.1f} s; engine {result.engine}\n\n"
        "When all shares are made, the same command without --share makes the map."
    )


def figures_of_forecast(forecast: Forecast) -> dict[str, Any]:
    """Return the forecast of a run, JSON-ready; memory and disk in bytes."""
    plan = forecast.plan
    return {
        "pixels": [plan.height, plan.width],
        "parts": len(plan),
        "windows": forecast.windows,
        "window": list(plan.window),
        "halo": plan.halo,
        "computed": plan.computed_pixels / (plan.height * plan.width),
        "empty": forecast.empty,
        "engine": forecast.engine,
        "memory": forecast.memory,
        "disk": forecast.disk,
        "disk_bound": forecast.disk_bound,
        "seconds": forecast.seconds,
    }


def describe_result(result: ClassificationResult) -> str:
    """Shares and areas of the classes, seconds and speed, as text."""
    names = {c.number: c.name for c in result.legend.classes}
    names[0] = "the rest" if len(names) == 1 else "unclassified"
    remarks = "".join(f"Note: {visible(remark)}.\n\n" for remark in result.remarks)
    total = sum(result.counts.values())
    rows = [["class", "share", "pixels"]]
    if result.areas is not None:
        rows[0].append("km2")
    for number, name in sorted(names.items(), key=lambda item: item[0] or 255):
        count = result.counts.get(number, 0)
        if number == 0 and not count:
            continue
        row = [f"{number:3d} {name}", f"{100 * count / total:.2f} %", f"{count:,}"]
        if result.areas is not None:
            row.append(f"{result.areas.get(number, 0.0) / 1e6:,.2f}")
        rows.append(row)
    seconds = result.seconds
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("start", "windows", "finish"))
    speed = (
        f"{_decimals(result.pixels / 1e6)} Mpx ({total / result.pixels:.1%} valid) in {seconds['all']:.1f} s "
        f"({stages}), {_decimals(result.pixels / 1e6 / seconds['all'])} Mpx/s; "
        f"engine {result.engine}, busy {result.network_share:.0%} of the time with windows"
    )
    known = f"weights: {visible('; '.join(result.weights))}\naccuracy: {visible(result.accuracy)}"
    return f"{remarks}{columns(rows)}\n\n{known}\n{speed}"


def describe_forecast(forecast: Forecast) -> str:
    """Describe the forecast of a run as text."""
    plan, seconds = forecast.plan, forecast.seconds
    computed = plan.computed_pixels / (plan.height * plan.width)
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("start", "windows", "finish"))
    rows = [
        ["map", f"{plan.height} x {plan.width} pixels in {len(plan)} parts of {plan.part}"],
        ["windows", f"{forecast.windows} of {plan.window[0]} x {plan.window[1]}, halo {plan.halo}"],
        ["without data", f"about {forecast.empty:.0%} of the windows, which are skipped"],
        ["computed", f"{computed:.2f} times the arithmetic of one pass"],
        ["engine", forecast.engine],
        ["memory", f"{forecast.memory / 1e9:.2f} GB"],
        ["disk", f"about {_size(forecast.disk)}, {_size(forecast.disk_bound)} must be free; parts included"],
        ["time", f"{seconds['all']:.1f} s ({stages})"],
    ]
    return columns(rows, text_columns=2)


def _decimals(number: float) -> str:
    """Two decimals, or two digits of what is smaller."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    raise SystemExit(main())
