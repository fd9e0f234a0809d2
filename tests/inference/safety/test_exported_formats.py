"""Untrusted exported folders are refused in a sentence or answered; they run no code and end no process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import hostile_exports
from command import skip_without
from hostile_exports import Files, damage, make_litert, make_openvino, make_saved_model, write_folder
from networks import NAMES, make_plan
from sightline.errors import ModelError
from sightline.export import keras_to_onnx
from sightline.inference import exported_folder
from sightline.inference.exporters import EXPORTERS, ExportInput
from sightline.inference.manifest import Manifest
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no limits of a process's resources")

INSTALLED = {"openvino": "openvino", "litert": "ai_edge_litert"}
FORMS = ["saved_model", *(pytest.param(form, marks=pytest.mark.installed) for form in INSTALLED)]
MODEL_FILES = {"openvino": "model.xml", "litert": "model.tflite", "saved_model": "saved_model/saved_model.pb"}


def load_in_processes(form: str, folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Load each folder in a process of its own; return the outcome of each."""
    if form in INSTALLED:
        pytest.importorskip(INSTALLED[form])
    completed = subprocess.run(
        [sys.executable, hostile_exports.__file__, form], input="".join(f"{folder}\n" for folder in folders),
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    return [json.loads(line) for line in completed.stdout.splitlines()]


def assert_refused(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["code"] == 2, outcome
        assert "cannot be used: " in outcome["message"], outcome


def make_sound(form: str, folder: Path) -> Files:
    folder.mkdir()
    if form in INSTALLED:
        pytest.importorskip(INSTALLED[form])
    if form == "openvino":
        return make_openvino(folder, lambda _, x: x)
    return {"model.tflite": make_litert("")} if form == "litert" else make_saved_model(folder, "", folder)


@pytest.mark.installed
@pytest.mark.parametrize("form", INSTALLED)
def test_a_sound_model_is_loaded_and_damage_ends_no_process(form: str, tmp_path: Path) -> None:
    """Wild offsets and sizes, in the graph and in the files beside it, under a manifest with the right hashes."""
    check_damage(form, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_much_damage_ends_no_process(form: str, tmp_path: Path) -> None:
    check_damage(form, tmp_path, 100 if form == "saved_model" else 1000, start=1_000_000)


def check_damage(form: str, tmp_path: Path, count: int, start: int = 0) -> None:
    sound = make_sound(form, tmp_path / "made")
    folders = [write_folder(tmp_path / "sound", form, sound)]
    for seed in range(start, start + count):
        name = sorted(sound)[seed % len(sound)] if seed % 4 == 0 else MODEL_FILES[form]
        folders.append(write_folder(tmp_path / str(seed), form, {**sound, name: damage(sound[name], seed)}))
    first, *others = load_in_processes(form, folders)
    assert first["code"] == 0, first
    assert {outcome["code"] for outcome in others} <= {0, 2}, [o for o in others if o["code"] not in {0, 2}]
    assert max(outcome["bytes"] for outcome in others) < 1 << 31


@pytest.mark.installed  # and SavedModel also where the other formats are not
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_registry_passes_in_every_format(name: str, tmp_path: Path) -> None:
    """In each installed format, no network has an operation that is not allowed or exceeds a limit."""
    model = build_model(make_plan(name, classes=3)).model
    height, width, channels = model.input.shape[1:]
    manifest = Manifest(name, hostile_exports.CLASSES, PreprocessingSpec(height, width, channels))
    for exporter in (EXPORTERS["saved_model"], EXPORTERS["openvino"], EXPORTERS["litert"]):
        if all(importlib.util.find_spec(package) for package in exporter.packages):
            folder = tmp_path / exporter.name
            folder.mkdir()
            graph = keras_to_onnx.convert_model(model) if exporter.source == "onnx" else b""
            exporter.write(ExportInput("float32", manifest, graph, model), folder)
            exported_folder.load_unverified(folder, exporter, manifest)


@pytest.mark.parametrize("kind", hostile_exports.SAVED_MODEL_KINDS)
def test_a_saved_model_cannot_do_more_than_compute(kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "made").mkdir()
    folder = write_folder(tmp_path / "x", "saved_model", make_saved_model(tmp_path / "made", kind, victim))
    victim.write_text("precious\n")  # version 1 writes when it is made
    with pytest.raises(ModelError, match=hostile_exports.SAVED_MODEL_KINDS[kind]):
        exported_folder.load(folder)
    assert victim.read_text() == "precious\n"


@pytest.mark.installed
@pytest.mark.parametrize("kind", ["loop", "fill", "size", "large size", "operation of TensorFlow"])
def test_a_litert_file_cannot_loop_or_use_other_operations(kind: str, tmp_path: Path) -> None:
    assert_refused(
        load_in_processes("litert", [write_folder(tmp_path / "x", "litert", {"model.tflite": make_litert(kind)})])
    )


@pytest.mark.installed
def test_the_limits_of_an_openvino_graph(tmp_path: Path) -> None:
    skip_without("openvino")
    folders = []
    for number, make in enumerate(hostile_exports.OPENVINO_GRAPHS.values()):
        (tmp_path / f"made{number}").mkdir()
        folders.append(write_folder(tmp_path / str(number), "openvino", make(tmp_path / f"made{number}")))
    outcomes = load_in_processes("openvino", folders)
    assert_refused(outcomes)
    assert max(outcome["bytes"] for outcome in outcomes) < 1 << 30


@pytest.mark.installed
def test_hostile_xml_is_refused(tmp_path: Path) -> None:
    sound = make_sound("openvino", tmp_path / "made")
    folders = [
        write_folder(tmp_path / str(number), "openvino", {**sound, "model.xml": change(sound["model.xml"])})
        for number, change in enumerate(hostile_exports.OPENVINO_XML.values())
    ]
    outcomes = load_in_processes("openvino", folders)
    assert_refused(outcomes)
    assert max(outcome["bytes"] for outcome in outcomes) < 1 << 30
