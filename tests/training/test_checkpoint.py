"""Checkpoints restore the same arrays, reject damaged files, and survive a full disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from networks import network, outputs, pictures, plan
from sightline import backend
from sightline.errors import ModelError, OutputError
from sightline.models.build import build
from sightline.models.describe import weights_sha256
from sightline.training import checkpoint
from sightline.training.checkpoint import Checkpoint

STATE: dict[str, Any] = {"epoch": 3, "stage": "ä", "best": None, "list": [1, 2.5, "x"]}


def some(number: int) -> Checkpoint:
    return Checkpoint({"model/0000:conv1/kernel": np.full((2, 3), number, np.float32)}, {"epoch": number})


def names(folder: Path) -> list[str]:
    return sorted(path.name[:5] for path in folder.iterdir())


@given(
    st.dictionaries(
        st.text("abc/:0123_", min_size=1, max_size=12).filter(lambda name: name not in {"state", "file"}),
        arrays_of.arrays(st.sampled_from(["<f4", "<i8", "|u1", "|b1"]), arrays_of.array_shapes(min_dims=0)),
        max_size=3,
    )
)
def test_arrays_and_state_come_back(made: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = checkpoint.read(checkpoint.write(Path(folder), 1, Checkpoint(made, STATE)))
    assert found.state == STATE
    assert set(found.arrays) == set(made)
    for name, array in made.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.backends
def test_network_and_optimizer_come_back(tmp_path: Path) -> None:
    keras = backend.keras()
    made = build(plan("cifar10-deep"))
    learner = keras.Model(made.model.input, made.logits)
    learner.compile(keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(from_logits=True))
    pixels, shares = pictures(4, 8), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    learner.train_on_batch(pixels, shares)
    arrays = checkpoint.variables(made.model)
    of_optimizer = checkpoint.variables(learner.optimizer)
    path = checkpoint.write(tmp_path, 1, Checkpoint(arrays | {f"o/{k}": v for k, v in of_optimizer.items()}, {}))
    expected = weights_sha256(made.model)
    learner.train_on_batch(pixels, shares)
    assert weights_sha256(made.model) != expected
    assert int(arrays_at(of_optimizer, "iteration")) == 1, "a copy must not change with the variable"

    found = checkpoint.read(path).arrays
    other = build(plan("cifar10-deep", seed=9))
    checkpoint.restore(other.model, {k: v for k, v in found.items() if not k.startswith("o/")})
    assert weights_sha256(other.model) == expected
    checkpoint.restore(made.model, found)
    np.testing.assert_array_equal(outputs(made.model, pixels)["logits"], outputs(other.model, pixels)["logits"])
    checkpoint.restore(learner.optimizer, {k[2:]: v for k, v in found.items() if k.startswith("o/")})
    assert int(learner.optimizer.iterations) == 1


def arrays_at(arrays: checkpoint.Arrays, part: str) -> Any:
    (found,) = (array for name, array in arrays.items() if part in name)
    return found


def test_names_of_variables_are_unique_and_repeat() -> None:
    made = checkpoint.variables(network("mobilenetv2").model)
    assert len(made) == len(network("mobilenetv2").model.variables)
    assert list(made) == list(checkpoint.variables(build(plan("mobilenetv2", classes=3, seed=4)).model))


def test_name_carries_number_and_hash(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "new" / "checkpoints", 7, some(7))
    number, _, digest = path.stem.partition("-")
    assert number == "00007"
    assert len(digest) == 16
    assert checkpoint.write(tmp_path / "again", 7, some(7)).name == path.name
    assert checkpoint.write(tmp_path / "again", 7, some(8)).name != path.name


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, Checkpoint({"a": np.zeros(3)}, STATE))
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {"state.npy", "a.npy"}
        for name in archive.namelist():
            np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        checkpoint.write(tmp_path, 2, Checkpoint({"a": np.array([object()])}, {}))


def test_pickle_in_the_place_of_a_checkpoint_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    buffer = io.BytesIO()
    np.savez(buffer, state=np.array([Bomb()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Bomb())):
        path = tmp_path / f"00001-{hashlib.sha256(data).hexdigest()[:16]}.npz"
        path.write_bytes(data)
        with pytest.raises(ModelError, match="cannot be read"):
            checkpoint.read(path)


def test_two_are_kept(tmp_path: Path) -> None:
    for number in range(1, 12):
        checkpoint.write(tmp_path, number, some(number))
        assert names(tmp_path) == [f"{n:05}" for n in (number - 1, number) if n]
    checkpoint.write(tmp_path, 12, some(12), keep=1)
    assert names(tmp_path) == ["00012"]
    checkpoint.write(tmp_path, 13, some(13), keep=3)
    checkpoint.write(tmp_path, 14, some(14), keep=3)
    checkpoint.write(tmp_path, 15, some(15), keep=3)
    assert names(tmp_path) == ["00013", "00014", "00015"]


@pytest.mark.parametrize("numbers", [(9, 10), (99_999, 100_000)])
def test_newest_is_found(tmp_path: Path, numbers: tuple[int, int]) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    for number in numbers:
        checkpoint.write(tmp_path, number, some(number))
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"epoch": numbers[1]}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("value", range(6))
def test_epoch_done_over_replaces_what_it_was(tmp_path: Path, value: int) -> None:
    """Interrupted in epoch 5 and resumed: the newer file is used, whatever the order of the hashes."""
    checkpoint.write(tmp_path, 4, some(4))
    checkpoint.write(tmp_path, 5, some(100 + value))
    checkpoint.write(tmp_path, 5, some(5))
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"epoch": 5}
    assert names(tmp_path) == ["00004", "00005"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_damaged_file_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    first, last = (checkpoint.write(tmp_path, number, some(number)) for number in (1, 2))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes({"cut": bytes(data[:-9]), "flipped": bytes(data), "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        last.unlink()
        last.mkdir()  # cannot be read as a file
    with pytest.raises(ModelError, match=r"is damaged|cannot be read"):
        checkpoint.read(last)
    said: list[str] = []
    found = checkpoint.latest(tmp_path, said.append)
    assert found is not None
    assert found.state == {"epoch": 1}
    assert [last.name in line and line.endswith("Using the previous one.") for line in said] == [True]
    first.write_bytes(b"")
    said.clear()
    assert checkpoint.latest(tmp_path, said.append) is None
    assert said[-1].endswith("There is no earlier one.")
    if damage != "gone":
        first.write_bytes(b"damaged too")
        assert checkpoint.latest(tmp_path) is None


def test_full_disk_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        checkpoint.write(tmp_path, number, some(number))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"00003 .*No space left on device\. Free some space"):
        checkpoint.write(tmp_path, 3, some(3))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_bytes(b"a file")
    with pytest.raises(OutputError, match="cannot be written"):
        checkpoint.write(tmp_path / "checkpoints", 1, some(1))


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / ".part-0123456789abcdef.tmp").write_bytes(b"half")
    checkpoint.write(tmp_path, 1, some(1))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
