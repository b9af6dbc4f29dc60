"""Chips: many small mosaics, each with its own labels, that are cut into one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import itertools
import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
import shapely

from lulc.config import PreprocessConfig
from lulc.core.channels import name_of, split_prefix, with_path
from lulc.core.documents import read_rows
from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.core.storage import Resource
from lulc.preprocessing import tiling
from lulc.preprocessing.plan import MAX_PLACES, Ground
from lulc.rasters.guards import is_address
from lulc.rasters.scenes import Scenes

OPEN = 16
"""Chips that are open at once."""

MAX_NAME = 255
"""Bytes of the name of a file, as file systems allow."""

NAMED = 5
"""Files that an error message names."""

SAME_GROUND = 0.5
"""Share of the smaller of two chips beyond which both show the same ground, and so make one group."""

PATTERNED = ("bands", "labels", "indices", "layers", "fill", "like", "mask", "pine", "spruce")
"""Options that take a pattern, and columns of a table of chips."""

NUMBERS = ("scale", "offset", "nodata")
"""Options with a number, and columns of a table of chips, where these differ from chip to chip."""

_WILDCARD = re.compile(r"\*\*/?|\*|\?|\[[^]]+\]")

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Chip:
    """One mosaic and its labels.

    Parameters
    ----------
    name
        Part of the file names that tells it from the others; empty where it is alone.
    group
        Chips of one group are on the same side of the split.
    config
        Options with the files of this chip.
    """

    name: str
    group: str
    config: PreprocessConfig


def find_chips(config: PreprocessConfig) -> list[Chip]:
    """Return the chips that the options name: by patterns, by a table, or the one mosaic.

    Raises
    ------
    InputError
        If a pattern matches nothing, a file has no partner, or the table can't be used.
    """
    if _is_table(config):
        return _check_chips(_read_table(config), config)
    patterns = {name: [p for p in _paths(config, name) if _is_pattern(p)] for name in PATTERNED}
    if not any(patterns.values()):
        return [Chip("", "", config)]
    if not patterns["bands"]:
        given = next(p for paths in patterns.values() for p in paths)
        raise InputError(
            f"cannot pair the files of '{given}', since --bands is no pattern, expected one for each chip",
            "Type --bands with a pattern in quotes, for example --bands 'chips/*_s2.tif'.",
        )
    return _check_chips(_match(config, patterns), config)


def _check_chips(chips: list[Chip], config: PreprocessConfig) -> list[Chip]:
    if config.dask is not None:
        raise InputError(
            "cannot use --dask with many chips, since this process alone reads them, one after the other",
            "Leave --dask out, or prepare folders apart: train_model.py takes several.",
        )
    if len(chips) > MAX_PLACES:
        raise InputError(
            f"cannot cut {len(chips)} chips, since one manifest names at most {MAX_PLACES} stacks",
            "Prepare folders of fewer chips: train_model.py takes several.",
        )
    return chips


def _paths(config: PreprocessConfig, name: str) -> tuple[str, ...]:
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,) if value else ()


def _is_pattern(path: str) -> bool:
    """True for a path with wildcards that is not itself the name of a file; a date may stand before it."""
    path = split_prefix(path)[1]
    return bool(_WILDCARD.search(path)) and not is_address(path) and not Path(path).exists()


def _is_table(config: PreprocessConfig) -> bool:
    return len(config.bands) == 1 and config.bands[0].lower().endswith(".csv")


def _match(config: PreprocessConfig, patterns: dict[str, list[str]]) -> list[Chip]:
    """Pair the files of all patterns by what their wildcards stand for."""
    found = {pattern: _matches(pattern) for pattern in itertools.chain(*patterns.values())}
    keys = sorted(set().union(*found.values()))
    lacking = [
        f"'{_fill(pattern, key)}'" for pattern, files in found.items() for key in keys if key not in files
    ]
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        raise InputError(
            f"cannot pair the files of {' and '.join(map(repr, found))}, since there is no "
            f"{', '.join(lacking[:NAMED])}{more}",
            "Give each chip all its files, type a pattern that matches complete chips only, or give a table "
            "of pairs: --bands pairs.csv with the columns bands,labels.",
        )
    chips = []
    for key in keys:
        files: dict[str, Any] = {}
        for name in PATTERNED:
            own = tuple(found[p][key] if p in found else p for p in _paths(config, name))
            files[name] = own if isinstance(getattr(config, name), tuple) else own[0] if own else None
        name = "/".join(part.strip("/") for part in key)
        chips.append(Chip(name, name, dataclasses.replace(config, **files)))
    return chips


def _matches(given: str) -> dict[tuple[str, ...], str]:
    """Return the files that a pattern matches, by what its wildcards stand for, with the date before it."""
    pattern = split_prefix(given)[1]
    parts, last = [], 0
    for wildcard in _WILDCARD.finditer(pattern):
        text = wildcard.group()
        parts.append(re.escape(pattern[last : wildcard.start()]))
        one = text if text[0] == "[" else "[^/]"
        parts.append("(.*)" if text.startswith("**") else f"({one.replace('[!', '[^')}{'*' * (text == '*')})")
        last = wildcard.end()
    expression = re.compile("".join(parts) + re.escape(pattern[last:]))
    before = given.removesuffix(pattern)
    found = {}
    for path in glob.glob(pattern, recursive=True):
        if match := expression.fullmatch(path):
            found[match.groups()] = before + path
    if not found:
        raise InputError(
            f"cannot find chips, since no file matches '{pattern}'",
            "Check the pattern in the shell: ls " + pattern,
        )
    return found


def _fill(pattern: str, key: Sequence[str]) -> str:
    """Return a pattern with what its wildcards stand for; the pattern and the key where they don't fit."""
    if len(_WILDCARD.findall(pattern)) != len(key):
        return f"{pattern} for {'/'.join(key)}"
    parts = iter(key)
    return _WILDCARD.sub(lambda _: next(parts), pattern)


