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
from lulc.preprocessing.plan import MAX_STACKS, Ground
from lulc.rasters.guards import is_address
from lulc.rasters.scenes import Scenes

OPEN = 16
"""Chips that are open at once."""

MAX_NAME = 255
"""Longest file name in bytes that file systems allow."""

NAMED = 5
"""Files that an error message lists, and equal warnings that are logged."""

SAME_GROUND = 0.5
"""Overlap, as a fraction of the smaller chip, above which two chips make one group."""

PATTERNED = ("bands", "labels", "indices", "layers", "fill", "like", "mask", "pine", "spruce")
"""Options that take a pattern; they may be columns of a table of chips."""

NUMBERS = ("scale", "offset", "nodata")
"""Options with a number that may be columns of a table of chips."""

_WILDCARD = re.compile(r"\*\*/?|\*|\?|\[[^]]+\]")

logger = logging.getLogger("lulc")


@dataclass(frozen=True)
class Chip:
    """One mosaic and its labels, with the options that name their files.

    The name is the part of the file names that differs between chips, empty for a single mosaic. Chips of one
    group are on the same side of the split.
    """

    name: str
    group: str
    config: PreprocessConfig


def find_chips(config: PreprocessConfig) -> list[Chip]:
    """Return the chips that the options name by patterns or by a table, or the single mosaic.

    Raises
    ------
    InputError
        If a pattern matches nothing, a file has no partner, or the table can't be used.
    """
    if len(config.bands) == 1 and config.bands[0].lower().endswith(".csv"):
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
            "cannot use --dask with many chips, since only this process reads them, one after the other",
            "Leave --dask out, or prepare several folders: train_model.py takes several.",
        )
    if len(chips) > MAX_STACKS:
        raise InputError(
            f"cannot cut {len(chips)} chips, since one manifest names at most {MAX_STACKS} stacks",
            "Prepare folders of fewer chips: train_model.py takes several.",
        )
    return chips


def _paths(config: PreprocessConfig, name: str) -> tuple[str, ...]:
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,) if value else ()


def _is_pattern(path: str) -> bool:
    """Return True for a path with wildcards that is not the name of a file; a date may precede it."""
    path = split_prefix(path)[1]
    return bool(_WILDCARD.search(path)) and not is_address(path) and not Path(path).exists()


def _match(config: PreprocessConfig, patterns: dict[str, list[str]]) -> list[Chip]:
    """Pair the files of all patterns by the texts that their wildcards match."""
    matches = {pattern: _matches(pattern) for pattern in itertools.chain(*patterns.values())}
    keys = sorted(set().union(*matches.values()))
    lacking = [
        f"'{_fill(pattern, key)}'" for pattern, files in matches.items() for key in keys if key not in files
    ]
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        raise InputError(
            f"cannot pair the files of {' and '.join(map(repr, matches))}, since there is no "
            f"{', '.join(lacking[:NAMED])}{more}",
            "Give each chip all its files, type a pattern that matches complete chips only, or give a table "
            "of pairs: --bands pairs.csv with the columns bands,labels.",
        )
    chips = []
    for key in keys:
        files: dict[str, Any] = {}
        for name in PATTERNED:
            paths = tuple(matches[p][key] if p in matches else p for p in _paths(config, name))
            files[name] = paths if isinstance(getattr(config, name), tuple) else paths[0] if paths else None
        name = "/".join(part.strip("/") for part in key)
        chips.append(Chip(name, name, dataclasses.replace(config, **files)))
    return chips


def _matches(option: str) -> dict[tuple[str, ...], str]:
    """Return the files that a pattern matches, by the texts of its wildcards; a date before it stays."""
    pattern = split_prefix(option)[1]
    parts, last = [], 0
    for wildcard in _WILDCARD.finditer(pattern):
        text = wildcard.group()
        parts.append(re.escape(pattern[last : wildcard.start()]))
        one = text if text[0] == "[" else "[^/]"
        parts.append("(.*)" if text.startswith("**") else f"({one.replace('[!', '[^')}{'*' * (text == '*')})")
        last = wildcard.end()
    expression = re.compile("".join(parts) + re.escape(pattern[last:]))
    prefix = option.removesuffix(pattern)
    files = {}
    for path in glob.glob(pattern, recursive=True):
        if match := expression.fullmatch(path):
            files[match.groups()] = prefix + path
    if not files:
        raise InputError(
            f"cannot find chips, since no file matches '{pattern}'",
            "Check the pattern in the shell: ls " + pattern,
        )
    return files


def _fill(pattern: str, key: Sequence[str]) -> str:
    """Return a pattern with texts for its wildcards; if their numbers differ, the pattern and the texts."""
    if len(_WILDCARD.findall(pattern)) != len(key):
        return f"{pattern} for {'/'.join(key)}"
    parts = iter(key)
    return _WILDCARD.sub(lambda _: next(parts), pattern)


def _read_table(config: PreprocessConfig) -> list[Chip]:
    """Return the chips of a table with a row for each; paths are relative to its folder."""
    path = Path(config.bands[0])
    alone = config.labels is None or Path(config.labels) == path
    chips = []
    for line, row in _rows(path, needs_labels=alone):
        files: dict[str, Any] = {}
        for name in PATTERNED:
            many = isinstance(getattr(config, name), tuple)
            cells = [_resolve(path.parent, c.strip()) for c in row.get(name, "").split("|") if c.strip()]
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


