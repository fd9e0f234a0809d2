"""Fuzz targets for models and their features: bundles, safetensors, models on the Hub, files of embeddings."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import onnx_graphs
from fuzz_inputs import CLASSES, MAX_INPUT, SMALL, encode_image, scratch
from hub_server import Hub, Repository, run_hub
from networks import make_plan
from sightline import _packed, jsonio
from sightline.api import hub
from sightline.errors import DataError, ModelError
from sightline.inference import bundle, embedding_files, exported_folder
from sightline.inference.bundle import MANIFEST_FILE, Bundle
from sightline.inference.embeddings import Embeddings
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.reference_examples import hash_pixels
from sightline.inference.safety import onnx_file
from sightline.models.build import build_model
from sightline.models.safetensors_file import LAYERS_FILE, WEIGHTS_FILE, encode_model
from sightline.preprocessing import PreprocessingSpec

# Bundles


@cache
def make_bundle() -> Bundle:
    """Return a bundle of a one-layer network, with a reference example."""
    model = onnx_graphs.make_linear_classifier(np.full((192, 3), 0.01))
    pixels = SMALL.decode(encode_image())
    example = ReferenceExample("reference/0.png", "bee", hash_pixels(pixels), (1 / 3,) * 3)
    return bundle.make(
        Manifest("one-layer", CLASSES, SMALL, reference_examples=(example,), metrics={"test": {"accuracy": 0.5}}),
        model, {"reference/0.png": encode_image()},
    )  # fmt: skip


def read_bundle(data: bytes) -> None:
    """Load a bundle from a zip, a JSON manifest, or an ONNX file whose hashes are made valid."""
    for step in (_read_zip, _read_manifest, _read_onnx_file) if data[:1] in {b"P", b"{"} else (_read_onnx_file,):
        with suppress(ModelError):
            step(data)


def _read_zip(data: bytes) -> None:
    path = scratch() / "bundle.zip"
    path.write_bytes(data)
    bundle.load(path, 1)


def _read_manifest(data: bytes) -> None:
    folder = scratch() / "bundle"
    bundle.write_folder(make_bundle(), folder)
    with suppress(ModelError):
        (folder / bundle.MANIFEST_FILE).write_bytes(data)
        bundle.read(folder)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    changed = Manifest.from_dict(values)
    bundle.write_folder(bundle.make(changed, make_bundle().model, make_bundle().files), folder)
    bundle.load(folder, 1)


def _read_onnx_file(data: bytes) -> None:
    path = scratch() / "lone.onnx"
    path.write_bytes(data)
    with suppress(ModelError):
        bundle.load(path, 1)
    with suppress(ModelError):
        onnx_graphs.load_and_run(data)
    about = replace(make_bundle().manifest, reference_examples=(), graph_sha256=onnx_file.hash_graph(data))
    text = about.to_json()
    path.write_bytes(
        onnx_file.replace_metadata(
            data, {bundle.MANIFEST_KEY: text, bundle.MANIFEST_HASH_KEY: hashlib.sha256(text.encode()).hexdigest()}
        )
    )
    bundle.load(path, 1)


def bundle_seeds() -> Iterator[bytes]:
    complete_bundle = make_bundle()
    stream = io.BytesIO()
    bundle.write_zip(complete_bundle, stream)
    yield from (stream.getvalue(), complete_bundle.model, complete_bundle.manifest.to_json().encode())
    yield onnx_file.replace_metadata(complete_bundle.model, {})
    for seed in range(40):
        yield onnx_graphs.draw_graph(random.Random(seed))  # noqa: S311  # no secret
    for make in onnx_graphs.HOSTILE.values():
        if len(data := make()) <= MAX_INPUT:
            yield data


# Exported folders of safetensors

MAX_NUMBER = 1000  # in layers.json: the cost of a Keras network is not bounded


@cache
def make_safetensors() -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the files of a small network."""
    network = build_model(make_plan("cifar10-simple", hidden_units=()))
    spec = PreprocessingSpec(*network.model.input.shape[1:3])
    return Manifest("cifar10-simple", CLASSES[:2], spec), encode_model(network.model)


def read_safetensors(data: bytes) -> None:
    """Load a folder whose hashes are made valid; the first byte selects weights, their header alone, or layers."""
    manifest, files = make_safetensors()
    changed = _change_safetensors(data, files) if data else None
    if changed is None:
        return
    folder = scratch() / "safetensors"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in (files | changed).items():
        (folder / name).write_bytes(content)
    exported_folder.add_manifest(folder, "safetensors", manifest, {})
    with suppress(ModelError):
        exported_folder.load(folder, 1)


def _change_safetensors(data: bytes, files: dict[str, bytes]) -> dict[str, bytes] | None:
    """Return the file changed by an input; None for layers that Keras would build without a bound."""
    kind, content = data[0] % 3, data[1:]
    if kind == 0:
        return {WEIGHTS_FILE: content}
    if kind == 1:
        return {WEIGHTS_FILE: struct.pack("<Q", len(content)) + content + _split_header(files[WEIGHTS_FILE])[1]}
    try:
        is_small = _largest_number(jsonio.loads(content)) <= MAX_NUMBER
    except ValueError:
        is_small = True  # refused before Keras sees it
    return {LAYERS_FILE: content} if is_small else None


