"""An untrusted ``.keras`` file is checked before Keras reads it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import numpy as np
import pytest

from command import open_and_replace
from sightline import _io, backend
from sightline.errors import ModelError
from sightline.inference.runtimes.keras import load_model
from sightline.models import safetensors_file
from sightline.models.head import PROBABILITIES
from sightline.models.keras_file import check_keras_file, open_keras_file

MIB = 1 << 20


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras = backend.keras()
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    outputs = keras.layers.Dense(3, name="d")(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    keras.Model(inputs, outputs).save(path)
    return path


def replace_member(ours: Path, path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    """Write a copy with one member replaced or added."""
    with zipfile.ZipFile(ours) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            if info.filename != name:
                new.writestr(info.filename, old.read(info))
        new.writestr(zipfile.ZipInfo(name), content, method, 9)
    return path


def make_weights(fill: Callable[[h5py.File], object]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


def test_what_keras_writes_passes_unread(ours: Path) -> None:
    check_keras_file(ours)
    with zipfile.ZipFile(ours) as archive:
        assert sum(info.file_size for info in archive.infolist()) > 4000, "weights are there"


def test_a_file_saved_with_lora_has_the_merged_weights(tmp_path: Path) -> None:
    keras, pixels = backend.keras(), np.eye(8, dtype=np.uint8)
    inputs = keras.Input((8,), dtype="uint8")
    model = keras.Model(inputs, {PROBABILITIES: keras.layers.Dense(3, name="d")(inputs)})
    model.get_layer("d").enable_lora(2)
    model.get_layer("d").lora_kernel_b.assign(np.ones((2, 3), np.float32))
    model.save(tmp_path / "model.keras")
    merged = keras.ops.convert_to_numpy(load_model(tmp_path / "model.keras")(pixels)[PROBABILITIES])
    np.testing.assert_allclose(merged, keras.ops.convert_to_numpy(model(pixels)[PROBABILITIES]), rtol=1e-6)


def test_weights_are_not_read_to_be_looked_at(ours: Path, tmp_path: Path) -> None:
    large = make_weights(lambda file: file.create_dataset("vars/0", data=np.ones(8 * MIB, np.float32)))
    path = replace_member(ours, tmp_path / "large.keras", "model.weights.h5", large)
    tracemalloc.start()
    check_keras_file(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    tracemalloc.stop()


def test_a_frozen_layer_of_a_file_can_be_unfrozen_and_trained(tmp_path: Path) -> None:
    keras = backend.keras()
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    frozen = keras.layers.Dense(4, name="frozen", trainable=False)(keras.layers.Flatten()(inputs))
    outputs = keras.layers.Dense(2, name="head")(keras.layers.BatchNormalization(name="norm", trainable=False)(frozen))
    keras.Model(inputs, {PROBABILITIES: outputs}).save(tmp_path / "model.keras")
    model = load_model(tmp_path / "model.keras")
    assert [layer.name for layer in model.layers if layer.weights and not layer.trainable] == ["frozen", "norm"]
    assert [v.path for v in model.trainable_variables] == ["head/kernel", "head/bias"]
    for layer in model.layers:
        layer.trainable = True
    before = [backend.keras().ops.convert_to_numpy(v) + 0 for v in model.trainable_variables]
    learner = keras.Model(model.input, model.output[PROBABILITIES])
    learner.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    learner.train_on_batch(rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8), rng.normal(size=(4, 2)))
    after = [backend.keras().ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert len(after) == 6
    assert [v.path for v, a, b in zip(model.trainable_variables, before, after, strict=True) if (a == b).all()] == []


def get_error(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        check_keras_file(path)
    return str(error.value)


def test_json_of_spaces_is_not_unpacked(ours: Path, tmp_path: Path) -> None:
    spaces = json.dumps({}).encode() + b" " * (100 * MIB)
    path = replace_member(ours, tmp_path / "a.keras", "config.json", spaces, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MIB
    assert "config.json decompresses from" in get_error(path)


def test_a_compressed_member_is_refused_whatever_size_it_states(ours: Path, tmp_path: Path) -> None:
    """Keras would read all of it: `zipfile` cuts a member to its stated size only after it has decompressed it."""
    path = replace_member(ours, tmp_path / "a.keras", "config.json", b"{}".ljust(1000), zipfile.ZIP_DEFLATED)
    assert "config.json is compressed, as Keras never writes it" in get_error(path)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {}], ids=["packed", "never written"])
def test_weights_larger_than_their_file_are_refused(ours: Path, tmp_path: Path, options: dict[str, str]) -> None:
    packed = make_weights(
        lambda file: file.create_dataset("vars/0", (1 << 30,), np.float32, chunks=(1 << 20,), **options)
    )
    path = replace_member(ours, tmp_path / "a.keras", "model.weights.h5", packed)
    assert "its weights take 4,294,967,296 bytes, more than the file contains" in get_error(path)


@pytest.mark.parametrize("kind", ["soft", "external link", "external data", "virtual", "ring"])
def test_weights_that_lead_elsewhere_are_refused(ours: Path, tmp_path: Path, kind: str) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("vars")
        if kind == "soft":
            group["0"] = h5py.SoftLink("/elsewhere")
        elif kind == "external link":
            group["0"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif kind == "external data":
            group.create_dataset("0", (4,), np.uint8, external=[("/etc/passwd", 0, 4)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), np.uint8)
            layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
            group.create_virtual_dataset("0", layout)
        else:
            group["again"] = group

    assert "cannot be used" in get_error(
        replace_member(ours, tmp_path / "a.keras", "model.weights.h5", make_weights(fill))
    )


def test_anything_else_in_the_file_is_refused(ours: Path, tmp_path: Path) -> None:
    assert "contains 'assets/x.txt', which Sightline never writes" in get_error(
        replace_member(ours, tmp_path / "a.keras", "assets/x.txt", b"x")
    )
    (tmp_path / "b.keras").write_bytes(b"not a zip")
    assert "cannot be loaded" in get_error(tmp_path / "b.keras")
    (tmp_path / "c.keras").symlink_to("/dev/zero")
    assert "not a regular file" in get_error(tmp_path / "c.keras")


def test_every_model_is_checked_before_keras_reads_it(ours: Path, tmp_path: Path) -> None:
    bomb = replace_member(ours, tmp_path / "bomb.keras", "config.json", b" " * 32 * MIB, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match=r"config\.json decompresses from"):
        load_model(bomb)


def test_layers_with_more_weights_than_the_file_are_refused_before_they_take_memory(ours: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ours) as archive:
        config = archive.read("config.json")
    assert config.count(b'"units": 3') == 1
    large = replace_member(
        ours, tmp_path / "large.keras", "config.json", config.replace(b'"units": 3', b'"units": 3' + b"0" * 12)
    )
    check_keras_file(large)
    with pytest.raises(ModelError, match=r"its layers have 579,000,000,000,000 weights, and it holds 579\.?$"):
        load_model(large)


def test_layers_of_a_refused_file_take_no_memory_later(ours: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ours) as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"][-1]["config"]["units"] = 3 * 10**12
    config["config"]["output_layers"] = ["elsewhere", 0, 0]
    path = replace_member(ours, tmp_path / "a.keras", "config.json", json.dumps(config).encode())
    with pytest.raises(ModelError, match="elsewhere"):
        load_model(path)
    with backend.keras().StatelessScope():
        pass  # its exit allocates what was left to be allocated, as that of any layer's first call does


def add_unused_layer(config: Any) -> Any:
    """Return the layers of a model with one of petabytes that nothing calls, and that Keras builds beside the model."""
    layers = config["config"]["layers"]
    unused = json.loads(json.dumps(layers[-1]))
    unused["name"] = unused["config"]["name"] = "unused"
    unused["config"]["units"], unused["inbound_nodes"] = 3 * 10**12, []
    return {**config, "config": {**config["config"], "layers": [*layers, unused]}}


def make_named() -> Any:
    keras = backend.keras()
    inputs = keras.Input((4,))
    return keras.Model(inputs, {PROBABILITIES: keras.layers.Dense(3, name="d")(inputs)})


def test_layers_that_nothing_calls_take_no_memory(tmp_path: Path) -> None:
    model = make_named()
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = add_unused_layer(json.loads(archive.read("config.json")))
    path = replace_member(tmp_path / "model.keras", tmp_path / "a.keras", "config.json", json.dumps(config).encode())
    weights = safetensors_file.encode_model(model)[safetensors_file.WEIGHTS_FILE]
    layers = json.dumps(add_unused_layer(json.loads(model.to_json()))).encode()
    for again in (load_model(path), safetensors_file.decode_model(weights, layers)):
        assert [variable.path for variable in again.weights] == ["d/kernel", "d/bias"]
        assert np.array_equal(backend.keras().ops.convert_to_numpy(again.weights[0]), model.get_weights()[0])


def test_a_model_is_loaded_without_room_for_a_copy_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_named()
    model.save(tmp_path / "model.keras")
    monkeypatch.setattr(zipfile.ZipFile, "extract", Mock(side_effect=OSError(28, "No space left on device")))
    loaded = load_model(tmp_path / "model.keras")
    assert np.array_equal(backend.keras().ops.convert_to_numpy(loaded.weights[0]), model.get_weights()[0])


def test_layers_are_built_once_and_weights_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip goes back in a member by reading it again from its start: 40 times the weights of EfficientNet-Lite0."""
    keras, built_layers = backend.keras(), list[str]()

    def build(self: Any, shape: Any) -> None:
        built_layers.append(self.name)
        build_dense(self, shape)

    make_named().save(tmp_path / "model.keras")
    build_dense = keras.layers.Dense.build
    monkeypatch.setattr(keras.layers.Dense, "build", build)
    monkeypatch.setattr(zipfile.ZipExtFile, "seek", lambda *_: pytest.fail("a member of the zip is not read in order"))
    load_model(tmp_path / "model.keras")
    assert built_layers == ["d"]


