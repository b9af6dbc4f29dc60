"""The network is the original one, and its stride and halo are exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lulc.core.schema import InputError
from lulc.models.backend import compile_predict, keras
from lulc.models.unet import Geometry, NetworkConfig, build_unet, geometry

pytestmark = pytest.mark.integration

ORIGINAL_PARAMETERS = 10_743_309


def narrow(**changes: object) -> NetworkConfig:
    return NetworkConfig(**{"classes": 3, "channels": 2, "filters": (2, 2, 2, 2), **changes})  # type: ignore[arg-type]


def without_activation(model: keras.Model) -> keras.Model:
    return keras.Model(model.inputs, model.get_layer("final_conv").output)


def make_positive(model: keras.Model, rng: np.random.Generator) -> None:
    """Give kernels in 0.5..1.5, so that every path through the network passes every change on."""
    for layer in model.layers:
        for v in layer.weights:
            if v.name == "kernel":
                v.assign(rng.uniform(0.5, 1.5, v.shape) / np.prod(v.shape[:3]))


def test_the_default_is_the_original_network() -> None:
    model = build_unet()
    assert model.count_params() - 2 * 14 == ORIGINAL_PARAMETERS
    names = [layer.name for layer in model.layers]
    assert names[:3] == ["input", "standardization", "encoder_stage0_conv1"]
    assert names[-2:] == ["final_conv", "softmax"]
    assert {"encoder_stage3_relu2", "decoder_stage0_up", "decoder_stage3_bn2"} <= set(names)
    assert not any("bottleneck" in name for name in names)
    assert all(layer.epsilon == 1e-3 for layer in model.layers if "_bn" in layer.name)
    assert not any(model.get_layer(n).use_bias for n in names if n.endswith(("_conv1", "_conv2", "_up")))
    skips = [t._keras_history[0].name for t in model.get_layer("decoder_stage0_concat").input]
    assert skips == ["decoder_stage0_relu1", "encoder_stage3_relu2"]


@pytest.mark.parametrize("block", ["transpose", "upsample", "sum"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bottleneck": 2},
        {"norm": "none"},
        {"filters": (3,)},
        {"classes": 1, "activation": "sigmoid"},
        {"dropout": 0.5},
        {"decoder_filters": (7, 6, 5, 4)},
    ],
)
def test_variables_are_known_without_a_framework(block: str, changes: dict) -> None:
    config = narrow(block=block, **changes)
    model = build_unet(config)
    built = {f"{layer.name}/{v.name}": tuple(v.shape) for layer in model.layers for v in layer.weights}
    assert built == config.variable_shapes()
    assert NetworkConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 0},
        {"classes": 255},
        {"filters": ()},
        {"filters": (0,)},
        {"decoder_filters": (1,)},
        {"dropout": 1.0},
        {"block": "magic"},
        {"norm": "group"},
        {"activation": "sigmoid"},
        {"bottleneck": -1},
        {"channels": 0},
    ],
)
def test_contradictory_options_are_refused(changes: dict) -> None:
    with pytest.raises(InputError, match="cannot build the network"):
        narrow(**changes)


def test_statistics_are_part_of_the_network() -> None:
    rng = np.random.default_rng(1)
    mean, std = np.array([900.0, 120.0]), np.array([200.0, 30.0])
    model = build_unet(narrow(), (mean, std))
    plain = build_unet(narrow())
    plain.set_weights([np.zeros(2), np.ones(2), *model.get_weights()[2:]])
    x = rng.normal(mean, std, (1, 16, 32, 2)).astype("float32")
    expected = compile_predict(plain)(((x - mean) / std).astype("float32"))
    np.testing.assert_allclose(compile_predict(model)(x), expected, atol=1e-5)


def test_no_data_becomes_exactly_the_mean() -> None:
    mean, std = np.array([1234.567, 3.3]), np.array([0.7, 11.0])
    model = build_unet(narrow(), (mean, std))
    standardised = keras.Model(model.inputs, model.get_layer("standardization").output)
    x = np.full((1, 4, 4, 2), 5, "float32")
    x[0, 1, 2] = np.nan
    y = compile_predict(standardised)(x)
    assert (y[0, 1, 2] == 0).all() and np.isfinite(y).all() and (y[0, 0, 0] != 0).all()


@pytest.mark.parametrize(
    "mean, std",
    [([1.0], [1.0]), ([1.0, 2.0], [1.0, 0.0]), ([1.0, np.nan], [1.0, 1.0]), ([1.0, 2.0], [1.0, np.inf])],
)
def test_impossible_statistics_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(InputError, match="statistics"):
        build_unet(narrow(), (np.array(mean), np.array(std)))


def test_activations_stay_float32_under_mixed_precision() -> None:
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = build_unet(narrow())
    finally:
        keras.config.set_dtype_policy(policy)
    assert model.get_layer("standardization").compute_dtype == "float32"
    assert model.get_layer("encoder_stage0_conv1").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"
    y = compile_predict(model)(np.ones((1, 16, 16, 2), "float32"))
    np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6)


def test_a_single_class_gets_a_sigmoid() -> None:
    model = build_unet(narrow(classes=1, activation="sigmoid"))
    assert model.output_shape == (None, None, None, 1) and model.layers[-1].name == "sigmoid"


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, Geometry(16, 64, 76)),
        ({"bottleneck": 2}, Geometry(16, 96, 108)),
        ({"filters": (2,) * 5, "bottleneck": 2}, Geometry(32, 192, 220)),
        ({"filters": (2,)}, Geometry(2, 6, 6)),
        ({"block": "sum"}, Geometry(16, 48, 60)),
        ({"filters": (2,) * 5, "block": "sum"}, Geometry(32, 96, 124)),
    ],
)
def test_stride_and_halo_follow_from_the_network(changes: dict, expected: Geometry) -> None:
    assert geometry(narrow(**changes)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bottleneck": 1},
        {"block": "upsample"},
        {"block": "sum"},
        {"block": "sum", "filters": (2, 3), "decoder_filters": (4, 5)},
        {"filters": (2, 2)},
        {"filters": (2,), "norm": "none"},
    ],
)
def test_an_impulse_reaches_as_far_as_the_radius_says(changes: dict) -> None:
    model = without_activation(build_unet(narrow(**changes)))
    make_positive(model, np.random.default_rng(0))
    found = geometry(narrow(**changes))
    side = -(-(2 * found.radius + 4 * found.stride) // found.stride) * found.stride
    centre = side // 2 // found.stride * found.stride
    predict = compile_predict(model)
    base = np.ones((1, side, 2 * found.stride, 2), "float32")
    reach, cell = 0, 0
    for position in range(centre, centre + found.stride):
        changed = base.copy()
        changed[0, position] += 1000
        rows = np.flatnonzero((predict(changed) != predict(base)).any(axis=(0, 2, 3)))
        reach = max(reach, position - rows[0], rows[-1] - position)
        # Cells of one stride that this row decides: how far their edges lie from the row.
        first = rows[0] // found.stride * found.stride
        last = rows[-1] // found.stride * found.stride + found.stride - 1
        cell = max(cell, position - (first + found.stride - 1), last - found.stride + 1 - position)
    assert reach == found.radius
    assert -(-cell // found.stride) * found.stride == found.halo


def by_windows(predict: object, x: np.ndarray, window: int, halo: int) -> np.ndarray:
    """Windows with a halo that ends at the image, written without overlap: the independent reference."""
    height, width = x.shape[1:3]
    rows = []
    for top in range(0, height, window):
        row = []
        for left in range(0, width, window):
            y0, x0 = max(top - halo, 0), max(left - halo, 0)
            y1, x1 = min(top + window + halo, height), min(left + window + halo, width)
            part = predict(x[:, y0:y1, x0:x1])  # type: ignore[operator]
            row.append(part[:, top - y0 : top - y0 + window, left - x0 : left - x0 + window])
        rows.append(np.concatenate(row, axis=2))
    return np.concatenate(rows, axis=1)


@pytest.mark.parametrize(
    "changes", [{}, {"block": "sum"}, {"bottleneck": 1, "block": "upsample", "filters": (3, 4, 5)}]
)
def test_windows_with_the_halo_equal_one_whole_pass_and_with_less_do_not(changes: dict) -> None:
    keras.utils.set_random_seed(3)
    config = narrow(**changes)
    model = build_unet(config)
    found = geometry(config)
    predict = compile_predict(model)
    rng = np.random.default_rng(5)
    x = rng.normal(0, 2, (1, 16 * found.stride, 13 * found.stride, 2)).astype("float32")
    x[0, 40:60, 90:110] = np.nan
    whole = predict(x)
    exact = by_windows(predict, x, 2 * found.stride, found.halo)
    np.testing.assert_allclose(exact, whole, atol=1e-6)
    short = by_windows(predict, x, 2 * found.stride, found.halo - found.stride)
    assert np.abs(short - whole).max() > 1e-6


def chequer_power(config: NetworkConfig) -> float:
    """Share of the power of logits on flat ground that lies at periods of two and four pixels.

    The network is trained for some steps first, to tell bright from dark ground.
    """
    keras.utils.set_random_seed(4)
    model = build_unet(config)
    rng = np.random.default_rng(6)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    for _ in range(6):
        labels = rng.integers(0, 3, (4, 4, 4)).repeat(16, 1).repeat(16, 2)
        x = np.stack([labels - 1.0, 1.0 - labels], -1) + rng.normal(0, 0.3, (*labels.shape, 2))
        model.train_on_batch(x.astype("float32"), labels)
    side, border = 16 * config.depth + 2 * geometry(config).halo, geometry(config).halo
    side = -(-side // geometry(config).stride) * geometry(config).stride
    logits = compile_predict(without_activation(model))(np.full((1, side, side, 2), 0.7, "float32"))
    inner = np.float64(logits[0, border : border + 32, border : border + 32, :])
    power = np.abs(np.fft.fft2(inner, axes=(0, 1))) ** 2
    # Frequencies of a quarter and a half per pixel, which repeat every four and two pixels.
    rows, cols = np.indices(power.shape[:2])
    chequer = (rows % 8 == 0) & (cols % 8 == 0) & (rows + cols > 0)
    return float(power[chequer].sum() / power.sum())


def test_only_transposed_convolutions_draw_a_chequered_pattern_on_flat_ground() -> None:
    assert chequer_power(narrow(filters=(8, 8, 8))) > 1e-6
    for block in ("upsample", "sum"):
        assert chequer_power(narrow(filters=(8, 8, 8), block=block)) < 1e-12


def test_initial_weights_depend_on_the_seed_only() -> None:
    weights = []
    for seed, _ in itertools.product((7, 8), range(2)):
        keras.utils.set_random_seed(seed)
        weights.append(build_unet(narrow()).get_layer("final_conv").get_weights()[0])
    assert (weights[0] == weights[1]).all() and (weights[1] != weights[2]).any()
