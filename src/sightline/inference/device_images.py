"""Keep the images of a subset on the device, and compute a model's outputs for them without waiting between batches.

On a GPU, a step of a small network takes less time than copying its batch there and waiting for its results. Only JAX
keeps images on its device; see `keeps_images`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.callbacks import Progress, no_progress
from sightline.config import DeviceConfig
from sightline.data.batches import iterate_slices
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.errors import UsageError

IMAGE_FRACTION = 0.4  # share of the device's memory for the images of all splits; the rest is for training
COPY_BYTES = 256 << 20  # bytes copied to the device at a time
BATCHES_IN_FLIGHT = 4  # limit on unread batches: their outputs take up memory on the device


def keeps_images(device: DeviceConfig) -> bool:
    """Return whether to keep images on the device, according to ``device.data_on_device``: on JAX, with one device.

    Raises `UsageError` if the setting requires it and it is not possible.
    """
    reason = ""
    if backend.name() != "jax":
        reason = f"{backend.name()} cannot: use device.backend=jax"
    elif devices.count_replicas() > 1:
        reason = "several devices cannot: use --devices 1"
    if device.data_on_device == "on" and reason:
        raise UsageError(f"device.data_on_device is on, but {reason}, or leave it at auto.")
    if reason or device.data_on_device == "off":
        return False
    return device.data_on_device == "on" or backend.has_accelerator()


def find_free_bytes() -> int | None:
    """Return how many bytes of device memory images may still use; None if the device reports no limit (a CPU).

    This is `IMAGE_FRACTION` of its memory, but at most half of what is free.
    """
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    if limit is None:
        return None
    return int(min(IMAGE_FRACTION * limit, (limit - statistics.get("bytes_in_use", 0)) / 2))


def fit_on_device(*subsets: Subset) -> bool:
    """Return whether the images of all `subsets` fit into the memory that `find_free_bytes` returns."""
    free = find_free_bytes()
    return free is None or sum(len(subset) * _count_row_bytes(subset) for subset in subsets) <= free


def copy_to_device(subset: Subset) -> Any:
    """Return the images of `subset`, in order, as an array on the device: [N, H, W, C].

    They are copied in parts of equal size, and only one part at a time is in host memory.
    """
    import jax

    size = max(1, min(len(subset), COPY_BYTES // _count_row_bytes(subset)))
    images = jax.numpy.zeros((len(subset), *subset.pixels.shape[1:]), subset.pixels.dtype)
    write = jax.jit(partial(jax.lax.dynamic_update_slice_in_dim, axis=0), donate_argnums=0)
    for rows in iterate_slices(len(subset), size):
        start = min(rows.start, len(subset) - size)  # the last part overlaps, so that all sizes are equal
        images = write(images, subset.take(slice(start, start + size)), start)
    return images


def gather_rows(images: Any, rows: Any) -> Any:
    """Return the images at `rows` int32 [n], inside a compiled function: [n, H, W, C].

    The barrier keeps XLA from fusing the gather with the network, so that the results equal those of a batch from the
    host, bit for bit.
    """
    import jax

    return jax.lax.optimization_barrier(images.at[rows].get(mode="promise_in_bounds"))


class DeviceInference:
    """Computes the output of a single-output Keras `model` on JAX for the images of `subset`.

    The images are copied to the device at the first call, and stay there.
    """

    def __init__(self, model: Any, subset: Subset) -> None:
        import jax

        self._model, self._subset, self._images = model, subset, None

        def compute(values: Any, images: Any, rows: Any) -> Any:
            return model.predict_step(values, (gather_rows(images, rows),))[0]

        self._compute = jax.jit(compute)

    def iterate(
        self, batch_size: int, progress: Progress = no_progress, count: int | None = None, *, padded: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the outputs of the first `count` images (at least one; default: all) in batches: float32 [n, ...].

        Every batch is computed with `batch_size` rows, or `count` if that is less and not `padded`; `progress` is
        called when the outputs of a batch have been read.
        """
        if self._images is None:
            self._images = copy_to_device(self._subset)
        count = len(self._subset) if count is None else count
        size = batch_size if padded else min(batch_size, count)
        values = devices.read_values((self._model.trainable_variables, self._model.non_trainable_variables))
        pending: deque[tuple[slice, Any]] = deque()

        def read_oldest() -> NDArray[np.float32]:
            rows, result = pending.popleft()
            outputs = np.array(result)[: rows.stop - rows.start]
            progress("", rows.stop, count)
            return outputs

        for rows in iterate_slices(count, size):
            positions = np.minimum(np.arange(rows.start, rows.start + size), count - 1).astype(np.int32)
            pending.append((rows, self._compute(values, self._images, positions)))
            if len(pending) > BATCHES_IN_FLIGHT:
                yield read_oldest()
        while pending:
            yield read_oldest()


def _count_row_bytes(subset: Subset) -> int:
    return max(1, int(np.prod(subset.pixels.shape[1:])) * subset.pixels.dtype.itemsize)
