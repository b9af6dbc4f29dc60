"""preprocess.py: from rasters to stacks, through the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from scipy import ndimage
from shapely.geometry import box

from lulc.cli.preprocess import main
from lulc.config import PreprocessConfig
from lulc.core.schema import BANDS, INDICES, InputError
from lulc.datasets.loading import find_overlaps, load_manifest
from lulc.preprocessing import plan, preprocess, tiling
from lulc.preprocessing.preprocess import make_stacks

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
UTM = CRS.from_epsg(32635)
TRANSFORM = Affine(10, 0, 500000, 0, -10, 6800000)
SHAPE = (160, 224)


def write(path: Path, layers: np.ndarray, names: Sequence[str], nodata: float | None) -> str:
    with rasterio.open(
        path, "w", driver="GTiff", height=layers.shape[1], width=layers.shape[2], count=len(layers),
        dtype=layers.dtype, crs=UTM, transform=TRANSFORM, nodata=nodata, tiled=True, blockxsize=64,
        blockysize=64,
    ) as data:  # fmt: skip
        data.write(layers)
        data.descriptions = tuple(names)
    return str(path)


@pytest.fixture
def scene(tmp_path: Path) -> dict[str, Any]:
    """Options for a mosaic of 160 x 224 pixels with gaps, a fill, index codes and six classes."""
    rng = np.random.default_rng(0)
    bands = rng.integers(200, 4000, (9, *SHAPE)).astype(np.uint16)
    fill = rng.integers(200, 4000, (9, *SHAPE)).astype(np.uint16)
    indices = rng.integers(1, 200, (5, *SHAPE)).astype(np.uint8)
    bands[:, 10:30, 20:60] = 0
    fill[:, 10:20, 20:40] = 0
    indices[1, 100:110, 100:130] = 0
    labels = (np.add.outer(np.arange(160) // 20, np.arange(224) // 28) % 6 + 1).astype(np.uint8)
    labels[:, 220:] = 0
    return {
        "bands": (write(tmp_path / "summer.tif", bands, BANDS, 0),),
        "fill": (write(tmp_path / "spring.tif", fill, BANDS, 0),),
        "indices": (write(tmp_path / "indices.tif", indices, INDICES, 0),),
        "labels": write(tmp_path / "labels.tif", labels[None], ["class"], 0),
        "out": str(tmp_path / "stacks"),
        "scheme": "kaakonkulma-13",
        "size": 64,
        "gap": 5,
    }


def config(scene: dict[str, Any], **options: Any) -> PreprocessConfig:
    return PreprocessConfig(**{**scene, **options})


def arguments(scene: dict[str, Any], *more: str) -> list[str]:
    listed = []
    for name, value in scene.items():
        if value != ():
            listed += ["--" + name, *(value if isinstance(value, tuple) else [str(value)])]
    return [*listed, *more]


def layers_of(path: str) -> np.ndarray:
    with rasterio.open(path) as data:
        return np.asarray(data.read())


def contents(folder: str) -> dict[str, bytes]:
    files = [p for p in sorted(Path(folder).iterdir()) if not p.name.startswith((".", "progress"))]
    return {p.name: p.read_bytes() for p in files}


def test_stacks_hold_what_the_rasters_say(scene: dict[str, Any]) -> None:
    manifest = make_stacks(config(scene, validation=("5",)))
    bands, fill = (layers_of(scene[k][0]).astype(np.float32) for k in ("bands", "fill"))
    image = np.concatenate([np.where(bands == 0, fill, bands), layers_of(scene["indices"][0])])
    invalid = (image == 0).any(axis=0)
    image[:, invalid] = np.nan
    labels = layers_of(scene["labels"])[0]
    labels = np.where((labels == 0) | invalid, 255, labels)
    (val,) = manifest.of("val")
    assert val.number == 5 and val.window and val.grid
    distance = ndimage.distance_transform_cdt(~inside(val.window.slices), metric="chessboard")
    valid = []
    for stack in manifest.stacks:
        assert stack.window and stack.grid
        found, masks = np.load(stack.image), np.load(stack.masks)
        assert (found.dtype, masks.dtype) == (np.float32, np.uint8)
        expected = labels[stack.window.slices].copy()
        if stack.split == "train":
            expected[distance[stack.window.slices] <= 5] = 255
            valid.append(found[~np.isnan(found).any(axis=2)])
        assert np.array_equal(masks, expected)
        assert np.allclose(found, np.moveaxis(image, 0, -1)[stack.window.slices], equal_nan=True)
        assert stack.grid.transform == TRANSFORM @ Affine.translation(stack.window.col, stack.window.row)
        assert stack.class_counts[:6] == tuple(int((masks == c).sum()) for c in range(1, 7))
    pixels = np.concatenate(valid).astype(np.float64)
    assert manifest.statistics.count == len(pixels)
    assert manifest.statistics.mean == pytest.approx(pixels.mean(axis=0), rel=1e-9)
    assert manifest.statistics.std == pytest.approx(pixels.std(axis=0), rel=1e-9)
    assert not find_overlaps(manifest.stacks)


def inside(slices: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[slices] = True
    return mask


def test_the_command_prints_counts_shares_and_what_to_type_next(
    scene: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(scene, "--quiet")) == 0
    printed = capsys.readouterr().out
    assert f"python train_model.py {scene['out']} --out runs/first\n" in printed
    assert "labels: 'labels.tif', classes of 'kaakonkulma-13', by the scheme given (1 " in printed
    assert "indices: read from indices.tif\n" in printed
    # 600, 200 and 300 of the 160 x 224 pixels.
    assert "B02       1.67 %   0.56 %" in printed and "NDTI      0.00 %   0.84 %" in printed
    manifest = load_manifest(scene["out"])
    for land_cover, count in zip(manifest.legend.classes, manifest.class_counts("train"), strict=True):
        assert any(land_cover.name in line and f"{count:,}" in line for line in printed.splitlines())


def test_indices_that_no_raster_gives_are_said_to_be_computed(scene: dict[str, Any], capsys: Any) -> None:
    assert main(arguments({**scene, "indices": ()}, "--quiet")) == 0
    assert f"indices: {', '.join(INDICES)} computed from the bands\n" in capsys.readouterr().out


def test_the_manifest_names_channels_sources_and_parameters_but_no_place_on_this_machine(
    scene: dict[str, Any], tmp_path: Path
) -> None:
    make_stacks(config(scene, indices=()))
    text = (Path(scene["out"]) / "manifest.json").read_text()
    data = json.loads(text)
    assert str(tmp_path) not in text
    assert [c["coding"] for c in data["channels"]] == ["read"] * 9 + ["computed"] * 5
    assert {s["name"] for s in data["sources"]} == {"summer.tif", "spring.tif", "labels.tif"}
    assert data["parameters"]["gap"] == 5 and data["format_version"] == 1


def test_equal_runs_give_equal_bytes(scene: dict[str, Any], tmp_path: Path) -> None:
    make_stacks(config(scene))
    make_stacks(config(scene, out=str(tmp_path / "again")))
    assert contents(scene["out"]) == contents(str(tmp_path / "again"))


def test_strips_of_any_height_give_the_same_stacks(
    scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stacks(config(scene, border_ignore=3))
    monkeypatch.setattr(tiling, "STRIP", 64 * 7)
    make_stacks(config(scene, border_ignore=3, out=str(tmp_path / "strips")))
    assert contents(scene["out"]) == contents(str(tmp_path / "strips"))


def test_labels_along_class_borders_are_ignored(scene: dict[str, Any]) -> None:
    make_stacks(config(scene, size=850, validation=("0.0",), border_ignore=2))
    masks = np.load(Path(scene["out"]) / "train_masks_0.npy")
    labels = layers_of(scene["labels"])[0]
    known = labels > 0
    expected = np.zeros(SHAPE, bool)
    for rows in range(-2, 3):
        for cols in range(-2, 3):
            other = ndimage.shift(labels, (rows, cols), order=0, cval=0)
            expected |= known & (other > 0) & (other != labels)
    valid = ~np.isnan(np.load(Path(scene["out"]) / "train_image_0.npy")).any(axis=2)
    assert np.array_equal(masks == 255, expected | ~known | ~valid)


def test_as_many_stacks_are_cut_as_asked_for_with_the_rare_class_first(scene: dict[str, Any]) -> None:
    labels = layers_of(scene["labels"])
    labels[0, 70:80, 140:150] = 11
    write(Path(scene["labels"]), labels, ["class"], 0)
    manifest = make_stacks(config(scene, stacks=3, validation=("0.0",)))
    assert len(manifest.stacks) == 3
    assert manifest.class_counts("train")[10] == 100


def test_more_stacks_than_there_are_is_said_and_fewer_than_validate_is_refused(
    scene: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for stacks in (2, 3):
        with pytest.raises(InputError) as error:
            make_stacks(config(scene, stacks=stacks, validation=("0", "1", "2")))
        assert "--stacks must exceed the number of validation stacks" in error.value.hint
    assert len(make_stacks(config(scene, stacks=5, validation=("0", "1", "2"))).of("val")) == 3
    assert "instead of" not in caplog.text
    cut = len(make_stacks(config(scene, stacks=50, overwrite=True)).stacks)
    assert f"{cut} stacks are cut instead of 50" in caplog.text


@pytest.mark.parametrize(
    "options", [{}, {"gap": 30}, {"stacks": 3}, {"size": 80}, {"border_ignore": 2}, {"validation": ("none",)}]
)
def test_every_labelled_valid_pixel_is_used_or_has_a_reason(
    scene: dict[str, Any], options: dict[str, Any]
) -> None:
    """Against a count over the whole mosaic; stacks of 64 pixels take in what is left over."""
    found = make_stacks(config(scene, **options)).provenance["labelled"]
    whole = make_stacks(config(scene, size=850, validation=("none",), out=scene["out"] + "-whole"))
    assert found["given"] == whole.class_counts("train").sum()
    masks = {split: list(Path(scene["out"]).glob(f"{split}_masks_*.npy")) for split in ("train", "val")}
    used = {split: sum(int((np.load(p) != 255).sum()) for p in paths) for split, paths in masks.items()}
    assert (found["training"], found["validation"]) == (used["train"], used["val"])
    assert found["given"] == sum(found[name] for name in list(found)[1:])
    assert (found["not_cut"] > 0) == ("stacks" in options)
    assert (found["hidden"] > 0) == (options.get("validation") != ("none",))


def test_the_command_says_how_many_labels_are_used_and_why_not_all(
    scene: dict[str, Any], capsys: Any
) -> None:
    assert main(arguments(scene, "--quiet")) == 0
    found = load_manifest(scene["out"]).provenance["labelled"]
    printed = capsys.readouterr().out
    assert f"labels: {found['given']:,} px on valid pixels, " in printed
    assert f"{found['hidden']:,} within --gap or --border-ignore" in printed


def test_polygons_choose_the_validation_stacks(scene: dict[str, Any], tmp_path: Path) -> None:
    area = box(500000, 6800000 - 640, 500000 + 900, 6800000)
    path = tmp_path / "val.gpkg"
    geopandas.GeoDataFrame(geometry=[area], crs=UTM).to_file(path)
    assert [s.number for s in make_stacks(config(scene, validation=(str(path),))).of("val")] == [0]


def test_none_trains_on_all_and_all_validates_on_all(
    scene: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    none = make_stacks(config(scene, validation=("none",)))
    whole = make_stacks(config(scene, validation=("all",), out=str(tmp_path / "val")))
    assert not none.of("val") and not whole.of("train")
    assert [s.number for s in none.stacks] == [s.number for s in whole.stacks]
    # With nothing to keep apart, no label is hidden: both hold the same pixels.
    assert none.class_counts("train").tolist() == whole.class_counts("val").tolist()
    assert whole.statistics.count == sum(s.statistics.count for s in whole.stacks)
    assert main(arguments(scene, "--validation", "all", "--out", str(tmp_path / "val"))) == 0
    assert f"train_model.py DATA --validation-data {tmp_path / 'val'}" in capsys.readouterr().out


def test_another_folder_lends_the_ground_of_its_validation_stacks(
    scene: dict[str, Any], tmp_path: Path
) -> None:
    first = make_stacks(config(scene, validation=("2",)))
    again = config(scene, validation=(scene["out"],), border_ignore=1, out=str(tmp_path / "date2"))
    assert [s.number for s in make_stacks(again).of("val")] == [s.number for s in first.of("val")] == [2]
    without = make_stacks(config(scene, validation=("none",), out=str(tmp_path / "none")))
    with pytest.raises(InputError, match="no validation stack whose place is known"):
        make_stacks(config(scene, validation=(str(without.folder),), out=str(tmp_path / "x")))


@pytest.mark.parametrize(
    "validation",
    [("1.5",), ("none", "2"), ("all", "0.2"), ("20%",), ("99",), ("3", "0.2"), ("no.gpkg",), ("x",)],
)
def test_a_validation_that_fits_nothing_is_refused(scene: dict[str, Any], validation: Any) -> None:
    with pytest.raises(InputError):
        make_stacks(config(scene, validation=validation))
    assert not (Path(scene["out"]) / "manifest.json").exists()


def test_more_stacks_than_a_manifest_can_name_are_refused_with_what_to_type(
    scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_STACKS", 4)
    for stacks in (0, 5):
        with pytest.raises(InputError, match="at most 4") as refused:
            make_stacks(config(scene, stacks=stacks))
        assert "--stacks 4 " in refused.value.hint
    assert len(make_stacks(config(scene, stacks=4)).stacks) == 4


def test_what_is_cut_is_given_once_as_bands_or_as_scenes(scene: dict[str, Any], capsys: Any) -> None:
    assert "both are given" in refused(scene, capsys, "--scenes", *scene["bands"])
    assert "neither is given" in refused({**scene, "bands": ()}, capsys)
    assert main(arguments({**scene, "bands": (), "scenes": scene["bands"]}, "-q")) == 0
    manifest = load_manifest(scene["out"])
    assert manifest.parameters["scenes"] == ["summer.tif"] and manifest.provenance["scenes"]


def test_workers_are_refused_where_none_are_started(scene: dict[str, Any], capsys: Any) -> None:
    for more in ((), ("--dask", "tcp://127.0.0.1:9")):
        assert "only these start workers" in refused(scene, capsys, "--workers", "2", *more)


def test_one_scene_is_cut_as_one_mosaic(scene: dict[str, Any], tmp_path: Path) -> None:
    make_stacks(config(scene))
    make_stacks(config(scene, bands=(), scenes=scene["bands"], out=str(tmp_path / "scenes")))
    first, second = contents(scene["out"]), contents(str(tmp_path / "scenes"))
    del first["manifest.json"], second["manifest.json"]
    assert first == second


def test_one_stack_cannot_be_split(scene: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--size"):
        make_stacks(config(scene, size=850, split="stacks"))


def test_a_finished_folder_is_kept_by_the_same_command_and_refused_to_another(
    scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_stacks(config(scene))
    before = contents(scene["out"])
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "cut", None)
        assert make_stacks(config(scene)) == load_manifest(scene["out"])
    with pytest.raises(InputError, match="--overwrite"):
        make_stacks(config(scene, gap=6))
    assert contents(scene["out"]) == before
    second = make_stacks(config(scene, gap=6, overwrite=True))
    assert second.key != first.key


def test_another_legend_of_the_same_codes_makes_other_stacks(scene: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    rows = [f"{n},{n},class {n},#0000{n:02x}" for n in range(1, 7)]
    table.write_text("\n".join(["code,class,name,color", *rows]))
    first = make_stacks(config(scene, scheme=str(table)))
    assert make_stacks(config(scene, scheme=str(table))).key == first.key
    for old, new in (("class 3", "lake"), ("#000003", "#123456")):
        table.write_text(table.read_text().replace(old, new))
        with pytest.raises(InputError, match="other inputs or parameters"):
            make_stacks(config(scene, scheme=str(table)))
    assert make_stacks(config(scene, scheme=str(table), overwrite=True)).legend.names[2] == "lake"


def test_overwriting_with_fewer_stacks_leaves_none_behind(scene: dict[str, Any]) -> None:
    make_stacks(config(scene))
    manifest = make_stacks(config(scene, stacks=3, overwrite=True))
    listed = {p.name for s in manifest.stacks for p in (s.image, s.masks)}
    assert {p.name for p in Path(scene["out"]).glob("*.npy")} == listed


def test_what_is_refused_overwrites_nothing(scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    make_stacks(config(scene))
    before = contents(scene["out"])
    for options in (
        {"validation": ("99",)},
        {"bounds": (500000.0, 6799980.0, 500020.0, 6800000.0), "gap": 0},
        {"border_ignore": 200},
    ):
        with pytest.raises(InputError):
            make_stacks(config(scene, overwrite=True, **options))
        assert contents(scene["out"]) == before
    with monkeypatch.context() as patch, pytest.raises(InputError, match="are free"):
        patch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000})())
        make_stacks(config(scene, overwrite=True, size=72))
    assert contents(scene["out"]) == before
    labels = layers_of(scene["labels"])
    labels[0, 5, 5] = 99
    write(Path(scene["labels"]), labels, ["class"], 0)
    with pytest.raises(InputError, match="99"):
        make_stacks(config(scene, overwrite=True))
    assert contents(scene["out"]) == before


def test_stacks_of_another_origin_are_never_replaced(scene: dict[str, Any]) -> None:
    alien = Path(scene["out"]) / "train_image_0.npy"
    alien.parent.mkdir()
    alien.write_bytes(b"precious")
    for options in ({}, {"overwrite": True}, {"restart": True}):
        with pytest.raises(InputError, match=r"holds 'train_image_0\.npy', which this toolkit did not write"):
            make_stacks(config(scene, **options))
        assert alien.read_bytes() == b"precious"


def interrupted(scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch, after: int, **options: Any) -> None:
    """Run until `after` stacks are written, then stop as Ctrl-C does."""
    written = 0

    def stop(inputs: Any, place: Any) -> Any:
        nonlocal written
        if written == after:
            raise KeyboardInterrupt
        written += 1
        return tiling.cut(inputs, place)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preprocess, "cut", stop)
        make_stacks(config(scene, **options))


def test_an_interrupted_run_continues_to_the_same_bytes(
    scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stacks(config(scene, out=str(tmp_path / "whole")))
    interrupted(scene, monkeypatch, 3)
    assert not (Path(scene["out"]) / "manifest.json").exists()
    damaged = Path(scene["out"]) / "train_image_1.npy"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 4
    damaged.write_bytes(content)
    redone = []

    def record(inputs: Any, place: Any) -> Any:
        redone.append(place.name)
        return tiling.cut(inputs, place)

    monkeypatch.setattr(preprocess, "cut", record)
    make_stacks(config(scene))
    assert contents(scene["out"]) == contents(str(tmp_path / "whole"))
    assert "train_1" in redone and not {"train_0", "train_2"} & set(redone)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_survey_continues_to_the_same_bytes(
    scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    make_stacks(config(scene, out=str(tmp_path / "whole")))
    if overwrite:
        make_stacks(config(scene, gap=9))
    counted: list[int] = []

    def until(last: int) -> Any:
        def counting(inputs: Any, place: Any) -> Any:
            if len(counted) == last:
                raise KeyboardInterrupt
            counted.append(place[0])
            return tiling.survey(inputs, place)

        return counting

    monkeypatch.setattr(preprocess, "survey", until(4))
    with pytest.raises(KeyboardInterrupt):
        make_stacks(config(scene, overwrite=overwrite))
    assert (Path(scene["out"]) / "manifest.json").exists() == overwrite
    monkeypatch.setattr(preprocess, "survey", until(-1))
    make_stacks(config(scene, overwrite=overwrite))
    assert contents(scene["out"]) == contents(str(tmp_path / "whole"))
    assert len(counted) == len(set(counted)) == 6


def test_an_interrupted_survey_binds_nobody_to_its_parameters(scene: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stack 99"):
        make_stacks(config(scene, validation=("99",)))
    assert make_stacks(config(scene, validation=("5",))).of("val")[0].number == 5


def counted(function: Any, done: list[Any]) -> Any:
    def call(inputs: Any, item: Any) -> Any:
        done.append(item)
        return function(inputs, item)

    return call


def test_partial_work_of_other_parameters_is_refused_until_dropped(
    scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(scene, monkeypatch, 2)
    with pytest.raises(InputError, match="--restart"):
        make_stacks(config(scene, gap=9))
    assert make_stacks(config(scene, gap=9, restart=True)).parameters["gap"] == 9


@pytest.mark.parametrize("damage", ["cut short", "first line", "one place", "empty", "no text"])
def test_a_damaged_record_of_progress_costs_what_it_recorded_and_no_more(
    scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    make_stacks(config(scene, out=str(tmp_path / "whole")))
    interrupted(scene, monkeypatch, 2)
    record = Path(scene["out"]) / "progress.jsonl"
    header, first, *rest = record.read_text().splitlines(keepends=True)
    assert len(rest) == 7
    record.write_bytes(
        {
            "cut short": "".join([header, first, *rest])[:-40].encode(),
            "first line": "".join([header[:-9], first, *rest]).encode(),
            "one place": "".join([header, first.replace(":", ": ", 1).replace("1", "2"), *rest]).encode(),
            "empty": b"",
            "no text": b"\xff\x00" * 99,
        }[damage]
    )
    done: list[Any] = []
    for name in ("survey", "cut"):
        monkeypatch.setattr(preprocess, name, counted(getattr(tiling, name), done))
    make_stacks(config(scene))
    stacks = len(load_manifest(scene["out"]).stacks)
    # Every place became a stack, so that all of it is as many surveys and as many stacks.
    assert len(done) == {"cut short": stacks - 1, "one place": 1 + stacks - 2}.get(damage, 2 * stacks)
    assert contents(scene["out"]) == contents(str(tmp_path / "whole"))


def test_an_input_that_changes_while_it_is_read_is_noticed(
    scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(inputs: Any, place: Any) -> Any:
        os.utime(scene["labels"], ns=(1, 1))
        return tiling.cut(inputs, place)

    monkeypatch.setattr(preprocess, "cut", touch)
    with pytest.raises(InputError, match="changed while"):
        make_stacks(config(scene))
    assert not (Path(scene["out"]) / "manifest.json").exists()


def test_two_runs_on_one_folder_are_refused(scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def second(inputs: Any, place: Any) -> Any:
        with pytest.raises(InputError, match="another run"):
            make_stacks(config(scene))
        return tiling.survey(inputs, place)

    monkeypatch.setattr(preprocess, "survey", second)
    make_stacks(config(scene))


def refused(scene: dict[str, Any], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(arguments(scene, "--quiet", *more)) == 1
    message = capsys.readouterr().err
    assert message.count("error: ") == 1 and "Traceback" not in message
    assert not (Path(scene["out"]) / "manifest.json").exists()
    return message


def test_unknown_codes_are_refused_with_their_counts(scene: dict[str, Any], capsys: Any) -> None:
    labels = layers_of(scene["labels"])
    labels[0, :3, :4] = 77
    write(Path(scene["labels"]), labels, ["class"], 0)
    assert "77 (12 px)" in refused(scene, capsys)


def test_no_valid_pixel_and_only_one_class_are_refused(scene: dict[str, Any], capsys: Any) -> None:
    labels = layers_of(scene["labels"])
    write(Path(scene["labels"]), np.minimum(labels, 1), ["class"], 0)
    assert "only 'Built-up areas, sparse'" in refused(scene, capsys)
    write(Path(scene["labels"]), labels * 0, ["class"], 0)
    assert "no valid pixel" in refused(scene, capsys, "--restart")


def test_missing_files_and_shifted_labels_are_refused(scene: Any, capsys: Any, tmp_path: Path) -> None:
    assert "nothing.tif" in refused({**scene, "labels": str(tmp_path / "nothing.tif")}, capsys)
    with rasterio.open(scene["labels"], "r+") as data:
        data.transform = TRANSFORM @ Affine.translation(0.5, 0)
    assert "origin (500005" in refused(scene, capsys) and not Path(scene["out"]).exists()


def test_a_full_disk_is_noticed_before_writing(
    scene: dict[str, Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000})())
    assert "are free there" in refused(scene, capsys)
    assert not list(Path(scene["out"]).glob("*.npy"))


def test_a_folder_that_cannot_be_written_is_named(scene: dict[str, Any], capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused({**scene, "out": str(tmp_path / "file" / "stacks")}, capsys)


@pytest.mark.parametrize("option", ["size", "stacks", "gap", "border_ignore"])
def test_numbers_out_of_range_are_refused(scene: dict[str, Any], option: str) -> None:
    with pytest.raises(InputError, match=option.replace("_", "-")):
        make_stacks(replace(config(scene), **{option: -1}))


@pytest.mark.parametrize(("gap", "told"), [(5, True), (76, False)])
def test_a_gap_that_shares_context_with_validation_is_told(
    gap: int, told: bool, scene: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    make_stacks(config(scene, gap=gap, size=112))
    assert ("less than 76, the receptive radius" in caplog.text) == told


def test_the_simulated_region_validates_on_its_block_3(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/kaakonkulma-sim"
    manifest = make_stacks(
        PreprocessConfig(
            bands=(str(folder / "summer.tif"),), fill=(str(folder / "spring.tif"),),
            indices=(str(folder / "indices.tif"),), labels=str(folder / "labels.tif"),
            scheme="kaakonkulma-13", validation=("3",), out=str(tmp_path / "stacks"),
        )
    )  # fmt: skip
    assert [(s.name, s.number, s.shape) for s in manifest.stacks] == [
        ("train_0", 0, (850, 850)), ("train_1", 1, (850, 850)), ("train_2", 2, (850, 850)),
        ("val_0", 3, (850, 850)),
    ]  # fmt: skip
    # Block 3 carries the labels of the original's validation stack, apart from invalid pixels.
    original = np.load(shared / "data/kaakonkulma-labels/val_masks_0.npy")
    masks = np.load(tmp_path / "stacks/val_masks_0.npy")
    assert np.array_equal(masks[masks != 255], original[masks != 255])
    assert np.mean(masks == 255) < 0.02
    # The gap: 76 pixels beside and above the validation block, the corner included.
    beside, above = (np.load(tmp_path / f"stacks/train_masks_{i}.npy") for i in (2, 1))
    assert (beside[:, -76:] == 255).all() and (above[-76:] == 255).all()
    assert (beside[:, -77] != 255).any() and (above[-77] != 255).any()


def test_memory_does_not_grow_with_the_mosaic(tmp_path: Path) -> None:
    side = 2560
    block = np.random.default_rng(0).integers(200, 4000, (9, 256, 256)).astype(np.uint16)
    tiled = {"driver": "GTiff", "height": side, "width": side, "crs": UTM, "transform": TRANSFORM}
    tiled |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "nodata": 0}
    with rasterio.open(tmp_path / "bands.tif", "w", count=9, dtype="uint16", **tiled) as data:
        data.descriptions = BANDS
        for row, col in np.ndindex(side // 256, side // 256):
            data.write(block, window=((row * 256, row * 256 + 256), (col * 256, col * 256 + 256)))
    with rasterio.open(tmp_path / "labels.tif", "w", count=1, dtype="uint8", **tiled) as data:
        data.write((np.indices((side, side)).sum(axis=0) // 99 % 13 + 1).astype(np.uint8), 1)
    code = (
        "from lulc.cli.preprocess import main\n"
        "assert main(['-q', '--bands', 'bands.tif', '--labels', 'labels.tif', '--stacks', '2', '--out', 'o',"
        " '--scheme', 'kaakonkulma-13', '--validation', '0.5', '--size', '2000']) == 0\n"
        # ru_maxrss would count what this process held when it forked.
        "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Bands alone are 118 MB in the file and 367 MB as the network sees them.
    assert int(ended.stdout.split()[-1]) < 600
