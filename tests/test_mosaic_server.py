"""Mosaics from a server in a process of its own: killed, slow, signed, and with other names and places.

Scenes are simulated.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from lulc.cli.make_mosaic import main
from lulc.compositing import catalog, observation
from lulc.compositing.composer import NODATA
from lulc.compositing.mosaic import make_mosaic
from lulc.compositing.region import grid_of
from lulc.config import MosaicConfig
from lulc.core.schema import InputError

sys.path.insert(0, str(Path(__file__).parent))

from stac_server import Spawned, make_item, save_items, spawn

pytestmark = pytest.mark.integration

REGION = (24.004, 61.304, 24.032, 61.316)
DAYS = ("2024-06-03", "2024-06-13")
FEW = ("B02", "B08")


def config(out: Path, server: Spawned, **options: Any) -> MosaicConfig:
    given = {"bounds": REGION, "dates": "2024-06-01/2024-06-30", "crs": "EPSG:32635", "band_names": FEW}
    return MosaicConfig(out=str(out), **{"catalog": server.address, **given, **options})


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as data:
        return data.read()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are as short as a test needs."""
    monkeypatch.setattr(observation, "FIRST_WAIT", 0.05)
    monkeypatch.setitem(observation.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.05)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    return save_items(folder, [make_item(folder, "35VLG", day) for day in DAYS])


@pytest.fixture
def server(scenes: Path) -> Iterator[Spawned]:
    with spawn(scenes) as running:
        yield running


