"""Several hosts that train together: which they are, how they find each other, what they tell each other.

Keras starts them (``keras.distribution.initialize``), which it does on JAX alone; JAX itself finds its way in SLURM,
Open MPI, Kubernetes and Cloud TPU. A host is one process: on a machine with eight GPUs that may be one process for all,
or one for each.
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
from sightline.errors import UsageError

ASK = 0.5  # seconds between two times that all hosts ask each other whether to stop
AT_ONCE = 1 << 28  # bytes that go to all hosts in one piece
VARIABLES = (  # of an address, a number of processes and a process' own number; none of them is set by chance
    ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID"),
    ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"),  # as a Kubernetes JAXJob has them
)
EXPECTED = "expected --hosts N --coordinator ADDRESS:PORT --rank R (from 0), or --hosts auto under a cluster's launcher"


@dataclass(frozen=True, slots=True)
class Hosts:
    """`count` processes, this one number `rank`, that meet at `address` (host 0's ``NAME:PORT``).

    What is None is found in the variables of the cluster's launcher.
    """

    address: str | None = None
    count: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that train together, seen from the one with this `rank`."""

    rank: int = 0
    count: int = 1

    def gather(self, text: str) -> list[str]:
        """Return the text that each host hands in, in the order of their ranks; every host must call it."""
        if self.count == 1:
            return [text]
        own = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
        sizes = _gather(np.array([len(own)], np.int32))[:, 0]
        rows = _gather(np.pad(own, (0, int(sizes.max()) - len(own))))
        return [
            row[:size].tobytes().decode(errors="surrogateescape")
            for row, size in zip(rows, sizes.tolist(), strict=True)
        ]

    def broadcast(self, content: bytes) -> bytes:
        """Return what host 0 hands in; every host must call it."""
        if self.count == 1:
            return content
        size = int(self.gather(str(len(content)))[0])
        return first(np.frombuffer(content if self.rank == 0 else bytes(size), np.uint8)).tobytes()

    def leave(self) -> None:
        """Part from the others, who do so at the same time; what follows, this process computes alone."""
        if self.count > 1 and joined():
            import jax

            jax.distributed.shutdown()


ALONE = Team()


def wanted(
    hosts: str | None, coordinator: str | None, rank: int | None, environment: Mapping[str, str]
) -> Hosts | None:
    """Return the hosts that the options ask for, else those that the variables of `environment` name; None: no others.

    `hosts` is a number or ``auto``. Raises `UsageError` for options that do not belong together.

    >>> wanted("2", "10.0.0.1:1234", 1, {})
    Hosts(address='10.0.0.1:1234', count=2, rank=1)
    """
    if hosts is None:
        if coordinator is not None or rank is not None:
            raise UsageError(f"--coordinator and --rank go with --hosts: {EXPECTED}.")
        return _named(environment)
    if hosts == "auto":
        return _named(environment) or Hosts(coordinator, None, rank)
    if not hosts.isdecimal() or int(hosts) < 1:
        raise UsageError(f"--hosts cannot be {hosts!r}: {EXPECTED}.")
    count = int(hosts)
    if count == 1:
        return None
    if coordinator is None or ":" not in coordinator or rank is None or not 0 <= rank < count:
        raise UsageError(f"Host {rank} of {count} at {coordinator} cannot be: {EXPECTED}.")
    return Hosts(coordinator, count, rank)


def _named(environment: Mapping[str, str]) -> Hosts | None:
    for names in VARIABLES:
        address, count, rank = (environment.get(name, "") for name in names)
        if address and count.isdecimal() and rank.isdecimal():
            port = environment.get(names[0].replace("ADDRESS", "PORT"), "")
            return Hosts(f"{address}:{port}" if port and ":" not in address else address, int(count), int(rank))
    return None


def join(hosts: Hosts) -> Team:
    """Wait for all hosts and return the team; once in a process, before the backend, which must be JAX, computes.

    Raises `UsageError` where it cannot be done.
    """
    if backend.name() != "jax":
        raise UsageError(
            f"Several hosts can train together on JAX only, not on {backend.name()}: Keras starts them on no other "
            'backend. Install it (pip install "sightline[train,jax]") and use --set device.backend=jax.'
        )
    keras = backend.keras()
    keras.utils.set_random_seed(0)  # else Keras' own start spends a collective on agreeing on one
    import jax

    try:
        with _news_to_stderr():
            keras.distribution.initialize(hosts.address, hosts.count, hosts.rank)
            team = Team(jax.process_index(), jax.process_count())
            team.gather("")  # the first time they really speak to each other
            return team
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"The hosts did not find each other ({str(error).splitlines()[0]}): {EXPECTED}, the same on every host."
        ) from error


@contextmanager
def _news_to_stderr() -> Iterator[None]:
    """Let what native code prints go to standard error: gloo says on standard output that it is connected."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        if sys.platform != "win32":
            ctypes.CDLL(None).fflush(None)  # its buffer, which is not Python's
        os.dup2(kept, 1)
        os.close(kept)


def joined() -> bool:
    """Tell whether this process is one of several; imports nothing that is not in use."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def lost(error: BaseException) -> bool:
    """Tell whether JAX raised `error`, of whatever class, because another host is not there any more."""
    signs = (
        "gloo ",
        "nccl",
        "connection reset",
        "connection closed",
        "coordination service",
        "heartbeat",
        "unavailable:",
    )
    return joined() and any(sign in str(error).lower() for sign in signs)


def first(values: NDArray[Any]) -> NDArray[Any]:
    """Return host 0's `values`; every host must call it, with an array of the same shape and type."""
    if not joined():
        return values
    from jax.experimental import multihost_utils

    content = np.frombuffer(values.tobytes(), np.uint8)  # JAX would make float32 of float64
    parts = [
        np.asarray(multihost_utils.broadcast_one_to_all(content[start : start + AT_ONCE]))
        for start in range(0, len(content), AT_ONCE)
    ]
    return np.frombuffer(b"".join(part.tobytes() for part in parts), values.dtype).reshape(values.shape)


def _gather(values: NDArray[Any]) -> NDArray[Any]:
    """Return every host's `values` [...], which have one shape: [hosts, ...]."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def agreement() -> Callable[[bool], bool]:
    """Return a function that tells whether any host wants something, the same on all; each must call it as often.

    The hosts really ask each other only every half a second or so: how many calls to pass over they agree on.
    """
    if not joined():
        return bool
    skip, calls, since = 0, 0, time.monotonic()

    def any_host(wants: bool, /) -> bool:  # noqa: FBT001  # the one thing that it is told
        nonlocal skip, calls, since
        calls += 1
        if calls <= skip:
            return False
        now = time.monotonic()
        found = _gather(np.array([wants, (now - since) / calls], np.float32))
        skip, calls, since = math.floor(ASK / max(float(found[:, 1].max()), 1e-4)), 0, now
        return bool(found[:, 0].any())

    return any_host
