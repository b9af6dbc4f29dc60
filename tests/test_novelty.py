"""Pixels unlike the training data are told, at the stated rate of false alarms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from sklearn.covariance import EmpiricalCovariance

from lulc.config import ClassifyConfig, TrainConfig
from lulc.core.schema import IGNORE, InputError
from lulc.core.statistics import Statistics
from lulc.core.windows import Window
from lulc.datasets.arrays import Ignoring
from lulc.inference.classify import classify
from lulc.models import ood_score
from lulc.models.card import load_card, write_card
from lulc.models.ood_score import QUANTILES, OodScore, fit_ood_score
from lulc.models.weights import find_model
from lulc.training.train import train

pytestmark = pytest.mark.integration

CENTRES = np.array([[500, 2000, 100], [3000, 1000, 20], [800, 800, 180]], np.float32)


def stack_of(rng: np.random.Generator, side: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Three classes with one covariance, some pixels invalid, some unlabelled."""
    masks = rng.integers(1, 4, (side, side)).astype(np.uint8)
    mixing = np.array([[120, 60, 0], [0, 90, 10], [0, 0, 9]], np.float32)
    image = CENTRES[masks - 1] + rng.normal(size=(side, side, 3)).astype(np.float32) @ mixing
    image[rng.random((side, side)) < 0.1] = np.nan
    masks[rng.random((side, side)) < 0.2] = IGNORE
    return image.astype(np.float32), masks


@pytest.fixture(scope="module")
def fitted() -> tuple[OodScore, Statistics, np.ndarray]:
    rng = np.random.default_rng(4)
    training, held_out, fresh = stack_of(rng), stack_of(rng), stack_of(rng)
    statistics = Statistics.of(training[0])
    found = fit_ood_score([training], [held_out], statistics)
    assert found is not None
    return found, statistics, fresh[0]


def test_the_share_of_false_alarms_is_the_stated_one(fitted: tuple[OodScore, Statistics, np.ndarray]) -> None:
    found, statistics, fresh = fitted
    seen = found.of(fresh, statistics)
    assert np.array_equal(np.isnan(seen), np.isnan(fresh[..., 0]))
    for level in (0.5, 0.9, 0.99):
        alarms = (seen[~np.isnan(seen)] > level).mean()
        spread = 4 * np.sqrt(level * (1 - level) * 2 / 13_000)
        assert alarms == pytest.approx(1 - level, abs=spread)


def test_what_no_class_looks_like_is_flagged(fitted: tuple[OodScore, Statistics, np.ndarray]) -> None:
    found, statistics, _ = fitted
    strange = np.float32([[6000, 6000, 200], [2000, 100, 100], *CENTRES])
    assert found.of(strange[:2], statistics).min() > 0.999
    assert found.of(strange[2:], statistics).max() < 0.2


def test_distances_are_those_of_mahalanobis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood_score, "SHRINKAGE", 0.0)
    rng = np.random.default_rng(5)
    image, masks = stack_of(rng, 60)
    statistics = Statistics.of(image)
    found = fit_ood_score([(image, masks)], [(image, masks)], statistics)
    assert found is not None
    known = (masks != IGNORE) & ~np.isnan(image[..., 0])
    values, labels = image[known].astype(float), masks[known]
    means = np.stack([values[labels == k].mean(0) for k in (1, 2, 3)])
    model = EmpiricalCovariance(assume_centered=True).fit(values - means[labels - 1])
    expected = np.min([model.mahalanobis(values - mean) for mean in means], axis=0)
    np.testing.assert_allclose(found._squares(image[known], statistics), expected, rtol=2e-3, atol=2e-3)


def test_labels_hidden_near_validation_teach_nothing() -> None:
    image, masks = stack_of(np.random.default_rng(4))
    statistics = Statistics.of(image)
    hidden = masks.copy()
    hidden[:40] = IGNORE
    near = Ignoring(masks, (Window(0, 0, 40, 120),))
    assert fit_ood_score([(image, near)], [(image, masks)], statistics) == fit_ood_score(
        [(image, hidden)], [(image, masks)], statistics
    )


def test_a_stack_without_labels_teaches_nothing() -> None:
    image, masks = stack_of(np.random.default_rng(6), 40)
    statistics = Statistics.of(image)
    blank = np.full_like(masks, IGNORE)
    assert fit_ood_score([(image, blank)], [(image, masks)], statistics) is None
    assert fit_ood_score([(image, masks)], [(np.full_like(image, np.nan), masks)], statistics) is None


def test_a_large_stack_is_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood_score, "PIXELS", 1000)
    stack = stack_of(np.random.default_rng(7), 120)
    values, labels = ood_score._pixels([stack, stack])
    assert 500 < len(values) == len(labels) <= 1200


