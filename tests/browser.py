"""The browser of the tests that need one."""

from __future__ import annotations

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = f"none of {', '.join(BROWSERS)} is on PATH"


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)