def _resolve(folder: Path, cell: str) -> str:
    """Return a path that is relative to the folder of a table; a date or names before it stay."""
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
    """Return line number and cells of each row; refuse missing and unknown columns."""
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
    stripped = [(n, {k: (v or "").strip() for k, v in row.items()}) for n, row in rows if any(row.values())]
    if not stripped:
        raise InputError(f"cannot read chips from '{path}', since it has no row", hint)
    return stripped


def _bad_row(path: Path, line: int, problem: str) -> InputError:
    return InputError(
        f"cannot read line {line} of '{path}', since {problem}",
        "Write a row for each chip; several files of a cell are separated by |.",
    )


class Chips(Resource):
    """The chips of one run, all checked at the start, and a few of them open at a time.

    `sources` are name, bytes and sha256 of each file, chip by chip.

    Raises
    ------
    InputError
        If a chip can't be read, or has other classes or channels than the first.
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
                    self._check(number)
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
        """True for chips, False for a single mosaic."""
        return bool(self.chips[0].name)

    def at(self, number: int) -> tiling.Inputs:
        """Return the open inputs of a chip; it is closed after `OPEN` others were read."""
        if number not in self._opened:
            checked = number < len(self.grids)
            while len(self._opened) >= OPEN:
                self._opened.popitem(last=False)[1][1].close()
            # The warnings of a chip were logged when it was checked.
            with contextlib.ExitStack() as resources, _filtered(lambda _: not checked):
                inputs = resources.enter_context(tiling.open_inputs(self.chips[number].config))
                self._opened[number] = inputs, resources.pop_all()
        self._opened.move_to_end(number)
        return self._opened[number][0]

    def _check(self, number: int) -> None:
        """Open a chip and compare it with the first."""
        try:
            inputs = self.at(number)
        except InputError as error:
            if not self.are_many:
                raise
            problem, hint = f"cannot use the chip '{self.chips[number].name}': {error.problem}", error.hint
            if re.search("--(scale|offset)", hint or ""):
                hint = (
                    f"{hint}\n  If only some chips need the number, give a table of chips with a column "
                    "scale or offset: --bands pairs.csv"
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
                f"cannot cut the chips together, since the index layers of '{self.chips[number].name}' "
                f"differ from those of '{self.chips[0].name}'",
                "Give all chips the same index layers, or none.",
            )

    @property
    def descriptions(self) -> list[dict[str, Any]]:
        """Descriptions of scenes and chips, which decide the stacks in addition to their files."""
        if self.are_many:
            pairs = zip(self.chips, self._provenance, self.grids, strict=True)
            return [{"chip": c.name, "group": c.group, "grid": g.to_json(), **p} for c, p, g in pairs]
        scenes = self.first.stack.scenes
        return scenes.provenance if scenes else []

    @property
    def scenes(self) -> Scenes | None:
        """Scenes of ``--scenes``."""
        return self.first.stack.scenes

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance of channels and labels, JSON-ready; for many chips what they have in common."""
        if not self.are_many:
            return {**self.first.stack.provenance, "labels": self.first.labels.describe()}
        count = f"{len(self)} chips"
        common = functools.reduce(_common, self._provenance)
        for name, channel in common["channels"].items():
            common["channels"][name] = {"file": count, **channel} if "coding" not in channel else channel
        common["labels"] = {"file": count, **common["labels"]}
        return {**common, "chips": [{"name": c.name, "files": _files(c.config)} for c in self.chips]}

    def grounds(self) -> list[Ground]:
        """Return grid, name and group of each chip; chips that overlap by half are one group."""
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
    """Yield pairs of chips that overlap by more than half of the smaller one."""
    outlines = [grid.outline_in_degrees() if grid.crs else shapely.Polygon() for grid in grids]
    for one, other in zip(*shapely.STRtree(outlines).query(outlines), strict=True):
        if one < other and not (outlines[one].is_empty or outlines[other].is_empty):
            smaller = min(outlines[one].area, outlines[other].area)
            if shapely.intersection(outlines[one], outlines[other]).area > SAME_GROUND * smaller:
                yield int(one), int(other)


def _common(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that two documents have in common, also in nested documents."""
    common = {}
    for name, value in one.items():
        if isinstance(value, dict) and isinstance(other.get(name), dict):
            common[name] = _common(value, other[name])
        elif name in other and other[name] == value:
            common[name] = value
    return common


@contextlib.contextmanager
def _few_of_each(chips: int) -> Iterator[None]:
    """Log a warning that many chips repeat only a few times, and at last its number."""
    if chips == 1:
        yield
        return
    counts: Counter[str] = Counter()
    last: dict[str, str] = {}

    def admit(record: logging.LogRecord) -> bool:
        kind = str(record.msg)
        counts[kind] += 1
        last[kind] = record.getMessage()
        return counts[kind] < NAMED

    with _filtered(admit):
        yield
    for kind, count in counts.items():
        if count >= NAMED:
            logger.warning("%d more like this, the last: %s", count - NAMED + 1, last[kind])


@contextlib.contextmanager
def _filtered(admit: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Log only the records of this toolkit and of GDAL that a function admits."""
    loggers = (logger, logging.getLogger("rasterio._env"))
    for one in loggers:
        one.addFilter(admit)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(admit)