def test_many_stacks_are_thinned_out_as_one_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood_score, "PIXELS", 100)
    image, masks = stack_of(np.random.default_rng(7), 40)
    parts = [(image[row : row + 4], masks[row : row + 4]) for row in range(0, 40, 4)]
    for apart, whole in zip(ood_score._pixels(parts), ood_score._pixels([(image, masks)]), strict=True):
        assert np.array_equal(apart, whole) and 0 < len(apart) <= 140


def test_an_entry_that_contradicts_itself_is_refused(
    fitted: tuple[OodScore, Statistics, np.ndarray],
) -> None:
    data = fitted[0].to_json()
    assert OodScore.from_json(json.loads(json.dumps(data))) == fitted[0]
    for name, value in (
        ("whitening", data["whitening"][:2]),
        ("centres", [[0.0] * 4]),
        ("distances", data["distances"][::-1]),
        ("distances", [float("nan")] * len(QUANTILES)),
    ):
        with pytest.raises(InputError, match="out-of-distribution"):
            OodScore.from_json({**data, name: value})


@pytest.fixture(scope="module")
def run(write_stacks: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of three bands, trained for two batches."""
    folder = tmp_path_factory.mktemp("novelty")
    config = TrainConfig(
        data=(str(write_stacks(folder / "stacks", side=64)),), out=str(folder / "run"), epochs=1, steps=2,
        validation_steps=1, batch_size=1, crop_sizes=(32,), validation_crop_sizes=(32,), filters=(4,),
    )  # fmt: skip
    train(config)
    return folder / "run"


@pytest.fixture
def mosaic(run: Path, tmp_path: Path) -> Path:
    """Pixels of the held-out stack, and a cloud in the eastern half."""
    image = np.full((3, 48, 96), 9999, np.uint16)
    seen = np.load(run.parent / "stacks" / "val_image_2.npy")[:48, :48]
    image[:, :, :48] = np.nan_to_num(seen).transpose(2, 0, 1).round()
    path = tmp_path / "bands.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=96, height=48, count=3, dtype="uint16", nodata=0,
        crs="EPSG:3067", transform=Affine(10, 0, 500000, 0, -10, 6700000),
    ) as target:  # fmt: skip
        target.write(image)
        target.descriptions = ("B02", "B03", "B04")
    return path


def configure(run: Path, mosaic: Path, name: str, **more: Any) -> ClassifyConfig:
    return ClassifyConfig(
        model=str(run), inputs=(str(mosaic),), out=str(mosaic.with_name(name)), scale=1e-4, offset=0.0,
        part=256, engine="openvino", extra=("novelty", "margin"), activations="uint8", **more,
    )  # fmt: skip


def test_training_learns_it_and_maps_show_it(run: Path, mosaic: Path) -> None:
    classify(configure(run, mosaic, "map.tif"))
    with rasterio.open(mosaic.with_name("map.tif")) as source:
        assert source.descriptions[-2:] == ("novelty", "margin")
        found = source.read(source.count - 1) / 254
    assert found[:, 48:].min() > 0.99 > np.median(found[:, :48])
    model = find_model(str(run), "last")
    learnt = load_card(model)
    assert learnt.novelty is not None
    expected = learnt.novelty.of(np.full((1, 3), 9999, np.float32), learnt.statistics)
    np.testing.assert_allclose(found[:, 48:], expected[0], atol=1 / 254)
    with pytest.raises(InputError, match="out-of-distribution score is of other channels"):
        dataclasses.replace(learnt, novelty=OodScore(((0.0,),), ((1.0,),), learnt.novelty.distances))


def test_of_several_networks_the_highest_counts(run: Path, mosaic: Path) -> None:
    classify(configure(run, mosaic, "one.tif"))
    classify(configure(run, mosaic, "two.tif", ensemble=(str(run),), tta=True))
    with rasterio.open(mosaic.with_name("one.tif")) as one, rasterio.open(mosaic.with_name("two.tif")) as two:
        assert np.array_equal(one.read(one.count - 1), two.read(two.count - 1))


def test_each_pixel_has_its_own_wherever_the_core_of_its_window_lies(run: Path, mosaic: Path) -> None:
    classify(configure(run, mosaic, "one.tif"))
    classify(configure(run, mosaic, "many.tif", window=(24, 24)))
    with (
        rasterio.open(mosaic.with_name("one.tif")) as one,
        rasterio.open(mosaic.with_name("many.tif")) as two,
    ):
        found = [source.read(source.count - 1) for source in (one, two)]
    assert np.ptp(found[0][:, :48]) > 50
    np.testing.assert_array_equal(*found)


def test_a_model_that_never_learnt_it_is_refused(run: Path, mosaic: Path) -> None:
    path = find_model(str(run), "last")
    write_card(dataclasses.replace(load_card(path), novelty=None), path)
    with pytest.raises(InputError, match="doesn't say what its training data look like"):
        classify(configure(run, mosaic, "map.tif"))
