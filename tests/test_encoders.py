"""Encoders of Keras under the decoder: known in words, exact in windows, started from weights of pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio

from lulc.cli import make_classifications
from lulc.config import TrainConfig
from lulc.core.schema import CHANNELS, ENCODERS, InputError, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.engines.registry import choose_engine
from lulc.models.archive import read_layers, variables_of
from lulc.models.backbones import BACKBONES
from lulc.models.backend import compile_predict, keras
from lulc.models.card import Channel, ModelCard, load_card, write_card
from lulc.models.config import NetworkConfig
from lulc.models.encoders import COLOURS, _application, adapt, load_encoder
from lulc.models.unet import build_unet, geometry
from lulc.models.weights import arrays_of, load_model, read_arrays, save_model
from lulc.training.losses import build_loss
from lulc.training.run_folder import parameters_of
from lulc.training.train import memory_needed, train

SMALL = ("resnet50", "efficientnetv2-b0", "convnext-tiny")
"""The smallest of each family."""

FIVE = ("B02", "B03", "B04", "B08", "NDVI")


def over(encoder: str, *decoder: int, **changes: object) -> NetworkConfig:
    fields = {"classes": 3, "channels": 5, "filters": (), "encoder": encoder, "decoder_filters": decoder}
    return NetworkConfig(**{**fields, **changes})  # type: ignore[arg-type]


def card_of(network: NetworkConfig) -> ModelCard:
    reach = geometry(network)
    return ModelCard(
        name="test",
        channels=tuple(map(Channel, FIVE)),
        legend=Legend("test", tuple(LandCoverClass(i, f"class {i}", "#102030") for i in (1, 2, 3))),
        statistics=Statistics((0.0,) * 5, (1.0,) * 5),
        network=network,
        stride=reach.stride,
        halo=reach.halo,
    )


def test_options_and_cards_name_the_same_encoders() -> None:
    assert list(ENCODERS) == list(BACKBONES)


@pytest.mark.parametrize("encoder", SMALL)
@pytest.mark.parametrize(
    "changes", [{}, {"decoder_filters": (6, 4), "bottleneck": 1, "block": "upsample", "norm": "none"}]
)
def test_variables_are_known_without_a_framework(encoder: str, changes: dict) -> None:
    config = over(encoder, **changes)
    model = build_unet(config)
    assert {n: tuple(v.shape) for n, v in variables_of(model).items()} == config.variable_shapes()
    assert len(model.weights) == len(config.variable_shapes())
    assert NetworkConfig.from_json(config.to_json()) == config
    if not changes:
        # EfficientNetV2 squeezes the whole image into its gates from stride 16 on.
        assert geometry(model).halo == {"resnet50": 320, "convnext-tiny": 896}.get(encoder)


@pytest.mark.parametrize("encoder", sorted(set(ENCODERS) - set(SMALL)))
@pytest.mark.stress
def test_variables_of_larger_encoders_are_known_as_well(encoder: str) -> None:
    config = over(encoder)
    model = build_unet(config)
    assert {n: tuple(v.shape) for n, v in variables_of(model).items()} == config.variable_shapes()


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "vgg16"},
        {"encoder": "resnet50", "filters": (8, 8)},
        {"encoder": "resnet50", "decoder_filters": (4,) * 6},
        {"encoder": "convnext-tiny", "decoder_filters": (4,)},
    ],
)
def test_contradictory_encoders_are_refused(changes: dict) -> None:
    with pytest.raises(InputError, match="cannot build the network"):
        NetworkConfig(**{"filters": (), **changes})  # type: ignore[arg-type]


def by_windows(
    predict: Callable[[np.ndarray], np.ndarray], x: np.ndarray, side: int, halo: int
) -> np.ndarray:
    """Windows with a halo that ends at the image, written without overlap."""
    result = np.zeros((*x.shape[:3], 3), np.float32)
    for row in range(0, x.shape[1], side):
        for col in range(0, x.shape[2], side):
            top, left = max(row - halo, 0), max(col - halo, 0)
            part = predict(x[:, top : row + side + halo, left : col + side + halo])
            inside = part[:, row - top : row - top + side, col - left : col - left + side]
            result[:, row : row + side, col : col + side] = inside
    return result


@pytest.mark.parametrize(
    "network",
    [
        over("resnet50", 6, 5, 4),
        over("efficientnetv2-b0", 6, 5),
        over("convnext-tiny", 6, 5, block="upsample"),
    ],
    ids=lambda n: n.encoder,
)
def test_windows_with_the_halo_equal_one_whole_pass_and_with_less_do_not(network: NetworkConfig) -> None:
    keras.utils.set_random_seed(3)
    model = build_unet(network)
    for name, variable in variables_of(model).items():
        if name.endswith("layer_scale/gamma"):
            # A fresh ConvNeXt passes nothing on beside its shortcuts that float32 would show.
            variable.assign(np.ones(variable.shape))
    found = geometry(model)
    assert found.halo and found.halo - found.stride < found.radius <= found.halo + found.stride
    predict = compile_predict(model)
    rows, cols = -(-2 * found.halo // found.stride) + 6, 6
    x = (
        np.random.default_rng(5)
        .normal(0, 2, (1, rows * found.stride, cols * found.stride, 5))
        .astype("float32")
    )
    x[0, 3:9, 2:7] = np.nan
    whole = predict(x)
    side = 2 * found.stride
    np.testing.assert_allclose(by_windows(predict, x, side, found.halo), whole, atol=2e-6)
    assert np.abs(by_windows(predict, x, side, found.stride) - whole).max() > 1e-4


@pytest.mark.parametrize("encoder", SMALL)
def test_a_model_is_saved_and_loaded_as_arrays_alone(encoder: str, tmp_path: Path) -> None:
    network = over(encoder, 5, 4)
    model = build_unet(network)
    card = save_model(model, card_of(network), tmp_path / "one.keras")
    loaded, read = load_model(tmp_path / "one.keras")
    assert read.network == network
    before, after = arrays_of(model), arrays_of(loaded)
    assert before.keys() == after.keys() == read_arrays(tmp_path / "one.keras").keys()
    assert all((before[name] == after[name]).all() for name in before)
    again = save_model(loaded, read, tmp_path / "two.keras")
    assert card.sha256 == again.sha256, "equal weights and cards give equal bytes"


@pytest.mark.parametrize("encoder", SMALL)
def test_a_training_step_reaches_the_first_convolution_and_the_last(encoder: str) -> None:
    model = build_unet(over(encoder, 5, 4))
    # Keras' own loss of sparse labels has no gradient here on PyTorch.
    model.compile(optimizer="sgd", loss=build_loss("ce", classes=3))
    before = arrays_of(model)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (2, 32, 32, 5)).astype("float32")
    loss = model.train_on_batch(images, rng.integers(0, 3, (2, 32, 32)))
    after = arrays_of(model)
    assert memory_needed(model, TrainConfig(data=(), out="", batch_size=2, crop_sizes=(32,))) > 1e6
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert np.isfinite(loss)
    first = f"{BACKBONES[encoder].first}/kernel"
    assert {first, "final_conv/kernel", "decoder_stage0_conv2/kernel"} <= moved


@pytest.fixture(scope="module")
def colour_network() -> keras.Model:
    """A ResNet-50 for colour pictures whose biases and batch norms are not what they start with."""
    keras.utils.set_random_seed(7)
    application = _application(BACKBONES["resnet50"], 3)
    rng = np.random.default_rng(1)
    for variable in application.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return application


@pytest.fixture(scope="module", params=["weights.h5", "h5"])
def colour_file(
    request: pytest.FixtureRequest, colour_network: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its weights as Keras 3 writes them, and as a whole model in the format of Keras 2."""
    path = tmp_path_factory.mktemp("colour") / f"resnet50.{request.param}"
    (colour_network.save_weights if path.name.endswith(".weights.h5") else colour_network.save)(path)
    return path


