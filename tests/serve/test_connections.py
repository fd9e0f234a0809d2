"""Slow, silent and hostile clients of a real socket, and how the server stops while they are there."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib.metadata
import json
import re
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from packaging.requirements import Requirement
from packaging.version import Version

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from sightline import process
from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from sightline.serve import connections, listening
from sightline.serve.app import create_app
from sightline.serve.connections import Server
from sightline.serve.limits import Limits
from sightline.serve.listening import STOPPING_REASON, Listener, bind, limit_connections
from synthetic_images import encode_png
from waiting import wait_until

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
IMAGE = encode_png()
POST = b"POST /predict HTTP/1.1\r\nHost: test\r\n"


class GatedPredictor(FakePredictor):
    """Waits in each batch while its gate is closed."""

    def __init__(self) -> None:
        super().__init__(("dark", "light"), PreprocessingSpec(8, 8, 3))
        self.gate, self.sizes = threading.Event(), list[int]()
        self.gate.set()

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.sizes.append(len(pixels))
        assert self.gate.wait(30)
        return super().probabilities(pixels)


class RunningServer:
    """A server in a thread of this process."""

    def __init__(self, limits: Limits | None = None, grace: float = 10, connections: int = 100) -> None:
        self.predictor = GatedPredictor()
        self.listener = bind(Listener, "127.0.0.1", 0)
        self.listener.listen()
        self.listener.limit = connections
        self.port = self.listener.getsockname()[1]
        limits = limits or Limits()
        self.app = create_app(Classifier(self.predictor), max_bytes=1 << 20, limits=limits)
        self.server = Server(self.app, limits, grace)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.ask(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")[0] == 200
        return self

    def __exit__(self, *_: object) -> None:
        self.predictor.gate.set()
        self.stop()
        self.thread.join(30)
        self.listener.close()

    def stop(self) -> None:
        self.server.handle_exit(15, None)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, content: bytes) -> tuple[int, Any]:
        """Send `content` on a new connection and return the status and the answer."""
        with self.connect() as client:
            client.sendall(content)
            return parse(read_all(client))

    def predict(self) -> tuple[int, Any]:
        return self.ask(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE)

    def count_requests(self) -> int:
        """Return how many requests are in flight."""
        return int(self.app.state.admission.requests)


def read_all(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(1 << 16):
            received += data
    return received


def parse(received: bytes) -> tuple[int, Any]:
    """Return the status and the answer, of which there must be exactly one."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), received
    assert b"connection: close" in head.lower(), received
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def test_answers_are_sent_at_once(server: RunningServer) -> None:
    open_connections = server.server.server_state.connections
    wait_until(lambda: not open_connections)
    with server.connect():
        wait_until(lambda: len(open_connections) == 1)
        accepted = next(iter(open_connections)).transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_clients_that_come_back_as_soon_as_they_are_refused_keep_no_other_waiting() -> None:
    is_sent = threading.Event()
    with RunningServer(connections=1) as server, contextlib.ExitStack() as returning:
        wait_until(lambda: server.listener.open_count == 0)
        count = 0

        def come_back(_code: int) -> None:
            nonlocal count
            assert is_sent.wait(30)
            if count < 200:
                count += 1
                returning.enter_context(server.connect())

        with server.connect() as client:
            wait_until(lambda: server.listener.open_count == 1)
            server.listener.count_refusal = come_back
            with server.connect():
                client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                is_sent.set()
                assert parse(read_all(client))[0] == 200
                assert count < 200


def test_a_request_leaves_no_cycles_of_objects(server: RunningServer) -> None:
    """Python stops everything to free those, once in some hundred requests, and keeps their images until then."""
    request = POST + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
    with server.connect() as client:

        def ask(count: int) -> None:
            for _ in range(count):
                client.sendall(request)
                received = b""
                while b"}}" not in received:  # the end of the model's identity
                    received += client.recv(1 << 16)
                assert received.startswith(b"HTTP/1.1 200")

        ask(5)
        wait_until(lambda: server.count_requests() == 0)
        gc.collect()
        gc.disable()
        try:
            ask(50)
            wait_until(lambda: server.count_requests() == 0)
            time.sleep(0.1)  # until the tasks of the last one have ended
            assert gc.collect() < 5 * 50
        finally:
            gc.enable()


def test_a_header_must_arrive_in_time_on_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.5)  # after which a client that goes on sending is cut off
    with RunningServer(Limits(header=0.8)) as server:
        with server.connect() as silent, server.connect() as slow, server.connect() as second:
            slow.sendall(b"GET /health HT")
            second.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
            while not second.recv(1 << 16).endswith(b"}"):
                pass
            dripping = threading.Thread(target=drip, args=(second, b"GET /health HTTP/1.1\r\nX: " + b"y" * 1000))
            dripping.start()
            status, answer = parse(read_all(slow))
            assert (status, answer["error"]) == (408, "The header of the request did not arrive within 0.8 seconds.")
            assert parse(read_all(second))[0] == 408
            assert read_all(silent) == b""  # it asked for nothing
            dripping.join()
        wait_until(lambda: server.listener.open_count == 0)