def _read_table(config: PreprocessConfig) -> list[Chip]:
    """Return the chips of a table with a row for each; its paths start at its folder."""
    path = Path(config.bands[0])
    alone = config.labels is None or Path(config.labels) == path
    chips = []
    for line, row in _rows(path, needs_labels=alone):
        files: dict[str, Any] = {}
        for name in PATTERNED:
            many = isinstance(getattr(config, name), tuple)
            cells = [c.strip() for c in row.get(name, "").split("|") if c.strip()]
            cells = [_from(path.parent, c) for c in cells]
            if cells and len(cells) > 1 and not many:
                raise _bad_row(path, line, f"{name} has {len(cells)} files, expected one")
            if cells:
                files[name] = tuple(cells) if many else cells[0]
        if "bands" not in files or (alone and "labels" not in files):
            raise _bad_row(path, line, f"{'labels' if 'bands' in files else 'bands'} is empty")
        try:
            files |= {key: float(row[key]) for key in NUMBERS if row.get(key)}
        except ValueError as error:
            raise _bad_row(path, line, f"{', '.join(NUMBERS)} are numbers, but {error}") from error
        name = row.get("name") or Path(split_prefix(files["bands"][0])[1]).stem
        chips.append(Chip(name, row.get("group") or name, dataclasses.replace(config, **files)))
    twice = [name for name, count in Counter(chip.name for chip in chips).items() if count > 1]
    if twice:
        raise InputError(
            f"cannot tell chips apart, since {len(twice)} names occur twice in '{path}', the first is "
            f"'{twice[0]}'",
            "Add a column name with another text in each row.",
        )
    return chips


def _from(folder: Path, cell: str) -> str:
    """Return a path of a table, with the date or names before it, as one that starts at its folder."""
    if (longest := max(len(os.fsencode(part)) for part in cell.split("/"))) > MAX_NAME:
        raise InputError(
            f"cannot use the table's entry '{cell[:40]}...', since a name in it has {longest} bytes, "
            f"expected at most {MAX_NAME}",
            "Correct the table.",
        )
    if os.path.exists(folder / cell):
        return str(folder / cell)
    return with_path(cell, lambda path: path if is_address(path) else str(folder / path))


