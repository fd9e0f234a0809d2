"""Protection from other pages: host name, origin, token, and restrictions on what the studio's own page may load."""

from __future__ import annotations

import hmac
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.serve.addressing import resolve_target, strip_port
from sightline.studio.network import NetworkAccess
from sightline.studio.pages import POLICY, Pages, respond_with_error
from sightline.studio.server import LOCAL_HOSTS

TOKEN_HEADER = "X-CSRF-Token"  # noqa: S105  # the name of a header
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # scripts are revalidated with their ETag, as they change with an update
    "X-Content-Type-Options": "nosniff",
}
OPENER_POLICY = {"Cross-Origin-Opener-Policy": "same-origin"}  # browsers honor it only over secure connections
SAFE_METHODS = {"GET", "HEAD"}


def make_token() -> str:
    """Return a new token, which the page contains and other pages cannot read."""
    return secrets.token_urlsafe(24)


class ProtectionMiddleware:
    """Refuses requests to other hosts and changes from other pages, and adds `HEADERS` to every response.

    Checking the host name protects against pages whose own name was made to point here (DNS rebinding); the origin and
    the token protect against requests sent by other pages (cross-site request forgery). If the studio listens beyond
    this machine, `access` restricts who may use it.
    """

    def __init__(self, app: ASGIApp, token: str, pages: Pages, access: NetworkAccess | None = None) -> None:
        self._app, self._token, self._pages, self._access = app, token, pages, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        scope = resolve_target(scope)
        is_secure = scope["scheme"] == "https" or strip_port(Headers(scope=scope).get("host", "")) in LOCAL_HOSTS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in (HEADERS | (OPENER_POLICY if is_secure else {})).items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._refuse(scope) or self._app
        await app(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        """Return the response that refuses a request; None if it is allowed."""
        headers, access = Headers(scope=scope), self._access
        host = headers.get("host", "")
        name = strip_port(host)
        if name not in LOCAL_HOSTS and not (access is not None and access.knows_host(name, scope)):
            how = "" if access is None else " --allowed-host adds one."
            return _forbid(scope, f"The studio answers only to this machine's own names.{how}")
        is_safe = scope["method"] in SAFE_METHODS
        if access is not None and is_safe and (entrance := access.admit(scope)) is not None:
            return entrance
        if access is not None and not access.allows(scope):
            return self._ask_for_token(scope)
        return None if is_safe else self._refuse_change(scope, headers)

    def _refuse_change(self, scope: Scope, headers: Headers) -> Response | None:
        origin = f"{scope['scheme']}://{headers.get('host', '')}"
        if headers.get("origin", origin) != origin:
            return _forbid(scope, "This request comes from another page.")
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return _forbid(scope, "The studio was started again: reload the page.")
        if self._access is not None and self._access.forbids(scope):
            return _forbid(scope, "Runs are started and folders written only on the machine of the studio.")
        return None

    def _ask_for_token(self, scope: Scope) -> Response:
        request = Request(scope)
        if "text/html" in request.headers.get("accept", ""):
            response: Response = self._pages.render(request, "closed.html.j2")
            response.status_code = 401
            return response
        return respond_with_error(request, "Open the address that the studio printed: it contains a token.", 401)


def _forbid(scope: Scope, reason: str) -> Response:
    return respond_with_error(Request(scope), reason, 403)
