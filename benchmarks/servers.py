"""Compare HTTP servers for the application of `serve`: speed, and which of its promises each server keeps.

The same Starlette application runs behind uvicorn as modified by `serve` (h11), behind plain uvicorn with h11 and with
httptools, behind granian and behind hypercorn. The model is a fake with 8x8 pixels, so that only the server is
measured. Then hostile clients test the promises, each of which is listed with the server's behavior.

    pip install --target PEERS granian hypercorn httptools
    PYTHONPATH=PEERS python benchmarks/servers.py            # 4 minutes on two cores
    PYTHONPATH=PEERS python benchmarks/servers.py --quick    # 1 minute, to try it
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from http_load import Address, find_port, make_request, run_closed, start_server
from measure import describe_machine, read_commit
from PIL import Image
from server_app import FAST_PATH, GRACE, HEADER_SECONDS, MAX_BYTES, MODEL_SECONDS, SLOW_PATH

SERVERS = {
    "sightline (uvicorn, h11)": ("sightline", "uvicorn"),
    "uvicorn, h11": ("uvicorn-h11", "uvicorn"),
    "uvicorn, httptools": ("uvicorn-httptools", "httptools"),
    "granian": ("granian", "granian"),
    "hypercorn": ("hypercorn", "hypercorn"),
}
APP = Path(__file__).with_name("server_app.py")
CLIENTS = 64
LATE = 4.0  # seconds after a deadline until a promise counts as broken
HEAD = b"POST " + FAST_PATH.encode() + b" HTTP/1.1\r\nHost: test\r\n"
FILES, CONNECTIONS = 128, 200


def make_image() -> bytes:
    """Return a PNG of 8x8 pixels."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def connect(address: Address) -> socket.socket:
    """Open a connection."""
    return socket.create_connection(("127.0.0.1", address.port), 60)


def wait_for_end(client: socket.socket, seconds: float) -> tuple[float | None, bytes]:
    """Return the seconds until the server closed the connection (None: not within `seconds`), and its answer."""
    start, answer = time.monotonic(), b""
    client.settimeout(seconds)
    try:
        while chunk := client.recv(1 << 16):
            answer += chunk
            client.settimeout(max(0.01, seconds - (time.monotonic() - start)))
    except TimeoutError:
        return None, answer
    except OSError:
        pass
    return time.monotonic() - start, answer


def try_header(address: Address) -> str:
    """A connection with an endless header is closed."""
    with connect(address) as client:
        client.sendall(HEAD)
        seconds, _ = wait_for_end(client, HEADER_SECONDS + LATE)
        return "kept open" if seconds is None else f"yes, {seconds:.1f} s"


def try_silence(address: Address) -> str:
    """A connection on which nothing is sent is closed."""
    with connect(address) as client:
        seconds, _ = wait_for_end(client, HEADER_SECONDS + LATE)
        return "kept open" if seconds is None else f"yes, {seconds:.1f} s"


