"""A report as one document: the same sections as Markdown and as one HTML page.

The HTML contains its styles and pictures and loads nothing from a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
from markupsafe import Markup

from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.core.text import visible
from lulc.core.version import __version__
from lulc.evaluation.report.viewer import Viewer

TEMPLATES = Path(__file__).with_name("templates")
LEAFLET = TEMPLATES / "vendor" / "leaflet-1.9.4"

WEBP_QUALITY, LOSSLESS = 85, 101  # quality of pictures in a page; WebP is lossless above 100


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first cell of each row is its name.

    The first `text_columns` columns hold text, the others numbers.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report.

    Parameters
    ----------
    alt
        Text alternative.
    instead
        True if it replaces the viewer on paper and without scripts.
    """

    path: Path
    alt: str
    instead: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with text, pictures and tables, in this order."""

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def anchor(self) -> str:
        """The title as an identifier for links."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True)
class Page:
    """A report.

    Parameters
    ----------
    summary
        (name, value) of the headline metrics.
    viewer
        Interactive map, shown in the first section.
    byline
        (name, value) below the title: author, date, licence.
    """

    title: str
    summary: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    viewer: Viewer | None = None
    byline: tuple[tuple[str, str], ...] = ()


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; an en dash if it is undefined.

    Examples
    --------
    >>> number(0.25), number(None)
    ('0.250', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def write_markdown(page: Page, path: str | os.PathLike[str]) -> None:
    """Write a report as Markdown with links to the pictures beside it."""
    environment = _environment(finalize=lambda value: value if isinstance(value, Markup) else _escape(value))
    environment.filters["literal"] = _escape
    with write_atomically(path) as temporary:
        temporary.write_text(environment.get_template("report.md.j2").render(page=page), encoding="utf-8")


def write_html(page: Page, path: str | os.PathLike[str]) -> None:
    """Write a report as one self-contained HTML file."""
    with write_atomically(path) as temporary:
        temporary.write_text(render_html(page), encoding="utf-8")


def render_html(page: Page) -> str:
    """Return a report as one self-contained HTML document.

    Its policy allows only its own scripts and, unless the viewer is live, no connection.
    """
    environment = _environment(autoescape=True)
    environment.filters["data_uri"] = _data_uri
    scripts = [_read(LEAFLET / "leaflet.js"), _read(TEMPLATES / "viewer.js")] if page.viewer else []
    return environment.get_template("report.html.j2").render(
        page=page,
        version=__version__,
        policy=Markup(_policy(scripts, live=page.viewer is not None and page.viewer.live)),
        scripts=[Markup(script) for script in scripts],
        viewer_data=_script_data(page.viewer.data) if page.viewer else "",
        viewer_style=Markup(_read(TEMPLATES / "viewer.css")),
        leaflet={
            "version": LEAFLET.name.removeprefix("leaflet-"),
            "style": Markup(_read(LEAFLET / "leaflet.css")),
            "licence": Markup(_read(LEAFLET / "LICENSE")),
        },
    )


def _environment(**options: Any) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("lulc.evaluation.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], *, live: bool) -> str:
    """Return the content security policy: these scripts by their hashes, pictures from the page itself."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode("ascii") for s in scripts]
    rules = ["default-src 'none'", "style-src 'unsafe-inline'"]
    rules.append("img-src data:" + (" blob:" if scripts else "") + (" 'self'" if live else ""))
    if scripts:
        rules.append("script-src " + " ".join(f"'sha256-{h}'" for h in hashes))
    if live:
        rules.append("connect-src 'self'")
    return "; ".join(rules)


def _script_data(data: Mapping[str, Any]) -> Markup:
    """Return JSON for a script element: it can neither end the element nor open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _data_uri(path: Path) -> str:
    """Return a picture as WebP, lossless or lossy, whichever is smaller (about a third of the PNG)."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise InputError(f"cannot show '{path}' in the report, since it can't be decoded", "Make it again.")
    qualities = (WEBP_QUALITY, LOSSLESS)
    encoded = (cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, q])[1].tobytes() for q in qualities)
    return "data:image/webp;base64," + base64.b64encode(min(encoded, key=len)).decode("ascii")


def _escape(text: str) -> str:
    """Escape text, such as class names from files, for Markdown."""
    literal = "".join(f"\\{c}" if c in "\\|[*`" else "&lt;" if c == "<" else c for c in text)
    return visible(" ".join(literal.split()))
