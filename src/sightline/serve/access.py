"""Who may use a server: a bearer token, allowed host names, and the web pages that may call it."""

from __future__ import annotations

import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline import _io
from sightline.errors import UsageError
from sightline.serve.addressing import check_host, read_path, strip_port
from sightline.serve.responses import make_error_response

TOKEN_VARIABLE = "SIGHTLINE_TOKEN"  # noqa: S105  # the name of a variable
MAX_TOKEN_BYTES = 4096
OPEN_PATHS = {"/", "/health", "/v2/health/live", "/v2/health/ready"}  # the page and probes, which send no token
PAGE_FILES = "/page"  # address of the page's files, which are public
DETAILS = "X-Prediction"  # header sent with a PNG mask: its quality, and the model that predicted it
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")  # browsers send origins in lower case
EXPOSED_HEADERS = ("X-Request-ID", "Inference-Header-Content-Length", "Retry-After", DETAILS)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a server.

    Attributes:
        token: The token that a request must send as ``Authorization: Bearer TOKEN``, except to `OPEN_PATHS` and
            `PAGE_FILES`; None if no token is needed.
        hosts: The names, without ports, that are accepted as the ``Host`` of a request; empty to accept any. This
            protects a server on a private address from web pages whose own name was made to point there.
        origins: The origins of web pages whose scripts may use the server, such as ``https://example.org``, or ``*``.

    Raises `UsageError` for hosts and origins that no request can send, such as a host with a port.
    """

    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the hosts and origins."""
        for host in self.hosts:
            check_host(host)
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--cors-origin {origin!r} is not the origin of a web page: expected its scheme and its host as a "
                    "browser sends them, without a path, such as https://app.example.org, or * for all."
                )

    def make_cors_middleware(self) -> list[Middleware]:
        """Return the middleware that lets web pages of `origins` read all responses, including refusals."""
        cors = Middleware(
            CORSMiddleware,
            allow_origins=self.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
        return [cors] if self.origins else []

    def make_checks_middleware(self) -> list[Middleware]:
        """Return the middleware that refuses requests without the token or to another host."""
        return [Middleware(AccessMiddleware, self)] if self.token or self.hosts else []

    def check(self, path: str, headers: Headers) -> None:
        """Raise an HTTPException if the request must be refused."""
        if self.hosts and strip_port(headers.get("host", "")) not in {host.lower() for host in self.hosts}:
            raise HTTPException(400, "The Host header is not a name of this server.")
        if self.token is None or path in OPEN_PATHS or path.startswith(f"{PAGE_FILES}/"):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(token.strip().encode("latin-1"), self.token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise HTTPException(
                401, "The request needs the token of this server: Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


class AccessMiddleware:
    """Refuses requests that `access` does not allow, before their bodies are read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            try:
                self._access.check(read_path(scope), Headers(scope=scope))
            except HTTPException as refusal:
                await make_error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def read_token(path: Path | None) -> str | None:
    """Return the token from the file `path`, or else from the environment variable `SIGHTLINE_TOKEN`, or else None.

    Raises `UsageError` if the file cannot be read, or the token is empty or not printable ASCII without spaces.
    """
    if path is None:
        text, where = os.environ.get(TOKEN_VARIABLE), f"The variable {TOKEN_VARIABLE}"
        if text is None:
            return None
    else:
        where = f"The token file {path}"
        try:
            with _io.open_regular(path) as file:
                text = file.read(MAX_TOKEN_BYTES + 1).decode("latin-1")
        except OSError as error:
            raise UsageError(f"{where} cannot be read: {error.strerror or error}.") from error
    token = text.strip()
    if not token or len(text) > MAX_TOKEN_BYTES or not all("!" <= character <= "~" for character in token):
        raise UsageError(
            f"{where} has no token: expected one word of printable ASCII, as `openssl rand -hex 32` writes."
        )
    return token
