"""Patterns that match several paths: globs, and ranges of numbers in WebDataset notation."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator
from itertools import product

from sightline.errors import DataError, UsageError

MAX_NAMES = 100_000  # limit on the names that the ranges of a pattern expand to
_SEPARATOR = re.compile(r"[/\\]" if os.sep == "\\" else "/")
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def has_range(text: str) -> bool:
    """Return whether a path or an address has a range such as ``{000..009}``."""
    return _RANGE.search(text) is not None


def expand_ranges(text: str) -> Iterator[str]:
    """Yield the names that ranges expand to, as in a shell; raises `UsageError` for more than `MAX_NAMES`.

    >>> list(expand_ranges("s3://bucket/shard-{08..10}.tar"))
    ['s3://bucket/shard-08.tar', 's3://bucket/shard-09.tar', 's3://bucket/shard-10.tar']
    """
    *parts, end = _RANGE.split(text)
    ranges = [_make_range(*parts[i + 1 : i + 3]) for i in range(0, len(parts), 3)]
    count = math.prod(len(numbers) for numbers, _ in ranges)
    if count > MAX_NAMES:
        raise UsageError(f"{text} stands for {count:,} names, and at most {MAX_NAMES:,} are allowed: name a folder.")
    for values in product(*(numbers for numbers, _ in ranges)):
        names = (
            f"{before}{value:0{width}}" for before, value, (_, width) in zip(parts[::3], values, ranges, strict=True)
        )
        yield "".join((*names, end))


def expand_glob(pattern: str) -> list[str]:
    """Return the files and folders that match, sorted; raises `DataError` if there are none.

    Brackets in the name of an existing folder are literal: ``roses [new]/*.jpg`` matches files in ``roses [new]``.
    """
    folder, rest = _split_existing(pattern)
    paths = sorted(glob.glob(glob.escape(folder) + rest, recursive=True))  # noqa: PTH207  # absolute patterns too
    if not paths:
        raise DataError(f"No file matches {pattern!r}.{_describe_mistake(folder, rest)}")
    return paths


def _split_existing(pattern: str) -> tuple[str, str]:
    """Split a pattern after its longest prefix of whole names that is an existing folder."""
    ends = (match.end() for match in _SEPARATOR.finditer(pattern))
    end = max((end for end in ends if os.path.isdir(pattern[:end])), default=0)  # noqa: PTH112  # absolute paths too
    return pattern[:end], pattern[end:]


def _describe_mistake(folder: str, rest: str) -> str:
    """Return a sentence on a missing folder named in a pattern, or ""."""
    name = _SEPARATOR.split(rest, maxsplit=1)[0]
    if name == rest or glob.has_magic(name):
        return ""
    return f" There is no folder {folder}{name}: check the path."


def _make_range(first: str, last: str) -> tuple[range, int]:
    """Return the numbers, and the number of digits to zero-pad them to (0 for no padding)."""
    low, high = int(first), int(last)
    numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
    is_padded = any(len(text) > 1 and text.startswith("0") for text in (first, last))
    return numbers, max(len(first), len(last)) if is_padded else 0
