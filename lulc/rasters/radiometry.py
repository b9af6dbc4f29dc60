"""From stored numbers (DN) to reflectance x 10000, and signs that the conversion is a wrong one.

    reflectance = (DN + offset) x scale

Scale and offset are the user's options, else what the file's metadata say, else 0.0001 and 0. Processing
baseline 04.00 (25 January 2022) added 1000 to DN; archives differ in whether they took it off again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lulc.core.schema import InputError
from lulc.rasters.layers import UNIT, Layer
from lulc.rasters.missing import Missing

logger = logging.getLogger("lulc")

DEFAULT_SCALE = 0.0001
LOWEST, HIGHEST = -0.09995, 2.0
"""Reflectance outside this range is no data; small negative values over water are kept.

The smallest valid DN is 1, which the offset of -1000 makes -0.0999: exactly -0.1 is the DN 0 of no data that
went through the offset.
"""

_FULL_RANGE = 65535 / UNIT
_DARK, _SHADOW, _GREEN = 0.09, 0.15, 0.25
_FEWEST = 500


@dataclass(frozen=True)
class Scaling:
    """How DN become reflectance, and who says so.

    Parameters
    ----------
    scale
        Reflectance per DN.
    offset
        Added to DN before scaling.
    scale_from, offset_from
        ``option``, ``metadata`` or ``default``.
    """

    scale: float = DEFAULT_SCALE
    offset: float = 0.0
    scale_from: str = "default"
    offset_from: str = "default"


def choose_scaling(layer: Layer, scale: float | None, offset: float | None) -> Scaling:
    """The user's options before the file's metadata before 0.0001 and 0.

    Raises
    ------
    InputError
        If the scale is not a positive number, or the offset no number.
    """
    chosen = []
    for option, metadata, default in (
        (scale, layer.scale, DEFAULT_SCALE),
        (offset, layer.offset, 0.0),
    ):
        if option is not None:
            chosen.append((float(option), "option"))
        elif metadata is not None:
            chosen.append((float(metadata), "metadata"))
        else:
            chosen.append((default, "default"))
    (value, said), (added, added_by) = chosen
    if not (np.isfinite(value) and value > 0 and np.isfinite(added)):
        raise InputError(
            f"cannot convert DN to reflectance, since scale is {value:g} and offset {added:g}, "
            "expected a positive scale and a finite offset",
            "For reflectance x 10000: --scale 0.0001 --offset 0",
        )
    return Scaling(value, added, said, added_by)


def reflectance(
    dn: np.ndarray, scaling: Scaling, missing: Missing, out: np.ndarray, valid: np.ndarray
) -> None:
    """Convert one plane.

    Parameters
    ----------
    dn
        Stored values (y, x), integer or float.
    scaling
        How they are converted.
    missing
        What is no data. A stored 0 is in any case.
    out
        float32 (y, x), receives reflectance x 10000; meaningless where invalid.
    valid
        bool (y, x), receives False for no data, NaN, Inf and reflectance outside [-0.09995, 2.0].
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


