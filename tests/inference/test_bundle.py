"""A valid bundle, and every way in which one can be invalid."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from networks import make_plan, random_images
from sightline import _io
from sightline.api.loading import load
from sightline.errors import ModelError, OutputError, UsageError
from sightline.export import keras_to_onnx
from sightline.inference import bundle, reference_examples
from sightline.inference.bundle import Bundle
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.reference_examples import hash_pixels
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety import onnx_file
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import write_zip

CLASSES = ("ant", "bee", "猫")
PREPROCESS = PreprocessingSpec(8, 8, 3)


def encode_png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_images(1, 20, seed=seed)[0]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def graph() -> bytes:
    return keras_to_onnx.convert_model(
        build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=(8,))).model
    )


@pytest.fixture(scope="module")
def original(graph: bytes) -> Bundle:
    predictor = OnnxPredictor(graph, CLASSES, PREPROCESS)
    files, examples = {}, []
    for i in range(2):
        files[f"reference/{i}.png"] = encode_png(i)
        pixels = PREPROCESS.decode(encode_png(i))
        answer = tuple(map(float, predictor.probabilities(pixels[None])[0]))
        examples.append(ReferenceExample(f"reference/{i}.png", CLASSES[i], hash_pixels(pixels), answer))
    manifest = Manifest(
        "cifar10-simple", CLASSES, PREPROCESS, reference_examples=tuple(examples), metrics={"test": {"accuracy": 0.5}}
    )
    return bundle.make(manifest, graph, files)


@pytest.fixture
def folder(original: Bundle, tmp_path: Path) -> Path:
    bundle.write_folder(original, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_folder_its_zip_and_the_file_alone_are_the_same_model(original: Bundle, folder: Path, tmp_path: Path) -> None:
    bundle.write_zip(original, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "around.zip", "w", zipfile.ZIP_DEFLATED) as archive:  # as a user packs a folder
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path("my model", path.relative_to(folder)))
    (tmp_path / "lone.onnx").write_bytes((folder / "model.onnx").read_bytes())
    pixels = random_images(5, 8)
    expected = original.make_predictor().probabilities(pixels)
    for path in (folder, tmp_path / "b.zip", tmp_path / "around.zip", tmp_path / "lone.onnx"):
        assert bundle.is_bundle(path)
        loaded, predictor = bundle.load(path)
        assert loaded.manifest == original.manifest
        assert np.array_equal(predictor.probabilities(pixels), expected)


def test_writing_replaces_the_bundle_that_is_there_and_leaves_nothing_else(original: Bundle, folder: Path) -> None:
    (folder / "old").write_text("")
    bundle.write_folder(replace(original, files={}, manifest=replace(original.manifest, reference_examples=())), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_an_interrupted_replacement_leaves_the_former_bundle(
    original: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    monkeypatch.setattr(_io, "_exchange", lambda _first, _second: False)  # as where folders cannot change places

    def interrupt(path: Path, target: Path) -> None:
        if path.name == "new" and target == folder:
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bundle.write_folder(bundle.update_manifest(original, recipe="other"), folder)
    assert bundle.read(folder) == original
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_a_power_failure_leaves_no_bundle_without_its_content(
    original: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = set[int]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    bundle.write_folder(original, folder)
    assert {path.stat().st_ino for path in folder.rglob("*") if path.is_file()} <= synced


def test_a_place_that_cannot_be_written_is_named(original: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        bundle.write_folder(original, tmp_path / "file" / "bundle")


def test_the_same_bundle_gives_the_same_bytes(original: Bundle) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    bundle.write_zip(original, first)
    bundle.write_zip(original, second)
    assert first.getvalue() == second.getvalue()


def read_manifest(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return values


def change_manifest(folder: Path, **values: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(read_manifest(folder) | values), encoding="utf-8")


def flip_weight(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1  # inside the dense kernel
    (folder / "model.onnx").write_bytes(data)


def swap_classes(folder: Path) -> None:
    names = read_manifest(folder)["classes"]
    change_manifest(folder, classes=[names[1], names[0], *names[2:]])


def link_model(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def link_examples(folder: Path) -> None:
    (folder / "reference").rename(folder.parent / "reference")
    (folder / "reference").symlink_to(folder.parent / "reference")


def add_outside_path(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    change_manifest(folder, files=read_manifest(folder)["files"] | {"../secret": "0" * 64})


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "preprocessing changed": (
        lambda f: change_manifest(f, preprocess=PreprocessingSpec(8, 8, 3, "pad").to_dict()),
        "differ",
    ),
    "two classes swapped": (swap_classes, "differ"),
    "a class renamed": (lambda f: change_manifest(f, classes=["ant", "bee", "dog"]), "differ"),
    "one bit of a weight": (flip_weight, "model.onnx was changed"),
    "a reference example exchanged": (
        lambda f: (f / "reference/0.png").write_bytes(encode_png(9)),
        r"reference/0\.png was changed",
    ),
    "no model": (lambda f: (f / "model.onnx").unlink(), "model.onnx is missing"),
    "no reference example": (lambda f: (f / "reference/1.png").unlink(), r"reference/1\.png is missing"),
    "truncated": (lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:999]), "was changed"),
    "other schema": (lambda f: change_manifest(f, schema=99), "schema 99"),
    "unknown key": (lambda f: change_manifest(f, extra=1), "extra"),
    "no hash": (
        lambda f: change_manifest(f, files={"model.onnx": read_manifest(f)["files"]["model.onnx"]}),
        "lists no hash of reference",
    ),
    "no files": (lambda f: change_manifest(f, files={}), "lists no files"),
    "a path that leaves": (add_outside_path, "is not a file of a bundle"),
    "a link": (link_model, "is a link"),
    "a linked folder": (link_examples, "is a link"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "is not valid JSON"),
    "deep JSON": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is not valid JSON|no manifest|schema"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "lists no files"),
    "no classes": (lambda f: change_manifest(f, classes=[]), "0 classes"),
    "absurd classes": (lambda f: change_manifest(f, classes=[str(i) for i in range(100_001)]), "100001 classes"),
    "twice the same class": (lambda f: change_manifest(f, classes=["a", "a", "b"]), "not distinct names"),
    "classes of numbers": (lambda f: change_manifest(f, classes=[1, 2, 3]), "not distinct names"),
    "absurd temperature": (lambda f: change_manifest(f, temperature=0.0), "temperature"),
    "not a number": (lambda f: change_manifest(f, temperature=float("nan")), "NaN is not a finite number"),
    "a metric that is none": (
        lambda f: change_manifest(f, metrics={"test": {"loss": float("inf")}}),
        "not a finite number",
    ),
    "half a character": (lambda f: change_manifest(f, classes=["a", "b", "\udcff"]), "lone surrogate"),
    "half a character in a key": (lambda f: change_manifest(f, data={"\ud800": 1}), "lone surrogate"),
    "an integer of 400 digits": (lambda f: change_manifest(f, parameters=10**400), "too large an integer"),
    "a probability of 400 digits": (lambda f: change_manifest(f, temperature=10**400), "too large an integer"),
    "absurd size": (lambda f: change_manifest(f, preprocess=PREPROCESS.to_dict() | {"height": 10**9}), "height"),
    "a number as a name": (lambda f: change_manifest(f, model=3), "model is 3, expected text"),
    "a step that is a number": (lambda f: change_manifest(f, lineage=[1]), "lineage.0 is 1, expected an object"),
    "wrong types": (lambda f: change_manifest(f, reference_examples=[1]), "is invalid"),
    "too many reference examples": (
        lambda f: change_manifest(f, reference_examples=read_manifest(f)["reference_examples"] * 501),
        "1,002 reference examples, expected at most 1,000",
    ),
}


@pytest.mark.parametrize("form", ["folder", "zip", "onnx"])
def test_a_bundle_of_schema_1_is_refused_with_what_to_do(folder: Path, form: str) -> None:
    values = read_manifest(folder)
    values |= {"schema": 1, "figures": values.pop("metrics"), "golden": values.pop("reference_examples")}
    values["files"] = {name.replace("reference/", "golden/"): value for name, value in values["files"].items()}
    path = folder
    if form == "onnx":
        path = folder / "model.onnx"
        text = json.dumps({key: value for key, value in values.items() if key != "files"})
        metadata = {bundle.MANIFEST_KEY: text, bundle.MANIFEST_HASH_KEY: hashlib.sha256(text.encode()).hexdigest()}
        path.write_bytes(onnx_file.replace_metadata(path.read_bytes(), metadata))
    (folder / "reference").rename(folder / "golden")
    (folder / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    if form == "zip":
        path = folder.parent / "old.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder))
    with pytest.raises(ModelError) as caught:
        bundle.load(path)
    assert str(caught.value) == (
        f"The model {path} cannot be used: its manifest has schema 1, but this version reads schema 2 only: "
        "train the model again, or use the version of Sightline that wrote it."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", ["x"]), ("thresholds", 5), ("thresholds", {"x": 1}),
        ("thresholds", {"count": 1, "positive": "ant"}),
        ("thresholds", {"count": 1, "rate": "recall"}),
        ("metrics", [1]), ("data", 3),
        ("preprocess", []), ("classes", "abc"), ("reference_examples", {}),
        ("parity", "x"), ("model", 7), ("recipe", {}), ("parameters", "many"), ("parameters", True),
        ("weights_sha256", None), ("version", 1), ("lineage", ["x"]),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused_by_name(folder: Path, name: str, value: Any) -> None:
    change_manifest(folder, **{name: value})
    with pytest.raises(ModelError, match=rf"the manifest('s {name}| cannot be read: {name})"):
        bundle.load(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_with_its_reason(folder: Path, fault: str) -> None:
    break_it, reason = FAULTS[fault]
    break_it(folder)
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ModelError, match=reason) as caught:
        bundle.load(folder)
    assert str(folder) in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before


def test_a_fault_made_with_care_is_caught_by_the_reference_examples(
    graph: bytes, original: Bundle, tmp_path: Path
) -> None:
    """Both copies of the manifest are changed alike, and all hashes recomputed."""
    changed = bundle.make(
        replace(original.manifest, preprocess=PreprocessingSpec(8, 8, 3, "crop", "nearest")), graph, original.files
    )
    bundle.write_folder(changed, tmp_path / "b")
    with pytest.raises(ModelError, match="decodes to different pixels"):
        bundle.load(tmp_path / "b")
    other = keras_to_onnx.convert_model(
        build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=(8,), seed=1)).model
    )
    bundle.write_folder(bundle.make(original.manifest, other, original.files), tmp_path / "b")
    with pytest.raises(ModelError, match="reference examples give probabilities"):
        bundle.load(tmp_path / "b")


def test_outputs_of_another_kind_than_the_task_has_are_refused(graph: bytes, original: Bundle, tmp_path: Path) -> None:
    bundle.write_folder(
        bundle.make(replace(original.manifest, task="segmentation"), graph, original.files), tmp_path / "b"
    )
    with pytest.raises(ModelError, match="its task is segmentation, but its outputs are those of an image"):
        bundle.load(tmp_path / "b")


def test_a_task_that_is_not_installed_is_named_with_the_model(original: Bundle, tmp_path: Path) -> None:
    bundle.write_folder(bundle.update_manifest(original, task="graded"), tmp_path / "b")
    with pytest.raises(UsageError, match=r"^The model .*b has a task that no installed .* There is no task 'graded'"):
        _ = load(tmp_path / "b").task


def test_reference_examples_run_in_batches_whose_memory_was_counted(
    original: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counting(OnnxPredictor):
        def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            sizes.append(len(pixels))
            return super().probabilities(pixels)

    monkeypatch.setattr(bundle, "OnnxPredictor", Counting)
    monkeypatch.setattr(reference_examples, "choose_batch_size", lambda _: 1)
    bundle.load(folder)
    assert sizes == [1] * len(original.manifest.reference_examples)


def read_contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_zip_that_would_unpack_without_end_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", read_contents(folder) | {"model.onnx": bytes(64 << 20)})
    with pytest.raises(ModelError, match="suspicious compression ratio"):
        bundle.load(path)


def test_files_that_are_too_large_together_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(len(content) for name, content in read_contents(folder).items() if name != bundle.MANIFEST_FILE)
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", size)
    bundle.read(folder)
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", size - 1)
    with pytest.raises(ModelError, match="its files have more than"):
        bundle.read(folder)


def test_a_link_in_a_zip_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in read_contents(folder).items():
            info = zipfile.ZipInfo(name)
            if name == "model.onnx":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                content = b"/etc/passwd"  # noqa: PLW2901
            archive.writestr(info, content)
    with pytest.raises(ModelError, match="is a link"):
        bundle.load(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.onnx", "two of its members have the same name"),
        ("../../evil", "leads out of the folder"),
        ("/evil", "leads out of the folder"),
    ],
)
def test_a_member_that_another_program_would_unpack_elsewhere_or_otherwise_is_refused(
    folder: Path, tmp_path: Path, name: str, reason: str
) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")  # before the one that is read, so that its hash is right
        for own_name, content in read_contents(folder).items():
            with warnings.catch_warnings(action="ignore"):
                archive.writestr(own_name, content)
    with pytest.raises(ModelError, match=reason):
        bundle.load(tmp_path / "m.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_a_wrong_byte_is_refused_or_gives_the_same(
    folder: Path, original: Bundle, tmp_path: Path, method: int
) -> None:
    """Half of the bytes are in the zip's directory, where each one matters."""
    whole = write_zip(tmp_path / "whole.zip", read_contents(folder), method).read_bytes()
    rng, refused = np.random.default_rng(method), 0
    for turn in range(300):
        data = bytearray(whole)
        at = rng.integers(len(data) - 400 if turn % 2 else 0, len(data))
        data[at] ^= rng.integers(1, 256)
        (tmp_path / "m.zip").write_bytes(data)
        try:
            assert bundle.read(tmp_path / "m.zip") == original
        except ModelError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"x" * 100], ids=["empty", "start", "other"])
