"""Channel sets: which channels a stack has, in which order, and how each is read or computed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from lulc.core.codec import Jsonable, limits
from lulc.core.formula import TERRAIN, Formula, parse
from lulc.core.schema import CHANNELS, INDEX_UNIT, INDICES, REFLECTANCE_UNIT, SENTINEL_BANDS, InputError

FORMAT_VERSION = 1
"""Version of the files of channel sets."""

DEFAULT_CHANNELS = "kaakonkulma-14"
"""Name of the set of the original system."""

_PREFIX = re.compile(r"([A-Za-z]\w*(?:(?:\.\.|,)\w+)*)=(.+)", re.DOTALL)

Kind = Literal["reflectance", "index", "backscatter", "elevation", "slope", "categorical", "any"]
_NAME = r"^([A-Za-z]\w*/)?[A-Za-z_]\w*$"
ChannelName = Annotated[str, limits(pattern=_NAME, maxLength=100)]
Word = Annotated[str, limits(pattern=r"^[A-Za-z]\w*$", maxLength=50)]
Alias = Annotated[str, limits(minLength=1, maxLength=200)]

UNITS: Mapping[str, str] = MappingProxyType(
    {
        "reflectance": REFLECTANCE_UNIT, "index": "1", "backscatter": "dB", "elevation": "m",
        "slope": "degrees", "categorical": "code", "any": "1",
    }
)  # fmt: skip
"""Unit of each kind of channel where the set doesn't say."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "backscatter": (-80.0, 60.0), "elevation": (-500.0, 9000.0), "slope": (0.0, 90.0)
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChannelDefinition(Jsonable):
    """One channel of a set.

    Parameters
    ----------
    name
        Name; with a date before it for a channel of one date (``spring/B04``).
    kind
        What it measures.
    unit
        Unit of its values in stacks; that of its kind where empty.
    stored
        Coding of its values in files: ``plain``; ``syke`` for 100 x index + 100; ``dB``, ``power`` or
        ``auto`` for backscatter.
    scale, offset
        value = stored x scale + offset, where no file and no option says otherwise.
    minimum, maximum
        Valid range; a pixel outside is missing, and a computed index is clipped to it.
    layers
        Further names of its layer in files; one with a ``*`` is a pattern of file names.
    formula
        How it is computed where no layer has it.
    resampling
        How it is brought onto another grid; categorical channels are always ``nearest``.
    may_be_missing
        True where a pixel counts although it lacks this channel.
    per_date
        Whether each date of the set has this channel; decided by its source where None.
    """

    name: ChannelName
    kind: Kind = "any"
    unit: Annotated[str, limits(maxLength=200)] = ""
    stored: Literal["plain", "syke", "dB", "power", "auto"] = "plain"
    scale: float | None = None
    offset: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    layers: Annotated[tuple[Alias, ...], limits(maxItems=50)] = ()
    formula: Annotated[str, limits(maxLength=500)] = ""
    resampling: Literal["bilinear", "nearest"] = "bilinear"
    may_be_missing: bool = False
    per_date: bool | None = None

    @property
    def date(self) -> str:
        """The date that the channel is of; empty where it is of none."""
        return self.name.rpartition("/")[0]

    @property
    def local(self) -> str:
        """The name without its date."""
        return self.name.rpartition("/")[2]

    @property
    def has_limits(self) -> bool:
        """True where stored values outside a valid range are missing; backscatter is recognised instead."""
        bounded = self.minimum is not None or self.maximum is not None
        return bounded and self.kind not in ("reflectance", "backscatter") and self.stored != "syke"

    def completed(self) -> ChannelDefinition:
        """Return the definition with what its kind says where it is silent."""
        low, high = _RANGES.get(self.kind, (None, None))
        return dataclasses.replace(
            self,
            unit=self.unit or UNITS[self.kind],
            minimum=low if self.minimum is None else self.minimum,
            maximum=high if self.maximum is None else self.maximum,
            resampling="nearest" if self.kind == "categorical" else self.resampling,
            stored="auto" if self.kind == "backscatter" and self.stored == "plain" else self.stored,
        )


