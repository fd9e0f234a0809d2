"""How deep a value from a file is nested: what walks through it later, copies it or writes it has a stack to fill."""

from __future__ import annotations

from typing import Any

DEEPEST = 64  # no file of ours is deeper than 8


def is_deep(value: Any, most: int = DEEPEST) -> bool:
    """Tell whether lists and tables lie within each other more than `most` times.

    >>> is_deep({"a": [[1]]}), is_deep({"a": [[1]]}, most=2)
    (False, True)
    """
    level = [value]
    for _ in range(most + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True
