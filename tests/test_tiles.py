"""What lies in a folder of stacks is what its manifest says, or it is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.schema import CHANNELS, InputError
from lulc.core.statistics import Statistics
from lulc.core.storage import sha256_of
from lulc.core.windows import Window
from lulc.datasets.arrays import NpyWriter
from lulc.datasets.loading import find_overlaps, load_manifest
from lulc.datasets.manifest import Manifest, StackFile, channel_units, open_tile
from lulc.labels.schemes import load_scheme

UTM = CRS.from_epsg(32635)
MOSAIC = GridSpec(UTM, Affine(10, 0, 500000, 0, -10, 6800000), 400, 400)
LEGEND = load_scheme("kaakonkulma-13").legend
SHAPE = (40, 48)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image in physical units, with an invalid corner, and masks with as many ignored pixels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(1000, 200, (*SHAPE, 14)).astype(np.float32)
    masks = rng.integers(1, 14, SHAPE).astype(np.uint8)
    image[:5, :7] = np.nan
    masks[:5, :7] = 255
    return image, masks


def stack_in(folder: Path, name: str, window: Window, seed: int = 0) -> StackFile:
    image, masks = scene(seed)
    split, index = name.split("_")
    paths = (folder / f"{split}_image_{index}.npy", folder / f"{split}_masks_{index}.npy")
    np.save(paths[0], image)
    np.save(paths[1], masks)
    return StackFile(
        name, split, *paths, SHAPE, tuple(np.bincount(masks.ravel(), minlength=256)[1:14].tolist()),
        number=0, grid=MOSAIC.crop(window), window=window, statistics=Statistics.of(image),
        sha256=(sha256_of(paths[0]), sha256_of(paths[1])),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder of two stacks."""
    folder = tmp_path / "stacks"
    folder.mkdir()
    stacks = (
        stack_in(folder, "train_0", Window(0, 0, *SHAPE), 1),
        stack_in(folder, "val_0", Window(40, 48, *SHAPE), 2),
    )
    channels = tuple({"name": n, "unit": u, "coding": "read"} for n, u in channel_units().items())
    assert stacks[0].statistics
    Manifest(folder, channels, "kaakonkulma-13", LEGEND, stacks, stacks[0].statistics, key="k").write()
    return folder


def test_a_manifest_comes_back_as_it_was_written(folder: Path) -> None:
    first = load_manifest(folder)
    first.verify()
    first.write()
    assert load_manifest(folder) == first
    assert [s.name for s in first.of("val")] == ["val_0"]
    assert first.class_counts("train").sum() == SHAPE[0] * SHAPE[1] - 35


def test_tiles_are_memory_mapped(folder: Path) -> None:
    image, masks = open_tile(load_manifest(folder).stacks[0])
    expected = scene(1)
    assert isinstance(image, np.memmap) and isinstance(masks, np.memmap)
    assert np.array_equal(image[3:9, 2:30], expected[0][3:9, 2:30], equal_nan=True)
    assert np.array_equal(masks, expected[1])


