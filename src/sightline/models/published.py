"""Weights files in the layout of those that Keras publishes (``.h5``, layer by layer, by order)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read(path: Path) -> list[tuple[str, list[Array]]] | None:
    """Return name and arrays of each layer with weights, in the file's order; None for a file of another layout.

    Raises `ValueError` for a file whose arrays lie elsewhere: HDF5 can point into any other file of this machine.
    """
    import h5py

    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        found = [(name, _arrays(group[name])) for name in _names(group, "layer_names")]
    return [(name, arrays) for name, arrays in found if arrays] or None


def _arrays(group: Any) -> list[Array]:
    arrays = []
    for name in _names(group, "weight_names"):
        stored = group[name]
        if stored.external or stored.is_virtual or stored.file != group.file:
            raise ValueError(f"{name} lies in another file")
        arrays.append(np.asarray(stored))
    return arrays


def _names(group: Any, attribute: str) -> list[str]:
    """Return a list of names; a long one is split over ``layer_names0``, ``layer_names1`` and so on."""
    rows = list(group.attrs.get(attribute, ()))
    part = 0
    while not rows or part:
        more = group.attrs.get(f"{attribute}{part}")
        if more is None:
            break
        rows.extend(more)
        part += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for name in rows]


def variables(layers: Sequence[Any]) -> list[Any]:
    """Return the weights of `layers` in the order of such a file: for each layer what learns, then what does not."""
    return [v for layer in layers for v in (*layer.trainable_weights, *layer.non_trainable_weights)]


def fitted(array: Array, shape: Sequence[int]) -> Array | None:
    """Return `array` if it is of that shape, or can be read so; None if not.

    One filter per channel is stored as [H, W, 1, C] by a grouped and as [H, W, C, 1] by a depthwise convolution.
    """
    if array.shape == tuple(shape):
        return array
    if array.ndim == 4 and array.shape[2] == 1:
        turned = array.transpose(0, 1, 3, 2)
        return turned if turned.shape == tuple(shape) else None
    return None
