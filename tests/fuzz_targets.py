"""The readers of untrusted files, each as a function of bytes that must not raise.

A file may be rejected with the documented error of its reader; any other exception, a signal, a hang or a gibibyte of
memory is a bug. `fuzz.py` generates inputs, and `test_corpus.py` repeats all inputs that ever failed.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
from PIL import Image

import onnx_graphs
from pictures import encode
from sightline.config import dump_toml, resolve
from sightline.data import patch
from sightline.data.archives import TarStore, ZipStore
from sightline.data.index import index
from sightline.data.leakage import Leak, SmallImages
from sightline.data.membership import ImageRow
from sightline.data.sources.finder import Finder
from sightline.data.sources.manifest import label_by_table, manifest
from sightline.data.sources.table import SUFFIXES
from sightline.data.stores import FolderStore
from sightline.errors import ConfigError, DataError, ModelError, PictureError
from sightline.prediction import bundle, keras_file, onnxfile
from sightline.prediction.bundle import Bundle
from sightline.prediction.manifest import Golden, Manifest
from sightline.preprocess import Preprocess, find_format, glance, inspect
from sightline.records import EpochRecord, Thresholds
from sightline.run import Run
from sightline.training import checkpoint

LARGEST = 1 << 16  # bytes per input
CLASSES = ("ant", "bee", "猫")
SMALL = Preprocess(8, 8)


@dataclass(frozen=True)
class Target:
    """A reader, and valid files for it as seeds."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


@cache
def scratch() -> Path:
    """Return a folder that is removed at exit."""
    kept = tempfile.TemporaryDirectory(prefix="sightline-fuzz-")
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[Any] = []


def image(number: int = 0, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
    return encode(Image.fromarray(pixels).convert(mode), kind, **options)


# JSON, as random bytes are rarely valid JSON

ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    0.5,
    1e300,
    1 << 63,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    {},
    [[]],
    [None],
    {"x": 1},
    "9" * 400,
)


def alter_json(data: bytes, rng: random.Random) -> bytes | None:
    """Replace, remove or rename a value somewhere in JSON or JSON lines; return None for anything else."""
    start = 0 if data[:1] == b"{" else 1  # the byte that selects the file
    lines = data[start:].splitlines() if data.count(b"\n{") else [data[start:]]
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except (ValueError, RecursionError):
        return None
    at = value
    while isinstance(at, dict | list) and at:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
            how = rng.random()
            if how < 0.6:
                at[key] = rng.choice(ODD)
            elif how < 0.8 or isinstance(at, list):
                del at[key]
            else:
                at[f"{key}s"] = at.pop(key)
            break
        at = inner
    else:
        value = rng.choice(ODD)
    lines[number] = json.dumps(value).encode()
    return data[:start] + b"\n".join(lines)


# Decoder


def decode(data: bytes) -> None:
    """Do everything with an encoded image that any command does."""
    for page in (1, 2):
        spec = Preprocess(32, 32, page=page)
        for step in (
            lambda: find_format(data[:128]),
            lambda page=page: inspect(data, page),
            lambda spec=spec: glance(data, 64, spec),
            lambda spec=spec: spec.decode(data),
            lambda spec=spec: spec.values(data, 100),
            lambda page=page: Preprocess(8, 16, 1, "crop", range=(10, 1000), page=page).decode(data),
        ):
            with suppress(PictureError):
                step()


def images() -> Iterator[bytes]:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"):
        yield image(0, kind)
    for mode in ("L", "P", "1", "RGBA", "I;16", "LA"):
        yield image(1, "PNG", mode)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield image(2, "TIFF", compression=compression)
    yield image(3, "TIFF", "F")
    yield image(3, "JPEG", progressive=True)
    yield image(3, "JPEG", "CMYK")
    more = [Image.fromarray(np.full((9, 9), 50 * i, np.uint8)) for i in range(3)]
    yield from (encode(more[0], kind, save_all=True, append_images=more[1:]) for kind in ("GIF", "TIFF", "PNG", "WEBP"))


