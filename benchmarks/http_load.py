"""Clients for server benchmarks: start a server, and send requests at a rate or as fast as it answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Address:
    """A server on this machine: its port, the path for predictions, its process and its log."""

    port: int
    path: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def read_log(self) -> bytes:
        """Return the server's standard error so far."""
        self.log.seek(0)
        return self.log.read()


def find_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def start_server(command: Sequence[str], port: int, path: str, ready: str = "/health") -> Iterator[Address]:
    """Start a server, wait until it answers `ready` with 200, and stop it after the block."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
    address = Address(port, path, process, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while (status := _try_get(port, ready)) != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{' '.join(command)} did not start ({status}): {address.read_log().decode()[-2000:]}")
            time.sleep(0.1)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _try_get(port: int, path: str) -> int | None:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
            answer = client.recv(64)
            return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else None
    except OSError:
        return None


def make_request(path: str, body: bytes, *, form: bool = False) -> bytes:
    """Return a POST request with the bytes of an image, or with a form of one file."""
    kind = "application/octet-stream"
    if form:
        kind = "multipart/form-data; boundary=boundary"
        head = b'--boundary\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        body = head + body + b"\r\n--boundary--\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head + body


class Client:
    """A persistent connection, reopened if the server ends it; answers must have a Content-Length."""

    def __init__(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._port, self._reader, self._writer = port, reader, writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        """Open the connection."""
        return cls(port, *await asyncio.open_connection("127.0.0.1", port))

    async def exchange(self, request: bytes) -> int:
        """Send a request, receive the whole answer and return its status."""
        self._writer.write(request)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):  # Hypercorn ends a connection after 1,000 requests
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        await self._reader.readexactly(length)
        return int(head[9:12])

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


@dataclass(frozen=True, slots=True)
class Load:
    """Measurements of clients: seconds of each answer, float64 [N], in the order of completion, and total seconds."""

    latencies: list[float]
    seconds: float
    refused: int

    @property
    def rate(self) -> float:
        """Answers with status 200 per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, q: float) -> float:
        """Return a percentile of the latencies, in seconds."""
        return float(np.percentile(self.latencies, q)) if self.latencies else float("nan")


def run_closed(
    port: int, requests: Sequence[bytes], clients: int, *, seconds: float = 0, count: int | None = None
) -> Load:
    """Let each of `clients` send one request after another for some time, or until `count` were answered."""

    async def run() -> Load:
        latencies, refused, sent = list[float](), 0, 0
        start = time.perf_counter()

        async def repeat(number: int) -> None:
            nonlocal refused, sent
            client = await Client.connect(port)
            while sent < count if count is not None else time.perf_counter() - start < seconds:
                sent += 1
                number += clients
                before = time.perf_counter()
                status = await client.exchange(requests[number % len(requests)])
                if status == 200:
                    latencies.append(time.perf_counter() - before)
                else:
                    refused += 1
            client.close()

        await asyncio.gather(*(repeat(number) for number in range(clients)))
        return Load(latencies, time.perf_counter() - start, refused)

    return asyncio.run(run())


def run_open(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0, *, regular: bool = False
) -> Load:
    """Send `rate` requests per second, whether or not others were answered: at random or regular intervals.

    wrk2, vegeta and k6 use regular intervals; independent clients send at random.
    """

    async def run() -> Load:
        count = max(1, round(rate * seconds))
        gaps = np.full(count, 1 / rate) if regular else np.random.default_rng(seed).exponential(1 / rate, count)
        latencies, refused, idle = list[float](), 0, list[Client]()
        start = time.perf_counter()

        async def send(moment: float, request: bytes) -> None:
            nonlocal refused
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            client = idle.pop() if idle else await Client.connect(port)
            status = await client.exchange(request)
            idle.append(client)
            if status == 200:
                latencies.append(time.perf_counter() - start - moment)  # since it was due
            else:
                refused += 1

        moments = np.cumsum(gaps).tolist()
        await asyncio.gather(*(send(moment, requests[i % len(requests)]) for i, moment in enumerate(moments)))
        seconds_in_all = time.perf_counter() - start
        for client in idle:
            client.close()
        return Load(latencies, seconds_in_all, refused)

    return asyncio.run(run())


def measure_memory(process: subprocess.Popen[Any]) -> int:
    """Return the memory in bytes of a process and its child processes; shared memory is counted once."""
    total = 0
    for pid in _list_descendants(process.pid):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def _list_descendants(pid: int) -> list[int]:
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                pids += map(int, task.read_text(encoding="ascii").split())
    return pids
