"""Isolate Keras' process-wide state (layer name counters, uninitialized variables) while a model is built."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline import backend


@contextmanager
def fresh_layer_names() -> Iterator[None]:
    """Restart Keras' numbering of unnamed layers, so that names do not depend on models built earlier.

    Weights are saved, restored and hashed by these names. On exit, each counter is set to the greater of its old and
    new values, so that a layer added to the model later gets an unused name.
    """
    state = _import_global_state()
    before = dict(state.get_global_attribute("object_name_uids") or {})
    state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        counters = state.get_global_attribute("object_name_uids")
        for prefix, count in before.items():
            counters[prefix] = max(counters[prefix], count)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Create variables with shapes only: VGG16 takes 0.1 s and no memory instead of half a gigabyte."""
    state = _import_global_state()
    before = list(state.get_global_attribute("uninitialized_variables") or [])
    with backend.keras().StatelessScope(initialize_variables=False):
        yield
    state.set_global_attribute("uninitialized_variables", before)  # else the next model built would allocate them


def _import_global_state() -> Any:
    backend.keras()
    return importlib.import_module("keras.src.backend.common.global_state")  # Keras has no public API for either
