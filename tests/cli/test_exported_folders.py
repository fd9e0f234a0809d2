"""A damaged or untrusted exported folder gets one sentence, before its runtime sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import Command
from hostile_exports import MANIFEST
from sightline.inference import exported_folder
from synthetic_images import encode_png

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
BRACKETS = "[" * 100_000 + "]" * 100_000


def edit(change: Callable[[dict[str, Any]], object], *, keep_hash: bool = False) -> Callable[[Path], None]:
    """Return a function that changes the manifest of a folder, and makes its own hash right unless told otherwise."""

    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        if not keep_hash:
            del values["manifest_sha256"]
            values["manifest_sha256"] = exported_folder._hash_manifest(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return apply


def write_text(text: str) -> Callable[[Path], None]:
    """Return a function that adds `text`, which JSON or Python would not write, as a field of the manifest."""

    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(path.read_text(encoding="utf-8").replace("{", f'{{"metrics": {text}, ', 1), encoding="utf-8")

    return apply


def replace_by_link(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return apply


def make_pipe(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def grow(folder: Path) -> None:
    os.truncate(folder / "model.bin", 5 << 30)  # a sparse file, which takes no space


def fill(folder: Path) -> None:
    for number in range(exported_folder.MAX_FILES + 1):
        (folder / "reference" / f"{number}.png").touch()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (write_text('{"test": {"accuracy": NaN}}'), "NaN is not a finite number"),
    "a huge float": (write_text('{"test": {"accuracy": 1e999}}'), "1e999 is not a finite number"),
    "a huge integer": (write_text('{"test": {"accuracy": ' + "9" * 400 + "}}"), "too large an integer"),
    "deep nesting": (write_text(BRACKETS), "nested too deeply"),
    "half a character": (edit(lambda m: m.update(classes=["\ud800", "bee", "cat"])), "lone surrogate"),
    "a class twice": (edit(lambda m: m.update(classes=["bee", "bee", "cat"])), "not distinct names"),
    "no classes": (edit(lambda m: m.update(classes=[])), "0 classes"),
    "a class that is none": (edit(lambda m: m.update(classes=[{}, "bee", "cat"])), "manifest"),
    "wrong values": (edit(lambda m: m.update(preprocess={"width": -1})), "preprocess has the schema None"),
    "another schema": (edit(lambda m: m.update(schema=99)), "schema 99"),
    "an unknown field": (edit(lambda m: m.update(run="rm -rf")), "run"),
    "an unknown format": (edit(lambda m: m.update(format="pickle")), "the format 'pickle', which no installed package"),
    "a format that is none": (edit(lambda m: m.update(format=[{}])), "lists no files, or not model.onnx"),
    "another format": (edit(lambda m: m.update(format="litert")), "not a file of the format litert"),
    "no hashes": (edit(lambda m: m.update(files=["model.xml"])), "lists no files"),
    "a hash of a wrong type": (edit(lambda m: m["files"].update({"model.bin": 3})), "model.bin was changed"),
    "a wrong hash": (edit(lambda m: m["files"].update({"model.bin": "0" * 64})), "model.bin was changed"),
    "a path outside": (edit(lambda m: m["files"].update({"../../outside": "0" * 64})), "../../outside was changed"),
    "an absolute path": (edit(lambda m: m["files"].update({"/etc/passwd": "0" * 64})), "/etc/passwd was changed"),
    "an example outside": (
        edit(lambda m: m.update(reference_examples=[m["reference_examples"][0] | {"file": "../outside.png"}])),
        "reference example '../outside.png' is invalid",
    ),
    "an example without file": (
        edit(lambda m: m.update(reference_examples=[m["reference_examples"][0] | {"file": "reference/9.png"}])),
        "reference/9.png is missing",
    ),
    "a probability of 10**400": (
        edit(lambda m: m["reference_examples"][0].update(probabilities=[10**400, 0, 0])), "too large an integer",
    ),
    "an edited manifest": (edit(lambda m: m.update(recipe="mine"), keep_hash=True), "manifest.json was changed"),
    "a link to a file": (replace_by_link("model.bin"), "model.bin is a link"),
    "a link to a folder": (replace_by_link("reference"), "reference is a link"),
    "a link for the manifest": (replace_by_link("manifest.json"), "manifest.json is a link"),
    "a pipe": (make_pipe("model.bin"), "cannot be read"),
    "a sparse file of 5 GB": (grow, "more than 2,147,483,648 bytes"),
    "weights cut short": (lambda folder: os.truncate(folder / "model.bin", 3), "model.bin was changed"),
    "no weights": (lambda folder: (folder / "model.bin").unlink(), "model.bin was changed"),
    "another file": (lambda folder: (folder / "sitecustomize.py").touch(), "'sitecustomize.py', which is not a file"),
    "too many files": (fill, "more than 1,000 files"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for OpenVINO whose model is not one: nothing here gets as far as the runtime."""
    from dataclasses import replace

    from sightline.inference.manifest import ReferenceExample
    from sightline.inference.reference_examples import hash_pixels

    path = tmp_path / "openvino"
    path.mkdir()
    (path / "model.xml").write_bytes(b"<net/>")
    (path / "model.bin").write_bytes(bytes(100))
    image = encode_png(1, 0, 8)
    example = ReferenceExample(
        "reference/0.png", "ant", hash_pixels(MANIFEST.preprocess.decode(image)), (1.0, 0.0, 0.0)
    )
    exported_folder.add_manifest(
        path, "openvino", replace(MANIFEST, reference_examples=(example,)), {example.file: image}
    )
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hostile_folder_gets_a_sentence(
    fault: str, folder: Path, sightline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_folder, "_open_files", lambda *_: pytest.fail("the runtime saw the model"))
    apply, words = FAULTS[fault]
    apply(folder)
    image = folder.parent / "image.png"
    image.write_bytes(encode_png(1, 0, 8))
    for command in (("predict", folder, image), ("evaluate", folder, folder.parent), ("export", folder)):
        result = sightline(*command)
        assert result.code == 2, (fault, result.err)
        assert "Traceback" not in result.err
        assert words in " ".join(result.err.split()), result.err
