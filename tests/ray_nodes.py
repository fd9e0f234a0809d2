"""A Ray cluster of several nodes on this machine, for tests that are marked `ray`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def start_nodes(*num_cpus: int) -> Iterator[Any]:
    """Start a cluster with a node for each of `num_cpus`, and yield it; `address` is where it listens.

    Its processes inherit the environment of this one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 200 << 20}
    cluster = Cluster(True, head_node_args={"num_cpus": num_cpus[0], "include_dashboard": False, **memory})
    try:
        for count in num_cpus[1:]:
            cluster.add_node(num_cpus=count, **memory)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def list_workers(actor: str = "TrainingWorker") -> list[int]:
    """Return the PIDs of the processes in this process's cluster that run an actor of this class."""
    parents, commands = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # raised if the process has ended in the meantime
            pid = int(status.parent.name)
            parents[pid] = int(status.read_text().rpartition(")")[2].split()[1])
            commands[pid] = status.with_name("cmdline").read_bytes()

    def is_own(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid, command in commands.items() if is_own(pid) and command.startswith(f"ray::{actor}".encode())]
