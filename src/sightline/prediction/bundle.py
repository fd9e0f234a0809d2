"""The bundle: a model that anyone can verify and use without a training framework.

    manifest.json    the fields of `Manifest`, and the sha256 of every other file
    model.onnx       the graph, with a copy of the manifest (without file hashes) in its metadata
    golden/          reference examples: encoded images whose pixels and probabilities are in the manifest
    README.md        the model card, if written, with its plots in figures/

A bundle is a directory, a zip of it (with or without a top folder), or ``model.onnx`` alone. Loading verifies every
hash, that both copies of the manifest are equal, and that the reference examples give the recorded pixels and
probabilities. Files are read, never extracted; nothing in them is unpickled, and only the operations in
`onnxfile.OPERATIONS` are run.
"""

from __future__ import annotations

import hashlib
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import files, jsonio
from sightline.errors import ModelError, OutputError, PictureError
from sightline.prediction import onnxfile
from sightline.prediction.base import Predictor, check_finite, suitable_batch_size
from sightline.prediction.manifest import GOLDEN_FILE, Manifest
from sightline.prediction.onnx import OnnxPredictor
from sightline.prediction.onnx_graph import parse
from sightline.prediction.onnx_limits import check_limits

MODEL, MANIFEST, CARD = "model.onnx", "manifest.json", "README.md"
KEY, HASH = (
    "sightline",
    "sightline.sha256",
)  # metadata keys: the manifest, and its hash, so that a lone file can be verified
_FIGURE = re.compile(r"figures/[a-z0-9-]{1,40}\.png")
LARGEST = 4 << 30  # bytes of all files of a zip, uncompressed
LARGEST_MODEL = 2 << 30  # bytes of one file, the limit of a protocol buffer
LARGEST_MANIFEST = 64 << 20
DENSEST = 200  # largest compression ratio of a zip member
TOLERANCE = {"float32": 1e-3, "float16": 1e-3, "bfloat16": 1e-3, "int8": 0.1}
"""Largest difference of a reference probability: processors add in different orders; int8 also rounds differently."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in memory: `files` holds reference examples and the card by name; empty for a lone ``.onnx``."""

    manifest: Manifest
    model: bytes
    files: Mapping[str, bytes]

    def predictor(self, threads: int = 0) -> OnnxPredictor:
        """Return a predictor for the model."""
        return OnnxPredictor(self.model, self.manifest.classes, self.manifest.preprocess, threads)


def make(manifest: Manifest, graph: bytes, contents: Mapping[str, bytes]) -> Bundle:
    """Assemble a bundle: the manifest goes into the metadata of the ONNX file `graph`; `contents` are files by name."""
    whole = replace(manifest, graph_sha256=onnxfile.graph_sha256(graph))
    text = whole.to_json()
    return Bundle(whole, onnxfile.with_metadata(graph, {KEY: text, HASH: _sha256(text.encode())}), dict(contents))


def restated(bundle: Bundle, **changes: Any) -> Bundle:
    """Return a bundle with the same graph and files and with changed fields of the manifest."""
    return make(replace(bundle.manifest, **changes), bundle.model, bundle.files)


def restate(path: Path, **changes: Any) -> None:
    """Change fields in the manifest of the bundle at `path` (a folder, ``.zip`` or ``.onnx`` file), not its graph.

    The replacement is atomic. Raises `ModelError` if the bundle cannot be read, `OutputError` if it cannot be written
    or contains other files, which would be lost.
    """
    old = read(path)
    if more := _others(path, old):
        raise OutputError(f"{path} contains {more[0]}, which is not part of the bundle: move it elsewhere first.")
    made = restated(old, **changes)
    if path.is_dir():
        write(made, path)
    elif path.suffix.lower() == ".zip":
        files.write(path, lambda aside: pack(made, aside))
    else:
        files.write(path, made.model)


