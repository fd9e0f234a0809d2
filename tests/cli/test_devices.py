"""Devices, pipes, files of the system and sparse files named as images, beside one that is good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from synthetic_images import encode

if sys.platform != "linux":
    pytest.skip("the devices are those of Linux", allow_module_level=True)

NOT_REGULAR = "cannot be opened: not a regular file"
REASONS = {
    "fifo.jpg": {NOT_REGULAR},
    "zero.jpg": {NOT_REGULAR},
    "sparse.jpg": {"too large: 5,120 MiB, limit 256 (data.limits.file_mb)"},
    "version.jpg": {NOT_REGULAR},
    # It may have nothing to say, or nothing for this user.
    "kmsg.jpg": {NOT_REGULAR, "empty file", "cannot be opened: Operation not permitted"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind, and the good image last."""
    folder = tmp_path / "images"
    folder.mkdir()
    os.mkfifo(folder / "fifo.jpg")
    for name, target in {"zero": "/dev/zero", "version": "/proc/version", "kmsg": "/proc/kmsg"}.items():
        (folder / f"{name}.jpg").symlink_to(target)
    photo = encode(Image.new("RGB", (40, 30), (60, 200, 60)), "JPEG")
    (folder / "sparse.jpg").write_bytes(photo)
    os.truncate(folder / "sparse.jpg", 5 << 30)
    (folder / "very-good.jpg").write_bytes(photo)
    return folder


def limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["files", "folder"])
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_only_the_good_image_is_read(
    verb: str, source: str, folder: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    paths = [folder] if source == "folder" else [folder / name for name in (*REASONS, "very-good.jpg")]
    options = [] if verb == "predict" else ["--method", "occlusion", "--out", str(tmp_path / "plots")]
    done = subprocess.run(
        [sys.executable, "-m", "sightline", verb, str(trained[0] / "bundle"), *map(str, paths), *options,
         "--format", "json"],
        capture_output=True, text=True, check=False, timeout=300, preexec_fn=limit_memory,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = {Path(row["path"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows.keys() == {*REASONS, "very-good.jpg"}
    for name, reasons in REASONS.items():
        assert rows[name]["error"] in reasons, name
    assert rows["very-good.jpg"].get("error") is None
    assert rows["very-good.jpg"]["label"] == "green"
