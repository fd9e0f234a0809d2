"""Serving until told to stop."""

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
    """Answer requests for `model` (a run, a bundle, its zip or its ``.onnx``) until a signal stops it.

    A picture may have `largest` bytes. `say` is given the address; port 0 takes a free one. Raises `ModelError` for
    a model that cannot be used, `UsageError` for a place that cannot be listened at, `MissingExtraError` without the
    packages of the extra.
    """
    require("starlette", "Serving")
    uvicorn = require("uvicorn", "Serving")
    from sightline.serve.app import application

    classifier = workflow.load(model)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as place:
        if os.name == "posix":  # elsewhere it would take the port from whoever listens there
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
            place.listen()  # who asks from now on waits for the server to begin
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"{host}:{port} cannot be listened at: {reason}. Name another with --host, --port."
            ) from error
        say(f"http://{f'[{host}]' if ':' in host else host}:{place.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(application(classifier, largest=largest), log_level="warning"))
        try:
            server.run(sockets=[place])
        except KeyboardInterrupt:  # as uvicorn hands it on, once all that was under way is answered
            return
