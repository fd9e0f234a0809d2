"""An exported folder in a format other than ONNX: model files, reference examples and ``manifest.json``.

The manifest is the bundle's, with the name of the format, the sha256 of every other file, and its own sha256; the
OpenVINO file contains a copy, in case it is found alone. Loading verifies every hash and the reference examples.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from sightline import _io, jsonio
from sightline.errors import ModelError, OutputError, SightlineError, first_line
from sightline.inference import bundle
from sightline.inference.bundle import MANIFEST_FILE
from sightline.inference.exporters import EXPORTERS, Exporter
from sightline.inference.manifest import REFERENCE_FILE, Manifest, SchemaError
from sightline.inference.predictor import Predictor
from sightline.inference.reference_examples import check_random_image, check_reference_examples

MAX_FILES = 1_000  # limit on files and folders together


class _ManifestFile(TypedDict):
    """The fields of ``manifest.json`` besides the manifest, in a bundle or an export."""

    files: Mapping[str, str]


class _UnknownFormatError(ModelError):
    """The package that adds the format is not installed; exporting again would not help."""


def add_manifest(folder: Path, format_name: str, manifest: Manifest, examples: Mapping[str, bytes]) -> None:
    """Add reference examples and the manifest to a folder with the model files of the format `format_name`."""
    for name, content in examples.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / MANIFEST_FILE).write_bytes(
        _encode_manifest(manifest, format_name, _read_contents(folder, EXPORTERS[format_name]))
    )


def _encode_manifest(manifest: Manifest, format_name: str, contents: Mapping[str, bytes]) -> bytes:
    """Return ``manifest.json`` with the format, the hash of every other file, and its own hash."""
    values = manifest.to_dict() | {"format": format_name, "files": _hash_contents(contents)}
    text = jsonio.dumps(values | {"manifest_sha256": _hash_manifest(values)}, sort_keys=True, indent=1)
    return f"{text}\n".encode()


def find(path: Path) -> Path | None:
    """Return the exported folder at `path`, or of the model file `path` (``model.tflite``); None if it is neither."""
    for folder in (path, path.parent):
        if (name := _read_format(folder)) is not None:
            exporter = EXPORTERS.get(name)
            return folder if path == folder or (exporter and path.name == exporter.files[0]) else None
    return None


def _read_format(folder: Path) -> str | None:
    """Return the format in the manifest of a folder, installed or not; None without one, as in a bundle."""
    try:
        name = jsonio.read_object(folder / MANIFEST_FILE).get("format")
    except ModelError:
        return None
    return name if isinstance(name, str) and not _is_bundle_format(name) else None


def _is_bundle_format(name: str) -> bool:
    exporter = EXPORTERS.get(name)
    return exporter is not None and exporter.is_bundle


def load(folder: Path, threads: int = 0) -> tuple[Manifest, Predictor]:
    """Fully verify a folder and return its manifest and predictor; raises `ModelError`."""
    with _explain_errors(folder):
        manifest, exporter, contents = _read(folder)
        predictor = _open_files(exporter, contents, manifest, threads)
        check_reference_examples(manifest, contents, predictor)
        check_random_image(manifest, predictor)
    return manifest, predictor


def load_unverified(folder: Path, exporter: Exporter, manifest: Manifest) -> Predictor:
    """Load the files of a folder in the runtime of their format, without verification."""
    return _open_files(exporter, _read_contents(folder, exporter), manifest, threads=0)


def update_manifest_file(folder: Path, **changes: Any) -> None:
    """Change fields in the manifest of a folder, not its model files; raises `ModelError` if it cannot be read."""
    with _explain_errors(folder):
        manifest, exporter, contents = _read(folder)
    _io.write_atomic(folder / MANIFEST_FILE, _encode_manifest(replace(manifest, **changes), exporter.name, contents))


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    """Add the path of the folder to errors about its content."""
    try:
        yield
    except SchemaError as error:
        raise ModelError(f"The export {folder} cannot be used: {error}.") from error
    except _UnknownFormatError as error:
        raise ModelError(
            f"The export {folder} cannot be used: {error}. Install the package that adds it, or export another format."
        ) from error
    except ModelError as error:
        text = str(error).rstrip(".")
        raise ModelError(f"The export {folder} cannot be used: {text}. Export it again.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"The export {folder} cannot be read: {error}. Export it again.") from error


def _read(folder: Path) -> tuple[Manifest, Exporter, dict[str, bytes]]:
    """Return the manifest, the exporter and the files of a folder, with their hashes verified.

    The files are read once, so that the verified bytes are those that run.
    """
    values = jsonio.read_object(folder / MANIFEST_FILE)
    name = values.get("format")
    exporter = EXPORTERS.get(name) if isinstance(name, str) else None
    if exporter is None or exporter.is_bundle:
        raise _UnknownFormatError(f"{MANIFEST_FILE} states the format {name!r}, which no installed package can open")
    if values.pop("manifest_sha256", None) != _hash_manifest(values):
        raise ModelError(f"{MANIFEST_FILE} was changed: it does not match the hash that it contains")
    del values["format"]
    hashes = values.pop("files", None)
    if not isinstance(hashes, dict):
        raise ModelError(f"{MANIFEST_FILE} lists no files")
    contents = _read_contents(folder, exporter)
    actual = _hash_contents(contents)
    if mismatched := sorted(name for name in hashes.keys() | actual.keys() if hashes.get(name) != actual.get(name)):
        raise ModelError(
            f"{mismatched[0]} was changed, added or removed: it does not match its hash in {MANIFEST_FILE}"
        )
    manifest = Manifest.from_dict(values)
    if missing := [example.file for example in manifest.reference_examples if example.file not in contents]:
        raise ModelError(f"{missing[0]} is missing")
    return manifest, exporter, contents


def _open_files(exporter: Exporter, contents: Mapping[str, bytes], manifest: Manifest, threads: int) -> Predictor:
    for file in exporter.files:
        if not any(_is_model_file(name, file) for name in contents):
            raise ModelError(f"{file} is missing")
    with explain_converter_errors(f"the format {exporter.name} cannot be opened"):
        return exporter.open(contents, manifest.classes, manifest.preprocess, threads)


@contextmanager
def explain_converter_errors(message: str) -> Iterator[None]:
    """Turn errors of another package's converter or runtime into a `ModelError` that starts with `message`."""
    try:
        yield
    except (SightlineError, OSError):
        raise
    except Exception as error:
        if (reason := os.strerror(errno.ENOSPC)) in str(error):  # TensorFlow's own exception
            raise OSError(errno.ENOSPC, reason) from error
        raise ModelError(f"{message}: {first_line(error)}") from error


@contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Raise an `OutputError` that names `target` if a file cannot be written, even under a temporary name."""
    try:
        yield
    except (OSError, OutputError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if not isinstance(cause, OSError):
            raise
        raise OutputError(f"{target} cannot be written: {cause.strerror or cause}. {_io.ADVICE}") from error


def check_replaceable(target: Path) -> None:
    """Raise `OutputError` if there is anything but a bundle or an export at `target`; in a folder it may be damaged.

    The bundle of a run must not be replaced either, nor a single model file.
    """
    is_of_run = any(path.name == "bundle" and (path.parent / "run.json").is_file() for path in (target, target.parent))
    if is_of_run or (target.is_file() and _has_manifest(target.parent)):
        raise OutputError(f"{target} is part of the model {target.parent}: choose another place with --out.")
    if target.is_file() and target.suffix.lower() in {".onnx", ".zip"}:
        _check_bundle_file(target)
    else:
        _check_folder(target)


def _has_manifest(folder: Path) -> bool:
    """Return whether the file with the name of a manifest describes a model; web pages have a file of that name too."""
    with suppress(ModelError):
        return "graph_sha256" in jsonio.read_object(folder / MANIFEST_FILE)
    return False


def _check_bundle_file(file: Path) -> None:
    try:
        own_files = bundle.to_files(bundle.read(file))
    except ModelError as error:
        raise OutputError(
            f"{file} exists and is not a bundle that can be read: choose another place with --out."
        ) from error
    bundle.refuse_foreign_files(file, own_files)


def _check_folder(folder: Path) -> None:
    if _io.is_free(folder):
        return
    try:
        values = jsonio.read_object(folder / MANIFEST_FILE)
        own_files = jsonio.build(_ManifestFile, values, MANIFEST_FILE)["files"]
        Manifest.from_dict({name: values[name] for name in values.keys() - {"files", "format", "manifest_sha256"}})
    except ModelError as error:
        raise OutputError(f"{folder} exists and is not an export: choose another place with --out.") from error
    bundle.refuse_foreign_files(folder, {MANIFEST_FILE, *own_files})


def move_into_place(source: Path, target: Path) -> None:
    """Move a finished folder to `target`, replacing an existing one; raises `OutputError`."""
    with _io.replacing_folder(target, str(target)) as new_folder:
        shutil.move(source, new_folder)


def total_size(folder: Path) -> int:
    """Return the size in bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read_contents(folder: Path, exporter: Exporter) -> dict[str, bytes]:
    """Return every file below a folder except the manifest, by name.

    Raises `ModelError` for a link, for a file that is neither the model's nor an example, and for more or larger files
    than an export has.
    """
    contents: dict[str, bytes] = {}
    count, left = 0, bundle.MAX_BUNDLE_BYTES
    for parent, folders, files in os.walk(folder):
        for name in sorted(Path(parent, file).relative_to(folder).as_posix() for file in (*folders, *files)):
            path = folder / name
            count += 1
            if count > MAX_FILES:
                raise ModelError(f"it contains more than {MAX_FILES:,} files and folders")
            if path.is_symlink():
                raise ModelError(f"{name} is a link, which an export must not contain")
            if path.is_dir() or name == MANIFEST_FILE:
                continue
            if not any(_is_model_file(name, file) for file in exporter.files) and not REFERENCE_FILE.fullmatch(name):
                raise ModelError(f"it contains {name!r}, which is not a file of the format {exporter.name}")
            contents[name] = _io.read_regular(path, min(left, bundle.MAX_MODEL_BYTES))
            left -= len(contents[name])
    return contents


def _is_model_file(name: str, file: str) -> bool:
    """Return whether a name is in `Exporter.files`, or below a folder listed there."""
    return name == file or name.startswith(f"{file}/")


def _hash_contents(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _hash_manifest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(jsonio.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
