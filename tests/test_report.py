"""Pictures, Markdown and the HTML page: what they show, and that they ask no network for anything."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from affine import Affine
from matplotlib.colors import to_rgb
from rasterio.crs import CRS

from lulc.core.grid import GridSpec
from lulc.core.schema import InputError
from lulc.evaluation.measures.metrics import Reliability, count
from lulc.evaluation.report.document import Page, Picture, Section, Table, write_html, write_markdown
from lulc.evaluation.report.figures import (
    draw_confusion,
    draw_history,
    draw_panels,
    draw_reliability,
    metres_per_pixel,
    round_length,
)
from lulc.labels.schemes import load_scheme

LEGEND = load_scheme("kaakonkulma-13").legend
GRID = GridSpec(CRS.from_epsg(3067), Affine(10, 0, 500_000, 0, -10, 6_700_000), 60, 80)


def colors_of(path: Path) -> set[tuple[int, ...]]:
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return {tuple(int(v) for v in c) for c in np.unique(picture.reshape(-1, 3), axis=0)}


def some_classes() -> np.ndarray:
    classes = np.random.default_rng(1).integers(1, 14, (6, 8)).repeat(10, axis=0).repeat(10, axis=1)
    classes[:10, :10] = 0
    classes[:10, 10:20] = 255
    return classes.astype(np.uint8)


@pytest.mark.integration
def test_a_map_shows_every_class_in_its_color(tmp_path) -> None:
    classes = some_classes()
    draw_panels([("A map", classes)], LEGEND, GRID, tmp_path / "map.png")
    found = colors_of(tmp_path / "map.png")
    for c in LEGEND.classes:
        assert (c.number in classes) == (tuple(round(255 * v) for v in to_rgb(c.color)) in found)


def test_equal_maps_give_equal_pictures(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        draw_panels([("A map", some_classes())], LEGEND, GRID, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("shape", [(3, 200), (200, 3), (1, 1), (50, 60)])
def test_panels_of_any_shape_are_drawn(tmp_path, shape: tuple[int, int]) -> None:
    classes = np.ones(shape, np.uint8)
    image = np.zeros((*shape, 3), np.uint8)
    grid = GridSpec(GRID.crs, GRID.transform, *shape)
    panels = [("Image", image), ("Reference", classes), ("Map", classes)]
    draw_panels(panels, LEGEND, grid, tmp_path / "panels.png")
    assert cv2.imread(str(tmp_path / "panels.png")).shape[1] > 300


def test_a_map_without_units_or_with_degrees_is_drawn(tmp_path) -> None:
    degrees = GridSpec(CRS.from_epsg(4326), Affine(1e-4, 0, 24, 0, -1e-4, 61), 60, 80)
    for grid in (GridSpec(CRS(), Affine.identity(), 60, 80), degrees):
        draw_panels([("A map", some_classes())], LEGEND, grid, tmp_path / "map.png")
    # On the ellipsoid a degree is longer there than on a sphere of the equator's radius.
    assert metres_per_pixel(degrees) == pytest.approx(11.132 * np.cos(np.radians(61 - 0.003)), rel=4e-3)
    assert metres_per_pixel(GRID) == pytest.approx(10, rel=1e-3)
    assert metres_per_pixel(GridSpec(CRS(), Affine.identity(), 60, 80)) is None


@pytest.mark.parametrize(
    ("wanted", "given"), [(1.0, 1), (999, 500), (2500, 2000), (5000.0001, 5000), (0.3, 0.2)]
)
def test_the_scale_bar_has_a_round_length(wanted: float, given: float) -> None:
    assert round_length(wanted) == pytest.approx(given)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["kaakonkulma-13", "clc-level3"])
def test_confusion_is_drawn_for_few_and_for_many_classes(tmp_path, name: str) -> None:
    legend = load_scheme(name).legend
    n = len(legend)
    rng = np.random.default_rng(1)
    truth = rng.integers(1, n + 1, 4000).astype(np.uint8)
    matrix = count(truth, np.where(rng.random(4000) < 0.7, truth, rng.integers(0, n + 1, 4000)), n)
    draw_confusion(matrix, legend, tmp_path / "confusion.png", title="Confusion")
    height, width = cv2.imread(str(tmp_path / "confusion.png")).shape[:2]
    assert min(height, width) > 600


@pytest.mark.integration
def test_reliability_is_drawn(tmp_path) -> None:
    reliability = Reliability(2)
    p = np.random.default_rng(1).random((500, 1)).astype(np.float32)
    reliability.add((p[:, 0] < 0.5).astype(np.uint8) + 1, np.concatenate([p, 1 - p], axis=1))
    draw_reliability(reliability.result(), tmp_path / "reliability.png", title="Reliability")
    assert (0, 114, 178) in colors_of(tmp_path / "reliability.png")


def write_history(path: Path, rows: list[list[object]], header: str) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


HISTORY = "epoch,seconds,loss,accuracy,val_loss,val_accuracy,val_macro_f1,learning_rate"


@pytest.mark.integration
@pytest.mark.parametrize("epochs", [1, 3, 60])
def test_a_history_is_drawn_whatever_its_length(tmp_path, epochs: int) -> None:
    rows = [[e, 9.5, 2 / e, 0.5, 2 / e + 0.1, 0.5, 0.4, 0.001] for e in range(1, epochs + 1)]
    write_history(tmp_path / "history.csv", rows, HISTORY)
    draw_history(tmp_path / "history.csv", tmp_path / "history.png")
    assert (230, 159, 0) in colors_of(tmp_path / "history.png")


@pytest.mark.integration
def test_a_history_with_gaps_is_drawn(tmp_path) -> None:
    write_history(tmp_path / "history.csv", [[1, 2.0, ""], [2, "nan", 0.4]], "epoch,loss,val_macro_f1")
    draw_history(tmp_path / "history.csv", tmp_path / "history.png")


def test_a_history_without_epochs_is_refused_and_nothing_is_written(tmp_path) -> None:
    write_history(tmp_path / "history.csv", [], HISTORY)
    with pytest.raises(InputError, match="no epochs"):
        draw_history(tmp_path / "history.csv", tmp_path / "history.png")
    assert not (tmp_path / "history.png").exists()


HOSTILE = '<script>alert("1")</script> | `x` *y* [z](http://example.org)'


def page_with(picture: Path) -> Page:
    table = Table("Classes", ("class", "F1"), ((HOSTILE, "0.5"), ("Water", "1.0")))
    return Page(
        "A report",
        (("macro-F1", "0.5"),),
        (
            Section("Map", (HOSTILE,), (Picture(picture, "A map"),)),
            Section("Per class & more", tables=(table,)),
        ),
    )


class Elements(HTMLParser):
    """(tag, attributes) of a page, and whether all tags are closed."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def html(tmp_path: Path) -> str:
    draw_panels([("A map", some_classes())], LEGEND, GRID, tmp_path / "map.png")
    write_html(page_with(tmp_path / "map.png"), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_holds_everything_and_asks_no_network(html: str) -> None:
    elements = Elements(html)
    assert not elements.open
    for tag, attributes in elements.found:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "srcset", "action"):
            assert re.match(r"data:image/webp;base64,|#", attributes.get(name) or "#")
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_pictures_in_the_page_are_those_of_the_folder_and_smaller(html: str, tmp_path: Path) -> None:
    (source,) = (a["src"] for tag, a in Elements(html).found if tag == "img")
    encoded = base64.b64decode(source.partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    drawn = cv2.imread(str(tmp_path / "map.png"), cv2.IMREAD_COLOR)
    assert shown.shape == drawn.shape and len(encoded) < (tmp_path / "map.png").stat().st_size
    assert np.abs(shown.astype(int) - drawn).mean() < 2


def test_the_page_can_be_used_without_seeing_it(html: str) -> None:
    elements = Elements(html).found
    assert ("html", {"lang": "en"}) in elements
    assert all(a.get("alt") for tag, a in elements if tag == "img")
    assert all(a.get("scope") in {"col", "row"} for tag, a in elements if tag == "th")
    assert sum(tag == "caption" for tag, _ in elements) == sum(tag == "table" for tag, _ in elements) == 1
    ids = {a["id"] for _, a in elements if "id" in a}
    assert {a["href"][1:] for tag, a in elements if tag == "a"} <= ids


def contrast(a: str, b: str) -> float:
    def luminance(color: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_light_and_dark(html: str) -> None:
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{[^}]+\}", html)]
    assert len(themes) == 2
    for theme in themes:
        for ground in ("ground", "panel"):
            for ink in ("ink", "soft", "link"):
                assert contrast(theme[ink], theme[ground]) >= 4.5


def test_names_from_files_are_text_and_nothing_else(html: str, tmp_path) -> None:
    assert "<script" not in html and "&lt;script&gt;" in html
    write_markdown(page_with(tmp_path / "map.png"), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\[[^\]]*\]\(http", text)
    assert "![A map](map.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
