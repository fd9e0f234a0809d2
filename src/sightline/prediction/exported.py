"""A folder of a format other than the bundle's: the files, golden examples, and ``manifest.json`` beside them.

The manifest is the bundle's, with the format's name, the sha256 of every other file, and its own; OpenVINO's file holds
a copy for whoever finds it alone. Loading verifies every hash and the golden examples.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.errors import ModelError, OutputError
from sightline.prediction import bundle
from sightline.prediction.base import Predictor, check_finite
from sightline.prediction.bundle import MANIFEST, Bundle
from sightline.prediction.manifest import Manifest

FORMATS = ("openvino", "litert", "saved_model")


def seal(folder: Path, form: str, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Add golden examples (`files`) and the manifest to a folder that holds the model's files in the format `form`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    values = manifest.to_dict() | {"format": form, "files": _hashes(folder)}
    text = jsonio.dumps(values | {"manifest_sha256": _own(values)}, sort_keys=True, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def load(folder: Path, threads: int = 0) -> tuple[Manifest, Predictor]:
    """Check all that can be checked of a folder and return its manifest and predictor; raises `ModelError`."""
    try:
        return _load(folder, threads)
    except ModelError as error:
        text = str(error).rstrip(".")
        raise ModelError(
            f"The export {folder} cannot be used: {text}. Make it anew with `sightline export`."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"The export {folder} cannot be read: {error}.") from error


def _load(folder: Path, threads: int) -> tuple[Manifest, Predictor]:
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("format") not in FORMATS:
        raise ModelError(f"{MANIFEST} names none of the formats {', '.join(FORMATS)}")
    if values.pop("manifest_sha256", None) != _own(values):
        raise ModelError(f"{MANIFEST} was changed: its hash is not the one that it holds")
    form, hashes = values.pop("format"), values.pop("files")
    found = _hashes(folder)
    if different := sorted(name for name in hashes.keys() | found.keys() if hashes.get(name) != found.get(name)):
        raise ModelError(f"{different[0]} was changed, added or removed: its hash is not the one in {MANIFEST}")
    manifest = Manifest.from_dict(values)
    predictor = read(folder, form, manifest, threads)
    golden = {g.file: (folder / g.file).read_bytes() for g in manifest.golden}
    bundle.check_golden(Bundle(manifest, b"", golden), predictor)
    check_finite(predictor.outputs, predictor.preprocess)
    return manifest, predictor


def read(folder: Path, form: str, manifest: Manifest, threads: int = 0) -> Predictor:
    """Load the files of a folder in the runtime of their format, without any check."""
    from sightline.prediction.litert import LiteRtPredictor
    from sightline.prediction.openvino import OpenVinoPredictor
    from sightline.prediction.saved_model import SavedModelPredictor

    kinds: dict[str, Any] = {
        "openvino": OpenVinoPredictor,
        "litert": LiteRtPredictor,
        "saved_model": SavedModelPredictor,
    }
    predictor: Predictor = kinds[form](folder, manifest.classes, manifest.preprocess, threads)
    return predictor


def place(made: Path, target: Path) -> None:
    """Rename a finished folder to `target`, in place of one that is there; raises `OutputError`."""
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
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelError(f"{name} is a link, which an export does not hold")
        if path.is_file() and name != MANIFEST:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _own(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(jsonio.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