def test_a_file_that_is_not_a_zip_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.zip").write_bytes(content)
    with pytest.raises(ModelError, match="not a zip file, or it is damaged"):
        bundle.load(tmp_path / "m.zip")


def test_a_zip_without_a_manifest_or_with_two_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="contains 0 files"):
        bundle.load(write_zip(tmp_path / "a.zip", {"x": b""}))
    with pytest.raises(ModelError, match="contains 2 files"):
        bundle.load(write_zip(tmp_path / "b.zip", {"manifest.json": b"", "a/manifest.json": b""}))


@pytest.mark.parametrize("size", [0, 1, 7, 100, 5000, -1])
def test_a_lone_file_cut_short_is_refused(original: Bundle, tmp_path: Path, size: int) -> None:
    (tmp_path / "m.onnx").write_bytes(original.model[:size])
    with pytest.raises(
        ModelError, match=r"m\.onnx cannot be used: .* Copy it again from where it was made, or train it again\.$"
    ):
        bundle.load(tmp_path / "m.onnx")


def test_a_lone_file_whose_manifest_was_changed_by_hand_is_refused(original: Bundle, tmp_path: Path) -> None:
    known = onnx_file.read_metadata(original.model)
    text = known[bundle.MANIFEST_KEY]
    first, second = (json.dumps(name) for name in CLASSES[:2])
    for changed in (
        text.replace(first, "\0").replace(second, first).replace("\0", second),
        text.replace('"interpolation": "bilinear"', '"interpolation": "nearest"'),
    ):
        assert changed != text
        (tmp_path / "m.onnx").write_bytes(
            onnx_file.replace_metadata(original.model, known | {bundle.MANIFEST_KEY: changed})
        )
        with pytest.raises(ModelError, match="was changed"):
            bundle.load(tmp_path / "m.onnx")


