"""Conversion of stored numbers (DN) to reflectance x 10000, and signs that it is wrong.

    reflectance = (DN + offset) x scale

The user's options give scale and offset, else the file's metadata, else they are 0.0001 and 0. Processing
baseline 04.00 (25 January 2022) added 1000 to DN; some archives have removed it, others haven't.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lulc.core.channels import ChannelDefinition
from lulc.core.schema import InputError
from lulc.rasters.layers import UNIT, Layer
from lulc.rasters.missing import Missing
from lulc.rasters.names import SENTINEL_BANDS

logger = logging.getLogger("lulc")

DEFAULT_SCALE = 0.0001
LOWEST, HIGHEST = -0.09995, 2.0
"""Reflectance outside this range is missing; small negative values over water are kept.

The smallest valid DN, 1, is -0.0999 with the offset of -1000; exactly -0.1 is the DN 0 of missing pixels with
it.
"""

_FULL_RANGE = 65535 / UNIT
_DARK, _SHADOW, _GREEN, _WATER, _BLACK = 0.09, 0.15, 0.25, 0.05, 0.01
_ODD = 0.05
_JUMP = 20.0
_FEWEST, _FEWEST_DARK = 500, 30


@dataclass(frozen=True)
class Scaling:
    """Conversion of DN to reflectance: (DN + `offset`) x `scale`.

    `scale_from` and `offset_from` are their sources: ``option``, ``metadata``, ``channel set`` or
    ``default``.
    """

    scale: float = DEFAULT_SCALE
    offset: float = 0.0
    scale_from: str = "default"
    offset_from: str = "default"


def choose_scaling(
    layer: Layer, scale: float | None, offset: float | None,
    known: tuple[float | None, float | None] = (None, None),
) -> Scaling:  # fmt: skip
    """Return scale and offset from the first that has them: options, metadata, channel, defaults (0.0001, 0).

    `known` are scale and offset of the channel: reflectance = stored x scale + offset. Raises InputError if
    the scale is not a positive number, or the offset no number.
    """
    factor, addend = known
    # Metadata or an option with a scale and no offset mean an offset of 0.
    has_scale = layer.scale is not None or scale is not None
    moved = None if addend is None or has_scale else addend / (factor or DEFAULT_SCALE)

    def first(*candidates: float | None) -> tuple[float, str]:
        sources = ("option", "metadata", "channel set", "default")
        return next((float(n), s) for n, s in zip(candidates, sources, strict=True) if n is not None)

    value, scale_from = first(scale, layer.scale, factor, DEFAULT_SCALE)
    added, offset_from = first(offset, layer.offset, moved, 0.0)
    if not (np.isfinite(value) and value > 0 and np.isfinite(added)):
        raise InputError(
            f"cannot convert DN to reflectance, since scale is {value:g} and offset {added:g}, "
            "expected a positive scale and a finite offset",
            "For reflectance x 10000: --scale 0.0001 --offset 0",
        )
    return Scaling(value, added, scale_from, offset_from)


def as_fractions(scaling: Scaling, stored: np.ndarray) -> Scaling:
    """Return the scaling of values in no unit: that of fractions if they look like these, else as it is."""
    return Scaling(1.0, 0.0, "metadata", "metadata") if _unit_of(stored)[0] is _FRACTIONS else scaling


def reflectance(
    dn: np.ndarray, scaling: Scaling, missing: Missing, out: np.ndarray, valid: np.ndarray
) -> None:
    """Convert one plane of stored values (y, x) to reflectance x 10000.

    Write it to `out`, float32 (y, x), meaningless where invalid. Write to `valid`, bool (y, x), False for
    missing values, 0, NaN, Inf and reflectance outside [-0.09995, 2.0].
    """
    np.copyto(out, dn, casting="unsafe")
    if scaling.offset:
        out += np.float32(scaling.offset)
    factor = np.float32(scaling.scale * UNIT)
    if factor != 1:
        out *= factor
    np.less_equal(out, np.float32(HIGHEST * UNIT), out=valid)
    if dn.dtype.kind != "u" or scaling.offset < 0:
        valid &= out >= np.float32(LOWEST * UNIT)
    valid &= dn != 0
    missing.mark(dn, valid)


def convert(
    dn: np.ndarray, channel: ChannelDefinition, layer: Layer, out: np.ndarray, valid: np.ndarray
) -> None:
    """Convert one plane of stored values (y, x) that is no reflectance.

    The layer's own scale and offset have priority over those of the channel. Write values in the unit of the
    channel to `out`, float32 (y, x), meaningless where invalid. Write to `valid`, bool (y, x), False for
    missing values, NaN, Inf and values outside the valid range.
    """
    np.copyto(out, dn, casting="unsafe")
    _unpack(out, channel, layer)
    if channel.stored == "power":
        with np.errstate(divide="ignore", invalid="ignore"):
            np.log10(out, out=out)
        out *= np.float32(10)
    np.isfinite(out, out=valid)
    if channel.minimum is not None:
        valid &= out >= np.float32(channel.minimum)
    if channel.maximum is not None:
        valid &= out <= np.float32(channel.maximum)
    if channel.kind == "backscatter":
        # Programs for radar write 0 where a scene has no pixel.
        valid &= dn != 0
    layer.missing.mark(dn, valid)


def _unpack(values: np.ndarray, channel: ChannelDefinition, layer: Layer) -> None:
    """Apply scale and offset to float32 values in place."""
    factor, addend = layer.packing
    if layer.packing == (1.0, 0.0):
        factor, addend = channel.scale or 1.0, channel.offset or 0.0
    if factor != 1:
        values *= np.float32(factor)
    if addend:
        values += np.float32(addend)


def check_limits(stored: np.ndarray, channel: ChannelDefinition, layer: Layer, name: str) -> None:
    """Refuse a layer with hardly any value in the valid range of its channel, as in another unit."""
    values = stored.astype("float32")
    _unpack(values, channel, layer)
    low = -np.inf if channel.minimum is None else channel.minimum
    high = np.inf if channel.maximum is None else channel.maximum
    outside = np.mean((values < low) | (values > high)) if values.size else 0.0
    if outside > 1 - _ODD:
        raise InputError(
            f"cannot use {name}, since {outside:.0%} of its values lie outside {low:g} to {high:g} "
            f"{channel.unit} (their median is {np.median(values):.5g}), expected most inside",
            "Say in the channel set how they are stored (scale: 0.3048 for feet), or set other limits.",
        )


_LINEAR, _NOISE, _LOWEST_DB, _HIGHEST_DB = 3.0, -0.2, -45.0, 10.0


def recognise_backscatter(stored: np.ndarray, layer: Layer, name: str) -> Literal["dB", "power"]:
    """Tell backscatter in dB from linear power; raises InputError if the values look like neither.

    Power is seldom above 1, and below 0 only where noise was subtracted. Land and water in dB are mostly
    negative.
    """
    factor, addend = layer.packing
    values = stored.astype("float64") * factor + addend
    values = values[np.isfinite(values) & (stored != 0)]
    if not values.size:
        return "dB"
    low, middle, high = np.percentile(values, (0.5, 50, 95))
    if low > _NOISE and 0 <= middle <= _LINEAR:
        return "power"
    if _LOWEST_DB <= middle <= _HIGHEST_DB and low < -1:
        return "dB"
    raise InputError(
        f"cannot take {name} for backscatter, since 95 % of its values lie below {high:.4g} and their median "
        f"is {middle:.4g}, expected dB (about -30 to 5) or linear power (about 0 to 1)",
        "Calibrate the product to sigma or gamma nought; or say in the channel set how values are stored: "
        "stored: dB, and scale where they are whole numbers.",
    )


def check_radiometry(
    samples: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], path: str, more: int = 0
) -> None:
    """Check samples of a mosaic for signs that scale or offset are wrong, band by band.

    Messages name the file `path`, and how many `more` the mosaic has.

    `samples` are stored values (n,) of each band at the same pixels; 0 and non-finite values are missing. The
    checks use quantiles and medians, so that a few odd pixels have no influence: the DN 1 of edges and
    terrain shadow, saturated pixels, remains of no data.

    Raises InputError with the option to type for 8-bit previews, 0..1, percent and x 65535 without a given
    scale, for an offset of +1000 left in without a given offset, and where most values are impossible; and
    with the bands where they differ in unit.
    """
    name = f"'{path}' and {more} more" if more else f"'{path}'"
    present = {band: np.isfinite(v) & (v != 0) for band, v in samples.items()}
    samples = {band: v for band, v in samples.items() if present[band].sum() >= _FEWEST}
    if not samples:
        return
    known = {band: v[present[band]] for band, v in samples.items()}
    _check_units(known, scaling, name)
    _check_range(known, scaling, name)
    values = {b: (v.astype("float64") + scaling[b].offset) * scaling[b].scale for b, v in samples.items()}
    if len({v.size for v in values.values()}) == 1:
        whole = np.logical_and.reduce([present[band] for band in samples])
        if whole.sum() >= _FEWEST:
            values = {band: v[whole] for band, v in values.items()}
    if all(scaling[band].offset_from == "default" for band in samples):
        _check_offset(values, scaling, name)
    else:
        _check_negative(values, scaling, name)
    if not all(scaling[band].offset_from == "option" for band in samples):
        _check_alike(values, name)


class _Unit(NamedTuple):
    """Unit of stored values: reflectance x `factor`."""

    name: str
    factor: float
    advice: str = "Type"


_DN = _Unit("reflectance x 10000", 10_000.0)
_FRACTIONS, _PERCENT = _Unit("fractions", 1.0), _Unit("percent", 100.0)
_STRETCHED = _Unit("reflectance x 65535", 65535.0)
_PREVIEW = _Unit(
    "8 bits, like a preview's", 255.0,
    "Previews are stretched for the eye and hold no reflectance: give the product itself. "
    "If it holds reflectance x 255, type",
)  # fmt: skip


def _check_units(samples: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Recognise the usual scales other than x 10000, and bands of different units."""
    unscaled = {b: v for b, v in samples.items() if scaling[b].scale_from == "default"}
    units = {band: _unit_of(v) for band, v in unscaled.items()}
    doubtful = [band for band, (_, sure) in units.items() if not sure]
    found = {band: unit for band, (unit, _) in units.items()}
    if set(doubtful) != set(found):
        # Infrared DN of water are as low as percent of land, but darken gradually from band to band.
        levels = {band: float(np.median(v)) for band, v in samples.items()}
        for band in doubtful:
            if not _jumps(band, levels, [b for b in samples if b not in doubtful]):
                found[band] = _DN
    kinds = list(dict.fromkeys(found.values()))
    if not kinds or kinds == [_DN]:
        return
    if len(kinds) == 1:
        raise _wrong_scale(name, kinds[0], np.concatenate(list(unscaled.values())))
    groups = {unit: [band for band, band_unit in found.items() if band_unit == unit] for unit in kinds}
    listed = ", but ".join(f"{', '.join(bands)} look like {unit.name}" for unit, bands in groups.items())
    odd = next(unit for unit in kinds if unit != _DN)
    raise InputError(
        f"cannot take {name} for one mosaic, since its bands are of different units: {listed}; "
        "expected one unit, or a scale in each file",
        f"Convert the files of {', '.join(groups[odd])}: gdal_translate -ot UInt16 -scale 0 {odd.factor:g} "
        "0 10000 IN OUT    (--scale 0.0001 if all are reflectance x 10000 after all)",
    )


