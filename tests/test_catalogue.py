"""STAC items are valid by pystac, offline, and say of map and weights what the files say.

The schemas of the extensions lie in tests/schemas. That of MLM refers to classification 1.1.0, which no
package holds: `CLASSIFICATION_1_1` states by hand what its specification asks of a class.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pystac
import pytest
import rasterio
from affine import Affine
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds

from lulc.cli import export_map, export_model
from lulc.core.grid import GridSpec
from lulc.core.schema import BANDS, INDICES, LandCoverClass, Legend
from lulc.core.statistics import Statistics
from lulc.export.stac import EXTENSIONS, footprint
from lulc.models.card import Channel, ModelCard, load_card, write_card
from lulc.models.config import NetworkConfig

WriteMap = Callable[..., Path]

CLASSIFICATION_1_1 = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$id": "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "definitions": {
        "fields": {
            "properties": {
                "classification:classes": {
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {
                        "type": "object",
                        "required": ["value", "description"],
                        "properties": {
                            "value": {"type": "integer"},
                            "description": {"type": "string"},
                            "name": {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
                        },
                    },
                }
            }
        }
    },
}


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], list[str]]]:
    """Validate an item by pystac without a network; gives the schemas that it was held to."""
    validator = JsonSchemaSTACValidator()
    for name, identifier in EXTENSIONS.items():
        (path,) = (Path(__file__).parent / "schemas").glob(f"{name}-*.json")
        schema = json.loads(path.read_text())
        assert schema["$id"].rstrip("#") == identifier
        validator.schema_cache[identifier] = schema
    validator.schema_cache[str(CLASSIFICATION_1_1["$id"])] = CLASSIFICATION_1_1

    def refuse(*arguments: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield lambda item: pystac.Item.from_dict(item).validate(validator)


def read(path: Path) -> dict[str, Any]:
    item: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return item


def write_model(folder: Path, file: str = "epoch-1", **changes: Any) -> Path:
    """Weights (any bytes: nothing here opens them) and a card of the original network."""
    legend = Legend("test", tuple(LandCoverClass(i, f"Class {i}, å", f"#0{i}a0ff") for i in range(1, 4)))
    path = folder / f"{file}.keras"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.encode())
    card = ModelCard(
        **{
            "name": f"run/{file}",
            "channels": tuple(Channel(c, "reflectance x 10000", "read") for c in BANDS + INDICES),
            "legend": legend,
            "statistics": Statistics((0.0,) * 14, (1.0,) * 14),
            "network": NetworkConfig(classes=3),
            "stride": 16,
            "halo": 64,
            "training": {"parameters": {"loss": "ce", "filters": [32, 64], "not a key!": 1}},
            "versions": {"keras": "3.15.1"},
            "sha256": hashlib.sha256(file.encode()).hexdigest(),
            "bytes": len(file),
            "licence": "CC-BY-4.0",
        }
        | changes
    )
    write_card(card, path)
    return path


@pytest.mark.parametrize("activations", ["float32", "uint16", "none"])
@pytest.mark.parametrize("dates", [["2018-07-01"], ["2018-06-01", "2018-08-31"]])
def test_items_of_maps_are_valid(
    tmp_path: Path,
    write_map: WriteMap,
    validate: Callable[..., list[str]],
    activations: str,
    dates: list[str],
) -> None:
    path = write_map(tmp_path / "map.tif", activations=activations, unclassified=True)
    out = tmp_path / "map.json"
    assert export_map.main([str(path), "--out", str(out), "--date", *dates]) == 0
    assert len(validate(read(out))) == 6


def test_an_item_says_what_rasterio_reads(tmp_path: Path, write_map: WriteMap) -> None:
    path = write_map(tmp_path / "map.tif", activations="uint8")
    out = tmp_path / "map.json"
    assert export_map.main([str(path), "--out", str(out), "--date", "2018-07-01"]) == 0
    item = read(out)
    properties, asset = item["properties"], item["assets"]["map"]
    with rasterio.open(path) as source:
        assert properties["proj:code"] == source.crs.to_string()
        assert properties["proj:shape"] == list(source.shape)
        assert Affine(*properties["proj:transform"]) == source.transform
        assert item["bbox"] == pytest.approx(
            transform_bounds(source.crs, "EPSG:4326", *source.bounds), abs=1e-6
        )
        assert [b["name"] for b in asset["bands"]] == ["class", "water-ice", "forest", "peltoja-a"]
        assert [b["data_type"] for b in asset["raster:bands"]] == list(source.dtypes)
        assert [b["nodata"] for b in asset["raster:bands"]] == list(source.nodatavals)
        assert [b.get("scale", 1.0) for b in asset["raster:bands"]] == list(source.scales)
    content = path.read_bytes()
    assert asset["file:size"] == len(content)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    classes = asset["raster:bands"][0]["classification:classes"]
    assert [(c["value"], c["title"], c["color_hint"]) for c in classes] == [
        (1, "Water & ice", "28A001"), (2, "Forest", "50A002"), (3, "Peltoja å", "78A003"),
    ]  # fmt: skip
    assert properties["processing:software"]["lulc"] == "0.1.0"  # of the map that it describes


def test_an_item_opens_its_map_wherever_both_lie(tmp_path: Path, write_map: WriteMap) -> None:
    path = write_map(tmp_path / "a map.tif")
    (tmp_path / "items").mkdir()
    out = tmp_path / "items" / "map.json"
    assert export_map.main([str(path), "--out", str(out), "--date", "2018-07-01"]) == 0
    item = pystac.Item.from_file(str(out))
    href = item.assets["map"].href
    assert str(tmp_path) not in out.read_text()
    assert href == "../a%20map.tif"
    assert (out.parent / href.replace("%20", " ")).resolve() == path


def test_equal_maps_give_equal_items(tmp_path: Path, write_map: WriteMap) -> None:
    texts = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = write_map(tmp_path / folder / "map.tif")
        out = tmp_path / folder / "map.json"
        assert export_map.main([str(path), "--out", str(out), "--date", "2018-07-01"]) == 0
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "dates", [[], ["yesterday"], ["2018-07-02", "2018-07-01"], ["2018-07-01", "2018-07-02", "2018-07-03"]]
)
def test_an_item_needs_its_date(
    tmp_path: Path, write_map: WriteMap, capsys: pytest.CaptureFixture[str], dates: list[str]
) -> None:
    path = write_map(tmp_path / "map.tif")
    out = tmp_path / "map.json"
    options = ["--date", *dates] if dates else []
    assert export_map.main([str(path), "--out", str(out), *options]) == 1
    assert "--date 2018-06-01 2018-08-31" in capsys.readouterr().err
    assert not out.exists()


def test_the_date_is_known_from_the_names_of_copernicus(
    tmp_path: Path, write_map: WriteMap, validate: Callable[..., list[str]]
) -> None:
    names = {"inputs": ["S2B_MSIL2A_20200223T034729_N9999_R104_T48QUE_20200223T084110.SAFE"],
             "fill": ["T48QUE_20200114T034101_B02_10m.jp2"]}  # fmt: skip
    path = write_map(tmp_path / "map.tif", tags={"LULC_PARAMETERS": json.dumps(names)})
    out = tmp_path / "map.json"
    assert export_map.main([str(path), "--out", str(out)]) == 0
    item = read(out)
    validate(item)
    assert item["properties"]["start_datetime"] == "2020-01-14T00:00:00Z"
    assert item["properties"]["end_datetime"] == "2020-02-23T23:59:59Z"


def test_items_of_weights_are_valid_and_complete(tmp_path: Path, validate: Callable[..., list[str]]) -> None:
    path = write_model(tmp_path)
    assert export_model.main([str(path)]) == 0
    item = read(tmp_path / "epoch-1.stac.json")
    assert len(validate(item)) == 3
    card, properties = load_card(path), item["properties"]
    assert [b["name"] for b in properties["bands"]] == [c.name for c in card.channels]
    assert properties["mlm:input"][0]["bands"] == [c.name for c in card.channels]
    assert properties["mlm:input"][0]["input"]["shape"][-1] == 14
    assert properties["mlm:output"][0]["result"]["shape"][-1] == 3
    assert properties["mlm:total_parameters"] == sum(map(math.prod, card.network.variable_shapes().values()))
    assert properties["mlm:hyperparameters"]["loss"] == "ce"
    assert properties["license"] == "CC-BY-4.0"
    weights = item["assets"]["weights"]
    assert weights["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / weights["href"]).read_bytes() == path.read_bytes()


def test_each_weights_file_of_a_run_gets_an_item(tmp_path: Path, validate: Callable[..., list[str]]) -> None:
    for name in ("epoch-1", "epoch-2"):
        write_model(tmp_path, name)
    assert export_model.main([str(tmp_path), "--pick", "all"]) == 0
    items = [read(path) for path in sorted(tmp_path.glob("*.stac.json"))]
    assert [item["id"] for item in items] == ["run-epoch-1", "run-epoch-2"]
    for item in items:
        validate(item)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "9/ö", "licence": "ask the authors", "versions": {"keras": "3.16.0.dev1"}},
        {
            "name": "a" * 200,
            "training": {"parameters": "none"},
            "description": "For water.",
            "not_for": "ice",
        },
        {"single_class": "Class 2, å", "network": NetworkConfig(classes=1, activation="sigmoid")},
    ],
)
def test_odd_cards_give_valid_items(
    tmp_path: Path, validate: Callable[..., list[str]], changes: dict[str, Any]
) -> None:
    path = write_model(tmp_path, **changes)
    assert export_model.main([str(path)]) == 0
    validate(read(tmp_path / "epoch-1.stac.json"))


def test_a_map_is_linked_to_the_weights_that_made_it_and_to_no_others(
    tmp_path: Path,
    write_map: WriteMap,
    validate: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, others = write_model(tmp_path / "run"), write_model(tmp_path / "run", "epoch-2")
    path = write_map(tmp_path / "map.tif", tags={"LULC_MODEL_SHA256": load_card(weights).sha256})
    out = tmp_path / "map.json"
    command = [str(path), "--out", str(out), "--date", "2018-07-01", "--model"]
    assert export_map.main([*command, str(others)]) == 1
    assert "made with others" in capsys.readouterr().err
    assert not out.exists()
    assert export_map.main([*command, str(weights)]) == 0
    item = read(out)
    (link,) = item["links"]
    linked = read(tmp_path / link["href"])
    assert link["mlm:name"] == linked["properties"]["mlm:name"]
    assert (tmp_path / linked["assets"]["weights"]["href"]).read_bytes() == weights.read_bytes()
    validate(item)
    validate(linked)


def test_the_footprint_holds_the_corners_and_the_middle_of_the_edges() -> None:
    grid = GridSpec(CRS.from_epsg(32635), Affine(100, 0, 300_000, 0, -100, 7_600_000), 4000, 4000)
    geometry, bbox = footprint(grid)
    ring = geometry["coordinates"][0]
    assert ring[0] == ring[-1]
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2
    assert area > 0, "exterior rings run counterclockwise"
    left, bottom, right, top = grid.bounds
    for x, y in ((left, bottom), (right, top), ((left + right) / 2, top), (left, (top + bottom) / 2)):
        (lon,), (lat,) = transform(grid.crs, CRS.from_epsg(4326), [x], [y])
        assert min(math.dist((lon, lat), point) for point in ring) < 1e-6
    assert bbox == pytest.approx(transform_bounds(grid.crs, CRS.from_epsg(4326), *grid.bounds), abs=1e-3)


@pytest.mark.parametrize(("epsg", "top", "lowest"), [(32601, 7_200_000, 60), (32701, 8_100_000, -18)])
def test_a_footprint_across_longitude_180_is_cut_there(epsg: int, top: int, lowest: int) -> None:
    grid = GridSpec(CRS.from_epsg(epsg), Affine(100, 0, 160_000, 0, -100, top), 500, 3000)
    geometry, (west, south, east, north) = footprint(grid)
    assert geometry["type"] == "MultiPolygon"
    assert 170 < west <= 180
    assert -180 <= east < -170
    assert lowest < south < north < lowest + 6
    for polygon in geometry["coordinates"]:
        longitudes = [x for x, _ in polygon[0]]
        assert max(longitudes) - min(longitudes) < 10


@pytest.mark.parametrize("name", ["m.tif", "m.zarr"])
def test_the_item_of_a_mosaic_is_valid_and_links_to_its_sources(
    tmp_path: Path, name: str, validate: Callable[[dict[str, Any]], list[str]]
) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from stac_server import make_item, save_items

    from lulc.compositing.mosaic import make_mosaic
    from lulc.config import MosaicConfig

    folder = save_items(tmp_path, [make_item(tmp_path, "35VLG", "2024-06-03")])
    options = {"bounds": (24.01, 61.305, 24.02, 61.31), "crs": "EPSG:32635", "band_names": ("B02",)}
    out = str(tmp_path / "out" / name)
    (made,) = make_mosaic(MosaicConfig(dates="2024-06-03", scenes=(str(folder),), out=out, **options))
    item = read(made.path.with_suffix(".json"))
    assert EXTENSIONS["raster"] in validate(item)
    (source,) = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert (made.path.parent / source).is_file()
    assert item["properties"]["lulc:clear_observations"] == {"1": sum(made.clear.values())}
