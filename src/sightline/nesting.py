"""Limit the nesting depth of values from untrusted files, because code that walks or copies them recurses."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 64  # our own files have at most 8 levels


def is_deep(value: Any, max_depth: int = MAX_DEPTH) -> bool:
    """Return whether lists and dicts are nested more than `max_depth` levels deep.

    >>> is_deep({"a": [[1]]}), is_deep({"a": [[1]]}, max_depth=2)
    (False, True)
    """
    level = [value]
    for _ in range(max_depth + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True