def _unit_of(values: np.ndarray) -> tuple[_Unit, bool]:
    """(unit that the stored values of a band look like, whether this is certain)."""
    high = float(np.percentile(values, 99))
    if values.dtype.kind in "iu":
        if values.dtype.itemsize == 1:
            return _PREVIEW, True
        if high <= 255:
            return _PREVIEW, False
        return (_STRETCHED if _is_full_range(values) else _DN), True
    if float(np.percentile(values, 90)) <= HIGHEST:
        return _FRACTIONS, True
    return (_PERCENT, False) if float(np.percentile(values, 90)) <= 100 else (_DN, True)


def _jumps(band: str, levels: Mapping[str, float], others: Sequence[str]) -> bool:
    """True where the level of a band differs much from that of the nearest other in wavelength."""
    order = SENTINEL_BANDS if {band, *others} <= {*SENTINEL_BANDS} else (band, *others)
    nearest = min(others, key=lambda other: abs(order.index(other) - order.index(band)))
    return not 1 / _JUMP < levels[band] / levels[nearest] < _JUMP


def _wrong_scale(name: str, unit: _Unit, values: np.ndarray) -> InputError:
    low, high = np.percentile(values, (1, 99))
    return InputError(
        f"cannot take {name} for reflectance x 10000, since its values look like {unit.name} "
        f"(98 % lie in {low:.3g}..{high:.3g}), expected numbers of about 100 to 10000, or a scale",
        f"{unit.advice} --scale {1 / unit.factor:.5g}    "
        "(--scale 0.0001 if it is reflectance x 10000 after all)",
    )


