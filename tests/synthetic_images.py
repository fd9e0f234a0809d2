"""Images and sources for tests: small images with easily separable classes, and a folder full of flawed files."""

from __future__ import annotations

import importlib.util
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sightline.errors import suggest_install

NO_HEIF = f"HEIC images need the package pillow-heif: {suggest_install('heif')}"
EMPTY_HEIF = b"\0\0\0\x18ftypheic\0\0\0\0"  # only the header with its format
EMPTY_HEIF_REASON = (
    "cannot be decoded: Invalid input: Unspecified: File size too small."
    if importlib.util.find_spec("pillow_heif")
    else NO_HEIF
)
COLORS = ((210, 40, 40), (40, 60, 200), (40, 170, 60), (220, 200, 60), (150, 60, 170), (60, 190, 200))


class ImageFolder(Protocol):
    """Draws ``{class: count}`` or ``{split: {class: count}}`` into a new folder and returns it."""

    def __call__(
        self, counts: Mapping[str, int] | Mapping[str, Mapping[str, int]], size: int = 16, kind: str = "png"
    ) -> Path: ...


@dataclass(frozen=True)
class HostileFolder:
    """A folder of flawed files, and the expected result for each file (paths relative to `path`)."""

    path: Path
    images: Mapping[str, tuple[int, int]]  # width and height as displayed
    unreadable: Mapping[str, str]  # reasons that appear on reading the header
    undecodable: Mapping[str, str]  # reasons that appear on decoding
    stray: frozenset[str]
    skipped: int
    classes: tuple[str, ...]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def draw_pixels(number: int, color: int = 0, width: int = 16, height: int | None = None) -> NDArray[np.uint8]:
    """Return image `number` of a class: its color, a gradient and noise; uint8 [height, width, 3], all different."""
    rng = np.random.default_rng([number, color])
    noise = rng.integers(-25, 26, (height or width, width, 3)) + np.linspace(-20, 20, width)[:, None]
    base = np.array(COLORS[color % len(COLORS)]) * (0.8 if color >= len(COLORS) else 1)
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def encode_idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def draw_image(number: int = 0, color: int = 0, width: int = 16, height: int | None = None) -> Image.Image:
    return Image.fromarray(draw_pixels(number, color, width, height))


def encode_png(number: int = 0, color: int = 0, width: int = 16, height: int | None = None) -> bytes:
    return encode(draw_image(number, color, width, height))


def draw_scene(number: int, width: int = 160, height: int = 140) -> Image.Image:
    """Return a unique image of smooth shapes and some grain, which hashes like a photograph."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(40, 216, (7, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.integers(-20, 21, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def encode_scene_jpeg(number: int, **options: Any) -> bytes:
    return encode(draw_scene(number), "JPEG", **options)


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by their relative paths; return `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], kind: str = "") -> Path:
    """Write a tar archive; `kind`: "", "gz", "bz2" or "xz"."""
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]  # the mode is not a literal
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def draw_classes(root: Path, counts: Mapping[str, int], size: int, kind: str, start: int = 0) -> None:
    for color, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            draw_image(number, color, size).save(root / name / f"{number}.{kind}")


def draw_hostile(root: Path) -> HostileFolder:
    """Draw about thirty small files in five classes."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    jpeg = encode(draw_image(1, 0, 40, 30), "JPEG")
    sixteen = Image.fromarray(np.asarray(draw_image(2, 0).convert("L")).astype(np.uint16) * 257)
    noisy = encode(Image.effect_noise((64, 64), 90), "JPEG", quality=95)
    sound = {
        "ant hill/1.jpg": (jpeg, (40, 30)),
        "ant hill/copy of 1.jpg": (jpeg, (40, 30)),
        "ant hill/turned.jpg": (encode(draw_image(3, 0, 40, 30), "JPEG", exif=exif), (30, 40)),
        "ant hill/cmyk.jpg": (encode(draw_image(4, 0).convert("CMYK"), "JPEG"), (16, 16)),
        "ant hill/deep.png": (encode(sixteen), (16, 16)),
        "ant hill/palette.png": (encode(draw_image(5, 0).convert("P"), transparency=3), (16, 16)),
        "ant hill/jpeg.png": (encode(draw_image(6, 0), "JPEG"), (16, 16)),
        "ant hill/png.dat": (encode_png(7, 0), (16, 16)),
        "ant hill/nested/8.png": (encode_png(8, 0), (16, 16)),
        "Zebra/UPPER.JPG": (encode(draw_image(9, 1), "JPEG"), (16, 16)),
        "Zebra/also an ant.jpg": (jpeg, (40, 30)),
        "Zebra/10.gif": (encode(draw_image(10, 1), "GIF"), (16, 16)),
        "Zebra/11.bmp": (encode(draw_image(11, 1), "BMP"), (16, 16)),
        "Zebra/12.webp": (encode(draw_image(12, 1), "WEBP"), (16, 16)),
        "single/only.png": (encode_png(13, 2), (16, 16)),
        "élan/ä ö.png": (encode_png(14, 3), (16, 16)),
        "élan/15.png": (encode_png(15, 3, 5, 70), (5, 70)),
        "猫/图片 1.png": (encode_png(16, 4), (16, 16)),
        "猫/图片 2.png": (encode_png(17, 4), (16, 16)),
    }
    unreadable = {
        "Zebra/empty.jpg": (b"", "empty file"),
        "Zebra/header only.png": (encode_png(18, 1)[:20], "truncated"),
        "ant hill/text.jpeg": (b"I am not an image.", "not an image"),
        "猫/phone.heic": (EMPTY_HEIF, EMPTY_HEIF_REASON),
    }
    undecodable = {"Zebra/half.jpg": (noisy[: len(noisy) // 2], "truncated")}
    skipped_files = {
        "ant hill/Thumbs.db": b"thumbs",
        "ant hill/.DS_Store": b"\0\0\0\1Bud1",
        "ant hill/.hidden.jpg": jpeg,
        "ant hill/notes.txt": b"remember the ants",
        "ant hill/nothing.txt": b"",
        "__MACOSX/ant hill/._1.jpg": b"\0\5\x16\7",
        "README.md": b"# Ants and others",
    }
    for files in (sound, unreadable, undecodable):
        write_files(root, {name: content for name, (content, _) in files.items()})
    write_files(root, skipped_files | {"cover.jpg": jpeg})
    return HostileFolder(
        root,
        {name: size for name, (_, size) in sound.items()},
        {name: reason for name, (_, reason) in unreadable.items()},
        {name: reason for name, (_, reason) in undecodable.items()},
        frozenset({"cover.jpg"}),
        len(skipped_files),
        ("Zebra", "ant hill", "single", "élan", "猫"),
    )
