"""The target of a request: the host and the path, in whichever form the request gives them."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import Scope

from sightline.errors import UsageError

_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\]")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/.*)?", re.IGNORECASE | re.DOTALL)


def resolve_target(scope: Scope) -> Scope:
    """Return a scope whose target is a path, for a request that may name a whole URL, as requests to proxies do.

    The host in the URL overrides the Host header (RFC 9112, 3.2.2).
    """
    absolute = _ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
    if absolute is None:
        return scope
    host, path = absolute[1], absolute[2] or b"/"
    headers = [(b"host", host), *(header for header in scope["headers"] if header[0] != b"host")]
    return {**scope, "path": unquote(path), "raw_path": path, "headers": headers}


def read_path(scope: Scope) -> str:
    """Return the path of a request without the prefix below which the application is mounted, e.g. by Ray Serve.

    >>> [read_path({"path": path, "root_path": "/cats"}) for path in ("/cats/predict", "/cats", "/catsup")]
    ['/predict', '/', '/catsup']
    """
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return (path.removeprefix(prefix) or "/") if path == prefix or path.startswith(f"{prefix}/") else path


def check_host(host: str) -> None:
    """Raise `UsageError` for text that cannot be the name or address in a Host header, such as the URL of a page."""
    if not _HOST.fullmatch(host):
        raise UsageError(
            f"--allowed-host {host!r} is not a host name: expected a name or an address alone, without scheme, "
            "port or wildcard, as cats.example.org or [::1]."
        )


def strip_port(host: str) -> str:
    """Return the name or address in a Host header, in lower case.

    >>> [strip_port(host) for host in ("Example.org:8000", "[::1]:80", "10.0.0.1")]
    ['example.org', '[::1]', '10.0.0.1']
    """
    end = host.find("]") + 1 if host.startswith("[") else host.rfind(":")
    return (host if end <= 0 else host[:end]).lower()
