"""Whole runs on two hosts, which are processes of this machine with their own folders; on JAX."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from multi_device import free_address
from sightline import backend
from sightline.config import RunConfig
from sightline.distributed.cluster import ClusterSpec, connect, resolve_cluster
from sightline.errors import UsageError
from sightline.runs.host_session import HostSession
from synthetic_images import ImageFolder
from waiting import wait_until

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
TRAIN = (
    *("--recipe", "quick", "--model", "fashion-cnn", "--epochs", "12", "--out", "r", "--format", "json"),
    *("--set", "train.batch_size=8", "--set", "train.track=[]", "--set", "augment.horizontal_flip=true"),
)


class Host:
    """One `sightline` command in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.errors = folder / "errors.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sightline", *arguments],
                cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def end(self) -> tuple[int, str, str]:
        out, _ = self.process.communicate(timeout=400)
        return self.process.returncode, out, self.errors.read_text(encoding="utf-8")


def start_both_hosts(folder: Path, *arguments: str, data: tuple[Path, ...] = ()) -> list[Host]:
    address = free_address()
    hosts = []
    for rank in (0, 1):
        sources = [str(data[rank])] if data else []
        options = ["--hosts", "2", "--coordinator", address, "--rank", str(rank)]
        hosts.append(Host(folder / str(rank), arguments[0], *sources, *arguments[1:], *options))
    return hosts


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: any(run.glob("checkpoints/*.npz")) or process.poll() is not None, 300)
    assert process.poll() is None, "it ended before"


@needs_jax
@pytest.mark.installed
@pytest.mark.slow
def test_two_hosts_stopped_and_resumed_end_with_the_weights_of_one_go(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    data = image_folder({"cat": 40, "dog": 40})
    code, out, errors = Host(tmp_path / "alone", "train", str(data), *TRAIN, KERAS_BACKEND="jax").end()
    assert code == 0, errors
    alone = json.loads(out)

    whole = [host.end() for host in start_both_hosts(tmp_path, "train", *TRAIN, data=(data, data))]
    assert [code for code, *_ in whole] == [0, 0], whole
    first, second = (json.loads(out) for _, out, _ in whole)
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["test"]["loss"] == pytest.approx(alone["test"]["loss"], abs=1e-3)
    assert (tmp_path / "0/r/bundle/manifest.json").is_file()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["errors.txt"]  # host 1 writes nothing

    stopped = (*TRAIN, "--out", "stopped", "--set", "train.checkpoint_steps=1")
    pair = start_both_hosts(tmp_path, "train", *stopped, data=(data, data))
    wait_for_checkpoint(tmp_path / "0/stopped", pair[0].process)
    pair[1].process.send_signal(signal.SIGTERM)  # one of them is asked, both stop
    ended = [host.end() for host in pair]
    assert [code for code, *_ in ended] == [130, 130], ended

    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    resumed = []
    for rank in (0, 1):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        resumed.append(
            Host(tmp_path / str(rank), "resume", "stopped", "--hosts", "auto", "--format", "json", **job, **own)
        )
    results = [host.end() for host in resumed]
    assert [code for code, *_ in results] == [0, 0], results
    assert json.loads(results[0][1])["weights_sha256"] == first["weights_sha256"]


@needs_jax
@pytest.mark.installed
@pytest.mark.slow
def test_hosts_with_other_images_all_end_with_a_sentence(image_folder: ImageFolder, tmp_path: Path) -> None:
    one, other = image_folder({"cat": 12, "dog": 12}), image_folder({"cat": 12, "dog": 13})
    for code, _, errors in [host.end() for host in start_both_hosts(tmp_path, "train", *TRAIN, data=(one, other))]:
        assert code == 2
        assert "error: The images of host 1 (25) and host 0 (24) differ in content, label, split or order: " in errors
        assert "Traceback" not in errors
    assert not (tmp_path / "0/r").exists()


@needs_jax
@pytest.mark.installed
@pytest.mark.slow
def test_an_error_on_one_host_is_reported_to_the_other(image_folder: ImageFolder, tmp_path: Path) -> None:
    one = image_folder({"cat": 12, "dog": 12})
    (code, _, errors), (other_code, _, others) = (
        host.end() for host in start_both_hosts(tmp_path, "train", *TRAIN, data=(one, tmp_path / "nowhere"))
    )
    assert (code, other_code) == (2, 2)
    assert "error: Host 1: " in errors
    assert "nowhere" in errors
    assert "nowhere" in others


@needs_jax
@pytest.mark.installed
@pytest.mark.slow
def test_a_host_that_is_killed_ends_the_other(image_folder: ImageFolder, tmp_path: Path) -> None:
    data = image_folder({"cat": 40, "dog": 40})
    long = [*TRAIN, "--set", "train.epochs=2000"]
    pair = start_both_hosts(tmp_path, "train", *long, data=(data, data))
    wait_for_checkpoint(tmp_path / "0/r", pair[0].process)
    pair[1].process.kill()
    code, _, errors = pair[0].end()
    assert code == 2, errors
    assert "Traceback" not in errors
    assert "Another host ended or cannot be reached" in errors
    assert any((tmp_path / "0/r/checkpoints").glob("*.npz"))
    pair[1].end()


@needs_jax
@pytest.mark.installed
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_host_that_waits_for_the_others_can_be_stopped(
    number: signal.Signals, image_folder: ImageFolder, tmp_path: Path
) -> None:
    address = free_address()
    name, _, port = address.partition(":")
    options = ("--hosts", "2", "--coordinator", address, "--rank", "0")
    host = Host(tmp_path / "0", "train", str(image_folder({"cat": 8, "dog": 8})), *TRAIN, *options)

    def is_waiting() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((name, int(port))):
            return True
        return host.process.poll() is not None

    wait_until(is_waiting, 300)
    host.process.send_signal(number)
    assert host.end()[0] == -number, "it does not wait until the connection fails"


def test_several_hosts_without_jax_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "name", lambda: "tensorflow")
    with pytest.raises(UsageError, match="only on JAX, not on tensorflow"):
        connect(ClusterSpec("127.0.0.1:1", 2, 0))