def test_one_changed_bit_of_a_lone_file_is_found_wherever_it_lies(original: Bundle, tmp_path: Path) -> None:
    for at in np.random.default_rng(0).integers(0, len(original.model), 40):
        data = bytearray(original.model)
        data[at] ^= 1 << int(at % 8)
        (tmp_path / "m.onnx").write_bytes(data)
        try:
            loaded, _ = bundle.load(tmp_path / "m.onnx")
        except ModelError:
            continue
        assert loaded.manifest == original.manifest
        assert at < 64  # in the producer's name, which does not matter


def test_a_file_of_holes_is_not_read(folder: Path, tmp_path: Path) -> None:
    for path, place in ((tmp_path / "lone.onnx", tmp_path / "lone.onnx"), (folder / "model.onnx", folder)):
        with path.open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(ModelError, match=r"cannot be read: .*more than 2,147,483,648 bytes"):
            bundle.load(place)


def test_a_foreign_file_is_refused(graph: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_file.replace_metadata(graph, {"maker": "another"}))
    with pytest.raises(ModelError, match="not made by Sightline"):
        bundle.load(tmp_path / "m.onnx")


def test_operations_that_none_of_ours_has_are_refused(graph: bytes, original: Bundle, tmp_path: Path) -> None:
    import onnx as library

    file = library.load_model_from_string(graph)
    file.graph.node.append(library.helper.make_node("Loop", ["a"], ["b"], name="endless"))
    odd = bundle.make(original.manifest, file.SerializeToString(), original.files)
    bundle.write_folder(odd, tmp_path / "b")
    with pytest.raises(ModelError, match="the operation 'Loop' of ONNX"):
        bundle.load(tmp_path / "b")


