"""PNG files with a signature, so that Sightline overwrites only figures that it wrote itself."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, PngImagePlugin

from sightline import _io
from sightline.errors import ImageError, OutputError, UsageError
from sightline.preprocessing import translate_errors

SOFTWARE_TAG = "Sightline"


def is_owned_png(path: Path) -> bool:
    """Return whether a PNG file was written by `save_owned_png`."""
    try:
        with translate_errors(), _io.open_regular(path) as file, Image.open(file) as image:
            return image.info.get("Software") == SOFTWARE_TAG
    except ImageError:
        return False


def check_output(path: str | Path, option: str) -> Path:
    """Return the path of a figure, given as `option`; raises `UsageError` or `OutputError` if it cannot be written."""
    path = _io.output_path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"The figure is a PNG file: give {option} a name that ends with .png, not {path}.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} for the figure {path.name}: create it first.")
    if path.exists() and not is_owned_png(path):
        raise OutputError(f"{path} exists and was not written by Sightline: move it, or choose another with {option}.")
    return path


def save_owned_png(path: Path, png: bytes) -> None:
    """Write a figure atomically, with the signature that `is_owned_png` checks; raises `OutputError`."""
    signature = PngImagePlugin.PngInfo()
    signature.add_text("Software", SOFTWARE_TAG)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, "PNG", pnginfo=signature)
    _io.write_atomic(path, buffer.getvalue())
