"""Limits from the code and SECURITY.md, each lowered to just below a valid input."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_graphs
from hostile_exports import MANIFEST, write_folder
from sightline import jsonio
from sightline.config import parse
from sightline.errors import ConfigError, ModelError, UsageError
from sightline.inference import bundle, exported_folder
from sightline.inference.manifest import MAX_CLASSES, Manifest
from sightline.inference.safety import limits, openvino_model, saved_model
from sightline.inference.safety.onnx_graph import parse_graph
from sightline.inference.safety.onnx_limits import check_limits
from sightline.models import keras_file, keras_h5
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.spec import MAX_MEGAPIXELS
from sightline.sweeps import search_space
from synthetic_images import encode_png

MIB = 1 << 20


def test_a_configuration_has_at_most_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# é\n" * (MIB // 5), encoding="utf-8")
    assert parse.read_config_text(path)
    path.write_text("# é\n" * (MIB // 5 + 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.toml is not a readable TOML file: it is larger than 1 MiB\."):
        parse.read_config_text(path)


def test_a_json_value_has_at_most_64_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jsonio.MAX_BYTES == 64 * MIB
    path = tmp_path / "value.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    size = path.stat().st_size
    assert jsonio.read_object(path, size) == {"a": "x" * 100}
    with pytest.raises(ModelError, match=f"more than {size - 1} bytes"):
        jsonio.read_object(path, size - 1)
    (tmp_path / "lines.jsonl").write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(jsonio, "MAX_BYTES", size)
    with pytest.raises(ModelError, match=f"line 1 has more than {size} bytes"):
        jsonio.read_records(tmp_path / "lines.jsonl", lambda _: dict[str, str])
    monkeypatch.setattr(jsonio, "MAX_BYTES", size + 1)  # with the line's end
    assert jsonio.read_records(tmp_path / "lines.jsonl", lambda _: dict[str, str]) == ({"a": "x" * 100},)


def test_a_grid_has_at_most_100_000_trials() -> None:
    values = list(range(1, 101))
    text = f'sampler = "grid"\n[space]\nseed = {{}}\n[space.train]\nepochs = {values}\nbatch_size = {values}\n'
    assert search_space.parse_space(text.format(values[:10]), "wide", Path()).grid_size == search_space.MAX_CELLS
    with pytest.raises(ConfigError, match="wide is a grid of 110,000 trials: use fewer values"):
        search_space.parse_space(text.format(values[:11]), "wide", Path())


def test_a_spec_allows_at_most_4000_megapixels() -> None:
    PreprocessingSpec(8, 8, max_megapixels=MAX_MEGAPIXELS)
    with pytest.raises(UsageError, match=r"max_megapixels must be an integer in 1\.\.4000, got 4001"):
        PreprocessingSpec(8, 8, max_megapixels=MAX_MEGAPIXELS + 1)


def test_a_manifest_has_at_most_100_000_classes() -> None:
    names = tuple(map(str, range(MAX_CLASSES + 1)))
    assert len(replace(MANIFEST, classes=names[1:]).classes) == 100_000
    with pytest.raises(ModelError, match="has 100001 classes, expected 1 to 100000"):
        replace(MANIFEST, classes=names)


# Bundles and exported folders


@pytest.fixture
def sound_bundle(tmp_path: Path) -> Path:
    """A bundle with a reference file that is listed but never decoded."""
    contents = bundle.make(Manifest("x", ("a", "b"), PreprocessingSpec(8, 8)), onnx_graphs.make_file([]), {})
    bundle.write_folder(replace(contents, files={"reference/0.png": encode_png()}), tmp_path / "bundle")
    assert bundle.read(tmp_path / "bundle").files
    return tmp_path / "bundle"


def test_the_files_of_a_bundle_are_limited_one_by_one_and_in_total(
    sound_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [path.stat().st_size for path in sound_bundle.rglob("*.*") if path.name != "manifest.json"]
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", sum(sizes))
    monkeypatch.setattr(bundle, "MAX_MODEL_BYTES", max(sizes))
    bundle.read(sound_bundle)
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", sum(sizes) - 1)
    with pytest.raises(ModelError, match="its files have more than 0 GB"):
        bundle.read(sound_bundle)
    monkeypatch.setattr(bundle, "MAX_MODEL_BYTES", max(sizes) - 1)
    with pytest.raises(ModelError, match=f"more than {max(sizes) - 1:,} bytes"):
        bundle.read(sound_bundle)


def test_the_manifest_of_a_bundle_is_limited(sound_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (sound_bundle / "manifest.json").stat().st_size
    monkeypatch.setattr(bundle, "MAX_MANIFEST_BYTES", size)
    bundle.read(sound_bundle)
    monkeypatch.setattr(bundle, "MAX_MANIFEST_BYTES", size - 1)
    with pytest.raises(ModelError, match=f"more than {size - 1:,} bytes"):
        bundle.read(sound_bundle)


def test_what_a_zip_states_is_limited_before_it_is_read(
    sound_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for path in sound_bundle.rglob("*.*"):
            archive.write(path, path.relative_to(sound_bundle))
        total = sum(info.file_size for info in archive.infolist())
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", total)
    bundle.read(tmp_path / "b.zip")
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", total - 1)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("a member was read"))
    with pytest.raises(ModelError, match="decompresses to more than 0 GB"):
        bundle.read(tmp_path / "b.zip")


def test_the_files_of_an_export_are_limited_in_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "x", "openvino", {"model.xml": bytes(60), "model.bin": bytes(60)})
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", 119)
    with pytest.raises(ModelError, match=r"x cannot be read: .*more than 5\d bytes"):
        exported_folder.load(folder)


@pytest.mark.parametrize(
    ("module", "name", "check"),
    [
        (openvino_model, "MAX_XML_BYTES", lambda size: openvino_model.check_xml(bytes(size))),
        (
            saved_model,
            "MAX_MODEL_BYTES",
            lambda size: saved_model.check_saved_model({saved_model.MODEL_FILE: bytes(size)}),
        ),
    ],
    ids=["OpenVINO", "SavedModel"],
)
def test_a_graph_has_at_most_64_mebibytes(module: Any, name: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(module, name) == 64 * MIB
    monkeypatch.setattr(module, name, 999)
    with pytest.raises(ModelError, match="damaged"):
        check(999)
    with pytest.raises(ModelError, match="has more than 0 MiB"):
        check(1000)


# Graphs and weights


def test_a_graph_has_at_most_10_000_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    data = onnx_graphs.make_doubling_graph(3, "x")
    count = len(parse_graph(data).nodes)
    monkeypatch.setattr(limits, "MAX_OPERATIONS", count)
    check_limits(parse_graph(data), 1)
    monkeypatch.setattr(limits, "MAX_OPERATIONS", count - 1)
    with pytest.raises(ModelError, match=f"it has {count} operations, more than {count - 1}"):
        check_limits(parse_graph(data), 1)


@pytest.mark.parametrize(("axes", "accepted"), [(8, True), (9, False)])
def test_a_weight_has_at_most_8_axes(axes: int, accepted: bool) -> None:
    weight = onnx_graphs.float_weight("w", *[1] * axes)
    data = onnx_graphs.make_file([onnx_graphs.node("Relu", ["x"], ["y"])], [weight])
    if accepted:
        parse_graph(data)
    else:
        with pytest.raises(ModelError, match="it has a list of more than 8 numbers"):
            parse_graph(data)


def test_a_keras_file_has_at_most_100_000_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for number in range(4):
            file.create_dataset(str(number), data=np.zeros(1, np.float32))
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in (("config.json", b"{}"), ("model.weights.h5", stream.getvalue())):
            archive.writestr(name, content)
    keras_file.check_keras_file(tmp_path / "m.keras")
    monkeypatch.setattr(keras_h5, "_MAX_ITEMS", 2)
    with pytest.raises(ModelError, match="twice, or too many items"):
        keras_file.check_keras_file(tmp_path / "m.keras")