SYKE_FORMULAS: Mapping[str, str] = MappingProxyType(
    {
        "NDVI": "(B08 - B04) / (B08 + B04)",
        "NDTI": "(B11 - B12) / (B11 + B12)",
        # SYKE's built-up index: the normalised difference of B11 and B08, minus NDVI.
        "NDBI": "-((B08 - B11) / (B08 + B11) + (B08 - B04) / (B08 + B04))",
        "NDMI": "(B08 - B11) / (B08 + B11)",
        "NDSI": "(B03 - B11) / (B03 + B11)",
    }
)
"""The SYKE indices by name."""

_FORMULAS: Mapping[str, str] = {
    "NDWI": "(B03 - B08) / (B03 + B08)",
    "MNDWI": "(B03 - B11) / (B03 + B11)",
    "NBR": "(B08 - B12) / (B08 + B12)",
    "NDREI": "(B08 - B05) / (B08 + B05)",
    "GNDVI": "(B08 - B03) / (B08 + B03)",
    "BI": "((B11 + B04) - (B08 + B02)) / ((B11 + B04) + (B08 + B02))",
    "SAVI": "1.5 * (fraction(B08) - fraction(B04)) / (fraction(B08) + fraction(B04) + 0.5)",
    "EVI": "2.5 * (fraction(B08) - fraction(B04))"
    " / (fraction(B08) + 6 * fraction(B04) - 7.5 * fraction(B02) + 1)",
    "EVI2": "2.5 * (fraction(B08) - fraction(B04)) / (fraction(B08) + 2.4 * fraction(B04) + 1)",
}
"""Further indices, defined as in the catalogue of awesome-spectral-indices (Montero et al. 2023)."""

_LANDSAT = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
_HLS = {
    "BLUE": ("B02",), "GREEN": ("B03",), "RED": ("B04",), "NIR": ("B8A", "HLS.L30.*.B05"),
    "SWIR1": ("B11", "HLS.L30.*.B06"), "SWIR2": ("B12", "HLS.L30.*.B07"),
}  # fmt: skip


def _library() -> dict[str, ChannelDefinition]:
    define = ChannelDefinition
    found = [define(name=band, kind="reflectance") for band in SENTINEL_BANDS]
    found += [
        define(
            name=name, kind="index", unit=INDEX_UNIT, stored="syke", minimum=0, maximum=200, formula=formula
        )
        for name, formula in SYKE_FORMULAS.items()
    ]
    found += [define(name=name, kind="index", formula=formula) for name, formula in _FORMULAS.items()]
    found += [
        define(
            name=f"SR_B{number}", kind="reflectance", scale=2.75e-5, offset=-0.2,
            layers=(f"SR_B{number}", f"B{number}", common),
        )
        for number, common in enumerate(_LANDSAT, 1)
    ]  # fmt: skip
    found += [
        define(
            name=f"HLS_{name}", kind="reflectance", scale=1e-4, offset=0,
            layers=(*own, f"HLS.*.{own[0]}") if len(own) == 1 else (own[0], f"HLS.S30.*.{own[0]}", own[1]),
        )
        for name, own in _HLS.items()
    ]  # fmt: skip
    found += [define(name=name, kind="backscatter", layers=(name,)) for name in ("VV", "VH", "HH", "HV")]
    found.append(define(name="elevation", kind="elevation", layers=("elevation", "dem", "dtm", "dsm")))
    found.append(define(name="slope", kind="slope", formula="slope(elevation)"))
    found += [define(name=name, minimum=-1, maximum=1, formula=f"{name}(elevation)") for name in TERRAIN[1:]]
    return {one.name: one.completed() for one in found}


LIBRARY: Mapping[str, ChannelDefinition] = MappingProxyType(_library())
"""Channels that a set may name without defining them."""