def _is_full_range(values: np.ndarray) -> bool:
    """True for reflectance x 10000 that was stretched to x 65535, which uses one of six numbers."""
    distinct = np.unique(values)
    if distinct.size < 40 or distinct.dtype.kind not in "iu":
        return False
    whole = np.round(values / _FULL_RANGE) * _FULL_RANGE
    return bool(max(np.mean(f(whole) == values) for f in (np.round, np.floor, np.ceil)) > 0.99)


def _check_range(samples: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Refuse a scale that makes most values of a band impossible, or all bands black."""
    values = {b: (v.astype("float64") + scaling[b].offset) * scaling[b].scale for b, v in samples.items()}
    outside = {b: float(np.mean((v < LOWEST) | (v > HIGHEST))) for b, v in values.items()}
    # Land is hardly ever as bright as 1.0 in short-wave infrared; snow and cloud are dark there.
    bright = {b for b in ("B11", "B12") if b in values and np.median(values[b]) > 1.0}
    odd = [b for b in values if outside[b] >= 0.5 or b in bright]
    if not odd and max(float(np.percentile(v, 99.5)) for v in values.values()) >= _BLACK:
        return
    odd = odd or list(values)
    band = max(odd, key=lambda b: outside[b])
    dn, used = float(np.median(samples[band])), scaling[band]
    fitting = 1.0 if dn <= 2 else 0.01 if dn <= 100 else 0.0001 if dn <= 9000 else 1 / 65535
    raise InputError(
        f"cannot take {name} for reflectance, since {outside[band]:.0%} of the values of {band} lie "
        f"outside -0.1..{HIGHEST:g} and their median is {np.median(values[band]):.4g} "
        f"(scale {used.scale:.5g} by {used.scale_from}, offset {used.offset:g} by {used.offset_from}; "
        f"as {', '.join(odd)}), expected a median of about 0.02 to 0.5",
        f"Its numbers have a median of {dn:.6g}: try --scale {fitting:.5g}",
    )


def _check_offset(values: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Recognise the +1000 of processing baseline 04.00, by which hardly a pixel is below 0.09 in any band.

    Without it, snow and clouds are dark in short-wave infrared, vegetation in red, water in infrared. Only a
    desert is bright in all bands, and it has neither shadows in infrared nor vegetation.
    """
    if len(values) < 3 or len({v.size for v in values.values()}) != 1:
        return
    darkest = np.min(list(values.values()), axis=0)
    usual = darkest >= _DARK
    if usual.mean() < 1 - _ODD:
        return
    lowest = {band: float(np.percentile(v[usual], 0.1)) for band, v in values.items()}
    shadow = any(lowest[b] < _SHADOW for b in ("B08", "B11", "B12") if b in lowest)
    green = False
    if "B04" in values and "B08" in values:
        red, infrared = values["B04"][usual], values["B08"][usual]
        green = float(np.percentile((infrared - red) / (infrared + red), 99)) > _GREEN
    offset = -0.1 / next(iter(scaling.values())).scale
    seen = (
        f"{usual.mean():.1%} of its pixels are nowhere darker than {_DARK}, and the darkest of them are "
        f"{min(lowest.values()):.3f} to {max(lowest.values()):.3f}, by band"
    )
    if not (shadow or green):
        logger.warning(
            "%s: %s; if it is of processing baseline 04.00 or later, add --offset %g", name, seen, offset
        )
        return
    raise InputError(
        f"cannot take {name} for reflectance as it is, since no band has anything dark ({seen}), as "
        "where the offset of processing baseline 04.00 was left in, "
        "expected shadows, water or vegetation near 0",
        f"Remove it: --offset {offset:g}    (--offset 0 if the scene really is that bright)",
    )


_STEPS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("B02", "B03"): (-0.09, 0.085), ("B03", "B04"): (-0.075, 0.095), ("B04", "B05"): (-0.025, 0.1),
    ("B06", "B07"): (-0.045, 0.13), ("B07", "B08"): (-0.045, 0.08), ("B07", "B8A"): (-0.045, 0.08),
    ("B11", "B12"): (-0.15, 0.04),
}  # fmt: skip
"""Limits of the median difference between neighbouring bands, second minus first.

Medians of land, water and snow in twenty real scenes are inside; the offset in one band moves them by 0.1.
"""

