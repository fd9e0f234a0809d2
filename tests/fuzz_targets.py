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
from PIL import Image

import onnx_graphs
from sightline.callbacks import EpochRecord
from sightline.config import dump_toml, resolve_config
from sightline.data import label_patch
from sightline.data.archives import TarStore, ZipStore
from sightline.data.checks.leakage import Leak, SmallImages
from sightline.data.indexing import build_index
from sightline.data.recorded_images import ImageRow
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.manifest import list_from_table, read_manifest
from sightline.data.sources.table import TABLE_SUFFIXES
from sightline.data.storage import FolderStore
from sightline.data.types import ImageRecord, LabeledSubset, Subset
from sightline.errors import ConfigError, DataError, ImageError, ModelError
from sightline.evaluation.report import build_report, fit_thresholds
from sightline.inference import bundle
from sightline.inference.bundle import Bundle
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.inference.safety import onnx_file
from sightline.models import keras_file
from sightline.models.describe import LayerDescription, ModelDescription
from sightline.preprocessing import PreprocessingSpec, decode_preview, detect_format, inspect_image
from sightline.report.html_report import render_html
from sightline.runs import report_images, run_report
from sightline.runs.directory import RunDirectory
from sightline.runs.run_report import read_report
from sightline.training import checkpoints
from synthetic_images import encode

MAX_INPUT = 1 << 16  # bytes per input
CLASSES = ("ant", "bee", "猫")
SMALL = PreprocessingSpec(8, 8)


