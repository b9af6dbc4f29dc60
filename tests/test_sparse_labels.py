"""Sparse labels: whole patches train or validate, none is lost, and training does not see what validates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage
from shapely.geometry import Point, box

from lulc.config import PreprocessConfig, TrainConfig
from lulc.core.schema import BANDS, InputError
from lulc.datasets.loading import find_overlaps, load_manifest
from lulc.evaluation.measures.regions import read_ground, read_regions
from lulc.preprocessing.patches import LabelledPixels, Split, group_pixels, leave_gap, split_groups
from lulc.preprocessing.preprocess import make_stacks
from lulc.preprocessing.split import choose_groups
from lulc.rasters.sources import open_source
from lulc.training.data.dataset import leave_one_out

SHAPE = (220, 260)
TRANSFORM = Affine(10, 0, 500_000, 0, -10, 6_800_000)
UTM = "EPSG:32635"

SCHEME = "code,class,name,color\n1,1,water,#0072b2\n2,2,forest,#009e73\n3,3,field,#e69f00\n"


def square(row: int, col: int, side: int = 6) -> Any:
    """A polygon of whole pixels."""
    x, y = TRANSFORM @ (col, row)
    return box(x, y - 10 * side, x + 10 * side, y)


POLYGONS = [(1 + k % 3, square(10 + 40 * (k // 5), 10 + 50 * (k % 5))) for k in range(25)]


@pytest.fixture
def mosaic(tmp_path: Path) -> dict[str, Any]:
    """Nine bands of noise with missing pixels, polygons, and the options of a preprocessing."""
    bands = np.random.default_rng(1).integers(300, 4000, (9, *SHAPE)).astype(np.uint16)
    bands[:, 12, 12:15] = 0
    profile = {"driver": "GTiff", "count": 9, "height": SHAPE[0], "width": SHAPE[1], "dtype": "uint16",
               "crs": UTM, "transform": TRANSFORM, "nodata": 0}  # fmt: skip
    with rasterio.open(tmp_path / "mosaic.tif", "w", **profile) as file:
        file.write(bands)
        file.descriptions = BANDS
    (tmp_path / "scheme.csv").write_text(SCHEME)
    return {
        "bands": (str(tmp_path / "mosaic.tif"),), "labels": str(tmp_path / "labels.gpkg"),
        "scheme": str(tmp_path / "scheme.csv"), "out": str(tmp_path / "stacks"), "gap": 20, "size": 128,
        "scale": 1e-4,
    }  # fmt: skip


def draw(mosaic: dict[str, Any], shapes: list[tuple[int, Any]] = POLYGONS) -> np.ndarray:
    """Write the labels; return them rasterised by another library, 0 where missing."""
    codes, geometry = zip(*shapes, strict=True)
    geopandas.GeoDataFrame({"code": codes}, geometry=list(geometry), crs=UTM).to_file(mosaic["labels"])
    found = rasterize(zip(geometry, codes, strict=True), SHAPE, transform=TRANSFORM, dtype="uint8")
    found[12, 12:15] = 0
    return found


def on_mosaic(manifest: Any, split: str) -> np.ndarray:
    """Labels of all stacks of a split where they lie, 0 for none; fails where two stacks hold one."""
    found = np.zeros(SHAPE, np.uint8)
    for stack in manifest.of(split):
        masks = np.load(stack.masks)
        place = found[stack.window.slices]
        assert not (place[masks != 255]).any()
        place[masks != 255] = masks[masks != 255]
    return found


pixels = st.sets(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(pixels)
def test_pixels_that_touch_are_one_group_and_no_others(found: set[tuple[int, int]]) -> None:
    rows, cols = (np.array(axis, np.int32) for axis in zip(*sorted(found), strict=True))
    image = np.zeros((31, 31), bool)
    image[rows, cols] = True
    expected = ndimage.label(image, np.ones((3, 3)))[0][rows, cols]
    groups = group_pixels(rows, cols, 1)
    assert len(set(zip(expected, groups, strict=True))) == len(set(expected)) == len(set(groups))


@settings(max_examples=60, deadline=None)
@given(pixels, st.integers(1, 12))
def test_pixels_within_the_distance_are_one_group_and_groups_keep_apart(
    found: set[tuple[int, int]], distance: int
) -> None:
    rows, cols = (np.array(axis, np.int32) for axis in zip(*sorted(found), strict=True))
    groups = group_pixels(rows, cols, distance)
    apart = np.maximum(abs(rows[:, None] - rows), abs(cols[:, None] - cols))
    different = groups[:, None] != groups
    assert (apart[different] > distance).all()
    # Each member of a group has another one within twice the distance, unless it is alone.
    for number in set(groups.tolist()):
        own = apart[np.ix_(groups == number, groups == number)] + 1000 * np.eye((groups == number).sum())
        assert len(own) == 1 or (own.min(axis=1) < 2 * distance).all()


def test_validation_gets_its_share_of_each_class_and_leaves_some() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((40, 4), int)
    counts[np.arange(40), np.arange(40) % 4] = rng.integers(6, 80, 40)
    chosen = choose_groups(counts, 0.2, seed=1)
    share = counts[chosen].sum(axis=0) / counts.sum(axis=0)
    assert (abs(share - 0.2) < 0.06).all()
    assert np.array_equal(chosen, choose_groups(counts, 0.2, seed=1))
    # A class of one group stays in training, where it is of use.
    counts[:, 3] = 0
    counts[5, 3] = 9
    assert not choose_groups(counts[:6] * [[0, 0, 0, 1]] + [[4, 0, 0, 0]], 0.2, seed=1)[5]


def test_every_labelled_valid_pixel_trains_or_validates_once(mosaic: dict[str, Any]) -> None:
    labels = draw(mosaic)
    manifest = make_stacks(PreprocessConfig(**mosaic))
    train, val = on_mosaic(manifest, "train"), on_mosaic(manifest, "val")
    assert np.array_equal(train + val, labels) and not (train & val).any()
    found = manifest.provenance["labelled"]
    assert found["given"] == (labels > 0).sum() == found["training"] + found["validation"]
    assert 0.1 < found["validation"] / found["given"] < 0.35
    assert set(np.unique(val)) == set(np.unique(train)) == {0, 1, 2, 3}
    whole = ndimage.label(labels, np.ones((3, 3)))[0]
    assert not set(whole[train > 0].tolist()) & set(whole[val > 0].tolist())


def test_training_images_lack_what_validates_and_validation_images_lack_nothing(
    mosaic: dict[str, Any],
) -> None:
    labels = draw(mosaic)
    manifest = make_stacks(PreprocessConfig(**mosaic))
    held = on_mosaic(manifest, "val") > 0
    with rasterio.open(mosaic["bands"][0]) as file:
        missing = (file.read() == 0).any(axis=0)
    for stack in manifest.stacks:
        invalid = np.isnan(np.load(stack.image)).any(axis=-1)
        unseen = held | missing if stack.split == "train" else missing
        assert np.array_equal(invalid, unseen[stack.window.slices])
        # As much of the mosaic as --gap says lies around the labels.
        rows, cols = np.nonzero(np.load(stack.masks) != 255)
        top, left = max(0, rows.min() + stack.window.row - 20), max(0, cols.min() + stack.window.col - 20)
        assert (stack.window.row, stack.window.col) == (top, left)
    train = [np.load(s.image).reshape(-1, 14) for s in manifest.of("train")]
    values = np.concatenate(train).astype(np.float64)
    values = values[~np.isnan(values).any(axis=1)]
    assert np.allclose(manifest.statistics.mean, values.mean(axis=0), rtol=1e-6)
    assert labels.any()


def test_polygons_that_touch_stay_together_and_points_count(mosaic: dict[str, Any]) -> None:
    pairs = [(1 + k % 2, square(20, 10 + 6 * k)) for k in range(4)]
    points = [(3, Point(TRANSFORM @ (15.5 + 30 * k, 150.5))) for k in range(8)]
    alone = [(1 + k % 2, square(80, 10 + 45 * k)) for k in range(5)]
    labels = draw(mosaic, pairs + points + alone)
    manifest = make_stacks(PreprocessConfig(**mosaic))
    val, train = on_mosaic(manifest, "val"), on_mosaic(manifest, "train")
    assert (val[20:26, 10:34] > 0).all() or (train[20:26, 10:34] > 0).all()
    assert ((val == 3).sum(), (train == 3).sum()) in {(1, 7), (2, 6)}
    assert np.array_equal(val + train, labels)


def test_patches_are_grouped_as_far_as_the_labels_allow() -> None:
    def pixels_at(cols: list[int], classes: list[int]) -> list[LabelledPixels]:
        number = np.array(cols, np.int32)
        return [LabelledPixels(np.zeros_like(number), number, np.array(classes, np.uint8), 0 * number)]

    far = split_groups(pixels_at([0, 300, 600, 900], [1, 2, 1, 2]), [""], 2, 0.5, 76, 1)
    near = split_groups(pixels_at([0, 30, 60, 90], [1, 2, 1, 2]), [""], 2, 0.5, 76, 1)
    assert (far.distance, near.distance) == (76, 19)
    assert near.sides == far.sides == 2
    # Fields that touch are patches of their own where nothing else can be divided.
    fields = split_groups(pixels_at([0, 1, 2, 3], [1, 2, 1, 2]), [""], 2, 0.5, 76, 1)
    assert (fields.distance, fields.sides) == (0, 2)
    assert len(set(fields.groups.tolist())) == 4
    one_group = split_groups(pixels_at([0, 1, 2, 3], [1, 1, 1, 1]), [""], 2, 0.5, 76, 1)
    assert one_group.sides == 1


@pytest.mark.integration
def test_validation_by_polygons_all_none_and_the_ground_of_another_folder(
    mosaic: dict[str, Any], tmp_path: Path
) -> None:
    labels = draw(mosaic)
    area = geopandas.GeoDataFrame(geometry=[square(0, 0, 60)], crs=UTM)
    area.to_file(tmp_path / "area.gpkg")
    expected = np.where((np.indices(SHAPE) < 60).all(axis=0), labels, 0)
    given = {"validation": (str(tmp_path / "area.gpkg"),)}
    first = make_stacks(PreprocessConfig(**mosaic | given))
    assert np.array_equal(on_mosaic(first, "val"), expected)
    again = {"validation": (mosaic["out"],), "out": str(tmp_path / "again")}
    assert np.array_equal(on_mosaic(make_stacks(PreprocessConfig(**mosaic | again)), "val"), expected)
    for word, split in (("none", "train"), ("all", "val")):
        changed = {"validation": (word,), "out": str(tmp_path / word)}
        manifest = make_stacks(PreprocessConfig(**mosaic | changed))
        assert np.array_equal(on_mosaic(manifest, split), labels) and len(manifest.of(split)) > 0


@pytest.mark.parametrize("gap", [0, 20, 76, 150])
def test_labels_within_the_gap_of_validating_polygons_do_not_train(
    mosaic: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, gap: int
) -> None:
    labels = draw(mosaic)
    geopandas.GeoDataFrame(geometry=[square(0, 0, 60)], crs=UTM).to_file(tmp_path / "area.gpkg")
    options = mosaic | {"validation": (str(tmp_path / "area.gpkg"),), "gap": gap, "split": "patches"}
    manifest = make_stacks(PreprocessConfig(**options))
    held, trained = on_mosaic(manifest, "val"), on_mosaic(manifest, "train")
    apart = ndimage.distance_transform_cdt(held == 0, "chessboard")
    others = [(labels == number) & (held == 0) for number in (1, 2, 3)]
    kept = next(
        k for k in (gap, gap // 2, gap // 4, gap // 8)
        if all(2 * (own & (apart <= k)).sum() <= own.sum() for own in others)
    )  # fmt: skip
    assert np.array_equal(trained, np.where(apart > kept, labels, 0)) and trained.any()
    assert manifest.provenance["labelled"]["hidden"] == ((apart <= kept) & (held == 0) & (labels > 0)).sum()
    told = [r.getMessage() for r in caplog.records if "validating ones train" in r.getMessage()]
    assert len(told) == (kept < 76)
    assert all(f"more than {kept} pixels" in said and ("half" in said) == (kept < gap) for said in told)


def test_a_gap_leaves_half_of_each_class_however_labels_lie() -> None:
    rng = np.random.default_rng(0)
    for trial in range(20):
        places = np.unique(rng.integers(0, 200, (400, 2)), axis=0).astype(np.int32)
        rows, cols = places.T
        pixels = LabelledPixels(rows, cols, rng.integers(1, 4, len(rows)).astype(np.uint8), rows * 0)
        groups = group_pixels(rows, cols, 1)
        validates = rng.random(groups.max() + 1) < rng.uniform(0.02, 0.9)
        split = leave_gap([pixels], Split(groups, validates, 1), 3, 76)
        held = validates[groups]
        apart = np.abs(places[:, None] - places[held][None]).max(axis=-1).min(axis=1, initial=10**6)
        assert np.array_equal(split.left_out, ~held & (apart <= split.gap)), trial
        for k in range(1, 4):
            own = (pixels.classes == k) & ~held
            assert 2 * (own & split.left_out).sum() <= own.sum()
        if split.gap < 76:
            lost = [
                2 * ((pixels.classes == k) & ~held & (apart <= 2 * split.gap + 1)).sum()
                > ((pixels.classes == k) & ~held).sum()
                for k in range(1, 4)
            ]
            assert any(lost)


@pytest.mark.parametrize(
    "options", [{"split": "stacks"}, {"validation": ("0",)}, {"stacks": 3}], ids=lambda o: next(iter(o))
)
def test_what_is_about_stacks_splits_by_stacks(mosaic: dict[str, Any], options: dict[str, Any]) -> None:
    draw(mosaic)
    manifest = make_stacks(PreprocessConfig(**mosaic | options))
    assert "groups" not in manifest.provenance["labelled"]
    assert not any(stack.patches for stack in manifest.stacks)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"stacks": 2}, "--stacks is 2"), ({"validation": ("0", "1")}, "--validation names stacks")],
)
def test_patches_with_what_is_about_stacks_are_refused(
    mosaic: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    draw(mosaic)
    with pytest.raises(InputError, match=told):
        make_stacks(PreprocessConfig(**mosaic | options, split="patches"))


def test_labels_of_one_patch_are_split_by_stacks_or_refused(mosaic: dict[str, Any]) -> None:
    draw(mosaic, [(1, square(100, 60, 40)), (1, square(100, 100, 40))])
    small = mosaic | {"size": 64, "gap": 0}
    with pytest.raises(InputError, match="only 'water'"):
        make_stacks(PreprocessConfig(**small))
    with pytest.raises(InputError, match="all of them touch"):
        make_stacks(PreprocessConfig(**small | {"split": "patches", "overwrite": True}))


@pytest.mark.integration
def test_labels_too_scattered_to_write_down_are_split_by_stacks_or_refused(
    mosaic: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(mosaic)
    monkeypatch.setattr("lulc.preprocessing.plan.MOST_RECTANGLES", len(POLYGONS) - 1)
    with pytest.raises(InputError, match="more than 24 rectangles"):
        make_stacks(PreprocessConfig(**mosaic, split="patches"))
    by_stacks = make_stacks(PreprocessConfig(**mosaic | {"overwrite": True, "size": 64, "gap": 0}))
    assert by_stacks.of("val") and not any(stack.patches for stack in by_stacks.stacks)
    # One for each square, and more for those that missing pixels or the places of stacks cut.
    monkeypatch.setattr("lulc.preprocessing.plan.MOST_RECTANGLES", 2 * len(POLYGONS))
    by_patches = make_stacks(PreprocessConfig(**mosaic, overwrite=True))
    assert all(stack.patches for stack in by_patches.stacks)


def test_only_the_patches_of_training_stacks_are_land_that_was_trained_on(mosaic: dict[str, Any]) -> None:
    # A frame of fields around others: what holds it would hold these as well.
    inner = [(2 + k % 2, square(130 + 8 * (k // 3), 100 + 8 * (k % 3))) for k in range(9)]
    frame = square(124, 94, 40).difference(square(128, 98, 30))
    draw(mosaic, [*POLYGONS[:20], (1, frame), *inner])
    manifest = make_stacks(PreprocessConfig(**mosaic))
    with open_source(mosaic["bands"][0]) as source:
        grid = source.grid
    trained = np.zeros(SHAPE, bool)
    for region in read_ground(mosaic["out"], None, grid) or ():
        inside = region.within(grid.extent, grid)
        trained |= inside if inside is not None else False
    assert np.array_equal(trained, on_mosaic(manifest, "train") > 0)
    held = {r.name: r.within(grid.extent, grid) for r in read_regions(mosaic["out"], grid)}
    val = sum(inside.astype(int) for name, inside in held.items() if "validation" in name)
    assert np.array_equal(val > 0, on_mosaic(manifest, "val") > 0)


def test_stacks_of_one_folder_share_pixels_and_no_labels(mosaic: dict[str, Any], tmp_path: Path) -> None:
    draw(mosaic)
    first = make_stacks(PreprocessConfig(**mosaic))
    assert find_overlaps(first.stacks, 20) == []
    other = make_stacks(PreprocessConfig(**mosaic | {"out": str(tmp_path / "other"), "validation": ("all",)}))
    overlaps = find_overlaps([*first.of("train"), *other.stacks])
    hidden = {(o.train.name, o.window.row, o.window.col) for o in overlaps}
    assert hidden >= {(s.name, p.row, p.col) for s in first.of("train") for p in s.patches}


def test_the_manifest_read_again_knows_the_patches(mosaic: dict[str, Any]) -> None:
    draw(mosaic)
    manifest = make_stacks(PreprocessConfig(**mosaic))
    again = load_manifest(mosaic["out"])
    assert [s.patches for s in again.stacks] == [s.patches for s in manifest.stacks]
    for stack in again.stacks:
        held = np.zeros(stack.shape, int)
        for patch in stack.patches:
            held[patch.slices] += 1
        assert np.array_equal(held, (np.load(stack.masks) != 255).astype(int))


@pytest.mark.integration
def test_an_interrupted_preparation_continues_to_the_same_bytes(
    mosaic: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lulc.preprocessing import preprocess

    draw(mosaic)
    make_stacks(PreprocessConfig(**mosaic | {"out": str(tmp_path / "whole")}))
    calls = iter(range(100))

    def breaks(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return cut(*arguments)

    cut = preprocess.cut
    monkeypatch.setattr(preprocess, "cut", breaks)
    with pytest.raises(KeyboardInterrupt):
        make_stacks(PreprocessConfig(**mosaic))
    make_stacks(PreprocessConfig(**mosaic))
    names = sorted(p.name for p in (tmp_path / "whole").glob("*.npy"))
    assert names and all(
        (tmp_path / "whole" / n).read_bytes() == (Path(mosaic["out"]) / n).read_bytes() for n in names
    )


def test_a_small_mosaic_of_many_labels_is_split_by_its_fields(mosaic: dict[str, Any]) -> None:
    """One stack holds all: no room to set another aside, so that fields that touch are divided."""
    fields = [
        (1 + (row + col) % 3, square(10 + 45 * row, 10 + 45 * col, 45))
        for row in range(4)
        for col in range(5)
    ]
    labels = draw(mosaic, fields)
    assert (labels > 0).mean() > 0.6
    manifest = make_stacks(PreprocessConfig(**mosaic | {"size": 850}))
    train, val = on_mosaic(manifest, "train"), on_mosaic(manifest, "val")
    assert np.array_equal(train + val, labels) and manifest.provenance["labelled"]["distance"] == 0
    assert set(np.unique(val)) == set(np.unique(train)) == {0, 1, 2, 3}
    with pytest.raises(InputError, match="no training stack is left"):
        make_stacks(PreprocessConfig(**mosaic | {"size": 850, "split": "stacks", "overwrite": True}))


def test_cross_validation_hides_labels_near_the_patches_that_it_leaves_out(mosaic: dict[str, Any]) -> None:
    """Training images show them in other folds, so that the gap counts as between any two stacks."""
    draw(mosaic, [*POLYGONS, (1, square(124, 60, 8)), (2, square(60, 124, 8))])
    make_stacks(PreprocessConfig(**mosaic | {"validation": ("none",), "gap": 8}))
    config = TrainConfig(data=(mosaic["out"],), out="run", cross_validate="stacks")
    manifest = load_manifest(mosaic["out"])
    windows = {f"stacks/{stack.name}": stack.window for stack in manifest.stacks}
    folds = leave_one_out(config)
    assert len(folds) > 1
    for _, dataset in folds:
        masks = {True: np.zeros(SHAPE, bool), False: np.zeros(SHAPE, bool)}
        for held, tiles in ((True, dataset.validation), (False, dataset.training)):
            for tile in tiles:
                masks[held][windows[tile.name].slices] |= np.asarray(tile.masks[:, :]) != 255
        assert masks[True].any() and masks[False].any()
        assert not (ndimage.binary_dilation(masks[True], np.ones((3, 3)), 8) & masks[False]).any()


@pytest.mark.integration
def test_chips_that_share_ground_train_or_validate_together(mosaic: dict[str, Any], tmp_path: Path) -> None:
    labels = draw(mosaic)
    with rasterio.open(mosaic["bands"][0]) as file:
        bands, profile = file.read(), file.profile
    # Two that overlap by a third, and one apart.
    for name, col in (("a", 0), ("b", 60), ("c", 170)):
        place = {"width": 90, "transform": TRANSFORM * Affine.translation(col, 0)}
        with rasterio.open(tmp_path / f"{name}_chip.tif", "w", **profile | place) as file:
            file.write(bands[:, :, col : col + 90])
            file.descriptions = BANDS
    chips = {"bands": (str(tmp_path / "*_chip.tif"),), "gap": 5, "validation": ("0.4",)}
    manifest = make_stacks(PreprocessConfig(**mosaic | chips))
    split = {"train": set(), "val": set()}
    for stack in manifest.stacks:
        rows, cols = np.nonzero(np.load(stack.masks) != 255)
        east = round((stack.grid.transform.c - TRANSFORM.c) / 10)
        north = round((TRANSFORM.f - stack.grid.transform.f) / 10)
        split[stack.split] |= set(zip((rows + north).tolist(), (cols + east).tolist(), strict=True))
    assert split["train"] and split["val"] and not split["train"] & split["val"]
    assert len(split["train"] | split["val"]) == (labels[:, :150] > 0).sum() + (labels[:, 170:] > 0).sum()


def test_stack_numbers_on_a_mosaic_of_one_stack_are_told_that_there_is_no_room(
    mosaic: dict[str, Any],
) -> None:
    draw(mosaic)
    with pytest.raises(InputError, match="no training stack is left"):
        make_stacks(PreprocessConfig(**mosaic | {"size": 850, "validation": ("0",)}))
