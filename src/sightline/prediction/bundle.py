"""The bundle: a model that anyone can check and use without a training framework.

    manifest.json    what `Manifest` holds, and the sha256 of every other file
    model.onnx       with a copy of the manifest, less the hashes of files, in its metadata
    golden/          a few encoded pictures whose pixels and probabilities the manifest knows
    README.md        the model card, where one was written, and its pictures in figures/

A directory, a zip of it (with or without a folder around it), or ``model.onnx`` alone. Loading verifies every hash,
that both copies of the manifest are equal, and that the golden examples still give their pixels and probabilities.
Files are read, never extracted; nothing in them is unpickled or run but the operations of `onnxfile.OPERATIONS`.
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
)  # of the metadata: the manifest, and its hash, so that a lone file knows too
_FIGURE = re.compile(r"figures/[a-z0-9-]{1,40}\.png")
LARGEST = 4 << 30  # bytes of all files of a zip, unpacked
LARGEST_MODEL = 2 << 30  # bytes of one file: no protocol buffer is larger
LARGEST_MANIFEST = 64 << 20
DENSEST = 200  # times that a zip may grow
TOLERANCE = {"float32": 1e-3, "float16": 1e-3, "bfloat16": 1e-3, "int8": 0.1}
"""Greatest difference of a golden probability: other processors add in another order; int8 also rounds otherwise."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in memory: `files` holds golden examples and the card by name; empty for a lone ``.onnx``."""

    manifest: Manifest
    model: bytes
    files: Mapping[str, bytes]

    def predictor(self, threads: int = 0) -> OnnxPredictor:
        """Return the model, ready to predict."""
        return OnnxPredictor(self.model, self.manifest.classes, self.manifest.preprocess, threads)


def make(manifest: Manifest, graph: bytes, contents: Mapping[str, bytes]) -> Bundle:
    """Put a bundle together: the manifest goes into the metadata of the ONNX file `graph`; `contents` are by name."""
    whole = replace(manifest, graph_sha256=onnxfile.graph_sha256(graph))
    text = whole.to_json()
    return Bundle(whole, onnxfile.with_metadata(graph, {KEY: text, HASH: _sha256(text.encode())}), dict(contents))


def restated(bundle: Bundle, **changes: Any) -> Bundle:
    """Return a bundle of the same graph and files with other fields of its manifest."""
    return make(replace(bundle.manifest, **changes), bundle.model, bundle.files)


def restate(path: Path, **changes: Any) -> None:
    """Change what the bundle at `path` (a folder, a ``.zip`` or an ``.onnx`` file) says of itself; its graph stays.

    It is replaced whole or not at all. Raises `ModelError` if it cannot be read, `OutputError` if it cannot be written
    or holds anything else, which would be lost.
    """
    old = read(path)
    if more := _others(path, old):
        raise OutputError(f"{path} holds {more[0]}, which is no part of the bundle: move it away first.")
    made = restated(old, **changes)
    if path.is_dir():
        write(made, path)
    elif path.suffix.lower() == ".zip":
        files.write(path, lambda aside: pack(made, aside))
    else:
        files.write(path, made.model)


def _others(path: Path, bundle: Bundle) -> list[str]:
    """Return the names in a folder or zip that the bundle does not know."""
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
    """Write a bundle as a directory, whole or not at all; one that is there is replaced. Raises `OutputError`."""
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
    """Write a bundle as a zip, the same bytes for the same bundle, to a path or an open file."""
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
    """Tell whether `path` looks like a bundle: a directory with a manifest, a ``.zip`` or an ``.onnx`` file."""
    return (path / MANIFEST).is_file() or (path.suffix.lower() in {".zip", ".onnx"} and path.is_file())


def load(path: Path, threads: int = 0) -> tuple[Bundle, OnnxPredictor]:
    """Read a bundle, check all that can be checked, and return it with its predictor; raises `ModelError`."""
    with _explained(path):
        bundle = _read(path)
        check_limits(parse(bundle.model), suitable_batch_size(bundle.manifest.preprocess))
        predictor = bundle.predictor(threads)
        check_golden(bundle, predictor)
        check_finite(predictor.outputs, predictor.preprocess)
    return bundle, predictor