def first_response(model: keras.Model, x: np.ndarray) -> np.ndarray:
    head = keras.Model(model.inputs[0], model.get_layer("conv2_block1_out").output)
    return np.asarray(keras.ops.convert_to_numpy(head(x)))


@pytest.fixture(scope="module")
def over_colours() -> keras.Model:
    return build_unet(over("resnet50", 4, 4))


@pytest.mark.parametrize("how", ["zero", "repeat", "mean", "random"])
def test_colours_in_their_bands_give_what_the_picture_gave(
    how: str, colour_network: keras.Model, colour_file: Path, over_colours: keras.Model
) -> None:
    model = over_colours
    load_encoder(model, "resnet50", FIVE, str(colour_file), how)
    rng = np.random.default_rng(2)
    picture = rng.normal(0, 1, (1, 16, 16, 3)).astype("float32")
    image = np.zeros((1, 16, 16, 5), np.float32)
    if how == "mean":
        # Grey: every channel shows the same.
        picture[:] = picture[..., :1]
        image[:] = picture[..., :1]
    else:
        for i, colour in enumerate("RGB"):
            image[..., FIVE.index(COLOURS[colour])] = picture[..., i]
    if how == "repeat":
        # Channels without a colour of their own show that of their turn.
        image[..., [3, 4]] = picture[..., [0, 1]]
    # The picture in the order and units of the weights: blue first, 0..255 around the mean.
    scaled = (picture * np.array([0.229, 0.224, 0.225]) * 255)[..., ::-1].astype("float32")
    expected = first_response(colour_network, scaled)
    np.testing.assert_allclose(first_response(model, image), expected, rtol=2e-4, atol=2e-4 * expected.max())


