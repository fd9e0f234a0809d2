"""`sightline serve` and `studio`, visited by a client and ended by SIGTERM, in a separate process or in this one."""

from __future__ import annotations

import json
import os
import re
import signal
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import sightline as sl
from command import Outcome
from server_process import Server
from sightline.serve.server import serve
from sightline.studio.server import run_studio
from waiting import wait_until

SECONDS = 120  # limit for the whole visit, after which the server is killed

ADDRESSES = {
    "serve": ("/", "/model", "/models", "/health", "/openapi.json", "/metrics", "/v2"),
    "studio": (
        "/", "/order", "/images?ids=0", "/images.csv", "/state", "/results", "/compare", "/map", "/map/points",
        "/train", "/train/runs", "/try", "/try/bundle", "/try/model.onnx", "/features",
    ),
}  # fmt: skip
OF_IMAGE = {"serve": ("/predict", "/explain"), "studio": ("/try", "/try/heat")}


def run_visited(verb: str, *arguments: object, image: Path, changes: Mapping[str, Any] | None = None) -> Outcome:
    """Run ``serve`` or ``studio``; if it starts, request its pages, send it an image and `changes`, and end it.

    `changes` are JSON values to send, by address. `err` contains the line "Traceback" if a page failed without an error
    sentence; `out` is the address of the server, "" if it did not start.
    """
    killer: Timer | None = None
    try:
        with Server(*arguments, verb=verb) as server:
            killer = Timer(SECONDS, server.process.kill)
            killer.start()
            faults = _visit(server.address, verb, image, changes or {}) if server.address else ""
            code, err = server.stop()
            return Outcome(code, server.address, err + faults)
    finally:
        if killer is not None:
            killer.cancel()


def run_visited_here(arguments: Sequence[object], *, image: Path, read: Callable[[], tuple[str, str]]) -> Outcome:
    """Do the same with the Python equivalent of ``serve RUN`` or ``studio RUN --patch PATCH``, without a process.

    Call this in the main thread; `read` returns what was printed since its last call.
    """
    verb, run = str(arguments[0]), Path(str(arguments[1]))
    addresses: list[str] = []
    faults: list[str] = []
    visitor: Thread | None = None

    def visit(address: str) -> None:
        try:
            faults.append(_visit(address, verb, image, {}))
        except Exception:  # noqa: BLE001  # the server must end whatever the error
            faults.append(traceback.format_exc())
        os.kill(os.getpid(), signal.SIGTERM)

    def start(address: str) -> None:
        nonlocal visitor
        addresses.append(address)
        visitor = Thread(target=visit, args=(address,))
        visitor.start()

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # until the server handles it
    code, message = 0, ""
    try:
        if verb == "serve":
            serve(run, port=0, max_bytes=1 << 24, on_start=start)
        else:
            run_studio(sl.Run(run), patch=Path(str(arguments[3])), show=lambda of: start(of.local))
    except sl.SightlineError as error:
        code, message = 2, f"error: {error}\n"
    except Exception:  # noqa: BLE001  # our own bug, reported in the outcome
        code, message = 3, traceback.format_exc()
    finally:
        if visitor is not None:
            visitor.join()
        signal.signal(signal.SIGTERM, before)
    out, err = read()
    return Outcome(code, out + "".join(addresses), err + message + "".join(faults))


def _visit(address: str, verb: str, image: Path, changes: Mapping[str, Any]) -> str:
    """Visit a server, and return any problems with its responses."""
    faults = []

    def send(path: str, body: bytes | None = None, **headers: str) -> bytes:
        request = urllib.request.Request(address + path, body, headers)  # noqa: S310  # our own server
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:  # noqa: S310
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            content = error.read()
            if error.code == 500 and not content.startswith(b'{"error":'):
                faults.append(f"Traceback: {path} answers with {content[:200]!r}\n")
            return content

    tag = re.search(rb'name="csrf-token" content="([^"]+)"', send("/"))
    token = {"X-CSRF-Token": tag[1].decode()} if tag else {}
    for path in ADDRESSES[verb]:
        send(path)
    for path in OF_IMAGE[verb]:
        send(path, image.read_bytes(), **{"Content-Type": "image/png"} | token)
    for path, values in changes.items():
        send(path, json.dumps(values).encode(), **{"Content-Type": "application/json"} | token)
    if changes:
        wait_until(lambda: json.loads(send("/state"))["folders"]["status"] != "running", SECONDS)
    return "".join(faults)
