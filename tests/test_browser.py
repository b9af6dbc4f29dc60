"""Pages in real headless Chromium with the network closed: what loads, what a click says, how it looks."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from lulc.config import EvaluateConfig, ServeConfig
from lulc.core.schema import LandCoverClass, Legend
from lulc.evaluation.evaluate import evaluate

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs the Debian packages chromium and chromium-driver"
    ),
]

COLORS = ("#ff0000", "#00aa00", "#0000ff", "#ffff00")
NAMES = ("Fields & <b>meadows</b>", "</script><script>window.broken = 1</script>", "Water", "Forest")
CLASSES = zip(range(1, 5), NAMES, COLORS, strict=True)
LEGEND = Legend("four", tuple(LandCoverClass(k, name, color, (k,), k) for k, name, color in CLASSES))
SMALL, TALL = (90, 130), (2600, 62)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def write_scene(folder: Path, shape: tuple[int, int], crs: str = "EPSG:3067") -> None:
    """A map with activations, labels and a mosaic, all random, in a folder."""
    rng = np.random.default_rng(4)
    shares = np.moveaxis(rng.dirichlet(np.ones(4) / 2, shape), -1, 0)
    mapped = shares.argmax(axis=0) + 1
    mapped[3, 3] = 0
    bands = np.concatenate([mapped[None], shares]).astype(np.float32)
    bands[:, :2, :2] = -1
    labels = np.where(rng.random(shape) < 0.8, np.maximum(mapped, 1), rng.integers(1, 5, shape))
    mosaic = rng.integers(300, 3000, (3, *shape))
    profile = {
        "driver": "GTiff", "height": shape[0], "width": shape[1], "crs": CRS.from_string(crs),
        "transform": Affine(10, 0, 500_000, 0, -10, 6_700_000), "tiled": True, "blockxsize": 256,
        "blockysize": 256,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    for name, array, more in (
        ("map.tif", bands, {"nodata": -1}),
        ("labels.tif", labels[None].astype(np.uint8), {}),
        ("mosaic.tif", mosaic.astype(np.uint16), {}),
    ):
        with rasterio.open(
            folder / name, "w", count=len(array), dtype=array.dtype, **profile, **more
        ) as file:
            file.write(array)
            if name == "map.tif":
                file.update_tags(LULC_LEGEND=json.dumps(LEGEND.to_json()))
                file.build_overviews([2, 4])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of a small scene and one of a scene that is decimated."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, shape in (("small", SMALL), ("tall", TALL)):
        write_scene(folder / name, shape)
        paths = {k: str(folder / name / f"{v}.tif") for k, v in
                 (("map", "map"), ("reference", "labels"), ("image", "mosaic"))}  # fmt: skip
        evaluate(EvaluateConfig(**paths, out=str(folder / name / "report")))
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


class Screen:
    """A page in the browser, and what a person does with it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """What a script gives as soon as that is true."""
        until = time.monotonic() + 20
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < until, f"{script} never became true; {self.errors()}"
            time.sleep(0.05)
        return found

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def settle(self) -> None:
        self.wait("return document.querySelector('.viewer-ready') && !document.querySelector('[aria-busy]')")
        self.wait("return [...document.querySelectorAll('.viewer-map img')].every((i) => i.complete)")

    def switch(self, layer: str) -> None:
        self.run("document.getElementById(`layer-${arguments[0]}`).click()", layer)
        self.settle()

    def layers(self) -> list[str]:
        """Names of the pictures in the map, from below."""
        found = self.run(
            "return [...document.querySelectorAll('.viewer-map .leaflet-image-layer')]"
            ".map((i) => [Number(i.style.zIndex), i.alt])"
        )
        return [name for _, name in sorted(found)]

    def click(self, row: int, col: int, shown: tuple[int, int]) -> dict[str, Any]:
        """Click a pixel of the map; `shown` are the rows and columns that its picture covers."""
        self.run("document.querySelector('.viewer-map').scrollIntoView({block: 'center'})")
        x, y, width, height = self.run(
            "const r = document.querySelector('.viewer-map .leaflet-image-layer').getBoundingClientRect();"
            "return [r.left, r.top, r.width, r.height]"
        )
        x += (col + 0.5) / shown[1] * width
        y += (row + 0.5) / shown[0] * height
        for kind in ("mousePressed", "mouseReleased"):
            self.driver.execute_cdp_cmd(
                "Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            )
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What the page says about a pixel."""
        self.wait("return document.querySelector('.viewer-pixel dl, .viewer-pixel p')")
        time.sleep(0.15)
        facts = self.run(
            "return Object.fromEntries([...document.querySelectorAll('.viewer-pixel dd')]"
            ".map((d) => [d.dataset.fact, d.textContent]))"
        )
        rows = self.run(
            "return [...document.querySelectorAll('.viewer-pixel tr')]"
            ".map((r) => [Number(r.dataset.class), Number(r.querySelector('td').textContent)])"
        )
        level = self.run("return document.querySelector('.viewer-level')?.textContent ?? ''")
        return {"facts": facts, "activations": dict(rows), "level": level}


@pytest.fixture
def show(chromium: Any) -> Callable[..., Screen]:
    def show(address: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Screen:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        chromium.get_log("browser")
        chromium.get(address)
        screen = Screen(chromium)
        screen.settle()
        return screen

    return show


def report_of(scenes: Path, name: str) -> str:
    return (scenes / name / "report" / "report.html").as_uri()


def read(path: Path, row: int, col: int) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(window=Window(col, row, 1, 1))[:, 0, 0]


def assert_answers(answer: dict[str, Any], folder: Path, row: int, col: int, x: float, y: float) -> None:
    """What the page says about a pixel is what rasterio reads there."""
    number, *shares = read(folder / "map.tif", row, col)
    reference = int(read(folder / "labels.tif", row, col)[0])
    name = NAMES[int(number) - 1] if number else "unclassified"
    assert answer["facts"]["map"] == f"{int(number)} {name}"
    assert answer["facts"]["reference"] == f"{reference} {NAMES[reference - 1]}"
    assert answer["facts"]["pixel"] == f"row {row}, column {col}"
    assert answer["facts"]["epsg:3067"] == f"{x:.1f}, {y:.1f}"
    assert answer["activations"] == {k + 1: pytest.approx(round(float(v), 3)) for k, v in enumerate(shares)}


def test_the_report_opens_without_an_error_and_asks_nobody(scenes, show) -> None:
    screen = show(report_of(scenes, "small"))
    for box in ("reference", "difference", "level1", "entropy", "activation2"):
        screen.switch(box)
    loaded = screen.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
    assert screen.errors() == []
    assert screen.run("return window.broken") is None


@pytest.mark.parametrize("place", [(0, 129), (3, 3), (44, 71), (89, 0)])
def test_a_click_shows_what_rasterio_reads(scenes, show, place: tuple[int, int]) -> None:
    screen = show(report_of(scenes, "small"))
    row, col = place
    answer = screen.click(row, col, SMALL)
    x, y = 500_000 + 10 * (col + 0.5), 6_700_000 - 10 * (row + 0.5)
    assert_answers(answer, scenes / "small", row, col, x, y)
    assert answer["level"] == ""


def test_a_click_where_there_is_no_data_says_so(scenes, show) -> None:
    answer = show(report_of(scenes, "small")).click(1, 1, SMALL)
    assert answer["facts"]["map"] == "no data"
    assert answer["activations"] == {}


def test_a_reduced_map_names_its_level_and_the_pixel_whose_values_it_shows(scenes, show) -> None:
    screen = show(report_of(scenes, "tall"))
    answer = screen.click(1301, 33, TALL)
    assert answer["level"].startswith("Level 1:2 of the pyramid.")
    # A pixel of the screen covers several of the map: where the click fell is what the page says.
    _, row, _, col = answer["facts"]["pixel"].replace(",", "").split()
    row, col = int(row), int(col)
    assert (row % 2, col % 2) == (0, 0) and abs(row - 1301) < 9 and abs(col - 33) < 9
    x, y = 500_000 + 10 * (col + 0.5), 6_700_000 - 10 * (row + 0.5)
    assert_answers(answer, scenes / "tall", row, col, x, y)


def painted(screen: Screen, layer: str) -> np.ndarray:
    """Colours uint8 (y, x, 4) of a layer as it is shown."""
    height, width, pixels = screen.run(
        "const i = [...document.querySelectorAll('.viewer-map img')].find((i) => i.alt === arguments[0]);"
        "const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;"
        "const g = c.getContext('2d'); g.drawImage(i, 0, 0);"
        "return [c.height, c.width, [...g.getImageData(0, 0, c.width, c.height).data]]",
        layer,
    )
    return np.array(pixels, np.uint8).reshape(height, width, 4)


def blocks(array: np.ndarray, n: int) -> list[list[np.ndarray]]:
    """The squares of n x n values that one pixel of a reduced level stands for."""
    height, width = array.shape[-2:]
    return [[array[..., i : i + n, j : j + n] for j in range(0, width, n)] for i in range(0, height, n)]


def test_from_afar_a_pixel_is_the_commonest_class_or_the_mean_of_those_below_it(scenes, show) -> None:
    screen = show(report_of(scenes, "tall"), width=390, height=844)
    for layer in ("difference", "activation2"):
        screen.switch(layer)
    shown = screen.run("return document.querySelector('.viewer-level-shown').textContent")
    assert shown.startswith("Level 1:4 is shown: of each 2 × 2 pixels")
    with rasterio.open(scenes / "tall" / "map.tif") as file:
        bands = file.read()[:, ::2, ::2]
    with rasterio.open(scenes / "tall" / "labels.tif") as file:
        labels = file.read(1)[::2, ::2]
    mapped = np.where(bands[0] < 0, 255, bands[0]).astype(int)
    # The first of the most frequent, as argmax gives it.
    classes = np.array(
        [[np.bincount(b.ravel(), minlength=256).argmax() for b in row] for row in blocks(mapped, 2)]
    )
    found = painted(screen, "Map")
    rgb = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in ("#ffb3d9", *COLORS)])
    assert np.array_equal(found[classes < 255][:, :3], rgb[classes[classes < 255]])
    wrong = np.where(mapped == 255, np.nan, mapped != labels)
    shares = np.array([[np.nanmean(b) for b in row] for row in blocks(wrong, 2)])
    assert np.abs(painted(screen, "Map differs from reference")[..., 3] - 255 * shares).max() <= 0.51
    activation = np.where(bands[2] < 0, np.nan, bands[2])
    means = np.array([[np.nanmean(b) for b in row] for row in blocks(activation, 2)])
    # Viridis rises in green, a step of it by at most two: the order of the means is that of the colours.
    green = painted(screen, "2 </script><script>window.broken = 1</script>")[..., 1].astype(int)
    order = np.argsort(means.ravel(), kind="stable")
    assert np.diff(green.ravel()[order]).min() >= -3
    answer = screen.click(1301, 33, TALL)
    assert answer["level"].startswith("Level 1:2 of the pyramid (level 1:4 is shown).")
    _, row, _, col = answer["facts"]["pixel"].replace(",", "").split()
    number, *shares_there = read(scenes / "tall" / "map.tif", int(row), int(col))
    assert answer["facts"]["map"].startswith(f"{int(number)} ")
    assert answer["activations"] == {
        k + 1: pytest.approx(round(float(v), 3)) for k, v in enumerate(shares_there)
    }
    screen.run("document.querySelector('.viewer-map').focus()")
    for _ in range(3):
        webdriver.ActionChains(screen.driver).send_keys("+").pause(0.6).perform()
    screen.settle()
    shown = screen.run("return document.querySelector('.viewer-level-shown').textContent")
    assert shown == "Level 1:2 is shown: rows and columns that are multiples of 2."
    assert painted(screen, "Map").shape[:2] == (1300, 31)


def test_a_class_is_looked_at_alone_and_levels_have_a_legend_of_their_own(scenes, show) -> None:
    screen = show(report_of(scenes, "small"))
    legends = (
        "return [...document.querySelectorAll('.viewer-legend')]"
        ".map((l) => [l.offsetParent !== null, l.innerText])"
    )
    assert [seen for seen, _ in screen.run(legends)] == [True, False]
    screen.switch("level1")
    assert [seen for seen, _ in screen.run(legends)] == [True, True]
    assert "2 Agricultural areas" in screen.run(legends)[1][1]
    answer = screen.click(44, 71, SMALL)
    number = int(read(scenes / "small" / "map.tif", 44, 71)[0])
    assert answer["facts"]["corine level 1"][0] in "12345" and answer["facts"]["map"][0] == str(number)
    screen.switch("level1")
    press = "document.querySelectorAll('.viewer-legend button')[arguments[0]].click()"
    screen.run(press, 1)
    screen.settle()
    with rasterio.open(scenes / "small" / "map.tif") as file:
        mapped = file.read(1)
    alpha = painted(screen, "Map")[..., 3]
    assert np.array_equal(alpha == 255, mapped == 2)
    assert set(alpha[(mapped >= 0) & (mapped != 2)]) == {38}
    pressed = "return [...document.querySelectorAll('.viewer-legend button')].map((b) => b.ariaPressed)"
    assert screen.run(pressed)[:4] == ["false", "true", "false", "false"]
    screen.run(press, 1)
    screen.settle()
    assert np.array_equal(painted(screen, "Map")[..., 3] == 255, mapped >= 0)


def test_a_report_without_a_reference_has_no_layer_and_no_word_of_one(scenes, show) -> None:
    folder = scenes / "small"
    evaluate(EvaluateConfig(map=str(folder / "map.tif"), design_sample=40, out=str(folder / "points")))
    screen = show((folder / "points" / "report.html").as_uri())
    answer = screen.click(44, 71, SMALL)
    assert "reference" not in answer["facts"] and answer["facts"]["map"]
    boxes = screen.run(
        "return [...document.querySelectorAll('.viewer-layers input[type=checkbox]')].map((b) => b.id)"
    )
    assert boxes == ["layer-map", "layer-level1", "layer-entropy"]
    assert screen.errors() == []


def test_layers_are_switched_and_faded(scenes, show) -> None:
    screen = show(report_of(scenes, "small"))
    assert screen.layers() == ["Image", "Map"]
    names = screen.run("return [...document.querySelectorAll('.viewer-side label')].map((l) => l.innerText)")
    assert len(names) == 2 + 1 + 1 + 1 + 1 + 4  # image, map; reference; difference; level 1; entropy; classes
    for layer in ("reference", "difference", "level1", "entropy", *(f"activation{k}" for k in (1, 2, 3, 4))):
        before = screen.layers()
        screen.switch(layer)
        assert len(screen.layers()) == len(before) + 1
        screen.switch(layer)
        assert screen.layers() == before
    screen.run(
        "const fade = document.getElementById('fade-map'); fade.value = 30;"
        "fade.dispatchEvent(new Event('input'))"
    )
    assert screen.run("return document.querySelector('.viewer-map img[alt=Map]').style.opacity") == "0.3"


@pytest.mark.parametrize("layer", ["Map", "Reference", "Map differs from reference"])
def test_layers_have_the_colors_of_the_legend(scenes, show, layer: str) -> None:
    screen = show(report_of(scenes, "small"))
    screen.switch({"Map": "image", "Reference": "reference"}.get(layer, "difference"))
    found = painted(screen, layer)
    with rasterio.open(scenes / "small" / "map.tif") as file:
        mapped = file.read(1).astype(int)
    with rasterio.open(scenes / "small" / "labels.tif") as file:
        reference = file.read(1).astype(int)
    rgb = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in ("#ffb3d9", *COLORS)])
    if layer == "Map":
        expected, seen = rgb[np.maximum(mapped, 0)], mapped >= 0
    elif layer == "Reference":
        expected, seen = rgb[reference], reference > 0
    else:
        seen = (mapped >= 0) & (mapped != reference)
        expected = np.broadcast_to([0xD6, 0x00, 0x6C], (*SMALL, 3))
    assert np.array_equal(found[..., 3] == 255, seen)
    assert np.array_equal(found[seen][:, :3], expected[seen])


def test_the_map_can_be_used_without_a_mouse(scenes, show) -> None:
    screen = show(report_of(scenes, "small"))
    screen.run("document.querySelector('.viewer-map').focus()")
    keys = webdriver.ActionChains(screen.driver)
    keys.send_keys(webdriver.Keys.ENTER).perform()
    middle = screen.answer()["facts"]["pixel"]
    assert middle in {f"row {r}, column {c}" for r in (44, 45) for c in (64, 65)}
    webdriver.ActionChains(screen.driver).send_keys("+").pause(0.5).send_keys(
        webdriver.Keys.ARROW_RIGHT
    ).pause(0.5).send_keys(webdriver.Keys.ENTER).perform()
    time.sleep(0.5)
    assert screen.answer()["facts"]["pixel"] != middle
    reached = set()
    for _ in range(40):
        webdriver.ActionChains(screen.driver).send_keys(webdriver.Keys.TAB).perform()
        reached.add(screen.run("return document.activeElement.id || document.activeElement.className"))
    assert {"layer-image", "fade-image", "layer-map", "layer-entropy", "viewer-home"} <= reached


def test_a_least_sure_place_is_shown_at_a_press(scenes, show) -> None:
    screen = show(report_of(scenes, "small"))
    width = "return document.querySelector('.viewer-map .leaflet-image-layer').getBoundingClientRect().width"
    before = screen.run(width)
    screen.run("document.querySelector('.viewer-places button').click()")
    screen.wait(f"{width} > 2 * {before}")


SCREENS = [(w, h, s) for w, h in ((1280, 900), (390, 844)) for s in ("light", "dark")]


@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_text_has_contrast_and_nothing_sticks_out(scenes, show, width: int, height: int, scheme: str) -> None:
    screen = show(report_of(scenes, "small"), width=width, height=height, scheme=scheme)
    screen.click(44, 71, SMALL)
    assert screen.run("return document.documentElement.scrollWidth") <= width
    texts = screen.run("""
        const parse = (c) => c.match(/[\\d.]+/g).map(Number);
        const ground = (e) => { for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; }
            return [255, 255, 255]; };
        return [...document.querySelectorAll('body *')].filter((e) => e.offsetParent
            && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
            .map((e) => [e.textContent.slice(0, 40), parse(getComputedStyle(e).color), ground(e)]);""")

    def luminance(color: list[float]) -> float:
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(color[:3]) / 255
        ]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    assert len(texts) > 100
    for text, ink, paper in texts:
        low, high = sorted((luminance(ink), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ink, paper)


def test_everything_that_is_operated_has_a_name(scenes, show) -> None:
    nameless = []
    driver = show(report_of(scenes, "small")).driver
    for element in driver.find_elements("css selector", "a, button, input, summary, [tabindex], img, [role]"):
        if element.is_displayed() and not (element.accessible_name or element.get_attribute("alt")):
            nameless.append(element.get_attribute("outerHTML")[:120])
    assert [n for n in nameless if "viewer-pixel" not in n] == []


def test_a_class_alone_is_served_between_two_levels_of_tiles(scenes, show) -> None:
    """The whole map fits the screen at a zoom that is no whole number; tiles exist for whole ones."""
    pytest.importorskip("rio_tiler")
    from lulc.evaluation.server import MapServer

    with MapServer(ServeConfig(map=str(scenes / "tall" / "map.tif"), port=0)) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            screen = show(server.url)
            screen.run("document.querySelectorAll('.viewer-legend button')[2].click()")
            pale = "i.src.includes('alone=') && i.naturalWidth === 256"
            screen.wait(f"return [...document.querySelectorAll('.viewer-map img')].some((i) => {pale})")
            screen.settle()
            assert screen.errors() == []
        finally:
            server.stop()
            thread.join(20)


def test_a_served_map_shows_tiles_and_answers_as_rasterio_reads(scenes, show) -> None:
    pytest.importorskip("rio_tiler")
    from lulc.evaluation.server import MapServer

    folder = scenes / "small"
    with MapServer(
        ServeConfig(map=str(folder / "map.tif"), image=str(folder / "mosaic.tif"), port=0)
    ) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            screen = show(server.url)
            for layer in ("entropy", "activation3"):
                screen.switch(layer)
            screen.run("document.querySelector('.viewer-legend button').click()")
            paler = "[...document.querySelectorAll('.viewer-map img')].some((i) => i.src.includes('alone='))"
            screen.wait(f"return {paler}")
            screen.wait("return document.querySelectorAll('.viewer-map img.leaflet-tile-loaded').length > 3")
            x, y = screen.run(
                "const r = document.querySelector('.viewer-map').getBoundingClientRect();"
                "return [r.left + r.width / 2, r.top + r.height / 2]"
            )
            for kind in ("mousePressed", "mouseReleased"):
                event = {"type": kind, "x": x + 31, "y": y - 17, "button": "left", "clickCount": 1}
                screen.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
            screen.wait("return document.querySelector('.viewer-pixel table')")
            answer = screen.answer()
            _, row, _, col = answer["facts"]["pixel"].replace(",", "").split()
            number, *shares = read(folder / "map.tif", int(row), int(col))
            assert answer["facts"]["map"] == f"{int(number)} {NAMES[int(number) - 1]}"
            assert answer["activations"] == {
                k + 1: pytest.approx(round(float(v), 3)) for k, v in enumerate(shares)
            }
            loaded = screen.run("return performance.getEntriesByType('resource').map((e) => e.name)")
            assert all(name.startswith((server.url, "data:", "blob:")) for name in loaded)
            assert screen.errors() == []
        finally:
            server.stop()
            thread.join(20)
