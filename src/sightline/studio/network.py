"""Use of the studio from other devices on the network: access, the address, and the page that shows its QR code."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from sightline.errors import require
from sightline.studio.pages import FRESH, Pages
from sightline.studio.server import ANY

PARAMETER = "token"  # query parameter of the address
PUBLIC = "/static/"  # scripts and style sheets, which contain no user data
OWN_PATHS = ("/train/", "/folders")  # start processes and write folders: allowed from this machine alone
_PROBE = ("192.0.2.1", 9)  # a documentation address (RFC 5737); nothing is sent there

# A page rather than a redirect: a browser coming from another site would not send a strict cookie after a redirect.
_ENTRANCE = """<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url=/"><link rel="icon" href="/static/icon.svg">
<title>Sightline Studio</title></head>
<body><p><a href="/">Sightline Studio</a></p></body></html>
"""


@dataclass(frozen=True, slots=True)
class NetworkAccess:
    """Who may use a studio that listens beyond this machine: whoever opens its address, which contains a token.

    The token is then stored in a cookie, so that the addresses of pages do not contain it.

    Attributes:
        address: The address of the first page, with the token.
        token: The token.
        names: The names of this machine, in lower case, that requests may be addressed to, besides the IP address at
            which they arrive.
    """

    address: str = field(repr=False)
    token: str = field(repr=False)
    names: Collection[str] = ()

    def knows_host(self, name: str, scope: Scope) -> bool:
        """Return whether a Host header's name or address, in lower case and without its port, belongs to this machine.

        An address does if the connection arrived there; a name made to point here (DNS rebinding) does not.
        """
        server = scope.get("server")
        if name in self.names or server is None:
            return name in self.names
        address = _parse_address(name)
        return address is not None and address == _parse_address(server[0])

    def admit(self, scope: Scope) -> Response | None:
        """Return a response that stores the token in a cookie, if the request is for the first address with the token.

        A client that has the cookie may also open the address from an earlier start.
        """
        token = QueryParams(scope["query_string"]).get(PARAMETER)
        if scope["path"] != "/" or token is None or not (self._is_token(token) or self.allows(scope)):
            return None
        response = HTMLResponse(_ENTRANCE, headers=FRESH)
        is_encrypted = scope["scheme"] == "https"
        response.set_cookie(_name_cookie(scope), self.token, httponly=True, samesite="strict", secure=is_encrypted)
        return response

    def allows(self, scope: Scope) -> bool:
        """Return whether a request has the cookie or does not need it."""
        cookie = Request(scope).cookies.get(_name_cookie(scope), "")
        return scope["path"].startswith(PUBLIC) or self._is_token(cookie)

    def forbids(self, scope: Scope) -> bool:
        """Return whether another device requests a change that only the studio's own machine may make."""
        client, server = (_parse_address(place[0]) if place else None for place in (scope["client"], scope["server"]))
        is_own = client is not None and (client.is_loopback or client == server)
        return scope["path"].startswith(OWN_PATHS) and not is_own

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def _name_cookie(scope: Scope) -> str:
    """Return the name of the cookie, which includes the port: browsers send cookies to all ports of a host."""
    server = scope.get("server")
    return f"sightline-studio-{server[1] if server else ''}"


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def make_access(
    host: str, port: int, token: str, names: Collection[str] = (), *, scheme: str = "http"
) -> NetworkAccess:
    """Return the access to a studio that listens on `host`; its address uses the first of `names`, if there is one."""
    own = socket.gethostname().lower()
    place = next(iter(names), "") or (find_address() if host in ANY else host)
    place = f"[{place}]" if ":" in place and not place.startswith("[") else place
    address = f"{scheme}://{place}:{port}/?{urlencode({PARAMETER: token})}"
    return NetworkAccess(address, token, {own, f"{own}.local", *(name.lower() for name in names)})


def find_address() -> str:
    """Return the address at which other devices reach this machine, or else its name; contacts no other machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_PROBE)
            return str(probe.getsockname()[0])
        except OSError:  # no network
            return socket.gethostname().lower()


def draw_code(address: str) -> str:
    """Return the QR code of an address as terminal characters, each of which shows two modules."""
    lines: list[str] = []
    rows = [list(row) for row in _make_code(address).matrix_iter(border=2)]
    for upper, lower in zip(rows[::2], [*rows[1::2], [1] * len(rows[0])], strict=False):
        lines.append("".join(" ▄▀█"[2 * (not a) + (not b)] for a, b in zip(upper, lower, strict=True)))
    return "\n".join(lines) + "\n"


def _make_code(address: str) -> Any:
    return require("segno", "A QR code").make(address, micro=False)


def make_routes(access: NetworkAccess, name: str, pages: Pages, *, has_model: bool) -> list[Route]:
    """Return the route of the page; with a model, phones can take photos for it."""
    code = _make_code(access.address).svg_inline(scale=6, light="#fff", svgclass="code", lineclass=None, omitsize=True)
    is_encrypted = urlsplit(access.address).scheme == "https"

    def page(request: Request) -> Response:
        return pages.render(
            request, "phone.html.j2", name=name, code=code, phone_address=access.address, is_encrypted=is_encrypted,
            has_model=has_model,
        )  # fmt: skip

    return [Route("/phone", page)]
