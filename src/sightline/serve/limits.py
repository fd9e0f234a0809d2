"""The limits of a server on its requests."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 10**6
DEFAULT_UPLOAD_MB = 32  # request body size
MAX_IMAGES = 1024  # per request
MAX_MASKS = 64  # per request: fewer than images, as a mask has a value for each pixel
LOG_BYTES = 256 * MEGABYTE  # size of a feature log: 70,000 images of 1,280 features
DEFAULT_RELOAD_INTERVAL: float = 5  # seconds between checks for changed models
MAX_SECONDS = 1_000_000  # maximum value of a time option
DEFAULT_GRACE: float = 10  # seconds to finish requests in flight after a signal


@dataclass(frozen=True, slots=True)
class Limits:
    """How long requests may take, and how many may be in flight; any others are refused before their bodies are read.

    A request is in flight from its last header to the end of its response. `connections` counts open sockets, idle
    ones included, and is lowered to the number that the process may open.

    Times are in seconds: `header` from the first byte, or from the connection, if nothing arrives; `body` from the last
    header; `idle` from a response to the next request on its connection; `decode` for one image in its process;
    `model` for one batch; `request` from the last header to the end of the response.
    """

    requests: int = 256
    body_bytes: int = 512 * MEGABYTE  # total of the bodies in flight
    connections: int = 1000
    header: float = 10
    body: float = 60
    idle: float = 75  # above the 60 of nginx and AWS, which would otherwise send requests to a closing connection
    decode: float = 10
    model: float = 30
    request: float = 120