@dataclass(frozen=True, kw_only=True)
class ChannelSet(Jsonable):
    """The channels of a stack, in order.

    Parameters
    ----------
    name
        Name of the set.
    channels
        Channels of the stack.
    inputs
        Channels that formulas name and that the stack doesn't hold.
    dates
        Dates, each of which has the channels of `channels` that are read from its bands.
    rgb
        Channels that pictures show as red, green and blue.

    Raises
    ------
    InputError
        If a name is defined twice or not at all, definitions run in a circle, or units don't fit.
    """

    name: Annotated[str, limits(minLength=1, maxLength=200)]
    channels: Annotated[tuple[ChannelDefinition, ...], limits(minItems=1, maxItems=1024)]
    inputs: Annotated[tuple[ChannelDefinition, ...], limits(maxItems=1024)] = ()
    dates: Annotated[tuple[Word, ...], limits(maxItems=100)] = ()
    rgb: Annotated[tuple[ChannelName, ...], limits(maxItems=3)] = ()

    def __post_init__(self) -> None:
        names = [one.name for one in (*self.channels, *self.inputs)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or len(set(self.dates)) < len(self.dates) or not self.channels:
            problem = (
                f"{', '.join(twice)} stands twice" if twice
                else "its list is empty" if not self.channels
                else "a date stands twice"
            )  # fmt: skip
            raise self.refusal(problem, "Correct the list of channels.")
        if self.rgb and (len(self.rgb) != 3 or not {*self.rgb} <= {*self.names}):
            raise self.refusal(
                f"rgb is {', '.join(self.rgb)}", "Name three of its channels: rgb: [B04, B03, B02]."
            )
        self.plan()

    def refusal(self, problem: str, hint: str) -> InputError:
        return InputError(f"cannot use the channel set '{self.name}', since {problem}", hint)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.channels)

    @property
    def optional(self) -> tuple[int, ...]:
        """Numbers of the channels that a valid pixel may lack."""
        return tuple(i for i, one in enumerate(self.channels) if one.may_be_missing)

    @property
    def nearest(self) -> tuple[int, ...]:
        """Numbers of the channels whose values are never interpolated."""
        return tuple(i for i, one in enumerate(self.channels) if one.resampling == "nearest")

    @property
    def directions(self) -> tuple[tuple[int, int], ...] | None:
        """Numbers of the sine and the cosine of each direction, which turn with the image.

        None where a channel tells a direction that can't be turned: a sine or cosine alone, or a formula of
        one.
        """
        pairs: dict[str, dict[str, int]] = {}
        told = set()
        for i, one in enumerate(self.channels):
            if match := re.fullmatch(r"aspect_(sin|cos)\((.+)\)", one.formula):
                pairs.setdefault(match[2], {})[match[1]] = i
                told.add(one.name)
        for one, formula in self.plan().computed:
            used = {name for name in formula.names if name.startswith(("aspect_sin(", "aspect_cos("))}
            if one.name not in told and (used or told & {*formula.names}):
                return None
        if any(len(pair) < 2 for pair in pairs.values()):
            return None
        return tuple((pair["sin"], pair["cos"]) for pair in pairs.values())

    def dependencies(self) -> list[frozenset[str]]:
        """Return for each channel what is missing together with it: dates, and kinds of what has no date."""
        plan = self.plan()
        formulas = {one.name: formula for one, formula in plan.computed}

        def groups(name: str) -> frozenset[str]:
            if name in formulas:
                return frozenset().union(*(groups(needed) for needed in formulas[name].names))
            one = self.definition(name[:-1].partition("(")[2] if "(" in name else name)
            return frozenset([one.date or one.kind])

        return [groups(one.name) for one in self.channels]

    @property
    def described(self) -> list[str]:
        """Meaning of each channel's values: name, unit, coding and formula."""
        return [
            f"{one.name} ({one.unit}"
            + ", in SYKE's coding" * (one.stored == "syke")
            + (f": {self.formula(one).renamed({})}" if one.formula else "")
            + ")"
            for one in self.channels
        ]

    @property
    def recorded(self) -> ChannelSet | None:
        """The set where a document has to hold it; None where the names of the channels say everything."""
        valid = all(re.fullmatch(_NAME, one.name) for one in self.channels)
        return None if self.is_plain or not valid else self

    @property
    def is_plain(self) -> bool:
        """True where the names alone say everything, as those of Sentinel-2 bands and SYKE indices."""
        plain = {*SENTINEL_BANDS, *INDICES}
        return not (self.dates or self.inputs) and all(
            one.name in plain and one == LIBRARY[one.name] for one in self.channels
        )

    def definition(self, name: str) -> ChannelDefinition:
        """Return the definition of a name: of the set, else a known one of the same date.

        Raises
        ------
        InputError
            If nothing defines it.
        """
        own = {one.name: one for one in (*self.channels, *self.inputs)}
        date, _, local = name.rpartition("/")
        if name in own:
            return own[name]
        known = own.get(local) or LIBRARY.get(local)
        if known is None or (date and date not in self.dates):
            raise self.refusal(
                f"nothing says what {name} is",
                f"Define it under inputs: (its name and kind), or use a known name: {', '.join(LIBRARY)}.",
            )
        if not date:
            return known
        changing = _changing({**LIBRARY, **own}, self.dates)
        return dated(known, date, changing, self.dates) if local in changing else known

    def formula(self, one: ChannelDefinition) -> Formula:
        return parse(one.formula, self.dates)

    def plan(self, read: Iterable[str] = ()) -> Plan:
        """Return what is read and what is computed, where rasters hold the channels `read`.

        Raises
        ------
        InputError
            If definitions run in a circle, name what nothing defines, or mix units.
        """
        held = set(read)
        leaves: dict[str, ChannelDefinition] = {}
        computed: dict[str, tuple[ChannelDefinition, Formula]] = {}
        units: dict[str, str] = {}

        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in units:
                return
            if name in above or len(above) > 50:
                raise self.refusal(f"{name} is computed from itself", "Correct its formula.")
            if "(" in name:
                function, _, layer = name[:-1].partition("(")
                self._check_terrain(self.definition(layer))
                leaves[name] = terrain_of(name, self.definition(layer))
                units[name] = "degrees" if function == "slope" else "1"
                return
            one = self.definition(name)
            if not one.formula or name in held:
                leaves[name] = one
            else:
                formula = self.formula(one)
                for needed in formula.names:
                    visit(needed, (*above, name))
                found = formula.unit(units)
                if one.stored != "syke" and found != one.unit:
                    raise self.refusal(
                        f"the formula of {name} gives the unit {found}, expected {one.unit}",
                        f'Write its unit into the set: unit: "{found}".',
                    )
                computed[name] = (one, formula)
            units[name] = one.unit

        for one in self.channels:
            visit(one.name, ())
        return Plan(tuple(leaves.values()), tuple(computed.values()))

    def _check_terrain(self, elevation: ChannelDefinition) -> None:
        if elevation.kind != "elevation" or elevation.formula:
            raise self.refusal(
                f"slope and aspect are asked of {elevation.name}, which is no layer of elevation",
                "Name a channel of the kind elevation, which a raster holds.",
            )

    def of_dates(self, dates: Sequence[str]) -> ChannelSet:
        """Return the set with its channels for each of some dates; this one where there are none."""
        if not dates or (self.dates and {*dates} <= {*self.dates}):
            return self
        if self.dates:
            raise self.refusal(
                f"its dates are {', '.join(self.dates)}, but the dates of the rasters {', '.join(dates)}",
                f"Give each of its dates: {self.dates[0]}=FILE",
            )
        return expanded(self.name, self.channels, self.inputs, dates, self.rgb)