def test_labels_in_ignored_windows_read_as_255_whatever_is_sliced(folder: Path) -> None:
    stack = load_manifest(folder).stacks[0]
    expected = scene(1)[1]
    expected[10:20, 30:48] = 255
    masks = open_tile(stack, ignore=[Window(10, 30, 10, 18)])[1]
    assert np.array_equal(masks[0:40, 0:48], expected)
    assert np.array_equal(masks[13:40, 29:33], expected[13:40, 29:33])
    assert np.array_equal(masks[:5, -6:], expected[:5, -6:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["stacks"][0]["image"].update(file="../secret.npy"), "does not match"),
        (lambda d: d["stacks"][0]["image"].update(file="/etc/passwd"), "does not match"),
        (lambda d: d["statistics"]["mean"].__setitem__(0, 17.0), "seal"),
        (lambda d: d.update(format_version=2), "newer version"),
        (lambda d: d.pop("legend"), "legend"),
        (lambda d: d["stacks"].clear(), "stacks"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(folder: Path, change: Any, says: str) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=says):
        load_manifest(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_manifest_with_flipped_bytes_is_refused_or_equal(folder: Path, data: st.DataObject) -> None:
    path = folder / "manifest.json"
    content = bytearray(path.read_bytes())
    expected = load_manifest(folder)
    place = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytes(content[:place]) + bytes([content[place] ^ flip]) + bytes(content[place + 1 :])
    try:
        path.write_bytes(damaged)
        found = load_manifest(folder)
    except InputError:
        return
    finally:
        path.write_bytes(bytes(content))
    assert found == expected


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    image = folder / "train_image_0.npy"
    shutil.move(image, tmp_path / "elsewhere.npy")
    image.symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(InputError, match="leads out"):
        load_manifest(folder)


@pytest.mark.parametrize("name", ["train_image_0.npy", "val_masks_0.npy"])
def test_a_damaged_stack_is_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for damaged in (content[:-1], content[:100], b"", b"\x93NUMPY\x09\x00" + content[8:], content + b"\0"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(InputError, match=name):
            load_manifest(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        load_manifest(folder)


def test_flipped_pixels_are_found_by_verifying(folder: Path) -> None:
    path = folder / "val_image_0.npy"
    content = bytearray(path.read_bytes())
    content[-77] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="val_image_0"):
        load_manifest(folder).verify()


def test_objects_and_lying_headers_are_refused(folder: Path) -> None:
    path = folder / "train_image_0.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="type is object"):
        load_manifest(folder)
    for shape in ((2**40, 2**40, 14), (-4, 3, 14), (0, 0, 14), (3, 3, 14)):
        with open(path, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(b"\0" * 64)
        with pytest.raises(InputError, match="train_image_0"):
            load_manifest(folder)
    np.save(path, np.zeros((*SHAPE, 14), np.complex64))
    with pytest.raises(InputError, match="complex"):
        load_manifest(folder)


def test_strips_make_the_file_that_numpy_writes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(11, 5, 3)).astype(np.float32)
    with NpyWriter(tmp_path / "a.npy", array.dtype, array.shape) as writer:
        writer.write(array[:4])
        writer.write(array[4:])
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with (
        pytest.raises(ValueError, match="missing"),
        NpyWriter(tmp_path / "c.npy", array.dtype, array.shape) as writer,
    ):
        writer.write(array[:4])


def located(split: str, grid: GridSpec) -> StackFile:
    return StackFile(f"{split}_0", split, Path("i.npy"), Path("m.npy"), grid.shape, (), grid=grid)


def test_overlaps_are_found_by_grids_across_folders() -> None:
    train = located("train", MOSAIC.crop(Window(0, 0, 100, 100)))
    val = located("val", MOSAIC.crop(Window(90, 60, 100, 100)))
    far = located("val", MOSAIC.crop(Window(100, 100, 100, 100)))
    (overlap,) = find_overlaps([train, val, far])
    assert (overlap.train, overlap.val, overlap.window) == (train, val, Window(90, 60, 10, 40))
    assert [o.window for o in find_overlaps([train, far], gap=3)] == [Window(97, 97, 3, 3)]
    assert not find_overlaps([val, far])


def test_overlaps_of_other_pixel_sizes_and_crs_are_found() -> None:
    train = located("train", MOSAIC.crop(Window(0, 0, 100, 100)))
    coarse = located("val", GridSpec(UTM, Affine(20, 0, 500500, 0, -20, 6799500), 10, 10))
    assert [o.window for o in find_overlaps([train, coarse])] == [Window(50, 50, 20, 20)]
    # About 480 m east and 850 m south of the corner.
    degrees = Affine(1e-4, 0, 27.009, 0, -1e-4, 61.33)
    other = located("val", GridSpec(CRS.from_epsg(4326), degrees, 9, 9))
    (found,) = find_overlaps([train, other])
    assert 0 < found.window.height <= 30 and 0 < found.window.width <= 30
    assert not find_overlaps([train, StackFile("val_0", "val", Path("i"), Path("m"), (9, 9), ())])


PICKLED = Statistics(tuple(np.linspace(500, 2000, 14)), tuple(np.linspace(50, 900, 14)))


def original(
    folder: Path, name: str, seed: int, *, standardised: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    image, masks = scene(seed)
    floats = np.where(masks == 255, np.nan, masks).astype(np.float32)
    stored = (image - PICKLED.mean) / PICKLED.std if standardised else image
    split, index = name.split("_")
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{split}_image_{index}.npy", stored.astype(np.float32))
    np.save(folder / f"{split}_masks_{index}.npy", floats)
    return image, masks


def save_pickle(folder: Path) -> None:
    numbers = ([np.float64(v) for v in PICKLED.mean], [np.float64(v) for v in PICKLED.std])
    (folder / "train_mean_and_std.obj").write_bytes(pickle.dumps(numbers))


def test_a_folder_of_the_original_is_turned_back_into_physical_units(tmp_path: Path) -> None:
    image, masks = original(tmp_path, "train_0", 1)
    original(tmp_path, "val_0", 2)
    save_pickle(tmp_path)
    manifest = load_manifest(tmp_path)
    assert [s.name for s in manifest.stacks] == ["train_0", "val_0"]
    assert manifest.statistics.mean == pytest.approx(PICKLED.mean)
    assert [c["name"] for c in manifest.channels] == list(CHANNELS)
    opened, labels = open_tile(manifest.stacks[0])
    assert opened.shape == (*SHAPE, 14) and opened[0:2, 0:2].dtype == np.float32
    assert np.allclose(opened[1:30, 3:40], image[1:30, 3:40], rtol=1e-5, equal_nan=True)
    assert labels[0:40, 0:48].dtype == np.uint8 and np.array_equal(labels[0:40, 0:48], masks)
    counts = np.bincount(masks.ravel(), minlength=256)[1:14]
    assert manifest.stacks[0].class_counts == tuple(counts)


def test_standardised_stacks_without_statistics_are_refused_unless_told(tmp_path: Path) -> None:
    original(tmp_path, "train_0", 1)
    with pytest.raises(InputError, match="--already-standardised"):
        load_manifest(tmp_path)
    manifest = load_manifest(tmp_path, already_standardised=True)
    assert (manifest.statistics.mean, manifest.statistics.std) == ((0.0,) * 14, (1.0,) * 14)
    assert abs(np.nanmean(open_tile(manifest.stacks[0])[0][0:40, 0:48])) < 10


def test_stacks_in_physical_units_are_not_scaled_twice(tmp_path: Path) -> None:
    image, _ = original(tmp_path, "train_0", 1, standardised=False)
    save_pickle(tmp_path)
    manifest = load_manifest(tmp_path)
    assert np.array_equal(open_tile(manifest.stacks[0])[0][0:40, 0:48], image, equal_nan=True)
    assert manifest.statistics.mean == pytest.approx(Statistics.of(image).mean)


def test_stacks_may_be_rasters(tmp_path: Path) -> None:
    image, masks = scene(3)
    for name, array in (("train_image_0", np.moveaxis(image, -1, 0)), ("train_masks_0", masks[None])):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", height=SHAPE[0], width=SHAPE[1], count=len(array),
            dtype=array.dtype, crs=UTM, transform=MOSAIC.transform,
        ) as data:  # fmt: skip
            data.write(array)
    opened, labels = open_tile(load_manifest(tmp_path).stacks[0])
    assert np.array_equal(opened[4:20, 5:48], image[4:20, 5:48], equal_nan=True)
    assert np.array_equal(labels[4:20, 5:48], masks[4:20, 5:48])


def test_a_stack_of_the_original_is_an_image_and_its_masks(tmp_path: Path) -> None:
    original(tmp_path, "train_0", 1)
    save_pickle(tmp_path)
    masks = np.load(tmp_path / "train_masks_0.npy")
    for value, says in ((6.5, "6.5"), (14, "class 14"), (-3, "-3")):
        masks[20, 20] = value
        np.save(tmp_path / "train_masks_0.npy", masks)
        with pytest.raises(InputError, match=says):
            load_manifest(tmp_path)
    (tmp_path / "train_masks_0.npy").unlink()
    with pytest.raises(InputError, match="no train_masks_0"):
        load_manifest(tmp_path)
    with pytest.raises(InputError, match=r"preprocess\.py"):
        load_manifest(tmp_path / "nothing")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    original(tmp_path, "train_0", 1)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "canary",))

    (tmp_path / "train_mean_and_std.obj").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="mean_and_std"):
        load_manifest(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_the_real_masks_and_pickle_of_the_original_are_read(shared: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        shutil.copy(shared / f"data/kaakonkulma-labels/train_masks_{number}.npy", tmp_path)
        standardised = np.random.default_rng(number).normal(size=(850, 850, 14)).astype(np.float32)
        np.save(tmp_path / f"train_image_{number}.npy", standardised)
    shutil.copy(shared / "legacy/train_mean_and_std.obj", tmp_path)
    manifest = load_manifest(tmp_path)
    assert manifest.statistics.mean[0] == pytest.approx(864.98, abs=0.01)
    assert manifest.stacks[0].class_counts[:3] == (22332, 3116, 2884)
    assert manifest.class_counts("train").sum() == 2 * 850 * 850
    image = open_tile(manifest.stacks[0])[0][0:300, 0:300]
    assert image[..., 3].mean() == pytest.approx(693.48, abs=5)