def _others(path: Path, bundle: Bundle) -> list[str]:
    """Return the files in a folder or zip that do not belong to the bundle."""
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()]
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        root = next(name.removesuffix(MANIFEST) for name in names if name.endswith(MANIFEST))
        names = [name.removeprefix(root) for name in names]
    else:
        return []
    return sorted(set(names) - {MODEL, MANIFEST, *bundle.files})


def write(bundle: Bundle, folder: Path) -> None:
    """Write a bundle as a directory, atomically, replacing an existing one; raises `OutputError`."""
    files.refuse_links_in_run(folder.parent)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as aside:
            made = Path(aside, "bundle")
            for name, content in _files(bundle).items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if folder.exists():
                folder.rename(Path(aside, "old"))
            made.rename(folder)
    except OSError as error:
        raise OutputError(f"The bundle {folder} cannot be written: {error.strerror or error}.") from error


def pack(bundle: Bundle, file: Any) -> None:
    """Write a bundle as a zip to a path or an open file; equal bundles give equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in _files(bundle).items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _files(bundle: Bundle) -> dict[str, bytes]:
    contents = {MODEL: bundle.model, **bundle.files}
    hashes = {name: _sha256(content) for name, content in sorted(contents.items())}
    values = bundle.manifest.to_dict() | {"files": hashes}
    text = jsonio.dumps(values, sort_keys=True, indent=1) + "\n"
    return {MANIFEST: text.encode(), **contents}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_bundle(path: Path) -> bool:
    """Return whether `path` looks like a bundle: a directory with a manifest, a ``.zip`` or an ``.onnx`` file."""
    return (path / MANIFEST).is_file() or (path.suffix.lower() in {".zip", ".onnx"} and path.is_file())


def load(path: Path, threads: int = 0) -> tuple[Bundle, OnnxPredictor]:
    """Load and fully verify a bundle; return it with its predictor. Raises `ModelError`."""
    with _explained(path):
        bundle = _read(path)
        check_limits(parse(bundle.model), suitable_batch_size(bundle.manifest.preprocess))
        predictor = bundle.predictor(threads)
        check_golden(bundle, predictor)
        check_finite(predictor.outputs, predictor.preprocess)
    return bundle, predictor


def read(path: Path) -> Bundle:
    """Read a bundle and verify its hashes, without running it; raises `ModelError`."""
    with _explained(path):
        return _read(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Add the path of the model to errors about its content."""
    try:
        yield
    except ModelError as error:
        text = str(error).rstrip(".")
        raise ModelError(
            f"The model {path} cannot be used: {text}. Copy it again from where it was made, or train it again."
        ) from error
    except OSError as error:
        raise ModelError(f"The model {path} cannot be read: {error}.") from error