def differing(one: ChannelSet, other: ChannelSet) -> tuple[list[str], list[str]]:
    """Return the names of both sets where these differ, else the channels whose values differ in meaning.

    How rasters store the values of a channel makes no difference.
    """
    if one.names != other.names:
        return list(one.names), list(other.names)
    pairs = [(a, b) for a, b in zip(one.described, other.described, strict=True) if a != b]
    return [a for a, _ in pairs], [b for _, b in pairs]


def split_prefix(text: str) -> tuple[str, str]:
    """Return what stands before ``=`` (a date or names of layers; empty for a file that exists) and the path.

    Examples
    --------
    >>> split_prefix("spring=april.tif"), split_prefix("april.tif"), split_prefix("A00..A63=embedding.tif")
    (('spring', 'april.tif'), ('', 'april.tif'), ('A00..A63', 'embedding.tif'))
    """
    match = _PREFIX.fullmatch(text)
    if match is None or os.path.exists(text):
        return "", text
    return match.group(1), match.group(2)


def with_path(text: str, change: Callable[[str], str]) -> str:
    """Return a text as `split_prefix` takes it, its path changed."""
    prefix, path = split_prefix(text)
    return f"{prefix}={change(path)}" if prefix else change(path)


def name_of(text: str) -> str:
    """Return the last part of a path, after the date or names before it."""
    return with_path(text, lambda path: Path(path).name)


