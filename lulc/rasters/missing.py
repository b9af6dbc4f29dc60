"""Missing values of bands, indices, labels, masks and maps alike.

A pixel of a layer is missing by any of these:

- its value in the file: no-data tag, ``_FillValue``, ``missing_value``, the no data of a STAC item, or beyond
  ``valid_range`` (see `declared_missing`);
- its position in the file: internal or external mask, alpha (see `Source.read_mask`);
- the user's option, in addition to the file;
- a NaN or infinite value.
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
        """Return this with further no-data values; None adds none."""
        values = dict.fromkeys((*self.values, *(v for v in more if v is not None)))
        return dataclasses.replace(self, values=tuple(values))

    def without(self, value: float) -> Missing:
        """Return this without a no-data value."""
        return dataclasses.replace(self, values=tuple(v for v in self.values if v != value))

    def mark(self, stored: np.ndarray, valid: np.ndarray) -> None:
        """Set `valid` (bool, the shape of `stored`) to False where a value is missing, but not where it is
        NaN.
        """
        for value in self.values:
            if (typed := _in_type(value, stored.dtype)) is not None:
                valid &= stored != typed
        # A Python integer is compared exactly with every integer type.
        whole = stored.dtype.kind in "iu"
        if self.lowest > -math.inf:
            valid &= stored >= (math.ceil(self.lowest) if whole else float(self.lowest))
        if self.highest < math.inf:
            valid &= stored <= (math.floor(self.highest) if whole else float(self.highest))

    def present(self, stored: np.ndarray) -> np.ndarray:
        """True where a value is finite and not missing; bool, the shape of `stored`."""
        valid = np.isfinite(stored)
        self.mark(stored, valid)
        return valid


NOTHING = Missing()
"""Missing values of a file that declares none."""


def declared_missing(
    attributes: Mapping[str, Any], default: float | None = None, *, dtype: str = "float64",
    scale: float = 1.0, offset: float = 0.0,
) -> Missing:  # fmt: skip
    """Return the missing values that the metadata of a layer declare.

    Parameters
    ----------
    attributes
        Tags or attributes of the layer, keys in any case.
    default
        No-data value of the whole file, which those of the layer replace.
    dtype
        Type that values are read as; in an unsigned one, the -1 of ``_Unsigned`` means 255.
    scale, offset
        unpacked = stored x scale + offset; floating-point limits of packed integers are unpacked values.

    Examples
    --------
    >>> declared_missing({"_FillValue": -1, "valid_range": [0, -6]}, dtype="uint8")
    Missing(values=(255.0,), lowest=0.0, highest=250.0)
    """
    known = {key.lower(): value for key, value in attributes.items()}
    declared = [_unsigned(v, dtype) for key in _VALUE_KEYS for v in _numbers(known.get(key))]
    values = [as_stored(v, dtype) for v in declared or ([] if default is None else [float(default)])]
    limits = [*_numbers(known.get("valid_range")), math.nan, math.nan][:2]
    low = next(_numbers(known.get("valid_min")), limits[0])
    high = next(_numbers(known.get("valid_max")), limits[1])
    unpacked = any(
        np.asarray(known[key]).dtype.kind == "f"
        for key in ("valid_range", "valid_min", "valid_max") if key in known
    )  # fmt: skip
    if (scale, offset) != (1.0, 0.0) and np.dtype(dtype).kind in "iu" and unpacked:
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
    """Return, as ``key 'value'``, the no-data attributes that no value of the type can equal.

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
        listed = sum(len(_parts(item)) for item in np.ravel(value).tolist())
        # A float may be infinite, but not because its text has too many digits.
        may_be_infinite = np.dtype(dtype).kind == "f" and re.search("inf|nan", str(value), re.IGNORECASE)
        if (
            not numbers
            or len(numbers) < listed
            or len(numbers) > (most or len(numbers))
            or not (np.isfinite(numbers).all() or may_be_infinite)
        ):
            odd.append(f"{key} '{str(value)[:40]}'")
    return odd


def _parts(item: Any) -> list[Any]:
    text = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
    return text.replace(",", " ").split() if isinstance(text, str) else [text]


def as_stored(value: float | None, dtype: str) -> float | None:
    """Return a value as a type stores it: -9999.9 in float32 is another number than in float64."""
    if value is None or np.dtype(dtype).kind != "f":
        return value
    with np.errstate(over="ignore"):
        return float(np.dtype(dtype).type(value))


def _numbers(value: Any) -> Iterator[float]:
    """Yield all numbers of an attribute of any type, one or many, or written as text."""
    if value is None:
        return
    for item in np.ravel(value).tolist():
        for part in _parts(item):
            try:
                yield float(part)
            except (TypeError, ValueError):
                return


def _unsigned(value: float, dtype: str) -> float:
    """Return the number of an unsigned type that a negative one means (``_Unsigned``); others unchanged."""
    kind = np.dtype(dtype)
    if kind.kind != "u" or not -(2.0 ** (8 * kind.itemsize - 1)) <= value < 0 or value != round(value):
        return value
    return value + 2.0 ** (8 * kind.itemsize)


def _in_type(value: float, dtype: np.dtype) -> np.generic | None:
    """Return a value in a stored type, as float32(-9999.9) for the float64 of metadata; None where it has
    none.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            typed: np.generic = dtype.type(value)
        return None if np.isnan(typed) else typed
    information = np.iinfo(dtype)
    if not math.isfinite(value) or value != round(value):
        return None
    return dtype.type(int(value)) if information.min <= value <= information.max else None
