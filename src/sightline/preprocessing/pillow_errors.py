"""Convert errors that Pillow raises for bad data to `ImageError`, and silence its warnings, thread-safely."""

from __future__ import annotations

import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline.errors import ImageError

_THREAD_STATE = threading.local()


class _ThreadCheckMeta(type):
    def __subclasscheck__(cls, _other: type) -> bool:
        return getattr(_THREAD_STATE, "reading", False)


class _SilencedWarning(Warning, metaclass=_ThreadCheckMeta):
    """Matches every warning category in threads that are inside `translate_errors`."""


_WARNING_FILTER: Any = ("ignore", None, _SilencedWarning, None, 0)
_readers, _READERS_LOCK = 0, threading.Lock()
_filter_lists: list[list[Any]] = []  # lists with the filter; `catch_warnings` may keep and restore one


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Silence the warnings of this thread in the block.

    `warnings.catch_warnings` replaces a global list, so threads would restore each other's filters, and warnings
    shown once would be shown again. A filter that checks the thread is safe; it is installed while any thread reads.
    """
    global _readers  # noqa: PLW0603  # the filters are process-wide as well
    with _READERS_LOCK:
        _readers += 1
        if _WARNING_FILTER not in warnings.filters:
            _filter_lists.append([_WARNING_FILTER, *warnings.filters])
            warnings.filters = _filter_lists[-1]
    was_reading, _THREAD_STATE.reading = getattr(_THREAD_STATE, "reading", False), True
    try:
        yield
    finally:
        _THREAD_STATE.reading = was_reading
        with _READERS_LOCK:
            _readers -= 1
            if not _readers:
                warnings.filters = [each for each in warnings.filters if each is not _WARNING_FILTER]
                for filters in _filter_lists:
                    filters[:] = [each for each in filters if each is not _WARNING_FILTER]
                _filter_lists.clear()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Convert whatever Pillow raises for bad data to ImageError, and silence its warnings.

    Messages that libjpeg and libtiff write to standard error cannot be suppressed.
    """
    try:
        with _silence_warnings():
            yield
    except ImageError:
        raise
    except Exception as error:  # OSError, SyntaxError, KeyError, zlib.error, MemoryError...: Pillow may raise any
        text = str(error) if " " in str(error) else repr(error)
        truncation_match = re.search(
            "truncat|not enough image data|reached eof|end of file|only got", text, re.IGNORECASE
        )
        is_truncated = truncation_match or {EOFError, IndexError, struct.error} & {type(error), type(error.__cause__)}
        raise ImageError("truncated" if is_truncated else f"cannot be decoded: {text[:100]}") from error
