"""Distinguish a storage outage from single images that the storage does not deliver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sightline.data.remote import is_not_fetched
from sightline.errors import DataError
from sightline.escaping import hide_secrets

MAX_NOT_FETCHED = 32
"""Images in a row that a storage fails to deliver before the job stops: twice as many as are read at a time."""
T = TypeVar("T")


def stop_in_outage(results: Iterable[T], describe: Callable[[T], tuple[str, str | None]]) -> Iterator[T]:
    """Yield `results`; raises `DataError` after `MAX_NOT_FETCHED` in a row that a storage did not deliver.

    None of these is yielded, so that a resumed job reads them again. `describe` returns the path of an image and the
    reason why it has no result, or None.
    """
    waiting: list[T] = []
    first = ""
    for result in results:
        path, reason = describe(result)
        if not is_not_fetched(reason):
            yield from waiting
            waiting = []
            yield result
            continue
        first = first if waiting else path
        waiting.append(result)
        if len(waiting) == MAX_NOT_FETCHED:
            raise DataError(
                f"{MAX_NOT_FETCHED} images in a row, from {hide_secrets(first)} on, {reason}. Check the connection and "
                "the credentials, then run the same command again to go on."
            )
    yield from waiting
