"""Compile less on JAX: cache compiled programs on disk, and create a model's variables with few programs."""

from __future__ import annotations

import importlib
import importlib.util
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightline._keras.imports import set_variable

CACHE_BYTES = 2 << 30  # of compiled programs, the least recently used of which JAX removes
MIN_SECONDS = 0.1  # programs that take less time to compile are not kept
_patch_lock = threading.RLock()
MAX_SHARED_DRAW = 1 << 20  # values; larger arrays are drawn by a program of their own


def keep_compiled_programs(folder: Path) -> bool:
    """Make JAX keep what it compiles in `folder`; return whether it will.

    It reads these variables when it is imported, so a program that has imported JAX itself is not changed, and neither
    are variables that are set already. Without the package filelock, which limits the size, nothing is kept.
    """
    if importlib.util.find_spec("filelock") is None:
        return False
    set_variable("JAX_COMPILATION_CACHE_DIR", str(folder))
    set_variable("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_BYTES))
    set_variable("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_SECONDS))
    return True


@contextmanager
def share_compiled_draws() -> Iterator[None]:
    """On JAX, draw initial values in the block by one program for many shapes; does nothing on other backends.

    JAX compiles a program for each shape: 25 of them, a third of all compilation, for the weights of MobileNetV2, and
    one for the zeros of each shape of an optimizer. An array is the first values of a larger draw from the same key
    instead, whose size is a power of four: JAX's generator counts, so they are the same values. Zeros and ones come
    from NumPy.
    """
    import keras

    if keras.backend.backend() != "jax":
        yield
        return
    import jax
    import numpy as np

    draws = importlib.import_module("keras.src.backend.jax.random")
    arrays = importlib.import_module("keras.src.backend.jax.numpy")
    with _patch_lock:
        patches = [(arrays, name, _fill_by_numpy(getattr(np, name))) for name in ("zeros", "ones")]
        if jax.config.jax_threefry_partitionable:
            names = ("uniform", "normal", "truncated_normal")
            patches += [(draws, name, _share_draw(getattr(draws, name))) for name in names]
        originals = [(module, name, getattr(module, name)) for module, name, _ in patches]
        try:
            for patch in patches:
                setattr(*patch)
            yield
        finally:
            for original in originals:
                setattr(*original)


def _share_draw(draw: Callable[..., Any]) -> Callable[..., Any]:
    import jax
    import numpy as np

    def call(shape: Any, *args: Any, **named: Any) -> Any:
        count = math.prod(shape)
        if not 0 < count <= MAX_SHARED_DRAW:
            return draw(shape, *args, **named)
        size = 1024
        while size < count:
            size *= 4
        values = draw((size,), *args, **named)
        if isinstance(values, jax.core.Tracer):  # while the shapes of a graph are inferred
            return values[:count].reshape(shape)
        return jax.device_put(np.asarray(values)[:count].reshape(shape), may_alias=False)

    return call


def _fill_by_numpy(fill: Callable[..., Any]) -> Callable[..., Any]:
    import jax
    import keras

    def call(shape: Any, dtype: Any = None) -> Any:
        return jax.device_put(fill(shape, jax.numpy.dtype(dtype or keras.config.floatx())), may_alias=False)

    return call