def pixels_sha256(pixels: NDArray[np.uint8]) -> str:
    """Return the sha256 of a decoded image uint8 [H, W, C], rows from the top."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def check_golden(bundle: Bundle, predictor: Predictor) -> None:
    """Raise `ModelError` if a reference example of `bundle` no longer gives its recorded pixels and probabilities."""
    golden = [g for g in bundle.manifest.golden if g.file in bundle.files]
    if not golden:
        return
    pixels = []
    for example in golden:
        try:
            pixels.append(bundle.manifest.preprocess.decode(bundle.files[example.file]))
        except PictureError as error:
            raise ModelError(f"the reference example {example.file} cannot be read: {error}") from error
        if pixels_sha256(pixels[-1]) != example.pixels_sha256:
            raise ModelError(
                f"{example.file} decodes to different pixels here than where the model was made: its preprocessing was "
                "changed, or this version of Pillow decodes differently"
            )
    found = predictor.probabilities(np.stack(pixels))
    if not np.isfinite(found).all():
        raise ModelError("its reference examples give probabilities that are NaN or infinite: its weights are damaged")
    difference = np.abs(found - np.array([g.probabilities for g in golden])).max()
    if not difference <= TOLERANCE.get(bundle.manifest.precision, 1e-3):  # a recorded NaN is caught too
        raise ModelError(
            f"its reference examples give probabilities that differ by {difference:.2g} from the recorded ones"
        )


def _read(path: Path) -> Bundle:
    if path.is_dir():
        return _checked(_folder_reader(path))
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return _checked(_zip_reader(archive))
        except files.DAMAGED_ZIP as error:
            raise ModelError(f"it is not a zip file, or it is damaged: {error}") from error
    return _lone(files.read_regular(path, LARGEST_MODEL))


def _lone(model: bytes) -> Bundle:
    manifest = _metadata(model)
    return Bundle(manifest, model, {})


def _metadata(model: bytes) -> Manifest:
    """Return the manifest in the metadata of an ONNX file, verified against its graph."""
    found = onnxfile.metadata(model)
    text = found.get(KEY)
    if text is None:
        raise ModelError("it was not made by Sightline: its metadata contains no manifest")
    if found.get(HASH) != _sha256(text.encode()):
        raise ModelError("the manifest in its metadata was changed: it does not match its hash")
    manifest = Manifest.from_dict(_json(text.encode(), "its metadata"))
    if manifest.graph_sha256 != onnxfile.graph_sha256(model):
        raise ModelError("its weights or layers were changed: they do not match the hash in its metadata")
    return manifest


def _checked(read: Callable[[str], bytes]) -> Bundle:
    values = _json(read(MANIFEST), MANIFEST)
    hashes = values.pop("files", None) if isinstance(values, dict) else None
    if not isinstance(hashes, dict) or MODEL not in hashes:
        raise ModelError(f"{MANIFEST} lists no files, or not {MODEL}")
    manifest = Manifest.from_dict(values)
    contents = {}
    for name, expected in hashes.items():
        if name not in {MODEL, CARD} and not GOLDEN_FILE.fullmatch(name) and not _FIGURE.fullmatch(name):
            raise ModelError(f"{MANIFEST} lists {name!r}, which is not a file of a bundle")
        contents[name] = read(name)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise ModelError(f"{name} was changed: it does not match its hash in {MANIFEST}")
    if missing := [g.file for g in manifest.golden if g.file not in contents]:
        raise ModelError(f"{MANIFEST} lists no hash of {missing[0]}")
    model = contents.pop(MODEL)
    if _metadata(model) != manifest:
        raise ModelError(f"{MANIFEST} and the copy of it inside {MODEL} differ: one of them was changed")
    return Bundle(manifest, model, contents)


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        path = folder / name
        for part in (path, *path.parents):
            if part == folder:
                break
            if part.is_symlink():
                raise ModelError(f"{name} is a link, which a bundle must not contain")
        if not path.is_file():
            raise ModelError(f"{name} is missing")
        return files.read_regular(path, LARGEST_MANIFEST if name == MANIFEST else LARGEST_MODEL)

    return read


def _zip_reader(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    entries = {info.filename: info for info in archive.infolist()}
    if sum(info.file_size for info in entries.values()) > LARGEST:
        raise ModelError(f"it decompresses to more than {LARGEST >> 30} GB")
    roots = [name.removesuffix(MANIFEST) for name in entries if name == MANIFEST or name.endswith("/" + MANIFEST)]
    if len(roots) != 1:
        raise ModelError(f"it contains {len(roots)} files {MANIFEST}, expected one")

    def read(name: str) -> bytes:
        info = entries.get(roots[0] + name)
        if info is None:
            raise ModelError(f"{name} is missing")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ModelError(f"{name} is a link, which a bundle must not contain")
        limit = LARGEST_MANIFEST if name == MANIFEST else LARGEST
        if info.file_size > min(limit, max(info.compress_size, 1 << 16) * DENSEST):
            raise ModelError(
                f"{name} decompresses to {info.file_size} bytes, a suspicious compression ratio (a zip bomb?)"
            )
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise ModelError(f"{name} does not have the length that the zip states")
        return data

    return read


def _json(text: bytes, name: str) -> Any:
    try:
        return jsonio.loads(text)
    except ValueError as error:
        raise ModelError(f"{name} is not valid JSON: {error}") from error
