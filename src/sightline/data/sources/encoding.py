"""Detect the encoding of text files, and decode them."""

from __future__ import annotations

import codecs
import re

GUESSED_ENCODING = "gb18030"
"""The encoding that cannot be detected with certainty."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts with the mark of UTF-16, so tried first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1f]")


def has_byte_order_mark(data: bytes) -> bool:
    """Return whether bytes start with a byte order mark, which no image does."""
    return any(data.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS)


def decode_text(data: bytes, encoding: str = "") -> str:
    """Decode bytes in `encoding`, by default the one found by `detect_encoding`, without a byte order mark.

    Raises `ValueError` if they cannot be decoded.
    """
    return data.decode(encoding or detect_encoding(data))


def detect_encoding(data: bytes) -> str:
    """Return the encoding of text in UTF-8, UTF-16, UTF-32 or GBK (``gb18030``).

    GBK is assumed only where Chinese characters occur in runs, as in words, because a single accented Latin-1 letter
    between ASCII letters is valid GBK too. It is still a guess: Big5 and Shift-JIS look alike. Raises `ValueError` for
    any other encoding.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return encoding
    if b"\0" in data[:1000]:
        is_little_endian = data[1:1000:2].count(0) > data[:1000:2].count(0)  # the high bytes of ASCII letters are zero
        encoding = "utf-16-le" if is_little_endian else "utf-16-be"
        if _CONTROL.search(data.decode(encoding, "replace")):
            raise ValueError("it has control characters, as a binary file does")
        return encoding
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if _is_gbk(data):
            return GUESSED_ENCODING
        raise ValueError(f"it is neither UTF-8, UTF-16 nor GBK ({error})") from error
    return "utf-8"


def _is_gbk(data: bytes) -> bool:
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return False
    non_ascii = [character for character in text if character > "\x7f"]
    high_bytes = sum(byte >= 0x80 for byte in data)
    return high_bytes >= 1.7 * len(non_ascii)  # in Chinese text nearly all second bytes are high
