"""Image files crafted to exhaust a decoder's time or memory; each is under 64 MB.

Run as a script, it decodes them: it reads a page and a path per line from standard input, decodes that page in a forked
process limited to 1 GiB of additional address space, and writes one JSON line.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

import forked
import hostile_boxes
from high_bit_depth import png_chunk

SECONDS, GIB = 5, 1 << 30
TiffTag = tuple[int, int, int, int]  # tag, type, count, value


def encode_blank(size: tuple[int, int], kind: str, mode: str = "L", color: object = 128, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def many_scans(side: int, scans: int, between: bytes = b"") -> bytes:
    """Return a progressive JPEG that repeats its last refinement scan, after an inserted segment `between`."""
    data = encode_blank((side, side), "JPEG", "L", progressive=True)
    start = data.rindex(b"\xff\xda")
    end = data.rindex(b"\xff\xd9")
    return data[:end] + between + data[start:end] * scans + data[end:]


def with_segments(count: int, segment: bytes, before: bytes = b"") -> bytes:
    data = encode_blank((64, 64), "JPEG")
    return data[:2] + before + segment * count + data[2:]


def app1(size: int) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", size) + b"Exif\0\0".ljust(size - 2, b"\0")


def png(width: int, height: int, chunks: Iterable[tuple[bytes, bytes]] = (), pixels: bytes | None = None) -> bytes:
    """Return a grayscale PNG; without `pixels`, all zeros."""
    if pixels is None:
        packer = zlib.compressobj(9)
        line = bytes((width + 1) * max(1, (1 << 20) // (width + 1)))
        total, splits = (width + 1) * height, []
        while total > 0:
            splits.append(packer.compress(line[: min(total, len(line))]))
            total -= len(line)
        pixels = b"".join([*splits, packer.flush()])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"".join([
        b"\x89PNG\r\n\x1a\n", header, *(png_chunk(*c) for c in chunks),
        png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b""),
    ])  # fmt: skip


def tiff(*directories: list[TiffTag], more: bytes = b"") -> bytes:
    """Return a TIFF of consecutive directories, followed by the bytes `more`."""
    data, at = [struct.pack("<2sHI", b"II", 42, 8)], 8
    for number, entries in enumerate(directories):
        size = 2 + 12 * len(entries) + 4
        following = at + size if number + 1 < len(directories) else 0
        data.append(struct.pack("<H", len(entries)))
        data += [struct.pack("<HHII", *entry) for entry in entries]
        data.append(struct.pack("<I", following))
        at += size
    return b"".join([*data, more])


def gray(
    width: int, height: int, strips: int = 1, rows: int | None = None, at: int = 8, counts: int = 0
) -> list[TiffTag]:
    """Return the tags of an uncompressed grayscale image whose strips, or list of strips, are at offset `at`."""
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, strips, at),
        (277, 3, 1, 1), (278, 4, 1, height if rows is None else rows), (279, 4, strips, counts or width * height),
    ]  # fmt: skip


def tiled(width: int, height: int, compression: int, kind: int = 4, more: Iterable[TiffTag] = ()) -> bytes:
    """Return a TIFF of one tile, whose size tags have the type `kind` and are followed by the tags `more`."""
    tags = [
        (256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, kind, 1, width), (323, kind, 1, height), *more, (324, 4, 1, 300), (325, 4, 1, 1000),
    ]  # fmt: skip
    return tiff(tags, more=zlib.compress(bytes(4096)).ljust(2000, b"\0"))


def long_tiles() -> bytes:
    """Return a TIFF of a row of pixels in 4,096 tiles, all the same bytes, of 16 megapixels each."""
    side, at = (16, 1 << 20), 8 + 2 + 12 * 10 + 4
    tile = zlib.compress(bytes(side[0] * side[1]))
    tags = [
        (256, 4, 1, 65_535), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side[0]), (323, 4, 1, side[1]), (324, 4, 4096, at), (325, 4, 4096, at + 4 * 4096),
    ]  # fmt: skip
    lists = struct.pack("<I", at + 8 * 4096) * 4096 + struct.pack("<I", len(tile)) * 4096
    return tiff(tags, more=lists + tile)


def rationals(count: int) -> bytes:
    return struct.pack("<II", 1_234_567, 7_654_321) * count


def with_tag(tag: int, kind: int, count: int, more: bytes) -> bytes:
    """Return a TIFF with a tag of `count` values, stored in `more`."""
    tags = [entry for entry in gray(4, 4) if entry[0] != tag]
    return tiff([*tags, (tag, kind, count, 8 + 2 + 12 * (len(tags) + 1) + 4)], more=more)


def exif_of(count: int) -> bytes:
    """Return EXIF whose orientation is `count` rational numbers."""
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 274, 5, count, 26, 0) + rationals(count)


def overlapping(count: int, size: int) -> bytes:
    """Return a TIFF of `count` tags that share the same bytes."""
    return tiff([*gray(4, 4), *((40_000 + number, 1, size, 8) for number in range(count))], more=bytes(size))


def chained(count: int) -> bytes:
    return tiff(*[gray(4, 4)] * count)


def million_strips() -> bytes:
    count = 1_000_000
    return tiff(gray(1, count, count, 1, 122, 122), more=struct.pack("<I", 8) * count)


def shared_strips(size: tuple[int, int], rows: int, strip: bytes, compression: int) -> bytes:
    """Return a TIFF with strips of `rows` rows that all share the same bytes."""
    count, at = size[1] // rows, 8 + 2 + 12 * 9 + 4
    tags = [entry for entry in gray(*size, count, rows, at, at + 4 * count) if entry[0] != 259]
    lists = struct.pack("<I", at + 8 * count) * count + struct.pack("<I", len(strip)) * count
    return tiff(sorted([*tags, (259, 3, 1, compression)]), more=lists + strip)


def strips_of_nothing() -> bytes:
    """Return a TIFF whose rows share a megabyte of PackBits no-ops, followed by a row of zeros."""
    return shared_strips((128, 65_535), 1, b"\x80" * 1_000_000 + b"\x81\0", 32_773)


def strips_of_scans() -> bytes:
    """Return a TIFF of 49 megapixels whose strips share a progressive JPEG of noise with 94 scans."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (112, 7000), np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", progressive=True, quality=97)
    data = stream.getvalue()
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return shared_strips((7000, 62 * 112), 112, data[:end] + data[start:end] * 88 + data[end:], 7)