# Archives


def read_archive(data: bytes) -> None:
    """List an archive as an image source, and read its contents."""
    is_zip = data[:2] == b"PK"
    path = scratch() / ("source.zip" if is_zip else "source.tar")
    path.write_bytes(data)
    with suppress(DataError):
        store = ZipStore(path) if is_zip else TarStore(path)
        store.folders()
        for key in store.keys()[:50]:
            with suppress(PictureError):
                store.read(key, find_format)
    with suppress(DataError):
        listed = index(path, threads=1, lenient=True)
        for number in range(min(50, len(listed.pictures))):
            listed.read(number)


def archives() -> Iterator[bytes]:
    members = {"cat/1.png": image(1), "cat/2.png": image(2), "dog/1.jpg": image(3, "JPEG"), "dog/note.txt": b"x"}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        yield stream.getvalue()
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode=mode, format=form) as tar:
                for name, content in members.items():
                    long = tarfile.TarInfo("猫" * 50 + name if "1" in name else name)
                    long.size = len(content)
                    tar.addfile(long, io.BytesIO(content))
            yield stream.getvalue()


# Bundles


@cache
def whole_bundle() -> Bundle:
    """Return a bundle of a one-layer network, with a reference example."""
    node = onnx.helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["x"], to=onnx_graphs.FLOAT),
        node("Flatten", ["x"], ["features"], axis=1),
        node("MatMul", ["features", "w"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    value = onnx.helper.make_tensor_value_info
    sizes = {"probabilities": 3, "logits": 3, "features": 192}
    graph = onnx.helper.make_graph(
        nodes, "g",
        [value("pixels", onnx.TensorProto.UINT8, ["N", 8, 8, 3])],
        [value(name, onnx_graphs.FLOAT, ["N", size]) for name, size in sizes.items()],
        [onnx_graphs.floats("w", 192, 3)],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    pixels = SMALL.decode(image())
    golden = Golden("golden/0.png", "bee", bundle.pixels_sha256(pixels), (1 / 3,) * 3)
    return bundle.make(
        Manifest("one-layer", CLASSES, SMALL, golden=(golden,), figures={"test": {"accuracy": 0.5}}),
        model.SerializeToString(), {"golden/0.png": image()},
    )  # fmt: skip


def read_bundle(data: bytes) -> None:
    """Load a bundle from a zip, a JSON manifest, or an ONNX file whose hashes are made valid."""
    for step in (_zip, _manifest, _lone) if data[:1] in {b"P", b"{"} else (_lone,):
        with suppress(ModelError):
            step(data)


def _zip(data: bytes) -> None:
    path = scratch() / "bundle.zip"
    path.write_bytes(data)
    bundle.load(path, 1)


def _manifest(data: bytes) -> None:
    folder = scratch() / "bundle"
    bundle.write(whole_bundle(), folder)
    with suppress(ModelError):
        (folder / bundle.MANIFEST).write_bytes(data)
        bundle.read(folder)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    changed = Manifest.from_dict(values)
    bundle.write(bundle.make(changed, whole_bundle().model, whole_bundle().files), folder)
    bundle.load(folder, 1)


def _lone(data: bytes) -> None:
    path = scratch() / "lone.onnx"
    path.write_bytes(data)
    with suppress(ModelError):
        bundle.load(path, 1)
    with suppress(ModelError):
        onnx_graphs.load_and_run(data)
    about = replace(whole_bundle().manifest, golden=(), graph_sha256=onnxfile.graph_sha256(data))
    text = about.to_json()
    path.write_bytes(
        onnxfile.with_metadata(data, {bundle.KEY: text, bundle.HASH: hashlib.sha256(text.encode()).hexdigest()})
    )
    bundle.load(path, 1)


def bundles() -> Iterator[bytes]:
    whole = whole_bundle()
    stream = io.BytesIO()
    bundle.pack(whole, stream)
    yield from (stream.getvalue(), whole.model, whole.manifest.to_json().encode())
    yield onnxfile.with_metadata(whole.model, {})
    for seed in range(40):
        yield onnx_graphs.drawn(seed)
    for make in onnx_graphs.HOSTILE.values():
        if len(data := make()) <= LARGEST:
            yield data


# Manifests


@cache
def labeled_folder() -> Path:
    folder = scratch() / "images"
    for name in ("1.png", "2.png", "cat/3.png", "train/dog/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(4))
    return folder


def read_manifest(data: bytes) -> None:
    """Read a table by itself, as labels of a folder, and as a patch; the first byte selects the file type."""
    if not data:
        return
    folder, content = labeled_folder(), data[1:]
    path = folder / f"list{SUFFIXES[data[0] % len(SUFFIXES)]}"
    path.write_bytes(content)
    try:
        with suppress(DataError):
            manifest(path)
        with suppress(DataError):
            label_by_table(content, path.name, Finder(FolderStore(folder)), prefix="a/", whole=True)
        with suppress(DataError):
            patch.read(path)
    finally:
        path.unlink()


def manifests() -> Iterator[bytes]:
    rows = [{"path": "1.png", "label": "cat", "split": "train"}, {"path": "2.png", "label": "dog", "split": "test"}]
    coco = {
        "images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        "annotations": [{"image_id": 1, "category_id": 5}, {"image_id": 2, "category_id": 6}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }
    fix = {"action": "relabel", "path": "1.png", "sha256": "0" * 64, "label": "cat", "to": "dog", "reason": "x"}
    lines = "\n".join(map(json.dumps, rows))
    texts = {
        ".csv": ["path,label,split\n1.png,cat,train\n2.png,dog,test\n", "image;cat;dog\n1.png;1;0\n2.png;0;1\n",
                 'file,label\n"cat/3.png","a, ""b"""\n', "1.png,cat\n2.png,dog\n"],
        ".tsv": ["filename\tclass\n1\tcat\n2\tdog\n"],
        ".jsonl": [lines, json.dumps(fix)], ".ndjson": [lines],
        ".json": [json.dumps(rows), json.dumps(coco), json.dumps({"1.png": "cat", "2.png": "dog"}),
                  json.dumps({"cat": ["1.png"], "dog": ["2.png"]})],
    }  # fmt: skip
    for suffix, contents in texts.items():
        yield from (bytes([SUFFIXES.index(suffix)]) + text.encode() for text in contents)
    yield bytes([0]) + "\ufeffpath,label\n1.png,Käse\n".encode("utf-16")
    yield bytes([0]) + "path,label\n1.png,猫\n".encode("gbk")


# Runs


@cache
def whole_run() -> tuple[Path, Mapping[str, bytes]]:
    """Return a run with every file that is read from a run, and its files by name."""
    run = Run.create(scratch() / "run", seed=1, versions={"keras": "3"})
    run.write_config(resolve({"data": {"sources": ["a"]}}))
    rows = [ImageRow(f"a/{i}.png", f"{i:064}", "ab"[i % 2], "train", "g") for i in range(3)]
    lines = [json.dumps(row.to_dict()) for row in rows] + [json.dumps({"path": "bad.png", "reason": "truncated"})]
    small = SmallImages(("0" * 64, "1" * 64), np.zeros((2, 32, 32), np.uint8))
    run.write_leakage([Leak("near", tuple(rows[:2]))], small)
    run.write_history([EpochRecord(1, "head", 1.5, 0.25, None, 0.5, 1e-3, 2.0, 80.0)])
    run.write_thresholds(Thresholds(5, 0.9, 0.5, 0.8))
    run.write_suspects([{"path": "a/1.png", "label": "a", "suggested": "b", "score": 0.1}])
    stream = io.BytesIO()
    np.savez(
        stream, paths=np.array(["a/1.png"]), labels=np.array([0], np.int32),
        probabilities=np.array([[0.5, 0.5]], np.float32), classes=np.array(["a", "b"]),
    )  # fmt: skip
    fix = {"action": "drop", "path": "a/1.png", "sha256": "0" * 64, "label": "a", "reason": "x"}
    contents = {
        "data.jsonl": "\n".join(lines).encode(), "patch.jsonl": json.dumps(fix).encode(),
        "model.json": json.dumps({"classes": list(CLASSES), "preprocess": SMALL.to_dict()}).encode(),
        "eval/test/predictions.npz": stream.getvalue(), "model.keras": keras(), "checkpoint": state(),
        "lock": b"1", "config.toml": dump_toml(resolve({"train": {"epochs": 3}})).encode(),
    }  # fmt: skip
    for name, content in contents.items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(content)
    (run.path / "checkpoint").unlink()
    names = ("run.json", "leakage.jsonl", "small.npz", "history.jsonl", "thresholds.json", "labels.jsonl")
    return run.path, dict(sorted((contents | {name: (run.path / name).read_bytes() for name in names}).items()))


def keras() -> bytes:
    """Return a file in the layout that Keras writes."""
    weights, stream = io.BytesIO(), io.BytesIO()
    with h5py.File(weights, "w") as file:
        file.create_group("layers/dense/vars")["0"] = np.zeros((3, 2), np.float32)
        file["layers/dense/vars/1"] = np.zeros(2, np.float32)
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", '{"module": "keras", "class_name": "Functional", "config": {}}')
        archive.writestr("model.weights.h5", weights.getvalue())
    return stream.getvalue()


def state() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, state=np.array('{"epoch": 1}'), w=np.zeros(3, np.float32))
    return stream.getvalue()


def read_run(data: bytes) -> None:
    """Read a run in which one file is replaced by `data` from the second byte on; the first byte selects the file."""
    if not data:
        return
    path, contents = whole_run()
    name = list(contents)[data[0] % len(contents)]
    content, place = data[1:], path / name
    if name == "checkpoint":
        place = path / "checkpoints" / f"00001-{hashlib.sha256(content).hexdigest()[:16]}.npz"
        place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    try:
        with suppress(ModelError, ConfigError, DataError):
            READERS[name](Run.open(path))
    finally:
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        if name != "checkpoint":
            place.write_bytes(contents[name])


READERS: Mapping[str, Callable[[Run], object]] = {
    "checkpoint": lambda run: checkpoint.latest(run.checkpoints),
    "config.toml": lambda run: run.config,
    "data.jsonl": lambda run: (run.read_rejected(), run.read_data()),
    "eval/test/predictions.npz": lambda run: run.read_predictions("test"),
    "history.jsonl": lambda run: run.read_history(),
    "labels.jsonl": lambda run: run.read_suspects(),
    "leakage.jsonl": lambda run: run.read_leaks(),
    "lock": lambda run: run.is_held,
    "model.json": lambda run: run.read_model_facts(),
    "model.keras": lambda run: keras_file.check_file(run.path / "model.keras"),
    "patch.jsonl": lambda run: patch.read(run.path / "patch.jsonl"),
    "run.json": lambda run: (run.info, run.bundle),
    "small.npz": lambda run: run.read_small_images(),
    "thresholds.json": lambda run: run.read_thresholds(),
}
"""The reader of each file of a run."""


def runs() -> Iterator[bytes]:
    for number, content in enumerate(whole_run()[1].values()):
        yield bytes([number]) + content


TARGETS = {
    "decoder": Target(decode, images),
    "archive": Target(read_archive, archives),
    "bundle": Target(read_bundle, bundles),
    "manifest": Target(read_manifest, manifests),
    "run": Target(read_run, runs),
}
