"""Figures with a signature in their metadata, so that Sightline overwrites only those that it wrote itself."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

from PIL import Image, PngImagePlugin

from sightline import _io
from sightline.errors import ImageError, OutputError, UsageError
from sightline.preprocessing import translate_errors

SOFTWARE_TAG = "Sightline"
SVG_HEAD = 4096  # bytes at the beginning of an SVG file that contain its metadata


def is_owned_png(path: Path) -> bool:
    """Return whether a PNG file was written by `save_owned_png`."""
    try:
        with translate_errors(), _io.open_regular(path) as file, Image.open(file) as image:
            return image.info.get("Software") == SOFTWARE_TAG
    except ImageError:
        return False


def is_owned_svg(path: Path) -> bool:
    """Return whether an SVG file was written by `report.diagram.save_figure`."""
    with suppress(OSError), _io.open_regular(path) as file:
        return b"<dc:title>Sightline</dc:title>" in file.read(SVG_HEAD)
    return False


def check_output(path: str | Path, option: str, *, may_be_svg: bool = False) -> Path:
    """Return the path of a figure, given as `option`; raises `UsageError` or `OutputError` if it cannot be written."""
    path = _io.output_path(path)
    is_svg = may_be_svg and path.suffix.lower() == ".svg"
    if not is_svg and path.suffix.lower() != ".png":
        raise UsageError(f"The figure is a PNG file: give {option} a name that ends with .png, not {path}.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} for the figure {path.name}: create it first.")
    if path.exists() and not (is_owned_svg if is_svg else is_owned_png)(path):
        raise OutputError(f"{path} exists and was not written by Sightline: move it, or choose another with {option}.")
    _io.check_writable(path, option)
    return path


def save_owned_png(path: Path, png: bytes) -> None:
    """Write a figure atomically, with the signature of `is_owned_png`; raises `OutputError` for another file there."""
    if path.exists() and not is_owned_png(path):
        raise OutputError(f"{path} exists and was not written by Sightline: move it, or choose another folder.")
    signature = PngImagePlugin.PngInfo()
    signature.add_text("Software", SOFTWARE_TAG)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, "PNG", pnginfo=signature)
    _io.write_atomic(path, buffer.getvalue())
