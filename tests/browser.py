"""The browser of the tests that need one: Chromium, driven by its DevTools protocol over pipes."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = f"none of {', '.join(BROWSERS)} is on PATH"
ON_PIPES = """  # the browser reads from descriptor 3 and writes to 4
import os, sys
os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
SECONDS = 120.0  # limit for an answer of the browser, and for actions of a page
SLOWDOWN = float(os.environ.get("SIGHTLINE_SLOW_BROWSER") or 1)  # factor by which pages' scripts are slowed down


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Browser:
    """Headless Chromium, for pages that share no state; `profile` is a new folder."""

    def __init__(self, profile: Path) -> None:
        browser = find_browser()
        assert browser is not None, NO_BROWSER
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root cannot use it
        options = ["--headless=new", "--disable-gpu", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        to_browser, self._write_end = os.pipe()
        self._read_end, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_PIPES, str(to_browser), str(from_browser), browser, *options, *sandbox],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._numbers = b"", itertools.count(1)

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(30)
        os.close(self._write_end)
        os.close(self._read_end)

    def call(self, method: str, parameters: Mapping[str, Any], session: str, on_event: Callable[[Any], None]) -> Any:
        """Call a method of the protocol and return its result; events of the session may arrive before it."""
        number = next(self._numbers)
        call = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write_end, json.dumps(call).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if session and message.get("sessionId") == session:
                on_event(message)

    def _receive(self) -> Any:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read_end], [], [], SECONDS)
            content = os.read(self._read_end, 1 << 16) if ready else b""
            assert content, "the browser does not answer"
            self._buffer += content
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page:
    """A page with a size in CSS pixels, in its own browser context, which shares no storage with other pages.

    Attributes:
        problems: Errors that the page logged: exceptions, violations of its policy, and failed requests.
    """

    def __init__(
        self, browser: Browser, width: int, height: int = 900, *, media: Mapping[str, str] | None = None
    ) -> None:
        self._browser, self._session = browser, ""
        self.problems: list[str] = []
        self._context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": name, "value": value} for name, value in (media or {}).items()]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Emulation.setCPUThrottlingRate", rate=SLOWDOWN)

    def close(self) -> None:
        """Close the page."""
        self._session = ""
        self.send("Target.disposeBrowserContext", browserContextId=self._context)

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        return self._browser.call(method, parameters, self._session, self._take_event)

    def _take_event(self, message: Any) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Open a page and wait until its scripts have run; they may add a query to its address."""
        self.send("Page.navigate", url=url)
        address = json.dumps(url)
        is_open = f"(location.href === {address} || location.href.startsWith({address} + '?'))"
        self.wait_for(f"{is_open} && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of an expression, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition} did not become true: {self.problems}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input element, like a user."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def save_screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG file."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
