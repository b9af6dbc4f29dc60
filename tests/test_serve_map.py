"""serve_map.py: a real server on 127.0.0.1, what it answers and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from lulc.cli import serve_map
from lulc.config import ServeConfig
from lulc.core.schema import InputError, LandCoverClass, Legend
from lulc.evaluation.server import MapServer
from lulc.maps.reader import REST

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (120, 90)
GRID = {"crs": CRS.from_epsg(3067), "transform": Affine(10, 0, 500_000, 0, -10, 6_700_000)}
LEGEND = Legend("two", (LandCoverClass(1, "Forest", "#00ff00"), LandCoverClass(2, "Water", "#0000ff")))

needs_titiler = pytest.mark.skipif(not find_spec("titiler"), reason="needs the extra 'serve'")


def write_map(path: Path, *, single: bool = False, scaled: bool = False) -> np.ndarray:
    """A map of two halves, with activations; of one class where `single`, uint16 where `scaled`."""
    rng = np.random.default_rng(1)
    forest = rng.uniform(0.5, 1, SHAPE).astype(np.float32)
    forest[:, 45:] = 1 - forest[:, 45:]
    shares = forest[None] if single else np.stack([forest, 1 - forest])
    mapped = (forest > 0.5) if single else np.where(forest > 0.5, 1, 2)
    legend = Legend("one", LEGEND.classes[:1]) if single else LEGEND
    bands = np.concatenate([mapped[None], np.round(shares * 10_000) if scaled else shares])
    kind = np.uint16 if scaled else np.float32
    nodata = 65535 if scaled else -1
    profile = {"driver": "GTiff", "height": SHAPE[0], "width": SHAPE[1], "count": len(bands), **GRID}
    with rasterio.open(path, "w", dtype=kind, nodata=nodata, **profile) as file:
        file.write(bands.astype(kind))
        file.update_tags(LULC_LEGEND=json.dumps(legend.to_json()))
        if scaled:
            file.scales = [1.0] + [1e-4] * len(shares)
        file.build_overviews([2])
    return bands.astype(kind)


def reference_of() -> np.ndarray:
    """Class 1 above row 80, class 2 below, no label in a corner."""
    labels = np.ones(SHAPE, np.uint8)
    labels[80:] = 2
    labels[:10, :10] = 0
    return labels


def write_reference(folder: Path) -> dict[str, str]:
    """Labels and a scheme of their codes, as options."""
    profile = {"driver": "GTiff", "height": SHAPE[0], "width": SHAPE[1], "count": 1, **GRID}
    with rasterio.open(folder / "labels.tif", "w", dtype="uint8", nodata=0, **profile) as file:
        file.write(reference_of(), 1)
    (folder / "own.csv").write_text("code,class,name,color\n1,1,Forest,#00ff00\n2,2,Water,#0000ff\n")
    return {"reference": str(folder / "labels.tif"), "scheme": str(folder / "own.csv")}


@pytest.fixture
def served(request, tmp_path: Path) -> Iterator[tuple[str, np.ndarray]]:
    options = dict(getattr(request, "param", {}))
    labels = write_reference(tmp_path) if options.pop("reference", False) else {}
    bands = write_map(tmp_path / "map.tif", **options)
    with MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=0, **labels)) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server.url, bands
        finally:
            server.stop()
            thread.join(20)


def get(url: str, **headers: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.read()


def place_of(row: int, col: int) -> tuple[float, float]:
    xs, ys = transform(GRID["crs"], "EPSG:4326", *([v] for v in GRID["transform"] @ (col + 0.5, row + 0.5)))
    return xs[0], ys[0]


@needs_titiler
@pytest.mark.parametrize("served", [{}, {"scaled": True}, {"single": True}], indirect=True, ids=str)
def test_a_pixel_answers_what_rasterio_reads(served) -> None:
    url, bands = served
    for row, col in ((0, 0), (119, 89), (60, 44), (60, 45)):
        longitude, latitude = place_of(row, col)
        answer = json.loads(get(f"{url}pixel?longitude={longitude}&latitude={latitude}"))
        assert (answer["row"], answer["col"]) == (row, col)
        number = int(bands[0, row, col])
        assert answer["map"] == (2 if len(bands) == 2 and number == 0 else number)
        scale = 1e-4 if bands.dtype == np.uint16 else 1
        expected = bands[1:, row, col] * scale
        assert answer["activations"][: len(expected)] == pytest.approx(expected.tolist())
        assert sum(answer["activations"]) == pytest.approx(1, abs=1e-3)


@needs_titiler
@pytest.mark.parametrize(
    "served", [{"reference": True}, {"reference": True, "single": True}], indirect=True, ids=str
)
def test_the_reference_is_a_layer_and_where_the_map_differs_another(served) -> None:
    url, bands = served
    labels = reference_of()
    mapped = np.where(bands[0] == 0, 2, bands[0])
    tiles = tiles_in(url)
    assert {"reference", "difference"} <= tiles.keys()
    legend = (LEGEND.classes[0].color, REST.color if len(bands) == 2 else LEGEND.classes[1].color)
    for row, col in ((60, 20), (60, 70), (100, 20), (5, 5)):
        longitude, latitude = place_of(row, col)
        answer = json.loads(get(f"{url}pixel?longitude={longitude}&latitude={latitude}"))
        known = labels[row, col] != 0
        assert answer["reference"] == (labels[row, col] if known else 255)
        shown, wrong = (tile_at(tiles[name], url, row, col, 17) for name in ("reference", "difference"))
        assert bool(shown[3]) == known
        if known:
            assert "#{:02x}{:02x}{:02x}".format(*shown[:3]) == legend[labels[row, col] - 1]
        assert bool(wrong[3]) == (known and labels[row, col] != mapped[row, col])


@needs_titiler
def test_a_place_beyond_the_map_has_no_pixel(served) -> None:
    assert json.loads(get(f"{served[0]}pixel?longitude=0&latitude=0")) is None


def tiles_in(url: str) -> dict[str, str]:
    page = get(url).decode()
    data = json.loads(page.split('id="viewer-data">')[1].split("</script>")[0])
    return {layer["id"]: layer["tiles"] for layer in data["layers"]}


def tile_at(template: str, url: str, row: int, col: int, zoom: int) -> np.ndarray:
    """The tile around a pixel, uint8 (256, 256, 4), red green blue alpha."""
    longitude, latitude = place_of(row, col)
    n = 2**zoom
    x = (longitude + 180) / 360 * n
    y = (1 - np.arcsinh(np.tan(np.radians(latitude))) / np.pi) / 2 * n
    address = template.replace("{z}", str(zoom)).replace("{x}", str(int(x))).replace("{y}", str(int(y)))
    encoded = np.frombuffer(get(url + address), np.uint8)
    tile = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    return tile[int(y % 1 * 256), int(x % 1 * 256)]


@needs_titiler
@pytest.mark.parametrize("served", [{}, {"scaled": True}, {"single": True}], indirect=True, ids=str)
def test_tiles_have_the_colors_of_classes_and_activations(served) -> None:
    url, bands = served
    tiles = tiles_in(url)
    rest = (0xD9, 0xD9, 0xD9) if len(bands) == 2 else (0, 0, 255)
    assert tuple(tile_at(tiles["map"], url, 60, 10, 15)[:3]) == (0, 255, 0)
    assert tuple(tile_at(tiles["map"], url, 60, 80, 15)[:3]) == rest
    # Brightness of both ramps rises with the value: activation of forest in forest and in water.
    high, low = (tile_at(tiles["activation1"], url, 60, col, 15)[:3].sum() for col in (10, 80))
    assert high > low
    assert tile_at(tiles["entropy"], url, 60, 10, 15)[3] == 255
    assert "activation2" not in tiles or len(bands) == 3


@needs_titiler
def test_a_tile_beyond_the_map_is_empty(served) -> None:
    url, _ = served
    template = tiles_in(url)["map"]
    blank = get(url + template.replace("{z}", "10").replace("{x}", "0").replace("{y}", "0"))
    assert not cv2.imdecode(np.frombuffer(blank, np.uint8), cv2.IMREAD_UNCHANGED).any()


@needs_titiler
def test_only_this_machine_and_only_this_map_are_served(served) -> None:
    url, _ = served
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        get(url, Host="attacker.example")
    for path in ("docs", "openapi.json", "map/info", "map/statistics", "map/point/0,0", "map/preview.png"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url + path)
    # Neither a file nor a formula of the request has an effect.
    template = tiles_in(url)["map"]
    place = {"row": 60, "col": 10, "zoom": 15}
    expected = tile_at(template, url, **place)
    more = f"{template}&url=/etc/passwd&expression=b1*0&bidx=1"
    assert np.array_equal(tile_at(more.replace("&bidx=1", "", 1), url, **place), expected)


@needs_titiler
def test_the_command_prints_its_address_and_ends_at_a_signal(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    command = [sys.executable, str(ROOT / "serve_map.py"), str(tmp_path / "map.tif"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert "127.0.0.1" in line
            assert b"viewer-data" in get(line.split()[0])
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_missing_package_is_named_with_what_to_type(tmp_path: Path, monkeypatch, capsys) -> None:
    write_map(tmp_path / "map.tif")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert serve_map.main([str(tmp_path / "map.tif"), "--port", "0"]) == 1
    assert "pip install '.[serve]'" in capsys.readouterr().err


@needs_titiler
def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    with MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=0)) as server:
        port = int(server.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(InputError, match="expected a free port"):
            MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=port))


@needs_titiler
def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_bytes(b"no raster")
    with pytest.raises(InputError, match="cannot read"):
        MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=0))