def move_weight_outside(file: Any) -> None:
    import onnx as library

    library.external_data_helper.set_external_data(file.graph.initializer[0], "../secret")


def move_weight_outside_by_another_spelling(file: Any) -> None:
    """The value before its key, so that searching for the bytes of "location" and a path fails."""
    weight = file.graph.initializer[0]
    weight.data_location = 1
    entry = weight.external_data.add()
    entry.MergeFromString(b"\x12\x09../secret" + b"\x0a\x88\x00location")


def add_function(file: Any) -> None:
    import onnx as library

    node = library.helper.make_node("Loop", ["x"], ["y"])
    file.functions.append(library.helper.make_function("", "Erf", ["x"], ["y"], [node], file.opset_import))


def add_subgraph(file: Any) -> None:
    import onnx as library

    file.graph.node[0].attribute.append(
        library.helper.make_attribute("body", library.helper.make_graph([], "g", [], []))
    )


def add_sparse_weight(file: Any) -> None:
    file.graph.sparse_initializer.add()


@pytest.mark.parametrize(
    ("change_it", "reason"),
    [
        (move_weight_outside, "weights in other files"),
        (move_weight_outside_by_another_spelling, "weights in other files"),
        (add_function, "the field 25 of an ONNX file"),
        (add_subgraph, "has a subgraph"),
        (add_sparse_weight, "its graph has the field 15"),
    ],
)
def test_what_only_foreign_graphs_hold_is_refused(
    graph: bytes, original: Bundle, tmp_path: Path, change_it: Callable[[Any], None], reason: str
) -> None:
    import onnx as library

    file = library.load_model_from_string(graph)
    change_it(file)
    bundle.write_folder(bundle.make(original.manifest, file.SerializeToString(), original.files), tmp_path / "b")
    with pytest.raises(ModelError, match=reason):
        bundle.load(tmp_path / "b")


