"""Many chips, each with its own labels, cut into one folder by one command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from lulc.config import PreprocessConfig
from lulc.core.schema import BANDS, IGNORE, InputError
from lulc.datasets.loading import load_manifest
from lulc.preprocessing import chips
from lulc.preprocessing.chips import find_chips
from lulc.preprocessing.preprocess import make_stacks
from lulc.training.data.batches import BatchConfig, TileGenerator, pad_small
from lulc.training.data.dataset import Tile

SCHEME = "code,class,name,color\n1,1,water,#0000ff\n2,2,forest,#00ff00\n0,,none,\n"


def chip(folder: Path, name: str, side: int, epsg: int, east: float) -> None:
    """Write bands and labels of a chip whose pixels tell where they are from."""
    rng = np.random.default_rng(list(name.encode()))
    place = {
        "driver": "GTiff", "width": side, "height": side, "crs": CRS.from_epsg(epsg),
        "transform": Affine(10, 0, east, 0, -10, 6e6),
    }  # fmt: skip
    bands = rng.integers(300, 3000, (len(BANDS), side, side)).astype(np.uint16)
    with rasterio.open(folder / f"{name}_s2.tif", "w", count=len(BANDS), dtype="uint16", **place) as file:
        file.write(bands)
        file.descriptions = BANDS
    labels = rng.choice((1, 2), (1, side, side)).astype(np.uint8)
    with rasterio.open(folder / f"{name}_lab.tif", "w", count=1, dtype="uint8", **place) as file:
        file.write(labels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scheme.csv").write_text(SCHEME)
    for number, (side, epsg) in enumerate([(80, 32633), (40, 32633), (64, 32634), (70, 3857), (90, 32635)]):
        chip(tmp_path, f"c{number}", side, epsg, 400_000 + 20_000 * number)
    return tmp_path


def config(folder: Path, **options: Any) -> PreprocessConfig:
    given = {
        "bands": (str(folder / "*_s2.tif"),), "labels": str(folder / "*_lab.tif"),
        "scheme": str(folder / "scheme.csv"), "out": str(folder / "stacks"),
    }  # fmt: skip
    return PreprocessConfig(**(given | options))


def test_chips_of_any_grid_are_paired_and_each_is_a_stack(folder: Path) -> None:
    manifest = make_stacks(config(folder))
    assert len(manifest.stacks) == 5 and len(manifest.of("val")) == 1
    for stack in manifest.stacks:
        assert stack.grid is not None
        with rasterio.open(folder / f"{stack.group}_s2.tif") as bands:
            expected = bands.read().astype(np.float32)
            assert (stack.grid.crs, stack.grid.transform) == (bands.crs, bands.transform)
        with rasterio.open(folder / f"{stack.group}_lab.tif") as labels:
            assert np.array_equal(np.load(stack.masks), labels.read(1))
        assert np.array_equal(np.load(stack.image)[..., : len(BANDS)], np.moveaxis(expected, 0, -1))
    assert manifest.provenance["labels"]["file"] == "5 chips"
    assert {c["name"] for c in manifest.provenance["chips"]} == {f"c{n}" for n in range(5)}


def test_a_table_gives_the_stacks_that_patterns_give(folder: Path) -> None:
    by_pattern = make_stacks(config(folder))
    (folder / "pairs.csv").write_text(
        "bands,labels,name\n" + "".join(f"c{n}_s2.tif,c{n}_lab.tif,c{n}\n" for n in range(5))
    )
    options = {"bands": (str(folder / "pairs.csv"),), "labels": None, "out": str(folder / "table")}
    by_table = make_stacks(config(folder, **options))
    assert [s.sha256 for s in by_table.stacks] == [s.sha256 for s in by_pattern.stacks]
    assert load_manifest(folder / "table").stacks == by_table.stacks


def test_a_file_without_its_partner_is_named(folder: Path) -> None:
    (folder / "c3_lab.tif").unlink()
    with pytest.raises(InputError, match=r"no '.*c3_lab\.tif'"):
        make_stacks(config(folder))
    assert not (folder / "stacks").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": ("none/*.tif",)}, "no file matches 'none/"),
        ({"bands": ("one.tif",)}, "--bands is no pattern"),
        ({"dask": "local"}, "cannot use --dask with many chips"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        find_chips(config(folder, **options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bands\nc0_s2.tif\n", "lacks labels"),
        ("bands,labels,colour\nc0_s2.tif,c0_lab.tif,red\n", "column 'colour'"),
        ("bands,labels\n", "no row"),
        ("bands,labels\nc0_s2.tif,\n", "line 2 of .* labels is empty"),
        ("bands,labels\nc0_s2.tif,c0_lab.tif\nc0_s2.tif,c0_lab.tif\n", "occur twice"),
        ("bands,labels,offset\nc0_s2.tif,c0_lab.tif,much\n", "are numbers"),
        ("bands,labels\nc0_s2.tif,a|b\n", "labels has 2 files"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find_chips(config(folder, bands=(str(folder / "pairs.csv"),), labels=None))


def test_several_patterns_and_folders_make_the_files_of_a_chip(tmp_path: Path) -> None:
    for place in ("north", "south"):
        for name in ("s2_B02", "s2_B03", "lab"):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / f"{name}.tif").touch()
    found = find_chips(
        config(
            tmp_path,
            bands=(f"{tmp_path}/*/s2_B02.tif", f"{tmp_path}/*/s2_B03.tif"),
            labels=f"{tmp_path}/*/lab.tif",
            aoi="area.gpkg",
        )
    )
    assert [chip.name for chip in found] == ["north", "south"]
    for chip in found:
        assert chip.config.bands == tuple(f"{tmp_path}/{chip.name}/s2_B0{b}.tif" for b in (2, 3))
        assert chip.config.labels == f"{tmp_path}/{chip.name}/lab.tif"
        assert chip.config.aoi == "area.gpkg"


def test_a_date_or_names_stand_before_the_path_of_a_cell_and_before_a_pattern(tmp_path: Path) -> None:
    for name in ("a_u.tif", "b_u.tif", "a_v.tif", "b_v.tif", "a_lab.tif", "b_lab.tif", "x=1.tif"):
        (tmp_path / name).touch()
    header = "bands,labels,layers,name\n"
    bands, layers = "spring=a_u.tif|summer=/b_v.tif", "VV,VH=radar.tif|x=1.tif|z=NETCDF:c.nc:d"
    (tmp_path / "pairs.csv").write_text(f'{header}{bands},a_lab.tif,"{layers}",\n')
    (one,) = find_chips(config(tmp_path, bands=(str(tmp_path / "pairs.csv"),), labels=None))
    assert one.name == "a_u"
    assert one.config.bands == (f"spring={tmp_path}/a_u.tif", "summer=/b_v.tif")
    assert one.config.layers == (f"VV,VH={tmp_path}/radar.tif", f"{tmp_path}/x=1.tif", "z=NETCDF:c.nc:d")
    dates = tuple(f"{date}={tmp_path}/*_{end}.tif" for date, end in (("spring", "u"), ("summer", "v")))
    found = find_chips(config(tmp_path, bands=dates))
    assert [(chip.name, chip.config.bands) for chip in found] == [
        (name, (f"spring={tmp_path}/{name}_u.tif", f"summer={tmp_path}/{name}_v.tif")) for name in "ab"
    ]


def test_a_file_whose_name_has_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "scene[1].tif").touch()
    one = find_chips(config(tmp_path, bands=(str(tmp_path / "scene[1].tif"),), labels="labels.tif"))
    assert [chip.name for chip in one] == [""]


def test_dates_of_one_place_and_groups_of_a_table_are_never_divided(folder: Path) -> None:
    for number in range(3):
        chip(folder, f"d{number}", 80, 32633, 400_000)
    rows = [f"c{n}_s2.tif,c{n}_lab.tif,{'west' if n in (2, 3) else ''}\n" for n in range(5)]
    rows += [f"d{n}_s2.tif,d{n}_lab.tif,\n" for n in range(3)]
    (folder / "pairs.csv").write_text("bands,labels,group\n" + "".join(rows))
    table = {"bands": (str(folder / "pairs.csv"),), "labels": None, "validation": ("0.5",)}
    manifest = make_stacks(config(folder, **table))
    sides: dict[str, set[str]] = {}
    for stack in manifest.stacks:
        sides.setdefault(stack.group, set()).add(stack.split)
    assert all(len(splits) == 1 for splits in sides.values()) and len(sides) == 4
    (same,) = [group for group in sides if sum(s.group == group for s in manifest.stacks) == 4]
    assert same.startswith(("c0", "d"))


def test_training_labels_near_a_validation_chip_are_hidden_across_grids(tmp_path: Path) -> None:
    (tmp_path / "scheme.csv").write_text(SCHEME)
    for number in range(3):
        chip(tmp_path, f"c{number}", 64, 32633, 400_000 + 640 * number)
    manifest = make_stacks(config(tmp_path, validation=("0",), gap=10))
    (first, second) = manifest.of("train")
    assert (np.load(first.masks)[:, :10] == IGNORE).all() and (np.load(first.masks)[:, 10:] != IGNORE).all()
    assert (np.load(second.masks) != IGNORE).all()


def test_more_chips_than_stay_open_are_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_stacks(config(folder))
    monkeypatch.setattr(chips, "OPEN", 1)
    again = make_stacks(config(folder, out=str(folder / "again")))
    assert [s.sha256 for s in again.stacks] == [s.sha256 for s in whole.stacks]


def test_a_warning_of_every_chip_is_told_a_few_times(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chips, "NAMED", 2)
    opened = chips.tiling.open_inputs

    def warning(given: PreprocessConfig) -> Any:
        logging.getLogger("lulc").warning("'%s' is odd", given.bands[0])
        return opened(given)

    monkeypatch.setattr(chips.tiling, "open_inputs", warning)
    with caplog.at_level(logging.WARNING, "lulc"):
        make_stacks(config(folder))
    assert sum("is odd" in message for message in caplog.messages) == 2
    assert any(message.startswith("4 more like this, the last: ") for message in caplog.messages)


def test_an_offset_of_one_chip_comes_from_the_table(folder: Path) -> None:
    rows = "".join(f"c{n}_s2.tif,c{n}_lab.tif,{-200 if n == 2 else ''}\n" for n in range(5))
    (folder / "pairs.csv").write_text("bands,labels,offset\n" + rows)
    manifest = make_stacks(config(folder, bands=(str(folder / "pairs.csv"),), labels=None))
    for stack in manifest.stacks:
        name = stack.group.removesuffix("_s2")
        with rasterio.open(folder / f"{name}_s2.tif") as file:
            stored = np.moveaxis(file.read().astype(np.float32), 0, -1)
        shift = -200 if name == "c2" else 0
        assert np.allclose(np.load(stack.image)[..., : len(BANDS)], stored + shift)


def test_chips_of_other_classes_are_refused(folder: Path) -> None:
    (folder / "scheme.csv").unlink()
    for number, names in enumerate((["water", "forest"], ["water", "sand"])):
        chip(folder, f"c{number}", 80, 32633, 4e5 + 1e4 * number)
        with rasterio.open(folder / f"c{number}_lab.tif", "r+") as file:
            file.write_colormap(1, {1: (0, 0, 255, 255), 2: (0, 255, 0, 255)})
        rat = "".join(f"<Category>{name}</Category>" for name in ["", *names])
        (folder / f"c{number}_lab.tif.aux.xml").write_text(
            f"<PAMDataset><PAMRasterBand band='1'><CategoryNames>{rat}</CategoryNames></PAMRasterBand>"
            "</PAMDataset>"
        )
    for number in (2, 3, 4):
        (folder / f"c{number}_s2.tif").unlink()
        (folder / f"c{number}_lab.tif").unlink()
    with pytest.raises(InputError, match="classes water, sand, expected those of 'c0': water, forest"):
        make_stacks(config(folder, scheme=None))


@pytest.mark.parametrize("second", ["summer=c1_s2.tif|spring=c3_s2.tif", "spring=c1_s2.tif|autumn=c3_s2.tif"])
def test_chips_of_other_dates_or_dates_in_another_order_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.chdir(folder)
    rows = f"spring=c0_s2.tif|summer=c2_s2.tif,c0_lab.tif,one\n{second},c1_lab.tif,two\n"
    Path("pairs.csv").write_text("bands,labels,name\n" + rows)
    Path("set.yaml").write_text("format_version: 1\nchannels: [B02, B03, B04]\n")
    for number in (2, 3):
        (folder / f"c{number}_s2.tif").unlink()
        chip(folder, f"c{number}", (80, 40)[number - 2], 32633, 400_000 + 20_000 * (number - 2))
    with pytest.raises(InputError, match=r"channels of 'two' are .*, expected those of 'one': spring/B02"):
        make_stacks(config(folder, bands=("pairs.csv",), labels=None, channels="set.yaml"))


def test_a_stack_smaller_than_the_smallest_crop_is_padded_not_lost() -> None:
    rng = np.random.default_rng(1)

    def tile(side: int) -> Tile:
        image = rng.random((side, side, 3), np.float32) + side
        return Tile(f"{side}", image, np.full((side, side), 1, np.uint8))

    tiles = pad_small([tile(40), tile(80)], (64,), 1, "--crop-sizes")
    assert [t.image.shape[:2] for t in tiles] == [(64, 64), (80, 80)]
    targets = np.full(256, IGNORE, np.uint8)
    targets[1] = 0
    generator = TileGenerator(tiles, BatchConfig(steps=1, batch_size=16, crop_sizes=(64,), targets=targets))
    images, labels = zip(*(generator.batch(epoch, 0) for epoch in range(8)), strict=True)
    small = [i for batch in images for i in batch if np.nanmax(i) < 60]
    assert small
    for image in small:
        assert (
            np.isfinite(image[:40, :40]).all()
            and np.isnan(image[40:]).all()
            and np.isnan(image[:, 40:]).all()
        )
    assert {int((batch != IGNORE).sum()) for group in labels for batch in group} == {40 * 40, 64 * 64}


def test_where_no_stack_fits_nothing_is_padded() -> None:
    small = Tile("small", np.ones((40, 40, 3), np.float32), np.ones((40, 40), np.uint8))
    assert pad_small([small], (64,), 1, "--crop-sizes") == [small]


def test_a_name_longer_than_files_may_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(f"bands,labels\na.tif,{'x' * 5000}.tif\n")
    with pytest.raises(InputError, match="a name in it has 5004 bytes"):
        make_stacks(PreprocessConfig(bands=(str(tmp_path / "pairs.csv"),), out=str(tmp_path / "out")))