def gif(frames: int, comment: bytes = b"") -> bytes:
    """Return a GIF of one-pixel frames."""
    data = encode_blank((1, 1), "GIF")
    start = data.index(b"\x2c")
    return data[:start] + comment + data[start:-1] * frames + data[-1:]


def gif_before_frame(content: bytes) -> bytes:
    data = encode_blank((1, 1), "GIF")
    start = data.index(b"\x2c")
    return data[:start] + content + data[start:]


def odd_gif(frames: int, right: int, bottom: int, disposal: int = 0) -> bytes:
    """Return a GIF of one pixel, followed by frames of a pixel whose right and bottom edges are given."""
    data = encode_blank((1, 1), "GIF")
    start = data.index(b"\x2c")
    one = data[start:-1]
    moved = one[:1] + struct.pack("<HHHH", right - 1, bottom - 1, 1, 1) + one[9:]
    control = b"\x21\xf9\4" + bytes([disposal << 2]) + b"\0\0\0\0"
    return data[:-1] + (control + moved) * frames + data[-1:]


def animation(kind: str, frames: int, side: int) -> bytes:
    """Return an animation of different full-size frames, each disposed of by restoring the previous one."""
    first = Image.new("RGBA", (side, side), "red")
    rest = [Image.new("RGBA", (side, side), (0, 0, number % 256, 255)) for number in range(frames - 1)]
    stream = io.BytesIO()
    first.save(stream, kind, save_all=True, append_images=rest, disposal=3 if kind == "GIF" else 2, duration=50)
    return stream.getvalue()


def deep_color_tiff(side: int) -> bytes:
    """Return a TIFF of 16-bit RGBA zeros in a single strip."""
    content = zlib.compress(bytes(side * side * 8))
    tags: list[TiffTag] = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 4, 134), (259, 3, 1, 8), (262, 3, 1, 2), (273, 4, 1, 142),
        (277, 3, 1, 4), (278, 4, 1, side), (279, 4, 1, len(content)), (338, 3, 1, 2),
    ]  # fmt: skip
    return tiff(tags, more=struct.pack("<4H", 16, 16, 16, 16) + content)


def jp2_boxes(count: int) -> bytes:
    data = encode_blank((64, 64), "JPEG2000")
    at = data.index(b"jp2h") - 4
    return data[:at] + struct.pack(">I4s", 8, b"free") * count + data[at:]


