"""The files of other projects that the studio's pages load: unchanged, listed, and with their licenses."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import sightline.studio

VENDOR = Path(sightline.studio.__file__).parent / "static" / "vendor"
ROWS = re.findall(
    r"^\| `([^`]+)` \|.*\| ([\d.]+) \| MIT \| `(\w{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
)


def test_every_file_is_the_one_that_is_listed() -> None:
    for name, version, sha256 in ROWS:
        content = (VENDOR / name).read_bytes()
        content = gzip.decompress(content) if name.endswith(".gz") else content
        assert hashlib.sha256(content).hexdigest() == sha256, name
        assert name.endswith(".gz") or f"v{version}".encode() in content[:100]


def test_nothing_else_is_there_but_licenses() -> None:
    files = {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}
    licenses = {f"{Path(name).parent}/LICENSE" for name, _, _ in ROWS}
    assert files == {"README.md", *licenses, *(name for name, _, _ in ROWS)}
