"""Distributed training on several hosts: find them, connect them and exchange data among them.

Keras connects them (``keras.distribution.initialize``), on JAX only; JAX itself detects SLURM, Open MPI, Kubernetes and
Cloud TPU. A host is a process: a machine with eight GPUs may run one process for all of them, or one for each.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.errors import HostError, UsageError, first_line, suggest_install

AGREEMENT_INTERVAL = 0.5  # seconds between two agreements of all hosts on whether to stop
BROADCAST_CHUNK = 1 << 28  # bytes per broadcast
ENVIRONMENT_VARIABLES = (  # address, number of processes, own process number; used for nothing else
    ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID"),
    ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"),  # as set by a Kubernetes JAXJob
)
USAGE_HINT = (
    "expected --hosts N --coordinator ADDRESS:PORT --rank R (from 0), or --hosts auto under a cluster's launcher"
)


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A group of `count` processes that connect at `address`, host 0's ``NAME:PORT``; this process is number `rank`.

    Fields that are None come from environment variables set by the cluster's launcher.
    """

    address: str | None = None
    count: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """The connected processes, as seen by the process with this `rank`."""

    rank: int = 0
    count: int = 1

    def gather(self, text: str) -> list[str]:
        """Return the texts passed by all hosts, ordered by rank; every host must call this."""
        if self.count == 1:
            return [text]
        own = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
        sizes = _gather_arrays(np.array([len(own)], np.int32))[:, 0]
        rows = _gather_arrays(np.pad(own, (0, int(sizes.max()) - len(own))))
        return [
            row[:size].tobytes().decode(errors="surrogateescape")
            for row, size in zip(rows, sizes.tolist(), strict=True)
        ]

    def broadcast(self, content: bytes) -> bytes:
        """Return the content passed by host 0; every host must call this."""
        if self.count == 1:
            return content
        size = int(self.gather(str(len(content)))[0])
        return broadcast_array(np.frombuffer(content if self.rank == 0 else bytes(size), np.uint8)).tobytes()

    def disconnect(self) -> None:
        """Disconnect from the other hosts, which must do so too; afterwards this process runs on its own."""
        if self.count > 1 and is_connected():
            import jax

            jax.distributed.shutdown()


SINGLE_HOST = Cluster()


def resolve_cluster(
    hosts: str | None, coordinator: str | None, rank: int | None, environment: Mapping[str, str]
) -> ClusterSpec | None:
    """Return the hosts given by the options, or else by environment variables; None if this process trains alone.

    `hosts` is a number or ``auto``. Raises `UsageError` for inconsistent options.

    >>> resolve_cluster("2", "10.0.0.1:1234", 1, {})
    ClusterSpec(address='10.0.0.1:1234', count=2, rank=1)
    """
    if hosts is None:
        if coordinator is not None or rank is not None:
            raise UsageError(f"--coordinator and --rank need --hosts: {USAGE_HINT}.")
        return _cluster_from_environment(environment)
    if hosts == "auto":
        return _cluster_from_environment(environment) or ClusterSpec(coordinator, None, rank)
    if not hosts.isdecimal() or int(hosts) < 1:
        raise UsageError(f"--hosts cannot be {hosts!r}: {USAGE_HINT}.")
    count = int(hosts)
    if count == 1:
        return None
    if coordinator is None or rank is None:
        raise UsageError(f"--hosts {count} needs --coordinator and --rank too: {USAGE_HINT}.")
    if ":" not in coordinator or not 0 <= rank < count:
        raise UsageError(f"Invalid --rank {rank} or --coordinator {coordinator} for --hosts {count}: {USAGE_HINT}.")
    return ClusterSpec(coordinator, count, rank)


def _cluster_from_environment(environment: Mapping[str, str]) -> ClusterSpec | None:
    for names in ENVIRONMENT_VARIABLES:
        address, count, rank = (environment.get(name, "") for name in names)
        if address and count.isdecimal() and rank.isdecimal():
            port = environment.get(names[0].replace("ADDRESS", "PORT"), "")
            return ClusterSpec(f"{address}:{port}" if port and ":" not in address else address, int(count), int(rank))
    return None


