"""Value tables: class names and colours that a label raster itself gives for its values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from lulc.core.codec import schema_of
from lulc.core.documents import check_document, parse_json
from lulc.core.reader_process import read_apart
from lulc.core.schema import IGNORE, Code, InputError, Legend
from lulc.labels.schemes import CORINE, PRODUCTS, SCHEMES, Scheme, load_scheme, plain, scheme_of_names
from lulc.rasters.guards import is_address, parse_xml, read_xml
from lulc.rasters.sources import Source

TAG_PREFIX = "LULC_"
"""Start of the names of all tags that this toolkit writes."""

LEGEND_TAG = "LULC_LEGEND"
"""Tag of a map that holds its legend as JSON."""

MAX_TABLE_BYTES = 4 * 2**20
MAX_ROWS = 65_536

NEAR = 3
"""Largest difference of red, green or blue between equal colours."""

NO_DATA = {"nodata", "no data", "no_data", "no-data", "unclassified"}
"""Names of values that are no class; Imagine names its value 0 "unclassified"."""

_DBF_VERSIONS = (0x03, 0x83, 0x30, 0x31, 0x8B, 0xF5)

_VALUE, _NAME, _RED, _GREEN, _BLUE, _LEAST, _MOST = "5", "2", "6", "7", "8", "3", "4"
"""Usages of columns in GDAL's raster attribute tables (GDALRATFieldUsage)."""


@dataclass(frozen=True)
class ValueTable:
    """Names and colours of a raster's values.

    Parameters
    ----------
    names
        Value to name of the class; empty where the raster has colours alone.
    colors
        Value to ``#rrggbb``.
    legend
        Complete legend from the tags of a map.
    """

    origin: str
    names: Mapping[int, str]
    colors: Mapping[int, str]
    legend: Legend | None = None


def read_value_table(source: Source) -> ValueTable | None:
    """Return the value table of a raster, from the first of these that it has, else None:

    - the legend in the tags of a map,
    - a raster attribute table or category names, in ``NAME.aux.xml`` or the file,
    - a table ``NAME.vat.dbf``,
    - ``flag_values`` and ``flag_meanings`` of CF,
    - the colour table of the file.
    """
    if LEGEND_TAG in source.tags:
        legend = legend_of_tag(source.tags[LEGEND_TAG], source.path)
        return ValueTable("the tags of the map", {}, {}, legend)
    if not is_address(source.path):
        for suffix, read in ((".aux.xml", _read_aux), (".vat.dbf", _read_dbf)):
            beside = Path(f"{source.path}{suffix}")
            if beside.is_file() and beside.resolve().parent == Path(source.path).resolve().parent:
                table = read(beside)
                if table is not None:
                    return table
    colors = source.palette()
    if content := source.table():
        band = parse_xml(content, Path(source.path), "the value table").find("VRTRasterBand[@band='1']")
        table = None if band is None else _read_band(band, f"the value table in '{Path(source.path).name}'")
        if table is not None:
            return table if table.colors else replace(table, colors=colors)
    if flags := _read_flags(source.attributes(), source.dtypes[0]):
        return ValueTable("its flag_meanings", flags, colors)
    return ValueTable("its colour table", {}, colors) if colors else None


def legend_of_tag(text: str, path: str) -> Legend:
    """Return the legend that the tags of a map hold."""
    try:
        data = parse_json(text, foreign=True)
    except ValueError:
        data = None
    check_document(data, schema_of(Legend), "legend in the tags of the map", path)
    return Legend.from_json(data)


