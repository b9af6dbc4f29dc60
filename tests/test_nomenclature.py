"""Every code goes to one class or to ignore."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from lulc.core.schema import IGNORE, NO_CODE, InputError
from lulc.labels.schemes import SCHEMES, Scheme, count_codes, level1_of, load_scheme, read_scheme

# A second, independent copy of the Finnish table, as (codes, class).
FINNISH = [
    ({2, 13}, 1), ({1, 3, 4, 5, 6, 7}, 2), ({8, 9, 10, 11, 38, 39, 40, 44}, 3),
    ({12, 14, 15, 16, 19, 20, 31, 32}, 4), ({17, 18, 21, 22}, 5), ({23, 24}, 6), ({28, 29, 30}, 9),
    ({33, 34, 35, 36, 37}, 10), ({41, 43, 45}, 11), ({42, 46}, 12), ({47, 48, 49}, 13),
]  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_every_known_code_maps_to_one_class_or_to_ignore(name: str) -> None:
    scheme = load_scheme(name)
    for code in scheme.classes:
        (number,) = scheme.remap(np.array([code]))
        assert 1 <= number <= len(scheme.legend) or number == IGNORE
    assert scheme.remap(np.array([NO_CODE])) == IGNORE


@pytest.mark.parametrize("name", SCHEMES)
def test_every_class_is_reached_and_has_a_level_1_group(name: str) -> None:
    scheme = load_scheme(name)
    reached = set(scheme.classes.values()) | ({7, 8} if scheme.by_species else set())
    assert reached - {IGNORE} == {c.number for c in scheme.legend.classes}
    assert set(level1_of(scheme.legend)) == {1, 2, 3, 4, 5}
    assert len(set(scheme.legend.names)) == len(scheme.legend)


def test_the_13_classes_stay_as_they_are_and_0_is_ignored() -> None:
    codes = np.arange(14).reshape(2, 7)
    remapped = load_scheme("kaakonkulma-13").remap(codes)
    assert remapped.dtype == np.uint8
    assert remapped.tolist() == [[255, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13]]


def test_finnish_codes_follow_the_national_table() -> None:
    scheme = load_scheme("clc-fi-13")
    expected = {code: number for codes, number in FINNISH for code in codes}
    assert set(expected) | {25, 26, 27, 0, 255} == set(scheme.classes)
    assert {code: int(scheme.remap(np.array([code]))[0]) for code in expected} == expected


def test_the_species_with_more_volume_decides_on_conifers_and_ties_are_ignored() -> None:
    codes = np.array([25, 26, 27, 25, 25, 1])
    pine = np.array([9.0, 1.0, 5.0, np.nan, 0.0, 9.0])
    spruce = np.array([1.0, 9.0, 5.0, 3.0, 0.0, 1.0])
    scheme = load_scheme("clc-fi-13")
    assert scheme.remap(codes, pine, spruce).tolist() == [7, 8, 255, 255, 255, 2]
    assert scheme.remap(codes).tolist() == [255, 255, 255, 255, 255, 2]


def test_level_1_of_finnish_codes_follows_the_code_not_the_class() -> None:
    scheme = load_scheme("clc-fi-13")
    # Bare areas: extraction, bare rock, peat production. Grasslands: parks, pastures, moors.
    assert scheme.remap_level1(np.array([8, 39, 44, 12, 19, 32, 0])).tolist() == [1, 3, 4, 1, 2, 3, 255]
    assert level1_of(scheme.legend)[[2, 3]].tolist() == [1, 3]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_grid_codes_and_three_digit_codes_give_the_same_classes(level: int) -> None:
    digits = load_scheme("clc-level3").legend
    three = np.array([c.sources[0] for c in digits.classes])
    scheme = load_scheme(f"clc-level{level}")
    assert np.array_equal(scheme.remap(np.arange(1, 45)), scheme.remap(three))
    groups = [int(str(code)[:level]) for code in three]
    order = sorted(set(groups))
    assert scheme.remap(three).tolist() == [order.index(g) + 1 for g in groups]
    assert level1_of(scheme.legend)[scheme.remap(three) - 1].tolist() == [c // 100 for c in three]


def test_codes_that_are_told_admit_no_others() -> None:
    with pytest.raises(InputError, match="unknown codes 111"):
        load_scheme("clc-level1", "grid").remap(np.array([1, 111]))
    with pytest.raises(InputError, match=r"unknown codes 1 \(1 px\)"):
        load_scheme("clc-level1", "three-digit").remap(np.array([1, 111]))


def test_a_mix_of_grid_and_three_digit_codes_is_refused() -> None:
    with pytest.raises(InputError, match="cannot tell"):
        load_scheme("clc-level2").check({12: 4, 112: 4}, "x.tif")
    load_scheme("clc-level2").check({12: 4, 48: 4, 255: 1})
    load_scheme("clc-level2").check({112: 4, 999: 4})


def test_codes_1_to_5_could_be_level_1_already_and_must_be_told() -> None:
    with pytest.raises(InputError, match="--codes grid"):
        load_scheme("clc-level1").check({1: 4, 5: 4})
    load_scheme("clc-level1", "grid").check({1: 4, 5: 4})


def test_finnish_codes_in_a_european_scheme_are_refused_with_the_scheme_to_type() -> None:
    with pytest.raises(InputError, match="clc-fi-13"):
        load_scheme("clc-level3").check({44: 3, 47: 9})


def test_unknown_codes_are_listed_with_their_pixel_counts() -> None:
    with pytest.raises(InputError, match=r"14 \(2 px\), 77 \(1 px\)"):
        load_scheme("kaakonkulma-13").remap(np.array([[1, 14, 14], [77, 0, 2]]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-300, 600), min_size=1, max_size=30))
def test_remapping_agrees_with_a_dictionary(codes: list[int]) -> None:
    scheme = load_scheme("clc-level2")
    unknown = {c: n for c, n in Counter(codes).items() if c not in scheme.classes}
    if unknown:
        with pytest.raises(InputError) as caught:
            scheme.remap(np.array(codes))
        assert all(f"{c} ({n} px)" in str(caught.value) for c, n in unknown.items())
    else:
        assert scheme.remap(np.array(codes)).tolist() == [scheme.classes[c] for c in codes]


def test_counts_add_up_over_windows() -> None:
    codes = np.random.default_rng(1).integers(0, 9, (20, 30))
    parts = count_codes(codes[:7]) + count_codes(codes[7:])
    assert parts == Counter(codes.ravel().tolist())


CSV = "code,class,name,color\n10,1,Forest,#00aa00\n20,2,Water,#0000ff\n21,2,,\n0,,,\n99,ignore,,\n"


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_of_the_user_is_a_scheme(tmp_path: Path, encoding: str, delimiter: str, newline: str) -> None:
    text = CSV.replace(",", delimiter).replace("\n", newline)
    scheme = load_scheme(write(tmp_path / "mine.csv", text, encoding))
    assert scheme.remap(np.array([10, 20, 21, 0, 99])).tolist() == [1, 2, 2, 255, 255]
    assert scheme.legend.names == ("Forest", "Water")
    assert scheme.legend.colors == ("#00aa00", "#0000ff")
    assert scheme.legend.classes[1].sources == (20, 21)


def test_a_table_may_give_level_1_and_leave_out_colours(tmp_path: Path) -> None:
    text = "code,class,name,color,level1\n1,1,Trees,,3\n2,2,Lake,,5\n3,3,Ice,,\n"
    scheme = read_scheme(write(tmp_path / "mine.csv", text))
    assert level1_of(scheme.legend).tolist() == [3, 5, 0]
    assert scheme.remap_level1(np.array([1, 2, 3])).tolist() == [3, 5, 255]
    assert len(set(scheme.legend.colors)) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CSV.replace("20,2", "10,2"), "line 3 code 10 is there twice"),
        (CSV.replace("20,2", "2\x01,2"), "line 3 the code is '2\\x01'"),
        (CSV.replace("20,2", "20,255"), "line 3 the class is '255'"),
        (CSV.replace("20,2", "20,0"), "line 3 the class is '0'"),
        (CSV.replace("21,2,,", "21,2,Lake,"), "line 4 the name of class 2 is 'Lake', expected 'Water'"),
        (CSV.replace("#0000ff", "blue"), "line 3 the color is 'blue'"),
        (CSV.replace("99,ignore,,", "99,ignore"), "line 6 the number of values"),
        (CSV.replace("99,ignore,,", "99,4,Ice,#ffffff"), "its classes are 1, 2, 4"),
        (CSV.replace("Water", ""), "class 2 has no name"),
        ("code,class\n1,1\n", "lacks name, color"),
        ("", "lacks code"),
        ("code,class,name,color\n1,,,\n", "all ignored"),
        ('code,class,name,color\n1,1,"Fo', "no CSV"),
        ("code,class,name,color\n1,1,A\x00B,\n", "line 2 the name"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_scheme(write(tmp_path / "mine.csv", text))
    assert says in str(caught.value)


def test_tables_that_are_too_large_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 100 columns"):
        read_scheme(write(tmp_path / "large.csv", CSV + "\n" * 2**20))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_scheme(str(tmp_path / "binary.csv"))
    with pytest.raises(InputError, match="neither a file"):
        load_scheme("clc-level4")


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_table_whatever_ends_in_anything_but_a_scheme_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "mine.csv"
    path.write_bytes(("code,class,name,color\n" + text).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(InputError):
        assert isinstance(read_scheme(str(path)), Scheme)


def test_colours_of_the_13_classes_differ_for_the_colour_blind() -> None:
    colors = load_scheme("kaakonkulma-13").legend.colors
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Machado, Oliveira, Fernandes 2009, severity 1.0: normal sight, deuteranopia, protanopia.
    sights = [
        np.eye(3),
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ]
    for sight, least in zip(sights, (30, 13, 18), strict=True):
        lab = [to_lab(np.clip(sight @ color, 0, 1)) for color in linear]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > least


def to_lab(linear: np.ndarray) -> np.ndarray:
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.array(matrix) @ linear / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def official_table(path: Path) -> list[dict[str, str]]:
    """Rows of a dBase III table."""
    content = path.read_bytes()
    count, header, length = (int.from_bytes(content[a:b], "little") for a, b in ((4, 8), (8, 10), (10, 12)))
    fields, place = [], 32
    while content[place] != 13:
        fields.append((content[place : place + 11].split(b"\0")[0].decode(), content[place + 16]))
        place += 32
    rows = []
    for i in range(count):
        record = content[header + i * length + 1 : header + (i + 1) * length]
        row, place = {}, 0
        for name, size in fields:
            row[name] = record[place : place + size].decode("utf-8").strip()
            place += size
        rows.append(row)
    return rows


def test_level_3_agrees_with_the_official_table(shared: Path) -> None:
    scheme = load_scheme("clc-level3")
    rows = official_table(shared / "data/clc2018-sao-miguel/clc2018_v2020_20u1.tif.vat.dbf")
    for row in rows:
        (number,) = scheme.remap(np.array([int(row["Value"])]))
        if row["LABEL3"] == "NODATA":
            assert number == IGNORE
            continue
        land_cover = scheme.legend.classes[number - 1]
        color = "#" + "".join(f"{round(255 * float(row[c])):02x}" for c in ("Red", "Green", "Blue"))
        assert (land_cover.name, land_cover.color) == (row["LABEL3"], color)
        assert land_cover.sources == (int(row["CODE_18"]),)
    assert len(rows) == 45


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_real_corine_raster_of_sao_miguel_is_remapped(shared: Path, level: int) -> None:
    folder = shared / "data/clc2018-sao-miguel"
    with rasterio.open(folder / "clc2018_v2020_20u1.tif") as data:
        codes = data.read(1)
    rows = official_table(folder / "clc2018_v2020_20u1.tif.vat.dbf")
    clc = {int(row["Value"]): row["CODE_18"][:level] for row in rows}
    scheme = load_scheme(f"clc-level{level}")
    remapped = scheme.remap(codes)
    scheme.check(count_codes(codes))
    expected = Counter()
    for code, number in count_codes(codes).items():
        expected[clc[code]] += number
    found = {
        str(c.sources[0])[:level]: int((remapped == c.number).sum())
        for c in scheme.legend.classes
        if (remapped == c.number).any()
    }
    assert found == expected


def test_a_row_without_a_code_declares_a_class_that_these_labels_lack(tmp_path: Path) -> None:
    table = tmp_path / "scheme.csv"
    table.write_text("code,class,name,color\n7,1,Water,#0000ff\n,2,Built,#ff0000\n")
    scheme = load_scheme(str(table))
    assert scheme.legend.names == ("Water", "Built")
    assert scheme.legend.classes[1].sources == ()
    assert scheme.remap(np.array([[7]])).tolist() == [[1]]
    table.write_text("code,class,name,color\n7,1,Water,#0000ff\n,ignore,,\n")
    with pytest.raises(InputError, match="line 3"):
        load_scheme(str(table))
