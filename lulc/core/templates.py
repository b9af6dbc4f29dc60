"""Templates of XML documents for other programs, in the folder ``templates``."""

from __future__ import annotations

import functools
from typing import Any

import jinja2

from lulc.core.text import printable


def render_xml(template: str, **values: Any) -> str:
    """Return a document; names of classes and files are escaped, and lose characters that XML can't hold."""
    return _environment().get_template(f"{template}.j2").render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("lulc.core"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
