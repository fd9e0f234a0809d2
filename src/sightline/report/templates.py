"""Jinja environment of the HTML pages: all values are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sightline.escaping import printable

if TYPE_CHECKING:  # pages are few: the rest need not wait for Jinja
    import jinja2


def make_environment() -> jinja2.Environment:
    """Return a Jinja environment that escapes HTML and control characters everywhere."""
    import jinja2

    return jinja2.Environment(autoescape=True, finalize=_escape_control, trim_blocks=True, lstrip_blocks=True)


def _escape_control(value: Any) -> Any:
    """Return a value as it stands in a page; a macro's output (`Markup`) is escaped already."""
    return printable(value, keep="\t\n") if type(value) is str else value
