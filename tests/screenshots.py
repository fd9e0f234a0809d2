"""Screenshots of the pages that tests open in a browser, for people to look at.

With ``SIGHTLINE_SCREENSHOTS=FOLDER``, pages are saved when a test requests it and when a test ends; without it, only
the pages of failed tests are saved, beside their other files.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WHOLE = """() => {
  const main = document.querySelector("main.document, main.training, main.labeling");
  const isCovered = !main || document.querySelector("dialog[open]");
  return isCovered ? innerHeight : innerHeight + main.scrollHeight - main.clientHeight;
}"""
ANSWER_MS = 10_000  # a page that takes longer to answer is stuck


class Screenshots:
    """Saves the pages of a test, once per content, as ``TEST-NUMBER-PAGE-WIDTH-SCHEME-LANGUAGE.png``."""

    def __init__(self, test: str) -> None:
        self._stem = re.sub(r"\W+", "-", test.removeprefix("test_")).strip("-")
        self._numbers = itertools.count(1)
        folder = os.environ.get("SIGHTLINE_SCREENSHOTS")
        self._folder = Path(folder) if folder else None

    def take(self, page: Any, of_failure: Path | None = None) -> None:
        """Save a full page if screenshots are enabled; always save it into a folder `of_failure`."""
        folder = self._folder or of_failure
        if folder is None or page.is_closed():
            return
        page.wait_for_function("() => true", timeout=ANSWER_MS)
        size = page.viewport_size
        page.set_viewport_size({"width": size["width"], "height": page.evaluate(WHOLE)})
        page.screenshot(path=folder / f"{self._stem}-{next(self._numbers):02}-{self._describe(page)}.png")
        page.set_viewport_size(size)

    @staticmethod
    def _describe(page: Any) -> str:
        name = Path(urlsplit(page.url).path).name or "images"
        scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
        return f"{name}-{page.viewport_size['width']}-{scheme}-{page.evaluate('document.documentElement.lang')}"
