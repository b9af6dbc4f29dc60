"""Channel sets: which channels a stack has, in which order, and how each is read or computed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from lulc.core.codec import Jsonable, limits
from lulc.core.formula import TERRAIN, Formula, parse
from lulc.core.schema import CHANNELS, INDEX_UNIT, INDICES, REFLECTANCE_UNIT, SENTINEL_BANDS, InputError

FORMAT_VERSION = 1
DEFAULT_CHANNELS = "kaakonkulma-14"

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
        Name, with a date before it for a channel of one date (``spring/B04``).
    unit
        Unit of its values in stacks; that of its kind where empty.
    stored
        Coding of its values in files: ``plain``; ``syke`` for 100 x index + 100; ``dB``, ``power`` or
        ``auto`` for backscatter.
    scale, offset
        value = stored x scale + offset, unless a file or an option says otherwise.
    minimum, maximum
        Valid range; a pixel outside is missing, and a computed index is clipped to it.
    layers
        Further names of its layer in files; one with a ``*`` is a pattern of file names.
    formula
        Formula for a raster without such a layer.
    resampling
        Method for another grid; categorical channels are always ``nearest``.
    may_be_missing
        True if a pixel without this channel is still valid.
    per_date
        True if each date of the set has this channel; decided by its source where None.
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
        """Date of the channel; empty where it has none."""
        return self.name.rpartition("/")[0]

    @property
    def local(self) -> str:
        """Name without the date."""
        return self.name.rpartition("/")[2]

    @property
    def has_limits(self) -> bool:
        """True if stored values outside the valid range are missing; backscatter is recognised otherwise."""
        bounded = self.minimum is not None or self.maximum is not None
        return bounded and self.kind not in ("reflectance", "backscatter") and self.stored != "syke"

    def completed(self) -> ChannelDefinition:
        """Return the definition with its open fields filled in by its kind."""
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
    "BLUE": ("B02", "HLS.*.B02"),
    "GREEN": ("B03", "HLS.*.B03"),
    "RED": ("B04", "HLS.*.B04"),
    "NIR": ("B8A", "HLS.S30.*.B8A", "HLS.L30.*.B05"),
    "SWIR1": ("B11", "HLS.S30.*.B11", "HLS.L30.*.B06"),
    "SWIR2": ("B12", "HLS.S30.*.B12", "HLS.L30.*.B07"),
}


def _library() -> dict[str, ChannelDefinition]:
    define = ChannelDefinition
    syke = partial(define, kind="index", unit=INDEX_UNIT, stored="syke", minimum=0, maximum=200)
    landsat = partial(define, kind="reflectance", scale=2.75e-5, offset=-0.2)
    hls = partial(define, kind="reflectance", scale=1e-4, offset=0)
    channels = [
        *(define(name=band, kind="reflectance") for band in SENTINEL_BANDS),
        *(syke(name=name, formula=formula) for name, formula in SYKE_FORMULAS.items()),
        *(define(name=name, kind="index", formula=formula) for name, formula in _FORMULAS.items()),
        *(landsat(name=f"SR_B{i}", layers=(f"SR_B{i}", f"B{i}", n)) for i, n in enumerate(_LANDSAT, 1)),
        *(hls(name=f"HLS_{name}", layers=layers) for name, layers in _HLS.items()),
        *(define(name=name, kind="backscatter", layers=(name,)) for name in ("VV", "VH", "HH", "HV")),
        define(name="elevation", kind="elevation", layers=("elevation", "dem", "dtm", "dsm")),
        define(name="slope", kind="slope", formula="slope(elevation)"),
        *(define(name=name, minimum=-1, maximum=1, formula=f"{name}(elevation)") for name in TERRAIN[1:]),
    ]
    return {channel.name: channel.completed() for channel in channels}


LIBRARY: Mapping[str, ChannelDefinition] = MappingProxyType(_library())
"""Channels that a set may name without defining them."""


@dataclass(frozen=True, kw_only=True)
class ChannelSet(Jsonable):
    """The channels of a stack, in order.

    Raises InputError if a name is defined twice or not at all, a formula depends on itself, or units
    don't fit.

    Parameters
    ----------
    inputs
        Channels that only formulas need.
    dates
        Dates; each has its own copy of the channels that are read from its bands.
    rgb
        Channels that pictures show as red, green and blue.
    """

    name: Annotated[str, limits(minLength=1, maxLength=200)]
    channels: Annotated[tuple[ChannelDefinition, ...], limits(minItems=1, maxItems=1024)]
    inputs: Annotated[tuple[ChannelDefinition, ...], limits(maxItems=1024)] = ()
    dates: Annotated[tuple[Word, ...], limits(maxItems=100)] = ()
    rgb: Annotated[tuple[ChannelName, ...], limits(maxItems=3)] = ()

    def __post_init__(self) -> None:
        names = Counter(channel.name for channel in (*self.channels, *self.inputs))
        if repeated := sorted(name for name, times in names.items() if times > 1):
            raise self.refusal(f"{', '.join(repeated)} stands twice", "Correct the list of channels.")
        if not self.channels:
            raise self.refusal("its list is empty", "Correct the list of channels.")
        if len(set(self.dates)) < len(self.dates):
            raise self.refusal("a date stands twice", "Correct the list of channels.")
        if self.rgb and (len(self.rgb) != 3 or not {*self.rgb} <= {*self.names}):
            raise self.refusal(
                f"rgb is {', '.join(self.rgb)}", "Name three of its channels: rgb: [B04, B03, B02]."
            )
        self.plan()

    def refusal(self, problem: str, hint: str) -> InputError:
        return InputError(f"cannot use the channel set '{self.name}', since {problem}", hint)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.channels)

    @property
    def optional(self) -> tuple[int, ...]:
        """Numbers of the channels that a valid pixel may lack."""
        return tuple(i for i, channel in enumerate(self.channels) if channel.may_be_missing)

    @property
    def nearest(self) -> tuple[int, ...]:
        """Numbers of the channels whose values are never interpolated."""
        return tuple(i for i, channel in enumerate(self.channels) if channel.resampling == "nearest")

    @property
    def directions(self) -> tuple[tuple[int, int], ...] | None:
        """Numbers of the sine and the cosine channel of each direction, which rotate with the image.

        None where a direction can't be rotated: its sine or its cosine is no channel, or a formula uses it.
        """
        pairs: dict[str, dict[str, int]] = {}
        components = set()
        for i, channel in enumerate(self.channels):
            if match := re.fullmatch(r"aspect_(sin|cos)\((.+)\)", channel.formula):
                pairs.setdefault(match[2], {})[match[1]] = i
                components.add(channel.name)
        for channel, formula in self.plan().computed:
            used = any(n in components or n.startswith(("aspect_sin(", "aspect_cos(")) for n in formula.names)
            if used and channel.name not in components:
                return None
        if any(len(pair) < 2 for pair in pairs.values()):
            return None
        return tuple((pair["sin"], pair["cos"]) for pair in pairs.values())

    def dependencies(self) -> list[frozenset[str]]:
        """Return the sources without which each channel is missing: dates, or kinds of undated channels."""
        formulas = {channel.name: formula for channel, formula in self.plan().computed}

        def sources(name: str) -> frozenset[str]:
            if name in formulas:
                return frozenset().union(*map(sources, formulas[name].names))
            channel = self.definition(name[:-1].partition("(")[2] if "(" in name else name)
            return frozenset([channel.date or channel.kind])

        return [sources(channel.name) for channel in self.channels]

    @property
    def described(self) -> list[str]:
        """Meaning of each channel's values: name, unit, coding and formula."""
        return [
            f"{channel.name} ({channel.unit}"
            + ", in SYKE's coding" * (channel.stored == "syke")
            + (f": {self.formula(channel).renamed({})}" if channel.formula else "")
            + ")"
            for channel in self.channels
        ]

    @property
    def recorded(self) -> ChannelSet | None:
        """The set, if a document has to record it; None where the names of the channels define it."""
        valid = all(re.fullmatch(_NAME, channel.name) for channel in self.channels)
        return None if self.is_plain or not valid else self

    @property
    def is_plain(self) -> bool:
        """True where the names define the set: Sentinel-2 bands and SYKE indices as in the library."""
        plain = {*SENTINEL_BANDS, *INDICES}
        return not (self.dates or self.inputs) and all(
            channel.name in plain and channel == LIBRARY[channel.name] for channel in self.channels
        )

    def definition(self, name: str) -> ChannelDefinition:
        """Return the definition of a name in the set or else the library; raises InputError without one."""
        defined = {channel.name: channel for channel in (*self.channels, *self.inputs)}
        date, _, local = name.rpartition("/")
        if name in defined:
            return defined[name]
        known = defined.get(local) or LIBRARY.get(local)
        if known is None or (date and date not in self.dates):
            raise self.refusal(
                f"nothing defines {name}",
                f"Define it under inputs: (its name and kind), or use a known name: {', '.join(LIBRARY)}.",
            )
        if not date:
            return known
        changing = _changing({**LIBRARY, **defined}, self.dates)
        return dated(known, date, changing, self.dates) if local in changing else known

    def formula(self, channel: ChannelDefinition) -> Formula:
        return parse(channel.formula, self.dates)

    def plan(self, read: Iterable[str] = ()) -> Plan:
        """Return the channels to read and to compute, where rasters hold the channels `read`.

        Raises InputError if a formula depends on itself, names an undefined channel, or mixes units.
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
            channel = self._terrain(name) if "(" in name else self.definition(name)
            if "(" in name or not channel.formula or name in held:
                leaves[name] = channel
            else:
                formula = self.formula(channel)
                for needed in formula.names:
                    visit(needed, (*above, name))
                unit = formula.unit(units)
                if channel.stored != "syke" and unit != channel.unit:
                    raise self.refusal(
                        f"the formula of {name} gives the unit {unit}, expected {channel.unit}",
                        f'Write its unit into the set: unit: "{unit}".',
                    )
                computed[name] = (channel, formula)
            units[name] = channel.unit

        for channel in self.channels:
            visit(channel.name, ())
        return Plan(tuple(leaves.values()), tuple(computed.values()))

    def _terrain(self, name: str) -> ChannelDefinition:
        """Return the definition of a terrain derivative such as slope(dem), read from the elevation layer."""
        function, _, layer = name[:-1].partition("(")
        elevation = self.definition(layer)
        if elevation.kind != "elevation" or elevation.formula:
            raise self.refusal(
                f"slope and aspect need a layer of elevation, but {elevation.name} is none",
                "Name a channel of the kind elevation that a raster holds.",
            )
        kind: tuple[Kind, str, float, float] = ("any", "1", -1.0, 1.0)
        if function == "slope":
            kind = ("slope", "degrees", 0.0, 90.0)
        return ChannelDefinition(
            name=name, kind=kind[0], unit=kind[1], minimum=kind[2], maximum=kind[3],
            layers=tuple(dict.fromkeys((elevation.name, *elevation.layers))), formula=name,
            may_be_missing=elevation.may_be_missing,
        )  # fmt: skip

    def of_dates(self, dates: Sequence[str]) -> ChannelSet:
        """Return the set with its channels repeated for each date; the set itself without dates."""
        if not dates or (self.dates and {*dates} <= {*self.dates}):
            return self
        if self.dates:
            raise self.refusal(
                f"its dates are {', '.join(self.dates)}, but the dates of the rasters {', '.join(dates)}",
                f"Give each of its dates: {self.dates[0]}=FILE",
            )
        return expanded(self.name, self.channels, self.inputs, dates, self.rgb)


def differing(first: ChannelSet, second: ChannelSet) -> tuple[list[str], list[str]]:
    """Return the names of both sets if they differ, else the descriptions of the channels that differ.

    How rasters store the values of a channel makes no difference.
    """
    if first.names != second.names:
        return list(first.names), list(second.names)
    pairs = [(a, b) for a, b in zip(first.described, second.described, strict=True) if a != b]
    return [a for a, _ in pairs], [b for _, b in pairs]


def split_prefix(text: str) -> tuple[str, str]:
    """Split ``PREFIX=PATH``; the prefix is a date or layer names, and empty for a file that exists."""
    match = _PREFIX.fullmatch(text)
    if match is None or os.path.exists(text):
        return "", text
    return match.group(1), match.group(2)


def with_path(text: str, change: Callable[[str], str]) -> str:
    """Change the path in a text of the form of `split_prefix`."""
    prefix, path = split_prefix(text)
    return f"{prefix}={change(path)}" if prefix else change(path)


def name_of(text: str) -> str:
    """Return ``PREFIX=NAME``: the path without its folders."""
    return with_path(text, lambda path: Path(path).name)


def change_paths(value: Any, change: Callable[[str], str]) -> Any:
    """Return the value of an option that names one file, several or none, each path changed."""
    return tuple(map(change, value)) if isinstance(value, tuple) else value and change(value)


def dates_of(texts: Iterable[object]) -> tuple[str, ...]:
    """Return the prefixes of some paths, each once, in order."""
    return tuple(dict.fromkeys(d for text in texts if isinstance(text, str) and (d := split_prefix(text)[0])))


@dataclass(frozen=True)
class Plan:
    """Channels to read from rasters (leaves), and channels to compute with their formulas, in order."""

    leaves: tuple[ChannelDefinition, ...]
    computed: tuple[tuple[ChannelDefinition, Formula], ...]


def expanded(
    name: str, channels: Sequence[ChannelDefinition], inputs: Sequence[ChannelDefinition],
    dates: Sequence[str], rgb: Sequence[str] = (),
) -> ChannelSet:  # fmt: skip
    """Return the set with each changing channel for each date, then the undated channels.

    Raises InputError if no channel changes with the date, or the result is no valid channel set.
    """
    if not dates:
        return ChannelSet(name=name, channels=tuple(channels), inputs=tuple(inputs), rgb=tuple(rgb))
    defined = {channel.name: channel for channel in (*LIBRARY.values(), *channels, *inputs)}
    if both := sorted(defined.keys() & {*dates}):
        raise InputError(
            f"cannot use the channel set '{name}', since {', '.join(both)} is both a date and a channel",
            "Give the date another name.",
        )
    changing = _changing(defined, dates)

    def repeated(some: Sequence[ChannelDefinition]) -> tuple[ChannelDefinition, ...]:
        of_dates = [c for c in some if c.name in changing]
        copies = [dated(channel, date, changing, dates) for date in dates for channel in of_dates]
        return (*copies, *(c for c in some if c.name not in changing))

    result = ChannelSet(
        name=name, channels=repeated(channels), inputs=repeated(inputs), dates=tuple(dates),
        rgb=tuple(f"{dates[-1]}/{band}" if band in changing else band for band in rgb),
    )  # fmt: skip
    if not any(leaf.date for leaf in result.plan().leaves):
        raise result.refusal("none of its channels changes with the date", "Leave the dates out.")
    return result


def _changing(defined: Mapping[str, ChannelDefinition], dates: Sequence[str]) -> frozenset[str]:
    """Return the names of the channels that differ from date to date."""

    def changes(name: str, above: tuple[str, ...]) -> bool:
        channel = defined.get(name)
        if channel is None or channel.date or name in above:
            return False
        if channel.per_date is not None:
            return channel.per_date
        if not channel.formula:
            return channel.kind == "reflectance"
        return any(changes(needed, (*above, name)) for needed in parse(channel.formula, dates).names)

    return frozenset(name for name in defined if changes(name, ()))


def dated(
    channel: ChannelDefinition, date: str, changing: Iterable[str], dates: Sequence[str] = ()
) -> ChannelDefinition:
    """Return the channel of one date; its formula names the changing channels of that date."""
    names = {name: f"{date}/{name}" for name in changing}
    formula = channel.formula and parse(channel.formula, dates).renamed(names)
    return dataclasses.replace(channel, name=f"{date}/{channel.local}", formula=formula, per_date=None)


_CHANGING = _changing(LIBRARY, ())


def set_of(names: Sequence[str], name: str = "by name", rgb: tuple[str, ...] = ()) -> ChannelSet:
    """Return the set of channels by their names, with or without dates; unknown ones are reflectance."""
    dates = tuple(dict.fromkeys(n.partition("/")[0] for n in names if "/" in n))
    channels = []
    for full in names:
        date, _, local = full.rpartition("/")
        unknown = ChannelDefinition(name=local, kind="reflectance", layers=(local,)).completed()
        known = LIBRARY.get(local, unknown)
        channels.append(dated(known, date, _CHANGING) if date else known)
    return ChannelSet(name=name, channels=tuple(channels), dates=dates, rgb=rgb)


_LEVEL_2A = [band for band in SENTINEL_BANDS if band != "B10"]
_SETS: Mapping[str, tuple[Sequence[str], tuple[str, ...]]] = {
    DEFAULT_CHANNELS: (CHANNELS, ("B04", "B03", "B02")),
    "sentinel2-10": ([band for band in _LEVEL_2A if band not in ("B01", "B09")], ("B04", "B03", "B02")),
    "sentinel2-12": (_LEVEL_2A, ("B04", "B03", "B02")),
    "landsat-8-9": ([f"SR_B{n}" for n in range(1, 8)], ("SR_B4", "SR_B3", "SR_B2")),
    "hls": ([f"HLS_{name}" for name in _HLS], ("HLS_RED", "HLS_GREEN", "HLS_BLUE")),
    "sentinel1": (["VV", "VH"], ()),
}
CHANNEL_SETS: Mapping[str, ChannelSet] = MappingProxyType(
    {name: set_of(channels, name, rgb) for name, (channels, rgb) in _SETS.items()}
)
"""Built-in sets by name."""


def channels_text(channels: ChannelSet | Sequence[str]) -> str:
    """Return the YAML file of a channel set."""
    text = f"format_version: {FORMAT_VERSION}\n"
    if isinstance(channels, ChannelSet):
        text += f"name: {channels.name}\n"
    else:
        channels = set_of(channels)
    text += f"rgb: [{', '.join(channels.rgb)}]\n" if channels.rgb else ""
    if channels.is_plain:
        return f"{text}channels: [{', '.join(channels.names)}]\n"
    return text + "channels:\n" + "".join(f"  - {_entry(channel)}\n" for channel in channels.channels)


def _entry(channel: ChannelDefinition) -> str:
    """Return a definition as YAML, without the defaults of its kind."""
    default = ChannelDefinition(name=channel.name, kind=channel.kind).completed().to_json()
    fields = {k: v for k, v in channel.to_json().items() if k in ("name", "kind") or v != default[k]}
    return "{" + ", ".join(f"{k}: {json.dumps(v)}" for k, v in fields.items()) + "}"
