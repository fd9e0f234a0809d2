"""Trainings of the studio: processes of their own, which a page starts, follows, stops and resumes."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from new_runs import create_run
from sightline import Dataset
from sightline.errors import SightlineError, UsageError
from sightline.runs.directory import RunDirectory
from sightline.studio.contents import Studio, open_studio
from sightline.studio.training import MAX_STREAMS, read_sweep
from sightline.studio.training_runs import FOLDER, TrainingChoice, TrainingRuns
from studio_client import load_page
from studio_server import serve
from waiting import wait_until

pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")


@pytest.fixture
def runs(tmp_path: Path) -> TrainingRuns:
    return TrainingRuns(tmp_path / "runs", None, "photos")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of the command lines that are started; in place of each training, a process waits for its input."""
    words: list[list[str]] = []
    start = subprocess.Popen

    def replace_training(command: list[str], **options: Any) -> Any:
        words.append(command[4:])
        return start([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(subprocess, "Popen", replace_training)
    return words


@pytest.fixture
def client(colors: Path, patch: Path, tmp_path: Path) -> Iterator[Any]:
    """A page of a studio of images that trains into ``runs``."""
    from sightline.studio.app import create_app

    with (
        open_studio(Dataset(colors), patch, runs=tmp_path / "runs") as studio,
        testclient.TestClient(create_app(studio), "http://127.0.0.1:8000") as opened,
    ):
        token = re.search(r'name="csrf-token" content="([^"]+)"', opened.get("/train").text)
        assert token
        opened.headers["X-CSRF-Token"] = token[1]
        yield opened


def read_events(text: str) -> list[tuple[str, Any]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def add_run(folder: Path, status: str, **facts: Any) -> RunDirectory:
    run = create_run(folder, request={}, **facts)
    run.update(status=status)
    return run


def test_a_training_uses_the_images_and_corrections_of_the_studio(
    client: Any, colors: Path, patch: Path, tmp_path: Path, started: list[list[str]]
) -> None:
    client.post("/corrections", json={"ids": [0], "edit": "drop"})
    choice = {"data": "", "recipe": "transfer", "effort": "fast", "time_limit": "10m", "epochs": 3}
    response = client.post("/train/start", json=choice)
    assert response.json() == {"run": "transfer-colors-1"}
    assert started == [[
        "train", "--recipe=transfer", "--effort=fast", "--time-limit=10m", "--epochs=3", f"--patch={patch}",
        f"--out={tmp_path / 'runs' / 'transfer-colors-1'}", "--", str(colors),
    ]]  # fmt: skip
    assert client.get("/train/runs").json() == [{"name": "transfer-colors-1", "status": "starting"}]
    refused = client.post("/train/start", json=choice)
    assert refused.status_code == 400
    assert "transfer-colors-1 is still training" in refused.json()["error"]
    assert client.post("/train/stop", json={"run": "transfer-colors-1"}).status_code == 200
    wait_until(lambda: client.get("/train/runs").json()[0]["status"] == "failed")


@pytest.mark.parametrize("linked", ["log", "lock", "folder"])
def test_a_run_from_elsewhere_makes_the_studio_write_nothing_through_links(
    linked: str, runs: TrainingRuns, started: list[list[str]], tmp_path: Path
) -> None:
    add_run(runs.folder / "a", "interrupted")
    place, victim = runs.folder / FOLDER, tmp_path / "victim"
    victim.mkdir()
    (victim / "a.log").write_text("precious")
    if linked == "folder":
        place.symlink_to(victim)
    else:
        place.mkdir()
        (place / f"a.{linked}").symlink_to(victim / "a.log")
    with pytest.raises(SightlineError):  # a lock that cannot be opened is held by another process
        runs.resume("a")
    assert (victim / "a.log").read_text() == "precious"
    assert [path.name for path in victim.iterdir()] == ["a.log"]
    assert started == []


def test_a_file_in_place_of_a_lock_keeps_its_content(
    runs: TrainingRuns, started: list[list[str]], tmp_path: Path
) -> None:
    add_run(runs.folder / "a", "interrupted")
    lock = runs.folder / FOLDER / "a.lock"
    lock.parent.mkdir()
    lock.write_text("precious")
    with pytest.raises(SightlineError, match=r"a\.lock is not a lock file, so it was left unchanged"):
        runs.resume("a")
    assert lock.read_text() == "precious"
    assert started == []
    lock.write_text("123 elsewhere")  # of a training that has ended
    runs.resume("a")
    assert len(started) == 1
    runs.stop("a")


def test_a_run_trains_on_its_own_images_and_split(run: sl.Run, run_studio: Studio) -> None:
    assert run_studio.training is not None
    assert run_studio.training.folder == run.path.parent
    own = run_studio.training.own
    assert own is not None
    assert (own.sources, own.settings) == (run.config.data.sources, ("seed=1",))
    assert run_studio.training.list_runs() == [{"name": "a", "status": "complete"}]


def test_other_images_are_those_of_a_run_or_have_a_name(
    run: sl.Run, client: Any, tmp_path: Path, started: list[list[str]]
) -> None:
    shutil.copytree(run.path, tmp_path / "runs" / "a&b")
    page = client.get("/train").text
    assert 'value="run:a&amp;b"' in page
    assert "<option>digits</option>" in page
    assert client.post("/train/start", json={"data": "run:a&b", "recipe": "quick"}).json() == {"run": "quick-colors-1"}
    options = ["train", "--recipe=quick", "--set=seed=1", f"--out={tmp_path / 'runs' / 'quick-colors-1'}"]
    assert started == [[*options, "--", *run.config.data.sources]]
    client.post("/train/stop", json={"run": "quick-colors-1"})
    wait_until(lambda: client.get("/train/runs").json()[0]["status"] == "failed")
    assert client.post("/train/start", json={"data": "digits", "recipe": "quick"}).json() == {"run": "quick-digits-1"}
    assert started[1][-2:] == ["--", "digits"]
    client.post("/train/stop", json={"run": "quick-digits-1"})


def test_images_in_memory_are_not_chosen_for_a_training(patch: Path, tmp_path: Path) -> None:
    from sightline.studio.app import create_app

    data = Dataset.from_arrays(np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2)
    with (
        open_studio(data, patch, runs=tmp_path / "runs") as studio,
        testclient.TestClient(create_app(studio), "http://127.0.0.1:8000") as opened,
    ):
        page = opened.get("/train").text
        assert re.search(r'<select name="data"[^>]* required>\s*<option value="">choose</option>', page)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"data": "/"}, "There are no images '/' to choose"),
        ({"data": "--force"}, "There are no images '--force' to choose"),
        ({"data": "run:../outside"}, "There is no run '../outside'"),
        ({"data": "run:"}, "There is no run ''"),
        ({"recipe": "quik"}, "There is no recipe 'quik'"),
        ({"time_limit": "10 apples"}, "expected a duration"),
        ({"recipe": "quick", "effort": "fast"}, "trains in one way only"),
        ({"recipe": 3}, "Expected the keys"),
        ({"epochs": 0}, "Expected the keys"),
        ({"out": "elsewhere"}, "Expected the keys"),
    ],
)
def test_a_choice_that_cannot_be_trained_is_refused_before_it_starts(
    client: Any, tmp_path: Path, choice: dict[str, Any], words: str
) -> None:
    response = client.post("/train/start", json=choice)
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", ["/train/start", "/train/stop", "/train/resume"])
def test_another_page_starts_and_stops_nothing(client: Any, tmp_path: Path, path: str) -> None:
    for headers in ({"X-CSRF-Token": ""}, {"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert client.post(path, json={"run": "a", "recipe": "quick"}, headers=headers).status_code == 403
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["../outside", "", ".", "a/../../outside"])
def test_only_runs_of_the_folder_have_a_name(client: Any, tmp_path: Path, name: str) -> None:
    add_run(tmp_path / "outside", "interrupted")
    assert client.get("/train/events", params={"run": name}).status_code == 400
    for path in ("/train/stop", "/train/resume"):
        response = client.post(path, json={"run": name})
        assert response.status_code == 400
        assert "There is no run" in response.json()["error"]


def test_the_state_of_a_run_is_that_of_its_files(runs: TrainingRuns) -> None:
    add_run(runs.folder / "killed", "running")
    add_run(runs.folder / "stopped", "interrupted", message="Stopped.")
    add_run(runs.folder / "elsewhere", "running")
    (runs.folder / "damaged").mkdir()
    (runs.folder / "damaged" / "run.json").write_text("{")
    (runs.folder / ".studio").mkdir()
    (runs.folder / ".studio" / "refused.log").write_text("$ sightline train\nerror: No images.\n")
    with RunDirectory(runs.folder / "elsewhere").lock():
        states = {run["name"]: run["status"] for run in runs.list_runs()}
        with pytest.raises(UsageError, match="elsewhere was started elsewhere: stop it there"):
            runs.stop("elsewhere")
        with pytest.raises(UsageError, match="elsewhere is still training"):
            runs.resume("stopped")
    assert states == {
        "killed": "interrupted", "stopped": "interrupted", "elsewhere": "running", "damaged": "failed",
        "refused": "failed",
    }  # fmt: skip
    assert runs.describe("refused")["message"] == "No images."
    assert [runs.describe(name)["can_resume"] for name in ("killed", "refused")] == [True, False]
    with pytest.raises(UsageError, match="refused cannot be resumed"):
        runs.resume("refused")
    with pytest.raises(UsageError, match="killed is not training"):
        runs.stop("killed")


def test_the_page_opens_with_the_run_that_was_trained_or_opened_here(
    run: sl.Run, colors: Path, patch: Path, tmp_path: Path, started: list[list[str]]
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(run.path, folder / "opened")
    with open_studio(sl.Run(folder / "opened"), patch) as studio, load_page(studio, "/train") as client:
        add_run(folder / "newest", "complete")
        assert client.get("/train/runs").json()[0]["name"] == "newest"
        assert 'data-current="opened"' in client.get("/train").text
        name = client.post("/train/start", json={}).json()["run"]
        with open_studio(Dataset(colors), tmp_path / "other.jsonl", runs=folder) as other, load_page(other) as page:
            assert f'data-current="{name}"' in page.get("/train").text, "it trains, whichever studio started it"
        client.post("/train/stop", json={"run": name})
        wait_until(lambda: {"name": name, "status": "failed"} in client.get("/train/runs").json())
        add_run(folder / "other", "complete")
        assert f'data-current="{name}"' in client.get("/train").text
    with open_studio(sl.Run(folder / "opened"), patch, runs=tmp_path / "elsewhere") as studio:
        assert studio.training is not None
        assert studio.training.find_current() == ""


def test_a_process_of_another_machine_is_never_signaled(runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(runs.folder / "a", "running")
    (runs.folder / ".studio").mkdir()
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it signals a process"))
    with (runs.folder / ".studio" / "a.lock").open("w+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()} another-machine".encode())
        lock.flush()
        assert not runs.describe("a")["can_stop"]
        with pytest.raises(UsageError, match="a was started elsewhere"):
            runs.stop("a")


def test_the_log_is_read_on_by_whole_lines(runs: TrainingRuns) -> None:
    log = runs.folder / ".studio" / "a.log"
    log.parent.mkdir(parents=True)
    log.write_bytes("one\ntwö\nthr".encode())
    text, end = runs.read_log("a", 0)
    assert text == "one\ntwö\n"
    with log.open("ab") as file:
        file.write(b"ee\n")
    assert runs.read_log("a", end) == ("three\n", end + 6)
    assert runs.read_log("a", end + 100)[0] == "one\ntwö\nthree\n", "another log"


def test_images_in_memory_are_refused(runs: TrainingRuns) -> None:
    with pytest.raises(UsageError, match="in memory"):
        runs.start(TrainingChoice())


def test_a_complete_run_sends_its_epochs_once(run: sl.Run, run_client: Any) -> None:
    events = read_events(run_client.get("/train/events", params={"run": "a"}).text)
    ((kind, state),) = events
    assert (kind, state["status"], state["epochs"]) == ("state", "complete", 2)
    assert [epoch["loss"] for epoch in state["history"]] == [epoch.loss for epoch in run.history]
    assert run.test is not None
    assert (state["metrics"]["value"], state["metrics"]["split"]) == (pytest.approx(run.test.accuracy), "test")
    low, high = state["metrics"]["interval"]
    assert low < run.test.accuracy <= high


def test_a_complete_run_shows_the_epochs_that_it_trained(run: sl.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "runs" / "a")
    directory = RunDirectory(tmp_path / "runs" / "a")
    directory.write_config(replace(directory.config, train=replace(directory.config.train, epochs=9)))
    assert TrainingRuns(tmp_path / "runs", None, "photos").describe("a")["epochs"] == len(run.history)


def test_the_accuracy_of_a_run_with_folds_is_called_out_of_fold(run: sl.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "runs" / "a")
    directory = RunDirectory(tmp_path / "runs" / "a")
    result = directory.info["result"]
    directory.update(result=result | {"test": None})
    config = directory.config
    directory.write_config(replace(config, split=replace(config.split, folds=3)))
    described = TrainingRuns(tmp_path / "runs", None, "photos").describe("a")
    assert described["metrics"]["value"] == result["validation"]["accuracy"]
    assert described["metrics"]["split"] == "out-of-fold"


def test_beyond_the_limit_of_streams_a_page_gets_the_state_and_asks_again_later(
    colors: Path, patch: Path, tmp_path: Path
) -> None:
    add_run(tmp_path / "runs" / "a", "running")
    with (
        RunDirectory(tmp_path / "runs" / "a").lock(),
        open_studio(Dataset(colors), patch, runs=tmp_path / "runs") as studio,
        serve(studio) as address,
        contextlib.ExitStack() as stack,
    ):
        connections: list[http.client.HTTPConnection] = []

        def follow() -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
            connections.append(stack.enter_context(contextlib.closing(connection)))
            connection.request("GET", "/train/events?run=a")
            return connection.getresponse()

        streams = [follow() for _ in range(MAX_STREAMS)]
        assert {stream.readline() for stream in streams} == {b"retry: 500\n"}
        last = follow().read().decode()
        assert last.startswith("retry: 5000\n")
        ((kind, state),) = read_events(last)
        assert (kind, state["status"]) == ("state", "running")
        streams[0].close()
        connections[0].close()
        wait_until(lambda: follow().readline() == b"retry: 500\n", 10)


def test_a_sweep_is_a_table_of_its_trials(client: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "lr<b>"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    header = "trial,state,val_accuracy,low,high,train.epochs,seed,model.name,accuracy,loss"
    rows = "3,complete,0.9,0.8,0.95,2,1,<i>,0.9,0.123456\n1,complete,0.8,0.7,0.9,4,1,b,0.8,0.2\n2,failed,,,,9,2,b,,\n"
    (folder / "results.csv").write_text(f"{header}\n{rows}", encoding="utf-8")
    assert read_sweep(folder)["axes"] == [5, 7, 2], "what differs between trials with a metric, and then the metric"
    page = client.get("/train", params={"sweep": "lr<b>"}).text
    assert "<td>&lt;i&gt;</td>" in page
    assert "<td>0.1235</td>" in page
    assert page.count("<tr><td>") == 3
    assert client.get("/train", params={"sweep": "../colors"}).status_code == 404


@pytest.mark.slow
def test_a_training_outlives_the_studio_stops_and_resumes(colors: Path, patch: Path, tmp_path: Path) -> None:
    def open_runs() -> Any:
        return open_studio(Dataset(colors), patch, runs=tmp_path / "runs")

    with open_runs() as studio:
        name = studio.training.start(TrainingChoice(recipe="quick", epochs=400))
        wait_until(lambda: studio.training.describe(name)["status"] == "running")
    with open_runs() as studio:
        runs = studio.training
        wait_until(lambda: len(runs.describe(name)["history"]) > 2)
        assert runs.describe(name)["can_stop"]
        runs.stop(name)
        wait_until(lambda: runs.describe(name)["status"] == "interrupted")
        state = runs.describe(name)
        assert state["can_resume"]
        assert "sightline resume" in state["message"]
        assert "epoch 1  loss" in runs.read_log(name, 0)[0]
        runs.resume(name)
        wait_until(lambda: len(runs.describe(name)["history"]) > len(state["history"]))
        assert runs.describe(name)["history"][: len(state["history"])] == state["history"], "it goes on"
        runs.stop(name)
        wait_until(lambda: runs.describe(name)["status"] == "interrupted")
        with pytest.raises(SightlineError):
            runs.start(TrainingChoice(data=str(colors)))
