"""Limit the nesting depth of values from untrusted files, because code that walks or copies them recurses."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 64  # our own files have at most 8 levels


def is_deep(value: Any) -> bool:
    """Return whether lists and dicts are nested more than `MAX_DEPTH` levels deep.

    >>> import json
    >>> is_deep(json.loads("[" * 64 + "]" * 64)), is_deep(json.loads("[" * 65 + "]" * 65))
    (False, True)
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True