def _rows(path: Path, *, needs_labels: bool) -> list[tuple[int, dict[str, str]]]:
    """Return line number and cells of each row, checked to name its columns."""
    wanted = ["bands", "labels"] if needs_labels else ["bands"]
    hint = f"Give a CSV whose first line is {','.join(wanted)} and a row for each chip."
    header, rows = read_rows(path, "chips from", hint, ",;\t")
    known = {*PATTERNED, *NUMBERS, "name", "group"}
    if lacking := [name for name in wanted if name not in header]:
        raise InputError(
            f"cannot read chips from '{path}', since its first line is '{','.join(header)[:80]}' and lacks "
            f"{' and '.join(lacking)}",
            hint,
        )
    if unknown := [name for name in header if name not in known]:
        raise InputError(
            f"cannot read chips from '{path}', since it has the column '{unknown[0][:80]}', expected "
            f"{', '.join(sorted(known))}",
            "Remove or rename the column.",
        )
    for line, row in rows:
        if None in row:
            raise _bad_row(path, line, f"it has more than {len(header)} values")
    found = [
        (line, {k: (v or "").strip() for k, v in row.items()}) for line, row in rows if any(row.values())
    ]
    if not found:
        raise InputError(f"cannot read chips from '{path}', since it has no row", hint)
    return found


def _bad_row(path: Path, line: int, problem: str) -> InputError:
    return InputError(
        f"cannot read line {line} of '{path}', since {problem}",
        "Write a row for each chip; several files of a cell are separated by |.",
    )


class Chips(Resource):
    """The chips of one run, looked at once and opened again when they are read.

    Raises
    ------
    InputError
        If a chip can't be read, or names other classes or channels than the first.

    Attributes
    ----------
    sources : list of dict
        Name, bytes and sha256 of each file, chip by chip.
    """

    def __init__(self, chips: Sequence[Chip]) -> None:
        self.chips = tuple(chips)
        self._opened: OrderedDict[int, tuple[tiling.Inputs, contextlib.ExitStack]] = OrderedDict()
        self.grids: tuple[GridSpec, ...] = ()
        self.sources: list[dict[str, Any]] = []
        self._provenance: list[dict[str, Any]] = []
        self._environment = contextlib.ExitStack()
        self._environment.enter_context(rasterio.Env(GDAL_CACHEMAX=tiling.GDAL_CACHE))
        try:
            with _few_of_each(len(self.chips)):
                for number in range(len(self.chips)):
                    self._look_at(number)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.chips)

    @property
    def first(self) -> tiling.Inputs:
        return self.at(0)

    @property
    def are_many(self) -> bool:
        """True for chips, False for one mosaic."""
        return bool(self.chips[0].name)

    def at(self, number: int) -> tiling.Inputs:
        """Return a chip, opened; it stays open until others were read."""
        if number not in self._opened:
            seen = number < len(self.grids)
            while len(self._opened) >= OPEN:
                self._opened.popitem(last=False)[1][1].close()
            # What a chip has to say was logged when it was looked at.
            with contextlib.ExitStack() as resources, _filtered(lambda _: not seen):
                inputs = resources.enter_context(tiling.open_inputs(self.chips[number].config))
                self._opened[number] = inputs, resources.pop_all()
        self._opened.move_to_end(number)
        return self._opened[number][0]

    def _look_at(self, number: int) -> None:
        try:
            inputs = self.at(number)
        except InputError as error:
            if not self.are_many:
                raise
            problem = f"cannot use the chip '{self.chips[number].name}': {error.problem}"
            alone = (
                "If only some chips need the number, give a table of chips with a column scale or offset: "
                "--bands pairs.csv"
            )
            hint = (
                f"{error.hint}\n  {alone}" if re.search("--(scale|offset)", error.hint or "") else error.hint
            )
            raise InputError(problem, hint) from error
        self.grids += (inputs.stack.grid,)
        self.sources += [*inputs.stack.identity(), *inputs.labels.identity()]
        if not self.are_many:
            return
        self._provenance.append({**inputs.stack.provenance, "labels": inputs.labels.describe()})
        legend = [(c.number, c.name) for c in inputs.labels.legend.classes]
        if number == 0:
            self._legend, self._coding, self._channels = legend, inputs.stack.coding, inputs.stack.channels
        elif legend != self._legend:
            raise InputError(
                f"cannot cut the chips together, since the labels of '{self.chips[number].name}' have the "
                f"classes {', '.join(name for _, name in legend)}, expected those of "
                f"'{self.chips[0].name}': {', '.join(name for _, name in self._legend)}",
                "Type --scheme with a CSV (code,class,name,color) that has a row for each class.",
            )
        elif inputs.stack.channels != self._channels:
            raise InputError(
                f"cannot cut the chips together, since the channels of '{self.chips[number].name}' are "
                f"{', '.join(inputs.stack.channels)}, expected those of '{self.chips[0].name}': "
                f"{', '.join(self._channels)}",
                "Give each chip the same dates in the same order.",
            )
        elif inputs.stack.coding != self._coding:
            raise InputError(
                f"cannot cut the chips together, since the index layers of '{self.chips[number].name}' are "
                f"others than those of '{self.chips[0].name}'",
                "Give all chips the same index layers, or none.",
            )

    @property
    def found(self) -> list[dict[str, Any]]:
        """Descriptions of scenes and chips beside their files, which decide the stacks as these do."""
        if self.are_many:
            pairs = zip(self.chips, self._provenance, self.grids, strict=True)
            return [{"chip": c.name, "group": c.group, "grid": g.to_json(), **p} for c, p, g in pairs]
        scenes = self.first.stack.scenes
        return scenes.provenance if scenes else []

    @property
    def scenes(self) -> Scenes | None:
        """The scenes that one mosaic was given as."""
        return self.first.stack.scenes

    @property
    def provenance(self) -> dict[str, Any]:
        """Reading of channels and labels, JSON-ready; of many chips what they have in common."""
        if not self.are_many:
            return {**self.first.stack.provenance, "labels": self.first.labels.describe()}
        count = f"{len(self)} chips"
        common = functools.reduce(_common, self._provenance)
        for name, channel in common["channels"].items():
            common["channels"][name] = {"file": count, **channel} if "coding" not in channel else channel
        common["labels"] = {"file": count, **common["labels"]}
        return {**common, "chips": [{"name": c.name, "files": _files(c.config)} for c in self.chips]}

    def grounds(self) -> list[Ground]:
        """Return grid, name and group of each chip; chips on the same ground are one group."""
        groups = [chip.group for chip in self.chips]
        if self.are_many:
            for one, other in _on_same_ground(self.grids):
                old, new = groups[other], groups[one]
                groups = [new if group == old else group for group in groups]
        return [
            Ground(grid, chip.name, group)
            for grid, chip, group in zip(self.grids, self.chips, groups, strict=True)
        ]

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1][1].close()
        self._environment.close()


