"""A server under slow, hostile and many clients: what it still answers, what it takes, and that it can be stopped."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile_images import many_scans, png
from server_process import Server

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and ulimit are those of Linux"),
]

HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\n"
HALF_OPEN = (
    b"",
    b"GET /hea",
    HEAD,
    HEAD + b"Content-Length: 1000\r\n\r\nhalf",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
)
SLOW_IMAGE = b"P3\n1200 900\n255\n" + b"7 " * (1200 * 900 * 3)  # 6 MB of numbers as text, seconds of work


@pytest.fixture
def image(colors: Path) -> bytes:
    return next((colors / "red").iterdir()).read_bytes()


@contextlib.contextmanager
def open_connections(server: Server, count: int) -> Iterator[None]:
    """Hold connections on which a request begins and does not end; the server may close some of them."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            client = stack.enter_context(server.connect())
            with contextlib.suppress(OSError):
                client.sendall(HALF_OPEN[i % len(HALF_OPEN)])
        yield


def try_request(server: Server, path: str, body: bytes | None = None) -> int | None:
    """Return the status, None if the connection is reset."""
    try:
        return server.request(path, body)[0]
    except OSError:
        return None


def read_memory(server: Server, field: str = "VmRSS") -> int:
    """Return the memory of the server's process in bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def test_half_open_connections_cost_neither_answers_nor_log_lines(trained: tuple[Path, Any], image: bytes) -> None:
    """With as many files as 129 connections do not fit into."""
    with Server(trained[0], prepare="ulimit -n 128") as server:
        with open_connections(server, 200):
            time.sleep(1)
            assert try_request(server, "/health") in {503, None}
        deadline = time.monotonic() + 20
        while try_request(server, "/predict", image) != 200:
            assert time.monotonic() < deadline
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
            deadline = time.monotonic() + 60
            while sum(task.done() for task in tasks) < 54 and time.monotonic() < deadline:
                time.sleep(0.1)
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
        deadline = time.monotonic() + 30
        while server.request("/health")[1] != {"status": "stalled"}:
            assert time.monotonic() < deadline
        assert server.request("/predict", body)[0] == 503
        start = time.monotonic()
        assert server.stop()[0] == 0
        assert time.monotonic() - start < 6  # its grace is 2


STUCK_SERVER = """
import socket, threading
from sightline import process
from sightline.api import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.app import create_app
from sightline.serve.connections import Listener, Server
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


def test_good_clients_are_answered_right_among_slow_and_hostile_ones(trained: tuple[Path, Any], colors: Path) -> None:
    """For SIGHTLINE_SOAK seconds (default 20); memory stays flat, nothing is logged, and a signal still ends it."""
    seconds = float(os.environ.get("SIGHTLINE_SOAK", "20"))
    images = [path.read_bytes() for path in sorted(colors.rglob("*.png"))[::5]]
    hostile = [SLOW_IMAGE, png(7000, 7000), many_scans(64, 400), b"no image", images[0][:50], bytes(40_000_000)]
    end = time.monotonic() + seconds
    with Server(trained[0], "--decode-timeout", 1) as server:
        expected = [server.request("/predict", image)[1] for image in images]

        def ask_well(seed: int) -> int:
            choice, count = np.random.default_rng(seed), 0
            while time.monotonic() < end:
                number = choice.integers(len(images))
                code, answer = server.request("/predict", images[number])
                assert code == 200, answer
                assert answer["label"] == expected[number]["label"]
                assert answer["probability"] == pytest.approx(expected[number]["probability"], abs=1e-6)
                count += 1
            return count

        def attack(seed: int) -> None:
            choice = np.random.default_rng(seed)
            while time.monotonic() < end:
                with contextlib.suppress(OSError), server.connect() as client:
                    body = hostile[choice.integers(len(hostile))]
                    content = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
                    contents = [*HALF_OPEN, content, content, content[:-1]]
                    client.sendall(contents[choice.integers(len(contents))])
                    client.settimeout(float(choice.choice([0.01, 1.0])))  # some hang up before they are answered
                    client.recv(1 << 16)

        with ThreadPoolExecutor(12) as pool:
            good = [pool.submit(ask_well, seed) for seed in range(4)]
            bad = [pool.submit(attack, seed) for seed in range(8)]
            time.sleep(seconds / 3)
            early = read_memory(server)
            for task in bad:
                task.result()
            assert all(task.result() > 10 for task in good)
        assert read_memory(server) - early < 100 << 20
        with open_connections(server, 20):
            assert server.stop() == (0, "")
