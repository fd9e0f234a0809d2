"""An exported folder in a format other than ONNX: model files, reference examples and ``manifest.json``.

The manifest is that of the bundle, with the name of the format, the sha256 of every other file, and its own sha256;
the OpenVINO file contains a copy, in case it is found alone. Loading verifies every hash and the reference examples.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline import files, jsonio
from sightline.errors import ModelError, OutputError
from sightline.export import openvino, tensorflow
from sightline.prediction import bundle
from sightline.prediction.base import Predictor, check_finite
from sightline.prediction.bundle import MANIFEST, Bundle
from sightline.prediction.manifest import Manifest

FORMATS = ("openvino", "litert", "saved_model")


def seal(folder: Path, form: str, manifest: Manifest, examples: Mapping[str, bytes]) -> None:
    """Add reference examples and the manifest to a folder with the model files of the format `form`."""
    for name, content in examples.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / MANIFEST).write_bytes(_sealed(manifest, form, _contents(folder)))


def _sealed(manifest: Manifest, form: str, contents: Mapping[str, bytes]) -> bytes:
    """Return ``manifest.json`` with the format, the hash of every other file, and its own hash."""
    values = manifest.to_dict() | {"format": form, "files": _hashes(contents)}
    text = jsonio.dumps(values | {"manifest_sha256": _own(values)}, sort_keys=True, indent=1)
    return f"{text}\n".encode()


def find(path: Path) -> Path | None:
    """Return the exported folder at `path`, or around the model file `path` (``model.tflite``); None if neither."""
    for folder in (path, path.parent):
        if _format(folder) in FORMATS:
            known = path == folder or path.name in {openvino.NAME, tensorflow.LITERT, tensorflow.SAVED_MODEL}
            return folder if known else None
    return None


def _format(folder: Path) -> Any:
    """Return the format in the manifest of a folder, or None without such a manifest."""
    try:
        return jsonio.read(folder / MANIFEST).get("format")
    except ModelError:
        return None


def load(folder: Path, threads: int = 0) -> tuple[Manifest, Predictor]:
    """Fully verify a folder and return its manifest and predictor; raises `ModelError`."""
    with _explained(folder):
        manifest, form, contents = _read(folder)
        predictor = _predictor(form, contents, manifest, threads)
        bundle.check_golden(Bundle(manifest, b"", contents), predictor)
        check_finite(predictor.outputs, predictor.preprocess)
    return manifest, predictor


def read(folder: Path, form: str, manifest: Manifest, threads: int = 0) -> Predictor:
    """Load the files of a folder in the runtime of their format, without verification."""
    return _predictor(form, _contents(folder), manifest, threads)


def restate(folder: Path, **changes: Any) -> None:
    """Change fields in the manifest of a folder, not its model files; raises `ModelError` if it cannot be read."""
    with _explained(folder):
        manifest, form, contents = _read(folder)
    files.write(folder / MANIFEST, _sealed(replace(manifest, **changes), form, contents))


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Add the path of the folder to errors about its content."""
    try:
        yield
    except ModelError as error:
        text = str(error).rstrip(".")
        raise ModelError(f"The export {folder} cannot be used: {text}. Export it again.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"The export {folder} cannot be read: {error}. Export it again.") from error


def _read(folder: Path) -> tuple[Manifest, str, dict[str, bytes]]:
    """Return the manifest, the format and the files of a folder, with their hashes verified.

    The files are read once, so that the verified bytes are those that run.
    """
    values = jsonio.read(folder / MANIFEST)
    if values.get("format") not in FORMATS:
        raise ModelError(f"{MANIFEST} states none of the formats {', '.join(FORMATS)}")
    if values.pop("manifest_sha256", None) != _own(values):
        raise ModelError(f"{MANIFEST} was changed: it does not match the hash that it contains")
    form, hashes = values.pop("format"), values.pop("files", None)
    if not isinstance(hashes, dict):
        raise ModelError(f"{MANIFEST} lists no files")
    contents = _contents(folder)
    here = _hashes(contents)
    if different := sorted(name for name in hashes.keys() | here.keys() if hashes.get(name) != here.get(name)):
        raise ModelError(f"{different[0]} was changed, added or removed: it does not match its hash in {MANIFEST}")
    manifest = Manifest.from_dict(values)
    if missing := [example.file for example in manifest.golden if example.file not in contents]:
        raise ModelError(f"{missing[0]} is missing")
    return manifest, form, contents


def _predictor(form: str, contents: Mapping[str, bytes], manifest: Manifest, threads: int) -> Predictor:
    from sightline.prediction.litert import LiteRtPredictor
    from sightline.prediction.openvino import OpenVinoPredictor
    from sightline.prediction.saved_model import SavedModelPredictor

    kinds: dict[str, Any] = {
        "openvino": OpenVinoPredictor,
        "litert": LiteRtPredictor,
        "saved_model": SavedModelPredictor,
    }
    try:
        predictor: Predictor = kinds[form](contents, manifest.classes, manifest.preprocess, threads)
    except KeyError as error:
        raise ModelError(f"{error.args[0]} is missing") from error
    return predictor


def place(made: Path, target: Path) -> None:
    """Move a finished folder to `target`, replacing an existing one; raises `OutputError`."""
    files.refuse_links_in_run(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as aside:
            new = Path(aside, "new")
            shutil.move(made, new)
            if target.exists():
                target.rename(Path(aside, "old"))
            new.rename(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}.") from error


def size(folder: Path) -> int:
    """Return the size in bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder except the manifest, by name; raises `ModelError` for a link."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelError(f"{name} is a link, which an export must not contain")
        if path.is_file() and name != MANIFEST:
            contents[name] = files.read_regular(path, bundle.LARGEST_MODEL)
    return contents


def _hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _own(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(jsonio.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
