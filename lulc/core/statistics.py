"""Mean and standard deviation of each channel: computed window by window, merged exactly, read from files."""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lulc.core.codec import Jsonable, limits
from lulc.core.documents import parse_json
from lulc.core.schema import InputError

MAX_BYTES, MAX_PICKLE_BYTES = 64 * 2**20, 2**16

Numbers = Annotated[tuple[float, ...], limits(minItems=1, maxItems=1024)]
Deviations = Annotated[tuple[Annotated[float, limits(minimum=0)], ...], limits(minItems=1, maxItems=1024)]
Sums = Annotated[tuple[Fraction, ...], limits(minItems=1, maxItems=1024)]
Count = Annotated[int, limits(minimum=0)]
Counts = Annotated[tuple[Count, ...], limits(maxItems=1024)]

_PIXELS = 2**13  # pixels summed at once: 14 channels of them in float64 stay in a processor's cache


@dataclass(frozen=True)
class Statistics(Jsonable):
    """Mean and (population) standard deviation of each channel.

    Raises InputError if the lengths differ, a value is not finite, or a deviation is negative.

    Parameters
    ----------
    mean, std
        One float for each channel, in the unit of the channel.
    count
        Valid pixels; 0 where unknown.
    lacking
        Valid pixels without each channel; empty where every pixel has all channels. A channel that all lack
        has mean 0 and deviation 1.
    """

    mean: Numbers
    std: Deviations
    count: Count = 0
    lacking: Counts = ()

    def __post_init__(self) -> None:
        finite = all(math.isfinite(v) for v in (*self.mean, *self.std))
        paired = len(self.mean) == len(self.std) and len(self.lacking) in (0, len(self.mean))
        if not paired or not finite or any(s < 0 for s in self.std):
            raise InputError(
                f"cannot use the statistics, since they hold mean {self.mean} and std {self.std}, "
                "expected one finite mean and one standard deviation of at least 0 for each channel",
                "Compute them again with preprocess.py.",
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data, without an empty `lacking`."""
        return {name: value for name, value in super().to_json().items() if name != "lacking" or value}

    @property
    def counts(self) -> np.ndarray:
        """Pixels with each channel, int64 (channel,)."""
        return np.maximum(0, self.count - np.array(self.lacking or (0,) * len(self.mean), np.int64))

    @property
    def seen(self) -> np.ndarray:
        """False (channel,) for the channels that all pixels lack."""
        return (self.counts > 0) | (self.count == 0)

    @classmethod
    def of(cls, values: np.ndarray, optional: Sequence[int] = ()) -> Statistics:
        """Compute the statistics of the valid pixels of `values`, float (..., channel), in float64.

        A valid pixel is finite in all channels but those of the numbers `optional`, and in at least one.
        """
        pixels = np.asarray(values, "float64").reshape(-1, values.shape[-1])
        pixels = pixels[_are_valid(pixels, optional)]
        if not len(pixels):
            zeros = (0.0,) * values.shape[-1]
            return cls(zeros, zeros, 0)
        known = np.isfinite(pixels)
        lacking = len(pixels) - known.sum(axis=0)
        if not lacking.any():
            return cls(tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).tolist()), len(pixels))
        unseen = lacking == len(pixels)
        pixels[:, unseen], known[:, unseen] = 0, True
        std = np.where(unseen, 1, pixels.std(0, where=known))
        mean = pixels.mean(0, where=known)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), len(pixels), tuple(lacking.tolist()))

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of pixels together (Chan, Golub, LeVeque 1979, eq. 2.1)."""
        if len(self.mean) != len(other.mean):
            raise InputError(
                f"cannot merge statistics of {len(self.mean)} and {len(other.mean)} channels, "
                "expected as many of each",
                "Give data that were prepared with the same channels.",
            )
        count = self.count + other.count
        if count == 0:
            return self
        counts = self.counts + other.counts
        weight = other.counts / np.maximum(1, counts)
        difference = np.subtract(other.mean, self.mean)
        mean = np.asarray(self.mean) + weight * difference
        variance = (
            (1 - weight) * np.square(self.std)
            + weight * np.square(other.std)
            + weight * (1 - weight) * np.square(difference)
        )
        mean, std = np.where(counts, mean, 0), np.where(counts, np.sqrt(variance), 1)
        lacking = tuple((count - counts).tolist()) if (counts < count).any() else ()
        return Statistics(tuple(mean.tolist()), tuple(std.tolist()), count, lacking)


def _are_valid(pixels: np.ndarray, optional: Sequence[int]) -> np.ndarray:
    """Return True (n,) for pixels (n, channel) with all channels but the optional ones, and with any."""
    known = np.isfinite(pixels)
    if not optional:
        return np.asarray(known.all(axis=1))
    return np.asarray(np.delete(known, optional, axis=1).all(axis=1) & known.any(axis=1))


def valid_pixels(image: np.ndarray) -> np.ndarray:
    """Return True (...) where an image, float (..., channel), is not NaN in all channels."""
    valid = ~np.isnan(image[..., 0])
    if not valid.all():
        valid[~valid] = ~np.isnan(image[~valid]).all(axis=-1)
    return np.asarray(valid)


@dataclass(frozen=True)
class Moments(Jsonable):
    """Exact sums over pixels, which do not depend on the order of the additions.

    Parameters
    ----------
    count
        Valid pixels.
    sums, squares
        Sums of the values and of their squares, for each channel.
    lacking
        Valid pixels without each channel; empty where no channel is optional.
    """

    count: Count
    sums: Sums
    squares: Sums
    lacking: Counts = ()

    @classmethod
    def zero(cls, channels: int) -> Moments:
        """Return the moments of no pixel."""
        return cls(0, (Fraction(0),) * channels, (Fraction(0),) * channels)

    @classmethod
    def of(cls, image: np.ndarray, optional: Sequence[int] = ()) -> Moments:
        """Sum the valid pixels of `image`, float32 (..., channel); see `Statistics.of` for `optional`."""
        total = cls.zero(image.shape[-1])
        pixels = image.reshape(-1, image.shape[-1])
        for start in range(0, len(pixels), _PIXELS):
            piece = pixels[start : start + _PIXELS]
            valid = _are_valid(piece, optional)
            planes = np.array((piece if valid.all() else piece[valid]).T, "float64", order="C")
            lacking: tuple[int, ...] = ()
            if optional:
                missing = ~np.isfinite(planes)
                planes[missing] = 0
                lacking = tuple(missing.sum(axis=1).tolist())
            sums = tuple(map(_exact_sum, planes))
            # Squares of float32 are exact in float64.
            squares = tuple(map(_exact_sum, np.square(planes, out=planes)))
            total += cls(planes.shape[1], sums, squares, lacking)
        return total

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
            tuple(a + b for a, b in zip_longest(self.lacking, other.lacking, fillvalue=0)),
        )

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation, each rounded once."""
        lacking = self.lacking or (0,) * len(self.sums)
        counts = [max(1, self.count - lost) for lost in lacking]
        means = [total / count for total, count in zip(self.sums, counts, strict=True)]
        squares = [total / count for total, count in zip(self.squares, counts, strict=True)]
        deviations = tuple(
            1.0 if 0 < self.count == lost else math.sqrt(float(square - mean**2))
            for square, mean, lost in zip(squares, means, lacking, strict=True)
        )
        lacking = lacking if any(lacking) else ()
        return Statistics(tuple(map(float, means)), deviations, self.count, lacking)


def _exact_sum(values: np.ndarray) -> Fraction:
    """Sum finite float64 (n,) without rounding.

    Rounds the values to a unit so large that their sum is exact, and repeats this with the remainders until
    these are 0 (Rump, Ogita, Oishi 2008, algorithm 3.3).
    """
    total = Fraction(0)
    while values.size:
        largest = max(values.max(), -values.min())
        if not largest:
            break
        split = math.ldexp(1.5, math.frexp(largest)[1] + values.size.bit_length() + 1)
        upper = values + split
        upper -= split
        total += Fraction(float(upper.sum()))
        values = values - upper
    return total


def read_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read statistics from JSON or from the original's pickle.

    Raises InputError if the file is missing, too large, or has other content.

    Parameters
    ----------
    path
        JSON with ``mean`` and ``std`` at the top or under ``statistics``, such as a manifest or a model card;
        or a pickle of two lists of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read the statistics, since there is no file '{path}'", "Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise _unreadable(path, f"it has {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
    content = path.read_bytes()
    if content.lstrip()[:1] != b"{":
        return _read_pickle(path, content)
    try:
        data = parse_json(content)
        data = data.get("statistics", data)
        return Statistics.from_json({k: data[k] for k in ("mean", "std", "count") if k in data})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _unreadable(path, f"it holds no 'mean' and 'std' lists of numbers ({error})") from error


def _read_pickle(path: Path, content: bytes) -> Statistics:
    if len(content) > MAX_PICKLE_BYTES:
        raise _unreadable(path, f"it has {len(content)} bytes, expected at most {MAX_PICKLE_BYTES}")
    try:
        _check_opcodes(content)
        mean, std = _NumbersUnpickler(io.BytesIO(content)).load()
        return Statistics(tuple(float(v) for v in mean), tuple(float(v) for v in std))
    except InputError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as it has opcodes
        raise _unreadable(
            path, f"it is neither JSON nor a pickle of two lists of numbers ({error})"
        ) from error


_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|EMPTY_LIST|LIST|APPENDS?|TUPLE[123]?|EMPTY_TUPLE|MEMOIZE|(LONG_)?BIN(PUT|GET)|PUT|GET|"
    "GLOBAL|STACK_GLOBAL|REDUCE|BUILD|NONE|INT|LONG1|BININT[12]?|(BIN)?FLOAT|NEWTRUE|NEWFALSE|STRING|"
    "(SHORT_)?BINSTRING|UNICODE|(SHORT_)?BINUNICODE|(SHORT_)?BINBYTES"
)


def _check_opcodes(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if not _OPCODES.fullmatch(opcode.name):
            raise ValueError(f"the opcode {opcode.name} is not allowed")
        # The table of memoised objects is as long as its highest number: a bomb of nine bytes.
        if opcode.name.endswith("PUT") and int(argument or 0) > len(content):
            raise ValueError(f"it numbers an object {argument}")


class _Dtype:
    """Replacement of numpy.dtype: a float or integer of at most 8 bytes."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f2", "f4", "f8", "i4", "i8"):
            raise ValueError(f"the number type {str(code)[:20]} is not allowed")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = {"<": "<", ">": ">"}.get(state[1], "=") + self.code


def _scalar(dtype: _Dtype, data: bytes) -> float:
    return float(np.frombuffer(data, dtype.code, count=1)[0])


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1") if encoding == "latin1" else b""


class _NumbersUnpickler(pickle.Unpickler):
    """Unpickler of NumPy numbers by replacements: it can call no function of another package."""

    def find_class(self, module: str, name: str) -> Any:
        replacements = {
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy._core.multiarray", "scalar"): _scalar,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in replacements:
            raise ValueError(f"it asks for {module}.{name}, which is not a number")
        return replacements[module, name]


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        f"cannot read the statistics '{path}', since {reason}",
        'Give JSON such as {"mean": [864.98, ...], "std": [155.23, ...]}, or the original\'s pickle.',
    )
