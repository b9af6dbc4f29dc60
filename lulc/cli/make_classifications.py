"""Classify a Sentinel-2 mosaic with trained weights.

The result is a GeoTIFF on the grid of the mosaic: band 1 holds class numbers 1..N, the other bands hold the
activation of each class (0..1), and all bands are -1 where the mosaic has no data. Missing index rasters are
computed from the bands. The same command continues an interrupted run; the map appears under its name when it
is complete.

Example: python make_classifications.py demo/run demo/summer.tif demo/indices.tif demo/map.tif
--fill demo/spring.tif
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lulc.cli.commandline import Answer, run
from lulc.config import ClassifyConfig
from lulc.core.text import columns, visible

if TYPE_CHECKING:
    from lulc.inference.classify import ClassificationResult, Forecast, ShareResult

WORTH_ADVICE = 60.0
"""Seconds that a network must have waited before a command advises how to wait less."""


def _classify(config: ClassifyConfig) -> Answer:
    from lulc.inference.classify import classify, classify_share, forecast_classification
    from lulc.inference.outputs import MOSAIC

    if config.plan:
        return _forecast_answer(forecast_classification(config))
    if config.share:
        return _share_answer(classify_share(config))
    result = classify(config)
    where = " ".join([f"The map is {result.path}", *(f"and {path}" for path in result.further)])
    raster = [str(result.path / MOSAIC), "--allow-vrt"] if config.tiles else [str(result.path)]
    # With the run folder the report scores only held-out land.
    run_option = ["--run", config.model] if os.path.isdir(config.model) else []
    words = ["python", "evaluate_classifications.py", *raster, "LABELS", *run_option, "--out", "report"]
    following = f"Next, with reference labels:\n\n    {shlex.join(words)}"
    advice = _disk_advice(config.activations, result.network_share, result.seconds["windows"])
    return Answer(f"{_description(result)}{advice}\n\n{where}\n{following}", _data(result))


def _data(result: ClassificationResult) -> dict[str, Any]:
    """Return a finished map as JSON-ready data; areas in square metres."""
    names = {0: "unclassified"} | {c.number: c.name for c in result.legend.classes}
    areas, counts = result.areas, result.counts
    classes = [
        {
            "number": n, "name": name, "pixels": counts.get(n, 0),
            "area": None if areas is None else areas.get(n, 0.0),
        }
        for n, name in names.items()
    ]  # fmt: skip
    return {
        "map": str(result.path),
        "further": [str(path) for path in result.further],
        "classes": classes,
        "pixels": result.pixels,
        "pixel_area": None if areas is None else sum(areas.values()) / sum(counts.values()),
        "remarks": list(result.remarks),
        "weights": list(result.weights),
        "accuracy": result.accuracy,
        "engine": result.engine,
        "seconds": result.seconds,
    }


def _share_answer(result: ShareResult) -> Answer:
    """Describe the finished share of the parts, and the command that joins the shares."""
    text = (
        f"Share {result.number} of {result.of} is made: {result.parts} parts, {result.made} of them now, in "
        f"{result.seconds:.1f} s; engine {result.engine}\n\n"
        "When all shares are made, the same command without --share makes the map."
    )
    data = {"map": str(result.path), "share": [result.number, result.of], "parts": result.parts,
            "made": result.made, "engine": result.engine, "seconds": result.seconds}  # fmt: skip
    return Answer(text, data)


def _description(result: ClassificationResult) -> str:
    """Describe fractions and areas of the classes, seconds and speed."""
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
    mpx, seconds = result.pixels / 1e6, result.seconds
    speed = (
        f"{_decimals(mpx)} Mpx ({total / result.pixels:.1%} valid) in {_times(seconds)}, "
        f"{_decimals(mpx / seconds['all'])} Mpx/s; "
        f"engine {result.engine}, busy {result.network_share:.0%} of the time with windows"
    )
    origin = f"weights: {visible('; '.join(result.weights))}\naccuracy: {visible(result.accuracy)}"
    return f"{remarks}{columns(rows)}\n\n{origin}\n{speed}"


def _disk_advice(activations: str, network_share: float, seconds: float) -> str:
    """Advise smaller activations where the network mostly waited for reading, encoding and the disk."""
    if activations != "float32" or network_share >= 0.5 or (1 - network_share) * seconds < WORTH_ADVICE:
        return ""
    return (
        f"\nThe network waited {1 - network_share:.0%} of that time for reading, encoding and the disk: "
        "--activations uint8 writes about a quarter of the bytes."
    )


def _forecast_answer(forecast: Forecast) -> Answer:
    """Describe the forecast of a run; memory and disk of the data in bytes."""
    plan = forecast.plan
    computed = plan.computed_pixels / (plan.height * plan.width)
    rows = [
        ["map", f"{plan.height} x {plan.width} pixels in {len(plan)} parts of {plan.part}"],
        ["windows", f"{forecast.windows} of {plan.window[0]} x {plan.window[1]}, halo {plan.halo}"],
        ["without data", f"about {forecast.empty:.0%} of the windows, which are skipped"],
        ["computed", f"{computed:.2f} times the arithmetic of one pass"],
        ["engine", forecast.engine],
        ["memory", f"{forecast.memory / 1e9:.2f} GB"],
        ["disk", f"about {_size(forecast.disk)}, {_size(forecast.disk_bound)} must be free; parts included"],
        ["time", _times(forecast.seconds)],
    ]
    data = {
        "pixels": [plan.height, plan.width], "parts": len(plan), "windows": forecast.windows,
        "window": list(plan.window), "halo": plan.halo, "computed": computed, "empty": forecast.empty,
        "engine": forecast.engine, "memory": forecast.memory, "disk": forecast.disk,
        "disk_bound": forecast.disk_bound, "seconds": forecast.seconds,
    }  # fmt: skip
    return Answer(columns(rows, text_columns=2), data)


def _times(seconds: Mapping[str, float]) -> str:
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("start", "windows", "finish"))
    return f"{seconds['all']:.1f} s ({stages})"


def _decimals(number: float) -> str:
    """Return two decimals, or two digits of a small number."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


main = partial(run, ClassifyConfig, __doc__ or "", _classify)

if __name__ == "__main__":
    raise SystemExit(main())
