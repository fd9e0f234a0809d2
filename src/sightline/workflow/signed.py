"""Figures that carry a signature, so that one of ours may be drawn anew and a file of the user's is never lost."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, PngImagePlugin

from sightline import files

MADE_BY = "Sightline"


def is_ours(path: Path) -> bool:
    """Whether a PNG file was saved by `save`."""
    try:
        with files.open_regular(path) as file, Image.open(file) as image:
            return image.info.get("Software") == MADE_BY
    except (OSError, SyntaxError, ValueError):
        return False


def save(path: Path, png: bytes) -> None:
    """Write a figure at once, signed so that `is_ours` knows it again; raises `OutputError`."""
    signature = PngImagePlugin.PngInfo()
    signature.add_text("Software", MADE_BY)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, "PNG", pnginfo=signature)
    files.write(path, buffer.getvalue())
