"""Training on a Ray cluster of this machine: the weights of hosts that are started by hand, also if one is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from multi_device import free_address
from new_runs import create_run
from ray_nodes import list_workers, start_nodes
from sightline import Callback, UsageError
from sightline.api import ray_training
from sightline.api.ray_options import RayOptions, resolve_engine
from sightline.callbacks import EpochRecord
from sightline.errors import Interrupted
from synthetic_images import draw_classes
from waiting import wait_until

needs_ray = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray"),
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed"),
]
SETTINGS: dict[str, Any] = {
    "recipe": "quick", "model": "fashion-cnn", "epochs": 6,
    "set": ["train.batch_size=8", "train.track=[]", "augment.horizontal_flip=true", "train.checkpoint_steps=1"],
}  # fmt: skip
OPTIONS = (
    *("--recipe", "quick", "--model", "fashion-cnn", "--epochs", "6", "--format", "json"),
    *(f"--set={assignment}" for assignment in SETTINGS["set"]),
)


def test_options_of_the_engine() -> None:
    assert resolve_engine("local", num_workers=None, cpus_per_worker=None, ray_address=None) is None
    ray = resolve_engine("ray", num_workers=3, cpus_per_worker=None, ray_address="auto", devices=2)
    assert ray == RayOptions(3, "auto", 1, 2)


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("rey", {}, "There is no engine 'rey'. Did you mean 'ray'?"),
        ("local", {"num_workers": 2}, "--num-workers cannot be combined with --engine local: add --engine ray."),
        ("local", {"ray_address": "auto"}, "--ray-address cannot be combined with --engine local"),
        ("ray", {"num_workers": 0}, "--num-workers cannot be 0"),
        ("ray", {"hosts": 2}, "--hosts cannot be combined with --engine ray: leave it out: Ray places the hosts."),
        ("ray", {"rank": 0}, "--rank cannot be combined with --engine ray"),
    ],
)
def test_options_that_do_not_go_together(engine: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        sl.train(tmp_path, engine=engine, out=tmp_path / "run", **options)
    assert message in caught.value.message
    assert not (tmp_path / "run").exists()


def test_resume_refuses_to_have_no_workers(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    with pytest.raises(UsageError, match="`num_workers` cannot be 0"):
        sl.Run(run.path).resume(engine="ray", num_workers=0)


def test_a_worker_reserves_gpus_where_there_are_some() -> None:
    class Ray:
        def __init__(self, *gpus: int) -> None:
            self.gpus = gpus

        def nodes(self) -> list[dict[str, Any]]:
            return [{"Alive": True, "Resources": {"CPU": 8.0, **({"GPU": float(n)} if n else {})}} for n in self.gpus]

    options = RayOptions(2, cpus_per_worker=4)
    assert options.count_resources(Ray(0, 0)) == {"CPU": 4}
    assert options.count_resources(Ray(0, 8, 4)) == {"CPU": 4, "GPU": 1}
    assert replace(options, devices=0).count_resources(Ray(0, 8, 4)) == {"CPU": 4, "GPU": 4}


def start_command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sightline", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw_classes(folder, {"cat": 40, "dog": 40}, 16, "png")
    return folder


@pytest.fixture(scope="module")
def weights_of_hosts(tmp_path_factory: pytest.TempPathFactory, data: Path) -> str:
    """The hash of the weights that two hosts, started by hand, end with."""
    folder, address = tmp_path_factory.mktemp("hosts"), free_address()
    hosts = [
        start_command(
            folder, "train", str(data), *OPTIONS, "--out", "run",
            "--hosts", "2", "--coordinator", address, "--rank", str(rank),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [host.communicate(timeout=600) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    return str(json.loads(outputs[0][0])["weights_sha256"])


class Killer(Callback):
    """Kills one of the two workers without warning at the end of the third epoch."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.epochs: list[int] = []
        self.killed: list[int] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.epochs.append(record.epoch)
        if record.epoch == 3 and not self.killed:
            workers = list_workers()
            assert len(workers) == 2
            os.kill(workers[-1], signal.SIGKILL)
            self.killed = workers[-1:]


class TestOnACluster:
    pytestmark = needs_ray

    def test_a_worker_that_is_killed_is_replaced_and_the_weights_are_those_of_hosts(
        self, data: Path, weights_of_hosts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        killer = Killer()
        run = sl.train(data, **SETTINGS, out="run", engine="ray", num_workers=2, callback=killer)
        assert killer.killed
        assert any("was lost" in text and "from the last checkpoint" in text for text in killer.messages)
        assert killer.epochs[-1] == 6
        assert 1 not in killer.epochs[3:], "it went on from a checkpoint"
        assert run.result.weights_sha256 == weights_of_hosts
        assert run.directory.info["resumed"] == 1
        assert run.config.device.num_hosts == 2
        assert (tmp_path / "run/bundle/manifest.json").is_file()
        assert list_workers() == []

    def test_a_run_that_is_asked_to_stop_saves_its_state_and_is_resumed(
        self, data: Path, weights_of_hosts: str, tmp_path: Path
    ) -> None:
        engine = ("--engine", "ray", "--num-workers", "2")
        driver = start_command(tmp_path, "train", str(data), *OPTIONS, "--out", "run", *engine)
        run = tmp_path / "run"
        wait_until(lambda: any(run.glob("checkpoints/*.npz")) or driver.poll() is not None, 300)
        assert driver.poll() is None, driver.communicate()
        driver.send_signal(signal.SIGTERM)
        _, errors = driver.communicate(timeout=300)
        assert driver.returncode == 130, errors
        assert "`sightline resume run` continues from there. Add --engine ray --num-workers 2." in errors
        assert sl.Run(run).status == "interrupted"
        driver = start_command(tmp_path, "resume", "run", "--format", "json", "--engine", "ray")
        out, errors = driver.communicate(timeout=600)
        assert driver.returncode == 0, errors
        assert json.loads(out)["weights_sha256"] == weights_of_hosts

    def test_what_is_wrong_is_said_once_and_nothing_starts_again(self, tmp_path: Path) -> None:
        command = ("train", "nowhere/", *OPTIONS, "--out", "run", "--engine", "ray", "--num-workers")
        driver = start_command(tmp_path, *command, "1")
        _, errors = driver.communicate(timeout=300)
        assert driver.returncode == 2, errors
        assert "nowhere" in errors
        assert "again" not in errors
        assert "Traceback" not in errors
        driver = start_command(tmp_path, *command, "99")
        _, errors = driver.communicate(timeout=300)
        assert driver.returncode == 2, errors
        assert "The Ray cluster has no room for 99 workers with 1 CPU each" in errors
        assert list(tmp_path.iterdir()) == []

    def test_a_trial_that_waits_for_room_can_be_stopped(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_training, "GRACE_SECONDS", 1.0)
        killer = Killer()
        with start_nodes(1) as cluster:
            options = RayOptions(1, cluster.address, cpus_per_worker=2)
            with ray_training.open_trainer(options, str(data), killer) as trainer:
                assert killer.messages[-1].startswith("No node of the Ray cluster is large enough for a worker")
                trainer.stop.set()
                with pytest.raises(Interrupted):
                    trainer.train(str(data), callback=killer)