def encode_field(number: int, kind: int, value: bytes) -> bytes:
    """A field of a protocol buffer, at most 127 bytes long."""
    return bytes([number << 3 | kind]) + (bytes([len(value)]) if kind == 2 else b"") + value


def test_what_readers_would_merge_or_pass_over_is_refused(original: Bundle, tmp_path: Path) -> None:
    """A second graph, which would be merged; a name with the wrong wire type after the right one; a large number."""
    loop = encode_field(1, 2, encode_field(4, 2, b"Loop"))
    hidden = encode_field(1, 2, encode_field(4, 2, b"Loop") + encode_field(4, 5, b"Relu"))
    huge = b"\xba\x80\x80\x80\x10" + bytes([len(loop)]) + loop  # field 7, with a bit beyond the 32 of a key
    for more, reason in (
        (encode_field(7, 2, loop), "2 graphs"),
        (encode_field(7, 2, hidden), "2 graphs"),
        (huge, "not an ONNX file"),
    ):
        (tmp_path / "m.onnx").write_bytes(original.model + more)
        with pytest.raises(ModelError, match=reason):
            bundle.load(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="not an ONNX file"):
        onnx_file.check_graph(encode_field(7, 2, hidden))


def test_a_graph_that_fails_when_it_is_run_is_refused(graph: bytes, original: Bundle, tmp_path: Path) -> None:
    import onnx as library

    file = library.load_model_from_string(graph)
    file.graph.initializer.append(library.numpy_helper.from_array(np.array([7, 8, 8, 3]), "seven"))
    file.graph.node[0].input[0] = "reshaped"
    file.graph.node.insert(0, library.helper.make_node("Reshape", ["pixels", "seven"], ["reshaped"]))
    bundle.write_folder(bundle.make(original.manifest, file.SerializeToString(), original.files), tmp_path / "b")
    with pytest.raises(ModelError, match=r"reshapes \[1, 8, 8, 3\] to \[7, 8, 8, 3\]"):
        bundle.load(tmp_path / "b")


def test_a_graph_that_does_not_fit_its_manifest_is_refused(graph: bytes, original: Bundle, tmp_path: Path) -> None:
    for changes, reason in (
        ({"classes": ("ant", "bee"), "reference_examples": ()}, "do not match its 2 classes"),
        ({"preprocess": PreprocessingSpec(9, 8, 3), "reference_examples": ()}, "but its preprocessing gives"),
    ):
        bundle.write_folder(bundle.make(replace(original.manifest, **changes), graph, {}), tmp_path / "b")
        with pytest.raises(ModelError, match=reason):
            bundle.load(tmp_path / "b")


def test_a_graph_of_a_fixed_number_of_images_is_refused(graph: bytes, original: Bundle, tmp_path: Path) -> None:
    import onnx as library

    file = library.load_model_from_string(graph)
    file.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    bundle.write_folder(bundle.make(original.manifest, file.SerializeToString(), original.files), tmp_path / "b")
    with pytest.raises(ModelError, match="a fixed batch of 2 images"):
        bundle.load(tmp_path / "b")
