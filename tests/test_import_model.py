"""A network of another toolkit makes the map that its own runtime makes of the whole image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import lulc
from lulc.cli.import_model import main
from lulc.core.schema import BANDS
from lulc.engines import registry
from lulc.models.card import load_card
from lulc.models.onnx_file import read_graph

pytestmark = pytest.mark.integration

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CHANNELS = ("B04", "B03", "B02")
SIDES = ["n", 3, "h", "w"]


class Graph:
    """Builds small ONNX graphs with weights drawn at random."""

    def __init__(self, sides: Sequence[Any] = SIDES, opset: int = 17) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.sides, self.opset = sides, opset

    def add(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> str:
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        made = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, names, made, **attributes))
        return made[0]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def draw(self, *shape: int) -> np.ndarray:
        return self.rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype("f4")

    def conv(self, x: str, old: int, new: int, side: int = 3, **attributes: Any) -> str:
        reach = attributes.get("dilations", [1, 1])[0] * (side // 2)
        given = {"pads": [reach] * 4, **attributes}
        return self.add("Conv", x, self.draw(new, old, side, side), self.draw(new), **given)

    def save(self, path: Path, result: str, classes: int = 3, last: bool = False, **more: Any) -> Path:
        n = None if isinstance(self.sides[0], str) else self.sides[0]
        shape = [n, None, None, classes] if last else [n, classes, None, None]
        self.nodes.append(onnx.helper.make_node("Identity", [result], ["scores"]))
        ports = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
            for name, dims in (("image", list(self.sides)), ("scores", shape))
        ]
        graph = onnx.helper.make_graph(self.nodes, "g", [ports[0]], [ports[1]], self.weights)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        for change in more.values():
            change(model)
        path.write_bytes(model.SerializeToString())
        return path


def unet(g: Graph, up: str = "linear") -> str:
    """Two levels with a skip connection; the size is taken from the skip, as PyTorch exports it."""
    skip = g.add("Relu", g.conv("image", 3, 4))
    deep = g.add("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2])
    deep = g.add("Relu", g.conv(deep, 4, 6, dilations=[2, 2]))
    if up == "transposed":
        deep = g.add("ConvTranspose", deep, g.draw(6, 6, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    elif up == "shuffle":
        deep = g.add("DepthToSpace", g.conv(deep, 6, 24, 1), blocksize=2, mode="CRD")
    else:
        modes = {"nearest": {"mode": "nearest"}, "linear": {"mode": "linear"}, "cubic": {"mode": "cubic"},
                 "floor": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                           "nearest_mode": "floor"}}[up]  # fmt: skip
        size = g.add("Slice", g.add("Shape", skip), np.array([2]), np.array([4]))
        start = g.add("Slice", g.add("Shape", deep), np.array([0]), np.array([2]))
        deep = g.add("Resize", deep, "", "", g.add("Concat", start, size, axis=0), **modes)
    return g.conv(g.add("Concat", deep, skip, axis=1), 10, 3)


def strided(g: Graph) -> str:
    x = g.add("Pad", "image", np.array([0, 0, 2, 2, 0, 0, 2, 2]), mode="reflect")
    x = g.add("LeakyRelu", g.conv(x, 3, 8, 5, strides=[4, 4], pads=[0, 0, 0, 0]), alpha=0.1)
    x = g.add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    x = g.add("ConvTranspose", x, g.draw(8, 6, 4, 4), strides=[4, 4])
    scale, bias, mean, var = np.ones(6, "f4"), np.zeros(6, "f4"), g.draw(6), np.ones(6, "f4")
    x = g.add("BatchNormalization", x, scale, bias, mean, var)
    return g.add("Softmax", g.conv(x, 6, 3, 1), axis=1)


def channels_last(g: Graph) -> str:
    x = g.add("Transpose", "image", perm=[0, 3, 1, 2])
    x = g.add("Transpose", g.add("Relu", g.conv(x, 3, 8)), perm=[0, 2, 3, 1])
    x = g.add("LayerNormalization", x, np.ones(8, "f4"), np.zeros(8, "f4"), axis=-1)
    return g.add("Add", g.add("MatMul", x, g.draw(8, 3)), g.draw(3))


def transformer(g: Graph, side: int | None = None) -> str:
    """Attention between all patches of 8 x 8 pixels."""
    x = g.conv("image", 3, 8, 8, strides=[8, 8], pads=[0, 0, 0, 0])
    shape = g.add("Shape", x)
    tokens = g.add("Transpose", g.add("Reshape", x, np.array([0, 8, -1])), perm=[0, 2, 1])
    q, k, v = (g.add("MatMul", tokens, g.draw(8, 8)) for _ in range(3))
    weights = g.add("Softmax", g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1])), axis=-1)
    tokens = g.add("Add", tokens, g.add("MatMul", weights, v))
    x = g.add("Reshape", g.add("Transpose", tokens, perm=[0, 2, 1]), shape)
    return g.add("ConvTranspose", x, g.draw(8, 3, 8, 8), strides=[8, 8])


def excited(g: Graph) -> str:
    x = g.conv("image", 3, 4)
    weights = g.add("Sigmoid", g.conv(g.add("GlobalAveragePool", x), 4, 4, 1))
    return g.conv(g.add("Mul", x, weights), 4, 3)


EXACT: dict[str, tuple[Callable[[Graph], str], tuple[int, int], dict[str, Any]]] = {
    # By hand, from the last convolution on: 1, then 1 at half size, 2 of the dilated one, so 7 of the image.
    "bilinear": (unet, (2, 8), {}),
    "transposed": (lambda g: unet(g, "transposed"), (2, 8), {}),
    "pixel shuffle": (lambda g: unet(g, "shuffle"), (2, 8), {}),
    "nearest": (lambda g: unet(g, "nearest"), (2, 8), {}),
    "floor": (lambda g: unet(g, "floor"), (2, 8), {}),
    "bicubic": (lambda g: unet(g, "cubic"), (2, 10), {}),
    "strides": (strided, (4, 8), {}),
    "channels last": (channels_last, (1, 1), {"sides": ["n", "h", "w", 3]}),
    "one image at a time": (unet, (2, 8), {"sides": [1, 3, "h", "w"]}),
    "one size": (unet, (2, 8), {"sides": [1, 3, 48, 64]}),
}


@pytest.fixture(scope="module")
def mosaic(write_bands: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bands(tmp_path_factory.mktemp("mosaic") / "mosaic.tif", 90, 130)


@pytest.fixture
def legend(tmp_path: Path) -> Path:
    path = tmp_path / "classes.csv"
    path.write_text("code,class,name,color\n1,1,water,#0000ff\n2,2,field,#ffff00\n3,3,wood,#00ff00\n")
    return path


def imported(path: Path, legend: Path, *more: str) -> Path:
    out = path.with_suffix("")
    arguments = [str(path), "--channels", *CHANNELS, "--legend", str(legend), "--out", str(out), *more]
    assert main(arguments) == 0
    return out


def whole(path: Path, mosaic: Path, stride: int, std: float, last: bool) -> np.ndarray:
    """Probabilities (y, x, class) of one pass over the whole image, by onnxruntime alone."""
    with lulc.open_stack(mosaic, channels=CHANNELS) as stack:
        image = stack.read(stack.grid.extent)
    height, width = image.shape[:2]
    x = np.nan_to_num(image / np.float32(std))
    x = np.pad(x, [(0, -height % stride), (0, -width % stride), (0, 0)])[np.newaxis]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    y = session.run(None, {"image": x if last else np.moveaxis(x, -1, 1).copy()})[0]
    y = (y if last else np.moveaxis(y, 1, -1))[0, :height, :width]
    if not np.allclose(y.sum(-1), 1, atol=1e-4):
        y = np.exp(y - y.max(-1, keepdims=True))
        y /= y.sum(-1, keepdims=True)
    return np.where(np.isnan(image[..., :1]), np.nan, y)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", EXACT)
def test_windows_with_the_derived_halo_equal_one_pass_over_the_whole_image(
    tmp_path: Path, legend: Path, mosaic: Path, kind: str, engine: str
) -> None:
    build, geometry, given = EXACT[kind]
    graph = Graph(**given)
    path = graph.save(tmp_path / "net.onnx", build(graph), last=kind == "channels last")
    run = imported(path, legend, "--std", "2000")
    card = load_card(run / "network.onnx")
    assert (card.stride, card.halo) == geometry
    options = {} if kind == "one size" else {"window": card.stride * (2 * card.halo // card.stride + 8)}
    made = lulc.classify(run, mosaic, tmp_path / "map.tif", engine=engine, batch_size=2, **options)
    with rasterio.open(made.path) as land_cover:
        found = np.where(land_cover.read_masks(1) > 0, land_cover.read()[1:], np.nan)
        assert json.loads(land_cover.tags()["LULC_ENGINE"])["name"] == engine
    free = path
    if kind == "one size":
        graph.sides = ["n", 3, "h", "w"]
        graph.nodes.pop()
        free = graph.save(tmp_path / "free.onnx", graph.nodes[-1].output[0])
    expected = whole(free, mosaic, card.stride, 2000, kind == "channels last")
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), expected, atol=1e-5)


@pytest.mark.parametrize("kind", EXACT)
def test_the_halo_is_no_smaller_than_what_a_pixel_depends_on(tmp_path: Path, kind: str) -> None:
    build, _, given = EXACT[kind]
    graph = Graph(**{**given, "sides": [1, "h", "w", 3] if kind == "channels last" else [1, 3, "h", "w"]})
    path = graph.save(tmp_path / "net.onnx", build(graph), last=kind == "channels last")
    found = read_graph(path, 3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    side = 4 * found.halo + 8 * found.stride
    last = found.network.image_last
    x = np.random.default_rng(1).normal(size=(1, 3, side, side)).astype("f4")
    x = np.moveaxis(x, 1, -1).copy() if last else x
    begin = 2 * found.halo + 2 * found.stride
    cell = slice(begin, begin + found.stride)
    changed = x.copy()
    inside = slice(begin - found.halo, begin + found.stride + found.halo)
    kept = np.zeros((side, side), bool)
    kept[inside, inside] = True
    (changed if last else np.moveaxis(changed, 1, -1))[0, ~kept] += 5
    results = [session.run(None, {"image": given})[0] for given in (x, changed)]
    cells = [(r if last else np.moveaxis(r, 1, -1))[0, cell, cell] for r in results]
    np.testing.assert_allclose(*cells, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "sides"), [(transformer, SIDES), (excited, SIDES), (transformer, [1, 3, 64, 64])]
)
def test_a_network_that_sees_the_whole_image_is_blended(
    tmp_path: Path, legend: Path, mosaic: Path, build: Callable[[Graph], str], sides: list[Any]
) -> None:
    graph = Graph(sides)
    run = imported(graph.save(tmp_path / "net.onnx", build(graph)), legend, "--std", "2000")
    card = load_card(run / "network.onnx")
    assert card.halo == 0 and json.loads((run / "network.json").read_text())["network"]["reason"]
    given = {} if 64 in sides else {"window": 64}
    made = lulc.classify(run, mosaic, tmp_path / "map.tif", **given)
    with rasterio.open(made.path) as land_cover:
        assert json.loads(land_cover.tags()["LULC_PARAMETERS"])["blend"] == "gaussian"
        probabilities = land_cover.read()[1:, land_cover.read_masks(1) > 0]
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-4)
    asked: Any = lulc.classify(run, mosaic, tmp_path / "asked.tif", blend="gaussian", **given)
    assert asked.path.read_bytes() == made.path.read_bytes()
    if 64 in sides:
        with pytest.raises(lulc.InputError, match="only windows of 64 x 64 pixels"):
            lulc.classify(run, mosaic, tmp_path / "other.tif", window=128)


def test_a_lazy_array_gives_the_map_of_the_file(tmp_path: Path, legend: Path, mosaic: Path) -> None:
    graph = Graph()
    run = imported(graph.save(tmp_path / "net.onnx", unet(graph)), legend, "--std", "2000")
    with lulc.open_stack(mosaic, channels=CHANNELS) as stack:
        array = stack.to_xarray().load().chunk({"y": 40, "x": 50})
    found: Any = lulc.classify(run, array, scale=1e-4, offset=0, window=48)
    made: Any = lulc.classify(run, mosaic, tmp_path / "map.tif", window=32)
    with lulc.open_map(made.path) as land_cover:
        np.testing.assert_array_equal(found["class"].values, land_cover.read(land_cover.grid.extent))
        expected = land_cover.read_activations(land_cover.grid.extent)
    np.testing.assert_allclose(np.moveaxis(found["probability"].values, 0, -1), expected, atol=1e-5)


def test_a_map_says_how_to_make_it_again(tmp_path: Path, legend: Path, mosaic: Path) -> None:
    graph = Graph()
    run = imported(graph.save(tmp_path / "net.onnx", unet(graph)), legend, "--std", "2000")
    lulc.classify(run, mosaic, tmp_path / "map.tif")
    again: Any = lulc.reproduce(map=tmp_path / "map.tif", inputs=mosaic.parent, model=run / "network.onnx")
    assert again.comparison is not None and again.comparison.same_file


def test_our_own_export_comes_back_as_the_same_network(
    tiny_model: Path, tmp_path: Path, mosaic: Path
) -> None:
    lulc.export_model(model=tiny_model, out=tmp_path / "own.onnx")
    card = load_card(tiny_model)
    table = tmp_path / "own.csv"
    rows = [f"{c.number},{c.number},{c.name},{c.color}" for c in card.legend.classes]
    table.write_text("\n".join(["code,class,name,color", *rows]) + "\n")
    channels = [c.name for c in card.channels]
    made: Any = lulc.import_model(
        model=tmp_path / "own.onnx", channels=channels, legend=table, out=tmp_path / "own"
    )
    assert (made.card.stride, made.card.halo, made.card.network.reason) == (card.stride, card.halo, "")
    maps = [
        lulc.classify(model, mosaic, tmp_path / f"{k}.tif", engine="openvino", window=64).path
        for k, model in enumerate((tiny_model, made.path))
    ]
    with rasterio.open(maps[0]) as ours, rasterio.open(maps[1]) as theirs:
        np.testing.assert_allclose(ours.read(), theirs.read(), atol=1e-5)


@pytest.mark.parametrize("name", ["run.json", "models.json"])
def test_a_folder_with_a_training_takes_no_network(tmp_path: Path, legend: Path, name: str) -> None:
    graph = Graph()
    path = graph.save(tmp_path / "net.onnx", unet(graph))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(lulc.InputError, match="holds a training"):
        lulc.import_model(
            model=path, channels=CHANNELS, legend=legend, out=tmp_path / "run", overwrite=True
        )  # fmt: skip
    assert [one.name for one in (tmp_path / "run").iterdir()] == [name]


def test_calibration_fits_temperature_and_accuracy_on_the_stacks(
    write_stacks: Callable[..., Path], tmp_path: Path
) -> None:
    stacks = write_stacks(tmp_path / "stacks", side=100)
    graph = Graph()
    path = graph.save(tmp_path / "net.onnx", graph.add("Mul", unet(graph), np.float32(30)))
    lines = "\n".join(f"{k},{k},class {k},#10203{k}" for k in (1, 2, 3))
    (tmp_path / "c.csv").write_text(f"code,class,name,color\n{lines}\n")
    made: Any = lulc.import_model(
        model=path, channels=["B02", "B03", "B04"], legend=tmp_path / "c.csv", out=tmp_path / "net",
        calibrate=stacks, std=1000,
    )  # fmt: skip
    from lulc.datasets.loading import load_manifest
    from lulc.datasets.manifest import open_tile

    image, masks = open_tile(load_manifest(stacks).of("val")[0])
    x = np.nan_to_num(np.moveaxis(np.asarray(image), -1, 0)[np.newaxis] / np.float32(1000))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    classes = 1 + session.run(None, {"image": x})[0][0].argmax(axis=0)
    known = (np.asarray(masks) != 255) & ~np.isnan(np.asarray(image)[..., 0])
    assert made.accuracy == pytest.approx((classes == masks)[known].mean(), abs=1e-3)
    assert made.card.temperature > 2
    with pytest.raises(lulc.InputError, match="expected those of the network: B02, B03, B08"):
        lulc.import_model(
            model=path, channels=["B02", "B03", "B08"], legend=tmp_path / "c.csv", out=tmp_path / "other",
            calibrate=stacks,
        )  # fmt: skip
    assert not (tmp_path / "other" / "network.onnx").exists()


@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize("after", ["Resize", "Clip", "Mean", "Squeeze"])
def test_probabilities_that_a_graph_resizes_or_bounds_are_no_logits(
    tmp_path: Path, legend: Path, mosaic: Path, ending: str, after: str
) -> None:
    graph, classes = Graph(), 3 if ending == "Softmax" else 1
    strides = [2, 2] if after == "Resize" else [1, 1]
    scores = graph.conv("image", 3, classes, strides=strides)
    y = graph.add(ending, scores, **({"axis": 1} if classes == 3 else {}))
    y = {
        "Resize": lambda: graph.add("Resize", y, "", np.float32([1, 1, 2, 2]), mode="linear"),
        "Clip": lambda: graph.add("Clip", y, np.float32(1e-6), np.float32(1)),
        "Mean": lambda: graph.add("Mean", y, y),
        "Squeeze": lambda: graph.add("Unsqueeze", graph.add("Squeeze", y, np.array([0])), np.array([0])),
    }[after]()
    path = graph.save(tmp_path / "net.onnx", y, classes=classes)
    one = () if classes == 3 else ("--single-class", "water")
    lulc.classify(imported(path, legend, "--std", "2000", *one), mosaic, tmp_path / "map.tif")
    with lulc.open_map(tmp_path / "map.tif") as made:
        found = made.read_activations(made.grid.extent)[..., :classes]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with lulc.open_stack(mosaic, channels=CHANNELS) as stack:
        image = np.nan_to_num(stack.read(stack.grid.extent) / np.float32(2000))
    expected = session.run(None, {"image": np.moveaxis(image, -1, 0)[np.newaxis].copy()})[0][0]
    np.testing.assert_allclose(
        found[~np.isnan(found)], np.moveaxis(expected, 0, -1)[~np.isnan(found)], atol=2e-5
    )


@pytest.mark.parametrize("own", [False, True])
def test_probabilities_without_a_softmax_are_warned_about(
    tmp_path: Path, legend: Path, own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    graph = Graph()
    y = graph.conv("image", 3, 3)
    if own:
        powers = graph.add("Exp", y)
        y = graph.add("Div", powers, graph.add("ReduceSum", powers, np.array([1]), keepdims=1))
    lulc.import_model(
        model=graph.save(tmp_path / "net.onnx", y), channels=CHANNELS, legend=legend, out=tmp_path / "net"
    )
    assert ("lie within 0 to 1" in caplog.text) == own


def test_a_single_output_is_one_class_against_the_rest(tmp_path: Path, legend: Path, mosaic: Path) -> None:
    graph = Graph()
    path = graph.save(tmp_path / "net.onnx", graph.add("Sigmoid", graph.conv("image", 3, 1)), classes=1)
    run = imported(path, legend, "--std", "2000", "--single-class", "water")
    found: Any = lulc.classify(run, mosaic, tmp_path / "map.tif")
    assert found.legend.names == ("water",)


def _outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def _foreign(model: Any) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def _function(model: Any) -> None:
    function = onnx.helper.make_function(
        "com.example", "F", ["x"], ["y"], [onnx.helper.make_node("Relu", ["x"], ["y"])],
        [onnx.helper.make_opsetid("", 17)],
    )  # fmt: skip
    model.functions.append(function)


def _shape_bomb(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def _branch(model: Any) -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["o"])], "b", [],
        [onnx.helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = model.graph.node[0]
    node.op_type = "If"
    node.attribute.append(onnx.helper.make_attribute("then_branch", inner))


def _smuggled(model: Any) -> None:
    inner = onnx.helper.make_graph([], "b", [], [])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("other", inner))


def _nan(model: Any) -> None:
    tensor = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.ravel()[1] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _old(model: Any) -> None:
    model.opset_import[0].version = 7


def _training(model: Any) -> None:
    model.graph.node[0].op_type = "Dropout"
    del model.graph.node[0].attribute[:]


def _sparse(model: Any) -> None:
    model.graph.sparse_initializer.add()


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "external data": (_outside, "takes its values from another file"),
    "operators of others": (_foreign, "operator 'com.example.Conv'"),
    "functions": (_function, "it holds functions"),
    "a shape bomb": (_shape_bomb, "declares .* but stores"),
    "a branch": (_branch, "operator 'If'"),
    "a graph in an attribute": (_smuggled, "holds another graph"),
    "NaN": (_nan, "holds NaN"),
    "an old version": (_old, "version of operators is 7"),
    "training mode": (_training, "in training mode"),
    "sparse weights": (_sparse, "sparse weights"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_holds_more_than_a_network_is_refused(
    tmp_path: Path, legend: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, told = HOSTILE[kind]
    graph = Graph()
    path = graph.save(tmp_path / "net.onnx", unet(graph), change=change)
    with pytest.raises(lulc.InputError, match=told):
        lulc.import_model(model=path, channels=CHANNELS, legend=legend, out=tmp_path / "net")
    assert not (tmp_path / "net" / "network.onnx").exists()
    # As weights of a map they are refused as well, whatever a card says.
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(lulc.InputError):
        lulc.classify(path, "mosaic.tif", tmp_path / "map.tif")


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda g: g.conv("image", 3, 2), "2 outputs and the legend 3 classes"),
        (lambda g: g.conv("image", 3, 3, pads=[0] * 4), "expected a score of each class at each of them"),
        (lambda g: g.add("Sigmoid", g.conv("image", 3, 3)), "don't exclude each other"),
        (lambda g: g.add("Tile", g.conv("image", 3, 3), np.array([1, 1, 3000, 3000])), "shape bomb"),
        (lambda g: g.add("Expand", g.add("ConstantOfShape", np.array([9**9])), np.array([9**9])), "bomb"),
        (lambda g: g.conv("image", 3, 3, strides=[2, 2]), "each of them"),
        (lambda g: g.add("Softmax", g.conv("image", 3, 3), axis=3), "don't sum to 1"),
        (lambda g: g.add("Softmax", g.conv("image", 3, 1), axis=1), "which is 1 everywhere"),
    ],
)  # fmt: skip
def test_a_graph_that_gives_no_scores_of_pixels_is_refused(
    tmp_path: Path, legend: Path, build: Callable[[Graph], str], told: str
) -> None:
    graph = Graph()
    path = graph.save(tmp_path / "net.onnx", build(graph))
    with pytest.raises(lulc.InputError, match=f"{told}|does not depend on its input"):
        lulc.import_model(model=path, channels=CHANNELS, legend=legend, out=tmp_path / "net")


@pytest.mark.parametrize("content", [b"", b"\x08\x08", b"\xff" * 1000, b"{}", bytes(range(256)) * 40])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, legend: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(lulc.InputError, match="cannot use the network"):
        lulc.import_model(model=path, channels=CHANNELS, legend=legend, out=tmp_path / "net")


def test_a_network_exchanged_after_its_import_is_refused(tmp_path: Path, legend: Path, mosaic: Path) -> None:
    graph = Graph()
    run = imported(graph.save(tmp_path / "net.onnx", unet(graph)), legend)
    other = Graph()
    (run / "network.onnx").write_bytes(other.save(tmp_path / "o.onnx", strided(other)).read_bytes())
    with pytest.raises(lulc.InputError, match="its sha256 is"):
        lulc.classify(run, mosaic, tmp_path / "map.tif")


def test_engines_that_do_not_run_it_are_refused(tmp_path: Path, legend: Path, mosaic: Path) -> None:
    graph = Graph()
    run = imported(graph.save(tmp_path / "net.onnx", unet(graph)), legend)
    for engine in ("keras", "openvino-int8", "numpy"):
        with pytest.raises(lulc.InputError, match=f"with the engine '{engine}'"):
            lulc.classify(run, mosaic, tmp_path / "map.tif", engine=engine)


def test_the_gpu_is_taken_where_onnxruntime_has_it_and_refused_where_not(
    tmp_path: Path, legend: Path, mosaic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph()
    run = imported(graph.save(tmp_path / "net.onnx", unet(graph)), legend)
    network = load_card(run / "network.onnx").network
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(lulc.InputError, match="computes on the processor alone") as error:
            lulc.classify(run, mosaic, tmp_path / "map.tif", engine="onnxruntime-cuda")
        assert "pip install '.[onnx-gpu]'" in error.value.hint and not (tmp_path / "map.tif").exists()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(registry, "has_cuda", lambda: True)
    assert registry.choose_engine("auto", tmp_path, networks=[network]) == "openvino"
    (tmp_path / "nvidia0").touch()
    assert registry.choose_engine("auto", tmp_path, networks=[network]) == "onnxruntime-cuda"
    monkeypatch.setattr(registry, "has_cuda", lambda: False)
    assert registry.choose_engine("auto", tmp_path, networks=[network]) == "openvino"


TORCH = """
import sys, torch
from torch import nn
torch.manual_seed(0)
class Block(nn.Sequential):
    def __init__(self, a, b):
        super().__init__(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(),
                         nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Block(3, 8), Block(8, 12), Block(12, 16)
        self.up, self.d = nn.ConvTranspose2d(16, 12, 2, stride=2), Block(24, 12)
        self.e, self.out = Block(20, 8), nn.Conv2d(8, 3, 1)
    def forward(self, x):
        a = self.a(x)
        b = self.b(nn.functional.max_pool2d(a, 2))
        c = self.c(nn.functional.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up(c), b], 1))
        d = nn.functional.interpolate(d, size=a.shape[2:], mode="bilinear", align_corners=False)
        return self.out(self.e(torch.cat([d, a], 1)))