def dates_of(texts: Iterable[object]) -> tuple[str, ...]:
    """Return the dates that stand before some paths, in order."""
    return tuple(dict.fromkeys(d for text in texts if isinstance(text, str) and (d := split_prefix(text)[0])))


@dataclass(frozen=True)
class Plan:
    """Channels to read from rasters, and those to compute with their formulas, in order."""

    leaves: tuple[ChannelDefinition, ...]
    computed: tuple[tuple[ChannelDefinition, Formula], ...]


def terrain_of(name: str, elevation: ChannelDefinition) -> ChannelDefinition:
    """Return the definition of a derivative of terrain, read from the layers of its elevation."""
    function = name.partition("(")[0]
    low, high = (0.0, 90.0) if function == "slope" else (-1.0, 1.0)
    return ChannelDefinition(
        name=name, kind="slope" if function == "slope" else "any",
        unit="degrees" if function == "slope" else "1", minimum=low, maximum=high,
        layers=tuple(dict.fromkeys((elevation.name, *elevation.layers))), formula=name,
        may_be_missing=elevation.may_be_missing,
    )  # fmt: skip


def expanded(
    name: str, channels: Sequence[ChannelDefinition], inputs: Sequence[ChannelDefinition],
    dates: Sequence[str], rgb: Sequence[str] = (),
) -> ChannelSet:  # fmt: skip
    """Return the set that has each changing channel for each date, then the channels of no date.

    Raises
    ------
    InputError
        If no channel changes with the date, or what comes out is no channel set.
    """
    if not dates:
        return ChannelSet(name=name, channels=tuple(channels), inputs=tuple(inputs), rgb=tuple(rgb))
    own = {one.name: one for one in (*LIBRARY.values(), *channels, *inputs)}
    if both := sorted(own.keys() & {*dates}):
        raise InputError(
            f"cannot use the channel set '{name}', since {', '.join(both)} is both a date and a channel",
            "Give the date another name.",
        )
    changing = _changing(own, dates)

    def each(given: Sequence[ChannelDefinition]) -> tuple[ChannelDefinition, ...]:
        own = [one for one in given if one.name in changing]
        moved = [dated(one, date, changing, dates) for date in dates for one in own]
        return (*moved, *(one for one in given if one.name not in changing))

    found = ChannelSet(
        name=name, channels=each(channels), inputs=each(inputs), dates=tuple(dates),
        rgb=tuple(f"{dates[-1]}/{band}" if band in changing else band for band in rgb),
    )  # fmt: skip
    if not any(leaf.date for leaf in found.plan().leaves):
        raise found.refusal("none of its channels changes with the date", "Leave the dates out.")
    return found


