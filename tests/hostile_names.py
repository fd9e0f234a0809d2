"""Names of classes, files and folders that an attacker might choose, and checks of the resulting output."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from command import Outcome, draw_classes
from sightline.escaping import printable

CLASSES = {  # folder names, so without slashes
    "\x1b[2J\x1b]0;owned\x07red": (200, 60, 60),
    '"><img src=x onerror=alert(1)>\u202eneerg': (60, 200, 60),
    "=cmd|'calc'!A0\nforged  blue": (60, 60, 200),
    "<script>alert(2)<\\script> [b] [red]\x9b1m": (200, 200, 60),
}
FOLDER, RUN = "ima\x1b[2Jges", "r\x1b[2Jun"


def draw_hostile(folder: Path) -> Path:
    """Draw `CLASSES` into a folder, with hostile names of some files and a damaged one in each class."""
    draw_classes(folder, CLASSES, 12)
    for number, path in enumerate(sorted(folder.rglob("*.png"))[::5]):
        path.rename(path.with_name(f"=1+1\n\x1b[2J\u202e{number}\udcff[b].png"))
    for path in folder.iterdir():
        (path / "@broken\r.png").write_bytes(b"no image")
    return folder


def read_csv(text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def list_images(folder: Path) -> Iterator[Path]:
    return folder.rglob("*.png")


def check(result: Outcome, *codes: int) -> str:
    """Check that a command succeeded and printed no control characters; return its output."""
    assert result.code in codes, result.err
    return check_text(result.out + result.err)


def check_text(text: str) -> str:
    """Check that a multi-line text contains no control characters and no forged lines, and return it."""
    assert printable(text, keep="\n") == text
    assert "\nforged" not in text
    assert "Traceback" not in text
    return text


class _Tags(HTMLParser):
    """Collects tags and attributes that no template writes; files may come only from `origin`."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.odd: list[str] = []
        self._origin = origin

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        own = str(values.get("src")).startswith(self._origin)
        is_data = values.get("type") == "application/json"
        self.odd += [tag] * (tag in {"iframe", "object", "foreignobject"} or (tag == "script" and not own | is_data))
        self.odd += [name for name in values if name.startswith("on")]
        self.odd += [str(values[name]) for name in ("src", "srcset") if name in values and not own]


def check_page(text: str, origin: str = "data:") -> str:
    """Check that a page has no control characters, and loads and runs nothing except from `origin`; return its text."""
    assert printable(text, keep="\n") == text
    tags = _Tags(origin)
    tags.feed(text)
    assert tags.odd == []
    return text
