"""Crops: image and labels stay together, nothing invalid leaks, and batches depend on the seed alone."""

from __future__ import annotations

import logging
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lulc.core.schema import IGNORE, InputError
from lulc.training.data.augmentation import Flip, rotate, square_around
from lulc.training.data.batches import BatchConfig, TileGenerator, cut_ahead
from lulc.training.data.dataset import Tile, class_targets

pytestmark = pytest.mark.integration

ANGLES = [k * 22.5 for k in range(16)]


def make_tile(rng, height=200, width=180, bands=3, classes=4, name="stack"):
    masks = rng.integers(1, classes + 1, (height, width), dtype=np.uint8)
    image = rng.uniform(0, 3000, (height, width, bands)).astype(np.float32)
    image[..., 0] = masks * np.float32(1000)
    return Tile(name, image, masks)


def make_generator(tiles, **changes):
    options = {
        "steps": 6, "batch_size": 3, "crop_sizes": (16, 32), "targets": class_targets(4), "rotations": 16,
        "augmentations": (Flip(),), "seed": 5,
    } | changes  # fmt: skip
    return TileGenerator(tiles, BatchConfig(**options))


def ramps(side):
    rows, cols = np.mgrid[:side, :side].astype(np.float32)
    return np.stack([rows, cols], axis=-1)


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_multiples_of_90_degrees_move_pixels_and_compute_nothing(angle):
    image = ramps(8)
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    turned_image, turned_labels = rotate(image, labels, angle, 8)
    np.testing.assert_array_equal(turned_image, np.rot90(image, angle // 90))
    np.testing.assert_array_equal(turned_labels, np.rot90(labels, angle // 90))


@pytest.mark.parametrize("angle", [a for a in ANGLES if a % 90])
def test_a_rotated_crop_lies_where_the_rotation_matrix_says(angle):
    side = 16
    outer = square_around(side, angle)
    image, labels = ramps(outer), np.zeros((outer, outer), np.uint8)
    turned, _ = rotate(image, labels, angle, side)
    turn = np.deg2rad(angle)
    v, u = np.mgrid[:side, :side] - (side - 1) / 2
    rows = (outer - 1) / 2 + u * np.sin(turn) + v * np.cos(turn)
    cols = (outer - 1) / 2 + u * np.cos(turn) - v * np.sin(turn)
    np.testing.assert_allclose(turned, np.stack([rows, cols], -1), atol=0.05)


@pytest.mark.parametrize("angle", [22.5, 45.0, 112.5, 200.0, 337.5])
def test_bilinear_rotation_agrees_with_scipy(angle):
    side, rng = 24, np.random.default_rng(1)
    outer = square_around(side, angle)
    image = ndimage.gaussian_filter(rng.normal(0, 100, (outer, outer)), 2)[..., None].astype(np.float32)
    turned, _ = rotate(image, np.zeros((outer, outer), np.uint8), angle, side)
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    offset = (outer - 1) / 2 - matrix @ np.full(2, (side - 1) / 2)
    other = ndimage.affine_transform(image[..., 0], matrix, offset, (side, side), order=1)
    np.testing.assert_allclose(turned[..., 0], other, atol=0.03 * np.ptp(image))


@pytest.mark.parametrize("angle", ANGLES)
def test_no_corner_is_empty(angle):
    for side in (7, 16, 33, 64):
        outer = square_around(side, angle)
        image, labels = np.full((outer, outer, 2), 500, np.float32), np.full((outer, outer), 3, np.uint8)
        turned, turned_labels = rotate(image, labels, angle, side)
        assert turned.shape == (side, side, 2)
        np.testing.assert_allclose(turned, 500, rtol=1e-5)
        assert (turned_labels == 3).all()


@pytest.mark.parametrize("angle", [11.25, 22.5, 45.0, 247.5])
def test_labels_are_never_interpolated_and_stay_on_their_pixel(angle):
    side, rng = 32, np.random.default_rng(2)
    outer = square_around(side, angle)
    coarse = rng.choice(np.array([1, 5, 13, 255], np.uint8), (outer // 8 + 1, outer // 8 + 1))
    labels = np.kron(coarse, np.ones((8, 8), np.uint8))[:outer, :outer]
    image = labels[..., None].astype(np.float32)
    turned, turned_labels = rotate(image, labels, angle, side)
    assert set(np.unique(turned_labels)) <= {1, 5, 13, 255}
    # Inside a patch all four sources of a pixel are equal: there image and labels must agree.
    inside = np.isin(turned[..., 0].round(3), [1, 5, 13, 255])
    assert inside.mean() > 0.5
    agree = turned[..., 0].round().astype(np.uint8) == turned_labels
    assert agree[inside].mean() > 0.99


def test_an_invalid_pixel_spoils_its_bilinear_neighbours_and_no_other():
    side, angle, rng = 32, 22.5, np.random.default_rng(3)
    outer = square_around(side, angle)
    image = rng.uniform(100, 200, (outer, outer, 3)).astype(np.float32)
    holes = rng.random((outer, outer)) < 0.02
    holed = image.copy()
    holed[holes] = np.nan
    labels = np.zeros((outer, outer), np.uint8)
    clean, _ = rotate(image, labels, angle, side)
    turned, _ = rotate(holed, labels, angle, side)
    invalid = np.isnan(turned)
    assert (invalid.all(-1) == invalid.any(-1)).all()
    np.testing.assert_array_equal(turned[~invalid], clean[~invalid])
    touched, _ = rotate(holes[..., None].astype(np.float32), labels, angle, side)
    assert invalid[..., 0][touched[..., 0] > 0.01].all()
    assert 0 < invalid.mean() < 8 * holes.mean()


@given(side=st.integers(1, 400), angle=st.floats(0, 360, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_the_outer_square_holds_the_turned_one(side, angle):
    turn = np.deg2rad(angle)
    reach = (side - 1) * (abs(np.cos(turn)) + abs(np.sin(turn)))
    assert reach <= square_around(side, angle) - 1 + 1e-6


def test_flips_move_image_and_labels_together():
    rng = np.random.default_rng(4)
    labels = np.arange(25, dtype=np.uint8).reshape(5, 5)
    seen = set()
    for _ in range(40):
        image, flipped = Flip()(labels[..., None].astype(np.float32), labels, rng)
        np.testing.assert_array_equal(image[..., 0], flipped)
        seen.add(flipped.tobytes())
    assert len(seen) == 4


def test_a_batch_has_one_side_physical_units_and_class_indices():
    generator = make_generator([make_tile(np.random.default_rng(6))], rotations=1)
    images, labels = generator.batch(0, 0)
    assert images.dtype == np.float32 and images.shape in {(3, 16, 16, 3), (3, 32, 32, 3)}
    assert labels.dtype == np.uint8 and labels.shape == images.shape[:3]
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(images[..., 0], (labels + 1) * np.float32(1000))


def test_crops_come_from_every_stack_side_and_angle():
    rng = np.random.default_rng(7)
    tiles = [make_tile(rng, name=str(i), bands=3) for i in range(3)]
    for i, tile in enumerate(tiles):
        tile.image[..., 2] = i
    batches = [make_generator(tiles).batch(0, i) for i in range(40)]
    assert {int(images[0, 0, 0, 2].round()) for images, _ in batches} == {0, 1, 2}
    assert {images.shape[1] for images, _ in batches} == {16, 32}
    for images, _ in batches:
        assert len(np.unique(images[..., 2].round(2))) == 1


def test_a_seed_gives_the_same_batches_whatever_the_workers():
    tiles = [make_tile(np.random.default_rng(8))]
    alone = [make_generator(tiles).batch(3, i) for i in range(6)]
    for workers in (1, 4):
        ahead = list(cut_ahead(make_generator(tiles), 3, 0, workers))
        assert len(ahead) == 6
        for (a, b), (c, d) in zip(alone, ahead, strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)
    generator = make_generator(tiles)
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(lambda i: generator.batch(3, i)[0].sum(), [5, 4, 3, 2, 1, 0]))
    assert backwards[::-1] == [images.sum() for images, _ in alone]


def test_an_epoch_can_be_entered_in_its_middle():
    generator = make_generator([make_tile(np.random.default_rng(9))])
    rest = list(cut_ahead(generator, 1, 4, 2))
    assert len(rest) == 2
    np.testing.assert_array_equal(rest[0][0], generator.batch(1, 4)[0])


def test_epochs_and_seeds_differ():
    tiles = [make_tile(np.random.default_rng(10))]
    first = make_generator(tiles, crop_sizes=(16,))
    other = make_generator(tiles, crop_sizes=(16,), seed=6)
    batches = [first.batch(0, 0), first.batch(1, 0), first.batch(0, 1), other.batch(0, 0)]
    sums = [float(images.sum()) for images, _ in batches]
    assert len(set(sums)) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_band_makes_the_pixel_invalid_and_its_label_ignored(bad):
    tile = make_tile(np.random.default_rng(12))
    tile.image[::7, ::5, 1] = bad
    for index in range(6):
        images, labels = make_generator([tile], rotations=8).batch(0, index)
        invalid = np.isnan(images)
        assert invalid.any() and not np.isinf(images).any()
        assert (invalid.all(-1) == invalid.any(-1)).all()
        assert (labels[invalid[..., 0]] == IGNORE).all()


def test_crops_without_a_label_are_drawn_again():
    tile = make_tile(np.random.default_rng(13))
    tile.masks[:] = IGNORE
    tile.masks[90:120, 80:110] = 2
    for index in range(6):
        _, labels = make_generator([tile], rotations=1).batch(0, index)
        assert (labels != IGNORE).any(axis=(1, 2)).mean() > 0.6


def test_a_stack_without_labels_ends_in_ignored_crops_not_in_a_loop():
    tile = make_tile(np.random.default_rng(14))
    tile.masks[:] = 0
    assert (make_generator([tile]).batch(0, 0)[1] == IGNORE).all()


def test_sides_that_do_not_fit_are_left_out_for_that_stack_with_one_warning(caplog):
    rng = np.random.default_rng(15)
    small, large = make_tile(rng, 40, 40, name="small"), make_tile(rng, name="large")
    with caplog.at_level(logging.WARNING, "lulc"):
        generator = make_generator([small, large])
    assert len(caplog.records) == 1
    assert "'small' (40 px): 32" in caplog.text and "'large'" not in caplog.text
    sides = {generator.batch(0, i)[0].shape[1] for i in range(30)}
    assert sides == {16, 32}


def test_it_is_an_error_only_if_no_side_fits_any_stack(caplog):
    rng = np.random.default_rng(16)
    with pytest.raises(InputError, match=r"of 40 pixels, expected at least 93 for .* its rotation") as raised:
        make_generator([make_tile(rng, 40, 50)], crop_sizes=(64, 128))
    assert raised.value.hint == "Give `--crop-sizes 16` or `--rotations 4`."
    with pytest.raises(InputError, match=r"of --validation-crop-sizes, .* of 128 pixels\n") as raised:
        make_generator(
            [make_tile(rng, 112, 112)], crop_sizes=(128,), rotations=1, option="--validation-crop-sizes"
        )
    assert raised.value.hint == "Give `--validation-crop-sizes 112`."
    make_generator([make_tile(rng, 64, 64)], crop_sizes=(64, 128), rotations=4)
    assert "128" in caplog.text


def test_another_sampler_and_augmentation_slot_in():
    tile = make_tile(np.random.default_rng(17))

    def corner(tile, side, rng):
        return 0, 0

    def brighten(image, labels, rng):
        return image + 1, labels

    generator = make_generator(
        [tile], sampler=corner, augmentations=(brighten,), rotations=1, crop_sizes=(16,)
    )
    images, labels = generator.batch(0, 0)
    np.testing.assert_array_equal(images[0], tile.image[:16, :16] + 1)
    np.testing.assert_array_equal(labels[0], tile.masks[:16, :16] - 1)


def test_the_stack_is_read_only_where_a_crop_lies():
    class Counting:
        def __init__(self, array):
            self.array, self.shape, self.largest = array, array.shape, 0

        def __getitem__(self, key):
            part = self.array[key]
            self.largest = max(self.largest, part.shape[0], part.shape[1])
            return part

    tile = make_tile(np.random.default_rng(18))
    image = Counting(tile.image)
    make_generator([Tile("counted", image, tile.masks)]).batch(0, 0)
    assert 16 <= image.largest <= square_around(32, 45)


def test_one_class_is_learnt_against_the_rest():
    targets = class_targets(3, single_class=2)
    assert targets[[0, 1, 2, 3, 4, 255]].tolist() == [255, 0, 1, 0, 255, 255]


@pytest.mark.parametrize("driver", ["GTiff", "HFA"])
def test_crops_are_cut_from_raster_files_by_several_threads_alike(tmp_path, driver):
    rasterio = pytest.importorskip("rasterio")
    from lulc.datasets.arrays import open_layers

    tile = make_tile(np.random.default_rng(19))
    path = tmp_path / {"GTiff": "image.tif", "HFA": "image.img"}[driver]
    height, width, bands = tile.image.shape
    profile = {"driver": driver, "height": height, "width": width, "count": bands, "dtype": "float32"}
    profile |= {"crs": "EPSG:3067", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 67e5)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(tile.image, -1, 0))
    on_disk = Tile("raster", open_layers(path), tile.masks)
    cut = cut_ahead(make_generator([on_disk]), 0, 0, 4)
    for index, (images, labels) in enumerate(cut):
        expected_images, expected_labels = make_generator([tile]).batch(0, index)
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


@given(
    batch=st.integers(1, 12),
    processes=st.integers(1, 6),
    index=st.integers(0, 50),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_shares_of_any_number_of_processes_make_up_the_same_batch(batch, processes, index, seed):
    tile = make_tile(np.random.default_rng(6))
    options = {"batch_size": batch, "seed": seed}
    whole = make_generator([tile], **options).batch(2, index)
    bounds = [k * batch // processes for k in range(processes + 1)]
    shares = [
        make_generator([tile], **options, own_crops=range(*pair)).batch(2, index) for pair in pairwise(bounds)
    ]
    for array, parts in zip(whole, zip(*shares, strict=True), strict=True):
        np.testing.assert_array_equal(array, np.concatenate(parts))


def test_the_crops_of_a_batch_and_of_batches_beside_it_all_differ():
    generator = make_generator([make_tile(np.random.default_rng(7))], batch_size=5, crop_sizes=(16,))
    crops = [crop.tobytes() for epoch in (0, 1) for i in range(4) for crop in generator.batch(epoch, i)[0]]
    assert len(set(crops)) == len(crops) == 40


def test_batches_that_nobody_holds_give_their_memory_to_later_ones():
    generator = make_generator([make_tile(np.random.default_rng(0))], crop_sizes=(32,))

    def address(batch):
        return batch[0].__array_interface__["data"][0]

    held = generator.batch(0, 0)
    place = address(generator.batch(0, 1))
    assert address(generator.batch(0, 2)) == place != address(held)
    before = held[0].copy()
    generator.batch(0, 3)
    np.testing.assert_array_equal(held[0], before)


def test_the_end_of_an_epoch_gives_up_the_memory_of_its_batches():
    generator = make_generator([make_tile(np.random.default_rng(0))], crop_sizes=(64,), batch_size=16)
    tracemalloc.start()
    try:
        batches = cut_ahead(generator, 1, 0, 1)
        size = next(batches)[0].nbytes
        batches.close()
        assert tracemalloc.get_traced_memory()[0] < size / 2
    finally:
        tracemalloc.stop()
