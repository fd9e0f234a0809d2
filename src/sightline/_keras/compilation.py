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

CACHE_BYTES = 2 << 30  # limit on compiled programs; JAX removes the least recently used ones
MIN_SECONDS = 0.1  # programs that take less time to compile are not kept
_patch_lock = threading.RLock()
MAX_SHARED_DRAW = 1 << 20  # values; larger arrays are drawn by a program of their own


def keep_compiled_programs(folder: Path) -> None:
    """Make JAX cache compiled programs in `folder`.

    JAX reads these variables when it is imported, so programs that have imported JAX before are not affected. Variables
    that are already set do not change. Nothing is cached without the package filelock, which limits the size.
    """
    if importlib.util.find_spec("filelock") is None:
        return
    set_variable("JAX_COMPILATION_CACHE_DIR", str(folder))
    set_variable("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_BYTES))
    set_variable("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_SECONDS))


@contextmanager
def share_compiled_draws() -> Iterator[None]:
    """On JAX, draw initial values in the block with one program for many shapes; does nothing on other backends.

    By default, JAX compiles a program for each shape: 25 programs, a third of all compilation, for the weights of
    MobileNetV2, and one for the zeros of each shape in an optimizer. Instead, an array is the start of a larger draw
    from the same key, with a power of four as its size: JAX's generator is counter-based, so the values are the same.
    Zeros and ones come from NumPy.
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
        if isinstance(values, jax.core.Tracer):  # during shape inference of a graph
            return values[:count].reshape(shape)
        return jax.device_put(np.asarray(values)[:count].reshape(shape), may_alias=False)

    return call


def _fill_by_numpy(fill: Callable[..., Any]) -> Callable[..., Any]:
    import jax
    import keras

    def call(shape: Any, dtype: Any = None) -> Any:
        return jax.device_put(fill(shape, jax.numpy.dtype(dtype or keras.config.floatx())), may_alias=False)

    return call