def bmp_runs(width: int, height: int) -> bytes:
    """Return a run-length encoded BMP with runs of one pixel, which Pillow decodes in Python."""
    line = b"\x01\x80" * width + b"\0\0"
    body = line * height + b"\0\1"
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 1, 1, 256, 0)
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + header + palette + body


HOSTILE: dict[str, Callable[[], bytes]] = {
    "JPEG of 2000 scans": lambda: many_scans(2800, 2000),
    "JPEG of 290 scans": lambda: many_scans(2800, 290),
    "JPEG of 12 scans, 49 megapixels": lambda: many_scans(7000, 2),
    "JPEG of 300 EXIF segments": lambda: with_segments(300, app1(65_000)),
    "JPEG of 900 EXIF segments": lambda: with_segments(900, app1(65_000)),
    "JPEG of a million comments": lambda: with_segments(1_000_000, b"\xff\xfe\0\2"),
    "JPEG of 60 MB of padding": lambda: with_segments(60_000_000, b"\xff"),
    "JPEG of 2000 scans behind a comment": lambda: many_scans(2800, 2000, b"\xff\xfe\0\4\xff\xd9"),
    "JPEG of 900 EXIF segments behind a stray byte": lambda: with_segments(900, app1(65_000), b"\xff\xfe\0\2\0"),
    "JPEG of 20 MB of stray bytes": lambda: with_segments(1, bytes(20_000_000), b"\xff\xfe\0\2"),
    "TIFF of huge tiles": lambda: tiled(46_000, 46_000, 8),
    "TIFF of huge uncompressed tiles": lambda: tiled(46_000, 46_000, 1),
    "TIFF of long tiles": lambda: tiled(16, 1 << 26, 8),
    "TIFF of 4096 long tiles of the same bytes": long_tiles,
    "TIFF of huge tiles of a signed size": lambda: tiled(46_000, 46_000, 8, 9),
    "TIFF of huge and small tiles": lambda: tiled(46_000, 46_000, 8, more=[(322, 4, 1, 16), (323, 4, 1, 16)]),
    "TIFF of 2 million resolutions": lambda: with_tag(282, 5, 2_000_000, rationals(2_000_000)),
    "TIFF of 9 million bit depths": lambda: with_tag(258, 3, 9_000_000, struct.pack("<H", 1000) * 9_000_000),
    "TIFF of 2 million exposures": lambda: with_tag(
        34665, 4, 1, struct.pack("<HHHIII", 1, 33434, 5, 2_000_000, 152, 0) + rationals(2_000_000)
    ),
    "TIFF of 4000 tags in one place": lambda: overlapping(4000, 2_000_000),
    "TIFF of 20000 directories": lambda: chained(20_000),
    "TIFF of 400000 directories": lambda: chained(400_000),
    "TIFF whose directories are a ring": lambda: tiff(gray(4, 4))[:-4] + struct.pack("<I", 8),
    "TIFF of a million strips": million_strips,
    "TIFF of 65535 strips of the same bytes": strips_of_nothing,
    "TIFF of 62 strips of the same 94 scans": strips_of_scans,
    "GIF of 500000 frames": lambda: gif(500_000),
    "GIF of 60 MB of comment": lambda: gif(1, b"\x21\xfe" + (b"\xff" + b"a" * 255) * 230_000 + b"\0"),
    "GIF of 2 million control blocks": lambda: gif_before_frame(b"\x21\xf9\4\0\0\0\0\0" * 2_000_000),
    "GIF of 20 MB of stray bytes": lambda: gif_before_frame(bytes(20_000_000)),
    "GIF of 10 million blocks of a byte": lambda: gif_before_frame(b"\x21\xf9" + b"\1a" * 10_000_000 + b"\0"),
    "PNG of 1x49000000": lambda: png(1, 49_000_000),
    "PNG of 49000000x1": lambda: png(49_000_000, 1),
    "PNG of 7000x7000": lambda: png(7000, 7000),
    "PNG of 65535x740": lambda: png(65_535, 740),
    "PNG of 740x65535": lambda: png(740, 65_535),
    "PNG of a million chunks": lambda: png(8, 8, [(b"abCd", b"")] * 1_000_000),
    "PNG of a million pixel chunks": lambda: png(8, 8, [(b"IDAT", b"")] * 1_000_000),
    "PNG of 60 MB of text": lambda: png(8, 8, [(b"zTXt", b"a\0\0" + zlib.compress(bytes(60 << 20)))] * 100),
    "PNG of 2 million orientations": lambda: png(8, 8, [(b"eXIf", exif_of(2_000_000))]),
    "PPM of 5 MB of comment": lambda: b"P5 #" + b"a" * 5_000_000 + b"\n4 4 255 " + bytes(16),
    "PPM of 5 MB of blanks": lambda: b"P5" + b" " * 5_000_000 + b"4 4 255 " + bytes(16),
    "PPM of 60 MB of text": lambda: b"P2 5000 6000 255 " + b"1 " * 30_000_000,
    "PPM of 8 MB of text": lambda: b"P2 2000 2000 255 " + b"1 " * 4_000_000,
    "PBM of 16 MB of text": lambda: b"P1 4000 4000 " + b"1" * 16_000_000,
    "PGM of 16 megapixels with 255 levels": lambda: b"P5 4000 4000 254 " + bytes(16_000_000),
    "JPEG 2000 of a million boxes": lambda: jp2_boxes(1_000_000),
    "BMP of 60 MB in runs": lambda: bmp_runs(5000, 6000),
    "BMP of 8 MB in runs": lambda: bmp_runs(2000, 2000),
}
HOSTILE |= hostile_boxes.BOXES
"""Hostile files by description; those that are decoded must be decoded in time."""