def connect(hosts: ClusterSpec) -> Cluster:
    """Wait for all hosts and return the cluster; call it once per process, before the backend (JAX) runs anything.

    Raises `HostError` if the hosts cannot be connected, `UsageError` if these options can never work.
    """
    if backend.name() != "jax":
        raise UsageError(
            f"Several hosts can train together only on JAX, not on {backend.name()}: Keras supports no other "
            f"backend for this. Use --set device.backend=jax; to install it, {suggest_install('train,jax')}."
        )
    keras = backend.keras()
    keras.utils.set_random_seed(0)  # otherwise Keras agrees on a seed in a collective operation
    import jax

    try:
        with _redirect_stdout_to_stderr():
            keras.distribution.initialize(hosts.address, hosts.count, hosts.rank)
            cluster = Cluster(jax.process_index(), jax.process_count())
            cluster.gather("")  # tests the connection
            return cluster
    except RuntimeError as error:
        raise HostError(
            f"The hosts could not connect ({first_line(error)}): see the output of the others, then start all again."
        ) from error
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"The hosts could not connect ({first_line(error)}): {USAGE_HINT}, the same on every host."
        ) from error


@contextmanager
def _redirect_stdout_to_stderr() -> Iterator[None]:
    """Redirect the standard output of native code to standard error: gloo prints a message when it is connected."""
    sys.stdout.flush()
    saved_descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        if sys.platform != "win32":
            ctypes.CDLL(None).fflush(None)  # C's own buffer
        os.dup2(saved_descriptor, 1)
        os.close(saved_descriptor)


def is_connected() -> bool:
    """Return whether this process is connected to others; imports nothing."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def is_host_lost(error: BaseException) -> bool:
    """Return whether JAX raised `error`, of whatever class, because another host was lost."""
    signatures = (
        "gloo ",
        "nccl",
        "connection reset",
        "connection closed",
        "coordination service",
        "heartbeat",
        "unavailable:",
    )
    return is_connected() and any(sign in str(error).lower() for sign in signatures)


def broadcast_array(values: NDArray[Any]) -> NDArray[Any]:
    """Return host 0's `values`; every host must call this, with an array of the same shape and dtype."""
    if not is_connected():
        return values
    from jax.experimental import multihost_utils

    content = np.frombuffer(values.tobytes(), np.uint8)  # JAX would turn float64 into float32
    chunks = [
        np.asarray(multihost_utils.broadcast_one_to_all(content[start : start + BROADCAST_CHUNK]))
        for start in range(0, len(content), BROADCAST_CHUNK)
    ]
    return np.frombuffer(b"".join(chunk.tobytes() for chunk in chunks), values.dtype).reshape(values.shape)


def _gather_arrays(values: NDArray[Any]) -> NDArray[Any]:
    """Return the `values` [...] of all hosts, which have the same shape: [hosts, ...]."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def make_any_host() -> Callable[[bool], bool]:
    """Return a function that returns, on all hosts, whether any host passed True.

    All hosts must call it the same number of times. They actually communicate only about every half second, because
    they agree on how many calls to skip.
    """
    if not is_connected():
        return bool
    skip, calls, last_time = 0, 0, time.monotonic()

    def any_host(wants_stop: bool, /) -> bool:  # noqa: FBT001  # its only argument
        nonlocal skip, calls, last_time
        calls += 1
        if calls <= skip:
            return False
        now = time.monotonic()
        gathered = _gather_arrays(np.array([wants_stop, (now - last_time) / calls], np.float32))
        skip, calls, last_time = math.floor(AGREEMENT_INTERVAL / max(float(gathered[:, 1].max()), 1e-4)), 0, now
        return bool(gathered[:, 0].any())

    return any_host
