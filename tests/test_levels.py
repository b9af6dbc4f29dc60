"""CORINE levels: maps, activations and matrices gathered alike."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from lulc.cli.export_map import main
from lulc.core.schema import LandCoverClass, Legend
from lulc.evaluation.measures.metrics import count
from lulc.export import export
from lulc.labels.levels import Level, levels_of
from lulc.labels.schemes import load_scheme

LEGEND = load_scheme("kaakonkulma-13").legend
LEVEL1, LEVEL2 = levels_of(LEGEND)


@pytest.mark.parametrize("name", ["kaakonkulma-13", "clc-fi-13", "clc-level1", "clc-level2", "clc-level3"])
def test_level_2_lies_within_level_1(name: str) -> None:
    levels = {level.number: level for level in levels_of(load_scheme(name).legend)}
    if 2 in levels:
        parents = np.repeat([1, 2, 3, 4, 5], [4, 4, 3, 2, 2])
        assert (parents[levels[2].groups - 1] == levels[1].groups).all()
    assert (2 in levels) == (name != "clc-level1")


def test_level_2_of_the_official_classes_is_that_of_their_codes() -> None:
    scheme = load_scheme("clc-level3", "three-digit")
    second = load_scheme("clc-level2", "three-digit")
    codes = np.array([111, 124, 244, 335, 423, 523])
    (level,) = (k for k in levels_of(scheme.legend) if k.number == 2)
    assert (level.gather_map(scheme.remap(codes)) == second.remap(codes)).all()


def test_a_legend_without_groups_has_no_levels() -> None:
    assert levels_of(Legend("own", (LandCoverClass(1, "Peat", "#112233"),))) == ()


@pytest.mark.parametrize("level", [LEVEL1, LEVEL2], ids=lambda k: k.name)
def test_a_matrix_gathered_is_the_matrix_of_maps_gathered(level) -> None:
    rng = np.random.default_rng(1)
    reference, mapped = rng.integers(1, 14, 500).astype(np.uint8), rng.integers(0, 14, 500).astype(np.uint8)
    expected = count(level.gather_map(reference), level.gather_map(mapped), len(level.legend))
    assert np.array_equal(level.gather_matrix(count(reference, mapped, 13)), expected)


def test_unclassified_and_no_data_stay_what_they_are() -> None:
    assert LEVEL1.gather_map(np.array([[0, 255, 13]], np.uint8)).tolist() == [[0, 255, 5]]


@pytest.mark.parametrize("level", [LEVEL1, LEVEL2], ids=lambda k: k.name)
def test_activations_are_summed_by_group_and_keep_their_total(level) -> None:
    shares = np.random.default_rng(2).dirichlet(np.ones(13), (4, 5)).astype(np.float32)
    summed = level.gather_activations(shares)
    for k in range(len(level.legend)):
        assert np.allclose(summed[..., k], shares[..., level.groups == k + 1].sum(axis=-1), atol=1e-6)
    assert np.allclose(summed.sum(axis=-1), 1, atol=1e-5)


def test_three_forests_outvote_one_field() -> None:
    shares = np.zeros((1, 2, 13), np.float32)
    shares[0, 0, [5, 6, 7]], shares[0, 0, 4] = 0.2, 0.4
    shares[0, 1] = np.nan
    assert LEVEL1.decide(shares).tolist() == [[3, 255]]
    assert LEVEL1.gather_map(np.array([[5]], np.uint8)).tolist() == [[2]]


def test_classes_without_a_group_outvote_groups() -> None:
    level = Level(1, LEVEL1.legend, np.array([0, 2, 3, 0], np.uint8))
    shares = np.array([[[0.3, 0.4, 0.1, 0.2], [0.1, 0.4, 0.3, 0.2]]], np.float32)
    assert level.decide(shares).tolist() == [[0, 2]]


@pytest.mark.parametrize("activations", ["float32", "uint16", "uint8", "none"])
@pytest.mark.parametrize("level", [LEVEL1, LEVEL2], ids=lambda k: k.name)
def test_a_map_of_a_level_holds_groups_and_sums(
    tmp_path: Path,
    write_map: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    activations: str,
    level: Any,
) -> None:
    monkeypatch.setattr(export, "PART", 256)
    source = write_map(
        tmp_path / "map.tif", shape=(300, 530), activations=activations, legend=LEGEND, unclassified=True
    )
    assert main([str(source), "--level", str(level.number), "-q"]) == 0
    with rasterio.open(source) as before, rasterio.open(tmp_path / f"map_level{level.number}.tif") as after:
        assert (after.transform, after.crs, after.dtypes[0]) == (
            before.transform,
            before.crs,
            before.dtypes[0],
        )
        assert json.loads(after.tags()["LULC_LEGEND"]) == level.legend.to_json()
        stored, found = before.read(masked=True), after.read(masked=True)
        assert np.array_equal(stored.mask[0], found.mask[0])
        classes, valid = stored[0].filled(0).astype(np.uint8), ~stored.mask[0]
        assert (classes[valid] == 0).any()
        expected = level.gather_map(classes)
        if activations == "none":
            assert after.count == 1
        else:
            scale = before.scales[1]
            sums = level.gather_activations(np.moveaxis(stored[1:].filled(0) * np.float32(scale), 0, -1))
            np.testing.assert_allclose(
                np.moveaxis(found[1:].filled(0), 0, -1)[valid] * scale,
                sums[valid],
                atol=scale if scale < 1 else 1e-6,
            )
            expected = np.where(classes == 0, 0, sums.argmax(-1) + 1)
        agree = found[0].filled(0)[valid] == expected[valid]
        assert agree.mean() > 0.999  # equal sums may be decided either way
    name = f"map_level{level.number}"
    assert {p.name for p in tmp_path.iterdir()} == {
        "map.tif", f"{name}.tif", f"{name}.qml", f"{name}.sld", f"{name}.tif.aux.xml"
    }  # fmt: skip
    shown = {
        (e.get("value"), e.get("color")) for e in ET.parse(tmp_path / f"{name}.qml").iter("paletteEntry")
    }
    assert {(str(c.number), c.color) for c in level.legend.classes} <= shown


def test_levels_that_can_not_be_are_refused(
    tmp_path: Path, write_map: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    known, own = write_map(tmp_path / "a.tif", legend=LEGEND), write_map(tmp_path / "b.tif")
    before = known.read_bytes()
    for arguments, says in (
        ([known, "--out", tmp_path / "c.tif"], "expected --level"),
        ([known, "--level", "1", "--out", tmp_path / "c.nc"], "expected an output in .tif"),
        ([known, "--level", "1", "--out", known, "--overwrite"], "it is the input"),
        ([own, "--level", "1"], "has no groups of that level"),
    ):
        assert main([*map(str, arguments), "-q"]) == 1
        assert says in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tif"]
    assert known.read_bytes() == before