class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.ConvTranspose2d(16, 3, 8, stride=8)
    def forward(self, x):
        x = self.patches(x)
        y = self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.out(y.reshape(x.shape))
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.qkv = nn.Conv2d(3, 16, 8, stride=8), nn.LayerNorm(16), nn.Linear(16, 48)
        self.out = nn.ConvTranspose2d(16, 3, 8, stride=8)
    def forward(self, x):
        x = self.patches(x)
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v
        return self.out(tokens.transpose(1, 2).reshape(x.shape))
class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.Conv2d(8, 3, 1)
    def forward(self, x):
        return self.out(torch.relu(self.norm(self.a(x))))
kinds = {"unet": UNet, "transformer": Transformer, "attention": Attention, "grouped": Grouped}
net = kinds[sys.argv[2]]().eval()
side = int(sys.argv[3])
dynamic = {"image": {0: "n", 2: "h", 3: "w"}} if side == 64 else None
image = torch.rand(1, 3, side, side)
torch.onnx.export(net, torch.zeros(1, 3, side, side), sys.argv[1], dynamo=False, opset_version=17,
                  input_names=["image"], dynamic_axes=dynamic)
with torch.no_grad():
    import numpy
    numpy.savez(sys.argv[1] + ".npz", image=image.numpy(), scores=net(image).numpy())
