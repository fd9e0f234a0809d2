"""JSON as the standard has it: the one place where values become text, so that no file or answer ever holds NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Return `value` as JSON; `options` are those of `json.dumps`, text stays as it is unless `ensure_ascii` is set.

    A number that is not finite has no form in JSON, and parsers refuse the ``NaN`` that Python would write: it becomes
    null, which is how all our JSON states an undefined value.

    >>> dumps({"loss": float("nan"), "ends": [0.5, float("inf")]})
    '{"loss": null, "ends": [0.5, null]}'
    """
    options = {"ensure_ascii": False} | options
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    """Return `value` with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
