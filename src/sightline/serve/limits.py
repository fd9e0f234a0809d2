"""What requests may cost: the limits of a server, as a value."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 10**6
DEFAULT_UPLOAD_MB = 32  # of the body of a request
MAX_IMAGES = 1024  # of a request
MAX_MASKS = 64  # of a request: each has a value for each pixel
LOG_BYTES = 256 * MEGABYTE  # of a log of features: 70,000 images of 1,280 features
DEFAULT_RELOAD_INTERVAL: float = 5  # seconds between looks for models that changed
MAX_SECONDS = 1_000_000  # that an option may state
DEFAULT_GRACE: float = 10  # seconds for what is in flight after a signal


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take, and how many may be in flight; what is beyond is refused before its body is read.

    A request is in flight from its last header to the end of its response. `connections` counts open sockets, idle
    ones included, and is lowered to what the process may open.

    Times are in seconds: `header` from the first byte, or from the connection, if nothing arrives; `body` from the last
    header; `idle` from a response to the next request on its connection; `decode` for one image in its process;
    `model` for one batch; `request` from the last header to the end of the response.
    """

    requests: int = 256
    body_bytes: int = 512 * MEGABYTE  # of all bodies in flight
    connections: int = 1000
    header: float = 10
    body: float = 60
    idle: float = 75  # longer than the 60 of nginx and AWS, which would send requests to a connection that closes
    decode: float = 10
    model: float = 30
    request: float = 120
