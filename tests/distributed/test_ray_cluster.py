from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_nodes import start_nodes
from sightline import process
from sightline.distributed import ray_cluster
from sightline.errors import HostError, MissingExtraError, UsageError

try:
    import ray
except ImportError:
    ray = None

on_ray = [pytest.mark.ray, pytest.mark.skipif(ray is None, reason="Ray is not installed: make test-ray")]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r'^The engine ray needs the package \'ray\'.*"\.\[ray\]"'),
        ray_cluster.connect(),
    ):
        pass


class TestWithoutACluster:
    pytestmark = on_ray

    @pytest.mark.parametrize(
        "address", [
            "somewhere", "ray://10.0.0.1:10001", "host:port", "host:99999", ":6379", "host:" + "9" * 5000, "a\0b:1",
        ]
    )  # fmt: skip
    def test_other_addresses_are_refused(self, address: str) -> None:
        with pytest.raises(UsageError, match="is HOST:PORT"), ray_cluster.connect(address):
            pass

    def test_ray_that_does_not_start_in_time_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def time_out(**_options: Any) -> None:  # as on a machine whose cores are busy
            raise Exception("The current node timed out during startup.")  # noqa: TRY002  # as Ray does

        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(ray, "init", time_out)
        expected = "^Ray cannot be started on this machine: The current node timed out during startup"
        with pytest.raises(HostError, match=expected), ray_cluster.connect():
            pass

    def test_an_address_where_nothing_listens_is_an_error_at_once(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
            with (
                pytest.raises(HostError, match=f"no Ray cluster at {address} .*ray start"),
                ray_cluster.connect(address),
            ):
                pass

    @pytest.mark.parametrize("host", ["a" * 300, ".."])
    def test_a_malformed_host_is_an_error(self, host: str) -> None:
        with pytest.raises(HostError, match="that is not a host name"), ray_cluster.connect(f"{host}:6379"):
            pass

    @pytest.mark.parametrize("by_variable", [False, True])
    def test_an_address_where_something_else_listens_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, by_variable: bool
    ) -> None:
        monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 1.0)
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            if by_variable:
                monkeypatch.setenv("RAY_ADDRESS", address)
            advice = "unset RAY_ADDRESS" if by_variable else "leave out the address"
            with (
                pytest.raises(HostError, match=f"no Ray cluster at {address} .* is something else.*{advice}"),
                ray_cluster.connect(None if by_variable else address),
            ):
                pass


@pytest.mark.slow
class TestLocalCluster:
    pytestmark = on_ray

    @pytest.fixture
    def connected(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with ray_cluster.connect() as module:
            yield module

    def test_it_is_private_and_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has no page and sends nothing, the process keeps its signals, and nothing is left afterwards."""
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        handler = signal.getsignal(signal.SIGTERM)
        with ray_cluster.connect() as module:
            assert signal.getsignal(signal.SIGTERM) is handler
            session = module.get_runtime_context().get_session_name()
            processes = list_processes(session)
            assert any("gcs_server" in command for _, command in processes)
            for number, _ in processes:
                environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
                assert b"RAY_USAGE_STATS_ENABLED=0" in environment
            assert not any("dashboard.py" in c and "--disable-frontend" not in c for _, c in processes)
            assert module.cluster_resources()["CPU"] == process.count_cores()
        assert not module.is_initialized()
        assert not any("gcs_server" in command or "raylet" in command for _, command in list_processes(session))

    def test_a_connected_process_keeps_its_connection(self, connected: Any) -> None:
        with ray_cluster.connect() as module:
            assert module is connected
        assert connected.is_initialized()
        with pytest.raises(UsageError, match="leave out the address"), ray_cluster.connect("auto"):
            pass


@pytest.mark.slow
class TestExistingCluster:
    pytestmark = on_ray

    @pytest.mark.parametrize("by_variable", [False, True])
    def test_it_is_used_and_left_running(self, monkeypatch: pytest.MonkeyPatch, by_variable: bool) -> None:
        with start_nodes(1, 1) as cluster:
            if by_variable:
                monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            for _ in range(2):
                with ray_cluster.connect(None if by_variable else cluster.address) as module:
                    assert len(module.nodes()) == 2


def list_processes(session: str) -> list[tuple[int, str]]:
    """Return the processes of this user whose command line names a Ray session."""
    processes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                command = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if session in command:
                processes.append((int(folder.name), command))
    return processes