PAGES: dict[str, tuple[int, Callable[[], bytes]]] = {
    "page 400000 of a TIFF": (400_000, lambda: chained(400_000)),
    "page 1000000 of a TIFF of 400000": (1_000_000, lambda: chained(400_000)),
    "page 1000 of a GIF": (1000, lambda: gif(1500)),
    "page 1001 of a GIF": (1001, lambda: gif(1500)),
    "page 2 of a GIF, far outside": (2, lambda: odd_gif(1, 13_000, 13_000)),
    "page 4 of a GIF, disposed of far outside": (4, lambda: odd_gif(3, 12_000, 14_000, 3)),
    "page 900 of a GIF of a megapixel outside": (900, lambda: odd_gif(1000, 1000, 1000, 3)),
    "page 10000 of a WebP": (10_000, lambda: hostile_boxes.animated_webp(20_000)),
    "page 100000 of a WebP": (100_000, lambda: hostile_boxes.animated_webp(200_000)),
    "page 21 of a WebP of 49 megapixels": (21, lambda: hostile_boxes.animated_webp(100, 7000)),
    "page 2 of a WebP, of 65536 groups of codes": (2, lambda: hostile_boxes.webp_frame_of_groups(65_536, 1024)),
    "page 200 of a PNG": (200, lambda: animation("PNG", 300, 8)),
    "page 200 of an AVIF": (200, lambda: animation("AVIF", 200, 16)),
}
"""Files by description, each with the page to decode."""

LARGE: dict[str, Callable[[], bytes]] = {
    **hostile_boxes.LARGE,
    "TIFF of 16-bit RGBA in a strip, 49 megapixels": lambda: deep_color_tiff(7000),
}
"""Images with the maximum allowed pixels or bytes, which take seconds to make and to decode."""


def decode(path: Path, page: int = 1) -> str:
    """Process a file like every command: read it, inspect its header, decode it; return "" or the error."""
    from sightline.data.storage import read_untrusted_file
    from sightline.errors import ImageError
    from sightline.preprocessing import PreprocessingSpec, decode_preview, detect_format, inspect_image

    try:
        data = read_untrusted_file(path, check=detect_format)
        spec = PreprocessingSpec(224, 224, page=page)
        inspect_image(data, page)
        decode_preview(data, 256, spec)
        spec.decode(data)
    except ImageError as error:
        return str(error)
    return ""


def address_space() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmSize:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Decode each file named on standard input in a forked process."""
    first = Path(sys.argv[1]) / "first.png"
    first.write_bytes(encode_blank((8, 8), "PNG"))
    decode(first)  # loads the libraries before the first fork
    np.zeros(1).sum()
    for line in sys.stdin:
        reader, writer = os.pipe()
        started, child = time.monotonic(), os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + GIB, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            os.sched_setaffinity(0, {random.choice([*os.sched_getaffinity(0)])})  # noqa: S311  # decoders start no thread
            page, path = line.rstrip("\n").split(" ", 1)
            os.write(writer, decode(Path(path), int(page)).encode()[:1000])
            os._exit(0)
        os.close(writer)
        ended = forked.wait_for(child, started) | {"reason": os.read(reader, 1000).decode()}
        os.close(reader)
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