def test_what_the_options_say() -> None:
    assert resolve_cluster(None, None, None, {}) is None
    assert resolve_cluster("1", None, None, {}) is None
    assert resolve_cluster("auto", None, None, {}) == ClusterSpec()  # JAX looks at the cluster's launcher
    assert resolve_cluster("4", "node0:1234", 3, {}) == ClusterSpec("node0:1234", 4, 3)


@pytest.mark.parametrize(
    ("hosts", "coordinator", "rank"),
    [
        ("2", None, 0),
        ("2", "node0", 0),
        ("2", "node0:1", 2),
        ("2", "node0:1", None),
        ("0", None, None),
        (None, None, 1),
    ],
)
def test_options_that_do_not_belong_together(hosts: str | None, coordinator: str | None, rank: int | None) -> None:
    with pytest.raises(UsageError, match="expected --hosts N --coordinator ADDRESS:PORT --rank R"):
        resolve_cluster(hosts, coordinator, rank, {})


def test_hosts_alone_says_what_else_is_needed() -> None:
    with pytest.raises(UsageError, match="--hosts 2 needs --coordinator and --rank too: expected"):
        resolve_cluster("2", None, None, {})


def test_the_variables_of_a_cluster() -> None:
    keras = {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": "10.0.0.1:1234,10.0.0.2:1234",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": "1",
    }
    assert resolve_cluster(None, None, None, keras) == ClusterSpec("10.0.0.1:1234,10.0.0.2:1234", 2, 1)
    kubernetes = {"COORDINATOR_ADDRESS": "job-0", "COORDINATOR_PORT": "1234", "NUM_PROCESSES": "4", "PROCESS_ID": "0"}
    assert resolve_cluster("auto", None, None, kubernetes) == ClusterSpec("job-0:1234", 4, 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status")
def test_only_regular_files_are_sent() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        HostSession().send_settings(RunConfig(), {}, Path("/proc/self/status"))
