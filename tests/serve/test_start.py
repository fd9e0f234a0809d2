"""How the server starts: the options of the command reach it, and its models have run before its first request."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import uvicorn

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from asgi_client import Request, call
from sightline.cli import app
from sightline.errors import UsageError
from sightline.inference import bundle
from sightline.serve import connections, listening, server, workers
from small_bundles import make_bundle
from synthetic_images import encode_png
from waiting import wait_until


class Start(NamedTuple):
    calls: list[tuple[int, int]]  # until the server was ready
    metrics: str  # after one request


@pytest.fixture
def starts(model_calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    """The servers that were started: each gets one request, and ends."""
    seen: list[Start] = []

    async def visit(application: Any) -> None:
        async with application.router.lifespan_context(application):
            before = list(model_calls)
            assert (await call(application, Request("/predict", encode_png()))).status == 200
            seen.append(Start(before, (await call(application, Request("/metrics"))).body))

    def run(self: uvicorn.Server, **_: Any) -> None:
        asyncio.run(visit(self.config.app))

    monkeypatch.setattr(connections.Server, "run", run)
    return seen


def serve(*arguments: object) -> None:
    command = typer.main.get_group(app).commands["serve"]
    command.main([*map(str, arguments), "--port", "0"], standalone_mode=False)


def test_the_options_reach_the_server_whose_model_runs_before_its_first_request(
    tmp_path: Path, starts: list[Start]
) -> None:
    bundle.write_folder(make_bundle(1), tmp_path / "shapes")
    serve(tmp_path / "shapes", "--threads", 3, "--batch-size", 5, "--max-wait", 0.1)
    (start,) = starts
    assert sorted(start.calls) == [(1, 3)] * 3 + [(5, 3)] * 3  # in each thread, one image and a full batch
    (line,) = [line for line in start.metrics.splitlines() if line.startswith("sightline_queue_seconds_sum")]
    assert float(line.split()[-1]) >= 0.09


LOADING = """
import sys, time

def wait(*_):
    print("loading", flush=True)
    time.sleep(60)

class Finder:
    def find_spec(self, name, *_):
        if name == HELD:
            wait()

HOLD
sys.argv = ["sightline", "serve", "shapes", "--port", "0"]
from sightline.__main__ import run
run()
"""
IMPORTED = "HELD = 'sightline.serve.access'; sys.meta_path.insert(0, Finder())"
BEGUN = "HELD = 'sightline.cli'; sys.meta_path.insert(0, Finder())"
LOADED = "from sightline.serve import reloading; reloading.Reloader.load_all = wait"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("hold", "code"), [(BEGUN, -signal.SIGTERM), (IMPORTED, 0), (LOADED, 0)])
def test_signals_while_the_server_is_imported_and_the_model_is_loaded(hold: str, code: int) -> None:
    command = [sys.executable, "-c", LOADING.replace("HOLD", hold)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loading\n"
        child.send_signal(signal.SIGHUP)  # to look for changed models
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=20) == ("", "")
    assert child.returncode == code


WORKER = """
import os, pathlib, pickle, signal, sys, time
pickle.load(sys.stdin.buffer)
folder, _, status, _ = pickle.load(sys.stdin.buffer)
signal.signal(signal.SIGHUP, lambda *_: (folder / "reloaded").touch())
while not (folder / "loaded").exists():
    time.sleep(0.01)
os.write(status, b'["ready", ""]\\n')
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no workers")
def test_several_workers_are_refused_where_they_cannot_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    with monkeypatch.context() as windows:
        windows.delattr(socket, "SO_REUSEPORT")
        windows.setattr(os, "name", "nt")
        with pytest.raises(UsageError, match="Several workers need Linux or macOS: leave --workers out"):
            server.serve("cats", port=0, max_bytes=1, on_start=print, workers=2)


def test_a_worker_that_is_starting_looks_for_changed_models_once_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have read the old ones."""
    monkeypatch.setattr(workers, "CHILD_CODE", WORKER)

    def look_and_find_it_ready() -> bool:
        worker.look()
        return worker.is_ready

    with listening.Listener() as listener:
        listener.bind(("127.0.0.1", 0))
        settings: Any = tmp_path  # the place of the files of the test
        worker = workers._Worker(1, settings, listener, 1, str(tmp_path), print)
        try:
            worker.reload()
            (tmp_path / "loaded").touch()
            wait_until(look_and_find_it_ready)
            wait_until((tmp_path / "reloaded").exists)
            (tmp_path / "reloaded").unlink()
            worker.reload()
            wait_until((tmp_path / "reloaded").exists)
        finally:
            worker.kill()
