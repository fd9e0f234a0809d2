"""Checkpoints restore the same arrays, reject damaged files, and survive a full disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from networks import build_network, compute_outputs, make_plan, random_images
from sightline import backend
from sightline.config import TrainConfig
from sightline.errors import ModelError, OutputError
from sightline.models.build import build_model
from sightline.models.describe import weights_sha256
from sightline.training import checkpoints
from sightline.training.checkpoints import Checkpoint
from sightline.training.state import CheckpointManager, TrainingState, pack_state

STATE: dict[str, Any] = {"epoch": 3, "stage": "ä", "best": None, "list": [1, 2.5, "x"]}


def make_checkpoint(number: int) -> Checkpoint:
    return Checkpoint({"model/0000:conv1/kernel": np.full((2, 3), number, np.float32)}, {"epoch": number})


def test_saving_copies_one_variable_at_a_time(tmp_path: Path) -> None:
    network = build_network("efficientnet-lite0")
    total = sum(array.nbytes for array in checkpoints.copy_variables(network.model).values())
    manager = CheckpointManager(tmp_path, TrainConfig(), 0)
    manager.save(pack_state(TrainingState(), network, None))  # whatever is imported or kept at the first time
    tracemalloc.start()
    try:
        manager.save(pack_state(TrainingState(), network, None))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < total / 2, f"{most:,} bytes for variables of {total:,}"


def list_numbers(folder: Path) -> list[str]:
    return sorted(path.name[:5] for path in folder.iterdir())


@given(
    st.dictionaries(
        st.text("abc/:0123_", min_size=1, max_size=12).filter(lambda name: name not in {"state", "file"}),
        arrays_of.arrays(st.sampled_from(["<f4", "<i8", "|u1", "|b1"]), arrays_of.array_shapes(min_dims=0)),
        max_size=3,
    )
)
def test_arrays_and_state_are_restored(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = checkpoints.read_checkpoint(checkpoints.write_checkpoint(Path(folder), 1, Checkpoint(state, STATE)))
    assert loaded.state == STATE
    assert set(loaded.arrays) == set(state)
    for name, array in state.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)


@pytest.mark.backends
def test_network_and_optimizer_are_restored(tmp_path: Path) -> None:
    keras = backend.keras()
    built_network = build_model(make_plan("cifar10-deep"))
    training_model = keras.Model(built_network.model.input, built_network.logits)
    training_model.compile(keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(from_logits=True))
    pixels, soft_labels = random_images(4, 8), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    training_model.train_on_batch(pixels, soft_labels)
    arrays = checkpoints.copy_variables(built_network.model)
    optimizer_arrays = checkpoints.copy_variables(training_model.optimizer)
    path = checkpoints.write_checkpoint(
        tmp_path, 1, Checkpoint(arrays | {f"o/{k}": v for k, v in optimizer_arrays.items()}, {})
    )
    expected = weights_sha256(built_network.model)
    training_model.train_on_batch(pixels, soft_labels)
    assert weights_sha256(built_network.model) != expected
    assert int(find_array(optimizer_arrays, "iteration")) == 1, "a copy must not change with the variable"

    loaded = checkpoints.read_checkpoint(path).arrays
    other = build_model(make_plan("cifar10-deep", seed=9))
    checkpoints.restore_variables(other.model, {k: v for k, v in loaded.items() if not k.startswith("o/")})
    assert weights_sha256(other.model) == expected
    checkpoints.restore_variables(built_network.model, loaded)
    np.testing.assert_array_equal(
        compute_outputs(built_network.model, pixels)["logits"], compute_outputs(other.model, pixels)["logits"]
    )
    checkpoints.restore_variables(training_model.optimizer, {k[2:]: v for k, v in loaded.items() if k.startswith("o/")})
    assert int(training_model.optimizer.iterations) == 1


def find_array(arrays: checkpoints.Arrays, fragment: str) -> Any:
    (array_,) = (array for name, array in arrays.items() if fragment in name)
    return array_


def test_names_of_variables_are_unique_and_repeat() -> None:
    arrays = checkpoints.copy_variables(build_network("mobilenetv2").model)
    assert len(arrays) == len(build_network("mobilenetv2").model.variables)
    assert list(arrays) == list(
        checkpoints.copy_variables(build_model(make_plan("mobilenetv2", classes=3, seed=4)).model)
    )


def test_name_carries_number_and_hash(tmp_path: Path) -> None:
    path = checkpoints.write_checkpoint(tmp_path / "new" / "checkpoints", 7, make_checkpoint(7))
    number, _, digest = path.stem.partition("-")
    assert number == "00007"
    assert len(digest) == 16
    assert checkpoints.write_checkpoint(tmp_path / "again", 7, make_checkpoint(7)).name == path.name
    assert checkpoints.write_checkpoint(tmp_path / "again", 7, make_checkpoint(8)).name != path.name


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = checkpoints.write_checkpoint(tmp_path, 1, Checkpoint({"a": np.zeros(3)}, STATE))
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {"state.npy", "a.npy"}
        for name in archive.namelist():
            np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        checkpoints.write_checkpoint(tmp_path, 2, Checkpoint({"a": np.array([object()])}, {}))


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
            checkpoints.read_checkpoint(path)


@pytest.mark.parametrize(
    ("save", "why"),
    [
        (lambda file: np.savez_compressed(file, state=np.str_("{}"), a=np.zeros(1 << 22)), "its arrays take 33,554,"),
        (lambda file: np.savez(file, a=np.zeros(3)), "Expecting value"),
        (lambda file: np.savez(file, state=np.str_("[]")), "its state is not a JSON object"),
        (lambda file: file.write(b"{}"), "not an .npz file"),
    ],
    ids=["an array of 32 MiB in 32 kB", "no state", "another state", "no zip"],
)
def test_what_another_program_wrote_is_refused(tmp_path: Path, save: Callable[[IO[bytes]], Any], why: str) -> None:
    buffer = io.BytesIO()
    save(buffer)
    path = tmp_path / f"00001-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.npz"
    path.write_bytes(buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(ModelError, match=f"cannot be read: .*{re.escape(why)}"):
        checkpoints.read_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20, "no array was read"


def test_the_newest_two_remain(tmp_path: Path) -> None:
    for number in range(1, 12):
        checkpoints.write_checkpoint(tmp_path, number, make_checkpoint(number))
        assert list_numbers(tmp_path) == [f"{n:05}" for n in (number - 1, number) if n]
    checkpoints.write_checkpoint(tmp_path, 12, make_checkpoint(12), max_checkpoints=1)
    assert list_numbers(tmp_path) == ["00012"]
    checkpoints.write_checkpoint(tmp_path, 13, make_checkpoint(13), max_checkpoints=3)
    checkpoints.write_checkpoint(tmp_path, 14, make_checkpoint(14), max_checkpoints=3)
    checkpoints.write_checkpoint(tmp_path, 15, make_checkpoint(15), max_checkpoints=3)
    assert list_numbers(tmp_path) == ["00013", "00014", "00015"]


@pytest.mark.parametrize("numbers", [(9, 10), (99_999, 100_000)])
def test_newest_is_loaded(tmp_path: Path, numbers: tuple[int, int]) -> None:
    assert checkpoints.load_latest(tmp_path) is None
    assert checkpoints.load_latest(tmp_path / "absent") is None
    for number in numbers:
        checkpoints.write_checkpoint(tmp_path, number, make_checkpoint(number))
    loaded = checkpoints.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.state == {"epoch": numbers[1]}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("value", range(6))
def test_repeated_epoch_replaces_its_checkpoint(tmp_path: Path, value: int) -> None:
    """Interrupted in epoch 5 and resumed: the newer file is used, whatever the order of the hashes."""
    checkpoints.write_checkpoint(tmp_path, 4, make_checkpoint(4))
    checkpoints.write_checkpoint(tmp_path, 5, make_checkpoint(100 + value))
    checkpoints.write_checkpoint(tmp_path, 5, make_checkpoint(5))
    loaded = checkpoints.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.state == {"epoch": 5}
    assert list_numbers(tmp_path) == ["00004", "00005"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_damaged_file_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    first, last = (checkpoints.write_checkpoint(tmp_path, number, make_checkpoint(number)) for number in (1, 2))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes({"cut": bytes(data[:-9]), "flipped": bytes(data), "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        last.unlink()
        last.mkdir()  # cannot be read as a file
    with pytest.raises(ModelError, match=r"is damaged|cannot be read"):
        checkpoints.read_checkpoint(last)
    messages: list[str] = []
    loaded = checkpoints.load_latest(tmp_path, messages.append)
    assert loaded is not None
    assert loaded.state == {"epoch": 1}
    assert [last.name in line and line.endswith("Using the previous one.") for line in messages] == [True]
    first.write_bytes(b"")
    messages.clear()
    assert checkpoints.load_latest(tmp_path, messages.append) is None
    assert messages[-1].endswith("There is no earlier one.")
    if damage != "gone":
        first.write_bytes(b"damaged too")
        assert checkpoints.load_latest(tmp_path) is None


def test_a_file_too_large_to_be_a_checkpoint_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of terabytes takes no disk space, and hours to hash."""
    checkpoints.write_checkpoint(tmp_path, 1, make_checkpoint(1))
    sparse = tmp_path / "00002-0123456789abcdef.npz"
    sparse.touch()
    os.truncate(sparse, checkpoints.MAX_BYTES + 1)
    messages: list[str] = []
    loaded = checkpoints.load_latest(tmp_path, messages.append)
    assert loaded is not None
    assert loaded.state == {"epoch": 1}
    expected = f"The checkpoint {sparse} cannot be read: it has 34,359,738,369 bytes, expected at most 34,359,738,368."
    assert messages == [f"{expected} Using the previous one."]
    monkeypatch.setattr(hashlib, "file_digest", None)
    with pytest.raises(ModelError, match="cannot be read: it has"):
        checkpoints.read_checkpoint(sparse)


def test_full_disk_does_not_damage_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        checkpoints.write_checkpoint(tmp_path, number, make_checkpoint(number))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sentence = r"00003 .*No space left on device\. Free some space; the previous checkpoint is intact\.$"
    with pytest.raises(OutputError, match=sentence):
        checkpoints.write_checkpoint(tmp_path, 3, make_checkpoint(3))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space\.$"):
        checkpoints.write_checkpoint(tmp_path / "new", 1, make_checkpoint(1))


def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_bytes(b"a file")
    with pytest.raises(OutputError, match="is not a folder"):
        checkpoints.write_checkpoint(tmp_path / "checkpoints", 1, make_checkpoint(1))


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".part-0123456789abcdef.tmp").write_bytes(b"half")
    checkpoints.write_checkpoint(tmp_path, 1, make_checkpoint(1))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
