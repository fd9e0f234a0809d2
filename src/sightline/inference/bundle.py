"""The bundle: a model that anyone can verify and use without a training framework.

    manifest.json    the fields of `Manifest`, and the sha256 of every other file
    model.onnx       the graph, with a copy of the manifest (without file hashes) in its metadata
    reference/       reference examples: encoded images whose pixels and probabilities are in the manifest
    validation.npz   a sample of the validation images, as numbers: see `evaluation.validation_sample`
    README.md        the model card, if written, with its plots in figures/

A bundle is a directory, a zip file of it (with or without a top folder), or ``model.onnx`` alone. Loading verifies
every hash, that both copies of the manifest are equal, and that the reference examples give the recorded pixels and
probabilities. Files are read, never extracted; nothing in them is unpickled, and only the operations in
`onnx_file.ALLOWED_OPERATIONS` are run.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _packed, jsonio
from sightline.errors import ModelError, OutputError, first_line
from sightline.inference.device_choice import Device, choose_device
from sightline.inference.manifest import (
    REFERENCE_FILE,
    Manifest,
    SchemaError,
)
from sightline.inference.reference_examples import check_random_image, check_reference_examples
from sightline.inference.runner import choose_batch_size
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety import onnx_file
from sightline.inference.safety.onnx_graph import parse_graph
from sightline.inference.safety.onnx_limits import check_limits
from sightline.seeding import make_generator

MODEL_FILE, MANIFEST_FILE, CARD_FILE = "model.onnx", "manifest.json", "README.md"
SAMPLE_FILE = "validation.npz"
# metadata keys of the manifest, and of its hash, which verifies a file on its own
MANIFEST_KEY, MANIFEST_HASH_KEY = "sightline", "sightline.sha256"
_PLOT_FILE = re.compile(r"figures/[a-z0-9-]{1,40}\.png")
MAX_BUNDLE_BYTES = 4 << 30  # total for all files, uncompressed
MAX_MODEL_BYTES = 2 << 30  # the size limit of a protocol buffer
MAX_MANIFEST_BYTES = 64 << 20
MAX_COMPRESSION_RATIO = 200  # largest compression ratio of a zip member


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in memory: `files` maps names to the other files, such as the card; empty for a lone ``.onnx``."""

    manifest: Manifest
    model: bytes
    files: Mapping[str, bytes]

    def make_predictor(self, threads: int = 0) -> OnnxPredictor:
        """Return a predictor for the model."""
        return OnnxPredictor(self.model, self.manifest.classes, self.manifest.preprocess, threads)


def make(manifest: Manifest, graph: bytes, contents: Mapping[str, bytes]) -> Bundle:
    """Return a bundle with the manifest in the metadata of the ONNX file `graph`; `contents` maps names to files."""
    full_manifest = replace(manifest, graph_sha256=onnx_file.hash_graph(graph))
    text = full_manifest.to_json()
    return Bundle(
        full_manifest,
        onnx_file.replace_metadata(graph, {MANIFEST_KEY: text, MANIFEST_HASH_KEY: _sha256(text.encode())}),
        dict(contents),
    )


def update_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Return a bundle with the same graph and files, and some fields of its manifest changed."""
    return make(replace(bundle.manifest, **changes), bundle.model, bundle.files)


def update_manifest_file(path: Path, **changes: Any) -> None:
    """Change fields in the manifest of the bundle at `path` (a folder, ``.zip`` or ``.onnx`` file), not its graph.

    The replacement is atomic. Raises `ModelError` if the bundle cannot be read, `OutputError` if it cannot be written
    or contains other files, which would be lost.
    """
    old = read(path)
    refuse_foreign_files(path, to_files(old))
    updated = update_manifest(old, **changes)
    write(updated, path)


def refuse_foreign_files(path: Path, own_files: Collection[str]) -> None:
    """Raise `OutputError` if a folder or zip contains files other than `own_files`, which would be lost with it."""
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    elif path.suffix.lower() == ".zip":
        with _io.open_regular(path) as file, _packed.open_zip(file) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        root = next(name.removesuffix(MANIFEST_FILE) for name in names if name.endswith(MANIFEST_FILE))
        names = [name.removeprefix(root) for name in names]
    else:
        return
    if foreign_files := sorted({*names} - {*own_files}):
        raise OutputError(
            f"{path} contains {foreign_files[0]}, which Sightline did not write there: move it elsewhere first."
        )


def write_folder(bundle: Bundle, folder: Path) -> None:
    """Write a bundle as a directory, atomically, replacing an existing one; raises `OutputError`."""
    with _io.replacing_folder(folder, f"The bundle {folder}") as new_folder:
        for name, content in to_files(bundle).items():
            path = new_folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _io.write_new(path, content)  # synced to disk before the folder is renamed


def write(bundle: Bundle, path: Path) -> None:
    """Write a bundle as a ``.zip``, as a lone ``.onnx`` file, or else as a folder, atomically; raises `OutputError`."""
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix == ".onnx":
        _io.write_atomic(path, bundle.model)
    elif suffix == ".zip":
        _io.write_atomic(path, lambda file: write_zip(bundle, file))
    else:
        write_folder(bundle, path)


def write_zip(bundle: Bundle, file: Any) -> None:
    """Write a bundle as a zip to a path or an open file; equal bundles give equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in to_files(bundle).items():
            archive.writestr(zipfile.ZipInfo(name), content)