def try_smuggling(address: Address) -> str:
    """A request with two lengths is refused."""
    with connect(address) as client:
        client.sendall(HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        _, answer = wait_for_end(client, 2)
        return "yes" if answer[9:12] == b"400" else f"answers {answer[9:12].decode() or 'nothing'}"


def try_large_body(address: Address) -> str:
    """A client that sends too much can read the reason, although it continues to send."""
    with connect(address) as client:
        size = 16 * MAX_BYTES
        with suppress(OSError):
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        _, answer = wait_for_end(client, 5)
        return "yes" if answer[9:12] == b"413" else f"answers {answer[9:12].decode() or 'nothing'}"


def try_many_connections(address: Address) -> str:
    """More half-open connections than the process may open files lose no later answers and fill no log."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            with suppress(OSError):
                stack.enter_context(connect(address)).sendall(HEAD[:20])
        time.sleep(2)
    request = make_request(FAST_PATH, make_image())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError, ConnectionError, EOFError):
            if run_closed(address.port, [request], 1, count=1).latencies:
                lines = address.read_log().count(b"\n")
                return "yes" if lines < CONNECTIONS else f"yes, {lines:,} lines logged"
        time.sleep(0.2)
    return "no answer in 10 s"


def try_stop_with_half_a_body(address: Address) -> str:
    """SIGTERM ends the server within its grace period although a client has stopped in mid-body."""
    with connect(address) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\nhalf")
        time.sleep(0.5)
        return _stop(address)


def try_stop_in_flight(address: Address) -> str:
    """SIGTERM lets the running request be answered."""
    with connect(address) as client:
        client.sendall(make_request(SLOW_PATH, make_image()))
        time.sleep(MODEL_SECONDS / 2)
        os.kill(address.process.pid, signal.SIGTERM)
        _, answer = wait_for_end(client, GRACE + LATE)
        return "yes" if answer[9:12] == b"200" else f"answers {answer[9:12].decode() or 'nothing'}"


def _stop(address: Address) -> str:
    start = time.monotonic()
    os.kill(address.process.pid, signal.SIGTERM)
    with suppress(Exception):
        address.process.wait(GRACE + LATE)
    if address.process.poll() is None:
        return f"still running after {GRACE + LATE:g} s"
    return f"{time.monotonic() - start:.1f} s, exit code {address.process.returncode}"


PROMISES: dict[str, Callable[[Address], str]] = {
    f"a header within {HEADER_SECONDS:g} s": try_header,
    "closes a silent connection": try_silence,
    "refuses two lengths": try_smuggling,
    "a refusal arrives while the client sends on": try_large_body,
    f"answers after {CONNECTIONS} connections at `ulimit -n {FILES}`": try_many_connections,
    f"SIGTERM with half a body, grace {GRACE:g} s": try_stop_with_half_a_body,
    "SIGTERM: what is in flight is answered": try_stop_in_flight,
}


def measure_speed(address: Address, seconds: float) -> list[str]:
    """Return answers per second and latencies, for predictions and for probes."""
    image = [make_request(FAST_PATH, make_image())]
    run_closed(address.port, image, CLIENTS, seconds=max(2, seconds / 4))  # starts the decoding processes
    load = run_closed(address.port, image, CLIENTS, seconds=seconds)
    single = run_closed(address.port, image, 1, seconds=seconds / 2)
    probe = [b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"]
    probes = run_closed(address.port, probe, CLIENTS, seconds=seconds / 2)
    return [
        f"{load.rate:,.0f}", f"{1000 * load.percentile(99):.0f}", f"{1000 * median(single.latencies):.2f}",
        f"{probes.rate:,.0f}",
    ]  # fmt: skip


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short, to try it")
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), help="some of the servers")
    options = parser.parse_args()
    servers = {
        name: kind
        for name, (kind, package) in SERVERS.items()
        if importlib.util.find_spec(package) is not None and name in (options.only or SERVERS)
    }
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {read_commit()}, {describe_machine()}\n")
    print(
        f"| server | predictions/s, {CLIENTS} clients | their p99, ms | single, ms | probes/s |\n|---|---|---|---|---|"
    )
    for name, kind in servers.items():
        with start(kind) as address:
            cells = measure_speed(address, 3 if options.quick else 20)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n| promise | {' | '.join(servers)} |\n|---|{'---|' * len(servers)}")
    for promise, act in PROMISES.items():
        cells = []
        for kind in servers.values():
            with start(kind, files=FILES if act is try_many_connections else None) as address:
                cells.append(act(address))
        print(f"| {promise} | {' | '.join(cells)} |", flush=True)


def start(kind: str, files: int | None = None) -> AbstractContextManager[Address]:
    """Start one of the servers, which may open at most `files` files."""
    port = find_port()
    command = [sys.executable, str(APP), kind, str(port)]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
    return start_server(command, port, FAST_PATH)


if __name__ == "__main__":
    main()
