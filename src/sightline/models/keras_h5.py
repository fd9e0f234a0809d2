"""Read weights files in the legacy format of `keras.applications` (``.h5``, layer by layer, in order).

An untrusted HDF5 file may link to any other file, and declare arrays of any size, compressed or never written. So all
links and sizes are checked before any array is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sightline._io import open_regular

Array = NDArray[Any]
MAX_RATIO = 4  # limit on the size of all arrays relative to their file; Keras does not compress weights
_MAX_ITEMS = 100_000  # groups and data sets
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_h5_layers(path: Path) -> list[tuple[str, list[Array]]] | None:
    """Return the name and arrays of each layer with weights, in file order; None for a file in another format.

    The links and sizes in any HDF5 file are checked, even if Keras reads it. Raises `ValueError` as `measure_arrays`
    does, and for arrays of more than `MAX_RATIO` times the size of the file.
    """
    with open_regular(path) as source:  # opened once: its name may refer to something else later
        return _read_layers(source) if _is_hdf5(source) else None


def _is_hdf5(file: IO[bytes]) -> bool:
    """Return whether a file has the HDF5 signature where the library looks for it: at 0, 512, 1024, 2048 and so on."""
    offset, size = 0, os.fstat(file.fileno()).st_size
    while offset < size:
        file.seek(offset)
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return True
        offset = max(2 * offset, 512)
    return False


def _read_layers(source: IO[bytes]) -> list[tuple[str, list[Array]]] | None:
    import h5py

    with h5py.File(source, "r") as file:
        size, file_size = measure_arrays(file), os.fstat(source.fileno()).st_size
        if size > MAX_RATIO * file_size:
            raise ValueError(f"its arrays take {size:,} bytes, more than {MAX_RATIO} times the file's {file_size:,}")
        group = file.get("model_weights", file)
        layers, total = [], 0
        for name in _read_names(group, "layer_names"):
            datasets = [group[name][weight] for weight in _read_names(group[name], "weight_names")]
            total += sum(dataset.nbytes for dataset in datasets)
            if total > size:
                raise ValueError(f"the layer {name!r} has arrays that another one has")
            layers.append((name, [np.asarray(dataset) for dataset in datasets]))
    return [(name, arrays) for name, arrays in layers if arrays] or None


def measure_arrays(file: Any) -> int:
    """Return the size in memory of all arrays of an open HDF5 file, without reading them.

    Raises `ValueError` for data outside the file, links, second names, arrays of objects or too many items.
    """
    import h5py  # a dependency of Keras

    total = 0
    visited: set[int | None] = set()
    groups = [file]
    while groups:
        group = groups.pop()
        for name in group:
            item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
            address = None if item is None else h5py.h5o.get_info(item.id).addr
            if address in visited or len(visited) > _MAX_ITEMS:  # a second name may form a cycle
                raise ValueError(f"its weights contain {name!r} twice, or too many items")
            visited.add(address)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset) and not (item.external or item.is_virtual or item.dtype.hasobject):
                chunk = math.prod(item.chunks or ())  # a chunk is read as a whole, and may be larger than the array
                total += max(item.size or 0, chunk) * item.dtype.itemsize
            else:
                raise ValueError(f"{name!r} in its weights refers to data elsewhere")
    return total


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


def read_shapes(source: Path | IO[bytes]) -> list[tuple[int, ...]]:
    """Return the shapes of the weights in a checked HDF5 file of Keras 3, without reading the weights."""
    import h5py

    shapes: list[tuple[int, ...]] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):  # its moments have the same shapes
            shapes.append(item.shape)

    with h5py.File(source, "r") as file:
        file.visititems(visit)
    return shapes


def count_convolutions(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return how many of these shapes are convolution kernels, not counting 1x1 convolutions.

    >>> count_convolutions([(3, 3, 3, 32), (32,), (1, 1, 32, 5), (5,), (128, 5)])
    1
    """
    return sum(len(shape) == 4 and shape[:2] != (1, 1) for shape in shapes)


def list_variables(layers: Sequence[Any]) -> list[Any]:
    """Return the weights of `layers` in file order: for each layer, trainable weights before non-trainable ones."""
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