def to_files(bundle: Bundle) -> dict[str, bytes]:
    """Return the contents of all files of a bundle by name; ``manifest.json`` contains the hashes of the others."""
    contents = {MODEL_FILE: bundle.model, **bundle.files}
    hashes = {name: _sha256(content) for name, content in sorted(contents.items())}
    values = bundle.manifest.to_dict() | {"files": hashes}
    text = jsonio.dumps(values, sort_keys=True, indent=1) + "\n"
    return {MANIFEST_FILE: text.encode(), **contents}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_bundle(path: Path) -> bool:
    """Return whether `path` looks like a bundle: a directory with a manifest, a ``.zip`` or an ``.onnx`` file."""
    return (path / MANIFEST_FILE).is_file() or (path.suffix.lower() in {".zip", ".onnx"} and path.is_file())


def load(path: Path, threads: int = 0, device: Device = "cpu") -> tuple[Bundle, OnnxPredictor]:
    """Load and fully verify a bundle; return it with its predictor on `device`.

    Verification runs on the CPU. Raises `ModelError`, and `UsageError` for a device that is not available.
    """
    with _explain_errors(path):
        bundle = _read(path)
        check_limits(parse_graph(bundle.model), choose_batch_size(bundle.manifest.preprocess.shape))
        predictor = bundle.make_predictor(threads)
        check_reference_examples(bundle.manifest, bundle.files, predictor)
        check_random_image(bundle.manifest, predictor)
    return bundle, move_to_device(bundle, predictor, device)


def move_to_device(bundle: Bundle, predictor: OnnxPredictor, device: Device) -> OnnxPredictor:
    """Return the predictor of a verified bundle on `device`; see `choose_device`."""
    if device == "cpu":
        return predictor
    return choose_device(predictor, device, _make_check_batch(bundle), bundle.manifest.precision)


def _make_check_batch(bundle: Bundle) -> NDArray[np.uint8]:
    """Return a batch of the usual size for comparing two devices: reference examples, then noise."""
    spec = bundle.manifest.preprocess
    size = choose_batch_size(spec.shape)
    batch = make_generator(0, "check", "device").integers(0, 256, (size, *spec.shape), np.uint8)
    for row, example in zip(batch, bundle.manifest.reference_examples, strict=False):
        if example.file in bundle.files:
            row[:] = spec.decode(bundle.files[example.file])
    return batch