def scheme_of_table(table: ValueTable, path: str) -> Scheme | None:
    """Return the scheme of a value table; None for colours alone that belong to no known product."""
    if table.legend is not None:
        numbers: dict[Code, int] = {c.number: c.number for c in table.legend.classes}
        return Scheme(table.legend.name, table.legend, {0: IGNORE, IGNORE: IGNORE, **numbers})
    for name in (CORINE[-1], *PRODUCTS):
        if _names_agree(table, load_scheme(name)):
            return load_scheme(name)
        by_colors = load_scheme(name, "grid" if name in CORINE else "auto")
        if _colors_agree(table, by_colors):
            return by_colors
    if not table.names:
        return None
    named = {value: name for value, name in table.names.items() if plain(name) not in NO_DATA}
    made = scheme_of_names(Path(path).name, named, table.colors)
    nodata: dict[Code, int] = dict.fromkeys(set(table.names) - set(named), IGNORE)
    return Scheme(made.name, made.legend, {**made.classes, **nodata}, hint=made.hint)


def _names_agree(table: ValueTable, scheme: Scheme) -> bool:
    """True where every named value has the name of its class in the scheme."""
    named = {value: plain(name) for value, name in table.names.items() if plain(name) not in NO_DATA}
    numbers = [scheme.classes.get(value, IGNORE) for value in named]
    return len(named) > 1 and all(
        number != IGNORE and plain(scheme.legend.names[number - 1]) == name
        for number, name in zip(numbers, named.values(), strict=True)
    )


def _colors_agree(table: ValueTable, scheme: Scheme) -> bool:
    """True where the table has colours alone, and those of the scheme for all its values."""
    wanted = {
        code: scheme.legend.colors[number - 1]
        for code, number in scheme.classes.items()
        if isinstance(code, int) and number != IGNORE
    }
    return not table.names and all(
        code in table.colors and _are_near(table.colors[code], color) for code, color in wanted.items()
    )


def _are_near(first: str, second: str) -> bool:
    pairs = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return all(abs(a - b) <= NEAR for a, b in pairs)


def _read_flags(attributes: Mapping[str, Any], dtype: str) -> dict[int, str]:
    """Value to name by CF's ``flag_values`` and ``flag_meanings``; empty where they are no enumeration."""
    known = {key.lower(): value for key, value in attributes.items()}
    texts = [
        value if isinstance(value, str) else " ".join(map(str, np.ravel(value).tolist()))
        for value in (known.get("flag_values", ""), known.get("flag_meanings", ""))
    ]
    values = [int(float(part)) for part in re.findall(r"(?<!\d)-?\d{1,18}(?:\.0*)?(?!\d)", texts[0])]
    names = texts[1].split()
    if "flag_masks" in known or len(values) != len(names):
        return {}
    kind = np.dtype(dtype)
    wrap = 2 ** (8 * kind.itemsize) if kind.kind == "u" else 0
    return {v + wrap if v < 0 else v: n.replace("_", " ") for v, n in zip(values, names, strict=True)}


def _read_aux(path: Path) -> ValueTable | None:
    """Read the raster attribute table or the category names of the first band in GDAL's ``.aux.xml``."""
    band = read_xml(path, "the value table").find("PAMRasterBand[@band='1']")
    return None if band is None else _read_band(band, f"the value table '{path.name}'")


def _read_band(band: Element, origin: str) -> ValueTable | None:
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        categories = [(element.text or "").strip() for element in band.findall("CategoryNames/Category")]
        names = {value: name for value, name in enumerate(categories) if name}
        return ValueTable(origin, names, {}) if names else None
    fields = table.findall("FieldDefn")
    columns = {(field.findtext("Usage") or "").strip(): i for i, field in enumerate(fields)}
    headers = [(field.findtext("Name") or "").strip().lower() for field in fields]
    listed = table.findall("Row")[:MAX_ROWS]
    rows = [[(cell.text or "").strip() for cell in row.findall("F")] for row in listed]
    if _VALUE not in columns and "value" in headers:
        columns[_VALUE] = headers.index("value")
    if _NAME not in columns:
        columns[_NAME] = _name_column(rows, len(headers))
    if _VALUE not in columns and not {_LEAST, _MOST} & set(columns) and float(table.get("Row0Min", 0)) == 0:
        # In Imagine files a row's number is its value.
        columns[_VALUE] = len(headers)
        rows = [[*row, str(number)] for number, row in enumerate(rows)]
    return _table_of(origin, rows, columns, scale=1)


