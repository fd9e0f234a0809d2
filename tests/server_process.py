"""A server as seen by its clients: a separate process, with requests over a socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self


class Server:
    """`sightline serve`, or another `verb`, with these arguments; or `script`, after the shell command `prepare`.

    `options` are passed to its process, which is killed at the end if it is still running.
    """

    def __init__(
        self, *arguments: object, verb: str = "serve", prepare: str = "", script: Path | None = None, **options: Any
    ) -> None:
        command = [sys.executable, "-m", "sightline", verb, *map(str, arguments), "--port", "0"]
        if script:
            command = [sys.executable, str(script)]
        if prepare:
            command = ["sh", "-c", f'{prepare}; exec "$@"', "sh", *command]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # log lines would fill a pipe and block the server
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True, **options)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def connect(self) -> socket.socket:
        """Open a connection."""
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def request(
        self, path: str, body: bytes | None = None, kind: str = "image/png", timeout: float = 60
    ) -> tuple[int, Any]:
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind})  # noqa: S310  # our own server
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
        self._errors.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Wait until the process ends, and return its exit code and standard error."""
        self.process.communicate(timeout=seconds)
        self._errors.seek(0)
        return self.process.returncode, self._errors.read()
