"""Two things that Keras keeps for the whole process, held still while a network is built."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline import backend


@contextmanager
def own_names() -> Iterator[None]:
    """Number layers without a name from the start, so that no name depends on what was built before.

    Weights are saved, resumed and hashed by such names. Afterwards Keras counts on from the greater of both numbers: a
    layer that is laid upon the network later takes no name twice.
    """
    state = _state()
    before = dict(state.get_global_attribute("object_name_uids") or {})
    state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        now = state.get_global_attribute("object_name_uids")
        for prefix, count in before.items():
            now[prefix] = max(now[prefix], count)


@contextmanager
def no_values() -> Iterator[None]:
    """Let variables have a shape only: VGG16 takes 0.1 s and no memory in place of half a gigabyte."""
    state = _state()
    before = list(state.get_global_attribute("uninitialized_variables") or [])
    with backend.keras().StatelessScope(initialize_variables=False):
        yield
    state.set_global_attribute("uninitialized_variables", before)  # else the next network built would fill them


def _state() -> Any:
    backend.keras()
    return importlib.import_module("keras.src.backend.common.global_state")  # Keras has no public way to either
