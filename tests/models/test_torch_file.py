"""A file of PyTorch's is read without PyTorch and without `pickle`; what is not a dictionary of tensors is refused."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.models import torch_file
from sightline.models.torch_file import parse_tensors

STORAGES = {"f": "FloatStorage", "q": "LongStorage"}
HEADER = [torch_file.MAGIC_NUMBER, torch_file.FORMAT_VERSION, {"little_endian": True}]


def storage(kind: str, key: str, count: int) -> bytes:
    """Return the instructions that push a storage, as `torch.save` writes them."""
    return (
        b"(" + unicode("storage") + f"ctorch\n{STORAGES[kind]}\n".encode() + unicode(key) + unicode("cpu")
        + integer(count) + b"NtQ"
    )  # fmt: skip


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def long_integers(value: int) -> bytes:
    """Return the instructions that push a tuple of one number of more than 4 bytes."""
    digits = value.to_bytes(9, "little")
    return b"(\x8a" + bytes([len(digits)]) + digits + b"t"


def tensor(stored: bytes, offset: int, shape: tuple[int, ...] | bytes, strides: tuple[int, ...] | bytes) -> bytes:
    pushed = b"".join(sizes if isinstance(sizes, bytes) else integers(sizes) for sizes in (shape, strides))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + integer(offset) + pushed
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def grow_lists(stored: bytes) -> bytes:
    """Return a tensor whose shape and strides are lists, each of which gets a number after it was checked."""
    grown = b"".join(b"h" + bytes([memo]) + b"(" + integer(value) + b"eb" for memo, value in ((50, 1 << 20), (51, 1)))
    return tensor(stored, 0, b"]q\x32", b"]q\x33") + grown


def grow_arguments(stored: bytes) -> bytes:
    """Return a tensor whose arguments are a list."""
    pushed = tensor(stored, 0, (2,), (1,))
    return pushed.replace(b"_rebuild_tensor_v2\n(", b"_rebuild_tensor_v2\n](").removesuffix(b"tR") + b"eR"


def write(tensors: Mapping[str, bytes], storages: Mapping[str, bytes], header: list[Any] | None = None) -> bytes:
    """Return a file of tensors, given as instructions that push them, and of storages, given as their content."""
    body = b"".join(unicode(name) + pushed for name, pushed in tensors.items())
    data = b"".join(pickle.dumps(value, 2) for value in header or HEADER)
    data += b"\x80\x02ccollections\nOrderedDict\n)R(" + body + b"u}" + unicode("_metadata") + b"}sb."
    return data + pickle.dumps(list(storages), 2) + b"".join(storages.values())


def stored(values: Any) -> bytes:
    array = np.asarray(values)
    return struct.pack("<q", array.size) + array.tobytes()


def write_one(pushed: bytes, values: Any = (1.0, 2.0), **options: Any) -> bytes:
    return write({"w": pushed}, {"7": stored(np.float32(values))}, **options)


def test_tensors_are_read_by_name_in_order() -> None:
    weight = np.arange(12, dtype=np.float32)
    tensors = parse_tensors(
        write(
            {
                "b": tensor(storage("f", "1", 12), 0, (3, 4), (4, 1)),
                "transposed": tensor(storage("f", "1", 12), 0, (4, 3), (1, 4)),
                "tail": tensor(storage("f", "1", 12), 9, (3,), (1,)),
                "a": tensor(storage("q", "0", 1), 0, (), ()),
            },
            {"1": stored(weight), "0": stored(np.array([-5], np.int64))},
        )
    )
    assert list(tensors) == ["b", "transposed", "tail", "a"]
    np.testing.assert_array_equal(tensors["b"], weight.reshape(3, 4))
    np.testing.assert_array_equal(tensors["transposed"], weight.reshape(3, 4).T)
    np.testing.assert_array_equal(tensors["tail"], weight[9:])
    assert tensors["a"] == -5
    assert tensors["a"].dtype == np.int64
    assert not any(array.flags.writeable for array in tensors.values())


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", range(5))
def test_hostile_pickle_runs_nothing(protocol: int, place: int, tmp_path: Path) -> None:
    target = tmp_path / "was here"
    pickles = [pickle.dumps(value, 2) for value in (*HEADER, collections.OrderedDict(), [])]
    pickles[place] = pickle.dumps(Hostile(os.mkdir, str(target)), protocol)
    with pytest.raises(ValueError, match=r"names posix\.mkdir, which|which a file of tensors does not need"):
        parse_tensors(b"".join(pickles))
    assert not target.exists()
    pickle.loads(pickles[place])  # noqa: S301  # that it is hostile
    assert target.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins\neval", "torch\nload", "torch._utils\n_rebuild_tensor", "torch\nHalfStorage", "collections\nCounter"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"names {name.replace(chr(10), '[.]')}, which"):
        parse_tensors(write({"w": f"c{name}\n".encode() + b")R"}, {}))


@pytest.mark.parametrize(
    ("pushed", "reason"),
    [
        (tensor(storage("f", "7", 2), 0, (3,), (1,)), "does not lie in its storage"),
        (tensor(storage("f", "7", 2), 1, (2,), (1,)), "does not lie in its storage"),
        (tensor(storage("f", "7", 2), 0, (1, 2), (9, 2)), "does not lie in its storage"),
        (tensor(storage("f", "7", 2), 0, (1 << 30, 2), (0, 1)), "does not lie in its storage"),
        (tensor(storage("f", "7", 2), -1, (2,), (1,)), "without a storage, a shape or strides"),
        (tensor(storage("f", "7", 2), 0, (2,), (-1,)), "without a storage, a shape or strides"),
        (tensor(storage("f", "7", 2), 0, (2,), ()), "without a storage, a shape or strides"),
        (tensor(storage("f", "7", 2), 0, (1,) * 9, (1,) * 9), "without a storage, a shape or strides"),
        (tensor(storage("f", "7", 2), 0, long_integers(1), long_integers(1 << 63)), "does not lie in its storage"),
        (grow_lists(storage("f", "7", 2)), "without a storage, a shape or strides"),
        (grow_arguments(storage("f", "7", 2)), "without a storage, a shape or strides"),
        (tensor(storage("f", "7", 1 << 30), 0, (2,), (1,)), "without a key or a size"),
        (tensor(storage("f", "7", 3), 0, (2,), (1,)), "does not hold 3 numbers"),
        (tensor(storage("q", "7", 2), 0, (2,), (1,)), "does not hold 2 numbers"),
        (tensor(storage("f", "8", 2), 0, (2,), (1,)), "list of storages"),
        (tensor(integer(3), 0, (2,), (1,)), "without a storage"),
        (integer(3), "other than a dictionary of tensors"),
        (b"ctorch\nFloatStorage\n)R", "calls something other than a tensor"),
        (b"ccollections\nOrderedDict\n" + integers((1,)) + b"R", "calls something other than a tensor"),
        (b"0", "has the instruction POP, which"),
        (b"R" * 9, "calls something other"),
        (b"(" * 9 + b"t" * 9 + b"\x86" * 9, "malformed"),
        (b"u", "shorter"),
        (b")" + b"\x85" * 100_000, "other than a dictionary of tensors"),
        (b")" + b"\x85" * 100_000 + b"Ns" + unicode("key"), "a key of a dictionary is not text"),
        (b"j\xff\xff\xff\xff", "malformed"),
        (b"X\xff\xff\xff\xff", "expected 4294967295 bytes"),
        (b"", "shorter|malformed"),
    ],
)
def test_malformed_file_is_refused(pushed: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_tensors(write_one(pushed))


def test_other_formats_are_refused() -> None:
    good = tensor(storage("f", "7", 2), 0, (2,), (1,))
    assert parse_tensors(write_one(good))["w"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"in the format before version 1\.6"):
        parse_tensors(write_one(good, header=[1, *HEADER[1:]]))
    with pytest.raises(ValueError, match="little-endian"):
        parse_tensors(write_one(good, header=[*HEADER[:2], {"little_endian": False}]))
    with pytest.raises(ValueError, match="1 bytes follow"):
        parse_tensors(write_one(good) + b"x")


@given(st.data())
def test_damage_is_refused_or_changes_numbers_alone(data: st.DataObject) -> None:
    file = bytearray(write_one(tensor(storage("f", "7", 2), 0, (2,), (1,))))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = parse_tensors(bytes(file[: data.draw(st.integers(0, len(file)))]))
    except ValueError:
        return
    assert sum(array.size for array in tensors.values()) <= 2


def test_hash_is_checked_before_the_file_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"anything")
    monkeypatch.setattr(torch_file, "parse_tensors", lambda _: pytest.fail("parsed"))
    with pytest.raises(ValueError, match=r"its SHA-256 is ee0874.*, but that of the published file is 00"):
        torch_file.read_tensors(path, "00")
    monkeypatch.setattr(torch_file, "MAX_FILE_BYTES", 7)
    with pytest.raises(ValueError, match="the file cannot be read: more than 7 bytes"):
        torch_file.read_tensors(path, "00")
