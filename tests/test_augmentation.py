"""Augmentation: image and labels stay together, valid stays valid, and indices follow the bands."""

from __future__ import annotations

import numpy as np
import pytest

from lulc.config import TrainConfig
from lulc.core.schema import BANDS, CHANNELS, InputError
from lulc.rasters.indices import compute_indices
from lulc.training.data.augmentation import Jitter
from lulc.training.data.batches import BatchConfig, TileGenerator, cut_ahead
from lulc.training.data.crops import training_crops
from lulc.training.data.dataset import Tile, class_targets, open_dataset

pytestmark = pytest.mark.integration

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


CHANGES = [{"gain": 0.1}, {"offset": 40.0}, {"gain": 0.05, "offset": 20.0}]


@pytest.mark.parametrize("change", CHANGES)
def test_indices_are_those_of_the_changed_bands(change):
    image, labels = make_crop(np.random.default_rng(1))
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


def test_jitter_without_a_reflectance_is_refused():
    with pytest.raises(InputError, match="no channel of the stacks is a reflectance"):
        Jitter([{"name": "B02", "unit": "unknown", "coding": "unknown"}], gain=0.1)


EVERYTHING = {
    "rare_classes": 0.5, "balance": "classes", "rotations": 16, "gain": 0.05, "offset_jitter": 20.0,
    "batch_from": "any",
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
    generator = TileGenerator(tiles, BatchConfig(**options, stack_weights=[0.0, 0.25, 0.75]))
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
        generator = TileGenerator(
            tiles, BatchConfig(**options, stack_weights=[0.5, 0.2, 0.3], batch_from=batch_from)
        )
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
    whole = TileGenerator(tiles, BatchConfig(**options)).batch(2, 5)[0]
    parts = [
        TileGenerator(tiles, BatchConfig(**options, own_crops=range(i, i + 2))).batch(2, 5)[0] for i in (0, 2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