def test_a_model_is_loaded_that_has_a_compiled_one_among_its_layers(tmp_path: Path) -> None:
    keras = backend.keras()
    inputs, compiled = keras.Input((4,)), keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    compiled.compile("sgd", "mse")
    model = keras.Model(inputs, {PROBABILITIES: compiled(inputs)})
    model.save(tmp_path / "model.keras")
    for array, expected in zip(load_model(tmp_path / "model.keras").get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_model_is_what_imports_keras_quietly_and_on_the_chosen_backend(ours: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sightline import backend, process; process.claim(); "
        "from sightline.models.keras_file import read_model; read_model(Path(sys.argv[1])); "
        "import keras; print(keras.backend.backend() == backend.choose_backend().name)"
    )
    completed = subprocess.run([sys.executable, "-c", code, str(ours)], capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("True\n", "")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux names open files")
def test_the_file_that_was_checked_is_loaded_whatever_has_its_name_by_then(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(ours.read_bytes())

    monkeypatch.setattr(_io, "open_regular", open_and_replace(path, tmp_path / "other"))
    with open_keras_file(path) as name:
        assert path.read_bytes() == b"another file"
        assert name.suffix == ".keras"
        assert name.read_bytes() == ours.read_bytes()
        loaded = backend.keras().saving.load_model(name)
    assert loaded.count_params() > 0
    assert not name.parent.exists()