def read(path: Path) -> Bundle:
    """Read a bundle and check its hashes, but do not run it; raises `ModelError`."""
    with _explained(path):
        return _read(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the model in whatever its content raises."""
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
    """Return the hash of a decoded picture uint8 [H, W, C], rows from the top."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def check_golden(bundle: Bundle, predictor: Predictor) -> None:
    """Raise `ModelError` if a golden example of `bundle` does not give its pixels and probabilities any more."""
    golden = [g for g in bundle.manifest.golden if g.file in bundle.files]
    if not golden:
        return
    pixels = []
    for example in golden:
        try:
            pixels.append(bundle.manifest.preprocess.decode(bundle.files[example.file]))
        except PictureError as error:
            raise ModelError(f"the golden example {example.file} cannot be read: {error}") from error
        if pixels_sha256(pixels[-1]) != example.pixels_sha256:
            raise ModelError(
                f"{example.file} gives other pixels here than where the model was made: its preprocessing was changed, "
                "or this Pillow decodes otherwise"
            )
    found = predictor.probabilities(np.stack(pixels))
    if not np.isfinite(found).all():
        raise ModelError("its reference examples give probabilities that are NaN or infinite: its weights are damaged")
    difference = np.abs(found - np.array([g.probabilities for g in golden])).max()
    if not difference <= TOLERANCE.get(bundle.manifest.precision, 1e-3):  # a recorded NaN is caught too
        raise ModelError(f"its golden examples give probabilities {difference:.2g} away from the recorded ones")


def _read(path: Path) -> Bundle:
    if path.is_dir():
        return _checked(_folder_reader(path))
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return _checked(_zip_reader(archive))
        except files.DAMAGED_ZIP as error:
            raise ModelError(f"it is no zip, or a damaged one: {error}") from error
    return _lone(files.read_regular(path, LARGEST_MODEL))


def _lone(model: bytes) -> Bundle:
    manifest = _metadata(model)
    return Bundle(manifest, model, {})


def _metadata(model: bytes) -> Manifest:
    """Return the manifest inside an ONNX file, whose graph must be the one that it was written for."""
    found = onnxfile.metadata(model)
    text = found.get(KEY)
    if text is None:
        raise ModelError("it was not made by Sightline: its metadata hold no manifest")
    if found.get(HASH) != _sha256(text.encode()):
        raise ModelError("the manifest in its metadata was changed: its hash is not the one beside it")
    manifest = Manifest.from_dict(_json(text.encode(), "its metadata"))
    if manifest.graph_sha256 != onnxfile.graph_sha256(model):
        raise ModelError("its weights or layers are not those that its metadata were written for")
    return manifest


def _checked(read: Callable[[str], bytes]) -> Bundle:
    values = _json(read(MANIFEST), MANIFEST)
    hashes = values.pop("files", None) if isinstance(values, dict) else None
    if not isinstance(hashes, dict) or MODEL not in hashes:
        raise ModelError(f"{MANIFEST} names no files, or not {MODEL}")
    manifest = Manifest.from_dict(values)
    contents = {}
    for name, expected in hashes.items():
        if name not in {MODEL, CARD} and not GOLDEN_FILE.fullmatch(name) and not _FIGURE.fullmatch(name):
            raise ModelError(f"{MANIFEST} names {name!r}, which is no file of a bundle")
        contents[name] = read(name)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise ModelError(f"{name} was changed: its hash is not the one in {MANIFEST}")
    if missing := [g.file for g in manifest.golden if g.file not in contents]:
        raise ModelError(f"{MANIFEST} names no hash of {missing[0]}")
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
                raise ModelError(f"{name} is a link, which a bundle does not hold")
        if not path.is_file():
            raise ModelError(f"{name} is missing")
        return files.read_regular(path, LARGEST_MANIFEST if name == MANIFEST else LARGEST_MODEL)

    return read


def _zip_reader(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    entries = {info.filename: info for info in archive.infolist()}
    if sum(info.file_size for info in entries.values()) > LARGEST:
        raise ModelError(f"it unpacks to more than {LARGEST >> 30} GB")
    roots = [name.removesuffix(MANIFEST) for name in entries if name == MANIFEST or name.endswith("/" + MANIFEST)]
    if len(roots) != 1:
        raise ModelError(f"it holds {len(roots)} files {MANIFEST}, expected one")

    def read(name: str) -> bytes:
        info = entries.get(roots[0] + name)
        if info is None:
            raise ModelError(f"{name} is missing")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ModelError(f"{name} is a link, which a bundle does not hold")
        limit = LARGEST_MANIFEST if name == MANIFEST else LARGEST
        if info.file_size > min(limit, max(info.compress_size, 1 << 16) * DENSEST):
            raise ModelError(f"{name} unpacks to {info.file_size} bytes, which is too much to be true")
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise ModelError(f"{name} is not as long as the zip says")
        return data

    return read


def _json(text: bytes, name: str) -> Any:
    try:
        return jsonio.loads(text)
    except ValueError as error:
        raise ModelError(f"{name} is no JSON: {error}") from error
