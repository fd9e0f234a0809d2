"""The listening socket of a server, and the limit on its open connections."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

from sightline import jsonio, process
from sightline.errors import UsageError

AnySocket = TypeVar("AnySocket", bound=socket.socket)
BACKLOG = 2048  # connections waiting to be accepted
RESERVED_FILES = 48  # files the process opens besides connections, `MAX_CLOSING` included
MAX_CLOSING = 16  # connections allowed above the limit while as many idle ones close
FILES_PER_CORE = 8  # used by the decoding process of each core
MAX_READS = 16  # of 64 KiB from a connection that is refused; a fast client might send forever
NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def make_answer(status: str, reason: str, extra: str = "") -> bytes:
    """Return the final response on a connection that is about to close: an error in JSON."""
    body = jsonio.dumps({"error": reason})
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


RETRY = "Retry-After: 1\r\n"
STOPPING_REASON = "The server is stopping: use another one, or try again in a moment."
STOPPING = make_answer("503 Service Unavailable", STOPPING_REASON, RETRY)
FULL = make_answer("503 Service Unavailable", "Too many connections: try again in a moment.", RETRY)


class Listener(socket.socket):
    """A listening socket that answers connections beyond `limit` with 503 and closes them.

    Without a limit, a process that has run out of files cannot accept, and asyncio logs that thousands of times.
    `close_idle` closes an idle connection to make room, and returns whether there was one; `count_refusal` is called
    with the status of each refusal. Where clients expect TLS (`is_encrypted`), connections are closed without a
    response.
    """

    limit = 1
    open_count = 0
    is_encrypted = False
    close_idle: Callable[[], bool] | None = None
    count_refusal: Callable[[int], None] = staticmethod(lambda _code: None)
    _spare: int | None = None  # closed when files run out, to accept one more connection and refuse it

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection; raise BlockingIOError if there is none, or after refusing it.

        asyncio then handles other events before it calls again, so that clients which keep coming block nothing.
        """
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno not in NO_FILES or self._spare is None:
                raise
            os.close(self._spare)
            self._spare = None
            with suppress(OSError):
                super().accept()[0].close()
            self.keep_spare()
            raise BlockingIOError from None
        if self.open_count >= self.limit and not self._make_room():
            self._refuse(accepted, FULL)
            raise BlockingIOError
        self.open_count += 1
        return _Accepted(self, accepted), address

    def _make_room(self) -> bool:
        return self.close_idle is not None and self.open_count < self.limit + MAX_CLOSING and self.close_idle()

    def refuse_waiting(self) -> None:
        """Refuse the connections still waiting to be accepted; closing the socket would reset them."""
        with suppress(OSError):  # raised when there are no more
            for _ in range(BACKLOG):
                self._refuse(super().accept()[0], STOPPING)

    def _refuse(self, accepted: socket.socket, answer: bytes) -> None:
        self.count_refusal(503)
        with accepted, suppress(OSError):
            accepted.settimeout(0)
            if not self.is_encrypted:
                accepted.send(answer)
            accepted.shutdown(socket.SHUT_WR)
            for _ in range(MAX_READS):  # closing with unread data would discard the response
                accepted.recv(1 << 16)

    def keep_spare(self) -> None:
        """Open the spare file."""
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close the socket and the spare file."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        super().close()


class _Accepted(socket.socket):
    """A connection that is counted until it is closed."""

    def __init__(self, listener: Listener, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._listener: Listener | None = listener

    def close(self) -> None:
        """Close the connection."""
        if self._listener is not None:
            self._listener.open_count -= 1
            self._listener = None
        super().close()


def bind(kind: type[AnySocket], host: str, port: int, *, is_shared: bool = False) -> AnySocket:
    """Return a socket of this class bound to an address, which several processes can share with `is_shared`.

    Responses on its connections are sent without delay: with Nagle's algorithm, the body of a response would wait for
    the acknowledgment of its head, 40 ms each time. Raises `UsageError` if the address cannot be bound.
    """
    with ExitStack() as stack:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # asyncio turns Nagle's algorithm off only for sockets that state their protocol
            listener = kind(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            stack.enter_context(listener)
            if os.name == "posix":  # on Windows, this would steal a port in use
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
        except (OSError, OverflowError, TypeError) as error:
            is_name = not isinstance(error, TypeError)  # raised for text that no host name has
            reason = getattr(error, "strerror", None) or error if is_name else "that is not a host name"
            raise UsageError(
                f"Cannot listen on {host}:{port}: {reason}. Choose another address with --host or --port."
            ) from error
        stack.pop_all()
    return listener


def limit_connections(maximum: int) -> int:
    """Return how many connections may be open: `maximum`, or fewer if this process may open fewer files.

    In the command line's own process, the limit on open files is first raised, as far as the system allows it.
    """
    others = RESERVED_FILES + FILES_PER_CORE * process.count_cores()
    process.raise_file_limit(max(process.MAX_OPEN_FILES, maximum + others))  # each of many models may open a log
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return maximum
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return maximum if files == resource.RLIM_INFINITY else max(1, min(maximum, files - others))
