"""The application with which `servers.py` compares servers, and the code that starts each server.

python benchmarks/server_app.py KIND PORT
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.app import create_app
from sightline.serve.limits import Limits
from sightline.serve.served_model import ServedModel

HEADER_SECONDS, GRACE, MODEL_SECONDS = 3.0, 3.0, 1.0
MAX_BYTES = 1 << 20
LIMITS = Limits(header=HEADER_SECONDS, body=30)
FAST_PATH, SLOW_PATH = "/models/fast/predict", "/models/slow/predict"


class SlowPredictor(FakePredictor):
    """Takes `MODEL_SECONDS` for each batch."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities [N, K]."""
        time.sleep(MODEL_SECONDS)
        return super().probabilities(pixels)


def make_app() -> Any:
    """Return the application with a fast model and a slow one."""
    spec = PreprocessingSpec(8, 8)
    models = [
        ServedModel.from_classifier(Classifier(predictor(("dark", "light"), spec)), name)
        for name, predictor in (("fast", FakePredictor), ("slow", SlowPredictor))
    ]
    return create_app(models, max_bytes=MAX_BYTES, limits=LIMITS)


def run_sightline(port: int) -> None:
    """Run the application like `serve`."""
    from sightline import process
    from sightline.serve.connections import Server
    from sightline.serve.listening import BACKLOG, Listener, limit_connections

    process.claim()
    app = make_app()
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        listener.limit = limit_connections(LIMITS.connections)
        listener.keep_spare()
        Server(app, LIMITS, GRACE).run(sockets=[listener])


def run_uvicorn(port: int, http: Any) -> None:
    """Run uvicorn with all of its options for these promises."""
    import uvicorn

    uvicorn.run(
        make_app(), host="127.0.0.1", port=port, http=http, loop="asyncio", ws="none", log_level="error",
        timeout_graceful_shutdown=int(GRACE), timeout_keep_alive=int(HEADER_SECONDS),
        limit_concurrency=LIMITS.connections,
    )  # fmt: skip


def run_granian(port: int) -> None:
    """Run granian with one accepting process and one worker, so that its limits apply to the whole server."""
    from granian.constants import Interfaces, Loops
    from granian.http import HTTP1Settings
    from granian.server import Server

    Server(
        "server_app:make_app", "127.0.0.1", port, factory=True, interface=Interfaces.ASGI, loop=Loops.asyncio,
        websockets=False, log_enabled=False, workers_kill_timeout=int(GRACE),
        http1_settings=HTTP1Settings(header_read_timeout=int(1000 * HEADER_SECONDS)),
    ).serve()  # fmt: skip


def run_hypercorn(port: int) -> None:
    """Run hypercorn with all of its options for these promises."""
    import asyncio

    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout, config.read_timeout = GRACE, int(HEADER_SECONDS)
    config.keep_alive_timeout = HEADER_SECONDS
    asyncio.run(serve(make_app(), config))


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind.startswith("uvicorn-"):
        run_uvicorn(port, kind.removeprefix("uvicorn-"))
    else:
        {"sightline": run_sightline, "granian": run_granian, "hypercorn": run_hypercorn}[kind](port)
