"""Several workers at one address as a client, an operator and a supervisor see them: processes and a socket."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from command import Command
from server_process import Server
from sightline import load
from sightline.inference import bundle
from small_bundles import make_bundle
from synthetic_images import encode_png
from waiting import is_running, wait_until

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the tests read /proc, and Windows has no workers"),
]

WORKERS = 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    bundle.write_folder(make_bundle(1), tmp_path / "shapes")
    return tmp_path / "shapes"


@pytest.fixture
def server(model: Path) -> Iterator[Server]:
    with Server(model, "--workers", WORKERS, "--reload-interval", 0, "--grace", 5) as running:
        wait_until_all_answer(running)
        yield running


def wait_until_all_answer(server: Server) -> None:
    wait_until(lambda: len(list_workers(server)) == WORKERS)
    wait_until(lambda: read_metrics(server)["sightline_workers"] == WORKERS)


def list_workers(server: Server) -> list[int]:
    """Return the ids of the processes that answer, in the order of their starts."""
    process = server.process.pid
    children = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return [child for child in children if is_running(child)]


def count_sockets(process: int) -> int:
    """Return how many sockets a process has that are TCP connections or listen."""
    count = 0
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):  # closed in the meantime
            count += str(link.readlink()).startswith("socket:")
    return count


def ask(server: Server, path: str, body: bytes | None = None) -> int:
    """Return the status of a response, 0 if the worker has ended before it took the request."""
    with suppress(OSError):
        return server.request(path, body)[0]
    return 0


def read_metrics(server: Server) -> dict[str, float]:
    import urllib.request

    with urllib.request.urlopen(f"{server.address}/metrics", timeout=60) as response:  # noqa: S310  # our own server
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


PREDICTED = 'sightline_images_total{model="shapes",outcome="predicted"}'


def test_they_share_connections_and_answer_as_predict_does_and_metrics_add_up(server: Server, model: Path) -> None:
    images = [encode_png(seed % 7, seed % 5) for seed in range(40)]
    expected = load(model).predict(images)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda image: server.request("/predict", image), images))
    for (code, body), one in zip(answers, expected, strict=True):
        assert (code, body["label"]) == (200, one.label)
        assert body["probability"] == pytest.approx(one.probability, abs=1e-6)
    for _ in range(8):  # whichever worker answers
        metrics = read_metrics(server)
        assert metrics[PREDICTED] == len(images)
        assert metrics["sightline_requests_in_flight"] == 0
        assert metrics['sightline_decode_seconds_count{model="shapes"}'] == len(images)
        assert [value for name, value in metrics.items() if name.startswith("sightline_model_info")] == [1]
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(server.connect())
        wait_until(lambda: min(map(count_sockets, list_workers(server))) >= 8)  # 3 of them without any connection


def test_a_worker_that_is_killed_costs_no_later_request(server: Server) -> None:
    image = encode_png()
    assert server.request("/predict", image)[0] == 200
    first, second = list_workers(server)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{first}").exists())
    while len(list_workers(server)) < WORKERS or read_metrics(server)["sightline_workers"] < WORKERS:
        assert server.request("/predict", image)[0] == 200
    sent = read_metrics(server)[PREDICTED]
    assert sent >= 2, "the images of the worker that was killed count"
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{second}").exists())  # its socket takes requests until its last thread ends
    assert server.request("/predict", image)[0] == 200
    assert read_metrics(server)[PREDICTED] == sent + 1
    code, err = server.stop()
    assert code == 0
    assert "Worker 1 has ended (signal 9). Worker 1 is started again in 1 s." in err
    assert "Traceback" not in err


def test_sigterm_ends_all_after_the_requests_in_flight(server: Server) -> None:
    image, workers = encode_png(), list_workers(server)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(head)
        wait_until(lambda: read_metrics(server)["sightline_requests_in_flight"] == len(clients))
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(server, "/v2/health/ready") == 503)
        wait_until(lambda: ask(server, "/predict", image) == 503)
        for client in clients:
            client.sendall(image)
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
    assert server.wait() == (0, "")
    assert not any(map(is_running, workers))


def test_sigterm_ends_all_within_the_grace_whatever_clients_do(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        wait_until(lambda: read_metrics(server)["sightline_requests_in_flight"] == 1)
        start = time.monotonic()
        assert server.stop()[0] == 0
    assert time.monotonic() - start < 15


def test_a_new_model_is_loaded_by_each(server: Server, model: Path) -> None:
    bundle.write_folder(make_bundle(2), model)
    server.process.send_signal(signal.SIGHUP)
    newest = [False] * 20

    def all_answer_with_it() -> bool:
        newest.append(server.request("/model")[1]["weights_sha256"] == "2" * 64)
        return all(newest[-20:])

    wait_until(all_answer_with_it)
    assert server.stop() == (0, "")


def test_workers_end_with_the_process_that_started_them_and_leave_no_files(model: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Server(model, "--workers", WORKERS, env={**os.environ, "TMPDIR": str(temporary)}) as server:
        wait_until_all_answer(server)
        assert any(temporary.iterdir())
        workers = list_workers(server)
        server.stop(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, workers)))
    assert not any(temporary.iterdir())


def test_without_any_worker_that_starts_the_server_ends_with_the_reason(server: Server, model: Path) -> None:
    workers = list_workers(server)
    model.rename(model.with_name("elsewhere"))
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    code, err = server.wait()
    assert code == 2
    assert f"There is no model {model}" in err.replace("\n", " ")


def test_what_is_wrong_is_said_once(sightline: Command, model: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((tmp_path / "none",), "There is no model"),
        ((model, "--log-features", tmp_path / "a.log"), "leave --workers out"),
        ((model, "--ssl-certfile", tmp_path / "none.pem"), "cannot be used"),
    ):
        result = sightline("serve", *arguments, "--port", 0, "--workers", WORKERS)
        assert (result.code, result.out) == (2, "")
        assert result.err.count(words) == 1
        assert "Traceback" not in result.err


def test_errors_and_requests_are_lines_of_json(model: Path) -> None:
    with Server(model, "--workers", WORKERS, "--log-format", "json") as server:
        for _ in range(6):
            assert server.request("/predict", encode_png())[0] == 200
        wait_until_all_answer(server)
        first = list_workers(server)[0]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: first not in list_workers(server))
        wait_until_all_answer(server)
        code, err = server.stop()
    entries = list(map(json.loads, err.splitlines()))
    assert code == 0
    requests = [entry for entry in entries if entry["message"] == "request"]
    assert [entry["status"] for entry in requests if entry["path"] == "/predict"] == [200] * 6
    assert [entry["level"] for entry in entries if "has ended" in entry["message"]] == ["error"]
