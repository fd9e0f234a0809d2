"""Hypothesis strategies shared by several tests: `from strategies import ...`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from sightline.data.types import ImageRecord, Split


def image_record(label: str, content: object, split: Split | None = None) -> ImageRecord:
    """Return an image record with only a class and a content."""
    sha256 = hashlib.sha256(f"{content}".encode()).hexdigest()
    return ImageRecord(f"{label}/{content}.png", sha256, label, split, 8, 8)


def image_records(
    *,
    labels: Sequence[str] = ("ant", "bee", "cat", "dog"),
    contents: int = 60,
    splits: Sequence[Split | None] = (None,),
    conflicts: bool = True,
    min_size: int = 1,
    max_size: int = 80,
) -> SearchStrategy[list[ImageRecord]]:
    """Return lists of image records with duplicates among them; `conflicts`: duplicates may differ in class."""

    def make(values: tuple[str, int, Split | None]) -> ImageRecord:
        label, content, split = values
        return image_record(label, content if conflicts else f"{label} {content}", split)

    one = st.tuples(st.sampled_from(labels), st.integers(0, contents), st.sampled_from(splits)).map(make)
    return st.lists(one, min_size=min_size, max_size=max_size)


def near_values(most: int = 20) -> SearchStrategy[list[int]]:
    """Return 64-bit numbers, many of which differ in at most `most` bits from one of three."""
    centers = st.sampled_from([0, 0x0123456789ABCDEF, 2**64 - 1])
    one = st.tuples(centers, st.lists(st.integers(0, 63), max_size=most)).map(_flip_bits)
    return st.lists(one, min_size=1, max_size=20)


def _flip_bits(value_and_bits: tuple[int, list[int]]) -> int:
    value, bits = value_and_bits
    for bit in bits:
        value ^= 1 << bit
    return value


def hostile_text() -> SearchStrategy[str]:
    """Return text with many control characters, bidirectional marks and lone surrogates."""
    controls = [*range(0x20), *range(0x7F, 0xA0), 0x61C, *range(0x200E, 0x2010), *range(0x2028, 0x202F)]
    controls += [*range(0x2066, 0x206A), *b"=+-@\"',;[/]\\:"]
    letters = st.characters() | st.sampled_from(controls).map(chr) | st.integers(0xD800, 0xDFFF).map(chr)
    return st.text(letters, max_size=12)
