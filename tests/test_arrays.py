"""An array is classified as the file that holds it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr

import lulc
from lulc.config import InputConfig, TrainConfig
from lulc.core.schema import BANDS, LandCoverClass, Legend
from lulc.training.data.in_memory import dataset_of as in_memory_set

READING = InputConfig(scale=1e-4, offset=0)

pytestmark = pytest.mark.integration


def in_memory(path: Path) -> xr.DataArray:
    """The bands of a raster as rioxarray gives them, without its help."""
    with rasterio.open(path) as source:
        t = source.transform
        return xr.DataArray(
            source.read(),
            dims=("band", "y", "x"),
            coords={
                "band": list(BANDS),
                "y": t.f + t.e * (np.arange(source.height) + 0.5),
                "x": t.c + t.a * (np.arange(source.width) + 0.5),
                "spatial_ref": xr.DataArray(0, attrs={"crs_wkt": source.crs.to_wkt()}),
            },
            attrs={"_FillValue": source.nodata} if source.nodata is not None else {},
        )


@pytest.fixture(scope="module")
def made(
    tiny_model: Path, write_bands: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A mosaic and its map, made by the command's function."""
    folder = tmp_path_factory.mktemp("mosaic")
    mosaic = write_bands(folder / "mosaic.tif", 70, 90)
    out = folder / "map.tif"
    lulc.classify(model=tiny_model, inputs=mosaic, out=out, engine="openvino", window=32)
    return mosaic, out


def as_array(mosaic: Path, kind: str) -> xr.DataArray | xr.Dataset:
    array = in_memory(mosaic)
    return {
        "bands along a dimension": lambda: array,
        "other order": lambda: array.isel(band=slice(None, None, -1)),
        "variables": lambda: array.to_dataset("band"),
        "rows from the south": lambda: array.isel(y=slice(None, None, -1)),
        "lazy": lambda: array.chunk({"band": 1, "y": 30, "x": 41}),
        "y and x first": lambda: array.transpose("y", "x", "band"),
        "missing as NaN": lambda: array.where(array != array.attrs.get("_FillValue", 0)).assign_attrs({}),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "bands along a dimension", "other order", "variables", "rows from the south", "lazy",
        "y and x first", "missing as NaN",
    ],
)  # fmt: skip
def test_an_array_gives_the_classes_and_probabilities_of_its_file(
    tiny_model: Path, made: tuple[Path, Path], kind: str
) -> None:
    mosaic, out = made
    array = as_array(mosaic, kind)
    found = lulc.classify_array(tiny_model, array, engine="openvino", window=32)
    np.testing.assert_array_equal(found.y, array.y)
    np.testing.assert_array_equal(found.x, array.x)
    assert ("GeoTransform" in found["spatial_ref"].attrs) == (kind != "rows from the south")
    found = found.sortby("y", ascending=False)
    with lulc.open_map(out) as land_cover:
        classes = land_cover.read(land_cover.grid.extent)
        expected = land_cover.read_activations(land_cover.grid.extent)
        affine = land_cover.grid.transform
    np.testing.assert_array_equal(found["class"].values, classes)
    np.testing.assert_allclose(np.moveaxis(found["probability"].values, 0, -1), expected, atol=1e-5)
    assert len(np.unique(classes)) > 1
    assert float(found.y[0]) == affine.f + affine.e / 2 and float(found.x[0]) == affine.c + affine.a / 2


