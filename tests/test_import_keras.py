"""A Keras model of known layers gives what Keras predicts; a file that holds more is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio

import lulc
from lulc.models.archive import CONFIG, METADATA, WEIGHTS
from lulc.models.backend import keras
from lulc.models.card import load_card
from lulc.models.onnx_file import read_graph

pytestmark = pytest.mark.integration

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

L = keras.layers
CHANNELS = ("B04", "B03", "B02")
Tensor = Any


def image() -> Tensor:
    return keras.Input((None, None, 3), name="picture")


def model_of(head: Callable[[Tensor], Tensor]) -> Any:
    picture = image()
    return keras.Model(picture, head(picture))


def drawn(model: Any) -> Any:
    """The model with weights drawn at random, those that begin as 0 or 1 too."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        for variable in getattr(layer, "_trainable_variables", []) + getattr(
            layer, "_non_trainable_variables", []
        ):
            shape = tuple(variable.shape)
            if len(shape) == 1 and layer.name != "normalization":
                positive = "variance" in variable.path
                variable.assign(rng.uniform(0.5, 2, shape) if positive else rng.normal(0.2, 0.4, shape))
    return model


def unet() -> Any:
    """An encoder that is a model of its own, and names of its own throughout."""
    picture = image()
    a = L.Conv2D(6, 3, padding="same", activation="relu", name="first")(picture)
    b = L.Conv2D(8, 3, padding="same", activation="swish", name="second")(L.MaxPooling2D()(a))
    c = L.Conv2D(10, 3, padding="same", activation="elu")(L.AveragePooling2D(2)(b))
    encoder = keras.Model(picture, [a, b, c], name="encoder")
    outer = image()
    a, b, c = encoder(outer)
    x = L.Conv2DTranspose(8, 3, strides=2, padding="same")(c)
    x = L.Dropout(0.3)(L.Concatenate()([x, b]))
    x = L.UpSampling2D(interpolation="bilinear")(L.Conv2D(6, 3, padding="same")(x))
    x = keras.Sequential([L.Conv2D(6, 3, padding="same"), L.BatchNormalization(), L.LeakyReLU(0.1)])(x + a)
    model = keras.Model(outer, L.Conv2D(3, 1, activation="softmax", name="land_cover")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def residual(x: Tensor) -> Tensor:
    x = start = L.Conv2D(8, 5, strides=4, padding="same")(L.Rescaling(0.5, offset=0.1)(x))
    for dilation in (1, 2):
        y = L.Conv2D(8, 3, padding="same", dilation_rate=dilation, use_bias=False)(x)
        x = L.Add()([x, L.ReLU(6.0)(L.BatchNormalization(scale=False)(y))])
    x = L.Maximum()([x, start]) * 0.5
    return L.Conv2D(3, 1)(L.Conv2DTranspose(8, 4, strides=4)(x))


def separable(x: Tensor) -> Tensor:
    x = L.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, activation="relu6")(x)
    x = L.DepthwiseConv2D(5, padding="same")(x)
    y = L.PReLU(shared_axes=[1, 2])(L.SeparableConv2D(8, 3, strides=2, padding="same")(x))
    y = L.UpSampling2D(interpolation="bilinear")(L.MaxPooling2D(3, strides=1, padding="same")(y))
    return L.Dense(3, activation="softmax")(
        L.Concatenate()([L.LayerNormalization()(x), keras.ops.gelu(y, False)])
    )


def group_norm(x: Tensor) -> Tensor:
    x = L.GroupNormalization(4)(L.Conv2D(8, 3, strides=2, padding="same")(x))
    return L.Conv2D(3, 1)(L.UpSampling2D()(L.Activation("mish")(x)))


def excited(x: Tensor) -> Tensor:
    x = L.Conv2D(8, 3, padding="same")(x)
    weights = L.Dense(8, activation="sigmoid")(L.Dense(4, activation="relu")(L.GlobalAveragePooling2D()(x)))
    return L.Conv2D(3, 1)(L.Multiply()([x, L.Reshape((1, 1, 8))(weights)]))


