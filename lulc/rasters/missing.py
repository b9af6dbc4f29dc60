"""Missing values, decided here for bands, indices, labels, masks and maps alike.

A pixel of a layer is missing where any of these says so:

- its file, by value: no-data tag, ``_FillValue``, ``missing_value``, the no data of a STAC item, or a value
  beyond ``valid_range`` (see `declared_missing`);
- its file, by pixel: internal or external mask, alpha (see `Source.read_mask`);
- the user's option, beside what the file says;
- the value itself: NaN and infinite numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_VALUE_KEYS = ("nodata", "no_data", "nodata_value", "_fillvalue", "fill_value", "missing_value")


@dataclass(frozen=True)
class Missing:
    """Missing values that a file declares for one layer, as stored values."""

    values: tuple[float, ...] = ()
    lowest: float = -math.inf
    highest: float = math.inf

    def also(self, *more: float | None) -> Missing:
        """The same with further values of no data; None adds none."""
        values = dict.fromkeys((*self.values, *(v for v in more if v is not None)))
        return dataclasses.replace(self, values=tuple(values))

    def without(self, value: float) -> Missing:
        """The same with one value that counts."""
        return dataclasses.replace(self, values=tuple(v for v in self.values if v != value))

    def mark(self, stored: np.ndarray, valid: np.ndarray) -> None:
        """Turn `valid` (bool, the shape of `stored`) False where a value is missing; NaN is the caller's."""
        for value in self.values:
            if (typed := _in_type(value, stored.dtype)) is not None:
                valid &= stored != typed
        if self.lowest > -math.inf:
            valid &= stored >= self._bound(self.lowest, stored.dtype, math.ceil)
        if self.highest < math.inf:
            valid &= stored <= self._bound(self.highest, stored.dtype, math.floor)

    def present(self, stored: np.ndarray) -> np.ndarray:
        """True where a value is there: finite and not missing; bool, the shape of `stored`."""
        valid = np.isfinite(stored)
        self.mark(stored, valid)
        return valid

    @staticmethod
    def _bound(value: float, dtype: np.dtype, whole: Any) -> float:
        # A Python integer is compared exactly with every integer type.
        return whole(value) if dtype.kind in "iu" else float(value)


NOTHING = Missing()
"""What a file says that says nothing."""


def declared_missing(
    attributes: Mapping[str, Any],
    default: float | None = None,
    *,
    dtype: str = "float64",
    scale: float = 1.0,
    offset: float = 0.0,
) -> Missing:
    """Return the missing values that metadata of a layer declare.

    Parameters
    ----------
    attributes
        Tags or attributes of the layer, keys in any case.
    default
        No-data value of the whole file, which a value of the layer's own replaces.
    dtype
        Type that values are read as, which turns the signed -1 of ``_Unsigned`` into 255.
    scale, offset
        unpacked = stored x scale + offset, where packed: floating-point limits of whole numbers are unpacked.

    Examples
    --------
    >>> declared_missing({"_FillValue": -1, "valid_range": [0, -6]}, dtype="uint8")
    Missing(values=(255.0,), lowest=0.0, highest=250.0)
    >>> declared_missing({}, 0.0)
    Missing(values=(0.0,), lowest=-inf, highest=inf)
    """
    known = {key.lower(): value for key, value in attributes.items()}
    own = [_unsigned(v, dtype) for key in _VALUE_KEYS for v in _numbers(known.get(key))]
    values = [as_stored(v, dtype) for v in own or ([] if default is None else [float(default)])]
    limits = [*_numbers(known.get("valid_range")), math.nan, math.nan][:2]
    low = next(_numbers(known.get("valid_min")), limits[0])
    high = next(_numbers(known.get("valid_max")), limits[1])
    if (scale, offset) != (1.0, 0.0) and np.dtype(dtype).kind in "iu" and _fractional(known):
        low, high = sorted(((low - offset) / scale, (high - offset) / scale))
    low, high = _unsigned(low, dtype), _unsigned(high, dtype)
    return Missing(
        tuple(dict.fromkeys(v for v in values if v is not None)),
        -math.inf if math.isnan(low) else low,
        math.inf if math.isnan(high) else high,
    )


def odd_values(
    attributes: Mapping[str, Any], dtype: str, *, keys: Sequence[str] = _VALUE_KEYS, most: int | None = None
) -> list[str]:
    """Return the no-data attributes of a layer that no value of its type can mean, as ``key 'value'``.

    Examples
    --------
    >>> odd_values({"_FillValue": "none", "nodata": "1e400", "missing_value": [0, 255]}, "uint8")
    ["_FillValue 'none'", "nodata '1e400'"]
    """
    odd = []
    for key, value in attributes.items():
        if key.lower() not in keys or value is None:
            continue
        numbers = list(_numbers(value))
        infinite = not np.isfinite(numbers).all()
        # A float may be infinite, but not because its text has too many digits.
        meant = np.dtype(dtype).kind == "f" and re.search("inf|nan", str(value), re.IGNORECASE)
        if (
            len(numbers) < _count(value)
            or not numbers
            or len(numbers) > (most or len(numbers))
            or (infinite and not meant)
        ):
            odd.append(f"{key} '{str(value)[:40]}'")
    return odd


def _count(value: Any) -> int:
    """Number of values that an attribute lists."""
    return sum(len(_parts(item)) for item in np.ravel(value).tolist())


def _parts(item: Any) -> list[Any]:
    text = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
    return text.replace(",", " ").split() if isinstance(text, str) else [text]


def as_stored(value: float | None, dtype: str) -> float | None:
    """`value` as a type stores it: -9999.9 in float32 is another number than in float64."""
    if value is None or np.dtype(dtype).kind != "f":
        return value
    with np.errstate(over="ignore"):
        return float(np.dtype(dtype).type(value))


def _numbers(value: Any) -> Iterator[float]:
    """All numbers of an attribute: of any type, one or many, or written as text."""
    if value is None:
        return
    for item in np.ravel(value).tolist():
        for part in _parts(item):
            try:
                yield float(part)
            except (TypeError, ValueError):
                return


def _unsigned(value: float, dtype: str) -> float:
    """A negative number that stands for one of an unsigned type, as ``_Unsigned`` means; others unchanged."""
    kind = np.dtype(dtype)
    if kind.kind != "u" or not -(2.0 ** (8 * kind.itemsize - 1)) <= value < 0 or value != round(value):
        return value
    return value + 2.0 ** (8 * kind.itemsize)


def _fractional(known: Mapping[str, Any]) -> bool:
    """True where the limits are stored as floating-point numbers, so that they mean unpacked values."""
    limits = [known[key] for key in ("valid_range", "valid_min", "valid_max") if key in known]
    return any(np.asarray(limit).dtype.kind == "f" for limit in limits)


def _in_type(value: float, dtype: np.dtype) -> np.generic | None:
    """`value` in a stored type, as float32(-9999.9) for the float64 of metadata; None where it has none."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            typed: np.generic = dtype.type(value)
        return None if np.isnan(typed) else typed
    information = np.iinfo(dtype)
    if not math.isfinite(value) or value != round(value):
        return None
    return dtype.type(int(value)) if information.min <= value <= information.max else None
