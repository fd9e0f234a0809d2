"""`sightline serve` and `studio` in a process of their own, visited by a client and then ended by SIGTERM."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from threading import Timer
from typing import Any

from command import Outcome
from server_process import Server

SECONDS = 120  # for the whole visit; then the server is killed

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

    `changes` are JSON values to send, by address. `err` has a line "Traceback" for a page that failed without a
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


def _visit(address: str, verb: str, image: Path, changes: Mapping[str, Any]) -> str:
    """Visit a server, and return what is wrong with its responses."""
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
    while changes and json.loads(send("/state"))["folders"]["status"] == "running":
        time.sleep(0.05)
    return "".join(faults)
