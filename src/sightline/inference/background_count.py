"""Count the images of a job in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from sightline.inference.inputs import InputItem


class BackgroundCount:
    """Counts items in a background thread while the block runs.

    `value` is None until all items are counted, and stays None if that fails: the code that reads them reports why.
    """

    def __init__(self, items: Iterable[InputItem]) -> None:
        self._items = items
        self._stopped = threading.Event()
        self._last: InputItem | None = None  # keeps its archive unpacked for the code that reads the items
        self._thread = threading.Thread(target=self._count, name="count images", daemon=True)
        self.value: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _count(self) -> None:
        count = 0
        with suppress(Exception):  # raised by the code that reads the items
            for item in self._items:
                self._last = item
                if self._stopped.is_set():
                    return
                count += 1
            self.value = count
