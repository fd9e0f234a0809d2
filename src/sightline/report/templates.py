"""Jinja environment of the HTML pages: all values are escaped, and a page may load and run nothing."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from sightline.escaping import printable, quote_path
from sightline.metrics import describe_metric
from sightline.report import charts

if TYPE_CHECKING:  # imported lazily: few commands render pages
    import jinja2

PAGES_PACKAGE = ("sightline.report", "static")
"""The scripts of servers' pages: a package and its folder, for Starlette's `StaticFiles`."""


def render_page(name: str, **values: Any) -> str:
    """Render the template `name` of this package with these values."""
    return make_environment().get_template(name).render(**values)


@cache
def make_environment() -> jinja2.Environment:
    """Return a Jinja environment that escapes HTML and control characters everywhere.

    `style` is the style sheet of all pages; `style_hash` allows only this one in a Content-Security-Policy.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sightline", "report"),
        autoescape=True,
        finalize=escape_control,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        optimized=False,  # each template is rendered once, and optimizing it takes longer than that saves
    )
    style = environment.get_template("style.css.j2").render()
    digest = hashlib.sha256(style.encode()).digest()
    environment.globals |= charts.HELPERS | {
        "describe_metric": describe_metric,
        "style": Markup(style),  # noqa: S704 - contains no user input
        "style_hash": Markup(f"sha256-{base64.b64encode(digest).decode()}"),  # noqa: S704
    }
    environment.filters |= {"percent": format_percent, "quote_path": quote_path}
    return environment


def encode_image(content: bytes) -> str:
    """Return the content of a WebP file as a data URI.

    >>> encode_image(b"RIFF")
    'data:image/webp;base64,UklGRg=='
    """
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def format_percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage.

    >>> format_percent(0.9634)
    '96.3%'
    """
    return "not defined" if value is None else f"{100 * value:.{digits}f}%"


def escape_control(value: Any) -> Any:
    """Return a value as it appears in a page; escaped text (`Markup`) may still contain control characters."""
    return type(value)(printable(value, keep="\t\n")) if isinstance(value, str) else value
