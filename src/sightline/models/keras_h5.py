"""Read weights files in the legacy format of `keras.applications` (``.h5``, layer by layer, in order)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read_h5_layers(path: Path) -> list[tuple[str, list[Array]]] | None:
    """Return the name and arrays of each layer with weights, in file order; None for a file in another format.

    Raises `ValueError` if an array is stored outside the file: an HDF5 link could read any other file.
    """
    import h5py

    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        layers = [(name, _read_arrays(group[name])) for name in _read_names(group, "layer_names")]
    return [(name, arrays) for name, arrays in layers if arrays] or None


def _read_arrays(group: Any) -> list[Array]:
    arrays = []
    for name in _read_names(group, "weight_names"):
        dataset = group[name]
        if dataset.external or dataset.is_virtual or dataset.file != group.file:
            raise ValueError(f"{name} is stored in another file")
        arrays.append(np.asarray(dataset))
    return arrays


def _read_names(group: Any, attribute: str) -> list[str]:
    """Return a list of names; HDF5 splits long lists into ``layer_names0``, ``layer_names1`` and so on."""
    rows = list(group.attrs.get(attribute, ()))
    suffix = 0
    while not rows or suffix:
        chunk = group.attrs.get(f"{attribute}{suffix}")
        if chunk is None:
            break
        rows.extend(chunk)
        suffix += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for name in rows]


def list_variables(layers: Sequence[Any]) -> list[Any]:
    """Return the weights of `layers` in file order: for each layer, trainable before non-trainable ones."""
    return [v for layer in layers for v in (*layer.trainable_weights, *layer.non_trainable_weights)]


def match_shape(array: Array, shape: Sequence[int]) -> Array | None:
    """Return `array` in `shape`, transposed if it is a depthwise kernel; None if the shapes do not match.

    A grouped convolution stores one filter per channel as [H, W, 1, C], a depthwise convolution as [H, W, C, 1].
    """
    if array.shape == tuple(shape):
        return array
    if array.ndim == 4 and array.shape[2] == 1:
        transposed = array.transpose(0, 1, 3, 2)
        return transposed if transposed.shape == tuple(shape) else None
    return None