def drip(client: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        for i in range(len(content)):
            client.send(content[i : i + 1])
            time.sleep(0.02)


def test_connections_beyond_the_limit_are_answered_and_closed() -> None:
    with RunningServer(connections=3) as server:
        wait_until(lambda: server.listener.open_count == 0)
        waiting = [server.connect() for _ in range(3)]
        wait_until(lambda: server.listener.open_count == 3)
        for _ in range(20):
            with server.connect() as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
                received = read_all(client)
            status, answer = parse(received)
            assert (status, answer["error"]) == (503, "Too many connections: try again in a moment.")
            assert b"\r\nretry-after: 1\r\n" in received.lower()
        waiting.pop().close()
        wait_until(lambda: server.listener.open_count == 2)
        assert server.predict()[0] == 200
        for client in waiting:
            client.close()


def test_connections_refused_without_a_request_are_counted() -> None:
    with RunningServer(Limits(header=0.5), connections=1) as server:
        wait_until(lambda: server.listener.open_count == 0)
        with server.connect() as slow:
            wait_until(lambda: server.listener.open_count == 1)
            assert server.predict()[0] == 503
            slow.sendall(b"GET /hea")
            assert parse(read_all(slow))[0] == 408
        wait_until(lambda: server.listener.open_count == 0)
        assert server.ask(b"no request\r\n\r\n")[0] == 400
        wait_until(lambda: server.listener.open_count == 0)
        with server.connect() as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            counts = re.findall(r'sightline_refused_connections_total{code="(.+)"} (.+)', read_all(client).decode())
    assert counts == [("400", "1.0"), ("408", "1.0"), ("503", "1.0")]


def ask_again(client: socket.socket) -> bytes:
    """Send a request on a connection that stays open, and return the answer."""
    client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
    received = b""
    while not received.endswith(b"}") and (data := client.recv(1 << 16)):
        received += data
    return received


def test_a_connection_between_two_requests_makes_room_for_a_new_one() -> None:
    """The one that has been idle for the longest; one whose request is being answered stays."""
    with RunningServer(connections=3) as server:
        wait_until(lambda: server.listener.open_count == 0)
        server.predictor.gate.clear()
        busy, *idle = [server.connect() for _ in range(3)]
        busy.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE)
        wait_until(lambda: server.predictor.sizes)
        assert all(ask_again(client).startswith(b"HTTP/1.1 200") for client in reversed(idle))
        newest = server.connect()
        assert ask_again(newest).startswith(b"HTTP/1.1 200")
        assert idle[1].recv(1) == b"", "the one that answered first"
        assert ask_again(idle[0]).startswith(b"HTTP/1.1 200")
        server.predictor.gate.set()
        assert busy.recv(1 << 16).startswith(b"HTTP/1.1 200")
        wait_until(lambda: server.listener.open_count == 3)
        for client in (busy, newest, *idle):
            client.close()


def test_a_connection_is_kept_for_the_time_that_is_stated() -> None:
    """Longer than the 60 seconds of usual proxies, which would send a request to one that is being closed."""
    assert Limits().idle > 60
    with RunningServer(Limits(idle=1.5)) as server, server.connect() as client:
        for _ in range(3):
            assert ask_again(client).startswith(b"HTTP/1.1 200")
            time.sleep(0.1)
        start = time.monotonic()
        assert client.recv(1) == b""
        assert time.monotonic() - start > 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="/proc exists on Linux only")