@dataclass(frozen=True)
class Target:
    """A reader, and valid files for it as seeds."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


@cache
def scratch() -> Path:
    """Return a folder that is removed at exit."""
    folder = tempfile.TemporaryDirectory(prefix="sightline-fuzz-")
    _FOLDERS.append(folder)
    return Path(folder.name)


_FOLDERS: list[Any] = []


def encode_image(number: int = 0, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
    return encode(Image.fromarray(pixels).convert(mode), kind, **options)


# JSON, as random bytes are rarely valid JSON

ODD_VALUES: tuple[Any, ...] = (
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
                at[key] = rng.choice(ODD_VALUES)
            elif how < 0.8 or isinstance(at, list):
                del at[key]
            else:
                at[f"{key}s"] = at.pop(key)
            break
        at = inner
    else:
        value = rng.choice(ODD_VALUES)
    lines[number] = json.dumps(value).encode()
    return data[:start] + b"\n".join(lines)


# Decoder


def read_image(data: bytes) -> None:
    """Do everything with an encoded image that any command does."""
    for page in (1, 2):
        spec = PreprocessingSpec(32, 32, page=page)
        for step in (
            lambda: detect_format(data[:128]),
            lambda page=page: inspect_image(data, page),
            lambda spec=spec: decode_preview(data, 64, spec),
            lambda spec=spec: spec.decode(data),
            lambda spec=spec: spec.sample_values(data, 100),
            lambda page=page: PreprocessingSpec(8, 16, 1, "crop", value_range=(10, 1000), page=page).decode(data),
        ):
            with suppress(ImageError):
                step()


def image_seeds() -> Iterator[bytes]:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"):
        yield encode_image(0, kind)
    for mode in ("L", "P", "1", "RGBA", "I;16", "LA"):
        yield encode_image(1, "PNG", mode)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield encode_image(2, "TIFF", compression=compression)
    yield encode_image(3, "TIFF", "F")
    yield encode_image(3, "JPEG", progressive=True)
    yield encode_image(3, "JPEG", "CMYK")
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
            with suppress(ImageError):
                store.read(key, detect_format)
    with suppress(DataError):
        listing = build_index(path, threads=1, lenient=True)
        for number in range(min(50, len(listing.images))):
            listing.read(number)


def archive_seeds() -> Iterator[bytes]:
    members = {
        "cat/1.png": encode_image(1),
        "cat/2.png": encode_image(2),
        "dog/1.jpg": encode_image(3, "JPEG"),
        "dog/note.txt": b"x",
    }
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
def make_bundle() -> Bundle:
    """Return a bundle of a one-layer network, with a reference example."""
    model = onnx_graphs.make_linear_classifier(np.full((192, 3), 0.01))
    pixels = SMALL.decode(encode_image())
    example = ReferenceExample("reference/0.png", "bee", bundle.hash_pixels(pixels), (1 / 3,) * 3)
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
        yield onnx_graphs.random_graph(seed)
    for make in onnx_graphs.HOSTILE.values():
        if len(data := make()) <= MAX_INPUT:
            yield data


# Manifests


@cache
def make_labeled_folder() -> Path:
    folder = scratch() / "images"
    for name in ("1.png", "2.png", "cat/3.png", "train/dog/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_image(4))
    return folder


def read_table_manifest(data: bytes) -> None:
    """Read a table by itself, as labels of a folder, and as a patch; the first byte selects the file type."""
    if not data:
        return
    folder, content = make_labeled_folder(), data[1:]
    path = folder / f"list{TABLE_SUFFIXES[data[0] % len(TABLE_SUFFIXES)]}"
    path.write_bytes(content)
    try:
        with suppress(DataError):
            read_manifest(path)
        with suppress(DataError):
            list_from_table(content, path.name, FileFinder(FolderStore(folder)), prefix="a/", store_is_source=True)
        with suppress(DataError):
            label_patch.read_patch(path)
    finally:
        path.unlink()


def manifest_seeds() -> Iterator[bytes]:
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
        yield from (bytes([TABLE_SUFFIXES.index(suffix)]) + text.encode() for text in contents)
    yield bytes([0]) + "\ufeffpath,label\n1.png,Käse\n".encode("utf-16")
    yield bytes([0]) + "path,label\n1.png,猫\n".encode("gbk")


# Runs


@cache
def make_run() -> tuple[Path, Mapping[str, bytes]]:
    """Return a run with every file that is read from a run, and its files by name."""
    run = RunDirectory.create(scratch() / "run", seed=1, versions={"keras": "3"})
    run.write_config(resolve_config({"data": {"sources": ["a"]}}))
    rows = [ImageRow(f"a/{i}.png", f"{i:064}", "ab"[i % 2], "train", "g") for i in range(3)]
    lines = [json.dumps(row.to_dict()) for row in rows] + [json.dumps({"path": "bad.png", "reason": "truncated"})]
    small = SmallImages(("0" * 64, "1" * 64), np.zeros((2, 32, 32), np.uint8))
    run.write_leakage([Leak("near_duplicates", tuple(rows[:2]))], small)
    run.write_history([EpochRecord(1, "head", 1.5, 0.25, None, 0.5, 1e-3, 2.0, 80.0)])
    run.write_thresholds(Thresholds(5, 0.9, 0.5, 0.8))
    result = {"run": "run", "model": "net", "parameters": 112, "epochs": 1, "seconds": 1.0, "best_epoch": 1}
    run.update(result=result | {"test": {"accuracy": 0.75, "loss": 0.5, "count": 12}})
    run.write_label_issues([{"path": "a/1.png", "label": "a", "suggested": "b", "score": 0.1}])
    stream = io.BytesIO()
    np.savez(
        stream, paths=np.array(["a/1.png"]), labels=np.array([0], np.int32),
        probabilities=np.array([[0.5, 0.5]], np.float32), classes=np.array(["a", "b"]),
    )  # fmt: skip
    fix = {"action": "drop", "path": "a/1.png", "sha256": "0" * 64, "label": "a", "reason": "x"}
    contents = {
        "data.jsonl": "\n".join(lines).encode(), "patch.jsonl": json.dumps(fix).encode(),
        "model.json": json.dumps({"classes": list(CLASSES), "preprocess": SMALL.to_dict()}).encode(),
        "eval/test/predictions.npz": stream.getvalue(), "model.keras": make_keras_file(),
        "checkpoint": make_checkpoint(),
        "lock": b"1", "config.toml": dump_toml(resolve_config({"train": {"epochs": 3}})).encode(),
    }  # fmt: skip
    for name, content in contents.items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(content)
    (run.path / "checkpoint").unlink()
    names = ("run.json", "leakage.jsonl", "thumbnails.npz", "history.jsonl", "thresholds.json", "label_issues.jsonl")
    ordered = dict(sorted((contents | {name: (run.path / name).read_bytes() for name in names}).items()))
    write_report_files(run)
    # Others go last: the first byte of an input is the number of its file.
    return run.path, ordered | {name: (run.path / name).read_bytes() for name in REPORT_FILES}


REPORT_FILES = ("eval/test/metrics.json", "network.json", "report/images.jsonl")


def write_report_files(run: RunDirectory) -> None:
    """Write what a report needs besides the other files of a run."""
    count, classes = 12, ("a", "b")
    labels = np.arange(count, dtype=np.int32) % 2
    outputs = []
    for wrong in (1, 3):  # errors on validation and on test
        logits = np.zeros((count, 2), np.float32)
        logits[np.arange(count), np.where(np.arange(count) < wrong, 1 - labels, labels)] = np.linspace(4, 1, count)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        outputs.append(ModelOutputs(Outputs(probabilities, logits, logits), labels))
    paths = tuple(f"a/{i}.png" for i in range(count))
    images = tuple(ImageRecord(path, "0" * 64, classes[k], "test", 9, 9) for path, k in zip(paths, labels, strict=True))
    pixels = np.zeros((count, 9, 9, 3), np.uint8)
    labeled = LabeledSubset(Subset(pixels, np.arange(count), labels, paths), images, ())
    request = ThresholdRequest(target_precision=0.6, conservative=False)
    thresholds, _ = fit_thresholds(outputs[0], request, None, classes)
    value = build_report(classes, outputs[1], labeled, "test", outputs[0], thresholds)
    run.write_evaluation("test", value.evaluation, value.to_dict())
    layers = [
        LayerDescription("input", "input", "input", (), (9, 9, 3), "", None, None, None, 0, "", 0, (1, 1), (1, 1), 243),
        LayerDescription("conv", "convolution", "convolution", (0,), (9, 9, 4), "9", (3, 3), (1, 1), "relu", 112,
                         "3 * 3", 8748, (3, 3), (1, 1), 1296),
    ]  # fmt: skip
    run_report.write_network(run, ModelDescription("net", (9, 9, 3), 2, tuple(layers)))
    errors = value.errors.most_confident_errors
    images_by_entry = dict(report_images.make_thumbnail("error", error.path, pixels[0]) for error in errors)
    heat = np.linspace(0, 1, 81, dtype=np.float32).reshape(9, 9)
    images_by_entry |= dict(report_images.make_heat_map(error.path, error.predicted, heat) for error in errors)
    report_images.write_images(run, images_by_entry, lambda _: True)


def make_keras_file() -> bytes:
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


def make_checkpoint() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, state=np.array('{"epoch": 1}'), w=np.zeros(3, np.float32))
    return stream.getvalue()


def read_run(data: bytes) -> None:
    """Read a run in which one file is replaced by `data` from the second byte on; the first byte selects the file."""
    if not data:
        return
    path, contents = make_run()
    name = list(contents)[data[0] % len(contents)]
    content, place = data[1:], path / name
    if name == "checkpoint":
        place = path / "checkpoints" / f"00001-{hashlib.sha256(content).hexdigest()[:16]}.npz"
        place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    try:
        with suppress(ModelError, ConfigError, DataError):
            READERS[name](RunDirectory.open(path))
    finally:
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        if name != "checkpoint":
            place.write_bytes(contents[name])


READERS: Mapping[str, Callable[[RunDirectory], object]] = {
    "checkpoint": lambda run: checkpoints.load_latest(run.checkpoints),
    "config.toml": lambda run: run.config,
    "data.jsonl": lambda run: (run.read_rejected(), run.read_data()),
    "eval/test/predictions.npz": lambda run: run.read_predictions("test"),
    "history.jsonl": lambda run: run.read_history(),
    "label_issues.jsonl": lambda run: run.read_label_issues(),
    "leakage.jsonl": lambda run: run.read_leaks(),
    "lock": lambda run: run.is_locked,
    "model.json": lambda run: run.read_model_spec(),
    "model.keras": lambda run: keras_file.check_keras_file(run.path / "model.keras"),
    "patch.jsonl": lambda run: label_patch.read_patch(run.path / "patch.jsonl"),
    "run.json": lambda run: (run.info, run.bundle),
    "thumbnails.npz": lambda run: run.read_small_images(),
    "thresholds.json": lambda run: run.read_thresholds(),
    **dict.fromkeys(REPORT_FILES, lambda run: render_html(read_report(run))),
}
"""The reader of each file of a run."""


def run_seeds() -> Iterator[bytes]:
    for number, content in enumerate(make_run()[1].values()):
        yield bytes([number]) + content


TARGETS = {
    "decoder": Target(read_image, image_seeds),
    "archive": Target(read_archive, archive_seeds),
    "bundle": Target(read_bundle, bundle_seeds),
    "manifest": Target(read_table_manifest, manifest_seeds),
    "run": Target(read_run, run_seeds),
}