def _files(config: PreprocessConfig) -> list[str]:
    return [name_of(path) for name in PATTERNED for path in _paths(config, name)]


def _on_same_ground(grids: Sequence[GridSpec]) -> Iterator[tuple[int, int]]:
    """Yield pairs of chips that share more than half of the smaller one."""
    outlines = [grid.outline_in_degrees() if grid.crs else shapely.Polygon() for grid in grids]
    for one, other in zip(*shapely.STRtree(outlines).query(outlines), strict=True):
        if one < other and not (outlines[one].is_empty or outlines[other].is_empty):
            smaller = min(outlines[one].area, outlines[other].area)
            if shapely.intersection(outlines[one], outlines[other]).area > SAME_GROUND * smaller:
                yield int(one), int(other)


def _common(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what two documents have in common, level by level."""
    found = {}
    for name, value in one.items():
        if isinstance(value, dict) and isinstance(other.get(name), dict):
            found[name] = _common(value, other[name])
        elif name in other and other[name] == value:
            found[name] = value
    return found


@contextlib.contextmanager
def _few_of_each(chips: int) -> Iterator[None]:
    """Log a warning that chip after chip repeats a few times only, and how often it came."""
    if chips == 1:
        yield
        return
    seen: Counter[str] = Counter()
    last: dict[str, str] = {}

    def is_new(record: logging.LogRecord) -> bool:
        kind = str(record.msg)
        seen[kind] += 1
        last[kind] = record.getMessage()
        return seen[kind] < NAMED

    with _filtered(is_new):
        yield
    for kind, count in seen.items():
        if count >= NAMED:
            logger.warning("%d more like this, the last: %s", count - NAMED + 1, last[kind])


@contextlib.contextmanager
def _filtered(admit: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Log only what a function admits, of this toolkit and of GDAL."""
    loggers = (logger, logging.getLogger("rasterio._env"))
    for one in loggers:
        one.addFilter(admit)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(admit)
