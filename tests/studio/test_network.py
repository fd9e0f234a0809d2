"""The studio for other devices: without its token nobody sees anything, and it answers only to its own names."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from sightline import Dataset
from sightline.errors import UsageError
from sightline.studio.contents import Studio
from studio_client import read_token
from studio_server import serve

testclient = pytest.importorskip("starlette.testclient", reason="the extra studio is not installed")
pytest.importorskip("segno", reason="the extra studio is not installed")

from sightline.studio import messages, network, server  # noqa: E402  # need what is skipped above

ADDRESS = "http://192.0.2.7:8000"
TOKEN = "secret-of-this-start"  # noqa: S105  # of the test
COOKIE = "sightline-studio-8000"
PATHS = ["/", "/order", "/images?ids=0", "/images.csv", "/state", "/large/0.webp", "/label", "/label/state", "/phone"]


@pytest.fixture
def client(studio: Studio) -> Iterator[Any]:
    """A device of the network, which has not opened the address yet."""
    from sightline.studio.app import create_app

    access = network.make_access("192.0.2.7", 8000, TOKEN, ["Lab.example"])
    with testclient.TestClient(create_app(studio, access), ADDRESS, raise_server_exceptions=False) as opened:
        yield opened


def test_nothing_is_shown_without_the_token(client: Any) -> None:
    for path in PATHS:
        response = client.get(path)
        assert (response.status_code, "token" in response.json()["error"]) == (401, True), path
        assert "set-cookie" not in response.headers
    for path in ("/corrections", "/undo", "/check", "/label/start", f"/?token={TOKEN}"):
        assert client.post(path, json={"ids": [0], "edit": "drop"}).status_code == 401, path
    for token in ("", "secret", f"{TOKEN}x", "\u00e9", f"{TOKEN}&token="):
        assert client.get(f"/?token={token}").status_code == 401, token
    assert client.get(f"/state?token={TOKEN}").status_code == 401, "only the first page takes it"
    client.cookies.set(COOKIE, "other")
    assert client.get("/state").status_code == 401


@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_a_person_without_the_token_reads_what_to_do(client: Any, language: str) -> None:
    response = client.get("/", headers={"Accept": "text/html", "Accept-Language": language})
    assert response.status_code == 401
    assert messages.select(language)["phone-closed"] in response.text
    assert "csrf-token" not in response.text
    assert client.get("/static/studio.css").status_code == 200, "which that page is shown with"


def test_the_token_becomes_a_cookie_of_this_studio_alone(client: Any) -> None:
    response = client.get(f"/?token={TOKEN}")
    assert TOKEN not in response.text, "the address of the next page has it no longer"
    assert re.search(r'http-equiv="refresh" content="0; url=/"', response.text)
    assert "no-store" in response.headers["cache-control"]
    attributes = response.headers["set-cookie"].split("; ")
    assert attributes[0] == f"{COOKIE}={TOKEN}"
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes
    for scanned in (TOKEN, "of-an-earlier-start"):
        assert 'http-equiv="refresh"' in client.get(f"/?token={scanned}").text, "the code is scanned again"
    page = client.get("/")
    token = read_token(page.text)
    assert token != TOKEN
    assert client.post("/corrections", json={"ids": [0], "edit": "drop"}).status_code == 403, (
        "needs the page's token too"
    )
    headers = {"X-CSRF-Token": token, "Origin": ADDRESS}
    assert client.post("/corrections", json={"ids": [0], "edit": "drop"}, headers=headers).status_code == 200
    headers["Origin"] = "http://192.0.2.8:8000"
    assert client.post("/corrections", json={"ids": [0], "edit": "drop"}, headers=headers).status_code == 403


def test_the_cookie_of_an_encrypted_page_is_never_sent_without_encryption(studio: Studio) -> None:
    from sightline.studio.app import create_app

    access = network.make_access("192.0.2.7", 8000, TOKEN, scheme="https")
    assert access.address == f"https://192.0.2.7:8000/?token={TOKEN}"
    with testclient.TestClient(create_app(studio, access), ADDRESS.replace("http", "https")) as client:
        assert "; Secure" in client.get(f"/?token={TOKEN}").headers["set-cookie"]
        page = client.get("/phone").text
        assert 'id="phone-plain"' not in page
        headers = {"X-CSRF-Token": read_token(page), "Origin": ADDRESS.replace("http", "https")}
        assert client.post("/corrections", json={"ids": [0], "edit": "drop"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("device", "status"),
    [("192.0.2.9", 403), ("testclient", 403), ("192.0.2.7", 400), ("127.0.0.1", 400), ("::ffff:192.0.2.7", 400)],
)
def test_other_devices_start_no_training(studio: Studio, device: str, status: int) -> None:
    from sightline.studio.app import create_app

    app = create_app(studio, network.make_access("192.0.2.7", 8000, TOKEN))
    with testclient.TestClient(app, ADDRESS, client=(device, 50_000)) as client:
        client.get(f"/?token={TOKEN}")
        token = read_token(client.get("/train").text)
        for path in ("start", "stop", "resume"):
            response = client.post(f"/train/{path}", content=b"no JSON", headers={"X-CSRF-Token": token})
            assert response.status_code == status, path


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.0.2.7:8000", 200), ("localhost:8000", 200), (f"{socket.gethostname()}.local:8000", 200),
        ("LAB.example", 200), ("192.0.2.8:8000", 403), ("evil.example:8000", 403), ("192.0.2.7.evil.example", 403),
        ("[::ffff:192.0.2.7]:8000", 200), ("[::1]:8000", 403), ("", 403), ("[", 403), ("3221225991", 403),
    ],
)  # fmt: skip
def test_the_host_is_a_name_or_address_of_this_machine(client: Any, host: str, status: int) -> None:
    client.get(f"/?token={TOKEN}")
    response = client.get("/state", headers={"Host": host, "Cookie": f"{COOKIE}={TOKEN}"})
    assert response.status_code == status
    if status == 403:
        assert "--allowed-host" in response.json()["error"]


def test_the_page_shows_the_address_as_a_code(client: Any) -> None:
    client.get(f"/?token={TOKEN}")
    page = client.get("/phone").text
    assert f"http://lab.example:8000/?token={TOKEN}" in page.lower()
    assert 'id="phone-plain"' in page
    svg = re.search(r"<svg.*?</svg>", page, re.DOTALL)
    assert svg
    assert "style" not in svg[0], "which the policy of the page would refuse"
    assert '<a href="/phone" aria-current="page"' in page


def test_a_studio_of_this_machine_alone_needs_no_token(studio: Studio) -> None:
    from sightline.studio.app import create_app

    with testclient.TestClient(create_app(studio), "http://127.0.0.1:8000") as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "set-cookie" not in page.headers
        assert "/phone" not in page.text
        assert client.get("/phone").status_code == 404
        assert client.get("/", headers={"Host": socket.gethostname()}).status_code == 403


def test_the_code_of_a_terminal_is_that_of_the_address() -> None:
    lines = network.draw_code(ADDRESS).splitlines()
    rows: list[list[int]] = []
    for line in lines:
        rows += [["▀█".find(c) < 0 for c in line], ["▄█".find(c) < 0 for c in line]]
    import segno

    code = segno.make(ADDRESS, micro=False)
    expected = [[bool(point) for point in row] for row in code.matrix_iter(border=2)]
    assert rows[: len(expected)] == expected


def test_other_names_are_for_the_network_alone() -> None:
    with pytest.raises(UsageError, match="give an address with --host"):
        server.run_studio(Dataset("photos"), allowed_hosts=["lab.example"])


@pytest.mark.parametrize("name", ["http://lab.example", "lab.example:8000", "*.example", "::1", ""])
def test_a_name_that_no_request_states_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"--allowed-host .* expected a name or an address alone"):
        server.run_studio(Dataset("photos"), host="192.0.2.7", allowed_hosts=["lab.example", name])


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("evil.example", 403)])
def test_a_whole_address_as_the_target_counts_with_its_host(studio: Studio, host: str, status: int) -> None:
    with serve(studio) as address:
        connection = HTTPConnection(address.removeprefix("http://"))
        connection.request("GET", f"http://{host}/state", headers={"Host": "127.0.0.1"})
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_a_phone_labels_by_the_address_of_the_network(studio: Studio, open_page: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    host = network.find_address()
    with serve(studio, host=host, token=TOKEN) as address:
        page = open_page(address, 390, has_touch=True)
        assert TOKEN not in page.url
        assert TOKEN not in page.evaluate("document.cookie")
        page.locator(".tile").nth(1).tap()
        page.locator("#classes button", has_text="red").tap()
        playwright.expect(page.locator("#corrections")).to_have_text("1 correction")
        page.goto(f"{page.url}phone")
        box = page.locator("svg.code").bounding_box()
        assert box
        assert box["width"] > 150
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