def _changing(own: Mapping[str, ChannelDefinition], dates: Sequence[str]) -> frozenset[str]:
    """Return the names of the channels that each date has of its own."""

    def changes(name: str, above: tuple[str, ...]) -> bool:
        one = own.get(name)
        if one is None or one.date or name in above:
            return False
        if one.per_date is not None:
            return one.per_date
        if not one.formula:
            return one.kind == "reflectance"
        return any(changes(needed, (*above, name)) for needed in parse(one.formula, dates).names)

    return frozenset(name for name in own if changes(name, ()))


def dated(
    one: ChannelDefinition, date: str, changing: Iterable[str], dates: Sequence[str] = ()
) -> ChannelDefinition:
    """Return the channel of one date; its formula names the changing channels of that date."""
    formula = one.formula and parse(one.formula, dates).renamed({name: f"{date}/{name}" for name in changing})
    return dataclasses.replace(one, name=f"{date}/{one.local}", formula=formula, per_date=None)


_CHANGING = _changing(LIBRARY, ())


def set_of(names: Sequence[str], name: str = "by name") -> ChannelSet:
    """Return the set of channels by their names, with or without dates; unknown ones are reflectance."""
    dates = tuple(dict.fromkeys(n.partition("/")[0] for n in names if "/" in n))
    found = []
    for full in names:
        date, _, local = full.rpartition("/")
        unknown = ChannelDefinition(name=local, kind="reflectance", layers=(local,)).completed()
        known = LIBRARY.get(local, unknown)
        found.append(dated(known, date, _CHANGING) if date else known)
    return ChannelSet(name=name, channels=tuple(found), dates=dates)


def _built_in(name: str, channels: Sequence[str], rgb: tuple[str, ...] = ()) -> ChannelSet:
    return dataclasses.replace(set_of(channels, name), rgb=rgb)


_TRUE_COLOUR = ("B04", "B03", "B02")
CHANNEL_SETS: Mapping[str, ChannelSet] = MappingProxyType(
    {
        one.name: one
        for one in (
            _built_in(DEFAULT_CHANNELS, CHANNELS, _TRUE_COLOUR),
            _built_in(
                "sentinel2-10", [b for b in SENTINEL_BANDS if b not in ("B01", "B09", "B10")], _TRUE_COLOUR
            ),
            _built_in("sentinel2-12", [b for b in SENTINEL_BANDS if b != "B10"], _TRUE_COLOUR),
            _built_in("landsat-8-9", [f"SR_B{n}" for n in range(1, 8)], ("SR_B4", "SR_B3", "SR_B2")),
            _built_in("hls", [f"HLS_{name}" for name in _HLS], ("HLS_RED", "HLS_GREEN", "HLS_BLUE")),
            _built_in("sentinel1", ["VV", "VH"]),
        )
    }
)
"""Built-in sets by name."""


def channels_text(channels: ChannelSet | Sequence[str]) -> str:
    """Return the YAML file of a channel set.

    Examples
    --------
    >>> print(channels_text(["B04", "NDVI"]), end="")
    format_version: 1
    channels: [B04, NDVI]
    """
    given = channels if isinstance(channels, ChannelSet) else set_of(channels)
    named = f"name: {given.name}\n" if isinstance(channels, ChannelSet) else ""
    shown = f"rgb: [{', '.join(given.rgb)}]\n" if given.rgb else ""
    first = f"format_version: {FORMAT_VERSION}\n{named}{shown}"
    if given.is_plain:
        return f"{first}channels: [{', '.join(given.names)}]\n"
    return first + "channels:\n" + "".join(f"  - {_entry(one)}\n" for one in given.channels)


def _entry(one: ChannelDefinition) -> str:
    """Return a definition as YAML, without what its kind says."""
    least = ChannelDefinition(name=one.name, kind=one.kind).completed().to_json()
    values: dict[str, Any] = {
        k: v for k, v in one.to_json().items() if k in ("name", "kind") or v != least[k]
    }
    return "{" + ", ".join(f"{k}: {json.dumps(v)}" for k, v in values.items()) + "}"
