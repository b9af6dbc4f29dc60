"""Tiles hold the pixels of the map in one file, describe themselves, and survive what a file survives."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from lulc.config import ClassifyConfig, ReproduceConfig
from lulc.core.grid import GridSpec
from lulc.core.removal import temporary_name
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.core.windows import Plan
from lulc.engines.registry import Engine, EngineRequest
from lulc.export.stac import EXTENSIONS
from lulc.inference import job, outputs
from lulc.inference.classify import classify, classify_share
from lulc.inference.outputs import Tileset, is_tileset
from lulc.inference.reproduce import reproduce
from lulc.maps.geotiff import MapProfile
from lulc.maps.reader import open_map

pytestmark = pytest.mark.integration

LEGEND = Legend("test", (LandCoverClass(1, "first", "#102030"), LandCoverClass(2, "second <&>", "#405060")))


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Callable[[pystac.STACObject], object]:
    """Validate by pystac without a network."""
    validator = JsonSchemaSTACValidator()
    for name, identifier in EXTENSIONS.items():
        (path,) = (Path(__file__).parent / "schemas").glob(f"{name}-*.json")
        validator.schema_cache[identifier] = json.loads(path.read_text())

    def refuse(*arguments: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return lambda found: found.validate(validator)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Windows that went through a network of three lines of NumPy."""
    counted: list[int] = []

    def build(name: str, request: EngineRequest) -> Engine:
        def network(x: np.ndarray) -> np.ndarray:
            counted.append(1)
            powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
            return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)

        return Engine("keras", request.shape, {"precision": "float32"}, network)

    monkeypatch.setattr(job, "build_engine", build)
    return counted


@pytest.fixture
def mosaic(tmp_path: Path, write_bands: Callable[..., Path]) -> Path:
    """600 x 700 pixels in 9 parts, of which the middle one has no valid pixel, nor the last row."""
    path = write_bands(tmp_path / "mosaic.tif", 600, 700)
    with rasterio.open(path, "r+") as target:
        values = target.read()
        values[:, 256:512, 256:512] = 0
        values[:, 512:] = 0
        target.write(values)
    return path


def configure(model: Path, mosaic: Path, out: Path, **more: Any) -> ClassifyConfig:
    options: dict[str, Any] = {"scale": 1e-4, "offset": 0.0, "part": 256, "window": 64, **more}
    if options.get("tiles"):
        options = {"date": ("2018-06-01", "2018-08-31"), **options}
    return ClassifyConfig(model=str(model), inputs=(str(mosaic),), out=str(out), **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("activations", ["float32", "uint16", "none"])
def test_tiles_seen_through_their_vrt_are_the_map(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int], activations: str
) -> None:
    one = classify(configure(tiny_model, mosaic, tmp_path / "map.tif", activations=activations))
    many = classify(configure(tiny_model, mosaic, tmp_path / "tiles", activations=activations, tiles=True))
    assert one.counts == many.counts
    vrt = tmp_path / "tiles" / "map.vrt"
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(vrt) as tiles:
        assert np.array_equal(file.read(), tiles.read())
        for name in ("transform", "crs", "descriptions", "nodatavals", "scales", "offsets", "dtypes"):
            assert getattr(file, name) == getattr(tiles, name), name
        if activations == "none":
            assert {v: file.colormap(1)[v] for v in (1, 2, 3)} == {v: tiles.colormap(1)[v] for v in (1, 2, 3)}
    with open_map(vrt, allow_vrt=True) as found:
        assert found.legend.names == ("class 1", "class 2", "class 3")


