"""Connect to a Ray cluster, or start one on this machine, without telemetry or a dashboard and with our own signals."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sightline import process
from sightline._keras.imports import import_ray, suppress_stderr
from sightline.errors import HostError, UsageError, first_line, require

PURPOSE = "The engine ray"
CONNECT_SECONDS = 10.0
_ADDRESS = re.compile(r"(\[[\da-f:.]+\]|[\w.-]+):(\d{1,5})", re.ASCII | re.IGNORECASE)


def choose_address(address: str | None) -> str:
    """Return `address`, by default ``RAY_ADDRESS``; if neither is set, ``local``, which starts a new cluster."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def connect(address: str | None = None) -> Iterator[Any]:
    """Connect this process to the Ray cluster at `address` until the block ends, and return the module `ray`.

    `address` is ``HOST:PORT``, or ``auto`` for the cluster that runs on this machine. None uses ``RAY_ADDRESS``; if
    that is not set, a cluster of this machine's cores is started, and stopped at the end of the block. A process that
    is already connected stays connected, and `address` must then be None.

    Raises `HostError` if there is no cluster, `MissingExtraError` if Ray is not installed.
    """
    ray = import_ray(PURPOSE)
    if ray.is_initialized():
        if address is not None:
            raise UsageError(f"This process is connected to a Ray cluster already: leave out the address {address}.")
        yield ray
        return
    address = choose_address(address)
    _check_address(address)
    with _keep_sigterm():
        _start(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown(wait_for_processes=True)


def describe_error(error: BaseException) -> str:
    r"""Return why Ray failed: the last line of a message with another process's traceback, else the first line.

    >>> describe_error(RuntimeError('The actor died\n  File "a.py", line 1\nValueError: x.'))
    'ValueError: x'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    is_traceback = any(line.startswith('  File "') for line in lines)
    return (lines[-1] if is_traceback else first_line(error)).strip().rstrip(".")


def _start(ray: Any, address: str) -> None:
    is_local = address == "local"
    options = {"num_cpus": process.count_cores(), "include_dashboard": False} if is_local else {}
    try:
        with suppress_stderr() if process.is_claimed() else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises a plain Exception if it does not start in time on a busy machine
        ray.shutdown()
        if is_local:
            raise HostError(f"Ray cannot be started on this machine: {first_line(error)}") from error
        raise HostError(_explain_missing(address, first_line(error))) from error


def _check_address(address: str) -> None:
    """Raise an error if there is no gRPC server at an address: Ray would try for minutes, then end the process."""
    if address in {"auto", "local"}:
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 0xFFFF:
        raise UsageError(
            f"The address of a Ray cluster is HOST:PORT, e.g. 10.0.0.1:6379, or auto, not {address!r}; to start from "
            "another machine, submit the command: `ray job submit -- sightline ...`."
        )
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), CONNECT_SECONDS).close()
    except OSError as error:
        raise HostError(_explain_missing(address, error.strerror or str(error))) from error
    except UnicodeError as error:  # from the codec of host names
        raise HostError(_explain_missing(address, "that is not a host name")) from error
    if "RAY_USE_TLS" in os.environ:
        return
    grpc = require("grpc", PURPOSE)
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise HostError(_explain_missing(address, "what listens there is something else")) from error


def _explain_missing(address: str, reason: str) -> str:
    place = "on this machine" if address == "auto" else f"at {address}"
    way_out = "unset RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "leave out the address"
    return f"There is no Ray cluster {place} ({reason}): start it with `ray start --head`, or {way_out}."


@contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray would replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
