"""serve_map.py: a real server on 127.0.0.1, what it answers and what it refuses."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
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
from lulc.evaluation import server
from lulc.evaluation.server import MapServer
from lulc.evaluation.tiles import PALE
from lulc.maps.reader import REST

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (120, 90)
GRID = {"crs": CRS.from_epsg(3067), "transform": Affine(10, 0, 500_000, 0, -10, 6_700_000)}
LEGEND = Legend("two", (LandCoverClass(1, "Forest", "#00ff00"), LandCoverClass(2, "Water", "#0000ff")))

needs_server = pytest.mark.skipif(not find_spec("rio_tiler"), reason="needs the extra 'serve'")


def write_map(
    path: Path, *, single: bool = False, scaled: bool = False, overviews: bool = True
) -> np.ndarray:
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
        if overviews:
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
    with served_map(ServeConfig(map=str(tmp_path / "map.tif"), port=0, **labels)) as url:
        yield url, bands


@contextlib.contextmanager
def served_map(config: ServeConfig) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    with MapServer(config) as running:
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield running.url
        finally:
            running.stop()
            thread.join(20)


def get(url: str, **headers: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.read()


def place_of(row: int, col: int) -> tuple[float, float]:
    xs, ys = transform(GRID["crs"], "EPSG:4326", *([v] for v in GRID["transform"] @ (col + 0.5, row + 0.5)))
    return xs[0], ys[0]


@needs_server
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


@needs_server
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


@needs_server
def test_a_place_beyond_the_map_has_no_pixel(served) -> None:
    assert json.loads(get(f"{served[0]}pixel?longitude=0&latitude=0")) is None


def tiles_in(url: str) -> dict[str, str]:
    page = get(url).decode()
    data = json.loads(page.split('id="viewer-data">')[1].split("</script>")[0])
    return {layer["id"]: layer["tiles"] for layer in data["layers"]}


def tile_of(row: int, col: int, zoom: int) -> tuple[float, float]:
    """Column and row of the tile in which a pixel lies, with the place in it behind the point."""
    longitude, latitude = place_of(row, col)
    n = 2**zoom
    return (longitude + 180) / 360 * n, (1 - np.arcsinh(np.tan(np.radians(latitude))) / np.pi) / 2 * n


def tile_at(template: str, url: str, row: int, col: int, zoom: int) -> np.ndarray:
    """The colour of a pixel in a tile: red, green, blue, alpha."""
    x, y = tile_of(row, col, zoom)
    address = template.replace("{z}", str(zoom)).replace("{x}", str(int(x))).replace("{y}", str(int(y)))
    encoded = np.frombuffer(get(url + address), np.uint8)
    tile = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    return tile[int(y % 1 * 256), int(x % 1 * 256)]


@needs_server
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


@needs_server
def test_a_tile_beyond_the_map_is_empty(served) -> None:
    url, _ = served
    template = tiles_in(url)["map"]
    blank = get(url + template.replace("{z}", "10").replace("{x}", "0").replace("{y}", "0"))
    assert not cv2.imdecode(np.frombuffer(blank, np.uint8), cv2.IMREAD_UNCHANGED).any()


@needs_server
def test_only_this_machine_and_only_this_map_are_served(served) -> None:
    url, _ = served
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        get(url, Host="attacker.example")
    for path in ("docs", "openapi.json", "map/info", "map/statistics", "map/point/0,0", "map/preview.png"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url + path)


def status_of(url: str, **headers: str) -> int:
    try:
        get(url, **headers)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


TILE = "map/tiles/WebMercatorQuad/15/{x}/{y}.png"
FORGED = [
    "tilesize=16384", "tilesize=-1", "tilesize=256.0", "tilesize=256&tilesize=512", "buffer=1000", "bidx=2",
    "bidx=1&" * 2000, "colormap=%7B%22a%22:1%7D", "colormap_name=viridis", "color_formula=gamma+R+0",
    "rescale=0,1", "expression=b1*0", "url=/etc/passwd", "alone=-1", "alone=1e9", "alone=x", "nodata=nan",
    "resampling=lanczos", "return_mask=false", "algorithm=hillshade", "%00=1", "tilesize=%EF%BC%92",
]  # fmt: skip
PLACES = [
    "", "longitude=inf&latitude=0", "longitude=nan&latitude=nan", "longitude=0&latitude=91",
    "longitude=0&latitude=-1e308", "longitude=181&latitude=0", "longitude=0", "longitude=&latitude=",
    "longitude=0&latitude=0&latitude=1", "longitude=0&latitude=0&row=1", "longitude=0x10&latitude=1_0",
]  # fmt: skip


@needs_server
def test_what_the_page_never_asks_for_is_refused_as_the_fault_of_who_asks(served) -> None:
    url, _ = served
    x, y = map(int, tile_of(60, 40, 15))
    known = url + TILE.format(x=x, y=y)
    assert {status_of(known), status_of(f"{known}?tilesize=512&alone=2")} == {200}
    for asked in FORGED:
        assert 400 <= status_of(f"{known}?{asked}") < 500, asked
    for asked in PLACES:
        assert 400 <= status_of(f"{url}pixel?{asked}") < 500, asked
    for z, col, row in (
        ("25", "0", "0"),
        ("0", "1", "0"),
        ("-1", "0", "0"),
        ("1" * 5000, "0", "0"),
        ("2", "٣", "0"),
    ):
        address = f"map/tiles/WebMercatorQuad/{z}/{urllib.parse.quote(col)}/{row}.png"
        assert 400 <= status_of(url + address) < 500, address
    for path in ("nothing/" + TILE[4:].format(x=x, y=y), "../etc/passwd", "?a=1", "favicon.ico?a=1"):
        assert 400 <= status_of(url + path) < 500, path


@needs_server
@pytest.mark.parametrize("place", [(0, 90), (0, -90), (180, 0), (-180, 90), (180, -90), (27, 89.999)])
def test_every_place_on_earth_has_an_answer(served, place: tuple[float, float]) -> None:
    assert json.loads(get(f"{served[0]}pixel?longitude={place[0]}&latitude={place[1]}")) is None


@needs_server
def test_a_class_alone_is_opaque_and_the_others_are_pale(served) -> None:
    url, _ = served
    template = tiles_in(url)["map"] + "&alone=2"
    assert [tile_at(template, url, 60, col, 15)[3] for col in (10, 80)] == [PALE, 255]


@needs_server
def test_tiles_are_as_large_as_asked(served) -> None:
    x, y = map(int, tile_of(60, 40, 15))
    template = tiles_in(served[0])["map"].replace("{z}/{x}/{y}", f"15/{x}/{y}")
    for size in (256, 512):
        encoded = get(served[0] + template.replace("=256", f"={size}"))
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (size, size, 4) and picture.any()


@needs_server
def test_pages_of_other_origins_get_nothing(served) -> None:
    url, _ = served
    own = url.rstrip("/")
    assert status_of(url, Origin=own) == 200
    for origin in ("http://attacker.example", "null", own.replace("http", "https"), f"{own}0"):
        assert status_of(url + "pixel?longitude=0&latitude=0", Origin=origin) == 403, origin
    for site in ("cross-site", "same-site"):
        assert status_of(url + "favicon.ico", **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}) == 403
        assert status_of(url, **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}) == 200
    for host in ("attacker.example", "127.0.0.1.attacker.example", ""):
        assert 400 <= status_of(url, Host=host) < 500, host
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20)


@needs_server
def test_connections_that_ask_nothing_are_closed(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "EXCHANGE_SECONDS", 1)
    write_map(tmp_path / "map.tif")
    with served_map(ServeConfig(map=str(tmp_path / "map.tif"), port=0)) as url:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")))
        for said in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: "):
            with socket.create_connection(address, timeout=20) as idle:
                idle.sendall(said)
                assert ended(idle)
        with socket.create_connection(address, timeout=20) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(100):  # a header that comes letter by letter
                try:
                    slow.sendall(b"a")
                except OSError:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("a request that never ends was held")
        assert status_of(url) == 200


def ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


@needs_server
def test_what_takes_too_long_is_given_up_and_the_rest_goes_on(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "TILE_SECONDS", 1)
    write_map(tmp_path / "map.tif")
    go_on = threading.Event()
    monkeypatch.setattr(server.Values, "at", lambda *_: go_on.wait(30))
    with served_map(ServeConfig(map=str(tmp_path / "map.tif"), port=0)) as url:
        assert status_of(f"{url}pixel?longitude=0&latitude=0") == 503
        assert status_of(url) == 200
        go_on.set()


@needs_server
@pytest.mark.parametrize("kind", ["ovr", "aux.xml"])
def test_side_cars_of_a_served_map_open_no_connection(
    tmp_path: Path, listener: socket.socket, kind: str
) -> None:
    bands = write_map(tmp_path / "map.tif", overviews=False)
    address = f"/vsicurl/http://127.0.0.1:{listener.getsockname()[1]}/a.tif"
    vrt = (
        f'<VRTDataset rasterXSize="45" rasterYSize="60"><VRTRasterBand dataType="Float32" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="0">{address}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    noted = (
        '<PAMDataset><Metadata domain="OVERVIEWS">'
        f'<MDI key="OVERVIEW_FILE">{address}</MDI></Metadata></PAMDataset>'
    )
    (tmp_path / f"map.tif.{kind}").write_text(noted if kind == "aux.xml" else vrt)
    image = str(tmp_path / "map.tif")
    with served_map(ServeConfig(map=image, image=image, port=0)) as url:
        tiles = tiles_in(url)
        for zoom in (15, 11):
            tile_at(tiles["map"], url, 60, 10, zoom)
            tile_at(tiles["image"], url, 60, 10, zoom)
        longitude, latitude = place_of(60, 10)
        answer = json.loads(get(f"{url}pixel?longitude={longitude}&latitude={latitude}"))
        assert answer["map"] == bands[0, 60, 10]


@needs_server
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
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert serve_map.main([str(tmp_path / "map.tif"), "--port", "0"]) == 1
    assert "pip install '.[serve]'" in capsys.readouterr().err


@needs_server
def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    with MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=0)) as server:
        port = int(server.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(InputError, match="expected a free port"):
            MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=port))


@needs_server
def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_bytes(b"no raster")
    with pytest.raises(InputError, match="cannot read"):
        MapServer(ServeConfig(map=str(tmp_path / "map.tif"), port=0))