"""


def _python_with_torch() -> str:
    """An interpreter that has PyTorch: this one, or that of ``LULC_TORCH_PYTHON``."""
    import importlib.util
    import os

    if importlib.util.find_spec("torch"):
        return sys.executable
    other = os.environ.get("LULC_TORCH_PYTHON", "")
    if not other:
        pytest.skip("needs PyTorch (make test-backends), or LULC_TORCH_PYTHON with a Python that has it")
    return other


def exported(path: Path, kind: str, side: int) -> Path:
    """A network of PyTorch as ONNX; of any height and width where the side is 64."""
    call = [_python_with_torch(), "-c", TORCH, str(path), kind, str(side)]
    subprocess.run(call, check=True, capture_output=True)
    return path


@pytest.mark.backends
def test_a_network_of_one_size_that_was_exported_for_any_is_refused(tmp_path: Path, legend: Path) -> None:
    path = exported(tmp_path / "net.onnx", "transformer", 64)
    with pytest.raises(
        lulc.InputError, match=r"does not fit an image of 512 x 768 .* with height and width fixed"
    ):
        lulc.import_model(model=path, channels=CHANNELS, legend=legend, out=tmp_path / "net")


@pytest.mark.backends
def test_a_unet_exported_from_pytorch_makes_the_map_of_its_whole_image(
    tmp_path: Path, legend: Path, mosaic: Path
) -> None:
    path = exported(tmp_path / "net.onnx", "unet", 64)
    run = imported(path, legend, "--std", "2000")
    card = load_card(run / "network.onnx")
    assert card.stride == 4 and 8 <= card.halo <= 32
    made = lulc.classify(run, mosaic, tmp_path / "map.tif", window=4 * (card.halo // 2 + 6))
    with rasterio.open(made.path) as land_cover:
        found = np.where(land_cover.read_masks(1) > 0, land_cover.read()[1:], np.nan)
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), whole(path, mosaic, 4, 2000, False), atol=1e-5)


@pytest.mark.backends
@pytest.mark.parametrize(
    ("kind", "side", "reason"),
    [
        ("attention", 64, "attention compares all parts"),
        ("transformer", 96, "attention compares all parts"),
        ("grouped", 64, "group or instance normalisation"),
    ],
)
def test_a_transformer_exported_from_pytorch_is_blended(
    tmp_path: Path, legend: Path, mosaic: Path, kind: str, side: int, reason: str
) -> None:
    path = exported(tmp_path / "net.onnx", kind, side)
    run = imported(path, legend, "--std", "2000")
    card = load_card(run / "network.onnx")
    assert card.halo == 0 and reason in json.loads((run / "network.json").read_text())["network"]["reason"]
    found = read_graph(run / "network.onnx", 3)
    session = onnxruntime.InferenceSession(found.content, providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "net.onnx.npz") as known:
        scores = session.run(None, {"image": known["image"]})[0]
        np.testing.assert_allclose(scores, known["scores"], atol=1e-5)
    made = lulc.classify(run, mosaic, tmp_path / "map.tif", **({"window": 64} if side == 64 else {}))
    with rasterio.open(made.path) as land_cover:
        parameters = json.loads(land_cover.tags()["LULC_PARAMETERS"])
        probabilities = land_cover.read()[1:, land_cover.read_masks(1) > 0]
    assert parameters["blend"] == "gaussian" and parameters["window"] == [min(side, 90), side]
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-4)


def test_the_bands_of_the_mosaic_are_those_of_the_stack() -> None:
    assert set(CHANNELS) <= set(BANDS)
