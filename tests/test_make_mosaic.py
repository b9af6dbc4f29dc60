"""From a region and dates to a mosaic: scenes found, clouds left out, dates composed.

Scenes are simulated; their server is a real STAC API on this machine.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely

from lulc.cli.make_mosaic import main
from lulc.compositing import catalog, composer, composite, mosaic, observation, periods
from lulc.compositing.composer import NODATA
from lulc.compositing.mosaic import make_mosaic, open_jobs
from lulc.config import MosaicConfig
from lulc.core.schema import InputError

sys.path.insert(0, str(Path(__file__).parent))

from stac_server import BANDS, Server, ground, make_item, save_items, serve

pytestmark = pytest.mark.integration

REGION = (24.004, 61.304, 24.032, 61.316)
"""Across the border of the two tiles, inside both together."""

JUNE = "2024-06-01/2024-06-30"
DAYS = ("2024-06-03", "2024-06-13", "2024-06-23")


def config(out: Path, scenes: Path | None = None, **options: Any) -> MosaicConfig:
    where: dict[str, Any] = {} if scenes is None else {"scenes": (str(scenes),)}
    given = {"bounds": REGION, "dates": JUNE, "crs": "EPSG:32635", **where, **options}
    return MosaicConfig(out=str(out), **given)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as data:
        return data.read()


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three identical dates of one tile, the middle one with a cloud."""
    folder = tmp_path_factory.mktemp("clear")
    items = [make_item(folder, "35VLG", day, clouds=[(60, 70, 40)] * (day == DAYS[1])) for day in DAYS]
    return save_items(folder, items)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two dates of two tiles in two zones, of both processing baselines; 34VFM clouded in one date."""
    folder = tmp_path_factory.mktemp("tiles")
    items = [
        make_item(folder, "34VFM", DAYS[0], clouds=[(40, 100, 30)], baseline="03.01"),
        make_item(folder, "35VLG", DAYS[0], baseline="03.01", cover=40.0),
        make_item(folder, "34VFM", DAYS[1]),
        make_item(folder, "35VLG", DAYS[1], clouds=[(100, 20, 20)]),
    ]
    return save_items(folder, items), items


@pytest.fixture
def server(tiles: tuple[Path, list[dict[str, Any]]]) -> Iterator[Server]:
    with serve(*tiles) as running:
        yield running


def expected(out: Path) -> np.ndarray:
    """Reflectance x 10000 float64 (band, y, x) of the simulated ground at the pixels of a mosaic."""
    import pyproj

    with rasterio.open(out) as data:
        cols, rows = np.meshgrid(np.arange(data.width) + 0.5, np.arange(data.height) + 0.5)
        x, y = data.transform.c + 10 * cols, data.transform.f - 10 * rows
        lon, lat = pyproj.Transformer.from_crs(data.crs, 4326, always_xy=True).transform(x, y)
    return np.stack([ground(band, lon, lat) for band in BANDS])


@pytest.mark.parametrize("rule", ["median", "medoid", "best", "first"])
def test_a_mosaic_of_identical_dates_is_that_date_and_a_cloud_changes_nothing(
    clear: Path, tmp_path: Path, rule: str
) -> None:
    make_mosaic(config(tmp_path / "one.tif", clear, dates=DAYS[0], rule=rule))
    make_mosaic(config(tmp_path / "all.tif", clear, rule=rule))
    one, whole = read(tmp_path / "one.tif"), read(tmp_path / "all.tif")
    assert (one[0] != NODATA).any()
    np.testing.assert_array_equal(whole[:-1], one[:-1])
    # The cloud of the second date: 40 x 40 pixels are clear twice, the others three times.
    assert set(np.unique(whole[-1][one[0] != NODATA])) == {2, 3}
    assert (whole[-1] == 2).sum() == 40 * 40


def test_the_mosaic_is_a_geotiff_with_named_scaled_bands_that_preprocess_reads_as_it_is(
    clear: Path, tmp_path: Path
) -> None:
    from lulc.config import InputConfig
    from lulc.core.windows import Window
    from lulc.rasters.stack import open_stack

    (made,) = make_mosaic(config(tmp_path / "m.tif", clear))
    with rasterio.open(made.path) as data:
        assert data.descriptions == (*BANDS, "clear_observations")
        assert data.scales[:9] == (0.0001,) * 9
        assert data.nodata == NODATA
    with open_stack([str(made.path)], [], InputConfig()) as stack:
        values = stack.read(Window(0, 0, *stack.grid.shape))
    stored = read(made.path)
    there = stored[0] != NODATA
    got = np.asarray(values[0] if isinstance(values, tuple) else values)
    red = got[..., 2] if got.shape[-1] >= 9 else got[2]
    np.testing.assert_allclose(red[there], stored[2][there], atol=0.01)
    item = json.loads(made.path.with_suffix(".json").read_text())
    assert item["assets"]["mosaic"]["raster:bands"][0]["scale"] == 0.0001
    assert item["properties"]["start_datetime"].startswith(DAYS[0])


def test_two_tiles_of_two_zones_and_baselines_meet_without_a_step(server: Server, tmp_path: Path) -> None:
    (made,) = make_mosaic(config(tmp_path / "m.tif", catalog=server.address))
    stored = read(made.path)
    truth = expected(made.path)
    assert made.covered > 0.98
    there = stored[0] != NODATA
    difference = np.abs(stored[:-1] - truth)[:, there]
    # Digital numbers are whole, and 20 m bands are half as dense: no more than that.
    assert difference.max() <= 2.0
    assert {str(day) for day in made.days} == {DAYS[0], DAYS[1]}


def test_a_region_across_zones_lies_in_that_of_its_middle(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lulc.compositing.region import grid_of

    for bounds, epsg in ((REGION, 32635), ((23.97, 61.304, 24.02, 61.316), 32634)):
        (made,) = make_mosaic(
            config(
                tmp_path / f"{epsg}.tif", catalog=server.address, crs=None, bounds=bounds, band_names=("B02",)
            )
        )
        with rasterio.open(made.path) as data:
            assert data.crs.to_epsg() == epsg
        assert made.covered > 0.6  # the tiles end within the second region
        there = read(made.path)[0] != NODATA
        assert np.abs(read(made.path)[0] - expected(made.path)[0])[there].max() <= 2
    assert "distorted" not in caplog.text
    grid_of(config(tmp_path / "m.tif", bounds=(10, 60, 30, 60.01), crs=None))
    assert "distorted" in caplog.text


def test_the_list_of_scenes_makes_the_same_mosaic_again(server: Server, tmp_path: Path) -> None:
    (made,) = make_mosaic(config(tmp_path / "m.tif", catalog=server.address))
    searches = sum("search" in path for path in server.requests)
    again = config(tmp_path / "again.tif", made.scenes, allow_remote=True)
    make_mosaic(again)
    np.testing.assert_array_equal(read(made.path), read(tmp_path / "again.tif"))
    assert sum("search" in path for path in server.requests) == searches
    with pytest.raises(InputError, match="address"):
        make_mosaic(config(tmp_path / "no.tif", made.scenes))


def test_threads_and_memory_do_not_change_the_bytes(
    tiles: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    make_mosaic(config(tmp_path / "a.tif", tiles[0], connections=1))
    make_mosaic(config(tmp_path / "b.tif", tiles[0], connections=7, memory=0.0004))
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_processes_do_not_change_the_bytes_and_a_killed_worker_is_replaced(
    tiles: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composer, "PART", 48)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    make_mosaic(config(tmp_path / "one" / "m.tif", tiles[0], band_names=("B02", "B05")))
    clusters, killed = [], []
    start, record = mosaic.open_cluster, mosaic.Journal.record

    @contextlib.contextmanager
    def note_cluster(options: Any) -> Iterator[Any]:
        with start(options) as cluster:
            clusters.append(cluster)
            yield cluster

    def kill_once(self: Any, *part: Any) -> None:
        record(self, *part)
        if not killed:
            killed.extend(clusters[0].client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(mosaic, "open_cluster", note_cluster)
    monkeypatch.setattr(mosaic.Journal, "record", kill_once)
    workers = {"dask": "local", "workers": 2}
    make_mosaic(config(tmp_path / "two" / "m.tif", tiles[0], band_names=("B02", "B05"), **workers))
    assert killed
    assert (tmp_path / "one" / "m.tif").read_bytes() == (tmp_path / "two" / "m.tif").read_bytes()


def test_a_zarr_folder_holds_the_same_pixels_and_feeds_the_other_commands(
    clear: Path, tmp_path: Path
) -> None:
    import xarray as xr

    from lulc.config import InputConfig
    from lulc.core.windows import Window
    from lulc.rasters.stack import open_stack

    make_mosaic(config(tmp_path / "m.tif", clear))
    (made,) = make_mosaic(config(tmp_path / "m2.zarr", clear))
    stored = read(tmp_path / "m.tif")
    with xr.open_zarr(made.path, consolidated=False, mask_and_scale=False, decode_coords="all") as found:
        for name, plane in zip((*BANDS, "clear_observations"), stored, strict=True):
            np.testing.assert_array_equal(found[name].values, plane)
        assert found["B02"].attrs["scale_factor"] == 0.0001
    read_as = []
    for path in (tmp_path / "m.tif", made.path):
        with open_stack([str(path)], [], InputConfig()) as stack:
            read_as.append(np.asarray(stack.read(Window(0, 0, *stack.grid.shape))))
    np.testing.assert_allclose(read_as[0], read_as[1], atol=0.001)
    with pytest.raises(InputError, match="exists already"):
        make_mosaic(config(made.path, clear))
    make_mosaic(config(made.path, clear, overwrite=True))
    (made.path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"since it holds 'note\.txt'"):
        make_mosaic(config(made.path, clear, overwrite=True))
    item = json.loads((tmp_path / "m2.json").read_text())
    assert item["assets"]["mosaic"]["type"] == "application/vnd+zarr"
    assert len([link for link in item["links"] if link["rel"] == "derived_from"]) == 3


def test_months_that_are_finished_are_not_made_again_and_empty_ones_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_items(tmp_path, [make_item(tmp_path, "35VLG", day) for day in ("2024-05-20", "2024-07-03")])
    options = {"dates": "2024-05-01/2024-07-31", "every": "month", "band_names": ("B02",)}
    first = make_mosaic(config(tmp_path / "m.tif", folder, **options))
    assert [one.path.name for one in first] == ["m_2024-05.tif", "m_2024-07.tif"]
    assert "no mosaic" in caplog.text
    moment = first[0].path.stat().st_mtime_ns
    first[1].path.unlink()
    first[1].path.with_suffix(".json").unlink()
    again = make_mosaic(config(tmp_path / "m.tif", folder, **options))
    assert again == first
    assert first[0].path.stat().st_mtime_ns == moment
    with pytest.raises(InputError, match="exists already"):
        make_mosaic(config(tmp_path / "m.tif", folder, **{**options, "rule": "first"}))


def test_the_list_of_scenes_says_baseline_offset_and_source(server: Server, tmp_path: Path) -> None:
    (made,) = make_mosaic(config(tmp_path / "m.tif", catalog=server.address, band_names=("B02",)))
    listed = {one["id"]: one for one in json.loads(made.scenes.read_text())["features"]}
    old, new = listed["S2A_34VFM_20240603_0_L2A"], listed["S2A_35VLG_20240613_0_L2A"]
    assert (old["properties"]["lulc:baseline"], old["properties"]["lulc:offsets"]) == (3.01, {"B02": 0.0})
    assert (new["properties"]["lulc:baseline"], new["properties"]["lulc:offsets"]) == (5.11, {"B02": -1000.0})
    links = json.loads(made.path.with_suffix(".json").read_text())["links"]
    sources = [link["href"] for link in links if link["rel"] == "derived_from"]
    assert sources == [one["links"][0]["href"] for one in listed.values()]


def test_a_search_follows_the_pages_of_its_answer(server: Server, tmp_path: Path) -> None:
    server.page = 1
    (job,) = open_jobs(config(tmp_path / "m.tif", catalog=server.address, band_names=("B02",)))
    assert [len(one.names) for one in job.observations] == [2, 2]
    assert sum("search" in path for path in server.requests) == 2


def test_the_median_equals_that_of_odc_stac_to_the_digital_number(clear: Path, tmp_path: Path) -> None:
    odc = pytest.importorskip("odc.stac")
    import pystac

    items = [pystac.Item.from_file(str(path)) for path in sorted(clear.glob("*.json"))]
    loaded = odc.load(
        items, bands=["B02", "B04", "B08", "scl"], crs="EPSG:32635", resolution=10, bbox=REGION,
        resampling="nearest",
    )  # fmt: skip
    cloudy = loaded["scl"].isin([0, 9])
    (made,) = make_mosaic(config(tmp_path / "m.tif", clear, band_names=("B02", "B04", "B08")))
    with rasterio.open(made.path) as data:
        left, top = data.transform.c, data.transform.f
        stored = data.read()
    for i, band in enumerate(("B02", "B04", "B08")):
        theirs = loaded[band].where(~cloudy & (loaded[band] > 0)).median("time") - 1000
        x = theirs.x.values
        y = theirs.y.values
        rows = np.round((top - y) / 10 - 0.5).astype(int)
        cols = np.round((x - left) / 10 - 0.5).astype(int)
        inside_r, inside_c = (rows >= 0) & (rows < stored.shape[1]), (cols >= 0) & (cols < stored.shape[2])
        ours = stored[i][np.ix_(rows[inside_r], cols[inside_c])].astype(float)
        ours[ours == NODATA] = np.nan
        np.testing.assert_array_equal(ours, np.rint(theirs.values[np.ix_(inside_r, inside_c)]))


def test_other_dates_fill_gaps_in_the_order_given(tmp_path: Path) -> None:
    summer = make_item(tmp_path, "35VLG", DAYS[0], clouds=[(0, 0, 192)])
    spring = make_item(tmp_path, "35VLG", "2024-04-10", add=100, clouds=[(60, 60, 20)])
    early = make_item(tmp_path, "35VLG", "2024-03-10", add=200)
    folder = save_items(tmp_path, [summer, spring, early])
    order = ("2024-04-01/2024-04-30", "spring")
    (made,) = make_mosaic(config(tmp_path / "m.tif", folder, fill_from=order))
    stored, truth = read(made.path), expected(made.path)
    there = stored[0] != NODATA
    added = np.rint(stored[0] - truth[0])[there]
    assert there.any()
    assert set(np.unique(np.round(added / 100) * 100)) == {100.0, 200.0}
    assert (stored[-1] == 0).all()  # filled pixels have no clear observation of their own
    make_mosaic(config(tmp_path / "filled.tif", folder, fill_from=(str(made.path),)))
    np.testing.assert_array_equal(read(tmp_path / "filled.tif")[:-1], stored[:-1])


def test_every_month_makes_a_mosaic_of_its_own(tmp_path: Path) -> None:
    days = {"2024-05-20": 50.0, "2024-06-03": 0.0, "2024-06-20": 10.0}
    items = [make_item(tmp_path, "35VLG", day, add=add) for day, add in days.items()]
    folder = save_items(tmp_path, items)
    made = make_mosaic(config(tmp_path / "m.tif", folder, dates="2024-05-01/2024-06-30", every="month"))
    assert [one.path.name for one in made] == ["m_2024-05.tif", "m_2024-06.tif"]
    assert [len(one.days) for one in made] == [1, 2]


def test_best_takes_the_clearest_scene_or_the_nearest_day(tmp_path: Path) -> None:
    items = [
        make_item(tmp_path, "35VLG", DAYS[0], add=0, cover=30),
        make_item(tmp_path, "35VLG", DAYS[1], add=100, cover=2),
        make_item(tmp_path, "35VLG", DAYS[2], add=200, cover=20),
    ]
    folder = save_items(tmp_path, items)
    for options, add in (({}, 100), ({"near": "2024-06-24"}, 200), ({"near": "2024-06-01"}, 0)):
        out = tmp_path / f"m{add}.tif"
        make_mosaic(config(out, folder, rule="best", **options))
        stored = read(out)
        there = stored[0] != NODATA
        assert np.abs(stored[0] - expected(out)[0] - add)[there].max() <= 1
    with pytest.raises(InputError, match="--rule best"):
        make_mosaic(config(tmp_path / "x.tif", folder, near=DAYS[0]))


def test_clouds_come_from_probabilities_own_masks_and_grow(tmp_path: Path) -> None:
    items = [make_item(tmp_path, "35VLG", DAYS[0], clouds=[(60, 70, 40)])]
    folder = save_items(tmp_path, items)
    mask = tmp_path / f"own_{items[0]['id']}.tif"
    with rasterio.open(tmp_path / items[0]["id"] / "SCL.tif") as data:
        profile, classes = data.profile, data.read()
    with rasterio.open(mask, "w", **{**profile, "nodata": None}) as data:
        data.write((classes == 9).astype("uint8"))
    counts = {}
    for name, options in {
        "classes": {},
        "probability": {"cloud_probability": "cloud"},
        "own": {"masks": str(tmp_path / "own_{id}.tif")},
        "grown": {"grow_clouds": 3},
        "kept": {"clouds": (99,)},
    }.items():
        (made,) = make_mosaic(config(tmp_path / f"{name}.tif", folder, **options))
        counts[name] = made.clear.get(0, 0)
    beyond = counts["kept"]
    assert counts["classes"] == counts["probability"] == counts["own"] == beyond + 40 * 40
    # A disc of 3 pixels around the square: its sides, and quarter discs of 3 whole pixels at its corners.
    corner = sum(1 for i in range(1, 4) for j in range(1, 4) if i * i + j * j <= 9)
    assert counts["grown"] == beyond + 40 * 40 + 4 * 40 * 3 + 4 * corner


def test_a_pattern_of_masks_takes_other_brackets_as_they_are(clear: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\{tile\}_S2A_35VLG_20240603_0_L2A"):
        make_mosaic(config(tmp_path / "m.tif", clear, masks=str(tmp_path / "{tile}_{id}.tif")))


def test_a_cloud_probability_that_is_not_in_percent_is_refused(tmp_path: Path) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0], clouds=[(0, 0, 100)])
    with rasterio.open(tmp_path / item["id"] / "CLD.tif") as file:
        profile, percent = file.profile | {"dtype": "uint16"}, file.read().astype("uint16")
    with rasterio.open(tmp_path / item["id"] / "CLD.tif", "w", **profile) as file:
        file.write(100 * percent)
    with pytest.raises(InputError, match="holds the value 9500, expected percent"):
        folder = save_items(tmp_path, [item])
        make_mosaic(config(tmp_path / "m.tif", folder, cloud_probability="cloud"))


def test_filters_say_what_they_left_out_and_where_scenes_are(
    tiles: tuple[Path, list[dict[str, Any]]], server: Server, tmp_path: Path
) -> None:
    jobs = open_jobs(config(tmp_path / "m.tif", tiles[0], tiles=("35VLG",), max_cloud=20))
    assert [one.day.isoformat() for one in jobs[0].observations] == [DAYS[1]]
    with pytest.raises(InputError, match="4 by --max-cloud 1"):
        open_jobs(config(tmp_path / "m.tif", tiles[0], max_cloud=1))
    with pytest.raises(InputError) as caught:
        open_jobs(config(tmp_path / "m.tif", catalog=server.address, dates="2024-08-01/2024-08-31"))
    assert "2024-08-01 to 2024-08-31" in caught.value.problem
    assert f"{DAYS[0]}, {DAYS[1]}" in str(caught.value.hint)


def test_a_server_that_answers_429_500_and_half_of_a_range_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "FIRST_WAIT", 0.05)
    monkeypatch.setitem(observation.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.05)
    reference = config(tmp_path / "a.tif", catalog=server.address)
    make_mosaic(reference)
    faults: Iterator[int | str | None] = iter([429, None, 500, None, "cut", None, 503] * 3)

    def fail(path: str) -> int | str | None:
        return next(faults, None) if path.endswith(".tif") or "search" in path else None

    server.faults = fail
    make_mosaic(config(tmp_path / "b.tif", catalog=server.address))
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_an_asset_that_has_gone_is_named_and_the_same_command_continues(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "FIRST_WAIT", 0.01)
    monkeypatch.setitem(observation.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.01)
    server.faults = lambda path: 404 if path.endswith("B08.tif") else None
    with pytest.raises(InputError, match=r"B08\.tif.* 404") as caught:
        make_mosaic(config(tmp_path / "m.tif", catalog=server.address))
    assert "--scenes" in str(caught.value.hint)
    server.faults = lambda path: 503 if path.endswith("B08.tif") else None
    with pytest.raises(InputError, match=r"B08\.tif.*tried 6 times"):
        make_mosaic(config(tmp_path / "m.tif", catalog=server.address))
    server.faults = lambda path: None
    assert make_mosaic(config(tmp_path / "m.tif", catalog=server.address))[0].covered > 0.9


@pytest.mark.parametrize("answer", ["not json", '{"type": "Feature"}', '{"type":"Catalog","links":"no"}'])
def test_a_catalogue_that_answers_nonsense_is_refused(tmp_path: Path, answer: str) -> None:
    import http.server
    import threading

    class Nonsense(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Nonsense) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="gave no answer that can be used"):
            open_jobs(config(tmp_path / "m.tif", catalog=f"http://127.0.0.1:{httpd.server_port}"))
        httpd.shutdown()


def test_a_signed_address_never_reaches_the_list(tmp_path: Path) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0])
    item["assets"]["B02"]["href"] = "https://example.org/B02.tif?sig=SECRET"
    listed = {"type": "FeatureCollection", "features": [item]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match="signature or password"):
        open_jobs(config(tmp_path / "m.tif", tmp_path / "list.json", allow_remote=True))
    assert not (tmp_path / "m_scenes.json").exists()


def test_regions_across_the_antimeridian_need_a_crs(tmp_path: Path) -> None:
    import geopandas
    from shapely.geometry import MultiPolygon, box

    from lulc.compositing.region import grid_of

    halves = MultiPolygon([box(179.9, 65, 180, 65.1), box(-180, 65, -179.9, 65.1)])
    geopandas.GeoDataFrame(geometry=[halves], crs=4326).to_file(tmp_path / "r.gpkg")
    options = {"bounds": None, "aoi": str(tmp_path / "r.gpkg"), "crs": None}
    with pytest.raises(InputError, match="antimeridian"):
        grid_of(config(tmp_path / "m.tif", tmp_path, **options))
    grid = grid_of(config(tmp_path / "m.tif", tmp_path, **{**options, "crs": "EPSG:32660"}))
    assert 800 < grid.width < 1100
    assert 1000 < grid.height < 1300


def test_a_killed_run_continues_with_the_same_bytes(
    tiles: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    program = (
        "import sys, lulc.compositing.composer as m\n"
        "from lulc.cli.make_mosaic import main\n"
        "m.PART = 64\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    west, south, east, north = map(str, REGION)
    command = [sys.executable, "-c", program, "--bounds", west, south, east, north, "--dates", JUNE, "--crs",
               "EPSG:32635", "--scenes", str(tiles[0]), "--out"]  # fmt: skip
    subprocess.run([*command, str(tmp_path / "whole.tif")], check=True, capture_output=True)
    out = tmp_path / "killed.tif"
    process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = tmp_path / "killed.tif.parts" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    np.testing.assert_array_equal(read(out), read(tmp_path / "whole.tif"))
    assert not (tmp_path / "killed.tif.parts").exists()


def test_the_command_plans_without_writing_a_mosaic(
    clear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = map(str, REGION)
    arguments = [
        "--bounds",
        *bounds,
        "--dates",
        JUNE,
        "--scenes",
        str(clear),
        "--out",
        str(tmp_path / "m.tif"),
    ]
    assert main([*arguments, "--plan", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert [scene["day"] for scene in plan["scenes"]] == list(DAYS)
    assert plan["bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mosaics"][0]["dates"] == list(DAYS)
    before = (tmp_path / "m_scenes.json").read_bytes()
    narrower = [DAYS[0] if word == JUNE else word for word in arguments]
    assert main(narrower) == 1  # it exists
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "m_scenes.json").read_bytes() == before


def test_a_wrong_product_of_labels_is_refused_before_the_search(clear: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="worldcover or corine"):
        make_mosaic(config(tmp_path / "m.tif", clear, labels=("landcover", "x.tif")))
    with pytest.raises(InputError, match=r"no 'x\.tif'"):
        make_mosaic(config(tmp_path / "m.tif", clear, labels=("corine", "x.tif")))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0])
    save_items(tmp_path, [item])
    (tmp_path / item["id"] / "B08.tif").write_bytes(b"no raster")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"B08\.tif"):
        make_mosaic(config(tmp_path / "m.tif", tmp_path))
    assert time.monotonic() - begun < observation.FIRST_WAIT


def test_labels_are_cut_on_the_grid_of_the_mosaic(clear: Path, tmp_path: Path) -> None:
    from affine import Affine

    lon, lat = REGION[0] - 0.01, REGION[3] + 0.01
    codes = np.full((600, 900), 10, "uint8")
    codes[:, 300:] = 30
    path = tmp_path / "worldcover.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=600, width=900, count=1, dtype="uint8", crs="EPSG:4326",
        transform=Affine(1 / 12000, 0, lon, 0, -1 / 12000, lat), nodata=0,
    ) as data:  # fmt: skip
        data.write(codes, 1)
    make_mosaic(config(tmp_path / "m.tif", clear, labels=("worldcover", str(path))))
    with rasterio.open(tmp_path / "m_labels.tif") as labels, rasterio.open(tmp_path / "m.tif") as mosaic:
        assert labels.transform == mosaic.transform
        assert labels.shape == mosaic.shape
        assert set(np.unique(labels.read(1))) == {10, 30}


def test_offset_and_scale_are_given_where_the_items_say_neither(tmp_path: Path) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0])
    for asset in item["assets"].values():
        asset.pop("raster:bands", None)
    item["properties"] = {k: v for k, v in item["properties"].items() if "baseline" not in k}
    folder = save_items(tmp_path, [item])
    (made,) = make_mosaic(config(tmp_path / "m.tif", folder, offset=-1000.0, scale=1e-4))
    stored, truth = read(made.path), expected(made.path)
    there = stored[0] != NODATA
    assert there.any() and np.abs(stored[0] - truth[0])[there].max() <= 1


def test_two_scenes_of_one_name_are_refused_since_a_list_holds_one(tmp_path: Path) -> None:
    for day in DAYS[:2]:
        item = make_item(tmp_path / day, "35VLG", day) | {"id": "scene"}
        (tmp_path / day / "scene.json").write_text(json.dumps(item))
    with pytest.raises(InputError, match="2 are named 'scene'"):
        make_mosaic(config(tmp_path / "m.tif", tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "names the file 'S2A_35VLG_20240603_0_L2A/B02.tif', expected an address"),
        ({"geometry": {"type": "Point"}, "assets": {}}, "its geometry is no GeoJSON"),
        ({"properties": {"datetime": None}, "assets": {}}, "no id or datetime"),
    ],
)
def test_an_item_of_a_list_that_cannot_be_used_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0]) | change
    listed = tmp_path / "items.json"
    listed.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    with pytest.raises(InputError, match=said):
        # Another folder than that of the list: a file there of the same name would be another scene.
        make_mosaic(config(tmp_path / "elsewhere" / "m.tif", listed))


@pytest.mark.parametrize(
    ("href", "options", "said"),
    [
        ("https://example.org/B02.tif", {}, "its files lie at addresses, which --allow-remote opens"),
        ("https://example.org/B02.tif", {"allow_remote": True}, ""),
        ("nosuch.tif", {}, "there is no such file"),
    ],
)
def test_an_item_in_a_folder_is_found_or_its_fault_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, href: str, options: dict[str, Any], said: str
) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0])
    item["assets"] = {"B02": item["assets"]["B02"] | {"href": href}}
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "item.json").write_text(json.dumps(item))
    with contextlib.nullcontext() if not said else pytest.raises(InputError, match="holds no scene"):
        span = periods.parse(JUNE)
        found = catalog.find(config(tmp_path / "m.tif", folder, **options), shapely.box(*REGION), span)
        assert [scene.id for scene in found] == [item["id"]]
    assert said in caplog.text


@pytest.mark.parametrize("names", [("B02", "NDVI"), ("B02", "SCL"), ("B02", "blue"), ()])
def test_bands_of_a_mosaic_are_different_bands(clear: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="cannot make a mosaic of the bands"):
        open_jobs(config(tmp_path / "m.tif", clear, band_names=names))
    (job,) = open_jobs(config(tmp_path / "m.tif", clear, band_names=("blue", "b8")))
    assert job.config.band_names == ("B02", "B08")


def test_clouds_that_nothing_tells_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    item = make_item(tmp_path, "35VLG", DAYS[0], clouds=[(60, 70, 40)])
    del item["assets"]["scl"]
    make_mosaic(config(tmp_path / "m.tif", save_items(tmp_path, [item])))
    assert "scenes without a scene classification: S2A_35VLG_20240603_0_L2A;" in caplog.text


def test_dark_pixels_of_a_mosaic_are_still_pixels_when_it_is_read(tmp_path: Path) -> None:
    values = np.array([[[-0.4, 0.0, 0.4], [np.nan, -3.0, 40_000.0]]], np.float32)
    stored = composer.encode(values)
    assert stored.tolist() == [[[1, 1, 1], [-32768, -3, 32767]]]


def test_the_medoid_is_an_observation_and_the_median_a_middle() -> None:
    rng = np.random.default_rng(1)
    stack = rng.normal(1000, 200, (5, 3, 4, 6)).astype("float32")
    stack[rng.random((5, 1, 4, 6)).repeat(3, axis=1) < 0.3] = np.nan
    stack[0, 1, 0, 0] = np.nan  # one band alone
    clear = composite.complete(stack)
    np.testing.assert_array_equal(clear, (~np.isnan(stack).any(axis=1)).sum(axis=0))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(composite.median(stack), np.nanmedian(stack, axis=0), rtol=1e-6)
    chosen = composite.medoid(stack)
    for y in range(4):
        for x in range(6):
            own = stack[:, :, y, x]
            own = own[~np.isnan(own[:, 0])]
            if not len(own):
                assert np.isnan(chosen[:, y, x]).all()
                continue
            sums = np.sqrt(((own[:, None] - own[None]) ** 2).sum(axis=2)).sum(axis=1)
            np.testing.assert_array_equal(chosen[:, y, x], own[sums.argmin()])


@pytest.mark.parametrize("count", range(1, 20))
def test_the_median_of_any_number_of_dates_is_that_of_numpy(count: int) -> None:
    rng = np.random.default_rng(count)
    stack = rng.integers(0, 9, (count, 2, 30, 30)).astype("float32")
    stack[rng.random(stack.shape) < 0.2] = np.nan
    with pytest.warns(RuntimeWarning) if np.isnan(stack).all(axis=0).any() else contextlib.nullcontext():
        expected_ = np.nanmedian(stack, axis=0)
    np.testing.assert_array_equal(composite.median(stack), expected_)


def test_spans_of_days_are_read_and_cut() -> None:
    june = datetime.date(2024, 6, 1)
    assert periods.parse("2024-06-01") == (june, june)
    with pytest.raises(InputError, match="later"):
        periods.parse("2024-06-02/2024-06-01")
    with pytest.raises(InputError, match="as a day"):
        periods.parse("June")
    years = list(periods.split(periods.parse("2023-12-30/2024-01-02"), "year"))
    assert [(name, (b - a).days) for name, (a, b) in years] == [("2023", 1), ("2024", 1)]


def test_nothing_is_searched_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of --catalog and --scenes"):
        open_jobs(config(tmp_path / "m.tif"))
    assert os.listdir(tmp_path) == []


def make_product(folder: Path, name: str, cloud: float, add: float) -> Path:
    """Write a product of level 2A from a simulated scene, its bands as GeoTIFF: a folder ``NAME.SAFE``."""
    item = make_item(folder / "made", "35VLG", f"{name[11:15]}-{name[15:17]}-{name[17:19]}", add=add)
    product = folder / f"{name}.SAFE"
    for band in (*BANDS, "SCL"):
        meters = 10 if band in ("B02", "B03", "B04", "B08") else 20
        place = product / "GRANULE" / "L2A" / "IMG_DATA" / f"R{meters}m" / f"T35VLG_{band}_{meters}m.tif"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((folder / "made" / item["id"] / f"{band}.tif").read_bytes())
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    (product / "MTD_MSIL2A.xml").write_text(
        f"<P><BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>{offsets}"
        f"<Cloud_Coverage_Assessment>{cloud}</Cloud_Coverage_Assessment></P>"
    )
    return product


def test_products_are_chosen_by_what_they_say_and_read_zipped(tmp_path: Path) -> None:
    import shutil

    names = {
        "S2A_MSIL2A_20240603T095031_N0510_R079_T35VLG_20240603T120000": (12.5, 0),
        "S2B_MSIL2A_20240613T095031_N0511_R036_T35VLG_20240613T120000": (80.0, 100),
        "S2A_MSIL2A_20240623T095031_N0511_R036_T35VLG_20240623T120000": (3.0, 200),
    }
    products = tmp_path / "products"
    for name, (cloud, add) in names.items():
        product = make_product(tmp_path, name, cloud, add)
        # The first is a folder, the others archives.
        (products / "x").mkdir(parents=True, exist_ok=True)
        if add == 0:
            shutil.move(product, products / product.name)
        else:
            shutil.make_archive(str(products / "x" / product.name), "zip", tmp_path, product.name)
            shutil.rmtree(product)
    for options, days in {
        ("max_cloud", 100): DAYS,
        ("max_cloud", 60): (DAYS[0], DAYS[2]),
        ("orbits", (36,)): (DAYS[2],),
        ("min_baseline", 5.11): (DAYS[2],),
        ("tiles", ("35VLG",)): (DAYS[0], DAYS[2]),
    }.items():
        (job,) = open_jobs(config(tmp_path / "m.tif", products, **dict([options])))
        assert [one.day.isoformat() for one in job.observations] == list(days)
    with pytest.raises(InputError, match=r"2 by --tiles 34VFM"):
        open_jobs(config(tmp_path / "m.tif", products, tiles=("34VFM",)))
    (made,) = make_mosaic(config(tmp_path / "m.tif", products, rule="best"))
    stored = read(made.path)
    there = stored[0] != NODATA
    assert np.abs(stored[0] - expected(made.path)[0] - 200)[there].max() <= 1
    make_mosaic(config(tmp_path / "again.tif", made.scenes, rule="best"))
    np.testing.assert_array_equal(read(tmp_path / "again.tif"), stored)


@pytest.mark.parametrize("codes", [(12, 23, 40), (211, 311, 511)], ids=["grid", "three-digit"])
def test_corine_is_cut_by_the_nearest_pixel_and_known_by_its_names(
    clear: Path, tmp_path: Path, codes: tuple[int, ...]
) -> None:
    from affine import Affine
    from pyproj import Transformer

    from lulc.core.grid import GridSpec
    from lulc.labels.labels import open_labels

    x, y = Transformer.from_crs(4326, 3035, always_xy=True).transform(REGION[0], REGION[3])
    stored = np.random.default_rng(1).choice(codes, (60, 60)).astype("int16")
    (tmp_path / "clc").mkdir()
    with rasterio.open(
        tmp_path / "clc" / "U2018.tif", "w", driver="GTiff", height=60, width=60, count=1, dtype="int16",
        crs="EPSG:3035", transform=Affine(100, 0, x // 100 * 100 - 2000, 0, -100, y // 100 * 100 + 2000),
        nodata=-32768,
    ) as data:  # fmt: skip
        data.write(stored, 1)
    make_mosaic(config(tmp_path / "m.tif", clear, labels=("corine", str(tmp_path / "clc"))))
    with rasterio.open(tmp_path / "m_labels.tif") as data:
        assert set(np.unique(data.read(1))) == set(codes)
        grid = GridSpec(data.crs, data.transform, data.height, data.width)
    with open_labels(str(tmp_path / "m_labels.tif"), grid) as found:
        assert found.legend.name == "clc-level3"
        assert "Non-irrigated arable land" in found.legend.names


def test_a_disk_that_fills_while_the_parts_are_joined_leaves_these_for_the_next_run(
    tmp_path: Path,
) -> None:
    import resource

    item = make_item(tmp_path, "35VLG", DAYS[0])
    for band in BANDS:
        with rasterio.open(tmp_path / item["id"] / f"{band}.tif", "r+") as data:
            # Noise, which no compression makes small.
            noise = np.random.default_rng(1).integers(0, 500, (1, *data.shape), "uint16")
            data.write(data.read() + noise)
    folder = save_items(tmp_path, [item])
    program = (
        "import sys, lulc.compositing.composer as m\n"
        "from lulc.cli.make_mosaic import main\n"
        "m.PART = int(sys.argv[1])\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    out = tmp_path / "out" / "m.tif"
    command = [sys.executable, "-c", program, "48", "--bounds", *map(str, REGION), "--dates", DAYS[0],
               "--crs", "EPSG:32635", "--scenes", str(folder), "--out", str(out)]  # fmt: skip

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    ended = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "its disk did not take all of it" in ended.stderr
    assert not out.exists()
    journal = out.with_name("m.tif.parts") / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 12
    subprocess.run(command, check=True, capture_output=True)
    make_mosaic(config(tmp_path / "whole.tif", folder, dates=DAYS[0]))
    np.testing.assert_array_equal(read(out), read(tmp_path / "whole.tif"))