def _read_dbf(path: Path) -> ValueTable | None:
    """Read a value attribute table as ArcGIS writes it beside a raster."""
    with open(path, "rb") as file:
        first = file.read(1)
    if not first or first[0] not in _DBF_VERSIONS or path.stat().st_size > MAX_TABLE_BYTES:
        return None
    names, rows = read_apart("lulc.rasters.features.read_table", str(path), MAX_ROWS, path=path)
    if not names:
        return None
    headers = [name.lower() for name in names]
    columns = {
        usage: headers.index(name)
        for usage, name in ((_VALUE, "value"), (_RED, "red"), (_GREEN, "green"), (_BLUE, "blue"))
        if name in headers
    }
    columns[_NAME] = _name_column(rows, len(headers))
    return _table_of(f"the value table '{path.name}'", rows, columns, scale=255)


def _name_column(rows: list[list[str]], count: int) -> int:
    """Return the column of names, -1 without any: the one of most texts among those not only of numbers."""
    columns = [{row[i] for row in rows if i < len(row)} - {""} for i in range(count)]
    sizes = [len(texts) if any(_number(text) is None for text in texts) else 0 for texts in columns]
    return sizes.index(max(sizes)) if any(sizes) else -1


def _table_of(
    origin: str, rows: list[list[str]], columns: Mapping[str, int], *, scale: int
) -> ValueTable | None:
    """Return the value table of rows whose columns have these usages; colours may be fractions of `scale`."""
    if _VALUE not in columns or columns[_NAME] < 0:
        return None
    names: dict[int, str] = {}
    colors: dict[int, str] = {}
    fractions = scale > 1 and all(_brightest(row, columns) <= 1 for row in rows)
    for row in rows:
        if len(row) <= max(columns.values()):
            continue
        value, name = _number(row[columns[_VALUE]]), row[columns[_NAME]]
        if value is None or value != int(value) or not name:
            continue
        names[int(value)] = name
        channels = [_number(row[columns[usage]]) for usage in (_RED, _GREEN, _BLUE) if usage in columns]
        if len(channels) == 3 and None not in channels:
            rgb = [round((255 if fractions else 1) * float(c or 0)) for c in channels]
            if all(0 <= c <= 255 for c in rgb):
                colors[int(value)] = "#" + bytes(rgb).hex()
    return ValueTable(origin, names, colors) if names else None


def _brightest(row: list[str], columns: Mapping[str, int]) -> float:
    """Return the highest of red, green and blue in a row; 0 without any."""
    used = [columns[u] for u in (_RED, _GREEN, _BLUE) if u in columns and columns[u] < len(row)]
    return max((value for value in (_number(row[i]) for i in used) if value is not None), default=0.0)


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # Python takes "1_2" for 12.
    return value if abs(value) < 2**31 and "_" not in str(text) else None


def unexplained(path: str, codes: Sequence[int]) -> InputError:
    """Return the error for labels whose codes have no known meaning, with the commands to type."""
    shown = ", ".join(map(str, codes[:12])) + (", ..." if len(codes) > 12 else "")
    fitting = [name for name in SCHEMES if codes and set(codes) <= set(load_scheme(name).classes)]
    known = f"If they are those of {' or '.join(fitting)}, type --scheme {fitting[0]}. " if fitting else ""
    rows = "".join(f"\n    {code},{number},NAME," for number, code in enumerate(codes[:5], start=1))
    return InputError(
        f"cannot tell which classes the codes of '{path}' mean ({shown}), since it has neither class names "
        "nor a value table, expected --scheme",
        f"{known}Otherwise write a table classes.csv with a row for each code and type --scheme classes.csv "
        f"(leave class empty to ignore a code):\n\n    code,class,name,color{rows}",
    )
