"""A loaded page of the studio without a browser: a client in this process that sends its token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sightline.studio.contents import Studio

ADDRESS = "http://127.0.0.1:8000"


def read_token(page: str) -> str:
    """Return the token in the HTML of a page, without which the studio changes nothing."""
    token = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert token
    return token[1]


def connect(studio: Studio) -> Any:
    """Return a client that has not loaded a page; errors of the server are responses."""
    pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
    testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")
    from sightline.studio.app import create_app

    return testclient.TestClient(create_app(studio), ADDRESS, raise_server_exceptions=False)


@contextmanager
def load_page(studio: Studio, path: str = "/") -> Iterator[Any]:
    """Yield a client that has loaded a page and sends its token."""
    with connect(studio) as client:
        client.headers["X-CSRF-Token"] = read_token(client.get(path).text)
        yield client
