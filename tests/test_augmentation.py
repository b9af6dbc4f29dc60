"""Augmentation: image and labels stay together, valid stays valid, and indices follow the bands."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lulc.config import TrainConfig
from lulc.core.schema import BANDS, CHANNELS, InputError
from lulc.rasters.indices import compute_indices
from lulc.training.data import augmentation
from lulc.training.data.augmentation import ChannelDropout, CopyPaste, Jitter, Mix, rotate, square_around
from lulc.training.data.batches import TileGenerator, cut_ahead
from lulc.training.data.crops import training_crops
from lulc.training.data.dataset import Tile, class_targets, open_dataset

BAND_UNIT = "reflectance x 10000"


def channels(coding="computed"):
    return [
        {"name": name, "unit": BAND_UNIT if name in BANDS else "code", "coding": coding}
        for name in CHANNELS
    ]  # fmt: skip


def make_crop(rng, side=24):
    bands = rng.uniform(200, 4000, (side, side, len(BANDS))).astype(np.float32)
    image = np.concatenate([bands, compute_indices(bands.copy())], axis=-1)
    image[3:6, 4:9] = np.nan
    return image, rng.integers(0, 5, (side, side)).astype(np.uint8)


CHANGES = [{"gain": 0.1}, {"offset": 40.0}, {"haze": 400.0}, {"gain": 0.05, "offset": 20.0, "haze": 200.0}]


@pytest.mark.parametrize("change", CHANGES)
def test_indices_are_those_of_the_changed_bands(change):
    image, labels = make_crop(np.random.default_rng(1))
    # Haze lies over half of the crops; with this seed over this one.
    changed, same = Jitter(channels(), **change)(image, labels, np.random.default_rng(3))
    np.testing.assert_allclose(
        changed[..., len(BANDS) :], compute_indices(changed[..., : len(BANDS)].copy()), rtol=1e-5
    )
    np.testing.assert_array_equal(same, labels)
    np.testing.assert_array_equal(np.isnan(changed), np.isnan(image))
    assert not np.allclose(changed[0, 0], image[0, 0])


def test_indices_that_were_read_stay_as_they_are():
    image, labels = make_crop(np.random.default_rng(3))
    changed, _ = Jitter(channels("read"), gain=0.2)(image, labels, np.random.default_rng(4))
    np.testing.assert_array_equal(changed[..., len(BANDS) :], image[..., len(BANDS) :])
    assert not np.allclose(changed[0, 0, : len(BANDS)], image[0, 0, : len(BANDS)])


def test_gain_is_one_factor_and_offset_one_sum_for_each_band():
    image, labels = make_crop(np.random.default_rng(5))
    valid = ~np.isnan(image[..., 0])
    bands = image[valid][:, : len(BANDS)]
    gained = Jitter(channels(), gain=0.1)(image, labels, np.random.default_rng(6))[0][valid]
    ratios = gained[:, : len(BANDS)] / bands
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[0], ratios.shape), rtol=1e-4)
    assert np.ptp(ratios[0]) > 0.01
    moved = Jitter(channels(), offset=50)(image, labels, np.random.default_rng(6))[0][valid]
    np.testing.assert_allclose(np.ptp(moved[:, : len(BANDS)] - bands, axis=0), 0, atol=0.01)


def test_haze_brightens_and_most_where_waves_are_short():
    image, labels = make_crop(np.random.default_rng(7))
    jitter = Jitter(channels(), haze=300)
    added = [
        np.nanmean(jitter(image, labels, np.random.default_rng(seed))[0] - image, axis=(0, 1))
        for seed in range(40)
    ]
    some = [a[: len(BANDS)] for a in added if a[0] > 1]
    assert 8 < len(some) < 32
    for a in some:
        assert (np.diff(a) < 0).all() and a[0] < 300 and a[-1] > 0


def test_jitter_without_a_reflectance_is_refused():
    with pytest.raises(InputError, match="no channel of the stacks is a reflectance"):
        Jitter([{"name": "B02", "unit": "unknown", "coding": "unknown"}], gain=0.1)


def test_dropped_channels_are_their_mean_and_one_always_stays():
    image, labels = make_crop(np.random.default_rng(8))
    mean = np.arange(len(CHANNELS)) * 10.0
    dropped = []
    for seed in range(60):
        changed, _ = ChannelDropout(1.0 if seed < 20 else 0.3, mean)(
            image, labels, np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(np.isnan(changed), np.isnan(image))
        valid = ~np.isnan(image[..., 0])
        gone = (changed[valid] == mean.astype(np.float32)).all(axis=0)
        np.testing.assert_array_equal(changed[valid][:, ~gone], image[valid][:, ~gone])
        dropped.append(gone.sum())
    assert set(dropped[:20]) == {len(CHANNELS) - 1}
    assert np.mean(dropped[20:]) == pytest.approx(0.3 * (len(CHANNELS) - 1), abs=1)


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_mixed_pixels_take_their_label_with_them(kind):
    rng = np.random.default_rng(9)
    labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (6, 16, 16))
    images = np.stack([labels, np.broadcast_to(np.arange(6)[:, None, None], labels.shape)], -1)
    images = images.astype(np.float32)
    mixed, mixed_labels = Mix(kind, 0.7)(images, labels, np.random.default_rng(10))
    np.testing.assert_array_equal(mixed[..., 0], mixed_labels)
    for i in range(6):
        origin = mixed[i, ..., 1].astype(int)
        assert set(np.unique(origin)) <= {i, (i + 1) % 6}
        pasted = origin != i
        if kind == "classmix" and pasted.any():
            other = labels[(i + 1) % 6]
            taken = np.unique(other[pasted])
            assert 255 not in taken and len(taken) == 2
            np.testing.assert_array_equal(np.isin(other, taken), pasted)
        if kind == "cutmix" and pasted.any():
            rows, cols = np.nonzero(pasted)
            assert pasted[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].all()
    assert 0 < (mixed[..., 1] != images[..., 1]).mean() < 1
    np.testing.assert_array_equal(Mix(kind, 0.0)(images, labels, rng)[0], images)


def test_a_batch_of_one_and_a_batch_without_labels_are_mixed_with_themselves():
    images, labels = np.ones((1, 8, 8, 2), np.float32), np.full((1, 8, 8), 255, np.uint8)
    for kind in ("cutmix", "classmix"):
        mixed, mixed_labels = Mix(kind, 1.0)(images, labels, np.random.default_rng(11))
        assert (mixed == images).all() and (mixed_labels == 255).all()


def make_donor():
    """Class 1 all over; two separate patches of class 2, one ragged; each pixel says where it is from."""
    masks = np.ones((60, 70), np.uint8)
    masks[5:15, 10:14] = 2
    masks[30:36, 40:50] = 2
    masks[36:40, 40:42] = 2
    rows, cols = np.mgrid[:60, :70]
    image = np.stack([masks * 100, rows, cols], -1).astype(np.float32)
    return Tile("donor", image, masks)


def test_pasted_components_are_whole_connected_and_labelled():
    donor = make_donor()
    paste = CopyPaste([donor], class_targets(2), mean=1.0, temperature=0.01)
    numbers, _ = ndimage.label(donor.masks == 2)
    sizes = set(np.bincount(numbers.ravel())[1:].tolist())
    seen = set()
    for seed in range(80):
        image, labels = np.zeros((90, 90, 3), np.float32), np.zeros((90, 90), np.uint8)
        image, labels = paste(image, labels, np.random.default_rng(seed))
        pasted = labels == 1
        np.testing.assert_array_equal(image[..., 0] == 200, pasted)
        if pasted.any() and not (
            pasted[0].any() or pasted[-1].any() or pasted[:, 0].any() or pasted[:, -1].any()
        ):
            seen.add(int(pasted.sum()))
        origin = image[pasted][:, 1:].astype(int)
        assert (donor.masks[origin[:, 0], origin[:, 1]] == 2).all()
    assert sizes <= seen


def test_copy_paste_leaves_its_argument_alone_and_pastes_no_invalid_pixel():
    donor = make_donor()
    donor.image[32, 44] = np.nan
    paste = CopyPaste([donor], class_targets(2), mean=3.0, temperature=0.01)
    image, labels = np.zeros((40, 40, 3), np.float32), np.zeros((40, 40), np.uint8)
    for seed in range(20):
        changed, _ = paste(image, labels, np.random.default_rng(seed))
        assert np.isfinite(changed).all()
    assert not image.any() and not labels.any()


def test_stacks_without_a_component_to_paste_change_nothing(monkeypatch):
    monkeypatch.setattr(augmentation, "LARGEST", 20)
    tile = Tile("whole", np.zeros((40, 40, 1), np.float32), np.ones((40, 40), np.uint8))
    paste = CopyPaste([tile], class_targets(1), mean=5.0, temperature=1.0)
    image, labels = np.full((8, 8, 1), 7, np.float32), np.full((8, 8), 255, np.uint8)
    assert paste(image, labels, np.random.default_rng(0))[0] is image


def test_components_are_found_in_pieces_too(monkeypatch):
    monkeypatch.setattr(augmentation, "BLOCK", 32)
    paste = CopyPaste([make_donor()], class_targets(2), mean=1.0, temperature=0.01)
    for component in paste._components[1]:
        assert component.row // 32 == (component.row + component.height - 1) // 32


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("angle", [0.0, 12.3, 90.0, 301.7])
def test_a_scaled_crop_lies_where_the_transform_says(angle, scale):
    side = 16
    outer = square_around(side, angle, scale)
    image = np.stack(np.mgrid[:outer, :outer], -1).astype(np.float32)
    labels = (image[..., 0] > (outer - 1) / 2).astype(np.uint8)
    turned, turned_labels = rotate(image, labels, angle, side, scale)
    turn = np.deg2rad(angle)
    v, u = (np.mgrid[:side, :side] - (side - 1) / 2) * scale
    rows = (outer - 1) / 2 + u * np.sin(turn) + v * np.cos(turn)
    cols = (outer - 1) / 2 + u * np.cos(turn) - v * np.sin(turn)
    np.testing.assert_allclose(turned, np.stack([rows, cols], -1), atol=0.06)
    clear = abs(rows - (outer - 1) / 2) > 0.6
    np.testing.assert_array_equal(turned_labels[clear], (rows > (outer - 1) / 2)[clear])
    assert np.isfinite(rotate(np.ones((outer, outer, 1), np.float32), labels, angle, side, scale)[0]).all()


EVERYTHING = {
    "rare_classes": 0.5, "balance": "classes", "copy_paste": 1.0, "rotations": 0, "scale": 1.3, "gain": 0.05,
    "offset_jitter": 20.0, "haze": 200.0, "channel_dropout": 0.1, "mix": "classmix", "batch_from": "any",
}  # fmt: skip


def test_with_all_of_it_a_seed_gives_the_same_batches_whatever_the_workers(write_stacks, tmp_path):
    folder = write_stacks(tmp_path / "stacks")
    options = {"data": (str(folder),), "out": "-", "crop_sizes": (16, 32), "steps": 6, "batch_size": 3}
    config = TrainConfig(**options, **EVERYTHING).resolved()
    dataset = open_dataset(config)
    alone = [training_crops(config, dataset).batch(1, i) for i in range(6)]
    for images, labels in alone:
        invalid = np.isnan(images)
        assert (invalid.all(-1) == invalid.any(-1)).all() and (labels[invalid[..., 0]] == 255).all()
        assert set(np.unique(labels)) <= {0, 1, 2, 255}
    for workers in (1, 3):
        again = cut_ahead(training_crops(config, dataset), 1, 0, workers)
        for (a, b), (c, d) in zip(alone, again, strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)


def test_batches_come_from_stacks_as_often_as_asked():
    tiles = [Tile(str(i), np.full((40, 40, 1), i, np.float32), np.ones((40, 40), np.uint8)) for i in range(3)]
    options = {"steps": 1, "batch_size": 1, "crop_sizes": (16,), "targets": class_targets(1)}
    generator = TileGenerator(tiles, **options, shares=[0.0, 0.25, 0.75])
    origins = [int(generator.batch(0, i)[0][0, 0, 0, 0]) for i in range(400)]
    assert np.bincount(origins, minlength=3) / 400 == pytest.approx([0, 0.25, 0.75], abs=0.07)
    assert generator.pixels_per_batch == 256


def test_crops_of_a_batch_come_from_one_stack_or_each_from_any_that_its_side_fits():
    sides = (40, 40, 24)
    tiles = [
        Tile(str(i), np.full((n, n, 1), i, np.float32), np.ones((n, n), np.uint8))
        for i, n in enumerate(sides)
    ]
    options = {"steps": 1, "batch_size": 4, "crop_sizes": (16, 32), "targets": class_targets(1)}
    for batch_from, mixed in (("one", False), ("any", True)):
        generator = TileGenerator(tiles, **options, shares=[0.5, 0.2, 0.3], batch_from=batch_from)
        batches = [generator.batch(0, i)[0] for i in range(300)]
        origins = {
            side: [b[:, 0, 0, 0].astype(int) for b in batches if b.shape[1] == side] for side in (16, 32)
        }
        assert any(len(set(of)) > 1 for of in origins[16]) == mixed
        assert not any(2 in of for of in origins[32])
        drawn = np.bincount(np.concatenate([np.ravel(of) for of in origins.values()]), minlength=3)
        assert drawn / drawn.sum() == pytest.approx([0.5, 0.2, 0.3], abs=0.06)


def test_a_process_cuts_its_share_of_a_batch_from_any_stack():
    tiles = [
        Tile(
            str(i),
            np.random.default_rng(i).normal(size=(40, 40, 1)).astype(np.float32),
            np.ones((40, 40), np.uint8),
        )
        for i in range(3)
    ]
    options = {
        "steps": 1,
        "batch_size": 4,
        "crop_sizes": (16,),
        "targets": class_targets(1),
        "batch_from": "any",
    }
    whole = TileGenerator(tiles, **options).batch(2, 5)[0]
    parts = [TileGenerator(tiles, **options, share=range(i, i + 2)).batch(2, 5)[0] for i in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