def shared(x: Tensor) -> Tensor:
    convolution = L.Conv2D(3, 3, padding="same", activation="tanh")
    return convolution(L.Cropping2D(1)(convolution(L.ZeroPadding2D(((1, 1), (0, 2)))(x))))


def standardised(x: Tensor) -> Tensor:
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(0).normal(0.2, 0.3, (2, 8, 8, 3)))
    return L.Softmax()(L.Conv2D(3, 3, padding="same")(layer(x)))


NETWORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "U-Net": (unet, ""),
    "residual": (lambda: model_of(residual), ""),
    "separable": (lambda: model_of(separable), ""),
    "shared layers": (lambda: model_of(shared), ""),
    "standardised": (lambda: model_of(standardised), ""),
    "GroupNorm": (lambda: model_of(group_norm), "group or instance normalisation"),
    "instance norm": (
        lambda: model_of(lambda x: L.GroupNormalization(-1)(L.Conv2D(3, 1)(x))),
        "instance norm",
    ),
    "squeeze and excitation": (lambda: model_of(excited), "pools over the whole image"),
}


@pytest.fixture(scope="module")
def mosaic(write_bands: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bands(tmp_path_factory.mktemp("mosaic") / "mosaic.tif", 92, 132)


@pytest.fixture
def legend(tmp_path: Path) -> Path:
    path = tmp_path / "classes.csv"
    path.write_text("code,class,name,color\n1,1,water,#0000ff\n2,2,field,#ffff00\n3,3,wood,#00ff00\n")
    return path


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_keras_model_gives_what_keras_predicts(
    tmp_path: Path, legend: Path, mosaic: Path, kind: str
) -> None:
    build, reason = NETWORKS[kind]
    model = drawn(build())
    path = tmp_path / "net.keras"
    model.save(path)
    made: Any = lulc.import_model(
        model=path, channels=CHANNELS, legend=legend, out=tmp_path / "net", std=2000
    )
    network = made.card.network
    assert network.exact == (not reason) and reason in network.reason
    assert network.parameters >= model.count_params() - 16
    with lulc.open_stack(mosaic, channels=CHANNELS) as stack:
        picture = stack.read(stack.grid.extent)
    expected = model.predict(np.nan_to_num(picture / np.float32(2000))[np.newaxis], verbose=0)[0]
    if "softmax" not in str(model.layers[-1].get_config().get("activation")) and kind != "standardised":
        expected = np.exp(expected - expected.max(-1, keepdims=True))
        expected /= expected.sum(-1, keepdims=True)
    stride, halo = made.card.stride, made.card.halo
    side = {"window": stride * (2 * halo // stride + 8)} if network.exact else {"window": 132}
    for engine in ("openvino", "onnxruntime"):
        out: Any = lulc.classify(tmp_path / "net", mosaic, tmp_path / f"{engine}.tif", engine=engine, **side)
        with rasterio.open(out.path) as land_cover:
            found = np.moveaxis(land_cover.read()[1:], 0, -1)
            valid = land_cover.read_masks(1) > 0
            how = json.loads(land_cover.tags()["LULC_PARAMETERS"])["blend"]
        assert how == ("none" if network.exact else "gaussian")
        if network.exact:
            np.testing.assert_allclose(found[valid], expected[valid], atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind, (_, reason) in NETWORKS.items() if reason])
def test_what_looks_at_the_whole_image_is_the_same_graph_too(tmp_path: Path, kind: str) -> None:
    model = drawn(NETWORKS[kind][0]())
    model.save(tmp_path / "net.keras")
    content = read_graph(tmp_path / "net.keras", 3).content
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(2, 48, 64, 3)).astype("f4")
    np.testing.assert_allclose(session.run(None, {"image": x})[0], model.predict(x, verbose=0), atol=1e-5)


FUNCTIONS = ["relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "hard_sigmoid",
             "hard_silu", "mish", "softplus", "softsign", "tanh", "exponential", "softmax",
             "log_softmax"]  # fmt: skip


def test_activations_and_merges_are_those_of_keras(tmp_path: Path) -> None:
    picture = image()
    x = L.Conv2D(6, 3, padding="same")(picture)
    parts = [L.Activation(function)(x) for function in FUNCTIONS]
    for merge in (L.Add, L.Average, L.Maximum, L.Minimum, L.Multiply, L.Subtract):
        parts.append(merge()([x, L.Conv2D(6, 1)(picture)]))
    parts += [keras.ops.abs(x), 1 - x, x / 3, -x, keras.ops.maximum(x, 0.1)]
    model = drawn(keras.Model(picture, L.Concatenate()(parts)))
    model.save(tmp_path / "net.keras")
    graph = read_graph(tmp_path / "net.keras", 3)
    session = onnxruntime.InferenceSession(graph.content, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).normal(size=(1, 24, 32, 3)).astype("f4")
    expected = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(session.run(None, {"image": pixels})[0], expected, atol=1e-5, rtol=1e-5)


def test_one_of_several_outputs_is_taken_by_its_name(tmp_path: Path, legend: Path) -> None:
    picture = image()
    model = keras.Model(
        picture, [L.Conv2D(2, 1, name="edges")(picture), L.Conv2D(3, 1, name="cover")(picture)]
    )
    model.save(tmp_path / "net.keras")
    asked = {"model": tmp_path / "net.keras", "channels": CHANNELS, "legend": legend, "out": tmp_path / "net"}
    with pytest.raises(lulc.InputError, match="outputs edges, cover"):
        lulc.import_model(**asked)
    assert lulc.import_model(**asked, output="cover").card.network.classes == 3
    assert load_card(tmp_path / "net" / "network.onnx").training["imported"]["file"] == "net.keras"


def test_the_folder_is_that_of_the_graph_imported_and_calibrated_as_onnx(
    tmp_path: Path, write_stacks: Callable[..., Path]
) -> None:
    stacks = write_stacks(tmp_path / "stacks")
    table = tmp_path / "classes.csv"
    table.write_text("code,class,name,color\n" + "".join(f"{i},{i},class {i},#102030\n" for i in (1, 2, 3)))
    drawn(unet()).save(tmp_path / "net.keras")
    given = {"channels": ["B02", "B03", "B04"], "legend": table, "calibrate": stacks, "std": 1000}
    first: Any = lulc.import_model(model=tmp_path / "net.keras", out=tmp_path / "a", **given)
    second: Any = lulc.import_model(model=first.path, out=tmp_path / "b", **given)
    assert first.path.read_bytes() == second.path.read_bytes()
    for name in ("network", "stride", "halo", "temperature", "scores", "sha256"):
        assert getattr(first.card, name) == getattr(second.card, name)
    assert first.card.temperature != 1 and first.accuracy == second.accuracy


class Doubled(L.Layer):
    def call(self, x: Tensor) -> Tensor:
        return 2 * x


def lambda_layer() -> Any:
    return model_of(lambda x: L.Conv2D(3, 1)(L.Lambda(lambda t: 2 * t)(x)))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda_layer, "'lambda', which is not among those"),
        (lambda: model_of(lambda x: L.Conv2D(3, 1)(Doubled()(x))), "its layer 'Doubled' .* is none of Keras"),
        (lambda: model_of(lambda x: L.Conv2D(3, 1)(keras.ops.gelu(x, True))), "approximate = True"),
        (lambda: model_of(lambda x: L.Conv2D(3, 1)(keras.ops.tan(x))), "'tan', which is not among those"),
        (lambda: model_of(lambda x: L.UpSampling2D(interpolation="bicubic")(L.Conv2D(3, 2)(x))), "= bicubic"),
        (lambda: model_of(lambda x: L.Conv2D(3, 2)(x)), "expected a score of each class at each of them"),
        (lambda: keras.Sequential([keras.Input((8,)), L.Dense(3)]), "expected one image"),
    ],
)
def test_layers_and_arguments_that_are_not_known_are_refused(
    tmp_path: Path, legend: Path, build: Callable[[], Any], told: str
) -> None:
    build().save(tmp_path / "net.keras")
    with pytest.raises(lulc.InputError, match=told):
        lulc.import_model(
            model=tmp_path / "net.keras", channels=CHANNELS, legend=legend, out=tmp_path / "net"
        )
    assert not (tmp_path / "net" / "network.onnx").exists()