def test_the_random_kernel_stays_where_no_colour_is() -> None:
    rng = np.random.default_rng(3)
    backbone = BACKBONES["convnext-tiny"]
    kernel, fresh = rng.normal(size=(4, 4, 3, 8)), rng.normal(size=(4, 4, 14, 8))
    adapted = adapt(kernel, fresh, CHANNELS, backbone, "random")
    bands = [CHANNELS.index(b) for b in ("B04", "B03", "B02")]
    assert (adapted[:, :, bands] == kernel).all()
    others = [i for i in range(14) if i not in bands]
    assert (adapted[:, :, others] == fresh[:, :, others]).all()


def test_channels_without_a_colour_are_refused(over_colours: keras.Model, colour_file: Path) -> None:
    with pytest.raises(InputError, match="B04, B03, B02 among them"):
        load_encoder(over_colours, "resnet50", ("B01", *FIVE[1:]), str(colour_file))


def test_layers_of_other_names_are_read_in_their_order(tmp_path: Path) -> None:
    application = _application(BACKBONES["convnext-tiny"], 3)
    application.get_layer("convnext_tiny_stage_0_block_2_layernorm").set_weights([np.arange(96), np.ones(96)])
    path = tmp_path / "renamed.h5"
    application.save(path)
    with h5py.File(path, "r+") as file:
        groups = file["model_weights"]
        held = [n for n in groups.attrs["layer_names"] if len(groups[n].attrs["weight_names"])]
        for number, name in enumerate(held[:-1]):
            groups.move(name, f"layer_{number}")
        del groups[held[-1]]
        groups.attrs["layer_names"] = [f"layer_{i}" for i in range(len(held) - 1)]
    model = build_unet(over("convnext-tiny", 4, 4))
    load_encoder(model, "convnext-tiny", FIVE, str(path))
    found = arrays_of(model)
    assert (found["convnext_tiny_stage_0_block_2_layernorm/gamma"] == np.arange(96)).all()
    stem = application.get_layer("convnext_tiny_stem").layers[0].get_weights()[0]
    np.testing.assert_allclose(
        found["convnext_tiny_stem_conv/kernel"].sum(axis=2), stem.sum(axis=2), atol=1e-6
    )


def test_names_alone_are_no_order(tmp_path: Path) -> None:
    groups = {"first": ["first/kernel"], "second": ["second/kernel"]}
    with h5py.File(tmp_path / "own.weights.h5", "w") as file:
        for place, name, value in (("a", "second", 2.0), ("b", "first", 1.0)):
            file[f"layers/{place}/vars/0"] = np.full(3, value, "f4")
            file[f"layers/{place}/vars"].attrs["name"] = name
    assert read_layers(tmp_path / "own.weights.h5", groups)["first/kernel"][0] == 1
    with pytest.raises(InputError, match="another network: its layer 'third'"):
        read_layers(tmp_path / "own.weights.h5", {"third": ["third/kernel"], "fourth": ["fourth/kernel"]})


def test_weights_of_another_network_or_damaged_ones_are_refused(
    colour_file: Path, over_colours: keras.Model, tmp_path: Path
) -> None:
    model = build_unet(over("convnext-tiny", 4, 4))
    before = arrays_of(model)
    with pytest.raises(InputError, match="another network"):
        load_encoder(model, "convnext-tiny", FIVE, str(colour_file))
    short = tmp_path / "short.h5"
    short.write_bytes(colour_file.read_bytes()[:100_000])
    resnet = build_unet(over("resnet50", 4))
    for path, reason in ((short, "damaged"), (tmp_path / "none.h5", "no such file")):
        with pytest.raises(InputError, match=reason):
            load_encoder(resnet, "resnet50", FIVE, str(path))
    assert all((before[n] == a).all() for n, a in arrays_of(model).items()), "what is refused changes nothing"


def test_arrays_of_other_shapes_or_not_finite_are_refused(
    over_colours: keras.Model, colour_network: keras.Model, tmp_path: Path
) -> None:
    for name, value, reason in (
        ("wide", np.zeros((7, 7, 4, 64), "f4"), "shapes differ: conv1_conv/kernel"),
        ("nan", np.full((7, 7, 3, 64), np.nan, "f4"), "NaN"),
    ):
        path = tmp_path / f"{name}.h5"
        colour_network.save(path)
        with h5py.File(path, "r+") as file:
            group = file["model_weights/conv1_conv"]
            (place,) = [n for n in group.attrs["weight_names"] if "kernel" in str(n)]
            del group[place]
            group[place] = value
        with pytest.raises(InputError, match=reason):
            load_encoder(over_colours, "resnet50", FIVE, str(path))


