"""Run the HTTP server."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from sightline import workflow
from sightline.errors import UsageError, require


def serve(
    model: Path | str, host: str = "127.0.0.1", port: int = 8000, *, largest: int, say: Callable[[str], None]
) -> None:
    """Serve `model` (a run, a bundle, its zip or its ``.onnx``) until a signal stops the server.

    Images may have up to `largest` bytes. `say` is called with the URL; port 0 selects a free port. Raises
    `ModelError` if the model cannot be used, `UsageError` if the address cannot be bound, `MissingExtraError` if the
    packages of the extra are not installed.
    """
    require("starlette", "Serving")
    uvicorn = require("uvicorn", "Serving")
    from sightline.serve.app import application

    classifier = workflow.load(model)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as place:
        if os.name == "posix":  # on Windows it would steal a port that is in use
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
            place.listen()  # connections wait from now on until the server starts
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"Cannot listen on {host}:{port}: {reason}. Choose another address with --host, --port."
            ) from error
        say(f"http://{f'[{host}]' if ':' in host else host}:{place.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(application(classifier, largest=largest), log_level="warning"))
        try:
            server.run(sockets=[place])
        except KeyboardInterrupt:  # re-raised by uvicorn after pending requests are finished
            return