def changed(path: Path, change: Callable[[dict[str, bytes], Any], None]) -> None:
    """Write the archive again with other members, or another configuration."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members[CONFIG])
    change(members, config)
    members[CONFIG] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _layer(config: Any, kind: str) -> Any:
    return next(one for one in config["config"]["layers"] if one["class_name"] == kind)


def _other_module(members: dict[str, bytes], config: Any) -> None:
    _layer(config, "Conv2D")["module"] = "os"


def _registered(members: dict[str, bytes], config: Any) -> None:
    _layer(config, "Conv2D")["registered_name"] = "evil>Conv2D"


def _model_class(members: dict[str, bytes], config: Any) -> None:
    config["class_name"] = "Evil"


def _unknown(members: dict[str, bytes], config: Any) -> None:
    _layer(config, "Conv2D")["config"]["new_argument"] = 3


def _cyclic(members: dict[str, bytes], config: Any) -> None:
    node = _layer(config, "Conv2D")["inbound_nodes"][0]["args"][0]
    node["config"]["keras_history"][0] = _layer(config, "Conv2D")["name"]


def _old(members: dict[str, bytes], config: Any) -> None:
    members[METADATA] = b'{"keras_version": "2.15.0"}'


def _more(members: dict[str, bytes], config: Any) -> None:
    members["code.py"] = b"import os"


def _arrays(change: Callable[[Any], None]) -> Callable[[dict[str, bytes], Any], None]:
    def write(members: dict[str, bytes], config: Any) -> None:
        target = io.BytesIO(members[WEIGHTS])
        with h5py.File(target, "r+") as file:
            change(file)
        members[WEIGHTS] = target.getvalue()

    return write


def _replace(file: Any, values: Any) -> None:
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars/0"] = values


def _link(file: Any) -> None:
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars/0"] = h5py.ExternalLink("/etc/passwd", "x")


def _many(members: dict[str, bytes], config: Any) -> None:
    """Put models into models, each of which calls the one below twice."""
    _layer(config, "Conv2D").update(class_name="ReLU", config={"name": "conv2d"}, registered_name=None)
    inner = {**config, "config": {**config["config"]}}
    for _ in range(40):
        calls = [
            {"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": [*source, 0]}}]}
            for source in (("picture", 0), ("inner", 0))
        ]
        layers = [_layer(config, "InputLayer"), {**inner, "name": "inner", "inbound_nodes": calls}]
        inner = {**config, "config": {
            "layers": layers, "input_layers": [["picture", 0, 0]], "output_layers": [["inner", 1, 0]],
        }}  # fmt: skip
    config["config"] = inner["config"]


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes], Any], None], str]] = {
    "a module of others": (_other_module, "none of Keras"),
    "a registered class": (_registered, "evil>Conv2D\\) is none of Keras"),
    "another class of model": (_model_class, "Evil"),
    "an unknown argument": (_unknown, "has new_argument"),
    "a layer that needs itself": (_cyclic, "depend on each other"),
    "Keras 2": (_old, "Keras 2.15.0 wrote it"),
    "a further member": (_more, "it holds the members"),
    "arrays of another shape": (_arrays(lambda f: _replace(f, np.zeros((3, 3), "f4"))), "are not those"),
    "arrays of other sizes": (_arrays(lambda f: _replace(f, np.zeros((1, 1, 7, 3), "f4"))), "does not fit"),
    "NaN": (_arrays(lambda f: _replace(f, np.full((1, 1, 3, 3), np.nan, "f4"))), "NaN"),
    "no array": (_arrays(lambda f: f.__delitem__("layers/conv2d/vars/0")), "are not those"),
    "an external link": (_arrays(_link), "external link"),
    "models that call models": (_many, "makes more than"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_keras_file_that_holds_more_or_other_things_is_refused(
    tmp_path: Path, legend: Path, kind: str
) -> None:
    change, told = HOSTILE[kind]
    path = tmp_path / "net.keras"
    model_of(lambda x: L.Conv2D(3, 1)(x)).save(path)
    changed(path, change)
    with pytest.raises(lulc.InputError, match=told):
        lulc.import_model(model=path, channels=CHANNELS, legend=legend, out=tmp_path / "net")
