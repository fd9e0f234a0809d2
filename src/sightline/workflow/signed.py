"""PNG files with a signature, so that Sightline overwrites only figures that it wrote itself."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, PngImagePlugin

from sightline import files

MADE_BY = "Sightline"


def is_ours(path: Path) -> bool:
    """Return whether a PNG file was written by `save`."""
    try:
        with files.open_regular(path) as file, Image.open(file) as image:
            return image.info.get("Software") == MADE_BY
    except (OSError, SyntaxError, ValueError):
        return False


def save(path: Path, png: bytes) -> None:
    """Write a figure atomically, with the signature that `is_ours` checks; raises `OutputError`."""
    signature = PngImagePlugin.PngInfo()
    signature.add_text("Software", MADE_BY)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, "PNG", pnginfo=signature)
    files.write(path, buffer.getvalue())
