"""Training state on disk: arrays and a JSON description, never pickled; hashed, written aside and renamed."""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.errors import ModelError, OutputError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`arrays` holds weights and optimizer state by name, `state` the rest as JSON values (epoch, stage, ...)."""

    arrays: Arrays
    state: dict[str, Any]


def variables(model: Any, part: Any = None) -> Arrays:
    """Return a copy of each variable of a Keras model, or of those in a `part` of it.

    Each has a name unique and the same in every process. The path would not do: Keras numbers the seeds of random
    layers on through all networks of a process.
    """
    to_numpy = backend.keras().ops.convert_to_numpy
    wanted = None if part is None else {id(v) for v in part.variables}
    return {
        f"{i:04d}:{v.name}": np.array(to_numpy(v))
        for i, v in enumerate(model.variables)
        if wanted is None or id(v) in wanted
    }


def restore(model: Any, arrays: Arrays) -> None:
    """Set each variable of `model` from `variables` of an equal model."""
    for i, variable in enumerate(model.variables):
        variable.assign(arrays[f"{i:04d}:{variable.name}"])


def write(folder: Path, number: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write checkpoint `number`, then remove all but the last `keep`; the name carries the content's hash.

    Those of `number` and above that lie there already are of a time that is done over, and go too. Raises
    `OutputError` if the disk is full or not writable; the checkpoints before stay as they are.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, state=np.array(json.dumps(checkpoint.state)), **checkpoint.arrays)
    data = buffer.getvalue()
    path = folder / f"{number:05d}-{hashlib.sha256(data).hexdigest()[:16]}.npz"
    aside = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        reason = error.strerror or error
        raise OutputError(
            f"The checkpoint {path} cannot be written: {reason}. Free some space; the one before is intact."
        ) from error
    before = sorted(old for old in folder.glob("*.npz") if old.name < path.name[:6])
    kept = {path, *before[max(len(before) - keep + 1, 0) :]}
    for old in {*folder.glob("*.npz"), *folder.glob("*.part")} - kept:
        old.unlink(missing_ok=True)
    return path


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose content matches its hash, None where there is none."""
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            return read(path)
        except ModelError:
            continue
    return None


def read(path: Path) -> Checkpoint:
    """Read one checkpoint; raises `ModelError` if it is damaged."""
    try:
        data = path.read_bytes()
        if not path.stem.endswith(hashlib.sha256(data).hexdigest()[:16]):
            raise ModelError(f"The checkpoint {path} is damaged: its content does not match its hash.")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ModelError(f"The checkpoint {path} cannot be read: {error}.") from error
    state = json.loads(str(arrays.pop("state")))
    return Checkpoint(arrays, state)