def test_each_part_with_a_valid_pixel_is_a_cog_and_no_other(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int]
) -> None:
    out = tmp_path / "tiles"
    classify(configure(tiny_model, mosaic, out, tiles=True))
    found = sorted(path.name for path in out.rglob("*.tif"))
    assert found == ["000-000.tif", "000-001.tif", "000-002.tif", "001-000.tif", "001-002.tif"]
    with pytest.raises(InputError, match="a tile of a larger map"):
        reproduce(ReproduceConfig(map=str(out / "tiles" / "000" / "000-000.tif")))
    for path in out.rglob("*.tif"):
        valid, errors, warnings = cog_validate(path)
        assert valid and not errors and not warnings
        with rasterio.open(path) as tile:
            assert tile.overviews(1) == [] and tile.width <= 256
            assert (tile.read(1) != tile.nodata).any()
    assert sorted(p.name for p in (out / "tiles").iterdir()) == ["000", "001"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mosaic.tif", "tiles"]


def test_collection_catalogs_and_items_are_valid_and_complete(
    tmp_path: Path,
    tiny_model: Path,
    mosaic: Path,
    calls: list[int],
    validate: Callable[[pystac.STACObject], object],
) -> None:
    out = tmp_path / "tiles"
    result = classify(configure(tiny_model, mosaic, out, tiles=True))
    collection = pystac.Collection.from_file(str(out / "collection.json"))
    validate(collection)
    assert (out / collection.assets["map"].href).is_file()
    for catalog in collection.get_children():
        validate(catalog)
    items = list(collection.get_items(recursive=True))
    assert len(items) == len({item.id for item in items}) == 5
    counts: dict[int, int] = {}
    for item in items:
        validate(item)
        assert item.collection_id == "tiles"
        assert item.get_collection().id == "tiles"
        asset = item.assets["map"]
        path = Path(item.get_self_href()).parent / asset.href
        assert asset.extra_fields["file:size"] == path.stat().st_size
        with rasterio.open(path) as tile:
            assert list(tile.transform)[:6] == item.properties["proj:transform"]
            assert list(tile.shape) == item.properties["proj:shape"]
        for entry in asset.to_dict()["bands"][0]["classification:classes"]:
            counts[entry["value"]] = counts.get(entry["value"], 0) + entry["count"]
    assert counts == result.counts
    west, south, east, north = collection.extent.spatial.bboxes[0]
    assert all(
        west <= i.bbox[0] and south <= i.bbox[1] and i.bbox[2] <= east and i.bbox[3] <= north for i in items
    )


def test_an_interrupted_run_continues_with_tiles_as_with_a_file(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    classify(configure(tiny_model, mosaic, tmp_path / "whole", tiles=True))
    expected, of_all = files(tmp_path / "whole"), len(calls)
    out = tmp_path / "again" / "whole"
    out.parent.mkdir()
    config = configure(tiny_model, mosaic, out, tiles=True)
    made = Tileset.make

    def fail(self: Tileset, part: Any, *arguments: Any) -> Any:
        if part.index == 3:
            raise KeyboardInterrupt
        return made(self, part, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Tileset, "make", fail)
        with pytest.raises(KeyboardInterrupt):
            classify(config)
    assert not out.exists()
    damaged = out.with_name("whole.parts") / "result" / "tiles" / "000" / "000-001.tif"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    temporary_name(damaged.with_name("000-002.tif")).write_bytes(b"half")
    before = len(calls)
    classify(config)
    assert files(out) == expected
    assert len(calls) - before < of_all
    assert [p.name for p in out.parent.iterdir()] == ["whole"]


def test_a_run_that_was_killed_while_tiles_were_described_continues(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tiny_model, mosaic, tmp_path / "tiles", tiles=True)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "collection", die)
        with pytest.raises(KeyboardInterrupt):
            classify(config)
    before = len(calls)
    classify(config)
    assert is_tileset(tmp_path / "tiles")
    assert len(calls) == before


def test_finished_tiles_are_replaced_only_when_asked_to_and_nothing_else_ever(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int]
) -> None:
    config = configure(tiny_model, mosaic, tmp_path / "tiles", tiles=True)
    classify(config)
    assert is_tileset(tmp_path / "tiles")
    with pytest.raises(InputError, match="exists already"):
        classify(config)
    before = files(tmp_path / "tiles")
    classify(dataclasses.replace(config, overwrite=True))
    assert files(tmp_path / "tiles") == before
    (tmp_path / "tiles" / "report").mkdir()
    with pytest.raises(InputError, match="holds 'report' beside the tiles"):
        classify(dataclasses.replace(config, overwrite=True))
    (tmp_path / "tiles" / "report").rmdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="not a map of this toolkit"):
        classify(dataclasses.replace(config, out=str(tmp_path / "photos"), overwrite=True))
    assert files(tmp_path / "photos") == {"cat.jpg": b"cat"}


def test_shares_make_the_tiles_of_one_process(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int]
) -> None:
    classify(configure(tiny_model, mosaic, tmp_path / "one" / "tiles", tiles=True))
    config = configure(tiny_model, mosaic, tmp_path / "many" / "tiles", tiles=True)
    for number in (1, 2, 3):
        shared = classify_share(dataclasses.replace(config, share=f"{number}/3"))
        assert (shared.parts, shared.made) == (3, 3)
    before = len(calls)
    classify(config)
    assert len(calls) == before
    assert files(tmp_path / "many" / "tiles") == files(tmp_path / "one" / "tiles")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sieve": 20}, "--sieve with --tiles"),
        ({"polygons": "patches.gpkg"}, "--polygons with --tiles"),
        ({"date": ()}, "hold no dates"),
        ({"date": ("July",)}, "expected one day"),
        ({"tiles": False, "out": "map.tif"}, "--date without --tiles"),
        ({"out": "map.tif"}, "ending of a file"),
        ({"tiles": False, "date": ()}, "expected a name in .tif"),
    ],
)
def test_what_tiles_can_not_be_is_refused_with_a_reason(
    tmp_path: Path, tiny_model: Path, mosaic: Path, changes: dict[str, Any], problem: str
) -> None:
    config = configure(tiny_model, mosaic, tmp_path / "tiles", tiles=True)
    with pytest.raises(InputError) as caught:
        classify(dataclasses.replace(config, **changes))
    assert problem in caught.value.problem
    assert caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["mosaic.tif"]


def test_tiles_need_a_place_on_earth(
    tmp_path: Path, tiny_model: Path, mosaic: Path, calls: list[int]
) -> None:
    with rasterio.open(mosaic, "r+") as target:
        target.crs = CRS()
    with pytest.raises(InputError, match="no coordinate reference system"):
        classify(configure(tiny_model, mosaic, tmp_path / "tiles", tiles=True))


def test_the_folder_takes_its_name_whole_even_in_place_of_another(tmp_path: Path) -> None:
    for name, file in (("old", "map.vrt"), ("new", "collection.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(name)
    outputs.put(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert os.listdir(tmp_path / "old") == ["collection.json"]


def test_a_tileset_that_holds_a_hundred_thousand_parts_is_named_in_order(tmp_path: Path) -> None:
    plan = Plan(320 * 256, 320 * 256, 16, 64, (512, 512), 256)
    grid = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 0, 0, -10, 7e6), plan.height, plan.width)
    tiles = Tileset(MapProfile(grid, LEGEND, "none", 256), plan, tmp_path, "tiles", ("2018-07-01",))
    names = [tiles.path_of(part).name for part in range(len(plan))]
    assert len(names) == 102_400
    assert names == sorted(names)
    assert names[-1] == "319-319.tif"
