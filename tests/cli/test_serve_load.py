"""A server under slow, hostile or many clients still answers, takes limited memory, and can be stopped."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hostile_clients import HEAD, SLOW_IMAGE, open_connections, read_memory
from hostile_images import png
from server_process import Server
from waiting import wait_until

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and ulimit are those of Linux"),
]


@pytest.fixture
def image(colors: Path) -> bytes:
    return next((colors / "red").iterdir()).read_bytes()


def try_request(server: Server, path: str, body: bytes | None = None) -> int | None:
    """Return the status, None if the connection is reset."""
    try:
        return server.request(path, body)[0]
    except OSError:
        return None


def test_half_open_connections_cost_neither_answers_nor_log_lines(trained: tuple[Path, Any], image: bytes) -> None:
    """With a limit of 128 open files, too few for 200 connections."""
    with Server(trained[0], prepare="ulimit -n 128") as server:
        with open_connections(server, 200):
            wait_until(lambda: try_request(server, "/health") in {503, None})
        wait_until(lambda: try_request(server, "/predict", image) == 200)
        code, err = server.stop()
        assert (code, err) == (0, "")


def test_many_large_bodies_take_no_more_memory_than_is_allowed(trained: tuple[Path, Any], image: bytes) -> None:
    """60 bodies of 30 MB, behind 4 slow ones, with room for 10 of them."""
    body = bytes(30_000_000)
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    with Server(trained[0], "--max-inflight-mb", 300) as server:
        assert server.request("/predict", image)[0] == 200
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
        before = read_memory(server)
        release = threading.Event()

        def send(number: int) -> bytes:
            with server.connect() as client:
                client.sendall(head)
                with contextlib.suppress(OSError):
                    client.sendall(body[: 1000 if number < 4 else -1])  # the last byte is missing
                client.settimeout(0.1)
                while not release.is_set():
                    with contextlib.suppress(TimeoutError):
                        return client.recv(12)
                return b"admitted"

        with ThreadPoolExecutor(64) as pool:
            tasks = [pool.submit(send, number) for number in range(64)]
            wait_until(lambda: sum(task.done() for task in tasks) >= 54)
            peak = read_memory(server, "VmHWM")
            assert server.request("/health")[0] == 200
            release.set()
        answers = [task.result() for task in tasks]
        assert answers.count(b"admitted") == 10
        assert answers.count(b"HTTP/1.1 503") == 54
        assert peak - before < 500_000_000  # 300 MB of bodies, and their connections
        assert server.request("/predict", image)[0] == 200
        assert server.stop() == (0, "")


def test_images_that_take_long_do_not_keep_others_waiting(trained: tuple[Path, Any], image: bytes) -> None:
    """Each costs its deadline, in its own process; large ones leave the other processes to other images."""
    with Server(trained[0], "--decode-timeout", 0.5) as server, ThreadPoolExecutor(8) as pool:
        hostile = [pool.submit(server.request, "/predict", SLOW_IMAGE) for _ in range(4)]
        large = [pool.submit(server.request, "/predict", png(7000, 7000)) for _ in range(4)]
        answers = [server.request("/predict", image)[0] for _ in range(20)]
        assert answers == [200] * 20
        for task in hostile:
            code, answer = task.result()
            assert (code, answer["error"]) == (
                400,
                "The image cannot be read: decoding takes more than 0.5 seconds.",
            )
        assert {task.result()[0] for task in large} <= {200, 400}
        assert server.stop() == (0, "")


def test_clients_that_stop_in_mid_body_do_not_keep_it_from_stopping(trained: tuple[Path, Any]) -> None:
    with Server(trained[0], "--grace", 3) as server, open_connections(server, 20):
        time.sleep(0.5)
        start = time.monotonic()
        assert server.stop() == (0, "")
        assert time.monotonic() - start < 6  # its grace is 3


def test_a_model_that_never_returns_does_not_keep_it_from_stopping(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(STUCK_SERVER)
    with Server(script=script) as server, server.connect() as client:
        body = png(8, 8)
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: server.request("/health")[1] == {"status": "stalled"})
        assert server.request("/predict", body)[0] == 503
        start = time.monotonic()
        assert server.stop()[0] == 0
        assert time.monotonic() - start < 6  # its grace is 2


STUCK_SERVER = """
import socket, threading
from sightline import process
from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.app import create_app
from sightline.serve.connections import Server
from sightline.serve.listening import Listener
from sightline.serve.limits import Limits

class Stuck(FakePredictor):
    def probabilities(self, pixels):
        threading.Event().wait()

process.claim()
with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.limit = 100
    limits = Limits(model=0.2)
    app = create_app(Classifier(Stuck(("a", "b"), PreprocessingSpec(8, 8))), max_bytes=1 << 20, limits=limits)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    Server(app, limits, 2).run(sockets=[listener])
"""