_RED_EDGE = 0.07
"""Limit of the median of min(B06, B07 or B08, B12) - B05.

Plants are dark in B12, and soil is hardly brighter in near infrared than in B05: the medians of 159 real
images are at most 0.056. With the offset from B06, B07 or B08 on, all but three are above 0.07.
"""


def _check_alike(values: Mapping[str, np.ndarray], name: str) -> None:
    """Warn of an offset that was left in some bands and removed from others."""
    if len({v.size for v in values.values()}) != 1:
        return
    brighter: set[str] = set()
    for (first, second), (least, most) in _STEPS.items():
        if first in values and second in values:
            step = float(np.median(values[second] - values[first]))
            brighter |= {first} if step < least else {second} if step > most else set()
    for band in ("B06", "B07", "B08"):
        if {band, "B05", "B12"} <= values.keys():
            step = np.minimum(values[band], values["B12"]) - values["B05"]
            brighter |= {band, "B12"} if np.median(step) > _RED_EDGE else set()
    for band in ("B11", "B12"):
        # Water and shadow are dark in all of infrared.
        if "B08" in values and band in values and _is_veiled(values["B08"], values[band]):
            brighter.add(band)
    if not brighter:
        return
    logger.warning(
        "%s: %s %s brighter than the bands beside, as where the offset of processing baseline 04.00 was "
        "left in some of the files; write it into those that have it: gdal_edit.py -scale 0.0001 "
        "-offset -0.1 FILE; if all are right as they are, add --offset 0",
        name, ", ".join(b for b in SENTINEL_BANDS if b in brighter), "is" if len(brighter) == 1 else "are",
    )  # fmt: skip


def _is_veiled(infrared: np.ndarray, short_wave: np.ndarray) -> bool:
    """True where near infrared has dark pixels and short-wave infrared has none."""
    dark = infrared < _WATER
    if dark.sum() >= _FEWEST_DARK:
        return float(np.median(short_wave[dark])) > _DARK + 0.02
    return bool(np.percentile(short_wave, 0.5) > _DARK + 0.02 and np.percentile(infrared, 0.5) < _DARK)


def _check_negative(values: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Warn where an offset makes much of the scene negative, as if it had been removed before."""
    used = next(iter(scaling.values()))
    negative = float(np.mean(np.concatenate([v < 0 for v in values.values()])))
    if used.offset < 0 and negative > 0.1:
        logger.warning(
            "%s: with an offset of %g (by %s) %.0f %% of its values are negative; "
            "if the archive has removed it already, add --offset 0",
            name, used.offset, used.offset_from, 100 * negative,
        )  # fmt: skip
