"""Error messages for paths that are not models, with a guess at what was meant."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from sightline.data.sources.filenames import is_image_name
from sightline.inference import bundle, exported_folder

MODEL_KINDS = (
    "a run (the folder that `sightline train` wrote), a bundle (a folder, .zip or .onnx file), or a folder that "
    "`sightline export` wrote"
)
MAX_MODELS = 5  # models listed in a message


def explain_not_a_model(path: Path) -> str:
    """Return the message for a path that is not a model: what it is, and what to give instead."""
    if not path.exists():
        return f"There is no model {path}: expected {MODEL_KINDS}."
    if path.is_dir():
        models = _models_in(path)
        if models:
            remaining = f" (and {len(models) - MAX_MODELS} more)" if len(models) > MAX_MODELS else ""
            return (
                f"{path} is not a model but contains some: use "
                f"{' or '.join(map(str, islice(models, MAX_MODELS)))}{remaining}."
            )
        return f"{path} is not a model: expected {MODEL_KINDS}."
    if _is_model(path.parent):
        return f"{path} is a file of the model {path.parent}: give that folder."
    if is_image_name(path.name):
        return f"{path} is an image, not a model: the model comes first, then the images."
    return f"{path} is not a model: expected {MODEL_KINDS}."


def _models_in(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if _is_model(path)]
    except OSError:  # not readable
        return []


def _is_model(path: Path) -> bool:
    return (path / "run.json").is_file() or bundle.is_bundle(path) or exported_folder.find(path) == path
