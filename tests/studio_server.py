"""A studio server for browser tests: in a thread, or as a command in a separate process."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline.callbacks import Callback
from sightline.data.types import Index
from sightline.studio import contents
from sightline.studio.contents import Studio
from sightline.studio.network import make_access

GRACE_SECONDS = 10  # for pages left open by a failed test
WAIT_SECONDS = 60  # limit for anything that a page does; reached only by failing tests
STARTED = "body:has(#another, #legend:not([hidden]))"  # the list has its classes, so that every key works
LISTED = f"{STARTED} .tile img, {STARTED} #empty:not([hidden])"  # the list also shows its images
VIEWED = "() => (({ complete, style }) => complete && style.visibility === '')(document.querySelector('#viewer-image'))"


def read_lines(patch: Path) -> list[tuple[str, str, str | None]]:
    """Return the action, the path and the new label of each line of a patch file."""
    rows = [json.loads(line) for line in patch.read_text(encoding="utf-8").splitlines()]
    return [(row["action"], row["path"], row.get("to")) for row in rows]


def read_labels(patch: Path) -> dict[str, str]:
    """Return the new label of each image in a patch file, by path."""
    return {path: str(label) for _, path, label in read_lines(patch)}


def expect_text(page: Any, selector: str, text: str) -> None:
    """Wait until an element has exactly this text."""
    from playwright import sync_api

    sync_api.expect(page.locator(selector)).to_have_text(text)


@contextmanager
def features_of_colors() -> Iterator[None]:
    """Use the mean and the deviation of each color instead of the features of a pretrained network.

    Computing those in a process loads a framework and builds the network, which takes eight seconds of a core.
    """

    def compute(
        _sources: Sequence[str], _settings: Sequence[str], index: Index, callback: Callback
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        features = np.full((len(index.images), 6), np.nan, np.float32)
        for i, row in enumerate(features):
            content = index.read(i)
            assert isinstance(content, bytes), "arrays have no process"
            with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as image:
                pixels = np.asarray(image.convert("RGB"), np.float32) / 255
                row[:] = np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))])
            callback.on_progress("features", i + 1, len(features))
        return features, ~np.isnan(features[:, 0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "compute_in_process", compute)
        yield


@contextmanager
def serve(studio: Studio, port: int = 0, *, host: str = "127.0.0.1", token: str = "") -> Iterator[str]:
    """Serve a studio in a thread and yield its address; with a token, other devices can use it too."""
    import uvicorn

    from sightline.studio.app import create_app

    with socket.create_server((host, port)) as listener:
        port = listener.getsockname()[1]
        access = make_access(host, port, token) if token else None
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(studio, access), log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
            )
        )
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        while not server.started:
            thread.join(0.02)
        try:
            yield f"http://{host}:{port}" if access is None else access.address
        finally:
            server.should_exit = True
            if studio.training is not None:
                studio.training.closing.set()
            thread.join()


@contextmanager
def start_command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `sightline studio` with arguments, yield its process and address, and kill it after the block."""
    command = [sys.executable, "-m", "sightline", "studio", *map(str, arguments)]
    if "--port" not in arguments:
        command += ["--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def check_images(page: Any) -> None:
    """Check the images on a page, unless an earlier test did so in the same studio, and wait for the findings."""
    page.wait_for_function("document.querySelector('#corrections').textContent !== ''")  # wait until the state is shown
    if page.locator("#check").is_enabled():
        page.click("#check")
    page.wait_for_selector("#finding-filter:not([hidden])")
