"""The forest beside a network: its features, its arrays, its file, and its map."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from lulc.core.schema import InputError
from lulc.core.statistics import Statistics
from lulc.engines import pixels as engine
from lulc.models.archive import pack_npz
from lulc.models.card import Channel, ModelCard, load_card
from lulc.models.config import NetworkConfig, PixelConfig
from lulc.models.pixel_model import PixelModel, read_pixel_model, texture_features, write_pixel_model
from lulc.training.baseline import RADII, arrays_of

CHANNELS = 3
STATISTICS = Statistics((100.0, 200.0, 300.0), (10.0, 20.0, 30.0), 1)


@pytest.fixture
def image():
    x = np.random.default_rng(1).normal((100, 200, 300), (10, 20, 30), (1, 40, 50, CHANNELS))
    x = x.astype(np.float32)
    x[0, 5:9, 20:30] = np.nan
    x[0, 0, 0] = np.nan
    return x


def grow(features, classes, trees=20, seed=1):
    labels = (features[:, 0] > 0).astype(int) + (features[:, 4] > 0.3)
    labels = np.minimum(labels, classes - 1)
    return RandomForestClassifier(trees, class_weight="balanced", random_state=seed).fit(features, labels)


def card_of(forest, legend, radii=RADII, **changes):
    network = PixelConfig(forest.probability.shape[1], CHANNELS, radii, 1)
    channels = tuple(Channel(f"c{i}") for i in range(CHANNELS))
    return ModelCard(
        name="run/baseline", channels=channels, legend=legend, statistics=STATISTICS, network=network,
        stride=1, halo=max(radii), **changes,
    )  # fmt: skip


@pytest.fixture
def legend():
    from lulc.core.schema import LandCoverClass, Legend

    return Legend("three", tuple(LandCoverClass(i, f"class {i}", "#123456") for i in (1, 2, 3)))


def test_mean_and_deviation_are_those_of_valid_pixels_around(image):
    found = texture_features(image, STATISTICS, (2,))[0]
    z = (image[0].astype(float) - STATISTICS.mean) / STATISTICS.std
    for row, col in ((10, 10), (0, 1), (39, 49), (4, 19), (6, 31)):
        around = z[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3].reshape(-1, CHANNELS)
        expected = [z[row, col], np.nanmean(around, axis=0), np.nanstd(around, axis=0)]
        assert np.allclose(found[row, col], np.concatenate(expected), atol=1e-6)
    assert not found[6, 25].any()


def test_features_of_a_window_are_those_of_the_whole_image_to_the_last_bit(image):
    whole = texture_features(image, STATISTICS, (1, 3))
    part = texture_features(image[:, 7:30, 11:45], STATISTICS, (1, 3))
    assert np.array_equal(part[:, 3:-3, 3:-3], whole[:, 10:27, 14:42])


def test_features_without_invalid_pixels_are_those_of_scipy(image):
    clean = np.nan_to_num(image, nan=150.0)
    found = texture_features(clean, STATISTICS, (2,))[0, 5:-5, 5:-5, CHANNELS : 2 * CHANNELS]
    z = (clean[0].astype(float) - STATISTICS.mean) / STATISTICS.std
    expected = np.stack([ndimage.uniform_filter(band, 5) for band in np.moveaxis(z, -1, 0)], axis=-1)
    assert np.allclose(found, expected[5:-5, 5:-5], atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_arrays_predict_what_scikit_learn_predicts_in_every_bit(image, classes):
    features = texture_features(image, STATISTICS, RADII).reshape(-1, CHANNELS * 3)
    grown = grow(features[::7], classes)
    forest = arrays_of(grown, classes)
    assert np.array_equal(forest.predict(features), grown.predict_proba(features))


def test_classes_that_no_label_has_get_nothing(image):
    features = texture_features(image, STATISTICS, RADII).reshape(-1, CHANNELS * 3)
    grown = RandomForestClassifier(5, random_state=1).fit(features, 1 + 2 * (features[:, 0] > 0))
    found = arrays_of(grown, 5).predict(features)
    assert np.array_equal(found[:, [1, 3]], grown.predict_proba(features))
    assert not found[:, [0, 2, 4]].any()


def test_one_class_against_the_rest_gives_its_share(image):
    features = texture_features(image, STATISTICS, RADII).reshape(-1, CHANNELS * 3)
    grown = grow(features, 2)
    assert np.array_equal(arrays_of(grown, 1).predict(features), grown.predict_proba(features)[:, 1:])


def test_a_forest_of_one_leaf_gives_its_shares_everywhere():
    grown = RandomForestClassifier(2, bootstrap=False).fit(np.zeros((4, 2)), [0, 0, 0, 1])
    assert np.array_equal(arrays_of(grown, 2).predict(np.ones((3, 2), np.float32)), [[0.75, 0.25]] * 3)


def test_the_engine_gives_windows_what_the_whole_image_gets(image, legend, tmp_path, monkeypatch):
    features = texture_features(image, STATISTICS, RADII)
    valid = ~np.isnan(image[..., 0])
    grown = grow(features[valid], 3)
    card = write_pixel_model(
        PixelModel(arrays_of(grown, 3)), card_of(arrays_of(grown, 3), legend), tmp_path / "baseline.npz"
    )
    monkeypatch.setattr(engine, "ROWS", 7)
    predict = engine.open_pixel_model(tmp_path / "baseline.npz", card)
    whole = predict(image)
    assert np.array_equal(whole[valid], grown.predict_proba(features[valid]).astype(np.float32))
    assert np.array_equal(predict(image[:, 4:30, 8:40])[:, 2:-2, 2:-2], whole[:, 6:28, 10:38])


def test_a_file_read_again_is_the_same_and_equal_forests_give_equal_bytes(image, legend, tmp_path):
    features = texture_features(image, STATISTICS, RADII).reshape(-1, CHANNELS * 3)
    forest = arrays_of(grow(features, 3), 3)
    for name in ("a.npz", "b.npz"):
        write_pixel_model(PixelModel(forest), card_of(forest, legend), tmp_path / name)
    again = read_pixel_model(tmp_path / "a.npz", load_card(tmp_path / "a.npz"))
    pairs = zip(vars(forest).values(), vars(again.forest).values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file) == set(vars(forest))


def hostile(forest):
    """Contents that must be refused, by what is wrong with them."""
    arrays = dict(vars(forest))
    inner = int(np.flatnonzero(forest.feature >= 0)[-1])

    def changed(name, place, value):
        copy = arrays[name].copy()
        copy[place] = value
        return pack_npz(arrays | {name: copy})

    def archive(compression, *members):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as file:
            for name, content in members:
                file.writestr(name, content)
        return packed.getvalue()

    pickled, long = io.BytesIO(), io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.lib.format.write_array_header_1_0(long, {"descr": "<i4", "fortran_order": False, "shape": (10**12,)})
    return {
        "a node that leads back": changed("child", inner, inner),
        "a node that leads out": changed("child", inner, len(forest.feature) - 1),
        "a node that leads to another tree": changed(
            "child", int(np.flatnonzero(forest.feature >= 0)[0]), int(forest.root[1]) - 1
        ),
        "trees in another order": changed("root", slice(None), forest.root[::-1]),
        "a feature that is not there": changed("feature", inner, 9),
        "a tree that begins nowhere": changed("root", 0, -1),
        "a leaf without a row": changed("child", int(np.flatnonzero(forest.feature < 0)[0]), 10**6),
        "a threshold that is not finite": changed("threshold", inner, np.nan),
        "shares above 1": changed("probability", 0, 7.0),
        "no tree": pack_npz(arrays | {"root": arrays["root"][:0]}),
        "arrays of other types": pack_npz(arrays | {"child": arrays["child"].astype(float)}),
        "an array more": pack_npz(arrays | {"more": arrays["root"]}),
        "arrays of other lengths": pack_npz(arrays | {"child": arrays["child"][:-1]}),
        "other classes": pack_npz(arrays | {"probability": arrays["probability"][:, :2]}),
        "a pickle": archive(zipfile.ZIP_STORED, ("root.npy", pickled.getvalue())),
        "a shape bomb": archive(zipfile.ZIP_STORED, ("root.npy", long.getvalue())),
        "a zip bomb": archive(zipfile.ZIP_DEFLATED, ("root.npy", bytes(10**7))),
        "no archive": b"nothing",
    }


@pytest.mark.parametrize("kind", list(hostile(arrays_of(grow(np.eye(9, dtype="f4"), 3), 3))))
def test_whatever_is_no_forest_is_refused(kind, legend, tmp_path):
    forest = arrays_of(grow(np.random.default_rng(1).normal(size=(90, 9)).astype("f4"), 3), 3)
    path = tmp_path / "baseline.npz"
    card = write_pixel_model(PixelModel(forest), card_of(forest, legend), path)
    path.write_bytes(hostile(forest)[kind])
    with pytest.raises(InputError, match="sha256"):
        read_pixel_model(path, card)
    import dataclasses
    import hashlib

    forged = dataclasses.replace(card, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="cannot read the"):
        read_pixel_model(path, forged)


def test_a_card_of_a_forest_says_so_and_is_no_network(image, legend, tmp_path):
    forest = arrays_of(grow(np.random.default_rng(1).normal(size=(90, 9)).astype("f4"), 3), 3)
    write_pixel_model(PixelModel(forest), card_of(forest, legend), tmp_path / "baseline.npz")
    card = load_card(tmp_path / "baseline.npz")
    assert card.network == PixelConfig(3, CHANNELS, RADII, 1)
    assert card.network.activation == "softmax" and card.network.features == 9
    with pytest.raises(InputError, match="random forest, expected a network"):
        _ = card.unet
    assert json.loads((tmp_path / "baseline.json").read_text())["network"]["radii"] == list(RADII)
    assert NetworkConfig().parameters > 1e6