def _split_header(weights: bytes) -> tuple[bytes, bytes]:
    """Return the header of a safetensors file, which is JSON, and the values that follow."""
    (size,) = struct.unpack("<Q", weights[:8])
    return weights[8 : 8 + size], weights[8 + size :]


def _largest_number(value: Any) -> float:
    if isinstance(value, dict | list):
        return max(map(_largest_number, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, int | float) else 0


def safetensors_seeds() -> Iterator[bytes]:
    files = make_safetensors()[1]
    yield b"\0" + files[WEIGHTS_FILE]
    yield b"\1" + _split_header(files[WEIGHTS_FILE])[0]
    yield b"\2" + files[LAYERS_FILE]


# Models on the Hub

NAME = "me/model"


@cache
def start_hub() -> Hub:
    """Point huggingface_hub at a new server, which runs until this process ends, and return it."""
    context = run_hub()
    server = context.__enter__()
    atexit.register(context.__exit__, None, None, None)
    return server


def read_hub_model(data: bytes) -> None:
    """Pull a model; the first byte selects what the server sends: a listing, a manifest, or a zip of files.

    Afterwards, the folder may contain nothing but a verified bundle, and there may be nothing beside it.
    """
    if not data:
        return
    server, parent = start_hub(), scratch() / "pulled"
    parent.mkdir(exist_ok=True)
    server.repositories[NAME] = Repository(private=False)
    server.repositories[NAME].add(_files_on_hub(data[0] % 3, data[1:]))
    server.listing = data[1:] if data[0] % 3 == 0 else None
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        with mock.patch.dict(os.environ, environment), suppress(ModelError):
            hub.pull(f"hf:{NAME}", parent / "model", progress=False)
            bundle.load(parent / "model", 1)
        left = {path.name for path in parent.iterdir()}
        assert left <= {"model"}, left
    finally:
        shutil.rmtree(parent)


def _files_on_hub(kind: int, content: bytes) -> dict[str, bytes]:
    """Return the files of a bundle, a manifest or a zip."""
    files = dict(bundle.to_files(make_bundle()))
    if kind == 1:
        with suppress(ValueError, AttributeError, TypeError):
            files |= dict.fromkeys(map(str, json.loads(content)["files"]), b"x") | files
        files[MANIFEST_FILE] = content
    if kind == 2:
        with suppress(*_packed.ZIP_ERRORS), zipfile.ZipFile(io.BytesIO(content)) as archive:
            files |= {info.filename: archive.read(info) for info in archive.infolist() if info.file_size <= MAX_INPUT}
    return files


def hub_seeds() -> Iterator[bytes]:
    files = bundle.to_files(make_bundle())
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    listing = {"id": NAME, "sha": Repository(private=False).add(dict(files)), "private": False, "siblings": siblings}
    yield b"\0" + json.dumps(listing).encode()
    yield b"\1" + files[MANIFEST_FILE]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    yield b"\2" + stream.getvalue()


# Files of embeddings

ROWS_SUFFIX = ".npy.jsonl"
EMBEDDING_SUFFIXES = (*embedding_files.SUFFIXES, ROWS_SUFFIX)


@cache
def make_embeddings() -> dict[str, bytes]:
    """Return a file of embeddings in each format, by suffix: one image has no label, another cannot be read."""
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    vectors[3] = np.nan
    labels, errors = ("cat", None, "=1", None), (None, None, None, "truncated")
    value = Embeddings(vectors, ("1.png", "猫.png", "'3.png", "4.png"), labels, errors, "net@" + "0" * 64)
    path = scratch() / "embeddings"
    for suffix in embedding_files.SUFFIXES:
        embedding_files.write(path.with_suffix(suffix), [value])
    return {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in EMBEDDING_SUFFIXES}


def read_embeddings(data: bytes) -> None:
    """Open a file of embeddings and read it twice; the first byte selects the format."""
    if not data:
        return
    contents = make_embeddings()
    suffix = EMBEDDING_SUFFIXES[data[0] % len(EMBEDDING_SUFFIXES)]
    changed, path = scratch() / f"embeddings{suffix}", scratch() / f"embeddings{suffix.removesuffix('.jsonl')}"
    changed.write_bytes(data[1:])
    try:
        embedding_files.has_embeddings(path)
        with suppress(DataError):
            file = embedding_files.open_file(path)
            for _ in range(2):
                for batch in file.iterate():
                    assert batch.vectors.shape[0] == len(batch) == len(batch.labels) == len(batch.errors)
                    repr(batch)
    finally:
        changed.write_bytes(contents[suffix])


def embeddings_seeds() -> Iterator[bytes]:
    for number, suffix in enumerate(EMBEDDING_SUFFIXES):
        yield bytes([number]) + make_embeddings()[suffix]
