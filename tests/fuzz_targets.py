"""The readers of untrusted files, each as a function of bytes that must not raise.

A file may be rejected with the documented error of its reader; any other exception, a signal, a hang or a gibibyte of
memory is a bug. `fuzz.py` generates inputs, and `test_corpus.py` repeats all inputs that have ever failed.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

import fuzz_models
from fuzz_inputs import CLASSES, SMALL, encode_image, scratch
from new_runs import create_run
from sightline.callbacks import EpochRecord
from sightline.config import dump_toml, resolve_config
from sightline.data import label_patch
from sightline.data.archives import TarStore, ZipStore
from sightline.data.checks.leakage import Leak, SmallImages
from sightline.data.indexing import build_index
from sightline.data.recorded_images import ImageRow
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.manifest import list_from_table, parse_table, read_manifest
from sightline.data.sources.table import TABLE_SUFFIXES
from sightline.data.storage import FolderStore
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import ImageRecord, LabeledSubset, Subset
from sightline.errors import ConfigError, DataError, ImageError, ModelError
from sightline.evaluation.report import build_report, fit_thresholds
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.models import keras_file
from sightline.models.describe import LayerDescription, ModelDescription
from sightline.preprocessing import PreprocessingSpec, decode_preview, detect_format, inspect_image
from sightline.report.html_report import render_html
from sightline.runs import report_images, run_report
from sightline.runs.directory import RunDirectory
from sightline.runs.run_report import read_report
from sightline.tasks.protocol import EvaluationInputs
from sightline.training import checkpoints
from synthetic_images import encode


@dataclass(frozen=True)
class Target:
    """A reader, and valid files for it as seeds."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    megabytes: int = 1024
    """The memory limit of the process: higher for TensorFlow, whose import alone takes 612 MB."""


# Decoder


def read_image(data: bytes) -> None:
    """Do everything that any command does with an encoded image."""
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
            labels = parse_table(content, path.name, FileFinder(FolderStore(folder)))
            list_from_table(labels, prefix="a/", store_is_source=True)
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


# Tables with several labels per image


def read_several_labels(data: bytes) -> None:
    """Index the images of a table and encode their labels; the first byte selects the file type."""
    if not data:
        return
    path = make_labeled_folder() / f"list{TABLE_SUFFIXES[data[0] % len(TABLE_SUFFIXES)]}"
    path.write_bytes(data[1:])
    try:
        with suppress(DataError):
            index = build_index(path, threads=1, lenient=True)
            labels = [image.label for image in index.images]
            if index.several_labels:
                names = [LABEL_SETS.list_classes(label) for label in labels]
                assert [join_classes(row) for row in names] == labels
                targets = LABEL_SETS.encode(labels, sorted({name for row in names for name in row}))
                assert targets.sum(1).tolist() == list(map(len, names))
    finally:
        path.unlink()


def several_labels_seeds() -> Iterator[bytes]:
    rows = [{"path": "1.png", "labels": ["cat", "dog"]}, {"path": "2.png", "labels": []}]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
        "annotations": [{"image_id": i, "category_id": k} for i, k in ((1, 5), (1, 6), (1, 5), (2, 6))],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }
    texts = {
        ".csv": ["path,label\n1.png,cat\n2.png,cat;dog\n", "path,tags\n1.png,cat dog\n2.png,dog\ncat/3.png,cat\n",
                 "path,cat,dog,split\n1.png,1,1,train\n2.png,0,0,test\n",
                 'path,label\n1.png,"[""a"", ""b""]"\n2.png,[]\n',
                 "path,label\n1.png,cat\n1.png,dog\n2.png,dog\n"],
        ".tsv": ["path\tlabels\n1.png\tcat|dog\n2.png\tdog\n"],
        ".jsonl": ["\n".join(map(json.dumps, rows))],
        ".json": [json.dumps(rows), json.dumps(coco)],
    }  # fmt: skip
    for suffix, contents in texts.items():
        yield from (bytes([TABLE_SUFFIXES.index(suffix)]) + text.encode() for text in contents)


# Runs


@cache
def make_run() -> tuple[Path, Mapping[str, bytes]]:
    """Return a run with every file that is read from a run, and its files by name."""
    run = create_run(scratch() / "run", seed=1, versions={"keras": "3"})
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
    # Other files go last: the first byte of an input is the number of its file.
    return run.path, ordered | {name: (run.path / name).read_bytes() for name in REPORT_FILES}


REPORT_FILES = ("eval/test/metrics.json", "network.json", "report/images.jsonl")


def write_report_files(run: RunDirectory) -> None:
    """Write the additional files of a run that a report needs."""
    count, classes = 12, ("a", "b")
    labels = np.arange(count, dtype=np.int32) % 2
    outputs = []
    for wrong in (1, 3):  # errors on validation and test
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
    value = build_report(EvaluationInputs(classes, outputs[1], labeled, "test", outputs[0], thresholds))
    run.write_evaluation("test", value.evaluation, value.to_dict(), None)
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
    "data.jsonl": lambda run: (run.read_unreadable(), run.read_data()),
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
    "bundle": Target(fuzz_models.read_bundle, fuzz_models.bundle_seeds),
    "manifest": Target(read_table_manifest, manifest_seeds),
    "labels": Target(read_several_labels, several_labels_seeds),
    "run": Target(read_run, run_seeds),
    "embeddings": Target(fuzz_models.read_embeddings, fuzz_models.embeddings_seeds),
    "safetensors": Target(fuzz_models.read_safetensors, fuzz_models.safetensors_seeds, 2048),
    "hub": Target(fuzz_models.read_hub_model, fuzz_models.hub_seeds),
}