def check_radiometry(samples: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Look at samples of a mosaic for signs that scale or offset are wrong.

    Parameters
    ----------
    samples
        Band name to stored values (n,) without no data.
    scaling
        Band name to how it is converted.
    name
        File, for messages.

    Raises
    ------
    InputError
        With the option to type: for 8-bit previews, 0..1, percent and x 65535 where no scale was given;
        for an offset of +1000 left in where none was given; where most values are impossible.
    """
    samples = {band: v[np.isfinite(v)] for band, v in samples.items()}
    samples = {band: v for band, v in samples.items() if v.size >= _FEWEST}
    if not samples:
        return
    unscaled = {b: v for b, v in samples.items() if scaling[b].scale_from == "default"}
    if unscaled:
        _check_scale(unscaled, name)
    values = {
        band: (v.astype("float64") + scaling[band].offset) * scaling[band].scale
        for band, v in samples.items()
    }
    _check_range(samples, values, scaling, name)
    if all(scaling[band].offset_from == "default" for band in samples):
        _check_offset(values, scaling, name)
    else:
        _check_negative(values, scaling, name)


def _check_scale(samples: Mapping[str, np.ndarray], name: str) -> None:
    """Recognise the usual scales other than x 10000."""
    joined = np.concatenate(list(samples.values()))
    highest = float(np.percentile(joined, 99.9))
    if joined.dtype.kind in "iu":
        if joined.dtype.itemsize == 1 or joined.max() <= 255:
            raise _wrong_scale(
                name,
                f"its values are of 8 bits ({joined.min()}..{joined.max()}), like a preview's",
                1 / 255,
                "Previews are stretched for the eye and hold no reflectance: give the product itself. "
                "If it holds reflectance x 255, type",
            )
        if _is_full_range(joined):
            raise _wrong_scale(name, "its values look like reflectance x 65535", 1 / 65535)
    elif highest <= HIGHEST:
        found = f"its values are fractions (99.9 % below {highest:.3g}), like reflectance"
        raise _wrong_scale(name, found, 1.0)
    elif highest <= 100:
        found = f"99.9 % of its values lie below {highest:.3g}, like reflectance in percent"
        raise _wrong_scale(name, found, 0.01)


def _wrong_scale(name: str, found: str, scale: float, advice: str = "Say so:") -> InputError:
    return InputError(
        f"cannot take '{name}' for reflectance x 10000, since {found}, "
        "expected numbers of about 100 to 10000, or a scale",
        f"{advice} --scale {scale:.5g}    (--scale 0.0001 if it is reflectance x 10000 after all)",
    )


def _is_full_range(values: np.ndarray) -> bool:
    """True for reflectance x 10000 that was stretched to x 65535, which skips five of six numbers."""
    distinct = np.unique(values)
    if distinct.size < 40 or distinct.dtype.kind not in "iu":
        return False
    whole = np.round(values / _FULL_RANGE) * _FULL_RANGE
    return bool(max(np.mean(f(whole) == values) for f in (np.round, np.floor, np.ceil)) > 0.99)


def _check_range(
    samples: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    scaling: Mapping[str, Scaling],
    name: str,
) -> None:
    """Refuse a scale that makes most values impossible."""
    joined = np.concatenate(list(values.values()))
    outside = float(np.mean((joined < LOWEST) | (joined > HIGHEST)))
    # Land is hardly ever as bright as 1.0 in short-wave infrared; snow and cloud are dark there.
    bright = [np.median(values[b]) > 1.0 for b in ("B11", "B12") if b in values]
    if outside < 0.5 and not (bright and all(bright)):
        return
    dn = float(np.median(np.concatenate(list(samples.values()))))
    fitting = 1.0 if dn <= 2 else 0.01 if dn <= 100 else 0.0001 if dn <= 9000 else 1 / 65535
    used = next(iter(scaling.values()))
    raise InputError(
        f"cannot take '{name}' for reflectance, since {outside:.0%} of its values lie outside "
        f"{LOWEST}..{HIGHEST} and their median is {np.median(joined):.4g} "
        f"(scale {used.scale:.5g} by {used.scale_from}, offset {used.offset:g} by {used.offset_from}), "
        "expected a median of about 0.02 to 0.5",
        f"Its numbers have a median of {dn:.6g}: try --scale {fitting:.5g}",
    )


def _check_offset(values: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Recognise the +1000 of processing baseline 04.00: no band has anything darker than 0.09.

    Snow and clouds are dark in short-wave infrared, vegetation in red, water in infrared; only a desert
    is bright in all bands, and has neither shadows in infrared nor green.
    """
    if len(values) < 3:
        return
    lowest = {band: float(np.percentile(v, 0.1)) for band, v in values.items()}
    if min(lowest.values()) < _DARK:
        return
    shadow = any(lowest[b] < _SHADOW for b in ("B08", "B11", "B12") if b in lowest)
    green = False
    if "B04" in values and "B08" in values and values["B04"].shape == values["B08"].shape:
        red, infrared = values["B04"], values["B08"]
        green = float(np.percentile((infrared - red) / (infrared + red), 99)) > _GREEN
    offset = -0.1 / next(iter(scaling.values())).scale
    seen = f"the darkest values of its bands are {min(lowest.values()):.3f} to {max(lowest.values()):.3f}"
    if not (shadow or green):
        logger.warning(
            "'%s': %s; if it is of processing baseline 04.00 or later, add --offset %g", name, seen, offset
        )
        return
    raise InputError(
        f"cannot take '{name}' for reflectance as it is, since no band has anything dark ({seen}), as "
        "where the offset of processing baseline 04.00 was left in, "
        "expected shadows, water or vegetation near 0",
        f"Take it off: --offset {offset:g}    (--offset 0 if the scene really is that bright)",
    )


def _check_negative(values: Mapping[str, np.ndarray], scaling: Mapping[str, Scaling], name: str) -> None:
    """Warn where an offset makes much of the scene negative: it was taken off before."""
    used = next(iter(scaling.values()))
    share = float(np.mean(np.concatenate([v < 0 for v in values.values()])))
    if used.offset < 0 and share > 0.1:
        logger.warning(
            "'%s': with an offset of %g (by %s) %.0f %% of its values are negative; "
            "if the archive has taken it off already, add --offset 0",
            name, used.offset, used.offset_from, 100 * share,
        )  # fmt: skip
