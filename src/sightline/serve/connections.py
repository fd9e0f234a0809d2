"""Limits that uvicorn lacks: how long a connection may take, how it closes, and how the server shuts down.

This relies on parts of uvicorn that a release may change without notice. Raise `CHECKED_VERSION` and the upper bound in
``pyproject.toml`` together, after ``tests/serve`` and ``tests/cli/test_serve*.py`` have passed with the new release.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from sightline import process
from sightline.escaping import printable
from sightline.serve.certificate import Certificate
from sightline.serve.limits import Limits
from sightline.serve.listening import BACKLOG, Listener, make_answer

CHECKED_VERSION = "0.54"  # the newest release of uvicorn that this module was checked with
END_SECONDS = 0.5  # part of the grace period reserved for aborting whatever has not ended by itself
POLL_SECONDS = 0.02
MAX_REASON = 80  # characters: h11 quotes the bytes that it cannot parse
LINGER_SECONDS = 10.0  # time after a response for a client that still sends its body or reads slowly
CERTIFICATE_TICKS = 100  # uvicorn's ticks, ten per second, between checks of the certificate files
_QUOTED = re.compile(r"""bytearray\(b(['"].*['"])\)""")  # h11's way of quoting


class Connection(H11Protocol):
    """uvicorn's connection, with a deadline for each header, each exchange and each close.

    uvicorn limits only the time between two requests, and closes a connection at once: a client that is still sending
    its body then loses the response. Each server sets `limits` and the counter of refusals in a subclass of its own.
    """

    limits = Limits()
    count_refusal: Callable[[int], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._raw: asyncio.Transport | None = None
        self._is_closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None  # what the timer is for
        self._idle_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the timer for the first header."""
        self._raw = transport
        super().connection_made(cast("asyncio.Transport", _ClosingTransport(transport, self)))
        self._start_timer("header", self.limits.header, self._refuse_header)

    def data_received(self, data: bytes) -> None:
        """Pass on the data, unless the connection is closing."""
        if not self._is_closing:
            super().data_received(data)
            self._update_timer()

    def on_response_complete(self) -> None:
        """Stop the timer of the exchange."""
        super().on_response_complete()
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection because the server stops: after its response, or at once if that has been sent."""
        if self._running_cycle is None:
            assert self._raw is not None
            self._raw.close()  # still sends what has been written, but reads no more
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP; uvicorn's plain-text response would leave out the reason."""
        assert self._raw is not None
        if (error := sys.exc_info()[1]) is not None:
            is_long = str(error) == "Receive buffer too long"
            text = _QUOTED.sub(r"\1", str(error))
            reason = "its header is too long" if is_long else printable(text[:MAX_REASON])
            msg = f"The request is not valid HTTP/1.1: {reason}."
        if (cycle := self._running_cycle) is None or not cycle.response_started:
            self._raw.write(make_answer("400 Bad Request", msg))
            self.count_refusal(400)
        self.close()

    def abort(self) -> None:
        """Close the connection now; unsent data is lost."""
        if self._raw is not None:
            self._raw.abort()

    @property
    def idle_since(self) -> float | None:
        """When the last response was sent, in the loop's time; None while there is anything to receive or send."""
        is_idle = not self.is_closing and self._raw is not None and not self._raw.get_write_buffer_size()
        return self._idle_since if is_idle else None

    @property
    def is_closing(self) -> bool:
        """Whether the connection accepts no more requests."""
        return self._is_closing or self._raw is None or self._raw.is_closing()

    @property
    def _running_cycle(self) -> RequestResponseCycle | None:
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def close(self) -> None:
        """Close the connection once the client has received everything; uvicorn calls this through the transport."""
        if self.is_closing:
            return
        assert self._raw is not None
        self._is_closing = True
        self._start_timer("close", LINGER_SECONDS, self.abort)
        if (cycle := self._running_cycle) is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        # the client is still sending: read on and discard
        if self.conn.their_state in {h11.SEND_BODY, h11.ERROR} or self.conn.trailing_data[0]:
            self._raw.resume_reading()
            if self._raw.can_write_eof():
                try:
                    self._raw.write_eof()
                except OSError:  # the client has reset the connection
                    self.abort()
        else:
            self._raw.close()

    def _update_timer(self) -> None:
        self._idle_since = None
        if self.is_closing:
            return
        if (cycle := self._running_cycle) is not None:
            self._start_timer(cycle, self.limits.request + LINGER_SECONDS, self.abort)
        elif self._timed == "header" or self.conn.trailing_data[0]:
            self._start_timer("header", self.limits.header, self._refuse_header)
        else:  # idle; uvicorn closes it after `limits.idle`
            self._idle_since = self.loop.time()
            self._stop_timer()

    def _start_timer(self, timed: object, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` in `seconds`, unless the timer already runs for the same."""
        if self._timed is not timed:
            self._stop_timer()
            self._timed, self._timer = timed, self.loop.call_later(seconds, act)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timed = self._timer = None

    def _refuse_header(self) -> None:
        assert self._raw is not None
        if self.conn.trailing_data[0]:
            reason = f"The header of the request did not arrive within {self.limits.header:g} seconds."
            self._raw.write(make_answer("408 Request Timeout", reason))
            self.count_refusal(408)
        self.close()


class _ClosingTransport:
    """The transport of a connection, closed by `Connection.close`."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.is_closing


class Server(uvicorn.Server):
    """uvicorn's server, which stops within `grace` seconds of a signal, whatever clients do, and then exits with 0.

    `app.state.admission` counts the requests in flight and learns that the server is stopping; `app.state.metrics`
    counts what is refused before it reaches `app`. With a `certificate`, connections are encrypted. `on_ready` is
    called once requests are answered. Logging is left to the process: uvicorn's settings would close all existing
    handlers.
    """

    def __init__(
        self,
        app: Starlette,
        limits: Limits,
        grace: float,
        certificate: Certificate | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._count_refusal = app.state.metrics.count_refusal
        names = {"limits": limits, "count_refusal": staticmethod(self._count_refusal)}
        connection = type("LimitedConnection", (Connection,), names)
        config = uvicorn.Config(
            app, loop="asyncio", http=connection, ws="none", log_level="error", backlog=BACKLOG,
            timeout_graceful_shutdown=1, log_config=None,
            timeout_keep_alive=limits.idle,  # type: ignore[arg-type]  # fractions work too
        )  # fmt: skip
        super().__init__(config)
        self._admission, self._grace, self._certificate = app.state.admission, grace, certificate
        self._handshake_seconds, self._on_ready = limits.header, on_ready
        self._stop_time: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving `sockets`, with a time limit for TLS handshakes: uvicorn allows a minute."""
        for listener in sockets or ():
            if isinstance(listener, Listener):
                listener.close_idle = self._close_idle
                listener.is_encrypted = self._certificate is not None
                listener.count_refusal = self._count_refusal
        if self._certificate is None:
            await super().startup(sockets)
            self._on_ready()
            return
        await super().startup([])

        def create_connection() -> asyncio.Protocol:
            connection: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return connection

        for listener in sockets or ():
            server = await asyncio.get_running_loop().create_server(
                create_connection, sock=listener, backlog=BACKLOG, ssl=self._certificate.context,
                ssl_handshake_timeout=self._handshake_seconds, ssl_shutdown_timeout=LINGER_SECONDS,
            )  # fmt: skip
            self.servers.append(server)
        self._on_ready()

    def _close_idle(self) -> bool:
        """Close the connection that has been idle for the longest, and return whether there was one."""
        connections = [connection for connection in self.server_state.connections if isinstance(connection, Connection)]
        idle = [(since, connection) for connection in connections if (since := connection.idle_since) is not None]
        if idle:
            min(idle, key=lambda pair: pair[0])[1].abort()
        return bool(idle)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once at a second signal.

        uvicorn would raise the signal again at the end, and the exit code would not be 0.
        """
        del sig, frame
        if self._stop_time is not None:
            self._stop_time = time.monotonic()
            return
        self._stop_time = time.monotonic() + self._grace
        self._admission.draining = True
        if process.is_claimed():
            threading.Thread(target=_exit_after, args=(self._grace,), name="exit", daemon=True).start()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to shut down: nothing is in flight, or the time is up."""
        if self._stop_time is not None:
            self.should_exit = not self._admission.requests or self._remaining <= 0
        if self._certificate is not None and counter % CERTIFICATE_TICKS == 0:
            self._certificate.refresh()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections, wait for the responses that are being sent, and abort the rest."""
        for listener in sockets or ():
            if isinstance(listener, Listener):
                listener.refuse_waiting()
        for server in self.servers:
            server.close()
        await asyncio.sleep(POLL_SECONDS)  # lets requests that have already arrived be answered
        connections = self.server_state.connections
        for connection in list(connections):
            connection.shutdown()
        while connections and self._remaining > 0:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(POLL_SECONDS)
        for connection in list(connections):
            assert isinstance(connection, Connection)
            connection.abort()
        await asyncio.sleep(POLL_SECONDS)  # lets their requests see that the clients have left
        await super().shutdown(sockets)

    @property
    def _remaining(self) -> float:
        """The seconds until everything is aborted."""
        return 0 if self._stop_time is None else self._stop_time - END_SECONDS - time.monotonic()


def _exit_after(seconds: float) -> None:
    """End this process with exit code 0 after `seconds`, if it has not ended: a thread may run a model forever."""
    time.sleep(seconds)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)