def test_a_server_that_is_killed_is_waited_for_and_the_mosaic_is_the_same(
    scenes: Path, server: Spawned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mosaic(config(tmp_path / "a.tif", server))
    port = int(server.address.rpartition(":")[2])
    begun: list[subprocess.Popen[str]] = []
    read_once = observation.Scenes.read

    def read_and_kill(self: Any, *arguments: Any) -> None:
        if not begun:
            server.process.kill()
            server.process.wait()
            command = [
                sys.executable,
                str(Path(__file__).parent / "stac_server.py"),
                str(scenes),
                str(port),
                "",
            ]
            begun.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        read_once(self, *arguments)

    monkeypatch.setattr(observation, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(observation.Scenes, "read", read_and_kill)
    try:
        make_mosaic(config(tmp_path / "b.tif", server))
    finally:
        begun[0].kill()
        begun[0].wait()
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_a_server_that_stays_away_ends_the_run_and_the_same_command_continues(
    scenes: Path, server: Spawned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "FIRST_WAIT", 0.01)
    read_once = observation.Scenes.read

    def killed(self: Any, *arguments: Any) -> None:
        server.process.kill()
        read_once(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(observation.Scenes, "read", killed)
        with pytest.raises(InputError, match="tried 6 times") as caught:
            make_mosaic(config(tmp_path / "m.tif", server))
    assert "same command continues" in str(caught.value.hint)
    with spawn(scenes, int(server.address.rpartition(":")[2])):
        (made,) = make_mosaic(config(tmp_path / "m.tif", server))
    assert made.covered > 0.8


def test_a_slow_server_is_given_up_after_the_time_of_an_answer(
    server: Spawned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mosaic(config(tmp_path / "a.tif", server))
    server.fail(**{r"B08\.tif": 0.3})
    make_mosaic(config(tmp_path / "b.tif", server))
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))
    server.fail(search=5.0)
    monkeypatch.setattr(catalog, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(catalog, "RETRIES", 1)
    with pytest.raises(InputError, match=r"gave no answer that can be used.*timed out"):
        make_mosaic(config(tmp_path / "c.tif", server))


def test_only_the_window_of_the_region_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    save_items(folder, [make_item(folder, "35VLG", DAYS[0], side=1024)])
    band = folder / f"S2A_35VLG_{DAYS[0].replace('-', '')}_0_L2A" / "B08.tif"
    with rasterio.open(band, "r+") as data:
        # Noise, which no compression makes small.
        data.write(data.read() + np.random.default_rng(1).integers(0, 500, (1, 1024, 1024), "uint16"))
    size = band.stat().st_size
    with spawn(folder) as server:
        make_mosaic(config(tmp_path / "m.tif", server))
        ranges = [
            line.rpartition("=")[2] for line in server.requests if "B08.tif" in line and "bytes=" in line
        ]
    asked = sum(int(last) - int(first) + 1 for one in ranges for first, last in [one.split("-")])
    assert 0 < asked < size / 3


def test_planetary_computer_signs_addresses_and_nothing_keeps_the_token(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sv=2024&sig=SECRETVALUE"
    with spawn(scenes, token=secret) as server:
        monkeypatch.setitem(catalog.CATALOGS, "planetary", (server.address, "sentinel-2-l2a"))
        monkeypatch.setenv("VSICURL_PC_SAS_TOKEN_URL", f"{server.address}/api/sas/v1/token/")
        with pytest.raises(InputError, match="403"):
            # Without the name nothing is signed.
            make_mosaic(config(tmp_path / "no.tif", server, catalog=f"{server.address}/"))
        (made,) = make_mosaic(config(tmp_path / "m.tif", server, catalog="planetary"))
        assert made.covered > 0.8
        assert sum("/token/sentinel-2-l2a" in line for line in server.requests) == 1
        listed = config(tmp_path / "again.tif", server, catalog=None, scenes=(str(made.scenes),),
                        allow_remote=True)  # fmt: skip
        make_mosaic(listed)
        np.testing.assert_array_equal(read(made.path), read(tmp_path / "again.tif"))
        server.fail(**{r"signed/.*B08\.tif": 404})
        with pytest.raises(InputError, match=r"B08\.tif") as caught:
            make_mosaic(config(tmp_path / "gone.tif", server, catalog="planetary"))
    said = f"{caught.value} {caplog.text}"
    said += "".join(p.read_bytes().decode("latin1") for p in tmp_path.iterdir() if p.is_file())
    assert "SECRETVALUE" not in said


@pytest.mark.parametrize(
    "rename",
    [
        lambda band: {"scl": "scl"}.get(band, f"{band}_10m"),
        lambda band: {"B02": "blue", "B08": "nir", "scl": "scl"}.get(band, band.lower()),
        lambda band: band.upper().replace("SCL", "SCL_20m"),
    ],
    ids=["copernicus", "earth-search", "capitals"],
)
def test_other_names_of_assets_make_the_same_mosaic(tmp_path: Path, rename: Callable[[str], str]) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    for place, named in ((folder, lambda band: band), (other, rename)):
        place.mkdir()
        item = make_item(place, "35VLG", DAYS[0], clouds=[(60, 70, 40)])
        for asset in item["assets"].values():
            asset.pop("eo:bands", None)
        item["assets"] = {named(key): asset for key, asset in item["assets"].items() if key != "cloud"}
        save_items(place, [item])
        with spawn(place) as server:
            make_mosaic(config(tmp_path / f"{place.name}.tif", server))
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_items_without_bands_are_refused_by_name(scenes: Path, tmp_path: Path) -> None:
    for path in scenes.glob("S2*.json"):
        item = json.loads(path.read_text())
        item["assets"] = {f"x{n}": {"href": a["href"]} for n, a in enumerate(item["assets"].values())}
        path.write_text(json.dumps(item))
    with spawn(scenes) as server, pytest.raises(InputError, match="none of its assets is a band"):
        make_mosaic(config(tmp_path / "m.tif", server))


def test_a_region_across_the_antimeridian_is_found_and_whole(tmp_path: Path) -> None:
    import geopandas
    from affine import Affine
    from shapely.geometry import MultiPolygon, box, mapping
    from stac_server import TILES

    folder = tmp_path / "date-line"
    folder.mkdir()
    halves = MultiPolygon([box(179.95, 65.005, 180, 65.02), box(-180, 65.005, -179.95, 65.02)])
    geopandas.GeoDataFrame(geometry=[halves], crs=4326).to_file(tmp_path / "aoi.gpkg")
    options = {"bounds": None, "aoi": str(tmp_path / "aoi.gpkg"), "crs": "EPSG:32660"}
    # The edge of zones 60 and 1 is the antimeridian; the tile of zone 60 reaches over it.
    place = grid_of(MosaicConfig(out="m.tif", dates=DAYS[0], **options)).transform
    TILES["60WWU"] = (32660, Affine(10, 0, place.c // 20 * 20, 0, -10, place.f // 20 * 20 + 20))
    try:
        item = make_item(folder, "60WWU", DAYS[0], side=512)
    finally:
        del TILES["60WWU"]
    item["geometry"] = mapping(MultiPolygon([box(179.9, 64.9, 180, 65.1), box(-180, 64.9, -179.9, 65.1)]))
    item["bbox"] = [179.9, 64.9, -179.9, 65.1]
    save_items(folder, [item])
    with spawn(folder) as server:
        (made,) = make_mosaic(config(tmp_path / "m.tif", server, **options))
        assert made.covered > 0.98
        with pytest.raises(InputError, match="has no scene from 2024-07-01") as caught:
            make_mosaic(config(tmp_path / "n.tif", server, dates="2024-07-01", **options))
        assert DAYS[0] in str(caught.value.hint)
    said = json.loads(made.path.with_suffix(".json").read_text())
    assert said["bbox"][0] > 179 > -179 > said["bbox"][2]
    assert [link["href"] for link in said["links"] if link["rel"] == "derived_from"]


def test_a_disk_that_is_full_is_said_before_and_during_the_work(
    server: Spawned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage())
    with pytest.raises(InputError, match=r"0\.00 GB are free there"):
        make_mosaic(config(tmp_path / "m.tif", server))
    monkeypatch.undo()
    program = "import sys; from lulc.cli.make_mosaic import main; sys.exit(main(sys.argv[1:]))"
    arguments = [
        "--bounds", *map(str, REGION), "--dates", DAYS[0], "--crs", "EPSG:32635", "--catalog", server.address,
        "--band-names", *FEW, "--out",
    ]  # fmt: skip

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    out = tmp_path / "full.tif"
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments, str(out)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not out.exists()
    assert main([*arguments, str(out)]) == 0
    main([*arguments, str(tmp_path / "never.tif")])
    np.testing.assert_array_equal(read(out), read(tmp_path / "never.tif"))


class _Usage:
    free = 0


def test_a_static_catalogue_by_its_address_and_on_disk(scenes: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted(scenes.glob("S2*.json"))]
    top = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "simulated",
           "links": [{"rel": "item", "href": f"./{name}"} for name in names]}  # fmt: skip
    (scenes / "catalog.json").write_text(json.dumps(top))
    with spawn(scenes) as server:
        address = f"{server.address}/files/catalog.json"
        (made,) = make_mosaic(config(tmp_path / "a.tif", server, catalog=address))
        local = {"catalog": None, "scenes": (str(scenes / "catalog.json"),)}
        make_mosaic(config(tmp_path / "b.tif", server, **local))
    np.testing.assert_array_equal(read(made.path), read(tmp_path / "b.tif"))
    assert (read(made.path)[0] != NODATA).any()


def test_labels_come_from_the_collection_of_a_catalogue_by_the_nearest_year(tmp_path: Path) -> None:
    from affine import Affine

    from lulc.core.grid import GridSpec
    from lulc.labels.labels import open_labels

    folder, products = tmp_path / "scenes", tmp_path / "products"
    folder.mkdir()
    products.mkdir()
    save_items(folder, [make_item(folder, "35VLG", DAYS[0])])
    lon, lat = REGION[0] - 0.01, REGION[3] + 0.01
    for year, code in ((2020, 30), (2021, 10)):
        path = products / f"map{year}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=600, width=900, count=1, dtype="uint8", crs="EPSG:4326",
            transform=Affine(1 / 12000, 0, lon, 0, -1 / 12000, lat), nodata=0,
        ) as data:  # fmt: skip
            codes = np.full((600, 900), code, "uint8")
            codes[:, 300:] = 50
            data.write(codes, 1)
        assets = {"map": {"href": path.name, "type": "image/tiff; application=geotiff", "roles": ["data"]},
                  "quality": {"href": path.name, "type": "image/tiff", "roles": ["metadata"]}}  # fmt: skip
        west, south, east, north = lon, lat - 0.05, lon + 0.075, lat
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        item = {
            "type": "Feature", "stac_version": "1.0.0", "id": f"S2 map {year}", "assets": assets, "links": [],
            "collection": "esa-worldcover", "bbox": [west, south, east, north],
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"datetime": f"{year}-01-01T00:00:00Z", "start_datetime": f"{year}-01-01T00:00:00Z",
                           "end_datetime": f"{year}-12-31T23:59:59Z"},
        }  # fmt: skip
        (products / f"S2{year}.json").write_text(json.dumps(item))
    with spawn(folder) as server, spawn(products) as other:
        labels = ("worldcover", other.address)
        make_mosaic(config(tmp_path / "m.tif", server, labels=labels))
        with pytest.raises(InputError, match="has no corine of the region"):
            make_mosaic(config(tmp_path / "n.tif", server, labels=("corine", other.address)))
    with rasterio.open(tmp_path / "m.tif") as mosaic, rasterio.open(tmp_path / "m_labels.tif") as data:
        assert set(np.unique(data.read(1))) == {10, 50}
        grid = GridSpec(mosaic.crs, mosaic.transform, mosaic.height, mosaic.width)
    # No --scheme: the file names its codes.
    with open_labels(str(tmp_path / "m_labels.tif"), grid, None) as found:
        assert found.legend.name == "worldcover"
        assert "Tree cover" in found.legend.names
