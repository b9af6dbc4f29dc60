"""Channels of every kind and source on real rasters: dates, radar, terrain, codes, embeddings, formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
import spyndex
from affine import Affine

import lulc
from lulc.cli import make_classifications, preprocess, reproduce_map, train_model
from lulc.config import ClassifyConfig, InputConfig, TrainConfig
from lulc.core.channels import CHANNEL_SETS, LIBRARY, ChannelSet, channels_text, set_of, split_prefix
from lulc.core.config_file import read_settings
from lulc.core.directions import mirror_directions, turn_directions
from lulc.core.formula import parse
from lulc.core.schema import CHANNELS, INDICES, InputError
from lulc.core.statistics import Statistics
from lulc.core.windows import Window
from lulc.datasets.manifest import read_manifest
from lulc.inference.wrapped import dihedral
from lulc.preprocessing.preprocess import make_stacks
from lulc.rasters.channels import load_channels, set_in_tags
from lulc.rasters.indices import compute_indices
from lulc.rasters.matching import picture_layers
from lulc.rasters.stack import Coverage, open_stack
from lulc.training.data.augmentation import Dropout, Flip, Jitter, rotate
from lulc.training.data.dataset import open_dataset
from lulc.training.data.unlabelled import open_mosaic

from .test_channels import config

pytestmark = pytest.mark.integration

SIDE = 48
WHOLE = Window(0, 0, SIDE, SIDE)


def tif(
    path: Path, data: np.ndarray, names: list[str] | None = None, meters: float = 10, crs: str = "EPSG:32635",
    origin: tuple[float, float] = (5e5, 6.8e6), **profile: object,
) -> str:  # fmt: skip
    with rasterio.open(
        path, "w", driver="GTiff", height=data.shape[1], width=data.shape[2], count=len(data), crs=crs,
        dtype=data.dtype, transform=Affine(meters, 0, origin[0], 0, -meters, origin[1]), **profile,
    ) as file:  # fmt: skip
        file.write(data)
        if names:
            file.descriptions = names
    return str(path)


def bands(path: Path, seed: int, names: list[str] = [*CHANNELS[:9]], side: int = SIDE) -> str:  # noqa: B006
    values = np.random.default_rng(seed).integers(200, 4000, (len(names), side, side))
    return tif(path, values.astype(np.uint16), names, nodata=0)


def channel_set(folder: Path, text: str, dates: tuple[str, ...] = ()) -> ChannelSet:
    file = folder / "channels.yaml"
    file.write_text("format_version: 1\n" + text)
    return load_channels(str(file), dates)


def read(
    given: list[str], channels: ChannelSet, coverage: Coverage | None = None, **options: object
) -> dict[str, np.ndarray]:
    with open_stack(given, [], InputConfig(**options), channels=channels) as stack:
        image = stack.read(WHOLE, coverage)
    return {name: image[..., i] for i, name in enumerate(stack.channels)}


# Formulas


@pytest.mark.parametrize("name", INDICES)
def test_the_indices_of_the_original_have_the_same_bits_as_formulas(name: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 5000, (64, 64, 9)).astype(np.float32)
    b = dict(zip(CHANNELS[:9], np.moveaxis(values, -1, 0), strict=True))

    def normalised(first: str, second: str) -> np.ndarray:
        total = b[first] + b[second]
        total[total == 0] = np.nan
        return (b[first] - b[second]) / total

    pairs = {"NDVI": ("B08", "B04"), "NDTI": ("B11", "B12"), "NDMI": ("B08", "B11"), "NDSI": ("B03", "B11")}
    index = (
        normalised(*pairs[name]) if name in pairs else -(normalised("B08", "B11") + normalised("B08", "B04"))
    )
    expected = np.clip(index * 100 + 100, 0, 200)
    assert np.array_equal(compute_indices(values, [name])[..., 0], expected, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b * c", 7), ("(a + b) * c", 9), ("a - b - c", -4), ("12 / b / c", 2), ("-a * b", -2),
        ("--a", 1),
        ("2e1 * a", 20), (".5 * b", 1), ("min(a, b) + max(b, c)", 4), ("sqrt(b * b)", 2), ("abs(a - c)", 2),
        ("is(b, 2)", 1), ("is(b, 3)", 0), ("log10(100 * a)", 2),
    ],
)  # fmt: skip
def test_a_formula_is_computed_as_it_is_written(text: str, expected: float) -> None:
    planes = {name: np.full((2, 2), value, np.float32) for name, value in {"a": 1, "b": 2, "c": 3}.items()}
    formula = parse(text)
    found = formula.evaluate(planes)
    assert np.allclose(found, expected)
    assert np.allclose(parse(formula.renamed({})).evaluate(planes), expected)
    assert all((plane == plane[0, 0]).all() for plane in planes.values())


def test_division_by_zero_is_missing_and_changes_no_band() -> None:
    a, b = np.float32([[1, 2]]), np.float32([[0, 4]])
    found = parse("a / b").evaluate({"a": a, "b": b})
    assert np.isnan(found[0, 0]) and found[0, 1] == 0.5 and b[0, 0] == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "1 + 2", "B04 +", "(B04", "B04)", "B04 B08", "__import__('os')", "B04.__class__", "B04 ** 2",
        "lambda: 1", "f(B04)", "sqrt(B04, B08)", "min(B04)", "B04 if B08 else 1", "B04[0]", "B04; B08",
        "slope(B04 + 1)", "(" * 100 + "B04" + ")" * 100, "B04" + " + B04" * 200, "B04 == B08", "'B04'",
    ],
)  # fmt: skip
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="formula"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "B04 + VV", "B04 + 1", "elevation - B04", "min(B04, VV)", "log(B04)", "fraction(VV)", "NDVI + NDWI",
        "VV / VH", "(VV - VH) / (VV + VH)", "NDVI / NDMI",
    ],
)  # fmt: skip
def test_units_that_don_t_fit_together_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unit|two values in"):
        channel_set(tmp_path, f'channels: [{{name: x, formula: "{text}"}}]\n')


def test_a_formula_of_its_own_and_one_that_is_known_are_computed_alike(tmp_path: Path) -> None:
    text = 'channels: [NDWI, EVI, {name: own, formula: "(B03 - B08) / (B03 + B08)"}]\n'
    found = read([bands(tmp_path / "a.tif", 1)], channel_set(tmp_path, text))
    with rasterio.open(tmp_path / "a.tif") as file:
        b02, b03, b04, b08 = (file.read(n).astype(np.float64) / 1e4 for n in (1, 2, 3, 7))
    np.testing.assert_allclose(found["own"], (b03 - b08) / (b03 + b08), atol=1e-6)
    assert np.array_equal(found["own"], found["NDWI"])
    np.testing.assert_allclose(
        found["EVI"], 2.5 * (b08 - b04) / (b08 + 6 * b04 - 7.5 * b02 + 1), rtol=1e-3, atol=1e-3
    )


def test_common_indices_are_defined_as_in_spyndex() -> None:
    values = {"B": 0.05, "G": 0.08, "R": 0.06, "RE1": 0.12, "N": 0.35, "S1": 0.2, "S2": 0.1, "L": 0.5,
              "g": 2.5, "C1": 6.0, "C2": 7.5}  # fmt: skip
    planes = {"B02": 0.05, "B03": 0.08, "B04": 0.06, "B05": 0.12, "B08": 0.35, "B11": 0.2, "B12": 0.1}
    stored = {name: np.float32([1e4 * value]) for name, value in planes.items()}
    named = {one.name for one in LIBRARY.values() if one.kind == "index"} - {*INDICES}
    assert named == {"NDWI", "MNDWI", "NBR", "NDREI", "GNDVI", "BI", "SAVI", "EVI", "EVI2"}
    for name in named:
        formula = set_of([name]).plan().computed[0][1]
        expected = spyndex.computeIndex(name, values | {"L": 0.5 if name == "SAVI" else 1.0})
        assert formula.evaluate(stored)[0] == pytest.approx(expected, rel=1e-4), name


# Documents


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channels: [{name: a, formula: b}]\ninputs: [{name: b, formula: a}]\n", "computed from itself"),
        ("channels: [{name: a, formula: \"b\"}]\n", "nothing defines b"),
        ("channels: [{name: a, kind: radar}]\n", "radar"),
        ("channels: [{name: a, colour: red}]\n", "colour"),
        ("channels: [{name: \"a b\", kind: any}]\n", "a b"),
        ("channels: [{kind: any}]\n", "name"),
        ("channels: [B04]\ndates: [B08]\n", "both a date and a channel"),
        ("channels: [elevation]\ndates: [spring]\n", "changes with the date"),
        ("channels: [B04]\nrgb: [B04]\n", "rgb"),
        ("channels: [B04]\nrgb: [B04, B03, B02]\n", "rgb"),
        ("channels: [{name: a, formula: \"slope(B04)\"}]\n", "need a layer of elevation"),
        ("channels: [{name: A9..A2, kind: any}]\n", "smaller number first"),
        ("channels: [{name: a, scale: fast}]\n", "scale"),
        ("channels: [{name: a, scale: 0}]\n", "its scale is 0"),
        ("channels: [{name: a, minimum: 5, maximum: 1}]\n", "minimum not below its maximum"),
    ],
)  # fmt: skip
def test_a_definition_that_can_t_be_used_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        channel_set(tmp_path, text)
    assert said in str(error.value)


@pytest.mark.parametrize("name", sorted(CHANNEL_SETS))
def test_a_set_survives_its_document(name: str) -> None:
    channels = CHANNEL_SETS[name]
    assert ChannelSet.from_json(json.loads(json.dumps(channels.to_json()))) == channels


def test_a_file_that_is_referred_to_again_and_again_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(InputError, match="values"):
        channel_set(tmp_path, "\n".join(lines))


def test_a_prefix_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("year=2020").mkdir()
    Path("year=2020/a.tif").touch()
    assert split_prefix("year=2020/a.tif") == ("", "year=2020/a.tif")
    assert split_prefix("https://a.b/c?d=e") == ("", "https://a.b/c?d=e")


# Several dates


def test_each_date_has_the_channels_of_the_set(tmp_path: Path) -> None:
    files = {date: bands(tmp_path / f"{date}.tif", i) for i, date in enumerate(("spring", "summer"))}
    given = [f"{date}={path}" for date, path in files.items()]
    found = read(given, CHANNEL_SETS["kaakonkulma-14"].of_dates(tuple(files)))
    assert list(found) == [f"{date}/{name}" for date in files for name in CHANNELS]
    for date, path in files.items():
        alone = read([path], CHANNEL_SETS["kaakonkulma-14"])
        assert all(np.array_equal(found[f"{date}/{name}"], alone[name]) for name in CHANNELS)


def test_fills_and_clouds_belong_to_their_date(tmp_path: Path) -> None:
    files = [bands(tmp_path / f"{name}.tif", i) for i, name in enumerate("abc")]
    for path, hole in zip(files, (slice(0, 8), slice(20, 24), slice(0, 0)), strict=True):
        with rasterio.open(path, "r+") as file:
            data = file.read()
            data[:, hole] = 0
            file.write(data)
    channels = channel_set(tmp_path, "channels: [B04]\ndates: [spring, summer]\n")
    given = [f"spring={files[0]}", f"summer={files[1]}"]
    coverage = Coverage()
    found = read(given, channels, coverage, fill=(f"spring={files[2]}",))
    with rasterio.open(files[2]) as file:
        assert np.array_equal(found["spring/B04"][:8], file.read(3)[:8])
    assert np.isnan(found["spring/B04"][20:24]).all() and not np.isnan(found["summer/B04"][:20]).any()
    assert coverage.patched == {"spring/B04": 8 * SIDE, "summer/B04": 0}
    classes = np.full((1, SIDE, SIDE), 4, np.uint8)
    classes[:, 40:] = 9
    scl = tif(tmp_path / "spring_SCL.tif", classes)
    clouds = tif(tmp_path / "cloud_mask.tif", (classes == 9).astype(np.uint8))
    for mask in (scl, clouds):
        found = read([*given, f"spring={mask}"], channels, fill=(f"spring={files[2]}",))
        with rasterio.open(files[2]) as file, rasterio.open(files[0]) as first:
            assert np.array_equal(found["spring/B04"][40:], file.read(3)[40:])
            assert np.array_equal(found["spring/B04"][30:40], first.read(3)[30:40])


def test_a_pixel_may_lack_a_date_only_where_the_set_says_so(tmp_path: Path) -> None:
    files = [bands(tmp_path / f"{name}.tif", i) for i, name in enumerate("ab")]
    with rasterio.open(files[0], "r+") as file:
        data = file.read()
        data[:, :8] = 0
        file.write(data)
    given = [f"spring={files[0]}", f"summer={files[1]}"]
    text = (
        "channels: [{{name: B04, kind: reflectance{0}}}, {{name: B08, kind: reflectance{0}}}, "
        "{{name: NDVI{0}}}]\ndates: [spring, summer]\n"
    )
    strict = read(given, channel_set(tmp_path, text.format("")))
    assert all(np.isnan(plane[:8]).all() for plane in strict.values())
    lenient = read(given, channel_set(tmp_path, text.format(", may_be_missing: true")))
    for name, plane in lenient.items():
        assert np.isnan(plane[:8]).all() == name.startswith("spring"), name
        assert not np.isnan(plane[8:]).any()
    absent = read(given[1:], channel_set(tmp_path, text.format(", may_be_missing: true")))
    assert np.isnan(absent["spring/NDVI"]).all() and np.array_equal(
        absent["summer/B04"], lenient["summer/B04"]
    )


@pytest.mark.parametrize("optional", ["", ", may_be_missing: true"])
def test_what_is_computed_from_missing_bands_is_missing_beside_an_optional_channel(
    optional: str, tmp_path: Path
) -> None:
    with rasterio.open(given := bands(tmp_path / "bands.tif", 1), "r+") as file:
        red, near = file.read(3), file.read(7)
        red[:10] = 0
        file.write(red, 3)
    radar = tif(tmp_path / "radar.tif", np.full((1, SIDE, SIDE), -12, np.float32), ["VV"])
    channels = channel_set(
        tmp_path, f"channels: [NDVI, {{name: VV{optional}}}]\ninputs: [{{name: B04}}, {{name: B08}}]\n"
    )
    found = read([given], channels, layers=(radar,))
    assert all(np.isnan(plane[:10]).all() and not np.isnan(plane[10:]).any() for plane in found.values())
    red, near = red[10:].astype(np.float64), near[10:].astype(np.float64)
    np.testing.assert_allclose(found["NDVI"][10:], 100 * (near - red) / (near + red) + 100, rtol=1e-5)


def test_what_is_computed_from_absent_bands_is_missing(tmp_path: Path) -> None:
    radar = tif(tmp_path / "radar.tif", np.full((1, SIDE, SIDE), -12, np.float32), ["VV"])
    optional = "kind: reflectance, may_be_missing: true"
    channels = channel_set(
        tmp_path,
        "channels: [NDVI, {name: VV, may_be_missing: true}]\n"
        f"inputs: [{{name: B04, {optional}}}, {{name: B08, {optional}}}]\n",
    )
    found = read([], channels, layers=(radar,))
    assert all(np.isnan(plane).all() for plane in found.values())


@pytest.mark.parametrize("date", ["", "spring"])
@pytest.mark.parametrize("optional", ["", ", may_be_missing: true"])
def test_index_rasters_may_be_all_that_a_date_has(date: str, optional: str, tmp_path: Path) -> None:
    code = np.random.default_rng(1).integers(0, 201, (1, SIDE, SIDE)).astype(np.uint8)
    code[0, :4] = 255
    before, dates = (f"{date}=", "dates: [spring, summer]") if date else ("", "")
    channels = channel_set(tmp_path, f"channels: [{{name: NDVI{optional}}}]\n{dates}\n")
    indices = [before + tif(tmp_path / "ndvi.tif", code, ["NDVI"], nodata=255)]
    given = [f"summer={bands(tmp_path / 'summer.tif', 2)}"] if date else []
    with open_stack(given, indices, InputConfig(), channels=channels) as stack:
        found = stack.read(WHOLE)[..., 0]
    assert np.isnan(found[:4]).all() and np.array_equal(found[4:], code[0, 4:])
    if date:
        clouds = np.zeros((1, SIDE, SIDE), np.uint8)
        clouds[0, 10:20] = 1
        given.append(before + tif(tmp_path / "spring_cloudmask.tif", clouds))
        with open_stack(given, indices, InputConfig(), channels=channels) as stack:
            masked = stack.read(WHOLE)[..., 0]
        assert np.isnan(masked[10:20]).all() and np.array_equal(masked[20:], found[20:])


def test_a_fill_without_bands_to_patch_is_refused(tmp_path: Path) -> None:
    channels = channel_set(
        tmp_path,
        "channels: [{name: B04, kind: reflectance, may_be_missing: true}]\ndates: [spring, summer]\n",
    )
    given = [f"{date}={bands(tmp_path / f'{date}.tif', 1)}" for date in ("spring", "summer")]
    with pytest.raises(InputError, match="no raster with bands is given for the date spring") as error:
        read(given[1:], channels, fill=(given[0],))
    assert error.value.hint.endswith(f"--bands {given[0]}")


def test_a_formula_may_compare_dates(tmp_path: Path) -> None:
    text = (
        'channels: [B04, {name: change, formula: "(summer/B08 - spring/B08) / (summer/B08 + spring/B08)"}]\n'
    )
    channels = channel_set(tmp_path, text + "dates: [spring, summer]\n")
    files = [bands(tmp_path / f"{name}.tif", i) for i, name in enumerate("ab")]
    found = read([f"spring={files[0]}", f"summer={files[1]}"], channels)
    assert list(found) == ["spring/B04", "summer/B04", "change"]
    first, second = (rasterio.open(path).read(7).astype(np.float64) for path in files)
    np.testing.assert_allclose(found["change"], (second - first) / (second + first), atol=1e-6)


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        (["spring"], "B04 is missing"),
        (["", ""], "has no date"),
        (["spring", "winter"], "winter"),
        (["spring", ""], "has no date"),
    ],
)
def test_dates_that_the_set_does_not_have_are_refused(dates: list[str], said: str, tmp_path: Path) -> None:
    channels = channel_set(tmp_path, "channels: [B04]\ndates: [spring, summer]\n")
    files = [bands(tmp_path / f"{i}.tif", i) for i in range(len(dates))]
    with pytest.raises(InputError) as error:
        read([f"{date}={path}" if date else path for date, path in zip(dates, files, strict=True)], channels)
    assert said in str(error.value)


def test_a_folder_holds_the_bands_of_a_date(tmp_path: Path) -> None:
    folder = tmp_path / "july"
    folder.mkdir()
    for i, name in enumerate(("B04", "B08")):
        tif(folder / f"T35VLG_20200701_{name}.tif", np.full((1, SIDE, SIDE), 500 + i, np.uint16), nodata=0)
    found = read([f"summer={folder}"], set_of(["B04", "B08"]).of_dates(["summer"]))
    assert (found["summer/B08"] == 501).all()


# Radar


def radar(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-22, -4, (2, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("stored", ["dB", "power", "counted"])
def test_backscatter_is_the_same_from_dB_and_from_power(stored: str, tmp_path: Path) -> None:
    decibel = radar(np.random.default_rng(2))
    data = {
        "dB": decibel,
        "power": 10 ** (decibel / 10),
        "counted": np.round(decibel * 100).astype(np.int16),
    }[stored]
    data[0, :4] = 0
    path = tif(tmp_path / "s1.tif", data, ["Sigma0_VV", "Sigma0_VH"])
    text = "sentinel1" if stored != "counted" else ""
    channels = (
        CHANNEL_SETS[text]
        if text
        else channel_set(
            tmp_path, "channels: [{name: VV, stored: dB, scale: 0.01}, {name: VH, stored: dB, scale: 0.01}]\n"
        )
    )
    found = read([], channels, layers=(path,))
    assert np.isnan(found["VV"][:4]).all() and np.isnan(found["VH"][:4]).all()
    np.testing.assert_allclose(found["VV"][4:], decibel[0, 4:], atol=0.006)
    np.testing.assert_allclose(found["VH"][4:], decibel[1, 4:], atol=0.006)


@pytest.mark.parametrize("empty", [0, -9999, "mask"])
def test_power_in_a_small_part_of_a_raster_is_told_from_dB(empty: float | str, tmp_path: Path) -> None:
    side, there = 1400, (slice(None), slice(200, 240), slice(600, 640))
    decibel = radar(np.random.default_rng(2))[:, :40, :40]
    # Under a mask lies what would pass for dB.
    data = np.full((2, side, side), -20 if empty == "mask" else empty, np.float32)
    data[there] = 10 ** (decibel / 10)
    data[0, 100, 100] = 0.5
    profile = {"nodata": empty} if empty == -9999 else {}
    path = tif(tmp_path / "s1.tif", data, ["VV", "VH"], tiled=True, **profile)
    if empty == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask(data[1] != -20)
    with open_stack([], [], InputConfig(layers=(path,)), channels=set_of(["VV", "VH"])) as stack:
        found = stack.read(Window(200, 600, 40, 40))
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), decibel, rtol=1e-4)


def test_uncalibrated_radar_is_refused(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(50, 400, (2, SIDE, SIDE)).astype(np.uint16)
    with pytest.raises(InputError, match="backscatter") as error:
        read([], CHANNEL_SETS["sentinel1"], layers=(tif(tmp_path / "grd.tif", data, ["VV", "VH"]),))
    assert "Calibrate" in str(error.value)


def test_layers_without_names_are_named_by_the_option(tmp_path: Path) -> None:
    decibel = radar(np.random.default_rng(2))
    path = tif(tmp_path / "s1.tif", decibel)
    with pytest.raises(InputError, match="VV, VH are missing") as error:
        read([], CHANNEL_SETS["sentinel1"], layers=(path,))
    assert "--layers VV,VH=RASTER" in str(error.value)
    found = read([], CHANNEL_SETS["sentinel1"], layers=(f"VH,VV={path}",))
    assert np.array_equal(found["VH"], decibel[0])
    with pytest.raises(InputError, match="has 2 in a known order, expected 1"):
        read([], CHANNEL_SETS["sentinel1"], layers=(f"VV={path}",))
    with pytest.raises(InputError, match="in two layers"):
        read(
            [],
            CHANNEL_SETS["sentinel1"],
            layers=(f"VH,VV={path}", tif(tmp_path / "VV.tif", decibel[:1], ["VV"])),
        )


# Terrain


def test_slope_and_aspect_of_a_plane_are_those_of_geometry(tmp_path: Path) -> None:
    rows, cols = np.indices((SIDE, SIDE))
    z = (100 + 3 * cols - 4 * rows).astype(np.float32)[None]
    path = tif(tmp_path / "dem.tif", z)
    found = read(
        [], channel_set(tmp_path, "channels: [elevation, slope, aspect_sin, aspect_cos]\n"), layers=(path,)
    )
    np.testing.assert_allclose(found["slope"], math.degrees(math.atan(0.5)), rtol=1e-5)
    # It rises to the east and to the north, so it falls to the south-west.
    np.testing.assert_allclose(found["aspect_sin"], -0.6, rtol=1e-5)
    np.testing.assert_allclose(found["aspect_cos"], -0.8, rtol=1e-5)
    assert np.array_equal(found["elevation"], z[0])


def test_slope_is_that_of_a_loop_over_pixels_whatever_the_window(tmp_path: Path) -> None:
    z = np.random.default_rng(4).uniform(50, 90, (SIDE, SIDE)).astype(np.float32)
    z[20, 20] = -9999
    path = tif(tmp_path / "dem.tif", z[None], nodata=-9999)
    channels = channel_set(tmp_path, "channels: [slope]\n")
    with open_stack([], [], InputConfig(layers=(path,)), channels=channels) as stack:
        whole = stack.read(WHOLE)[..., 0]
        parts = [stack.read(Window(r, c, 7, 9))[..., 0] for r in range(0, 42, 7) for c in range(0, 45, 9)]
    for part, (r, c) in zip(parts, [(r, c) for r in range(0, 42, 7) for c in range(0, 45, 9)], strict=True):
        assert np.array_equal(part, whole[r : r + 7, c : c + 9], equal_nan=True)
    assert np.isnan(whole[19:22, 19:22]).all() and np.isnan(whole).sum() == 9
    for r, c in ((5, 6), (30, 40), (22, 22)):
        a = z[r - 1 : r + 2, c - 1 : c + 2].astype(float)
        east = ((a[0, 2] + 2 * a[1, 2] + a[2, 2]) - (a[0, 0] + 2 * a[1, 0] + a[2, 0])) / 80
        north = ((a[0, 0] + 2 * a[0, 1] + a[0, 2]) - (a[2, 0] + 2 * a[2, 1] + a[2, 2])) / 80
        assert whole[r, c] == pytest.approx(math.degrees(math.atan(math.hypot(east, north))), rel=1e-5)


def test_degrees_of_longitude_shrink_towards_the_pole(tmp_path: Path) -> None:
    cols = np.indices((SIDE, SIDE))[1]
    step, latitude = 1 / 3600, 61.0
    east = pyproj.Geod(ellps="WGS84").line_length([25, 25 + step], [latitude, latitude])
    z = (100 + 0.1 * east * cols).astype(np.float32)[None]
    path = tif(tmp_path / "dem.tif", z, meters=step, crs="EPSG:4326", origin=(25, latitude + SIDE * step / 2))
    found = read([], channel_set(tmp_path, "channels: [slope]\n"), layers=(path,))
    np.testing.assert_allclose(found["slope"][24, 24], math.degrees(math.atan(0.1)), rtol=1e-3)


def test_slope_is_that_of_the_ground_where_the_projection_stretches_it(tmp_path: Path) -> None:
    cols = np.indices((SIDE, SIDE))[1]
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(25, 60)
    # Web Mercator doubles lengths at 60 degrees, so that 10 m of the map are 5 m.
    z = (100 + 0.1 * 5.0 * cols).astype(np.float32)[None]
    path = tif(tmp_path / "dem.tif", z, crs="EPSG:3857", origin=(x, y + 5 * SIDE))
    found = read([], channel_set(tmp_path, "channels: [slope]\n"), layers=(path,))
    np.testing.assert_allclose(found["slope"], math.degrees(math.atan(0.1)), rtol=5e-3)


def test_slope_takes_scale_and_range_of_the_elevation_channel(tmp_path: Path) -> None:
    cols = np.indices((SIDE, SIDE))[1]
    decimetres = (1000 + 10 * cols).astype(np.int16)[None]
    decimetres[0, 5, 5] = 9500
    path = tif(tmp_path / "dem.tif", decimetres)
    text = "channels: [{name: elevation, kind: elevation, scale: 0.1, maximum: 900}, slope]\n"
    found = read([], channel_set(tmp_path, text), layers=(path,))
    np.testing.assert_allclose(found["slope"][10:, 10:], math.degrees(math.atan(0.1)), rtol=1e-5)
    assert np.isnan(found["slope"][4:7, 4:7]).all() and np.isnan(found["elevation"][5, 5])


@pytest.mark.parametrize("place", ["layers", "bands"])
def test_no_data_that_a_user_gives_holds_for_channels_of_every_kind(place: str, tmp_path: Path) -> None:
    rows, cols = np.indices((SIDE, SIDE))
    z = (100 + 3 * cols - 4 * rows).astype(np.float32)[None]
    other = np.random.default_rng(3).normal(size=(1, SIDE, SIDE)).astype(np.float32)
    z[0, 20, 20] = other[0, :9] = -9999.9
    text = "channels: [elevation, slope, {name: A00, kind: any}, {name: soil, kind: categorical}]\n"
    soil = np.arange(SIDE * SIDE, dtype=np.int16).reshape(1, SIDE, SIDE) % 5
    soil[0, 30, 30] = -9999
    paths = [tif(tmp_path / f"{name}.tif", data, [name]) for name, data in
             (("elevation", z), ("A00", other), ("soil", soil))]  # fmt: skip
    for nodata, missing in ((-9999.9, [(20, 20), (21, 21), (4, 4)]), (-9999, [(30, 30)])):
        options: dict[str, Any] = {"nodata": nodata}
        options |= {"layers": tuple(paths)} if place == "layers" else {"layers": (paths[0],)}
        found = read(paths[1:] if place == "bands" else [], channel_set(tmp_path, text), **options)
        for row, col in missing:
            assert all(np.isnan(plane[row, col]) for plane in found.values())
        assert all(np.isfinite(plane[40, 40]) for plane in found.values())
    with open_stack([], [], InputConfig(layers=(paths[1],), nodata=-9999.9), channels=channel_set(
        tmp_path, "channels: [{name: A00, kind: any}]\n"
    )) as stack:  # fmt: skip
        assert Statistics.of(stack.read(WHOLE)).mean[0] == pytest.approx(other[0, 9:].mean(), abs=1e-5)


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_aspect_turns_with_the_image(turn: int, mirrored: bool, tmp_path: Path) -> None:
    """Moved derivatives are the derivatives of the moved terrain."""
    z = cv2.GaussianBlur(np.random.default_rng(2).uniform(0, 500, (SIDE, SIDE)).astype(np.float32), (0, 0), 4)
    channels = channel_set(tmp_path, "channels: [slope, aspect_sin, aspect_cos]\n")
    pairs = channels.directions
    assert pairs == ((1, 2),)

    def derivatives(elevation: np.ndarray, name: str) -> np.ndarray:
        (tmp_path / name).mkdir()
        path = tif(tmp_path / name / "dem.tif", np.ascontiguousarray(elevation)[None])
        return np.stack(list(read([], channels, layers=(path,)).values()), -1)

    def move(array: np.ndarray) -> np.ndarray:
        return np.rot90(array[::-1] if mirrored else array, turn)

    expected = derivatives(move(z), "moved")
    moved = move(derivatives(z, "still"))
    found = turn_directions(mirror_directions(moved, pairs, down=mirrored), pairs, 90 * turn)
    np.testing.assert_allclose(found[2:-2, 2:-2], expected[2:-2, 2:-2], atol=2e-4)


def test_flips_rotations_and_their_mean_turn_directions() -> None:
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, (32, 32)).astype(np.float32)
    image = np.stack([np.sin(angle), np.cos(angle)], -1)
    labels = np.zeros((32, 32), np.uint8)
    turned, _ = rotate(image, labels, 90, 32, directions=[(0, 1)])
    # Counter-clockwise: what fell to the north falls to the west.
    np.testing.assert_allclose(turned[..., 0], np.rot90(-image[..., 1]), atol=1e-6)
    np.testing.assert_allclose(turned[..., 1], np.rot90(image[..., 0]), atol=1e-6)
    north = np.stack([np.zeros((48, 48)), np.ones((48, 48))], -1).astype(np.float32)
    slanted, _ = rotate(north, labels_of(48), 30, 32, directions=[(0, 1)])
    np.testing.assert_allclose(slanted[16, 16], [-0.5, math.cos(math.pi / 6)], atol=1e-6)
    for seed in range(8):
        flipped, _ = Flip([(0, 1)])(image, labels, np.random.default_rng(seed))
        down, across = (bool(n) for n in np.random.default_rng(seed).integers(2, size=2))
        expected = image[::-1] * [1, -1] if down else image
        expected = expected[:, ::-1] * [-1, 1] if across else expected
        np.testing.assert_array_equal(flipped, expected.astype(np.float32))

    def downhill(x: np.ndarray) -> np.ndarray:
        """How much the ground falls away from the centre of the window: a property of the ground alone."""
        rows, cols = (np.indices(x.shape[1:3]) - (x.shape[1] - 1) / 2).astype(np.float32)
        return (x[..., 0] * cols - x[..., 1] * rows)[..., None]

    np.testing.assert_allclose(dihedral(downhill, [(0, 1)])(image[None]), downhill(image[None]), atol=1e-4)


def labels_of(side: int) -> np.ndarray:
    return np.zeros((side, side), np.uint8)


def test_codes_are_never_interpolated_by_rotation() -> None:
    codes = np.random.default_rng(1).choice([1, 9], (64, 64)).astype(np.float32)
    image = np.stack([codes, codes], -1)
    turned, _ = rotate(image, labels_of(64), 22.5, 32, nearest=[1])
    assert set(np.unique(turned[..., 1])) == {1, 9} and len(np.unique(turned[..., 0])) > 9


@pytest.mark.parametrize(
    "text",
    [
        "channels: [slope, aspect_sin]",
        'channels: [slope, aspect_sin, aspect_cos, {name: north, formula: "aspect_cos * 2"}]',
        'channels: [slope, {name: north, formula: "aspect_cos(elevation) * 2"}]',
    ],
)
def test_what_tells_a_direction_that_cannot_be_turned_is_known(text: str, tmp_path: Path) -> None:
    assert channel_set(tmp_path, text + "\n").directions is None


def test_dropout_takes_along_what_is_computed_from_a_date(tmp_path: Path) -> None:
    optional = "may_be_missing: true"
    channels = channel_set(
        tmp_path,
        f"channels: [{{name: B08, {optional}}}, {{name: change, {optional}, unit: 'reflectance x 10000', "
        "formula: 'summer/B08 - spring/B08', per_date: false}, elevation]\ndates: [spring, summer]\n",
    )
    drop, rng = Dropout(channels, 0.5), np.random.default_rng(3)
    spring, summer, change = (channels.names.index(n) for n in ("spring/B08", "summer/B08", "change"))
    seen = set()
    for _ in range(50):
        crop, _ = drop(np.ones((2, 2, 4), np.float32), labels_of(2), rng)
        gone = np.isnan(crop[0, 0])
        assert gone[change] == (gone[spring] or gone[summer])
        seen.add((bool(gone[spring]), bool(gone[summer])))
    assert len(seen) == 4


def test_a_layer_on_its_own_grid_is_resampled_by_the_rule_of_its_channel(tmp_path: Path) -> None:
    rows, cols = np.indices((SIDE // 3 + 4, SIDE // 3 + 4))
    coarse = (100.0 + 3 * cols).astype(np.float32)[None]
    dem = tif(tmp_path / "dem.tif", coarse, meters=30, origin=(5e5 - 60, 6.8e6 + 60))
    codes = ((rows + cols) % 2 * 200 + 10).astype(np.uint8)[None]
    cover = tif(tmp_path / "landcover.tif", codes, meters=30, origin=(5e5 - 60, 6.8e6 + 60))
    text = (
        "channels: [B04, elevation, slope, {name: landcover, kind: categorical}, {name: water, "
        'formula: "is(landcover, 210)"}]\n'
    )
    found = read([bands(tmp_path / "a.tif", 1)], channel_set(tmp_path, text), layers=(dem, cover))
    expected = 100 + (np.arange(SIDE) * 10 + 5 + 60) / 10 - 1.5
    np.testing.assert_allclose(found["elevation"], np.broadcast_to(expected, (SIDE, SIDE)), atol=0.01)
    np.testing.assert_allclose(found["slope"], math.degrees(math.atan(0.1)), rtol=1e-4)
    assert set(np.unique(found["landcover"])) == {10, 210}
    i = (np.arange(SIDE) * 10 + 5 + 60) // 30
    assert np.array_equal(found["landcover"], ((i[:, None] + i) % 2 * 200 + 10))
    assert np.array_equal(found["water"], found["landcover"] == 210)


def test_another_projection_needs_no_option_for_layers(tmp_path: Path) -> None:
    z = np.full((1, 60, 60), 120, np.float32)
    path = tif(tmp_path / "dem.tif", z, meters=0.001, crs="EPSG:4326", origin=(26.97, 61.36))
    found = read(
        [bands(tmp_path / "a.tif", 1)], channel_set(tmp_path, "channels: [B04, elevation]\n"), layers=(path,)
    )
    assert (found["elevation"] == 120).all()


# Other sensors and embeddings


def test_landsat_is_converted_by_its_own_scale_and_offset(tmp_path: Path) -> None:
    paths = []
    for number in range(1, 8):
        data = np.full((1, SIDE, SIDE), 8000 + 500 * number, np.uint16)
        data[:, :2] = 0
        data[0, 2:4] = 7300 + number * 100
        paths.append(
            tif(tmp_path / f"LC08_L2SP_188017_20200701_20200913_02_T1_SR_B{number}.TIF", data, nodata=0)
        )
    found = read(paths, CHANNEL_SETS["landsat-8-9"])
    assert list(found) == [f"SR_B{n}" for n in range(1, 8)]
    for number in range(1, 8):
        expected = 1e4 * ((8000 + 500 * number) * 0.0000275 - 0.2)
        np.testing.assert_allclose(found[f"SR_B{number}"][10:], expected, rtol=1e-5)
        assert np.isnan(found[f"SR_B{number}"][:2]).all()


@pytest.mark.parametrize("sensor", ["S30", "L30"])
def test_hls_has_the_same_channels_of_both_sensors(sensor: str, tmp_path: Path) -> None:
    names = {
        "S30": ["B02", "B03", "B04", "B8A", "B11", "B12"],
        "L30": ["B02", "B03", "B04", "B05", "B06", "B07"],
    }
    files = [*names[sensor], *(["B05"] if sensor == "S30" else [])]
    paths = [
        tif(tmp_path / f"HLS.{sensor}.T35VLG.2020183T094549.v2.0.{name}.tif",
            np.full((1, SIDE, SIDE), 300 + 200 * i, np.int16), nodata=-9999)
        for i, name in enumerate(files)
    ]  # fmt: skip
    found = read(paths, CHANNEL_SETS["hls"])
    assert [float(plane[0, 0]) for plane in found.values()] == [300 + 200 * i for i in range(6)]
    if sensor == "S30":
        with pytest.raises(InputError, match="HLS_NIR is missing"):
            read([*paths[:3], *paths[4:]], CHANNEL_SETS["hls"])


def test_embeddings_are_channels_like_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    data = rng.integers(-127, 128, (64, SIDE // 2, SIDE // 2)).astype(np.int8)
    data[:, :3] = -128
    path = tif(tmp_path / "embedding.tif", data, [f"A{n:02d}" for n in range(64)], meters=20, nodata=-128)
    channels = channel_set(
        tmp_path, "channels: [B04, {name: A00..A63, kind: any, scale: 0.0078125, resampling: nearest}]\n"
    )
    found = read([bands(tmp_path / "a.tif", 1)], channels, layers=(path,))
    assert len(found) == 65
    assert np.isnan(found["A00"][:6]).all()
    assert np.array_equal(
        found["A63"][6:], np.repeat(np.repeat(data[63] * np.float32(1 / 128), 2, 0), 2, 1)[6:]
    )
    unnamed = tif(tmp_path / "plain.tif", data, meters=20, nodata=-128)
    again = read([bands(tmp_path / "a.tif", 1)], channels, layers=(f"A00..A63={unnamed}",))
    assert np.array_equal(again["A63"], found["A63"], equal_nan=True)


# Documents along the way


def test_manifest_key_and_parameters_hold_the_set(tmp_path: Path) -> None:
    side = 96
    given = {"a": bands(tmp_path / "a.tif", 1, side=side), "b": bands(tmp_path / "b.tif", 2, side=side)}
    dem = tif(tmp_path / "dem.tif", np.full((1, side, side), 100, np.float32))
    text = "format_version: 1\nchannels: [B04, B08, NDVI, {name: elevation, may_be_missing: true}, slope]\n"
    file = tmp_path / "own.yaml"
    file.write_text(text)
    dated = {k: f"{k}={v}" for k, v in given.items()}
    options = config(dated, tmp_path, str(file), layers=(dem,))
    manifest = make_stacks(options)
    assert [c["name"] for c in manifest.channels] == [
        "a/B04", "a/B08", "a/NDVI", "b/B04", "b/B08", "b/NDVI", "elevation", "slope",
    ]  # fmt: skip
    assert [c["unit"] for c in manifest.channels][-2:] == ["m", "degrees"]
    assert read_manifest(manifest.folder).channel_set == load_channels(str(file), ("a", "b"))
    assert manifest.parameters["bands"] == ["a=a.tif", "b=b.tif"]
    assert manifest.parameters["channels"]["dates"] == ["a", "b"]
    assert {source["name"] for source in manifest.sources} == {"a.tif", "b.tif", "dem.tif", "labels.tif"}
    file.write_text(text.replace("slope", "{name: slope, may_be_missing: true}"))
    with pytest.raises(InputError, match="other inputs or parameters"):
        make_stacks(options)


def test_a_set_prints_what_reads_as_the_set_for_every_definition(tmp_path: Path) -> None:
    channels = channel_set(
        tmp_path, 'channels: [{name: x, formula: "B04 / B08"}, VV, {name: A0..A2, scale: 0.5}]\n'
    )
    (tmp_path / "again.yaml").write_text(channels_text(channels))
    assert load_channels(str(tmp_path / "again.yaml")) == channels


def test_a_network_of_two_dates_and_terrain_makes_a_map_where_a_date_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = 96
    classes = (np.indices((side, side)).sum(0) // 16 % 2 + 1).astype(np.uint16)
    rng = np.random.default_rng(1)
    files = {}
    for date, factor in (("spring", 300), ("summer", 900)):
        data = factor * classes + rng.integers(200, 400, (2, side, side)).astype(np.uint16)
        if date == "spring":
            data[:, :, 80:] = 0
        files[date] = tif(tmp_path / f"{date}.tif", data, ["B04", "B08"], nodata=0)
    dem = tif(tmp_path / "dem.tif", rng.uniform(90, 110, (1, side, side)).astype(np.float32))
    file = tmp_path / "own.yaml"
    optional = "kind: reflectance, may_be_missing: true"
    file.write_text(
        f"format_version: 1\nchannels: [{{name: B04, {optional}}}, {{name: B08, {optional}}}, slope]\n"
    )
    labels = tif(tmp_path / "labels.tif", classes[None].astype(np.uint8))
    stacks, run = str(tmp_path / "stacks"), str(tmp_path / "run")
    given = [f"{date}={path}" for date, path in files.items()]
    words = [
        "--bands",
        given[0],
        "--bands",
        given[1],
        "--layers",
        dem,
        "--channels",
        str(file),
        "--labels",
        labels,
    ]
    assert (
        preprocess.main(
            [*words, "--scheme", "kaakonkulma-13", "--size", "48", "--gap", "0", "--out", stacks, "-q"]
        )
        == 0
    )
    small = (
        "--epochs 1 --steps 4 --validation-steps 1 --batch-size 2 --crop-sizes 32 --filters 4 --gain 0.1 -q"
    )
    options = [*small.split(), "--validation-crop-sizes", "32", "--date-dropout", "0.5"]
    assert train_model.main([stacks, "--out", run, *options]) == 0
    said = capsys.readouterr().out
    assert f"make_classifications.py {run} spring=BANDS summer=BANDS map.tif --layers RASTERS" in said
    card = next(Path(run).glob("*.json"))
    found = {one["name"] for one in json.loads(card.read_text()).get("channels", [])}
    assert not found or found == {"spring/B04", "spring/B08", "summer/B04", "summer/B08", "slope"}
    out = tmp_path / "map.tif"
    assert make_classifications.main([run, *given, str(out), "--layers", dem, "-q"]) == 0
    with rasterio.open(out) as data:
        assert (data.read(1) > 0).all()
        channels = ChannelSet.from_json(json.loads(data.tags()["LULC_CHANNEL_SET"]))
        assert channels.names == ("spring/B04", "spring/B08", "summer/B04", "summer/B08", "slope")
        assert json.loads(data.tags()["LULC_PARAMETERS"])["inputs"] == [
            "spring=spring.tif",
            "summer=summer.tif",
        ]
    again = tmp_path / "again.tif"
    assert make_classifications.main([run, given[1], str(again), "--layers", dem, "-q"]) == 0
    with rasterio.open(again) as data:
        assert (data.read(1) > 0).all()
    capsys.readouterr()
    assert make_classifications.main([run, *given, str(tmp_path / "none.tif"), "-q"]) == 1
    said = capsys.readouterr().err
    assert "elevation is missing" in said
    assert "--layers" in said and "spring/B04, spring/B08, summer/B04, summer/B08, slope" in said
    assert reproduce_map.main([str(out), "--inputs", str(tmp_path), "-q"]) == 0


def test_a_place_without_an_optional_channel_trains_beside_one_that_has_it(tmp_path: Path) -> None:
    side = 96
    classes = (np.indices((side, side)).sum(0) // 16 % 2 + 1).astype(np.uint8)
    file = tmp_path / "own.yaml"
    file.write_text("format_version: 1\nchannels: [B04, B08, {name: VV, may_be_missing: true}]\n")
    folders = []
    for number, place in enumerate(("with", "without")):
        origin = {"origin": (5e5 + 2e4 * number, 6.8e6)}
        rng = np.random.default_rng(number)
        image = rng.integers(300, 900, (2, side, side)).astype(np.uint16)
        words = ["--bands", tif(tmp_path / f"{place}.tif", image, ["B04", "B08"], nodata=0, **origin)]
        if place == "with":
            backscatter = rng.normal(-12, 2, (1, side, side)).astype(np.float32)
            words += ["--layers", tif(tmp_path / "vv.tif", backscatter, ["VV"], **origin)]
        words += ["--labels", tif(tmp_path / f"{place}_labels.tif", classes[None], **origin)]
        words += ["--channels", str(file), "--scheme", "kaakonkulma-13", "--size", "48", "--gap", "0", "-q"]
        folders.append(str(tmp_path / f"{place}_stacks"))
        assert preprocess.main([*words, "--out", folders[-1]]) == 0
    full, lacking = (read_manifest(Path(folder)).statistics for folder in folders)
    assert lacking.count and lacking.lacking == (0, 0, lacking.count)
    assert 500 < lacking.mean[0] < 700 and (lacking.mean[2], lacking.std[2]) == (0, 1)
    for given in (folders, folders[::-1]):
        both = open_dataset(TrainConfig(data=tuple(given), out=str(tmp_path / "run"))).statistics
        assert both.count == full.count + lacking.count
        np.testing.assert_allclose((both.mean[2], both.std[2]), (full.mean[2], full.std[2]), rtol=1e-12)
        share = lacking.count / both.count
        mean = (1 - share) * full.mean[0] + share * lacking.mean[0]
        np.testing.assert_allclose(both.mean[0], mean, rtol=1e-12)


def test_reading_rules_of_the_stacks_hold_for_another_place(tmp_path: Path) -> None:
    side = 96
    path = tif(
        tmp_path / "a.tif", np.random.default_rng(1).integers(1, 4, (9, side, side)).astype(np.uint16) * 1000
    )
    given = config(
        {"a": path},
        tmp_path,
        "kaakonkulma-14",
        band_names=CHANNELS[:9],
        offset=-200.0,
        bounds=(5e5, 6.7e6, 5.1e5, 6.9e6),
    )
    make_stacks(given)
    rules = read_settings(tmp_path / "stacks" / "reading.yaml", ClassifyConfig)
    assert rules == {"band_names": CHANNELS[:9], "offset": -200.0}


def test_pretraining_takes_the_channels_of_its_options(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("format_version: 1\nchannels: [B04, B08, NDWI]\n")
    options = tmp_path / "options.yaml"
    options.write_text(f"channels: {file}\n")
    given = [f"{date}={bands(tmp_path / f'{date}.tif', i, side=96)}" for i, date in enumerate("ab")]
    dataset = open_mosaic(
        TrainConfig(out="x", pretrain=tuple(given), input_options=str(options), crop_sizes=(32,))
    )
    assert [c["name"] for c in dataset.channels] == ["a/B04", "a/B08", "a/NDWI", "b/B04", "b/B08", "b/NDWI"]
    assert dataset.channel_set == load_channels(str(file), ("a", "b"))


def test_an_open_stack_takes_a_set_by_name_or_file(tmp_path: Path) -> None:
    path = bands(tmp_path / "a.tif", 1)
    (tmp_path / "own.yaml").write_text("format_version: 1\nchannels: [NDWI]\n")
    with lulc.open_stack(path, channels=tmp_path / "own.yaml") as stack:
        assert stack.channels == ("NDWI",)
    with lulc.open_stack([f"x={path}", f"y={path}"], channels=set_of(["B04"])) as stack:
        assert stack.channels == ("x/B04", "y/B04")
    with lulc.open_stack(path) as stack:
        assert stack.channels == CHANNELS


def test_jitter_moves_formulas_with_their_bands_and_dropout_drops_whole_dates(tmp_path: Path) -> None:
    text = (
        "channels: [{name: B04, may_be_missing: true}, {name: B08, may_be_missing: true}, "
        '{name: NDVI, may_be_missing: true}, {name: NDWI, formula: "(B04 - B08) / (B04 + B08)"}, VV]\n'
    )
    channels = channel_set(tmp_path, text, ("a", "b"))
    image = np.random.default_rng(1).uniform(500, 900, (8, 8, len(channels.names))).astype(np.float32)
    entries = [
        {"name": c.name, "unit": c.unit, "coding": "computed" if c.formula else "read"}
        for c in channels.channels
    ]
    changed, _ = Jitter(entries, channels, gain=0.3)(
        image, np.zeros((8, 8), np.uint8), np.random.default_rng(2)
    )
    at = {name: changed[..., i] for i, name in enumerate(channels.names)}
    for date in "ab":
        difference = (at[f"{date}/B08"] - at[f"{date}/B04"]) / (at[f"{date}/B08"] + at[f"{date}/B04"])
        np.testing.assert_allclose(at[f"{date}/NDVI"], 100 * difference + 100, rtol=1e-4)
        np.testing.assert_allclose(at[f"{date}/NDWI"], -difference, rtol=1e-3, atol=1e-5)
    assert np.array_equal(at["VV"], image[..., -1])
    seen = set()
    for seed in range(40):
        dropped, _ = Dropout(channels, 0.5)(image, np.zeros((8, 8), np.uint8), np.random.default_rng(seed))
        gone = {name for i, name in enumerate(channels.names) if np.isnan(dropped[..., i]).all()}
        seen.add(frozenset(gone))
    whole = {date: frozenset(f"{date}/{name}" for name in ("B04", "B08", "NDVI")) for date in "ab"}
    assert seen == {frozenset(), whole["a"], whole["b"], whole["a"] | whole["b"]}
    assert not np.isnan(image).any()


def test_a_picture_shows_the_layers_that_the_set_of_the_map_names() -> None:
    tags = {"LULC_CHANNEL_SET": json.dumps(CHANNEL_SETS["landsat-8-9"].to_json())}
    shown = set_in_tags(tags)
    assert shown == CHANNEL_SETS["landsat-8-9"]
    names = [f"SR_B{number}" for number in range(1, 8)]
    assert picture_layers(names, shown) == [3, 2, 1] and picture_layers(names) == [0, 1, 2]
    assert picture_layers([*CHANNELS]) == picture_layers([*CHANNELS], shown) == [2, 1, 0]
    assert set_in_tags({}) is None
    assert set_in_tags({"LULC_CHANNEL_SET": '{"name": "x", "channels": [{"name": "B 4"}]}'}) is None
    assert set_in_tags({"LULC_CHANNEL_SET": "[" * 100_000}) is None
