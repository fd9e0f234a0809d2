"""Read the tensors of a PyTorch file in the format used before version 1.6, without PyTorch and without `pickle`.

Such a file is five pickles (magic number, format version, facts about the machine, a dictionary of tensors, the keys
of their storages), followed by the storages themselves. A pickle is a program that may import and call anything. Here
it is interpreted by `_run_pickle`, which supports only the instructions and the four names that a dictionary of tensors
needs, and never imports or calls anything that a file names.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from sightline import _io

MAGIC_NUMBER, FORMAT_VERSION = 0x1950A86A20F9469CFC6C, 1001  # from torch.serialization
MAX_PICKLE_BYTES = 1 << 20  # limit on all pickles together; EfficientNet-Lite2's take 62 kB
MAX_FILE_BYTES = 1 << 28
MAX_AXES = 8

_ORDERED_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
_NAMES = frozenset({_ORDERED_DICT, _TENSOR, *_STORAGE_DTYPES})
_MARK = object()


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of a function or type of PyTorch, which is never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """Return the tensors of the file at `path` by name, in file order: float32 or int64, read-only.

    The file's hash is checked before anything else is read. Raises `ValueError` if the hash is not `sha256`, or the
    file is not a dictionary of tensors on a CPU.
    """
    try:
        data = _io.read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from error
    if (actual := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"its SHA-256 is {actual}, but that of the published file is {sha256}")
    return parse_tensors(data)


def read_layers(path: Path, sha256: str) -> list[tuple[str, list[NDArray[Any]]]]:
    """Return the name and arrays of each layer in file order, with the arrays in Keras' order and layout.

    Kernels are [H, W, C, F] instead of [F, C, H, W], and [C, F] instead of [F, C] in dense layers. The numbers of
    batches that normalization has seen are left out. Raises `ValueError` as `read_tensors` does.
    """
    layers: dict[str, list[NDArray[Any]]] = {}
    for name, array in read_tensors(path, sha256).items():
        if array.dtype == np.float32:
            layers.setdefault(name.rpartition(".")[0], []).append(_to_keras_layout(array))
    return list(layers.items())


def _to_keras_layout(array: NDArray[Any]) -> NDArray[Any]:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def parse_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file with the content `data`; see `read_tensors`."""
    stream = io.BytesIO(data[:MAX_PICKLE_BYTES])
    try:
        magic, version, machine, tensors, keys = (_run_pickle(stream) for _ in range(5))
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # an empty stack, or a value of another type
        raise ValueError(f"its pickle is malformed: {error}") from error
    if (magic, version) != (MAGIC_NUMBER, FORMAT_VERSION):
        raise ValueError("it is not a PyTorch file in the format before version 1.6")
    if not (isinstance(machine, dict) and machine.get("little_endian") is True):
        raise ValueError("its numbers are not in little-endian order")
    if not (isinstance(tensors, dict) and all(isinstance(t, _Tensor) for t in tensors.values())):
        raise ValueError("it holds something other than a dictionary of tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and sorted(keys) == sorted(storages)):
        raise ValueError("its list of storages is not that of its tensors")
    arrays = _read_storages(data, stream.tell(), [storages[key] for key in keys])
    return {str(name): _view_tensor(tensor, arrays) for name, tensor in tensors.items()}


def _read_storages(data: bytes, start: int, storages: list[_Storage]) -> dict[_Storage, NDArray[Any]]:
    """Return the consecutive storages from `start`: each is a count of 8 bytes, then the numbers."""
    arrays = {}
    for storage in storages:
        stop = start + 8 + storage.count * storage.dtype.itemsize
        if stop > len(data) or int.from_bytes(data[start : start + 8], "little") != storage.count:
            raise ValueError(f"its storage {storage.key!r} does not hold {storage.count:,} numbers")
        arrays[storage] = np.frombuffer(data, storage.dtype, storage.count, start + 8)
        start = stop
    if start != len(data):
        raise ValueError(f"{len(data) - start:,} bytes follow its last storage")
    return arrays


def _view_tensor(tensor: _Tensor, arrays: Mapping[_Storage, NDArray[Any]]) -> NDArray[Any]:
    if tensor.storage not in arrays:
        raise ValueError(f"its storage {tensor.storage.key!r} has two sizes or types")
    array = arrays[tensor.storage][tensor.offset :]
    strides = tuple(stride * array.itemsize for stride in tensor.strides)
    return as_strided(array, tensor.shape, strides, writeable=False)  # `_rebuild` has checked the bounds


def _read_instructions(stream: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield the instructions of a pickle with their arguments; raises `ValueError` for a damaged pickle."""
    instructions = pickletools.genops(stream)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an unknown escape in a string means damage
                opcode, argument, _ = next(instructions)
        except StopIteration:
            return
        except DeprecationWarning as error:
            raise ValueError(f"its pickle is damaged: {error}") from None
        yield opcode, argument


def _run_pickle(stream: io.BytesIO) -> Any:
    """Run the pickle at the position of `stream` and return its value; raises `ValueError` for forbidden content."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument in _read_instructions(stream):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
            stack.append(argument)
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise ValueError(
                    f"its pickle names {argument.replace(' ', '.')}, which a file of tensors does not need"
                )
            stack.append(_Name(argument))
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](stack)
        else:
            raise ValueError(f"its pickle has the instruction {name}, which a file of tensors does not need")
    raise ValueError("its pickle has no end")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _rebuild(function: Any, arguments: Any) -> Any:
    """Return the result of calling `function`: an empty dictionary or the description of a tensor."""
    if function == _Name(_ORDERED_DICT) and arguments == ():
        return {}
    if function != _Name(_TENSOR):
        raise ValueError("its pickle calls something other than a tensor or an empty dictionary")
    # A list could still grow after the check, because the memo of the pickle refers to it.
    storage, offset, shape, strides = arguments[:4] if type(arguments) is tuple else (None,) * 4
    is_tensor = isinstance(storage, _Storage) and type(shape) is type(strides) is tuple
    if not (is_tensor and len(shape) == len(strides) <= MAX_AXES and _are_counts(offset, *shape, *strides)):
        raise ValueError("it has a tensor without a storage, a shape or strides")
    stop = offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape or max(stop, math.prod(shape), *strides) > storage.count:
        raise ValueError(f"its tensor of shape {shape} does not lie in its storage")
    return _Tensor(storage, offset, shape, strides)


def _make_storage(fields: Any) -> _Storage:
    kind, name, key, device, count, view = fields
    dtype: np.dtype[Any] | None = _STORAGE_DTYPES.get(name.text) if isinstance(name, _Name) else None
    if dtype is None or (kind, device, view) != ("storage", "cpu", None):
        raise ValueError("it has a storage that is not of float32 or int64 numbers on a CPU")
    if not (isinstance(key, str) and _are_counts(count) and count <= MAX_FILE_BYTES):
        raise ValueError("it has a storage without a key or a size")
    return _Storage(dtype, key, count)


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    """Set key-value pairs in the dictionary at the top of the stack."""
    if not all(isinstance(key, str) for key in items[::2]):
        raise TypeError("a key of a dictionary is not text")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _extend(stack: list[Any], items: list[Any]) -> None:
    stack[-1].extend(items)


_INSTRUCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "PROTO": lambda _: None,
    "MARK": lambda stack: stack.append(_MARK),
    "NONE": lambda stack: stack.append(None),
    "NEWTRUE": lambda stack: stack.append(True),
    "NEWFALSE": lambda stack: stack.append(False),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "TUPLE1": lambda stack: stack.append((stack.pop(),)),
    "TUPLE2": lambda stack: stack.append((stack.pop(-2), stack.pop())),
    "TUPLE": lambda stack: stack.append(tuple(_pop_to_mark(stack))),
    "TUPLE3": lambda stack: stack.append((stack.pop(-3), stack.pop(-2), stack.pop())),
    "SETITEM": lambda stack: _set_items(stack, [stack.pop(-2), stack.pop()]),
    "SETITEMS": lambda stack: _set_items(stack, _pop_to_mark(stack)),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _pop_to_mark(stack)),
    "BINPERSID": lambda stack: stack.append(_make_storage(stack.pop())),
    "REDUCE": lambda stack: stack.append(_rebuild(stack.pop(-2), stack.pop())),
    "BUILD": lambda stack: stack.pop(),  # drops attributes of the dictionary: the versions of its layers
}
"""The allowed instructions without an argument, as changes of the stack."""
