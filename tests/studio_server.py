"""A studio's server in a thread, for the browser of a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sightline.studio.contents import Studio


@contextmanager
def serve(studio: Studio, port: int = 0) -> Iterator[str]:
    """Serve a studio in a thread and yield its address."""
    import uvicorn

    from sightline.studio.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(studio), port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        if studio.training is not None:
            studio.training.closing.set()
        thread.join()
