"""Run the studio's server on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.callbacks import Callback
from sightline.errors import UsageError, require

if TYPE_CHECKING:
    from sightline.api.dataset import Dataset
    from sightline.api.run import Run

HOST = "127.0.0.1"
BACKLOG = 128  # connections that wait to be accepted


def run_studio(
    data: Dataset | Run,
    *,
    patch: Path | None = None,
    compare: Sequence[Run] = (),
    classes: Sequence[str] = (),
    runs: Path | None = None,
    port: int = 0,
    say: Callable[[str], None] = print,
    callback: Callback | None = None,
) -> None:
    """Serve the page of a data set or a run on this machine until Ctrl-C or SIGTERM.

    Args:
        data: The images; those of a run come with their splits, and with its predictions for the splits it evaluated.
        patch: The file of corrections, by default ``NAME-fixes.jsonl`` in the current folder. What it holds is kept.
        compare: Other runs, to compare a run with.
        classes: Classes to label images with, beside those that the images have; more can be added on the page.
        runs: The folder of the runs that the page trains and shows, by default ``runs``, or that of the run.
        port: The port; 0 picks a free one.
        say: Called with the address of the page.
        callback: Receives the progress of reading the images.

    Raises:
        DataError: If the images cannot be read, or the patch does not fit them.
        OutputError: If another studio edits the same patch.
        UsageError: If the port is taken.
        MissingExtraError: If the packages of the extra are not installed.
    """
    for package in ("starlette", "uvicorn"):
        require(package, "The studio")
    import uvicorn

    from sightline.studio.app import create_app
    from sightline.studio.contents import open_studio

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if os.name == "posix":  # on Windows it would steal a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"Cannot listen on {HOST}:{port}: {error}. Choose another port with --port.") from error
        with open_studio(data, patch, callback, compare, classes, runs) as studio:
            config = uvicorn.Config(create_app(studio), log_config=None, access_log=False, timeout_graceful_shutdown=2)
            server = uvicorn.Server(config)

            def end() -> None:
                server.should_exit = True  # and exit with 0
                if studio.training is not None:
                    studio.training.closing.set()  # pages that follow a training would be waited for

            server.handle_exit = lambda *_: end()  # type: ignore[method-assign]
            listener.listen(BACKLOG)
            say(f"http://{HOST}:{listener.getsockname()[1]}")
            server.run(sockets=[listener])