def test_links_out_of_a_file_are_refused(over_colours: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "link.h5"
    with h5py.File(path, "w") as file:
        file["conv1_conv"] = h5py.ExternalLink("/etc/hostname", "/")
    with pytest.raises(InputError, match="external link"):
        load_encoder(over_colours, "resnet50", FIVE, str(path))


def test_imagenet_weights_that_cannot_be_downloaded_are_named(
    over_colours: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, weights: str | None = None, **keywords: object) -> None:
        raise Exception(f"URL fetch failure on https://example.org/{weights}.h5")

    monkeypatch.setattr(keras.applications, "ResNet50", offline)
    with pytest.raises(InputError, match="URL fetch failure") as refused:
        load_encoder(over_colours, "resnet50", FIVE, "imagenet")
    assert "--encoder-weights FILE.h5" in refused.value.hint


def test_openvino_refuses_an_encoder_and_auto_passes_it_over(tmp_path: Path) -> None:
    network = over("resnet50", 4)
    assert choose_engine("auto", tmp_path, networks=[NetworkConfig(), network]) == "keras"
    for name in ("openvino", "openvino-mixed", "openvino-int8"):
        with pytest.raises(InputError, match=r"its encoder is resnet50(.|\n)*--engine keras"):
            choose_engine(name, tmp_path, networks=[network])


def test_a_network_that_sees_the_whole_image_is_run_with_a_warning(
    tiny_model: Path, tmp_path: Path, write_bands: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "whole.keras"
    model.write_bytes(tiny_model.read_bytes())
    write_card(dataclasses.replace(load_card(tiny_model), halo=None), model)
    arguments = [str(model), str(write_bands(tmp_path / "mosaic.tif", 64, 64)), str(tmp_path / "map.tif")]
    for blend, warned in (("none", True), ("gaussian", False)):
        caplog.clear()
        assert make_classifications.main([*arguments, "--plan", "--engine", "keras", "--blend", blend]) == 0
        assert ("--blend gaussian evens them out" in caplog.text) == warned


def config_of(data: Path, out: Path, **changes: object) -> TrainConfig:
    fields: dict = {
        "data": (str(data),), "out": str(out), "epochs": 1, "steps": 1, "validation_steps": 1,
        "batch_size": 2, "crop_sizes": (32,), "validation_crop_sizes": (32,), "rotations": 1,
        "encoder": "resnet50", "decoder_filters": (4,),
    }  # fmt: skip
    return TrainConfig(**(fields | changes))


def test_a_run_starts_from_a_file_and_the_next_from_that_run(
    tmp_path: Path, write_stacks: Callable[..., Path], write_bands: Callable[..., Path], colour_file: Path
) -> None:
    data = write_stacks(tmp_path / "data")
    config = config_of(data, tmp_path / "run", encoder_weights=str(colour_file), first_convolution="zero")
    path = train(config).picks["last"]
    model, card = load_model(path)
    assert card.network.encoder == "resnet50" and (card.stride, card.halo) == (2, 8)
    assert card.training["parameters"]["first_convolution"] == "zero"
    assert "encoder_weights" not in parameters_of(config), "the file counts by its content"
    single = config_of(
        data,
        tmp_path / "single",
        init=str(path),
        single_class="class 2",
        learning_rate=1e-20,
        weight_decay=0.0,
    )
    # The fastest engine that knows its layers is Keras, with or without a GPU.
    mosaic, target = write_bands(tmp_path / "mosaic.tif", 64, 64), tmp_path / "map.tif"
    assert make_classifications.main([str(tmp_path / "run"), str(mosaic), str(target)]) == 0
    with rasterio.open(target) as opened:
        assert json.loads(opened.tags()["LULC_ENGINE"])["name"] == "keras"
    started = arrays_of(load_model(train(single).picks["last"])[0])
    kernel = "conv1_conv/kernel"
    assert (started[kernel] == arrays_of(model)[kernel]).all()
    assert started["final_conv/kernel"].shape[-1] == 1


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"filters": (8, 8)}, "--filters is given"),
        ({"encoder": None, "decoder_filters": (), "encoder_weights": "imagenet"}, "without --encoder"),
        ({"first_convolution": "zero"}, "without --encoder-weights"),
        ({"encoder_weights": "imagenet", "init": "run"}, "expected one"),
        ({"encoder_weights": "nowhere.h5"}, "no such file"),
        ({"crop_sizes": (31,)}, "multiples of 2"),
        ({"encoder": "convnext-tiny", "decoder_filters": (4,), "crop_sizes": (32,)}, "expected 2..5"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    changes: dict, reason: str, tmp_path: Path, write_stacks: Callable[..., Path]
) -> None:
    config = dataclasses.replace(config_of(write_stacks(tmp_path / "data"), tmp_path / "run"), **changes)
    with pytest.raises(InputError, match=reason):
        train(config)
