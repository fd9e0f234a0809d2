"""What keeps other pages out of the studio: its host name, origin and token, and what its own page may load."""

from __future__ import annotations

import hmac
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
TOKEN_HEADER = "X-CSRF-Token"  # noqa: S105  # the name of a header
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
SAFE_METHODS = {"GET", "HEAD"}


def make_token() -> str:
    """Return a new token, which the page holds and other pages cannot read."""
    return secrets.token_urlsafe(24)


class ProtectionMiddleware:
    """Refuses requests to other names, changes from other pages, and adds `HEADERS` to every response.

    The name of the host protects against pages whose own name was made to point here (DNS rebinding); origin and token
    against requests that other pages send (cross-site request forgery).
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        reason = self._refuse(scope["method"], Headers(scope=scope))
        app = self._app if reason is None else JSONResponse({"error": reason}, 403)
        await app(scope, receive, send_with_headers)

    def _refuse(self, method: str, headers: Headers) -> str | None:
        """Return why a request is refused; None if it is not."""
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return "The studio answers only to this machine's own names."
        if method in SAFE_METHODS:
            return None
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return "This request comes from another page."
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return "The studio was started again: load the page again."
        return None