def test_the_result_names_classes_and_crs_and_is_written_as_netcdf(
    tiny_model: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    array = in_memory(made[0])
    found = lulc.classify_array(tiny_model, array, engine="openvino", extra=["entropy"])
    flags = found["class"].attrs
    assert flags["flag_values"].tolist() == [0, 1, 2, 3] and len(flags["flag_colors"].split()) == 4
    assert flags["flag_meanings"].split()[1:] == ["class_1", "class_2", "class_3"]
    assert found["probability"].dims == ("class_number", "y", "x")
    assert found["class_name"].values.tolist() == ["class 1", "class 2", "class 3"]
    wkt = array["spatial_ref"].attrs["crs_wkt"]
    assert found["spatial_ref"].attrs["crs_wkt"] == rasterio.crs.CRS.from_wkt(wkt).to_wkt()
    valid = found["class"].values != 255
    assert (np.isfinite(found["entropy"].values) == valid).all()
    found.to_netcdf(tmp_path / "map.nc")
    with rasterio.open(f"netcdf:{tmp_path / 'map.nc'}:class") as read:
        assert read.crs == rasterio.crs.CRS.from_wkt(wkt)
        np.testing.assert_array_equal(read.read(1), found["class"].values)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(70, 90, 32), (61, 47, 24), (64, 64, 64), (33, 130, 40)]
)
@pytest.mark.parametrize("options", [{}, {"tta": True, "extra": ("entropy",)}, {"batch_size": 3}])
def test_a_lazy_array_gives_a_lazy_result_equal_to_that_in_memory(
    tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path, height: int, width: int, window: int,
    options: dict[str, Any],
) -> None:  # fmt: skip
    array = in_memory(write_bands(tmp_path / "mosaic.tif", height, width))
    common: dict[str, Any] = {"engine": "openvino", "window": window, **options}
    whole = lulc.classify_array(tiny_model, array, **common)
    lazy = lulc.classify_array(tiny_model, array.chunk({"band": 2, "y": 19, "x": 37}), **common)
    assert lazy["class"].chunks and lazy["probability"].chunks
    part = {"y": slice(5, 20), "x": slice(11, 31)}
    xr.testing.assert_allclose(lazy.isel(part).compute(), whole.isel(part), atol=1e-5)
    xr.testing.assert_equal(lazy["class"].compute(), whole["class"])
    xr.testing.assert_allclose(lazy.compute(), whole, atol=1e-5)