def read(path: Path) -> Bundle:
    """Read a bundle and verify its hashes, without running the model; raises `ModelError`."""
    with _explain_errors(path):
        return _read(path)


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Add the path of the model to errors about its content."""
    try:
        yield
    except SchemaError as error:
        raise ModelError(f"The model {path} cannot be used: {error}.") from error
    except ModelError as error:
        text = str(error).rstrip(".")
        raise ModelError(
            f"The model {path} cannot be used: {text}. Copy it again from where it was made, or train it again."
        ) from error
    except OSError as error:
        raise ModelError(f"The model {path} cannot be read: {error}.") from error


def _read(path: Path) -> Bundle:
    if path.is_dir():
        return _read_verified(_make_folder_reader(path))
    if path.suffix.lower() == ".zip":
        try:
            with _io.open_regular(path) as file, _packed.open_zip(file) as archive:
                return _read_verified(_make_zip_reader(archive))
        except _packed.ZIP_ERRORS as error:
            raise ModelError(f"it is not a zip file, or it is damaged: {first_line(error)}") from error
    model = _io.read_regular(path, MAX_MODEL_BYTES)
    return Bundle(_read_embedded_manifest(model), model, {})


def _read_embedded_manifest(model: bytes) -> Manifest:
    """Return the manifest in the metadata of an ONNX file, verified against its graph."""
    metadata = onnx_file.read_metadata(model)
    text = metadata.get(MANIFEST_KEY)
    if text is None:
        raise ModelError("it was not made by Sightline: its metadata contains no manifest")
    if metadata.get(MANIFEST_HASH_KEY) != _sha256(text.encode()):
        raise ModelError("the manifest in its metadata was changed: it does not match its hash")
    manifest = Manifest.from_dict(_parse_json(text.encode(), "its metadata"))
    if manifest.graph_sha256 != onnx_file.hash_graph(model):
        raise ModelError("its weights or layers were changed: they do not match the hash in its metadata")
    return manifest


def is_bundle_file(name: str) -> bool:
    """Return whether a file of this name may belong to a bundle, besides its ``manifest.json``."""
    return name in {MODEL_FILE, CARD_FILE, SAMPLE_FILE} or any(p.fullmatch(name) for p in (REFERENCE_FILE, _PLOT_FILE))


def parse_manifest(content: bytes) -> tuple[Manifest, dict[str, str]]:
    """Return the manifest in a ``manifest.json``, and the sha256 of each file that it lists; raises `ModelError`."""
    values = _parse_json(content, MANIFEST_FILE)
    hashes = values.pop("files", None) if isinstance(values, dict) else None
    if not isinstance(hashes, dict) or MODEL_FILE not in hashes:
        raise ModelError(f"{MANIFEST_FILE} lists no files, or not {MODEL_FILE}")
    manifest = Manifest.from_dict(values)
    if foreign := [name for name in hashes if not is_bundle_file(name)]:
        raise ModelError(f"{MANIFEST_FILE} lists {foreign[0]!r}, which is not a file of a bundle")
    return manifest, hashes


def _read_verified(read_file: Callable[[str], bytes]) -> Bundle:
    manifest, hashes = parse_manifest(read_file(MANIFEST_FILE))
    contents, size = {}, 0
    for name, expected in hashes.items():
        contents[name] = read_file(name)
        size += len(contents[name])
        if size > MAX_BUNDLE_BYTES:
            raise ModelError(f"its files have more than {MAX_BUNDLE_BYTES >> 30} GB")
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise ModelError(f"{name} was changed: it does not match its hash in {MANIFEST_FILE}")
    if missing := [example.file for example in manifest.reference_examples if example.file not in contents]:
        raise ModelError(f"{MANIFEST_FILE} lists no hash of {missing[0]}")
    model = contents.pop(MODEL_FILE)
    if _read_embedded_manifest(model) != manifest:
        raise ModelError(f"{MANIFEST_FILE} and the copy of it inside {MODEL_FILE} differ: one of them was changed")
    return Bundle(manifest, model, contents)


def _make_folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        path = folder / name
        for component in (path, *path.parents):
            if component == folder:
                break
            if component.is_symlink():
                raise ModelError(f"{name} is a link, which a bundle must not contain")
        if not path.is_file():
            raise ModelError(f"{name} is missing")
        return _io.read_regular(path, MAX_MANIFEST_BYTES if name == MANIFEST_FILE else MAX_MODEL_BYTES)

    return read


def _make_zip_reader(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):  # another program might read the other member
        raise ModelError("two of its members have the same name")
    if outside := [name for name in members if name.startswith("/") or ".." in name.split("/")]:
        raise ModelError(f"its member {outside[0]!r} leads out of the folder, which is dangerous if you unpack it")
    if sum(info.file_size for info in members.values()) > MAX_BUNDLE_BYTES:
        raise ModelError(f"it decompresses to more than {MAX_BUNDLE_BYTES >> 30} GB")
    roots = [
        name.removesuffix(MANIFEST_FILE)
        for name in members
        if name == MANIFEST_FILE or name.endswith("/" + MANIFEST_FILE)
    ]
    if len(roots) != 1:
        raise ModelError(f"it contains {len(roots)} files {MANIFEST_FILE}, expected one")

    def read(name: str) -> bytes:
        info = members.get(roots[0] + name)
        if info is None:
            raise ModelError(f"{name} is missing")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ModelError(f"{name} is a link, which a bundle must not contain")
        limit = MAX_MANIFEST_BYTES if name == MANIFEST_FILE else MAX_BUNDLE_BYTES
        if info.file_size > min(limit, max(info.compress_size, 1 << 16) * MAX_COMPRESSION_RATIO):
            raise ModelError(
                f"{name} decompresses to {info.file_size} bytes, a suspicious compression ratio (a zip bomb?)"
            )
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise ModelError(f"{name} does not have the length that the zip states")
        return data

    return read


def _parse_json(text: bytes, name: str) -> Any:
    try:
        return jsonio.loads(text)
    except ValueError as error:
        raise ModelError(f"{name} is not valid JSON: {error}") from error