def test_files_run_out_without_a_word(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """The limit of connections is above that of files here; the one file in reserve refuses them."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with RunningServer(connections=10_000) as server:
        server.listener.keep_spare()
        assert server.predict()[0] == 200
        clients = [socket.socket() for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 5, hard))
        try:
            for client in clients:
                client.connect(("127.0.0.1", server.port))
            refused = [read_all(client) for client in clients[-5:]]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in clients:
                client.close()
        assert refused == [b""] * 5
        assert server.predict()[0] == 200
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_a_client_that_still_sends_gets_the_refusal(server: RunningServer) -> None:
    """Closing at once would reset its connection, and it would lose the answer."""
    body = bytes(8 << 20)
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n" % len(body)
    with server.connect() as client:
        client.sendall(head + b"\r\n")
        first = client.recv(12)
        assert first == b"HTTP/1.1 413"  # before any of the body was sent
        client.sendall(body)
        assert parse(first + read_all(client))[0] == 413
    status, answer = server.ask(head + b"Expect: 100-continue\r\n\r\n")
    assert status == 413  # and not 100
    assert "1048576 bytes" in answer["error"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x16\x03\x01\x02\x00 TLS?\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (POST + b"Content-Type: Multipart/Mixed; boundary=x\r\nContent-Length: 900\r\n\r\n", 415),
        (POST.replace(b"predict", b"predict?top=-" + b"9" * 5000) + b"Content-Length: 1\r\n\r\n", 400),
    ],
    ids=["not HTTP", "two framings", "not a chunk", "another multipart", "5,000 digits"],
)
def test_a_bad_request_gets_one_answer_in_json(server: RunningServer, content: bytes, status: int) -> None:
    answer = server.ask(content)
    assert answer[0] == status
    assert answer[1]["error"]
    assert server.predict()[0] == 200


def test_a_client_that_hangs_up_leaves_the_queue_in_silence(
    server: RunningServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.predictor.gate.clear()
    request = POST + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
    with server.connect() as first:
        first.sendall(request)
        wait_until(lambda: server.predictor.sizes)
        for size in (len(request), len(request) - 5):  # after its body, and in the middle of it
            with server.connect() as client:
                client.sendall(request[:size])
                wait_until(lambda: server.count_requests() == 2)
            wait_until(lambda: server.count_requests() == 1)
        server.predictor.gate.set()
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert server.predict()[0] == 200
    assert server.predictor.sizes == [1, 1]
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_it_is_first_unready_then_answers_what_it_has_and_then_stops(server: RunningServer) -> None:
    server.predictor.gate.clear()
    with server.connect() as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE)
        wait_until(lambda: server.predictor.sizes)
        server.stop()
        assert server.ask(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n") == (503, {"status": "stopping"})
        assert server.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: test\r\n\r\n")[0] == 503
        assert server.predict()[0] == 503
        server.predictor.gate.set()
        assert parse(read_all(client))[0] == 200
    server.thread.join(10)
    assert not server.thread.is_alive()


def test_what_arrives_as_it_stops_is_answered(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request on an open connection, and one on a connection that waits to be accepted."""
    clients, shutdown = [server.connect()], server.server.shutdown
    assert ask_again(clients[0]).startswith(b"HTTP/1.1 200")

    async def send_and_shut_down(sockets: list[socket.socket]) -> None:
        clients.append(server.connect())
        for client in clients:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        await shutdown(sockets)

    monkeypatch.setattr(server.server, "shutdown", send_and_shut_down)
    server.stop()
    for client, (name, text) in zip(clients, (("status", "stopping"), ("error", STOPPING_REASON)), strict=True):
        with client:
            assert parse(read_all(client)) == (503, {name: text})


def test_it_stops_in_time_whatever_clients_do(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunningServer(grace=1.5) as server, contextlib.ExitStack() as stack:
        contents = [
            b"",
            b"GET /hea",
            POST + b"Content-Length: 100\r\n\r\nhalf",
            POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
            POST + b"Content-Length: 99999999\r\n\r\n",
        ]
        for content in contents:
            stack.enter_context(server.connect()).sendall(content)
        wait_until(lambda: server.count_requests() == 2)
        start = time.monotonic()
        server.stop()
        server.thread.join(20)
        assert time.monotonic() - start < 15  # 1.5 on an idle machine
        assert not server.thread.is_alive()
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_a_second_signal_stops_it_at_once() -> None:
    with RunningServer(grace=1000) as server, server.connect() as client:
        client.sendall(POST + b"Content-Length: 100\r\n\r\nhalf")
        wait_until(lambda: server.count_requests() == 1)
        server.stop()
        server.stop()
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_connections_are_fewer_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _number: (128, 128))
    assert 1 <= limit_connections(1000) < 128 - 32
    assert limit_connections(5) == 5


def test_a_low_limit_on_open_files_is_raised_as_far_as_macos_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, which starts with 256, names no maximum, and refuses more than 10,240."""
    resource = pytest.importorskip("resource")
    limits = [(256, resource.RLIM_INFINITY)]

    def set_limit(_number: int, limit: tuple[int, int]) -> None:
        if limit[0] == resource.RLIM_INFINITY or limit[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(limit)

    monkeypatch.setattr(process, "is_claimed", lambda: True)
    monkeypatch.setattr(resource, "getrlimit", lambda _number: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert limit_connections(1000) == 1000
    assert limits[-1][0] == 10_240  # the logs of many models need files besides those of connections


def test_the_release_of_uvicorn_was_checked_and_pip_installs_no_other() -> None:
    checked = Version(connections.CHECKED_VERSION)
    assert Version(importlib.metadata.version("uvicorn")).release[:2] <= checked.release
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    lines = [*project["project"]["optional-dependencies"]["serve"], *project["dependency-groups"]["dev"]]
    specifiers = [r.specifier for r in map(Requirement, lines) if r.name == "uvicorn"]
    assert len(specifiers) == 2
    for specifier in specifiers:
        assert f"{checked}.9" in specifier
        assert f"{checked.major}.{checked.minor + 1}" not in specifier


def test_a_connection_that_was_reset_meanwhile_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with RunningServer() as server:
        monkeypatch.setattr(listening._Accepted, "shutdown", fail, raising=False)
        with server.connect() as client:
            client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf")
            read_all(client)
        monkeypatch.undo()
        assert server.predict()[0] == 200
        wait_until(lambda: server.listener.open_count == 0)
    assert capfd.readouterr().err == ""