def test_only_what_a_part_of_a_lazy_result_needs_is_read(
    tiny_model: Path, write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    array = in_memory(write_bands(tmp_path / "mosaic.tif", 300, 320))
    read: list[int] = []

    def count(block: np.ndarray) -> np.ndarray:
        read.append(block.size)
        return block

    chunked = array.chunk({"y": 32, "x": 32})
    watched = chunked.copy(data=chunked.data.map_blocks(count, meta=chunked.data._meta))
    lazy = lulc.classify_array(tiny_model, watched, engine="openvino", window=64)
    read.clear()
    lazy["class"].isel(y=slice(0, 8), x=slice(0, 8)).compute()
    assert 0 < sum(read) <= array.size / 4


def test_blending_needs_the_whole_array(tiny_model: Path, made: tuple[Path, Path]) -> None:
    with pytest.raises(lulc.InputError, match="lazy array with --blend gaussian"):
        lulc.classify_array(tiny_model, in_memory(made[0]).chunk(), engine="openvino", blend="gaussian")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_scene_classification_among_the_bands_is_said_to_be_unused(
    tiny_model: Path, made: tuple[Path, Path], lazy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bands = in_memory(made[0]).to_dataset("band")
    bands["SCL"] = xr.full_like(bands["B02"], 9)
    lulc.classify_array(tiny_model, bands.chunk() if lazy else bands, engine="openvino", scale=1e-4)
    assert "holds the scene classification SCL, which is not used" in caplog.text


def test_classify_takes_arrays_too(tiny_model: Path, made: tuple[Path, Path]) -> None:
    array = in_memory(made[0])
    found: Any = lulc.classify(model=tiny_model, inputs=array, engine="openvino")
    xr.testing.assert_identical(found, lulc.classify_array(tiny_model, array, engine="openvino"))


@pytest.mark.parametrize(
    "part",
    [
        {}, {"y": slice(3, 40), "x": slice(60, 64)}, {"y": 5}, {"x": 7, "y": 8}, {"y": slice(None, None, -3)},
        {"x": [5, 1, 80]}, {"y": slice(0, 0)},
    ],
)  # fmt: skip
def test_a_map_is_a_dataset_that_reads_what_is_asked_for(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, part: dict[str, Any]
) -> None:
    with lulc.open_map(made[1]) as land_cover:
        extent = land_cover.grid.extent
        classes = xr.DataArray(land_cover.read(extent), dims=("y", "x"))
        sums = xr.DataArray(land_cover.read_activations(extent), dims=("y", "x", "class_number"))
        pixels: list[int] = []
        read = land_cover.read
        monkeypatch.setattr(land_cover, "read", lambda w: (pixels.append(w.height * w.width), read(w))[1])
        found = land_cover.to_xarray()
        assert not pixels
        np.testing.assert_array_equal(found["class"].isel(part).values, classes.isel(part).values)
        expected = sums.isel(part).transpose("class_number", ...).values
        np.testing.assert_array_equal(found["probability"].isel(part).values, expected)
        assert found["class"].attrs["flag_values"].tolist() == [0, 1, 2, 3]
    assert sum(pixels) <= (classes.size if len(part) < 2 else 37 * 4)


def test_a_stack_is_an_array_that_is_classified_as_its_files(
    tiny_model: Path, made: tuple[Path, Path]
) -> None:
    with lulc.open_stack(made[0], channels=BANDS) as stack:
        expected = stack.read(stack.grid.extent).copy()
        array = stack.to_xarray()
        part = array.sel(band="B08").isel(y=slice(10, 20), x=3)
        np.testing.assert_array_equal(part.values, expected[10:20, 3, list(BANDS).index("B08")])
        array = array.load()
    np.testing.assert_array_equal(array.transpose("y", "x", "band").values, expected)
    found = lulc.classify_array(tiny_model, array, engine="openvino", scale=1e-4, offset=0)
    with lulc.open_map(made[1]) as land_cover:
        np.testing.assert_array_equal(found["class"].values, land_cover.read(land_cover.grid.extent))


def test_a_picture_shows_the_colours_of_the_classes_at_their_places(
    write_map: Callable[..., Path], tmp_path: Path
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    with lulc.open_map(write_map(tmp_path / "map.tif", unclassified=True)) as land_cover:
        axes = land_cover.plot()
        classes = land_cover.read(land_cover.grid.extent)
        image = axes.images[0]
        left, bottom, right, top = land_cover.grid.bounds
        assert tuple(image.get_extent()) == (left, right, bottom, top)
        drawn = image.to_rgba(image.get_array())
        for number, color in enumerate(land_cover.legend.colors, start=1):
            expected = matplotlib.colors.to_rgba(color)
            assert np.allclose(drawn[classes == number], expected)
        assert (drawn[classes == 255][:, 3] == 0).all()
        shown = {text.get_text() for text in axes.get_legend().get_texts()}
        present = {n for k, n in enumerate(land_cover.legend.names, start=1) if (classes == k).any()}
        assert shown == present | ({"Unclassified"} if (classes == 0).any() else set())
        assert any(text.get_text().endswith("m") for text in axes.texts)
        thinned = land_cover.read(land_cover.grid.extent, 7)
        assert thinned.shape == tuple(-(-n // 7) for n in classes.shape)
    matplotlib.pyplot.close("all")


def test_a_notebook_shows_a_map_without_fetching_or_running_anything(
    write_map: Callable[..., Path], tmp_path: Path
) -> None:
    with lulc.open_map(write_map(tmp_path / "<script>.tif")) as land_cover:
        shown: str = land_cover._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;.tif" in shown
    assert "http" not in shown
    picture = base64.b64decode(shown.partition("base64,")[2].partition('"')[0])
    assert picture.startswith(b"\x89PNG")


def test_a_lazy_array_of_a_single_class_has_the_rest_as_a_class(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    from lulc.core.schema import LandCoverClass, Legend
    from lulc.core.statistics import Statistics
    from lulc.models.card import Channel, ModelCard
    from lulc.models.config import NetworkConfig
    from lulc.models.unet import build_unet, geometry
    from lulc.models.weights import save_model

    network = NetworkConfig(classes=1, channels=9, filters=(2,), activation="sigmoid")
    reach = geometry(network)
    card = ModelCard(
        name="water", channels=tuple(map(Channel, BANDS)), network=network, stride=reach.stride,
        halo=reach.halo, statistics=Statistics((1800.0,) * 9, (900.0,) * 9), single_class="water",
        legend=Legend("test", (LandCoverClass(1, "land", "#102030"), LandCoverClass(2, "water", "#0000ff"))),
    )  # fmt: skip
    path = tmp_path / "water.keras"
    save_model(build_unet(network, (np.full(9, 1800.0), np.full(9, 900.0))), card, path)
    array = in_memory(made[0])
    whole = lulc.classify_array(path, array, engine="openvino", window=32)
    lazy = lulc.classify_array(path, array.chunk({"y": 20}), engine="openvino", window=32)
    assert lazy["class"].chunks and whole["class_name"].values[0] == "water"
    xr.testing.assert_equal(lazy["class"].compute(), whole["class"])
    np.testing.assert_allclose(lazy["probability"].values, whole["probability"].values, atol=1e-5)
    assert set(np.unique(whole["class"])) <= {1, 2, 255}


def test_a_map_of_classes_alone_has_no_probabilities(
    tiny_model: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "map.tif"
    lulc.classify(model=tiny_model, inputs=made[0], out=out, engine="openvino", activations="none")
    with lulc.open_map(out) as land_cover:
        found = land_cover.to_xarray()
        assert set(found.data_vars) == {"class"}
        np.testing.assert_array_equal(found["class"].values, land_cover.read(land_cover.grid.extent))


def test_no_file_is_written_for_an_array(
    tiny_model: Path, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lulc.classify_array(tiny_model, in_memory(made[0]), engine="openvino")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"cog": True}, {"tiles": True}, {"share": "1/2"}, {"plan": True}])
def test_options_of_files_are_refused(
    tiny_model: Path, made: tuple[Path, Path], option: dict[str, Any]
) -> None:
    with pytest.raises(lulc.InputError, match="concerns the file of a map"):
        lulc.classify_array(tiny_model, in_memory(made[0]), **option)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a: a.isel(band=slice(1, None)), "B02|band"),
        (lambda a: a.drop_vars("spatial_ref"), "CRS|coordinate reference"),
        (lambda a: a.expand_dims(time=2), "dimensions"),
        (lambda a: a.rename(x="i", y="j"), "expected x and y"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tiny_model: Path, made: tuple[Path, Path], spoil: Callable[[xr.DataArray], xr.DataArray], reason: str
) -> None:
    with pytest.raises(lulc.InputError, match=reason):
        lulc.classify_array(tiny_model, spoil(in_memory(made[0])), engine="openvino")


def test_what_an_array_lacks_is_said_as_one_writes_it_in_python(
    tiny_model: Path, made: tuple[Path, Path]
) -> None:
    array = in_memory(made[0])
    with pytest.raises(lulc.InputError, match="expected an xarray object") as error:
        lulc.classify(tiny_model, array.values)
    assert "xarray.DataArray(array, dims=" in error.value.hint
    with pytest.raises(lulc.InputError, match="no coordinate reference system") as error:
        lulc.classify(tiny_model, array.drop_vars("spatial_ref"), engine="openvino")
    assert "rio.write_crs" in error.value.hint


@pytest.mark.parametrize(("name", "lazy"), [("map.nc", False), ("map.zarr", True), ("map.nc", True)])
def test_a_classified_array_is_written_where_out_says(
    tiny_model: Path, made: tuple[Path, Path], tmp_path: Path, name: str, lazy: bool
) -> None:
    array = in_memory(made[0])
    given = array.chunk({"y": 31}) if lazy else array
    found: Any = lulc.classify(tiny_model, given, tmp_path / name, engine="openvino", window=32)
    read = xr.open_dataset(
        tmp_path / name, engine="zarr" if name.endswith("zarr") else None, mask_and_scale=False
    )
    with lulc.open_map(made[1]) as land_cover:
        expected = land_cover.read(land_cover.grid.extent)
    np.testing.assert_array_equal(found["class"].values, expected)
    np.testing.assert_array_equal(read["class"].values, expected)
    np.testing.assert_array_equal(found["probability"].values, read["probability"].values)
    with pytest.raises(lulc.InputError, match="exists already"):
        lulc.classify(tiny_model, given, tmp_path / name, engine="openvino")


def test_a_classified_array_becomes_the_geotiff_of_its_file(
    tiny_model: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "map.tif"
    array = in_memory(made[0])
    lulc.classify(tiny_model, array, out=out, engine="openvino", window=32, extra=["entropy"])
    with rasterio.open(out) as new, rasterio.open(made[1]) as old:
        np.testing.assert_allclose(new.read()[:-1], old.read(), atol=1e-5)
        assert new.descriptions[-1] == "entropy" and new.transform == old.transform
        assert new.tags()["LULC_MODEL_SHA256"] == old.tags()["LULC_MODEL_SHA256"]
    with pytest.raises(lulc.InputError, match=r"a lazy array to .* expected .nc or .zarr"):
        lulc.classify(tiny_model, array.chunk(), tmp_path / "lazy.tif", engine="openvino")


def test_an_array_in_memory_is_scored_as_its_file(
    tiny_model: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    array = in_memory(made[0])
    found: Any = lulc.classify(tiny_model, array, engine="openvino", window=32)
    rng = np.random.default_rng(3)
    labels = found["class"].where(found["class"] != 255).copy()
    labels[:, 20:] = rng.integers(0, 4, labels[:, 20:].shape)
    labels.attrs = {}
    for reference in (labels, labels.isel(y=slice(None, None, -1)), labels.values):
        scored: Any = lulc.evaluate(found, reference, border=2)
        known = (labels.values > 0) & (found["class"].values != 255)
        right = (labels.values == found["class"].values)[known]
        assert scored.summary.loc["all classes", "overall_accuracy"] == pytest.approx(right.mean())
        assert scored.confusion.to_numpy().sum() == known.sum()
    assert (
        scored.confusion.loc["class 2", "class 1"]
        == ((labels.values == 2) & (found["class"].values == 1)).sum()
    )
    assert scored.classes.loc["class 1", "support"] == ((labels.values == 1) & known).sum()
    filed: Any = lulc.evaluate(made[1], labels, border=2)
    assert filed.summary.equals(scored.summary) and filed.classes.equals(scored.classes)
    assert scored.plot_confusion().axes[0].get_ylabel() == "reference"
    assert scored.plot_reliability().axes
    alone: Any = lulc.evaluate(found["class"], labels)
    assert alone.confusion.to_numpy().tolist() == scored.confusion.to_numpy().tolist()
    with pytest.raises(lulc.InputError, match="expected the pixels of the map"):
        lulc.evaluate(found, labels.isel(x=slice(1, None)))
    with pytest.raises(lulc.InputError, match="between whole numbers"):
        lulc.evaluate(found, labels.values + 0.5)


def test_areas_of_an_array_come_with_intervals(tiny_model: Path, made: tuple[Path, Path]) -> None:
    import geopandas

    found: Any = lulc.classify(tiny_model, in_memory(made[0]), engine="openvino", window=32)
    classes = found["class"].values
    rng, rows, cols, answers = np.random.default_rng(0), [], [], []
    for number in np.unique(classes[classes != 255]):
        places = rng.permutation(np.argwhere(classes == number))[:30]
        rows += [int(row) for row, _ in places]
        cols += [int(col) for _, col in places]
        answers += [int(number)] * 27 + [1 + int(number) % 3] * 3
    answers = answers[: len(rows)]
    points = geopandas.GeoDataFrame(
        {"reference": answers},
        geometry=geopandas.points_from_xy(found.x.values[cols], found.y.values[rows]),
        crs=found["spatial_ref"].attrs["crs_wkt"],
    )
    table = lulc.estimate_areas(points, found)
    assert list(table.index) == ["class 1", "class 2", "class 3"] and table.attrs["unit"] == "ha"
    assert table["area"].sum() == pytest.approx(table["mapped"].sum())
    seen = table[table["mapped"] > 0]
    assert (seen["area_low"] < seen["area"]).all() and (seen["area"] < seen["area_high"]).all()
    assert table.attrs["overall_accuracy"] == pytest.approx(0.9, abs=0.05)


def test_arrays_train_the_network_that_their_stacks_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(1, 4, (12, 12)), np.ones((8, 8), int))
    image = labels[..., np.newaxis] * np.array([500.0, 300.0]) + rng.normal(0, 50, (96, 96, 2))
    image[5, 7, 1] = np.nan
    common: dict[str, Any] = {
        "channels": ["B02", "B03"], "legend": {"water": "#0000ff", "field": "#ffff00", "wood": "#00ff00"},
        "epochs": 1, "steps": 2, "validation_steps": 1, "filters": (2,), "crop_sizes": 32,
        "validation_crop_sizes": 16, "batch_size": 2,
    }  # fmt: skip
    run: Any = lulc.train(image, labels, out=tmp_path / "run", **common)
    card = lulc.load_model(run.folder)[1]
    assert [c.name for c in card.channels] == ["B02", "B03"]
    assert card.legend.names == ("water", "field", "wood") and card.legend.colors[0] == "#0000ff"
    valid = np.isfinite(image[:72]).all(-1)
    np.testing.assert_allclose(card.statistics.mean, image[:72][valid].mean(0), rtol=1e-5)
    kept = labels[:48][valid[:48]]
    assert card.training["class_counts"]["water"] == (kept == 1).sum()
    with pytest.raises(lulc.InputError, match="holds a finished run"):
        lulc.train(image, labels, out=tmp_path / "run", **common)
    two: Any = lulc.train(
        [image, image[:40]], [labels, labels[:40]], out=tmp_path / "two", validation=[-1], **common
    )
    assert lulc.load_model(two.folder)[1].training["data"][0]["validation_stacks"] == ["image_1"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": np.ones((5, 5))}, "expected .5, 5, 2. as its labels and channel"),
        ({"labels": np.full((96, 96), 9)}, "hold the class 9, expected 1 to 2"),
        ({"labels": np.full((96, 96), 1.5)}, "value 1.5"),
        ({"labels": np.ones((96, 96))}, "all of a"),
        ({"channels": ["B02"]}, "expected .96, 96, 1."),
        ({"legend": ["a", "a"]}, "a name occurs twice"),
        ({"validation": [3]}, "from 0 to 0"),
        ({"data": "stacks"}, "cannot train on arrays with data"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    labels = np.kron(np.array([[1, 2], [2, 1]]), np.ones((48, 48), int))
    given = {"labels": labels, "channels": ["B02", "B03"], "legend": ["a", "b"], **change}
    with pytest.raises(lulc.InputError, match=told):
        lulc.train(images=np.zeros((96, 96, 2)), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_an_xarray_object_trains_on_the_channels_that_its_file_gives(
    write_bands: Callable[..., Path], tmp_path: Path
) -> None:
    array = in_memory(write_bands(tmp_path / "mosaic.tif", 128, 96))
    rng = np.random.default_rng(0)
    labels = xr.DataArray(
        np.kron(rng.integers(1, 3, (16, 12)), np.ones((8, 8), int)).astype("u1"), dims=("y", "x"),
        coords={"y": array.y, "x": array.x, "spatial_ref": array.spatial_ref},
    )  # fmt: skip
    run: Any = lulc.train(
        array, labels, channels=["B04", "NDVI"], legend=["a", "b"], out=tmp_path / "run", epochs=1, steps=1,
        validation_steps=1, filters=(2,), crop_sizes=32, validation_crop_sizes=16, batch_size=2, scale=1e-4,
        offset=0,
    )  # fmt: skip
    card = lulc.load_model(run.folder)[1]
    with lulc.open_stack(tmp_path / "mosaic.tif", channels=["B04", "NDVI"], scale=1e-4, offset=0) as stack:
        pixels = stack.read(stack.grid.extent)[:96].reshape(-1, 2)
        assert card.channels[1].coding == stack.coding["NDVI"]
    np.testing.assert_allclose(card.statistics.mean, np.nanmean(pixels, axis=0), rtol=1e-5)
    assert card.training["data"][0]["pixel_size"] == pytest.approx(10, rel=0.01)
    assert card.training["data"][0]["ground"][0]["stacks"][0][-2:] == [96, 96]


def placed(values: np.ndarray, dims: tuple[str, ...], *, ascending: bool) -> xr.DataArray:
    """Return an array (y, x) of 10 m pixels as an xarray object whose y ascends or descends."""
    height, width = values.shape
    steps = 10.0 * np.arange(height)
    axes = {"y": 6_700_000 + (steps if ascending else -steps), "x": 500_005 + 10.0 * np.arange(width)}
    crs = ((), 0, {"crs_wkt": rasterio.CRS.from_epsg(32635).to_wkt()})
    found = xr.DataArray(
        values, axes | {"spatial_ref": crs}, ("y", "x"), attrs={"grid_mapping": "spatial_ref"}
    )
    return found.transpose(*dims)


ORDERS = [(("y", "x"), True), (("y", "x"), False), (("x", "y"), True), (("x", "y"), False)]


@pytest.mark.parametrize(("dims", "ascending"), ORDERS)
@pytest.mark.parametrize("kind", [np.asarray, lambda labels: labels])
def test_labels_lie_as_the_image_does_whichever_way_its_axes_run(
    dims: tuple[str, ...], ascending: bool, kind: Callable[[Any], Any]
) -> None:
    classes = np.ones((64, 48), np.uint8)
    classes[:20, 30:] = classes[:, :5] = 2
    labels = placed(classes, dims, ascending=ascending)
    image = xr.Dataset({"B04": labels.astype("f4") * 1000, "NDVI": (labels + 150).astype("u1")})
    image["NDVI"].attrs["_FillValue"] = 0
    legend = Legend("two", (LandCoverClass(1, "a", "#000000"), LandCoverClass(2, "b", "#ffffff")))
    config = TrainConfig(out="run")
    found = in_memory_set([image], [kind(labels)], ["B04", "NDVI"], legend, None, config, READING)
    for tile in (*found.training, *found.validation):
        known = tile.masks != 255
        np.testing.assert_array_equal(tile.image[known][:, 0], tile.masks[known] * 1000.0)
        # Indices of the image are read, as for a classification, not computed anew.
        np.testing.assert_array_equal(tile.image[known][:, 1], tile.masks[known] + 150.0)
    assert found.channels[1]["coding"] == "read"


@pytest.mark.parametrize(("dims", "ascending"), ORDERS)
def test_a_plain_reference_lies_as_the_map_does_whichever_way_its_axes_run(
    dims: tuple[str, ...], ascending: bool
) -> None:
    classes = np.ones((60, 40), np.uint8)
    classes[:20, 30:] = 2
    mapped = placed(classes, dims, ascending=ascending)
    mapped.attrs |= {
        "flag_values": [0, 1, 2], "flag_meanings": "unclassified bare forest",
        "flag_colors": "#000000 #ff0000 #00ff00",
    }  # fmt: skip
    found: Any = lulc.evaluate(mapped.rename("class").to_dataset(), mapped.values)
    assert found.summary.loc["all classes", "overall_accuracy"] == 1


@pytest.mark.parametrize("beside", ["array", "plain"])
def test_the_fill_value_of_an_array_of_labels_labels_nothing(beside: str) -> None:
    classes = np.kron(np.array([[1, 2], [2, 1], [2, 1], [1, 2]]), np.ones((16, 24), int)).astype(np.uint8)
    classes[:, ::4] = 3
    labels = placed(classes, ("y", "x"), ascending=False).assign_attrs(_FillValue=np.uint8(3))
    plain = np.full((*classes.shape, 1), 500.0, np.float32)
    image = placed(plain[..., 0], ("y", "x"), ascending=False).to_dataset(name="B04")
    legend = Legend("three", tuple(LandCoverClass(k, f"class {k}", f"#00000{k}") for k in (1, 2, 3)))
    given = [image if beside == "array" else plain]
    found = in_memory_set(given, [labels], ["B04"], legend, None, TrainConfig(out="run"), READING)
    assert found.counts[2] == 0 and found.counts[0] > 0
    mapped = placed(np.where(classes == 3, 1, classes), ("y", "x"), ascending=False)
    mapped.attrs |= {
        "flag_values": [0, 1, 2, 3], "flag_meanings": "unclassified a b c",
        "flag_colors": "#000000 #ff0000 #00ff00 #0000ff",
    }  # fmt: skip
    scored: Any = lulc.evaluate(mapped.rename("class").to_dataset(), labels)
    assert scored.confusion.to_numpy().sum() == (classes != 3).sum()
