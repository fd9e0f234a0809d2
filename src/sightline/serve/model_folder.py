"""A server's models on disk: one model, or a folder of models with their versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.api.loading import explain_not_a_model, holds_images, is_model, load
from sightline.errors import ModelError, SightlineError, UsageError
from sightline.inference.device_choice import Device
from sightline.serve.served_model import ServedModel

MODEL_SUFFIXES = {".zip", ".onnx"}
IGNORED_NAMES = {"lost+found"}  # on the root of a volume; hidden files and folders are ignored as well
RUN_FILES = ("run.json", "config.toml", "thresholds.json", "model.keras")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How models are loaded: `threads` and `device` as in `load`, `tile` as in `ServedModel.from_classifier`."""

    threads: int = 0
    device: Device | None = None
    tile: float | None = None


DEFAULT_OPTIONS = LoadOptions()


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on disk; if `name` is None, it is named like its run or file; `number` is the version from its folder."""

    path: Path
    name: str | None = None
    number: str | None = None

    @property
    def key(self) -> tuple[str | None, str | None]:
        """The name and the version, as in `ServedModel.key`."""
        return self.name, self.number

    def read_signature(self) -> tuple[Any, ...]:
        """Return a value that changes when a file of the model is written or replaced; no file is read."""
        try:
            files = _list_files(self.path)
        except OSError as error:  # loading the model will report what is wrong
            return str(self.path), error.errno
        return tuple(map(_read_file_signature, files))

    def load(self, options: LoadOptions = DEFAULT_OPTIONS) -> ServedModel:
        """Load and verify the model; raise `ModelError`, or `UsageError` for a device that cannot be used."""
        classifier = load(self.path, threads=options.threads, device=options.device)
        return ServedModel.from_classifier(classifier, self.name, self.number, options.tile)


def check_folder(folder: Path) -> None:
    """Raise `UsageError` for a folder that is itself a model, or contains images and no models."""
    if is_model(folder):
        raise UsageError(f"{folder} is a model, not a folder of models: leave --models out.")
    if not any(is_model(entry.path) for entry in list_folder(folder)) and holds_images(folder):
        raise UsageError(explain_not_a_model(folder))


def list_folder(folder: Path) -> list[StoredModel]:
    """Return the models in a folder: ``NAME``, ``NAME.zip``, ``NAME.onnx``, or ``NAME/VERSION`` with whole numbers.

    Other folders are listed as well, so that loading them reports what is wrong. Raises `UsageError` if there are no
    models, or two with the same name.
    """
    try:
        models = [entry for path in sorted(folder.iterdir()) if _may_be_model(path) for entry in _list_entries(path)]
    except OSError as error:
        place = "" if error.filename in {None, str(folder)} else f": {error.filename}"
        raise UsageError(f"The folder of models {folder} cannot be read: {error.strerror or error}{place}.") from error
    entries: dict[tuple[str, str | None], StoredModel] = {}
    for entry in models:
        assert entry.name is not None
        other = entries.setdefault((entry.name, entry.number), entry)
        if other is not entry:
            raise UsageError(f"{other.path} and {entry.path} are models of the same name: rename one of them.")
    if not entries:
        raise UsageError(
            f"There is no model in {folder}: expected runs or bundles in it, as NAME, NAME.zip, NAME.onnx or NAME/1."
        )
    return list(entries.values())


def load_all(entries: list[StoredModel], options: LoadOptions = DEFAULT_OPTIONS) -> list[ServedModel]:
    """Load all models; raise `ModelError` with a sentence for each one that cannot be used."""
    models, reasons = [], []
    for entry in entries:
        try:
            models.append(entry.load(options))
        except SightlineError as error:
            reasons.append(str(error))
    if reasons:
        raise ModelError(" ".join(reasons))
    return models


def _list_files(path: Path) -> list[Path]:
    """Return the files that a model is loaded from; other files of a run change during training."""
    if not path.is_dir():
        return [path]
    if not (path / RUN_FILES[0]).exists():
        return sorted(path.rglob("*"))
    return [*(path / name for name in RUN_FILES), *sorted((path / "bundle").rglob("*"))]


def _read_file_signature(path: Path) -> tuple[Any, ...]:
    try:
        status = path.stat()
    except OSError:
        return (str(path),)
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino


def _may_be_model(path: Path) -> bool:
    if path.name.startswith(".") or path.name in IGNORED_NAMES:
        return False
    return path.is_dir() or path.suffix.lower() in MODEL_SUFFIXES


def _list_entries(path: Path) -> list[StoredModel]:
    name = _get_name(path)
    if not path.is_dir() or is_model(path):
        return [StoredModel(path, name)]
    versions = [child for child in sorted(path.iterdir()) if _VERSION.fullmatch(_get_name(child))]
    return [StoredModel(_find_model(child), name, _get_name(child)) for child in versions if _may_be_model(child)] or [
        StoredModel(path, name)
    ]


def _find_model(path: Path) -> Path:
    """Return the only model in a version's folder, as in ``1/model.onnx``, or the folder if it is itself a model."""
    if path.is_dir() and not is_model(path):
        models = [child for child in path.iterdir() if is_model(child)]
        return models[0] if len(models) == 1 else path
    return path


def _get_name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem
