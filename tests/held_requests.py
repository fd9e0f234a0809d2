"""Delay requests of a page in Chromium."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from studio_server import WAIT_SECONDS


def wait_until(page: Any, condition: Callable[[], object]) -> None:
    """Wait until a condition is true, while handling the requests of a page."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what the page was to request did not come"
        page.wait_for_timeout(20)


class Held:
    """Requests that wait until the test continues, answers or fails them."""

    def __init__(self, page: Any, address: str, *, count: int = 1) -> None:
        self._page, self._count = page, count
        self.routes: list[Any] = []
        page.route(address, self._hold)

    def _hold(self, route: Any) -> None:
        if len(self.routes) < self._count:
            self.routes.append(route)
        else:
            route.continue_()

    def wait(self, count: int = 1) -> None:
        wait_until(self._page, lambda: len(self.routes) >= count)

    def lose(self) -> None:
        """Fail all requests, including repeated ones."""
        for number in range(self._count):
            self.wait(number + 1)
            self.routes[number].abort()
